"""Blocks and functions that run on one torch thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread inside the block, and back after it. It also works as a decorator.

    There are two reasons. Operations that are too small for several threads lose time to their waiting for each other.
    And threads split sums, so that the number of threads would decide the last bit of a result.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
