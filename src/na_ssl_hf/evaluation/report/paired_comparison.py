"""Systems that scored the same clips are compared by their official scores, over the same redrawn clips."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..metrics.official import bootstrap_interval
from ..systems.machine_scores import MachineScores


def comparison_table(rows: Mapping[str, Sequence[MachineScores]], reference: str, seed: int = 0) -> str:
    """Make a Markdown table of official scores and of their differences to those of one row, in %.

    Args:
        rows: title of a row -> its scores of all machines; every row has the same machines and clips.
        reference: title of the row that the others are compared to.
        seed: seed of the bootstrap over clips, for the 95 % intervals.
    """
    intervals = {
        row: bootstrap_interval({one.machine: one.labelled_scores for one in machines}, seed=seed)
        for row, machines in rows.items()
    }
    by_machine = {row: np.array([one.metrics.official_score for one in machines]) for row, machines in rows.items()}
    lines = [
        f"| system | official score [95 %] | minus *{reference}* [95 %, paired] | better on machines |",
        "|---|---|---|---|",
    ]
    for row, interval in intervals.items():
        difference = interval.draws - intervals[reference].draws
        low, high = np.quantile(difference, [0.025, 0.975])
        better = (by_machine[row] > by_machine[reference]).sum()
        lines.append(
            f"| {row} | {100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] | "
            f"{100 * (interval.estimate - intervals[reference].estimate):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | "
            f"{better} of {len(by_machine[row])} |"
        )
    return "\n".join(lines)
