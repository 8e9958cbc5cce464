"""Units of columns: what Pint, pint-pandas and xarray say of them is kept, nothing is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pint
import pint_pandas  # noqa: F401  (its dtypes)
import pytest
import xarray as xr

import bayesgmm as bg
from bayesgmm.data.observations import read
from bayesgmm.errors import ColumnNameError

UNITS = pint.UnitRegistry()


def _in_centimetres(kind: str) -> Any:
    x = np.arange(12.0).reshape(6, 2) ** 2
    frame = pd.DataFrame(x, columns=["a", "b"])
    match kind:
        case "quantity":
            return UNITS.Quantity(x, "cm")
        case "pint-pandas":
            return frame.astype({"a": "pint[cm]", "b": "pint[degC]"})
        case "column of pint-pandas":
            return frame["a"].astype("pint[cm]")
        case "mapping":
            return {"a": UNITS.Quantity(x[:, 0], "cm"), "b": x[:, 1]}
        case "xarray with a quantity":
            return xr.DataArray(UNITS.Quantity(x, "cm"), dims=("row", "column"))
        case _:
            return xr.DataArray(x, dims=("row", "column"), attrs={"units": "cm"})


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        ("quantity", {"x0": "centimeter", "x1": "centimeter"}),
        ("pint-pandas", {"a": "centimeter", "b": "degree_Celsius"}),
        ("column of pint-pandas", {"a": "centimeter"}),
        ("mapping", {"a": "centimeter"}),
        ("xarray with a quantity", {"x0": "centimeter", "x1": "centimeter"}),
        ("xarray with an attribute", {"x0": "cm", "x1": "cm"}),
    ],
)
def test_units_are_taken_off_and_kept_by_name(kind: str, units: dict[str, str]) -> None:
    X = _in_centimetres(kind)
    x = np.arange(12.0).reshape(6, 2) ** 2
    data = read(X)
    np.testing.assert_array_equal(data.values, x[:, : data.d])  # nothing is converted
    assert data.units == units
    last = data.names[-1]
    assert read(X, columns=[last]).units == {n: u for n, u in units.items() if n == last}


def test_a_fit_knows_its_units_and_refuses_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40), "c": rng.normal(size=40)})
    X = X.astype({"a": "pint[m]", "b": "pint[degC]"})
    fit = bg.fit_em(bg.GaussianMixture(1), X, random_seed=1)
    plain = X.assign(a=X["a"].pint.magnitude, b=X["b"].pint.magnitude).astype(float)
    np.testing.assert_array_equal(
        fit["posterior"]["mean"],
        bg.fit_em(bg.GaussianMixture(1), plain, random_seed=1)["posterior"]["mean"],
    )
    again = bg.load(bg.save(fit, tmp_path / "fit.nc"))
    assert bg.summary(again).attrs["units"] == {"a": "meter", "b": "degree_Celsius"}
    pd.testing.assert_series_equal(bg.score(fit, X), bg.score(fit, plain))
    with pytest.raises(
        ColumnNameError, match=r"'a' is in centimeter, .* in meter; .*to\('meter'\)"
    ):
        bg.score(again, X.assign(a=X["a"].pint.to("cm")))
