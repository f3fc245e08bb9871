"""Sound files that are whole, cut, overwritten or lied about, and recordings in memory of every kind."""

import io
import random
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import soundfile
import torch

from na_ssl_hf import AnomalyScorer, EatConfig, EatModel, TwoChannelFeatureExtractor
from na_ssl_hf.hub.recording import load_recording

from .trial import DAMAGED, GOOD, ODD, Materials, Trial

RATE = 16000
FRAMES = 24000
CONTAINERS = [
    *(("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8")),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    *(("W64", subtype) for subtype in ("PCM_16", "FLOAT")),
    *(("AIFF", subtype) for subtype in ("PCM_16", "PCM_24")),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    *(("FLAC", subtype) for subtype in ("PCM_16", "PCM_24")),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def _samples(seed: int, frames: int = FRAMES) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, frames))).astype(np.float32)


def _sound(container: str, subtype: str, big_endian: bool) -> bytes:
    stream = io.BytesIO()
    endian = "BIG" if big_endian and container in ("WAV",) else "FILE"
    soundfile.write(stream, _samples(0).T, RATE, subtype=subtype, endian=endian, format=container)
    return stream.getvalue()


def sound_file(draw: random.Random, materials: Materials) -> Trial:
    """A sound file, read as scoring reads it."""
    container, subtype = draw.choice(CONTAINERS)
    big_endian = draw.random() < 0.3
    key = f"{container}-{subtype}-{big_endian}"
    content = materials.once(key, lambda: _sound(container, subtype, big_endian))
    how = draw.choice(("whole", "cut", "cut", "header", "byte", "size", "behind", "noise", "stretch"))
    is_input = ODD
    if how == "whole":
        is_input = GOOD
    elif how == "cut":
        length = draw.randrange(len(content) - 1)
        content, how, is_input = content[:length], f"cut to {length} of {len(content)} bytes", DAMAGED
    elif how in ("header", "byte"):
        position = draw.randrange(min(len(content), 64 if how == "header" else len(content)))
        value = draw.randrange(256)
        content = content[:position] + bytes([value]) + content[position + 1 :]
        how = f"byte {position} is {value}"
    elif how == "size":
        position, value = draw.randrange(min(96, len(content) - 4)), draw.choice((0, 0xFFFFFFFF, 0x7FFFFFFF, 1, 2**31))
        content = content[:position] + struct.pack("<I", value) + content[position + 4 :]
        how = f"bytes {position}.. are {value:#x}"
    elif how == "behind":
        content += draw.randbytes(draw.choice((1, 3, 100)))
    elif how == "noise":
        content, is_input = content[: draw.randrange(16)] + draw.randbytes(draw.randrange(400)), DAMAGED
    else:
        start = draw.randrange(len(content))
        stop = start + draw.randrange(1, 2000)
        content = content[:start] + bytes(len(content[start:stop])) + content[stop:]
        how = f"bytes {start}..{stop} are 0"
    name = f"sound.{container.lower()}"
    as_path = draw.random() < 0.5
    if as_path:
        source: Any = materials.file(name, content)
    else:
        source = {"bytes": content, "path": name}
    must_be = FRAMES if is_input == GOOD and container != "MP3" else None

    def act() -> bool:
        recording = load_recording(source, RATE)
        return must_be is None or recording.samples.shape == (2, must_be)

    return Trial(f"{key} {how}", act, (name,), is_input)


def tiny_scorer() -> AnomalyScorer:
    """A fitted scorer of a random model, which scores a second of sound in some milliseconds."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    scorer = AnomalyScorer(
        model=EatModel(EatConfig(**sizes, max_time_patches=32)).eval(),
        feature_extractor=TwoChannelFeatureExtractor(frontend="eat"),
    )
    return scorer.fit([_samples(seed) for seed in range(20)], progress=None)


def normal_recordings() -> list[np.ndarray]:
    """Recordings like those of the tiny scorer."""
    return [_samples(seed) for seed in range(20, 30)]


def recording(draw: random.Random, materials: Materials) -> Trial:
    """A recording that is in memory, scored."""
    scorer = materials.once("scorer", tiny_scorer)
    array: Any = _samples(draw.randrange(100), draw.choice((0, 1, 100, 8000, FRAMES, FRAMES)))
    is_good, is_damaged, words = array.shape[1] >= 8000, False, [f"{array.shape[1]} samples"]
    if draw.random() < 0.4:
        value = draw.choice((np.nan, np.inf, -np.inf, 1e30, 32768.0))
        if array.size:
            array[draw.randrange(2), draw.randrange(array.shape[1])] = value
        is_good, is_damaged = False, is_damaged or (bool(array.size) and not np.isfinite(value))
        words.append(f"holds {value}")
    elif draw.random() < 0.6:
        shape = draw.choice(("flat", "one", "three", "turned", "four axes", "no axis"))
        array = {
            "flat": lambda: array[0],
            "one": lambda: array[:1],
            "three": lambda: np.concatenate([array, array[:1]]),
            "turned": lambda: array.T,
            "four axes": lambda: array[None, None],
            "no axis": lambda: np.float32(0.5) * np.ones(()),
        }[shape]()
        is_good, is_damaged, words = False, True, [*words, shape]
    elif draw.random() < 0.5:
        dtype = draw.choice(("float16", "float64", "int16", "int32", "uint8", "bool", "complex64", "object", "str"))
        array = (array * 100).astype(dtype)
        is_good = False
        is_damaged = dtype in ("bool", "complex64", "str")
        words.append(dtype)
    if draw.random() < 0.2 and array.dtype.kind in "fiu" and array.dtype != object:
        array, words = torch.from_numpy(np.array(array)), [*words, "tensor"]
    source: Any = array
    if draw.random() < 0.5:
        rates = (RATE, RATE, RATE, 8000, 44100, 0, -1, 1, None, "x", "16000", 2**35, float("nan"), 1e308, True, [RATE])
        rate: Any = draw.choice(rates)
        source = {draw.choice(("array", "raw")): array, "sampling_rate": rate}
        is_good = is_good and rate == RATE
        is_damaged = is_damaged or rate is None or rate == "x" or isinstance(rate, (bool, list))
        is_damaged = is_damaged or (isinstance(rate, (int, float)) and not 1000 <= rate <= 10**7)
        words.append(f"rate {rate!r}")
        if draw.random() < 0.2:
            source = {"audio": source}
    elif draw.random() < 0.2:
        source = draw.choice(
            (None, 3, 0.5, "", "missing.wav", b"", b"RIFF", {}, {"path": None}, {"bytes": None}, (), [[]])
        )
        is_good, is_damaged, words = False, True, [repr(source)]
    names = (
        "recording",
        "Recording",
        "array of shape",
        "sampling_rate",
        "missing.wav",
        "0 bytes",
        "4 bytes",
        "sound file",
    )

    def act() -> bool:
        result = scorer(source)
        scores = [one["score"] for one in ([result] if isinstance(result, dict) else list(result))]
        return bool(np.isfinite(scores).all()) if scores else True

    kind = GOOD if is_good else DAMAGED if is_damaged else ODD
    return Trial("recording " + ", ".join(words), act, names, kind)


def strange_values() -> Iterable[Any]:
    """Values that a caller may give by mistake, for any argument."""
    numbers = (-1, 0, 1, 2, 3, 2**70, -(2**70), 0.5, 1.0, 1e308, -1e-9, float("nan"), float("inf"), True, False)
    others = (
        None,
        "",
        "x",
        "mean",
        "5",
        b"x",
        [],
        [1],
        {},
        {"a": 1},
        (),
        object,
        np.float32(0.5),
        np.int64(3),
        np.array([1, 2]),
    )
    return [*numbers, *others, torch.tensor(0.5), torch.tensor([1.0, 2.0])]
