import numpy as np
import pytest
import torch

from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone

BOTH = pytest.mark.parametrize("method", METHODS)


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_reference(close, far, method):
    """The definition frame by frame in float64 for one clip."""
    length, hop = (1024, 512) if method == "least_squares" else (512, 256)
    num_samples = len(close)
    gain = 0.9 / max(np.abs(close).max(), np.abs(far).max()) if method == "least_squares" else 1.0
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)

    def stft(wave):
        padded = np.pad(gain * wave.astype(np.float64), length // 2, mode="reflect")
        starts = range(0, len(padded) - length + 1, hop)
        return np.stack([np.fft.rfft(window * padded[i : i + length]) for i in starts], axis=1)

    c, f = stft(close), stft(far)
    if method == "least_squares":
        y = c - (c * f.conj()).sum(1, keepdims=True) / ((np.abs(f) ** 2).sum(1, keepdims=True) + 1e-12) * f
    else:
        difference = np.abs(c) - np.abs(f)
        y = np.where(difference > 0, difference, 0.1 * np.abs(c)) * np.exp(1j * np.angle(c))
    total, weight = np.zeros(num_samples + 2 * length), np.zeros(num_samples + 2 * length)
    for t in range(y.shape[1]):
        total[t * hop : t * hop + length] += window * np.fft.irfft(y[:, t])
        weight[t * hop : t * hop + length] += window**2
    kept = slice(length // 2, length // 2 + num_samples)
    return total[kept] / weight[kept] / gain


@BOTH
@pytest.mark.parametrize("num_samples", [8192, 16000, 16011])
def test_agrees_with_the_definition_computed_slowly(method, num_samples):
    far = noise(2, num_samples)
    close = 0.5 * far.roll(3, dims=1) + noise(2, num_samples, seed=1)
    cancelled = cancel_far_microphone(close, far, method)
    for b in range(2):
        expected = slow_reference(close[b].numpy(), far[b].numpy(), method)
        np.testing.assert_allclose(cancelled[b].numpy(), expected, atol=2e-5)


def test_least_squares_removes_coherent_noise_and_keeps_the_machine():
    far = noise(1, 32000)
    machine = noise(1, 32000, seed=1)
    cancelled = cancel_far_microphone(machine + 0.7 * far, far)
    assert (cancelled - machine).square().mean() < 0.05 * machine.square().mean()
    assert cancel_far_microphone(0.7 * far, far).square().mean() < 1e-6 * far.square().mean()


def test_spectral_subtraction_lowers_incoherent_noise_and_keeps_the_machine():
    time = torch.arange(32000) / 16000
    machine = torch.sin(2 * torch.pi * 437 * time)[None]
    close = machine + noise(1, 32000)
    cancelled = cancel_far_microphone(close, noise(1, 32000, seed=1), "spectral_subtraction")
    assert (cancelled - machine).square().mean() < 0.6 * (close - machine).square().mean()


@BOTH
@pytest.mark.parametrize("num_samples", [1, 100, 512, 513, 1023, 1024, 5000, 16383])
def test_silent_far_microphone_leaves_clips_of_any_length_unchanged(method, num_samples):
    close = noise(2, num_samples)
    cancelled = cancel_far_microphone(close, torch.zeros_like(close), method)
    assert cancelled.shape == close.shape
    # The very last samples lie under the fading end of a window.
    torch.testing.assert_close(cancelled, close, atol=1e-5, rtol=0)


@BOTH
def test_silence_stays_silence(method):
    silence = torch.zeros(2, 4000)
    assert cancel_far_microphone(silence, silence, method).eq(0).all()
    assert cancel_far_microphone(silence, noise(2, 4000), method).abs().max() < 1e-7


@BOTH
def test_a_clip_does_not_depend_on_its_batch(method):
    close, far = noise(3, 9000), noise(3, 9000, seed=1)
    close[1] *= 100
    batched = cancel_far_microphone(close, far, method)
    for b in range(3):
        alone = cancel_far_microphone(close[b : b + 1], far[b : b + 1], method)
        torch.testing.assert_close(batched[b : b + 1], alone, atol=1e-6, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("gain", [1e-4, 30.0])
def test_common_gain_comes_out_again(method, gain):
    close, far = noise(1, 9000), noise(1, 9000, seed=1)
    scaled = cancel_far_microphone(gain * close, gain * far, method)
    torch.testing.assert_close(scaled / gain, cancel_far_microphone(close, far, method), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("num_samples", [16384 + rest for rest in (300, 448, 449, 490, 511)])
def test_a_delayed_far_microphone_leaves_no_click_at_the_end(num_samples):
    close = noise(1, num_samples)
    cancelled = cancel_far_microphone(close, 0.3 * close.roll(40, dims=1) + noise(1, num_samples, seed=1, scale=0.01))
    assert cancelled[:, -500:].abs().max() < 2 * close.abs().max()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_result_is_float32_for_every_input_dtype(method, dtype):
    close, far = noise(1, 4000).to(dtype), noise(1, 4000, seed=1).to(dtype)
    cancelled = cancel_far_microphone(close, far, method)
    assert cancelled.dtype == torch.float32
    assert cancelled.equal(cancel_far_microphone(close.float(), far.float(), method))


@pytest.mark.parametrize(
    ("close", "far", "method", "message"),
    [
        (torch.zeros(1, 900), torch.zeros(1, 900), "wiener", "method"),
        (torch.zeros(900), torch.zeros(900), "least_squares", "shape"),
        (torch.zeros(1, 900), torch.zeros(1, 800), "least_squares", r"\(1, 800\)"),
        (torch.zeros(1, 0), torch.zeros(1, 0), "least_squares", r"N > 0"),
    ],
)
def test_bad_input_is_named(close, far, method, message):
    with pytest.raises(ValueError, match=message):
        cancel_far_microphone(close, far, method)
