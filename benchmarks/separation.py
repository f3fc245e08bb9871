"""Blind separation of both channels into machine and noise, as a reference for the cancellers: it learns nothing."""

from collections.abc import Callable

import numpy as np
import pyroomacoustics as pra
import torch

FRAME = 2048  # 128 ms at 16 kHz, so that the early echoes of a room are within a frame
HOP = 512
NUM_ITERATIONS = 30
METHODS: dict[str, Callable[..., np.ndarray]] = {"auxiva": pra.bss.auxiva, "ilrma": pra.bss.ilrma}


def separated(recordings: torch.Tensor, method: str) -> torch.Tensor:
    """Replace the close channel by what separation takes for the machine in it, clip by clip.

    Of two separated signals the machine is the one that is louder at the close microphone against the far one.

    Args:
        recordings: `(clips, 2, N)`.
        method: "auxiva" (Ono, WASPAA 2011) or "ilrma" (Kitamura et al., TASLP 2016), both of pyroomacoustics.

    Returns:
        `(clips, 2, N)`, the far channel as it was.
    """
    window = pra.hann(FRAME)
    synthesis = pra.transform.stft.compute_synthesis_window(window, HOP)
    delay, length = FRAME - HOP, recordings.shape[-1]
    left = recordings.clone()
    for clip, kept in zip(recordings.double().numpy(), left, strict=True):
        padded = np.pad(clip, ((0, 0), (0, delay + -(length + delay) % HOP)))
        spectra = pra.transform.stft.analysis(padded.T, FRAME, HOP, win=window)  # (frames, frequencies, 2)
        np.random.seed(0)  # noqa: NPY002  ILRMA starts from numbers of numpy's global generator
        sources = METHODS[method](spectra, n_src=2, n_iter=NUM_ITERATIONS, proj_back=False)
        at_microphones = []
        for channel in range(2):
            scales = pra.bss.projection_back(sources, spectra[:, :, channel])  # (frequencies, 2)
            at_microphones.append(sources * scales.conj()[None])
        close, far = (np.square(np.abs(images)).sum(axis=(0, 1)) for images in at_microphones)  # (2,) each
        machine = at_microphones[0][:, :, int(np.argmax(close / np.maximum(far, 1e-20)))]
        wave = pra.transform.stft.synthesis(machine, FRAME, HOP, win=synthesis)
        kept[0] = torch.from_numpy(wave[delay : delay + length])
    return left
