"""Scorers of checkpoints, fitted or not, with every failure of loading as one line."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import pipeline

from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..quiet_checkpoints import quiet_checkpoints
from . import resolve_checkpoint
from .loading import LOADING_ERRORS, check_settings_files


def load_scorer(
    checkpoint: str, device: str | None = None, resample: bool = False, trust_remote_code: bool = False
) -> AnomalyScorer:
    """Load the scorer of a checkpoint, fitted or not.

    Args:
        checkpoint: a directory, the name of a checkpoint of the package, or a name on the hub.
        device: where the model computes, such as "cpu" or "cuda:1"; `None` for the best there is.
        resample: whether recordings of other rates are brought to the checkpoint's.
        trust_remote_code: whether code that the checkpoint brings along may run.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        OSError: it cannot be loaded, or it brings code along that may not run.
    """
    source = resolve_checkpoint(checkpoint)
    try:
        check_settings_files(source)
        with quiet_checkpoints():
            make: Any = pipeline  # its overloads know only the tasks of transformers
            # Without an answer, transformers would ask on the terminal whether to run a checkpoint's code.
            scorer = make("anomaly-scoring", model=source, device=device, trust_remote_code=trust_remote_code)
    # What transformers raises where a file has another form than it expects.
    except (*LOADING_ERRORS, SafetensorError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise OSError(
                f"{checkpoint} brings code of its own along, which runs only with --trust-remote-code"
            ) from error
        raise OSError(f"{checkpoint} cannot be loaded: {first_line(error)}") from error
    assert isinstance(scorer, AnomalyScorer)
    if resample:
        scorer.feature_extractor.resample = True
    return scorer


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the first two where the first only announces the second.

    Of a message of transformers that quotes tracebacks, the line of the last error is returned instead.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if any(line.startswith("Traceback") for line in lines):
        reasons = [line.partition(": ")[2] for line in lines if re.match(r"\w+Error: ", line)]
        return (reasons or lines)[-1]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
