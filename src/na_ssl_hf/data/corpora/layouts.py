"""List the sounds of a corpus as its publishers lay it out; no sound is opened here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..sound_files import find_sound_files
from ..tables import file_named_in_table, read_columns

KINDS = ("folder", "fsd50k", "wham", "demand", "qut-noise", "dataset")

_READ_BYTES = 1 << 20
_SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "eval": "test",
}


@dataclass(frozen=True)
class ListedSound:
    """A sound as its corpus lists it.

    Attributes:
        name: path within the corpus with forward slashes, which is the same wherever the corpus lies.
        source: a file, which may turn out to be missing; its content; or None where a data set has an empty row.
        split: as the corpus says, or None where it leaves the division into train and validation to others.
        licence: as the corpus says for this sound, or None.

    Raises:
        ValueError: `name` leads outside the corpus.
    """

    name: str
    source: Path | bytes | None
    split: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"name must be a path within the corpus, got {self.name!r}")


def list_fsd50k(source: Path) -> list[ListedSound]:
    """List FSD50K (Fonseca et al., 2022).

    Its folders are `FSD50K.dev_audio`, `FSD50K.eval_audio` and `FSD50K.ground_truth` with `dev.csv` and `eval.csv`.

    The development set keeps its own train and validation clips (no uploader is in both), and the evaluation set is
    "test". One of the two sets is enough. The licences are those of `FSD50K.metadata`, if it is there.
    """
    root = _folder_with(source, ["", "FSD50K"], lambda root: any(root.glob("FSD50K.*_audio")), "FSD50K.dev_audio/")
    sounds = []
    for part in ("dev", "eval"):
        folder = root / f"FSD50K.{part}_audio"
        if not folder.is_dir():
            continue
        table = root / "FSD50K.ground_truth" / f"{part}.csv"
        licences = _fsd50k_licences(root / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json")
        for row in _filled_rows(table, {"fname", "split"} if part == "dev" else {"fname"}):
            split = _own_split(row["split"], table) if part == "dev" else "test"
            path = file_named_in_table(folder, f"{row['fname']}.wav")
            sounds.append(ListedSound(f"{folder.name}/{path.name}", path, split, licences.get(row["fname"])))
    return sounds


def list_wham(source: Path) -> list[ListedSound]:
    """List WHAM!48kHz (Wichern et al., 2019), whose `high_res_wham/audio/*.wav` are unsegmented binaural recordings."""
    names = ["high_res_wham/audio", "audio"]
    return _wav_files(_folder_with(source, names, _has_wav_files, "high_res_wham/audio/*.wav"))


def list_qut_noise(source: Path) -> list[ListedSound]:
    """List QUT-NOISE (Dean et al., 2010), whose `QUT-NOISE/*.wav` are two sessions at each of ten locations."""
    names = ["QUT-NOISE/QUT-NOISE", "QUT-NOISE", ""]
    return _wav_files(_folder_with(source, names, _has_wav_files, "QUT-NOISE/*.wav"))


def list_demand(source: Path) -> list[ListedSound]:
    """List DEMAND (Thiemann et al., 2013), which has `ch01.wav` to `ch16.wav` in a folder for each environment.

    Only channel 1 is listed, because the sixteen hear the same sound at the same time. Noises that are meant to be
    different, or unseen in training, must not be copies of each other.
    """
    environments = sorted(folder for folder in source.iterdir() if _has_names(folder, r"ch\d\d\.wav"))
    if not environments:
        raise FileNotFoundError(f"source must hold DEMAND's <ENVIRONMENT>/ch01.wav, got {source} without any")
    return [ListedSound(f"{folder.name}/ch01.wav", file_named_in_table(folder, "ch01.wav")) for folder in environments]


def list_folder(
    source: Path, manifest_csv: str | os.PathLike | None = None, manifest_split: str | None = None
) -> list[ListedSound]:
    """List all sound files below a folder, or those of them that a table names.

    `sound_files` says which files of a folder are taken, and `tables` how a table is read.

    Args:
        source: the folder.
        manifest_csv: table with columns `path` (relative to the table; rows that lead outside of `source` are passed
            over), `split` and perhaps `licence`. Splits are train, validation (val, valid) and test (eval). Rows
            without a split, and train where the table has no validation, are left to be divided.
        manifest_split: takes only the rows whose split is written so. Another label than those above is then allowed,
            and its rows are left to be divided.

    Raises:
        FileNotFoundError: the folder holds no sound files, or there is no such table.
        ValueError: the table is wrong, or names no file below `source`.
    """
    if manifest_csv is None:
        try:
            files = find_sound_files([source])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"source must hold sound files: {error}") from error
        return [ListedSound(path.relative_to(source).as_posix(), path) for path in files]
    table = Path(os.path.abspath(manifest_csv))
    rows = _filled_rows(table, {"path", "split"})
    has_validation = any(_SPLITS.get(row["split"]) == "validation" for row in rows)
    sounds = []
    for row in rows:
        path = Path(os.path.normpath(file_named_in_table(table.parent, row["path"])))
        if not path.is_relative_to(source) or manifest_split not in (None, row["split"]):
            continue
        label = row["split"]
        split = _own_split(label, table) if label and manifest_split is None else _SPLITS.get(label)
        split = None if split == "train" and not has_validation else split
        licence = row.get("licence") or row.get("license") or None
        sounds.append(ListedSound(path.relative_to(source).as_posix(), path, split, licence))
    if not sounds:
        labels = sorted({row["split"] for row in rows})
        raise ValueError(
            f"manifest_csv must name files below {source} with the split {manifest_split or 'of any name'}, "
            f"got {table} with {len(rows)} rows of {labels}"
        )
    return sounds


def list_dataset(source: Any, audio_column: str = "audio") -> Iterator[ListedSound]:
    """List the rows of a `datasets` data set, or of a dict of them by split, one after the other.

    `datasets` does not decode the sounds, each of which is the path or the bytes of a file. They are named by their
    content, because rows have neither a fixed place nor names of their own.

    Args:
        source: (iterable) data set, dict of those, or the folder of one that was saved with `save_to_disk`.
        audio_column: an `Audio` column, or one of paths.

    Raises:
        ValueError: there is no such column, it holds something else, or a split has an unknown name.
    """
    from datasets import Audio, load_from_disk

    if isinstance(source, str | os.PathLike):
        source = load_from_disk(os.fspath(source))
    parts = source if isinstance(source, dict) else {"": source}
    has_validation = any(_SPLITS.get(label) == "validation" for label in parts)
    for label, part in parts.items():
        columns = part.column_names
        if columns is not None and audio_column not in columns:
            raise ValueError(f"audio_column must be one of {columns}, got {audio_column!r}")
        split = _own_split(label, "source") if label else None
        split = None if split == "train" and not has_validation else split
        if isinstance((part.features or {}).get(audio_column), Audio):
            part = part.cast_column(audio_column, Audio(decode=False))
        for row in part if columns is None else part.select_columns([audio_column]):
            yield _dataset_sound(row[audio_column], split)


def _dataset_sound(value: Any, split: str | None) -> ListedSound:
    if isinstance(value, str | os.PathLike):
        value = {"path": os.fspath(value)}
    elif not isinstance(value, dict) and value is not None:
        raise ValueError(f"audio_column must hold paths or undecoded sounds, got {type(value).__name__}")
    path, content = (value or {}).get("path"), (value or {}).get("bytes")
    # The rest of a path says where a data set lies, not what it holds.
    name = re.sub(r"[^\w.-]", "_", re.split(r"[/\\]", path or "sound")[-1]).lstrip(".") or "sound"
    stem, suffix = os.path.splitext(name)
    source = content if content is not None or path is None else Path(os.path.abspath(path))
    if isinstance(source, bytes) or (source is not None and source.is_file()):
        stem = f"{stem}-{_sha256(source)[:16]}"
    return ListedSound(stem + suffix, source, split)


def _sha256(source: Path | bytes) -> str:
    digest = hashlib.sha256()
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _own_split(label: str, place: Any) -> str:
    if label not in _SPLITS:
        raise ValueError(f"{place} must have splits of {sorted(_SPLITS)}, got {label!r}")
    return _SPLITS[label]


def _folder_with(source: Path, names: Iterable[str], holds: Callable[[Path], bool], layout: str) -> Path:
    """Return the first of the sub-folders of `source` that holds what is looked for."""
    for name in names:
        if (folder := source / name).is_dir() and holds(folder):
            return folder
    raise FileNotFoundError(f"source must hold {layout}, got {source} without it")


def _has_wav_files(folder: Path) -> bool:
    return _has_names(folder, r"[^.].*\.wav")


def _has_names(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and any(re.fullmatch(pattern, name, re.IGNORECASE) for name in os.listdir(folder))


def _wav_files(folder: Path) -> list[ListedSound]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".wav" and not path.is_dir())
    return [ListedSound(path.name, path) for path in paths if path.name[0] != "."]


def _fsd50k_licences(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        return {name: clip["license"] for name, clip in json.loads(path.read_bytes()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must give a licence for every clip: {error!r}") from error


def _filled_rows(path: Path, columns: set[str]) -> list[dict[str, str]]:
    """Read the rows of a table, in which none of `columns` may be missing and the name of the file may not be empty."""
    rows = []
    for line, row in read_columns(path, columns):
        if not columns <= set(row) or not row.get("path", row.get("fname")):
            raise ValueError(f"{path}, line {line}: must fill {sorted(columns)}, got {row}")
        rows.append(row)
    return rows
