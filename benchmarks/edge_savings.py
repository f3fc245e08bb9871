"""Ways that may save time on a small machine: what they save beside the graph as it is exported, and what they cost.

    na-ssl simulate dcase --preset smoke --out DATA
    python -m benchmarks.edge_savings --data DATA

Times are CPU seconds of one thread in ONNX Runtime for 10 s of noise (a minute for windows), medians of 7 runs in a
process of its own. The AUC is the mean over the machines of the benchmark, by a memory of their training clips. The
output is Markdown.
"""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.tools import onnx_model_utils
from transformers.utils import logging

from na_ssl_hf.export.chain import ScoringChain
from na_ssl_hf.export.onnx_graph import DEFAULT_OPSET, export_onnx

from .edge_runtimes import (
    DEFAULT_MODELS,
    IN_GRAPH,
    Machine,
    by_torch,
    chain_in,
    cost,
    machines_of,
    scorer_of,
    scores_of,
)
from .measuring import NUM_SAMPLES, parser_of

RATE = 16000
WINDOW, HOP, MINUTE = 10, 5, 60


def seconds_of(path: Path, num_samples: int = NUM_SAMPLES) -> float:
    return cost(IN_GRAPH, path, "onnx", num_samples)[0]


def of_one_length(source: Path, path: Path) -> Path:
    """The same graph for `NUM_SAMPLES` alone, in which no shape is computed any more."""
    model = onnx.load(source)
    onnx_model_utils.make_input_shape_fixed(model.graph, "waveforms", [1, 2, NUM_SAMPLES])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def without_heads(chain: ScoringChain, machines: list[Machine]) -> tuple[int, float]:
    """The number of heads of a layer, and the mean AUC over which head of every frozen layer is silent."""
    num_heads = chain.model.config.num_attention_heads
    size = chain.model.config.hidden_size // num_heads
    aucs = []
    for head in range(num_heads):
        pruned = copy.deepcopy(chain)
        for layer in pruned.model.layers:
            layer.attention.out_proj.weight.data[:, head * size : (head + 1) * size] = 0
        aucs.append(scores_of(by_torch(pruned), machines)[1])
    return num_heads, float(np.mean(aucs))


def share_of_attention(path: Path) -> float:
    """The share of a graph's time that goes into what is as large as tokens x tokens, which grows with the heads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, 2, NUM_SAMPLES)).astype(np.float32)
    for _ in range(4):
        session.run(None, {"waveforms": wave})
    events = [event for event in json.loads(Path(session.end_profiling()).read_text()) if event.get("cat") == "Node"]
    events = [event for event in events if event["name"].endswith("kernel_time")]
    in_attention = sum(event["dur"] for event in events if has_square(event["args"]))
    return in_attention / sum(event["dur"] for event in events)


def has_square(arguments: dict[str, Any]) -> bool:
    """Whether a node takes or gives something of tokens x tokens."""
    kinds = [kind for key in ("input_type_shape", "output_type_shape") for kind in arguments[key]]
    shapes = [shape for kind in kinds for shape in kind.values()]
    return any(len(shape) == 4 and shape[-1] == shape[-2] > 64 for shape in shapes)


def one_pass(chain: ScoringChain, machines: list[Machine]) -> tuple[float, float]:
    """How far vectors of windows are from those of the same rows of one long pass, and how far windows are apart.

    Both are medians of cosine distances over a minute of every machine.
    """
    changes, apart = [], []
    for machine in machines:
        wave = torch.from_numpy(np.concatenate(machine.train * 10, axis=1)[None, :, : MINUTE * RATE])
        starts = range(0, wave.shape[-1] - WINDOW * RATE + 1, HOP * RATE)
        windows = torch.cat([chain(wave[..., start : start + WINDOW * RATE]) for start in starts])  # (n, F, D)
        rows = chain._layers.vectors(chain.model, chain.front_end(wave), None)[0]  # (T', F, D)
        per_second = rows.shape[0] / MINUTE
        firsts = [round(start / RATE * per_second) for start in starts]
        joined = torch.stack([rows[first : first + round(WINDOW * per_second)].mean(0) for first in firsts])
        changes.append(float((1 - torch.cosine_similarity(windows, joined, dim=-1)).median()))
        apart.append(float((1 - torch.cosine_similarity(windows[1:], windows[:-1], dim=-1)).median()))
    return float(np.median(changes)), float(np.median(apart))


@torch.no_grad()
def print_savings(model: str, machines: list[Machine]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scorer_of(model).save_pretrained(folder / "scorer")
        chain = chain_in(str(folder / "scorer"))
        auc = scores_of(by_torch(chain), machines)[1]
        whole, shallow = folder / "whole.onnx", folder / "shallow.onnx"
        export_onnx(chain, whole, [NUM_SAMPLES], None, DEFAULT_OPSET)
        seconds = seconds_of(whole)

        def row(what: str, ratio: float, after: str) -> None:
            print(f"| {model} | {what} | {ratio:.2f} | {after} |", flush=True)

        row("as exported", 1.0, f"AUC {auc:.2f} %")
        row("a graph of one length", seconds_of(of_one_length(whole, folder / "one.onnx")) / seconds, "equal")
        depth = chain.model.num_layers // 2
        half = chain_in(str(folder / "scorer"), layers=(depth,))
        export_onnx(half, shallow, [NUM_SAMPLES], None, DEFAULT_OPSET)
        row(
            f"the first {depth} layers of {chain.model.num_layers}",
            seconds_of(shallow) / seconds,
            f"AUC {scores_of(by_torch(half), machines)[1] - auc:+.2f} points",
        )
        share = share_of_attention(whole)
        num_heads, pruned = without_heads(chain, machines)
        row(f"one of {num_heads} heads pruned", 1 - share / num_heads, f"AUC {pruned - auc:+.2f} points")
        num_windows = (MINUTE - WINDOW) // HOP + 1
        changed, apart = one_pass(chain, machines[:3])
        row(
            f"{num_windows} windows of {WINDOW} s in one pass over {MINUTE} s",
            seconds_of(whole, MINUTE * RATE) / (num_windows * seconds),
            f"vectors {changed:.1e} away; neighbouring windows are {apart:.1e} apart",
        )


def main() -> None:
    parser = parser_of(__doc__, "edge_savings")
    parser.add_argument("--data", type=Path, required=True, help="what `na-ssl simulate dcase` wrote")
    parser.add_argument("--model", nargs="+", default=DEFAULT_MODELS, help="checkpoints (default: the two tiny ones)")
    parser.add_argument("--machines", type=int, help="how many machines are scored (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    machines = list(machines_of(options.data, options.machines))
    print("| model | way | CPU time | scores |")
    print("| :-- | :-- | --: | :-- |", flush=True)
    for model in options.model:
        print_savings(model, machines)


if __name__ == "__main__":
    main()
