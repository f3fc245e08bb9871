"""Calls of the public classes and of a scorer with values of a wrong type or out of range."""

import random
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from na_ssl_hf import MemoryBank
from na_ssl_hf.hub.pooling import Pooling
from na_ssl_hf.hub.recording import Windows

from .sounds import normal_recordings, strange_values, tiny_scorer
from .trial import Materials, Trial


def _embeddings(seed: int, clips: int = 12) -> torch.Tensor:
    return torch.randn(clips, 4, 8, generator=torch.Generator().manual_seed(seed))


def _some(draw: random.Random, known: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Some of the arguments, each good or strange."""
    chosen = draw.sample(sorted(known), draw.randint(1, min(3, len(known))))
    values = list(strange_values())
    return {name: draw.choice(known[name] if draw.random() < 0.4 else values) for name in chosen}


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _named(arguments: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{quote}{name}" for name in (*arguments, *_ALSO) for quote in ("`", "'")) + tuple(arguments)


# Messages about several arguments at once name the one that the user would change.
_ALSO = (
    "recordings",
    "domains",
    "rescaling",
    "false_alarm_rate",
    "method",
    "pooling",
    "num_neighbors",
    "embeddings",
    "smote_neighbors",
    "backend",
)

BANK: dict[str, tuple[Any, ...]] = {
    "distance": ("cosine", "euclidean"),
    "normalize": (True, False),
    "num_neighbors": (1, 3),
    "rescaling": (None, "variance_min", "ratio", "difference", "lof"),
    "num_rescaling_neighbors": (1, 4),
    "smote_ratio": (0.0, 0.2),
    "band_aggregation": ("mean", "max"),
    "separate_domains": (False, True),
    "memmixup_neighbors": (0, 2),
    "rescaling_decay": (None, 0.5),
    "coreset_size": (None, 6),
    "num_target_neighbors": (None, 0),
    "max_clips": (None, 8),
    "index": (None, "flat"),
    "coreset_seed": (0, 7),
    "backend": ("nearest", "two_domains", "mahalanobis", "pca", ("mahalanobis", "pca"), ["nearest", "two_domains"]),
    "backend_fusion": ("minimum", "mean"),
    "explained_variance": (0.5, 0.999),
}


def bank_arguments(draw: random.Random, materials: Materials) -> Trial:
    """A memory bank with strange parameters, fitted and asked."""
    known = {field.name for field in fields(MemoryBank) if field.init}
    arguments = _some(draw, {name: values for name, values in BANK.items() if name in known})
    domains = draw.choice(
        (None, ["source"] * 8 + ["target"] * 4, ["source"] * 12, ["source"] * 3, "source", ["x"] * 12, 5)
    )
    embeddings: Any = _embeddings(0)
    how = draw.choice(("", "", "", "NaN", "flat", "one", "none", "list", "int"))
    if how == "NaN":
        embeddings[3, 2, 1] = float("nan")
    embeddings = {
        "flat": lambda: embeddings.reshape(12, 32),
        "one": lambda: embeddings[:1],
        "none": lambda: embeddings[:0],
        "list": lambda: embeddings.tolist(),
        "int": lambda: embeddings.int(),
    }.get(how, lambda: embeddings)()

    def act() -> bool:
        bank = MemoryBank(**arguments).fit(embeddings, domains=domains)
        return bool(np.isfinite(np.asarray(bank.score(_embeddings(1)))).all())

    return Trial(f"MemoryBank({_shown(arguments)}).fit({how or 'good'}, {domains!r:.30})", act, _named(arguments))


def pooling_arguments(draw: random.Random, materials: Materials) -> Trial:
    """A pooling with strange parameters, used."""
    known = {"method": ("mean", "max", "gem", "rdp", "gwrp"), "gamma": (4.0,), "p": (3.0,), "r": (0.9,)}
    arguments = _some(draw, known)
    grid = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))

    def act() -> bool:
        return bool(torch.isfinite(Pooling(**arguments)(grid)).all())

    return Trial(f"Pooling({_shown(arguments)})", act, _named(arguments))


def window_arguments(draw: random.Random, materials: Materials) -> Trial:
    """Windows with strange lengths, used."""
    arguments = _some(draw, {"length": (1.0, 10), "hop": (None, 0.5), "aggregate": ("max", "mean", 0.9)})

    def act() -> bool:
        windows = Windows(**arguments)
        scores = torch.arange(12.0).reshape(6, 2)
        return windows.starts(5000, 100)[-1][0] >= 0 and bool(torch.isfinite(windows.aggregated(scores)).all())

    return Trial(f"Windows({_shown(arguments)})", act, (*_named(arguments), "`window`"))


def scorer_arguments(draw: random.Random, materials: Materials) -> Trial:
    """A scorer fitted, or asked, with strange arguments."""
    scorer = materials.once("scorer", tiny_scorer)
    recordings = materials.once("normal recordings", normal_recordings)
    if draw.random() < 0.5:
        known = {
            "window": (1.0, None),
            "hop": (0.5,),
            "aggregate": ("max", 0.5),
            "batch_size": (1, 3),
            "errors": ("return",),
        }
        arguments = _some(draw, known)

        def act() -> bool:
            return bool(np.isfinite([result["score"] for result in scorer(recordings[:2], **arguments)]).all())

        return Trial(f"scorer({_shown(arguments)})", act, _named(arguments))
    known = {
        "domains": (["source"] * 8 + ["target"] * 2, None),
        "groups": (list("aabbccddee"), None),
        "layer": (0, 1),
        "layers": ([0, 1], (1,)),
        "level": ("as recorded", "normalised"),
        "pooling": ("mean", "gem"),
        "gamma": (4.0,),
        "window": (1.0, None),
        "hop": (0.5,),
        "aggregate": ("max", 0.5),
        "memory_bank": (MemoryBank(), None),
        "threshold_method": ("conformal", "gamma", "quantile"),
        "false_alarm_rate": (0.2, None),
        "batch_size": (1, 3),
    }
    arguments = _some(draw, known)

    def act() -> bool:
        fitted = tiny_copy(scorer)
        fitted.fit(recordings, progress=None, **arguments)
        return bool(np.isfinite(fitted.threshold))

    return Trial(f"fit({_shown(arguments)})", act, _named(arguments))


def tiny_copy(scorer: Any) -> Any:
    """A scorer of the same model that is not fitted, so that a trial leaves the scorer of others alone."""
    return type(scorer)(model=scorer.model, feature_extractor=scorer.feature_extractor)
