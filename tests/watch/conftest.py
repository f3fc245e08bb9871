"""A scorer of a machine that hums, and the sound of this machine."""

import pytest
import soundfile
import torch
from transformers import pipeline
from watched_machine import RATE, machine_sound

from na_ssl_hf.checkpoints import shipped_checkpoint


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory):
    """A scorer of 24 recordings of 1 s, saved."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("watch")
    paths = []
    for index in range(24):
        paths.append(folder / f"{index}.wav")
        soundfile.write(paths[-1], machine_sound(index, 1.0).T, RATE)
    scorer = pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny")), device="cpu")
    scorer.fit(paths, progress=None).save_pretrained(folder / "scorer")
    return folder / "scorer"


@pytest.fixture
def scorer(scorer_folder):
    """The saved scorer, loaded anew."""
    return pipeline("anomaly-scoring", model=str(scorer_folder), device="cpu")
