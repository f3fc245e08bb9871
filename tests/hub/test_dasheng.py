"""Dasheng against the outputs of the original, and what its pieces, its batch norm and its single band mean."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, two_channel_fbank
from transformers import AutoModel

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.hub.mel_spectrogram import dasheng_log_mel

# The originals' own float32 error is up to 1e-5; that of the first input, whose values are small, 2e-6.
TOLERANCE, INPUT_TOLERANCE = 2e-4, 2e-6
IN_PIECES = {"target_length": 24}


@pytest.fixture(scope="module")
def io(goldens):
    return np.load(goldens / "dasheng" / "io.npz")


@pytest.fixture(scope="module")
def spectrogram(goldens):
    """Give `(1, T, 64)` of a wave or a part of one, such as `noise_c[0:480]`."""
    waves = np.load(goldens / "models" / "waves.npz")

    def of(spec):
        name, _, cut = spec.rstrip("]").partition("[")
        start, end = map(int, cut.split(":")) if cut else (None, None)
        return dasheng_log_mel(torch.from_numpy(waves[name][start:end])[None])

    return of


@pytest.fixture(scope="module")
def model(converted):
    return AutoModel.from_pretrained(converted("dasheng"))


def assert_close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(got.detach().numpy(), want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("spec", "stride"),
    [("noise_a", 1), ("noise_b", 2), ("silence", 1), ("noise_c[0:480]", 1), ("noise_c[0:76480]", 4)],
    ids=["whole", "just whole", "silence", "shortest", "two pieces"],
)
def test_outputs_equal_those_of_the_original(io, spectrogram, converted, attention, spec, stride):
    model = AutoModel.from_pretrained(converted("dasheng"), attn_implementation=attention)
    assert_close(model(spectrogram(spec)).last_hidden_state[0, ::stride], io[f"out_{spec}"])


def test_a_multiple_of_the_target_length_keeps_its_last_piece(io, spectrogram, model):
    # The original drops it; these are its outputs with all pieces kept.
    spec = "noise_c[0:76640]"
    tokens = model(spectrogram(spec)).last_hidden_state[0]
    assert len(tokens) == 120
    assert_close(tokens[::4], io[f"whole_{spec}"])


def test_inner_states_and_attention_equal_those_of_the_original(io, spectrogram, converted):
    model = AutoModel.from_pretrained(converted("dasheng"), attn_implementation="eager")
    result = model(spectrogram("noise_a"), output_hidden_states=True, output_attentions=True)
    assert_close(result.hidden_states[0][0], io["hidden_noise_a_0"], INPUT_TOLERANCE)
    assert_close(result.hidden_states[2][0], io["hidden_noise_a_2"])
    assert_close(result.attentions[0][0, :, ::8], io["attn0_noise_a"])


def test_a_padded_batch_gives_the_tokens_of_the_package(io, goldens, model):
    waves = np.load(goldens / "models" / "waves.npz")["noise_c"]
    lengths, starts = io["mask_length"], (5000, 5700, 6400)
    padded = np.zeros((3, max(lengths)), np.float32)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        padded[row, :length] = waves[start : start + length]
    mel = dasheng_log_mel(torch.from_numpy(padded))
    mask = torch.arange(mel.shape[1]) < 1 + torch.from_numpy(lengths)[:, None] // 160
    tokens = model(mel, attention_mask=mask).last_hidden_state
    for row in (0, 2):
        want = io[f"mask_out_{row}"]
        assert_close(tokens[row, : len(want)], want)
        assert not np.allclose(model(mel).last_hidden_state[row, : len(want)].detach(), want, atol=TOLERANCE)


# Pieces


@torch.no_grad()
def test_pieces_do_not_hear_each_other_and_rows_do_not_mix():
    model, mel = tiny_model("dasheng", **IN_PIECES), two_channel_fbank("dasheng", batch=3, frames=101)[:, 0]
    result = model(mel, output_hidden_states=True)
    assert {state.shape for state in (*result.hidden_states, result.last_hidden_state)} == {(3, 25, 32)}
    alone = torch.cat([model(row[None]).last_hidden_state for row in mel])
    torch.testing.assert_close(result.last_hidden_state, alone, atol=1e-5, rtol=0)
    pieces = torch.cat([model(mel[:, 24 * piece : 24 * piece + 24]).last_hidden_state for piece in range(4)], dim=1)
    torch.testing.assert_close(result.last_hidden_state[:, :24], pieces, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_piece_is_filled_up_behind_the_batch_norm():
    model, mel = tiny_model("dasheng", **IN_PIECES), two_channel_fbank("dasheng", frames=33)[:, 0]
    model.embeddings.batch_norm.running_mean.normal_()
    # Where the batch norm gives zero, the spectrogram is the mean of each band.
    filled = model.embeddings.batch_norm.running_mean.expand(2, 15, -1)
    tokens = model(torch.cat([mel[:, 24:], filled], dim=1)).last_hidden_state
    torch.testing.assert_close(model(mel).last_hidden_state[:, 6:], tokens[:, :2], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "tokens", "pieces"), [(24, 6, 1), (27, 6, 2), (28, 7, 2), (48, 12, 2), (51, 12, 3)])
def test_every_whole_token_is_kept(frames, tokens, pieces):
    model = tiny_model("dasheng", **IN_PIECES)
    assert (model.num_tokens(frames), model.num_pieces(frames)) == (tokens, pieces)
    assert model(two_channel_fbank("dasheng", frames=frames)).last_hidden_state.shape == (2, tokens, 32)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["dasheng", "na-dasheng"])
def test_masks_work_in_pieces(model_type):
    model, mel = tiny_model(model_type, **IN_PIECES), two_channel_fbank(model_type, frames=75)
    mask = torch.ones(2, 75, dtype=torch.long)
    tokens = model(mel, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(tokens, model(mel).last_hidden_state, atol=1e-6, rtol=0)
    mask[1, 30:] = 0
    changed = mel.clone()
    changed[1, :, 30:] = 50.0
    before, after = (model(each, attention_mask=mask).last_hidden_state for each in (mel, changed))
    torch.testing.assert_close(after[1, :7], before[1, :7], atol=1e-5, rtol=0)
    assert after.isfinite().all()
    assert not torch.allclose(model(changed).last_hidden_state[1, :7], before[1, :7], atol=1e-2)


def test_outputs_keep_the_forms_of_transformers():
    model, mel = tiny_model("dasheng", **IN_PIECES), two_channel_fbank("dasheng")
    result = model(input_values=mel, output_hidden_states=[1])
    assert [state is None for state in result.hidden_states] == [True, False, True]
    assert result.hidden_states[1].shape == (2, 25, 32)
    last, states = model(mel, output_hidden_states=[1], return_dict=False)
    assert torch.equal(last, result.last_hidden_state)
    assert torch.equal(states[1], result.hidden_states[1])


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["dasheng", "na-dasheng"])
def test_grids_of_layers_are_those_of_recordings_and_not_of_pieces(model_type):
    model, mel = tiny_model(model_type, **IN_PIECES), two_channel_fbank(model_type)
    result = model(mel, output_hidden_states=True)
    *grids, last = model.layer_grids(mel, [0, 1, 2, None])
    for grid, state in zip(grids, result.hidden_states, strict=True):
        torch.testing.assert_close(grid, state[:, :, None], atol=1e-6, rtol=0)
    torch.testing.assert_close(last, result.last_hidden_state[:, :, None], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["dasheng", "na-dasheng"])
def test_an_exported_graph_takes_every_length_of_one_piece(model_type):
    model, mel = tiny_model(model_type), two_channel_fbank(model_type)
    sizes = {"input_values": {2: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(model, (mel,), dynamic_shapes=sizes, strict=False).module()
    for frames in (57, 240):
        mel = two_channel_fbank(model_type, frames=frames)
        torch.testing.assert_close(exported(mel).last_hidden_state, model(mel).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_piece_hears_the_far_piece_of_the_same_time():
    model, mel = tiny_model("na-dasheng", **IN_PIECES), two_channel_fbank("na-dasheng", frames=60)
    changed = mel.clone()
    changed[:, 1, 24:48] = two_channel_fbank("na-dasheng", frames=24, seed=1)[:, 1]
    difference = (model(changed).last_hidden_state - model(mel).last_hidden_state).abs().amax((0, 2))
    heard = (difference > 1e-4).nonzero().flatten().tolist()
    assert heard == list(range(6, 12))


@pytest.mark.parametrize("grad", [True, False])
def test_channels_of_different_numbers_of_pieces_are_refused(grad):
    model, mel = tiny_model("na-dasheng", **IN_PIECES), two_channel_fbank("na-dasheng", frames=60)
    close, far = mel.unbind(1)
    with torch.set_grad_enabled(grad):
        assert model(close, noise_values=far[:, :50]).last_hidden_state.shape == (2, 15, 32)
        with pytest.raises(ValueError, match=r"`noise_values` must have as many pieces.* got 24 and 60 frames"):
            model(close, noise_values=far[:, :24])


@torch.no_grad()
def test_untrained_layers_are_the_identity_in_pieces_too():
    model = tiny_model("na-dasheng", identity=True, **IN_PIECES)
    mel = two_channel_fbank("na-dasheng")
    assert torch.equal(model(mel).last_hidden_state, model.to_base()(mel).last_hidden_state)


# Batch norm


def test_a_frozen_base_keeps_its_statistics(tmp_path):
    model, mel = tiny_model("na-dasheng"), two_channel_fbank("na-dasheng")
    model.save_pretrained(tmp_path)
    for one in (model, AutoModel.from_pretrained(tmp_path)):
        statistics = [buffer.clone() for buffer in one.embeddings.batch_norm.buffers()]
        one.train()(mel).last_hidden_state.mean().backward()
        assert all(map(torch.equal, one.embeddings.batch_norm.buffers(), statistics))
        one.freeze_base(False)
        one.train()(mel)
        assert not any(map(torch.equal, one.embeddings.batch_norm.buffers(), statistics))


@torch.no_grad()
def test_half_precision_hears_levels_in_float32():
    model, mel = tiny_model("dasheng"), two_channel_fbank("dasheng")[:, 0]
    model.embeddings.batch_norm.running_mean.fill_(-90.0)
    mel = mel - 90.0
    exact = model(mel).last_hidden_state
    got = model.to(torch.bfloat16)(mel).last_hidden_state
    assert got.dtype == torch.bfloat16
    error, error_of_rounded = (
        (each - exact).abs().mean() for each in (got.float(), model(mel.bfloat16()).last_hidden_state.float())
    )
    assert error < 0.05
    assert error_of_rounded > 4 * error


# One band


def test_a_memory_of_one_band_says_so_once(monkeypatch):
    messages = []
    module = "na_ssl_hf.hub.pipeline_anomaly_scoring.logger.warning_once"
    monkeypatch.setattr(module, messages.append)
    random = np.random.default_rng(0)
    clips = 0.1 * random.standard_normal((8, 2, 8000)).astype(np.float32)
    scorers = {
        frontend: AnomalyScorer(
            model=tiny_model(f"na-{frontend}"), feature_extractor=TwoChannelFeatureExtractor(frontend)
        ).fit(clips, false_alarm_rate=0.5, progress=None)
        for frontend in ("beats", "dasheng")
    }
    assert [message.partition(":")[0] for message in messages if "band" in message] == [
        "The memory has one band, because each token of NADashengModel spans all frequencies"
    ]
    scorer = scorers["dasheng"]
    assert [len(each.memory_bank.memory_) for each in scorers.values()] == [8, 1]
    scores = [result["score"] for result in scorer(list(clips))]
    odd = [result["score"] for result in scorer(list(clips[:, ::-1] + 0.5 * np.sin(np.arange(8000) * 0.5)))]
    assert np.isfinite([*scores, *odd]).all()
    assert min(odd) > max(scores)
    assert scorer.anomaly_map(clips[0]).shape == (1 + 8000 // 160 >> 2, 1)
