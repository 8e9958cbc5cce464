r"""One partition for a whole posterior, and how far the posterior reaches around it.

The best partition under a loss is :math:`c^* = \arg\min_c E \, L(c, z)`.  The expectation is a mean
over partitions drawn from the posterior, one from every draw; the losses are in `losses`.  The
minimum is looked for downhill (`contingency`) from many partitions: most probable components, drawn
ones, cuts of the trees of average and complete linkage of the co-clustering matrix, and rows put
one by one, in random order, where they cost least.

The credible ball around c* is the smallest that holds, say, 95 % of the drawn partitions.  What is
on its border says what the posterior is not sure about: the *horizontal* bound is the farthest
partition; of the partitions with the fewest clusters the farthest is the *upper* vertical bound,
of those with the most clusters the *lower* one (a partition that is finer is lower in the lattice
of partitions).

References
----------
Binder (1978), Biometrika 65, 31-38.  Dahl (2006), in Bayesian Inference for Gene Expression and
Proteomics, 201-218.  Lau & Green (2007), J. Comput. Graph. Statist. 16, 526-558.  Wade & Ghahramani
(2018), Bayesian Anal. 13, 559-626.  Dahl, Johnson & Müller (2022), J. Comput. Graph. Statist. 31,
1189-1201.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from bayesgmm.allocation.coclustering import together
from bayesgmm.allocation.contingency import descend
from bayesgmm.allocation.drawn import MOST, Drawn, Labels, ask, counted, row_names
from bayesgmm.allocation.losses import Loss, distances, phi
from bayesgmm.arguments import whole_number
from bayesgmm.data.cells import Missing
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.rows import check_prob

Clusters = NDArray[np.intp]
BOUNDS = ("horizontal", "upper", "lower")
_PAIRS = 2000  # rows up to which trees of linkage are cut
_DRAWN = 25  # drawn partitions that are candidates
_BEST = 4  # candidates from which the search goes downhill


@dataclass(frozen=True, eq=False)
class Partition:
    """The best partition of rows under a loss, with its credible ball.

    Attributes
    ----------
    labels : Series
        (n,) integers, named "cluster", from 0 in the order of the rows. They have nothing to do
        with the labels of the fit's components.
    loss : {"vi", "binder"}
    expected_loss : float
        Mean loss over the drawn partitions: in bits for "vi"; for "binder" the share of the n²
        ordered pairs of rows.
    ball : Dataset
        Of the drawn partitions on the border of the ball: ``label`` (bound, obs), ``distance`` and
        ``n_clusters`` (bound), for the bounds "horizontal", "upper" and "lower". ``radius`` is the
        distance within which ``attrs["ci_prob"]`` of the drawn partitions are.
    p_occupied : Series
        Posterior probability of every number of components that have rows at all, named
        "probability".
    """

    labels: pd.Series[int]
    loss: Loss
    expected_loss: float
    ball: xr.Dataset
    p_occupied: pd.Series[float]

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, np.bincount(self.labels)))
        unit = " bits" if self.loss == "vi" else ""
        prob = f"{100 * self.ball.attrs['ci_prob']:g} %"
        reach = ", ".join(
            f"{name} {int(self.ball['n_clusters'].sel(bound=name))}" for name in BOUNDS
        )
        return (
            f"Partition of {len(self.labels)} rows into {self.n_clusters} clusters ({sizes})\n"
            f"  expected {self.loss} loss {self.expected_loss:.4g}{unit}\n"
            f"  {prob} of the posterior within {float(self.ball['radius']):.4g}{unit}; "
            f"clusters at the bounds: {reach}"
        )


def partition(
    fit: xr.DataTree,
    X: Any = None,
    *,
    loss: Loss = "vi",
    ci_prob: float = 0.95,
    max_clusters: int | None = None,
    n_starts: int = 8,
    draws: int | None = None,
    missing: Missing = "error",
    random_seed: int | None = None,
) -> Partition:
    """Return the partition with the least posterior expected loss, and its credible ball.

    Labels play no part: draws whose components are called otherwise give the same partition.

    Parameters
    ----------
    fit : DataTree
        With draws: of `sample_posterior`, `fit_laplace` or `bootstrap`.
    X : (n, d) table, optional
        Default: the rows of the fit, with what was known of them; those of weight 0, and those of
        which nothing was observed, are left out.
    loss : {"vi", "binder"}
        Variation of information, or Binder's loss, which is known to split off small clusters.
    ci_prob : float
        Probability of the credible ball.
    max_clusters : int, optional
        Default: as many as the mixture has components, the most that a draw can have.
    n_starts : int
        How often rows are put into clusters one by one in random order, besides the other starts.
    draws : int, optional
        Use only this many, evenly spaced. Default: all. The time is proportional to rows times
        draws times clusters; so is memory, to rows times draws.
    missing : {"error", "drop", "marginalise"}
        What to do about missing values in ``X``, as in `predict_proba`.
    random_seed : int, optional
        The same seed gives the same partition.

    Returns
    -------
    Partition

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, the fit is a point estimate, or rows times draws, or clusters times
        draws times components, are more than 2^27.
    NotYetSupportedError
        If the rows of the fit have weights other than 0 and 1, and no ``X`` is given.
    """
    check_prob(ci_prob)
    phi(loss, 1)
    n_starts = whole_number("n_starts", n_starts, least=0)
    if random_seed is not None:
        random_seed = whole_number("random_seed", random_seed, least=0)
    asked = ask(fit, X, draws, missing)
    if X is None:
        asked = asked.take(counted(fit))
    most = asked.k if max_clusters is None else max_clusters
    most = min(whole_number("max_clusters", most, least=1), asked.n)
    if asked.n * asked.s > MOST:
        raise ArgumentError(
            "draws",
            f"{asked.n} rows times {asked.s} draws are more than {MOST} numbers; the most are "
            f"draws={max(1, MOST // asked.n)}",
        )
    if most * asked.s * asked.k > MOST:
        raise ArgumentError(
            "max_clusters",
            f"{most} times {asked.s} draws times {asked.k} components are more than {MOST} "
            f"numbers; the most are max_clusters={MOST // (asked.s * asked.k)}, or fewer draws",
        )
    rng = np.random.default_rng(random_seed)
    z = asked.sample(rng)
    candidates = _candidates(asked, z, most)
    label = best_partition(candidates, z, loss, most=most, n_starts=n_starts, rng=rng)
    apart = distances(label, z, loss)
    names = row_names(asked.index)
    return Partition(
        pd.Series(label, index=asked.index, name="cluster"),
        loss,
        float(apart.mean()),
        _ball(z, apart, ci_prob).assign_coords(obs=names),
        _occupied(z, asked.k),
    )


def _candidates(asked: Drawn, z: Labels, most: int) -> Iterator[Clusters]:
    """Yield partitions from which a search may start, with any number of clusters."""
    n, s = z.shape
    yield np.zeros(n, dtype=np.intp)
    few = np.unique(np.linspace(0, s - 1, _DRAWN).round().astype(np.intp))
    total, begin = np.zeros((n, asked.k)), 0
    for r in asked.responsibilities():
        total += r.sum(axis=1)
        for t in few[(few >= begin) & (few < begin + r.shape[1])] - begin:
            yield r[:, t].argmax(axis=1)
        begin += r.shape[1]
    yield total.argmax(axis=1)
    for t in few:
        yield z[:, t].astype(np.intp)
    if 2 < n <= _PAIRS:
        apart = squareform(1.0 - together(asked), checks=False)
        for method in ("average", "complete"):
            cuts = cut_tree(linkage(apart, method), np.arange(1, most + 1))
            yield from cuts.T


def best_partition(
    candidates: Iterable[NDArray[Any]],
    z: Labels,
    loss: Loss,
    *,
    most: int,
    n_starts: int,
    rng: np.random.Generator,
) -> Clusters:
    """Return the best partition (n,) that a search finds.

    Parameters
    ----------
    candidates : iterable of (n,) arrays
        The search goes downhill from the best ones with no more than ``most`` clusters.
    z : (n, s) integer array
        Components in the draws.
    loss : {"vi", "binder"}
    most : int
        The most clusters.
    n_starts : int
        How often rows are put into clusters one by one.
    rng : Generator
        For the orders in which rows are looked at.
    """
    n, k = len(z), int(z.max()) + 1
    of = phi(loss, n)
    named = (_renamed(label) for label in candidates)
    different = {label.tobytes(): label for label in named if label.max() < most}
    cost = {key: float(distances(label, z, loss).mean()) for key, label in different.items()}
    leaders = sorted(cost, key=lambda key: (cost[key], key))[:_BEST]
    starts = [different[key] for key in leaders]
    starts += [np.full(n, -1, dtype=np.intp) for _ in range(n_starts)]
    found = []
    for label in starts:
        descend(label, z, of, most, k, rng.permutation(n))
        found.append(_renamed(label))
    return min(found, key=lambda label: float(distances(label, z, loss).mean()))


def _renamed(label: NDArray[Any]) -> Clusters:
    """Return labels that are numbered in the order of the rows."""
    return pd.factorize(label)[0].astype(np.intp)


def _ball(z: Labels, apart: Array, ci_prob: float) -> xr.Dataset:
    """Return the border of the smallest ball that holds a share of the drawn partitions."""
    radius = float(np.quantile(apart, ci_prob, method="inverted_cdf"))
    inside = np.flatnonzero(apart <= radius)
    size = np.array([len(np.unique(z[:, t])) for t in inside])
    order = {"horizontal": np.zeros(len(size)), "upper": size, "lower": -size}
    # The first of those that are equal; distances that differ by rounding are.
    away = -apart[inside].round(12)
    bound = [inside[np.lexsort((inside, away, order[name]))[0]] for name in BOUNDS]
    return xr.Dataset(
        {
            "label": (("bound", "obs"), np.array([_renamed(z[:, t]) for t in bound])),
            "distance": ("bound", apart[bound]),
            "n_clusters": ("bound", [len(np.unique(z[:, t])) for t in bound]),
            "radius": ((), radius),
        },
        coords={"bound": list(BOUNDS)},
        attrs={"ci_prob": ci_prob},
    )


def _occupied(z: Labels, k: int) -> pd.Series[float]:
    """Return the share of draws in which 1..k components have rows."""
    there = np.zeros((z.shape[1], k), dtype=bool)
    for row in z:
        there[np.arange(z.shape[1]), row] = True
    share = np.bincount(there.sum(axis=1), minlength=k + 1)[1:] / z.shape[1]
    index = pd.RangeIndex(1, k + 1, name="n_occupied")
    return pd.Series(share, index=index, name="probability")
