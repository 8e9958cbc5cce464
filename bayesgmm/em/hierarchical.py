r"""Model-based agglomeration: partitions that start EM where the data are dense.

Ward's method merges the two groups that lower the classification likelihood of equal spheres (EII)
least; SciPy has it.  From its cut at some more groups than components,

.. math:: \sum_j n_j \log \left| W_j / n_j + \epsilon I \right|

is lowered further by the best merges, one by one: the classification likelihood of unequal
ellipsoids (VVV), with :math:`\epsilon` against the groups that have too few rows for a matrix.

References
----------
Banfield & Raftery (1993), Biometrics 49, 803-821. Fraley (1998), SIAM J. Sci. Comput. 20, 270-281.
Scrucca & Raftery (2015), Adv. Data Anal. Classif. 9, 447-460 (scaled principal components).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from bayesgmm.moments import Array

Labels = NDArray[np.intp]
MOST_ROWS = 2000  # Ward's method looks at all pairs
_GROUPS_PER_COMPONENT, _MOST_GROUPS = 10, 120
_RIDGE = 1e-2  # of the unit variance


def sphered(x: Array, mean: Array, covariance: Array) -> Array:
    """Return principal components with unit variance: what affine maps leave as it is."""
    value, axes = np.linalg.eigh(covariance)
    kept = value > 1e-12 * value[-1]
    return np.asarray((x - mean) @ (axes[:, kept] / np.sqrt(value[kept])))


def ward(rows: Array, k: int) -> Labels:
    """Return labels (n,) of at most ``k`` groups by Ward's method."""
    if k >= len(rows):
        return np.arange(len(rows))
    return np.asarray(fcluster(linkage(rows, "ward"), k, "maxclust") - 1, dtype=np.intp)


def ellipsoids(rows: Array, k: int) -> Labels:
    """Return labels (n,) of ``k`` groups by Ward's method, then by merges of ellipsoids.

    Parameters
    ----------
    rows : (n, d) array
        With unit variances, e.g. `sphered`.
    k : int
    """
    n, d = rows.shape
    most = min(_MOST_GROUPS, _GROUPS_PER_COMPONENT * k, max(k, n // (d + 1)))
    labels = ward(rows, most)
    groups = [rows[labels == g] for g in range(labels.max() + 1)]
    count = np.array([float(len(g)) for g in groups])
    mean = np.array([g.mean(axis=0) for g in groups])
    scatter = np.array([(g - m).T @ (g - m) for g, m in zip(groups, mean, strict=True)])
    eye = _RIDGE * np.eye(d)

    def cost(count: Array, scatter: Array) -> Array:
        return np.asarray(count * np.linalg.slogdet(scatter / count[..., None, None] + eye)[1])

    def merged(j: int, others: Labels) -> tuple[Array, Array]:
        total = count[j] + count[others]
        gap = mean[others] - mean[j]
        share = (count[j] * count[others] / total)[:, None, None]
        return total, scatter[j] + scatter[others] + share * gap[:, :, None] * gap[:, None, :]

    alone = cost(count, scatter)
    rise = np.full((len(groups), len(groups)), np.inf)
    for j in range(1, len(groups)):
        others = np.arange(j)
        rise[j, :j] = cost(*merged(j, others)) - alone[j] - alone[others]
    alive = np.ones(len(groups), dtype=bool)
    while alive.sum() > k:
        i, j = divmod(int(np.argmin(rise)), len(rise))
        total, joint = merged(i, np.array([j]))
        mean[j] = (count[i] * mean[i] + count[j] * mean[j]) / total[0]
        count[j], scatter[j] = total[0], joint[0]
        alone[j] = cost(count[j], scatter[j])
        alive[i] = False
        rise[i], rise[:, i] = np.inf, np.inf
        labels[labels == i] = j
        others = np.flatnonzero(alive & (np.arange(len(alive)) != j))
        new = cost(*merged(j, others)) - alone[j] - alone[others]
        low = others < j
        rise[j, others[low]] = new[low]
        rise[others[~low], j] = new[~low]
    return np.unique(labels, return_inverse=True)[1].astype(np.intp)
