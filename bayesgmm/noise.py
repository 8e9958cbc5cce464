r"""The noise component: rows that belong to no cluster, uniform over the region of the data.

.. math:: p(x) = \frac{\pi_0}{V} + \sum_{k=1}^{K} \pi_k N(x; \mu_k, \Sigma_k), \qquad
          \pi_0 + \sum_k \pi_k = 1

V is the volume of a box around the data, along the columns or along their principal axes, whichever
is smaller, as in mclust; along the columns; or what the user says.  To the pass over the data the
noise is one more normal distribution, so wide that it is flat (`moments.Parameters.widened`): its
density is the same outside the box, so that rows which are far away are noise.

In a box along the columns, with sides :math:`[a_f, b_f]`, noise is uniform in any columns, given
the others, and of one column

.. math:: E(x_f) = \frac{a_f + b_f}{2}, \qquad \mathrm{Var}(x_f) = \frac{(b_f - a_f)^2}{12}.

References
----------
Banfield & Raftery (1993), Biometrics 49, 803-821. Fraley & Raftery (2002), J. Am. Statist. Assoc.
97, 611-631.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.streams import Rows, triangle

NOISE = "noise_weight"  # what a fit calls the weight of its noise
SHARE = 0.05  # with which the noise starts
# A start does without the rows that are the farthest from their neighbours: this share of them.
_ISOLATED, _NEIGHBOURS = 0.1, 5
_DEPENDENT = 1e-12  # singular value of standardised columns that is taken for rounding


@dataclass(frozen=True, eq=False)
class Region:
    """Where noise is.

    Parameters
    ----------
    log_volume : float
        In the units of the data.
    corner, edges : (d,) and (d, d) arrays, or None
        A corner of the box, and its edges in rows; None where only a volume was given.
    """

    log_volume: float
    corner: Array | None = None
    edges: Array | None = None

    @property
    def log_edges(self) -> Array | None:
        """(d,) logarithms of the box's sides, if it is along the columns."""
        if self.edges is None or np.any(self.edges != np.diag(np.diagonal(self.edges))):
            return None
        with np.errstate(divide="ignore"):
            return np.log(np.diagonal(self.edges))

    @property
    def mean(self) -> Array:
        """(d,): the centre of the box."""
        corner, edges = self._box()
        return np.asarray(corner + 0.5 * edges.sum(axis=0))

    @property
    def covariance(self) -> Array:
        """(d, d), of rows that are uniform over the box."""
        _, edges = self._box()
        return np.asarray(edges.T @ edges / 12.0)

    def of(self, columns: Sequence[int], d: int) -> Region:
        """Return where noise of d columns is in some of them, in this order.

        Raises
        ------
        ArgumentError
            If it is not uniform there: see `refuse_single_columns`.
        """
        kept = list(columns)
        if len(kept) < d:
            refuse_single_columns("fit", self)
        if self.corner is None or self.edges is None:
            return self
        is_along = self.log_edges is not None
        edges = self.edges[np.ix_(kept, kept)] if is_along else self.edges[:, kept]
        volume = self.log_volume
        if len(kept) < d:
            with np.errstate(divide="ignore"):
                volume = float(np.log(np.diagonal(edges)).sum())
        return Region(volume, self.corner[kept], edges)

    def below(self, x: Array, column: int) -> Array:
        """Return the distribution function of noise in a column of a box along the columns."""
        corner, edges = self._box()
        return np.asarray(np.clip((x - corner[column]) / edges[column, column], 0.0, 1.0))

    def _box(self) -> tuple[Array, Array]:
        if self.corner is None or self.edges is None:
            raise ArgumentError(
                "fit", "has a noise component of which the volume alone is known, not where it is"
            )
        return self.corner, self.edges

    def noise(self, weight: float) -> Noise:
        """Return noise of this region, in the units of the data."""
        edges = self.log_edges
        return Noise(weight, -self.log_volume, None if edges is None else tuple(edges.tolist()))

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return (n, d) rows, uniform over the box.

        Raises
        ------
        ArgumentError
            If only a volume was given.
        """
        corner, edges = self._box()
        return np.asarray(corner + rng.random((n, len(corner))) @ edges)

    def to_json(self) -> str:
        """Return the region as JSON; `from_json` gives it back."""
        box = None if self.corner is None or self.edges is None else self.corner.tolist()
        edges = None if self.edges is None else self.edges.tolist()
        return json.dumps({"log_volume": self.log_volume, "corner": box, "edges": edges})

    @staticmethod
    def from_json(text: str) -> Region:
        """Return the region that `to_json` wrote."""
        record = json.loads(text)
        corner, edges = (
            None if record[name] is None else np.array(record[name]) for name in ("corner", "edges")
        )
        return Region(record["log_volume"], corner, edges)


def refuse_single_columns(argument: str, region: Region) -> None:
    """Refuse noise that is not uniform in single columns.

    Raises
    ------
    ArgumentError
        Naming the argument, if only a volume was given, which says nothing of single columns, or
        the box is along principal axes, where noise in single columns is not uniform.
    """
    if region.corner is None:
        raise ArgumentError(
            argument,
            "has noise of a given volume, which says nothing of single columns; fit with "
            "noise='columns', whose box is along the columns",
        )
    if region.log_edges is None:
        raise ArgumentError(
            argument,
            "has noise in a box along principal axes, which is not uniform in single columns; fit "
            "with noise='columns', whose box is along the columns",
        )


def region_around(rows: Rows, center: Array, *, along_columns: bool = False) -> Region:
    """Return the smaller of two boxes around rows: along the columns, and along principal axes.

    Parameters
    ----------
    rows : Rows
        In the units of the data, in which principal axes are meant. NaN where missing: then the box
        is that along the columns, whose sides are those of what is observed; as it is where columns
        are linear combinations of others.
    center : (d,) array
        Near them, so that an offset costs no digits.
    along_columns : bool
        Whether to take that along the columns, whichever is smaller.
    """
    d = len(center)
    axes = [np.eye(d)]
    unweighted = sum((y - center).sum(axis=0) for y, _ in rows) / rows.count()[0]
    is_complete = bool(np.isfinite(unweighted).all())
    if d > 1 and is_complete and not along_columns:
        factor = triangle(y - center - unweighted for y, _ in rows)
        # Where columns are dependent a box along principal axes has no volume but rounding.
        if np.linalg.matrix_rank(factor / np.linalg.norm(factor, axis=0), _DEPENDENT) == d:
            axes.append(np.linalg.svd(factor, full_matrices=False)[2])
    found = []
    for turn in axes:
        low, high = np.full(len(turn), np.inf), np.full(len(turn), -np.inf)
        for y, _ in rows:
            z = (y - center) @ turn.T if is_complete else y - center
            low, high = np.fmin(low, np.fmin.reduce(z)), np.fmax(high, np.fmax.reduce(z))
        log_volume = float(np.log(high - low).sum())
        found.append(Region(log_volume, center + low @ turn, (high - low)[:, None] * turn))
    return min(found, key=lambda region: region.log_volume)


def rescaled(noise: Noise | None, log_scale: Array, log_mix: float = 0.0) -> Noise | None:
    """Return noise in other units: x / scale, of coordinates whose volume is that of x / mix."""
    if noise is None:
        return None
    edges = noise.log_edges
    return replace(
        noise,
        log_density=noise.log_density + (float(log_scale.sum()) + log_mix),
        log_edges=None if edges is None else tuple((np.array(edges) - log_scale).tolist()),
    )


def with_noise(parameters: Parameters, noise: Noise | None) -> Parameters:
    """Return parameters to start with: with noise of this density or, for None, without any.

    Those that have noise keep its weight.
    """
    weight = parameters.weight / parameters.weight.sum()
    if noise is None:
        return (
            parameters
            if parameters.noise is None
            else replace(parameters, weight=weight, noise=None)
        )
    if parameters.noise is not None:
        noise = replace(noise, weight=parameters.noise.weight)
    return replace(parameters, weight=weight * (1.0 - noise.weight), noise=noise)


def crowded(x: Array, least: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return the rows (n, d) that are not among the farthest from their neighbours, by number.

    Nearest-neighbour cleaning in its simplest form (Byers & Raftery 1998, J. Am. Statist. Assoc.
    93, 577-584), as EM decides for itself what is noise; at least ``least`` rows.
    """
    n = len(x)
    keep = max(least, math.ceil((1.0 - _ISOLATED) * n))
    if keep >= n or n <= _NEIGHBOURS:
        return np.arange(n)
    away = cKDTree(x).query(x, _NEIGHBOURS + 1)[0][:, -1]
    return np.sort(np.argsort(away, kind="stable")[:keep])
