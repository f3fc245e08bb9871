"""Forward passes and a training step of models of base size, beside their bare matrix products."""

import torch
from transformers import PreTrainedModel

from na_ssl_hf import BeatsConfig, BeatsModel, NABeatsConfig, NABeatsModel

from .matmuls import (
    NUM_CLIPS,
    NUM_FRAMES,
    Products,
    against_matmuls,
    base_layer_products,
    embedding_products,
    noise_aware_products,
    num_tokens,
)
from .measuring import Row


def forward(what: str, model: PreTrainedModel, fbank: torch.Tensor, products: Products) -> list[Row]:
    @torch.no_grad()
    def run() -> None:
        model(fbank)

    return against_matmuls(what, run, products, 0.75)


def beats_forward() -> list[Row]:
    config = BeatsConfig()
    products = embedding_products(config, 1) + base_layer_products(config, config.num_hidden_layers)
    fbank = torch.randn(NUM_CLIPS, NUM_FRAMES, config.num_mel_bins)
    return forward("BEATs base forward, 4 x 10 s", BeatsModel(config).eval(), fbank, products)


def na_beats_forward() -> list[Row]:
    config = NABeatsConfig()
    products = (
        embedding_products(config, 2)
        + base_layer_products(config, 2 * config.num_hidden_layers)
        + noise_aware_products(config)
    )
    fbank = torch.randn(NUM_CLIPS, 2, NUM_FRAMES, config.num_mel_bins)
    return forward("NA-BEATs base forward, 4 x 10 s", NABeatsModel(config).eval(), fbank, products)


def na_beats_training_step() -> list[Row]:
    config = NABeatsConfig()
    model = NABeatsModel(config).train()
    fbank = torch.randn(NUM_CLIPS, 2, NUM_FRAMES, config.num_mel_bins)
    target = torch.randn(NUM_CLIPS, num_tokens(), config.hidden_size)
    depth = config.num_hidden_layers
    # Nothing before the first noise-aware layer learns: one base layer of the close stream and the whole far stream
    # only go forward.
    products = (
        embedding_products(config, 2)
        + base_layer_products(config, depth + 1)
        + base_layer_products(config, depth - 1, backward=True)
        + noise_aware_products(config, backward=True)
    )

    def run() -> None:
        torch.nn.functional.mse_loss(model(fbank).last_hidden_state, target).backward()
        model.zero_grad(set_to_none=True)

    return against_matmuls("NA-BEATs base training step, 4 x 10 s", run, products, 0.70)


ITEMS = {
    "beats": beats_forward,
    "na-beats-forward": na_beats_forward,
    "na-beats-training": na_beats_training_step,
}
