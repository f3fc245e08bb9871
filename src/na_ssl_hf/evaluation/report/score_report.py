"""An HTML page of scored recordings: a table, curves of those that were cut, and what the far microphone does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...hub.far_microphone import CancelledBand, FarMicrophone
from ...tables import write_text

# The size of a curve in pixels.
WIDTH, HEIGHT = 720, 120
# The least that the height of a bar chart stands for, in dB, so that a band of 1 dB does not look like much.
_LEAST_SCALE_DB = 10.0

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
    path: str | os.PathLike[str],
    files: Sequence[str | Path],
    results: Sequence[Mapping[str, Any]],
    far_microphone: FarMicrophone | None = None,
) -> None:
    """Write the page, whole or not at all; it needs no other file.

    Args:
        path: the HTML file.
        files: the recordings.
        results: what the scorer said of each, with `errors="return"`.
        far_microphone: the calibrated one of the scorer; the page shows how much of the noise its filter takes.

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
    if far_microphone is not None:
        parts.append(_far_microphone_section(far_microphone))
    write_text(path, "".join([*parts, "</body>\n</html>\n"]))


def describe_far_microphone(far_microphone: FarMicrophone) -> str:
    """Return one line that says what a calibrated far microphone does to the close one."""
    stages = "a filter, then subtraction of what it leaves" if far_microphone.slope_.any() else "a filter"
    nothing = "nothing: it does not hear the noise, or hears the machine first"
    done = stages if far_microphone.method_ in ("installation", "filter") else nothing
    return f"far microphone, calibrated on {far_microphone.num_seconds_:.0f} s: {done}"


def _far_microphone_section(far_microphone: FarMicrophone) -> str:
    bands = far_microphone.report()
    rows = [
        f"<tr><td>{band.low:.0f} to {band.high:.0f} Hz</td><td>{band.cancelled_db:.1f} dB</td>"
        f"<td>{band.coherence:.2f}</td></tr>\n"
        for band in bands
    ]
    return (
        f"<h2>Far microphone</h2>\n<p>{escape(describe_far_microphone(far_microphone).capitalize())}.</p>\n"
        f"{_bars(bands)}\n<table>\n<tr><th>band</th><th>noise that the filter takes</th><th>coherence</th></tr>\n"
        f"{''.join(rows)}</table>\n"
    )


def _bars(bands: Sequence[CancelledBand]) -> str:
    """Return an SVG with a bar for each band, whose height is the dB cancelled; below the line it is louder instead."""
    values = [band.cancelled_db for band in bands]
    high, low = max(_LEAST_SCALE_DB, *values), min(0.0, *values)
    width, unit = WIDTH / len(bands), HEIGHT / (high - low)
    bars = "".join(
        f'<rect x="{(place + 0.1) * width:.1f}" y="{unit * (high - max(value, 0.0)):.1f}" width="{0.8 * width:.1f}" '
        f'height="{unit * abs(value):.1f}" fill="{"#1f5fa8" if value >= 0 else "#b00020"}">'
        f"<title>{band.low:.0f} to {band.high:.0f} Hz: {value:.1f} dB</title></rect>"
        for place, (band, value) in enumerate(zip(bands, values, strict=True))
    )
    zero = f"{unit * high:.1f}"
    return (
        f'<svg viewBox="0 -4 {WIDTH} {HEIGHT + 8}" role="img"><title>Noise that the filter takes from the close '
        f"microphone in {len(bands)} frequency bands, in dB; the full height is {high - low:.0f} dB</title>"
        f'<line x1="0" x2="{WIDTH}" y1="{zero}" y2="{zero}" stroke="#222"/>{bars}</svg>'
    )


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
