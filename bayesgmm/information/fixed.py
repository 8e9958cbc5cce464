r"""Parameters that the user fixes: equal or given weights, means (also single ones), covariances.

The M-step then maximises over the free ones only.  With the components' covariances at their
present values the free part f of a mean whose part o is fixed at c is

.. math:: \mu_f = \bar x_f + \Sigma_{fo} \Sigma_{oo}^{-1} (c - \bar x_o),

and the covariances follow with scatters about the new means: a conditional maximisation each, so
that the likelihood never falls (Meng & Rubin 1993, Biometrika 80, 267-278).

With a noise component fixed weights, of all components, are their shares of what is no noise:
:math:`\pi_k = (1 - \pi_0) w_k`.  The weight of the noise is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, null_space
from scipy.optimize import linear_sum_assignment

from bayesgmm.covariance import Covariance, maximise
from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.information.coordinates import Chart, chart_about, free_directions
from bayesgmm.information.observed import Information, inverse, restricted
from bayesgmm.moments import Array, Moments, Parameters

Mask = NDArray[np.bool_]
EQUAL = "equal"


@dataclass(frozen=True, eq=False)
class Fixed:
    """Values of fixed parameters in the units of the data that are fitted; NaN where free.

    Parameters
    ----------
    weight : (k,) array
        With noise, shares of what is no noise.
    mean : (k, d) array
    covariance : (k, d, d) array
        A matrix is fixed as a whole.
    """

    weight: Array
    mean: Array
    covariance: Array

    @property
    def has_weight(self) -> Mask:
        """Which weights are fixed, (k,)."""
        return np.isfinite(self.weight)

    @property
    def has_mean(self) -> Mask:
        """Which means are fixed, (k, d)."""
        return np.isfinite(self.mean)

    @property
    def has_covariance(self) -> Mask:
        """Which covariances are fixed, (k,)."""
        return np.isfinite(self.covariance[:, 0, 0])

    @property
    def names_components(self) -> bool:
        """Whether components can be told apart by what is fixed of them: they keep their order."""
        weight = self.weight[self.has_weight]
        unequal = len(weight) > 0 and (len(weight) < len(self.weight) or np.ptp(weight) > 0)
        return bool(unequal or self.has_mean.any() or self.has_covariance.any())

    def still(self, *, has_noise: bool) -> dict[str, Mask]:
        """Which weights (k,), means (k, d) and covariances (k, d, d) cannot move: they are fixed.

        So is a weight, if all the others are; with noise none is, since its weight is free.
        """
        known = self.has_weight
        weight = known | (known.any() and np.count_nonzero(~known) < 2)
        weight &= not has_noise
        covariance = np.broadcast_to(self.has_covariance[:, None, None], self.covariance.shape)
        return {"weight": weight, "mean": self.has_mean, "covariance": covariance}

    @property
    def is_equal_weights(self) -> bool:
        """Whether nothing but equal weights is fixed, which has a meaning for any size."""
        return bool(self.has_weight.all()) and not self.names_components

    def anchored(self, data: Data) -> Fixed:
        """Return the same in the units in which data are fitted."""
        mean = (self.mean - data.center) / data.scale
        return Fixed(self.weight, mean, self.covariance / np.outer(data.scale, data.scale))

    def to_json(self, data: Data) -> str:
        """Return what is fixed, in the units of the data; null where free."""
        mean = self.mean * data.scale + data.center
        covariance = self.covariance * np.outer(data.scale, data.scale)
        values = {"weight": self.weight, "mean": mean, "covariance": covariance}
        # JSON knows no NaN.
        return json.dumps({name: _with_null(v.tolist()) for name, v in values.items()})

    def weights(self, free: Array) -> Array:
        """Return weights with the fixed ones in place, the others in proportion to ``free``."""
        known = self.has_weight
        if not known.any():
            return free / free.sum()
        if known.all():
            return self.weight.copy()
        rest = 1.0 - self.weight[known].sum()
        return np.where(known, self.weight, rest * (free / free[~known].sum()))

    def impose(self, p: Parameters) -> Parameters:
        """Return parameters with the fixed ones in place."""
        mean = np.where(self.has_mean, self.mean, p.mean)
        own = self.has_covariance[:, None, None]
        covariance = np.where(own, self.covariance, p.covariance)
        if p.noise is None:
            weights = self.weights(p.weight)
        elif self.has_weight.any():
            weights = np.append(self.weights(p.weight) * p.weight.sum(), p.noise.weight)
        else:
            weights = p.weights
        return p.moved(weights, mean, covariance)

    def matched(self, p: Parameters, unit: Array) -> Parameters:
        """Return parameters with components in the order that is nearest to what is fixed.

        ``unit`` (d,) are the standard deviations in which means are compared.
        """
        weight = (np.log(p.weight)[:, None] - np.log(self.weight)) ** 2
        mean = (((p.mean[:, None] - self.mean) / unit) ** 2).sum(axis=2, where=self.has_mean)
        size = [np.log(np.trace(c, axis1=1, axis2=2)) for c in (p.covariance, self.covariance)]
        spread = (size[0][:, None] - size[1]) ** 2
        cost = np.nan_to_num(weight) + mean + np.nan_to_num(spread)
        return p.take(linear_sum_assignment(cost.T)[1])

    def centred(
        self, moments: Moments, about: Parameters, mean: Array, scatter: Array
    ) -> tuple[Array, Array]:
        """Return the means of the M-step and the scatters about them, from those that are free."""
        new = mean.copy()
        for j in np.flatnonzero(self.has_mean.any(axis=1)):
            o = self.has_mean[j]
            gap = self.mean[j, o] - mean[j, o]
            s = about.covariance[j]
            new[j, o] = self.mean[j, o]
            new[j, ~o] += s[np.ix_(~o, o)] @ np.linalg.solve(s[np.ix_(o, o)], gap)
        shift = new - mean
        outer = shift[:, :, None] * shift[:, None, :]
        return new, scatter + moments.mean_count[:, None, None] * outer

    def directions(self, p: Parameters, family: Covariance) -> Array:
        """Return (p, m): directions in the family's coordinates in which what is fixed stays.

        Fixed weights stay to first order: see `restrict`.
        """
        weights = self._log_weights(p)
        weights = (weights - weights[:1])[1:]
        # delta = W (mean - estimate): directions in which no fixed element of L delta moves.
        means = [
            null_space(p.factor[j][o]) if o.any() else np.eye(p.d)
            for j, o in enumerate(self.has_mean)
        ]
        spread = free_directions(p, family, ~self.has_covariance)
        noise = np.eye(len(p.weights) - p.k)  # whose weight is never fixed
        return block_diag(weights, *means, spread, noise)

    def restrict(self, information: Information, p: Parameters, family: Covariance) -> Information:
        r"""Return the information about what is free.

        Where some weights are fixed the others keep their sum S, so that along log-weights
        :math:`\alpha` with :math:`\sum \pi \alpha = 0` they all move by :math:`-\sum \pi \alpha^2 /
        2 S` besides, to second order; the gradient in that direction is 0 for free weights only.
        """
        found = restricted(information, self.directions(p, family))
        weights = self._log_weights(p)
        m = weights.shape[1]
        matrix = found.matrix.copy()
        if self.has_weight.any() and m:
            free = ~self.has_weight
            together = free.astype(np.float64)
            slope = float(information.gradient[: p.k - 1] @ (together - together[0])[1:])
            square = (weights * p.weight[:, None]).T @ weights
            matrix[:m, :m] += slope / p.weight[free].sum() * square
        still = self.still(has_noise=p.noise is not None).values()
        natural = found.natural.copy()
        natural[np.flatnonzero(np.concatenate([mask.ravel() for mask in still]))] = 0.0
        covariance = inverse(matrix, np.diagonal(matrix))
        return replace(found, matrix=matrix, natural=natural, covariance=covariance)

    def _log_weights(self, p: Parameters) -> Array:
        """Return (k, m): directions of log-weights that leave fixed weights, and so their sum."""
        free = np.eye(p.k)[:, ~self.has_weight]
        if not self.has_weight.any():
            return free[:, 1:]
        return free @ null_space(p.weight[None, ~self.has_weight]) if free.size else free

    def count(self, k: int, d: int, family: Covariance) -> int:
        """Count the parameters that are not free because of this."""
        weights = min(int(self.has_weight.sum()), k - 1)
        own = self.has_covariance
        each = family.n_parameters(k, d) // k
        covariances = family.n_parameters(k, d) if own.all() else int(own.sum()) * each
        return weights + int(self.has_mean.sum()) + covariances


@dataclass(frozen=True, eq=False)
class Part:
    """The coordinates of what is free around one of a family's mixtures, which is their origin.

    Parameters
    ----------
    whole : Chart
        Those of the family.
    held : Fixed
        What stays.
    """

    whole: Chart
    held: Fixed

    @property
    def about(self) -> Parameters:
        """The mixture."""
        return self.whole.about

    @property
    def basis(self) -> Array:
        """As `Chart.basis`."""
        return self.whole.basis

    @cached_property
    def free(self) -> Array:
        """(p, m): what the coordinates are in those of the family, to first order."""
        return self.held.directions(self.about, self.whole.family)

    @property
    def size(self) -> int:
        """Number of coordinates: the free parameters."""
        return self.free.shape[1]

    @cached_property
    def tangent(self) -> Array:
        """(k (1 + d + q), m): derivative of full coordinates, at the origin."""
        return self.whole.tangent @ self.free

    def own(self, j: int) -> Mask:
        """Return (m,): which coordinates move the mean or the covariance of component j alone."""
        alone, moves = self.whole.own(j)[:, None], self.free != 0
        return (moves & alone).any(axis=0) & ~(moves & ~alone).any(axis=0)

    def at(self, step: Array) -> Parameters:
        """Return the mixture with coordinates ``step`` (m,), in which what is fixed stays."""
        return self.held.impose(self.whole.at(self.free @ step))


def chart_of(p: Parameters, family: Covariance, held: Fixed | None) -> Chart | Part:
    """Return the coordinates of what is free around a mixture."""
    whole = chart_about(p, family)
    return whole if held is None else Part(whole, held)


def from_json(text: str, data: Data) -> Fixed | None:
    """Return what `Fixed.to_json` wrote, in the units in which data are fitted; None for ""."""
    if not text:
        return None
    values = {name: np.array(v, dtype=np.float64) for name, v in json.loads(text).items()}
    return Fixed(**values).anchored(data)


def equal_weights(k: int, d: int) -> Fixed:
    """Return equal weights as what is fixed, whatever the data."""
    free = np.full((k, d), np.nan), np.full((k, d, d), np.nan)
    return Fixed(np.full(k, 1.0 / k), *free)


def is_for_any_size(given: Any) -> bool:
    """Whether what a user wants fixed has a meaning for any number of components."""
    return given is None or (
        isinstance(given, Mapping)
        and set(given) == {"weight"}
        and isinstance(given["weight"], str)
        and given["weight"] == EQUAL
    )


def read_fixed(given: Any, family: Covariance, k: int, d: int) -> Fixed:
    """Check what a user wants fixed.

    Parameters
    ----------
    given : mapping
        ``"weight"``: ``"equal"`` or (k,) numbers, ``"mean"``: (k, d), ``"covariance"``: (k, d, d),
        in the units of the data; NaN is free.

    Raises
    ------
    ArgumentError
        Naming ``fixed`` and what is wrong with it.
    """
    shapes = {"weight": (k,), "mean": (k, d), "covariance": (k, d, d)}
    if not (isinstance(given, Mapping) and set(given) <= set(shapes)):
        raise ArgumentError("fixed", f"must be a mapping with keys among {', '.join(shapes)}")
    values: dict[str, Array] = {}
    for name, shape in shapes.items():
        value = given.get(name)
        if name == "weight" and isinstance(value, str) and value == EQUAL:
            value = np.full(k, 1.0 / k)
        try:
            array = np.full(shape, np.nan) if value is None else np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise ArgumentError("fixed", f"{name} must be numbers, NaN where free") from None
        if array.shape != shape:
            raise ArgumentError("fixed", f"{name} has shape {array.shape}, not {shape}")
        if np.isinf(array).any():
            raise ArgumentError("fixed", f"{name} is infinite")
        values[name] = array
    fixed = Fixed(**values)
    _check_weights(values["weight"])
    _check_covariances(fixed, family)
    return fixed


def _with_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_null(v) for v in value]
    return value if np.isfinite(value) else None


def _check_weights(weight: Array) -> None:
    known = np.isfinite(weight)
    total = float(weight[known].sum())
    if (weight[known] <= 0).any():
        raise ArgumentError("fixed", "weights must be above 0")
    if known.all() and abs(total - 1.0) > 1e-9:
        raise ArgumentError("fixed", f"the weights sum to {total:g}, not to 1")
    if known.any() and not known.all() and total >= 1.0:
        raise ArgumentError("fixed", f"the fixed weights sum to {total:g}: nothing is left")


def _check_covariances(fixed: Fixed, family: Covariance) -> None:
    known = fixed.has_covariance
    matrices = fixed.covariance[known]
    if np.isnan(matrices).any() or np.isfinite(fixed.covariance[~known]).any():
        raise ArgumentError("fixed", "a covariance is fixed as a whole, or NaN as a whole")
    if known.any() and not known.all() and not family.shares_nothing:
        raise ArgumentError(
            "fixed",
            f"the covariances of {family} share parameters: fix all of them, or use a family in "
            "which each component has its own (VII, VVI, VVV, V)",
        )
    for matrix in matrices:
        if not np.allclose(matrix, matrix.T, rtol=1e-8, atol=0.0):
            raise ArgumentError("fixed", "a covariance is not symmetric")
        if np.linalg.eigvalsh(matrix)[0] <= 0:
            raise ArgumentError("fixed", "a covariance is not positive definite")
    if len(matrices):
        nearest = maximise(family, np.ones(len(matrices)), matrices)
        if not np.allclose(nearest, matrices, rtol=1e-8, atol=1e-12 * np.abs(matrices).max()):
            raise ArgumentError("fixed", f"the covariances are none of {family}")
