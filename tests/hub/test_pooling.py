import numpy as np
import pytest
import torch

from na_ssl_hf.hub.pooling import POOLING_METHODS, pool_time


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "backends/1_pooling/pooling.npz")


def assert_matches(pooled, wanted):
    np.testing.assert_allclose(pooled.numpy(), wanted, rtol=0, atol=1e-5)


CASES = {
    "mean": {"method": "mean"},
    "rdp_g0": {"method": "rdp", "gamma": 0},
    "rdp_g4": {"method": "rdp", "gamma": 4},
    "rdp_g8": {"method": "rdp", "gamma": 8},
    "gem_p3": {"method": "gem", "p": 3},
    "hybrid_g4_p3": {"method": "rdp_gem", "gamma": 4, "p": 3},
    "hybrid_g8_p3": {"method": "rdp_gem", "gamma": 8, "p": 3},
    "gwrp_r09": {"method": "gwrp", "r": 0.9},
    "gwrp_r0": {"method": "gwrp", "r": 0},
    "gwrp_r1": {"method": "gwrp", "r": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(golden, case):
    assert_matches(pool_time(golden["x"], **CASES[case]), golden[f"{case}_f64"])


@pytest.mark.parametrize("edge", ["const", "t1", "t2", "zeros", "neg", "tinydev"])
@pytest.mark.parametrize("case", ["rdp_g4", "rdp_g8", "gem_p3", "hybrid_g8_p3", "gwrp_r09"])
def test_equals_the_reference_at_edges(golden, edge, case):
    assert_matches(pool_time(golden[f"edge_{edge}_x"], **CASES[case]), golden[f"edge_{edge}_{case}_f64"])


@pytest.mark.parametrize("case", ["mean", "rdp_g4"])
def test_masked_equals_the_reference(golden, case):
    pooled = pool_time(golden["masked_x"], **CASES[case], mask=golden["mask_time"])
    assert_matches(pooled, golden[f"masked_{case}_f64"])


@pytest.mark.parametrize("method", POOLING_METHODS)
def test_padding_has_no_influence_even_when_it_is_nan(golden, method):
    x = torch.from_numpy(golden["x"])
    padded = torch.cat([x, torch.full((3, 5, *x.shape[2:]), torch.nan)], dim=1)
    mask = (torch.arange(padded.shape[1]) < x.shape[1]).expand(3, -1)
    torch.testing.assert_close(pool_time(padded, method, mask=mask.long()), pool_time(x, method))


@pytest.mark.parametrize("method", POOLING_METHODS)
def test_bands_and_clips_are_independent(golden, method):
    x = torch.from_numpy(golden["x"])
    together = pool_time(x, method)
    torch.testing.assert_close(pool_time(x[1:2, :, 3:4], method), together[1:2, 3:4])


def test_rank_pooling_spans_maximum_to_mean(golden):
    x = golden["x"]
    torch.testing.assert_close(pool_time(x, "gwrp", r=0), pool_time(x, "max"))
    torch.testing.assert_close(pool_time(x, "gwrp", r=1), pool_time(x, "mean"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_are_float32_for_every_float_type(golden, dtype):
    x = torch.from_numpy(golden["x"]).to(dtype)
    pooled = pool_time(x, "rdp")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pool_time(x.float(), "rdp"))


def test_a_huge_gamma_stays_finite(golden):
    assert pool_time(golden["x"], "rdp", gamma=1e4).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "median"}, "method must be one of"),
        ({"gamma": -1.0}, "gamma must be"),
        ({"gamma": float("nan")}, "gamma must be"),
        ({"p": 0.0}, "p must be"),
        ({"r": 1.5}, r"r must be in \[0, 1\], got 1.5"),
        ({"grid": torch.ones(2, 3, 4)}, r"grid must have shape .* got \(2, 3, 4\)"),
        ({"grid": torch.ones(2, 0, 4, 5)}, "without empty axes"),
        ({"grid": torch.full((1, 2, 1, 1), torch.inf)}, "finite"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask must have shape"),
        ({"mask": torch.tensor([[True, True, False], [False, False, False]])}, "none in clip 1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool_time(**{"grid": torch.ones(2, 3, 4, 5), **arguments})
