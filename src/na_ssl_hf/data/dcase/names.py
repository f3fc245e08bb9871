"""Read and write the file names of DCASE Task 2.

They are `<machine>/<train|test>/section_00_<domain>_<split>_<label>_<nnnn>_<attributes>.wav`, and in `supplemental`,
where the machine or the noise sounds alone, `section_00_<machine|noise>_<domain>_<nnnn>_<attributes>.wav`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

NO_ATTRIBUTE = "noAttribute"

# The challenge of 2021 kept the domains of its test clips apart.
SUPPLEMENTAL = "supplemental"
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "source_test": "test",
    "target_test": "test",
    SUPPLEMENTAL: SUPPLEMENTAL,
}

# The names of evaluation test clips say less, and in every year something else: section_00_0000 and
# section_03_source_test_0000 are two of them.
_NAME = re.compile(
    r"section_(?P<section>\d{2})(?:_(?P<domain>source|target))?(?:_(?P<split>train|test))?"
    r"(?:_(?P<label>normal|anomaly))?_(?P<index>\d{4})(?:_(?P<attributes>.+))?"
)
_NAME_SUPPLEMENTAL = re.compile(
    r"section_(?P<section>\d{2})_(?P<label>machine|clean|noise)(?:_(?P<domain>source|target))?_(?P<index>\d{4})"
    r"(?:_(?P<attributes>.+))?"
)
_NAME_2020 = re.compile(r"(?:(?P<label>normal|anomaly)_)?id_(?P<section>\d{2})_(?P<index>\d{8})")


class DcaseName(NamedTuple):
    """What a DCASE path says; evaluation clips (`section_00_0000.wav`) have no domain, label or attributes.

    The label is "normal" or "anomaly", or of supplemental clips what sounds alone: "machine" or "noise".
    """

    machine: str
    domain: str | None
    split: str
    label: str | None
    index: int  # type: ignore[assignment]  # it hides tuple.index, which has no use here
    attributes: str | None
    section: int = 0


def parse_dcase_name(path: str | Path) -> DcaseName:
    """Return the parts of a path `.../<machine>/<split>/<name>.wav`; the machine is the folder above the split folder.

    The names of all challenges since 2020 are understood; in 2020 they had no domains, and the machine's id counts as
    the section.

    Raises:
        ValueError: the name or its folder does not follow the rule; the message names the path.
    """
    path = Path(path)
    if path.parent.name == SUPPLEMENTAL:
        return _parse_supplemental_name(path)
    match = _NAME.fullmatch(path.stem) or _NAME_2020.fullmatch(path.stem)
    if not match:
        raise ValueError(f"path must be named section_00_<domain>_<split>_<label>_<nnnn>_<attributes>.wav, got {path}")
    parts = {"domain": None, "split": None, "attributes": None, **match.groupdict()}
    split = parts["split"] or ("train" if path.parent.name == "train" else "test")
    if SPLIT_FOLDERS.get(path.parent.name) != split or not path.parent.parent.name:
        raise ValueError(f"path must lie in a folder <machine>/{split}/, got {path}")
    labelled = parts["label"] and (parts["domain"] or match.re is _NAME_2020)
    if split == "train" and not labelled:
        raise ValueError(f"path must name domain and label of a training clip, got {path}")
    return DcaseName(
        machine=path.parent.parent.name,
        domain=parts["domain"],
        split=split,
        label=parts["label"],
        index=int(match["index"]),
        attributes=parts["attributes"],
        section=int(match["section"]),
    )


def _parse_supplemental_name(path: Path) -> DcaseName:
    match = _NAME_SUPPLEMENTAL.fullmatch(path.stem)
    if not match or not path.parent.parent.name:
        raise ValueError(
            f"path must be named <machine>/{SUPPLEMENTAL}/section_00_<machine|noise>_<domain>_<nnnn>_<attributes>.wav, "
            f"got {path}"
        )
    return DcaseName(
        machine=path.parent.parent.name,
        domain=match["domain"],
        split=SUPPLEMENTAL,
        label="noise" if match["label"] == "noise" else "machine",
        index=int(match["index"]),
        attributes=match["attributes"],
        section=int(match["section"]),
    )


def format_dcase_name(name: DcaseName) -> str:
    """Return the relative path `<machine>/<split>/<file>.wav` of a labelled clip, as `parse_dcase_name` reads it."""
    attributes = name.attributes or NO_ATTRIBUTE
    if name.split == SUPPLEMENTAL:
        file = f"section_{name.section:02d}_{name.label}_{name.domain}_{name.index:04d}_{attributes}.wav"
        return f"{name.machine}/{name.split}/{file}"
    file = f"section_{name.section:02d}_{name.domain}_{name.split}_{name.label}_{name.index:04d}_{attributes}.wav"
    return f"{name.machine}/{name.split}/{file}"


def dcase_stem(name: str) -> str:
    """Return what file names are compared by, as published tables mix folders, slashes and names without `.wav`."""
    base = name.strip().replace("\\", "/").rsplit("/", 1)[-1]
    # Path.stem would cut a value like `flow_1.5`, which has a dot of its own.
    return base[:-4] if base.lower().endswith(".wav") else base
