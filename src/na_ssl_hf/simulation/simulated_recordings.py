"""Sound files of a user, mixed with background files in simulated rooms: what `na-ssl simulate` runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from tqdm.auto import tqdm

from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .rooms import draw_room
from .staged_folder import MANIFEST, common_gain, reduce_to_pcm16, staged_folder, write_float_wav, write_manifest
from .synthetic_dataset import SAMPLING_RATE, mix_in_room

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
LEVEL_MATCH_RMS = 0.05
SILENCE_RMS = 1e-5  # -100 dB of full scale, below the step of 16-bit PCM
_MIN_DURATION_S = 0.5


class _NoiseFile(NamedTuple):
    path: Path
    num_frames: int
    sampling_rate: int

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.sampling_rate


def simulate_recordings(
    targets_dir: str | Path,
    noises_dir: str | Path,
    out_dir: str | Path,
    snr_db: Sequence[float] = (-5.0, 0.0, 5.0),
    num_rooms: int = 20,
    seed: int = 0,
    level_match: bool = False,
    noise_coherence: float = 0.0,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Path:
    """Puts every sound file below `targets_dir` into a simulated room with noise; returns the path of the manifest.

    Reads WAV, FLAC and OGG of any rate, channel 0 of many channels. Writes at 16 kHz and 16 bit, sub-folders kept:
    `<out>/<snr>dB/<subfolder>/<stem>.wav` (channel 0 close, 1 far) and `<out>/clean/<subfolder>/<stem>.wav` (the
    target at the close microphone without noise and late reverberation, in both channels). All SNRs of a target share
    its room and noise crops, which depend on `seed` and its relative path, not on the other targets. One gain (a power
    of two, in the manifest) serves all files, so that nothing is clipped and levels stay comparable.

    Args:
        snr_db: SNRs at the close microphone in dB.
        num_rooms: number of different rooms; every target gets one of them.
        level_match: scales every target to an RMS of 0.05 first. Needed where loudness gives the label away (in the fan
            recordings of MIMII the faulty clips are simply louder), as a fixed SNR would keep that difference.
        noise_coherence: 0 for independent noises from the four corners, 1 for the same noise from all.

    Four different noise files are cropped at random for every target; shorter ones are repeated. Fewer than four files
    will do when they give four separate crops of the longest target's length. Raises FileNotFoundError for folders
    without sound files, OSError naming an unreadable file, FileExistsError for an `out_dir` in use, ValueError for
    silent or too short targets (named), too little noise and bad settings.
    """
    targets_dir, noises_dir, out_dir = Path(targets_dir), Path(noises_dir), Path(out_dir)
    snr_db = [float(snr) for snr in snr_db]
    if not snr_db or not np.isfinite(snr_db).all() or len(set(snr_db)) < len(snr_db):
        raise ValueError(f"snr_db must hold at least one finite value and no value twice, got {snr_db}")
    if num_rooms < 1:
        raise ValueError(f"num_rooms must be at least 1, got {num_rooms}")
    for name, folder in (("targets_dir", targets_dir), ("noises_dir", noises_dir)):
        inside = out_dir.resolve()
        if folder.resolve() in (inside, *inside.parents) or inside in folder.resolve().parents:
            raise ValueError(f"out_dir must not contain {name} or lie inside it, got {out_dir} and {folder}")
    targets = _targets(targets_dir)
    noises = [_noise_file(path) for path in _audio_files(noises_dir, "noises_dir")]
    _check_enough_noise(noises, max(_header(path).duration for path in targets.values()))

    @cache
    def room(index: int) -> ImpulseResponses:
        return simulate_impulse_responses(draw_room([seed, index]), SAMPLING_RATE)

    peak, rows = 0.0, []
    with staged_folder(out_dir, overwrite) as folder:
        for name, path in tqdm(targets.items(), desc="simulating", unit="file", disable=not show_progress):
            rng = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])
            target = _read_target(path, level_match)
            room_index = int(rng.integers(num_rooms))
            crops, sources = _noise_crops(noises, len(target), rng)
            mixture = mix_in_room(target, crops, room(room_index), snr_db, noise_coherence)
            row = {
                "target": path.relative_to(targets_dir).as_posix(),
                "noises": ";".join(source.relative_to(noises_dir).as_posix() for source in sources),
                "room": room_index,
            }
            for index, snr in enumerate(snr_db):
                file = f"{snr:g}dB/{name}"
                stereo = np.stack([mixture.close[index].numpy(), mixture.far[index].numpy()])  # (2, N)
                peak = max(peak, write_float_wav(folder / file, stereo, SAMPLING_RATE))
                rows.append({"file": file, **row, "snr_db": f"{snr:g}"})
            clean = mixture.clean[0].expand(2, -1).numpy()  # (2, N)
            peak = max(peak, write_float_wav(folder / "clean" / name, clean, SAMPLING_RATE))
            rows.append({"file": f"clean/{name}", **row, "snr_db": "clean"})
        gain = common_gain(peak)
        reduce_to_pcm16(folder, gain)
        write_manifest(folder, [{**row, "gain": gain} for row in rows])
    return out_dir / MANIFEST


def _audio_files(folder: Path, argument: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder, got {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{argument} must hold {', '.join(AUDIO_SUFFIXES)} files, got none below {folder}")
    return files


def _targets(folder: Path) -> dict[str, Path]:
    """Relative output path -> target file."""
    targets: dict[str, Path] = {}
    for path in _audio_files(folder, "targets_dir"):
        name = path.relative_to(folder).with_suffix(".wav").as_posix()
        if name in targets:
            raise ValueError(f"targets_dir must not hold two files of one stem, got {targets[name]} and {path}")
        targets[name] = path
    return targets


def _header(path: Path) -> soundfile._SoundFileInfo:
    try:
        return soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise OSError(f"cannot read sound file {path}: {error}") from error


def _noise_file(path: Path) -> _NoiseFile:
    header = _header(path)
    if header.frames == 0:
        raise ValueError(f"noise file {path} must not be empty, got 0 samples")
    return _NoiseFile(path, header.frames, header.samplerate)


def _check_enough_noise(noises: list[_NoiseFile], longest_s: float) -> None:
    crops = sum(int(noise.duration_s / longest_s) for noise in noises)
    if len(noises) < 4 and crops < 4:
        total = sum(noise.duration_s for noise in noises)
        raise ValueError(
            f"noises_dir must hold at least four files, or fewer that give four crops of {longest_s:.1f} s (the longest"
            f" target); got {len(noises)} of {total:.1f} s in all"
        )


def _read(path: Path, start: int = 0, frames: int = -1) -> tuple[np.ndarray, int]:
    """Channel 0 as float32 (N,) at the file's own rate."""
    try:
        samples, rate = soundfile.read(path, frames=frames, start=start, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OSError(f"cannot read sound file {path}: {error}") from error
    if not np.isfinite(samples[:, 0]).all():
        raise ValueError(f"sound file {path} must hold finite samples only, got NaN or infinity")
    return samples[:, 0], rate


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    return samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _read_target(path: Path, level_match: bool) -> np.ndarray:
    target = _resampled(*_read(path))
    if len(target) < _MIN_DURATION_S * SAMPLING_RATE:
        raise ValueError(
            f"target {path} must last at least {_MIN_DURATION_S} s, got {len(target) / SAMPLING_RATE:.2f} s"
        )
    rms = _rms(target)
    if rms < SILENCE_RMS:
        raise ValueError(f"target {path} must not be silent, got an RMS of {rms:.1e} of full scale")
    return target * np.float32(LEVEL_MATCH_RMS / rms) if level_match else np.ascontiguousarray(target)


def _noise_crops(noises: list[_NoiseFile], num_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Path]]:
    """Crops (4, N): of four different files where there are four, else non-overlapping ones of long files."""
    duration_s = num_samples / SAMPLING_RATE
    if len(noises) >= 4:
        chosen = [noises[index] for index in rng.choice(len(noises), size=4, replace=False)]
        starts = [rng.uniform(0, max(noise.duration_s - duration_s, 0) or noise.duration_s) for noise in chosen]
    else:
        # Slots of one crop each, shifted together by the time that is left over in their file.
        slots = [(noise, slot) for noise in noises for slot in range(int(noise.duration_s / duration_s))]
        picked = [slots[index] for index in rng.choice(len(slots), size=4, replace=False)]
        shifts = {noise.path: rng.uniform(0, noise.duration_s % duration_s) for noise in noises}
        chosen = [noise for noise, _ in picked]
        starts = [slot * duration_s + shifts[noise.path] for noise, slot in picked]
    crops = [_noise_crop(noise, start, num_samples) for noise, start in zip(chosen, starts, strict=True)]
    if max(_rms(crop) for crop in crops) < SILENCE_RMS:
        raise ValueError(f"noise must not be silent, got silence in {[str(noise.path) for noise in chosen]}")
    return np.stack(crops), [noise.path for noise in chosen]


def _noise_crop(noise: _NoiseFile, start_s: float, num_samples: int) -> np.ndarray:
    """`num_samples` at 16 kHz from `start_s` on; a file that is too short is repeated from there."""
    needed = int(np.ceil(num_samples * noise.sampling_rate / SAMPLING_RATE)) + 1
    start = int(start_s * noise.sampling_rate)
    if noise.num_frames >= needed:
        samples, _ = _read(noise.path, min(start, noise.num_frames - needed), needed)
    else:
        samples, _ = _read(noise.path)
        samples = np.take(samples, np.arange(start, start + needed), mode="wrap")
    return _resampled(samples, noise.sampling_rate)[:num_samples]
