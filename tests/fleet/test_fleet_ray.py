"""`na-ssl fleet` on Ray: the scores of one process, also where a worker is killed in the midst of its work."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from fleet_of_machines import make_fleet, read_rows, run

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
psutil = pytest.importorskip("psutil")

TIMEOUT = 540  # s, only so that a hanging test ends
# Ray's workers are so polite by default that on a busy machine they hardly run at all.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_TMPDIR": "/tmp", "RAY_worker_niceness": "0"}


def descendants(process: subprocess.Popen) -> list:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def workers(process: subprocess.Popen) -> list:
    """The actors of the run that the test started."""
    found = []
    for child in descendants(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "MapWorker" in "".join(child.cmdline()[:1]):
                found.append(child)
    return found


def test_a_killed_worker_loses_nothing(tmp_path):
    fleet = make_fleet(tmp_path / "fleet", num_machines=4, num_clips=12)
    (tmp_path / "fleet/m2/today/0.wav").write_bytes(b"RIFF")
    assert run("fleet", "fit", "--machines", fleet.table, "--out", tmp_path / "fitted", "--engine", "local") == 0
    out = tmp_path / "scores"
    command = ["fleet", "score", "--machines", fleet.table, "--out", out, "--workers", "2", "--part-size", "1"]
    command += ["--batch-size", "1"]
    started = subprocess.Popen(
        [sys.executable, "-m", "na_ssl_hf.cli", *map(str, command)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: list = []
    try:
        end = time.monotonic() + TIMEOUT
        while not list(out.glob("*.parquet")):
            assert started.poll() is None, started.communicate()[1][-3000:]
            assert time.monotonic() < end
            time.sleep(0.01)
        seen = descendants(started)
        victim = workers(started)[0]
        os.kill(victim.pid, signal.SIGKILL)
        num_parts_then = len(list(out.glob("*.parquet")))
        printed, told = started.communicate(timeout=TIMEOUT)
    finally:
        started.kill()
    assert num_parts_then < 48
    assert started.returncode == 1, told[-3000:]
    assert "47 recordings of 4 machines" in printed
    assert "1 recordings could not be scored, the first of them: " in told
    assert "parts are missing" not in told
    assert "Traceback" not in told
    assert [path.name for path in out.iterdir() if path.suffix != ".parquet"] == []

    local = ("fleet", "score", "--machines", fleet.table, "--out", tmp_path / "local", "--engine", "local")
    assert run(*local, "--batch-size", 1) == 1
    rows = sorted(read_rows(out), key=lambda row: (row["machine"], row["file"]))
    assert len(rows) == 48
    assert rows == sorted(read_rows(tmp_path / "local"), key=lambda row: (row["machine"], row["file"]))
    # Ray is gone, with all that it started.
    psutil.wait_procs(seen, timeout=60)
    assert [process for process in seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
