"""Every public function against all that another returns: it works, or says what it needs.

`WORKS` is the table: what each function takes.  All else must be refused with an error of the
package that names the argument, not with one of Python's from somewhere inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import registry
import xarray as xr

import bayesgmm as bg
from bayesgmm import errors, tree

X = registry.table("iris").iloc[::2, :3]
SPEC = bg.GaussianMixture(2, "EEE")
FIRST, SECOND, THIRD = X.columns


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.BayesgmmWarning)
        return function(*args, **kwargs)


def fit(**options: Any) -> xr.DataTree:
    return quiet(bg.fit_em, SPEC, X, **{"random_seed": 1, "n_starts": 2} | options)


def em() -> xr.DataTree:
    return made("em")


def boot() -> xr.DataTree:
    return made("bootstrap")


#: What the functions return, by name.
THINGS: dict[str, Callable[[], Any]] = {
    "em": fit,
    "map": lambda: fit(estimate="map"),
    "hard": lambda: fit(assignment="hard"),
    "fixed": lambda: fit(fixed={"weight": "equal"}),
    "jackknife": lambda: quiet(bg.jackknife, em()),
    "bootstrap": lambda: quiet(bg.bootstrap, em(), draws=60, random_seed=1),
    "laplace": lambda: quiet(bg.fit_laplace, SPEC, X, mle=em(), draws=200, random_seed=1),
    "posterior": lambda: quiet(
        bg.sample_posterior,
        *(SPEC, X),
        mle=em(),
        draws=100,
        tune=50,
        random_seed=1,
        progressbar=False,
    ),
    "marginal": lambda: bg.marginal(em(), [FIRST, THIRD]),
    "conditional": lambda: bg.conditional(em(), {SECOND: 3.0}),
    "marginal of draws": lambda: bg.marginal(boot(), [FIRST, THIRD]),
    "conditional of draws": lambda: quiet(bg.conditional, boot(), {SECOND: 3.0}),
    "parameters": lambda: tree.point(em()),
    "comparison": lambda: bg.compare(em(), boot()),
    "standard errors": lambda: bg.standard_errors(boot()),
    "intervals": lambda: bg.percentile_intervals(boot()),
    "profile": lambda: bg.profile(em(), "weight[0]"),
    "test": lambda: quiet(bg.bootstrap_lrt, em(), draws=2, n_starts=1, random_seed=1),
    "selection": lambda: quiet(
        bg.select, X, n_components=[1, 2], covariance="EEE", n_starts=2, random_seed=1
    ),
    "table of a selection": lambda: made("selection").table,
    "summary": lambda: bg.summary(em()),
    "matrix": lambda: bg.vcov(em()),
    "derived": lambda: bg.derived(em()),
    "densities": lambda: bg.score(em(), X),
    "responsibilities": lambda: bg.responsibilities(boot()),
    "pairs": lambda: bg.coclustering(boot()),
    "partition": lambda: bg.partition(boot(), random_seed=1),
    "bands": lambda: bg.predictive_density(boot(), columns=FIRST),
    "rows": lambda: bg.simulate(em(), 5, random_seed=1),
    "specification": lambda: SPEC,
    "an empty tree": xr.DataTree,
    "nothing": lambda: None,
    "a number": lambda: 3,
    "a word": lambda: "fit",
}
POINTS = {"em", "map", "hard", "fixed", "jackknife"}
SOFT = POINTS - {"hard"}
DRAWS = {"bootstrap", "laplace", "posterior"}
PARTS = {"marginal", "conditional", "marginal of draws", "conditional of draws"}
DRAWN_PARTS = {"marginal of draws", "conditional of draws"}
FITS = POINTS | DRAWS | PARTS
OWN_ROWS = DRAWS | {"marginal of draws"}
DRAWN = OWN_ROWS | {"conditional of draws"}


@cache
def made(name: str) -> Any:
    return THINGS[name]()


def rows(thing: Any) -> Any:
    """Some rows with the columns of a mixture."""
    if not isinstance(thing, xr.DataTree) or "posterior" not in thing.children:
        return X.to_numpy()
    return X[list(tree.names_of(thing))]


def other_columns(thing: Any) -> Any:
    return bg.regress(thing, rows(thing), [0] if thing is made("parameters") else [FIRST])


def given(thing: Any) -> Any:
    return quiet(bg.conditional, thing, {0 if thing is made("parameters") else FIRST: 5.0})


def written(thing: Any, path: Path) -> Any:
    return bg.save(thing, path / "fit.nc")


#: For each function: how it is called, and what it takes.
WORKS: dict[str, tuple[Callable[[Any, Path], Any], set[str]]] = {
    "summary": (lambda t, _: bg.summary(t), FITS),
    "score": (lambda t, _: bg.score(t, rows(t)), FITS | {"parameters"}),
    "predict": (lambda t, _: bg.predict(t, rows(t)), FITS | {"parameters"}),
    "predict_proba": (lambda t, _: bg.predict_proba(t, rows(t)), FITS | {"parameters"}),
    "simulate": (lambda t, _: bg.simulate(t, 5), FITS | {"parameters"}),
    "marginal": (
        lambda t, _: bg.marginal(t, [0] if t is made("parameters") else [FIRST]),
        FITS | {"parameters"},
    ),
    "conditional": (lambda t, _: given(t), FITS | {"parameters"}),
    "regress": (lambda t, _: other_columns(t), FITS | {"parameters"}),
    "responsibilities": (lambda t, _: bg.responsibilities(t), OWN_ROWS),
    "responsibilities, of rows": (lambda t, _: bg.responsibilities(t, rows(t)), DRAWN),
    "coclustering": (lambda t, _: bg.coclustering(t), OWN_ROWS),
    "coclustering, of rows": (lambda t, _: bg.coclustering(t, rows(t)), DRAWN),
    "partition": (lambda t, _: bg.partition(t, n_starts=1, random_seed=1), OWN_ROWS),
    "partition, of rows": (lambda t, _: bg.partition(t, rows(t), n_starts=1), DRAWN),
    "predictive_density": (lambda t, _: bg.predictive_density(t, columns=FIRST), DRAWN),
    "posterior_predictive": (lambda t, _: bg.posterior_predictive(t), OWN_ROWS),
    "plot_coclustering": (lambda t, _: bg.plot_coclustering(t, random_seed=1), OWN_ROWS),
    "plot_responsibilities": (lambda t, _: bg.plot_responsibilities(t), OWN_ROWS),
    "save": (written, FITS),
    "vcov": (lambda t, _: bg.vcov(t), SOFT),
    "derived": (lambda t, _: bg.derived(t), SOFT),
    "profile": (lambda t, _: bg.profile(t, f"mean[0, {FIRST}]"), SOFT),
    "bootstrap": (lambda t, _: quiet(bg.bootstrap, t, draws=2, random_seed=1), SOFT),
    "jackknife": (lambda t, _: quiet(bg.jackknife, t), SOFT),
    "bootstrap_lrt": (
        lambda t, _: quiet(bg.bootstrap_lrt, t, draws=1, n_starts=0, random_seed=1),
        SOFT - {"map"},
    ),
    "align": (lambda t, _: quiet(bg.align, t), DRAWS),
    "align, pivot": (
        lambda t, _: quiet(bg.align, boot(), pivot=t),
        POINTS | {"parameters", "nothing"},
    ),
    "diagnose": (lambda t, _: bg.diagnose(t), DRAWS),
    "plot_labels": (lambda t, _: bg.plot_labels(t), DRAWS | DRAWN_PARTS),
    "standard_errors": (lambda t, _: bg.standard_errors(t), {"bootstrap"}),
    "percentile_intervals": (lambda t, _: bg.percentile_intervals(t), {"bootstrap"}),
    "log_marginal_likelihood": (
        lambda t, _: quiet(bg.log_marginal_likelihood, t, random_seed=1),
        DRAWS - {"bootstrap"},
    ),
    "loo": (lambda t, _: quiet(bg.loo, t), DRAWS - {"bootstrap"}),
    "loo_pit": (lambda t, _: bg.loo_pit(t), DRAWS - {"bootstrap"}),
    "sensitivity": (lambda t, _: bg.sensitivity(t), DRAWS - {"bootstrap"}),
    "compare, first": (lambda t, _: bg.compare(t, boot()), POINTS - {"fixed"}),
    "mode": (lambda t, _: bg.mode(t), DRAWS - {"bootstrap"}),
    "combine_modes": (
        lambda t, _: quiet(bg.combine_modes, t, random_seed=1),
        DRAWS - {"bootstrap"},
    ),
    "compare, second": (lambda t, _: bg.compare(em(), t), DRAWS),
    "plot_density, first": (lambda t, _: bg.plot_density(t, boot()), POINTS),
    "plot_density, second": (lambda t, _: bg.plot_density(em(), t), POINTS | DRAWS),
    "plot_convergence": (lambda t, _: bg.plot_convergence(t), POINTS),
    "plot_compare": (lambda t, _: bg.plot_compare(t), {"comparison"}),
    "to_frame": (lambda t, _: bg.to_frame(t), {"comparison"}),
    "format_table": (lambda t, _: bg.format_table(t), {"comparison"}),
    "report": (lambda t, path: bg.report(t, path / "report.html"), {"comparison"}),
    "report, fits": (
        lambda t, path: bg.report(made("comparison"), path / "r.html", mle=t, post=boot()),
        POINTS,
    ),
    "plot_select": (lambda t, _: bg.plot_select(t), {"selection", "table of a selection"}),
    "fit_em, start": (lambda t, _: fit(start=t), POINTS | {"parameters", "nothing"}),
    "from_draws": (lambda t, _: quiet(bg.from_draws, SPEC, t, X, mle=em()), POINTS | DRAWS),
    "fit_laplace, mle": (
        lambda t, _: quiet(bg.fit_laplace, SPEC, X, mle=t, draws=200, random_seed=1),
        POINTS - {"fixed"} | {"nothing"},
    ),
}


@pytest.mark.parametrize("verb", WORKS)
def test_it_works_or_says_what_it_needs(verb: str, tmp_path: Path) -> None:
    call, takes = WORKS[verb]
    for name in THINGS:
        thing = made(name)
        if name in takes:
            assert call(thing, tmp_path) is not None, name
            continue
        with pytest.raises(errors.BayesgmmError) as caught:
            call(thing, tmp_path)
        assert len(str(caught.value)) > 20, name


def test_the_table_has_every_function_that_takes_what_another_returns() -> None:
    named = {verb.split(",")[0] for verb in WORKS}
    others = {
        "select",
        "sample_posterior",
        "to_pymc",
        "load",
        "recover",
        "prior_summary",
        "prior_predictive",
        "plot_prior",
    }  # a table of data, or a path
    functions = {n for n in bg.__all__ if n[0].islower() and callable(getattr(bg, n))}
    assert functions == named | others


def test_a_part_of_a_fit_is_told_what_it_lacks() -> None:
    for part in ("marginal", "conditional"):
        with pytest.raises(errors.ArgumentError, match=r"^mle: must be a whole fit, with sample"):
            bg.compare(made(part), boot())
        with pytest.raises(errors.ArgumentError, match=r"^fit: must be a whole fit by fit_em"):
            bg.vcov(made(part))
    with pytest.raises(errors.ArgumentError, match=r"^post: must be a fit .*not Dataset"):
        bg.compare(em(), made("comparison"))


def test_regression_and_marginals_of_parts_are_those_of_the_whole() -> None:
    """What a part of a fit is given back for is right, too."""
    part = bg.marginal(made("conditional"), [THIRD])
    whole = bg.conditional(em(), {SECOND: 3.0})
    density = bg.score(part, X[[THIRD]])
    x = np.linspace(0.0, 10.0, 2001)
    grid = pd.DataFrame({FIRST: x, THIRD: X[THIRD].iloc[0]})
    integral = np.trapezoid(np.exp(bg.score(whole, grid)), x)
    assert np.exp(density.iloc[0]) == pytest.approx(integral, rel=1e-6)
