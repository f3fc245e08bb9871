"""The notebooks run from a fresh copy, print what they show, and are small."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example_scripts import ONE_THREAD

NOTEBOOKS = Path(__file__).parents[2] / "examples/notebooks"
NAMES = ["compare_systems", "distil_on_own_sounds", "score_a_machine"]
NUMBER = re.compile(r"\d+\.\d+")


def outputs_of(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed_by(notebook: Path) -> list[str]:
    """What the cells print, without progress bars and without the folder that they ran in."""
    texts = [
        "".join(output["text"]) if output["output_type"] == "stream" else "".join(output["data"]["text/markdown"])
        for output in outputs_of(notebook)
        if output.get("name") == "stdout" or "text/markdown" in output.get("data", {})
    ]
    return "".join(texts).replace(f"{notebook.parent.resolve()}/", "").split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which nbmake has run copies of all notebooks, with their new outputs."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name in NAMES:
        shutil.copy(NOTEBOOKS / f"{name}.ipynb", folder)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--nbmake", "--overwrite"]
    done = subprocess.run(
        [sys.executable, *command, "--nbmake-timeout=300", "--color=no", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(NAMES)} passed" in done.stdout
    return folder


def test_there_are_no_others():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_prints_what_it_shows(name, run):
    """Numbers differ a little between processors, as everything does that is fitted or trained."""
    got, shown = printed_by(run / f"{name}.ipynb"), printed_by(NOTEBOOKS / f"{name}.ipynb")
    assert len(shown) > 3
    assert [NUMBER.sub("#", word) for word in got] == [NUMBER.sub("#", word) for word in shown]
    for word, expected in zip(got, shown, strict=True):
        for number, wanted in zip(NUMBER.findall(word), NUMBER.findall(expected), strict=True):
            assert float(number) == pytest.approx(float(wanted), rel=0.15, abs=0.01), (word, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_in_something_to_look_at_and_is_small(name):
    outputs = outputs_of(NOTEBOOKS / f"{name}.ipynb")
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(len(base64.b64decode("".join(picture))) < 60_000 for picture in pictures)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 150_000
    assert not [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"]
