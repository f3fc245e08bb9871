"""Log-mel statistics of each band are an embedding without any learning, which every encoder should beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ...hub.fbank import NUM_MEL_BINS, kaldi_fbank


def log_mel_embeddings(
    waveforms: Iterable[np.ndarray | torch.Tensor], num_bands: int = 8, center_level: bool = False
) -> torch.Tensor:
    """Compute mean and standard deviation over time of the BEATs log-mel spectrogram, in equal mel bands.

    Args:
        waveforms: single-channel clips `(N,)` at 16 kHz, whose lengths may differ.
        num_bands: number F of mel bands.
        center_level: whether the level of the clip, the average over all 128 means, is subtracted, so that its
            loudness has no influence.

    Returns:
        `(clips, F, 2 * 128 / F)` float32 for a `MemoryBank(distance="euclidean", normalize=False)`, whose scores are
        higher for more anomalous clips.

    Raises:
        ValueError: `num_bands` does not divide 128, or there is no clip.
    """
    if num_bands < 1 or NUM_MEL_BINS % num_bands:
        raise ValueError(f"num_bands must divide {NUM_MEL_BINS}, got {num_bands}")
    embeddings = []
    for waveform in waveforms:
        log_mel = kaldi_fbank(torch.as_tensor(waveform, dtype=torch.float32), flavour="beats")  # (T, 128)
        mean = log_mel.mean(dim=0)  # (128,)
        if center_level:
            mean = mean - mean.mean()
        statistics = torch.stack([mean, log_mel.std(dim=0, correction=0)])  # (2, 128)
        embeddings.append(statistics.unflatten(1, (num_bands, -1)).transpose(0, 1).flatten(1))  # (F, 2 * 128 / F)
    if not embeddings:
        raise ValueError("waveforms must hold at least one clip, got none")
    return torch.stack(embeddings)
