"""The files of a checkpoint are checked on loading: damaged or hostile content gives one error, soon and in bounds."""

import json
import resource
import shutil
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, some_calibration, tiny_config, tiny_model
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from na_ssl_hf import AutoencoderConfig, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import shipped_checkpoint, shipped_checkpoints
from na_ssl_hf.checkpoints.loading import MAX_SETTINGS_BYTES, load_model
from na_ssl_hf.cli import main
from na_ssl_hf.hub.configuration_noise_aware import BOUNDS, ConfigurationError
from na_ssl_hf.training.lora import add_lora, save_adapter

WRONG = (10**9, 10**30, -1, 0, "12", [1], {"a": 1}, float("nan"), float("inf"), 1e300)
SECONDS = 5


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(shipped_checkpoint("na-eat-tiny"), path)
    return path


@pytest.fixture(autouse=True)
def bounded():
    """Every test ends soon, and takes less than 2 GB beyond what is in use."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # kB
    assert time.monotonic() - start < 60


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# config.json


@pytest.mark.parametrize("model_type", MODELS)
def test_every_number_of_a_configuration_is_bounded(model_type):
    config = tiny_config(model_type)
    for name in BOUNDS.keys() & vars(config).keys():
        legal = isinstance(getattr(config, name), float)
        for value in WRONG:
            if legal and value == 0 and "eps" not in name:
                continue
            start = time.monotonic()
            with pytest.raises(ValueError, match=rf"{name}|num_attention_heads|num_mel_bins|position_conv"):
                tiny_config(model_type, **{name: value})
            assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**9, -1, "2", None)),
        *(("hidden_size", value) for value in (10**9, 0, [1])),
        *(("dtype", value) for value in ("zzz", 5, "int64", "nn")),
        *(("num_labels", value) for value in (10**9, "x")),
        *(("id2label", 5), ("custom_pipelines", 5), ("attn_implementation", 5), ("quantization_config", 5)),
    ],
)
def test_a_configuration_file_is_named_in_the_error(folder, name, value):
    change(folder / "config.json", **{name: value})
    with pytest.raises(ConfigurationError, match=r"config\.json is refused: "):
        AutoModel.from_pretrained(folder)


def test_autoencoder_thresholds_are_finite():
    with pytest.raises(ValueError, match=r"`mse_threshold` must be at least .*, got nan"):
        AutoencoderConfig(mse_threshold=float("nan"))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "5", "null", "NaN", "[]", "[" * 100_000, '{"a":' * 100_000, " " * (MAX_SETTINGS_BYTES + 1)]
)
def test_what_is_no_json_object_is_one_line_of_the_command(folder, name, content, capsys, tmp_path):
    (folder / name).write_text(content)
    assert main(["score", str(folder), str(sound(tmp_path))]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    if name == "config.json":
        with pytest.raises(OSError, match=r"config\.json"):
            load_model(folder)


def sound(folder):
    import numpy as np
    import soundfile

    soundfile.write(folder / "x.wav", np.random.default_rng(0).normal(0, 0.1, (16000, 2)), 16000)
    return folder / "x.wav"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"architectures": 5}),
        ("config.json", {"auto_map": 5}),
        ("config.json", {"model_type": 5}),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("preprocessor_config.json", {"feature_extractor_type": [1]}),
        ("preprocessor_config.json", {"padding_value": "x"}),
    ],
)
def test_wrong_types_are_one_line_of_the_command(folder, name, values, capsys, tmp_path):
    change(folder / name, **values)
    assert main(["score", str(folder), str(sound(tmp_path))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert next(iter(values)) in error
    assert name in error


# preprocessor_config.json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("resample", value) for value in (1, "x", None, [1])),
        *(("padding_value", value) for value in (float("nan"), float("inf"), 1e300, "x", None, True)),
        *(("feature_size", value) for value in (10**9, 2.0, "2", [2])),
        *(("return_attention_mask", value) for value in (5, "x", None)),
        *(("padding_side", value) for value in (5, "left")),
        *(("sampling_rate", value) for value in (16000.0, -1)),
        *(("frontend", value) for value in (None, [1], {"a": 1})),
    ],
)
def test_wrong_settings_of_an_extractor_are_named(folder, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        TwoChannelFeatureExtractor(**{name: value})
    change(folder / "preprocessor_config.json", **{name: value})
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json are refused: `{name}` must be"):
        AutoFeatureExtractor.from_pretrained(folder)


# Weights


@pytest.mark.parametrize("kept", [0, 7, 1000, 0.5, -1])
def test_truncated_weights_are_an_os_error(folder, kept):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(OSError, match="checkpoint"):
        AutoModel.from_pretrained(folder)


def edited_weights(folder, edit):
    file = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("embeddings.cls_token"), "lack 1 tensors, such as embeddings.cls_token"),
        (lambda state: state.update(other=torch.ones(3)), "also hold 1 tensors, such as other"),
        (lambda state: (state.clear(), state.update(other=torch.ones(2**20))), "lack"),
        (lambda state: state.update({"embeddings.cls_token": torch.ones(3, 4)}), "cannot be loaded"),
        (lambda state: [state.pop(name) for name in list(state) if ".noise_aware." in name], r"lack .*noise_aware"),
    ],
)
def test_weights_of_another_model_are_refused(folder, edit, message, capsys, tmp_path):
    edited_weights(folder, edit)
    with pytest.raises(OSError, match=message):
        AutoModel.from_pretrained(folder)
    assert main(["score", str(folder), str(sound(tmp_path))]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_sizes_do_not_take_memory_that_the_weights_cannot_fill(folder):
    change(folder / "config.json", hidden_size=16_384, intermediate_size=131_072)
    with pytest.raises(OSError, match=r"The sizes in .*must be those of the weights beside it"):
        AutoModel.from_pretrained(folder)


def test_a_wrong_number_of_layers_is_noticed(folder):
    for number, message in ((1, "also hold"), (60, "lack|must be those")):
        change(folder / "config.json", num_hidden_layers=number)
        with pytest.raises(OSError, match=message):
            AutoModel.from_pretrained(folder)


def test_a_bad_index_of_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    for content in ("[]", "{", '{"weight_map": {"a": "../other"}}', '{"weight_map": {}, "metadata": 5}'):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(OSError, match=r"model\.safetensors\.index\.json must"):
            AutoModel.from_pretrained(folder)


# adapter_config.json


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 10**9}, "The ranks in .*adapter_config.json must be .*at most 4"),
        ({"rank_pattern": {"q_proj": 10**9}}, "The ranks in"),
        ({"r": "4"}, "`r` in .*adapter_config.json must be of type int"),
        ({"base_model_name_or_path": 5}, "`base_model_name_or_path` in .*must be of type str"),
        ({"target_modules": 5}, "adapter in .* does not fit"),
        ({"peft_type": "zzz"}, "adapter in .* does not fit"),
    ],
)
def test_wrong_adapters_are_named(tmp_path, values, message):
    model = tiny_model("beats")
    model.save_pretrained(tmp_path / "base")
    add_lora(model, 4)
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    assert load_model(tmp_path / "adapter") is not None
    change(tmp_path / "adapter" / "adapter_config.json", **values)
    with pytest.raises(OSError, match=message):
        load_model(tmp_path / "adapter")


# memory_bank.safetensors


@pytest.fixture
def bank(tmp_path):
    vectors = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0))
    fitted = MemoryBank(rescaling="ratio").fit(vectors)
    fitted.calibration = some_calibration()
    fitted.partial_fit(vectors[:2] + 1).save_pretrained(tmp_path)
    return tmp_path / "memory_bank.safetensors"


def edited_bank(path, edit=lambda tensors, header: None):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["memory_bank"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    edit(tensors, header)
    save_file(tensors, path, metadata={"memory_bank": json.dumps(header)})
    return MemoryBank.from_file(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors, header: tensors["memory_"].zero_(),
        lambda tensors, header: [tensors[name].zero_() for name in ("memory_", "squared_norms_")],
        lambda tensors, header: tensors["memory_"].mul_(2),
        lambda tensors, header: tensors["memory_"][0, 0].fill_(float("nan")),
        lambda tensors, header: tensors["squared_norms_"].fill_(float("inf")),
        lambda tensors, header: tensors["density_"].fill_(float("nan")),
        lambda tensors, header: tensors["density_"].fill_(-1.0),
        lambda tensors, header: tensors.pop("density_"),
        lambda tensors, header: tensors.update(other=torch.ones(2)),
        lambda tensors, header: header.update(num_clips=True),
        lambda tensors, header: header.update(num_clips=10**30),
        lambda tensors, header: header.update(version=True),
        lambda tensors, header: header.update(settings=5),
        lambda tensors, header: header.update(history=5),
        lambda tensors, header: header["calibration"].update(threshold=float("nan")),
        lambda tensors, header: header["calibration"].update(threshold=-1.0),
        lambda tensors, header: header["calibration"].update(self_scores=[-1.0] * 3),
        lambda tensors, header: header["calibration"].update(self_scores=[1e400]),
        lambda tensors, header: header["settings"].update(num_neighbors=-1),
    ],
)
def test_damaged_banks_are_one_os_error(bank, edit):
    assert edited_bank(bank).num_clips_ == 8
    with pytest.raises(OSError, match=r"memory_bank\.safetensors is not a readable memory bank"):
        edited_bank(bank, edit)


def test_headers_of_banks_are_read_in_bounds(bank):
    tensors = {"memory_": torch.ones(1, 1, 2)}
    for header in ("", "5", "null", "[" * 100_000, '{"format_version":' * 100_000, "{}"):
        save_file(tensors, bank, metadata={"memory_bank": header})
        with pytest.raises(OSError, match="not a readable memory bank"):
            MemoryBank.from_file(bank)
    huge = json.dumps({"memory_": {"dtype": "F32", "shape": [2**20, 2**20, 8], "data_offsets": [0, 2**45]}}).encode()
    for content in (len(huge).to_bytes(8, "little") + huge, (2**62).to_bytes(8, "little") + huge):
        bank.write_bytes(content)
        with pytest.raises(OSError, match="not a readable memory bank"):
            MemoryBank.from_file(bank)


def test_a_negative_threshold_of_differences_is_legal(tmp_path):
    bank = MemoryBank(rescaling="variance_min").fit(torch.randn(6, 2, 8))
    bank.calibration = some_calibration(threshold=-0.1)
    bank.save_pretrained(tmp_path)
    assert MemoryBank.from_pretrained(tmp_path).calibration.threshold == -0.1


def test_shipped_checkpoints_load():
    assert len(shipped_checkpoints()) == 6
    for path in shipped_checkpoints().values():
        assert pipeline("anomaly-scoring", model=str(path)).memory_bank is None
