"""Units of columns: what Pint, pint-pandas and xarray say of them is kept, nothing is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pint
import pint_pandas  # noqa: F401  (its dtypes)
import pytest
import xarray as xr

import bayesgmm as bg
from bayesgmm.data.observations import read
from bayesgmm.display.words import format_table, to_frame
from bayesgmm.errors import ArgumentError, ColumnNameError

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


def in_units() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3)) + np.repeat([0.0, 6.0], 200)[:, None]
    frame = pd.DataFrame(x, columns=["length", "speed", "plain"])
    return frame.astype({"length": "pint[cm]", "speed": "pint[m/s]"})


@pytest.fixture(scope="module")
def fits() -> dict[str, xr.DataTree]:
    """A fit of either engine, and replicates."""
    spec, x = bg.GaussianMixture(2, "VVV"), in_units()
    mle = bg.fit_em(spec, x, random_seed=1, n_starts=2)
    return {
        "mle": mle,
        "laplace": bg.fit_laplace(spec, x, mle=mle, draws=1000, random_seed=1),
        "bootstrap": bg.bootstrap(mle, draws=60, random_seed=1),
    }


@pytest.mark.parametrize("which", ["laplace", "bootstrap"])
class TestShown:
    def test_every_parameter_has_its_own(self, fits: dict[str, xr.DataTree], which: str) -> None:
        found = bg.compare(fits["mle"], fits[which])
        unit = found["unit"].to_series()
        assert unit["weight[0]"] == ""
        assert unit["mean[1, length]"] == "centimeter"
        assert UNITS(unit["covariance[0, length, length]"]) == UNITS("cm") ** 2
        assert UNITS(unit["covariance[0, length, speed]"]) == UNITS("cm") * UNITS("m/s")
        assert UNITS(unit["covariance[1, speed, speed]"]) == UNITS("m/s") ** 2
        assert unit["covariance[1, speed, plain]"] == ""  # unknown as that of the column
        assert bg.compare(fits["mle"], fits[which]).to_dataframe()["unit"].tolist() == list(unit)
        assert to_frame(found).loc["mean[0, speed]", "unit"] == "meter / second"

    def test_tables_pictures_and_the_page_say_them(
        self, fits: dict[str, xr.DataTree], which: str, tmp_path: Path
    ) -> None:
        mle, post = fits["mle"], fits[which]
        comparison = bg.compare(mle, post)
        assert "mean[0, length] (centimeter)" in format_table(comparison, width=200)
        drawn = bg.plot_compare(comparison)
        texts = [t.get_text() for t in drawn.figure.findobj(match=mpl.text.Text)]
        assert sum(t.endswith(") centimeter ** 2") for t in texts) == 4  # two fits, two components
        axes = bg.plot_density(mle, post).axes
        labels = {ax.get_xlabel() for ax in axes} | {ax.get_ylabel() for ax in axes}
        assert {"length (centimeter)", "speed (meter / second)", "plain"} <= labels
        page = bg.report(comparison, tmp_path / "r.html", mle=mle, post=post).read_text()
        assert '<th scope="row">length (centimeter)</th>' in page
        assert '<th scope="row">mean[0, speed] (meter / second)</th>' in page

    def test_they_stay_with_a_part(self, fits: dict[str, xr.DataTree], which: str) -> None:
        post = fits[which]
        assert bg.summary(bg.marginal(post, ["speed"])).attrs["units"] == {
            "speed": "meter / second"
        }
        other = bg.conditional(post, {"length": 0.0})
        assert bg.summary(other).attrs["units"] == {"speed": "meter / second"}
        at = bg.predictive_density(post, columns=["length", "plain"])
        assert at["x"].attrs == {"long_name": "length", "units": "centimeter"}
        assert at["y"].attrs == {"long_name": "plain"}


def test_more_pictures_with_units(fits: dict[str, xr.DataTree]) -> None:
    drawn = bg.plot_labels(fits["laplace"], "mean[speed]")
    texts = [t.get_text() for t in drawn.figure.findobj(match=mpl.text.Text)]
    assert any("mean[speed] (meter / second)" in t for t in texts)
    axes = bg.plot_prior(bg.GaussianMixture(1), in_units(), draws=25).axes
    labels = [ax.get_xlabel() for ax in axes]
    assert "length (centimeter)" in labels
    assert "sd of speed (meter / second)" in labels


def test_without_units_nothing_is_said_of_them() -> None:
    x = in_units()
    plain = x.assign(length=x["length"].pint.magnitude, speed=x["speed"].pint.magnitude)
    spec = bg.GaussianMixture(2, "VVV")
    mle = bg.fit_em(spec, plain.astype(float), random_seed=1, n_starts=2)
    post = bg.fit_laplace(spec, plain.astype(float), mle=mle, draws=1000, random_seed=1)
    assert "unit" not in bg.compare(mle, post).coords
    labels = {ax.get_xlabel() for ax in bg.plot_density(mle, post).axes}
    assert {"length", "speed", "plain"} <= labels


def test_fits_in_other_units_are_not_compared(fits: dict[str, xr.DataTree]) -> None:
    other = fits["laplace"].copy()
    other.attrs["units"] = other.attrs["units"].replace("centimeter", "inch")
    with pytest.raises(ArgumentError, match=r"^post: .*'length' is in inch, but in centimeter"):
        bg.compare(fits["mle"], other)
