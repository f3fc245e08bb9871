"""An adapter made part of the weights it belongs to, so that neither peft nor a base checkpoint is needed any more."""

from typing import Any


def has_adapter(model: Any) -> bool:
    """Whether a transformers model carries an adapter (loaded, or added for training)."""
    return getattr(model, "_hf_peft_config_loaded", False)


def merge_adapter(model: Any) -> Any:
    """Merges the active adapter into the weights, in place, and removes it; a model without one stays as it is.

    Outputs stay the same up to rounding, 1e-5.

    Args:
        model: an encoder of this package, as `AutoModel.from_pretrained` loads it from an adapter's folder.

    Returns:
        the model itself, again an ordinary one.
    """
    if not has_adapter(model):
        return model
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            module.merge()
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, module.base_layer)
    del model.peft_config
    model._hf_peft_config_loaded = False
    # How names of the adapter's file became ours; saving would turn those of all weights back by it.
    vars(model).pop("_weight_conversions", None)
    return model
