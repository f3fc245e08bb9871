import pickle
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from na_ssl_hf.simulation import RoomPool, draw_room, mix_two_channel, room_pool, simulate_impulse_responses

NUM_ROOMS = 5


@pytest.fixture(scope="module")
def pool():
    return RoomPool.simulate(NUM_ROOMS, seed=7, show_progress=False)


@pytest.fixture(scope="module")
def pool_file(pool, tmp_path_factory):
    return pool.save(tmp_path_factory.mktemp("pool") / "new_folder" / "rooms.safetensors").path


def assert_equal_pools(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left.target, right.target)
        assert torch.equal(left.noise, right.noise)
        assert left.direct_delay == right.direct_delay


def test_rooms_are_those_of_the_seed(pool):
    exact = simulate_impulse_responses(draw_room((7, 2)))
    stored = pool[2]
    assert stored.target.dtype == torch.float32
    torch.testing.assert_close(stored.target, exact.target, atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(stored.noise, exact.noise, atol=1e-7, rtol=1e-3)
    assert [pool.room(i) for i in range(NUM_ROOMS)] == [draw_room((7, i)) for i in range(NUM_ROOMS)]


def test_any_number_of_workers_gives_the_same_pool(pool):
    assert_equal_pools(RoomPool.simulate(3, seed=7, num_workers=2, show_progress=False), list(pool)[:3])


def test_saved_pool_equals_the_simulated_one(pool, pool_file):
    loaded = RoomPool.load(pool_file)
    assert_equal_pools(loaded, pool)
    assert (loaded.seed, loaded.sampling_rate, loaded.room(3)) == (7, 16000, pool.room(3))
    assert torch.equal(loaded.rt60, pool.rt60)
    assert [file.name for file in pool_file.parent.iterdir()] == [pool_file.name]


def test_batch_is_padded_and_ready_for_mixing(pool_file):
    pool = RoomPool.load(pool_file)
    rir_target, rir_noise, direct_delay = pool.batch([4, 0, -1])
    longest = max(pool[4].noise.shape[-1], pool[0].noise.shape[-1])
    assert rir_target.shape == (3, 2, longest)
    assert rir_noise.shape == (3, 4, 2, longest)
    for row, index in enumerate([4, 0, 4]):
        target, noise, delay = pool[index]
        assert torch.equal(rir_target[row, :, : target.shape[-1]], target)
        assert torch.equal(rir_noise[row, ..., : noise.shape[-1]], noise)
        assert not rir_noise[row, ..., noise.shape[-1] :].any()
        assert direct_delay[row] == delay
    mixture = mix_two_channel(
        torch.randn(3, 500), torch.randn(3, 4, 500), rir_target, rir_noise, torch.zeros(3), direct_delay
    )
    assert mixture.far.shape == (3, 500)


def test_pool_with_a_file_travels_to_workers_as_its_path(pool, pool_file):
    message = pickle.dumps(RoomPool.load(pool_file))
    assert len(message) < 1000
    assert_equal_pools(pickle.loads(message), pool)
    assert_equal_pools(pickle.loads(pickle.dumps(pool)), pool)


def test_reading_a_pool_does_not_import_pyroomacoustics(pool_file):
    code = (
        "import sys; from na_ssl_hf.simulation import RoomPool; "
        f"RoomPool.load({str(pool_file)!r}).batch([0]); sys.exit('pyroomacoustics' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_index_out_of_range(pool):
    for bad in (NUM_ROOMS, -NUM_ROOMS - 1):
        with pytest.raises(IndexError, match="index"):
            pool[bad]
        with pytest.raises(IndexError, match="index"):
            pool.batch([0, bad])
    with pytest.raises(ValueError, match="indices"):
        pool.batch([])


@pytest.mark.parametrize(
    "change",
    [{"num_rooms": 0}, {"num_rooms": 2.0}, {"num_rooms": "3"}, {"num_rooms": True}, {"num_workers": 0}, {"seed": -1}],
    ids=str,
)
def test_bad_settings(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RoomPool.simulate(**{"num_rooms": 1, "seed": 0} | change)


def test_other_sampling_rate_is_refused(pool_file):
    with pytest.raises(ValueError, match="sampling_rate must be that of the room pool, 16000 Hz, got 8000 Hz"):
        RoomPool.load(pool_file, sampling_rate=8000)


def test_missing_truncated_and_foreign_files(pool_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing found"):
        RoomPool.load(tmp_path / "nothing.safetensors")
    data = pool_file.read_bytes()
    for name, content in {"half": data[: len(data) // 2], "empty": b"", "text": b"not a pool at all" * 9}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=name):
            RoomPool.load(tmp_path / name)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"another kind of file: .*model\.safetensors"):
        RoomPool.load(tmp_path / "model.safetensors")


def rewrite(source, path, metadata=None, **tensors):
    """Save a pool with other metadata or tensors; a tensor that is None is left out."""
    with safe_open(source, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118 (not a dict)
        save_file(
            {name: tensor for name, tensor in kept.items() if tensor is not None},
            path,
            metadata={**file.metadata(), **(metadata or {})},
        )
    return path


FIRST = "impulse_responses.0"


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"num_rooms": "1000000000"}, {}, "hold 1000000000 rooms as it says, got 5"),
        ({"num_rooms": "9" * 5000}, {}, "num_rooms is a whole number, got"),
        ({"num_rooms": "five"}, {}, "num_rooms is a whole number, got 'five'"),
        ({"num_rooms": "-5"}, {}, "num_rooms is a whole number, got '-5'"),
        ({"num_rooms": "5.0"}, {}, "num_rooms is a whole number, got '5.0'"),
        ({"num_rooms": "²"}, {}, "num_rooms is a whole number, got '²'"),
        ({"seed": ""}, {}, "seed is a whole number, got ''"),
        ({"sampling_rate": "16 kHz"}, {}, "sampling_rate is a whole number, got '16 kHz'"),
        ({}, {FIRST: None}, "hold 5 rooms as it says, got 4"),
        ({}, {FIRST: None, "weight": torch.zeros(1)}, "2 missing or unknown"),
        ({}, {FIRST: torch.zeros(5, 2, 30)}, "impulse_responses.0 as float16 .* got torch.float32"),
        ({}, {FIRST: torch.zeros(5, 3, 30).half()}, r"as float16 of shape \(5, 2, R\), got .*5, 3, 30"),
        ({}, {FIRST: torch.zeros(5, 2, 0).half()}, "direct_delay within the 0 samples"),
        ({}, {"direct_delay": torch.tensor([40, 41, -1, 40, 41])}, "got -1 for room 2"),
        ({}, {"direct_delay": torch.tensor([40, 41, 40, 40, 10**12])}, "got 1000000000000 for room 4"),
        ({}, {"direct_delay": torch.full((5,), 40.5)}, "direct_delay as torch.int64 .* got torch.float32"),
        ({}, {"direct_delay": torch.full((4,), 40)}, r"direct_delay as .* got torch.int64 of \(4,\)"),
        ({}, {"rt60": torch.full((5,), float("nan"), dtype=torch.float64)}, "finite values of rt60"),
        ({}, {"rt60": torch.zeros(5, dtype=torch.float64)}, "positive values of rt60, got 0.0"),
        ({}, {"positions": torch.full((5, 7, 3), float("inf"), dtype=torch.float64)}, "finite values of positions"),
    ],
)
def test_content_that_no_pool_has_is_named_on_loading(pool_file, tmp_path, metadata, tensors, message):
    path = rewrite(pool_file, tmp_path / "wrong.safetensors", metadata, **tensors)
    with pytest.raises(OSError, match=rf"wrong\.safetensors must .*{message}"):
        RoomPool.load(path)


def test_responses_that_are_not_finite_are_named_when_they_are_read(pool, pool_file, tmp_path):
    broken = pool._responses[FIRST].clone()
    broken[1, 0, 50] = float("nan")
    damaged = RoomPool.load(rewrite(pool_file, tmp_path / "nan.safetensors", **{FIRST: broken}))
    assert torch.equal(damaged[1].target, pool[1].target)
    for read in (lambda: damaged[0], lambda: damaged.batch([1, 0])):
        with pytest.raises(OSError, match=r"nan\.safetensors must hold finite impulse responses, got .* room 0"):
            read()


@pytest.fixture
def simulated(monkeypatch):
    """Indices of the rooms that are simulated, in order; `simulated.stop_before` fails at a room."""

    class Indices(list):
        stop_before: int | None = None

    indices, simulate_part = Indices(), room_pool._simulate_part

    def simulate(seed, sampling_rate, part):
        if indices.stop_before in part:
            raise KeyboardInterrupt
        indices.extend(part)
        return simulate_part(seed, sampling_rate, part)

    monkeypatch.setattr(room_pool, "_simulate_part", simulate)
    return indices


@pytest.fixture(scope="module")
def parts_of_three_rooms(tmp_path_factory):
    """What a killed simulation of five rooms of seed 7 leaves: the parts of rooms 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("killed")
    code = f"""
import time
from na_ssl_hf.simulation import RoomPool, room_pool
simulate = room_pool._simulate_part
room_pool._simulate_part = lambda *args: time.sleep(600) if 3 in args[-1] else simulate(*args)
RoomPool.simulate({NUM_ROOMS}, seed=7, path={str(folder / "rooms.safetensors")!r}, show_progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    parts = folder / ".rooms.safetensors.parts"
    while len(list(parts.glob("*.safetensors"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(folder.iterdir()) == [parts]
    return parts


@pytest.fixture
def killed(parts_of_three_rooms, tmp_path):
    """The path of that simulation, in a folder of its own."""
    shutil.copytree(parts_of_three_rooms, tmp_path / parts_of_three_rooms.name)
    return tmp_path / "rooms.safetensors"


def test_killed_simulation_goes_on_to_the_same_file(pool_file, killed, simulated, capsys):
    resumed = RoomPool.simulate(NUM_ROOMS, seed=7, path=killed)
    assert simulated == [3, 4]
    assert killed.read_bytes() == pool_file.read_bytes()
    assert (resumed.path, list(killed.parent.iterdir())) == (killed, [killed])
    bar = capsys.readouterr().err
    assert "60%" in bar
    assert " 0%" not in bar


def test_simulation_can_be_stopped_again_and_end_smaller(pool, killed, simulated):
    simulated.stop_before = 4
    with pytest.raises(KeyboardInterrupt):
        RoomPool.simulate(NUM_ROOMS, seed=7, path=killed, show_progress=False)
    assert simulated == [3]
    assert_equal_pools(RoomPool.simulate(4, seed=7, path=killed, show_progress=False), list(pool)[:4])
    assert simulated == [3]


@pytest.mark.parametrize("change", [{"seed": 8}, {"sampling_rate": 8000}], ids=str)
def test_parts_of_another_seed_or_rate_are_not_used(killed, change):
    settings = {"num_rooms": 3, "seed": 7, "show_progress": False} | change
    assert_equal_pools(RoomPool.simulate(path=killed, **settings), RoomPool.simulate(**settings))
    assert list(killed.parent.iterdir()) == [killed]


def test_damaged_parts_and_those_of_another_version_are_not_used(pool_file, killed, simulated, monkeypatch):
    first, second, _ = sorted((killed.parent / ".rooms.safetensors.parts").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    data = second.read_bytes()
    second.write_bytes(data.replace(b'"version":"1"', b'"version":"0"'))
    assert second.read_bytes() != data
    RoomPool.simulate(NUM_ROOMS, seed=7, path=killed, show_progress=False)
    assert simulated == [0, 1, 3, 4]
    assert killed.read_bytes() == pool_file.read_bytes()


def test_finished_rooms_survive_a_full_disk(killed, simulated, monkeypatch):
    def fail(tensors, file, metadata):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(room_pool, "save_file", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="disk full"):
                RoomPool.simulate(3, seed=7, path=killed, show_progress=False)
    assert not killed.exists()
    RoomPool.simulate(3, seed=7, path=killed, show_progress=False)
    assert simulated == []


def test_equal_pools_are_equal_files(pool, pool_file, tmp_path):
    for name in "abc":
        assert pool.save(tmp_path / name).path.read_bytes() == pool_file.read_bytes()


def test_failed_save_leaves_the_old_file(pool, tmp_path, monkeypatch):
    path = tmp_path / "rooms.safetensors"
    path.write_bytes(b"old")

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("na_ssl_hf.simulation.room_pool.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        pool.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
