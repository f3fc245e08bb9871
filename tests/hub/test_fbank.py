import math

import numpy as np
import pytest
import torch

from na_ssl_hf.hub.fbank import FLAVOURS, kaldi_fbank, num_fbank_frames
from na_ssl_hf.hub.front_end import TwoChannelFrontEnd
from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone

FLAVOUR = pytest.mark.parametrize("flavour", sorted(FLAVOURS))


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def waves(goldens):
    with np.load(goldens / "models/waves.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


class Fbank(torch.nn.Module):
    def __init__(self, flavour):
        super().__init__()
        self.flavour = flavour

    def forward(self, waves):
        return kaldi_fbank(waves, self.flavour)


def assert_within_golden_tolerance(features, golden, flavour, wave):
    error = np.abs(features - golden)
    if wave != "sweep":
        assert error.max() < 5e-5
        return
    # Beside a pure tone, bands 90 dB below it are float32 rounding: twice the floor of the reference is allowed.
    assert error.max() < (1e-1 if flavour == "beats" else 1.8e-3)
    assert np.quantile(error, 0.999) < 1.8e-2
    assert np.quantile(error, 0.99) < 6e-3
    assert np.median(error) < 4e-5


GOLDEN_WAVES = ("noise_a", "noise_b", "noise_c", "sweep", "impulse", "silence", "quiet", "dc", "short", "min16")


@FLAVOUR
@pytest.mark.parametrize("wave", GOLDEN_WAVES)
def test_every_golden_wave_is_reproduced(goldens, waves, flavour, wave):
    with np.load(goldens / "models/fbank/fbank.npz") as file:
        golden = file[f"{flavour}_{wave}"]
        beats_frames, eat_frames, stride = file[f"frames_{wave}"]
    features = kaldi_fbank(waves[wave], flavour)
    assert features.dtype == torch.float32
    assert features.shape == (beats_frames if flavour == "beats" else eat_frames, 128)
    assert num_fbank_frames(len(waves[wave])) == beats_frames
    assert_within_golden_tolerance(features[::stride].numpy(), golden, flavour, wave)


@FLAVOUR
def test_exported_graph_reproduces_the_goldens_without_complex_tensors(goldens, waves, flavour):
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(Fbank(flavour), (noise(2, 16000),), dynamic_shapes=shapes)
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        assert not (isinstance(value, torch.Tensor) and value.is_complex())
    with np.load(goldens / "models/fbank/fbank.npz") as file:
        for wave in ("noise_a", "noise_b", "sweep", "silence", "quiet", "dc"):
            features = exported.module()(waves[wave].expand(2, -1))[1].numpy()
            assert_within_golden_tolerance(features, file[f"{flavour}_{wave}"], flavour, wave)


@FLAVOUR
def test_onnx_runtime_agrees(tmp_path, flavour):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "fbank.onnx"
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(
        Fbank(flavour).eval(), (noise(2, 16000),), path, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    session = runtime.InferenceSession(path)
    wave = noise(3, 23456)
    (features,) = session.run(None, {session.get_inputs()[0].name: wave.numpy()})
    np.testing.assert_allclose(features, kaldi_fbank(wave, flavour).numpy(), atol=2e-4)


@FLAVOUR
def test_compiles_as_one_graph(flavour):
    wave = noise(2, 16000)
    compiled = torch.compile(kaldi_fbank, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(wave, flavour), kaldi_fbank(wave, flavour), atol=2e-4, rtol=0)


@FLAVOUR
def test_waves_are_transformed_alone_whatever_their_batch(flavour):
    wave = noise(3, 5, 20000)
    wave[1] *= 100
    features = kaldi_fbank(wave, flavour)
    assert features.shape[:2] == (3, 5)
    for index in ((0, 0), (1, 3), (2, 4)):
        torch.testing.assert_close(features[index], kaldi_fbank(wave[index], flavour), atol=1e-6, rtol=0)
    assert kaldi_fbank(wave[:0], flavour).shape == (0, *features.shape[1:])


@FLAVOUR
def test_batches_beyond_one_chunk_agree_with_single_waves(flavour):
    wave = noise(9, 100_000)
    features = kaldi_fbank(wave, flavour)
    for row in (0, 5, 6, 8):
        torch.testing.assert_close(features[row], kaldi_fbank(wave[row], flavour), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_for_every_input_dtype(dtype):
    wave = noise(1, 4000).to(dtype)
    assert kaldi_fbank(wave).equal(kaldi_fbank(wave.float()))


@FLAVOUR
def test_autocast_changes_nothing(flavour):
    wave = noise(2, 4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = kaldi_fbank(wave, flavour)
    assert inside.equal(kaldi_fbank(wave, flavour))


def test_gradient_agrees_with_finite_differences():
    wave, direction = noise(1, 3000), noise(1, 3000, seed=1)
    weight = noise(17, 128, seed=2, scale=1.0)
    leaf = wave.clone().requires_grad_()
    (kaldi_fbank(leaf) * weight).sum().backward()
    step = 1e-3
    ahead, behind = ((kaldi_fbank(wave + sign * step * direction) * weight).sum() for sign in (1, -1))
    torch.testing.assert_close((leaf.grad * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-2, atol=0.0)


def test_inference_mode_first_does_not_spoil_training():
    with torch.inference_mode():
        kaldi_fbank(noise(1, 4000), "eat")
    leaf = noise(1, 4000).requires_grad_()
    kaldi_fbank(leaf, "eat").sum().backward()
    assert leaf.grad.isfinite().all()


def test_shapes_come_without_data_on_the_meta_device():
    assert kaldi_fbank(torch.empty(2, 3000, device="meta"), "eat").shape == (2, 32, 128)


def test_eat_padding_is_loud_and_the_empty_mel_channel_is_floor():
    eat = kaldi_fbank(noise(1, 4000), "eat")
    torch.testing.assert_close(eat[:, num_fbank_frames(4000) :], torch.full((1, 9, 128), 4.268 / 9.138))
    floor = torch.full((1, 23), (math.log(1.1920929e-07) + 4.268) / 9.138)
    torch.testing.assert_close(eat[:, :23, 3], floor)


@pytest.mark.parametrize(
    ("wave", "flavour", "message"),
    [
        (torch.zeros(1, 399), "beats", "at least 400.*got 399"),
        (torch.zeros(1, 4000), "ast", "flavour.*'ast'"),
        (torch.zeros(1, 4000, dtype=torch.int16), "eat", "waveforms.*int16"),
        (torch.tensor(0.0), "eat", "waveforms"),
    ],
)
def test_bad_input_is_named(wave, flavour, message):
    with pytest.raises(ValueError, match=message):
        kaldi_fbank(wave, flavour)


@FLAVOUR
@pytest.mark.parametrize("method", [None, *METHODS])
def test_front_end_cancels_first_and_keeps_the_far_channel(flavour, method):
    waves = noise(3, 2, 6000)
    close, far = waves.unbind(1)
    heard = cancel_far_microphone(close, far, method) if method else close
    expected = torch.stack([kaldi_fbank(heard, flavour), kaldi_fbank(far, flavour)], dim=1)
    torch.testing.assert_close(TwoChannelFrontEnd(flavour, method)(waves), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_front_end_is_differentiable_through_the_cancellation(method):
    leaf = noise(1, 2, 4000).requires_grad_()
    TwoChannelFrontEnd("beats", method)(leaf)[:, 0].sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().amax(-1).gt(0).all()


@pytest.mark.parametrize(
    ("arguments", "waves", "message"),
    [
        (("ast",), torch.zeros(1, 2, 4000), "`frontend` must be .*'ast'"),
        (("beats", "wiener"), torch.zeros(1, 2, 4000), "`far_cancellation` must be None or .*'wiener'"),
        (("beats",), torch.zeros(2, 4000), r"`waveforms` must have the shape \(B, 2, N\), got \(2, 4000\)"),
    ],
)
def test_front_end_names_bad_input(arguments, waves, message):
    with pytest.raises(ValueError, match=message):
        TwoChannelFrontEnd(*arguments)(waves)
