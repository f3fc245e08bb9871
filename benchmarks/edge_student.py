"""A student with the first layers of a noise-aware model, trained to give the tokens that all layers give.

    for seed in 100 101 102; do na-ssl simulate dcase --preset smoke --seed $seed --out other$seed; done
    python -m benchmarks.edge_student --data other100 other101 other102 --out STUDENT   # two layers of na-beats-tiny
    python -m benchmarks.edge_savings --data DATA --student STUDENT             # beside its teacher, on other sites

All weights of the student are trained, also those that are frozen in its teacher: it learns the tokens of the teacher
for the same two channels, and their averages over time, from random crops at random levels. `STUDENT` is a folder for
`load_model`. The losses of every tenth part of the training are printed, and the CPU time that it took.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.training.distillation import NoiseAwareDistillation
from na_ssl_hf.training.optimizers import make_optimizers

from .edge_runtimes import read
from .measuring import SEED, parser_of

CROP = 24000
GAIN_DB = 8.0
WARM_UP = 50
# Distances between clips are those of band vectors, whose differences are small beside those of tokens.
BAND_WEIGHT = 10.0


def shallow_copy_of(teacher: torch.nn.Module, num_layers: int) -> torch.nn.Module:
    """The teacher without its later layers."""
    config = copy.deepcopy(teacher.config)
    if not 0 < num_layers < config.num_hidden_layers:
        raise ValueError(f"`num_layers` must be from 1 to {config.num_hidden_layers - 1}, got {num_layers}.")
    config.num_hidden_layers = num_layers
    student = type(teacher)(config)
    known = teacher.state_dict()
    student.load_state_dict({name: known[name] for name in student.state_dict()})
    return student


def crops(clips: Sequence[np.ndarray], batch_size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Batches `(B, 2, 24000)` without end."""
    while True:
        batch = []
        for index in rng.integers(len(clips), size=batch_size):
            start = rng.integers(clips[index].shape[1] - CROP + 1)
            gain = 10 ** (rng.uniform(-GAIN_DB, GAIN_DB) / 20)
            batch.append(gain * clips[index][:, start : start + CROP])
        yield torch.from_numpy(np.stack(batch).astype(np.float32))


def train(
    teacher: torch.nn.Module, student: torch.nn.Module, batches: Iterator[torch.Tensor], num_steps: int, lr: float
) -> None:
    """Train the student in place, and print what it loses."""
    teacher.eval().requires_grad_(False)
    student.train().requires_grad_(True)
    objective = NoiseAwareDistillation(student, band_loss_weight=BAND_WEIGHT)
    optimizers = make_optimizers(objective, "adamw", lr)
    seen: list[tuple[float, float]] = []
    for step in range(num_steps):
        factor = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / num_steps)))
        features = objective.front_end(next(batches))  # (B, 2, T, M)
        with torch.no_grad():
            wanted = teacher(features).last_hidden_state
        loss = objective.loss(student(features).last_hidden_state, wanted)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        seen.append((loss.tokens.item(), loss.bands.item()))
        if (step + 1) % max(1, num_steps // 10) == 0:
            tokens, bands = np.mean(seen, axis=0)
            print(f"| {step + 1} | {tokens:.4g} | {bands:.4g} | {time.process_time():.0f} |", flush=True)
            seen = []
    student.eval()


def main() -> None:
    parser = parser_of(__doc__, "edge_student")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="what `na-ssl simulate dcase` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the student")
    parser.add_argument("--teacher", default="na-beats-tiny", help="noise-aware checkpoint (default: na-beats-tiny)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the student (default: 2)")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps (default: 800)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops in a step (default: 16)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    logging.disable_progress_bar()
    files = sorted(file for folder in options.data for file in folder.glob("*/*/*.wav"))
    clips = [clip for clip in map(read, files) if clip.shape[1] >= CROP]
    folder = resolve_checkpoint(options.teacher)
    teacher = load_model(folder)
    student = shallow_copy_of(teacher, options.layers)
    print(f"{options.layers} of {teacher.config.num_hidden_layers} layers of {options.teacher}, {len(clips)} clips\n")
    print("| step | loss of tokens | of band vectors | CPU s |")
    print("| --: | --: | --: | --: |", flush=True)
    batches = crops(clips, options.batch_size, np.random.default_rng(SEED))
    train(teacher, student, batches, options.steps, options.lr)
    student.save_pretrained(options.out)
    load_extractor(folder).save_pretrained(options.out)


if __name__ == "__main__":
    main()
