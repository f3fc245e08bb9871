"""The exported graph in the runtime that runs it: waveforms to band vectors.

Letters: N samples, F frequency bands, D channels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Graph(Protocol):
    """A graph that is loaded."""

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Turn one recording `(2, N)` float32 into band vectors `(F, D)` float32."""
        ...


def load_graph(path: Path, graph_format: str, num_threads: int | None = None) -> Graph:
    """Load a graph.

    Args:
        path: `model.onnx`, or `model.xml` of OpenVINO with its `model.bin` beside it.
        graph_format: "onnx" or "openvino".
        num_threads: of the processor; `None` leaves the number to the runtime.

    Raises:
        ValueError: the format is unknown, or its runtime is not installed.
        OSError: the file is missing or damaged.
    """
    loaders: dict[str, Callable[[Path, int | None], Graph]] = {"onnx": OnnxGraph, "openvino": OpenVinoGraph}
    if graph_format not in loaders:
        raise ValueError(f"`format` of a graph must be one of {list(loaders)}, got {graph_format!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"No graph at {path}.")
    return loaders[graph_format](path, num_threads)


class OnnxGraph:
    """A graph that ONNX Runtime runs on the processor."""

    def __init__(self, path: Path, num_threads: int | None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("Running an ONNX graph needs the package onnxruntime: pip install onnxruntime.") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, which says the same
        # A recording of another length would leave the memory of the last one reserved for good.
        options.enable_mem_pattern = False
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        # Idle threads must not keep a small machine busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # The exceptions of onnxruntime have no common class but this one.
        except Exception as error:
            raise OSError(f"{path} cannot be loaded as an ONNX graph: {_first_line(error)}") from error
        _check_names(
            path, [put.name for puts in (self._session.get_inputs(), self._session.get_outputs()) for put in puts]
        )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(["vectors"], {"waveforms": waveform[None]})[0][0]
        except Exception as error:
            raise _failed(waveform, error) from error


class OpenVinoGraph:
    """A graph that OpenVINO runs on the processor."""

    def __init__(self, path: Path, num_threads: int | None):
        try:
            import openvino
        except ImportError as error:
            raise ValueError(
                "Running an OpenVINO graph needs the package openvino: pip install na-ssl-edge[openvino]."
            ) from error
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if num_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = num_threads
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be loaded as an OpenVINO graph: {_first_line(error)}") from error
        _check_names(path, [put.get_any_name() for put in (*self._model.inputs, *self._model.outputs)])

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        try:
            return next(iter(self._model(waveform[None]).values()))[0]
        except RuntimeError as error:
            raise _failed(waveform, error) from error


def _check_names(path: Path, names: list[str]) -> None:
    """Raise an OSError where inputs and outputs are not those of an export."""
    if names != ["waveforms", "vectors"]:
        raise OSError(f"{path} must be a graph from `waveforms` to `vectors`, got {names}.")


def _failed(waveform: np.ndarray, error: Exception) -> OSError:
    return OSError(f"The graph failed on a recording of {waveform.shape[1]} samples: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
