"""Training clips as two-channel crops of one length with their classes, and the check of their files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.dcase.clips import DcaseClip
from ..hub.fbank import SAMPLING_RATE
from ..hub.recording import load_recording
from ..hub.sound_reader import SoundReader


class LabelledCrops(Dataset):
    """A data set whose item `(index, seed)` is a crop `(2, N)` float32 of clip `index`, and its class.

    Longer clips are cut from a start that `seed` draws (0: from the beginning), shorter ones are repeated. A mono clip
    gives both channels.

    Args:
        clips: the clips, n of them.
        labels: their class numbers, `(n,)`.
        duration_s: the duration of a crop.
        sampling_rate: the rate of the crops, Hz; the clips have 16 kHz.
    """

    def __init__(
        self,
        clips: Sequence[DcaseClip],
        labels: Tensor,
        duration_s: float = 10.0,
        sampling_rate: int = SAMPLING_RATE,
    ):
        self.clips, self.labels, self.sampling_rate = clips, labels, sampling_rate
        self.num_samples = round(duration_s * sampling_rate)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = item
        samples = torch.as_tensor(load_recording(self.clips[index].path, SAMPLING_RATE).samples)  # (channels, n)
        if self.sampling_rate != SAMPLING_RATE:
            frames = soxr.resample(samples.T.contiguous().numpy(), SAMPLING_RATE, self.sampling_rate)  # (n, channels)
            samples = torch.from_numpy(frames.T.copy())  # (channels, n)
        missing = self.num_samples - samples.shape[1]
        if missing > 0:
            samples = samples.repeat(1, -(-self.num_samples // samples.shape[1]))
        start = int(np.random.default_rng(seed).integers(1 - missing)) if seed and missing < 0 else 0
        return samples[:, start : start + self.num_samples].expand(2, -1), self.labels[index]  # (2, N)


def check_recordings(clips: Sequence[DcaseClip], two_channels: bool) -> None:
    """Read the headers of all files and refuse those that cannot be trained on.

    Args:
        two_channels: whether mono files are refused, as for noise-aware models and far-microphone cancellation.

    Raises:
        OSError: a file has no readable header, or is shorter than its header says.
        ValueError: a file has another number of channels, another rate than 16 kHz, or no samples.
    """
    channels = (2,) if two_channels else (1, 2)
    for clip in tqdm(clips, "headers", unit="clip", delay=5):
        with SoundReader(str(clip.path), str(clip.path)) as file:
            if file.num_channels not in channels:
                wanted = "two channels, close and far, for this model" if two_channels else "one or two channels"
                raise ValueError(f"{clip.path} must have {wanted}, got {file.num_channels}")
            if file.sampling_rate != SAMPLING_RATE:
                raise ValueError(f"{clip.path} must have {SAMPLING_RATE} Hz, got {file.sampling_rate} Hz")
            if not file.num_frames:
                raise ValueError(f"{clip.path} must have samples, got none")
            # Opening does not notice every FLAC that was cut off, and a crop may lie before that place.
            file.read(file.num_frames - 1, 1)
