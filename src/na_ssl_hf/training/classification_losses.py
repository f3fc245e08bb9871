"""Angular classification losses for soft labels: sub-cluster AdaCos, AdaCos and ArcFace.

Letters in shape comments: B recordings, D embedding size, C classes, S sub-clusters a class.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class SubClusterAdaCos(nn.Module):
    """Cross entropy of scaled cosines to several centres a class, summed inside each class as probabilities.

    Wilkinghoff, "Sub-cluster AdaCos: Learning representations for anomalous sound detection", IJCNN 2021. The scale is
    `sqrt(2) ln(C S - 1)` (Zhang et al., "AdaCos", CVPR 2019) and stays so, or adapts to every training batch.

    Args:
        embedding_size, num_classes, num_subclusters: D, C and S.
        dynamic_scale: adapt the scale in training mode, before the loss of the same batch.
        trainable_centres: False keeps the random centres.

    Attributes:
        centres: `(D, C * S)`; sub-cluster k of class c is column `c * S + k`.
        scale: scalar.

    Raises:
        ValueError: fewer than two classes, or so few centres that the scale would be 0.
    """

    scale: Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        num_subclusters: int = 16,
        dynamic_scale: bool = False,
        trainable_centres: bool = True,
    ):
        super().__init__()
        _check_classes(num_classes)
        num_centres = num_classes * num_subclusters
        if num_subclusters < 1 or num_centres < 3:
            raise ValueError(
                "`num_subclusters` must be at least 1, and 2 for two classes (else the scale is 0), "
                f"got {num_subclusters} for {num_classes} classes."
            )
        self.num_subclusters = num_subclusters
        self.dynamic_scale = dynamic_scale
        centres = nn.init.xavier_uniform_(torch.empty(embedding_size, num_centres))
        if trainable_centres:
            self.centres = nn.Parameter(centres)
        else:
            self.register_buffer("centres", centres)
        self.register_buffer("scale", torch.tensor(math.sqrt(2) * math.log(num_centres - 1)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of embeddings `(B, D)`; labels `(B, C)` are non-negative and may be mixed."""
        cosines = _cosines(embeddings, self.centres)
        if self.training and self.dynamic_scale:
            self._adapt_scale(cosines.detach(), labels)
        return -(labels * self._log_probabilities(cosines)).sum(dim=1).mean()

    def logits(self, embeddings: Tensor) -> Tensor:
        """Compute the logarithms of the classes' probabilities, `(B, C)`."""
        return self._log_probabilities(_cosines(embeddings, self.centres))

    def _log_probabilities(self, cosines: Tensor) -> Tensor:
        logits = (self.scale * cosines).log_softmax(dim=1)  # (B, C * S)
        return logits.unflatten(1, (-1, self.num_subclusters)).logsumexp(dim=2)  # (B, C)

    @torch.no_grad()
    def _adapt_scale(self, cosines: Tensor, labels: Tensor) -> None:
        # The reference implementation repeats the labels as a whole although columns are class-major; with 16
        # sub-clusters the sum of angles is above pi / 4 either way.
        angles = (labels.repeat(1, self.num_subclusters) * cosines.clamp(-1, 1).acos()).sum(dim=1)  # (B,)
        median = angles.median().clamp(max=math.pi / 4)
        log_mean = (self.scale * cosines).flatten().logsumexp(dim=0) - math.log(len(cosines))
        self.scale.copy_(log_mean / (median.cos() + 1e-7))


class AdaCos(SubClusterAdaCos):
    """AdaCos (Zhang et al., CVPR 2019) has one centre for every class and a scale that adapts.

    Unlike the paper's, the mean in the scale also counts the angle to the right class, as in [`SubClusterAdaCos`].
    """

    def __init__(
        self, embedding_size: int, num_classes: int, dynamic_scale: bool = True, trainable_centres: bool = True
    ):
        super().__init__(embedding_size, num_classes, 1, dynamic_scale, trainable_centres)


class ArcFace(nn.Module):
    """Cross entropy of scaled cosines with a margin added to the angle of the right class.

    Deng et al., "ArcFace: Additive angular margin loss for deep face recognition", CVPR 2019. With soft labels the loss
    is the mean of the losses of the classes, weighted by the labels.

    Args:
        embedding_size, num_classes: D and C.
        margin: radians, in [0, pi / 2].
        scale: positive.

    Raises:
        ValueError: fewer than two classes, or `margin` or `scale` out of range.
    """

    def __init__(self, embedding_size: int, num_classes: int, margin: float = 0.5, scale: float = 30.0):
        super().__init__()
        _check_classes(num_classes)
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"`margin` must lie in [0, pi / 2], got {margin}.")
        if not scale > 0:
            raise ValueError(f"`scale` must be positive, got {scale}.")
        self.margin, self.scale = margin, scale
        self.centres = nn.Parameter(nn.init.xavier_uniform_(torch.empty(embedding_size, num_classes)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of embeddings `(B, D)`; labels `(B, C)` are non-negative and may be mixed."""
        cosines = _cosines(embeddings, self.centres)  # (B, C)
        # The floor keeps the root's gradient finite where an embedding lies on a centre.
        sines = (1 - cosines.square()).clamp_min(1e-7).sqrt()
        shifted = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        # Beyond pi the shifted cosine would rise again; the linear continuation keeps it falling.
        continued = cosines - self.margin * math.sin(self.margin)
        right = self.scale * torch.where(cosines > -math.cos(self.margin), shifted, continued)  # (B, C)
        is_self = torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
        others = (self.scale * cosines)[:, None].masked_fill(is_self, -math.inf).logsumexp(dim=2)  # (B, C)
        return (labels * (torch.logaddexp(right, others) - right)).sum(dim=1).mean()

    def logits(self, embeddings: Tensor) -> Tensor:
        """Compute the logarithms of the classes' probabilities, `(B, C)`, without the margin."""
        return (self.scale * _cosines(embeddings, self.centres)).log_softmax(dim=1)


def _cosines(embeddings: Tensor, centres: Tensor) -> Tensor:
    # Half precision is too coarse for angles.
    with torch.autocast(embeddings.device.type, enabled=False):
        return normalize(embeddings.float(), dim=1) @ normalize(centres.float(), dim=0)


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(
            f"`num_classes` must be at least 2, since a single class cannot be told from others; got {num_classes}."
        )
