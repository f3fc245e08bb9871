"""Examples of the README and the pages in docs/ run or parse, links lead somewhere, quoted messages are real."""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from na_ssl_hf.checkpoints import shipped_checkpoints
from na_ssl_hf.cli import build_parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/README.md"]
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
# The pages whose blocks are all run, in order and in one folder. The commands of other pages are only parsed.
RUN_PAGES = ["getting-started.md", "python.md"]

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$(?:\s+^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def blocks_of(page: Path) -> list[tuple[str, str, str | None]]:
    """Language, source, and the output that the page shows below, if it does."""
    return [(kind, source, shown or None) for kind, source, shown in BLOCK.findall(page.read_text(encoding="utf-8"))]


def assert_same_output(printed: str, shown: str) -> None:
    """Scores differ in the last digits between processors, and p-values by a rank."""
    number = re.compile(r"\d+\.\d+")
    assert number.sub("#", " ".join(printed.split())) == number.sub("#", " ".join(shown.split()))
    for got, want in zip(re.finditer(number, printed), re.finditer(number, shown), strict=True):
        tolerance = 0.05 if shown[: want.start()].endswith("p=") else 2e-3
        assert float(got.group()) == pytest.approx(float(want.group()), abs=tolerance)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs shell blocks in a folder of their own; `stubs` are scripts that stand in for programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(source: str, **stubs: str) -> subprocess.CompletedProcess:
        for name, script in stubs.items():
            stub(programs, name, script)
        return subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=False)

    return run


def test_snippet_of_the_readme_prints_what_stands_below_it(tmp_path):
    snippet, shown = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(), re.DOTALL).groups()
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    run = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert_same_output(run.stdout, shown)


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("name", RUN_PAGES)
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(name, shell):
    namespace: dict = {"__name__": "__main__"}
    programs = {"na-ssl": f'exec {sys.executable} -m na_ssl_hf.cli "$@"', "pip": "exit 0"}
    compared = 0
    for kind, source, shown in blocks_of(ROOT / "docs" / name):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(source, name, "exec"), namespace)
            printed = output.getvalue()
        else:
            run = shell(f"set -e\n{source}", **programs)
            assert run.returncode == 0, run.stderr
            printed = run.stdout
        if shown is not None:
            assert_same_output(printed, shown)
            compared += 1
    assert compared >= 2


# Commands that are only parsed


class ParsedError(Exception):
    """Carries the parsed arguments out of a script, before it does its work."""


def parse_arguments_of_script(path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a script up to the point where its arguments are parsed; argparse exits with 2 for a wrong one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    parse_arguments_of(module.main, [str(path), *arguments], monkeypatch)


def parse_arguments_of(main: Callable[[], None], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a program, whose name is the first argument, up to the point where its arguments are parsed."""
    original = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        namespace, unknown = original(self, args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise ParsedError

    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", arguments)
        patched.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        with pytest.raises(ParsedError):
            main()


def parse_command(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if program == "na-ssl":
        build_parser().parse_args(arguments)
    elif program == "accelerate":
        assert arguments[0] == "launch"
        for config in (arguments[at + 1] for at, word in enumerate(arguments) if word == "--config_file"):
            assert (ROOT / config).is_file()
        if "-m" in arguments:
            at = arguments.index("-m")
            assert arguments[at + 1] == "na_ssl_hf.cli"
            build_parser().parse_args(arguments[at + 2 :])
        else:
            at = next(at for at, word in enumerate(arguments) if word.endswith(".py"))
            parse_arguments_of_script(ROOT / arguments[at], arguments[at + 1 :], monkeypatch)
    elif arguments[0] == "-m" and arguments[1].startswith("benchmarks."):
        monkeypatch.syspath_prepend(ROOT)
        parse_arguments_of(importlib.import_module(arguments[1]).main, arguments[1:], monkeypatch)
    elif arguments[:2] == ["-m", "benchmarks"]:
        assert all(word in ("--json", "--only") or word.replace("-", "_").isidentifier() for word in arguments[2:])
    else:
        parse_arguments_of_script(ROOT / arguments[0], arguments[1:], monkeypatch)


LOGGED = ("na-ssl", "python", "accelerate")


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_commands_of_a_page_parse(page, shell, tmp_path, monkeypatch):
    """The shell blocks run with programs that only note their arguments, which are then parsed."""
    source = "\n".join(source for kind, source, _ in blocks_of(page) if kind == "sh")
    log = tmp_path / "commands.jsonl"
    note = "import json, sys; print(json.dumps(sys.argv[1:]), file=open({!r}, 'a'))"
    script = f'exec {sys.executable} -c "{note.format(str(log))}" $(basename "$0") "$@"'
    nothing = dict.fromkeys(("arecord", "pip", "make", "pytest"), "exit 0")
    run = shell(f"set -u\n{source}", **dict.fromkeys(LOGGED, script), **nothing)
    # Files that the commands would have written are missing, but every command must be known.
    assert "command not found" not in run.stderr
    assert "syntax error" not in run.stderr
    commands = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    # Also in comments and words of the text, a name of a program at the beginning of a line is a command.
    assert len(commands) >= len(re.findall(rf"^(?:{'|'.join(LOGGED)}) ", source, re.MULTILINE))
    for program, *arguments in commands:
        parse_command(program, arguments, monkeypatch)


# Words


@pytest.mark.parametrize("page", [*PAGES, *CARDS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def messages_of_the_code() -> set[str]:
    """All texts in the package, with … where a value is filled in."""
    texts = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "packages/na-ssl-edge/src").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.add("".join(map(str, parts)))
    return texts


def test_quoted_messages_are_in_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [message for _, message in re.findall(r"^\| (``? ?)(.*?) ?``? \| ", page, re.MULTILINE)]
    assert len(rows) > 20
    texts = messages_of_the_code()
    assert [message for message in rows if message not in texts] == []


@pytest.mark.parametrize("name", sorted(shipped_checkpoints()))
def test_the_card_in_the_wheel_is_the_card(name):
    shipped = ROOT / "src/na_ssl_hf/checkpoints" / name
    assert (shipped / "README.md").read_text() == (ROOT / "model_cards" / f"{name}.md").read_text()
