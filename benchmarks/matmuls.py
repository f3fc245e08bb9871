"""The matrix products inside the transformers, timed bare, which the models are compared with.

Every linear layer, convolution and attention product of a model is timed as one `torch.mm` or `torch.bmm` of its shape
into a buffer that exists already, and nothing else. Each distinct shape is timed five times, and the median is scaled
by how often the shape occurs. The model and the bare products do the same floating point operations, so the ratio of
the two times is the share of the products' FLOP rate that the model reaches.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from na_ssl_hf import BeatsConfig, DashengConfig, EatConfig, NABeatsConfig, NADashengConfig

from .measuring import Row, cpu_seconds, progress

NUM_CLIPS = 4
NUM_FRAMES = 998  # fbank frames of 10 s
NUM_EAT_FRAMES = 1024
NUM_DASHENG_FRAMES = 1001


@dataclass(frozen=True)
class Product:
    """A `Product` stands for `batch` matrix products (m, k) x (k, n)."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.k * self.n


Products = list[tuple[int, Product]]  # how many times each product is needed


def linear(m: int, k: int, n: int, count: int, passes: str = "f") -> Products:
    """Returns the products of `count` linear layers.

    The passes are the forward one "f", the gradient of the input "i" and the gradient of the weight "w".
    """
    of_pass = {"f": Product(m, k, n), "i": Product(m, n, k), "w": Product(n, m, k)}
    return [(count, of_pass[which]) for which in passes]


def attention(batch: int, tokens: int, head_dim: int, count: int, backward: bool = False) -> Products:
    """Returns the products of attention scores and weighted sums, each three times if the backward pass is included."""
    scores, mix = Product(tokens, head_dim, tokens, batch), Product(tokens, tokens, head_dim, batch)
    return [(count * (3 if backward else 1), scores), (count * (3 if backward else 1), mix)]


def embedding_products(config: BeatsConfig, streams: int) -> Products:
    tokens = NUM_CLIPS * num_tokens()
    groups, kernel = config.position_convolution_groups, config.position_convolution_kernel
    channels = config.hidden_size // groups
    return [
        (streams, Product(tokens, config.patch_size**2, config.patch_embedding_size)),
        *linear(tokens, config.patch_embedding_size, config.hidden_size, streams),
        (streams * groups, Product(tokens, channels * kernel, channels)),
    ]


def base_layer_products(config: BeatsConfig, count: int, backward: bool = False) -> Products:
    """Returns the products of frozen transformer layers, whose backward pass needs only gradients of the inputs."""
    tokens, heads = NUM_CLIPS * num_tokens(), config.num_attention_heads
    gate = linear(tokens * heads, config.hidden_size // heads, 2, count, "fi" if backward else "f")
    return [*transformer_products(config, num_tokens(), count, backward), *gate]


def transformer_products(
    config: BeatsConfig | EatConfig | DashengConfig, num_tokens: int, count: int, backward: bool = False
) -> Products:
    """Returns the products of `count` plain transformer layers over so many tokens a clip."""
    tokens, size = NUM_CLIPS * num_tokens, config.hidden_size
    heads, passes = config.num_attention_heads, "fi" if backward else "f"
    return [
        *linear(tokens, size, size, 4 * count, passes),
        *linear(tokens, size, config.intermediate_size, count, passes),
        *linear(tokens, config.intermediate_size, size, count, passes),
        *attention(NUM_CLIPS * heads, num_tokens, size // heads, count, backward),
    ]


def patch_products(config: EatConfig | DashengConfig, num_patches: int, streams: int) -> Products:
    """Returns the products that make tokens of patches, of 16 x 16 for EAT and of all bands in 4 frames for Dasheng."""
    bands = config.num_mel_bins if isinstance(config, DashengConfig) else config.patch_size
    return [(streams, Product(NUM_CLIPS * num_patches, config.patch_size * bands, config.hidden_size))]


def noise_aware_products(
    config: NABeatsConfig | NADashengConfig, backward: bool = False, tokens_of_clip: int | None = None
) -> Products:
    """Returns the products of all noise-aware layers.

    Their norms learn too, so every linear layer needs the gradients of both its input and its weight.
    """
    of_clip = num_tokens() if tokens_of_clip is None else tokens_of_clip
    tokens, size, count = NUM_CLIPS * of_clip, config.hidden_size, config.num_hidden_layers
    inner, heads = config.noise_aware_intermediate_size, config.noise_aware_num_heads
    passes = "fiw" if backward else "f"
    return [
        *linear(tokens, size, size, 4 * count, passes),
        *linear(tokens, size, inner, 2 * count, passes),
        *linear(tokens, inner, size, count, passes),
        *attention(NUM_CLIPS * heads, of_clip, size // heads, count, backward),
    ]


def num_tokens() -> int:
    return NUM_FRAMES // 16 * 8


def bare_matmuls(products: Products) -> Callable[[], float]:
    """Returns a function that measures the CPU seconds of `products` as bare matrix products."""
    counts: dict[Product, int] = {}
    for count, product in products:
        counts[product] = counts.get(product, 0) + count

    return lambda: sum(count * matmul_seconds(product) for product, count in counts.items())


def matmul_seconds(product: Product) -> float:
    leading = () if product.batch == 1 else (product.batch,)
    left = torch.randn(*leading, product.m, product.k)
    right = torch.randn(*leading, product.n, product.k).mT  # a linear layer's weight is stored so
    out = torch.empty(*leading, product.m, product.n)
    multiply = torch.mm if product.batch == 1 else torch.bmm
    multiply(left, right, out=out)
    return statistics.median(cpu_seconds(lambda: multiply(left, right, out=out)) for _ in range(5))


def against_matmuls(what: str, run: Callable[[], object], products: Products, target: float) -> list[Row]:
    bare = bare_matmuls(products)
    run()
    ours, matmuls, shares = [], [], []
    for repetition in range(3):
        matmuls.append(bare())
        ours.append(cpu_seconds(run))
        shares.append(matmuls[-1] / ours[-1])
        progress(f"  {repetition + 1}/3: {ours[-1]:.3f} s, matmuls {matmuls[-1]:.3f} s, {shares[-1]:.0%}")
    share = statistics.median(shares)
    flops = sum(count * product.flops for count, product in products)
    seconds = statistics.median(ours)
    note = f"{flops / 1e9:.0f} GFLOP, {flops / seconds / 1e9:.1f} GFLOP per CPU second"
    return [
        Row(
            what,
            seconds,
            statistics.median(matmuls),
            f"{share:.1%} of the matmuls' FLOP rate",
            f">= {target:.0%}",
            share >= target,
            note=note,
        )
    ]
