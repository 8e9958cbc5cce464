"""Anything tabular -> a float64 array with column names and row labels.

What is not a table of finite real numbers is refused here, with the column, the row and the value
at fault.  Libraries that may not be installed are recognised by what their objects can do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.errors import (
    ArgumentError,
    ColumnNameError,
    EmptyDataError,
    InfiniteValueError,
    MissingValueError,
    NonNumericError,
    ShapeError,
)

_SHOWN = 5  # how many offenders a message lists
_EXACT = 2**53  # every integer up to here is a float64


@dataclass(frozen=True, eq=False)
class Table:
    """A table of finite numbers, in the units in which it came.

    Attributes
    ----------
    values : (n, d) array
        A copy: never memory that the caller can still change.
    names : tuple of str
    index : pandas.Index
        The n row labels.
    epsilon : (d,) array
        Relative spacing of the number type that each column came in: coarser for float32, 0 for
        integers, which are exact.
    integers : dict
        For integer columns beyond 2**53, where float64 rounds: position of the column ->
        (smallest value, differences from it), both exact.
    """

    values: Array
    names: tuple[str, ...]
    index: pd.Index[Any]
    epsilon: Array
    integers: dict[int, tuple[int, Array]]


def tabulate(X: Any, columns: Sequence[str] | None = None) -> Table:
    """Read a table, or some of its columns.

    Parameters
    ----------
    X : (n, d) table, or one column of length n
        A pandas, polars or pyarrow table, an xarray DataArray, a mapping from names to columns,
        nested sequences, or anything that NumPy can convert.
    columns : sequence of str, optional
        Names of the columns to use, in this order. Default: all.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        One of its subclasses: ShapeError, EmptyDataError, ColumnNameError, NonNumericError,
        MissingValueError, InfiniteValueError.
    ArgumentError
        If `columns` is not a sequence of names.
    """
    frame, _ = _frame(X)
    names = _names(frame.columns)
    if columns is not None:
        if isinstance(columns, str):
            raise ArgumentError("columns", f"must be a list of names, such as [{columns!r}]")
        wanted = [str(name) for name in columns]
        if not wanted:
            raise EmptyDataError("columns: names no column; name at least one or leave it out")
        absent = [name for name in wanted if name not in names]
        if absent:
            raise ColumnNameError(
                f"columns: X has no {_listed(absent)}{_did_you_mean(absent[0], names)}; "
                f"it has {_listed(names, 30)}"
            )
        chosen = [j for name in wanted for j, found in enumerate(names) if found == name]
        frame, names = frame.iloc[:, chosen], tuple(names[j] for j in chosen)
    _refuse_duplicates(names)
    return _numbers(frame, names)


def align(X: Any, names: Sequence[str]) -> Table:
    """Read a table whose columns must be `names`: matched by name if it has names.

    Parameters
    ----------
    X : (n, d) table
        As in `tabulate`; without names of its own its columns are taken in the order of `names`.
    names : sequence of str

    Returns
    -------
    Table
        Its columns in the order of `names`.

    Raises
    ------
    ColumnNameError, ShapeError
        If columns are missing, unexpected, repeated, or too few or many.
    DataError
        As `tabulate`.
    """
    frame, is_named = _frame(X)
    found, wanted = _names(frame.columns), tuple(names)
    if is_named or set(found) == set(wanted):
        missing = [name for name in wanted if name not in found]
        extra = [name for name in found if name not in wanted]
        if missing or extra:
            parts = [f"{_listed(missing)} missing"] * bool(missing)
            parts += [f"{_listed(extra)} unexpected"] * bool(extra)
            raise ColumnNameError(
                f"X: {'; '.join(parts)}. The mixture was fitted to {_listed(wanted, 30)}: pass "
                "these columns, in any order, or a plain array in this order"
            )
        _refuse_duplicates(found)
        frame = frame.iloc[:, [found.index(name) for name in wanted]]
    elif len(found) != len(wanted):
        is_one_row = len(found) == 1 and len(frame) == len(wanted)
        raise ShapeError(
            f"X has {_count(len(found), 'column')}, but the mixture was fitted to "
            f"{len(wanted)} ({_listed(wanted, 30)})"
            + ("; one observation is a table of one row: np.reshape(X, (1, -1))" * is_one_row)
        )
    return _numbers(frame, wanted)


def row_label(label: Any) -> str:
    """Return a row label as messages show it."""
    label = label.item() if isinstance(label, np.generic) else label
    return repr(label) if isinstance(label, str) else str(label)


# Containers: everything becomes a DataFrame, without a copy where that is possible.


def _frame(X: Any) -> tuple[pd.DataFrame, bool]:
    """Return X as a DataFrame, and whether its columns came with names."""
    if isinstance(X, pd.DataFrame):
        frame, is_named = X, not isinstance(X.columns, pd.RangeIndex)
    elif isinstance(X, pd.Series):
        frame, is_named = X.to_frame(), X.name is not None
        frame.columns = pd.Index([X.name if is_named else "x0"], dtype=object)
    elif isinstance(X, xr.DataArray):
        frame, is_named = _frame_of_data_array(X)
    elif isinstance(X, xr.Dataset | xr.DataTree):
        raise ShapeError(
            f"X is an xarray {type(X).__name__}, which holds several arrays; pass one of them, "
            "X['name'], or X.to_dataframe()"
        )
    elif isinstance(X, Mapping):
        frame, is_named = _frame_of_columns(list(X), X), True
    elif hasattr(X, "column_names"):  # pyarrow
        frame, is_named = _frame_of_columns(list(X.column_names), X), True
    elif hasattr(X, "collect"):  # a lazy polars frame
        return _frame(X.collect())
    elif hasattr(X, "columns") and hasattr(X, "__getitem__"):  # polars, dask
        frame, is_named = _frame_of_columns(list(X.columns), X), True
    else:
        array, name = _array(X), getattr(X, "name", None)
        is_named = array.dtype.names is not None
        frame = pd.DataFrame(array) if is_named else _frame_of_array(array)
        if array.ndim == 1 and isinstance(name, str) and name:  # a polars Series
            frame.columns, is_named = pd.Index([name]), True
    if frame.shape[1] == 0:
        raise EmptyDataError(f"X has {_count(len(frame), 'row')} but no columns; pass at least one")
    if len(frame) == 0:
        raise EmptyDataError("X has no rows; was everything filtered out?")
    return frame, is_named


def _frame_of_data_array(X: xr.DataArray) -> tuple[pd.DataFrame, bool]:
    frame = _frame_of_array(X.to_numpy(), f", dimensions {X.dims}")
    labels = [X.indexes.get(dim) for dim in X.dims]
    if X.ndim == 1:
        labels.append(None if X.name is None else pd.Index([X.name], dtype=object))
    frame = frame.set_axis(frame.index if labels[0] is None else labels[0], axis=0)
    frame = frame.set_axis(frame.columns if labels[1] is None else labels[1], axis=1)
    return frame, labels[1] is not None


def _frame_of_columns(names: list[Any], columns: Any) -> pd.DataFrame:
    """Put together a frame from any object that gives a column for a name."""
    arrays = [_array(columns[name]) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or len(array) != len(arrays[0]):
            raise ShapeError(
                f"X: column {str(name)!r} has shape {array.shape}, column {str(names[0])!r} has "
                f"{arrays[0].shape}; all columns must be one-dimensional and equally long"
            )
    series = {j: pd.Series(array, copy=False) for j, array in enumerate(arrays)}
    frame = pd.DataFrame(series, copy=False)
    frame.columns = pd.Index(names, dtype=object)
    return frame


def _frame_of_array(array: NDArray[Any], detail: str = "") -> pd.DataFrame:
    if array.ndim not in (1, 2):
        raise ShapeError(
            f"X must be a table of observations by features (2-D) or one column (1-D), "
            f"but it is {array.ndim}-D with shape {array.shape}{detail}"
        )
    if array.ndim == 1:
        array = array[:, None]
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return pd.DataFrame(array, columns=[f"x{j}" for j in range(array.shape[1])], copy=False)


def _array(X: Any) -> NDArray[Any]:
    if isinstance(X, str | bytes):
        raise ShapeError(f"X is text ({_shown(X)}); read the file first: pandas.read_csv(path)")
    if hasattr(X, "toarray"):
        raise ShapeError(f"X is a sparse {type(X).__name__}; make it dense: X.toarray()")
    try:
        array = np.asarray(X)
        if array.dtype.kind in "US" and isinstance(X, Sequence):
            array = np.asarray(X, dtype=object)  # else one text turns all numbers into text
    except (TypeError, ValueError) as error:
        raise ShapeError(_why_no_table(X, str(error))) from error
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        array = np.array(array, dtype=object)
        array[np.ma.getmaskarray(X)] = None
    if array.ndim == 1 and array.dtype == object and len(array):
        first = array[0]
        if isinstance(first, Sequence | np.ndarray) and not isinstance(first, str | bytes):
            raise ShapeError(_why_no_table(X, "its rows differ in length"))
    if array.ndim == 0:
        raise ShapeError(
            f"X must be a table of observations by features (2-D) or one column (1-D), but it is "
            f"a single {type(X).__name__} (0-D)"
        )
    return array


def _why_no_table(X: Any, reason: str) -> str:
    rows = [f"has length {len(r)}" if hasattr(r, "__len__") else "is a single number" for r in X]
    for i, row in enumerate(rows):
        if row != rows[0]:
            return f"X is ragged: row {i} {row}, row 0 {rows[0]}"
    return f"X is not a table of observations by features: {reason}"


# Names


def _names(labels: pd.Index[Any]) -> tuple[str, ...]:
    names = []
    for j, label in enumerate(labels):
        if isinstance(label, tuple):
            names.append(".".join(str(part) for part in label))
        elif pd.api.types.is_scalar(label) and pd.isna(label):
            names.append(f"x{j}")
        else:
            names.append(str(label))
    return tuple(names)


def _refuse_duplicates(names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ColumnNameError(
            f"X has several columns called {_listed(repeated)} (names count as text); "
            "rename them or select others"
        )


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    lower = {other.lower(): other for other in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _listed(names: Sequence[str], limit: int = _SHOWN) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


# Numbers


def _numbers(frame: pd.DataFrame, names: tuple[str, ...]) -> Table:
    n, d = frame.shape
    values = np.empty((n, d))
    epsilon = np.zeros(d)
    integers: dict[int, tuple[int, Array]] = {}
    offenders: dict[int, str] = {}
    for j in range(d):
        column = to_numbers(frame.iloc[:, j])
        if isinstance(column, str):
            offenders[j] = column
            continue
        with np.errstate(over="ignore"):  # a long double beyond 1e308 is reported as infinite
            values[:, j] = column
        if column.dtype.kind == "f":
            epsilon[j] = max(np.finfo(np.float64).eps, np.finfo(column.dtype).eps)
        elif max(-int(column.min()), int(column.max())) > _EXACT:
            smallest = int(column.min())
            # Modulo 2**64, so no difference overflows whatever the signs.
            difference = column.view(np.uint64) - np.uint64(smallest % 2**64)
            integers[j] = (smallest, difference.astype(np.float64))
    if offenders:
        raise NonNumericError(_why_not_numeric(frame, names, offenders))
    _refuse_not_finite(values, names, frame.index)
    return Table(values, names, frame.index, epsilon, integers)


def to_numbers(column: pd.Series[Any]) -> NDArray[Any] | str:
    """Return floats (missing: NaN) or 64-bit integers; or say what the column holds instead."""
    dtype: Any = column.dtype
    kind = "O" if isinstance(dtype, pd.CategoricalDtype) else getattr(dtype, "kind", "O")
    if kind in "iu":
        if column.hasnans:
            return column.to_numpy(np.float64, na_value=np.nan)
        return column.to_numpy(np.int64 if kind == "i" else np.uint64)
    if kind == "f":
        return column.to_numpy(np.dtype(f"f{dtype.itemsize}"), na_value=np.nan)
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories"
    if isinstance(dtype, pd.StringDtype):
        return "text" if column.notna().any() else np.full(len(column), np.nan)
    if kind in _HOLDS:
        return _HOLDS[kind]
    return _objects_to_numbers(column.to_numpy(dtype=object))


# What a column holds, by the kind of its dtype and by what pandas infers from its objects.
_HOLDS = {
    key: what
    for what, keys in {
        "booleans": "b boolean",
        "complex numbers": "c complex",
        "text": "U S string bytes",
        "dates": "M date datetime datetime64",
        "time differences": "m timedelta timedelta64",
        "periods": "period",
        "intervals": "interval",
    }.items()
    for key in keys.split()
}


def _objects_to_numbers(objects: NDArray[Any]) -> NDArray[Any] | str:
    inferred = pd.api.types.infer_dtype(objects, skipna=True)
    is_missing = np.asarray(pd.isna(objects))
    if inferred not in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
        return _HOLDS.get(inferred, "mixed objects")
    try:
        if inferred == "integer" and not is_missing.any():
            return objects.astype(np.int64)
        numbers = np.full(len(objects), np.nan)
        numbers[~is_missing] = objects[~is_missing].astype(np.float64)
    except OverflowError:
        return "integers of more than 64 bits"
    return numbers


def _why_not_numeric(frame: pd.DataFrame, names: tuple[str, ...], offenders: dict[int, str]) -> str:
    parts, hint = [], ""
    for j, what in list(offenders.items())[:_SHOWN]:
        objects = frame.iloc[:, j].to_numpy(dtype=object)
        i = first_offending(objects)
        where = f"first {_shown(objects[i])} in row {row_label(frame.index[i])}"
        parts.append(f"column {names[j]!r} holds {what} ({where})")
        hint = hint or _hint(objects[i], what)
    more = f" and {len(offenders) - _SHOWN} more" if len(offenders) > _SHOWN else ""
    good = [name for j, name in enumerate(names) if j not in offenders]
    select = f"; columns=[{_listed(good, 30)}] selects the numeric ones" if good else ""
    return f"X: {'; '.join(parts)}{more}{hint}{select}"


def first_offending(objects: NDArray[Any]) -> int:
    """Return the position of the first object that is no number (of 64 bits)."""
    return next((i for i, value in enumerate(objects) if _is_offending(value)), 0)


def _is_offending(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return not -(2**63) <= value < 2**63
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return not (pd.api.types.is_scalar(value) and pd.Series([value], dtype=object).hasnans)
    return False


def _hint(value: Any, what: str) -> str:
    if what == "integers of more than 64 bits":
        return "; drop it if it is an identifier, else convert it: .astype(float)"
    if what == "text" and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", str(value)):
        return "; is this a decimal comma? Read the file with decimal=','"
    if what == "text" and re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", str(value)):
        return "; numbers stored as text are converted by pandas.to_numeric"
    return ""


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 40 else text[:37] + "..."


def _refuse_not_finite(values: Array, names: tuple[str, ...], index: pd.Index[Any]) -> None:
    if np.isfinite(values).all():
        return
    if (is_missing := np.isnan(values)).any():
        raise MissingValueError(
            f"X has {_cells(is_missing, names, index, 'missing value')}. Drop these rows "
            "(X.dropna()) or impute them; marginalising over missing values is not there yet"
        )
    raise InfiniteValueError(
        f"X has {_cells(np.isinf(values), names, index, 'infinite value')}. "
        "Drop these rows or correct them (a division by zero, log(0), or an overflow?)"
    )


def _cells(
    is_bad: NDArray[np.bool_], names: tuple[str, ...], index: pd.Index[Any], noun: str
) -> str:
    rows, columns = np.nonzero(is_bad)
    shown = [
        f"row {row_label(index[i])}, column {names[j]!r}"
        for i, j in zip(rows[:_SHOWN], columns[:_SHOWN], strict=True)
    ]
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{_count(len(rows), noun)}: {'; '.join(shown)}{more}"
