"""Systems x cancellers of the far microphone x backends at fixed installations, those of `na-ssl simulate dcase`.

    python -m benchmarks.installations --out sites.jsonl                        # log-mel statistics, nothing to load
    python -m benchmarks.installations --out sites.jsonl --seed 11 --system eat=eat-tiny-distilled na-eat=na-eat-tiny
    python -m benchmarks.installations --out sites.jsonl --tables coherence level snr grid machine backend # as they are
    python -m benchmarks.installations --out backends.jsonl --seed 11 --system logmel eat=eat-tiny-distilled:1 \\
        eat=eat-tiny-distilled:4 --canceller none auto --all-backends none auto           # then --tables backends
    python -m benchmarks.installations --out order.jsonl --machine-level published --snr challenge --coherence 1 \\
        --canceller none least_squares --machines fan bearing gearbox valve --system logmel beats=na-beats-tiny

Every machine stands in one room, the same in training and test; training and test have other noises. The coherence is
the share of noise that all corners have in common, the level is that of the machine at the close microphone minus that
at the far one, both in dB, and the SNR is that of the close microphone. All coherences are crossed with machines and
seeds, while levels and SNRs take turns; `--full` crosses them, too. A memory of 36 source and 4 target clips, which
also calibrate the far microphone, scores 48 others.

`--out` keeps the scores of every site, so that a run may be stopped, continued and shared by several processes with
`--part`. The output is Markdown: official scores in %, and the difference to the close microphone alone, with the 95 %
interval over redrawn sites and clips, paired. No setting of the package was chosen on the seeds 11, 12 and 13.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf import MemoryBank
from na_ssl_hf.data.dcase.names import SUPPLEMENTAL, DcaseName
from na_ssl_hf.data.synthetic.machine_sounds import MACHINE_TYPES
from na_ssl_hf.evaluation.metrics.official import bootstrap_draws, machine_metrics
from na_ssl_hf.evaluation.systems.embedders import load_frontend
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone
from na_ssl_hf.hub.pipeline_anomaly_scoring import AnomalyScorer
from na_ssl_hf.simulation.installation import Site, draw_installation
from na_ssl_hf.simulation.installed_dataset import LEAST_PLACES, InstalledMachine
from na_ssl_hf.simulation.synthetic_dataset import synthesize_places

from . import NUM_THREADS
from .measuring import parser_of, progress
from .separation import METHODS as SEPARATIONS
from .separation import separated

# In arguments and tables, for what is None in a case.
PUBLISHED, CHALLENGE = "published", "challenge"
NONE, MACHINE_OFF = "none", "installation, machine off"
# "filter" is the first part of "installation", and the subtraction after it the second.
CANCELLERS = (NONE, *METHODS, *SEPARATIONS, "filter", "installation", "auto", MACHINE_OFF)
COHERENCES, LEVELS_DB, SNRS_DB = (1.0, 0.5, 0.0), (-3.0, 12.0), (-5.0, 0.0, 5.0)
# Clips of source and target domain in training, of each domain and label in the test, and of the noise alone.
NUM_SOURCE, NUM_TARGET, NUM_TEST, NUM_OFF = 36, 4, 12, 4
CLIP_S = 4.0
NUM_DRAWS = 1000
BACKENDS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "nearest, variance minimisation": {"rescaling": "variance_min"},
    "two domains": {"backend": "two_domains"},
    "Mahalanobis": {"backend": "mahalanobis"},
    "PCA": {"backend": "pca"},
    "minimum of all four": {"backend": ("nearest", "two_domains", "mahalanobis", "pca")},
}


class Case(NamedTuple):
    """One site: a machine at its place under stated conditions."""

    seed: int
    machine: str
    coherence: float
    level: float | None
    snr: float | None


class System(NamedTuple):
    """Makes embeddings `(clips, F, D)` of recordings `(clips, 2, N)`, and has the settings of the memory for them."""

    name: str
    embed: Callable[[torch.Tensor], torch.Tensor]
    memory: Mapping[str, Any]


def main() -> None:
    parser = parser_of(__doc__, "installations")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="file of the scores; what it has is not computed again")
    add("--seed", nargs="+", type=int, default=[11, 12, 13], help="seeds of sites and clips (default: 11 12 13)")
    add("--machines", nargs="+", default=MACHINE_TYPES, choices=MACHINE_TYPES, help="machines (default: all ten)")
    add("--coherence", nargs="+", type=float, default=COHERENCES, help="shares of common noise (default: 1 0.5 0)")
    add("--machine-level", nargs="+", type=_level, default=LEVELS_DB, help="dB, or published (default: -3 12)")
    add("--snr", nargs="+", type=_snr, default=SNRS_DB, help="dB, or challenge (default: -5 0 5)")
    add("--full", action="store_true", help="every level with every SNR")
    add("--system", nargs="+", default=["logmel"], metavar="NAME=CHECKPOINT[:LAYER]", help="logmel, or frontends")
    add("--canceller", nargs="+", default=CANCELLERS, choices=CANCELLERS, help="cancellers (default: all)")
    add(
        "--all-backends",
        nargs="*",
        default=(NONE, "installation"),
        choices=CANCELLERS,
        help="cancellers behind which every backend scores (default: none installation)",
    )
    add("--part", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="every N-th site, from the I-th on")
    add("--tables", nargs="*", choices=[*_KEYS, GRID, BACKENDS_OF], help="tables of what --out has, without computing")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if options.tables is None:
        cases = list(_cases(options))[options.part[0] :: options.part[1]]
        systems = [system_of(text) for text in options.system]
        run(cases, systems, options.canceller, options.out, options.all_backends)
    print(tables(read(options.out), options.tables or ["coherence"]))


def _level(text: str) -> float | None:
    return None if text == PUBLISHED else float(text)


def _snr(text: str) -> float | None:
    return None if text == CHALLENGE else float(text)


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """List the sites; without `--full`, a machine has another pair of level and SNR with every seed."""
    pairs = list(product(options.machine_level, options.snr))
    for number, seed in enumerate(options.seed):
        for machine, coherence in product(options.machines, options.coherence):
            first = MACHINE_TYPES.index(machine) + 2 * number
            for level, snr in pairs if options.full else [pairs[first % len(pairs)]]:
                yield Case(seed, machine, coherence, level, snr)


def system_of(text: str) -> System:
    """Load a system by its argument: "logmel", or `NAME=CHECKPOINT`, with the layer that is compared behind a colon."""
    if text == "logmel":
        settings = {"distance": "euclidean", "normalize": False}
        return System(text, lambda clips: log_mel_embeddings(list(clips[:, 0])), settings)
    name, _, source = text.partition("=")
    checkpoint, _, layer = source.partition(":")
    model, extractor = load_frontend(name, checkpoint, "none")
    scorer = AnomalyScorer(model=model, feature_extractor=extractor, device="cpu")

    def embed(clips: torch.Tensor) -> torch.Tensor:
        recordings = [{"array": clip.numpy(), "sampling_rate": SAMPLING_RATE} for clip in clips]
        return scorer.embed(recordings, batch_size=8, pooling="mean", layer=int(layer) if layer else None)

    return System(text, embed, {})


def run(
    cases: Sequence[Case],
    systems: Sequence[System],
    cancellers: Sequence[str],
    out: Path,
    all_backends: Sequence[str] = (NONE,),
) -> None:
    """Score what `out` does not have yet; a line holds the scores of one site, system, canceller and backend.

    Behind the cancellers of `all_backends` every backend scores, behind others the nearest neighbours alone.
    """
    known = {(Case(*row["case"]), row["system"], row["canceller"]) for row in read(out)}
    places: dict[int, dict[str, list[np.ndarray]]] = {}
    for case in cases:
        missing = [
            (system, canceller)
            for system, canceller in product(systems, cancellers)
            if (case, system.name, canceller) not in known
        ]
        if not missing:
            continue
        progress(f"[{case}]")
        if case.seed not in places:
            places = {case.seed: {s: synthesize_places(s, case.seed, CLIP_S, LEAST_PLACES, False) for s in _SPLITS}}
        clips = recorded(case, places[case.seed])
        rows = []
        for canceller, cancel in cancelling(clips, {canceller for _, canceller in missing}):
            left = {part: cancel(of_part) for part, of_part in clips.items() if part in _SPLITS}
            for system in (system for system, one in missing if one == canceller):
                for backend, scores in scored(system, left, canceller in all_backends).items():
                    rows.append(_row(case, system.name, canceller, backend, scores))
        was_cut = out.exists() and not out.read_bytes().endswith(b"\n")
        with out.open("a", encoding="utf-8") as file:
            file.write("\n" if was_cut else "")
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _row(case: Case, system: str, canceller: str, backend: str, scores: np.ndarray) -> dict[str, Any]:
    rounded = [float(f"{score:.7g}") for score in scores]
    return {"case": case, "system": system, "canceller": canceller, "backend": backend, "scores": rounded}


def recorded(case: Case, places: Mapping[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
    """Record the clips of a site, `(clips, 2, N)`: "train", "test" and, of the noise alone, "supplemental"."""
    site = Site(case.coherence, case.level, None if case.snr is None else (case.snr, case.snr))
    installation, responses, far_gain_db = draw_installation(case.machine, case.seed, site)
    machine = InstalledMachine(installation, responses, far_gain_db, places, CLIP_S)
    plan = {
        "train": [("source", "normal", NUM_SOURCE), ("target", "normal", NUM_TARGET)],
        "test": [(domain, label, NUM_TEST) for domain, label in _GROUPS],
        SUPPLEMENTAL: [("source", "noise", NUM_OFF)],
    }
    return {
        split: torch.from_numpy(
            np.stack(
                [
                    machine.clip(DcaseName(case.machine, domain, split, label, index, None), drifted=False)[0]
                    for domain, label, count in groups
                    for index in range(count)
                ]
            )
        )
        for split, groups in plan.items()
    }


def cancelling(
    clips: Mapping[str, torch.Tensor], cancellers: set[str]
) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """Yield the asked cancellers, functions of `(clips, 2, N)`; those that learn hear the training clips once."""
    learning = FarMicrophone("auto").partial_fit(clips["train"])
    for canceller in CANCELLERS:
        if canceller not in cancellers:
            continue
        if canceller == NONE:
            yield canceller, lambda recordings: recordings
        elif canceller in METHODS:
            yield (
                canceller,
                lambda recordings, method=canceller: torch.stack(  # type: ignore[misc]
                    [cancel_far_microphone(recordings[:, 0], recordings[:, 1], method), recordings[:, 1]], dim=1
                ),
            )
        elif canceller in SEPARATIONS:
            yield canceller, lambda recordings, method=canceller: separated(recordings, method)  # type: ignore[misc]
        else:
            if canceller == MACHINE_OFF:  # the last one, because no other shall know these recordings
                learning.partial_fit(clips[SUPPLEMENTAL], machine_off=True)
            learning.method = "installation" if canceller == MACHINE_OFF else canceller
            yield canceller, learning.finish().cancel


def scored(system: System, clips: Mapping[str, torch.Tensor], with_all_backends: bool) -> dict[str, np.ndarray]:
    """Score the test clips after the training ones were remembered: name of a backend -> `(clips,)`."""
    train, test = (torch.as_tensor(system.embed(clips[split])) for split in _SPLITS)
    domains = ["source"] * NUM_SOURCE + ["target"] * NUM_TARGET
    scores = {}
    for backend, settings in BACKENDS.items():
        if backend == "nearest" or with_all_backends:
            bank = MemoryBank(**system.memory, **settings).fit(train, domains=domains)
            scores[backend] = torch.as_tensor(bank.score(test)).double().numpy()
    return scores


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `run`; one that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            progress(f"a line of {path} is damaged, and left out")
    return rows


def tables(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Make a Markdown table for each key: systems, cancellers or backends x the values of the key."""
    draws = {
        (Case(*row["case"]), row["system"], row["canceller"], row["backend"]): _draws(Case(*row["case"]), row["scores"])
        for row in rows
    }
    made = {GRID: _grid, BACKENDS_OF: _backends_of}
    return "\n\n".join(made[key](draws) if key in made else _table(draws, key) for key in keys)


# The draws of a row: the three official values as they are, and then over redrawn clips, `(1 + draws, 3)`.
Draws = dict[tuple[Case, str, str, str], np.ndarray]


def _draws(case: Case, scores: Sequence[float]) -> np.ndarray:
    is_anomaly = np.repeat([label == "anomaly" for _, label in _GROUPS], NUM_TEST)
    is_target = np.repeat([domain == "target" for domain, _ in _GROUPS], NUM_TEST)
    values = np.asarray(scores)
    metrics = machine_metrics(values, is_anomaly, is_target)
    own = [metrics.auc_source, metrics.auc_target, metrics.pauc]
    # One seed for all systems of a site, so that differences are paired.
    redrawn = bootstrap_draws(values, is_anomaly, is_target, NUM_DRAWS, [case.seed, MACHINE_TYPES.index(case.machine)])
    return np.concatenate([[own], redrawn])


def _table(draws: Draws, key: str) -> str:
    value = _KEYS[key]
    per_backend = key == "backend"
    groups: dict[tuple[str, str, str], dict[Any, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case, system, canceller, backend in draws:
        if backend == "nearest" or per_backend:
            groups[system, canceller, backend][value(case)].append(case)
    found = {column for of_row in groups.values() for column in of_row}
    columns = sorted(found, key=lambda column: (isinstance(column, str), column), reverse=True)
    head = ["system", "canceller", *(["backend"] if per_backend else []), *(f"{key} {_title(one)}" for one in columns)]
    lines = [head, [":--"] * (len(head) - len(columns)) + ["--:"] * len(columns)]
    lines[0].append("least of a machine")
    lines[1].append("--:")
    order = {name: place for place, name in enumerate((*CANCELLERS, *BACKENDS))}
    for row in sorted(groups, key=lambda row: (row[0], order[row[1]], order[row[2]])):
        (system, canceller, backend), of_row = row, groups[row]
        reference = (system, canceller, "nearest") if per_backend else (system, NONE, "nearest")
        cells = [_cell(draws, cases, (system, canceller, backend), reference) for cases in map(of_row.get, columns)]
        least = _least(draws, [case for cases in of_row.values() for case in cases], (system, canceller, backend))
        lines.append([system, canceller, *([backend] if per_backend else []), *cells, least])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(column: float | str | None) -> str:
    return "all" if column is None else column if isinstance(column, str) else f"{column:g}"


def _grid(draws: Draws) -> str:
    """Make a table of coherence x level x SNR, the cancellers side by side."""
    systems = sorted({system for _, system, _, _ in draws})
    found = {canceller for _, _, canceller, _ in draws}
    cancellers = [canceller for canceller in CANCELLERS if canceller in found]
    head = ["system", "coherence", "level", "SNR", "sites", *cancellers]
    lines = [head, [":--"] + ["--:"] * (len(head) - 1)]
    of_condition: dict[tuple[str, ...], set[Case]] = defaultdict(set)
    for case, _, _, _ in sorted(draws, key=lambda row: (-row[0].coherence, -(row[0].level or 0), -(row[0].snr or 0))):
        of_condition[tuple(_title(_KEYS[key](case)) for key in ("coherence", "level", "snr"))].add(case)
    for system, (condition, cases) in product(systems, of_condition.items()):
        ordered = sorted(cases)
        cells = [_cell(draws, ordered, (system, one, "nearest"), (system, NONE, "nearest")) for one in cancellers]
        lines.append([system, *condition, str(len(cases)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _backends_of(draws: Draws) -> str:
    """Make a table of systems and cancellers x backends: the score of the first one, and what others are beyond it."""
    first, *others = BACKENDS
    head = ["canceller", "system", first, *others]
    lines = [head, [":--", ":--"] + ["--:"] * len(BACKENDS)]
    of_row: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case, system, canceller, backend in draws:
        if backend == first:
            of_row[canceller, system].append(case)
    for (canceller, system), cases in sorted(of_row.items(), key=lambda row: (CANCELLERS.index(row[0][0]), row[0][1])):
        reference = (system, canceller, first)
        cells = [_cell(draws, cases, reference, reference)]
        for backend in others:
            row = (system, canceller, backend)
            if not all((case, *row) in draws for case in cases):
                cells.append("-")
                continue
            _, _, gain = _cell(draws, cases, row, reference).partition(" ")
            cells.append(f"{gain.strip('()')}; {_least(draws, cases, row, reference)}")
        lines.append([canceller, system, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(
    draws: Draws, cases: Sequence[Case] | None, row: tuple[str, str, str], reference: tuple[str, str, str]
) -> str:
    """Return the official score of a row over sites, and what it is beyond that of the reference."""
    cases = [case for case in cases or () if (case, *reference) in draws]
    if not cases:
        return "-"
    own, other = (np.stack([draws[(case, *name)] for case in cases]) for name in (row, reference))  # (sites, 1 + R, 3)
    estimate, base = (_harmonic(one[:, 0].reshape(-1)) for one in (own, other))
    if row == reference:
        return f"{100 * estimate:.1f}"
    random = np.random.default_rng(0)
    chosen = random.integers(len(cases), size=(NUM_DRAWS, len(cases)))  # sites are redrawn, and clips within them
    differences = [
        _harmonic(own[sites, 1 + draw].reshape(-1)) - _harmonic(other[sites, 1 + draw].reshape(-1))
        for draw, sites in enumerate(chosen)
    ]
    low, high = 100 * np.quantile(differences, [0.025, 0.975])
    return f"{100 * estimate:.1f} ({100 * (estimate - base):+.1f} [{low:+.1f}, {high:+.1f}])"


def _least(
    draws: Draws, cases: Sequence[Case], row: tuple[str, str, str], reference: tuple[str, str, str] | None = None
) -> str:
    """Return the least gain of a machine type over all its sites, on the close microphone alone or on `reference`."""
    reference = reference or (row[0], NONE, "nearest")
    gains = {}
    for machine in sorted({case.machine for case in cases}):
        own = [case for case in cases if case.machine == machine and (case, *reference) in draws]
        values = [
            _harmonic(np.concatenate([draws[(case, *name)][0] for case in own])) if own else np.nan
            for name in (row, reference)
        ]
        gains[machine] = 100 * (values[0] - values[1])
    worst = min(gains, key=lambda machine: gains[machine])
    return f"{gains[worst]:+.1f} ({worst})"


def _harmonic(values: np.ndarray) -> float:
    return float(len(values) / (1 / np.maximum(values, np.finfo(np.float64).eps)).sum())


_SPLITS = ("train", "test")
_GROUPS = tuple(product(("source", "target"), ("normal", "anomaly")))
# What the columns of a table are: name -> the value of a site.
_KEYS: dict[str, Callable[[Case], Any]] = {
    "coherence": lambda case: case.coherence,
    "level": lambda case: case.level if case.level is not None else PUBLISHED,
    "snr": lambda case: case.snr if case.snr is not None else CHALLENGE,
    "machine": lambda case: case.machine,
    "seed": lambda case: case.seed,
    "backend": lambda case: None,
}
# Coherence x level x SNR, and systems x backends, in tables of their own kind.
GRID, BACKENDS_OF = "grid", "backends"


if __name__ == "__main__":
    main()
