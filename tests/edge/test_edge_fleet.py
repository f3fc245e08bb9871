"""`na-ssl fleet score` takes exported scorers as it takes fitted ones."""

import csv

import pytest
from sites import run

import na_ssl_edge


def test_machines_of_a_fleet_may_have_exported_scorers(site, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [("machine", "scorer", "recordings")]
    rows += [("exported", site.exported, site.folder / "new"), ("fitted", site.folder / "scorer", site.folder / "new")]
    with (tmp_path / "machines.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert (
        run("fleet", "score", "--machines", tmp_path / "machines.csv", "--out", tmp_path / "out", "--engine", "local")
        == 0
    )
    found = parquet.read_table(tmp_path / "out").to_pylist()
    of = {name: {row["file"]: row for row in found if row["machine"] == name} for name in ("exported", "fitted")}
    assert len(of["exported"]) == len(of["fitted"]) == len(site.new)
    alone = na_ssl_edge.Scorer(site.exported, num_threads=1)
    for file, row in of["exported"].items():
        expected = alone(file)
        assert [row[name] for name in ("score", "p_value", "threshold")] == [
            expected[name] for name in ("score", "p_value", "threshold")
        ]
        assert row["score"] == pytest.approx(of["fitted"][file]["score"], abs=1e-4)
