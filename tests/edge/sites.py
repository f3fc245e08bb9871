"""Recordings and tiny scorers for the tests of the export and of na-ssl-edge."""

from pathlib import Path

import numpy as np
import soundfile
from tiny_models import tiny_model

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.cli import main

RATE = 16000


def write_clip(path: Path, seed: int, seconds: float = 0.5, tone: float = 0.0, rate: int = RATE) -> Path:
    """A hum in both channels with noise; `tone` adds another sound to the close one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    noise = 0.01 * random.standard_normal((len(time), 2))
    hum = 0.1 * np.sin(2 * np.pi * 150 * (1 + 0.02 * random.standard_normal()) * time)
    close = hum + tone * np.sin(2 * np.pi * 2000 * time)
    soundfile.write(path, np.stack([close, 0.2 * hum], axis=1) + noise, rate)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def tiny_scorer(
    folder: Path, model_type: str, normal: list[Path], bank: MemoryBank, fields: dict | None = None, **settings
) -> AnomalyScorer:
    """A fitted scorer with a small random model with these fields of its configuration, saved in `folder`."""
    model = tiny_model(model_type, **(fields or {}))
    extractor = TwoChannelFeatureExtractor.of(model.config)
    scorer = AnomalyScorer(model=model, feature_extractor=extractor)
    scorer.fit(normal, memory_bank=bank, progress=None, **settings)
    scorer.save_pretrained(folder)
    return scorer
