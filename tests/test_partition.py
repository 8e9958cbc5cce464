"""Partitions: losses against scikit-learn, optima against all partitions, balls by definition."""

from __future__ import annotations

from collections.abc import Iterator

import fits
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import pair_confusion_matrix
from threadpoolctl import threadpool_limits

import bayesgmm as bg
from bayesgmm.allocation.drawn import ask
from bayesgmm.allocation.losses import Loss, distances
from bayesgmm.allocation.partition import best_partition
from bayesgmm.errors import ArgumentError, NotYetSupportedError

LOSSES: tuple[Loss, ...] = ("vi", "binder")


def by_scikit_learn(a: np.ndarray, b: np.ndarray, loss: Loss) -> float:
    if loss == "vi":
        own = entropy(np.bincount(a)) + entropy(np.bincount(b))
        return (own - 2.0 * mutual_info_score(a, b)) / np.log(2.0)
    together = pair_confusion_matrix(a, b)
    return (together[0, 1] + together[1, 0]) / len(a) ** 2


def loss_between(a: np.ndarray, b: np.ndarray, loss: Loss) -> float:
    return float(distances(np.asarray(a, np.intp), np.asarray(b, np.int16)[:, None], loss)[0])


def all_partitions(n: int) -> Iterator[np.ndarray]:
    """Every set partition, as restricted growth strings."""

    def grow(label: list[int]) -> Iterator[list[int]]:
        if len(label) == n:
            yield label
            return
        for cluster in range(max(label, default=-1) + 2):
            yield from grow([*label, cluster])

    return (np.array(label, dtype=np.intp) for label in grow([]))


def random_draws(seed: int, n: int, k: int, s: int = 15) -> np.ndarray:
    """Draws of partitions with something in common: a truth, of which each row may deviate."""
    rng = np.random.default_rng(seed)
    truth, other = rng.integers(k, size=(n, 1)), rng.integers(k, size=(n, s))
    return np.where(rng.random((n, s)) < 0.6, truth, other).astype(np.int16)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_losses_are_scikit_learn_s(rows: list[tuple[int, int]]) -> None:
    a, b = np.array(rows).T
    for loss in LOSSES:
        assert loss_between(a, b, loss) == pytest.approx(by_scikit_learn(a, b, loss), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=15))
def test_losses_are_metrics(rows: list[tuple[int, int, int]]) -> None:
    a, b, c = np.array(rows).T
    for loss in LOSSES:
        ab, ba = loss_between(a, b, loss), loss_between(b, a, loss)
        ac, cb = loss_between(a, c, loss), loss_between(c, b, loss)
        assert ab == pytest.approx(ba, abs=1e-12)
        assert ab <= ac + cb + 1e-12
        assert loss_between(a, a, loss) == pytest.approx(0.0, abs=1e-12)
        same = ((a[:, None] == a) == (b[:, None] == b)).all()
        assert (ab < 1e-12) == same


def test_the_largest_losses() -> None:
    n = 16
    one, each = np.zeros(n), np.arange(n)
    assert loss_between(one, each, "vi") == pytest.approx(np.log2(n))
    assert loss_between(one, each, "binder") == pytest.approx(1.0 - 1.0 / n)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_all_partitions(loss: Loss, seed: int) -> None:
    n, k = 4 + seed % 4, 2 + seed % 3
    z = random_draws(seed, n, k)
    cost = {label.tobytes(): distances(label, z, loss).mean() for label in all_partitions(n)}
    assert len(cost) == {4: 15, 5: 52, 6: 203, 7: 877}[n]  # Bell's numbers
    rng = np.random.default_rng(seed)
    found = best_partition([np.zeros(n)], z, loss, most=n, n_starts=8, rng=rng)
    assert distances(found, z, loss).mean() == pytest.approx(min(cost.values()), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_so_is_that_of_few_clusters(loss: Loss) -> None:
    z = random_draws(5, 7, 4)
    few = [label for label in all_partitions(7) if label.max() < 2]
    least = min(distances(label, z, loss).mean() for label in few)
    rng = np.random.default_rng(0)
    found = best_partition([np.zeros(7)], z, loss, most=2, n_starts=8, rng=rng)
    assert found.max() < 2
    assert distances(found, z, loss).mean() == pytest.approx(least, abs=1e-12)


def test_binder_s_expected_loss_is_that_of_the_matrix_of_pairs() -> None:
    z = random_draws(1, 9, 3)
    together = (z[:, None] == z).mean(axis=2)
    for seed in range(5):
        c = np.random.default_rng(seed).integers(3, size=9)
        expected = np.abs((c[:, None] == c) - together).mean()
        assert distances(c, z, "binder").mean() == pytest.approx(expected, abs=1e-12)


def test_the_expected_variation_of_information_is_above_the_bound_from_pairs() -> None:
    """Wade and Ghahramani's (2018), by Jensen's inequality, which needs the matrix alone."""
    z, n = random_draws(2, 9, 3), 9
    together = (z[:, None] == z).mean(axis=2)
    sizes = np.log2((z[:, None] == z).sum(axis=1)).mean(axis=1)
    for seed in range(5):
        c = np.random.default_rng(seed).integers(3, size=n)
        own = c[:, None] == c
        bound = np.log2(own.sum(axis=1)) - 2.0 * np.log2((own * together).sum(axis=1)) + sizes
        assert bound.mean() <= distances(c, z, "vi").mean() + 1e-12


def test_moves_lead_to_where_no_row_and_no_merger_helps() -> None:
    z = random_draws(4, 40, 4, 30)
    rng = np.random.default_rng(1)
    found = best_partition([np.zeros(40)], z, "vi", most=6, n_starts=1, rng=rng)
    least = distances(found, z, "vi").mean()
    for i in range(40):
        for cluster in range(found.max() + 2):
            other = found.copy()
            other[i] = cluster
            assert distances(other, z, "vi").mean() >= least - 1e-10
    for a in range(found.max() + 1):
        for b in range(a):
            other = np.where(found == a, b, found)
            assert distances(other, z, "vi").mean() >= least - 1e-10


@pytest.mark.parametrize("loss", LOSSES)
def test_names_of_components_play_no_part(loss: Loss) -> None:
    z, rng = random_draws(6, 30, 4, 20), np.random.default_rng(7)
    other = np.stack([rng.permutation(4)[draw] for draw in z.T], axis=1).astype(np.int16)
    found, again = (
        best_partition(draws.T, draws, loss, most=5, n_starts=3, rng=np.random.default_rng(8))
        for draws in (z, other)
    )
    np.testing.assert_array_equal(found, again)


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    """Return draws of three components that overlap."""
    return fits.one_dimensional(3, draws=50)


class TestPartition:
    def test_of_clusters_far_apart_it_is_theirs(self) -> None:
        post = fits.nuts_fit(draws=25)
        x = fits.faithful()
        far = x[(x["waiting"] < 55) | (x["waiting"] > 80)]
        for loss in LOSSES:
            found = bg.partition(post, far, loss=loss, random_seed=1)
            expected = pd.factorize(far["waiting"] < 70)[0]
            np.testing.assert_array_equal(found.labels, expected)
            pd.testing.assert_index_equal(found.labels.index, far.index)
            assert found.n_clusters == 2
            assert found.expected_loss < 1e-3
            assert list(found.p_occupied) == [0.0, 1.0]

    @pytest.mark.parametrize("loss", LOSSES)
    def test_it_is_the_best_of_all_partitions_of_eight_rows(
        self, post: xr.DataTree, loss: Loss
    ) -> None:
        x = np.linspace(-1.0, 3.0, 8)[:, None]
        found = bg.partition(post, x, loss=loss, max_clusters=8, random_seed=2)
        z = ask(post, x, None, "error").sample(np.random.default_rng(2))
        least = min(distances(label, z, loss).mean() for label in all_partitions(8))
        assert found.expected_loss == pytest.approx(least, abs=1e-12)
        expected = np.mean([by_scikit_learn(found.labels, draw, loss) for draw in z.T])
        assert found.expected_loss == pytest.approx(expected, abs=1e-12)
        occupied = [np.mean([len(set(draw)) == m for draw in z.T]) for m in (1, 2, 3)]
        np.testing.assert_allclose(found.p_occupied, occupied)
        assert list(found.p_occupied.index) == [1, 2, 3]

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_ball_is_its_definition(self, post: xr.DataTree, loss: Loss) -> None:
        x = np.linspace(-1.0, 3.0, 6)[:, None]
        found = bg.partition(post, x, loss=loss, ci_prob=0.8, random_seed=3)
        z = ask(post, x, None, "error").sample(np.random.default_rng(3))
        apart = np.array([by_scikit_learn(found.labels, draw, loss) for draw in z.T])
        size = np.array([len(set(draw)) for draw in z.T])
        ball = found.ball
        radius = float(ball["radius"])
        assert np.mean(apart <= radius + 1e-12) >= 0.8
        assert np.mean(apart < radius - 1e-12) < 0.8
        inside = apart <= radius + 1e-12
        chosen = {
            "horizontal": inside,
            "upper": inside & (size == size[inside].min()),
            "lower": inside & (size == size[inside].max()),
        }
        assert list(ball["bound"].to_numpy()) == list(chosen)
        for bound, among in chosen.items():
            own = ball.sel(bound=bound)
            assert float(own["distance"]) == pytest.approx(apart[among].max(), abs=1e-12)
            assert int(own["n_clusters"]) in set(size[among])
            label = own["label"].to_numpy()
            assert any(by_scikit_learn(label, draw, loss) < 1e-12 for draw in z.T[among])
            at = by_scikit_learn(found.labels, label, loss)
            assert at == pytest.approx(float(own["distance"]), abs=1e-12)
        assert float(ball["distance"].sel(bound="horizontal")) == pytest.approx(radius)
        assert int(ball["n_clusters"].sel(bound="upper")) < 3
        assert ball.attrs == {"ci_prob": 0.8}

    def test_the_same_seed_gives_the_same_whatever_the_threads(self, post: xr.DataTree) -> None:
        found = [bg.partition(post, random_seed=4)]
        for threads in (1, 3):
            with threadpool_limits(threads):
                found.append(bg.partition(post, random_seed=4))
        for other in found[1:]:
            pd.testing.assert_series_equal(other.labels, found[0].labels)
            assert other.expected_loss == found[0].expected_loss
            xr.testing.assert_identical(other.ball, found[0].ball)
        assert bg.partition(post, random_seed=5).expected_loss != found[0].expected_loss

    def test_labels_count_from_the_first_row(self, post: xr.DataTree) -> None:
        found = bg.partition(post, random_seed=1)
        first = found.labels.drop_duplicates()
        assert list(first) == list(range(found.n_clusters))
        assert found.labels.name == "cluster"

    def test_no_more_clusters_than_asked_for(self, post: xr.DataTree) -> None:
        one = bg.partition(post, max_clusters=1, random_seed=1)
        assert one.n_clusters == 1
        some = bg.partition(post, random_seed=1)
        assert some.n_clusters <= 3
        assert some.expected_loss <= one.expected_loss

    def test_its_text_says_what_was_found(self, post: xr.DataTree) -> None:
        text = repr(bg.partition(post, random_seed=1))
        assert text.startswith("Partition of 60 rows into ")
        assert "95 % of the posterior within" in text
        assert "bits" in text
        assert "bits" not in repr(bg.partition(post, loss="binder", random_seed=1))

    def test_weighted_rows_are_refused(self, post: xr.DataTree) -> None:
        weighted = post.copy()
        weight = xr.full_like(post["constant_data"]["sample_weight"], 2.0)
        weighted["constant_data"] = xr.DataTree(xr.Dataset({"sample_weight": weight}))
        with pytest.raises(NotYetSupportedError, match=r"^fit: has weighted rows"):
            bg.partition(weighted)
        x = post["observed_data"]["x"].to_numpy()
        assert len(bg.partition(weighted, np.repeat(x, 2, axis=0)).labels) == 120

    def test_rows_of_weight_zero_are_left_out(self, post: xr.DataTree) -> None:
        weighted, x = post.copy(), post["observed_data"]["x"].to_numpy()
        weight = xr.ones_like(post["constant_data"]["sample_weight"])
        weight[[3, 40]] = 0.0
        weighted["constant_data"] = xr.DataTree(xr.Dataset({"sample_weight": weight}))
        found = bg.partition(weighted, random_seed=1)
        assert list(found.labels.index) == [i for i in range(60) if i not in (3, 40)]
        other = bg.partition(post, np.delete(x, [3, 40], axis=0), random_seed=1)
        np.testing.assert_array_equal(found.labels, other.labels)
        assert bg.posterior_predictive(weighted)["posterior_predictive"].sizes["obs"] == 58
        assert "58 rows" in bg.plot_coclustering(weighted, random_seed=1).alt
        with pytest.raises(ArgumentError, match=r"^rows: has some of weight 0"):
            bg.plot_coclustering(weighted, rows=[2, 3], random_seed=1)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"loss": "omari"}, "^loss: must be 'vi' or 'binder'"),
            ({"ci_prob": 0.0}, "^ci_prob"),
            ({"max_clusters": 0}, "^max_clusters: must be an integer of at least 1"),
            ({"n_starts": -1}, "^n_starts: must be an integer of at least 0"),
            ({"random_seed": 0.5}, "^random_seed"),
            ({"draws": 0}, "^draws"),
        ],
    )
    def test_wrong_arguments(
        self, post: xr.DataTree, wrong: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ArgumentError, match=message):
            bg.partition(post, **wrong)

    def test_too_many_numbers(self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
        from bayesgmm.allocation import partition

        monkeypatch.setattr(partition, "MOST", 60 * 150)
        with pytest.raises(ArgumentError, match=r"^draws: 60 rows times 200 draws .*draws=150"):
            bg.partition(post)
        assert bg.partition(post, draws=150, random_seed=1).n_clusters >= 1
        with pytest.raises(ArgumentError, match=r"^max_clusters: 50 times 100 .*max_clusters=30"):
            bg.partition(post, draws=100, max_clusters=50)

    def test_one_row_and_a_point_estimate(self, post: xr.DataTree) -> None:
        assert list(bg.partition(post, [[0.5]], random_seed=1).labels) == [0]
        with pytest.raises(ArgumentError, match=r"^fit: is a point estimate"):
            bg.partition(fits.em_fit())
