"""The pass over the data as it is called: in chunks of rows, and row by row.

`onepass` is the pass itself.  The order of every addition is written down, here and there, which
makes the bits the same for any number of threads, in any process, inside and outside of PyTensor.
Raise `VERSION` with any change of the code: it is part of PyTensor's key for cached functions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from bayesgmm.numeric import onepass

VERSION = 10
CHUNK = (
    1 << 15
)  # observations that are added up by themselves; fixed, so that threads change no bit
LOG_2PI = math.log(2.0 * math.pi)

Array = NDArray[np.float64]
_pointer = types.CPointer(types.float64)
_pass = types.ExternalFunction(
    onepass.define_symbol(VERSION), types.void(*[types.int64] * 7, *[_pointer] * 7)
)


@njit(nogil=True, cache=True, error_model="numpy")
def factorise(covariance, diagonal):  # type: ignore[no-untyped-def]
    """Whitening of every covariance, and whether all are positive definite."""
    k, d = covariance.shape[0], covariance.shape[1]
    whitening = np.zeros((k, d, d))
    for j in range(k):
        w = whitening[j]
        if diagonal:
            for f in range(d):
                v = covariance[j, f, f]
                if not (v > 0.0 and v < np.inf):
                    return whitening, False
                w[f, f] = 1.0 / math.sqrt(v)
            continue
        factor = np.zeros((d, d))
        for f in range(d):
            for g in range(f + 1):
                t = covariance[j, f, g]
                for h in range(g):
                    t -= factor[f, h] * factor[g, h]
                if f > g:
                    factor[f, g] = t / factor[g, g]
                elif t > 0.0 and t < np.inf:
                    factor[f, f] = math.sqrt(t)
                else:
                    return whitening, False
        for g in range(d):
            w[g, g] = 1.0 / factor[g, g]
            for f in range(g + 1, d):
                t = 0.0
                for h in range(g, f):
                    t -= factor[f, h] * w[h, g]
                w[f, g] = t / factor[f, f]
    return whitening, True


@njit(nogil=True, cache=True, error_model="numpy")
def constants(log_weight, whitening):  # type: ignore[no-untyped-def]
    """log(weight) + log|W| - d/2 log(2 pi): the log-density of a component at its mean."""
    k, d = whitening.shape[0], whitening.shape[1]
    c = np.empty(k)
    for j in range(k):
        c[j] = log_weight[j] - 0.5 * d * LOG_2PI
        for f in range(d):
            c[j] += math.log(whitening[j, f, f])
    return c


@njit(nogil=True, cache=True, error_model="numpy")
def chunks(x, weight, begin, end, chunk, diagonal, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """Sums over the observations begin..end, one row of numbers for each ``chunk`` of them.

    Parameters
    ----------
    x : (n, d) array
        Data.
    weight : (n,) array, or (0,) array for unit weights
        Observation weights.
    begin, end, chunk : int
    diagonal : bool
        Whether the whitening is diagonal; then only its diagonal is read, and only the diagonal
        of the second moments is filled.
    log_weight : (k,) array
    mean : (k, d) array
    whitening : (k, d, d) array
        Lower triangular W with W'W the inverse covariance.

    Returns
    -------
    (chunks, 1 + k + k d + k d d) array
        Log-likelihood, sum r, sum r z, and the lower triangles of sum r z z'.
    """
    k, d = mean.shape
    sums = np.empty(((end - begin + chunk - 1) // chunk, 1 + k + k * d + k * d * d))
    # Pointers know no strides: anything not C-contiguous is copied (the data never are).
    x = np.ascontiguousarray(x)
    weight = np.ascontiguousarray(weight)
    mean = np.ascontiguousarray(mean)
    whitening = np.ascontiguousarray(whitening)
    constant = constants(log_weight, whitening)
    for i in range(len(sums)):
        first = begin + i * chunk
        _pass(
            *(first, min(first + chunk, end), d, k),
            *(np.int64(len(weight) > 0), np.int64(diagonal), np.int64(0)),
            *(x.ctypes, weight.ctypes, constant.ctypes, mean.ctypes, whitening.ctypes),
            *(sums[i].ctypes, sums[i].ctypes),
        )
    return sums


@njit(nogil=True, cache=True, error_model="numpy")
def total(sums, k, d):  # type: ignore[no-untyped-def]
    """Add the chunks up in their order.

    Returns
    -------
    float, (k,), (k, d), (k, d, d)
        Log-likelihood and sums of r, r z, r z z' (both triangles).
    """
    # Loops, since Numba takes seconds to compile the array expressions for them.
    loglik, zeroth, first, second = 0.0, np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for i in range(sums.shape[0]):
        loglik += sums[i, 0]
        for j in range(k):
            zeroth[j] += sums[i, 1 + j]
            for f in range(d):
                first[j, f] += sums[i, 1 + k + j * d + f]
                for g in range(f + 1):
                    second[j, f, g] += sums[i, 1 + k + k * d + (j * d + f) * d + g]
                    second[j, g, f] = second[j, f, g]
    return loglik, zeroth, first, second


@njit(nogil=True, cache=True, error_model="numpy")
def accumulate_all(x, weight, diagonal, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """Log-likelihood and sums (`total`) over all observations, on one thread."""
    sums = chunks(x, weight, 0, len(x), CHUNK, diagonal, log_weight, mean, whitening)
    return total(sums, *mean.shape)


@njit(nogil=True, cache=True, error_model="numpy")
def each_row(x, log_weight, mean, whitening, responsible):  # type: ignore[no-untyped-def]
    """`rows` without its care for observations that are too far away."""
    n, d = x.shape
    k = len(mean)
    density = np.empty(n)
    r = np.empty((k if responsible else 0, n))
    x = np.ascontiguousarray(x)
    mean = np.ascontiguousarray(mean)
    whitening = np.ascontiguousarray(whitening)
    constant = constants(log_weight, whitening)
    _pass(
        *(0, n, d, k, np.int64(responsible), np.int64(0), np.int64(1)),
        *(x.ctypes, x.ctypes, constant.ctypes, mean.ctypes, whitening.ctypes),
        *(density.ctypes, r.ctypes),
    )
    return density, r


def rows(
    x: Array, log_weight: Array, mean: Array, whitening: Array, responsible: bool
) -> tuple[Array, Array]:
    """Log-density of every observation and, if ``responsible``, (k, n) responsibilities.

    An observation so far away that every squared distance overflows gets log-density -inf and
    goes to the component whose whitened distance is smallest.
    """
    density, r = each_row(x, log_weight, mean, whitening, responsible)
    if responsible:
        for i in np.flatnonzero(density == -np.inf):
            r[:, i] = _of_nearest(x[i], log_weight, mean, whitening)
    return density, r


def _of_nearest(x: Array, log_weight: Array, mean: Array, whitening: Array) -> Array:
    """Responsibilities (k,) of a far observation (d,), by distances in units with no overflow."""
    is_there = log_weight > -np.inf
    unit = max(np.abs(x).max(), np.abs(mean[is_there]).max(initial=0.0))
    steepest = np.abs(whitening[is_there]).max(initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # of those that are not there
        z = np.einsum("kfg,kg->kf", whitening / steepest, x / unit - mean / unit)
        distance = np.where(is_there, (z**2).sum(axis=1), np.inf)
    level = np.where(distance == distance.min(), constants(log_weight, whitening), -np.inf)
    share = np.exp(level - level.max())
    return np.asarray(share / share.sum())
