"""One function converts every kind of checkpoint, for `na-ssl convert` and for `na_ssl_hf.convert.convert`."""

from pathlib import Path

from na_ssl_hf.convert.beats import convert_beats
from na_ssl_hf.convert.eat import convert_eat
from na_ssl_hf.convert.noise_aware import convert_na_beats, convert_na_eat


def convert(kind: str, source: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Convert a public checkpoint into a directory for `from_pretrained`.

    Args:
        kind: "beats", "eat", "na-beats" or "na-eat".
        source: the file or directory of the original project.
        destination: a directory that does not exist yet, or is empty.
        base: for "na-beats" and "na-eat", the single-channel checkpoint below the noise-aware layers.

    Returns:
        `destination`.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the kind is unknown, a base is given where none belongs, or the checkpoint does not fit.
    """
    if kind in ("na-beats", "na-eat"):
        return (convert_na_beats if kind == "na-beats" else convert_na_eat)(source, destination, base=base)
    if kind not in ("beats", "eat"):
        raise ValueError(f"`kind` must be 'beats', 'eat', 'na-beats' or 'na-eat', got {kind!r}.")
    if base is not None:
        raise ValueError(f"`base` is for 'na-beats' and 'na-eat' only, got {base!s} with kind {kind!r}.")
    return (convert_beats if kind == "beats" else convert_eat)(source, destination)
