"""Peak memory of a discriminative fine-tuning step of base size by LoRA adapters."""

import os

import torch

from na_ssl_hf import NABeatsConfig, NABeatsModel
from na_ssl_hf.training.attentive_statistics import ProjectionHead
from na_ssl_hf.training.classification_losses import SubClusterAdaCos
from na_ssl_hf.training.discriminative import DiscriminativeModel
from na_ssl_hf.training.lora import add_lora
from na_ssl_hf.training.optimizers import make_optimizers

from .measuring import NUM_SAMPLES, Row, peak_megabytes, peak_row

LORA_CLIPS = 8


def peak_of_fine_tuning() -> tuple[float, ...]:
    encoder = NABeatsModel(NABeatsConfig())
    add_lora(encoder)
    head, loss = ProjectionHead(encoder.config.hidden_size), SubClusterAdaCos(256, 30)
    model = DiscriminativeModel(encoder, head, loss, gradient_checkpointing=True).train()
    optimizers = make_optimizers(model)
    labels = torch.nn.functional.one_hot(torch.arange(LORA_CLIPS), 30).float()
    model(torch.randn(LORA_CLIPS, 2, NUM_SAMPLES), labels).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return (peak_megabytes(),)


def fine_tuning_memory() -> list[Row]:
    what = f"LoRA step of NA-BEATs base, {LORA_CLIPS} x 10 s, peak memory with gradient checkpointing"
    # Without this setting glibc keeps big freed blocks for later use, which triples the memory of this process.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    return peak_row(f"{what} and MALLOC_MMAP_THRESHOLD_", peak_of_fine_tuning, 6000)


ITEMS = {"fine-tuning-memory": fine_tuning_memory}
