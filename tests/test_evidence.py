"""The evidence: enumeration, Stan's bridge, SciPy's densities, and what must not change it."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from models import GOLDEN, POLAR, table
from scipy import stats
from scipy.special import gammaln, i0e, kve, logsumexp, multigammaln
from test_posterior import prior_of, reference

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.checks import Verdict
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read_for
from bayesgmm.errors import ArgumentError, BayesgmmWarning, NotYetSupportedError, PosteriorWarning
from bayesgmm.evidence.bridge import Normal, bridge
from bayesgmm.evidence.copies import Region, is_nearest, nearest
from bayesgmm.evidence.normaliser import log_normaliser
from bayesgmm.evidence.source import source_of
from bayesgmm.moments import Array, Parameters
from bayesgmm.prior import (
    ConjugatePrior,
    HalfNormal,
    HierarchicalInverseGamma,
    InverseGamma,
    LogNormal,
    SeparationPrior,
)
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import PseudoData, Separation, resolve
from bayesgmm.rows import draws_of
from bayesgmm.target.chart import Coordinates
from bayesgmm.target.density import Target, target

UNKNOWN = "richardson_green_galaxies.json"
CONJUGATE = ConjugatePrior(shrinkage=0.7, dof=9.0, mean=4.0, weight_concentration=2.5)


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **kwargs)


def gap(found: xr.Dataset, exact: float, other_error: float = 0.0) -> float:
    """Distance from a known value, in standard errors."""
    error = math.hypot(float(found["standard_error"]), other_error)
    return abs(float(found["log_evidence"]) - exact) / error


def statuses(found: xr.Dataset) -> dict[str, str]:
    return {c.code: c.status for c in Verdict.from_json(found.attrs["verdict"]).checks}


# --- against values of others


@pytest.mark.parametrize("k", [1, 2])
def test_the_sum_over_all_allocations(k: int) -> None:
    """A conjugate mixture, solved by enumeration; for two components labels are ambiguous."""
    exact = json.loads((GOLDEN / "exact" / f"darwin_k{k}.json").read_text())
    prior = ConjugatePrior(shrinkage=0.1, dof=4.0, mean=20.0, scale=1200.0)
    spec = bg.GaussianMixture(k, "V", prior)
    post = quiet(
        bg.sample_posterior, spec, table("darwin"), draws=2000, random_seed=1, progressbar=False
    )
    found = bg.log_marginal_likelihood(post, random_seed=2)
    assert gap(found, exact["log_marginal_likelihood"]) < 3
    assert float(found["standard_error"]) < 0.03
    assert set(statuses(found).values()) == {"ok"}
    assert float(found["log_copies"]) == pytest.approx(math.lgamma(k + 1))


@pytest.mark.parametrize(
    ("case", "k", "letters"), [("faithful_vvv_k2", 2, "VVV"), ("iris_eee_k3", 3, "EEE")]
)
def test_stans_bridge(case: str, k: int, letters: str) -> None:
    record = reference(case)
    stan = record["log_marginal_likelihood"]
    spec = bg.GaussianMixture(k, letters, prior_of(record))
    x = table(case.split("_")[0])
    post = quiet(bg.sample_posterior, spec, x, loo=False, random_seed=1, progressbar=False)
    found = bg.log_marginal_likelihood(post, random_seed=2)
    assert gap(found, stan["value_exchangeable"], stan["approx_relative_sd"]) < 3
    assert float(found["standard_error"]) < 0.02


def test_stans_bridge_from_a_laplace_approximation() -> None:
    """By the mean importance weight."""
    record = reference("faithful_vvv_k2")
    stan = record["log_marginal_likelihood"]
    spec = bg.GaussianMixture(2, "VVV", prior_of(record))
    post = quiet(bg.fit_laplace, spec, table("faithful"), draws=8000, random_seed=1)
    error = math.hypot(float(post["criteria"]["log_evidence_se"]), stan["approx_relative_sd"])
    assert error < 0.02
    assert abs(float(post["criteria"]["log_evidence"]) - stan["value_exchangeable"]) < 3 * error


def test_a_posterior_with_several_modes_has_stans_evidence() -> None:
    record = reference("galaxies_v_k3")
    stan = record["log_marginal_likelihood"]
    spec = bg.GaussianMixture(3, "V", prior_of(record))
    post = quiet(
        bg.sample_posterior, spec, table("galaxies"), loo=False, random_seed=1, progressbar=False
    )
    found = quiet(bg.log_marginal_likelihood, post, random_seed=2)
    assert gap(found, stan["value_exchangeable"], stan["approx_relative_sd"]) < 3.5


def test_one_component_more_is_richardson_and_greens() -> None:
    """The ratio of evidences is that of their posterior of K; with four, labels are ambiguous."""
    reversible = json.loads((GOLDEN / "unknown_k" / UNKNOWN).read_text())["p_k"]
    x = table("galaxies")
    low, high = float(x.min().iloc[0]), float(x.max().iloc[0])
    prior = SeparationPrior(
        mean=0.5 * (low + high),
        mean_sd=high - low,
        scale=HierarchicalInverseGamma(2.0, 0.2),
        units="data",
    )
    three, four = (
        quiet(
            bg.log_marginal_likelihood,
            quiet(
                bg.sample_posterior,
                bg.GaussianMixture(k, "V", prior),
                x,
                loo=False,
                random_seed=k,
                progressbar=False,
            ),
            random_seed=1,
        )
        for k in (3, 4)
    )
    (p3, e3), (p4, e4) = reversible["3"], reversible["4"]
    error = math.hypot(e3 / p3, e4 / p4, *(float(r["standard_error"]) for r in (three, four)))
    assert error < 0.15
    ratio = float(four["log_evidence"] - three["log_evidence"])
    assert abs(ratio - math.log(p4 / p3)) < 3 * error
    assert float(four["inside"]) < 0.99  # some proposals have other labels than the pivot's


def scatter_of(x: Array, prior: PseudoData) -> tuple[float, Array]:
    """Log-volume of the mean, integrated out, and the scatter that is left about the prior's."""
    n, d = len(x), len(prior.mean)
    if not n:
        return 0.0, prior.scatter
    centre, kappa = x.mean(axis=0), prior.shrinkage
    off = centre - prior.mean
    spread = (x - centre).T @ (x - centre) + kappa * n / (kappa + n) * np.outer(off, off)
    constant = 0.5 * d * math.log(kappa / (kappa + n)) - 0.5 * n * d * math.log(2 * math.pi)
    return constant, prior.scatter + spread


def log_polar(letters: str, dof: list[float], scatter: list[Array]) -> float:
    """Log-integral of prod |S_k|^(-dof_k/2) exp(-tr/2), two columns, by quadrature.

    Over log-spectra as the family has them, and the half circle of angles, uniformly.
    """
    family = Covariance(letters)
    value = [np.linalg.eigvalsh(one) for one in scatter]
    if family.orientation == "E":
        angle = np.arange(600) * (math.pi / 600)
        axis = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        across = np.stack([-axis[:, 1], axis[:, 0]], axis=1)
        along = [
            np.stack([np.einsum("ti,ij,tj->t", a, one, a) for a in (axis, across)], axis=1)
            for one in scatter
        ]
        if family.volume == "V":
            each = [
                (gammaln(0.5 * v) - 0.5 * v * np.log(0.5 * b)).sum(axis=1)
                for v, b in zip(dof, along, strict=True)
            ]
            return float(logsumexp(sum(each)) - math.log(len(angle)))
        level = np.linspace(-10.0, 12.0, 89)  # log-volume; the shapes given it are Bessel's K
        total = np.full((len(angle), len(level)), 0.0)
        for v, b in zip(dof, along, strict=True):
            root = np.sqrt(b.prod(axis=1))[:, None] * np.exp(-level)
            total += -v * level + math.log(4.0) + np.log(kve(0.0, root)) - root
        step = level[1] - level[0]
        return float(logsumexp(total) - math.log(len(angle)) + math.log(step))
    shape = np.linspace(-9.0, 9.0, 181)  # half the difference of the log-spectrum
    level = np.linspace(-12.0, 14.0, 105)
    total = 0.0
    for v, b in zip(dof, value, strict=True):
        s1, s2 = np.exp(-shape), np.exp(shape)  # of the inverse spectrum, of volume 1
        middle, turn = 0.25 * b.sum() * (s1 + s2), 0.25 * abs((b[1] - b[0]) * (s2 - s1))
        scaled = np.exp(-level)[:, None]
        one = -v * level[:, None] - scaled * (middle - turn) + np.log(i0e(scaled * turn))
        step = level[1] - level[0]
        total = total + (logsumexp(one, axis=0) + math.log(step) if family.volume == "V" else one)
    # The contrast's coordinate is twice the shape.
    found = float(logsumexp(total)) + math.log(2.0 * (shape[1] - shape[0]))
    return found if family.volume == "V" else found + math.log(level[1] - level[0])


SIX = pd.DataFrame(
    {"a": [0.3, 1.9, 0.2, 1.2, 4.1, 4.6], "b": [0.1, 1.2, 0.8, 0.4, 2.9, 4.4]}, dtype=float
)


@pytest.mark.parametrize("letters", POLAR)
def test_axes_without_order_or_signs_are_counted_once(letters: str) -> None:
    """Six rows, two components: the sum over 64 allocations, axes and spectra by quadrature."""
    spec = bg.GaussianMixture(2, letters, ConjugatePrior(shrinkage=0.5, dof=5.0))
    prior = resolve(spec, quiet(read_for, spec, SIX))
    assert isinstance(prior, PseudoData)
    dof, x, terms = prior.count - 3.0, SIX.to_numpy(), []
    alone = log_polar(letters, [dof] * 2, [prior.scatter] * 2)
    for z in product((0, 1), repeat=len(x)):
        parts = [x[np.array(z) == j] for j in (0, 1)]
        constants, scatters = zip(*(scatter_of(part, prior) for part in parts), strict=True)
        n = np.array([len(part) for part in parts])
        weights = gammaln(n + 1.0).sum() - gammaln(n.sum() + 2.0)
        rest = log_polar(letters, [dof + m for m in n], list(scatters))
        terms.append(weights + sum(constants) + rest - alone)
    mle = quiet(bg.fit_em, spec, SIX, estimate="map", random_seed=1)
    post = quiet(
        bg.sample_posterior, spec, SIX, mle=mle, draws=800, random_seed=1, progressbar=False
    )
    found = quiet(bg.log_marginal_likelihood, post, random_seed=2)
    assert gap(found, float(logsumexp(terms))) < 3.5
    assert float(found["standard_error"]) < 0.1
    copies = math.log(2.0) + math.log(2.0) + math.log(2.0) * (1 if letters[2] == "E" else 2)
    assert float(found["log_copies"]) == pytest.approx(copies)


def test_known_labels_have_no_copies() -> None:
    """All labels known: a Dirichlet-multinomial, and two normal inverse Wisharts in closed form."""
    x = table("iris", 2).iloc[:100]
    label = np.repeat([0, 1], [40, 60])
    spec = bg.GaussianMixture(2, "VVV")
    prior = resolve(spec, quiet(read_for, spec, x))
    assert isinstance(prior, PseudoData)
    dof, d, n = prior.count - 3.0, 2, np.array([40, 60])
    exact = float(gammaln(n + 1.0).sum() - gammaln(n.sum() + 2.0))
    for j in (0, 1):
        constant, scatter = scatter_of(x.to_numpy()[label == j], prior)
        exact += constant - 0.5 * dof * d * math.log(2.0) - multigammaln(0.5 * dof, d)
        exact += 0.5 * dof * np.linalg.slogdet(prior.scatter)[1]
        exact += 0.5 * (dof + n[j]) * (d * math.log(2.0) - np.linalg.slogdet(scatter)[1])
        exact += multigammaln(0.5 * (dof + n[j]), d)
    post = quiet(bg.fit_laplace, spec, x, labels=label, random_seed=1)
    found = quiet(bg.log_marginal_likelihood, post, random_seed=2)
    assert float(found["log_copies"]) == 0.0
    assert gap(found, exact) < 3
    error = float(post["criteria"]["log_evidence_se"])
    assert abs(float(post["criteria"]["log_evidence"]) - exact) < 3 * error


# --- the prior integrates to one


def of(spec: bg.GaussianMixture, x: pd.DataFrame) -> tuple[Target, PseudoData | Separation]:
    data = read_for(spec, x)
    prior = resolve(spec, data)
    return target(spec, data, prior).without_data(), prior


def flat(theta: dict[str, Array], family: Covariance) -> Array:
    """The ordinary parameters that are free, as one vector."""
    d = theta["mean"].shape[-1]
    covariance = theta["covariance"][: 1 if family.is_common else None]
    rows, columns = np.tril_indices(d)
    if family.shape == "I":
        own = covariance[:, 0, 0]
    elif family.is_diagonal:
        own = np.diagonal(covariance, axis1=1, axis2=2).ravel()
    else:
        own = covariance[:, rows, columns].ravel()
    return np.concatenate([theta["weight"][:-1], own, theta["mean"].ravel()])


def log_volume(t: Target, point: Array, family: Covariance) -> float:
    """Log-determinant of the ordinary parameters' derivatives by the unconstrained ones."""
    h = 1e-6
    columns = [
        flat(t.parameters(point + h * e), family) - flat(t.parameters(point - h * e), family)
        for e in np.eye(t.size)
    ]
    return float(np.linalg.slogdet(np.array(columns) / (2 * h))[1])


def scipys(prior: Any, family: Covariance, theta: dict[str, Array]) -> float:
    """The log-density of the ordinary parameters, by SciPy's distributions."""
    k, d = theta["mean"].shape
    value = float(stats.dirichlet(np.full(k, prior.concentration)).logpdf(theta["weight"]))
    own = theta["covariance"][: 1 if family.is_common else k]
    if isinstance(prior, PseudoData):
        share = k if family.is_common else 1
        scatter = prior.scatter * share
        for mean, covariance in zip(theta["mean"], theta["covariance"], strict=True):
            value += stats.multivariate_normal(prior.mean, covariance / prior.shrinkage).logpdf(
                mean
            )
        for covariance in own:
            if family.shape == "I":
                nu = (prior.count * share - 2.0 / d) * d
                law = stats.invgamma(0.5 * nu, scale=0.5 * np.trace(scatter))
                value += law.logpdf(covariance[0, 0])
            elif family.is_diagonal:
                law = stats.invgamma(0.5 * (prior.count * share - 2.0), scale=0.5 * scatter[0, 0])
                value += law.logpdf(np.diagonal(covariance)).sum()
            else:
                law = stats.invwishart(prior.count * share - d - 1.0, scatter)
                value += law.logpdf(covariance)
        return value
    value += stats.norm(prior.mean, prior.mean_sd).logpdf(theta["mean"]).sum()
    if isinstance(prior.scale, HierarchicalInverseGamma):
        return value + hierarchical(prior, family, own)
    for covariance in own:
        features = slice(0, 1) if family.shape == "I" else slice(None)
        sd = np.sqrt(np.diagonal(covariance))[features]
        match prior.scale:
            case LogNormal(mu, sigma):
                law = stats.lognorm(sigma, scale=np.exp(np.asarray(mu))[features])
            case InverseGamma(alpha, beta):
                law = stats.invgamma(alpha, scale=np.asarray(beta)[features])
            case HalfNormal(sigma):
                law = stats.halfnorm(scale=np.asarray(sigma)[features])
        # From standard deviations to variances.
        value += (law.logpdf(sd) - np.log(2.0 * sd)).sum()
        value += of_correlation(prior, family, covariance)
    return value


def of_correlation(prior: Separation, family: Covariance, covariance: Array) -> float:
    """LKJ's density of one correlation, by that of the covariance."""
    if family.is_diagonal:
        return 0.0
    sd = np.sqrt(np.diagonal(covariance))
    law = stats.beta(prior.correlation, prior.correlation, loc=-1.0, scale=2.0)
    return float(law.logpdf(covariance[0, 1] / sd.prod()) - np.log(sd).sum())


def hierarchical(prior: Separation, family: Covariance, own: Array) -> float:
    """Variances given their common size, which is integrated out by quadrature."""
    alpha, shape, rate = prior.scale.alpha, prior.scale.shape, prior.scale.rate
    value = sum(of_correlation(prior, family, one) for one in own)
    for f in range(1 if family.shape == "I" else own.shape[1]):
        level = np.linspace(-60.0, 30.0, 9001)  # of the logarithm of the size
        size = np.exp(level)
        terms = stats.gamma(shape, scale=1.0 / rate[f]).logpdf(size) + level
        for one in own:
            terms = terms + stats.invgamma(alpha, scale=size).logpdf(one[f, f])
        value += float(logsumexp(terms)) + math.log(level[1] - level[0])
    return value


PRIORS: dict[str, Any] = {
    "conjugate": CONJUGATE,
    "log-normal": SeparationPrior(mean=0.3, scale=LogNormal(0.2, 0.4), correlation=3.0),
    "inverse gamma": SeparationPrior(mean_sd=0.8, scale=InverseGamma(2.5, 0.7)),
    "half-normal": SeparationPrior(mean=5.0, scale=HalfNormal(1.3), units="data"),
    "hierarchical": SeparationPrior(scale=HierarchicalInverseGamma(2.0, 0.5, 1.5), units="data"),
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("letters", ["EII", "VII", "EEI", "VVI", "EEE", "VVV", "E", "V"])
def test_the_density_is_scipys_with_every_constant(letters: str, name: str) -> None:
    """Where nothing or everything is shared: priors are products that SciPy knows."""
    x = table("iris", 1 if letters in ("E", "V") else 2)
    spec = bg.GaussianMixture(3, letters, PRIORS[name])
    t, prior = of(spec, x)
    rng = np.random.default_rng(1)
    point = 0.4 * rng.normal(size=t.size)
    point[-3 * x.shape[1] :] += np.tile(x.to_numpy().mean(axis=0), 3)
    constant = log_normaliser(prior, t.space.chart)
    assert constant.error == 0.0
    wanted = scipys(prior, spec.covariance, t.parameters(point))
    found = t(point)[0] - constant.value - log_volume(t, point, spec.covariance)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", ["conjugate", "log-normal"])
@pytest.mark.parametrize("letters", ["VEI", "EVI", "VEE", "EVV"])
def test_what_shares_a_volume_or_a_shape_integrates_to_one(letters: str, name: str) -> None:
    """By a bridge from exact draws of the prior."""
    spec = bg.GaussianMixture(2, letters, PRIORS[name])
    t, prior = of(spec, table("iris", 2))
    rng = np.random.default_rng(2)
    points = []
    for _ in range(500):
        covariance = draw_covariance(prior, spec.covariance, 2, rng)
        if isinstance(prior, PseudoData):
            noise = np.linalg.cholesky(covariance / prior.shrinkage) @ rng.normal(size=(2, 2, 1))
            mean = prior.mean + noise[..., 0]
        else:
            mean = prior.mean + prior.mean_sd * rng.normal(size=(2, 2))
        weight = rng.dirichlet(np.full(2, prior.concentration))
        points.append(t.point(Parameters(weight, mean, covariance)))
    fitted, drawn = np.array(points[::2]), np.array(points[1::2])
    proposal = Normal.of(fitted)
    proposed = proposal.draw(2000, rng)
    found = bridge(
        (t.values(drawn) - proposal.log_density(drawn))[None],
        t.values(proposed) - proposal.log_density(proposed),
        len(drawn),
    )
    error = math.sqrt(found.relative_mse)
    assert error < 0.15
    assert abs(found.log_ratio - log_normaliser(prior, t.space.chart).value) < 3.5 * error


@pytest.mark.parametrize("letters", POLAR)
def test_the_constant_of_axes_and_spectra_is_the_quadratures(letters: str) -> None:
    for k, anisotropy in ((1, 1.0), (2, 40.0), (3, 3.0)):
        prior = PseudoData(np.zeros(2), 1.0, np.diag([1.0, anisotropy]), 6.5 + 3.0, 1.0)
        chart = Coordinates(Covariance(letters), k, np.ones(2))
        found = log_normaliser(prior, chart)
        # Cayley's measure of all rotations is pi for each set of axes.
        sets = 1 if letters[2] == "E" else k
        wanted = log_polar(letters, [6.5] * k, [prior.scatter] * k) + sets * math.log(math.pi)
        wanted += k * math.log(2.0 * math.pi)  # of the means
        assert found.error < 0.02
        assert abs(found.value - wanted) < 4 * found.error + 1e-6


def test_of_one_component_the_four_families_are_one() -> None:
    prior = PseudoData(np.zeros(3), 1.0, np.diag([1.0, 2.0, 9.0]), 7.0 + 4.0, 1.0)
    found = [
        log_normaliser(prior, Coordinates(Covariance(letters), 1, np.ones(3))) for letters in POLAR
    ]
    for other in found[1:]:
        error = math.hypot(found[0].error, other.error)
        assert 0.0 < error < 0.05
        assert abs(other.value - found[0].value) < 4 * error


# --- the region


def test_every_rotation_has_one_nearest_copy() -> None:
    rng = np.random.default_rng(3)
    for d in (2, 3, 4):
        turns = np.array([stats.special_ortho_group.rvs(d, random_state=rng) for _ in range(40)])
        for turn in turns:
            order, sign = nearest(turn[None])
            best = turn[:, order] * sign[0]
            assert np.linalg.det(best) == pytest.approx(1.0)
            assert is_nearest(best[None, None])[0]
            copies = [
                np.eye(d)[:, list(p)] * np.array(s)
                for p in permutations(range(d))
                for s in product((-1.0, 1.0), repeat=d)
            ]
            own = [turn @ c for c in copies if np.linalg.det(c) > 0]
            assert int(is_nearest(np.array(own)[:, None]).sum()) == 1


@cache
def laplace(letters: str = "VVV", k: int = 2) -> xr.DataTree:
    found: xr.DataTree = quiet(
        bg.fit_laplace, bg.GaussianMixture(k, letters), table("faithful"), draws=1000, random_seed=1
    )
    return found


@pytest.mark.parametrize("letters", ["VVV", "VEV", "EVE"])
def test_draws_have_one_copy_in_the_region(letters: str) -> None:
    source = source_of("post", laplace(letters))
    region = Region(source.target, source.pivot, source.kinds)
    draws = {n: v.reshape(-1, *v.shape[2:])[:50] for n, v in draws_of(laplace(letters)).items()}
    points = region.points(draws)
    assert region.holds(points).all()
    swapped = {n: v[:, ::-1] for n, v in draws.items()}
    np.testing.assert_allclose(region.points(swapped), points, rtol=1e-7, atol=1e-9)
    again = source.target.parameters(points)
    for name in tree.DIMS:
        np.testing.assert_allclose(again[name], draws[name], rtol=1e-7)
    one = {n: v[:1, ::-1] for n, v in draws.items()}
    theta = tree.components({n: v[0] for n, v in one.items()})
    assert not region.holds(source.target.point(theta)[None])[0]


# --- what must not change it, and what must


def test_labels_do_not_change_it() -> None:
    post = laplace()
    other = post.copy()
    group = post["posterior"].to_dataset()
    other["posterior"] = xr.DataTree(group.isel(cluster=[1, 0]).assign_coords(cluster=[0, 1]))
    one, two = (quiet(bg.log_marginal_likelihood, p, random_seed=3) for p in (post, other))
    assert float(two["log_evidence"]) == pytest.approx(float(one["log_evidence"]), abs=1e-9)


def test_other_units_shift_it_by_the_jacobian() -> None:
    spec = bg.GaussianMixture(2, "VVI")
    x = table("faithful")
    one, two = (
        quiet(bg.fit_laplace, spec, table_, draws=500, random_seed=4)["criteria"]["log_evidence"]
        for table_ in (x, x * 1000.0)
    )
    assert float(two - one) == pytest.approx(-2 * len(x) * math.log(1000.0), abs=0.05)


def test_the_seed_and_the_file_give_the_same_bits(tmp_path: Any) -> None:
    again = bg.load(bg.save(laplace(), tmp_path / "fit.nc"))
    one, two = (
        quiet(bg.log_marginal_likelihood, p, random_seed=5, threads=t)
        for p, t in ((laplace(), 1), (again, 2))
    )
    xr.testing.assert_identical(one, two)


SHAPES: dict[str, dict[str, Any]] = {
    "noise": {"spec": bg.GaussianMixture(2, "VVI", noise=True), "draws": 8000},
    "noise and equal weights": {
        "spec": bg.GaussianMixture(2, "VVI", noise=True),
        "fixed": {"weight": "equal"},
        "draws": 8000,
    },
    "missing": {"missing": "marginalise"},
    "equal weights": {"fixed": {"weight": "equal"}},
    "weights": {"sample_weight": np.resize([1.0, 2.0], 272)},
    "some labels": {"labels": np.resize([-1, -1, -1, -1], 272)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_bridge_and_importance_weights_agree(name: str) -> None:
    """Two ways to one integral, whatever is known or held."""
    x = table("faithful")
    arguments = dict(SHAPES[name])
    spec = arguments.pop("spec", bg.GaussianMixture(2, "VVI"))
    if name == "missing":
        x = x.mask(np.random.default_rng(1).random(x.shape) < 0.1)
        x = x[x.notna().any(axis=1)]
    post = quiet(bg.fit_laplace, spec, x, random_seed=1, **{"draws": 2000} | arguments)
    found = quiet(bg.log_marginal_likelihood, post, random_seed=6)
    criteria = post["criteria"]
    assert float(found["standard_error"]) < 0.1
    assert gap(found, float(criteria["log_evidence"]), float(criteria["log_evidence_se"])) < 3.5


# --- the bridge


def test_the_error_is_honest_for_a_slow_chain() -> None:
    """An autocorrelated chain from a skewed density of known integral, many times."""
    rng, z = np.random.default_rng(7), []
    for _ in range(60):
        chain = np.empty((2, 1200))
        chain[:, 0] = rng.normal(size=2)
        for i in range(1, 1200):
            chain[:, i] = 0.8 * chain[:, i - 1] + 0.6 * rng.normal(size=2)
        # A gamma variable with shape 20, as a function of the normal chain: its log-density.
        value = stats.gamma(20.0).ppf(stats.norm.cdf(chain))
        points = np.log(value)

        def log_p(y: Array) -> Array:
            return 20.0 * y - np.exp(y)

        proposal = Normal.of(points[:, :600].reshape(-1, 1))
        proposed = proposal.draw(1200, rng)
        later = points[:, 600:]
        ratio = log_p(later) - proposal.log_density(later.reshape(-1, 1)).reshape(later.shape)
        found = bridge(ratio, log_p(proposed[:, 0]) - proposal.log_density(proposed), 200.0)
        assert found.converged
        z.append((found.log_ratio - math.lgamma(20.0)) / math.sqrt(found.relative_mse))
    assert 0.7 < np.sqrt(np.mean(np.square(z))) < 1.4


def test_draws_that_have_missed_a_mode_are_found_out() -> None:
    """Halves that are in different places disagree by far more than their errors."""
    post = laplace().copy()
    group = post["posterior"].to_dataset()
    half = group.sizes["draw"] // 2
    moved = group["mean"].where(group["draw"] < half, group["mean"] + 0.3)
    post["posterior"] = xr.DataTree(group.assign(mean=moved))
    with pytest.warns(PosteriorWarning, match="evidence-not-good") as caught:
        found = bg.log_marginal_likelihood(post, random_seed=8)
    assert statuses(found)["halves"] == "fail"
    assert caught[0].filename == __file__


def test_draws_that_fail_their_own_checks_fail_here() -> None:
    spec = bg.GaussianMixture(2, "EII")
    post = quiet(
        bg.sample_posterior,
        spec,
        table("faithful"),
        draws=60,
        tune=20,
        random_seed=9,
        progressbar=False,
    )
    found = quiet(bg.log_marginal_likelihood, post, random_seed=1)
    assert statuses(found)["draws"] == "fail"


# --- refusals


def test_what_has_no_evidence_is_refused_by_name() -> None:
    mle = bg.fit_em(bg.GaussianMixture(2), table("faithful"), random_seed=1)
    with pytest.raises(ArgumentError, match=r"^post: .*not a maximum-likelihood fit"):
        bg.log_marginal_likelihood(mle)
    boot = quiet(bg.bootstrap, mle, draws=30, random_seed=1)
    with pytest.raises(ArgumentError, match=r"^post: .*not a nonparametric bootstrap"):
        bg.log_marginal_likelihood(boot)
    with pytest.raises(ArgumentError, match=r"^post: has 20 draws, too few for 11 coordinates"):
        bg.log_marginal_likelihood(laplace().isel(draw=slice(0, 20)))
    draws = laplace()["posterior"].to_dataset().isel(chain=[0, 0, 0, 0], draw=slice(0, 100))
    edited = draws.assign_coords(chain=np.arange(4))
    hand = quiet(bg.from_draws, bg.GaussianMixture(2), edited, table("faithful"), mle=mle)
    for function in (bg.log_marginal_likelihood, bg.sensitivity):
        with pytest.raises(ArgumentError, match=r"^post: has draws of a density that is not known"):
            function(hand)
    assert np.isfinite(quiet(bg.loo, hand).elpd)
    held = {"mean": [[2.0, np.nan], [np.nan, np.nan]]}
    spec = bg.GaussianMixture(2)
    post = quiet(bg.fit_laplace, spec, table("faithful"), fixed=held, draws=200, random_seed=1)
    assert "log_evidence" not in post["criteria"]
    with pytest.raises(NotYetSupportedError, match=r"^post: has fixed means"):
        bg.log_marginal_likelihood(post)
