"""`na-ssl export`: the proof of equal scores, refusals that leave nothing behind, and graphs of 8 bits."""

import copy
import json

import numpy as np
import pytest
import torch
from sites import run, tiny_scorer, write_clip

from na_ssl_edge import Scorer
from na_ssl_hf import MemoryBank
from na_ssl_hf.export import ProofRecordings, export_scorer
from na_ssl_hf.export.proof import Proof, auc, compare_scores
from na_ssl_hf.export.quantise import _rounded


def settings_of(folder):
    return json.loads((folder / "scorer.json").read_text())


def test_an_export_holds_graph_memory_settings_and_a_card_with_the_proof(site):
    assert sorted(path.name for path in site.exported.iterdir()) == [
        *("README.md", "memory.npz", "model.onnx", "scorer.json")
    ]
    settings = settings_of(site.exported)
    assert settings["format_version"] == 1
    assert settings["graph"]["num_samples"] is None  # any length
    assert settings["calibration"]["threshold"] == site.scorer.threshold
    card = (site.exported / "README.md").read_text()
    assert "Against torch on 20 normal recordings, each scored by a memory of the others, and 8 labelled ones." in card
    assert "| AUC of torch, of this export | 1.0000, 1.0000 |" in card
    assert "CPU time / torch's" in card


def test_a_drop_above_the_limit_leaves_the_old_folder_as_it_was(site, graph_of_site, tmp_path, monkeypatch, capsys):
    from na_ssl_hf.export import exporting

    before = {path.name: path.read_bytes() for path in site.exported.iterdir()}
    # The figures of an export that turns the ranking around.
    monkeypatch.setattr(exporting, "_scores", lambda *_: ([0.1, 0.2], [0.2, 0.1], [0.1, 0.9, 0.8], [0.9, 0.1, 0.2]))
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "file,label\n"
        + "".join(
            f"{file},{kind}\n"
            for file, kind in zip([site.new[0], *site.odd[:2]], ["normal", "anomaly", "1"], strict=True)
        )
    )
    arguments = ("export", site.folder / "scorer", site.exported, "--prove", *site.normal[:6])
    assert run(*arguments, "--labels", labels) == 1
    assert "`max_drop` is 1 %, but the AUC drops by 100 %" in capsys.readouterr().err
    monkeypatch.setattr(exporting, "_scores", lambda *_: ([0.1, 0.2], [0.2, 0.1], [], []))
    assert run(*arguments[:2], tmp_path / "new", *arguments[3:]) == 1
    assert "but the rank correlation drops by 200 %" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in site.exported.iterdir()} == before
    assert [path for path in site.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["weights", "products"])
def test_eight_bits_bring_a_memory_and_a_threshold_of_their_own(kind, site, graph_of_site, tmp_path):
    options = ("--int8", "--normal", *site.new, "--anomalous", *site.odd)
    if kind == "products":
        options = ("--int8", kind, "--max-drop", 100)
    assert run("export", site.folder / "scorer", tmp_path / "int8", *options, "--prove", *site.normal) == 0
    settings = settings_of(tmp_path / "int8")
    assert (settings["graph"]["precision"], settings["graph"]["quantised"]) == ("int8", kind)
    assert settings["graph"]["num_quantised"] > 0
    assert settings["calibration"]["threshold"] != site.scorer.threshold
    sizes = [(folder / "model.onnx").stat().st_size for folder in (tmp_path / "int8", site.exported)]
    assert sizes[0] < sizes[1]
    # A normal recording is in the memory of the quantised model, and would not be near one in float32.
    edge = Scorer(tmp_path / "int8")
    own, other = edge(site.normal[:3]), edge(site.odd[:3])
    assert max(result["score"] for result in own) < min(result["score"] for result in other)


def test_bad_requests_are_named_and_write_nothing(site, tmp_path, capsys):
    scorer, out = site.folder / "scorer", tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for arguments, message in (
        ((scorer, out, "--no-proof", "--opset", 9), "`opset` must be a whole number from 18 to"),
        ((scorer, out, "--no-proof", "--max-drop", -1), "`max_drop` must be a number of percent"),
        ((scorer, out, "--no-proof", "--int8"), "`int8` needs normal recordings to fit the memory with, got none"),
        (
            (scorer, out, "--to", "openvino", "--int8", "products", "--prove", *site.normal),
            "`int8='products'` needs to='onnx', got to='openvino'",
        ),
        ((scorer, tmp_path / "full", "--no-proof"), "must be new, empty or an earlier export"),
        ((scorer, out, "--prove", *site.normal, "--anomalous", *site.odd), "must hold normal and anomalous recordings"),
        ((scorer, out, "--prove", tmp_path / "nowhere"), "no file or folder"),
        (("na-eat-tiny", out, "--no-proof"), "This scorer is not fitted yet"),
    ):
        assert run("export", *arguments) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"
    with pytest.raises(SystemExit):
        run("export", scorer, out)


def test_an_unknown_way_to_quantise_is_named(site, tmp_path):
    with pytest.raises(ValueError, match=r"`int8` must be None or one of \['weights', 'products'\], got True"):
        export_scorer(site.scorer, tmp_path / "out", ProofRecordings(site.normal), int8=True)
    assert not (tmp_path / "out").exists()


def test_rounded_weights_are_within_half_a_step_and_channels_of_zeros_stay_zero():
    weight = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32) * np.logspace(-6, 3, 30)[None]
    weight[:, 3] = 0
    numbers, scales = _rounded(weight.astype(np.float32), axis=1)
    assert numbers.dtype == np.int8
    assert np.abs(numbers).max(axis=0).tolist() == [127 if column != 3 else 0 for column in range(30)]
    assert (np.abs(numbers * scales - weight) <= 0.5001 * scales).all()
    transposed, its_scales = _rounded(weight.T.astype(np.float32), axis=0)
    np.testing.assert_array_equal(transposed, numbers.T)
    np.testing.assert_array_equal(its_scales, scales)


def test_missing_packages_are_named_before_any_work(site, tmp_path, monkeypatch):
    from na_ssl_hf.export import exporting

    recordings = ProofRecordings(site.normal)
    monkeypatch.setattr(exporting, "whole_folder", None)  # no folder is begun
    for module, message, settings in (
        ("onnxscript", "needs the package onnxscript", {}),
        ("na_ssl_edge.graph", "needs the package na-ssl-edge|with the package na-ssl-edge", {}),
        ("onnxruntime.quantization", "needs the quantiser of ONNX Runtime", {"int8": "weights"}),
        ("openvino", "needs the package openvino", {"to": "openvino"}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, module, None)
            with pytest.raises(ValueError, match=message):
                export_scorer(site.scorer, tmp_path / "out", recordings, **settings)
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_quantised_model_is_refused(site, tmp_path):
    scorer = copy.copy(site.scorer)
    scorer.model = torch.ao.quantization.quantize_dynamic(scorer.model, {torch.nn.Linear}, dtype=torch.qint8)
    scorer.fit([str(path) for path in site.normal[:3]], threshold_method="quantile", progress=None)
    with pytest.raises(ValueError, match="weights in floating point, got quantised ones"):
        export_scorer(scorer, tmp_path / "out", ProofRecordings(site.normal))
    assert not (tmp_path / "out").exists()


def test_without_recordings_the_card_says_that_nothing_is_proven(site, graph_of_site, tmp_path, capsys):
    assert run("export", site.folder / "scorer", tmp_path / "out", "--no-proof") == 0
    assert "not proven" in capsys.readouterr().out
    assert "**not proven**" in (tmp_path / "out" / "README.md").read_text()
    assert Scorer(tmp_path / "out")(site.new)[0]["score"] == Scorer(site.exported)(site.new)[0]["score"]


@pytest.mark.parametrize("model_type", ["beats", "dasheng", "efficientat"])
def test_other_encoders_score_alike(model_type, tmp_path):
    rate = 32000 if model_type == "efficientat" else 16000
    normal = [write_clip(tmp_path / f"{index}.wav", index, seconds=1.0, rate=rate) for index in range(6)]
    new = write_clip(tmp_path / "new.wav", 50, seconds=1.0, tone=0.1, rate=rate)
    scorer = tiny_scorer(tmp_path / "scorer", model_type, normal, MemoryBank(), threshold_method="quantile")
    exported = export_scorer(scorer, tmp_path / "out", ProofRecordings(normal))
    assert exported.proof.rank_correlation > 0.999
    assert Scorer(tmp_path / "out")(new)["score"] == pytest.approx(scorer(str(new))["score"], abs=1e-4)
    if exported.num_samples is not None:
        with pytest.raises(ValueError, match=f"of {exported.num_samples} samples"):
            Scorer(tmp_path / "out")(write_clip(tmp_path / "long.wav", 1, seconds=1.5, rate=rate))


def test_comparison_of_scores_and_the_drop_follow_their_definitions():
    before = np.linspace(0, 1, 21)
    assert compare_scores(before, before, False) == (0.0, 0.0, pytest.approx(1.0))
    largest, median, rank = compare_scores(before, before + 0.09, False)
    assert (largest, median, rank) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(1.0))
    # Scores of another memory have another scale.
    assert compare_scores(before, 3 * before + 1, True)[0] == pytest.approx(0.0, abs=1e-9)
    assert compare_scores(before, before[::-1], False)[2] == pytest.approx(-1.0)
    assert auc([0.1, 0.4, 0.3, 0.9], [False, False, True, True]) == 0.75
    figures = {"largest_change": 0.0, "median_change": 0.0, "size_ratio": 1.0, "time_ratio": 1.0}
    assert Proof(5, 4, rank_correlation=0.5, auc=0.8, auc_before=0.9, **figures).drop == pytest.approx(10)
    assert Proof(5, 0, rank_correlation=0.98, auc=None, auc_before=None, **figures).drop == pytest.approx(2)
