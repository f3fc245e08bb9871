"""`na-ssl fit` and `na-ssl score`: a scorer from normal recordings, and scores of new ones."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import default_checkpoint, resolve_checkpoint
from ..data.sound_files import find_sound_files
from ..hub.whole_files import whole_file
from .command_line import CommandParser, add_command, add_far_cancellation_option, add_inference_options

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer

# The choices are repeated here, because the modules that define them take seconds to import.
POOLINGS = ("mean", "rdp", "gem", "rdp_gem", "gwrp", "max")
RESCALINGS = ("none", "variance_min", "ratio", "difference", "lof")
THRESHOLD_METHODS = ("conformal", "gamma", "quantile")
COLUMNS = ("file", "score", "is_anomaly", "threshold", "p_value")


def add_commands(commands: Any) -> None:
    """Add `na-ssl fit` and `na-ssl score`."""
    parser = add_command(
        commands,
        "fit",
        _fit,
        "remember normal two-channel recordings and set the alarm threshold",
        "  na-ssl fit recordings/normal --model checkpoint --out scorer\n"
        "  na-ssl fit recordings/normal --far-cancellation least_squares --pooling rdp --gamma 8 --out scorer",
    )
    parser.add_argument(
        "recordings",
        nargs="+",
        type=Path,
        metavar="NORMAL_DIR",
        help="normal recordings: sound files, or folders of them",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="checkpoint: a directory, a name on the hub or of the package (default: na-beats-tiny)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="SCORER_DIR", help="directory of the new scorer")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="pooling over time (default: mean)")
    parser.add_argument("--gamma", type=float, help="strength of the poolings rdp and rdp_gem (default: 4)")
    parser.add_argument("--p", type=float, help="exponent of the poolings gem and rdp_gem (default: 3)")
    parser.add_argument("--r", type=float, help="decay of the pooling gwrp (default: 0.9)")
    parser.add_argument(
        "--rescaling",
        choices=RESCALINGS,
        default="none",
        help="rescaling of the distances; variance_min is that of the published systems (default: none)",
    )
    add_far_cancellation_option(parser)
    parser.add_argument(
        "--threshold-method",
        choices=THRESHOLD_METHODS,
        default="conformal",
        help="rule for the threshold (default: conformal)",
    )
    parser.add_argument(
        "--false-alarm-rate", type=float, help="asked share of normal recordings that raise an alarm (default: 0.05)"
    )
    _add_resample_option(parser)
    add_inference_options(parser)

    parser = add_command(
        commands,
        "score",
        _score,
        "score two-channel recordings with a fitted scorer; higher is more anomalous",
        "  na-ssl score scorer recordings/today --csv scores.csv",
    )
    parser.add_argument("scorer", metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")
    parser.add_argument(
        "recordings", nargs="+", type=Path, metavar="FILES_OR_DIR", help="recordings: sound files, or folders of them"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="file for the table (default: the screen)")
    _add_resample_option(parser)
    add_inference_options(parser)


def _add_resample_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--resample", action="store_true", help="resampling of recordings whose rate is not the checkpoint's"
    )


def _fit(options: argparse.Namespace) -> None:
    from ..hub.memory_bank import MemoryBank

    if options.out.is_file():
        raise FileExistsError(f"--out must be a directory, got the file {options.out}")
    files = find_sound_files(options.recordings)
    scorer = _load_scorer(options.model or str(default_checkpoint()), options)
    if options.far_cancellation is not None:
        method = None if options.far_cancellation == "none" else options.far_cancellation
        scorer.feature_extractor.far_cancellation = method
    scorer.fit(
        files,
        pooling=options.pooling,
        gamma=options.gamma,
        p=options.p,
        r=options.r,
        memory_bank=MemoryBank(rescaling=None if options.rescaling == "none" else options.rescaling),
        threshold_method=options.threshold_method,
        false_alarm_rate=options.false_alarm_rate,
        batch_size=options.batch_size,
    )
    scorer.save_pretrained(options.out)
    print(f"{len(files)} normal recordings, threshold {scorer.threshold:.6g}, saved to {options.out}")


def _score(options: argparse.Namespace) -> None:
    if options.csv is not None and options.csv.is_dir():
        raise IsADirectoryError(f"--csv must be a file, got the directory {options.csv}")
    files = find_sound_files(options.recordings)
    scorer = _load_scorer(options.scorer, options)
    results: Any = scorer(files, batch_size=options.batch_size, progress="score")
    rows = [
        [str(file), *(result[column] for column in COLUMNS[1:])] for file, result in zip(files, results, strict=True)
    ]
    if options.csv is None:
        csv.writer(sys.stdout).writerows([COLUMNS, *rows])
        return
    with whole_file(options.csv) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    anomalies = sum(result["is_anomaly"] for result in results)
    print(f"{len(files)} recordings, {anomalies} anomalous, scores in {options.csv}")


def _load_scorer(checkpoint: str, options: argparse.Namespace) -> AnomalyScorer:
    """Load the scorer of a checkpoint, fitted or not, onto `--device`; every failure is an OSError or a ValueError."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import pipeline

    from ..hub.pipeline_anomaly_scoring import AnomalyScorer
    from ..quiet_checkpoints import quiet_checkpoints

    source = resolve_checkpoint(checkpoint)
    if options.device is not None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {options.device} cannot be used: {_first_line(error)}") from error
    try:
        with quiet_checkpoints():
            scorer: Any = pipeline("anomaly-scoring", model=source, device=options.device)  # type: ignore[call-overload]
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        raise OSError(f"{checkpoint} cannot be loaded: {_first_line(error)}") from error
    assert isinstance(scorer, AnomalyScorer)
    if options.resample:
        scorer.feature_extractor.resample = True
    return scorer


def _first_line(error: BaseException) -> str:
    """Return the first line of a message, or the first two where the first only announces the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
