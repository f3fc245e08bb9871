"""The demo end to end on a small data set, and what the shipped checkpoint says of itself."""

import matplotlib.image
import numpy as np
import pytest
from transformers import AutoConfig

from na_ssl_hf import BeatsConfig, BeatsModel, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import default_checkpoint
from na_ssl_hf.demo import NOISE_AWARE, run_demo

SMALL = {"machines": ("fan", "toycar"), "num_train_source": 20, "num_test": 3, "duration_s": 1.0, "num_rooms": 2}


def test_demo_scores_every_system_and_says_that_its_model_is_untrained(tmp_path, capsys):
    results = run_demo(tmp_path, **SMALL, show_progress=False)
    printed = capsys.readouterr().out
    assert "untrained" in printed
    assert "toycar" in printed
    assert "official score [95 % interval over clips]" in printed
    assert all(set(machines) == {"fan", "toycar"} for machines in results.values())
    for machines in results.values():
        for result in machines.values():
            assert result.scores.shape == (12,)
            assert np.isfinite(result.scores).all()
    # Identity layers on the same base: the two rows must agree, or one of them is not what it says.
    close, noise_aware = results["close microphone only"]["fan"], results[NOISE_AWARE]["fan"]
    np.testing.assert_allclose(close.scores, noise_aware.scores, atol=1e-5)
    assert not np.allclose(close.scores, results["far cancellation, least squares"]["fan"].scores, atol=1e-3)
    picture = matplotlib.image.imread(tmp_path / "demo.png")
    assert picture[..., :3].std() > 0.05
    again = run_demo(tmp_path, **SMALL, show_progress=False)
    np.testing.assert_array_equal(again[NOISE_AWARE]["fan"].scores, noise_aware.scores)


def test_demo_refuses_a_model_without_noise_aware_layers(tmp_path):
    model = tmp_path / "beats"
    config = BeatsConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    BeatsModel(config).save_pretrained(model)
    TwoChannelFeatureExtractor().save_pretrained(model)
    with pytest.raises(ValueError, match="NA-BEATs or NA-EAT"):
        run_demo(tmp_path / "out", model=str(model), **SMALL, show_progress=False)


def test_shipped_checkpoint_is_small_named_as_untrained_and_holds_no_code():
    folder = default_checkpoint()
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size < 8e6
    assert "untrained" in AutoConfig.from_pretrained(folder).checkpoint_note
    assert "untrained" in (folder / "README.md").read_text()
