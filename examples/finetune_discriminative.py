r"""Fine-tune an encoder to tell a data set's normal training clips apart ("Dis" in the papers).

    # four GPUs; one CPU (examples/accelerate has more)
    accelerate launch --config_file examples/accelerate/four_gpus.yaml \
        examples/finetune_discriminative.py --base BASE --data DCASE_FOLDER --output_dir OUT
    accelerate launch --config_file examples/accelerate/cpu.yaml \
        examples/finetune_discriminative.py --base BASE --data DCASE_FOLDER --output_dir OUT --epochs 3

    # after a kill: the resumed training gives the same weights as one that was never stopped
    accelerate launch ... --output_dir OUT --resume

BASE is a folder, a name on the hub or a checkpoint of the package (na-beats-tiny); of DCASE_FOLDER only `train` is
read. Low-rank adapters are trained with a sub-cluster AdaCos loss on attributes or pseudo labels (Fujimura et al.,
DCASE 2026 Task 2, whose settings are the defaults). OUT becomes an adapter for `AutoModel.from_pretrained`,
or with --full, which EfficientAT needs, a whole model; label_map.json, log.jsonl and README.md lie beside it, and
OUT/checkpoints holds what `--resume` needs. The weights of the last step are saved: none are selected, and no anomaly
is used. On a CPU, MALLOC_MMAP_THRESHOLD_=1000000 in the environment makes the C library return memory: with
--gradient_checkpointing NA-BEATs base then takes 2 GB, and 6 GB otherwise.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, HfArgumentParser

from na_ssl_hf import MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_model
from na_ssl_hf.data.dcase.clips import DcaseClip, list_dcase_clips
from na_ssl_hf.evaluation.systems.embedders import checkpoint_embedder
from na_ssl_hf.hub.model_weights import merge_adapter
from na_ssl_hf.hub.whole_files import whole_folder
from na_ssl_hf.training.adapter_card import write_adapter_card
from na_ssl_hf.training.attentive_statistics import ProjectionHead
from na_ssl_hf.training.checkpoint_folder import find_checkpoint, load_checkpoint, read_position, save_checkpoint
from na_ssl_hf.training.classification_losses import AdaCos, ArcFace, SubClusterAdaCos
from na_ssl_hf.training.discriminative import DiscriminativeModel, TrainedState
from na_ssl_hf.training.ema import ExponentialMovingAverage
from na_ssl_hf.training.json_lines_tracker import JsonLinesTracker, read_json_lines
from na_ssl_hf.training.labelled_crops import LabelledCrops, check_recordings
from na_ssl_hf.training.lora import add_lora, save_adapter
from na_ssl_hf.training.model_card import launch_command
from na_ssl_hf.training.pseudo_labels import LabelMap, make_label_map
from na_ssl_hf.training.waveform_mixup import draw_mixup

# The other processes wait this long, because the first one alone makes the pseudo labels.
PATIENCE = timedelta(hours=12)
LABEL_MAP_FILE = "label_map.json"


def option(help: str, default: Any = None, **of_argparse: Any) -> Any:
    return field(default=default, metadata={"help": help, **of_argparse})


@dataclass(kw_only=True)
class Settings:
    # Data
    base: str = field(
        metadata={
            "help": "BEATs, EAT or Dasheng, plain or noise-aware: a folder, a name on the hub or a checkpoint of the "
            "package"
        }
    )
    data: str = field(metadata={"help": "DCASE Task 2 folder, with <machine>/train/*.wav"})
    output_dir: str = field(metadata={"help": "folder for the model, its log and its checkpoints"})
    machines: list[str] | None = field(
        default=None, metadata={"help": "names of the machines to train on (default: all)"}
    )
    duration: float = option("duration of a crop, s; shorter clips are repeated", 10.0)
    held_out: float = option(
        "share of every machine's clips that are kept from training and measured; 0 trains on all", 0.05
    )
    num_workers: int = option("number of processes that read clips, for each training process", 0)
    # Labels
    num_clusters: str = option("number of k-means clusters of a machine without attributes, or silhouette", "16")
    label_map: str | None = option("label_map.json of another training on the same data (default: a new one is made)")
    # Model and loss
    full: bool = option("training of all weights instead of low-rank matrices, as EfficientAT needs it", False)
    lora_rank: int = option("rank of the low-rank matrices", 64)
    lora_alpha: int = option("scale of the low-rank matrices, whose product is multiplied by alpha / rank", 64)
    lora_dropout: float = option("dropout on the input of the low-rank matrices", 0.0)
    loss: Literal["subcluster_adacos", "adacos", "arcface"] = option("loss of the embeddings", "subcluster_adacos")
    num_subclusters: int = option("number of centres a class, for subcluster_adacos", 16)
    dynamic_scale: bool = option("scale that adapts, for subcluster_adacos and adacos", False)
    fixed_centres: bool = option("random centres that are not trained, for subcluster_adacos and adacos", False)
    pooling: Literal["attentive", "mean"] = option("pooling of the tokens, for the loss only", "attentive")
    embedding_size: int = option("size of the embeddings of the loss", 256)
    mixup: float = option("probability that a waveform is mixed with another one", 0.5)
    # Optimisation
    epochs: int = option("number of passes over the training clips", 25)
    max_steps: int | None = option("number of optimizer steps, instead of epochs")
    batch_size: int = option("number of clips in a step, of all processes together", 8)
    lr: float = option("learning rate of AdamW after the warm-up", 1e-4)
    warmup_steps: int = option("number of steps over which the learning rate rises from 0", 5000)
    weight_decay: float = option("weight decay of AdamW", 0.01)
    max_grad_norm: float = option("largest norm of the gradients, to which they are clipped", 1.0)
    ema_decay: float = option(
        "decay of the moving average of the trained weights, which is saved; 0 saves the weights themselves", 0.0
    )
    ema_start: int = option("step at which the moving average starts", 1)
    mixed_precision: str | None = option(
        "precision of the arithmetic (default: that of `accelerate launch`)", choices=["no", "bf16", "fp16"]
    )
    gradient_checkpointing: bool = option(
        "gradient checkpointing, which takes less memory and a third more time", False
    )
    seed: int = option("seed of weights, order, crops, mixup and k-means", 0)
    cpu: bool = option("training on the CPU (needed with torchrun; `accelerate launch` tells the script itself)", False)
    # Saving
    save_every: int = option("number of steps between checkpoints", 1000)
    keep: int = option("number of latest checkpoints to keep, 0 for all", 2)
    resume: str | None = option(
        "checkpoint from which to go on, the latest one where none is named", nargs="?", const="latest"
    )
    base_name: str | None = option(
        "name that the adapter gives its base, for a base that is moved or published (default: BASE)"
    )
    merged: bool = option("merged checkpoint in OUT/merged as well, which needs neither peft nor the base", False)
    licence: str = option("licence of the adapter, for the model card", "other")


# These settings decide the weights' shapes or the order of the data, so that a resumed training must have the same.
LASTING = (
    *("base", "machines", "duration", "held_out", "lora_rank", "lora_alpha", "lora_dropout", "loss", "num_clusters"),
    *("num_subclusters", "dynamic_scale", "fixed_centres", "pooling", "embedding_size", "mixup", "batch_size", "lr"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "ema_decay", "ema_start", "seed"),
)


def main() -> None:
    settings = HfArgumentParser(Settings).parse_args_into_dataclasses()[0]
    output_dir = Path(settings.output_dir)
    json_lines = JsonLinesTracker(output_dir / "log.jsonl")
    accelerator = Accelerator(
        cpu=settings.cpu,
        mixed_precision=settings.mixed_precision,
        log_with=[json_lines],
        project_dir=output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    set_seed(settings.seed)

    # The data are read before the model, so that whatever is wrong with them shows before the first step.
    lasting = {name: getattr(settings, name) for name in LASTING}
    checkpoint = find_checkpoint(output_dir / "checkpoints", settings.resume, settings, LASTING)
    check_counts(settings, accelerator.num_processes)
    base = resolve_checkpoint(settings.base)
    encoder, extractor = load_model(base, dtype=torch.float32), AutoFeatureExtractor.from_pretrained(base)
    clips = list_dcase_clips(settings.data, "train", settings.machines)
    is_noise_aware = encoder.config.model_type != encoder.config.base_model_type
    check_recordings(clips, two_channels=is_noise_aware or extractor.far_cancellation is not None)
    label_map = shared_label_map(settings, accelerator, encoder.config.model_type, base, clips)
    labels = label_map.labels(clips)
    digest = hashlib.blake2b(json.dumps(list(label_map.classes.items())).encode(), digest_size=16).hexdigest()
    first_step = 0
    if checkpoint:
        position = read_position(checkpoint)
        first_step = position["step"]
        if position["label_map"] != digest:
            raise ValueError(f"label map must be {position['label_map']} as in {checkpoint}, got {digest}")
    kept, held_out = split(clips, settings)
    steps_per_epoch = len(kept) // settings.batch_size
    num_steps = settings.max_steps or settings.epochs * steps_per_epoch
    if steps_per_epoch < 1:
        raise ValueError(
            f"`batch_size` must be at most the number of training clips {len(kept)}, got {settings.batch_size}"
        )
    crops = LabelledCrops(clips, labels, settings.duration, extractor.sampling_rate)
    batch_size, rank = settings.batch_size // accelerator.num_processes, accelerator.process_index
    # Accelerate does not prepare the loader, since it would split the data once more.
    training = DataLoader(
        crops,
        batch_sampler=BatchesOfProcess(
            kept, settings, first_step, num_steps, slice(rank * batch_size, (rank + 1) * batch_size)
        ),
        num_workers=settings.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    own_part = [(index, 0) for index in held_out[rank :: accelerator.num_processes]]
    validation = DataLoader(crops, sampler=own_part, batch_size=batch_size, num_workers=settings.num_workers)

    # Model
    num_classes = len(label_map.classes)
    if not settings.full:
        add_lora(encoder, settings.lora_rank, settings.lora_alpha, settings.lora_dropout)
    head = ProjectionHead(encoder.config.hidden_size, settings.embedding_size, settings.pooling)
    loss = make_loss(settings, num_classes)
    model = DiscriminativeModel(
        encoder, head, loss, extractor.far_cancellation, settings.gradient_checkpointing
    ).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = ExponentialMovingAverage(trained, settings.ema_decay, settings.ema_start)
    # Accelerate would save the frozen base in every checkpoint.
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
    accelerator.register_for_checkpointing(TrainedState(model), ema)
    if checkpoint:
        load_checkpoint(accelerator, checkpoint)
    json_lines.cut(first_step)
    if accelerator.is_main_process:
        label_map.save(output_dir / LABEL_MAP_FILE)
    accelerator.init_trackers("discriminative", {name: str(value) for name, value in asdict(settings).items()})

    # Training
    batches = iter(training)
    steps = range(first_step + 1, num_steps + 1)
    bar = tqdm(steps, initial=first_step, total=num_steps, unit="step", disable=not accelerator.is_main_process)
    for step in bar:
        start, cpu_start = time.perf_counter(), time.process_time()
        # Mixup and dropout depend on seed, step and process alone, so that a resumed training repeats them.
        torch.manual_seed(seed_of(settings.seed, step, rank))
        optimizer.param_groups[0]["lr"] = lr = settings.lr * min(1.0, step / max(1, settings.warmup_steps))
        waves, classes = (each.to(accelerator.device, non_blocking=True) for each in next(batches))
        mixup = draw_mixup(len(waves), settings.mixup, accelerator.device)
        output = wrapped(mixup(waves), mixup(one_hot(classes, num_classes).float()))
        accelerator.backward(output.loss)
        gradient_norm = accelerator.clip_grad_norm_(list(trained.values()), settings.max_grad_norm)
        mean_loss = float(accelerator.reduce(output.loss.detach(), "mean"))
        # Gradients in float16 may overflow; the scaler skips such a step.
        finite_gradients = accelerator.mixed_precision == "fp16" or bool(gradient_norm.isfinite())
        if not (np.isfinite(mean_loss) and finite_gradients):
            raise FloatingPointError(
                f"loss and gradient must be finite, got {mean_loss} and {float(gradient_norm)} in step {step}, seed "
                f"{settings.seed}. The weights before it are in the last checkpoint in {output_dir / 'checkpoints'}."
            )
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)

        seconds = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu_start}
        accelerator.log({"loss": mean_loss, "gradient_norm": float(gradient_norm), "lr": lr, **seconds}, step=step)
        bar.set_postfix(loss=f"{mean_loss:.4f}")
        if step % steps_per_epoch == 0 or step == num_steps:
            with ema.swapped_in():
                results = validate(model, validation, held_out[rank :: accelerator.num_processes], clips, num_classes)
            accelerator.log({f"validation/{name}": value for name, value in results.items()}, step=step)
            if accelerator.is_main_process:
                bar.write(f"step {step}: " + ", ".join(f"{name} {value:.3g}" for name, value in results.items()))
        if step % settings.save_every == 0 or step == num_steps:
            position = {"step": step, "label_map": digest, **lasting}
            save_checkpoint(accelerator, output_dir / "checkpoints", position, settings.keep)

    # The model or its adapter, and the card
    if accelerator.is_main_process:
        with ema.swapped_in():
            if settings.full:
                with whole_folder(output_dir, keeps=lambda name: True) as staging:
                    encoder.save_pretrained(staging)
            else:
                save_adapter(encoder, output_dir, settings.base_name or base)
            extractor.save_pretrained(output_dir)
            if settings.merged:
                with whole_folder(output_dir / "merged") as staging:
                    merge_adapter(encoder).save_pretrained(staging)
                    extractor.save_pretrained(staging)
        write_adapter_card(
            output_dir,
            model_type=encoder.config.model_type,
            base=settings.base_name or settings.base,
            licence=settings.licence,
            label_map=label_map,
            log=read_json_lines(json_lines.path),
            held_out=settings.held_out > 0,
            num_processes=accelerator.num_processes,
            command=launch_command(sys.argv),
            is_adapter=not settings.full,
        )
    accelerator.end_training()


# Before the first step


def check_counts(settings: Settings, num_processes: int) -> None:
    if settings.batch_size % num_processes or settings.batch_size < 2 * num_processes:
        raise ValueError(
            f"`batch_size` must be a multiple of the {num_processes} processes and at least two for each (batch "
            f"normalisation), got {settings.batch_size}"
        )
    for name in ("epochs", "save_every", "duration"):
        if not getattr(settings, name) > 0:
            raise ValueError(f"`{name}` must be positive, got {getattr(settings, name)}.")
    for name in ("held_out", "mixup"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(settings, name)}.")


def shared_label_map(
    settings: Settings, accelerator: Accelerator, model_type: str, base: str, clips: list[DcaseClip]
) -> LabelMap:
    """Load the label map of all processes: a given one, or that of a resumed training, or a new one that is made."""
    if settings.label_map:
        return LabelMap.load(settings.label_map)
    path = Path(settings.output_dir) / LABEL_MAP_FILE
    if accelerator.is_main_process and not (settings.resume and path.exists()):
        frontend = checkpoint_embedder(model_type, base, device=accelerator.device)

        def embed(files: list[Path]) -> torch.Tensor:
            starts = tqdm(range(0, len(files), 8), f"features of {files[0].parent.parent.name}", delay=5)
            return torch.cat([frontend.embed(files[start : start + 8]) for start in starts])

        num_clusters = int(settings.num_clusters) if settings.num_clusters.isdecimal() else settings.num_clusters
        make_label_map(clips, embed, num_clusters, settings.seed, {"base": settings.base}).save(path)
    accelerator.wait_for_everyone()
    return LabelMap.load(path)


def split(clips: list[DcaseClip], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Choose the clips to train on and those to measure with, by index; with nothing held out both are all clips."""
    groups: dict[tuple[str, int], list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault((clip.name.machine, clip.name.section), []).append(index)
    if settings.held_out == 0:
        kept = held_out = np.arange(len(clips))
    else:
        random = np.random.default_rng(seed_of(settings.seed))
        counts = {unit: round(settings.held_out * len(indices)) for unit, indices in groups.items()}
        held_out = np.sort(np.concatenate([random.permutation(groups[unit])[: counts[unit]] for unit in groups]))
        kept = np.setdiff1d(np.arange(len(clips)), held_out)
    watched = {unit: len(np.intersect1d(indices, held_out)) for unit, indices in groups.items()}
    if min(watched.values()) < 2:
        unit = min(watched, key=watched.__getitem__)
        raise ValueError(
            f"`held_out` must leave at least two clips of every machine to watch with, got {settings.held_out}: "
            f"{watched[unit]} of {unit[0]}"
        )
    return kept, held_out


def make_loss(settings: Settings, num_classes: int) -> SubClusterAdaCos | ArcFace:
    if settings.loss == "arcface":
        return ArcFace(settings.embedding_size, num_classes)
    centres = {"dynamic_scale": settings.dynamic_scale, "trainable_centres": not settings.fixed_centres}
    if settings.loss == "adacos":
        return AdaCos(settings.embedding_size, num_classes, **centres)
    return SubClusterAdaCos(settings.embedding_size, num_classes, settings.num_subclusters, **centres)


class BatchesOfProcess:
    """The batches of this process in steps `first_step + 1` to `num_steps`, as clips and the seeds of their crops.

    The whole batch of a step depends on seed and step alone, so that a training can be resumed.
    """

    def __init__(self, clips: np.ndarray, settings: Settings, first_step: int, num_steps: int, part: slice):
        self.clips, self.settings, self.part = clips, settings, part
        self.steps = range(first_step, num_steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, seed = self.settings.batch_size, self.settings.seed
        for step in self.steps:
            epoch, batch = divmod(step, len(self.clips) // size)
            order = np.random.default_rng(seed_of(seed, epoch)).permutation(self.clips)
            indices = order[batch * size : (batch + 1) * size][self.part].tolist()
            yield [(index, seed_of(seed, step, index)) for index in indices]


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# After every epoch


@torch.no_grad()
def validate(
    model: DiscriminativeModel, loader: DataLoader, own_part: np.ndarray, clips: list[DcaseClip], num_classes: int
) -> dict[str, float]:
    """Measure loss and class accuracy on the held-out clips of all processes, and the spread of their anomaly scores.

    The spread is the leave-one-out variance of the normal clips' scores, as its mean over machines.
    """
    model.eval()
    rows = []
    for waves, classes in loader:
        output = model(waves.to(model.device), one_hot(classes, num_classes).float().to(model.device))
        right = (output.logits.argmax(dim=1).cpu() == classes).tolist()
        rows += zip(right, [float(output.loss)] * len(right), output.embeddings.cpu().numpy(), strict=True)
    model.train()
    rows = gather_object([(int(index), *row) for index, row in zip(own_part, rows, strict=True)])
    by_machine: dict[str, list[np.ndarray]] = {}
    for index, _, _, embedding in sorted(rows, key=lambda row: row[0]):
        by_machine.setdefault(clips[index].name.machine, []).append(embedding)
    banks = [MemoryBank(rescaling="variance_min").fit(np.stack(each)) for each in by_machine.values()]
    return {
        "accuracy": float(np.mean([row[1] for row in rows])),
        "loss": float(np.mean([row[2] for row in rows])),
        "leave_one_out_variance": float(np.mean([float(bank.self_scores().var()) for bank in banks])),
    }


if __name__ == "__main__":
    main()
