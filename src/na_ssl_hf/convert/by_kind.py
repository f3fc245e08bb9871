"""One function converts every kind of checkpoint, for `na-ssl convert` and for `na_ssl_hf.convert.convert`."""

from pathlib import Path
from typing import Any

from na_ssl_hf.convert.beats import convert_beats
from na_ssl_hf.convert.dasheng import convert_dasheng
from na_ssl_hf.convert.eat import convert_eat
from na_ssl_hf.convert.efficientat import convert_efficientat
from na_ssl_hf.convert.noise_aware import convert_na_beats, convert_na_dasheng, convert_na_eat

_SINGLE_CHANNEL = {
    "beats": convert_beats,
    "dasheng": convert_dasheng,
    "eat": convert_eat,
    "efficientat": convert_efficientat,
}
_NOISE_AWARE = {"na-beats": convert_na_beats, "na-dasheng": convert_na_dasheng, "na-eat": convert_na_eat}


def convert(
    kind: str, source: str | Path, destination: str | Path, base: str | Path | None = None, **hints: Any
) -> Path:
    """Convert a public checkpoint into a directory for `from_pretrained`.

    Args:
        kind: "beats", "dasheng", "eat" (also for SSLAM), "efficientat", "na-beats", "na-dasheng" or "na-eat".
        source: the file or directory of the original project.
        destination: a directory that does not exist yet, or is empty.
        base: for the noise-aware kinds, the single-channel checkpoint below the noise-aware layers.
        hints: for "efficientat", the options `hop`, `mels` and `strides` of [`convert_efficientat`].

    Returns:
        `destination`.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the kind is unknown, a base or a hint is given where none belongs, or the checkpoint does not fit.
    """
    hints = {name: value for name, value in hints.items() if value is not None}
    if kind not in _SINGLE_CHANNEL | _NOISE_AWARE:
        raise ValueError(f"`kind` must be one of {sorted(_SINGLE_CHANNEL | _NOISE_AWARE)}, got {kind!r}.")
    if hints and kind != "efficientat":
        raise ValueError(f"`hop`, `mels` and `strides` are for 'efficientat' only, got {hints} with kind {kind!r}.")
    if kind in _NOISE_AWARE:
        return _NOISE_AWARE[kind](source, destination, base=base)
    if base is not None:
        raise ValueError(f"`base` is for {sorted(_NOISE_AWARE)} only, got {base!s} with kind {kind!r}.")
    return _SINGLE_CHANNEL[kind](source, destination, **hints)
