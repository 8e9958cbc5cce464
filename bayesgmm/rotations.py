"""Plane rotations to common axes, in Numba: Python would take longer than the passes over data.

References
----------
Flury & Gautschi (1986), SIAM J. Sci. Stat. Comput. 7, 169-184.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def plane_rotations(turned, precision):  # type: ignore[no-untyped-def]
    """One round over all pairs of axes; each angle minimises sum_k tr(W_k D L_k^-1 D') exactly.

    Parameters
    ----------
    turned : (k, d, d) array
        Scatters in the frame of the present axes.
    precision : (k, d) array
        Diagonals of L_k^-1.

    Returns
    -------
    (d, d) array
        The rotation from the present axes.
    """
    k, d = precision.shape
    turned = turned.copy()
    rotation = np.eye(d)
    for i in range(d - 1):
        for j in range(i + 1, d):
            p, q = 0.0, 0.0
            for m in range(k):
                gap = precision[m, i] - precision[m, j]
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
                a, b = rotation[f, i], rotation[f, j]
                rotation[f, i], rotation[f, j] = c * a + s * b, c * b - s * a
    return rotation
