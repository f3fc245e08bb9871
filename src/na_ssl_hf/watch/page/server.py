"""Serve the page of a watch from what its store keeps."""

import asyncio
import hmac
import ipaddress
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers.utils import logging

from ..store import WatchStore
from .event_views import CHANNELS, CancelOne, channel_sound, channel_spectrogram
from .news import News

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.get_logger(__name__)

Cancel = Callable[[str, Any, int], Any]
Learn = Callable[[str, Path], None]

STATIC = Path(__file__).parent / "static"
# A chart shows no more points than these; of more windows the one with the highest score stands for its neighbours.
MOST_POINTS = 2000
_LONGEST_SPAN_H = 24.0 * 90
_COOKIE = "na_ssl_token"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# uPlot sets the style attribute of its elements, which is what 'unsafe-inline' allows; scripts must be files of ours.


def is_loopback(host: str) -> bool:
    """Return whether only this computer reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT", as `--web` takes it; a host of IPv6 stands in brackets.

    Raises:
        ValueError: the address is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
        raise ValueError(f"--web must be HOST:PORT, such as 127.0.0.1:8080, got {address!r}")
    return host.strip("[]"), int(port)


def make_page(
    store: WatchStore,
    host: str = "127.0.0.1",
    token: str | None = None,
    metrics: Callable[[], bytes] | None = None,
    cancel: Cancel | None = None,
    learn: Learn | None = None,
) -> "Starlette":
    """Return the page as an ASGI application.

    Args:
        store: what is shown.
        host: where it will be served; without a token only an address that this computer alone reaches is taken.
        token: what a visitor must know: once as `?token=...` in the address, then as a cookie; or in the header
            `Authorization: Bearer`.
        metrics: gives the figures for Prometheus at `/metrics`.
        cancel: takes the name of a machine, a sound `(2, N)` float32 and its rate in Hz; returns the close channel
            `(N,)` without the far one. With it an event can also be heard cancelled.
        learn: is called with the name of the machine and the sound file of an event that an operator calls normal.

    Raises:
        ValueError: the address needs a token, or starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles
    except ImportError as error:
        raise ValueError("the page needs starlette and uvicorn: pip install 'na-ssl-hf[watch]'") from error
    middleware = guards(host, token)
    views = _Views(store, cancel, learn)
    routes = [
        Route("/", views.index),
        Route("/api/machines", views.machines),
        Route("/api/windows", views.windows),
        Route("/api/events", views.events),
        Route("/api/events/{event}/verdict", views.verdict, methods=["POST"]),
        Route("/api/events/{event}/sound", views.sound),
        Route("/api/events/{event}/spectrogram", views.spectrogram),
        Route("/api/stream", views.stream),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    if metrics is not None:
        routes.append(Route("/metrics", lambda _request: _text(metrics())))
    page = Starlette(routes=routes, middleware=middleware)
    page.state.news = views.news
    return page


def guards(host: str, token: str | None, headers: Mapping[str, str] = _HEADERS) -> "list[Middleware]":
    """Return what stands before a page: checks of names, token and origin of requests, and headers of answers.

    Args:
        host, token: as for `make_page`.
        headers: are added to every answer; they say what the browser may load and who may show the page.

    Raises:
        ValueError: other computers reach the address, and there is no token.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if not is_loopback(host) and token is None:
        raise ValueError(f"a page that other computers reach must have a token, got none for the address {host}")
    # Another site must not reach a page without a token through a name that it lets point to this computer.
    own_names = ["127.0.0.1", "localhost", "[::1]"] if token is None else ["*"]
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=own_names),
        Middleware(_Guard, token=token, headers=headers),
    ]


class PageServer:
    """The page in a thread of its own.

    Args:
        page: from `make_page`, or another ASGI application.
        host, port: where it listens; port 0 takes one that is free.
        has_lifespan: whether the page does something when it starts and ends.

    Raises:
        ValueError: uvicorn is not installed.
        OSError: the address cannot be listened on.
    """

    def __init__(self, page: "Starlette", host: str, port: int, has_lifespan: bool = False) -> None:
        import socket

        try:
            import uvicorn
        except ImportError as error:
            raise ValueError("the page needs starlette and uvicorn: pip install 'na-ssl-hf[watch]'") from error
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(64)  # a visitor may come before the thread has begun
        except OSError as error:
            self._socket.close()
            raise OSError(f"the page cannot listen on {host}:{port}: {error}") from error
        self.port: int = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        self._news: News | None = getattr(page.state, "news", None)
        lifespan: Literal["on", "off"] = "on" if has_lifespan else "off"
        settings = uvicorn.Config(page, log_level="warning", lifespan=lifespan, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving; open pages connect again when the watch is back."""
        # Streams that are open would be cut off in the middle, with a traceback for each.
        if self._news is not None:
            self._news.end()
        self._server.should_exit = True
        self._thread.join(5.0)
        self._socket.close()


class _Guard:
    """ASGI middleware: asks for the token, refuses changes that another site asks for, adds security headers."""

    def __init__(self, app: Any, token: str | None, headers: Mapping[str, str]) -> None:
        self._app = app
        self._token = token
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer: Any = self._app
        if self._token is not None and not self._knows_token(request):
            answer = PlainTextResponse("This page needs its token: open it as /?token=...", 401)
        elif request.method not in ("GET", "HEAD") and not _is_same_site(request):
            answer = PlainTextResponse("Only the page itself may change something.", 403)
        elif self._token is not None and "token" in request.query_params and request.url.path == "/":
            answer = RedirectResponse("/", 303)  # so that the token does not stay in the address
            answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict", secure=scope["scheme"] == "https")

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        await answer(scope, receive, send_guarded)

    def _knows_token(self, request: "Request") -> bool:
        assert self._token is not None
        header = request.headers.get("authorization", "").removeprefix("Bearer ")
        told = (header, request.cookies.get(_COOKIE, ""), request.query_params.get("token", ""))
        return any(hmac.compare_digest(one.encode(), self._token.encode()) for one in told)


def _is_same_site(request: "Request") -> bool:
    """Return whether a request comes from the page, or from a program that is no browser."""
    origin = request.headers.get("origin")
    if origin is not None:
        return origin.split("://", 1)[-1] == request.headers.get("host")
    return request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


class _Views:
    """What the page asks for. Blocking work is done in threads, so that streams go on."""

    def __init__(
        self,
        store: WatchStore,
        cancel: Cancel | None,
        learn: Learn | None,
    ) -> None:
        self._store = store
        self._cancel = cancel
        self._learn = learn
        self.news = News(store)

    async def index(self, request: "Request") -> "Response":
        from starlette.responses import FileResponse

        return FileResponse(STATIC / "index.html")

    async def machines(self, request: "Request") -> "Response":
        channels = [name for name in CHANNELS if name != "cancelled" or self._cancel is not None]
        found = await asyncio.to_thread(self._store.machines)
        return _json({"machines": found, "channels": channels, "now": time.time()})

    async def windows(self, request: "Request") -> "Response":
        machine = request.query_params.get("machine", "")
        try:
            hours = float(request.query_params.get("hours", "1"))
        except ValueError:
            hours = -1.0
        if not 0 < hours <= _LONGEST_SPAN_H:
            return _json({"error": f"hours must be above 0 and at most {_LONGEST_SPAN_H:g}"}, 400)
        return _json(await asyncio.to_thread(self._chart, machine, hours))

    def _chart(self, machine: str, hours: float) -> dict[str, Any]:
        """Return the windows of the last hours before the newest one, column by column."""
        newest = self._store.windows(machine, limit=1)
        since = newest[0]["unix_time"] - 3600 * hours if newest else 0.0
        rows = thinned(self._store.windows(machine, since=since, limit=1_000_000), MOST_POINTS)
        names = ("number", "unix_time", "score", "p_value", "evidence", "threshold", "state", "band_scores")
        return {name: [row[name] for row in rows] for name in names}

    async def events(self, request: "Request") -> "Response":
        machine = request.query_params.get("machine") or None
        return _json({"events": await asyncio.to_thread(self._store.events, machine)})

    async def verdict(self, request: "Request") -> "Response":
        event = request.path_params["event"]
        try:
            given = await request.json()
            verdict = given["verdict"]
        except (ValueError, KeyError, TypeError):
            return _json({"error": 'the body must be {"verdict": ...}'}, 400)
        try:
            await asyncio.to_thread(self._store.give_verdict, event, verdict)
            machine = (await asyncio.to_thread(self._store.find_event, event))["machine"]
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        learned = False
        sound = self._store.sounds.path(event)
        if verdict == "normal" and self._learn is not None and sound is not None:
            try:
                await asyncio.to_thread(self._learn, machine, sound)
                learned = True
            except Exception as error:  # the verdict is kept; the page says why nothing was learned
                logger.warning(f"event {event} could not be added to the normals: {error}")
                return _json({"verdict": verdict, "learned": False, "error": str(error)})
        return _json({"verdict": verdict, "learned": learned})

    async def sound(self, request: "Request") -> "Response":
        from starlette.responses import Response

        def view(path: Path, channel: str, cancel: CancelOne | None) -> "Response":
            return Response(channel_sound(path, channel, cancel), media_type="audio/wav")

        return await self._of_event(request, view)

    async def spectrogram(self, request: "Request") -> "Response":
        def view(path: Path, channel: str, cancel: CancelOne | None) -> "Response":
            return _json(channel_spectrogram(path, channel, cancel))

        return await self._of_event(request, view)

    async def _of_event(
        self, request: "Request", view: "Callable[[Path, str, CancelOne | None], Response]"
    ) -> "Response":
        event = request.path_params["event"]
        path = self._store.sounds.path(event)
        if path is None:
            return _json({"error": "there is no sound of this event, or no longer"}, 404)
        channel = request.query_params.get("channel", "close")
        try:
            machine = (await asyncio.to_thread(self._store.find_event, event))["machine"]
            cancel = None if self._cancel is None else partial(self._cancel, machine)
            return await asyncio.to_thread(view, path, channel, cancel)
        except ValueError as error:
            return _json({"error": str(error)}, 400)

    async def stream(self, request: "Request") -> "Response":
        """Send new windows and changed events as server-sent events."""
        from starlette.responses import StreamingResponse

        return StreamingResponse(self.news.visit(), media_type="text/event-stream")


def thinned(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most so many rows, of each run of neighbours the one with the highest score: no peak is lost."""
    if len(rows) <= most:
        return rows
    edges = [len(rows) * index // most for index in range(most + 1)]
    runs = [rows[first:last] for first, last in pairwise(edges)]
    return [max(run, key=lambda row: float("-inf") if row["score"] is None else row["score"]) for run in runs]


def _json(content: Any, status: int = 200) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(content, status)


def _text(content: bytes) -> "Response":
    from starlette.responses import Response

    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
