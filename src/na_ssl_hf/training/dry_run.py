"""A dry run of the distillation: a few steps on random sounds, their memory, and arithmetic of the time on H100s."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..hub.fbank import SAMPLING_RATE

# Of an H100 SXM, by NVIDIA: peak of dense products in bfloat16, without sparsity.
H100_BFLOAT16 = 989e12
# The share of the peak that training steps of transformers of this size reach in practice. It is an assumption.
REACHED = 0.2
# Four GPUs of one machine exchange the gradients of the noise-aware layers alone. This share of four times is assumed.
FOUR_GPUS = 0.95


@dataclass(frozen=True)
class DryRun:
    """What a dry run measured.

    Attributes:
        num_steps: that were run.
        step_s: median seconds of a step.
        num_clips: clips of a step that was run.
        duration_s: seconds of a clip.
        flop: floating-point operations of a step, matrix products and convolutions.
        num_parameters, num_trained: of the whole model, and of its noise-aware layers.
        peak_bytes: most memory at a time: of the GPU where there is one, else of this process.
        device: where it ran.
        losses: of all steps.
    """

    num_steps: int
    step_s: float
    num_clips: int
    duration_s: float
    flop: float
    num_parameters: int
    num_trained: int
    peak_bytes: int
    device: str
    losses: tuple[float, ...]

    def hours(self, num_steps: int, batch_size: int, num_gpus: int) -> float:
        """Compute the hours of a training on H100s, under the assumptions of this module.

        Args:
            num_steps: optimizer steps of the training.
            batch_size: clips of a step on all GPUs together.
            num_gpus: 1 or 4.
        """
        flop = self.flop / self.num_clips * batch_size * num_steps
        speed = H100_BFLOAT16 * REACHED * (1 if num_gpus == 1 else num_gpus * FOUR_GPUS)
        return flop / speed / 3600

    def report(self, num_steps: int, batch_size: int) -> str:
        """Describe what was measured and what follows for a training of so many steps, in plain text."""
        per_clip = self.flop / self.num_clips
        lines = [
            f"dry run: {self.num_steps} steps of {self.num_clips} x {self.duration_s:g} s on {self.device}, "
            f"{self.step_s:.2f} s each, loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}",
            f"model: {self.num_parameters / 1e6:.1f} M parameters, of which {self.num_trained / 1e6:.1f} M are trained",
            f"memory: {self.peak_bytes / 2**30:.2f} GiB at most, {self.num_clips} clips at a time; of these weights, "
            f"gradients and AdamW's moments are {self.state_bytes / 2**30:.2f} GiB, whatever the number of clips",
            f"arithmetic: {per_clip / 1e9:.0f} GFLOP a clip, {per_clip * batch_size / 1e12:.1f} TFLOP a step of "
            f"{batch_size} clips, {num_steps} steps",
        ]
        assumed = f"{100 * REACHED:.0f} % of {H100_BFLOAT16 / 1e12:.0f} TFLOP/s (bfloat16, an assumption)"
        lines += [
            f"one H100: {self.hours(num_steps, batch_size, 1):.1f} hours at {assumed}",
            f"four H100s: {self.hours(num_steps, batch_size, 4):.1f} hours, {100 * FOUR_GPUS:.0f} % of four times that "
            "speed (an assumption)",
            "not counted: reading and mixing, which overlap (docs/benchmarks.md), and validation",
        ]
        return "\n".join(lines)

    @property
    def state_bytes(self) -> int:
        """Bytes of weights in float32, and of gradients and two moments of what is trained."""
        return 4 * (self.num_parameters + 3 * self.num_trained)


def dry_run(
    distillation: torch.nn.Module,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    num_steps: int,
    num_clips: int,
    duration_s: float,
    device: torch.device,
) -> DryRun:
    """Run steps on random sounds.

    Args:
        distillation: a [`NoiseAwareDistillation`], whose parameters are counted.
        step: takes close, far and clean, `(B, L)` each, makes a whole optimizer step, and returns the loss.
        num_steps, num_clips, duration_s: how many steps of how many clips of how many seconds.
        device: of the sounds.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    random = torch.Generator().manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []
    seconds: list[float] = []
    for index in range(num_steps):
        clean = 0.1 * torch.randn(num_clips, round(duration_s * SAMPLING_RATE), generator=random)
        noise = 0.1 * torch.randn(clean.shape, generator=random)
        waves = [wave.to(device) for wave in (clean + noise, 0.3 * clean + noise, clean)]
        start = time.perf_counter()
        if index == 0:
            # Counting takes time, so that this step is not among those that are timed unless it is the only one.
            with FlopCounterMode(display=False) as counter:
                losses.append(float(step(*waves)))
        else:
            losses.append(float(step(*waves)))
        seconds.append(time.perf_counter() - start)
    if not torch.tensor(losses).isfinite().all():
        raise FloatingPointError(f"all losses of a dry run must be finite, got {losses}")
    parameters = list(distillation.parameters())
    return DryRun(
        num_steps=num_steps,
        step_s=float(torch.tensor(seconds[1:] or seconds).median()),
        num_clips=num_clips,
        duration_s=duration_s,
        flop=float(counter.get_total_flops()),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        peak_bytes=_peak_bytes(device),
        device=str(device),
        losses=tuple(losses),
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
