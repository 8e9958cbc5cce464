"""Common axes by plane rotations, in Numba: Python would take longer than the passes over data.

References
----------
Flury & Gautschi (1986), SIAM J. Sci. Stat. Comput. 7, 169-184.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def rotate(turned, variance, axes):  # type: ignore[no-untyped-def]
    """One round over all pairs of axes; each angle minimises sum_k tr(W_k D L_k^-1 D') exactly.

    Parameters
    ----------
    turned : (k, d, d) array
        Scatters in the frame of the axes; turned with them.
    variance : (k, d) array
        Diagonals of L_k.
    axes : (d, d) array
    """
    k, d = variance.shape
    for i in range(d - 1):
        for j in range(i + 1, d):
            p, q = 0.0, 0.0
            for m in range(k):
                gap = 1.0 / variance[m, i] - 1.0 / variance[m, j]
                p += 0.5 * gap * (turned[m, i, i] - turned[m, j, j])
                q += gap * turned[m, i, j]
            angle = 0.5 * math.atan2(-q, -p)
            c, s = math.cos(angle), math.sin(angle)
            for m in range(k):
                for f in range(d):  # columns
                    a, b = turned[m, f, i], turned[m, f, j]
                    turned[m, f, i], turned[m, f, j] = c * a + s * b, c * b - s * a
                for f in range(d):  # rows
                    a, b = turned[m, i, f], turned[m, j, f]
                    turned[m, i, f], turned[m, j, f] = c * a + s * b, c * b - s * a
            for f in range(d):
                a, b = axes[f, i], axes[f, j]
                axes[f, i], axes[f, j] = c * a + s * b, c * b - s * a


@njit(nogil=True, cache=True, error_model="numpy")
def ascend(count, turned, axes, equal_volume):  # type: ignore[no-untyped-def]
    """Raise Q of `covariance.maximise` to its maximum near given axes, which are turned in place.

    Parameters
    ----------
    count : (k,) array
    turned : (k, d, d) array
        Scatters in the frame of the axes; turned with them.
    axes : (d, d) array
    equal_volume : bool
        Whether the determinants are one for all (EVE) or each component has its own (VVE).

    Returns
    -------
    (k, d) array, float
        Variances along the axes, and Q; -inf where that is not a number.
    """
    k, d = turned.shape[:2]
    variance, spread = np.ones((k, d)), np.ones((k, d))
    value, total = -np.inf, count.sum()
    for _ in range(1000):
        root = 0.0
        for m in range(k):
            level = 0.0
            for f in range(d):
                spread[m, f] = turned[m, f, f]
                level += math.log(spread[m, f])
            level = math.exp(level / d)
            root += level
            for f in range(d):
                variance[m, f] = spread[m, f] / (level if equal_volume else count[m])
        new = 0.0
        for m in range(k):
            for f in range(d):
                if equal_volume:
                    variance[m, f] *= root / total
                new -= 0.5 * (count[m] * math.log(variance[m, f]) + spread[m, f] / variance[m, f])
        if not new > value + 1e-14 * abs(new):
            break
        value = new
        rotate(turned, variance, axes)
    return variance, value
