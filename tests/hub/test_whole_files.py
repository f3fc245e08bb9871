"""Files and folders are written whole or not at all, and never in place of a pipe, a device or a link."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from na_ssl_hf.hub import whole_files
from na_ssl_hf.hub.whole_files import whole_file, whole_folder


def write(folder, **contents):
    for name, text in contents.items():
        (folder / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def interrupted(context, path, fill):
    with context(path) as partial:
        fill(partial)
        raise KeyboardInterrupt


@pytest.fixture(params=["exchange", "one by one"])
def way(request, monkeypatch):
    if request.param == "one by one":
        monkeypatch.setattr(whole_files, "_exchange", lambda one, other: False)
    return request.param


def test_a_file_takes_its_place_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deeper" / "file"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(whole_file, path, lambda partial: partial.write_text("second"))
    assert contents(path.parent) == {"file": "first"}


def test_a_folder_takes_its_place_only_when_the_block_ends_well(tmp_path, way):
    folder = tmp_path / "deeper" / "folder"
    for text in ("first", "second"):
        with whole_folder(folder) as staging:
            write(staging, a=text)
    with pytest.raises(KeyboardInterrupt):
        interrupted(whole_folder, folder, lambda staging: write(staging, a="third"))
    assert contents(folder) == {"a": "second"}
    assert os.listdir(folder.parent) == ["folder"]


def test_entries_that_are_kept_stay_and_others_go(tmp_path, way):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, mine="notes", old="weights")
    (folder / "sub").mkdir()
    write(folder / "sub", deep="x")
    with whole_folder(folder, keeps=lambda name: name != "old") as staging:
        write(staging, new="weights")
    assert (folder / "sub" / "deep").read_text() == "x"
    assert sorted(os.listdir(folder)) == ["mine", "new", "sub"]


def test_links_are_followed(tmp_path, way):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    with whole_file(tmp_path / "link") as partial:
        partial.write_text("new")
    (tmp_path / "folder link").symlink_to(tmp_path / "elsewhere")
    with whole_folder(tmp_path / "folder link", keeps=lambda name: True) as staging:
        write(staging, more="x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder link").is_symlink()
    assert contents(tmp_path / "elsewhere") == {"file": "new", "more": "x"}


def test_pipes_and_devices_are_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    with whole_file(tmp_path / "pipe") as path:
        path.write_text("through")
    reader.join(timeout=10)
    assert received == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with whole_file(os.devnull) as path:
        path.write_text("gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask_whatever_a_library_sets(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "folder") as staging:
            write(staging, a="x", b="y")
            (staging / "a").chmod(0o600)
        with whole_file(tmp_path / "file") as partial:
            partial.write_text("x")
            partial.chmod(0o600)
    finally:
        os.umask(before)
    for path, wanted in (("folder", 0o777), ("folder/a", 0o666), ("folder/b", 0o666), ("file", 0o666)):
        assert (tmp_path / path).stat().st_mode & 0o777 == wanted & ~umask, path


def test_what_a_kill_left_behind_is_removed_but_not_what_another_process_is_writing(tmp_path):
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left_over = tmp_path / f".folder.staging-{killed.stdout.strip()}-abc"
    alive = tmp_path / f".folder.staging-{os.getppid()}-abc"
    for path in (left_over, alive):
        path.mkdir()
    with whole_folder(tmp_path / "folder") as staging:
        write(staging, a="x")
    assert not left_over.exists()
    assert alive.exists()


KILL = """
import os, signal, sys
from pathlib import Path
from na_ssl_hf.hub import whole_files
folder, call = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def counted(function):
    def wrapped(*arguments, **options):
        global count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped
for name in ("rename", "replace", "link", "mkdir", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
whole_files._exchange = counted(whole_files._exchange)
with whole_files.whole_folder(folder, keeps=lambda name: name == "mine") as staging:
    for name in ("a", "b", "c"):
        (staging / name).write_text("new")
print(count)
"""


def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path):
    old, new = {"mine": "notes", "a": "old", "z": "old"}, {"mine": "notes", "a": "new", "b": "new", "c": "new"}
    seen = set()
    for call in range(1, 40):
        folder = tmp_path / str(call) / "folder"
        folder.mkdir(parents=True)
        write(folder, **old)
        done = subprocess.run([sys.executable, "-c", KILL, folder, str(call)], capture_output=True, text=True)
        found = contents(folder)
        assert found in (old, new), call
        seen.add(tuple(sorted(found)))
        if done.returncode == 0:
            assert found == new
            break
    assert len(seen) == 2
    assert done.returncode == 0, "the steps were not all tried"


def test_a_full_disk_is_one_clear_error(tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class SafetensorError(Exception):
        pass

    def full_elsewhere(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for fail in (full, full_elsewhere):
        for name, context in (("file", whole_file), ("folder", whole_folder)):
            message = f"{name} cannot be written: No space left on device"
            with pytest.raises(OSError, match=message) as caught, context(tmp_path / name):
                fail()
            assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_files_and_folders_do_not_take_each_others_place(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="file must be a folder to write"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(OSError, match="folder must be a file to write"), whole_file(tmp_path / "folder"):
        pass


def test_the_next_file_removes_what_a_killed_process_left(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner in (ended.pid, os.getppid()):
        (tmp_path / f".a.{owner}.partial").touch()
    with whole_file(tmp_path / "a") as partial:
        partial.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a", f".a.{os.getppid()}.partial"}
