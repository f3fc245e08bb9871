"""The pictures of the HTML report are SVG in data URIs with alternative texts, drawn without any state of pyplot.

Letters: M test clips, N training clips, F bands, C channels, K frequency rows, T time columns, or rows of a map.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..metrics.official import MAX_FALSE_POSITIVE_RATE, BootstrapInterval
from ..systems.machine_scores import MachineScores

# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart, also on grey prints.
NORMAL, ANOMALY, TARGET, NEUTRAL = "#0072b2", "#d55e00", "#009e73", "#777777"
WIDTH = 4.4  # inches, about the width of the picture on a phone, so that 9 pt stay readable

# Every figure must be drawn inside it: the style of the user has no influence then, and equal input gives equal bytes.
report_style = partial(
    style.context,
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 9,
        "grid.alpha": 0.3,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "na-ssl",
        "text.parse_math": False,
    },
    after_reset=True,
)

_FFT, _HOP = 1024, 512
_MAX_COLUMNS, _ROWS = 240, 96
_RANGE_DB = 60.0


@dataclass(frozen=True)
class Picture:
    """A data URI for `src`, and the text for readers who do not see the picture."""

    source: str
    alt: str


def percent(value: float) -> str:
    """Write a share in percent: 0.7125 becomes "71.2 %"."""
    return f"{100 * value:.1f} %"


def overview_picture(intervals: Mapping[str, BootstrapInterval]) -> Picture:
    """Draw the official score of every machine with its interval, in percent."""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.27 * len(intervals)), layout="constrained")
    axis = figure.add_subplot()
    for row, interval in enumerate(intervals.values()):
        axis.plot([100 * interval.low, 100 * interval.high], [row, row], color=NORMAL, linewidth=2, alpha=0.5)
        axis.plot(100 * interval.estimate, row, "o", color=NORMAL)
    axis.axvline(50, color="black", linestyle=":", linewidth=1)
    axis.set(xlim=(0, 100), xlabel="official score (%), dotted: guessing")
    axis.set_yticks(range(len(intervals)), list(intervals))
    axis.invert_yaxis()
    numbers = "; ".join(
        f"{machine} {percent(one.estimate)}, {percent(one.low)} to {percent(one.high)}"
        for machine, one in intervals.items()
    )
    return Picture(_data_uri(figure), f"Official score of each machine with its 95 % interval: {numbers}.")


def roc_points(scores: np.ndarray, is_anomaly: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the false and the true positive rate, `(P,)` each, from (0, 0) to (1, 1) a point for each score."""
    limits = np.unique(scores)[::-1]
    rates = [
        np.append(0.0, 1.0 - np.searchsorted(np.sort(scores[members]), limits) / members.sum())
        for members in (~is_anomaly, is_anomaly)
    ]
    return rates[0], rates[1]


def roc_picture(machine: MachineScores) -> Picture:
    """Draw ROC curves: normal clips of each domain, and of both, against all anomalies.

    Raises:
        ValueError: the metrics are undefined.
    """
    scores, is_anomaly, is_target = machine.labelled_scores
    metrics = machine.metrics
    figure, (axis,) = _subplots(3.6)
    false_alarms, hits = roc_points(scores, is_anomaly)
    inside = false_alarms < MAX_FALSE_POSITIVE_RATE
    edge = np.interp(MAX_FALSE_POSITIVE_RATE, false_alarms, hits)
    region = np.append(false_alarms[inside], MAX_FALSE_POSITIVE_RATE), np.append(hits[inside], edge)
    axis.fill_between(*region, color=NEUTRAL, alpha=0.35, linewidth=0)
    axis.axvline(MAX_FALSE_POSITIVE_RATE, color=NEUTRAL, linewidth=0.8)
    axis.plot(false_alarms, hits, "--", color=NEUTRAL, linewidth=1, label=f"both, pAUC {percent(metrics.pauc)}")
    for name, domain, colour, auc in (
        ("source", ~is_target, NORMAL, metrics.auc_source),
        ("target", is_target, TARGET, metrics.auc_target),
    ):
        chosen = is_anomaly | domain
        curve = roc_points(scores[chosen], is_anomaly[chosen])
        axis.plot(*curve, color=colour, linewidth=1.8, label=f"{name}, AUC {percent(auc)}")
    axis.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="guessing")
    axis.set(xlabel="false alarms among normal clips", ylabel="hits among anomalies", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(title="normal clips of", loc="lower right", frameon=True, title_fontsize=8)
    alt = (
        f"ROC curves of {machine.machine}: AUC source {percent(metrics.auc_source)}, "
        f"AUC target {percent(metrics.auc_target)}, pAUC {percent(metrics.pauc)}."
    )
    return Picture(_data_uri(figure), alt)


def histogram_picture(machine: MachineScores) -> Picture:
    """Draw histograms of the scores of training clips, and of test clips by domain and label where these are known."""
    groups = _histogram_groups(machine)
    bins = np.histogram_bin_edges(np.concatenate([machine.scores, machine.normal_scores]), bins=30).tolist()
    figure, axes = _subplots(3.6, rows=len(groups))
    alt = []
    for axis, (title, members) in zip(axes, groups.items(), strict=True):
        for label, colour, scores in members:
            axis.hist(scores, bins, color=colour, alpha=0.4)
            axis.hist(scores, bins, color=colour, histtype="step", label=f"{label} ({len(scores)})")
            if len(scores):
                alt.append(f"{title}, {label}: {len(scores)} clips, median {np.median(scores):.4g}")
        if math.isfinite(machine.threshold):
            axis.axvline(machine.threshold, color="black", linestyle="--", linewidth=1)
        axis.set_title(title, loc="left", fontsize=9)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        # Beside the title, where it hides neither bars nor threshold.
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, borderpad=0.0, handlelength=1.2)
    axes[-1].set_xlabel("score; dashed: threshold")
    figure.supylabel("clips", fontsize=9, x=0.03)
    return Picture(
        _data_uri(figure),
        f"Score histograms of {machine.machine}, threshold {machine.threshold:.4g}. {'; '.join(alt)}.",
    )


def _histogram_groups(machine: MachineScores) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """Group the scores: title of a row -> its (label, colour, scores)."""
    groups = {"training": [("normal", NORMAL, machine.normal_scores)]}
    domains = {"test": np.ones(len(machine.scores), dtype=bool)}
    if machine.is_target is not None:
        domains = {"test, source domain": ~machine.is_target, "test, target domain": machine.is_target}
    for title, domain in domains.items():
        if machine.is_anomaly is None:
            groups[title] = [("no ground truth", NEUTRAL, machine.scores[domain])]
        else:
            groups[title] = [
                ("normal", NORMAL, machine.scores[domain & ~machine.is_anomaly]),
                ("anomaly", ANOMALY, machine.scores[domain & machine.is_anomaly]),
            ]
    return groups


def band_picture(machine: MachineScores) -> Picture:
    """Draw mean and deviation of every band's score; without labels, clips with and without alarm are compared."""
    assert machine.band_scores is not None
    if machine.is_anomaly is None:
        names, members = ("below threshold", "above threshold"), machine.is_alarm
    else:
        names, members = ("normal", "anomaly"), machine.is_anomaly
    figure, (axis,) = _subplots(3.6)
    bands = np.arange(1, machine.band_scores.shape[1] + 1)
    alt = []
    for name, chosen, colour, marker in zip(names, (~members, members), (NORMAL, ANOMALY), "os", strict=True):
        if chosen.any():
            mean, spread = machine.band_scores[chosen].mean(axis=0), machine.band_scores[chosen].std(axis=0)
            axis.fill_between(bands, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
            axis.plot(bands, mean, f"{marker}-", color=colour, markersize=4, label=f"{name} ({chosen.sum()})")
            alt.append(f"{name}: {', '.join(f'{value:.3g}' for value in mean)}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    axis.set(xlabel="frequency band, low to high", ylabel="band score, mean ± std")
    axis.legend()
    return Picture(
        _data_uri(figure), f"Mean band scores of {machine.machine}, low to high frequency. {'; '.join(alt)}."
    )


def spectrogram_picture(name: str, samples: np.ndarray, sampling_rate: int) -> Picture:
    """Draw spectrograms of all channels `(C, N)` on one colour scale, in dB of a full-scale sine, on a mel axis."""
    channels = {1: ("the only channel",), 2: ("close microphone", "far microphone")}.get(
        len(samples), tuple(f"channel {number}" for number in range(1, len(samples) + 1))
    )
    seconds = samples.shape[1] / sampling_rate
    levels = [_mel_levels(channel, sampling_rate) for channel in samples]  # (K, T) each
    # The scale leaves out the highest values, because a single click would make everything else dark.
    highest = 5.0 * math.ceil(max(np.percentile(level, 99.5) for level in levels) / 5.0)
    figure, axes = _subplots(0.8 + 1.35 * len(samples), rows=len(samples), right=0.55)
    top = _mel(sampling_rate / 2)
    for axis, level, title in zip(axes, levels, channels, strict=True):
        image = axis.imshow(
            # Rounding to whole dB halves the size of the file, and the difference is not visible.
            np.round(level),
            origin="lower",
            aspect="auto",
            extent=(0.0, seconds, 0.0, top),
            cmap="magma",
            vmin=highest - _RANGE_DB,
            vmax=highest,
            interpolation="none",
        )
        ticks = [hertz for hertz in (200, 500, 1000, 2000, 4000, 8000, 16000) if hertz <= sampling_rate / 2]
        axis.set_yticks([_mel(hertz) for hertz in ticks], [f"{hertz / 1000:g}" for hertz in ticks])
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(visible=False)
    axes[-1].set_xlabel("time (s)")
    figure.supylabel("frequency (kHz)", fontsize=9, x=0.03)
    figure.colorbar(
        image, ax=axes, fraction=0.06, aspect=30, label="level (dB)", pad=0.02, extend="both", extendfrac=0.02
    )
    volumes = 10 * np.log10(np.mean(np.square(samples, dtype=np.float64), axis=1) + 1e-12)
    loudness = ", ".join(f"{title} {volume:.1f} dB" for title, volume in zip(channels, volumes, strict=True))
    alt = f"Spectrograms of {name}, {seconds:.1f} s; mean level of full scale: {loudness}."
    return Picture(_data_uri(figure), alt)


def anomaly_map_picture(name: str, anomaly_map: np.ndarray, seconds: float, highest: float) -> Picture:
    """Draw where in time and frequency a recording deviates from the normal ones.

    Args:
        name: of the recording.
        anomaly_map: `(T, F)`, see [`AnomalyScorer.anomaly_map`]; higher is more anomalous.
        seconds: the time of the T rows together.
        highest: the value of the brightest colour; 0 is the darkest one.
    """
    figure, (axis,) = _subplots(2.6, right=0.55)
    image = axis.imshow(
        anomaly_map.T,
        origin="lower",
        aspect="auto",
        extent=(0.0, seconds, 0.5, anomaly_map.shape[1] + 0.5),
        cmap="magma",
        vmin=0.0,
        vmax=highest,
        interpolation="none",
    )
    axis.set_title("distance to the normal recordings", loc="left", fontsize=9)
    axis.set(xlabel="time (s)", ylabel="frequency band, low to high")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=False)
    scale = figure.colorbar(image, ax=axis, fraction=0.06, aspect=30, pad=0.02, extend="max", extendfrac=0.02)
    scale.formatter.set_powerlimits((-2, 3))  # type: ignore[attr-defined] # a ScalarFormatter, by default
    row, band = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    at = (row + 0.5) * seconds / len(anomaly_map)
    alt = (
        f"Anomaly map of {name}: largest distance to the normal recordings {anomaly_map.max():.3g}, at {at:.1f} s in "
        f"band {band + 1} of {anomaly_map.shape[1]}, counted from low frequencies; scale from 0 to {highest:.3g}."
    )
    return Picture(_data_uri(figure), alt)


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def _mel_levels(channel: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Compute the mean power in mel-spaced rows and at most _MAX_COLUMNS columns, in dB: `(N,)` -> `(K, T)`."""
    padded = np.pad(channel.astype(np.float64), (0, max(0, _FFT - len(channel))))
    window = np.hanning(_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP] * window  # (frames, _FFT)
    power = np.abs(2.0 / window.sum() * np.fft.rfft(frames)) ** 2  # (frames, bins)
    starts = np.arange(0, len(power), math.ceil(len(power) / _MAX_COLUMNS))
    power = np.add.reduceat(power, starts, axis=0) / np.diff(starts, append=len(power))[:, None]  # (T, bins)
    hertz = 700.0 * (10.0 ** (np.linspace(0.0, _mel(sampling_rate / 2), _ROWS + 1) / 2595.0) - 1.0)
    edges = np.minimum(hertz / sampling_rate * _FFT, power.shape[1] - 1).astype(int)
    # At high sampling rates a row can be narrower than a bin; it then repeats the bin.
    width = np.maximum(1, np.diff(edges))
    return 10.0 * np.log10(np.add.reduceat(power, edges[:-1], axis=1) / width + 1e-12).T


def _subplots(height: float, rows: int = 1, right: float = 0.15) -> tuple[Figure, list[Axes]]:
    """Make a figure of `height` inches with fixed margins, as fitting them to the texts takes as long as drawing."""
    figure = Figure(figsize=(WIDTH, height))
    margins = {"left": 0.75 / WIDTH, "right": 1 - right / WIDTH, "bottom": 0.45 / height, "top": 1 - 0.25 / height}
    axes = figure.subplots(rows, sharex=True, squeeze=False, gridspec_kw={**margins, "hspace": 0.35})
    return figure, list(axes[:, 0])


def _data_uri(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    # The text is percent-encoded, because base64 would encode the images inside it, which are base64, once more.
    return "data:image/svg+xml," + quote(svg[svg.index("<svg") :], safe=" /;,=()+-'!$*@?")
