"""Load DCASE Task 2 folders as `datasets.Dataset`s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ...hub.sound_reader import SoundReader
from .clips import SPLITS, DcaseClip, find_split_folders, list_dcase_clips
from .names import SUPPLEMENTAL

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.get_logger(__name__)


def load_dcase2026(
    root: str | Path, split: str | None = None, machines: Sequence[str] | None = None
) -> Dataset | DatasetDict:
    """Load the clips of DCASE 2026 Task 2 below `root`, in either of its layouts, or those of the years 2020 to 2025.

    ```python
    train = load_dcase2026("dcase2026/development", "train", machines=["fan"])
    scorer.fit(train, domains=train["domain"])
    scorer(load_dcase2026("dcase2026/development", "test", machines=["fan"]))
    ```

    Args:
        root: folder that holds `<machine>/train`, `<machine>/test` and `<machine>/attributes_00.csv`, directly or up to
            two folders deeper (`dev_data/raw/<machine>`), and perhaps `<machine>/supplemental`.
        split: "train", "test" or "supplemental" (the machine alone and the noise alone); `None` gives a `DatasetDict`
            of the splits that are there.
        machines: names of the machines, by default all.

    Returns:
        A data set of rows sorted by machine and file name. Its columns are `audio` (`{"path", "bytes": None}`, an
        undecoded `datasets.Audio`, which the anomaly scorer reads), `path` (absolute), `machine`, `section` and `index`
        (integers), `split`, `num_channels` (as the file's header says), and `domain` ("source", "target"), `label`
        ("normal", "anomaly", or of supplemental clips "machine", "noise") and `attributes` ("spd_1_pow_2",
        "noAttribute"), which are `None` where an anonymous evaluation clip does not say. Files of one channel (the
        challenges 2020 to 2025) load with one warning.

    Raises:
        ImportError: the `datasets` package is missing.
        FileNotFoundError: `root` or folders of the split are missing, all of them named, or empty.
        OSError: a file has no readable header, or is shorter than its header says.
        ValueError: the split is unknown, a name is not DCASE's or not in UTF-8, or a file has more than two channels.
    """
    try:
        from datasets import Audio, Dataset, DatasetDict, Features, Value
    except ImportError as error:
        raise ImportError(
            "load_dcase2026 needs the `datasets` package, which is not installed: pip install 'na-ssl-hf[train]'"
        ) from error
    if split is None:
        present = {
            folder.split for folder in find_split_folders(root) if machines is None or folder.machine in machines
        }
        # Where none is there, the request for training clips raises the error that names what is missing.
        splits = [name for name in SPLITS if name in present] or ["train"]
        # Some machines of those asked for may have no supplemental clips.
        asked = dict.fromkeys(splits, machines)
        if machines is not None and SUPPLEMENTAL in splits:
            having = {folder.machine for folder in find_split_folders(root) if folder.split == SUPPLEMENTAL}
            asked[SUPPLEMENTAL] = [machine for machine in machines if machine in having]
        return DatasetDict({name: load_dcase2026(root, name, asked[name]) for name in splits})
    rows = [_row(clip) for clip in tqdm(list_dcase_clips(root, split, machines), "headers", unit="clip", delay=5)]
    _warn_of_one_channel(rows)
    kinds = {"section": "int32", "index": "int32", "num_channels": "int32"}
    features = Features({name: Value(kinds.get(name, "string")) for name in rows[0]})
    dataset = Dataset.from_list(rows, features=features)
    # Paths are cast, because encoding rows as Audio would ask for torchcodec.
    return dataset.cast_column("audio", Audio(decode=False))


def _row(clip: DcaseClip) -> dict[str, Any]:
    try:
        str(clip.path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(clip.path)!r} must be a path in UTF-8, which a data set can hold") from error
    with SoundReader(str(clip.path), str(clip.path)) as file:
        num_channels = file.num_channels
    if num_channels > 2:
        raise ValueError(f"{clip.path} must have two channels, close and far, got {num_channels}")
    return {
        "audio": str(clip.path),
        "path": str(clip.path),
        "machine": clip.name.machine,
        "section": clip.name.section,
        "split": clip.name.split,
        "domain": clip.name.domain,
        "label": clip.name.label,
        "attributes": clip.attributes,
        "index": clip.name.index,
        "num_channels": num_channels,
    }


def _warn_of_one_channel(rows: list[dict[str, Any]]) -> None:
    mono = [row["path"] for row in rows if row["num_channels"] == 1]
    if mono:
        logger.warning_once(
            f"{len(mono)} of {len(rows)} recordings have one channel, first {mono[0]} (DCASE 2020 to 2025 have one): "
            "noise-aware models and far-microphone cancellation need two, close and far."
        )
