"""Marginals, conditionals and regression of a mixture: the product rule, SciPy, quadrature."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fits
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import registry
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm.covariance import Covariance
from bayesgmm.errors import ArgumentError, ColumnNameError, MissingValueError, PosteriorWarning
from bayesgmm.moments import Parameters
from bayesgmm.prediction import conditioning as module
from bayesgmm.prediction.conditioning import conditional, marginal, regress
from bayesgmm.tree import DIMS

NAMES = ["eruptions", "waiting"]


def mixture(seed: int, k: int = 3, d: int = 3, apart: float = 2.0) -> Parameters:
    return registry.mixture(np.random.default_rng(seed), Covariance("VVV"), k, d, apart)


def tree(draws: list[Parameters], names: list[str], family: str = "VVV") -> xr.DataTree:
    """A fit with these draws, in two chains if their number is even."""
    chains = 2 if len(draws) % 2 == 0 else 1
    stacked = {name: np.stack([getattr(p, name) for p in draws]) for name in DIMS}
    arrays = {name: a.reshape(chains, -1, *a.shape[1:]) for name, a in stacked.items()}
    fit = xr.DataTree.from_dict({"posterior": fits.dataset(arrays, names, ("chain", "draw"))})
    fit.attrs["spec"] = bg.GaussianMixture(draws[0].k, family).to_json()
    return fit


def posterior(
    seed: int, s: int = 40, k: int = 3, d: int = 3
) -> tuple[xr.DataTree, list[Parameters]]:
    """Draws about one mixture, as a fit and one by one."""
    rng, center = np.random.default_rng(seed), mixture(seed, k, d)
    draws = []
    for _ in range(s):
        weight = center.weight * np.exp(0.2 * rng.normal(size=k))
        turn = np.eye(d) + 0.1 * rng.normal(size=(k, d, d))
        covariance = turn @ center.covariance @ np.swapaxes(turn, 1, 2)
        mean = center.mean + 0.2 * rng.normal(size=(k, d))
        draws.append(Parameters(weight / weight.sum(), mean, covariance))
    return tree(draws, list("abcdefg"[:d])), draws


def density(p: Parameters, x: np.ndarray) -> np.ndarray:
    """log p(x) by SciPy, (n,)."""
    parts = zip(p.weight, p.mean, p.covariance, strict=True)
    joint = [np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in parts]
    return np.asarray(logsumexp(np.reshape(joint, (p.k, len(x))), axis=0))


def mean_density(draws: list[Parameters], x: np.ndarray) -> np.ndarray:
    return np.asarray(logsumexp([density(p, x) for p in draws], axis=0)) - np.log(len(draws))


def split_of(d: int, seed: int) -> tuple[list[int], list[int]]:
    """A random split of the columns, in random order, neither part empty."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(d).tolist()
    n_given = int(rng.integers(1, d))
    return order[:n_given], sorted(order[n_given:])


class TestTheProductRule:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 4))
    def test_of_one_mixture(self, seed: int, d: int, k: int) -> None:
        p, (observed, rest) = mixture(seed, k, d), split_of(d, seed)
        x = bg.simulate(p, 1, random_seed=seed).to_numpy()
        other = conditional(p, {j: x[0, j] for j in observed})
        left = density(marginal(p, observed), x[:, observed])
        assert_allclose(left + density(other, x[:, rest]), density(p, x), rtol=1e-10, atol=1e-10)

    def test_of_every_draw(self) -> None:
        fit, draws = posterior(1)
        x = bg.simulate(fit, 20, random_seed=1)
        for p in draws:
            for row in x.to_numpy():
                other = conditional(p, {2: row[2], 0: row[0]})
                both = density(marginal(p, [2, 0]), row[None, [2, 0]]) + density(
                    other, row[None, [1]]
                )
                assert_allclose(both, density(p, row[None]), rtol=1e-10)

    def test_of_the_mean_over_draws(self) -> None:
        """Draws count by the density that they give to the given values, to a draw's rounding."""
        fit, draws = posterior(2, s=400)
        with pytest.warns(PosteriorWarning, match="400 draws are worth 43"):
            found = conditional(fit, {"b": -6.0})
        at = np.linspace(-12, 12, 13)
        x = np.stack(np.broadcast_arrays(at[:, None], -6.0, at), axis=-1).reshape(-1, 3)
        exact = mean_density(draws, x) - mean_density([marginal(p, [1]) for p in draws], x[:, [1]])
        assert_allclose(
            bg.score(fit, x) - bg.score(marginal(fit, ["b"]), x[:, [1]]), exact, rtol=1e-9
        )
        equal = logsumexp([density(conditional(p, {1: -6.0}), x[:, [0, 2]]) for p in draws], axis=0)
        near, far = np.exp(bg.score(found, x[:, [0, 2]])), np.exp(equal) / len(draws)
        size = np.exp(exact).max()
        assert np.abs(near - np.exp(exact)).max() < 0.02 * size
        assert np.abs(far - np.exp(exact)).max() > 0.2 * size  # what equal weights would give

    @pytest.mark.parametrize("value", [0.0, 6.0, -16.0])
    def test_draws_come_up_as_often_as_their_weight_says(self, value: float) -> None:
        fit, draws = posterior(3, s=50)
        x = np.array([[value]])
        log_weight = np.array([density(marginal(p, [0]), x)[0] for p in draws])
        expected = 50 * np.exp(log_weight - logsumexp(log_weight))
        each = [conditional(p, {0: value}) for p in draws]
        effective = 1.0 / ((expected / 50) ** 2).sum()
        with pytest.warns(PosteriorWarning) if effective < 25 else nullcontext():
            found = conditional(fit, {"a": value})
        assert (effective < 25) == (value == -16.0)
        assert found.attrs["effective_draws"] == pytest.approx(effective, rel=1e-9)
        count: Counter[int] = Counter()
        group = found["posterior"]
        for weight, mean, covariance in zip(
            *(group[name].to_numpy()[0] for name in DIMS), strict=True
        ):
            s = next(i for i, p in enumerate(each) if np.allclose(p.mean, mean, rtol=1e-12))
            assert_allclose(weight, each[s].weight, rtol=1e-10)
            assert_allclose(covariance, each[s].covariance, rtol=1e-10)
            count[s] += 1
        assert all(abs(count[s] - expected[s]) < 1.0 for s in range(50))


class TestMarginals:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6), st.integers(2, 5))
    def test_against_quadrature(self, seed: int, d: int) -> None:
        """With one column integrated out: Gauss and Hermite, exact for a normal factor."""
        p = mixture(seed, 2, d)
        x = np.random.default_rng(seed).normal(size=d - 1)
        t = np.linspace(-60, 60, 6001)
        rows = np.column_stack([np.full(len(t), 1.0)[:, None] * x, t])
        total = np.trapezoid(np.exp(density(p, rows)), t)
        found = bg.score(marginal(p, list(range(d - 1))), x[None]).item()
        assert np.exp(found) == pytest.approx(total, rel=1e-8, abs=1e-300)

    def test_a_marginal_of_a_marginal(self) -> None:
        fit, _ = posterior(4, d=4)
        twice = marginal(marginal(fit, ["d", "a", "b"]), ["b", "d"])
        xr.testing.assert_equal(twice["posterior"], marginal(fit, ["b", "d"])["posterior"])
        steps = json.loads(twice.attrs["derivation"])
        assert steps == [{"marginal": ["d", "a", "b"]}, {"marginal": ["b", "d"]}]

    def test_all_columns_in_another_order(self) -> None:
        fit, _ = posterior(5)
        x = bg.simulate(fit, 10, random_seed=1)
        other = marginal(fit, ["c", "a", "b"])
        assert bg.simulate(other, 1).columns.tolist() == ["c", "a", "b"]
        assert_allclose(bg.score(other, x), bg.score(fit, x), rtol=1e-12)
        assert json.loads(other.attrs["spec"])["covariance"] == "VVV"

    def test_a_point_estimate_keeps_errors_and_data(self) -> None:
        whole, part = fits.em_fit(), marginal(fits.em_fit(), ["waiting"])
        a, b = bg.summary(whole), bg.summary(part)
        pd.testing.assert_frame_equal(a.loc[b.index], b)
        assert [name for name in b.index if "eruptions" in name] == []
        data = part["observed_data"]["x"]
        assert_array_equal(data, whole["observed_data"]["x"].sel(feature=["waiting"]))
        assert "criteria" not in part.children
        assert "fingerprint" not in part.attrs

    def test_a_fit_with_fewer_columns_is_a_fit(self, tmp_path: Path) -> None:
        frame = fits.faithful()
        for fit in (fits.em_fit(), fits.nuts_fit(chains=2, draws=20)):
            part = bg.load(bg.save(marginal(fit, ["waiting"]), tmp_path / "part.nc"))
            one = frame[["waiting"]]
            assert bg.simulate(part, 5, random_seed=0).shape == (5, 1)
            assert bg.predict_proba(part, one).shape == (272, 2)
            assert np.isfinite(bg.score(part, one)).all()
            assert len(bg.summary(part)) == 6
            mean = bg.predict_proba(marginal(fit, ["waiting"]), one)
            pd.testing.assert_frame_equal(bg.predict_proba(part, one), mean)


class TestConditionals:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6))
    def test_in_steps_or_at_once(self, seed: int) -> None:
        p = mixture(seed, 3, 4)
        a, b = np.random.default_rng(seed).normal(size=2)
        steps = conditional(conditional(p, {3: a}), {0: b})  # x0, x1, x2 are left
        once = conditional(p, {0: b, 3: a})
        for name in DIMS:
            assert_allclose(getattr(steps, name), getattr(once, name), rtol=1e-8, atol=1e-12)

    def test_given_nothing_it_is_the_fit(self) -> None:
        fit, draws = posterior(6)
        xr.testing.assert_equal(conditional(fit, {})["posterior"], fit["posterior"])
        same = conditional(draws[0], {})
        assert all(np.array_equal(getattr(same, n), getattr(draws[0], n)) for n in DIMS)

    def test_a_marginal_commutes(self) -> None:
        p = mixture(7, 3, 4)
        one = marginal(conditional(p, {1: 0.5}), [2])  # x3
        other = conditional(marginal(p, [1, 3]), {0: 0.5})
        for name in DIMS:
            assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)

    def test_independent_columns_tell_nothing_but_the_component(self) -> None:
        p = registry.mixture(np.random.default_rng(8), Covariance("VVI"), 3, 3)
        found = conditional(p, {0: 1.0})
        assert_array_equal(found.mean, p.mean[:, 1:])
        assert_allclose(found.covariance, p.covariance[:, 1:, 1:], rtol=1e-12)
        probability = bg.predict_proba(marginal(p, [0]), [[1.0]])
        assert_allclose(found.weight, probability.to_numpy()[0], rtol=1e-12)

    def test_a_series_is_a_mapping_and_the_rest_keeps_its_order(self) -> None:
        fit, _ = posterior(9)
        a = conditional(fit, {"b": 1.0})
        b = conditional(fit, pd.Series({"b": 1.0}))
        xr.testing.assert_equal(a["posterior"], b["posterior"])
        assert bg.simulate(a, 3).columns.tolist() == ["a", "c"]
        assert json.loads(a.attrs["derivation"]) == [{"given": {"b": 1.0}}]
        assert json.loads(a.attrs["spec"])["prior"] is None

    def test_a_component_of_weight_zero_stays_so(self) -> None:
        p = mixture(10)
        p = Parameters(np.array([0.0, 0.4, 0.6]), p.mean, p.covariance)
        two = conditional(Parameters(p.weight[1:], p.mean[1:], p.covariance[1:]), {0: 1.0})
        found = conditional(p, {0: 1.0})
        assert found.weight[0] == 0.0
        assert_allclose(found.weight[1:], two.weight, rtol=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_draws_from_it_are_those_of_the_joint_that_have_the_values(self, seed: int) -> None:
        """Rows of the joint in a thin slice about the given value, against rows drawn given it."""
        p = mixture(seed, 2, 2, apart=1.5)
        x = bg.simulate(p, 400_000, random_seed=seed).to_numpy()
        at = float(np.median(x[:, 0]))
        slice_ = x[np.abs(x[:, 0] - at) < 0.02, 1]
        own = bg.simulate(conditional(p, {0: at}), 100_000, random_seed=seed)["x0"].to_numpy()
        quantiles = np.linspace(0.05, 0.95, 10)
        share = [(slice_ <= q).mean() for q in np.quantile(own, quantiles)]
        se = np.sqrt(quantiles * (1 - quantiles) * (1 / len(slice_) + 1 / len(own)))
        assert (np.abs(share - quantiles) < 4.5 * se).all()


class TestFarAway:
    """All densities underflow, the logarithms do not."""

    @pytest.mark.parametrize("size", [50.0, 1e3, 1e6, 1e50, 1e100, 1e150, 1e200])
    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_the_widest_component_wins(self, size: float, sign: float) -> None:
        p = mixture(11, 3, 2)
        widest = p.covariance[:, 0, 0].argmax()
        found = conditional(p, {0: sign * size})
        assert_allclose(found.weight, np.eye(3)[widest], atol=1e-8)
        slope = p.covariance[widest, 1, 0] / p.covariance[widest, 0, 0]
        line = p.mean[widest, 1] + slope * (sign * size - p.mean[widest, 0])
        own = p.covariance[widest, 1, 1] - slope * p.covariance[widest, 1, 0]
        assert found.mean[widest, 0] == pytest.approx(line, rel=1e-12)
        mean, covariance = regress(p, [[sign * size]], [1], covariance=True)
        assert mean.iat[0, 0] == pytest.approx(line, rel=1e-6)
        if size > 1e3:
            assert covariance.item() == pytest.approx(own, rel=1e-9)

    @pytest.mark.parametrize("size", [30.0, 1e4, 1e8])
    def test_equal_widths_are_weighed_by_their_logarithms(self, size: float) -> None:
        p = Parameters(
            np.array([0.3, 0.7]),
            np.array([[0.0, 5.0], [1.0 / size, -5.0]]),
            np.broadcast_to(np.eye(2), (2, 2, 2)),
        )
        log_ratio = np.log(0.7 / 0.3) + 1.0 - 0.5 / size**2
        weight = 1.0 / (1.0 + np.exp(-log_ratio))
        found = conditional(p, {0: size})
        # As far as the digits of a squared distance of size**2 reach; at 1e8 there are none left.
        assert found.weight[1] == pytest.approx(weight, rel=min(1e-15 * size**2, 0.5))
        if size < 1e5:
            assert regress(p, [[size]], [1]).iat[0, 0] == pytest.approx(5 - 10 * weight, rel=1e-6)

    @pytest.mark.parametrize("size", [1e3, 1e9, 1e100, 1e180])
    def test_with_draws_one_has_all_the_weight(self, size: float) -> None:
        fit, draws = posterior(12, s=30, k=2, d=2)
        widest = max(draws, key=lambda p: p.covariance[:, 0, 0].max())
        with pytest.warns(PosteriorWarning, match=r"few-effective-draws.*30 draws are worth 1\.0"):
            found = conditional(fit, {"a": size})
        expected = conditional(widest, {0: size})
        assert_allclose(found["posterior"]["mean"][0], np.tile(expected.mean, (30, 1, 1)))
        mean, covariance = regress(fit, [[size]], ["b"], covariance=True)
        at = expected.weight.argmax()
        assert mean.iat[0, 0] == pytest.approx(expected.mean[at, 0], rel=1e-9)
        assert covariance.item() == pytest.approx(expected.covariance[at, 0, 0], rel=1e-9)

    def test_what_has_no_share_may_be_infinite(self) -> None:
        steep = np.array([[1.0, 1e4], [1e4, 2e8]])
        p = Parameters(np.full(2, 0.5), np.zeros((2, 2)), np.stack([steep, 4.0 * np.eye(2)]))
        mean, covariance = regress(p, [[1e306]], [1], covariance=True)
        assert (mean.iat[0, 0], covariance.item()) == (0.0, 4.0)

    @pytest.mark.parametrize("unit", [1e-150, 1e-100, 1e100, 1e140])
    def test_any_unit(self, unit: float) -> None:
        p = mixture(13)
        far = Parameters(p.weight, p.mean * unit, p.covariance * unit**2)
        a, b = conditional(p, {1: 0.7}), conditional(far, {1: 0.7 * unit})
        assert_allclose(b.weight, a.weight, rtol=1e-10)
        assert_allclose(b.mean, a.mean * unit, rtol=1e-10)
        assert_allclose(b.covariance, a.covariance * unit**2, rtol=1e-10)


class TestRegression:
    def test_mean_and_covariance_against_quadrature(self) -> None:
        p = mixture(14, 3, 2)
        t = np.linspace(-60, 60, 24_001)
        for value in (-4.0, 0.0, 2.5):
            rows = np.column_stack([np.full(len(t), value), t])
            f = np.exp(density(p, rows))
            total = np.trapezoid(f, t)
            mean = np.trapezoid(t * f, t) / total
            variance = np.trapezoid((t - mean) ** 2 * f, t) / total
            found, covariance = regress(p, [[value]], [1], covariance=True)
            assert found.iat[0, 0] == pytest.approx(mean, rel=1e-9)
            assert covariance.item() == pytest.approx(variance, rel=1e-9)

    @pytest.mark.parametrize("value", [(-1.0, 2.0), (0.3, 0.1), (5.0, -5.0)])
    def test_with_draws_it_is_the_conditional_of_the_mean_density(self, value: Any) -> None:
        fit, draws = posterior(15, d=3)
        t = np.linspace(-60, 60, 8001)
        rows = np.column_stack([np.full(len(t), value[0]), t, np.full(len(t), value[1])])
        f = np.exp(mean_density(draws, rows))
        total = np.trapezoid(f, t)
        mean = np.trapezoid(t * f, t) / total
        variance = np.trapezoid((t - mean) ** 2 * f, t) / total
        found, covariance = regress(fit, [value], ["b"], covariance=True)
        assert found.iat[0, 0] == pytest.approx(mean, rel=1e-8)
        assert covariance.item() == pytest.approx(variance, rel=1e-8)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6), st.integers(2, 5))
    def test_it_is_what_each_rows_conditional_says(self, seed: int, d: int) -> None:
        p, (observed, rest) = mixture(seed, 3, d), split_of(d, seed)
        x = bg.simulate(p, 4, random_seed=seed)
        observed = sorted(observed)
        mean, covariance = regress(p, x, rest, covariance=True)
        for i, row in enumerate(x.to_numpy()):
            q = conditional(p, {j: row[j] for j in observed})
            expected = q.weight @ q.mean
            apart = q.mean - expected
            spread = np.einsum("k,kij->ij", q.weight, q.covariance)
            spread += np.einsum("k,ki,kj->ij", q.weight, apart, apart)
            assert_allclose(mean.iloc[i], expected, rtol=1e-9, atol=1e-9)
            assert_allclose(covariance[i], spread, rtol=1e-9, atol=1e-12)

    def test_residuals_of_simulated_rows(self) -> None:
        """Mean zero, uncorrelated with what is given, and as large as it says."""
        fit, _ = posterior(16, s=20)
        x = bg.simulate(fit, 40_000, random_seed=3)
        mean, covariance = regress(fit, x, ["c", "a"], covariance=True)
        residual = x[["c", "a"]].to_numpy() - mean.to_numpy()
        given_b = x["b"].to_numpy()
        for factor in (np.ones(len(x)), given_b, np.tanh(given_b), given_b**2):
            for u in residual.T:
                z = u * factor
                assert abs(z.mean()) < 4.5 * z.std() / np.sqrt(len(z))
        product = residual[:, :, None] * residual[:, None, :] - covariance.to_numpy()
        assert (np.abs(product.mean(axis=0)) < 4.5 * product.std(axis=0) / np.sqrt(len(x))).all()

    def test_one_component_is_linear_regression(self) -> None:
        x = fits.faithful()
        fit = bg.fit_em(bg.GaussianMixture(1), x, random_seed=0)
        slope, intercept = np.polyfit(x["waiting"], x["eruptions"], 1)
        mean, covariance = regress(fit, x, ["eruptions"], covariance=True)
        assert_allclose(mean["eruptions"], intercept + slope * x["waiting"], rtol=1e-9)
        residual = x["eruptions"] - mean["eruptions"]
        assert_allclose(covariance.to_numpy().ravel(), (residual**2).mean(), rtol=1e-9)

    def test_blocks_change_nothing_but_rounding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fit, _ = posterior(17)
        x = bg.simulate(fit, 30, random_seed=1)
        whole = regress(fit, x, ["a"], covariance=True)
        monkeypatch.setattr(module, "_NUMBERS", 700)
        part = regress(fit, x, ["a"], covariance=True)
        assert_allclose(part[0], whole[0], rtol=1e-12)
        assert_allclose(part[1], whole[1], rtol=1e-12)

    def test_memory_does_not_grow_with_the_rows(self) -> None:
        fit, draws = posterior(18, s=40, k=2)
        x = bg.simulate(draws[0], 40_000, random_seed=1).to_numpy()[:, :2]
        regress(fit, x[:10], ["c"], covariance=True)
        tracemalloc.start()
        regress(fit, x, ["c"], covariance=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        one_array = 40_000 * 80 * 8  # rows by components: 26 MB, of which it would take several
        assert peak < one_array

    def test_some_draws(self) -> None:
        fit, draws = posterior(19, s=40)
        few = tree([draws[i] for i in (0, 20, 39)], list("abc"))
        x = bg.simulate(fit, 5, random_seed=1)
        assert_allclose(regress(fit, x, ["a"], draws=3), regress(few, x, ["a"]), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_units_and_offsets_go_through(seed: int, offset: float, unit: float) -> None:
    p = mixture(seed)
    rng = np.random.default_rng(seed)
    scale, shift = np.exp(rng.normal(size=3)) * unit, offset * rng.normal(size=3)
    q = Parameters(p.weight, p.mean * scale + shift, p.covariance * np.outer(scale, scale))
    x = bg.simulate(p, 5, random_seed=seed).to_numpy()
    a, one = regress(p, x, [1, 2], covariance=True)
    b, two = regress(q, x * scale + shift, [1, 2], covariance=True)
    size = np.abs(shift).max() / scale.min() + 1.0
    assert_allclose((b - shift[1:]) / scale[1:], a, rtol=1e-8, atol=1e-11 * size)
    assert_allclose(two / np.outer(scale[1:], scale[1:]), one, rtol=1e-8, atol=1e-11 * size)


def test_a_linear_map_of_what_is_given_says_the_same() -> None:
    p = mixture(20, 3, 4)
    turn = np.random.default_rng(1).normal(size=(2, 2))
    whole = np.eye(4)
    whole[:2, :2] = turn
    q = Parameters(p.weight, p.mean @ whole.T, whole @ p.covariance @ whole.T)
    given_x = np.array([0.4, -1.1])
    a = conditional(p, dict(enumerate(given_x)))
    b = conditional(q, dict(enumerate(turn @ given_x)))
    for name in DIMS:
        assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-10)


class TestFamilies:
    """The specification of what is left names the smallest family that is sure to hold it."""

    @staticmethod
    def is_member(family: Covariance, covariance: np.ndarray) -> bool:
        k, d = covariance.shape[:2]
        again = registry.compose(family, k, d, *registry.decompose(family, covariance))
        return np.allclose(again, covariance, rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("letters", [f.letters for f in registry.EVERY])
    @pytest.mark.parametrize("left", [1, 2, 3, 4])
    @pytest.mark.parametrize("what", ["marginal", "conditional"])
    def test_of_every_family(self, letters: str, left: int, what: str) -> None:
        k, d = 3, 4
        p = registry.mixture(np.random.default_rng(left), Covariance(letters), k, d)
        fit = tree([p], list("abcd"), letters)
        kept = list("abcd"[:left])
        part = (
            marginal(fit, kept)
            if what == "marginal"
            else conditional(fit, dict.fromkeys("abcd"[left:], 0.3))
        )
        family = Covariance(json.loads(part.attrs["spec"])["covariance"])
        covariance = part["posterior"]["covariance"].to_numpy()[0, 0]
        assert self.is_member(family, covariance)
        for smaller in family.nested:
            assert not self.is_member(smaller, covariance)


class TestTables:
    @pytest.mark.parametrize(
        "index",
        [
            pd.Index([f"day {i}" for i in range(6)], name="day"),
            pd.date_range("2024-01-01", periods=6, name="when"),
            pd.MultiIndex.from_product([["u", "v"], [1, 2, 3]], names=["site", "visit"]),
            pd.RangeIndex(10, 16),
        ],
    )
    def test_index_names_and_order_are_kept(self, index: pd.Index) -> None:
        fit, _ = posterior(21)
        x = bg.simulate(fit, 6, random_seed=1).set_index(index)
        mean, covariance = regress(fit, x[["b"]], ["c", "a"], covariance=True)
        pd.testing.assert_index_equal(mean.index, index)
        assert mean.columns.tolist() == ["c", "a"]
        assert covariance.dims == ("obs", "feature", "feature_bis")
        assert covariance["feature"].to_numpy().tolist() == ["c", "a"]
        assert covariance["obs"].to_numpy().tolist() == list(index.to_flat_index().to_numpy())
        other, turned = regress(fit, x[["b"]], ["a", "c"], covariance=True)
        pd.testing.assert_frame_equal(other[["c", "a"]], mean)
        assert_allclose(turned.sel(feature=["c", "a"], feature_bis=["c", "a"]), covariance)

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x,
            lambda x: x[["c", "b", "a"]],
            lambda x: x[["c", "b"]],
            lambda x: x.to_numpy(),
            lambda x: x[["b", "c"]].to_numpy(),
            lambda x: x[["b", "c"]].to_numpy().tolist(),
            lambda x: x.to_dict("list"),
            lambda x: x.assign(a=np.nan),
            pl.from_pandas,
            lambda x: pa.Table.from_pandas(x, preserve_index=False),
        ],
    )
    def test_any_table_with_or_without_what_is_asked_for(self, make: Callable[..., Any]) -> None:
        fit, _ = posterior(22)
        x = bg.simulate(fit, 6, random_seed=1)
        expected = regress(fit, x[["b", "c"]], ["a"])
        assert_array_equal(regress(fit, make(x), ["a"]), expected)

    def test_the_data_stay_as_they_are(self) -> None:
        fit, _ = posterior(23)
        x = bg.simulate(fit, 6, random_seed=1)
        before = x.copy()
        regress(fit, x, ["a"])
        pd.testing.assert_frame_equal(x, before)


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"d": 1.0}, ColumnNameError, "^given: the mixture has no 'd'; it has 'a', 'b', 'c'"),
            ({"a": np.nan}, ArgumentError, "^given: column 'a' must be finite"),
            ({"a": np.inf}, ArgumentError, "^given: column 'a' must be finite"),
            ({"a": "1"}, ArgumentError, "^given: column 'a' must be a number, not '1'"),
            ({"a": True}, ArgumentError, "^given: column 'a' must be a number"),
            ({"a": [1.0]}, ArgumentError, "^given: column 'a' must be a number"),
            (dict.fromkeys("abc", 0.0), ArgumentError, "^given: has every column"),
            (pd.DataFrame({"a": [1.0]}), ArgumentError, "^given: .* DataFrame; .* regress"),
            (1.0, ArgumentError, "^given: must map columns to numbers, not float"),
        ],
    )
    def test_given(self, given: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            conditional(posterior(24)[0], given)

    @pytest.mark.parametrize("verb", [marginal, lambda fit, c: regress(fit, np.ones((2, 3)), c)])
    @pytest.mark.parametrize(
        ("columns", "error", "message"),
        [
            ("a", ArgumentError, "^columns: must be a list of column names, not 'a'"),
            (3, ArgumentError, "^columns: must be a list of column names, not 3"),
            ([], ArgumentError, "^columns: names n"),
            (["a", "q", "r"], ColumnNameError, "^columns: the mixture has no 'q', 'r'"),
            (["a", "b", "a"], ColumnNameError, "^columns: names 'a' more than once"),
        ],
    )
    def test_columns(self, verb: Any, columns: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            verb(posterior(24)[0], columns)

    def test_regress(self) -> None:
        fit, _ = posterior(24)
        x = bg.simulate(fit, 4, random_seed=1)
        with pytest.raises(ArgumentError, match=r"^columns: leaves none to condition on"):
            regress(fit, x, ["a", "b", "c"])
        with pytest.raises(ColumnNameError, match="'b' missing"):
            regress(fit, x[["c"]], ["a"])
        with pytest.raises(ColumnNameError, match="'e' unexpected"):
            regress(fit, x.assign(e=1.0), ["a"])
        with pytest.raises(MissingValueError, match="row 2, column 'b'"):
            regress(fit, x.assign(b=[1.0, 2.0, np.nan, 3.0]), ["a"])
        with pytest.raises(ArgumentError, match=r"^draws: must be an integer of at least 1"):
            regress(fit, x, ["a"], draws=0)

    def test_what_is_no_mixture(self) -> None:
        p = mixture(25)
        for wrong, what in (
            (Parameters(p.weight, p.mean, -p.covariance), "symmetric and positive definite"),
            (Parameters(2 * p.weight, p.mean, p.covariance), "sum to one"),
            (Parameters(p.weight, p.mean * np.nan, p.covariance), "must be finite"),
        ):
            with pytest.raises(ArgumentError, match=rf"^fit: .*{what}$"):
                conditional(wrong, {0: 1.0})
        with pytest.raises(ArgumentError, match=r"^fit: .*not \(2,\), \(3, 3\), \(3, 3, 3\)"):
            conditional(Parameters(p.weight[:2], p.mean, p.covariance), {0: 1.0})
        fit, _ = posterior(25)
        fit["posterior"]["mean"].values[1, 3, 0, 0] = np.nan
        with pytest.raises(ArgumentError, match="draw 23 is not so"):
            regress(fit, np.ones((1, 2)), ["a"])
        for nothing in (xr.DataTree(), np.ones(3)):
            with pytest.raises(ArgumentError, match=r"^fit: must be a fit or Parameters"):
                marginal(nothing, ["a"])  # type: ignore[type-var]
