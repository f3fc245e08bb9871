"""What is EfficientAT's own among the encoders: maps instead of tokens, a mask that convolutions obey, and a head."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from transformers import AutoModel, AutoModelForAudioClassification
from without_package import WITHOUT_PACKAGE

from na_ssl_hf import EfficientATConfig, EfficientATForAudioClassification, EfficientATModel
from na_ssl_hf.hub.configuration_efficientat import block_sizes, last_channels, round_channels

# Rows of the stem, of blocks 1, 2-3, 4-6, 7-12 and of 13-16, as published for each number of mel bins.
ROWS = {
    128: (64, 64, 32, 16, 8, 4),
    40: (20, 20, 10, 5, 3, 2),
    64: (32, 32, 16, 8, 4, 2),
    256: (128, 128, 64, 32, 16, 8),
}
LAYERS_OF_ROWS = ((0,), (1,), (2, 3), (4, 5, 6), tuple(range(7, 13)), tuple(range(13, 17)))


@pytest.fixture
def model():
    return trained_norms(tiny_model("efficientat"))


def trained_norms(model):
    """Give the batch norms statistics, with which silence is not zero in the maps."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def spectrogram(frames=97, batch=2, mels=128, seed=0):
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(seed))


def classifier(seed=0, **fields):
    torch.manual_seed(seed)
    return trained_norms(EfficientATForAudioClassification(tiny_config("efficientat", num_labels=7, **fields)).eval())


@pytest.mark.parametrize(
    ("width", "stem", "outs", "last"),
    [
        (0.1, 8, (8, 8, 8, 8, 16, 16), 96),
        (0.2, 8, (8, 8, 8, 16, 24, 32), 192),
        (0.4, 8, (8, 16, 16, 32, 48, 64), 384),
        (0.5, 8, (8, 16, 24, 40, 56, 80), 480),
        (0.6, 16, (16, 16, 24, 48, 64, 96), 576),
        (0.8, 16, (16, 24, 32, 64, 88, 128), 768),
        (1.0, 16, (16, 24, 40, 80, 112, 160), 960),
        (2.0, 32, (32, 48, 80, 160, 224, 320), 1920),
    ],
)
def test_channels_are_the_published_ones(width, stem, outs, last):
    sizes = block_sizes(width)
    assert sizes[0].in_channels == stem
    assert tuple(sizes[index].out_channels for index in (0, 1, 3, 6, 10, 12)) == outs
    assert last_channels(width) == last == EfficientATConfig(width=width).hidden_size
    assert [size.in_channels for size in sizes[1:]] == [size.out_channels for size in sizes[:-1]]


def test_channels_are_rounded_to_eights_and_never_by_more_than_a_tenth_down():
    for channels in range(1, 300):
        rounded = round_channels(channels)
        assert rounded % 8 == 0
        assert 0.9 * channels <= rounded <= max(8, channels + 8)


@pytest.mark.parametrize(("width", "parameters"), [(0.1, 123_783), (0.4, 983_599), (1.0, 4_876_831), (4.0, 68_427_303)])
def test_the_numbers_of_parameters_are_the_published_ones(width, parameters):
    with torch.device("meta"):
        model = EfficientATForAudioClassification(EfficientATConfig(width=width, num_labels=527))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_only_the_close_channel_is_used(model):
    close, far = spectrogram(seed=1), spectrogram(seed=2)
    both = model(torch.stack([close, far], dim=1)).last_hidden_state
    assert torch.equal(both, model(close).last_hidden_state)
    assert not torch.equal(both, model(far).last_hidden_state)


@pytest.mark.parametrize("mels", ROWS)
@pytest.mark.parametrize("frames", [1, 2, 33, 100])
@torch.no_grad()
def test_grids_have_the_published_sizes_and_rows_from_low_to_high(mels, frames):
    model = tiny_model("efficientat", num_mel_bins=mels)
    x = spectrogram(frames, mels=mels)
    grids = model.layer_grids(x, range(17))
    for rows, layers in zip(ROWS[mels], LAYERS_OF_ROWS, strict=True):
        for layer in layers:
            stride = model.config.layer_stride(layer)
            assert grids[layer].shape[:3] == (2, -(-frames // stride), rows)
            assert len(model.row_centres(layer)) == rows


@torch.no_grad()
def test_time_and_frequency_are_not_swapped(model):
    x = spectrogram(frames=128)
    later, higher = x.clone(), x.clone()
    later[:, 100:], higher[:, :, 100:] = 5.0, 5.0
    for layer in (0, 2):  # the first gate, in block 4, sees everything
        plain, late, high = (model.layer_grids(one, [layer])[0] for one in (x, later, higher))
        stride = model.config.layer_stride(layer)
        changed = ((late - plain).abs().amax((0, 2, 3)) > 0).nonzero()[0]
        assert 100 / stride - 4 <= int(changed) <= 100 / stride
        changed = ((high - plain).abs().amax((0, 1, 3)) > 0).nonzero()[0]
        assert 100 / stride - 4 <= int(changed) <= 100 / stride


def test_rows_are_centred_on_the_mel_bins_that_their_stride_reaches():
    centres = EfficientATModel(EfficientATConfig(width=0.1)).row_centres(9)
    assert [round(hertz) for hertz in centres] == [17, 355, 851, 1581, 2655, 4235, 6558, 9975]


@torch.no_grad()
def test_layer_grids_are_the_hidden_states(model):
    x = spectrogram()
    output = model(x, output_hidden_states=True)
    chosen = [12, 0, None, 3, 16]
    grids = model.layer_grids(x, chosen)
    for layer, grid in zip(chosen, grids, strict=True):
        assert torch.equal(grid, model.time_frequency_grid(output.hidden_states[16 if layer is None else layer]))


def test_layers_behind_the_last_chosen_one_are_not_run(model):
    ran = []
    for index, layer in enumerate(model.layers, start=1):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.layer_grids(spectrogram(), [3, 5, 0])
    assert ran == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("layer", [17, -1, 1.0, "3", True])
def test_a_layer_that_does_not_exist_is_refused_with_the_range(model, layer):
    with pytest.raises(ValueError, match=r"`layers`.*16.*got"):
        model.layer_grids(spectrogram(), [layer])


@pytest.mark.parametrize("head", ["mlp", "fc"])
@pytest.mark.parametrize("frames", [1, 31, 32, 33, 64, 96])
@torch.no_grad()
def test_a_recording_in_a_padded_batch_gives_what_it_gives_alone(head, frames):
    model = classifier(head=head)
    x = spectrogram(frames=97)
    x[0, frames:] = float("nan")  # whatever is there
    mask = torch.ones(2, 97, dtype=torch.long)
    mask[0, frames:] = 0
    padded = model(x, attention_mask=mask, output_hidden_states=True)
    for row, length in ((0, frames), (1, 97)):
        alone = model(x[row : row + 1, :length], output_hidden_states=True)
        torch.testing.assert_close(padded.logits[row], alone.logits[0], atol=1e-5, rtol=0)
        for before, after in zip(alone.hidden_states, padded.hidden_states, strict=True):
            own_columns = after[row, :, :, : before.shape[-1]]
            torch.testing.assert_close(own_columns, before[0], atol=1e-4, rtol=0)
    grids = model.efficientat.layer_grids(x, [9], attention_mask=mask)[0]
    alone = model.efficientat.layer_grids(x[:1, :frames], [9])[0]
    torch.testing.assert_close(grids[:1, : alone.shape[1]], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_mask_of_ones_changes_nothing(model):
    x = spectrogram()
    ones = torch.ones(2, 97, dtype=torch.long)
    torch.testing.assert_close(model(x, ones).pooler_output, model(x).pooler_output, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"mask must be \(batch, frames\), \(2, 97\), got \(2, 96\)"):
        model(x, ones[:, 1:])


@torch.no_grad()
def test_a_masked_batch_compiles_as_one_graph(model):
    x, mask = spectrogram(), torch.ones(2, 97, dtype=torch.long)
    mask[0, 40:] = 0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask).pooler_output, model(x, mask).pooler_output, atol=1e-5, rtol=0)
    torch._dynamo.reset()


@torch.no_grad()
def test_the_encoder_and_the_classifier_load_from_one_folder(tmp_path, caplog):
    tagger, x = classifier(), spectrogram()
    tagger.save_pretrained(tmp_path)
    caplog.clear()
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is EfficientATModel
    assert not info["missing_keys"]
    assert "classifier" not in caplog.text
    again = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert type(again) is EfficientATForAudioClassification
    assert torch.equal(again(x).logits, tagger(x).logits)
    assert torch.equal(encoder(x).pooler_output, tagger.efficientat(x).pooler_output)
    # The encoder saved alone has no head to load.
    encoder.save_pretrained(tmp_path / "encoder")
    auto_map = json.loads((tmp_path / "encoder" / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel"}
    with pytest.raises(OSError, match="lack 4 tensors"):
        AutoModelForAudioClassification.from_pretrained(tmp_path / "encoder")


def test_a_classifier_for_other_labels_starts_from_a_trained_one(tmp_path):
    classifier().save_pretrained(tmp_path)
    fresh = AutoModelForAudioClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    x = spectrogram()
    fresh.train()
    one_label = fresh(x, labels=torch.tensor([0, 2]))
    assert one_label.logits.shape == (2, 3)
    one_label.loss.backward()
    assert fresh.efficientat.stem.convolution.weight.grad.abs().max() > 0
    fresh.config.problem_type = "multi_label_classification"
    several = fresh(x, labels=torch.tensor([[1.0, 1, 0], [0, 0, 0]]))
    assert several.loss > 0


@torch.no_grad()
def test_exports_with_any_batch_and_length(model):
    x = spectrogram(frames=70)
    # A map of one column has strides of its own: an exported graph takes two columns of the last map or more.
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("frames", min=33, max=4096)}
    exported = torch.export.export(model, (x,), dynamic_shapes={"input_values": sizes}, strict=False).module()
    for batch, frames in ((1, 33), (3, 200)):
        other = spectrogram(frames, batch)
        torch.testing.assert_close(exported(other).pooler_output, model(other).pooler_output, atol=1e-5, rtol=0)


@torch.no_grad()
def test_half_precision_rounds_and_no_more(model, tmp_path):
    model.save_pretrained(tmp_path)
    half, x = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16), spectrogram()
    got, expected = half(x).last_hidden_state, model(x).last_hidden_state
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() < 0.05 * expected.norm()


def test_training_and_evaluation_differ_by_the_norms_alone(model):
    x, trained = spectrogram(), copy.deepcopy(model).train()
    trained(x)
    moved = [(a - b).abs().max() for a, b in zip(trained.buffers(), model.buffers(), strict=True)]
    assert max(moved) > 0
    assert torch.equal(model(x).pooler_output, model(x).pooler_output)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": (2, 2, 2)}, "`strides` must be four numbers, each 1 or 2"),
        ({"strides": (2, 2, 2, 3)}, "`strides` must be four numbers, each 1 or 2"),
        ({"head": "attention"}, r"`head` must be one of \('mlp', 'fc'\), got 'attention'"),
        ({"width": 0.0}, "`width` must be at least"),
        ({"width": float("nan")}, "`width` must be"),
        ({"hop_length": 0}, "`hop_length` must be at least 32, got 0"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EfficientATConfig(**fields)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 100, 128), "two channels"),
        ((2, 100, 64), "128"),
        ((2, 0, 128), "at least 1 frames"),
        ((100, 128), "shape"),
    ],
)
def test_wrong_shapes_are_named(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))


REMOTE = (
    WITHOUT_PACKAGE
    + """
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

folder = sys.argv[1]
x = torch.load(f"{folder}/x.pt")
autos = AutoModel, AutoModelForAudioClassification
encoder, tagger = (auto.from_pretrained(folder, trust_remote_code=True) for auto in autos)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
tagger.save_pretrained(f"{folder}/again")
with torch.no_grad():
    output = {"pooled": encoder(x).pooler_output, "logits": tagger(x).logits, "rate": extractor.sampling_rate}
assert "na_ssl_hf" not in sys.modules
torch.save(output, f"{folder}/output.pt")
"""
)


@torch.no_grad()
def test_both_load_by_the_code_in_the_folder_without_the_package(tmp_path):
    from na_ssl_hf import TwoChannelFeatureExtractor

    tagger, x = classifier(), spectrogram()
    tagger.save_pretrained(tmp_path)
    TwoChannelFeatureExtractor("efficientat").save_pretrained(tmp_path)
    torch.save(x, tmp_path / "x.pt")
    environment = os.environ | {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-c", REMOTE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    output = torch.load(tmp_path / "output.pt")
    torch.testing.assert_close(output["pooled"], tagger.efficientat(x).pooler_output, atol=1e-6, rtol=0)
    torch.testing.assert_close(output["logits"], tagger(x).logits, atol=1e-6, rtol=0)
    assert output["rate"] == 32000
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(x).logits, tagger(x).logits, atol=1e-6, rtol=0)
