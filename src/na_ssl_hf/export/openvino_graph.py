"""An ONNX graph becomes OpenVINO's, for Intel processors."""

from pathlib import Path
from typing import Any


def import_openvino() -> Any:
    """Return the package openvino; a ValueError says that it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise ValueError("`to='openvino'` needs the package openvino: pip install openvino.") from error
    return openvino


def write_openvino(source: Path, destination: Path) -> None:
    """Write the graph of an ONNX file as `model.xml` with `model.bin` beside it, with weights in float32.

    Raises:
        ValueError: OpenVINO is not installed, or cannot express the graph.
    """
    openvino = import_openvino()
    try:
        # Its function `convert_model` would send statistics over the network.
        model = openvino.Core().read_model(str(source))
        openvino.save_model(model, str(destination), compress_to_fp16=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"`to='openvino'` needs a model that OpenVINO can express: {reason}") from error
