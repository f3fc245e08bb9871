"""Noise-aware audio self-supervised learning for two-channel machine recordings.

Importing this package registers its models, feature extractor and pipeline with transformers, so that
`AutoModel.from_pretrained(...)` and `pipeline("anomaly-scoring", model=...)` know them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .hub.configuration_autoencoder import AutoencoderConfig
from .hub.configuration_beats import BeatsConfig, NABeatsConfig
from .hub.configuration_eat import EatConfig, NAEatConfig
from .hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from .hub.memory_bank import MemoryBank
from .hub.modeling_autoencoder import AutoencoderModel
from .hub.modeling_beats import BeatsModel
from .hub.modeling_eat import EatModel
from .hub.modeling_na_beats import NABeatsModel
from .hub.modeling_na_eat import NAEatModel
from .hub.pipeline_anomaly_scoring import AnomalyScorer
from .hub.pooling import pool_time

if TYPE_CHECKING:
    from . import convert, data, evaluation, simulation, training

__version__ = version("na-ssl-hf")

for _config, _model in (
    (BeatsConfig, BeatsModel),
    (EatConfig, EatModel),
    (NABeatsConfig, NABeatsModel),
    (NAEatConfig, NAEatModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoFeatureExtractor.register(_config, TwoChannelFeatureExtractor, exist_ok=True)

# The challenge's baseline takes vectors of log-mel frames, which it makes itself: it has no feature extractor.
AutoConfig.register(AutoencoderConfig.model_type, AutoencoderConfig, exist_ok=True)
AutoModel.register(AutoencoderConfig, AutoencoderModel, exist_ok=True)

if "anomaly-scoring" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline("anomaly-scoring", AnomalyScorer, pt_model=AutoModel, type="audio")

# Room simulation, metrics, training and conversion bring heavy libraries along and are imported when first used.
_LAZY_SUBPACKAGES = ("convert", "data", "evaluation", "simulation", "training")

__all__ = [
    "AnomalyScorer",
    "AutoencoderConfig",
    "AutoencoderModel",
    "BeatsConfig",
    "BeatsModel",
    "EatConfig",
    "EatModel",
    "MemoryBank",
    "NABeatsConfig",
    "NABeatsModel",
    "NAEatConfig",
    "NAEatModel",
    "TwoChannelFeatureExtractor",
    "convert",
    "data",
    "evaluation",
    "pool_time",
    "simulation",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_SUBPACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_SUBPACKAGES])
