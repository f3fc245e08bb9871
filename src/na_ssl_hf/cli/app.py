"""`na-ssl app`: the page that fits and scores what is uploaded."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import Any

from .command_line import add_command, add_device_option


def add_commands(commands: Any) -> None:
    """Add `na-ssl app`."""
    parser = add_command(
        commands,
        "app",
        _app,
        "open a page on which recordings are uploaded, scored, looked at and heard",
        "  na-ssl app\n  na-ssl app --host 0.0.0.0 --token-file token.txt --max-upload 500",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others need --token-file (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0 for a free one (default: 7860)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the token that visitors of the page must know"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="checkpoint to choose beside those of the package: a directory or a name on the hub; repeatable",
    )
    parser.add_argument(
        "--max-upload", type=int, default=200, metavar="MB", help="largest size of an uploaded file (default: 200)"
    )
    add_device_option(parser)


def _app(options: argparse.Namespace) -> None:
    from ..app.serving import served_page
    from ..watch.messages.secret import read_secret
    from .scoring import check_device

    if not 0 <= options.port < 65536:
        raise ValueError(f"--port must be in 0 ... 65535, got {options.port}")
    if options.max_upload < 1:
        raise ValueError(f"--max-upload must be at least 1, got {options.max_upload}")
    check_device(options.device)
    token = read_secret("the token of the page", file=options.token_file)
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    with served_page(options.host, options.port, token, options.model, options.device, options.max_upload) as address:
        print(f"Open {address} in a browser; Ctrl+C ends it and removes what was uploaded.", flush=True)
        is_over.wait()
