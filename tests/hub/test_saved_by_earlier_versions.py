"""Scorers and banks saved by the first version still load and give the scores that they gave then."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from na_ssl_hf import MemoryBank


@pytest.fixture(scope="module")
def saved(goldens):
    return goldens / "saved_by_0_1_0"


@pytest.fixture(scope="module")
def expected(saved):
    return json.loads((saved / "expected.json").read_text())


@pytest.fixture(scope="module")
def inputs(saved):
    return np.load(saved / "inputs.npz")


@pytest.mark.parametrize("name", ["na-beats-scorer", "na-eat-scorer"])
def test_saved_scorers_score_as_before(saved, expected, inputs, name):
    scorer = pipeline("anomaly-scoring", model=str(saved / name))
    results = scorer(list(inputs["clips"]))
    for result, before in zip(results, expected[name], strict=True):
        assert set(before) <= set(result)
        np.testing.assert_allclose(result["score"], before["score"], atol=1e-5)
        np.testing.assert_allclose(result["band_scores"], before["band_scores"], atol=1e-5)
        np.testing.assert_allclose(result["threshold"], before["threshold"], atol=1e-7)
        assert result["p_value"] == pytest.approx(before["p_value"])
        assert result["is_anomaly"] == before["is_anomaly"]


def test_saved_banks_score_as_before_and_keep_their_history(saved, expected, inputs):
    queries = torch.from_numpy(inputs["queries"])
    living = MemoryBank.from_pretrained(saved / "living-bank")
    np.testing.assert_allclose(living.score(queries), expected["living-bank"], rtol=1e-5)
    living.rollback(0)
    np.testing.assert_allclose(living.score(queries), expected["living-bank-version-0"], rtol=1e-5)


def test_saved_coreset_scores_as_before(saved, expected, inputs):
    bank = MemoryBank.from_pretrained(saved / "coreset-bank")
    np.testing.assert_allclose(bank.score(torch.from_numpy(inputs["queries"])), expected["coreset-bank"], rtol=1e-5)
    np.testing.assert_allclose(bank.self_scores(), expected["coreset-bank-self"], rtol=1e-5)
