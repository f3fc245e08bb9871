"""Weights of an ONNX graph as int8: those of the encoder alone, with signal processing and front end in float."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

QUANTISERS = ("weights", "products")
# Weights that are fewer than these save nothing worth a rounding.
_LEAST_WEIGHTS = 1024
# Parts of the chain that stay in float: a logarithm of small powers would show the rounding of a Fourier transform.
_IN_FLOAT = ("far_canceller", "front_end")


def import_quantiser() -> tuple[Any, Any]:
    """Return the packages onnx and onnxruntime.quantization; a ValueError says that one is not installed."""
    try:
        import onnx
        import onnxruntime.quantization as quantization
    except ImportError as error:
        raise ValueError(
            f"int8 needs the quantiser of ONNX Runtime, which cannot be imported ({error}): "
            "pip install na-ssl-hf[export]."
        ) from error
    return onnx, quantization


def quantise_onnx(source: Path, destination: Path, kind: str = "weights") -> int:
    """Write a graph whose weights of the encoder have 8 bits.

    Args:
        source: the float32 graph.
        destination: the file to write.
        kind: "weights" keeps every weight as a whole number of -127 to 127 times a scale for each output channel, and
            multiplies in float, so that only the weights are rounded. "products" rounds what they are multiplied with
            as well, and multiplies whole numbers.

    Returns:
        how many weights, or matrix products, were quantised.

    Raises:
        ValueError: the quantiser is not installed, or the encoder has nothing to quantise.
    """
    onnx, quantization = import_quantiser()
    way = _quantise_weights if kind == "weights" else _quantise_products
    num_quantised = way(source, destination, onnx, quantization)
    if not num_quantised:
        raise ValueError("int8 needs a model with matrix products of constant weights, got one without any.")
    return num_quantised


def _quantise_weights(source: Path, destination: Path, onnx: Any, _: Any) -> int:
    model = onnx.load(source)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    restored: dict[tuple[str, int], Any] = {}  # weight and axis of its output channels -> the node that restores it
    for node in graph.node:
        name = node.input[1] if node.op_type in ("MatMul", "Gemm", "Conv") else ""
        if name not in constants or _is_in_float(node):
            continue
        weight = onnx.numpy_helper.to_array(constants[name])
        if weight.dtype != np.float32 or weight.ndim < 2 or weight.size < _LEAST_WEIGHTS:
            continue
        axis = _output_axis(node, weight.ndim)
        if (name, axis) not in restored:
            stem = f"{name}_by_axis_{axis}"
            numbers, scales = _rounded(weight, axis)
            parts = {f"{stem}_int8": numbers, f"{stem}_scale": scales}
            graph.initializer.extend(onnx.numpy_helper.from_array(part, part_name) for part_name, part in parts.items())
            restored[name, axis] = onnx.helper.make_node("DequantizeLinear", list(parts), [stem], axis=axis)
        node.input[1] = restored[name, axis].output[0]
    num_users = Counter(name for node in graph.node for name in node.input)
    for name in {name for name, _ in restored if not num_users[name]}:
        graph.initializer.remove(constants[name])
    nodes = [*restored.values(), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, destination)
    return len(restored)


def _output_axis(node: Any, num_dimensions: int) -> int:
    """Return the axis of a node's weight that runs over the output channels."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else num_dimensions - 1


def _rounded(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers of -127 to 127, of the weight's shape, and the scale of each channel along an axis."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    # A channel of zeros has any scale.
    scales = np.maximum(np.abs(weight).max(axis=others, keepdims=True), np.finfo(np.float32).tiny * 127) / 127
    return np.rint(weight / scales).clip(-127, 127).astype(np.int8), scales.reshape(-1).astype(np.float32)


def _quantise_products(source: Path, destination: Path, onnx: Any, quantization: Any) -> int:
    graph = onnx.load(source, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    disabled = logging.root.manager.disable
    # The quantiser recommends steps of its own to the root logger, which the exporter of torch has done already.
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_dynamic(
            source,
            destination,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in products if _is_in_float(node)],
            # Signed weights would overflow the 16-bit sums of processors with AVX2 alone.
            weight_type=quantization.QuantType.QUInt8,
            per_channel=True,
        )
    finally:
        logging.disable(disabled)
    integer_products = ("MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
    written = onnx.load(destination, load_external_data=False).graph
    return sum(node.op_type in integer_products for node in written.node)


def _is_in_float(node: Any) -> bool:
    """Tell whether a node belongs to the signal processing of the chain, by the module that it came from."""
    spaces = {entry.key: entry.value for entry in node.metadata_props}
    return any(f"/{part}: " in spaces.get("namespace", "") for part in _IN_FLOAT)
