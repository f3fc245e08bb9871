"""Heads that name sounds, on every transformer encoder."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import TRANSFORMERS, tiny_config, tiny_model, two_channel_fbank
from transformers import AutoModel, AutoModelForAudioClassification, Trainer, TrainingArguments
from without_package import WITHOUT_PACKAGE

all_types = pytest.mark.parametrize("model_type", TRANSFORMERS)


def classifier_of(model_type, num_labels=3):
    torch.manual_seed(0)
    return AutoModelForAudioClassification.from_config(tiny_config(model_type, num_labels=num_labels)).eval()


@torch.no_grad()
@all_types
def test_it_loads_from_the_folder_of_its_encoder_and_the_encoder_from_its_own(model_type, tmp_path):
    encoder, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    encoder.save_pretrained(tmp_path / "encoder")
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "encoder", num_labels=3)
    expected = encoder(fbank).last_hidden_state
    assert torch.equal(model.encoder(fbank).last_hidden_state, expected)
    assert model.config.num_labels == model(fbank).logits.shape[1] == 3
    model.save_pretrained(tmp_path / "classifier")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again(fbank).logits, model(fbank).logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "classifier")(fbank).last_hidden_state, expected)


@torch.no_grad()
@all_types
def test_padding_is_not_heard(model_type):
    model, fbank = classifier_of(model_type), two_channel_fbank(model_type, frames=96)
    mask = torch.ones(2, 96, dtype=torch.long)
    torch.testing.assert_close(model(fbank, attention_mask=mask).logits, model(fbank).logits, atol=1e-6, rtol=0)
    mask[0, 48:] = 0
    padded, alone = model(fbank, attention_mask=mask).logits[:1], model(fbank[:1, :, :48]).logits
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    assert (padded - model(fbank).logits[:1]).abs().max() > 1e-4


@all_types
def test_a_trainer_learns_labels(model_type, tmp_path):
    fbank = two_channel_fbank(model_type, batch=8, frames=64)
    fbank[::2] += 2.0
    rows = [{"input_values": each, "labels": i % 2} for i, each in enumerate(fbank)]
    model = classifier_of(model_type, num_labels=2)
    before = model(fbank, labels=torch.tensor([0, 1] * 4)).loss.detach()
    settings = TrainingArguments(
        tmp_path,
        max_steps=15,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(model, settings, train_dataset=rows).train()
    assert model.eval()(fbank, labels=torch.tensor([0, 1] * 4)).loss < 0.7 * before


def test_the_base_of_a_noise_aware_classifier_stays_frozen(tmp_path):
    tiny_model("na-beats").save_pretrained(tmp_path)
    model = AutoModelForAudioClassification.from_pretrained(tmp_path, num_labels=2)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier.weight", "classifier.bias"} < trained
    assert all(".noise_aware." in name or name.startswith("classifier.") for name in trained)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import json, sys
import torch
from transformers import AutoModel, AutoModelForAudioClassification
fbank = torch.load(sys.argv[1] + "/fbank.pt")
with torch.no_grad():
    load = {"trust_remote_code": True}
    logits = AutoModelForAudioClassification.from_pretrained(sys.argv[1], **load)(fbank).logits
    tokens = AutoModel.from_pretrained(sys.argv[1], **load)(fbank).last_hidden_state
print(json.dumps([logits.tolist(), tokens.tolist()]))
"""
)


@torch.no_grad()
def test_it_travels_with_its_code(tmp_path):
    model, fbank = classifier_of("na-eat"), two_channel_fbank("na-eat", frames=32)
    model.save_pretrained(tmp_path)
    torch.save(fbank, tmp_path / "fbank.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", REMOTE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, tokens = json.loads(done.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(logits), model(fbank).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(tokens), model.encoder(fbank).last_hidden_state, atol=1e-5, rtol=0)
