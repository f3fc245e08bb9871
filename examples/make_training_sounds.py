"""Write synthetic training sounds: machines, random sounds and backgrounds as 16 kHz FLAC with a table of all of them.

    python examples/make_training_sounds.py --out sounds --num 6000
    na-ssl corpora prepare sounds/target --out corpora/target --manifest-csv sounds/manifest.csv
    na-ssl corpora prepare sounds/noise --out corpora/noise --manifest-csv sounds/manifest.csv

Half of the targets are machines without faults, and half of them are random sounds. The machines are specimens 1, 2,
... of their type; specimen 0, which `na-ssl simulate` and the demo use, stays unheard. One in twenty sounds is for
validation and has another specimen and another seed. The same seed gives the same samples. 6,000 targets take about
three CPU minutes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import HEARD_MACHINE_TYPES, synthesize_machine
from na_ssl_hf.data.synthetic.random_sounds import synthesize_random_sound
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.simulation.staged_folder import staged_folder, write_manifest

TARGET_S, NOISE_S = 10.0, 30.0
TARGETS_PER_NOISE = 10
SOUNDS_PER_VALIDATION = 20
# A machine that is synthesised at these rates and played at 16 kHz runs, and rings, up to a quarter slower or faster.
RATES = (12800, 20000)
# A machine that only ever sounds like itself teaches a model to remove what else it does.
COMPANY_SHARE, COMPANY_DB = 0.35, (-20.0, 3.0)
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Recipe:
    """One sound to write, with its kind, its number within the kind, and its split."""

    kind: str
    index: int
    split: str

    def seeds(self, seed: int) -> list[int]:
        """Return the seeds of the sound, which differ between the splits."""
        return [seed, self.index, int(self.split == "validation")]

    @property
    def path(self) -> str:
        """The path of the file below the folder of all sounds."""
        return f"{'noise' if self.kind == 'background' else 'target'}/{self.kind}-{self.index:05d}.flac"


def plan(num_targets: int) -> list[Recipe]:
    """List the sounds to write for so many targets."""
    counts = {"machine": (num_targets + 1) // 2, "random": num_targets // 2}
    # Four different noises sound in one room, in validation too.
    counts["background"] = max(4 * SOUNDS_PER_VALIDATION, num_targets // TARGETS_PER_NOISE)
    return [
        Recipe(kind, index, "train" if index % SOUNDS_PER_VALIDATION else "validation")
        for kind, count in counts.items()
        for index in range(count)
    ]


def machine_in_company(seeds: list[int], is_validation: bool) -> tuple[np.ndarray, str]:
    """Synthesise a machine at a speed of its own, sometimes with a random sound beside it, and describe it."""
    rng = np.random.default_rng([300, *seeds])
    machine, domain = str(rng.choice(HEARD_MACHINE_TYPES)), str(rng.choice(["source", "target"]))
    unit = int(rng.integers(1000, 2000) if is_validation else rng.integers(1, 1000))
    rate = int(rng.integers(*RATES))
    num_samples = round(TARGET_S * SAMPLING_RATE)
    sound = synthesize_machine(machine, seeds, num_samples / rate, domain, 0.0, rate, unit=unit)
    origin = f"synthetic {machine}, specimen {unit}, {domain} domain, at {SAMPLING_RATE / rate:.2f} of its speed"
    if rng.random() < COMPANY_SHARE:
        other = synthesize_random_sound([1, *seeds], TARGET_S, SAMPLING_RATE)
        ratio = np.sqrt(np.mean(sound**2) / (np.mean(other**2) + 1e-9))
        sound = sound + np.float32(ratio * 10 ** (rng.uniform(*COMPANY_DB) / 20)) * other
        origin += ", with a random sound"
    return sound, origin


def synthesize(recipe: Recipe, seed: int) -> tuple[np.ndarray, str]:
    """Synthesise a sound and describe it."""
    seeds = recipe.seeds(seed)
    if recipe.kind == "machine":
        return machine_in_company(seeds, recipe.split == "validation")
    if recipe.kind == "random":
        return synthesize_random_sound([0, *seeds], TARGET_S, SAMPLING_RATE), "random synthetic sound"
    # The second summand gives validation, every twentieth index, all kinds as well.
    background = BACKGROUND_TYPES[(recipe.index + recipe.index // SOUNDS_PER_VALIDATION) % len(BACKGROUND_TYPES)]
    return synthesize_background(background, seeds, NOISE_S, SAMPLING_RATE), f"synthetic {background}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--num", type=int, default=6000, help="number of target sounds; backgrounds are a tenth as many (default: 6000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all sounds (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replacement of what an earlier call wrote")
    options = parser.parse_args()
    if options.num < 2:
        parser.error(f"--num must be at least 2, got {options.num}")

    rows = []
    with staged_folder(options.out, options.overwrite) as folder:
        for recipe in tqdm(plan(options.num), desc="training sounds", unit="sound"):
            sound, origin = synthesize(recipe, options.seed)
            # Levels are absolute, so a sound is turned down only where it would be clipped.
            sound = sound * min(1.0, 0.99 / (float(np.abs(sound).max()) + 1e-9))
            (folder / recipe.path).parent.mkdir(exist_ok=True)
            soundfile.write(folder / recipe.path, sound, SAMPLING_RATE, subtype="PCM_16")
            rows.append({"path": recipe.path, "split": recipe.split, "licence": LICENCE, "origin": origin})
        write_manifest(folder, rows)
    print(f"{options.out}: {len(rows)} sounds, {sum(row['split'] == 'train' for row in rows)} of them for training")


if __name__ == "__main__":
    main()
