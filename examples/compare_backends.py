"""Compare the backends of a memory bank on one data set, with paired bootstrap intervals.

    na-ssl simulate dcase --out benchmark --preset small --seed 0
    python examples/compare_backends.py benchmark --frontend na-beats=na-beats-tiny eat=eat-tiny-deep --out comparison

A table for log-mel statistics and one for each frontend has a row for every backend and for some fusions of them. All
rows are compared to plain nearest neighbours, over the same redrawn clips; higher is better. The machines of several
data sets stand side by side. Embeddings are kept in --out.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from na_ssl_hf.evaluation.report.paired_comparison import comparison_table
from na_ssl_hf.evaluation.systems.machine_scores import MachineScores
from na_ssl_hf.evaluation.systems.published_systems import FRONTENDS
from na_ssl_hf.evaluation.systems.run_settings import RunSettings
from na_ssl_hf.evaluation.systems.system_run import run_system

REFERENCE = "nearest"
# Title of a row -> what `run_system` is asked for.
ROWS: dict[str, dict] = {
    REFERENCE: {},
    "nearest, variance minimisation": {"rescaling": "variance_min"},
    "two domains": {"backend": "two_domains"},
    "Mahalanobis": {"backend": "mahalanobis"},
    "PCA": {"backend": "pca"},
    "minimum of nearest and Mahalanobis": {"backend": ("nearest", "mahalanobis")},
    "mean of nearest and Mahalanobis": {"backend": ("nearest", "mahalanobis"), "backend_fusion": "mean"},
    "minimum of all four": {"backend": ("nearest", "two_domains", "mahalanobis", "pca")},
    "mean of all four": {"backend": ("nearest", "two_domains", "mahalanobis", "pca"), "backend_fusion": "mean"},
}


def score_all(
    system: str, data: Sequence[Path], settings: RunSettings, checkpoints: Mapping[str, Sequence[str]]
) -> dict[str, list[MachineScores]]:
    """Score with every backend: title of a row -> its machines, those of several data sets side by side."""
    rows = {}
    for title, asked in ROWS.items():
        machines = []
        for folder in data:
            run = run_system(system, folder, settings, checkpoints, **{"rescaling": None, **asked})
            machines += [replace(one, machine=f"{folder.name}/{one.machine}") for one in run.machines]
        rows[title] = machines
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="+", type=Path, help="folders of <machine>/train and <machine>/test, with labelled test clips"
    )
    parser.add_argument(
        "--frontend",
        nargs="+",
        default=[],
        metavar="NAME=CHECKPOINT",
        help=f"frontends beside log-mel statistics, with NAME of {', '.join(FRONTENDS)} (default: none)",
    )
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder of the embeddings and the tables")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    options = parser.parse_args()

    checkpoints: dict[str, list[str]] = {}
    for pair in options.frontend:
        name, _, checkpoint = pair.partition("=")
        if name not in FRONTENDS or not checkpoint:
            parser.error(f"--frontend must be NAME=CHECKPOINT with NAME of {', '.join(FRONTENDS)}, got {pair!r}")
        checkpoints[name] = [checkpoint]
    tables = []
    for system in ("logmel", *checkpoints):
        rows = score_all(system, options.data, RunSettings(options.out / "cache"), checkpoints)
        tables.append(f"{system}\n\n{comparison_table(rows, REFERENCE, options.seed)}\n")
    text = "\n".join(tables)
    (options.out / "backends.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
