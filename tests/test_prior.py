"""The priors: the density that NUTS samples, the one that is stated, and the draws are one.

A density needs a measure. For every family the sampled density over the unconstrained vector is the
stated density with respect to the invariant measure times that measure's Jacobian, which is
computed here by finite differences from the covariances alone.
"""

from __future__ import annotations

import warnings
from functools import partial

import models
import numpy as np
import pytest
from models import ALL, POLAR, Parts, parts
from scipy.integrate import quad
from scipy.stats import (
    beta,
    dirichlet,
    gamma,
    halfnorm,
    invgamma,
    invwishart,
    ks_2samp,
    kstest,
    lognorm,
    norm,
)
from test_op import covariances_by_hand, rotation

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read_for
from bayesgmm.errors import ArgumentError, DataWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters
from bayesgmm.posterior.model import FamilyChart
from bayesgmm.posterior.nuts import run_nuts, start_around
from bayesgmm.prior import (
    ConjugatePrior,
    HalfNormal,
    HierarchicalInverseGamma,
    InverseGamma,
    LogNormal,
    SeparationPrior,
)
from bayesgmm.priors.improper import warn_if_improper
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import (
    PseudoData,
    Separation,
    log_density,
    pseudo_data,
    resolve,
    separation_log_density,
)
from bayesgmm.target.curvature import quadratic_at
from bayesgmm.target.density import target

PARTLY_SHARED = ("VEI", "EVI", "VEE", "EVV")
CONJUGATE = ConjugatePrior(dof=6.5, shrinkage=0.3, weight_concentration=2.5)
LOG_NORMAL = SeparationPrior(correlation=1.7, weight_concentration=0.8)
INVERSE_GAMMA = SeparationPrior(scale=InverseGamma(), correlation=1.7)
HALF_NORMAL = SeparationPrior(scale=HalfNormal(), correlation=1.7)
HIERARCHICAL = SeparationPrior(scale=HierarchicalInverseGamma(2.0, 0.4), correlation=1.7)
CASES = [
    (letters, prior)
    for letters in ALL
    for prior in (CONJUGATE, LOG_NORMAL, INVERSE_GAMMA, HALF_NORMAL, HIERARCHICAL)
    if prior is CONJUGATE or letters not in POLAR
    if prior in (CONJUGATE, LOG_NORMAL) or letters not in PARTLY_SHARED
]
NAMES = {CONJUGATE: "conjugate", LOG_NORMAL: "lognormal"}
NAMES |= {INVERSE_GAMMA: "inversegamma", HALF_NORMAL: "halfnormal"}
NAMES |= {HIERARCHICAL: "hierarchical"}
every_case = pytest.mark.parametrize(
    ("letters", "prior"), CASES, ids=[f"{letters}-{NAMES[prior]}" for letters, prior in CASES]
)


def resolved(model: Parts, letters: str, prior: object) -> PseudoData | Separation:
    return resolve(GaussianMixture(model.chart.k, letters, prior), model.data)


def points(model: Parts, seed: int, n: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [model.near_the_data(rng) for _ in range(n)]


def is_constant(values: list[float], tolerance: float = 1e-6) -> bool:
    return float(np.ptp(values)) < tolerance


def log_jacobian(f: object, at: np.ndarray) -> float:
    """log|det| of a square map, by central differences of fourth order."""
    h = 1e-3
    columns = []
    for e in np.eye(len(at)):
        step = [f(at + j * h * e) for j in (-2, -1, 1, 2)]
        columns.append((step[0] - 8 * step[1] + 8 * step[2] - step[3]) / (12 * h))
    sign, value = np.linalg.slogdet(np.stack(columns, axis=1))
    assert sign != 0
    return float(value)


def vech(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.tril_indices(len(matrix))]


def log_uniform(model: Parts, vector: np.ndarray) -> float:
    """The density of uniform rotations over the vector, from M' dM: Maurer and Cartan's form."""
    d, p = model.chart.d, model.chart.spectrum.shape[1]
    below = vector[p : p + model.chart.below.shape[1]].reshape(-1, d * (d - 1) // 2)
    strict = np.tril_indices(d, -1)

    def turn(v: np.ndarray, here: np.ndarray) -> np.ndarray:
        return (rotation(here, d).T @ rotation(v, d))[strict]

    return sum(log_jacobian(partial(turn, here=b), b) for b in below)


def log_invariant(model: Parts, covariance: np.ndarray, vector: np.ndarray) -> float:
    """The invariant measure's density over the vector: of every distinct shape's whole matrix.

    |S|^-(d+1)/2 dS splits into volume and shape, so that shapes alone have it when the volume is
    shared or not; in families of diagonal matrices the vector is already logarithms, and so are
    spectra of those with axes of their own.
    """
    family, d = model.chart.family, model.chart.d
    if family.is_diagonal:
        return 0.0
    if family.is_polar:
        return log_uniform(model, vector)
    single = FamilyChart(Covariance("VVV"), 1, model.chart.unit)
    total = 0.0
    for matrix in covariance[: 1 if family.shape == "E" else len(covariance)]:
        at = unconstrained(single, matrix[None, None])[0]
        into = log_jacobian(lambda v: vech(covariances_by_hand(single, v)[0]), at)
        total += into - 0.5 * (d + 1) * np.linalg.slogdet(matrix)[1]
    return total


class TestDensity:
    @every_case
    def test_the_sampled_density_is_the_stated_one(
        self, letters: str, prior: ConjugatePrior | SeparationPrior
    ) -> None:
        model = parts(letters, prior)
        stated = resolved(model, letters, prior)
        family = Covariance(letters)
        gaps = []
        for at in points(model, 1):
            theta = model.parameters(at)
            value = float(log_density(stated, family, theta.weight, theta.mean, theta.covariance))
            # Weights: the density is of all but the last, the vector is the centred log-ratio.
            simplex = np.log(theta.weight).sum()
            found = model.prior(at)
            sampled = found["weight"] + found["covariance"] + found["mean"]
            vector = at[1 : 1 + model.chart.size]
            measure = log_invariant(model, theta.covariance, vector)
            gaps.append(sampled - value - simplex - measure)
        assert is_constant(gaps), gaps

    @pytest.mark.parametrize("letters", ALL)
    @pytest.mark.parametrize("prior", [CONJUGATE, LOG_NORMAL], ids=["conjugate", "lognormal"])
    def test_weights_and_means_are_scipys(
        self, letters: str, prior: ConjugatePrior | SeparationPrior
    ) -> None:
        if letters in POLAR and prior is not CONJUGATE:
            with pytest.raises(ArgumentError, match="taken apart"):
                parts(letters, prior)
            return
        model = parts(letters, prior)
        stated = resolved(model, letters, prior)
        weights, means = [], []
        for at in points(model, 2):
            theta = model.parameters(at)
            found = model.prior(at)
            law = dirichlet(np.full(2, prior.weight_concentration))
            # logpdf over the first weight; d w_1 / d log-ratio is w_1 w_2, the ratio's unit fixed
            jacobian = np.log(theta.weight).sum()
            weights.append(found["weight"] - law.logpdf(theta.weight) - jacobian)
            if isinstance(stated, PseudoData):
                z = np.linalg.solve(
                    np.linalg.cholesky(theta.covariance), (theta.mean - stated.mean)[..., None]
                )
                wanted = norm.logpdf(z * np.sqrt(stated.shrinkage)).sum()
                wanted -= 0.5 * np.linalg.slogdet(theta.covariance)[1].sum()
            else:
                wanted = norm(stated.mean, stated.mean_sd).logpdf(theta.mean).sum()
            means.append(found["mean"] - wanted)
        assert is_constant(weights)
        assert is_constant(means)

    @pytest.mark.parametrize("letters", ["VVV", "EEE"])
    def test_whole_matrices_are_inverse_wishart(self, letters: str) -> None:
        model = parts(letters, CONJUGATE)
        cov = np.cov(model.data.values.T)
        law = invwishart(6.5, cov / 2.0 ** (2.0 / 3.0))
        single = FamilyChart(Covariance("VVV"), 1, model.chart.unit)
        gaps = []
        for at in points(model, 3):
            covariance = model.parameters(at).covariance
            wanted = 0.0
            for matrix in covariance[: 1 if letters == "EEE" else 2]:
                v = unconstrained(single, matrix[None, None])[0]
                wanted += law.logpdf(matrix)
                wanted += log_jacobian(lambda v: vech(covariances_by_hand(single, v)[0]), v)
            gaps.append(model.prior(at)["covariance"] - wanted)
        assert is_constant(gaps)

    @pytest.mark.parametrize("letters", ["VVI", "EEI", "VII", "EII", "V", "E"])
    def test_variances_are_inverse_gamma(self, letters: str) -> None:
        model = parts(letters, CONJUGATE)
        d = model.chart.d
        spread = np.var(model.data.values, axis=0, ddof=1).mean() / 2.0 ** (2.0 / d)
        law = invgamma(6.5 / 2.0, scale=spread / 2.0)
        family = Covariance(letters)
        gaps = []
        for at in points(model, 4):
            variance = np.diagonal(model.parameters(at).covariance, axis1=1, axis2=2)
            own = variance[: 1 if family.is_common else 2, : 1 if family.shape == "I" else d]
            # The vector is linear in log-variances: d v / d log v = v.
            gaps.append(model.prior(at)["covariance"] - (law.logpdf(own) + np.log(own)).sum())
        assert is_constant(gaps)

    @pytest.mark.parametrize("letters", ["VVV", "EEE", "VVI", "EEI", "VII", "EII", "V", "E"])
    @pytest.mark.parametrize(
        "prior", [LOG_NORMAL, INVERSE_GAMMA, HALF_NORMAL], ids=lambda prior: NAMES[prior]
    )
    def test_separation_is_lkj_times_scipys_scales(
        self, letters: str, prior: SeparationPrior
    ) -> None:
        model = parts(letters, prior)
        family, d = Covariance(letters), model.chart.d
        sd = np.std(model.data.values, axis=0, ddof=1)
        if family.shape == "I":
            sd = np.full(d, np.sqrt(np.mean(sd**2)))
        match prior.scale:
            case LogNormal(mu, sigma):
                law = lognorm(sigma, scale=np.exp(mu) * sd)
            case InverseGamma(alpha, rate):
                law = invgamma(alpha, scale=rate * sd)
            case HalfNormal(sigma):
                law = halfnorm(scale=sigma * sd)
        single = FamilyChart(Covariance("VVV"), 1, model.chart.unit)
        strict = np.tril_indices(d, -1)

        def apart(v: np.ndarray) -> np.ndarray:
            """Vector -> log sds and correlations."""
            matrix = covariances_by_hand(single, v)[0]
            s = np.sqrt(np.diagonal(matrix))
            return np.concatenate([np.log(s), (matrix / s[:, None] / s)[strict]])

        gaps = []
        for at in points(model, 5):
            covariance = model.parameters(at).covariance
            wanted = 0.0
            for matrix in covariance[: 1 if family.is_common else 2]:
                s = np.sqrt(np.diagonal(matrix))
                each = law.logpdf(s) + np.log(s)  # of log sd
                if family.shape == "I":
                    wanted += each[0]
                    continue
                wanted += each.sum()
                if not family.is_diagonal:
                    correlation = matrix / s[:, None] / s
                    wanted += (prior.correlation - 1.0) * np.linalg.slogdet(correlation)[1]
                    wanted += log_jacobian(apart, unconstrained(single, matrix[None, None])[0])
            gaps.append(model.prior(at)["covariance"] - wanted)
        assert is_constant(gaps)

    @pytest.mark.parametrize(
        "letters", [x for x in ALL if not Covariance(x).is_common and x not in POLAR]
    )
    def test_one_component_makes_families_one(self, letters: str) -> None:
        """With k = 1 the conjugate prior depends on shape and orientation being there, not on E."""
        model = parts(letters, CONJUGATE, 1)
        common = parts(letters.replace("V", "E"), CONJUGATE, 1)
        gaps = [
            model.prior(at)["covariance"] - common.prior(at)["covariance"]
            for at in points(model, 7)
        ]
        assert is_constant(gaps)


def stein(model: Parts, vectors: np.ndarray) -> np.ndarray:
    """z-scores of E[f d_i log p + d_i f] = 0, which holds for draws of p and no other law.

    For f one of 1, v_j and tanh(2 v_j), in standardised coordinates.
    """
    before = np.zeros(model.sizes[0]) if len(model.sizes) == 3 else np.zeros(0)
    after = np.zeros(model.sizes[-1])
    rows = slice(len(before), len(before) + vectors.shape[1])
    slopes = np.array([model.slope(np.concatenate([before, v, after]))[1][rows] for v in vectors])
    scale = vectors.std(axis=0)
    v, slopes = (vectors - vectors.mean(axis=0)) / scale, slopes * scale
    terms = [slopes]
    for j, e in enumerate(np.eye(v.shape[1])):
        terms.append(v[:, [j]] * slopes + e)
        t = np.tanh(2.0 * v[:, [j]])
        terms.append(t * slopes + 2.0 * (1.0 - t**2) * e)
    each = np.concatenate(terms, axis=1)
    return each.mean(axis=0) / (each.std(axis=0) / np.sqrt(len(each)))


def unconstrained(chart: FamilyChart, covariance: np.ndarray) -> np.ndarray:
    """Vectors of many covariances (s, k, d, d), in NumPy."""
    index = np.arange(chart.d)
    if chart.family.is_diagonal:
        log_s = np.log(covariance[:, :, index, index] / chart.unit**2)
        return log_s.reshape(len(log_s), -1) @ chart.spectrum_inverse.T
    factor = np.linalg.cholesky(covariance) / chart.unit[:, None]
    root = factor[:, :, index, index]
    below = (factor / root[:, :, None, :])[:, :, chart.rows, chart.columns]
    return np.hstack(
        [
            2.0 * np.log(root).reshape(len(root), -1) @ chart.spectrum_inverse.T,
            below.reshape(len(root), -1) @ chart.below_inverse.T,
        ]
    )


class TestDraws:
    @pytest.mark.parametrize("letters", POLAR)
    def test_axes_and_spectra_have_the_density(self, letters: str) -> None:
        """Against NUTS on the density itself, which knows nothing of angles and gammas."""
        prior = ConjugatePrior(shrinkage=1.0, dof=7.0)
        data = read_for(GaussianMixture(2, letters, prior), models.table("iris", 3))
        spec = GaussianMixture(2, letters, prior)
        stated = resolve(spec, data)
        rng = np.random.default_rng(8)
        draws = [draw_covariance(stated, Covariance(letters), 2, rng) for _ in range(250)]
        alone = target(spec, data, stated).without_data()
        begin = Parameters(np.full(2, 0.5), np.tile(stated.mean, (2, 1)), draws[0])
        found = run_nuts(
            start_around([quadratic_at(alone, alone.point(begin), begin)], alone),
            progress_bar=False,
            draws=2000,
            tune=1000,
            chains=2,
            cores=2,
            seed=1,
            target_accept=0.9,
        )
        points = found["posterior"]["point"].to_numpy()
        sampled = alone.parameters(points.reshape(-1, points.shape[-1]))["covariance"][::10]
        for f in (
            lambda c: np.linalg.slogdet(c)[1][:, 0],
            lambda c: np.log(c[:, 0, 0, 0] / c[:, 1, 0, 0]),
            lambda c: c[:, 0, 0, 1] / np.sqrt(c[:, 0, 0, 0] * c[:, 0, 1, 1]),
            lambda c: c[:, 1, 1, 2] / np.sqrt(c[:, 1, 1, 1] * c[:, 1, 2, 2]),
        ):
            assert ks_2samp(f(np.array(draws)), f(sampled)).pvalue > 1e-3

    @pytest.mark.parametrize(
        ("letters", "prior"), [case for case in CASES if case[0] not in POLAR], ids=str
    )
    def test_draws_have_the_density(
        self, letters: str, prior: ConjugatePrior | SeparationPrior
    ) -> None:
        model = parts(letters, prior)
        family, stated = Covariance(letters), resolved(model, letters, prior)
        rng = np.random.default_rng(8)
        draws = np.stack([draw_covariance(stated, family, 2, rng) for _ in range(1500)])
        vectors = unconstrained(model.chart, draws)
        again = np.stack([covariances_by_hand(model.chart, v) for v in vectors[:50]])
        np.testing.assert_allclose(draws[:50], again, rtol=1e-7, atol=1e-12 * draws.max())
        z = stein(model, vectors)
        assert np.abs(z).max() < 4.5

    def test_the_check_sees_a_wrong_prior(self) -> None:
        """Draws with half a degree of freedom more, or with eta off by a third, are caught."""
        model, family = parts("EVV", CONJUGATE), Covariance("EVV")
        planted = resolved(model, "EVV", ConjugatePrior(dof=7.0))
        rng = np.random.default_rng(9)
        draws = np.stack([draw_covariance(planted, family, 2, rng) for _ in range(1500)])
        assert np.abs(stein(model, unconstrained(model.chart, draws))).max() > 6
        model = parts("VVV", LOG_NORMAL)
        planted = resolved(model, "VVV", SeparationPrior(correlation=2.2))
        draws = np.stack([draw_covariance(planted, Covariance("VVV"), 2, rng) for _ in range(1500)])
        assert np.abs(stein(model, unconstrained(model.chart, draws))).max() > 4.5

    def test_inverse_wishart_by_its_moments(self) -> None:
        model = parts("VVV", CONJUGATE)
        stated = resolved(model, "VVV", CONJUGATE)
        scale = np.cov(model.data.values.T) / 2.0 ** (2.0 / 3.0)
        rng = np.random.default_rng(10)
        draws = np.concatenate(
            [draw_covariance(stated, Covariance("VVV"), 2, rng) for _ in range(2000)]
        )
        precision = np.linalg.inv(draws)
        mean = 6.5 * np.linalg.inv(scale)
        error = precision.std(axis=0) / np.sqrt(len(draws))
        assert (np.abs(precision.mean(axis=0) - mean) < 4.5 * error).all()
        reference = invwishart(6.5, scale).rvs(4000, random_state=11)
        for f in (lambda c: np.linalg.slogdet(c)[1], lambda c: c[:, 0, 1], lambda c: c[:, 2, 2]):
            assert kstest(f(draws), f(reference)).pvalue > 1e-3

    def test_lkj_by_its_marginal(self) -> None:
        model = parts("VVV", LOG_NORMAL)
        stated = resolved(model, "VVV", LOG_NORMAL)
        rng = np.random.default_rng(12)
        draws = np.concatenate(
            [draw_covariance(stated, Covariance("VVV"), 2, rng) for _ in range(1000)]
        )
        sd = np.sqrt(np.diagonal(draws, axis1=1, axis2=2))
        for i, j in ((1, 0), (2, 0), (2, 1)):
            half = 0.5 * (1.0 + draws[:, i, j] / sd[:, i] / sd[:, j])
            shape = 1.7 - 1.0 + 3 / 2
            assert kstest(half, beta(shape, shape).cdf).pvalue > 1e-3
        column = np.std(model.data.values, axis=0, ddof=1)
        for j in range(3):
            law = lognorm(0.75, scale=0.5 * column[j])
            assert kstest(sd[:, j], law.cdf).pvalue > 1e-3

    @pytest.mark.parametrize("letters", PARTLY_SHARED)
    def test_the_log_normal_splits_into_volume_and_shape(self, letters: str) -> None:
        model, family = parts(letters, LOG_NORMAL), Covariance(letters)
        stated = resolved(model, letters, LOG_NORMAL)
        rng = np.random.default_rng(14)
        draws = np.stack([draw_covariance(stated, family, 2, rng) for _ in range(2000)])[:, 0]
        mu = np.log(0.5) + np.log(np.std(model.data.values, axis=0, ddof=1))
        root = np.linalg.slogdet(draws)[1] / 6
        assert kstest(root, norm(mu.mean(), 0.75 / np.sqrt(3)).cdf).pvalue > 1e-3
        log_sd = 0.5 * np.log(np.diagonal(draws, axis1=1, axis2=2))
        ratio = log_sd[:, 0] - log_sd[:, 1]
        assert kstest(ratio, norm(mu[0] - mu[1], 0.75 * np.sqrt(2)).cdf).pvalue > 1e-3
        if not family.is_diagonal:
            half = 0.5 + 0.5 * draws[:, 1, 0] * np.exp(-log_sd[:, 0] - log_sd[:, 1])
            assert kstest(half, beta(2.2, 2.2).cdf).pvalue > 1e-3


class TestNumbers:
    def test_separation_in_data_units(self) -> None:
        model = parts("VVV")
        prior = SeparationPrior(
            mean=[1.0, 2.0, 3.0],
            mean_sd=[4.0, 5.0, 6.0],
            scale=HalfNormal([7.0, 8.0, 9.0]),
            units="data",
        )
        stated = resolved(model, "VVV", prior)
        assert isinstance(stated, Separation)
        np.testing.assert_array_equal(stated.mean, [1.0, 2.0, 3.0])
        np.testing.assert_array_equal(stated.mean_sd, [4.0, 5.0, 6.0])
        assert stated.scale == HalfNormal((7.0, 8.0, 9.0))

    def test_separation_in_units_of_the_spread(self) -> None:
        model = parts("VVV")
        x = model.data.values
        stated = resolved(model, "VVV", SeparationPrior(mean=1.0, mean_sd=2.0, scale=HalfNormal(3)))
        sd = x.std(axis=0, ddof=1)
        np.testing.assert_allclose(stated.mean, x.mean(axis=0) + sd, rtol=1e-12)
        np.testing.assert_allclose(stated.mean_sd, 2.0 * sd, rtol=1e-12)
        np.testing.assert_allclose(stated.scale.sigma, 3.0 * sd, rtol=1e-12)

    def test_numbers_for_other_features(self) -> None:
        with pytest.raises(ArgumentError, match="2 numbers were given for 3 features"):
            resolved(parts("VVV"), "VVV", SeparationPrior(mean=[1.0, 2.0]))
        with pytest.raises(ArgumentError, match="one scale"):
            resolved(parts("VII"), "VII", SeparationPrior(scale=HalfNormal([1.0, 2.0, 3.0])))
        with pytest.raises(ArgumentError, match="exceed"):
            resolved(parts("VVV"), "VVV", ConjugatePrior(dof=2.0))

    @pytest.mark.parametrize("letters", ["VVV", "EEE", "VVI", "VII"])
    def test_the_conjugate_prior_is_in_the_datas_own_units(self, letters: str) -> None:
        """Another unit of measurement shifts every log-density by a constant only."""
        model = parts(letters, CONJUGATE)
        scale = 1024.0
        data = model.data
        family = Covariance(letters)
        spec = GaussianMixture(2, letters, CONJUGATE)
        cov = data.covariance * np.outer(data.scale, data.scale)
        mean = data.center + data.scale * data.mean
        one = pseudo_data(spec.prior, family, 2, mean=mean, covariance=cov)
        two = pseudo_data(spec.prior, family, 2, mean=scale * mean, covariance=scale**2 * cov)
        gaps = []
        for at in points(model, 13):
            t = model.parameters(at)
            a = log_density(one, family, t.weight, t.mean, t.covariance)
            b = log_density(two, family, t.weight, scale * t.mean, scale**2 * t.covariance)
            gaps.append(float(a - b))
        assert is_constant(gaps, 1e-9)

    @pytest.mark.parametrize("letters", ["VVV", "EEE", "EVE"])
    def test_of_a_singular_covariance_the_diagonal_is_the_scale(self, letters: str) -> None:
        x = np.random.default_rng(0).normal(size=(5, 8)) * np.geomspace(1.0, 1e4, 8)
        few, many = (np.cov(part.T) for part in (x, np.vstack([x, np.eye(8), 2 * np.eye(8)])))
        family, k = Covariance(letters), 2
        share = k if family.is_common else 1
        with pytest.warns(DataWarning, match=r"\[prior-scale\]"):
            found = pseudo_data(ConjugatePrior(), family, k, mean=x.mean(axis=0), covariance=few)
        wanted = np.diag(np.diag(few)) / k ** (2.0 / 8) / share
        np.testing.assert_allclose(found.scatter, wanted, rtol=1e-15)
        found = pseudo_data(ConjugatePrior(), family, k, mean=x.mean(axis=0), covariance=many)
        np.testing.assert_allclose(found.scatter, many / k ** (2.0 / 8) / share, rtol=1e-15)


class TestHierarchicalVariances:
    @pytest.mark.parametrize(("letters", "distinct"), [("VVI", 3), ("EEI", 1), ("VII", 3)])
    def test_it_is_the_integral_over_the_common_size(self, letters: str, distinct: int) -> None:
        """Of Gamma(precision; a, beta) Gamma(beta; g, h), by SciPy, for each feature."""
        family, d, k = Covariance(letters), 2, 3
        a, g, h = 1.7, 0.6, (0.3, 0.3) if letters == "VII" else (0.3, 2.0)
        prior = Separation(np.zeros(d), np.ones(d), HierarchicalInverseGamma(a, g, h), 1.0, 1.0)
        rng = np.random.default_rng(20)
        gaps = []
        for _ in range(5):
            log_sd = rng.normal(size=(distinct, 1 if letters == "VII" else d))
            whole = np.broadcast_to(log_sd, (k, d)) + np.zeros((k, d))
            logdet = 2.0 * whole.sum(axis=1)
            value = float(separation_log_density(prior, family, k, logdet, whole))
            wanted = 0.0
            for j in range(log_sd.shape[1]):
                precision = np.exp(-2.0 * log_sd[:, j])

                def joint(
                    log_beta: float, h: float = h[j], precision: np.ndarray = precision
                ) -> float:
                    beta = np.exp(log_beta)
                    each = gamma.logpdf(precision, a, scale=1.0 / beta).sum()
                    return float(np.exp(each + gamma.logpdf(beta, g, scale=1.0 / h) + log_beta))

                integral = quad(joint, -60.0, 12.0, epsabs=0.0, epsrel=1e-11, limit=500)[0]
                # From densities of precisions to those of log sds.
                wanted += np.log(integral) + np.log(2.0 * precision).sum()
            gaps.append(value - wanted)
        assert np.ptp(gaps) < 1e-7

    def test_its_default_is_richardsons_and_greens(self) -> None:
        x = models.table("galaxies")
        spec = GaussianMixture(3, "V", SeparationPrior(scale=HierarchicalInverseGamma()))
        scale = resolve(spec, read_for(spec, x)).scale
        assert scale.rate[0] == pytest.approx(10.0 / np.ptp(x.to_numpy()) ** 2, rel=1e-13)
        given = SeparationPrior(scale=HierarchicalInverseGamma(rate=3.0))
        scale = resolve(GaussianMixture(3, "V", given), read_for(spec, x)).scale
        assert scale.rate[0] == pytest.approx(3.0 / x.to_numpy().var(ddof=1), rel=1e-12)
        assert GaussianMixture.from_json(spec.to_json()) == spec

    @pytest.mark.parametrize(
        ("counts", "is_improper"),
        [((3,), False), ((4,), True), ((2, 2), False), ((3, 2), True)],
    )
    def test_many_ties_are_warned_of(self, counts: tuple[int, ...], is_improper: bool) -> None:
        """K = 3, a = 1, g = 0.5: one component needs 1 + 4 of pull, two together 1 + 2.

        The second of the two may shrink onto a row of its own.
        """
        x = np.random.default_rng(3).normal(size=40)
        begin = 0
        for i, count in enumerate(counts):
            x[begin : begin + count] = float(i)
            begin += count
        spec = GaussianMixture(
            3, "V", SeparationPrior(scale=HierarchicalInverseGamma(alpha=1.0, shape=0.5))
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_if_improper(spec, read_for(spec, x[:, None]))
        found = [str(w.message) for w in caught if "improper" in str(w.message)]
        assert bool(found) == is_improper
        assert all(f"{counts[0]} equal 0" in text for text in found)
