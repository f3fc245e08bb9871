r"""Turn BEATs, EAT or Dasheng into a noise-aware encoder, by distillation on simulated two-channel mixtures.

    DATA="--targets targets.jsonl --noises noises.jsonl --rooms rooms.safetensors --validation-rooms val.safetensors"

    # four GPUs; one CPU (examples/accelerate also has one GPU, FSDP, several machines and two CPU processes)
    accelerate launch --config_file examples/accelerate/four_gpus.yaml \
        examples/train_na_distillation.py --base BASE $DATA --output-dir OUT
    accelerate launch --config_file examples/accelerate/cpu.yaml \
        examples/train_na_distillation.py --base BASE $DATA --output-dir OUT --batch-size 8 --max-steps 2000

    # after a kill: the resumed training gives the same weights as one that was never stopped
    accelerate launch ... --output-dir OUT --resume
    # what the far microphone of an installation needs beside the paper's settings; options given beside it win
    accelerate launch ... --base BASE $DATA --output-dir OUT --recipe installation
    # 20 steps with random weights of base size, no data: memory, and hours on H100s (40 clips at a time, of a GPU)
    accelerate launch ... --dry-run 40 --base beats
    # training goes on from OUT with other sounds, rooms, durations or rates
    accelerate launch ... --base OUT --output-dir MORE

BASE is a folder of `na-ssl convert` or a name on the hub; manifests come from `na-ssl corpora prepare`, rooms from
`na-ssl simulate rooms`. Defaults are the paper's (Fujimura et al., IWAENC 2026). OUT becomes a checkpoint for
`from_pretrained`, with README.md, loss.png and log.jsonl beside it; OUT/checkpoints holds what `--resume` needs.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_trackio_available, set_seed
from huggingface_hub import HfApi
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, HfArgumentParser

from na_ssl_hf import NABeatsModel, NADashengModel, NAEatModel, TwoChannelFeatureExtractor
from na_ssl_hf.data.corpora.manifest import SoundFile, read_manifest
from na_ssl_hf.hub.whole_files import whole_folder
from na_ssl_hf.simulation.conditions import Conditions
from na_ssl_hf.simulation.fitted_installations import FittedInstallations
from na_ssl_hf.simulation.mixing import HeardMixture, TwoChannelMixture
from na_ssl_hf.simulation.mixture_stream import (
    calibration_recordings,
    mix_examples,
    mixtures_of_process,
    simulated_mixtures,
)
from na_ssl_hf.simulation.room_pool import RoomPool
from na_ssl_hf.training.checkpoint_folder import (
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    read_position,
    save_checkpoint,
)
from na_ssl_hf.training.distillation import NoiseAwareDistillation
from na_ssl_hf.training.dry_run import DryRun, dry_run
from na_ssl_hf.training.ema import ExponentialMovingAverage
from na_ssl_hf.training.json_lines_tracker import JsonLinesTracker, read_json_lines
from na_ssl_hf.training.loss_curve import plot_loss_curve
from na_ssl_hf.training.model_card import launch_command, write_model_card
from na_ssl_hf.training.optimizers import make_optimizers

NOISE_AWARE_MODELS = {"beats": NABeatsModel, "dasheng": NADashengModel, "eat": NAEatModel}
INSTALLED_TRACKERS = [
    *(["tensorboard"] if is_tensorboard_available() else []),
    *(["trackio"] if is_trackio_available() else []),
]
BOOTSTRAP_DRAWS = 1000
# Options of the command line take the place of these.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    # What shipped layers did harm with: no noise, coherent noise, a silent far microphone, machines that it hears as
    # loudly as the close one, and close channels that a canceller has changed.
    "installation": {
        "snr": [-10.0, 20.0],
        "noise_coherence": [0.0, 1.0],
        "clean_share": 0.08,
        "silent_far_share": 0.06,
        "machine_level": [-4.0, 20.0],
        "changed_targets": True,
        "stream_shares": [0.34, 0.33, 0.33],
        "layer_type": "aligned",
        "noise_aware_gate": True,
        "lowers_far": True,
    },
}
DRY_RUN_STEPS = 20
# Clips of the development set of FSD50K, the targets of the paper; the length of an epoch where no manifest is read.
FSD50K_CLIPS = 40_966
VALIDATION_SEED = 1_000_003  # not the training's seed, so that all trainings are validated on the same mixtures


def option(help: str, default: Any = None, **of_argparse: Any) -> Any:
    return field(default=default, metadata={"help": help, **of_argparse})


@dataclass(kw_only=True)
class Settings:
    recipe: Literal["paper", "installation"] = option(
        "settings in place of the defaults: the paper's, or what installed microphones and cancellers need as well",
        "paper",
    )
    dry_run: int | None = option(
        "number of clips at a time (default 1) of 20 steps on random sounds and weights: no file is read or "
        "written, BASE may be beats, eat or dasheng",
        nargs="?",
        const=1,
    )
    # Data
    base: str = field(
        metadata={
            "help": "BEATs, EAT or Dasheng model, or a noise-aware one to train further: a folder or a name on the hub"
        }
    )
    targets: str = field(metadata={"help": "manifest of target sounds, with the splits train and validation"})
    noises: str = field(metadata={"help": "manifest of noises, with at least four files in each of the two splits"})
    rooms: str = field(metadata={"help": "room pool for training"})
    validation_rooms: str = field(metadata={"help": "room pool for validation"})
    output_dir: str = field(metadata={"help": "folder for the model, its log and its checkpoints"})
    duration: float = option("duration of a mixture, s", 10.0)
    shortest_duration: float | None = option(
        "least duration to which a batch is cut at random, s (default: no batch is cut)"
    )
    snr: list[float] = field(
        default_factory=lambda: [-10.0, 10.0],
        metadata={"help": "lowest and highest signal-to-noise ratio at the close microphone, dB"},
    )
    gain: list[float] = field(
        default_factory=lambda: [0.0, 0.0], metadata={"help": "lowest and highest joint gain of both channels, dB"}
    )
    noise_coherence: list[float] = field(
        default_factory=lambda: [0.0, 0.0], metadata={"help": "lowest and highest coherence of the noises, 0 to 1"}
    )
    clean_share: float = option("share of the mixtures without noise", 0.0)
    silent_far_share: float = option(
        "share of the mixtures with a silent far microphone, in which nothing shall be changed", 0.0
    )
    machine_level: list[float] | None = field(
        default=None,
        metadata={
            "help": "lowest and highest level of the target at the close microphone over that at the far one, dB "
            "(default: what the room gives)"
        },
    )
    changed_targets: bool = option(
        "targets with another speed, a second sound, bursts, a smooth filter and a gain, each for some of them", False
    )
    stream_shares: list[float] = field(
        default_factory=lambda: [1.0, 0.0, 0.0],
        metadata={
            "help": "shares of the mixtures behind nothing, behind spectral subtraction, and behind a far microphone "
            "that was calibrated in their room; the calibrations are made once and kept beside the room pool"
        },
    )
    num_workers: int = option("number of processes that read sounds, for each training process", 0)
    # Model
    layer_type: Literal["cross_attention", "aligned", "film", "self_attention"] = option(
        "type of the noise-aware layers", "cross_attention"
    )
    noise_aware_heads: int = option("number of attention heads of the noise-aware layers", 8)
    noise_aware_width: int | None = option(
        "width of the SwiGLU of the noise-aware layers (default: 3 x the hidden size, for film 4 x)"
    )
    noise_aware_gate: bool = option(
        "gate for each token in every noise-aware layer, which can leave a token as the base has it", False
    )
    lowers_far: bool = option(
        "far channel lowered by what a canceller took from the close one, in training and for the saved model", False
    )
    noise_aware_dropout: float = option("dropout on the attention weights of the noise-aware layers", 0.1)
    far_cancellation: str | None = option(
        "method that takes the far microphone out of the close channel, in training and in the saved extractor",
        choices=["least_squares", "spectral_subtraction"],
    )
    band_loss: float = option("weight of the loss on band vectors averaged over time", 0.0)
    # Optimisation
    epochs: int = option("number of passes, each of as many mixtures as there are training targets", 200)
    max_steps: int | None = option("number of optimizer steps, instead of epochs")
    batch_size: int = option("number of mixtures in a step, of all processes and accumulated batches together", 160)
    gradient_accumulation: int = option("number of batches into which a process cuts its part of a step", 1)
    optimizer: Literal["adamw", "muon"] = option(
        "optimizer; muon learns faster with a larger rate (1e-2) and does not work with FSDP", "adamw"
    )
    lr: float = option("peak learning rate", 1e-4)
    schedule: Literal["constant", "cosine"] = option("schedule of the learning rate after the warm-up", "constant")
    warmup_steps: int = option("number of steps over which the learning rate rises from 0", 0)
    weight_decay: float = option("weight decay of the optimizer", 0.01)
    max_grad_norm: float = option("largest norm of the gradients, to which they are clipped", 1.0)
    ema_decay: float = option("decay of the moving average of the trained weights", 0.999)
    ema_start: int = option("step at which the moving average starts", 20_000)
    mixed_precision: str | None = option(
        "precision of the arithmetic (default: that of `accelerate launch`)", choices=["no", "bf16", "fp16"]
    )
    gradient_checkpointing: bool = option(
        "gradient checkpointing, which halves the memory and takes 40 %% more time", False
    )
    seed: int = option("seed of weights, dropout and mixtures", 0)
    cpu: bool = option("training on the CPU (needed with torchrun; `accelerate launch` tells the script itself)", False)
    # Watching and saving
    validate_every: int = option("number of steps between validations", 1000)
    validation_examples: int = option("number of mixtures of a validation, rounded down to whole batches", 1000)
    validation_duration: float | None = option("duration of the mixtures of a validation, s (default: as in training)")
    save_every: int = option("number of steps between checkpoints", 1000)
    keep: int = option("number of latest checkpoints to keep, 0 for all", 3)
    resume: str | None = option(
        "checkpoint from which to go on, the latest one where none is named", nargs="?", const="latest"
    )
    trackers: bool = option("logs for tensorboard and trackio as well, where they are installed", True)
    fp16_weights: bool = option("weights saved in float16, which load as float32", False)
    licence: str = option("licence of the weights, for the model card", "other")
    push_to_hub: str | None = option("name on the hub to which OUT is uploaded, without its checkpoints")


# These settings decide the weights' shapes or the order of the data, so that a resumed training must have the same.
LASTING = (
    *("base", "layer_type", "noise_aware_heads", "noise_aware_width", "noise_aware_gate"),
    *("far_cancellation", "lowers_far", "band_loss", "seed"),
    *("batch_size", "duration", "shortest_duration", "snr", "gain", "noise_coherence"),
    *("clean_share", "silent_far_share", "machine_level", "changed_targets", "stream_shares"),
    *("optimizer", "ema_decay", "ema_start"),
)


def main() -> None:
    settings = parsed_settings(sys.argv[1:])
    if settings.dry_run is not None:
        report_dry_run(settings)
        return
    output_dir = Path(settings.output_dir)
    json_lines = JsonLinesTracker(output_dir / "log.jsonl")
    accelerator = Accelerator(
        cpu=settings.cpu,
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation,
        log_with=[json_lines, *(INSTALLED_TRACKERS if settings.trackers else [])],
        project_dir=output_dir,
    )
    set_seed(settings.seed)

    # The data are read before the model, so that whatever is wrong with them shows before the first step.
    checkpoints = output_dir / "checkpoints"
    lasting = {name: getattr(settings, name) for name in LASTING}
    checkpoint = find_checkpoint(checkpoints, settings.resume, settings, LASTING)
    first_step = read_position(checkpoint)["step"] if checkpoint else 0
    sounds = {name: read_sounds(name, getattr(settings, name)) for name in ("targets", "noises")}
    rooms, validation_rooms = (RoomPool.load(path) for path in (settings.rooms, settings.validation_rooms))
    num_steps = settings.max_steps or settings.epochs * len(sounds["targets"]["train"]) // settings.batch_size
    whole_batch = batch_size_of_process(settings, accelerator.num_processes) * accelerator.num_processes
    num_validation = settings.validation_examples - settings.validation_examples % whole_batch
    if settings.shortest_duration is not None and not 0 < settings.shortest_duration <= settings.duration:
        raise ValueError(
            f"`shortest_duration` must be positive and at most `duration` {settings.duration} s, got "
            f"{settings.shortest_duration} s"
        )
    counts = {"the number of steps": num_steps, "the whole batches of `validation_examples`": num_validation}
    counts |= {f"`{name}`": getattr(settings, name) for name in ("save_every", "validate_every")}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    with accelerator.main_process_first():
        conditions, validation_conditions = (
            conditions_of(settings, sounds, split, pool)
            for split, pool in (("train", rooms), ("validation", validation_rooms))
        )
    loader = partial(mixture_loader, settings, accelerator, sounds)
    examples = range(first_step * settings.batch_size, num_steps * settings.batch_size)
    training = loader("train", rooms, conditions, settings.seed, examples, settings.duration)
    validation_duration = settings.validation_duration or settings.duration
    validation_range = range(num_validation)
    validation = loader(
        "validation", validation_rooms, validation_conditions, VALIDATION_SEED, validation_range, validation_duration
    )

    heard, heard_in_validation = (
        partial(mixed, rooms=pool, device=accelerator.device, conditions=of_pool)
        for pool, of_pool in ((rooms, conditions), (validation_rooms, validation_conditions))
    )

    # Model
    model, distillation, optimizers = prepared(settings, accelerator)
    named = dict(accelerator.unwrap_model(distillation).named_parameters())
    ema = ExponentialMovingAverage(named, settings.ema_decay, settings.ema_start)
    accelerator.register_for_checkpointing(ema)
    if checkpoint:
        load_checkpoint(accelerator, checkpoint)
    json_lines.cut(first_step)
    accelerator.init_trackers("na-distillation", {name: str(value) for name, value in asdict(settings).items()})

    # Training
    batches = iter(training)
    results: dict[str, float] = {}
    steps = range(first_step + 1, num_steps + 1)
    bar = tqdm(steps, initial=first_step, total=num_steps, unit="step", disable=not accelerator.is_main_process)
    for step in bar:
        start, cpu_start = time.perf_counter(), time.process_time()
        # Dropout depends on seed, step and process alone, so that a resumed training repeats it.
        torch.manual_seed(seed_of(settings.seed, step, accelerator.process_index))
        lr = learning_rate(step, num_steps, settings)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
        losses, indices = [], []
        for _ in range(settings.gradient_accumulation):
            batch = next(batches)
            with accelerator.accumulate(distillation):
                loss = distillation(*heard(shortened(batch, step, settings)))["loss"]
                accelerator.backward(loss.total)
                losses.append(torch.stack(loss).detach())
                indices.append(batch["index"])
                if accelerator.sync_gradients:
                    gradient_norm = accelerator.clip_grad_norm_(list(ema.parameters.values()), settings.max_grad_norm)
                    losses_of_all = accelerator.gather(torch.stack(losses))  # (processes * accumulated, 3)
                    stop_if_not_finite(accelerator, losses_of_all, gradient_norm, indices, step, settings)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        ema.update(step)

        total, tokens, bands = losses_of_all.mean(dim=0).tolist()
        logged = {"loss": total, "token_loss": tokens, "band_loss": bands, "gradient_norm": float(gradient_norm)}
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        logged |= {"lr": lr, "s": seconds, "cpu_s": cpu_seconds, "clips_per_s": settings.batch_size / seconds}
        accelerator.log(logged, step=step)
        bar.set_postfix(loss=f"{total:.4f}", clips_per_s=f"{logged['clips_per_s']:.1f}")
        if step % settings.validate_every == 0 or step == num_steps:
            with ema.swapped_in():
                results = validate(distillation, validation, heard_in_validation, accelerator)
            accelerator.log({f"validation/{name}": value for name, value in results.items()}, step=step)
            if accelerator.is_main_process:
                bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()))
        if step % settings.save_every == 0 or step == num_steps:
            save_checkpoint(accelerator, checkpoints, {"step": step, **lasting}, settings.keep)

    # The trained model, its card and its curves
    with ema.swapped_in():
        results = results or validate(distillation, validation, heard_in_validation, accelerator)
        state = accelerator.get_state_dict(distillation)
        if accelerator.is_main_process:
            dtype = torch.float16 if settings.fp16_weights else torch.float32
            weights = {
                # Dasheng's batch norm has a count, which stays a whole number.
                name.removeprefix("model."): (weight.to(dtype) if weight.is_floating_point() else weight).contiguous()
                for name, weight in state.items()
            }
            extractor = TwoChannelFeatureExtractor.of(model.config, settings.far_cancellation)
            # Model and extractor appear together; checkpoints and logs stay.
            with whole_folder(output_dir, keeps=lambda name: True) as staging:
                model.save_pretrained(staging, state_dict=weights)
                extractor.save_pretrained(staging)
    if accelerator.is_main_process:
        plot_loss_curve(json_lines.path, output_dir / "loss.png")
        write_model_card(
            output_dir,
            name=settings.push_to_hub or output_dir.name,
            model=model,
            base=settings.base,
            licence=settings.licence,
            step=num_steps,
            num_validation=num_validation,
            results=results,
            log=read_json_lines(json_lines.path),
            num_processes=accelerator.num_processes,
            command=launch_command(sys.argv),
            settings=asdict(settings),
            sounds={name: [*splits["train"], *splits["validation"]] for name, splits in sounds.items()},
        )
        if settings.push_to_hub:
            hub = HfApi()
            hub.create_repo(settings.push_to_hub, exist_ok=True)
            hub.upload_folder(
                repo_id=settings.push_to_hub,
                folder_path=output_dir,
                ignore_patterns=["checkpoints/*", "na-distillation/*"],
            )
    accelerator.end_training()


# Before the first step


def parsed_settings(arguments: list[str]) -> Settings:
    """Read the command line, in which options take the place of a recipe's settings."""
    parser = HfArgumentParser(Settings)
    if any(word.partition("=")[0] in ("--dry-run", "--dry_run") for word in arguments):
        # What a dry run does not read need not be given.
        unread = ("targets", "noises", "rooms", "validation-rooms", "output-dir")
        arguments = ["--base", "beats", *(word for name in unread for word in (f"--{name}", "unread")), *arguments]
    parser.set_defaults(**RECIPES[parser.parse_args(arguments).recipe])
    return parser.parse_args_into_dataclasses(arguments)[0]


def report_dry_run(settings: Settings) -> DryRun:
    """Run a few steps on random sounds with random weights, and print what the whole training would take."""
    accelerator = Accelerator(cpu=settings.cpu, mixed_precision=settings.mixed_precision)
    set_seed(settings.seed)
    _, distillation, optimizers = prepared(settings, accelerator)

    def step(close: Tensor, far: Tensor, clean: Tensor) -> Tensor:
        loss = distillation(close, far, clean)["loss"]
        accelerator.backward(loss.total)
        accelerator.clip_grad_norm_(distillation.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.total.detach()

    measured = dry_run(distillation, step, DRY_RUN_STEPS, settings.dry_run, settings.duration, accelerator.device)
    num_steps = settings.max_steps or settings.epochs * FSD50K_CLIPS // settings.batch_size
    if accelerator.is_main_process:
        print(f"recipe {settings.recipe}, base {settings.base} with random weights, targets as many as FSD50K has")
        print(measured.report(num_steps, settings.batch_size))
    return measured


def batch_size_of_process(settings: Settings, num_processes: int) -> int:
    parts = num_processes * settings.gradient_accumulation
    if settings.batch_size < 1 or settings.batch_size % parts:
        raise ValueError(
            f"`batch_size` must be a multiple of processes x gradient_accumulation = {num_processes} x "
            f"{settings.gradient_accumulation} = {parts}, got {settings.batch_size}"
        )
    return settings.batch_size // parts


def read_sounds(name: str, manifest: str) -> dict[str, list[SoundFile]]:
    """Read the sounds of a manifest, by split."""
    sounds = read_manifest(manifest)
    splits = {split: [sound for sound in sounds if sound.split == split] for split in ("train", "validation")}
    least = 4 if name == "noises" else 1  # a mixture has one noise in each corner of the room
    for split, files in splits.items():
        if len(files) < least:
            raise ValueError(
                f"`{name}` must hold at least {least} files of split {split}, got {len(files)} in {manifest}"
            )
    return splits


def conditions_of(
    settings: Settings, sounds: dict[str, dict[str, list[SoundFile]]], split: str, rooms: RoomPool
) -> Conditions | None:
    """Return the conditions of a split's mixtures, for which far microphones may have to be calibrated; None if plain.

    Plain mixtures are those of the paper, which draw nothing more.
    """
    shares = tuple(settings.stream_shares)
    given = {
        "clean_share": settings.clean_share,
        "silent_far_share": settings.silent_far_share,
        "machine_level_db": None if settings.machine_level is None else tuple(settings.machine_level),
        "changed_targets": settings.changed_targets,
        "stream_shares": shares,
    }
    plain = Conditions()
    if all(value == getattr(plain, name) for name, value in given.items()):
        return None
    installations = None
    if shares[2:] and shares[2]:
        recordings = calibration_recordings(sounds["targets"][split], sounds["noises"][split], rooms)
        installations = FittedInstallations.beside(rooms, recordings)
    return Conditions(**given, installations=installations)


def mixture_loader(
    settings: Settings,
    accelerator: Accelerator,
    sounds: dict[str, dict[str, list[SoundFile]]],
    split: str,
    rooms: RoomPool,
    conditions: Conditions | None,
    seed: int,
    examples: range,
    duration: float,
) -> DataLoader:
    """Make the loader of this process' batches.

    All processes together take successive examples, so that the data of a step depend on seed and step alone.
    """
    batch_size = batch_size_of_process(settings, accelerator.num_processes)
    mixtures = simulated_mixtures(
        sounds["targets"][split],
        sounds["noises"][split],
        rooms,
        num_examples=max(1, len(examples)),
        seed=seed,
        first_index=examples.start,
        duration_s=duration,
        snr_db=tuple(settings.snr),
        gain_db=tuple(settings.gain),
        noise_coherence=tuple(settings.noise_coherence),
        conditions=conditions,
        num_shards=accelerator.num_processes * max(1, settings.num_workers),
        block_size=batch_size,
    )
    # Accelerate does not prepare the loader, since it would split the data once more.
    part = mixtures_of_process(mixtures, accelerator.process_index, accelerator.num_processes, settings.num_workers)
    return DataLoader(part, batch_size, num_workers=settings.num_workers, pin_memory=accelerator.device.type == "cuda")


def noise_aware_model(settings: Settings) -> NABeatsModel | NADashengModel | NAEatModel:
    """Load a noise-aware base, or put new noise-aware layers, which change nothing yet, around a plain one."""
    is_dry_run = settings.dry_run is not None
    has_base_size = is_dry_run and settings.base in NOISE_AWARE_MODELS
    config = AutoConfig.for_model(settings.base) if has_base_size else AutoConfig.from_pretrained(settings.base)
    base_type = getattr(config, "base_model_type", config.model_type)
    if base_type not in NOISE_AWARE_MODELS:
        raise ValueError(
            f"`base` must be a model of type {sorted(NOISE_AWARE_MODELS)}, plain or noise-aware, got "
            f"{config.model_type!r} in {settings.base}"
        )
    layers = {
        "noise_aware_layer_type": settings.layer_type,
        "noise_aware_num_heads": settings.noise_aware_heads,
        "noise_aware_intermediate_size": settings.noise_aware_width,
        "noise_aware_gate": settings.noise_aware_gate,
    }
    changeable = {
        "noise_aware_attention_dropout": settings.noise_aware_dropout,
        "noise_aware_lowers_far": settings.lowers_far or getattr(config, "noise_aware_lowers_far", False),
    }
    if config.model_type == base_type:
        base = (
            AutoModel.from_config(config, dtype=torch.float32)
            if is_dry_run
            else AutoModel.from_pretrained(settings.base, dtype=torch.float32)
        )
        return NOISE_AWARE_MODELS[base_type].from_base(base, **layers, **changeable)
    for (field_name, value), option_name in zip(
        layers.items(), ("layer_type", "noise_aware_heads", "noise_aware_width", "noise_aware_gate"), strict=True
    ):
        if value not in (None, False, getattr(config, field_name)):
            raise ValueError(
                f"`{option_name}` must be {getattr(config, field_name)!r}, as in the noise-aware base {settings.base}, "
                f"got {value!r}"
            )
    return AutoModel.from_pretrained(settings.base, dtype=torch.float32, **changeable)


def prepared(settings: Settings, accelerator: Accelerator) -> tuple[Any, Any, list[Any]]:
    """Make the model, what is trained of it, and its optimizers, which accelerate has prepared."""
    model = noise_aware_model(settings)
    distillation = NoiseAwareDistillation(
        model, settings.far_cancellation, settings.band_loss, settings.gradient_checkpointing
    ).train()
    optimizers = make_optimizers(distillation, settings.optimizer, settings.lr, settings.weight_decay)
    distillation, *optimizers = accelerator.prepare(distillation, *optimizers)
    return model, distillation, optimizers


# In every step


def mixed(
    batch: dict[str, Tensor], rooms: RoomPool, device: torch.device, conditions: Conditions | None
) -> TwoChannelMixture | HeardMixture:
    sounds = {name: batch[name].to(device, non_blocking=True) for name in ("target", "noises")}
    return mix_examples({**batch, **sounds}, rooms, conditions)


def shortened(batch: dict[str, Tensor], step: int, settings: Settings) -> dict[str, Tensor]:
    """Cut all sounds of a step to one log-uniform duration, so that the model learns short clips as well."""
    if settings.shortest_duration is None:
        return batch
    shortest = settings.shortest_duration / settings.duration
    share = shortest ** np.random.default_rng([settings.seed, step]).uniform()
    num_samples = round(share * batch["target"].shape[-1])
    return batch | {name: batch[name][..., :num_samples] for name in ("target", "noises")}


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def learning_rate(step: int, num_steps: int, settings: Settings) -> float:
    """Compute the learning rate of optimizer step number `step`, counted from 1."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = (step - 1 - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def stop_if_not_finite(
    accelerator: Accelerator,
    losses: Tensor,
    gradient_norm: Tensor,
    indices: list[Tensor],
    step: int,
    settings: Settings,
) -> None:
    """Raise an error in all processes, before a step with NaN or infinity changes the weights."""
    wrong = ~losses.isfinite().all(dim=1)  # (processes * accumulated,)
    # Gradients in float16 may overflow; the scaler skips such a step.
    gradients_wrong = accelerator.mixed_precision != "fp16" and not torch.isfinite(gradient_norm)
    if not wrong.any() and not gradients_wrong:
        return
    indices_of_all = accelerator.gather(torch.stack(indices).to(losses.device))  # (processes * accumulated, B)
    spoilt = indices_of_all[wrong] if wrong.any() else indices_of_all
    raise FloatingPointError(
        f"{'loss' if wrong.any() else 'gradient'} must be finite, got NaN or infinity in step {step}: seed "
        f"{settings.seed}, mixtures {spoilt.flatten().tolist()}. The weights before it are in the last checkpoint, "
        f"{latest_checkpoint(Path(settings.output_dir) / 'checkpoints')}."
    )


@torch.no_grad()
def validate(
    distillation: torch.nn.Module,
    loader: DataLoader,
    heard: Callable[[dict[str, Tensor]], TwoChannelMixture | HeardMixture],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Compute the losses, and their ratios to those of the base itself, over all batches of all processes.

    The main ratio comes with its 95 % interval, from a bootstrap over batches.
    """
    distillation.eval()
    batches = []
    for batch in loader:
        losses = distillation(*heard(batch), references=True)
        batches.append(torch.stack([torch.stack(loss) for loss in losses.values()]))  # (losses, 3)
    distillation.train()
    measured = accelerator.gather(torch.stack(batches)).cpu()  # (batches of all processes, losses, 3)
    _, tokens, bands = (dict(zip(losses, column.tolist(), strict=True)) for column in measured.mean(dim=0).T)
    results = {"loss": tokens["loss"], "identity_loss": tokens["identity"]}
    results["ratio"] = tokens["loss"] / tokens["identity"]
    names = list(losses)
    pairs = measured[:, [names.index("loss"), names.index("identity")], 1].numpy()  # (batches, 2)
    drawn = np.random.default_rng(VALIDATION_SEED).integers(len(pairs), size=(BOOTSTRAP_DRAWS, len(pairs)))
    loss, identity = pairs[drawn].mean(axis=1).T  # (draws,) each
    results["ratio_low"], results["ratio_high"] = np.quantile(loss / identity, [0.025, 0.975]).tolist()
    results["band_ratio"] = bands["loss"] / bands["identity"]
    ablations = [name for name in losses if name.startswith("far_")]
    return results | {f"ratio_{name}": tokens[name] / tokens["identity"] for name in ablations}


if __name__ == "__main__":
    main()
