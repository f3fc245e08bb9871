"""Several processes of `accelerate launch` or torchrun that share out a list of work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among `count`, numbered from 0; alone by default.

    Attributes:
        device: where this process computes, or `None` for the best there is.
    """

    index: int = 0
    count: int = 1
    device: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes results."""
        return self.index == 0

    def share(self, work: Sequence[Item]) -> list[Item]:
        """The items that are this process's: every `count`-th one."""
        return list(work[self.index :: self.count])

    def gather(self, results: Sequence[Item]) -> list[Item]:
        """What all processes made of their shares, in the order of the work, in every process."""
        if self.count == 1:
            return list(results)
        import torch.distributed

        shares: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(shares, list(results))
        missing = object()
        turns = zip_longest(*shares, fillvalue=missing)
        return [result for turn in turns for result in turn if result is not missing]


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """The processes that a launcher started together with this one, connected; this one alone without a launcher.

    They are disconnected at the end: a process that just exits can die of its own connection's threads.
    Raises ValueError when there are several and accelerate, which connects them, is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    import torch

    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ValueError("several processes need accelerate: pip install 'na-ssl-hf[train]'") from error
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    state = PartialState(cpu=asked_for_cpu or not torch.cuda.is_available())
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        state.destroy_process_group()
