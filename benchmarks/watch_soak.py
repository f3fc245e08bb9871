"""A soak of the watch: simulated days of sound through one monitor with all its outputs, and what it holds of memory.

Run as `python -m benchmarks.watch soak --days 6`. A recorder hears 1 s in every 30, so that a day has 2,880 windows, as
many as windows of 30 s without overlap, for little time. Everything that may grow is made to reach its bound within the
days: windows are kept for two of them, sounds in 10 MB, and the memory of the scorer in 48 recordings, of which an
operator adds one every six hours. There is a fault of ten minutes every eight hours.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile
import torch

from na_ssl_hf import AnomalyScorer, EatConfig, EatModel, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.watch.json_lines import JsonLines
from na_ssl_hf.watch.messages.delivery import Delivery, Destination
from na_ssl_hf.watch.messages.mqtt import Broker, Mqtt
from na_ssl_hf.watch.messages.prometheus import Prometheus
from na_ssl_hf.watch.messages.webhook import Webhook
from na_ssl_hf.watch.monitor import Monitor, MonitorSettings
from na_ssl_hf.watch.outputs import cancelled_channel
from na_ssl_hf.watch.page.server import PageServer, make_page
from na_ssl_hf.watch.results import Listener
from na_ssl_hf.watch.sources import Block
from na_ssl_hf.watch.store import WatchStore

RATE = 16000
DAY = 86400
PERIOD = 30  # s from one recording to the next
SECONDS = 1
STARTED_AT = 1_700_000_000.0
KEPT_DAYS = 2.0
SOUND_BYTES = 10_000_000
MOST_CLIPS = 48
NUM_NORMALS = 40
FAULT_EVERY, FAULT_LASTS = 8 * 3600, 600
LEARN_EVERY = 6 * 3600
NUM_SOUNDS = 500


def machine_sound(draw: np.random.Generator, fault: float = 0.0) -> np.ndarray:
    """Return `(2, N)` float32 of a humming machine in a noisy room; `fault` is the amplitude of a whine."""
    at = np.arange(SECONDS * RATE) / RATE
    pitch = 120 * (1 + 0.01 * draw.standard_normal())
    machine = 0.05 * np.sin(2 * np.pi * pitch * at) + 0.02 * draw.standard_normal(len(at))
    machine += fault * np.sin(2 * np.pi * 1700 * at)
    noise = 10 ** (draw.uniform(-36, -30) / 20) * draw.standard_normal(len(at))
    return np.stack([machine + 0.5 * noise, 0.3 * machine + noise]).astype(np.float32)


def small_scorer(
    folder: Path, normals: Sequence[np.ndarray], memory_bank: MemoryBank | None = None, max_time_patches: int = 32
) -> AnomalyScorer:
    """Fit and save a scorer of a random model with one layer: what it knows of a sound is its log-mel spectrogram.

    Args:
        folder: where it is saved.
        normals: recordings `(2, N)` at 16 kHz.
        memory_bank: as for [`AnomalyScorer.fit`].
        max_time_patches: as for [`EatConfig`]; 32 take 5 s.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    scorer = AnomalyScorer(
        model=EatModel(EatConfig(**sizes, max_time_patches=max_time_patches)).eval(),
        feature_extractor=TwoChannelFeatureExtractor(frontend="eat"),
        device="cpu",
    )
    scorer.fit(normals, memory_bank=memory_bank, progress=None)
    scorer.save_pretrained(folder)
    return scorer


class Recorder:
    """The source: a recording every `PERIOD`, and what happens at the machine and around it."""

    name, is_live = "recorder", False

    def __init__(self, num_days: float, folder: Path):
        self._num_recordings = round(num_days * DAY / PERIOD)
        self._folder = folder
        draw = np.random.default_rng(2)
        self._normal = [machine_sound(draw) for _ in range(NUM_SOUNDS)]
        self._faulty = [machine_sound(draw, fault=0.1) for _ in range(20)]
        self._draw = draw
        self.monitor: Monitor | None = None
        self.learned = 0

    def blocks(self) -> Iterator[Block]:
        for index in range(self._num_recordings):
            at = index * PERIOD
            if at and at % LEARN_EVERY == 0:
                self._learn()
            is_faulty = at >= FAULT_EVERY and at % FAULT_EVERY < FAULT_LASTS
            sounds = self._faulty if is_faulty else self._normal
            # Another gain and another beginning make a new recording of it, for little time.
            samples = np.roll(sounds[self._draw.integers(len(sounds))], int(self._draw.integers(RATE)), axis=1)
            samples = samples * np.float32(10 ** (self._draw.uniform(-0.5, 0.5) / 20))
            lost = 0.0 if index == 0 else float(PERIOD - SECONDS)
            yield Block(samples, RATE, begins=True, lost=lost, unix_time=STARTED_AT + at, is_part=True)

    def _learn(self) -> None:
        """An operator says that a sound is normal."""
        path = self._folder / "normal.wav"
        soundfile.write(path, machine_sound(self._draw).T, RATE)
        assert self.monitor is not None
        self.monitor.learn(path)
        self.learned += 1

    def close(self) -> None:
        """End nothing: the days are over when they are over."""


class Days:
    """A listener that prints a row of the table after every simulated day."""

    def __init__(self, scorer: AnomalyScorer, store: WatchStore, received: list[bytes]):
        self._scorer, self._store, self._received = scorer, store, received
        self._began, self._num_windows = time.process_time(), 0
        self._threads: list[threading.Thread] = []
        print("| day | windows | memory MB | in use | files | threads | store | sounds MB | clips | alarms | CPU min |")
        print("| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |")

    def opened(self, machine) -> None:
        """Do nothing."""

    def window(self, result, samples) -> None:
        """Count; print after the last window of a day, and after an hour, from which on all is loaded."""
        self._num_windows += 1
        windows_a_day = DAY // PERIOD
        if self._num_windows == windows_a_day // 24 or self._num_windows % windows_a_day == 0:
            self._print(self._num_windows / windows_a_day)

    def event(self, event) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def _print(self, day: float) -> None:
        folder = self._store.folder
        store = sum(path.stat().st_size for path in folder.glob("watch.sqlite*"))
        sounds = sum(path.stat().st_size for path in folder.glob("sounds/*"))
        bank = self._scorer.memory_bank
        cells = [
            f"{day:.3g}",
            f"{self._num_windows:,}",
            f"{resident_bytes() / 1e6:.1f}",
            f"{in_use_bytes() / 1e6:.1f}",
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            f"{store / 1e6:.2f}",
            f"{sounds / 1e6:.2f}",
            0 if bank is None else bank.num_clips_,
            len(self._received),
            f"{(time.process_time() - self._began) / 60:.1f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def resident_bytes() -> int:
    """Return the memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_use_bytes() -> int:
    """Return what is left of the resident memory when glibc gives back what is free: the rest is no leak."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def receiver(received: list[bytes], opened: ExitStack) -> int:
    """Start a web server that takes webhooks until `opened` closes; returns its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if b'"alarm"' in body and b'"begin"' in body:
                received.append(b"")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    opened.callback(server.shutdown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def broker(opened: ExitStack) -> Mqtt | None:
    """Start mosquitto and connect to it; `None` where it is not installed."""
    program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([program, "-p", str(port)], **quiet)
    opened.callback(process.terminate)
    time.sleep(1.0)
    mqtt = Mqtt(Broker("127.0.0.1", port))
    opened.callback(mqtt.close)
    return mqtt


def visit(address: str) -> None:
    """Follow the stream of the page, as an open browser does, until it ends."""
    try:
        with urllib.request.urlopen(f"{address}api/stream") as stream:
            while stream.readline():
                pass
    except OSError:
        pass  # the watch has ended


def measure_soak(num_days: float) -> None:
    """Print memory, files, threads and sizes after every simulated day."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder, received = Path(name), []
        draw = np.random.default_rng(1)
        normals = [machine_sound(draw) for _ in range(NUM_NORMALS)]
        scorer = small_scorer(folder / "scorer", normals, MemoryBank(max_clips=MOST_CLIPS))
        destinations: list[Destination] = [Webhook(f"http://127.0.0.1:{receiver(received, opened)}/alarm")]
        mqtt = broker(opened)
        destinations += [] if mqtt is None else [mqtt]
        print(f"with a store, a page with a visitor, a webhook, {'a broker' if mqtt else 'no broker'}")
        names = [destination.name for destination in destinations]
        store = WatchStore(folder / "kept", names, SOUND_BYTES, KEPT_DAYS)
        delivery, prometheus = Delivery(store, destinations), Prometheus()
        cancel = cancelled_channel(scorer)
        page = PageServer(make_page(store, metrics=prometheus.text, cancel=cancel), "127.0.0.1", 0)
        opened.callback(page.close)
        threading.Thread(target=visit, args=(page.address,), daemon=True).start()
        lines = opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
        days = Days(scorer, store, received)
        listeners: list[Listener] = [JsonLines(lines), store, delivery, *([] if mqtt is None else [mqtt]), prometheus]
        source = Recorder(num_days, folder)
        settings = MonitorSettings("pump", window=SECONDS, hop=SECONDS)
        source.monitor = Monitor(
            scorer, source, settings, [*listeners, days], store, threading.Lock(), str(folder / "scorer")
        )
        counts = source.monitor.run()
        expected = int((num_days * DAY - 1) // FAULT_EVERY)
        print(
            f"{counts.windows} windows, {counts.alarms} alarms ({expected} faults), {counts.faults} faults of "
            f"microphones, {source.learned} times something was learned"
        )
