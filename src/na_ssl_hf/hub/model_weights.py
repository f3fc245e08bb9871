"""The weights of a model: a fingerprint that tells whether a memory belongs to them, and adapters merged into them."""

import hashlib
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights, the same for one checkpoint in float32 and bfloat16."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy())
    return digest.hexdigest()


def has_adapter(model: Any) -> bool:
    """Whether a transformers model carries an adapter, loaded or added for training."""
    return getattr(model, "_hf_peft_config_loaded", False)


def merge_adapter(model: AnyModel) -> AnyModel:
    """Merge the active adapter into the weights, in place, and remove it; a model without one stays as it is.

    The outputs stay the same up to rounding, 1e-5. The result needs neither peft nor a base checkpoint.

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
    # transformers renamed the keys of the adapter's file when it loaded them, and would undo that for every weight that
    # it saves.
    vars(model).pop("_weight_conversions", None)
    return model
