import numpy as np
import pytest
import torch

from na_ssl_hf.simulation import mix_two_channel, spatial_noises


def random_inputs(batch=3, num_samples=3000, num_taps=700, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    decay = torch.exp(-torch.arange(num_taps) / 100)
    return {
        "target": randn(batch, num_samples),
        "noises": randn(batch, 4, num_samples),
        "rir_target": randn(batch, 2, num_taps) * decay,
        "rir_noise": randn(batch, 4, 2, num_taps) * decay,
        "snr_db": torch.linspace(-10, 10, batch),
        "direct_delay": torch.arange(batch) + 40,
    }


def test_goldens(goldens):
    data = np.load(goldens / "models/sim/sim.npz")

    def both(name):
        length = max(data[f"{name}_ch0"].shape[-1], data[f"{name}_ch1"].shape[-1])
        channels = []
        for channel in (data[f"{name}_ch0"], data[f"{name}_ch1"]):
            padding = [(0, 0)] * (channel.ndim - 1) + [(0, length - channel.shape[-1])]
            channels.append(np.pad(channel, padding))
        return torch.from_numpy(np.stack(channels, axis=-2))

    mixture = mix_two_channel(
        torch.from_numpy(data["wave_s"]),
        torch.from_numpy(data["wave_n"]),
        both("rir_target"),
        both("rir_noise"),
        torch.from_numpy(data["snr_db"]),
        torch.from_numpy(data["direct_delay"]),
        sampling_rate=int(data["fs"]),
        early_reflection_sec=float(data["early_reflection_sec"]),
    )
    for signal, name in zip(mixture, ("x_ch0", "x_ch1", "target"), strict=True):
        assert signal.dtype == torch.float32
        np.testing.assert_allclose(signal.numpy(), data[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_samples", "num_taps"), [(1, 1), (50, 700), (40000, 300), (1025, 1024)], ids=str)
def test_equals_direct_convolution_at_every_block_size(num_samples, num_taps):
    inputs = random_inputs(batch=1, num_samples=num_samples, num_taps=num_taps)
    mixture = mix_two_channel(**inputs, early_reflection_sec=0.01)

    def convolve(signal, response):
        return np.convolve(signal.double().numpy(), response.double().numpy())[:num_samples]

    channels = []
    for channel in range(2):
        target = convolve(inputs["target"][0], inputs["rir_target"][0, channel])
        noise = sum(convolve(inputs["noises"][0, i], inputs["rir_noise"][0, i, channel]) for i in range(4))
        channels.append((target, noise))
    (target, noise), (target_far, noise_far) = channels
    gain = np.sqrt(np.mean(target**2) / 10 ** (float(inputs["snr_db"]) / 10) / (np.mean(noise**2) + 1e-8))
    early = inputs["rir_target"][0, 0].clone()
    early[40 + 160 :] = 0
    scale = np.abs(target).max() + gain * np.abs(noise).max() + 1e-3
    np.testing.assert_allclose(mixture.close[0], target + gain * noise, atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(mixture.far[0], target_far + gain * noise_far, atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(mixture.clean[0], convolve(inputs["target"][0], early), atol=1e-5 * scale, rtol=0)


def test_snr_at_the_close_microphone_is_as_asked():
    inputs = random_inputs()
    mixture = mix_two_channel(**inputs)
    target = mix_two_channel(**inputs | {"noises": torch.zeros_like(inputs["noises"])}).close
    noise = mixture.close - target
    snr = 10 * torch.log10(target.square().mean(1) / noise.square().mean(1))
    torch.testing.assert_close(snr, inputs["snr_db"], atol=1e-2, rtol=0)


def test_one_gain_for_both_microphones():
    inputs = random_inputs()
    same = {"rir_target": inputs["rir_target"][:, :1].expand(-1, 2, -1)}
    same["rir_noise"] = inputs["rir_noise"][:, :, :1].expand(-1, -1, 2, -1)
    mixture = mix_two_channel(**inputs | same)
    torch.testing.assert_close(mixture.close, mixture.far, atol=1e-4, rtol=1e-4)


def test_every_mixture_is_independent_of_its_batch():
    inputs = random_inputs()
    together = mix_two_channel(**inputs)
    for i in range(3):
        alone = mix_two_channel(**{name: tensor[i : i + 1] for name, tensor in inputs.items()})
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[i : i + 1], single)


def test_level_of_the_target_is_kept():
    inputs = random_inputs()
    once, twice = mix_two_channel(**inputs), mix_two_channel(**inputs | {"target": 2 * inputs["target"]})
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b, atol=1e-3, rtol=1e-4)


def test_silence_is_finite():
    inputs = random_inputs()
    no_target = mix_two_channel(**inputs | {"target": torch.zeros_like(inputs["target"])})
    assert all(bool((signal == 0).all()) for signal in no_target)
    no_noise = mix_two_channel(**inputs | {"noises": torch.zeros_like(inputs["noises"])})
    assert all(bool(torch.isfinite(signal).all()) and bool(signal.any()) for signal in no_noise)


def test_inputs_are_not_changed():
    inputs = random_inputs()
    copies = {name: tensor.clone() for name, tensor in inputs.items()}
    mix_two_channel(**inputs)
    assert all(torch.equal(inputs[name], copies[name]) for name in inputs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", torch.zeros(3000)),
        ("target", torch.zeros(3, 0)),
        ("noises", torch.zeros(3, 3, 3000)),
        ("noises", torch.zeros(3, 4, 2999)),
        ("noises", torch.full((3, 4, 3000), torch.nan)),
        ("rir_target", torch.zeros(3, 700)),
        ("rir_target", torch.zeros(2, 2, 700)),
        ("rir_noise", torch.zeros(3, 4, 700)),
        ("rir_noise", torch.zeros(3, 4, 1, 700)),
        ("snr_db", torch.zeros(1)),
        ("snr_db", torch.full((3,), torch.inf)),
        ("direct_delay", torch.zeros(3)),
        ("direct_delay", torch.tensor([40, -1, 40])),
        ("sampling_rate", 0),
        ("early_reflection_sec", -0.05),
    ],
)
def test_bad_input_names_the_argument(name, value):
    with pytest.raises(ValueError, match=name):
        mix_two_channel(**random_inputs() | {name: value})


def test_noise_coherence_sets_the_correlation_and_keeps_the_power():
    noises = torch.randn(2, 4, 200_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(spatial_noises(noises, 0.0), noises)
    same = spatial_noises(noises, 1.0)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    for coherence in (0.0, 0.3, 0.8, 1.0):
        covariance = torch.stack([torch.cov(n) for n in spatial_noises(noises, coherence)])
        expected = (1 - coherence) * torch.eye(4) + coherence
        torch.testing.assert_close(covariance, expected.expand(2, 4, 4), atol=0.02, rtol=0)
    per_item = spatial_noises(noises, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(per_item[0], noises[0])
    torch.testing.assert_close(per_item[1], same[1])


@pytest.mark.parametrize("coherence", [-0.1, 1.1, float("nan"), torch.zeros(3)], ids=str)
def test_bad_coherence(coherence):
    with pytest.raises(ValueError, match="coherence"):
        spatial_noises(torch.zeros(2, 4, 10), coherence)


def test_bad_noises_for_coherence():
    with pytest.raises(ValueError, match="noises"):
        spatial_noises(torch.zeros(4, 10), 0.5)
