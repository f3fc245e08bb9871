import ast
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def models(goldens: Path) -> Path:
    return goldens / "models"


@pytest.fixture(scope="session")
def features(models: Path):
    """`features(directory, wave name)`: fbank `(1, T, 128)` by the feature extractor of a converted directory."""
    from transformers import AutoFeatureExtractor

    waves = np.load(models / "waves.npz")

    def extract(directory: Path, wave: str) -> torch.Tensor:
        extractor = AutoFeatureExtractor.from_pretrained(directory)
        channels = np.stack([waves[wave], waves[wave]])
        return extractor(channels, sampling_rate=16000, return_tensors="pt")["input_values"][:, 0]

    return extract


@pytest.fixture(scope="session")
def listed_tensors():
    """`listed_tensors(key list)`: zeros of the listed names and shapes that take no memory."""

    def read(path: Path) -> dict[str, torch.Tensor]:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        return {name: torch.zeros(()).expand(ast.literal_eval(shape)) for name, shape, _ in rows}

    return read


def _save_edited(source: Path, destination: Path, edit) -> Path:
    checkpoint = torch.load(source, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, destination)
    return destination


@pytest.fixture
def edited(tmp_path: Path):
    """`edited(source, edit)`: a copy of a checkpoint after `edit(checkpoint)`."""
    return lambda source, edit: _save_edited(source, tmp_path / f"edited_{source.name}", edit)
