"""Ways that may save time on a small machine: what they save beside the graph as it is exported, and what they cost.

    for seed in 0 1 2 3; do na-ssl simulate dcase --preset smoke --seed $seed --out sites$seed; done
    python -m benchmarks.edge_savings --data sites0 sites1 sites2 sites3 --machines 5
    python -m benchmarks.edge_savings --data sites0 --student STUDENT           # what benchmarks.edge_student trained

Times are CPU seconds of one thread in ONNX Runtime for 10 s of noise (a minute for windows) as in `edge_runtimes`: all
ways take turns, and a ratio is the median over turns with its quartiles. The AUC is the mean over the machines of the
benchmark, by a memory of their training clips, and the interval of 95 % is that of redrawn machines and clips, paired.
The output is Markdown.
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

from na_ssl_hf.export.chain import ScoringChain
from na_ssl_hf.export.onnx_graph import DEFAULT_OPSET, export_onnx

from .edge_runtimes import (
    IN_GRAPH,
    Cost,
    Machine,
    Way,
    add_data,
    auc_change,
    by_torch,
    chain_in,
    costs,
    prepared,
    scorer_of,
    scores_of,
)
from .measuring import NUM_SAMPLES, parser_of

RATE = 16000
WINDOW, HOP, MINUTE = 10, 5, 60


class FrontEndAlone(torch.nn.Module):
    """The part of a chain that turns waveforms into log-mel frames."""

    def __init__(self, chain: ScoringChain):
        super().__init__()
        self.front_end = chain.front_end
        self.model = chain.model  # for messages of the export alone

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.front_end(waveforms)


def of_one_length(source: Path, path: Path) -> Path:
    """The same graph for `NUM_SAMPLES` alone, in which no shape is computed any more."""
    model = onnx.load(source)
    onnx_model_utils.make_input_shape_fixed(model.graph, "waveforms", [1, 2, NUM_SAMPLES])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def without_head(chain: ScoringChain, head: int) -> ScoringChain:
    """The chain in which one head of every frozen layer is silent."""
    size = chain.model.config.hidden_size // chain.model.config.num_attention_heads
    pruned = copy.deepcopy(chain)
    for layer in pruned.model.layers:
        layer.attention.out_proj.weight.data[:, head * size : (head + 1) * size] = 0
    return pruned


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
def print_savings(model: str, students: list[Path], machines: list[Machine], turns: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scorer_of(model).save_pretrained(folder / "scorer")
        chain = chain_in(str(folder / "scorer"))
        depth, num_heads = chain.model.num_layers // 2, chain.model.config.num_attention_heads
        half = chain_in(str(folder / "scorer"), layers=(depth,))
        chains = {"whole": chain, "half": half, "frames": FrontEndAlone(chain)}
        for student in students:
            scorer_of(str(student)).save_pretrained(folder / f"of-{student.name}")
            chains[str(student)] = chain_in(str(folder / f"of-{student.name}"))
        ways = {}
        for number, (name, one) in enumerate(chains.items()):
            export_onnx(one, folder / f"{number}.onnx", [NUM_SAMPLES], None, DEFAULT_OPSET)
            ways[name] = Way(IN_GRAPH, folder / f"{number}.onnx", "onnx")
        whole = ways["whole"].path
        ways["one length"] = Way(IN_GRAPH, of_one_length(whole, folder / "one.onnx"), "onnx")
        ways["minute"] = Way(IN_GRAPH, whole, "onnx", MINUTE * RATE)
        found = costs(ways, turns)
        before, auc = scores_of(by_torch(chain), machines)

        def row(what: str, ratio: Cost | float, after: str) -> None:
            text = f"{ratio:.2f}" if isinstance(ratio, float) else str(ratio)
            print(f"| {model} | {what} | {text} | {after} |", flush=True)

        def change(other: ScoringChain) -> str:
            points, low, high = auc_change(before, scores_of(by_torch(other), machines)[0], machines)
            return f"AUC {points:+.1f} points [{low:+.1f}, {high:+.1f}]"

        row("as exported", 1.0, f"AUC {auc:.1f} %")
        row(f"the first {depth} layers of {chain.model.num_layers}", found["half"], change(half))
        for student in students:
            own = chains[str(student)]
            row(f"a trained student of {own.model.num_layers} layers", found[str(student)], change(own))
        share = share_of_attention(whole)
        for head in range(num_heads):
            row(
                f"head {head + 1} of {num_heads} pruned without training, at best",
                1 - share / num_heads,
                change(without_head(chain, head)),
            )
        row("a graph of one length", found["one length"], "equal")
        row("log-mel frames shared by windows that overlap by half, at best", 1 - found["frames"].ratio / 2, "equal")
        num_windows = (MINUTE - WINDOW) // HOP + 1
        changed, apart = one_pass(chain, machines[:3])
        row(
            f"{num_windows} windows of {WINDOW} s in one pass over {MINUTE} s",
            found["minute"].ratio / num_windows,
            f"vectors {changed:.1e} away; neighbouring windows are {apart:.1e} apart",
        )


def main() -> None:
    parser = parser_of(__doc__, "edge_savings")
    add_data(parser)
    parser.add_argument("--model", default="na-beats-tiny", help="checkpoint (default: na-beats-tiny)")
    parser.add_argument("--student", type=Path, nargs="+", default=[], help="what benchmarks.edge_student trained")
    parser.add_argument("--turns", type=int, default=9, help="timed runs of each way (default: 9)")
    options = parser.parse_args()
    machines = prepared(options)
    print(f"{len(machines)} machines, {sum(len(machine.test) for machine in machines)} test clips\n")
    print("| model | way | CPU time | scores |")
    print("| :-- | :-- | --: | :-- |", flush=True)
    print_savings(options.model, options.student, machines, options.turns)


if __name__ == "__main__":
    main()
