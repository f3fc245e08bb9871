"""What each runtime of an exported scorer costs, and what it does to scores: torch, ONNX Runtime and OpenVINO.

    for seed in 0 1 2 3; do na-ssl simulate dcase --preset smoke --seed $seed --out sites$seed; done
    python -m benchmarks.edge_runtimes --data sites0 sites1 sites2 sites3 --machines 5   # na-beats-tiny, na-eat-tiny
    python -m benchmarks.edge_runtimes --data sites0 sites1 sites2 sites3 --machines 5 --model beats-base --turns 7

Times are CPU seconds of one thread for 10 s of noise. All ways of a model wait side by side, each in a process of its
own, and take turns, so that whatever else the machine does meets all of them; a ratio is the median over the turns of a
way's time by that of torch in the same turn, with the quartiles in brackets. Memory is the greatest of the process.
Scores and AUC are those of the test clips of every machine of the benchmark, by a memory of its training clips, which
is made of the vectors of the same graph: the largest change of all, and of the machines the median of the median change
and the lowest rank correlation; the interval of 95 % is that of redrawn machines and clips, paired. `beats-base` has
the size of BEATs and random weights: it says what rounding does to scores and AUC of that size, and nothing of how good
a trained one is. The output is Markdown.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, BeatsConfig, BeatsModel, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.export.chain import ScoringChain
from na_ssl_hf.export.onnx_graph import DEFAULT_OPSET, export_onnx
from na_ssl_hf.export.openvino_graph import write_openvino
from na_ssl_hf.export.proof import auc, compare_scores
from na_ssl_hf.export.quantise import quantise_onnx

from .measuring import NUM_SAMPLES, SEED, parser_of, progress

# Of the size of BEATs, with random weights.
BASE, DEFAULT_MODELS = "beats-base", ("na-beats-tiny", "na-eat-tiny")
NUM_DRAWS = 2000
# Whatever runs is measured alike: from nothing but a folder, in a process that holds nothing else, once for each line.
MEASURE = """
import sys, time
import numpy as np
{prepare}
wave = 0.1 * np.random.default_rng(0).standard_normal((2, int(sys.argv[3]))).astype(np.float32)
for _ in sys.stdin:
    start = time.process_time()
    run(wave)
    seconds = time.process_time() - start
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(seconds, int(status["VmHWM"].split()[0]) * 1024 / 1e6, flush=True)
"""
IN_TORCH = """
import torch
torch.set_num_threads(1)
from benchmarks.edge_runtimes import chain_in
chain = torch.inference_mode()(chain_in(sys.argv[1]))
run = lambda wave: chain(torch.from_numpy(wave)[None])
"""
IN_GRAPH = """
from pathlib import Path
from na_ssl_edge.graph import load_graph
run = load_graph(Path(sys.argv[1]), sys.argv[2], 1)
"""

Vectors = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Machine:
    """The clips of a machine, each `(2, N)` float32, and which test clips are anomalous."""

    train: list[np.ndarray]
    test: list[np.ndarray]
    is_anomalous: list[bool]


@dataclass(frozen=True)
class Way:
    """A way to run a scorer: code that makes `run` of a path, a kind of graph, and the samples of a recording."""

    prepare: str
    path: Path
    kind: str = ""
    num_samples: int = NUM_SAMPLES


@dataclass(frozen=True)
class Cost:
    """What a way costs: CPU seconds, their ratio to the first way with its quartiles, and megabytes at most."""

    seconds: float
    ratio: float
    low: float
    high: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def machines_of(data: Path, count: int | None) -> Iterator[Machine]:
    """The machines of a folder that `na-ssl simulate dcase` wrote, or the first `count` of them."""
    for folder in sorted(path.parent for path in data.glob("*/train"))[:count]:
        test = sorted((folder / "test").glob("*.wav"))
        train = sorted((folder / "train").glob("*.wav"))
        yield Machine(
            [read(path) for path in train], [read(path) for path in test], ["_anomaly_" in p.name for p in test]
        )


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy()


def scorer_of(model: str) -> AnomalyScorer:
    """A fitted scorer, whose memory does not matter."""
    torch.manual_seed(SEED)
    if model == BASE:
        scorer = AnomalyScorer(model=BeatsModel(BeatsConfig()), feature_extractor=TwoChannelFeatureExtractor())
    else:
        folder = resolve_checkpoint(model)
        scorer = AnomalyScorer(model=load_model(folder), feature_extractor=load_extractor(folder))
    noise = 0.05 * torch.randn(4, 2, 16000, generator=torch.Generator().manual_seed(SEED))
    return scorer.fit(list(noise.numpy()), threshold_method="quantile", progress=None)


def chain_in(folder: str, **changes: Any) -> ScoringChain:
    """The chain in torch of the scorer that a folder holds."""
    scorer = AnomalyScorer(model=load_model(folder), feature_extractor=load_extractor(folder))
    scorer.memory_bank = MemoryBank.from_pretrained(folder)
    return ScoringChain(scorer, replace(scorer.memory_bank.calibration, **changes))


def costs(ways: Mapping[str, Way], turns: int) -> dict[str, Cost]:
    """What ways cost that take turns; the first of them is what the others are compared with."""
    places = [str(path) for path in (Path(__file__).parent.parent, *map(Path, sys.path)) if path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    megabytes = dict.fromkeys(ways, 0.0)
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        MEASURE.format(prepare=way.prepare),
                        way.path,
                        way.kind,
                        str(way.num_samples),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for name, way in ways.items()
        }
        for _ in range(1 + turns):
            for name, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                if not (line := process.stdout.readline().split()):
                    raise RuntimeError(f"{name} could not be measured, see above")
                seconds[name].append(float(line[0]))
                megabytes[name] = float(line[1])
    # The first run of each prepares.
    first = np.array(next(iter(seconds.values())))[1:]
    found = {}
    for name, own in seconds.items():
        low, ratio, high = np.quantile(np.array(own)[1:] / first, [0.25, 0.5, 0.75])
        found[name] = Cost(float(np.median(own[1:])), ratio, low, high, megabytes[name])
    return found


def scores_of(vectors: Vectors, machines: list[Machine]) -> tuple[list[list[float]], float]:
    """The scores of the test clips of every machine, and the mean AUC in percent."""
    scores, aucs = [], []
    for machine in machines:
        bank = MemoryBank().fit(np.stack([vectors(wave) for wave in machine.train]))
        found = bank.score(np.stack([vectors(wave) for wave in machine.test])).tolist()
        scores.append(found)
        aucs.append(100 * auc(found, machine.is_anomalous))
    return scores, float(np.mean(aucs))


def auc_change(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], machines: Sequence[Machine]
) -> tuple[float, float, float]:
    """The change of the mean AUC in points, and its interval of 95 % over redrawn machines and, within them, clips."""
    random = np.random.default_rng(SEED)
    drawn = []
    for old, new, machine in zip(before, after, machines, strict=True):
        is_anomalous = np.array(machine.is_anomalous)
        change = _pairs(new, is_anomalous) - _pairs(old, is_anomalous)  # (anomalous, normal)
        rows, columns = (random.integers(size, size=(NUM_DRAWS, size)) for size in change.shape)
        redrawn = change[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
        drawn.append(np.concatenate([[change.mean()], redrawn]))
    changes = 100 * np.stack(drawn)  # (machines, 1 + draws)
    chosen = random.integers(len(machines), size=(len(machines), NUM_DRAWS))
    low, high = np.quantile(changes[chosen, 1 + np.arange(NUM_DRAWS)].mean(axis=0), [0.025, 0.975])
    return float(changes[:, 0].mean()), float(low), float(high)


def _pairs(scores: Sequence[float], is_anomalous: np.ndarray) -> np.ndarray:
    """Which anomalous clip is above which normal one: 1, 0, or 0.5 for equal scores."""
    values = np.asarray(scores)
    difference = values[is_anomalous][:, None] - values[~is_anomalous][None]
    return 0.5 + 0.5 * np.sign(difference)


def by_torch(chain: ScoringChain) -> Vectors:
    run = torch.inference_mode()(chain)
    return lambda wave: run(torch.from_numpy(wave)[None])[0].numpy()


def by_graph(path: Path, kind: str) -> Vectors:
    from na_ssl_edge.graph import load_graph

    return load_graph(path, kind, 1)


def megabytes_of(path: Path) -> float:
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(part.stat().st_size for part in parts) / 1e6


def write_graphs(chain: ScoringChain, folder: Path) -> dict[str, tuple[Path, str]]:
    """Every runtime and precision -> its graph, and the name of its format."""
    float32 = folder / "float32.onnx"
    export_onnx(chain, float32, [24000], None, DEFAULT_OPSET)
    graphs = {"ONNX float32": (float32, "onnx")}
    for kind in ("weights", "products"):
        quantise_onnx(float32, folder / f"{kind}.onnx", kind)
        graphs[f"ONNX int8 {kind}"] = folder / f"{kind}.onnx", "onnx"
    for name, source in (("float32", float32), ("int8 weights", folder / "weights.onnx")):
        write_openvino(source, folder / f"{source.stem}.xml")
        graphs[f"OpenVINO {name}"] = folder / f"{source.stem}.xml", "openvino"
    return graphs


def print_runtimes(model: str, machines: list[Machine], turns: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scorer_of(model).save_pretrained(folder / "scorer")
        chain = chain_in(str(folder / "scorer"))
        before, auc_before = scores_of(by_torch(chain), machines)
        graphs = write_graphs(chain, folder)
        progress(f"  {model}: times")
        ways = {"torch": Way(IN_TORCH, folder / "scorer")}
        ways |= {name: Way(IN_GRAPH, path, kind) for name, (path, kind) in graphs.items()}
        found = costs(ways, turns)
        weights = sum(4 * tensor.numel() for tensor in chain.model.state_dict().values()) / 1e6
        of_torch = found["torch"]
        cells = [model, f"torch, {1000 * of_torch.seconds:.0f} ms", "1", f"{weights:.1f}", f"{of_torch.megabytes:.0f}"]
        print(f"| {' | '.join((*cells, '', '', '', f'{auc_before:.1f}'))} |", flush=True)
        for name, (path, kind) in graphs.items():
            progress(f"  {model}: {name}")
            after, _ = scores_of(by_graph(path, kind), machines)
            changes = [compare_scores(old, new, "int8" in name) for old, new in zip(before, after, strict=True)]
            largest, medians, ranks = np.array(changes).T
            change, low, high = auc_change(before, after, machines)
            print(
                f"| {model} | {name} | {found[name]} | {megabytes_of(path):.1f} | {found[name].megabytes:.0f} | "
                f"{largest.max():.1g} | {np.median(medians):.1g} | {ranks.min():.4f} | "
                f"{change:+.1f} [{low:+.1f}, {high:+.1f}] |",
                flush=True,
            )


def main() -> None:
    parser = parser_of(__doc__, "edge_runtimes")
    add_data(parser)
    parser.add_argument(
        "--model",
        nargs="+",
        default=DEFAULT_MODELS,
        help=f"checkpoints, or {BASE} (default: the two tiny ones)",
    )
    parser.add_argument("--turns", type=int, default=15, help="timed runs of each way (default: 15)")
    options = parser.parse_args()
    machines = prepared(options)
    print(f"{len(machines)} machines, {sum(len(machine.test) for machine in machines)} test clips\n")
    columns = ("model", "runtime", "CPU time", "MB", "peak MB", "largest change", "median change", "rank correlation")
    print(f"| {' | '.join((*columns, 'AUC in %, change'))} |")
    print(f"| :-- | :-- |{' --: |' * 7}", flush=True)
    for model in options.model:
        print_runtimes(model, machines, options.turns)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say on which machines scores are compared."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="what `na-ssl simulate dcase` wrote")
    parser.add_argument("--machines", type=int, help="how many machines of a folder are scored (default: all)")


def prepared(options: argparse.Namespace) -> list[Machine]:
    """Make this process quiet and single-threaded, and read the machines."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    machines = [machine for folder in options.data for machine in machines_of(folder, options.machines)]
    if not machines:
        raise SystemExit(f"--data must be folders that `na-ssl simulate dcase` wrote, got {options.data}")
    return machines


if __name__ == "__main__":
    main()
