"""Measurements that all benchmarks share: CPU seconds of alternating runs, peak memory, and the rows of the table."""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf.hub.fbank import SAMPLING_RATE

from . import NUM_THREADS

SEED = 0
NUM_SAMPLES = 10 * SAMPLING_RATE
HAS_PROC = Path("/proc/self/status").exists()


@dataclass
class Row:
    """A `Row` is one line of the table.

    Times are CPU seconds unless `unit` says otherwise, and `None` where nothing was measured.
    """

    what: str
    ours: float | None
    straightforward: float | None
    ratio: str
    target: str
    met: bool | None
    unit: str = "s"
    note: str = ""


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks.NAME`, whose help is the description as it is written."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog=f"python -m benchmarks.{name}",
    )


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def auc_of_scores(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Return the share of pairs of a normal and an anomalous score of which the anomalous one is higher; ties halve."""
    return float(np.heaviside(anomalous[:, None] - normal, 0.5).mean())


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(repetitions: int, *ways: Callable[[], object]) -> list[float]:
    """Returns the median CPU seconds of each way over repetitions in which every way runs once."""
    times: list[list[float]] = [[] for _ in ways]
    for repetition in range(repetitions):
        for way, seconds in zip(ways, times, strict=True):
            seconds.append(cpu_seconds(way))
        progress(f"  {repetition + 1}/{repetitions}: " + ", ".join(f"{seconds[-1]:.3f} s" for seconds in times))
    return [statistics.median(seconds) for seconds in times]


def in_its_own_process(measure: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Returns what `measure` returns in a process of its own.

    A process only knows the greatest memory that it ever held, and it gives a big bank back only when it ends.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(measure, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def send_result(measure: Callable[[], tuple[float, ...]], connection: Connection) -> None:
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(SEED)
    logging.disable_progress_bar()
    connection.send(measure())


def peak_megabytes() -> float:
    """Returns the greatest resident memory of this process in megabytes.

    `ru_maxrss` would not tell it, because a process inherits that number from its parent.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def forget_peak() -> float:
    """Makes the resident memory of now the greatest of this process from now on, and returns it in megabytes."""
    if not HAS_PROC:
        return 0.0
    Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def peak_row(what: str, measure: Callable[[], tuple[float, ...]], limit: float) -> list[Row]:
    target = f"< {limit:,.0f} MB"
    if not HAS_PROC:
        return [Row(what, None, None, "-", target, None, note="not measured: needs Linux")]
    (peak,) = in_its_own_process(measure)
    return [Row(what, peak, None, "-", target, peak < limit, unit="MB", note="the whole process")]
