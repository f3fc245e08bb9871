"""On miniature copies of the corpora, in the folder layout that their archives unpack to."""

import csv
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from na_ssl_hf.data.corpora.download import download_corpus, join_split_zip
from na_ssl_hf.data.corpora.manifest import SoundFile, read_crop, read_manifest, write_manifest
from na_ssl_hf.data.corpora.prepare import prepare_corpus


def noise(seconds=0.5, rate=16000, channels=1, seed=0):
    """(frames, channels) float32 within +-0.5."""
    frames = round(seconds * rate)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)


def write(path: Path, samples=None, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(rate=rate) if samples is None else samples, rate, **options)


def write_rows(path: Path, rows: list[list]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def prepare(source, out, *arguments, **settings):
    return prepare_corpus(source, out, *arguments, show_progress=False, **settings)


def splits(prepared, root="audio"):
    """Name without suffix -> split."""
    folder = prepared.manifest.parent / root
    return {os.path.splitext(os.path.relpath(sound.path, folder))[0]: sound.split for sound in prepared.sounds}


@pytest.fixture
def fsd50k(tmp_path):
    root = tmp_path / "FSD50K"
    for name in ("64760", "16399", "34119"):
        write(root / "FSD50K.dev_audio" / f"{name}.wav", rate=44100)
    write(root / "FSD50K.eval_audio" / "37199.wav", rate=44100)
    dev = [["64760", "Crackle", "/m/07rrlb6", "train"], ["16399", '"Dog,Bark"', "/m/0bt9lr", "val"]]
    dev += [["34119", "Rain", "/m/06mb1", "train"], ["99999", "Rain", "/m/06mb1", "train"]]
    write_rows(root / "FSD50K.ground_truth" / "dev.csv", [["fname", "labels", "mids", "split"], *dev])
    write_rows(root / "FSD50K.ground_truth" / "eval.csv", [["fname", "labels", "mids"], ["37199", "Fart", "/m/02_nn"]])
    licences = {name: {"license": "http://creativecommons.org/licenses/by/3.0/"} for name in ("64760", "16399")}
    (root / "FSD50K.metadata").mkdir()
    (root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").write_text(json.dumps(licences))
    return root


@pytest.fixture
def folder(tmp_path):
    """40 sounds of several rates, formats and sub-folders."""
    root = tmp_path / "mine"
    for i in range(40):
        suffix = (".wav", ".flac", ".WAV", ".ogg")[i % 4]
        write(root / f"room {i % 3}" / f"sound_{i}{suffix}", noise(0.2, rate := (44100, 48000, 16000)[i % 3]), rate)
    return root


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def test_fsd50k_keeps_its_own_splits_and_licences(fsd50k, tmp_path):
    prepared = prepare(fsd50k, tmp_path / "out", "fsd50k", validation_share=0.9)
    assert splits(prepared) == {
        "FSD50K.dev_audio/64760": "train",
        "FSD50K.dev_audio/16399": "validation",
        "FSD50K.dev_audio/34119": "train",
        "FSD50K.eval_audio/37199": "test",
    }
    by_name = {Path(sound.path).stem: sound for sound in prepared.sounds}
    assert by_name["64760"].licence == "http://creativecommons.org/licenses/by/3.0/"
    assert by_name["37199"].licence is None
    assert {(sound.corpus, sound.sampling_rate, sound.num_frames) for sound in prepared.sounds} == {
        ("fsd50k", 16000, 8000)
    }
    assert [(sound.path, sound.reason) for sound in prepared.rejected] == [("FSD50K.dev_audio/99999.wav", "missing")]


def test_fsd50k_development_set_alone_and_one_folder_up(fsd50k, tmp_path):
    shutil.rmtree(fsd50k / "FSD50K.eval_audio")
    (fsd50k / "FSD50K.ground_truth" / "eval.csv").unlink()
    prepared = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", "fsd50k")
    assert sorted(splits(prepared).values()) == ["train", "train", "validation"]
    (fsd50k / "FSD50K.ground_truth" / "dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.csv"):
        prepare(fsd50k, tmp_path / "out", "fsd50k")


def test_wham_recordings_of_two_and_four_channels(tmp_path):
    audio = tmp_path / "wham" / "high_res_wham" / "audio"
    samples = {name: noise(0.3, 48000, channels, seed=channels) for name, channels in (("a", 2), ("b", 4))}
    for name, values in samples.items():
        write(audio / f"{name}.wav", values, 48000, subtype="PCM_24")
    write_rows(audio.parent / "high_res_metadata.csv", [["filename"], ["a.wav"]])
    write(tmp_path / "wham" / "elsewhere.wav")
    prepared = prepare(tmp_path / "wham", tmp_path / "out", "wham")
    for sound in prepared.sounds:
        mono = samples[Path(sound.path).stem].mean(axis=1)
        expected = soxr.resample(mono, 48000, 16000)
        np.testing.assert_allclose(read_crop(sound, 0, len(expected)), expected, atol=1e-4)
    assert len(prepared.sounds) == 2


def test_demand_gives_one_channel_per_environment(tmp_path):
    for environment in ("DKITCHEN", "TMETRO"):
        for channel in range(1, 17):
            write(tmp_path / "demand" / environment / f"ch{channel:02}.wav", noise(0.1, 48000), 48000)
    write(tmp_path / "demand" / "PCAFETER" / "ch02.wav")
    prepared = prepare(tmp_path / "demand", tmp_path / "out", "demand")
    assert sorted(splits(prepared)) == ["DKITCHEN/ch01", "TMETRO/ch01"]
    assert [(sound.path, sound.reason) for sound in prepared.rejected] == [("PCAFETER/ch01.wav", "missing")]


@pytest.mark.parametrize("root", ["", "QUT-NOISE/"])
def test_qut_noise_leaves_labels_and_code_alone(tmp_path, root):
    qut = tmp_path / "qut" / root / "QUT-NOISE"
    for name in ("CAFE-CAFE-1", "CAR-WINDOWNB-2", "REVERB-POOL-1"):
        write(qut / f"{name}.wav", noise(0.2, 48000, 2), 48000)
        (qut / "labels").mkdir(exist_ok=True)
        (qut / "labels" / f"{name}.lab.txt").write_text("0 1 event\n")
    write(qut / "impulses" / "ignored.wav")
    prepared = prepare(tmp_path / "qut", tmp_path / "out", "qut-noise")
    assert sorted(splits(prepared)) == ["CAFE-CAFE-1", "CAR-WINDOWNB-2", "REVERB-POOL-1"]


@pytest.mark.parametrize("kind", ["fsd50k", "wham", "demand", "qut-noise", "folder"])
def test_a_folder_of_another_layout_is_an_error_that_says_the_right_one(tmp_path, kind):
    (tmp_path / "other" / "folder").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"source must hold .*\.wav|source must hold FSD50K\.dev_audio"):
        prepare(tmp_path / "other", tmp_path / "out", kind)
    with pytest.raises(FileNotFoundError, match="nothing found at"):
        prepare(tmp_path / "missing", tmp_path / "out", kind)


def test_table_decides_which_files_are_taken(folder, tmp_path):
    rows = [["path", "split", "licence", "seconds"]]
    rows += [[path.relative_to(tmp_path).as_posix(), "train", "CC0", ""] for path in sorted(folder.rglob("*.wav"))]
    rows += [["mine/room 1/sound_1.flac", "eval", "", ""], ["mine/gone.wav", "train", "", ""]]
    rows += [["mine/room 0/sound_3.ogg", "sharealike", "GPL-2+", ""], ["elsewhere/x.wav", "train", "", ""]]
    table = tmp_path / "manifest.csv"
    write_rows(table, rows)
    prepared = prepare(
        folder, tmp_path / "out", manifest_csv=table, manifest_split="train", validation_share=0.3, convert=False
    )
    assert {Path(sound.path).suffix for sound in prepared.sounds} == {".wav"}
    assert {sound.split for sound in prepared.sounds} == {"train", "validation"}
    assert {sound.licence for sound in prepared.sounds} == {"CC0"}
    assert [sound.path for sound in prepared.rejected] == ["gone.wav"]
    held_out = prepare(folder, tmp_path / "eval", manifest_csv=table, manifest_split="eval", convert=False)
    assert [(Path(sound.path).name, sound.split) for sound in held_out.sounds] == [("sound_1.flac", "test")]
    with pytest.raises(ValueError, match=r"must have splits of .*, got 'sharealike'"):
        prepare(folder, tmp_path / "all", manifest_csv=table)
    with pytest.raises(ValueError, match="manifest_csv must name files below"):
        prepare(folder, tmp_path / "none", manifest_csv=table, manifest_split="dev")


def test_table_with_validation_of_its_own_is_not_divided(folder, tmp_path):
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.wav"))]
    table = folder / "split.csv"
    write_rows(table, [["path", "split"], [names[0], "val"], *([name, "train"] for name in names[1:])])
    prepared = prepare(folder, tmp_path / "out", manifest_csv=table, validation_share=0.5)
    assert splits(prepared) == {os.path.splitext(name)[0]: "train" for name in names} | {names[0][:-4]: "validation"}


def test_table_of_windows_with_latin_1_names(tmp_path):
    source = tmp_path / "mine"
    write(source / "room 1" / "L\u00fcfter.wav")
    write(source / "b.WAV")
    table = source / "split.csv"
    rows = ["path,split", "room 1\\L\u00fcfter.WAV,train", "b.wav,val", "room 1\\gone.wav,train"]
    table.write_bytes("\r\n".join(rows).encode("latin-1"))
    prepared = prepare(source, tmp_path / "out", manifest_csv=table)
    assert splits(prepared) == {"room 1/L\u00fcfter": "train", "b": "validation"}
    assert [(sound.path, sound.reason) for sound in prepared.rejected] == [("room 1/gone.wav", "missing")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
@pytest.mark.parametrize("convert", [True, False])
def test_files_with_names_in_another_encoding(tmp_path, convert):
    source = tmp_path / "mine"
    write(source / "good.wav")
    for name, content in (("L\u00fcfter.wav", (source / "good.wav").read_bytes()), ("\u00e4.wav", b"")):
        with open(os.fsencode(source) + b"/" + name.encode("latin-1"), "wb") as file:
            file.write(content)
    prepared = prepare(source, tmp_path / "out", convert=convert)
    sounds = read_manifest(prepared.manifest)
    assert [os.fsencode(Path(sound.path).stem) for sound in sounds] == [b"L\xfcfter", b"good"]
    assert np.array_equal(read_crop(sounds[0], 0, 8000), read_crop(sounds[1], 0, 8000))
    assert b"\xe4.wav,empty,0 bytes" in (tmp_path / "out" / "rejected.csv").read_bytes()
    assert prepare(source, tmp_path / "out", convert=convert).num_kept == 2 * convert


def test_the_table_of_rejected_sounds_holds_no_formula(tmp_path):
    write(tmp_path / "mine" / "good.wav")
    (tmp_path / "mine" / "=cmd.wav").touch()
    prepare(tmp_path / "mine", tmp_path / "out")
    assert "\n'=cmd.wav,empty,0 bytes" in (tmp_path / "out" / "rejected.csv").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,split\na\0.wav,train\n", "line 2: must be CSV, got a line with a NUL character"),
        (b"path,split\n" + b"a" * 200_000 + b",train\n", "line 2: must be CSV, got a line with field larger"),
    ],
    ids=["NUL", "huge"],
)
def test_tables_that_are_no_csv_are_one_error(tmp_path, content, message):
    write(tmp_path / "a" / "1.wav")
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"table\.csv, {message}"):
        prepare(tmp_path / "a", tmp_path / "out", manifest_csv=tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "split"]], "must have the columns .* missing"),
        ([["path", "split"], ["a.wav"]], "line 2: must fill"),
        ([["path", "split"], ["", "train"]], "line 2: must fill"),
    ],
)
def test_bad_tables(tmp_path, rows, message):
    write(tmp_path / "a" / "1.wav")
    write_rows(tmp_path / "table.csv", rows)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "a", tmp_path / "out", manifest_csv=tmp_path / "table.csv")


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def saved_sounds(folder: Path, count=6) -> list[str]:
    for i in range(count):
        write(folder / f"clip{i}.wav", noise(0.2, 44100, seed=i), 44100)
    return [str(folder / f"clip{i}.wav") for i in range(count)]


def test_dataset_of_paths_bytes_and_strings_name_sounds_alike(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = saved_sounds(tmp_path / "a")
    features = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    contents = [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in reversed(paths)]
    strings = datasets.Dataset.from_dict({"audio": paths})
    sources = {
        "strings": strings,
        "audio": strings.cast_column("audio", datasets.Audio()),
        "bytes": datasets.Dataset.from_dict({"audio": contents}, features=features),
        "stream": strings.cast_column("audio", datasets.Audio(decode=False)).to_iterable_dataset(),
    }
    strings.save_to_disk(str(tmp_path / "saved"))
    sources["saved"] = str(tmp_path / "saved")
    found = [
        splits(prepare(source, tmp_path / f"out-{name}", "dataset", validation_share=0.5))
        for name, source in sources.items()
    ]
    assert all(other == found[0] for other in found)
    assert len(found[0]) == 6
    assert set(found[0].values()) == {"train", "validation"}


def test_dataset_dict_column_names_and_odd_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = saved_sounds(tmp_path / "a")
    parts = {"train": [*paths[:4], paths[0], None, "gone.wav"], "test": paths[4:]}
    source = datasets.DatasetDict({name: datasets.Dataset.from_dict({"sound": part}) for name, part in parts.items()})
    prepared = prepare(source, tmp_path / "out", "dataset", audio_column="sound", corpus="clips", validation_share=0.0)
    assert sorted(sound.split for sound in prepared.sounds) == ["test"] * 2 + ["train"] * 4
    assert {sound.corpus for sound in prepared.sounds} == {"clips"}
    assert [sound.reason for sound in prepared.rejected] == ["duplicate", "missing", "missing"]
    with pytest.raises(ValueError, match=r"audio_column must be one of \['sound'\], got 'audio'"):
        prepare(source, tmp_path / "out2", "dataset")
    with pytest.raises(ValueError, match=r"must have splits of .*, got 'extra'"):
        prepare(datasets.DatasetDict({"extra": source["train"]}), tmp_path / "out3", "dataset", audio_column="sound")
    with pytest.raises(ValueError, match="audio_column must hold paths or undecoded sounds, got int"):
        prepare(datasets.Dataset.from_dict({"audio": [1]}), tmp_path / "out4", "dataset")


def test_bytes_cannot_stay_where_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = Path(saved_sounds(tmp_path / "a", 1)[0]).read_bytes()
    source = datasets.Dataset.from_dict({"audio": [{"bytes": content, "path": None}]})
    with pytest.raises(ValueError, match="convert must be true"):
        prepare(source, tmp_path / "out", "dataset", convert=False)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def test_splits_depend_on_names_only(folder, tmp_path):
    first = splits(prepare(folder, tmp_path / "out", validation_share=0.3))
    assert 0 < sum(split == "validation" for split in first.values()) < 25
    renamed = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(folder, renamed)
    for i in range(10):
        write(renamed / "a new one" / f"{i}.wav", noise(0.2))
    again = splits(prepare(renamed, tmp_path / "out2", validation_share=0.3))
    assert {name: again[name] for name in first} == first
    # The prepared FLAC files are a corpus, too, and so is the corpus of the originals.
    prepared = prepare(tmp_path / "out" / "audio", tmp_path / "out3", validation_share=0.3)
    assert splits(prepared) == first
    originals = prepare(folder, tmp_path / "out4", validation_share=0.3, convert=False)
    assert splits(originals, folder) == first
    # A larger share keeps what was in validation there.
    more = splits(prepare(folder, tmp_path / "out5", validation_share=0.6))
    assert all(more[name] == "validation" for name, split in first.items() if split == "validation")


def test_the_hash_itself_does_not_change(tmp_path):
    for i in range(12):
        write(tmp_path / "mine" / f"{i}.wav", noise(0.1))
    found = splits(prepare(tmp_path / "mine", tmp_path / "out", validation_share=0.25))
    assert [name for name, split in found.items() if split == "validation"] == ["8", "9"]


@pytest.mark.parametrize("pattern", [r"^\d-\d+", r"^(\d-\d+)-"])
def test_groups_stay_together(tmp_path, pattern):
    for recording in range(12):
        for take in "ABC":
            write(tmp_path / "esc" / f"1-{recording}-{take}.wav", noise(0.1))
    found = splits(prepare(tmp_path / "esc", tmp_path / "out", validation_share=0.4, group_pattern=pattern))
    groups = {}
    for name, split in found.items():
        groups.setdefault(name[:-2], set()).add(split)
    assert all(len(group) == 1 for group in groups.values())
    assert set(found.values()) == {"train", "validation"}


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_resume_keeps_finished_files_and_makes_the_rest(folder, tmp_path):
    out = tmp_path / "out"
    whole = prepare(folder, out)
    manifest = whole.manifest.read_bytes()
    files = sorted((out / "audio").rglob("*.flac"))
    assert len(files) == 40
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    (files[2].parent / f".{files[2].name}.partial").write_bytes(b"half")
    whole.manifest.unlink()
    changed = next(folder.rglob("sound_7.ogg"))
    os.utime(changed, ns=(1, 1))
    again = prepare(folder, out)
    assert again.num_kept == 37
    assert not list(out.rglob("*.partial"))
    assert again.sounds == whole.sounds
    assert again.manifest.read_bytes() == manifest
    rewritten = {path for path in files if path.stat().st_mtime_ns != before[path]}
    assert rewritten == {files[0], files[1], next(out.rglob("sound_7.flac"))}
    assert prepare(folder, out, sampling_rate=8000).num_kept == 0


def test_workers_give_the_same_files(folder, tmp_path):
    one, two = prepare(folder, tmp_path / "one"), prepare(folder, tmp_path / "two", num_workers=4)
    assert two.manifest.read_text() == one.manifest.read_text()
    for a, b in zip(one.sounds, two.sounds, strict=True):
        assert Path(a.path).read_bytes() == Path(b.path).read_bytes()


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_crops_on_the_fly_equal_crops_of_converted_files(tmp_path, rate):
    write(tmp_path / "a" / "long.wav", noise(3, rate, 2), rate)
    (converted,) = prepare(tmp_path / "a", tmp_path / "flac").sounds
    (original,) = prepare(tmp_path / "a", tmp_path / "original", convert=False).sounds
    assert (original.sampling_rate, original.path) == (rate, str(tmp_path / "a" / "long.wav"))
    assert abs(converted.num_samples() - original.num_samples()) <= 1
    for start, length in ((0, 48000), (0, 160), (12345, 20000), (47000, 999), (47999, 1)):
        a, b = read_crop(original, start, length), read_crop(converted, start, length)
        np.testing.assert_allclose(a, b, atol=2e-4 if rate != 16000 else 4e-5)  # noise clips nowhere, but is rounded
        assert a.shape == (length,)
        assert a.dtype == np.float32


def test_blocks_leave_no_seams(tmp_path, monkeypatch):
    monkeypatch.setattr("na_ssl_hf.data.corpora.prepare._BLOCK_FRAMES", 1000)
    samples = noise(0.5, 44100)
    write(tmp_path / "a" / "x.wav", samples, 44100, subtype="FLOAT")
    (sound,) = prepare(tmp_path / "a", tmp_path / "out").sounds
    expected = soxr.resample(samples[:, 0], 44100, 16000)
    assert sound.num_frames == len(expected)
    np.testing.assert_allclose(read_crop(sound, 0, len(expected)), expected, atol=4e-5)


def test_unusable_sounds_are_listed_with_the_reason(tmp_path):
    source = tmp_path / "mixed"
    write(source / "good.wav")
    write(source / "loud.wav", 4 * noise(0.5), subtype="FLOAT")
    write(source / "silent.wav", np.full(8000, 5e-5, np.float32), subtype="FLOAT")
    write(source / "opposite.wav", noise() * [1, -1])
    write(source / "short.wav", noise(0.05))
    write(source / "none.wav", np.zeros(0))
    (source / "empty.wav").write_bytes(b"")
    (source / "text.flac").write_text("no sound")
    write(source / "nan.wav", np.full(8000, np.nan), subtype="FLOAT")
    for name in ("cut.wav", "cut.flac"):
        write(source / name[4:] / name)
        content = (source / name[4:] / name).read_bytes()
        (source / name[4:] / name).write_bytes(content[: len(content) // 2])
    write(source / "good.flac")
    (source / ".hidden.wav").write_bytes(b"left out")
    (source / "folder.wav").mkdir()
    reasons = {
        "empty.wav": "empty",
        "flac/cut.flac": "unreadable",
        "good.wav": "duplicate",
        "nan.wav": "not finite",
        "none.wav": "empty",
        "opposite.wav": "silent",
        "short.wav": "too short",
        "silent.wav": "silent",
        "text.flac": "unreadable",
        "wav/cut.wav": "truncated",
    }
    for convert in (True, False):
        prepared = prepare(source, tmp_path / f"out-{convert}", convert=convert)
        assert {sound.path: sound.reason for sound in prepared.rejected} == reasons
        assert sorted(Path(sound.path).stem for sound in prepared.sounds) == ["good", "loud"]
        with (prepared.manifest.parent / "rejected.csv").open(newline="") as file:
            assert {row["path"]: row["reason"] for row in csv.DictReader(file)} == reasons
        assert any("rejected: 2 x silent" in line for line in prepared.lines())
        assert not list(prepared.manifest.parent.rglob("*.partial"))
    assert np.abs(soundfile.read(tmp_path / "out-True" / "audio" / "loud.flac")[0]).max() >= 0.999


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("kind", ["FLAC", "OGG", "RF64", "W64", "AIFF", "AU", "MP3", "WAV"])
def test_truncated_files_of_every_format_are_rejected_by_name(tmp_path, kind, convert):
    name = f"cut.{kind.lower()}"
    write(tmp_path / "a" / "good.wav", noise(4))
    write(tmp_path / "a" / name, noise(4), format=kind)
    content = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(content[: len(content) * 2 // 3])
    (rejected,) = prepare(tmp_path / "a", tmp_path / "out", convert=convert).rejected
    assert (rejected.path, rejected.reason) == (name, "unreadable" if kind == "FLAC" else "truncated")
    assert "truncated" in rejected.detail


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 1000])
def test_a_header_that_was_never_finished_is_read_whole_with_a_warning(tmp_path, caplog, monkeypatch, size):
    monkeypatch.setattr("na_ssl_hf.hub.sound_reader.logger.propagate", True)
    write(tmp_path / "a" / "x.wav", noise(1))
    (whole,) = prepare(tmp_path / "a", tmp_path / "whole", convert=False).sounds
    crop = read_crop(whole, 9000, 2000)
    content = bytearray((tmp_path / "a" / "x.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", size)
    (tmp_path / "a" / "x.wav").write_bytes(content)
    assert not caplog.records
    for convert in (False, True):
        (sound,) = prepare(tmp_path / "a", tmp_path / f"out {convert}", convert=convert).sounds
        assert sound.num_frames == 16000
        np.testing.assert_array_equal(read_crop(sound, 9000, 2000), crop)
    assert all("x.wav has an unfinished header" in message for message in caplog.messages)
    assert len(caplog.messages) >= 2


def test_links_and_suffixes_in_capitals(tmp_path):
    write(tmp_path / "a" / "one.WAV")
    write(tmp_path / "disk" / "two.Flac", format="FLAC")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone.wav").symlink_to(tmp_path / "gone.wav")
    prepared = prepare(tmp_path / "a", tmp_path / "out")
    assert sorted(splits(prepared)) == ["linked/two", "one"]
    assert [(sound.path, sound.reason) for sound in prepared.rejected] == [("gone.wav", "missing")]


def test_files_have_the_modes_of_the_umask_and_links_are_written_through(tmp_path):
    write(tmp_path / "a" / "1.wav")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rejected.csv").symlink_to(tmp_path / "disk" / "rejected.csv")
    before = os.umask(0o027)
    try:
        prepared = prepare(tmp_path / "a", tmp_path / "out")
    finally:
        os.umask(before)
    for path in (prepared.manifest, Path(prepared.sounds[0].path), tmp_path / "disk" / "rejected.csv"):
        assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out" / "rejected.csv").is_symlink()


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    write(tmp_path / "a" / "1.wav", np.zeros(8000))
    write(tmp_path / "a" / "2.wav", np.zeros(8000))
    write(tmp_path / "a" / "3.wav", noise(0.01))
    with pytest.raises(ValueError, match=r"got 3 rejected \(2 silent, 1 too short\); see .*rejected\.csv"):
        prepare(tmp_path / "a", tmp_path / "out")
    assert len((tmp_path / "out" / "rejected.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "audioset"}, "kind must be one of .*'demand'.*, got 'audioset'"),
        ({"sampling_rate": 0}, "sampling_rate must be at least 1, got 0"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"validation_share": 1.0}, r"validation_share must be in \[0, 1\), got 1.0"),
        ({"min_duration_s": float("nan")}, "min_duration_s must be positive, got nan"),
        ({"group_pattern": "("}, r"group_pattern must be a regular expression, got '\('"),
        ({"manifest_split": "train"}, "manifest_split needs a manifest_csv"),
        ({"kind": "wham", "manifest_csv": "x.csv"}, "are of the kind 'folder', got the kind 'wham'"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    write(tmp_path / "a" / "1.wav")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "a", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_out_must_be_apart_from_the_source_and_from_other_corpora(tmp_path):
    write(tmp_path / "a" / "1.wav")
    with pytest.raises(ValueError, match="out must lie outside of"):
        prepare(tmp_path / "a", tmp_path / "a" / "prepared")
    beside = prepare(tmp_path / "a", tmp_path / "a", convert=False)
    assert json.loads(beside.manifest.read_text())["path"] == "1.wav"
    with pytest.raises(ValueError, match=r"out must be new or hold the corpus 'b', got .*'a'"):
        prepare(tmp_path / "a", tmp_path / "a", convert=False, corpus="b")
    with pytest.raises(ValueError, match="source must be a folder for the kind 'folder', got list"):
        prepare([], tmp_path / "out")


def test_failing_to_write_is_no_fault_of_the_sound(folder, tmp_path):
    (tmp_path / "out" / "audio").mkdir(parents=True)
    (tmp_path / "out" / "audio" / "room 0").write_text("in the way")
    with pytest.raises(OSError, match="room 0"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Downloads


@pytest.fixture
def zenodo(tmp_path, monkeypatch):
    """Serves the archives of `tmp_path / "upload"` as records 4060432 and 1227121; gives its address."""
    monkeypatch.setenv("no_proxy", "*")
    served = tmp_path / "served"

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def publish(*archives):
        (served / "api" / "records").mkdir(parents=True)
        files = []
        for archive in archives:
            content = archive.read_bytes()
            (served / archive.name).write_bytes(content)
            checksum = f"md5:{hashlib.md5(content).hexdigest()}"
            links = {"self": f"{url}/{archive.name}"}
            files.append({"key": archive.name, "size": len(content), "checksum": checksum, "links": links})
        for record in (4060432, 1227121):
            (served / "api" / "records" / str(record)).write_text(json.dumps({"files": files}))
        return url

    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield publish
    server.shutdown()
    server.server_close()


def test_demand_downloads_and_prepares(tmp_path, zenodo):
    write(tmp_path / "DKITCHEN" / "ch01.wav", noise(0.2, 48000), 48000)
    for name in ("DKITCHEN_48k", "DKITCHEN_16k"):
        shutil.make_archive(str(tmp_path / name), "zip", tmp_path, "DKITCHEN")
    url = zenodo(tmp_path / "DKITCHEN_48k.zip", tmp_path / "DKITCHEN_16k.zip")
    archives = download_corpus("demand", tmp_path / "demand", base_url=url, show_progress=False)
    assert archives == [tmp_path / "demand" / "archives" / "DKITCHEN_48k.zip"]
    assert len(prepare(tmp_path / "demand", tmp_path / "out", "demand").sounds) == 1


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the program zip")
def test_fsd50k_in_parts_downloads_and_prepares(fsd50k, tmp_path, zenodo):
    # Like FSD50K's 3 GB, the smallest parts that `zip` makes, 64 kB, are larger than any clip.
    for folder in sorted(fsd50k.iterdir()):
        command = ["zip", "-q", "-r", "-s", "64k" if "audio" in folder.name else "0", f"{folder.name}.zip", folder.name]
        subprocess.run(command, cwd=fsd50k, check=True)
    parts = [path for path in sorted(fsd50k.iterdir()) if path.is_file()]
    assert fsd50k / "FSD50K.dev_audio.z02" in parts
    out = tmp_path / "downloaded"
    assert len(download_corpus("fsd50k", out, base_url=zenodo(*parts), show_progress=False)) == len(parts)
    assert not list((out / "archives").glob("*joined*"))
    assert splits(prepare(out, tmp_path / "a", "fsd50k")) == splits(prepare(fsd50k, tmp_path / "b", "fsd50k"))
    (out / "archives" / "FSD50K.dev_audio.z01").unlink()
    with pytest.raises(OSError, match=r"FSD50K\.dev_audio\.zip cannot be joined"):
        join_split_zip(out / "archives" / "FSD50K.dev_audio.zip")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("wham", r"fetch high_res_wham\.zip"), ("qut-noise", r"fetch QUT-NOISE\.zip"), ("esc", "kind must be one of")],
)
def test_corpora_that_cannot_be_downloaded(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        download_corpus(kind, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Manifests and crops


def test_manifest_moves_with_its_folder(tmp_path):
    inside = SoundFile(str(tmp_path / "here" / "audio" / "ä.flac"), 100, 16000, "train", "mine", "CC0")
    outside = SoundFile(str(tmp_path / "there" / "b.wav"), 100, 48000, "test", "mine")
    write_manifest(tmp_path / "here" / "manifest.jsonl", [inside, outside])
    assert read_manifest(tmp_path / "here" / "manifest.jsonl") == [inside, outside]
    (tmp_path / "here").rename(tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved" / "manifest.jsonl")
    assert [sound.path for sound in moved] == [str(tmp_path / "moved" / "audio" / "ä.flac"), outside.path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"split must be one of .*, got 'dev'"),
        ({"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
        ({"num_frames": 1.5}, "num_frames must be an integer of at least 1, got 1.5"),
        ({"num_frames": 10**30}, "num_frames must be at most"),
        ({"sampling_rate": 10**12}, "sampling_rate must be at most"),
        ({"sampling_rate": True}, "sampling_rate must be an integer of at least 1, got True"),
        ({"path": ""}, "path must be absolute, got ''"),
        ({"corpus": None}, "corpus must be a name, got None"),
        ({"licence": 4}, "licence must be text or null, got 4"),
        ({"label": "fan"}, "must be an object with"),
    ],
)
def test_bad_line_of_a_manifest_is_named(tmp_path, change, message):
    good = {"path": "a.wav", "num_frames": 10, "sampling_rate": 16000, "split": "train", "corpus": "mine"}
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=rf"manifest\.jsonl, line 3: {message}"):
        read_manifest(path)


@pytest.mark.parametrize("line", [b"[1]", b"{", b"\xff\xfe", b'{"path": "a.wav"}', b"[" * 100_000, b"9" * 5000])
def test_line_that_is_no_sound(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 1: "):
        read_manifest(tmp_path / "manifest.jsonl")
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_crop_equals_the_cut_out_of_the_whole_file(tmp_path, rate):
    samples = noise(2.01, rate, 2)
    write(tmp_path / "x.wav", samples, rate, subtype="FLOAT")
    sound = SoundFile(str(tmp_path / "x.wav"), len(samples), rate, "train", "mine")
    mono = samples.mean(axis=1)
    whole = mono if rate == 16000 else soxr.resample(mono, rate, 16000)
    assert abs(len(whole) - sound.num_samples()) <= 1
    for start, length in ((0, 1000), (777, 4001), (20000, 12000), (32000, 500), (40000, 100)):
        expected = np.zeros(length, np.float32)
        expected[: len(whole[start : start + length])] = whole[start : start + length]
        np.testing.assert_allclose(read_crop(sound, start, length), expected, atol=2e-6)


def test_crop_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    write(tmp_path / "x.wav", noise(20, 44100), 44100)
    sound = SoundFile(str(tmp_path / "x.wav"), 20 * 44100, 44100, "train", "mine")
    counts = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **options: counts.append(frames) or read(file, frames, **options),
    )
    read_crop(sound, 160000, 16000)
    assert counts[0] < 1.5 * 44100


def test_bad_crops(tmp_path):
    write(tmp_path / "x.wav", noise(1))
    sound = SoundFile(str(tmp_path / "x.wav"), 16000, 16000, "train", "mine")
    for arguments, message in (
        ((-1, 10), "start must be at least 0, got -1"),
        ((0, 0), "num_samples must be at least 1, got 0"),
        ((0, 10, 0), "sampling_rate must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_crop(sound, *arguments)
    other = SoundFile(str(tmp_path / "x.wav"), 15999, 16000, "train", "mine")
    with pytest.raises(OSError, match="must have 15999 frames at 16000 Hz as its manifest says, got 16000 at 16000"):
        read_crop(other, 0, 10)
    (tmp_path / "x.wav").write_bytes(b"no sound")
    with pytest.raises(OSError, match=r"x\.wav cannot be read as a sound file"):
        read_crop(sound, 0, 10)
    (tmp_path / "x.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"No sound file at .*x\.wav"):
        read_crop(sound, 0, 10)
