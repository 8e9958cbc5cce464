"""Random draws from the priors: what the PyMC model's prior predictive is made of.

Whole matrices come from their Bartlett factors, in which the conjugate prior is independent: the
logarithms of the diagonal are log-gamma, the rest is normal.  Families that share a volume or a
shape take these draws apart exactly.  For those that share axes or shape but not both (EVE, VVE,
EEV, VEV) a Gibbs sampler turns the axes in one plane after the other and draws variances given
them, each from its own conditional distribution.

References
----------
Bartlett (1933), Proc. R. Soc. Edinburgh 53, 260-283. Lewandowski, Kurowicka & Joe (2009), J.
Multivariate Analysis 100, 1989-2001, section 3.2 (LKJ by its Cholesky rows).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import gammaln

from bayesgmm.covariance import Covariance
from bayesgmm.moments import Array
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma, LogNormal, Scale
from bayesgmm.resolved import PseudoData, Separation, measure_exponent

_SWEEPS = 50  # of the Gibbs sampler for axes
_GRID = 1 << 13  # points of the tabulated densities; their spacing is about 0.01 in a logarithm


def draw_covariance(
    prior: PseudoData | Separation, family: Covariance, k: int, rng: np.random.Generator
) -> Array:
    """Return one draw (k, d, d) of the covariances from the prior."""
    if isinstance(prior, Separation):
        return _separate(prior, family, k, rng)
    return _conjugate(prior, family, k, rng)


# --- conjugate


def _conjugate(prior: PseudoData, family: Covariance, k: int, rng: np.random.Generator) -> Array:
    d = len(prior.mean)
    share = k if family.is_common else 1
    scatter = prior.scatter * share
    dof = prior.count * share - measure_exponent(family, d)
    if family.is_polar and d > 1:
        return _polar(dof, scatter, family, k, rng)
    if family.shape == "I":
        # |S|^(-dof/2) exp(-tr/2) with S = v I is an inverse gamma of v.
        copies = 1 if family.volume == "E" else k
        v = 0.5 * np.trace(scatter) / rng.gamma(0.5 * dof * d, size=(copies, 1, 1))
        return np.broadcast_to(v * np.eye(d), (k, d, d)).copy()
    if family.volume == "E" and family.shape == "V" and k > 1:
        shapes = _log_gammas_of_equal_sum(_gamma_shapes(family, dof, d), k, rng)
        return _from_bartlett(shapes, scatter, family, rng)
    if family.shape == "V" or k == 1:
        return _matrices(dof, scatter, family, k, rng)
    common = _matrices(dof * (1 if family.is_common else k), scatter, family, 1, rng)[0]
    if family.is_common:
        return np.broadcast_to(common, (k, d, d)).copy()
    # Common shape, own volumes: p(C) is the shape of an inverse Wishart with k times the degrees
    # of freedom, and each volume given C an inverse gamma.
    shape = common / np.exp(np.linalg.slogdet(common)[1] / d)
    rate = 0.5 * np.trace(np.linalg.solve(shape, scatter))
    volume: Array = rate / rng.gamma(0.5 * dof * d, size=(k, 1, 1))
    return volume * shape


def _gamma_shapes(family: Covariance, dof: float, d: int) -> Array:
    """Shape parameters of the gammas whose doubled values are the squared Bartlett diagonal."""
    lost = 0.0 if family.is_diagonal else 1.0
    return np.asarray(0.5 * (dof - lost * np.arange(d)))


def _matrices(
    dof: float, scatter: Array, family: Covariance, k: int, rng: np.random.Generator
) -> Array:
    shapes = np.log(rng.gamma(_gamma_shapes(family, dof, len(scatter)), size=(k, len(scatter))))
    return _from_bartlett(shapes, scatter, family, rng)


def _from_bartlett(
    log_gammas: Array, scatter: Array, family: Covariance, rng: np.random.Generator
) -> Array:
    """(k, d, d) inverse Wishart (or diagonal) matrices from the factor's log squared diagonal."""
    k, d = log_gammas.shape
    root = np.linalg.cholesky(scatter)
    bartlett = np.zeros((k, d, d))
    if not family.is_diagonal:
        rows, columns = np.tril_indices(d, -1)
        bartlett[:, rows, columns] = rng.normal(size=(k, len(rows)))
    index = np.arange(d)
    bartlett[:, index, index] = np.sqrt(2.0 * np.exp(log_gammas))
    half = root @ np.linalg.inv(np.swapaxes(bartlett, 1, 2))
    return half @ np.swapaxes(half, 1, 2)


def _log_gammas_of_equal_sum(shape: Array, k: int, rng: np.random.Generator) -> Array:
    """(k, d) independent log-gammas, given that the k row sums are equal.

    Densities are tabulated; partial sums are their convolutions.  First the common sum, with
    density f^k, then the terms one after the other given what remains.
    """
    low = np.array([-36.0 / a for a in shape])  # below, exp(a t) has less than e^-36 of the mass
    high = np.log(shape + 40.0 + 10.0 * np.sqrt(shape))
    step = float((high - low).max() / _GRID)
    density = []
    for a, lo, hi in zip(shape, low, high, strict=True):
        t = lo + step * np.arange(int((hi - lo) / step) + 1)
        density.append(np.exp(a * t - np.exp(t) - gammaln(a)))
    tail = [density[-1]]  # density of the sum of the last 1, 2, ... terms
    for f in density[-2::-1]:
        tail.append(np.maximum(fftconvolve(f, tail[-1]) * step, 0.0))
    start = np.cumsum(low[::-1])

    def one(weight: Array, origin: float) -> float:
        total = np.cumsum(weight)
        return float(
            origin + step * np.interp(rng.uniform() * total[-1], total, np.arange(len(total)))
        )

    f = tail[-1] / tail[-1].max()
    total = one(f**k, start[-1])
    out = np.empty((k, len(shape)))
    for row in out:
        rest = total
        for i in range(len(shape) - 1):
            t = low[i] + step * np.arange(len(density[i]))
            following = tail[-2 - i]
            position = (rest - t - start[-2 - i]) / step
            ahead = np.interp(position, np.arange(len(following)), following, left=0.0, right=0.0)
            row[i] = one(density[i] * ahead, low[i])
            rest -= row[i]
        row[-1] = rest
    return out


# --- axes and spectra


def _polar(
    dof: float, scatter: Array, family: Covariance, k: int, rng: np.random.Generator
) -> Array:
    """Return prod |S_k|^(-dof/2) exp(-tr/2) of uniform axes and log-spectra, after many sweeps."""
    d = len(scatter)
    is_common = family.orientation == "E"
    axes = np.linalg.qr(rng.normal(size=(1 if is_common else k, d, d)))[0]
    turned = np.swapaxes(axes, 1, 2) @ scatter @ axes
    s = np.broadcast_to(np.diagonal(turned, axis1=1, axis2=2), (k, d)) / dof
    for _ in range(_SWEEPS):
        for i, j in combinations(range(d), 2):
            half, off = 0.5 * (turned[:, i, i] - turned[:, j, j]), turned[:, i, j]
            start, reach = np.arctan2(off, half), np.hypot(half, off)
            if is_common:  # the variances integrated out
                middle = 0.5 * (turned[:, i, i] + turned[:, j, j])
                double = start + _angle(float((reach / middle)[0]), 0.5 * k * dof, rng)
            else:
                pull = 0.5 * reach * (1.0 / s[:, j] - 1.0 / s[:, i])
                double = rng.vonmises(np.where(pull < 0, start + np.pi, start), np.abs(pull))
            _turn(axes, turned, i, j, 0.5 * double)
        if not is_common:
            s = _common_shape(np.diagonal(turned, axis1=1, axis2=2), s, dof, family, rng)
    if is_common:
        half = 0.5 * np.diagonal(turned[0])
        shape = np.full(d, 0.5 * dof)
        if family.volume == "E":
            s = half / np.exp(_log_gammas_of_equal_sum(shape, k, rng))
        else:
            s = half / rng.gamma(shape, size=(k, d))
    product = (axes * s[:, None, :]) @ np.swapaxes(axes, 1, 2)
    return np.asarray(0.5 * (product + np.swapaxes(product, 1, 2)))


def _angle(ratio: float, power: float, rng: np.random.Generator) -> float:
    """Draw an angle with density (1 - ratio^2 cos^2)^-power: by rejection of a beta variable."""
    square = ratio**2
    while True:
        v = rng.beta(0.5, 0.5)
        if rng.random() < (1.0 - square * v) ** (power - 1.0):
            sine = np.sqrt(v * (1.0 - square) / (1.0 - square * v))
            cosine = np.sqrt((1.0 - v) / (1.0 - square * v))
            return float(np.arctan2(rng.choice([-1, 1]) * sine, rng.choice([-1, 1]) * cosine))


def _turn(axes: Array, turned: Array, i: int, j: int, angle: Array) -> None:
    """Turn axes i and j (m, d, d) by angles (m,), and the scatters seen in them, in place."""
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    for matrix in (axes, turned):
        a, b = matrix[:, :, i].copy(), matrix[:, :, j].copy()
        matrix[:, :, i], matrix[:, :, j] = c * a + s * b, c * b - s * a
    a, b = turned[:, i].copy(), turned[:, j].copy()
    turned[:, i], turned[:, j] = c * a + s * b, c * b - s * a


def _common_shape(
    b: Array, s: Array, dof: float, family: Covariance, rng: np.random.Generator
) -> Array:
    """Draw variances (k, d) along own axes, given the scatters b (k, d) along them."""
    k, d = b.shape
    if family.volume == "E":
        common = 0.5 * b.sum(axis=0) / rng.gamma(0.5 * k * dof, size=d)
        return np.broadcast_to(common, (k, d))
    shape = s[0]
    volume = 0.5 * (b / shape).sum(axis=1) / rng.gamma(0.5 * d * dof, size=k)
    shape = 0.5 * (b / volume[:, None]).sum(axis=0) / rng.gamma(0.5 * k * dof, size=d)
    return np.asarray(volume[:, None] * shape)


# --- separation


def _log_scales(scale: Scale, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    match scale:
        case LogNormal(mu, sigma):
            return np.asarray(mu) + sigma * rng.normal(size=size)
        case InverseGamma(alpha, beta):
            return np.asarray(np.log(beta) - np.log(rng.gamma(alpha, size=size)))
        case HalfNormal(sigma):
            return np.asarray(np.log(sigma) + np.log(np.abs(rng.normal(size=size))))
        case HierarchicalInverseGamma(alpha, shape, rate):
            # Logarithms: a gamma variable with a small shape is often 0 in floats.
            log_beta = _log_gamma(shape, size[-1:], rng) - np.log(np.asarray(rate))
            return np.asarray(0.5 * (log_beta - _log_gamma(alpha, size, rng)))


def _log_gamma(shape: float, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Logarithms of gamma variables: Gamma(a) is Gamma(a + 1) U^(1/a)."""
    return np.asarray(np.log(rng.gamma(shape + 1.0, size=size)) + np.log(rng.random(size)) / shape)


def _separate(prior: Separation, family: Covariance, k: int, rng: np.random.Generator) -> Array:
    d = len(prior.mean)
    distinct = 1 if family.is_common else k
    shapes = 1 if family.shape in ("E", "I") else k
    correlation = (
        np.eye(d)[None]
        if family.is_diagonal
        else np.stack([_lkj(prior.correlation, d, rng) for _ in range(shapes)])
    )
    if family.shape == "I":
        log_sd = np.repeat(_log_scales(prior.scale, (distinct, d), rng)[:, :1], d, axis=1)
    elif {family.volume, family.shape} == {"E", "V"}:
        assert isinstance(prior.scale, LogNormal)  # `resolved.separation` refuses the others
        mu, sigma = np.asarray(prior.scale.mu), prior.scale.sigma
        root = mu.mean() + sigma / np.sqrt(d) * rng.normal(size=(k if shapes == 1 else 1, 1))
        y = mu + sigma * rng.normal(size=(shapes, d))
        log_sd = root + y - y.mean(axis=1, keepdims=True)
        log_sd = log_sd - np.linalg.slogdet(correlation)[1][:, None] / (2 * d)
    else:
        log_sd = _log_scales(prior.scale, (distinct, d), rng)
    sd = np.exp(log_sd)
    return np.broadcast_to(sd[:, :, None] * correlation * sd[:, None, :], (k, d, d)).copy()


def _lkj(eta: float, d: int, rng: np.random.Generator) -> Array:
    factor = np.zeros((d, d))
    factor[0, 0] = 1.0
    for i in range(1, d):
        y = rng.beta(0.5 * i, eta + 0.5 * (d - 1 - i))
        u = rng.normal(size=i)
        factor[i, :i] = np.sqrt(y) * u / np.sqrt(u @ u)
        factor[i, i] = np.sqrt(1.0 - y)
    return factor @ factor.T
