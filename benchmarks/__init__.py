"""Benchmarks of speed and memory; `python -m benchmarks --help` says how to run them."""

import os

NUM_THREADS = 2
# Set before torch is imported: threads that spin while they wait would be counted as work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)
