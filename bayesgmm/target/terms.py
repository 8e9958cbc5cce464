r"""A prior as the coefficients of a few terms in the unconstrained coordinates.

With x the unconstrained vector, L the log sds and w the weights, every prior is the same few terms:

.. math:: c + l^\top x - \tfrac12 \sum_i p_i (x_i - m_i)^2 + \sum_k \alpha_k \log w_k
          + \text{pseudo-data}(\mu, \Sigma)
          + \sum_{kj} [a L + b e^{-L} + g e^{2L} - \tfrac12 q (L - s \bar L - o)^2]_{kj}
          - t \sum_j \log(1 + \sum_k r_{kj} e^{-2 L_{kj}}).

Most coefficients are 0 for any one prior; `density` has the terms themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma, LogNormal
from bayesgmm.resolved import PseudoData, Separation, measure_exponent
from bayesgmm.target.space import Space


@dataclass(frozen=True, eq=False)
class Terms:
    """A prior in coordinates: the coefficients of the module's formula.

    Parameters
    ----------
    constant : float
        c.
    alpha : (m,) array
        Of the logarithms of the weights that are free, or of the shares that they are made of
        (`space.Space`), the simplex transform's Jacobian included.
    linear, precision, center : (size,) arrays
        l, p and m.
    by_sd : (6, k, d) array
        a, b, g, q, o and r.
    share : float
        s: 1 where a scale is split into volume and shape, else 0.
    tied : float
        t: of variances with a common size that is integrated out.
    count, shrinkage, location, scatter
        Of `resolved.PseudoData`, that of means and covariances together; a count of 0 is none.
    """

    constant: float
    alpha: Array
    linear: Array
    precision: Array
    center: Array
    by_sd: Array
    share: float
    tied: float
    count: float
    shrinkage: float
    location: Array
    scatter: Array

    @property
    def is_conjugate(self) -> bool:
        """Whether there are pseudo-data; else there may be terms of the log sds."""
        return self.count > 0.0


def noise_law(alpha: float, k: int) -> tuple[float, float]:
    r"""Return the Beta distribution of the noise's weight where k components have fixed shares.

    The Dirichlet density there: :math:`\pi_0^{\alpha - 1} (1 - \pi_0)^{k (\alpha - 1)}`.

    Raises
    ------
    ArgumentError
        If it has no integral.
    """
    other = k * (alpha - 1.0) + 1.0
    if other <= 0.0:
        raise ArgumentError(
            "fixed",
            f"weights together with noise leave a prior without an integral: the concentration of "
            f"the weights, {alpha:g}, must be above {1.0 - 1.0 / k:.3g} for {k} components",
        )
    return alpha, other


def terms(prior: PseudoData | Separation, space: Space) -> Terms:
    """Return a resolved prior's coefficients in the coordinates of a space, fixed ones included."""
    chart = space.chart
    family, k, d = chart.family, chart.k, chart.d
    concentration, free = prior.concentration, space.n_free_weights
    alpha = np.full(free, concentration)
    if space.has_shares:
        alpha = np.array(noise_law(concentration, k)[::-1])
    constant = 0.0
    if free:
        constant = math.log(free) + float(gammaln(alpha.sum()) - gammaln(alpha).sum())
    linear, precision, center = np.zeros((3, len(space.whole)))
    begin = space.covariances.start
    vector = slice(begin, begin + chart.spectrum.shape[1])
    linear[vector] = chart.log_jacobian
    by_sd, share, tied = np.zeros((6, k, d)), 0.0, 0.0
    if isinstance(prior, PseudoData):
        count = prior.count + 1.0
        return Terms(
            *(constant, alpha, linear, precision, center, by_sd, share, tied),
            *(count, prior.shrinkage, prior.mean, prior.scatter),
        )
    precision[-k * d :] = np.tile(prior.mean_sd**-2.0, k)
    center[-k * d :] = np.tile(prior.mean, k)
    constant -= k * float(np.log(prior.mean_sd * math.sqrt(2.0 * math.pi)).sum())
    distinct = slice(0, 1) if family.is_common else slice(0, k)
    shapes = slice(0, 1) if family.shape in ("E", "I") else slice(0, k)
    # log|S| is linear in the vector: the measure's factor, and that of LKJ's determinant.
    by_logdet = np.zeros(k)
    by_logdet[distinct] -= 0.5 * measure_exponent(family, d)
    if not family.is_diagonal:
        power = prior.correlation - 1.0 + 0.5 * (d + 1.0)
        by_logdet[shapes] += power
        by_sd[0, shapes] -= 2.0 * power
    log_unit = float(np.log(chart.unit).sum())
    linear[vector] += np.repeat(by_logdet, d) @ chart.spectrum
    constant += 2.0 * log_unit * float(by_logdet.sum())
    features = slice(0, 1) if family.shape == "I" else slice(0, d)
    match prior.scale:
        case LogNormal(mu, sigma) if {family.volume, family.shape} == {"E", "V"}:
            level = float(np.mean(mu))
            share = 1.0
            by_sd[3, shapes], by_sd[4] = sigma**-2.0, np.asarray(mu) - level
            volumes = slice(begin, begin + chart.n_volumes)  # twice the log root volume
            precision[volumes] = 0.25 * d / sigma**2
            center[volumes] = 2.0 * (level - log_unit / d)
        case LogNormal(mu, sigma):
            by_sd[3, distinct, features], by_sd[4] = sigma**-2.0, np.asarray(mu)
        case InverseGamma(shape, beta):
            by_sd[0, distinct, features] -= shape
            by_sd[1, distinct, features] -= np.asarray(beta)[features]
        case HalfNormal(sigma):
            by_sd[0, distinct, features] += 1.0
            by_sd[2, distinct, features] -= 0.5 / np.asarray(sigma)[features] ** 2
        case HierarchicalInverseGamma(shape, of_size, rate):
            by_sd[0, distinct, features] -= 2.0 * shape
            by_sd[5, distinct, features] = 1.0 / np.asarray(rate)[features]
            tied = of_size + distinct.stop * shape
    return Terms(
        *(constant, alpha, linear, precision, center, by_sd, share, tied),
        *(0.0, 0.0, np.zeros(d), np.zeros((d, d))),
    )
