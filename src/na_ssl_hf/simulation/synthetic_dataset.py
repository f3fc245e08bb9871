"""Write a synthetic two-channel data set in DCASE layout: machines and backgrounds of this package in simulated rooms.

Channel 0 is the close microphone and channel 1 the far one. The module `recordings` does the same for recordings of
your own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.dcase.names import SUPPLEMENTAL, DcaseName, format_dcase_name
from ..data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from ..data.synthetic.machine_sounds import (
    DEFAULT_SEVERITY,
    HEARD_MACHINE_TYPES,
    MACHINE_TYPES,
    operating_point,
    synthesize_machine,
)
from ..hub.fbank import SAMPLING_RATE
from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .mixing import TwoChannelMixture, mix_two_channel, spatial_noises
from .rooms import draw_room
from .staged_folder import MANIFEST, common_gain, reduce_to_pcm16, staged_folder, write_float_wav, write_manifest

# The place of a word in these lists is part of the seeds of clips, so new ones come last.
SPLITS, DOMAINS, LABELS = (
    ("train", "test", SUPPLEMENTAL),
    ("source", "target"),
    ("normal", "anomaly", "machine", "noise"),
)
# Some machines come without attributes, as in the challenge.
_MACHINES_WITH_ATTRIBUTES = ("fan", "gearbox", "toycar")
_MIN_DURATION_S = 0.5
# Every place of a background lasts as long as five clips, which are crops of it.
_CLIPS_PER_PLACE = 5


def write_two_channel_dataset(
    root: str | Path,
    machines: Sequence[str] = HEARD_MACHINE_TYPES,
    num_train_source: int = 40,
    num_train_target: int = 4,
    num_test: int = 10,
    duration_s: float = 6.0,
    snr_db: float | tuple[float, float] = (0.0, 5.0),
    noise_coherence: float = 0.0,
    severity: Mapping[str, float] | None = None,
    num_rooms: int = 8,
    rooms: Sequence[ImpulseResponses] | None = None,
    seed: int = 0,
    clean_root: str | Path | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    num_places: int = 4,
) -> Path:
    """Write stereo 16-bit WAVs at 16 kHz, named as DCASE 2026 Task 2 names them, and return the path of manifest.csv.

    Every machine gets normal training clips of both domains and `num_test` test clips for each domain and label.
    Training and test have different rooms and noises: `num_rooms` rooms each are simulated, or `rooms` (a RoomPool or a
    sequence of impulse responses) is split in half. A clip does not depend on how many others are written. The whole
    set, `clean_root` included, shares one gain (a power of two, which the manifest names), so that nothing is clipped
    and levels stay comparable.

    Args:
        root: folder to write, which must be new or empty.
        machines: which of MACHINE_TYPES.
        num_train_source: normal training clips of the source domain, for each machine.
        num_train_target: normal training clips of the target domain, for each machine.
        num_test: test clips for each machine, domain and label.
        duration_s: length of every clip in s, at least 0.5.
        snr_db: SNR at the close microphone in dB, one value or the range of a uniform draw.
        noise_coherence: 0 for independent noises from the four corners, 1 for the same noise from all.
        severity: severity of the faults of each machine, varied by about 25 % from clip to clip; DEFAULT_SEVERITY
            stands for the machines that are not named.
        num_rooms: rooms of each split, where `rooms` is not given.
        rooms: impulse responses of at least two rooms.
        seed: of rooms, noises and every clip.
        clean_root: a second folder for the same clips without noise and late reverberation, in both channels.
        overwrite: whether data sets that this function wrote are replaced.
        show_progress: whether progress bars are shown.
        num_places: backgrounds of each type that a split hears.

    Raises:
        ValueError: a setting is out of its range.
        FileExistsError: a folder is not empty.
    """
    counts = {
        "num_train_source": num_train_source,
        "num_train_target": num_train_target,
        "num_test": num_test,
        "num_rooms": num_rooms,
        "num_places": num_places,
    }
    check_dataset(machines, counts, duration_s, seed, may_be_zero=("num_train_target",))
    if rooms is not None and len(rooms) < 2:
        raise ValueError(f"rooms must hold at least 2 rooms, for training and test, got {len(rooms)}")
    root, clean_root = Path(root), Path(clean_root) if clean_root is not None else None
    names = list(_plan(machines, num_train_source, num_train_target, num_test, seed))
    with ExitStack() as stack:
        folder = stack.enter_context(staged_folder(root, overwrite))
        clean_folder = stack.enter_context(staged_folder(clean_root, overwrite)) if clean_root else None
        clips = _Clips(
            rooms=_split_rooms(rooms, num_rooms, seed, show_progress),
            places={
                split: synthesize_places(split, seed, duration_s, num_places, show_progress) for split in SPLITS[:2]
            },
            severity={**DEFAULT_SEVERITY, **(severity or {})},
            duration_s=duration_s,
            snr_db=snr_db if isinstance(snr_db, tuple) else (snr_db, snr_db),
            noise_coherence=noise_coherence,
            seed=seed,
        )
        _write_clips(names, clips, folder, clean_folder, show_progress)
    return root / MANIFEST


def _write_clips(
    names: Sequence[DcaseName], clips: _Clips, folder: Path, clean_folder: Path | None, show_progress: bool
) -> None:
    """Write every clip, its clean version where there is a folder for it, and the manifests."""
    peak, rows = 0.0, []
    for name in tqdm(names, desc="two-channel clips", unit="clip", disable=not show_progress):
        mixture, row = clips.clip(name)
        stereo = torch.stack([mixture.close[0], mixture.far[0]]).numpy()  # (2, N)
        peak = max(peak, write_float_wav(folder / format_dcase_name(name), stereo, SAMPLING_RATE))
        if clean_folder:
            clean = mixture.clean.expand(2, -1).numpy()  # (2, N)
            peak = max(peak, write_float_wav(clean_folder / format_dcase_name(name), clean, SAMPLING_RATE))
        rows.append(row)
    gain = common_gain(peak)
    for written in (folder, clean_folder):
        if written:
            parts = sorted(written.glob("*/*"))
            for part in tqdm(parts, desc="16 bit", unit="folder", delay=5, disable=not show_progress):
                reduce_to_pcm16(part, gain)
            write_manifest(written, [{**row, "gain": gain} for row in rows])


@dataclass(frozen=True)
class _Clips:
    """All that a clip of the data set depends on besides its name."""

    rooms: dict[str, list[ImpulseResponses]]
    places: dict[str, list[np.ndarray]]
    severity: Mapping[str, float]
    duration_s: float
    snr_db: tuple[float, float]
    noise_coherence: float
    seed: int

    def clip(self, name: DcaseName) -> tuple[TwoChannelMixture, dict[str, object]]:
        """Return the mixture of one clip, (1, N) each, and its row of the manifest."""
        own_seed = clip_seed(name, self.seed)
        rng = np.random.default_rng(own_seed)
        fault = 0.0
        if name.label == "anomaly":
            fault = self.severity[name.machine] * float(np.exp(0.25 * rng.standard_normal()))
        target = synthesize_machine(name.machine, own_seed, self.duration_s, str(name.domain), fault, SAMPLING_RATE)
        rooms = self.rooms[name.split]
        room = int(rng.integers(len(rooms)))
        snr = float(rng.uniform(*self.snr_db))
        noises = _crops(self.places[name.split], len(target), rng)
        mixture = mix_in_room(target, noises, rooms[room], [snr], self.noise_coherence)
        row = {"file": format_dcase_name(name), "room": room, "snr_db": f"{snr:.2f}", "severity": f"{fault:.3f}"}
        return mixture, row


def check_dataset(
    machines: Sequence[str], counts: Mapping[str, int], duration_s: float, seed: int, may_be_zero: Sequence[str]
) -> None:
    """Check the settings of a data set; `counts` are named, at least 1, or at least 0 where their name `may_be_zero`.

    Raises:
        ValueError: a setting is out of its range.
    """
    unknown = sorted(set(machines) - set(MACHINE_TYPES))
    if unknown or not machines:
        raise ValueError(f"machines must be among {MACHINE_TYPES}, got {unknown or list(machines)}")
    for name, value in counts.items():
        if name in may_be_zero:
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        elif value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not _MIN_DURATION_S <= duration_s < np.inf:
        raise ValueError(f"duration_s must be at least {_MIN_DURATION_S} s, got {duration_s}")


def mix_in_room(
    target: np.ndarray, noises: np.ndarray, room: ImpulseResponses, snr_db: Sequence[float], noise_coherence: float
) -> TwoChannelMixture:
    """Mix a target (N,) and four noises (4, N) in one room at every SNR (dB); the signals have (len(snr_db), N)."""
    count = len(snr_db)
    corners = spatial_noises(torch.from_numpy(np.ascontiguousarray(noises))[None], noise_coherence)
    return mix_two_channel(
        torch.from_numpy(target).expand(count, -1),
        corners.expand(count, -1, -1),
        room.target.expand(count, -1, -1),
        room.noise.expand(count, -1, -1, -1),
        torch.tensor(snr_db, dtype=torch.float32),
        torch.full((count,), int(room.direct_delay)),
        sampling_rate=SAMPLING_RATE,
    )


def simulate_rooms(num_rooms: int, seed: Sequence[int], show_progress: bool = True) -> list[ImpulseResponses]:
    """Simulate `num_rooms` rooms of the training distribution, which takes about 0.1 s each."""
    indices = tqdm(range(num_rooms), desc="rooms", unit="room", disable=not show_progress)
    return [simulate_impulse_responses(draw_room([*seed, index]), SAMPLING_RATE) for index in indices]


def _plan(
    machines: Sequence[str], num_train_source: int, num_train_target: int, num_test: int, seed: int
) -> Iterator[DcaseName]:
    groups = [("source", "train", "normal", num_train_source), ("target", "train", "normal", num_train_target)]
    groups += [(domain, "test", label, num_test) for domain, label in product(DOMAINS, LABELS[:2])]
    for machine, (domain, split, label, count) in product(machines, groups):
        for index in range(count):
            name = DcaseName(machine, domain, split, label, index, None)
            if machine in _MACHINES_WITH_ATTRIBUTES:
                setting = operating_point(machine, clip_seed(name, seed), domain).setting
                name = name._replace(attributes=f"spd_{setting}")
            yield name


def clip_seed(name: DcaseName, seed: int) -> list[int]:
    """Return the seed of one clip of a data set, whatever else is written beside it.

    Args:
        name: the clip's name, of one of MACHINE_TYPES, SPLITS, DOMAINS and LABELS; attributes have no part in it.
        seed: of the data set.
    """
    return [
        seed,
        SPLITS.index(name.split),
        DOMAINS.index(str(name.domain)),
        LABELS.index(str(name.label)),
        name.index,
        MACHINE_TYPES.index(name.machine),
    ]


def _split_rooms(
    rooms: Sequence[ImpulseResponses] | None, num_rooms: int, seed: int, show_progress: bool
) -> dict[str, list[ImpulseResponses]]:
    if rooms is None:
        rooms = simulate_rooms(2 * num_rooms, [seed, 0], show_progress)
    half = len(rooms) // 2
    return {
        "train": [rooms[index] for index in range(half)],
        "test": [rooms[index] for index in range(half, len(rooms))],
    }


def synthesize_places(
    split: str, seed: int, duration_s: float, num_places: int, show_progress: bool
) -> list[np.ndarray]:
    """Synthesise `num_places` backgrounds (N,) float32 of every type, type after type; training and test share none."""
    length_s = _CLIPS_PER_PLACE * duration_s
    places = list(product(BACKGROUND_TYPES, range(num_places)))
    return [
        synthesize_background(kind, [seed, SPLITS.index(split), index], length_s, SAMPLING_RATE)
        for kind, index in tqdm(places, desc="backgrounds", unit="place", delay=5, disable=not show_progress)
    ]


def _crops(places: list[np.ndarray], num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw crops (4, N) of four different places."""
    chosen = rng.choice(len(places), size=4, replace=False)
    starts = rng.integers(len(places[0]) - num_samples + 1, size=4)
    return np.stack([places[place][start : start + num_samples] for place, start in zip(chosen, starts, strict=True)])
