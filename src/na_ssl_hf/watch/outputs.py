"""Open everything that is told of a watch: the store, the messages and the page."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch

from .messages.delivery import Delivery, Destination
from .messages.mqtt import Broker, Mqtt
from .messages.prometheus import Prometheus
from .messages.webhook import Webhook
from .page.server import Cancel, Learn, PageServer, make_page, parse_address
from .results import Listener
from .store import WatchStore

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer


@dataclass(frozen=True)
class OutputSettings:
    """What is told of a watch, and to whom.

    Attributes:
        store: the folder of the store.
        sound_bytes: the most that the sounds of events may take.
        web: HOST:PORT of the page; `None` for no page.
        web_token: what visitors of the page must know; needed where other computers reach it.
        broker: an MQTT broker that gets states and events.
        webhooks: web addresses that get events.
    """

    store: Path
    sound_bytes: int = 1_000_000_000
    web: str | None = None
    web_token: str | None = field(default=None, repr=False)
    broker: Broker | None = None
    webhooks: Sequence[Webhook] = ()


@dataclass(frozen=True)
class Outputs:
    """What is open.

    Attributes:
        store: keeps windows and events, and what a restart needs.
        listeners: for the monitor, in this order.
        address: of the page, where there is one.
    """

    store: WatchStore
    listeners: list[Listener]
    address: str | None


@contextmanager
def open_outputs(
    settings: OutputSettings, cancel: Cancel | None = None, learn: Learn | None = None
) -> Iterator[Outputs]:
    """Open all outputs, and close them at the end in the opposite order.

    Args:
        settings: what is wanted.
        cancel, learn: as for `make_page`.

    Raises:
        ValueError: a setting is wrong, or a package that it needs is not installed.
        OSError: the store cannot be opened, or the page cannot listen.
    """
    host, port = (None, 0) if settings.web is None else parse_address(settings.web)
    with ExitStack() as opened:
        mqtt = None if settings.broker is None else Mqtt(settings.broker)
        destinations: list[Destination] = [*settings.webhooks, *([] if mqtt is None else [mqtt])]
        for destination in destinations:
            opened.callback(destination.close)
        names = [destination.name for destination in destinations]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"each destination must be named once, got {', '.join(doubled)} more than once")
        store = WatchStore(settings.store, names, settings.sound_bytes)
        listeners: list[Listener] = [store]
        if destinations:
            # It comes before the broker, which it needs until its last message.
            listeners.append(Delivery(store, destinations))
            opened.callback(listeners[-1].close)
        if mqtt is not None:
            listeners.append(mqtt)
        address = None
        if host is not None:
            prometheus = Prometheus()
            listeners.append(prometheus)
            page = make_page(store, host, settings.web_token, prometheus.text, cancel, learn)
            server = PageServer(page, host, port)
            opened.callback(server.close)
            address = server.address
        yield Outputs(store, listeners, address)


def cancelled_channel(scorer: "AnomalyScorer") -> Cancel | None:
    """Return what makes the close channel of a sound without the far one, as the scorer hears it; None if it does not.

    The result takes the name of a machine, `(2, N)` float32 and a rate in Hz, and returns `(N,)` at this rate.
    """
    far_microphone, front_end = scorer.far_microphone, scorer.feature_extractor.front_end
    if far_microphone is None and front_end.far_cancellation is None:
        return None
    own_rate = scorer.feature_extractor.sampling_rate

    def cancel(_machine: str, sounds: np.ndarray, rate: int) -> np.ndarray:
        heard = sounds if rate == own_rate else soxr.resample(sounds.T, rate, own_rate).T  # (2, N)
        waves = torch.from_numpy(np.ascontiguousarray(heard, np.float32))[None]  # (1, 2, N)
        with torch.inference_mode():
            cancelled = far_microphone.cancel(waves) if far_microphone is not None else front_end.cancel(waves)
        close = cancelled[0, 0].cpu().numpy()  # (N,)
        return close if rate == own_rate else soxr.resample(close, own_rate, rate)

    return cancel
