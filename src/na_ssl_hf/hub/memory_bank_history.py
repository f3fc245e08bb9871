"""This module keeps what changes of a memory bank took away, so that they can be undone, and saves it with the bank.

Letters: F bands, N clips before the change, m clips that it removed, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .clip_embeddings import Clips
from .memory_bank_file import calibration_header, saved_calibration
from .threshold import Calibration


@dataclass(frozen=True, eq=False)
class Change:
    """One change of a memory. The clips that it added lie behind those that it left.

    Attributes:
        num_before: N.
        removed: `(m,)` long, the ascending positions of the removed clips among the N clips.
        clips: The m removed clips.
        calibration: The calibration of the bank before the change, if it had one.
    """

    num_before: int
    removed: torch.Tensor
    clips: Clips
    calibration: Calibration | None

    def undo(self, clips: Clips) -> Clips:
        """Return the N clips before the change from those after it."""
        stayed = torch.ones(self.num_before, dtype=torch.bool)
        stayed[self.removed] = False
        num_stayed = int(stayed.sum())
        # The clips that stayed are joined with those removed, and `origin` says where every earlier clip is among them.
        origin = torch.empty(self.num_before, dtype=torch.long)
        origin[stayed] = torch.arange(num_stayed)
        origin[self.removed] = torch.arange(num_stayed, self.num_before)
        return clips[:num_stayed].followed_by(self.clips)[origin]


def changed_clips(
    clips: Clips, num_before: int, keep: torch.Tensor, calibration: Calibration | None
) -> tuple[Clips, Change]:
    """Keep some clips, and return them with the change that undoes it.

    Args:
        clips: The clips of the memory, `num_before` of them, and then those that are added to it.
        num_before: N.
        keep: A bool mask over `clips`.
        calibration: The calibration of the bank before the change, if it had one.
    """
    removed = (~keep[:num_before]).nonzero()[:, 0]
    change = Change(num_before, removed, clips[removed], calibration)
    # Without this check, a change that only adds clips would copy all of them once more.
    return (clips if keep.all() else clips[keep]), change


def mask_without(positions: Sequence[int] | np.ndarray | torch.Tensor, num_clips: int) -> torch.Tensor:
    """Return `(num_clips,)` bool, False for the clips at `positions`.

    Raises:
        ValueError: The positions are out of range, repeated, none, or all of them.
    """
    array = np.asarray(positions)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0:
        raise ValueError(f"`clips` must be a sequence of at least one int, got {positions!r}.")
    if array.min() < 0 or array.max() >= num_clips or len(set(array.tolist())) < len(array):
        raise ValueError(f"`clips` must be different positions in 0..{num_clips - 1}, got {positions!r}.")
    if len(array) == num_clips:
        raise ValueError(f"`clips` must leave at least one clip in the memory, got all {num_clips} of them.")
    keep = torch.ones(num_clips, dtype=torch.bool)
    keep[array.tolist()] = False
    return keep


def saved_history(history: Sequence[Change]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the named tensors and the headers of changes, oldest first, for the file of the bank."""
    tensors: dict[str, torch.Tensor] = {}
    headers: list[dict[str, Any]] = []
    for position, change in enumerate(history):
        named = {
            "removed": change.removed,
            "clips": change.clips.vectors,
            "squared_norms": change.clips.squared_norms,
        }
        if change.clips.is_target is not None:
            named["is_target"] = change.clips.is_target
        tensors |= {f"{_prefix(position)}{name}": tensor.cpu().contiguous() for name, tensor in named.items()}
        headers.append({"num_before": change.num_before} | calibration_header(change.calibration))
    return tensors, headers


def take_history(
    tensors: dict[str, torch.Tensor], headers: Sequence[dict[str, Any]], num_clips: int, knows_domains: bool
) -> list[Change]:
    """Take the changes that `saved_history` gave out of the tensors of the file of a bank of `num_clips` clips.

    Raises:
        ValueError, TypeError or KeyError: The saved parts contradict each other.
    """
    num_bands, _, dim = tensors["memory_"].shape
    history: list[Change] = []
    num_after = num_clips
    for position in reversed(range(len(headers))):
        prefix = _prefix(position)
        names = [name for name in tensors if name.startswith(prefix)]
        named = {name.removeprefix(prefix): tensors.pop(name) for name in names}
        history.insert(0, _restored_change(headers[position], named, num_after, (num_bands, dim, knows_domains)))
        num_after = history[0].num_before
    return history


def _restored_change(
    header: dict[str, Any], tensors: dict[str, torch.Tensor], num_after: int, shape: tuple[int, int, bool]
) -> Change:
    """Check the saved parts of one change, after which there were `num_after` clips, and put them together.

    `shape` is (F, D, whether the memory knows domains).
    """
    num_bands, dim, knows_domains = shape
    removed, num_before = tensors["removed"], header["num_before"]
    expected = {
        "removed": (removed.shape, torch.int64),
        "clips": ((num_bands, len(removed), dim), torch.float32),
        "squared_norms": ((num_bands, len(removed)), torch.float32),
    }
    if knows_domains:
        expected["is_target"] = (removed.shape, torch.bool)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (tuple(size), dtype) for name, (size, dtype) in expected.items()} or removed.ndim != 1:
        raise ValueError(f"A change must hold the tensors {expected}, got {found}.")
    positions = removed.tolist()
    if positions != sorted(set(positions)) or any(not 0 <= position < num_before for position in positions):
        raise ValueError(f"`removed` must hold ascending positions among {num_before} clips, got {positions}.")
    if num_before - len(positions) > num_after:
        raise ValueError(f"`num_before` must fit the {num_after} clips after the change, got {num_before!r}.")
    clips = Clips(tensors["clips"], tensors["squared_norms"], tensors.get("is_target"))
    return Change(num_before, removed, clips, saved_calibration(header))


def _prefix(position: int) -> str:
    return f"history.{position}."
