"""The benchmarks start from the repository's root, and rows that take seconds are measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("rescaling", [None, "ratio"])
def test_false_alarms_are_those_stated_in_fitted_rooms_and_with_groups_fewer_in_new_ones(rescaling, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.false_alarms import Sizes, alarms_of_machine
    from na_ssl_hf import MemoryBank

    sizes = Sizes(num_rooms=20, num_clips=6, num_fitted=4, num_splits=10)
    random = torch.Generator().manual_seed(0)
    rooms = torch.randn(sizes.num_rooms, 1, 1, 16, generator=random)
    vectors = (rooms + 0.5 * torch.randn(sizes.num_rooms, sizes.num_clips, 1, 16, generator=random)).flatten(0, 1)
    alarms = alarms_of_machine(vectors, lambda: MemoryBank(rescaling=rescaling), sizes)
    assert alarms.same < 0.12
    assert alarms.new > 0.5
    assert alarms.new_groups < 0.3
    assert alarms.same_golden <= alarms.same


def test_an_unknown_item_is_an_error_that_names_the_known_ones():
    run = benchmarks("--only", "nothing")
    assert run.returncode == 2
    assert "na-beats-training" in run.stderr
    assert "got nothing" in run.stderr
