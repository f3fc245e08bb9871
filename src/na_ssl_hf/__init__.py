"""Noise-aware audio self-supervised learning for two-channel machine recordings.

After `import na_ssl_hf`, `AutoModel.from_pretrained(...)`, `AutoConfig`, `AutoFeatureExtractor` and
`pipeline("anomaly-scoring", model=...)` of transformers know the models of this package. The import itself loads
neither torch nor transformers: every public name is imported when it is first used, and the models are registered when
transformers loads its auto classes (see `registration.py`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers

if TYPE_CHECKING:
    from . import convert, data, evaluation, export, simulation, training
    from .hub.configuration_autoencoder import AutoencoderConfig
    from .hub.configuration_beats import BeatsConfig, NABeatsConfig
    from .hub.configuration_dasheng import DashengConfig, NADashengConfig
    from .hub.configuration_eat import EatConfig, NAEatConfig
    from .hub.configuration_efficientat import EfficientATConfig
    from .hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
    from .hub.memory_bank import MemoryBank
    from .hub.modeling_audio_classification import (
        BeatsForAudioClassification,
        DashengForAudioClassification,
        EatForAudioClassification,
        EfficientATForAudioClassification,
        NABeatsForAudioClassification,
        NADashengForAudioClassification,
        NAEatForAudioClassification,
    )
    from .hub.modeling_autoencoder import AutoencoderModel
    from .hub.modeling_beats import BeatsModel
    from .hub.modeling_dasheng import DashengModel
    from .hub.modeling_eat import EatModel
    from .hub.modeling_efficientat import EfficientATModel
    from .hub.modeling_noise_aware import NABeatsModel, NADashengModel, NAEatModel
    from .hub.pipeline_anomaly_scoring import AnomalyScorer
    from .hub.pooling import pool_time

    __version__: str

__all__ = [
    "AnomalyScorer",
    "AutoencoderConfig",
    "AutoencoderModel",
    "BeatsConfig",
    "BeatsForAudioClassification",
    "BeatsModel",
    "DashengConfig",
    "DashengForAudioClassification",
    "DashengModel",
    "EatConfig",
    "EatForAudioClassification",
    "EatModel",
    "EfficientATConfig",
    "EfficientATForAudioClassification",
    "EfficientATModel",
    "MemoryBank",
    "NABeatsConfig",
    "NABeatsForAudioClassification",
    "NABeatsModel",
    "NADashengConfig",
    "NADashengForAudioClassification",
    "NADashengModel",
    "NAEatConfig",
    "NAEatForAudioClassification",
    "NAEatModel",
    "TwoChannelFeatureExtractor",
    "convert",
    "data",
    "evaluation",
    "export",
    "pool_time",
    "simulation",
    "training",
]

# The module of `hub/` that defines each public name.
_HOMES = {
    "AnomalyScorer": "pipeline_anomaly_scoring",
    "AutoencoderConfig": "configuration_autoencoder",
    "AutoencoderModel": "modeling_autoencoder",
    "BeatsConfig": "configuration_beats",
    "BeatsForAudioClassification": "modeling_audio_classification",
    "BeatsModel": "modeling_beats",
    "DashengConfig": "configuration_dasheng",
    "DashengForAudioClassification": "modeling_audio_classification",
    "DashengModel": "modeling_dasheng",
    "EatConfig": "configuration_eat",
    "EatForAudioClassification": "modeling_audio_classification",
    "EatModel": "modeling_eat",
    "EfficientATConfig": "configuration_efficientat",
    "EfficientATForAudioClassification": "modeling_audio_classification",
    "EfficientATModel": "modeling_efficientat",
    "MemoryBank": "memory_bank",
    "NABeatsConfig": "configuration_beats",
    "NABeatsForAudioClassification": "modeling_audio_classification",
    "NABeatsModel": "modeling_noise_aware",
    "NADashengConfig": "configuration_dasheng",
    "NADashengForAudioClassification": "modeling_audio_classification",
    "NADashengModel": "modeling_noise_aware",
    "NAEatConfig": "configuration_eat",
    "NAEatForAudioClassification": "modeling_audio_classification",
    "NAEatModel": "modeling_noise_aware",
    "TwoChannelFeatureExtractor": "feature_extraction_two_channel",
    "pool_time": "pooling",
}
_SUBPACKAGES = ("convert", "data", "evaluation", "export", "simulation", "training")

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f".{name}", __name__)
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("na-ssl-hf")
    elif name in _HOMES:
        value = getattr(import_module(f".hub.{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
