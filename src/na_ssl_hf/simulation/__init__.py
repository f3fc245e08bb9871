"""Simulate rooms, their impulse responses, two-channel mixtures in them, and recordings on disk.

pyroomacoustics is imported only when impulse responses are simulated, so reading a saved room pool does not need it.
"""

from .conditions import Conditions
from .dcase_benchmark import write_dcase_benchmark
from .fitted_installations import FittedInstallations
from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .installation import Installation, Site, draw_installation
from .mixing import TwoChannelMixture, mix_two_channel, spatial_noises
from .mixture_stream import calibration_recordings, mix_examples, mixtures_of_process, simulated_mixtures
from .recordings import simulate_recordings
from .room_pool import RoomPool
from .rooms import Room, draw_room
from .synthetic_dataset import write_two_channel_dataset

__all__ = [
    "Conditions",
    "FittedInstallations",
    "ImpulseResponses",
    "Installation",
    "Room",
    "RoomPool",
    "Site",
    "TwoChannelMixture",
    "calibration_recordings",
    "draw_installation",
    "draw_room",
    "mix_examples",
    "mix_two_channel",
    "mixtures_of_process",
    "simulate_impulse_responses",
    "simulate_recordings",
    "simulated_mixtures",
    "spatial_noises",
    "write_dcase_benchmark",
    "write_two_channel_dataset",
]
