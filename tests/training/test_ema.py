import pytest
import torch
from torch import nn

from na_ssl_hf.training.ema import ExponentialMovingAverage


def parameters() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.zeros(3)), "frozen": nn.Parameter(torch.ones(2), requires_grad=False)}


def trained(ema: ExponentialMovingAverage, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            named["a"].copy_(torch.tensor([1.0, 2.0, 4.0]) * step)
        ema.update(step)


def test_average_equals_the_closed_form_from_its_start_on():
    named = parameters()
    ema = ExponentialMovingAverage(named, decay=0.9, start_step=3)
    trained(ema, named, range(1, 3))
    assert ema.state_dict() == {}
    trained(ema, named, range(3, 11))
    factor = 0.9**7 * 3 + sum(0.1 * 0.9 ** (10 - step) * step for step in range(4, 11))
    torch.testing.assert_close(ema.state_dict(), {"a": torch.tensor([1.0, 2.0, 4.0]) * factor})


def test_swapped_in_and_out_again_even_by_an_error():
    named = parameters()
    ema = ExponentialMovingAverage(named, decay=0.5)
    with ema.swapped_in():
        assert named["a"].tolist() == [0.0, 0.0, 0.0]
    trained(ema, named, range(1, 3))

    def fail() -> None:
        with ema.swapped_in():
            assert named["a"].tolist() == [1.5, 3.0, 6.0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert named["a"].tolist() == [2.0, 4.0, 8.0]
    assert named["frozen"].tolist() == [1.0, 1.0]


def test_loaded_average_goes_on_like_the_saved_one():
    named, other = parameters(), parameters()
    ema, loaded = (ExponentialMovingAverage(each, decay=0.9, start_step=2) for each in (named, other))
    trained(ema, named, range(1, 5))
    loaded.load_state_dict(ema.state_dict())
    for average, weights in ((ema, named), (loaded, other)):
        trained(average, weights, range(5, 8))
    assert torch.equal(ema.state_dict()["a"], loaded.state_dict()["a"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decay": 1.0}, r"`decay` must lie in \[0, 1\), got 1.0"),
        ({"start_step": 0}, "`start_step` must be at least 1"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ExponentialMovingAverage(parameters(), **wrong)


def test_state_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match="must be of the same 1 parameters, got 1, of which 1 unknown"):
        ExponentialMovingAverage(parameters()).load_state_dict({"b": torch.zeros(3)})
