r"""Whether rows are further out than the normal distributions that were fitted to them.

Let :math:`m_{nk}` be the squared distance of row n from the mean of component k, in units of the
covariance of the rows that belong to it, with responsibilities :math:`r_{nk}`.  In d columns

.. math:: S = \sum_k \Big( \sum_n r_{nk} m_{nk}^2 - N_k d (d + 2) \Big)

is four times the derivative of the log-likelihood by :math:`1 / \nu`, where the components become t
distributions with :math:`\nu` degrees of freedom: no other test sees slightly heavier tails so
soon.  If the components are normal, S has expectation 0 and a variance of at most
:math:`8 d (d + 2) N`; for one component :math:`d (d + 2) + S / N` is Mardia's kurtosis.

The covariance is that of the rows, whatever the family, and the furthest row has to be further out
than chance would have it, so that a family that does not fit is not taken for heavy tails.

References
----------
Mardia (1970), Biometrika 57, 519-530.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bayesgmm.moments import Array, Parameters, from_responsibilities, scatter

_ROWS = 4096  # rows that are taken together
# Heavy: so many standard errors, and so many times the fourth moment of a normal distribution.
STRONG, LARGE = 5.0, 1.5


@dataclass(frozen=True)
class Tails:
    """How far out rows are.

    Parameters
    ----------
    kurtosis : float
        Mean of the squared squared distances, in units of that of a normal distribution.
    error : float
        Its standard error, if components are normal.
    row, component : int
        The row that is furthest out, and its component.
    distance : float
        How far, in standard deviations.
    usual : float
        Further out is the furthest of as many normal rows in one sample of a hundred.
    """

    kurtosis: float
    error: float
    row: int
    component: int
    distance: float
    usual: float

    @property
    def are_heavy(self) -> bool:
        """Whether the rows are further out than chance would have it, and by more than a little."""
        is_large = self.kurtosis > max(LARGE, 1.0 + STRONG * self.error)
        return is_large and self.distance > self.usual


def tails(x: Array, r: Array, weight: Array, about: Parameters) -> Tails | None:
    """Return how far out rows are; None if no component has enough to tell.

    Parameters
    ----------
    x : (n, d) array
        Complete rows.
    r : (n, k) array
        Their responsibilities.
    weight : (n,) array
        Observation weights, or shape (0,) when all are one.
    about : Parameters
        In the units of ``x``.
    """
    d = x.shape[1]
    count = weight @ r if len(weight) else r.sum(axis=0)
    enough = np.flatnonzero(count > 2.0 * (d + 2.0))
    moments = from_responsibilities(x, r[:, enough], about.take(enough), weight)
    mean, spread = scatter(moments, about.take(enough))
    regular = _are_regular(spread)
    enough, mean, spread = enough[regular], mean[regular], spread[regular]
    if not len(enough):
        return None
    own = Parameters(about.weight[enough], mean, spread / count[enough, None, None])
    fourth, far = 0.0, (0.0, 0, 0)
    for begin in range(0, len(x), _ROWS):
        part = x[begin : begin + _ROWS]
        w = weight[begin : begin + _ROWS] if len(weight) else np.ones(len(part))
        for j, m, whitening in zip(enough, own.mean, own.whitening, strict=True):
            square = (((part - m) @ whitening.T) ** 2).sum(axis=1)
            share = r[begin : begin + _ROWS, j]
            fourth += float((w * share) @ square**2)
            furthest = int(np.argmax(np.where((share > 0.5) & (w > 0), square, 0.0)))
            far = max(far, (float(square[furthest]), begin + furthest, int(j)))
    total = float(count[enough].sum())
    normal = d * (d + 2.0)
    return Tails(
        fourth / (total * normal),
        float(np.sqrt(8.0 / (normal * total))),
        far[1],
        far[2],
        float(np.sqrt(far[0])),
        float(np.sqrt(chdtri(d, 0.01 / total))),
    )


def _are_regular(spread: Array) -> NDArray[np.bool_]:
    """Which matrices (k, d, d) have an inverse with digits; those of diagonal families need not."""
    with np.errstate(all="ignore"):
        sd = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
        correlation = spread / sd[:, :, None] / sd[:, None, :]
    known = np.isfinite(correlation).all(axis=(1, 2))
    correlation[~known] = 0.0
    return known & (np.linalg.eigvalsh(correlation)[:, 0] > 1e-10)
