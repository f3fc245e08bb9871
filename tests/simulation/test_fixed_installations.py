"""Fixed installations: what is stated of a machine's site is what its clips sound like."""

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.signal
import soundfile

from na_ssl_hf.data.dcase.check import check_dcase
from na_ssl_hf.data.dcase.dataset import load_dcase2026
from na_ssl_hf.data.dcase.names import DcaseName
from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES
from na_ssl_hf.data.synthetic.machine_sounds import HEARD_MACHINE_TYPES, MACHINE_TYPES
from na_ssl_hf.simulation import simulate_impulse_responses
from na_ssl_hf.simulation.dcase_benchmark import BenchmarkPreset, write_dcase_benchmark
from na_ssl_hf.simulation.installation import (
    CHALLENGE_SNRS_DB,
    DRIFTS,
    MACHINE_LEVEL_RANGE_DB,
    PUBLISHED_MACHINE_LEVELS_DB,
    TARGET_CHANGES,
    Site,
    draw_installation,
    drifted_responses,
    machine_level_difference,
)
from na_ssl_hf.simulation.installed_dataset import LEAST_PLACES, InstalledMachine
from na_ssl_hf.simulation.synthetic_dataset import clip_seed

TINY = BenchmarkPreset(2, 1, 4, duration_s=1.0, num_rooms=1, num_places=1, num_supplemental=2)
MACHINES = ("fan", "valve", "pump")
SETTINGS = {"preset": TINY, "machines": MACHINES, "show_progress": False}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_dcase_benchmark(tmp_path_factory.mktemp("benchmark") / "tiny", **SETTINGS)


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.wav")}


def manifest_of(root):
    with (root / "manifest.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def installations_of(root):
    return json.loads((root / "installations.json").read_text())["installations"]


def levels_db(path):
    """Level of the close and of the far microphone, in dB of full scale."""
    return 10 * np.log10(np.mean(np.square(soundfile.read(path)[0]), axis=0))


def alone(root, machine, kind):
    return sorted((root / machine / "supplemental").glob(f"section_00_{kind}_*.wav"))


def test_it_loads_with_supplemental_clips_and_nothing_is_damaged(benchmark):
    report = check_dcase(benchmark, show_progress=False)
    assert report.damage == {}
    # No number of supplemental clips is published, so none is missing, even of a machine that the challenge has.
    assert {count.published for count in report.counts if count.split == "supplemental"} == {None}
    splits = load_dcase2026(benchmark)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 9, "test": 48, "supplemental": 12}
    assert splits["supplemental"]["label"] == ["machine", "machine", "noise", "noise"] * len(MACHINES)
    assert set(splits["supplemental"]["machine"]) == set(MACHINES)
    for row in splits["train"]:
        assert (row["attributes"] == "noAttribute") == (row["machine"] == "valve")


def test_at_least_ten_machines_are_the_default(tmp_path):
    preset = BenchmarkPreset(1, 0, 1, 0.5, 1, 1, num_supplemental=0)
    root = write_dcase_benchmark(tmp_path / "all", preset, show_progress=False)
    machines = set(installations_of(root))
    assert machines == set(MACHINE_TYPES)
    assert len(machines) >= 10
    assert len(machines - set(HEARD_MACHINE_TYPES)) >= 2


def test_same_seed_same_bytes_and_a_machine_does_not_depend_on_the_others(benchmark, tmp_path):
    first = bytes_of(benchmark)
    # Two workers or a resumed run may each write some of the machines, in another order.
    one = write_dcase_benchmark(tmp_path / "one", **{**SETTINGS, "machines": ("pump",)})
    others = write_dcase_benchmark(tmp_path / "others", **{**SETTINGS, "machines": ("valve", "fan")})
    assert {**bytes_of(one), **bytes_of(others)} == first
    assert installations_of(one) | installations_of(others) == installations_of(benchmark)
    changed = bytes_of(write_dcase_benchmark(tmp_path / "seed", **{**SETTINGS, "machines": ("pump",), "seed": 1}))
    assert all(changed[file] != first[file] for file in set(changed) & set(first))


def test_clips_do_not_depend_on_how_many_are_written(benchmark, tmp_path):
    settings = {**SETTINGS, "machines": ("valve",), "preset": replace(TINY, num_test=5, num_supplemental=1)}
    root = write_dcase_benchmark(tmp_path / "more", **settings)
    before, after = manifest_of(benchmark), manifest_of(root)
    for file in set(before) & set(after):
        clips = [
            soundfile.read(folder / file)[0] / float(rows[file]["gain"])
            for folder, rows in ((benchmark, before), (root, after))
        ]
        np.testing.assert_allclose(*clips, atol=2 / 32768 / float(before[file]["gain"]))


def test_levels_are_as_stated(benchmark, tmp_path):
    drawn = installations_of(benchmark)
    fixed = write_dcase_benchmark(tmp_path / "level", **SETTINGS, machine_level_db=-3.5)
    assert {machine["machine_level_db"] for machine in installations_of(fixed).values()} == {-3.5}
    for root, stated in ((benchmark, drawn), (fixed, installations_of(fixed))):
        for machine in MACHINES:
            assert MACHINE_LEVEL_RANGE_DB[0] <= stated[machine]["machine_level_db"] <= MACHINE_LEVEL_RANGE_DB[1]
            differences = [close - far for close, far in map(levels_db, alone(root, machine, "machine"))]
            assert np.mean(differences) == pytest.approx(stated[machine]["machine_level_db"], abs=1.0)
    assert drawn["valve"]["machine_level_db"] == PUBLISHED_MACHINE_LEVELS_DB["valve"]
    assert drawn["pump"]["machine_level_db"] != drawn["valve"]["machine_level_db"]
    # Giving one value leaves all others as they were drawn.
    for machine in MACHINES:
        assert installations_of(fixed)[machine]["coherence"] == drawn[machine]["coherence"]
        assert installations_of(fixed)[machine]["target_change"] == drawn[machine]["target_change"]


def test_the_gain_of_the_far_microphone_acts_on_machine_and_noise_alike():
    # What is louder at the far microphone than any placement makes it is louder for all sources.
    installation, responses, far_gain_db = draw_installation("valve", 1)
    assert abs(far_gain_db) > 3
    plain = simulate_impulse_responses(installation.room)
    factor = 10 ** (far_gain_db / 20)
    for with_gain, without in ((responses.target, plain.target), (responses.noise, plain.noise)):
        np.testing.assert_array_equal(with_gain[..., 0, :], without[..., 0, :])
        np.testing.assert_allclose(with_gain[..., 1, :], factor * without[..., 1, :], rtol=1e-5)
    moved = replace(installation, drifts=replace(installation.drifts, kinds=("microphone_moved", "new_noise")))
    changed, extra = drifted_responses(moved, responses, far_gain_db)
    room = replace(installation.room, far=moved.drifts.far)
    np.testing.assert_allclose(changed.noise[:, 1], factor * simulate_impulse_responses(room).noise[:, 1], rtol=1e-5)
    room = replace(room, noises=(moved.drifts.noise, *room.noises[1:]))
    np.testing.assert_allclose(extra[1], factor * simulate_impulse_responses(room).noise[0, 1], rtol=1e-5)


def test_the_seeds_of_clips_are_the_same_in_every_version():
    # Another seed would be another benchmark.
    assert clip_seed(DcaseName("fan", "target", "test", "anomaly", 7, None), 3) == [3, 1, 1, 1, 7, 0]
    assert clip_seed(DcaseName("sewing", "source", "supplemental", "noise", 0, "spd_1"), 9) == [9, 2, 0, 3, 0, 9]
    assert clip_seed(DcaseName("valve", "source", "supplemental", "machine", 2, None), 0) == [0, 2, 0, 2, 2, 3]


def noise_alone(coherence, duration_s=20.0):
    """A noise-only clip (2, N) of the pump's site; white backgrounds show the room at all frequencies alike."""
    installation, responses, gain_db = draw_installation("pump", 0, Site(coherence))
    assert installation.coherence == coherence
    random = np.random.default_rng(0)
    count = len(BACKGROUND_TYPES) * LEAST_PLACES
    white = [random.standard_normal(round(3 * duration_s * 16000), dtype=np.float32) for _ in range(count)]
    site = InstalledMachine(installation, responses, gain_db, {"train": white, "test": white}, duration_s)
    return site.clip(DcaseName("pump", "source", "supplemental", "noise", 0, None), drifted=False)[0]


def test_coherence_is_as_stated():
    measured = {}
    for coherence in (0.0, 0.5, 1.0):
        # Windows are longer than the reverberation, and a clip holds many of them.
        frequencies, found = scipy.signal.coherence(*noise_alone(coherence), 16000, nperseg=8192)
        low, high = (frequencies > 100) & (frequencies < 1000), (frequencies > 1000) & (frequencies < 4000)
        measured[coherence] = found[low].mean(), found[high].mean()
    assert min(measured[1.0]) > 0.9
    # Four independent sources, each of which reaches both microphones, have a coherence of about a quarter by chance.
    assert measured[0.0][1] < 0.4
    assert measured[0.0][1] < measured[0.5][1] < measured[1.0][1]


def test_training_and_test_hear_the_machine_through_the_same_responses():
    first, responses, gain_db = draw_installation("fan", 5)
    again, same, same_gain_db = draw_installation("fan", 5)
    assert (first, gain_db) == (again, same_gain_db)
    assert all(np.array_equal(a, b) for a, b in zip(responses, same, strict=True))
    unchanged, silence = drifted_responses(first, responses, gain_db)
    assert all(np.array_equal(a, b) for a, b in zip(unchanged, responses, strict=True))
    assert not silence.any()


def test_a_clip_of_training_and_one_of_the_test_have_one_transfer_function(tmp_path):
    # Without noise, the ratio of the spectra of the two microphones is that of the impulse responses, in every clip.
    preset = BenchmarkPreset(2, 1, 1, duration_s=3.0, num_rooms=1, num_places=1, num_supplemental=0)
    root = write_dcase_benchmark(tmp_path / "quiet", preset, snr_db=90.0, machines=("fan",), show_progress=False)

    def transfer(path):
        close, far = soundfile.read(path)[0].T
        frequencies, cross = scipy.signal.csd(close, far, 16000, nperseg=8192)
        _, power = scipy.signal.welch(close, 16000, nperseg=8192)
        return (cross / power)[(frequencies > 300) & (frequencies < 1500)]

    paths = sorted((root / "fan/train").glob("*.wav")) + sorted((root / "fan/test").glob("*.wav"))
    reference = transfer(paths[0])
    for path in paths[1:]:
        other = transfer(path)
        similarity = abs(np.vdot(reference, other)) / np.linalg.norm(reference) / np.linalg.norm(other)
        assert similarity > 0.98, path
    other = write_dcase_benchmark(
        tmp_path / "other", preset, seed=1, snr_db=90.0, machines=("fan",), show_progress=False
    )
    foreign = transfer(next((other / "fan/train").glob("*.wav")))
    assert abs(np.vdot(reference, foreign)) / np.linalg.norm(reference) / np.linalg.norm(foreign) < 0.9


def test_the_target_domain_changes_speed_load_or_noise():
    drawn = [draw_installation("fan", seed)[0] for seed in range(3)]
    assert {one.target_change for one in drawn} == set(TARGET_CHANGES)
    for one in drawn:
        kinds = {
            (split, domain): set(one.noise_kinds(split, domain))
            for split in ("train", "test")
            for domain in ("source", "target")
        }
        assert (kinds["train", "source"] != kinds["train", "target"]) == (one.target_change == "noise")
        assert kinds["test", "source"] - kinds["train", "source"]
        described = one.describe()
        assert ("target_noise" in described) == (one.target_change == "noise")
        assert one.train_snr_db != one.test_snr_db
        for low, high in (one.train_snr_db, one.test_snr_db):
            assert -10 <= low < high <= 10


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_snrs_of_the_challenge_are_those_of_the_machine_and_change_nothing_else(machine):
    usual, challenge = (draw_installation(machine, 3, site)[0] for site in (Site(), Site(snr_db=None)))
    snrs = {"train_snr_db": usual.train_snr_db, "test_snr_db": usual.test_snr_db}
    assert replace(challenge, **snrs) == usual
    if machine in CHALLENGE_SNRS_DB:
        assert challenge.train_snr_db != challenge.test_snr_db
        for low, high in (challenge.train_snr_db, challenge.test_snr_db):
            assert high - low == pytest.approx(2.5)
            assert CHALLENGE_SNRS_DB[machine] - 2.5 <= low < high <= CHALLENGE_SNRS_DB[machine] + 2.5
    else:
        assert challenge == usual


def test_attributes_say_what_the_target_domain_changes(tmp_path):
    preset = BenchmarkPreset(3, 2, 1, 0.5, 1, 1, num_supplemental=0)
    settings = {**SETTINGS, "machines": ("fan",), "preset": preset}
    for seed in range(3):
        root = write_dcase_benchmark(tmp_path / str(seed), **settings, seed=seed)
        change = installations_of(root)["fan"]["target_change"]
        domains = {"source": set(), "target": set()}
        for row in load_dcase2026(root, "train"):
            domains[row["domain"]].add(row["attributes"])
        assert not domains["source"] & domains["target"]
        speeds = {attributes.split("_")[1] for attributes in domains["target"]}
        assert (speeds == {"4"}) == (change == "speed")
        with (root / "fan/attributes_00.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["file_name", "d1p", "d1v"] + ([] if change == "speed" else ["d2p", "d2v"])
        assert all(len(row) == len(header) for row in rows)


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drift_is_heard_where_it_is_stated_and_nowhere_else(benchmark, tmp_path, drift):
    settings = {**SETTINGS, "machines": ("valve",), "drifts": (drift,), "drift_from": 0.5}
    root = write_dcase_benchmark(tmp_path / "drift", **settings)
    stated = installations_of(root)["valve"]["drifts"]
    assert set(stated) == {"from_share", drift}
    assert installations_of(benchmark)["valve"]["drifts"] == {}
    before, after = manifest_of(benchmark), manifest_of(root)
    drifted = {file for file, row in after.items() if row["drifts"]}
    assert drifted == {
        file for file in after if "/test/" in file and any(f"_{number:04d}_" in file for number in (2, 3))
    }
    for file, row in after.items():
        clips = [
            soundfile.read(folder / file)[0] / float(rows[file]["gain"])
            for folder, rows in ((benchmark, before), (root, after))
        ]
        difference = np.abs(clips[0] - clips[1]).max()
        assert (difference > 4 / 32768 / float(row["gain"])) == (file in drifted), file


def test_drifts_are_of_the_stated_size():
    site = Site(drifts=DRIFTS)
    installation, responses, gain_db = draw_installation("slider", 2, site)
    drifts, room = installation.drifts, installation.room
    assert 0.02 <= np.linalg.norm(np.subtract(drifts.far, room.far)) <= 0.08
    assert 3 <= abs(drifts.gain_db) <= 6
    assert drifts.rt60 < room.rt60

    def after(*kinds):
        one = replace(installation, drifts=replace(drifts, kinds=kinds))
        return drifted_responses(one, responses, gain_db)

    gained, _ = after("gain")
    sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    change = machine_level_difference(responses, sound) - machine_level_difference(gained, sound)
    assert change == pytest.approx(drifts.gain_db, abs=1e-3)
    np.testing.assert_array_equal(gained.target[0], responses.target[0])
    moved, _ = after("microphone_moved")
    np.testing.assert_array_equal(moved.target[0, :2000], responses.target[0, :2000])
    assert not np.array_equal(moved.target[1, :2000], responses.target[1, :2000])
    opened, _ = after("door")
    energy = [np.square(part.target[:, 800:].numpy()).sum() for part in (responses, opened)]
    assert energy[1] < 0.5 * energy[0]
    _, extra = after("new_noise")
    assert (np.square(extra).sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_coherence": 2.0}, r"noise_coherence must lie in \[0, 1\], got 2.0"),
        ({"machine_level_db": float("nan")}, "machine_level_db must lie between .* got nan"),
        ({"snr_db": (5.0, -5.0)}, r"snr_db must be .* got \(5.0, -5.0\)"),
        ({"snr_db": None, "installation": "moving"}, "snr_db must be .* where the installation is 'moving', got None"),
        ({"drifts": ("earthquake",)}, "drifts must be among .*'earthquake'"),
        ({"drift_from": 1.0}, "drift_from must be .* got 1.0"),
        ({"machines": ("toaster",)}, "toaster"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"preset": replace(TINY, num_supplemental=-1)}, "num_supplemental must not be negative, got -1"),
        ({"preset": replace(TINY, duration_s=0.1)}, "duration_s must be at least"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_dcase_benchmark(tmp_path / "set", **{**SETTINGS, **change})
    assert not list(tmp_path.iterdir())


def test_an_unknown_machine_is_named():
    with pytest.raises(ValueError, match=r"machine must be one of .*'toaster'"):
        draw_installation("toaster")


def test_what_is_described_is_all_that_was_drawn():
    installation, _, _ = draw_installation("drone", 1, Site(drifts=("door",)))
    described = installation.describe()
    assert described["room"]["far"] == installation.room.far
    assert described["room"]["far_distance"] == installation.room.distance_far
    assert set(asdict(installation)) - set(described) <= {"machine", "seed", "target_noise"}
    json.dumps(described)
