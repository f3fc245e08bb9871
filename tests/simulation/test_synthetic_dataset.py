import csv

import numpy as np
import pytest
import soundfile

from na_ssl_hf.data.dcase.names import DcaseName, format_dcase_name, parse_dcase_name
from na_ssl_hf.simulation import write_two_channel_dataset

SETTINGS = {
    "machines": ("fan", "valve"),
    "num_train_source": 2,
    "num_train_target": 1,
    "num_test": 1,
    "duration_s": 1.0,
    "num_rooms": 2,
    "show_progress": False,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_two_channel_dataset(folder / "noisy", clean_root=folder / "clean", snr_db=0.0, **SETTINGS)
    return folder


def _manifest(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_are_dcase_named_stereo_pcm(dataset):
    files = sorted((dataset / "noisy").rglob("*.wav"))
    assert len(files) == 2 * (2 + 1 + 4)
    assert [f.relative_to(dataset / "noisy") for f in files] == [
        f.relative_to(dataset / "clean") for f in sorted((dataset / "clean").rglob("*.wav"))
    ]
    assert {row["file"] for row in _manifest(dataset / "noisy")} == {
        f.relative_to(dataset / "noisy").as_posix() for f in files
    }
    for file in files:
        header = soundfile.info(file)
        assert (header.channels, header.samplerate, header.frames, header.subtype) == (2, 16000, 16000, "PCM_16")
        name = parse_dcase_name(file)
        assert (name.attributes == "noAttribute") == (name.machine == "valve")
        assert format_dcase_name(name) == file.relative_to(dataset / "noisy").as_posix()


def test_close_channel_has_the_target_and_the_asked_snr(dataset):
    closer = 0
    for file in sorted((dataset / "noisy").rglob("*.wav")):
        mixture = soundfile.read(file)[0]
        clean = soundfile.read(dataset / "clean" / file.relative_to(dataset / "noisy"))[0]
        np.testing.assert_array_equal(clean[:, 0], clean[:, 1])
        correlation = [abs(np.corrcoef(mixture[:, c], clean[:, 0])[0, 1]) for c in (0, 1)]
        assert correlation[0] > 0.5  # 0 dB gives about 0.7
        closer += correlation[0] > correlation[1]
        residue = mixture[:, 0] - clean[:, 0]
        assert abs(10 * np.log10(np.mean(clean[:, 0] ** 2) / np.mean(residue**2))) < 2.5
    assert closer == 14


def test_nothing_clips_and_one_gain_serves_all(dataset):
    rows = _manifest(dataset / "noisy") + _manifest(dataset / "clean")
    gains = {float(row["gain"]) for row in rows}
    assert len(gains) == 1
    assert np.log2(gains.pop()) % 1 == 0
    peaks = [np.abs(soundfile.read(f, dtype="int16")[0]).max() for f in (dataset / "noisy").rglob("*.wav")]
    assert max(peaks) < 32767
    assert len(set(peaks)) > 1


def test_same_seed_same_bytes_and_clips_do_not_depend_on_how_many(dataset, tmp_path):
    write_two_channel_dataset(tmp_path / "again", snr_db=0.0, **{**SETTINGS, "num_test": 2})
    before = {row["file"]: row for row in _manifest(dataset / "noisy")}
    after = {row["file"]: row for row in _manifest(tmp_path / "again")}
    assert set(before) < set(after)
    for file, row in before.items():
        old = soundfile.read(dataset / "noisy" / file)[0] / float(row["gain"])
        new = soundfile.read(tmp_path / "again" / file)[0] / float(after[file]["gain"])
        np.testing.assert_allclose(old, new, atol=2 / 32768 / float(row["gain"]))
    write_two_channel_dataset(tmp_path / "third", snr_db=0.0, **SETTINGS)
    for file in before:
        assert (tmp_path / "third" / file).read_bytes() == (dataset / "noisy" / file).read_bytes()


def test_seed_and_coherence_change_the_noise_but_not_the_names(dataset, tmp_path):
    settings = {**SETTINGS, "machines": ("valve",)}
    write_two_channel_dataset(tmp_path / "coherent", snr_db=0.0, noise_coherence=1.0, **settings)
    write_two_channel_dataset(tmp_path / "seed", snr_db=0.0, seed=1, **settings)
    file = "valve/train/section_00_source_train_normal_0000_noAttribute.wav"
    original = (dataset / "noisy" / file).read_bytes()
    assert (tmp_path / "coherent" / file).read_bytes() != original
    assert (tmp_path / "seed" / file).read_bytes() != original


def test_only_an_own_data_set_is_overwritten(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    settings = {**SETTINGS, "machines": ("fan",), "num_train_source": 1, "num_train_target": 0}
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="foreign"):
            write_two_channel_dataset(foreign, overwrite=overwrite, **settings)
    assert (foreign / "thesis.txt").exists()
    write_two_channel_dataset(tmp_path / "own", **settings)
    write_two_channel_dataset(tmp_path / "own", overwrite=True, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "own"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machines": ("fan", "toaster")}, "toaster"),
        ({"machines": ()}, "machines"),
        ({"num_test": 0}, "num_test"),
        ({"num_train_target": -1}, "num_train_target"),
        ({"duration_s": 0.1}, "duration_s"),
        ({"num_rooms": 0}, "num_rooms"),
        ({"rooms": []}, "rooms must hold at least 2"),
        ({"noise_coherence": 1.5}, "coherence"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_two_channel_dataset(tmp_path / "set", **{**SETTINGS, **change})
    assert not list(tmp_path.iterdir())


def test_names_of_the_challenge_are_parsed():
    path = "dev/ToyCarEmu/train/section_00_target_train_normal_0007_car_A1_spd_1_mic_2.wav"
    assert parse_dcase_name(path) == DcaseName("ToyCarEmu", "target", "train", "normal", 7, "car_A1_spd_1_mic_2")
    assert parse_dcase_name("Sander/test/section_00_0123.wav") == DcaseName("Sander", None, "test", None, 123, None)
    for bad in ("Sander/test/clip.wav", "Sander/train/section_00_0123.wav", "section_00_0123.wav"):
        with pytest.raises(ValueError, match="path must"):
            parse_dcase_name(bad)
