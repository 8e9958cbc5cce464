"""One simulation for calibration: a truth, data from it, and its place among posterior draws.

Parameters are drawn from the prior, data from them, and draws from the posterior by the public
verbs: the rank of a quantity of the true parameters among those of the draws is then uniform, for
any quantity, also of parameters and data together (Talts et al. 2018; Modrák et al. 2023).  For
posterior calibration parameters are drawn from the posterior of observed data, and fitted are the
observed and the simulated rows together (Säilynoja et al. 2025).  `BUGS` spoil the log-posterior.

References
----------
Talts, Betancourt, Simpson, Vehtari & Gelman (2018), arXiv:1804.06788.
Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Bayesian Analysis 20.
Säilynoja, Schmitt, Bürkner & Vehtari (2025), arXiv:2502.03279.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from unittest import mock

import numpy as np
import xarray as xr
from scipy.special import logsumexp

import bayesgmm as bg
from bayesgmm import labels
from bayesgmm.data.observations import read
from bayesgmm.labelfree import label_free
from bayesgmm.posterior import draws as drawing
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import PseudoData, Separation, resolve
from bayesgmm.resolved import log_density as log_prior
from bayesgmm.target.density import Target
from bayesgmm.tree import DIMS, point

RANKED = 64  # draws that a rank is among, thinned so that they are nearly independent

Draws = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights (s, k), means, covariances


@dataclass(frozen=True)
class Case:
    """A specification whose prior's numbers are all given, and how many rows are simulated."""

    name: str
    text: str
    spec: bg.GaussianMixture
    n: int
    d: int
    observed: str | None = None  # a data set, every eighth row of which has been seen
    hidden: float = 0.0  # share of cells that are missing
    known: float = 0.0  # share of rows whose component is known

    @property
    def group(self) -> str:
        """As ArviZ calls it."""
        return "prior_sbc" if self.observed is None else "posterior_sbc"

    def seen(self) -> np.ndarray:
        """Return the observed rows (n, d), none for prior calibration."""
        if self.observed is None:
            return np.empty((0, self.d))
        return np.asarray(bg.datasets.load(self.observed), dtype=float)[::8]


@cache
def prior_of(case: Case) -> PseudoData | Separation:
    """Return the prior's numbers, which do not depend on the data."""
    some = np.random.default_rng(0).normal(size=(20, case.d))
    return resolve(case.spec, read(some, family=case.spec.covariance))


@cache
def cases() -> dict[str, Case]:
    """Return all, by name."""
    pull = {"shrinkage": 0.03, "weight_concentration": 3.0}
    line = bg.ConjugatePrior(mean=0.0, scale=1.0, dof=5.0, **pull)
    plane = bg.ConjugatePrior(mean=0.0, scale=1.0, dof=6.0, **pull)
    eruptions = bg.ConjugatePrior(mean=(3.5, 70.0), scale=(0.5, 100.0), **pull)
    apart = {"mean": 0.0, "mean_sd": 4.0, "weight_concentration": 3.0, "units": "data"}
    half = bg.SeparationPrior(scale=HalfNormal(1.0), **apart)
    inverse = bg.SeparationPrior(scale=InverseGamma(4.0, 3.0), correlation=1.5, **apart)
    split = bg.SeparationPrior(correlation=3.0, **apart)
    alike = bg.SeparationPrior(scale=HierarchicalInverseGamma(2.0, 2.0, 2.0), **apart)

    def case(name: str, text: str, k: int, family: str, prior: bg.prior.Prior, n: int) -> Case:
        d = 1 if len(family) == 1 else 2
        return Case(name, text, bg.GaussianMixture(k, family, prior), n, d)

    all_of = (
        case("V", "conjugate", 2, "V", line, 40),
        case("V half-normal", "means and half-normal sds apart", 2, "V", half, 40),
        case("VVI", "conjugate", 2, "VVI", plane, 40),
        case("VVI hierarchical", "means apart, variances alike in size", 2, "VVI", alike, 40),
        case("EEE", "conjugate, three components", 3, "EEE", plane, 60),
        case("VVV", "conjugate", 2, "VVV", plane, 40),
        case("VVV LKJ", "means, inverse-gamma sds and correlations apart", 2, "VVV", inverse, 40),
        case("VEE LKJ", "means, log-normal sds and correlations apart", 2, "VEE", split, 40),
        case("EEV", "conjugate; axes by Cayley's map", 2, "EEV", plane, 40),
        replace(
            case("VVV missing", "conjugate; a fifth of the cells is missing", 2, "VVV", plane, 50),
            hidden=0.2,
        ),
        replace(
            case("V labels", "conjugate; a fifth of the labels is known", 2, "V", line, 40),
            known=0.2,
        ),
        Case(
            *("VVV posterior", "conjugate, given 34 rows of Old Faithful"),
            *(bg.GaussianMixture(2, "VVV", eruptions), 34, 2, "faithful"),
        ),
    )
    return {c.name: c for c in all_of}


# The generative side


def from_prior(case: Case, rng: np.random.Generator) -> bg.Parameters:
    """Draw parameters from the prior."""
    prior, k = prior_of(case), case.spec.n_components
    covariance = draw_covariance(prior, case.spec.covariance, k, rng)
    noise = rng.normal(size=(k, case.d))
    if isinstance(prior, Separation):
        step = prior.mean_sd * noise
    else:
        root = np.linalg.cholesky(covariance)
        step = np.einsum("kij,kj->ki", root, noise) / np.sqrt(prior.shrinkage)
    weight = rng.dirichlet(np.full(k, prior.concentration))
    return bg.Parameters(weight, prior.mean + step, covariance)


@dataclass(frozen=True, eq=False)
class Sample:
    """Data that a posterior is to be found for."""

    x: np.ndarray  # (n, d), NaN where missing
    label: np.ndarray  # (n,), -1 where unknown

    @property
    def options(self) -> dict[str, object]:
        """As the verbs take them."""
        options: dict[str, object] = {"missing": "marginalise"} if np.isnan(self.x).any() else {}
        return options | ({"labels": self.label} if (self.label >= 0).any() else {})


@cache
def seen_posterior(case: Case) -> Draws:
    """Return many draws given the observed rows."""
    seen = case.seen()
    fit, _ = fitted(case, Sample(seen, np.full(len(seen), -1)), seed=1, draws=2500)
    return arrays(fit)


def arrays(fit: xr.DataTree) -> Draws:
    """Return the draws of all chains, one after the other."""
    values = [fit["posterior"][n].to_numpy() for n in DIMS]
    return tuple(v.reshape(-1, *v.shape[2:]) for v in values)


def draw(case: Case, rng: np.random.Generator) -> tuple[bg.Parameters, Sample]:
    """Draw parameters, and data from them."""
    if case.observed is None:
        truth = from_prior(case, rng)
    else:
        given = seen_posterior(case)
        at = rng.integers(len(given[0]))
        truth = bg.Parameters(*(a[at] for a in given))
    z = rng.choice(truth.k, size=case.n, p=truth.weight)
    noise = rng.normal(size=(case.n, case.d))
    x = truth.mean[z] + np.einsum("nij,nj->ni", truth.factor[z], noise)
    if case.hidden:
        is_hidden = rng.random(x.shape) < case.hidden
        x[is_hidden & ~is_hidden.all(axis=1, keepdims=True)] = np.nan
    label = np.where(rng.random(case.n) < case.known, z, -1)
    seen = case.seen()
    return truth, Sample(np.concatenate([seen, x]), np.concatenate([np.full(len(seen), -1), label]))


def log_likelihood(sample: Sample, theta: Draws) -> np.ndarray:
    """Return the joint log-likelihood (s,): by the definition, in NumPy alone."""
    weight, mean, covariance = theta
    joint = np.empty((len(weight), len(sample.x), weight.shape[1]))
    for pattern in np.unique(np.isnan(sample.x), axis=0):
        rows, f = (np.isnan(sample.x) == pattern).all(axis=1), np.flatnonzero(~pattern)
        part = covariance[:, :, f[:, None], f]
        gap = sample.x[rows][:, f] - mean[:, :, None, f]
        whitened = np.linalg.solve(part[:, :, None], gap[..., None])[..., 0]
        norm = np.linalg.slogdet(part)[1] + len(f) * np.log(2.0 * np.pi)
        square = norm[:, :, None] + (gap * whitened).sum(axis=-1)
        joint[:, rows] = np.swapaxes(np.log(weight)[:, :, None] - 0.5 * square, 1, 2)
    is_known = sample.label >= 0
    joint[:, is_known[:, None] & (sample.label[:, None] != np.arange(weight.shape[1]))] = -np.inf
    return logsumexp(joint, axis=2).sum(axis=1)


# Bugs


def no_jacobian(target: Target) -> Target:
    """Return the target without the log-Jacobian of the covariances' coordinates."""
    return replace(target, terms=replace(target.terms, linear=0.0 * target.terms.linear))


def as_kind(target: Target, kind: type[Target]) -> Target:
    """Return a target as one of a subclass, or of `Target` itself."""
    return kind(**{f.name: getattr(target, f.name) for f in fields(target)})


class _Swapped(Target):
    def parameters(self, points: np.ndarray) -> dict[str, np.ndarray]:
        found = super().parameters(points)
        return found | {"weight": found["weight"][..., ::-1]}


def swapped_weights(target: Target) -> Target:
    """Return the target whose draws have the weights in the wrong order."""
    return as_kind(target, _Swapped)


class _Deaf(Target):
    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return as_kind(self, Target).without_data().arrays


def dropped_likelihood(target: Target) -> Target:
    """Return the target that has data but does not see them when it is evaluated."""
    return as_kind(target, _Deaf)


Bug = Callable[[Target], Target]
BUGS: dict[str, Bug] = {
    "wrong Jacobian": no_jacobian,
    "swapped weights": swapped_weights,
    "dropped likelihood": dropped_likelihood,
}


# One simulation


def fitted(
    case: Case,
    sample: Sample,
    seed: int,
    *,
    draws: int = 500,
    tune: int = 500,
    chains: int = 4,
    n_starts: int = 10,
) -> tuple[xr.DataTree, bg.Parameters]:
    """Return the posterior as a user gets it, and the fit by EM that gave it its labels."""
    has_mode = isinstance(case.spec.prior, bg.ConjugatePrior)
    settings = {"random_seed": seed, "progressbar": False} | sample.options
    mle = bg.fit_em(
        case.spec,
        sample.x,
        estimate="map" if has_mode else "mle",
        start=[None],  # as in `sample_posterior`
        n_starts=n_starts,
        n_finish=3,
        standard_errors=False,
        threads=1,
        **settings,
    )
    settings |= {"draws": draws, "tune": tune, "chains": chains, "cores": 1}
    post = bg.sample_posterior(case.spec, sample.x, mle=mle, log_likelihood=False, **settings)
    return post, point(mle)


def true_values(truth: bg.Parameters) -> Draws:
    """Return the truth as a single draw."""
    weight, mean, covariance = (getattr(truth, n)[None] for n in DIMS)
    return weight, mean, covariance


def label_free_quantities(case: Case, sample: Sample, theta: Draws) -> dict[str, np.ndarray]:
    """Return what is ranked that no labels matter to, (s,) each.

    Of quantities with a value for each column the first or the last is taken.
    """
    free = label_free(*theta)
    return {
        "mean of all": free["mixture_mean"][:, 0],
        "sd of all": free["mixture_sd"][:, -1],
        "share between": free["between"][:, 0],
        "log-volume": free["log_volume"],
        "entropy of weights": free["weight_entropy"],
        "log-likelihood": log_likelihood(sample, theta),
        "log-prior": log_prior(prior_of(case), case.spec.covariance, *theta),
    }


def quantities(
    case: Case, sample: Sample, theta: Draws, pivot: bg.Parameters
) -> dict[str, np.ndarray]:
    """Return what is ranked, (s,) each: the same function of the truth and of the draws.

    Those without labels come first; for the others components get the pivot's, which the data alone
    decide.
    """
    weight, mean, covariance = theta
    order = labels.align(weight, mean, covariance, pivot).permutation
    a, m, s = (labels.apply(order, array) for array in theta)
    gap = m[:, 0] - m[:, 1]
    distance = np.einsum(
        "si,si->s", gap, np.linalg.solve(s[:, 0] + s[:, 1], gap[..., None])[..., 0]
    )
    return label_free_quantities(case, sample, theta) | {
        "weight[0]": a[:, 0],
        "mean[0]": m[:, 0, 0],
        "variance[0]": s[:, 0, -1, -1],
        "log det[1]": np.linalg.slogdet(s[:, 1])[1],
        "distance[0, 1]": distance,
    }


def one(
    case: Case, seed: np.random.SeedSequence, bug: Bug | None = None, **settings: int
) -> dict[str, object]:
    """Return the place of every quantity of the truth among those of the draws, and the verdict.

    Places are uniform on (0, 1) if truth and draws are exchangeable.
    """
    rng = np.random.default_rng(seed)
    truth, sample = draw(case, rng)
    with warnings.catch_warnings(), mock.patch.object(drawing, "target", planted(bug)):
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        try:
            post, pivot = fitted(case, sample, int(rng.integers(2**31)), **settings)
        except bg.errors.NumericalError:  # no maximum, for which the data alone are to blame
            return {"status": "no maximum", "place": {}}
    theta = arrays(post)
    total = len(theta[0])
    kept = np.linspace(0, total - 1, min(total, RANKED)).round().astype(int)
    both = (tuple(a[kept] for a in theta), true_values(truth))
    drawn, wanted = (quantities(case, sample, t, pivot) for t in both)
    found = {n: place(values, wanted[n].item(), rng) for n, values in drawn.items()}
    return {"status": json.loads(post.attrs["verdict"])["status"], "place": found}


def place(values: np.ndarray, truth: float, rng: np.random.Generator) -> float:
    """Return the share of values below the truth, spread evenly over its step and over ties."""
    below, equal = (values < truth).sum(), (values == truth).sum()
    return float((below + rng.uniform() * (1 + equal)) / (1 + len(values)))


def planted(bug: Bug | None) -> Callable[..., Target]:
    """Return what `bayesgmm` makes its log-posterior with, with a bug."""
    right = drawing.target
    return right if bug is None else lambda *arguments: bug(right(*arguments))
