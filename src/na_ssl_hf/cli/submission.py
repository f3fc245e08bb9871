"""`na-ssl evaluate-submission`: the official numbers of a folder of score files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .command_line import add_command


def add_commands(commands: Any) -> None:
    """Add `na-ssl evaluate-submission`."""
    parser = add_command(
        commands,
        "evaluate-submission",
        _evaluate_submission,
        "compute the official DCASE 2026 Task 2 numbers of a folder of score files",
        "  na-ssl evaluate-submission submission ground_truth --json",
    )
    parser.add_argument("submission", type=Path, metavar="SUBMISSION_DIR", help="folder of anomaly_score_*.csv files")
    parser.add_argument("ground_truth", type=Path, metavar="GROUND_TRUTH_DIR", help="folder of ground_truth_* folders")
    parser.add_argument("--json", action="store_true", help="JSON output instead of a table")


def _evaluate_submission(options: argparse.Namespace) -> None:
    from ..evaluation.report.submission import evaluate_submission

    result = evaluate_submission(options.submission, options.ground_truth)
    if options.json:
        print(json.dumps(result))
        return
    print(f"official score {100 * result['official_score']:.2f} %")
    for machine, values in result["machines"].items():
        print(f"  {machine}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
