"""A small fleet for the tests: machines with recordings, scorers and a table."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile

from na_ssl_hf.cli import main

RATE = 16000


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def write_clip(path: Path, seed: int, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.05 * np.random.default_rng(seed).standard_normal((int(seconds * RATE), 2))
    soundfile.write(path, samples, RATE)
    return path


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def make_fleet(folder: Path, num_machines: int = 3, num_clips: int = 3) -> SimpleNamespace:
    """`FOLDER/m0/normal`, `FOLDER/m0/today` and so on; `machines.csv` with relative paths, folders and patterns."""
    rows = []
    for index in range(num_machines):
        name = f"m{index}"
        for clip in range(4):
            write_clip(folder / name / "normal" / f"{clip}.wav", 100 * index + clip)
        for clip in range(num_clips):
            write_clip(folder / name / "today" / f"{clip}.wav", 100 * index + 50 + clip)
        today = f"{name}/today" if index % 2 else f"{name}/to*/*.wav"
        rows.append({"machine": name, "scorer": f"scorers/{name}", "normal": f"{name}/normal", "recordings": today})
    return SimpleNamespace(folder=folder, rows=rows, table=write_table(folder / "machines.csv", rows))


def read_rows(out: Path) -> list[dict]:
    from pyarrow import parquet

    return parquet.read_table(out).to_pylist() if list(out.glob("*.parquet")) else []
