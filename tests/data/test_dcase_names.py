import pytest

from na_ssl_hf.data.dcase.names import DcaseName, dcase_stem, format_dcase_name, parse_dcase_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (
            "fan/train/section_00_source_train_normal_0989_spd_4_grit_120.wav",
            DcaseName("fan", "source", "train", "normal", 989, "spd_4_grit_120"),
        ),
        ("Sander/test/section_00_0199.wav", DcaseName("Sander", None, "test", None, 199, None)),
        (
            "fan/source_test/section_02_source_test_anomaly_0003.wav",  # 2021
            DcaseName("fan", "source", "test", "anomaly", 3, None, section=2),
        ),
        (
            "fan/target_test/section_03_target_test_0003.wav",  # 2021, evaluation
            DcaseName("fan", "target", "test", None, 3, None, section=3),
        ),
        ("fan/train/normal_id_04_00000012.wav", DcaseName("fan", None, "train", "normal", 12, None, section=4)),  # 2020
        ("fan/test/id_05_00000012.wav", DcaseName("fan", None, "test", None, 12, None, section=5)),
        (
            "fan/supplemental/section_00_machine_source_0003_noAttribute.wav",  # 2025
            DcaseName("fan", "source", "supplemental", "machine", 3, "noAttribute"),
        ),
        ("fan/supplemental/section_01_noise_0004.wav", DcaseName("fan", None, "supplemental", "noise", 4, None, 1)),
    ],
    ids=["2026", "anonymous", "2021", "2021-anonymous", "2020", "2020-anonymous", "machine-alone", "noise-alone"],
)
def test_names_of_all_challenges(path, name):
    assert parse_dcase_name(path) == name


def test_a_formatted_name_is_parsed_back():
    name = DcaseName("fan", "target", "test", "anomaly", 7, "flow_1.5", section=3)
    assert parse_dcase_name(format_dcase_name(name)) == name
    alone = DcaseName("fan", "source", "supplemental", "noise", 7, "noAttribute", section=3)
    assert parse_dcase_name(format_dcase_name(alone)) == alone


@pytest.mark.parametrize(
    "path",
    [
        "fan/train/section_00_source_test_normal_0000.wav",
        "fan/train/section_00_source_train_0000.wav",
        "fan/supplemental/section_00_source_train_normal_0000_noAttribute.wav",
        "fan/train/section_00_machine_source_0000_noAttribute.wav",
        "fan/section_00_0000.wav",
        "train/section_00_source_train_normal_0000.wav",
    ],
)
def test_what_breaks_the_rule_is_named(path):
    with pytest.raises(ValueError, match=r"path must .*section_00"):
        parse_dcase_name(path)


@pytest.mark.parametrize(
    "written", ["/fan/train/clip_1.5.wav", "fan\\train\\clip_1.5.WAV", "clip_1.5", " clip_1.5.wav "]
)
def test_stems_agree_whatever_the_table_writes(written):
    assert dcase_stem(written) == "clip_1.5"
