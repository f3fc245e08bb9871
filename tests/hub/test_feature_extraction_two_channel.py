import subprocess
import sys

import numpy as np
import pytest
import soxr
import torch
from transformers.utils import logging

from na_ssl_hf.hub import feature_extraction_two_channel as module
from na_ssl_hf.hub.fbank import kaldi_fbank, num_fbank_frames
from na_ssl_hf.hub.feature_extraction_two_channel import TwoChannelFeatureExtractor, far_leads_and_is_louder
from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone

FRONTEND = pytest.mark.parametrize("frontend", ["beats", "eat"])
EAT_PADDING = 4.268 / 9.138


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def extract(audio, **settings):
    return TwoChannelFeatureExtractor(**settings)(audio, sampling_rate=16000)


@pytest.fixture
def warnings(monkeypatch):
    """Messages that would be shown, each once."""
    shown = []
    monkeypatch.setattr(module.logger, "warning_once", lambda text: shown.append(text) if text not in shown else None)
    return shown


@FRONTEND
def test_channel_0_is_close_and_channel_1_is_far(frontend):
    wave = noise(2, 16000)
    features = extract(wave, frontend=frontend)
    assert features.input_values.dtype == torch.float32
    assert features.attention_mask.dtype == torch.int64
    for channel in (0, 1):
        torch.testing.assert_close(features.input_values[0, channel], kaldi_fbank(wave[channel], frontend))
    swapped = extract(wave.flip(0), frontend=frontend)
    torch.testing.assert_close(swapped.input_values, features.input_values.flip(1))
    assert features.attention_mask.eq(1).all()


@FRONTEND
@pytest.mark.parametrize("far_cancellation", [None, *METHODS])
def test_one_by_one_equals_a_batch(frontend, far_cancellation):
    batch = noise(3, 2, 12345)
    settings = {"frontend": frontend, "far_cancellation": far_cancellation}
    together = extract(batch, **settings)
    for as_list in (list(batch), list(batch.numpy())):
        torch.testing.assert_close(extract(as_list, **settings).input_values, together.input_values)
    for row in range(3):
        alone = extract(batch[row], **settings)
        torch.testing.assert_close(alone.input_values[0], together.input_values[row], atol=1e-5, rtol=0)


def test_padding_mask_of_beats_is_the_original_one(goldens):
    with np.load(goldens / "models/beats_tiny/io.npz") as file:
        wave, sample_mask, frame_mask = (file[name] for name in ("pad_wave", "pad_mask", "pad_frame_mask"))
    clips = [np.stack([row[~mask]] * 2) for row, mask in zip(wave, sample_mask, strict=True)]
    features = extract(clips)
    np.testing.assert_array_equal(features.attention_mask.numpy() == 0, frame_mask)
    torch.testing.assert_close(features.input_values[:, 0], kaldi_fbank(torch.from_numpy(wave)))


def test_eat_rows_of_a_padded_clip_are_those_of_the_clip_alone():
    lengths = (16000, 9999, 400, 30000)
    clips = [noise(2, n, seed=n) for n in lengths]
    features = extract(clips, frontend="eat")
    for clip, values, mask in zip(clips, features.input_values, features.attention_mask, strict=True):
        alone = extract(clip, frontend="eat").input_values[0]
        valid = alone.shape[1]
        assert mask.tolist() == [1] * valid + [0] * (len(mask) - valid)
        torch.testing.assert_close(values[:, :valid], alone, atol=1e-5, rtol=0)
        rest = values[:, num_fbank_frames(clip.shape[1]) :]
        torch.testing.assert_close(rest, torch.full_like(rest, EAT_PADDING))


@pytest.mark.parametrize("method", METHODS)
def test_cancellation_is_that_of_the_clip_without_padding(method):
    clips = [noise(2, n, seed=n) for n in (16000, 9000, 16000)]
    features = extract(clips, far_cancellation=method)
    for clip, values in zip(clips, features.input_values, strict=True):
        cancelled = cancel_far_microphone(clip[:1], clip[1:], method)[0]
        frames = num_fbank_frames(clip.shape[1])
        torch.testing.assert_close(values[0, :frames], kaldi_fbank(cancelled), atol=1e-4, rtol=0)
        torch.testing.assert_close(values[1, :frames], kaldi_fbank(clip[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frontend", ["beats", "eat", "efficientat"])
@pytest.mark.parametrize("method", METHODS)
def test_the_far_channel_is_lowered_by_what_a_canceller_takes_from_the_close_one(frontend, method):
    rate = 32000 if frontend == "efficientat" else 16000
    common = [noise(1, n, seed=n) for n in (2 * rate, 9000, 2 * rate)]
    clips = [each + noise(2, each.shape[-1], seed=1, scale=0.02) for each in common]
    settings = {"frontend": frontend, "far_cancellation": method}
    plain, lowering = (TwoChannelFeatureExtractor(**settings, lowers_far=lowers) for lowers in (False, True))
    before, after = (each(clips, sampling_rate=rate).input_values for each in (plain, lowering))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] <= before[:, 1] + 1e-5).all()
    for clip, values, mask in zip(clips, after, plain(clips, sampling_rate=rate).attention_mask, strict=True):
        alone = lowering.fbank(clip[None])[0]  # (2, T, M)
        frames = min(alone.shape[1], int(mask.sum()))
        torch.testing.assert_close(values[:, :frames], alone[:, :frames], atol=1e-4, rtol=0)
        taken = plain.fbank(clip[None])[0, 0] - plain.front_end.fbank(clip[None])[0, 0]  # (T, M)
        changed = alone[1] - plain.fbank(clip[None])[0, 1]
        inside = slice(10, frames - 10)  # the average over nine frames is that of all, but near the ends
        torch.testing.assert_close(changed[inside].mean(), taken[inside].mean(), atol=0.05, rtol=0.05)


def test_without_a_canceller_the_far_channel_stays_as_it_is():
    clips = [noise(2, n, seed=n) for n in (16000, 9000)]
    for frontend in ("beats", "eat"):
        with_it, without = (extract(clips, frontend=frontend, lowers_far=lowers) for lowers in (True, False))
        assert torch.equal(with_it.input_values, without.input_values)
    extractor = TwoChannelFeatureExtractor(far_cancellation="least_squares", lowers_far=True)
    silent_far = noise(2, 16000) * torch.tensor([[1.0], [0.0]])
    # Nothing is taken, so that nothing is lowered; the rest is the rounding of a canceller.
    torch.testing.assert_close(
        extractor.fbank(silent_far[None]), extractor.front_end.fbank(silent_far[None]), atol=1e-3, rtol=0
    )


def test_common_gain_and_level_difference_of_the_channels_stay():
    wave = noise(2, 16000)
    wave[1] *= 0.1
    quiet, loud = extract(0.5 * wave).input_values, extract(wave).input_values
    step = 2 * np.log(2) / (2 * 6.55582)
    torch.testing.assert_close((loud - quiet)[..., 4:], torch.full_like(loud[..., 4:], step), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31), (">i2", 2**15)])
def test_pcm_is_scaled_to_full_scale_1(dtype, scale):
    # On the 16 bit grid, so that every integer type holds it exactly.
    wave = (noise(2, 16000) * 2**15).round().numpy() / 2**15
    pcm = (wave.astype(np.float64) * scale).astype(dtype)
    torch.testing.assert_close(extract(pcm).input_values, extract(wave).input_values)


@pytest.mark.parametrize("kind", ["list", "tensor", "float64", "half", "reversed view", "read-only"])
def test_every_kind_of_array_gives_the_same(kind):
    wave = noise(2, 4000).half().float()
    forms = {
        "list": lambda: wave.tolist(),
        "tensor": lambda: wave.clone().requires_grad_(),
        "float64": lambda: wave.numpy().astype(np.float64),
        "half": lambda: wave.half(),
        "reversed view": lambda: wave.flip(1).numpy()[:, ::-1],
        "read-only": lambda: np.frombuffer(wave.numpy().tobytes(), dtype=np.float32).reshape(2, -1),
    }
    assert extract(forms[kind]()).input_values.equal(extract(wave).input_values)


def test_return_types():
    extractor = TwoChannelFeatureExtractor()
    wave = noise(2, 4000)
    expected = extractor(wave, sampling_rate=16000).input_values
    arrays = extractor(wave, sampling_rate=16000, return_tensors="np")
    np.testing.assert_array_equal(arrays["input_values"], expected)
    assert arrays["attention_mask"].dtype == np.int64
    lists = extractor(wave, sampling_rate=16000, return_tensors=None)
    assert isinstance(lists["input_values"], list)
    assert lists["input_values"][0].shape == (2, 23, 128)


def test_resampling_keeps_the_channels_together():
    time = torch.arange(48000) / 48000
    wave = torch.stack([torch.sin(2 * torch.pi * 440 * time), 0.1 * torch.sin(2 * torch.pi * 440 * time)])
    extractor = TwoChannelFeatureExtractor(resample=True)
    features = extractor(wave, sampling_rate=48000).input_values
    time = torch.arange(16000) / 16000
    expected = extractor(wave[:, ::3], sampling_rate=16000).input_values
    loud = expected > expected.amax() - 0.5
    assert features.shape == (1, 2, 98, 128)
    torch.testing.assert_close(features[loud], expected[loud], atol=2e-3, rtol=0)


def test_settings_survive_saving(tmp_path):
    settings = {
        "frontend": "eat",
        "resample": True,
        "far_cancellation": "least_squares",
        "padding_value": 0.0,
        "sampling_rate": 16000,
        "num_mel_bins": 128,
        "lowers_far": True,
    }
    extractor = TwoChannelFeatureExtractor(**settings)
    extractor.save_pretrained(tmp_path)
    restored = TwoChannelFeatureExtractor.from_pretrained(tmp_path)
    assert restored.to_dict() == extractor.to_dict()
    assert {name: getattr(restored, name) for name in settings} == settings


def test_saved_directory_loads_with_remote_code_and_without_the_package(tmp_path):
    extractor = TwoChannelFeatureExtractor(frontend="eat", far_cancellation="spectral_subtraction")
    extractor.save_pretrained(tmp_path / "saved")
    wave = noise(2, 16000).numpy()
    np.save(tmp_path / "wave.npy", wave)
    script = """
import sys
sys.modules["na_ssl_hf"] = None
import numpy as np
from transformers import AutoFeatureExtractor
extractor = AutoFeatureExtractor.from_pretrained("saved", trust_remote_code=True)
np.save("features.npy", extractor(np.load("wave.npy"), sampling_rate=16000).input_values)
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)
    expected = extractor(wave, sampling_rate=16000).input_values
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-5)


WAVE = np.zeros((2, 16000), np.float32) + 0.1


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        pytest.param(WAVE[0], r"two channels.*mono.*16000", id="one-dimensional"),
        pytest.param(WAVE[:1], r"1 channel \(mono\)", id="one channel"),
        pytest.param(np.zeros((3, 16000)), "has 3 channels", id="three channels"),
        pytest.param([WAVE, np.zeros((3, 16000))], "Recording 1 has 3 channels", id="three channels in a list"),
        pytest.param(WAVE.T, r"channels first.*\(16000, 2\).*transposed", id="transposed"),
        pytest.param([WAVE[0], WAVE[1]], "mono", id="list of mono arrays"),
        pytest.param([WAVE, WAVE[0]], r"shape \(2, N\). Recording 1 has \(16000,\)", id="mono in a list"),
        pytest.param(WAVE[None, None], "4 dimensions", id="rank 4"),
        pytest.param(np.float32(0.0), "must be an array", id="scalar"),
        pytest.param("fan.wav", "got str", id="path"),
        pytest.param({"array": WAVE}, "got dict", id="dict"),
        pytest.param(["fan.wav"], "got list of str", id="list of paths"),
        pytest.param(np.array(0.0), "must be an array", id="rank 0"),
        pytest.param([], "empty", id="empty list"),
        pytest.param(np.zeros((0, 2, 16000)), "empty", id="empty batch"),
        pytest.param(np.zeros((2, 0)), "empty", id="no samples"),
        pytest.param([[0.0, 0.1], [0.0]], "equal lengths", id="ragged lists"),
        pytest.param(np.where(np.arange(16000) == 7, np.nan, WAVE), "2 NaN or infinite", id="NaN"),
        pytest.param(torch.full((2, 16000), torch.inf), "finite.*Recording 0", id="infinite"),
        pytest.param(np.full((2, 16000), 1e300), "finite", id="beyond float32"),
        pytest.param(WAVE.astype(complex), "complex128", id="complex"),
        pytest.param(np.zeros((2, 16000), np.int64), "int64", id="int64"),
        pytest.param(WAVE[:, :2799], "at least 2800.*'beats'.*has 2799", id="too short"),
    ],
)
def test_bad_audio_is_named(audio, message):
    with pytest.raises(ValueError, match=message):
        extract(audio)


def test_eat_takes_one_frame_and_no_less():
    assert extract(WAVE[:, :400], frontend="eat").input_values.shape == (1, 2, 32, 128)
    with pytest.raises(ValueError, match=r"at least 400.*has 399"):
        extract(WAVE[:, :399], frontend="eat")


def test_bad_arguments_are_named(monkeypatch):
    extractor = TwoChannelFeatureExtractor()
    with pytest.raises(ValueError, match=r"sampling_rate.*resample=True.*44100"):
        extractor(WAVE, sampling_rate=44100)
    with pytest.raises(ValueError, match=r"sampling_rate.*positive.*-1"):
        TwoChannelFeatureExtractor(resample=True)(WAVE, sampling_rate=-1)
    with pytest.raises(ValueError, match=r"return_tensors.*'tf'"):
        extractor(WAVE, sampling_rate=16000, return_tensors="tf")
    with pytest.raises(ValueError, match="padding"):
        extractor([WAVE, WAVE[:, :8000]], sampling_rate=16000, padding=False)
    monkeypatch.setattr(module, "soxr", None)
    with pytest.raises(ValueError, match="soxr"):
        TwoChannelFeatureExtractor(resample=True)(WAVE, sampling_rate=8000)
    for setting in (
        {"frontend": "ast"},
        {"far_cancellation": "wiener"},
        {"sampling_rate": 8000},
        {"num_mel_bins": 64},
        {"feature_size": 1},
        {"lowers_far": 1},
    ):
        name, value = next(iter(setting.items()))
        with pytest.raises(ValueError, match=f"`{name}` must be .*{value!r}"):
            TwoChannelFeatureExtractor(**setting)


def delayed_pair(close_gain, far_gain, delay, snr_db=10.0, seed=0, num_samples=32000):
    """A broadband machine heard by two microphones, the far one `delay` samples later, in independent noises."""
    machine = noise(num_samples, seed=seed)
    heard = torch.stack([close_gain * machine, far_gain * machine.roll(delay)])
    power = heard.square().mean(1).amax()
    return heard + noise(2, num_samples, seed=seed + 1, scale=1.0) * (power / 10 ** (snr_db / 10)).sqrt()


@pytest.mark.parametrize("snr_db", [5.0, 15.0])
@pytest.mark.parametrize("delay", [3, 20, 44])
def test_swapped_channels_are_suspected_and_correct_ones_are_not(delay, snr_db):
    pairs = torch.stack([delayed_pair(1.0, 0.3, delay, snr_db, seed) for seed in range(5)])
    assert not far_leads_and_is_louder(pairs).any()
    assert far_leads_and_is_louder(pairs.flip(1)).all()


def test_swapped_channels_are_suspected_at_any_rate():
    pairs = torch.stack([delayed_pair(1.0, 0.3, 20, 10.0, seed) for seed in range(5)])
    twice = torch.from_numpy(np.stack([soxr.resample(pair.T.contiguous().numpy(), 16000, 32000).T for pair in pairs]))
    assert not far_leads_and_is_louder(twice, 32000).any()
    assert far_leads_and_is_louder(twice.flip(1), 32000).all()


def test_common_or_independent_noise_alone_is_not_suspected():
    independent = noise(20, 2, 32000) * torch.tensor([1.0, 2.0])[:, None]
    common = torch.stack([delayed_pair(1.0, 1.0, delay, 0.0, seed=delay + 50) for delay in range(-20, 20)])
    assert not far_leads_and_is_louder(independent).any()
    assert not far_leads_and_is_louder(common).any()


CLOSE, FAR = delayed_pair(1.0, 0.3, 12)


@pytest.mark.parametrize(
    ("close", "far", "message"),
    [
        pytest.param(CLOSE, FAR, None, id="ordinary"),
        pytest.param(2 * CLOSE, 2 * FAR, None, id="loud"),
        pytest.param(CLOSE, torch.zeros_like(FAR), "silent far", id="dead far"),
        pytest.param(CLOSE, torch.full_like(FAR, 0.1), "silent far", id="far is a constant"),
        pytest.param(torch.zeros_like(CLOSE), FAR, "silent close", id="silent close"),
        pytest.param(CLOSE, CLOSE, "identical", id="identical"),
        pytest.param(FAR, CLOSE, "swapped", id="swapped"),
        pytest.param((20 * CLOSE).clamp(-1, 1), FAR, "clipped", id="clipped"),
    ],
)
def test_legal_oddities_warn_once(warnings, close, far, message):
    wave = torch.stack([close, far])
    for _ in range(2):
        assert extract(wave).input_values.isfinite().all()
    assert len(warnings) == (message is not None)
    assert message is None or message in warnings[0]


def test_all_silent_recording_is_legal(warnings):
    values = extract(torch.zeros(2, 8000), far_cancellation="least_squares").input_values
    torch.testing.assert_close(values, torch.full_like(values, -2.39173), atol=1e-4, rtol=0)
    assert len(warnings) == 2


def test_missing_sampling_rate_warns_once(warnings):
    extractor = TwoChannelFeatureExtractor()
    assert extractor(CLOSE.expand(2, -1)).input_values.equal(extract(CLOSE.expand(2, -1)).input_values)
    assert "16000 Hz is assumed" in warnings[0]


def test_logger_shows_a_warning_once_in_a_process(capsys):
    logging.warning_once.cache_clear()
    for _ in range(3):
        extract(torch.stack([CLOSE, torch.zeros_like(CLOSE)]))
    assert capsys.readouterr().err.count("silent far microphone") <= 1
