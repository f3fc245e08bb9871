"""A command run by two processes on one CPU, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from collections.abc import Sequence

from example_scripts import ONE_THREAD

TIMEOUT = 480  # s, only so that a hanging test ends


def run_on_two_processes(command: Sequence[object]) -> subprocess.CompletedProcess:
    """`command` is a script or `-m module`, with its arguments."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    on_cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, "--main_process_port", "0", *map(str, command)],  # port 0: any that is free
        env=os.environ | ONE_THREAD | on_cpu,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
