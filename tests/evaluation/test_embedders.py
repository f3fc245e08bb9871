"""Embedders turn files into band vectors, by checkpoints of the right kind only."""

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny_config, tiny_model

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor, pool_time
from na_ssl_hf.evaluation.systems.embedders import checkpoint_embedder, close_channel, log_mel_embedder, model_embedder
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.noise_cancellation import cancel_far_microphone
from na_ssl_hf.hub.recording import Recording


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """model type -> directory of a small random model with its extractor."""
    root = tmp_path_factory.mktemp("checkpoints")
    for model_type in ("beats", "na-beats", "na-eat"):
        tiny_model(model_type).save_pretrained(root / model_type)
        TwoChannelFeatureExtractor(tiny_config(model_type).frontend).save_pretrained(root / model_type)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """Three files of two lengths."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.wav" for index in range(3)]
    for path, length in zip(paths, (16000, 12000, 16000), strict=True):
        soundfile.write(path, 0.1 * rng.standard_normal((length, 2)), 16000)
    return paths


def test_embeddings_are_those_of_model_and_pooling(checkpoints, stereo):
    embedder = checkpoint_embedder("na-beats", checkpoints["na-beats"], "rdp", 8.0)
    model, extractor = tiny_model("na-beats"), TwoChannelFeatureExtractor(frontend="beats")
    for path, embedding in zip(stereo, embedder.embed(stereo), strict=True):
        features = extractor(soundfile.read(path, dtype="float32")[0].T, sampling_rate=16000)
        with torch.no_grad():
            grid = model.time_frequency_grid(model(features["input_values"]).last_hidden_state)
        torch.testing.assert_close(embedding, pool_time(grid, "rdp", gamma=8.0)[0], atol=1e-5, rtol=1e-5)


def test_efficientat_hears_recordings_of_16_khz_resampled(stereo, tmp_path):
    tiny_model("efficientat").save_pretrained(tmp_path)
    TwoChannelFeatureExtractor("efficientat", resample=True).save_pretrained(tmp_path)
    embedder = checkpoint_embedder("efficientat", str(tmp_path))
    extractor, model = TwoChannelFeatureExtractor("efficientat", resample=True), tiny_model("efficientat")
    for path, embedding in zip(stereo, embedder.embed(stereo), strict=True):
        features = extractor(soundfile.read(path, dtype="float32")[0].T, sampling_rate=16000)
        with torch.no_grad():
            (grid,) = model.layer_grids(features["input_values"], [7])  # its last row lies above 8 kHz
        torch.testing.assert_close(embedding, grid.mean(1)[0, :-1], atol=1e-5, rtol=1e-5)
    other_hop = TwoChannelFeatureExtractor("efficientat", resample=True, hop_length=160)
    same_weights = tiny_model("efficientat", hop_length=160)
    assert model_embedder("efficientat", same_weights, other_hop).key != embedder.key


def test_a_noise_aware_checkpoint_serves_its_base(checkpoints, stereo):
    embedder = checkpoint_embedder("beats", checkpoints["na-beats"])
    base = tiny_model("na-beats").to_base()
    scorer = AnomalyScorer(model=base, feature_extractor=TwoChannelFeatureExtractor(frontend="beats"))
    torch.testing.assert_close(embedder.embed(stereo), scorer.embed(stereo, pooling="mean"))
    with pytest.raises(ValueError, match=r"frontend 'na-eat' must have a model of type 'na-eat', got 'na-beats'"):
        checkpoint_embedder("na-eat", checkpoints["na-beats"])
    with pytest.raises(ValueError, match=r"frontend 'na-beats' must have a model of type 'na-beats', got 'beats'"):
        checkpoint_embedder("na-beats", checkpoints["beats"])


def test_mono_is_enough_for_single_channel_models_only(checkpoints, tmp_path):
    wave = 0.1 * np.random.default_rng(1).standard_normal(16000)
    soundfile.write(tmp_path / "mono.wav", wave, 16000)
    soundfile.write(tmp_path / "both.wav", np.stack([wave, wave], axis=1), 16000)
    mono, both = [tmp_path / "mono.wav"], [tmp_path / "both.wav"]
    for embedder in (checkpoint_embedder("beats", checkpoints["beats"]), log_mel_embedder()):
        torch.testing.assert_close(embedder.embed(mono), embedder.embed(both))
    for embedder in (
        checkpoint_embedder("na-beats", checkpoints["na-beats"]),
        checkpoint_embedder("beats", checkpoints["beats"], far_cancellation="least_squares"),
        log_mel_embedder("least_squares"),
    ):
        with pytest.raises(ValueError, match=r"mono\.wav.*two channels"):
            embedder.embed(mono)


def test_keys_tell_everything_that_changes_embeddings(checkpoints):
    make = checkpoint_embedder
    embedders = [
        make("na-beats", checkpoints["na-beats"]),
        make("beats", checkpoints["na-beats"]),
        make("beats", checkpoints["beats"]),
        make("na-eat", checkpoints["na-eat"]),
        make("na-beats", checkpoints["na-beats"], "rdp"),
        make("na-beats", checkpoints["na-beats"], "rdp", 8.0),
        make("na-beats", checkpoints["na-beats"], far_cancellation="least_squares"),
        log_mel_embedder(),
        log_mel_embedder("spectral_subtraction"),
        log_mel_embedder(center_level=True),
    ]
    assert len({embedder.key for embedder in embedders}) == len(embedders)
    assert make("na-beats", checkpoints["na-beats"], batch_size=2).key == embedders[0].key


def test_cancellation_of_a_checkpoint_is_switched_off_by_name(checkpoints, stereo, tmp_path):
    tiny_model("na-beats").save_pretrained(tmp_path)
    TwoChannelFeatureExtractor(frontend="beats", far_cancellation="least_squares").save_pretrained(tmp_path)
    plain = checkpoint_embedder("na-beats", checkpoints["na-beats"])
    as_saved = checkpoint_embedder("na-beats", str(tmp_path))
    switched_off = checkpoint_embedder("na-beats", str(tmp_path), far_cancellation="none")
    assert switched_off.key == plain.key != as_saved.key
    torch.testing.assert_close(switched_off.embed(stereo), plain.embed(stereo), rtol=0, atol=0)


@pytest.mark.parametrize("method", [None, "least_squares", "spectral_subtraction"])
def test_log_mel_is_of_the_close_channel_after_cancellation(stereo, method):
    waves = []
    for path in stereo:
        close, far = torch.from_numpy(soundfile.read(path, dtype="float32")[0].T)[:, None]
        waves.append((cancel_far_microphone(close, far, method) if method else close)[0])
    torch.testing.assert_close(log_mel_embedder(method).embed(stereo), log_mel_embeddings(waves))


def test_centred_log_mel_does_not_hear_the_level(stereo):
    waves = [torch.from_numpy(soundfile.read(path, dtype="float32")[0][:, 0].copy()) for path in stereo]
    louder = [3.0 * wave for wave in waves]
    centred = log_mel_embeddings(waves, center_level=True)
    again = log_mel_embeddings(louder, center_level=True)
    # The lowest mel filters lie between two FFT bins, where the floor stays at any level.
    torch.testing.assert_close(centred[:, 1:], again[:, 1:], atol=3e-3, rtol=0)
    assert (log_mel_embeddings(waves) - log_mel_embeddings(louder)).abs().max() > 0.1
    torch.testing.assert_close(log_mel_embedder(center_level=True).embed(stereo), centred)


def test_wrong_recordings_and_checkpoints_are_named(checkpoints, tmp_path):
    def recording(samples, rate=16000):
        return Recording(np.asarray(samples, dtype=np.float32), rate, "that.wav")

    for samples, rate, message in (
        (np.zeros((2, 9)), 8000, r"that\.wav must have 16000 Hz, got 8000 Hz"),
        (np.zeros((3, 9)), 16000, r"that\.wav must have one or two channels, got 3"),
        (np.full((2, 9), np.nan), 16000, r"that\.wav must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            close_channel(recording(samples, rate))
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        checkpoint_embedder("beats", str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="cannot be loaded"):
        checkpoint_embedder("beats", str(tmp_path))
    with pytest.raises(ValueError, match=r"frontend must be one of beats, .*; got 'wav2vec'"):
        checkpoint_embedder("wav2vec", checkpoints["beats"])
