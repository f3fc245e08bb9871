"""The offline demo: simulated machines in simulated rooms, scored four ways, with a table and a picture."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging

from .checkpoints import default_checkpoint
from .data.dcase_names import DcaseName, parse_dcase_name
from .data.two_channel_recordings import write_two_channel_dataset
from .evaluation.metrics import BootstrapInterval, MachineMetrics, bootstrap_interval, machine_metrics
from .hub.pipeline_anomaly_scoring import AnomalyScorer
from .hub.recording import load_recording

CLOSE_ONLY, LEAST_SQUARES, SUBTRACTION, NOISE_AWARE = (
    "close microphone only",
    "far cancellation, least squares",
    "far cancellation, spectral subtraction",
    "NA model",
)
BATCH_SIZE = 8


@dataclass
class Clip:
    """One WAV file of the data set and what its name says."""

    file: Path
    name: DcaseName

    @property
    def is_anomaly(self) -> bool:
        return self.name.label == "anomaly"

    @property
    def is_target(self) -> bool:
        return self.name.domain == "target"


@dataclass
class MachineResult:
    """One system on one machine: the fitted scorer and its results for the test clips, in their order."""

    scorer: AnomalyScorer
    clips: list[Clip]
    results: list[dict[str, Any]]

    @property
    def labelled_scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (higher is more anomalous), anomaly labels and target-domain labels, `(N,)` each."""
        return (
            np.array([result["score"] for result in self.results]),
            np.array([clip.is_anomaly for clip in self.clips]),
            np.array([clip.is_target for clip in self.clips]),
        )

    @property
    def metrics(self) -> MachineMetrics:
        return machine_metrics(*self.labelled_scores)


def run_demo(out: str | Path, model: str | None = None, seed: int = 0) -> dict[str, dict[str, MachineResult]]:
    """Make a data set, fit and score it with every system, print the table, save the picture.

    Args:
        out: directory; `data/` and `demo.png` are written into it, a data set of an earlier demo is replaced.
        model: checkpoint of an NA model; default the tiny one of the package.
        seed: of sounds, rooms and bootstrap draws.

    Returns:
        system -> machine -> result.

    Raises:
        OSError: the directory cannot be written, or the checkpoint cannot be read.
        ValueError: the checkpoint is not an NA model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = model or str(default_checkpoint())
    systems = _systems(checkpoint)
    data = out / "data"
    write_two_channel_dataset(data, seed=seed, overwrite=data.exists())
    clips = [Clip(file, parse_dcase_name(file)) for file in sorted(data.rglob("*.wav"))]
    machines = sorted({clip.name.machine for clip in clips})

    results: dict[str, dict[str, MachineResult]] = {system: {} for system in systems}
    with logging.tqdm(total=len(systems) * len(clips), desc="fit and score", unit="clip") as bar:
        for machine in machines:
            train = [clip for clip in clips if clip.name.machine == machine and clip.name.split == "train"]
            test = [clip for clip in clips if clip.name.machine == machine and clip.name.split == "test"]
            for system, scorer in systems.items():
                results[system][machine] = _fit_and_score(scorer, train, test)
                bar.update(len(train) + len(test))

    print(_table(results, seed))
    note = getattr(next(iter(results[NOISE_AWARE].values())).scorer.model.config, "checkpoint_note", None)
    if note:
        print(f"\nThe NA model {checkpoint_name(checkpoint)} is {note}:")
        print("its row shows that the chain works, not what noise-aware training gives.")
    picture = out / "demo.png"
    save_picture(results[NOISE_AWARE], picture)
    print(f"\nrecordings: {data}\npicture:    {picture}")
    return results


def checkpoint_name(checkpoint: str) -> str:
    return Path(checkpoint).name


def _systems(checkpoint: str) -> dict[str, AnomalyScorer]:
    logging.disable_progress_bar()
    noise_aware = AutoModel.from_pretrained(checkpoint)
    logging.enable_progress_bar()
    if not hasattr(noise_aware, "to_base"):
        raise ValueError(f"`model` must be an NA-BEATs or NA-EAT checkpoint, got type {noise_aware.config.model_type!r}.")
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    base = noise_aware.to_base()

    def scorer(model: Any, far_cancellation: str | None) -> AnomalyScorer:
        own = copy.deepcopy(extractor)
        own.far_cancellation = far_cancellation
        return AnomalyScorer(model=model, feature_extractor=own)

    return {
        CLOSE_ONLY: scorer(base, None),
        LEAST_SQUARES: scorer(base, "least_squares"),
        SUBTRACTION: scorer(base, "spectral_subtraction"),
        NOISE_AWARE: scorer(noise_aware, None),
    }


def _fit_and_score(scorer: AnomalyScorer, train: Sequence[Clip], test: list[Clip]) -> MachineResult:
    own = copy.copy(scorer)  # the model is shared, the memory is the machine's own
    own.fit([clip.file for clip in train], domains=[str(clip.name.domain) for clip in train], batch_size=BATCH_SIZE)
    return MachineResult(own, test, own([clip.file for clip in test], batch_size=BATCH_SIZE))


def _table(results: dict[str, dict[str, MachineResult]], seed: int) -> str:
    width = max(map(len, results)) + 2
    lines = [f"{'':{width}}AUC source  AUC target    pAUC   official score [95 % interval over clips]"]
    for machine in next(iter(results.values())):
        lines.append(machine)
        for system, machines in results.items():
            metrics = machines[machine].metrics
            interval = bootstrap_interval({machine: machines[machine].labelled_scores}, seed=seed)
            lines.append(
                f"  {system:{width - 2}}{100 * metrics.auc_source:10.1f}  {100 * metrics.auc_target:10.1f}"
                f"  {100 * metrics.pauc:6.1f}   {_percent(interval)}"
            )
    lines.append("all machines (harmonic mean)")
    for system, machines in results.items():
        interval = bootstrap_interval({name: one.labelled_scores for name, one in machines.items()}, seed=seed)
        lines.append(f"  {system:{width - 2}}{'':32}{_percent(interval)}")
    return "\n".join(lines)


def _percent(interval: BootstrapInterval) -> str:
    return f"{100 * interval.estimate:5.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def save_picture(machines: dict[str, MachineResult], file: str | Path) -> None:
    """Score histograms with the threshold, and the anomaly map of the most anomalous clip, as a PNG.

    Args:
        machines: machine -> result of one system.
        file: path of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(3.0 * len(machines), 8.5), layout="constrained")
    rows = figure.add_gridspec(3, len(machines), height_ratios=(1.3, 1, 1))
    for column, (machine, result) in enumerate(machines.items()):
        axis = figure.add_subplot(rows[0, column])
        scores, is_anomaly, _ = result.labelled_scores
        bins = np.linspace(min(scores.min(), result.scorer.threshold), max(scores.max(), result.scorer.threshold), 21)
        axis.hist(scores[~is_anomaly], bins, alpha=0.7, label="normal", color="tab:blue")
        axis.hist(scores[is_anomaly], bins, alpha=0.7, label="anomaly", color="tab:orange")
        axis.axvline(result.scorer.threshold, color="black", linestyle="--", label="threshold")
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axis.set(title=machine, xlabel="score (higher = more anomalous)", ylabel="test clips" if column == 0 else "")
    axis.legend()

    def most_anomalous(result: MachineResult) -> tuple[float, Clip]:
        scored = zip(result.results, result.clips, strict=True)
        # Machines have scores of different size; the excess over the threshold in its own spread compares them.
        spread = np.std([one["score"] for one in result.results])
        return max(
            (((one["score"] - result.scorer.threshold) / spread, clip) for one, clip in scored if clip.is_anomaly),
            key=lambda pair: pair[0],
        )

    result = max(machines.values(), key=lambda one: most_anomalous(one)[0])
    clip = most_anomalous(result)[1]
    recording = load_recording(clip.file, result.scorer.feature_extractor.sampling_rate)
    axis = figure.add_subplot(rows[1, :])
    close = np.asarray(recording.samples[0])
    axis.specgram(close + 1e-7, NFFT=512, noverlap=256, Fs=recording.sampling_rate, cmap="magma")
    axis.set(title=f"close microphone of {clip.name.machine}/{clip.file.name}", ylabel="frequency (Hz)")
    seconds = len(close) / recording.sampling_rate
    axis.set_xlim(0, seconds)

    axis = figure.add_subplot(rows[2, :], sharex=axis)
    anomaly_map = result.scorer.anomaly_map(clip.file).numpy()  # (T', F)
    image = axis.imshow(
        anomaly_map.T,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, -0.5, anomaly_map.shape[1] - 0.5),
        interpolation="nearest",
    )
    axis.set(title="anomaly map: distance to normal recordings", xlabel="time (s)", ylabel="mel band")
    figure.colorbar(image, ax=axis, label="band score")
    figure.savefig(file, dpi=110)
    plt.close(figure)
