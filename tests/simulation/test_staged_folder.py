import subprocess
import sys

import pytest

from na_ssl_hf.simulation.staged_folder import MANIFEST, staged_folder


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / MANIFEST).write_text("old")
    # A limit of the size of files stands for the end of the disk.
    code = f"""
import resource
from pathlib import Path
import numpy as np
from na_ssl_hf.simulation.staged_folder import staged_folder, write_float_wav
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    with staged_folder(Path({str(tmp_path / "set")!r}), overwrite=True) as folder:
        write_float_wav(folder / "fan" / "a.wav", np.zeros((2, 16000), np.float32), 16000)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a.wav cannot be written to ")
    assert done.stdout.count("\n") == 1
    assert "is the disk full?" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set" / MANIFEST).read_text() == "old"


def test_left_over_folders_of_a_kill_are_removed_and_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    (tmp_path / ".disk.staging-999999999-0").mkdir()
    with staged_folder(tmp_path / "set") as folder:
        (folder / MANIFEST).write_text("new")
    assert (tmp_path / "set").is_symlink()
    assert (tmp_path / "disk" / MANIFEST).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "set"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is not a folder"), staged_folder(tmp_path / "file"):
        pass
