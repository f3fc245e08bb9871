"""Forward passes and a training step of models of base size, beside their bare matrix products."""

import torch
from transformers import PreTrainedModel

from na_ssl_hf import (
    BeatsConfig,
    BeatsModel,
    DashengConfig,
    DashengModel,
    EatConfig,
    EatModel,
    NABeatsConfig,
    NABeatsModel,
    NADashengConfig,
    NADashengModel,
)

from .matmuls import (
    NUM_CLIPS,
    NUM_DASHENG_FRAMES,
    NUM_EAT_FRAMES,
    NUM_FRAMES,
    Products,
    against_matmuls,
    base_layer_products,
    embedding_products,
    noise_aware_products,
    num_tokens,
    patch_products,
    transformer_products,
)
from .measuring import Row


def forward(
    what: str, model: PreTrainedModel, fbank: torch.Tensor, products: Products, target: float = 0.75
) -> list[Row]:
    @torch.no_grad()
    def run() -> None:
        model(fbank)

    return against_matmuls(what, run, products, target)


def beats_forward() -> list[Row]:
    config = BeatsConfig()
    products = embedding_products(config, 1) + base_layer_products(config, config.num_hidden_layers)
    fbank = torch.randn(NUM_CLIPS, NUM_FRAMES, config.num_mel_bins)
    return forward("BEATs base forward, 4 x 10 s", BeatsModel(config).eval(), fbank, products)


def eat_forward() -> list[Row]:
    config = EatConfig()
    patches = NUM_EAT_FRAMES // config.patch_size * (config.num_mel_bins // config.patch_size)
    products = patch_products(config, patches, 1) + transformer_products(config, patches + 1, config.num_hidden_layers)
    fbank = torch.randn(NUM_CLIPS, NUM_EAT_FRAMES, config.num_mel_bins)
    return forward("EAT base forward, 4 x 10 s", EatModel(config).eval(), fbank, products, 0.85)


def dasheng_forward() -> list[Row]:
    config = DashengConfig()
    tokens = NUM_DASHENG_FRAMES // config.patch_size
    products = patch_products(config, tokens, 1) + transformer_products(config, tokens, config.num_hidden_layers)
    fbank = torch.randn(NUM_CLIPS, NUM_DASHENG_FRAMES, config.num_mel_bins)
    return forward("Dasheng base forward, 4 x 10 s", DashengModel(config).eval(), fbank, products, 0.85)


def na_dasheng_forward() -> list[Row]:
    config = NADashengConfig()
    tokens = NUM_DASHENG_FRAMES // config.patch_size
    products = (
        patch_products(config, tokens, 2)
        + transformer_products(config, tokens, 2 * config.num_hidden_layers)
        + noise_aware_products(config, tokens_of_clip=tokens)
    )
    fbank = torch.randn(NUM_CLIPS, 2, NUM_DASHENG_FRAMES, config.num_mel_bins)
    return forward("NA-Dasheng base forward, 4 x 10 s", NADashengModel(config).eval(), fbank, products, 0.85)


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
    "eat": eat_forward,
    "dasheng": dasheng_forward,
    "na-dasheng": na_dasheng_forward,
    "na-beats-forward": na_beats_forward,
    "na-beats-training": na_beats_training_step,
}
