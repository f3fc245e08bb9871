import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import soundfile

from na_ssl_hf.data.dcase.clips import DcaseClip
from na_ssl_hf.data.dcase.names import parse_dcase_name
from na_ssl_hf.evaluation.metrics import bootstrap_interval, decision_metrics
from na_ssl_hf.evaluation.report.figures import roc_points, spectrogram_picture
from na_ssl_hf.evaluation.report.html_report import write_html_report
from na_ssl_hf.evaluation.systems.machine_scores import MachineScores

FACTS = {"Data": "synthetic", "Published score": ""}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A report taken apart; fails on tags that are not closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.tags == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        if "style" not in self.tags:
            self.text += data

    def values(self, name: str, tag: str | None = None) -> list[str]:
        return [attributes[name] for kind, attributes in self.attributes if name in attributes and tag in (None, kind)]

    def pictures(self) -> dict[str, str]:
        """{alternative text: SVG}."""
        return {one["alt"]: unquote(one["src"].partition(",")[2]) for kind, one in self.attributes if kind == "img"}

    def rows(self) -> dict[str, list[str]]:
        """Cells of the table of all machines."""
        table = self.source[self.source.index('<table class="results">') :]
        found = re.findall(r'<tr><th scope="row"><a[^>]*>(.*?)</a></th>(.*?)</tr>', table)
        return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in found}


def scored(root: Path, machine: str = "fan", channels: int = 2, seed: int = 0, bands: bool = True) -> MachineScores:
    """Twelve labelled clips of 0.2 s whose scores overlap."""
    rng = np.random.default_rng(seed)
    clips = []
    for index in range(12):
        domain, label = ("source", "target")[index % 2], ("normal", "anomaly")[index // 6]
        path = root / machine / "test" / f"section_00_{domain}_test_{label}_{index:04d}_spd_{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal((3200, channels)), 16000)
        clips.append(DcaseClip(path, parse_dcase_name(path), f"spd_{index}"))
    is_anomaly = np.arange(12) >= 6
    band_scores = rng.random((12, 4)) + 0.4 * is_anomaly[:, None]
    return MachineScores(
        machine=machine,
        clips=tuple(clips),
        scores=band_scores.mean(axis=1),
        normal_scores=rng.random(20),
        threshold=0.7,
        band_scores=band_scores if bands else None,
        is_anomaly=is_anomaly,
        is_target=np.arange(12) % 2 == 1,
    )


def unlabelled(machine: MachineScores) -> MachineScores:
    return replace(machine, is_anomaly=None, is_target=None)


def report(folder: Path, *machines: MachineScores, num_worst: int = 0, seed: int = 0) -> Page:
    return Page(write_html_report(folder / "report.html", "logmel", FACTS, machines, seed, num_worst))


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory) -> tuple[Page, list[MachineScores]]:
    folder = tmp_path_factory.mktemp("report")
    machines = [scored(folder), scored(folder, "pump", seed=1)]
    page = report(folder, *machines, num_worst=2, seed=5)
    assert [file.name for file in folder.iterdir() if file.is_file()] == ["report.html"]
    return page, machines


def assert_sound(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("href")) <= {f"#{name}" for name in ids}
    assert all(source.startswith("data:image/svg+xml,") for source in page.values("src"))
    assert "http" not in re.sub("http-equiv|http%3A//www.w3.org", "", page.source)  # those are names, no addresses
    assert "<script" not in page.source
    assert page.values("lang", "html") == ["en"]
    assert all(page.values("alt", "img"))
    for svg in page.pictures().values():
        ElementTree.fromstring(svg)


def test_page_is_well_formed_self_contained_and_has_every_part(two_machines):
    page, _ = two_machines
    assert_sound(page)
    assert {"results", "reading", "machine-1", "machine-2"} <= set(page.values("id"))
    alts = list(page.pictures())
    assert len(alts) == 1 + 2 * (3 + 4)
    for start in ("ROC curves of pump", "Score histograms of pump", "Mean band scores of pump"):
        assert sum(alt.startswith(start) for alt in alts) == 1
    assert page.text.count("not known") == 1  # the fact without a text


def test_numbers_are_those_of_the_metrics(two_machines):
    page, machines = two_machines
    total = bootstrap_interval({one.machine: one.labelled_scores for one in machines}, seed=5)
    headline = f"{100 * total.estimate:.1f} %, 95 % interval {100 * total.low:.1f} to {100 * total.high:.1f} %"
    assert headline in re.sub(r"(%) 95", r"\1, 95", " ".join(page.text.split()))
    for machine in machines:
        metrics, decisions = machine.metrics, decision_metrics(machine.is_alarm, machine.is_anomaly)
        interval = bootstrap_interval({machine.machine: machine.labelled_scores}, seed=5)
        expected = [metrics.auc_source, metrics.auc_target, metrics.pauc]
        expected = [f"{100 * value:.1f} %" for value in expected]
        score = f"{100 * metrics.official_score:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        false_alarms = int((machine.scores[:6] > 0.7).sum())
        hits = int((machine.scores[6:] > 0.7).sum())
        assert page.rows()[machine.machine] == [
            score,
            *expected,
            "0.7",
            f"{false_alarms + hits} of 12",
            f"{false_alarms} of 6",
            f"{hits} of 6",
            *(f"{100 * value:.1f} %" for value in (decisions.precision, decisions.recall, decisions.f1)),
        ]
        (roc,) = (alt for alt in page.pictures() if alt.startswith(f"ROC curves of {machine.machine}"))
        assert all(value in roc for value in expected)


def test_roc_points_enclose_the_auc_also_with_ties():
    rng = np.random.default_rng(0)
    scores, is_anomaly = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.5
    x, y = roc_points(scores, is_anomaly)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    pairs = np.sign(scores[is_anomaly][:, None] - scores[~is_anomaly])
    area = ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum()
    assert area == pytest.approx((pairs.mean() + 1) / 2)


def test_worst_clips_are_named_with_score_and_rank(tmp_path):
    machine = replace(scored(tmp_path), scores=np.arange(12.0)[::-1], threshold=8.5)
    captions = re.findall("<figcaption><b>(section.*?)</figcaption>", report(tmp_path, machine, num_worst=1).source)
    assert len(captions) == 2
    assert captions[0].startswith(machine.clips[0].path.name)
    assert "score 11, rank 1 of 12" in captions[0]
    assert "false alarm" in captions[0]
    assert captions[1].startswith(machine.clips[11].path.name)
    assert "score 0, rank 12 of 12" in captions[1]
    assert "missed" in captions[1]
    assert "domain: target; attributes: spd_11" in captions[1]


def test_equal_input_gives_equal_bytes_whatever_the_users_style(tmp_path):
    machine = scored(tmp_path)
    first = write_html_report(tmp_path / "a.html", "logmel", FACTS, [machine], num_worst=1)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5, "svg.fonttype": "path"}):
        second = write_html_report(tmp_path / "b.html", "logmel", FACTS, [machine], num_worst=1)
        assert matplotlib.rcParams["font.size"] == 20
    assert first.read_bytes() == second.read_bytes()


def test_hostile_texts_stay_texts(tmp_path):
    evil = "</title><script>alert('$x^2$ & \"y\"')</script>"
    machine = scored(tmp_path)
    file = machine.clips[0].path.with_name("<img src=x onerror=alert(1)>.wav")
    machine.clips[0].path.rename(file)
    first = DcaseClip(file, machine.clips[0].name, "<b>&")
    machine = replace(machine, machine=evil, clips=(first, *machine.clips[1:]), scores=np.arange(12.0)[::-1])
    page = Page(write_html_report(tmp_path / "out" / "report.html", evil, {evil: evil}, [machine], num_worst=1))
    assert_sound(page)
    assert page.text.count(evil) == 7  # title, heading, fact twice, contents, table, section
    assert file.name in page.text
    assert "attributes: <b>&" in page.text


def test_without_labels_nothing_is_claimed(tmp_path):
    page = report(tmp_path, unlabelled(scored(tmp_path)), num_worst=1)
    assert_sound(page)
    assert "no ground truth" in page.text
    row = page.rows()["fan"]
    assert row[:4] == ["not known"] * 4
    assert row[6:] == ["not known"] * 5
    alts = list(page.pictures())
    assert not any("ROC" in alt or "Official" in alt for alt in alts)
    assert sum(alt.startswith("Spectrograms") for alt in alts) == 2
    assert any("training, normal: 20 clips" in alt and "test, no ground truth: 12" in alt for alt in alts)
    assert "Highest-scoring clips" in page.text
    assert "false alarm</span>" not in page.source


def test_without_domains_decisions_are_still_counted(tmp_path):
    page = report(tmp_path, replace(scored(tmp_path), is_target=None))
    row = page.rows()["fan"]
    assert row[:4] == ["not known"] * 4
    assert "not known" not in row[4:]
    assert any("test, anomaly: 6 clips" in alt for alt in page.pictures())


def test_one_class_only_is_not_known_and_takes_the_headline_with_it(tmp_path):
    whole, normal = scored(tmp_path), scored(tmp_path, "pump", seed=1)
    page = report(tmp_path, whole, replace(normal, is_anomaly=np.zeros(12, dtype=bool)))
    assert_sound(page)
    assert "Official score not known" in " ".join(page.text.split())
    assert page.rows()["pump"][7:] == ["not known"] * 4
    assert page.rows()["pump"][6].endswith("of 12")
    assert "not known" not in page.rows()["fan"]
    page = report(tmp_path, replace(normal, is_anomaly=np.ones(12, dtype=bool)), num_worst=1)
    assert "There are none." in page.text
    assert page.rows()["pump"][6] == "not known"


def test_without_bands_the_profile_is_left_out(tmp_path):
    page = report(tmp_path, scored(tmp_path, bands=False))
    assert_sound(page)
    assert not any("band" in alt for alt in page.pictures())


def test_mono_clips_show_their_only_channel(tmp_path):
    page = report(tmp_path, scored(tmp_path, channels=1), num_worst=1)
    alts = [alt for alt in page.pictures() if alt.startswith("Spectrograms")]
    assert len(alts) == 2
    assert all("the only channel" in alt and "far" not in alt for alt in alts)


def test_missing_and_broken_files_are_named_in_place_of_their_pictures(tmp_path):
    machine = replace(scored(tmp_path), scores=np.arange(12.0))
    machine.clips[5].path.unlink()
    machine.clips[6].path.write_bytes(b"RIFF no sound")
    page = report(tmp_path, machine, num_worst=1)
    assert_sound(page)
    assert page.text.count("No picture") == 2
    assert all(machine.clips[index].path.name in page.text for index in (5, 6))


def test_equal_scores_and_an_endless_threshold_can_be_drawn(tmp_path):
    machine = replace(scored(tmp_path), scores=np.ones(12), normal_scores=np.ones(0), threshold=float("inf"))
    page = report(tmp_path, machine)
    assert_sound(page)
    assert page.rows()["fan"][4:8] == ["inf", "0 of 12", "0 of 6", "0 of 6"]


@pytest.mark.parametrize("num_samples", [1, 1000, 400_000])
def test_spectrogram_sees_tone_and_level_at_any_length(num_samples):
    tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(num_samples), dtype=np.float32)
    with np.errstate(all="raise"):
        picture = spectrogram_picture("tone.wav", np.stack([tone, np.zeros_like(tone)]), 16000)
    assert "far microphone -120.0 dB" in picture.alt
    assert num_samples == 1 or "close microphone -3.0 dB" in picture.alt
    assert len(picture.source) < 200_000


def test_bad_input_leaves_no_file(tmp_path):
    machine = scored(tmp_path)
    for machines, message in [
        ([], "one or more"),
        ([machine, machine], "names of their own"),
        ([replace(machine, scores=np.ones(3))], r"its 12 clips, got shape \(3,\)"),
        ([replace(machine, scores=np.full(12, np.nan))], "finite"),
        ([replace(machine, threshold=float("nan"))], "must have a threshold"),
        ([replace(machine, is_target=np.ones(3, dtype=bool))], r"is_target of fan must be bool of shape \(12,\)"),
        ([replace(machine, is_anomaly=np.ones(12, dtype=int))], "is_anomaly of fan must be bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_html_report(tmp_path / "report.html", "logmel", FACTS, machines)
    with pytest.raises(ValueError, match="num_worst must not be negative, got -1"):
        report(tmp_path, machine, num_worst=-1)
    assert not (tmp_path / "report.html").exists()
