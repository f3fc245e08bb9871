"""A release: what the wheel and the sdist hold, whether an index takes them, and the README's snippet on the wheel."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# The parts of the repository that a build reads.
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", "examples")
# What is there beside the code: weights and their files, tables, the page of the watch, the mark of typed packages.
DATA = re.compile(r"checkpoints/[\w-]+/[\w.-]+|convert/\w+\.csv|watch/page/static/[\w.-]+|py\.typed")
LARGEST_WHEEL_MB = 40


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, built from a copy: a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copyfile(source, copy / part)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", copy / "dist", cwd=copy)
    (wheel,), (sdist,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return wheel, sdist


def test_an_index_would_take_wheel_and_sdist(built):
    report = run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=built[0].parent)
    assert report.count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    package = {name.removeprefix("na_ssl_hf/") for name in names if name.startswith("na_ssl_hf/")}
    assert {name.split("/")[0] for name in names} == {"na_ssl_hf", f"na_ssl_hf-{version('na-ssl-hf')}.dist-info"}
    code = {path.relative_to(ROOT / "src/na_ssl_hf").as_posix() for path in (ROOT / "src/na_ssl_hf").rglob("*.py")}
    scripts = {name for name in package if name.startswith("training_scripts/")}
    assert len(scripts) == 3
    assert {name for name in package if name.endswith(".py")} == code | scripts
    assert [name for name in package if not name.endswith(".py") and not DATA.fullmatch(name)] == []
    assert built[0].stat().st_size < LARGEST_WHEEL_MB * 1e6


def test_the_sdist_holds_what_a_build_needs_and_no_sounds(built):
    with tarfile.open(built[1]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "examples/train_na_distillation.py"} <= set(names)
    assert [name for name in names if name.endswith((".wav", ".flac", ".pt", ".ckpt"))] == []
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"src", "examples"}


def test_the_snippet_of_the_readme_runs_on_the_installed_wheel(built, tmp_path):
    """In an environment of its own, which has the other packages of this one but not this checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    (packages,) = (tmp_path / "env").rglob("site-packages")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", packages, built[0], cwd=tmp_path)
    # A path in a file is only appended: editable installations of the other environment have no say.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet, shown = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", readme, re.DOTALL).groups()
    where = "import na_ssl_hf; print(na_ssl_hf.__file__)"
    # `-P` and `-I` would hide the snippet's own folder or environment; PYTHONPATH must not name the checkout.
    first, *printed = run("env", "-u", "PYTHONPATH", python, "-c", f"{where}\n{snippet}", cwd=tmp_path).splitlines()
    assert Path(first).is_relative_to(packages)
    assert [line.split()[-1] for line in printed] == [line.split()[-1] for line in shown.splitlines()]


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert citation["license"] == "Apache-2.0"
