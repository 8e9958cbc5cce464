r"""Priors resolved for a family and data: their numbers, pseudo-data and densities.

**Which density, in which coordinates.**  A prior on the covariances of a family is a density with
respect to the family's *invariant measure* (the one that rescaling the data does not change:
Lebesgue in log-volume and log-shape, :math:`|\Sigma|^{-(d+1)/2}d\Sigma` for whole matrices),

.. math:: p(\Sigma) \propto \prod_j |\Sigma_j|^{-\nu'/2}
          \exp\!\left(-\tfrac12 \mathrm{tr}(\Lambda \Sigma_j^{-1})\right)

over the distinct components (one when all share a covariance, else k).  Its mode is taken in the
coordinates in which :math:`\prod_j |\Sigma_j|^{e/2}` times that measure is Lebesgue: the elements
of :math:`\Sigma` (e = d+1, whole matrices), the variances (e = 2, diagonal), the variance (e = 2/d,
spherical).  That is mclust's mode for E, V, VII, VVI, EEE and VVV; mclust defines no such mode for
the other families (its EII and EEI fits are modes of no density).  NUTS samples the same density.

References
----------
Fraley & Raftery (2007), Journal of Classification 24, 155-181 (the default numbers).
Barnard, McCulloch & Meng (2000), Statistica Sinica 10, 1281-1311 (separation).
Lewandowski, Kurowicka & Joe (2009), J. Multivariate Analysis 100, 1989-2001 (LKJ).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np
from scipy.special import xlogy

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data
from bayesgmm.errors import PACKAGE, ArgumentError, DataWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Moments, Parameters
from bayesgmm.prior import (
    ConjugatePrior,
    HalfNormal,
    HierarchicalInverseGamma,
    InverseGamma,
    LogNormal,
    Numbers,
    Scale,
    SeparationPrior,
)

_SINGULAR = 1e-14  # an eigenvalue of the correlations, for each column, that is rounding


def _per_feature(name: str, value: Numbers, d: int) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 1 and len(array) != d:
        raise ArgumentError(name, f"{len(array)} numbers were given for {d} features")
    return np.broadcast_to(array, (d,)).copy()


# --- the conjugate prior as pseudo-data


@dataclass(frozen=True, eq=False)
class PseudoData:
    r"""A conjugate prior resolved for one family, number of components and data set.

    Parameters
    ----------
    mean : (d,) array
        m.
    shrinkage : float
        :math:`\kappa`.
    scatter : (d, d) array
        :math:`\Lambda` per component (divided by k where all components share a covariance).
    count : float
        :math:`\nu' + e` per component: what the prior adds to the divisor of a covariance.
    concentration : float
        Dirichlet concentration of the weights.
    """

    mean: Array
    shrinkage: float
    scatter: Array
    count: float
    concentration: float

    def anchored(self, center: Array, scale: Array) -> PseudoData:
        """Return the same prior for data that are (x - center) / scale."""
        return PseudoData(
            (self.mean - center) / scale,
            self.shrinkage,
            self.scatter / np.outer(scale, scale),
            self.count,
            self.concentration,
        )


def measure_exponent(family: Covariance, d: int) -> float:
    """Return e of the module's docstring: d + 1, 2 or 2/d."""
    if family.shape == "I":
        return 2.0 / d
    return 2.0 if family.is_diagonal else d + 1.0


def is_singular(covariance: Array) -> bool:
    """Whether a covariance is singular up to rounding."""
    unit = np.sqrt(np.diagonal(covariance))
    least = np.linalg.eigvalsh(covariance / np.outer(unit, unit))[0]
    return bool(least <= _SINGULAR * len(unit))


def pseudo_data(
    prior: ConjugatePrior, family: Covariance, k: int, *, mean: Array, covariance: Array
) -> PseudoData:
    """Resolve a conjugate prior.

    Parameters
    ----------
    prior : ConjugatePrior
    family : Covariance
    k : int
        Number of components.
    mean, covariance : (d,) and (d, d) arrays
        Of the data, in the data's units. Of a singular covariance the default scale of whole
        matrices takes the diagonal alone.

    Raises
    ------
    ArgumentError
        If a number of the prior does not suit the data's dimension.
    """
    d = len(mean)
    dof = d + 2.0 if prior.dof is None else prior.dof
    if not family.is_diagonal and dof <= d - 1:
        raise ArgumentError("prior.dof", f"must exceed {d - 1} for {d} features, not {dof}")
    location = mean if prior.mean is None else _per_feature("prior.mean", prior.mean, d)
    if prior.scale is not None:
        scatter = np.diag(_per_feature("prior.scale", prior.scale, d))
    elif family.is_diagonal:
        scatter = np.eye(d) * (np.trace(covariance) / d / k ** (2.0 / d))
    else:
        scatter = covariance / k ** (2.0 / d)
        if is_singular(scatter):
            scatter = np.diag(np.diagonal(scatter))
            message = (
                "the covariance of the data is singular (no more rows than columns, or nearly "
                "dependent ones), so that the prior's scale is made from its diagonal alone: no "
                "column is thought to depend on another; ConjugatePrior(scale=) takes other numbers"
            )
            warnings.warn(DataWarning("prior-scale", message), skip_file_prefixes=(PACKAGE,))
    if family.shape == "I":
        # One variance, inverse gamma (nu/2, s/2): as a matrix term this is s/d times the identity.
        scatter = np.eye(d) * (np.trace(scatter) / d / d)
        dof = dof / d
    count = dof + measure_exponent(family, d)
    share = k if family.is_common else 1
    return PseudoData(
        location, prior.shrinkage, scatter / share, count / share, prior.weight_concentration
    )


def pseudo_moments(prior: PseudoData, about: Parameters) -> Moments:
    r"""Return T0, the prior's table of sums about ``about``: add it to the data's for MAP.

    Its ``loglik`` is the log prior density up to a constant.
    """
    w = about.whitening
    offset = np.einsum("kij,kj->ki", w, prior.mean - about.mean)
    second = w @ prior.scatter @ np.swapaxes(w, 1, 2)
    second = second + prior.shrinkage * offset[:, :, None] * offset[:, None, :]
    count = prior.count + (1.0 if prior.shrinkage > 0 else 0.0)
    logdet = np.log(np.diagonal(w, axis1=1, axis2=2)).sum(axis=1)
    log_density = count * logdet.sum() - 0.5 * np.trace(second, axis1=1, axis2=2).sum()
    pull = prior.concentration - 1.0
    if pull:  # the Dirichlet distribution is one of all weights, that of the noise included
        with np.errstate(divide="ignore"):
            log_density += pull * np.log(about.weights).sum()
    ones = np.ones(about.k)
    return Moments(
        float(log_density),
        np.full(len(about.weights), pull),
        prior.shrinkage * ones,
        count * ones,
        prior.shrinkage * offset,
        second,
    )


# --- the separation prior


@dataclass(frozen=True, eq=False)
class Separation:
    """A separation prior resolved to numbers in the data's units, one per feature."""

    mean: Array
    mean_sd: Array
    scale: Scale
    correlation: float
    concentration: float


def separation(
    prior: SeparationPrior, family: Covariance, *, mean: Array, sd: Array, extent: Array
) -> Separation:
    """Resolve a separation prior for data with these column means, standard deviations and ranges.

    Raises
    ------
    ArgumentError
        If the family shares only a volume or only a shape and the scales are not log-normal, or a
        number per feature is given where the family has one scale.
    """
    d = len(mean)
    if family.is_polar:
        raise ArgumentError(
            "prior",
            f"{family} shares axes but no shape, or shape but no axes, so that its standard "
            "deviations and correlations cannot be taken apart; use a conjugate prior, or EEE, "
            "VEE, EVV or VVV",
        )
    partly_shared = {family.volume, family.shape} == {"E", "V"}
    if partly_shared and not isinstance(prior.scale, LogNormal):
        raise ArgumentError(
            "prior.scale",
            f"{family} shares volume or shape but not both, which only a LogNormal scale splits "
            "into; use LogNormal, a conjugate prior, or a family such as VVI, EEI, VVV or EEE",
        )
    unit = sd if prior.units == "spread" else np.ones(d)
    if family.shape == "I":
        unit = np.full(d, np.sqrt(np.mean(unit**2)))
    origin = mean if prior.units == "spread" else np.zeros(d)
    scale: Scale
    match prior.scale:
        case LogNormal(mu, sigma):
            scale = LogNormal(tuple(_per_feature("prior.scale.mu", mu, d) + np.log(unit)), sigma)
            one = mu
        case InverseGamma(alpha, beta):
            scale = InverseGamma(alpha, tuple(_per_feature("prior.scale.beta", beta, d) * unit))
            one = beta
        case HalfNormal(sigma):
            scale = HalfNormal(tuple(_per_feature("prior.scale.sigma", sigma, d) * unit))
            one = sigma
        case HierarchicalInverseGamma(alpha, shape, None):
            square = extent**2 if family.shape != "I" else np.full(d, np.mean(extent**2))
            scale = HierarchicalInverseGamma(alpha, shape, tuple(10.0 / square))
            one = 0.0
        case HierarchicalInverseGamma(alpha, shape, float() | tuple() as rate):
            own = _per_feature("prior.scale.rate", rate, d) / unit**2
            scale = HierarchicalInverseGamma(alpha, shape, tuple(own))
            one = rate
    if family.shape == "I" and isinstance(one, tuple) and len(set(one)) > 1:
        raise ArgumentError("prior.scale", f"{family} has one scale; give one number, not {one}")
    return Separation(
        origin + unit * _per_feature("prior.mean", prior.mean, d),
        unit * _per_feature("prior.mean_sd", prior.mean_sd, d),
        scale,
        prior.correlation,
        prior.weight_concentration,
    )


def _log_scale_density(scale: Scale, log_sd: Any, k: int, xp: ModuleType) -> Any:
    """Density of log(sd) (..., k, d), up to a constant: its terms (..., d), one per feature.

    Of hierarchical variances, of which k are distinct, with their common size integrated out.
    """
    match scale:
        case LogNormal(mu, sigma):
            value = -0.5 * ((log_sd - np.asarray(mu)) / sigma) ** 2
        case InverseGamma(alpha, beta):
            value = -alpha * log_sd - np.asarray(beta) * xp.exp(-log_sd)
        case HalfNormal(sigma):
            value = log_sd - 0.5 * xp.exp(2.0 * log_sd) / np.asarray(sigma) ** 2
        case HierarchicalInverseGamma(alpha, shape, rate):
            total = (xp.exp(-2.0 * log_sd) / np.asarray(rate)).sum(axis=-2)
            common = (shape + k * alpha) * xp.log1p(total)
            return -2.0 * alpha * log_sd.sum(axis=-2) - common
    return value.sum(axis=-2)


def separation_log_density(
    prior: Separation, family: Covariance, k: int, logdet: Any, log_sd: Any, xp: ModuleType = np
) -> Any:
    """Return the log prior of the covariances w.r.t. the invariant measure, up to a constant.

    Parameters
    ----------
    logdet : (..., k) array
        log|Sigma_k|.
    log_sd : (..., k, d) array
        Logarithms of the standard deviations.
    xp : module
        Where ``exp`` and ``log1p`` are: numpy, or pytensor.tensor to build a graph.

    Returns
    -------
    (...) array
    """
    d = len(prior.mean)
    distinct = slice(0, 1) if family.is_common else slice(0, k)
    shapes = slice(0, 1) if family.shape in ("E", "I") else slice(0, k)
    logdet_r = logdet - 2.0 * log_sd.sum(axis=-1)
    if family.shape == "I":
        return _log_scale_density(prior.scale, log_sd[..., distinct, :], distinct.stop, xp)[..., 0]
    if {family.volume, family.shape} == {"E", "V"}:
        assert isinstance(prior.scale, LogNormal)  # refused in `separation` otherwise
        mu = np.asarray(prior.scale.mu)
        volumes = slice(0, 1) if family.volume == "E" else slice(0, k)
        root = logdet[..., volumes] / (2.0 * d)
        y = log_sd[..., shapes, :] - log_sd[..., shapes, :].mean(axis=-1, keepdims=True)
        value = -0.5 * d * (((root - mu.mean()) / prior.scale.sigma) ** 2).sum(axis=-1)
        value = value - 0.5 * (((y - mu + mu.mean()) / prior.scale.sigma) ** 2).sum(axis=(-2, -1))
    else:
        scales = _log_scale_density(prior.scale, log_sd[..., distinct, :], distinct.stop, xp)
        value = scales.sum(axis=-1)
    if not family.is_diagonal:
        power = prior.correlation - 1.0 + 0.5 * (d + 1.0)
        value = value + power * logdet_r[..., shapes].sum(axis=-1)
    return value


def log_density(
    prior: PseudoData | Separation,
    family: Covariance,
    weight: Array,
    mean: Array,
    covariance: Array,
) -> Array:
    """Return the log prior density of many parameter values, up to a constant.

    With respect to Lebesgue measure of weights and means and the invariant measure of covariances.

    Parameters
    ----------
    weight, mean, covariance : (..., k), (..., k, d), (..., k, d, d) arrays

    Returns
    -------
    (...) array
    """
    parts = log_densities(prior, family, weight, mean, covariance)
    return np.asarray(sum(parts.values()))


def log_densities(
    prior: PseudoData | Separation,
    family: Covariance,
    weight: Array,
    mean: Array,
    covariance: Array,
) -> dict[str, Array]:
    """Return the same in its parts: of ``weight``, ``mean`` (given covariances), ``covariance``."""
    k, d = mean.shape[-2:]
    logdet = np.linalg.slogdet(covariance)[1]
    offset = mean - prior.mean
    of_weight = xlogy(prior.concentration - 1.0, weight).sum(axis=-1)  # a weight may round to 0
    if isinstance(prior, Separation):
        log_sd = 0.5 * np.log(np.diagonal(covariance, axis1=-2, axis2=-1))
        of_mean = -0.5 * ((offset / prior.mean_sd) ** 2).sum(axis=(-2, -1))
        rest = np.asarray(separation_log_density(prior, family, k, logdet, log_sd))
        return {"weight": of_weight, "mean": of_mean, "covariance": rest}
    has_mean = float(prior.shrinkage > 0)
    square = np.einsum("...i,...i->...", offset, _solved(covariance, offset))
    trace = np.trace(np.linalg.solve(covariance, prior.scatter), axis1=-2, axis2=-1)
    share = k if family.is_common else 1
    count = prior.count - measure_exponent(family, d) / share
    return {
        "weight": of_weight,
        "mean": -0.5 * (has_mean * logdet + prior.shrinkage * square).sum(axis=-1),
        "covariance": -0.5 * (count * logdet + trace).sum(axis=-1),
    }


def _solved(covariance: Array, vector: Array) -> Array:
    return np.asarray(np.linalg.solve(covariance, vector[..., None])[..., 0])


def resolve(spec: GaussianMixture, data: Data) -> PseudoData | Separation:
    """Return the specification's prior as numbers in the data's units."""
    mean = data.center + data.scale * data.mean
    covariance = data.covariance * np.outer(data.scale, data.scale)
    if spec.prior is None:
        raise ArgumentError(
            "prior",
            "the specification has prior=None, which is maximum likelihood only: without a prior "
            "the posterior of a mixture is improper (an empty component's parameters are free); "
            "use prior='conjugate' or 'separation'",
        )
    if isinstance(spec.prior, ConjugatePrior):
        if spec.prior.shrinkage == 0:
            raise ArgumentError(
                "prior.shrinkage", "0 is a flat prior on the means, whose posterior is improper"
            )
        return pseudo_data(
            spec.prior, spec.covariance, spec.n_components, mean=mean, covariance=covariance
        )
    present = data.values[data.weight > 0] if data.weight.size else data.values
    extent = np.nanmax(present, axis=0) - np.nanmin(present, axis=0)
    sd = np.sqrt(np.diagonal(covariance))
    return separation(spec.prior, spec.covariance, mean=mean, sd=sd, extent=extent)


def describe(prior: PseudoData | Separation, names: Sequence[str]) -> dict[str, Any]:
    """Return every number of a resolved prior by name, in the data's units."""
    common = {"weight: Dirichlet concentration": prior.concentration}

    def by_name(values: Array) -> dict[str, float]:
        return dict(zip(names, map(float, values), strict=True))

    if isinstance(prior, Separation):
        kind = f"standard deviation: {type(prior.scale).__name__}"
        scale = {
            f"{kind} {field}": by_name(np.array(value)) if isinstance(value, tuple) else value
            for field, value in asdict(prior.scale).items()
        }
        found = {"mean: location": by_name(prior.mean), "mean: sd": by_name(prior.mean_sd)}
        return common | found | scale | {"correlation: LKJ": prior.correlation}
    return common | {
        "mean: location": by_name(prior.mean),
        "mean: pseudo-observations": prior.shrinkage,
        "covariance: pseudo-scatter": prior.scatter.tolist(),
        "covariance: divisor added": prior.count,
    }
