"""The site, from the pages of this folder, the docstrings of the package and the parser of `na-ssl`.

    python docs/make_site.py            # writes site/html; `make docs` does so in the virtual environment

It collects all pages in `site/pages`, lets Zensical build them in its strict mode, and reads what came out again. A
link that leads nowhere, a public name without a docstring and a page that would load anything from elsewhere are
errors.
"""

from __future__ import annotations

import argparse
import ast
import base64
import html
import inspect
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "site" / "pages"
HTML = ROOT / "site" / "html"
SOURCES = (ROOT / "src", ROOT / "packages/na-ssl-edge/src")

# Pages that lie outside docs/, and where they are on the site.
ELSEWHERE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples/index.md",
}
# What readers type into the search of the site.
SEARCHED = ("threshold", "far microphone", "false alarm", "Raspberry", "DCASE", "LoRA")
# The theme hides the switch between light and dark, so that the keyboard's focus on it would be invisible.
STYLES = ".md-option:focus-visible + .md-header__button { outline: 2px solid; border-radius: 4px; }\n"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SECTION = re.compile(r"^([A-Z][A-Za-z ]*):$")
ENTRY = re.compile(r"^(`?\*{0,2}[\w.\[\]]+`?(?:, `?\*{0,2}[\w.]+`?)*)(?: \((.*?)\))?: +(.*)$")


class SiteError(ValueError):
    """What keeps the site from being whole, one line for each fault."""


# Where files of the repository are on the site


def place_of(file: Path) -> str | None:
    """The path on the site of a file of the repository; `None` for a file that has none.

    A Python file has a page with its docstrings and its source, and a folder of examples one with all its files.
    """
    for source in SOURCES:
        if file.suffix == ".py" and file.is_relative_to(source):
            return f"reference/{module_name(file, source)}.md"
    if not file.is_relative_to(ROOT):
        return None
    path = file.relative_to(ROOT).as_posix()
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("examples/") and file.suffix == ".ipynb":
        return path.removesuffix(".ipynb") + ".md"
    if path.startswith("docs/") and file.suffix in (".md", ".png", ".svg"):
        return path.removeprefix("docs/")
    if path.startswith(("model_cards/", "examples/")) and file.suffix in (".md", ".png", ".svg"):
        return path
    of_examples = path.startswith("examples/") and file.is_dir()
    if of_examples or file.suffix in (".py", ".yaml", ".toml") or file.name in ("Makefile", "LICENSE", "CITATION.cff"):
        return f"source/{path}.md"
    return None


def module_name(file: Path, source: Path) -> str:
    """The dotted name of a module."""
    parts = file.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def moved(text: str, file: Path, needed: Callable[[Path], None]) -> str:
    """The text of a page with links that hold on the site.

    Args:
        text: Markdown.
        file: the file that it stands in.
        needed: is called with every file that is linked to.

    Raises:
        SiteError: for a link to a file that does not exist or has no place on the site.
    """
    here = posixpath.dirname(place_of(file) or "")
    faults = []

    def replace(match: re.Match[str]) -> str:
        target = match[2]
        if urlsplit(target).scheme or target.startswith("#"):
            return match[0]
        path, _, anchor = target.partition("#")
        linked = Path(os.path.normpath(file.parent / path))
        place = place_of(linked) if linked.exists() else None
        if place is None:
            faults.append(f"{file.relative_to(ROOT)}: the link {target} leads to no page of the site")
            return match[0]
        needed(linked)
        return f"{match[1]}{posixpath.relpath(place, here or '.')}{'#' + anchor if anchor else ''}{match[3]}"

    pieces, end = [], 0
    for fence in FENCE.finditer(text):  # code may look like a link, too
        pieces += [LINK.sub(replace, text[end : fence.start()]), fence[0]]
        end = fence.end()
    pieces.append(LINK.sub(replace, text[end:]))
    if faults:
        raise SiteError("\n".join(faults))
    return "".join(pieces)


# Docstrings


def markdown_of(docstring: str) -> str:
    """A docstring with sections such as `Args:` as Markdown: every entry of a section becomes an item of a list."""
    lines = inspect.cleandoc(docstring).splitlines()
    out: list[str] = []
    at = 0
    while at < len(lines):
        match = SECTION.match(lines[at])
        if match and at + 1 < len(lines) and lines[at + 1].startswith("    "):
            end = at + 1
            while end < len(lines) and (not lines[end] or lines[end].startswith("    ")):
                end += 1
            block = inspect.cleandoc("\n".join(lines[at + 1 : end])).splitlines()
            out += ["", f"**{match[1]}**", "", *_entries(block), ""]
            at = end
        else:
            out.append(lines[at])
            at += 1
    # transformers marks names that its own site links with brackets.
    return re.sub(r"\[(`[^`\]]+`)\](?!\()", r"\1", "\n".join(out)).strip()


def _entries(block: list[str]) -> Iterator[str]:
    """The lines of a section; a line `name: text` without indent begins an item."""
    if not any(ENTRY.match(line) for line in block):
        yield from block
        return
    for line in block:
        match = ENTRY.match(line)
        if match:
            kind = f" ({match[2]})" if match[2] else ""
            yield f"- `{match[1].strip('`')}`{kind}: {match[3]}"
        else:
            yield f"    {line.strip()}" if line.strip() else ""


def is_public(node: ast.AST) -> bool:
    """Whether a statement defines a class or function for others."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(node, kinds) and not node.name.startswith("_")


def undocumented(name: str, tree: ast.Module) -> list[str]:
    """The module, classes and functions of a module that are public and have no docstring."""
    missing = [] if ast.get_docstring(tree) else [name]
    for node in filter(is_public, tree.body):
        if not ast.get_docstring(node):  # type: ignore[arg-type]
            missing.append(f"{name}.{node.name}")  # type: ignore[attr-defined]
    return missing


def signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The head of a definition as code, one argument in a line where it is long."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    start = f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}def {node.name}"
    end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{start}({ast.unparse(node.args)}){end}"
    if len(line) <= 100:
        return line
    return f"{start}(\n    {_split(ast.unparse(node.args))}\n){end}"


def _split(arguments: str) -> str:
    """Arguments, one in a line: commas inside of brackets and of strings do not count."""
    parts, depth, quote, begin = [], 0, "", 0
    for at, letter in enumerate(arguments):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
            if letter == "," and depth == 0:
                parts.append(arguments[begin:at].strip())
                begin = at + 1
    return ",\n    ".join([*parts, arguments[begin:].strip()])


def module_page(name: str, text: str) -> str:
    """The page of a module: its docstring, its public classes and functions with theirs, and the source."""
    tree = ast.parse(text)
    out = [f"# {name}", "", markdown_of(ast.get_docstring(tree) or ""), ""]
    for node in filter(is_public, tree.body):
        out += _definition(node, 2, node.name)  # type: ignore[attr-defined, arg-type]
    return "\n".join([*out, *_source_block(text, "python")])


def _definition(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, level: int, title: str) -> list[str]:
    out = [f"{'#' * level} {title}", "", "```python", signature(node), "```", ""]
    out += [markdown_of(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        for method in filter(is_public, node.body):
            if ast.get_docstring(method):  # type: ignore[arg-type]
                out += _definition(method, level + 1, f"{title}.{method.name}")  # type: ignore[attr-defined, arg-type]
    return out


def _source_block(text: str, language: str) -> list[str]:
    body = [f"    {line}" if line else "" for line in text.splitlines()]
    head = ["", "## Source { data-search-exclude }", "", '??? quote "Show the file"', ""]
    return [*head, f"    ~~~~~{language}", *body, "    ~~~~~", ""]


def reference_pages() -> dict[str, str]:
    """The pages of all modules, and one that lists them with their first sentences.

    Raises:
        SiteError: for public names without a docstring.
    """
    pages, missing = {}, []
    index = ["# All modules", "", "[Public names](../python.md) tells which of them a user needs.", ""]
    for source in SOURCES:
        folder = ""
        for file in sorted(source.rglob("*.py"), key=lambda file: module_name(file, source)):
            name, text = module_name(file, source), file.read_text(encoding="utf-8")
            if file.name == "__main__.py":
                continue
            tree = ast.parse(text)
            missing += undocumented(name, tree)
            pages[f"reference/{name}.md"] = module_page(name, text)
            if ".".join(name.split(".")[:2]) != folder:
                folder = ".".join(name.split(".")[:2])
                if (source / folder.replace(".", "/")).is_dir():
                    index += ["", f"## {folder}", ""]
            summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
            index.append(f"- [`{name}`]({name}.md): {summary}")
    if missing:
        raise SiteError("\n".join(f"{name} has no docstring" for name in missing))
    return pages | {"reference/index.md": "\n".join(index) + "\n"}


# Commands


def commands_page(parser: argparse.ArgumentParser) -> str:
    """The page of all commands of a parser: usage, arguments and an example of each."""
    out = ["# All commands", "", "[The command line](command-line.md) explains what most of them are for.", ""]
    for command in _commands(parser):
        description = command.description or ""
        out += [f"## {command.prog}", "", _escaped(description[:1].upper() + description[1:]), ""]
        formatter = command.formatter_class(prog=command.prog, width=88)
        formatter.add_usage(command.usage, command._actions, command._mutually_exclusive_groups, prefix="")
        out += ["```text", formatter.format_help().strip(), "```", ""]
        rows = [action for action in command._actions if action.help not in (None, argparse.SUPPRESS)]
        rows = [action for action in rows if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)]
        if rows:
            out += ["| argument | what it is |", "|---|---|", *(_row(command, action) for action in rows), ""]
        if command.epilog:
            head, _, example = command.epilog.partition("\n")
            out += [f"{head.capitalize()}", "", "```text", inspect.cleandoc(example), "```", ""]
    return "\n".join(out)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for command in dict.fromkeys(group.choices.values()):
            yield from _commands(command)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    text = formatter._expand_help(action)
    names = formatter._format_action_invocation(action).replace("|", "\\|")
    return f"| `{names}` | {_escaped(' '.join(text.split()))} |"


# Notebooks


def notebook_page(file: Path, needed: Callable[[Path], None]) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and its pictures by their names beside the page.

    The page has the cells with the outputs that the file holds; what they would play is told, because only the notebook
    has the sounds.

    Args:
        file: the notebook.
        needed: is called with every file that is linked to.

    Raises:
        SiteError: for a link that leads nowhere.
    """
    out: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            out += [moved(text, file, needed), ""]
            if len(out) == 2:  # the title
                out += [f"This page is the notebook [{file.name}]({file.name}), as it was run last.", ""]
            continue
        out += ["```python", text, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{file.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                out += [f"![What the cell above draws]({name})", ""]
            elif "text/markdown" in data:
                out += ["".join(data["text/markdown"]), ""]
            elif "<audio" in "".join(data.get("text/html", "")):
                out += ["*Here the notebook plays the sound.*", ""]
            elif text := "".join(output.get("text", "")).strip():
                out += ["```text", text, "```", ""]
    return "\n".join(out), pictures


# Building


def collect() -> dict[str, str | bytes | Path]:
    """All pages of the site by their paths: texts, pictures of notebooks, and files that are copied.

    Raises:
        SiteError: for links that lead nowhere and public names without a docstring.
    """
    from na_ssl_hf.cli import build_parser

    site: dict[str, str | bytes | Path] = {**reference_pages(), "commands.md": commands_page(build_parser())}
    site["focus.css"] = STYLES
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "model_cards").glob("*.md"), *map(ROOT.joinpath, ELSEWHERE)]
    files += (ROOT / "examples").rglob("*.ipynb")
    faults = []
    while files:
        file = files.pop()
        place = place_of(file)
        if place is None or place in site:
            continue
        if file.suffix in (".png", ".svg"):
            site[place] = file
        elif file.suffix == ".ipynb":
            folder = posixpath.dirname(place)
            try:
                site[place], pictures = notebook_page(file, files.append)
            except SiteError as error:
                faults.append(str(error))
                continue
            site |= {f"{folder}/{name}": picture for name, picture in pictures.items()}
            site[f"{folder}/{file.name}"] = file
        elif file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            if place.startswith("model_cards/"):  # what the hub shows beside a card is not for the site
                text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
            try:
                site[place] = moved(text, file, files.append)
            except SiteError as error:
                faults.append(str(error))
        else:
            site[place] = _file_page(file)
    if faults:
        raise SiteError("\n".join(faults))
    return site


def _file_page(place: Path) -> str:
    """The page of a file, or of the files of a folder, as they are."""
    out = [f"# {place.relative_to(ROOT).as_posix()}", ""]
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(file.suffix, "text")
            heading = [f"## {file.name}", ""] if place.is_dir() else []
            out += [*heading, f"~~~~~{language}", file.read_text(encoding="utf-8").rstrip(), "~~~~~", ""]
    return "\n".join(out)


class _Links(HTMLParser):
    """What a built page refers to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.anchors.add(values["id"] or "")
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"] or "")
        if tag in ("img", "script", "source", "iframe") and values.get("src"):
            self.loaded.append(values["src"] or "")
        if tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.loaded.append(values["href"] or "")


def faults_of(folder: Path) -> list[str]:
    """What is wrong with the built pages of a folder: dead links and anchors, and what is loaded from elsewhere."""
    pages = {}
    for file in sorted(folder.rglob("*.html")):
        pages[file] = _Links()
        pages[file].feed(file.read_text(encoding="utf-8"))
    faults = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links are made for the root of a server
            continue
        for target in page.targets + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded and parts.scheme != "data":
                    faults.append(f"{file.relative_to(folder)} loads {target}")
                continue
            linked = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            linked = linked / "index.html" if linked.is_dir() else linked
            if not linked.is_file():
                faults.append(f"{file.relative_to(folder)}: nothing is at {target}")
            elif parts.fragment and linked in pages and unquote(parts.fragment) not in pages[linked].anchors:
                faults.append(f"{file.relative_to(folder)}: {target} has no such heading")
    return faults


def not_found(folder: Path) -> list[str]:
    """What readers search and the search of a built site does not find.

    The index has the words of all pages as they were written; the search looks for all words that were typed.
    """
    items = json.loads((folder / "search.json").read_text(encoding="utf-8"))["items"]
    texts = [f"{item['title']} {item['text']}".lower() for item in items]
    missing = [word for word in SEARCHED if not any(word.lower() in text for text in texts)]
    return [f"search.json: the search finds nothing for {word!r}" for word in missing]


def build() -> None:
    """Write the site to `site/html`.

    Raises:
        SiteError: for whatever keeps it from being whole.
    """
    site = collect()
    shutil.rmtree(PAGES.parent, ignore_errors=True)
    for place, content in site.items():
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, PAGES / place)
        elif isinstance(content, bytes):
            (PAGES / place).write_bytes(content)
        else:
            (PAGES / place).write_text(content, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", ROOT / "zensical.toml"],
        check=True,
        cwd=ROOT,
    )
    if faults := faults_of(HTML) + not_found(HTML):
        raise SiteError("\n".join(faults))
    print(f"{len(list(HTML.rglob('*.html')))} pages are in {HTML.relative_to(ROOT)}; `make show-docs` shows them")


if __name__ == "__main__":
    try:
        build()
    except SiteError as error:
        sys.exit(f"the site is not whole:\n{error}")
