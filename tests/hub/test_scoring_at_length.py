"""Long recordings in windows, bad ones among good ones, copies among the normal ones, and groups that are left out."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny_model
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import shipped_checkpoint
from na_ssl_hf.hub import feature_extraction_two_channel, normal_recordings, pipeline_anomaly_scoring
from na_ssl_hf.hub.recording import Windows

RATE = 16000


def clip(seed, seconds=0.5, level=0.05):
    return level * np.random.default_rng(seed).standard_normal((2, int(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def parts():
    return tiny_model("na-beats"), TwoChannelFeatureExtractor()


@pytest.fixture
def scorer(parts):
    model, extractor = parts
    return AnomalyScorer(model=model, feature_extractor=extractor)


@pytest.fixture
def warnings(monkeypatch):
    messages: list[str] = []
    for module in (pipeline_anomaly_scoring, feature_extraction_two_channel, normal_recordings):
        monkeypatch.setattr(module.logger, "warning", messages.append)
        monkeypatch.setattr(module.logger, "warning_once", messages.append)
    return messages


# Windows


@pytest.mark.parametrize(
    ("num_samples", "length", "hop", "expected"),
    [
        (50, 10.0, None, [(0, 10), (10, 10), (20, 10), (30, 10), (40, 10)]),
        (25, 10.0, 5.0, [(0, 10), (5, 10), (10, 10), (15, 10)]),
        (27, 10.0, 10.0, [(0, 10), (10, 10), (17, 10)]),
        (10, 10.0, 5.0, [(0, 10)]),
        (3, 10.0, None, [(0, 3)]),
    ],
)
def test_windows_cover_a_recording_to_its_end(num_samples, length, hop, expected):
    assert Windows(length, hop).starts(num_samples, 1) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0.0}, "`window` must be a number of seconds above 0, got 0.0"),
        ({"length": "10"}, "`window` must be"),
        ({"hop": -1.0}, "`hop` must be"),
        ({"hop": 20.0}, "`hop` must be at most `window`"),
        ({"aggregate": "median"}, "`aggregate` must be 'max', 'mean' or a quantile"),
        ({"aggregate": 1.0}, "`aggregate` must be"),
        ({"aggregate": True}, "`aggregate` must be"),
    ],
)
def test_bad_windows_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Windows(**settings)


@pytest.mark.parametrize(
    ("aggregate", "combine"), [("max", np.max), ("mean", np.mean), (0.75, lambda scores: np.quantile(scores, 0.75))]
)
def test_a_long_recording_scores_as_its_windows_aggregated(scorer, aggregate, combine, tmp_path):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    long = clip(50, 2.2)
    long[:, RATE : RATE + 8000] = clip(51, 0.5, level=0.5)
    starts = [0, 4000, 8000, 12000, 16000, 20000, 24000, 27200]
    alone = [scorer(long[:, start : start + 8000]) for start in starts]
    soundfile.write(tmp_path / "long.wav", long.T, RATE, subtype="FLOAT")
    for source in (long, tmp_path / "long.wav", (tmp_path / "long.wav").read_bytes()):
        result = scorer(source, window=0.5, hop=0.25, aggregate=aggregate, batch_size=3)
        scores = [window["score"] for window in result["windows"]]
        np.testing.assert_allclose(scores, [one["score"] for one in alone], atol=1e-6)
        assert result["score"] == pytest.approx(combine(scores), abs=1e-6)
        assert result["is_anomaly"] == (result["score"] > scorer.threshold)
        assert [window["start"] for window in result["windows"]] == [start / RATE for start in starts]
        worst = int(np.argmax(scores))
        assert result["worst_window"] == result["windows"][worst]
        if aggregate == "max":
            np.testing.assert_allclose(result["band_scores"], alone[worst]["band_scores"], atol=1e-6)


def test_windows_of_several_recordings_share_batches_and_keep_their_order(scorer):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    recordings = [clip(60, 1.5), clip(61, 0.5), clip(62, 2.0), clip(63, 0.4)]
    alone = [scorer(recording, window=0.5) for recording in recordings]
    together = scorer(recordings, window=0.5, batch_size=4)
    assert [len(result["windows"]) for result in together] == [3, 1, 4, 1]
    np.testing.assert_allclose([one["score"] for one in together], [one["score"] for one in alone], atol=1e-6)


def test_windows_of_a_fit_are_left_out_together_and_saved(scorer, tmp_path):
    normal = [clip(seed, 1.5) for seed in range(8)]
    scorer.fit(normal, window=0.5, aggregate="mean", false_alarm_rate=0.2, progress=None)
    assert scorer.memory_bank.num_clips_ == 24
    vectors = torch.stack([scorer.embed([one[:, i * 8000 : (i + 1) * 8000] for i in range(3)]) for one in normal])
    for index, self_score in enumerate(scorer.memory_bank.calibration.self_scores):
        others = torch.cat([vectors[:index], vectors[index + 1 :]]).flatten(0, 1)
        expected = MemoryBank().fit(others).score(vectors[index]).mean()
        assert self_score == pytest.approx(float(expected), rel=1e-3)
    result = scorer(clip(99, 1.5))
    assert len(result["windows"]) == 3
    scorer.save_pretrained(tmp_path)
    assert pipeline("anomaly-scoring", model=str(tmp_path))(clip(99, 1.5)) == result
    assert len(scorer(clip(99, 1.5), hop=0.25)["windows"]) == 5


def test_another_cut_than_that_of_the_threshold_is_said(scorer, warnings):
    scorer.fit([clip(seed, 1.0) for seed in range(10)], window=0.5, false_alarm_rate=0.2, progress=None)
    scorer(clip(20, 1.0))
    assert not any("windows" in message for message in warnings)
    scorer(clip(20, 1.0), aggregate="mean")
    assert any("not set on recordings that were cut alike" in message for message in warnings)


def test_long_recordings_are_cut_without_being_asked(scorer, monkeypatch):
    monkeypatch.setattr(pipeline_anomaly_scoring, "LONGEST_WHOLE_SEC", 1.0)
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    assert "windows" not in scorer(clip(30, 1.0))
    assert len(scorer(clip(30, 3.0))["windows"]) == 3
    scorer.fit([clip(seed, 2.0) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    assert scorer.memory_bank.calibration.windows == {"length": 1.0, "hop": None, "aggregate": "max"}


def test_the_position_table_of_eat_limits_the_windows():
    model = tiny_model("na-eat", max_time_patches=8)  # 1.28 s
    scorer = AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor(frontend="eat"))
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    assert len(scorer(clip(40, 5.0))["windows"]) == 4
    with pytest.raises(ValueError, match=r"`window` must be at most 1.28 s"):
        scorer(clip(40, 5.0), window=2.0)


MEMORY = """
import re, resource, sys
from pathlib import Path

def peak():
    # On Linux, ru_maxrss begins with what the process that started this one had; the peak in /proc is this one's own.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

import numpy as np, soundfile
from transformers import pipeline
import na_ssl_hf
from na_ssl_hf.checkpoints import shipped_checkpoint
import torch
torch.set_num_threads(1)
scorer = pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny")))
rng = np.random.default_rng(0)
scorer.fit([0.05 * rng.standard_normal((2, 16000)) for _ in range(20)], progress=None)
before = peak()
result = scorer(sys.argv[1])
after = peak()
print(len(result["windows"]), after - before, after)
"""


def test_twenty_minutes_take_no_more_memory_than_their_windows(tmp_path):
    samples = (0.05 * np.random.default_rng(0).standard_normal((1200 * RATE // 10, 2))).astype(np.float32)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", RATE, 2, "PCM_16") as file:
        for _ in range(10):
            file.write(samples)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "long.wav")], capture_output=True, text=True, check=True
    )
    num_windows, more, whole = map(int, done.stdout.split()[-3:])
    unit = 1024 if sys.platform.startswith("linux") else 1
    assert num_windows == 120
    assert more * unit < 300e6
    assert whole * unit < 1.5e9
    assert resource.getpagesize() > 0


# One bad recording among many


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        soundfile.write(tmp_path / f"{index}.wav", clip(index).T, RATE, subtype="FLOAT")
    (tmp_path / "2.wav").write_bytes((tmp_path / "2.wav").read_bytes()[:5000])
    soundfile.write(tmp_path / "4.wav", clip(4)[:1].T, RATE)
    return [*sorted(tmp_path.glob("*.wav")), tmp_path / "gone.wav"]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_recordings_get_their_error_and_good_ones_their_score(scorer, folder, batch_size):
    scorer.fit([clip(seed) for seed in range(10, 20)], false_alarm_rate=0.2, progress=None)
    results = scorer(folder, batch_size=batch_size, errors="return")
    assert ["error" in result for result in results] == [False, False, True, False, True, False, True]
    for index, message in ((2, "2.wav is truncated"), (4, "4.wav: .*mono"), (6, "gone.wav")):
        assert list(results[index]) == ["error"]
        assert np.all([message.split(":")[0].split(" ")[0] in results[index]["error"]])
    good = [folder[index] for index in (0, 1, 3, 5)]
    expected = [result["score"] for result in scorer(good)]
    np.testing.assert_allclose([results[index]["score"] for index in (0, 1, 3, 5)], expected, atol=1e-6)
    with pytest.raises(OSError, match=r"2\.wav is truncated"):
        scorer(folder, batch_size=batch_size)
    with pytest.raises(ValueError, match="`errors` must be 'raise' or 'return', got 'ignore'"):
        scorer(folder, errors="ignore")


def test_a_single_bad_recording_can_be_returned_too(scorer, folder):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    assert "2.wav" in scorer(folder[2], errors="return")["error"]


def test_fit_leaves_out_what_it_cannot_read_and_lists_it(scorer, folder, warnings):
    domains = ["source"] * 3 + ["target"] * 4
    bank = MemoryBank(separate_domains=True)
    scorer.fit(folder, domains, memory_bank=bank, skip_unreadable=True, false_alarm_rate=0.4, progress=None)
    assert scorer.memory_bank.num_clips_ == 4
    assert scorer.memory_bank.is_target_.tolist() == [False, False, True, True]
    assert [name.rpartition("/")[2] for name, _ in scorer.left_out] == ["2.wav", "4.wav", "gone.wav"]
    assert any("3 of 7 recordings are left out, 4 count" in message for message in warnings)
    with pytest.raises(OSError, match=r"2\.wav"):
        scorer.fit(folder, progress=None)
    with pytest.raises(ValueError, match=r"at least one normal recording, got none; left out: .*2\.wav"):
        scorer.fit(folder[2:3], skip_unreadable=True, progress=None)


def test_oddities_name_their_recordings_and_are_counted(scorer, warnings, tmp_path):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    paths = []
    for index in range(8):
        samples = clip(30 + index)
        samples[1] *= index in (0, 7)
        paths.append(tmp_path / f"clip_{index}.wav")
        soundfile.write(paths[-1], samples.T, RATE)
    warnings.clear()
    scorer(paths, batch_size=3)
    (silent,) = [message for message in warnings if "silent far" in message]
    assert "(6: " in silent
    assert "clip_1.wav" in silent
    assert "clip_0.wav" not in silent
    assert silent.endswith("...)")


# Copies


def test_copies_count_once_whatever_their_files(scorer, warnings, tmp_path):
    normal = [clip(seed) for seed in range(12)]
    scorer.fit(normal, false_alarm_rate=0.2, progress=None)
    expected = scorer(clip(99))
    paths = [tmp_path / f"{index}.wav" for index in range(12)]
    for path, samples in zip(paths, normal, strict=True):
        soundfile.write(path, samples.T, RATE, subtype="FLOAT")
    (tmp_path / "link.wav").symlink_to(paths[0])
    soundfile.write(tmp_path / "copy.wav", normal[3].T, RATE, subtype="FLOAT")
    warnings.clear()
    scorer.fit(
        [*paths, *paths, tmp_path / "link.wav", tmp_path / "copy.wav", str(paths[5])],
        false_alarm_rate=0.2,
        progress=None,
    )
    assert scorer.memory_bank.num_clips_ == 12
    assert scorer(clip(99)) == expected
    assert any("15 of 27" in message and "given before" in message for message in warnings)
    assert "duplicate of" in dict(scorer.left_out)[str(tmp_path / "copy.wav")]


# Groups


def room(index, seed):
    """A recording in a room with a hum of its own."""
    time = np.arange(8000) / RATE
    hum = 0.2 * np.sin(2 * np.pi * (200 + 371 * index) * time)
    return clip(seed) + hum.astype(np.float32)


def test_a_threshold_for_rooms_never_heard_is_higher(scorer):
    recordings = [room(index, 100 * index + seed) for index in range(5) for seed in range(6)]
    rooms = [f"room {index}" for index in range(5) for _ in range(6)]
    within = scorer.fit(recordings, progress=None).threshold
    scorer.fit(recordings, groups=rooms, progress=None)
    assert scorer.threshold > within
    assert scorer.memory_bank.calibration.num_groups == 5
    vectors = scorer.embed(recordings)
    for index, (one, self_score) in enumerate(zip(vectors, scorer.memory_bank.calibration.self_scores, strict=True)):
        others = torch.stack([other for other, name in zip(vectors, rooms, strict=True) if name != rooms[index]])
        assert self_score == pytest.approx(float(MemoryBank().fit(others).score(one[None])), rel=1e-3)


def test_more_groups_than_folds_are_left_out_several_at_a_time(scorer, monkeypatch):
    monkeypatch.setattr(normal_recordings, "MOST_FOLDS", 3)
    recordings = [clip(seed) for seed in range(12)]
    first = scorer.fit(recordings, groups=range(12), false_alarm_rate=0.2, progress=None).memory_bank.calibration
    again = scorer.fit(recordings, groups=range(12), false_alarm_rate=0.2, progress=None).memory_bank.calibration
    assert first == again
    assert len(first.self_scores) == 12


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 9, "`groups` must have one entry for each of the 10 recordings, got 9"),
        (["a"] * 10, "two groups"),
        (torch.tensor(0.5), "`groups` must be a label for each recording"),
        ([["a"]] * 10, "`groups` must be a label for each recording"),
    ],
)
def test_bad_groups_are_named_and_leave_the_scorer_as_it_was(scorer, groups, message):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    bank = scorer.memory_bank
    with pytest.raises(ValueError, match=message):
        scorer.fit([clip(seed) for seed in range(10)], groups=groups, progress=None)
    assert scorer.memory_bank is bank


@pytest.mark.parametrize("rescaling", ["variance_min", "ratio"])
def test_thresholds_with_rescaling_are_of_recordings_that_were_never_in_the_memory(rescaling):
    scorer = AnomalyScorer(
        model=AutoModel.from_pretrained(shipped_checkpoint("na-beats-tiny")),
        feature_extractor=AutoFeatureExtractor.from_pretrained(shipped_checkpoint("na-beats-tiny")),
    )
    bank = MemoryBank(rescaling=rescaling)
    scorer.fit([clip(seed) for seed in range(20)], memory_bank=bank, batch_size=10, progress=None)
    exact = scorer.memory_bank.self_scores(exact=True)
    assert scorer.memory_bank.calibration.self_scores == pytest.approx(exact.tolist())
    assert scorer.threshold != pytest.approx(float(scorer.memory_bank.self_scores().max()), rel=1e-4)


def test_a_memory_that_changes_keeps_the_kind_of_its_threshold(scorer):
    scorer.fit([clip(seed, 1.0) for seed in range(10)], window=0.5, false_alarm_rate=0.2, progress=None)
    scorer.memory_bank.partial_fit(scorer.embed([clip(50)]))
    with pytest.raises(ValueError, match="Call `fit` again"):
        scorer(clip(60))


def test_a_bank_fitted_by_hand_has_no_threshold_any_more(scorer):
    scorer.fit([clip(seed) for seed in range(10)], false_alarm_rate=0.2, progress=None)
    scorer.memory_bank.fit(scorer.embed([clip(seed) for seed in range(20, 30)]))
    with pytest.raises(ValueError, match="Call `fit` again"):
        scorer(clip(60))
