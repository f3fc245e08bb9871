"""Running a block on one torch thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread inside the block, and back after it; also a decorator.

    Two reasons: threads only wait for each other in operations that are too small for them, and they split sums, so
    that their number decides the last bit of a result.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
