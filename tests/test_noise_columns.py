"""Single columns of a mixture with noise, and its likelihood-ratio test.

Oracles: SciPy's densities and distribution functions, quadrature, and rows that are drawn.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from scipy import integrate, stats
from test_noise import noisy

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.display.plots import _column
from bayesgmm.errors import ArgumentError, BayesgmmWarning
from bayesgmm.inference import lrt
from bayesgmm.noise import Region

BOX = bg.GaussianMixture(2, "VVV", noise="columns")


def three() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    return noisy().assign(c=lambda x: 0.4 * x["a"] + rng.normal(size=len(x)))


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def fit() -> xr.DataTree:
    found: xr.DataTree = quiet(bg.fit_em, BOX, three(), random_seed=1, n_starts=4)
    return found


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    found: xr.DataTree = quiet(bg.fit_laplace, BOX, three(), draws=400, random_seed=1)
    return found


@pytest.fixture(scope="module")
def turned() -> xr.DataTree:
    """A box along principal axes."""
    x = noisy() @ np.array([[1.0, 1.0], [-1.0, 1.0]])
    x.columns = ["a", "b"]
    found: xr.DataTree = quiet(
        bg.fit_em, bg.GaussianMixture(2, noise=True), x, random_seed=1, n_starts=4
    )
    assert tree.region_of(found).log_edges is None
    return found


def draws_of(fit: xr.DataTree) -> list[tuple[np.ndarray, ...]]:
    group = fit["posterior"].to_dataset()
    names = ("weight", "mean", "covariance", "noise_weight")
    flat = [group[n].to_numpy().reshape(-1, *group[n].shape[2:]) for n in names]
    return list(zip(*flat, strict=True))


def density(fit: xr.DataTree, x: np.ndarray, columns: list[int]) -> np.ndarray:
    """Mean over the draws of the density in some columns, by SciPy; noise inside its box."""
    box = sides(fit)
    total = np.zeros(len(x))
    draws = draws_of(fit)
    uniform = stats.uniform(box[0][columns], np.ptp(box, axis=0)[columns])
    for weight, mean, covariance, share in draws:
        for w, m, c in zip(weight, mean, covariance, strict=True):
            law = stats.multivariate_normal(m[columns], c[np.ix_(columns, columns)])
            total += w * law.pdf(x)
        total += share * uniform.pdf(x).prod(axis=1)
    return total / len(draws)


def sides(fit: xr.DataTree) -> np.ndarray:
    """Lower and upper ends of the box, (2, d): those of the data."""
    x = fit["observed_data"]["x"].to_numpy()
    return np.stack([x.min(axis=0), x.max(axis=0)])


class TestBox:
    def test_along_the_columns_it_is_that_of_the_data_whatever_their_axes(self, turned) -> None:
        x = pd.DataFrame(turned["observed_data"]["x"].to_numpy(), columns=["a", "b"])
        found = quiet(bg.fit_em, BOX, x, random_seed=1, n_starts=2)
        region = tree.region_of(found)
        np.testing.assert_allclose(region.log_edges, np.log(np.ptp(x, axis=0)), rtol=1e-12)
        np.testing.assert_allclose(region.corner, x.min(), rtol=1e-12)
        assert region.log_volume > tree.region_of(turned).log_volume
        assert bg.GaussianMixture.from_json(BOX.to_json()) == BOX
        assert BOX.n_parameters(3) == bg.GaussianMixture(2, "VVV", noise=True).n_parameters(3)

    def test_its_mean_and_covariance_are_those_of_rows_in_it(self) -> None:
        one = Region(np.log(8.0), np.array([1.0, -1.0]), np.array([[2.0, 0.0], [1.0, 4.0]]))
        drawn = one.draw(200_000, np.random.default_rng(0))
        np.testing.assert_allclose(one.mean, drawn.mean(axis=0), atol=0.01)
        np.testing.assert_allclose(one.covariance, np.cov(drawn.T), atol=0.01)


class TestMarginal:
    @pytest.mark.parametrize("which", ["fit", "post"])
    @pytest.mark.parametrize("columns", [["b"], ["c", "a"], ["c", "a", "b"]])
    def test_its_density_is_scipys(
        self, which: str, columns: list[str], request: pytest.FixtureRequest
    ) -> None:
        whole, x = request.getfixturevalue(which), three()[columns].iloc[:40]
        part = bg.marginal(whole, columns)
        at = [list("abc").index(name) for name in columns]
        expected = np.log(density(whole, x.to_numpy(), at))
        np.testing.assert_allclose(bg.score(part, x), expected, rtol=1e-10)
        assert tree.spec_of(part).noise == "columns"
        rows = bg.simulate(part, 50, random_seed=1)
        assert list(rows.columns) == columns

    def test_of_parameters_it_is_that_of_the_fit(self, fit) -> None:
        x = three()[["c", "a"]]
        part = bg.marginal(tree.point(fit), [2, 0])
        np.testing.assert_allclose(
            bg.score(part, x.to_numpy()), bg.score(bg.marginal(fit, ["c", "a"]), x), rtol=1e-12
        )

    def test_it_is_the_density_of_rows_of_which_the_rest_is_missing(self, fit) -> None:
        x = three()
        holes = x.assign(b=np.nan)
        np.testing.assert_allclose(
            bg.score(bg.marginal(fit, ["a", "c"]), x[["a", "c"]]),
            bg.score(fit, holes, missing="marginalise"),
            rtol=1e-10,
        )

    def test_predictive_density_and_pictures_have_it(self, post) -> None:
        at = np.linspace(*sides(post)[:, 1], 30)
        found = bg.predictive_density(post, {"b": at})["mean"]
        np.testing.assert_allclose(found, density(post, at[:, None], [1]), rtol=1e-9)
        both = bg.predictive_density(post, {"c": at[:5] / 9, "a": at[:4] / 9})["mean"].to_numpy()
        grid = np.stack(np.meshgrid(at[:5] / 9, at[:4] / 9, indexing="ij"), -1).reshape(-1, 2)
        np.testing.assert_allclose(both.ravel(), density(post, grid, [2, 0]), rtol=1e-9)
        curve = _column(post, 400, 1)
        assert curve.noise is not None
        total = curve.weight.sum(axis=1) + [one.weight for one in curve.noise]
        np.testing.assert_allclose(total, 1.0, atol=1e-12)


class TestConditional:
    @pytest.mark.parametrize("given", [["a"], ["c", "b"]])
    def test_the_product_rule_holds(self, fit, given: list[str]) -> None:
        rest = [name for name in "abc" if name not in given]
        x = three().iloc[:20]
        whole, part = bg.score(fit, x), bg.score(bg.marginal(fit, given), x[given])
        for i, row in x.iterrows():
            other = bg.conditional(fit, row[given].to_dict())
            found = bg.score(other, row[rest].to_frame().T).iloc[0]
            assert found == pytest.approx(whole[i] - part[i], rel=1e-9, abs=1e-9)
            point = bg.conditional(
                tree.point(fit), {"abc".index(name): row[name] for name in given}
            )
            again = bg.score(point, row[rest].to_numpy(dtype=float)[None]).iloc[0]
            assert again == pytest.approx(found, rel=1e-12)

    def test_draws_count_by_the_density_of_what_is_given_noise_included(self, post) -> None:
        found = quiet(bg.conditional, post, {"a": 12.0, "c": -2.0})  # of no component
        assert found["posterior"]["noise_weight"].min() > 0.99
        share = np.array([share for *_, share in draws_of(post)])
        effective = share.sum() ** 2 / (share**2).sum()
        assert found.attrs["effective_draws"] == pytest.approx(effective, rel=1e-3)


class TestRegression:
    @pytest.mark.parametrize("which", ["fit", "post"])
    def test_one_column_is_by_quadrature(self, which: str, request: pytest.FixtureRequest) -> None:
        whole, x = request.getfixturevalue(which), three().iloc[[0, 7, 30]]
        if which == "post":
            whole = whole.isel(draw=slice(0, 5), missing_dims="ignore")
        mean, covariance = bg.regress(whole, x, ["b"], covariance=True)
        low, high = sides(whole)[:, 1]
        b = np.linspace(low - 40.0, high + 40.0, 80_001)
        # Of the normal components everywhere, of noise where its box is: ends of it are no steps.
        b = np.sort(
            np.concatenate([b, [np.nextafter(low, -9e9), low, high, np.nextafter(high, 9e9)]])
        )
        for i, row in enumerate(x.to_numpy()):
            rows = np.stack(np.broadcast_arrays(row[0], b, row[2]), axis=-1)
            p = density(whole, rows, [0, 1, 2])
            total = integrate.trapezoid(p, b)
            first = integrate.trapezoid(p * b, b) / total
            second = integrate.trapezoid(p * (b - first) ** 2, b) / total
            assert mean.iloc[i, 0] == pytest.approx(first, abs=1e-6)
            assert float(covariance[i].squeeze()) == pytest.approx(second, rel=1e-6)

    def test_several_columns_are_those_of_rows_near_the_given_value(self, fit) -> None:
        rows = bg.simulate(fit, 2_000_000, random_seed=2)
        near = rows[np.abs(rows["a"] - 2.0) < 0.05]
        assert len(near) > 5000
        mean, covariance = bg.regress(fit, {"a": [2.0]}, ["b", "c"], covariance=True)
        error = near[["b", "c"]].std().to_numpy() / np.sqrt(len(near))
        assert (np.abs(near[["b", "c"]].mean() - mean.iloc[0]) < 5 * error).all()
        np.testing.assert_allclose(covariance[0], np.cov(near[["b", "c"]].T), rtol=0.1, atol=0.15)

    def test_far_from_all_components_it_is_the_centre_of_the_box(self, fit) -> None:
        mean, covariance = bg.regress(fit, {"a": [1e6]}, ["b", "c"], covariance=True)
        low, high = sides(fit)[:, 1:]
        np.testing.assert_allclose(mean.iloc[0], 0.5 * (low + high), rtol=1e-12)
        np.testing.assert_allclose(covariance[0], np.diag((high - low) ** 2 / 12), atol=1e-9)


class TestPit:
    def test_it_is_the_weighted_mean_of_distribution_functions(self, post) -> None:
        found = bg.loo_pit(post)["x"].to_numpy()
        loglik = post["log_likelihood"]["x"].to_numpy()
        log_weight, _ = array_stats.psislw(loglik[0].T, r_eff=1.0, axis=-1)
        box = sides(post)
        for f in range(3):
            x = three().iloc[:, f].to_numpy()
            below = np.zeros((len(x), loglik.shape[1]))
            for s, (weight, mean, covariance, share) in enumerate(draws_of(post)):
                sd = np.sqrt(covariance[:, f, f])
                below[:, s] = stats.norm(mean[:, f], sd).cdf(x[:, None]) @ weight
                below[:, s] += share * stats.uniform(box[0, f], np.ptp(box[:, f])).cdf(x)
            np.testing.assert_allclose(
                found[:, f], (np.exp(log_weight) * below).sum(axis=1), atol=1e-9
            )

    def test_rows_of_a_known_component_are_no_noise(self) -> None:
        x = noisy()[["a"]]
        label = np.where(np.abs(x["a"]) < 1.0, 0, np.where(np.abs(x["a"] - 6.0) < 1.0, 1, -1))
        spec = bg.GaussianMixture(2, "V", noise=True)
        post = quiet(bg.fit_laplace, spec, x, labels=label, draws=200, random_seed=1)
        found = bg.loo_pit(post)["x"].to_numpy().ravel()
        group = post["posterior"].to_dataset().mean(("chain", "draw"))
        for j in (0, 1):
            own = label == j
            law = stats.norm(
                float(group["mean"][j, 0]), np.sqrt(float(group["covariance"][j, 0, 0]))
            )
            np.testing.assert_allclose(found[own], law.cdf(x["a"][own]), atol=0.02)


class TestRefusals:
    @pytest.mark.parametrize(
        "call",
        [
            lambda fit: bg.marginal(fit, ["a"]),
            lambda fit: bg.conditional(fit, {"a": 0.0}),
            lambda fit: bg.regress(fit, {"a": [0.0]}, ["b"]),
        ],
        ids=["marginal", "conditional", "regress"],
    )
    def test_where_noise_is_not_uniform_that_is_said(self, turned, call) -> None:
        volume = quiet(
            bg.fit_em, bg.GaussianMixture(2, noise=1000.0), noisy(), random_seed=1, n_starts=2
        )
        with pytest.raises(ArgumentError, match=r"^fit: .*given volume.* noise='columns'"):
            call(volume)
        with pytest.raises(ArgumentError, match=r"^fit: .*principal axes.* noise='columns'"):
            call(turned)

    def test_all_columns_have_any_noise(self, turned) -> None:
        x = pd.DataFrame(turned["observed_data"]["x"].to_numpy(), columns=["a", "b"])
        other = bg.marginal(turned, ["b", "a"])
        np.testing.assert_allclose(bg.score(other, x[["b", "a"]]), bg.score(turned, x), rtol=1e-9)
        drawn = bg.simulate(other, 4000, random_seed=1)[["a", "b"]]
        assert (
            np.abs(drawn.cov() - bg.simulate(turned, 4000, random_seed=2).cov()).max(axis=None) < 5
        )
        volume = quiet(
            bg.fit_em, bg.GaussianMixture(2, noise=1000.0), noisy(), random_seed=1, n_starts=2
        )
        again = bg.conditional(volume, {})
        np.testing.assert_array_equal(bg.score(again, noisy()), bg.score(volume, noisy()))

    def test_of_parameters_nobody_knows_where_noise_is(self, fit, turned) -> None:
        with pytest.raises(ArgumentError, match=r"^fit: .*give the fit itself"):
            bg.regress(tree.point(fit), [[0.0, 0.0]], [1])
        with pytest.raises(ArgumentError, match=r"^fit: .*only the density is known"):
            bg.marginal(tree.point(turned), [0])

    def test_draws_in_such_a_box(self) -> None:
        x = noisy() @ np.array([[1.0, 1.0], [-1.0, 1.0]])
        x.columns = ["a", "b"]
        post = quiet(bg.fit_laplace, bg.GaussianMixture(2, noise=True), x, draws=100, random_seed=1)
        with pytest.raises(ArgumentError, match=r"^post: .*principal axes"):
            bg.loo_pit(post)
        with pytest.raises(ArgumentError, match=r"^fit: .*principal axes"):
            bg.predictive_density(post, columns="a")
        assert bg.predictive_density(post)["mean"].shape == (60, 60)


class TestLikelihoodRatio:
    def test_noise_is_in_both_and_in_the_replicates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = noisy(200)
        spec = bg.GaussianMixture(1, "VVV", noise=True)
        null = quiet(bg.fit_em, spec, x, random_seed=1)
        drawn, plain = [], lrt.simulated

        def spy(*args: Any) -> Any:
            drawn.append(plain(*args))
            return drawn[-1]

        monkeypatch.setattr(lrt, "simulated", spy)
        found = quiet(bg.bootstrap_lrt, null, draws=19, random_seed=1)
        larger = quiet(bg.fit_em, bg.GaussianMixture(2, "VVV", noise=True), x, random_seed=1)
        two, one = (float(f["criteria"]["loglik"]) for f in (larger, null))
        assert float(found["statistic"][0]) == pytest.approx(2.0 * (two - one), abs=1e-3)
        assert float(found["p_value"][0]) == 0.05
        assert float(found["n_failed"][0]) == 0
        # Replicates are rows of the null: their share of rows in the corners of the box is noise's.
        rows = np.concatenate([one.x for one in drawn]) * 1.0
        simulated = bg.simulate(null, 4000, random_seed=3)
        data = lrt.estimate_of(null).data
        other = data.anchored(simulated.to_numpy())
        for f in range(2):
            assert stats.ks_2samp(rows[:, f], other[:, f]).pvalue > 1e-3

    def test_under_the_null_it_is_not_rejected_too_often(self) -> None:
        rng, p = np.random.default_rng(11), []
        for i in range(12):
            x = np.concatenate([rng.normal(size=(90, 1)), rng.uniform(-10, 10, (30, 1))])
            spec = bg.GaussianMixture(1, "V", noise=True)
            found = quiet(bg.bootstrap_lrt, spec, x, draws=19, n_starts=2, random_seed=i)
            p.append(float(found["p_value"][0]))
        assert (np.array(p) <= 0.1).sum() <= stats.binom.ppf(0.999, 12, 0.1)
        assert np.mean(p) > 0.25

    def test_it_goes_on_to_more_components(self) -> None:
        spec = bg.GaussianMixture(1, "EEE", noise=True)
        found = quiet(
            bg.bootstrap_lrt,
            spec,
            noisy(200),
            max_components=3,
            draws=19,
            n_starts=1,
            random_seed=1,
        )
        assert found.attrs["n_components"] == 2
        assert (found["loglik_larger"] >= found["loglik"] - 1e-6).all()

    def test_noise_of_a_volume_cannot_be_drawn(self) -> None:
        with pytest.raises(ArgumentError, match=r"^null: has noise of a given volume"):
            quiet(bg.bootstrap_lrt, bg.GaussianMixture(1, noise=900.0), noisy(), draws=9)
