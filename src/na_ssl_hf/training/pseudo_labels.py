"""Classes of normal training clips: their attributes where there are some, else clusters of their embeddings.

Fujimura et al., DCASE 2026 Task 2. Letters: N clips, F bands, D channels, K clusters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.dcase.clips import DcaseClip
from ..data.dcase.names import NO_ATTRIBUTE
from ..hub.whole_files import whole_file

SILHOUETTE = "silhouette"
_CANDIDATES = (2, 4, 8, 16, 32)
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class LabelMap:
    """A label map says which class every training clip of a data set belongs to.

    Attributes:
        classes: by name, sorted: clips as "<machine>/<stem of the file>". Names are "<machine>/section_<nn>/" and the
            attributes ("spd_1"), "source/cluster_<nn>", or "target", where a machine has no attributes.
        data_fingerprint: the fingerprint of the data set, see `data_fingerprint`.
        settings: the settings with which the classes were made.
    """

    classes: Mapping[str, tuple[str, ...]]
    data_fingerprint: str
    settings: Mapping[str, Any]

    def labels(self, clips: Sequence[DcaseClip]) -> Tensor:
        """Return the class numbers of the clips, `(N,)` int64, in the order of `classes`.

        Raises:
            ValueError: the clips are not those that the map was made from; an unknown attribute is named.
        """
        known = {clip: number for number, members in enumerate(self.classes.values()) for clip in members}
        for clip in clips:
            attributes = _attribute_class(clip)
            if attributes is not None and attributes not in self.classes:
                raise ValueError(
                    f"label map must know the attributes of all clips, got {clip.attributes!r} of {clip.path}, "
                    f"which has no class {attributes!r} in it"
                )
        fingerprint = data_fingerprint(clips)
        if fingerprint != self.data_fingerprint:
            unknown = [clip for clip in map(clip_key, clips) if clip not in known]
            reason = f", of which {len(unknown)} are not in it, first {unknown[0]}" if unknown else ""
            raise ValueError(
                f"label map must be of this data set: it was made from {len(known)} clips with fingerprint "
                f"{self.data_fingerprint}, got {len(clips)} with {fingerprint}{reason}"
            )
        return torch.tensor([known[clip_key(clip)] for clip in clips])

    def save(self, path: str | Path) -> None:
        """Write readable JSON, all or nothing."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps({"format_version": _FORMAT_VERSION, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> LabelMap:
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: the file is not a label map.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}")
            classes = {name: tuple(members) for name, members in content["classes"].items()}
            return cls(classes, content["data_fingerprint"], content["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must be a label map of this package, got {error!r}") from error


def make_label_map(
    clips: Sequence[DcaseClip],
    embed: Callable[[list[Path]], Tensor],
    num_clusters: int | str = 16,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> LabelMap:
    """Make the classes of the training clips of a data set.

    Clips with attributes are classed by machine and attributes. The others are classed by machine and domain, and those
    of the source domain further by k-means for each machine; target clips are too few to be clustered.

    Args:
        clips: the clips of `list_dcase_clips(root, "train")`.
        embed: gives the embeddings `(n, F, D)`, averaged over time, of n files; it is called with source clips without
            attributes only.
        num_clusters: clusters of every machine without attributes; "silhouette" chooses their number for each machine
            by the silhouette coefficient (Rousseeuw, 1987).
        seed: the seed of k-means.
        settings: further settings that the map records.

    Raises:
        ValueError: there are test clips among them, fewer clips than clusters, or a single class in all.
    """
    _check_clusters(num_clusters)
    members: dict[str, list[str]] = {}
    to_cluster: dict[str, list[DcaseClip]] = {}
    for clip in clips:
        if clip.name.split != "train":
            raise ValueError(f"clips must all be of the training split, got {clip.path}")
        name = _attribute_class(clip)
        if name is None and clip.name.domain != "target":
            to_cluster.setdefault(f"{_machine(clip)}/source", []).append(clip)
        else:
            members.setdefault(name or f"{_machine(clip)}/target", []).append(clip_key(clip))
    least = min(_CANDIDATES) + 1 if num_clusters == SILHOUETTE else int(num_clusters)
    for source, group in to_cluster.items():
        if len(group) < least:
            raise ValueError(
                f"num_clusters must be at most the number of clips, got {least} for {len(group)} of {source}"
            )
    for source, group in to_cluster.items():
        for clip, cluster in zip(
            group, cluster_embeddings(embed([c.path for c in group]), num_clusters, seed), strict=True
        ):
            members.setdefault(f"{source}/cluster_{cluster:02d}", []).append(clip_key(clip))
    if len(members) < 2:
        raise ValueError(f"clips must be of at least two classes, got one alone: {', '.join(members) or 'no clips'}")
    classes = {name: tuple(members[name]) for name in sorted(members)}
    return LabelMap(classes, data_fingerprint(clips), {"num_clusters": num_clusters, "seed": seed, **(settings or {})})


def cluster_embeddings(embeddings: Tensor, num_clusters: int | str, seed: int = 0) -> list[int]:
    """Find the k-means cluster of each of the embeddings `(N, F, D)`, with their bands concatenated.

    Args:
        num_clusters: K, or "silhouette" for the best of 2, 4, 8, 16 and 32.
        seed: the seed of the first centres.

    Raises:
        ValueError: there are fewer embeddings than clusters, or NaN or infinity among them.
    """
    _check_clusters(num_clusters)
    features = embeddings.flatten(1).double().numpy()  # (N, F * D)
    if not np.isfinite(features).all():
        raise ValueError("embeddings must be finite, got NaN or infinite values")
    counts = [k for k in _CANDIDATES if k < len(features)] if num_clusters == SILHOUETTE else [int(num_clusters)]
    if not counts or counts[0] > len(features):
        raise ValueError(f"num_clusters must be at most the number of clips, got {num_clusters} for {len(features)}")
    features = _rotated(features)
    labellings = [_kmeans(features, count, seed) for count in counts]
    if len(labellings) == 1:
        return labellings[0].tolist()
    from sklearn.metrics import pairwise_distances, silhouette_score

    distances = pairwise_distances(features)  # (N, N)
    np.fill_diagonal(distances, 0.0)
    # Identical clips may leave a single cluster, whose silhouette is undefined.
    scores = [
        silhouette_score(distances, each, metric="precomputed") if len(set(each)) > 1 else -1.0 for each in labellings
    ]
    return labellings[int(np.argmax(scores))].tolist()


def data_fingerprint(clips: Iterable[DcaseClip]) -> str:
    """Hash the names, attributes and sizes in bytes of a data set's files, whatever folder it lies in."""
    lines = sorted(f"{clip_key(clip)}\t{clip.attributes}\t{clip.path.stat().st_size}\n" for clip in clips)
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def clip_key(clip: DcaseClip) -> str:
    """Name a clip as "<machine>/<stem of the file>"."""
    return f"{clip.name.machine}/{clip.path.stem}"


def _kmeans(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(features)


def _rotated(features: np.ndarray) -> np.ndarray:
    """Rotate the points into as few dimensions as they span; distances stay, and clustering is ten times faster."""
    centred = features - features.mean(axis=0)
    if centred.shape[1] <= len(centred):
        return centred
    variances, directions = np.linalg.eigh(centred @ centred.T)
    return (directions * np.sqrt(variances.clip(0)))[:, ::-1].astype(np.float32)  # (N, N)


def _attribute_class(clip: DcaseClip) -> str | None:
    return None if clip.attributes in (None, NO_ATTRIBUTE) else f"{_machine(clip)}/{clip.attributes}"


def _machine(clip: DcaseClip) -> str:
    return f"{clip.name.machine}/section_{clip.name.section:02d}"


def _check_clusters(num_clusters: int | str) -> None:
    if num_clusters != SILHOUETTE and (not isinstance(num_clusters, int) or num_clusters < 1):
        raise ValueError(f"num_clusters must be a whole number of at least 1 or {SILHOUETTE!r}, got {num_clusters!r}")
