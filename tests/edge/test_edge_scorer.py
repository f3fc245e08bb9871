"""na-ssl-edge scores an exported folder as na-ssl scores the scorer, in a process without torch as well."""

import csv
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from sites import RATE, run, write_clip

import na_ssl_edge
import na_ssl_hf
from na_ssl_edge import Scorer
from na_ssl_edge.cli import main as edge_main
from na_ssl_edge.graph import load_graph
from na_ssl_edge.oddities import OddityReport, far_leads_and_is_louder, find_oddities
from na_ssl_hf.hub import feature_extraction_two_channel as extraction

EDGE, HOUSE = Path(na_ssl_edge.__file__).parent, Path(na_ssl_hf.__file__).parent


def environment_of_edge(folder: Path) -> Path:
    """Make a virtual environment that holds na-ssl-edge and what it says that it needs; return its interpreter."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    project = EDGE.parent.parent
    (packages / "edge.pth").write_text(str(EDGE.parent))
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    wanted = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = set()
    while wanted:
        needed = Requirement(wanted.pop())
        if needed.name in installed or not (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            continue
        installed.add(needed.name)
        distribution = importlib.metadata.distribution(needed.name)
        wanted += distribution.requires or []
        for name in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            if not (packages / name).exists():
                (packages / name).symlink_to(distribution.locate_file(name))
    return folder / "bin" / "python"


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bad_files(site, tmp_path_factory):
    """Files that each break another rule, and one at another rate."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.wav").write_text("no sound")
    content = site.new[0].read_bytes()
    (folder / "half.wav").write_bytes(content[: len(content) // 2])
    noise = 0.05 * np.random.default_rng(0).standard_normal((8000, 2))
    soundfile.write(folder / "mono.wav", noise[:, 0], RATE)
    soundfile.write(folder / "short.wav", noise[:100], RATE)
    soundfile.write(folder / "empty.wav", noise[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(noise > 0.1, np.nan, noise), RATE, subtype="FLOAT")
    soundfile.write(folder / "rate.wav", noise, 8000)
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    return folder


def test_tables_equal_those_of_na_ssl_score_also_for_bad_files(site, bad_files, tmp_path, capsys):
    long = write_clip(tmp_path / "long.wav", 300, seconds=3.0)
    for name, options in {"whole": (), "windows": ("--window", 1, "--hop", 0.5, "--aggregate", 0.5)}.items():
        files = [*site.new, *site.odd, *site.normal[:2], long, bad_files]
        errors = []
        for command, folder in ((run, site.folder / "scorer"), (edge_run, site.exported)):
            table = tmp_path / f"{name}_{command.__name__}.csv"
            assert command("score", folder, *files, "--csv", table, *options) == 1
            errors.append(capsys.readouterr().err.splitlines()[-1].partition(": ")[2])
        assert errors[0] == errors[1]
        wanted, found = (rows(tmp_path / f"{name}_{command}.csv") for command in ("run", "edge_run"))
        assert [list(row) for row in found] == [list(row) for row in wanted]
        assert sum(bool(row["error"]) for row in wanted) == 8
        for row, other in zip(wanted, found, strict=True):
            score, other_score = row.pop("score"), other.pop("score")
            assert row == other
            assert score == other_score == "" or float(other_score) == pytest.approx(float(score), abs=1e-4)


def edge_run(*arguments):
    return edge_main([str(argument) for argument in arguments])


def test_results_equal_those_of_the_pipeline(site):
    scorer = Scorer(site.exported)
    files = [*site.new, *site.odd]
    wanted, found = site.scorer(files), scorer(files)
    spread = max(result["score"] for result in wanted) - min(result["score"] for result in wanted)
    for one, other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        assert other["score"] == pytest.approx(one["score"], abs=1e-3 * spread)
        assert other["band_scores"] == pytest.approx(one["band_scores"], abs=1e-3 * spread)
        assert (other["p_value"], other["is_anomaly"]) == (one["p_value"], one["is_anomaly"])
    assert scorer.threshold == site.scorer.threshold
    np.testing.assert_allclose(scorer.embed(files), site.scorer.embed(files), atol=1e-5)
    samples, _ = soundfile.read(files[0], dtype="float32", always_2d=True)
    assert scorer(samples.T)["score"] == found[0]["score"]
    at_rate = {"array": samples.T, "sampling_rate": RATE}
    assert scorer([at_rate])[0] == found[0]
    with pytest.raises(ValueError, match=r"must be a path, an array"):
        scorer([3])
    with pytest.raises(ValueError, match="`window` must be"):
        scorer(files[0], window=-1.0)


def test_other_rates_are_resampled_on_request_as_the_pipeline_does(site, bad_files, tmp_path):
    file = bad_files / "rate.wav"
    assert run("score", site.folder / "scorer", file, "--csv", tmp_path / "a.csv", "--resample") == 0
    assert edge_run("score", site.exported, file, "--csv", tmp_path / "b.csv", "--resample") == 0
    (wanted,), (found,) = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert float(found["score"]) == pytest.approx(float(wanted["score"]), abs=1e-4)


def test_it_scores_in_an_environment_without_torch_with_little_memory_and_is_imported_at_once(site, tmp_path):
    code = """
import importlib.util, json, sys, time
start = time.process_time()
import na_ssl_edge
seconds = time.process_time() - start
from na_ssl_edge.cli import main
status = main(["score", *sys.argv[1:]])
lacks = [name for name in ("torch", "transformers", "scipy", "na_ssl_hf") if importlib.util.find_spec(name) is None]
peak = dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]
print(json.dumps([status, seconds, lacks, int(peak)]))
"""
    table = tmp_path / "scores.csv"
    done = subprocess.run(
        [environment_of_edge(tmp_path / "venv"), "-c", code, site.exported, *site.new, "--csv", table],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    status, seconds, lacks, kilobytes = json.loads(done.stdout.splitlines()[-1])
    assert (status, lacks) == (0, ["torch", "transformers", "scipy", "na_ssl_hf"])
    assert seconds < 0.5
    assert kilobytes < 200_000
    scores = [float(row["score"]) for row in rows(table)]
    assert scores == pytest.approx([result["score"] for result in site.scorer(site.new)], abs=1e-4)


def test_warnings_are_those_of_the_pipeline(site, tmp_path, caplog):
    random = np.random.default_rng(0)
    noise = 0.05 * random.standard_normal((16000, 2))
    cases = {
        "silent far": noise * [1, 0],
        "silent close": noise * [0, 1],
        "identical": noise[:, :1] * [1, 1],
        "clipped": np.clip(60 * noise, -1, 1),
        "swapped": np.stack([0.2 * np.roll(noise[:, 0], 20), noise[:, 0]], axis=1) + 1e-3 * noise[:, ::-1],
    }
    for oddity, samples in cases.items():
        channels = samples.T.astype(np.float32)
        wanted = extraction.find_oddities(extraction.torch.from_numpy(channels)[None], RATE)
        assert find_oddities(channels, RATE) == [name for name, shown in wanted.items() if shown.any()]
        assert oddity in find_oddities(channels, RATE)
        soundfile.write(tmp_path / f"{oddity}.wav", samples, RATE, subtype="FLOAT")
    assert extraction.ODDITIES == na_ssl_edge.oddities.ODDITIES
    assert not far_leads_and_is_louder(cases["swapped"].T[::-1].astype(np.float32), RATE)
    for usual_share, warns in ((0.05, True), (0.06, False)):
        caplog.clear()
        report = OddityReport(RATE, None, (), False, usual_share)
        report.note("pair", cases["swapped"].T.astype(np.float32))
        report.report()
        assert bool(caplog.messages) == warns
    with caplog.at_level(logging.WARNING):
        Scorer(site.exported)(sorted(tmp_path.glob("*.wav")))
    assert f"{extraction.ODDITIES['clipped']} (1: {tmp_path / 'clipped.wav'})" in caplog.messages
    assert any(message.startswith("The far microphone is louder") for message in caplog.messages)


def test_damaged_and_foreign_folders_are_named(site, tmp_path):
    def folder(name):
        return shutil.copytree(site.exported, tmp_path / name)

    def settings_of(path, **changes):
        settings = json.loads((path / "scorer.json").read_text())
        (path / "scorer.json").write_text(json.dumps(settings | changes))
        return path

    with pytest.raises(OSError, match=r"must be a folder that `na-ssl export` wrote"):
        Scorer(site.folder / "scorer")
    with pytest.raises(OSError, match="exported folder of version 1, got 2"):
        Scorer(settings_of(folder("version"), format_version=2))
    with pytest.raises(OSError, match="damaged exported folder"):
        Scorer(settings_of(folder("calibration"), calibration={}))
    text = folder("text")
    (text / "scorer.json").write_text("{")
    with pytest.raises(OSError, match="is damaged"):
        Scorer(text)
    weight = folder("weight")
    content = bytearray((weight / "model.onnx").read_bytes())
    # Half-way lie weights of the encoder; the graph stays one that can be loaded.
    content[len(content) // 2] ^= 0xFF
    (weight / "model.onnx").write_bytes(content)
    load_graph(weight / "model.onnx", "onnx")
    with pytest.raises(OSError, match="is damaged: its checksum must be"):
        Scorer(weight)
    graph = folder("graph")
    (graph / "model.onnx").write_bytes((graph / "model.onnx").read_bytes()[:1000])
    with pytest.raises(OSError, match="cannot be loaded as an ONNX graph"):
        Scorer(graph)
    (graph / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="No graph at"):
        Scorer(graph)
    memory = folder("memory")
    (memory / "memory.npz").write_bytes(b"PK")
    with pytest.raises(OSError, match="damaged exported folder"):
        Scorer(memory)
    with pytest.raises(ValueError, match="`format` of a graph must be one of"):
        load_graph(site.exported / "model.onnx", "tflite")


# What the runtime shares with na_ssl_hf are copies, because it must not need it.
COPIES = {
    "sound_reader.py": "hub/sound_reader.py",
    "whole_files.py": "hub/whole_files.py",
    "sound_files.py": "data/sound_files.py",
    "tables.py": "tables.py",
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_the_same_as_in_the_house(name):
    house = (HOUSE / COPIES[name]).read_text(encoding="utf-8").replace("from .hub.whole_files", "from .whole_files")
    assert (EDGE / name).read_text(encoding="utf-8") == house
