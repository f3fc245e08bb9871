"""Start-up: CPU seconds of new processes that import the package or ask its command line.

    python -m benchmarks --only startup

The straightforward way is the same process without this package.
"""

import resource
import subprocess
import sys

from .measuring import Row

NUM_RUNS = 5
NAMES_TARGET_S, HELP_TARGET_S, SCORE_HELP_TARGET_S = 0.3, 0.3, 0.5


def command_line(*words: str) -> str:
    """Return the code of a process that does what the `na-ssl` script does."""
    return f"import sys; from na_ssl_hf.cli import main; sys.exit(main({list(words)}))"


def cpu_seconds_of(code: str) -> float:
    """Return the least user and system time of `NUM_RUNS` new Python processes that run `code`."""
    seconds = []
    for _ in range(NUM_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def startup() -> list[Row]:
    python = cpu_seconds_of("pass")
    rows = [Row("python -c pass", python, None, "-", "-", None)]
    for what, code, target in (
        ("import na_ssl_hf", "import na_ssl_hf", NAMES_TARGET_S),
        ("na_ssl_hf.__version__", "import na_ssl_hf; na_ssl_hf.__version__", NAMES_TARGET_S),
        ("na-ssl --help", command_line("--help"), HELP_TARGET_S),
        ("na-ssl completion bash", command_line("completion", "bash"), HELP_TARGET_S),
        ("na-ssl score --help", command_line("score", "--help"), SCORE_HELP_TARGET_S),
        ("na-ssl dcase run --help", command_line("dcase", "run", "--help"), SCORE_HELP_TARGET_S),
    ):
        ours = cpu_seconds_of(code)
        rows.append(Row(what, ours, python, f"{ours / python:.1f} x", f"<= {target} s", ours <= target))
    for statement in ("from transformers import AutoConfig", "from transformers import AutoModel, pipeline"):
        ours, alone = cpu_seconds_of(f"import na_ssl_hf; {statement}"), cpu_seconds_of(statement)
        rows.append(Row(f"import na_ssl_hf; {statement}", ours, alone, f"{ours / alone:.2f} x", "-", None))
    names = "from na_ssl_hf.checkpoints import shipped_checkpoint; from transformers import AutoModel"
    model = "AutoModel.from_pretrained(shipped_checkpoint('na-beats-tiny'))"
    rows.append(Row(f"import na_ssl_hf; {model}", cpu_seconds_of(f"{names}; {model}"), None, "-", "-", None))
    return rows


ITEMS = {"startup": startup}
