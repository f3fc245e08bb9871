"""Where parts are worked on: by actors of Ray, or by this process and those that were launched with it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.systems.processes import Processes
from .parts import ATTEMPTS_SUFFIX, Part, PartReport
from .workers import FitWork, ScoreWork, Worker

# A part whose worker dies so often, as it does where a file takes all memory, is given up. Ray itself would go on.
MOST_ATTEMPTS = 4
# Ray waits 30 s for its processes.
START_ATTEMPTS = 3
# Where nobody listens, Ray would wait for minutes.
REACH_SEC = 10.0
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Nobody reads these figures, and every process of Ray would gather them: half of what its server takes.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
# Parts and reports are short texts.
OBJECT_STORE_BYTES = 256_000_000


def run_here(parts: Sequence[Part], work: ScoreWork | FitWork, processes: Processes) -> Iterator[PartReport]:
    """Work on the parts of this process, one after the other; an OSError says that there is no place for them."""
    own = processes.share(parts)
    if own:
        os.makedirs(work.out, exist_ok=True)  # before hours of work that could not be written
        worker = work.worker()
        for part in own:
            yield worker(part)


class RayWorker:
    """What an actor of Ray Data does with a batch, which is one part."""

    def __init__(self, work: ScoreWork | FitWork):
        self._out = Path(work.out)
        self._worker: Worker = work.worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        reports = [self._report(Part.from_json(str(text))) for text in batch["part"]]
        return {"report": [json.dumps(asdict(report)) for report in reports]}

    def _report(self, part: Part) -> PartReport:
        """Do a part, unless too many workers died of it, which its file of attempts tells."""
        attempts = self._out / f".{part.name}{ATTEMPTS_SUFFIX}"
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with open(attempts, "ab") as file:
                file.write(b".")
                num_attempts = file.tell()
        except OSError as error:
            return PartReport(part.name, failure=f"{type(error).__name__}: {error}")
        if num_attempts > MOST_ATTEMPTS:
            report = PartReport(part.name, failure=f"its worker died {MOST_ATTEMPTS} times")
        else:
            report = self._worker(part)
        attempts.unlink(missing_ok=True)
        return report


def run_on_ray(
    parts: Sequence[Part], work: ScoreWork | FitWork, num_workers: int | None, address: str | None
) -> Iterator[PartReport]:
    """Work on parts by actors of Ray Data, which hold their scorers; parts come back as they are done.

    A part whose actor is killed is done again by another one, up to `MOST_ATTEMPTS` times.

    Args:
        parts: the work.
        work: how it is done.
        num_workers: the number of actors; `None` for one a processor, or one a GPU where `work` has one.
        address: a Ray cluster; `None` starts Ray on this machine for the time of the run, or takes the cluster that
            this process is connected with.

    Raises:
        ValueError: ray is not installed.
        OSError: the cluster cannot be reached, has no processor, or fails.
    """
    with _ray(num_workers, address) as ray:
        on_gpu = str(work.device).startswith("cuda")
        available = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        if not available:
            raise OSError(f"the Ray cluster must have a {'GPU' if on_gpu else 'processor'} for a worker, got none")
        os.makedirs(work.out, exist_ok=True)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1
        # Reading how large a worker is takes 8 ms with torch in it, every second and around every part.
        context.memory_usage_poll_interval_s = None
        # Every part is a block, so that what a killed actor did before is not done again.
        rows = ray.data.from_items([{"part": part.to_json()} for part in parts], override_num_blocks=len(parts))
        reports = rows.map_batches(
            RayWorker,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_workers or available, available, len(parts))),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in reports.iter_rows():
                fields = json.loads(row["report"])
                yield PartReport(**{**fields, "warnings": tuple(fields["warnings"])})
        except ray.exceptions.RayError as error:
            raise OSError(f"Ray could not go on: {' '.join(str(error).split())[-1000:]}") from error


@contextmanager
def _ray(num_workers: int | None, address: str | None) -> Iterator[Any]:
    """Ray, connected; what was started here is stopped at the end."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("a fleet on Ray needs ray: pip install 'na-ssl-hf[fleet]', or --engine local does without")
    if address is not None:
        _check_reachable(address)
    # Set before the import: no reports of the usage to Ray's makers, and none of its inner affairs on the screen.
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized() and address is None:
        yield ray
        return
    started: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "address": address or "local"}
    if address is None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        started |= {
            "num_cpus": num_workers or processors,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    _start(ray, started)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise an OSError where nobody listens at the address of a cluster, if it has the form `[SCHEME://]HOST:PORT`."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SEC).close()
    except (OSError, OverflowError) as error:
        raise not_connected(address, error) from error


def _start(ray: Any, options: dict[str, Any]) -> None:
    """Connect with Ray, or start it; on a busy machine its own processes may be too slow for it the first time."""
    is_local = options["address"] == "local"
    for attempts_left in reversed(range(START_ATTEMPTS if is_local else 1)):
        try:
            with _hidden_stderr():
                ray.init(**options)
            return
        # Ray raises whatever it met, plain exceptions among them.
        except Exception as error:
            ray.shutdown()
            if not attempts_left:
                raise not_connected(options["address"], error) from error


def not_connected(address: str, error: Exception) -> OSError:
    """Say that Ray cannot be started on this machine, or a cluster not be reached, and why."""
    where, reason = f"at {address}", " ".join(str(error).split())
    if address == "local":
        where = "on this machine"
    elif isinstance(error, ConnectionError) and "cluster" in reason:
        reason += " (where the cluster asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH)"
    return OSError(f"no connection to Ray {where}: {reason}")


@contextmanager
def _hidden_stderr() -> Iterator[None]:
    """Hide what the native code of Ray says about its settings while it starts; errors are exceptions all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
