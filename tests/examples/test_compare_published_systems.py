"""All published systems by one command: fine-tuned, scored and compared; killed and started again, nothing twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from example_scripts import EXAMPLES
from tiny_models import tiny_config, tiny_model

from na_ssl_hf import TwoChannelFeatureExtractor

SCRIPT = EXAMPLES / "compare_published_systems.py"
ROWS = [
    *("beats", "eat", "eat-large", "na-beats", "na-eat", "dis-beats", "dis-eat", "dis-na-beats", "dis-na-eat"),
    *("baseline_mse", "baseline_mahala", *(f"fujimura_merl_task2_{number}" for number in range(1, 5))),
    *("logmel", "logmel-centred", "logmel-centred+spectral_subtraction"),
]


@pytest.fixture(scope="module")
def command(benchmark_root, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("published")
    for model_type in ("na-beats", "na-eat", "eat"):
        tiny_model(model_type).save_pretrained(folder / model_type)
        TwoChannelFeatureExtractor(tiny_config(model_type).frontend).save_pretrained(folder / model_type)
    command = [sys.executable, SCRIPT, benchmark_root, "--out", folder / "out", "--seeds", 0, "--autoencoder-epochs", 1]
    for option, model_type in (("--na-beats", "na-beats"), ("--na-eat", "na-eat"), ("--eat-large", "eat")):
        command += [option, folder / model_type]
    fine_tuning = {"max_steps": 1, "duration": 0.5, "lora_rank": 2, "num_clusters": 2, "held_out": 0.2, "batch_size": 2}
    command += ["--", *(word for name, value in fine_tuning.items() for word in (f"--{name}", value))]
    return [str(word) for word in command]


def test_one_command_fine_tunes_scores_and_compares(command):
    out = Path(command[command.index("--out") + 1])
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    lines = first.stdout.splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == ROWS
    assert (out / "table.md").read_text() == first.stdout
    measured = {path.parent.name: json.loads(path.read_text()) for path in out.glob("systems/*/metrics.json")}
    assert set(measured) == set(ROWS)
    adapters = {name: str(out / "adapters" / f"dis-{name}-0") for name in ("beats", "eat", "na-beats", "na-eat")}
    assert measured["fujimura_merl_task2_1"]["checkpoints"] == {
        f"dis-{name}": [adapters[name]] for name in ("na-eat", "na-beats")
    }

    weights = {path: path.stat().st_mtime_ns for path in out.glob("adapters/*/adapter_model.safetensors")}
    assert len(weights) == 4
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == weights

    changed = subprocess.run([*command, "--lr", "1e-5"], capture_output=True, text=True)
    assert changed.returncode == 1
    assert "out must hold adapters of the same command" in changed.stderr
