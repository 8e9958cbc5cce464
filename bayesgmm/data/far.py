"""Rows that are far from all others: found, and named in a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.data.anchoring import median
from bayesgmm.data.cells import count, row_label
from bayesgmm.data.preflight import LARGEST_SD, warn
from bayesgmm.errors import ScaleError
from bayesgmm.streams import Rows, blocks

_FAR = 1e3  # distance from the median of a column, in those of half of the rows
_GAP = 10.0  # and in that of the furthest of the others


def refuse_far_rows(x: Array, index: pd.Index[Any]) -> None:
    """Refuse rows of weight 0 that are beyond reach; those of positive weight are in the spread."""
    for part in blocks(len(x)):
        too_far = np.fmax.reduce(np.abs(x[part]), axis=1) > LARGEST_SD
        if too_far.any():
            label = row_label(index[part.start + int(np.argmax(too_far))])
            raise ScaleError(
                f"row {label} is too far from the others for double precision; drop it"
            )


@dataclass(frozen=True, eq=False)
class Far:
    """Rows that are far from all others: which, and how many times as far as half of them.

    Parameters
    ----------
    rows : (m,) array of int
        Their numbers; mostly there are none.
    times : (m, d) array
        By column; 0 where a row is not far.
    """

    rows: NDArray[np.intp]
    times: Array


def far_rows(rows: Rows) -> Far:
    """Return the rows that are a thousand times as far out as half of them, in some column.

    And ten times as far as all others. They stand for at most d + 1 observations, or they are
    none: more are a group.

    Parameters
    ----------
    rows : Rows
        About the medians of the columns.
    """
    d = rows.x.shape[1]
    low, high = rows.extremes()
    # They are most of the sum of squares if there are any: so they are seldom looked for.
    unweighted = sum(np.nansum(part**2, axis=0) for part, _ in rows)
    furthest = np.maximum(-low, high)
    limit, unit = np.full(d, np.inf), np.ones(d)
    for j in np.flatnonzero(furthest**2 * (d + 1) >= 0.1 * unweighted).tolist():
        column, frequency = rows.column(j)
        unit[j] = median(np.abs(column, out=column), frequency)
        top = np.argsort(column)[::-1][: d + 2]
        out = column[top]
        number = np.cumsum(np.ones(len(top)) if frequency is None else frequency[top])
        is_last = (number <= d + 1)[:-1] & (out > _FAR * unit[j])[:-1]
        is_last &= out[:-1] > _GAP * out[1:]
        if unit[j] > 0 and is_last.any():
            limit[j] = _GAP * out[1:][is_last][-1]
    unit[np.isinf(limit)] = 1.0  # which may be 0, and is not needed
    none = Far(np.empty(0, dtype=np.intp), np.empty((0, d)))
    if not (furthest > limit).any():
        return none
    where, times, weight = [], [], []
    for part, w, place in rows.placed():
        beyond = np.abs(part) > limit
        some = beyond.any(axis=1)
        where.append(place[some])
        times.append(np.where(beyond[some], np.abs(part[some]) / unit, 0.0))
        weight.append(np.ones(len(where[-1])) if w is None else w[some])
    if np.concatenate(weight).sum() > d + 1:
        return none
    return Far(np.concatenate(where), np.concatenate(times))


def without(rows: Rows, far: NDArray[np.intp]) -> Rows:
    """Return rows without some of them, whose weight becomes 0; the same if there are none."""
    if not len(far):
        return rows
    weight = rows.weight.copy() if rows.weight.size else np.ones(len(rows.x))
    weight[far] = 0.0
    return replace(rows, weight=weight)


def warn_of_far_rows(
    far: Far, index: pd.Index[Any], names: Sequence[str], is_constant: NDArray[np.bool_]
) -> None:
    """Warn of a few rows that are far from all others, and name the furthest.

    And the columns that are constant in the others.
    """
    if not len(far.rows):
        return
    top, j = divmod(int(np.argmax(far.times)), len(names))
    found = len(far.rows)
    others = f" (and {count(found - 1, 'more row')})" if found > 1 else ""
    constant = ", ".join(repr(names[j]) for j in np.flatnonzero(is_constant).tolist())
    alone = f"; without {'it' if found == 1 else 'them'} {constant} would be constant"
    warn(
        "far-row",
        f"row {row_label(index[far.rows[top]])} is {far.times[top, j]:.2g} "
        f"times as far from the median of column {names[j]!r} as half of the rows are"
        f"{others}: alone in a component with a covariance of its own it makes the likelihood "
        "infinite, and default priors take their scale from it; correct or drop it, leave it to a "
        "noise component (noise=True), or use a family with a common covariance (EEE, EEI, EII, E)"
        f"{alone if constant else ''}",
    )
