"""Data as the fits use them: checked, anchored and scaled once, with names and row labels.

Each column is centred at its median and divided by a power of two near its standard deviation; both
are exact or nearly so, so that an offset of 1e8 or a unit of 1e-8 costs no digits that the data
hold.  What is no table is refused in `table`, what no mixture can be fitted to in `preflight`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array, Covariance
from bayesgmm.errors import ArgumentError, TooFewRowsError
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters
from bayesgmm.preflight import (
    check_dependence,
    check_units,
    observation_weights,
    refuse_constant,
    refuse_extreme_spread,
    refuse_far_rows,
    refuse_few_rows,
    refuse_large_numbers,
    warn_if_underdetermined,
    warn_of_lost_digits,
    warn_of_tied_rows,
)
from bayesgmm.table import Table, align, tabulate


@dataclass(frozen=True, eq=False)
class Data:
    """Observations ready to be fitted; made by `read`.

    Attributes
    ----------
    x : (n, d) array
        ``(values - center) / scale``, C-contiguous: anchored units.
    values : (n, d) array
        What was given, in data units.
    weight : (n,) array
        Frequencies of the observations, or shape (0,) when all are one.
    names : tuple of str
        The d column names.
    index : pandas.Index
        The n row labels.
    center, scale : (d,) array
        In data units. Scales are powers of two; one common value unless the family can be
        rescaled column by column.
    mean : (d,) array
        Weighted column means, anchored units.
    covariance : (d, d) array
        Weighted covariance with divisor total weight - 1, anchored units.
    fingerprint : str
        ``"sha256:..."`` of values, names and weights.
    """

    x: Array
    values: Array
    weight: Array
    names: tuple[str, ...]
    index: pd.Index[Any]
    center: Array
    scale: Array
    mean: Array
    covariance: Array
    fingerprint: str

    @property
    def n(self) -> int:
        """Number of rows, those of weight 0 included."""
        return int(self.x.shape[0])

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.x.shape[1])

    @property
    def total_weight(self) -> float:
        """Sum of the weights: the number of observations that they stand for."""
        return float(self.weight.sum()) if self.weight.size else float(self.n)

    @property
    def log_jacobian(self) -> float:
        """What turns an anchored log-likelihood into one in data units, by addition."""
        return -self.total_weight * float(np.log(self.scale).sum())

    def to_anchored(self, parameters: Parameters) -> Parameters:
        """Return parameters given in data units in anchored units."""
        covariance = parameters.covariance / self.scale[:, None] / self.scale
        mean = (parameters.mean - self.center) / self.scale
        return replace(parameters, mean=mean, covariance=covariance)

    def to_data_units(self, parameters: Parameters) -> Parameters:
        """Return parameters given in anchored units in data units."""
        covariance = parameters.covariance * self.scale[:, None] * self.scale
        mean = parameters.mean * self.scale + self.center
        return replace(parameters, mean=mean, covariance=covariance)

    def rows(self, index: NDArray[np.intp]) -> Data:
        """Return some rows, in the units of all."""
        weight = self.weight[index] if self.weight.size else self.weight
        x, values = self.x[index], self.values[index]
        return replace(self, x=x, values=values, weight=weight, index=self.index[index])

    def original(self) -> Array:
        """Return a copy of the (n, d) values in data units, as they were given."""
        return self.values.copy()


def read(
    X: Any,
    *,
    sample_weight: Any = None,
    family: Covariance | None = None,
    n_components: int = 1,
    columns: Sequence[str] | None = None,
) -> Data:
    """Check, anchor and scale a table of observations.

    Parameters
    ----------
    X : (n, d) table, or one column of length n
        NumPy, pandas, polars, pyarrow, xarray, a mapping or nested sequences. Never changed, and
        copied, so that later changes to it do not reach the fit.
    sample_weight : (n,) array, optional
        Frequencies: weight 2 is the row twice, weight 0 is the row absent (for the checks too,
        but its cells must be numbers).
    family : Covariance, optional
        Decides which checks apply and whether columns are scaled one by one.
    n_components : int
        How many distinct rows are needed at least.
    columns : sequence of str, optional
        The columns to use, in this order. Default: all.

    Returns
    -------
    Data

    Raises
    ------
    DataError
        The subclass says what is wrong, the message where and what to do.
    ArgumentError
        If the family is for one dimension and the table has more.

    Warns
    -----
    DataWarning
        With code precision-loss, near-collinear, underdetermined, tied-rows or unequal-scales.
    """
    table = tabulate(X, columns)
    names, index = table.names, table.index
    n, d = table.values.shape
    if family is not None and family.is_one_dimensional and d > 1:
        raise ArgumentError(
            "covariance", f"{family} is for one column, X has {d}; use EII, VII or another family"
        )
    if n < 2:
        raise TooFewRowsError("X has a single row; a mixture needs at least two distinct rows")
    weight = observation_weights(sample_weight, index)
    # Rows of weight 0 count as absent from here on, but stay in x.
    present: Any = np.flatnonzero(weight) if (weight == 0).any() else slice(None)
    frequency = weight[present] if weight.size else None

    # Column after column in memory: sums down a column are faster so, and rounded less.
    x = np.array(table.values, order="F")  # a copy even of a single column
    for j, (_, difference) in table.integers.items():
        x[:, j] = difference
    rows = np.asfortranarray(x[present])
    refuse_constant(rows, table, is_weighted=bool(weight.size))
    refuse_few_rows(rows, n_components)
    refuse_large_numbers(x, names)
    median = _median(rows, frequency)
    spread = _spread(rows, median, frequency)
    refuse_extreme_spread(spread, names)
    center, shift = _center(median, table)
    scale = _scale(spread, names, family)
    x -= shift
    x /= scale
    refuse_far_rows(x, index)
    rows = np.asfortranarray(x[present])
    mean = _average(rows, frequency)
    deviation = _weighted_deviation(rows, mean, frequency)
    covariance = deviation.T @ deviation
    covariance = 0.5 * (covariance + covariance.T)
    warn_of_lost_digits(table, center, spread)
    if family is not None:
        if not family.is_diagonal and len(rows) > d:
            rounding = float((table.epsilon * np.maximum(np.abs(center) / spread, 1.0)).max())
            location = center + scale * mean
            check_dependence(deviation, covariance, location, scale, names, rounding)
        warn_if_underdetermined(_total(rows, frequency), d, family, n_components)
    warn_of_tied_rows(rows, frequency, center, scale)
    return Data(
        x=np.ascontiguousarray(x),
        values=table.values,
        weight=weight,
        names=names,
        index=index,
        center=center,
        scale=scale,
        mean=mean,
        covariance=covariance,
        fingerprint=_fingerprint(table, weight),
    )


def read_for(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Sequence[str] | None = None,
) -> Data:
    """Read a table for a specification: `read` with its family and number of components."""
    return read(
        X,
        sample_weight=sample_weight,
        family=spec.covariance,
        n_components=spec.n_components,
        columns=columns,
    )


def read_like(X: Any, names: Sequence[str]) -> tuple[Array, pd.Index[Any]]:
    """Read new data for a mixture that was fitted to columns `names`.

    Parameters
    ----------
    X : (n, d) table
        As in `read`; one row or a constant column is fine. Columns are matched by name if X has
        names, else taken in the order of `names`.
    names : sequence of str

    Returns
    -------
    values : (n, d) array
        In data units, columns in the order of `names`.
    index : pandas.Index
        The row labels.

    Raises
    ------
    ColumnNameError, ShapeError
        If columns are missing or unexpected, or their number is wrong.
    DataError
        If cells are not finite numbers.
    """
    table = align(X, names)
    return table.values, table.index


# Location, spread and units


def _total(rows: Array, frequency: Array | None) -> float:
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
    total = _total(rows, frequency)
    variance = _average(np.square(deviation, out=deviation), frequency) * (total / (total - 1.0))
    return np.asarray(largest * np.sqrt(variance))


def _center(median: Array, table: Table) -> tuple[Array, Array]:
    """Return the center in data units, and what to subtract from the columns as they are held.

    Columns of integers beyond 2**53 are held as differences from their smallest value.
    """
    center, shift = median.copy(), median.copy()
    for j, (smallest, _) in table.integers.items():
        center[j] = float(smallest + round(median[j]))
        shift[j] = float(int(center[j]) - smallest)
    return center, shift


def _scale(spread: Array, names: Sequence[str], family: Covariance | None) -> Array:
    """Return powers of two near the spreads; one for all if the family depends on units."""
    if family is not None and not family.is_axis_equivariant:
        check_units(spread, names, family)
        largest = spread.max()
        spread = np.full_like(spread, largest * np.sqrt(np.mean((spread / largest) ** 2)))
    power: Array = np.ldexp(1.0, np.rint(np.log2(spread)).astype(int))
    return power


def _weighted_deviation(rows: Array, mean: Array, frequency: Array | None) -> Array:
    """Return deviations from the mean whose sums of squares are the variances."""
    divisor = _total(rows, frequency) - 1.0
    deviation = rows - mean
    deviation *= np.sqrt((1.0 if frequency is None else frequency[:, None]) / divisor)
    return deviation


def _fingerprint(table: Table, weight: Array) -> str:
    digest = hashlib.sha256(json.dumps([table.values.shape, table.names]).encode())
    digest.update(np.ascontiguousarray(table.values + 0.0, dtype="<f8").data)  # -0.0 is 0.0
    for _, difference in table.integers.values():
        digest.update(difference.astype("<f8").data)
    digest.update(weight.astype("<f8").data)
    return f"sha256:{digest.hexdigest()}"
