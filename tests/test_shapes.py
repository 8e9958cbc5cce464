"""Missing values, known labels, noise and fixed parameters in the posterior, as EM has them.

The log-posterior by hand against sums over the rows by SciPy, EM's log-likelihood, and closed forms
where labels leave nothing to guess.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from models import table
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from test_density import pymcs

from bayesgmm import groups, tree
from bayesgmm.data.observations import read_for
from bayesgmm.em.fit import checked_region
from bayesgmm.errors import BayesgmmWarning
from bayesgmm.information.fixed import read_fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Noise, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.posterior.density import Target, target
from bayesgmm.posterior.model import build
from bayesgmm.prior import SeparationPrior
from bayesgmm.resolved import log_density as log_prior
from bayesgmm.resolved import resolve

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
            joint = np.append(joint, np.log(theta[NOISE]) - t.space.region.log_volume)
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
    if m > 1:
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
    from bayesgmm.resolved import measure_exponent

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
    "equal weights": (GaussianMixture(3, "VEE"), IRIS, {"fixed": {"weight": "equal"}}),
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
            noise = Noise(float(theta[NOISE]), -space.region.log_volume)
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
            np.testing.assert_array_equal(theta[n][~free], held[~free])


#: One of each shape, where PyMC's graphs, which are dear, are made.
AS_GRAPHS = (
    "missing, VVV",
    "probabilities by row, VVV, weights",
    "noise and fixed means",
    "noise of a volume, one component, separation",
    "one covariance of three",
    "two weights of three, and means",
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
        assert free["one covariance of three"] == ["weight", "free_covariance", "mean"]
        assert free["two weights of three, and means"] == ["covariance", "free_mean"]
        for name in AS_GRAPHS:
            dims = graph(name).named_vars_to_dims
            assert dims["weight"] == ("cluster",)
            assert dims["mean"] == ("cluster", "feature")
            assert dims["covariance"] == ("cluster", "feature", "feature_bis")
            assert (NOISE in graph(name).named_vars) == ("noise" in name)
