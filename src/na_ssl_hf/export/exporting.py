"""A fitted scorer becomes a folder that scores without torch, and proves that its scores stayed.

Letters: B recordings, N samples, F frequency bands, D channels.
"""

import copy
import json
import os
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..hub.far_microphone import FarMicrophone
from ..hub.layer_choice import LayerChoice
from ..hub.memory_bank import MemoryBank
from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..hub.pooling import POOLING_PARAMETERS
from ..hub.recorded_bands import num_recorded_bands
from ..hub.recording import Windows
from ..hub.threshold import Calibration
from ..hub.whole_files import whole_folder
from .card import card
from .chain import ScoringChain
from .onnx_graph import DEFAULT_OPSET, check_opset, export_onnx
from .openvino_graph import import_openvino, write_openvino
from .proof import Proof, auc, compare_scores, time_ratio
from .quantise import QUANTISERS, import_quantiser, quantise_onnx

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
FORMATS = {"onnx": "model.onnx", "openvino": "model.xml"}


@dataclass(frozen=True)
class ProofRecordings:
    """The recordings on which an export is proven.

    Attributes:
        normal: normal recordings, those that the scorer was fitted with or others of the same kind.
        domains, groups: of each, as for [`AnomalyScorer.fit`]; `None` where the scorer was fitted without.
        labelled: further recordings that are known to be normal or anomalous.
        is_anomalous: of each of them.
    """

    normal: Sequence[Any]
    domains: Sequence[str] | None = None
    groups: Sequence[Hashable] | None = None
    labelled: Sequence[Any] = ()
    is_anomalous: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if len(self.labelled) != len(self.is_anomalous):
            raise ValueError(
                f"`is_anomalous` must have one entry for each of the {len(self.labelled)} labelled recordings, "
                f"got {len(self.is_anomalous)}."
            )
        if self.labelled and len(set(map(bool, self.is_anomalous))) < 2:
            kind = "anomalous" if self.is_anomalous[0] else "normal"
            raise ValueError(f"`labelled` must hold normal and anomalous recordings, got {kind} ones only.")


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it is.
        proof: its figures; `None` without recordings.
        num_samples: the one length that the graph takes, in samples; `None` for any.
    """

    folder: Path
    proof: Proof | None
    num_samples: int | None


@torch.no_grad()
def export_scorer(
    scorer: AnomalyScorer,
    folder: str | os.PathLike[str],
    recordings: ProofRecordings | None,
    to: str = "onnx",
    int8: str | None = None,
    max_drop: float = 1.0,
    opset: int = DEFAULT_OPSET,
    progress: str | None = None,
) -> Exported:
    """Write a fitted scorer as graph, memory, settings and card, all or nothing.

    The graph holds the chain from waveforms `(2, N)` at the extractor's rate to band vectors `(F, D)`: level, log-mel
    frames, encoder, layers and pooling. The package na-ssl-edge scores with it. With `int8` the weights of the encoder
    have 8 bits, and memory and threshold are fitted anew, because vectors of a quantised model drift away from a memory
    in float32.

    Args:
        scorer: a fitted scorer; it is not changed.
        folder: created, or replaced, when the export is proven.
        recordings: those of the proof; `None` writes a folder that says that it is not proven.
        to: "onnx" or "openvino".
        int8: `None`, or how the encoder is quantised, see [`quantise_onnx`]: "weights" rounds its weights alone,
            "products" its matrix products, with "onnx" only. Both need `recordings`.
        max_drop: the largest drop that is accepted, in percent: of the AUC with labelled recordings, else of the rank
            correlation from 1.
        opset: the version of ONNX's operators.
        progress: label of progress bars; `None` for none.

    Raises:
        ValueError: the scorer is not fitted or cannot be exported, a package is missing, an argument is out of its
            range, or scores drop by more than `max_drop`; nothing is written then.
        OSError: a recording cannot be read, or the folder cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"`to` must be one of {list(FORMATS)}, got {to!r}.")
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop <= 100:
        raise ValueError(f"`max_drop` must be a number of percent in [0, 100], got {max_drop!r}.")
    _check_int8(int8, to, recordings is not None)
    load_graph = _check_packages(to, int8)
    check_opset(opset)
    _ = scorer.threshold  # says whether the memory is there and belongs to the model
    bank = scorer.memory_bank
    assert bank is not None
    assert bank.calibration is not None
    if int8 is not None and bank.calibration.num_groups and (recordings is None or recordings.groups is None):
        raise ValueError("`groups` must be given with int8 for a scorer whose threshold was set with groups, got None.")
    _check_destination(Path(folder))
    chain = ScoringChain(scorer, bank.calibration)
    with whole_folder(folder) as staging:
        lengths = _lengths(scorer, recordings, bank.calibration)
        num_samples, num_quantised = _write_graph(chain, staging, to, int8, lengths, _most_samples(scorer), opset)
        graph = load_graph(staging / FORMATS[to], to, 1)
        is_int8, refitted = int8 is not None, None
        if recordings is not None:
            refitted = _fitted_with(scorer, recordings, _by_graph(graph), is_int8, progress)
        kept = refitted if is_int8 and refitted is not None else bank
        settings = _settings(scorer, chain, kept, to, num_samples, opset, int8, num_quantised)
        _write_memory(kept, staging, settings)
        if chain.far_canceller is not None and scorer.far_microphone is not None:
            _write_installation(scorer.far_microphone, staging, settings)
        settings["graph"]["crc32"] = {path.name: zlib.crc32(path.read_bytes()) for path in staging.glob("model.*")}
        (staging / "scorer.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        proof = None
        if recordings is not None and refitted is not None:
            changed = _scores(scorer, chain, recordings, refitted, staging, progress)
            weights = sum(4 * tensor.numel() for tensor in chain.model.state_dict().values())
            size = sum(path.stat().st_size for path in staging.glob("model.*")) / weights
            proof = _proof(recordings, *changed, is_int8, size, time_ratio(graph, chain, max(lengths)))
            if not proof.drop <= max_drop:
                raise ValueError(
                    f"`max_drop` is {max_drop:g} %, but the {proof.measure} drops by {proof.drop:.3g} % (largest "
                    f"change of a score {proof.largest_change:.3g} of their spread): nothing is written."
                )
        (staging / "README.md").write_text(card(settings, proof), encoding="utf-8")
    return Exported(Path(folder), proof, num_samples)


def _check_int8(int8: str | None, to: str, has_recordings: bool) -> None:
    """Raise a ValueError for a way to quantise that is not known, or for which something is missing."""
    if int8 is None:
        return
    if int8 not in QUANTISERS:
        raise ValueError(f"`int8` must be None or one of {list(QUANTISERS)}, got {int8!r}.")
    if not has_recordings:
        raise ValueError("`int8` needs normal recordings to fit the memory with, got none.")
    if int8 == "products" and to != "onnx":
        raise ValueError(
            f"`int8='products'` needs to='onnx', got to={to!r}: OpenVINO is slower with them than in float."
        )


def _check_destination(folder: Path) -> None:
    """Raise an OSError where the folder holds something else than an earlier export, which would be lost."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "scorer.json").is_file():
        raise FileExistsError(f"{folder} must be new, empty or an earlier export, got a folder of other files.")


def _write_graph(
    chain: ScoringChain,
    folder: Path,
    to: str,
    int8: str | None,
    lengths: Sequence[int],
    most_samples: int | None,
    opset: int,
) -> tuple[int | None, int]:
    """Write the graph alone; return the samples that it is bound to, and how many weights or products have 8 bits."""
    path, num_quantised = folder / "model.onnx", 0
    num_samples = export_onnx(chain, path, lengths, most_samples, opset)
    if int8 is not None:
        in_float = path.rename(folder / "float.onnx")
        num_quantised = quantise_onnx(in_float, path, int8)
        in_float.unlink()
    if to == "openvino":
        write_openvino(path, folder / FORMATS[to])
        path.unlink()
    return num_samples, num_quantised


def _check_packages(to: str, int8: str | None) -> Callable[[Path, str, int | None], Any]:
    """Raise a ValueError where a package is missing, before any work; return na-ssl-edge's loader of graphs."""
    if to == "openvino":
        import_openvino()
    if int8 is not None:
        import_quantiser()
    try:
        from na_ssl_edge.graph import load_graph
    except ImportError as error:
        raise ValueError(
            "The export is proven with the package na-ssl-edge, which is not installed: pip install "
            "./packages/na-ssl-edge."
        ) from error
    return load_graph


def _lengths(scorer: AnomalyScorer, recordings: ProofRecordings | None, calibration: Calibration) -> list[int]:
    """Return the numbers of samples that the graph hears of the normal recordings; 4 s where there are none."""
    windows = None if calibration.windows is None else Windows(**calibration.windows)
    rate = scorer.feature_extractor.sampling_rate
    if recordings is None:
        return [round(rate * (4.0 if windows is None else windows.length))]
    sources = [*recordings.normal, *recordings.labelled]
    lengths = {piece.samples.shape[-1] for source in sources for piece in scorer.preprocess(source, windows)}
    if not lengths:
        raise ValueError("`recordings` must hold normal recordings, got none.")
    return sorted(lengths)


def _by_graph(graph: Callable[[np.ndarray], np.ndarray]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return waveforms `(B, 2, N)` to band vectors `(B, F, D)` by a graph that takes one at a time."""
    return lambda waveforms: torch.stack([torch.from_numpy(graph(wave.numpy())) for wave in waveforms.float().cpu()])


def _fitted_with(
    scorer: AnomalyScorer,
    recordings: ProofRecordings,
    vectors: Callable[[torch.Tensor], torch.Tensor],
    sets_threshold: bool,
    progress: str | None,
) -> MemoryBank:
    """Return a memory as the scorer's, fitted with the normal recordings of the proof by other band vectors.

    Args:
        vectors: maps waveforms `(B, 2, N)` to `(B, F, D)`.
        sets_threshold: whether the threshold is used, for which there must be enough recordings.
    """
    bank = scorer.memory_bank
    assert bank is not None
    assert bank.calibration is not None
    calibration = bank.calibration
    other: Any = copy.copy(scorer)
    other.feature_extractor = copy.copy(scorer.feature_extractor)

    def forward(inputs: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        heard = inputs["heard"]
        num_bands = num_recorded_bands(scorer.model, heard.layers.deepest, heard.rate)
        return {"vectors": vectors(inputs["waveforms"])[..., :num_bands, :]}

    # The chain brings recordings to their level itself; what that does twice it does once.
    other._forward = forward
    pooling = {name: calibration.pooling[name] for name in POOLING_PARAMETERS[calibration.pooling["method"]]}
    windows = calibration.windows or {}
    other.fit(
        recordings.normal,
        domains=recordings.domains,
        groups=recordings.groups,
        layers=calibration.layers,
        level=calibration.level,
        far_cancellation="none",
        log_mel=False,
        pooling=calibration.pooling["method"],
        **pooling,
        window=windows.get("length"),
        hop=windows.get("hop"),
        aggregate=windows.get("aggregate"),
        memory_bank=bank,
        threshold_method=calibration.threshold_method if sets_threshold else "quantile",
        false_alarm_rate=calibration.asked_false_alarm_rate if sets_threshold else None,
        progress=progress,
    )
    fitted = other.memory_bank
    # The canceller is in the vectors already, and is not calibrated anew.
    fitted.calibration = replace(
        fitted.calibration,
        extractor=calibration.extractor,
        streams=calibration.streams,
        na_share=calibration.na_share,
        log_mel=calibration.log_mel,
    )
    return fitted


def _scores(
    scorer: AnomalyScorer,
    chain: ScoringChain,
    recordings: ProofRecordings,
    refitted: MemoryBank,
    staging: Path,
    progress: str | None,
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Score the recordings of the proof by torch and by the folder.

    Returns:
        the scores of the normal recordings by torch and by the graph, each without itself in the memory, and those of
        the labelled ones by torch and by na-ssl-edge.
    """
    from na_ssl_edge import Scorer

    reference = _fitted_with(scorer, recordings, chain, False, progress)
    assert reference.calibration is not None
    assert refitted.calibration is not None
    labelled = list(recordings.labelled)
    by_torch = [result["score"] for result in scorer(labelled, progress=progress)] if labelled else []
    resample = bool(scorer.feature_extractor.resample)
    by_edge = [result["score"] for result in Scorer(staging, num_threads=1, resample=resample)(labelled)]
    return list(reference.calibration.self_scores), list(refitted.calibration.self_scores), by_torch, by_edge


def _proof(
    recordings: ProofRecordings,
    normal: list[float],
    normal_after: list[float],
    labelled: list[float],
    labelled_after: list[float],
    int8: bool,
    size: float,
    cpu_time: float,
) -> Proof:
    # The scores of the labelled recordings come from another memory, so that both sets are compared by themselves.
    pairs = [(normal, normal_after), *([(labelled, labelled_after)] if labelled else [])]
    changes = [compare_scores(before, after, int8) for before, after in pairs]
    largest, median, rank = zip(*changes, strict=True)
    is_anomalous = list(map(bool, recordings.is_anomalous))
    return Proof(
        num_normal=len(normal),
        num_labelled=len(labelled),
        largest_change=max(largest),
        median_change=max(median),
        rank_correlation=min(rank),
        auc=auc(labelled_after, is_anomalous) if labelled else None,
        auc_before=auc(labelled, is_anomalous) if labelled else None,
        size_ratio=size,
        time_ratio=cpu_time,
    )


def _settings(
    scorer: AnomalyScorer,
    chain: ScoringChain,
    bank: MemoryBank,
    to: str,
    num_samples: int | None,
    opset: int,
    int8: str | None,
    num_quantised: int,
) -> dict[str, Any]:
    """Return what `scorer.json` holds."""
    extractor, calibration = scorer.feature_extractor, bank.calibration
    assert calibration is not None
    knows_rows = hasattr(scorer.model, "row_centres")
    deepest = LayerChoice(calibration.layers).deepest
    has_canceller = scorer.far_microphone is not None or extractor.far_cancellation is not None
    cancels_far = has_canceller and calibration.streams != "raw"
    return {
        "format_version": FORMAT_VERSION,
        "made_with": {name: _version(name) for name in ("na-ssl-hf", "torch", "transformers", "onnx", "onnxruntime")},
        "model": type(scorer.model).__name__,
        "graph": {
            "file": FORMATS[to],
            "format": to,
            "precision": "float32" if int8 is None else "int8",
            "quantised": int8,
            "num_quantised": num_quantised,
            "opset": opset,
            "num_samples": num_samples,
        },
        "recordings": {
            "sampling_rate": extractor.sampling_rate,
            "min_samples": chain.min_samples,
            "max_samples": _most_samples(scorer),
            "frontend": extractor.frontend,
            "resample": bool(extractor.resample),
            "hears_far": cancels_far or getattr(scorer.model, "hears_far", False),
            "row_centres": list(scorer.model.row_centres(deepest)) if knows_rows else None,
            "recording_rate": calibration.recording_rate,
        },
        "calibration": calibration.to_dict() | {"recording_rate": calibration.recording_rate},
    }


def _write_memory(bank: MemoryBank, folder: Path, settings: dict[str, Any]) -> None:
    """Write `memory.npz`, and enter the settings of the memory, both as na-ssl-edge reads them."""
    parameters, tensors = bank.state()
    settings["memory"] = parameters
    np.savez(folder / "memory.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _write_installation(far_microphone: FarMicrophone, folder: Path, settings: dict[str, Any]) -> None:
    """Write `far_microphone.npz`, and enter its settings: what na-ssl-edge needs to notice a drift."""
    rate, learned = far_microphone.sampling_rate, far_microphone.state()[0]
    settings["far_microphone"] = {"sampling_rate": rate, "future": round(far_microphone.future * rate)}
    arrays = {name: learned[name].numpy() for name in ("filter", "noise_spectra")}
    np.savez(folder / "far_microphone.npz", **arrays)  # type: ignore[arg-type]


def _most_samples(scorer: AnomalyScorer) -> int | None:
    """Return the samples per channel of the longest recording that the model takes; `None` for any number."""
    frames = scorer.model.longest_frames
    return None if frames is None else frames * scorer.feature_extractor.hop_length


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
