"""Files that others write: tables, manifests, archives, checkpoints."""

import io
import json
import pickle
import random
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint
from na_ssl_hf.data.archive_extraction import extract_zip
from na_ssl_hf.data.corpora.manifest import read_manifest
from na_ssl_hf.data.dcase.clips import read_attribute_tables
from na_ssl_hf.evaluation.report.submission import evaluate_submission

from .saved_files import STRANGE, _changed, _damaged_bytes
from .trial import DAMAGED, GOOD, ODD, Materials, Trial

CLIPS = [f"section_00_{index:04d}.wav" for index in range(8)]
CELLS = ("", "nan", "inf", "x", "1e999", "-1", "0,5", '"', "0.5\0", "é", "\u202e", "=1+1", "9" * 300, "a" * 140000)


def _table(rows: list[list[str]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def _changed_table(draw: random.Random, text: str) -> tuple[bytes, str, str]:
    lines = text.splitlines()
    row = draw.randrange(len(lines))
    how = draw.choice(
        ("whole", "cell", "cell", "gone", "twice", "more", "semicolon", "encoding", "bytes", "bom", "crlf")
    )
    cells = lines[row].split(",")
    is_input = DAMAGED
    if how == "whole":
        is_input = GOOD
    elif how == "cell":
        column = draw.randrange(len(cells))
        cells[column] = draw.choice(CELLS)
        lines[row], how, is_input = ",".join(cells), f"cell {row}, {column} is {cells[column]!r:.12}", ODD
    elif how == "gone":
        del lines[row]
    elif how == "twice":
        lines.insert(row, lines[row])
    elif how == "more":
        lines[row] += ",1,2"
        is_input = ODD
    elif how == "semicolon":
        lines = [line.replace(",", ";") for line in lines]
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    if how == "encoding":
        encoding = draw.choice(("utf-16", "utf-32", "latin-1", "cp037"))
        content, how, is_input = content.decode().encode(encoding), encoding, GOOD if encoding == "latin-1" else ODD
    elif how == "bytes":
        content, how, is_input = (*_damaged_bytes(draw, content)[:2], ODD)
    elif how == "bom":
        content, is_input = b"\xef\xbb\xbf" + content, GOOD
    elif how == "crlf":
        content, is_input = content.replace(b"\n", b"\r\n") + b"\r\n\r\n", GOOD
    return content, how, is_input


def submission(draw: random.Random, materials: Materials) -> Trial:
    """A submission or its ground truth with another content, evaluated."""
    labels = [index % 2 for index in range(8)]
    targets = [index // 4 for index in range(8)]
    names = [f"section_00_source_test_normal_{index:04d}_x.wav" for index in range(8)]
    tables = {
        "submission/anomaly_score_fan_section_00_test.csv": [
            [clip, f"{index / 8}"] for index, clip in enumerate(CLIPS)
        ],
        "submission/decision_result_fan_section_00_test.csv": [[c, str(d)] for c, d in zip(CLIPS, labels, strict=True)],
        "truth/ground_truth_data/ground_truth_fan_section_00_test.csv": [
            [c, str(d)] for c, d in zip(CLIPS, labels, strict=True)
        ],
        "truth/ground_truth_domain/ground_truth_fan_section_00_test.csv": [
            [c, str(d)] for c, d in zip(CLIPS, targets, strict=True)
        ],
        "truth/ground_truth_attributes/ground_truth_fan_section_00_test.csv": [
            [c, n] for c, n in zip(CLIPS, names, strict=True)
        ],
    }
    victim = draw.choice(sorted(tables))
    for name, rows in tables.items():
        content = _table(rows).encode()
        if name == victim:
            content, what, kind = _changed_table(draw, _table(rows))
            described = f"{name}: {what}"
        materials.file(name, content)
    if "attributes" in victim and kind == DAMAGED:
        kind = ODD  # not every clip needs a labelled name

    def act() -> bool:
        metrics = evaluate_submission(materials.folder / "submission", materials.folder / "truth")
        return bool(np.isfinite(metrics["official_score"]))

    return Trial(described, act, ("fan",), kind)


def attribute_table(draw: random.Random, materials: Materials) -> Trial:
    """A table of attributes of DCASE with another content."""
    rows = [["file_name", "d1p", "d1v"], *([f"fan/train/{clip}", "spd", str(i)] for i, clip in enumerate(CLIPS))]
    content, how, is_input = _changed_table(draw, _table(rows))
    path = materials.file("machine/attributes_00.csv", content)
    kind = is_input if is_input == GOOD or how == "semicolon" else ODD
    return Trial(f"attributes: {how}", lambda: read_attribute_tables(path.parent), ("attributes_00.csv",), kind)


def manifest(draw: random.Random, materials: Materials) -> Trial:
    """A manifest of a corpus with another content."""
    row = {
        "path": "a.wav",
        "num_frames": 16000,
        "sampling_rate": 16000,
        "split": "train",
        "corpus": "x",
        "licence": None,
    }
    rows: list[Any] = [row, row | {"path": "b.wav"}]
    is_input, how = ODD, draw.choice(("value", "value", "row", "bytes", "whole"))
    if how == "value":
        rows[1], how = _changed(draw, row)
    elif how == "row":
        rows[1], is_input = draw.choice([value for value in STRANGE if value is not None]), DAMAGED
        how = f"row is {rows[1]!r:.20}"
    content = "".join(json.dumps(one) + "\n" for one in rows).encode()
    if how == "whole":
        is_input = GOOD
    if how == "bytes":
        content, how, is_input = (*_damaged_bytes(draw, content)[:2], ODD)
    path = materials.file("manifest.jsonl", content)
    return Trial(f"manifest: {how}", lambda: read_manifest(path), ("manifest.jsonl",), is_input)


def archive(draw: random.Random, materials: Materials) -> Trial:
    """A ZIP archive, whole, damaged or hostile, unpacked."""
    stream = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    how = draw.choice(("whole", "bytes", "name", "link", "twice", "bomb", "flag", "folder"))
    is_input = GOOD
    with zipfile.ZipFile(stream, "w", method) as source:
        source.writestr("fan/train/a.wav", draw.randbytes(300))
        source.writestr("fan/train/b.wav", bytes(5000))
        if how == "name":
            bad = ("../x", "/x", "a/../../x", "C:\\x", "a\\..\\..\\x", "\\\\host\\x", "fan/train/../../../x")
            odd = (
                ".a.part",
                ".a.wav.part",
                "a" * 300,
                "con",
                " ",
                "fan/train/a.wav/x",
                "\u202e",
                "./x",
                "a//b",
            )
            name = draw.choice(bad + odd)
            is_input = DAMAGED if name in bad else ODD
            how = f"member {name!r:.20}"
            source.writestr(name, b"x")
        elif how == "link":
            info = zipfile.ZipInfo("fan/link")
            info.external_attr = (draw.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)) | 0o777) << 16
            source.writestr(info, "../../etc/passwd")
            is_input = DAMAGED
        elif how == "bomb":
            source.writestr("zeros", bytes(20_000_000))
    content = stream.getvalue()
    if how == "twice":
        content, is_input = content.replace(b"b.wav", b"a.wav"), DAMAGED
    elif how == "flag":
        directory = content.rindex(b"PK\x01\x02")
        offset, value = directory + draw.choice((8, 10, 20, 24, 28, 42)), draw.choice((0, 1, 0xFF))
        content, is_input = content[:offset] + bytes([value]) + content[offset + 1 :], ODD
    elif how == "bytes":
        content, how, is_input = _damaged_bytes(draw, content)
        if how.startswith("header of"):
            is_input = ODD
    path = materials.file("archive.zip", content)
    folder = materials.folder / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)

    def act() -> bool:
        files = extract_zip(path, folder, show_progress=False)
        return all(file.resolve().is_relative_to(folder.resolve()) for file in files)

    return Trial(f"archive: {how}", act, ("archive.zip",), is_input)


class _Evil:
    def __init__(self, call: Any, arguments: tuple):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def foreign_checkpoint(draw: random.Random, materials: Materials) -> Trial:
    """A checkpoint of others, damaged or hostile, read."""
    state: Any = {"model": {"weight": torch.ones(4, 3), "bias": torch.zeros(3)}, "epoch": 3}
    how = draw.choice(("whole", "bytes", "bytes", "evil", "pickle", "text", "opcodes", "stride"))
    legacy = draw.random() < 0.3
    is_input = GOOD
    if how == "evil":
        call = draw.choice(((eval, ("1",)), (print, ("x",)), (Path, ("x",)), (getattr, (state, "x")), (open, ("x",))))
        state["evil"], is_input = _Evil(*call), DAMAGED if call[0] is not Path else ODD
    elif how == "stride":
        state["model"]["weight"] = torch.ones(1).expand(draw.choice((10, 10**6)))
        is_input = ODD
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    content = stream.getvalue()
    if how == "bytes":
        content, how, is_input = _damaged_bytes(draw, content)
        is_input = ODD if how.startswith("header") else is_input
    elif how == "pickle":
        content, is_input = pickle.dumps(draw.choice(STRANGE), protocol=draw.randrange(6)), DAMAGED
    elif how == "text":
        content, is_input = draw.choice((b"", b"x", b"{}", b"\x80", b"PK\x03\x04", b"PK\x05\x06" + bytes(18))), DAMAGED
    elif how == "opcodes":
        body = bytes(
            draw.choice(b"(]}lts.0123NKMJGXUqrhjaeubcRp\x85\x86\x87\x88\x94") for _ in range(draw.randrange(60))
        )
        content, is_input = b"\x80\x02" + body + b".", DAMAGED
    path = materials.file("model.pt", content)
    return Trial(f"checkpoint of others: {how}", lambda: load_foreign_checkpoint(path), ("model.pt",), is_input)
