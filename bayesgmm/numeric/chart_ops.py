"""Weights and covariances from unconstrained coordinates, and gradients back, in Numba.

`target.space` and `target.chart` say what the coordinates are, and hold the constants.  Each map is
followed by its pullback.  They are many and small so that the log-density of a specification
compiles no more than it needs: what takes Numba its time is their number of lines.
`kernel.VERSION` covers this file too.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bayesgmm.numeric.kernel import VERSION

# As in `kernel_ops`: Numba's cache does not see that what is called here has changed.
assert VERSION == 10, "kernel.VERSION was raised: raise it here, too"


@njit(nogil=True, cache=True, error_model="numpy")
def log_weights(point, n_shares, source, base):  # type: ignore[no-untyped-def]
    """Log-weights, and the logarithms of the shares that they are made of.

    Shares are the softmax of the point's first coordinates and minus their sum.  ``source`` is
    which share a weight has, -1 for none, of what ``base`` is the logarithm of.
    """
    share = np.empty(n_shares)
    last, top, total = 0.0, -np.inf, 0.0
    for i in range(n_shares):
        share[i] = point[i] if i < n_shares - 1 else last
        last -= share[i]
        top = max(top, share[i])
    for i in range(n_shares):
        total += math.exp(share[i] - top)
    for i in range(n_shares):
        share[i] -= top + math.log(total)
    log_weight = np.empty(len(source))
    for j in range(len(source)):
        i = int(source[j])
        log_weight[j] = base[j] + share[i] if i >= 0 else base[j]
    return log_weight, share


@njit(nogil=True, cache=True, error_model="numpy")
def pull_through_log_weights(by_log_weight, by_share, share, source):  # type: ignore[no-untyped-def]
    """Gradient by the coordinates, one less than shares, from those by both that were returned."""
    n_shares = len(share)
    slope, total = np.empty(n_shares), 0.0
    for i in range(n_shares):
        slope[i] = by_share[i]
    for j in range(len(source)):
        if source[j] >= 0.0:
            slope[int(source[j])] += by_log_weight[j]
    for i in range(n_shares):
        total += slope[i]
    for i in range(n_shares):
        slope[i] -= math.exp(share[i]) * total
    for i in range(n_shares - 1):
        slope[i] -= slope[n_shares - 1]
    return slope


@njit(nogil=True, cache=True, error_model="numpy")
def elements(vector, spectrum, below, d):  # type: ignore[no-untyped-def]
    """S (k, d), and M (k, d, d) with a unit diagonal and 0 above: log s and M are linear."""
    k, p = len(spectrum) // d, spectrum.shape[1]
    s, factor = np.empty((k, d)), np.zeros((k, d, d))
    row = 0
    for j in range(k):
        for f in range(d):
            t = 0.0
            for i in range(p):
                t += spectrum[j * d + f, i] * vector[i]
            s[j, f] = math.exp(t)
            factor[j, f, f] = 1.0
            for g in range(f):
                if len(below) > 0:
                    for i in range(below.shape[1]):
                        factor[j, f, g] += below[row, i] * vector[p + i]
                    row += 1
    return s, factor


@njit(nogil=True, cache=True, error_model="numpy")
def pull_through_elements(by_log_s, by_factor, spectrum, below):  # type: ignore[no-untyped-def]
    """Gradient by the vector, from those by log s and by M below its diagonal."""
    k, d = by_log_s.shape
    p = spectrum.shape[1]
    out = np.zeros(p + below.shape[1])
    row = 0
    for j in range(k):
        for f in range(d):
            for i in range(p):
                out[i] += by_log_s[j, f] * spectrum[j * d + f, i]
            for g in range(f):
                if len(below) > 0:
                    for i in range(below.shape[1]):
                        out[p + i] += by_factor[j, f, g] * below[row, i]
                    row += 1
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def turn(factor, n_free):  # type: ignore[no-untyped-def]
    """Make of every M the rotation (I - A)(I + A)^-1, in place: below its diagonal is A's, skew.

    Returns the log-density of the uniform distribution of the rotations by the ``n_free`` elements
    of A that are free, up to a constant.
    """
    k, d = len(factor), factor.shape[1]
    log_volume = 0.0
    for j in range(k):
        m = factor[j]
        for f in range(d):
            for g in range(f):
                m[g, f] = -m[f, g]
        log_det = 0.0
        for i in range(d):  # invert I + A: no pivot is below 1
            pivot = m[i, i]
            log_det += math.log(pivot)
            m[i, i] = 1.0
            for g in range(d):
                m[i, g] /= pivot
            for f in range(d):
                if f != i:
                    t = m[f, i]
                    m[f, i] = 0.0
                    for g in range(d):
                        m[f, g] -= t * m[i, g]
        if j * (d * (d - 1) // 2) < n_free:  # each that is free, once
            log_volume -= (d - 1) * log_det
        for f in range(d):
            for g in range(d):
                m[f, g] = 2.0 * m[f, g] - (1.0 if f == g else 0.0)
    return log_volume


@njit(nogil=True, cache=True, error_model="numpy")
def pull_through_turn(factor, unit, slope, n_free, by_volume):  # type: ignore[no-untyped-def]
    """Turn the gradients by rotations D into those by A, below the diagonal; in place.

    ``factor`` is D with its rows times ``unit``.  With B = (I + A)^-1 = (D + I) / 2:
    dD = -2 B dA B, and d log det(I + A) = tr(B dA).
    """
    k, d = len(factor), len(unit)
    b, half, inner = np.empty((d, d)), np.empty((d, d)), np.empty((d, d))
    for j in range(k):
        rate = (d - 1) * by_volume if j * (d * (d - 1) // 2) < n_free else 0.0
        for f in range(d):
            for g in range(d):
                b[f, g] = 0.5 * (factor[j, f, g] / unit[f] + (1.0 if f == g else 0.0))
        for f in range(d):
            for g in range(d):
                half[f, g] = 0.0
                for h in range(d):
                    half[f, g] += b[h, f] * slope[j, h, g]
        for f in range(d):
            for g in range(d):
                inner[f, g] = 0.0
                for h in range(d):
                    inner[f, g] += half[f, h] * b[g, h]
        for f in range(d):
            for g in range(f):
                turned = 2.0 * (inner[g, f] - inner[f, g])
                slope[j, f, g] = turned + rate * (b[f, g] - b[g, f])


@njit(nogil=True, cache=True, error_model="numpy")
def covariances(factor, unit, s):  # type: ignore[no-untyped-def]
    """Covariances U M diag(s) M' U; the rows of M are multiplied by U in place."""
    k, d = s.shape
    covariance = np.zeros((k, d, d))
    for j in range(k):
        for f in range(d):
            for g in range(d):
                factor[j, f, g] *= unit[f]
        for f in range(d):
            for g in range(f + 1):
                for h in range(d):
                    covariance[j, f, g] += factor[j, f, h] * s[j, h] * factor[j, g, h]
                covariance[j, g, f] = covariance[j, f, g]
    return covariance


@njit(nogil=True, cache=True, error_model="numpy")
def pull_through_covariances(slope, factor, unit, s):  # type: ignore[no-untyped-def]
    """Gradients (k, d) by log s and (k, d, d) by M, of U M: ``factor`` as it was left."""
    k, d = s.shape
    by_log_s, by_factor = np.zeros((k, d)), np.zeros((k, d, d))
    for j in range(k):
        for f in range(d):
            for h in range(d):
                t = 0.0
                for g in range(d):
                    t += (slope[j, f, g] + slope[j, g, f]) * factor[j, g, h]
                t *= s[j, h]
                by_log_s[j, h] += 0.5 * factor[j, f, h] * t
                by_factor[j, f, h] = unit[f] * t
    return by_log_s, by_factor


@njit(nogil=True, cache=True, error_model="numpy")
def chart(vector, spectrum, below, unit, polar):  # type: ignore[no-untyped-def]
    """All from the vector: covariances, U M, s, and `turn`'s log-density, 0 if not ``polar``."""
    s, factor = elements(vector, spectrum, below, len(unit))
    log_volume = turn(factor, below.shape[1]) if polar else 0.0
    return covariances(factor, unit, s), factor, s, log_volume


@njit(nogil=True, cache=True, error_model="numpy")
def chart_pullback(vector, spectrum, below, unit, polar, slope, by_volume):  # type: ignore[no-untyped-def]
    """Gradient by the vector, from ``slope`` (k, d, d) by the covariances and one by the volume."""
    factor, s = chart(vector, spectrum, below, unit, polar)[1:3]
    by_log_s, by_factor = pull_through_covariances(slope, factor, unit, s)
    if polar:
        pull_through_turn(factor, unit, by_factor, below.shape[1], by_volume)
    return pull_through_elements(by_log_s, by_factor, spectrum, below)
