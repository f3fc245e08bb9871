"""The report of one system on all machines is one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ...data.dcase.names import NO_ATTRIBUTE
from ...hub.fbank import SAMPLING_RATE
from ...hub.recording import load_recording
from ...hub.whole_files import whole_file
from ..metrics.official import BootstrapInterval, MachineMetrics, bootstrap_interval, decision_metrics
from ..systems.machine_scores import MachineScores
from .figures import (
    Picture,
    band_picture,
    histogram_picture,
    overview_picture,
    percent,
    report_style,
    roc_picture,
    spectrogram_picture,
)

NOT_KNOWN = "not known"

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ max-width: 76rem; margin: 0 auto; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }}
h2 {{ font-size: 1.3rem; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem; border-top: 2px solid #0072b2; }}
h3 {{ font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }}
a {{ color: #005a8c; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0; list-style: none; }}
.headline {{ margin: 1rem 0; padding: 0.75rem 1rem; background: #eef5fa; border-left: 6px solid #0072b2; }}
.headline strong {{ display: block; font-size: 2rem; line-height: 1.2; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.35rem 0.7rem; border-bottom: 1px solid #d5d5d5; text-align: right; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; vertical-align: bottom; }}
th:first-child, table.facts td {{ text-align: left; }}
tbody th {{ font-weight: 600; }}
table.results td {{ white-space: nowrap; }}
table.results th:first-child {{ position: sticky; left: 0; background: #fff; }}
caption {{ text-align: left; padding-bottom: 0.4rem; color: #444; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }}
.clips {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }}
.stats {{ display: flex; flex-wrap: wrap; gap: 0.5rem 1.75rem; margin: 0.75rem 0 1.25rem; }}
.stats dt {{ font-size: 0.8rem; color: #444; }}
.stats dd {{ margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }}
figure {{ margin: 0; break-inside: avoid; }}
img {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
figcaption, .note {{ font-size: 0.875rem; color: #444; }}
figcaption b {{ color: #1a1a1a; }}
.missing {{ padding: 2rem 1rem; background: #f3f3f3; border: 1px dashed #888; }}
.alarm {{ color: #a33f00; font-weight: 600; }}
@media print {{ body {{ max-width: none; padding: 0; font-size: 10pt; }} section.machine {{ break-before: page; }}
  .figures {{ grid-template-columns: 1fr 1fr; }} .scroll {{ overflow: visible; }} table {{ font-size: 7.5pt; }}
  th, td {{ padding: 2pt 4pt; }} h2, h3 {{ break-after: avoid; }} .back {{ display: none; }} }}
</style>
</head>
"""

_GLOSSARY = """<section id="reading">
<h2>How to read this report</h2>
<dl>
<dt>Score</dt><dd>How unlike the normal training clips a clip sounds; higher is more anomalous. Scores of two machines
or of two systems cannot be compared.</dd>
<dt>Threshold</dt><dd>Learnt from normal training clips alone. A clip with a greater score raises an alarm: a
<em>hit</em> if it is anomalous, a <em>false alarm</em> if it is normal.</dd>
<dt>AUC source, AUC target</dt><dd>How often an anomaly (of either domain) scores above a normal clip of that domain:
50 % is guessing, 100 % is perfect, whatever the threshold. The source domain is how the machine mostly ran in training,
the target domain a condition with only a few training clips.</dd>
<dt>pAUC</dt><dd>The same for all normal clips, where at most 10 % of them raise an alarm; scaled so that guessing is
50 %.</dd>
<dt>Official score</dt><dd>Harmonic mean of AUC source, AUC target and pAUC over all machines, as in DCASE Task 2.</dd>
<dt>95 % interval</dt><dd>Range of the official score when the test clips are drawn anew with replacement ({draws}).
Systems with widely overlapping intervals are hardly told apart by this test.</dd>
<dt>Precision, recall, F1</dt><dd>Share of alarms that are hits, share of anomalies that are hits, and the harmonic mean
of both, over the test clips of both domains; 0 without any alarm.</dd>
</dl>
</section>
"""


def write_html_report(
    file: str | Path,
    system: str,
    facts: Mapping[str, str],
    machines: Sequence[MachineScores],
    seed: int = 0,
    num_worst: int = 2,
) -> Path:
    """Write the report of one system, whole or not at all, and return its path; equal input gives equal bytes.

    The report shows official numbers with bootstrap intervals, and for every machine ROC curves, score histograms, the
    band profile, and the spectrograms of the clips that were judged worst. A higher score is more anomalous. Where
    there are no labels, everything that needs them is missing. A clip that cannot be read any more is named in place of
    its picture.

    Args:
        file: the HTML file; its folder is made if missing.
        system: the title, such as "fujimura_merl_task2_3, least squares".
        facts: label -> text of the table at the top; an empty text is shown as not known.
        machines: the scores of the machines, which are shown in this order.
        seed: seed of the bootstrap.
        num_worst: number of highest-scoring normal clips, and of lowest-scoring anomalies, of each machine; without
            labels twice as many of the highest-scoring clips are shown.

    Raises:
        OSError: the file cannot be written.
        ValueError: there is no machine, or two of one name; scores or labels are not one for each clip; scores are not
            finite; or `num_worst` is below 0.
    """
    _check(machines)
    if num_worst < 0:
        raise ValueError(f"num_worst must not be negative, got {num_worst}")
    file = Path(os.path.abspath(file))
    with report_style():
        page = _page(system, facts, machines, seed, num_worst)
    with whole_file(file) as partial:
        # File names on disk need not be valid Unicode.
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return file


def _check(machines: Sequence[MachineScores]) -> None:
    names = [machine.machine for machine in machines]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"machines must be one or more with names of their own, got {names}")
    for machine in machines:
        if np.shape(machine.scores) != (len(machine.clips),) or not len(machine.clips):
            raise ValueError(
                f"machines: {machine.machine} must have one score for each of its {len(machine.clips)} clips, "
                f"got shape {np.shape(machine.scores)}"
            )
        if not np.isfinite(np.concatenate([machine.scores, machine.normal_scores])).all():
            raise ValueError(f"machines: {machine.machine} must have finite scores, got NaN or infinite ones")
        if np.isnan(machine.threshold):
            raise ValueError(f"machines: {machine.machine} must have a threshold, got NaN")
        for name in ("is_anomaly", "is_target"):
            labels = getattr(machine, name)
            if labels is not None and (np.shape(labels) != np.shape(machine.scores) or labels.dtype != bool):
                raise ValueError(
                    f"machines: {name} of {machine.machine} must be bool of shape {np.shape(machine.scores)}, "
                    f"got {labels.dtype} of shape {np.shape(labels)}"
                )


def _page(system: str, facts: Mapping[str, str], machines: Sequence[MachineScores], seed: int, num_worst: int) -> str:
    metrics = {machine.machine: _metrics(machine) for machine in machines}
    known = {machine.machine: machine.labelled_scores for machine in machines if metrics[machine.machine]}
    intervals = {name: _interval({name: known[name]}, seed) for name in known}
    parts = [
        _HEAD.format(title=escape(f"{system}: anomaly detection report")),
        f'<body>\n<header>\n<h1 id="top">{escape(system)}</h1>\n',
        _headline(_interval(known, seed) if len(known) == len(machines) else None, machines, metrics),
        _facts_table(facts),
        _contents(machines),
        '</header>\n<main>\n<section id="results">\n<h2>All machines</h2>\n',
        _figure(overview_picture(intervals), "Official score of each machine; lines: 95 % interval.") if known else "",
        _results_table(machines, metrics, intervals),
        "</section>\n",
    ]
    with logging.tqdm(total=len(machines), desc="report", unit="machine") as bar:
        for number, machine in enumerate(machines, start=1):
            name = machine.machine
            parts.append(_machine_section(number, machine, metrics[name], intervals.get(name), num_worst))
            bar.update()
    draws = f"1000 draws of the clips of every domain and label, seed {seed}"
    parts += [_GLOSSARY.format(draws=draws), "</main>\n</body>\n</html>\n"]
    return "".join(parts)


def _metrics(machine: MachineScores) -> MachineMetrics | None:
    try:
        return machine.metrics
    except ValueError:  # no labels, or not enough clips of a kind
        return None


def _interval(clips: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], seed: int) -> BootstrapInterval:
    """Compute an interval with the draws and the confidence that the page names."""
    return bootstrap_interval(clips, num_draws=1000, confidence=0.95, seed=seed)


def _headline(
    total: BootstrapInterval | None, machines: Sequence[MachineScores], metrics: Mapping[str, MachineMetrics | None]
) -> str:
    if total is not None:
        clips = sum(len(machine.clips) for machine in machines)
        value = percent(total.estimate)
        note = (
            f"95 % interval {100 * total.low:.1f} to {100 * total.high:.1f} %, "
            f"from {_count(clips, 'test clip')} of {_count(len(machines), 'machine')}."
        )
    elif all(machine.is_anomaly is None for machine in machines):
        value, note = NOT_KNOWN, "The test clips have no ground truth: nothing here says how good the system is."
    else:
        without = ", ".join(escape(name) for name, values in metrics.items() if values is None)
        value = NOT_KNOWN
        note = f"Labels that the official score needs are missing: an anomaly or normal clips of a domain of {without}."
    return f'<p class="headline">Official score <strong>{value}</strong> {note}</p>\n'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _facts_table(facts: Mapping[str, str]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(text) or NOT_KNOWN}</td></tr>\n'
        for label, text in facts.items()
    ]
    if not rows:
        return ""
    return f'<div class="scroll"><table class="facts">\n<tbody>\n{"".join(rows)}</tbody>\n</table></div>\n'


def _contents(machines: Sequence[MachineScores]) -> str:
    links = [("results", "All machines")]
    links += [(f"machine-{number}", machine.machine) for number, machine in enumerate(machines, start=1)]
    links.append(("reading", "How to read this report"))
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>\n' for target, text in links)
    return f'<nav aria-label="Contents">\n<ul>\n{items}</ul>\n</nav>\n'


def _results_table(
    machines: Sequence[MachineScores],
    metrics: Mapping[str, MachineMetrics | None],
    intervals: Mapping[str, BootstrapInterval],
) -> str:
    rows = []
    for number, machine in enumerate(machines, start=1):
        cells = _numbers(machine, metrics[machine.machine], intervals.get(machine.machine))
        row = "".join(f"<td>{value}</td>" for value in cells.values())
        rows.append(f'<tr><th scope="row"><a href="#machine-{number}">{escape(machine.machine)}</a></th>{row}</tr>\n')
    header = "".join(f'<th scope="col">{label}</th>' for label in ("machine", *cells))
    return (
        "<p>A clip with a score above the threshold of its machine raises an alarm; a higher score is more anomalous."
        "</p>\n"
        '<div class="scroll" role="region" aria-label="Results of all machines" tabindex="0">'
        '<table class="results">\n<caption>Each machine on its test clips</caption>\n'
        f"<thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def _numbers(
    machine: MachineScores, metrics: MachineMetrics | None, interval: BootstrapInterval | None
) -> dict[str, str]:
    """Write the numbers of a machine: title of a column -> text, both HTML."""
    alarm, anomaly = machine.is_alarm, machine.is_anomaly
    score = "official score [95&nbsp;%]"
    numbers = dict.fromkeys((score, "AUC source", "AUC target", "pAUC"), NOT_KNOWN)
    numbers |= {"threshold": f"{machine.threshold:.4g}", "alarms": f"{alarm.sum()} of {len(alarm)}"}
    numbers |= dict.fromkeys(("false alarms", "hits", "precision", "recall", "F1"), NOT_KNOWN)
    if metrics is not None and interval is not None:
        numbers |= {
            score: f"{percent(interval.estimate)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
            "AUC source": percent(metrics.auc_source),
            "AUC target": percent(metrics.auc_target),
            "pAUC": percent(metrics.pauc),
        }
    if anomaly is not None and not anomaly.all():
        numbers["false alarms"] = f"{(alarm & ~anomaly).sum()} of {(~anomaly).sum()}"
    if anomaly is not None and anomaly.any():
        decisions = decision_metrics(alarm, anomaly)
        numbers |= {
            "hits": f"{(alarm & anomaly).sum()} of {anomaly.sum()}",
            "precision": percent(decisions.precision),
            "recall": percent(decisions.recall),
            "F1": percent(decisions.f1),
        }
    return numbers


def _machine_section(
    number: int,
    machine: MachineScores,
    metrics: MachineMetrics | None,
    interval: BootstrapInterval | None,
    num_worst: int,
) -> str:
    numbers = _numbers(machine, metrics, interval)
    if machine.is_anomaly is None:
        numbers = {"ground truth": NOT_KNOWN, **{name: text for name, text in numbers.items() if text != NOT_KNOWN}}
    stats = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>\n" for name, text in numbers.items())
    parts = [
        f'<section class="machine" id="machine-{number}">\n<h2>{escape(machine.machine)}</h2>\n',
        f'<dl class="stats">\n{stats}</dl>\n',
        '<div class="figures">\n',
    ]
    if metrics is not None:
        parts.append(
            _figure(
                roc_picture(machine),
                "<b>ROC curves</b>, further up and left is better. Shaded: at most 10 % false alarms, where the pAUC "
                "looks.",
            )
        )
    parts.append(
        _figure(
            histogram_picture(machine),
            "<b>Scores</b>. Good systems keep anomalies to the right of the threshold and normal clips of every row to "
            "the left of it."
            if machine.is_anomaly is not None
            else "<b>Scores</b>. Clips to the right of the threshold raise an alarm.",
        )
    )
    if machine.band_scores is not None:
        parts.append(
            _figure(
                band_picture(machine),
                "<b>Band profile</b>: where in frequency the two groups of clips differ. Shaded: one standard "
                "deviation over clips.",
            )
        )
    parts.append("</div>\n")
    for title, indices in _worst(machine, num_worst).items():
        parts.append(f"<h3>{title}</h3>\n")
        clips = "".join(_clip_figure(machine, index) for index in indices)
        parts.append(f'<div class="figures clips">\n{clips}</div>\n' if clips else "<p>There are none.</p>\n")
    parts.append('<p class="note back"><a href="#top">Back to the top</a></p>\n</section>\n')
    return "".join(parts)


def _worst(machine: MachineScores, num_worst: int) -> dict[str, list[int]]:
    """Choose the clips that are shown: heading -> indices of its clips, the worst first."""
    if not num_worst:
        return {}
    falling = np.argsort(-machine.scores, kind="stable")
    if machine.is_anomaly is None:
        return {"Highest-scoring clips": falling[: 2 * num_worst].tolist()}
    normal, anomalies = falling[~machine.is_anomaly[falling]], falling[machine.is_anomaly[falling]]
    return {
        "Highest-scoring normal clips": normal[:num_worst].tolist(),
        "Lowest-scoring anomalies": anomalies[::-1][:num_worst].tolist(),
    }


def _clip_figure(machine: MachineScores, index: int) -> str:
    clip, score = machine.clips[index], machine.scores[index]
    rank = 1 + int((machine.scores > score).sum())
    verdict = "above threshold" if machine.is_alarm[index] else "below threshold"
    if machine.is_anomaly is not None:
        verdict += {
            (True, True): ", hit",
            (True, False): ', <span class="alarm">false alarm</span>',
            (False, True): ', <span class="alarm">missed</span>',
            (False, False): ", no alarm",
        }[bool(machine.is_alarm[index]), bool(machine.is_anomaly[index])]
    attributes = "none" if clip.attributes == NO_ATTRIBUTE else clip.attributes or NOT_KNOWN
    domain = NOT_KNOWN if machine.is_target is None else "target" if machine.is_target[index] else "source"
    caption = (
        f"<b>{escape(clip.path.name)}</b><br>score {score:.4g}, rank {rank} of {len(machine.scores)} (1 = most "
        f"anomalous); {verdict}<br>domain: {domain}; attributes: {escape(attributes)}"
    )
    try:
        recording = load_recording(clip.path, SAMPLING_RATE)
    except OSError:
        missing = "No picture: the file was missing or unreadable when this report was written."
        return f'<figure>\n<p class="missing">{missing}</p>\n<figcaption>{caption}</figcaption>\n</figure>\n'
    picture = spectrogram_picture(clip.path.name, np.asarray(recording.samples), recording.sampling_rate)
    return _figure(picture, caption)


def _figure(picture: Picture, caption: str) -> str:
    """Write a figure; `caption` is HTML already."""
    alt = escape(picture.alt)
    return f'<figure>\n<img src="{picture.source}" alt="{alt}">\n<figcaption>{caption}</figcaption>\n</figure>\n'
