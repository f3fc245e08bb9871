"""Sensor health: what is done to microphones is found and named, and neither normal sound nor a machine's fault is."""

import re

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve, lfilter

from na_ssl_hf.hub.feature_extraction_two_channel import OddityReport
from na_ssl_hf.hub.input_level import LevelRange, UsualMicrophones, mains_share, microphone_profiles
from na_ssl_hf.watch.sensor_health import SensorHealth

RATE = 16000
NUM_SITES = 4


class Site:
    """A machine and a noise in a room, as two microphones hear them: decaying noise as impulse responses."""

    def __init__(self, seed):
        draw = self.draw = np.random.default_rng(seed)
        self.close = self.response(5, 1.0)
        self.far = self.response(int(draw.integers(60, 200)), 10 ** (-draw.uniform(8, 16) / 20))
        self.noise = [self.response(int(draw.integers(20, 200)), draw.uniform(*at)) for at in ((0.2, 0.6), (0.5, 1))]
        self.pitch, self.color = draw.uniform(65, 110), draw.uniform(-0.9, 0.9)
        self.gain = 10 ** (draw.uniform(-50, -35) / 20)

    def response(self, delay, direct):
        response = self.draw.standard_normal(3000) * np.exp(-np.arange(3000) / 800) * 0.05
        response[:delay] = 0
        response[delay] += direct
        return response

    def window(self, seed, fault=0.0, beside=False):
        draw = np.random.default_rng([seed, 7])
        num_samples = 2 * RATE
        time = np.arange(num_samples) / RATE
        pitch = self.pitch * (1 + 0.01 * draw.standard_normal())
        machine = sum(np.sin(2 * np.pi * pitch * k * time + draw.uniform(0, 6)) / k for k in range(1, 12))
        machine = machine + lfilter([1], [1, -self.color], draw.standard_normal(num_samples))
        machine += fault * np.sin(2 * np.pi * 1800 * time)
        noise = draw.standard_normal(num_samples) * 10 ** (-draw.uniform(0, 10) / 20)
        # A far microphone beside the machine hears it first; the close one is then further away.
        paths = [np.roll(self.close, 40) * 0.6, self.close * 1.5] if beside else [self.close, self.far]
        both = [
            fftconvolve(machine, to_machine)[3000:num_samples] + fftconvolve(noise, to_noise)[3000:num_samples]
            for to_machine, to_noise in zip(paths, self.noise, strict=True)
        ]
        return (self.gain * np.stack(both)).astype(np.float32).clip(-1, 1)


@pytest.fixture(scope="module")
def sites():
    """Sites with what is usual there."""
    found = []
    for seed in range(NUM_SITES):
        site, levels, oddities = Site(seed), LevelRange(RATE), OddityReport(RATE)
        for index in range(20):
            window = torch.from_numpy(site.window(index))[None]
            levels.note([""], window)
            oddities.note([""], window)
        levels.far_leads = oddities.swapped_share
        found.append((site, levels.microphones))
    return found


def broken(samples, kind, seed):
    draw = np.random.default_rng(seed)
    samples, channel = samples.copy(), seed % 2
    own = samples[channel]
    time = np.arange(len(own)) / RATE
    if kind == "dead":
        own[:] = 0.001
    elif kind == "clipped":
        own[:] = np.clip(own / np.quantile(np.abs(own), 0.97), -1, 1)
    elif kind == "disconnected":
        own[:] = 4e-5 * draw.standard_normal(len(own))
    elif kind == "humming":
        hum = sum(np.sin(2 * np.pi * 50 * k * time + k) / k for k in range(1, 7))
        own += 2 * own.std() / hum.std() * hum
    elif kind == "level-shifted":
        own *= 10 ** (draw.choice([-10, 10]) / 20)
    elif kind == "both":
        samples *= 10 ** (-12 / 20)
    elif kind == "identical":
        samples[1] = samples[0]
    elif kind == "invalid":
        own[5] = np.nan
    return samples[::-1].copy() if kind == "swapped" else samples


WORDS = {
    "dead": "is silent",
    "clipped": "is clipped",
    "disconnected": "hears next to nothing",
    "humming": "hums",
    "level-shifted": "has a gain changed",
    "both": "Both microphones are 1[0-9] dB quieter",
    "identical": "connected twice",
    "invalid": "no numbers",
    "swapped": "channels are swapped",
}


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_done_to_a_microphone_is_found_and_named(sites, kind):
    for number, (site, usual) in enumerate(sites):
        health = SensorHealth(usual, RATE)
        for index in range(4):
            found = health.step(broken(site.window(100 + index), kind, number))
            assert found.is_suspected or index == 0
        assert found.fault is not None, number
        assert re.search(WORDS[kind], found.fault), found.fault


def test_a_far_microphone_beside_the_machine_is_found(sites):
    for site, usual in sites:
        health = SensorHealth(usual, RATE)
        for index in range(4):
            found = health.step(site.window(100 + index, beside=True))
        assert found.fault is not None


def test_a_far_microphone_that_is_set_louder_is_judged_by_the_usual_relation_of_the_channels():
    louder = np.array([[1.0], [10 ** (16 / 20)]], np.float32)
    for seed in (0, 3):
        site, levels, oddities = Site(seed), LevelRange(RATE), OddityReport(RATE)
        for index in range(12):
            window = torch.from_numpy(louder * site.window(index))[None]
            levels.note([""], window)
            oddities.note([""], window)
        levels.far_leads = oddities.swapped_share
        told = {}
        for name, changes in (("normal", {}), ("whine", {"fault": 0.7}), ("beside", {"beside": True})):
            health = SensorHealth(levels.microphones, RATE)
            for index in range(4):
                told[name] = health.step(louder * site.window(100 + index, **changes)).fault
        assert (told["normal"], told["whine"]) == (None, None)
        assert told["beside"] is not None, seed


def test_a_far_microphone_beside_the_machine_is_found_where_normal_recordings_differ_much():
    site, levels, draw = Site(6), LevelRange(RATE), np.random.default_rng(6)

    def window(seed, **changes):
        return np.float32(10 ** (draw.uniform(-8, 8) / 20)) * site.window(seed, **changes)

    for index in range(12):
        levels.note([""], torch.from_numpy(window(index))[None])
    told = []
    for changes in ({}, {"fault": 0.7}, {"beside": True}):
        health = SensorHealth(levels.microphones, RATE)
        told.append([health.step(window(100 + index, **changes)).fault for index in range(4)][-1])
    assert told[:2] == [None, None]
    assert "earlier and louder" in (told[2] or "")


@pytest.mark.parametrize("fault", [0.0, 0.7])
def test_neither_normal_sound_nor_a_fault_of_the_machine_is_one_of_a_microphone(sites, fault):
    for site, usual in sites:
        health = SensorHealth(usual, RATE)
        assert not any(health.step(site.window(200 + index, fault=fault)).fault for index in range(6))


def test_one_odd_window_is_suspected_and_no_fault_yet_and_a_fault_ends(sites):
    site, usual = sites[0]
    health = SensorHealth(usual, RATE)
    normal, swapped = site.window(300), site.window(301)[::-1].copy()
    assert health.step(swapped) == type(health.step(normal))(None, True)
    for _ in range(4):
        found = health.step(swapped)
    assert found.fault is not None
    for _ in range(4):
        found = health.step(normal)
    assert (found.fault, found.is_suspected) == (None, False)


def test_without_what_is_usual_only_the_samples_are_judged():
    health = SensorHealth(None, RATE)
    site = Site(9)
    assert health.step(site.window(0)[::-1].copy()).fault is None
    assert health.step(np.zeros((2, RATE), np.float32)).fault is not None


@pytest.mark.parametrize("far", ["silent", "same"])
def test_one_microphone_alone_is_no_fault_where_it_is_usual(far):
    site, levels = Site(3), LevelRange(RATE)

    def window(seed):
        samples = site.window(seed)
        samples[1] = 0 if far == "silent" else samples[0]
        return samples

    for index in range(12):
        levels.note([""], torch.from_numpy(window(index))[None])
    health = SensorHealth(levels.microphones, RATE)
    assert [health.step(window(100 + index)).fault for index in range(4)] == [None] * 4
    samples = window(110)
    samples[0] = 0
    assert health.step(samples).fault is not None


def test_a_gain_moves_the_levels_of_a_profile_and_not_the_coherence():
    waveform = torch.from_numpy(Site(1).window(0))[None]
    changed = waveform * torch.tensor([10.0, 1.0])[None, :, None]
    difference = (microphone_profiles(changed) - microphone_profiles(waveform))[0]
    torch.testing.assert_close(difference[0], torch.full((12,), 20.0), atol=0.01, rtol=0)
    torch.testing.assert_close(difference[1:], torch.zeros(2, 12), atol=0.01, rtol=0)


def test_the_share_of_the_mains_is_that_of_its_lines():
    time = torch.arange(2 * RATE) / RATE
    hum = sum(torch.sin(2 * torch.pi * 60 * k * time) / k for k in range(1, 5))
    whine = hum.std() * 2**0.5 * torch.sin(2 * torch.pi * 1234 * time)
    close, far = mains_share(torch.stack([hum + whine, whine]), RATE)
    assert close == pytest.approx(0.5, abs=0.01)
    assert far == 0.0


@pytest.mark.parametrize(
    "change",
    [{"profiles": ((0.0,),)}, {"samples": (0, 1)}, {"samples": (2, 1)}, {"far_leads": 2.0}, {"mains_shares": (0.0,)}],
)
def test_what_is_usual_must_have_its_form(sites, change):
    values = sites[0][1].to_dict()
    assert UsualMicrophones(**values) == sites[0][1]
    with pytest.raises(ValueError, match="`microphones` must hold profiles"):
        UsualMicrophones(**(values | change))
