"""Where the noise-aware layers of a checkpoint help and where they do harm: error ratios by sound and condition.

    python -m benchmarks.distillation_conditions na-eat-tiny
    python -m benchmarks.distillation_conditions CHECKPOINT --targets "real fan=FOLDER" "events=targets.jsonl" \\
        --noises noises.jsonl

A ratio is the squared error of the model's tokens towards the base's tokens of the clean sound, as a share of the error
of the base itself on the same input: at 1 the noise-aware layers change nothing, above 1 they do harm. Synthetic
machines and speech-like babble are always there; `--targets` adds sounds, level-matched, from folders or manifests (of
which the split validation is taken). Every sound stands in the same rooms under all conditions, five seconds each. The
output is Markdown: a table of ratios, then the mean and the worst of them. "Mean of both" is the mean of the tokens of
model and base.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_model
from na_ssl_hf.data.corpora.manifest import read_manifest
from na_ssl_hf.data.sound_files import find_sound_files
from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import MACHINE_TYPES, synthesize_machine
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.modeling_noise_aware import NoiseAwareModelMixin
from na_ssl_hf.simulation import draw_room, simulate_impulse_responses
from na_ssl_hf.training.validation_conditions import (
    CONDITIONS,
    REFERENCE,
    ClipErrors,
    Sounds,
    errors_by_condition,
    share_of_noisy_error,
)

from . import NUM_THREADS
from .far_microphone import LEVEL, crop, wave_of
from .measuring import parser_of, progress

CLIP_S = 5.0
NUM_CALIBRATION = 4
# Seeds that no checkpoint of the package was trained with.
ROOM_SEED, SOUND_SEED = 7_000_001, 7_000_002


def main() -> None:
    parser = parser_of(__doc__, "distillation_conditions")
    parser.add_argument("model", help="noise-aware checkpoint: a folder, or a name on the hub or of the package")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME=PATH", help="folders or manifests of sounds")
    parser.add_argument("--noises", type=Path, metavar="PATH", help="folder or manifest (default: synthetic noises)")
    parser.add_argument("--clips", type=int, default=24, help="mixtures of each kind of sound (default: 24)")
    options = parser.parse_args()
    pools = [pair.partition("=") for pair in options.targets]
    for name, equals, _ in pools:
        if not equals:
            parser.error(f"--targets must be NAME=PATH, got {name!r}")
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    model = load_model(resolve_checkpoint(options.model)).eval()
    if not isinstance(model, NoiseAwareModelMixin):
        sys.exit(f"the checkpoint must be a noise-aware model, got {type(model).__name__}")
    noises = synthetic_noises(options.clips) if options.noises is None else waves_of(options.noises)
    kinds = {"synthetic machines": synthetic_machines(options.clips), "speech-like": speech_like(options.clips)}
    kinds |= {name: waves_of(Path(path)) for name, _, path in pools}
    found = {}
    for kind, waves in kinds.items():
        sounds = in_rooms(waves, noises, options.clips)
        found[kind] = errors_by_condition(model, sounds, progress=lambda name, kind=kind: progress(f"{kind}: {name}"))
    print(table(found))


def synthetic_machines(count: int) -> list[np.ndarray]:
    """Synthesise machines of all types, specimens and recordings that no training heard."""
    types = [MACHINE_TYPES[index % len(MACHINE_TYPES)] for index in range(count)]
    waves = [
        synthesize_machine(name, [SOUND_SEED, index], 2 * CLIP_S, unit=SOUND_SEED + index)
        for index, name in enumerate(types)
    ]
    return [levelled(wave) for wave in waves]


def speech_like(count: int) -> list[np.ndarray]:
    """Synthesise babble of voices."""
    return [
        levelled(synthesize_background("voices", [SOUND_SEED, index], 2 * CLIP_S, SAMPLING_RATE))
        for index in range(count)
    ]


def synthetic_noises(count: int) -> list[np.ndarray]:
    """Synthesise backgrounds of all types."""
    types = [BACKGROUND_TYPES[index % len(BACKGROUND_TYPES)] for index in range(max(count, 8))]
    return [
        levelled(synthesize_background(name, [SOUND_SEED, 1, index], 2 * CLIP_S, SAMPLING_RATE))
        for index, name in enumerate(types)
    ]


def levelled(wave: np.ndarray) -> np.ndarray:
    """Bring a wave to the level of all others, float32."""
    return (wave * (LEVEL / max(float(np.sqrt(np.square(wave).mean())), 1e-9))).astype(np.float32)


def waves_of(path: Path) -> list[np.ndarray]:
    """Read the sounds of a folder, or those of the split validation of a manifest, level-matched.

    Raises:
        ValueError: there are fewer than four, one for each corner of a room.
    """
    if path.is_dir():
        files = find_sound_files([path])
    else:
        files = sorted({Path(sound.path) for sound in read_manifest(path) if sound.split == "validation"})
    if len(files) < 4:
        raise ValueError(f"a kind of sound must have at least four files, got {len(files)} in {path}")
    return [wave_of(file) for file in files]


def in_rooms(waves: Sequence[np.ndarray], noises: Sequence[np.ndarray], count: int) -> Sounds:
    """Put crops of sounds into rooms, which depend on the count alone; each with others for calibration."""
    random = np.random.default_rng(SOUND_SEED)
    length = round(CLIP_S * SAMPLING_RATE)
    rooms = [simulate_impulse_responses(draw_room([ROOM_SEED, index])) for index in range(count)]
    taps = max(room.target.shape[-1] for room in rooms)

    def padded(response: Tensor) -> Tensor:
        return torch.nn.functional.pad(response, (0, taps - response.shape[-1]))

    # Evenly over the files, so that the classes of a sorted folder all have their share.
    chosen = [waves[round(index * len(waves) / count) % len(waves)] for index in range(count)]

    def sounds(repeats: int, calibration: Sounds | None) -> Sounds:
        of_rooms = [room for room in rooms for _ in range(repeats)]
        around = [random.choice(len(noises), 4, replace=False) for _ in of_rooms]
        return Sounds(
            stacked([crop(wave, length, random) for wave in chosen for _ in range(repeats)]),
            torch.stack([stacked([crop(noises[index], length, random) for index in four]) for four in around]),
            torch.stack([padded(room.target) for room in of_rooms]),
            torch.stack([padded(room.noise) for room in of_rooms]),
            torch.tensor([room.direct_delay for room in of_rooms]),
            calibration,
        )

    return sounds(1, sounds(NUM_CALIBRATION, None))


def stacked(waves: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(waves)).float()


def ratio_cell(errors: ClipErrors) -> str:
    """State the ratio of a noise-aware model's errors to its base's, with its 95 % interval."""
    low, high = errors.interval()
    return f"{errors.ratio():.2f} [{low:.2f}, {high:.2f}]"


def table(found: Mapping[str, Mapping[str, ClipErrors]]) -> str:
    """Make the Markdown of ratios, a column for every kind of sound, with their mean and the worst below."""
    kinds = list(found)
    lines = [
        f"| condition | {' | '.join(kinds)} | mean of both: worst |",
        f"| :-- |{' --: |' * (len(kinds) + 1)}",
    ]
    ratios = {}
    for name, condition in CONDITIONS.items():
        if math.isinf(condition.snr_db):
            # The base itself is off by late reverberation alone there, so that a ratio to it says nothing.
            shares = [f"{share_of_noisy_error(found[kind], name):.2f}" for kind in kinds]
            lines.append(f"| {name}, as a share of the base's error at {REFERENCE} | {' | '.join(shares)} | |")
            continue
        of_kinds = [found[kind][name] for kind in kinds]
        cells = []
        for kind, errors in zip(kinds, of_kinds, strict=True):
            ratios[kind, name] = errors.ratio()
            cells.append(ratio_cell(errors))
        lines.append(f"| {name} | {' | '.join(cells)} | {max(errors.ratio('mean') for errors in of_kinds):.2f} |")
    (kind, name), worst = max(ratios.items(), key=lambda item: item[1])
    of_reference = [ratios[each, REFERENCE] for each in kinds]
    lines += [
        "",
        f"Mean ratio at {REFERENCE} over kinds of sound {np.mean(of_reference):.2f}, worst {max(of_reference):.2f} "
        f"({kinds[int(np.argmax(of_reference))]}); worst of all conditions {worst:.2f} ({kind}, {name}).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
