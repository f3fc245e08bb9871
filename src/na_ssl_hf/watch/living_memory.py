"""The memory of a saved scorer, changed while machines age: recordings added, forgotten, and changes undone.

A monitor that uses the scorer takes the new memory with its next window.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..hub.sound_reader import SoundReader

# Without another bound, a memory that grows by what an operator calls normal stays within this many recordings.
MOST_CLIPS = 1000


@dataclass(frozen=True)
class MemoryVersion:
    """One version of a memory.

    Attributes:
        version: its number; 0 is what `fit` made.
        num_clips: the recordings in it.
        added, removed: what the change that made it did; 0 for the first one that is known.
    """

    version: int
    num_clips: int
    added: int = 0
    removed: int = 0


def add_normal(
    scorer: AnomalyScorer,
    folder: Path,
    recordings: Iterable[Any],
    max_clips: int | None = None,
    domains: Sequence[str] | None = None,
) -> MemoryVersion:
    """Remember recordings as normal, set the threshold anew, and save the memory, whole or not at all.

    Args:
        scorer: loaded from `folder`; it is changed as well.
        folder: of the saved scorer.
        recordings: in any form that a scorer takes several.
        max_clips: the most recordings in the memory, of which the oldest are removed; `None` for the memory's own
            bound, or for 1000, or for as many as it holds already.
        domains: "source" or "target" for each, where the memory tells them apart.

    Returns:
        the new version.

    Raises:
        ValueError: the scorer is not fitted, or its normal recordings were cut into windows or grouped, so that nothing
            tells which belong together; a recording is not acceptable; or `max_clips` is not at least 2.
        OSError: a file is missing or cannot be decoded, or the memory cannot be written.
    """
    bank = _changeable(scorer)
    if max_clips is not None and (isinstance(max_clips, bool) or not isinstance(max_clips, int) or max_clips < 2):
        raise ValueError(f"`max_clips` must be a whole number of at least 2, got {max_clips!r}.")
    vectors = scorer.embed(list(recordings))  # (N, F, D)
    bank.max_clips = max_clips or bank.max_clips or max(MOST_CLIPS, bank.num_clips_)
    return _saved(scorer, bank.partial_fit(vectors, domains), folder)


def learn_event(scorer: AnomalyScorer, folder: Path, sound: Path, window: float) -> MemoryVersion:
    """Remember the sound of an event as normal: its windows, none of which overlap, as recordings of their own.

    Args:
        scorer, folder: as for `add_normal`, which also raises the errors.
        sound: a file of both channels.
        window: the length of windows in s; of a shorter sound the whole is one.
    """
    with closing(SoundReader(str(sound), str(sound))) as reader:
        samples, rate = reader.read(), reader.sampling_rate  # (2, N)
    length = min(round(window * rate), samples.shape[1])
    starts = range(0, samples.shape[1] - length + 1, max(1, length))
    parts = [{"array": samples[:, start : start + length], "sampling_rate": rate} for start in starts]
    return add_normal(scorer, folder, parts)


def forget_clips(scorer: AnomalyScorer, folder: Path, clips: Sequence[int]) -> MemoryVersion:
    """Forget recordings by their place in the memory, 0 for the oldest; arguments and errors as `add_normal`."""
    return _saved(scorer, _changeable(scorer).forget(clips), folder)


def roll_back(scorer: AnomalyScorer, folder: Path, version: int) -> MemoryVersion:
    """Go back to an earlier version, with its threshold; arguments and errors as `add_normal`."""
    return _saved(scorer, _changeable(scorer).rollback(version), folder)


def history(bank: MemoryBank) -> list[MemoryVersion]:
    """Return the versions that `roll_back` can reach and the present one, oldest first."""
    changes = bank.changes
    first = bank.version_ - len(changes)
    sizes = [change.num_before for change in changes] + [bank.num_clips_]
    versions = [MemoryVersion(first, sizes[0])]
    for number, change in enumerate(changes):
        removed = len(change.removed)
        added = sizes[number + 1] - sizes[number] + removed
        versions.append(MemoryVersion(first + number + 1, sizes[number + 1], added, removed))
    return versions


def _changeable(scorer: AnomalyScorer) -> MemoryBank:
    scorer.threshold  # noqa: B018 (makes sure that the memory is there and belongs to the model)
    bank = scorer.memory_bank
    assert bank is not None
    calibration = bank.calibration
    if calibration is not None and (calibration.windows is not None or calibration.num_groups is not None):
        raise ValueError(
            "The memory holds windows of long recordings, or groups of recordings, and nothing tells which belong "
            "together: call `fit` again with all normal recordings."
        )
    return bank


def _saved(scorer: AnomalyScorer, bank: MemoryBank, folder: Path) -> MemoryVersion:
    scorer.threshold  # noqa: B018 (sets it anew)
    if not (folder / MEMORY_BANK_FILE).is_file():
        raise FileNotFoundError(f"There is no {MEMORY_BANK_FILE} in {folder}, which must be a saved scorer.")
    bank.save_pretrained(folder)
    return history(bank)[-1]
