"""Pictures of what only draws give: which rows belong together, and how sure that is.

As in `plots`: every function returns a `Picture` with a text alternative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.allocation.coclustering import coclustering
from bayesgmm.allocation.drawn import chosen, counted
from bayesgmm.allocation.losses import Loss
from bayesgmm.allocation.partition import partition
from bayesgmm.allocation.responsibilities import responsibilities
from bayesgmm.display.plots import POSTERIOR, STYLE, Picture, short
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.prediction.assignment import NOISE_LABEL

_NAMED = 40  # rows up to which each has its name on the axis
# Okabe & Ito's colours, and markers: colour-blind readers can tell components apart by either.
_COLOURS = (POSTERIOR, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_coclustering(
    fit: xr.DataTree,
    X: Any = None,
    *,
    rows: Sequence[int] | None = None,
    loss: Loss = "vi",
    draws: int | None = None,
    random_seed: int | None = None,
    figsize: tuple[float, float] | None = None,
) -> Picture:
    """Draw the co-clustering matrix, its rows ordered by the best partition.

    Lines are between the clusters of the partition. Within a cluster the rows that are surest to be
    in it come first. Blocks are what the posterior agrees on; grey between two blocks are rows, or
    whole clusters, of which it is not sure that they are apart.

    Parameters
    ----------
    fit : DataTree
        With draws.
    X : (n, d) table, optional
        Default: the rows of the fit.
    rows : sequence of int, optional
        Positions of the rows to show. Default: all that the partition has. It is made of all rows.
    loss : {"vi", "binder"}
        As in `partition`.
    draws : int, optional
        Use only this many, evenly spaced. Default: all.
    random_seed : int, optional
        For `partition`.
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError, DataError
        As `coclustering` and `partition`.
    """
    whole = partition(fit, X, loss=loss, draws=draws, random_seed=random_seed)
    if X is None:
        label, there = np.full(fit["observed_data"].sizes["obs"], -1), counted(fit)
        label[there] = whole.labels
        rows = there.tolist() if rows is None else rows
    else:
        label = whole.labels.to_numpy()
    found = coclustering(fit, X, rows=rows, draws=draws)
    label = label[chosen(rows, len(label))]
    if (label < 0).any():
        raise ArgumentError("rows", "has some of weight 0, which are in no partition")
    matrix = found.to_numpy()
    order = _order(matrix, label)
    ends = np.flatnonzero(np.diff(label[order])) + 0.5
    n = len(order)
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=figsize or (5.6, 4.6), layout="constrained")
        ax = figure.add_subplot()
        image = ax.imshow(
            matrix[np.ix_(order, order)],
            cmap="Greys",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest" if n < 400 else "auto",
        )
        for at in ends:
            ax.axhline(at, color=POSTERIOR, lw=0.9)
            ax.axvline(at, color=POSTERIOR, lw=0.9)
        figure.colorbar(image, ax=ax, label="probability of the same component", shrink=0.9)
        ax.spines[["top", "right"]].set_visible(True)
        if n <= _NAMED:
            names = [short(name, 12) for name in found["obs"].to_numpy()[order]]
            size = min(8.0, 240.0 / n)
            ax.set_xticks(range(n), names, rotation=90, fontsize=size, parse_math=False)
            ax.set_yticks(range(n), names, fontsize=size, parse_math=False)
        else:
            ax.set_xticks([])
            ax.set_yticks([])
        ax.set_xlabel(f"{n} rows, by the best partition ({loss} loss)")
    inside = label[:, None] == label
    sizes = ", ".join(map(str, np.bincount(label)[np.unique(label)]))
    apart = f", between clusters {matrix[~inside].mean():.2f}" if not inside.all() else ""
    figure.alt = (
        f"The co-clustering matrix of {n} rows, ordered by the best partition ({loss} loss), with "
        f"clusters of {sizes}. The mean probability of the same component is "
        f"{matrix[inside].mean():.2f} within clusters{apart}."
    )
    return figure


def _order(matrix: Array, label: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the rows by cluster, the surest first; those between two clusters come last."""
    own = np.array(
        [row[label == cluster].mean() for row, cluster in zip(matrix, label, strict=True)]
    )
    return np.lexsort((np.arange(len(label)), -own, label))


def plot_responsibilities(
    fit: xr.DataTree,
    X: Any = None,
    *,
    ci_prob: float = 0.95,
    draws: int | None = None,
    allow_ambiguous: bool = False,
    figsize: tuple[float, float] | None = None,
) -> Picture:
    """Draw the probability of every row's most probable component, with its interval.

    Rows are in the order of the components and, within each, of that probability, so that the rows
    that are not sure stand at the end of each run.

    Parameters
    ----------
    fit : DataTree
        With draws.
    X : (n, d) table, optional
        Default: the rows of the fit.
    ci_prob : float
        Probability of the equal-tailed intervals.
    draws : int, optional
        Use only this many, evenly spaced. Default: all.
    allow_ambiguous : bool
        As in `responsibilities`.
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError, DataError
        As `responsibilities`.

    Warns
    -----
    PosteriorWarning
        With code ambiguous-labels, where that is the fit's verdict.
    """
    found = responsibilities(fit, X, ci_prob=ci_prob, draws=draws, allow_ambiguous=allow_ambiguous)
    mean = found["mean"].to_numpy()
    best = mean.argmax(axis=1)
    own = (np.arange(len(best)), best)
    p, lower, upper = (found[name].to_numpy()[own] for name in ("mean", "eti_lower", "eti_upper"))
    order = np.lexsort((-p, best))
    clusters = found["cluster"].to_numpy()
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=figsize or (7.0, 4.0), layout="constrained")
        ax = figure.add_subplot()
        for j in np.unique(best):
            at = np.flatnonzero(best[order] == j)
            rows = order[at]
            colour = _COLOURS[j % len(_COLOURS)]
            ax.vlines(at, lower[rows], upper[rows], color=colour, alpha=0.35, lw=1.0)
            name = "noise" if clusters[j] == NOISE_LABEL else f"component {clusters[j]}"
            legend = f"{name} ({len(rows)} rows)"
            ax.plot(at, p[rows], _MARKERS[j % len(_MARKERS)], color=colour, ms=3.0, label=legend)
        if len(p) <= _NAMED:
            names = [short(name, 16) for name in found["obs"].to_numpy()[order]]
            ax.set_xticks(range(len(p)), names, rotation=90, fontsize=7, parse_math=False)
        else:
            ax.set_xticks([])
        ax.set_xlabel("rows, by their most probable component")
        ax.set_ylabel(f"probability, with {100 * ci_prob:g} % ETI")
        ax.set_ylim(-0.02, 1.02)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    unsure = int((lower < 0.5).sum())
    figure.alt = (
        f"The probability of the most probable component for {len(p)} rows, with "
        f"{100 * ci_prob:g} % intervals over the draws; {unsure} intervals reach below one half."
    )
    return figure
