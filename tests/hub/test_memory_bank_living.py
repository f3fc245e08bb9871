"""A fitted bank changes: it takes more clips, forgets clips, restores earlier versions, and is saved in between."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import some_calibration

from na_ssl_hf.hub.memory_bank import MEMORY_BANK_FILE, MemoryBank

SETTINGS = [
    {},
    {"normalize": False, "distance": "euclidean"},
    {"rescaling": "variance_min"},
    {"rescaling": "ratio"},
    {"rescaling": "lof"},
    {"separate_domains": True},
    {"memmixup_neighbors": 3},
    {"smote_ratio": 0.7},
]


def random_embeddings(n, f=3, d=16, seed=0):
    return torch.randn(n, f, d, generator=torch.Generator().manual_seed(seed)) + 0.5


TRAIN, TEST = random_embeddings(40), random_embeddings(5, seed=1)
DOMAINS = ["source", "source", "source", "source", "target"] * 8


def part(bank, clips, method="fit"):
    return getattr(bank, method)(TRAIN[clips], [DOMAINS[clip] for clip in clips])


def assert_same(bank, other):
    torch.testing.assert_close(bank.score(TEST), other.score(TEST), rtol=0, atol=0)
    torch.testing.assert_close(bank.self_scores(), other.self_scores(), rtol=0, atol=0)
    assert bank.num_clips_ == other.num_clips_


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_change_gives_the_bank_of_its_clips_and_can_be_undone(settings, tmp_path):
    bank = part(MemoryBank(max_clips=30, **settings), range(25))
    bank.calibration = some_calibration(threshold=0.0)
    held = [list(range(25))]
    for version, new in enumerate((range(25, 28), range(28, 36), range(36, 40)), start=1):
        part(bank, new, "partial_fit")
        held.append([*held[-1], *new][-30:])
        bank.calibration = some_calibration(threshold=float(version))
    bank.forget([29, 0, 7])
    held.append([clip for position, clip in enumerate(held[-1]) if position not in (0, 7, 29)])
    assert bank.version_ == 4
    bank.save_pretrained(tmp_path)
    loaded = MemoryBank.from_pretrained(tmp_path)
    for version in (4, 3, 1, 0):
        fresh = part(MemoryBank(**settings), held[version])
        for same in (bank, loaded):
            same.rollback(version)
            assert same.version_ == version
            assert same.calibration.threshold == float(min(version, 3))
            assert_same(same, fresh)
    # From an earlier version it goes on as from any other.
    part(bank, range(25, 28), "partial_fit")
    assert bank.version_ == 1
    assert_same(bank, part(MemoryBank(**settings), held[1]))


def test_the_first_clips_may_come_by_partial_fit():
    bank = MemoryBank(max_clips=10).partial_fit(TRAIN[:15])
    assert bank.version_ == 0
    assert_same(bank, MemoryBank().fit(TRAIN[5:15]))


def test_more_new_clips_than_the_cap_replace_everything_and_come_back():
    bank = MemoryBank(max_clips=10).fit(TRAIN[:8]).partial_fit(TRAIN[8:30])
    assert_same(bank, MemoryBank().fit(TRAIN[20:30]))
    assert_same(bank.rollback(0), MemoryBank().fit(TRAIN[:8]))


def test_a_refit_starts_a_new_history():
    bank = MemoryBank().fit(TRAIN[:8]).partial_fit(TRAIN[8:9]).fit(TRAIN[:5])
    assert bank.version_ == 0
    with pytest.raises(ValueError, match=r"`version` must be an int in 0..0, got 1"):
        bank.rollback(1)


@pytest.mark.parametrize("max_history", [0, 2])
def test_history_is_as_long_as_asked(max_history):
    bank = MemoryBank(max_history=max_history).fit(TRAIN[:8])
    for clip in range(8, 12):
        bank.partial_fit(TRAIN[clip : clip + 1])
    with pytest.raises(ValueError, match=rf"`version` must be an int in {4 - max_history}..4, got 1"):
        bank.rollback(1)
    assert_same(bank.rollback(4 - max_history), MemoryBank().fit(TRAIN[: 12 - max_history]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: bank.forget([]), "at least one int"),
        (lambda bank: bank.forget(3), "sequence"),
        (lambda bank: bank.forget([0.0]), "sequence of at least one int"),
        (lambda bank: bank.forget([True]), "sequence of at least one int"),
        (lambda bank: bank.forget([10]), r"different positions in 0..9, got \[10\]"),
        (lambda bank: bank.forget([-1]), r"different positions in 0..9"),
        (lambda bank: bank.forget([1, 1]), r"different positions in 0..9"),
        (lambda bank: bank.forget(range(10)), "at least one clip in the memory, got all 10"),
        (lambda bank: bank.forget(range(9)), "needs at least 2 clips"),
        (lambda bank: bank.partial_fit(TRAIN[:, :2]), "3 bands of 16 channels"),
        (lambda bank: bank.partial_fit(torch.full((1, 3, 16), torch.nan)), "finite"),
        (lambda bank: bank.partial_fit(TRAIN[:2], ["source"]), "2 clips, got 1"),
        (lambda bank: bank.rollback("0"), "`version` must be an int"),
    ],
)
def test_a_refused_change_changes_nothing(change, message):
    bank = MemoryBank(rescaling="ratio").fit(TRAIN[:10])
    with pytest.raises(ValueError, match=message):
        change(bank)
    assert bank.version_ == 0
    assert_same(bank, MemoryBank(rescaling="ratio").fit(TRAIN[:10]))


def test_clips_that_the_settings_need_cannot_be_forgotten():
    bank = part(MemoryBank(smote_ratio=0.9), range(20))
    with pytest.raises(ValueError, match="at least 3 clips of the target domain, got 2"):
        bank.forget([4, 9])
    with pytest.raises(ValueError, match="needs domains"):
        bank.partial_fit(TRAIN[:1])
    assert_same(bank, part(MemoryBank(smote_ratio=0.9), range(20)))


def test_an_unfitted_bank_has_nothing_to_forget():
    for change in (lambda: MemoryBank().forget([0]), lambda: MemoryBank().rollback(0)):
        with pytest.raises(ValueError, match="not fitted yet"):
            change()


def saved_parts(directory):
    with safe_open(directory / MEMORY_BANK_FILE, "pt") as file:
        header = json.loads(file.metadata()["memory_bank"])
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    "damage",
    [
        lambda header, tensors: header["history"].pop(),
        lambda header, tensors: header["history"][0].update(num_before=99),
        lambda header, tensors: header["history"][0].update(num_before="9"),
        lambda header, tensors: header["history"][0].update(calibration=[]),
        lambda header, tensors: header.update(version=0),
        lambda header, tensors: header.update(version="1"),
        lambda header, tensors: tensors.pop("history.0.clips"),
        lambda header, tensors: tensors["history.1.removed"].fill_(50),
        lambda header, tensors: tensors.update({"history.1.clips": torch.ones(3, 1, 8)}),
    ],
)
def test_a_damaged_history_is_named(tmp_path, damage):
    MemoryBank(max_clips=8).fit(TRAIN[:8]).partial_fit(TRAIN[8:10]).forget([3]).save_pretrained(tmp_path)
    header, tensors = saved_parts(tmp_path)
    damage(header, tensors)
    save_file(tensors, tmp_path / MEMORY_BANK_FILE, metadata={"memory_bank": json.dumps(header)})
    with pytest.raises(OSError, match="not a readable memory bank"):
        MemoryBank.from_pretrained(tmp_path)


def test_a_saved_coreset_bank_is_whole_and_its_damage_is_named(tmp_path):
    bank = MemoryBank(coreset_size=5, rescaling="ratio").fit(TRAIN)
    bank.save_pretrained(tmp_path)
    assert_same(MemoryBank.from_pretrained(tmp_path), bank)
    header, tensors = saved_parts(tmp_path)
    tensors["coreset_"][-1] = 40
    save_file(tensors, tmp_path / MEMORY_BANK_FILE, metadata={"memory_bank": json.dumps(header)})
    with pytest.raises(OSError, match="`coreset_` must hold ascending positions"):
        MemoryBank.from_pretrained(tmp_path)


def test_a_bank_saved_before_banks_had_a_history_is_read(tmp_path):
    bank = MemoryBank(rescaling="variance_min").fit(TRAIN)
    bank.save_pretrained(tmp_path)
    header, tensors = saved_parts(tmp_path)
    old = ("distance", "normalize", "num_neighbors", "rescaling", "num_rescaling_neighbors")
    header["settings"] = {name: header["settings"][name] for name in old}
    del header["version"], header["history"]
    save_file(tensors, tmp_path / MEMORY_BANK_FILE, metadata={"memory_bank": json.dumps(header)})
    loaded = MemoryBank.from_pretrained(tmp_path)
    assert loaded.version_ == 0
    assert_same(loaded, bank)
