r"""Bridge sampling: the ratio of a density's integral to that of a proposal, from draws of both.

With the unnormalised density p, the normal proposal q, :math:`n_1` draws of p and :math:`n_2` of q,

.. math:: r = \frac{n_2^{-1} \sum_j p(\tilde x_j) / (s_1 p(\tilde x_j) + s_2 r\, q(\tilde x_j))}
                   {n_1^{-1} \sum_i q(x_i) / (s_1 p(x_i) + s_2 r\, q(x_i))},

iterated to its fixed point; :math:`s_1 = n_1 / (n_1 + n_2)` with the effective number for
:math:`n_1`, and :math:`s_2 = 1 - s_1`.  No other bridge has a smaller error for independent draws.

References
----------
Meng & Wong (1996), Statistica Sinica 6, 831-860 (eq. 4.1).  Fruehwirth-Schnatter (2004),
Econometrics Journal 7, 143-167 (the error, with autocorrelation).  Gronau et al. (2017), J. Math.
Psychology 81, 80-97 (half of the draws for the proposal, the others for the sums).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from scipy.special import logsumexp

from bayesgmm.moments import Array

_TOLERANCE = 1e-10  # of log r
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Bridge:
    """What bridge sampling found.

    Parameters
    ----------
    log_ratio : float
        Logarithm of the integral of p.
    relative_mse : float
        Relative mean squared error of the integral.
    n_iter : int
        Steps of the fixed point.
    converged : bool
    """

    log_ratio: float
    relative_mse: float
    n_iter: int
    converged: bool


@dataclass(frozen=True, eq=False)
class Normal:
    """A normal distribution, as a proposal.

    Parameters
    ----------
    mean : (p,) array
    root : (p, p) array
        Lower triangular factor of the covariance.
    """

    mean: Array
    root: Array

    @staticmethod
    def of(points: Array) -> Normal:
        """Return that with the mean and covariance of points (s, p).

        Raises
        ------
        numpy.linalg.LinAlgError
            If the covariance is singular.
        """
        covariance = np.cov(points.T).reshape(points.shape[1], points.shape[1])
        unit = np.sqrt(np.diagonal(covariance))
        root = np.linalg.cholesky(covariance / np.outer(unit, unit))
        return Normal(points.mean(axis=0), unit[:, None] * root)

    def log_density(self, points: Array) -> Array:
        """At points (s, p)."""
        z = np.linalg.solve(self.root, (points - self.mean).T)
        constant = 0.5 * len(z) * math.log(2.0 * math.pi)
        constant += float(np.log(np.diagonal(self.root)).sum())
        return np.asarray(-0.5 * (z**2).sum(axis=0) - constant)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return n draws (n, p)."""
        return np.asarray(self.mean + rng.standard_normal((n, len(self.mean))) @ self.root.T)


def effective(values: Array) -> float:
    """Return how many independent draws the mean of (chain, draw) values is worth."""
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    with np.errstate(all="ignore"):
        found = float(statistics.ess(values, method="mean"))
    return found if math.isfinite(found) else float(values.size)  # constant values


def bridge(of_draws: Array, of_proposals: Array, n_effective: float) -> Bridge:
    """Return the integral of p.

    Parameters
    ----------
    of_draws : (chain, draw) array
        log p - log q at the draws of p, in their order.
    of_proposals : (n,) array
        The same at the draws of q; -inf where p is 0.
    n_effective : float
        How many independent draws those of p are worth.
    """
    n = len(of_proposals)
    log_s1 = math.log(n_effective / (n_effective + n))
    log_s2 = math.log(n / (n_effective + n))
    start = float(np.median(of_draws))
    log_r, converged, step = start, False, 0
    while not converged and step < _MOST_STEPS:
        above = of_proposals - np.logaddexp(log_s1 + of_proposals, log_s2 + log_r)
        below = -np.logaddexp(log_s1 + of_draws, log_s2 + log_r)
        log_next = float(logsumexp(above)) - math.log(n)
        log_next -= float(logsumexp(below)) - math.log(of_draws.size)
        if not math.isfinite(log_next):
            return Bridge(-math.inf, math.inf, step, False)
        converged = abs(log_next - log_r) < _TOLERANCE
        log_r, step = log_next, step + 1
    above = np.exp(of_proposals - np.logaddexp(log_s1 + of_proposals, log_s2 + log_r))
    below = np.exp(log_r - np.logaddexp(log_s1 + of_draws, log_s2 + log_r))
    error = float(above.var() / above.mean() ** 2) / n
    error += float(below.var() / below.mean() ** 2) / effective(below)
    return Bridge(log_r, error, step, converged)
