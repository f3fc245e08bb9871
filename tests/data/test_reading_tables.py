import os
import re
import sys

import pytest

from na_ssl_hf.data.tables import file_named_in_table, read_columns, read_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_tables_of_every_usual_encoding_and_system(tmp_path, caplog, monkeypatch, encoding, line_end):
    monkeypatch.setattr("na_ssl_hf.data.tables.logger.propagate", True)
    text = line_end.join(["path,split", "Lüfter.wav , train", "", ",", '"a,""b"".wav",val'])
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    rows = read_table(tmp_path / "t.csv")
    assert [cells for _, cells in rows] == [["path", "split"], ["Lüfter.wav", "train"], ['a,"b".wav', "val"]]
    assert [line for line, _ in rows] == [1, 2, 5]
    warnings = [message for message in caplog.messages if "is no UTF-8 in line" in message]
    assert len(warnings) == (encoding == "latin-1")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"path,split\na.wav,train\nb\0.wav,train\n", 3),
        (b"path,split\n" + b"a" * 200_000 + b",train\n", 2),
        (b'path,split\n"a.wav,train\nb.wav,train\n', 3),
        (b'path,split\n"a".wav,train\n', 2),
    ],
    ids=["NUL", "huge", "open quote", "text behind a quote"],
)
def test_what_is_no_csv_is_named_with_its_line(tmp_path, content, line):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"t\.csv, line {line}: must be CSV, got a line with") as caught:
        read_table(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_broken_utf_16_and_missing_files_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match=r"t\.csv must be utf-16"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=re.escape("none.csv")):
        read_table(tmp_path / "none.csv")


def test_columns_are_found_by_the_header(tmp_path):
    (tmp_path / "t.csv").write_text("split,path\ntrain,a.wav,more\nval\n")
    rows = read_columns(tmp_path / "t.csv", {"path", "split"})
    assert rows == [(2, {"split": "train", "path": "a.wav"}), (3, {"split": "val"})]
    with pytest.raises(ValueError, match=r"t\.csv must have the columns \['fname'\], \['fname'\] missing"):
        read_columns(tmp_path / "t.csv", {"fname"})
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv must have the columns"):
        read_columns(tmp_path / "empty.csv", {"fname"})


def test_files_are_found_as_windows_names_them(tmp_path):
    (tmp_path / "room 1").mkdir()
    (tmp_path / "room 1" / "a.wav").write_bytes(b"")
    (tmp_path / "B.WAV").write_bytes(b"")
    for name, file in (
        ("room 1/a.wav", "room 1/a.wav"),
        ("room 1\\a.wav", "room 1/a.wav"),
        (".\\room 1\\a.WAV", "room 1/a.wav"),
        ("B.wav", "B.WAV"),
        ("gone\\c.wav", "gone/c.wav"),
    ):
        assert file_named_in_table(tmp_path, name) == tmp_path / file


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_files_with_latin_1_names_and_with_backslashes_are_found(tmp_path):
    latin = os.fsdecode(os.fsencode(tmp_path) + "/Lüfter.wav".encode("latin-1"))
    open(latin, "w").close()
    assert str(file_named_in_table(tmp_path, "Lüfter.wav")) == latin
    (tmp_path / "a\\b.wav").write_bytes(b"")
    assert file_named_in_table(tmp_path, "a\\b.wav") == tmp_path / "a\\b.wav"
