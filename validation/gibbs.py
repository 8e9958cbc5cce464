"""The same posteriors by an independent sampler: where the truth lies among exact draws.

Ranks scatter with the truths that chance has drawn.  A Gibbs sampler that shares no code with the
package is run on the same data, so that the places that NUTS gives can be taken against the places
in the exact posterior: their difference has none of that scatter left.  It knows components whose
columns are independent of each other given the component, under a conjugate prior or with means
and variances apart:

    z | ..            each row's component where it is not known, by its responsibilities
    weights | z       Dirichlet(concentration + n_k)
    variances | ..    inverse gamma, column by column
    means | ..        normal

for variances that are alike in size (Richardson & Green 1997) their common rate, a gamma; and whole
covariances under the conjugate prior, with cells that are missing:

    cells | ..        normal, each given the others of its row
    covariances | z   inverse Wishart
Chains start far from each other, in the prior.  With known labels a chain may stay where it has
exchanged the components of the others: data of which chains disagree say nothing, and are left out.

References
----------
Diebolt & Robert (1994), J. R. Statist. Soc. B 56, 363-375.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from arviz_stats.base import array_stats
from numba import njit

from bayesgmm.prior import HierarchicalInverseGamma
from bayesgmm.resolved import PseudoData, measure_exponent
from validation.ranks import Case, Draws, Sample, draw, label_free_quantities, prior_of, true_values

CASES = ("V", "VVI", "VVI hierarchical", "V labels", "VVV", "VVV missing")
CHAINS = 6
AGREED = 1.05  # R-hat of the log-likelihood
_SWEEPS, _BURN, _THIN = 6000, 1000, 10
DRAWS = CHAINS * (_SWEEPS - _BURN) // _THIN


class Numbers(NamedTuple):
    """A prior by its numbers; variances are inverse gamma (shape, rate) for each column.

    Means have variance (their component's) / shrinkage, or, if that is 0, ``mean_sd`` squared.
    The rate is itself Gamma(rate_shape, rate_rate), or, if ``rate_shape`` is 0, what it is.
    """

    concentration: float
    mean: np.ndarray
    shrinkage: float
    mean_sd: np.ndarray
    shape: float
    rate: np.ndarray
    rate_shape: float
    rate_rate: np.ndarray


def numbers_of(case: Case) -> Numbers:
    """Return the numbers of a case's prior."""
    prior, d = prior_of(case), case.d
    if isinstance(prior, PseudoData):
        shape = 0.5 * (prior.count - measure_exponent(case.spec.covariance, d))
        rate = 0.5 * np.diagonal(prior.scatter).copy()
        nothing = np.zeros(d)
        return Numbers(
            *(prior.concentration, prior.mean, prior.shrinkage, nothing),
            *(shape, rate, 0.0, nothing),
        )
    scale = prior.scale
    assert isinstance(scale, HierarchicalInverseGamma)
    top = np.broadcast_to(np.asarray(scale.rate, dtype=float), d).copy()
    return Numbers(
        *(prior.concentration, prior.mean, 0.0, prior.mean_sd),
        *(scale.alpha, np.ones(d), scale.shape, top),
    )


@njit(cache=True)
def sweep_many(x, label, k, prior, sweeps, burn, thin, rng):  # type: ignore[no-untyped-def]
    """Return weights (s, k), means and variances (s, k, d) of one chain, begun in the prior."""
    n, d = x.shape
    weights = np.empty(((sweeps - burn) // thin, k))
    means, variances = np.empty((len(weights), k, d)), np.empty((len(weights), k, d))
    w, mu, v, rate = np.empty(k), np.empty((k, d)), np.empty((k, d)), prior.rate.copy()
    for f in range(d):
        if prior.rate_shape > 0.0:
            rate[f] = rng.gamma(prior.rate_shape, 1.0) / prior.rate_rate[f]
        for j in range(k):
            v[j, f] = rate[f] / rng.gamma(prior.shape, 1.0)
            wide = prior.mean_sd[f] ** 2 if prior.shrinkage == 0.0 else v[j, f] / prior.shrinkage
            mu[j, f] = prior.mean[f] + np.sqrt(wide) * rng.normal(0.0, 1.0)
    for j in range(k):
        w[j] = rng.gamma(prior.concentration, 1.0)
    w /= w.sum()
    log_r = np.empty(k)
    for sweep in range(sweeps):
        count, total, square = np.zeros(k), np.zeros((k, d)), np.zeros((k, d))
        for i in range(n):
            for j in range(k):
                log_r[j] = np.log(w[j])
                for f in range(d):
                    log_r[j] -= 0.5 * (np.log(v[j, f]) + (x[i, f] - mu[j, f]) ** 2 / v[j, f])
            r = np.exp(log_r - log_r.max())
            u, j = rng.random() * r.sum(), 0
            while j < k - 1 and u > r[j]:
                u -= r[j]
                j += 1
            if label[i] >= 0:
                j = label[i]
            count[j] += 1.0
            for f in range(d):
                total[j, f] += x[i, f]
                square[j, f] += x[i, f] ** 2
        for j in range(k):
            w[j] = rng.gamma(prior.concentration + count[j], 1.0)
            for f in range(d):
                if prior.shrinkage > 0.0:  # the variance with the mean integrated out
                    precision = prior.shrinkage + count[j]
                    center = (prior.shrinkage * prior.mean[f] + total[j, f]) / precision
                    about = square[j, f] + prior.shrinkage * prior.mean[f] ** 2
                    about -= precision * center**2
                else:
                    about = square[j, f] - 2.0 * mu[j, f] * total[j, f] + count[j] * mu[j, f] ** 2
                shape = prior.shape + 0.5 * count[j]
                v[j, f] = (rate[f] + 0.5 * about) / rng.gamma(shape, 1.0)
                if prior.shrinkage == 0.0:
                    own = 1.0 / prior.mean_sd[f] ** 2
                    precision = own * v[j, f] + count[j]
                    center = (own * v[j, f] * prior.mean[f] + total[j, f]) / precision
                mu[j, f] = center + np.sqrt(v[j, f] / precision) * rng.normal(0.0, 1.0)
        w /= w.sum()
        if prior.rate_shape > 0.0:
            for f in range(d):
                inverse = prior.rate_rate[f]
                for j in range(k):
                    inverse += 1.0 / v[j, f]
                rate[f] = rng.gamma(prior.rate_shape + k * prior.shape, 1.0) / inverse
        at = (sweep - burn) // thin
        if sweep >= burn and (sweep - burn) % thin == 0 and at < len(weights):
            weights[at], means[at], variances[at] = w, mu, v
    return weights, means, variances


@njit(cache=True)
def wishart_root(dof, scatter, rng):  # type: ignore[no-untyped-def]
    """Return B, lower triangular, with B B' the inverse of a draw of inverse Wishart's.

    By Bartlett's decomposition; SciPy's cannot be called from compiled code.
    """
    d = len(scatter)
    a = np.zeros((d, d))
    for f in range(d):
        a[f, f] = np.sqrt(2.0 * rng.gamma(0.5 * (dof - f), 1.0))
        for g in range(f):
            a[f, g] = rng.normal(0.0, 1.0)
    return np.linalg.cholesky(np.linalg.inv(scatter)) @ a


@njit(cache=True)
def sweep_whole(x, k, concentration, location, shrinkage, dof, scatter, sweeps, burn, thin, rng):  # type: ignore[no-untyped-def]
    """`sweep_many` of whole covariances (s, k, d, d), NaN where a cell is missing."""
    n, d = x.shape
    weights = np.empty(((sweeps - burn) // thin, k))
    means, covariances = np.empty((len(weights), k, d)), np.empty((len(weights), k, d, d))
    w, mu, root, log_r = np.empty(k), np.empty((k, d)), np.empty((k, d, d)), np.empty(k)
    full = x.copy()
    for i in range(n):
        for f in range(d):
            if np.isnan(x[i, f]):
                full[i, f] = location[f]
    count, total, square = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for sweep in range(sweeps):
        for j in range(k):  # at first, without counts, from the prior
            w[j] = rng.gamma(concentration + count[j], 1.0)
            weight = shrinkage + count[j]
            center = (shrinkage * location + total[j]) / weight
            about = scatter + square[j] + shrinkage * np.outer(location, location)
            root[j] = wishart_root(dof + count[j], about - weight * np.outer(center, center), rng)
            z = np.empty(d)
            for f in range(d):
                z[f] = rng.normal(0.0, 1.0)
            mu[j] = center + np.linalg.solve(np.ascontiguousarray(root[j].T), z) / np.sqrt(weight)
        w /= w.sum()
        at = (sweep - burn) // thin
        if sweep >= burn and (sweep - burn) % thin == 0 and at < len(weights):
            weights[at], means[at] = w, mu
            for j in range(k):
                covariances[at, j] = np.linalg.inv(root[j] @ root[j].T)
        count[:], total[:], square[:] = 0.0, 0.0, 0.0
        for i in range(n):
            for j in range(k):
                log_r[j] = np.log(w[j])
                for f in range(d):
                    z_f = 0.0
                    for g in range(f, d):
                        z_f += root[j, g, f] * (full[i, g] - mu[j, g])
                    log_r[j] += np.log(root[j, f, f]) - 0.5 * z_f**2
            r = np.exp(log_r - log_r.max())
            u, j = rng.random() * r.sum(), 0
            while j < k - 1 and u > r[j]:
                u -= r[j]
                j += 1
            for f in range(d):
                if np.isnan(x[i, f]):
                    own, pull = 0.0, 0.0
                    for g in range(d):
                        entry = 0.0
                        for h in range(d):
                            entry += root[j, f, h] * root[j, g, h]
                        if g == f:
                            own = entry
                        else:
                            pull += entry * (full[i, g] - mu[j, g])
                    full[i, f] = mu[j, f] - pull / own + rng.normal(0.0, 1.0) / np.sqrt(own)
            count[j] += 1.0
            total[j] += full[i]
            square[j] += np.outer(full[i], full[i])
    return weights, means, covariances


def posterior(case: Case, sample: Sample, rng: np.random.Generator) -> Draws:
    """Return the draws of all chains, one after the other."""
    if case.spec.covariance.letters == "VVV":
        prior = prior_of(case)
        assert isinstance(prior, PseudoData)
        dof = prior.count - measure_exponent(case.spec.covariance, case.d)
        numbers = (prior.concentration, prior.mean, prior.shrinkage, dof, prior.scatter)
        whole = (case.spec.n_components, *numbers, _SWEEPS, _BURN, _THIN)
        chains = [sweep_whole(sample.x, *whole, each) for each in rng.spawn(CHAINS)]
        weight, mean, covariance = (np.concatenate(parts) for parts in zip(*chains, strict=True))
        return weight, mean, covariance
    settings = (case.spec.n_components, numbers_of(case), _SWEEPS, _BURN, _THIN)
    chains = [sweep_many(sample.x, sample.label, *settings, each) for each in rng.spawn(CHAINS)]
    weight, mean, variance = (np.concatenate(parts) for parts in zip(*chains, strict=True))
    return weight, mean, variance[..., None] * np.eye(case.d)


def one(case: Case, seed: np.random.SeedSequence) -> dict[str, object]:
    """Return the share of exact draws below the truth, for every quantity that needs no labels.

    Truth and data are those of `validation.ranks.one` with this seed. Nothing if chains disagree.
    """
    rng = np.random.default_rng(seed)
    truth, sample = draw(case, rng)
    drawn = label_free_quantities(case, sample, posterior(case, sample, rng))
    chains = drawn["log-likelihood"].reshape(CHAINS, -1)
    if not float(array_stats.rhat(chains)) < AGREED:
        return {"status": "stuck", "place": {}}
    wanted = label_free_quantities(case, sample, true_values(truth))
    place = {name: float((drawn[name] < wanted[name]).mean()) for name in drawn}
    return {"status": "gibbs", "place": place}
