"""Small random models of every type, noise-aware layers included, for tests of behaviour rather than of numbers."""

import torch

from na_ssl_hf import (
    BeatsConfig,
    BeatsModel,
    DashengConfig,
    DashengModel,
    EatConfig,
    EatModel,
    EfficientATConfig,
    EfficientATModel,
    NABeatsConfig,
    NABeatsModel,
    NADashengConfig,
    NADashengModel,
    NAEatConfig,
    NAEatModel,
)
from na_ssl_hf.hub.threshold import Calibration

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BEATS_SIZES = SIZES | {"patch_embedding_size": 24, "position_convolution_kernel": 16}
EAT_SIZES = SIZES | {"max_time_patches": 32}
DASHENG_SIZES = SIZES | {"target_length": 240}
MODELS = {
    "beats": (BeatsConfig, BeatsModel, BEATS_SIZES),
    "dasheng": (DashengConfig, DashengModel, DASHENG_SIZES),
    "eat": (EatConfig, EatModel, EAT_SIZES),
    "na-beats": (NABeatsConfig, NABeatsModel, BEATS_SIZES),
    "na-dasheng": (NADashengConfig, NADashengModel, DASHENG_SIZES),
    "na-eat": (NAEatConfig, NAEatModel, EAT_SIZES),
    "efficientat": (EfficientATConfig, EfficientATModel, {"width": 0.1}),
}
# Those with tokens, attention and patches.
TRANSFORMERS = [name for name in MODELS if name != "efficientat"]
NOISE_AWARE_VARIANTS = [
    (model_type, layer_type)
    for model_type in ("na-beats", "na-dasheng", "na-eat")
    for layer_type in ("cross_attention", "aligned", "film", "self_attention")
]


def tiny_config(model_type: str, **fields):
    config_class, _, sizes = MODELS[model_type]
    return config_class(**(sizes | fields))


def tiny_model(model_type: str, seed: int = 0, identity: bool = False, **fields):
    """A model in eval mode whose noise-aware layers, unless `identity`, do something."""
    torch.manual_seed(seed)
    model = MODELS[model_type][1](tiny_config(model_type, **fields)).eval()
    if not identity:
        for name, parameter in model.named_parameters():
            if ".noise_aware." in name and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def two_channel_fbank(model_type: str = "na-beats", batch: int = 2, frames: int = 100, seed: int = 0) -> torch.Tensor:
    """Random input of a model of this type, `(batch, 2, frames, its mel bins)`."""
    mel_bins = tiny_config(model_type).num_mel_bins
    return torch.randn(batch, 2, frames, mel_bins, generator=torch.Generator().manual_seed(seed))


def some_calibration(**values) -> Calibration:
    """A valid calibration, for banks whose scorer does not matter."""
    defaults = {
        "threshold": 0.5,
        "threshold_method": "conformal",
        "false_alarm_rate": 0.1,
        "asked_false_alarm_rate": None,
        "self_scores": (0.1, 0.4, 0.2),
        "model": "a1",
        "extractor": {"frontend": "beats"},
        "pooling": {"method": "mean", "gamma": 4.0, "p": 3.0, "r": 0.9},
        "bank_version": 0,
    }
    return Calibration(**(defaults | values))
