"""What each runtime of an exported scorer costs, and what it does to scores: torch, ONNX Runtime and OpenVINO.

    na-ssl simulate dcase --preset smoke --out DATA
    python -m benchmarks.edge_runtimes --data DATA                             # na-beats-tiny, na-eat-tiny
    python -m benchmarks.edge_runtimes --data DATA --model beats-base --machines 3

Times are CPU seconds of one thread for 10 s of noise, medians of several runs, each way in a process of its own; memory
is the greatest of that process. Scores and AUC are those of the test clips of every machine of the benchmark, by a
memory of its training clips, which is made of the vectors of the same graph. `beats-base` has the size of BEATs and
random weights. The output is Markdown.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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

BASE, DEFAULT_MODELS = "beats-base", ("na-beats-tiny", "na-eat-tiny")
# Whatever runs is measured alike: from nothing but a folder, in a process that holds nothing else.
MEASURE = """
import sys, time
import numpy as np
{prepare}
wave = 0.1 * np.random.default_rng(0).standard_normal((2, int(sys.argv[3]))).astype(np.float32)
times = []
for _ in range({runs} + 1):
    start = time.process_time()
    run(wave)
    times.append(time.process_time() - start)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(sorted(times[1:])[{runs} // 2], int(status["VmHWM"].split()[0]) * 1024 / 1e6)
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


def machines_of(data: Path, count: int | None) -> Iterator[Machine]:
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


def cost(
    prepare: str, path: Path, kind: str = "", num_samples: int = NUM_SAMPLES, runs: int = 7
) -> tuple[float, float]:
    """CPU seconds and megabytes of a way to run a scorer."""
    code = MEASURE.format(prepare=prepare, runs=runs)
    places = [str(path) for path in (Path(__file__).parent.parent, *map(Path, sys.path)) if path]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), kind, str(num_samples)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return seconds, megabytes


def scores_of(vectors: Vectors, machines: list[Machine]) -> tuple[list[list[float]], float]:
    """The scores of the test clips of every machine, and the mean AUC in percent."""
    scores, aucs = [], []
    for machine in machines:
        bank = MemoryBank().fit(np.stack([vectors(wave) for wave in machine.train]))
        found = bank.score(np.stack([vectors(wave) for wave in machine.test])).tolist()
        scores.append(found)
        aucs.append(100 * auc(found, machine.is_anomalous))
    return scores, float(np.mean(aucs))


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


def print_runtimes(model: str, machines: list[Machine], runs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scorer_of(model).save_pretrained(folder / "scorer")
        chain = chain_in(str(folder / "scorer"))
        before, auc_before = scores_of(by_torch(chain), machines)
        seconds, memory = cost(IN_TORCH, folder / "scorer", runs=runs)
        weights = sum(4 * tensor.numel() for tensor in chain.model.state_dict().values()) / 1e6
        print(f"| {model} | torch | 1.00 | {weights:.1f} | {memory:.0f} | | | {auc_before:.2f} |", flush=True)
        for name, (path, kind) in write_graphs(chain, folder).items():
            progress(f"  {model}: {name}")
            after, auc_after = scores_of(by_graph(path, kind), machines)
            changes = [compare_scores(old, new, "int8" in name) for old, new in zip(before, after, strict=True)]
            largest, median = max(change[0] for change in changes), float(np.median([change[1] for change in changes]))
            own_seconds, own_memory = cost(IN_GRAPH, path, kind, runs=runs)
            print(
                f"| {model} | {name} | {own_seconds / seconds:.2f} | {megabytes_of(path):.1f} | {own_memory:.0f} | "
                f"{largest:.1e} | {median:.1e} | {auc_after - auc_before:+.2f} |",
                flush=True,
            )


def main() -> None:
    parser = parser_of(__doc__, "edge_runtimes")
    parser.add_argument("--data", type=Path, required=True, help="what `na-ssl simulate dcase` wrote")
    parser.add_argument(
        "--model", nargs="+", default=DEFAULT_MODELS, help=f"checkpoints, or {BASE} (default: the two tiny ones)"
    )
    parser.add_argument("--machines", type=int, help="how many machines are scored (default: all)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs, of which the median counts (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    machines = list(machines_of(options.data, options.machines))
    print("| model | runtime | CPU time | MB | peak MB | largest change | median change | AUC in %, change |")
    print("| :-- | :-- | --: | --: | --: | --: | --: | --: |", flush=True)
    for model in options.model:
        print_runtimes(model, machines, options.runs)


if __name__ == "__main__":
    main()
