"""The README's snippet is run as it stands, and prints what stands below it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_snippet_prints_what_the_readme_shows(tmp_path):
    snippet, shown = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(), re.DOTALL).groups()
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    run = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    printed, expected = run.stdout.split(), shown.split()
    assert len(printed) == len(expected)
    for got, want in zip(printed, expected, strict=True):
        try:
            # Scores differ in the last digits between processors.
            tolerance = 0.05 if want.startswith("p=") else 2e-3
            assert float(got.removeprefix("p=")) == pytest.approx(float(want.removeprefix("p=")), abs=tolerance)
        except ValueError:
            assert got == want
