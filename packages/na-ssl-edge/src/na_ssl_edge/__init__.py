"""Scores of two-channel machine recordings on machines without torch, from a scorer that `na-ssl export` wrote."""

from .scorer import Scorer

__version__ = "0.1.0"
__all__ = ["Scorer"]
