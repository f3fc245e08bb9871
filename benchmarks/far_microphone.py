"""What a calibrated far microphone is worth at a fixed installation, beside the methods that learn nothing.

    python -m benchmarks.far_microphone                                            # machines of the package
    python -m benchmarks.far_microphone --machines FOLDER --noises FOLDER          # real ones, from folders
    python -m benchmarks.far_microphone --frontend na-eat-tiny --seed 1 2          # the base of a checkpoint

Every machine stands in one room, the same in training and test. Noise comes from the four corners, a share of it (the
coherence) the same from all; training and test have other noises; the SNR at the close microphone is -10 to 10 dB. A
memory of 40 normal clips, which also calibrate the far microphone, scores 40 normal and 40 faulty ones. The output is
Markdown: mean AUC in % over machines and seeds, and the difference to the close microphone alone with the 95 % interval
of its mean over machines and seeds. The settings of the filter were chosen on seed 0 of such machines.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf import MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_model
from na_ssl_hf.data.sound_files import find_sound_files
from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import DEFAULT_SEVERITY, synthesize_machine
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.front_end import TwoChannelFrontEnd
from na_ssl_hf.hub.noise_cancellation import METHODS as CLIP_METHODS
from na_ssl_hf.hub.noise_cancellation import cancel_far_microphone
from na_ssl_hf.hub.recording import load_recording
from na_ssl_hf.simulation import draw_room, mix_two_channel, simulate_impulse_responses
from na_ssl_hf.simulation.mixing import spatial_noises

from . import NUM_THREADS
from .layers import load_scorer
from .measuring import NUM_SAMPLES, SEED, Row, alternate, auc_of_scores, parser_of, progress

MACHINES = ("fan", "gearbox", "bearing", "valve", "toycar")
COHERENCES = (1.0, 0.5, 0.0)
METHODS = ("none", "least_squares", "spectral_subtraction", "filter", "installation", "auto")
SNR_RANGE_DB = (-10.0, 10.0)
NUM_CLIPS = 40
CLIP_S = 5.0
LEVEL = 0.05  # RMS of full scale of real machines and noises, whose recorders had gains of their own

# The clips of a machine, `(N,)` each, by part ("train", "normal", "anomaly"), and the noises of "train" and "test".
Targets = dict[str, list[np.ndarray]]
Noises = dict[str, list[np.ndarray]]


class Embedder(NamedTuple):
    """Makes embeddings `(clips, F, D)` of close channels `(clips, N)`, and has the unfitted memory for them."""

    vectors: Callable[[torch.Tensor], torch.Tensor]
    memory: MemoryBank


def main() -> None:
    parser = parser_of(__doc__, "far_microphone")
    parser.add_argument("--coherence", nargs="+", type=float, default=COHERENCES, help="shares of common noise")
    parser.add_argument("--seed", nargs="+", type=int, default=[1, 2], help="seeds of rooms and clips (default: 1 2)")
    parser.add_argument("--frontend", default="logmel", help="logmel, or a checkpoint, of which the base is taken")
    parser.add_argument(
        "--method", nargs="+", default=METHODS, choices=METHODS, help="methods beside none (default: all)"
    )
    options = options_of_sites(parser)
    embed = embedder(options.frontend)
    methods = [method for method in METHODS if method in ("none", *options.method)]
    aucs: dict[float, list[np.ndarray]] = {coherence: [] for coherence in options.coherence}
    for seed in options.seed:
        for name, targets, noises in sounds(options.machines, options.noises, seed):
            for coherence, of_sites in aucs.items():
                of_sites.append(aucs_of_site(targets, noises, coherence, seed, embed, methods))
                values = [f"{method} {100 * auc:.1f}" for method, auc in zip(methods, of_sites[-1], strict=True)]
                progress(f"[seed {seed}, {name}, coherence {coherence:g}] {', '.join(values)}")
    print("| coherence | method | AUC in % | beyond the close microphone | least of a machine |")
    print("| --: | :-- | --: | --: | --: |")
    for coherence, of_sites in aucs.items():
        print_rows(coherence, 100 * np.array(of_sites), len(options.seed), methods)


def options_of_sites(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a benchmark at sites, with folders of real machines; then be quiet, and on few threads.

    Without folders the machines are those of the package, see `sounds`.
    """
    parser.add_argument("--machines", type=Path, help="real machines, <machine>/normal and <machine>/anomaly")
    parser.add_argument("--noises", type=Path, help="real noises, sound files; half of them for training")
    options = parser.parse_args()
    if (options.machines is None) != (options.noises is None):
        parser.error("--machines and --noises must be given together")
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return options


def print_rows(coherence: float, aucs: np.ndarray, num_seeds: int, methods: Sequence[str]) -> None:
    """Print a row of the table for each method; `aucs (seeds * machines, methods)` in %."""
    for index, method in enumerate(methods):
        gains = aucs[:, index] - aucs[:, methods.index("none")]
        interval = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        least = gains.reshape(num_seeds, -1).mean(axis=0).min()
        cells = [f"{coherence:g}", method, f"{aucs[:, index].mean():.1f}"]
        print(f"| {' | '.join(cells)} | {gains.mean():+.1f} ± {interval:.1f} | {least:+.1f} |", flush=True)


def embedder(frontend: str) -> Embedder:
    """Return what makes embeddings of close channels, and the memory for them."""
    if frontend == "logmel":
        return Embedder(
            lambda close: log_mel_embeddings(list(close)), MemoryBank(distance="euclidean", normalize=False)
        )
    scorer = load_scorer(frontend)

    def embed(close: torch.Tensor) -> torch.Tensor:
        clips = [{"array": clip.expand(2, -1).numpy(), "sampling_rate": SAMPLING_RATE} for clip in close]
        return scorer.embed(clips, batch_size=8, pooling="mean")

    return Embedder(embed, MemoryBank())


def aucs_of_site(
    targets: Targets,
    noises: Noises,
    coherence: float,
    seed: int,
    embed: Embedder,
    methods: Sequence[str] = METHODS,
) -> np.ndarray:
    """Put a machine into a room, and return the AUC of every method, `(methods,)`."""
    mixtures = mixed(targets, noises, coherence, seed)
    aucs = []
    for method in methods:
        cancel = canceller(method, mixtures["train"])
        aucs.append(
            auc_of_vectors(embed.memory, {part: embed.vectors(cancel(clips)) for part, clips in mixtures.items()})
        )
    return np.array(aucs)


def auc_of_vectors(memory: MemoryBank, vectors: Mapping[str, torch.Tensor]) -> float:
    """Return the AUC of "normal" and "anomaly" vectors `(clips, F, D)` by such a memory of the "train" ones."""
    bank = replace(memory).fit(vectors["train"])
    return auc_of_scores(*(torch.as_tensor(bank.score(vectors[part])).numpy() for part in ("normal", "anomaly")))


def canceller(method: str, train: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes close channels `(B, N)` of recordings `(B, 2, N)`; it may learn from normal ones."""
    if method == "none":
        return lambda clips: clips[:, 0]
    if method in CLIP_METHODS:
        return lambda clips: cancel_far_microphone(clips[:, 0], clips[:, 1], method)
    far_microphone = FarMicrophone(method).fit(train)
    return lambda clips: far_microphone.cancel(clips)[:, 0]


def mixed(
    targets: Targets,
    noises: Noises,
    coherence: float,
    seed: int,
    snr_range_db: tuple[float, float] = SNR_RANGE_DB,
) -> dict[str, torch.Tensor]:
    """Mix the clips of one machine in one room: `(clips, 2, N)` for "train", "normal" and "anomaly"."""
    random = np.random.default_rng([seed, 1])
    room = simulate_impulse_responses(draw_room([seed, round(1e6 * float(np.abs(targets["train"][0]).mean()))]))
    mixtures = {}
    for part, clips in targets.items():
        pool = noises["train" if part == "train" else "test"]
        mixed_clips = []
        for clip in clips:
            chosen = random.choice(len(pool), 4, replace=False)
            around = np.stack([crop(pool[index], len(clip), random) for index in chosen])  # (4, N)
            channels = mix_two_channel(
                torch.from_numpy(clip)[None].float(),
                spatial_noises(torch.from_numpy(around)[None].float(), coherence),
                room.target[None],
                room.noise[None],
                torch.tensor([random.uniform(*snr_range_db)]),
                torch.tensor([room.direct_delay]),
            )
            mixed_clips.append(torch.cat([channels.close, channels.far]))
        mixtures[part] = torch.stack(mixed_clips)
    return mixtures


def sounds(
    machines: Path | None, noises: Path | None, seed: int, num_clips: int | None = None
) -> list[tuple[str, Targets, Noises]]:
    """Return name, clips and noises of every machine: synthetic ones, or those of two folders."""
    if machines is None or noises is None:
        split = synthetic_noises(seed)
        return [(name, synthetic_targets(name, seed, num_clips), split) for name in MACHINES]
    random = np.random.default_rng([seed, 0])
    files = find_sound_files([noises])
    random.shuffle(files)
    of_split = {"train": files[: len(files) // 2], "test": files[len(files) // 2 :]}
    split = {name: [wave_of(file) for file in part] for name, part in of_split.items()}
    places = sorted(place for place in machines.iterdir() if (place / "normal").is_dir())
    return [(place.name, real_targets(place, random, num_clips), split) for place in places]


def synthetic_targets(name: str, seed: int, num_clips: int | None = None) -> Targets:
    """Synthesise the clips of a machine of the package."""
    random = np.random.default_rng([seed, MACHINES.index(name)])
    targets = {}
    for number, part in enumerate(("train", "normal", "anomaly")):
        faults = (
            DEFAULT_SEVERITY[name] * np.exp(0.25 * random.standard_normal(num_clips or NUM_CLIPS)) * (part == "anomaly")
        )
        targets[part] = [
            synthesize_machine(name, [seed, number, index], CLIP_S, severity=float(fault))
            for index, fault in enumerate(faults)
        ]
    return targets


def synthetic_noises(seed: int) -> Noises:
    """Synthesise two backgrounds of each type for training, and two others for the test."""
    return {
        split: [
            synthesize_background(kind, [seed, number, index], 4 * CLIP_S, SAMPLING_RATE)
            for kind in BACKGROUND_TYPES
            for index in range(2)
        ]
        for number, split in enumerate(("train", "test"))
    }


def real_targets(place: Path, random: np.random.Generator, num_clips: int | None = None) -> Targets:
    """Read the clips of a machine, level-matched and file by file; half of the normal files are for training."""
    normal, anomaly = ([wave_of(file) for file in find_sound_files([place / kind])] for kind in ("normal", "anomaly"))
    length = min(round(CLIP_S * SAMPLING_RATE), int(np.median([len(wave) for wave in normal + anomaly])))
    order = random.permutation(len(normal))
    files = {
        "train": [normal[index] for index in order[: len(order) // 2]],
        "normal": [normal[index] for index in order[len(order) // 2 :]],
        "anomaly": anomaly,
    }
    return {
        part: [crop(waves[index % len(waves)], length, random) for index in range(num_clips or NUM_CLIPS)]
        for part, waves in files.items()
    }


def wave_of(file: Path) -> np.ndarray:
    """Read the first channel of a sound file `(N,)` float32 at the level of all others."""
    wave = np.asarray(load_recording(file, SAMPLING_RATE).samples, dtype=np.float32)[0]
    return wave * np.float32(LEVEL / max(float(np.sqrt(np.square(wave).mean())), 1e-9))


def crop(wave: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    """Return a random part `(length,)` of a wave, which is repeated where it is shorter."""
    if len(wave) < length:
        wave = np.tile(wave, -(-length // len(wave)))
    start = random.integers(len(wave) - length + 1)
    return wave[start : start + length]


def measure() -> list[Row]:
    """Measure the CPU time of calibration and of use, beside the tiny model, and what it is worth for a fan."""
    clips = 0.1 * torch.randn(8, 2, NUM_SAMPLES) * torch.linspace(0.1, 1, 8)[:, None, None]
    # The close microphone is the first to hear what both hear, or "auto" would stand back.
    clips[:, 0] += clips[:, 1].roll(-5, -1)
    heard = FarMicrophone("auto").partial_fit(clips)  # which takes longest
    far_microphone = FarMicrophone().fit(clips)
    far_microphone.slope_ += 0.1  # so that the subtraction runs, too
    model, base = (load(resolve_checkpoint("na-beats-tiny")) for load in (load_model, base_of))
    fbank = TwoChannelFrontEnd()(clips[:1])
    with torch.no_grad():
        learning, solving, use, of_model, of_base = alternate(
            5,
            lambda: FarMicrophone("auto").partial_fit(clips),
            heard.finish,
            lambda: far_microphone.cancel(clips[:1]),
            lambda: model(fbank),
            lambda: base(fbank),
        )
    seconds = 1000 / len(clips) * learning + solving
    site = synthetic_targets("fan", SEED), synthetic_noises(SEED), 1.0, SEED
    aucs = dict(zip(METHODS, aucs_of_site(*site, embedder("logmel")), strict=True))
    gain = 100 * float(aucs["installation"] - aucs["none"])
    return [
        Row("far microphone: calibration on 1,000 x 10 s", seconds, None, "-", "< 60 s", seconds < 60),
        Row(
            "far microphone: 10 s, beside na-beats-tiny",
            use,
            of_model,
            f"{use / of_model:.2f} x the model",
            "< 0.15 x",
            use < 0.15 * of_model,
            note=f"its base, which hears the close channel alone, takes {of_base:.3f} s",
        ),
        Row(
            "far microphone: AUC of a fan, same noise from all corners",
            100 * float(aucs["installation"]),
            100 * float(aucs["none"]),
            f"{gain:+.1f}",
            "-",
            None,
            "%",
            "left calibrated, right close microphone; python -m benchmarks.far_microphone has the table",
        ),
    ]


def base_of(checkpoint: Path) -> torch.nn.Module:
    """Return the base inside a noise-aware model."""
    return load_model(checkpoint).to_base()


ITEMS = {"far-microphone": measure}


if __name__ == "__main__":
    main()
