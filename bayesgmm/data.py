"""Data as the fits use them: checked, anchored and scaled once, with names and row labels.

Every input that no mixture can be fitted to is refused here, with what to do about it.  Each column
is centred at its median and divided by a power of two near its standard deviation; both are exact
or nearly so, so that an offset of 1e8 or a unit of 1e-8 costs no digits that the data hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
from numpy.typing import NDArray

from bayesgmm.covariance import Array, Covariance
from bayesgmm.errors import (
    ArgumentError,
    CollinearColumnsError,
    ConstantColumnError,
    DataWarning,
    ScaleError,
    TooFewRowsError,
    WeightError,
)
from bayesgmm.moments import Parameters
from bayesgmm.table import Table, align, first_offending, row_label, tabulate, to_numbers

_PACKAGE = os.path.dirname(__file__) + os.sep
_EPSILON = float(np.finfo(np.float64).eps)
_SMALLEST_SD, _LARGEST_SD = 1e-152, 1e152  # their squares are normal numbers, with room around them
_LARGEST_VALUE = 1e165  # beyond it, neighbouring numbers differ by more than _LARGEST_SD
_DEPENDENT = 1e-11  # residual of a column on the others, in its standard deviations
_NEARLY_DEPENDENT = 1e6  # condition number of the standardised table: 1e12 for the correlations


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
    n, d = table.values.shape
    if family is not None and family.is_one_dimensional and d > 1:
        raise ArgumentError(
            "covariance", f"{family} is for one column, X has {d}; use EII, VII or another family"
        )
    if n < 2:
        raise TooFewRowsError("X has a single row; a mixture needs at least two distinct rows")
    weight = _weights(sample_weight, table)
    # Rows of weight 0 count as absent from here on, but stay in x.
    present: Any = np.flatnonzero(weight) if (weight == 0).any() else slice(None)
    frequency = weight[present] if weight.size else None

    x = np.array(table.values.T, order="C")  # a copy even of a single column
    for j, (_, difference) in table.integers.items():
        x[j] = difference
    _refuse_constant(x[:, present], table, is_weighted=bool(weight.size))
    _refuse_few_rows(x[:, present], n_components)
    center, spread = _location_and_spread(x, present, frequency, table)
    center, scale = _anchor(x, center, spread, family, table)
    rows = x[:, present]
    mean = _average(rows, frequency)
    covariance = _covariance(rows, mean, frequency)
    values, names, index, mark = table.values, table.names, table.index, _fingerprint(table, weight)
    anchored = np.ascontiguousarray(x.T)
    data = Data(anchored, values, weight, names, index, center, scale, mean, covariance, mark)

    _warn_of_lost_digits(table, center, spread)
    if family is not None:
        if not family.is_diagonal and rows.shape[1] > d:
            rounding = table.epsilon * np.maximum(np.abs(center) / spread, 1.0)
            _check_dependence(data, rows, frequency, float(rounding.max()))
        _warn_if_underdetermined(data, family, n_components)
    _warn_of_tied_rows(data, rows, frequency)
    return data


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


def _warn(code: str, message: str) -> None:
    warnings.warn(DataWarning(code, message), skip_file_prefixes=(_PACKAGE,))


def _weights(sample_weight: Any, table: Table) -> Array:
    """Return checked weights, or an empty array when all are one."""
    if sample_weight is None:
        return np.empty(0)
    n = len(table.values)
    if isinstance(sample_weight, pd.Series) and table.is_labelled:
        own = sample_weight.index
        if not isinstance(own, pd.RangeIndex) and not own.equals(table.index):
            raise WeightError(
                "sample_weight: its row labels are not those of X; use "
                "sample_weight.reindex(X.index), or sample_weight.to_numpy() to go by position"
            )
    try:
        given = np.asarray(sample_weight)
    except ValueError as error:
        raise WeightError(f"sample_weight: must be {n} numbers, one for each row") from error
    if given.shape != (n,):
        raise WeightError(
            f"sample_weight: has shape {given.shape}, but X has {n} rows: give shape ({n},)"
        )
    numbers = to_numbers(pd.Series(given.astype(int) if given.dtype == bool else given))
    if isinstance(numbers, str):
        label = row_label(table.index[first_offending(given.astype(object))])
        raise WeightError(f"sample_weight: holds {numbers}, first in row {label}; give {n} numbers")
    weight = numbers.astype(np.float64)
    for is_bad, what in (
        (np.isnan(weight), "a missing value"),
        (np.isinf(weight), "an infinite value"),
        (weight < 0, "a negative value"),
    ):
        if is_bad.any():
            i = int(np.argmax(is_bad))
            raise WeightError(
                f"sample_weight: {what} ({weight[i]:g}) in row {row_label(table.index[i])}; weights"
                " are frequencies: finite and at least 0 (0 leaves the row out)"
            )
    if (weight == 1).all():
        return np.empty(0)
    with np.errstate(over="ignore"):
        total = float(weight.sum())
    if total == 0:
        raise WeightError("sample_weight: all weights are 0, so no row is left")
    if not 1 < total < np.inf:
        raise WeightError(
            f"sample_weight: the weights sum to {total:g}, but they are frequencies (weight 2 is "
            "the row twice), so the sum counts observations and must be finite and exceed 1; "
            "relative weights can be rescaled to sum to n: w * (len(w) / w.sum())"
        )
    if np.count_nonzero(weight) < 2:
        label = row_label(table.index[int(np.argmax(weight))])
        raise TooFewRowsError(f"sample_weight: only row {label} has a positive weight")
    return weight


# Location, spread and units


def _total(rows: Array, frequency: Array | None) -> float:
    return float(rows.shape[1]) if frequency is None else float(frequency.sum())


def _average(rows: Array, frequency: Array | None) -> Array:
    """Return the weighted mean over the columns of a (d, m) array."""
    if frequency is None:
        return rows.mean(axis=1)
    return np.asarray((rows * (frequency / frequency.sum())).sum(axis=1))


def _covariance(rows: Array, mean: Array, frequency: Array | None) -> Array:
    divisor = _total(rows, frequency) - 1.0
    deviation = rows - mean[:, None]
    deviation *= np.sqrt((1.0 if frequency is None else frequency) / divisor)
    product = deviation @ deviation.T
    return 0.5 * (product + product.T)


def _median(rows: Array, frequency: Array | None) -> Array:
    """Return the weighted median: to the bit the same in any order, or for a row twice."""
    if frequency is None:
        return np.median(rows, axis=1)
    middle = np.empty(len(rows))
    for j, row in enumerate(rows):
        order = np.argsort(row)
        below = np.cumsum(frequency[order])
        i = min(int(np.searchsorted(below, 0.5 * below[-1])), len(order) - 1)
        is_tie = below[i] == 0.5 * below[-1]
        middle[j] = 0.5 * (row[order[i]] + row[order[i + 1]]) if is_tie else row[order[i]]
    return middle


def _location_and_spread(
    x: Array, present: Any, frequency: Array | None, table: Table
) -> tuple[Array, Array]:
    """Return median and standard deviation of each column; refuse what has no square."""
    reach = np.maximum(-x.min(axis=1), x.max(axis=1))
    if (reach > _LARGEST_VALUE).any():
        j = int(np.argmax(reach))
        _refuse_scale(table, j, f"holds numbers as large as {reach[j]:.3g}", reach[j])
    rows = x[:, present]
    median = _median(rows, frequency)  # an outlier leaves it, and so the digits of the rest, alone
    deviation = rows - median[:, None]
    largest = np.maximum(-deviation.min(axis=1), deviation.max(axis=1))
    deviation /= largest[:, None]  # so that no square overflows or vanishes
    deviation -= _average(deviation, frequency)[:, None]
    total = _total(rows, frequency)
    variance = _average(np.square(deviation, out=deviation), frequency) * (total / (total - 1.0))
    spread: Array = largest * np.sqrt(variance)
    for j, sd in enumerate(spread):
        if not _SMALLEST_SD <= sd <= _LARGEST_SD:
            _refuse_scale(table, j, f"has standard deviation {sd:.3g}", sd)
    return median, spread


def _refuse_scale(table: Table, j: int, what: str, size: float) -> None:
    unit = f"1e{round(np.log10(size)):+d}" if size > 0 else "its unit"
    raise ScaleError(
        f"column {table.names[j]!r} {what}: its variance is beyond double precision; "
        f"change the unit, for example divide the column by {unit}"
    )


def _power_of_two(spread: Array) -> Array:
    power: Array = np.ldexp(1.0, np.rint(np.log2(spread)).astype(int))
    return power


def _anchor(
    x: Array, center: Array, spread: Array, family: Covariance | None, table: Table
) -> tuple[Array, Array]:
    """Anchor x in place; return center and scale in data units."""
    scale = _power_of_two(spread)
    if family is not None and not family.is_axis_equivariant:
        largest = spread.max()
        ratio = largest / spread.min()
        names = [table.names[j] for j in (np.argmax(spread), np.argmin(spread))]
        what = f"columns {names[0]!r} and {names[1]!r} differ in spread by a factor of {ratio:.2g}"
        if ratio > _LARGEST_SD:
            raise ScaleError(f"{what}, beyond double precision for {family}; standardise them")
        if ratio > 1e6:
            _warn(
                "unequal-scales",
                f"{what}, and {family} depends on their units: the narrow one hardly counts; "
                "standardise the columns, or use a family that adapts (VVI, EEE, VVV)",
            )
        common = largest * np.sqrt(np.mean((spread / largest) ** 2))
        scale = np.repeat(_power_of_two(common), len(spread))
    center, shift = center.copy(), center.copy()
    for j, (smallest, _) in table.integers.items():  # x[j] counts from the smallest integer
        center[j] = float(smallest + round(center[j]))
        shift[j] = float(int(center[j]) - smallest)
    x -= shift[:, None]
    x /= scale[:, None]
    too_far = np.abs(x).max(axis=0) > _LARGEST_SD  # rows of weight 0 only: they have no say above
    if too_far.any():
        label = row_label(table.index[int(np.argmax(too_far))])
        raise ScaleError(f"row {label} is too far from the others for double precision; drop it")
    return center, scale


def _fingerprint(table: Table, weight: Array) -> str:
    digest = hashlib.sha256(json.dumps([table.values.shape, table.names]).encode())
    digest.update(np.ascontiguousarray(table.values + 0.0, dtype="<f8").data)  # -0.0 is 0.0
    for _, difference in table.integers.values():
        digest.update(difference.astype("<f8").data)
    digest.update(weight.astype("<f8").data)
    return f"sha256:{digest.hexdigest()}"


# Checks


def _refuse_constant(rows: Array, table: Table, *, is_weighted: bool) -> None:
    constant = np.flatnonzero(rows.min(axis=1) == rows.max(axis=1)).tolist()
    if not constant:
        return
    listed = ", ".join(
        f"{table.names[j]!r} (always "
        f"{rows[j, 0] + (table.integers[j][0] if j in table.integers else 0):g})"
        for j in constant
    )
    note = " among rows of positive weight" if is_weighted else ""
    if len(constant) == len(rows):
        raise ConstantColumnError(f"no column varies{note}: {listed}; there is nothing to fit")
    names = [name for j, name in enumerate(table.names) if j not in constant]
    raise ConstantColumnError(
        f"constant{note}: column {listed}; a Gaussian needs variation, so drop it: columns={names}"
    )


def _distinct_rows(rows: Array, wanted: int) -> int:
    """Count distinct rows, no further than `wanted`; no sorting."""
    found = 0
    while rows.shape[1] and found < wanted:
        found += 1
        rows = rows[:, (rows != rows[:, :1]).any(axis=0)]
    return found


def _refuse_few_rows(rows: Array, n_components: int) -> None:
    head = rows[:, : 100 + 10 * n_components]
    if _distinct_rows(head, n_components) == n_components:
        return
    if (found := _distinct_rows(rows, n_components)) < n_components:
        raise TooFewRowsError(
            f"X has {found} distinct rows, fewer than n_components={n_components}; "
            f"use n_components={found} or less"
        )


def _warn_of_lost_digits(table: Table, center: Array, spread: Array) -> None:
    """Warn when so few digits vary that estimates cannot be exact to three."""
    spacing = np.maximum(table.epsilon, _EPSILON) * np.maximum(np.abs(center), spread)
    digits = np.log10(spread / spacing)
    # Integers beyond 2**53 are exact in x; only what is reported in data units is rounded.
    wanted = [6.0 if j in table.integers else 2.65 for j in range(len(center))]
    if len(lost := np.flatnonzero(digits < wanted)):
        listed = ", ".join(
            f"column {table.names[j]!r} (offset {center[j]:.6g}, spread {spread[j]:.2g}, "
            f"{max(digits[j], 0.0):.1f} digits)"
            for j in lost
        )
        _warn(
            "precision-loss",
            f"the spread is so small beside the offset that few digits are left in {listed}; "
            "subtract the offset before the numbers are stored",
        )


def _check_dependence(data: Data, rows: Array, frequency: Array | None, rounding: float) -> None:
    """Refuse columns that are linear combinations of others; warn when they nearly are.

    QR with pivoting of the standardised table sees a residual of 1e-9 standard deviations where
    the correlation matrix, its square, sees none.
    """
    tolerance = max(_DEPENDENT, min(2.0 * rounding, 1e-4))
    sd = np.sqrt(np.diag(data.covariance))
    smallest = np.linalg.eigvalsh(data.covariance / sd[:, None] / sd)[0]
    if smallest > max(1e-10, data.d / _NEARLY_DEPENDENT**2, tolerance**2):
        return  # the usual case, without a pass over the rows
    z = (rows - data.mean[:, None]) / sd[:, None]
    z *= np.sqrt((1.0 if frequency is None else frequency) / (data.total_weight - 1.0))
    r, pivot = scipy.linalg.qr(z.T, mode="r", pivoting=True, overwrite_a=True)
    r = r[: data.d]
    rank = int(np.count_nonzero(np.abs(np.diag(r)) > tolerance))
    condition = np.inf if rank < data.d else float(np.linalg.cond(r))
    if condition < _NEARLY_DEPENDENT:
        return
    basis = min(rank, data.d - 1)
    coefficient = scipy.linalg.solve_triangular(r[:basis, :basis], r[:basis, basis:])
    found = []
    for c, dependent in zip(coefficient.T, pivot[basis:], strict=True):
        null = np.zeros(data.d)
        null[pivot[:basis]], null[dependent] = -c, 1.0
        found.append(_relation(data, null, sd))
    if rank < data.d:
        raise CollinearColumnsError(
            f"X has columns that are linear combinations of others: {'; '.join(found[:5])}. Drop "
            "one column of each, or use a diagonal family (VVI, EEI, ...)"
        )
    _warn(
        "near-collinear",
        f"columns are nearly linear combinations of others: {'; '.join(found)}, up to a residual "
        f"of {abs(r[-1, -1]):.1g} standard deviations (condition number {condition:.1g}); "
        "covariances keep few digits: drop a column or use a diagonal family",
    )


def _relation(data: Data, null: Array, sd: Array) -> str:
    """Write a null vector of the standardised columns as "x3 = 2*x1 + 0.5*x2"."""
    involved = np.flatnonzero(np.abs(null) > 1e-6 * np.abs(null).max())
    last = involved[-1]
    slope = -null / null[last] * (sd[last] * data.scale[last]) / (sd * data.scale)
    mean = data.center + data.scale * data.mean
    terms = [(float(slope[j]), data.names[j]) for j in involved[:-1]]
    parts = [slope[j] * mean[j] for j in involved[:-1]]
    constant = float(mean[last] - sum(parts))
    size = sum(map(abs, parts)) + abs(mean[last]) + sd[last] * data.scale[last]
    if abs(constant) > 1e-8 * size:
        terms.append((constant, ""))
    text = ""
    for value, name in terms[:8]:
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        number = f"{abs(value):.4g}"
        text += sign + (number if not name else name if number == "1" else f"{number}*{name}")
    more = f" + ... ({len(terms)} terms)" if len(terms) > 8 else ""
    return f"{data.names[last]} = {text}{more}"


def _warn_if_underdetermined(data: Data, family: Covariance, k: int) -> None:
    def count(letters: str) -> int:
        return k - 1 + k * data.d + Covariance(letters).n_parameters(k, data.d)

    if (needed := count(str(family))) > data.total_weight:
        _warn(
            "underdetermined",
            f"{family} with n_components={k} has {needed} free parameters for "
            f"{data.total_weight:.10g} rows; use fewer: tied (EEE) has {count('EEE')}, diag (VVI) "
            f"{count('VVI')}, tied-diag (EEI) {count('EEI')}; or give a prior",
        )


def _warn_of_tied_rows(data: Data, rows: Array, frequency: Array | None) -> None:
    """Warn when one row makes up a tenth of the data: a component may shrink onto it.

    The candidate comes from at most 4096 rows, evenly taken: whoever has a tenth shows there.
    """
    stride = -(-rows.shape[1] // 4096)
    sample, inverse = np.unique(rows[:, ::stride], axis=1, return_inverse=True)
    thinned = None if frequency is None else frequency[::stride]
    candidate = sample[:, [int(np.argmax(np.bincount(inverse.ravel(), thinned)))]]
    is_tied: NDArray[np.bool_] = (rows == candidate).all(axis=0)
    ties = float(np.count_nonzero(is_tied) if frequency is None else frequency[is_tied].sum())
    if ties >= max(5.0, data.d + 2.0, 0.1 * data.total_weight):
        values = data.center + data.scale * candidate[:, 0]
        shown = ", ".join(f"{v:.6g}" for v in values[:5]) + ("..." if data.d > 5 else "")
        _warn(
            "tied-rows",
            f"{ties:.10g} of {data.total_weight:.10g} rows are the same point ({shown}): a "
            "component can shrink onto it, where the likelihood has no bound; give a prior, or "
            "model these rows apart",
        )
