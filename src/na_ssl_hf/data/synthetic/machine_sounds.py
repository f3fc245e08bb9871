"""Synthesise ten machines with natural variation, two domains, and faults of adjustable severity.

The machines stand in where no recordings are available: in the demo, in tests, or as further training targets. The
models follow the literature on vibration: a fan has blade-pass tones in turbulence, a gearbox has mesh tones with shaft
sidebands (Randall 1982), a bearing has defect impulses through resonances (McFadden and Smith 1984), a valve has
strokes, and a toy car has a motor and a rattling shell; `workshop_machine_sounds` has the other five. Levels are
absolute: a source clip has an RMS of about 0.05 of full scale, and no clip is normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...hub.fbank import SAMPLING_RATE
from .machine_clip import MachineClip, OperatingPoint
from .sound_synthesis import coloured, crossings, harmonic_sum, resonate, rotation_phase, slow_curve
from .workshop_machine_sounds import (
    synthesize_drone,
    synthesize_pump,
    synthesize_sander,
    synthesize_sewing,
    synthesize_slider,
)

# Faultless specimens of these are among the training sounds of the shipped checkpoints; the others were never heard.
HEARD_MACHINE_TYPES = ("fan", "gearbox", "bearing", "valve", "toycar")
# The place of a machine in this list is part of its seeds, so new ones come last.
MACHINE_TYPES = (*HEARD_MACHINE_TYPES, "slider", "pump", "drone", "sander", "sewing")

# With these, statistics of the log-mel bands of the clean targets give official scores of about 85 to 95.
DEFAULT_SEVERITY = {
    **{"fan": 1.8, "gearbox": 1.4, "bearing": 0.8, "valve": 2.0, "toycar": 2.5},
    **{"slider": 1.0, "pump": 1.0, "drone": 2.0, "sander": 1.2, "sewing": 2.0},
}

# Speed settings in shaft Hz, for valve and sewing machine in strokes and for the slider in runs a second. The target
# domain runs at settings of its own.
_SPEEDS = {
    "fan": {"source": (23.0, 25.0, 27.0), "target": (29.0,)},
    "gearbox": {"source": (19.0, 21.0, 23.0), "target": (25.0,)},
    "bearing": {"source": (26.0, 28.0, 30.0), "target": (33.0,)},
    "valve": {"source": (1.7, 2.0, 2.3), "target": (2.8,)},
    "toycar": {"source": (85.0, 95.0, 105.0), "target": (118.0,)},
    "slider": {"source": (0.9, 1.0, 1.1), "target": (1.3,)},
    "pump": {"source": (22.0, 24.0, 26.0), "target": (28.5,)},
    "drone": {"source": (80.0, 86.0, 92.0), "target": (101.0,)},
    "sander": {"source": (140.0, 150.0, 160.0), "target": (174.0,)},
    "sewing": {"source": (10.0, 12.0, 14.0), "target": (16.5,)},
}
_LOADS = {"source": (0.2, 0.7), "target": (0.4, 0.9)}
# Mounting, temperature and microphone placement colour every clip a little, in level and along frequency.
_MOUNTING_HZ, _MOUNTING_DB = (100.0, 300.0, 800.0, 2000.0, 4500.0, 8000.0), 0.8


def synthesize_machine(
    machine: str,
    seed: int | Sequence[int],
    duration_s: float = 10.0,
    domain: str = "source",
    severity: float = 0.0,
    sampling_rate: int = SAMPLING_RATE,
    unit: int = 0,
    point: OperatingPoint | None = None,
) -> np.ndarray:
    """Synthesise one clip of a machine, (N,) float32 with N = round(duration_s * sampling_rate).

    Args:
        machine: one of MACHINE_TYPES.
        seed: of the clip; equal seeds give the same normal sound under every severity.
        duration_s: duration in s, at least 0.1.
        domain: "source" or "target".
        severity: 0 is normal, and DEFAULT_SEVERITY[machine] is a fault that is audible but not blatant.
        sampling_rate: rate in Hz, at least 8000.
        unit: specimen of the machine type, with resonances and tooth counts of its own.
        point: how the machine runs, by default as `operating_point` says for this seed and domain.

    Raises:
        ValueError: an argument is unknown or out of its range.
    """
    point = point or operating_point(machine, seed, domain)
    if not severity >= 0:
        raise ValueError(f"severity must be 0 (normal) or larger, got {severity}")
    if sampling_rate < 8000:
        raise ValueError(f"sampling_rate must be at least 8000 Hz, got {sampling_rate}")
    if not duration_s >= 0.1:
        raise ValueError(f"duration_s must be at least 0.1 s, got {duration_s}")
    clip = MachineClip(
        sound=_generator(machine, seed, 1),
        fault=_generator(machine, seed, 2),
        unit=_generator(machine, unit, 3),
        num_samples=round(duration_s * sampling_rate),
        sampling_rate=sampling_rate,
        point=point,
        severity=float(severity),
    )
    mounting = clip.sound.normal(0.0, _MOUNTING_DB) + clip.sound.normal(0.0, _MOUNTING_DB, size=len(_MOUNTING_HZ))
    sound = _SYNTHESIZERS[machine](clip)
    return coloured(sound, sampling_rate, list(zip(_MOUNTING_HZ, mounting, strict=True))).astype(np.float32)


def operating_point(machine: str, seed: int | Sequence[int], domain: str = "source") -> OperatingPoint:
    """Return the speed setting and load that `synthesize_machine` uses for this seed.

    The settings of the target domain come after those of the source domain.

    Raises:
        ValueError: the machine or the domain is unknown.
    """
    if machine not in MACHINE_TYPES:
        raise ValueError(f"machine must be one of {MACHINE_TYPES}, got {machine!r}")
    if domain not in _LOADS:
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")
    rng = _generator(machine, seed, 0)
    rates = _SPEEDS[machine][domain]
    index = int(rng.integers(len(rates)))
    rate = rates[index] * (1 + 0.01 * rng.standard_normal())
    first = 1 if domain == "source" else 1 + len(_SPEEDS[machine]["source"])
    return OperatingPoint(first + index, float(rate), float(rng.uniform(*_LOADS[domain])))


def _generator(machine: str, seed: int | Sequence[int], stream: int) -> np.random.Generator:
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    return np.random.default_rng([MACHINE_TYPES.index(machine), stream, *seeds])


def _fan(clip: MachineClip) -> np.ndarray:
    """Synthesise blade-pass tones in turbulence.

    The faults are imbalance, with shaft-rate modulation and low orders, and a blade that rubs.
    """
    blades, load = int(clip.unit.integers(5, 9)), clip.point.load
    phase = clip.shaft(wander=0.004)
    speed = clip.point.rate / 25.0
    tilt = clip.sound.normal(0, 1.5)
    flow = clip.noise((60, 0), (300, 2), (1000, -5 + 4 * load), (3000, -18 + 5 * load + tilt), (8000, -33 + tilt))
    gust = 1 + 0.08 * slow_curve(clip.sound, clip.num_samples, clip.sampling_rate, (0.2, 3.0))
    order = np.arange(1, 11)
    blade_pass = clip.tones(blades * phase, clip.unit.uniform(0.5, 1.0, size=10) * 0.035 / order**0.8)
    motor = clip.tones(phase, 0.004 / order)
    sound = speed**2 * (0.04 * gust * flow + blade_pass) + motor
    if clip.severity > 0:
        sound += clip.severity * speed**2 * _fan_fault(clip, phase, sound)
    return sound


def _fan_fault(clip: MachineClip, phase: np.ndarray, sound: np.ndarray) -> np.ndarray:
    if clip.fault.random() < 0.5:
        wobble = np.cos(phase + clip.fault.uniform(0, 2 * np.pi)).astype(np.float32)
        orders = harmonic_sum(phase, 0.022 / np.arange(1, 9) ** 0.5, clip.fault.uniform(0, 2 * np.pi, size=8))
        return 0.25 * wobble * sound + orders
    turns = crossings(phase, 1, clip.sampling_rate)
    rub = clip.decay(clip.impulses(turns, clip.fault.uniform(0.5, 1.0, size=len(turns))), seconds=0.03)
    return 0.02 * rub * clip.fault_noise((500, -20), (2000, 0), (5000, 0), (8000, -6))


def _gearbox(clip: MachineClip) -> np.ndarray:
    """Synthesise mesh tones with sidebands of both shafts; the faults are one damaged tooth and wear of all teeth."""
    teeth, mate = int(clip.unit.integers(19, 27)), int(clip.unit.integers(31, 43))
    housing = clip.body(900, 4500, count=5, decay=0.02)
    order = np.arange(1, 9)
    profile = clip.unit.uniform(0.4, 1.0, size=8) / order**1.5
    load = clip.point.load
    phase = clip.shaft(wander=0.003)
    output = phase * (teeth / mate)
    eccentric = (0.12 * np.cos(phase) + 0.18 * np.cos(output + clip.sound.uniform(0, 2 * np.pi))).astype(np.float32)
    mesh = clip.tones(teeth * phase + 0.15 * eccentric, profile) * (1 + eccentric)
    hum = clip.tones(phase, 0.3 / order)
    oil = clip.noise((60, 0), (400, -3), (1500, -14), (8000, -34))
    speed = clip.point.rate / 21.0
    sound = speed * ((0.02 + 0.03 * load) * mesh + 0.03 * hum + 0.03 * oil)
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        turns = crossings(output, 1, clip.sampling_rate)
        hits = clip.impulses(turns, clip.fault.uniform(0.6, 1.0, size=len(turns)))
        return sound + clip.severity * (
            0.12 * resonate(hits, clip.sampling_rate, housing) + 1.5 * mesh * 0.02 * clip.decay(hits, 0.04)
        )
    worn = harmonic_sum(teeth * phase + 0.4 * eccentric, profile * order**0.7, clip.fault.uniform(0, 2 * np.pi, size=8))
    grind = clip.fault_noise((400, -12), (1500, 0), (3500, 0), (8000, -18))
    return sound + clip.severity * (0.012 * worn * (1 + 2 * eccentric) + 0.008 * grind)


def _bearing(clip: MachineClip) -> np.ndarray:
    """Synthesise rolling noise and weak shaft orders.

    The faults are defects of the outer or inner race, which strike resonances.
    """
    outer = clip.unit.uniform(3.2, 4.2)  # ball passes a turn
    inner = outer + clip.unit.uniform(1.4, 2.2)
    housing = clip.body(1800, 5500, count=4, decay=0.012)
    frame = clip.body(300, 1500, count=3, decay=0.05)
    phase = clip.shaft(wander=0.003)
    speed, load = clip.point.rate / 28.0, clip.point.load
    tilt = clip.sound.normal(0, 1.5)
    rolling = clip.noise((60, 0), (400, -3), (1500, -14 + tilt), (4000, -20 + 4 * load + tilt), (8000, -36))
    orders = clip.tones(phase, 1.0 / np.arange(1, 13))
    count = clip.sound.poisson(40 * clip.num_samples / clip.sampling_rate)
    specks = clip.impulses(
        clip.sound.uniform(0, clip.num_samples / clip.sampling_rate, size=count), clip.sound.normal(0, 1, size=count)
    )
    sound = speed**1.5 * (
        0.04 * rolling + 0.025 * orders + 0.008 * resonate(specks, clip.sampling_rate, frame + housing)
    )
    if clip.severity == 0:
        return sound
    on_inner_race = clip.fault.random() < 0.5
    times = crossings(phase, inner if on_inner_race else outer, clip.sampling_rate)
    times += clip.fault.normal(0, 0.01 / (outer * clip.point.rate), size=len(times))  # the rollers slip by about 1 %
    force = clip.fault.uniform(0.7, 1.0, size=len(times))
    if on_inner_race:  # the defect turns through the load zone
        force *= 0.3 + 1.2 * np.maximum(np.cos(2 * np.pi * clip.point.rate * times), 0)
    return sound + clip.severity * speed * 0.06 * resonate(clip.impulses(times, force), clip.sampling_rate, housing)


def _valve(clip: MachineClip) -> np.ndarray:
    """Synthesise strokes with an opening click, a hiss while the valve is open, and a closing click.

    The faults are a seat that leaks and a sluggish stroke.
    """
    opening = clip.body(700, 3500, count=4, decay=0.03)
    closing = clip.body(400, 2500, count=4, decay=0.05)
    duration = clip.num_samples / clip.sampling_rate
    period, load = 1 / clip.point.rate, clip.point.load
    starts = np.arange(clip.sound.uniform(-period, 0), duration, period)
    starts = starts + clip.sound.normal(0, 0.008, size=len(starts))
    open_time = period * (0.3 + 0.1 * load) * clip.sound.normal(1, 0.08, size=len(starts)) * clip.sound.normal(1, 0.06)
    force = clip.sound.normal(1, 0.06, size=len(starts))
    idle = 10 ** (clip.sound.normal(0, 2) / 20) * clip.noise((60, 0), (300, -6), (1500, -16), (8000, -30))
    jet = clip.noise((200, -25), (1500, -6), (4000, 0), (8000, -6))
    leak = np.float32(0.0)
    settle = 1.0
    if clip.severity > 0:
        if clip.fault.random() < 0.5:
            leak = 0.006 * clip.severity * clip.fault_noise((500, -30), (2500, -6), (5000, 0), (8000, -4))
        else:
            starts = starts + clip.fault.normal(0, 0.06 * clip.severity, size=len(starts))
            open_time = open_time * (1 + clip.severity * clip.fault.uniform(0.1, 0.5, size=len(starts)))
            force = force * clip.fault.uniform(max(0.0, 1 - 0.6 * clip.severity), 1, size=len(starts))
            settle = 1 + 2.0 * clip.severity
    ends = starts + open_time
    # A stroke that began before the clip opens at its first sample, or nothing would balance its end.
    gate = np.cumsum(clip.impulses(np.maximum(starts, 0), force) - clip.impulses(np.maximum(ends, 0), force))
    gate = np.maximum(gate, 0) * (1 - np.exp(-1 / (0.004 * clip.sampling_rate)))
    gate = clip.decay(gate.astype(np.float32), seconds=0.004 * 6.9 * settle) / settle
    clicks = resonate(clip.impulses(starts, force), clip.sampling_rate, opening)
    clicks += resonate(clip.impulses(ends, 0.8 * force), clip.sampling_rate, closing)
    return 0.25 * clicks + (0.03 + 0.04 * load) * gate * jet + 0.008 * idle + leak


def _toycar(clip: MachineClip) -> np.ndarray:
    """Synthesise a small motor, a gear and a rattling shell.

    The faults are a bent axle, with wheel-rate modulation and knocks, and a squeal.
    """
    commutator, teeth, reduction = 3 * int(clip.unit.integers(1, 3)), int(clip.unit.integers(9, 13)), 11.0
    shell = clip.body(600, 3800, count=6, decay=0.03)
    order = np.arange(1, 9)
    profile = clip.unit.uniform(0.4, 1.0, size=8) / order**0.7
    phase = clip.shaft(wander=0.012)
    wheel = phase / reduction
    speed, load = clip.point.rate / 95.0, clip.point.load
    ripple = (1 + 0.1 * np.cos(wheel + clip.sound.uniform(0, 2 * np.pi))).astype(np.float32)
    motor = clip.tones(commutator * phase, profile)
    gear = clip.tones(teeth * phase, profile[::-1] / order**1.5) * ripple
    rumble = clip.noise((60, -4), (250, 0), (1200, -6), (3000, -18 + clip.sound.normal(0, 1.5)), (8000, -34))
    count = clip.sound.poisson(60 * speed * clip.num_samples / clip.sampling_rate)
    rattle = clip.impulses(
        clip.sound.uniform(0, clip.num_samples / clip.sampling_rate, size=count), clip.sound.normal(0, 1, size=count)
    )
    sound = 0.02 * motor + (0.006 + 0.008 * load) * gear + 0.035 * rumble * ripple
    sound = speed**1.5 * (sound + 0.01 * resonate(rattle, clip.sampling_rate, shell))
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        knocks = crossings(wheel, 1, clip.sampling_rate)
        knocks = clip.impulses(knocks, clip.fault.uniform(0.5, 1.0, size=len(knocks)))
        sway = np.cos(wheel + clip.fault.uniform(0, 2 * np.pi)).astype(np.float32)
        return sound + clip.severity * (0.3 * sway * sound + 0.06 * resonate(knocks, clip.sampling_rate, shell))
    pitch = clip.fault.uniform(2300, 3600) * (
        1 + 0.01 * slow_curve(clip.fault, clip.num_samples, clip.sampling_rate, (0.5, 4.0))
    )
    squeal = harmonic_sum(rotation_phase(clip.fault, pitch, clip.sampling_rate), [1.0, 0.3], np.zeros(2))
    contact = np.maximum(np.cos(wheel + clip.fault.uniform(0, 2 * np.pi)), 0).astype(np.float32)
    return sound + clip.severity * 0.01 * contact * squeal


_SYNTHESIZERS: dict[str, Callable[[MachineClip], np.ndarray]] = {
    "fan": _fan,
    "gearbox": _gearbox,
    "bearing": _bearing,
    "valve": _valve,
    "toycar": _toycar,
    "slider": synthesize_slider,
    "pump": synthesize_pump,
    "drone": synthesize_drone,
    "sander": synthesize_sander,
    "sewing": synthesize_sewing,
}
