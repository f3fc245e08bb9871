"""Against an HTTP server on this machine that answers as Zenodo does, with Range, and breaks off where told to."""

import hashlib
import io
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from na_ssl_hf.data.dcase.download import (
    RECORDS,
    _write,
    download_dcase2026,
    download_file,
    list_record,
    select_archives,
)

CONTENT = bytes(range(256)) * 2000  # several reads of the server, one of the client


class Zenodo(ThreadingHTTPServer):
    """Records of files; `requests` keeps (path, Range) of every answered request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.records: dict[int, dict[str, bytes]] = {}
        self.entries: dict[str, dict] = {}  # what a record says of a file, where it is not the truth
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []  # bytes of the next answers' bodies, then the connection is cut
        self.fail_with: list[int] = []  # status of the next answers for files
        self.knows_range = True

    def entry(self, record, name):
        md5 = hashlib.md5(self.records[record][name]).hexdigest()
        truth = {
            "key": name,
            "size": len(self.records[record][name]),
            "checksum": f"md5:{md5}",
            "links": {"self": f"{self.url}/api/records/{record}/files/{name}/content"},
        }
        return {**truth, **self.entries.get(name, {})}


class _Handler(BaseHTTPRequestHandler):
    server: Zenodo

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, (record, *rest) = self.server, self.path.removeprefix("/api/records/").split("/")
        server.requests.append((self.path, self.headers["Range"]))
        files = server.records.get(int(record)) if record.isdigit() else None
        if files is None or (rest and rest[1] not in files):
            self.send_error(404)
        elif not rest:
            self.answer(200, json.dumps({"files": [server.entry(int(record), name) for name in files]}).encode())
        elif server.fail_with:
            self.send_error(server.fail_with.pop(0))
        elif self.headers["Range"] and server.knows_range:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            size = len(files[rest[1]])
            self.answer(206, files[rest[1]][start:], {"Content-Range": f"bytes {start}-{size - 1}/{size}"})
        else:
            self.answer(200, files[rest[1]])

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if len(self.path.split("/")) > 4 and self.server.break_after:
            body = body[: self.server.break_after.pop(0)]
        self.wfile.write(body)


@pytest.fixture
def zenodo(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Zenodo()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def zip_of(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def dcase(zenodo):
    zenodo.records = {
        RECORDS["development"]: {
            "dev_fan.zip": zip_of({"fan/train/a.wav": b"fan"}),
            "dev_ToyCar.zip": zip_of({"ToyCar/train/a.wav": b"old"}),
            "dev_ToyCar_r2.zip": zip_of({"ToyCar/train/a.wav": b"new"}),
            "dev_ToyCarEmu.zip": zip_of({"ToyCarEmu/train/a.wav": b"emu"}),
            "README.md": b"text",
        },
        RECORDS["evaluation-train"]: {"eval_data_Sander_train.zip": zip_of({"Sander/train/a.wav": b"train"})},
        RECORDS["evaluation-test"]: {"eval_data_Sander_test.zip": zip_of({"Sander/test/a.wav": b"test"})},
    }
    return zenodo


@pytest.fixture
def remote(zenodo):
    """One file that the server offers."""
    zenodo.records[1] = {"dev_fan.zip": CONTENT}
    [file] = list_record(1, zenodo.url)
    zenodo.requests.clear()
    return file


def fetch(file, folder):
    return download_file(file, folder, retry_delay_s=0, show_progress=False)


def download(server, out, **settings):
    return download_dcase2026(out, base_url=server.url, retry_delay_s=0, show_progress=False, **settings)


def test_all_sets_are_unpacked_in_the_layout_that_loads(dcase, tmp_path):
    archives = download(dcase, tmp_path)
    assert sorted(path.name for path in archives) == [
        "dev_ToyCarEmu.zip",
        "dev_ToyCar_r2.zip",
        "dev_fan.zip",
        "eval_data_Sander_test.zip",
        "eval_data_Sander_train.zip",
    ]
    contents = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.wav")}
    assert contents == {
        "development/fan/train/a.wav": b"fan",
        "development/ToyCar/train/a.wav": b"new",
        "development/ToyCarEmu/train/a.wav": b"emu",
        "evaluation/Sander/train/a.wav": b"train",
        "evaluation/Sander/test/a.wav": b"test",
    }


def test_what_is_there_is_not_downloaded_again(dcase, tmp_path):
    download(dcase, tmp_path)
    dcase.requests.clear()
    download(dcase, tmp_path)
    assert not [path for path, _ in dcase.requests if path.endswith("/content")]
    (tmp_path / "archives/dev_fan.zip").write_bytes(b"damaged on disk")
    download(dcase, tmp_path)
    assert [path.split("/")[-2] for path, _ in dcase.requests if path.endswith("/content")] == ["dev_fan.zip"]


def test_archives_are_written_through_links(dcase, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "dev_fan.zip").symlink_to(tmp_path / "disk" / "fan.zip")
    (tmp_path / "disk" / "fan.zip.part").write_bytes(b"")
    for _ in range(2):
        assert download(dcase, tmp_path, machines=["fan"]) == [tmp_path / "archives" / "dev_fan.zip"]
    assert (tmp_path / "archives" / "dev_fan.zip").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["fan.zip"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match=r"x\.zip\.part cannot be written"):
        _write(full, b"x", tmp_path / "x.zip.part")


def test_machines_and_sets_are_chosen_by_name(dcase, tmp_path):
    [archive] = download(dcase, tmp_path, machines=["ToyCar"], extract=False)
    assert archive.name == "dev_ToyCar_r2.zip"
    assert not (tmp_path / "development").exists()
    [archive] = download(dcase, tmp_path, sets=["evaluation-test"])
    assert archive.name == "eval_data_Sander_test.zip"
    with pytest.raises(ValueError, match=r"machines must be named in the archives .*'pump'"):
        download(dcase, tmp_path, machines=["pump", "fan"])
    with pytest.raises(ValueError, match=r"sets must be some of .*'dev'"):
        download(dcase, tmp_path, sets=["dev"])


def test_the_latest_revision_is_taken(zenodo):
    names = ("dev_a_r2.zip", "dev_a_r10.zip", "dev_a.zip", "dev_b.zip", "dev_c_r1.zip", "notes.txt")
    zenodo.records[1] = {name: name.encode() for name in names}
    chosen = [file.name for file in select_archives(list_record(1, zenodo.url))]
    assert chosen == ["dev_a_r10.zip", "dev_b.zip", "dev_c_r1.zip"]


def test_an_unsafe_archive_is_refused(dcase, tmp_path):
    dcase.records[RECORDS["development"]]["dev_fan.zip"] = zip_of({"../../outside.wav": b"bad"})
    with pytest.raises(ValueError, match="upwards"):
        download(dcase, tmp_path / "out", machines=["fan"])
    assert not list(tmp_path.rglob("outside.wav"))


def test_a_download_that_was_killed_is_continued(zenodo, remote, tmp_path):
    (tmp_path / "dev_fan.zip.part").write_bytes(CONTENT[:1000])
    path = fetch(remote, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in zenodo.requests] == ["bytes=1000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["dev_fan.zip"]


def test_broken_connections_are_opened_again(zenodo, remote, tmp_path):
    zenodo.break_after = [1000, 2000, 0, 5000]
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in zenodo.requests] == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-", "bytes=8000-"]


def test_a_server_without_range_starts_again(zenodo, remote, tmp_path):
    zenodo.knows_range = False
    (tmp_path / "dev_fan.zip.part").write_bytes(b"x" * 1000)
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(zenodo, remote, tmp_path):
    zenodo.fail_with = [503, 429]
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    (tmp_path / "dev_fan.zip").unlink()
    zenodo.fail_with = [403]
    with pytest.raises(OSError, match=r"dev_fan\.zip/content cannot be downloaded: .*403"):
        fetch(remote, tmp_path)
    zenodo.fail_with = [503] * 9
    zenodo.requests.clear()
    with pytest.raises(OSError, match=r"503.*run again"):
        fetch(remote, tmp_path)
    assert len(zenodo.requests) == 5


def test_given_up_downloads_can_be_continued(zenodo, remote, tmp_path):
    zenodo.break_after = [1000, 0, 0, 0, 0]
    with pytest.raises(OSError, match="ended early; run again to go on after 1000 bytes"):
        fetch(remote, tmp_path)
    assert not (tmp_path / "dev_fan.zip").exists()
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert zenodo.requests[-1][1] == "bytes=1000-"


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(zenodo, remote, tmp_path):
    (tmp_path / "dev_fan.zip.part").write_bytes(b"x" * 1000)  # of another version
    with pytest.raises(OSError, match=f"must have the MD5 {remote.md5}"):
        fetch(remote, tmp_path)
    assert not list(tmp_path.iterdir())
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(zenodo, remote, tmp_path):
    (tmp_path / "dev_fan.zip.part").write_bytes(CONTENT + b"x")
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_more_than_announced_is_an_error(zenodo, remote, tmp_path):
    zenodo.records[1]["dev_fan.zip"] = CONTENT + b"x"
    with pytest.raises(OSError, match="got more"):
        fetch(remote, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_before_the_download(zenodo, remote, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="has room for"):
        fetch(remote, tmp_path)
    assert not zenodo.requests


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"key": "../dev_fan.zip"}, ValueError, "plain file names"),
        ({"key": "a\\dev_fan.zip"}, ValueError, "plain file names"),
        ({"links": {"self": "file:///etc/hostname"}}, ValueError, "HTTP addresses"),
        ({"checksum": "sha1:00"}, OSError, "must give an MD5"),
        ({"size": "12"}, OSError, "size of dev_fan.zip"),
        ({"links": None}, OSError, "does not list files as Zenodo does"),
    ],
)
def test_records_are_not_trusted(zenodo, remote, entry, error, message):
    zenodo.entries["dev_fan.zip"] = entry
    with pytest.raises(error, match=message):
        list_record(1, zenodo.url)


def test_servers_that_do_not_answer_are_named(zenodo):
    with pytest.raises(OSError, match=r"/api/records/2 cannot be read: .*404"):
        list_record(2, zenodo.url)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/api/records/1 cannot be read"):
        list_record(1, "http://127.0.0.1:9")
