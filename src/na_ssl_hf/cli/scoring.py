"""`na-ssl fit` and `na-ssl score`: a scorer from normal recordings, and scores of new ones."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import default_checkpoint
from ..data.sound_files import find_sound_files
from ..tables import write_table
from .command_line import (
    CommandParser,
    add_backend_options,
    add_checkpoint_options,
    add_command,
    add_far_cancellation_option,
    add_inference_options,
    add_level_option,
)

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer

# The choices are repeated here, because the modules that define them take seconds to import.
POOLINGS = ("mean", "rdp", "gem", "rdp_gem", "gwrp", "max")
STREAMS = ("cancelled", "raw", "both")
RESCALINGS = ("none", "variance_min", "ratio", "difference", "lof")
THRESHOLD_METHODS = ("conformal", "gamma", "quantile")
COLUMNS = ("file", "score", "is_anomaly", "threshold", "p_value")
WORST_COLUMNS = ("worst_window_start", "worst_window_end")
WINDOW_COLUMNS = ("file", "start", "end", "score")


def add_commands(commands: Any) -> None:
    """Add `na-ssl fit` and `na-ssl score`."""
    _add_fit(commands)
    _add_score(commands)


def _add_fit(commands: Any) -> None:
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
        help="checkpoint: a directory, a name on the hub or of the package (default: na-eat-tiny-distilled)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="SCORER_DIR", help="directory of the new scorer")
    parser.add_argument(
        "--machine-off",
        nargs="+",
        type=Path,
        metavar="FILES_OR_DIR",
        help="recordings of the noise alone, from which --far-cancellation installation learns its path exactly",
    )
    add_fit_options(parser)
    add_common_options(parser)


def add_fit_options(parser: CommandParser) -> None:
    """Add the options of fitting that say nothing of single files, see `fit_arguments`."""
    parser.add_argument(
        "--layer",
        nargs="+",
        type=int,
        metavar="N",
        help="layers whose outputs are compared, joined where there are several (default: last, EfficientAT 7)",
    )
    add_level_option(parser)
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
    add_backend_options(parser)
    _add_domains_option(parser)
    _add_far_microphone_options(parser)
    parser.add_argument(
        "--threshold-method",
        choices=THRESHOLD_METHODS,
        default="conformal",
        help="rule for the threshold (default: conformal)",
    )
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        help="asked share of new normal recordings, of the conditions of these, that raise an alarm (default: 0.05)",
    )
    parser.add_argument(
        "--groups",
        metavar="folder|REGEX",
        help="groups (rooms, days, machines) that are left out together when the threshold is set, for new conditions: "
        "folder, or a pattern whose match in a file's path names its group",
    )
    add_window_options(parser)
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="permission to leave out, and list, recordings that cannot be read",
    )


def _add_far_microphone_options(parser: Any) -> None:
    add_far_cancellation_option(parser)
    parser.add_argument(
        "--far-future",
        type=float,
        metavar="S",
        help="seconds by which the filter of --far-cancellation installation, filter or auto hears ahead; 0 for a "
        "causal one (default: 0.128)",
    )
    parser.add_argument(
        "--streams",
        choices=STREAMS,
        default="cancelled",
        help="streams of the close microphone: without the far one, as recorded, or both joined (default: cancelled)",
    )
    parser.add_argument(
        "--na-share",
        type=_na_share,
        metavar="auto|SHARE",
        help="share of a noise-aware model in what is compared, 0 (its base) to 1, or auto: chosen from the recordings "
        "(default: what the checkpoint advises, else 1)",
    )
    parser.add_argument(
        "--log-mel",
        action=argparse.BooleanOptionalAction,
        help="log-mel statistics beside the tokens of the model (default: what the checkpoint advises, else none)",
    )


def _add_score(commands: Any) -> None:
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
    add_window_options(parser)
    parser.add_argument(
        "--window-csv", type=Path, metavar="FILE", help="file for the scores of all windows of long recordings"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="file for an HTML page with the scores, over time where cut"
    )
    parser.add_argument(
        "--fail-fast",
        action="store_true",
        help="end at the first recording that cannot be scored, instead of a row with its error",
    )
    add_common_options(parser)


def _add_domains_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--domains",
        metavar="folder|REGEX",
        help="source or target for each recording, which the backend two-domains needs: folder, or a pattern whose "
        "match in a file's path is one of these words",
    )


def add_window_options(parser: CommandParser) -> None:
    """Add `--window`, `--hop` and `--aggregate`."""
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="length of the windows that recordings are cut into, in seconds (default: 10 above 60 s, else uncut)",
    )
    parser.add_argument("--hop", type=float, metavar="S", help="seconds between windows (default: their length)")
    parser.add_argument(
        "--aggregate",
        type=_aggregate,
        metavar="max|mean|Q",
        help="score of a recording from those of its windows: max, mean or a quantile such as 0.9 (default: max)",
    )


def add_common_options(parser: CommandParser, device: str | None = None) -> None:
    """Add what loading a scorer and running its model takes, by default on a device or the best there is."""
    add_checkpoint_options(parser)
    add_inference_options(parser, device)


def _aggregate(text: str) -> str | float:
    try:
        return text if text in ("max", "mean") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be max, mean or a quantile in (0, 1), got {text!r}") from error


def _na_share(text: str) -> str | float:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be auto or a number from 0 to 1, got {text!r}") from error


def _fit(options: argparse.Namespace) -> None:
    from ..hub.memory_bank import MemoryBank

    if options.out.is_file():
        raise FileExistsError(f"--out must be a directory, got the file {options.out}")
    files = find_sound_files(options.recordings)
    groups = None if options.groups is None else groups_of(files, options.groups)
    domains = None if options.domains is None else domains_of(files, options.domains)
    if "two_domains" in options.backend and domains is None:
        raise ValueError("--backend two-domains needs --domains, which tells source from target recordings; got none")
    scorer = load_scorer(options.model or str(default_checkpoint()), options)
    arguments = fit_arguments(options)
    scorer.fit(
        files,
        domains=domains,
        groups=groups,
        machine_off=None if options.machine_off is None else find_sound_files(options.machine_off),
        memory_bank=MemoryBank(**arguments.pop("memory_bank")),
        **arguments,
    )
    scorer.save_pretrained(options.out)
    calibration: Any = scorer.memory_bank and scorer.memory_bank.calibration
    num_recordings = len(calibration.self_scores)
    print(f"{num_recordings} normal recordings, threshold {scorer.threshold:.6g}, saved to {options.out}")
    if calibration.level != "as recorded":
        print(f"level of the recordings: {calibration.level}")
    if calibration.streams != "cancelled":
        print(f"streams of the close microphone: {calibration.streams}")
    if calibration.na_share is not None:
        print(f"share of the noise-aware layers: {calibration.na_share:g}")
    if calibration.log_mel is not None:
        print("log-mel statistics are compared beside the model's tokens")
    _print_far_microphone(scorer)
    if calibration.layers is not None:
        print(f"layers compared: {', '.join(map(str, calibration.layers))}")
    for name, why in scorer.left_out:
        print(f"left out: {name}: {why}")
    if calibration.threshold_method != "gamma":
        conditions = (
            f"in conditions that differ as the {calibration.num_groups} groups do"
            if calibration.num_groups
            else "of the same machine, place, microphones and conditions; for others, see --groups"
        )
        print(f"The false-alarm rate of {100 * calibration.false_alarm_rate:.3g} % is for new recordings {conditions}.")


def fit_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `AnomalyScorer.fit` that are the same for all machines; `memory_bank` as a dict."""
    return {
        "far_cancellation": options.far_cancellation,
        "far_future": options.far_future,
        "layers": options.layer,
        "level": options.level,
        "streams": options.streams,
        "na_share": options.na_share,
        "log_mel": options.log_mel,
        "pooling": options.pooling,
        "gamma": options.gamma,
        "p": options.p,
        "r": options.r,
        "window": options.window,
        "hop": options.hop,
        "aggregate": options.aggregate,
        "memory_bank": {
            "rescaling": None if options.rescaling == "none" else options.rescaling,
            "backend": options.backend,
            "backend_fusion": options.backend_fusion,
        },
        "threshold_method": options.threshold_method,
        "false_alarm_rate": options.false_alarm_rate,
        "skip_unreadable": options.skip_unreadable,
        "batch_size": options.batch_size,
    }


def _print_far_microphone(scorer: AnomalyScorer) -> None:
    """Print what a calibrated far microphone does, and how much of the noise it cancels in each band."""
    from ..evaluation.report.score_report import describe_far_microphone

    far_microphone = scorer.far_microphone
    if far_microphone is None:
        return
    print(describe_far_microphone(far_microphone))
    for band in far_microphone.report():
        print(
            f"  {band.low:5.0f} to {band.high:5.0f} Hz: the filter takes {band.cancelled_db:4.1f} dB of the noise "
            f"(coherence {band.coherence:.2f})"
        )


def groups_of(files: Sequence[Path], rule: str) -> list[str]:
    """Return the group of every file: its folder, or what a pattern finds in its path."""
    return [str(file.parent) for file in files] if rule == "folder" else _matches(files, rule, "--groups")


def domains_of(files: Sequence[Path], rule: str) -> list[str]:
    """Return the domain of every file: the name of its folder, or what a pattern finds in its path."""
    domains = [file.parent.name for file in files] if rule == "folder" else _matches(files, rule, "--domains")
    for file, domain in zip(files, domains, strict=True):
        if domain not in ("source", "target"):
            raise ValueError(f"--domains must give source or target for every recording, got {domain!r} for {file}")
    return domains


def _matches(files: Sequence[Path], rule: str, option: str) -> list[str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"{option} must be 'folder' or a regular expression, got {rule!r}: {error}") from error
    matches = [pattern.search(str(file)) for file in files]
    for file, match in zip(files, matches, strict=True):
        if match is None:
            raise ValueError(f"{option} must match in the path of every recording, got {rule!r} for {file}")
    return [match.group(1 if pattern.groups else 0) for match in matches if match is not None]


def _score(options: argparse.Namespace) -> int:
    from ..evaluation.report.score_report import write_score_report

    for option in ("csv", "window_csv", "report"):
        path = getattr(options, option)
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"--{option.replace('_', '-')} must be a file, got the directory {path}")
    files = find_sound_files(options.recordings)
    scorer = load_scorer(options.scorer, options)
    results: Any = scorer(
        files,
        batch_size=options.batch_size,
        progress="score",
        window=options.window,
        hop=options.hop,
        aggregate=options.aggregate,
        errors="raise" if options.fail_fast else "return",
    )
    num_failed = sum("error" in result for result in results)
    if num_failed == len(files):
        raise OSError(results[0]["error"] + (f" (and {num_failed - 1} other recordings)" if num_failed > 1 else ""))
    columns, rows = _table(files, results)
    if options.window_csv is not None:
        write_table(options.window_csv, WINDOW_COLUMNS, _window_rows(files, results))
    if options.report is not None:
        write_score_report(options.report, files, results, scorer.far_microphone)
    write_table(sys.stdout if options.csv is None else options.csv, columns, rows)
    if options.csv is not None:
        anomalies = sum(result.get("is_anomaly", False) for result in results)
        print(f"{len(files) - num_failed} recordings, {anomalies} anomalous, scores in {options.csv}")
    if num_failed:
        first = next(result["error"] for result in results if "error" in result)
        failed = f"{num_failed} of {len(files)} recordings could not be scored, the first of them: {first}"
        print(f"{options.program}: error: {failed}", file=sys.stderr)
    return 1 if num_failed else 0


def _table(files: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows; the last columns are there only where a recording has something to say in them."""
    was_cut = any("worst_window" in result for result in results)
    has_failed = any("error" in result for result in results)
    columns = [*COLUMNS, *(WORST_COLUMNS if was_cut else ()), *(("error",) if has_failed else ())]
    rows = []
    for file, result in zip(files, results, strict=True):
        worst = result.get("worst_window", {})
        found = {"file": str(file), "worst_window_start": worst.get("start"), "worst_window_end": worst.get("end")}
        rows.append([{**result, **found}.get(column, "") for column in columns])
    return columns, rows


def _window_rows(files: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [str(file), *(window[column] for column in WINDOW_COLUMNS[1:])]
        for file, result in zip(files, results, strict=True)
        for window in result.get("windows", ())
    ]


def load_scorer(checkpoint: str, options: argparse.Namespace) -> AnomalyScorer:
    """Load the scorer of a checkpoint, fitted or not, onto `--device`; every failure is an OSError or a ValueError."""
    from ..checkpoints.scorers import load_scorer as load

    check_device(options.device)
    return load(checkpoint, options.device, options.resample, options.trust_remote_code)


def check_device(device: str | None) -> None:
    """Raise a ValueError where a device cannot be used on this machine."""
    if device in (None, "cpu"):
        return
    import torch

    from ..checkpoints.scorers import first_line

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {first_line(error)}") from error
