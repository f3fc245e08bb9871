"""Every message of the package is on the page of messages, or explains itself.

An error explains itself by a rule and what was found instead ("must be ..., got ..."), by what to do ("call `fit`",
"pip install ..."), or by the cause that it passes on ("... cannot be read: ..."). An error about a file explains itself
by the file and what is wrong with it. Everything else, and every warning that gives neither a cause nor a remedy, is on
docs/troubleshooting.md with what to do.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (ROOT / "src/na_ssl_hf", ROOT / "packages/na-ssl-edge/src")
PAGE = ROOT / "docs/troubleshooting.md"

RULE = re.compile(r"\b(must|needs?|takes( no)?|only|alone|options of)\b")
FOUND = re.compile(
    r"\b([Gg]ot|has|have|had|begins|holds?|found|took|differs?|not set|is|are|but|because|which|beside|instead of)\b"
)
REMEDY = re.compile(
    r"(?:pip|apt) install|[Cc]all `|exclude each other|go together|is the disk full"
    r"|\b(?:[Ff]it|[Cc]hoose|[Uu]se|[Ss]et|[Pp]ass|[Gg]ive|[Rr]un|[Rr]emove|[Ii]nstall|[Mm]ake) [\w'`]"
)
CAUSE = re.compile(r"(?:: …|\(…\)|\(…: …\))[.…]*$|^[… ]+$")
FILE_ERRORS = ("OSError", "FileNotFoundError", "FileExistsError", "IsADirectoryError", "TruncatedSoundError")
# No user reads these: Python's own protocol of attributes, and what cannot happen.
INTERNAL = ("AttributeError", "AssertionError")
# Parts of sentences, which one message passes on: the file with them -> that message, which is on the page.
PARTS = {
    "convert/foreign_pickle.py": "… is refused: ….",
    "evaluation/report/result_files.py": "… must be the numbers of a run, got …; remove the file or its folder",
    "data/corpora/prepare.py": "source must hold usable sounds, got … rejected (…); see …",
    "training/pseudo_labels.py": "… must be a label map of this package, got …",
    "watch/device_sources.py": "… gives no sound: …",
    "watch/messages/mqtt.py": "… cannot be reached (…): its messages wait until it can",
    "watch/messages/webhook.py": "… cannot be reached (…): its messages wait until it can",
}


class Message(NamedTuple):
    """A text that the code gives to a user, with … for what is filled in, and where it stands."""

    place: str
    kind: str
    text: str

    @property
    def is_part(self) -> bool:
        """Whether it is told behind another message: it names nothing that it is about, and begins so."""
        file = self.place.split(":")[0]
        return any(file.endswith(name) for name in PARTS) and not self.text.startswith(("…", "The ", "`"))


def text_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def messages() -> Iterator[Message]:
    for source in SOURCES:
        for file in sorted(source.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    call, kind = node.exc, ast.unparse(node.exc.func)
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    call, kind = node, node.func.attr
                    if kind not in ("warn", "warning", "warning_once", "error"):
                        continue
                else:
                    continue
                text = text_of(call.args[0]) if call.args else None
                if text is not None and kind not in INTERNAL:
                    yield Message(f"{file.relative_to(ROOT).as_posix()}:{call.lineno}", kind, text)


def explains_itself(message: Message) -> bool:
    text = message.text
    if REMEDY.search(text) or CAUSE.search(text):
        return True
    if (rule := RULE.search(text)) and FOUND.search(text[: rule.start()] + " " + text[rule.end() :]):
        return True
    return message.kind in FILE_ERRORS and "…" in text


def quoted() -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    return [message for _, message in re.findall(r"^\| (``? ?)(.*?) ?``? \| ", page, re.MULTILINE)]


def test_every_message_is_on_the_page_or_explains_itself():
    found, on_page = list(messages()), set(quoted())
    assert len(found) > 900
    assert set(PARTS.values()) <= on_page
    unexplained = [
        message for message in found if not (message.text in on_page or message.is_part or explains_itself(message))
    ]
    assert unexplained == []


def test_no_message_is_on_the_page_twice():
    assert [message for message, times in Counter(quoted()).items() if times > 1] == []


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("ValueError", "`rate` must be positive, got …", True),
        ("ValueError", "This bank is not fitted yet: call `fit` first.", True),
        ("ValueError", "`rate` is wrong", False),
        ("ValueError", "`rate` must be positive", False),
        ("ValueError", "a bad value: …", True),
        ("OSError", "… is empty", True),
        ("OSError", "the file is empty", False),
        ("warning", "… lost sound (… times so far).", False),
    ],
)
def test_what_explains_itself(kind, text, expected):
    assert explains_itself(Message("x.py:1", kind, text)) is expected
