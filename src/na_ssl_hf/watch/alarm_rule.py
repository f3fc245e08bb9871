"""The rule that turns the scores of windows into alarms, with a promised mean time between false ones.

A threshold on every window promises a rate per window: at 5 % and a window each 2.5 s, 1,700 false alarms a day. Here
windows are evidence that is gathered over time. The p-value of a window is its rank among the normal recordings and the
earlier windows (a conformal p-value: Vovk, Gammerman and Shafer, 2005). Bets against it are e-values, of mean at most 1
while windows are exchangeable with what came before, and a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo,
"E-detectors", 2023) gathers them: `M_t = (1 + M_{t-1}) e_t`, of mean at most t, whatever the distribution of scores.

Letters: k sequences of windows that do not overlap, n scores in a reference, A the evidence of an alarm.
"""

import bisect
import hashlib
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

# Every bet puts a stake on the p-value being at most a level: e = stake / level + 1 - stake if so, else 1 - stake. Low
# levels gain most by a clear fault, high ones by a weak one; which of them is right the evidence shows.
LEVELS = (0.002, 0.01, 0.05, 0.2)
STAKES = (0.5, 0.2)
BETS = tuple(product(LEVELS, STAKES))
# "watch" comes this many times as often as "alarm".
WATCH_SHARE = 1 / 30
# So many windows of a sequence a score waits before later ones are ranked among it, so that a fault that has begun is
# not taken for normal while it is being found. The longer it waits, the longer chance in few normal recordings counts.
WAITING_WINDOWS = 30
# More scores than this are a sample of all; a rank among so many is fine enough.
MOST_SCORES = 5000
# Of windows that depend on each other for long, no more are taken than this many sequences have: those between tell
# little that is new, and the evidence of every sequence is kept with every window.
MOST_SEQUENCES = 16
# In so many windows of a sequence the clearest fault must raise an alarm, or there are too few normal recordings.
MOST_WINDOWS = 8
# With fewer, chance alone may put every new window above them, see docs/watch.md.
LEAST_NORMALS = 20
# So many scores of references are kept over a restart at the most.
MOST_KEPT_SCORES = 20_000
DAY = 86400.0


@dataclass(frozen=True)
class Decision:
    """What the rule says after a window.

    Attributes:
        state: "ok", "watch" or "alarm".
        evidence: the largest evidence of a sequence, at most A.
        change: "begin" or "end" of an alarm with this window; `None` for neither.
    """

    state: Literal["ok", "watch", "alarm"]
    evidence: float
    change: Literal["begin", "end"] | None


class AlarmRule:
    """Gathers evidence from the scores of windows, see the module.

    Windows that overlap, or that lie so close that load and room are still the same, are no independent evidence: they
    are dealt out to k <= 16 sequences in which none do, each with its own reference and detector. An alarm begins when
    one of them reaches `A = 2 k m`, for m windows of a sequence in the promised time T. As a sequence reaches A within
    t windows with a probability of at most t / A, any of them does within a time s with at most s / (2 T), so that the
    mean time to a false alarm is at least T.

    The promise needs windows that are exchangeable with the normal recordings: same machine, place, microphones,
    conditions and length.

    Args:
        normal_scores: `(n,)` leave-one-out scores of the normal recordings; higher is more anomalous.
        false_alarms_per: the promised mean time between false alarms T, in s.
        window, hop: seconds of a window, and from the start of one to that of the next.
        debounce: for so many windows in a row the evidence must be that of an alarm before it begins.
        shortest_alarm: the least time that an alarm lasts, in s. It ends when the evidence is below that of "watch".
        independent_after: for windows that depend on each other for longer than they overlap, because the load of a
            machine or the noise around it change slowly: the time in s after which they do not any more.
        is_promise: whether too few normal scores for the promise are refused; without it, nothing is promised.

    Attributes:
        alarm_evidence: A.
        watch_evidence: the evidence from which on the state is "watch".

    Raises:
        ValueError: too few normal scores for the promise, with the number that it needs, or a wrong argument.
    """

    def __init__(
        self,
        normal_scores: Sequence[float],
        false_alarms_per: float,
        window: float,
        hop: float,
        debounce: int = 1,
        shortest_alarm: float = 60.0,
        is_promise: bool = True,
        independent_after: float = 0.0,
    ):
        if isinstance(debounce, bool) or not isinstance(debounce, int) or debounce < 1:
            raise ValueError(f"`debounce` must be a whole number of at least 1, got {debounce!r}.")
        if not 0 <= shortest_alarm < math.inf:
            raise ValueError(f"`shortest_alarm` must be a number of seconds of at least 0, got {shortest_alarm!r}.")
        if not 0 <= independent_after < false_alarms_per:
            raise ValueError(
                "`independent_after` must be a number of seconds of at least 0 and less than `false_alarms_per`, got "
                f"{independent_after!r}."
            )
        apart = max(window, independent_after)
        # The rule takes a window, and passes over the next ones where there would be too many sequences.
        self._stride = -(-_num_sequences(apart, hop) // MOST_SEQUENCES)
        hop *= self._stride
        self.alarm_evidence = alarm_evidence(false_alarms_per, window, hop)
        self.watch_evidence = self.alarm_evidence * WATCH_SHARE
        needed = required_normals(false_alarms_per, window, hop)
        if is_promise and len(normal_scores) < needed:
            raise ValueError(
                f"`false_alarms_per` of {duration_text(false_alarms_per)} needs at least {needed} normal recordings, "
                f"got {len(normal_scores)}. Fit with more, or ask for a shorter time."
            )
        self._debounce, self._shortest = debounce, shortest_alarm
        text = repr(sorted(map(float, normal_scores)))
        self._normals = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._sequences = [_Sequence(normal_scores, seed) for seed in range(_num_sequences(apart, hop))]
        self._num_windows = 0
        self._num_above = 0
        self._alarm_since: float | None = None
        self._state: Literal["ok", "watch", "alarm"] = "ok"

    def step(self, score: float, time: float) -> Decision:
        """Take the score of the next window, which ends at `time` in s, and decide."""
        place, rest = divmod(self._num_windows, self._stride)
        self._num_windows += 1
        if not rest:
            sequence = self._sequences[place % len(self._sequences)]
            sequence.add(score, self._state != "alarm", self.alarm_evidence)
        evidence = self.evidence
        change: Literal["begin", "end"] | None = None
        self._num_above = self._num_above + 1 if evidence >= self.alarm_evidence else 0
        if self._alarm_since is None and self._num_above >= self._debounce:
            self._alarm_since, change = time, "begin"
        elif self._alarm_since is not None:
            # A clock that has gone back must not make an alarm last for ever.
            is_long = not 0 <= time - self._alarm_since < self._shortest
            if is_long and evidence < self.watch_evidence:
                self._alarm_since, change = None, "end"
                self._start_again()
                evidence = 0.0
        is_watched = evidence >= self.watch_evidence
        self._state = "alarm" if self._alarm_since is not None else "watch" if is_watched else "ok"
        if self._state == "alarm":
            for one in self._sequences:
                one.forget_waiting()
        return Decision(self._state, evidence, change)

    @property
    def state(self) -> Literal["ok", "watch", "alarm"]:
        """The state after the last window."""
        return self._state

    @property
    def evidence(self) -> float:
        """The largest evidence of a sequence, at most A."""
        return max(one.evidence for one in self._sequences)

    def resume(self) -> dict[str, Any]:
        """Return what `restore` needs to go on with the evidence; `learned` returns the references."""
        return {
            "bets": [list(one.gathered) for one in self._sequences],
            "num_windows": self._num_windows % (self._stride * len(self._sequences)),
            "alarm_since": self._alarm_since,
            "state": self._state,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from what `resume` gave. What belongs to other windows or bets is left alone.

        Raises:
            ValueError: a key is missing or a value has another type.
        """
        try:
            bets = [[float(value) for value in bets] for bets in values["bets"]]
            since, state, count = values["alarm_since"], values["state"], int(values["num_windows"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The evidence that was kept must be that of an alarm rule: {error!r}.") from error
        if len(bets) != len(self._sequences) or any(len(one) != len(BETS) for one in bets):
            return
        if state not in ("ok", "watch", "alarm") or not all(0 <= value < math.inf for one in bets for value in one):
            raise ValueError(f"The evidence that was kept must be that of an alarm rule, got {values!r:.80}.")
        for sequence, gathered in zip(self._sequences, bets, strict=True):
            sequence.begin(gathered)
        self._num_windows, self._state = count, state
        self._alarm_since = None if since is None else float(since)

    def learned(self) -> dict[str, Any]:
        """Return the scores that new ones are ranked among, or a sample of them, for `restore_learned`."""
        most = MOST_KEPT_SCORES // len(self._sequences)
        return {
            "normals": self._normals,
            "num_seen": [one.num_seen for one in self._sequences],
            "references": [one.sample(most) for one in self._sequences],
        }

    def restore_learned(self, values: Mapping[str, Any]) -> None:
        """Rank new windows among those of an earlier run. What belongs to other normals or windows is left alone.

        Raises:
            ValueError: a key is missing or a value has another type.
        """
        try:
            normals, counts = values["normals"], [int(count) for count in values["num_seen"]]
            references = [[float(score) for score in reference] for reference in values["references"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"What was learned must be that of an alarm rule: {error!r}.") from error
        if normals != self._normals or not len(references) == len(counts) == len(self._sequences):
            return
        if not all(reference and all(map(math.isfinite, reference)) for reference in references):
            raise ValueError("What was learned must be that of an alarm rule, got a reference without finite scores.")
        for sequence, count, reference in zip(self._sequences, counts, references, strict=True):
            sequence.begin_reference(reference, count)

    def _start_again(self) -> None:
        for sequence in self._sequences:
            sequence.begin([0.0] * len(BETS))


class _Sequence:
    """Windows that do not overlap: the scores that a new one is ranked among, and the evidence against them."""

    def __init__(self, normal_scores: Sequence[float], seed: int):
        self.begin([0.0] * len(BETS))
        self._random = random.Random(seed)
        self._waiting: deque[float] = deque()
        self.begin_reference(normal_scores, len(normal_scores))

    def begin_reference(self, scores: Sequence[float], num_seen: int) -> None:
        """Rank among these scores, or a sample of them, which stand for `num_seen`."""
        self._reference = sorted(self._random.sample(list(map(float, scores)), min(MOST_SCORES, len(scores))))
        self.num_seen = num_seen

    def sample(self, most: int) -> list[float]:
        """Return the scores of the reference, or `most` of them by chance."""
        return self._random.sample(self._reference, min(most, len(self._reference)))

    def begin(self, gathered: Sequence[float]) -> None:
        """Go on from what the bets have gathered."""
        self.gathered = list(gathered)
        self.evidence = sum(self.gathered) / len(self.gathered)

    def add(self, score: float, is_learned: bool, most: float) -> None:
        """Bet against the rank of a score; it is remembered later, if all stays well."""
        size = len(self._reference) + 1
        rank = size - bisect.bisect_left(self._reference, score)  # 1 is above all
        for index, (level, stake) in enumerate(BETS):
            ranks = max(1, int(level * size))
            gain = 1 - stake + (stake * size / ranks if rank <= ranks else 0.0)
            self.gathered[index] = (1 + self.gathered[index]) * gain
        # The mean over the bets is of mean at most t after t windows, as each of them is.
        self.evidence = min(most, sum(self.gathered) / len(self.gathered))
        # More than the evidence of an alarm would only make the alarm last longer. Every bet is held by itself: the
        # slow ones keep an alarm up while a fault comes and goes.
        self.gathered = [min(most, value) for value in self.gathered]
        if is_learned:
            self._waiting.append(score)
            if len(self._waiting) > WAITING_WINDOWS:
                self._remember(self._waiting.popleft())

    def forget_waiting(self) -> None:
        """Never take for normal what came shortly before an alarm."""
        self._waiting.clear()

    def _remember(self, score: float) -> None:
        self.num_seen += 1
        if len(self._reference) >= MOST_SCORES:
            # Every score that was seen is as likely to be among those kept (reservoir sampling).
            if self._random.randrange(self.num_seen) >= MOST_SCORES:
                return
            self._reference.pop(self._random.randrange(len(self._reference)))
        bisect.insort(self._reference, score)


def alarm_evidence(false_alarms_per: float, window: float, hop: float) -> float:
    """Return the evidence A of an alarm, see [`AlarmRule`].

    Raises:
        ValueError: the promised time is not a number of seconds that is longer than a window.
    """
    if isinstance(false_alarms_per, bool) or not window < false_alarms_per < math.inf:
        raise ValueError(
            f"`false_alarms_per` must be a time longer than a window of {window:g} s, got {false_alarms_per!r}."
        )
    num_sequences = _num_sequences(window, hop)
    return 2 * num_sequences * false_alarms_per / (num_sequences * hop)


def required_normals(false_alarms_per: float, window: float, hop: float) -> int:
    """Return how many normal recordings a promise needs.

    With fewer, a fault that scores above all of them would not raise an alarm within `MOST_WINDOWS` windows that do not
    overlap; nor are fewer than `LEAST_NORMALS` enough to rank anything among them.

    Args:
        false_alarms_per, window, hop: see [`AlarmRule`].

    Raises:
        ValueError: as `alarm_evidence`.
    """
    wanted = alarm_evidence(false_alarms_per, window, hop)
    low, high = LEAST_NORMALS, LEAST_NORMALS
    while _clearest_evidence(high) < wanted:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _clearest_evidence(middle) >= wanted else (middle + 1, high)
    return high


def longest_promise(num_normals: int, window: float, hop: float) -> float | None:
    """Return the longest time between false alarms, in s, that so many normal recordings allow; `None` for none."""
    if num_normals < LEAST_NORMALS:
        return None
    promise = _clearest_evidence(num_normals) * hop / 2
    return promise if promise > window else None


def _clearest_evidence(num_normals: int) -> float:
    """The evidence after `MOST_WINDOWS` windows above all normal recordings."""
    sequence = _Sequence([0.0] * num_normals, seed=0)
    for _ in range(MOST_WINDOWS):
        sequence.add(1.0, is_learned=False, most=math.inf)
    return sequence.evidence


def _num_sequences(window: float, hop: float) -> int:
    # Hops that are rounded to samples must not make one sequence more.
    return max(1, math.ceil(window / hop - 1e-6))


_UNITS = {"d": DAY, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str, name: str = "false_alarms_per") -> float:
    """Return the seconds of a time such as `30d`, `12h`, `90m` or `600s`.

    Raises:
        ValueError: the text is no such time; the message has `name`.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        seconds = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"`{name}` must be a time such as 30d, 12h, 90m or 600s, got {text!r}.")
    return seconds


def duration_text(seconds: float) -> str:
    """Return a time as `parse_duration` reads it, in the largest unit of which it is at least one."""
    for unit, size in _UNITS.items():
        if seconds >= size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"
