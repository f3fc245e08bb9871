"""Where to put the two microphones, and what two recorders, gains and rates do: the far microphone in each case.

    python -m benchmarks.placing --out placing.jsonl
    python -m benchmarks.placing --out placing.jsonl --part 0 2      # one of two processes that share the work
    python -m benchmarks.placing --out placing.jsonl --tables        # the tables of what there is

Every site is a machine of the package in one room, with noise from the four corners; the coherence is the share of it
that all corners have in common. The SNR is 0 dB at a close microphone in the usual place. Training and test have other
clips and other noises. Each condition changes one thing at the site; clips, noises and the loudness of sources stay.
Log-mel statistics of 32 normal clips, which also calibrate the far microphone, score 20 normal and 20 faulty ones.

The simulation moves the machine by up to 8 cm along each axis (the randomised image method), so that a close microphone
at 5 cm may be 15 cm away. The output is Markdown: mean AUC in %, and differences to the close microphone alone in the
same condition with the 95 % interval of the mean over sites. No setting of the package was chosen on these seeds.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from transformers.utils import logging

from na_ssl_hf import MemoryBank
from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import DEFAULT_SEVERITY, MACHINE_TYPES, synthesize_machine
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone
from na_ssl_hf.simulation import draw_room, simulate_impulse_responses
from na_ssl_hf.simulation.mixing import spatial_noises
from na_ssl_hf.simulation.rooms import CLOSE_DISTANCE, Position, Room

from . import NUM_THREADS
from .installations import read
from .measuring import auc_of_scores, parser_of, progress

MACHINES = ("fan", "gearbox", "bearing", "valve")
COHERENCES = (1.0, 0.5)
CALIBRATED = ("auto", "installation")
CANCELLERS = ("none", *CALIBRATED, "spectral_subtraction")
SNR_DB = 0.0
USUAL_FAR_DISTANCE = 1.0
NUM_TRAIN, NUM_TEST = 32, 20  # the test has as many faulty clips as normal ones
CLIP_S = 3.0
# What a clip has more on both sides, so that a recorder that runs late or fast has something to record.
MARGIN = round(0.3 * SAMPLING_RATE)
FULL_SCALE_SHARE = 0.9
_WALL_M = 0.3
_SINC_TAPS, _SINC_STEPS = 32, 1 << 16

# Makes of what reaches the microphones, (clips, 2, N + 2 * MARGIN), what is recorded, (clips, 2, N).
Recorder = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


class Site(NamedTuple):
    """A machine in a room, and the share of the noise that comes from one signal common to all corners."""

    seed: int
    machine: str
    coherence: float


class Sounds(NamedTuple):
    """Spectra of what the machine `(clips, K)` and the corners `(clips, 4, K)` play in FFTs of length `n`."""

    machine: np.ndarray
    noises: np.ndarray
    n: int


class Heard(NamedTuple):
    """What reaches the microphones from the machine and from the corners, `(clips, 2, N + 2 * MARGIN)` each."""

    machine: torch.Tensor
    noise: torch.Tensor


def in_step(heard: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Record both microphones by one device."""
    return heard[..., MARGIN:-MARGIN].clone()


@dataclass(frozen=True)
class Condition:
    """One way to place and to record.

    Attributes:
        group: the table that it belongs to.
        name: its row.
        close, far: distances from the machine in m.
        level_db: level of the machine at the close microphone minus that at the far one in dB, which a gain of the
            machine's path to the far microphone sets; None leaves what the room gives.
        moved: by how much the far microphone stands elsewhere in the test, in m.
        record: what the recorders make of it.
    """

    group: str
    name: str
    close: float = CLOSE_DISTANCE
    far: float = USUAL_FAR_DISTANCE
    level_db: float | None = None
    moved: float = 0.0
    record: Recorder = field(default=in_step, compare=False)


# Recorders


def apart(
    heard: torch.Tensor, random: np.random.Generator, ppm: float = 0.0, start_s: float = 0.0, every_s: float = 0.0
) -> torch.Tensor:
    """Record the far microphone by a device of its own.

    Args:
        heard: (clips, 2, N + 2 * MARGIN).
        random: of the starts.
        ppm: by how many millionths the clock of the far device is fast.
        start_s: it starts up to this much earlier or later, anew with every recording.
        every_s: seconds between recordings of two devices that were started together once; 0 for such as start
            together with every recording.
    """
    both = in_step(heard, random)
    samples = np.arange(both.shape[-1]) / (1 + 1e-6 * ppm)
    for clip in range(len(both)):
        late = random.uniform(-start_s, start_s) - 1e-6 * ppm * every_s * clip
        both[clip, 1] = read_at(heard[clip, 1], MARGIN + late * SAMPLING_RATE + samples)
    return both


def read_at(wave: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Interpolate `wave (L,)` at `places (N,)` in samples, by a Hann-windowed sinc."""
    first = np.floor(places).astype(np.int64)
    offsets = np.arange(1 - _SINC_TAPS // 2, 1 + _SINC_TAPS // 2)
    weights = _sinc_table()[np.rint(_SINC_STEPS * (places - first)).astype(np.int64)]  # (N, taps)
    return torch.from_numpy(np.einsum("nt,nt->n", wave.numpy()[first[:, None] + offsets], weights))


@lru_cache(maxsize=1)
def _sinc_table() -> np.ndarray:
    """Weights `(steps + 1, taps)` float32; quiet bands count as much as loud ones, and coarse steps would fill them."""
    away = np.arange(_SINC_STEPS + 1)[:, None] / _SINC_STEPS - np.arange(1 - _SINC_TAPS // 2, 1 + _SINC_TAPS // 2)
    return (np.sinc(away) * np.cos(np.pi * away / _SINC_TAPS) ** 2).astype(np.float32)


def at_8_khz(heard: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Record with half the sampling rate, and resample to the rate of the scorer."""
    both = in_step(heard, random).numpy()
    spectrum = scipy.fft.rfft(both, axis=-1)
    spectrum[..., spectrum.shape[-1] // 2 :] = 0
    return torch.from_numpy(scipy.fft.irfft(spectrum, both.shape[-1], axis=-1))


def far_gain(
    heard: torch.Tensor, random: np.random.Generator, train_db: float = 0.0, test_db: float = 0.0
) -> torch.Tensor:
    """Set the gain of the far channel, and store 16 bits, of which the close microphone of the training uses all."""
    both = in_step(heard, random)
    both *= FULL_SCALE_SHARE / both[:NUM_TRAIN, 0].abs().max()
    both[:NUM_TRAIN, 1] *= 10 ** (train_db / 20)
    both[NUM_TRAIN:, 1] *= 10 ** (test_db / 20)
    return (both.clamp(-1, 1) * 32767).round() / 32767


def automatic_gain(heard: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Bring each channel of each recording to one level, as recorders with an automatic gain do."""
    both = in_step(heard, random)
    return 0.05 * both / both.square().mean(dim=-1, keepdim=True).sqrt()


USUAL = Condition("usual", "one device, 1 m")
CONDITIONS = (
    USUAL,
    *(Condition("far", f"{metres:g} m", far=metres) for metres in (0.2, 0.5, 2.0)),
    *(Condition("close", f"{metres:g} m", close=metres) for metres in (0.3, 0.6)),
    *(Condition("level", f"{level:g} dB", level_db=level) for level in (0.0, 6.0, 12.0)),
    Condition("level", "the far one does not hear the machine", level_db=math.inf),
    Condition("devices", "starts differ by up to 20 ms", record=partial(apart, start_s=0.02)),
    Condition("devices", "50 ppm, started together with every recording", record=partial(apart, ppm=50.0)),
    Condition(
        "devices", "5 ppm, started together once, a recording a minute", record=partial(apart, ppm=5, every_s=60)
    ),
    Condition(
        "devices", "50 ppm, started together once, a recording a minute", record=partial(apart, ppm=50, every_s=60)
    ),
    Condition("recorder", "8 kHz", record=at_8_khz),
    Condition("recorder", "far gain 30 dB too low, 16 bits", record=partial(far_gain, train_db=-30, test_db=-30)),
    Condition("recorder", "far gain 20 dB too high, clipped", record=partial(far_gain, train_db=20, test_db=20)),
    Condition("recorder", "automatic gain of both channels", record=automatic_gain),
    Condition("after", "far gain 6 dB higher", record=partial(far_gain, test_db=6.0)),
    Condition("after", "far microphone moved by 5 cm", moved=0.05),
)


def main() -> None:
    parser = parser_of(__doc__, "placing")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="file of the AUCs; what it has is not computed again")
    add("--seed", nargs="+", type=int, default=[31, 32], help="seeds of rooms and clips (default: 31 32)")
    add(
        "--machines",
        nargs="+",
        default=MACHINES,
        choices=MACHINE_TYPES,
        help=f"machines (default: {' '.join(MACHINES)})",
    )
    add("--coherence", nargs="+", type=float, default=COHERENCES, help="shares of common noise (default: 1 0.5)")
    add("--part", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="every N-th site, from the I-th on")
    add("--tables", action="store_true", help="tables of what --out has, without computing")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.set_verbosity_error()
    if not options.tables:
        sites = [Site(*values) for values in product(options.seed, options.machines, options.coherence)]
        run(sites[options.part[0] :: options.part[1]], CONDITIONS, options.out)
    print(tables(read(options.out)))


def run(sites: Sequence[Site], conditions: Sequence[Condition], out: Path) -> None:
    """Measure what `out` does not have yet; a line holds the AUCs of one site and condition."""
    known = {(Site(*row["site"]), row["group"], row["name"]) for row in read(out)}
    for site in sites:
        missing = [one for one in conditions if (site, one.group, one.name) not in known]
        if not missing:
            continue
        progress(f"[{site}]")
        sounds, gain = played(site)
        rows = [measured(site, sounds, gain, condition) for condition in missing]
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def measured(site: Site, sounds: Sounds, gain: float, condition: Condition) -> dict[str, Any]:
    """Return the level difference of the machine in dB and the AUC of every canceller in one condition."""
    heard = hear(sounds, room_of(site, condition), gain)
    if condition.moved:
        later = hear(sounds, room_of(site, condition, condition.moved), gain)
        heard = Heard(*(torch.cat([one[:NUM_TRAIN], new[NUM_TRAIN:]]) for one, new in zip(heard, later, strict=True)))
    powers = heard.machine.square().mean(dim=(0, 2))
    level_db = 10 * math.log10(float(powers[0] / powers[1]))
    if condition.level_db is not None:
        heard.machine[:, 1] *= 10 ** ((level_db - condition.level_db) / 20)
        level_db = condition.level_db
    random = np.random.default_rng([site.seed, MACHINE_TYPES.index(site.machine), 3])
    recordings = condition.record(heard.machine + heard.noise, random)
    aucs = {canceller: auc_of(cancelled(recordings, canceller)) for canceller in CANCELLERS}
    return {"site": site, "group": condition.group, "name": condition.name, "level_db": level_db, "aucs": aucs}


def cancelled(recordings: torch.Tensor, canceller: str) -> torch.Tensor:
    """Return the close channels `(clips, N)` behind a canceller, which may learn from the training clips."""
    if canceller == "none":
        return recordings[:, 0]
    if canceller in METHODS:
        return cancel_far_microphone(recordings[:, 0], recordings[:, 1], canceller)
    return FarMicrophone(canceller).fit(recordings[:NUM_TRAIN]).cancel(recordings)[:, 0]


def auc_of(close: torch.Tensor) -> float:
    """Return the AUC of log-mel statistics of close channels `(clips, N)`, training, normal and faulty ones."""
    embeddings = log_mel_embeddings(list(close))
    bank = MemoryBank(distance="euclidean", normalize=False).fit(embeddings[:NUM_TRAIN])
    normal, faulty = torch.as_tensor(bank.score(embeddings[NUM_TRAIN:])).numpy().reshape(2, NUM_TEST)
    return auc_of_scores(normal, faulty)


# The site


def played(site: Site) -> tuple[Sounds, float]:
    """Synthesise what the sources of a site play, and the gain of the noise that gives the SNR in the usual place."""
    index = MACHINE_TYPES.index(site.machine)
    random = np.random.default_rng([site.seed, index, 1])
    severity = DEFAULT_SEVERITY[site.machine] * np.exp(0.25 * random.standard_normal(NUM_TEST))
    faults = np.concatenate([np.zeros(NUM_TRAIN + NUM_TEST), severity])
    length = round(CLIP_S * SAMPLING_RATE) + 2 * MARGIN
    machine = np.stack(
        [
            synthesize_machine(site.machine, [site.seed, index, 2, clip], length / SAMPLING_RATE, severity=float(fault))
            for clip, fault in enumerate(faults)
        ]
    )
    pools = [
        [
            synthesize_background(kind, [site.seed, split, number], 4 * CLIP_S, SAMPLING_RATE)
            for kind in BACKGROUND_TYPES
            for number in range(2)
        ]
        for split in range(2)
    ]
    noises = np.stack([_around(pools[clip >= NUM_TRAIN], length, random) for clip in range(len(faults))])
    noises = spatial_noises(torch.from_numpy(noises), site.coherence).numpy()
    n = scipy.fft.next_fast_len(length + SAMPLING_RATE // 2, real=True)
    sounds = Sounds(scipy.fft.rfft(machine.astype(np.float32), n), scipy.fft.rfft(noises, n), n)
    usual = hear(sounds, room_of(site, USUAL), 1.0)
    # Over all clips together, so that loud places stay louder than quiet ones.
    ratio = float(usual.machine[:, 0].square().mean() / usual.noise[:, 0].square().mean())
    return sounds, math.sqrt(ratio / 10 ** (SNR_DB / 10))


def _around(pool: Sequence[np.ndarray], length: int, random: np.random.Generator) -> np.ndarray:
    """Cut four noises `(4, N)` of equal power from different sounds of a pool."""
    cut = []
    for index in random.choice(len(pool), 4, replace=False):
        start = int(random.integers(len(pool[index]) - length + 1))
        part = pool[index][start : start + length]
        cut.append(part / np.sqrt(np.mean(np.square(part)) + 1e-12))
    return np.stack(cut).astype(np.float32)


def hear(sounds: Sounds, room: Room, gain: float) -> Heard:
    """Play the sounds in a room, the noise with a gain."""
    responses = simulate_impulse_responses(room)
    target, noise = (scipy.fft.rfft(part.numpy(), sounds.n) for part in (responses.target, responses.noise))
    length = round(CLIP_S * SAMPLING_RATE) + 2 * MARGIN
    machine = scipy.fft.irfft(sounds.machine[:, None] * target, sounds.n)[..., :length]
    noises = scipy.fft.irfft(gain * np.einsum("bck,cmk->bmk", sounds.noises, noise), sounds.n)[..., :length]
    return Heard(*(torch.from_numpy(part.astype(np.float32)) for part in (machine, noises)))


def room_of(site: Site, condition: Condition, moved: float = 0.0) -> Room:
    """Draw the room of a machine and put the microphones where the condition says."""
    room = draw_room([site.seed, MACHINE_TYPES.index(site.machine)])
    close, far = at_distance(room, room.close, condition.close), at_distance(room, room.far, condition.far)
    if moved:
        x, y, z = far
        far = (x + math.copysign(moved, room.dimensions[0] / 2 - x), y, z)
    return replace(room, close=close, far=far)


def at_distance(room: Room, towards: Position, distance: float) -> Position:
    """Return the place at a distance from the machine nearest to a direction, if it can be away from the walls."""
    x, y, z = room.target
    first = math.atan2(towards[1] - y, towards[0] - x)
    around = [first + math.radians(sign * step) for step in range(0, 181, 3) for sign in (1, -1)]
    places = [(x + distance * math.cos(angle), y + distance * math.sin(angle), z) for angle in around]
    margins = [min(min(p, d - p) for p, d in zip(place[:2], room.dimensions[:2], strict=True)) for place in places]
    free = [place for place, margin in zip(places, margins, strict=True) if margin >= _WALL_M]
    return free[0] if free else places[int(np.argmax(margins))]


# Tables


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Make a Markdown table of all conditions for each coherence, and one of the losses by machine."""
    parts = []
    for coherence in sorted({row["site"][2] for row in rows}, reverse=True):
        of_coherence = [row for row in rows if row["site"][2] == coherence]
        least = [f"{canceller}, least of a machine" for canceller in CALIBRATED]
        head = ["condition", "machine, close - far", "close alone", *CANCELLERS[1:], *least]
        lines = [f"Coherence {coherence:g}", "", _line(head), _line([":--", *["--:"] * (len(head) - 1)])]
        for condition in CONDITIONS:
            found = [row for row in of_coherence if (row["group"], row["name"]) == (condition.group, condition.name)]
            if found:
                lines.append(_line([f"{condition.group}: {condition.name}", *_cells(found)]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    alone = np.array([row["aucs"]["none"] for row in rows])
    cells = [f"{np.median([row['level_db'] for row in rows]):.0f} dB", f"{100 * alone.mean():.1f}"]
    for canceller in CANCELLERS[1:]:
        gains = 100 * (np.array([row["aucs"][canceller] for row in rows]) - alone)
        interval = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
        cells.append(f"{gains.mean():+.1f} ± {interval:.1f}")
    for canceller in CALIBRATED:
        of_machine: dict[str, list[float]] = {}
        for row in rows:
            of_machine.setdefault(row["site"][1], []).append(100 * (row["aucs"][canceller] - row["aucs"]["none"]))
        cells.append(f"{min(float(np.mean(gains)) for gains in of_machine.values()):+.1f}")
    return cells


if __name__ == "__main__":
    main()
