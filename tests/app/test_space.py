"""The folder of the Space works as it is pushed."""

import os
import re
import runpy
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

gradio = pytest.importorskip("gradio")

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples/space"


def test_its_app_answers(tmp_path, monkeypatch):
    """Run as a script from a copy, as the hub does; only the call that would wait for ever does not."""
    shutil.copytree(SPACE, tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.chdir(tmp_path / "space")
    launched = []
    launch = gradio.Blocks.launch

    def launch_and_go_on(page, **options):
        launched.append(page)
        return launch(page, **options, prevent_thread_lock=True, quiet=True)

    monkeypatch.setattr(gradio.Blocks, "launch", launch_and_go_on)
    try:
        runpy.run_path("app.py", run_name="__main__")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            content = answer.read().decode()
    finally:
        for page in launched:
            page.close()
    assert "How anomalous does a machine sound?" in content
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_its_front_matter_says_what_the_hub_needs():
    card = SpaceCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(rf"^gradio=={re.escape(card.data.sdk_version)}$", pins, re.MULTILINE)
    assert (SPACE / card.data.app_file).is_file()
    assert card.data.license == "apache-2.0"
    assert len(card.data.short_description) <= 60  # the hub refuses longer ones


def test_its_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == project["dependencies"]
