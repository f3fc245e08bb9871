"""The models as graphs: `torch.export`, ONNX and the exporters of transformers, for any batch and length."""

import io

import pytest
import torch
from tiny_models import MODELS, NOISE_AWARE_VARIANTS, tiny_model, two_channel_fbank
from torch.export import Dim

from na_ssl_hf.hub import mel_spectrogram
from na_ssl_hf.hub.fbank import real_dft

VARIANTS = [(name, None) for name in MODELS if not name.startswith("na-")] + NOISE_AWARE_VARIANTS
variants = pytest.mark.parametrize(("model_type", "layer_type"), VARIANTS)
masks = pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
# A graph is made from the first size and must be right for all. 240 frames are one whole piece of the tiny Dasheng, and
# 33 give EfficientAT two columns of its last map. 57, 100 and 163 are whole numbers of neither patches nor tokens.
SIZES = ((2, 100), (1, 57), (3, 163), (1, 240), (4, 33))


def model_of(model_type, layer_type):
    return tiny_model(model_type, **({"noise_aware_layer_type": layer_type} if layer_type else {}))


def inputs_of(model_type, batch, frames, masked):
    fbank = two_channel_fbank(model_type, batch, frames, seed=frames)
    inputs = {"input_values": fbank if model_type.startswith("na-") else fbank[:, 0]}
    if masked:
        inputs["attention_mask"] = torch.ones(batch, frames, dtype=torch.long)
        inputs["attention_mask"][0, frames * 2 // 3 :] = 0
    return inputs


def dynamic(inputs):
    """The batch and the frames of every input may change."""
    sizes = {}
    for name, tensor in inputs.items():
        time = 1 if name.endswith("attention_mask") else tensor.ndim - 2
        sizes[name] = {0: Dim.DYNAMIC, time: Dim.DYNAMIC}
    return sizes


def exported(model, inputs):
    return torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic(inputs), strict=False).module()


@torch.no_grad()
@masks
@variants
def test_one_graph_takes_every_batch_and_length(model_type, layer_type, masked):
    model = model_of(model_type, layer_type)
    graph = exported(model, inputs_of(model_type, *SIZES[0], masked))
    for size in SIZES:
        inputs = inputs_of(model_type, *size, masked)
        got, expected = graph(**inputs).last_hidden_state, model(**inputs).last_hidden_state
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, msg=lambda text, size=size: f"{size}: {text}")


def with_far_channel(model_type, batch, frames, far_frames):
    close, far = inputs_of(model_type, batch, frames, True), inputs_of(model_type, batch, far_frames, True)
    return {
        "input_values": close["input_values"][:, 0],
        "noise_values": far["input_values"][:, 1],
        "attention_mask": close["attention_mask"],
        "noise_attention_mask": far["attention_mask"],
    }


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "layer_type"), NOISE_AWARE_VARIANTS)
def test_one_graph_takes_channels_of_two_lengths(model_type, layer_type):
    if layer_type == "self_attention":
        pytest.skip("it has no far channel")
    model = model_of(model_type, layer_type)
    # Example channels of equal length must not make them equal for good.
    graph = exported(model, with_far_channel(model_type, 2, 100, 100))
    for size in ((2, 100, 100), (1, 100, 57), (3, 64, 163)):
        inputs = with_far_channel(model_type, *size)
        got, expected = graph(**inputs).last_hidden_state, model(**inputs).last_hidden_state
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["beats", "na-beats"])
def test_a_graph_keeps_the_hidden_states(model_type):
    model = tiny_model(model_type, output_hidden_states=True)
    graph = exported(model, inputs_of(model_type, 2, 100, False))
    inputs = inputs_of(model_type, 1, 57, False)
    got, expected = graph(**inputs).hidden_states, model(**inputs).hidden_states
    assert len(got) == len(expected) == model.num_layers + 1
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


ONNX = [
    *[(name, None, True) for name in MODELS if not name.startswith("na-")],
    *[("na-beats", layer_type, True) for layer_type in ("cross_attention", "aligned", "film", "self_attention")],
    *[("na-beats", "cross_attention", False), ("na-eat", "cross_attention", True), ("na-dasheng", "aligned", False)],
]


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "layer_type", "masked"), ONNX)
def test_onnx_takes_every_batch_and_length(model_type, layer_type, masked):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = model_of(model_type, layer_type)
    example = inputs_of(model_type, *SIZES[0], masked)
    program = torch.onnx.export(model, (), kwargs=example, dynamic_shapes=dynamic(example), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = inputs_of(model_type, *size, masked)
        got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        # The maps of an untrained EfficientAT grow from layer to layer.
        expected = model(**inputs).last_hidden_state
        torch.testing.assert_close(torch.from_numpy(got), expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("model_type", MODELS)
def test_the_exporter_of_transformers_takes_it(model_type):
    dynamo = pytest.importorskip("transformers.exporters.exporter_dynamo")
    model = tiny_model(model_type)
    example = inputs_of(model_type, 2, 100, True)
    settings = dynamo.DynamoConfig(dynamic=True, dynamic_shapes=dynamic(example))
    graph = dynamo.DynamoExporter().export(model, dict(example), config=settings).program.module()
    inputs = inputs_of(model_type, 3, 163, True)
    expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(graph(**inputs).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dasheng", "efficientat"])
def test_tables_that_an_export_makes_first_are_of_use_to_the_next_one(kind):
    class Mel(torch.nn.Module):
        def forward(self, waves):
            return mel_spectrogram._mel_power(waves, kind, 64, 160)

    mel_spectrogram._tables_on.cache_clear()
    real_dft.cache_clear()
    waves = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    of_graphs = [torch.export.export(Mel(), (waves,), strict=False).module()(waves) for _ in range(2)]
    for of_graph in of_graphs:
        assert torch.allclose(of_graph, Mel()(waves), rtol=1e-3, atol=1e-4)
