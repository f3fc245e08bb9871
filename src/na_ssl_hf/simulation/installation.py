"""Draw how a machine is installed: one room and one placement for good, its noise, and what changes later.

Letters in shapes: N samples and R taps of an impulse response; channel 0 is the close microphone, 1 the far one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.signal import oaconvolve

from ..data.synthetic.background_sounds import BACKGROUND_TYPES
from ..data.synthetic.machine_sounds import MACHINE_TYPES, synthesize_machine
from ..hub.fbank import SAMPLING_RATE
from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .rooms import (
    CLOSE_DISTANCE,
    CORNER_DISTANCE,
    FAR_DISTANCE_RANGE,
    FRACTIONAL_DELAY_SAMPLES,
    Position,
    Room,
    draw_room,
)

TARGET_CHANGES = ("speed", "load", "noise")
DRIFTS = ("microphone_moved", "gain", "new_noise", "door")
# Published for the machines of DCASE 2026; nothing is known of the others, which lie anywhere in this range.
PUBLISHED_MACHINE_LEVELS_DB = {"valve": -3.6, "fan": -3.2, "gearbox": -2.8, "toycar": 19.5}
MACHINE_LEVEL_RANGE_DB = (-4.0, 20.0)
SNR_RANGE_DB = (-10.0, 10.0)  # that of NA training (Fujimura et al., IWAENC 2026)
# At these the order that is published for machines of DCASE 2026 holds best; docs/results.md has how they were chosen.
CHALLENGE_SNRS_DB = {"fan": -10.0, "bearing": -10.0, "gearbox": -10.0, "valve": 0.0}
_CHALLENGE_SNR_HALF_WIDTH_DB = 2.5
_MICROPHONE_MOVE_M = (0.02, 0.08)
_GAIN_CHANGE_DB = (3.0, 6.0)
_DOOR_RT60_SHARE = (0.4, 0.7)
_SMALL_GAIN_DB = 1.0  # a placement this near to the wanted level ends the search
# Draws of installations and of their rooms are apart from those of clips, whose third seed is 0 or 1.
_STREAM, _ROOM_STREAM, _SOUND_STREAM = 40, 41, 42
_KINDS_OF_A_SPLIT = 3


@dataclass(frozen=True)
class Site:
    """What is given instead of drawn for an installation.

    Attributes:
        coherence: share of noise power common to all corners, in [0, 1]; None draws U[0, 1].
        machine_level_db: level of the machine at the close microphone minus that at the far one in dB, between -20 and
            40; None takes the published one, and draws U[-4, 20] for machines without one.
        snr_db: range of the SNR in dB; training and test each get a half of its width, at places of their own. None
            takes a range around that of CHALLENGE_SNRS_DB, and (-10, 10) for machines without one.
        drifts: which of DRIFTS happen during the test.
        drift_from: share of the test clips before the drifts, at least 0 and below 1.

    Raises:
        ValueError: an attribute is out of its range.
    """

    coherence: float | None = None
    machine_level_db: float | None = None
    snr_db: tuple[float, float] | None = SNR_RANGE_DB
    drifts: tuple[str, ...] = ()
    drift_from: float = 0.5

    def __post_init__(self) -> None:
        if self.coherence is not None and not 0 <= self.coherence <= 1:
            raise ValueError(f"noise_coherence must lie in [0, 1], got {self.coherence}")
        if self.machine_level_db is not None and not -20 <= self.machine_level_db <= 40:
            raise ValueError(f"machine_level_db must lie between -20 and 40 dB, got {self.machine_level_db}")
        if self.snr_db is not None and (
            len(self.snr_db) != 2 or not -np.inf < self.snr_db[0] <= self.snr_db[1] < np.inf
        ):
            raise ValueError(f"snr_db must be the lower and the upper end of a range in dB, got {self.snr_db}")
        if unknown := sorted(set(self.drifts) - set(DRIFTS)):
            raise ValueError(f"drifts must be among {DRIFTS}, got {unknown}")
        if not 0 <= self.drift_from < 1:
            raise ValueError(f"drift_from must be a share of at least 0 and below 1, got {self.drift_from}")


@dataclass(frozen=True)
class Drifts:
    """What changes at an installation during the test, and from which share of the test clips on.

    Attributes:
        kinds: which of DRIFTS.
        from_share: share of the test clips of every domain and label that come before the change.
        far: position of the moved far microphone in m.
        gain_db: what the far microphone's gain changes by, in dB.
        noise: position in m of the new source of noise.
        noise_kind: kind of that noise, one of BACKGROUND_TYPES.
        rt60: reverberation time in s with the door open.
    """

    kinds: tuple[str, ...]
    from_share: float
    far: Position
    gain_db: float
    noise: Position
    noise_kind: str
    rt60: float

    def describe(self) -> dict[str, Any]:
        """Return the changes of this installation for JSON."""
        changes = {
            "microphone_moved": {"far": self.far},
            "gain": {"far_gain_db": self.gain_db},
            "new_noise": {"position": self.noise, "kind": self.noise_kind},
            "door": {"rt60": self.rt60},
        }
        return {"from_share": self.from_share, **{kind: changes[kind] for kind in self.kinds}} if self.kinds else {}


@dataclass(frozen=True)
class Installation:
    """A machine, its room and microphones, and its noise, which are the same for training and test.

    Attributes:
        machine: one of MACHINE_TYPES.
        room: room, and positions of machine, microphones and the corners' noises.
        coherence: share of every corner's noise power that comes from one signal common to all four corners.
        machine_level_db: level of the machine at the close microphone minus that at the far one, in dB.
        target_change: what the target domain changes, one of TARGET_CHANGES.
        train_noises: kinds of noise in training, of BACKGROUND_TYPES.
        test_noises: kinds of noise in the test; one of them is not heard in training.
        target_noise: kind of noise of the target domain, where it changes the noise.
        train_snr_db: range of the SNR at the close microphone in dB, in training.
        test_snr_db: the same in the test.
        drifts: what changes during the test.
        seed: of the machine's normal sound that the level is measured with.
    """

    machine: str
    room: Room
    coherence: float
    machine_level_db: float
    target_change: str
    train_noises: tuple[str, ...]
    test_noises: tuple[str, ...]
    target_noise: str
    train_snr_db: tuple[float, float]
    test_snr_db: tuple[float, float]
    drifts: Drifts
    seed: int

    def noise_kinds(self, split: str, domain: str) -> tuple[str, ...]:
        """Return the kinds of noise of a split ("train" or "test") and a domain ("source" or "target")."""
        if domain == "target" and self.target_change == "noise":
            return (self.target_noise,)
        return self.train_noises if split == "train" else self.test_noises

    def describe(self) -> dict[str, Any]:
        """Return everything as a dictionary for JSON, lengths in m, times in s."""
        described = asdict(self)
        described["drifts"] = self.drifts.describe()
        if self.target_change != "noise":
            del described["target_noise"]
        described["room"] = {key: value for key, value in asdict(self.room).items() if key != "seed"}
        described["room"]["far_distance"] = self.room.distance_far
        return {key: value for key, value in described.items() if key not in ("machine", "seed")}


def draw_installation(
    machine: str, seed: int = 0, site: Site | None = None
) -> tuple[Installation, ImpulseResponses, float]:
    """Draw the installation of one machine, which depends on nothing but the arguments.

    What `site` gives changes no other draw. The far microphone is placed at the distance, of three around that of the
    free field, whose level difference of the machine comes nearest to the wanted one; within 1 dB the search ends. The
    rest is the gain of the far microphone, which the noise has as well: the microphones of a site are rarely set alike,
    and few placements let the far one hear the machine more loudly than one that is 5 cm away.

    Args:
        machine: one of MACHINE_TYPES.
        seed: of the draws, not negative; equal seeds give equal installations.
        site: what is given instead of drawn.

    Returns:
        The installation, its impulse responses with that gain, and the gain in dB.

    Raises:
        ValueError: the machine is unknown.
    """
    if machine not in MACHINE_TYPES:
        raise ValueError(f"machine must be one of {MACHINE_TYPES}, got {machine!r}")
    site = site or Site()
    index = MACHINE_TYPES.index(machine)
    rng = np.random.default_rng([seed, _STREAM, index])
    drawn_coherence, drawn_level = float(rng.uniform()), float(rng.uniform(*MACHINE_LEVEL_RANGE_DB))
    target_change = str(rng.choice(TARGET_CHANGES))
    kinds = [str(kind) for kind in rng.permutation(BACKGROUND_TYPES)]
    lowest_snr, highest_snr = _challenge_snr_range(machine) if site.snr_db is None else site.snr_db
    half = (highest_snr - lowest_snr) / 2
    starts = [lowest_snr + half * float(share) for share in rng.uniform(size=2)]
    usual_level = PUBLISHED_MACHINE_LEVELS_DB.get(machine, drawn_level)
    level = usual_level if site.machine_level_db is None else float(site.machine_level_db)
    room = draw_room([seed, _ROOM_STREAM, index])
    room, responses, gain_db = _place_far_microphone(room, level, _reference_sound(machine, seed))
    installation = Installation(
        machine=machine,
        room=room,
        coherence=drawn_coherence if site.coherence is None else float(site.coherence),
        machine_level_db=level,
        target_change=target_change,
        train_noises=tuple(kinds[:_KINDS_OF_A_SPLIT]),
        test_noises=tuple(kinds[1 : _KINDS_OF_A_SPLIT + 1]),
        target_noise=kinds[-1],
        train_snr_db=(starts[0], starts[0] + half),
        test_snr_db=(starts[1], starts[1] + half),
        drifts=_draw_drifts(room, site, rng),
        seed=seed,
    )
    return installation, responses, gain_db


def _challenge_snr_range(machine: str) -> tuple[float, float]:
    if machine not in CHALLENGE_SNRS_DB:
        return SNR_RANGE_DB
    middle = CHALLENGE_SNRS_DB[machine]
    return middle - _CHALLENGE_SNR_HALF_WIDTH_DB, middle + _CHALLENGE_SNR_HALF_WIDTH_DB


def machine_level_difference(responses: ImpulseResponses, sound: np.ndarray) -> float:
    """Return the level of `sound` (N,) at the close microphone minus that at the far one, in dB."""
    close, far = np.mean(np.square(through(sound, responses.target.numpy()), dtype=np.float64), axis=1)
    return float(10 * np.log10(close / far))


def through(sound: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Send `sound` (N,) through `responses` (2, R) and return the first N samples at both microphones, (2, N)."""
    return oaconvolve(sound[None], responses, axes=1)[:, : len(sound)].astype(np.float32)


def drifted_responses(
    installation: Installation, responses: ImpulseResponses, far_gain_db: float
) -> tuple[ImpulseResponses, np.ndarray]:
    """Return the responses after the drifts, and those (2, R) of the new noise, which are zero where there is none.

    A moved microphone gets a room simulated anew with the same walls, and an open door lets all responses decay as fast
    as its reverberation time says. A changed gain acts on the far microphone.
    """
    drifts, room = installation.drifts, installation.room
    extra = np.zeros((2, responses.target.shape[-1]), np.float32)
    if "microphone_moved" in drifts.kinds:
        room = replace(room, far=drifts.far)
        responses = _with_far_gain(simulate_impulse_responses(room), far_gain_db)
    if "new_noise" in drifts.kinds:
        with_source = simulate_impulse_responses(replace(room, noises=(drifts.noise, *room.noises[1:])))
        extra = _with_far_gain(with_source, far_gain_db).noise[0].numpy()
    target, noise = responses.target.numpy(), responses.noise.numpy()
    if "door" in drifts.kinds:
        target, noise, extra = (_decay_faster(part, room.rt60, drifts.rt60) for part in (target, noise, extra))
    far = np.float32(10 ** (drifts.gain_db / 20)) if "gain" in drifts.kinds else np.float32(1)
    gains = np.array([[1], [far]], np.float32)
    target, noise, extra = target * gains, noise * gains, extra * gains
    return ImpulseResponses(torch.from_numpy(target), torch.from_numpy(noise), responses.direct_delay), extra


def _reference_sound(machine: str, seed: int) -> np.ndarray:
    """Synthesise eight seconds of the normal machine, of no clip's seed."""
    index = MACHINE_TYPES.index(machine)
    return np.concatenate([synthesize_machine(machine, [seed, _SOUND_STREAM, index, part], 2.0) for part in range(4)])


def _place_far_microphone(room: Room, level_db: float, sound: np.ndarray) -> tuple[Room, ImpulseResponses, float]:
    free_field = CLOSE_DISTANCE * 10 ** (level_db / 20)
    distances = [float(np.clip(factor * free_field, *FAR_DISTANCE_RANGE)) for factor in (1.0, 0.5, 2.0)]
    found = []
    for distance in dict.fromkeys(distances):
        candidate = replace(room, far=_far_at(room, distance))
        responses = simulate_impulse_responses(candidate)
        found.append((machine_level_difference(responses, sound) - level_db, candidate, responses))
        if abs(found[-1][0]) < _SMALL_GAIN_DB:
            break
    gain_db, room, responses = min(found, key=lambda one: abs(one[0]))
    return room, _with_far_gain(responses, gain_db), gain_db


def _with_far_gain(responses: ImpulseResponses, gain_db: float) -> ImpulseResponses:
    """Apply the gain of the far microphone, in dB, to all paths that lead to it."""
    target, noise = responses.target.clone(), responses.noise.clone()
    target[1] *= 10 ** (gain_db / 20)
    noise[:, 1] *= 10 ** (gain_db / 20)
    return responses._replace(target=target, noise=noise)


def _far_at(room: Room, distance: float) -> Position:
    """Return the position at `distance` m from the machine that lies nearest to the direction of the far microphone."""
    x, y, z = room.target
    direction = math.atan2(room.far[1] - y, room.far[0] - x)
    # A circle of up to a metre around a point half a metre from the walls always has points inside the room.
    for step in range(0, 360, 5):
        for sign in (1, -1):
            angle = direction + sign * math.radians(step / 2)
            point = (x + distance * math.cos(angle), y + distance * math.sin(angle), z)
            if all(0.05 < p < d - 0.05 for p, d in zip(point[:2], room.dimensions[:2], strict=True)):
                return point
    raise AssertionError("the room is too small for the far microphone")


def _draw_drifts(room: Room, site: Site, rng: np.random.Generator) -> Drifts:
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*_MICROPHONE_MOVE_M)
    far = (room.far[0] + distance * math.cos(angle), room.far[1] + distance * math.sin(angle), room.far[2])
    if not all(0 < p < d for p, d in zip(far[:2], room.dimensions[:2], strict=True)):
        # The microphone stands at a wall and moves to the other side.
        far = (2 * room.far[0] - far[0], 2 * room.far[1] - far[1], far[2])
    noise = [float(rng.uniform(CORNER_DISTANCE, side - CORNER_DISTANCE)) for side in room.dimensions[:2]]
    gain_db = float(rng.choice([-1.0, 1.0]) * rng.uniform(*_GAIN_CHANGE_DB))
    # Walls that absorb everything set the least reverberation time of a room.
    rt60 = max(float(rng.uniform(*_DOOR_RT60_SHARE)) * room.rt60, room.absorption * room.rt60)
    kind = str(rng.choice(BACKGROUND_TYPES))
    kinds = tuple(kind for kind in DRIFTS if kind in site.drifts)
    return Drifts(kinds, float(site.drift_from), far, gain_db, (noise[0], noise[1], room.far[2]), kind, rt60)


def _decay_faster(responses: np.ndarray, rt60: float, shorter: float) -> np.ndarray:
    """Let responses (..., R), which decay by 60 dB in `rt60` s, do so in `shorter` s."""
    times = np.maximum(np.arange(responses.shape[-1]) - FRACTIONAL_DELAY_SAMPLES, 0) / SAMPLING_RATE
    return (responses * 10 ** (-3 * times * (1 / shorter - 1 / rt60))).astype(np.float32)
