"""Synthetic sounds: machines with and without faults, backgrounds of a workshop, and random sounds for training."""

from .background_sounds import BACKGROUND_TYPES, synthesize_background
from .machine_sounds import DEFAULT_SEVERITY, HEARD_MACHINE_TYPES, MACHINE_TYPES, synthesize_machine
from .random_sounds import synthesize_random_sound

__all__ = [
    "BACKGROUND_TYPES",
    "DEFAULT_SEVERITY",
    "HEARD_MACHINE_TYPES",
    "MACHINE_TYPES",
    "synthesize_background",
    "synthesize_machine",
    "synthesize_random_sound",
]
