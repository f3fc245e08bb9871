"""Outputs, inner states and gradients of the original implementations (tests/goldens/README.md)."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

TOLERANCE = 1e-4  # the originals' own float32 error is up to 1.1e-5
SWEEP_TOLERANCE = 2e-2  # a pure tone: bands 90 dB below it are float32 rounding noise
# The published tables were computed in float32; ours, in float64, differ by 3.95e-5 and 6.98e-5 in their last rows.
POSITION_TOLERANCES = {768: 4e-5, 1024: 7e-5}
WAVES = ("noise_a", "noise_b", "noise_c", "sweep", "impulse", "silence", "quiet", "dc")
NOISE_CASES = ("eq", "longref", "shortref", "silentref")

both_noise_aware = pytest.mark.parametrize(
    ("name", "folder", "frontend"), [("na-beats", "nabeats_tiny", "beats"), ("na-eat", "naeat_tiny", "eat")]
)


def assert_close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(got.detach().numpy(), want, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def io(goldens):
    return lambda folder, name="io": np.load(goldens / "models" / folder / f"{name}.npz")


@pytest.fixture(scope="module")
def model(converted):
    return lambda name, **kwargs: AutoModel.from_pretrained(converted(name), **kwargs)


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["beats", "eat"])
def test_base_outputs(name, attention, wave, io, model, golden_fbank):
    one = model(name, attn_implementation=attention)
    tolerance = SWEEP_TOLERANCE if wave == "sweep" else TOLERANCE
    got = one(golden_fbank(name, wave)).last_hidden_state[0]
    assert_close(got, io(f"{name}_tiny")[f"out_{wave}"], tolerance)


@pytest.mark.parametrize(("name", "wave"), [("beats", "min16"), ("eat", "short")])
def test_shortest_recordings(name, wave, io, model, golden_fbank):
    assert_close(model(name)(golden_fbank(name, wave)).last_hidden_state[0], io(f"{name}_tiny")[f"out_{wave}"])


@pytest.mark.parametrize("name", ["beats", "eat"])
def test_hidden_states(name, io, model, golden_fbank):
    states = model(name)(golden_fbank(name, "noise_a"), output_hidden_states=True).hidden_states
    want = io(f"{name}_tiny")
    for index, state in enumerate(states):
        assert_close(state[0], want[f"hidden_noise_a_{index}"])


def test_eat_drops_frames_past_the_last_patch(io, model):
    want = io("eat_tiny")
    assert_close(model("eat")(torch.from_numpy(want["mel_rand"][:, 0])).last_hidden_state, want["out_mel_rand"])


def test_eat_position_table_has_the_published_rows(io):
    from na_ssl_hf.hub.modeling_eat import sine_cosine_positions

    rows = io("eat_tiny", "pos_rows")
    for size, tolerance in POSITION_TOLERANCES.items():
        table = sine_cosine_positions(768, 8, size)[0]
        index = rows["tf"][:, 0] * 8 + rows["tf"][:, 1]
        assert_close(table[index], rows[f"pos{size}"], tolerance)


def test_beats_attention_weights_and_buckets(io, model, golden_fbank):
    want = io("beats_tiny")
    one = model("beats", attn_implementation="eager")
    attentions = one(golden_fbank("beats", "noise_a"), output_attentions=True).attentions
    assert_close(attentions[0][0], want["attn0_noise_a"])
    bucket = one.relative_position_bias.bucket(torch.from_numpy(want["bucket_rel"]))
    assert np.array_equal(bucket.numpy(), want["bucket_idx"])


def test_beats_padding(io, model):
    from na_ssl_hf.hub.fbank import kaldi_fbank

    want = io("beats_tiny")
    fbank = kaldi_fbank(torch.from_numpy(want["pad_wave"]), "beats")
    mask = torch.from_numpy(~want["pad_frame_mask"])
    out = model("beats")(fbank, attention_mask=mask, output_hidden_states=True)
    valid = ~want["pad_token_mask"]
    assert_close(out.last_hidden_state[valid], want["pad_out"][valid])
    assert_close(out.hidden_states[0][valid], want["pad_hidden_0"][valid])


@pytest.mark.parametrize(
    ("name", "folder", "frontend", "case"),
    [("na-beats", "nabeats_tiny", "beats", case) for case in NOISE_CASES]
    + [("na-eat", "naeat_tiny", "eat", case) for case in NOISE_CASES]
    + [("film", "film_tiny", "beats", case) for case in NOISE_CASES[:3]],
)
def test_noise_aware_outputs(name, folder, frontend, case, io, model, golden_fbank):
    names = io("naeat_tiny" if frontend == "eat" else "nabeats_tiny")[f"{case}_names"]
    close, far = (golden_fbank(frontend, str(wave)) for wave in names)
    assert_close(model(name)(close, noise_values=far).last_hidden_state[0], io(folder)[f"{case}_out"])


@pytest.mark.parametrize("wave", ["noise_a", "noise_b"])
def test_d_beats_outputs(wave, io, model, golden_fbank):
    assert_close(model("d-beats")(golden_fbank("beats", wave)).last_hidden_state[0], io("dbeats_tiny")[f"out_{wave}"])


@both_noise_aware
def test_noise_aware_batches_keep_channels_and_clips_apart(name, folder, frontend, io, model, golden_fbank):
    first, second = golden_fbank(frontend, "noise_a"), golden_fbank(frontend, "noise_a2")
    stacked = torch.stack([torch.cat([first, second]), torch.cat([second, first])], dim=1)  # (2, 2, T, 128)
    assert_close(model(name)(stacked).last_hidden_state, io(folder)["batch_out"])


@both_noise_aware
def test_noise_aware_hidden_states(name, folder, frontend, io, model, golden_fbank):
    close, far = golden_fbank(frontend, "noise_a"), golden_fbank(frontend, "noise_a2")
    states = model(name)(close, noise_values=far, output_hidden_states=True).hidden_states
    for index, state in enumerate(states[1:]):
        assert_close(state[0], io(folder)[f"eq_hx_{index}"])


def test_noise_stream_is_the_base_on_the_far_channel(io, model, golden_fbank):
    states = model("beats")(golden_fbank("beats", "noise_a2"), output_hidden_states=True).hidden_states
    for index, state in enumerate(states[1:]):
        assert_close(state[0], io("nabeats_tiny")[f"eq_hn_{index}"])


def test_noise_aware_padding_of_both_streams(io, model):
    from na_ssl_hf.hub.fbank import kaldi_fbank

    base, want = io("beats_tiny"), io("nabeats_tiny")

    def frames(samples):
        per_frame = samples.shape[1] // kaldi_fbank(torch.zeros(1, samples.shape[1]), "beats").shape[1]
        kept = samples.shape[1] // per_frame * per_frame
        return ~torch.from_numpy(samples[:, :kept].reshape(len(samples), -1, per_frame).all(-1))

    def fbank(wave, mask):
        frame_mask = frames(mask)
        values = kaldi_fbank(torch.from_numpy(wave), "beats")
        return values, frame_mask[:, : values.shape[1]]

    close, close_mask = fbank(base["pad_wave"], base["pad_mask"])
    far, far_mask = fbank(want["pad_n_ref"], want["pad_n_ref_mask"])
    out = model("na-beats")(
        close, noise_values=far, attention_mask=close_mask, noise_attention_mask=far_mask
    ).last_hidden_state
    valid = ~want["pad_token_mask"]
    assert_close(out[valid], want["pad_out"][valid])


@pytest.mark.parametrize("block", ["ca", "film", "sa"])
def test_noise_aware_blocks_alone(block, io, model):
    blocks = io("fusion", "blocks")
    layer = model({"ca": "na-beats", "film": "film", "sa": "d-beats"}[block]).layers[0].noise_aware
    batch_first = lambda name: torch.from_numpy(blocks[name]).transpose(0, 1)  # noqa: E731
    for case in ("unit", "tiny", "mask"):
        if f"{block}_{case}_x" not in blocks:
            continue
        noise = batch_first(f"{block}_{case}_n_ref") if f"{block}_{case}_n_ref" in blocks else None
        mask = None
        if case == "mask":
            mask = ~torch.from_numpy(blocks[f"{block}_mask_mask"])[:, None, None]
        out = layer(batch_first(f"{block}_{case}_x"), noise, mask)
        assert_close(out, blocks[f"{block}_{case}_out"].transpose(1, 0, 2), 1e-5)


@both_noise_aware
def test_gradients_of_the_noise_aware_layers(name, folder, frontend, io, model, golden_fbank):
    want = io(folder, "grads")
    one = model(name)  # eval mode: no dropout; gradients flow all the same
    out = one(golden_fbank(frontend, "noise_a"), noise_values=golden_fbank(frontend, "noise_a2")).last_hidden_state[0]
    error = (out - torch.from_numpy(want["target"])).square()
    loss = error.mean() if frontend == "beats" else error[1:].mean() + error[0].mean()
    np.testing.assert_allclose(loss.item(), want["loss"], rtol=1e-3)
    loss.backward()
    ours = {key: value.grad for key, value in one.named_parameters() if value.grad is not None}

    renamed = (
        ("norm_q.", "query_norm."),
        ("norm_kv.", "noise_norm."),
        ("norm_ffn.", "mlp_norm."),
        ("ffn.", "mlp."),
    )
    seen = set()
    for key in want.files:
        kind, _, original = key.partition("::")
        if not original:
            continue
        number, _, part = original.split("fusion_layers.")[1].partition(".")
        for old, new in renamed:
            part = part.replace(old, new) if part.startswith(old) else part
        prefix = f"layers.{number}.noise_aware."
        if "in_proj_" in part:
            names = [prefix + "attention." + p + "_proj." + part.split("in_proj_")[1] for p in "qkv"]
        else:
            names = [prefix + part]
        seen |= set(names)
        gradient = torch.cat([ours[n] for n in names])
        if kind == "norm":
            np.testing.assert_allclose(gradient.norm().item(), want[key], rtol=1e-3)
        else:
            error = np.abs(gradient.numpy() - want[key]).max()
            assert error <= 1e-3 * np.abs(want[key]).max()
    assert seen == set(ours)
