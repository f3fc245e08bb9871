"""The offline demo: simulated machines in simulated rooms, scored by several systems, with a table and a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging

from .checkpoints import default_checkpoint, resolve_checkpoint
from .data.dcase.clips import DcaseClip
from .data.synthetic.machine_sounds import HEARD_MACHINE_TYPES
from .evaluation.metrics.official import BootstrapInterval, bootstrap_interval
from .evaluation.systems.embedders import Embedder, log_mel_embedder, model_embedder
from .evaluation.systems.machine_data import MachineData, list_machines, read_test_labels
from .evaluation.systems.machine_scores import MachineScores, fit_and_score
from .hub.fbank import SAMPLING_RATE
from .hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from .hub.pipeline_anomaly_scoring import AnomalyScorer
from .hub.recording import load_recording
from .hub.threshold import calibrated_threshold
from .quiet_checkpoints import quiet_checkpoints
from .simulation import write_dcase_benchmark
from .simulation.benchmark_presets import BenchmarkPreset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISE_AWARE = "NA model"
FITTED = "as na-ssl fit makes a scorer of it"
BATCH_SIZE = 8
SIZES = BenchmarkPreset(40, 4, 10, duration_s=6.0, num_rooms=1, num_places=5, num_supplemental=1)
SNR_DB = 5.0  # one for all, so that thresholds are not set in other noise than they meet
SMALLEST_DISTANCE = 1e-6  # the smallest that a histogram shows


class System(NamedTuple):
    """A row of the table, and how a machine is fitted and scored."""

    title: str
    score: Callable[[MachineData], MachineScores]


def run_demo(
    out: str | Path,
    model: str | None = None,
    seed: int = 0,
    machines: Sequence[str] = HEARD_MACHINE_TYPES,
    sizes: BenchmarkPreset = SIZES,
    show_progress: bool = True,
) -> dict[str, dict[str, MachineScores]]:
    """Make a data set of installed machines, fit and score it with every system, print the table, save the picture.

    Args:
        out: directory; `data/` and `demo.png` are written into it, and those of an earlier demo are replaced.
        model: checkpoint of a noise-aware model; `None` for the tiny one of the package.
        seed: seed of sounds, rooms and bootstrap draws.
        machines, sizes, show_progress: see [`write_dcase_benchmark`].

    Returns:
        title of a system -> name of a machine -> its scores.

    Raises:
        OSError: the directory cannot be written, or the checkpoint cannot be read.
        ValueError: the checkpoint is not a noise-aware model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = resolve_checkpoint(model or default_checkpoint())
    noise_aware, extractor = _load(checkpoint)
    data = out / "data"
    write_dcase_benchmark(
        data, sizes, seed, snr_db=SNR_DB, machines=machines, overwrite=True, show_progress=show_progress
    )

    systems = list(_systems(noise_aware, extractor))
    written = {machine.name: machine for machine in list_machines(data)}
    results: dict[str, dict[str, MachineScores]] = {system.title: {} for system in systems}
    num_clips = sum(len(machine.train) + len(machine.test) for machine in written.values())
    with logging.tqdm(total=len(systems) * num_clips, desc="fit and score", unit="clip") as bar:
        for name, machine in written.items():
            for system in systems:
                results[system.title][name] = system.score(machine)
                bar.update(len(machine.train) + len(machine.test))

    print(_table(results, seed))
    picture = out / "demo.png"
    shown = _most_anomalous(results[FITTED])
    scorer = AnomalyScorer(model=noise_aware, feature_extractor=extractor)
    heard = written[shown.name.machine]
    scorer.fit(heard.train_files, domains=heard.domains, batch_size=BATCH_SIZE, progress=None)
    anomaly_map = scorer.anomaly_map(shown.path).numpy()
    save_picture(results[FITTED], shown, anomaly_map, picture, f"{NOISE_AWARE} {Path(checkpoint).name}, {FITTED}")
    print(f"\nrecordings: {data}\npicture:    {picture}")
    return results


def _load(checkpoint: str) -> tuple[Any, TwoChannelFeatureExtractor]:
    """Load a noise-aware model, and its extractor without far-microphone cancellation."""
    with quiet_checkpoints():
        noise_aware = AutoModel.from_pretrained(checkpoint, trust_remote_code=False)
    if not hasattr(noise_aware, "to_base"):
        model_type = noise_aware.config.model_type
        raise ValueError(f"`model` must be an NA-BEATs, NA-EAT or NA-Dasheng checkpoint, got type {model_type!r}.")
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint, trust_remote_code=False)
    extractor.far_cancellation = None
    return noise_aware, extractor


def _systems(noise_aware: Any, extractor: TwoChannelFeatureExtractor) -> Iterator[System]:
    def embedded(title: str, embedder: Embedder) -> System:
        return System(title, partial(_score_machine, embedder))

    base = noise_aware.to_base()
    for title, far_cancellation in (
        ("close microphone only", None),
        ("far cancellation, least squares", "least_squares"),
        ("far cancellation, spectral subtraction", "spectral_subtraction"),
    ):
        cancelling = copy.deepcopy(extractor)
        cancelling.far_cancellation = far_cancellation
        yield embedded(title, model_embedder(title, base, cancelling, batch_size=BATCH_SIZE))
    yield embedded(NOISE_AWARE, model_embedder(NOISE_AWARE, noise_aware, extractor, batch_size=BATCH_SIZE))
    scorer = AnomalyScorer(model=noise_aware, feature_extractor=copy.deepcopy(extractor))
    yield System(FITTED, partial(_score_as_fitted, scorer))
    for title, far_cancellation in (
        ("log-mel", None),
        ("log-mel, least squares", "least_squares"),
        ("log-mel, spectral subtraction", "spectral_subtraction"),
    ):
        yield embedded(f"no network: {title}", log_mel_embedder(far_cancellation))
    without_level = log_mel_embedder("spectral_subtraction", center_level=True)
    yield embedded("no network: log-mel without level, subtraction", without_level)


def _score_machine(embedder: Embedder, machine: MachineData) -> MachineScores:
    """Fit a default memory on the training clips of a machine, and score its test clips."""
    train, test = embedder.embed(machine.train_files), embedder.embed(machine.test_files)
    normal_scores, scores, band_scores = fit_and_score(embedder.bank(), train, test, machine.domains)
    threshold, _ = calibrated_threshold(torch.from_numpy(normal_scores), "conformal", None)
    return _with_labels(machine, scores, normal_scores, threshold, band_scores)


def _score_as_fitted(scorer: AnomalyScorer, machine: MachineData) -> MachineScores:
    """Fit the pipeline on the training clips of a machine as its checkpoint advises, and score its test clips."""
    scorer.fit(machine.train_files, domains=machine.domains, batch_size=BATCH_SIZE, progress=None)
    results = scorer(machine.test_files, batch_size=BATCH_SIZE)
    assert scorer.memory_bank is not None
    assert scorer.memory_bank.calibration is not None
    scores, band_scores = (np.array([result[name] for result in results]) for name in ("score", "band_scores"))
    normal_scores = np.array(scorer.memory_bank.calibration.self_scores)
    return _with_labels(machine, scores, normal_scores, scorer.threshold, band_scores)


def _with_labels(
    machine: MachineData, scores: np.ndarray, normal_scores: np.ndarray, threshold: float, band_scores: np.ndarray
) -> MachineScores:
    is_anomaly, is_target = read_test_labels(machine)
    return MachineScores(
        machine.name, machine.test, scores, normal_scores, threshold, band_scores, is_anomaly, is_target
    )


def _table(results: Mapping[str, Mapping[str, MachineScores]], seed: int) -> str:
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


def _most_anomalous(machines: Mapping[str, MachineScores]) -> DcaseClip:
    """Find the anomaly whose score is highest in units of its machine's threshold, which makes machines comparable."""
    highest = []
    for machine in machines.values():
        scores, is_anomaly, _ = machine.labelled_scores
        ratio = np.where(is_anomaly, scores / machine.threshold, -np.inf)
        best = int(ratio.argmax())
        highest.append((float(ratio[best]), machine.clips[best]))
    return max(highest, key=lambda one: one[0])[1]


def save_picture(
    machines: Mapping[str, MachineScores], shown: DcaseClip, anomaly_map: np.ndarray, file: str | Path, title: str
) -> None:
    """Draw score histograms with the threshold, and the spectrogram and anomaly map of one clip, as a PNG.

    Args:
        machines: name of a machine -> its scores.
        shown: the clip below the histograms.
        anomaly_map: `(T', F)`, see [`AnomalyScorer.anomaly_map`].
        file: path of the PNG.
        title: title of the whole picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(3.0 * len(machines), 9), layout="constrained")
    figure.suptitle(title)
    rows = figure.add_gridspec(3, len(machines), height_ratios=(1.3, 1, 1))
    for column, machine in enumerate(machines.values()):
        axis = figure.add_subplot(rows[0, column])
        _draw_histogram(axis, machine)
        if column == 0:
            axis.set_ylabel("test clips")
            axis.legend()

    close = np.asarray(load_recording(shown.path, SAMPLING_RATE).samples[0])
    seconds = len(close) / SAMPLING_RATE
    axis = figure.add_subplot(rows[1, :])
    axis.specgram(close + 1e-7, NFFT=512, noverlap=256, Fs=SAMPLING_RATE, cmap="magma")
    axis.set(title=f"close microphone of {shown.name.machine}/{shown.path.name}", ylabel="frequency (Hz)")
    axis.set_xlim(0, seconds)

    axis = figure.add_subplot(rows[2, :], sharex=axis)
    extent = (0.0, seconds, -0.5, anomaly_map.shape[1] - 0.5)
    image = axis.imshow(anomaly_map.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    axis.set(title="anomaly map: distance to normal recordings", xlabel="time (s)", ylabel="mel band")
    figure.colorbar(image, ax=axis, label="band score")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_histogram(axis: Axes, machine: MachineScores) -> None:
    """Draw the scores of the test clips of one machine; distances span decades, so the axis is logarithmic."""
    from matplotlib.ticker import NullFormatter

    scores, is_anomaly, _ = machine.labelled_scores
    # A clip that is in the memory itself has no distance to it.
    distances = np.maximum(scores, SMALLEST_DISTANCE)
    low, high = min(distances.min(), machine.threshold), max(distances.max(), machine.threshold)
    bins = np.geomspace(low, high, 21).tolist()
    axis.hist(distances[~is_anomaly], bins, alpha=0.7, label="normal", color="tab:blue")
    axis.hist(distances[is_anomaly], bins, alpha=0.7, label="anomaly", color="tab:orange")
    axis.axvline(machine.threshold, color="black", linestyle="--", label="threshold")
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())  # there is no room for them
    axis.set(title=machine.machine, xlabel="score", ylabel="")
