"""Writes Dasheng weights in the layouts of the original projects, which differ in names and containers only."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HEADS, TARGET_LENGTH = 3, 4, 240
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def fusion_layers(hidden_size: int, num_layers: int = LAYERS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random noise-aware layers under the names of the original project, with projections that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    wide = 3 * hidden_size
    shapes = {
        "norm_q.weight": (hidden_size,),
        "norm_kv.weight": (hidden_size,),
        "attention.in_proj_weight": (wide, hidden_size),
        "attention.in_proj_bias": (wide,),
        "attention.out_proj.weight": (hidden_size, hidden_size),
        "attention.out_proj.bias": (hidden_size,),
        "norm_ffn.weight": (hidden_size,),
        "ffn.gate_proj.weight": (wide, hidden_size),
        "ffn.gate_proj.bias": (wide,),
        "ffn.up_proj.weight": (wide, hidden_size),
        "ffn.up_proj.bias": (wide,),
        "ffn.down_proj.weight": (hidden_size, wide),
        "ffn.down_proj.bias": (hidden_size,),
    }
    return {
        f"{layer}.{name}": 0.2 * torch.randn(shape, generator=generator) + float("norm" in name)
        for layer in range(num_layers)
        for name, shape in shapes.items()
    }


def write_dasheng_layouts(weights: Path, folder: Path) -> dict[str, Path]:
    """Write the files, and return them by layout: "hub", "package", "training", "full" and "fusion only"."""
    with np.load(weights) as file:
        base = {name: torch.from_numpy(file[name]) for name in file.files}
    hidden_size = base["norm.weight"].numel()
    sizes = {"embed_dim": hidden_size, "depth": LAYERS, "num_heads": HEADS, "target_length": TARGET_LENGTH}
    patch = {"patch_size": [64, 4], "patch_stride": [64, 4]}
    files = {name: folder / name for name in ("hub", "package.pt", "training.pt", "full.ckpt", "fusion only.ckpt")}

    hub = files["hub"]
    hub.mkdir()
    config = {"model_type": "dasheng", "name": "dasheng-base", "encoder_kwargs": sizes | patch, "loss": "BCELoss"}
    (hub / "config.json").write_text(json.dumps(config))
    save_file({f"encoder.{name}": tensor for name, tensor in base.items()}, hub / "model.safetensors")

    front_end = {"front_end.0.spectrogram.window": torch.zeros(512), "front_end.0.mel_scale.fb": torch.zeros(257, 64)}
    settings = patch | sizes | {"group_masking": True}
    torch.save({"model": base | front_end, "config": settings}, files["package.pt"])
    pretraining = {f"encoder.{name}": tensor for name, tensor in (base | front_end).items()}
    pretraining["decoder.blocks.0.norm1.weight"] = torch.ones(hidden_size)
    torch.save({"model": pretraining, "config": settings}, files["training.pt"])

    layers = {f"model.fusion_layers.{name}": tensor for name, tensor in fusion_layers(hidden_size).items()}
    org = {f"model.org_model.{name}": tensor for name, tensor in base.items()}
    teacher = {f"teacher_model.backbone.encoder.{name}": tensor for name, tensor in base.items()}
    attention = {"num_heads": 8, "dropout": 0.1}
    hyper_parameters = {"model_cfg": {"fusion_layer_cfg": {"attention_cfg": attention}}}
    full = {"state_dict": layers | org | teacher, "hyper_parameters": hyper_parameters}
    torch.save(full, files["full.ckpt"])
    # As the callback that averages writes it: the buffers of the base remain, and the raw weights lie beside.
    statistics = {name: tensor for name, tensor in (org | teacher).items() if name.endswith(BUFFERS)}
    raw = {name: tensor + 1 for name, tensor in layers.items()}
    fusion_only = full | {"state_dict": layers | statistics, "current_model_state": raw}
    torch.save(fusion_only, files["fusion only.ckpt"])
    return {name.partition(".")[0]: path for name, path in files.items()}
