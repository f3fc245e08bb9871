"""Fleet: the recordings of many machines scored on Ray Data, beside as many plain processes with the same work.

    python -m benchmarks.fleet                                       # 1,000 machines x 10 clips of 2 s
    python -m benchmarks.fleet --machines 100 --clips 3 --seconds 10 --model CHECKPOINT

All machines share the files of the clips and of the weights; each has a memory file of its own. The two ways run one
after the other, each with its own start. Speed is measured from the first file of each worker to the last one: the
parts are of one size, so that what lies between is all but the start. CPU seconds and memory are read from /proc twice
a second, of this process and of all that the run started. The output is Markdown.
"""

import argparse
import csv
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import soundfile
from transformers.utils import logging

from na_ssl_hf.checkpoints.scorers import load_scorer
from na_ssl_hf.fleet.machines import Machine, read_machines
from na_ssl_hf.fleet.running import Engine, score_fleet
from na_ssl_hf.fleet.workers import ScoreWork
from na_ssl_hf.hub.fbank import SAMPLING_RATE

from .measuring import parser_of

SAMPLE_SEC = 0.5
PART_SIZE = 50
NUM_NORMAL = 50
# Each way's workers are told from other processes by what their command lines hold.
WORKER_NAMES = {"ray": "MapWorker", "processes": "spawn_main"}


@dataclass
class Watched:
    """What was seen of the processes of a run.

    Attributes:
        samples: of each moment its time, the CPU seconds of the workers and of everything until then, and the resident
            megabytes of the largest worker.
    """

    samples: list[tuple[float, float, float, float]] = field(default_factory=list)

    def at(self, moment: float) -> tuple[float, float, float]:
        """CPU seconds of the workers and of everything, and megabytes, at a moment or just before."""
        return next((rest for when, *rest in reversed(self.samples) if when <= moment), self.samples[0][1:])


class Watcher(threading.Thread):
    """Looks at all processes that this one started, until it is stopped."""

    def __init__(self, worker_name: str):
        super().__init__(daemon=True)
        self.watched = Watched()
        self._worker_name = worker_name
        self._stopped = threading.Event()

    def run(self) -> None:
        cpu: dict[tuple[int, float], float] = {}
        workers: dict[tuple[int, float], float] = {}
        this = psutil.Process()
        before = sum(this.cpu_times()[:2])
        while not self._stopped.wait(SAMPLE_SEC):
            largest = 0.0
            for process in this.children(recursive=True):
                try:
                    with process.oneshot():
                        key, times = (process.pid, process.create_time()), process.cpu_times()
                        is_worker = self._worker_name in " ".join(process.cmdline())
                        resident = process.memory_info().rss / 1e6
                except psutil.Error:
                    continue
                cpu[key] = times.user + times.system
                if is_worker:
                    workers[key] = times.user + times.system
                    largest = max(largest, resident)
            everything = sum(cpu.values()) + sum(this.cpu_times()[:2]) - before
            self.watched.samples.append((time.time(), sum(workers.values()), everything, largest))

    def stop(self) -> Watched:
        self._stopped.set()
        self.join()
        return self.watched


def main() -> None:
    parser = parser_of(__doc__, "fleet")
    parser.add_argument("--machines", type=int, default=1000, help="number of machines (default: 1000)")
    parser.add_argument("--clips", type=int, default=10, help="recordings of each (default: 10)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a recording (default: 2)")
    parser.add_argument("--model", default="na-beats-tiny", help="checkpoint (default: na-beats-tiny)")
    parser.add_argument("--workers", type=int, default=2, help="number of workers (default: 2)")
    parser.add_argument("--way", nargs="+", choices=list(WORKER_NAMES), default=list(WORKER_NAMES), help="ways to run")
    options = parser.parse_args()
    logging.disable_progress_bar()
    num_clips = options.machines * options.clips
    print(f"{options.machines} machines x {options.clips} clips of {options.seconds:g} s, {options.model}, ", end="")
    print(f"{options.workers} workers of one thread\n")
    print("| way | start, s | CPU s | then clips/s | CPU ms a clip, workers | everything | MB at 10 % | at the end |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        machines = make_machines(Path(folder), options)
        for way in options.way:
            print_row(way, machines, Path(folder) / way, options.workers, num_clips)


def make_machines(folder: Path, options: argparse.Namespace) -> list[Machine]:
    """Write recordings, and one fitted scorer under the name of every machine."""
    rng = np.random.default_rng(0)
    num_samples = int(options.seconds * SAMPLING_RATE)
    for index in range(NUM_NORMAL + options.clips):
        path = folder / ("normal" if index < NUM_NORMAL else "today") / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.05 * rng.standard_normal((num_samples, 2)), SAMPLING_RATE)
    scorer = load_scorer(options.model, "cpu")
    scorer.fit([str(path) for path in sorted((folder / "normal").iterdir())], progress=None)
    scorer.save_pretrained(folder / "scorer")
    with (folder / "machines.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("machine", "scorer", "recordings"))
        for index in range(options.machines):
            own = folder / "scorers" / str(index)
            shutil.copytree(folder / "scorer", own, copy_function=link_weights)
            table.writerow((str(index), str(own), "today"))
    return read_machines(folder / "machines.csv")


def link_weights(source: str, target: str) -> None:
    """Give a file another name where it is the model's, and copy it otherwise."""
    if os.path.basename(source).startswith("model"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def print_row(way: str, machines: list[Machine], out: Path, num_workers: int, num_clips: int) -> None:
    """Score all machines in one way and print what it took."""
    watcher = Watcher(WORKER_NAMES[way])
    began = time.time()
    watcher.start()
    if way == "ray":
        score_fleet(machines, ScoreWork(str(out)), Engine("ray", num_workers), PART_SIZE)
    else:
        context = multiprocessing.get_context("spawn")
        shares = [(machines[index::num_workers], str(out / str(index))) for index in range(num_workers)]
        processes = [context.Process(target=score_here, args=share) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    watched = watcher.stop()
    ends = sorted(path.stat().st_mtime for path in out.rglob("*.parquet"))
    start, end = ends[num_workers - 1], ends[-1]
    counted = num_clips * (len(ends) - num_workers) / len(ends)
    (workers_then, all_then, _), (workers, everything, at_end) = watched.at(start), watched.at(end)
    at_tenth = watched.at(start + 0.1 * (end - start))[-1]
    cells = [f"{start - began:.0f}", f"{all_then:.1f}", f"{counted / (end - start):.1f}"]
    cells += [f"{1000 * (cpu - then) / counted:.1f}" for cpu, then in ((workers, workers_then), (everything, all_then))]
    print(f"| {way} | {' | '.join([*cells, f'{at_tenth:.0f}', f'{at_end:.0f}'])} |", flush=True)


def score_here(machines: list[Machine], out: str) -> None:
    """Score machines in this process, with parts as Ray's."""
    logging.disable_progress_bar()
    score_fleet(machines, ScoreWork(out), Engine("local"), PART_SIZE)


if __name__ == "__main__":
    main()
