"""Compare every published system on one data set, from tiny checkpoints whose "dis" variants are fine-tuned first.

    na-ssl simulate dcase --out benchmark --preset small --installation moving --seed 0
    python examples/compare_published_systems.py benchmark --out published

The rows are Table 3 (single frontends) and Table 5 (the challenge's baselines and the four submissions) of Fujimura et
al., DCASE 2026 Task 2, and log-mel statistics, which need no network. Four frontends are fine-tuned on the data's
training clips by finetune_discriminative.py, once for each seed, and the scores of the seeds are averaged. Finished
steps are kept in --out, so that a killed run continues there. Half of the CPU time is fine-tuning; its options follow
after `--`:

    python examples/compare_published_systems.py benchmark --seeds 0 -- --epochs 25
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

from na_ssl_hf import TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.evaluation.report.paired_comparison import comparison_table
from na_ssl_hf.evaluation.report.result_files import write_run, write_table
from na_ssl_hf.evaluation.systems.machine_data import list_machines
from na_ssl_hf.evaluation.systems.machine_scores import MachineScores
from na_ssl_hf.evaluation.systems.published_systems import SYSTEMS
from na_ssl_hf.evaluation.systems.run_settings import RunSettings
from na_ssl_hf.evaluation.systems.system_run import run_system

TABLE_3 = (
    *("beats", "eat", "eat-large", "na-beats", "na-eat"),
    *("dis-beats", "dis-eat", "dis-na-beats", "dis-na-eat"),
)
TABLE_5 = ("baseline_mse", "baseline_mahala", *(f"fujimura_merl_task2_{number}" for number in range(1, 5)))
NO_NETWORK = (("logmel", None), ("logmel-centred", None), ("logmel-centred", "spectral_subtraction"))
ROWS = (*((system, None) for system in (*TABLE_3, *TABLE_5)), *NO_NETWORK)
# The models have a hundredth of the published size and the data a tenth, which suits shorter crops, fewer steps and
# larger learning rates.
FINE_TUNING = (
    *("--duration", "3", "--epochs", "5", "--lr", "1e-3", "--warmup_steps", "50", "--mixed_precision", "bf16"),
    *("--num_clusters", "4"),
)


def fine_tune(base: str, seed: int, data: Path, folder: Path, options: Sequence[str]) -> None:
    """Train the adapter of one frontend and seed, unless it is there already.

    Raises:
        ValueError: the adapter that is there was trained by another command.
        RuntimeError: the training failed.
    """
    script = Path(__file__).with_name("finetune_discriminative.py")
    config = Path(__file__).with_name("accelerate") / "cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    command += ["--base", base, "--data", str(data), "--output_dir", str(folder), "--seed", str(seed), "--resume"]
    command += options
    folder.mkdir(parents=True, exist_ok=True)
    file, line = folder / "command.txt", shlex.join(command)
    if file.exists() and file.read_text() != line:
        raise ValueError(f"out must hold adapters of the same command, got those of {file}")
    file.write_text(line)
    if (folder / "adapter_config.json").is_file():
        return
    with (folder / "output.txt").open("w") as output:
        finished = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if finished.returncode:
        raise RuntimeError(f"fine-tuning of {base} failed, see {folder / 'output.txt'}")


def write_base(noise_aware: str, folder: Path) -> Path:
    """Write the base inside a noise-aware checkpoint as a checkpoint of its own, and return its folder."""
    model = AutoModel.from_pretrained(noise_aware, dtype=torch.float32)
    base = model.to_base()
    base.save_pretrained(folder)
    TwoChannelFeatureExtractor.of(base.config).save_pretrained(folder)
    return folder


def score(options: argparse.Namespace, checkpoints: Mapping[str, Sequence[str]]) -> dict[str, list[MachineScores]]:
    """Score every system and write its submission files; returns title of the row -> scores of its machines."""
    settings = RunSettings(options.out / "cache", num_epochs=options.autoencoder_epochs, show_progress=False)
    rows = {}
    for system, far_cancellation in tqdm(ROWS, "systems"):
        wanted = {name: checkpoints[name] for name in SYSTEMS[system].frontends if name in checkpoints}
        run = run_system(system, options.data, settings, wanted, far_cancellation)
        write_run(options.out / "systems" / run.name, run, options.data)
        rows[run.name] = list(run.machines)
    write_table(options.out / "systems")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, help="folder of <machine>/train and <machine>/test, with labelled test clips"
    )
    parser.add_argument("--out", type=Path, default=Path("published"), help="folder of adapters, embeddings and tables")
    parser.add_argument("--na-beats", default="na-beats-tiny", help="NA-BEATs checkpoint")
    parser.add_argument("--na-eat", default="na-eat-tiny", help="NA-EAT checkpoint")
    parser.add_argument("--eat-large", default="eat-tiny-deep", help="EAT checkpoint of a second size")
    parser.add_argument("--reference", default="na-beats", help="row that the others are compared to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the fine-tuning")
    parser.add_argument(
        "--autoencoder-epochs", type=int, default=100, help="number of epochs of the challenge's baselines"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of fine-tunings at a time")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    fine_tuning = [*FINE_TUNING, *words[end + 1 :]]

    if options.reference not in (names := [f"{name}+{how}" if how else name for name, how in ROWS]):
        parser.error(f"--reference must be one of {names}, got {options.reference!r}")
    list_machines(options.data)  # raises an error before any work where the folder is not right
    given = {"na-beats": options.na_beats, "na-eat": options.na_eat}
    noise_aware = {name: resolve_checkpoint(path) for name, path in given.items()}
    bases = {}
    for name, path in noise_aware.items():
        base = AutoConfig.for_model(name).base_model_type
        bases[base] = str(write_base(path, options.out / "bases" / base))
    frozen = {**noise_aware, **bases}
    adapters = {
        (name, seed): options.out / "adapters" / f"dis-{name}-{seed}" for seed in options.seeds for name in frozen
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        trained = [
            pool.submit(fine_tune, frozen[name], seed, options.data, folder, fine_tuning)
            for (name, seed), folder in adapters.items()
        ]
        for one in tqdm(as_completed(trained), "fine-tunings", len(trained)):
            one.result()

    checkpoints = {name: [path] for name, path in frozen.items()} | {"eat-large": [options.eat_large]}
    for (name, _), folder in adapters.items():
        checkpoints.setdefault(f"dis-{name}", []).append(str(folder))
    rows = score(options, checkpoints)
    text = comparison_table(rows, options.reference)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
