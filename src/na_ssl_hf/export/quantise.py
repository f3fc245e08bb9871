"""The weights of an ONNX graph as int8: of the encoder's matrix products alone, with the front end in float."""

import logging
from pathlib import Path


def quantise_onnx(source: Path, destination: Path) -> int:
    """Write a graph whose constant matrices of the encoder have 8 bits, multiplied with activations as they come.

    The front end stays in float: a logarithm of small powers would show the rounding of a quantised Fourier transform.

    Args:
        source: the float32 graph.
        destination: the file to write.

    Returns:
        how many matrix products were quantised.

    Raises:
        ValueError: the quantiser of ONNX Runtime is not installed, or the encoder has no matrix product.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(
            f"int8 needs the quantiser of ONNX Runtime, which cannot be imported ({error}): "
            "pip install na-ssl-hf[export]."
        ) from error
    graph = onnx.load(source, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    of_front_end = [node.name for node in products if _is_of_front_end(node)]
    disabled = logging.root.manager.disable
    # The quantiser recommends steps of its own to the root logger, which the exporter of torch has done already.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            source,
            destination,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=of_front_end,
            # Signed weights would overflow the 16-bit sums of processors with AVX2 alone.
            weight_type=QuantType.QUInt8,
            per_channel=True,
        )
    finally:
        logging.disable(disabled)
    integer_products = ("MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
    written = onnx.load(destination, load_external_data=False).graph
    num_quantised = sum(node.op_type in integer_products for node in written.node)
    if not num_quantised:
        raise ValueError("int8 needs a model with matrix products of constant weights, got one without any.")
    return num_quantised


def _is_of_front_end(node) -> bool:  # type: ignore[no-untyped-def] # onnx has no types
    """Tell whether a node belongs to the signal processing of the chain, by the module that it came from."""
    spaces = {entry.key: entry.value for entry in node.metadata_props}
    return any(f"/{part}: " in spaces.get("namespace", "") for part in ("far_canceller", "front_end"))
