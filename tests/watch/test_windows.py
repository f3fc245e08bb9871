"""Windows: the stream resampled and cut as the whole recording would be, and nothing over a gap."""

import threading

import numpy as np
import pytest
import soxr

from na_ssl_hf.watch.sources import Block
from na_ssl_hf.watch.windows import Reader, WindowCutter

STREAM = np.random.default_rng(0).standard_normal((2, 50_000)).astype(np.float32)


def cut(cutter: WindowCutter, blocks) -> list:
    windows = [window for block in blocks for window in cutter.push(block)]
    return windows + list(cutter.finish())


def blocks_of(samples, rate, sizes, **first):
    starts = np.cumsum([0, *sizes])
    for index, start in enumerate(starts):
        stop = starts[index + 1] if index + 1 < len(starts) else samples.shape[1]
        yield Block(samples[:, start:stop], rate, begins=index == 0, **(first if index == 0 else {}))


@pytest.mark.parametrize("rate", [44100, 48000, 22050])
def test_resampling_as_a_stream_gives_what_the_whole_gives(rate):
    sizes = [1, 7, 1000, 0, 4999, 20_000]
    windows = cut(WindowCutter(16000, 0.5, 0.5), blocks_of(STREAM, rate, sizes))
    whole = soxr.resample(STREAM.T, rate, 16000).T
    assert len(windows) == whole.shape[1] // 8000
    for index, window in enumerate(windows):
        np.testing.assert_allclose(window.samples, whole[:, 8000 * index : 8000 * (index + 1)], atol=1e-4)


def test_windows_begin_every_hop_and_are_the_samples_of_the_stream():
    windows = cut(WindowCutter(16000, 1.0, 0.25), blocks_of(STREAM, 16000, [123] * 300))
    assert [window.end for window in windows] == [1 + 0.25 * index for index in range(len(windows))]
    assert windows[-1].end == 3.0
    for window in windows:
        start = round(window.start * 16000)
        np.testing.assert_array_equal(window.samples, STREAM[:, start : start + 16000])


def test_a_lower_rate_stays_as_it_is():
    cutter = WindowCutter(16000, 1.0, 1.0)
    windows = cut(cutter, blocks_of(STREAM, 8000, []))
    assert cutter.rate == 8000
    assert windows[0].samples.shape == (2, 8000)


def test_no_window_reaches_over_a_gap_and_the_time_knows_what_is_lost():
    blocks = [
        Block(STREAM[:, :24_000], 16000, begins=True, unix_time=100.0),
        Block(STREAM[:, :24_000], 16000, begins=True, lost=10.0, unix_time=111.5),
    ]
    cutter = WindowCutter(16000, 1.0, 1.0)
    windows = cut(cutter, blocks)
    assert [(window.start, window.end) for window in windows] == [(0.0, 1.0), (11.5, 12.5)]
    assert [window.started_at for window in windows] == [100.0, 100.0]
    assert cutter.num_gaps == 1


def test_a_file_that_is_shorter_than_a_window_is_one_window_and_too_little_is_none():
    parts = [Block(STREAM[:, :n], 16000, begins=True, is_part=True) for n in (8000, 100, 16_000)]
    cutter = WindowCutter(16000, 1.0, 1.0, least_samples=400)
    windows = cut(cutter, parts)
    assert [(window.samples.shape[1], window.is_short) for window in windows] == [(8000, True), (16_000, False)]
    assert cutter.num_gaps == 0


@pytest.mark.parametrize(("length", "hop"), [(0, 1), (1.0, 0), (1.0, 2.0), (0.001, 0.001), (float("inf"), 1.0)])
def test_windows_out_of_their_range_are_refused(length, hop):
    with pytest.raises(ValueError, match=r"`(window|hop)` must be a number of seconds"):
        WindowCutter(16000, length, hop, least_samples=400)


class Endless:
    """A source of 1 s blocks; `given` counts them."""

    name = "endless"

    def __init__(self, is_live, most=10**9):
        self.is_live, self.given, self.most, self.is_closed = is_live, 0, most, False
        self.has_given = threading.Event()

    def blocks(self):
        while not self.is_closed and self.given < self.most:
            self.given += 1
            if self.given == 50:
                self.has_given.set()
            yield Block(np.zeros((2, 16000), np.float32), 16000, begins=self.given == 1)

    def close(self):
        self.is_closed = True


def test_a_replay_waits_for_its_reader_and_live_sound_does_not():
    replay, live = Endless(False), Endless(True, most=50)
    readers = [Reader(replay), Reader(live)]
    taken = [reader.blocks() for reader in readers]
    for blocks in taken:
        next(blocks)
    assert live.has_given.wait(5)
    assert replay.given <= 33
    for reader in readers:
        reader.stop()
    assert list(taken[0]) == []


def test_an_error_of_the_source_reaches_whoever_reads():
    class Broken(Endless):
        def blocks(self):
            yield from super().blocks()
            raise OSError("the cable is out")

    blocks = Reader(Broken(False, most=2)).blocks()
    assert next(blocks).seconds == 1.0
    with pytest.raises(OSError, match="the cable is out"):
        list(blocks)
