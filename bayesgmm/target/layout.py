"""Rows by what is known of them as plain arrays: what the compiled log-posterior reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesgmm.groups import Group
from bayesgmm.moments import Array


@dataclass(frozen=True, eq=False)
class Layout:
    """Groups as arrays, as `kernel_ops.of_groups` reads them; all but x and weight may be empty.

    Parameters
    ----------
    x : (n, d) array
        Rows by group, 0 where missing.
    weight : (n,) array
        Theirs, or shape (0,).
    order : (n,) array
        Which rows they are, as numbers; shape (0,) if nothing is missing and no label known.
    begin : (g + 1,) array
        Where groups begin, and the last ends.
    observed : (g, d) array
        1 or 0.
    factor : (g, k) array
        What log-weights get added.
    known : (n, k) array
        Logarithms of plausibilities that differ by row, or shape (0, k).
    """

    x: Array
    weight: Array
    order: Array
    begin: Array
    observed: Array
    factor: Array
    known: Array

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All but x and weight, in the order of `kernel_ops.known_in_part`."""
        return self.order, self.begin, self.observed, self.factor, self.known


def layout(groups: Sequence[Group], k: int, of_noise: Array | None = None) -> Layout:
    """Return groups of rows, of k components, as arrays.

    Parameters
    ----------
    groups : sequence of Group
    k : int
        Without noise.
    of_noise : (d,) array, optional
        Noise is one component more, and its log-weight gets this added for what is missing.
    """
    x, weight = groups[0].x, groups[0].weight
    d, nothing, every = x.shape[1], np.empty(0), k if of_noise is None else k + 1
    if len(groups) == 1 and groups[0].is_plain:
        return Layout(x, weight, nothing, nothing, np.empty((0, d)), *np.empty((2, 0, every)))
    sizes = [len(group.x) for group in groups]
    observed = np.array([group.observed for group in groups], dtype=np.float64)
    factor = np.array([np.broadcast_to(group.log_factor, k) for group in groups])
    known = np.empty((0, every))
    with np.errstate(divide="ignore"):
        if any(group.plausibility.ndim == 2 for group in groups):
            each = [g.plausibility if g.plausibility.ndim == 2 else np.ones((1, k)) for g in groups]
            by_row = [np.broadcast_to(one, (m, k)) for one, m in zip(each, sizes, strict=True)]
            known = np.log(np.concatenate(by_row))
        if of_noise is not None:
            may = [g.may_be_noise for g in groups]
            level = (1.0 - observed) @ of_noise
            if len(known):
                filled = [np.broadcast_to(one, m) for one, m in zip(may, sizes, strict=True)]
                known = np.column_stack([known, np.log(np.concatenate(filled))])
            else:
                level = level + np.log(np.array(may, dtype=np.float64))
            factor = np.column_stack([factor, level])
    places = np.arange(sum(sizes))
    return Layout(
        np.concatenate([group.x for group in groups]),
        np.concatenate([group.weight for group in groups]),
        np.concatenate([places[group.rows] for group in groups]).astype(np.float64),
        np.cumsum([0, *sizes], dtype=np.float64),
        observed,
        factor,
        known,
    )
