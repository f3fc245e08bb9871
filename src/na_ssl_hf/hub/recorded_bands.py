"""The bands of which recordings hold nothing, because they were made at a lower rate than the model hears.

A recording of 16 kHz that is brought to 32 kHz is silent above 8 kHz. Bands centred there say nothing of the machine
and are left out. An encoder whose bands hear one another cannot compare recordings of different rates at all.
"""

from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


def recorded_rate(model: Any, recording_rate: int, sampling_rate: int) -> int | None:
    """Compute the rate that says what a recording holds of the frequencies that a model hears, in Hz.

    Args:
        model: an encoder; one that knows where its bands are has `row_centres`.
        recording_rate: the recording's own rate.
        sampling_rate: the model's rate; a recording of a higher one holds all that it hears.

    Returns:
        the lower of both, or `None` for a model that does not know where its bands are.
    """
    return min(int(recording_rate), sampling_rate) if hasattr(model, "row_centres") else None


def check_rate(name: str, rate: int | None, expected: int | None, sampling_rate: int) -> None:
    """Raise a ValueError where a recording of `recorded_rate` `rate` is to be compared with those of another one."""
    if expected is not None and rate != expected:
        wanted = f"{expected} Hz" + (" or more" if expected == sampling_rate else "")
        raise ValueError(
            f"{name}: recordings that are compared must have one sampling rate, here {wanted}, got {rate} Hz. This "
            "model hears their bands together, and what one recording lacks changes all of them."
        )


def num_recorded_bands(model: Any, layer: int | None, rate: int | None) -> int | None:
    """Count the bands of a layer's grid that are centred below half a rate; `None` for all."""
    if rate is None:
        return None
    return sum(centre < rate / 2 for centre in model.row_centres(layer))


def tell_left_out_bands(model: Any, layer: int | None, rate: int | None) -> None:
    """Log, once for a process, which bands are left out."""
    if rate is None:
        return
    left_out = [centre for centre in model.row_centres(layer) if centre >= rate / 2]
    if left_out:
        logger.warning_once(
            f"The recordings have {rate} Hz and hold nothing above {rate / 2:g} Hz: of {len(model.row_centres(layer))} "
            f"bands, {len(left_out)} centred above ({', '.join(f'{centre:.0f} Hz' for centre in left_out)}) are left "
            "out."
        )
