"""A noise-aware model beside its base, the mean of both and log-mel statistics, behind every canceller, in fixed rooms.

    python -m benchmarks.noise_aware_machines na-eat-tiny                                  # machines of the package
    python -m benchmarks.noise_aware_machines CHECKPOINT --machines FOLDER --noises FOLDER # real ones, from folders
    python -m benchmarks.noise_aware_machines CHECKPOINT ... --scores scores.jsonl         # goes on after a stop
    python -m benchmarks.noise_aware_machines CHECKPOINT ... --auto                        # what `fit` chooses, too

Every machine stands in one room, the same in training and test, as in `benchmarks.far_microphone`. A memory of normal
clips, which also calibrate the far microphone, scores other normal clips and faulty ones: mean over time, cosine. All
systems hear the same mixtures. "and log-mel" is `fit(log_mel=True)`, with log-mel statistics beside the tokens. The
output is Markdown: mean AUCs in %, and the difference to a reference with its 95 % interval, from a paired bootstrap
over machines, seeds and clips.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.layer_choice import NA_SHARES
from na_ssl_hf.hub.pooling import LogMelStatistics, log_mel_beside

from .far_microphone import COHERENCES, Noises, Targets, canceller, embedder, mixed, options_of_sites, sounds
from .measuring import auc_of_scores, parser_of, progress

CANCELLERS = ("none", "spectral_subtraction", "installation", "auto")
SNRS_DB = (0.0, -5.0, 5.0)
NUM_CLIPS = 20
NUM_DRAWS = 1000
LOG_MEL, BASE, BOTH, NOISE_AWARE, CHOSEN = "log-mel", "base", "mean of both", "noise-aware", "chosen by fit"
ENCODERS = dict(zip((BASE, BOTH, NOISE_AWARE), NA_SHARES, strict=True))
WITH_LOG_MEL = {system: f"{system} and log-mel" for system in ENCODERS}
SYSTEMS = (LOG_MEL, *ENCODERS, *WITH_LOG_MEL.values(), CHOSEN)

# The scores of one machine in one room: system and canceller -> part ("normal", "anomaly") -> one for every clip.
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def main() -> None:
    parser = parser_of(__doc__, "noise_aware_machines")
    parser.add_argument("model", help="noise-aware checkpoint: a folder, or a name on the hub or of the package")
    parser.add_argument("--coherence", nargs="+", type=float, default=COHERENCES, help="shares of common noise")
    parser.add_argument("--snr", nargs="+", type=float, default=SNRS_DB, help="SNRs at the close microphone, dB")
    parser.add_argument("--seed", nargs="+", type=int, default=[1], help="seeds of rooms and clips (default: 1)")
    parser.add_argument("--layer", type=int, help="layer that is compared (default: the last hidden state)")
    parser.add_argument("--auto", action="store_true", help="the share that `fit(na_share='auto')` chooses as well")
    parser.add_argument("--scores", type=Path, help="file that keeps the scores of every room that is done")
    options = options_of_sites(parser)
    print(tables(list(rooms(options))))


def rooms(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Score all rooms that the file of scores does not hold yet, and yield all that were asked for."""
    done: dict[str, dict[str, Any]] = {}
    if options.scores is not None and options.scores.exists():
        lines = options.scores.read_text(encoding="utf-8").splitlines()
        done = {_key(room): room for room in map(json.loads, lines)}
    source = resolve_checkpoint(options.model)
    scorer = AnomalyScorer(model=load_model(source), feature_extractor=load_extractor(source))
    for snr_db in options.snr:
        for coherence in options.coherence:
            for seed in options.seed:
                for name, targets, noises in sounds(options.machines, options.noises, seed, NUM_CLIPS):
                    room = {"machine": name, "seed": seed, "coherence": coherence, "snr_db": snr_db}
                    if _key(room) not in done:
                        progress(f"  {_key(room)}")
                        room["scores"] = scores_of_room(
                            scorer, targets, noises, coherence, snr_db, seed, options.layer, options.auto
                        )
                        done[_key(room)] = room
                        if options.scores is not None:
                            with options.scores.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(room) + "\n")
                    yield done[_key(room)]


def _key(room: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {room[name]}" for name in ("machine", "seed", "coherence", "snr_db"))


def scores_of_room(
    scorer: AnomalyScorer,
    targets: Targets,
    noises: Noises,
    coherence: float,
    snr_db: float,
    seed: int,
    layer: int | None = None,
    auto: bool = False,
) -> Scores:
    """Put a machine into a room, and score its clips by every system behind every canceller.

    Args:
        auto: whether what a scorer chooses by itself is a system as well, which takes as much time again.
    """
    mixtures = mixed(targets, noises, coherence, seed, (snr_db, snr_db))
    log_mel = embedder("logmel")
    found: dict[str, dict[str, list[float]]] = {}
    for method in CANCELLERS:
        cancel = canceller(method, mixtures["train"])
        heard = {
            part: torch.stack([cancel(clips), clips[:, 1]], dim=1) for part, clips in mixtures.items()
        }  # (clips, 2, N)
        banks, vectors = {}, {}
        banks[LOG_MEL], vectors[LOG_MEL] = (
            log_mel.memory,
            {part: log_mel.vectors(each[:, 0]) for part, each in heard.items()},
        )
        by_share = {part: vectors_of_shares(scorer, clips, layer, mixtures[part]) for part, clips in heard.items()}
        for system in ENCODERS:
            own = {part: each[system] for part, each in by_share.items()}
            banks[system], vectors[system] = MemoryBank(), own
            statistics = {part: each[LOG_MEL] for part, each in by_share.items()}
            beside = LogMelStatistics.learned(own["train"], statistics["train"])
            banks[WITH_LOG_MEL[system]] = log_mel.memory
            vectors[WITH_LOG_MEL[system]] = {part: beside.joined(own[part], statistics[part]) for part in own}
        for system, of_parts in vectors.items():
            bank = replace(banks[system]).fit(of_parts["train"])
            found[f"{system}, {method}"] = {
                part: torch.as_tensor(bank.score(of_parts[part])).tolist() for part in ("normal", "anomaly")
            }
        if auto:
            chosen = chosen_share(scorer, heard["train"], layer)
            name = next(system for system, share in ENCODERS.items() if share == chosen)
            found[f"{CHOSEN}, {method}"] = found[f"{name}, {method}"]
    return found


def chosen_share(scorer: AnomalyScorer, clips: torch.Tensor, layer: int | None) -> float:
    """Return what `fit(na_share="auto")` chooses on clips `(clips, 2, N)` whose far microphone is cancelled already."""
    recordings = [{"array": clip.numpy(), "sampling_rate": SAMPLING_RATE} for clip in clips]
    fitted = scorer.fit(
        recordings, na_share="auto", layer=layer, batch_size=8, threshold_method="quantile", progress=None
    )
    assert fitted.memory_bank is not None
    assert fitted.memory_bank.calibration is not None
    share = fitted.memory_bank.calibration.na_share
    assert share is not None
    return share


@torch.no_grad()
def vectors_of_shares(
    scorer: AnomalyScorer, clips: torch.Tensor, layer: int | None, recorded: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Embed clips `(clips, 2, N)` by base, mean and model in one run: the means over time, `(clips, F, D)`.

    Their log-mel statistics `(clips, F, S)` come with them. `recorded` is what the clips were before a canceller.
    """
    front_end = scorer.feature_extractor.front_end
    found: dict[str, list[torch.Tensor]] = {system: [] for system in (LOG_MEL, *ENCODERS)}
    for batch, before in zip(clips.split(8), recorded.split(8), strict=True):
        fbank = front_end.frames(batch, before)  # (B, 2, T, M)
        by_share = scorer.model.interpolated_grids(fbank, [layer], list(ENCODERS.values()))
        for system, (grid,) in zip(ENCODERS, by_share, strict=True):
            found[system].append(grid.float().mean(1))
        num_frames = front_end.num_sound_frames(batch.shape[-1])
        found[LOG_MEL].append(log_mel_beside(found[BASE][-1], fbank, num_frames))
    return {system: torch.cat(parts) for system, parts in found.items()}


def auc(of_room: Mapping[str, Sequence[float]], draw: np.random.Generator | None = None) -> float:
    """Return the AUC between the normal and faulty clips of a room; with `draw` of redrawn clips."""
    normal, anomaly = (np.asarray(of_room[part]) for part in ("normal", "anomaly"))
    if draw is not None:
        normal, anomaly = (scores[draw.integers(len(scores), size=len(scores))] for scores in (normal, anomaly))
    return auc_of_scores(normal, anomaly)


def tables(done: Sequence[dict[str, Any]]) -> str:
    """Make the Markdown: mean AUCs by coherence and by SNR, and differences to the references."""
    has_auto = all(f"{CHOSEN}, none" in room["scores"] for room in done)
    names = SYSTEMS if has_auto else SYSTEMS[:-1]
    systems = [f"{system}, {method}" for system in names for method in CANCELLERS]
    groups = {f"coherence {value:g}": _where(done, "coherence", value) for value in _values(done, "coherence")}
    groups |= {f"{value:g} dB": _where(done, "snr_db", value) for value in _values(done, "snr_db")} | {
        "all": list(done)
    }
    lines = [f"| system, canceller | {' | '.join(groups)} |", f"| :-- |{' --: |' * len(groups)}"]
    for system in systems:
        means = [np.mean([auc(room["scores"][system]) for room in group]) for group in groups.values()]
        lines.append(f"| {system} | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |")
    bests = {system: _best(done, system) for system in names}
    pairs = [(f"{NOISE_AWARE}, {method}", f"{BASE}, {method}") for method in CANCELLERS]
    pairs += [(f"{BOTH}, {method}", f"{BASE}, {method}") for method in CANCELLERS]
    pairs += [(f"{CHOSEN}, {method}", f"{BOTH}, {method}") for method in CANCELLERS if has_auto]
    beside = [(f"{WITH_LOG_MEL[system]}, {method}", method) for system in ENCODERS for method in CANCELLERS]
    pairs += [(name, f"{LOG_MEL}, {method}") for name, method in beside]
    pairs += [(bests[system], bests[LOG_MEL]) for system in names[1:]]
    lines += [
        "",
        "| system | minus | in all rooms [95 %] | machines that gain | least of a machine |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for one, other in pairs:
        gain, low, high = difference(done, one, other)
        of_machines = [difference(rooms, one, other, num_draws=0)[0] for rooms in _by_machine(done).values()]
        won = sum(each > 0 for each in of_machines)
        cells = [one, other, f"{100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", f"{won} of {len(of_machines)}"]
        lines.append(f"| {' | '.join(cells)} | {100 * min(of_machines):+.1f} |")
    return "\n".join(lines)


def difference(
    done: Sequence[dict[str, Any]], one: str, other: str, num_draws: int = NUM_DRAWS
) -> tuple[float, float, float]:
    """Return the mean difference of two AUCs, with its 95 % interval over redrawn machines, seeds and clips."""
    gain = float(np.mean([auc(room["scores"][one]) - auc(room["scores"][other]) for room in done]))
    if not num_draws:
        return gain, gain, gain
    # The rooms of a machine and seed share their clips, so that they are drawn as one.
    sites = list(_by_machine(done, "seed").values())
    random = np.random.default_rng(0)
    draws = []
    for _ in range(num_draws):
        gains = []
        for index in random.integers(len(sites), size=len(sites)):
            seed = int(random.integers(2**31))
            for room in sites[index]:
                pair = (auc(room["scores"][system], np.random.default_rng(seed)) for system in (one, other))
                gains.append(next(pair) - next(pair))
        draws.append(np.mean(gains))
    low, high = np.quantile(draws, [0.025, 0.975])
    return gain, float(low), float(high)


def _best(done: Sequence[dict[str, Any]], system: str) -> str:
    return max(
        (f"{system}, {method}" for method in CANCELLERS),
        key=lambda name: np.mean([auc(room["scores"][name]) for room in done]),
    )


def _values(done: Iterable[dict[str, Any]], name: str) -> list[float]:
    return sorted({room[name] for room in done})


def _where(done: Iterable[dict[str, Any]], name: str, value: float) -> list[dict[str, Any]]:
    return [room for room in done if room[name] == value]


def _by_machine(done: Iterable[dict[str, Any]], *besides: str) -> dict[tuple, list[dict[str, Any]]]:
    found: dict[tuple, list[dict[str, Any]]] = {}
    for room in done:
        found.setdefault(tuple(room[name] for name in ("machine", *besides)), []).append(room)
    return found


if __name__ == "__main__":
    main()
