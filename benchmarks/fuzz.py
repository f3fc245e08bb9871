"""Give the package inputs of every kind, good, odd and damaged, and count what becomes of them.

    python -m benchmarks.fuzz                                        # 10,000 inputs, some minutes (`make fuzz`)
    python -m benchmarks.fuzz --inputs 500 --only archives --seed 7  # some of one kind
    python -m benchmarks.fuzz --replay "archives" 1234               # one input again, with its traceback

Every input should be accepted, or refused by one ValueError or OSError that names it. The exit status is 1 where one
was not.
"""

import random
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from . import NUM_THREADS
from .fuzzing import KINDS
from .fuzzing.trial import FAULTS, OUTCOMES, Materials, judge
from .measuring import parser_of

# A trial takes milliseconds; what takes so long hangs, whatever else runs on the machine.
LIMIT_S = 20.0


def main() -> int:
    parser = parser_of(__doc__, "fuzz")
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs (default: 0)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="kinds of inputs")
    parser.add_argument("--show", type=int, default=3, help="examples shown of each fault of a kind (default: 3)")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "SEED"), help="one input again, with its traceback")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    # Warnings are counted, not shown.
    logging.get_logger().handlers.clear()
    with tempfile.TemporaryDirectory(prefix="na-ssl-fuzz-") as folder:
        materials = Materials(Path(folder))
        if options.replay:
            trial = KINDS[options.replay[0]](random.Random(int(options.replay[1])), materials)
            print(trial.what, f"({trial.is_input})")
            print(trial.act())
            return 0
        counts, examples = _run(options.only, options.inputs, options.seed, materials)
    print(table(counts), flush=True)
    for (kind, outcome), found in examples.items():
        for example in found[: options.show]:
            print(f"{kind}, {outcome}: {example}")
    return int(any(counts[kind][fault] for kind in counts for fault in FAULTS))


def _run(
    kinds: list[str], num_inputs: int, seed: int, materials: Materials
) -> tuple[dict[str, Counter], dict[tuple[str, str], list[str]]]:
    counts: dict[str, Counter] = {kind: Counter() for kind in kinds}
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number in tqdm(range(num_inputs), "fuzz", unit="input", disable=not sys.stderr.isatty()):
        kind, of_trial = kinds[number % len(kinds)], seed * 10_000_000 + number
        trial = KINDS[kind](random.Random(of_trial), materials)
        outcome, said = judge(trial, LIMIT_S)
        counts[kind][outcome] += 1
        if outcome in FAULTS:
            examples[kind, outcome].append(f"[{of_trial}] {trial.what}: {said[:300]}")
    return counts, examples


def table(counts: dict[str, Counter]) -> str:
    """The counts by kind and outcome, in Markdown."""
    lines = ["| inputs | " + " | ".join(OUTCOMES) + " |", "|---" + "|---:" * len(OUTCOMES) + "|"]
    for kind, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        lines.append(f"| {kind} | " + " | ".join(f"{count[outcome]:,}" for outcome in OUTCOMES) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
