"""The normal recordings that a scorer is fitted on: copies count once, and groups are left out together."""

import hashlib
import random
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import torch
from transformers.utils import logging

from .memory_bank import MemoryBank
from .pooling import LogMelStatistics
from .recording import Piece, Unreadable, Windows

logger = logging.get_logger(__name__)

# Every group costs a memory of its own; where there are more, several are left out together.
MOST_FOLDS = 50
# So many names a warning lists.
LISTED_NAMES = 5
# With fewer recordings, a comparison of two halves says nothing.
LEAST_TO_CHOOSE = 8


class NormalRecordings:
    """Collects the vectors of normal recordings, and scores each by a memory without it.

    Args:
        domains, groups: a label for each recording that comes, readable or not; `None` for none.

    Attributes:
        left_out: the recordings that do not count, with the reason.
        was_cut: whether a recording was cut into windows.
        rate: the sampling rate that says which bands the recordings hold, see `recorded_rate`; `None` for all.
        vectors: `(M, F, D)`, those of all windows, after `take`.
        domains: for each of them, after `take`; `None` for none.
        num_groups: the number of groups, after `take`; `None` where there are none.
    """

    vectors: torch.Tensor
    domains: list[str] | None
    num_groups: int | None

    def __init__(self, domains: Iterable[str] | None, groups: Iterable[Hashable] | None):
        for name, labels in (("domains", domains), ("groups", groups)):
            if labels is not None and (isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable)):
                raise ValueError(f"`{name}` must be a list with one entry for each recording, got {labels!r}.")
        self._given = {
            name: _labels(name, labels)
            for name, labels in (("domains", domains), ("groups", groups))
            if labels is not None
        }
        self.left_out: list[tuple[str, str]] = []
        self.was_cut = False
        self.rate: int | None = None
        self._num_given = 0
        self._first_of_samples: dict[str, str] = {}  # a hash -> the recording that had these samples first
        self._of_recordings: list[torch.Tensor] = []  # (windows, F, D) each
        self._kept: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self._samples, self._windows = hashlib.blake2b(digest_size=16), list[torch.Tensor]()

    def add(self, item: Piece | Unreadable, vector: torch.Tensor | None) -> None:
        """Take the next window of a recording with its vector `(F, D)`, or a recording that cannot be read."""
        if isinstance(item, Unreadable):
            self.left_out.append((item.name, item.reason))
            self._num_given += 1
            self._begin()
            return
        assert vector is not None
        self._samples.update(item.samples.cpu().contiguous().numpy().data)
        self._windows.append(vector)
        self.was_cut |= item.was_cut
        self.rate = item.rate
        if not item.is_last:
            return
        content = self._samples.hexdigest()
        if content in self._first_of_samples:
            first = self._first_of_samples[content]
            why = "it was given before" if first == item.name else f"it is a duplicate of {first}"
            self.left_out.append((item.name, why))
        else:
            self._first_of_samples[content] = item.name
            self._of_recordings.append(torch.stack(self._windows))
            self._kept.append(self._num_given)
        self._num_given += 1
        self._begin()

    def take(self, batches: Iterable[Iterable[tuple[Piece | Unreadable, torch.Tensor | None]]]) -> None:
        """Take all pieces with their vectors, see `add`; then check and put together what came.

        Raises:
            ValueError: no recording, another number of domains or groups than recordings, or a single group.
        """
        for batch in batches:
            for item, vector in batch:
                self.add(item, vector)
        if not self._of_recordings:
            left_out = f"; left out: {self._listed()}" if self.left_out else ""
            raise ValueError(f"`recordings` must hold at least one normal recording, got none{left_out}.")
        for name, labels in self._given.items():
            if len(labels) != self._num_given:
                raise ValueError(
                    f"`{name}` must have one entry for each of the {self._num_given} recordings, got {len(labels)}."
                )
        if self.left_out:
            logger.warning(
                f"{len(self.left_out)} of {self._num_given} recordings are left out, {len(self._kept)} count: "
                f"{self._listed()}"
            )
        self.vectors = torch.cat(self._of_recordings)
        domains = self._labels("domains")
        self.domains = None if domains is None else [str(domains[index]) for index in self._recording_of_window()]
        groups = self._labels("groups")
        self.num_groups = None if groups is None else len(set(groups))
        if self.num_groups == 1:
            raise ValueError("`groups` must name at least two groups, got one.")

    def join_log_mel(self, num_statistics: int, num_shares: int = 1) -> list[LogMelStatistics]:
        """Learn how log-mel statistics are compared beside the vectors, and join them in `vectors`.

        Args:
            num_statistics: how many numbers at the end of a vector are statistics.
            num_shares: what `vectors` holds side by side, each with its statistics: so many shares of a noise-aware
                model, and where they are several the same of a pseudo fault after them, see `choose_share`.

        Returns:
            what was learned of the recordings, for each share.
        """
        parts = self.vectors.chunk(num_shares if num_shares == 1 else 2 * num_shares, dim=-1)
        pairs = [(part[..., :-num_statistics], part[..., -num_statistics:]) for part in parts]
        learned = [LogMelStatistics.learned(*pair) for pair in pairs[:num_shares]]
        self.vectors = torch.cat(
            [learned[index % num_shares].joined(*pair) for index, pair in enumerate(pairs)], dim=-1
        )
        return learned

    def choose_share(self, bank: MemoryBank, shares: Sequence[float]) -> float:
        """Choose how much of a noise-aware model the scorer hears, on normal recordings alone, and keep those vectors.

        Every recording has a copy with a pseudo fault, see `with_pseudo_faults`. Memories of one half of the recordings
        score the other half and its copies. A share is worth the AUC between them: a model that takes noise out brings
        normal recordings together, one that takes the machine out brings faults to them as well. The middle share of
        both models is chosen unless another one is better by two standard errors, paired over the faults.

        Args:
            bank: the memory whose settings are used; it is not changed.
            shares: what `vectors` holds side by side, for recordings and then for their copies; the mean of both models
                (0.5) among them.

        Returns:
            the share; `vectors` then are those of that share alone.
        """
        parts = self.vectors.chunk(2 * len(shares), dim=-1)
        normal, faulty = parts[: len(shares)], parts[len(shares) :]
        chosen = middle = shares.index(0.5)
        halves = self._halves()
        if len(self._kept) >= LEAST_TO_CHOOSE:
            pairs = list(zip(normal, faulty, strict=True))
            try:
                of_shares = [torch.cat([self._won(bank, *pair, halves == half) for half in (0, 1)]) for pair in pairs]
            except ValueError as error:
                raise ValueError(
                    f"`na_share` must be a number, got 'auto': half a memory cannot be fitted: {error}"
                ) from error
            won = torch.stack(of_shares)  # (shares, M)
            gains = won - won[middle]
            best = int(won.mean(dim=1).argmax())
            if gains[best].mean() > 2 * gains[best].std() / gains.shape[1] ** 0.5:
                chosen = best
        self.vectors = normal[chosen].clone()
        return shares[chosen]

    def _halves(self) -> torch.Tensor:
        """Put every second recording of a domain into the other half, `(M,)` of 0 and 1."""
        seen: Counter[Hashable] = Counter()
        half_of_recording = []
        for domain in self._labels("domains") or [None] * len(self._kept):
            half_of_recording.append(seen[domain] % 2)
            seen[domain] += 1
        return torch.tensor([half_of_recording[index] for index in self._recording_of_window()])

    def _won(
        self, bank: MemoryBank, normal: torch.Tensor, faulty: torch.Tensor, is_remembered: torch.Tensor
    ) -> torch.Tensor:
        """Compute for every faulty copy of what is not remembered the share of normal vectors that it scores above."""
        domains = None
        if self.domains is not None:
            domains = [domain for domain, is_in in zip(self.domains, is_remembered.tolist(), strict=True) if is_in]
        memory = replace(bank).fit(normal[is_remembered], domains=domains)
        of_normal, of_faulty = (torch.as_tensor(memory.score(each[~is_remembered])) for each in (normal, faulty))
        above = (of_faulty[:, None] > of_normal).double() + 0.5 * (of_faulty[:, None] == of_normal)
        return above.mean(dim=1)

    def self_scores(self, bank: MemoryBank, windows: Windows | None) -> torch.Tensor:
        """Score each recording by a memory without it, or without its group, `(N,)`. Higher is more anomalous.

        Args:
            bank: fitted with `vectors` and `domains`.
            windows: how the scores of windows become one.

        Raises:
            ValueError: too few recordings, or a memory without a group lacks what the settings need.
        """
        groups = self._labels("groups")
        if groups is None and all(len(vectors) == 1 for vectors in self._of_recordings):
            return bank.self_scores(exact=True)
        labels: list[Hashable] = list(range(len(self._kept))) if groups is None else groups
        names = list(dict.fromkeys(labels))
        if len(names) < 2:
            raise ValueError("`recordings` must be at least 2, so that one can be left out, got 1.")
        # A seed, so that the same recordings give the same threshold.
        random.Random(0).shuffle(names)
        fold_of = {name: index % MOST_FOLDS for index, name in enumerate(names)}
        folds = [fold_of[label] for label in labels]
        recording_of_window = self._recording_of_window()
        fold_of_window = torch.tensor([folds[index] for index in recording_of_window])
        scores = torch.empty(len(labels))
        for fold in logging.tqdm(sorted(set(folds)), desc="Leave out", disable=len(self.vectors) < 1000):
            held = fold_of_window == fold
            domains = (
                None
                if self.domains is None
                else [domain for domain, is_held in zip(self.domains, held.tolist(), strict=True) if not is_held]
            )
            try:
                without = replace(bank).fit(self.vectors[~held], domains=domains)
            except ValueError as error:
                raise ValueError(f"The memory without a group cannot be fitted: {error}") from error
            of_windows = torch.as_tensor(without.score(self.vectors[held]))
            held_recordings = torch.tensor(recording_of_window)[held]
            for index in held_recordings.unique().tolist():
                own = of_windows[held_recordings == index]
                scores[index] = own[0] if windows is None else windows.aggregated(own)
        return scores

    def _recording_of_window(self) -> list[int]:
        return [index for index, vectors in enumerate(self._of_recordings) for _ in range(len(vectors))]

    def _labels(self, name: str) -> list | None:
        labels = self._given.get(name)
        return None if labels is None else [labels[index] for index in self._kept]

    def _listed(self) -> str:
        listed = [f"{name}: {why}" for name, why in self.left_out]
        return "; ".join(listed[:LISTED_NAMES]) + ("; ..." if len(listed) > LISTED_NAMES else "")


def _labels(name: str, labels: Iterable[Hashable]) -> list[Hashable]:
    try:
        listed: list[Hashable] = [labels] if isinstance(labels, str) else list(labels)
        set(listed)
    except TypeError as error:
        raise ValueError(f"`{name}` must be a label for each recording, got {labels!r:.80}.") from error
    return listed


def with_pseudo_faults(waveforms: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Add to the close channel a sound that the far one does not hear, as a fault inside the machine would.

    It is noise of a random band, from nearly a tone to two octaves, steady or in pulses, 6 to 18 dB below the close
    channel. It depends on the samples alone, so that neither order nor batches have an influence.

    Args:
        waveforms: `(B, 2, N)`, the close channel first.
        sampling_rate: in Hz.

    Returns:
        `(B, 2, N)`, of the same dtype and device.
    """
    faulty = waveforms.clone()
    num_samples = waveforms.shape[-1]
    time = torch.arange(num_samples) / sampling_rate
    frequencies = torch.fft.rfftfreq(num_samples, 1 / sampling_rate).clamp_min(1.0)
    for clip in faulty:
        content = clip.detach().cpu().float()
        random = torch.Generator().manual_seed(zlib.crc32(content.contiguous().numpy().data))
        centre, width, pulses, is_steady, level = torch.rand(5, generator=random).tolist()
        octaves = (frequencies / (150.0 * (0.4 * sampling_rate / 150.0) ** centre)).log2()
        band = torch.exp(-0.5 * (octaves / (0.02 * 50.0**width)) ** 2)
        sound = torch.fft.irfft(band * torch.fft.rfft(torch.randn(num_samples, generator=random)), num_samples)
        if is_steady < 0.5:
            sound = sound * (torch.sin(2 * torch.pi * (2.0 + 18.0 * pulses) * time) > 0.5)
        gain = 10 ** (-(6.0 + 12.0 * level) / 20) * content[0].square().mean().sqrt()
        sound = gain * sound / sound.square().mean().sqrt().clamp_min(1e-12)
        clip[0] += sound.to(clip)
    return faulty
