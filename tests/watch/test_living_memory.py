"""The memory of a saved scorer: recordings added, forgotten and rolled back, by a command and under a monitor."""

import shutil

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from watched_machine import RATE, machine_sound

from na_ssl_hf.cli import main
from na_ssl_hf.watch.drift import LEAST_WINDOWS, DriftWatch
from na_ssl_hf.watch.living_memory import learn_event
from na_ssl_hf.watch.monitor import Monitor, MonitorSettings
from na_ssl_hf.watch.sources import Block

WHINE = 0.1


@pytest.fixture
def folder(scorer_folder, tmp_path):
    return shutil.copytree(scorer_folder, tmp_path / "scorer")


def whining(path, seed):
    soundfile.write(path, machine_sound(seed, 1.0, fault=WHINE).T, RATE, subtype="FLOAT")
    return path


def score_of(folder, seed):
    scorer = pipeline("anomaly-scoring", model=str(folder), device="cpu")
    return scorer({"array": machine_sound(seed, 1.0, fault=WHINE), "sampling_rate": RATE})


def run(*arguments):
    return main(["bank", *map(str, arguments)])


def test_what_was_added_is_normal_until_it_is_rolled_back(folder, tmp_path, capsys):
    before = score_of(folder, 80)
    assert before["is_anomaly"]
    (tmp_path / "new").mkdir()
    for seed in range(81, 86):
        whining(tmp_path / "new" / f"{seed}.wav", seed)
    assert run("add", folder, tmp_path / "new", "--device", "cpu") == 0
    assert "version 1: 29 recordings, threshold " in capsys.readouterr().out
    assert score_of(folder, 80)["score"] < before["score"] / 3
    assert run("forget", folder, 0, 1, "--device", "cpu") == 0
    capsys.readouterr()
    assert run("history", folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 0: 24 recordings",
        "version 1: 29 recordings, 5 added, 0 removed",
        "version 2: 27 recordings, 0 added, 2 removed (now)",
    ]
    assert run("rollback", folder, 0, "--device", "cpu") == 0
    assert score_of(folder, 80) == before


def test_bad_changes_are_one_line_errors_and_change_nothing(folder, tmp_path, capsys):
    file = whining(tmp_path / "one.wav", 90)
    content = (folder / "memory_bank.safetensors").read_bytes()
    for arguments, message in [
        (("forget", folder, 99), "different positions in 0..23"),
        (("rollback", folder, 3), "must be an int in 0..0"),
        (("add", folder, tmp_path / "nowhere"), "no file or folder"),
        (("add", folder, file, "--max-clips", 1), "`max_clips` must be a whole number of at least 2, got 1"),
        (("history", tmp_path), "There is no memory_bank.safetensors"),
    ]:
        assert run(*arguments) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "memory_bank.safetensors").read_bytes() == content


def watched(scorer, folder, sound, settings, after_two_windows):
    """Watches four times a sound of one window, in whose middle an operator runs a command; returns the results."""
    results = []

    class Operator:
        def window(self, result, samples):
            results.append(result)
            if len(results) == 2:
                assert after_two_windows() == 0

        opened = event = lambda self, what: None
        close = lambda self: None  # noqa: E731

    class Source:
        name, is_live = "test", False

        def blocks(self):
            yield Block(np.tile(sound, 4), RATE, begins=True)

        def close(self):
            pass

    Monitor(scorer, Source(), settings, [Operator()], scorer_name=str(folder)).run()
    return results


def test_a_monitor_goes_on_with_the_changed_memory(folder, tmp_path):
    scorer = pipeline("anomaly-scoring", model=str(folder), device="cpu")
    file = tmp_path / "same.wav"
    sound = machine_sound(91, 1.0, fault=WHINE)
    soundfile.write(file, sound.T, RATE, subtype="FLOAT")
    settings = MonitorSettings(window=1.0, hop=1.0)
    results = watched(
        scorer, folder, sound, settings, after_two_windows=lambda: run("add", folder, file, "--device", "cpu")
    )
    scores = [result.score for result in results]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert scores[2] < scores[0] / 10


def test_a_memory_that_cannot_be_used_leaves_the_old_one_in_place(folder, caplog):
    scorer = pipeline("anomaly-scoring", model=str(folder), device="cpu")
    sound = machine_sound(94, 1.0, fault=WHINE)
    # The promise that is asked for needs more recordings than are left.
    settings = MonitorSettings(window=1.0, hop=1.0, false_alarms_per=3600.0)
    results = watched(
        scorer, folder, sound, settings, after_two_windows=lambda: run("forget", folder, *range(10), "--device", "cpu")
    )
    assert "the changed memory cannot be used" in caplog.text
    told = {(result.score, result.p_value, result.threshold) for result in results}
    assert (len(results), len(told)) == (4, 1)
    assert scorer.memory_bank.num_clips_ == 24


def test_the_sound_of_an_event_is_learned_window_by_window(folder, tmp_path):
    scorer = pipeline("anomaly-scoring", model=str(folder), device="cpu")
    sound = tmp_path / "event.flac"
    soundfile.write(sound, machine_sound(92, 3.5, fault=WHINE).T, RATE)
    before = score_of(folder, 93)["score"]
    assert learn_event(scorer, folder, sound, 1.0).added == 3
    assert score_of(folder, 93)["score"] < before / 3


def test_a_drift_of_the_p_values_is_told_and_steady_ones_are_not():
    pytest.importorskip("river")
    generator = np.random.default_rng(0)
    steady, moved = generator.uniform(0, 1, 3000), generator.uniform(0, 0.5, 600)
    watch = DriftWatch()
    assert not any(watch.step(p_value) for p_value in steady)
    lines = [line for line in map(watch.step, moved) if line]
    assert lines
    assert "na-ssl bank add" in lines[0]
    early = DriftWatch()
    assert not any(early.step(p_value) for p_value in [1.0] * (LEAST_WINDOWS // 2) + [0.0] * (LEAST_WINDOWS // 2 - 1))
