from pathlib import Path

import pytest

from na_ssl_hf.simulation import write_dcase_benchmark


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory) -> Path:
    """A DCASE-shaped data set of three machines (the valve without attributes), 15 + 16 clips of 1.5 s each."""
    root = tmp_path_factory.mktemp("benchmark") / "data"
    return write_dcase_benchmark(root, "smoke", seed=3, machines=("fan", "gearbox", "valve"), show_progress=False)
