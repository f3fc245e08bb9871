"""na-ssl-edge warns of an installation that has drifted as the scorer in torch does: when it does, and in its words."""

import numpy as np
import pytest
import torch
from sites import RATE

from na_ssl_edge import drift
from na_ssl_edge.oddities import at_level
from na_ssl_hf.hub import far_microphone, input_level
from na_ssl_hf.hub.far_microphone import FarMicrophone

LISTENED = 30.0


def installed(seed: int, gain: float = 1.0, delay: int = 40) -> list[np.ndarray]:
    """Twelve recordings of 3 s: a steady machine, and varying noise that comes to the close microphone later."""
    random = np.random.default_rng(seed)
    clips = []
    for _ in range(12):
        level = np.repeat(10 ** random.normal(0, 0.5, 6), RATE // 2)
        noise = 0.02 * level * random.standard_normal(3 * RATE)
        machine = 0.03 * random.standard_normal(3 * RATE)
        close = 0.8 * np.roll(noise, delay) + 0.3 * np.roll(noise, 2 * delay) + machine
        clips.append(np.stack([close, gain * noise + 0.3 * np.roll(machine, 20)]).astype(np.float32))
    return clips


# What is heard after the calibration, and how many warnings there are.
HEARD = {
    "as it was": ([installed(1)], 0),
    "another path": ([installed(1, delay=900)], 1),
    "a louder far microphone": ([installed(1, gain=2.5)], 1),
    "swapped channels": ([[clip[::-1] for clip in installed(1)]], 1),
    "silence": ([[0 * clip for clip in installed(1)]], 0),
    # After 30 s nine times as many are passed over, so that the second change is not heard, but the fifth is.
    "told once": ([installed(1, delay=900), *[installed(2)] * 8, installed(3, delay=900)], 1),
    "told again": ([installed(1, delay=900), *[installed(2)] * 17, *[installed(3, delay=900)] * 9], 2),
}


@pytest.fixture(scope="module")
def calibrated() -> FarMicrophone:
    return FarMicrophone().fit(map(torch.from_numpy, installed(0)))


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """Both listen to 30 s at a time instead of two minutes."""
    for module in (far_microphone, drift):
        monkeypatch.setattr(module, "LISTENED_SECONDS", LISTENED)


@pytest.fixture
def told(monkeypatch):
    """The warnings of torch, and those of na-ssl-edge."""
    seen: tuple[list[str], list[str]] = ([], [])
    for module, of_module in zip((far_microphone, drift), seen, strict=True):
        monkeypatch.setattr(module.logger, "warning", of_module.append)
    return seen


def installation_of(calibrated: FarMicrophone) -> drift.Installation:
    learned = calibrated.state()[0]
    settings = {"sampling_rate": RATE, "future": round(calibrated.future * RATE)}
    return drift.Installation(settings, {name: learned[name].numpy() for name in ("filter", "noise_spectra")})


@pytest.mark.parametrize("heard", HEARD)
def test_warnings_are_those_of_torch_word_for_word(heard, calibrated, told):
    sets, num_warnings = HEARD[heard]
    calibrated.listen_anew()
    edge = installation_of(calibrated)
    for clips in sets:
        for clip in clips:
            calibrated.listen(torch.from_numpy(clip.copy())[None])
            edge.listen(clip)
    in_torch, at_the_edge = told
    assert at_the_edge == in_torch
    assert len(in_torch) == num_warnings
    assert all(("are they?" in message) == (heard == "swapped channels") for message in in_torch)


def test_the_measures_are_those_of_torch(calibrated):
    edge = installation_of(calibrated)
    for clips in (installed(1), installed(1, gain=0.5), installed(1, delay=900)):
        wanted = calibrated.drift(map(torch.from_numpy, clips))
        sums = drift.Sums(RATE)
        for clip in clips:
            sums.add(clip)
        found = edge.drift_of(sums.difference())
        assert found == pytest.approx((wanted.residual_db, wanted.level_db), abs=1e-3)


@pytest.mark.parametrize("level", ["as recorded", "normalised"])
@pytest.mark.parametrize("gain", [1.0, 0.01, 0.0])
def test_recordings_are_brought_to_the_level_of_the_graph(level, gain):
    clip = np.float32(gain) * installed(1)[0]
    wanted = input_level.at_level(torch.from_numpy(clip)[None], level)[0].numpy()
    np.testing.assert_allclose(at_level(clip, level == "normalised"), wanted, rtol=1e-5)


def test_damaged_calibrations_are_named(calibrated):
    learned = {name: tensor.numpy() for name, tensor in calibrated.state()[0].items()}
    settings = {"sampling_rate": RATE, "future": 2048}
    for changes, arrays, message in (
        ({"sampling_rate": 0}, {}, "`sampling_rate` must be a whole number"),
        ({"future": True}, {}, "`future` must be a whole number"),
        ({}, {"noise_spectra": learned["noise_spectra"][:3]}, "`noise_spectra` must be finite of shape"),
        ({}, {"filter": learned["filter"] * np.nan}, "`filter` must be finite with"),
        ({}, {"filter": learned["filter"][:10]}, "`filter` must be finite with"),
    ):
        with pytest.raises(ValueError, match=message):
            drift.Installation(settings | changes, learned | arrays)
