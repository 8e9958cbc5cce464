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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bayesgmm.groups import Group, row_blocks
from bayesgmm.moments import Array, Moments, Parameters, from_responsibilities, scatter

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


def tails(groups: Sequence[Group], about: Parameters) -> Tails | None:
    """Return how far out complete rows are; None if no component has enough to tell.

    Parameters
    ----------
    groups : sequence of Group
    about : Parameters
        In the units of the groups.
    """
    complete, d = [group for group in groups if group.observed.all()], about.d
    every: Moments | None = None
    for block in row_blocks(complete, about):
        r = block.responsibility[:, : about.k]  # not noise
        sums = from_responsibilities(block.group.x, r, about, block.group.weight)
        every = sums if every is None else every + sums
    if every is None:
        return None
    count = every.mean_count
    enough = np.flatnonzero(count > 2.0 * (d + 2.0))
    sums = Moments.of_data(every.loglik, count[enough], every.first[enough], every.second[enough])
    mean, spread = scatter(sums, about.take(enough))
    regular = _are_regular(spread)
    enough, mean, spread = enough[regular], mean[regular], spread[regular]
    if not len(enough):
        return None
    own = Parameters(about.weight[enough], mean, spread / count[enough, None, None])
    fourth, far = 0.0, (0.0, 0, 0)
    for block in row_blocks(complete, about):
        x, w = block.group.x, block.group.weight
        if not len(w):
            w = np.ones(len(x))
        for j, m, whitening in zip(enough, own.mean, own.whitening, strict=True):
            square = (((x - m) @ whitening.T) ** 2).sum(axis=1)
            share = block.responsibility[:, j]
            fourth += float((w * share) @ square**2)
            furthest = int(np.argmax(np.where((share > 0.5) & (w > 0), square, 0.0)))
            if square[furthest] > far[0]:
                place = block.place
                row = place.start + furthest if isinstance(place, slice) else place[furthest]
                far = (float(square[furthest]), int(row), int(j))
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
