"""The benchmark of installations: sites are scored once, and every difference is paired."""

import json

import numpy as np
import pytest
import torch

from benchmarks import installations
from benchmarks.installations import CANCELLERS, MACHINE_OFF, NONE, Case, read, run, system_of, tables
from benchmarks.separation import METHODS, separated

CASE = Case(5, "fan", 1.0, 12.0, -5.0)


@pytest.fixture
def few_clips(monkeypatch):
    for name, number in {"NUM_SOURCE": 6, "NUM_TARGET": 3, "NUM_TEST": 2, "CLIP_S": 1.5, "NUM_DRAWS": 50}.items():
        monkeypatch.setattr(installations, name, number)


def row_of(case, system, canceller, scores, backend="nearest"):
    return {"case": case, "system": system, "canceller": canceller, "backend": backend, "scores": list(scores)}


def test_a_site_is_scored_once_and_a_cut_line_again(few_clips, tmp_path):
    out, systems = tmp_path / "sites.jsonl", [system_of("logmel")]
    run([CASE], systems, [NONE, "filter"], out)
    rows = read(out)
    assert {(row["canceller"], row["backend"]) for row in rows} == {
        ("filter", "nearest"),
        *((NONE, backend) for backend in installations.BACKENDS),
    }
    assert all(len(row["scores"]) == 8 for row in rows)
    once = out.read_bytes()
    run([CASE], systems, [NONE, "filter"], out)
    assert out.read_bytes() == once
    out.write_bytes(once[:-20])
    run([CASE], systems, [NONE, "filter"], out)
    assert [row["scores"] for row in read(out)][-1] == rows[-1]["scores"]


def test_only_the_last_canceller_hears_the_noise_alone(few_clips):
    places = {
        split: installations.synthesize_places(split, 5, 1.5, installations.LEAST_PLACES, False)
        for split in ("train", "test")
    }
    clips = installations.recorded(CASE, places)
    assert {split: tuple(of_split.shape) for split, of_split in clips.items()} == {
        "train": (9, 2, 24000),
        "test": (8, 2, 24000),
        "supplemental": (4, 2, 24000),
    }
    together = {name: cancel(clips["test"]) for name, cancel in installations.cancelling(clips, set(CANCELLERS))}
    assert list(together) == list(CANCELLERS)
    assert torch.equal(together[NONE], clips["test"])
    for name in CANCELLERS:
        [(_, alone)] = installations.cancelling(clips, {name})
        assert torch.equal(alone(clips["test"]), together[name])
    assert not torch.equal(together[MACHINE_OFF], together["installation"])


def test_the_base_and_the_model_of_one_checkpoint_are_two_systems():
    base, model = system_of("beats=na-beats-tiny"), system_of("na-beats=na-beats-tiny:1")
    assert (base.name, model.name) == ("beats=na-beats-tiny", "na-beats=na-beats-tiny:1")
    clips = 0.1 * torch.randn(2, 2, 16000, generator=torch.Generator().manual_seed(0))
    other_far = torch.stack([clips[:, 0], clips[:, 1].flip(-1)], dim=1)
    assert torch.equal(base.embed(clips), base.embed(other_far))
    assert not torch.equal(model.embed(clips), model.embed(other_far))


def test_levels_and_snrs_take_turns_or_are_crossed():
    class Options:
        seed, machines, coherence, machine_level, snr, full = [1, 2, 3], ["fan", "valve"], [1.0], [-3.0, 12.0], [0.0], 0

    taken = list(installations._cases(Options))
    assert len(taken) == 6
    assert {(case.machine, case.level) for case in taken} == {("fan", -3.0), ("valve", 12.0)}
    Options.full = True
    assert len(list(installations._cases(Options))) == 12


def test_differences_are_paired_and_the_worst_machine_is_named():
    random = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0, 0.0, 1.0], installations.NUM_TEST)
    rows = []
    for seed, machine in ((1, "fan"), (1, "valve"), (2, "fan"), (2, "valve")):
        case = Case(seed, machine, 1.0, None, 0.0)
        chance = random.standard_normal(len(labels))
        better, worse = (labels, chance) if machine == "fan" else (chance, -labels)
        for canceller, scores in ((NONE, chance), ("filter", chance), ("auto", better), ("installation", worse)):
            rows.append(row_of(case, "logmel", canceller, scores))
    table = tables(json.loads(json.dumps(rows)), ["coherence", "machine"])
    lines = {line.split("|")[2].strip(): line for line in table.split("\n\n")[0].splitlines()[2:]}
    assert "(+0.0 [+0.0, +0.0]) | +0.0 (fan) |" in lines["filter"]
    assert lines["auto"].endswith("| +0.0 (valve) |")
    assert lines["installation"].rstrip(" |").endswith("(valve)")
    assert float(lines["installation"].split("|")[-2].split("(")[0]) < -20
    assert "100.0 (+" in table.split("\n\n")[1]


def test_a_grid_has_a_line_for_every_condition_and_counts_its_sites():
    labels = np.repeat([0.0, 1.0, 0.0, 1.0], installations.NUM_TEST)
    conditions = [(1, 1.0, 12.0, 0.0), (2, 1.0, 12.0, 0.0), (1, 1.0, -3.0, 0.0), (1, 0.0, -3.0, 5.0)]
    rows = [
        row_of(Case(seed, "fan", coherence, level, snr), "logmel", canceller, scores)
        for seed, coherence, level, snr in conditions
        for canceller, scores in ((NONE, -labels), ("auto", labels))
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables(rows, ["grid"]).splitlines()[2:]]
    assert [line[:5] for line in lines] == [
        ["logmel", "1", "12", "0", "2"],
        ["logmel", "1", "-3", "0", "1"],
        ["logmel", "0", "-3", "5", "1"],
    ]
    assert all(line[5] == "0.0" and line[6].startswith("100.0 (+100.0") for line in lines)


def test_snrs_of_the_challenge_are_recorded_and_have_a_column_beside_others(few_clips, tmp_path):
    run(
        [Case(1, "fan", 1.0, None, snr) for snr in (None, 5.0)],
        [system_of("logmel")],
        [NONE],
        tmp_path / "sites.jsonl",
        (),
    )
    rows = read(tmp_path / "sites.jsonl")
    assert rows[0]["scores"] != rows[1]["scores"]
    assert tables(rows, ["snr"]).splitlines()[0].startswith("| system | canceller | snr challenge | snr 5 |")
    assert {line.split("|")[4].strip() for line in tables(rows, ["grid"]).splitlines()[2:]} == {"challenge", "5"}


def test_backends_stand_beside_the_nearest_neighbours_of_their_own_canceller():
    labels = np.repeat([0.0, 1.0, 0.0, 1.0], installations.NUM_TEST)
    machines = {machine: Case(1, machine, 1.0, 12.0, 0.0) for machine in ("fan", "valve")}
    scores = {
        ("nearest", "fan"): labels,
        ("nearest", "valve"): labels,
        ("PCA", "fan"): labels,
        ("PCA", "valve"): -labels,
    }
    rows = [row_of(machines[machine], "logmel", NONE, scores[backend, machine], backend) for backend, machine in scores]
    rows += [row_of(case, "logmel", "auto", -labels) for case in machines.values()]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables(rows, ["backends"]).splitlines()]
    assert lines[0] == ["canceller", "system", *installations.BACKENDS]
    assert [line[:3] for line in lines[2:]] == [[NONE, "logmel", "100.0"], ["auto", "logmel", "0.0"]]
    pca = lines[2][lines[0].index("PCA")]
    assert pca.startswith("-100.0 [-100.0, +0.0]")
    assert pca.endswith("; -100.0 (valve)")
    assert set(lines[3][3:]) == {"-"}


@pytest.mark.parametrize("method", METHODS)
def test_separation_leaves_the_machine_of_two_sounds_that_are_only_mixed(method):
    random = np.random.default_rng(0)
    strokes = np.repeat(random.random(20) < 0.4, 2000) * random.standard_normal(40000)
    noise = random.standard_normal(40000) * (1 + np.sin(np.arange(40000) / 3000))
    recording = torch.from_numpy(np.stack([strokes + 0.7 * noise, 0.3 * strokes + noise])).float()[None]
    left = separated(recording, method)
    assert left.shape == recording.shape
    assert torch.equal(left[:, 1], recording[:, 1])
    error = np.mean((left[0, 0].numpy() - strokes) ** 2) / np.mean((0.7 * noise) ** 2)
    assert error < 0.2
