"""The site holds together: dead links, missing docstrings and what comes from elsewhere are found in it."""

import argparse
import ast
import contextlib
import inspect
import io
import json
import re
import sys
from pathlib import Path

import pytest

import na_ssl_hf
from module_files import module_of
from na_ssl_hf.cli import build_parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def maker():
    return module_of(ROOT / "docs/make_site.py")


@pytest.fixture(scope="module")
def site(maker):
    return maker.collect()


def test_all_links_between_the_pages_lead_somewhere_and_all_public_names_have_docstrings(site):
    # `collect` raises for them.
    assert len(site) > 200
    assert {"index.md", "security.md", "commands.md", "contributing.md", "reference/na_ssl_hf.md"} <= site.keys()


def test_the_navigation_names_pages_that_exist_and_every_page_of_docs(site):
    settings = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    def names(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from names(part)

    named = list(names(settings["nav"]))
    assert set(named) <= site.keys()
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(named)
    assert {f"model_cards/{card.name}" for card in (ROOT / "model_cards").glob("*.md")} <= set(named)
    assert settings["theme"]["font"] is False  # or the fonts of Google would be loaded


def test_words_that_readers_search_are_on_the_pages(site, maker):
    texts = [text for text in site.values() if isinstance(text, str)]
    assert len(maker.SEARCHED) == 6
    assert [word for word in maker.SEARCHED if not any(word in text for text in texts)] == []


def test_a_word_that_the_search_does_not_find_is_an_error(maker, tmp_path):
    texts = {"The threshold": "a false alarm", "far microphone": "<p>a Raspberry</p> dcase"}
    items = [{"title": title, "text": text} for title, text in texts.items()]
    (tmp_path / "search.json").write_text(json.dumps({"items": items}), encoding="utf-8")
    assert maker.not_found(tmp_path) == ["search.json: the search finds nothing for 'LoRA'"]


def test_notebooks_are_pages_with_their_outputs(site):
    page = site["examples/notebooks/score_a_machine.md"]
    assert page.startswith("# Score a machine\n")
    assert "](score_a_machine.ipynb)" in page
    assert "](score_a_machine-1.png)" in page
    assert "32 normal recordings, 12 new ones" in page
    assert "Here the notebook plays the sound." in page
    assert site["examples/notebooks/score_a_machine-1.png"].startswith(b"\x89PNG")


def test_methods_of_public_classes_have_docstrings():
    """Of their own or of the class that they come from."""
    missing, seen = [], 0
    for name in na_ssl_hf.__all__:
        value = getattr(na_ssl_hf, name)
        if not inspect.isclass(value):
            continue
        for method, function in inspect.getmembers(value, callable):
            module = getattr(function, "__module__", None) or ""
            if not method.startswith("_") and module.startswith("na_ssl_hf"):
                seen += 1
                if not inspect.getdoc(getattr(value, method)):
                    missing.append(f"{name}.{method}")
    assert seen > 100
    assert missing == []


def test_a_link_that_leads_nowhere_is_an_error(maker):
    page = ROOT / "docs/index.md"
    for target in ("nowhere.md", "../tests", "/etc/hosts"):
        with pytest.raises(maker.SiteError, match=re.escape(f"the link {target} leads to no page")):
            maker.moved(f"see [this]({target})", page, lambda file: None)


def test_links_are_moved_with_their_pages(maker):
    needed = []
    others = "[b](results.md#streams) [c](https://example.org) [d](#e)\n```\n[x](y)\n```\n"
    text = f"[a](../src/na_ssl_hf/hub/fbank.py) {others}"
    moved = maker.moved(text, ROOT / "docs/how-it-works.md", needed.append)
    assert moved == f"[a](reference/na_ssl_hf.hub.fbank.md) {others}"
    assert [file.name for file in needed] == ["fbank.py", "results.md"]
    assert maker.moved("[a](../docs/edge.md)", ROOT / "examples/README.md", needed.append) == "[a](../edge.md)"


def test_public_names_without_a_docstring_are_found(maker):
    tree = ast.parse('def f(): ...\ndef g():\n    "G."\ndef _h(): ...\nclass C: ...\n')
    assert maker.undocumented("m", tree) == ["m", "m.f", "m.C"]


def test_sections_of_docstrings_become_lists(maker):
    text = """Do it.

    Args:
        rate: of the sound,
            in Hz.
        *rest (`int`, *optional*): others; see [`Other`].

    Returns:
        what was done.
    """
    assert maker.markdown_of(text).splitlines() == [
        "Do it.",
        "",
        "",
        "**Args**",
        "",
        "- `rate`: of the sound,",
        "    in Hz.",
        "- `*rest` (`int`, *optional*): others; see `Other`.",
        "",
        "",
        "**Returns**",
        "",
        "what was done.",
    ]


def test_long_signatures_have_an_argument_in_each_line(maker):
    arguments = ["first_argument: dict[str, tuple[int, int]]={}", "second_argument: str='a, (b'", "*", "third: int=0"]
    node = ast.parse(f"def a_function_of_many({', '.join(arguments)}) -> None: ...").body[0]
    lines = maker.signature(node).splitlines()
    assert lines == [
        "def a_function_of_many(",
        *(f"    {argument}," for argument in arguments[:3]),
        "    third: int=0",
        ") -> None",
    ]


def test_every_command_and_option_is_in_the_reference(maker):
    parser = build_parser()
    page = maker.commands_page(parser)
    commands = list(maker._commands(parser))
    assert len(commands) > 20
    for command in commands:
        section = page.split(f"\n## {command.prog}\n")[1].split("\n## ")[0]
        for action in command._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                assert all(option in section for option in action.option_strings)


def test_dead_links_and_things_from_elsewhere_are_found_in_built_pages(maker, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/index.html").write_text('<h1 id="top">x</h1><a href="../a.html#here">a</a>')
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="sub/">s</a><a href="sub/#top">t</a><a href="https://example.org">o</a>'
        '<a href="gone.html">g</a><a href="sub/index.html#gone">h</a><img src="gone.png">'
        '<script src="https://example.org/x.js"></script><link rel="stylesheet" href="//example.org/x.css">'
    )
    assert sorted(maker.faults_of(tmp_path)) == [
        "a.html loads //example.org/x.css",
        "a.html loads https://example.org/x.js",
        "a.html: nothing is at gone.html",
        "a.html: nothing is at gone.png",
        "a.html: sub/index.html#gone has no such heading",
    ]


def test_python_of_the_page_for_researchers_prints_what_the_page_shows():
    page = (ROOT / "docs/for-researchers.md").read_text(encoding="utf-8")
    (code, shown), *others = re.findall(r"^```python\n(.*?)^```\s+^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert others == []
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "for-researchers.md", "exec"), {})
    assert output.getvalue() == shown
