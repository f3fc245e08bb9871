"""Kill the package at random instants of writing, and look at what is left.

    python -m benchmarks.kill                                   # 200 kills, some minutes (`make kill`)
    python -m benchmarks.kill --kills 50 --only scorer --seed 7

After every kill the result must be the old one or the new one, whole. Then the same command is given again, and must
end in the new result without anything left over beside it. The exit status is 1 where that was not so.
"""

import hashlib
import importlib.util
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoFeatureExtractor, AutoModel, pipeline
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, EatConfig, EatModel, TwoChannelFeatureExtractor
from na_ssl_hf.cli import main as command_line
from na_ssl_hf.data.corpora.manifest import SoundFile, write_manifest
from na_ssl_hf.simulation import RoomPool, simulate_recordings, write_dcase_benchmark, write_two_channel_dataset
from na_ssl_hf.training.checkpoint_folder import latest_checkpoint

from .measuring import parser_of

OLD, NEW, NEITHER, MIXED, NOT_AGAIN, LEFT_OVER = "old", "new", "neither", "mixed", "not repeatable", "left over"
OUTCOMES = (OLD, NEW, NEITHER, MIXED, NOT_AGAIN, LEFT_OVER)
NOTHING = "nothing"
# Python's audit events of what changes a folder.
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Victim:
    """Something that writes.

    Attributes:
        write: `(out, materials)`: the command to kill.
        content: what is at a path, in a form that can be compared; raises where it is not whole.
        write_old: as `write`, for what is there before; `None` for nothing.
        steps: the contents that may be found on the way, from a finished result; `None` for none.
    """

    write: Callable[[Path, Path], object]
    content: Callable[[Path], Hashable]
    write_old: Callable[[Path, Path], object] | None = None
    steps: Callable[[Path], set[Hashable]] | None = None


def _noise(seed: int, frames: int = 16000, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, frames))).astype(np.float32)


def _digest(path: Path) -> Hashable:
    """Of a file, or of all files of a folder with their names."""
    if not path.exists():
        return NOTHING
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return tuple((str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)


# The scorer


def _model(seed: int) -> EatModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return EatModel(EatConfig(**sizes, max_time_patches=32)).eval()


def _write_scorer(seed: int) -> Callable[[Path, Path], object]:
    def write(out: Path, materials: Path) -> None:
        scorer = AnomalyScorer(model=_model(seed), feature_extractor=TwoChannelFeatureExtractor(frontend="eat"))
        scorer.fit([_noise(10 * seed + index) for index in range(20)], progress=None).save_pretrained(out)

    return write


def _scores(out: Path) -> Hashable:
    if not out.exists():
        return NOTHING
    scorer = pipeline("anomaly-scoring", model=str(out))
    return tuple(round(result["score"], 5) for result in scorer([_noise(1000), _noise(1001)])), scorer.threshold


# Simulated data


def _write_data_set(seed: int) -> Callable[[Path, Path], object]:
    def write(out: Path, materials: Path) -> None:
        write_two_channel_dataset(
            out, ["fan"], 2, 1, 1, 0.5, num_rooms=2, num_places=1, seed=seed, overwrite=True, show_progress=False
        )

    return write


def _write_rooms(seed: int) -> Callable[[Path, Path], object]:
    def write(out: Path, materials: Path) -> None:
        arguments = ["--num", "2", "--seed", str(seed), "--out", str(out), "--workers", "1"]
        if command_line(["simulate", "rooms", *arguments]):
            raise OSError("the command failed")

    return write


def _rooms(out: Path) -> Hashable:
    if not out.exists():
        return NOTHING
    RoomPool.load(out).batch([0, 1])
    return _digest(out)


def _write_recordings(seed: int) -> Callable[[Path, Path], object]:
    def write(out: Path, materials: Path) -> None:
        simulate_recordings(
            materials / "targets", materials / "noises", out, (0.0,), 2, seed, overwrite=True, show_progress=False
        )

    return write


# Results of a system


def _run_system(data: str) -> Callable[[Path, Path], object]:
    def write(out: Path, materials: Path) -> None:
        arguments = ["--system", "logmel", "--data", str(materials / data), "--out", str(out), "--no-report"]
        if command_line(["dcase", "run", *arguments]):
            raise OSError("the command failed")

    return write


def _results(out: Path) -> Hashable:
    return _digest(out / "logmel")


# Distillation

SCRIPT = Path(__file__).parents[1] / "examples" / "train_na_distillation.py"


def _distil(out: Path, materials: Path) -> None:
    options = {
        "base": materials / "base",
        "targets": materials / "targets.jsonl",
        "noises": materials / "noises.jsonl",
        "rooms": materials / "rooms.safetensors",
        "validation_rooms": materials / "rooms.safetensors",
        "output_dir": out,
        "duration": 0.5,
        "batch_size": 2,
        "max_steps": 6,
        "save_every": 1,
        "validate_every": 6,
        "validation_examples": 2,
        "noise_aware_heads": 2,
        "ema_start": 2,
        "keep": 0,
        "trackers": False,
        "cpu": True,
        "resume": "latest",
    }
    sys.argv = [str(SCRIPT), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # where dataclasses look up annotations
    spec.loader.exec_module(script)
    script.main()


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _training(out: Path) -> Hashable:
    if (out / "model.safetensors").exists():
        AutoFeatureExtractor.from_pretrained(out)
        AutoModel.from_pretrained(out)
        return "finished", _weights(out)
    checkpoint = latest_checkpoint(out / "checkpoints")
    return NOTHING if checkpoint is None else (checkpoint.name, _weights(checkpoint))


def _training_steps(out: Path) -> set[Hashable]:
    return {(folder.name, _weights(folder)) for folder in (out / "checkpoints").glob("step-*")}


VICTIMS = {
    "scorer, saved": Victim(_write_scorer(1), _scores),
    "scorer, saved over another": Victim(_write_scorer(1), _scores, _write_scorer(2)),
    "data set, overwritten": Victim(_write_data_set(1), _digest, _write_data_set(2)),
    "simulate rooms": Victim(_write_rooms(1), _rooms, _write_rooms(2)),
    "simulate recordings": Victim(_write_recordings(1), _digest, _write_recordings(2)),
    "dcase run": Victim(_run_system("data"), _results, _run_system("other data")),
    "distillation": Victim(_distil, _training, steps=_training_steps),
}


def make_materials(folder: Path) -> None:
    """Write what the victims read."""
    folder.mkdir()
    for name, seed in (("data", 1), ("other data", 2)):
        write_dcase_benchmark(
            folder / name, "smoke", seed=seed, machines=("fan",), installation="moving", show_progress=False
        )
    _model(0).save_pretrained(folder / "base")
    RoomPool.simulate(2, 0, folder / "rooms.safetensors", show_progress=False)
    for use, count in (("targets", 2), ("noises", 4)):
        (folder / use).mkdir()
        sounds = []
        for index in range(2 * count):
            path = folder / use / f"{index}.wav"
            soundfile.write(path, _noise(index, channels=1)[0], 16000)
            split = "train" if index < count else "validation"
            sounds.append(SoundFile(str(path), 16000, 16000, split, "made-up", "CC0-1.0"))
        write_manifest(folder / f"{use}.jsonl", sounds)


def in_child(
    act: Callable[[], object], kill_after_s: float | None = None, kill_at: int | None = None, changes: Any = None
) -> int:
    """Do something in a forked child, which imports nothing anew; return its status, negative for a signal.

    Args:
        act: what to do.
        kill_after_s: the parent kills the child after so many seconds.
        kill_at: the child kills itself before its change of the file system with this number.
        changes: a shared place where the child counts its changes of the file system.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            _watch_changes(kill_at, changes)
            act()
            status = 0
        except BaseException as error:
            os.write(errors, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _watch_changes(kill_at: int | None, changes: Any) -> None:
    """Count the changes of the file system that Python makes, in this process, and die before one of them."""
    number = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal number
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not is_write and event not in _CHANGES:
            return
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        number += 1
        if changes is not None:
            changes[:8] = number.to_bytes(8, "little")

    if kill_at is not None or changes is not None:
        sys.addaudithook(hook)


def kill(victim: Victim, num_kills: int, draw: random.Random, materials: Path, folder: Path, name: str) -> Counter:
    """Kill a victim so many times, and count what was left.

    Every other kill comes at a random time, the others before a random change of the file system: writing takes a
    small part of the time.
    """
    old, out, reference = folder / "old", folder / "results" / "out", folder / "reference"
    for path in (reference, old):
        if victim.write_old and in_child(lambda path=path: victim.write_old(path, materials)):  # type: ignore[misc]
            raise OSError(f"{name}: the old result cannot be written")
    changes = mmap.mmap(-1, 8)
    began = time.monotonic()
    if in_child(lambda: victim.write(reference, materials), changes=changes):
        raise OSError(f"{name}: the new result cannot be written")
    duration_s, num_changes = time.monotonic() - began, int.from_bytes(changes[:8], "little")
    of_old, of_new = victim.content(old), victim.content(reference)
    assert of_old != of_new
    known = {of_old} | (victim.steps(reference) if victim.steps else set())
    counts: Counter = Counter()
    for number in tqdm(range(num_kills), name, unit="kill", disable=not sys.stderr.isatty()):
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if old.is_dir():
            shutil.copytree(old, out)
        elif old.exists():
            shutil.copy2(old, out)
        if number % 2:
            in_child(lambda: victim.write(out, materials), kill_after_s=draw.uniform(0.0, duration_s))
        else:
            in_child(lambda: victim.write(out, materials), kill_at=draw.randrange(num_changes))
        counts[_what_is_left(victim, out, of_new, of_old, known, name)] += 1
        if in_child(lambda: victim.write(out, materials)) or victim.content(out) != of_new:
            counts[NOT_AGAIN] += 1
        counts[LEFT_OVER] += [path.name for path in out.parent.iterdir()] != ["out"]
    return counts


def _what_is_left(
    victim: Victim, out: Path, of_new: Hashable, of_old: Hashable, known: set[Hashable], name: str
) -> str:
    try:
        found = victim.content(out)
    except Exception as error:
        print(f"{name}, neither: {type(error).__name__}: {error}", file=sys.stderr)
        return NEITHER
    if found == NOTHING != of_old:
        return NEITHER
    return NEW if found == of_new else OLD if found in known else MIXED


def main() -> int:
    parser = parser_of(__doc__, "kill")
    parser.add_argument("--kills", type=int, default=200, help="number of kills, of all victims (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants (default: 0)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="beginnings of names of victims")
    options = parser.parse_args()
    chosen = [name for name in VICTIMS if name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only must name the beginning of some of {', '.join(VICTIMS)}, got {' '.join(options.only)}")
    # A fork of a process with threads may hang.
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    counts = {}
    with tempfile.TemporaryDirectory(prefix="na-ssl-kill-") as name:
        folder = Path(name)
        if in_child(lambda: make_materials(folder / "materials")):
            raise OSError("The materials cannot be written.")
        for number, victim in enumerate(chosen):
            share = options.kills // len(chosen) + (number < options.kills % len(chosen))
            own = folder / str(number)
            own.mkdir()
            draw = random.Random(1000 * options.seed + number)
            counts[victim] = kill(VICTIMS[victim], share, draw, folder / "materials", own, victim)
    print("| victim | kills | " + " | ".join(OUTCOMES) + " |")
    print("|---" + "|---:" * (1 + len(OUTCOMES)) + "|")
    for victim, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        kills = sum(count[outcome] for outcome in OUTCOMES[:4])
        print(f"| {victim} | {kills} | " + " | ".join(str(count[outcome]) for outcome in OUTCOMES) + " |")
    return int(any(count[outcome] for count in counts.values() for outcome in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main())
