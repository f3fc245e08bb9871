"""What `na-ssl watch` promises: false alarms, delays, faults of microphones that are found, and time.

    python -m benchmarks.watch rule --machines 4      # 30 simulated days of normals, and faults of three severities
    python -m benchmarks.watch promise --days 30      # the same with scores of synthetic sound
    python -m benchmarks.watch health --sites 143     # 1,001 faults of microphones at simulated installations
    python -m benchmarks.watch speed                  # CPU seconds of the tiny model for each second of sound
    python -m benchmarks.watch soak --days 6          # memory, files, threads and sizes, day by simulated day

Scores of the first part are drawn, not heard: windows that overlap share their parts. The rooms of `health` are impulse
responses of decaying noise.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import fftconvolve, lfilter

from na_ssl_hf import AnomalyScorer
from na_ssl_hf.hub.feature_extraction_two_channel import OddityReport
from na_ssl_hf.hub.input_level import LevelRange
from na_ssl_hf.watch.alarm_rule import DAY, AlarmRule
from na_ssl_hf.watch.sensor_health import SensorHealth

from .watch_promise import measure_promise
from .watch_soak import measure_soak

RATE = 16000
WINDOW = 10.0
NUM_NORMALS = 50
PROMISE = 30 * DAY
# Shifts of the score in standard deviations of the normal ones.
SEVERITIES = (1.5, 3.0, 6.0)


def scores_of(generator: np.random.Generator, num_windows: int, hop: float) -> np.ndarray:
    """Draw the scores `(num_windows,)` of windows, of which those that overlap have parts in common."""
    num_parts = round(WINDOW / hop)
    parts = generator.standard_normal(num_windows + num_parts - 1)
    return np.convolve(parts, np.ones(num_parts), "valid") / num_parts**0.5


def measure_rule(num_machines: int, num_days: float) -> None:
    """Print alarms in normal sound and delays of faults, beside a threshold on every window."""
    for hop in (WINDOW, WINDOW / 4):
        alarms = watches = crossings = 0
        delays: dict[float, list[float]] = {severity: [] for severity in SEVERITIES}
        for machine in range(num_machines):
            generator = np.random.default_rng([machine, round(10 * hop)])
            normals = generator.standard_normal(NUM_NORMALS)
            threshold = np.sort(normals)[-2]  # conformal, 5 % at 50 normals
            rule = AlarmRule(normals.tolist(), PROMISE, WINDOW, hop)
            before = "ok"
            scores = scores_of(generator, round(num_days * DAY / hop), hop)
            is_above = scores > threshold
            crossings += int((is_above[1:] & ~is_above[:-1]).sum())
            for index, score in enumerate(scores.tolist()):
                decision = rule.step(score, hop * index)
                alarms += decision.change == "begin"
                watches += decision.state == "watch" and before == "ok"
                before = decision.state
            for severity in SEVERITIES:
                for trial in range(10):
                    faulty = np.random.default_rng([machine, trial])
                    rule = AlarmRule(faulty.standard_normal(NUM_NORMALS).tolist(), PROMISE, WINDOW, hop)
                    start = round(3600 / hop)
                    scores = scores_of(faulty, 3 * start, hop)
                    scores[start:] += severity
                    changes = [rule.step(score, hop * index).change for index, score in enumerate(scores.tolist())]
                    begun = [index for index, change in enumerate(changes) if change == "begin" and index >= start]
                    delays[severity].append(hop * (begun[0] - start) if begun else np.inf)
        days = num_machines * num_days
        print(f"hop {hop:g} s, {days:g} days: {alarms} alarms ({days * DAY / PROMISE:g} promised), {watches} watches;")
        print(f"  a threshold at 5 % is crossed {crossings / days:.0f} times a day")
        for severity, found in delays.items():
            late = np.quantile(found, 0.9)
            print(f"  fault of {severity:g} deviations: alarm after {np.median(found):.0f} s (90 %: {late:.0f} s)")


class Site:
    """A machine and noise in a room that two microphones hear."""

    def __init__(self, seed: int):
        draw = self.draw = np.random.default_rng(seed)
        self.close = self._response(5, 1.0)
        self.far = self._response(int(draw.integers(60, 200)), 10 ** (-draw.uniform(8, 20) / 20))
        self.noise = [self._response(int(draw.integers(20, 200)), draw.uniform(*at)) for at in ((0.2, 0.6), (0.5, 1))]
        self.pitch, self.lines = draw.uniform(20, 120), draw.uniform(0.02, 1, 12) / np.arange(1, 13) ** 0.5
        self.colors = draw.uniform(-0.9, 0.9), draw.uniform(-0.5, 0.95)
        self.gain = 10 ** (draw.uniform(-38, -18) / 20)
        self.snr_db = draw.uniform(-5, 5), draw.uniform(6, 15)

    def _response(self, delay: int, direct: float) -> np.ndarray:
        decay = RATE * self.draw.uniform(0.03, 0.08)
        response = self.draw.standard_normal(4000) * np.exp(-np.arange(4000) / decay) * 0.05
        response[:delay] = 0
        response[delay] += direct
        return response

    def window(self, seed: int, seconds: float = 5.0, whine: float = 0.0, beside: bool = False) -> np.ndarray:
        """Return `(2, N)` float32; with a whine of the machine, or with the far microphone beside the machine."""
        draw = np.random.default_rng([seed, 7])
        num_samples = int(seconds * RATE) + 4000
        at = np.arange(num_samples) / RATE
        pitch = self.pitch * (1 + 0.01 * draw.standard_normal())
        lines = [
            amplitude * np.sin(2 * np.pi * pitch * (index + 1) * at + draw.uniform(0, 6))
            for index, amplitude in enumerate(self.lines)
        ]
        broad = lfilter([1], [1, -self.colors[0]], draw.standard_normal(num_samples))
        machine = np.sum(lines, axis=0) / np.std(np.sum(lines, axis=0)) + 0.7 * broad / broad.std()
        machine = machine * 10 ** (draw.uniform(-1, 1) / 20) + whine * np.sin(2 * np.pi * 17.3 * self.pitch * at)
        noise = lfilter([1], [1, -self.colors[1]], draw.standard_normal(num_samples))
        noise *= 10 ** (-draw.uniform(*self.snr_db) / 20) / noise.std()
        paths = (np.roll(self.close, 40) * 0.6, self.close * 1.5) if beside else (self.close, self.far)
        both = [
            fftconvolve(machine, to_machine)[4000:num_samples] + fftconvolve(noise, to_noise)[4000:num_samples]
            for to_machine, to_noise in zip(paths, self.noise, strict=True)
        ]
        samples = self.gain * np.stack(both)
        return (samples + 1e-5 * draw.standard_normal(samples.shape)).astype(np.float32)


def broken(samples: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """Return what is left of `(2, N)` samples when one microphone, or both, are broken in a way."""
    samples, channel = samples.copy(), int(draw.integers(2))
    own = samples[channel]
    at = np.arange(len(own)) / RATE
    if kind == "dead":
        own[:] = 0
    elif kind == "clipped":
        own[:] = own / np.quantile(np.abs(own), 0.97)
    elif kind == "disconnected":
        own[:] = 1e-4 * 10 ** (-draw.uniform(0, 10) / 20) * draw.standard_normal(len(own))
    elif kind == "humming":
        hum = np.sum([np.sin(2 * np.pi * 50 * line * at + line) / line for line in range(1, 7)], axis=0)
        own += draw.uniform(1.5, 5) * own.std() / hum.std() * hum
    elif kind == "level-shifted":
        samples[[[0], [1], [0, 1]][int(draw.integers(3))]] *= 10 ** (draw.choice([-10, 10]) / 20)
    elif kind == "swapped":
        samples = samples[::-1].copy()
    return samples.clip(-1, 1)


KINDS = ("dead", "clipped", "swapped", "disconnected", "humming", "level-shifted")


def measure_health(num_sites: int, num_normals: int, far_gain_db: float = 0.0) -> None:
    """Print, for each kind of fault, how many are found within four windows, the false ones, and which are missed.

    Args:
        num_sites: installations, with one case of each kind.
        num_normals: recordings that each scorer has learned from.
        far_gain_db: by how much the far microphone is set louder than the close one everywhere.
    """
    sound = ("normal", "fault of the machine")
    told: dict[str, list[int]] = {kind: [] for kind in (*KINDS, "beside the machine", *sound)}
    # The close one is set quieter, so that nothing is clipped.
    gains = np.array([[10 ** (-far_gain_db / 20)], [1.0]], np.float32)
    for number in range(num_sites):
        site, levels, oddities = Site(number), LevelRange(RATE), OddityReport(RATE)
        for index in range(num_normals):
            window = torch.from_numpy(gains * site.window(index))[None]
            levels.note([""], window)
            oddities.note([""], window)
        levels.far_leads = oddities.swapped_share
        for place, kind in enumerate(told):
            health = SensorHealth(levels.microphones, RATE)
            for index in range(4):
                seed = 1000 + 10 * number + index
                whine = 0.7 if kind == "fault of the machine" else 0.0
                samples = gains * site.window(seed, whine=whine, beside=kind == "beside the machine")
                if kind in KINDS:
                    samples = broken(samples, kind, np.random.default_rng([number, place]))
                found = health.step(samples.clip(-1, 1))
            if found.fault is not None:
                told[kind].append(number)
    for kind, sites in told.items():
        wrong = sites if kind in sound else sorted(set(range(num_sites)) - set(sites))
        line = f"; {'false' if kind in sound else 'missed'} at the sites {wrong}" if wrong else ""
        print(f"{kind}: {len(sites)} of {num_sites} told as a fault of a microphone{line}")


def measure_speed() -> None:
    """Print the CPU seconds of sound at a window of 10 s every 2.5 s, and the share of what windows repeat."""
    from transformers import pipeline

    from na_ssl_hf.checkpoints import resolve_checkpoint
    from na_ssl_hf.watch.monitor import Monitor, MonitorSettings
    from na_ssl_hf.watch.sources import Block

    torch.set_num_threads(1)
    site = Site(0)
    normals = [site.window(index, 10.0) for index in range(20)]

    class Sound:
        name, is_live = "simulated", False

        def blocks(self):
            samples = site.window(99, 110.0)
            for start in range(0, samples.shape[1], RATE // 4):
                yield Block(samples[:, start : start + RATE // 4], RATE, begins=start == 0)

        def close(self):
            pass

    for canceller in (None, "spectral_subtraction", "installation"):
        scorer = pipeline("anomaly-scoring", model=resolve_checkpoint("na-beats-tiny"), device="cpu")
        scorer.fit(normals, far_cancellation=canceller, progress=None)
        Monitor(scorer, Sound(), MonitorSettings()).run()  # warm
        began = time.process_time()
        counts = Monitor(scorer, Sound(), MonitorSettings()).run()
        used = time.process_time() - began
        each = used / counts.windows
        print(f"canceller {canceller}: {counts.windows} windows, {each:.3f} CPU s each, {used / 110:.3f} of a core")
        shares = " and ".join(f"{name} {seconds / each:.0%}" for name, seconds in repeated(scorer, normals[0]).items())
        print(f"  of which {shares}: three quarters of it for sound that the window before held, too")


def repeated(scorer: AnomalyScorer, samples: np.ndarray) -> dict[str, float]:
    """Return the CPU seconds of what streaming could keep from one window `(2, N)` to the next."""
    front_end, far_microphone = scorer.feature_extractor.front_end, scorer.far_microphone
    waves = torch.from_numpy(samples)[None]  # (1, 2, N)
    cancel = front_end.cancel if far_microphone is None else far_microphone.cancel
    return {
        "canceller": cpu_seconds(lambda: cancel(waves)),
        "log-mel frames": cpu_seconds(lambda: front_end.fbank(waves)),
    }


def cpu_seconds(act: Callable[[], object], num_times: int = 20) -> float:
    """Return the median of the CPU seconds of a call."""
    times = []
    for _ in range(num_times):
        began = time.process_time()
        act()
        times.append(time.process_time() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rule", "health", "speed", "soak", "promise"))
    parser.add_argument("--machines", type=int, default=4, help="simulated machines of the rule (default: 4)")
    parser.add_argument("--days", type=float, default=30.0, help="simulated days (default: 30)")
    parser.add_argument("--sites", type=int, default=143, help="simulated installations (default: 143)")
    parser.add_argument("--normals", type=int, default=24, help="normal recordings of each (default: 24)")
    parser.add_argument("--far-gain", type=float, default=0.0, help="dB that far ones are set louder (default: 0)")
    options = parser.parse_args()
    if options.part == "rule":
        measure_rule(options.machines, options.days)
    elif options.part == "health":
        measure_health(options.sites, options.normals, options.far_gain)
    elif options.part == "soak":
        measure_soak(options.days)
    elif options.part == "promise":
        measure_promise(options.days)
    else:
        measure_speed()


if __name__ == "__main__":
    main()
