import csv
import io
import os
import sys

import pytest

from na_ssl_hf.hub.whole_files import whole_file, whole_folder
from na_ssl_hf.tables import escape_formula, write_table

ODD_NAMES = [
    'a,"b".wav',
    "two\nlines.wav",
    "return\rcarriage.wav",
    "both\r\nends.wav",
    " blanks .wav ",
    "Lüfter 風扇.wav",
    "n" * 4000,
    "",
    "semi;colon\ttab.wav",
    "no\u2028line\x85end.wav",
]


def console(encoding, errors="strict", newline=None):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline=newline)


def printed(stream):
    stream.flush()
    return stream.buffer.getvalue()


def test_every_name_survives_the_way_through_a_file(tmp_path):
    rows = [[name, index] for index, name in enumerate(ODD_NAMES)]
    write_table(tmp_path / "new" / "t.csv", ["file", "score"], rows)
    with (tmp_path / "new" / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file, strict=True)) == [["file", "score"], *([name, str(i)] for name, i in rows)]
    assert os.listdir(tmp_path / "new") == ["t.csv"]
    write_table(tmp_path / "one.csv", None, [[""], ["a"]])
    assert (tmp_path / "one.csv").read_bytes() == b'""\na\n'


def test_numbers_keep_all_digits_and_nothing_is_an_empty_cell(tmp_path):
    write_table(tmp_path / "t.csv", None, [[-0.1 - 0.2, None, True, -3, float("-inf")]])
    assert (tmp_path / "t.csv").read_bytes() == b"-0.30000000000000004,,True,-3,-inf\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_console_has_the_line_end_of_its_system(newline):
    stream = console("utf-8", newline=newline)
    write_table(stream, ["file"], [["a.wav"]])
    assert printed(stream) == f"file{newline}a.wav{newline}".encode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_console_cannot_show_is_escaped_and_the_score_is_there(encoding):
    stream = console(encoding)
    write_table(stream, ["file", "score"], [["風扇.wav", 0.5], ["L\udcfcfter.wav", 0.25]])
    fan = "風扇.wav" if encoding == "utf-8" else "\\u98a8\\u6247.wav"
    assert printed(stream) == f"file,score\n{fan},0.5\nL\\udcfcfter.wav,0.25\n".encode(encoding)


def test_a_console_that_takes_any_bytes_gets_those_of_the_name():
    stream = console("ascii", "surrogateescape")
    write_table(stream, None, [["L\udcfcfter.wav", 0.25]])
    assert printed(stream) == b"L\xfcfter.wav,0.25\n"


def test_a_name_that_is_no_utf_8_is_escaped_in_files_which_stay_utf_8(tmp_path):
    write_table(tmp_path / "t.csv", None, [["L\udcfcfter.wav", 0.25], ["a\0b", 1]])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "L\\udcfcfter.wav,0.25\na\\x00b,1\n"


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "'=", "''@"])
def test_no_cell_of_text_is_a_formula_and_the_text_can_be_had_again(tmp_path, sign):
    name = f'{sign}cmd|"/c calc"!A1.wav'
    write_table(tmp_path / "t.csv", None, [[name, -1.5]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[f"'{name}", "-1.5"]]
    write_table(tmp_path / "t.csv", None, [[name, -1.5]], is_for_people=False)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[name, "-1.5"]]


@pytest.mark.parametrize("text", ["-1.5", "+2", "-.5e-7", "-inf", "'a.wav", "a=b.wav", "", "x-1"])
def test_numbers_and_harmless_text_are_not_escaped(text):
    assert escape_formula(text) == text


def test_negative_looking_names_are_escaped():
    assert escape_formula("-1.5.wav") == "'-1.5.wav"
    assert escape_formula("-1+cmd") == "'-1+cmd"


@pytest.mark.skipif(sys.platform == "win32", reason="whole paths of Windows are as short as names of Linux")
@pytest.mark.parametrize("name", ["n" * 251 + ".csv", "ü" * 127])
def test_the_longest_names_that_a_file_system_takes_can_be_written(tmp_path, name):
    with whole_file(tmp_path / name) as partial:
        partial.write_text("old")
    write_table(tmp_path / name, ["file"], [])
    assert (tmp_path / name).read_text() == "file\n"
    for content in ("old", "new"):
        with whole_folder(tmp_path / f"{name[:-1]}d") as staging:
            (staging / "file").write_text(content)
    assert (tmp_path / f"{name[:-1]}d" / "file").read_text() == "new"
    assert len(os.listdir(tmp_path)) == 2


def test_what_a_kill_left_of_a_folder_with_odd_signs_is_removed(tmp_path):
    # No process has this number: it is above the largest that Linux gives.
    left_over = tmp_path / ".a[1]*.staging-4194999-0"
    left_over.mkdir()
    with whole_folder(tmp_path / "a[1]*") as staging:
        (staging / "file").write_text("new")
    assert os.listdir(tmp_path) == ["a[1]*"]
