"""The far microphone is cancelled in an exported graph as it is in torch, alone and in a scorer of both streams."""

import numpy as np
import pytest
import torch
from sites import RATE, tiny_scorer, write_clip

from na_ssl_edge import Scorer, drift
from na_ssl_hf import MemoryBank
from na_ssl_hf.export import ProofRecordings, export_scorer
from na_ssl_hf.export.far_canceller import (
    LeastSquares,
    NoisePath,
    RealDft,
    SpectralSubtraction,
    Subtraction,
    far_canceller,
)
from na_ssl_hf.export.quantise import quantise_onnx
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.noise_cancellation import cancel_far_microphone, filtered, stft_lengths, subtracted

TAPS = torch.randn(600, generator=torch.Generator().manual_seed(1)) * torch.exp(-torch.arange(600) / 80) * 0.1
SLOPE = torch.rand(129, generator=torch.Generator().manual_seed(2))
KINDS = {
    "least squares": (
        lambda rate: LeastSquares(stft_lengths("least_squares", rate)[0]),
        lambda close, far, rate: cancel_far_microphone(close, far, "least_squares", rate),
    ),
    "spectral subtraction": (
        lambda rate: SpectralSubtraction(stft_lengths("spectral_subtraction", rate)[0]),
        lambda close, far, rate: cancel_far_microphone(close, far, "spectral_subtraction", rate),
    ),
    "filter": (lambda _: NoisePath(TAPS, 200), lambda close, far, _: close - filtered(far, TAPS, 200)),
    "subtraction": (lambda _: Subtraction(SLOPE), lambda close, far, _: subtracted(close, far, SLOPE)),
}


def noisy_pair(num_samples: int) -> torch.Tensor:
    """Noise in the far channel that the close one hears a little later."""
    waves = 0.1 * torch.randn(2, 2, num_samples, generator=torch.Generator().manual_seed(num_samples))
    waves[:, 0] += 0.5 * waves[:, 1].roll(30, -1)
    return waves


@pytest.mark.parametrize("length", [512, 600, 16384, 97])
def test_a_transform_by_products_equals_that_by_fft(length):
    samples = torch.randn(3, length, generator=torch.Generator().manual_seed(0))
    real, imaginary = RealDft(length).of_real(samples)
    torch.testing.assert_close(torch.complex(real, imaginary), torch.fft.fft(samples), rtol=0, atol=2e-4)
    torch.testing.assert_close(RealDft(length).to_real(real, imaginary), samples, rtol=0, atol=1e-5)


# Ends of a hop, and what lies just before and after those whose last frame is left out or used.
@pytest.mark.parametrize("num_samples", [1025, 4096, 4096 + 448, 4096 + 449, 4607, 9000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [16000, 32000])
def test_every_step_equals_that_of_torch(kind, num_samples, rate):
    make, wanted = KINDS[kind]
    close, far = noisy_pair(num_samples).unbind(1)
    torch.testing.assert_close(make(rate)(close, far), wanted(close, far, rate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_stays_silence_and_a_silent_far_channel_changes_nothing(kind):
    step, (close, far) = KINDS[kind][0](16000), noisy_pair(5000).unbind(1)
    assert (step(torch.zeros_like(close), torch.zeros_like(far)) == 0).all()
    torch.testing.assert_close(step(close, torch.zeros_like(far)), close, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("recordings")
    normal = [write_clip(folder / f"{index}.wav", index, seconds=0.6) for index in range(12)]
    return normal, [write_clip(folder / f"{index}.wav", index, seconds=0.5, tone=0.1) for index in range(50, 53)]


@pytest.mark.parametrize(
    ("method", "streams", "level", "num_steps"),
    [
        ("spectral_subtraction", "both", "as recorded", 1),
        ("installation", "both", "normalised", 2),
        ("filter", "raw", "as recorded", 1),
    ],
)
def test_a_scorer_with_a_canceller_scores_alike_without_torch(
    method, streams, level, num_steps, recordings, tmp_path, monkeypatch
):
    normal, new = recordings
    settings = {"far_cancellation": method, "streams": streams, "level": level, "threshold_method": "quantile"}
    scorer = tiny_scorer(tmp_path / "scorer", "na-beats", normal, MemoryBank(), **settings)
    assert len(far_canceller(scorer).steps) == num_steps
    exported = export_scorer(scorer, tmp_path / "out", ProofRecordings(normal))
    assert exported.num_samples is None
    assert exported.proof.largest_change < 1e-2
    heard: dict[str, list[torch.Tensor]] = {"torch": [], "edge": []}
    monkeypatch.setattr(FarMicrophone, "listen", lambda _, waves: heard["torch"].extend(waves))
    monkeypatch.setattr(drift.Installation, "listen", lambda _, wave: heard["edge"].append(torch.from_numpy(wave)))
    assert_alike(scorer, Scorer(tmp_path / "out"), new)
    # What was calibrated and is used is watched for a drift, by both alike.
    num_heard = 2 * len(new) if method == "installation" else 0
    assert [len(of_one) for of_one in heard.values()] == [num_heard, num_heard]
    assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(*heard.values(), strict=True))


@pytest.mark.parametrize("method", ["installation", "spectral_subtraction"])
def test_a_lowered_far_microphone_is_heard_alike_without_torch(method, recordings, tmp_path):
    normal, new = recordings
    settings = {"far_cancellation": method, "threshold_method": "quantile", "na_share": 0.5, "log_mel": True}
    of_model = {"fields": {"noise_aware_lowers_far": True, "noise_aware_layer_type": "aligned"}}
    scorer = tiny_scorer(tmp_path / "scorer", "na-eat", normal, MemoryBank(), **of_model, **settings)
    exported = export_scorer(scorer, tmp_path / "out", ProofRecordings(normal))
    assert exported.proof.largest_change < 1e-2
    assert_alike(scorer, Scorer(tmp_path / "out"), new)
    assert scorer.feature_extractor.lowers_far


def assert_alike(scorer, edge, recordings):
    np.testing.assert_allclose(edge.embed(recordings), scorer.embed(recordings), atol=1e-4)
    for one, other in zip(scorer(recordings), edge(recordings), strict=True):
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)
        assert other["is_anomaly"] == one["is_anomaly"]


def test_a_mirrored_margin_sets_the_shortest_recording_and_eight_bits_leave_the_canceller_alone(recordings, tmp_path):
    normal, new = recordings
    settings = {"far_cancellation": "least_squares", "threshold_method": "quantile"}
    scorer = tiny_scorer(tmp_path / "scorer", "na-eat", normal, MemoryBank(), **settings)
    export_scorer(scorer, tmp_path / "out", None)
    edge = Scorer(tmp_path / "out")
    assert_alike(scorer, edge, new)
    short = 0.1 * np.random.default_rng(0).standard_normal((2, 450)).astype(np.float32)
    with pytest.raises(ValueError, match="at least 513 samples"):
        edge({"array": short, "sampling_rate": RATE})

    before, after = tmp_path / "out" / "model.onnx", tmp_path / "int8.onnx"
    assert quantise_onnx(before, after, "products") > 0
    products = {node.name: spaces(node)["namespace"] for node in nodes_of(before) if node.op_type == "MatMul"}
    parts = ("/far_canceller: ", "/front_end: ")
    in_float = {name for name, space in products.items() if any(part in space for part in parts)}
    assert any("/far_canceller: " in products[name] for name in in_float)
    assert in_float <= {node.name for node in nodes_of(after) if node.op_type == "MatMul"}


def nodes_of(path):
    return pytest.importorskip("onnx").load(path).graph.node


def spaces(node):
    return {entry.key: entry.value for entry in node.metadata_props}


def test_a_calibrated_microphone_that_cancels_nothing_is_no_part_of_the_graph(recordings, tmp_path):
    normal, _ = recordings
    scorer = tiny_scorer(tmp_path / "scorer", "na-beats", normal, MemoryBank())
    assert far_canceller(scorer) is None
    scorer.far_microphone = FarMicrophone("none").fit([noisy_pair(16000) for _ in range(2)])
    assert far_canceller(scorer) is None
    scorer.far_microphone.method_ = "telepathy"
    with pytest.raises(ValueError, match="whose method has an exportable form, got 'telepathy'"):
        far_canceller(scorer)
