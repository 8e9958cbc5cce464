r"""The copies of a posterior, and the region that holds one of each.

A mixture's density does not change when components are numbered otherwise (those of which the same
is known: all, mostly), nor, in the coordinates of EVE, VVE, EEV and VEV, when axes exchange places
or signs.  So the posterior is a sum of equal copies, K! for the labels, and

.. math:: d! \, 2^{(d-1) m}

for m sets of axes (one, or one for each component; of orientations that are kept, half of the
signs).  Every point has one copy in the *region*: the labels that `labels.align` gives it, and the
axes nearest to the pivot's.  The integral over everything is the number of copies times that over
the region, whether or not a sampler has seen other copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln

from bayesgmm.covariance import Covariance
from bayesgmm.labels import Alignment, Labels, align, apply
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.target.density import Target
from bayesgmm.tree import DIMS, components

Flags = NDArray[np.bool_]


def log_copies_of_axes(family: Covariance, k: int, d: int) -> float:
    """Return the logarithm of how many times a family's coordinates hold the same covariances."""
    if not family.is_polar:
        return 0.0
    sets = 1 if family.orientation == "E" else k
    return math.lgamma(d + 1.0) + sets * (d - 1) * math.log(2.0)


def is_nearest(turn: Array) -> Flags:
    """Say which rotations (s, m, d, d) of m sets of axes leave each axis nearest to itself.

    That is, no common order of the axes has a larger sum of squared cosines, and no signs (an even
    number of them) have larger cosines; see `nearest`.
    """
    d = turn.shape[-1]
    square = (turn**2).sum(axis=1)
    # Where every axis is nearest to itself no order can be better.
    found = (square.argmax(axis=1) == np.arange(d)).all(axis=1)
    for s in np.flatnonzero(~found):
        found[s] = (linear_sum_assignment(-square[s])[1] == np.arange(d)).all()
    cosine = np.diagonal(turn, axis1=2, axis2=3)
    negative = cosine < 0.0
    least = np.abs(cosine).argmin(axis=2)
    is_least = np.take_along_axis(negative, least[..., None], axis=2)[..., 0]
    count = negative.sum(axis=2)
    return np.asarray(found & ((count == 0) | ((count == 1) & is_least)).all(axis=1))


def nearest(turn: Array) -> tuple[NDArray[np.intp], Array]:
    """Return the order and signs of axes under which rotations (m, d, d) are nearest to none.

    Returns
    -------
    (d,) integer array
    (m, d) array
        1 or -1, of the axes in that order; the determinant of the result is 1.
    """
    order = linear_sum_assignment(-(turn**2).sum(axis=0))[1]
    turn = turn[:, :, order]
    cosine = np.diagonal(turn, axis1=1, axis2=2)
    sign = np.where(cosine < 0.0, -1.0, 1.0)
    is_odd = np.linalg.det(turn * sign[:, None, :]) < 0.0
    least = np.abs(cosine).argmin(axis=1)
    sign[is_odd, least[is_odd]] *= -1.0
    return order, sign


@dataclass(frozen=True, eq=False)
class Region:
    """One copy of a posterior's space: that of the pivot.

    Parameters
    ----------
    target : Target
    pivot : Parameters
    kinds : (k,) integer array, optional
        Components that may have each other's labels have the same number; see `labels.align`.
    """

    target: Target
    pivot: Parameters
    kinds: Labels | None = None

    @property
    def log_copies(self) -> float:
        """Logarithm of the number of copies."""
        chart = self.target.space.chart
        alike = np.bincount(np.zeros(chart.k, int) if self.kinds is None else self.kinds)
        labels = float(gammaln(alike + 1.0).sum())
        return labels + log_copies_of_axes(chart.family, chart.k, chart.d)

    def holds(self, points: Array) -> Flags:
        """Say which unconstrained points (s, size) are in the region."""
        found = self.target.parameters(points)
        labels = self._labels(found)
        inside = (labels.permutation == np.arange(self.pivot.k)).all(axis=1)
        inside &= labels.margin > 0.0
        if self.target.space.chart.family.is_polar:
            inside &= is_nearest(self._turns(points))
        return np.asarray(inside)

    def points(self, draws: dict[str, Array]) -> Array:
        """Return the copy in the region of draws, arrays (s, ...) by name, as points (s, size)."""
        order = self._labels(draws).permutation
        aligned = draws | {name: apply(order, draws[name]) for name in DIMS}
        space = self.target.space
        level = 0.0 if space.region is None else -space.region.log_volume
        found = []
        for s in range(len(order)):
            one = components({name: aligned[name][s] for name in DIMS})
            noise = Noise(float(aligned[NOISE][s]), level) if space.is_noisy else None
            found.append(space.point(replace(one, noise=noise)))
        points = np.array(found)
        return self._turned(points) if space.chart.family.is_polar else points

    def _labels(self, draws: dict[str, Array]) -> Alignment:
        weight, mean, covariance = (draws[name] for name in DIMS)
        return align(weight, mean, covariance, self.pivot, self.kinds)

    # Axes

    @cached_property
    def _axes(self) -> Array:
        """The pivot's sets of axes (m, d, d)."""
        space = self.target.space
        return space.chart.axes(space.point(self.pivot)[space.covariances])

    def _turns(self, points: Array) -> Array:
        space = self.target.space
        axes = space.chart.axes(points[:, space.covariances])
        return np.asarray(np.swapaxes(self._axes, 1, 2) @ axes)

    def _turned(self, points: Array) -> Array:
        chart, place = self.target.space.chart, self.target.space.covariances
        points = points.copy()
        p = chart.spectrum.shape[1]
        for point, turn in zip(points, self._turns(points), strict=True):
            order, sign = nearest(turn)
            vector = point[place]
            log_s = (chart.spectrum @ vector[:p]).reshape(chart.k, chart.d)[:, order]
            axes = self._axes @ (turn[:, :, order] * sign[:, None, :])
            point[place] = np.concatenate(
                [chart.spectrum_inverse @ log_s.ravel(), chart.skew(axes).ravel()]
            )
        return points
