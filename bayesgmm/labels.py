r"""One assignment of components per draw, and how sure it is.

The components of a mixture have no order, so a draw's labels are matched to those of a pivot (one
good solution, e.g. the maximum-likelihood fit).  The cost of calling component *i* of the draw
component *j* of the pivot is their share of the squared Hellinger distance between the two
complete-data distributions, label and observation together:

.. math:: c_{ij} = \tfrac12 \big(\sqrt{\pi_i} - \sqrt{\pi_j^*}\big)^2
          + \sqrt{\pi_i \pi_j^*} \, (1 - \mathrm{BC}_{ij}), \qquad
          \mathrm{BC}_{ij} = \int \sqrt{N(x; \mu_i, \Sigma_i) \, N(x; \mu_j^*, \Sigma_j^*)} \, dx

so that the total over a labelling is that distance itself, between 0 and 1.  It does not change
under any affine map of the data, and weights, means and covariances enter on one scale.  It is
bounded, which the symmetric Kullback-Leibler (Jeffreys) divergence is not: where one component has
wandered off, or shrunk onto a few points, its term in a Jeffreys cost outweighs all the others and
drags their labels along; here it costs no more than its weight.

How sure a labelling is: for each component, the cheapest labelling that gives that component
another label is compared with the best one, over the components whose labels differ,

.. math:: m = \min_j \; (c'_j - c_j) / (c'_j + c_j)

1 where the draw equals the pivot, 0 where another labelling is as good.  Components that both
labellings treat alike cancel, so neither a large nor an outlying component hides an unsure pair.

References
----------
Stephens (2000), J. R. Statist. Soc. B 62, 795-809 (relabelling as an assignment problem).
Papastamoulis & Iliopoulos (2010), J. Comput. Graph. Statist. 19, 313-331 (pivots).
Kuhn (1955), Naval Research Logistics 2, 83-97.  Floyd (1962), Commun. ACM 5, 345.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bayesgmm.checks import Check, Limit
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Parameters

Array = NDArray[np.float64]
Labels = NDArray[np.intp]

AMBIGUOUS = 0.1
"""Margin below which a draw's labels count as ambiguous.

The cost grows with the square of the distance.  On the way from the pivot (t = 0) to its copy with
two labels exchanged (t = 1) the margin is about 2 (1 - 2t) near the halfway plane t = 1/2, where
the relabelled posterior is cut off.  A margin below 0.1 is t within 0.025 of the plane.  More than
1 % of the draws lie there once the posterior's standard deviation in t exceeds about 1/4, that is,
once about 2 % of the draws are on the wrong side: from there on the cut shows in the summaries.
"""

AMBIGUOUS_LABELS = Limit(0.01, 0.05)
"""Share of draws with ambiguous labels; beyond the last, no component has a mean of its own."""

SAME = 1e-6
"""Squared Hellinger distance below which two parameter values are one optimum (`distance`).

A fit that has converged to 1e-4 standard errors is nearer than 1e-8 to its limit; distinct optima
of a likelihood differ by a visible part of their mass.
"""

_BLOCK = 1 << 20  # numbers per temporary array


@dataclass(frozen=True, eq=False)
class Alignment:
    """The labels of many draws.

    Parameters
    ----------
    permutation : (s, k) integer array
        ``permutation[s, j]`` is the component of draw s that is called j.
    margin : (s,) array
        How sure the labels are, from 0 (another labelling is as good) to 1; see `AMBIGUOUS`.
        0 where the draw is not finite or not a mixture; 1 for a single component.
    """

    permutation: Labels
    margin: Array


def match(parameters: Parameters, pivot: Parameters) -> tuple[Labels, float]:
    """Return the order in which the components match the pivot's, and how sure it is.

    Parameters
    ----------
    parameters, pivot : Parameters
        Of the same shape and in the same units.

    Returns
    -------
    permutation : (k,) integer array
        ``parameters.take(permutation)`` has the pivot's labels.
    margin : float
        From 0 to 1, see `Alignment`.

    Raises
    ------
    ArgumentError
        If the shapes differ, or the pivot is not a mixture.
    """
    alignment = align(
        parameters.weight[None], parameters.mean[None], parameters.covariance[None], pivot
    )
    return alignment.permutation[0], float(alignment.margin[0])


def align(
    weight: Array,
    mean: Array,
    covariance: Array,
    pivot: Parameters,
    kinds: Labels | None = None,
) -> Alignment:
    """Return the labels of every draw that are nearest to the pivot's.

    Parameters
    ----------
    weight : (s, k) array
    mean : (s, k, d) array
    covariance : (s, k, d, d) array
        The draws, in the units of the pivot.
    pivot : Parameters
        The solution whose labels are taken over.
    kinds : (k,) integer array, optional
        Components that may have each other's labels have the same number. Default: all may.

    Returns
    -------
    Alignment
        A draw that is not finite, or has a covariance that is not positive definite, keeps its
        labels and has margin 0.

    Raises
    ------
    ArgumentError
        If the shapes do not fit the pivot's, or the pivot is not a mixture.
    """
    s, k, d = len(weight), pivot.k, pivot.d
    given = {"weight": weight.shape, "mean": mean.shape, "covariance": covariance.shape}
    wanted = {"weight": (s, k), "mean": (s, k, d), "covariance": (s, k, d, d)}
    for name in wanted:
        if given[name] != wanted[name]:
            raise ArgumentError(name, f"has shape {given[name]}; the pivot's needs {wanted[name]}")
    if not are_mixtures(pivot.weight[None], pivot.mean[None], pivot.covariance[None])[0]:
        raise ArgumentError(
            "pivot", "must be finite, with non-negative weights and positive definite covariances"
        )
    permutation = np.tile(np.arange(k), (s, 1))
    usable = are_mixtures(weight, mean, covariance)
    margin = usable.astype(float)
    if k > 1:
        rows = np.flatnonzero(usable)
        step = max(1, _BLOCK // (k * k * d * d))
        for block in (rows[i : i + step] for i in range(0, len(rows), step)):
            cost = _cost(weight[block], mean[block], covariance[block], pivot)
            if kinds is not None:
                cost[:, kinds[:, None] != kinds] = np.inf
            found = assign(cost)
            permutation[block], margin[block] = found.permutation, found.margin
    return Alignment(permutation, margin)


def assign(cost: Array) -> Alignment:
    """Return the labels of every draw that cost least, and how sure they are.

    Parameters
    ----------
    cost : (s, k, k) array
        ``cost[s, i, j]`` of calling component i of draw s component j: at least 0, infinite where
        that may not be.

    Returns
    -------
    Alignment
        1 is the margin where another labelling costs more and this one nothing.
    """
    best = _assign(cost)
    return Alignment(best, _margin(cost, best))


def ambiguous_share(margin: Array) -> float:
    """Return the share of labels that are ambiguous, NaN margins included; 0 of none."""
    return float(np.mean(~(np.asarray(margin) >= AMBIGUOUS))) if np.size(margin) else 0.0


def ambiguous_labels(margin: Array) -> Check:
    """Check the share of draws whose labels are ambiguous."""
    share = ambiguous_share(margin)
    status = AMBIGUOUS_LABELS.grade(share)
    evidence = (
        f"{round(share * margin.size)} of {margin.size} draws ({share:.2%}) have ambiguous labels "
        f"(margin below {AMBIGUOUS})"
    )
    advice = (
        "Components exchange their roles between draws, so that summaries of single components mix "
        "them. Rely on label-free quantities (densities, allocations, log-likelihood), or use "
        "fewer components."
    )
    return Check("ambiguous-labels", status, evidence, "" if status == "ok" else advice)


def apply[Number: np.generic](permutation: Labels, array: NDArray[Number]) -> NDArray[Number]:
    """Return draws with the components of each in the order of its permutation.

    Parameters
    ----------
    permutation : (s, k) integer array
    array : (s, k, ...) array

    Returns
    -------
    (s, k, ...) array
    """
    return array[np.arange(len(array))[:, None], permutation]


def distance(a: Parameters, b: Parameters) -> float:
    """Return the squared Hellinger distance of two mixtures under their best labelling.

    Of their complete-data distributions: between 0 and 1, the same under affine maps of the data;
    see `SAME`.

    Parameters
    ----------
    a, b : Parameters
        Of the same shape and in the same units.

    Returns
    -------
    float
    """
    order = match(a, b)[0]
    cost = _cost(a.weight[None, order], a.mean[None, order], a.covariance[None, order], b)
    return float(np.trace(cost[0]))


def distances(
    weight: Array,
    mean: Array,
    covariance: Array,
    pivot: Parameters,
    kinds: Labels | None = None,
) -> tuple[Array, Labels]:
    """Return the `distance` of every draw to a mixture, (s,), and the labelling that it is under.

    Parameters
    ----------
    weight, mean, covariance, pivot, kinds
        As of `align`.

    Returns
    -------
    (s,) array
        1, the largest distance, for draws that are no mixtures.
    (s, k) integer array
    """
    k, d = pivot.k, pivot.d
    order, found = np.tile(np.arange(k), (len(weight), 1)), np.ones(len(weight))
    rows = np.flatnonzero(are_mixtures(weight, mean, covariance))
    step = max(1, _BLOCK // (k * k * d * d))
    for block in (rows[i : i + step] for i in range(0, len(rows), step)):
        cost = _cost(weight[block], mean[block], covariance[block], pivot)
        if kinds is not None:
            cost[:, kinds[:, None] != kinds] = np.inf
        order[block] = best = _assign(cost)
        found[block] = np.take_along_axis(cost, best[:, None, :], axis=1).sum(axis=(1, 2))
    return found, order


def are_mixtures(weight: Array, mean: Array, covariance: Array) -> NDArray[np.bool_]:
    """Say which draws are finite, with covariances that are positive definite in floats."""
    usable = np.isfinite(weight).all(axis=1) & (weight >= 0).all(axis=1)
    usable &= np.isfinite(mean).all(axis=(1, 2)) & np.isfinite(covariance).all(axis=(1, 2, 3))
    spread = np.diagonal(covariance, axis1=2, axis2=3)
    usable &= (spread > 0).all(axis=(1, 2))
    # As correlations: features in very different units do not make a covariance singular.
    scale = np.sqrt(spread[usable])
    correlation = covariance[usable] / scale[..., None] / scale[..., None, :]
    usable[usable] = (np.linalg.eigvalsh(correlation) > 0).all(axis=(1, 2))
    return usable


def _cost(weight: Array, mean: Array, covariance: Array, pivot: Parameters) -> Array:
    """Return c[s, i, j] of the module's first formula, for draws that are mixtures."""
    # Per feature, one unit for all: keeps the determinants of far-off units within range.
    unit = np.sqrt(np.diagonal(pivot.covariance, axis1=1, axis2=2).mean(axis=0))
    area = unit[:, None] * unit
    own, other = covariance / area, pivot.covariance / area
    apart = (mean[:, :, None] - pivot.mean) / unit
    middle = 0.5 * (own[:, :, None] + other)
    square = (apart * np.linalg.solve(middle, apart[..., None])[..., 0]).sum(axis=-1)
    logdet = np.linalg.slogdet(middle)[1] - 0.5 * (
        np.linalg.slogdet(own)[1][:, :, None] + np.linalg.slogdet(other)[1]
    )
    log_affinity = np.minimum(-0.125 * square - 0.5 * logdet, 0.0)
    root, pivot_root = np.sqrt(weight)[:, :, None], np.sqrt(pivot.weight)
    cost: Array = 0.5 * (root - pivot_root) ** 2 - root * pivot_root * np.expm1(log_affinity)
    return cost


def _assign(cost: Array) -> Labels:
    """Return the permutation of every draw that has the smallest sum of cost[s, p[s, j], j]."""
    k = cost.shape[-1]
    # Where every label's cheapest component is another one, no labelling can be cheaper.
    best = cost.argmin(axis=1)
    clash = (np.sort(best, axis=1) != np.arange(k)).any(axis=1)
    for s in np.flatnonzero(clash):
        best[s] = linear_sum_assignment(cost[s].T)[1]
    return best


def _margin(cost: Array, best: Labels) -> Array:
    """Return the margin of every draw."""
    gap, kept = _alternatives(cost, best)
    total = gap + 2.0 * kept
    # Where no other component may have a label, that is sure.
    sure, known = np.isinf(gap).astype(float), np.isfinite(total) & (total > 0)
    relative = np.divide(gap, total, out=sure, where=known)
    return relative.min(axis=1)


def _alternatives(cost: Array, best: Labels) -> tuple[Array, Array]:
    """Return, for each label j, what the cheapest labelling that gives it another component costs.

    Another labelling passes components along cycles of labels.  The cheapest that moves j is one
    cycle through j (further cycles cost at least 0, or ``best`` would not be best): the shortest
    way from j back to j in the graph whose edge j -> l gives label j the component of l.  All of
    them at once, for all draws, by Floyd and Warshall's recursion.

    Returns
    -------
    gap : (s, k) array
        What that labelling costs more in all.
    kept : (s, k) array
        What the labels that it changes cost under ``best``.
    """
    k = cost.shape[-1]
    by_label = np.swapaxes(np.take_along_axis(cost, best[:, :, None], axis=1), 1, 2)
    here = np.diagonal(by_label, axis1=1, axis2=2)
    gap = by_label - here[:, :, None]
    gap[:, np.arange(k), np.arange(k)] = np.inf
    kept = np.repeat(here[:, :, None], k, axis=2)
    for via in range(k):
        through = gap[:, :, via, None] + gap[:, via, None, :]
        shorter = through < gap
        kept = np.where(shorter, kept[:, :, via, None] + kept[:, via, None, :], kept)
        gap = np.where(shorter, through, gap)
    return (
        np.maximum(np.diagonal(gap, axis1=1, axis2=2), 0.0),
        np.diagonal(kept, axis1=1, axis2=2),
    )
