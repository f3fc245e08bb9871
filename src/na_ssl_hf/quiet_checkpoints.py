"""Loading and saving checkpoints without transformers' progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_checkpoints() -> Iterator[None]:
    """Inside, no bars of transformers are shown: it takes a moment, and they would bury those that matter."""
    with_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if with_bars:
            logging.enable_progress_bar()
