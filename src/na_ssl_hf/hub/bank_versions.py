"""Changes of a memory that lives, kept so that they can be undone.

Letters: F bands, N clips before the change, m clips that it removed, D channels.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .threshold import Calibration


@dataclass
class Change:
    """What one change took out of the memory; clips that it added lie at the end of what is left.

    Attributes:
        num_before: N.
        removed: `(m,)` long, ascending positions among the N clips.
        clips: `(F, m, D)` float32, the removed clips as the memory held them.
        squared_norms: `(F, m)` float32.
        is_target: `(m,)` bool, where the memory knows domains.
        calibration: the calibration of the bank before the change, if it had one.
    """

    num_before: int
    removed: torch.Tensor
    clips: torch.Tensor
    squared_norms: torch.Tensor
    is_target: torch.Tensor | None
    calibration: Calibration | None

    def undo(
        self, clips: torch.Tensor, squared_norms: torch.Tensor, is_target: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The clips `(F, N, D)`, squared norms `(F, N)` and domains `(N,)` as they were before the change."""
        stayed = torch.ones(self.num_before, dtype=torch.bool)
        stayed[self.removed] = False
        num_stayed = int(stayed.sum())
        # Where every clip of the earlier memory lies now: among those that stayed, or (after them) those removed.
        origin = torch.empty(self.num_before, dtype=torch.long)
        origin[stayed] = torch.arange(num_stayed)
        origin[self.removed] = torch.arange(num_stayed, self.num_before)
        origin = origin.to(clips.device)
        earlier = torch.cat([clips[:, :num_stayed], self.clips.to(clips.device)], dim=1)[:, origin]
        earlier_norms = torch.cat([squared_norms[:, :num_stayed], self.squared_norms.to(clips.device)], dim=1)[
            :, origin
        ]
        if is_target is None or self.is_target is None:
            return earlier, earlier_norms, None
        return earlier, earlier_norms, torch.cat([is_target[:num_stayed], self.is_target.to(clips.device)])[origin]

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Named tensors for a safetensors file."""
        named = {"removed": self.removed, "clips": self.clips, "squared_norms": self.squared_norms}
        if self.is_target is not None:
            named["is_target"] = self.is_target
        return {f"{prefix}{name}": tensor.cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def restore(
        cls, header: dict[str, Any], tensors: dict[str, torch.Tensor], num_after: int, shape: tuple[int, int, bool]
    ) -> "Change":
        """From the saved header and tensors of one change, after which there were `num_after` clips.

        `shape` is (F, D, whether the memory knows domains). Raises ValueError, TypeError or KeyError where the saved
        parts contradict each other.
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
            raise ValueError(f"a change must hold {expected}, got {found}.")
        positions = removed.tolist()
        if positions != sorted(set(positions)) or any(not 0 <= position < num_before for position in positions):
            raise ValueError(f"removed must hold ascending positions among {num_before} clips, got {positions}.")
        if num_before - len(positions) > num_after:
            raise ValueError(f"num_before={num_before!r} must fit the {num_after} clips after the change.")
        return cls(
            num_before,
            removed,
            tensors["clips"],
            tensors["squared_norms"],
            tensors.get("is_target"),
            saved_calibration(header),
        )


def saved_calibration(header: dict[str, Any]) -> Calibration | None:
    """The calibration in the header of a saved bank or change; ValueError where it is damaged.

    The first version kept it among other `metadata`, in which whatever else stood is of no use any more.
    """
    if "calibration" in header:
        return None if header["calibration"] is None else Calibration.from_dict(header["calibration"])
    metadata = header["metadata"]
    return Calibration.from_dict(metadata) if "self_scores" in metadata else None
