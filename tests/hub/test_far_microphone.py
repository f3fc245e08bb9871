"""The calibrated far microphone: it learns the path of the noise, and leaves the machine alone."""

import json
import math

import pytest
import torch

from na_ssl_hf.hub import far_microphone as module
from na_ssl_hf.hub.far_microphone import FAR_MICROPHONE_FILE, FAR_MICROPHONE_METHODS, FarMicrophone
from na_ssl_hf.hub.noise_cancellation import (
    Contrast,
    Heard,
    NoisePathSums,
    Spectra,
    filtered,
    lead_db,
    level_ratio,
    solve_noise_path,
)

RATE = 16000


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def path(num_taps=300, seed=1):
    """A decaying response with a direct path after 40 samples."""
    taps = 0.3 * random(num_taps, seed=seed) * torch.exp(-torch.arange(num_taps) / 60)
    taps[:40], taps[40] = 0.0, 1.0
    return taps


def convolved(wave, taps):
    length = wave.shape[-1]
    size = 1 << (length + len(taps)).bit_length()
    return torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(taps, size), size)[..., :length]


def varying_noise(count, num_samples, seed):
    """White noise whose level differs from recording to recording and from second to second."""
    levels = 10 ** (random(count, num_samples // 8000 + 2, seed=seed + 1000) / 2)
    curve = torch.nn.functional.interpolate(levels[:, None], num_samples, mode="linear")[:, 0]
    return 0.02 * curve * random(count, num_samples, seed=seed)


def steady_machine(count, num_samples, seed):
    """Tones and a constant noise, which are the same in level all the time."""
    time = torch.arange(num_samples) / RATE
    phases = 2 * math.pi * torch.rand(count, 3, 1, generator=torch.Generator().manual_seed(seed))
    tones = sum(torch.sin(2 * math.pi * f * time + phases[:, i]) for i, f in enumerate((220.0, 950.0, 3100.0)))
    return 0.05 * tones + 0.05 * random(count, num_samples, seed=seed + 1)


def site(count=12, seconds=3.0, seed=0, coherent=True, leakage=0.3):
    """`(count, 2, N)` recordings, and what machine and noise have in them, alike."""
    num_samples = int(seconds * RATE)
    noise = varying_noise(count, num_samples, seed)
    if coherent:
        heard = convolved(noise, path())
    else:
        # The same levels, but other samples.
        heard = noise.abs() * random(count, num_samples, seed=seed + 2).sign()
    machine = steady_machine(count, num_samples, seed + 3)
    noises = torch.stack([heard, noise], dim=1)
    machines = torch.stack([machine, leakage * machine.roll(20, dims=-1)], dim=1)
    return noises + machines, machines, noises


def decibels(part, whole):
    return 10 * float(torch.log10(part.square().mean() / whole.square().mean()))


@pytest.fixture(scope="module")
def recordings():
    return site()


@pytest.fixture(scope="module")
def calibrated(recordings):
    return FarMicrophone().fit(recordings[0])


def test_a_known_path_is_recovered_and_new_noise_cancelled_by_20_db():
    noises = site(seed=5)[2]
    far_microphone = FarMicrophone("filter").fit(noises)
    new = site(seed=50)[2]
    cancelled = far_microphone.cancel(new)
    assert decibels(cancelled[:, 0, 1000:-1000], new[:, 0, 1000:-1000]) < -20
    assert cancelled[:, 1].equal(new[:, 1])


def test_a_steady_machine_that_leaks_into_the_far_microphone_is_kept_while_the_noise_goes(calibrated):
    _, machines, noises = site(seed=60)
    assert calibrated.method_ == "installation"
    assert not calibrated.slope_.any()
    filtered = [calibrated.cancel(part)[:, 0] for part in (machines, noises)]
    assert decibels(filtered[1], noises[:, 0]) < -10
    # What the filter makes of the leakage is an echo of the machine; its level hardly changes.
    assert abs(decibels(filtered[0], machines[:, 0])) < 2


def test_a_filter_without_protection_would_cancel_the_machine_more(recordings):
    """The mean of all blocks, which the difference replaces, makes a filter of the machine."""
    _, machines, _ = site(seed=60, leakage=1.0)
    sums = NoisePathSums(RATE)
    sums.add(site(leakage=1.0, coherent=False)[0])
    left = []
    for noise in (sums.difference(), sums.mean()):
        taps = solve_noise_path(Heard(noise, sums.mean()), [], 4096, 2048, RATE)
        left.append(decibels(machines[:, 0] - filtered(machines[:, 1], taps, 2048), machines[:, 0]))
    assert left[0] > -1 > left[1] + 3


def test_incoherent_noise_is_subtracted_by_its_power():
    far_microphone = FarMicrophone("installation").fit(site(coherent=False)[0])
    assert far_microphone.slope_.median() == pytest.approx(2, rel=0.5)
    mixture, machines, noises = site(seed=70, coherent=False)
    left = far_microphone.cancel(mixture)[:, 0] - machines[:, 0]
    assert decibels(left, noises[:, 0]) < -3


def test_auto_stands_back_where_the_close_microphone_does_not_follow_the_far_one():
    machine = steady_machine(12, 48000, 3)
    mixture = torch.stack([machine, varying_noise(12, 48000, 0)], dim=1)
    far_microphone = FarMicrophone("auto").fit(mixture)
    assert far_microphone.method_ == "none"
    assert far_microphone.cancel(mixture).equal(mixture)


def bursting_machine(count, num_samples, seed):
    """A machine whose loudness changes from half second to half second, much more than that of any noise here."""
    levels = (10 ** (1.5 * random(count, num_samples // 8000 + 1, seed=seed + 1000) / 2)).clamp(0.05, 4)
    return 0.05 * levels.repeat_interleave(8000, dim=1)[:, :num_samples] * random(count, num_samples, seed=seed)


def site_of_bursts(seed=0, far_level=0.8, far_delay=24, noise_level=0.05):
    """As `site`, with noise of one level, along one path, and a machine that varies, which the far microphone hears."""
    noise = noise_level * random(12, 48000, seed=seed)
    machine = bursting_machine(12, 48000, seed + 3)
    noises = torch.stack([0.3 * convolved(noise, path()), noise], dim=1)
    machines = torch.stack([machine, far_level * machine.roll(far_delay, dims=-1)], dim=1)
    return noises + machines, machines, noises


@pytest.fixture(scope="module")
def bursts():
    return site_of_bursts()


def test_auto_keeps_a_machine_that_varies_which_the_difference_of_levels_takes_for_noise(bursts):
    mixture, machines, noises = bursts
    chosen, by_level = (FarMicrophone(method).fit(mixture) for method in ("auto", "filter"))
    assert chosen.method_ == "installation"
    kept, taken = (
        decibels(machines[:, 0] - filtered(machines[:, 1], one.filter_, 2048), machines[:, 0])
        for one in (chosen, by_level)
    )
    assert taken < -3
    assert kept > -1
    left = noises[:, 0] - filtered(noises[:, 1], chosen.filter_, 2048)
    assert decibels(left, noises[:, 0]) < -3


def test_auto_stands_back_and_says_so_where_the_machine_comes_to_the_far_microphone_first(warnings_seen):
    # The close microphone hears the machine later and softer than the far one, and noise louder.
    mixture = site_of_bursts(far_level=1.4, far_delay=-24)[0]
    assert FarMicrophone("installation").fit(mixture).method_ == "installation"
    assert not [told for told in warnings_seen if "'auto' leaves" in told]
    far_microphone = FarMicrophone("auto").fit(mixture)
    assert far_microphone.method_ == "none"
    assert far_microphone.cancel(mixture).equal(mixture)
    assert [told for told in warnings_seen if "'auto' leaves the close microphone as it is" in told]


def test_auto_subtracts_only_where_the_filter_does_not_take_the_noise():
    coherent, other = (FarMicrophone("auto").fit(site(coherent=one)[0]) for one in (True, False))
    assert not coherent.slope_.any()
    assert other.slope_.median() == pytest.approx(0.25, rel=0.3)


@pytest.mark.parametrize("leakage", [0.1, 0.9])
def test_the_level_of_the_machine_is_found_in_the_noise(leakage):
    sums = NoisePathSums(RATE, by_ratio=True)
    sums.add(site(coherent=False, leakage=leakage)[0])
    assert level_ratio(sums.contrast().without_noise(), RATE) == pytest.approx(leakage**-2, rel=0.3)


def test_auto_does_not_take_noise_that_comes_to_the_far_microphone_first_for_the_machine():
    mixture, machines, noises = site_of_bursts(far_level=0.1, noise_level=0.2)
    far_microphone = FarMicrophone("auto").fit(mixture)
    assert lead_db(far_microphone.contrast_.machine, RATE) < -6.7
    assert far_microphone.method_ == "installation"
    left, kept = (one[:, 0] - filtered(one[:, 1], far_microphone.filter_, 2048) for one in (noises, machines))
    assert decibels(left, noises[:, 0]) < -10
    assert decibels(kept, machines[:, 0]) > -1


def test_auto_with_the_noise_alone_is_what_installation_is(recordings):
    mixture, _, noises = recordings
    chosen, other = (FarMicrophone(method).fit(mixture, machine_off=noises) for method in ("auto", "installation"))
    assert chosen.contrast_ is None
    assert chosen.filter_.equal(other.filter_)
    assert chosen.slope_.equal(other.slope_)


def test_auto_is_saved_with_what_an_update_needs_and_older_states_have_none_of_it(bursts, tmp_path):
    mixture = bursts[0]
    far_microphone = FarMicrophone("auto").fit(mixture)
    far_microphone.save_pretrained(tmp_path)
    loaded = FarMicrophone.from_file(tmp_path / FAR_MICROPHONE_FILE)
    assert loaded.fingerprint == far_microphone.fingerprint
    for one in (loaded, far_microphone):
        one.update(mixture, forget=0.5)
        assert one.slope_.any() == FarMicrophone("auto").fit(mixture).slope_.any()
    torch.testing.assert_close(loaded.filter_, far_microphone.filter_, atol=1e-4, rtol=0)
    tensors, settings = far_microphone.state()
    before = {name: tensor for name, tensor in tensors.items() if not name.startswith("contrast")}
    assert len(before) == len(tensors) - 2
    older = FarMicrophone.from_state(before, settings)
    assert older.contrast_ is None
    assert older.cancel(mixture).equal(far_microphone.cancel(mixture))
    with pytest.raises(ValueError, match="`contrast_noise_spectra` must be finite of shape"):
        FarMicrophone.from_state({**tensors, "contrast_noise_spectra": torch.zeros(4, 3)}, settings)


def test_one_source_is_taken_out_of_a_contrast_of_two():
    """Two sources, each coherent between the microphones, in other shares: what is left is a multiple of the noise."""

    def source(seed, ratio):
        path_of_source = torch.complex(random(200, seed=seed), random(200, seed=seed + 1)).to(torch.complex128)
        path_of_source = path_of_source / path_of_source.abs() * ratio
        return path_of_source.abs().square(), torch.ones(200).double(), path_of_source

    noise, machine = source(1, 0.5), source(3, 3.0)
    mixed = [
        Spectra(*(a * n + b * m for n, m in zip(noise, machine, strict=True))) for a, b in ((1.0, 0.2), (0.6, 1.0))
    ]
    left = Contrast(*mixed).without_machine()
    share = left.far[:, None]
    torch.testing.assert_close(share, (1 - 0.2 * 0.6) * torch.ones_like(share), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(left.cross / left.far, noise[2], atol=1e-6, rtol=1e-6)


def test_the_lead_is_positive_where_sound_comes_to_the_close_microphone_first():
    wave = random(1, 48000)
    for delay, low, high in ((30, 6, 100), (-30, -100, -6)):
        sums = NoisePathSums(RATE)
        sums.add(torch.stack([wave, wave.roll(delay, dims=-1)], dim=1) + 0.1 * random(1, 2, 48000, seed=2))
        assert low < lead_db(sums.mean(), RATE) < high
    unlike = NoisePathSums(RATE)
    unlike.add(random(4, 2, 48000, seed=5))
    assert abs(lead_db(unlike.mean(), RATE)) < 4


def test_machine_off_recordings_give_the_path_even_where_the_noise_never_changes():
    noise = 0.05 * random(10, 48000)
    noises = torch.stack([convolved(noise, path()), noise], dim=1)
    machines = site(10)[1]
    far_microphone = FarMicrophone("filter").fit(noises + machines, machine_off=noises)
    assert decibels(far_microphone.cancel(noises)[:, 0], noises[:, 0]) < -20
    without = FarMicrophone("filter").fit(noises + machines)
    assert decibels(without.cancel(machines)[:, 0], machines[:, 0]) > -1


def test_the_order_and_the_batches_of_recordings_have_no_influence(recordings, calibrated):
    mixture = recordings[0]
    one_by_one = FarMicrophone()
    for recording in mixture.flip(0):
        one_by_one.partial_fit(recording)
    one_by_one.finish()
    torch.testing.assert_close(one_by_one.filter_, calibrated.filter_, atol=1e-6, rtol=1e-4)
    assert FarMicrophone().fit(iter(mixture.split(5))).num_seconds_ == 36


def test_the_sums_do_not_grow_with_the_number_of_recordings(recordings):
    sums = NoisePathSums(RATE)
    sums.add(recordings[0][:1])
    before = sums.sums.numel() + sums.counts.numel()
    sums.add(recordings[0])
    assert sums.sums.numel() + sums.counts.numel() == before
    assert sums.num_samples == 13 * 48000


def test_equal_recordings_give_equal_bytes(recordings, calibrated):
    again = FarMicrophone().fit(recordings[0])
    assert again.filter_.equal(calibrated.filter_)
    assert again.fingerprint == calibrated.fingerprint
    assert again.fingerprint != FarMicrophone("filter", future=0.0).fit(recordings[0]).fingerprint


@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("num_samples", [1, 300, 9000])
def test_a_recording_of_any_length_does_not_depend_on_its_batch(coherent, num_samples):
    mixture = site(coherent=coherent)[0]
    far_microphone = FarMicrophone().fit(mixture)
    assert far_microphone.slope_.any() != coherent
    batch = mixture[:3, :, :num_samples]
    together = far_microphone.cancel(batch)
    assert together.shape == batch.shape
    for index in range(3):
        torch.testing.assert_close(
            far_microphone.cancel(batch[index : index + 1])[0], together[index], atol=1e-6, rtol=1e-4
        )


@pytest.mark.parametrize("coherent", [True, False])
def test_saved_and_loaded_it_cancels_the_same(coherent):
    mixture = site(coherent=coherent)[0]
    far_microphone = FarMicrophone("auto").fit(mixture)
    tensors, settings = far_microphone.state()
    loaded = FarMicrophone.from_state(tensors, json.loads(json.dumps(settings)))
    assert loaded.cancel(mixture).equal(far_microphone.cancel(mixture))
    assert loaded.fingerprint == far_microphone.fingerprint
    for own, band in zip(loaded.report(), far_microphone.report(), strict=True):
        assert (own.cancelled_db, own.coherence) == pytest.approx((band.cancelled_db, band.coherence), abs=1e-3)
    assert loaded.update(mixture).filter_.shape == far_microphone.filter_.shape


def test_a_file_holds_it_all_and_others_are_named(calibrated, recordings, tmp_path):
    calibrated.save_pretrained(tmp_path)
    path = tmp_path / FAR_MICROPHONE_FILE
    assert path.stat().st_size < 400_000
    loaded = FarMicrophone.from_file(path)
    assert loaded.fingerprint == calibrated.fingerprint
    assert loaded.cancel(recordings[0]).equal(calibrated.cancel(recordings[0]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match="must be a calibrated far microphone"):
        FarMicrophone.from_file(path)


def test_damaged_states_are_refused(calibrated):
    tensors, settings = calibrated.state()
    for damage, message in (
        ({"filter": tensors["filter"][1:]}, "`filter` must be finite of shape"),
        ({"slope": tensors["slope"] / 0}, "`slope` must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            FarMicrophone.from_state({**tensors, **damage}, settings)
    for damage in ({"chosen": "none"}, {"num_seconds": -1.0}, {"method": "best"}, {"past": "long"}):
        with pytest.raises(ValueError, match="must be"):
            FarMicrophone.from_state(tensors, {**settings, **damage})
    with pytest.raises(ValueError, match="must have the keys"):
        FarMicrophone.from_state({}, settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_result_is_float32_for_every_input_dtype(calibrated, recordings, dtype):
    waveforms = recordings[0][:2].to(dtype)
    cancelled = calibrated.cancel(waveforms)
    assert cancelled.dtype == torch.float32
    assert cancelled.equal(calibrated.cancel(waveforms.float()))


@pytest.mark.parametrize("coherent", [True, False])
def test_gradients_pass_and_are_not_needed(coherent):
    mixture = site(coherent=coherent)[0]
    far_microphone = FarMicrophone().fit(mixture.requires_grad_())
    assert not far_microphone.filter_.requires_grad
    waveforms = torch.cat([mixture[:1].detach(), torch.zeros(1, 2, 48000)]).requires_grad_()
    far_microphone.cancel(waveforms).square().sum().backward()
    assert waveforms.grad.isfinite().all()
    assert waveforms.grad[0].abs().max() > 0


def test_the_causal_filter_hears_nothing_of_later_samples(recordings):
    causal = FarMicrophone("filter", future=0.0).fit(recordings[0])
    waveforms = recordings[0][:1].clone()
    before = causal.cancel(waveforms)
    waveforms[..., 20000:] = 0
    torch.testing.assert_close(causal.cancel(waveforms)[..., :20000], before[..., :20000], atol=1e-6, rtol=0)
    assert decibels(causal.cancel(recordings[2])[:, 0], recordings[2][:, 0]) < -10


STREAMED = {
    "filter": ("filter", {}, True),
    "causal filter": ("filter", {"future": 0.0}, True),
    "filter and subtraction": ("installation", {"past": 0.05, "future": 0.02}, False),
    "spectral subtraction": ("spectral_subtraction", {}, False),
    "none": ("none", {}, False),
}


@pytest.mark.parametrize("sizes", [(160,), (1000, 0, 1, 9000, 37), (20000,)], ids=str)
@pytest.mark.parametrize(("method", "settings", "coherent"), STREAMED.values(), ids=STREAMED)
def test_a_stream_gives_what_cancelling_the_whole_recording_gives(method, settings, coherent, sizes):
    mixture = site(coherent=coherent)[0]
    far_microphone = FarMicrophone(method, **settings).fit(mixture)
    if method == "installation":  # which has a filter where the noise is coherent, and subtracts where it is not
        assert far_microphone.slope_.any()
        far_microphone.filter_ = 0.02 * random(*far_microphone.filter_.shape, seed=4)
    stream = far_microphone.stream()
    for recording in (mixture[0, :, :16001], mixture[1, :, :900], mixture[2, :, :24000]):
        given, begin, turn = [], 0, 0
        while begin < recording.shape[1]:
            block = recording[:, begin : begin + sizes[turn % len(sizes)]]
            given.append(stream.push(block))
            begin, turn = begin + block.shape[1], turn + 1
            assert sum(one.shape[1] for one in given) == max(0, begin - far_microphone.latency)
        given.append(stream.finish())
        whole = far_microphone.cancel(recording[None])[0]
        torch.testing.assert_close(torch.cat(given, dim=1), whole, atol=1e-5, rtol=0)


def test_no_later_sample_than_the_latency_decides_the_output():
    far_microphone = FarMicrophone("installation", past=0.05, future=0.02).fit(site(coherent=False)[0])
    assert far_microphone.latency == 320 + 3 * 256
    recording = random(2, 16000, seed=3)
    changed = recording.clone()
    changed[:, 8000:] = 1.0
    first, second = (far_microphone.stream().push(one[:, :12000]) for one in (recording, changed))
    kept = 8000 - far_microphone.latency
    torch.testing.assert_close(first[:, :kept], second[:, :kept], atol=1e-6, rtol=0)
    assert not torch.allclose(first[:, kept : kept + 400], second[:, kept : kept + 400], atol=1e-6)


def test_what_a_stream_keeps_does_not_grow(calibrated):
    stream = calibrated.stream()
    kept = []
    for _ in range(12):
        stream.push(random(2, 4000))
        kept.append(stream._kept.shape[1])
    assert len(set(kept[-4:])) == 1


def test_a_stream_refuses_what_cancelling_refuses(calibrated):
    stream = calibrated.stream()
    for block, message in (
        (torch.zeros(1, 2, 10), r"`block` must be a tensor of shape \(2, n\), got \(1, 2, 10\)"),
        (torch.zeros(3, 10), "shape"),
        (torch.zeros(2, 10, dtype=torch.int16), "floating point"),
        (torch.full((2, 10), math.nan), "must be finite, got nan"),
        ([0.0], "got list"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.push(block)
    with pytest.raises(ValueError, match="not fitted yet"):
        FarMicrophone().stream()


def test_the_report_says_per_band_what_is_cancelled(calibrated):
    bands = calibrated.report()
    assert [band.low for band in bands] == [0, 250, 500, 1000, 2000, 4000]
    assert bands[-1].high == 8000
    assert all(band.cancelled_db > 10 and 0.8 < band.coherence <= 1 for band in bands[2:])
    incoherent = FarMicrophone().fit(site(coherent=False)[0]).report()
    assert all(band.coherence < 0.6 and abs(band.cancelled_db) < 1 for band in incoherent[1:])


def test_drift_is_seen_and_followed():
    mixture = site(20, seed=80)[0]
    far_microphone = FarMicrophone().fit(mixture)
    assert not far_microphone.drift(site(20, seed=90)[0]).is_drifted
    machines, noise = site(20, seed=100)[1], varying_noise(20, 48000, 100)
    moved = machines + torch.stack([convolved(noise, path(seed=9)), noise], dim=1)
    assert far_microphone.drift(moved).residual_db > 3
    louder = mixture * torch.tensor([1.0, 2.0])[:, None]
    assert far_microphone.drift(louder).level_db == pytest.approx(6, abs=0.5)
    far_microphone.update(moved, forget=0.0)
    assert not far_microphone.drift(moved).is_drifted


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(module.logger, "warning", seen.append)
    return seen


@pytest.fixture
def listening(monkeypatch):
    """A calibrated far microphone that listens to 60 s at a time."""
    monkeypatch.setattr(module, "LISTENED_SECONDS", 60.0)
    return FarMicrophone().fit(site(20, seed=80)[0])


def moved(seed):
    """Recordings of the same machine with the noise along another path."""
    noise = varying_noise(20, 48000, seed)
    return site(20, seed=seed)[1] + torch.stack([convolved(noise, path(seed=9)), noise], dim=1)


def test_a_drift_is_told_once_with_its_measure(listening, warnings_seen):
    listening.listen(site(20, seed=90)[0])
    assert warnings_seen == []
    for seed in (100, 101):
        listening._unheard = 0.0
        for recording in moved(seed).split(7):
            listening.listen(recording)
    assert len(warnings_seen) == 1
    drift = listening.drift(moved(100))
    assert drift.residual_db > 3
    assert f"calibrated: {drift.residual_db:+.1f} dB of noise that the filter leaves" in warnings_seen[0]
    assert "swapped" not in warnings_seen[0]


def test_a_drift_that_swapped_channels_explain_is_told_as_such(listening, warnings_seen):
    listening.listen(site(20, seed=90)[0].flip(1))
    assert "With its channels swapped it would be as it was" in warnings_seen[0]


def test_nine_tenths_are_passed_over_and_the_sums_are_given_back(listening, warnings_seen):
    listening.listen(site(20, seed=90)[0])
    assert listening._listened is None
    drifted = moved(100)
    for _ in range(9):
        listening.listen(drifted)
    assert warnings_seen == []
    listening.listen(drifted)
    assert len(warnings_seen) == 1


def test_silence_and_a_far_microphone_that_is_not_used_tell_nothing(listening, warnings_seen):
    listening.listen(torch.zeros(20, 2, 48000))
    FarMicrophone("none").fit(site(20, seed=80)[0]).listen(moved(100))
    assert warnings_seen == []


# Bad input


def test_too_little_or_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="`recordings` must hold at least one recording, got none"):
        FarMicrophone().fit([])
    with pytest.raises(ValueError, match=r"must hold at least 3\.84 s for a filter of 6144 taps, got 1\.00 s"):
        FarMicrophone().fit(random(1, 2, 16000))
    silent = random(5, 2, 16000)
    silent[:, 1] = 0
    with pytest.raises(ValueError, match="got silence: there is nothing to calibrate on"):
        FarMicrophone().fit(silent)
    with pytest.raises(ValueError, match="`machine_off` must hold at least one recording"):
        FarMicrophone().fit(random(5, 2, 16000), machine_off=torch.zeros(1, 2, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_named(value):
    mixture = random(5, 2, 16000)
    mixture[2, 1, 77] = value
    with pytest.raises(ValueError, match="`waveforms` must be finite, got"):
        FarMicrophone().fit(mixture)


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (torch.zeros(2, 1, 16000), r"shape \(B, 2, N\), got \(2, 1, 16000\)"),
        (torch.zeros(16000), r"got \(16000,\)"),
        (torch.zeros(1, 2, 16000, dtype=torch.int16), "floating point of full scale 1.0, got torch.int16"),
        ([0.0, 1.0], "got list"),
    ],
)
def test_other_waveforms_are_refused(calibrated, waveforms, message):
    with pytest.raises(ValueError, match=message):
        calibrated.cancel(waveforms)
    with pytest.raises(ValueError, match=message):
        FarMicrophone().partial_fit(waveforms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "`method` must be one of"),
        ({"sampling_rate": 100}, "of 1000 to 192000 Hz, got 100"),
        ({"sampling_rate": 10**9}, "of 1000 to 192000 Hz, got 1000000000"),
        ({"past": 0.0}, "`past` must be from 0.001 to 0.256 s, got 0.0"),
        ({"future": 1.0}, "`future` must be from"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FarMicrophone(**settings)


def test_what_needs_a_calibration_says_so():
    with pytest.raises(ValueError, match="not fitted yet"):
        FarMicrophone().cancel(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="not fitted yet"):
        _ = FarMicrophone().fingerprint


def test_machine_off_recordings_with_the_machine_are_warned_of(recordings, warnings_seen):
    mixture, _, noises = recordings
    FarMicrophone().fit(mixture, machine_off=noises)
    assert not warnings_seen
    FarMicrophone().fit(mixture, machine_off=site(seed=7)[0])
    assert "sound like the normal ones" in warnings_seen[0]


def test_swapped_channels_are_warned_of(recordings, warnings_seen):
    FarMicrophone().fit(recordings[0])
    assert not warnings_seen
    FarMicrophone().fit(recordings[0].flip(1))
    assert "are the channels swapped?" in warnings_seen[0]


@pytest.mark.parametrize("rate", [8000, 32000])
def test_other_rates_have_blocks_and_filters_as_long_in_seconds(rate):
    far_microphone = FarMicrophone("filter", sampling_rate=rate).fit(site(12, 3.0 * rate / RATE)[2])
    assert len(far_microphone.filter_) == round(0.384 * rate)
    assert decibels(far_microphone.cancel(site(12, seed=9)[2])[:, 0], site(12, seed=9)[2][:, 0]) < -15


def test_methods_that_learn_nothing_need_no_filter(recordings):
    assert "auto" in FAR_MICROPHONE_METHODS
    subtracting = FarMicrophone("spectral_subtraction").fit(recordings[0])
    assert not subtracting.filter_.any()
    assert not subtracting.cancel(recordings[0]).equal(recordings[0])
    assert FarMicrophone("none").fit(recordings[0]).cancel(recordings[0]).equal(recordings[0])
