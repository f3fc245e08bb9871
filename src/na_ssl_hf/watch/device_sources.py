"""Sound that is recorded now: by a sound card, through PortAudio, or by something with an address, through PyAV."""

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .sources import BLOCK_SECONDS, Block, check_two_channels
from .two_clocks import TwoClocks

logger = logging.getLogger(__name__)

# A sound card that gives nothing for so long, in s, is gone.
SILENT_SECONDS = 5.0
# How long one waits before a device is tried again, in s; doubled up to the second number.
RETRY_SECONDS = (1.0, 30.0)
# What PyAV may wait for an address, in s.
OPEN_SECONDS = 10.0
# After so much sound, in s, it is told how far two clocks are apart: roughly, and then as well as it will be known.
TOLD_SECONDS = (300.0, 1700.0)
_EMPTY = np.zeros((2, 0), np.float32)


class _Retries:
    """Waits between attempts, longer and longer, until it is stopped."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._wait = RETRY_SECONDS[0]
        self.lost_since: float | None = None

    def reset(self) -> float:
        """Note that sound comes again; returns for how long it did not, in s."""
        lost = 0.0 if self.lost_since is None else time.monotonic() - self.lost_since
        self._wait, self.lost_since = RETRY_SECONDS[0], None
        return lost

    def wait(self) -> None:
        """Wait before the next attempt."""
        if self.lost_since is None:
            self.lost_since = time.monotonic()
        self.stop.wait(self._wait)
        self._wait = min(2 * self._wait, RETRY_SECONDS[1])


def _number_or_name(device: str) -> int | str:
    """Return what PortAudio finds a device by."""
    return int(device) if device.isdigit() else device


class SoundCard:
    """Two channels of a sound card. One that vanishes is looked for until it is back.

    Args:
        device: its number or a part of its name, as `python -m sounddevice` lists them; empty for the default one.
        rate: the sampling rate in Hz; `None` for that of the device.

    Raises:
        ValueError: sounddevice or PortAudio is missing, or the device is unknown, ambiguous or has not two inputs.
    """

    is_live = True

    def __init__(self, device: str = "", rate: int | None = None):
        try:
            import sounddevice
        except ImportError as error:
            raise ValueError(
                "A sound card as a source needs the package sounddevice: pip install 'na-ssl-hf[watch]'."
            ) from error
        except OSError as error:
            raise ValueError(
                "A sound card as a source needs the library PortAudio (Debian: apt install libportaudio2)."
            ) from error
        self._sounddevice: Any = sounddevice
        self._device: int | str | None = _number_or_name(device) if device else None
        self._rate = rate
        self.name = f"device:{device}" if device else "device"
        self._retries = _Retries()
        self._overruns = 0
        # A device that is unknown from the beginning is a mistake; one that vanishes later comes back.
        self._found()

    def _found(self) -> tuple[Any, int]:
        """What `_recorded` records from, and the sampling rate to ask of it."""
        found = self._queried(self._device, 2)
        check_two_channels(min(2, found["max_input_channels"]), f"{self.name} ({found['name']})")
        return found["index"], self._rate or round(found["default_samplerate"])

    def _queried(self, device: int | str | None, num_inputs: int) -> Any:
        """What PortAudio knows of a device."""
        try:
            return self._sounddevice.query_devices(device, "input")
        except (ValueError, self._sounddevice.PortAudioError) as error:
            listed = [
                one["name"] for one in self._sounddevice.query_devices() if one["max_input_channels"] >= num_inputs
            ]
            inputs = "two inputs" if num_inputs == 2 else "an input"
            raise ValueError(
                f"`source` must be a known sound card, got {self.name!r} ({' '.join(str(error).split())}); those with "
                f"{inputs} are {listed}."
            ) from error

    def blocks(self) -> Iterator[Block]:
        """Give the sound until the source is closed; a device that fails is told in the log and tried again."""
        rate = self._rate or 1
        while not self._retries.stop.is_set():
            try:
                index, rate = self._found()
                yield from self._recorded(index, rate)
            except (ValueError, self._sounddevice.PortAudioError) as error:
                trouble = f"{self.name} gives no sound: {' '.join(str(error).split())}"
                logger.warning(trouble)
                yield Block(_EMPTY, rate, begins=True, trouble=trouble)
                self._retries.wait()
                # PortAudio lists its devices once; only a new start finds one that was plugged in since.
                self._sounddevice._terminate()
                self._sounddevice._initialize()

    def _recorded(self, index: Any, rate: int) -> Iterator[Block]:
        taken: queue.Queue[tuple[np.ndarray, bool]] = queue.Queue()

        def take(samples: np.ndarray, _frames: int, _time: Any, status: Any) -> None:
            taken.put((samples.T.copy(), bool(status.input_overflow)))

        stream = self._sounddevice.InputStream(
            device=index,
            channels=2,
            samplerate=rate,
            dtype="float32",
            blocksize=round(BLOCK_SECONDS * rate),
            callback=take,
        )
        with stream:
            is_first = True
            while not self._retries.stop.is_set():
                try:
                    samples, has_overrun = taken.get(timeout=SILENT_SECONDS)
                except queue.Empty:
                    raise ValueError(f"nothing came for {SILENT_SECONDS:g} s") from None
                if has_overrun:
                    self._overruns += 1
                    logger.warning(f"{self.name} has lost sound ({self._overruns} times so far).")
                at = time.time() - samples.shape[1] / rate
                lost = self._retries.reset() if is_first else 0.0
                yield Block(samples, rate, begins=is_first or has_overrun, lost=lost, unix_time=at)
                is_first = False

    def close(self) -> None:
        """End the blocks."""
        self._retries.stop.set()


class TwoSoundCards(SoundCard):
    """Two sound cards with a microphone each, whose clocks differ: what they drift apart is told, and undone.

    Args:
        close, far: numbers or parts of the names of the devices, of which the first input is taken.
        rate: the sampling rate of both in Hz; `None` for that of the close one.

    Raises:
        ValueError: sounddevice or PortAudio is missing, or a device is unknown or ambiguous.
    """

    def __init__(self, close: str, far: str, rate: int | None = None):
        self._names = (close, far)
        super().__init__(f"{close}+{far}", rate)

    def _found(self) -> tuple[Any, int]:
        both = [self._queried(_number_or_name(name), 1) for name in self._names]
        if both[0]["index"] == both[1]["index"]:
            raise ValueError(f"`source` must be two devices, got {both[0]['name']!r} twice: {self.name!r}.")
        return [one["index"] for one in both], self._rate or round(both[0]["default_samplerate"])

    def _recorded(self, index: Any, rate: int) -> Iterator[Block]:
        taken: queue.Queue[tuple[int, np.ndarray, float, bool]] = queue.Queue()

        def opened(channel: int) -> Any:
            def take(samples: np.ndarray, _frames: int, _time: Any, status: Any) -> None:
                taken.put((channel, samples[:, 0].copy(), time.monotonic(), bool(status.input_overflow)))

            return self._sounddevice.InputStream(
                device=index[channel],
                channels=1,
                samplerate=rate,
                dtype="float32",
                blocksize=round(BLOCK_SECONDS * rate),
                callback=take,
            )

        with opened(0), opened(1):
            clocks, is_first, told_at = TwoClocks(rate), True, TOLD_SECONDS[0]
            last = [time.monotonic()] * 2
            while not self._retries.stop.is_set():
                try:
                    channel, samples, at, has_overrun = taken.get(timeout=SILENT_SECONDS)
                except queue.Empty:
                    raise ValueError(f"nothing came for {SILENT_SECONDS:g} s") from None
                last[channel] = at
                if at - min(last) > SILENT_SECONDS:
                    raise ValueError(f"nothing came from {self._names[last.index(min(last))]} for {SILENT_SECONDS:g} s")
                if has_overrun:
                    self._overruns += 1
                    logger.warning(f"{self.name} has lost sound ({self._overruns} times so far).")
                    # Samples that are missing would be taken for a slow clock.
                    clocks, is_first, told_at = TwoClocks(rate), True, TOLD_SECONDS[0]
                    continue
                (clocks.push_close if channel == 0 else clocks.push_far)(samples, at)
                while (joined := clocks.joined()) is not None:
                    begun = time.time() - joined.shape[1] / rate
                    lost = self._retries.reset() if is_first else 0.0
                    yield Block(joined, rate, begins=is_first, lost=lost, unix_time=begun)
                    is_first = False
                drift = clocks.drift
                if drift is not None and drift.seconds >= told_at:
                    logger.info(f"{self.name}: the clock of the far microphone runs {drift}.")
                    told_at = TOLD_SECONDS[1] if told_at == TOLD_SECONDS[0] else float("inf")


class NetworkStream:
    """The sound of an address that PyAV can open (rtsp, http, udp, a file, ...). It is opened again when it breaks.

    Args:
        address: with `://`; `file://PATH` ends with the file.

    Raises:
        ValueError: PyAV is missing.
    """

    def __init__(self, address: str):
        try:
            import av
        except ImportError as error:
            raise ValueError("A network stream needs the package PyAV: pip install 'na-ssl-hf[watch]'.") from error
        self._av: Any = av
        # Addresses may hold a password.
        self.name = address if "@" not in address else f"{address.partition('://')[0]}://...@{address.split('@')[-1]}"
        self._address = address
        self.is_live = not address.startswith("file://")
        self._retries = _Retries()

    def blocks(self) -> Iterator[Block]:
        """Give the sound until the source is closed; errors as those of [`Source`] only for what has not two channels.

        Raises:
            ValueError: there is no sound, or it has not two channels.
            OSError: a file is missing or cannot be decoded.
        """
        rate = 1
        while not self._retries.stop.is_set():
            try:
                for block in self._decoded():
                    rate = block.sampling_rate
                    yield block
                reason = "the stream has ended"
                if not self.is_live:
                    return
            except self._av.FFmpegError as error:
                reason = " ".join(str(error).replace(self._address, self.name).split())
                if not self.is_live:
                    raise OSError(f"{self.name} cannot be read: {reason}") from error
            trouble = f"{self.name} gives no sound: {reason}"
            logger.warning(trouble)
            yield Block(_EMPTY, rate, begins=True, trouble=trouble)
            self._retries.wait()

    def _decoded(self) -> Iterator[Block]:
        path = self._address.removeprefix("file://")
        with self._av.open(path, timeout=OPEN_SECONDS) as container:
            if not container.streams.audio:
                raise ValueError(f"`source` must have sound, {self.name} has none.")
            stream = container.streams.audio[0]
            check_two_channels(stream.codec_context.channels, self.name)
            as_float = self._av.AudioResampler(format="fltp", layout="stereo", rate=stream.codec_context.sample_rate)
            is_first = True
            for frame in container.decode(stream):
                if self._retries.stop.is_set():
                    return
                for part in as_float.resample(frame):
                    samples = np.ascontiguousarray(part.to_ndarray(), dtype=np.float32)  # (2, n)
                    lost = self._retries.reset() if is_first else 0.0
                    at = time.time() if self.is_live else None
                    yield Block(samples, part.sample_rate, begins=is_first, lost=lost, unix_time=at)
                    is_first = False

    def close(self) -> None:
        """End the blocks."""
        self._retries.stop.set()
