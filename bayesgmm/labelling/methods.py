r"""Ways to label the components of draws, each a cost of calling component i of a draw component j.

With :math:`p_{ni}` the shares of a draw's components in the rows (`shares`), :math:`q_{nj}` those
of the pivot, :math:`w_n` the rows' weights divided by their sum, and :math:`\theta_i` a component's
parameters,

.. math:: \text{ECR:} \quad c_{ij} = \sum_n w_n \big( \tfrac12 (p_{ni} + q_{nj}) - p_{ni} q_{nj}
          \big), \qquad p, q \in \{0, 1\}

half of the rows that one of the two has and the other has not: over all labels it is the share of
rows whose allocation is another one than the pivot's.  The pivot is the allocation of one draw, or
found by turns with the labels: each row goes where it is most often (iterative version 1) or most
probably on average (version 2).

.. math:: \text{Stephens:} \quad c_{ij} = \sum_n w_n \big( p_{ni} \log (p_{ni} / q_{nj}) - p_{ni}
          + q_{nj} \big)

with q the average of p, by turns with the labels (Algorithm 2).  The last two terms cancel over all
labels, so that the total is the Kullback-Leibler divergence; they make each cost at least 0.

.. math:: \text{PRA:} \quad c_{ij} = \tfrac12 \|\theta_i - \theta_j^*\|^2

which differs from minus the scalar product, the measure of Marin, Mengersen & Robert, by what no
labelling changes.

.. math:: \text{ordering:} \quad c_{ij} = (v_i - \bar v_{(j)})^2

for one parameter v and the averages over the draws of its smallest, second smallest, ... value: the
cheapest labelling is the increasing one.

Margins are those of `labels`, with these costs.

References
----------
Stephens (2000), J. R. Statist. Soc. B 62, 795-809.  Marin, Mengersen & Robert (2005), Handbook of
Statistics 25, 459-507.  Papastamoulis & Iliopoulos (2010), J. Comput. Graph. Statist. 19, 313-331.
Rodriguez & Walker (2014), J. Comput. Graph. Statist. 23, 25-45 (iterative versions).  Papastamoulis
(2016), J. Stat. Softw. 69, Code Snippet 1 (the R package label.switching).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from bayesgmm import labels
from bayesgmm.labelling.shares import Shares
from bayesgmm.labels import Alignment, Labels
from bayesgmm.moments import Array, Parameters

MOST_TURNS = 100
_TINY = np.finfo(np.float64).tiny
Cost = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels of draws, and how they were reached.

    Parameters
    ----------
    alignment : Alignment
    loss : tuple of float
        What all labels cost together, per draw, after every turn.
    """

    alignment: Alignment
    loss: tuple[float, ...]


# Costs of shares (s, n, k) against those of a pivot, (n, k); weights (n,) sum to one


def mismatch(share: Array, pivot: Array, weight: Array) -> Array:
    """Return ECR's cost (s, i, j)."""
    own = weight @ share
    both = np.swapaxes(share, 1, 2) @ (weight[:, None] * pivot)
    cost = 0.5 * (own[:, :, None] + weight @ pivot) - both
    return np.maximum(cost, 0.0)


def divergence(share: Array, pivot: Array, weight: Array) -> Array:
    """Return Stephens' cost (s, i, j)."""
    own = weight @ xlogy(share, share)
    cross = np.swapaxes(share, 1, 2) @ (weight[:, None] * np.log(np.maximum(pivot, _TINY)))
    mass = weight @ share
    cost = (own - mass)[:, :, None] - cross + weight @ pivot
    return np.maximum(cost, 0.0)


# Methods


def to_shares(
    shares: Shares,
    pivot: Array,
    weight: Array,
    cost: Cost = mismatch,
    kinds: Labels | None = None,
) -> Labelled:
    """Label draws by the rows that their components have in common with a pivot's, (n, k)."""
    k = pivot.shape[1]
    found = np.empty((shares.s, k, k))
    for part, share in shares.blocks():
        found[part] = cost(share, pivot, weight)
    return _cheapest(found, kinds)


def by_turns(
    shares: Shares,
    weight: Array,
    cost: Cost,
    *,
    averaged: Shares | None = None,
    is_hard: bool = False,
    kinds: Labels | None = None,
) -> Labelled:
    """Find pivot and labels in turns: given the labels the pivot is an average, and so on.

    Parameters
    ----------
    shares : Shares
        Whose cost is to be low. The labels that they have are the first ones.
    weight : (n,) array
        Of the rows; they sum to one.
    cost : callable
        Of shares, pivot and weights.
    averaged : Shares, optional
        What the pivot is the average of, if other shares.
    is_hard : bool
        Whether the pivot has each row in one component only: that with the largest average.
    kinds : (k,) integer array, optional
        As in `labels.align`.

    Returns
    -------
    Labelled
        Turns end where they change nothing or gain nothing; what gains nothing is not taken.
    """
    best: Labelled | None = None
    labelling = np.tile(np.arange(shares.k), (shares.s, 1))
    for _ in range(MOST_TURNS):
        pivot = _average(averaged or shares, labelling)
        if is_hard:
            pivot = np.asarray(pivot.argmax(axis=1)[:, None] == np.arange(pivot.shape[1]), float)
        found = to_shares(shares, pivot, weight, cost, kinds)
        if best is not None:
            if found.loss[-1] >= best.loss[-1]:
                break
            found = Labelled(found.alignment, best.loss + found.loss)
        best = found
        if (found.alignment.permutation == labelling).all():
            break
        labelling = found.alignment.permutation
    assert best is not None
    return best


def to_parameters(draws: Array, pivot: Array, kinds: Labels | None = None) -> Labelled:
    """Label draws (s, k, p) by the distance of their parameters from a pivot's, (k, p)."""
    cost = 0.5 * ((draws[:, :, None] - pivot) ** 2).sum(axis=-1)
    return _cheapest(cost, kinds)


def in_order(values: Array, kinds: Labels | None = None) -> Labelled:
    """Label draws so that a parameter (s, k) increases."""
    middle = np.sort(values, axis=1).mean(axis=0)
    return _cheapest((values[:, :, None] - middle) ** 2, kinds)


def vectors(weight: Array, mean: Array, covariance: Array, unit: Array) -> Array:
    """Return the parameters of every component as numbers (s, k, p), in units of the features.

    Parameters
    ----------
    weight, mean, covariance : (s, k), (s, k, d) and (s, k, d, d) arrays
    unit : (d,) array
        By which the features are divided; each element of a covariance counts once.
    """
    lower = np.tril_indices(len(unit))
    scaled = (covariance / np.outer(unit, unit))[..., lower[0], lower[1]]
    return np.concatenate([weight[..., None], mean / unit, scaled], axis=-1)


def spread(p: Parameters) -> Array:
    """Return the standard deviations (d,) of the whole mixture."""
    share = p.weight / p.weight.sum()
    apart = p.mean - share @ p.mean
    return np.sqrt(share @ (np.diagonal(p.covariance, axis1=1, axis2=2) + apart**2))


def _average(shares: Shares, labelling: Labels) -> Array:
    total = np.zeros((shares.n, labelling.shape[1]))
    for part, share in shares.blocks():
        total += np.take_along_axis(share, labelling[part][:, None], axis=2).sum(axis=0)
    return total / shares.s


def _cheapest(cost: Array, kinds: Labels | None) -> Labelled:
    if kinds is not None:
        cost[:, kinds[:, None] != kinds] = np.inf
    found = labels.assign(cost)
    label = np.arange(cost.shape[1])
    total = cost[np.arange(len(cost))[:, None], found.permutation, label].sum()
    return Labelled(found, (float(total) / len(cost),))
