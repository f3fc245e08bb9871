import numpy as np
import pytest
import torch

from na_ssl_hf.hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from na_ssl_hf.hub.front_end import FRONT_ENDS, TwoChannelFrontEnd
from na_ssl_hf.hub.mel_spectrogram import (
    dasheng_log_mel,
    efficientat_log_mel,
    mel_band_centres,
    num_dasheng_frames,
    num_efficientat_frames,
)

FRONT_END = pytest.mark.parametrize("frontend", ["dasheng", "efficientat"])
LOG_MEL = {"dasheng": dasheng_log_mel, "efficientat": efficientat_log_mel}
# The largest error that the goldens' README accepts, and that beside a pure tone, where bands are rounding noise.
TOLERANCES = {"dasheng": (2e-3, 0.3), "efficientat": (5e-4, 2e-3)}


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def waves(goldens):
    """Give the waves of the goldens by front end and by specification, such as `noise_a[0:514]` or `noise_a*4`."""
    sounds = {
        "dasheng": np.load(goldens / "models/waves.npz"),
        "efficientat": np.load(goldens / "efficientat/waves.npz"),
    }

    def wave(frontend, spec):
        if spec.startswith("cut_"):
            spec = f"noise_c[0:{spec[4:]}]"
        spec, _, gain = spec.partition("*")
        name, _, cut = spec.rstrip("]").partition("[")
        start, end = map(int, cut.split(":")) if cut else (None, None)
        samples = sounds[frontend][name][start:end]
        full_scale = 1.0 if samples.dtype.kind == "f" else 32768.0
        return samples.astype(np.float32) / np.float32(full_scale) * np.float32(gain or 1)

    return wave


def spectrogram_keys(frontend):
    path = f"{__file__.rsplit('/', 2)[0]}/goldens/{frontend}/mel/mel.npz"
    with np.load(path) as file:
        return [key for key in file.files if key.startswith("mel_")]


@pytest.mark.parametrize(
    ("frontend", "key"), [(name, key) for name in ("dasheng", "efficientat") for key in spectrogram_keys(name)]
)
def test_every_golden_wave_is_reproduced(goldens, waves, frontend, key):
    spec = key.removeprefix("mel_")
    with np.load(goldens / frontend / "mel/mel.npz") as file:
        golden = file[key]
        num_frames, stride = file[f"frames_{spec}"] if f"frames_{spec}" in file else (len(golden), 1)
    wave, rate = waves(frontend, spec), FRONT_ENDS[frontend].sampling_rate
    if frontend == "dasheng" and len(wave) < 480:
        features = dasheng_log_mel(torch.from_numpy(wave))  # the extractor refuses what gives no token
    else:
        extractor = TwoChannelFeatureExtractor(frontend, resample=True)
        rate = 16000 if spec == "low16" else rate
        both = extractor(np.stack([wave, wave]), sampling_rate=rate)["input_values"][0]
        assert torch.equal(both[0], both[1])
        features = both[0]
    assert features.shape == (num_frames, golden.shape[1])
    error = np.abs(features[::stride].numpy() - golden)
    if spec == "low16":  # above 8 kHz there is only what the resampler lets through
        assert error[:, :100].max() < 5e-3
        assert error[:, 100:].max() < 5e-2
    else:
        assert error.max() < TOLERANCES[frontend]["sweep" in spec]


def test_centres_of_the_mel_bands_are_those_of_the_original(goldens):
    with np.load(goldens / "efficientat/mel/parts.npz") as file:
        for num_mel_bins in (40, 64, 128):
            np.testing.assert_allclose(mel_band_centres(num_mel_bins), file[f"center_hz_{num_mel_bins}"], rtol=1e-6)


@FRONT_END
def test_a_batch_gives_what_each_wave_gives_alone(frontend):
    batch = noise(5, 2, 9000)
    batch[1] *= 1e-3
    batch[2, 1] = 0.0
    together = LOG_MEL[frontend](batch)
    for row, waves in zip(together, batch, strict=True):
        for channel, wave in zip(row, waves, strict=True):
            torch.testing.assert_close(channel, LOG_MEL[frontend](wave), atol=2e-4, rtol=0)


@pytest.mark.parametrize("frontend", sorted(FRONT_ENDS))
@pytest.mark.parametrize("num_threads", [1, 2])
def test_equal_waves_give_equal_bits_wherever_they_stand_in_a_batch(frontend, num_threads):
    front_end = TwoChannelFrontEnd(frontend)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for num_samples in (514, 641, 700, 1000, 1500, 2000, 2800, 3793, 6441, 16000):
            for batch in (1, 3):
                if num_samples >= front_end.min_samples:
                    features = front_end(noise(1, 1, num_samples).expand(batch, 2, -1).contiguous())
                    assert torch.equal(features, features[:1, :1].expand_as(features)), (num_samples, batch)
    finally:
        torch.set_num_threads(before)


@FRONT_END
def test_a_shorter_recording_of_a_batch_has_the_features_that_it_has_alone(frontend):
    extractor = TwoChannelFeatureExtractor(frontend)
    short, long = noise(2, 5000, seed=1).numpy(), noise(2, 12000, seed=2).numpy()
    features = extractor([short, long], sampling_rate=extractor.sampling_rate)
    alone = extractor(short, sampling_rate=extractor.sampling_rate)["input_values"][0]
    num_frames = alone.shape[1]
    assert num_frames == extractor.front_end.num_frames(5000)
    torch.testing.assert_close(features["input_values"][0, :, :num_frames], alone, atol=2e-4, rtol=0)
    silence = extractor(np.zeros((2, 5000), np.float32), sampling_rate=extractor.sampling_rate)["input_values"]
    assert features["input_values"][0, :, num_frames:].unique().tolist() == pytest.approx([float(silence.unique())])
    assert features["attention_mask"].sum(1).tolist() == [num_frames, features["input_values"].shape[2]]


def test_the_floor_of_dasheng_belongs_to_each_recording_and_channel(waves):
    loud, silent = waves("dasheng", "sweep")[:8000], waves("dasheng", "silence")[:8000]
    extractor = TwoChannelFeatureExtractor("dasheng")
    values = extractor([np.stack([loud, silent]), np.stack([silent, silent])], sampling_rate=16000)["input_values"]
    assert float(values[0, 0].min()) > -90
    torch.testing.assert_close(values[0, 1], torch.full_like(values[0, 1], -100.0))
    torch.testing.assert_close(values[1, 0], torch.full_like(values[1, 0], -100.0))


@FRONT_END
def test_exported_graph_agrees_at_other_sizes_without_complex_tensors(frontend):
    class Spectrogram(torch.nn.Module):
        def forward(self, waves):
            return LOG_MEL[frontend](waves)

    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(Spectrogram(), (noise(2, 16000),), dynamic_shapes=shapes)
    values = [node.meta.get("val") for node in exported.graph.nodes]
    assert not any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)
    for waves in (noise(3, 8123), noise(1, 700)):
        torch.testing.assert_close(exported.module()(waves), LOG_MEL[frontend](waves), atol=2e-3, rtol=1e-4)


@FRONT_END
def test_gradients_reach_every_sample(frontend):
    leaf = noise(2, 2, 4000).requires_grad_()
    LOG_MEL[frontend](leaf).sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.ne(0).float().mean() > 0.99
    small = noise(1, 800).double().requires_grad_()
    direction = noise(1, 800, seed=3, scale=1.0).double()
    (LOG_MEL[frontend](small).mean()).backward()
    step = 1e-3
    with torch.no_grad():
        slope = LOG_MEL[frontend](small + step * direction).mean() - LOG_MEL[frontend](small - step * direction).mean()
    assert float(slope / (2 * step)) == pytest.approx(float((small.grad * direction).sum()), rel=5e-2)


@FRONT_END
def test_precision_does_not_depend_on_autocast_or_on_the_dtype_of_the_waves(frontend):
    waves = noise(2, 4000)
    plain = LOG_MEL[frontend](waves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOG_MEL[frontend](waves), plain)
    torch.testing.assert_close(LOG_MEL[frontend](waves.double()), plain)
    with torch.inference_mode():
        assert torch.equal(LOG_MEL[frontend](waves), plain)
    assert LOG_MEL[frontend](waves.half()).dtype == torch.float32
    assert LOG_MEL[frontend](waves[:0]).shape == (0, *plain.shape[1:])


@pytest.mark.parametrize("num_samples", [514, 640, 641, 32000, 32001, 105600])
@pytest.mark.parametrize("hop_length", [160, 320, 480, 800])
def test_frames_are_counted_before_they_are_computed(num_samples, hop_length):
    frames = efficientat_log_mel(torch.zeros(num_samples), hop_length=hop_length).shape[0]
    assert frames == num_efficientat_frames(num_samples, hop_length) == 1 + (num_samples - 1) // hop_length
    assert dasheng_log_mel(torch.zeros(num_samples)).shape[0] == num_dasheng_frames(num_samples)


@pytest.mark.parametrize("frontend", sorted(FRONT_ENDS))
def test_the_fewest_samples_are_enough_and_one_fewer_is_refused(frontend):
    extractor = TwoChannelFeatureExtractor(frontend)
    least, rate = extractor.front_end.min_samples, extractor.sampling_rate
    values = extractor(noise(2, least).numpy(), sampling_rate=rate)["input_values"]
    assert values.shape[2] == extractor.front_end.num_frames(least)
    with pytest.raises(ValueError, match=f"`audio` must have at least {least} samples.*{least - 1}"):
        extractor(noise(2, least - 1).numpy(), sampling_rate=rate)


def test_settings_of_an_extractor_survive_saving(tmp_path):
    extractor = TwoChannelFeatureExtractor("efficientat", num_mel_bins=64, hop_length=160, resample=True)
    extractor.save_pretrained(tmp_path)
    again = TwoChannelFeatureExtractor.from_pretrained(tmp_path)
    assert (again.frontend, again.sampling_rate, again.num_mel_bins, again.hop_length) == (
        "efficientat",
        32000,
        64,
        160,
    )
    waves = noise(2, 3000).numpy()
    assert torch.equal(again(waves, 32000)["input_values"], extractor(waves, 32000)["input_values"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frontend": "dasheng", "num_mel_bins": 128}, "`num_mel_bins` must be 64 for frontend='dasheng', got 128"),
        ({"frontend": "beats", "hop_length": 80}, "`hop_length` must be 160 for frontend='beats', got 80"),
        ({"frontend": "efficientat", "num_mel_bins": 4}, r"`num_mel_bins` must be in \[8, 1024\], got 4"),
        ({"frontend": "efficientat", "hop_length": 320.0}, "`hop_length` must be 320 .*got 320.0"),
        ({"frontend": "efficientat", "sampling_rate": 16000}, "`sampling_rate` must be 32000, got 16000"),
        ({"frontend": ["beats"]}, "`frontend` must be"),
    ],
)
def test_settings_that_a_front_end_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TwoChannelFeatureExtractor(**settings)


def test_waves_of_integers_are_refused():
    with pytest.raises(ValueError, match="`waveforms` must be floating point"):
        efficientat_log_mel(torch.zeros(1000, dtype=torch.int16))
    with pytest.raises(ValueError, match="`num_samples` must be at least 257 at 16 kHz, got 200"):
        dasheng_log_mel(torch.zeros(200))


def test_cancellation_has_windows_of_the_same_duration_at_every_rate():
    close, far = noise(1, 32000, seed=4), noise(1, 32000, seed=5)
    waves = torch.stack([close + far, far], dim=1)
    front_end = TwoChannelFrontEnd("efficientat", "least_squares")
    left = front_end.cancel(waves)[:, 0]
    assert float((left - close).square().mean()) < 0.05 * float(far.square().mean())
