"""EfficientAT checkpoints convert to models with the outputs of the original code.

The weights are random and come from a formula, so that no file of them is needed.
"""

import json
import zlib

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from na_ssl_hf import EfficientATConfig, EfficientATForAudioClassification
from na_ssl_hf.cli import main
from na_ssl_hf.convert import convert, convert_efficientat
from na_ssl_hf.convert.efficientat import Spectrogram, audioset_labels, read_efficientat, spectrogram_of

VARIANTS = [
    ("mn10_as_mAP_000.pt", "mn10"),
    ("mn01_as_mAP_000.pt", "mn01"),
    ("mn02_as_mAP_000.pt", "mn02"),
    ("mn01_as_hop_5_mAP_000.pt", "mn01"),
    ("mn01_as_hop_15_mAP_000.pt", "mn01"),
    ("mn01_as_hop_20_mAP_000.pt", "mn01"),
    ("mn01_as_hop_25_mAP_000.pt", "mn01"),
    ("mn01_as_mels_40_mAP_000.pt", "mn01"),
    ("mn01_as_mels_64_mAP_000.pt", "mn01"),
    ("mn01_as_mels_256_mAP_000.pt", "mn01"),
    ("mn01_as_fc_mAP_000.pt", "mn01_fc"),
    ("mn01_as_fc_s2221_mAP_000.pt", "mn01_fc"),
    ("mn01_as_fc_s2211_mAP_000.pt", "mn01_fc"),
    ("mn10_as_fc_s2221_mAP_000.pt", "mn10_fc"),
    ("mn01_esc50_epoch_79_acc_900.pt", "mn01_50"),
]
WIDTHS = {"mn01": 0.1, "mn02": 0.2, "mn04": 0.4, "mn05": 0.5, "mn10": 1.0, "mn20": 2.0, "mn30": 3.0, "mn40": 4.0}


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "efficientat"


@pytest.fixture(scope="module")
def shapes(folder):
    """`shapes(key list)`: the names and shapes of a published file."""

    def read(keys):
        rows = [line.split() for line in (folder / "keys" / f"{keys}.txt").read_text().splitlines()]
        return {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in rows}

    return read


@pytest.fixture(scope="module")
def weights(shapes):
    """`weights(key list)`: the tensors of such a file, from a formula of their names."""

    def make(keys, seed=1000):
        state = {}
        for name, shape in shapes(keys).items():
            leaf = name.rpartition(".")[2]
            if leaf == "num_batches_tracked":
                state[name] = torch.tensor(1000)
                continue
            # The goldens were made from these numbers of the old generator.
            z = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
            if len(shape) >= 2:
                z = z * (1.2 / np.prod(shape[1:])) ** 0.5
            elif leaf == "running_var":
                z = 0.5 + 0.25 * z * z
            elif leaf == "weight":
                z = 1 + 0.2 * z
            else:
                z = 0.2 * z
            state[name] = torch.from_numpy(z.astype(np.float32))
        return state

    return make


@pytest.fixture
def saved(weights, tmp_path):
    """`saved(file name, tensors or key list)`: the path of a file with these weights."""

    def save(name, state):
        torch.save(weights(state) if isinstance(state, str) else state, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(("file", "keys"), VARIANTS, ids=[file[:-3] for file, _ in VARIANTS])
@torch.no_grad()
def test_outputs_equal_those_of_the_original(folder, saved, tmp_path, file, keys):
    expected, tag = np.load(folder / "outputs.npz"), file[:-3]
    directory = convert_efficientat(saved(file, keys), tmp_path / "converted")
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    wave = np.load(folder / "waves.npz")["noise_b"][:20001] / np.float32(32768)
    assert str(expected["spec"]) == "noise_b[0:20001]"
    spectrogram = extractor(np.stack([wave, wave]), sampling_rate=32000)["input_values"]
    assert spectrogram.shape[2] == expected[f"{tag}/frames"][0]
    assert extractor.resample

    model = AutoModel.from_pretrained(directory)
    output = model(spectrogram, output_hidden_states=True)
    np.testing.assert_allclose(output.pooler_output[0], expected[f"{tag}/pooled"], rtol=0, atol=1e-4)
    for index, length, time_step, channel_step in expected[f"{tag}/steps"]:
        grid = model.time_frequency_grid(output.hidden_states[index])[0]
        assert len(grid) == length
        found = grid[::time_step, :, ::channel_step]
        np.testing.assert_allclose(found, expected[f"{tag}/map{index}"], rtol=0, atol=2e-4, err_msg=f"map {index}")
    logits = AutoModelForAudioClassification.from_pretrained(directory)(spectrogram).logits[0]
    np.testing.assert_allclose(logits, expected[f"{tag}/logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("keys", [*WIDTHS, "mn01_fc", "mn10_fc", "mn01_50"])
def test_the_published_names_and_shapes_are_exactly_those_of_our_model(shapes, tmp_path, monkeypatch, keys):
    from na_ssl_hf.convert import efficientat

    # Expanded tensors take no memory, but no file can hold them so.
    tensors = {name: torch.ones(()).expand(shape) for name, shape in shapes(keys).items()}
    monkeypatch.setattr(efficientat, "load_foreign_checkpoint", lambda source: tensors)
    monkeypatch.setattr(efficientat, "require_tensors", lambda content, source, what: content)
    weights = read_efficientat(tmp_path / f"{keys}_as.pt", Spectrogram())
    assert weights.settings["width"] == WIDTHS[keys[:4]]
    assert weights.settings["head"] == ("fc" if keys.endswith("_fc") else "mlp")
    with torch.device("meta"):
        expected = EfficientATForAudioClassification(EfficientATConfig(**weights.settings)).state_dict()
    assert {name: tensor.shape for name, tensor in weights.state.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_audioset_files_know_the_names_of_their_classes(saved, tmp_path):
    directory = convert_efficientat(saved("mn01_as.pt", "mn01"), tmp_path / "tagger")
    config = AutoModelForAudioClassification.from_pretrained(directory).config
    assert config.problem_type == "multi_label_classification"
    assert [config.id2label[index] for index in (0, 72, 526)] == ["Speech", "Animal", "Field recording"]
    assert config.label2id["Speech"] == 0
    assert len(audioset_labels()) == len(set(audioset_labels())) == config.num_labels == 527


def test_fine_tuned_files_keep_their_number_of_classes(saved, tmp_path):
    directory = convert_efficientat(saved("mn01_esc50.pt", "mn01_50"), tmp_path / "tagger")
    config = json.loads((directory / "config.json").read_text())
    assert len(config["id2label"]) == 50
    assert "problem_type" not in config or config["problem_type"] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mn10_as_mAP_471.pt", (10.0, 128, "2222")),
        ("mn10_as_hop_5_mAP_475.pt", (5.0, 128, "2222")),
        ("mn10_as_mels_256_mAP_474.pt", (10.0, 256, "2222")),
        ("mn10_as_fc_s2211_mAP_466.pt", (10.0, 128, "2211")),
        ("mn10_as_hop_25.pt", (25.0, 128, "2222")),
        ("sounds2222.pt", (10.0, 128, "2222")),
    ],
)
def test_the_name_of_a_file_says_what_its_tensors_do_not(name, expected):
    found = spectrogram_of(name)
    assert (found.hop, found.mels, found.strides) == expected
    assert spectrogram_of(name, hop=20, mels=40, strides="2221") == Spectrogram(20, 40, "2221")


def test_a_renamed_file_takes_options(saved, tmp_path, capsys):
    source, destination = saved("renamed.pt", "mn01"), tmp_path / "converted"
    options = ["--hop", "5", "--mels", "64", "--strides", "2221"]
    assert main(["convert", "efficientat", str(source), str(destination), *options]) == 0
    config = AutoModel.from_pretrained(destination).config
    assert (config.hop_length, config.num_mel_bins, tuple(config.strides)) == (160, 64, (2, 2, 2, 1))
    extractor = AutoFeatureExtractor.from_pretrained(destination)
    assert (extractor.hop_length, extractor.num_mel_bins) == (160, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 0.01}, "`hop` must be a whole number of samples"),
        ({"hop": -5}, "`hop` must be a whole number of samples"),
        ({"mels": 0}, "`mels` must be at least 1, got 0"),
        ({"strides": "222"}, "`strides` must be four digits"),
        ({"strides": "2322"}, "`strides` must be four digits"),
    ],
)
def test_impossible_options_are_refused(saved, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert_efficientat(saved("mn01_as.pt", "mn01"), tmp_path / "converted", **options)
    assert not (tmp_path / "converted").exists()


def test_options_belong_to_this_kind_alone(tmp_path):
    with pytest.raises(ValueError, match=r"are for 'efficientat' only, got .*hop.* with kind 'beats'"):
        convert("beats", tmp_path / "a.pt", tmp_path / "b", hop=5)
    with pytest.raises(ValueError, match="`base` is for"):
        convert("efficientat", tmp_path / "a.pt", tmp_path / "b", base=tmp_path)


@pytest.mark.parametrize("name", ["dymn04_as.pt", "renamed.pt"])
@pytest.mark.parametrize("keys", ["dymn04", "dymn04_replace_se"])
def test_dynamic_networks_are_refused_by_their_kind(saved, tmp_path, name, keys):
    with pytest.raises(ValueError, match="is a dynamic MobileNet"):
        convert_efficientat(saved(name, keys), tmp_path / "converted")


def test_weights_of_pictures_are_refused(saved, weights, tmp_path):
    pictures = {"classifier.5.weight": torch.ones(1000, 128), "classifier.5.bias": torch.ones(1000)}
    untrained = {"classifier.5.bias": torch.zeros(527)}
    for name, state in (
        ("renamed.pt", weights("mn01") | pictures),
        ("mn01_im_pytorch.pt", weights("mn01")),
        ("renamed.pt", weights("mn01") | untrained),
    ):
        with pytest.raises(ValueError, match="must be trained on sounds, got weights of pictures"):
            convert_efficientat(saved(name, state), tmp_path / "converted")
    # This name says that training did not begin with pictures.
    convert_efficientat(saved("mn01_as_no_im_pre_mAP_000.pt", "mn01"), tmp_path / "converted")


def _without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


KEY = "features.9.block.1.0.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: _without(state, KEY), r"1 missing \(efficientat\.layers\.8\.depthwise\.convolution\.weight\)"),
        (lambda state: state | {"features.17.0.weight": torch.zeros(8)}, r"1 unexpected \(features\.17\.0\.weight\)"),
        (lambda state: state | {KEY: state[KEY][:-1]}, "layers.8.depthwise.convolution.weight .* must have shape"),
        (lambda state: state | {"features.0.0.weight": torch.zeros(12, 1, 3, 3)}, "got 12 in the stem, 96 in the last"),
        (lambda state: _without(state, "features.0.0.weight"), "it has no features.0.0.weight"),
        (lambda state: _without(state, "classifier.5.weight"), "it has no classifier.5.weight"),
        (lambda state: {"epoch": 3}, "must hold only tensors, got int at 'epoch'"),
        (lambda state: [1, 2], "must be a dict of tensors, got list"),
        (lambda state: {}, "it has no classifier.5.weight"),
    ],
    ids=["missing", "extra", "shape", "width", "no stem", "no head", "settings", "list", "empty"],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(saved, weights, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        convert_efficientat(saved("mn01_as.pt", edit(weights("mn01"))), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_the_gate_over_frequencies_of_the_training_script_is_refused(saved, weights, tmp_path):
    state = weights("mn01")
    name = "features.4.block.1.conc_se_layers.0.fc1.weight"
    with pytest.raises(ValueError, match=r"gate\.fc1\.weight .* must have shape"):
        convert_efficientat(saved("a.pt", state | {name: torch.zeros(8, 32)}), tmp_path / "converted")
    second = {name.replace("layers.0", "layers.1"): state[name]}
    with pytest.raises(ValueError, match="1 unexpected"):
        convert_efficientat(saved("a.pt", state | second), tmp_path / "converted")


def test_damaged_and_absent_files_are_named(saved, tmp_path):
    source = saved("mn01_as.pt", "mn01")
    source.write_bytes(source.read_bytes()[:50_000])
    with pytest.raises(OSError, match=r"mn01_as\.pt"):
        convert_efficientat(source, tmp_path / "converted")
    with pytest.raises(OSError, match=r"absent\.pt"):
        convert_efficientat(tmp_path / "absent.pt", tmp_path / "converted")
