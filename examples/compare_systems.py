"""Compare the ways of using the far microphone on one data set, with paired bootstrap intervals.

    na-ssl simulate dcase --out benchmark --preset small --installation moving --seed 0
    python examples/compare_systems.py benchmark --noise-aware na-beats=na-beats-tiny --out comparison

Each way is a row: log-mel statistics without a network, the base of the checkpoint and the NA model itself, on the
close microphone as it is and after each kind of far-microphone cancellation (the NA model then hears the cancelled
close and the raw far channel), and means of scores in units of each member's normal clips. All rows are compared to one
of them, over the same redrawn clips; higher is better. The machines of several data sets stand side by side. Embeddings
are kept in --out.
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
NOISE_AWARE = ("na-beats", "na-dasheng", "na-eat")
TITLES = {"logmel": "log-mel", "logmel-centred": "log-mel without level"}
SHORT = {None: "close only", LEAST_SQUARES: "least squares", SUBTRACTION: "subtraction"}


def fuse(*runs: Sequence[MachineScores]) -> list[MachineScores]:
    """Average the scores of several systems, each in units of the spread of its own normal clips."""
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
) -> dict[str, list[MachineScores]]:
    """Score in every way: title of a row -> its machines, those of several data sets side by side."""
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
    parser.add_argument(
        "data", nargs="+", type=Path, help="folders of <machine>/train and <machine>/test, with labelled test clips"
    )
    parser.add_argument(
        "--noise-aware",
        default="na-beats=na-beats-tiny",
        metavar="NAME=CHECKPOINT",
        help="noise-aware checkpoint: na-beats=, na-eat= or na-dasheng=CHECKPOINT",
    )
    parser.add_argument(
        "--layer",
        nargs="+",
        type=int,
        metavar="N",
        help="layers of the base and of the NA model that are compared, joined where there are several (default: last)",
    )
    parser.add_argument("--reference", default="base, close only", help="row that the others are compared to")
    parser.add_argument(
        "--rescaling",
        choices=("none", *get_args(RescalingName)),
        default="none",
        help="rescaling of the distances: none (default), variance_min (as published), ratio, difference or lof",
    )
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder of the embeddings and the table")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    options = parser.parse_args()

    name, _, checkpoint = options.noise_aware.partition("=")
    if name not in NOISE_AWARE or not checkpoint:
        parser.error(
            f"--noise-aware must be NAME=CHECKPOINT with a name of {', '.join(NOISE_AWARE)}, got "
            f"{options.noise_aware!r}"
        )
    rescaling = None if options.rescaling == "none" else options.rescaling
    layers = {name: options.layer, name.removeprefix("na-"): options.layer} if options.layer else {}
    settings = RunSettings(options.out / "cache", layers=layers)
    rows = score_all(options.data, name, checkpoint, settings, rescaling)
    if options.reference not in rows:
        parser.error(f"--reference must be one of {list(rows)}, got {options.reference!r}")
    text = comparison_table(rows, options.reference, options.seed)
    suffix = "".join(f"-layer-{layer}" for layer in options.layer or ())
    (options.out / f"{name}-{options.rescaling}{suffix}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
