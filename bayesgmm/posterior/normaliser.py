r"""What the priors of covariances and means integrate to: the constant that a sampler does without.

`resolved.log_density` and `density.Target` leave it out.  With respect to the invariant measure dI
of `resolved`, whole matrices under the conjugate prior have the inverse Wishart's

.. math:: Z(\nu, \Lambda) = \int |\Sigma|^{-\nu/2} e^{-\frac12 \mathrm{tr}(\Lambda \Sigma^{-1})} dI
          = 2^{\nu d/2} \, \Gamma_d(\nu/2) \, |\Lambda|^{-\nu/2},

diagonal ones a product of inverse gammas.  Where K components share a shape, their volumes are
inverse gammas given the shape; where they share a volume, whose density is p, the K shapes are
independent given it:

.. math:: Z_{\text{shape}} = \frac{\Gamma(\nu d/2)^K}{\Gamma(K \nu d/2)} \, Z(K\nu, \Lambda), \qquad
          Z_{\text{volume}} = Z(\nu, \Lambda)^K \int p(v)^K dv .

Separation priors are products, with :math:`dI = 2^d \prod_i d\log\sigma_i \,|R|^{-(d+1)/2} dR`.
EVE, VVE, EEV and VEV have no closed form: volumes are integrated out, and the rest, axes and a
common shape, is averaged over draws from a Student's t around the mode (importance sampling), with
an error of about 0.01.

References
----------
Muirhead (1982), Aspects of Multivariate Statistical Theory, section 2.1 (the Jacobians).
Lewandowski, Kurowicka & Joe (2009), J. Multivariate Analysis 100, 1989-2001, eq. (16).
Leon, Masse & Rivest (2006), J. Multivariate Analysis 97, 412-430 (the measure of rotations).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, loggamma, logsumexp, multigammaln

from bayesgmm.covariance import Covariance
from bayesgmm.moments import Array
from bayesgmm.posterior.chart import Coordinates
from bayesgmm.posterior.copies import is_nearest, log_copies_of_axes
from bayesgmm.posterior.space import Space
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma, LogNormal, Scale
from bayesgmm.resolved import PseudoData, Separation, measure_exponent

_LOG_2PI = math.log(2.0 * math.pi)
_DRAWS = 1 << 15
_ROUNDS = 4  # of importance sampling, each from what the last has found
_FREEDOM = 6.0  # of the Student's t


class Estimate(NamedTuple):
    """A logarithm that was found with an error: its value and standard error."""

    value: float
    error: float = 0.0


def is_normalised(space: Space) -> bool:
    """Whether the prior of what is free has a known integral: no mean or covariance is fixed."""
    held = space.held
    return held is None or not (held.has_mean.any() or held.has_covariance.any())


def log_normaliser(
    prior: PseudoData | Separation, chart: Coordinates, random_seed: int = 0
) -> Estimate:
    """Return the log-integral of a prior over its coordinates, as `density.terms` has both.

    Parameters
    ----------
    prior : PseudoData or Separation
    chart : Coordinates
    random_seed : int
        For EVE, VVE, EEV and VEV, whose integral is a mean over draws.
    """
    family, k, d = chart.family, chart.k, chart.d
    # The mode coordinates' factor is of the spectrum in the chart's units.
    distinct = 1 if family.is_common else k
    unit = distinct * measure_exponent(family, d) * float(np.log(chart.unit).sum())
    found = _in_data_units(prior, family, k, d, random_seed)
    return Estimate(found.value - unit, found.error)


def _in_data_units(
    prior: PseudoData | Separation, family: Covariance, k: int, d: int, random_seed: int
) -> Estimate:
    if isinstance(prior, Separation):
        return Estimate(_separation(prior, family, k))
    share = k if family.is_common else 1
    scatter = prior.scatter * share
    dof = prior.count * share - measure_exponent(family, d)
    means = 0.5 * k * d * (_LOG_2PI - math.log(prior.shrinkage))
    if family.is_polar and d > 1:
        rest = _polar(dof, np.linalg.eigvalsh(scatter), family, k, random_seed)
        return Estimate(means + rest.value, rest.error)
    return Estimate(means + _conjugate(dof, scatter, family, k))


# --- conjugate


def _conjugate(dof: float, scatter: Array, family: Covariance, k: int) -> float:
    d = len(scatter)
    if family.shape == "I":
        half = 0.5 * float(np.trace(scatter))
        copies = 1 if family.volume == "E" else k
        return copies * (float(gammaln(0.5 * dof * d)) - 0.5 * dof * d * math.log(half))
    if family.volume == "E" and family.shape == "V":
        shared = _log_power(_gamma_shapes(dof, d, family.is_diagonal), k) + (k - 1) * math.log(d)
        return k * _one(dof, scatter, family.is_diagonal) + shared
    if family.shape == "V" or family.is_common:
        copies = 1 if family.is_common else k
        return copies * _one(dof, scatter, family.is_diagonal)
    volumes = k * float(gammaln(0.5 * dof * d)) - float(gammaln(0.5 * k * dof * d))
    return volumes + _one(k * dof, scatter, family.is_diagonal)


def _one(dof: float, scatter: Array, is_diagonal: bool) -> float:
    """log Z of one matrix."""
    d = len(scatter)
    if is_diagonal:
        rate = np.log(0.5 * np.diagonal(scatter)).sum()
        return float(d * gammaln(0.5 * dof) - 0.5 * dof * rate)
    logdet = np.linalg.slogdet(scatter)[1]
    gamma = multigammaln(0.5 * dof, d)
    return float(0.5 * dof * d * math.log(2.0) + gamma - 0.5 * dof * logdet)


def _gamma_shapes(dof: float, d: int, is_diagonal: bool) -> Array:
    """Shapes of the independent gammas whose product is the inverse determinant."""
    return np.asarray(0.5 * (dof - (0.0 if is_diagonal else 1.0) * np.arange(d)))


def _log_power(shapes: Array, k: int) -> float:
    """Log-integral of p^k, with p the density of a sum of independent log-gammas.

    p by Fourier from its characteristic function, on a grid in which both have vanished; sums over
    it are then exact but for rounding.
    """
    if k == 1:
        return 0.0
    width = float(np.sqrt(sum(1.0 / a + 1.0 / a**2 for a in shapes)))
    reach = 45.0 * width + 45.0 / float(min(shapes))
    n = 1 << 15
    step = 2.0 * reach / n
    frequency = 2.0 * math.pi * np.fft.fftfreq(n, step)
    centre = float(np.log(shapes).sum())
    log_phi = loggamma(shapes + 1j * frequency[:, None]) - gammaln(shapes)
    phi = np.exp(log_phi.sum(axis=1) - 1j * frequency * (centre - reach))
    density = np.fft.fft(phi).real / (2.0 * reach)
    return math.log(float((np.maximum(density, 0.0) ** k).sum()) * step)


# --- separation


def _separation(prior: Separation, family: Covariance, k: int) -> float:
    d = len(prior.mean)
    copies = 1 if family.is_common else k
    if family.shape == "I":
        return copies * math.log(2.0) + float(_of_scales(prior.scale, copies)[0])
    correlations = 0.0 if family.is_diagonal else _lkj(d, prior.correlation)
    if {family.volume, family.shape} == {"E", "V"}:
        assert isinstance(prior.scale, LogNormal)  # refused in `resolved.separation` otherwise
        normal = 0.5 * _LOG_2PI + math.log(prior.scale.sigma)
        volumes, shapes = (1, k) if family.volume == "E" else (k, 1)
        shape = (d - 1) * normal + (d - 1) * math.log(2.0) + 0.5 * math.log(d) + correlations
        return volumes * (math.log(2.0) + normal - 0.5 * math.log(d)) + shapes * shape
    scales = float(_of_scales(prior.scale, copies).sum())
    return copies * (d * math.log(2.0) + correlations) + scales


def _of_scales(scale: Scale, copies: int) -> Array:
    r"""Log-integral over the log(sd) of so many components of each feature's density in `resolved`.

    That of hierarchical variances is the Dirichlet integral of :math:`\sigma^{-2} / h`.
    """
    match scale:
        case LogNormal(mu, sigma):
            return np.full(np.size(mu), copies * (0.5 * _LOG_2PI + math.log(sigma)))
        case InverseGamma(alpha, beta):
            each = float(gammaln(alpha)) - alpha * np.log(np.atleast_1d(beta))
            return np.asarray(copies * each)
        case HalfNormal(sigma):
            each = np.log(np.atleast_1d(sigma)) + 0.5 * math.log(0.5 * math.pi)
            return np.asarray(copies * each)
        case HierarchicalInverseGamma(alpha, shape, rate):
            log_rate = np.log(np.atleast_1d(np.asarray(rate, dtype=np.float64)))
            gammas = copies * gammaln(alpha) + gammaln(shape) - gammaln(shape + copies * alpha)
            return np.asarray(copies * (alpha * log_rate - math.log(2.0)) + gammas)


def _lkj(d: int, eta: float) -> float:
    """Log-integral of |R|^(eta - 1) over correlation matrices."""
    i = np.arange(1, d)
    each = 0.5 * i * math.log(math.pi) + gammaln(eta + 0.5 * (d - 1 - i))
    return float((each - gammaln(eta + 0.5 * (d - 1))).sum())


# --- axes and spectra


def _polar(dof: float, value: Array, family: Covariance, k: int, random_seed: int) -> Estimate:
    """Of the families that share axes or shape but not both.

    The uniform distribution of axes does not change under a rotation, so that the prior's matrix
    may be taken as diagonal: its eigenvalues.
    """
    d = len(value)
    is_common = family.orientation == "E"
    closed = k * d * float(gammaln(0.5 * dof))
    if is_common:
        if family.volume == "E":
            shared = _log_power(np.full(d, 0.5 * dof), k) + (k - 1) * math.log(d)
            closed += shared
    elif family.volume == "V":
        closed = k * float(gammaln(0.5 * dof * d))
    else:
        closed = float(gammaln(0.5 * k * dof * d))
    found = _axes_and_shape(_Axes(dof, value, family, k), random_seed)
    copies = log_copies_of_axes(family, k, d)
    return Estimate(closed + copies + found.value, found.error)


class _Axes(NamedTuple):
    """What is left of a prior when its volumes, or spectra, are integrated out."""

    dof: float
    value: Array
    family: Covariance
    k: int

    @property
    def n_axes(self) -> int:
        return 1 if self.has_one else self.k

    @property
    def has_one(self) -> bool:
        """Whether axes are common, and spectra integrated out; else the shape is common."""
        return self.family.orientation == "E"

    @property
    def precision(self) -> Array:
        """Of the log-density at its mode: a common shape's contrasts, then Cayley's elements."""
        d = len(self.value)
        rows, columns = np.tril_indices(d, -1)
        a, b = self.value[rows], self.value[columns]
        copies = self.k if self.has_one else 1
        turn = 4.0 * copies * self.dof * (a - b) ** 2 / (a * b) + 2.0 * (d - 1)
        turns = np.diag(np.tile(turn, self.n_axes))
        if self.has_one:
            return turns
        contrast = np.eye(d)[:, 1:] - 1.0 / d
        size = len(turns) + d - 1
        found = np.zeros((size, size))
        found[: d - 1, : d - 1] = 0.5 * self.k * self.dof * contrast.T @ contrast
        found[d - 1 :, d - 1 :] = turns
        return found

    def log_density(self, points: Array) -> Array:
        """At points (s, p) from the mode; -inf where the axes have a nearer copy."""
        s, d = len(points), len(self.value)
        n_shape = 0 if self.has_one else d - 1
        shape, skew = points[:, :n_shape], points[:, n_shape:].reshape(s, self.n_axes, -1)
        matrix = np.zeros((s, self.n_axes, d, d))
        matrix[..., np.arange(d), np.arange(d)] = 1.0
        rows, columns = np.tril_indices(d, -1)
        matrix[..., rows, columns], matrix[..., columns, rows] = skew, -skew
        axes = 2.0 * np.linalg.inv(matrix) - np.eye(d)
        measure = -(d - 1.0) * np.linalg.slogdet(matrix)[1].sum(axis=1)
        along = np.einsum("smij,i,smij->smj", axes, self.value, axes)  # diag(M' Lambda M)
        dof, k = self.dof, self.k
        if self.has_one:
            found = -0.5 * k * dof * np.log(0.5 * along[:, 0]).sum(axis=1)
        else:
            log_mode = np.log(self.value) - np.log(self.value).mean()
            log_shape = log_mode + shape @ (np.eye(d)[:, 1:] - 1.0 / d).T
            trace = (along * np.exp(-log_shape)[:, None, :]).sum(axis=2)
            if self.family.volume == "V":
                found = -0.5 * dof * d * np.log(0.5 * trace).sum(axis=1)
            else:
                found = -0.5 * k * dof * d * np.log(0.5 * trace.sum(axis=1))
        return np.where(is_nearest(axes), found + measure, -np.inf)


def _axes_and_shape(target: _Axes, random_seed: int) -> Estimate:
    """Return the log-integral over the copy of axes at the mode: adaptive importance sampling."""
    rng = np.random.default_rng(random_seed)
    precision = target.precision
    p = len(precision)
    centre = np.zeros(p)
    # Where axes have hardly a direction: no wider than the copy that is nearest.
    root = np.linalg.cholesky(np.linalg.inv(precision + 4.0 * np.eye(p)))
    for _ in range(_ROUNDS):
        z = rng.standard_normal((_DRAWS, p))
        chi = rng.chisquare(_FREEDOM, size=_DRAWS) / _FREEDOM
        step = z / np.sqrt(chi)[:, None]
        points = centre + step @ root.T
        log_t = float(gammaln(0.5 * (_FREEDOM + p)) - gammaln(0.5 * _FREEDOM))
        log_t -= 0.5 * p * math.log(_FREEDOM * math.pi) + float(np.log(np.diagonal(root)).sum())
        log_q = log_t - 0.5 * (_FREEDOM + p) * np.log1p((step**2).sum(axis=1) / _FREEDOM)
        log_weight = target.log_density(points) - log_q
        total = float(logsumexp(log_weight))
        weight = np.exp(log_weight - total)
        centre = weight @ points
        moved = points - centre
        root = np.linalg.cholesky((moved * weight[:, None]).T @ moved)
    error = math.sqrt(max(float(weight @ weight) - 1.0 / _DRAWS, 0.0))
    return Estimate(total - math.log(_DRAWS), error)
