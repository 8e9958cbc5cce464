r"""The noise component: rows that belong to no cluster, uniform over the region of the data.

.. math:: p(x) = \frac{\pi_0}{V} + \sum_{k=1}^{K} \pi_k N(x; \mu_k, \Sigma_k), \qquad
          \pi_0 + \sum_k \pi_k = 1

V is the volume of a box around the data, along the columns or along their principal axes, whichever
is smaller, as in mclust; or what the user says.  To the pass over the data the noise is one more
normal distribution, so wide that it is flat (`moments.Parameters.widened`).

References
----------
Banfield & Raftery (1993), Biometrics 49, 803-821. Fraley & Raftery (2002), J. Am. Statist. Assoc.
97, 611-631.
"""

from __future__ import annotations

import json
import math
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
        if self.corner is None or self.edges is None:
            raise ArgumentError(
                "fit", "has a noise component of which the volume alone is known, not where it is"
            )
        return np.asarray(self.corner + rng.random((n, len(self.corner))) @ self.edges)

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


def region_around(rows: Rows, center: Array) -> Region:
    """Return the smaller of two boxes around rows: along the columns, and along principal axes.

    Parameters
    ----------
    rows : Rows
        In the units of the data, in which principal axes are meant. NaN where missing: then the box
        is that along the columns, whose sides are those of what is observed.
    center : (d,) array
        Near them, so that an offset costs no digits.
    """
    d = len(center)
    axes = [np.eye(d)]
    unweighted = sum((y - center).sum(axis=0) for y, _ in rows) / rows.count()[0]
    is_complete = bool(np.isfinite(unweighted).all())
    if d > 1 and is_complete:
        factor = triangle(y - center - unweighted for y, _ in rows)
        axes.append(np.linalg.svd(factor, full_matrices=False)[2])
    found = []
    for turn in axes:
        low, high = np.full(len(turn), np.inf), np.full(len(turn), -np.inf)
        for y, _ in rows:
            z = (y - center) @ turn.T if is_complete else y - center
            low, high = np.fmin(low, np.fmin.reduce(z)), np.fmax(high, np.fmax.reduce(z))
        with np.errstate(divide="ignore"):  # a box without volume where columns are dependent
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
