import os
from pathlib import Path

import pytest

from na_ssl_hf.data.sound_files import find_sound_files


@pytest.fixture(autouse=True)
def warnings_are_caught(caplog, monkeypatch):
    """Warnings of the package reach pytest although the library's logger may not pass them on."""
    monkeypatch.setattr("na_ssl_hf.data.sound_files.logger.propagate", True)
    caplog.set_level("WARNING")


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names_below(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_sound_files([root])]


def test_files_are_taken_by_their_suffix_in_any_case(tmp_path, caplog):
    root = make(tmp_path / "day", "b.WAV", "a.wav", "c/d.Flac", "c/e.txt", "f.wav.bak", "g.MP3", "wav")
    assert names_below(root) == ["a.wav", "b.WAV", "c/d.Flac", "g.MP3"]
    assert not caplog.records


def test_hidden_files_and_folders_are_passed_over_and_folders_may_be_named_as_files(tmp_path):
    root = make(tmp_path / "day", "._a.wav", "a.wav", ".trash/b.wav", "take.wav/c.wav")
    assert names_below(root) == ["a.wav", "take.wav/c.wav"]
    # The rule is about what lies below the folder, not about where the folder lies.
    assert names_below(make(tmp_path / ".cache" / "x", "d.wav")) == ["d.wav"]


def test_single_files_are_taken_whatever_their_name(tmp_path):
    root = make(tmp_path, ".hidden.wav", "no_suffix", "folder/z.wav", "a.wav")
    given = [root / "no_suffix", root / "folder", str(root / "a.wav"), root / ".hidden.wav"]
    assert find_sound_files(given) == [root / "no_suffix", root / "folder/z.wav", root / "a.wav", root / ".hidden.wav"]


def test_links_are_followed_and_loops_end(tmp_path, caplog):
    root = make(tmp_path / "day", "m1/a.wav")
    make(tmp_path / "disk2", "b.wav", "deep/c.wav")
    (root / "m2").symlink_to(tmp_path / "disk2")
    (root / "m1" / "up").symlink_to(root)
    (tmp_path / "disk2" / "deep" / "again").symlink_to(tmp_path / "disk2")
    assert names_below(root) == ["m1/a.wav", "m2/b.wav", "m2/deep/c.wav"]
    assert len(caplog.messages) == 2
    assert find_sound_files([root / "m2"]) == [root / "m2/b.wav", root / "m2/deep/c.wav"]


def test_a_file_without_links_goes_before_its_links(tmp_path, caplog):
    root = make(tmp_path / "day", "z/a.wav")
    (root / "0.wav").symlink_to(root / "z" / "a.wav")
    (root / "1").symlink_to(root / "z")
    assert names_below(root) == ["z/a.wav"]
    assert any(f"{root / '0.wav'} is {root / 'z' / 'a.wav'}" in message for message in caplog.messages)


def test_the_same_file_counts_once(tmp_path, caplog):
    root = make(tmp_path, "a.wav", "b.wav")
    (tmp_path / "link.wav").symlink_to(root / "a.wav")
    given = [root / "b.wav", root / "a.wav", root / "link.wav", root]
    assert find_sound_files(given) == [root / "b.wav", root / "a.wav"]
    assert caplog.messages[-1].startswith("4 sound files were named more than once and count once")


def test_links_that_lead_nowhere_are_not_passed_over_in_silence(tmp_path, caplog):
    root = make(tmp_path / "day", "b.wav")
    (root / "a.wav").symlink_to(root / "gone.wav")
    (root / "loop.wav").symlink_to(root / "loop.wav")
    (root / "m2").symlink_to(root / "unmounted")
    assert names_below(root) == ["a.wav", "b.wav", "loop.wav"]  # the reader says that they are missing
    assert len(caplog.messages) == 1
    assert str(root / "m2") in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*a\.wav"):
        find_sound_files([root / "a.wav"])


def test_empty_and_missing_folders_are_named(tmp_path):
    make(tmp_path / "texts", "a.txt", "._b.wav")
    with pytest.raises(FileNotFoundError, match=r"texts must hold sound files \(\.wav, .*, got none"):
        find_sound_files([tmp_path / "texts"])
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*none"):
        find_sound_files([tmp_path / "none"])
    assert find_sound_files([]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    root = make(tmp_path / "day", "a.wav", "closed/b.wav")
    (root / "closed").chmod(0)
    try:
        with pytest.raises(PermissionError, match="closed"):
            find_sound_files([root])
    finally:
        (root / "closed").chmod(0o755)
