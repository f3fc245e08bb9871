"""NA-EAT, the noise-aware form of EAT (Fujimura et al., IWAENC 2026 and DCASE 2026 Task 2)."""

from .configuration_eat import NAEatConfig
from .modeling_eat import EatLayer, EatModel
from .modeling_noise_aware import NoiseAwareAttention, NoiseAwareEncoderLayer, NoiseAwareModelMixin


class NAEatLayer(NoiseAwareEncoderLayer, EatLayer):  # type: ignore[misc] # takes two streams and not one
    """A frozen EAT layer that both streams pass through, and the noise-aware layer behind it."""


class NAEatModel(NoiseAwareModelMixin, EatModel):
    """The noise-aware EAT encoder turns close and far fbank into denoised tokens of the close recording.

    Its base is frozen. An untrained model, whose new layers are the identity, gives exactly what EAT gives for the
    close channel.
    """

    base_class = EatModel
    layer_class = NAEatLayer
    config: NAEatConfig
    config_class = NAEatConfig
    base_model_prefix = "na_eat"
    _no_split_modules = ["EatEmbeddings", "NAEatLayer"]
    _can_record_outputs = {"hidden_states": NAEatLayer, "attentions": NoiseAwareAttention}


__all__ = ["NAEatModel"]

NAEatModel.register_for_auto_class("AutoModel")
