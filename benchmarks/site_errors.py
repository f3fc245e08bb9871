"""What noise does to the embeddings of a site: what moves all clips alike, which changes no score, and what scatters.

    python -m benchmarks.site_errors na-eat-tiny-distilled                                     # machines of the package
    python -m benchmarks.site_errors CHECKPOINT --machines FOLDER --noises FOLDER --seed 2 3   # real ones

Rooms, clips and noises are those of `benchmarks.noise_aware_machines`. The error of a clip is the difference between
its embedding (mean over time) and the one that the base has of the same clip without noise, heard by the close
microphone alone. Its mean over the clips of a site moves normal and faulty clips alike; the rest scatters, and hides
faults. Both are stated as a share of those of the base behind the same canceller, with 95 % intervals over rooms,
beside the AUCs in %. The output is Markdown.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.hub.modeling_noise_aware import NoiseAwareModelMixin
from na_ssl_hf.training.validation_conditions import ClipErrors

from .distillation_conditions import ratio_cell
from .far_microphone import Noises, Targets, auc_of_vectors, canceller, mixed, options_of_sites, sounds
from .measuring import parser_of, progress
from .noise_aware_machines import BASE, BOTH, ENCODERS, NOISE_AWARE, NUM_CLIPS, vectors_of_shares

CANCELLERS = ("none", "auto")
NO_NOISE_DB = 200.0

# Of one room and canceller: a name of `ENCODERS` -> squared error common to all clips, what scatters, and AUC in %.
Parts = Mapping[str, tuple[float, float, float]]


def main() -> None:
    parser = parser_of(__doc__, "site_errors")
    parser.add_argument("model", help="noise-aware checkpoint: a folder, or a name on the hub or of the package")
    parser.add_argument("--coherence", nargs="+", type=float, default=(1.0, 0.0), help="shares of common noise")
    parser.add_argument("--snr", nargs="+", type=float, default=(0.0,), help="SNRs at the close microphone, dB")
    parser.add_argument("--seed", nargs="+", type=int, default=[2], help="seeds of rooms and clips (default: 2)")
    options = options_of_sites(parser)
    print(table(list(rooms(options))))


def rooms(options: argparse.Namespace) -> Iterator[tuple[str, str, Parts]]:
    """Yield machine, canceller and parts of the error, room by room."""
    source = resolve_checkpoint(options.model)
    model = load_model(source)
    if not isinstance(model, NoiseAwareModelMixin):
        sys.exit(f"the checkpoint must be a noise-aware model, got {type(model).__name__}")
    scorer = AnomalyScorer(model=model, feature_extractor=load_extractor(source))
    for snr_db in options.snr:
        for coherence in options.coherence:
            for seed in options.seed:
                for name, targets, noises in sounds(options.machines, options.noises, seed, NUM_CLIPS):
                    progress(f"  {name}, seed {seed}, coherence {coherence:g}, {snr_db:g} dB")
                    parts = parts_of_room(scorer, targets, noises, coherence, snr_db, seed)
                    yield from ((name, method, of_method) for method, of_method in parts.items())


def parts_of_room(
    scorer: AnomalyScorer, targets: Targets, noises: Noises, coherence: float, snr_db: float, seed: int
) -> dict[str, Parts]:
    """Put a machine into a room, and part the errors of its clips, behind every canceller."""
    mixtures, without_noise = (
        mixed(targets, noises, coherence, seed, (level, level)) for level in (snr_db, NO_NOISE_DB)
    )
    clean = {part: vectors_of_shares(scorer, clips, None, clips)[BASE] for part, clips in without_noise.items()}
    found = {}
    for method in CANCELLERS:
        cancel = canceller(method, mixtures["train"])
        heard = {part: torch.stack([cancel(clips), clips[:, 1]], dim=1) for part, clips in mixtures.items()}
        vectors = {part: vectors_of_shares(scorer, clips, None, mixtures[part]) for part, clips in heard.items()}
        found[method] = {
            system: (
                *parted(torch.cat([of_part[system] - clean[part] for part, of_part in vectors.items()])),
                100 * auc_of_vectors(MemoryBank(), {part: of_part[system] for part, of_part in vectors.items()}),
            )
            for system in ENCODERS
        }
    return found


def parted(errors: torch.Tensor) -> tuple[float, float]:
    """Part errors `(clips, F, D)`: the squared norm of their mean, and the mean squared distance from it."""
    common = errors.mean(dim=0)  # (F, D)
    return float(common.square().sum()), float((errors - common).square().sum(dim=(1, 2)).mean())


def table(done: Sequence[tuple[str, str, Parts]]) -> str:
    """Make the Markdown: a row for every machine and canceller, and for all machines together."""
    lines = [
        "| machine | canceller | common to the site | scatter | AUC: base | mean of both | noise-aware |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for machine in (*sorted({name for name, _, _ in done}), "all"):
        for method in CANCELLERS:
            chosen = [parts for name, of, parts in done if of == method and machine in (name, "all")]
            aucs = [f"{np.mean([parts[system][2] for parts in chosen]):.1f}" for system in ENCODERS]
            cells = [_ratio(chosen, 0), _ratio(chosen, 1), *aucs]
            lines.append(f"| {machine} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(chosen: Sequence[Parts], index: int) -> str:
    """State a part of the error of the noise-aware model as a share of that of the base, with its interval."""
    own, base, both = (np.array([parts[system][index] for parts in chosen]) for system in (NOISE_AWARE, BASE, BOTH))
    return ratio_cell(ClipErrors(own, base, both))


if __name__ == "__main__":
    main()
