"""Units of columns, as Pint, pint-pandas and xarray carry them: taken off, and kept by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

Units = str | dict[int, str]  # of all columns, or by position


def without_units(X: Any) -> tuple[Any, Units]:
    """Return a table as plain numbers, and the units that it came in.

    Nothing is converted: numbers are what they are in their units, also where these have an offset.
    """
    if isinstance(X, pd.DataFrame):
        found = {j: str(t.units) for j, t in enumerate(X.dtypes) if hasattr(t, "units")}
        if found:
            X = X.copy(deep=False)
            for j in found:
                plain: Any = X.iloc[:, j].array
                X.isetitem(j, pd.Series(plain.quantity.magnitude, index=X.index))
        return X, found
    if isinstance(X, pd.Series) and hasattr(X.dtype, "units"):
        frame, own = without_units(X.to_frame())
        return frame.iloc[:, 0].rename(X.name), own
    if isinstance(X, xr.DataArray):
        if _is_quantity(X.data):
            return X.copy(data=X.data.magnitude), str(X.data.units)
        unit = X.attrs.get("units")
        return X, unit if isinstance(unit, str) else {}
    if isinstance(X, Mapping):
        plain = {
            name: column.magnitude if _is_quantity(column) else column for name, column in X.items()
        }
        found = {j: str(c.units) for j, c in enumerate(X.values()) if _is_quantity(c)}
        return (plain if found else X), found
    return (X.magnitude, str(X.units)) if _is_quantity(X) else (X, {})


def product(first: str, second: str) -> str:
    """Return the unit of a product, as Pint reads it, of units of which none is empty."""
    one, other = (f"({u})" if " " in u else u for u in (first, second))
    return f"{one} ** 2" if first == second else f"{one} * {other}"


def with_unit(name: str, unit: str) -> str:
    """Return a name with its unit behind it, if it has one."""
    return f"{name} ({unit})" if unit else name


def _is_quantity(X: Any) -> bool:
    """Whether this is one of Pint's arrays; of others whose attributes are anything, none is."""
    return isinstance(getattr(type(X), "magnitude", None), property) and hasattr(X, "units")
