"""The scorer of an exported folder: recordings of a machine in, anomaly scores out.

Letters: n windows of a recording, N samples, F frequency bands, D channels.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from .exported_folder import read_exported
from .graph import load_graph
from .oddities import CHANNELS, OddityReport, at_level
from .recordings import WHOLE, Piece, Windows, recording_name

logger = logging.getLogger(__name__)


class Scorer:
    """Scores recordings as the `AnomalyScorer` of na_ssl_hf does that was exported. A higher score is more anomalous.

    ```python
    scorer = Scorer("exported")
    scorer("recording.wav")  # {"score": ..., "is_anomaly": ..., "threshold": ..., "p_value": ..., "band_scores": ...}
    scorer(["a.wav", "b.wav"], errors="return")
    ```

    Args:
        folder: what `na-ssl export` wrote.
        num_threads: threads of the processor for the graph; `None` for all.
        resample: whether recordings of other sampling rates are converted; `None` for what was exported.

    Attributes:
        threshold: the score above which a recording counts as anomalous.

    Raises:
        OSError: a file is missing or damaged, or the folder is of another version.
        ValueError: the runtime of the graph is not installed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], num_threads: int | None = None, resample: bool | None = None
    ) -> None:
        self._exported = read_exported(folder)
        self._graph = load_graph(self._exported.graph_path, self._exported.graph_format, num_threads)
        self._exported.check_graph()  # after the runtime, which says more where it cannot load the file
        rules = self._exported.rules
        self._rules = rules if resample is None else replace(rules, resample=resample)
        self.threshold = self._exported.threshold

    def __call__(
        self,
        recordings: Any,
        *,
        window: float | None = None,
        hop: float | None = None,
        aggregate: str | float | None = None,
        errors: str = "raise",
    ) -> Any:
        """Score recordings.

        Args:
            recordings: one recording or a list or iterable of them. One is a path of a sound file, an array `(2, N)` at
                the exported rate (channel 0 close, 1 far), or a dict with `array` and `sampling_rate`.
            window, hop, aggregate: how recordings are cut, see [`Windows`]; seconds. `None` for what was fitted, and
                recordings above 60 s are cut into windows of 10 s.
            errors: "raise", or "return": a recording that cannot be read or breaks a rule gives `{"error": ...}` in
                its place.

        Returns:
            for each recording a dict with `score`, `is_anomaly`, `threshold`, `p_value` and `band_scores` (F floats);
            of one that was cut also `windows` and `worst_window`, dicts of `start`, `end` (s) and `score`.

        Raises:
            ValueError: a recording breaks a rule, or an argument is out of its range.
            OSError: a file is missing or cannot be decoded.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"`errors` must be 'raise' or 'return', got {errors!r}.")
        windows = self._windows(window, hop, aggregate)
        is_single = isinstance(recordings, str | os.PathLike | Mapping) or (
            isinstance(recordings, np.ndarray) and recordings.ndim != 3
        )
        results = list(self._results([recordings] if is_single else recordings, windows, errors == "return"))
        return results[0] if is_single else results

    def embed(self, recordings: Iterable[Any]) -> np.ndarray:
        """Compute the band vectors `(B, F, D)` float32 of whole recordings. Errors are those of scoring."""
        return np.stack([self._vector(piece) for source in recordings for piece in self._rules.pieces(source, WHOLE)])

    def _results(
        self, recordings: Iterable[Any], windows: Windows | None, keep_failures: bool
    ) -> Iterator[dict[str, Any]]:
        exported = self._exported
        channels = CHANNELS if exported.hears_far else CHANNELS[:1]
        report = OddityReport(
            self._rules.sampling_rate, exported.levels, channels, exported.is_normalised, exported.usual_swapped
        )
        try:
            for source in recordings:
                try:
                    yield self._result(source, windows, report)
                except (ValueError, OSError) as error:
                    if not keep_failures:
                        raise
                    yield {"error": " ".join(str(error).split())}
        finally:
            report.report()

    def _result(self, source: Any, windows: Windows | None, report: OddityReport) -> dict[str, Any]:
        memory = self._exported.memory
        pieces, vectors = [], []
        for piece in self._rules.pieces(source, windows):
            self._check_rate(piece)
            report.note(piece.name, piece.samples)
            vectors.append(self._vector(piece))
            pieces.append(replace(piece, samples=piece.samples[:, :0]))  # a long recording is not kept
        try:
            band_scores = memory.band_scores(np.stack(vectors))  # (n, F)
        except ValueError as error:
            raise ValueError(f"{recording_name(source)}: {error}") from error
        scores = memory.aggregate_bands(band_scores)  # (n,)
        cut = (windows or self._rules.default_windows) if pieces[-1].was_cut else None
        if cut is None:
            score, bands = scores[0], band_scores[0]
        else:
            score = cut.aggregated(scores)
            bands = band_scores[int(scores.argmax())] if cut.aggregate == "max" else cut.aggregated(band_scores)
        result = {
            "score": float(score),
            "is_anomaly": float(score) > self.threshold,
            "threshold": self.threshold,
            "p_value": self._p_value(float(score)),
            "band_scores": bands.tolist(),
        }
        return result if cut is None else result | self._of_windows(pieces, scores, cut)

    def _of_windows(self, pieces: Sequence[Piece], scores: np.ndarray, cut: Windows) -> dict[str, Any]:
        """Return the scores of the n windows of a recording, and say where the threshold does not hold for them."""
        fitted = self._exported.windows
        if len(pieces) > 1 and (fitted is None or asdict(fitted) != asdict(cut)):
            logger.warning(
                f"{pieces[0].name} was cut into {len(pieces)} windows, but the threshold was not set on recordings "
                "that were cut alike: its false-alarm rate is not the stated one. Fit with recordings as long as those "
                "to be scored."
            )
        windows = [
            {"start": piece.start, "end": piece.end, "score": float(score)}
            for piece, score in zip(pieces, scores, strict=True)
        ]
        return {"windows": windows, "worst_window": windows[int(scores.argmax())]}

    def _vector(self, piece: Piece) -> np.ndarray:
        """Run the graph on a piece: band vectors `(F, D)`, of the bands that the recording holds."""
        exported, num_samples = self._exported, piece.samples.shape[1]
        if exported.num_samples not in (None, num_samples):
            raise ValueError(
                f"{piece.name}: this graph was exported for recordings, or windows, of {exported.num_samples} samples "
                f"per channel at {self._rules.sampling_rate} Hz, got {num_samples}."
            )
        vectors = self._graph(piece.samples)
        if exported.installation is not None:
            exported.installation.listen(at_level(piece.samples, exported.is_normalised))
        if exported.row_centres is None:
            return vectors
        rate = min(piece.recording_rate, self._rules.sampling_rate)
        return vectors[: sum(centre < rate / 2 for centre in exported.row_centres)]

    def _check_rate(self, piece: Piece) -> None:
        """Refuse a recording that lacks bands which the normal ones had, or has more."""
        expected, own = self._exported.recording_rate, self._rules.sampling_rate
        rate = min(piece.recording_rate, own)
        if self._exported.row_centres is not None and expected is not None and rate != expected:
            wanted = f"{expected} Hz" + (" or more" if expected == own else "")
            raise ValueError(
                f"{piece.name}: recordings that are compared must have one sampling rate, here {wanted}, got {rate} "
                "Hz. This model hears their bands together, and what one recording lacks changes all of them."
            )

    def _p_value(self, score: float) -> float:
        """Compute the conformal p-value `(1 + #{self scores >= score}) / (1 + R)`."""
        self_scores = self._exported.self_scores
        num_at_least = len(self_scores) - np.searchsorted(self_scores, score, side="left")
        return float((1.0 + num_at_least) / (1.0 + len(self_scores)))

    def _windows(self, window: float | None, hop: float | None, aggregate: str | float | None) -> Windows | None:
        """Return the windows that are asked for; what is not asked is as fitted, or as by default."""
        asked = {"length": window, "hop": hop, "aggregate": aggregate}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return self._exported.windows
        if window is not None and hop is None:
            given["hop"] = None
        windows = replace(self._exported.windows or self._rules.default_windows, **given)
        if windows.length > self._rules.longest_possible:
            raise ValueError(
                f"`window` must be at most {self._rules.longest_possible:g} s, which is what the model takes, "
                f"got {windows.length!r}."
            )
        return windows
