"""Profile likelihoods against closed forms and brute force, and where there is none."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import registry
from numpy.testing import assert_allclose
from scipy.optimize import brentq, minimize
from scipy.stats import chi2, norm

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, FitWarning, NumericalError
from bayesgmm.inference.delta import derived
from bayesgmm.inference.profiling import profile
from bayesgmm.moments import Parameters
from bayesgmm.tree import point

ids = str
BOUND = chi2.ppf(0.95, 1)


def quiet(k, letters, x, **settings):
    settings = {"random_seed": 1, "n_starts": 2, "start": "kmeans"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bg.fit_em(bg.GaussianMixture(k, letters), x, **settings)


@pytest.fixture(scope="module")
def faithful():
    return quiet(2, "VVV", registry.table("faithful"))


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([rng.normal(0.0, 1.0, 60), rng.normal(3.0, 0.7, 40)])[:, None]


def ends(found) -> tuple[float, float]:
    return found["lower"].item(), found["upper"].item()


def loglik_1d(x, weight, mean, variance):
    return np.log(norm.pdf(x, mean, np.sqrt(variance)) @ weight).sum()


# One component: closed forms


def test_the_mean_of_one_normal_distribution():
    x = registry.table("iris").to_numpy()
    n, fit = len(x), quiet(1, "VVV", x)
    found = profile(fit, "mean[0, x2]")
    half = np.sqrt(x[:, 2].var() * np.expm1(BOUND / n))
    assert_allclose(ends(found), x[:, 2].mean() + np.array([-half, half]), rtol=1e-7)
    t = (found["value"] - x[:, 2].mean()) ** 2 / x[:, 2].var()
    assert_allclose(found["signed_root"] ** 2, n * np.log1p(t), atol=1e-6)


def test_the_variance_of_one_normal_distribution():
    x = registry.table("galaxies").to_numpy()[:, :1]
    n, v = len(x), x.var()
    fit = quiet(1, "V", x)

    def drop(c):
        return n * (np.log(c / v) + v / c - 1.0) - BOUND

    expected = brentq(drop, 0.1 * v, v), brentq(drop, v, 10 * v)
    label = bg.summary(fit).index[-1]
    assert_allclose(ends(profile(fit, label)), expected, rtol=1e-6)


@pytest.mark.parametrize("ci_prob", [0.5, 0.95, 0.999])
def test_the_correlation_of_one_normal_distribution(ci_prob):
    x = registry.table("faithful")
    n, r = len(x), np.corrcoef(x.T)[0, 1]
    bound = chi2.ppf(ci_prob, 1)

    def drop(c):
        return n * np.log((1 - c * r) ** 2 / ((1 - c**2) * (1 - r**2))) - bound

    expected = brentq(drop, 0.0, r), brentq(drop, r, 0.9999)
    fit = quiet(1, "VVV", x)
    found = profile(fit, "correlation[0, eruptions, waiting]", ci_prob=ci_prob)
    assert_allclose(ends(found), expected, rtol=1e-6)
    assert found.attrs["ci_prob"] == ci_prob
    assert found.attrs["note"] == ""


# Brute force


@pytest.mark.parametrize("label", ["weight[0]", "mean[0, x0]", "covariance[1, x0, x0]"])
def test_the_curve_is_what_a_general_optimiser_finds(small, label):
    """One coordinate held, the others by BFGS on SciPy's densities."""
    fit = quiet(2, "V", small)
    found = profile(fit, label)
    place = {"weight[0]": 0, "mean[0, x0]": 1, "covariance[1, x0, x0]": 4}[label]

    def objective(free, held):
        theta = np.insert(free, place, held)
        w = 1 / (1 + np.exp(-theta[0]))
        return -loglik_1d(small, np.array([w, 1 - w]), theta[1:3], np.exp(theta[3:]))

    forward = {0: lambda v: np.log(v / (1 - v)), 1: lambda v: v, 4: np.log}[place]
    p = point(fit)
    start = np.concatenate(
        [[np.log(p.weight[0] / p.weight[1])], p.mean.ravel(), np.log(p.covariance.ravel())]
    )
    for value, loglik in zip(found["value"].values, found["loglik"].values, strict=True):
        best = minimize(
            objective, np.delete(start, place), args=(forward(value),), options={"gtol": 1e-7}
        )
        assert loglik == pytest.approx(-best.fun, abs=2e-6)
    for end in ends(found):
        best = minimize(
            objective, np.delete(start, place), args=(forward(end),), options={"gtol": 1e-7}
        )
        drop = fit["criteria"]["loglik"].item() + best.fun
        assert drop == pytest.approx(0.5 * BOUND, abs=1e-5)


@pytest.mark.parametrize("family", registry.EVERY, ids=ids)
def test_constrained_maxima_of_every_family(family):
    """One mean held at the upper bound, the family's other coordinates by BFGS."""
    x = registry.table("faithful").to_numpy()
    found = profile(quiet(2, family.letters, x), "mean[0, x1]")
    top = found.isel(point=int(np.abs((found["value"] - found["upper"]).to_numpy()).argmin()))
    at_bound = Parameters(*(top[n].to_numpy() for n in ("weight", "mean", "covariance")))
    assert at_bound.mean[0, 1] == pytest.approx(found["upper"].item(), rel=1e-9)
    assert registry.loglik(x, at_bound) == pytest.approx(top["loglik"].item(), abs=1e-7)
    # From the estimate: another way to the same maximum.
    middle = found.isel(point=int(np.abs(found["signed_root"].to_numpy()).argmin()))
    start = Parameters(*(middle[n].to_numpy() for n in ("weight", "mean", "covariance")))
    theta, at = registry.coordinates(family, start)
    held = 1 + 1  # one log-ratio of weights, then the means
    theta[held] = found["upper"].item()
    free = np.delete(np.arange(len(theta)), held)
    unit = np.where(np.abs(theta) > 10, 5.0, 0.1)  # of the search: a mean of some 50

    def objective(numbers):
        full = theta.copy()
        full[free] = theta[free] + numbers * unit[free]
        pi, mean, covariance = at(full)
        return -registry.loglik(x, Parameters(pi, mean, covariance))

    best = minimize(objective, np.zeros(len(free)), method="BFGS", options={"gtol": 1e-4})
    assert top["loglik"].item() == pytest.approx(-best.fun, abs=1e-4)
    assert top["loglik"].item() >= -best.fun - 1e-7


def test_of_a_mode_it_is_the_posterior_density_that_falls():
    """K = 1: given the mean, the mode of the variance is in closed form."""
    x = registry.table("faithful").to_numpy()[:, :1]
    kappa = 5.0
    spec = bg.GaussianMixture(1, "V", prior=bg.ConjugatePrior(mean=3.0, shrinkage=kappa))
    fit = bg.fit_em(spec, x, estimate="map")
    found, p = profile(fit, "mean[0, x0]"), point(fit)
    divisor = len(x) + 6.0  # the default 3 degrees of freedom, 2 of the measure, 1 of the mean
    square = (len(x) + kappa) * (found["value"] - p.mean.item()) ** 2 / p.covariance.item()
    assert_allclose(found["signed_root"] ** 2, divisor * np.log1p(square / divisor), atol=1e-6)
    assert found["loglik"].max().item() == pytest.approx(fit["sample_stats"]["lp"].item())
    assert found.attrs["estimate"] == "map"


# Laws


def test_near_the_estimate_it_is_a_parabola(faithful):
    for label in ("weight[0]", "mean[1, waiting]", "covariance[0, eruptions, waiting]"):
        found = profile(faithful, label, ci_prob=0.01)
        assert_allclose(found["lower"], found["wald_lower"], rtol=1e-5)
        assert_allclose(found["upper"], found["wald_upper"], rtol=1e-5)
        assert found["se"].item() == pytest.approx(bg.summary(faithful).loc[label, "se"], rel=1e-5)


def test_for_many_rows_it_is_the_wald_interval():
    rng = np.random.default_rng(4)
    truth = Parameters(np.array([0.3, 0.7]), np.array([[0.0], [3.0]]), np.array([[[1.0]], [[2.0]]]))
    gaps = []
    for n in (400, 40_000):
        fit = quiet(2, "V", registry.simulate(rng, truth, n), start=truth)
        found = profile(fit, "covariance[0, x0, x0]")
        gaps.append(
            np.abs(
                [(found[s] - found[f"wald_{s}"]) / found["se"] for s in ("lower", "upper")]
            ).max()
        )
    assert gaps[1] < 0.03
    assert gaps[1] < 0.3 * gaps[0]


def test_functions_of_a_quantity_have_the_same_interval(faithful):
    variance = profile(faithful, "covariance[1, waiting, waiting]")
    sd = profile(faithful, "sd[1, waiting]")
    assert_allclose(np.sqrt(ends(variance)), ends(sd), rtol=1e-6)

    def own(p: Parameters) -> float:
        return float(p.covariance[1, 1, 1])

    plain, logged = profile(faithful, own), profile(faithful, own, scale="log")
    assert_allclose(ends(plain), ends(variance), rtol=1e-6)
    assert_allclose(ends(logged), ends(variance), rtol=1e-6)
    assert plain.attrs["parameter"] == "own"
    first, second = profile(faithful, "weight[0]"), profile(faithful, "weight[1]")
    assert_allclose(1.0 - np.array(ends(first)), ends(second)[::-1], rtol=1e-6)


def test_a_function_s_wald_interval_is_the_delta_method_s(faithful):
    def apart(p: Parameters) -> float:
        return float(p.mean[1, 1] - p.mean[0, 1])

    found, delta = profile(faithful, apart), derived(faithful, apart)
    assert found["se"].item() == pytest.approx(delta["se"].item(), rel=1e-6)
    assert found["wald_lower"].item() == pytest.approx(delta["wald95_lower"].item(), rel=1e-6)
    assert found["lower"] < found["estimate"] < found["upper"]


@pytest.mark.parametrize(("shift", "unit"), [(1e8, 1.0), (0.0, 1e-7)])
def test_offsets_and_units_change_nothing(faithful, shift, unit):
    x = registry.table("faithful")
    other = quiet(2, "VVV", x * unit + shift)
    for label, power in (("mean[0, waiting]", 1), ("covariance[1, eruptions, waiting]", 2)):
        one, two = profile(faithful, label), profile(other, label)
        here = np.array(ends(one)) - one["estimate"].item()
        there = np.array(ends(two)) - two["estimate"].item()
        assert_allclose(there, here * unit**power, rtol=1e-5)


def test_weights_are_repeated_rows(small):
    weight = np.random.default_rng(2).integers(1, 4, size=len(small))
    one = quiet(2, "V", small, sample_weight=weight, tol=1e-9)
    two = quiet(2, "V", np.repeat(small, weight, axis=0), tol=1e-9)
    a, b = (ends(profile(fit, "mean[1, x0]")) for fit in (one, two))
    assert_allclose(a, b, rtol=1e-9)


def test_the_curve_is_labelled_and_ordered(faithful):
    found = profile(faithful, "mean[0, waiting]")
    assert (np.diff(found["value"]) > 0).all()
    assert (np.diff(found["signed_root"]) > 0).all()
    assert_allclose(found["mean"].sel(cluster=0, feature="waiting"), found["value"], rtol=1e-9)
    assert found["loglik"].max().item() == pytest.approx(faithful["criteria"]["loglik"].item())
    assert found.attrs["ci_kind"] == "profile"
    assert json.loads(found.attrs["verdict"])["status"] == "ok"
    assert 10 <= found.sizes["point"] <= 20


# Where there is no bound


def test_a_component_that_the_data_can_do_without_has_no_bounds():
    rng = np.random.default_rng(9)
    x = np.concatenate([rng.normal(size=200), rng.normal(2.5, 1.0, size=6)])[:, None]
    fit, one = quiet(2, "E", x), quiet(1, "E", x)
    gain = fit["criteria"]["loglik"].item() - one["criteria"]["loglik"].item()
    assert gain < 0.5 * BOUND
    found = profile(fit, f"weight[{point(fit).weight.argmin()}]")
    assert ends(found) == (0.0, 1.0)
    assert f"only {gain:.3g} below its maximum" in found.attrs["note"]
    assert "no observations left" in found.attrs["note"]
    far = profile(fit, "mean[1, x0]")
    assert far["upper"].item() == np.inf


def test_a_higher_optimum_on_the_way_is_told_loudly():
    """acidity: mclust's start leads to a local optimum, 2.6 below another."""
    x = registry.table("acidity")
    labels = np.array(registry.golden("mclust/acidity")["init"]["2"]) - 1
    fit = quiet(2, "V", x, start=labels)
    with pytest.warns(FitWarning, match=r"(?s)profile of mean\[0, acidity\] is 2.* above .*"):
        found = profile(fit, "mean[0, acidity]")
    assert np.isnan(found["upper"].item())
    assert np.isfinite(found["lower"].item())
    assert "the estimate is not the highest optimum" in found.attrs["note"]
    assert json.loads(found.attrs["verdict"])["status"] == "fail"
    assert found["loglik"].max().item() > fit["criteria"]["loglik"].item() + 1.0


def test_what_is_no_maximum_is_refused(faithful):
    x = registry.table("faithful")
    early = quiet(2, "VVV", x, start="random", n_starts=1, max_iter=3, standard_errors=False)
    with pytest.raises(NumericalError, match="no strict maximum"):
        profile(early, "weight[0]")


def test_what_is_refused(faithful):
    with pytest.raises(ArgumentError, match=r"(?s)'weight\[2\]' is none of weight\[0\], weight"):
        profile(faithful, "weight[2]")
    with pytest.raises(ArgumentError, match="returns 2 numbers, not one"):
        profile(faithful, lambda p: p.weight)
    with pytest.raises(ArgumentError, match="does not change with what is free"):
        profile(faithful, lambda p: 1.0)
    with pytest.raises(ArgumentError, match="ci_prob"):
        profile(faithful, "weight[0]", ci_prob=1.0)
    with pytest.raises(ArgumentError, match="must be a fit by fit_em"):
        profile(registry.table("faithful"), "weight[0]")


def test_missing_values_are_integrated_over_on_the_way():
    """One normal distribution, a column complete: the profile of its mean is that without holes."""
    x = registry.table("faithful").to_numpy().copy()
    x[::3, 1] = np.nan
    fit = quiet(1, "VVV", x, missing="marginalise")
    v, n = x[:, 0].var(), len(x)
    half = np.sqrt(v * np.expm1(BOUND / n))
    found = profile(fit, "mean[0, x0]")
    assert_allclose(ends(found), x[:, 0].mean() + np.array([-half, half]), rtol=1e-6)
    assert found["loglik"].max().item() == pytest.approx(fit["criteria"]["loglik"].item())
    other = profile(fit, "mean[0, x1]")
    assert other["se"].item() == pytest.approx(bg.summary(fit).loc["mean[0, x1]", "se"], rel=1e-6)
