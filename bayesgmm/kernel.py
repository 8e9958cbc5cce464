"""One pass over the data in Numba: densities, responsibilities, log-likelihood and all sums.

Observations are taken in blocks that fit in cache, and every inner loop runs along them, so that
it vectorises.  No fast-math flag is used: the order of every addition is written down here, which
makes the bits the same for any number of threads, in any process, inside and outside of PyTensor.
Bump `VERSION` with any change of the code: it is part of PyTensor's key for cached functions.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

VERSION = 4
LANES = 64  # independent partial sums per reduction: enough for the adders to stay busy
CHUNK = 1 << 15  # observations per unit of work for a thread; fixed, so that threads change no bit
LOG_2PI = math.log(2.0 * math.pi)
_FLOOR = -1e300  # a log-density that underflows stays finite, hence comparable


@intrinsic
def _fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c rounded once; unlike the `contract` flag it never depends on the optimiser."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


@intrinsic
def _bits_to_float(typingctx, x):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@njit(error_model="numpy")
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0 to about 1 ulp; exactly 0 below -708, where it would be denormal."""
    y = max(x, -708.0)
    n = math.floor(_fma(y, 1.4426950408889634, 0.5))
    r = _fma(n, -0.6931471803691238, y)
    r = _fma(n, -1.9082149292705877e-10, r)
    p = _fma(r, 1.0 / 6227020800.0, 1.0 / 479001600.0)
    p = _fma(p, r, 1.0 / 39916800.0)
    p = _fma(p, r, 1.0 / 3628800.0)
    p = _fma(p, r, 1.0 / 362880.0)
    p = _fma(p, r, 1.0 / 40320.0)
    p = _fma(p, r, 1.0 / 5040.0)
    p = _fma(p, r, 1.0 / 720.0)
    p = _fma(p, r, 1.0 / 120.0)
    p = _fma(p, r, 1.0 / 24.0)
    p = _fma(p, r, 1.0 / 6.0)
    p = _fma(p, r, 0.5)
    p = _fma(p, r, 1.0)
    p = _fma(p, r, 1.0)
    value = p * _bits_to_float((np.int64(n) + 1023) << 52)
    return value if x > -708.0 else 0.0


@njit(error_model="numpy")
def _fold(lanes):  # type: ignore[no-untyped-def]
    """Add the lanes up by halving, in place."""
    half = LANES // 2
    while half > 0:
        for i in range(half):
            lanes[i] += lanes[half + i]
        half //= 2
    return lanes[0]


@njit(error_model="numpy")
def _total(a, size, lanes):  # type: ignore[no-untyped-def]
    lanes[:] = 0.0
    for b in range(0, size, LANES):
        for i in range(LANES):
            lanes[i] += a[b + i]
    return _fold(lanes)


@njit(error_model="numpy")
def _dot(a, c, size, lanes):  # type: ignore[no-untyped-def]
    lanes[:] = 0.0
    for b in range(0, size, LANES):
        for i in range(LANES):
            lanes[i] = _fma(a[b + i], c[b + i], lanes[i])
    return _fold(lanes)


@njit(error_model="numpy")
def _block_size(k, d):  # type: ignore[no-untyped-def]
    """Observations per block: the whitened residuals of a block should stay in the L2 cache."""
    return 256 if k * d <= 128 else (128 if k * d <= 512 else 64)


@njit(error_model="numpy")
def _whiten_block(x, size, diagonal, mean, whitening, constant, y, z, a):  # type: ignore[no-untyped-def]
    """z = W (x - mean) and a = constant - |z|^2 / 2 for one component and one block."""
    d = mean.shape[0]
    for i in range(size):
        a[i] = 0.0
    for f in range(d):
        row, m = x[f], mean[f]
        target = z[f] if diagonal else y[f]
        scale = whitening[f, f] if diagonal else 1.0
        for i in range(size):
            target[i] = (row[i] - m) * scale
    for f in range(d):
        t = z[f]
        if not diagonal:
            w = whitening[f, 0]
            u = y[0]
            for i in range(size):
                t[i] = w * u[i]
            for g in range(1, f + 1):
                w = whitening[f, g]
                u = y[g]
                for i in range(size):
                    t[i] = _fma(w, u[i], t[i])
        for i in range(size):
            a[i] = _fma(t[i], t[i], a[i])
    for i in range(size):
        a[i] = constant - 0.5 * a[i]


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


@njit(error_model="numpy")
def _log_product(s, size, lanes):  # type: ignore[no-untyped-def]
    """Sum of log(s), 1 <= s <= k, with one logarithm for every eight lanes of products."""
    lanes[:] = 1.0
    for b in range(0, size, LANES):
        for i in range(LANES):
            lanes[i] *= s[b + i]
    for i in range(LANES // 2):
        lanes[i] *= lanes[LANES // 2 + i]
    total = 0.0
    for i in range(LANES // 2):
        total += math.log(lanes[i])
    return total


_pointer = types.CPointer(types.float64)
_ACCUMULATE = types.void(*[types.int64] * 7, *[_pointer] * 6)


@cfunc(_ACCUMULATE, cache=True, error_model="numpy")
def _accumulate(  # type: ignore[no-untyped-def]
    n,
    d,
    k,
    n_weight,
    begin,
    end,
    diagonal,
    x_,
    weight_,
    log_weight_,
    mean_,
    whitening_,
    out,
):
    """Write loglik, sum r (k), sum r z (k, d) and the lower triangles of sum r z z' to ``out``."""
    x = carray(x_, (n, d))
    weight = carray(weight_, (n_weight,))
    log_weight = carray(log_weight_, (k,))
    mean = carray(mean_, (k, d))
    whitening = carray(whitening_, (k, d, d))
    sums = carray(out, (1 + k + k * d + k * d * d,))
    sums[:] = 0.0
    zeroth = sums[1 : 1 + k]
    first = sums[1 + k : 1 + k + k * d].reshape((k, d))
    second = sums[1 + k + k * d :].reshape((k, d, d))
    block = _block_size(k, d)
    part = np.empty((d, block))
    z = np.empty((k, d, block))
    y = np.empty((d, block))
    a = np.empty((k, block))
    top = np.empty(block)
    s = np.empty(block)
    lanes = np.empty(LANES)
    constant = constants(log_weight, whitening)
    weighted = n_weight > 0
    for start in range(begin, end, block):
        n = min(block, end - start)
        size = (n + LANES - 1) // LANES * LANES  # padded with repeats that get no weight
        for i in range(n):
            for f in range(d):
                part[f, i] = x[start + i, f]
        for i in range(n, size):
            for f in range(d):
                part[f, i] = x[start, f]
        for j in range(k):
            _whiten_block(part, size, diagonal, mean[j], whitening[j], constant[j], y, z[j], a[j])
        for i in range(size):
            top[i] = _FLOOR
        for j in range(k):
            row = a[j]
            for i in range(size):
                top[i] = max(top[i], row[i])
        for i in range(size):
            s[i] = 0.0
        for j in range(k):
            row = a[j]
            for i in range(size):
                row[i] = _exp(row[i] - top[i])
                s[i] += row[i]
        if weighted:
            for i in range(n):
                out[0] += weight[start + i] * (top[i] + math.log(s[i]))
                s[i] = weight[start + i] / s[i]
            for i in range(n, size):
                s[i] = 0.0
        else:
            for i in range(n, size):
                top[i] = 0.0
                s[i] = 1.0
            out[0] += _total(top, size, lanes) + _log_product(s, size, lanes)
            for i in range(size):
                s[i] = 1.0 / s[i]
            for i in range(n, size):
                s[i] = 0.0
        for j in range(k):
            r = a[j]
            for i in range(size):
                r[i] *= s[i]
            zeroth[j] += _total(r, size, lanes)
            for f in range(d):
                zf = z[j, f]
                first[j, f] += _dot(r, zf, size, lanes)
                for i in range(size):
                    y[0, i] = r[i] * zf[i]
                if diagonal:
                    second[j, f, f] += _dot(y[0], zf, size, lanes)
                else:
                    for g in range(f + 1):
                        second[j, f, g] += _dot(y[0], z[j, g], size, lanes)


# The one big function is compiled once, and everything else (EM's passes, PyTensor's graphs,
# nutpie's density) calls it by a symbol: linked in, as Numba does it, it would be optimised anew
# in each of them.
_NAME = f"bayesgmm_accumulate_v{VERSION}"
binding.add_symbol(_NAME, _accumulate.address)
_accumulate_symbol = types.ExternalFunction(_NAME, _ACCUMULATE)


@njit(nogil=True, cache=True, error_model="numpy")
def accumulate(x, weight, begin, end, diagonal, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """Sums over the observations begin..end.

    Parameters
    ----------
    x : (n, d) array
        Data.
    weight : (n,) array, or (0,) array for unit weights
        Observation weights.
    begin, end : int
    diagonal : bool
        Whether the whitening is diagonal; then only its diagonal is read, and only the diagonal
        of the second moments is filled.
    log_weight : (k,) array
    mean : (k, d) array
    whitening : (k, d, d) array
        Lower triangular W with W'W the inverse covariance.

    Returns
    -------
    float, (k,), (k, d), (k, d, d)
        Log-likelihood and sums of r, r z, r z z' (both triangles).
    """
    k, d = mean.shape
    sums = np.empty(1 + k + k * d + k * d * d)
    # Pointers know no strides: anything not C-contiguous is copied (the data never are).
    x = np.ascontiguousarray(x)
    weight = np.ascontiguousarray(weight)
    log_weight = np.ascontiguousarray(log_weight)
    mean = np.ascontiguousarray(mean)
    whitening = np.ascontiguousarray(whitening)
    _accumulate_symbol(
        *(x.shape[0], d, k, weight.shape[0], begin, end, np.int64(diagonal)),
        *(x.ctypes, weight.ctypes, log_weight.ctypes, mean.ctypes, whitening.ctypes, sums.ctypes),
    )
    second = sums[1 + k + k * d :].copy().reshape((k, d, d))
    for j in range(k):
        for f in range(d):
            for g in range(f):
                second[j, g, f] = second[j, f, g]
    return (
        sums[0],
        sums[1 : 1 + k].copy(),
        sums[1 + k : 1 + k + k * d].copy().reshape((k, d)),
        second,
    )


@njit(nogil=True, cache=True, error_model="numpy")
def accumulate_all(x, weight, diagonal, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """`accumulate` over all observations, chunk by chunk, added in the order of the threads'."""
    n = x.shape[0]
    loglik, zeroth, first, second = accumulate(
        x, weight, 0, min(n, CHUNK), diagonal, log_weight, mean, whitening
    )
    for begin in range(CHUNK, n, CHUNK):
        part, n0, n1, n2 = accumulate(
            x, weight, begin, min(n, begin + CHUNK), diagonal, log_weight, mean, whitening
        )
        loglik += part
        zeroth += n0
        first += n1
        second += n2
    return loglik, zeroth, first, second


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
    constant = constants(log_weight, whitening)
    a = np.empty(k)
    for i in range(n):
        top = -np.inf
        for j in range(k):
            square = 0.0
            for f in range(d):
                t = 0.0
                for g in range(f + 1):
                    t += whitening[j, f, g] * (x[i, g] - mean[j, g])
                square += t * t
            a[j] = constant[j] - 0.5 * square if square < np.inf else -np.inf
            top = max(top, a[j])
        density[i] = top
        if top == -np.inf:
            _nearest(x[i], log_weight, mean, whitening, constant, a)
            top = _FLOOR
            for j in range(k):
                top = max(top, a[j])
        total = 0.0
        for j in range(k):
            a[j] = math.exp(a[j] - top)
            total += a[j]
        density[i] += math.log(total)
        if responsible:
            for j in range(k):
                r[j, i] = a[j] / total
    return density, r
