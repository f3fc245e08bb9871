"""The weights of a model: a fingerprint that tells whether a memory belongs to them, and adapters merged into them."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

# The name that torch.compile puts before those of the module that it wraps.
_COMPILED = "_orig_mod."


def model_fingerprint(model: torch.nn.Module) -> str:
    """Two hashes of all weights, joined by "-": as bfloat16, and as bfloat16 after float16.

    A checkpoint in float32 shares one of them with itself in bfloat16, float16 and float64, see `same_weights`. Neither
    `torch.compile` nor where the weights lie changes them; adapters that are active, disabled or changed do.
    """
    digests = [hashlib.blake2b(digest_size=16) for _ in range(2)]
    for name, tensor in sorted(_all_weights(model)):
        values = tensor.detach().to("cpu")
        for digest, rounded in zip(digests, (values, values.to(torch.float16)), strict=True):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(rounded.to(torch.bfloat16).contiguous().view(torch.int16).numpy().data)
    for state in _adapter_states(model):
        for digest in digests:
            digest.update(state.encode())
    return "-".join(digest.hexdigest() for digest in digests)


def same_weights(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, of whatever floating-point types."""
    return bool(set(fingerprint.split("-")) & set(other.split("-")))


def _all_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in model.state_dict().items():
        is_elsewhere = torch.is_tensor(value) and value.is_meta
        yield from _plain_tensors(name.replace(_COMPILED, ""), _offloaded(model, name) if is_elsewhere else value)


def _plain_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in an entry of a state, in which quantised layers keep packed weights, pairs of them and settings."""
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _plain_tensors(f"{name}.{index}", part)
    elif not torch.is_tensor(value):
        yield f"{name}={value}", torch.empty(0)
    elif hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain_tensors(f"{name}.{part}", getattr(value, part))
    else:
        yield name, value.dequantize() if value.is_quantized else value


def has_quantised_weights(model: torch.nn.Module) -> bool:
    """Whether weights of a model are not in floating point: those of torch.ao, torchao, bitsandbytes and their like."""
    return any(
        not torch.is_tensor(value) or hasattr(value, "__tensor_flatten__") or value.dtype in (torch.int8, torch.uint8)
        for value in model.state_dict().values()
    )


def _offloaded(model: torch.nn.Module, name: str) -> torch.Tensor:
    """A weight that a device map keeps on the CPU or a disk while its layer is not in use."""
    module_name, _, own_name = name.rpartition(".")
    prefix = own_name
    while True:
        hook = getattr(model.get_submodule(module_name), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if (weights := getattr(one, "weights_map", None)) is not None:
                return weights[prefix]
        if not module_name:
            raise ValueError(f"`model` must have all its weights, got none for {name}.")
        module_name, _, last = module_name.rpartition(".")
        prefix = f"{last}.{prefix}"


def _adapter_states(model: torch.nn.Module) -> Iterator[str]:
    """What decides the outputs besides the weights: which adapters of which layers are in use."""
    for name, module in model.named_modules():
        # Models have methods of these names; the layers of peft have properties.
        if isinstance(disabled := getattr(module, "disable_adapters", None), bool):
            active = [] if disabled else sorted(module.active_adapters)
            yield f"{name.replace(_COMPILED, '')} uses {active}"


def has_adapter(model: Any) -> bool:
    """Whether a model carries an adapter of peft: loaded, added for training, or around it as a `PeftModel`."""
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or hasattr(model, "get_base_model")


def merge_adapter(model: Any) -> Any:
    """Merge the adapters in use into the weights, in place, and remove all; a model without one stays as it is.

    The outputs stay the same up to rounding, 1e-5. The result needs neither peft nor a base checkpoint.

    Args:
        model: an encoder of this package, as `AutoModel.from_pretrained` loads it from an adapter's folder, or a
            `PeftModel` around one.

    Returns:
        the model itself (the one inside of a `PeftModel`), again an ordinary one.

    Raises:
        ValueError: an adapter that is not part of the layers, such as a prompt.
    """
    if not has_adapter(model):
        return model
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ValueError(f"`model` must have an adapter inside its layers, got {model.active_peft_config}.")
        model = model.get_base_model()
    for name, module in list(model.named_modules()):
        if (plain := _without_wrapper(module)) is not None:
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, plain)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)
    # transformers renamed the keys of the adapter's file when it loaded them, and would undo that for every weight that
    # it saves.
    vars(model).pop("_weight_conversions", None)
    return model


def _without_wrapper(module: Any) -> torch.nn.Module | None:
    """The layer inside of one of peft's, changed as the adapters in use say; `None` for any other layer."""
    if hasattr(module, "base_layer") and hasattr(module, "merge"):
        if module.disable_adapters:
            if module.merged:
                module.unmerge()
        else:
            module.merge()
        return module.base_layer
    if hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
        if not module.disable_adapters:
            for name in module.active_adapters:
                if name in module.modules_to_save:
                    return module.modules_to_save[name]
        return module.original_module
    return None
