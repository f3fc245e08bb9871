"""What users rely on in every model: saving, modes, captures, masks, dtypes, compilation."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, NOISE_AWARE_VARIANTS, TRANSFORMERS, tiny_config, tiny_model, two_channel_fbank
from transformers import AutoConfig, AutoModel

ALL_TYPES = list(MODELS)
IN_PIECES = {"target_length": 24}  # Dasheng then cuts the hundred frames of most tests into five pieces
VARIANTS = [
    *[
        ("beats", {}),
        ("dasheng", {}),
        ("dasheng", IN_PIECES),
        ("eat", {}),
        ("efficientat", {}),
        ("na-dasheng", IN_PIECES),
    ],
    *[(model_type, {"noise_aware_layer_type": layer_type}) for model_type, layer_type in NOISE_AWARE_VARIANTS],
]
variants = pytest.mark.parametrize(
    ("model_type", "fields"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
all_types = pytest.mark.parametrize("model_type", ALL_TYPES)
transformers = pytest.mark.parametrize("model_type", TRANSFORMERS)


@torch.no_grad()
def output(model, fbank, **kwargs):
    return model(fbank, **kwargs).last_hidden_state


@variants
def test_saved_and_loaded_model_gives_equal_outputs(model_type, fields, tmp_path):
    model, fbank = tiny_model(model_type, **fields), two_channel_fbank(model_type)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not loaded.training
    assert torch.equal(output(model, fbank), output(loaded, fbank))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()


@variants
def test_eval_is_deterministic_and_batch_invariant(model_type, fields):
    model, fbank = tiny_model(model_type, **fields), two_channel_fbank(model_type, batch=3)
    together = output(model, fbank)
    assert torch.equal(together, output(model, fbank))
    alone = torch.cat([output(model, fbank[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@all_types
def test_hidden_states_are_the_first_input_and_every_output(model_type):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    captured = model(fbank, output_hidden_states=True)
    assert len(captured.hidden_states) == model.config.num_hidden_layers + 1
    last = captured.hidden_states[-1]
    assert torch.equal(model.layer_norm(last) if "dasheng" in model_type else last, captured.last_hidden_state)
    assert not torch.equal(captured.hidden_states[0], captured.hidden_states[1])
    some = model(fbank, output_hidden_states=[1, -1])
    kept = [index for index, state in enumerate(some.hidden_states) if state is not None]
    assert kept == [1, model.config.num_hidden_layers]


@transformers
def test_eager_attention_gives_weights_and_the_same_output(model_type):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    fused = output(model, fbank)
    model.set_attn_implementation("eager")
    eager = model(fbank, output_attentions=True)
    torch.testing.assert_close(eager.last_hidden_state, fused, atol=1e-5, rtol=0)
    assert len(eager.attentions) == model.config.num_hidden_layers
    torch.testing.assert_close(eager.attentions[0].sum(-1), torch.ones_like(eager.attentions[0][..., 0]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@transformers
def test_padding_is_ignored(model_type, attention):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type, frames=128)
    model.set_attn_implementation(attention)
    mask = torch.ones(2, 128, dtype=torch.long)
    mask[1, 64:] = 0
    changed = fbank.clone()
    changed[1, :, 64:] = 100.0
    valid = model.has_cls_token + model.num_tokens(64)
    before, after = (output(model, x, attention_mask=mask)[1, :valid] for x in (fbank, changed))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert not torch.allclose(output(model, fbank)[1], output(model, changed)[1], atol=1e-2)
    all_ones = output(model, fbank, attention_mask=torch.ones_like(mask))
    torch.testing.assert_close(all_ones, output(model, fbank), atol=1e-6, rtol=0)


@transformers
def test_grid_is_time_major_and_drops_cls(model_type):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type, frames=101)
    tokens = output(model, fbank)
    first = 1 if "eat" in model_type.split("-") else 0
    assert tokens.shape[1] == model.num_tokens(101) + first
    grid = model.time_frequency_grid(tokens)
    rows, bands = (25, 1) if "dasheng" in model_type else (6, 8)
    assert grid.shape == (2, rows, bands, 32)
    assert torch.equal(grid[:, 2, bands // 2], tokens[:, first + 2 * bands + bands // 2, :])


@pytest.mark.parametrize("model_type", ["eat", "na-eat"])
def test_pooler_output_is_cls(model_type):
    result = tiny_model(model_type)(two_channel_fbank(model_type))
    assert torch.equal(result.pooler_output, result.last_hidden_state[:, 0])


@variants
def test_gradient_checkpointing_changes_no_gradient(model_type, fields):
    model, fbank = tiny_model(model_type, **fields), two_channel_fbank(model_type)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    for one in (model, checkpointed):
        one.train()
        one(fbank).last_hidden_state.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in checkpointed.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


@transformers
def test_dtype_argument_and_half_precision_run(model_type, tmp_path):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    got = output(half, fbank)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), output(model, fbank), atol=0.2, rtol=0)


@variants
def test_compiles_as_one_graph(model_type, fields):
    model, fbank = tiny_model(model_type, **fields), two_channel_fbank(model_type)
    expected = output(model, fbank)
    # aot_eager traces and functionalises like inductor and needs no C++ compiler.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(compiled, fbank), expected, atol=1e-5, rtol=0)
    torch._dynamo.reset()


@torch.no_grad()
@all_types
def test_exports_as_one_graph(model_type):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    exported = torch.export.export(model, (fbank,), strict=False).module()
    torch.testing.assert_close(output(exported, fbank), output(model, fbank), atol=1e-5, rtol=0)


@transformers
def test_config_rejects_bad_sizes(model_type):
    with pytest.raises(Exception, match="num_attention_heads"):
        tiny_config(model_type, num_attention_heads=5)
    field, value = ("target_length", 101) if "dasheng" in model_type else ("num_mel_bins", 100)
    with pytest.raises(Exception, match=field):
        tiny_config(model_type, **{field: value})


@transformers
def test_input_embeddings_are_the_patches(model_type):
    model = tiny_model(model_type)
    assert model.get_input_embeddings() is model.embeddings.patch_embedding


@transformers
def test_wrong_shapes_are_named(model_type):
    model = tiny_model(model_type)
    bins, least = model.config.num_mel_bins, model.config.patch_size
    for shape, message in (
        ((2, 3, 100, bins), "two channels"),
        ((2, 2, 100, bins // 2), f"{bins}.* got shape"),
        ((2, 2, least - 1, bins), f"at least {least} frames, got {least - 1}"),
        ((100, bins), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))


def test_a_checkpoint_without_its_position_table_gets_the_published_one(tmp_path):
    # Loading builds on the meta device: what no file holds must be filled in by the initialisation.
    model, fbank = tiny_model("eat"), two_channel_fbank()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.position_embeddings"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]  # nothing is missing that a user should hear of
    assert torch.equal(output(loaded, fbank), output(model, fbank))
