"""Missing values, known labels, noise and fixed parameters in the posterior, as EM has them.

The log-posterior by hand against sums over the rows by SciPy, EM's log-likelihood, and closed forms
where labels leave nothing to guess.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr
from models import PYTHON, table
from scipy.special import logsumexp
from scipy.stats import binomtest, chisquare, kstest, multivariate_normal
from test_density import pymcs
from test_posterior import gaps

import bayesgmm as bg
from bayesgmm import groups, tree
from bayesgmm.checks import Verdict
from bayesgmm.data.observations import read_for
from bayesgmm.em.fit import checked_region
from bayesgmm.errors import ArgumentError, BayesgmmWarning, DataError, NotYetSupportedError
from bayesgmm.information.fixed import read_fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Noise, Parameters
from bayesgmm.noise import NOISE, Region
from bayesgmm.posterior.model import _draw_rows, build
from bayesgmm.prior import ConjugatePrior, HierarchicalInverseGamma, SeparationPrior
from bayesgmm.resolved import log_density as log_prior
from bayesgmm.resolved import measure_exponent, resolve
from bayesgmm.target.density import Target, target

NAN = np.nan
SEPARATION = SeparationPrior(weight_concentration=1.5)
IRIS = table("iris", 3).iloc[::2].reset_index(drop=True)
ALONE = IRIS.iloc[:, :1]


def with_holes(x: pd.DataFrame) -> pd.DataFrame:
    """A fifth of the cells taken out, with one row of which nothing is left but its label."""
    holes = x.mask(np.random.default_rng(1).random(x.shape) < 0.2)
    holes.iloc[7] = NAN
    return holes


def some_labels(n: int, k: int) -> np.ndarray:
    """A third of the rows have one, the seventh among them."""
    label = np.resize(np.arange(k), n)
    label[np.resize([True, True, False], n)] = -1
    label[7] = 1
    return label


def probabilities(n: int, k: int, kinds: int | None = None) -> np.ndarray:
    """Rows that differ, or of some kinds; the first cannot be of component 0."""
    p = np.random.default_rng(2).dirichlet(np.ones(k), kinds or n)
    p[0, 0] = 0.0
    p[1] = 1.0
    return np.resize(p / p.sum(axis=1, keepdims=True), (n, k))


def of(spec: GaussianMixture, x: Any, fixed: Any = None, **known: Any) -> Target:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        data = read_for(spec, x, **known)
    held = None if fixed is None else read_fixed(fixed, spec.covariance, spec.n_components, data.d)
    return target(spec, data, resolve(spec, data), held, checked_region(spec, data, held))


def by_rows(t: Target, theta: dict[str, np.ndarray]) -> float:
    """The log-likelihood, one row after the other, by SciPy."""
    data, total = t.data, 0.0
    for i, row in enumerate(data.values):
        o = ~np.isnan(row)
        p = data.probability[i] / data.probability[i].max() if len(data.probability) else 1.0
        with np.errstate(divide="ignore"):
            joint = np.log(theta["weight"] * p)
        if o.any():
            each = zip(theta["mean"], theta["covariance"], strict=True)
            joint += [multivariate_normal(m[o], c[np.ix_(o, o)]).logpdf(row[o]) for m, c in each]
        if NOISE in theta:
            region = t.space.region
            volume = region.log_volume if o.all() else region.log_edges[o].sum()
            is_known = np.ptp(p) > 0  # of one of the components, then
            noise = -np.inf if is_known else np.log(theta[NOISE]) - volume
            joint = np.append(joint, noise)
        total += (data.weight[i] if len(data.weight) else 1.0) * logsumexp(joint)
    return float(total)


def jacobian(t: Target, point: np.ndarray) -> float:
    """Log-density of free weights, means and mode coordinates by the unconstrained vector."""
    space, chart = t.space, t.space.chart
    whole = space.whole.copy()
    whole[space.place] = point
    vector = whole[space.covariances]
    value = float(chart.log_jacobian @ vector[: chart.spectrum.shape[1]])
    if chart.family.is_polar:
        for block in np.split(vector[chart.spectrum.shape[1] :], chart.below.shape[1] // 3):
            a = np.zeros((3, 3))
            a[chart.rows, chart.columns] = block
            value -= 2.0 * np.linalg.slogdet(np.eye(3) + a - a.T)[1]
    m = space.n_free_weights
    if space.has_shares:  # of the weight of noise
        share = space.parameters(point)[NOISE]
        value += np.log(share) + np.log1p(-share)
    elif m > 1:
        theta = space.parameters(point)
        every = np.append(theta["weight"], theta.get(NOISE, []))
        value += np.log(every[np.isnan(space.log_fixed)]).sum()
    return value


def wanted(t: Target, spec: GaussianMixture, point: np.ndarray) -> float:
    """The log-posterior up to a constant, from the prior's density as `resolved` states it."""
    theta = t.parameters(point)
    prior = resolve(spec, t.data)
    every = np.append(theta["weight"], theta.get(NOISE, []))
    value = float(log_prior(prior, spec.covariance, every, theta["mean"], theta["covariance"]))
    # From the invariant measure to the mode coordinates.
    logdet = np.linalg.slogdet(theta["covariance"])[1]
    distinct = slice(0, 1) if spec.covariance.is_common else slice(None)
    value -= 0.5 * measure_exponent(spec.covariance, t.data.d) * logdet[distinct].sum()
    return value + by_rows(t, theta) + jacobian(t, point)


def near_the_data(t: Target, rng: np.random.Generator) -> np.ndarray:
    data, space = t.data, t.space
    point = 0.4 * rng.normal(size=t.size)
    whole = np.full(len(space.whole), NAN)
    complete = data.values[~np.isnan(data.values).any(axis=1)]
    whole[space.covariances.stop :] = rng.choice(
        complete, size=space.chart.k, replace=False
    ).ravel()
    means = whole[space.place]
    return np.where(np.isnan(means), point, means)


N = len(IRIS)
COVARIANCE = np.array([[0.3, 0.1, 0.2], [0.1, 0.2, 0.05], [0.2, 0.05, 0.5]])
MEANS = [[5.0, NAN, NAN], [NAN, NAN, 4.5], [NAN, 2.9, NAN]]
HOLES = {"missing": "marginalise"}
#: Specification, table, and what is known of it.
CASES: dict[str, tuple[GaussianMixture, Any, dict[str, Any]]] = {
    "missing, VVV": (GaussianMixture(3), with_holes(IRIS), {**HOLES, "labels": some_labels(N, 3)}),
    "missing, EII, weights": (
        GaussianMixture(2, "EII"),
        with_holes(IRIS).drop(index=7),
        {**HOLES, "sample_weight": np.resize([1.0, 2.0, 0.0], N - 1)},
    ),
    "missing, EVV, separation": (
        GaussianMixture(2, "EVV", SEPARATION),
        with_holes(IRIS).drop(index=7),
        HOLES,
    ),
    "missing, VEV, one component": (
        GaussianMixture(1, "VEV"),
        with_holes(IRIS).drop(index=7),
        HOLES,
    ),
    "labels, EVE": (GaussianMixture(3, "EVE"), IRIS, {"labels": some_labels(N, 3)}),
    "probabilities of a few kinds, VVI": (
        GaussianMixture(3, "VVI"),
        with_holes(IRIS).drop(index=7),
        {**HOLES, "labels": probabilities(N - 1, 3, 5)},
    ),
    "probabilities by row, VVV, weights": (
        GaussianMixture(3, "VVV", SEPARATION),
        with_holes(IRIS).drop(index=7),
        {
            **HOLES,
            "labels": probabilities(N - 1, 3),
            "sample_weight": np.resize([1.0, 2.0, 0.0, 1.0], N - 1),
        },
    ),
    "noise, VVV": (GaussianMixture(2, "VVV", noise=True), IRIS, {}),
    "noise of a volume, one component, separation": (
        GaussianMixture(1, "VVI", SEPARATION, noise=50.0),
        IRIS,
        {"sample_weight": np.resize([1.0, 2.0], N)},
    ),
    "noise and fixed means": (
        GaussianMixture(3, "EEE", noise=True),
        IRIS,
        {"fixed": {"mean": MEANS}},
    ),
    "noise, missing values and labels": (
        GaussianMixture(2, "VVV", noise=True),
        with_holes(IRIS),
        {**HOLES, "labels": some_labels(N, 2)},
    ),
    "noise, missing values and probabilities by row": (
        GaussianMixture(3, "EEV", noise=True),
        with_holes(IRIS).drop(index=7),
        {**HOLES, "labels": probabilities(N - 1, 3)},
    ),
    "noise of a volume, and labels": (
        GaussianMixture(2, "VII", noise=50.0),
        IRIS,
        {"labels": some_labels(N, 2)},
    ),
    "equal weights": (GaussianMixture(3, "VEE"), IRIS, {"fixed": {"weight": "equal"}}),
    "noise and equal weights": (
        GaussianMixture(3, "VVV", SEPARATION, noise=True),
        IRIS,
        {"fixed": {"weight": "equal"}},
    ),
    "noise, fixed weights and means, missing values": (
        GaussianMixture(3, "EEE", ConjugatePrior(weight_concentration=1.7), noise="columns"),
        with_holes(IRIS).drop(index=7),
        {**HOLES, "fixed": {"weight": [0.2, 0.3, 0.5], "mean": MEANS}},
    ),
    "noise of a volume, one component of fixed weight": (
        GaussianMixture(1, "VVI", noise=50.0),
        IRIS,
        {"fixed": {"weight": [1.0]}},
    ),
    "one weight of three": (
        GaussianMixture(3, "EEI", SEPARATION),
        IRIS,
        {"fixed": {"weight": [NAN, 0.25, NAN]}},
    ),
    "two weights of three, and means": (
        GaussianMixture(3, "VVV"),
        IRIS,
        {"fixed": {"weight": [0.2, 0.25, NAN], "mean": MEANS}},
    ),
    "one covariance of three": (
        GaussianMixture(3, "VVV", SEPARATION),
        IRIS,
        {"fixed": {"covariance": [np.full((3, 3), NAN), COVARIANCE, np.full((3, 3), NAN)]}},
    ),
    "one covariance of three, hierarchical": (
        GaussianMixture(3, "VVV", SeparationPrior(scale=HierarchicalInverseGamma())),
        IRIS,
        {"fixed": {"covariance": [np.full((3, 3), NAN), COVARIANCE, np.full((3, 3), NAN)]}},
    ),
    "all covariances, VEV, with missing values": (
        GaussianMixture(2, "VEV"),
        with_holes(IRIS),
        {**HOLES, "labels": some_labels(N, 2), "fixed": {"covariance": [COVARIANCE] * 2}},
    ),
    "one variance, V": (
        GaussianMixture(2, "V"),
        ALONE,
        {"fixed": {"covariance": [[[0.2]], [[NAN]]]}},
    ),
}


@cache
def case(name: str) -> Target:
    spec, x, known = CASES[name]
    return of(spec, x, **known)


@pytest.mark.parametrize("name", CASES)
class TestDensity:
    def test_it_is_prior_times_scipys_likelihood(self, name: str) -> None:
        t, rng = case(name), np.random.default_rng(1)
        points = [near_the_data(t, rng) for _ in range(2)]
        found = [t(point)[0] for point in points]
        sums = [wanted(t, CASES[name][0], point) for point in points]
        np.testing.assert_allclose(np.diff(found), np.diff(sums), rtol=1e-9, atol=1e-8)

    def test_the_likelihood_is_ems(self, name: str) -> None:
        """To 1e-12, at the same parameters; noise, labels and all."""
        t, prior = case(name), case(name).without_data()
        point = near_the_data(t, np.random.default_rng(2))
        theta, data, space = t.parameters(point), t.data, t.space
        noise = None
        if space.region is not None:
            noise = space.region.noise(float(theta[NOISE]))
        whole = Parameters(theta["weight"], theta["mean"], theta["covariance"], noise)
        row = groups.rows(data.groups, data.to_anchored(whole), data.n)[0]
        weight = data.weight if len(data.weight) else np.ones(data.n)
        em = float(weight @ (row + data.row_log_jacobian))
        assert t(point)[0] - prior(point)[0] == pytest.approx(em, rel=1e-12)

    def test_the_gradient_is_the_finite_difference(self, name: str) -> None:
        t, h = case(name), 1e-5
        point = near_the_data(t, np.random.default_rng(3))
        steps = [t(point + h * e)[0] - t(point - h * e)[0] for e in np.eye(t.size)]
        slope = t(point)[1]
        np.testing.assert_allclose(
            np.array(steps) / (2 * h), slope, rtol=1e-5, atol=1e-6 * abs(slope).max()
        )

    def test_a_point_has_parameters_and_they_have_the_point(self, name: str) -> None:
        t = case(name)
        points = np.array([near_the_data(t, np.random.default_rng(i)) for i in range(2)])
        theta = t.parameters(points)
        every = theta["weight"].sum(axis=-1) + theta.get(NOISE, 0.0)
        np.testing.assert_allclose(every, 1.0, rtol=1e-14)
        noise = Noise(float(theta[NOISE][1]), 0.0) if NOISE in theta else None
        one = Parameters(*(theta[n][1] for n in tree.DIMS), noise)
        again = t.parameters(t.point(one))
        for n, value in again.items():
            np.testing.assert_allclose(value, theta[n][1], rtol=1e-9, atol=1e-12)
        fixed = CASES[name][2].get("fixed", {})
        for n, given in fixed.items():
            given = np.full(t.space.chart.k, 1 / t.space.chart.k) if given == "equal" else given
            held = np.broadcast_to(given, theta[n].shape)
            free = np.isnan(held)
            if n == "weight" and NOISE in theta:  # shares of what is no noise
                shares = theta[n] / (1.0 - theta[NOISE])[:, None]
                np.testing.assert_allclose(shares, held, rtol=1e-14)
            else:
                np.testing.assert_array_equal(theta[n][~free], held[~free])


#: One of each shape, where PyMC's graphs, which are dear, are made.
AS_GRAPHS = (
    "missing, VVV",
    "probabilities by row, VVV, weights",
    "noise and fixed means",
    "noise of a volume, one component, separation",
    "noise, missing values and probabilities by row",
    "one covariance of three, hierarchical",
    "two weights of three, and means",
    "noise, fixed weights and means, missing values",
)


@cache
def graph(name: str) -> pm.Model:
    t = case(name)
    return build(CASES[name][0], t.data, t.space.held, t.space.region)


class TestPyMC:
    @pytest.mark.parametrize("name", AS_GRAPHS)
    def test_the_model_has_the_same_density_up_to_a_constant(self, name: str) -> None:
        """And the same gradient: to 1e-10 relative."""
        t, theirs, rng = case(name), pymcs(graph(name)), np.random.default_rng(4)
        points = [near_the_data(t, rng) for _ in range(3)]
        ours = [t(point) for point in points]
        wanted = [theirs(point) for point in points]
        values = np.array([[a[0], b[0]] for a, b in zip(ours, wanted, strict=True)])
        np.testing.assert_allclose(*np.diff(values, axis=0).T, rtol=1e-10)
        for (_, slope), (_, gradient) in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(
                slope, gradient, rtol=1e-10, atol=1e-10 * abs(gradient).max()
            )

    def test_what_is_free_has_its_own_name(self) -> None:
        free = {name: [rv.name for rv in graph(name).free_RVs] for name in AS_GRAPHS}
        assert free["missing, VVV"] == ["weight", "covariance", "mean"]
        assert free["noise and fixed means"] == ["free_weight", "covariance", "free_mean"]
        assert free["one covariance of three, hierarchical"] == [
            "weight",
            "free_covariance",
            "mean",
        ]
        assert free["two weights of three, and means"] == ["covariance", "free_mean"]
        assert free["noise, fixed weights and means, missing values"] == [
            "free_weight",
            "covariance",
            "free_mean",
        ]
        for name in AS_GRAPHS:
            dims = graph(name).named_vars_to_dims
            assert dims["weight"] == ("cluster",)
            assert dims["mean"] == ("cluster", "feature")
            assert dims["covariance"] == ("cluster", "feature", "feature_bis")
            assert (NOISE in graph(name).named_vars) == ("noise" in name)

    def test_log_likelihoods_of_rows_are_those_of_fits(self) -> None:
        """PyMC's of draws, with missing values and labels, row by row."""
        name = AS_GRAPHS[0]
        spec, x, known = CASES[name]
        fit = quiet(bg.fit_laplace, spec, x, draws=100, random_seed=1, **known)
        draws = fit["posterior"].to_dataset().isel(draw=slice(3))
        found = pm.compute_log_likelihood(
            xr.DataTree.from_dict({"posterior": draws}),
            model=graph(name),
            extend_inferencedata=False,
            progressbar=False,
            compile_kwargs={"mode": PYTHON},
        )
        kept = fit["log_likelihood"]["x"].isel(draw=slice(3))
        np.testing.assert_allclose(found["x"].to_numpy(), kept.to_numpy(), rtol=1e-9)

    def test_free_means_are_drawn_given_the_fixed(self) -> None:
        """And given the covariances; what these are given them is a potential, as PyMC says."""
        name = "noise and fixed means"
        with pytest.warns(UserWarning, match="Potentials"):
            prior = pm.sample_prior_predictive(
                300, model=graph(name), random_seed=1, compile_kwargs={"mode": PYTHON}
            )["prior"]
        s, mean = (prior[n].to_numpy()[0] for n in ("covariance", "mean"))
        resolved = resolve(CASES[name][0], case(name).data)
        fixed = np.array(MEANS)
        for j, o in enumerate(np.isfinite(fixed)):
            np.testing.assert_array_equal(mean[:, j, o], fixed[j, o][None].repeat(300, axis=0))
            slope = np.linalg.solve(s[:, j][:, o][:, :, o], s[:, j][:, o][:, :, ~o])
            gap = fixed[j, o] - resolved.mean[o]
            centre = resolved.mean[~o] + np.einsum("i,sij->sj", gap, slope)
            spread = s[:, j][:, ~o][:, :, ~o]
            spread = spread - np.swapaxes(s[:, j][:, o][:, :, ~o], 1, 2) @ slope
            factor = np.linalg.cholesky(spread / resolved.shrinkage)
            z = np.linalg.solve(factor, (mean[:, j, ~o] - centre)[..., None])
            assert kstest(z.ravel(), "norm").pvalue > 1e-3

    def test_rows_are_drawn_from_what_their_labels_allow_and_from_noise(self) -> None:
        n, far = 600, np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]])
        weight, eye = np.array([0.2, 0.3, 0.5]), np.eye(2)[None].repeat(3, axis=0)
        label = some_labels(n, 3)
        known = np.where(label[:, None] < 0, 1 / 3, np.eye(3)[label])
        graph = _draw_rows(
            known, None, pt.as_tensor(weight), pt.as_tensor(far), pt.as_tensor(eye), (n,)
        )
        drawn = pm.draw(graph, random_seed=1, mode=PYTHON)
        own = np.linalg.norm(drawn[:, None] - far, axis=2).argmin(axis=1)
        np.testing.assert_array_equal(own[label >= 0], label[label >= 0])
        count = np.bincount(own[label < 0])
        assert chisquare(count, weight * count.sum()).pvalue > 1e-3
        region = Region(np.log(8.0), np.array([5e3, 5e3]), np.array([[2.0, 0.0], [1.0, 4.0]]))
        weights = pt.as_tensor(np.array([0.2, 0.2, 0.2, 0.4]))
        graph = _draw_rows(
            np.empty((0, 0)), region, weights, pt.as_tensor(far), pt.as_tensor(eye), (n,)
        )
        drawn = pm.draw(graph, random_seed=1, mode=PYTHON)
        noise = drawn[drawn.min(axis=1) > 2e3]
        assert binomtest(len(noise), n, 0.4).pvalue > 1e-3
        place = np.linalg.solve(region.edges.T, (noise - region.corner).T)
        assert kstest(place.ravel(), "uniform").pvalue > 1e-3

    def test_noise_of_an_unknown_place_is_not_drawn(self) -> None:
        with pytest.raises(AssertionError, match="not where it is"):
            pm.draw(graph("noise of a volume, one component, separation")["x"], mode=PYTHON)

    def test_what_is_tied_to_what_is_fixed_is_not_drawn(self) -> None:
        one = graph("one covariance of three, hierarchical")["free_covariance"]
        with pytest.raises(NotYetSupportedError, match="hierarchical"):
            pm.draw(one, mode=PYTHON)


def quiet(function: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **options)


def worst(fit: xr.DataTree, wanted: dict[str, Any]) -> float:
    """The largest gap of a mean or sd of draws, in Monte Carlo errors: variable -> (mean, sd)."""
    found = 0.0
    for name, (mean, sd) in wanted.items():
        draws = fit["posterior"][name].to_numpy()
        for place in np.ndindex(*draws.shape[2:]):
            found = max(found, *gaps(draws[(..., *place)], mean[place], sd[place]))
    return found


class TestClosedForms:
    """Where all is known but the parameters of normal distributions."""

    def test_known_labels_leave_a_normal_inverse_wishart_for_each_class(self) -> None:
        x, label = table("iris", 2), np.repeat([0, 1, 2], 50)
        spec = GaussianMixture(3)
        fit = bg.sample_posterior(spec, x, labels=label, random_seed=2, progressbar=False)
        assert Verdict.from_json(fit.attrs["verdict"]).status == "ok"
        np.testing.assert_array_equal(fit["labels"]["margin"], 1.0)
        values, d, kappa = x.to_numpy(), 2, 0.01
        mean, sd = np.zeros((2, 3, d)), np.zeros((2, 3, d, d))
        for j in range(3):
            own = values[label == j]
            n, gap = len(own), own.mean(axis=0) - values.mean(axis=0)
            scatter = np.cov(values.T) / 3 + np.cov(own.T) * (n - 1)
            scatter += kappa * n / (kappa + n) * np.outer(gap, gap)
            nu = d + 2 + n
            expected = scatter / (nu - d - 1)
            mean[0, j] = (n * own.mean(axis=0) + kappa * values.mean(axis=0)) / (n + kappa)
            mean[1, j] = np.sqrt(np.diagonal(expected) / (n + kappa))
            product = np.outer(np.diagonal(scatter), np.diagonal(scatter))
            variance = (nu - d + 1) * scatter**2 + (nu - d - 1) * product
            sd[0, j] = expected
            sd[1, j] = np.sqrt(variance / ((nu - d) * (nu - d - 1) ** 2 * (nu - d - 3)))
        share = 51 / 153
        weight = np.full(3, share), np.full(3, np.sqrt(share * (1 - share) / 154))
        assert worst(fit, {"weight": weight, "mean": mean, "covariance": sd}) < 4.5

    def test_a_known_covariance_leaves_a_normal_mean(self) -> None:
        x = table("faithful").iloc[:40]
        s, n, kappa = np.array([[1.2, 10.0], [10.0, 170.0]]), 40, 2.0
        spec = GaussianMixture(1, prior=ConjugatePrior(shrinkage=kappa, mean=(3.0, 60.0)))
        fit = bg.fit_laplace(spec, x, fixed={"covariance": s[None]}, random_seed=1)
        mean = (n * x.to_numpy().mean(axis=0) + kappa * np.array([3.0, 60.0])) / (n + kappa)
        sd = np.sqrt(np.diagonal(s) / (n + kappa))
        assert worst(fit, {"mean": (mean[None], sd[None])}) < 4
        np.testing.assert_array_equal(fit["posterior"]["covariance"][0, 0, 0], s)

    def test_a_known_mean_says_something_of_the_covariance(self) -> None:
        """The prior given what is fixed: of the covariance, too, as its scale is that of means."""
        x, m = table("faithful").iloc[:40], np.array([3.0, 70.0])
        kappa, own = 5.0, np.array([4.0, 75.0])
        spec = GaussianMixture(
            1, prior=ConjugatePrior(shrinkage=kappa, mean=tuple(m), scale=(1.0, 150.0), dof=6.0)
        )
        fit = bg.sample_posterior(
            spec, x, fixed={"mean": own[None]}, random_seed=1, progressbar=False
        )
        gap = x.to_numpy() - own
        scatter = np.diag([1.0, 150.0]) + gap.T @ gap + kappa * np.outer(own - m, own - m)
        nu, d = 6.0 + 40 + 1, 2
        product = np.outer(np.diagonal(scatter), np.diagonal(scatter))
        variance = (nu - d + 1) * scatter**2 + (nu - d - 1) * product
        variance /= (nu - d) * (nu - d - 1) ** 2 * (nu - d - 3)
        found = {"covariance": (scatter[None] / (nu - d - 1), np.sqrt(variance)[None])}
        assert worst(fit, found) < 4

    def test_noise_shares_the_dirichlet_distribution(self) -> None:
        """No row says which it is: the weights have their prior, that of noise included."""
        x = pd.DataFrame({"a": np.random.default_rng(1).random(400)})
        # Rows as probable in the component, which cannot move, as in the noise.
        spec = GaussianMixture(
            1, "V", ConjugatePrior(weight_concentration=2.5), noise=float(np.sqrt(2 * np.pi) * 1e3)
        )
        fixed = {"mean": [[0.5]], "covariance": [[[1e6]]]}
        fit = quiet(bg.sample_posterior, spec, x, fixed=fixed, random_seed=1, progressbar=False)
        draws = fit["posterior"][NOISE].to_numpy()
        assert max(gaps(draws, 0.5, np.sqrt(0.25 / 6.0))) < 4
        assert kstest(draws[:, ::10].ravel(), "beta", (2.5, 2.5)).pvalue > 1e-3

    def test_the_weight_of_noise_beside_fixed_ones_has_the_same_density(self) -> None:
        """Dirichlet's on the line where the components' shares are fixed: a Beta distribution."""
        x = pd.DataFrame({"a": np.random.default_rng(1).random(400)})
        prior = ConjugatePrior(weight_concentration=2.5)
        spec = GaussianMixture(2, "V", prior, noise=float(np.sqrt(2 * np.pi) * 1e3))
        fixed = {"mean": [[0.5], [0.5]], "covariance": [[[1e6]], [[1e6]]], "weight": [0.3, 0.7]}
        fit = quiet(bg.sample_posterior, spec, x, fixed=fixed, random_seed=1, progressbar=False)
        draws = fit["posterior"][NOISE].to_numpy()
        assert kstest(draws[:, ::10].ravel(), "beta", (2.5, 2 * 1.5 + 1)).pvalue > 1e-3
        np.testing.assert_allclose(
            fit["posterior"]["weight"], (1 - draws[..., None]) * [0.3, 0.7], rtol=1e-12
        )

    def test_the_constants_of_free_and_of_fixed_weights_are_each_others(self) -> None:
        """Where weights change nothing else, their priors have the same integral: by quadrature."""
        x = ALONE.iloc[:3]
        prior = ConjugatePrior(weight_concentration=1.6, mean=0.5, scale=1.0)
        spec = GaussianMixture(2, "V", prior, noise=10.0)
        fixed = {"mean": [[5.0], [6.0]], "covariance": [[[0.5]], [[0.6]]]}
        free = of(spec, x, fixed=fixed).without_data()
        at = np.linspace(-12, 12, 241)
        grid = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
        whole = np.exp(free.values(grid)).sum() * (at[1] - at[0]) ** 2
        held = of(spec, x, fixed=fixed | {"weight": [0.3, 0.7]}).without_data()
        line = np.exp(held.values(at[:, None])).sum() * (at[1] - at[0])
        assert line == pytest.approx(whole, rel=1e-6)


class TestLaws:
    def test_an_incomplete_row_that_is_absent_changes_nothing(self) -> None:
        """By groups and without: the same density, to rounding."""
        x = pd.concat([IRIS, IRIS.iloc[:1].assign(**{IRIS.columns[0]: NAN})], ignore_index=True)
        weight = np.append(np.ones(N), 0.0)
        prior = SeparationPrior(mean=5.0, mean_sd=3.0, units="data")
        for letters in ("VVV", "EVI", "EVE"):
            spec = (
                GaussianMixture(3, letters)
                if letters == "EVE"
                else GaussianMixture(3, letters, prior)
            )
            plain = of(spec, IRIS)
            grouped = replace(plain, data=of(spec, x, sample_weight=weight, **HOLES).data)
            assert len(grouped.space.layout(grouped.data).observed) == 2
            point = near_the_data(plain, np.random.default_rng(1))
            (a, slope), (b, other) = plain(point), grouped(point)
            assert a == pytest.approx(b, rel=1e-13)
            np.testing.assert_allclose(slope, other, rtol=1e-11, atol=1e-11 * abs(slope).max())

    def test_with_many_rows_the_posterior_is_the_likelihood(self) -> None:
        """Values missing at random, some labels: mean at EM's maximum, sd its standard error."""
        rng = np.random.default_rng(3)
        label = rng.choice(2, size=6000, p=[0.4, 0.6])
        x = rng.normal(size=(6000, 2)) @ np.array([[1.0, 0.5], [0.0, 0.8]])
        x += np.array([[0.0, 0.0], [3.0, 1.0]])[label]
        x[rng.random(6000) < 0.3, 1] = NAN
        known = np.where(rng.random(6000) < 0.1, label, -1)
        spec, what = GaussianMixture(2), {**HOLES, "labels": known}
        mle = bg.fit_em(spec, x, random_seed=1, n_starts=4, **what)
        post = bg.fit_laplace(
            spec, x, mle=mle, random_seed=1, draws=2000, log_likelihood=False, **what
        )
        table = bg.compare(mle, post)
        assert float(abs(table["z"]).max()) < 0.15
        assert float(table["sd_ratio"].min()) > 0.93
        assert float(table["sd_ratio"].max()) < 1.07

    def test_equal_weights_are_fixed_and_labels_still_free(self) -> None:
        spec, fixed = GaussianMixture(2, "EEE"), {"weight": "equal"}
        x = table("faithful")
        mle = bg.fit_em(spec, x, fixed=fixed, random_seed=1, n_starts=3)
        post = bg.sample_posterior(
            spec, x, mle=mle, fixed=fixed, random_seed=1, progressbar=False, draws=600
        )
        verdict = Verdict.from_json(post.attrs["verdict"])
        assert verdict.status == "ok", verdict
        np.testing.assert_array_equal(post["posterior"]["weight"], 0.5)
        compared = bg.compare(mle, post)
        assert "weight" not in compared["variable"].to_numpy()
        assert float(abs(compared["z"]).max()) < 1
        other = bg.fit_em(spec, x, random_seed=1, n_starts=3)
        with pytest.raises(ArgumentError, match=r"^mle: has other parameters fixed"):
            bg.sample_posterior(spec, x, mle=other, fixed=fixed)
        with pytest.raises(ArgumentError, match="what is fixed"):
            bg.compare(other, post)


class TestTrees:
    def test_a_fit_says_what_it_was_made_of(self, tmp_path: Path) -> None:
        """As EM's does, saved and loaded; a row with nothing but its label is no end of LOO."""
        spec, x, known = CASES["missing, VVV"]
        known = known | {"fixed": {"weight": "equal"}}
        mle = quiet(bg.fit_em, spec, x, random_seed=1, n_starts=3, **known)
        post = quiet(bg.fit_laplace, spec, x, mle=mle, random_seed=1, draws=8000, **known)
        again = bg.load(bg.save(post, tmp_path / "fit.nc"))
        for fit in (post, again):
            for name in ("missing", "fixed", "noise", "fingerprint"):
                assert fit.attrs[name] == mle.attrs[name]
            np.testing.assert_array_equal(fit["observed_data"]["x"], mle["observed_data"]["x"])
            for name in ("label_probability", "sample_weight"):
                np.testing.assert_array_equal(
                    fit["constant_data"][name], mle["constant_data"][name]
                )
            rows = fit["log_likelihood"]["x"].to_numpy()
            np.testing.assert_allclose(rows.sum(axis=2), fit["sample_stats"]["loglik"])
            assert np.ptp(rows[..., 7]) == 0.0
            assert np.isfinite(fit["criteria"]["elpd_loo"])
        assert list(bg.compare(mle, again)["label"]) == list(bg.compare(mle, post)["label"])

    def test_noise_is_there_as_in_a_fit_by_em(self) -> None:
        x = table("faithful")
        spec = GaussianMixture(2, noise=True)
        mle = bg.fit_em(spec, x, random_seed=1, n_starts=3)
        post = bg.sample_posterior(spec, x, mle=mle, random_seed=1, draws=600, progressbar=False)
        assert Verdict.from_json(post.attrs["verdict"]).status == "ok"
        every = post["posterior"]["weight"].sum("cluster") + post["posterior"][NOISE]
        np.testing.assert_allclose(every, 1.0, rtol=1e-12)
        assert post.attrs["noise"] == mle.attrs["noise"]
        # The density of a draw, from its tree alone.
        one = post.isel(draw=[0], chain=[0])
        row = bg.score(one, x).to_numpy()
        np.testing.assert_allclose(row, post["log_likelihood"]["x"][0, 0], rtol=1e-10)
        compared = bg.compare(mle, post)
        assert NOISE in compared["label"].to_numpy()
        assert float(abs(compared["z"]).max()) < 1.5
        assert (bg.predict(post, x) == -1).any()
        with pytest.raises(ArgumentError, match="another specification"):
            bg.sample_posterior(GaussianMixture(2), x, mle=mle)
        with pytest.raises(ArgumentError, match=r"^post: .*: noise is 'box', but None in mle"):
            bg.compare(models.maximum(), post)

    def test_a_fit_without_noise_starts_with_half_a_row_of_it(self) -> None:
        x = pd.DataFrame(np.random.default_rng(1).normal(size=(200, 2)))
        spec = GaussianMixture(1, "VVI", noise=1e9)  # as good as impossible
        post = quiet(bg.sample_posterior, spec, x, random_seed=1, progressbar=False, draws=500)
        share = post["posterior"][NOISE].to_numpy()
        assert max(gaps(share, 1 / 202, np.sqrt(201 / 203) / 202)) < 4


class TestRefusals:
    def test_where_nothing_is_free_there_is_no_posterior(self) -> None:
        x, fixed = ALONE, {"mean": [[5.0]], "covariance": [[[0.5]]]}
        for call in (bg.sample_posterior, bg.fit_laplace, bg.to_pymc):
            with pytest.raises(ArgumentError, match=r"^fixed: leaves nothing free"):
                call(GaussianMixture(1, "V"), x, fixed=fixed)

    @pytest.mark.parametrize("call", [bg.sample_posterior, bg.fit_laplace, bg.to_pymc])
    def test_the_same_as_by_em(self, call: Any) -> None:
        with pytest.raises(DataError, match="missing"):
            call(GaussianMixture(2), with_holes(IRIS))
        with pytest.raises(ArgumentError, match=r"^labels:"):
            call(GaussianMixture(2), IRIS, labels=np.full(N, 5))
        one = [COVARIANCE, np.full((3, 3), NAN)]
        with pytest.raises(ArgumentError, match=r"^fixed: .*share parameters"):
            call(GaussianMixture(2, "VEE"), IRIS, fixed={"covariance": one})
        with pytest.raises(NotYetSupportedError, match=r"^noise: .*fix those of all"):
            call(GaussianMixture(2, noise=True), IRIS, fixed={"weight": [0.5, NAN]})
        sparse = ConjugatePrior(weight_concentration=0.4)
        with pytest.raises(ArgumentError, match=r"^fixed: .*must be above 0\.5 for 2 components"):
            call(GaussianMixture(2, "VVV", sparse, noise=True), IRIS, fixed={"weight": "equal"})
