"""`na-ssl-edge score`: the scores of recordings as a CSV table, with the columns of `na-ssl score`."""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("file", "score", "is_anomaly", "threshold", "p_value")
WORST_COLUMNS = ("worst_window_start", "worst_window_end")
WINDOW_COLUMNS = ("file", "start", "end", "score")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `na-ssl-edge` with `arguments`, by default those of this process.

    Returns:
        the exit status: 0; 1 for an error, which is told in one line; 130 after an interrupt. A wrong command line
        exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file's name that the console cannot show must not cost the result.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    try:
        return _score(options)
    except (ValueError, OSError) as error:
        print(f"na-ssl-edge score: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("na-ssl-edge score: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="na-ssl-edge", description="Scores of recordings from a scorer that `na-ssl export` wrote, without torch."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser(
        "score",
        help="score two-channel recordings with an exported scorer; higher is more anomalous",
        description="score two-channel recordings with an exported scorer; higher is more anomalous",
        epilog="example:\n  na-ssl-edge score exported recordings/today --csv scores.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument("exported", metavar="EXPORTED_DIR", help="directory that `na-ssl export` wrote")
    score.add_argument(
        "recordings", nargs="+", type=Path, metavar="FILES_OR_DIR", help="recordings: sound files, or folders of them"
    )
    score.add_argument("--csv", type=Path, metavar="FILE", help="file for the table (default: the screen)")
    score.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="length of the windows that recordings are cut into, in seconds (default: 10 above 60 s, else uncut)",
    )
    score.add_argument("--hop", type=float, metavar="S", help="seconds between windows (default: their length)")
    score.add_argument(
        "--aggregate",
        type=_aggregate,
        metavar="max|mean|Q",
        help="score of a recording from those of its windows: max, mean or a quantile such as 0.9 (default: max)",
    )
    score.add_argument(
        "--window-csv", type=Path, metavar="FILE", help="file for the scores of all windows of long recordings"
    )
    score.add_argument(
        "--fail-fast",
        action="store_true",
        help="end at the first recording that cannot be scored, instead of a row with its error",
    )
    score.add_argument(
        "--resample", action="store_true", help="resampling of recordings whose rate is not the checkpoint's"
    )
    score.add_argument("--threads", type=_threads, metavar="N", help="threads of the processor (default: all)")
    return parser


def _score(options: argparse.Namespace) -> int:
    from .scorer import Scorer
    from .sound_files import find_sound_files
    from .tables import write_table

    for option in ("csv", "window_csv"):
        path = getattr(options, option)
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"--{option.replace('_', '-')} must be a file, got the directory {path}")
    files = find_sound_files(options.recordings)
    scorer = Scorer(options.exported, num_threads=options.threads, resample=True if options.resample else None)
    results = scorer(
        files,
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
    write_table(sys.stdout if options.csv is None else options.csv, columns, rows)
    if options.csv is not None:
        anomalies = sum(result.get("is_anomaly", False) for result in results)
        print(f"{len(files) - num_failed} recordings, {anomalies} anomalous, scores in {options.csv}")
    if num_failed:
        first = next(result["error"] for result in results if "error" in result)
        failed = f"{num_failed} of {len(files)} recordings could not be scored, the first of them: {first}"
        print(f"na-ssl-edge score: error: {failed}", file=sys.stderr)
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


def _aggregate(text: str) -> str | float:
    try:
        return text if text in ("max", "mean") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be max, mean or a quantile in (0, 1), got {text!r}") from error


def _threads(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
