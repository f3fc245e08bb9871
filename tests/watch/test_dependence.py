"""Windows that depend on each other for longer than the alarm rule takes them to are told, with the time to ask for."""

import numpy as np
import pytest
from scipy.signal import lfilter

from na_ssl_hf.watch.dependence import Dependence

HALF_LIFE = 60  # windows


def wandering(num_windows: int, seed: int) -> list[float]:
    """Scores of which a half wanders and a half is drawn for each window; they are skewed, as distances are."""
    generator = np.random.default_rng(seed)
    kept = 0.5 ** (1 / HALF_LIFE)
    slow = lfilter([(1 - kept**2) ** 0.5], [1, -kept], generator.standard_normal(num_windows))
    return np.exp(slow + generator.standard_normal(num_windows)).tolist()


def told(dependence: Dependence, scores) -> list[tuple[float, float]]:
    return [found for score in scores if (found := dependence.step(score)) is not None]


@pytest.mark.parametrize("seed", range(5))
def test_a_time_is_told_after_which_windows_do_not_depend_on_each_other(seed):
    scores = wandering(6000, seed)
    found = told(Dependence(10.0), scores)
    assert found
    correlation, seconds = found[-1]
    assert correlation == pytest.approx(0.5, abs=0.15)
    # Half of the variance, halved every 60 windows: 0.1 is reached after 2.3 times that.
    assert 0.9 * 2.3 * HALF_LIFE < seconds / 10 < 5 * 2.3 * HALF_LIFE
    assert told(Dependence(10.0, independent_after=seconds), scores) == []


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_told_of_windows_that_do_not(seed):
    assert told(Dependence(10.0), np.random.default_rng(seed).standard_normal(6000)) == []
    assert told(Dependence(10.0), [1.0] * 1000) == []
