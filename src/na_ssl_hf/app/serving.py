"""Serve the page on this computer, and remove what was uploaded at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..watch.page.server import PageServer, guards
from .page import LARGEST_UPLOAD_MB, import_gradio, make_page, page_options

# gradio's page has scripts and styles in its own text; whatever it would load from elsewhere, the browser refuses.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_TEMPORARY = "GRADIO_TEMP_DIR"


@contextmanager
def served_page(
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    models: Sequence[str] = (),
    device: str | None = None,
    largest_upload_mb: int = LARGEST_UPLOAD_MB,
) -> Iterator[str]:
    """Serve the page while the block runs; uploads lie in a temporary folder, which is removed at its end.

    Args:
        host: where it listens; without a token only an address that this computer alone reaches is taken.
        port: 0 takes one that is free.
        token: what a visitor must know: once as `?token=...` in the address, then as a cookie.
        models, device: as for `make_page`.
        largest_upload_mb: as for `page_options`.

    Yields:
        the address of the page.

    Raises:
        ValueError: the address needs a token, gradio is not installed, or `largest_upload_mb` is below 1.
        OSError: a checkpoint is not found, or the address cannot be listened on.
    """
    gradio = import_gradio()
    from fastapi import FastAPI

    middleware = guards(host, token, _HEADERS)
    options = page_options(largest_upload_mb)
    before = os.environ.get(_TEMPORARY)
    with tempfile.TemporaryDirectory(prefix="na-ssl-app-", ignore_cleanup_errors=True) as folder:
        os.environ[_TEMPORARY] = folder
        try:
            outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=middleware)
            gradio.mount_gradio_app(outer, make_page(models, device), path="/", **options)
            server = PageServer(outer, host, port, has_lifespan=True)
            try:
                yield server.address
            finally:
                server.close()
        finally:
            if before is None:
                del os.environ[_TEMPORARY]
            else:
                os.environ[_TEMPORARY] = before
