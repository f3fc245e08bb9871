"""What NA-BEATs and NA-EAT share: a frozen base inside, noise-aware layers that are trained."""

import dataclasses
from typing import Any

from transformers import PreTrainedModel

# What a configuration says about one checkpoint rather than about the model.
_IDENTITY_FIELDS = ("model_type", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


def is_noise_aware_parameter(name: str) -> bool:
    """Whether a parameter name of an NA model belongs to a noise-aware layer, not to the base."""
    return ".noise_aware." in name


class NoiseAwareModelMixin:
    """Freezing, train mode and construction of a noise-aware model; mixed into a base encoder class.

    The names of the base's parameters are those of the base model, so an NA state dict is the base's plus
    `layers.i.noise_aware.*`.
    """

    base_is_frozen = False

    def freeze_base(self, frozen: bool = True) -> None:
        """Freeze (or unfreeze) every parameter outside the noise-aware layers; a frozen base also stays in eval mode.

        Args:
            frozen: False to fine-tune the base as well.
        """
        self.base_is_frozen = frozen
        for name, parameter in self.named_parameters():  # type: ignore[attr-defined]
            if not is_noise_aware_parameter(name):
                parameter.requires_grad_(not frozen)
        self.train(self.training)  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        if self.base_is_frozen:
            for name, child in self.named_children():  # type: ignore[attr-defined]
                if name != "layers":
                    child.eval()
            for layer in self.layers:  # type: ignore[attr-defined]
                for name, child in layer.named_children():
                    if name != "noise_aware":
                        child.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As [`PreTrainedModel.from_pretrained`]; the base comes back frozen (loading forgets `requires_grad`)."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_base()
        return loaded

    @classmethod
    def from_base(cls, base: PreTrainedModel, **noise_aware_fields: Any) -> Any:
        """A noise-aware model around a pretrained base: identity layers, so it starts with the base's outputs.

        Args:
            base: a [`BeatsModel`] for NA-BEATs, an [`EatModel`] for NA-EAT; its weights are copied.
            **noise_aware_fields: `noise_aware_...` fields of the configuration.

        Returns:
            the NA model, in eval mode, on the base's device and in its dtype.

        Raises:
            ValueError: `base` is of another type.
        """
        base_type = cls.config_class.model_type.removeprefix("na-")  # type: ignore[attr-defined]
        if base.config.model_type != base_type:
            raise ValueError(f"`base` must be a model of type {base_type!r}, got {base.config.model_type!r}.")
        fields = base.config.to_dict()
        for field in _IDENTITY_FIELDS:
            fields.pop(field, None)
        config = cls.config_class(**fields, **noise_aware_fields)  # type: ignore[attr-defined]
        model = cls(config).to(device=base.device, dtype=base.dtype)  # type: ignore[call-arg, attr-defined]
        missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        assert not unexpected
        assert all(is_noise_aware_parameter(name) for name in missing)
        return model.eval()

    def to_base(self) -> PreTrainedModel:
        """The single-channel base inside this model, as a model of its own (weights copied, in eval mode)."""
        fields = self.config.to_dict()  # type: ignore[attr-defined]
        config_class = self.base_class.config_class  # type: ignore[attr-defined]
        known = {field.name for field in dataclasses.fields(config_class)} - set(_IDENTITY_FIELDS)
        base = self.base_class(config_class(**{name: fields[name] for name in known if name in fields}))  # type: ignore[attr-defined]
        state = {name: value for name, value in self.state_dict().items() if not is_noise_aware_parameter(name)}  # type: ignore[attr-defined]
        base.load_state_dict(state)
        return base.to(device=self.device, dtype=self.dtype).eval()  # type: ignore[attr-defined]
