"""What a noise-aware model gains from hearing the close microphone as recorded, without the far one, or both ways.

    python -m benchmarks.streams                                     # na-beats-tiny, na-eat-tiny and log-mel, seed 1
    python -m benchmarks.streams --encoder logmel --seed 1 2 --coherence 0.5 --method spectral_subtraction

The sites are those of `benchmarks.far_microphone`: one room for every synthetic machine, other noises in training and
test, SNRs of -10 to 10 dB. A memory of 40 normal clips, which also calibrate the canceller, scores 40 normal and 40
faulty ones. "both" joins the vectors of two streams as `fit(streams="both")` does; "scores" is the mean of the scores
of both, each standardised on the normal clips. The output is Markdown: mean AUC in % over machines and seeds, and the
difference to the cancelled stream with the 95 % interval of its mean.
"""

from dataclasses import replace

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.evaluation.systems.score_ensemble import ScoreEnsemble
from na_ssl_hf.hub.far_microphone import FAR_MICROPHONE_METHODS, FarMicrophone
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.layer_choice import joined

from . import NUM_THREADS
from .far_microphone import COHERENCES, Embedder, embedder, mixed, sounds
from .measuring import auc_of_scores, parser_of

STREAMS = ("cancelled", "raw", "both", "scores")
ENCODERS = ("na-beats-tiny", "na-eat-tiny", "logmel")
PARTS = ("train", "normal", "anomaly")


def main() -> None:
    parser = parser_of(__doc__, "streams")
    parser.add_argument("--encoder", nargs="+", default=ENCODERS, help="checkpoints, or logmel (default: all three)")
    parser.add_argument("--coherence", nargs="+", type=float, default=COHERENCES, help="shares of common noise")
    parser.add_argument("--seed", nargs="+", type=int, default=[1], help="seeds of rooms and clips (default: 1)")
    parser.add_argument("--method", choices=FAR_MICROPHONE_METHODS, default="auto", help="canceller (default: auto)")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print("| encoder | coherence | stream | AUC in % | beyond cancelled | least of a machine |")
    print("| :-- | --: | :-- | --: | --: | --: |")
    sites = [(seed, targets, noises) for seed in options.seed for _, targets, noises in sounds(None, None, seed)]
    embedders = {encoder: two_channel_embedder(encoder) for encoder in options.encoder}
    for coherence in options.coherence:
        aucs: dict[str, list[list[float]]] = {encoder: [] for encoder in embedders}
        for seed, targets, noises in sites:
            mixtures = mixed(targets, noises, coherence, seed)
            canceller = FarMicrophone(options.method).fit(mixtures["train"])
            cancelled = {part: canceller.cancel(clips) for part, clips in mixtures.items()}
            for encoder, embed in embedders.items():
                aucs[encoder].append(aucs_of_streams(mixtures, cancelled, embed))
        for encoder, of_sites in aucs.items():
            print_rows(encoder, coherence, 100 * np.array(of_sites), len(options.seed))


def print_rows(encoder: str, coherence: float, aucs: np.ndarray, num_seeds: int) -> None:
    """Print a row of the table for each stream; `aucs (seeds * machines, streams)` in %."""
    for index, stream in enumerate(STREAMS):
        gains = aucs[:, index] - aucs[:, 0]
        interval = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
        least = gains.reshape(num_seeds, -1).mean(axis=0).min()
        cells = [encoder, f"{coherence:g}", stream, f"{aucs[:, index].mean():.1f}"]
        print(f"| {' | '.join(cells)} | {gains.mean():+.1f} ± {interval:.1f} | {least:+.1f} |", flush=True)


def two_channel_embedder(encoder: str) -> Embedder:
    """Return what makes embeddings `(clips, F, D)` of recordings `(clips, 2, N)`, and the memory for them."""
    if encoder == "logmel":
        of_close = embedder(encoder)
        return Embedder(lambda clips: of_close.vectors(clips[:, 0]), of_close.memory)
    source = resolve_checkpoint(encoder)
    extractor = load_extractor(source)
    extractor.far_cancellation = None
    scorer = AnomalyScorer(model=load_model(source), feature_extractor=extractor)

    def embed(clips: torch.Tensor) -> torch.Tensor:
        recordings = [{"array": clip.numpy(), "sampling_rate": SAMPLING_RATE} for clip in clips]
        return scorer.embed(recordings, batch_size=8, pooling="mean")

    return Embedder(embed, MemoryBank())


def aucs_of_streams(raw: dict[str, torch.Tensor], cancelled: dict[str, torch.Tensor], embed: Embedder) -> list[float]:
    """Compute the AUC of every stream at one site from its recordings `(clips, 2, N)` by part."""
    vectors = {
        stream: {part: torch.as_tensor(embed.vectors(clips[part])) for part in PARTS}
        for stream, clips in (("cancelled", cancelled), ("raw", raw))
    }
    vectors["both"] = {part: joined([vectors["cancelled"][part], vectors["raw"][part]]) for part in PARTS}
    own, scores = {}, {}
    for stream, parts in vectors.items():
        bank = replace(embed.memory).fit(parts["train"])
        own[stream] = np.asarray(bank.self_scores())
        scores[stream] = {part: np.asarray(bank.score(parts[part])) for part in PARTS[1:]}
    members = ("cancelled", "raw")
    fused = ScoreEnsemble(dict.fromkeys(members, 1.0), z_normalize=True).fit({name: own[name] for name in members})
    scores["scores"] = {
        part: np.asarray(fused.score({name: scores[name][part] for name in members})) for part in PARTS[1:]
    }
    return [auc_of_scores(scores[stream]["normal"], scores[stream]["anomaly"]) for stream in STREAMS]


if __name__ == "__main__":
    main()
