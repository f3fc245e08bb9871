"""The page of scores shows how much of the noise a calibrated far microphone takes, band by band."""

import re

import numpy as np
import pytest
import torch

from na_ssl_hf.evaluation.report.score_report import HEIGHT, describe_far_microphone, write_score_report
from na_ssl_hf.hub.far_microphone import FarMicrophone

RESULT = {"score": 1.0, "is_anomaly": False, "threshold": 2.0, "p_value": 0.5, "band_scores": [1.0]}


def recordings(number=12, seconds=1.0):
    """Noise of many levels that reaches the close microphone 30 samples after the far one, each (2, N)."""
    random = np.random.default_rng(0)
    for _ in range(number):
        noise = 0.1 * 10 ** random.normal(0, 0.4) * random.standard_normal(int(16000 * seconds) + 30)
        machine = 0.01 * random.standard_normal(int(16000 * seconds))
        yield torch.from_numpy(np.stack([machine + 0.5 * noise[:-30], noise[30:]]).astype("float32"))


@pytest.fixture(scope="module")
def far_microphone():
    return FarMicrophone("filter").fit(recordings())


def page_of(path, far_microphone):
    write_score_report(path, ["a.wav"], [RESULT], far_microphone)
    return path.read_text(encoding="utf-8")


def test_a_bar_is_as_high_as_the_decibels_that_the_filter_takes(far_microphone, tmp_path):
    page = page_of(tmp_path / "report.html", far_microphone)
    bands = far_microphone.report()
    assert max(band.cancelled_db for band in bands) > 10
    heights = [float(height) for height in re.findall(r'<rect [^>]* height="([0-9.]+)"', page)]
    scale = HEIGHT / max(band.cancelled_db for band in bands)
    np.testing.assert_allclose(heights, [abs(band.cancelled_db) * scale for band in bands], atol=0.06)
    for band in bands:
        row = f"<td>{band.low:.0f} to {band.high:.0f} Hz</td><td>{band.cancelled_db:.1f} dB</td>"
        assert f"{row}<td>{band.coherence:.2f}</td>" in page
    assert "Far microphone, calibrated on 12 s: a filter." in page


def test_bars_of_bands_that_become_louder_hang_below_the_line(far_microphone, tmp_path, monkeypatch):
    bands = far_microphone.report()
    object.__setattr__(bands[0], "cancelled_db", -5.0)
    for band in bands[1:]:
        object.__setattr__(band, "cancelled_db", 15.0)
    monkeypatch.setattr(FarMicrophone, "report", lambda self: bands)
    page = page_of(tmp_path / "report.html", far_microphone)
    zero = re.search(r'<line x1="0" x2="\d+" y1="([0-9.]+)"', page).group(1)
    first, second = re.findall(r'y="([0-9.]+)" width="[0-9.]+" height="([0-9.]+)"', page)[:2]
    assert float(zero) == pytest.approx(0.75 * HEIGHT, abs=0.1)
    assert (float(first[0]), float(first[1])) == pytest.approx((0.75 * HEIGHT, 0.25 * HEIGHT), abs=0.1)
    assert (float(second[0]), float(second[1])) == pytest.approx((0.0, 0.75 * HEIGHT), abs=0.1)


def test_without_a_calibrated_far_microphone_nothing_is_said_of_it(tmp_path):
    page = page_of(tmp_path / "report.html", None)
    assert "<rect" not in page
    assert "Far microphone" not in page


def test_one_line_says_what_a_far_microphone_does(far_microphone):
    assert describe_far_microphone(far_microphone) == "far microphone, calibrated on 12 s: a filter"
    none = FarMicrophone("none").fit(recordings())
    assert describe_far_microphone(none).endswith("it does not hear the noise, or hears the machine first")
    subtracting = FarMicrophone("installation").fit(recordings())
    subtracting.slope_ = subtracting.slope_ + 0.1
    assert describe_far_microphone(subtracting).endswith("a filter, then subtraction of what it leaves")
