"""Write `na-beats-tiny` as it ships until trained weights exist: a random base and identity noise-aware layers.

    python examples/make_untrained_checkpoint.py src/na_ssl_hf/checkpoints/na-beats-tiny

The same seed gives the same file on the same machine.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from na_ssl_hf import NABeatsConfig, NABeatsModel, TwoChannelFeatureExtractor

SEED = 0
NOTE = f"untrained: random base (seed {SEED}), identity noise-aware layers"
CARD = Path(__file__).parent.parent / "model_cards" / "na-beats-tiny.md"
CONFIGS = ("config.json", "preprocessor_config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path)
    destination = parser.parse_args().destination

    torch.manual_seed(SEED)
    config = NABeatsConfig(
        hidden_size=128,
        patch_embedding_size=128,
        num_hidden_layers=4,
        # Two wide heads: at this size the softmax costs more than what it weighs.
        num_attention_heads=2,
        noise_aware_num_heads=2,
        intermediate_size=512,
        checkpoint_note=NOTE,
    )
    model = NABeatsModel(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        TwoChannelFeatureExtractor(frontend="beats").save_pretrained(folder)
        destination.mkdir(parents=True, exist_ok=True)
        # The code that save_pretrained puts beside the weights is this package: neither it nor a pointer to it ships.
        for name in CONFIGS:
            content = json.loads((Path(folder) / name).read_text())
            content.pop("auto_map")
            (destination / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        shutil.copyfile(Path(folder) / "model.safetensors", destination / "model.safetensors")
    shutil.copyfile(CARD, destination / "README.md")
    size = (destination / "model.safetensors").stat().st_size / 1e6
    print(f"{destination}: {size:.1f} MB, {NOTE}")


if __name__ == "__main__":
    main()
