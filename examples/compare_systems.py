"""What does the far microphone give, used in each way? Every way on one data set, with paired bootstrap intervals.

    na-ssl simulate dcase --out benchmark --preset small --seed 0
    python examples/compare_systems.py benchmark --noise-aware na-beats=na-beats-tiny --out comparison

One row for each way: no network, the checkpoint's base and the NA model itself, on the close microphone as it is and
after each kind of far-microphone cancellation (the NA model then hears the cancelled close and the raw far channel),
and means of scores in units of each member's normal clips. Differences are to one row, over the same redrawn clips;
higher is better. Several data sets stand side by side as machines. Embeddings stay in --out.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from transformers import AutoConfig

from na_ssl_hf.evaluation.report.paired_comparison import comparison_table
from na_ssl_hf.evaluation.systems.machine_scores import MachineScores
from na_ssl_hf.evaluation.systems.run_settings import RunSettings
from na_ssl_hf.evaluation.systems.score_ensemble import ScoreEnsemble
from na_ssl_hf.evaluation.systems.system_run import run_system
from na_ssl_hf.hub.memory_bank_rescaling import RescalingName

LEAST_SQUARES, SUBTRACTION = "least_squares", "spectral_subtraction"
TITLES = {"logmel": "log-mel", "logmel-centred": "log-mel without level"}
SHORT = {None: "close only", LEAST_SQUARES: "least squares", SUBTRACTION: "subtraction"}


def fuse(*runs: Sequence[MachineScores]) -> list[MachineScores]:
    """Mean of the scores, each in units of the spread of its own normal clips."""
    fused = []
    for machines in zip(*runs, strict=True):
        ensemble = ScoreEnsemble({str(member): 1.0 for member in range(len(machines))}, z_normalize=True)
        normal_scores = {str(member): one.normal_scores for member, one in enumerate(machines)}
        scores = {str(member): one.scores for member, one in enumerate(machines)}
        ensemble.fit(normal_scores)
        fused.append(replace(machines[0], scores=ensemble.score(scores), normal_scores=ensemble.score(normal_scores)))
    return fused


def score_all(
    data: Sequence[Path], noise_aware: str, checkpoint: str, settings: RunSettings, rescaling: RescalingName | None
) -> dict[str, list]:
    """Row -> its scored machines; the machines of several data sets stand side by side."""
    base = AutoConfig.for_model(noise_aware).base_model_type
    checkpoints = {noise_aware: [checkpoint], base: [checkpoint]}

    def run(system: str, far_cancellation: str | None) -> list[MachineScores]:
        machines = []
        for folder in data:
            found = run_system(system, folder, settings, checkpoints, far_cancellation, rescaling=rescaling).machines
            machines += [replace(one, machine=f"{folder.name}/{one.machine}") for one in found]
        return machines

    rows = {
        f"{title}, {SHORT[method]}": run(system, method)
        for system, title in {**TITLES, base: "base", noise_aware: "NA"}.items()
        for method in (None, LEAST_SQUARES, SUBTRACTION)
    }
    for title in TITLES.values():
        rows[f"{title}, both cancellations fused"] = fuse(
            rows[f"{title}, least squares"], rows[f"{title}, subtraction"]
        )
    rows["base, both cancellations fused"] = fuse(rows["base, least squares"], rows["base, subtraction"])
    rows["NA + base with subtraction, fused"] = fuse(rows["NA, close only"], rows["base, subtraction"])
    rows["NA + log-mel without level with subtraction, fused"] = fuse(
        rows["NA, close only"], rows["log-mel without level, subtraction"]
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="DCASE-shaped folders with labelled test clips")
    parser.add_argument(
        "--noise-aware", default="na-beats=na-beats-tiny", metavar="NAME=CHECKPOINT", help="na-beats=... or na-eat=..."
    )
    parser.add_argument("--reference", default="base, close only", help="row that differences are taken to")
    parser.add_argument(
        "--rescaling",
        choices=("none", *get_args(RescalingName)),
        default="none",
        help="of the memory: none for plain distances (default), variance_min as published, ratio, difference, lof",
    )
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="keeps embeddings and gets the table")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args()

    name, _, checkpoint = options.noise_aware.partition("=")
    if name not in ("na-beats", "na-eat") or not checkpoint:
        parser.error(f"--noise-aware must be na-beats=CHECKPOINT or na-eat=CHECKPOINT, got {options.noise_aware!r}")
    rescaling = None if options.rescaling == "none" else options.rescaling
    rows = score_all(options.data, name, checkpoint, RunSettings(options.out / "cache"), rescaling)
    if options.reference not in rows:
        parser.error(f"--reference must be one of {list(rows)}, got {options.reference!r}")
    text = comparison_table(rows, options.reference, options.seed)
    (options.out / f"{name}-{options.rescaling}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
