"""Rows that are far from all others: found, and named in a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.data.cells import count, row_label
from bayesgmm.data.preflight import LARGEST_SD, warn
from bayesgmm.errors import ScaleError
from bayesgmm.streams import Rows, blocks

_FAR = 1e6  # distance from the median of a column, in those of half of the rows


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
    """Rows that are far from all others: where, and how many times as far as half of them."""

    rows: NDArray[np.intp]
    column: int
    times: Array


def far_rows(rows: Rows) -> Far | None:
    """Return the rows that are a million times as far out as half of them, by one column.

    They are at most d + 1, or they are none: more are a group.

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
    for j in np.flatnonzero(furthest**2 * (d + 1) >= 0.1 * unweighted).tolist():
        column = rows.column(j)[0]
        half = float(np.median(np.abs(column, out=column), overwrite_input=True))
        if half == 0:
            continue
        where, times = [], []
        for part, _, place in rows.placed():
            is_far = np.abs(part[:, j]) > _FAR * half
            where.append(place[is_far])
            times.append(np.abs(part[is_far, j]) / half)
        found = Far(np.concatenate(where), int(j), np.concatenate(times))
        if 0 < len(found.rows) <= d + 1:
            return found
    return None


def warn_of_far_rows(rows: Rows, index: pd.Index[Any], names: Sequence[str]) -> None:
    """Warn of a few rows that are far from all others, and name the furthest."""
    far = far_rows(rows)
    if far is None:
        return
    top, found = int(np.argmax(far.times)), len(far.rows)
    others = f" (and {count(found - 1, 'more row')})" if found > 1 else ""
    warn(
        "far-row",
        f"row {row_label(index[far.rows[top]])} is {far.times[top]:.2g} "
        f"times as far from the median of column {names[far.column]!r} as half of the rows are"
        f"{others}: alone in a component with a covariance of its own it makes the likelihood "
        "infinite, and default priors take their scale from it; correct or drop it, leave it to a "
        "noise component (noise=True), or use a family with a common covariance (EEE, EEI, EII, E)",
    )
