"""The benchmark of the errors of a site: what all clips are off by is apart from what scatters."""

import pytest
import torch
from tiny_models import tiny_model

from benchmarks import far_microphone, site_errors
from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor


def test_an_error_of_all_clips_is_common_and_one_of_each_scatters():
    common = torch.linspace(-1.0, 2.0, 15).reshape(3, 5)
    assert site_errors.parted(common.expand(4, 3, 5)) == pytest.approx((float(common.square().sum()), 0.0))
    apart = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 3, 5)
    assert site_errors.parted(apart) == (0.0, 15.0)
    assert site_errors.parted(common + apart) == pytest.approx((float(common.square().sum()), 15.0))


def test_layers_that_change_nothing_have_the_errors_of_their_base(monkeypatch):
    monkeypatch.setattr(far_microphone, "CLIP_S", 1.0)
    model = tiny_model("na-eat", initializer_range=0.3, identity=True)
    scorer = AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor("eat"), device="cpu")
    targets, noises = far_microphone.synthetic_targets("fan", 3, 4), far_microphone.synthetic_noises(3)
    found = site_errors.parts_of_room(scorer, targets, noises, 1.0, 0.0, 3)
    for parts in found.values():
        base, both, own = (parts[system] for system in ("base", "mean of both", "noise-aware"))
        assert base == pytest.approx(both, rel=1e-5)
        assert base == pytest.approx(own, rel=1e-5)
        assert base[0] > 0
        assert base[1] > 0
    lines = site_errors.table([("fan", method, parts) for method, parts in found.items()]).splitlines()
    aucs = f"{found['auto']['base'][2]:.1f} | " * 2 + f"{found['auto']['base'][2]:.1f} |"
    assert lines[3] == f"| fan | auto | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | {aucs}"


def test_shares_are_of_the_sums_over_rooms():
    def room(own: float) -> site_errors.Parts:
        return {"base": (1.0, 2.0, 90.0), "mean of both": (1.0, 1.0, 80.0), "noise-aware": (own, 1.0, 70.0)}

    done = [(name, method, room(own)) for name, own in (("fan", 0.5), ("pump", 1.5)) for method in ("none", "auto")]
    rows = site_errors.table(done).splitlines()[2:]
    assert rows[0] == "| fan | none | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | 90.0 | 80.0 | 70.0 |"
    assert rows[-1].startswith("| all | auto | 1.00 [0.50, 1.50] | 0.50 [0.50, 0.50] |")
