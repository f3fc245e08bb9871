"""The data of one machine of a DCASE folder: clips to learn from, clips to score, and the labels of the latter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.dcase.clips import DcaseClip, find_split_folders, list_dcase_clips
from ...data.dcase.names import NO_ATTRIBUTE, SUPPLEMENTAL
from ..ground_truth import LABEL_FOLDER, clip_key, read_section, section_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MachineData:
    """The training and test clips of one machine, or of one section of it where there are several.

    Attributes:
        name: name of the machine, with its section where there are several.
        train: its normal training clips.
        test: the clips to score.
        machine_off: its clips of the noise alone, where they were asked for and the data set has supplemental ones.
    """

    name: str
    train: tuple[DcaseClip, ...]
    test: tuple[DcaseClip, ...]
    machine_off: tuple[DcaseClip, ...] = ()

    @property
    def section_name(self) -> str:
        """Return `<machine>_section_<nn>`, as submissions and ground truths name their tables."""
        return f"{self.train[0].name.machine}_section_{self.train[0].name.section:02d}"

    @property
    def has_attributes(self) -> bool:
        """Tell whether any training clip has attribute labels."""
        return any(clip.attributes not in (None, NO_ATTRIBUTE) for clip in self.train)

    @property
    def train_files(self) -> list[Path]:
        """Return the paths of the training clips."""
        return [clip.path for clip in self.train]

    @property
    def test_files(self) -> list[Path]:
        """Return the paths of the test clips."""
        return [clip.path for clip in self.test]

    @property
    def domains(self) -> list[str]:
        """Return "source" or "target" for each training clip."""
        # The challenge of 2020 knew no domains.
        return [clip.name.domain or "source" for clip in self.train]


def list_machines(
    data: str | Path, machines: Sequence[str] | None = None, with_machine_off: bool = False
) -> list[MachineData]:
    """List the machines below a DCASE folder, or those asked for, by name.

    Args:
        data: the folder.
        machines: names of the machines; `None` for all.
        with_machine_off: whether clips of the noise alone are listed as well; machines may lack them.

    Raises:
        FileNotFoundError: as `list_dcase_clips`.
        ValueError: as `list_dcase_clips`, or a machine or section has training clips or test clips alone.
    """
    clips = {split: list_dcase_clips(data, split, machines) for split in ("train", "test")}
    noises = _noises(data, machines) if with_machine_off else []
    keys = {split: sorted({(clip.name.machine, clip.name.section) for clip in clips[split]}) for split in clips}
    if keys["train"] != keys["test"]:
        odd = sorted(set(keys["train"]) ^ set(keys["test"]))
        raise ValueError(f"data must have training and test clips of the same machines and sections, got {odd} alone")
    found = []
    for machine, section in keys["train"]:
        of_section = {
            split: tuple(c for c in clips[split] if (c.name.machine, c.name.section) == (machine, section))
            for split in clips
        }
        has_several = sum(name == machine for name, _ in keys["train"]) > 1 or section > 0
        alone = tuple(c for c in noises if (c.name.machine, c.name.section) == (machine, section))
        name = f"{machine}_section_{section:02d}" if has_several else machine
        found.append(MachineData(name, machine_off=alone, **of_section))
    return found


def _noises(data: str | Path, machines: Sequence[str] | None) -> list[DcaseClip]:
    """List the clips of the noise alone; a machine may lack them."""
    having = {folder.machine for folder in find_split_folders(data) if folder.split == SUPPLEMENTAL}
    wanted = sorted(having if machines is None else having & set(machines))
    clips = list_dcase_clips(data, SUPPLEMENTAL, wanted) if wanted else []
    return [clip for clip in clips if clip.name.label == "noise"]


def read_labels_of_machines(
    machines: Sequence[MachineData], ground_truth: str | Path | None = None
) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    """Read the labels of the test clips of several machines.

    Returns:
        name of a machine -> as `read_test_labels`.

    Raises:
        OSError: as `read_test_labels`.
        ValueError: as `read_test_labels`, or the ground truth has a section of one of the machines that is not among
            `machines`, so that an official score would leave it out.
    """
    labels = {machine.name: read_test_labels(machine, ground_truth) for machine in machines}
    if ground_truth is not None and not all(_is_labelled(machine) for machine in machines):
        names = {machine.train[0].name.machine for machine in machines}
        asked = {machine.section_name for machine in machines}
        truth = section_files(Path(ground_truth) / LABEL_FOLDER, "ground_truth_", "ground_truth")
        if absent := [name for name in truth if name not in asked and name.rpartition("_section_")[0] in names]:
            raise ValueError(f"data must have test clips of all sections of the ground truth, got none of {absent}")
    return labels


def read_test_labels(
    machine: MachineData, ground_truth: str | Path | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read the labels of the test clips of one machine.

    Args:
        machine: the machine, with M test clips.
        ground_truth: folder of the official `ground_truth_*` folders, for file names that do not say the labels.

    Returns:
        anomaly and target-domain labels, `(M,)` bool each, or `None` twice where they are not known.

    Raises:
        OSError: a file of the ground truth is missing.
        ValueError: the ground truth is damaged or lacks a clip.
    """
    if _is_labelled(machine):
        return (
            np.array([clip.name.label == "anomaly" for clip in machine.test]),
            np.array([clip.name.domain == "target" for clip in machine.test]),
        )
    if ground_truth is None:
        return None, None
    truth = read_section(ground_truth, machine.section_name)
    names = [clip_key(file.name) for file in machine.test_files]
    clips = [truth.anonymous.get(name, name) for name in names]
    if unknown := [clip for clip in clips if clip not in truth.is_anomaly]:
        raise ValueError(
            f"ground_truth must have the labels of all test clips of {machine.name}, got none for {len(unknown)}, "
            f"first {unknown[0]}"
        )
    if twice := [clip for clip, number in Counter(clips).items() if number > 1]:
        raise ValueError(f"data must have every test clip once, got {twice[0]} of {machine.name} under two names")
    if absent := sorted(set(truth.is_anomaly) - set(clips)):
        logger.warning(
            f"The data lack {len(absent)} of the {len(truth.is_anomaly)} test clips that the ground truth has of "
            f"{machine.name}, first {absent[0]}: the scores are those of the others."
        )
    return np.array([truth.is_anomaly[clip] for clip in clips]), np.array([truth.is_target[clip] for clip in clips])


def _is_labelled(machine: MachineData) -> bool:
    return all(clip.name.label and clip.name.domain for clip in machine.test)
