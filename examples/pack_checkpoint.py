"""Pack the result of a training into a checkpoint that ships with the package and contains data only, no code.

    python examples/pack_checkpoint.py OUT src/na_ssl_hf/checkpoints/na-beats-tiny --card model_cards/na-beats-tiny.md

OUT is a folder of train_na_distillation.py or pretrain_tiny_base.py. Weights, configuration and extractor are copied,
and the card with its pictures becomes README.md. The code that `save_pretrained` puts beside them is not needed,
because the package contains it.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoModel

import na_ssl_hf  # noqa: F401  (registers the models)

CONFIGS = ("config.json", "preprocessor_config.json")
# These fields say where code and weights were on the machine that trained them.
LOCAL_FIELDS = ("auto_map", "custom_pipelines", "_name_or_path")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that a training wrote")
    parser.add_argument("destination", type=Path, help="folder to write")
    parser.add_argument("--card", type=Path, required=True, help="file of the model card")
    parser.add_argument(
        "--fp16-weights",
        action="store_true",
        help="weights in half precision, which halves the file; they load as float32",
    )
    parser.add_argument(
        "--without-positions",
        action="store_true",
        help="weights without EAT's table of positions, which is fixed and made anew on loading",
    )
    options = parser.parse_args()

    options.destination.mkdir(parents=True, exist_ok=True)
    for name in CONFIGS:
        content = json.loads((options.source / name).read_text(encoding="utf-8"))
        content = {field: value for field, value in content.items() if field not in LOCAL_FIELDS}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (options.destination / name).write_text(text, encoding="utf-8")
    # The file is written again rather than copied, because trainings save it readable for its owner only.
    weights = load_file(options.source / "model.safetensors")
    if options.without_positions:
        weights = {name: weight for name, weight in weights.items() if not name.endswith("position_embeddings")}
    if options.fp16_weights:
        weights = {name: weight.half() for name, weight in weights.items()}
    save_file(weights, options.destination / "model.safetensors", metadata={"format": "pt"})
    (options.destination / "model.safetensors").chmod(0o644)
    shutil.copyfile(options.card, options.destination / "README.md")
    for picture in re.findall(r"!\[[^]]*\]\(([^):]+)\)", options.card.read_text(encoding="utf-8")):
        shutil.copyfile(options.card.parent / picture, options.destination / picture)
    model = AutoModel.from_pretrained(options.destination)
    size = (options.destination / "model.safetensors").stat().st_size / 1e6
    parameters = model.num_parameters() / 1e6
    print(f"{options.destination}: {model.config.model_type}, {size:.1f} MB, {parameters:.2f} M parameters")


if __name__ == "__main__":
    main()
