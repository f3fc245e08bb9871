"""The folder that `na-ssl export` writes: `scorer.json`, `memory.npz` and the graph, read and checked."""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .drift import Installation
from .memory import Memory
from .recordings import RecordingRules, Windows

FORMAT_VERSION = 1
SETTINGS_FILE, MEMORY_FILE, FAR_MICROPHONE_FILE = "scorer.json", "memory.npz", "far_microphone.npz"


@dataclass(frozen=True, eq=False)
class Exported:
    """What an exported folder holds, besides the graph itself.

    Attributes:
        graph_path: the file of the graph.
        graph_format: "onnx" or "openvino".
        checksums: the CRC-32 of each file of the graph, by name; empty in exports of before.
        num_samples: the only length that the graph takes, in samples; `None` for any.
        rules: what recordings must be.
        memory: the normal recordings.
        threshold: a recording is anomalous if its score is greater.
        self_scores: `(R,)` float64, ascending: the leave-one-out scores of the normal recordings.
        windows: how recordings are cut; `None` for whole ones.
        hears_far: whether the far channel has an influence on scores.
        is_normalised: whether the graph brings recordings to one level.
        levels: the levels of the normal recordings, see `OddityReport`.
        usual_swapped: the share of the normal recordings that looked as if their channels were swapped.
        row_centres: the centres of all bands in Hz where recordings of a lower rate lack some; else `None`.
        recording_rate: the sampling rate of the normal recordings where it decides which bands count.
        installation: that to which the far microphone was calibrated; `None` where it was not, or is not cancelled.
    """

    graph_path: Path
    graph_format: str
    checksums: Mapping[str, int]
    num_samples: int | None
    rules: RecordingRules
    memory: Memory
    threshold: float
    self_scores: np.ndarray
    windows: Windows | None
    hears_far: bool
    is_normalised: bool
    levels: Mapping[str, Any] | None
    usual_swapped: float
    row_centres: tuple[float, ...] | None
    recording_rate: int | None
    installation: Installation | None

    def check_graph(self) -> None:
        """Raise an OSError where a file of the graph is not what was exported: a wrong weight is no error elsewhere."""
        for name, expected in self.checksums.items():
            path, found = self.graph_path.with_name(name), 0
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    found = zlib.crc32(block, found)
            if found != expected:
                raise OSError(f"{path} is damaged: its checksum must be {expected} as exported, got {found}.")


def read_exported(folder: str | os.PathLike[str]) -> Exported:
    """Read and check an exported folder.

    Raises:
        OSError: a file is missing or damaged, or the folder is of another version.
    """
    path = Path(folder)
    if not (path / SETTINGS_FILE).is_file():
        raise FileNotFoundError(f"{folder} must be a folder that `na-ssl export` wrote, but it has no {SETTINGS_FILE}.")
    try:
        settings = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
        version = settings["format_version"] if isinstance(settings, dict) else settings
    except (ValueError, KeyError, RecursionError) as error:
        raise OSError(f"{path / SETTINGS_FILE} is damaged ({type(error).__name__}: {error}).") from error
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise OSError(
            f"{folder} must be an exported folder of version {FORMAT_VERSION}, got {version!r}: export the scorer anew "
            "with the na-ssl-hf that belongs to this na-ssl-edge."
        )
    try:
        return _exported(path, settings)
    except (LookupError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(f"{folder} is a damaged exported folder ({type(error).__name__}: {error}).") from error


def _exported(path: Path, settings: dict[str, Any]) -> Exported:
    graph, recordings, calibration = settings["graph"], settings["recordings"], settings["calibration"]
    rules = RecordingRules(
        _whole(recordings, "sampling_rate"),
        _whole(recordings, "min_samples"),
        None if recordings["max_samples"] is None else _whole(recordings, "max_samples"),
        str(recordings["frontend"]),
        recordings["resample"] is True,
    )
    with np.load(path / MEMORY_FILE, allow_pickle=False) as arrays:
        memory = Memory(settings["memory"], {name: arrays[name] for name in arrays.files})
    installation = None
    if (calibrated := settings.get("far_microphone")) is not None:  # exports of before do not have it
        with np.load(path / FAR_MICROPHONE_FILE, allow_pickle=False) as arrays:
            installation = Installation(calibrated, arrays)
    self_scores = np.sort(np.asarray(calibration["self_scores"], dtype=np.float64))
    threshold = float(calibration["threshold"])
    if self_scores.ndim != 1 or not len(self_scores) or not np.isfinite(self_scores).all():
        raise ValueError(f"`self_scores` must hold at least one finite number, got {calibration['self_scores']!r:.80}.")
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be a finite number, got {threshold!r}.")
    centres = recordings["row_centres"]
    return Exported(
        graph_path=path / Path(graph["file"]).name,  # a name leads nowhere else
        graph_format=graph["format"],
        checksums=dict(graph.get("crc32") or {}),
        num_samples=None if graph["num_samples"] is None else _whole(graph, "num_samples"),
        rules=rules,
        memory=memory,
        threshold=threshold,
        self_scores=self_scores,
        windows=None if calibration["windows"] is None else Windows(**calibration["windows"]),
        hears_far=recordings["hears_far"] is True,
        is_normalised=calibration["level"] == "normalised",
        levels=calibration["levels"],
        usual_swapped=float((calibration.get("microphones") or {}).get("far_leads", 0.0)),
        row_centres=None if centres is None else tuple(map(float, centres)),
        recording_rate=calibration["recording_rate"],
        installation=installation,
    )


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
    return value
