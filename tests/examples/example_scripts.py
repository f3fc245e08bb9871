"""Scripts of `examples/` in tests: loaded as modules, run in this process, killed in one of their own."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from accelerate.state import AcceleratorState, GradientState

from module_files import module_of

EXAMPLES = Path(__file__).parents[2] / "examples"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def load_example(name: str) -> ModuleType:
    return module_of(EXAMPLES / f"{name}.py")


def run_here(script: ModuleType, arguments: Sequence[object], monkeypatch) -> None:
    """Runs the script in this process, as a new one would."""
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
    forget_accelerator()
    try:
        script.main()
    finally:
        forget_accelerator()


def kill_in_the_middle(processes: Sequence[subprocess.Popen], log: Path, step: int, timeout: float) -> None:
    """Kills the processes of a training, which must still run, once `step` is logged; `timeout` in s."""
    start = time.monotonic()
    while all(process.poll() is None for process in processes) and time.monotonic() < start + timeout:
        if log.exists() and log.read_text().count('"gradient_norm"') >= step:
            break
        time.sleep(0.01)
    for process in processes:
        process.kill()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()[-3000:]


def forget_accelerator() -> None:
    """Lets the next script of this process start as in a new one."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
