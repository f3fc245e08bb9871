"""Heads that name sounds: a linear layer on the mean token of a transformer, and the published ones of EfficientAT.

Letters in shape comments: B recordings, T fbank frames, M mel bins, N tokens, D hidden size, L labels, F' rows and T'
columns of a map.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_beats import NABeatsConfig
from .configuration_dasheng import NADashengConfig
from .configuration_eat import NAEatConfig
from .modeling_beats import BeatsModel, BeatsPreTrainedModel
from .modeling_dasheng import DashengModel, DashengPreTrainedModel
from .modeling_eat import EatModel, EatPreTrainedModel
from .modeling_efficientat import (
    EfficientATConvolutionHead,
    EfficientATMlpHead,
    EfficientATModel,
    EfficientATPreTrainedModel,
)
from .modeling_noise_aware import NABeatsModel, NADashengModel, NAEatModel
from .modeling_shared import CompleteModel, SpectrogramEncoder


class AudioClassificationMixin(CompleteModel):
    """Puts an encoder under a head; unless it is another's, a linear layer on the mean token of the recording.

    Attributes:
        encoder_class: the encoder; it has the name `base_model_prefix`, so that its checkpoints load as they are.
    """

    encoder_class: type[SpectrogramEncoder]
    classifier: nn.Module
    may_be_new = (*CompleteModel.may_be_new, "classifier.")

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        self.classifier = self.new_classifier(config, len(config.id2label or ()))
        self.post_init()

    def new_classifier(self, config: Any, num_labels: int) -> nn.Module:
        """Make the untrained head."""
        return nn.Linear(config.hidden_size, num_labels)

    def classify(self, last_hidden_state: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Give the head what the encoder made of the recordings, without their padding.

        Args:
            last_hidden_state: that of the encoder, `(B, N, D)`.
            attention_mask: `(B, T)`, as for the encoder.

        Returns:
            the logits `(B, L)`.
        """
        tokens = self.encoder.time_frequency_grid(last_hidden_state).flatten(1, 2)  # (B, N, D)
        if attention_mask is None:
            mean = tokens.mean(1)  # (B, D)
        else:
            heard = self.encoder.heard_tokens(attention_mask)[..., None]  # (B, N, 1)
            mean = tokens.masked_fill(~heard, 0.0).sum(1) / heard.sum(1).clamp_min(1).to(tokens.dtype)  # (B, D)
        logits: torch.Tensor = self.classifier(mean)
        return logits

    @property
    def encoder(self) -> SpectrogramEncoder:
        """The encoder under the head."""
        encoder: SpectrogramEncoder = getattr(self, self.base_model_prefix)
        return encoder

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a classifier, or an encoder under a new head; the base of a noise-aware encoder is frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if hasattr(model.encoder, "freeze_base"):
            model.encoder.freeze_base()
        return loaded

    @classmethod
    def encoder_type(cls) -> type[SpectrogramEncoder]:
        return cls.encoder_class

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify recordings.

        Args:
            input_values, attention_mask: as for the encoder, which is also given all further arguments.
            labels: int `(B,)`, or float `(B, L)` where several labels may hold at once.

        Returns:
            `logits` `(B, L)`, of which the softmax (several labels: the sigmoid) is the probability, and the `loss`
            where there are `labels`.

        Raises:
            ValueError: a shape is wrong.
        """
        encoded = self.encoder(input_values, attention_mask=attention_mask, **kwargs)
        logits = self.classify(encoded.last_hidden_state, attention_mask)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class BeatsForAudioClassification(AudioClassificationMixin, BeatsPreTrainedModel):
    """BEATs with a head that names sounds."""

    encoder_class = BeatsModel


class EatForAudioClassification(AudioClassificationMixin, EatPreTrainedModel):
    """EAT with a head that names sounds; it hears the patches and not the CLS token."""

    encoder_class = EatModel
    made_anew = ("eat.embeddings.position_embeddings",)


class DashengForAudioClassification(AudioClassificationMixin, DashengPreTrainedModel):
    """Dasheng with a head that names sounds."""

    encoder_class = DashengModel


class EfficientATForAudioClassification(AudioClassificationMixin, EfficientATPreTrainedModel):
    """EfficientAT with the head that names sounds; the published ones know the 527 labels of AudioSet."""

    encoder_class = EfficientATModel
    efficientat: EfficientATModel
    # An encoder's folder is none of a classifier, whose published heads are what it is for.
    may_be_new = CompleteModel.may_be_new

    def new_classifier(self, config: Any, num_labels: int) -> nn.Module:
        head = EfficientATMlpHead if config.head == "mlp" else EfficientATConvolutionHead
        return head(config, num_labels)

    def classify(self, last_hidden_state: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        columns = self.efficientat.last_columns(attention_mask, last_hidden_state)
        logits: torch.Tensor = self.classifier(last_hidden_state, columns)  # from maps (B, D, F', T')
        return logits


class NABeatsForAudioClassification(AudioClassificationMixin, BeatsPreTrainedModel):
    """NA-BEATs with a head that names sounds; head and noise-aware layers are trained, the base is frozen."""

    encoder_class = NABeatsModel
    config: NABeatsConfig
    config_class = NABeatsConfig
    base_model_prefix = "na_beats"
    _no_split_modules = NABeatsModel._no_split_modules


class NAEatForAudioClassification(AudioClassificationMixin, EatPreTrainedModel):
    """NA-EAT with a head that names sounds; head and noise-aware layers are trained, the base is frozen."""

    encoder_class = NAEatModel
    config: NAEatConfig
    config_class = NAEatConfig
    base_model_prefix = "na_eat"
    made_anew = ("na_eat.embeddings.position_embeddings",)
    _no_split_modules = NAEatModel._no_split_modules


class NADashengForAudioClassification(AudioClassificationMixin, DashengPreTrainedModel):
    """NA-Dasheng with a head that names sounds; head and noise-aware layers are trained, the base is frozen."""

    encoder_class = NADashengModel
    config: NADashengConfig
    config_class = NADashengConfig
    base_model_prefix = "na_dasheng"
    _no_split_modules = NADashengModel._no_split_modules


__all__ = [
    "BeatsForAudioClassification",
    "DashengForAudioClassification",
    "EatForAudioClassification",
    "EfficientATForAudioClassification",
    "NABeatsForAudioClassification",
    "NADashengForAudioClassification",
    "NAEatForAudioClassification",
]

BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
DashengForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
EatForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
EfficientATForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
NABeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
NADashengForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
NAEatForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
