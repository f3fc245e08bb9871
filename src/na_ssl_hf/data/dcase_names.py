"""File names of DCASE Task 2: `<machine>/<train|test>/section_00_<domain>_<split>_<label>_<nnnn>_<attributes>.wav`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(
    r"section_00(?:_(?P<domain>source|target)_(?P<split>train|test)_(?P<label>normal|anomaly))?"
    r"_(?P<index>\d{4})(?:_(?P<attributes>.+))?"
)


class DcaseName(NamedTuple):
    """What a DCASE path says. Evaluation clips (`section_00_0000.wav`) have no domain, label or attributes."""

    machine: str
    domain: str | None
    split: str
    label: str | None
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no use here
    attributes: str | None


def parse_dcase_name(path: str | Path) -> DcaseName:
    """The parts of a path `.../<machine>/<split>/<name>.wav`; the machine is the folder above the split folder.

    Raises ValueError, naming the path, when the name or its folder does not follow the rule.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.stem)
    if not match:
        raise ValueError(f"path must be named section_00_<domain>_<split>_<label>_<nnnn>_<attributes>.wav, got {path}")
    split = match["split"] or "test"
    if path.parent.name != split or not path.parent.parent.name:
        raise ValueError(f"path must lie in a folder <machine>/{split}/, got {path}")
    return DcaseName(
        machine=path.parent.parent.name,
        domain=match["domain"],
        split=split,
        label=match["label"],
        index=int(match["index"]),
        attributes=match["attributes"],
    )


def format_dcase_name(name: DcaseName) -> str:
    """Relative path `<machine>/<split>/<file>.wav` of a labelled clip; the inverse of `parse_dcase_name`."""
    attributes = name.attributes or "noAttribute"
    file = f"section_00_{name.domain}_{name.split}_{name.label}_{name.index:04d}_{attributes}.wav"
    return f"{name.machine}/{name.split}/{file}"
