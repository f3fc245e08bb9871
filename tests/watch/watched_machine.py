"""The sound of a machine that hums in a room, with and without a fault."""

import numpy as np

RATE = 16000


def machine_sound(seed: int, seconds: float, rate: int = RATE, fault: float = 0.0) -> np.ndarray:
    """Two channels `(2, N)` float32 of a hum and of noise in the room; `fault` is the amplitude of a whine."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    machine = 0.05 * np.sin(2 * np.pi * 200 * time) + 0.02 * generator.standard_normal(len(time))
    machine += fault * np.sin(2 * np.pi * 1500 * time)
    noise = 0.02 * generator.standard_normal(len(time))
    return np.stack([machine + 0.5 * noise, 0.3 * machine + noise]).astype(np.float32)
