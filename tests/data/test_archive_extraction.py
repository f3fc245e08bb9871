import os
import stat
import zipfile

import pytest

from na_ssl_hf.data.archive_extraction import extract_zip


def archive_of(path, members):
    """A ZIP archive; `members` maps names or ZipInfos to contents."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def special(name, mode):
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


def with_name(name):
    """ZipInfo's constructor mends names; a hostile archive does not."""
    member = zipfile.ZipInfo("x")
    member.filename = name
    return member


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_files_are_unpacked_with_their_folders(tmp_path):
    members = {"fan/train/a.wav": b"a" * 10, "fan/attributes_00.csv": b"file_name", "__MACOSX/fan/._a.wav": b"x"}
    archive = archive_of(tmp_path / "dev_fan.zip", members)
    written = extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == ["fan/attributes_00.csv", "fan/train/a.wav"]
    assert sorted(path.read_bytes() for path in written) == [b"a" * 10, b"file_name"]


def test_a_second_run_rewrites_only_what_differs(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"a.wav": b"aaaa", "b.wav": b"bbbb", "c.wav": b"cccc"})
    out = tmp_path / "out"
    extract_zip(archive, out, show_progress=False)
    kept = (out / "a.wav").stat().st_mtime_ns, (out / "a.wav").stat().st_ino
    (out / "b.wav").write_bytes(b"BBBB")  # of an older revision
    (out / "c.wav").unlink()
    extract_zip(archive, out, show_progress=False)
    assert [(out / name).read_bytes() for name in ("a.wav", "b.wav", "c.wav")] == [b"aaaa", b"bbbb", b"cccc"]
    assert ((out / "a.wav").stat().st_mtime_ns, (out / "a.wav").stat().st_ino) == kept


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (with_name("/outside.wav"), "absolute"),
        (with_name("\\outside.wav"), "absolute"),
        (with_name("C:/outside.wav"), "absolute"),
        (with_name("../outside.wav"), "upwards"),
        (with_name("fan/../../outside.wav"), "upwards"),
        (with_name("fan\\..\\..\\outside.wav"), "upwards"),
        (special("fan/link.wav", stat.S_IFLNK | 0o777), "a link"),
        (special("fan/pipe.wav", stat.S_IFIFO | 0o666), "special file"),
        (with_name("fan/.good.wav.part"), "unfinished file"),
        (with_name("fan/.good.wav.123.partial"), "unfinished file"),
    ],
    ids=["root", "backslash", "drive", "up", "inner up", "backslash up", "link", "pipe", "part", "partial"],
)
def test_unsafe_members_are_refused_before_anything_is_written(tmp_path, member, reason):
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan/good.wav": b"good", member: b"bad"})
    with pytest.raises(ValueError, match=f"dev_fan.zip must hold plain files only.*{reason}"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path) == ["dev_fan.zip"]


def test_a_name_with_a_hidden_end_is_refused(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan/good.wav_": b"good"})
    archive.write_bytes(archive.read_bytes().replace(b"good.wav_", b"good.wav\0"))
    with pytest.raises(ValueError, match="no valid name"):
        extract_zip(archive, tmp_path / "out", show_progress=False)


def test_an_encrypted_member_is_refused(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan/a.wav": b"aaaa"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flags of the central directory
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        extract_zip(archive, tmp_path / "out", show_progress=False)


def test_a_link_on_disk_is_not_followed_outside(tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "fan").symlink_to(outside)
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan/a.wav": b"a"})
    with pytest.raises(ValueError, match="a link leads elsewhere"):
        extract_zip(archive, out, show_progress=False)
    assert not list(outside.iterdir())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_named_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "dev_fan.zip", "w") as archive:
        archive.writestr("a.wav", b"one")
        archive.writestr("./a.wav", b"two")
    with pytest.raises(ValueError, match="every file once"):
        extract_zip(tmp_path / "dev_fan.zip", tmp_path / "out", show_progress=False)


def test_broken_archives_leave_no_half_file(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"a.wav": b"sound"})
    archive.write_bytes(archive.read_bytes().replace(b"sound", b"noise"))
    with pytest.raises(OSError, match=r"dev_fan\.zip cannot be unpacked"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == []
    archive.write_bytes(b"not an archive")
    with pytest.raises(OSError, match=r"dev_fan\.zip cannot be unpacked"):
        extract_zip(archive, tmp_path / "out", show_progress=False)


def test_an_archive_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "dev_fan.zip", {"a.wav": b"sound"})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 4})())
    with pytest.raises(OSError, match="has room for"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == []


def test_a_file_that_is_also_a_folder_is_refused(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan": b"file", "fan/train/a.wav": b"a"})
    with pytest.raises(ValueError, match=r"dev_fan\.zip must not name 'fan' as a file and as the folder of another"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path) == ["dev_fan.zip"]


def test_bombs_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", b"a")
        archive.writestr("zeros.wav", bytes(1 << 20))
    monkeypatch.setattr("na_ssl_hf.data.archive_extraction._ALLOWED_BYTES", 1000)
    with pytest.raises(ValueError, match=r"bomb\.zip must unpack to at most 100 times its size.*'zeros\.wav'"):
        extract_zip(tmp_path / "bomb.zip", tmp_path / "out", show_progress=False)
    monkeypatch.undo()
    # Silence compresses as well, so little of it is nothing to refuse.
    extract_zip(tmp_path / "bomb.zip", tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == ["a.wav", "zeros.wav"]


def test_members_that_share_their_bytes_are_refused(tmp_path):
    archive = archive_of(tmp_path / "bomb.zip", {f"{letter}.wav": bytes(1000) for letter in "abcd"})
    content = archive.read_bytes()
    # The content of three members is cut out, and all entries of the directory name the first.
    first, directory, end = content.index(b"b.wav") - 30, content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entries = bytearray(content[directory:end])
    for start in range(0, len(entries), len(entries) // 4):
        entries[start + 42 : start + 46] = bytes(4)
    tail = bytearray(content[end:])
    tail[16:20] = first.to_bytes(4, "little")
    archive.write_bytes(content[:first] + entries + tail)
    with pytest.raises(ValueError, match=r"bomb\.zip must hold every member in bytes of its own, got 4000 bytes in"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path) == ["bomb.zip"]


def test_content_that_is_longer_than_the_archive_says_is_refused(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"a.wav": b"abcdefgh"})
    content = archive.read_bytes()
    archive.write_bytes(content.replace((8).to_bytes(4, "little") * 2, (4).to_bytes(4, "little") * 2))
    with pytest.raises(OSError, match=r"dev_fan\.zip cannot be unpacked"):
        extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == []


def test_unfinished_files_of_a_kill_are_removed_and_others_stay(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {"fan/a.wav": b"aaaa"})
    (tmp_path / "out" / "fan").mkdir(parents=True)
    for name in (".a.wav.123.partial", ".b.wav.123.partial", ".a.wav.mine.partial"):
        (tmp_path / "out" / "fan" / name).write_bytes(b"aa")
    extract_zip(archive, tmp_path / "out", show_progress=False)
    assert files_below(tmp_path / "out") == ["fan/.a.wav.mine.partial", "fan/.b.wav.123.partial", "fan/a.wav"]


def test_unpacked_files_have_the_modes_of_the_umask(tmp_path):
    archive = archive_of(tmp_path / "dev_fan.zip", {special("a.wav", stat.S_IFREG | 0o600): b"a"})
    before = os.umask(0o027)
    try:
        (written,) = extract_zip(archive, tmp_path / "out", show_progress=False)
    finally:
        os.umask(before)
    assert written.stat().st_mode & 0o777 == 0o640
