"""Several processes of `accelerate launch` or torchrun can share the work of a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among all that share the work; without a launcher it is the only one.

    Attributes:
        index: number of this process, from 0.
        count: number of all processes.
        device: where this process computes, or `None` for the best there is.
    """

    index: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Tell whether this is the process that writes results."""
        return self.index == 0

    def share(self, work: Sequence[Item]) -> list[Item]:
        """Return the items that this process works on: every `count`-th one."""
        return list(work[self.index :: self.count])

    def gather(self, results: Sequence[Item]) -> list[Item]:
        """Collect the results of all processes, in the order of the work; every process gets all of them."""
        if self.count == 1:
            return list(results)
        import torch.distributed

        shares: list[list[Item]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(shares, list(results))
        longest = max(map(len, shares))
        return [share[turn] for turn in range(longest) for share in shares if turn < len(share)]


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Connect the processes that a launcher started together with this one; without a launcher it stays alone.

    They are disconnected at the end, because a process that exits while it is connected can crash in the threads of
    its connection.

    Raises:
        ValueError: there are several processes, and accelerate, which connects them, is not installed.
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
