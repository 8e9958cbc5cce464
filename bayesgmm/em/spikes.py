r"""Spurious components: a few points that happen to be close, where the likelihood has a spike.

With covariances of their own the likelihood of a mixture is unbounded (Day 1969), and near any few
points that lie close by chance it has a local maximum, often a high one, that says nothing about
the population (McLachlan & Peel 2000, section 3.10).  A component is called a spike if it is
thinner than a hundredth of the whole mixture in some direction, and has very few points or is what
chance alone would make: of the :math:`n` points of its neighbourhood, about

.. math:: E = m \binom{n}{m} s^{f (m - p)}

groups of :math:`m` are as thin, :math:`s` being the ratio of its standard deviation to that of the
components around it, where a group of p points has thickness 0 and each further one has to be near
in f directions: p = d, f = 1 for a matrix of its own, or variances of its own along axes that are
only common (a plane through d points, and the smallest ratio over all directions), p = 1, f = 1
for variances of its own along the columns, p = 1, f = d for a sphere.

References
----------
Day (1969), Biometrika 56, 463-474. Hathaway (1985), Ann. Statist. 13, 795-800. McLachlan & Peel
(2000), Finite Mixture Models, Wiley. Garcia-Escudero et al. (2018), Adv. Data Anal. Classif. 12,
203-233 (eigenvalue ratios and spurious maximisers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from bayesgmm.covariance import Covariance
from bayesgmm.moments import Array, Parameters

THIN = 0.01  # ratio of standard deviations above which a component is no spike
BY_CHANCE = 0.01  # so many groups expected by chance make a spike


def thickness(parameters: Parameters, count: Array) -> tuple[Array, Array, Array]:
    """Return each component's thickness, in two units, and its neighbourhood's size.

    Parameters
    ----------
    parameters : Parameters
    count : (k,) array
        Expected numbers of observations.

    Returns
    -------
    (k,) array
        Smallest ratio of its standard deviation to the whole mixture's, over all directions.
    (k,) array
        To that of the components around it; 1 for a single component.
    (k,) array
        Number of observations, its own included, that are where it is.
    """
    k = parameters.k
    ratio, near = np.ones(k), np.array(count, dtype=float)
    for j in range(k if k > 1 else 0):
        others = np.arange(k) != j
        gap = parameters.mean[j] - parameters.mean[others]
        z = (parameters.whitening[others] @ gap[..., None])[..., 0]
        overlap = np.exp(-0.5 * (z**2).sum(axis=1))
        near[j] += count[others] @ overlap
        # Far from all others, all of them are what it is compared with.
        share = count[others] * np.maximum(overlap, 1e-3)
        around = np.einsum("i,ijk->jk", share / share.sum(), parameters.covariance[others])
        ratio[j] = _ratio(around, parameters.whitening[j])
    return _thickness(parameters), ratio, near


def _thickness(parameters: Parameters) -> Array:
    """Return each component's thickness beside the whole mixture."""
    weight = parameters.weight / parameters.weight.sum()  # of what is no noise
    gap = parameters.mean - weight @ parameters.mean
    outer = gap[:, :, None] * gap[:, None, :]
    whole = np.einsum("k,kij->ij", weight, parameters.covariance + outer)
    return _ratio(whole, parameters.whitening)


def _ratio(around: Array, whitening: Array) -> Array:
    """Smallest ratio of a component's standard deviation to another's, over all directions."""
    size = np.linalg.norm(whitening @ np.linalg.cholesky(around), ord=2, axis=(-2, -1))
    return np.asarray(1.0 / size)


def expected_by_chance(parameters: Parameters, count: Array, family: Covariance) -> Array:
    """Return log E of the module's formula for each component; -inf where it is not thin."""
    k, d = parameters.k, parameters.d
    if "V" not in (family.volume, family.shape):
        return np.full(k, -np.inf)  # no spectrum of its own
    if not (_thickness(parameters) < THIN).any():  # as nearly always, and quickly seen
        return np.full(k, -np.inf)
    whole, ratio, near = thickness(parameters, count)
    m = np.asarray(count, dtype=float)
    if family.shape == "I":
        power = d * (m - 1.0)
    elif _has_free_planes(family):
        power = m - d
    else:
        power = m - 1.0
    n = np.maximum(near, m)
    binomial = gammaln(n + 1.0) - gammaln(m + 1.0) - gammaln(n - m + 1.0)
    found = np.log(m) + binomial + power * np.log(ratio)
    return np.where(whole < THIN, found, -np.inf)


def _has_free_planes(family: Covariance) -> bool:
    """Whether a component can be thin across any plane: common axes turn to it, too."""
    return family.orientation == "V" or (family.orientation, family.shape) == ("E", "V")


def are_spikes(parameters: Parameters, count: Array, family: Covariance) -> NDArray[np.bool_]:
    """Say which components are spikes, (k,) booleans."""
    expected = expected_by_chance(parameters, count, family)
    few = 2.0 * (parameters.d + 1.0 if _has_free_planes(family) else 2.0)
    return (expected > np.log(BY_CHANCE)) | (np.isfinite(expected) & (count < few))
