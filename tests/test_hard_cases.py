"""Data that break mixture fitting elsewhere, through the whole of `fit_em`.

What is refused when it is read, or stopped in the loop, is in `test_data` and `test_em`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import registry
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.data.mixing import taken_apart
from bayesgmm.data.observations import read
from bayesgmm.errors import (
    ArgumentError,
    BayesgmmWarning,
    FitWarning,
    NumericalError,
    ScaleError,
)
from bayesgmm.labels import are_mixtures
from bayesgmm.moments import Parameters
from bayesgmm.posterior.draws import begin
from validation import ranks

FAITHFUL = registry.table("faithful")
OWN = ("VVV", "VVI", "VII", "EVV", "VEE", "VEV")
COMMON = ("EII", "EEI", "EEE")


def fit(family: str, x: Any, k: int = 2, **settings: Any) -> xr.DataTree:
    settings = {"random_seed": 0, "n_starts": 8} | settings
    spec = bg.GaussianMixture(k, family, settings.pop("prior", "conjugate"))
    return bg.fit_em(spec, x, **settings)


def noted(family: str, x: Any, k: int = 2, **settings: Any) -> tuple[Any, str]:
    """A fit, or the NumericalError that there is none, and all that was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = fit(family, x, k, **settings)
        except NumericalError as error:
            found = error
    assert all(isinstance(w.message, BayesgmmWarning) for w in caught)
    return found, " ".join(str(w.message) for w in caught)


def loglik(found: xr.DataTree) -> float:
    return float(found["criteria"]["loglik"].item())


def status(found: xr.DataTree, code: str) -> str:
    checks = json.loads(found.attrs["verdict"])["checks"]
    return next(c["status"] for c in checks if c["code"] == code)


def same(a: Parameters, b: Parameters, rtol: float = 1e-7) -> None:
    for name in tree.DIMS:
        first = getattr(b, name)
        size = np.abs(first).max()
        assert_allclose(getattr(a, name), first, rtol=rtol, atol=rtol * size)


def nearly_dependent(residual: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows (200, 3) whose third column repeats the first but for a residual, and the residual."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) + np.repeat([0.0, 4.0], 100)[:, None]
    near = np.column_stack([x, x[:, 0] + residual * rng.normal(size=200)])
    return near, near[:, 2] - near[:, 0]


AFFINE = ("VVV", "EEE", "VEE", "EVV")


class TestNearlyDependentColumns:
    """A07: rows hold the residual of one column on the others much better than covariances do."""

    @pytest.mark.parametrize("family", AFFINE)
    @pytest.mark.parametrize("residual", [1e-3, 1e-5, 3e-8, 1e-9])
    def test_are_fitted_as_well_as_their_differences(self, family: str, residual: float) -> None:
        near, rest = nearly_dependent(residual)
        apart = np.column_stack([near[:, :2], rest])
        a, text = noted(family, near)
        assert ("near-collinear" in text) == (residual < 1e-6)
        b = fit(family, apart)
        assert a.attrs["stop_reason"] == b.attrs["stop_reason"] == "converged"
        assert a["sample_stats"]["distance"].item() <= 1e-4
        assert loglik(a) == pytest.approx(loglik(b), rel=1e-8)
        p, q = tree.point(a), tree.point(b)
        back = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
        same(p, Parameters(q.weight, q.mean @ back.T, back @ q.covariance @ back.T), rtol=1e-6)
        for name in ("weight", "mean", "covariance"):
            one, other = (f["standard_error"][name].to_numpy() for f in (a, b))
            of_both = (slice(None), *(slice(2),) * (one.ndim - 1))
            assert_allclose(one[of_both], other[of_both], rtol=1e-4)
        rows = a["log_likelihood"]["x"].sum().item()
        assert rows == pytest.approx(loglik(a), rel=1e-12)

    @pytest.mark.parametrize("family", ["VVI", "VVE", "EII"])
    def test_other_families_see_columns_as_they_are(self, family: str) -> None:
        near, _ = nearly_dependent(1e-3)
        data = read(near, family=bg.GaussianMixture(2, family).covariance, n_components=2)
        assert taken_apart(data, bg.GaussianMixture(2, family).covariance) is data

    def test_ordinary_and_incomplete_data_stay_as_they_are(self) -> None:
        family = bg.GaussianMixture(2, "VVV").covariance
        data = read(FAITHFUL, family=family)
        assert taken_apart(data, family) is data
        near, _ = nearly_dependent(1e-4)
        near[3, 1] = np.nan
        data = read(near, family=family, missing="marginalise")
        assert taken_apart(data, family) is data

    def test_parameters_of_columns_are_those_of_the_coordinates(self) -> None:
        near, _ = nearly_dependent(1e-3)
        family = bg.GaussianMixture(1, "VVV").covariance
        plain = read(near, family=family)
        apart = taken_apart(plain, family)
        one = Parameters(np.ones(1), plain.mean[None], plain.covariance[None])
        found = apart.mixed(one)
        assert_allclose(found.mean[0], apart.mean, atol=1e-9)
        assert_allclose(found.covariance[0], apart.covariance, rtol=1e-6, atol=1e-6)
        assert plain.mixed(one) is one

    def test_what_covariances_do_not_hold_is_refused(self) -> None:
        """Not made up from rounding: scores, errors, replicates, conditionals, draws."""
        near, _ = nearly_dependent(1e-8)
        spec = bg.GaussianMixture(2, "VVV")
        found, _ = noted("VVV", near)
        for what in (
            lambda: bg.score(found, near),
            lambda: bg.predict(found, near),
            lambda: bg.simulate(found, 3),
            lambda: bg.vcov(found),
            lambda: bg.derived(found),
            lambda: bg.bootstrap(found, draws=2),
            lambda: bg.conditional(found, {"x0": 0.0}),
            lambda: bg.sample_posterior(spec, near, mle=found, draws=2),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BayesgmmWarning)
                with pytest.raises(ArgumentError, match=r"definite|digits"):
                    what()

    def test_a_search_goes_on_without_starts_that_hold_no_digits(self) -> None:
        near, _ = nearly_dependent(1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BayesgmmWarning)
            found = bg.select(near, n_components=2, covariance=AFFINE, n_starts=4, random_seed=0)
        assert (found.table["status"] != "fail").all()


class TestDegenerateData:
    def test_fewer_rows_than_columns(self) -> None:
        """No maximum with whole matrices; one with diagonals, and a mode with a prior."""
        x = np.random.default_rng(0).normal(size=(10, 50))
        found, text = noted("VVV", x)
        assert "underdetermined" in text
        assert "estimate='map'" in str(found)
        found, text = noted("EEI", x)
        assert "underdetermined" in text
        assert np.isfinite(loglik(found))
        for prior, said in ((bg.ConjugatePrior(scale=1.0), False), ("conjugate", True)):
            found, text = noted("VVV", x, estimate="map", prior=prior)
            assert "underdetermined" in text
            assert ("prior-scale" in text) == said
            assert found.attrs["stop_reason"] in ("converged", "fixed point")
            assert np.linalg.eigvalsh(tree.point(found).covariance).min() > 1e-3

    @pytest.mark.parametrize("extra", [3, 4, 5, 8])
    def test_a_component_with_few_points(self, extra: int) -> None:
        """With one more than there are columns it is no optimum; with a few more a warning."""
        rng = np.random.default_rng(1)
        x = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(extra, 2)) + 12.0])
        share = extra / len(x)
        assert tree.point(fit("EEE", x)).weight.min() == pytest.approx(share, rel=1e-6)
        if extra == 3:
            with pytest.warns(FitWarning, match=r"(?s)\(tiny\).*small-component: "):
                found = fit("VVV", x)
            assert found.attrs["stop_reason"] == "tiny"
            assert status(found, "converged") == "fail"
            few = int(tree.point(found).weight.argmin())
            errors = found["standard_error"]
            assert np.isnan(errors["mean"][few]).all()
            assert np.isnan(errors["covariance"][few]).all()
            assert np.isfinite(errors["mean"][1 - few]).all()
            assert f"component {few} has 3.0 observations" in errors.attrs["note"]
        elif extra < 8:
            with pytest.warns(FitWarning, match=f"small-component: .* {extra} observations"):
                found = fit("VVV", x)
            assert tree.point(found).weight.min() == pytest.approx(share, rel=1e-6)
        else:
            assert status(fit("VVV", x), "small-component") == "ok"

    @pytest.mark.parametrize("kind", ["tiny", "nearly dependent"])
    def test_chains_do_not_start_at_what_is_no_optimum(self, kind: str) -> None:
        """But at the posterior's mode, of which the default prior makes one."""
        rng = np.random.default_rng(1)
        x = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(3, 2)) + 12.0])
        if kind == "nearly dependent":
            x, _ = nearly_dependent(1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BayesgmmWarning)
            of = {"mle": None, "fixed": None, "random_seed": 0, "missing": "error"}
            task = begin(bg.GaussianMixture(2, "VVV"), x, **of)
        mode, _ = noted("VVV", x, estimate="map", n_starts=40)
        same(task.pivot, tree.point(mode), rtol=1e-4)

    @pytest.mark.parametrize("family", ["VVV", "VVI", "EEE"])
    def test_rounded_numbers_and_many_components(self, family: str) -> None:
        """Ties make singular components; what is returned is none, and not called good."""
        x = registry.table("iris").round()
        found, text = noted(family, x, k=8)
        assert "tied-rows" in text
        if isinstance(found, NumericalError):
            assert "singular" in str(found)
        else:
            assert np.linalg.eigvalsh(tree.point(found).covariance).min() > 1e-4
            assert "fit-not-good" in text
        found, _ = noted(family, x, k=8, estimate="map", n_starts=4)
        assert found.attrs["stop_reason"] == "converged"
        assert np.linalg.eigvalsh(tree.point(found).covariance).min() > 1e-4

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_tails_without_moments(self, k: int) -> None:
        x = np.random.default_rng(2).standard_cauchy(1000)
        found, text = noted("V", x, k=k)
        assert ("heavy-tails" in text) == (k < 3)  # three normal distributions make such tails
        p = tree.point(found)
        assert found.attrs["stop_reason"] == "converged"
        assert np.isfinite(loglik(found))
        assert (p.covariance > 1.0).all()
        assert np.isfinite(found["standard_error"]["mean"]).all()
        assert loglik(found) == pytest.approx(registry.loglik(x[:, None], p), rel=1e-12)


class TestScaleAndPrecision:
    @pytest.mark.parametrize("family", ["VVV", "EEE", "VVI", "VII", "VEV", "EVE"])
    @pytest.mark.parametrize("offset", [2.0**20, -(2.0**24), 2.0**40])
    def test_an_offset_that_costs_no_digit_changes_no_bit(self, family: str, offset: float) -> None:
        x = (FAITHFUL * 1024).round() / 1024
        here, there = fit(family, x), fit(family, x + offset)
        assert_array_equal(there["starts"]["n_iter"], here["starts"]["n_iter"])
        assert_array_equal(there["starts"]["trace"], here["starts"]["trace"])
        for name in ("weight", "covariance"):
            assert_array_equal(there["posterior"][name], here["posterior"][name])
        digits = 1e-8 if offset < 1e12 else np.spacing(offset)
        assert_allclose(there["posterior"]["mean"] - offset, here["posterior"]["mean"], atol=digits)

    @pytest.mark.parametrize("family", ["VVV", "EEE", "VVI", "VII"])
    def test_float32_far_from_zero(self, family: str) -> None:
        """The same numbers give the same fit, whatever type they come in."""
        x = (FAITHFUL + 1e4).astype(np.float32)
        found, other = fit(family, x), fit(family, x.astype(float))
        for name in tree.DIMS:
            assert_array_equal(found["posterior"][name], other["posterior"][name])
            assert found["posterior"][name].dtype == np.float64
        assert loglik(found) == loglik(other)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("family", ["EII", "E"])
    def test_two_rows_far_apart(self, dtype: type, family: str) -> None:
        found = fit(family, np.array([[9999.0], [0.0]], dtype=dtype), k=1)
        assert tree.point(found).covariance.item() == pytest.approx(9999.0**2 / 4, rel=1e-12)

    @pytest.mark.parametrize("unit", [1e-150, 1e-8, 1e-4, 1e150])
    @pytest.mark.parametrize("family", ["VVV", "EEE", "VVI", "VII"])
    def test_any_unit_whose_square_exists(self, unit: float, family: str) -> None:
        here, there = fit(family, FAITHFUL), fit(family, FAITHFUL * unit)
        p, q = tree.point(here), tree.point(there)
        same(Parameters(q.weight, q.mean / unit, q.covariance / unit**2), p)
        shift = FAITHFUL.size * np.log(unit)
        assert loglik(there) + shift == pytest.approx(loglik(here), rel=1e-8)
        error = here["standard_error"]["mean"]
        assert_allclose(there["standard_error"]["mean"] / unit, error, rtol=1e-5)

    @pytest.mark.parametrize("unit", [1e-200, 1e200])
    def test_any_other_is_refused(self, unit: float) -> None:
        with pytest.raises(ScaleError, match="beyond double precision"):
            fit("VVV", FAITHFUL * unit)

    @pytest.mark.parametrize("family", AFFINE)
    @pytest.mark.parametrize("estimate", ["mle", "map"])
    @pytest.mark.parametrize(("condition", "seed"), [(1e3, 0), (1e5, 1), (1e6, 2)])
    def test_affine_maps(self, family: str, estimate: str, condition: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        turns = np.linalg.qr(rng.normal(size=(2, 4, 4)))[0]
        a = turns[0] @ np.diag(np.geomspace(1.0, 1.0 / condition, 4)) @ turns[1]
        b = 10.0 * rng.normal(size=4)
        x, labels = registry.table("iris").to_numpy(), np.repeat([0, 1, 2], 50)
        settings = {"k": 3, "start": labels, "tol": 1e-8, "estimate": estimate}
        here = fit(family, x, **settings)
        there, _ = noted(family, x @ a + b, **settings)
        shift = 150 * np.log(abs(np.linalg.det(a)))
        assert loglik(there) + shift == pytest.approx(loglik(here), rel=1e-8)
        p, q = tree.point(here), tree.point(there)
        moved = Parameters(p.weight, p.mean @ a + b, a.T @ p.covariance @ a)
        order = [int(np.abs(q.mean - m).sum(axis=1).argmin()) for m in moved.mean]
        same(q.take(order), moved, rtol=1e-8)
        if condition < 1e4:  # beyond, the covariances as they are stored have fewer digits
            r = bg.predict_proba(there, x @ a + b).to_numpy()[:, order]
            assert_allclose(r, bg.predict_proba(here, x), atol=1e-7)

    def test_large_integers(self) -> None:
        x = (FAITHFUL * 1000).round().astype(np.int64)
        with pytest.warns(BayesgmmWarning, match="precision-loss"):
            there = fit("VVV", x + 2**60)
        here = fit("VVV", x)
        assert loglik(there) == pytest.approx(loglik(here), rel=1e-12)
        assert_allclose(
            there["posterior"]["covariance"], here["posterior"]["covariance"], rtol=1e-6
        )

    @pytest.mark.parametrize("family", [f.letters for f in registry.EVERY])
    def test_columns_in_another_order(self, family: str) -> None:
        x = registry.table("iris")
        labels = np.repeat([0, 1], [50, 100])
        other = list(x.columns[[2, 0, 3, 1]])
        here = fit(family, x, start=labels, tol=1e-6)
        there = fit(family, x[other], start=labels, tol=1e-6)
        p, q = tree.point(here), tree.point(there)
        order = [int(np.abs(q.weight - w).argmin()) for w in p.weight]
        again = q.take(order)
        at = [other.index(name) for name in x.columns]
        covariance = again.covariance[:, at][:, :, at]
        same(Parameters(again.weight, again.mean[:, at], covariance), p, rtol=1e-6)
        assert loglik(there) == pytest.approx(loglik(here), rel=1e-10)


class TestSeveralOptima:
    @pytest.mark.parametrize("family", ["EII", "VVV", "EEE"])
    def test_equally_good_partitions_are_told(self, family: str) -> None:
        """Four groups in a square: left and right, or above and below."""
        x = np.random.default_rng(3).normal(size=(40, 2)) * 0.5
        x = np.concatenate([x, -x])
        corners = np.array([[5, 5], [5, -5], [-5, 5], [-5, -5]])
        x = np.concatenate([x + corner for corner in corners])
        x = np.concatenate([x, x[:, ::-1]])
        with pytest.warns(FitWarning, match="rival-modes") as caught:
            found = fit(family, x, n_starts=10)
        assert status(found, "rival-modes") == "warn"
        objective = found["starts"]["objective"].to_numpy()[found["starts"]["usable"].to_numpy()]
        assert np.sum(objective.max() - objective < 0.1) > 1
        rival = found["rivals"].isel(start=0)
        number = int(rival["start"])
        assert found["starts"]["objective"].sel(start=number) == rival["objective"]
        assert f"start {number} led to {rival['objective']:.3f}" in str(caught[0].message)
        other = fit(family, x, start=found["rivals"].sel(start=number))
        assert loglik(other) == pytest.approx(rival["objective"].item(), rel=1e-10)
        axes = [np.abs(np.diff(tree.point(f).mean, axis=0)).argmax() for f in (found, other)]
        assert sorted(axes) == [0, 1]
        means = (np.sort(m, axis=0) for m in (tree.point(other).mean, rival["mean"]))
        assert_allclose(*means, atol=1e-6)

    def test_a_run_that_ends_next_to_a_singularity_is_no_rival(self) -> None:
        """Calibration came upon it: covariances that are not definite in floats."""
        case = ranks.cases()["VVV LKJ"]
        of = np.random.SeedSequence([1, crc32(case.name.encode())], spawn_key=(462,))
        rng = np.random.default_rng(of)
        x = ranks.draw(case, rng)[1].x
        seed = int(rng.integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BayesgmmWarning)
            found = bg.fit_em(case.spec, x, n_starts=10, n_finish=3, random_seed=seed)
        p = tree.point(found)
        assert are_mixtures(p.weight[None], p.mean[None], p.covariance[None])[0]


TABLES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda f: f,
    "polars": pl.from_pandas,
    "polars, lazy": lambda f: pl.from_pandas(f).lazy(),
    "pyarrow": pa.Table.from_pandas,
    "xarray": lambda f: xr.DataArray(
        f.to_numpy(), dims=("row", "column"), coords={"column": list(f)}
    ),
    "a mapping": lambda f: {name: f[name].tolist() for name in f},
    "records": lambda f: f.to_records(index=False),
    "Fortran's order": lambda f: pd.DataFrame(np.asfortranarray(f.to_numpy()), columns=f.columns),
    "extension types": lambda f: f.convert_dtypes(),
    "objects": lambda f: f.astype(object),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table_gives_the_same_fit_with_its_names(kind: str) -> None:
    expected = fit("VVV", FAITHFUL, n_starts=2)
    found = fit("VVV", TABLES[kind](FAITHFUL), n_starts=2)
    xr.testing.assert_equal(found["posterior"].to_dataset(), expected["posterior"].to_dataset())
    assert found.attrs["fingerprint"] == expected.attrs["fingerprint"]
    assert tree.names_of(found) == ("eruptions", "waiting")
