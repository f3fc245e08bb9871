"""The sound of an event as a browser can play it, and as a picture of its frequencies over time."""

import base64
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.lib.stride_tricks import sliding_window_view

# Takes `(2, N)` float32 and the rate in Hz, returns the close channel `(N,)` without the far one.
CancelOne = Callable[[Any, int], Any]
CHANNELS = ("close", "far", "cancelled")
# A spectrogram has so many rows, from low to high, spaced logarithmically from this frequency.
_NUM_ROWS, _LOWEST_HZ = 96, 50.0
_MOST_COLUMNS = 600
_WINDOW_S = 0.064
# Levels below the loudest by more than this are the darkest.
_RANGE_DB = 70.0


def channel_sound(path: Path, channel: str, cancel: CancelOne | None) -> bytes:
    """Return one channel of a two-channel file as a WAV file of 16 bits.

    Args:
        path: the file.
        channel: "close", "far" or "cancelled".
        cancel: takes `(2, N)` float32 and the rate in Hz, returns the cancelled close channel `(N,)`.

    Raises:
        ValueError: there is no such channel.
        OSError: the file cannot be read.
    """
    samples, rate = _channel(path, channel, cancel)
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1.0, 1.0), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def channel_spectrogram(path: Path, channel: str, cancel: CancelOne | None) -> dict[str, Any]:
    """Return the spectrogram of one channel: `levels`, bytes in base64, row by row from high to low frequencies.

    0 is 70 dB or more below the loudest, 255 the loudest. `rows`, `columns`, `seconds`, `lowest_hz` and `highest_hz`
    say what they mean. Arguments and errors are those of `channel_sound`.
    """
    samples, rate = _channel(path, channel, cancel)
    length = round(_WINDOW_S * rate)
    samples = np.pad(samples, (0, max(0, length - len(samples))))  # (N,)
    hop = max(length // 2, -(-(len(samples) - length) // max(_MOST_COLUMNS - 1, 1)))
    frames = sliding_window_view(samples, length)[::hop] * np.hanning(length).astype(np.float32)  # (T, W)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (T, K)
    edges = np.geomspace(_LOWEST_HZ, rate / 2, _NUM_ROWS + 1)
    bins = np.clip(np.round(edges * length / rate).astype(int), 0, power.shape[1] - 1)
    rows = [power[:, low : max(high, low + 1)].mean(1) for low, high in pairwise(bins)]
    levels = 10 * np.log10(np.stack(rows[::-1]) + 1e-12)  # (rows, T)
    scaled = np.clip((levels - levels.max()) / _RANGE_DB + 1, 0, 1)
    return {
        "levels": base64.b64encode((255 * scaled).round().astype(np.uint8).tobytes()).decode(),
        "rows": levels.shape[0],
        "columns": levels.shape[1],
        "seconds": len(samples) / rate,
        "lowest_hz": _LOWEST_HZ,
        "highest_hz": rate / 2,
    }


def _channel(path: Path, channel: str, cancel: CancelOne | None) -> tuple[np.ndarray, int]:
    known = CHANNELS if cancel is not None else CHANNELS[:2]
    if channel not in known:
        raise ValueError(f"`channel` must be one of {', '.join(known)}, got {channel!r}")
    data, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (N, 2)
    if channel == "cancelled":
        assert cancel is not None
        return np.asarray(cancel(np.ascontiguousarray(data.T), rate), np.float32), rate
    return data[:, CHANNELS.index(channel)], rate
