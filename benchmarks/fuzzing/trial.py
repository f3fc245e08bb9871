"""A trial is one input and what must happen to it; `judge` runs it and says what did happen."""

import logging
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# What can become of an input. The first two are right, the others are faults.
CLEAR = "clear"  # refused by a ValueError or an OSError that names what was wrong
ACCEPTED = "accepted"
INNER = "inner exception"  # refused by the exception of an inner library, or by one that names nothing of the input
SILENT = "silent"  # damaged input was taken without an error and without a warning, or the result is not finite
HANG = "hang"
REFUSED = "refused though good"
OUTCOMES = (CLEAR, ACCEPTED, INNER, SILENT, HANG, REFUSED)
FAULTS = OUTCOMES[2:]

# What an input must meet: "good" inputs are accepted, "damaged" ones refused or warned about, "odd" ones either.
GOOD, DAMAGED, ODD = "good", "damaged", "odd"


@dataclass(frozen=True)
class Trial:
    """One input.

    Attributes:
        what: describes the input, for a reader of the report.
        act: gives the input to the package; a result of `False` says that the result is wrong.
        names: an error must hold one of these texts.
        is_input: "good", "damaged" or "odd".
    """

    what: str
    act: Callable[[], Any]
    names: tuple[str, ...]
    is_input: str = ODD


@dataclass
class Materials:
    """What the trials are made of.

    Attributes:
        folder: where a trial may write.
        made: valid objects, made once, by name.
    """

    folder: Path
    made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when it was first asked for."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def file(self, name: str, content: bytes) -> Path:
        """Write a file of this trial and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


Draw = Callable[[random.Random, Materials], Trial]


class _TooSlow(BaseException):
    """It is raised in the midst of a trial; no `except Exception` catches it."""


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def judge(trial: Trial, limit_s: float) -> tuple[str, str]:
    """Run a trial and return one of `OUTCOMES`, and what was said."""
    began = time.monotonic()
    with _heard() as heard, _limited(limit_s):
        try:
            result = trial.act()
        except _TooSlow:
            return HANG, f"stopped after {limit_s:g} s"
        except (ValueError, OSError) as error:
            outcome, said = _of_error(trial, error)
        except Exception as error:
            outcome, said = INNER, f"{type(error).__name__}: {error}"
        else:
            is_wrong = result is False or (trial.is_input == DAMAGED and not heard)
            outcome, said = (SILENT if is_wrong else ACCEPTED), "; ".join(heard)
    if time.monotonic() - began > limit_s:
        return HANG, f"took {time.monotonic() - began:.1f} s"
    return outcome, said


def _of_error(trial: Trial, error: Exception) -> tuple[str, str]:
    said = f"{type(error).__name__}: {error}"
    if trial.is_input == GOOD:
        return REFUSED, said
    return (CLEAR if any(name in str(error) for name in trial.names) else INNER), said


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect the warnings of the package, by whichever way they come."""
    handler = _Heard()
    loggers = [logging.getLogger(name) for name in ("transformers", "na_ssl_hf")]
    # A message that is only given once would be missed by all trials but the first.
    for method in (getattr(logging.Logger, name, None) for name in ("warning_once", "info_once")):
        if method is not None:
            method.cache_clear()
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield handler.messages
            handler.messages += [str(one.message) for one in caught]
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
