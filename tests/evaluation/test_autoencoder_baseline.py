import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub.errors import StrictDataclassError
from scipy.stats import gamma
from transformers import AutoConfig, AutoModel

from na_ssl_hf.checkpoints import shipped_checkpoint
from na_ssl_hf.evaluation.autoencoder.baseline import AutoencoderBaseline, residual_covariances
from na_ssl_hf.hub.configuration_autoencoder import AutoencoderConfig
from na_ssl_hf.hub.modeling_autoencoder import AutoencoderModel, log_mel_decibels, stack_frames
from na_ssl_hf.hub.threshold import fit_threshold

RATE = 16000
CLIPS = ["a", "b", "silence", "minimal", "tooshort"]


@pytest.fixture(scope="module")
def golden(goldens):
    return lambda name: np.load(goldens / "backends" / "5_baseline_ae" / f"{name}.npz")


@pytest.fixture(scope="module")
def golden_model(golden):
    """The network with the weights of a golden file; official state dicts load by their own names."""

    def load(name):
        model = AutoencoderModel(AutoencoderConfig()).eval()
        weights = {key: torch.tensor(value) for key, value in golden(name).items()}
        report = model.load_state_dict(weights, strict=False)
        assert not report.unexpected_keys
        assert set(report.missing_keys) <= {"cov_source", "cov_target"}
        return model

    return load


@pytest.fixture(scope="module")
def golden_clip(golden):
    features = golden("features")
    return lambda clip: torch.from_numpy(features[f"{clip}_pcm16"][0] / 32768)


def hum(seed, domain="source", seconds=2.0, faulty=False):
    """A two-channel clip `(2, N)`: a hum with noise, whose pitch depends on the domain; a fault adds a whistle."""
    random, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    pitch = (180.0 if domain == "source" else 240.0) * (1 + 0.002 * random.standard_normal())
    close = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 9)) * 0.05
    if faulty:
        close = close + 0.05 * np.sin(2 * np.pi * 3100.0 * time)
    return np.stack([close, 0 * close]) + 0.02 * random.standard_normal((2, len(time)))


DOMAINS = ["source"] * 9 + ["target"] * 3


@pytest.fixture(scope="module")
def normal():
    return [hum(seed, domain) for seed, domain in enumerate(DOMAINS)]


@pytest.fixture(scope="module")
def fitted(normal):
    return quick().fit(normal, DOMAINS, progress=None)


def quick(**settings):
    return AutoencoderBaseline(**{"num_epochs": 25, "batch_size": 32, **settings})


@pytest.mark.parametrize("clip", CLIPS)
def test_log_mel_equals_the_official_features(golden, golden_clip, clip):
    features = golden("features")
    log_mel = log_mel_decibels(golden_clip(clip))
    assert log_mel.dtype == torch.float32
    np.testing.assert_allclose(log_mel.T, features[f"{clip}_logmel"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(log_mel.T, features[f"{clip}_logmel_f64"], atol=1e-4, rtol=0)
    vectors = stack_frames(log_mel)
    assert vectors.shape == features[f"{clip}_vectors"].shape
    np.testing.assert_allclose(vectors, features[f"{clip}_vectors"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("waveform", [torch.zeros(2, 4096), torch.zeros(4096, dtype=torch.int16), torch.zeros(0)])
def test_log_mel_wants_float_samples_of_one_channel(waveform):
    with pytest.raises(ValueError, match=r"`waveform` must be floating point of shape \(N,\)"):
        log_mel_decibels(waveform)


@pytest.mark.parametrize("clip", CLIPS[:4])
def test_network_and_scores_equal_the_official_ones(golden, golden_model, golden_clip, clip):
    model, scores = golden_model("aenet_state_dict"), golden("scores")
    vectors = model.vectors(golden_clip(clip))
    with torch.no_grad():
        output = model(vectors)
    expected = scores[f"{clip}_recon_ref32"]
    np.testing.assert_allclose(output.reconstruction[: len(expected)], expected, atol=2e-3, rtol=1e-5)
    np.testing.assert_allclose(output.bottleneck, scores[f"{clip}_z_ref32"], atol=2e-3, rtol=1e-5)
    assert model.anomaly_score(vectors) == pytest.approx(float(scores[f"{clip}_mse_ref32"]), rel=1e-5)
    distance = model.anomaly_score(vectors, "mahalanobis")
    assert distance == pytest.approx(float(scores[f"{clip}_mahala_min_ref32"]), rel=1e-4)
    assert distance == pytest.approx(float(scores[f"{clip}_mahala_min_f64"]), rel=1e-5)
    per_row = min(float(scores[f"{clip}_contrast_diagmean_{domain}_f64"]) for domain in ("source", "target"))
    assert distance != pytest.approx(per_row, rel=1e-5)
    model.cov_target.copy_(model.cov_source)
    source_only = model.anomaly_score(vectors, "mahalanobis")
    assert source_only == pytest.approx(float(scores[f"{clip}_mahala_source_ref32"]), rel=1e-4)


def residual_batches(golden, model, names):
    data = golden("covariance")
    for name in names:
        vectors = torch.from_numpy(data[f"{name}_x"])
        with torch.no_grad():
            yield vectors - model(vectors).reconstruction, torch.from_numpy(data[f"{name}_is_target"])


def test_covariances_and_calibration_equal_the_official_ones(golden, golden_model):
    model, data = golden_model("aenet_state_dict_cov"), golden("covariance")
    batches = [f"batch{index}" for index in range(5)]
    assert len(data["batch4_x"]) == 1
    covariances = residual_covariances(residual_batches(golden, model, batches))
    for domain, covariance in zip(("source", "target"), covariances, strict=True):
        for kind in ("ref32", "f64"):
            expected = data[f"cov_{domain}_{kind}"]
            np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        getattr(model, f"cov_{domain}").copy_(covariance)
    # The batch of one vector is skipped above and scored here.
    inputs = [torch.from_numpy(data[f"{name}_x"]) for name in [*batches, "valid0", "valid1"]]
    calibration = [model.anomaly_score(vectors, "mahalanobis") for vectors in inputs]
    np.testing.assert_allclose(calibration, data["calib_scores_ref32"], rtol=1e-4)
    # Seven values fit a gamma distribution of unbounded likelihood: rounding moves it, so it gets the official values.
    threshold = fit_threshold(data["calib_scores_ref32"], "gamma")
    assert threshold == pytest.approx(float(data["calib_threshold_q09"]), rel=2e-3)


def test_without_target_vectors_both_covariances_are_the_source_one(golden, golden_model):
    model = golden_model("aenet_state_dict_cov")
    batches = [(rows, torch.zeros_like(mask)) for rows, mask in residual_batches(golden, model, ["batch0", "batch1"])]
    source, target = residual_covariances(batches)
    assert torch.equal(source, target)
    assert source.any()


def test_one_target_vector_gives_a_finite_covariance_of_low_rank():
    residuals = torch.randn(4, 640)
    source, target = residual_covariances([(residuals, torch.arange(4) == 2)])
    assert torch.linalg.matrix_rank(source) == 3 * 5 - 1
    assert torch.linalg.matrix_rank(target) == 5 - 1


def test_gamma_thresholds_equal_the_official_ones(goldens):
    cases = json.loads((goldens / "backends" / "5_baseline_ae" / "gamma_threshold.json").read_text())
    for name, case in cases.items():
        if "threshold_q0.9" in case:
            values = np.array(case["y_pred"])
            assert fit_threshold(values, "gamma") == pytest.approx(case["threshold_q0.9"], rel=2e-3), name
            assert gamma.nnlf(gamma.fit(values), values) <= case["negative_log_likelihood"] + 1e-3
            decisions = np.array(case["probe_scores"]) > case["threshold_q0.9"]
            assert decisions.astype(int).tolist() == case["probe_decisions"]
        elif "raises" in case:
            with pytest.raises(ValueError):
                fit_threshold(np.array(case["y_pred"]), "gamma")


@pytest.mark.parametrize("method", ["mse", "mahalanobis"])
def test_faults_score_higher_than_normal_clips_in_both_domains(fitted, method):
    for domain in ("source", "target"):
        healthy = fitted.score([hum(seed, domain) for seed in range(100, 106)], method)
        faulty = fitted.score([hum(seed, domain, faulty=True) for seed in range(200, 206)], method)
        assert healthy.shape == (6,)
        assert healthy.dtype == torch.float64
        assert faulty.min() > healthy.max()
        assert (faulty > fitted.threshold(method)).all()


def test_training_lowers_the_error_and_seeds_decide_alone(normal, fitted):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    again = quick().fit(normal, DOMAINS, progress=None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.equal(fitted.score(normal), again.score(normal))
    assert torch.equal(fitted.score(normal, "mahalanobis"), again.score(normal, "mahalanobis"))
    assert fitted.threshold("mahalanobis") == again.threshold("mahalanobis")
    other = quick(seed=1, num_epochs=1).fit(normal, DOMAINS, progress=None)
    assert (other.score(normal) > fitted.score(normal)).all()


def test_the_far_channel_has_no_say_and_files_score_as_arrays(normal, fitted, tmp_path):
    pcm = [np.round(clip * 32768).astype(np.int16) for clip in normal[:3]]
    for index, clip in enumerate(pcm):
        soundfile.write(tmp_path / f"{index}.wav", clip.T, RATE, subtype="PCM_16")
    from_files = fitted.score([tmp_path / f"{index}.wav" for index in range(3)])
    assert torch.equal(from_files, fitted.score(pcm))
    muted = [np.stack([clip[0], 0 * clip[1]]) for clip in pcm]
    assert torch.equal(from_files, fitted.score(muted))


def test_domains_change_only_the_mahalanobis_score(normal, fitted):
    unknown = quick().fit(normal, progress=None)
    assert torch.equal(unknown.model_.cov_source, unknown.model_.cov_target)
    assert torch.equal(unknown.score(normal), fitted.score(normal))
    assert not torch.equal(unknown.score(normal, "mahalanobis"), fitted.score(normal, "mahalanobis"))


def test_mono_recordings_are_for_the_mono_mode(normal):
    mono = [clip[0] for clip in normal]
    baseline = quick(two_channel=False, num_epochs=1).fit(mono, DOMAINS, progress=None)
    assert torch.equal(baseline.score([mono[0]]), baseline.score([mono[0][None]]))
    with pytest.raises(ValueError, match=r"must have one channel, as two_channel=False; got the shape \(2, 32000\)"):
        baseline.score(normal)


def test_a_batch_of_one_vector_neither_trains_nor_breaks_training():
    # 44 vectors, of which 5 are held out: 39 leave a single one behind a batch of 38.
    clips = [hum(0, seconds=0.8), hum(1, seconds=0.8)]
    baseline = quick(batch_size=38, num_epochs=2).fit(clips, progress=None)
    assert baseline.model_.encoder[1].num_batches_tracked == 2


@pytest.mark.parametrize("case", ["few frames", "silence"])
def test_a_domain_without_covariance_leaves_only_the_mse_score(normal, case):
    odd = hum(50, "target", seconds=0.2) if case == "few frames" else np.zeros((2, 32000))
    baseline = quick(num_epochs=1).fit([*normal[:9], odd], [*DOMAINS[:9], "target"], progress=None)
    assert baseline.score(normal).isfinite().all()
    assert baseline.threshold() > 0
    with pytest.raises(ValueError, match=r"invertible covariance .* Use 'mse' or train with more"):
        baseline.score(normal, "mahalanobis")
    with pytest.raises(ValueError, match="no threshold for method='mahalanobis'"):
        baseline.threshold("mahalanobis")


def test_a_threshold_that_cannot_be_fitted_is_named(normal, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ValueError, match=r"No mse threshold from the scores of \d+ batches: .* needs scipy"):
        quick(num_epochs=1).fit(normal, progress=None)


def test_saved_baseline_scores_and_decides_alike(fitted, normal, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = AutoencoderBaseline.from_pretrained(tmp_path)
    for method in ("mse", "mahalanobis"):
        assert torch.equal(loaded.score(normal, method), fitted.score(normal, method))
        assert loaded.threshold(method) == fitted.threshold(method)


def test_loading_refuses_what_is_no_autoencoder(tmp_path):
    with pytest.raises(ValueError, match="must hold a 'dcase-autoencoder' model, got 'na-beats'"):
        AutoencoderBaseline.from_pretrained(shipped_checkpoint("na-beats-tiny"))
    with pytest.raises(OSError, match="absent"):
        AutoencoderBaseline.from_pretrained(tmp_path / "absent")


REMOTE = """
import json, sys
sys.modules["na_ssl_hf"] = None
import numpy as np, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
vectors = model.vectors(torch.from_numpy(np.load(sys.argv[1] + "/clip.npy")))
print(json.dumps([model.anomaly_score(vectors, method) for method in ("mse", "mahalanobis")]))
"""


def test_checkpoint_scores_without_the_package(fitted, normal, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    fitted.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "model" / "clip.npy", normal[0][0])
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "model")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [float(fitted.score([normal[0]], method)) for method in ("mse", "mahalanobis")]
    assert json.loads(run.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


def test_auto_classes_load_the_checkpoint_once_registered(fitted, tmp_path):
    AutoConfig.register(AutoencoderConfig.model_type, AutoencoderConfig, exist_ok=True)
    AutoModel.register(AutoencoderConfig, AutoencoderModel, exist_ok=True)
    fitted.save_pretrained(tmp_path)
    model, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(model.cov_target, fitted.model_.cov_target)
    fresh = AutoencoderModel(AutoencoderConfig(hidden_size=16, num_hidden_layers=2, bottleneck_size=4))
    assert fresh(torch.zeros(3, 640)).bottleneck.shape == (3, 4)
    assert not fresh.cov_source.any()


def nan_clip():
    clip = hum(0)
    clip[0, 5] = np.nan
    return clip


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (hum(0)[0], r"must have two channels, \(2, N\), unless two_channel=False; got the shape \(32000,\)"),
        (hum(0)[:1], r"must have two channels.*got the shape \(1, 32000\)"),
        (np.zeros((3, 32000)), r"got the shape \(3, 32000\)"),
        (hum(0)[:, :2047], "at least 2048 samples, got 2047"),
        (nan_clip(), "samples must be finite, got 1 NaN or infinite"),
        (np.zeros((2, 32000), dtype=np.uint8), "floating point, int16 or int32, got uint8"),
        ({"array": hum(0), "sampling_rate": 8000}, "sampling rate must be 16000 Hz, got 8000"),
    ],
)
def test_bad_recordings_are_named_in_fit_and_score(fitted, recording, message):
    for use in (quick().fit, fitted.score):
        with pytest.raises(ValueError, match=message):
            use([hum(1), recording], progress=None)


def test_mono_files_are_refused_by_name(fitted, tmp_path):
    soundfile.write(tmp_path / "mono.wav", hum(0)[0], RATE)
    with pytest.raises(ValueError, match=r"mono\.wav: a recording must have two channels"):
        fitted.score([tmp_path / "mono.wav"])
    with pytest.raises(OSError, match=r"absent\.wav"):
        fitted.score([tmp_path / "absent.wav"])


@pytest.mark.parametrize(
    ("recordings", "domains", "message"),
    [
        ([], None, "at least one recording, got none"),
        (hum(0), None, "list of recordings, got a single one"),
        ([hum(0)] * 2, ["source"], "each of the 2 recordings, got 1 entries"),
        ([hum(0)] * 2, "source", "got 'source'"),
        ([hum(0)] * 2, ["source", "goal"], "got 'goal' for recording 1"),
        ([hum(0)] * 2, ["target"] * 2, "at least one 'source'"),
        ([hum(0)[:, :2560]], None, "at least 4 vectors, .* got 2 vectors from 1 clips"),
    ],
)
def test_bad_training_sets_are_named(recordings, domains, message):
    with pytest.raises(ValueError, match=message):
        quick(num_epochs=1).fit(recordings, domains, progress=None)


@pytest.mark.parametrize(
    "settings", [{"num_epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"validation_split": 1.0}]
)
def test_settings_outside_their_range_are_named(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be .*got"):
        AutoencoderBaseline(**settings)


def test_unfitted_baselines_say_so(tmp_path):
    for use in (lambda b: b.score([hum(0)]), lambda b: b.threshold(), lambda b: b.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="not fitted: call fit or from_pretrained"):
            use(AutoencoderBaseline())


def test_a_failed_refit_leaves_the_baseline_as_it_was(fitted, normal):
    baseline = copy.copy(fitted)
    with pytest.raises(ValueError):
        baseline.fit([hum(0)[:, :2560]], progress=None)
    assert torch.equal(baseline.score(normal), fitted.score(normal))


def test_wrong_use_of_the_model_is_named(fitted):
    model = copy.deepcopy(fitted.model_)
    with pytest.raises(ValueError, match="`method` must be one of"):
        model.anomaly_score(torch.zeros(1, 640), "mean")
    with pytest.raises(ValueError, match=r"at least one vector, got \(0, 640\)"):
        model.anomaly_score(torch.zeros(0, 640))
    with pytest.raises(ValueError, match=r"shape \(V, 640\), got \(1, 128\)"):
        model(torch.zeros(1, 128))
    with pytest.raises(ValueError, match=r"call `model.eval\(\)` first"):
        model.train().anomaly_score(torch.zeros(2, 640))
    with pytest.raises(ValueError, match="method must be one of"):
        fitted.threshold("mean")
    with pytest.raises(StrictDataclassError, match="`hidden_size` must be at least 1, got 0"):
        AutoencoderConfig(hidden_size=0)
