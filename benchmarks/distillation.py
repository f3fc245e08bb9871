"""A distillation step of base size beside its bare matrix products, and its peak memory."""

from collections.abc import Callable

import torch

from na_ssl_hf import BeatsConfig, BeatsModel, NABeatsConfig, NABeatsModel
from na_ssl_hf.training.distillation import NoiseAwareDistillation
from na_ssl_hf.training.optimizers import make_optimizers

from .matmuls import NUM_CLIPS, against_matmuls, base_layer_products, embedding_products, noise_aware_products
from .measuring import NUM_SAMPLES, Row, peak_megabytes, peak_row


def distillation_of_base_size(**settings: bool) -> Callable[[], None]:
    """Returns a function that runs a whole step: fbank, frozen streams, student, backward pass and AdamW."""
    distillation = NoiseAwareDistillation(NABeatsModel.from_base(BeatsModel(BeatsConfig())), **settings).train()
    optimizers = make_optimizers(distillation)
    waves = torch.randn(3, NUM_CLIPS, NUM_SAMPLES)

    def run() -> None:
        distillation(*waves)["loss"].total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return run


def distillation_step() -> list[Row]:
    config = NABeatsConfig()
    depth = config.num_hidden_layers
    products = (
        embedding_products(config, 3)
        + base_layer_products(config, 2 * depth + 1)
        + base_layer_products(config, depth - 1, backward=True)
        + noise_aware_products(config, backward=True)
    )
    what = "distillation step of base size, 4 x 10 s, waveforms to AdamW"
    return against_matmuls(what, distillation_of_base_size(), products, 0.75)


def peak_of_distillation() -> tuple[float, ...]:
    step = distillation_of_base_size(gradient_checkpointing=True)
    step()
    step()
    return (peak_megabytes(),)


def distillation_memory() -> list[Row]:
    return peak_row("its peak memory with gradient checkpointing", peak_of_distillation, 4000)


ITEMS = {"distillation": distillation_step, "distillation-memory": distillation_memory}
