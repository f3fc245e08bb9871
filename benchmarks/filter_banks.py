"""The batched Kaldi fbank on CPU and GPU, beside a loop of kaldi-native-fbank over the recordings."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from na_ssl_hf.hub.fbank import SAMPLING_RATE, kaldi_fbank

from .measuring import NUM_SAMPLES, Row, alternate

FBANK = "fbank of 32 x 10 s"
NO_KALDI = "not measured: kaldi-native-fbank is not installed"


def kaldi_loop() -> Callable[[np.ndarray], object] | None:
    try:
        import kaldi_native_fbank
    except ImportError:
        return None
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = SAMPLING_RATE
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 128
    # At the models' 20 Hz one mel channel holds no FFT bin, which this library refuses; the work is the same.
    options.mel_opts.low_freq = 30.0

    def run(waves: np.ndarray) -> list[np.ndarray]:
        features = []
        for wave in waves:
            fbank = kaldi_native_fbank.OnlineFbank(options)
            fbank.accept_waveform(SAMPLING_RATE, wave)
            fbank.input_finished()
            features.append(np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)]))
        return features

    return run


def fbank_on_cpu() -> list[Row]:
    loop, waves = kaldi_loop(), torch.randn(32, NUM_SAMPLES) * 0.1
    kaldi_fbank(waves)
    if loop is None:
        (ours,) = alternate(5, lambda: kaldi_fbank(waves))
        return [Row(FBANK, ours, None, "-", "<= 1 x", None, note=NO_KALDI)]
    ours, kaldi = alternate(5, lambda: kaldi_fbank(waves), lambda: loop(waves.numpy()))
    return [Row(FBANK, ours, kaldi, f"{ours / kaldi:.2f} x the loop", "<= 1 x", ours <= kaldi)]


def fbank_on_gpu() -> list[Row]:
    if not torch.cuda.is_available():
        return [Row(f"{FBANK}, GPU", None, None, "-", ">= 20 x faster", None, note="not measured: no GPU")]
    loop, waves = kaldi_loop(), torch.randn(32, NUM_SAMPLES) * 0.1
    on_gpu = waves.to("cuda")

    def gpu_seconds() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        kaldi_fbank(on_gpu)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    gpu_seconds()
    ours = statistics.median(gpu_seconds() for _ in range(20))
    kaldi_fbank(waves)
    rows = []
    (cpu,) = alternate(5, lambda: kaldi_fbank(waves))
    rows.append(Row(f"{FBANK}, GPU, ours on the CPU beside it", ours, cpu, f"{cpu / ours:.0f} x faster", "-", None))
    if loop is None:
        return [*rows, Row(f"{FBANK}, GPU", ours, None, "-", ">= 20 x faster", None, note=NO_KALDI)]
    (kaldi,) = alternate(5, lambda: loop(waves.numpy()))
    note = f"ours: wall seconds on {torch.cuda.get_device_name()}"
    return [
        *rows,
        Row(
            f"{FBANK}, GPU",
            ours,
            kaldi,
            f"{kaldi / ours:.0f} x faster",
            ">= 20 x faster",
            kaldi >= 20 * ours,
            note=note,
        ),
    ]


ITEMS = {"fbank": fbank_on_cpu, "fbank-gpu": fbank_on_gpu}
