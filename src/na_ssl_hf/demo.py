"""The offline demo: simulated machines in simulated rooms, scored by several systems, with a table and a picture."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging

from .checkpoints import default_checkpoint, resolve_checkpoint
from .data.dcase.names import DcaseName, parse_dcase_name
from .evaluation.metrics.official import BootstrapInterval, MachineMetrics, bootstrap_interval, machine_metrics
from .evaluation.systems.embedders import log_mel_embedder
from .hub.pipeline_anomaly_scoring import AnomalyScorer
from .hub.recording import load_recording
from .quiet_checkpoints import quiet_checkpoints
from .simulation.synthetic_dataset import SAMPLING_RATE, write_two_channel_dataset

NOISE_AWARE = "NA model"
BATCH_SIZE = 8
SMALLEST_DISTANCE = 1e-6  # of a histogram


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
    """One system on one machine.

    Attributes:
        clips: the test clips.
        scores: `(N,)`, one for each clip; higher is more anomalous.
        scorer: the fitted scorer, where the system is one.
    """

    clips: list[Clip]
    scores: np.ndarray
    scorer: AnomalyScorer | None = None

    @property
    def labelled_scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, anomaly labels and target-domain labels, `(N,)` each."""
        is_anomaly = np.array([clip.is_anomaly for clip in self.clips])
        return self.scores, is_anomaly, np.array([clip.is_target for clip in self.clips])

    @property
    def metrics(self) -> MachineMetrics:
        return machine_metrics(*self.labelled_scores)


System = Callable[[list[Clip], list[Clip]], MachineResult]


def run_demo(
    out: str | Path, model: str | None = None, seed: int = 0, **dataset: Any
) -> dict[str, dict[str, MachineResult]]:
    """Make a data set, fit and score it with every system, print the table, save the picture.

    Args:
        out: directory; `data/`, `clean/` (the same clips without noise) and `demo.png` are written into it, those of
            an earlier demo are replaced.
        model: checkpoint of an NA model; default the tiny one of the package.
        seed: of sounds, rooms and bootstrap draws.
        **dataset: other sizes of the data set, see [`write_two_channel_dataset`].

    Returns:
        system -> machine -> result.

    Raises:
        OSError: the directory cannot be written, or the checkpoint cannot be read.
        ValueError: the checkpoint is not an NA model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = resolve_checkpoint(model or default_checkpoint())
    data, clean = out / "data", out / "clean"
    write_two_channel_dataset(data, seed=seed, clean_root=clean, overwrite=True, **dataset)
    clips = [Clip(file, parse_dcase_name(file)) for file in sorted(data.rglob("*.wav"))]
    systems = _systems(checkpoint, data, clean)
    machines = sorted({clip.name.machine for clip in clips})

    results: dict[str, dict[str, MachineResult]] = {system: {} for system in systems}
    with logging.tqdm(total=len(systems) * len(clips), desc="fit and score", unit="clip") as bar:
        for machine in machines:
            train = [clip for clip in clips if clip.name.machine == machine and clip.name.split == "train"]
            test = [clip for clip in clips if clip.name.machine == machine and clip.name.split == "test"]
            for system, run in systems.items():
                results[system][machine] = run(train, test)
                bar.update(len(train) + len(test))

    print(_table(results, seed))
    picture = out / "demo.png"
    save_picture(results[NOISE_AWARE], picture, f"{NOISE_AWARE} {Path(checkpoint).name}")
    print(f"\nrecordings: {data}\npicture:    {picture}")
    return results


def _systems(checkpoint: str, data: Path, clean: Path) -> dict[str, System]:
    with quiet_checkpoints():
        noise_aware = AutoModel.from_pretrained(checkpoint)
    if not hasattr(noise_aware, "to_base"):
        model_type = noise_aware.config.model_type
        raise ValueError(f"`model` must be an NA-BEATs or NA-EAT checkpoint, got type {model_type!r}.")
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    base = noise_aware.to_base()
    return {
        "close microphone only": _network(base, extractor, None),
        "far cancellation, least squares": _network(base, extractor, "least_squares"),
        "far cancellation, spectral subtraction": _network(base, extractor, "spectral_subtraction"),
        NOISE_AWARE: _network(noise_aware, extractor, None),
        "no network: log-mel": _log_mel(None),
        "no network: log-mel, least squares": _log_mel("least_squares"),
        "no network: log-mel, spectral subtraction": _log_mel("spectral_subtraction"),
        "no network: log-mel without level, subtraction": _log_mel("spectral_subtraction", center_level=True),
        "no network: log-mel of the clean target": _log_mel(None, locate=lambda file: clean / file.relative_to(data)),
    }


def _network(model: Any, extractor: Any, far_cancellation: str | None) -> System:
    extractor = copy.deepcopy(extractor)
    extractor.far_cancellation = far_cancellation

    def run(train: list[Clip], test: list[Clip]) -> MachineResult:
        scorer = AnomalyScorer(model=model, feature_extractor=extractor)
        domains = [str(clip.name.domain) for clip in train]
        scorer.fit([clip.file for clip in train], domains=domains, batch_size=BATCH_SIZE, progress=None)
        results: Any = scorer([clip.file for clip in test], batch_size=BATCH_SIZE)
        return MachineResult(test, np.array([result["score"] for result in results]), scorer)

    return run


def _log_mel(
    far_cancellation: str | None,
    center_level: bool = False,
    locate: Callable[[Path], Path] = lambda file: file,
) -> System:
    frontend = log_mel_embedder(far_cancellation, center_level)

    def run(train: list[Clip], test: list[Clip]) -> MachineResult:
        embeddings = [frontend.embed([locate(clip.file) for clip in clips]) for clips in (train, test)]
        bank = frontend.bank().fit(embeddings[0])
        return MachineResult(test, bank.score(embeddings[1]).numpy())

    return run


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


def save_picture(machines: dict[str, MachineResult], file: str | Path, title: str) -> None:
    """Score histograms with the threshold, and the anomaly map of one anomalous clip, as a PNG.

    Args:
        machines: machine -> result of a system that has a scorer.
        file: path of the PNG.
        title: of the whole picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure = plt.figure(figsize=(3.0 * len(machines), 9), layout="constrained")
    figure.suptitle(title)
    rows = figure.add_gridspec(3, len(machines), height_ratios=(1.3, 1, 1))
    shown: tuple[float, AnomalyScorer, Clip] | None = None
    for column, (machine, result) in enumerate(machines.items()):
        scorer = result.scorer
        assert scorer is not None
        scores, is_anomaly, _ = result.labelled_scores
        # Distances span decades; a clip that is in the memory itself has none.
        distances = np.maximum(scores, SMALLEST_DISTANCE)
        low, high = min(distances.min(), scorer.threshold), max(distances.max(), scorer.threshold)
        bins = np.geomspace(low, high, 21).tolist()
        axis = figure.add_subplot(rows[0, column])
        axis.hist(distances[~is_anomaly], bins, alpha=0.7, label="normal", color="tab:blue")
        axis.hist(distances[is_anomaly], bins, alpha=0.7, label="anomaly", color="tab:orange")
        axis.axvline(scorer.threshold, color="black", linestyle="--", label="threshold")
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())  # there is no room
        axis.set(title=machine, xlabel="score", ylabel="test clips" if column == 0 else "")
        if column == 0:
            axis.legend()
        # Scores of two machines differ in size: their ratio to the threshold compares them.
        ratio = np.where(is_anomaly, scores / scorer.threshold, -np.inf)
        best = int(ratio.argmax())
        if shown is None or ratio[best] > shown[0]:
            shown = (float(ratio[best]), scorer, result.clips[best])

    assert shown is not None
    _, scorer, clip = shown
    close = np.asarray(load_recording(clip.file, SAMPLING_RATE).samples[0])
    seconds = len(close) / SAMPLING_RATE
    axis = figure.add_subplot(rows[1, :])
    axis.specgram(close + 1e-7, NFFT=512, noverlap=256, Fs=SAMPLING_RATE, cmap="magma")
    axis.set(title=f"close microphone of {clip.name.machine}/{clip.file.name}", ylabel="frequency (Hz)")
    axis.set_xlim(0, seconds)

    axis = figure.add_subplot(rows[2, :], sharex=axis)
    anomaly_map = scorer.anomaly_map(clip.file).numpy()  # (T', F)
    extent = (0.0, seconds, -0.5, anomaly_map.shape[1] - 0.5)
    image = axis.imshow(anomaly_map.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    axis.set(title="anomaly map: distance to normal recordings", xlabel="time (s)", ylabel="mel band")
    figure.colorbar(image, ax=axis, label="band score")
    figure.savefig(file, dpi=110)
    plt.close(figure)
