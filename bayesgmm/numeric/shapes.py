"""One shape with own volumes, in Numba: Python would take longer than the passes over data.

References
----------
Celeux & Govaert (1995), Pattern Recognition 28, 781-793, section 4 (VEI, VEE, VEV).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bayesgmm.numeric.kernel import factorise


@njit(nogil=True, cache=True, error_model="numpy")
def alternate(count, scatter, log_volume, diagonal):  # type: ignore[no-untyped-def]
    """Alternate C | lambda_k and lambda_k | C; both are exact, so Q of `covariance.maximise` rises.

    Parameters
    ----------
    count : (k,) array
    scatter : (k, d, d) array
        In the frame where the shape is common.
    log_volume : (k,) array
        Where to start; moved in place.
    diagonal : bool
        Whether all scatters are.

    Returns
    -------
    (d, d) array, bool
        C, of determinant 1, and whether all matrices on the way were positive definite.
    """
    k, d = scatter.shape[:2]
    pooled = np.empty((1, d, d))
    for _ in range(1000):
        pooled[:] = 0.0
        for j in range(k):
            pooled[0] += scatter[j] * math.exp(-log_volume[j])
        whitening, is_definite = factorise(pooled, diagonal)
        if not is_definite:
            return pooled[0], False
        w = whitening[0]
        log_root = 0.0  # of the determinant, d-th root
        for f in range(d):
            log_root -= 2.0 * math.log(w[f, f]) / d
        moved = 0.0
        for j in range(k):
            trace = 0.0  # of scatter / pooled
            for f in range(d):
                if diagonal:
                    trace += w[f, f] * scatter[j, f, f] * w[f, f]
                    continue
                for g in range(f + 1):
                    row = 0.0
                    for h in range(f + 1):
                        row += scatter[j, g, h] * w[f, h]
                    trace += w[f, g] * row
            new = log_root + math.log(trace / (d * count[j]))
            moved = max(moved, abs(new - log_volume[j]))
            log_volume[j] = new
        if not moved > 1e-14 * d:
            break
    return pooled[0] * math.exp(-log_root), True
