"""Every method finds planted labels, none is sure where nothing is, and each does what it says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import permutations, product
from typing import Any

import fits
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fits import labelled, permuted, put
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import rel_entr

import bayesgmm as bg
from bayesgmm import labelfree, tree
from bayesgmm.allocation import drawn
from bayesgmm.ambiguity import why_refused
from bayesgmm.checks import Check, Verdict
from bayesgmm.errors import ArgumentError, BayesgmmWarning, FitWarning, PosteriorWarning
from bayesgmm.labelling import methods, relabel, shares
from bayesgmm.labelling.shares import Shares
from bayesgmm.labels import AMBIGUOUS, AMBIGUOUS_LABELS, ambiguous_labels, ambiguous_share
from bayesgmm.moments import Parameters

METHODS = relabel.METHODS
TRUE = Parameters(
    np.array([0.5, 0.3, 0.2]),
    np.array([[0.0, 0.0], [5.0, 1.0], [-1.0, 6.0]]),
    np.stack([np.eye(2), np.array([[1.0, 0.5], [0.5, 2.0]]), 0.5 * np.eye(2)]),
)


def options(method: str) -> dict[str, Any]:
    return {"ordering": "mean[x0]"} if method == "ordering" else {}


def align(fit: xr.DataTree, method: str, **more: Any) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return bg.align(fit, method, random_seed=1, **options(method) | more)


@cache
def separated() -> tuple[fits.Arrays, np.ndarray]:
    """Draws about well separated components, in their order, and data."""
    rng = np.random.default_rng(4)
    size = (2, 30)
    weight = TRUE.weight * np.exp(0.1 * rng.normal(size=(*size, 3)))
    arrays = {
        "weight": weight / weight.sum(axis=-1, keepdims=True),
        "mean": TRUE.mean + 0.1 * rng.normal(size=(*size, 3, 2)),
        "covariance": TRUE.covariance * np.exp(0.1 * rng.normal(size=(*size, 3, 1, 1))),
    }
    return arrays, bg.simulate(TRUE, 90, random_seed=2).to_numpy()


@cache
def shuffles() -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack([rng.permutation(3) for _ in range(60)]).reshape(2, 30, 3)


@cache
def planted() -> xr.DataTree:
    arrays, x = separated()
    return labelled(permuted(arrays, shuffles()), x)


@cache
def hopeless(k: int) -> xr.DataTree:
    """Components that are drawn alike, on one cluster: any name is as good as another."""
    rng = np.random.default_rng(k)
    size = (2, 100)
    arrays = {
        "weight": rng.dirichlet(np.full(k, 10.0), size),
        "mean": 0.3 * rng.normal(size=(*size, k, 1)),
        "covariance": np.exp(0.3 * rng.normal(size=(*size, k, 1, 1))),
    }
    return labelled(arrays, rng.normal(size=(100, 1)))


@cache
def faithful() -> xr.DataTree:
    spec, x = bg.GaussianMixture(2), bg.datasets.load("faithful")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        mle = bg.fit_em(spec, x, random_seed=1, n_starts=2)
        return bg.fit_laplace(spec, x, mle=mle, draws=300, random_seed=1)


class TestPlanted:
    @pytest.mark.parametrize("method", METHODS)
    def test_the_planted_order_is_found(self, method: str) -> None:
        fit = planted()
        found = align(fit, method)
        order = found["labels"]["permutation"].to_numpy()
        names = np.take_along_axis(shuffles(), order, axis=2)  # the component of each label
        assert (names == names[0, 0]).all()
        assert (found["labels"]["margin"] > 0.5).all()
        true = permuted(separated()[0], np.broadcast_to(names[0, 0], names.shape))
        for name, value in true.items():
            assert_array_equal(found["posterior"][name].to_numpy(), value)
        assert found.attrs["alignment"].startswith(method)
        if method == "ordering":
            assert_array_equal(names[0, 0], np.argsort(TRUE.mean[:, 0]))

    @pytest.mark.parametrize("method", METHODS)
    def test_permuting_what_was_sampled_changes_nothing(self, method: str) -> None:
        """Once it is aligned: how components were called is in ``permutation`` alone."""
        arrays, x = separated()
        fit, other = labelled(arrays, x), labelled(arrays, x)
        back = np.argsort(shuffles(), axis=-1)
        put(other, "labels", "permutation", back)
        other["posterior_raw"] = xr.DataTree(
            fits.dataset(permuted(arrays, shuffles()), ["x0", "x1"], ("chain", "draw"))
        )
        one, two = align(fit, method), align(other, method)
        for name in tree.DIMS:
            assert_array_equal(two["posterior"][name], one["posterior"][name])
        assert_array_equal(two["labels"]["margin"], one["labels"]["margin"])
        raw = {n: two["posterior_raw"][n].to_numpy() for n in tree.DIMS}
        again = permuted(raw, two["labels"]["permutation"].to_numpy())
        for name, value in again.items():  # permutation leads from raw to aligned
            assert_array_equal(value, two["posterior"][name].to_numpy())

    def test_methods_agree_where_components_are_apart(self) -> None:
        fit = faithful()
        for method in METHODS:
            more = {"ordering": "mean[waiting]"} if method == "ordering" else {}
            found = align(fit, method, **more)
            for name in tree.DIMS:
                assert_array_equal(found["posterior"][name], fit["posterior"][name])
            assert found["labels"]["margin"].min() > 0.9

    def test_the_labels_are_those_of_the_pivot(self) -> None:
        order = [2, 0, 1]
        for method in ("pivot", "ecr", "pra"):
            found = align(planted(), method, pivot=TRUE.take(order))
            mean = found["posterior"]["mean"].mean(("chain", "draw"))
            assert_allclose(mean, TRUE.mean[order], atol=0.1)

    @pytest.mark.parametrize("method", METHODS)
    def test_label_free_quantities_do_not_change(self, method: str) -> None:
        found = align(planted(), method)
        assert_array_equal(found["label_free"]["between"], planted()["label_free"]["between"])
        new = labelfree.label_free(*(found["posterior"][n].to_numpy() for n in tree.DIMS))
        for name, value in new.items():
            assert_allclose(value, planted()["label_free"][name], rtol=1e-12, atol=1e-12)

    def test_it_is_saved_and_loaded(self, tmp_path: Any) -> None:
        found = align(planted(), "stephens")
        again = bg.load(bg.save(found, tmp_path / "fit.nc"))
        assert again.attrs["alignment"] == "stephens"
        assert_array_equal(
            np.atleast_1d(again["labels"].attrs["loss"]), found["labels"].attrs["loss"]
        )
        assert bg.summary(again).attrs["alignment"] == "stephens"

    def test_same_seed_same_bits_whatever_the_blocks(self, monkeypatch: Any) -> None:
        fit = hopeless(3)
        one = align(fit, "ecr-iterative-2")
        monkeypatch.setattr(shares, "_KEPT", 0)
        for module in (drawn, shares):
            monkeypatch.setattr(module, "NUMBERS", 7 * 300)
        two = align(fit, "ecr-iterative-2")
        assert_array_equal(two["labels"]["permutation"], one["labels"]["permutation"])
        assert_allclose(two["labels"]["margin"], one["labels"]["margin"], rtol=1e-9)


def shared_by(draws: Parameters, x: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Shares (s, n, k) of draws whose arrays have a leading dimension."""
    values = {name: getattr(draws, name)[None] for name in tree.DIMS}
    drawn = relabel._Task(labelled(values, x), "ecr").drawn
    return np.concatenate([share for _, share in Shares(drawn, drawn.k, seed).blocks()])


class TestHopeless:
    @pytest.mark.parametrize("k", [2, 4])
    @pytest.mark.parametrize("method", METHODS)
    def test_margins_are_low_and_components_are_refused(self, method: str, k: int) -> None:
        fit = hopeless(k)
        options = {"ordering": "mean[x0]"} if method == "ordering" else {}
        with pytest.warns(PosteriorWarning, match="ambiguous-labels"):
            found = bg.align(fit, method, random_seed=1, **options)
        margin = found["labels"]["margin"].to_numpy()
        assert AMBIGUOUS_LABELS.grade(ambiguous_share(margin)) != "ok"
        assert margin.min() < 0.5 * AMBIGUOUS
        if method == "pivot":
            assert "components exchange their roles" in why_refused(found)
        check = Verdict.from_json(found.attrs["verdict"]).checks[0]
        assert (check.code, check.status) == ("ambiguous-labels", ambiguous_labels(margin).status)

    def test_most_probable_allocations_would_be_sure_of_nothing(self) -> None:
        """Why allocations are drawn: of coincident components the larger has every row."""
        p = np.tile([0.6, 0.4], (200, 1))
        hard = np.tile([1.0, 0.0], (200, 1))
        weight = np.full(200, 1 / 200)
        sure = methods._cheapest(methods.mismatch(hard[None], hard, weight), None)
        assert sure.alignment.margin[0] == 1.0
        same = Parameters(np.array([[0.6, 0.4]] * 2), np.zeros((2, 2, 1)), np.ones((2, 2, 1, 1)))
        assert_allclose(shared_by(same, np.zeros((200, 1)))[0], p)
        one, two = shared_by(same, np.zeros((200, 1)), seed=3)
        found = methods._cheapest(methods.mismatch(one[None], two, weight), None)
        assert found.alignment.margin[0] < 0.3


class TestCosts:
    """Each cost by its definition, and the best labels by enumeration."""

    @pytest.fixture
    def shared(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(8)
        share = rng.dirichlet(np.ones(4), size=(6, 15))
        return share, rng.dirichlet(np.ones(4), size=15), rng.dirichlet(np.ones(15))

    def test_ecr_equals_the_enumeration_of_all_labellings(self) -> None:
        rng = np.random.default_rng(9)
        z, pivot = rng.integers(4, size=(8, 25)), rng.integers(4, size=25)
        one_hot = np.eye(4)
        weight = np.full(25, 1 / 25)
        found = methods._cheapest(methods.mismatch(one_hot[z], one_hot[pivot], weight), None)
        for s, order in enumerate(found.alignment.permutation):
            differing = {  # rows whose allocation, renamed, is another one than the pivot's
                p: int((np.argsort(p)[z[s]] != pivot).sum()) for p in permutations(range(4))
            }
            assert differing[tuple(order)] == min(differing.values())
            second = sorted(differing.values())[1]
            assert (found.alignment.margin[s] < 1e-12) == (second == min(differing.values()))
        best = [
            min(int((np.argsort(p)[z[s]] != pivot).sum()) for p in permutations(range(4)))
            for s in range(8)
        ]
        assert found.loss[0] == pytest.approx(np.mean(best) / 25)

    def test_ecr_by_hand(self) -> None:
        """Rows 0 0 0 1 1 in the pivot and 1 1 0 0 0 in the draw: exchanged, one row differs."""
        one_hot = np.eye(2)
        pivot, draw = one_hot[[0, 0, 0, 1, 1]], one_hot[[1, 1, 0, 0, 0]]
        cost = methods.mismatch(draw[None], pivot, np.full(5, 0.2))
        assert_allclose(cost[0], [[0.4, 0.1], [0.1, 0.4]])
        found = methods._cheapest(cost, None)
        assert_array_equal(found.alignment.permutation[0], [1, 0])
        assert found.alignment.margin[0] == pytest.approx((0.8 - 0.2) / (0.8 + 0.2))
        assert found.loss == (pytest.approx(0.2),)

    def test_stephens_total_is_the_divergence(self, shared: Any) -> None:
        share, pivot, weight = shared
        cost = methods.divergence(share, pivot, weight)
        assert (cost >= 0).all()
        for s in range(len(share)):
            for order in permutations(range(4)):
                kl = weight @ rel_entr(share[s][:, order], pivot).sum(axis=1)
                assert cost[s][order, range(4)].sum() == pytest.approx(kl, abs=1e-12)

    def test_a_component_without_rows_costs_something_finite(self) -> None:
        share = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
        pivot = np.array([[1.0, 0.0], [1.0, 0.0]])
        cost = methods.divergence(share, pivot, np.full(2, 0.5))
        assert np.isfinite(cost).all()
        assert cost[0, 0, 0] == cost[0, 1, 1] == 0.0

    def test_pra_maximises_the_scalar_product(self) -> None:
        rng = np.random.default_rng(10)
        draws, pivot = rng.normal(size=(20, 3, 5)), rng.normal(size=(3, 5))
        found = methods.to_parameters(draws, pivot)
        for theta, order in zip(draws, found.alignment.permutation, strict=True):
            product = {p: (theta[list(p)] * pivot).sum() for p in permutations(range(3))}
            assert tuple(order) == max(product, key=lambda p: product[p])

    def test_pra_does_not_depend_on_units(self) -> None:
        arrays, x = separated()
        unit = np.array([1e3, 1e-3])
        scaled = arrays | {
            "mean": arrays["mean"] * unit,
            "covariance": arrays["covariance"] * np.outer(unit, unit),
        }
        one, two = (align(labelled(*a), "pra") for a in ((arrays, x), (scaled, x * unit)))
        assert_allclose(two["labels"]["margin"], one["labels"]["margin"], rtol=1e-9)

    def test_ordering_sorts(self) -> None:
        values = np.random.default_rng(11).normal(size=(50, 4))
        found = methods.in_order(values)
        assert_array_equal(found.alignment.permutation, np.argsort(values, axis=1))


class TestTurns:
    def overlapping(self) -> Shares:
        fit = hopeless(3)
        task = relabel._Task(fit, "stephens")
        return task.shares()

    def test_stephens_loss_falls_at_every_turn_and_is_what_it_says(self) -> None:
        given = self.overlapping()
        weight = np.full(100, 0.01)
        found = methods.by_turns(given, weight, methods.divergence)
        assert len(found.loss) > 2
        assert (np.diff(found.loss) < 0).all()
        share = np.concatenate([part for _, part in given.blocks()])
        order = found.alignment.permutation
        labelled = np.take_along_axis(share, order[:, None], axis=2)
        own = rel_entr(labelled, labelled.mean(axis=0)).sum(axis=2) @ weight
        assert own.mean() <= found.loss[-1] + 1e-12  # with the average of the last labels
        changed = np.take_along_axis(share, order[:, None, ::-1], axis=2)
        other = rel_entr(changed, labelled.mean(axis=0)).sum(axis=2) @ weight
        assert (own <= other + 1e-12).all()  # a fixed point: no draw wants to be turned round

    @pytest.mark.parametrize("method", ["ecr-iterative-1", "ecr-iterative-2"])
    def test_the_loss_of_iterative_ecr_falls(self, method: str) -> None:
        loss = align(hopeless(4), method)["labels"].attrs["loss"]
        assert len(loss) > 1
        assert (np.diff(loss) < 0).all()

    def test_iterative_ecr_by_enumeration(self) -> None:
        """Three draws of four rows: the pivot is the most frequent allocation, to the end."""
        z = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]])
        given: Any = _Given(np.eye(2)[z])
        found = methods.by_turns(given, np.full(4, 0.25), methods.mismatch, is_hard=True)
        assert_array_equal(found.alignment.permutation, [[0, 1], [1, 0], [0, 1]])
        # Of all labellings of the second and third draw, with the mode of each as pivot.
        losses = []
        for orders in product(permutations(range(2)), repeat=2):
            named = np.stack(
                [z[0], *(np.argsort(p)[r] for p, r in zip(orders, z[1:], strict=True))]
            )
            mode = (named.mean(axis=0) > 0.5).astype(int)
            losses.append((named != mode).mean(axis=1).mean())
        assert found.loss[-1] == pytest.approx(min(losses)) == pytest.approx(0.25 / 3)


class _Given:
    """Shares that are given, in two blocks."""

    def __init__(self, share: np.ndarray) -> None:
        self.share = share
        self.s, self.n, self.k = share.shape

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        yield slice(0, 1), self.share[:1]
        yield slice(1, None), self.share[1:]


class TestShares:
    def test_frequencies_are_the_responsibilities(self) -> None:
        draw = Parameters(np.array([0.3, 0.7]), np.array([[0.0], [1.0]]), np.ones((2, 1, 1)))
        many = Parameters(*(np.stack([getattr(draw, name)] * 4000) for name in tree.DIMS))
        x = np.array([[0.2], [3.0]])
        expected = bg.predict_proba(draw, x).to_numpy()
        mean = shared_by(many, x, seed=1).mean(axis=0)
        assert_allclose(mean, expected, atol=4 * 0.5 / np.sqrt(4000))

    def test_too_many_are_refused_with_the_number(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(shares, "MOST", 60 * 90 * 3 - 1)
        with pytest.raises(ArgumentError, match=r"method: .* 60 x 90 x 3 = 1.6e\+04 .*thin"):
            align(planted(), "stephens")
        assert align(planted(), "pra").attrs["alignment"] == "pra"
        thin = planted().isel(draw=slice(None, None, 2), missing_dims="ignore")
        assert align(thin, "stephens")["posterior"].sizes["draw"] == 15


class TestKinds:
    def test_noise_missing_values_and_known_labels(self) -> None:
        rng = np.random.default_rng(12)
        x = bg.simulate(TRUE, 120, random_seed=3)
        x.columns = ["x0", "x1"]
        holes = x.mask(rng.random(x.shape) < 0.05)
        known = np.where(np.arange(120) < 20, bg.predict(TRUE, x.to_numpy()), -1)
        noisy = pd.concat([x, pd.DataFrame(rng.uniform(-20, 20, (10, 2)), columns=x.columns)])
        spec = bg.GaussianMixture(3, "EEE")
        for data, size, more in (
            (holes, spec, {"missing": "marginalise"}),
            (x, spec, {"labels": known}),
            (x, spec, {"fixed": {"weight": [0.5, 0.3, 0.2]}}),
            (noisy, bg.GaussianMixture(3, "EEE", noise=True), {}),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BayesgmmWarning)
                fit = bg.fit_em(size, data, random_seed=1, n_starts=2, **more)
                boot = bg.bootstrap(fit, draws=8, audited=0, random_seed=1)
            for method in METHODS:
                found = align(boot, method)
                order = found["labels"]["permutation"].to_numpy()
                if method != "ordering" or "labels" in more or "fixed" in more:
                    assert_array_equal(order, boot["labels"]["permutation"])
                assert (found["labels"]["margin"] > AMBIGUOUS).all()

    def test_components_that_are_known_are_never_exchanged(self) -> None:
        arrays, x = separated()
        fit = labelled(permuted(arrays, shuffles()), x, fixed='{"weight": [0.5, null, null]}')
        fixed = {"weight": [0.5, None, None], "mean": [[None] * 2] * 3}
        fixed |= {"covariance": [[[None] * 2] * 2] * 3}
        fit.attrs["fixed"] = json.dumps(fixed)
        for method in METHODS:
            assert (align(fit, method)["labels"]["permutation"].sel(cluster=0) == 0).all()


class TestVerdict:
    def test_a_draw_that_is_no_mixture_keeps_its_labels_and_is_unsure(self) -> None:
        arrays, x = separated()
        broken = {name: a.copy() for name, a in permuted(arrays, shuffles()).items()}
        fit = labelled(broken, x)
        values = fit["posterior"]["mean"].to_numpy().copy()
        values[0, 3, 1, 0] = np.nan
        put(fit, "posterior", "mean", values)
        for method in METHODS:
            found = align(fit, method)
            assert found["labels"]["margin"].to_numpy()[0, 3] == 0.0
            assert_array_equal(found["labels"]["permutation"].to_numpy()[0, 3], [0, 1, 2])
            assert (found["labels"]["margin"].to_numpy()[1] > 0.5).all()

    def test_what_depends_on_labels_is_judged_anew_and_nothing_else(self) -> None:
        fit = planted()
        old = [
            *("divergences", "rhat", "ambiguous-labels", "few-chains"),
        ]
        fit.attrs["verdict"] = Verdict(
            tuple(Check(code, "fail", "old", "old") for code in old)
        ).to_json()
        found = Verdict.from_json(align(fit, "pivot").attrs["verdict"]).checks
        assert [c.code for c in found] == old
        assert [c.evidence == "old" for c in found] == [True, False, False, True]
        assert found[2].status == "ok"

    def test_one_component_needs_no_label(self) -> None:
        fit = fits.one_dimensional(1, draws=20)
        both = ("chain", "draw")
        fit["labels"] = xr.DataTree(
            xr.Dataset(
                {
                    "permutation": ((*both, "cluster"), np.zeros((4, 20, 1), dtype=int)),
                    "margin": (both, np.ones((4, 20))),
                }
            )
        )
        fit["label_free"] = xr.DataTree(xr.Dataset({"loglik": fit["sample_stats"]["loglik"]}))
        for method in METHODS:
            found = bg.align(fit, method, random_seed=1)
            assert (found["labels"]["margin"] == 1.0).all()
            assert_array_equal(found["posterior"]["mean"], fit["posterior"]["mean"])

    def test_replicates_are_warned_of_as_a_fit(self) -> None:
        fit = hopeless(4).copy()
        fit.attrs["estimate"] = "nonparametric bootstrap"
        with pytest.warns(FitWarning, match="ambiguous-labels"):
            bg.align(fit)


REFUSED: dict[str, tuple[Callable[[xr.DataTree], Any], str]] = {
    "method": (lambda f: bg.align(f, "hungarian"), r"^method: must be one of pivot, ecr"),
    "pivot for stephens": (lambda f: bg.align(f, "stephens", pivot=TRUE), r"^pivot: is for pivot"),
    "a pivot with draws": (lambda f: bg.align(f, pivot=f), r"^pivot: has draws"),
    "another size": (lambda f: bg.align(f, pivot=TRUE.take([0, 1])), r"^pivot: has means of shape"),
    "no mixture": (
        lambda f: bg.align(f, "pra", pivot=Parameters(TRUE.weight, TRUE.mean, -TRUE.covariance)),
        r"^pivot: is no mixture",
    ),
    "a word": (lambda f: bg.align(f, pivot="mle"), r"^pivot: must be a point estimate"),
    "ordering": (
        lambda f: bg.align(f, "ordering", ordering="mean"),
        r"^ordering: must be one of weight, mean\[x0\], mean\[x1\], covariance\[x0, x0\], ",
    ),
    "ordering for pra": (lambda f: bg.align(f, "pra", ordering="weight"), r"^ordering: is for"),
    "seed": (lambda f: bg.align(f, "ecr", random_seed=-1), r"^random_seed"),
    "a part": (lambda f: bg.align(bg.marginal(f, ["x0"])), r"^fit: must be a whole fit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_named(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(ArgumentError, match=message):
        call(planted())


def test_every_parameter_of_a_component_orders() -> None:
    found = bg.align(planted(), "ordering", ordering="covariance[x1, x1]")
    value = found["posterior"]["covariance"].to_numpy()[..., 1, 1]
    assert (np.diff(value, axis=-1) > 0).all()
    assert found.attrs["alignment"] == "ordering by covariance[x1, x1]"
