"""Fleet: the recordings of many machines scored on Ray Data, beside as many plain processes with the same work.

    python -m benchmarks.fleet                                       # 1,000 machines x 10 clips of 2 s
    python -m benchmarks.fleet --machines 100 --clips 3 --seconds 10 --model CHECKPOINT
    python -m benchmarks.fleet --in-turn                             # each way alone, by the clock
    python -m benchmarks.fleet --wait 40                             # what Ray takes while its workers wait

All machines share the files of the clips and of the weights; each has a memory file of its own. The two ways run at the
same time, so that whatever else the machine does meets both of them; what counts is CPU seconds, of all processes that
a way started. Speed is measured from the first file of each worker to the last one: the parts are of one size, so that
what lies between is all but the start. The ratio is the median over ten equal shares of the work, with its quartiles.
With `--in-turn` the plain processes run first and then Ray, each with the whole machine, and a second table tells how
many clips they do in a second, with the start and without. That is the throughput of a fleet, if nothing else runs.
Ray's own processes and the command take theirs by the second and not by the clip: `--wait` measures what they take
while the workers only wait, in shares of a processor. CPU seconds and memory are read from /proc twice a second. The
output is Markdown.
"""

import argparse
import contextlib
import csv
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import soundfile
from transformers.utils import logging

from na_ssl_hf.checkpoints.scorers import load_scorer
from na_ssl_hf.fleet.engines import run_on_ray
from na_ssl_hf.fleet.machines import Machine, read_machines
from na_ssl_hf.fleet.parts import Part, PartReport
from na_ssl_hf.fleet.running import Engine, score_fleet
from na_ssl_hf.fleet.workers import ScoreWork
from na_ssl_hf.hub.fbank import SAMPLING_RATE

from .measuring import parser_of

SAMPLE_SEC = 0.5
PART_SIZE = 50
NUM_NORMAL = 50
NUM_SHARES = 10
# Ray's workers, as their command lines tell them.
RAY_WORKER = "MapWorker"


class Seen(NamedTuple):
    """What was seen of the processes of a way at a moment: CPU seconds until then, and megabytes of the largest worker.

    Attributes:
        time: when.
        workers: CPU seconds of those that score.
        command: of the process that was started, where it does not score itself.
        others: of all else, which is Ray.
        megabytes: resident, of the largest worker.
    """

    time: float
    workers: float
    command: float
    others: float
    megabytes: float

    @property
    def everything(self) -> float:
        """CPU seconds of all processes."""
        return self.workers + self.command + self.others


class Watcher(threading.Thread):
    """Looks at processes and all that they started, until it is stopped.

    Args:
        roots: the processes.
        worker_name: what the command lines of their workers hold; `None` where they score themselves.
    """

    def __init__(self, roots: list[int], worker_name: str | None):
        super().__init__(daemon=True)
        self.seen: list[Seen] = []
        self._roots, self._worker_name = roots, worker_name
        self._stopped = threading.Event()

    def run(self) -> None:
        # What has ended keeps the seconds that it was last seen with.
        cpu: dict[tuple[int, float], tuple[str, float]] = {}
        while not self._stopped.wait(SAMPLE_SEC):
            largest = 0.0
            for process in self._processes():
                try:
                    with process.oneshot():
                        key, times = (process.pid, process.create_time()), process.cpu_times()
                        kind = self._kind(process)
                        if kind == "workers":
                            largest = max(largest, process.memory_info().rss / 1e6)
                except psutil.Error:
                    continue
                cpu[key] = kind, times.user + times.system
            sums = {kind: sum(own for other, own in cpu.values() if other == kind) for kind in Seen._fields[1:4]}
            self.seen.append(Seen(time.time(), **sums, megabytes=largest))

    def _processes(self) -> list[psutil.Process]:
        found = []
        for pid in self._roots:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                found += [root, *root.children(recursive=True)]
        return found

    def _kind(self, process: psutil.Process) -> str:
        is_root = process.pid in self._roots
        if self._worker_name is None or self._worker_name in " ".join(process.cmdline()):
            return "workers"
        return "command" if is_root else "others"

    def stop(self) -> list[Seen]:
        self._stopped.set()
        self.join()
        return self.seen


def main() -> None:
    parser = parser_of(__doc__, "fleet")
    parser.add_argument("--machines", type=int, default=1000, help="number of machines (default: 1000)")
    parser.add_argument("--clips", type=int, default=10, help="recordings of each (default: 10)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a recording (default: 2)")
    parser.add_argument("--model", default="na-beats-tiny", help="checkpoint (default: na-beats-tiny)")
    parser.add_argument("--workers", type=int, default=2, help="number of workers of each way (default: 2)")
    parser.add_argument("--in-turn", action="store_true", help="run one way after the other instead of both at once")
    parser.add_argument("--wait", type=int, metavar="S", help="seconds that the workers wait instead of scoring")
    options = parser.parse_args()
    logging.disable_progress_bar()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as polite as the plain processes
    if options.wait is not None:
        print_waiting(options.wait, options.workers)
        return
    print(f"{options.machines} machines x {options.clips} clips of {options.seconds:g} s, {options.model}, ", end="")
    print(f"{options.workers} workers of one thread\n")
    print("| way | start, CPU s | then CPU ms a clip: workers | command | Ray itself | all | MB at 10 % | at the end |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        machines = make_machines(Path(folder), options)
        costs = run_ways(machines, Path(folder), options)
    low, ratio, high = np.quantile(costs["Ray"] / costs["plain processes"], [0.25, 0.5, 0.75])
    print(f"\nRay / plain processes: {ratio:.3f} ({low:.3f} to {high:.3f})")


class Waiting:
    """Work in which a part is a second of waiting."""

    out, device = os.path.join(tempfile.gettempdir(), "fleet-waiting"), "cpu"

    def worker(self) -> Callable[[Part], PartReport]:
        def wait(part: Part) -> PartReport:
            time.sleep(1.0)
            return PartReport(part.name, num_done=1)

        return wait


def wait_on_ray(num_seconds: int, num_workers: int, moments: Connection) -> None:
    """Have Ray's workers wait; send when the last of them had begun, and when all had ended."""
    parts = [Part(f"part-{index}.parquet", ()) for index in range((2 + num_seconds) * num_workers)]
    times = [time.time() for _ in run_on_ray(parts, Waiting(), num_workers, None)]  # type: ignore[arg-type]
    moments.send((times[2 * num_workers - 1], times[-num_workers]))
    shutil.rmtree(Waiting.out, ignore_errors=True)  # where the workers count their attempts


def print_waiting(num_seconds: int, num_workers: int) -> None:
    """Print the share of a processor that everything takes while the workers wait."""
    from benchmarks.fleet import wait_on_ray as of_module  # whose `Waiting` Ray's workers find, unlike that of a script

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=of_module, args=(num_seconds, num_workers, sender))
    process.start()
    assert process.pid is not None
    watcher = Watcher([process.pid], RAY_WORKER)
    watcher.start()
    process.join()
    seen = watcher.stop()
    if process.exitcode:
        raise RuntimeError(f"Ray ended with {process.exitcode}, see above")
    first, last = (_at(seen, moment) for moment in receiver.recv())
    seconds = last.time - first.time
    shares = [100 * (getattr(last, kind) - getattr(first, kind)) / seconds for kind in Seen._fields[1:4]]
    print("| for | workers | command | Ray itself | all |")
    print("| --: | --: | --: | --: | --: |")
    print(f"| {seconds:.0f} s | {' | '.join(f'{share:.1f} %' for share in (*shares, sum(shares)))} |")


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


def run_ways(machines: list[Machine], folder: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Score all machines in both ways and print what each took; CPU ms a clip in each share of the work."""
    context = multiprocessing.get_context("spawn")
    num_workers, num_clips = options.workers, options.machines * options.clips
    outs = {"plain processes": folder / "plain", "Ray": folder / "ray"}
    shares = [machines[index::num_workers] for index in range(num_workers)]
    processes = {
        "plain processes": [
            context.Process(target=score_here, args=(share, str(outs["plain processes"] / str(index))))
            for index, share in enumerate(shares)
        ],
        "Ray": [context.Process(target=score_on_ray, args=(machines, str(outs["Ray"]), num_workers))],
    }
    runs: dict[str, Run] = {}
    for group in [{way: own} for way, own in processes.items()] if options.in_turn else [processes]:
        runs |= run_at_once(group)
    costs = {way: print_row(way, run.seen, outs[way], num_workers, num_clips) for way, run in runs.items()}
    if options.in_turn:
        print("\n| way | clips a second | with the start |\n| :-- | --: | --: |")
        speeds = [print_speed(way, run, outs[way], num_workers, num_clips) for way, run in runs.items()]
        without_start, whole = (ray / plain for plain, ray in zip(*speeds, strict=True))
        print(f"| Ray / plain processes | {without_start:.3f} | {whole:.3f} |")
    return costs


class Run(NamedTuple):
    """A way that has ended.

    Attributes:
        begin: when its processes were started.
        seen: what was seen of them.
    """

    begin: float
    seen: list[Seen]


def run_at_once(processes: dict[str, list[SpawnProcess]]) -> dict[str, Run]:
    """Run the processes of ways at the same time, and watch them."""
    begin, watchers = time.time(), {}
    for way, own in processes.items():
        for process in own:
            process.start()
        pids = [process.pid for process in own if process.pid is not None]
        watchers[way] = Watcher(pids, RAY_WORKER if way == "Ray" else None)
        watchers[way].start()
    for process in (process for own in processes.values() for process in own):
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a way ended with {process.exitcode}, see above")
    return {way: Run(begin, watcher.stop()) for way, watcher in watchers.items()}


def print_speed(way: str, run: Run, out: Path, num_workers: int, num_clips: int) -> tuple[float, float]:
    """Print and return the clips that a way did in a second, after its start and from the very beginning."""
    ends = _ends(out)
    after_start = num_clips / len(ends) * (len(ends) - num_workers) / (ends[-1] - ends[num_workers - 1])
    whole = num_clips / (ends[-1] - run.begin)
    print(f"| {way} | {after_start:.2f} | {whole:.2f} |", flush=True)
    return after_start, whole


def _ends(out: Path) -> list[float]:
    """When the files of a way were finished, in order."""
    return sorted(path.stat().st_mtime for path in out.rglob("*.parquet"))


def print_row(way: str, seen: list[Seen], out: Path, num_workers: int, num_clips: int) -> np.ndarray:
    """Print what a way took; return its CPU ms a clip in each share of the work."""
    ends = _ends(out)
    # The first file of each worker ends the start; every other file is as much work as another.
    counted = ends[num_workers - 1 :]
    clips_a_file = num_clips / len(ends)
    places = np.linspace(0, len(counted) - 1, NUM_SHARES + 1).round().astype(int)
    states = [_at(seen, counted[place]) for place in places]
    first, last = states[0], states[-1]
    num_counted = clips_a_file * (len(counted) - 1)
    parts = [1000 * (getattr(last, kind) - getattr(first, kind)) / num_counted for kind in Seen._fields[1:4]]
    cells = [f"{first.everything:.1f}", *(f"{part:.2f}" for part in (*parts, sum(parts)))]
    cells += [f"{states[1].megabytes:.0f}", f"{last.megabytes:.0f}"]
    print(f"| {way} | {' | '.join(cells)} |", flush=True)
    everything = np.diff([state.everything for state in states])
    return 1000 * everything / (clips_a_file * np.diff(places))


def _at(seen: list[Seen], moment: float) -> Seen:
    """What was seen at a moment, between the looks before and after it; of the memory, before it."""
    times = [state.time for state in seen]
    workers, command, others = (
        float(np.interp(moment, times, [getattr(state, kind) for state in seen])) for kind in Seen._fields[1:4]
    )
    # A look after the last file may find no worker any more.
    before = max(int(np.searchsorted(times, moment, side="right")) - 1, 0)
    return Seen(moment, workers, command, others, seen[before].megabytes)


def score_on_ray(machines: list[Machine], out: str, num_workers: int) -> None:
    """Score machines by Ray's workers."""
    logging.disable_progress_bar()
    score_fleet(machines, ScoreWork(out), Engine("ray", num_workers), PART_SIZE)


def score_here(machines: list[Machine], out: str) -> None:
    """Score machines in this process, with parts as Ray's."""
    logging.disable_progress_bar()
    score_fleet(machines, ScoreWork(out), Engine("local"), PART_SIZE)


if __name__ == "__main__":
    main()
