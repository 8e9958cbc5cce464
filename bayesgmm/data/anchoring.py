"""Where columns are and how far they spread, and the units that follow from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.table import Table
from bayesgmm.streams import Rows


def median(column: Array, frequency: Array | None) -> float:
    """Return the weighted median: to the bit the same in any order, or for a row twice.

    Unlike the mean it leaves the digits of the other rows alone when one is far out. The column,
    which is the caller's to lose, is left in another order.
    """
    if frequency is None:
        return float(np.median(column, overwrite_input=True))
    order = np.argsort(column)
    below = np.cumsum(frequency[order])
    i = min(int(np.searchsorted(below, 0.5 * below[-1])), len(order) - 1)
    is_tie = below[i] == 0.5 * below[-1]
    here = column[order[i]]
    return float(0.5 * (here + column[order[i + 1]]) if is_tie else here)


def location_and_spread(rows: Rows) -> tuple[Array, Array]:
    """Return the medians and standard deviations of what is observed in each column.

    Of a column of which no two differ the latter is 0, and of one with nothing the former.
    """
    d = rows.x.shape[1]
    total = rows.observed()
    center = np.array([median(*rows.column(j)) if total[j] > 0 else 0.0 for j in range(d)])
    low, high = rows.extremes()
    largest = np.maximum(center - low, high - center)
    varies = (largest > 0) & (total > 1)
    unit = np.where(varies, largest, 1.0)  # so that no square overflows or vanishes
    mean = rows.means(lambda x: (x - center) / unit)
    variance = rows.means(lambda x: ((x - center) / unit - mean) ** 2)
    divisor = np.where(varies, total - 1.0, 1.0)
    return center, unit * np.sqrt(variance * (total / divisor))


def moments_of(rows: Rows) -> tuple[Array, Array]:
    """Return means and covariance, whose divisor is the total weight - 1; of rows without NaN."""
    mean = rows.means(lambda x: x)
    covariance = np.zeros((len(mean), len(mean)))
    for deviation in deviations(rows, mean):
        covariance += deviation.T @ deviation
    return mean, 0.5 * (covariance + covariance.T)


def deviations(rows: Rows, mean: Array) -> Iterator[Array]:
    """Yield deviations from the mean, in blocks, whose sums of squares are the variances."""
    divisor = rows.count()[1] - 1.0
    for x, frequency in rows:
        deviation = x - mean
        deviation *= np.sqrt((1.0 if frequency is None else frequency[:, None]) / divisor)
        yield deviation


def center_of(median: Array, table: Table) -> tuple[Array, Array]:
    """Return the center in data units, and what to subtract from the columns as they are held.

    Columns of integers beyond 2**53 are held as differences from their smallest value.
    """
    center, shift = median.copy(), median.copy()
    for j, (smallest, _) in table.integers.items():
        center[j] = float(smallest + round(median[j]))
        shift[j] = float(int(center[j]) - smallest)
    return center, shift


def scale_of(spread: Array, family: Covariance | None) -> Array:
    """Return powers of two near the spreads; one for all if the family depends on units."""
    if family is not None and not family.is_axis_equivariant:
        largest = spread.max()
        spread = np.full_like(spread, largest * np.sqrt(np.mean((spread / largest) ** 2)))
    power: Array = np.ldexp(1.0, np.rint(np.log2(spread)).astype(int))
    return power
