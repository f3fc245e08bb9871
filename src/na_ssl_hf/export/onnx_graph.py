"""A chain becomes an ONNX graph, for recordings of any length where the model allows it, and is checked at once."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .chain import ScoringChain

# torch translates to opset 18 or later.
LEAST_OPSET, DEFAULT_OPSET = 18, 18
# A larger share of the largest entry is no rounding: the graph is bound to the length of its example.
TOLERANCE = 1e-3


def largest_opset() -> int:
    """Return the newest opset that both onnx and this torch can write.

    Raises:
        ValueError: a package that the export needs is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise ValueError(
                f"The export needs the package {package}, which is not installed: pip install na-ssl-hf[export]."
            ) from error
    import onnx

    return min(23, onnx.defs.onnx_opset_version())


def check_opset(opset: int) -> None:
    """Raise a ValueError where an opset is not supported, or packages are missing."""
    largest = largest_opset()
    if isinstance(opset, bool) or not isinstance(opset, int) or not LEAST_OPSET <= opset <= largest:
        raise ValueError(f"`opset` must be a whole number from {LEAST_OPSET} to {largest}, got {opset!r}.")


def export_onnx(
    chain: ScoringChain, path: Path, lengths: Sequence[int], most_samples: int | None, opset: int
) -> int | None:
    """Write the ONNX graph of a chain, from `waveforms (1, 2, N)` to `vectors (1, F, D)`.

    The graph is compared with the chain at several lengths. A model whose graph is bound to the length of its example
    gets a graph for the one length that all recordings have.

    Args:
        chain: the chain.
        path: the file to write.
        lengths: samples per channel of the recordings, or of their windows, that the graph will hear.
        most_samples: the most that the model takes; `None` for any number.
        opset: the version of ONNX's operators.

    Returns:
        `None`, or the number of samples that the graph is bound to.

    Raises:
        ValueError: the model cannot be exported, or needs one length and there are several.
    """
    import onnxruntime

    longest, shortest = max(lengths), min(lengths)
    tried = sorted({*lengths[:3], longest, shortest, longest + 4321})
    tried = [length for length in tried if most_samples is None or length <= most_samples]
    reason = ""
    for dynamic in (True, False):
        if not dynamic and shortest != longest:
            raise ValueError(
                f"`model` must be exportable for recordings of any length, or the recordings must have one length: "
                f"{type(chain.model).__name__} allows the second only ({reason}), got {shortest} to {longest} samples. "
                "Fit the scorer with a window."
            )
        try:
            # An example of a round number would have properties that the exporter takes for those of all lengths.
            odd = longest + 137 if most_samples is None else min(longest + 137, most_samples)
            _write(chain, path, odd if dynamic else longest, dynamic, opset)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"], sess_options=_quiet())
            for length in tried if dynamic else [longest]:
                _check_agreement(chain, session, length)
        # Exporters raise whatever goes wrong in them.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        return None if dynamic else longest
    raise ValueError(f"`model` must be one that ONNX can express, got {type(chain.model).__name__}: {reason}")


def _write(chain: ScoringChain, path: Path, length: int, dynamic: bool, opset: int) -> None:
    example = 0.1 * torch.randn(1, 2, length, generator=torch.Generator().manual_seed(0))
    shapes: Any = ({2: torch.export.Dim.AUTO},) if dynamic else None
    with torch.no_grad(), _silence():
        program = torch.export.export(chain, (example,), dynamic_shapes=shapes, strict=False)
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["waveforms"],
            output_names=["vectors"],
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(path)


def _check_agreement(chain: ScoringChain, session: Any, length: int) -> None:
    wave = 0.1 * torch.randn(1, 2, length, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = chain(wave)
    found = torch.from_numpy(session.run(None, {"waveforms": wave.numpy()})[0])
    difference = float((found - wanted).abs().max())
    if not difference <= TOLERANCE * float(wanted.abs().max()):
        raise ValueError(
            f"the graph must give the scores of the model within a relative {TOLERANCE:g}, got a difference of "
            f"{difference:.3g} at {length} samples"
        )


def _quiet() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back what exporters print and warn of, such as packages of theirs that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
