"""Loading and saving of checkpoints without transformers' progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_checkpoints() -> Iterator[None]:
    """Hide transformers' progress bars inside the block.

    A checkpoint loads in a moment, and its bars would hide the ones that show the progress of long work.
    """
    with_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if with_bars:
            logging.enable_progress_bar()
