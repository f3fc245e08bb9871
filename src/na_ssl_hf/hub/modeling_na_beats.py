"""NA-BEATs, the noise-aware form of BEATs (Fujimura et al., IWAENC 2026 and DCASE 2026 Task 2)."""

from .configuration_beats import NABeatsConfig
from .modeling_beats import BeatsLayer, BeatsModel
from .modeling_noise_aware import NoiseAwareAttention, NoiseAwareEncoderLayer, NoiseAwareModelMixin


class NABeatsLayer(NoiseAwareEncoderLayer, BeatsLayer):  # type: ignore[misc] # takes two streams and not one
    """A frozen BEATs layer that both streams pass through, and the noise-aware layer behind it."""


class NABeatsModel(NoiseAwareModelMixin, BeatsModel):
    """The noise-aware BEATs encoder turns close and far fbank into denoised tokens of the close recording.

    Its base is frozen. An untrained model, whose new layers are the identity, gives exactly what BEATs gives for the
    close channel.
    """

    base_class = BeatsModel
    layer_class = NABeatsLayer
    config: NABeatsConfig
    config_class = NABeatsConfig
    base_model_prefix = "na_beats"
    _no_split_modules = ["BeatsEmbeddings", "NABeatsLayer"]
    _can_record_outputs = {"hidden_states": NABeatsLayer, "attentions": NoiseAwareAttention}


__all__ = ["NABeatsModel"]

NABeatsModel.register_for_auto_class("AutoModel")
