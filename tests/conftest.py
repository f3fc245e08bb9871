import logging as std_logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from na_ssl_hf.simulation import write_dcase_benchmark

# A seconds-long bar for every tiny model that a test loads would bury pytest's own output.
logging.disable_progress_bar()

# Tiny models gain nothing from threads, which on a shared machine only wait for each other.
torch.set_num_threads(1)


class _DeprecationsAreErrors(std_logging.Handler):
    """transformers announces most of its deprecations through its logger, where pytest's warning filters do not see."""

    def emit(self, record: std_logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name.startswith("transformers") and "deprecat" in message.lower():
            raise FutureWarning(message)


std_logging.getLogger("transformers").addHandler(_DeprecationsAreErrors(std_logging.WARNING))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that compares with goldens, which `make test-cpu` runs by themselves."""
    for item in items:
        if "goldens" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Reference inputs and outputs of the original implementations (generated data; see tests/goldens/README.md)."""
    return Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def dasheng_files(goldens, tmp_path_factory) -> dict[str, Path]:
    """The weights of the Dasheng goldens in every layout of the original projects, NA-Dasheng with random layers."""
    from dasheng_layouts import write_dasheng_layouts

    return write_dasheng_layouts(goldens / "dasheng" / "weights.npz", tmp_path_factory.mktemp("dasheng"))


@pytest.fixture(scope="session")
def converted(goldens, dasheng_files, tmp_path_factory) -> Callable[[str], Path]:
    """Directories converted from the goldens' original checkpoints, each made once."""
    from na_ssl_hf.convert import convert

    models = goldens / "models"
    beats, eat = models / "beats_tiny" / "beats_tiny.pt", models / "eat_tiny" / "hf"
    sources = {
        "dasheng": ("dasheng", dasheng_files["hub"], None),
        "na-dasheng": ("na-dasheng", dasheng_files["fusion only"], dasheng_files["package"]),
        "beats": ("beats", beats, None),
        "eat": ("eat", eat, None),
        "na-beats": ("na-beats", models / "nabeats_tiny" / "nabeats_full.ckpt", None),
        "na-eat": ("na-eat", models / "naeat_tiny" / "naeat_full.ckpt", eat),
        "film": ("na-beats", models / "film_tiny" / "film_ema.ckpt", beats),
        "d-beats": ("na-beats", models / "dbeats_tiny" / "dbeats_ema.ckpt", beats),
    }
    folder = tmp_path_factory.mktemp("converted")

    def directory(name: str) -> Path:
        destination = folder / name
        if not destination.exists():
            kind, source, base = sources[name]
            convert(kind, source, destination, base=base)
        return destination

    return directory


@pytest.fixture(scope="session")
def golden_fbank(goldens) -> Callable[[str, str], torch.Tensor]:
    """Our fbank `(1, T, 128)` of a golden wave, for `flavour` "beats" or "eat"."""
    from na_ssl_hf.hub.fbank import kaldi_fbank

    waves = np.load(goldens / "models" / "waves.npz")
    return lambda flavour, wave: kaldi_fbank(torch.from_numpy(waves[wave])[None], flavour)


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory) -> Path:
    """A DCASE-shaped data set of three machines (the valve without attributes), 15 + 16 clips of 1.5 s each."""
    root = tmp_path_factory.mktemp("benchmark") / "data"
    settings = {"machines": ("fan", "gearbox", "valve"), "installation": "moving", "show_progress": False}
    return write_dcase_benchmark(root, "smoke", seed=3, **settings)
