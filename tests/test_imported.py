"""Draws by other samplers become fits: as ours where they are, refused where they are none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from models import table

import bayesgmm as bg
from bayesgmm.checks import Verdict
from bayesgmm.errors import ArgumentError, PosteriorWarning

X = table("faithful")
SPEC = bg.GaussianMixture(2)


def quietly(function: Any, *arguments: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        return function(*arguments, **settings)


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return models.maximum()


@pytest.fixture(scope="module")
def ours(mle: xr.DataTree) -> xr.DataTree:
    settings = {"draws": 60, "tune": 100, "chains": 4, "random_seed": 5, "progressbar": False}
    return quietly(bg.sample_posterior, SPEC, X, mle=mle, **settings)


def as_theirs(fit: xr.DataTree, *, names: dict[str, str] | None = None) -> xr.DataTree:
    """What another sampler would return: the draws as sampled, its names of the statistics."""
    stats = fit["sample_stats"].to_dataset().drop_vars(["loglik", "log_prior"])
    return xr.DataTree.from_dict(
        {
            "posterior": fit["posterior_raw"].to_dataset(),
            "sample_stats": stats.rename(names or {}),
        }
    )


PYMC = {"depth": "tree_depth", "maxdepth_reached": "reached_max_treedepth"}
NUTPIE = {"lp": "logp", "acceptance_rate": "mean_tree_accept"}
NUMPYRO = {"n_steps": "num_steps", "acceptance_rate": "accept_prob"}


class TestOurs:
    @pytest.mark.parametrize("names", [{}, PYMC, NUTPIE, NUMPYRO], ids=str)
    def test_draws_of_the_same_density_are_the_same_fit(
        self, ours: xr.DataTree, mle: xr.DataTree, names: dict[str, str]
    ) -> None:
        fit = quietly(bg.from_draws, SPEC, as_theirs(ours, names=names), X, mle=mle, random_seed=5)
        assert set(fit.children) == set(ours.children)
        for name in fit.children:
            xr.testing.assert_allclose(
                fit[name].to_dataset(), ours[name].to_dataset(), rtol=1e-12, atol=1e-12
            )
        for name in ("prior", "spec", "fingerprint", "verdict", "random_seed"):
            assert fit.attrs[name] == ours.attrs[name], name
        assert fit.attrs["engine"] == "imported"

    def test_labels_that_are_exchanged_are_put_back(
        self, ours: xr.DataTree, mle: xr.DataTree
    ) -> None:
        theirs = as_theirs(ours)
        swapped = (
            theirs["posterior"].to_dataset().isel(cluster=[1, 0]).assign_coords(cluster=[0, 1])
        )
        fit = quietly(bg.from_draws, SPEC, swapped, X, mle=mle)
        xr.testing.assert_equal(fit["posterior"].to_dataset(), ours["posterior"].to_dataset())
        xr.testing.assert_equal(fit["posterior_raw"].to_dataset(), swapped)
        assert (fit["labels"]["permutation"].to_numpy() == [1, 0]).all()

    def test_without_statistics_what_cannot_be_checked_is_said(
        self, ours: xr.DataTree, mle: xr.DataTree
    ) -> None:
        """As of Stan's draws by name, with dimensions that have no names."""
        named = ours["posterior_raw"].to_dataset()
        plain = xr.Dataset(
            {
                name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(v.ndim - 2))), v)
                for name in ("weight", "mean", "covariance")
                for v in [named[name].to_numpy()]
            }
        )
        fit = quietly(bg.from_draws, SPEC, plain, X, mle=mle)
        xr.testing.assert_equal(fit["posterior"].to_dataset(), ours["posterior"].to_dataset())
        checks = {c.code: c.status for c in Verdict.from_json(fit.attrs["verdict"]).checks}
        for code in ("divergences", "treedepth", "bfmi"):
            assert checks[code] == "warn"
        assert not {"lp", "log_prior"} & set(fit["sample_stats"].data_vars)
        assert json.loads(fit.attrs["prior"]) == "a model edited by hand"

    def test_noise_and_what_is_fixed(self) -> None:
        spec = bg.GaussianMixture(2, "VVI", noise=True)
        fixed = {"mean": [[2.0, np.nan], [np.nan, np.nan]]}
        settings = {"draws": 20, "tune": 40, "chains": 2, "random_seed": 5, "fixed": fixed}
        ours = quietly(bg.sample_posterior, spec, X, **settings)
        fit = quietly(bg.from_draws, spec, as_theirs(ours), X, fixed=fixed, random_seed=5)
        for name in ("posterior", "label_free", "sample_stats"):
            xr.testing.assert_allclose(
                fit[name].to_dataset(), ours[name].to_dataset(), rtol=1e-10, atol=1e-12
            )
        other = {"mean": [[2.5, np.nan], [np.nan, np.nan]]}
        with pytest.raises(ArgumentError, match="of what is fixed"):
            bg.from_draws(spec, as_theirs(ours), X, fixed=other, random_seed=5)


class TestEdited:
    def test_another_density_says_nothing_of_our_prior(
        self, ours: xr.DataTree, mle: xr.DataTree, tmp_path: Any
    ) -> None:
        """It is compared, summarised, reported, saved and loaded as any fit is."""
        theirs = as_theirs(ours)
        mean = theirs["posterior"]["mean"]
        theirs["sample_stats"]["lp"] = theirs["sample_stats"]["lp"] - 0.01 * mean[..., 0, 0]
        theirs["posterior"]["gap"] = mean.diff("cluster").squeeze("cluster", drop=True)
        fit = quietly(bg.from_draws, SPEC, theirs, X, mle=mle)
        assert "log_prior" not in fit["sample_stats"]
        np.testing.assert_array_equal(fit["sample_stats"]["lp"], theirs["sample_stats"]["lp"])
        np.testing.assert_array_equal(fit["extra"]["gap"], theirs["posterior"]["gap"])
        assert len(bg.summary(fit)) == 12
        comparison = quietly(bg.compare, mle, fit)
        assert comparison.attrs["prior_note"].endswith(": a model edited by hand")
        page = bg.report(comparison, tmp_path / "report.html", mle=mle, post=fit)
        assert "a model edited by hand" in page.read_text()
        again = bg.load(bg.save(fit, tmp_path / "fit.nc"))
        for name in fit.children:
            xr.testing.assert_identical(again[name].to_dataset(), fit[name].to_dataset())
        assert again.attrs == fit.attrs


def test_pymcs_own_sampler(mle: xr.DataTree) -> None:
    """The density of `to_pymc` is known again by its values."""
    draws = pm.sample(
        15,
        tune=15,
        chains=2,
        cores=1,
        model=bg.to_pymc(SPEC, X),
        nuts_sampler="pymc",
        initvals={
            n: mle["posterior"][n].to_numpy()[0, 0] for n in ("weight", "mean", "covariance")
        },
        random_seed=10,
        progressbar=False,
        quiet=True,
    )
    fit = quietly(bg.from_draws, SPEC, draws, X, mle=mle)
    assert "log_prior" in fit["sample_stats"]
    assert {"energy", "diverging", "depth", "maxdepth_reached"} <= set(fit["sample_stats"])
    assert "Dirichlet" in fit.attrs["prior"]


def with_value(name: str, place: tuple[int, ...], value: float) -> Callable[[xr.DataTree], Any]:
    def spoil(theirs: xr.DataTree) -> None:
        array = theirs["posterior"][name].to_numpy().copy()
        array[place] = value
        theirs["posterior"][name] = theirs["posterior"][name].copy(data=array)

    return spoil


def renamed(**names: str) -> Callable[[xr.DataTree], Any]:
    def spoil(theirs: xr.DataTree) -> None:
        theirs["posterior"] = xr.DataTree(theirs["posterior"].to_dataset().rename(names))

    return spoil


def of_columns(*names: str) -> Callable[[xr.DataTree], Any]:
    def spoil(theirs: xr.DataTree) -> None:
        own = theirs["posterior"].to_dataset().assign_coords(feature=list(names))
        theirs["posterior"] = xr.DataTree(own)

    return spoil


SPOILT: dict[str, tuple[Callable[[xr.DataTree], Any], str]] = {
    "weights": (with_value("weight", (1, 7, 0), 0.9), r"'weight' does not sum.*chain 1, draw 7\)"),
    "negative": (with_value("weight", (0, 3, 1), -0.1), "'weight' is negative.*component 1"),
    "nan": (with_value("mean", (2, 5, 1, 0), np.nan), "'mean' is not finite.*chain 2, draw 5"),
    "lopsided": (
        with_value("covariance", (0, 4, 0, 0, 1), 0.5),
        r"'covariance' is not symmetric in 1 draws \(first: chain 0, draw 4, component 0\)",
    ),
    "indefinite": (
        with_value("covariance", (3, 2, 1, 0, 0), -1e-3),
        "not (symmetric|positive definite).*chain 3, draw 2, component 1",
    ),
    "no means": (renamed(mean="mu"), "no 'mean' in its posterior"),
    "no chains": (renamed(chain="walker"), "needs the dimensions chain and draw"),
    "order": (of_columns("waiting", "eruptions"), "same columns in another order"),
    "names": (of_columns("a", "b"), "other columns than X: a, b, not eruptions, waiting"),
}


class TestRefusals:
    @pytest.mark.parametrize("what", SPOILT)
    def test_what_is_no_draw_of_the_family(
        self, ours: xr.DataTree, mle: xr.DataTree, what: str
    ) -> None:
        theirs = as_theirs(ours)
        spoil, message = SPOILT[what]
        spoil(theirs)
        with pytest.raises(ArgumentError, match=message) as caught:
            bg.from_draws(SPEC, theirs, X, mle=mle)
        assert caught.value.argument == "idata"

    @pytest.mark.parametrize("letters", ["EEE", "VVI", "VEI", "EVE"])
    def test_draws_of_another_family(self, ours: xr.DataTree, letters: str) -> None:
        spec = bg.GaussianMixture(2, letters)
        with pytest.raises(ArgumentError, match=f"not one of {letters}.*chain 0, draw 0") as caught:
            quietly(bg.from_draws, spec, as_theirs(ours), X, random_seed=1)
        assert caught.value.argument == "idata"

    def test_draws_of_another_size(self, ours: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match=r"shape \(2,\), not \(3,\)"):
            quietly(bg.from_draws, bg.GaussianMixture(3), as_theirs(ours), X, random_seed=1)

    def test_statistics_of_other_draws(self, ours: xr.DataTree, mle: xr.DataTree) -> None:
        theirs = as_theirs(ours)
        few = theirs["sample_stats"].to_dataset().isel(draw=slice(0, 10))
        theirs = xr.DataTree.from_dict(
            {"posterior": theirs["posterior"].to_dataset(), "sample_stats": few}
        )
        with pytest.raises(ArgumentError, match="has the shape"):
            bg.from_draws(SPEC, theirs, X, mle=mle)

    @pytest.mark.parametrize("thing", [None, 3, xr.DataTree(), {"mean": [1.0]}])
    def test_what_is_no_draws_at_all(self, thing: object) -> None:
        with pytest.raises(ArgumentError, match="group posterior") as caught:
            bg.from_draws(SPEC, thing, X)
        assert caught.value.argument == "idata"
