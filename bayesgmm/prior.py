"""Priors as values, free of data: what a specification holds; `resolved` has their densities.

`ConjugatePrior` is pseudo-data: the same value gives the MAP fit by EM (T + T0, closed form) and a
posterior by NUTS.  `SeparationPrior` puts standard deviations and correlations apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bayesgmm.errors import ArgumentError

Numbers = float | tuple[float, ...]


def _numbers(name: str, value: Any, *, positive: bool = False) -> Numbers:
    """Return a float or a tuple of floats; refuse anything else by name."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(name, f"{value!r} is not a number or a sequence of numbers") from None
    if array.ndim > 1 or array.size == 0 or not np.isfinite(array).all():
        raise ArgumentError(name, f"{value!r} must be a finite number, or one for each feature")
    if positive and not (array > 0).all():
        raise ArgumentError(name, f"must be positive, not {value!r}")
    return float(array) if array.ndim == 0 else tuple(map(float, array))


def _positive(name: str, value: Any) -> float:
    number = _numbers(name, value, positive=True)
    if isinstance(number, tuple):
        raise ArgumentError(name, "must be a single number")
    return number


@dataclass(frozen=True)
class ConjugatePrior:
    r"""Pseudo-data: a normal prior on means given covariances, inverse Wishart (or gamma) on these.

    .. math:: \mu_k \mid \Sigma_k \sim N(m, \Sigma_k / \kappa), \qquad
              \Sigma_k \sim \mathrm{IW}(\nu, \Lambda)

    The defaults are those of mclust's ``priorControl()``, scaled by the data: m the column means,
    :math:`\kappa` = 0.01, :math:`\nu = d + 2`, :math:`\Lambda = \mathrm{cov}(X) / k^{2/d}` (for
    spherical and diagonal families the mean of the column variances over :math:`k^{2/d}`).  Where
    cov(X) is singular (no more rows than columns, or dependent ones) its diagonal takes its place.
    It avoids zero: a component that shrinks onto one point has no mass.

    Parameters
    ----------
    shrinkage : float
        :math:`\kappa \ge 0`, the number of pseudo-observations of a mean; 0 is a flat prior on the
        means, which EM accepts and a posterior does not.
    dof : float, optional
        :math:`\nu`; more than d - 1. Default d + 2.
    mean : float or sequence of float, optional
        m, in the units of the data. Default: the column means.
    scale : float or sequence of float, optional
        Diagonal of :math:`\Lambda`, in squared units of the data. Default: from the data.
    weight_concentration : float
        Dirichlet concentration of the weights; at least 1 for a MAP fit.

    References
    ----------
    Fraley & Raftery (2007), section 3.
    """

    shrinkage: float = 0.01
    dof: float | None = None
    mean: Numbers | None = None
    scale: Numbers | None = None
    weight_concentration: float = 1.0

    def __post_init__(self) -> None:
        shrinkage = _numbers("shrinkage", self.shrinkage)
        if isinstance(shrinkage, tuple) or shrinkage < 0:
            raise ArgumentError("shrinkage", f"must be one number, 0 or more, not {shrinkage!r}")
        object.__setattr__(self, "shrinkage", shrinkage)
        if self.dof is not None:
            object.__setattr__(self, "dof", _positive("dof", self.dof))
        if self.mean is not None:
            object.__setattr__(self, "mean", _numbers("mean", self.mean))
        if self.scale is not None:
            object.__setattr__(self, "scale", _numbers("scale", self.scale, positive=True))
        concentration = _positive("weight_concentration", self.weight_concentration)
        object.__setattr__(self, "weight_concentration", concentration)


@dataclass(frozen=True)
class LogNormal:
    """Log-normal distribution of a standard deviation: log(sd) ~ Normal(mu, sigma)."""

    mu: Numbers = float(np.log(0.5))
    sigma: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", _numbers("mu", self.mu))
        object.__setattr__(self, "sigma", _positive("sigma", self.sigma))


@dataclass(frozen=True)
class InverseGamma:
    """Inverse-gamma distribution of a standard deviation, density x^(-alpha-1) exp(-beta/x)."""

    alpha: float = 3.0
    beta: Numbers = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _positive("alpha", self.alpha))
        object.__setattr__(self, "beta", _numbers("beta", self.beta, positive=True))


@dataclass(frozen=True)
class HalfNormal:
    """Half-normal distribution of a standard deviation.

    It does not avoid zero: with two equal rows the posterior of a mixture is improper.
    """

    sigma: Numbers = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _numbers("sigma", self.sigma, positive=True))


@dataclass(frozen=True)
class HierarchicalInverseGamma:
    r"""Variances that are alike in size, of a size that the data tell (Richardson & Green 1997).

    .. math:: \sigma_{kj}^{-2} \mid \beta_j \sim \mathrm{Gamma}(a, \beta_j), \qquad
              \beta_j \sim \mathrm{Gamma}(g, h_j)

    for each feature j.  The :math:`\beta_j` are integrated out, so that they cost no coordinate.

    Parameters
    ----------
    alpha : float
        a.
    shape : float
        g.
    rate : float or sequence of float, optional
        h, in units of one over the variance. Default: :math:`10 / R_j^2` with :math:`R_j` the
        column's range, as in the paper.

    References
    ----------
    Richardson & Green (1997), J. R. Statist. Soc. B 59, 731-792, section 2.4.
    """

    alpha: float = 2.0
    shape: float = 0.2
    rate: Numbers | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _positive("alpha", self.alpha))
        object.__setattr__(self, "shape", _positive("shape", self.shape))
        if self.rate is not None:
            object.__setattr__(self, "rate", _numbers("rate", self.rate, positive=True))


Scale = LogNormal | InverseGamma | HalfNormal | HierarchicalInverseGamma


@dataclass(frozen=True)
class SeparationPrior:
    r"""Standard deviations, correlations and means apart.

    .. math:: \mu_{kj} \sim N(m_j, s_j), \quad \sigma_{kj} \sim \text{scale}, \quad
              R_k \sim \mathrm{LKJ}(\eta), \quad \Sigma_k = \mathrm{diag}(\sigma_k) R_k
              \mathrm{diag}(\sigma_k)

    Components that share a covariance share one draw.  Where only volume or only shape is shared
    (VEI, EVI, VEE, EVV) the log-normal splits: the root volume :math:`|\Sigma_k|^{1/2d}` is
    log-normal with sigma over :math:`\sqrt d`, the ratios of the sds have the log-normal's
    contrasts.

    Parameters
    ----------
    mean, mean_sd : float or sequence of float
        m and s.
    scale : LogNormal, InverseGamma, HalfNormal or HierarchicalInverseGamma
        Distribution of a standard deviation.
    correlation : float
        LKJ's :math:`\eta`; 1 is uniform over correlation matrices.
    weight_concentration : float
        Dirichlet concentration of the weights.
    units : {"spread", "data"}
        Whether the numbers are in column standard deviations, means counted from the column mean
        (default), or in the data's own units.
    """

    mean: Numbers = 0.0
    mean_sd: Numbers = 2.0
    scale: Scale = LogNormal()
    correlation: float = 2.0
    weight_concentration: float = 1.0
    units: Literal["spread", "data"] = "spread"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _numbers("mean", self.mean))
        object.__setattr__(self, "mean_sd", _numbers("mean_sd", self.mean_sd, positive=True))
        if not isinstance(self.scale, Scale):
            raise ArgumentError(
                "scale",
                "must be a LogNormal, an InverseGamma, a HalfNormal or a HierarchicalInverseGamma",
            )
        for name in ("correlation", "weight_concentration"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.units not in ("spread", "data"):
            raise ArgumentError("units", f"must be 'spread' or 'data', not {self.units!r}")


Prior = ConjugatePrior | SeparationPrior
