"""The scoring pipeline: one recording through it beside the bare model, and the features of a whole data set."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import pipeline

from na_ssl_hf import (
    EfficientATConfig,
    EfficientATModel,
    MemoryBank,
    NABeatsConfig,
    NABeatsModel,
    TwoChannelFeatureExtractor,
    pool_time,
)
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.one_thread import one_thread

from .measuring import NUM_SAMPLES, SEED, Row, alternate

# The features of the measured clips are timed, and the time is scaled up to the reported number of clips.
MEASURED_CLIPS, REPORTED_CLIPS, BATCH_SIZE = 64, 1_000, 8


def two_channel_wav(folder: str, seed: int = SEED) -> str:
    """Writes a machine-like tone in noise of 10 s as a two-channel WAV file of 16 bit, and returns its path."""
    random = np.random.default_rng(seed)
    hum = 0.1 * np.sin(2 * np.pi * 120 * np.arange(NUM_SAMPLES) / SAMPLING_RATE)
    samples = 0.05 * random.standard_normal((NUM_SAMPLES, 2)) + hum[:, None] * [1.0, 0.3]
    path = str(Path(folder) / f"machine_{seed}.wav")
    soundfile.write(path, samples, SAMPLING_RATE, subtype="PCM_16")
    return path


def normal_recordings(count: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(SEED + 1)
    return (0.05 * random.standard_normal((2, NUM_SAMPLES), dtype=np.float32) for _ in range(count))


def tiny_scoring() -> list[Row]:
    scorer = pipeline("anomaly-scoring", model=resolve_checkpoint("na-beats-tiny"))
    scorer.fit(list(normal_recordings(20)))
    with tempfile.TemporaryDirectory() as folder:
        path = two_channel_wav(folder)
        fbank = scorer.feature_extractor.fbank(next(scorer.preprocess(path)).samples[None])

        @torch.no_grad()
        def bare() -> None:
            scorer.model(fbank)

        scorer(path)
        # One thread, because on a model as small as this a second thread costs more than it gains.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ours, model = alternate(9, lambda: scorer(path), bare)
        torch.set_num_threads(threads)
    return [
        Row(
            "tiny checkpoint, a 10 s WAV decoded and scored, 1 thread",
            ours * 1e3,
            model * 1e3,
            f"{ours / model:.2f} x the bare model",
            "<= 100 ms",
            ours <= 0.1,
            unit="ms",
        )
    ]


def pipeline_overhead() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        NABeatsModel(NABeatsConfig()).save_pretrained(folder)
        TwoChannelFeatureExtractor(frontend="beats").save_pretrained(folder)
        scorer = pipeline("anomaly-scoring", model=folder)
        scorer.fit(list(normal_recordings(5)))
        path = two_channel_wav(folder)
        fbank = scorer.feature_extractor.fbank(next(scorer.preprocess(path)).samples[None])

        @torch.no_grad()
        def bare() -> None:
            scorer.model(fbank)

        scorer(path)
        ours, model = alternate(7, lambda: scorer(path), bare)
    overhead = ours / model - 1
    return [
        Row(
            "NA-BEATs base, a 10 s WAV scored",
            ours,
            model,
            f"{overhead:+.1%} over the bare model",
            "< 10%",
            overhead < 0.1,
        )
    ]


def features_and_scoring() -> list[Row]:
    scorer = pipeline("anomaly-scoring", model=resolve_checkpoint("na-beats-tiny"))
    scorer.fit(list(normal_recordings(20)))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = [two_channel_wav(folder, seed) for seed in range(MEASURED_CLIPS)]
        batch = paths[:BATCH_SIZE]
        waveforms = torch.stack([next(scorer.preprocess(path)).samples for path in batch])
        fbank = scorer.feature_extractor.fbank(waveforms)

        @torch.no_grad()
        def model_grid() -> torch.Tensor:
            return scorer.model.time_frequency_grid(scorer.model(fbank).last_hidden_state)

        grid = model_grid()
        clips = torch.randn(REPORTED_CLIPS, grid.shape[2], grid.shape[3])
        bank = MemoryBank(rescaling="variance_min")
        features, scoring, *steps = alternate(
            3,
            lambda: scorer.embed(paths, batch_size=BATCH_SIZE),
            lambda: bank.fit(clips).score(clips),
            lambda: [next(scorer.preprocess(path)) for path in batch],
            lambda: scorer.feature_extractor.fbank(waveforms),
            model_grid,
            lambda: pool_time(grid),
        )
    features *= REPORTED_CLIPS / MEASURED_CLIPS
    model = steps[2] * REPORTED_CLIPS / BATCH_SIZE
    named = zip(("reading", "fbank", "model", "pooling"), steps, strict=True)
    shares = ", ".join(f"{step} {seconds / sum(steps):.1%}" for step, seconds in named)
    return [
        Row(
            "features of 1,000 x 10 s WAV, tiny checkpoint, 1 thread",
            features,
            model,
            f"{features / model:.2f} x the bare model",
            "<= 90 s",
            features <= 90,
            note=f"scaled up from {MEASURED_CLIPS} clips in batches of {BATCH_SIZE}; {shares}",
        ),
        Row(
            f"VarMin fit and scores of their embeddings, {' x '.join(f'{size:,}' for size in clips.shape)}",
            scoring,
            features,
            f"{scoring / features:.2%} of the features",
            "< 2%",
            scoring < 0.02 * features,
        ),
    ]


def efficientat_chain() -> list[Row]:
    """The way of a recording of 16 kHz to its embedding, by EfficientAT's mn04 up to layer 10 and by na-beats-tiny."""
    (recording,) = normal_recordings(1)
    small, extractor = (
        EfficientATModel(EfficientATConfig(width=0.4)).eval(),
        TwoChannelFeatureExtractor("efficientat", resample=True),
    )
    name = resolve_checkpoint("na-beats-tiny")
    tiny, tiny_extractor = load_model(name).eval(), load_extractor(name)

    @torch.no_grad()
    def by_efficientat() -> None:
        waves = extractor.waveform(recording, SAMPLING_RATE)[None]
        small.layer_grids(extractor.fbank(waves), [10])

    @torch.no_grad()
    def by_na_beats() -> None:
        waves = tiny_extractor.waveform(recording, SAMPLING_RATE)[None]
        tiny(tiny_extractor.fbank(waves))

    with one_thread():
        ours, other = alternate(9, by_efficientat, by_na_beats)
    return [
        Row(
            "EfficientAT mn04 to layer 10, a 10 s recording of 16 kHz, 1 thread",
            ours * 1e3,
            other * 1e3,
            f"{ours / other:.2f} x na-beats-tiny",
            "< 1",
            ours < other,
            unit="ms",
            note="resampling, spectrograms of both channels, network",
        )
    ]


ITEMS = {
    "tiny": tiny_scoring,
    "pipeline": pipeline_overhead,
    "features": features_and_scoring,
    "efficientat-chain": efficientat_chain,
}
