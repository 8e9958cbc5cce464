r"""The unconstrained space of a specification: what is free of it, and the way to parameters.

A point has the free weights by PyMC's simplex transform, the covariances by `chart.Coordinates`,
and the means as they are.  What is fixed has no coordinate: fixed means and covariances stand in
for theirs, and free weights share what the fixed ones leave, :math:`\pi_j = (1 - S) u_j` with u
in the simplex.  The weight of a noise component is one more weight, the last; where those of the
components are fixed, as shares of what is no noise, u are the two weights of all components
together and of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.groups import split
from bayesgmm.information.fixed import Fixed, Mask, read_fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import FLAT, Array, Parameters
from bayesgmm.noise import NOISE, Region
from bayesgmm.target.chart import Coordinates, unit_of
from bayesgmm.target.layout import Layout, layout


@dataclass(frozen=True, eq=False)
class Space:
    """What is free of a specification, as unconstrained coordinates.

    Parameters
    ----------
    chart : Coordinates
        Of all covariances, the fixed ones included.
    held : Fixed or None
        What is fixed, in the units of the data.
    region : Region or None
        Where noise is.
    center, scale : (d,) arrays
        Of the data: about what the noise is spread out.
    """

    chart: Coordinates
    held: Fixed | None
    region: Region | None
    center: Array
    scale: Array

    @property
    def is_noisy(self) -> bool:
        """Whether there is a noise component."""
        return self.region is not None

    @cached_property
    def log_fixed(self) -> Array:
        """(k,) or, with noise, (k + 1,): logarithms of the fixed weights, NaN where free.

        The last free one of others that are fixed is fixed by these.
        """
        k = self.chart.k
        if self.held is None:
            return np.full(k + self.is_noisy, np.nan)
        return np.append(np.log(self.held.weight), [np.nan] * self.is_noisy)

    @cached_property
    def n_free_weights(self) -> int:
        """Number of weights that are not given: their coordinates are one less."""
        return 2 if self.has_shares else int(np.isnan(self.log_fixed).sum())

    @property
    def has_shares(self) -> bool:
        """Whether the components share what is no noise as is fixed."""
        return self.is_noisy and self.held is not None and bool(self.held.has_weight.all())

    @cached_property
    def log_rest(self) -> float:
        """Logarithm of what the fixed weights leave to the others."""
        if not self.n_free_weights or self.has_shares:
            return 0.0
        return float(np.log1p(-np.nansum(np.exp(self.log_fixed))))

    @cached_property
    def source(self) -> NDArray[np.intp]:
        """Of every weight, and the noise's: the place of the share that it has, -1 if fixed."""
        if self.has_shares:
            return np.append(np.zeros(self.chart.k, dtype=np.intp), 1)
        is_free = np.isnan(self.log_fixed)
        return np.where(is_free, np.cumsum(is_free) - 1, -1)

    @cached_property
    def base(self) -> Array:
        """Logarithm of what every weight has that share of, or of the weight itself."""
        rest = np.full(len(self.log_fixed), self.log_rest)
        return np.where(np.isnan(self.log_fixed), rest, self.log_fixed)

    @property
    def n_weights(self) -> int:
        """Number of coordinates of the weights."""
        return max(self.n_free_weights - 1, 0)

    @property
    def covariances(self) -> slice:
        """Where the covariances' coordinates are in a whole vector."""
        return slice(self.n_weights, self.n_weights + self.chart.size)

    @cached_property
    def whole(self) -> Array:
        """The vector of all coordinates, those of what is fixed at its values, 0 elsewhere."""
        k, d = self.chart.k, self.chart.d
        vector, mean = np.zeros(self.chart.size), np.zeros((k, d))
        if self.held is not None:
            mean = np.where(self.held.has_mean, self.held.mean, 0.0)
            if self.held.has_covariance.any():
                own = self.held.has_covariance[:, None, None]
                others = np.diag(self.chart.unit**2)
                vector = self.chart.vector(np.where(own, self.held.covariance, others))
        return np.concatenate([np.zeros(self.n_weights), vector, mean.ravel()])

    @cached_property
    def place(self) -> NDArray[np.intp]:
        """(size,): where the coordinates of what is free are in a whole vector."""
        is_free = np.ones(len(self.whole), dtype=bool)
        if self.held is not None:
            is_free[self.covariances] = self.chart.moves(~self.held.has_covariance)
            is_free[self.covariances.stop :] = ~self.held.has_mean.ravel()
        return np.flatnonzero(is_free)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.place)

    @property
    def still(self) -> dict[str, Mask]:
        """Which weights, means and covariances cannot move, as `Fixed.still`."""
        if self.held is not None:
            return self.held.still(has_noise=self.is_noisy)
        k, d = self.chart.k, self.chart.d
        shapes = {"weight": (k,), "mean": (k, d), "covariance": (k, d, d)}
        return {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}

    def parameters(self, points: Array) -> dict[str, Array]:
        """Return weights, means and covariances at points (..., size), in the data's units.

        With noise also its weight, ``noise_weight`` (...).
        """
        k, d = self.chart.k, self.chart.d
        whole = np.broadcast_to(self.whole, (*points.shape[:-1], len(self.whole))).copy()
        whole[..., self.place] = points
        ends = [self.covariances.start, self.covariances.stop]
        free, vectors, means = np.split(whole, ends, axis=-1)
        weight = self._weights(free)
        found = {
            "weight": weight[..., :k],
            "mean": means.reshape(*means.shape[:-1], k, d),
            "covariance": self.chart.covariances(vectors),
        }
        if self.held is not None:
            for name in found:  # to the last bit
                given = getattr(self.held, name)
                if name != "weight" or not self.has_shares:
                    found[name] = np.where(np.isfinite(given), given, found[name])
        return found | ({NOISE: weight[..., k]} if self.is_noisy else {})

    def _weights(self, free: Array) -> Array:
        """Return all weights (..., k) from the coordinates of the free ones."""
        ratio = np.concatenate([free, -free.sum(axis=-1, keepdims=True)], axis=-1)
        share = np.exp(ratio - ratio.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        if self.held is None:
            return share
        if self.has_shares:
            return np.concatenate([share[..., :1] * self.held.weight, share[..., 1:]], axis=-1)
        weight = np.broadcast_to(np.exp(self.log_fixed), (*free.shape[:-1], len(self.log_fixed)))
        weight = weight.copy()
        if self.n_free_weights:
            weight[..., np.isnan(self.log_fixed)] = np.exp(self.log_rest) * share
        return weight

    def point(self, theta: Parameters) -> Array:
        """Return the point (size,) of parameters in the data's units."""
        with np.errstate(divide="ignore"):
            weights = theta.weights
            if self.has_shares:
                log_weight = np.log([weights[:-1].sum(), weights[-1]])
            else:
                log_weight = np.log(weights)[np.isnan(self.log_fixed)]
        free = (log_weight - log_weight.mean())[:-1] if len(log_weight) else log_weight
        vector = self.chart.vector(theta.covariance)
        return np.concatenate([free, vector, theta.mean.ravel()])[self.place]

    def unit(self, theta: Parameters) -> Array:
        """Return a size (size,) for each coordinate: a mean's is its component's sd."""
        sd = np.sqrt(np.diagonal(theta.covariance, axis1=1, axis2=2))
        others = np.ones(self.covariances.stop)
        return np.concatenate([others, sd.ravel()])[self.place]

    def layout(self, data: Data) -> Layout:
        """Return rows by what is known of them, for the pass over normal components alone."""
        groups = split(data.values, data.weight, data.probability)
        if self.region is None:
            return layout(groups, self.chart.k)
        edges = self.region.log_edges
        of_noise = np.zeros(data.d) if edges is None else edges - 0.5 * np.log(self.noise_variance)
        return layout(groups, self.chart.k, of_noise)

    def widened(self, theta: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """Return log-weights, means and covariances for the pass, with noise as one more of them.

        ``theta`` are the arrays of one draw, as `parameters` gives them.
        """
        with np.errstate(divide="ignore"):
            log_weight = np.log(theta["weight"])
            if self.region is None:
                return log_weight, theta["mean"], theta["covariance"]
            log_noise = np.log(theta[NOISE]) + self.noise_level
        return (
            np.append(log_weight, log_noise),
            np.concatenate([theta["mean"], self.center[None]]),
            np.concatenate([theta["covariance"], np.diag(self.noise_variance)[None]]),
        )

    @cached_property
    def noise_variance(self) -> Array:
        """(d,): of the normal distribution, about ``center``, that is as flat as noise is."""
        return (self.scale / FLAT) ** 2

    @cached_property
    def noise_level(self) -> float:
        """What the logarithm of that distribution's weight gets added, to be as high as noise."""
        if self.region is None:
            return 0.0
        log_sd = 0.5 * np.log(self.noise_variance).sum()
        return float(0.5 * len(self.center) * np.log(2.0 * np.pi) + log_sd - self.region.log_volume)


def held_in(fixed: Mapping[str, Any] | None, spec: GaussianMixture, data: Data) -> Fixed | None:
    """Return what a user wants fixed, in the units of the data."""
    return None if fixed is None else read_fixed(fixed, spec.covariance, spec.n_components, data.d)


def checked_space(
    spec: GaussianMixture, data: Data, held: Fixed | None, region: Region | None
) -> Space:
    """Return the space of a specification.

    Parameters
    ----------
    spec : GaussianMixture
    data : Data
    held : Fixed or None
        What is fixed, in the units of the data.
    region : Region or None
        Where noise is.

    Raises
    ------
    ArgumentError
        If nothing is free.
    """
    chart = Coordinates(spec.covariance, spec.n_components, unit_of(data, spec.covariance))
    space = Space(chart, held, region, data.center, data.scale)
    if not space.size:
        raise ArgumentError("fixed", "leaves nothing free: there is no posterior of it")
    return space
