r"""Give a tiny BEATs or EAT a useful representation of clean sounds, as the base of a tiny noise-aware model.

    accelerate launch --config_file examples/accelerate/cpu.yaml \
        examples/pretrain_tiny_base.py --model-type beats --targets targets.jsonl --output-dir base

    # after a kill: the resumed training gives the same weights as one that was never stopped
    accelerate launch ... --output-dir base --resume

The manifest comes from `na-ssl corpora prepare`. OUTPUT_DIR becomes a folder for `from_pretrained` and the `--base` of
train_na_distillation.py; log.jsonl beside it holds the loss curves. Three objectives:

bands: a band's tokens, averaged over time, hold its log-mel statistics (mean less the level of the clip, and standard
    deviation) in a linear read-out, and the cosine distances between such band vectors follow the distances of the
    statistics. This is the geometry in which a memory bank compares clips; the level of a clip says more about noise
    and mounting than about faults. Neighbours of every sound (another gain, colour, or a second sound beside it, as a
    fault would be) teach the small distances.
masked: masked patches of the spectrogram are predicted from the visible ones, as an average over the layers of an EMA
    teacher that sees them all, and so is the teacher's mean over the clip (EAT; Chen et al., IJCAI 2024).
knowledge: what a network knows that has heard AudioSet. The standardised grids of some layers of `--teacher`, say an
    EfficientAT of 4 MB, are read from the tokens, beside the log-mel statistics that `bands` keeps. Crops are mixed,
    made faster or slower, filtered, and hit by bursts, so that a few hours of sound teach much of the network.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import huber_loss, interpolate, layer_norm, mse_loss, normalize, rms_norm
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from na_ssl_hf import BeatsConfig, BeatsModel, EatConfig, EatModel, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints.loading import load_model
from na_ssl_hf.data.corpora.manifest import SoundFile, read_crop, read_manifest
from na_ssl_hf.data.sound_changes import changed_crop, decibels
from na_ssl_hf.hub.fbank import FLAVOURS, SAMPLING_RATE, kaldi_fbank
from na_ssl_hf.hub.front_end import TwoChannelFrontEnd
from na_ssl_hf.hub.mel_spectrogram import EFFICIENTAT_HIGHEST_HZ
from na_ssl_hf.hub.whole_files import whole_folder
from na_ssl_hf.training.checkpoint_folder import find_checkpoint, load_checkpoint, read_position, save_checkpoint
from na_ssl_hf.training.json_lines_tracker import JsonLinesTracker
from na_ssl_hf.training.optimizers import make_optimizers

# Letters: B clips, N samples, T frames, M mel bins, R rows of patches in time, F bands, D hidden size.
PATCH = 16
GAIN_DB, NEIGHBOUR_GAIN_DB, COLOUR_DB = 8.0, 4.0, 2.5
COMPANY_SHARE, COMPANY_DB = 0.6, (-30.0, 5.0)
# In units of the statistics below, whose variance over sounds is about a twentieth.
READ_OUT_WEIGHT, DEVIATION_WEIGHT, DISTANCE_FLOOR = 20.0, 1.5, 1e-4
VISIBLE_SHARE, EMA_START, EMA_END = 0.3, 0.99, 0.9995
STATISTICS_BATCHES = 8
SPECTRA_WEIGHT = 0.5


def option(help: str, default: Any = None, **of_argparse: Any) -> Any:
    return field(default=default, metadata={"help": help, **of_argparse})


@dataclass(kw_only=True)
class Settings:
    targets: str = field(metadata={"help": "manifest of sounds, of which the split train is used"})
    output_dir: str = field(metadata={"help": "folder for the model, its log and its checkpoints"})
    model_type: Literal["beats", "eat"] = option("architecture of the model", "beats")
    objective: Literal["bands", "masked", "knowledge"] = option("training objective, as described above", "bands")
    teacher: str | None = option("folder of the EfficientAT that `knowledge` learns from", None)
    teacher_layers: list[int] = field(
        default_factory=lambda: [8, 10, 12], metadata={"help": "layers of the teacher whose grids are learned"}
    )
    hidden_share: float = option("share of the patches that `knowledge` hides from the student", 0.0)
    hidden_size: int = option("width of the tokens", 128)
    num_layers: int = option("number of transformer layers", 4)
    level_weight: float = option("weight of the levels that `bands` keeps readable in all layers but the last", 20.0)
    duration: float = option("duration of a crop, s", 1.3)
    max_steps: int = option("number of optimizer steps", 700)
    batch_size: int = option("number of clips in a step of a process; for `bands`, a third of them are originals", 48)
    optimizer: Literal["adamw", "muon"] = option("optimizer; muon learns faster with a larger rate (1e-2)", "adamw")
    lr: float = option("peak learning rate, after 50 steps of warm-up and before a cosine decay", 2e-3)
    seed: int = option("seed of weights and crops", 0)
    save_every: int = option("number of steps between checkpoints", 200)
    resume: bool = option("training that goes on from the latest checkpoint", False)
    cpu: bool = option("training on the CPU (`accelerate launch` tells the script itself)", False)


# A resumed training must have the same values of these settings.
LASTING = (
    *("model_type", "objective", "teacher_layers", "hidden_share", "hidden_size", "num_layers", "level_weight"),
    *("duration", "max_steps", "batch_size", "optimizer", "lr", "seed"),
)


def main() -> None:
    settings = HfArgumentParser(Settings).parse_args_into_dataclasses()[0]
    output_dir = Path(settings.output_dir)
    json_lines = JsonLinesTracker(output_dir / "log.jsonl")
    accelerator = Accelerator(cpu=settings.cpu, log_with=[json_lines], project_dir=output_dir)
    set_seed(settings.seed)
    lasting = {name: getattr(settings, name) for name in LASTING}
    checkpoint = find_checkpoint(output_dir / "checkpoints", "latest" if settings.resume else None, settings, LASTING)
    first_step = read_position(checkpoint)["step"] if checkpoint else 0
    sounds = [sound for sound in read_manifest(settings.targets) if sound.split == "train"]
    if not sounds:
        raise ValueError(f"`targets` must hold sounds of the split 'train', got none in {settings.targets}.")

    encoder = tiny_encoder(settings)
    objective = make_objective(encoder, sounds, settings)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizers = make_optimizers(objective, settings.optimizer, settings.lr, weight_decay=0.02, betas=(0.9, 0.98))
    objective, *optimizers = accelerator.prepare(objective, *optimizers)
    if checkpoint:
        load_checkpoint(accelerator, checkpoint)
    json_lines.cut(first_step)
    accelerator.init_trackers("tiny-base")

    steps = range(first_step + 1, settings.max_steps + 1)
    bar = tqdm(
        steps, initial=first_step, total=settings.max_steps, unit="step", disable=not accelerator.is_main_process
    )
    for step in bar:
        # Everything random in a step follows from these three numbers, so that a resumed training repeats it.
        rng = np.random.default_rng([settings.seed, step, accelerator.process_index])
        torch.manual_seed(int(rng.integers(2**63)))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings.lr * learning_rate_factor(step, settings.max_steps)
        waves = DRAWN[settings.objective](sounds, settings, rng).to(accelerator.device)  # (B, N)
        fbank = kaldi_fbank(waves, settings.model_type)  # (B, T, M)
        if settings.objective == "bands":
            fbank = fbank + colours(len(fbank), settings.model_type).to(fbank)
        fbank = fbank[:, : fbank.shape[1] // PATCH * PATCH]
        losses = objective(fbank, waves) if settings.objective == "knowledge" else objective(fbank)
        loss = torch.stack(list(losses.values())).sum()
        accelerator.backward(loss)
        gradient_norm = accelerator.clip_grad_norm_(trained, 2.0)
        if not torch.isfinite(gradient_norm):
            raise FloatingPointError(f"The loss of step {step} is {float(loss)}; the last checkpoint is kept.")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if settings.objective == "masked":
            accelerator.unwrap_model(objective).update_teacher(step / settings.max_steps)

        accelerator.log({name: value.item() for name, value in losses.items()}, step=step)
        bar.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()})
        if step % settings.save_every == 0 or step == settings.max_steps:
            save_checkpoint(accelerator, output_dir / "checkpoints", {"step": step, **lasting}, keep=2)

    if accelerator.is_main_process:
        # Model and extractor appear together; checkpoints and logs stay.
        with whole_folder(output_dir, keeps=lambda name: True) as staging:
            encoder = accelerator.unwrap_model(objective).encoder.eval()
            encoder.save_pretrained(staging)
            TwoChannelFeatureExtractor.of(encoder.config).save_pretrained(staging)
    accelerator.end_training()


def tiny_encoder(settings: Settings) -> Any:
    # Two wide heads, because in a model of this size the softmax costs more than the products with the values.
    sizes = {
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 4 * settings.hidden_size,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    if settings.model_type == "eat":
        return EatModel(EatConfig(**sizes))
    # BEATs normalises a patch before anything is added to it, which removes its level; this large epsilon keeps it.
    beats = {"layer_norm_eps": 0.1, "position_convolution_kernel": 32, "input_dropout": 0.0}
    return BeatsModel(BeatsConfig(**sizes, **beats, patch_embedding_size=settings.hidden_size))


def make_objective(encoder: Any, sounds: list[SoundFile], settings: Settings) -> nn.Module:
    if settings.objective == "masked":
        return MaskedObjective(encoder)
    if settings.objective == "bands":
        return BandObjective(encoder, settings.level_weight)
    if settings.teacher is None:
        raise ValueError("`teacher` must be a folder of an EfficientAT for the objective 'knowledge', got None.")
    teacher, layers = load_model(settings.teacher), settings.teacher_layers
    if min(layers) < 0 or max(layers) > teacher.num_layers:
        raise ValueError(f"`teacher_layers` must be some of 0 to {teacher.num_layers}, the teacher's, got {layers}.")
    objective = KnowledgeObjective(encoder, teacher, layers, settings.hidden_share)
    # These crops are none of a step's, and the same whatever the number of processes.
    rng = np.random.default_rng([settings.seed, 0])
    objective.standardise(changed_crops(sounds, settings, rng) for _ in range(STATISTICS_BATCHES))
    return objective


def learning_rate_factor(step: int, num_steps: int) -> float:
    return min(1.0, step / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / num_steps)))


# Data


def crops(sounds: list[SoundFile], settings: Settings, rng: np.random.Generator) -> Tensor:
    """Draw `batch_size` random crops of random sounds at random gains, `(B, N)`."""
    num_samples = round(settings.duration * SAMPLING_RATE)
    waves = []
    for index in rng.integers(len(sounds), size=settings.batch_size):
        start = int(rng.integers(max(1, sounds[index].num_samples() - num_samples + 1)))
        waves.append(read_crop(sounds[index], start, num_samples) * decibels(rng.uniform(-GAIN_DB, GAIN_DB)))
    return torch.from_numpy(np.stack(waves).astype(np.float32))


def crops_with_neighbours(sounds: list[SoundFile], settings: Settings, rng: np.random.Generator) -> Tensor:
    """Draw `(B, N)`, of which a third are originals and two thirds their neighbours, in the same order."""
    waves = crops(sounds, settings, rng)
    waves = waves[: len(waves) // 3 * 3]
    originals, *others = waves.chunk(3)
    neighbours = []
    for other in others:
        size = (len(originals), 1)
        company = decibels(rng.uniform(*COMPANY_DB, size)) * (rng.random(size) < COMPANY_SHARE)
        gain = decibels(rng.uniform(-NEIGHBOUR_GAIN_DB, NEIGHBOUR_GAIN_DB, size) * (rng.random(size) < 0.5))
        neighbours.append(torch.from_numpy(gain).float() * (originals + torch.from_numpy(company).float() * other))
    return torch.cat([originals, *neighbours])


def changed_crops(sounds: list[SoundFile], settings: Settings, rng: np.random.Generator) -> Tensor:
    """Draw crops `(B, N)` that are changed as other machines, rooms and microphones would change them."""
    num_samples = round(settings.duration * SAMPLING_RATE)
    return torch.from_numpy(np.stack([changed_crop(sounds, num_samples, rng) for _ in range(settings.batch_size)]))


# How the clips of a step are drawn for each objective.
DRAWN = {"bands": crops_with_neighbours, "masked": crops, "knowledge": changed_crops}


def colours(num_clips: int, model_type: str) -> Tensor:
    """Draw smooth frequency responses for the neighbours, `(B, 1, M)` in units of the fbank, and 0 for originals."""
    nats_to_units = 1 / FLAVOURS[model_type][3]
    size = (num_clips, 1, 1)
    curves = interpolate(torch.randn(num_clips, 1, 6), size=128, mode="linear")
    strength = torch.rand(size) * (torch.rand(size) < 0.5) * COLOUR_DB * math.log(10) / 10 * nats_to_units
    strength[: num_clips // 3] = 0.0
    return curves * strength


# Objectives


class BandObjective(nn.Module):
    """Band vectors shall hold the log-mel statistics of their band, with distances that follow those of the statistics.

    The layers before the last shall also hold the levels of their patch: the noise-aware layers compare the levels of
    two microphones, and see them through a norm that keeps only a token's direction.
    """

    def __init__(self, encoder: Any, level_weight: float):
        super().__init__()
        self.encoder = encoder
        self.level_weight = level_weight
        size = encoder.config.hidden_size
        self.read_out = nn.Linear(size, 2 * PATCH)
        num_level_layers = encoder.config.num_hidden_layers - 1 if level_weight else 0
        self.level_read_outs = nn.ModuleList(nn.Linear(size, PATCH) for _ in range(num_level_layers))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, fbank: Tensor) -> dict[str, Tensor]:
        output = self.encoder(fbank, output_hidden_states=True)
        grid = self.encoder.time_frequency_grid(output.last_hidden_state)  # (B, R, F, D)
        statistics = band_statistics(fbank)  # (B, F, 2 * 16)
        read_out = READ_OUT_WEIGHT * mse_loss(
            self.read_out(grid), statistics[:, None].expand(-1, grid.shape[1], -1, -1)
        )
        losses = {"read_out": read_out}
        if self.level_read_outs:
            losses["levels"] = self.level_weight * self.level_loss(output.hidden_states[1:-1], fbank)
        return losses | {"distances": self.distance_loss(grid.mean(1), statistics)}

    def level_loss(self, hidden_states: tuple[Tensor, ...], fbank: Tensor) -> Tensor:
        """Compute the loss of reading the levels of a patch's mel bins from the directions of each layer's tokens."""
        levels = fbank.unflatten(1, (-1, PATCH)).mean(2).unflatten(2, (-1, PATCH))  # (B, R, F, 16)
        losses = []
        for states, read_out in zip(hidden_states, self.level_read_outs, strict=True):
            directions = rms_norm(self.encoder.time_frequency_grid(states), states.shape[-1:])  # (B, R, F, D)
            losses.append(mse_loss(read_out(directions), levels))
        return torch.stack(losses).mean()

    def distance_loss(self, bands: Tensor, statistics: Tensor) -> Tensor:
        """Compute the loss between logarithms of distances; neighbours weigh as much as all other pairs together.

        Args:
            bands: `(B, F, D)`.
            statistics: `(B, F, 2 * 16)`.
        """
        first, second = torch.triu_indices(len(bands), len(bands), 1)
        directions = normalize(bands, dim=-1)
        distance = (directions[first] - directions[second]).square().sum(-1) / 4  # (pairs, F), (1 - cos) / 2
        wanted = (statistics[first] - statistics[second]).square().sum(-1)
        # Distances on a sphere are bounded, so that what is far apart is put at a right angle at most.
        wanted = 0.5 * self.log_scale.exp() * wanted / (wanted + 1)
        error = huber_loss((distance + DISTANCE_FLOOR).log(), (wanted + DISTANCE_FLOOR).log(), reduction="none")
        is_near = (second - first) % (len(bands) // 3) == 0
        return error[is_near].mean() + error[~is_near].mean()


class MaskedObjective(nn.Module):
    """Masked patches, and the mean over the clip, are predicted as an EMA teacher that sees everything gives them."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder
        self.teacher = copy.deepcopy(encoder).eval().requires_grad_(False)
        size = encoder.config.hidden_size
        self.predictor = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, fbank: Tensor) -> dict[str, Tensor]:
        rows, bands = fbank.shape[1] // PATCH, fbank.shape[2] // PATCH
        visible = torch.rand(len(fbank), rows, bands, device=fbank.device) < VISIBLE_SHARE  # (B, R, F)
        shown = fbank * visible.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)  # 0 is an average level
        student = self.encoder.time_frequency_grid(self.encoder(shown).last_hidden_state)  # (B, R, F, D)
        with torch.no_grad():
            layers = self.teacher(fbank, output_hidden_states=True).hidden_states[1:]
            average = torch.stack([layer_norm(layer, layer.shape[-1:]) for layer in layers]).mean(0)
            target = self.teacher.time_frequency_grid(average)
        hidden = ~visible
        return {
            "patches": mse_loss(self.predictor(student[hidden]), target[hidden]),
            "clip": mse_loss(self.predictor(student.mean((1, 2))), target.mean((1, 2))),
        }

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        decay = EMA_START + (EMA_END - EMA_START) * progress
        for mean, parameter in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)


class KnowledgeObjective(nn.Module):
    """The standardised grids of a teacher's layers, and the log-mel spectrum of each patch, are read from the tokens.

    Letters: C channels of all the teacher's layers together, R' and F' rows and bands of the teacher's grids.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: Any, teacher: Any, layers: list[int], hidden_share: float):
        super().__init__()
        self.encoder = encoder
        # A teacher is not part of what is trained and saved.
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False)
        self.layers, self.hidden_share = layers, hidden_share
        self.front_end = TwoChannelFrontEnd.of(teacher.config)
        with torch.no_grad():
            grids = teacher.layer_grids(torch.zeros(1, 64, self.front_end.num_mel_bins), layers)
        num_channels = sum(grid.shape[3] for grid in grids)
        own_bands = encoder.config.num_mel_bins // PATCH
        self.register_buffer("mean", torch.zeros(own_bands, num_channels))
        self.register_buffer("deviation", torch.ones(own_bands, num_channels))
        self.read_out = nn.Linear(encoder.config.hidden_size, num_channels)
        self.spectra = nn.Linear(encoder.config.hidden_size, PATCH)

    def forward(self, fbank: Tensor, waves: Tensor) -> dict[str, Tensor]:
        rows, bands = fbank.shape[1] // PATCH, fbank.shape[2] // PATCH
        known = (self.knowledge(waves, rows) - self.mean) / self.deviation  # (B, R, F, C)
        shown = fbank
        if self.hidden_share:
            visible = torch.rand(len(fbank), rows, bands, device=fbank.device) >= self.hidden_share
            shown = fbank * visible.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)  # 0 is an average level
        tokens = self.encoder.time_frequency_grid(self.encoder(shown).last_hidden_state)  # (B, R, F, D)
        levels = fbank.unflatten(1, (rows, PATCH)).mean(2).unflatten(2, (bands, PATCH))  # (B, R, F, 16)
        return {
            "knowledge": mse_loss(self.read_out(tokens), known),
            "spectra": SPECTRA_WEIGHT * mse_loss(self.spectra(tokens), levels),
        }

    @torch.no_grad()
    def knowledge(self, waves: Tensor, num_rows: int) -> Tensor:
        """Compute the teacher's grids of waves `(B, N)` at 16 kHz where the student's tokens lie, `(B, R, F, C)`."""
        rate = self.front_end.sampling_rate
        resampled = np.stack([soxr.resample(wave, SAMPLING_RATE, rate) for wave in waves.cpu().numpy()])
        features = self.front_end.fbank(torch.from_numpy(resampled).to(waves))  # (B, T, M)
        grids = self.teacher.layer_grids(features, self.layers)
        return torch.cat([self.where_tokens_lie(grid.float(), num_rows, features.shape[1]) for grid in grids], dim=3)

    def where_tokens_lie(self, grid: Tensor, num_rows: int, num_frames: int) -> Tensor:
        """Interpolate one of the teacher's grids `(B, R', F', C)` of some frames to `(B, R, F, C)`."""
        # A column of the teacher is centred at its first frame, a patch of the student half a patch later.
        columns = (torch.arange(num_rows, device=grid.device) * 0.16 + 0.0875) / (0.01 * num_frames / grid.shape[1])
        lower = columns.floor().long().clamp_max(grid.shape[1] - 1)
        upper, share = (lower + 1).clamp_max(grid.shape[1] - 1), (columns - lower).clamp(0, 1)[None, :, None, None]
        in_time = grid[:, lower] * (1 - share) + grid[:, upper] * share  # (B, R, F', C)
        own_bands = self.encoder.config.num_mel_bins // PATCH
        weights = band_interpolation(grid.shape[2], self.front_end.num_mel_bins, own_bands)
        return torch.einsum("brgc,gf->brfc", in_time, weights.to(grid))

    def standardise(self, batches: Iterable[Tensor]) -> None:
        """Learn mean and deviation of the teacher's channels in each band."""
        front_end = TwoChannelFrontEnd.of(self.encoder.config)
        grids = []
        for waves in batches:
            num_rows = front_end.num_frames(waves.shape[-1]) // PATCH
            grids.append(self.knowledge(waves, num_rows).flatten(0, 1))  # (B R, F, C)
        joined = torch.cat(grids)
        self.mean.copy_(joined.mean(0))
        self.deviation.copy_(joined.std(0).clamp_min(1e-3))


@cache
def band_interpolation(num_bands: int, num_mel_bins: int, own_bands: int) -> Tensor:
    """Make the weights `(F', F)` that give the student's bands from the teacher's by linear interpolation in mel.

    Row r of an EfficientAT's grid is centred at mel bin r M / F', and patch f of an fbank in the middle of its bins.
    """

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    width = mel(EFFICIENTAT_HIGHEST_HZ) / (num_mel_bins + 1)
    own_width = (mel(SAMPLING_RATE / 2) - mel(20.0)) / (own_bands * PATCH + 1)
    centres = mel(20.0) + (torch.arange(own_bands) * PATCH + (PATCH + 1) / 2) * own_width
    places = ((centres / width - 1) * num_bands / num_mel_bins).clamp(0, num_bands - 1)  # (F,)
    return (1 - (torch.arange(num_bands)[:, None] - places).abs()).clamp_min(0.0)


def band_statistics(fbank: Tensor) -> Tensor:
    """Compute each band's mean, less the clip's level, and deviation over time: `(B, T, M)` -> `(B, F, 2 * 16)`."""
    mean, deviation = fbank.mean(1), fbank.std(1)  # (B, M) each
    statistics = torch.stack([mean - mean.mean(1, keepdim=True), DEVIATION_WEIGHT * deviation], dim=1)  # (B, 2, M)
    return statistics.unflatten(2, (-1, PATCH)).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main()
