"""Sandwich and outer-product covariances: scores, closed forms, and where there are none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import registry
import xarray as xr
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read
from bayesgmm.em.loop import run
from bayesgmm.em.start import Start
from bayesgmm.errors import ArgumentError, FitWarning
from bayesgmm.groups import split
from bayesgmm.inference.delta import derived, vcov
from bayesgmm.inference.estimate import Estimate
from bayesgmm.information.observed import outer_products
from bayesgmm.information.uncertainty import KINDS
from bayesgmm.moments import Parameters
from bayesgmm.resolved import PseudoData

ids = str


def some_data(family: Covariance, n: int = 100, d: int = 3) -> tuple[np.ndarray, Parameters]:
    """Rows, and a mixture of the family near what they are from, but not at the maximum."""
    rng = np.random.default_rng(5)
    d = 1 if family.is_one_dimensional else d
    truth = registry.mixture(rng, family, 2, d, apart=2.0)
    return registry.simulate(rng, truth, n), truth


def log_prior(prior: PseudoData, weight, mean, covariance):
    """The conjugate log density in the coordinates of MAP, at complex or real parameters."""
    value = (prior.concentration - 1.0) * np.log(weight).sum()
    for m, c in zip(mean, covariance, strict=True):
        offset = m - prior.mean
        count = prior.count + (prior.shrinkage > 0)
        inside = prior.scatter + prior.shrinkage * np.outer(offset, offset)
        value = value - 0.5 * (
            count * np.log(np.linalg.det(c)) + np.trace(np.linalg.solve(c, inside))
        )
    return value


def independent(x, parameters, family, weight=None, prior=None):
    """Hessian, scores (n, p), prior's Hessian and the map to natural parameters, from densities.

    In the coordinates of `registry`; first derivatives by complex steps, second by differences.
    """
    theta, at = registry.coordinates(family, parameters)
    w = np.ones(len(x)) if weight is None else weight
    unit = np.eye(len(theta))

    def rows(numbers):
        pi, mean, covariance = at(numbers)
        return registry.complex_loglik(x, np.log(pi), mean, covariance)

    def scores(numbers):
        return np.array([rows(numbers + 1e-30j * e).imag / 1e-30 for e in unit]).T

    def penalty(numbers):
        if prior is None:
            return np.zeros(len(unit))
        return np.array([log_prior(prior, *at(numbers + 1e-30j * e)).imag / 1e-30 for e in unit])

    t = 1e-5
    hessian, own = (
        np.array([f(theta + t * e) - f(theta - t * e) for e in unit]) / (2 * t)
        for f in (lambda v: w @ scores(v), penalty)
    )
    natural = np.array(
        [np.concatenate([v.ravel() for v in at(theta + 1e-30j * e)]).imag / 1e-30 for e in unit]
    ).T
    return -0.5 * (hessian + hessian.T), scores(theta), -0.5 * (own + own.T), natural


def estimate_at(x, parameters, family, weight=None, prior=None) -> Estimate:
    """An estimate in the units of x, wherever the parameters are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read(x, family=family, n_components=parameters.k, sample_weight=weight)
    anchored = None
    if prior is not None:
        anchored = prior.anchored(data.center, data.scale)
    return Estimate(None, data, family, data.to_anchored(parameters), anchored)


def natural_covariance(estimate: Estimate, kind: str) -> np.ndarray:
    """In the units of the data, of weights, means and covariances."""
    k, scale = estimate.parameters.k, estimate.data.scale
    unit = np.concatenate(
        [np.ones(k), np.tile(scale, k), np.tile(np.outer(scale, scale).ravel(), k)]
    )
    return estimate.uncertainty(kind).natural_covariance() * np.outer(unit, unit)


def maximum(x, family, weight=None, prior=None, start=None) -> Parameters:
    labels = None
    if start is None:
        labels = np.asarray(x)[:, 0] > np.median(np.asarray(x)[:, 0])
    spec = bg.GaussianMixture(2, family, prior=prior or "conjugate")
    fit = bg.fit_em(
        spec,
        x,
        start=start or labels.astype(int),
        sample_weight=weight,
        estimate="map" if prior else "mle",
        tol=1e-10,
        standard_errors=False,
    )
    return tree.point(fit)


# Against derivatives of the densities


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_outer_products_are_those_of_the_rows_scores(family):
    """At any parameters, in any coordinates: as a form on tangents of natural parameters."""
    x, p = some_data(family)
    _, scores, _, natural = independent(x, p, family)
    outer = outer_products(split(x, np.empty(0), np.empty((0, 0))), p, family)
    jacobian = np.linalg.lstsq(natural, outer.natural, rcond=None)[0]
    assert_allclose(natural @ jacobian, outer.natural, atol=1e-8)
    scores = scores @ jacobian
    assert_allclose(outer.gradient, scores.sum(axis=0), rtol=1e-7, atol=1e-7)
    centred = scores - scores.mean(axis=0)
    expected = centred.T @ centred
    assert_allclose(outer.matrix, expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_scores_are_differences_of_scipy_s_densities():
    x, p = some_data(Covariance("VVV"), n=9)
    family = Covariance("VVV")
    theta, at = registry.coordinates(family, p)

    def rows(numbers):
        pi, mean, covariance = at(numbers)
        each = zip(pi, mean, covariance, strict=True)
        return np.log(sum(w * multivariate_normal(m, c).pdf(x) for w, m, c in each))

    t = 1e-5
    unit = np.eye(len(theta))
    scores = np.array([rows(theta + t * e) - rows(theta - t * e) for e in unit]).T / (2 * t)
    assert_allclose(independent(x, p, family)[1], scores, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_covariances_of_every_family(family):
    x, p = some_data(family, n=200, d=2)
    best = maximum(x, family, start=p)
    hessian, scores, _, natural = independent(x, best, family)
    bread, meat = np.linalg.inv(hessian), scores.T @ scores
    expected = {"observed": bread, "sandwich": bread @ meat @ bread, "opg": np.linalg.inv(meat)}
    estimate = estimate_at(x, best, family)
    for kind in KINDS:
        want = natural @ expected[kind] @ natural.T
        got = natural_covariance(estimate, kind)
        unit = np.sqrt(np.maximum(np.diagonal(want), 1e-12))
        assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.outer(unit, unit).max())
        assert_allclose(np.diagonal(got), np.diagonal(want), rtol=1e-4, atol=1e-10)


def test_rows_with_missing_values_and_known_labels_have_scores_of_what_is_known():
    family = Covariance("VVE")
    x, p = some_data(family, n=60)
    rng = np.random.default_rng(1)
    x[rng.random(x.shape) < 0.25] = np.nan
    known = np.ones((60, 2))
    known[:10] = [1.0, 0.0]
    known[10:20] = [0.3, 0.7]
    theta, at = registry.coordinates(family, p)

    def rows(numbers):
        pi, mean, covariance = at(numbers)
        found = np.empty(60, dtype=complex)
        for i, (row, prob) in enumerate(zip(x, known, strict=True)):
            o = ~np.isnan(row)
            log_weight = np.log(pi * np.maximum(prob, 1e-300))
            inside = covariance[:, o][:, :, o]
            found[i] = registry.complex_loglik(row[None, o], log_weight, mean[:, o], inside)[0]
        return found

    unit = np.eye(len(theta))
    scores = np.array([rows(theta + 1e-30j * e).imag / 1e-30 for e in unit]).T
    natural = independent(np.nan_to_num(x), p, family)[3]
    outer = outer_products(split(x, np.empty(0), known), p, family)
    scores = scores @ np.linalg.lstsq(natural, outer.natural, rcond=None)[0]
    centred = scores - scores.mean(axis=0)
    assert_allclose(outer.matrix, centred.T @ centred, rtol=1e-7, atol=1e-6)


# Closed forms


def test_one_component_has_the_sampling_covariance_of_moments():
    """The sandwich for K = 1 is that of empirical moments, whatever the distribution."""
    rng = np.random.default_rng(2)
    x = rng.gamma(2.0, size=(80, 3)) @ rng.normal(size=(3, 3))
    n, d = x.shape
    with pytest.warns(FitWarning, match="heavy-tails"):  # as gamma distributions have
        fit = bg.fit_em(bg.GaussianMixture(1), x, standard_errors="sandwich")
    z = x - x.mean(axis=0)
    s = z.T @ z / n
    se = fit["standard_error"]
    assert_allclose(se["mean"][0], np.sqrt(np.diag(s) / n), rtol=1e-10)
    second = np.einsum("ni,nj->nij", z, z)
    assert_allclose(
        se["covariance"][0], np.sqrt((second**2).mean(axis=0) - s**2) / n**0.5, rtol=1e-9
    )
    columns = np.column_stack([z, *(second[:, i, j] for i in range(d) for j in range(i + 1))])
    covariance = np.cov(columns.T, bias=True) / n
    assert_allclose(vcov(fit, kind="sandwich"), covariance, rtol=1e-9, atol=1e-12)


def test_one_component_outer_products_in_closed_form():
    x = np.random.default_rng(3).gamma(2.0, size=(50, 1))
    fit = bg.fit_em(bg.GaussianMixture(1, "V"), x)
    v = x.var()
    z = (x[:, 0] - x.mean()) / v**0.5
    score = np.column_stack([z / v**0.5, (z**2 - 1) / (2 * v)])
    assert_allclose(vcov(fit, kind="opg"), np.linalg.inv(score.T @ score), rtol=1e-9)


def test_of_a_mode_the_sandwich_is_its_sampling_variance_under_the_same_prior():
    """K = 1: the mode of the mean is a weighted average of the prior's and the data's."""
    x = np.random.default_rng(4).gamma(3.0, size=(60, 1))
    n, kappa = len(x), 7.0
    prior = bg.ConjugatePrior(mean=-2.0, shrinkage=kappa)
    spec = bg.GaussianMixture(1, "V", prior=prior)
    fit = bg.fit_em(spec, x, estimate="map", standard_errors="sandwich")
    assert fit["posterior"]["mean"].item() == pytest.approx((x.sum() - 2 * kappa) / (n + kappa))
    expected = np.sqrt(n * x.var()) / (n + kappa)
    assert fit["standard_error"]["mean"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("letters", ["VVV", "EVE"])
def test_of_a_mode_the_prior_is_in_the_bread_alone(letters):
    family = Covariance(letters)
    x, p = some_data(family, n=150)
    prior = PseudoData(np.full(3, 0.5), 4.0, np.diag([3.0, 3.0, 3.0]), 9.0, 2.5)
    estimate = estimate_at(x, p, family, prior=prior)
    start = Start("given", estimate.parameters)
    found = run(estimate.data, family, start, prior=estimate.prior, tol=1e-9)
    best = estimate.data.to_data_units(found.parameters)
    estimate = estimate_at(x, best, family, prior=prior)
    hessian, scores, own, natural = independent(x, best, family, prior=prior)
    bread = np.linalg.inv(hessian + own)
    centred = scores - scores.mean(axis=0)
    meat = centred.T @ centred
    for kind, inner in (("observed", bread), ("sandwich", bread @ meat @ bread)):
        want = np.diagonal(natural @ inner @ natural.T)
        got = np.diagonal(natural_covariance(estimate, kind))
        assert_allclose(got, want, rtol=1e-4, atol=1e-10)
    with pytest.raises(ArgumentError, match="'opg' is for maximum likelihood"):
        estimate.uncertainty("opg")


# Laws


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_weights_are_repeated_rows(family, kind):
    x, p = some_data(family)
    weight = np.random.default_rng(6).integers(0, 4, size=len(x))
    repeated = np.repeat(x, weight, axis=0)
    best = maximum(repeated, family, start=p)
    one, two = (
        natural_covariance(estimate_at(rows, best, family, w), kind)
        for rows, w in ((x, weight), (repeated, None))
    )
    assert_allclose(one, two, rtol=1e-10, atol=1e-10 * np.abs(two).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letters", ["VVV", "VEI", "EEE", "EVI", "VII", "EEV"])
def test_units_and_order_of_columns_carry_over(letters, kind):
    family = Covariance(letters)
    x, p = some_data(family)
    best = maximum(x, family, start=p)
    unit = np.array([1e-3, 5.0, 2e4]) if family.is_axis_equivariant else np.full(3, 3e-5)
    other = Parameters(
        best.weight,
        (best.mean * unit + 1e3)[:, ::-1],
        (best.covariance * np.outer(unit, unit))[:, ::-1, ::-1],
    )
    one = estimate_at(x, best, family)
    two = estimate_at((x * unit + 1e3)[:, ::-1], other, family)
    a, b = (e.uncertainty(kind).standard_errors() for e in (one, two))
    scale = one.data.scale * unit, two.data.scale[::-1]
    assert_allclose(a.weight, b.weight, rtol=1e-6)
    assert_allclose(a.mean * scale[0], b.mean[:, ::-1] * scale[1], rtol=1e-6)
    area = [np.outer(s, s) for s in scale]
    assert_allclose(
        a.covariance * area[0], b.covariance[:, ::-1, ::-1] * area[1], rtol=1e-6, atol=0
    )


def test_all_kinds_agree_where_the_model_is_true_and_rows_are_many():
    rng = np.random.default_rng(7)
    truth = Parameters(np.array([0.3, 0.7]), np.array([[0.0], [3.0]]), np.array([[[1.0]], [[2.0]]]))
    fit = bg.fit_em(bg.GaussianMixture(2, "V"), registry.simulate(rng, truth, 100_000), start=truth)
    se = {kind: np.sqrt(np.diag(vcov(fit, kind=kind))) for kind in KINDS}
    for kind in KINDS:
        assert_allclose(se[kind], se["observed"], rtol=0.03)


def test_fixed_parameters_have_no_error_and_the_others_those_without_them():
    x, _ = some_data(Covariance("V"), n=200)
    fit = bg.fit_em(
        bg.GaussianMixture(2, "V"),
        x,
        fixed={"weight": "equal"},
        tol=1e-9,
        standard_errors="sandwich",
        start="kmeans",
        n_starts=1,
        random_seed=1,
    )
    hessian, scores, _, natural = independent(x, tree.point(fit), Covariance("V"))
    hessian, scores, natural = hessian[1:, 1:], scores[:, 1:], natural[:, 1:]
    bread = np.linalg.inv(hessian)
    want = np.diagonal(natural @ bread @ (scores.T @ scores) @ bread @ natural.T)
    se = fit["standard_error"]
    assert_allclose(se["weight"], 0.0, atol=1e-12)
    assert_allclose(se["mean"][:, 0] ** 2, want[2:4], rtol=1e-4)
    assert_allclose(se["covariance"][:, 0, 0] ** 2, want[4:6], rtol=1e-4)
    matrix = vcov(fit, kind="sandwich")
    assert_allclose(np.sqrt(np.diagonal(matrix))[2:4], se["mean"][:, 0], rtol=1e-6)


# Where there are none


def test_too_few_rows_for_outer_products():
    x = np.random.default_rng(0).normal(size=(18, 5))
    with pytest.warns(bg.errors.DataWarning, match="underdetermined"):
        fit = bg.fit_em(bg.GaussianMixture(1), x)
    assert np.isfinite(vcov(fit, kind="observed").to_numpy()).all()
    for kind in ("sandwich", "opg"):
        found = vcov(fit, kind=kind)
        assert np.isnan(found.to_numpy()).all()
        assert "free parameters (20)" in found.attrs["se_note"]


def test_a_component_with_few_observations_has_no_errors_of_its_own():
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.normal(size=(60, 2)), 30 + rng.normal(size=(4, 2))])
    labels = np.repeat([0, 1], [60, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        fit = bg.fit_em(bg.GaussianMixture(2), x, start=labels)
    se = fit["standard_error"]
    assert np.isnan(se["mean"].sel(cluster=1)).all()
    assert np.isnan(se["covariance"].sel(cluster=1)).all()
    assert np.isfinite(se["mean"].sel(cluster=0)).all()
    assert np.isfinite(se["weight"]).all()
    assert "component 1 has 4.0 observations, fewer than 4.5" in se.attrs["note"]
    table = bg.summary(fit)
    assert table.attrs["se_note"] == se.attrs["note"]
    assert np.isnan(table.loc["mean[1, x0]", "se"])
    found = derived(fit)
    assert np.isnan(found.loc["sd[1, x0]", "se"])
    assert np.isfinite(found.loc["sd[0, x0]", "se"])


def test_a_weight_near_its_boundary_has_a_caution():
    rng = np.random.default_rng(9)
    x = np.concatenate([rng.normal(size=200), rng.normal(4.0, 1.0, size=4)])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        fit = bg.fit_em(bg.GaussianMixture(2, "E"), x, random_seed=1)
    errors = fit["standard_error"]
    weight = fit["posterior"]["weight"].to_numpy()[0, 0]
    j = int(weight.argmin())
    assert weight[j] < 2 * errors["weight"][j]
    assert f"weight[{j}] is " in errors.attrs["note"]
    assert "standard errors from 0" in errors.attrs["note"]


# What shows which kind was used


@pytest.mark.parametrize("asked", [None, True, *KINDS])
def test_the_kind_is_named(asked):
    fit = bg.fit_em(
        bg.GaussianMixture(2),
        registry.table("faithful"),
        random_seed=1,
        n_starts=1,
        standard_errors=asked,
    )
    kind = asked if isinstance(asked, str) else "observed"
    table = bg.summary(fit)
    method = {"observed": "observed information", "opg": "outer products of gradients"}
    assert table.attrs["se_method"] == method.get(kind, "sandwich")
    assert_allclose(table["se"], np.sqrt(np.diag(vcov(fit, kind=kind))), rtol=1e-6)


def test_a_comparison_names_the_kind():
    fit = bg.fit_em(bg.GaussianMixture(1), registry.table("faithful"), standard_errors="sandwich")
    draws = np.random.default_rng(0).normal(size=(2, 50))
    post = fit.copy()
    values = {
        name: (
            ("chain", "draw", *v.dims[2:]),
            v.to_numpy() * (1 + 1e-3 * draws[..., *[None] * (v.ndim - 2)]),
        )
        for name, v in fit["posterior"].to_dataset().drop_vars("weight").items()
    }
    values["weight"] = (("chain", "draw", "cluster"), np.ones((2, 50, 1)))
    coordinates = fit["posterior"].to_dataset().drop_dims(["chain", "draw"]).coords
    post["posterior"] = xr.DataTree(xr.Dataset(values, coordinates))
    stats = {"loglik": (("chain", "draw"), -1290.0 + draws)}
    post["sample_stats"] = xr.DataTree(xr.Dataset(stats))
    found = bg.compare(fit, post)
    assert found.attrs["se_method"] == "sandwich"
    assert "standard errors of the maximum-likelihood estimate (EM): sandwich" in bg.format_table(
        found
    )


def test_what_is_no_kind_is_refused():
    x = registry.table("faithful")
    spec = bg.GaussianMixture(2)
    with pytest.raises(ArgumentError, match=r"standard_errors: must be one of .*'opg'"):
        bg.fit_em(spec, x, standard_errors="robust")
    with pytest.raises(ArgumentError, match="hard assignment"):
        bg.fit_em(spec, x, assignment="hard", standard_errors="sandwich")
    fit = bg.fit_em(spec, x, random_seed=1, n_starts=1, standard_errors=False)
    assert bg.summary(fit).attrs["se_method"] == "none"
    with pytest.raises(ArgumentError, match="kind: must be one of"):
        vcov(fit, kind="HC3")
    with pytest.raises(ArgumentError, match="must be a fit by fit_em"):
        vcov(None)
