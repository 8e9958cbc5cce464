"""Cells of a table -> numbers; what is none, missing or infinite is refused with where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.errors import (
    ArgumentError,
    InfiniteValueError,
    MissingValueError,
    NonNumericError,
)
from bayesgmm.streams import blocks, has_nan

_SHOWN = 5  # how many offenders a message lists
_EXACT = 2**53  # every integer up to here is a float64

Missing = Literal["error", "drop", "marginalise"]
MISSING: tuple[str, ...] = get_args(Missing)


def refuse_unknown(missing: Any) -> None:
    """Refuse what is no way to treat missing values."""
    if missing not in MISSING:
        known = ", ".join(repr(name) for name in MISSING)
        raise ArgumentError("missing", f"must be one of {known}, not {missing!r}")


def floats_of(
    frame: pd.DataFrame, names: tuple[str, ...]
) -> tuple[Array, Array, dict[int, tuple[int, Array]]]:
    """Return the cells of a frame as floats (n, d), NaN where missing, and how exact they are.

    Returns
    -------
    values : (n, d) array
    epsilon : (d,) array
    integers : dict
        As in `table.Table`.

    Raises
    ------
    NonNumericError
    """
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
        raise NonNumericError(why_not_numeric(frame, names, offenders))
    return values, epsilon, integers


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


def why_not_numeric(frame: pd.DataFrame, names: tuple[str, ...], offenders: dict[int, str]) -> str:
    """Return which columns hold what instead of numbers, where first, and what to do."""
    parts, hint = [], ""
    for j, what in list(offenders.items())[:_SHOWN]:
        objects = frame.iloc[:, j].to_numpy(dtype=object)
        i = first_offending(objects)
        where = f"first {shown(objects[i])} in row {row_label(frame.index[i])}"
        parts.append(f"column {names[j]!r} holds {what} ({where})")
        hint = hint or _hint(objects[i], what)
    more = f" and {len(offenders) - _SHOWN} more" if len(offenders) > _SHOWN else ""
    good = [name for j, name in enumerate(names) if j not in offenders]
    select = f"; columns=[{listed(good, 30)}] selects the numeric ones" if good else ""
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


def refuse_not_finite(
    values: Array, names: tuple[str, ...], index: pd.Index[Any], missing: Missing
) -> None:
    """Refuse infinite cells, and missing ones unless they are wanted."""
    if missing == "error" and has_nan(values):
        raise MissingValueError(
            f"X has {_cells(np.isnan, values, names, index, 'missing value')}. Drop these rows "
            "(X.dropna()) or impute them; fit_em, score and predict can also integrate over what "
            "is missing: missing='marginalise'"
        )
    if np.isinf(np.fmin.reduce(values, axis=None)) or np.isinf(np.fmax.reduce(values, axis=None)):
        raise InfiniteValueError(
            f"X has {_cells(np.isinf, values, names, index, 'infinite value')}. "
            "Drop these rows or correct them (a division by zero, log(0), or an overflow?)"
        )


def _cells(
    are_bad: Callable[[Array], Any],
    values: Array,
    names: Sequence[str],
    index: pd.Index[Any],
    noun: str,
) -> str:
    """Return how many cells there are of a kind, and where the first of them are."""
    total, places = 0, list[str]()
    for part in blocks(len(values)):
        rows, columns = np.nonzero(are_bad(values[part]))
        total += len(rows)
        few = slice(max(_SHOWN - len(places), 0))
        places += [
            f"row {row_label(index[part.start + i])}, column {names[j]!r}"
            for i, j in zip(rows[few], columns[few], strict=True)
        ]
    more = f"; and {total - _SHOWN} more" if total > _SHOWN else ""
    return f"{count(total, noun)}: {'; '.join(places)}{more}"


# How messages show what they are about


def shown(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 40 else text[:37] + "..."


def row_label(label: Any) -> str:
    """Return a row label as messages show it."""
    label = label.item() if isinstance(label, np.generic) else label
    return repr(label) if isinstance(label, str) else str(label)


def listed(names: Sequence[str], limit: int = _SHOWN) -> str:
    """Return names as messages show them, the first few."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
