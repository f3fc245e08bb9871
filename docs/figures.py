"""The figures of the pages, drawn from what the package simulates; the same seed gives the same figure.

    python docs/figures.py                  # all, into docs/pictures
    python docs/figures.py rooms memory     # some

They take about half a minute. `make docs` takes the figures as they are.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from na_ssl_hf import MemoryBank
from na_ssl_hf.data.dcase.names import DcaseName
from na_ssl_hf.data.synthetic.machine_sounds import DEFAULT_SEVERITY, synthesize_machine
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.threshold import fit_threshold
from na_ssl_hf.simulation import Site, draw_installation
from na_ssl_hf.simulation.installed_dataset import LEAST_PLACES, InstalledMachine
from na_ssl_hf.simulation.synthetic_dataset import synthesize_places

PICTURES = Path(__file__).parent / "pictures"
SEED = 0
MACHINE, SITE, CLIP_S = "valve", Site(coherence=1.0, machine_level_db=12.0, snr_db=(-5.0, -5.0)), 4.0
COLOURS = {"machine": "#d62728", "close": "#1f77b4", "far": "#2ca02c", "noise": "#7f7f7f"}
# Enough for a colour map, and a third of the bytes.
NUM_COLOURS = 96


def new_figure(height: float, *ratios: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of 8.4 in with panels side by side; it is white, so that it can be read on a dark page, too."""
    figure = Figure(figsize=(8.4, height), dpi=110, facecolor="white", layout="constrained")
    return figure, list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])


# Rooms


def rooms() -> Figure:
    """A room from above, the place of the machine in it, and how a click of the machine reaches both microphones."""
    installation, responses, _ = draw_installation("bearing", 2)
    room = installation.room
    figure, (whole, part, click) = new_figure(3.2, 1, 1.15, 1.3)
    length, width, _ = room.dimensions
    for axes in (whole, part):
        axes.add_patch(matplotlib.patches.Rectangle((0, 0), length, width, fill=False, linewidth=2))
        noises = list(zip(*(noise[:2] for noise in room.noises), strict=True))
        for label, points, marker, size in (
            ("noise", noises, "s", 60),
            ("machine", room.target[:2], "*", 180),
            ("close microphone", room.close[:2], "o", 30),
            ("far microphone", room.far[:2], "^", 60),
        ):
            axes.scatter(*points, s=size, c=COLOURS[label.split()[0]], marker=marker, label=label, zorder=2)
        axes.set(aspect="equal", xlabel="m")
    whole.set(xlim=(-0.3, length + 0.3), ylim=(-0.3, width + 0.3), ylabel="m", title="the room from above")
    x, y, _ = room.target
    part.set(xlim=(x - 0.9, x + 0.9), ylim=(y - 0.9, y + 0.9), title="around the machine")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    energy = responses.target.square().numpy()[:, : 16 * (energy_ms := 300)].reshape(2, energy_ms, 16).sum(axis=2)
    for row, name in enumerate(("close", "far")):
        level = 10 * np.log10(energy[row] / energy[0].max() + 1e-9)
        click.plot(np.arange(energy_ms), level, color=COLOURS[name], label=f"{name} microphone")
    click.set(xlim=(0, energy_ms), ylim=(-70, 3), xlabel="ms", ylabel="dB", title="a click of the machine")
    return figure


# The canceller


def installed_clips() -> dict[str, torch.Tensor]:
    """Record a valve at its place: normal clips, one clip of the test, and the machine alone in it; `(clips, 2, N)`."""
    installation, responses, gain_db = draw_installation(MACHINE, SEED, SITE)
    places = {split: synthesize_places(split, SEED, CLIP_S, LEAST_PLACES, False) for split in ("train", "test")}
    machine = InstalledMachine(installation, responses, gain_db, places, CLIP_S)
    clips = {}
    for part, split, label, count in (
        ("normal", "train", "normal", 16),
        ("test", "test", "normal", 1),
        ("alone", "supplemental", "machine", 1),
    ):
        names = [DcaseName(MACHINE, "source", split, label, index, None) for index in range(count)]
        clips[part] = torch.from_numpy(np.stack([machine.clip(name, drifted=False)[0] for name in names]))
    return clips


def canceller() -> Figure:
    """The close microphone before and after the calibrated far one was cancelled, beside the machine alone."""
    clips = installed_clips()
    far_microphone = FarMicrophone().fit(clips["normal"])
    panels = {
        "far microphone": clips["test"][0, 1],
        "close, as recorded": clips["test"][0, 0],
        "close, cancelled": far_microphone.cancel(clips["test"])[0, 0],
        "the valve without noise": clips["alone"][0, 0],
    }
    figure, axes = new_figure(2.7, 1, 1, 1, 1)
    for axis, (title, wave) in zip(axes, panels.items(), strict=True):
        window = torch.hann_window(512)
        power = torch.stft(wave, 512, 256, window=window, return_complex=True).abs().square()
        power = torch.nn.functional.avg_pool2d(power[None, :256], (2, 2))[0]
        image = axis.imshow(
            10 * torch.log10(power + 1e-9).numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, CLIP_S, 0, 8),
            cmap="magma",
            vmin=-35,
            vmax=25,
            interpolation="nearest",
        )
        axis.set(title=title, xlabel="s", xticks=[0, 2, 4], yticks=[] if axis is not axes[0] else [0, 2, 4, 6, 8])
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("kHz")
    figure.colorbar(image, ax=axes, label="dB", pad=0.01)
    return figure


# The memory


def bearings(num_clips: int, severity: float, first: int, gain: float = 1.0) -> torch.Tensor:
    """Log-mel statistics `(clips, 8, 32)` of a bearing of one second in a little noise, from the seed `first` on."""
    waves = []
    for seed in range(first, first + num_clips):
        noise = np.random.default_rng([SEED, seed]).standard_normal(SAMPLING_RATE)
        waves.append(synthesize_machine("bearing", [SEED, seed], 1.0, severity=severity) + gain * 0.003 * noise)
    return log_mel_embeddings(waves)


def memory() -> Figure:
    """The distance to the nearest normal recordings in every band, of normal and of faulty recordings."""
    bank = MemoryBank(distance="euclidean", normalize=False).fit(bearings(60, 0.0, 0))
    figure, (bars, scores) = new_figure(2.9, 1.25, 1)
    found: dict[str, np.ndarray] = {}
    usual = np.ones(8)
    for label, severity, first, colour in (
        ("normal", 0.0, 1000, "close"),
        ("faulty", DEFAULT_SEVERITY["bearing"], 2000, "machine"),
    ):
        bands = torch.as_tensor(bank.band_scores(bearings(40, severity, first))).numpy()  # (clips, 8)
        found[label] = bands.mean(axis=1)
        if label == "normal":
            usual = np.median(bands, axis=0)
        bands = bands / usual
        offset = -0.2 if label == "normal" else 0.2
        low, middle, high = np.quantile(bands, [0.1, 0.5, 0.9], axis=0)
        spread = np.stack([middle - low, high - middle])
        bars.bar(np.arange(8) + offset, middle, 0.4, color=COLOURS[colour], label=label, yerr=spread, capsize=2)
    bars.set(xlabel="frequency band, low to high", ylabel="distance, usual = 1", xticks=range(8))
    bars.set_title("every band has a memory of its own", fontsize=10)
    bars.legend(fontsize=8)
    threshold = fit_threshold(bank.self_scores(exact=True), false_alarm_rate=0.05)
    edges = np.linspace(min(map(np.min, found.values())), max(map(np.max, found.values())), 30)
    for label, colour in (("normal", "close"), ("faulty", "machine")):
        scores.hist(found[label], edges, color=COLOURS[colour], alpha=0.7, label=label)
    scores.axvline(threshold, color="black", linestyle="--", label="threshold")
    scores.set(xlabel="score: mean over the bands", ylabel="recordings")
    scores.set_title("the score is their mean", fontsize=10)
    scores.legend(fontsize=8)
    return figure


# The threshold


def threshold() -> Figure:
    """What a stated false-alarm rate holds for: new normal recordings of the same conditions, and not of others."""
    normal, louder = bearings(360, 0.0, 5000), bearings(120, 0.0, 9000, gain=1.4)
    rates = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
    shares = []
    random = np.random.default_rng(SEED)
    for _ in range(20):
        order = random.permutation(len(normal))
        bank = MemoryBank(distance="euclidean", normalize=False).fit(normal[order[:60]])
        own = bank.self_scores(exact=True)
        levels = torch.tensor([fit_threshold(own, false_alarm_rate=float(rate)) for rate in rates])
        new = [torch.as_tensor(bank.score(clips)) for clips in (normal[order[60:]], louder)]
        shares.append([(scores[:, None] > levels).double().mean(dim=0).numpy() for scores in new])
    shares = 100 * np.array(shares)  # (memories, 2, rates)
    figure, (left, right) = new_figure(3.0, 1, 1)
    ordered = np.sort(own.numpy())
    places = 100 * np.arange(1, len(ordered) + 1) / (len(ordered) + 1)
    left.step(ordered, places, where="post", color=COLOURS["close"])
    left.axvline(float(levels[1]), color="black", linestyle="--")
    left.axhline(95, color="black", linewidth=0.5)
    left.text(float(levels[1]), 8, "threshold  ", ha="right")
    left.set(xlabel="score of a normal recording, without itself", ylabel="% of the scores below", ylim=(0, 101))
    left.set_title("5 %: the threshold is above 95 %", fontsize=10)
    for index, (title, colour) in enumerate((("same conditions", "close"), ("noise 3 dB louder", "machine"))):
        low, middle, high = np.quantile(shares[:, index], [0.025, 0.5, 0.975], axis=0)
        spread = np.stack([middle - low, high - middle])
        right.errorbar(
            100 * rates, shares[:, index].mean(axis=0), spread, marker="o", color=COLOURS[colour], label=title
        )
    right.plot([0, 32], [0, 32], color="grey", linestyle=":", label="as stated")
    right.set(xlabel="stated false-alarm rate in %", ylabel="normal recordings that alarm in %", ylim=(0, 100))
    right.set_title("20 memories of 60 recordings", fontsize=10)
    right.legend(fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "rooms": rooms,
    "canceller": canceller,
    "memory": memory,
    "threshold": threshold,
}


def png_of(figure: Figure) -> bytes:
    """Draw a figure with few colours, so that the file is small."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Draw the figures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"figures: {', '.join(FIGURES)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"NAME must be one of {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for name in options.names or FIGURES:
        path = PICTURES / f"{name}.png"
        path.write_bytes(png_of(FIGURES[name]()))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
