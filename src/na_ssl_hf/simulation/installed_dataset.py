"""Write a data set of installed machines: every machine has one room and one placement, in training and test alike.

Letters in shapes: N samples, L samples of a noise that clips are cut from. Channel 0 is the close microphone, channel 1
the far one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data.dcase.names import SUPPLEMENTAL, DcaseName, format_dcase_name
from ..data.synthetic.background_sounds import BACKGROUND_TYPES
from ..data.synthetic.machine_clip import OperatingPoint
from ..data.synthetic.machine_sounds import DEFAULT_SEVERITY, MACHINE_TYPES, operating_point, synthesize_machine
from ..hub.fbank import SAMPLING_RATE
from .benchmark_presets import BenchmarkPreset
from .impulse_responses import ImpulseResponses
from .installation import Installation, Site, draw_installation, drifted_responses, through
from .mixing import NOISE_POWER_FLOOR
from .staged_folder import common_gain, reduce_to_pcm16, write_float_wav, write_manifest
from .synthetic_dataset import DOMAINS, SPLITS, check_dataset, clip_seed, synthesize_places

INSTALLATIONS = "installations.json"
# Some machines come without attributes, as in the challenge.
_MACHINES_WITH_ATTRIBUTES = ("fan", "gearbox", "toycar", "pump", "drone")
# A site has this many scenes of noise for each split; a clip hears one of them, and a second one more softly.
_SCENES = 3
# Clips are cut from a scene that is as long as three of them.
_CLIPS_PER_SCENE = 3
_SECOND_SCENE_DB = (-12.0, -3.0)
# A scene takes five places, and the target domain may hear those of one kind only.
LEAST_PLACES = 5
# The load of a machine in the source domain is at most 0.7.
_TARGET_LOADS = (0.9, 1.2)
_STREAM = 43


def write_installed_machines(
    folder: Path,
    sizes: BenchmarkPreset,
    seed: int = 0,
    machines: Sequence[str] = MACHINE_TYPES,
    site: Site | None = None,
    show_progress: bool = True,
) -> None:
    """Write stereo 16-bit WAVs at 16 kHz below `folder`, manifest.csv and installations.json.

    `<machine>/train`, `<machine>/test` and `<machine>/supplemental` (the machine alone, and the noise of its training
    alone) are named as DCASE names them. The files of a machine share one gain, a power of two. They depend on the
    settings only, not on which other machines are written.

    Args:
        folder: empty folder.
        sizes: numbers and duration of clips, and of backgrounds of each kind, which all machines share.
        seed: of sites, noises and every clip.
        machines: which of MACHINE_TYPES.
        site: what is not drawn.
        show_progress: whether progress bars are shown.

    Raises:
        ValueError: a setting is out of its range.
    """
    counts = {
        "num_train_source": sizes.num_train_source,
        "num_train_target": sizes.num_train_target,
        "num_test": sizes.num_test,
        "num_places": sizes.num_places,
        "num_supplemental": sizes.num_supplemental,
    }
    check_dataset(machines, counts, sizes.duration_s, seed, may_be_zero=("num_train_target", "num_supplemental"))
    site = site or Site()
    sites = {
        machine: draw_installation(machine, seed, site)
        for machine in tqdm(machines, desc="rooms", unit="room", delay=5, disable=not show_progress)
    }
    num_places = max(LEAST_PLACES, sizes.num_places)
    places = {
        split: synthesize_places(split, seed, sizes.duration_s, num_places, show_progress)
        for split in ("train", "test")
    }
    rows: list[dict[str, object]] = []
    described = {}
    num_clips = sizes.num_train_source + sizes.num_train_target + 4 * sizes.num_test + 2 * sizes.num_supplemental
    with tqdm(total=len(sites) * num_clips, desc="two-channel clips", unit="clip", disable=not show_progress) as bar:
        for machine, (installation, responses, far_gain_db) in sites.items():
            clips = InstalledMachine(installation, responses, far_gain_db, places, sizes.duration_s)
            of_machine, peak = [], 0.0
            for name in _plan(installation, sizes):
                stereo, row = clips.clip(name, _is_drifted(name, installation, sizes))
                peak = max(peak, write_float_wav(folder / format_dcase_name(name), stereo, SAMPLING_RATE))
                of_machine.append(row)
                bar.update()
            gain = common_gain(peak)
            reduce_to_pcm16(folder / machine, gain)
            rows += [{**row, "gain": gain} for row in of_machine]
            described[machine] = {**installation.describe(), "far_gain_db": far_gain_db}
    write_manifest(folder, rows)
    text = json.dumps({"seed": seed, "installations": described}, indent=2)
    (folder / INSTALLATIONS).write_text(text + "\n", encoding="utf-8")


@dataclass
class InstalledMachine:
    """A machine at its place, which makes its clips one by one; clips depend on their names only."""

    installation: Installation
    responses: ImpulseResponses
    far_gain_db: float
    places: Mapping[str, list[np.ndarray]]
    duration_s: float
    _scenes: dict[tuple[str, str, bool], list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Responses to the machine and the corners, and (2, R) to the new noise, before and after the drifts.
        silence = np.zeros((2, 1), np.float32)
        self._before = (self.responses, silence)
        self._after = self._before
        if self.installation.drifts.kinds:
            self._after = drifted_responses(self.installation, self.responses, self.far_gain_db)

    def clip(self, name: DcaseName, drifted: bool) -> tuple[np.ndarray, dict[str, object]]:
        """Return one clip (2, N) float32 and its row of the manifest."""
        own_seed = clip_seed(name, self.installation.seed)
        rng = np.random.default_rng([_STREAM, *own_seed])
        fault = 0.0
        if name.label == "anomaly":
            fault = DEFAULT_SEVERITY[name.machine] * float(np.exp(0.25 * rng.standard_normal()))
        point = _operating_point(self.installation, name)
        dry = synthesize_machine(name.machine, own_seed, self.duration_s, "source", fault, SAMPLING_RATE, point=point)
        machine = through(dry, (self._after if drifted else self._before)[0].target.numpy())
        split = "test" if name.split == "test" else "train"
        ranges = {"train": self.installation.train_snr_db, "test": self.installation.test_snr_db}
        snr = float(rng.uniform(*ranges[split]))
        noise = self._noise(split, str(name.domain), drifted, machine.shape[1], rng)
        powers = [float(np.mean(np.square(signal[0], dtype=np.float64))) for signal in (machine, noise)]
        noise = np.float32(np.sqrt(powers[0] / 10 ** (snr / 10) / (powers[1] + NOISE_POWER_FLOOR))) * noise
        stereo = {"machine": machine, "noise": noise}.get(str(name.label))
        row: dict[str, object] = {
            "file": format_dcase_name(name),
            # A clip of the machine or of the noise alone has no ratio of the two.
            "snr_db": f"{snr:.2f}" if stereo is None else "",
            "severity": f"{fault:.3f}",
            "drifts": " ".join(self.installation.drifts.kinds) if drifted else "",
        }
        return machine + noise if stereo is None else stereo, row

    def _noise(self, split: str, domain: str, drifted: bool, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut a noise (2, N) from two of the scenes, at random times."""
        changed = domain if self.installation.target_change == "noise" else "source"
        if (split, changed, drifted) not in self._scenes:
            self._scenes[split, changed, drifted] = [
                self._scene(split, changed, drifted, number) for number in range(_SCENES)
            ]
        scenes = self._scenes[split, changed, drifted]
        total = np.zeros((2, num_samples), np.float32)
        softer = 10 ** (rng.uniform(*_SECOND_SCENE_DB) / 20)
        for scene, gain in zip(rng.choice(_SCENES, size=2, replace=False), (1.0, softer), strict=True):
            start = int(rng.integers(scenes[scene].shape[1] - num_samples + 1))
            total += np.float32(gain) * scenes[scene][:, start : start + num_samples]
        return total

    def _scene(self, split: str, domain: str, drifted: bool, number: int) -> np.ndarray:
        """Play noise from the corners, as both microphones hear it: (2, L) with unit power at the close one.

        Every corner plays sqrt(c) of one common signal and sqrt(1 - c) of its own, all of equal power, so that the
        coherence c is the common share of the power.
        """
        installation = self.installation
        index = MACHINE_TYPES.index(installation.machine)
        seeds = [installation.seed, _STREAM, index, SPLITS.index(split), DOMAINS.index(domain), number]
        rng = np.random.default_rng(seeds)
        common, *own = self._draw_places(split, installation.noise_kinds(split, domain), 5, rng)
        responses, extra = self._after if drifted else self._before
        scene = np.zeros((2, len(common)), np.float32)
        for corner, sound in enumerate(own):
            # Python's floats leave the arrays float32.
            played = math.sqrt(installation.coherence) * common + math.sqrt(1 - installation.coherence) * sound
            scene += through(played, responses.noise[corner].numpy())
        scene = _unit_power(scene)
        if drifted and "new_noise" in installation.drifts.kinds:
            [new] = self._draw_places("test", (installation.drifts.noise_kind,), 1, rng)
            scene = scene + _unit_power(through(new, extra))
        return scene

    def _draw_places(self, split: str, kinds: Sequence[str], count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw parts (L,) of `count` different backgrounds of the given kinds."""
        num_places = len(self.places[split]) // len(BACKGROUND_TYPES)
        pool = [BACKGROUND_TYPES.index(kind) * num_places + place for kind, place in product(kinds, range(num_places))]
        sounds = [self.places[split][index] for index in rng.choice(pool, size=count, replace=False)]
        length = _CLIPS_PER_SCENE * round(self.duration_s * SAMPLING_RATE)
        starts = rng.integers(len(sounds[0]) - length + 1, size=count)
        # Equal power makes the coherence a share of power.
        return [
            _unit_power(sound[start : start + length][None])[0] for sound, start in zip(sounds, starts, strict=True)
        ]


def _unit_power(signal: np.ndarray) -> np.ndarray:
    """Scale (channels, L) so that the first channel has unit power."""
    return signal / np.float32(np.sqrt(np.mean(np.square(signal[0], dtype=np.float64))) + 1e-12)


def _operating_point(installation: Installation, name: DcaseName) -> OperatingPoint:
    """Return how the machine runs, whose speed or load the target domain may change."""
    own_seed = clip_seed(name, installation.seed)
    source = operating_point(name.machine, own_seed, "source")
    if name.domain == "target" and installation.target_change == "speed":
        target = operating_point(name.machine, own_seed, "target")
        return replace(source, setting=target.setting, rate=target.rate)
    if name.domain == "target" and installation.target_change == "load":
        return replace(source, load=float(np.random.default_rng([_STREAM, 1, *own_seed]).uniform(*_TARGET_LOADS)))
    return source


def _plan(installation: Installation, sizes: BenchmarkPreset) -> Iterator[DcaseName]:
    """List the names of the clips of one machine."""
    groups = [
        ("source", "train", "normal", sizes.num_train_source),
        ("target", "train", "normal", sizes.num_train_target),
    ]
    groups += [(domain, "test", label, sizes.num_test) for domain, label in product(DOMAINS, ("normal", "anomaly"))]
    groups += [("source", SUPPLEMENTAL, label, sizes.num_supplemental) for label in ("machine", "noise")]
    machine = installation.machine
    for domain, split, label, count in groups:
        for index in range(count):
            name = DcaseName(machine, domain, split, label, index, None)
            if machine in _MACHINES_WITH_ATTRIBUTES and split != SUPPLEMENTAL:
                name = name._replace(attributes=_attributes(installation, name))
            yield name


def _attributes(installation: Installation, name: DcaseName) -> str:
    """Name the speed, and what else the target domain changes: 1 stands for the source and 2 for the target domain."""
    speed = f"spd_{_operating_point(installation, name).setting}"
    if installation.target_change == "speed":
        return speed
    return f"{speed}_{installation.target_change}_{1 + DOMAINS.index(str(name.domain))}"


def _is_drifted(name: DcaseName, installation: Installation, sizes: BenchmarkPreset) -> bool:
    """Tell whether a clip comes after the drifts: the test clips of a domain and label are in order of time."""
    drifts = installation.drifts
    return bool(drifts.kinds) and name.split == "test" and name.index >= drifts.from_share * sizes.num_test
