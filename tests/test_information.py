"""Observed information and standard errors: exact second derivatives for every family."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import registry
from numpy.testing import assert_allclose

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read
from bayesgmm.em.loop import run
from bayesgmm.em.start import Start, from_labels
from bayesgmm.information.observed import observed_information
from bayesgmm.moments import UNWEIGHTED, Parameters, accumulate
from bayesgmm.prior import ConjugatePrior
from bayesgmm.resolved import PseudoData, pseudo_data, pseudo_moments

ids = str


def optimum(x, family, k, labels, *, prior=False, weight=None):
    """A maximum to the last digits, in anchored units, with the data and the prior."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read(x, family=family, n_components=k, sample_weight=weight)
    pseudo = None
    if prior:
        pseudo = pseudo_data(
            ConjugatePrior(weight_concentration=1.5),
            family,
            k,
            mean=data.mean,
            covariance=data.covariance,
        )
    start = Start("labels", from_labels(data, family, np.asarray(labels), k))
    found = run(data, family, start, prior=pseudo, tol=1e-9, max_iter=50_000)
    assert found.reason in ("converged", "fixed point")
    return data, found, pseudo


def penalty(prior: PseudoData, weight, mean, covariance):
    """The log prior density in the coordinates in which MAP is its mode, complex or real."""
    value = (prior.concentration - 1.0) * np.log(weight).sum()
    for m, c in zip(mean, covariance, strict=True):
        offset = m - prior.mean
        logdet = np.log(np.linalg.det(c))
        count = prior.count + (prior.shrinkage > 0)
        quadratic = prior.shrinkage * offset @ np.linalg.solve(c, offset)
        trace = np.trace(np.linalg.solve(c, prior.scatter.astype(c.dtype)))
        value = value - 0.5 * (count * logdet + trace + quadratic)
    return value


def numerical(x, parameters: Parameters, family: Covariance, weight=UNWEIGHTED, prior=None):
    """Standard errors from a numerical Hessian in the family's own coordinates.

    One derivative by a complex step, which is exact, the other by a central difference.
    """
    theta, at = registry.coordinates(family, parameters)
    w = weight if len(weight) else 1.0

    def objective(numbers):
        pi, mean, covariance = at(numbers)
        value = (w * registry.complex_loglik(x, np.log(pi), mean, covariance)).sum()
        return value + (penalty(prior, pi, mean, covariance) if prior else 0.0)

    step, t = 1j * 1e-30, 1e-5
    unit = np.eye(len(theta))

    def slope(numbers):
        return np.array([objective(numbers + step * e).imag / 1e-30 for e in unit])

    hessian = np.array([slope(theta + t * e) - slope(theta - t * e) for e in unit]) / (2 * t)
    natural = np.array(
        [np.concatenate([v.ravel() for v in at(theta + step * e)]).imag / 1e-30 for e in unit]
    )
    covariance = np.linalg.inv(-0.5 * (hessian + hessian.T))
    variance = np.einsum("pi,pq,qi->i", natural, covariance, natural)
    return np.sqrt(np.maximum(variance, 0.0)), slope(theta)


def flat(se: Parameters) -> np.ndarray:
    return np.concatenate([se.weight.ravel(), se.mean.ravel(), se.covariance.ravel()])


def ours(data, found, family) -> np.ndarray:
    information = observed_information(data.x, found.parameters, found.moments, family, data.weight)
    assert information.is_positive_definite
    assert information.distance < 1e-6
    assert information.matrix.shape == (len(information.gradient),) * 2
    return flat(information.standard_errors())


# Every family


@pytest.mark.parametrize("name", ["faithful", "iris"])
@pytest.mark.parametrize("family", registry.EVERY, ids=ids)
def test_standard_errors_are_those_of_a_numerical_hessian(name, family):
    x = registry.table(name).to_numpy()[:, :3]
    labels = np.array(registry.golden(f"mclust/{name}")["init"]["2"]) - 1
    data, found, _ = optimum(x, family, 2, labels)
    expected, slope = numerical(data.x, found.parameters, family)
    assert_allclose(slope, 0.0, atol=1e-4)
    assert_allclose(ours(data, found, family), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", [*registry.POLAR, Covariance("VEE")], ids=ids)
def test_standard_errors_of_three_components(family):
    x = registry.table("iris").to_numpy()[:, [0, 2]]
    labels = np.array(registry.golden("mclust/iris")["init"]["3"]) - 1
    data, found, _ = optimum(x, family, 3, labels)
    expected, _ = numerical(data.x, found.parameters, family)
    assert_allclose(ours(data, found, family), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_standard_errors_of_the_mode_are_those_of_the_penalised_likelihood(family):
    x = registry.table("faithful").to_numpy()
    x = x[:, 1:] if family.is_one_dimensional else x
    labels = np.array(registry.golden("mclust/faithful")["init"]["2"]) - 1
    data, found, prior = optimum(x, family, 2, labels, prior=True)
    expected, slope = numerical(data.x, found.parameters, family, prior=prior)
    assert_allclose(slope, 0.0, atol=1e-4)
    assert_allclose(ours(data, found, family), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_one_component_in_closed_form(family):
    x = registry.table("iris").to_numpy()
    x = x[:, :1] if family.is_one_dimensional else x
    n, d = x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bg.fit_em(bg.GaussianMixture(1, family.letters), x)
    se = fit["standard_error"]
    covariance = fit["posterior"]["covariance"].to_numpy()[0, 0, 0]
    assert_allclose(se["weight"], 0.0, atol=1e-12)
    assert_allclose(se["mean"][0], np.sqrt(np.diag(covariance) / n), rtol=1e-9)
    variances = np.diag(covariance)
    if family.shape == "I":  # one variance from n d numbers
        expected = np.eye(d) * variances[0] * np.sqrt(2 / (n * d))
    elif family.is_diagonal:
        expected = np.diag(variances * np.sqrt(2 / n))
    else:
        expected = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert_allclose(se["covariance"][0], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_gradient_is_the_derivative_of_the_log_likelihood(family, k):
    """In local coordinates: its length in the metric of the information is free of them."""
    d = 1 if family.is_one_dimensional else 3
    rng = np.random.default_rng(k)
    truth = registry.mixture(rng, family, k, d, apart=6.0)
    x = registry.simulate(rng, truth, 600)
    moments = accumulate(x, truth)
    information = observed_information(x, truth, moments, family)
    theta, at = registry.coordinates(family, truth)

    def objective(numbers):
        pi, mean, covariance = at(numbers)
        return registry.complex_loglik(x, np.log(pi), mean, covariance).sum()

    unit = np.eye(len(theta))
    slope = np.array([objective(theta + 1e-30j * e).imag / 1e-30 for e in unit])
    natural = np.array(
        [np.concatenate([v.ravel() for v in at(theta + 1e-30j * e)]).imag / 1e-30 for e in unit]
    ).T
    # The map between the two coordinate systems, from their maps to natural parameters.
    jacobian = np.linalg.lstsq(natural, information.natural, rcond=None)[0]
    assert_allclose(natural @ jacobian, information.natural, atol=1e-8)
    assert_allclose(
        information.gradient, jacobian.T @ slope, rtol=1e-7, atol=1e-7 * np.abs(slope).max()
    )


# Golden


@pytest.mark.parametrize(
    "case", ["faithful_VVV_2", "geyser_mass_VVI_2", "iris_EEE_3", "acidity_V_2"]
)
def test_standard_errors_of_numderiv(case):
    record = registry.golden(f"observed_information/{case}")
    name = record["csv"].removeprefix("data/").removesuffix(".csv")
    x = registry.table(name)
    labels = np.array(registry.golden(f"mclust/{name}")["init"][str(record["K"])]) - 1
    # acidity: the partition leads to mclust's local optimum, where the record was made.
    fit = bg.fit_em(bg.GaussianMixture(record["K"], record["model"]), x, start=labels, tol=1e-7)
    assert fit["criteria"]["loglik"] == pytest.approx(record["loglik"], rel=1e-10)
    estimate, se = tree.point(fit), fit["standard_error"]
    se = Parameters(*(se[v].to_numpy() for v in ("weight", "mean", "covariance")))
    order = component_order(record, estimate)
    for label, value, error in zip(
        record["names"], record["estimate"], record["se_observed_information"], strict=True
    ):
        got, got_error = (pick(p.take(order), label) for p in (estimate, se))
        assert got == pytest.approx(value, rel=1e-5), label
        assert got_error == pytest.approx(error, rel=1e-5), label


def pick(parameters: Parameters, label: str) -> float:
    """The number that numDeriv's names mean: pro[1], mean[2], mean[comp1,2], var[comp2,2,1]."""
    kind, *numbers = re.findall(r"^[a-z]+|\d+", label)
    index = [int(i) - 1 for i in numbers]
    if kind == "pro":
        return parameters.weight[index[0]]
    if kind == "mean":
        return parameters.mean[index[0], index[1] if len(index) > 1 else 0]
    return parameters.covariance[tuple(index)]


def component_order(record, estimate: Parameters) -> list[int]:
    """Our component for each of the record's, by the first feature's mean."""
    first = [
        value
        for label, value in zip(record["names"], record["estimate"], strict=True)
        if re.fullmatch(r"mean\[(comp\d+,1|\d+)\]", label)
    ]
    return [int(np.abs(estimate.mean[:, 0] - m).argmin()) for m in first]


# Weights, and where there are none


@pytest.mark.parametrize("letters", ["VVV", "EEV", "VII", "EVE"])
def test_weights_count_as_frequencies(letters):
    rng = np.random.default_rng(3)
    x = registry.table("faithful").to_numpy()
    labels = np.array(registry.golden("mclust/faithful")["init"]["2"]) - 1
    weight = rng.integers(0, 3, size=len(x))
    spec = bg.GaussianMixture(2, letters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = bg.fit_em(spec, x, start=labels, sample_weight=weight, tol=1e-8)
        two = bg.fit_em(
            spec, np.repeat(x, weight, axis=0), start=np.repeat(labels, weight), tol=1e-8
        )
    for name in ("weight", "mean", "covariance"):
        assert_allclose(one["standard_error"][name], two["standard_error"][name], rtol=1e-6)


def test_nearly_round_components_have_no_standard_errors_of_their_axes():
    """EEV with equal eigenvalues: turning an axis changes nothing; the information is singular."""
    base = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    ring = np.concatenate([base, 2 * base, 0.5 * base])
    x = np.concatenate([ring, ring + np.array([20.0, 0.0])])
    labels = np.repeat([0, 1], len(ring))
    for letters in ("EEV", "VEV"):
        with pytest.warns(bg.errors.FitWarning, match="(?s)not positive definite"):
            fit = bg.fit_em(bg.GaussianMixture(2, letters), x, start=labels)
        se = fit["standard_error"]
        assert np.isnan(se["mean"]).all()
        assert np.isnan(se["covariance"]).all()
        assert "not positive definite" in se.attrs["note"]
        assert '"status": "fail"' in fit.attrs["verdict"]
    fit = bg.fit_em(bg.GaussianMixture(2, "VVV"), x, start=labels)  # no axes of its own
    assert np.isfinite(fit["standard_error"]["covariance"]).all()
    assert fit["standard_error"].attrs["note"] == ""


def test_more_components_than_the_data_have_may_have_no_standard_errors():
    """Two components on the same place share their weights in any way."""
    x = np.random.default_rng(0).normal(size=(200, 1))
    half = Parameters(
        np.array([0.5, 0.5]),
        np.full((2, 1), x.mean()),
        np.full((2, 1, 1), x.var()),
    )
    with pytest.warns(bg.errors.FitWarning, match="(?s)not positive definite"):
        fit = bg.fit_em(bg.GaussianMixture(2, "V"), x, start=half)
    assert np.isnan(fit["standard_error"]["weight"]).all()


def test_large_models_have_standard_errors_on_request_only():
    x = registry.table("faithful")
    spec = bg.GaussianMixture(2, "VVV")
    fit = bg.fit_em(spec, x, random_seed=1, n_starts=1, standard_errors=False)
    assert "standard_error" not in fit.children
    assert np.isnan(fit["sample_stats"]["distance"].item())
    again = bg.fit_em(spec, x, random_seed=1, n_starts=1, standard_errors=True)
    assert again["sample_stats"]["distance"].item() < 1e-4


def test_the_information_of_a_prior_adds_to_that_of_the_data():
    data, found, prior = optimum(
        registry.table("faithful").to_numpy(),
        Covariance("VVV"),
        2,
        np.array(registry.golden("mclust/faithful")["init"]["2"]) - 1,
        prior=True,
    )
    p = found.parameters
    alone = accumulate(data.x, p)
    with_prior = alone + pseudo_moments(prior, p)
    a, b = (
        observed_information(data.x, p, m, Covariance("VVV")).matrix for m in (alone, with_prior)
    )
    assert (np.linalg.eigvalsh(b - a) > -1e-8 * np.abs(b).max()).all()
