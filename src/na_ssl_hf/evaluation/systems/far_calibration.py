"""The far microphone of every machine is calibrated on its training clips, and on its clips of the noise alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...data.dcase.clips import DcaseClip
from ...hub.far_microphone import CALIBRATED_METHODS, FarMicrophone
from ...hub.noise_cancellation import METHODS
from ...hub.recording import Recording, load_recording
from .machine_data import MachineData
from .processes import Processes

logger = logging.getLogger(__name__)


def is_calibrated(far_cancellation: Any) -> bool:
    """Tell whether a method learns from normal recordings.

    Raises:
        ValueError: there is no such method.
    """
    known = ("none", *METHODS, *CALIBRATED_METHODS)
    if far_cancellation is not None and (not isinstance(far_cancellation, str) or far_cancellation not in known):
        raise ValueError(f"far_cancellation must be None or one of {', '.join(known)}; got {far_cancellation!r}")
    return far_cancellation in CALIBRATED_METHODS


def calibrated_far_microphones(
    method: str,
    machines: Sequence[MachineData],
    sampling_rate: int,
    waveform: Callable[[Recording], torch.Tensor],
    processes: Processes | None = None,
) -> dict[str, FarMicrophone]:
    """Calibrate a [`FarMicrophone`] for every machine; the test clips have no part in it.

    Args:
        method: one of CALIBRATED_METHODS.
        machines: the machines, with unequal names. Their clips of the noise alone have a part where they hold enough
            seconds, with a warning where they do not.
        sampling_rate: of the waveforms, in Hz.
        waveform: function from a recording to its two channels `(2, N)`.
        processes: those that share the machines; every process gets all of them.

    Returns:
        name of a machine -> its far microphone, without the sums over the recordings.

    Raises:
        OSError: a recording is missing or damaged.
        ValueError: a recording does not have two channels, or a machine, which is named, has too few seconds of
            recordings or a silent far microphone.
    """
    processes = processes or Processes()
    own = [_calibrated(method, machine, sampling_rate, waveform) for machine in processes.share(machines)]
    return {machine.name: one for machine, one in zip(machines, processes.gather(own), strict=True)}


def _calibrated(
    method: str, machine: MachineData, sampling_rate: int, waveform: Callable[[Recording], torch.Tensor]
) -> FarMicrophone:
    def waves(clips: Sequence[DcaseClip]) -> Iterator[torch.Tensor]:
        return (waveform(load_recording(clip.path, sampling_rate)) for clip in clips)

    noises = list(waves(machine.machine_off)) or None
    try:
        # What learns nothing says whether there is enough to learn from.
        FarMicrophone("spectral_subtraction", sampling_rate).fit(noises or ())
    except ValueError as error:
        if noises is not None:
            reason = str(error).replace("`recordings`", "`machine_off`")
            logger.warning(f"{machine.name} is calibrated without its clips of the noise alone: {reason}")
        noises = None
    far_microphone = FarMicrophone(method, sampling_rate)
    for recordings, machine_off in ((waves(machine.train), False), (noises or (), True)):
        for recording in recordings:
            far_microphone.partial_fit(recording, machine_off)
    try:
        return far_microphone.finish().without_sums()
    except ValueError as error:
        raise ValueError(f"{machine.name}: {error}") from error
