r"""The log-posterior of a specification's own priors, by hand: what NUTS samples.

It is the density of `model.to_pymc`, in the same unconstrained coordinates (`weight` by PyMC's
simplex transform, `covariance` by `chart.Coordinates`, `mean` as it is), value and gradient from
one pass over the data, in one function that Numba compiles once for all specifications.  So the
first draw need not wait for a graph to be rewritten, differentiated and compiled.

With x the unconstrained vector, L the log sds and w the weights, every prior is the same few terms:

.. math:: c + l^\top x - \tfrac12 \sum_i p_i (x_i - m_i)^2 + \alpha \sum_k \log w_k
          + \text{pseudo-data}(\mu, \Sigma)
          + \sum_{kj} [a L + b e^{-L} + g e^{2L} - \tfrac12 q (L - s \bar L - o)^2]_{kj}.

`terms` finds their coefficients; most are 0 for any one prior.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import carray, cfunc, types
from scipy.special import gammaln

from bayesgmm.data.observations import Data
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Parameters
from bayesgmm.numeric.kernel import VERSION, accumulate_all, factorise
from bayesgmm.numeric.kernel_ops import (
    chart,
    has_density,
    pseudo_sums,
    pull_back,
    pull_through_chart,
)
from bayesgmm.posterior.chart import Coordinates, unit_of
from bayesgmm.prior import HalfNormal, InverseGamma, LogNormal
from bayesgmm.resolved import PseudoData, Separation, measure_exponent

# As in `kernel_ops`: Numba's cache does not see that what is called here has changed.
assert VERSION == 7, "kernel.VERSION was raised: raise it here, too"

_pointer = types.CPointer(types.float64)
_SIGNATURE = types.int64(
    types.uint64, _pointer, _pointer, _pointer, types.CPointer(types.CPointer(types.float64))
)


def _log_density(size, point_, slope_, value_, arrays):  # type: ignore[no-untyped-def]
    """Write gradient and value at a point; 0, or nutpie's code for what is not finite."""
    number = carray(arrays[0], (12,))
    n, d, k, p = int(number[0]), int(number[1]), int(number[2]), int(number[3])
    n_weight, diagonal = int(number[4]), number[5] != 0.0
    alpha, count, shrinkage = number[6], number[7], number[8]
    share, value, polar = number[9], number[10], number[11] != 0.0
    q = size - (k - 1) - p - k * d
    x = carray(arrays[1], (n, d))
    sample_weight = carray(arrays[2], (n_weight,))
    spectrum = carray(arrays[3], (k * d, p))
    below = carray(arrays[4], (0 if diagonal else k * d * (d - 1) // 2, q))
    unit = carray(arrays[5], (d,))
    linear = carray(arrays[6], (3, size))
    location = carray(arrays[7], (d,))
    scatter = carray(arrays[8], (d, d))
    by_sd = carray(arrays[9], (5, k, d))
    point = carray(point_, (size,))
    slope = carray(slope_, (size,))

    log_weight = np.empty(k)
    last, top = 0.0, -np.inf
    for j in range(k - 1):
        log_weight[j] = point[j]
        last -= point[j]
        top = max(top, point[j])
    log_weight[k - 1] = last
    top = max(top, last)
    total = 0.0
    for j in range(k):
        total += math.exp(log_weight[j] - top)
    for j in range(k):
        log_weight[j] -= top + math.log(total)
        value += alpha * log_weight[j]
    vector = point[k - 1 : k - 1 + p + q]
    mean = point[k - 1 + p + q :].reshape((k, d))
    covariance, factor, s, log_volume = chart(vector, spectrum, below, unit, polar)
    value += log_volume

    whitening, is_definite = factorise(covariance, diagonal)
    if not (is_definite and has_density(log_weight, mean)):
        value_[0] = np.nan
        for i in range(size):
            slope[i] = 0.0
        return 4

    loglik, zeroth, first, second = accumulate_all(
        x, sample_weight, diagonal, log_weight, mean, whitening
    )
    value += loglik
    by_weight = np.empty(k)
    for j in range(k):
        by_weight[j] = zeroth[j] + alpha
    if count > 0.0:
        pseudo, pseudo_first, pseudo_second = pseudo_sums(
            mean, whitening, location, scatter, count, shrinkage
        )
        for j in range(k):
            value += pseudo[j]
            zeroth[j] += count
            for f in range(d):
                first[j, f] += pseudo_first[j, f]
                for g in range(d):
                    second[j, f, g] += pseudo_second[j, f, g]
    by_mean, by_covariance = pull_back(zeroth, first, second, whitening)
    if count == 0.0:
        level = np.empty(d)
        for j in range(k):
            middle, pull = 0.0, 0.0
            for f in range(d):
                level[f] = 0.5 * math.log(covariance[j, f, f])
                middle += share / d * level[f]
            for f in range(d):
                gap = level[f] - middle - by_sd[4, j, f]
                pull += share / d * by_sd[3, j, f] * gap
            for f in range(d):
                gap = level[f] - middle - by_sd[4, j, f]
                a = by_sd[0, j, f] * level[f]
                b = by_sd[1, j, f] * math.exp(-level[f])
                g = by_sd[2, j, f] * math.exp(2.0 * level[f])
                value += a + b + g - 0.5 * by_sd[3, j, f] * gap * gap
                by_level = by_sd[0, j, f] - b + 2.0 * g - by_sd[3, j, f] * gap + pull
                by_covariance[j, f, f] += 0.5 * by_level / covariance[j, f, f]

    total = 0.0
    for j in range(k):
        total += by_weight[j]
    for j in range(k):
        by_weight[j] -= math.exp(log_weight[j]) * total
    by_vector = pull_through_chart(factor, s, spectrum, below, unit, polar, by_covariance, 1.0)
    finite = True
    for i in range(size):
        if i < k - 1:
            slope[i] = by_weight[i] - by_weight[k - 1]
        elif i < size - k * d:
            slope[i] = by_vector[i - k + 1]
        else:
            slope[i] = by_mean[(i - size + k * d) // d, (i - size + k * d) % d]
        gap = point[i] - linear[2, i]
        value += linear[0, i] * point[i] - 0.5 * linear[1, i] * gap * gap
        slope[i] += linear[0, i] - linear[1, i] * gap
        finite = finite and math.isfinite(slope[i])
    value_[0] = value
    if not finite:
        return 3
    return 0 if math.isfinite(value) else 4


def _copy(size, n_out, point_, out_, arrays):  # type: ignore[no-untyped-def]
    """Keep a draw as it is: draws are made parameters all at once, by `Target.parameters`."""
    for i in range(size):
        out_[i] = point_[i]
    return 0


@cache
def compiled() -> tuple[Any, Any]:
    """Return the log-density and the copying of a draw as C callbacks; compiled on first use."""
    settings = {"cache": True, "error_model": "numpy"}
    copy = types.int64(types.uint64, types.uint64, _pointer, _pointer, types.voidptr)
    return cfunc(_SIGNATURE, **settings)(_log_density), cfunc(copy, **settings)(_copy)


@dataclass(frozen=True, eq=False)
class Terms:
    """A prior in coordinates: the coefficients of the module's formula.

    Parameters
    ----------
    constant, alpha : float
        c and the coefficient of the log-weights, the simplex transform's Jacobian included.
    linear, precision, center : (size,) arrays
        l, p and m.
    by_sd : (5, k, d) array
        a, b, g, q and o.
    share : float
        s: 1 where a scale is split into volume and shape, else 0.
    count, shrinkage, location, scatter
        Of `resolved.PseudoData`, that of means and covariances together; a count of 0 is none.
    """

    constant: float
    alpha: float
    linear: Array
    precision: Array
    center: Array
    by_sd: Array
    share: float
    count: float
    shrinkage: float
    location: Array
    scatter: Array


def terms(prior: PseudoData | Separation, chart: Coordinates) -> Terms:
    """Return a resolved prior's coefficients in a family's coordinates."""
    family, k, d = chart.family, chart.k, chart.d
    size = k - 1 + chart.size + k * d
    alpha = prior.concentration
    constant = math.log(k) + float(gammaln(k * alpha) - k * gammaln(alpha))
    linear, precision, center = np.zeros((3, size))
    vector = slice(k - 1, k - 1 + chart.spectrum.shape[1])
    linear[vector] = chart.log_jacobian
    by_sd, share = np.zeros((5, k, d)), 0.0
    if isinstance(prior, PseudoData):
        count = prior.count + 1.0
        return Terms(
            *(constant, alpha, linear, precision, center, by_sd, share),
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
            volumes = slice(k - 1, k - 1 + chart.n_volumes)  # twice the log root volume
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
    return Terms(
        *(constant, alpha, linear, precision, center, by_sd, share),
        *(0.0, 0.0, np.zeros(d), np.zeros((d, d))),
    )


@dataclass(frozen=True, eq=False)
class Target:
    """A specification's log-posterior given data: value and gradient at unconstrained points.

    Parameters
    ----------
    chart : Coordinates
    terms : Terms
    data : Data
    """

    chart: Coordinates
    terms: Terms
    data: Data

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates: k - 1 of weights, the chart's, k d of means."""
        return self.chart.k - 1 + self.chart.size + self.chart.k * self.chart.d

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What the compiled function reads, in its order."""
        chart, t, data = self.chart, self.terms, self.data
        number = [data.n, data.d, chart.k, chart.spectrum.shape[1], len(data.weight)]
        number += [chart.family.is_diagonal, t.alpha, t.count, t.shrinkage, t.share, t.constant]
        number.append(chart.family.is_polar)
        coordinates = (chart.spectrum, chart.below, chart.unit)
        linear = np.stack([t.linear, t.precision, t.center])
        prior = (linear, t.location, t.scatter, t.by_sd)
        every = (np.array(number), data.values, data.weight, *coordinates, *prior)
        return tuple(np.ascontiguousarray(array, dtype=np.float64) for array in every)

    @cached_property
    def pointers(self) -> Any:
        """The arrays' addresses, which are good as long as this target lives."""
        return np.array([array.ctypes.data for array in self.arrays], dtype=np.uintp)

    def __call__(self, point: Array) -> tuple[float, Array]:
        """Return value and gradient; NaN, or gradients that are not finite, where none exist."""
        point = np.ascontiguousarray(point, dtype=np.float64)
        if point.shape != (self.size,):
            raise ValueError(f"a point has {self.size} coordinates, not {point.shape}")
        slope, value = np.empty(self.size), np.empty(1)
        pointer = ctypes.POINTER(ctypes.c_double)
        compiled()[0].ctypes(
            self.size,
            *(array.ctypes.data_as(pointer) for array in (point, slope, value)),
            self.pointers.ctypes.data_as(ctypes.POINTER(pointer)),
        )
        return float(value[0]), slope

    def values(self, points: Array) -> Array:
        """Return the value at points (..., size)."""
        flat = points.reshape(-1, self.size)
        return np.array([self(point)[0] for point in flat]).reshape(points.shape[:-1])

    def without_data(self) -> Target:
        """Return the log-prior in the same coordinates."""
        rows = np.empty((0, self.data.d))
        nothing = replace(self.data, x=rows, values=rows, weight=np.empty(0))
        return Target(self.chart, self.terms, nothing)

    def parameters(self, points: Array) -> dict[str, Array]:
        """Return weights, means and covariances at points (..., size), in the data's units."""
        k, d = self.chart.k, self.chart.d
        free, vectors, means = np.split(points, [k - 1, k - 1 + self.chart.size], axis=-1)
        ratio = np.concatenate([free, -free.sum(axis=-1, keepdims=True)], axis=-1)
        weight = np.exp(ratio - ratio.max(axis=-1, keepdims=True))
        return {
            "weight": weight / weight.sum(axis=-1, keepdims=True),
            "mean": means.reshape(*means.shape[:-1], k, d),
            "covariance": self.chart.covariances(vectors),
        }

    def point(self, theta: Parameters) -> Array:
        """Return the point of parameters in the data's units."""
        log_weight = np.log(theta.weight)
        free = (log_weight - log_weight.mean())[:-1]
        return np.concatenate([free, self.chart.vector(theta.covariance), theta.mean.ravel()])


def target(spec: GaussianMixture, data: Data, prior: PseudoData | Separation) -> Target:
    """Return the log-posterior of a specification, with its prior resolved for the data."""
    family = spec.covariance
    chart = Coordinates(family, spec.n_components, unit_of(data, family))
    return Target(chart, terms(prior, chart), data)
