"""Speed and memory of na_ssl_hf, each beside the straightforward way to the same result, in one run.

    python examples/benchmark.py                            # everything, some ten minutes, 4 GB (`make bench`)
    python examples/benchmark.py --only na-beats bank       # items whose name begins so
    python examples/benchmark.py --json > benchmark.json

Times are CPU seconds of this process, all threads together; the two ways alternate, and medians are shown. The ratios
are what counts: other programs on the machine stretch both sides.

The models are compared with bare matmuls: every linear layer, convolution and attention product of the model as one
`torch.mm` or `torch.bmm` of its shape into a buffer that exists already, and nothing else (each distinct shape is timed
five times and scaled by how often it occurs). Both sides then do the same
floating point operations, so the ratio of the times is the share of the matmuls' FLOP rate that the model reaches.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

# Before torch is imported: threads that spin while they wait would be counted as work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
NUM_THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)

import numpy as np  # noqa: E402
import scipy.signal  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedModel, pipeline  # noqa: E402
from transformers.utils import logging  # noqa: E402

import na_ssl_hf  # noqa: E402
from na_ssl_hf import BeatsConfig, BeatsModel, MemoryBank, NABeatsConfig, NABeatsModel, pool_time  # noqa: E402
from na_ssl_hf.checkpoints import default_checkpoint  # noqa: E402
from na_ssl_hf.data.sound_manifest import SoundFile  # noqa: E402
from na_ssl_hf.hub.fbank import kaldi_fbank  # noqa: E402
from na_ssl_hf.hub.recording import load_recording  # noqa: E402
from na_ssl_hf.one_thread import one_thread  # noqa: E402
from na_ssl_hf.simulation import RoomPool, draw_room, simulate_impulse_responses  # noqa: E402
from na_ssl_hf.simulation.mixture_stream import mix_examples, simulated_mixtures  # noqa: E402
from na_ssl_hf.training.attentive_statistics import ProjectionHead  # noqa: E402
from na_ssl_hf.training.classification_losses import SubClusterAdaCos  # noqa: E402
from na_ssl_hf.training.discriminative import DiscriminativeModel  # noqa: E402
from na_ssl_hf.training.distillation import NoiseAwareDistillation  # noqa: E402
from na_ssl_hf.training.lora import add_lora  # noqa: E402
from na_ssl_hf.training.optimizers import make_optimizers  # noqa: E402

SEED = 0
SAMPLING_RATE = 16000
NUM_SAMPLES = 10 * SAMPLING_RATE
NUM_FRAMES = 998  # fbank frames of 10 s
NUM_CLIPS = 4
NUM_ROOMS, MIXTURES = 8, 32
NUM_SOUNDS, SOUND_SECONDS = 8, 30
GPU_RATE, GPU_CORES = 300, 16  # clips/s that one H100 may ask for in training, and CPU cores beside it
LORA_CLIPS = 8
BANK_SHAPE = (10_000, 8, 768)
BANK_CHUNK = 500
SMALL_BANK_SHAPE = (1_000, 8, 768)
BIG_BANK_SHAPE = (100_000, 8, 768)
NUM_QUERIES = 200
# Of the features: so many clips are measured, and their time is scaled up to so many.
MEASURED_CLIPS, REPORTED_CLIPS, FEATURE_BATCH = 64, 1_000, 8
RECALL_QUERIES = 800
HAS_PROC = Path("/proc/self/status").exists()


@dataclass
class Row:
    """One line of the table; times in CPU seconds unless `unit` says otherwise, `None` where nothing was measured."""

    what: str
    ours: float | None
    straightforward: float | None
    ratio: str
    target: str
    met: bool | None
    unit: str = "s"
    note: str = ""


def main() -> None:
    items = {
        "beats": beats_forward,
        "na-beats-forward": na_beats_forward,
        "na-beats-training": na_beats_training_step,
        "rooms": rooms,
        "mixing": mixing,
        "stream": stream,
        "distillation": distillation_step,
        "distillation-memory": distillation_memory,
        "fine-tuning-memory": fine_tuning_memory,
        "tiny": tiny_scoring,
        "pipeline": pipeline_overhead,
        "features": features_and_scoring,
        "fbank": fbank_on_cpu,
        "fbank-gpu": fbank_on_gpu,
        "bank": bank_fit_and_scoring,
        "bank-memory": bank_memory,
        "bank-big": big_bank,
        "bank-big-index": big_bank_index,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[""],
        help=f"measure items whose name begins so: {', '.join(items)}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    chosen = [name for name in items if name.startswith(tuple(arguments.only))]
    if not chosen:
        parser.error(f"--only must name some of {', '.join(items)}, got {' '.join(arguments.only)}")

    torch.set_num_threads(NUM_THREADS)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for name in chosen:
        progress(f"[{name}]")
        torch.manual_seed(SEED)
        rows += items[name]()
    if arguments.json:
        print(json.dumps({"machine": machine(), "seed": SEED, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(f"{machine()}, seed {SEED}\n")
    print_table(rows)


# Measuring


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(repetitions: int, *ways: Callable[[], object]) -> list[float]:
    """Median CPU seconds of each way, over repetitions in which every way runs once."""
    times: list[list[float]] = [[] for _ in ways]
    for repetition in range(repetitions):
        for way, seconds in zip(ways, times, strict=True):
            seconds.append(cpu_seconds(way))
        progress(f"  {repetition + 1}/{repetitions}: " + ", ".join(f"{seconds[-1]:.3f} s" for seconds in times))
    return [statistics.median(seconds) for seconds in times]


# Models against bare matmuls


@dataclass(frozen=True)
class Product:
    """`batch` matrix products (m, k) x (k, n)."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.k * self.n


Products = list[tuple[int, Product]]  # how many times, and which


def linear(m: int, k: int, n: int, count: int, passes: str = "f") -> Products:
    """`count` linear layers; passes: forward "f", gradient of the input "i", gradient of the weight "w"."""
    of_pass = {"f": Product(m, k, n), "i": Product(m, n, k), "w": Product(n, m, k)}
    return [(count, of_pass[which]) for which in passes]


def attention(batch: int, tokens: int, head_dim: int, count: int, backward: bool = False) -> Products:
    """Scores and weighted sum; backward gives each of them two products of the same two shapes."""
    scores, mix = Product(tokens, head_dim, tokens, batch), Product(tokens, tokens, head_dim, batch)
    return [(count * (3 if backward else 1), scores), (count * (3 if backward else 1), mix)]


def embedding_products(config: BeatsConfig, streams: int) -> Products:
    tokens = NUM_CLIPS * num_tokens()
    groups, kernel = config.position_convolution_groups, config.position_convolution_kernel
    channels = config.hidden_size // groups
    return [
        (streams, Product(tokens, config.patch_size**2, config.patch_embedding_size)),
        *linear(tokens, config.patch_embedding_size, config.hidden_size, streams),
        (streams * groups, Product(tokens, channels * kernel, channels)),
    ]


def base_layer_products(config: BeatsConfig, count: int, backward: bool = False) -> Products:
    """Frozen transformer layers: backward only needs gradients of the inputs."""
    tokens, size = NUM_CLIPS * num_tokens(), config.hidden_size
    heads, passes = config.num_attention_heads, "fi" if backward else "f"
    return [
        *linear(tokens, size, size, 4 * count, passes),
        *linear(tokens, size, config.intermediate_size, count, passes),
        *linear(tokens, config.intermediate_size, size, count, passes),
        *linear(tokens * heads, size // heads, 2, count, passes),
        *attention(NUM_CLIPS * heads, num_tokens(), size // heads, count, backward),
    ]


def noise_aware_products(config: NABeatsConfig, backward: bool = False) -> Products:
    """All noise-aware layers: their norms learn too, so every linear needs both gradients."""
    tokens, size, count = NUM_CLIPS * num_tokens(), config.hidden_size, config.num_hidden_layers
    inner, heads = config.noise_aware_intermediate_size, config.noise_aware_num_heads
    passes = "fiw" if backward else "f"
    return [
        *linear(tokens, size, size, 4 * count, passes),
        *linear(tokens, size, inner, 2 * count, passes),
        *linear(tokens, inner, size, count, passes),
        *attention(NUM_CLIPS * heads, num_tokens(), size // heads, count, backward),
    ]


def num_tokens() -> int:
    return NUM_FRAMES // 16 * 8


def bare_matmuls(products: Products) -> Callable[[], float]:
    """A function that gives the CPU seconds of `products` as bare matmuls."""
    counts: dict[Product, int] = {}
    for count, product in products:
        counts[product] = counts.get(product, 0) + count

    return lambda: sum(count * matmul_seconds(product) for product, count in counts.items())


def matmul_seconds(product: Product) -> float:
    leading = () if product.batch == 1 else (product.batch,)
    left = torch.randn(*leading, product.m, product.k)
    right = torch.randn(*leading, product.n, product.k).mT  # as a weight lies in memory
    out = torch.empty(*leading, product.m, product.n)
    multiply = torch.mm if product.batch == 1 else torch.bmm
    multiply(left, right, out=out)
    return statistics.median(cpu_seconds(lambda: multiply(left, right, out=out)) for _ in range(5))


def against_matmuls(what: str, run: Callable[[], object], products: Products, target: float) -> list[Row]:
    bare = bare_matmuls(products)
    run()
    ours, matmuls, shares = [], [], []
    for repetition in range(3):
        matmuls.append(bare())
        ours.append(cpu_seconds(run))
        shares.append(matmuls[-1] / ours[-1])
        progress(f"  {repetition + 1}/3: {ours[-1]:.3f} s, matmuls {matmuls[-1]:.3f} s, {shares[-1]:.0%}")
    share = statistics.median(shares)
    flops = sum(count * product.flops for count, product in products)
    seconds = statistics.median(ours)
    note = f"{flops / 1e9:.0f} GFLOP, {flops / seconds / 1e9:.1f} GFLOP per CPU second"
    return [
        Row(
            what,
            seconds,
            statistics.median(matmuls),
            f"{share:.1%} of the matmuls' FLOP rate",
            f">= {target:.0%}",
            share >= target,
            note=note,
        )
    ]


def forward(what: str, model: PreTrainedModel, fbank: torch.Tensor, products: list[Product]) -> list[Row]:
    @torch.no_grad()
    def run() -> None:
        model(fbank)

    return against_matmuls(what, run, products, 0.75)


def beats_forward() -> list[Row]:
    config = BeatsConfig()
    products = embedding_products(config, 1) + base_layer_products(config, config.num_hidden_layers)
    fbank = torch.randn(NUM_CLIPS, NUM_FRAMES, config.num_mel_bins)
    return forward("BEATs base forward, 4 x 10 s", BeatsModel(config).eval(), fbank, products)


def na_beats_forward() -> list[Row]:
    config = NABeatsConfig()
    products = (
        embedding_products(config, 2)
        + base_layer_products(config, 2 * config.num_hidden_layers)
        + noise_aware_products(config)
    )
    fbank = torch.randn(NUM_CLIPS, 2, NUM_FRAMES, config.num_mel_bins)
    return forward("NA-BEATs base forward, 4 x 10 s", NABeatsModel(config).eval(), fbank, products)


def na_beats_training_step() -> list[Row]:
    config = NABeatsConfig()
    model = NABeatsModel(config).train()
    fbank = torch.randn(NUM_CLIPS, 2, NUM_FRAMES, config.num_mel_bins)
    target = torch.randn(NUM_CLIPS, num_tokens(), config.hidden_size)
    depth = config.num_hidden_layers
    # Nothing before the first noise-aware layer learns: one base layer of the close stream and the whole far stream
    # only go forward.
    products = (
        embedding_products(config, 2)
        + base_layer_products(config, depth + 1)
        + base_layer_products(config, depth - 1, backward=True)
        + noise_aware_products(config, backward=True)
    )

    def run() -> None:
        torch.nn.functional.mse_loss(model(fbank).last_hidden_state, target).backward()
        model.zero_grad(set_to_none=True)

    return against_matmuls("NA-BEATs base training step, 4 x 10 s", run, products, 0.70)


# Training


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
    """Noises as `na-ssl corpora prepare` leaves them: 16 kHz, 16 bit FLAC."""
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
            for _ in torch.utils.data.DataLoader(examples, FEATURE_BATCH):
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


def distillation_of_base_size(**settings: bool) -> Callable[[], None]:
    """A whole step: fbank, frozen streams, student, backward, AdamW."""
    distillation = NoiseAwareDistillation(NABeatsModel.from_base(BeatsModel(BeatsConfig())), **settings).train()
    optimizers = make_optimizers(distillation)
    waves = torch.randn(3, NUM_CLIPS, NUM_SAMPLES)

    def run() -> None:
        distillation(*waves)["loss"].total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return run


def distillation_step() -> list[Row]:
    config = NABeatsConfig()
    depth = config.num_hidden_layers
    products = (
        embedding_products(config, 3)
        + base_layer_products(config, 2 * depth + 1)
        + base_layer_products(config, depth - 1, backward=True)
        + noise_aware_products(config, backward=True)
    )
    what = "distillation step of base size, 4 x 10 s, waveforms to AdamW"
    return against_matmuls(what, distillation_of_base_size(), products, 0.75)


def peak_row(what: str, measure: Callable[[], tuple[float, ...]], limit: float) -> list[Row]:
    target = f"< {limit:,.0f} MB"
    if not HAS_PROC:
        return [Row(what, None, None, "-", target, None, note="not measured: needs Linux")]
    (peak,) = in_its_own_process(measure)
    return [Row(what, peak, None, "-", target, peak < limit, unit="MB", note="the whole process")]


def peak_of_distillation() -> tuple[float, ...]:
    step = distillation_of_base_size(gradient_checkpointing=True)
    step()
    step()
    return (peak_megabytes(),)


def distillation_memory() -> list[Row]:
    return peak_row("its peak memory with gradient checkpointing", peak_of_distillation, 4000)


def peak_of_fine_tuning() -> tuple[float, ...]:
    encoder = NABeatsModel(NABeatsConfig())
    add_lora(encoder)
    head, loss = ProjectionHead(encoder.config.hidden_size), SubClusterAdaCos(256, 30)
    model = DiscriminativeModel(encoder, head, loss, gradient_checkpointing=True).train()
    optimizers = make_optimizers(model)
    labels = torch.nn.functional.one_hot(torch.arange(LORA_CLIPS), 30).float()
    model(torch.randn(LORA_CLIPS, 2, NUM_SAMPLES), labels).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return (peak_megabytes(),)


def fine_tuning_memory() -> list[Row]:
    what = f"LoRA step of NA-BEATs base, {LORA_CLIPS} x 10 s, peak memory with gradient checkpointing"
    # glibc keeps big freed blocks for later, three times what is in use here, unless the process is started with it.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    return peak_row(f"{what} and MALLOC_MMAP_THRESHOLD_", peak_of_fine_tuning, 6000)


# Scoring


def two_channel_wav(folder: str, seed: int = SEED) -> str:
    """A machine-like tone in noise, 10 s, as a 16 bit WAV of two channels."""
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
    scorer = pipeline("anomaly-scoring", model=str(default_checkpoint()))
    scorer.fit(list(normal_recordings(20)))
    with tempfile.TemporaryDirectory() as folder:
        path = two_channel_wav(folder)
        samples = soundfile.read(path, dtype="float32")[0].T
        fbank = scorer.preprocess(samples, sampling_rate=SAMPLING_RATE)["input_values"]

        @torch.no_grad()
        def bare() -> None:
            scorer.model(fbank)

        scorer(path)
        # One thread, as anyone would run it: on a model this small the second one costs more than it does.
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
        na_ssl_hf.TwoChannelFeatureExtractor(frontend="beats").save_pretrained(folder)
        scorer = pipeline("anomaly-scoring", model=folder)
        scorer.fit(list(normal_recordings(5)))
        path = two_channel_wav(folder)
        samples = soundfile.read(path, dtype="float32")[0].T
        fbank = scorer.preprocess(samples, sampling_rate=SAMPLING_RATE)["input_values"]

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
    scorer = pipeline("anomaly-scoring", model=str(default_checkpoint()))
    scorer.fit(list(normal_recordings(20)))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = [two_channel_wav(folder, seed) for seed in range(MEASURED_CLIPS)]
        batch = paths[:FEATURE_BATCH]
        samples = [load_recording(path, SAMPLING_RATE).samples for path in batch]
        fbank = scorer.preprocess(samples, sampling_rate=SAMPLING_RATE)
        grid = scorer.forward(fbank)["grid"]
        clips = torch.randn(REPORTED_CLIPS, grid.shape[2], grid.shape[3])
        bank = MemoryBank(rescaling="variance_min")
        features, scoring, *steps = alternate(
            3,
            lambda: scorer.embed(paths, batch_size=FEATURE_BATCH),
            lambda: bank.fit(clips).score(clips),
            lambda: [load_recording(path, SAMPLING_RATE) for path in batch],
            lambda: scorer.preprocess(samples, sampling_rate=SAMPLING_RATE),
            lambda: scorer.forward(fbank),
            lambda: pool_time(grid),
        )
    features *= REPORTED_CLIPS / MEASURED_CLIPS
    model = steps[2] * REPORTED_CLIPS / FEATURE_BATCH
    named = zip(("decoding", "feature extractor", "model", "pooling"), steps, strict=True)
    shares = ", ".join(f"{step} {seconds / sum(steps):.1%}" for step, seconds in named)
    return [
        Row(
            "features of 1,000 x 10 s WAV, tiny checkpoint, 1 thread",
            features,
            model,
            f"{features / model:.2f} x the bare model",
            "<= 90 s",
            features <= 90,
            note=f"scaled up from {MEASURED_CLIPS} clips in batches of {FEATURE_BATCH}; {shares}",
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


# Filter banks


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


FBANK = "fbank of 32 x 10 s"
NO_KALDI = "not measured: kaldi-native-fbank is not installed"


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


# Memory bank


def bank_embeddings(shape: tuple[int, int, int] = BANK_SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def bank_matmuls(bank: MemoryBank, rows: torch.Tensor, out: torch.Tensor) -> None:
    """Products of `rows` `(N, F, D)` with all references, into the buffer `(C, R)`."""
    for band, references in enumerate(bank.memory_):
        for part in rows[:, band].split(len(out)):
            torch.mm(part, references.T, out=out[: len(part)])


def bank_fit_and_scoring() -> list[Row]:
    embeddings, queries = bank_embeddings(), torch.randn(NUM_QUERIES, *BANK_SHAPE[1:])
    bank, small = MemoryBank(rescaling="variance_min"), MemoryBank(rescaling="variance_min")
    out = torch.empty(BANK_CHUNK, BANK_SHAPE[0])
    ours, bare = [], []
    for repetition in range(2):
        ours.append(cpu_seconds(lambda: bank.fit(embeddings)))
        bare.append(cpu_seconds(lambda: bank_matmuls(bank, embeddings, out)))
        progress(f"  {repetition + 1}/2: {ours[-1]:.1f} s, matmuls {bare[-1]:.1f} s")
    fit, fit_bare = statistics.median(ours), statistics.median(bare)
    score, score_bare = alternate(5, lambda: bank.score(queries), lambda: bank_matmuls(bank, queries, out))
    few, out = bank_embeddings(SMALL_BANK_SHAPE), torch.empty(BANK_CHUNK, SMALL_BANK_SHAPE[0])
    small_fit, small_bare = alternate(5, lambda: small.fit(few), lambda: bank_matmuls(small, few, out))
    return [
        Row(
            "VarMin fit, 10,000 x 8 x 768",
            fit,
            fit_bare,
            f"{fit / fit_bare:.2f} x the matmuls",
            "<= 1.5 x",
            fit <= 1.5 * fit_bare,
        ),
        Row("its scores of 200 clips", score, score_bare, f"{score / score_bare:.2f} x the matmuls", "-", None),
        Row(
            "VarMin fit, 1,000 x 8 x 768",
            small_fit,
            small_bare,
            f"{small_fit / small_bare:.2f} x the matmuls",
            "< 1 s",
            small_fit < 1,
        ),
    ]


def in_its_own_process(measure: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Because a process only knows the greatest memory it ever held, and returns a big bank when it ends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(measure, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def send_result(measure: Callable[[], tuple[float, ...]], connection: Connection) -> None:
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(SEED)
    logging.disable_progress_bar()
    connection.send(measure())


def fit_memory() -> tuple[float, ...]:
    embeddings = bank_embeddings()
    warm_up = MemoryBank(rescaling="variance_min").fit(embeddings[:64])
    before = peak_megabytes()
    bank = MemoryBank(rescaling="variance_min").fit(embeddings)
    del warm_up
    return peak_megabytes() - before, bank.memory_.nbytes / 1e6


def peak_megabytes() -> float:
    """The greatest resident memory of this process. Not `ru_maxrss`, which a process inherits from its parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def forget_peak() -> float:
    """The resident megabytes of this process, which count as its greatest from now on."""
    if not HAS_PROC:
        return 0.0
    Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def bank_memory() -> list[Row]:
    what = "VarMin fit, 10,000 x 8 x 768, peak memory beside the embeddings"
    if not HAS_PROC:
        return [Row(what, None, None, "-", "< 300 MB", None, note="not measured: needs Linux")]
    extra, kept = in_its_own_process(fit_memory)
    note = "straightforward: the bank itself, which stays in memory"
    return [Row(what, extra, kept, f"{extra / kept:.2f} x the bank", "< 300 MB", extra < 300, unit="MB", note=note)]


# Big memory bank


def exact_search() -> tuple[float, ...]:
    """CPU seconds of the scores and of the bare matmuls, and megabytes beside bank and queries at the peak."""
    num_clips, num_bands, dim = BIG_BANK_SHAPE
    # Overlapping windows of one line of noise are embeddings that take no memory beside the bank.
    step = 13
    line = torch.randn(num_bands * dim + step * (num_clips - 1))
    queries = torch.randn(NUM_QUERIES, num_bands, dim)
    MemoryBank().fit(queries).score(queries)
    before = forget_peak()
    bank = MemoryBank().fit(line.unfold(0, num_bands * dim, step).unflatten(1, (num_bands, dim)))
    kept = bank.memory_.nbytes / 1e6
    forget_peak()
    bank.score(queries)
    # What fitting freed but the allocator kept counts, too: scoring may use it again.
    extra = peak_megabytes() - before - kept if HAS_PROC else 0.0
    out = torch.empty(NUM_QUERIES, num_clips)
    score, bare = alternate(3, lambda: bank.score(queries), lambda: bank_matmuls(bank, queries, out))
    return score, bare, extra, kept


def big_bank() -> list[Row]:
    score, bare, extra, kept = in_its_own_process(exact_search)
    ratio = f"{score / bare:.2f} x the matmuls"
    rows = [Row("scores of 200 clips, bank 100,000 x 8 x 768", score, bare, ratio, "<= 1.3 x", score <= 1.3 * bare)]
    what, target = "their peak memory beside the bank", "< 2,000 MB"
    if not HAS_PROC:
        return [*rows, Row(what, None, None, "-", target, None, note="not measured: needs Linux")]
    note = "straightforward: the bank itself"
    return [*rows, Row(what, extra, kept, f"{extra / kept:.2f} x the bank", target, extra < 2000, unit="MB", note=note)]


def curved_embeddings(noise_levels: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """References and queries `(N, F, D)` near a curved surface of 12 dimensions in each band, off it by some noise.

    Points without any structure would all be equally far from each other, and a neighbour no better than a stranger.
    """
    num_clips, _, dim = BIG_BANK_SHAPE
    bands = []
    for noise in noise_levels:
        first, second = torch.randn(12, 64), torch.randn(64, dim) / 8
        latent = torch.randn(num_clips + RECALL_QUERIES, 12)
        bands.append(torch.nn.functional.gelu(latent @ first) @ second + noise * torch.randn(len(latent), dim))
    embeddings = torch.stack(bands, dim=1)  # (N, F, D)
    return embeddings[:num_clips], embeddings[num_clips:]


def big_bank_index() -> list[Row]:
    if find_spec("faiss") is None:
        note = "not measured: faiss is not installed"
        return [Row("its scores with a FAISS index", None, None, "-", ">= 10 x faster", None, note=note)]
    # Bands are searched one after the other, so that two of them tell the speed of eight.
    noise_levels = (0.05, 0.3)
    references, queries = curved_embeddings(noise_levels)
    few = queries[:NUM_QUERIES]
    exact = MemoryBank().fit(references)
    nearest = exact.band_scores(queries)
    rows = []
    for kind in ("flat", "ivf", "hnsw"):
        indexed = MemoryBank(index=kind)
        build = cpu_seconds(lambda indexed=indexed: indexed.fit(references)) / len(noise_levels)
        found = indexed.band_scores(queries)
        recalls = (found <= 1.01 * nearest + 1e-9).double().mean(dim=0).tolist()
        progress(f"  {kind}: built in {build:.1f} s a band, recall {recalls}")
        ours, bare = alternate(5, lambda indexed=indexed: indexed.score(few), lambda: exact.score(few))
        recall = sum(recalls) / len(recalls)
        rows.append(
            Row(
                f"{kind} index: scores of 200 clips, bank 100,000 x {len(noise_levels)} x 768, beside exact ones",
                ours,
                bare,
                f"{bare / ours:.1f} x faster, recall {recall:.3f}",
                ">= 10 x, >= 0.98" if kind == "ivf" else "-",
                (bare >= 10 * ours and recall >= 0.98) if kind == "ivf" else None,
                note=f"built in {build:.0f} CPU s a band; recall: found within 1% of the nearest one's distance, "
                f"{len(queries)} queries x {len(noise_levels)} bands",
            )
        )
    return rows


# Printing


def machine() -> str:
    names = ("torch", "transformers", "numpy", "kaldi-native-fbank")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    return ", ".join([processor(), f"{NUM_THREADS} threads", f"Python {platform.python_version()}", *versions])


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.platform()


def print_table(rows: list[Row]) -> None:
    def number(value: float | None, unit: str) -> str:
        return "-" if value is None else f"{value:.3g} {unit}"

    header = ("what", "ours", "straightforward", "ratio", "target", "met")
    met = {True: "yes", False: "NO", None: "-"}
    lines = [
        (
            row.what,
            number(row.ours, row.unit),
            number(row.straightforward, row.unit),
            row.ratio,
            row.target,
            met[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    for line in [header, tuple("-" * width for width in widths), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row.note:
            print(f"  {row.what}: {row.note}")


if __name__ == "__main__":
    main()
