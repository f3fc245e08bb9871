import csv
import math
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from na_ssl_hf.data.dcase.check import check_dcase
from na_ssl_hf.data.dcase.dataset import load_dcase2026
from na_ssl_hf.evaluation.report.submission import evaluate_submission
from na_ssl_hf.simulation.dcase_benchmark import PRESETS, BenchmarkPreset, write_dcase_benchmark

TINY = BenchmarkPreset(2, 1, 2, duration_s=0.5, num_rooms=1, num_places=1)
SETTINGS = {"preset": TINY, "machines": ("fan", "valve"), "installation": "moving", "show_progress": False}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_dcase_benchmark(tmp_path_factory.mktemp("benchmark") / "tiny", **SETTINGS)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pairs_of(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file)}


def write_scores(folder: Path, benchmark: Path, score_of, labelled: bool) -> Path:
    folder.mkdir()
    for path in (benchmark / "ground_truth_attributes").iterdir():
        rows = [
            (f"{stem}.wav" if labelled else number, score_of(f"{stem}.wav")) for number, stem in pairs_of(path).items()
        ]
        out = folder / path.name.replace("ground_truth", "anomaly_score")
        out.write_text("".join(f"{name},{score}\n" for name, score in rows))
    return folder


def test_it_loads_and_nothing_is_damaged(benchmark):
    assert check_dcase(benchmark, show_progress=False).damage == {}
    splits = load_dcase2026(benchmark)
    groups = Counter(zip(splits["train"]["machine"], splits["train"]["domain"], splits["train"]["label"], strict=True))
    assert groups == {(m, d, "normal"): n for m in ("fan", "valve") for d, n in (("source", 2), ("target", 1))}
    groups = Counter(zip(splits["test"]["machine"], splits["test"]["domain"], splits["test"]["label"], strict=True))
    assert groups == {
        (m, d, c): 2 for m in ("fan", "valve") for d in ("source", "target") for c in ("normal", "anomaly")
    }
    for rows in splits.values():
        assert set(rows["num_channels"]) == {2}
        for machine, domain, attributes in zip(rows["machine"], rows["domain"], rows["attributes"], strict=True):
            possible = {"source": {"spd_1", "spd_2", "spd_3"}, "target": {"spd_4"}}[domain]
            assert attributes in ({"noAttribute"} if machine == "valve" else possible)
    assert all(soundfile.info(path).duration == 0.5 for path in splits["test"]["path"])


def test_attribute_tables_are_official(benchmark):
    for machine, values in (("fan", ["spd"]), ("valve", [""])):
        with (benchmark / machine / "attributes_00.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["file_name", "d1p", "d1v"]
        files = {path.relative_to(benchmark).as_posix() for path in (benchmark / machine).rglob("*.wav")}
        assert {row[0] for row in rows} == files
        assert len(rows) == len(files)
        assert {row[1] for row in rows} == set(values)
        assert all((f"_spd_{row[2]}.wav" if row[1] else "_noAttribute.wav") in row[0] for row in rows)


def test_ground_truth_serves_the_evaluator_under_both_names(benchmark, tmp_path):
    perfect = write_scores(tmp_path / "perfect", benchmark, lambda name: int("anomaly" in name), labelled=True)
    assert evaluate_submission(perfect, benchmark)["official_score"] == 1
    # Anomalies of the target domain stay undetected: half of the pairs of every AUC are ties.
    source_only = write_scores(
        tmp_path / "source", benchmark, lambda name: int("source_test_anomaly" in name), labelled=False
    )
    machines = evaluate_submission(source_only, benchmark)["machines"]
    assert {(values["auc_source"], values["auc_target"]) for values in machines.values()} == {(0.75, 0.75)}
    domains = pairs_of(benchmark / "ground_truth_domain" / "ground_truth_fan_section_00_test.csv")
    labels = pairs_of(benchmark / "ground_truth_attributes" / "ground_truth_fan_section_00_test.csv")
    assert list(domains) == [f"section_00_{number:04d}.wav" for number in range(8)]
    assert all((domains[clip] == "1") == label.startswith("section_00_target_test_") for clip, label in labels.items())
    # A name must not tell the label.
    assert list(labels.values()) != sorted(labels.values())


def test_test_rooms_and_snr_follow_the_settings(benchmark):
    with (benchmark / "manifest.csv").open(newline="") as file:
        snr = [float(row["snr_db"]) for row in csv.DictReader(file)]
    assert all(-10 <= value <= 10 for value in snr)
    assert max(snr) - min(snr) > 10


def test_same_seed_same_bytes_and_seed_and_coherence_matter(benchmark, tmp_path):
    first = bytes_of(benchmark)
    assert bytes_of(write_dcase_benchmark(tmp_path / "again", **SETTINGS)) == first
    settings = {**SETTINGS, "machines": ("valve",)}
    file = "valve/test/section_00_target_test_anomaly_0001_noAttribute.wav"
    for name, change in (("seed", {"seed": 1}), ("coherence", {"noise_coherence": 1.0})):
        other = bytes_of(write_dcase_benchmark(tmp_path / name, **settings, **change))
        assert other[file] != first[file]
        assert set(other) == {path for path in first if "fan" not in path}


def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path):
    # Long enough for torch to split a sum between threads.
    settings = {**SETTINGS, "machines": ("bearing",), "preset": BenchmarkPreset(2, 0, 1, 6.0, 1, 1)}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            write_dcase_benchmark(tmp_path / str(threads), **settings)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")


@pytest.mark.parametrize("installation", ["fixed", "moving"])
def test_presets_grow_to_the_published_counts(installation):
    presets = PRESETS[installation]
    full = presets["full"]
    assert (full.num_train_source, full.num_train_target, 4 * full.num_test, full.duration_s) == (990, 10, 200, 10.0)
    sizes = [math.prod((p.num_train_source, p.num_test, p.duration_s, p.num_rooms)) for p in presets.values()]
    assert list(presets) == ["smoke", "small", "full"]
    assert sizes == sorted(sizes)
    assert presets["smoke"].num_train_target >= 3  # SMOTE with two neighbours


def test_only_an_own_benchmark_is_overwritten(benchmark, tmp_path):
    settings = {**SETTINGS, "machines": ("valve",)}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="foreign"):
        write_dcase_benchmark(foreign, **settings, overwrite=True)
    with pytest.raises(FileExistsError, match="not empty"):
        write_dcase_benchmark(benchmark, **settings)
    write_dcase_benchmark(tmp_path / "own", **settings)
    write_dcase_benchmark(tmp_path / "own", **{**settings, "seed": 1}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "own"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "preset must be one of .*'huge'"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"machines": ("toaster",)}, "toaster"),
        ({"installation": "flying"}, "installation must be one of .*'flying'"),
        ({"machine_level_db": 3.0}, "machine_level_db must be left out .*got 3.0"),
        ({"drifts": ("gain",)}, "drifts must be left out .*'gain'"),
        ({"noise_coherence": 2.0}, "coherence"),
        ({"preset": BenchmarkPreset(2, 1, 2, 0.5, 1, 0)}, "num_places must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_dcase_benchmark(tmp_path / "set", **{**SETTINGS, **change})
    assert not list(tmp_path.iterdir())
