"""Synthesise the machines that no training of the shipped checkpoints has heard: slider, pump, drone, sander, sewing.

They follow the same rules as the machines of `machine_sounds`: a fault adds to the normal sound of the same seed, and
levels are absolute. All signals are float32 arrays of shape (N,); frequencies are in Hz, times in s.
"""

from __future__ import annotations

import numpy as np

from .machine_clip import MachineClip
from .sound_synthesis import crossings, harmonic_sum, resonate, rotation_phase, slow_curve


def synthesize_slider(clip: MachineClip) -> np.ndarray:
    """Synthesise a carriage that runs to and fro on a belt: a motor whose pitch follows the speed, rollers, end stops.

    The faults are a rail that scrapes at one place and a loose belt.
    """
    stop, rail = clip.body(350, 2200, count=4, decay=0.04), clip.body(1200, 5000, count=4, decay=0.015)
    pole_pairs, load = int(clip.unit.integers(9, 14)), clip.point.load
    phase = clip.shaft(wander=0.01)
    speed = np.minimum(1.0, 2.2 * np.abs(np.sin(phase))).astype(np.float32)  # it brakes before the turn
    pitch = rotation_phase(clip.sound, 22.0 * clip.point.rate * speed, clip.sampling_rate)
    order = np.arange(1, 9)
    motor = clip.tones(pole_pairs * pitch, clip.unit.uniform(0.4, 1.0, size=8) / order**0.9) * speed
    rolling = clip.noise(
        (60, -2), (350, 0), (1500, -10 + 4 * load), (4000, -20 + clip.sound.normal(0, 1.5)), (8000, -36)
    )
    turns = crossings(phase, 2, clip.sampling_rate)
    stops = clip.impulses(turns, (0.8 + 0.5 * load) * clip.sound.normal(1, 0.08, size=len(turns)))
    sound = 0.025 * motor + 0.055 * speed**1.5 * rolling + 0.10 * resonate(stops, clip.sampling_rate, stop)
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        place = np.exp(-((np.cos(phase) - clip.fault.uniform(-0.6, 0.6)) ** 2) / 0.06).astype(np.float32)
        scrape = clip.fault_noise((600, -20), (2500, 0), (5500, 0), (8000, -10))
        return sound + clip.severity * 0.025 * place * speed * scrape
    slaps = crossings(pitch, 1, clip.sampling_rate)
    slaps = clip.impulses(slaps, clip.fault.exponential(0.6, size=len(slaps)))
    return sound + clip.severity * 0.035 * resonate(slaps, clip.sampling_rate, rail)


def synthesize_pump(clip: MachineClip) -> np.ndarray:
    """Synthesise vane-pass pulsation, the motor's hum and flow noise that the vanes chop.

    The faults are cavitation, which crackles, and a dry shaft seal, which squeals once a turn.
    """
    vanes, load = int(clip.unit.integers(5, 8)), clip.point.load
    casing, pipe = clip.body(900, 4800, count=5, decay=0.012), clip.body(200, 900, count=3, decay=0.08)
    phase = clip.shaft(wander=0.003)
    speed = clip.point.rate / 24.0
    order = np.arange(1, 9)
    pulsation = clip.tones(vanes * phase, clip.unit.uniform(0.5, 1.0, size=8) / order)
    hum = clip.tones(phase, clip.unit.uniform(0.3, 1.0, size=8) / order**0.8)
    flow = clip.noise((60, -8), (250, 0), (900, -4 + 4 * load), (2500, -16 + clip.sound.normal(0, 1.5)), (8000, -32))
    chopped = flow * (1 + 0.3 * np.cos(vanes * phase + clip.sound.uniform(0, 2 * np.pi)).astype(np.float32))
    strokes = clip.impulses(crossings(phase, vanes, clip.sampling_rate), 1.0)
    sound = 0.02 * pulsation + 0.015 * hum + 0.035 * chopped + 0.01 * resonate(strokes, clip.sampling_rate, pipe)
    sound = speed**1.5 * sound
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        count = clip.fault.poisson(700 * clip.num_samples / clip.sampling_rate)
        times = clip.fault.uniform(0, clip.num_samples / clip.sampling_rate, size=count)
        crackle = resonate(clip.impulses(times, clip.fault.exponential(0.5, size=count)), clip.sampling_rate, casing)
        swell = np.maximum(1 + 0.6 * slow_curve(clip.fault, clip.num_samples, clip.sampling_rate, (0.5, 4.0)), 0)
        return sound + clip.severity * 0.018 * swell * crackle
    pitch = clip.fault.uniform(1500, 2800) + 40 * np.cos(phase)
    squeal = harmonic_sum(rotation_phase(clip.fault, pitch, clip.sampling_rate), [1.0, 0.4, 0.2], np.zeros(3))
    contact = np.maximum(np.cos(phase + clip.fault.uniform(0, 2 * np.pi)), 0).astype(np.float32) ** 2
    return sound + clip.severity * 0.008 * contact * squeal


def synthesize_drone(clip: MachineClip) -> np.ndarray:
    """Synthesise four propellers at almost the same speed, whose tones beat, and their rush.

    The faults are a chipped propeller, which throbs once a turn, and a screw that rattles.
    """
    frame, load = clip.body(700, 3600, count=5, decay=0.02), clip.point.load
    order = np.arange(1, 13)
    profile = clip.unit.uniform(0.4, 1.0, size=12) / order**0.9
    trims = clip.unit.normal(0, 0.012, size=4)
    shaft = clip.shaft(wander=0.008)
    phases = [(1 + trim) * shaft + clip.sound.uniform(0, 2 * np.pi) for trim in trims]
    blades = np.sum([clip.tones(2 * phase, profile) for phase in phases], axis=0)
    whine = clip.tones(7 * phases[0], 1.0 / np.arange(1, 5))
    rush = clip.noise((80, -10), (500, -2), (1800, 0), (4500, -8 + 4 * load + clip.sound.normal(0, 1.5)), (8000, -22))
    throb = 1 + 0.15 * np.cos(2 * phases[1]).astype(np.float32)
    speed = clip.point.rate / 86.0
    sound = speed**2 * (0.012 * blades + 0.006 * whine + 0.03 * throb * rush)
    if clip.severity == 0:
        return sound
    broken = phases[int(clip.fault.integers(4))]
    if clip.fault.random() < 0.5:
        odd = harmonic_sum(broken, 0.012 / np.arange(1, 9) ** 0.5, clip.fault.uniform(0, 2 * np.pi, size=8))
        chop = np.cos(broken + clip.fault.uniform(0, 2 * np.pi)).astype(np.float32)
        return sound + clip.severity * speed**2 * (odd + 0.012 * chop * rush)
    taps = crossings(broken, 0.5, clip.sampling_rate)
    taps = taps + clip.fault.normal(0, 0.002, size=len(taps))
    rattle = resonate(clip.impulses(taps, clip.fault.exponential(0.6, size=len(taps))), clip.sampling_rate, frame)
    return sound + clip.severity * 0.03 * rattle


def synthesize_sander(clip: MachineClip) -> np.ndarray:
    """Synthesise a universal motor with its fan, and a disc that grinds as the hand sways.

    The faults are a bearing that rumbles with play and worn brushes that spark.
    """
    bars, load = int(clip.unit.integers(11, 15)), clip.point.load
    shell, brush = clip.body(500, 3000, count=4, decay=0.02), clip.body(2500, 6500, count=4, decay=0.004)
    phase = clip.shaft(wander=0.012)
    order = np.arange(1, 9)
    motor = clip.tones(phase, clip.unit.uniform(0.3, 1.0, size=8) / order**0.7)
    commutator = clip.tones(bars * phase, 1.0 / np.arange(1, 5))
    air = clip.noise((100, -8), (800, 0), (3000, -4), (8000, -18))
    sway = np.maximum(1 + 0.35 * slow_curve(clip.sound, clip.num_samples, clip.sampling_rate, (0.4, 1.6)), 0)
    grind = clip.noise((300, -12), (1500, -3), (3500 + clip.sound.normal(0, 150), 0), (8000, -8))
    speed = clip.point.rate / 150.0
    sound = speed**1.5 * (0.03 * motor + 0.012 * commutator + 0.02 * air) + (0.012 + 0.02 * load) * sway * grind
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        knocks = crossings(phase, 0.4, clip.sampling_rate)  # the cage turns with 0.4 of the shaft's speed
        knocks = clip.impulses(knocks, clip.fault.uniform(0.3, 1.0, size=len(knocks)))
        return sound + clip.severity * 0.05 * resonate(knocks, clip.sampling_rate, shell)
    bars_passed = crossings(phase, bars, clip.sampling_rate)
    sparks = clip.impulses(bars_passed, clip.fault.exponential(0.5, size=len(bars_passed)))
    return sound + clip.severity * 0.014 * resonate(sparks, clip.sampling_rate, brush)


def synthesize_sewing(clip: MachineClip) -> np.ndarray:
    """Synthesise a sewing machine: a stitch is the needle's stroke, the hook's catch and the feed, above a motor.

    The faults are a blunt needle, which strikes hard and unevenly, and a hook without oil, which squeaks.
    """
    needle, hook = clip.body(500, 2600, count=4, decay=0.02), clip.body(1500, 5200, count=4, decay=0.012)
    catch, load = clip.unit.uniform(0.35, 0.6), clip.point.load
    phase = clip.shaft(wander=0.015)
    stitch = 1 / clip.point.rate
    strokes = crossings(phase, 1, clip.sampling_rate)
    strength = (0.7 + 0.6 * load) * clip.sound.normal(1, 0.08, size=len(strokes))
    clicks = resonate(clip.impulses(strokes, strength), clip.sampling_rate, needle)
    clicks += resonate(clip.impulses(strokes + catch * stitch, 0.6 * strength), clip.sampling_rate, hook)
    motor = clip.tones(8 * phase, clip.unit.uniform(0.4, 1.0, size=10) / np.arange(1, 11) ** 0.8)
    feed = clip.noise((100, -6), (500, 0), (2000, -10 + clip.sound.normal(0, 1.5)), (8000, -28))
    feed = feed * (1 + 0.6 * np.cos(phase + clip.sound.uniform(0, 2 * np.pi)).astype(np.float32))
    sound = (clip.point.rate / 12.0) * (0.10 * clicks + 0.018 * motor + 0.02 * feed)
    if clip.severity == 0:
        return sound
    if clip.fault.random() < 0.5:
        late = strokes + 0.12 * stitch + clip.fault.normal(0, 0.02 * stitch, size=len(strokes))
        blows = clip.impulses(late, clip.fault.exponential(0.7, size=len(strokes)))
        return sound + clip.severity * 0.06 * resonate(blows, clip.sampling_rate, needle)
    pitch = clip.fault.uniform(2600, 4200) * (1 + 0.06 * np.cos(phase))
    squeak = harmonic_sum(rotation_phase(clip.fault, pitch, clip.sampling_rate), [1.0, 0.5], np.zeros(2))
    contact = np.maximum(np.cos(phase + clip.fault.uniform(0, 2 * np.pi)), 0).astype(np.float32) ** 6
    return sound + clip.severity * 0.014 * contact * squeak
