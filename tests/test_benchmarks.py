"""The benchmarks start from the repository's root, and rows that take seconds are measured."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def benchmarks(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_quick_rows_are_measured():
    run = benchmarks("--only", "tiny", "rooms", "--json")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert [row["unit"] for row in rows] == ["s", "ms"]
    assert all(row["ours"] > 0 for row in rows)


def test_an_unknown_item_is_an_error_that_names_the_known_ones():
    run = benchmarks("--only", "nothing")
    assert run.returncode == 2
    assert "na-beats-training" in run.stderr
    assert "got nothing" in run.stderr
