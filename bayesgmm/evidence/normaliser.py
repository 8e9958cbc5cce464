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
EVE, VVE, EEV and VEV have no closed form.  Volumes, or spectra, are integrated out, and the rest is
a mean over rotations and a common shape, by importance sampling with even points (Sobol's).  For
three components its error is 0.002 with two columns, 0.02 with three, 0.05 with four, 0.3 with six.

References
----------
Muirhead (1982), Aspects of Multivariate Statistical Theory, section 2.1 (the Jacobians).
Lewandowski, Kurowicka & Joe (2009), J. Multivariate Analysis 100, 1989-2001, eq. (16).
Leon, Masse & Rivest (2006), J. Multivariate Analysis 97, 412-430 (the measure of rotations).
Owen & Zhou (2000), J. Am. Statist. Assoc. 95, 135-143 (half of the points from a safe proposal).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaincinv, gammaln, loggamma, logsumexp, multigammaln, ndtri
from scipy.stats.qmc import Sobol

from bayesgmm.covariance import Covariance
from bayesgmm.evidence.copies import is_nearest, log_copies_of_axes
from bayesgmm.moments import Array
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma, LogNormal, Scale
from bayesgmm.resolved import PseudoData, Separation, measure_exponent
from bayesgmm.target.chart import Coordinates
from bayesgmm.target.space import Space

_LOG_2PI = math.log(2.0 * math.pi)
_DRAWS = 1 << 14
_ROUNDS = 4  # of importance sampling, each from what the last has found
_BATCHES, _AXES, _SPECTRA = 8, 1 << 10, 1 << 9
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
    kernel, rng = _Kernel(dof, value, family, k), np.random.default_rng(random_seed)
    if family.orientation == "V":
        found = _common_shape(kernel, rng)
        closed = k * float(gammaln(0.5 * dof * d)) if family.volume == "V" else 0.0
        return Estimate(closed + found.value, found.error)
    closed = k * d * float(gammaln(0.5 * dof))
    if family.volume == "E":
        closed += _log_power(np.full(d, 0.5 * dof), k) + (k - 1) * math.log(d)
    found = _common_axes(kernel, rng)
    return Estimate(closed + found.value, found.error)


class _Kernel(NamedTuple):
    """What is left of a prior when its volumes, or spectra, are integrated out.

    Parameters
    ----------
    dof : float
    value : (d,) array
        Eigenvalues of the prior's matrix.
    family : Covariance
    k : int
    """

    dof: float
    value: Array
    family: Covariance
    k: int

    def of_common_axes(self, along: Array) -> Array:
        """EVE and VVE: by diag(M' Lambda M) (..., d)."""
        return np.asarray(-0.5 * self.k * self.dof * np.log(0.5 * along).sum(axis=-1))

    def of_one(self, log_spectrum: Array, along: Array) -> Array:
        """EEV and VEV, one component: (s, r), for spectra (s, d) and axes as `along` (r, d)."""
        trace = np.exp(-log_spectrum) @ along.T
        if self.family.volume == "V":
            return np.asarray(-0.5 * self.dof * len(self.value) * np.log(0.5 * trace))
        return np.asarray(-0.5 * (self.dof * log_spectrum.sum(axis=1)[:, None] + trace))

    def log_spectra(self, points: Array) -> Array:
        """From contrasts (s, d - 1) or, for EEV, log-volume and contrasts, about the mode."""
        d = len(self.value)
        mode = np.log(self.value / self.dof)
        if self.family.volume == "V":
            return np.asarray(mode - mode.mean() + points @ _contrasts(d).T)
        return np.asarray(mode + points[:, :1] + points[:, 1:] @ _contrasts(d).T)


def _contrasts(d: int) -> Array:
    """The columns by which `chart.Coordinates` has shapes."""
    return np.asarray(np.eye(d)[:, 1:] - 1.0 / d)


class _Rotations(NamedTuple):
    """Rotations M by Cayley's map: diag(M' Lambda M), and the uniform measure's log-density."""

    along: Array
    log_measure: Array
    turn: Array

    @staticmethod
    def of(skew: Array, value: Array) -> _Rotations:
        """Return those of elements (s, d (d - 1) / 2) below the diagonal."""
        s, d = len(skew), len(value)
        matrix = np.zeros((s, d, d))
        matrix[:, np.arange(d), np.arange(d)] = 1.0
        rows, columns = np.tril_indices(d, -1)
        matrix[:, rows, columns], matrix[:, columns, rows] = skew, -skew
        turn = 2.0 * np.linalg.inv(matrix) - np.eye(d)
        along = np.einsum("sij,i,sij->sj", turn, value, turn)
        return _Rotations(along, -(d - 1.0) * np.linalg.slogdet(matrix)[1], turn)


class _Student(NamedTuple):
    """A multivariate t distribution as a proposal."""

    centre: Array
    root: Array

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return n draws (n, p) and their log-densities."""
        p = len(self.centre)
        even = _even(n, p + 1, rng)
        half = 0.5 * _FREEDOM
        step = ndtri(even[:, :p]) * np.sqrt(half / gammaincinv(half, even[:, p:]))
        return self.centre + step @ self.root.T, self._of_step(step)

    def log_density(self, points: Array) -> Array:
        """At points (n, p)."""
        return self._of_step(np.linalg.solve(self.root, (points - self.centre).T).T)

    def _of_step(self, step: Array) -> Array:
        p = step.shape[1]
        constant = float(gammaln(0.5 * (_FREEDOM + p)) - gammaln(0.5 * _FREEDOM))
        constant -= 0.5 * p * math.log(_FREEDOM * math.pi)
        constant -= float(np.log(np.diagonal(self.root)).sum())
        square = (step**2).sum(axis=1)
        return np.asarray(constant - 0.5 * (_FREEDOM + p) * np.log1p(square / _FREEDOM))


def _proposal(kernel: _Kernel, copies: int, rng: np.random.Generator) -> _Student:
    """Return a proposal of the axes of a set that so many components share, near their mode."""
    d = len(kernel.value)
    rows, columns = np.tril_indices(d, -1)
    a, b = kernel.value[rows], kernel.value[columns]
    precision = 4.0 * copies * kernel.dof * (a - b) ** 2 / (a * b) + 2.0 * (d - 1)
    # Where axes have hardly a direction: no wider than the copy that is nearest.
    found = _Student(np.zeros(len(rows)), np.diag((precision + 4.0) ** -0.5))
    least = 1e-3 / np.sqrt(precision + 4.0)
    mode = kernel.log_spectra(np.zeros((1, d if kernel.family.volume == "E" else d - 1)))
    for _ in range(_ROUNDS):
        points, log_q = found.draw(_DRAWS // 2, rng)
        axes = _Rotations.of(points, kernel.value)
        common = kernel.family.orientation == "E"
        log_p = kernel.of_common_axes(axes.along) if common else kernel.of_one(mode, axes.along)[0]
        log_weight = np.where(
            is_nearest(axes.turn[:, None]), log_p + axes.log_measure - log_q, -np.inf
        )
        weight = np.exp(log_weight - logsumexp(log_weight))
        if 1.0 / float(weight @ weight) < 10.0 * len(rows):
            break  # too few to learn from
        centre = weight @ points
        moved = (points - centre) * np.sqrt(weight)[:, None]
        found = _Student(centre, np.linalg.cholesky(moved.T @ moved + np.diag(least**2)))
    return found


def _common_axes(kernel: _Kernel, rng: np.random.Generator) -> Estimate:
    """Log-integral over one set of axes."""
    proposal = _proposal(kernel, kernel.k, rng)
    points, log_q = proposal.draw(_DRAWS, rng)
    axes = _Rotations.of(points, kernel.value)
    log_weight = kernel.of_common_axes(axes.along) + axes.log_measure - log_q
    log_weight[~is_nearest(axes.turn[:, None])] = -np.inf
    total = float(logsumexp(log_weight))
    weight = np.exp(log_weight - total)
    error = math.sqrt(max(float(weight @ weight) - 1.0 / _DRAWS, 0.0))
    d = len(kernel.value)
    copies = log_copies_of_axes(kernel.family, kernel.k, d)
    return Estimate(total - math.log(_DRAWS) + copies, error)


def _common_shape(kernel: _Kernel, rng: np.random.Generator) -> Estimate:
    """Log-integral over a common shape (and volume) and each component's own axes.

    Given the spectrum the K sets of axes are independent and alike, so that one mean over rotations
    is raised to the power K.  Spectra are in one of their d! orders, that of the eigenvalues, and
    rotations in one of their 2^(d-1) signs: half of them near the mode, half uniform.
    """
    value, k = kernel.value, kernel.k
    d = len(value)
    log_cayley = _log_rotations(d)
    proposal = _proposal(kernel, 1, rng)
    volume = [] if kernel.family.volume == "V" else [np.ones((d, 1))]
    basis = np.hstack([*volume, _contrasts(d)])
    spectrum = _Student(
        np.zeros(basis.shape[1]),
        np.linalg.cholesky(np.linalg.inv(0.5 * k * kernel.dof * basis.T @ basis)),
    )
    totals = []
    for _ in range(_BATCHES):
        near, _ = proposal.draw(_AXES // 2, rng)
        uniform = _uniform_skew(_AXES // 2, d, rng)
        points = np.concatenate([near, uniform])
        axes = _Rotations.of(points, value)
        log_uniform = axes.log_measure - log_cayley + (d - 1) * math.log(2.0)
        mixed = np.logaddexp(proposal.log_density(points), log_uniform) - math.log(2.0)
        log_axes = np.where(_has_nearest_signs(axes.turn), log_uniform - mixed, -np.inf)
        drawn, log_q = spectrum.draw(_SPECTRA, rng)
        log_s = kernel.log_spectra(drawn)
        log_q = np.where((np.diff(log_s, axis=1) >= 0.0).all(axis=1), -log_q, -np.inf)
        mean = logsumexp(kernel.of_one(log_s, axes.along) + log_axes, axis=1) - math.log(_AXES)
        totals.append(float(logsumexp(k * mean + log_q)) - math.log(_SPECTRA))
    value_ = float(logsumexp(totals)) - math.log(_BATCHES)
    spread = np.exp(np.array(totals) - value_)
    error = float(spread.std(ddof=1)) / math.sqrt(_BATCHES)
    return Estimate(value_ + math.lgamma(d + 1.0) + k * log_cayley, error)


def _log_rotations(d: int) -> float:
    """Log-integral of Cayley's measure over all rotations: spheres' volumes, by halved angles."""
    i = np.arange(2, d + 1)
    spheres = math.log(2.0) + 0.5 * i * math.log(math.pi) - gammaln(0.5 * i)
    return float(spheres.sum()) - 0.5 * d * (d - 1) * math.log(2.0)


def _has_nearest_signs(turn: Array) -> Any:
    """Whether no even change of signs brings the axes (s, d, d) nearer to themselves."""
    cosine = np.diagonal(turn, axis1=1, axis2=2)
    negative = cosine < 0.0
    least = np.take_along_axis(negative, np.abs(cosine).argmin(axis=1)[:, None], axis=1)[:, 0]
    count = negative.sum(axis=1)
    return (count == 0) | ((count == 1) & least)


def _even(n: int, p: int, rng: np.random.Generator) -> Array:
    """Return n points of the unit cube in p dimensions, more even than random ones (Sobol's)."""
    found = Sobol(p, rng=rng).random(n)
    return np.clip(found, 1e-12, 1.0 - 1e-12)


def _uniform_skew(n: int, d: int, rng: np.random.Generator) -> Array:
    """Cayley's elements of n uniform rotations, each with its nearest signs."""
    turn = np.linalg.qr(ndtri(_even(n, d * d, rng)).reshape(n, d, d))[0]
    turn = turn * np.where(np.diagonal(turn, axis1=1, axis2=2) < 0.0, -1.0, 1.0)[:, None, :]
    odd = np.flatnonzero(np.linalg.det(turn) < 0.0)
    least = np.diagonal(turn[odd], axis1=1, axis2=2).argmin(axis=1)
    turn[odd, :, least] *= -1.0
    eye = np.eye(d)
    skew = np.linalg.solve(eye + turn, eye - turn)
    rows, columns = np.tril_indices(d, -1)
    return np.asarray(skew[:, rows, columns])
