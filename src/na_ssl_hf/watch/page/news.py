"""What is new in a store, looked up once for all visitors of its page, as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from ..store import WatchStore

POLL_S = 0.5
# A comment line this often keeps proxies from closing a silent stream.
_KEEP_ALIVE_S = 15.0
# A visitor that has not taken this many pieces of news is sent away; its browser connects again and loads all.
_MOST_WAITING = 200


class News:
    """New windows and changed events of a store. It is looked at while there is a visitor, once for all of them.

    All but `end` is to be called in one event loop.

    Args:
        store: what is looked at.
    """

    def __init__(self, store: WatchStore) -> None:
        self._store = store
        self._visitors: set[asyncio.Queue[str | None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self._is_ended = False
        self._looking = asyncio.Lock()
        self._seen: dict[str, int] = {}
        self._told_events: dict[str, Any] = {}

    async def visit(self) -> AsyncIterator[str]:
        """Give the news of one visitor from now on, until the visitor leaves or `end` is called."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        is_first = not self._visitors
        self._visitors.add(queue)
        try:
            if is_first:
                await self._looked()  # what was there before is no news
            if self._poll is None or self._poll.done():
                self._poll = asyncio.create_task(self._tell_visitors())
            silent_since = time.monotonic()
            yield ": still here\n\n"
            while (text := await queue.get()) is not None:
                if text or time.monotonic() - silent_since > _KEEP_ALIVE_S:
                    yield text or ": still here\n\n"
                    silent_since = time.monotonic()
        finally:
            self._visitors.discard(queue)

    def end(self) -> None:
        """Let all visitors go, soon; may be called from another thread."""
        self._is_ended = True

    async def _tell_visitors(self) -> None:
        while self._visitors:
            # An empty text wakes visitors who may want to say that they are still there.
            texts: list[str | None] = [None] if self._is_ended else [*(await self._looked()), ""]
            for queue in list(self._visitors):
                if queue.qsize() > _MOST_WAITING:
                    while not queue.empty():
                        queue.get_nowait()
                    queue.put_nowait(None)
                    self._visitors.discard(queue)
                else:
                    for text in texts:
                        queue.put_nowait(text)
            await asyncio.sleep(POLL_S)

    async def _looked(self) -> list[str]:
        async with self._looking:
            return await asyncio.to_thread(self._look)

    def _look(self) -> list[str]:
        """Return what has changed since the last look, each as one event of the stream."""
        texts = []
        for machine in self._store.machines():
            newest = machine["newest"]
            if newest is None:
                continue
            before = self._seen.get(machine["name"], 0)
            self._seen[machine["name"]] = newest["number"]
            if newest["number"] > before:
                news = self._store.windows(machine["name"], limit=100, after_number=before)
                texts.append(f"event: windows\ndata: {json.dumps(news)}\n\n")
        events = {event["id"]: event for event in self._store.events()}
        changed = [event for identity, event in events.items() if self._told_events.get(identity) != event]
        self._told_events = events
        if changed:
            texts.append(f"event: events\ndata: {json.dumps(changed)}\n\n")
        return texts
