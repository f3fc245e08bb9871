"""The promise of the alarm rule on scores of real sound: false alarms in simulated days, and delays of faults.

Run as `python -m benchmarks.watch promise --days 30`. A recorder hears 1 s in every 10 of a machine in a room. Mean and
deviation of each log-mel band of the close microphone are compared with those of 50 normal recordings, which were taken
over the day before; every window is synthesised and scored, none is drawn.

Once each window is drawn anew (they are exchangeable, as the promise wants), and once load and noise wander: half of
the load is forgotten within a quarter of an hour, of the noise within an hour, and by day it is louder than by night.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy.signal import lfilter

from na_ssl_hf import MemoryBank
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.watch.alarm_rule import DAY, AlarmRule
from na_ssl_hf.watch.dependence import Dependence

RATE = 16000
PERIOD = 10.0  # s from one window to the next
NUM_SAMPLES = RATE  # of a window
NUM_NORMALS = 50
PROMISE = 30 * DAY
BATCH = 256
# The whine of a fault, in dB below the machine.
WHINES_DB = (-18.0, -12.0, -6.0)
APART = (0.0, 900.0, 14400.0)  # `independent_after` in s
LOAD_WANDERS, NOISE_WANDERS = 900.0, 3600.0  # s until half is forgotten
POOL_SECONDS = 240
NUM_TRIALS = 10
NORMAL_BEFORE, LONGEST_DELAY = 1800.0, 8 * 3600.0  # s of a trial


class Plant:
    """What the close microphone hears of a machine and of the noise around it, window by window.

    Args:
        seed: of the machine and its room.
        wanders: whether load and noise of a window depend on those of the window before.
    """

    def __init__(self, seed: int, wanders: bool):
        draw = self._draw = np.random.default_rng([seed, 11])
        at = np.arange(NUM_SAMPLES) / RATE
        pitch = draw.uniform(40, 110)
        lines = draw.uniform(0.05, 1, 12) / np.arange(1, 13) ** 0.5
        self._hums = []
        for share in np.linspace(-0.02, 0.02, 41):  # of the speed, with the load
            hum = sum(
                size * np.sin(2 * np.pi * pitch * (1 + share) * (number + 1) * at + draw.uniform(0, 6))
                for number, size in enumerate(lines)
            )
            self._hums.append((hum / hum.std()).astype(np.float32))
        self._flow = self._colored(draw.uniform(-0.9, 0.9))
        self._noise = self._colored(draw.uniform(-0.5, 0.95))
        self._whine = np.sin(2 * np.pi * 17.3 * pitch * at).astype(np.float32) * 2**0.5
        self._wanders, self._load, self._traffic = wanders, 0.0, 0.0

    def _colored(self, pole: float) -> np.ndarray:
        noise = lfilter([1], [1, -pole], self._draw.standard_normal(POOL_SECONDS * RATE))
        return (noise / noise.std()).astype(np.float32)

    def windows(self, start: float, num_windows: int, whine_db: float | None = None) -> Iterator[np.ndarray]:
        """Give windows `(N,)` float32 from a time of day in s on; with a whine so far below the machine."""
        for index in range(num_windows):
            hour = (start + index * PERIOD) % DAY / 3600
            self._load = self._next(self._load, LOAD_WANDERS)
            self._traffic = self._next(self._traffic, NOISE_WANDERS)
            day_db = 2 * math.sin(2 * math.pi * (hour - 8) / 24) if self._wanders else 0.0
            hum = self._hums[int(np.clip(round(20 + 8 * self._load), 0, 40))]
            machine = np.roll(hum, int(self._draw.integers(NUM_SAMPLES))) + 0.7 * self._slice(self._flow)
            machine *= np.float32(10 ** ((-26 + 0.7 * self._load) / 20))
            sound = machine + self._slice(self._noise) * np.float32(10 ** ((-34 + day_db + 2 * self._traffic) / 20))
            if whine_db is not None:
                sound += self._whine * np.float32(10 ** ((-24 + whine_db) / 20))
            yield sound

    def _next(self, value: float, half_life: float) -> float:
        """Of a stationary process with mean 0 and variance 1."""
        kept = 0.5 ** (PERIOD / half_life) if self._wanders else 0.0
        return kept * value + (1 - kept**2) ** 0.5 * self._draw.standard_normal()

    def _slice(self, pool: np.ndarray) -> np.ndarray:
        begin = int(self._draw.integers(len(pool) - NUM_SAMPLES))
        return pool[begin : begin + NUM_SAMPLES]


def scores_of(bank: MemoryBank, windows: Iterator[np.ndarray], num_windows: int) -> list[float]:
    """Score windows, a batch at a time."""
    scores: list[float] = []
    for first in range(0, num_windows, BATCH):
        batch = [next(windows) for _ in range(min(BATCH, num_windows - first))]
        scores += bank.score(log_mel_embeddings(batch)).tolist()
    return scores


def fitted(plant: Plant) -> MemoryBank:
    """The memory of recordings that were spread over a day."""
    a_day = list(plant.windows(0.0, round(DAY / PERIOD)))
    normals = a_day[:: len(a_day) // NUM_NORMALS][:NUM_NORMALS]
    return MemoryBank(distance="euclidean", normalize=False).fit(log_mel_embeddings(normals))


def measure_promise(num_days: float) -> None:
    """Print alarms and crossings of thresholds in normal days, and the delays of three faults."""
    torch.set_num_threads(1)
    for wanders in (False, True):
        measure_plant(wanders, num_days)


def measure_plant(wanders: bool, num_days: float) -> None:
    """Print the part of `measure_promise` of one plant."""
    began = time.process_time()
    plant = Plant(seed=1, wanders=wanders)
    bank = fitted(plant)
    normals = bank.self_scores().tolist()
    lines = {"5 %": sorted(normals)[-2], "the highest normal score": max(normals)}
    crossings = dict.fromkeys(lines, 0)
    was_above = dict.fromkeys(lines, False)
    num_windows = round(num_days * DAY / PERIOD)
    scores = scores_of(bank, plant.windows(0.0, num_windows), num_windows)
    for score in scores:
        for name, line in lines.items():
            crossings[name] += score > line and not was_above[name]
            was_above[name] = score > line
    kind = "load and noise wander" if wanders else "every window is drawn anew"
    print(f"{kind}, {num_days:g} days of {num_windows / num_days:.0f} windows:", flush=True)
    dependence = Dependence(PERIOD)
    warned = next((found for score in scores if (found := dependence.step(score)) is not None), None)
    print(f"  a watch {f'warns: {warned[0]:.2f} until {warned[1]:g} s' if warned else 'does not warn'}")
    for apart in (*APART, *([warned[1]] if warned else [])):
        rule = AlarmRule(normals, PROMISE, PERIOD, PERIOD, independent_after=apart)
        changes = [rule.step(score, PERIOD * index).change for index, score in enumerate(scores)]
        told = f"{changes.count('begin')} alarms ({num_days * DAY / PROMISE:g} promised)"
        print(f"  independent after {apart:g} s: {told}", flush=True)
    for name, count in crossings.items():
        print(f"  a threshold at {name} is crossed {count / num_days:.1f} times a day")
    _print_delays(plant, bank, normals, lines)
    print(f"  {(time.process_time() - began) / 60:.1f} CPU minutes", flush=True)


def _print_delays(plant: Plant, bank: MemoryBank, normals: list[float], lines: dict[str, float]) -> None:
    """Print how long faults of three severities last until there is an alarm, or a score above a threshold."""
    first, num_faulty = round(NORMAL_BEFORE / PERIOD), round(LONGEST_DELAY / PERIOD)
    for whine_db in WHINES_DB:
        delays: dict[float, list[float]] = {apart: [] for apart in APART}
        crossed: dict[str, list[float]] = {name: [] for name in lines}
        for trial in range(NUM_TRIALS):
            start = trial * DAY / NUM_TRIALS
            scores = scores_of(bank, plant.windows(start, first), first)
            faulty = plant.windows(start + NORMAL_BEFORE, num_faulty, whine_db)
            scores += scores_of(bank, faulty, num_faulty)
            for apart in APART:
                rule = AlarmRule(normals, PROMISE, PERIOD, PERIOD, independent_after=apart)
                changes = [rule.step(score, PERIOD * index).change for index, score in enumerate(scores)]
                begun = [index - first for index, change in enumerate(changes) if change == "begin" and index >= first]
                delays[apart].append(PERIOD * (begun[0] + 1) if begun else math.inf)
            for name, line in lines.items():
                above = [index for index, score in enumerate(scores[first:]) if score > line]
                crossed[name].append(PERIOD * (above[0] + 1) if above else math.inf)
        for name, found in (delays | crossed).items():
            what = f"above {name}" if isinstance(name, str) else f"alarm, independent after {name:g} s,"
            middle, late = np.quantile(found, [0.5, 0.9], method="higher")
            print(f"  whine {whine_db:g} dB: {what} after {middle:.0f} s (90 %: {late:.0f} s)", flush=True)
