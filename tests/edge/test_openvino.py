"""Exports for OpenVINO score as those for ONNX Runtime, in float32 and with weights of 8 bits."""

import json
import shutil

import numpy as np
import pytest

from na_ssl_edge import Scorer
from na_ssl_edge.graph import load_graph
from na_ssl_hf.export import ProofRecordings, export_scorer
from na_ssl_hf.export.openvino_graph import write_openvino

pytest.importorskip("openvino")


def test_a_graph_in_float_gives_the_vectors_of_torch_at_any_length(site, tmp_path):
    write_openvino(site.exported / "model.onnx", tmp_path / "model.xml")
    graph, onnx_graph = (
        load_graph(tmp_path / "model.xml", "openvino", 1),
        load_graph(site.exported / "model.onnx", "onnx", 1),
    )
    random = np.random.default_rng(0)
    for num_samples in (3000, 8000, 16123):
        wave = 0.1 * random.standard_normal((2, num_samples)).astype(np.float32)
        np.testing.assert_allclose(graph(wave), onnx_graph(wave), atol=1e-5)
    with pytest.raises(OSError, match="failed on a recording of 8000 samples"):
        graph(np.zeros((3, 8000), dtype=np.float32))


def test_an_export_with_weights_of_eight_bits_is_proven_and_damage_is_named(site, graph_of_site, tmp_path):
    recordings = ProofRecordings(site.normal, labelled=[*site.new, *site.odd], is_anomalous=[False] * 4 + [True] * 4)
    exported = export_scorer(site.scorer, tmp_path / "out", recordings, to="openvino", int8="weights")
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        *("README.md", "memory.npz", "model.bin", "model.xml", "scorer.json")
    ]
    assert exported.proof.auc == exported.proof.auc_before == 1.0
    graph = json.loads((exported.folder / "scorer.json").read_text())["graph"]
    assert (graph["format"], graph["precision"], graph["quantised"]) == ("openvino", "int8", "weights")
    sizes = [sum(path.stat().st_size for path in folder.glob("model.*")) for folder in (exported.folder, site.exported)]
    assert sizes[0] < sizes[1]
    scorer = Scorer(exported.folder)
    for one, other in zip(site.scorer(site.odd), scorer(site.odd), strict=True):
        assert (one["p_value"], one["is_anomaly"]) == (other["p_value"], other["is_anomaly"])

    for name in ("model.xml", "model.bin"):
        damaged = shutil.copytree(exported.folder, tmp_path / name)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:1000])
        with pytest.raises(OSError, match="cannot be loaded as an OpenVINO graph"):
            Scorer(damaged)
