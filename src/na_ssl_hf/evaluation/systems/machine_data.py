"""The clips of one machine of a DCASE folder: what to learn from, what to score, and the labels of the latter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.dcase.clips import DcaseClip, list_dcase_clips
from ...data.dcase.names import NO_ATTRIBUTE, dcase_stem
from ..ground_truth import read_labels


@dataclass(frozen=True)
class MachineData:
    """Training and test clips of one machine, or of one section of it where there are several."""

    name: str
    train: tuple[DcaseClip, ...]
    test: tuple[DcaseClip, ...]

    @property
    def has_attributes(self) -> bool:
        return any(clip.attributes not in (None, NO_ATTRIBUTE) for clip in self.train)

    @property
    def train_files(self) -> list[Path]:
        return [clip.path for clip in self.train]

    @property
    def test_files(self) -> list[Path]:
        return [clip.path for clip in self.test]

    @property
    def domains(self) -> list[str]:
        # The challenge of 2020 knew no domains.
        return [clip.name.domain or "source" for clip in self.train]


def list_machines(data: str | Path, machines: Sequence[str] | None = None) -> list[MachineData]:
    """The machines below a DCASE folder, or those asked for, by name.

    Raises FileNotFoundError and ValueError as `list_dcase_clips`, and ValueError for training or test clips alone.
    """
    clips = {split: list_dcase_clips(data, split, machines) for split in ("train", "test")}
    keys = {split: sorted({(clip.name.machine, clip.name.section) for clip in clips[split]}) for split in clips}
    if keys["train"] != keys["test"]:
        odd = sorted(set(keys["train"]) ^ set(keys["test"]))
        raise ValueError(f"data must have training and test clips of the same machines and sections, got {odd} alone")
    units = []
    for machine, section in keys["train"]:
        of_unit = {
            split: tuple(c for c in clips[split] if (c.name.machine, c.name.section) == (machine, section))
            for split in clips
        }
        several = sum(name == machine for name, _ in keys["train"]) > 1 or section > 0
        units.append(MachineData(f"{machine}_section_{section:02d}" if several else machine, **of_unit))
    return units


def read_test_labels(
    unit: MachineData, ground_truth: str | Path | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Anomaly and target-domain labels of the test clips, `(M,)` bool each, or `None` twice where one is not known.

    ground_truth: folder of the official `ground_truth_*` folders, for names that say neither. Raises OSError and
    ValueError where it is damaged or lacks a clip.
    """
    if all(clip.name.label and clip.name.domain for clip in unit.test):
        return (
            np.array([clip.name.label == "anomaly" for clip in unit.test]),
            np.array([clip.name.domain == "target" for clip in unit.test]),
        )
    if ground_truth is None:
        return None, None
    known = read_labels(ground_truth, unit.name)
    stems = [dcase_stem(file.name) for file in unit.test_files]
    if unknown := [stem for stem in stems if stem not in known]:
        raise ValueError(
            f"ground_truth must have the labels of all test clips of {unit.name}, got none for {len(unknown)}, "
            f"first {unknown[0]}"
        )
    is_anomaly, is_target = zip(*(known[stem] for stem in stems), strict=True)
    return np.array(is_anomaly), np.array(is_target)
