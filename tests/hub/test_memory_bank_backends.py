"""Backends of a memory bank besides the nearest neighbours, against their straightforward computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.covariance import OAS
from sklearn.decomposition import PCA

from na_ssl_hf.hub import memory_bank_backends
from na_ssl_hf.hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
from na_ssl_hf.hub.memory_bank_backends import BACKENDS
from na_ssl_hf.hub.threshold import conformal_p_values, fit_threshold

OTHERS = ["two_domains", "mahalanobis", "pca"]
SETTINGS = [
    *({"backend": name} for name in OTHERS),
    {"backend": "two_domains", "num_neighbors": 2, "distance": "euclidean", "normalize": False},
    {"backend": "pca", "explained_variance": 0.5},
    {"backend": ["nearest", "two_domains", "mahalanobis", "pca"], "rescaling": "variance_min"},
    {"backend": ("mahalanobis", "pca"), "backend_fusion": "mean", "distance": "euclidean", "normalize": False},
    {"backend": ("nearest", "pca"), "smote_ratio": 1.0},
]


def clips(num_clips: int, num_bands: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Clips `(N, F, D)` in few directions, with noise around them."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_bands, 3, dim, generator=random)
    strengths = torch.randn(num_clips, num_bands, 3, generator=random)
    noise = torch.randn(num_clips, num_bands, dim, generator=random)
    return 1.0 + torch.einsum("nfk,fkd->nfd", strengths, directions) + 0.2 * noise


def domains_of(num_clips: int, num_target: int = 5) -> np.ndarray:
    return np.array(["source"] * (num_clips - num_target) + ["target"] * num_target)


def unit(vectors: torch.Tensor) -> np.ndarray:
    return (vectors / vectors.norm(dim=-1, keepdim=True)).double().numpy()


@pytest.fixture(params=[(24, 6), (12, 30)], ids=["more clips than channels", "fewer clips than channels"])
def sizes(request) -> tuple[int, int]:
    return request.param


# Against the straightforward computation


def test_mahalanobis_is_that_of_scikit_learns_shrunk_covariance(sizes):
    train, test = clips(sizes[0], 2, sizes[1]), clips(7, 2, sizes[1], seed=1)
    bank = MemoryBank(backend="mahalanobis").fit(train)
    for band in range(2):
        reference = OAS().fit(unit(train[:, band]))
        wanted = np.sqrt(reference.mahalanobis(unit(test[:, band])))
        np.testing.assert_allclose(bank.band_scores(test)[:, band], wanted, rtol=1e-5)
        whitening = bank.whitening_[band].double()
        np.testing.assert_allclose(whitening @ whitening, reference.precision_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
def test_pca_is_the_reconstruction_error_of_scikit_learns_components(sizes, share):
    train, test = clips(sizes[0], 2, sizes[1]), clips(7, 2, sizes[1], seed=1)
    bank = MemoryBank(backend="pca", explained_variance=share).fit(train)
    for band in range(2):
        reference = PCA(n_components=share, svd_solver="full").fit(unit(train[:, band]))
        rebuilt = reference.inverse_transform(reference.transform(unit(test[:, band])))
        wanted = np.linalg.norm(unit(test[:, band]) - rebuilt, axis=1)
        np.testing.assert_allclose(bank.band_scores(test)[:, band], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_neighbors", [1, 2])
def test_two_domains_are_the_nearest_in_units_of_each_domains_own_distances(num_neighbors):
    train, test, is_target = clips(20, 2, 6), clips(7, 2, 6, seed=1), domains_of(20) == "target"
    settings = {"distance": "euclidean", "normalize": False, "num_neighbors": num_neighbors}
    bank = MemoryBank(backend="two_domains", **settings).fit(train, domains_of(20))
    for band in range(2):
        scores = []
        for own in (train[~is_target, band].double(), train[is_target, band].double()):
            between = torch.cdist(own, own).fill_diagonal_(torch.inf).sort(dim=1).values[:, :num_neighbors].mean(dim=1)
            away = torch.cdist(test[:, band].double(), own).sort(dim=1).values[:, :num_neighbors].mean(dim=1)
            scores.append(away / np.median(between))
        np.testing.assert_allclose(bank.band_scores(test)[:, band], torch.minimum(*scores), rtol=1e-5)


@pytest.mark.parametrize("fusion", ["minimum", "mean"])
def test_several_backends_are_standardised_by_their_leave_one_out_scores_in_each_band(fusion):
    train, test, domains = clips(20, 3, 6), clips(7, 3, 6, seed=1), domains_of(20)
    names = ("nearest", "two_domains", "mahalanobis", "pca")
    fused = MemoryBank(backend=names, backend_fusion=fusion).fit(train, domains)
    standardised = []
    for name in names:
        bands = []
        for band in range(3):
            alone = MemoryBank(backend=name).fit(train[:, [band]], domains)
            own, scores = alone.self_scores(exact=True).double(), alone.score(test[:, [band]]).double()
            bands.append((scores - own.mean()) / own.std(correction=0))
        standardised.append(torch.stack(bands, dim=1))
    together = torch.stack(standardised)
    wanted = together.amin(dim=0) if fusion == "minimum" else together.mean(dim=0)
    torch.testing.assert_close(fused.band_scores(test).double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.score(test).double(), wanted.mean(dim=1), rtol=1e-4, atol=1e-4)


# Leaving one out


@pytest.mark.parametrize("settings", SETTINGS[:5])
@pytest.mark.parametrize("normalize", [True, False])
def test_each_clip_is_scored_as_by_a_bank_that_never_held_it(sizes, settings, normalize):
    num_clips, dim = sizes
    train, domains = clips(num_clips, 2, dim), domains_of(num_clips)
    bank = MemoryBank(**settings | {"normalize": normalize, "distance": "euclidean"})
    scores = replace(bank).fit(train, domains).self_scores()
    for clip in range(num_clips):
        others = np.arange(num_clips) != clip
        wanted = replace(bank).fit(train[others], domains[others]).score(train[[clip]])
        torch.testing.assert_close(scores[[clip]], wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("case", ["equal variances", "an axis alone", "copies", "tiny axes", "on a line"])
def test_leaving_out_is_exact_where_eigenvalues_meet_or_a_clip_lies_on_an_axis(case, share):
    train = {
        "equal variances": torch.cat([torch.eye(6), -torch.eye(6)]),
        "an axis alone": torch.cat([clips(8, 1, 6)[:, 0] * torch.tensor([1, 1, 1, 1, 1, 0]), 9 * torch.eye(6)[5:]]),
        "copies": clips(4, 1, 6)[:, 0].repeat(3, 1),
        "tiny axes": clips(12, 1, 6)[:, 0] * torch.tensor([1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
        "on a line": torch.linspace(-1, 2, 9)[:, None] * torch.ones(6),
    }[case][:, None]
    for name in ("mahalanobis", "pca"):
        bank = MemoryBank(backend=name, explained_variance=share, normalize=False, distance="euclidean")
        scores = replace(bank).fit(train).self_scores()
        wanted = [
            replace(bank).fit(train[torch.arange(len(train)) != clip]).score(train[[clip]])
            for clip in range(len(train))
        ]
        torch.testing.assert_close(scores, torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_leaving_out_is_the_same_in_chunks(monkeypatch):
    train, domains = clips(20, 2, 6), domains_of(20)
    bank = MemoryBank(backend="two_domains").fit(train, domains)
    whole = bank.self_scores()
    monkeypatch.setattr(memory_bank_backends, "LEAVE_ONE_OUT_ELEMENTS", 40)
    torch.testing.assert_close(bank.self_scores(), whole, rtol=0, atol=0)


def test_a_clip_takes_no_part_in_its_own_standard():
    train = clips(10, 1, 6)
    train[0] += 1e3
    bank = MemoryBank(backend=("mahalanobis", "pca"), normalize=False, distance="euclidean").fit(train)
    assert bank.self_scores()[0] > 10 > 10**0.5


@pytest.mark.parametrize("settings", [*SETTINGS[:3], *SETTINGS[5:7]])
def test_alarms_on_new_normal_clips_are_at_most_as_stated(settings):
    rates, p_values = [], []
    for seed in range(30):
        all_clips = clips(120, 2, 8, seed)
        train, new = all_clips[:39], all_clips[39:]
        domains = np.random.default_rng(seed).permutation(domains_of(39, 8))
        bank = MemoryBank(**settings).fit(train, domains)
        self_scores = bank.self_scores(exact=True)
        rates.append(float((bank.score(new) > fit_threshold(self_scores, false_alarm_rate=0.1)).float().mean()))
        p_values.append(float(conformal_p_values(self_scores, bank.score(new)).mean()))
    # Four in 40 are stated; the mean over 30 memories has a standard error of about 0.01.
    assert 0.05 < np.mean(rates) < 0.115
    assert 0.45 < np.mean(p_values) < 0.58


# Invariances


@pytest.mark.parametrize("settings", SETTINGS)
def test_scores_depend_on_the_clip_alone(settings):
    train, test, domains = clips(20, 3, 6), clips(600, 3, 6, seed=1), domains_of(20)
    bank = MemoryBank(**settings).fit(train, domains)
    wanted = bank.band_scores(test)
    torch.testing.assert_close(torch.cat([bank.band_scores(one) for one in test[:4, None]]), wanted[:4])
    assert wanted.dtype == torch.float32
    torch.testing.assert_close(bank.band_scores(test.double().numpy()), wanted)
    # One band knows nothing of the others.
    alone = MemoryBank(**settings).fit(train[:, [1]], domains)
    torch.testing.assert_close(alone.band_scores(test[:, [1]])[:, 0], wanted[:, 1])


# SMOTE draws from the clips in their order.
@pytest.mark.parametrize("settings", [settings for settings in SETTINGS if "smote_ratio" not in settings])
def test_the_order_of_the_clips_does_not_matter(settings):
    train, test, domains = clips(20, 3, 6), clips(7, 3, 6, seed=1), domains_of(20)
    order = np.random.default_rng(0).permutation(20)
    bank, other = MemoryBank(**settings).fit(train, domains), MemoryBank(**settings).fit(train[order], domains[order])
    torch.testing.assert_close(other.band_scores(test), bank.band_scores(test), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.self_scores(), bank.self_scores()[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mahalanobis", "pca"])
def test_a_rotation_or_a_shift_of_all_clips_changes_nothing(name):
    train, test = clips(20, 1, 6), clips(7, 1, 6, seed=1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    bank = MemoryBank(backend=name, normalize=False, distance="euclidean")
    wanted = replace(bank).fit(train).score(test)
    torch.testing.assert_close(
        replace(bank).fit(train @ rotation + 3).score(test @ rotation + 3), wanted, rtol=1e-4, atol=1e-5
    )


def test_mahalanobis_and_two_domains_do_not_depend_on_the_scale():
    train, test, domains = clips(20, 1, 6), clips(7, 1, 6, seed=1), domains_of(20)
    for name in ("mahalanobis", "two_domains"):
        bank = MemoryBank(backend=name, normalize=False, distance="euclidean")
        torch.testing.assert_close(
            replace(bank).fit(1e3 * train, domains).score(1e3 * test), replace(bank).fit(train, domains).score(test)
        )


@pytest.mark.parametrize("settings", SETTINGS)
def test_equal_clips_give_finite_scores(settings):
    train = torch.ones(12, 2, 6)
    bank = MemoryBank(**settings | {"normalize": True}).fit(train, domains_of(12))
    assert bank.self_scores().isfinite().all()
    odd = bank.score(clips(3, 2, 6))
    assert odd.isfinite().all()
    assert (odd > bank.score(train[:1])).all()


# Living memories and files


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_changed_bank_equals_one_fitted_with_the_same_clips(settings):
    train, test = clips(24, 2, 6), clips(5, 2, 6, seed=1)
    domains = np.where(np.arange(24) % 3 == 0, "target", "source")
    bank = MemoryBank(**settings).fit(train[:20], domains[:20])
    before = bank.band_scores(test)
    bank.partial_fit(train[20:], domains[20:]).forget([0, 5])
    kept = np.setdiff1d(np.arange(24), [0, 5])
    fresh = MemoryBank(**settings).fit(train[kept], domains[kept])
    torch.testing.assert_close(bank.band_scores(test), fresh.band_scores(test), rtol=0, atol=0)
    torch.testing.assert_close(bank.self_scores(exact=True), fresh.self_scores(exact=True), rtol=0, atol=0)
    torch.testing.assert_close(bank.rollback(0).band_scores(test), before, rtol=0, atol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_saved_bank_gives_equal_scores_and_goes_on_changing(tmp_path, settings):
    train, test, domains = clips(20, 2, 6), clips(5, 2, 6, seed=1), domains_of(20)
    bank = MemoryBank(**settings, max_clips=20).fit(train, domains).partial_fit(test, domains_of(5, 4))
    bank.save_pretrained(tmp_path)
    loaded = MemoryBank.from_pretrained(tmp_path)
    for exact in (True, False):
        torch.testing.assert_close(loaded.self_scores(exact), bank.self_scores(exact), rtol=0, atol=0)
    torch.testing.assert_close(loaded.band_scores(test), bank.band_scores(test), rtol=0, atol=0)
    torch.testing.assert_close(loaded.rollback(0).score(test), bank.rollback(0).score(test), rtol=0, atol=0)


def change_saved_tensor(path, name: str, value: float | None) -> None:
    """Fill one tensor of a saved bank with a value, or take it out."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("settings", "name", "value", "message"),
    [
        ({"backend": "two_domains"}, "is_target_", False, "at least 3 clips of each domain, got 20 source"),
        ({"backend": "two_domains"}, "domain_medians_", -1.0, "`domain_medians_` must not be negative"),
        ({"backend": ("nearest", "pca")}, "score_spreads_", 0.0, "`score_spreads_` must be above 0"),
        ({"backend": "pca"}, "residual_map_", float("nan"), "`residual_map_` must be finite"),
        ({"backend": "mahalanobis"}, "whitening_", None, "The tensors must have the shapes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, settings, name, value, message):
    MemoryBank(**settings).fit(clips(20, 2, 6), domains_of(20)).save_pretrained(tmp_path)
    change_saved_tensor(tmp_path / MEMORY_BANK_FILE, name, value)
    with pytest.raises(OSError, match=message):
        MemoryBank.from_pretrained(tmp_path)


def test_infinite_clips_in_the_history_are_refused(tmp_path):
    MemoryBank(backend="pca").fit(clips(20, 2, 6)).forget([3]).save_pretrained(tmp_path)
    change_saved_tensor(tmp_path / MEMORY_BANK_FILE, "history.0.clips", float("inf"))
    with pytest.raises(OSError, match="Vectors must be finite"):
        MemoryBank.from_pretrained(tmp_path)


def test_what_a_backend_learned_is_gone_when_another_one_is_fitted():
    bank = MemoryBank(backend=("mahalanobis", "pca")).fit(clips(20, 2, 6))
    assert bank.whitening_.shape == bank.residual_map_.shape == (2, 6, 6)
    bank.backend = "nearest"
    bank.fit(clips(20, 2, 6))
    assert not any(hasattr(bank, name) for name in ("whitening_", "residual_map_", "center_", "score_means_"))


# Errors


@pytest.mark.parametrize("backend", ["kmeans", "", None, 3, [], ["pca", "pca"], ["pca", None], [["pca"]], {"pca": 1}])
def test_unknown_backends_are_refused(backend):
    with pytest.raises(ValueError, match="`backend` must be one or several different ones of"):
        MemoryBank(backend=backend)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend_fusion": "max"}, "`backend_fusion` must be one of"),
        ({"explained_variance": 0.0}, "`explained_variance` must be a number above 0 and below 1, got 0.0"),
        ({"explained_variance": 1}, "`explained_variance` must be a number above 0 and below 1, got 1"),
        ({"explained_variance": float("nan")}, "`explained_variance` must be"),
        ({"explained_variance": "0.9"}, "`explained_variance` must be"),
        ({"backend": "pca", "rescaling": "ratio"}, "`rescaling` needs backend='nearest', got 'ratio'"),
        ({"backend": "pca", "smote_ratio": 0.2}, "`smote_ratio` needs backend='nearest'"),
        ({"backend": "two_domains", "separate_domains": True}, "`separate_domains` needs backend='nearest'"),
        ({"backend": "mahalanobis", "index": "flat"}, "`index` needs backend='nearest'"),
        ({"backend": "mahalanobis", "coreset_size": 5}, "`coreset_size` needs backend='nearest' alone"),
        ({"backend": ("nearest", "pca"), "coreset_size": 5}, "`coreset_size` needs backend='nearest' alone"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**settings)


@pytest.mark.parametrize("name", OTHERS)
def test_too_few_clips_are_refused_when_fitting_and_when_forgetting(name):
    bank = MemoryBank(backend=name)
    with pytest.raises(ValueError, match=f"`backend='{name}'` needs at least 3 clips"):
        bank.fit(clips(2, 2, 6), domains_of(2, 1))
    bank.fit(clips(6, 2, 6), domains_of(6, 3))
    assert bank.self_scores().isfinite().all()
    with pytest.raises(ValueError, match=f"`backend='{name}'` needs at least 3 clips"):
        bank.forget([0, 1, 3, 5])
    assert bank.num_clips_ == 6


def test_two_domains_need_domains_with_enough_clips_of_each():
    bank = MemoryBank(backend=("nearest", "two_domains"))
    with pytest.raises(ValueError, match=r"`backend='two_domains'` needs domains .*, got None"):
        bank.fit(clips(20, 2, 6))
    with pytest.raises(ValueError, match="3 clips of each domain, got 18 source and 2 target clips"):
        bank.fit(clips(20, 2, 6), domains_of(20, 2))
    with pytest.raises(ValueError, match="one entry for each of the 20 clips"):
        bank.fit(clips(20, 2, 6), domains_of(19))


def test_nan_is_refused_with_every_backend():
    train = clips(20, 2, 6)
    train[3, 1, 2] = float("nan")
    for name in BACKENDS:
        with pytest.raises(ValueError, match="finite in float32, got NaN or infinite values in clip 3"):
            MemoryBank(backend=name).fit(train, domains_of(20))
