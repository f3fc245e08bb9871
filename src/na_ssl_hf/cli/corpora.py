"""`na-ssl corpora`: corpora of sounds for distillation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import add_command, add_group


def add_commands(commands: Any) -> None:
    """Add `na-ssl corpora` with its commands `prepare` and `download`."""
    _, corpora = add_group(
        commands,
        "corpora",
        "fetch and prepare corpora of sounds for distillation",
        "  na-ssl corpora prepare my_sounds --out prepared/mine",
    )
    _add_prepare(corpora)
    _add_download(corpora)


def _add_prepare(corpora: Any) -> None:
    parser = add_command(
        corpora,
        "prepare",
        _prepare,
        "check the sounds of a corpus, divide them into train and validation, and write OUT/manifest.jsonl",
        "  na-ssl corpora prepare FSD50K --kind fsd50k --out prepared/fsd50k --workers 8\n"
        "  na-ssl corpora prepare my_sounds --out prepared/mine --originals --validation-share 0.1",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the corpus")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the new manifest.jsonl, rejected.csv and audio/",
    )
    parser.add_argument(
        "--kind",
        choices=("folder", "fsd50k", "wham", "demand", "qut-noise", "dataset"),
        default="folder",
        help="layout of SOURCE; dataset: as saved by datasets' save_to_disk (default: folder)",
    )
    parser.add_argument(
        "--corpus", metavar="NAME", help="name of the corpus in the manifest (default: the kind, for a folder its name)"
    )
    parser.add_argument(
        "--originals",
        action="store_true",
        help="manifest of the original sounds, which are then resampled at every reading",
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.05,
        help="share of the sounds for validation, where SOURCE does not divide them itself (default: 0.05)",
    )
    parser.add_argument(
        "--group", metavar="REGEX", help="pattern of names; sounds in which it matches the same text stay in one split"
    )
    parser.add_argument(
        "--min-duration",
        type=float,
        default=0.1,
        metavar="SECONDS",
        help="least duration of a sound in s (default: 0.1)",
    )
    parser.add_argument(
        "--manifest-csv", type=Path, metavar="FILE", help="table with path, split and licence of the files to take"
    )
    parser.add_argument("--manifest-split", metavar="SPLIT", help="split of the rows of that table that are taken")
    parser.add_argument(
        "--audio-column", default="audio", help="column of a dataset that holds the sounds (default: audio)"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of threads (default: 1)")


def _prepare(options: argparse.Namespace) -> None:
    from ..data.corpora.prepare import prepare_corpus

    prepared = prepare_corpus(
        options.source,
        options.out,
        options.kind,
        corpus=options.corpus,
        convert=not options.originals,
        validation_share=options.validation_share,
        group_pattern=options.group,
        min_duration_s=options.min_duration,
        manifest_csv=options.manifest_csv,
        manifest_split=options.manifest_split,
        audio_column=options.audio_column,
        num_workers=options.workers,
    )
    print("\n".join(prepared.lines()))


def _add_download(corpora: Any) -> None:
    parser = add_command(
        corpora,
        "download",
        _download,
        "fetch FSD50K or DEMAND from Zenodo (checksums; run again to resume) and unpack it",
        "  na-ssl corpora download demand --out demand",
    )
    parser.add_argument(
        "kind",
        choices=("fsd50k", "demand", "wham", "qut-noise"),
        help="corpus; of wham and qut-noise the command only says where they are",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the new archives/ and the corpus"
    )
    parser.add_argument("--no-extract", action="store_true", help="archives only, without unpacking them")
    parser.add_argument(
        "--base-url", default="https://zenodo.org", help="address of a server with Zenodo's records API"
    )


def _download(options: argparse.Namespace) -> None:
    from ..data.corpora.download import download_corpus

    archives = download_corpus(options.kind, options.out, not options.no_extract, options.base_url)
    print(f"{len(archives)} archives with the right checksums in {options.out}")
