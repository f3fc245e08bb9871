"""An HTML page of scored recordings: a table, and the scores over time of those that were cut into windows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...tables import write_text

# The size of a curve in pixels.
WIDTH, HEIGHT = 720, 120

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scores of {count} recordings</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: 0.2rem 0.8rem; border-bottom: 1px solid #ccc; text-align: left; overflow-wrap: anywhere; }}
.alarm {{ color: #b00020; font-weight: 600; }}
svg {{ display: block; width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Scores of {count} recordings</h1>
<p>A higher score is more anomalous. A recording alarms when its score is above the threshold.</p>
"""


def write_score_report(
    path: str | os.PathLike[str], files: Sequence[str | Path], results: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page, whole or not at all; it needs no other file.

    Args:
        path: the HTML file.
        files: the recordings.
        results: what the scorer said of each, with `errors="return"`.

    Raises:
        OSError: the file cannot be written.
    """
    parts = [_HEAD.format(count=len(files))]
    parts.append("<table>\n<tr><th>recording</th><th>score</th><th>p-value</th><th>worst window</th></tr>\n")
    for file, result in zip(files, results, strict=True):
        name = escape(str(file))
        if "error" in result:
            parts.append(f'<tr><td>{name}</td><td class="alarm" colspan="3">{escape(result["error"])}</td></tr>\n')
            continue
        kind = ' class="alarm"' if result["is_anomaly"] else ""
        worst = result.get("worst_window")
        where = "" if worst is None else f"{worst['start']:.1f} to {worst['end']:.1f} s"
        parts.append(
            f"<tr><td>{name}</td><td{kind}>{result['score']:.6g}</td><td>{result['p_value']:.3g}</td>"
            f"<td>{where}</td></tr>\n"
        )
    parts.append("</table>\n")
    for file, result in zip(files, results, strict=True):
        if len(result.get("windows", ())) > 1:
            parts.append(f"<h2>{escape(str(file))}</h2>\n{_curve(result)}\n")
    write_text(path, "".join([*parts, "</body>\n</html>\n"]))


def _curve(result: Mapping[str, Any]) -> str:
    """Return an SVG of the windows' scores over time, with the threshold as a dashed line."""
    windows, threshold = result["windows"], result["threshold"]
    scores = [window["score"] for window in windows]
    low, high = min(0.0, *scores, threshold), max(*scores, threshold)
    end = windows[-1]["end"]

    def place(seconds: float, score: float) -> str:
        return f"{WIDTH * seconds / end:.1f},{HEIGHT * (1 - (score - low) / ((high - low) or 1.0)):.1f}"

    points = " ".join(place((window["start"] + window["end"]) / 2, window["score"]) for window in windows)
    level = place(0.0, threshold).partition(",")[2]
    worst = result["worst_window"]
    return (
        f'<svg viewBox="0 -4 {WIDTH} {HEIGHT + 8}" role="img">'
        f"<title>Scores of {len(windows)} windows over {end:.1f} s; the worst is from {worst['start']:.1f} s "
        f"to {worst['end']:.1f} s</title>"
        f'<line x1="0" x2="{WIDTH}" y1="{level}" y2="{level}" stroke="#b00020" stroke-dasharray="6 4"/>'
        f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/></svg>'
        f"<p>0 to {end:.1f} s; scores from {min(scores):.4g} to {max(scores):.4g}; "
        f"the dashed line is the threshold, {threshold:.4g}.</p>"
    )
