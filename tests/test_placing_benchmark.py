"""The benchmark of placing: microphones stand where they should, recorders do what they say, and runs go on."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import placing


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.setattr(placing, "NUM_TRAIN", 6)
    monkeypatch.setattr(placing, "NUM_TEST", 3)
    monkeypatch.setattr(placing, "CLIP_S", 1.0)


@pytest.fixture
def heard():
    random = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(4, 2, 8000 + 2 * placing.MARGIN, generator=random)


def test_microphones_stand_at_their_distances_inside_of_the_room():
    for seed in range(5):
        for condition in placing.CONDITIONS:
            room = placing.room_of(placing.Site(seed, "fan", 1.0), condition, condition.moved)
            assert room.distance_close == pytest.approx(condition.close)
            if not condition.moved:
                assert room.distance_far == pytest.approx(condition.far)


def test_a_wave_is_read_between_its_samples():
    samples = np.arange(400)
    wave = torch.from_numpy(np.sin(0.3 * samples).astype(np.float32))
    places = np.linspace(50, 300, 777)
    assert placing.read_at(wave, places).numpy() == pytest.approx(np.sin(0.3 * places), abs=2e-3)
    assert torch.equal(placing.read_at(wave, samples[50:300].astype(float)), wave[50:300])


def test_two_devices_without_a_fault_are_one(heard):
    random = np.random.default_rng(0)
    one = placing.in_step(heard, random)
    assert torch.equal(placing.apart(heard, random), one)
    late = placing.apart(heard, random, ppm=50.0, every_s=60.0)
    assert torch.equal(late[:, 0], one[:, 0])
    # After a minute, 50 ppm are 3 ms, 48 samples; the fast clock has counted them, so that its sound comes earlier.
    assert torch.allclose(late[1, 1, :100], heard[1, 1, placing.MARGIN - 48 : placing.MARGIN + 52], atol=5e-3)


def test_recorders_do_what_they_say(heard, few_clips):
    random = np.random.default_rng(0)
    one = placing.in_step(heard, random)
    levels = placing.automatic_gain(heard, random).square().mean(dim=-1).sqrt()
    assert levels == pytest.approx(0.05)
    quiet = placing.far_gain(heard, random, train_db=-30.0, test_db=-30.0)
    assert float(quiet[:, 0].abs().max()) == pytest.approx(placing.FULL_SCALE_SHARE, rel=1e-3)
    difference = 10 * math.log10(float(quiet[:, 1].square().mean() / quiet[:, 0].square().mean()))
    assert difference == pytest.approx(-30, abs=0.2)
    assert float(placing.far_gain(heard, random, train_db=20.0)[:, 1].abs().max()) == 1.0
    spectrum = torch.fft.rfft(placing.at_8_khz(heard, random)[0, 0])
    assert float(spectrum[len(spectrum) // 2 + 1 :].abs().max()) < 1e-3
    assert torch.allclose(spectrum[:1000], torch.fft.rfft(one[0, 0])[:1000], atol=1e-2)


def test_a_run_goes_on_and_its_tables_name_what_was_measured(few_clips, tmp_path):
    out, site = tmp_path / "placing.jsonl", placing.Site(0, "fan", 1.0)
    conditions = [placing.USUAL, next(one for one in placing.CONDITIONS if one.level_db == 6.0)]
    placing.run([site], conditions[:1], out)
    first = out.read_text()
    placing.run([site], conditions, out)
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in rows] == [condition.name for condition in conditions]
    assert rows[1]["level_db"] == 6.0
    assert rows[0]["aucs"]["none"] == rows[1]["aucs"]["none"]  # only the far microphone hears the difference
    table = placing.tables(rows)
    assert "Coherence 1" in table
    assert (
        f"| usual: {placing.USUAL.name} | {rows[0]['level_db']:.0f} dB | {100 * rows[0]['aucs']['none']:.1f} |" in table
    )


def test_the_page_measures_how_loud_the_far_microphone_hears_the_machine(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs/placing-the-microphones.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    machine = 0.3 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "quiet.wav", np.stack([machine, machine / 4], axis=1), 16000)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "placing-the-microphones.md", "exec"), {})
    assert capsys.readouterr().out == "12 dB\n"
