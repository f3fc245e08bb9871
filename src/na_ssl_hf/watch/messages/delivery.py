"""Deliver the messages of a store to their destinations, again and again until each has arrived."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from transformers.utils import logging

from ..results import AlarmEvent, WatchedMachine, WindowResult
from ..store import Message, WatchStore

logger = logging.get_logger(__name__)

# How often the queue is looked at while nothing wakes the thread.
_PAUSE_S = 1.0
# The pauses between attempts while a destination is down; each is twice the one before.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
# How long closing waits for messages that are due.
_LAST_CHANCE_S = 5.0


class Destination(Protocol):
    """A system that is told of events."""

    @property
    def name(self) -> str:
        """Return the name under which the store keeps its messages."""

    def send(self, content: dict[str, Any]) -> None:
        """Send a message and return when it has arrived.

        Raises:
            OSError: it has not arrived; it will be sent again.
        """

    def close(self) -> None:
        """End the connection."""


class Delivery:
    """A listener whose threads send what a store has queued, one for each destination, so that none waits for another.

    Messages arrive in their order. One that fails is sent again after 1 s, 2 s, 4 s, and so on, at most 5 minutes, and
    at once after a restart. Each one is marked when it has arrived; a process that is killed between the two sends it
    again with the same `id`.

    Args:
        store: holds the messages.
        destinations: whose messages are sent.
    """

    def __init__(self, store: WatchStore, destinations: Sequence[Destination]) -> None:
        self._store = store
        self._stopping = threading.Event()
        self._wakes = [threading.Event() for _ in destinations]
        self._destinations = list(destinations)
        self._threads = [
            threading.Thread(target=self._deliver, args=pair, name=f"messages to {pair[0].name}", daemon=True)
            for pair in zip(destinations, self._wakes, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def opened(self, machine: WatchedMachine) -> None:
        """Do nothing: machines are no messages."""

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Do nothing: windows are no messages."""

    def event(self, event: AlarmEvent) -> None:
        """Send what the store has queued, now."""
        self.wake()

    def wake(self) -> None:
        """Look at the queues now."""
        for wake in self._wakes:
            wake.set()

    def close(self) -> None:
        """Try once more what is due, for a few seconds at most; the rest is sent after the next start."""
        self._stopping.set()
        self.wake()
        deadline = time.monotonic() + _LAST_CHANCE_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        for destination in self._destinations:
            destination.close()

    def _deliver(self, destination: Destination, wake: threading.Event) -> None:
        pause = 0.0  # above 0 while the destination is down
        while True:
            is_last = self._stopping.is_set()
            wake.clear()
            arrived = 0
            for message in self._unsent(destination):
                if not self._arrives(destination, message, pause > 0):
                    pause = min(max(2 * pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                    break
                pause = 0.0
                arrived += 1
            if is_last:
                return
            if pause:
                self._stopping.wait(pause)
            elif not arrived:
                wake.wait(_PAUSE_S)

    def _unsent(self, destination: Destination) -> list[Message]:
        try:
            return self._store.unsent_messages(destination.name)
        except Exception as error:  # the thread must live on, and there may be messages later
            logger.warning(f"the messages to {destination.name} cannot be read: {error}")
            return []

    def _arrives(self, destination: Destination, message: Message, was_down: bool) -> bool:
        try:
            destination.send(message.content)
        except Exception as error:
            if not was_down:
                logger.warning(f"{destination.name} cannot be reached ({error}): its messages wait until it can")
            self._mark(self._store.mark_failed, message)
            return False
        if was_down:
            logger.warning(f"{destination.name} can be reached again")
        self._mark(self._store.mark_sent, message)
        return True

    def _mark(self, mark: Callable[[Message], None], message: Message) -> None:
        try:
            mark(message)
        except Exception as error:  # a full disk
            logger.warning(f"a message to {message.destination} may be sent twice: {error}")
