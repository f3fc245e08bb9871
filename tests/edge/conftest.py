"""A tiny scorer and its export, which the tests of the export and of na-ssl-edge share."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from sites import RATE, run, tiny_scorer, write_clip

from na_ssl_hf import MemoryBank
from na_ssl_hf.export.chain import ScoringChain


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> SimpleNamespace:
    """Recordings, a scorer with rescaling, joined layers and one level, and its export with a proof."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("site")
    normal = [write_clip(folder / "normal" / f"{index:02}.wav", index) for index in range(20)]
    new = [write_clip(folder / "new" / f"{index}.wav", 100 + index) for index in range(4)]
    odd = [write_clip(folder / "odd" / f"{index}.wav", 200 + index, tone=0.1) for index in range(4)]
    settings = {"layers": [1, 2], "level": "normalised", "pooling": "rdp"}
    scorer = tiny_scorer(folder / "scorer", "na-eat", normal, MemoryBank(rescaling="variance_min"), **settings)
    arguments = ("--prove", folder / "normal", "--normal", *new, "--anomalous", folder / "odd")
    assert run("export", folder / "scorer", folder / "exported", *arguments) == 0
    return SimpleNamespace(folder=folder, exported=folder / "exported", scorer=scorer, new=new, odd=odd, normal=normal)


@pytest.fixture
def graph_of_site(site, monkeypatch):
    """Exports of the scorer of `site` take the graph in float32 of its own export, which takes any length."""
    from na_ssl_hf.export import exporting

    def export_onnx(chain, path, lengths, most_samples, opset):
        assert opset == exporting.DEFAULT_OPSET
        with torch.no_grad():
            wave = torch.randn(1, 2, RATE // 2, generator=torch.Generator().manual_seed(0))
            assert chain(wave).equal(ScoringChain(site.scorer, site.scorer.memory_bank.calibration)(wave))
        shutil.copyfile(site.exported / "model.onnx", path)

    monkeypatch.setattr(exporting, "export_onnx", export_onnx)
