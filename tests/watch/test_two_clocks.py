"""Two microphones with a clock each: their drift is found, told and undone."""

import sys
import threading
import time
import types

import numpy as np
import pytest

from na_ssl_hf.watch.device_sources import TwoSoundCards
from na_ssl_hf.watch.sources import open_source
from na_ssl_hf.watch.two_clocks import TwoClocks

RATE = 2000
BLOCK = 500
BEGINS_LATER = 0.0123  # s, the far microphone


def sound(at):
    """What both microphones hear at times in s."""
    return np.sin(2 * np.pi * 40 * at + 3 * np.sin(2 * np.pi * 0.7 * at))


def heard(clocks, seconds, ppm, jitter=0.01):
    """Blocks of both microphones, late by chance as those of a sound card; gives the joined ones."""
    generator = np.random.default_rng(1)
    rates = RATE * (1 + 20e-6), RATE * (1 + 20e-6) * (1 + ppm * 1e-6)
    arrivals = []
    for channel, (rate, begins) in enumerate(zip(rates, (0.0, BEGINS_LATER), strict=True)):
        for first in range(0, int(seconds * rate) - BLOCK, BLOCK):
            at = begins + (first + BLOCK) / rate
            samples = sound(begins + np.arange(first, first + BLOCK) / rate)
            arrivals.append((at + abs(generator.normal(0, jitter)), channel, samples))
    for at, channel, samples in sorted(arrivals, key=lambda arrival: arrival[0]):
        (clocks.push_close if channel == 0 else clocks.push_far)(samples, at)
        while (joined := clocks.joined()) is not None:
            yield joined


@pytest.mark.parametrize("ppm", [50.0, -120.0])
def test_two_clocks_are_told_apart_to_a_few_parts_in_a_million_and_joined(ppm):
    clocks = TwoClocks(RATE)
    assert clocks.drift is None
    blocks = list(heard(clocks, 1200.0, ppm))
    drift = clocks.drift
    assert drift.ppm == pytest.approx(ppm, abs=4.0)
    assert abs(drift.ppm - ppm) < 5 * drift.error_ppm < 10.0
    assert drift.seconds == pytest.approx(1200, abs=3)
    close, far = np.concatenate(blocks, axis=1)
    # All but what is still on its way, and in place: without a correction 50 ppm are 60 ms at the end, two periods.
    assert len(close) > 1198 * RATE
    last = slice(-60 * RATE, None)
    lags = range(-40, 41)
    alike = [np.corrcoef(close[last][100:-100], np.roll(far[last], lag)[100:-100])[0, 1] for lag in lags]
    assert max(alike) > 0.99
    assert abs(lags[int(np.argmax(alike))]) <= 0.005 * RATE


def test_the_far_sound_is_exact_between_its_samples():
    clocks = TwoClocks(8000)
    for start in range(0, 16000, 2000):
        at = np.arange(start, start + 2000) / 8000
        clocks.push_close(np.sin(2 * np.pi * 3000 * at), start / 8000)
        clocks.push_far(np.sin(2 * np.pi * 3000 * (at + 0.4 / 8000)), (start + 0.4) / 8000)
    joined = [clocks.joined() for _ in range(6)]
    close, far = np.concatenate(joined, axis=1)[:, 2000:]
    np.testing.assert_allclose(far, close, atol=1e-3)


class Card:
    """A sound card in place of PortAudio's, whose sound is its number."""

    def __init__(self, device, samplerate, blocksize, callback, **_):
        self._stop = threading.Event()
        values = np.full((blocksize, 1), device / 8, np.float32)
        status = types.SimpleNamespace(input_overflow=False)

        def play():
            while not self._stop.wait(blocksize / samplerate):
                callback(values, blocksize, None, status)

        self._thread = threading.Thread(target=play)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture
def cards(monkeypatch):
    devices = [
        {"name": name, "index": index, "max_input_channels": 1, "default_samplerate": 8000.0}
        for index, name in enumerate(["none", "left USB", "right USB"])
    ]

    def query_devices(device=None, kind=None):
        if device is None:
            return devices
        found = [one for one in devices if device in (one["index"], one["name"])]
        if not found:
            raise ValueError(f"No input device matching {device!r}")
        return found[0]

    module = types.SimpleNamespace(query_devices=query_devices, InputStream=Card, PortAudioError=OSError)
    module._terminate = module._initialize = lambda: None
    monkeypatch.setitem(sys.modules, "sounddevice", module)


def test_two_sound_cards_are_one_source(cards):
    source = open_source("device:left USB+2")
    assert isinstance(source, TwoSoundCards)
    began, blocks = time.monotonic(), source.blocks()
    first, second = next(blocks), next(blocks)
    source.close()
    assert list(blocks)[1:] == []
    assert time.monotonic() - began < 5
    assert (first.begins, second.begins, first.sampling_rate) == (True, False, 8000)
    np.testing.assert_allclose(second.samples[0], 1 / 8)
    np.testing.assert_allclose(second.samples[1], 2 / 8, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device:1+1", "`source` must be two devices, got 'left USB' twice"),
        ("device:1+", r"must name two devices, as device:CLOSE\+FAR"),
        ("device:1+unknown", "must be a known sound card, .* with an input are"),
    ],
)
def test_two_sound_cards_that_are_not_two_are_refused(cards, text, message):
    with pytest.raises(ValueError, match=message):
        open_source(text)
