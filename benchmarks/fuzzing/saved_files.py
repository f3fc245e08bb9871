"""Files of the package itself with other content: memory banks, room pools, configurations."""

import json
import random
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from na_ssl_hf import EatConfig, EatModel, MemoryBank, NABeatsConfig, NABeatsModel, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.simulation import RoomPool

from .sounds import tiny_scorer
from .trial import DAMAGED, GOOD, ODD, Materials, Trial

STRANGE = (None, True, -1, 0, 1, 3, 10**9, 10**30, 0.5, 1e400, float("nan"), "", "x", "5", [], [1], {}, {"a": 1})


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _changed(draw: random.Random, value: Any) -> tuple[Any, str]:
    """A copy of JSON in which one value, somewhere, is another or gone."""
    value = json.loads(json.dumps(value))
    place, path = value, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        path += f"/{key}"
        if isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.7:
            place = place[key]
            continue
        how = draw.random()
        if how < 0.15:
            del place[key]
            return value, f"{path} is gone"
        new = draw.choice(STRANGE)
        if how < 0.2:
            new = _nested(400)
        place[key] = new
        return value, f"{path} is {new!r:.30}"


def _damaged_bytes(draw: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """Bytes that are cut, overwritten or foreign, what was done, and whether that must be noticed."""
    how = draw.choice(("cut", "byte", "noise", "size"))
    if how == "cut":
        length = draw.randrange(len(content) - 1)
        return content[:length], f"cut to {length} bytes", DAMAGED
    if how == "byte":
        position, value = draw.randrange(len(content)), draw.randrange(256)
        return content[:position] + bytes([value]) + content[position + 1 :], f"byte {position} is {value}", ODD
    if how == "noise":
        return draw.randbytes(draw.randrange(200)), "noise", DAMAGED
    size = draw.choice((0, 1, 2**31, 2**63))
    return struct.pack("<Q", size) + content[8:], f"header of {size} bytes", DAMAGED


def _changed_tensors(draw: random.Random, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str, str]:
    tensors = dict(tensors)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    how = draw.choice(("NaN", "infinite", "gone", "extra", "shorter", "dtype", "zero", "flat", "empty"))
    if how in ("NaN", "infinite"):
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensors, "as it was", GOOD
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[draw.randrange(tensor.numel())] = float("nan" if how == "NaN" else "inf")
    elif how == "gone":
        del tensors[name]
    elif how == "extra":
        name = draw.choice(("", "x", "memory", "history.9.memory_"))
        tensors[name] = torch.ones(2)
    elif how == "shorter":
        if not len(tensor):  # a change that removed no clip has an empty list of them
            return tensors, "as it was", GOOD
        tensors[name] = tensor[:-1].clone()
    elif how == "dtype":
        tensors[name] = tensor.to(
            draw.choice([dtype for dtype in (torch.float64, torch.int8) if dtype != tensor.dtype])
        )
    elif how == "zero":
        tensors[name] = torch.zeros_like(tensor)
        return tensors, f"{name} is zero", ODD
    else:
        tensors[name] = tensor.reshape(-1) if how == "flat" and tensor.ndim > 1 else tensor.new_zeros(0)
        if tensors[name].shape == tensor.shape:
            return tensors, "as it was", GOOD
    return tensors, f"{name}: {how}", DAMAGED


def _banks() -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(12, 4, 8, generator=generator)
    domains = ["source"] * 8 + ["target"] * 4
    banks = [
        tiny_scorer().memory_bank,
        MemoryBank().fit(embeddings),
        MemoryBank(rescaling="variance_min").fit(embeddings),
        MemoryBank(smote_ratio=1.0).fit(embeddings, domains),
        MemoryBank(coreset_size=6).fit(embeddings),
        MemoryBank(backend="two_domains").fit(embeddings, domains),
        MemoryBank(backend="mahalanobis").fit(embeddings),
        MemoryBank(backend=["nearest", "two_domains", "mahalanobis", "pca"]).fit(embeddings, domains),
    ]
    banks.append(MemoryBank(rescaling="lof").fit(embeddings).partial_fit(embeddings[:2] + 1))
    banks.append(MemoryBank(backend="pca").fit(embeddings).forget([3]))
    contents = []
    for bank in banks:
        path = Path(_folder()) / "memory_bank.safetensors"
        bank.save_pretrained(path.parent)
        contents.append(path.read_bytes())
        shutil.rmtree(path.parent)
    return contents


def _folder() -> str:
    return tempfile.mkdtemp(prefix="na-ssl-fuzz-")


def _header(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])


def bank_file(draw: random.Random, materials: Materials) -> Trial:
    """A memory bank of other content, loaded and asked."""
    content = draw.choice(materials.once("banks", _banks))
    how = draw.choice(("bytes", "header", "header", "tensors", "tensors", "whole"))
    what, is_input = "whole", GOOD
    if how == "bytes":
        content, what, is_input = _damaged_bytes(draw, content)
    elif how != "whole":
        tensors, metadata = load(content), _header(content)["__metadata__"]
        if how == "header":
            header, what = _changed(draw, json.loads(metadata["memory_bank"]))
            metadata, is_input = metadata | {"memory_bank": json.dumps(header)}, ODD
        else:
            tensors, what, is_input = _changed_tensors(draw, tensors)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
    path = materials.file("memory_bank.safetensors", content)

    def act() -> bool:
        bank = MemoryBank.from_file(path)
        with safe_open(path, framework="pt") as file:
            bands, _, dim = file.get_tensor("memory_").shape
        queries = torch.ones(3, bands, dim) / dim**0.5
        return bool(np.isfinite(np.asarray(bank.score(queries))).all())

    return Trial(f"memory bank {what}", act, ("memory_bank.safetensors",), is_input)


def _pool() -> bytes:
    path = Path(_folder()) / "pool.safetensors"
    RoomPool.simulate(2, seed=0, path=path, show_progress=False)
    content = path.read_bytes()
    shutil.rmtree(path.parent)
    return content


def room_pool(draw: random.Random, materials: Materials) -> Trial:
    """A room pool of other content, loaded and read."""
    content = materials.once("pool", _pool)
    how = draw.choice(("bytes", "metadata", "tensors", "whole"))
    what, is_input = "whole", GOOD
    if how == "bytes":
        content, what, is_input = _damaged_bytes(draw, content)
    elif how != "whole":
        tensors, metadata = load(content), dict(_header(content)["__metadata__"])
        if how == "metadata":
            name = draw.choice(sorted(metadata))
            metadata[name] = draw.choice(("", "0", "1", "2", "-1", "9" * 40, "1e3", "x", "nan"))
            what, is_input = f"{name} is {metadata[name]:.10}", ODD
        else:
            tensors, what, is_input = _changed_tensors(draw, tensors)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
    path = materials.file("pool.safetensors", content)

    def act() -> bool:
        pool = RoomPool.load(path)
        return all(bool(torch.isfinite(response).all()) for response in pool.batch(range(len(pool)))[:2])

    return Trial(f"room pool {what}", act, ("pool.safetensors", "sampling_rate", "version"), is_input)


def _checkpoints() -> list[dict[str, bytes]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    beats = sizes | {"patch_embedding_size": 8, "position_convolution_kernel": 8}
    models = [
        (EatModel(EatConfig(**sizes, max_time_patches=32)), TwoChannelFeatureExtractor(frontend="eat")),
        (
            NABeatsModel(NABeatsConfig(**beats)),
            TwoChannelFeatureExtractor(frontend="beats", far_cancellation="least_squares"),
        ),
    ]
    files = []
    for model, extractor in models:
        folder = Path(_folder())
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        files.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        shutil.rmtree(folder)
    return files


def checkpoint(draw: random.Random, materials: Materials) -> Trial:
    """A checkpoint whose configuration or weights are others, loaded and used."""
    files = dict(draw.choice(materials.once("checkpoints", _checkpoints)))
    how = draw.choice(
        ("config.json", "config.json", "preprocessor_config.json", "preprocessor_config.json", "weights", "text")
    )
    is_input = ODD
    if how == "weights":
        files["model.safetensors"], what, is_input = _damaged_bytes(draw, files["model.safetensors"])
    elif how == "text":
        how = draw.choice(("config.json", "preprocessor_config.json"))
        content = draw.choice(
            (b"", b"[]", b"null", b"{", b"\xff\xfe{}", b"3", b'"x"', b"[" * 5000, b'{"a":' * 3000, b"\0")
        )
        files[how], what, is_input = content, f"is {content!r:.20}", DAMAGED
    else:
        changed, what = _changed(draw, json.loads(files[how]))
        files[how] = json.dumps(changed).encode()
    folder = materials.folder / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        materials.file(f"checkpoint/{name}", content)
    array = (0.1 * np.random.default_rng(0).standard_normal((2, 8000))).astype(np.float32)

    def act() -> bool:
        # What the commands load checkpoints with; transformers itself stumbles over files that are no JSON object.
        extractor, model = load_extractor(folder), load_model(folder).eval()
        with torch.no_grad():
            tokens = model(**extractor([array], sampling_rate=16000, return_tensors="pt")).last_hidden_state
        return bool(torch.isfinite(tokens).all())

    return Trial(f"checkpoint, {how} {what}", act, (str(folder), "config.json", "`"), is_input)
