"""Conditions under which a noise-aware model is validated apart, so that no mean hides where it fails.

The error of a distilled model is stated as a share of the error of its own base (1: the noise-aware layers change
nothing; above 1: they do harm). A single number over all mixtures averages away the sounds and rooms where that share
is large, so that every condition differs from a reference in one thing.
Letters in shapes: B mixtures, L samples, N tokens, D hidden size, R taps of an impulse response.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..hub.far_microphone import FarMicrophone
from ..hub.front_end import TwoChannelFrontEnd
from ..hub.modeling_noise_aware import NoiseAwareModelMixin
from ..hub.noise_cancellation import METHODS, cancel_far_microphone
from ..simulation.mixing import HeardMixture, TwoChannelMixture, mix_two_channel, spatial_noises

NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Condition:
    """What the mixtures of a validation have in common. The defaults are the reference.

    Attributes:
        snr_db: SNR at the close microphone in dB; infinite for a machine without noise.
        coherence: of the noises, as `spatial_noises` takes it.
        level_difference_db: how much louder the close microphone hears the machine than the far one, in dB of energy;
            `None` for what the room gives.
        far_is_close: whether the far channel is a copy of the close one, as by a wrong cable.
        canceller: "least_squares", "spectral_subtraction", or a method of a [`FarMicrophone`] that is calibrated on
            other mixtures of the same room; `None` for the close channel as it is.
        machine_is_off: whether only the noise is left, at the level that it would have beside the machine.
    """

    snr_db: float = 0.0
    coherence: float = 0.0
    level_difference_db: float | None = None
    far_is_close: bool = False
    canceller: str | None = None
    machine_is_off: bool = False

    def __post_init__(self) -> None:
        if self.machine_is_off and math.isinf(self.snr_db):
            raise ValueError("`snr_db` must be finite where `machine_is_off`, because nothing would be left; got inf.")


REFERENCE = "0 dB"
CONDITIONS: dict[str, Condition] = {
    REFERENCE: Condition(),
    **{f"{snr_db:g} dB": Condition(snr_db=snr_db) for snr_db in (-10.0, -5.0, 5.0, 10.0, 20.0)},
    "clean": Condition(snr_db=math.inf),
    **{f"coherence {share:g}": Condition(coherence=share) for share in (0.5, 1.0)},
    **{
        f"machine {level_db:+g} dB at the close microphone": Condition(level_difference_db=level_db)
        for level_db in (-4.0, 4.0, 12.0, 20.0)
    },
    "far := close": Condition(far_is_close=True),
    "behind least squares": Condition(canceller="least_squares"),
    "behind subtraction": Condition(canceller="spectral_subtraction"),
    "behind a calibrated filter, common noise": Condition(coherence=1.0, canceller="installation"),
    "machine off": Condition(machine_is_off=True),
}


@dataclass(frozen=True)
class Sounds:
    """Dry sounds and the rooms that they are put into; a row is one mixture.

    Attributes:
        target: `(B, L)`.
        noises: `(B, 4, L)`.
        rir_target, rir_noise, direct_delay: `(B, 2, R)`, `(B, 4, 2, R)` and `(B,)`, as `RoomPool.batch` gives them.
        calibration: other sounds of the same machines in the same rooms, one after the other, `(B * k, ...)`, row
            `i * k + j` in the room of row i; on these a canceller may learn.
    """

    target: Tensor
    noises: Tensor
    rir_target: Tensor
    rir_noise: Tensor
    direct_delay: Tensor
    calibration: "Sounds | None" = None


@dataclass(frozen=True, eq=False)
class ClipErrors:
    """Errors of single mixtures towards the teacher, `(B,)` float64 each.

    Attributes:
        noise_aware: of the model.
        base: of its base alone, which hears the same close channel.
        mean: of the mean of both models' tokens.
    """

    noise_aware: np.ndarray
    base: np.ndarray
    mean: np.ndarray

    def ratio(self, of: str = "noise_aware") -> float:
        """Return the summed error of the model, or of the "mean" of both, as a share of that of the base."""
        return float(getattr(self, of).sum() / self.base.sum())

    def interval(self, of: str = "noise_aware", seed: int = 0) -> tuple[float, float]:
        """Return the 95 % interval of the ratio, from a bootstrap over mixtures."""
        errors = np.stack([getattr(self, of), self.base], axis=1)  # (B, 2)
        drawn = np.random.default_rng(seed).integers(len(errors), size=(NUM_BOOTSTRAP, len(errors)))
        of_model, of_base = errors[drawn].sum(axis=1).T  # (draws,) each
        low, high = np.quantile(of_model / of_base, [0.025, 0.975])
        return float(low), float(high)


def mix(sounds: Sounds, condition: Condition) -> TwoChannelMixture:
    """Mix sounds under a condition, before any canceller.

    Returns:
        `close`, `far`, `clean`, `(B, L)` float32 each.
    """
    rir_target = sounds.rir_target
    if condition.level_difference_db is not None:
        close_energy, far_energy = rir_target.square().sum(-1).unbind(1)  # (B,) each
        gain = torch.sqrt(close_energy / far_energy / 10 ** (condition.level_difference_db / 10))
        rir_target = torch.stack([rir_target[:, 0], gain[:, None] * rir_target[:, 1]], dim=1)
    noises = spatial_noises(sounds.noises, condition.coherence)
    is_clean = math.isinf(condition.snr_db)
    if is_clean:
        noises = torch.zeros_like(noises)
    snr_db = torch.full((len(noises),), 0.0 if is_clean else condition.snr_db)
    rooms = rir_target, sounds.rir_noise, snr_db, sounds.direct_delay
    mixture = mix_two_channel(sounds.target, noises, *rooms)
    if condition.machine_is_off:
        # A mixture is a sum, so that the machine can be taken out of it again, which leaves the level of the noise.
        alone = mix_two_channel(sounds.target, torch.zeros_like(noises), *rooms)
        zeros = torch.zeros_like(mixture.clean)
        mixture = TwoChannelMixture(mixture.close - alone.close, mixture.far - alone.far, zeros)
    if condition.far_is_close:
        mixture = mixture._replace(far=mixture.close)
    return mixture


def heard(sounds: Sounds, condition: Condition) -> HeardMixture:
    """Mix sounds, and take the far microphone out of the close one where the condition says so.

    Raises:
        ValueError: a calibrated canceller has nothing to learn from.
    """
    mixture, method = HeardMixture(*mix(sounds, condition)), condition.canceller
    if method is None:
        return mixture
    if method in METHODS:
        cancelled = cancel_far_microphone(mixture.close, mixture.far, method)
        return mixture._replace(close=cancelled, recorded=mixture.close)
    if sounds.calibration is None:
        raise ValueError(f"`sounds` must have a `calibration` for the canceller {method!r}, got None.")
    learned = mix(sounds.calibration, condition)
    learning = torch.stack([learned.close, learned.far], dim=1).unflatten(0, (len(mixture.close), -1))  # (B, k, 2, L)
    each_cancelled = [
        FarMicrophone(method).fit(of_room).cancel(torch.stack([close, far])[None])[0, 0]
        for of_room, close, far in zip(learning, mixture.close, mixture.far, strict=True)
    ]
    return mixture._replace(close=torch.stack(each_cancelled), recorded=mixture.close)


@torch.no_grad()
def clip_errors(
    model: NoiseAwareModelMixin, mixture: TwoChannelMixture | HeardMixture, batch_size: int = 8
) -> ClipErrors:
    """Measure how far a noise-aware model and its base are from the base's tokens of the clean sound.

    Args:
        model: in eval mode.
        mixture: waveforms `(B, L)` at the rate of the model's front end, the close channel as the model hears it.
        batch_size: mixtures that go through the model together.

    Returns:
        the mean squared error over tokens, plus that of CLS where there is one, for every mixture.
    """
    front_end = TwoChannelFrontEnd.of(model.config)
    errors: dict[str, list[Tensor]] = {"noise_aware": [], "base": [], "mean": []}
    mixture = HeardMixture(*mixture)
    before = mixture.close if mixture.recorded is None else mixture.recorded
    waves, recorded = (torch.stack([close, mixture.far], dim=1) for close in (mixture.close, before))  # (B, 2, L) each
    for pair, pair_before, clean in zip(
        *(each.split(batch_size) for each in (waves, recorded, mixture.clean)), strict=True
    ):
        close_fbank, far_fbank = front_end.frames(pair, pair_before).unbind(1)  # (B, T, M) each
        clean_fbank = front_end.fbank(clean)  # (B, T, M)
        far_states = model.base_states(far_fbank) if model.hears_far else None
        teacher, base = (
            model.last_hidden_state(model.base_states(fbank)[-1], fbank.shape[1]).double()
            for fbank in (clean_fbank, close_fbank)
        )  # (B, N, D)
        own = model.denoise(close_fbank, far_states).double()
        for name, tokens in {"noise_aware": own, "base": base, "mean": (own + base) / 2}.items():
            squared = (model.time_frequency_grid(tokens) - model.time_frequency_grid(teacher)).square()
            error = squared.mean(dim=(1, 2, 3))
            if model.has_cls_token:
                error = error + (tokens[:, 0] - teacher[:, 0]).square().mean(dim=-1)
            errors[name].append(error)
    return ClipErrors(**{name: torch.cat(parts).numpy() for name, parts in errors.items()})


def errors_by_condition(
    model: NoiseAwareModelMixin,
    sounds: Sounds,
    conditions: Mapping[str, Condition] = CONDITIONS,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, ClipErrors]:
    """Measure a model on the same sounds and rooms under every condition.

    Args:
        progress: is called with the name of each condition before it is measured.
    """
    found = {}
    for name, condition in conditions.items():
        progress(name)
        found[name] = clip_errors(model, heard(sounds, condition))
    return found


def share_of_noisy_error(errors: Mapping[str, ClipErrors], name: str) -> float:
    """Return the model's error under a condition as a share of the base's error under the reference.

    On clean input the base itself is off by the late reverberation alone, so that the ratio to it says little of how
    much harm is done.
    """
    return float(errors[name].noise_aware.sum() / errors[REFERENCE].base.sum())
