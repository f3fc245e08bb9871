"""Download FSD50K and DEMAND from their Zenodo records, and say for the other corpora what to fetch from where."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..archive_extraction import extract_zip
from ..dcase.download import ZENODO, RemoteFile, download_file, list_record

RECORDS = {"fsd50k": 4060432, "demand": 1227121}
MANUAL = {
    "wham": (
        "WHAM!48kHz has no published checksum: fetch high_res_wham.zip (about 76 GB) from http://wham.whisper.ai "
        "(CC BY-NC 4.0) and unpack it to <folder>/high_res_wham/audio/*.wav"
    ),
    "qut-noise": (
        "QUT-NOISE is handed out by its authors: fetch QUT-NOISE.zip from "
        "https://research.qut.edu.au/saivt/databases/qut-noise-databases-and-protocols and unpack it to "
        "<folder>/QUT-NOISE/*.wav"
    ),
}


def download_corpus(
    kind: str,
    out: str | Path,
    extract: bool = True,
    base_url: str = ZENODO,
    retry_delay_s: float = 2.0,
    show_progress: bool = True,
) -> list[Path]:
    """Download the archives of a corpus to `out/archives` and unpack them so that `prepare_corpus` can read `out`.

    When a call is repeated after an interruption, files with the right size and MD5 are kept, and a `.part` is
    continued. DEMAND is taken at 48 kHz. FSD50K's audio is a ZIP archive in parts, which the program `zip` joins first;
    this needs room for the joined archive (25 GB) beside the parts and the sounds.

    Args:
        kind: "fsd50k" or "demand".
        out: folder to write.
        extract: whether the archives are unpacked.
        base_url: address of a server with Zenodo's records API.
        retry_delay_s: seconds before the second of five tries, doubled for each further one.
        show_progress: whether progress bars are shown.

    Returns:
        The paths of the archives.

    Raises:
        ValueError: the corpus cannot be had this way (the message says how else), or an archive is refused.
        OSError: as `download_file` and `extract_zip` raise it, or the program `zip` is missing or fails.
    """
    if kind not in RECORDS:
        raise ValueError(MANUAL.get(kind) or f"kind must be one of {sorted([*RECORDS, *MANUAL])}, got {kind!r}")
    out = Path(out)
    files = [file for file in list_record(RECORDS[kind], base_url) if _is_needed(kind, file)]
    archives = [download_file(file, out / "archives", retry_delay_s, show_progress) for file in files]
    for archive in archives if extract else []:
        if archive.suffix != ".zip":
            continue
        if archive.with_suffix(".z01") in archives:
            joined = join_split_zip(archive)
            extract_zip(joined, out, show_progress)
            joined.unlink()
        else:
            extract_zip(archive, out, show_progress)
    return archives


def join_split_zip(archive: Path) -> Path:
    """Join `<name>.z01`, ..., `<name>.zip` to `<name>.joined.zip`, because Python reads no archives in parts.

    Raises:
        OSError: the program `zip` is missing or fails.
    """
    joined = archive.with_name(f"{archive.stem}.joined.zip")
    command = ["zip", "-s", "0", archive.name, "--out", joined.name]
    if shutil.which("zip") is None:
        raise OSError(f"{archive} is in parts, which needs the program zip, not found: {' '.join(command)}")
    joined.unlink(missing_ok=True)  # an earlier run may have left a half
    # The program asks without end where a missing part is, until it reads "q".
    done = subprocess.run(command, cwd=archive.parent, input="q\n", capture_output=True, text=True)
    if done.returncode:
        joined.unlink(missing_ok=True)
        raise OSError(f"{archive} cannot be joined: {' '.join((done.stdout + done.stderr).split()[-40:])}")
    return joined


def _is_needed(kind: str, file: RemoteFile) -> bool:
    if kind == "demand":
        return file.name.endswith("_48k.zip")
    return file.name.startswith("FSD50K.") and not file.name.startswith("FSD50K.doc")
