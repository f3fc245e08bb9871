"""Foreign checkpoints are read without executing anything that they ask for."""

import argparse
import os
import pickle
import resource
import sys
import time
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from na_ssl_hf.convert.foreign_pickle import ForeignCheckpointError, Placeholder, load_foreign_checkpoint, to_plain

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Reduced:
    """Pickles as whatever it is given."""

    def __init__(self, *reduced: Any):
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.fixture
def foreign_class(monkeypatch: pytest.MonkeyPatch):
    """`foreign_class(module, name, *bases)`: a class to pickle, of a module that is gone when the test loads it."""

    def make(module: str, name: str, *bases: type) -> type:
        made = type(name, bases, {"__module__": module})
        for parent in [module[:end] for end, letter in enumerate(module + ".") if letter == "."]:
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
        return made

    return make


@FORMATS
def test_tensors_survive_beside_foreign_objects(tmp_path, foreign_class, zipped):
    foreign = foreign_class("omegaconf.base", "Metadata")
    base = torch.randn(4, 6)
    tensors = {
        "view": base[1:3, ::2],
        "transposed": base.T,
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "integers": torch.arange(5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    path = save({"tensors": OrderedDict(tensors), "object": foreign()}, tmp_path / "a.pt", zipped)
    loaded = load_foreign_checkpoint(path)
    assert isinstance(loaded["object"], Placeholder)
    assert loaded["object"].qualified_name == "omegaconf.base.Metadata"
    for name, tensor in tensors.items():
        assert loaded["tensors"][name].dtype == tensor.dtype
        assert torch.equal(loaded["tensors"][name], tensor)


@FORMATS
def test_a_foreign_module_is_not_imported(tmp_path, foreign_class, monkeypatch, zipped):
    path = save({"x": foreign_class("hydra.landmine", "Landmine")()}, tmp_path / "a.pt", zipped)
    for module in ("hydra", "hydra.landmine"):
        monkeypatch.delitem(sys.modules, module)
    package = tmp_path / "hydra"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    (package / "landmine.py").write_text("class Landmine: pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(load_foreign_checkpoint(path)["x"], Placeholder)
    assert not (tmp_path / "imported").exists()
    assert "hydra" not in sys.modules


@FORMATS
def test_placeholders_record_every_way_to_build_an_object(tmp_path, foreign_class, zipped):
    mapping = foreign_class("fairseq.data", "Dictionary", dict)(a=1)
    sequence = foreign_class("fairseq.data", "Sequence", list)([1, 2])
    called = Reduced(foreign_class("numpy.core.multiarray", "scalar"), ("f8", b"\x00"))
    with_slots = foreign_class("lightning.pytorch", "Slotted")()
    with_slots.__dict__.update(x=1)
    content = {"mapping": mapping, "sequence": sequence, "called": called, "state": with_slots}
    loaded = load_foreign_checkpoint(save(content, tmp_path / "a.pt", zipped))
    assert loaded["mapping"].entries == {"a": 1}
    assert loaded["sequence"].elements == [1, 2]
    assert loaded["called"].args == ("f8", b"\x00")
    assert loaded["state"].state == {"x": 1}
    assert all(isinstance(value, Placeholder) for value in loaded.values())


def test_plain_containers_survive_beside_foreign_objects(tmp_path, foreign_class):
    content = {
        "set": {1, 2},
        "bytes": b"\xff\x00",
        "bytearray": bytearray(b"ab"),
        "complex": 1 + 2j,
        "frozen": frozenset({3}),
        "default": defaultdict(list, a=[1]),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "object": foreign_class("omegaconf.base", "Metadata")(),
    }
    loaded = load_foreign_checkpoint(save(content, tmp_path / "a.pt"))
    del content["object"], loaded["object"]
    assert loaded == content


@FORMATS
def test_settings_are_unwrapped(tmp_path, foreign_class, zipped):
    node_class = foreign_class("omegaconf.nodes", "AnyNode")
    container_class = foreign_class("omegaconf.dictconfig", "DictConfig")

    def container(content: dict | list) -> Any:
        made = container_class()
        made.__dict__.update(_content=content, _parent=made)  # the parent makes a cycle, as in real files
        return made

    node = node_class()
    node.__dict__.update(_val=8)
    content = {
        "hparams": container({"attention": container({"num_heads": node}), "sizes": container([node, 2])}),
        "args": argparse.Namespace(depth=3),
    }
    loaded = load_foreign_checkpoint(save(content, tmp_path / "a.pt", zipped))
    assert to_plain(loaded) == {
        "hparams": {"attention": {"num_heads": 8}, "sizes": [8, 2]},
        "args": {"depth": 3},
    }


def test_settings_that_contain_themselves_are_an_error():
    cyclic: dict = {}
    cyclic["self"] = cyclic
    with pytest.raises(ValueError, match="too deeply"):
        to_plain(cyclic)


@FORMATS
@pytest.mark.parametrize(
    ("callable_", "args"),
    [(os.system, ("touch executed",)), (eval, ("open('executed', 'w')",)), (open, ("executed", "w"))],
    ids=["os.system", "eval", "open"],
)
def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, monkeypatch, zipped, callable_, args):
    monkeypatch.chdir(tmp_path)
    path = save({"state_dict": Reduced(callable_, args)}, tmp_path / "evil.ckpt", zipped)
    with pytest.raises(ValueError, match=callable_.__name__):
        load_foreign_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def raw_zip(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"a/{name}", content)
    return path


INERT = b"comegaconf.base\nMetadata\n0"  # makes the reader of weights refuse the file, so that ours is reached


@pytest.mark.parametrize(
    "pickled",
    [
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\neval\n.",
        b"cposix\nsystem\n.",
        b"csubprocess\nPopen\n.",
        b"ctorch\nload\n.",
        b"ctorch.hub\nload\n.",
        b"ctorch.serialization\nload\n.",
        b"cna_ssl_hf.convert\nconvert\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"(iposix\nsystem\n.",
    ],
)
def test_no_import_outside_the_known_libraries(tmp_path, pickled):
    proto, body = (pickled[:2], pickled[2:]) if pickled[:1] == b"\x80" else (b"", pickled)
    with pytest.raises(ValueError, match="asks to import"):
        load_foreign_checkpoint(raw_zip(tmp_path / "a.pt", proto + INERT + body))


def test_a_dotted_name_does_not_reach_through_a_known_library(tmp_path):
    pickled = b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93\x8c\x0etouch executed\x85R."
    loaded = load_foreign_checkpoint(raw_zip(tmp_path / "a.pt", pickled))
    assert isinstance(loaded, Placeholder)
    assert loaded.args == ("touch executed",)


def test_a_pickle_cannot_change_our_functions_or_ask_for_codecs(tmp_path):
    change = INERT + b"ctorch._utils\n_rebuild_tensor_v2\nN(S'__doc__'\nS'changed'\nd\x86b."
    with pytest.raises(ValueError, match="change a function"):
        load_foreign_checkpoint(raw_zip(tmp_path / "a.pt", change))
    codec = INERT + b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR."
    with pytest.raises(ValueError, match="codec"):
        load_foreign_checkpoint(raw_zip(tmp_path / "b.pt", codec))
    outside = INERT + b"S'/etc/passwd'\nQ."
    with pytest.raises(ValueError, match="outside object"):
        load_foreign_checkpoint(raw_zip(tmp_path / "c.pt", outside))


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQ"
        b"I0\n(I1000\nt(I1\ntI00\nNtR."
    )
    with pytest.raises(ValueError, match="out of bounds"):
        load_foreign_checkpoint(raw_zip(tmp_path / "a.pt", INERT + tensor, **{"data/0": bytes(8)}))


@FORMATS
@pytest.mark.parametrize("kept", [0, 3, 0.05, 0.5, 0.95])
def test_a_truncated_file_is_an_os_error(tmp_path, foreign_class, zipped, kept):
    content = {"weights": torch.randn(50, 50), "object": foreign_class("omegaconf.base", "Metadata")()}
    path = save(content, tmp_path / "a.pt", zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises((OSError, ValueError), match=r"a\.pt") as raised:
        load_foreign_checkpoint(path)
    assert kept == 3 or isinstance(raised.value, OSError)  # three bytes do not tell what they were


def test_other_kinds_of_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        load_foreign_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(IsADirectoryError, match="directory"):
        load_foreign_checkpoint(tmp_path)
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    with pytest.raises(ValueError, match="no PyTorch checkpoint"):
        load_foreign_checkpoint(text)
    pickled = tmp_path / "pickle.pt"
    pickled.write_bytes(pickle.dumps({"model": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"torch\.save"):
        load_foreign_checkpoint(pickled)
    other_zip = tmp_path / "zip.pt"
    with zipfile.ZipFile(other_zip, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"data\.pkl"):
        load_foreign_checkpoint(other_zip)
    program = raw_zip(tmp_path / "program.pt", pickle.dumps({}, protocol=2), **{"constants.pkl": b""})
    with pytest.raises(ValueError, match="TorchScript"):
        load_foreign_checkpoint(program)


# Bombs: small files that ask for much


def int_text(number: int) -> bytes:
    return b"I%d\n" % number


def tensor_pickle(num_elements: int, size: int, stride: int, storage: str = "FloatStorage") -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n%s\nS'0'\nS'cpu'\n" % storage.encode()
        + int_text(num_elements)
        + b"tQI0\n("
        + int_text(size)
        + b"t("
        + int_text(stride)
        + b"tI00\nNtR"
    )


def doubled(levels: int) -> bytes:
    """Pairs of pairs of pairs: `2 ** levels` parts in a few bytes."""
    return b"N" + b"".join(b"q\x00h\x00\x86" for _ in range(levels))


NESTED = "nests objects deeper|or repeats them"
# The pickle, the other records of the archive, and the reason for the refusal.
BOMBS = {
    "stride 0": (b"]" + tensor_pickle(2, 10**9, 0) + b"a.", {"data/0": bytes(8)}, "repeats a smaller storage"),
    "memo position": (b"\x80\x02Nr\xff\xff\xff\x7f.", {}, "memo position 2147483647"),
    "memo position of text": (b"Np999999999999\n.", {}, "memo position 999999999999"),
    "memo position below 0": (b"Np-1\n.", {}, "memo position -1"),
    "deep tuples": (b"}" + b")" + b"\x85" * 200_000 + b"Ns.", {}, NESTED),
    "many tuples": (b"}" + doubled(60) + b"Ns.", {}, NESTED),
    "opcodes": (b"N0" * 1_500_000 + b"N.", {}, "more than 2000000 opcodes"),
    "bytearray": (b"cbuiltins\nbytearray\n" + int_text(2**36) + b"\x85R.", {}, "bytearray of 68719476736 bytes"),
    "lying length": (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.", {}, "damaged: expected 1099511627776"),
    "many views": (
        b"(" + tensor_pickle(2**18, 2**18, 1) * 40 + b"l.",
        {"data/0": bytes(2**20)},
        "its tensors have 41943040 bytes together",
    ),
}


@pytest.mark.parametrize("inert", [b"", INERT], ids=["weights", "objects"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory_and_time(tmp_path, name, inert):
    pickled, records, reason = BOMBS[name]
    start = 2 if pickled[:1] == b"\x80" else 0
    path = raw_zip(tmp_path / "bomb.pt", pickled[:start] + inert + pickled[start:], **records)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises((ValueError, OSError), match=rf"bomb\.pt is .*({reason})"):
        load_foreign_checkpoint(path)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_compressed_archives_and_those_that_promise_more_are_refused(tmp_path):
    deflated = tmp_path / "deflated.pt"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"]" + tensor_pickle(2**26, 2**26, 1) + b"a.")
        archive.writestr("a/data/0", bytes(2**28))
    with pytest.raises(ForeignCheckpointError, match=r"deflated\.pt is refused: its archive is compressed"):
        load_foreign_checkpoint(deflated)
    overlapping = raw_zip(tmp_path / "overlapping.pt", b"].", **{"data/0": bytes(1000), "data/1": bytes(1000)})
    content = bytearray(overlapping.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 20
    content[place : place + 8] = (10**9).to_bytes(4, "little") * 2
    overlapping.write_bytes(content)
    with pytest.raises(ForeignCheckpointError, match="promises more bytes"):
        load_foreign_checkpoint(overlapping)


def test_sizes_in_the_old_format_are_those_of_the_file(tmp_path):
    path = tmp_path / "old.pt"
    numbers = [pickle.dumps(number, protocol=2) for number in (0x1950A86A20F9469CFC6C, 1001, 0)]
    for pickled in (tensor_pickle(10**10, 1, 1), tensor_pickle(-5, 1, 1), b"]" + tensor_pickle(1, 10**9, 0) + b"a"):
        path.write_bytes(b"".join(numbers) + b"\x80\x02" + pickled + b"." + pickle.dumps(["0"], protocol=2) + bytes(12))
        with pytest.raises((OSError, ValueError), match=r"old\.pt"):
            load_foreign_checkpoint(path)


def test_tied_weights_and_parts_of_others_are_no_bombs(tmp_path):
    weight = torch.randn(50, 50)
    saved = {"a": weight, "b": weight, "c": weight.T, "d": weight[:3], "e": weight.reshape(-1)}
    for zipped in (True, False):
        loaded = load_foreign_checkpoint(save(saved, tmp_path / "a.pt", zipped))
        assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_settings_that_repeat_themselves_end():
    value: Any = [1]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(ValueError, match="more than"):
        to_plain(value)
