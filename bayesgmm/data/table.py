"""Anything tabular -> a float64 array with column names and row labels.

What is not a table of real numbers is refused, with the column, the row and the value at fault.
Libraries that may not be installed are recognised by what their objects can do.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.data.cells import (
    Missing,
    count,
    floats_of,
    listed,
    refuse_not_finite,
    refuse_unknown,
    shown,
)
from bayesgmm.data.streamed import Stream, of_rows, stored, stream_of
from bayesgmm.data.units import Units, without_units
from bayesgmm.errors import (
    ArgumentError,
    ColumnNameError,
    EmptyDataError,
    ShapeError,
)
from bayesgmm.streams import blocks, is_finite, room_like


@dataclass(frozen=True, eq=False)
class Table:
    """A table of numbers, in the units in which it came; NaN where they are missing.

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
    units : dict
        The units of columns that came with one, by name.
    kept : (n,) array, optional
        Which rows these are, if others were dropped.
    whole : pandas.Index, optional
        The labels of all rows, if some were dropped.
    """

    values: Array
    names: tuple[str, ...]
    index: pd.Index[Any]
    epsilon: Array
    integers: dict[int, tuple[int, Array]]
    units: dict[str, str] = field(default_factory=dict)
    kept: NDArray[np.intp] | None = None
    whole: pd.Index[Any] | None = None


def tabulate(X: Any, columns: Sequence[str] | None = None, *, missing: Missing = "error") -> Table:
    """Read a table, or some of its columns.

    Parameters
    ----------
    X : (n, d) table, or one column of length n
        A pandas, polars or pyarrow table, an xarray DataArray, a mapping from names to columns,
        nested sequences, or anything that NumPy can convert. Dask's arrays and DataFrames and
        memory-mapped arrays go to a file, in blocks (`streamed`).
    columns : sequence of str, optional
        Names of the columns to use, in this order. Default: all.
    missing : {"error", "drop", "marginalise"}
        Missing values are refused, their rows left out, or kept as NaN.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        One of its subclasses: ShapeError, EmptyDataError, ColumnNameError, NonNumericError,
        MissingValueError, InfiniteValueError.
    ArgumentError
        If `columns` is not a sequence of names, or `missing` is unknown.
    """
    refuse_unknown(missing)
    X, units = without_units(X)
    frame, _ = _frame(X)
    names = _names(frame.columns)
    by_name = _by_name(units, names)
    if columns is not None:
        if isinstance(columns, str):
            raise ArgumentError("columns", f"must be a list of names, such as [{columns!r}]")
        wanted = [str(name) for name in columns]
        if not wanted:
            raise EmptyDataError("columns: names no column; name at least one or leave it out")
        absent = [name for name in wanted if name not in names]
        if absent:
            raise ColumnNameError(
                f"columns: X has no {listed(absent)}{_did_you_mean(absent[0], names)}; "
                f"it has {listed(names, 30)}"
            )
        chosen = [j for name in wanted for j, found in enumerate(names) if found == name]
        frame, names = _taken(frame, chosen), tuple(names[j] for j in chosen)
    _refuse_duplicates(names)
    known = {name: by_name[name] for name in names if name in by_name}
    return replace(_numbers(frame, names, missing), units=known)


def once(X: Any) -> Any:
    """Return X; in place of what is computed when it is read, such as Dask's, what was read of it.

    For verbs that read a table more than once.
    """
    stream = stream_of(X)
    if stream is None or stream.whole is not None:
        return X
    values, epsilon, index = stored(stream, _names(stream.columns))
    found = replace(of_rows(values, stream.columns), is_named=stream.is_named)
    return replace(found, index=index, epsilon=epsilon)


def align(
    X: Any,
    names: Sequence[str],
    *,
    missing: Missing = "error",
    units: Mapping[str, str] | None = None,
) -> Table:
    """Read a table whose columns must be `names`: matched by name if it has names.

    Parameters
    ----------
    X : (n, d) table
        As in `tabulate`; without names of its own its columns are taken in the order of `names`.
    names : sequence of str
    missing : {"error", "drop", "marginalise"}
        As in `tabulate`.
    units : mapping, optional
        Units that columns must have if they have any, by name.

    Returns
    -------
    Table
        Its columns in the order of `names`.

    Raises
    ------
    ColumnNameError, ShapeError
        If columns are missing, unexpected, repeated, in other units, or too few or many.
    DataError
        As `tabulate`.
    """
    refuse_unknown(missing)
    X, own = without_units(X)
    frame, is_named = _frame(X)
    found, wanted = _names(frame.columns), tuple(names)
    if is_named or set(found) == set(wanted):
        absent = [name for name in wanted if name not in found]
        extra = [name for name in found if name not in wanted]
        if absent or extra:
            parts = [f"{listed(absent)} missing"] * bool(absent)
            parts += [f"{listed(extra)} unexpected"] * bool(extra)
            raise ColumnNameError(
                f"X: {'; '.join(parts)}. The mixture was fitted to {listed(wanted, 30)}: pass "
                "these columns, in any order, or a plain array in this order"
            )
        _refuse_duplicates(found)
        frame = _taken(frame, [found.index(name) for name in wanted])
    elif len(found) != len(wanted):
        n = len(frame) if isinstance(frame, pd.DataFrame) else -1
        is_one_row = len(found) == 1 and n == len(wanted)
        raise ShapeError(
            f"X has {count(len(found), 'column')}, but the mixture was fitted to "
            f"{len(wanted)} ({listed(wanted, 30)})"
            + ("; one observation is a table of one row: np.reshape(X, (1, -1))" * is_one_row)
        )
    by_name = _by_name(own, found if is_named else wanted)
    for name in wanted:
        here, fitted = by_name.get(name), (units or {}).get(name)
        if here and fitted and here != fitted:
            raise ColumnNameError(
                f"X: column {name!r} is in {here}, but the mixture was fitted to it in {fitted}; "
                f"convert it: .to({fitted!r})"
            )
    return replace(_numbers(frame, wanted, missing), units=by_name)


# Containers: everything becomes a DataFrame, without a copy where that is possible.


def _frame(X: Any) -> tuple[pd.DataFrame | Stream, bool]:
    """Return X as a DataFrame or a stream, and whether its columns came with names."""
    stream = stream_of(X)
    if stream is not None:
        if not len(stream.columns):
            raise EmptyDataError("X has no columns; pass at least one")
        return stream, stream.is_named
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
    elif hasattr(X, "columns") and hasattr(X, "__getitem__"):  # polars
        frame, is_named = _frame_of_columns(list(X.columns), X), True
    else:
        array, name = _array(X), getattr(X, "name", None)
        is_named = array.dtype.names is not None
        frame = pd.DataFrame(array) if is_named else _frame_of_array(array)
        if array.ndim == 1 and isinstance(name, str) and name:  # a polars Series
            frame.columns, is_named = pd.Index([name]), True
    if frame.shape[1] == 0:
        raise EmptyDataError(f"X has {count(len(frame), 'row')} but no columns; pass at least one")
    if len(frame) == 0:
        raise EmptyDataError("X has no rows; was everything filtered out?")
    return frame, is_named


def _taken(frame: pd.DataFrame | Stream, chosen: list[int]) -> pd.DataFrame | Stream:
    return frame.take(chosen) if isinstance(frame, Stream) else frame.iloc[:, chosen]


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
        raise ShapeError(f"X is text ({shown(X)}); read the file first: pandas.read_csv(path)")
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
            f"X has several columns called {listed(repeated)} (names count as text); "
            "rename them or select others"
        )


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    lower = {other.lower(): other for other in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _by_name(units: Units, names: Sequence[str]) -> dict[str, str]:
    if isinstance(units, str):
        return dict.fromkeys(names, units)
    return {names[j]: unit for j, unit in units.items()}


# Numbers


def _numbers(frame: pd.DataFrame | Stream, names: tuple[str, ...], missing: Missing) -> Table:
    if isinstance(frame, Stream):
        values, epsilon, index = stored(frame, names)
        found = Table(values, names, index, epsilon, {})
    else:
        values, epsilon, integers = floats_of(frame, names)
        found = Table(values, names, frame.index, epsilon, integers)
    if is_finite(values):
        return found
    refuse_not_finite(values, names, found.index, missing)
    if missing == "marginalise":
        return found
    n, whole = len(values), found.index
    complete = [np.flatnonzero(~np.isnan(values[p]).any(axis=1)) + p.start for p in blocks(n)]
    kept = np.concatenate(complete)
    if not len(kept):
        raise EmptyDataError(
            f"X has missing values in each of its {count(n, 'row')}: none is left; "
            "missing='marginalise' uses incomplete rows"
        )
    if isinstance(frame, Stream):
        left = room_like(values, len(kept), len(names))
        for part in blocks(len(kept)):
            left[part] = values[kept[part]]
        found = replace(found, values=left, index=found.index[kept])
    else:
        found = _numbers(frame.iloc[kept], names, missing)
    return replace(found, kept=kept, whole=whole)
