"""Embeddings on disk: found by content, made anew batch by batch, shared among processes."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from na_ssl_hf.evaluation.systems.content_hashes import ContentHashes, content_hash
from na_ssl_hf.evaluation.systems.embedders import Embedder, log_mel_embedder
from na_ssl_hf.evaluation.systems.embedding_cache import cached_embeddings
from na_ssl_hf.evaluation.systems.processes import Processes, launched_processes
from two_processes import run_on_two_processes


@dataclass
class Counting:
    """A log-mel embedder that remembers what it was asked for, and may fail at one file."""

    asked: list[list[str]] = field(default_factory=list)
    fails_at: str = ""

    def embedder(self) -> Embedder:
        plain = log_mel_embedder()

        def embed(files):
            self.asked.append([file.name for file in files])
            if self.fails_at in self.asked[-1]:
                raise OSError(f"{self.fails_at} is broken")
            return plain.embed(files)

        return replace(plain, embed=embed)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "sounds" / f"{index}.wav" for index in range(7)]
    paths[0].parent.mkdir()
    for path in paths:
        soundfile.write(path, 0.1 * rng.standard_normal((8000, 2)), 16000)
    return paths


def test_second_time_nothing_is_computed_and_numbers_are_the_same_bits(files, tmp_path):
    counting = Counting()
    first = cached_embeddings(counting.embedder(), files, tmp_path / "cache", batch_size=3)
    assert counting.asked == [["0.wav", "1.wav", "2.wav"], ["3.wav", "4.wav", "5.wav"], ["6.wav"]]
    again = cached_embeddings(counting.embedder(), files, tmp_path / "cache", batch_size=3)
    assert len(counting.asked) == 3
    assert torch.equal(first, again)
    assert torch.equal(first, log_mel_embedder().embed(files))


def test_recordings_are_known_by_content_not_by_name(files, tmp_path):
    counting = Counting()
    embeddings = cached_embeddings(counting.embedder(), files, tmp_path / "cache", batch_size=1)
    moved = shutil.copyfile(files[4], tmp_path / "elsewhere.wav")
    found = cached_embeddings(counting.embedder(), [moved], tmp_path / "cache")
    assert len(counting.asked) == len(files)
    assert torch.equal(found[0], embeddings[4])
    soundfile.write(files[4], np.zeros((8000, 2)), 16000)
    changed = cached_embeddings(counting.embedder(), [files[4]], tmp_path / "cache")
    assert counting.asked[-1] == ["4.wav"]
    assert not torch.equal(changed[0], embeddings[4])


def test_an_interrupted_batch_is_made_anew_as_a_whole(files, tmp_path):
    whole = cached_embeddings(log_mel_embedder(), files, tmp_path / "whole", batch_size=3)
    interrupted = Counting(fails_at="6.wav")
    with pytest.raises(OSError, match=r"6\.wav is broken"):
        cached_embeddings(interrupted.embedder(), files, tmp_path / "cache", batch_size=3)
    # As a kill between two files of a batch leaves it, and as one in the middle of a file would.
    place = tmp_path / "cache" / log_mel_embedder().key
    (place / f"{content_hash(files[4])}.safetensors").unlink()
    (place / f"{content_hash(files[0])}.safetensors").write_bytes(b"half")
    resumed = Counting()
    assert torch.equal(cached_embeddings(resumed.embedder(), files, tmp_path / "cache", batch_size=3), whole)
    assert resumed.asked == [["0.wav", "1.wav", "2.wav"], ["3.wav", "4.wav", "5.wav"], ["6.wav"]]
    assert not list(place.glob(".*"))


def test_embedders_of_another_key_do_not_share(files, tmp_path):
    counting = Counting()
    cached_embeddings(counting.embedder(), files, tmp_path, batch_size=7)
    cached_embeddings(replace(counting.embedder(), key="other"), files, tmp_path, batch_size=7)
    assert len(counting.asked) == 2
    assert log_mel_embedder("least_squares").key != log_mel_embedder().key


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_of_processes_cover_the_work_once_and_in_order(count):
    work = list("abcdefg")
    shares = [Processes(index, count).share(work) for index in range(count)]
    assert sorted(item for share in shares for item in share) == work
    longest = max(map(len, shares))
    assert [share[turn] for turn in range(longest) for share in shares if turn < len(share)] == work


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_processes() as processes:
        assert processes == Processes()
    assert Processes().gather([1, 2]) == [1, 2]


def test_launched_processes_are_disconnected_at_the_end(tmp_path):
    script = tmp_path / "gather.py"
    script.write_text(
        "import torch.distributed\n"
        "from na_ssl_hf.evaluation.systems.processes import launched_processes\n"
        "with launched_processes() as processes:\n"
        "    gathered = processes.gather(processes.share([0, 1, 2]))\n"
        "if processes.is_main:\n"
        "    print(gathered, torch.distributed.is_initialized())\n"
    )
    done = run_on_two_processes([script])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[0] == "[0, 1, 2] False"


def test_no_files_and_missing_files(files, tmp_path):
    with pytest.raises(ValueError, match="files must hold at least one recording"):
        cached_embeddings(log_mel_embedder(), [], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav"):
        cached_embeddings(log_mel_embedder(), [tmp_path / "nothing.wav"], tmp_path)


def test_a_file_is_hashed_once_until_it_changes(files, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "na_ssl_hf.evaluation.systems.content_hashes.content_hash",
        lambda file: hashed.append(file.name) or content_hash(file),
    )
    hashes = ContentHashes()
    first = [hashes.of(file) for file in files]
    assert [hashes.of(file) for file in files] == first
    assert len(set(first)) == len(hashed) == len(files)
    soundfile.write(files[2], np.zeros((4000, 2)), 16000)
    assert hashes.of(files[2]) != first[2]
    assert hashed[len(files) :] == ["2.wav"]
