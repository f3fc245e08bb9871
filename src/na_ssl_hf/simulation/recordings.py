"""Mix sound files of a user with background files in simulated rooms, as `na-ssl simulate` does."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from tqdm.auto import tqdm

from ..data.sound_files import find_sound_files
from ..hub.fbank import SAMPLING_RATE
from ..hub.sound_reader import SoundReader
from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .rooms import draw_room
from .staged_folder import MANIFEST, common_gain, reduce_to_pcm16, staged_folder, write_float_wav, write_manifest
from .synthetic_dataset import mix_in_room

LEVEL_MATCH_RMS = 0.05
SILENCE_RMS = 1e-5  # -100 dB of full scale, which is below the step of 16-bit PCM
_MIN_DURATION_S = 0.5
_OPEN_FILES = 64


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
    """Put every sound file below `targets_dir` into a simulated room with noise; return the path of the manifest.

    The files may have any rate and any format that scoring reads (`data.sound_files` says which files are taken);
    channel 0 is used. The results have 16 kHz and 16 bit, and keep the sub-folders:
    `<out>/<snr>dB/<subfolder>/<stem>.wav` has the close microphone in channel 0 and the far one in channel 1, and
    `<out>/clean/<subfolder>/<stem>.wav` has in both channels what the close microphone hears of the target without
    noise and late reverberation. All SNRs of a target share its room and noise crops, which depend on `seed` and its
    relative path, not on the other targets. All files share one gain (a power of two, which the manifest names), so
    that nothing is clipped and levels stay comparable.

    Four different noise files are cropped at random for every target; shorter ones are repeated. Fewer than four files
    will do when they give four separate crops of the longest target's length.

    Args:
        targets_dir: folder of the machine sounds.
        noises_dir: folder of the background sounds.
        out_dir: folder to write, which must be new or empty.
        snr_db: SNRs at the close microphone in dB.
        num_rooms: number of different rooms; every target gets one of them.
        seed: of the rooms and of all that is drawn for a target.
        level_match: whether every target is first scaled to an RMS of 0.05, because a fixed SNR would keep a loudness
            that gives the label away, as in the fan recordings of MIMII, whose faulty clips are simply louder.
        noise_coherence: 0 for independent noises from the four corners, 1 for the same noise from all.
        overwrite: whether a folder that an earlier call wrote is replaced. A call that is stopped leaves it as it was.
        show_progress: whether a progress bar is shown.

    Raises:
        FileNotFoundError: a folder is missing or holds no sound files, or a link to a sound leads nowhere.
        FileExistsError: `out_dir` is not empty.
        OSError: a file is damaged or truncated; it is named.
        ValueError: a target is silent, too short or not finite (it is named), there is too little noise, or a setting
            is out of its range.
    """
    targets_dir, noises_dir, out_dir = Path(targets_dir), Path(noises_dir), Path(out_dir)
    snrs = _checked_settings(targets_dir, noises_dir, out_dir, snr_db, num_rooms, seed, noise_coherence)
    targets = _targets(targets_dir)
    noises = [_noise_file(path) for path in _sound_files(noises_dir, "noises_dir")]
    _check_enough_noise(noises, max(_duration_s(path) for path in targets.values()))

    @cache
    def room(index: int) -> ImpulseResponses:
        return simulate_impulse_responses(draw_room([seed, index]), SAMPLING_RATE)

    peak, rows = 0.0, []
    with staged_folder(out_dir, overwrite) as folder, _open_readers(_OPEN_FILES) as reader_of:
        for name, path in tqdm(targets.items(), desc="simulating", unit="file", disable=not show_progress):
            rng = np.random.default_rng([seed, int(hashlib.sha256(os.fsencode(name)).hexdigest()[:8], 16)])
            target = _read_target(path, level_match)
            room_index = int(rng.integers(num_rooms))
            crops, sources = _noise_crops(noises, len(target), rng, reader_of)
            mixture = mix_in_room(target, crops, room(room_index), snrs, noise_coherence)
            row = {
                "target": path.relative_to(targets_dir).as_posix(),
                "noises": ";".join(source.relative_to(noises_dir).as_posix() for source in sources),
                "room": room_index,
            }
            signals = {
                f"{snr:g}dB": torch.stack([close, far])
                for snr, close, far in zip(snrs, mixture.close, mixture.far, strict=True)
            }
            signals["clean"] = mixture.clean[0].expand(2, -1)
            for tree, stereo in signals.items():  # (2, N)
                peak = max(peak, write_float_wav(folder / tree / name, stereo.numpy(), SAMPLING_RATE))
                rows.append({"file": f"{tree}/{name}", **row, "snr_db": tree.removesuffix("dB")})
        gain = common_gain(peak)
        reduce_to_pcm16(folder, gain)
        write_manifest(folder, [{**row, "gain": gain} for row in rows])
    return out_dir / MANIFEST


@contextmanager
def _open_readers(limit: int) -> Iterator[Callable[[Path], SoundReader]]:
    """Give a function that returns the open reader of a file; the last `limit` of them stay open until the block ends.

    An open reader has checked its file. Opening it for every crop would check it, and warn of it, again and again.
    """
    readers: OrderedDict[Path, SoundReader] = OrderedDict()

    def reader_of(path: Path) -> SoundReader:
        if path not in readers:
            if len(readers) >= limit:
                readers.popitem(last=False)[1].close()
            readers[path] = SoundReader(str(path), str(path))
        readers.move_to_end(path)
        return readers[path]

    try:
        yield reader_of
    finally:
        for reader in readers.values():
            reader.close()


def _checked_settings(
    targets_dir: Path,
    noises_dir: Path,
    out_dir: Path,
    snr_db: Sequence[float],
    num_rooms: int,
    seed: int,
    noise_coherence: float,
) -> list[float]:
    """Return the SNRs as numbers; raise ValueError for settings out of their ranges."""
    snrs = [float(snr) for snr in snr_db]
    # The folders are named by the SNRs as they are printed.
    if not snrs or not np.isfinite(snrs).all() or len({f"{snr:g}" for snr in snrs}) < len(snrs):
        raise ValueError(f"snr_db must hold at least one finite value and no value twice, got {snrs}")
    if num_rooms < 1:
        raise ValueError(f"num_rooms must be at least 1, got {num_rooms}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not 0 <= noise_coherence <= 1:
        raise ValueError(f"noise_coherence must lie in [0, 1], got {noise_coherence}")
    for name, folder in (("targets_dir", targets_dir), ("noises_dir", noises_dir)):
        inside = out_dir.resolve()
        if folder.resolve() in (inside, *inside.parents) or inside in folder.resolve().parents:
            raise ValueError(f"out_dir must not contain {name} or lie inside it, got {out_dir} and {folder}")
    return snrs


def _sound_files(folder: Path, argument: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder, got {folder}")
    try:
        return find_sound_files([folder])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{argument} must hold sound files: {error}") from error


def _targets(folder: Path) -> dict[str, Path]:
    """Map the relative path of every output file to its target file."""
    targets: dict[str, Path] = {}
    for path in _sound_files(folder, "targets_dir"):
        name = path.relative_to(folder).with_suffix(".wav").as_posix()
        if name in targets:
            raise ValueError(f"targets_dir must not hold two files of one stem, got {targets[name]} and {path}")
        targets[name] = path
    return targets


def _duration_s(path: Path) -> float:
    with SoundReader(str(path), str(path)) as file:
        return file.num_frames / file.sampling_rate


def _noise_file(path: Path) -> _NoiseFile:
    with SoundReader(str(path), str(path)) as file:
        if file.num_frames == 0:
            raise ValueError(f"noise file {path} must not be empty, got 0 samples")
        # The crops may all lie before the place where a file was cut off, and opening does not notice it in every FLAC.
        file.read(file.num_frames - 1, 1)
        return _NoiseFile(path, file.num_frames, file.sampling_rate)


def _check_enough_noise(noises: list[_NoiseFile], longest_s: float) -> None:
    crops = sum(int(noise.duration_s / longest_s) for noise in noises)
    if len(noises) < 4 and crops < 4:
        total = sum(noise.duration_s for noise in noises)
        raise ValueError(
            f"noises_dir must hold at least four files, or fewer that give four crops of {longest_s:.1f} s (the longest"
            f" target); got {len(noises)} of {total:.1f} s in all"
        )


def _first_channel(file: SoundReader, start: int = 0, frames: int | None = None) -> np.ndarray:
    """Return channel 0 as float32 (N,) at the file's own rate."""
    samples = file.read(start, frames)[0]
    if not np.isfinite(samples).all():
        raise ValueError(f"sound file {file.name} must hold finite samples only, got NaN or infinity")
    return samples


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    return samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _read_target(path: Path, level_match: bool) -> np.ndarray:
    with SoundReader(str(path), str(path)) as file:
        target = _resampled(_first_channel(file), file.sampling_rate)
    if len(target) < _MIN_DURATION_S * SAMPLING_RATE:
        raise ValueError(
            f"target {path} must last at least {_MIN_DURATION_S} s, got {len(target) / SAMPLING_RATE:.2f} s"
        )
    rms = _rms(target)
    if rms < SILENCE_RMS:
        raise ValueError(f"target {path} must not be silent, got an RMS of {rms:.1e} of full scale")
    return target * np.float32(LEVEL_MATCH_RMS / rms) if level_match else np.ascontiguousarray(target)


def _noise_crops(
    noises: list[_NoiseFile], num_samples: int, rng: np.random.Generator, reader_of: Callable[[Path], SoundReader]
) -> tuple[np.ndarray, list[Path]]:
    """Draw crops (4, N) and return them with their files.

    They come from four different files where there are four, and do not overlap where fewer long files give them.
    """
    duration_s = num_samples / SAMPLING_RATE
    if len(noises) >= 4:
        chosen = [noises[index] for index in rng.choice(len(noises), size=4, replace=False)]
        starts = [rng.uniform(0, max(noise.duration_s - duration_s, 0) or noise.duration_s) for noise in chosen]
    else:
        # The slots of a file have the length of a crop and are shifted together by the time that is left over in it.
        slots = [(noise, slot) for noise in noises for slot in range(int(noise.duration_s / duration_s))]
        picked = [slots[index] for index in rng.choice(len(slots), size=4, replace=False)]
        shifts = {noise.path: rng.uniform(0, noise.duration_s % duration_s) for noise in noises}
        chosen = [noise for noise, _ in picked]
        starts = [slot * duration_s + shifts[noise.path] for noise, slot in picked]
    crops = [
        _noise_crop(reader_of(noise.path), start, num_samples) for noise, start in zip(chosen, starts, strict=True)
    ]
    if max(_rms(crop) for crop in crops) < SILENCE_RMS:
        raise ValueError(f"noise must not be silent, got silence in {[str(noise.path) for noise in chosen]}")
    return np.stack(crops), [noise.path for noise in chosen]


def _noise_crop(file: SoundReader, start_s: float, num_samples: int) -> np.ndarray:
    """Read `num_samples` at 16 kHz from `start_s` on; a file that is too short is repeated from there."""
    needed = int(np.ceil(num_samples * file.sampling_rate / SAMPLING_RATE)) + 1
    start = int(start_s * file.sampling_rate)
    if file.num_frames >= needed:
        samples = _first_channel(file, min(start, file.num_frames - needed), needed)
    else:
        samples = np.take(_first_channel(file), np.arange(start, start + needed), mode="wrap")
    return _resampled(samples, file.sampling_rate)[:num_samples]
