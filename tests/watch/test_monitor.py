"""A monitor: the scores of its windows, what its listeners are told, and how it goes on after a restart."""

import time

import numpy as np
import pytest
from watched_machine import RATE, machine_sound

from na_ssl_hf.watch import monitor
from na_ssl_hf.watch.monitor import Monitor, MonitorSettings
from na_ssl_hf.watch.sources import Block
from na_ssl_hf.watch.state_file import StateFile
from na_ssl_hf.watch.store import WatchStore


class Sound:
    """A source of given sound in blocks of 0.25 s."""

    name = "test"

    def __init__(self, samples, is_live=False, rate=RATE):
        self.samples, self.is_live, self.rate = samples, is_live, rate

    def blocks(self):
        for start in range(0, self.samples.shape[1], self.rate // 4):
            yield Block(self.samples[:, start : start + self.rate // 4], self.rate, begins=start == 0)

    def close(self):
        pass


class Notes:
    """A listener that remembers what it was told."""

    def __init__(self):
        self.machines, self.results, self.samples, self.events, self.num_closed = [], [], [], [], 0

    def opened(self, machine):
        self.machines.append(machine)

    def window(self, result, samples):
        self.results.append(result)
        self.samples.append(samples)

    def event(self, event):
        self.events.append(event)

    def close(self):
        self.num_closed += 1


SETTINGS = MonitorSettings("pump", window=1.0, hop=0.5, false_alarms_per=3600.0, shortest_alarm=1.0)


def watched(scorer, samples, keeper=None, others=(), **options):
    notes = Notes()
    counts = Monitor(scorer, Sound(samples, **options), SETTINGS, [*others, notes], keeper).run()
    return notes, counts


def test_the_score_of_a_window_is_that_of_the_same_samples_in_a_file(scorer):
    samples = machine_sound(50, 3.0)
    notes, counts = watched(scorer, samples)
    assert counts.windows == len(notes.results) == 5
    assert notes.num_closed == 1
    (machine,) = notes.machines
    assert (machine.name, machine.sampling_rate, machine.window, machine.hop) == ("pump", RATE, 1.0, 0.5)
    for result, heard in zip(notes.results, notes.samples, strict=True):
        start = round(result.start * RATE)
        window = samples[:, start : start + RATE]
        np.testing.assert_array_equal(heard, window)
        wanted = scorer({"array": window, "sampling_rate": RATE})
        assert result.score == pytest.approx(wanted["score"], abs=1e-7)
        assert result.p_value == wanted["p_value"]
        assert result.threshold == wanted["threshold"]
        assert result.band_scores == pytest.approx(wanted["band_scores"], abs=1e-6)
        wanted_db = 20 * np.log10(window.std(axis=1))
        assert result.levels_db == pytest.approx(wanted_db, abs=0.01)


def test_a_fault_is_one_alarm_told_when_it_begins_and_when_it_ends(scorer):
    parts = [machine_sound(51, 8.0), machine_sound(52, 12.0, fault=0.2), machine_sound(53, 30.0)]
    notes, counts = watched(scorer, np.concatenate(parts, axis=1))
    assert counts.alarms == 1
    begun, ended = notes.events
    assert (begun.kind, begun.end, ended.id, ended.start) == ("alarm", None, begun.id, begun.start)
    started_at = notes.results[0].started_at
    assert 8.0 < begun.start - started_at < 20.0
    assert ended.end - started_at > 20.0
    states = [result.state for result in notes.results]
    assert states[0] == "ok"
    assert "watch" in states[: states.index("alarm")]
    assert [result.end for result in notes.results if result.events] == [
        pytest.approx(begun.start - started_at),
        pytest.approx(ended.end - started_at),
    ]


def test_a_restart_neither_forgets_nor_repeats_an_alarm(scorer, tmp_path):
    faulty = machine_sound(54, 12.0, fault=0.2)
    keeper = StateFile(tmp_path / "state.json")
    first, _ = watched(scorer, faulty, keeper, [keeper])
    assert [event.end for event in first.events] == [None]
    again = StateFile(tmp_path / "state.json")
    second, counts = watched(scorer, np.concatenate([faulty, machine_sound(55, 30.0)], axis=1), again, [again])
    assert second.results[0].state == "alarm"
    assert counts.alarms == 0
    (ended,) = second.events
    assert ended.id == first.events[0].id
    assert ended.end is not None


@pytest.mark.parametrize("kind", ["file", "store"])
def test_what_was_learned_is_kept_over_a_restart(scorer, tmp_path, monkeypatch, kind):
    def keeper():
        return StateFile(tmp_path / "state.json") if kind == "file" else WatchStore(tmp_path / "kept")

    monkeypatch.setattr(monitor, "LEARNED_SECONDS", 20.0)
    first = keeper()
    # Every second window waits for 30 more, and is then ranked among.
    notes, _ = watched(scorer, machine_sound(61, 42.0), first, [first])
    given = [(result.end, result.learned) for result in notes.results if result.learned]
    assert [end for end, _ in given] == [20.0, 40.0]
    assert given[1][1]["num_seen"] > given[0][1]["num_seen"] == [24, 24]
    kept = keeper().load("pump")
    assert kept["learned"] == given[1][1]
    again = Monitor(scorer, Sound(machine_sound(62, 1.0)), SETTINGS, keeper=keeper())
    assert again._rule.learned()["num_seen"] == given[1][1]["num_seen"]


def test_windows_that_depend_on_each_other_are_told_and_longer_ones_again(scorer, monkeypatch, caplog):
    times = iter([900.0, 1000.0, 3600.0, 3600.0])
    monkeypatch.setattr(monitor.Dependence, "step", lambda *_: (0.5, next(times)))
    watched(scorer, machine_sound(63, 4.0))
    assert caplog.text.count("rank correlation 0.50") == 2
    assert "ask for --independent-after 15m or more" in caplog.text
    assert "ask for --independent-after 1h or more" in caplog.text


def test_a_listener_that_fails_does_not_end_the_watch(scorer, caplog):
    class Full(Notes):
        def window(self, result, samples):
            raise OSError("No space left on device")

    notes, _ = watched(scorer, machine_sound(56, 2.0), others=[Full()])
    assert len(notes.results) == 3
    assert "Full failed to take note of a window: OSError: No space left" in caplog.text


def test_who_is_late_for_live_sound_leaves_windows_out_and_counts_them(scorer, monkeypatch):
    score = type(scorer).__call__

    def slow(self, *arguments, **options):
        time.sleep(0.3)
        return score(self, *arguments, **options)

    monkeypatch.setattr(type(scorer), "__call__", slow)
    notes, counts = watched(scorer, machine_sound(57, 10.0), is_live=True)
    assert counts.skipped > 0
    assert counts.skipped + counts.windows == 19
    assert sum(result.skipped for result in notes.results) == counts.skipped
    # The last windows are scored: who is late is never more than a window behind.
    assert notes.results[-1].end == 10.0


def test_sound_that_cannot_be_scored_has_no_score(scorer, caplog):
    samples = machine_sound(58, 2.0)
    samples[0, 3000] = np.nan
    notes, _ = watched(scorer, samples)
    assert [result.score is None for result in notes.results] == [True, False, False]
    assert "could not be scored" in caplog.text


def test_a_stream_of_another_rate_is_scored(scorer):
    notes, _ = watched(scorer, machine_sound(59, 2.0, rate=48000), rate=48000)
    assert [result.end for result in notes.results] == [1.0, 1.5, 2.0]
    assert notes.machines[0].sampling_rate == RATE


def test_a_file_of_another_state_is_begun_anew(scorer, tmp_path, caplog):
    path = tmp_path / "state.json"
    path.write_text('{"pump": {"rule": 3}}')
    keeper = StateFile(path)
    notes, _ = watched(scorer, machine_sound(60, 1.0), keeper, [keeper])
    assert notes.results[0].state == "ok"
    assert "it begins anew" in caplog.text
    path.write_text("not JSON")
    StateFile(path)
    assert "holds no state" in caplog.text


def test_an_unfitted_scorer_is_refused(scorer):
    scorer.memory_bank = None
    with pytest.raises(ValueError, match="not fitted"):
        Monitor(scorer, Sound(machine_sound(0, 1.0)), SETTINGS)
