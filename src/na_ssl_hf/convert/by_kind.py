"""One function converts every kind of checkpoint, for `na-ssl convert` and for `na_ssl_hf.convert.convert`."""

from pathlib import Path
from typing import Any

from na_ssl_hf.convert.beats import convert_beats
from na_ssl_hf.convert.eat import convert_eat
from na_ssl_hf.convert.efficientat import convert_efficientat
from na_ssl_hf.convert.noise_aware import convert_na_beats, convert_na_eat


def convert(
    kind: str, source: str | Path, destination: str | Path, base: str | Path | None = None, **hints: Any
) -> Path:
    """Convert a public checkpoint into a directory for `from_pretrained`.

    Args:
        kind: "beats", "eat", "efficientat", "na-beats" or "na-eat".
        source: the file or directory of the original project.
        destination: a directory that does not exist yet, or is empty.
        base: for "na-beats" and "na-eat", the single-channel checkpoint below the noise-aware layers.
        hints: for "efficientat", the options `hop`, `mels` and `strides` of [`convert_efficientat`].

    Returns:
        `destination`.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the kind is unknown, a base or a hint is given where none belongs, or the checkpoint does not fit.
    """
    hints = {name: value for name, value in hints.items() if value is not None}
    if kind == "efficientat":
        if base is not None:
            raise ValueError(f"`base` is for 'na-beats' and 'na-eat' only, got {base!s} with kind {kind!r}.")
        return convert_efficientat(source, destination, **hints)
    if hints:
        raise ValueError(f"`hop`, `mels` and `strides` are for 'efficientat' only, got {hints} with kind {kind!r}.")
    if kind in ("na-beats", "na-eat"):
        return (convert_na_beats if kind == "na-beats" else convert_na_eat)(source, destination, base=base)
    if kind not in ("beats", "eat"):
        raise ValueError(f"`kind` must be 'beats', 'eat', 'efficientat', 'na-beats' or 'na-eat', got {kind!r}.")
    if base is not None:
        raise ValueError(f"`base` is for 'na-beats' and 'na-eat' only, got {base!s} with kind {kind!r}.")
    return (convert_beats if kind == "beats" else convert_eat)(source, destination)
