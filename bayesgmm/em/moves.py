"""Moves away from an optimum: one component is taken out and another one split in two.

EM cannot move a component from where there are too many to where there are too few; starts from
which it is not needed become rare with many components (Ueda et al. 2000).

References
----------
Ueda, Nakano, Ghahramani & Hinton (2000), Neural Computation 12, 2109-2128 (split and merge).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bayesgmm.covariance import Covariance, maximise
from bayesgmm.moments import Array, Parameters

_MOST_REMOVED = 4  # of the components, those with the smallest overlap-free share
_WIDE, _NARROW = 2.0, 0.25  # a scale split's variances


def moves(parameters: Parameters, family: Covariance) -> Iterator[Parameters]:
    """Yield parameters with one component taken out and one of the others split in two.

    The split is along the longest axis, or into a wide and a narrow component of one mean.

    Parameters
    ----------
    parameters : Parameters
        Of at least two components.
    family : Covariance
        Of which the results are members.
    """
    k = parameters.k
    for out in np.argsort(_alone(parameters), kind="stable")[:_MOST_REMOVED]:
        rest = parameters.take(np.flatnonzero(np.arange(k) != out))
        lost = parameters.weight[out] / rest.weight.sum()
        yield from splits(replace(rest, weight=rest.weight * (1.0 + lost)), family)


def splits(parameters: Parameters, family: Covariance) -> Iterator[Parameters]:
    """Yield parameters with one component more: each is split in two, along its axis or by scale.

    Parameters
    ----------
    parameters : Parameters
    family : Covariance
        Of which the results are members.
    """
    for j in range(parameters.k):
        yield _member(_split_along(parameters, j), family)
        yield _member(_split_by_scale(parameters, j), family)


def _alone(parameters: Parameters) -> Array:
    """About which share of the observations would be left without the component, (k,)."""
    gap = parameters.mean[:, None] - parameters.mean
    pooled = 0.5 * (parameters.covariance[:, None] + parameters.covariance)
    square = (gap * np.linalg.solve(pooled, gap[..., None])[..., 0]).sum(axis=2)
    np.fill_diagonal(square, np.inf)
    return np.asarray(parameters.weight * (1.0 - np.exp(-0.125 * square.min(axis=1))))


def _split_along(p: Parameters, j: int) -> Parameters:
    value, axes = np.linalg.eigh(p.covariance[j])
    shift = np.sqrt(value[-1]) * axes[:, -1]
    # Two halves, one sd apart from their mean: together they have the variance of the whole but
    # for a part that is kept, so that neither is singular.
    own = p.covariance[j] - 0.75 * np.outer(shift, shift)
    return _replaced(p, j, (p.mean[j] - shift, p.mean[j] + shift), (own, own))


def _split_by_scale(p: Parameters, j: int) -> Parameters:
    own = p.covariance[j]
    return _replaced(p, j, (p.mean[j], p.mean[j]), (_WIDE * own, _NARROW * own))


def _replaced(
    p: Parameters, j: int, mean: tuple[Array, Array], covariance: tuple[Array, Array]
) -> Parameters:
    def with_two(array: Array, two: tuple[Array, Array]) -> Array:
        found = np.concatenate([array, np.array(two[1:])])  # the others keep their place
        found[j] = two[0]
        return found

    half = 0.5 * p.weight[j]
    return replace(
        p,
        weight=with_two(p.weight, (half, half)),
        mean=with_two(p.mean, mean),
        covariance=with_two(p.covariance, covariance),
    )


def _member(p: Parameters, family: Covariance) -> Parameters:
    """Return the nearest member of the family, in the sense of its M-step."""
    covariance = maximise(family, p.weight, p.weight[:, None, None] * p.covariance)
    return replace(p, covariance=covariance)
