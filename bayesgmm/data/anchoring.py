"""Where columns are and how far they spread, and the units that follow from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.preflight import check_units
from bayesgmm.data.table import Table


def total_of(rows: Array, frequency: Array | None) -> float:
    """Return how many observations rows are."""
    return float(len(rows)) if frequency is None else float(frequency.sum())


def _average(rows: Array, frequency: Array | None) -> Array:
    if frequency is None:
        return rows.mean(axis=0)
    share = frequency / frequency.sum()
    return np.asarray((rows * share[:, None]).sum(axis=0))


def _median(rows: Array, frequency: Array | None) -> Array:
    """Return the weighted median: to the bit the same in any order, or for a row twice.

    Unlike the mean it leaves the digits of the other rows alone when one is far out.
    """
    if frequency is None:
        return np.median(rows, axis=0)
    middle = np.empty(rows.shape[1])
    for j, column in enumerate(rows.T):
        order = np.argsort(column)
        below = np.cumsum(frequency[order])
        i = min(int(np.searchsorted(below, 0.5 * below[-1])), len(order) - 1)
        is_tie = below[i] == 0.5 * below[-1]
        middle[j] = 0.5 * (column[order[i]] + column[order[i + 1]]) if is_tie else column[order[i]]
    return middle


def _spread(rows: Array, median: Array, frequency: Array | None) -> Array:
    """Return the standard deviations, whatever the unit."""
    deviation = rows - median
    largest = np.maximum(-deviation.min(axis=0), deviation.max(axis=0))
    deviation /= largest  # so that no square overflows or vanishes
    deviation -= _average(deviation, frequency)
    total = total_of(rows, frequency)
    variance = _average(np.square(deviation, out=deviation), frequency) * (total / (total - 1.0))
    return np.asarray(largest * np.sqrt(variance))


def location_and_spread(rows: Array, frequency: Array | None) -> tuple[Array, Array]:
    """Return the medians and standard deviations of what is observed in each column."""
    if not np.isnan(rows).any():
        median = _median(rows, frequency)
        return median, _spread(rows, median, frequency)
    found = []
    for column in rows.T:
        there = ~np.isnan(column)
        part = np.asfortranarray(column[there, None])
        own = None if frequency is None else frequency[there]
        middle = _median(part, own)
        found.append((middle[0], _spread(part, middle, own)[0]))
    median, spread = np.array(found).T
    return median, spread


def moments_of(rows: Array, frequency: Array | None) -> tuple[Array, Array, Array]:
    """Return means, covariance, and deviations whose sums of squares are the variances."""
    mean = _average(rows, frequency)
    deviation = _weighted_deviation(rows, mean, frequency)
    covariance = deviation.T @ deviation
    return mean, 0.5 * (covariance + covariance.T), deviation


def center_of(median: Array, table: Table) -> tuple[Array, Array]:
    """Return the center in data units, and what to subtract from the columns as they are held.

    Columns of integers beyond 2**53 are held as differences from their smallest value.
    """
    center, shift = median.copy(), median.copy()
    for j, (smallest, _) in table.integers.items():
        center[j] = float(smallest + round(median[j]))
        shift[j] = float(int(center[j]) - smallest)
    return center, shift


def scale_of(spread: Array, names: Sequence[str], family: Covariance | None) -> Array:
    """Return powers of two near the spreads; one for all if the family depends on units."""
    if family is not None and not family.is_axis_equivariant:
        check_units(spread, names, family)
        largest = spread.max()
        spread = np.full_like(spread, largest * np.sqrt(np.mean((spread / largest) ** 2)))
    power: Array = np.ldexp(1.0, np.rint(np.log2(spread)).astype(int))
    return power


def _weighted_deviation(rows: Array, mean: Array, frequency: Array | None) -> Array:
    """Return deviations from the mean whose sums of squares are the variances."""
    divisor = total_of(rows, frequency) - 1.0
    deviation = rows - mean
    deviation *= np.sqrt((1.0 if frequency is None else frequency[:, None]) / divisor)
    return deviation
