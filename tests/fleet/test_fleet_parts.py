"""The table of a fleet, and the parts of its work and of its output."""

import os
from pathlib import Path

import pytest
from fleet_of_machines import write_clip, write_table

from na_ssl_hf.fleet.engines import MOST_ATTEMPTS, RayWorker
from na_ssl_hf.fleet.machines import Share, read_machines, shares_of
from na_ssl_hf.fleet.parts import (
    Part,
    PartReport,
    done_work,
    existing_parts,
    forget_errors,
    make_parts,
    remove_left_over,
    write_part,
)

SETTINGS = {"window": None, "resample": False}
ROW = {"machine": "fan", "scorer": "scorer", "recordings": "today"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"machine": "fan", "recordings": "today"}], r"\['scorer'\] missing"),
        ([ROW, {**ROW, "machine": "pump", "scorer": ""}], "line 3: scorer must not be empty"),
        ([ROW, ROW], "line 3: machine must be a name of its own, got 'fan' as in .*line 2"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_machines(write_table(tmp_path / "machines.csv", rows))


def test_a_table_without_machines_is_an_error(tmp_path):
    (tmp_path / "machines.csv").write_text("machine,scorer,recordings\n")
    with pytest.raises(ValueError, match="a row for every machine"):
        read_machines(tmp_path / "machines.csv")


def test_recordings_are_folders_files_or_patterns_from_the_folder_of_the_table(tmp_path, monkeypatch):
    names = ["today/a.wav", "today/b.wav", "today/deep/c.wav", "odd [1]/d.wav"]
    for seed, name in enumerate(names):
        write_clip(tmp_path / name, seed)
    (tmp_path / "today" / "notes.txt").write_text("not a sound")
    cells = {"today": names[:3], "today/b.wav": names[1:2], "today/*": names[:2], "**/*.wav": [names[3], *names[:3]]}
    cells |= {"odd [1]": names[3:], "today\\b.wav": names[1:2]}
    rows = [{**ROW, "machine": f"m{index}", "recordings": cell} for index, cell in enumerate(cells)]
    table = write_table(tmp_path / "machines.csv", rows)
    monkeypatch.chdir("/")
    for machine, expected in zip(read_machines(table), cells.values(), strict=True):
        (share,) = shares_of(machine)
        assert share.error is None
        assert [Path(file).relative_to(tmp_path).as_posix() for file in share.files] == expected


def test_a_machine_without_recordings_has_one_share_with_the_reason(tmp_path):
    rows = [ROW, {**ROW, "machine": "pump", "recordings": "*.wav"}]
    for machine in read_machines(write_table(tmp_path / "machines.csv", rows)):
        (share,) = shares_of(machine)
        assert share.files == (machine.recordings,)
        assert machine.where in share.error


def test_parts_hold_all_work_in_whole_batches_and_as_few_shares_as_machines(tmp_path):
    files = {f"m{index}": tuple(f"{index}/{clip}.wav" for clip in range(5 + index)) for index in range(4)}
    shares = [
        Share(name, "scorer", own[start : start + 2]) for name, own in files.items() for start in range(0, len(own), 2)
    ]
    parts = list(make_parts(shares, 4, 7, SETTINGS, lambda share: len(share.files)))
    assert [int(part.name.split("-")[1]) for part in parts] == list(range(7, 7 + len(parts)))
    assert len({part.name for part in parts}) == len(parts) > 4
    again: dict[str, tuple] = {}
    for part in parts:
        assert len({share.machine for share in part.shares}) == len(part.shares)
        for share in part.shares:
            assert len(again.get(share.machine, ())) % 2 == 0
            again[share.machine] = again.get(share.machine, ()) + share.files
    assert again == files
    assert next(make_parts(shares, 4, 7, {}, lambda share: len(share.files))).name != parts[0].name


def test_a_part_travels_as_text_whatever_the_names_of_its_files():
    odd = os.fsdecode(b"m\xfcll/\xe2\x82\xac '\"\n.wav")
    part = Part(
        "part-1.parquet", (Share("fan", "s", (odd, "b.wav"), groups=("x", "y")), Share("p", "s", (), error="e"))
    )
    text = part.to_json()
    assert text.isascii()
    assert Part.from_json(text) == part


def test_what_has_a_row_is_done_until_its_error_is_forgotten(tmp_path):
    pytest.importorskip("pyarrow")
    odd = os.fsdecode(b"m\xfcll.wav")
    rows = [{"machine": "fan", "file": "a.wav", "score": 0.1}, {"machine": "fan", "file": odd, "error": "bad"}]
    write_part(tmp_path, "part-000000-a.parquet", "score", rows, SETTINGS)
    write_part(
        tmp_path, "part-000001-b.parquet", "score", [{"machine": "pump", "file": "c.wav", "error": "x"}], SETTINGS
    )
    done = {("fan", "a.wav"), ("fan", "m\\udcfcll.wav"), ("pump", "c.wav")}
    assert done_work(tmp_path, "score", SETTINGS) == done
    assert forget_errors(tmp_path, "score", SETTINGS) == 2
    assert done_work(tmp_path, "score", SETTINGS) == {("fan", "a.wav")}
    assert [path.name for path in existing_parts(tmp_path)] == ["part-000000-a.parquet"]
    with pytest.raises(ValueError, match=r"part-000000-a.parquet with {'window': None} instead of {'window': 5.0}"):
        done_work(tmp_path, "score", {**SETTINGS, "window": 5.0})
    with pytest.raises(ValueError, match="nothing but parts of `na-ssl fleet fit`"):
        done_work(tmp_path, "fit", SETTINGS)


def test_foreign_and_damaged_parts_are_named(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"machine": ["fan"]}), tmp_path / "part-x.parquet")
    with pytest.raises(ValueError, match=r"nothing but parts .*part-x.parquet"):
        done_work(tmp_path, "score", SETTINGS)
    (tmp_path / "part-x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(OSError, match=r"part-x.parquet cannot be read as Parquet; remove it"):
        done_work(tmp_path, "score", SETTINGS)


class DeadlyWork:
    """Work of which the worker dies, as far as the file of attempts knows."""

    def __init__(self, out: Path):
        self.out = str(out)

    def worker(self):
        def worker(part: Part) -> PartReport:
            if part.name == "part-good":
                return PartReport(part.name, num_done=1)
            raise SystemExit

        return worker


def test_a_part_that_kills_each_worker_is_given_up_and_others_are_not(tmp_path):
    worker = RayWorker(DeadlyWork(tmp_path / "out"))
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(SystemExit):
            worker({"part": [Part("part-bad.parquet", ()).to_json()]})
        assert '"num_done": 1' in worker({"part": [Part("part-good", ()).to_json()]})["report"][0]
    (report,) = worker({"part": [Part("part-bad.parquet", ()).to_json()]})["report"]
    assert f"its worker died {MOST_ATTEMPTS} times" in report
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(SystemExit):
        worker({"part": [Part("part-bad.parquet", ()).to_json()]})
    remove_left_over(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
