"""Low-rank adapters of the encoders' attention (Hu et al., "LoRA", ICLR 2022): adding and saving them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from transformers import PreTrainedModel

from ..checkpoints.loading import ADAPTER_CONFIG
from ..hub.model_weights import has_adapter
from ..hub.whole_files import whole_folder

# Query, key and value of every attention are adapted, and the output of the noise-aware layers' attention.
TARGET_MODULES = r"layers\.\d+\.(noise_aware\.)?attention\.[qkv]_proj|layers\.\d+\.noise_aware\.attention\.out_proj"


def add_lora(model: PreTrainedModel, rank: int = 64, alpha: int = 64, dropout: float = 0.0) -> None:
    """Freeze an encoder and add trainable low-rank matrices, which change nothing yet, to `TARGET_MODULES`.

    Args:
        model: BEATs, EAT, Dasheng or a noise-aware one of them, changed in place.
        rank: rank of the matrices.
        alpha: scale of their product, which is multiplied by `alpha / rank`.
        dropout: dropout on their input, in training.

    Raises:
        ImportError: peft is missing.
        ValueError: a setting is out of range, the model has an adapter already, or it has no attention.
    """
    if has_adapter(model):
        raise ValueError("`model` must be one without an adapter (merge that one first), got one with an adapter.")
    if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"`rank` must be at least 1, `alpha` positive and `dropout` in [0, 1), got {rank}, {alpha} and {dropout}."
        )
    if not any(re.fullmatch(TARGET_MODULES, name) for name, _ in model.named_modules()):
        raise ValueError(
            f"`model` must have attention layers, which adapters are for, got {type(model).__name__}: fine-tune all "
            "its weights instead (`--full`)."
        )
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGET_MODULES))


def is_lora_parameter(name: str) -> bool:
    """Tell whether a parameter's name is that of a low-rank matrix."""
    return ".lora_" in name


def save_adapter(model: PreTrainedModel, folder: str | Path, base: str) -> None:
    """Save the adapter of a model, small, without the base, all or nothing; other files of the folder stay.

    Args:
        base: what `AutoModel.from_pretrained(folder)` is to load first, written into `adapter_config.json`: a local
            folder is written as an absolute path, anything else (a name on the hub) as it is.
    """
    with whole_folder(folder, keeps=lambda name: True) as staging:
        model.save_pretrained(staging)
        # Written here: given a name on the hub, peft would look there for a vocabulary.
        config = json.loads((staging / ADAPTER_CONFIG).read_text())
        config["base_model_name_or_path"] = os.path.abspath(base) if Path(base).is_dir() else base
        (staging / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
