import json

import numpy as np
import pytest
import soundfile

from na_ssl_hf.data.dcase.check import check_dcase

CLIP = (0.1 * np.random.default_rng(0).standard_normal((160, 2))).astype(np.float32)


def write_clip(path, samples=CLIP, rate=16000, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.fixture
def machine(tmp_path):
    for domain in ("source", "target"):
        write_clip(tmp_path / f"pump/train/section_00_{domain}_train_normal_0000_spd_1.wav")
    return tmp_path / "pump"


def damage_of(folder):
    return check_dcase(folder, show_progress=False).damage


def test_the_published_evaluation_set_is_complete(tmp_path):
    template = write_clip(tmp_path / "template.wav").read_bytes()
    train, test = tmp_path / "Sander/train", tmp_path / "Sander/test"
    train.mkdir(parents=True)
    for domain, count in (("source", 990), ("target", 10)):
        for index in range(count):
            (train / f"section_00_{domain}_train_normal_{index:04d}_spd_1.wav").write_bytes(template)
    report = check_dcase(tmp_path, show_progress=False)
    assert report.is_sound
    assert report.is_complete
    test.mkdir()
    for index in range(199):
        (test / f"section_00_{index:04d}.wav").write_bytes(template)
    report = check_dcase(tmp_path, show_progress=False)
    assert [(count.count, count.published) for count in report.counts] == [(990, 990), (10, 10), (199, 200)]
    assert not report.is_complete
    assert report.is_sound
    assert any("199  published: 200" in line for line in report.lines())
    assert json.loads(json.dumps(report.to_dict()))["is_complete"] is False


def test_a_development_machine_lacks_its_test_clips(tmp_path):
    for machine in ("fan", "ToyCar"):
        write_clip(tmp_path / machine / "train/section_00_source_train_normal_0000_noAttribute.wav")
    report = check_dcase(tmp_path, show_progress=False)
    lacking = [(c.domain, c.label) for c in report.counts if c.machine == "fan" and c.split == "test" and c.differs]
    assert len(lacking) == 4
    assert report.missing_machines == ["ToyCarEmu", "bearingEmu", "gearboxEmu", "sliderEmu", "valveEmu"]


def test_other_machines_have_no_published_counts(machine):
    report = check_dcase(machine, show_progress=False)
    assert {count.published for count in report.counts} == {None}
    assert report.is_complete
    assert report.is_sound
    assert report.lines()[-1] == "no damage"


@pytest.mark.parametrize(
    ("kind", "samples", "rate", "subtype"),
    [
        ("one_channel", CLIP[:, :1], 16000, "PCM_16"),
        ("many_channels", CLIP[:, [0, 1, 1]], 16000, "PCM_16"),
        ("wrong_rate", CLIP, 44100, "PCM_16"),
        ("empty", CLIP[:0], 16000, "PCM_16"),
        ("not_finite", np.where(np.arange(160)[:, None] == 80, np.float32("nan"), CLIP), 16000, "FLOAT"),
    ],
)
def test_damaged_samples_are_found(machine, kind, samples, rate, subtype):
    path = write_clip(machine / "train/section_00_source_train_normal_0001_spd_1.wav", samples, rate, subtype)
    assert damage_of(machine) == {kind: [str(path)]}


@pytest.mark.parametrize("size", [0, 20, 300], ids=["nothing", "half a header", "half the samples"])
def test_truncated_files_are_unreadable(machine, size):
    path = machine / "train/section_00_source_train_normal_0000_spd_1.wav"
    path.write_bytes(path.read_bytes()[:size])
    report = check_dcase(machine, show_progress=False)
    assert report.damage == {"unreadable": [str(path)]}
    assert not report.is_sound
    assert any(str(path) in line for line in report.lines())


def test_misnamed_files_and_empty_folders_are_found(machine):
    path = write_clip(machine / "train/take_1.wav")
    (machine / "test").mkdir()
    assert damage_of(machine) == {"misnamed": [str(path)], "empty_folder": [str(machine / "test")]}


def test_a_machine_unpacked_twice_has_duplicates(machine, tmp_path):
    twice = write_clip(tmp_path / "again/pump/train/section_00_source_train_normal_0000_spd_1.wav")
    [line] = damage_of(tmp_path)["duplicated"]
    assert str(twice) in line
    assert str(machine / "train" / twice.name) in line


def test_equal_names_in_training_and_test_are_no_duplicates(tmp_path):
    for split in ("train", "test"):  # 2020
        write_clip(tmp_path / f"pump/{split}/normal_id_00_00000000.wav")
    assert not damage_of(tmp_path)


def test_attribute_rows_and_files_are_compared_by_stem(machine):
    (machine / "attributes_00.csv").write_text(
        "file_name,d1p,d1v\n"
        "/pump/train/section_00_source_train_normal_0000_spd_1.wav,spd,1\n"
        "pump/train/section_00_target_train_normal_0000_spd_1,spd,1\n"
    )
    assert not damage_of(machine)
    write_clip(machine / "test/section_00_0000.wav")  # the table of an evaluation machine knows training clips only
    assert not damage_of(machine)
    extra = write_clip(machine / "train/section_00_source_train_normal_0001_spd_1.wav")
    (machine / "train/section_00_target_train_normal_0000_spd_1.wav").unlink()
    assert damage_of(machine) == {
        "without_row": [str(extra)],
        "without_file": ["pump: section_00_target_train_normal_0000_spd_1"],
    }
    (machine / "attributes_00.csv").write_text("")
    assert list(damage_of(machine)) == ["bad_table"]


def test_many_damaged_files_are_shown_in_part(machine):
    for index in range(1, 9):
        write_clip(machine / f"train/section_00_source_train_normal_{index:04d}_spd_1.wav", CLIP[:, :1])
    lines = check_dcase(machine, show_progress=False).lines()
    assert any(line.startswith("damage: 8 x one channel") for line in lines)
    assert lines[-1].strip() == "... and 3 more"


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_dcase(tmp_path / "nowhere")
