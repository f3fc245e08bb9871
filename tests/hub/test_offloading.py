"""Weights that lie elsewhere until they are used, and models made without memory for their weights."""

import pytest
import torch
from tiny_models import MODELS, tiny_config, tiny_model, two_channel_fbank
from transformers import AutoModel
from transformers.initialization import no_init_weights

from na_ssl_hf import EatModel

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for model_type in MODELS:
        tiny_model(model_type).save_pretrained(folder / model_type)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("on_disk", ["first", "all_but_first", "one_layer"])
@pytest.mark.parametrize("model_type", MODELS)
def test_outputs_are_equal_with_parts_on_a_disk(folder, tmp_path, model_type, on_disk, masked):
    model = tiny_model(model_type)
    parts = [name for name, _ in model.named_children() if name != "layers"]
    layers = [f"layers.{i}" for i in range(len(model.layers))]
    chosen = {"first": parts[:1], "all_but_first": parts[1:] + layers, "one_layer": layers[-1:]}[on_disk]
    device_map = {name: "disk" if name in chosen else "cpu" for name in parts + layers}
    offloaded = AutoModel.from_pretrained(folder / model_type, device_map=device_map, offload_folder=tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    fbank, mask = two_channel_fbank(model_type), None
    if masked:
        mask = torch.ones(2, 100, dtype=torch.long)
        mask[0, 64:] = 0
    for _ in range(2):
        got = offloaded(fbank, attention_mask=mask).last_hidden_state
        assert torch.equal(got, model(fbank, attention_mask=mask).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_outputs_are_equal_with_all_weights_offloaded(tmp_path, model_type, offload):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    expected = model(fbank).last_hidden_state
    to = (str(tmp_path),) if offload == "disk_offload" else ()
    getattr(accelerate, offload)(model, *to, execution_device="cpu")
    assert torch.equal(model(fbank).last_hidden_state, expected)


def without_table(model):
    return {name: value for name, value in model.state_dict().items() if "position_embeddings" not in name}


@pytest.mark.parametrize("assign", [False, True])
def test_positions_are_right_in_a_model_that_was_given_memory_late(assign):
    whole = tiny_model("eat")
    with torch.device("meta"):
        empty = EatModel(tiny_config("eat"))
    empty = empty.to_empty(device="cpu")
    empty.embeddings.position_embeddings.fill_(float("nan"))
    missing, unexpected = empty.load_state_dict(without_table(whole), strict=False, assign=assign)
    assert not missing
    assert not unexpected
    assert torch.equal(empty.embeddings.position_embeddings, whole.embeddings.position_embeddings)


def test_positions_are_right_without_initialisation():
    with no_init_weights():
        model = EatModel(tiny_config("eat"))
    assert torch.equal(model.embeddings.position_embeddings, tiny_model("eat").embeddings.position_embeddings)


def test_a_table_in_the_file_is_taken():
    model = tiny_model("eat")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model.embeddings.position_embeddings, state["embeddings.position_embeddings"])
