"""The pass over the data as it is called: in chunks of rows, and row by row.

`onepass` is the pass itself.  The order of every addition is written down, here and there, which
makes the bits the same for any number of threads, in any process, inside and outside of PyTensor.
Raise `VERSION` with any change of the code: it is part of PyTensor's key for cached functions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from bayesgmm.numeric import onepass

VERSION = 9
CHUNK = (
    1 << 15
)  # observations that are added up by themselves; fixed, so that threads change no bit
LOG_2PI = math.log(2.0 * math.pi)

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


@njit(error_model="numpy")
def _nearest(x, log_weight, mean, whitening, constant, a):  # type: ignore[no-untyped-def]
    """Set a to -inf but for the component of least whitened distance, in units with no overflow."""
    k, d = mean.shape
    unit, steepest = 0.0, 0.0
    for f in range(d):
        unit = max(unit, abs(x[f]))
        for j in range(k):
            if log_weight[j] > -np.inf:
                unit = max(unit, abs(mean[j, f]))
                for g in range(f + 1):
                    steepest = max(steepest, abs(whitening[j, f, g]))
    least = np.inf
    for j in range(k):
        a[j] = np.inf
        if log_weight[j] > -np.inf:
            a[j] = 0.0
            for f in range(d):
                t = 0.0
                for g in range(f + 1):
                    t += whitening[j, f, g] / steepest * (x[g] / unit - mean[j, g] / unit)
                a[j] += t * t
            least = min(least, a[j])
    for j in range(k):
        a[j] = constant[j] if a[j] == least else -np.inf


@njit(nogil=True, cache=True, error_model="numpy")
def rows(x, log_weight, mean, whitening, responsible):  # type: ignore[no-untyped-def]
    """Log-density of every observation and, if ``responsible``, (k, n) responsibilities.

    An observation so far away that every squared distance overflows gets log-density -inf and
    goes to the component whose whitened distance is smallest.
    """
    k, d = mean.shape
    n = x.shape[0]
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
    if responsible:
        a = np.empty(k)
        for i in range(n):
            if density[i] == -np.inf:
                _nearest(x[i], log_weight, mean, whitening, constant, a)
                top, share = -np.inf, 0.0
                for j in range(k):
                    top = max(top, a[j])
                for j in range(k):
                    r[j, i] = math.exp(a[j] - top)
                    share += r[j, i]
                for j in range(k):
                    r[j, i] /= share
    return density, r
