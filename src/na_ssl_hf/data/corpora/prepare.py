"""Check sound corpora, divide them into train and validation, and make them ready for reading crops at 16 kHz."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm.auto import tqdm

from ...hub.fbank import SAMPLING_RATE
from ...hub.sound_reader import SoundReader, TruncatedSoundError
from ...hub.whole_files import whole_file
from ...tables import escape_formula
from ..sound_files import libsndfile_path
from .layouts import (
    KINDS,
    ListedSound,
    list_dataset,
    list_demand,
    list_folder,
    list_fsd50k,
    list_qut_noise,
    list_wham,
)
from .manifest import SPLITS, SoundFile, read_manifest, write_manifest

MANIFEST = "manifest.jsonl"
REJECTED = "rejected.csv"
SILENCE_PEAK = 1e-4

_LISTS: dict[str, Callable[[Path], list[ListedSound]]] = {
    "fsd50k": list_fsd50k,
    "wham": list_wham,
    "demand": list_demand,
    "qut-noise": list_qut_noise,
}
_BLOCK_FRAMES = 1 << 20  # the recordings of WHAM! and QUT-NOISE are too long to be held whole
_SHOWN = 5


@dataclass(frozen=True)
class RejectedSound:
    """A sound that is left out, with its path within the corpus and the reason.

    `reason` is "missing", "unreadable", "truncated", "empty", "too short", "not finite", "silent" or "duplicate".
    """

    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class PreparedCorpus:
    """What `prepare_corpus` made.

    Attributes:
        manifest: path of the list of `sounds`, which `read_manifest` reads.
        sounds: the sounds in the order of the corpus.
        rejected: the sounds that are left out, as in the `rejected.csv` beside the manifest.
        num_kept: number of the sounds whose file was there from an earlier run.
    """

    manifest: Path
    sounds: list[SoundFile]
    rejected: list[RejectedSound]
    num_kept: int

    def lines(self) -> list[str]:
        """Return the number and the hours of every split, then what was rejected by reason, as lines to read."""
        lines = [f"{self.manifest}: {len(self.sounds)} sounds, {self.num_kept} of them from an earlier run"]
        for split in SPLITS:
            seconds = [sound.num_frames / sound.sampling_rate for sound in self.sounds if sound.split == split]
            lines.append(f"  {split:10}  {len(seconds):6d}  {sum(seconds) / 3600:8.2f} h")
        for reason, count in Counter(sound.reason for sound in self.rejected).most_common():
            lines.append(f"rejected: {count} x {reason}")
            names = [sound.path for sound in self.rejected if sound.reason == reason]
            lines += [f"    {name}" for name in names[:_SHOWN]]
            if count > _SHOWN:
                lines.append(f"    ... and {count - _SHOWN} more")
        return lines


def prepare_corpus(
    source: Any,
    out: str | os.PathLike,
    kind: str = "folder",
    *,
    corpus: str | None = None,
    convert: bool = True,
    sampling_rate: int = SAMPLING_RATE,
    validation_share: float = 0.05,
    group_pattern: str | None = None,
    min_duration_s: float = 0.1,
    manifest_csv: str | os.PathLike | None = None,
    manifest_split: str | None = None,
    audio_column: str = "audio",
    num_workers: int = 1,
    show_progress: bool = True,
) -> PreparedCorpus:
    """Read every sound of a corpus once and write `out/manifest.jsonl` and `out/rejected.csv`.

    Broken, empty, short and silent sounds are rejected and listed; they do not end the run. When a run is repeated
    after an interruption, the files that are finished are kept.

    Args:
        source: folder of the corpus; for the kind "dataset" a `datasets` data set or the folder of a saved one.
        out: folder to write.
        kind: "fsd50k", "wham", "demand", "qut-noise", "folder" (all sound files below it) or "dataset"; the module
            `layouts` says what each must look like.
        corpus: name in the manifest, by default the kind, and for a folder its name.
        convert: whether 16-bit mono FLAC at `sampling_rate` (Hz) is written below `out/audio`, with channels averaged,
            resampled by soxr and clipped at full scale. Otherwise the manifest names the originals.
        sampling_rate: rate of the files that are written.
        validation_share: share of the sounds that go to validation where the corpus has none of its own. A hash of a
            sound's name without suffix decides, so that place, order and other files do not.
        group_pattern: sounds whose names have the same text where this regular expression first matches (its first
            group, if it has one) stay together, such as r"\\d-\\d+" for clips that ESC-50 cut from one recording.
        min_duration_s: duration below which a sound is rejected.
        manifest_csv: table of a folder, as `layouts.list_folder` reads it.
        manifest_split: split of the table, as there.
        audio_column: column of a data set.
        num_workers: number of threads that read, resample and write.
        show_progress: whether a progress bar is shown.

    Raises:
        ValueError: an argument or a table of the corpus is wrong, `out` holds another corpus, or no sound is usable.
        OSError: the corpus or part of its layout is missing, or `out` cannot be written.
    """
    _check_settings(kind, sampling_rate, validation_share, group_pattern, min_duration_s, num_workers)
    out = Path(os.path.abspath(out))
    folder = _source_folder(source, kind, (manifest_csv, manifest_split))
    if folder is not None and convert and out.is_relative_to(folder):
        raise ValueError(f"out must lie outside of {folder}, which is converted, got {out}")
    if corpus is None:
        corpus = folder.name if folder is not None and kind == "folder" else kind
    _check_out(out, corpus)
    listed = _listed(source, folder, kind, manifest_csv, manifest_split, audio_column)
    target = _Target(
        corpus, out / "audio" if convert else None, sampling_rate, min_duration_s, validation_share, group_pattern
    )
    _remove_left_over(out / "audio")
    out.mkdir(parents=True, exist_ok=True)
    prepared = _prepare_all(target, listed, num_workers, show_progress)
    sounds = [sound for sound, _ in prepared if isinstance(sound, SoundFile)]
    rejected = [sound for sound, _ in prepared if isinstance(sound, RejectedSound)]
    _write_rejected(out / REJECTED, rejected)
    if not sounds:
        reasons = Counter(sound.reason for sound in rejected).most_common()
        why = ", ".join(f"{count} {reason}" for reason, count in reasons) or "none listed"
        raise ValueError(f"source must hold usable sounds, got {len(rejected)} rejected ({why}); see {out / REJECTED}")
    write_manifest(out / MANIFEST, sounds)
    return PreparedCorpus(out / MANIFEST, sounds, rejected, sum(is_kept for _, is_kept in prepared))


def _source_folder(source: Any, kind: str, table: tuple[str | os.PathLike | None, str | None]) -> Path | None:
    """Return the folder of the corpus, or None for a data set in memory."""
    if kind != "folder" and table != (None, None):
        raise ValueError(f"manifest_csv and manifest_split are of the kind 'folder', got the kind {kind!r}")
    manifest_csv, manifest_split = table
    if manifest_csv is None and manifest_split is not None:
        raise ValueError(f"manifest_split needs a manifest_csv, got {manifest_split!r} alone")
    if not isinstance(source, str | os.PathLike):
        if kind != "dataset":
            raise ValueError(f"source must be a folder for the kind {kind!r}, got {type(source).__name__}")
        return None
    folder = Path(os.path.abspath(source))
    if not folder.is_dir():
        raise FileNotFoundError(f"source must be a folder, nothing found at {folder}")
    return folder


def _listed(
    source: Any,
    folder: Path | None,
    kind: str,
    manifest_csv: str | os.PathLike | None,
    manifest_split: str | None,
    audio_column: str,
) -> Iterable[ListedSound]:
    if kind == "dataset":
        return list_dataset(source, audio_column)
    assert folder is not None
    return list_folder(folder, manifest_csv, manifest_split) if kind == "folder" else _LISTS[kind](folder)


def _prepare_all(
    target: _Target, listed: Iterable[ListedSound], num_workers: int, show_progress: bool
) -> list[tuple[SoundFile | RejectedSound, bool]]:
    """Prepare all sounds in their order; True stands beside those whose file was there already."""
    total = len(listed) if isinstance(listed, list) else None
    results = []
    with tqdm(desc=f"prepare {target.corpus}", total=total, unit="sound", disable=not show_progress) as bar:
        for result in _in_order(partial(_prepare, target), _without_duplicates(listed), num_workers):
            results.append(result)
            bar.update()
    return results


@dataclass(frozen=True)
class _Target:
    """What is made of the sounds of a corpus; `folder` is None where the originals stay."""

    corpus: str
    folder: Path | None
    sampling_rate: int
    min_duration_s: float
    validation_share: float
    group_pattern: str | None

    def split(self, name: str) -> str:
        key = os.path.splitext(name)[0]
        if self.group_pattern is not None and (match := re.search(self.group_pattern, key)):
            key = match[1 if match.re.groups else 0] or key
        # macOS stores the accents of file names apart from their letters.
        digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode(errors="surrogateescape")).digest()
        is_validation = int.from_bytes(digest[:8], "big") < self.validation_share * 2**64
        return "validation" if is_validation else "train"


class _UnusableError(Exception):
    """A sound is to be rejected; the arguments are reason and detail."""


def _prepare(target: _Target, listed: ListedSound | RejectedSound) -> tuple[SoundFile | RejectedSound, bool]:
    """Make a sound ready, or say why it cannot be; return with it whether its file was there already."""
    if isinstance(listed, RejectedSound):
        return listed, False
    split = listed.split or target.split(listed.name)
    try:
        with _open(listed.source) as file:
            if file.num_frames == 0:
                raise _UnusableError("empty", "no samples")
            least = max(target.min_duration_s, 1 / target.sampling_rate)
            if (duration := file.num_frames / file.sampling_rate) < least:
                raise _UnusableError("too short", f"{duration:.3g} s, at least {least:g} s wanted")
            if target.folder is None:
                if isinstance(listed.source, bytes):
                    raise ValueError(f"convert must be true for sounds that are not files, got {listed.name}")
                for _ in _sound_blocks(file):
                    pass
                path, num_frames, rate, is_kept = str(listed.source), file.num_frames, file.sampling_rate, False
            else:
                flac = target.folder / f"{os.path.splitext(listed.name)[0]}.flac"
                identity = _identity(listed)
                kept_frames = _finished_frames(flac, identity, target.sampling_rate)
                is_kept = kept_frames is not None
                num_frames = kept_frames or _write_flac(flac, file, identity, target.sampling_rate)
                path, rate = str(flac), target.sampling_rate
    except _UnusableError as error:
        return RejectedSound(listed.name, *error.args), False
    return SoundFile(path, num_frames, rate, split, target.corpus, listed.licence), is_kept


def _open(source: Path | bytes | None) -> SoundReader:
    if source is None:
        raise _UnusableError("missing", "empty row")
    if isinstance(source, Path) and not source.is_file():
        raise _UnusableError("missing", f"no file {source}")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise _UnusableError("empty", "0 bytes")
    stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    with _decoding():
        return SoundReader(stream, name)


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except TruncatedSoundError as error:
        raise _UnusableError("truncated", str(error)) from error
    except OSError as error:
        raise _UnusableError("unreadable", str(error)) from error


def _sound_blocks(file: SoundReader) -> Iterator[np.ndarray]:
    """Yield the mean of the channels, (frames,) float32 each; raise at the end when all of it was silent."""
    peak = 0.0
    blocks = file.blocks(_BLOCK_FRAMES)
    while True:
        with _decoding():
            channels = next(blocks, None)  # (C, frames)
        if channels is None:
            break
        block = channels.mean(axis=0)  # (frames,)
        if not np.isfinite(block).all():
            raise _UnusableError("not finite", "NaN or infinite samples")
        peak = max(peak, float(np.abs(block).max()))
        yield block
    if peak < SILENCE_PEAK:
        raise _UnusableError("silent", f"peak {peak:.2g}, at least {SILENCE_PEAK:g} wanted")


def _identity(listed: ListedSound) -> str:
    """Describe a sound in its FLAC file, so that a later run knows whether the file was made from the same sound."""
    if isinstance(listed.source, Path):
        status = listed.source.stat()
        # A name in another encoding than UTF-8 cannot stand in a comment of FLAC.
        name = listed.name.encode("utf-8", "backslashreplace").decode()
        return f"{name}, {status.st_size} bytes of {status.st_mtime_ns}"
    return listed.name  # the names of a data set say what the content is


def _finished_frames(flac: Path, identity: str, sampling_rate: int) -> int | None:
    if not flac.is_file():
        return None
    try:
        with soundfile.SoundFile(libsndfile_path(flac)) as file:
            return file.frames if (file.comment, file.samplerate) == (identity, sampling_rate) else None
    except soundfile.SoundFileError:
        return None


def _write_flac(flac: Path, source: SoundReader, identity: str, sampling_rate: int) -> int:
    """Write the rest of `source` to a file that appears whole or not at all, and return the number of frames."""
    num_frames = 0
    try:
        with whole_file(flac) as partial_file:
            target = libsndfile_path(partial_file)
            with soundfile.SoundFile(target, "w", sampling_rate, 1, "PCM_16", format="FLAC") as file:
                file.comment = identity
                for block in _resampled(_sound_blocks(source), source.sampling_rate, sampling_rate):
                    file.write(block)
                    num_frames += len(block)
            if (written := soundfile.info(target).frames) != num_frames:
                raise OSError(f"{flac} cannot be written: {written} of {num_frames} frames arrived")
    except soundfile.SoundFileError as error:
        raise OSError(f"{flac} cannot be written, is the disk full? {error}") from error
    return num_frames


def _remove_left_over(folder: Path) -> None:
    """Remove the unfinished files of runs that were killed."""
    for path in folder.rglob(".*.flac*.partial"):
        path.unlink(missing_ok=True)


def _resampled(blocks: Iterator[np.ndarray], rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    if rate == sampling_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _without_duplicates(listed: Iterable[ListedSound]) -> Iterator[ListedSound | RejectedSound]:
    """Keep one sound of each name without suffix: the same sound in two formats must not both train and validate."""
    first: dict[str, str] = {}
    for sound in listed:
        earlier = first.setdefault(os.path.splitext(sound.name)[0], sound.name)
        if earlier is sound.name:
            yield sound
        else:
            yield RejectedSound(sound.name, "duplicate", f"same name as {earlier}")


def _in_order(function: Callable, items: Iterable, num_workers: int) -> Iterator[Any]:
    """Map in threads, in order; few items wait at a time, because they may hold the bytes of a file."""
    # Threads are enough, because libsndfile and soxr run without the lock of the interpreter.
    with ThreadPoolExecutor(num_workers) as workers:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(workers.submit(function, item))
                if len(waiting) >= 8 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _write_rejected(path: Path, rejected: list[RejectedSound]) -> None:
    # The names of files may be in another encoding, and are written as they are.
    with (
        whole_file(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(RejectedSound)])
        writer.writerows(map(escape_formula, astuple(sound)) for sound in rejected)


def _check_settings(
    kind: str,
    sampling_rate: int,
    validation_share: float,
    group_pattern: str | None,
    min_duration_s: float,
    num_workers: int,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    for name, value in (("sampling_rate", sampling_rate), ("num_workers", num_workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")
    if not min_duration_s > 0:
        raise ValueError(f"min_duration_s must be positive, got {min_duration_s}")
    try:
        re.compile(group_pattern or "")
    except re.error as error:
        raise ValueError(f"group_pattern must be a regular expression, got {group_pattern!r}: {error}") from error


def _check_out(out: Path, corpus: str) -> None:
    if (out / MANIFEST).is_file() and (present := {sound.corpus for sound in read_manifest(out / MANIFEST)}) - {corpus}:
        raise ValueError(f"out must be new or hold the corpus {corpus!r}, got {out} with {sorted(present)}")
