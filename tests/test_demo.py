"""The demo end to end on a small data set, and what the shipped checkpoints are."""

import itertools

import matplotlib.image
import numpy as np
import pytest
import torch
from transformers import AutoModel, pipeline

from na_ssl_hf import BeatsConfig, BeatsModel, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import default_checkpoint, shipped_checkpoint
from na_ssl_hf.demo import FITTED, run_demo
from na_ssl_hf.simulation.benchmark_presets import BenchmarkPreset

SMALL = {
    "machines": ("fan", "toycar"),
    "sizes": BenchmarkPreset(20, 4, 3, duration_s=1.0, num_rooms=1, num_places=5, num_supplemental=1),
}


def test_demo_scores_every_system(tmp_path, capsys):
    results = run_demo(tmp_path, **SMALL, show_progress=False)
    printed = capsys.readouterr().out
    assert "toycar" in printed
    assert "official score [95 % interval over clips]" in printed
    assert all(set(machines) == {"fan", "toycar"} for machines in results.values())
    for machines in results.values():
        for result in machines.values():
            assert result.scores.shape == (12,)
            assert np.isfinite(result.scores).all()
    scores = [machines["fan"].scores for machines in results.values()]
    # Every system hears something else.
    assert all(not np.allclose(one, other, atol=1e-4) for one, other in itertools.combinations(scores, 2))
    files = [sorted((tmp_path / "data" / "fan" / split).glob("*.wav")) for split in ("train", "test")]
    scorer = pipeline("anomaly-scoring", model=str(default_checkpoint()))
    scorer.fit(files[0], progress=None)
    scored = results[FITTED]["fan"]
    assert scored.threshold == pytest.approx(scorer.threshold, rel=1e-5)
    np.testing.assert_allclose(scored.scores, [one["score"] for one in scorer(files[1])], rtol=1e-4, atol=1e-6)
    picture = matplotlib.image.imread(tmp_path / "demo.png")
    assert picture[..., :3].std() > 0.05
    again = run_demo(tmp_path, **SMALL, show_progress=False)
    np.testing.assert_array_equal(again[FITTED]["fan"].scores, results[FITTED]["fan"].scores)


def test_demo_refuses_a_model_without_noise_aware_layers(tmp_path):
    model = tmp_path / "beats"
    config = BeatsConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    BeatsModel(config).save_pretrained(model)
    TwoChannelFeatureExtractor().save_pretrained(model)
    with pytest.raises(ValueError, match="NA-BEATs, NA-EAT or NA-Dasheng"):
        run_demo(tmp_path / "out", model=str(model), **SMALL, show_progress=False)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name", ["na-beats-tiny", "na-eat-tiny", "eat-tiny-deep", "eat-tiny-distilled", "na-eat-tiny-distilled"]
)
def test_shipped_checkpoints_are_small_trained_and_hold_no_code(name):
    folder = shipped_checkpoint(name)
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in folder.iterdir()} == files | (
        {f"{name}-loss.png"} if name.startswith("na-") else set()
    )
    assert (folder / "model.safetensors").stat().st_size < 8e6
    assert "auto_map" not in (folder / "config.json").read_text()
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32  # saved in float16
    assert shipped_checkpoint("na-beats") is None
    if not name.startswith("na-"):
        return
    # Trained layers are no identity: the far channel must matter.
    fbank = torch.randn(1, 2, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, base_tokens = (each(fbank).last_hidden_state for each in (model, model.to_base()))
    assert (tokens - base_tokens).abs().max() > 0.01
