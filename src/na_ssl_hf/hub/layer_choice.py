"""The choice of layers whose tokens a scorer compares, how the vectors of several layers become one, and how much of a
noise-aware model is in them.

Letters: B recordings, N samples, T' rows in time, F bands, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Below this norm a vector is constant over its channels, and has no direction after its mean is taken off.
SMALLEST_NORM = 1e-12
# The shares among which "auto" chooses.
NA_SHARES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class LayerChoice:
    """The layers whose tokens are compared.

    Attributes:
        layers: numbers of layers as in `output_hidden_states`, 0 for the input of the first one; `None` for what the
            model gives as `last_hidden_state`.

    Raises:
        ValueError: a layer is not a whole number of at least 0, is there twice, or there is none.
    """

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is None:
            return
        given = self.layers
        if not isinstance(given, (list, tuple)) or not given:
            raise ValueError(f"`layers` must be a list of at least one number of a layer, or None, got {given!r:.80}.")
        for layer in given:
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise ValueError(f"`layers` must hold whole numbers of at least 0, got {layer!r:.80}.")
        if len(set(given)) < len(given):
            raise ValueError(f"`layers` must name every layer once, got {list(given)!r:.80}.")
        object.__setattr__(self, "layers", tuple(given))

    @classmethod
    def of(cls, layer: int | None = None, layers: Sequence[int] | None = None) -> "LayerChoice":
        """Make the choice from what a user gives: one number, or several.

        Raises:
            ValueError: both are given, or one is not a number of a layer.
        """
        if layer is None:
            return cls(layers)  # type: ignore[arg-type] # other sequences than tuples become one
        if layers is not None:
            raise ValueError(f"`layer` must be None where `layers` is given, got layer={layer!r}, layers={layers!r}.")
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise ValueError(f"`layer` must be a whole number of at least 0, got {layer!r:.80}.")
        return cls((layer,))

    def or_default_of(self, model: Any) -> "LayerChoice":
        """Return this choice, or that of a model which is best heard in the middle, where nothing was chosen."""
        default = getattr(model.config, "scoring_layer", None)
        return self if self.layers is not None or default is None else LayerChoice((default,))

    @property
    def deepest(self) -> int | None:
        """The last of the layers; `None` for the last one of the model."""
        return None if self.layers is None else max(self.layers)

    def check(self, model: Any) -> None:
        """Raise a ValueError where the model lacks one of the layers."""
        for layer in self.layers or ():
            if layer > model.num_layers:
                raise ValueError(
                    f"`layers` must be in 0 ... {model.num_layers} for this {type(model).__name__}, got {layer}."
                )

    def vectors(
        self,
        model: Any,
        input_values: torch.Tensor,
        pooling: Callable[[torch.Tensor], torch.Tensor] | None,
        na_share: float | None = None,
    ) -> torch.Tensor:
        """Encode recordings, and pool the tokens of the chosen layers.

        One layer stays as it is. Of several layers, every vector is standardised over its channels (mean 0, and one
        variance for all layers and sizes D, so that every layer counts equally), and they are joined along the
        channels to vectors of norm 1.

        Args:
            model: an encoder of this package.
            input_values: what the model takes, `(B, 2, T, M)`.
            pooling: maps a grid `(B, T', F, D)` to `(B, F, D)`; `None` keeps the rows in time.
            na_share: the share of a noise-aware model in the tokens, 1 - `na_share` being that of its base; `None` for
                the model as it is.

        Returns:
            `(B, F, D)`, or `(B, T', F, D)` without pooling, float32; of several layers D is the sum of theirs.

        Raises:
            ValueError: the model lacks one of the layers, or their grids differ in rows or bands.
        """
        if na_share is not None:
            return self.vectors_of_shares(model, input_values, pooling, (na_share,))[0]
        if self.layers is None:
            grids = [model.time_frequency_grid(model(input_values).last_hidden_state)]
        else:
            grids = model.layer_grids(input_values, self.layers)
        return self._pooled(grids, pooling)

    def vectors_of_shares(
        self,
        model: Any,
        input_values: torch.Tensor,
        pooling: Callable[[torch.Tensor], torch.Tensor] | None,
        shares: Sequence[float],
    ) -> list[torch.Tensor]:
        """Make the vectors of several shares of a noise-aware model in one run, see `vectors`."""
        by_share = model.interpolated_grids(input_values, self.layers or (None,), shares)
        return [self._pooled(grids, pooling) for grids in by_share]

    def _pooled(
        self, grids: Sequence[torch.Tensor], pooling: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> torch.Tensor:
        self._check_alike(grids)
        pooled = [grid.float() if pooling is None else pooling(grid.float()) for grid in grids]
        return pooled[0] if len(pooled) == 1 else joined(pooled)

    def _check_alike(self, grids: Sequence[torch.Tensor]) -> None:
        # An exported graph has symbols for sizes, which no set can hold.
        if any(grid.shape[1:3] != grids[0].shape[1:3] for grid in grids):
            sizes = ", ".join(
                f"{grid.shape[1]} x {grid.shape[2]} in layer {layer}"
                for layer, grid in zip(self.layers or (), grids, strict=True)
            )
            raise ValueError(f"`layers` must be layers with equal grids (rows in time x bands), got {sizes}.")


def joined(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the vectors `(..., D)` of several layers to `(..., sum of D)`, so that every layer counts equally.

    Each vector has its mean over the channels taken off and is scaled to the norm `1 / sqrt(layers)`; the whole then
    has norm 1. A vector that is constant over its channels becomes zero.
    """
    parts = []
    for vector in vectors:
        centred = vector - vector.mean(-1, keepdim=True)
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        parts.append(torch.where(norm > SMALLEST_NORM, centred / norm.clamp_min(SMALLEST_NORM), 0.0))
    return torch.cat(parts, dim=-1) / len(parts) ** 0.5


def check_na_share(na_share: Any) -> float | str | None:
    """Return a legal `na_share`: `None`, "auto" or a number from 0 to 1; a ValueError for every other value."""
    is_number = isinstance(na_share, (int, float)) and not isinstance(na_share, bool)
    if na_share is None or (isinstance(na_share, str) and na_share == "auto"):
        return na_share
    if not is_number or not 0 <= na_share <= 1:
        raise ValueError(f"`na_share` must be None, 'auto' or a number from 0 to 1, got {na_share!r:.80}.")
    return float(na_share)


def check_has_share(model: Any, na_share: float | str | None) -> None:
    """Raise a ValueError where a share is asked of a model that has no noise-aware layers."""
    if na_share is not None and not hasattr(model, "interpolated_grids"):
        raise ValueError(
            f"`na_share` must be None for {type(model).__name__}, which has no noise-aware layers, got {na_share!r}."
        )
