"""Simulated rooms, the mixing of two-channel examples, and the stream of sounds that feeds a training."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

from na_ssl_hf.data.corpora.manifest import SoundFile
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.one_thread import one_thread
from na_ssl_hf.simulation import RoomPool, draw_room, simulate_impulse_responses
from na_ssl_hf.simulation.mixture_stream import mix_examples, simulated_mixtures

from .measuring import NUM_SAMPLES, SEED, Row, alternate, cpu_seconds

NUM_ROOMS, MIXTURES, BATCH_SIZE = 8, 32, 8
NUM_SOUNDS, SOUND_SECONDS = 8, 30
GPU_RATE, GPU_CORES = 300, 16  # clips/s that one H100 may ask for in training, and CPU cores beside it


def rooms() -> list[Row]:
    def simulate() -> None:
        for seed in range(NUM_ROOMS):
            simulate_impulse_responses(draw_room([SEED, seed]), SAMPLING_RATE)

    simulate()
    seconds = statistics.median(cpu_seconds(simulate) for _ in range(3)) / NUM_ROOMS
    return [Row("a room of 10 impulse responses", seconds, None, "-", "<= 0.2 s", seconds <= 0.2)]


def mixing() -> list[Row]:
    pool = RoomPool.simulate(NUM_ROOMS, SEED, show_progress=False)
    target, noises = torch.randn(MIXTURES, NUM_SAMPLES), torch.randn(MIXTURES, 4, NUM_SAMPLES)
    examples = {
        "target": target,
        "noises": noises,
        "room": torch.arange(MIXTURES) % NUM_ROOMS,
        "snr_db": torch.zeros(MIXTURES),
        "gain_db": torch.zeros(MIXTURES),
        "noise_coherence": torch.zeros(MIXTURES),
    }
    responses = [simulate_impulse_responses(draw_room([SEED, seed]), SAMPLING_RATE) for seed in range(NUM_ROOMS)]

    def one_by_one() -> None:
        for index in range(MIXTURES):
            room = responses[index % NUM_ROOMS]
            for channel in range(2):
                scipy.signal.fftconvolve(target[index].numpy(), room.target[channel].numpy())
                for noise, response in zip(noises[index].numpy(), room.noise[:, channel].numpy(), strict=True):
                    scipy.signal.fftconvolve(noise, response)
            scipy.signal.fftconvolve(target[index].numpy(), room.target[0, :1000].numpy())  # early reflections

    ours, straightforward = alternate(3, lambda: mix_examples(examples, pool), one_by_one)
    rate = MIXTURES / ours
    note = f"{rate:.0f} triples per CPU s"
    return [
        Row(
            f"mixing {MIXTURES} triples of 10 s, beside scipy's fftconvolve",
            ours,
            straightforward,
            f"{ours / straightforward:.2f} x",
            ">= 40 triples per CPU s",
            rate >= 40,
            note=note,
        )
    ]


def sound_files(folder: str) -> list[SoundFile]:
    """Writes noises in the format that `na-ssl corpora prepare` writes: FLAC of 16 kHz and 16 bit."""
    random = np.random.default_rng(SEED)
    num_frames = SOUND_SECONDS * SAMPLING_RATE
    paths = [str(Path(folder) / f"{number}.flac") for number in range(NUM_SOUNDS)]
    for path in paths:
        soundfile.write(path, 0.05 * random.standard_normal(num_frames), SAMPLING_RATE, subtype="PCM_16")
    return [SoundFile(path, num_frames, SAMPLING_RATE, "train", "noise", "") for path in paths]


def stream() -> list[Row]:
    pool = RoomPool.simulate(NUM_ROOMS, SEED, show_progress=False)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        sounds = sound_files(folder)

        def read(mixed: bool) -> None:
            examples = simulated_mixtures(sounds, sounds, pool, num_examples=MIXTURES, mixed=mixed)
            for _ in torch.utils.data.DataLoader(examples, BATCH_SIZE):
                pass

        read(mixed=False)
        unmixed, mixed = (seconds / MIXTURES for seconds in alternate(3, lambda: read(False), lambda: read(True)))
    cores, megabytes = GPU_RATE * unmixed, GPU_RATE * 5 * NUM_SAMPLES * 4 / 1e6
    return [
        Row(
            "stream of a 10 s example, mixed later on the GPU; beside it mixed at once, 1 thread",
            unmixed * 1e3,
            mixed * 1e3,
            f"{unmixed / mixed:.2f} x",
            f"<= {GPU_CORES} cores for {GPU_RATE} clips/s",
            cores <= GPU_CORES,
            unit="ms",
            note=f"{cores:.1f} cores and {megabytes:,.0f} MB/s to the GPU for {GPU_RATE} clips/s",
        )
    ]


ITEMS = {"rooms": rooms, "mixing": mixing, "stream": stream}
