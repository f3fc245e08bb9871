import builtins
import logging as std_logging
import shutil

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from transformers.utils import logging

from na_ssl_hf.checkpoints import shipped_checkpoint
from na_ssl_hf.data.dcase.clips import list_dcase_clips
from na_ssl_hf.data.dcase.dataset import load_dcase2026

pytest.importorskip("datasets")


def write_clip(path, channels=2, seconds=0.01, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal((int(16000 * seconds), channels))
    soundfile.write(path, samples, 16000)


@pytest.fixture
def development(tmp_path):
    """Two machines, one with attributes whose table has the published quirks."""
    for index, domain in enumerate(["source", "source", "target"]):
        write_clip(tmp_path / f"fan/train/section_00_{domain}_train_normal_{index:04d}_spd_{index}.wav")
        write_clip(tmp_path / f"valveEmu/train/section_00_{domain}_train_normal_{index:04d}_noAttribute.wav")
    for label in ("normal", "anomaly"):
        write_clip(tmp_path / f"fan/test/section_00_source_test_{label}_0000_spd_9.wav")
        write_clip(tmp_path / f"valveEmu/test/section_00_source_test_{label}_0000_noAttribute.wav")
    (tmp_path / "fan/attributes_00.csv").write_text(
        "file_name,d1p,d1v,d2p,d2v\n"
        "/fan/train/section_00_source_train_normal_0000_spd_0.wav,spd,0,pow,7\n"
        "fan/train/section_00_source_train_normal_0001_spd_1,spd,1,,\n",
        encoding="utf-8-sig",
    )
    return tmp_path


@pytest.fixture
def warnings_of_ours():
    """Messages of our logger; transformers' loggers do not propagate to pytest's."""
    messages = []

    class Keep(std_logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger = logging.get_logger("na_ssl_hf.data.dcase.dataset")
    handler = Keep()
    logger.addHandler(handler)
    logger.warning_once.cache_clear()
    yield messages
    logger.removeHandler(handler)


def test_development_rows(development):
    train = load_dcase2026(development, "train")
    assert train["machine"] == ["fan"] * 3 + ["valveEmu"] * 3
    assert train["domain"] == ["source", "source", "target"] * 2
    assert train["attributes"] == ["spd_0_pow_7", "spd_1", "spd_2"] + ["noAttribute"] * 3
    assert train["index"] == [0, 1, 2] * 2
    assert set(train["label"]) == {"normal"}
    assert set(train["split"]) == {"train"}
    assert set(train["num_channels"]) == {2}
    assert train[0]["audio"] == {"path": train[0]["path"], "bytes": None}
    assert soundfile.info(train[5]["path"]).frames == 160
    test = load_dcase2026(development, "test", machines=["fan"])
    assert test["label"] == ["anomaly", "normal"]


def test_evaluation_rows_are_anonymous(tmp_path):
    write_clip(tmp_path / "Sander/train/section_00_source_train_normal_0000_spd_1.wav")
    for index in (1, 0):
        write_clip(tmp_path / f"Sander/test/section_00_{index:04d}.wav")
    splits = load_dcase2026(tmp_path)
    assert list(splits) == ["train", "test"]
    assert splits["test"]["index"] == [0, 1]
    for unknown in ("domain", "label", "attributes"):
        assert splits["test"][unknown] == [None, None]
        assert splits["test"].features[unknown].dtype == "string"


def test_layouts_of_one_set_load_alike(development, tmp_path_factory):
    deeper = tmp_path_factory.mktemp("dcase2026t2")
    (deeper / "dev_data").mkdir()
    (deeper / "dev_data" / "raw").symlink_to(development)
    rows = load_dcase2026(deeper, "train").remove_columns(["audio", "path"])
    assert rows[:] == load_dcase2026(development, "train").remove_columns(["audio", "path"])[:]
    one = load_dcase2026(development / "fan", "train")
    assert set(one["machine"]) == {"fan"}


def test_hidden_and_supplemental_files_are_no_training_clips(development):
    (development / "fan/train/._section_00_source_train_normal_0000_spd_0.wav").write_bytes(b"resource fork")
    write_clip(development / "fan/supplemental/section_00_machine_source_0000_noAttribute.wav")
    assert len(load_dcase2026(development, "train", machines=["fan"])) == 3


def test_supplemental_clips_are_a_split_of_their_own(tmp_path):
    for machine in ("fan", "pump"):
        write_clip(tmp_path / machine / "train/section_00_source_train_normal_0000_noAttribute.wav")
    assert set(load_dcase2026(tmp_path)) == {"train"}
    with pytest.raises(FileNotFoundError, match="fan/supplemental"):
        load_dcase2026(tmp_path, "supplemental")
    for kind in ("machine", "noise"):
        write_clip(tmp_path / f"fan/supplemental/section_00_{kind}_source_0000_noAttribute.wav")
    # The pump has none, and only he who asks for its clips is told so.
    for alone in (
        load_dcase2026(tmp_path, "supplemental"),
        load_dcase2026(tmp_path, machines=["fan", "pump"])["supplemental"],
    ):
        assert [(row["machine"], row["label"], row["domain"]) for row in alone] == [
            ("fan", "machine", "source"),
            ("fan", "noise", "source"),
        ]
    with pytest.raises(FileNotFoundError, match="pump/supplemental"):
        load_dcase2026(tmp_path, "supplemental", machines=["fan", "pump"])
    shutil.rmtree(tmp_path / "fan/train")
    shutil.rmtree(tmp_path / "pump")
    with pytest.raises(FileNotFoundError, match="root must hold folders"):
        load_dcase2026(tmp_path)


def test_the_scorer_takes_a_dataset(tmp_path):
    for index in range(4):
        write_clip(
            tmp_path / f"fan/train/section_00_source_train_normal_{index:04d}_noAttribute.wav", seconds=1, seed=index
        )
    train = load_dcase2026(tmp_path, "train")
    scorer = pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny")), device="cpu")
    scorer.fit(train, domains=train["domain"], progress=None)
    by_path = scorer(list(train["path"]))
    assert [row["score"] for row in scorer(train)] == [row["score"] for row in by_path]
    assert scorer(train[0])["score"] == pytest.approx(by_path[0]["score"], abs=1e-5)


def test_one_channel_loads_and_warns_once(tmp_path, warnings_of_ours):
    write_clip(tmp_path / "pump/train/normal_id_00_00000000.wav", channels=1)
    for _ in range(2):
        rows = load_dcase2026(tmp_path, "train")
    assert rows["num_channels"] == [1]
    assert rows["attributes"] == ["noAttribute"]
    assert rows["domain"] == [None]
    assert len(warnings_of_ours) == 1
    assert "need two" in warnings_of_ours[0]


def test_two_channels_give_no_warning(development, warnings_of_ours):
    load_dcase2026(development)
    assert not warnings_of_ours


def test_missing_folders_are_named(development, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_dcase2026(development / "nowhere")
    with pytest.raises(FileNotFoundError, match="<machine>/train"):
        load_dcase2026(tmp_path_factory.mktemp("empty"))
    with pytest.raises(FileNotFoundError, match=r"\['pump/train', 'saw/train'\]"):
        load_dcase2026(development, machines=["saw", "fan", "pump"])
    (development / "Sander/train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"\['Sander/test'\]"):
        load_dcase2026(development, "test")
    with pytest.raises(FileNotFoundError, match=r"Sander.train must hold WAV files"):
        load_dcase2026(development, "train")


def test_bad_input_is_named(development):
    with pytest.raises(ValueError, match=r"split must be one of .*'dev'"):
        load_dcase2026(development, "dev")
    with pytest.raises(ValueError, match="machines must be a list"):
        load_dcase2026(development, "train", machines="fan")
    table = development / "valveEmu/attributes_00.csv"
    table.write_text("name,d1p\n")
    with pytest.raises(ValueError, match=r"attributes_00.csv must begin with the header"):
        load_dcase2026(development, "train")
    table.unlink()
    broken = development / "fan/test/section_00_source_test_normal_0001_spd_9.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(OSError, match=r"normal_0001_spd_9.wav cannot be read"):
        load_dcase2026(development, "test")
    write_clip(broken, channels=3)
    with pytest.raises(ValueError, match="must have two channels, close and far, got 3"):
        load_dcase2026(development, "test")
    broken.rename(broken.with_name("take_1.wav"))
    with pytest.raises(ValueError, match=r"path must be named .*take_1"):
        load_dcase2026(development, "test")


def test_without_datasets_the_error_says_how_to_install(development, monkeypatch):
    original = builtins.__import__

    def without_datasets(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(ImportError, match=r"pip install 'na-ssl-hf\[train\]'"):
        load_dcase2026(development, "train")
    assert len(list_dcase_clips(development, "train")) == 6


def test_tables_of_windows_in_latin_1(development):
    table = development / "fan/attributes_00.csv"
    for encoding in ("latin-1", "utf-8", "utf-8-sig", "utf-16"):
        rows = ["file_name,d1p,d1v", "C:\\fan\\train\\section_00_source_train_normal_0000_spd_0.WAV,T\u00fcr,zu"]
        table.write_bytes("\r\n".join(rows).encode(encoding))
        assert list_dcase_clips(development, "train")[0].attributes == "T\u00fcr_zu"
    table.rename(development / "fan/ATTRIBUTES_00.CSV")
    assert list_dcase_clips(development, "train")[0].attributes == "T\u00fcr_zu"


@pytest.mark.parametrize(
    "row", [b"a\0.wav,spd,1", b"a.wav," + b"1" * 200_000, b'"a.wav,spd,1'], ids=["NUL", "huge", "quote"]
)
def test_tables_that_are_no_csv_are_one_error(development, row):
    (development / "fan/attributes_00.csv").write_bytes(b"file_name,d1p,d1v\n" + row + b"\n")
    with pytest.raises(ValueError, match=r"attributes_00\.csv, line [23]: must be CSV"):
        load_dcase2026(development, "train")


def test_suffixes_in_capitals_and_folders_named_as_files(development):
    clip = development / "fan/train/section_00_source_train_normal_0000_spd_0.wav"
    clip.rename(clip.with_suffix(".WAV"))
    (development / "fan/train/section_00_source_train_normal_0009_spd_0.wav").mkdir()
    assert load_dcase2026(development, "train", ["fan"])["index"] == [0, 1, 2]


def test_linked_folders_count_once_and_loops_end(development, tmp_path_factory, caplog, monkeypatch):
    monkeypatch.setattr("na_ssl_hf.data.dcase.clips.logger.propagate", True)
    disk = tmp_path_factory.mktemp("disk") / "valveEmu"
    (development / "valveEmu").rename(disk)
    (development / "valveEmu").symlink_to(disk)
    (development / "alias").symlink_to(development / "fan")
    (development / "fan/up").symlink_to(development)
    assert load_dcase2026(development, "train")["machine"] == ["fan"] * 3 + ["valveEmu"] * 3
    assert len(caplog.messages) == 2
    assert "alias leads to a folder that is listed already" in caplog.text


def test_damaged_files_are_named(development):
    clip = development / "fan/train/section_00_source_train_normal_0000_spd_0.wav"
    clip.write_bytes(clip.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"0000_spd_0\.wav is truncated"):
        load_dcase2026(development, "train")
    clip.unlink()
    clip.symlink_to("nowhere.wav")
    with pytest.raises(FileNotFoundError, match=r"0000_spd_0\.wav"):
        load_dcase2026(development, "train")
