"""Bootstrap and jackknife: replicates, errors, what is refused, and what goes on with the draws."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache
from threading import Event
from typing import Any

import numpy as np
import pytest
import registry
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kurtosis, multivariate_normal

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.checks import Verdict
from bayesgmm.data.observations import Data, read
from bayesgmm.display.comparison import compare
from bayesgmm.em.loop import run
from bayesgmm.em.start import Start
from bayesgmm.errors import ArgumentError, FitWarning, NumericalError
from bayesgmm.inference import refits, replicates, resampling
from bayesgmm.inference.ahead import covariance_of
from bayesgmm.inference.estimate import moving
from bayesgmm.inference.resampling import (
    bootstrap,
    jackknife,
    percentile_intervals,
    standard_errors,
)
from bayesgmm.moments import Parameters
from bayesgmm.rows import summary

FAITHFUL = registry.table("faithful")
ONE, TWO = bg.GaussianMixture(1, "VVV"), bg.GaussianMixture(2, "VVV")
KINDS = {"nonparametric": "bs", "weighted": "wlbs", "parametric": "pb"}
B = 200
by_kind = pytest.mark.parametrize("kind", KINDS)


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        return function(*args, **kwargs)


@cache
def fitted(k: int = 2) -> xr.DataTree:
    return bg.fit_em(bg.GaussianMixture(k, "VVV"), FAITHFUL, random_seed=1, n_starts=4)


@cache
def booted(kind: str = "nonparametric") -> xr.DataTree:
    return quiet(bootstrap, fitted(), kind=kind, draws=100, random_seed=2)


def arrays(group: Any) -> dict[str, np.ndarray]:
    return {name: group[name].to_numpy() for name in tree.DIMS}


def checks(fit: xr.DataTree) -> dict[str, Any]:
    return {c.code: c for c in Verdict.from_json(fit.attrs["verdict"]).checks}


# References: mclust's MclustBootstrap, 999 replicates


@cache
def reference(case: str) -> tuple[xr.DataTree, dict[str, dict[str, np.ndarray]]]:
    """The fit at mclust's optimum, and mclust's standard errors by kind, in the fit's order."""
    record = registry.golden(f"bootstrap/{case}")
    x = registry.table(record["csv"].removeprefix("data/").removesuffix(".csv"))

    def arranged(values: dict[str, Any]) -> dict[str, np.ndarray]:
        mean, variance = (np.array(values[name]) for name in ("mean", "variance"))
        mean = np.atleast_2d(mean).T
        k, d = mean.shape
        variance = np.moveaxis(variance.reshape(d, d, k), -1, 0)
        return {"weight": np.array(values["pro"]), "mean": mean, "covariance": variance}

    own = arranged(record["parameters"])
    own["weight"] = own["weight"] / own["weight"].sum()
    start = Parameters(**{name: np.ascontiguousarray(v) for name, v in own.items()})
    spec = bg.GaussianMixture(record["K"], record["model"])
    fit = quiet(bg.fit_em, spec, x, start=start, random_seed=1)
    assert fit["criteria"]["loglik"].item() == pytest.approx(record["loglik"], abs=1e-8)
    order = np.lexsort(own["mean"].T[::-1])
    return fit, {
        ours: {name: v[order] for name, v in arranged(record[theirs]["se"]).items()}
        for ours, theirs in (KINDS | {"jackknife": "jk"}).items()
        if theirs in record
    }


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("faithful_VVV_2", "nonparametric"),
        ("faithful_VVV_2", "weighted"),
        ("faithful_VVV_2", "parametric"),
        ("geyser_mass_VVI_2", "nonparametric"),
        ("geyser_mass_VVI_2", "parametric"),
        ("acidity_V_2", "nonparametric"),
        ("iris_EEE_3", "nonparametric"),
    ],
)
def test_standard_errors_are_mclust_s_within_monte_carlo_error(case: str, kind: str) -> None:
    fit, expected = reference(case)
    boot = quiet(bootstrap, fit, kind=kind, draws=B, random_seed=5)
    ours, draws = arrays(standard_errors(boot)), arrays(boot["posterior"])
    for name, theirs in expected[kind].items():
        free = theirs > 0
        # Of the logarithm of a standard deviation from B values; heavy tails make it larger.
        error = np.sqrt((kurtosis(draws[name][0], axis=0) + 2) / 4 * (1 / B + 1 / 999))
        away = np.abs(np.log(ours[name][free] / theirs[free])) / error[free]
        assert away.max() < 4.0, (name, away)
        assert (ours[name][~free] == 0).all()


def test_jackknife_errors_are_mclust_s() -> None:
    """To the accuracy of mclust's replicates, which stop at a relative change of 1e-5."""
    fit, expected = reference("faithful_VVV_2")
    ours = arrays(jackknife(fit)["standard_error"])
    for name, theirs in expected["jackknife"].items():
        assert_allclose(ours[name], theirs, rtol=0.05)


# One component: closed forms


@pytest.mark.parametrize("weight", [None, "frequencies"])
def test_one_component_is_resampled_exactly(weight: str | None) -> None:
    w = np.random.default_rng(0).integers(0, 3, len(FAITHFUL)) if weight else None
    fit = bg.fit_em(ONE, FAITHFUL, sample_weight=w, random_seed=1)
    boot = quiet(bootstrap, fit, draws=20, random_seed=8)
    p = np.ones(len(FAITHFUL)) if w is None else w
    x = FAITHFUL.to_numpy()
    seeds = np.random.SeedSequence(8).spawn(20)
    for i, seed in enumerate(seeds):
        count = np.random.default_rng(seed).multinomial(p.sum(), p / p.sum())
        rows = np.repeat(x, count, axis=0)
        draw = boot["posterior"].isel(chain=0, draw=i)
        assert_allclose(draw["mean"].to_numpy()[0], rows.mean(axis=0), rtol=1e-12)
        assert_allclose(draw["covariance"].to_numpy()[0], np.cov(rows.T, ddof=0), rtol=1e-10)


def test_variance_of_a_mean_under_each_kind() -> None:
    n, draws = len(FAITHFUL), 600
    variance = FAITHFUL.var(ddof=0).to_numpy()
    exact = {"nonparametric": variance / n, "parametric": variance / n}
    exact["weighted"] = variance / (n + 1)
    fit = fitted(1)
    for kind, expected in exact.items():
        boot = quiet(bootstrap, fit, kind=kind, draws=draws, random_seed=4)
        found = standard_errors(boot)["mean"].to_numpy()[0] ** 2
        assert_allclose(found, expected, rtol=4.0 * np.sqrt(2.0 / draws))


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    jack = jackknife(fitted(1))
    n = len(FAITHFUL)
    expected = FAITHFUL.std(ddof=1).to_numpy() / np.sqrt(n)
    assert_allclose(jack["standard_error"]["mean"].to_numpy()[0], expected, rtol=1e-10)


def test_jackknife_of_a_covariance_by_hand() -> None:
    x = FAITHFUL.to_numpy()[:40]
    jack = quiet(jackknife, bg.fit_em(ONE, x, random_seed=1))
    each = np.array([np.cov(np.delete(x, i, axis=0).T, ddof=0) for i in range(40)])
    expected = np.sqrt(39 / 40 * ((each - each.mean(axis=0)) ** 2).sum(axis=0))
    assert_allclose(jack["standard_error"]["covariance"].to_numpy()[0], expected, rtol=1e-9)
    assert_allclose(jack["replicates"]["covariance"].to_numpy()[:, 0], each, rtol=1e-9)


def test_under_a_prior_it_is_the_posterior_mode_that_is_resampled() -> None:
    options: dict[str, Any] = {"draws": 10, "random_seed": 3}
    ml = quiet(bootstrap, fitted(1), **options)
    mode = quiet(bg.fit_em, ONE, FAITHFUL, estimate="map", random_seed=1)
    found = quiet(bootstrap, mode, **options)["posterior"]["mean"].to_numpy()
    n, shrinkage = len(FAITHFUL), bg.ConjugatePrior().shrinkage
    total = n * ml["posterior"]["mean"].to_numpy() + shrinkage * FAITHFUL.mean().to_numpy()
    assert_allclose(found, total / (n + shrinkage), rtol=1e-10)


# Replicates


def data_of(weight: np.ndarray | None = None) -> Data:
    return quiet(read, FAITHFUL, sample_weight=weight)


def test_dirichlet_weights_have_their_moments() -> None:
    weight = np.array([2.0, 1.0, 0.5, 3.5] * 5)
    data = quiet(read, FAITHFUL[:20], sample_weight=weight)
    rng = np.random.default_rng(1)
    drawn = np.array([replicates.reweighted(data, rng).weight for _ in range(4000)])
    total = weight.sum()
    variance = weight * (total - weight) / (total + 1)
    assert_allclose(drawn.sum(axis=1), total, rtol=1e-12)
    assert_allclose(drawn.mean(axis=0), weight, atol=4.5 * np.sqrt(variance.max() / 4000))
    assert_allclose(drawn.var(axis=0), variance, rtol=0.25)


@pytest.mark.parametrize("weight", [None, np.arange(len(FAITHFUL)) % 4])
def test_replicates_have_as_many_observations_in_the_same_units(weight: Any) -> None:
    data, rng = data_of(weight), np.random.default_rng(0)
    parameters = data.to_anchored(tree.point(fitted()))
    for one in (
        replicates.resampled(data, rng),
        replicates.reweighted(data, rng),
        replicates.simulated(data, rng, parameters),
    ):
        assert one.total_weight == pytest.approx(data.total_weight, rel=1e-12)
        assert_array_equal(one.scale, data.scale)
        assert_array_equal(one.center, data.center)
        assert not one.weight.size or one.weight.min() > 0
    left = replicates.without(data, 3)
    assert left.total_weight == data.total_weight - 1


def test_simulated_rows_are_a_sample_of_the_mixture() -> None:
    data = data_of(np.full(len(FAITHFUL), 40))
    parameters = data.to_anchored(tree.point(fitted()))
    x = replicates.simulated(data, np.random.default_rng(3), parameters).x
    mean = parameters.weight @ parameters.mean
    assert_allclose(x.mean(axis=0), mean, atol=0.05)
    gap = parameters.mean - mean
    outer = parameters.covariance + gap[:, :, None] * gap[:, None, :]
    assert_allclose(np.cov(x.T), np.einsum("k,kij->ij", parameters.weight, outer), rtol=0.05)


def test_simulated_rows_miss_what_the_data_miss() -> None:
    x = FAITHFUL.to_numpy().copy()
    x[:50, 0] = np.nan
    data = quiet(read, x, missing="marginalise")
    drawn = replicates.simulated(
        data, np.random.default_rng(0), data.to_anchored(tree.point(fitted()))
    )
    assert_array_equal(np.isnan(drawn.x).sum(axis=0), [50, 0])


# The way to a replicate's optimum


@pytest.mark.parametrize("family", ["VVV", "EEE", "VEI", "VVE", "EEV"])
@pytest.mark.parametrize("estimate", ["mle", "map"])
def test_a_replicate_ends_where_plain_em_from_the_estimate_ends(family: str, estimate: Any) -> None:
    options: dict[str, Any] = {"estimate": estimate, "n_starts": 4, "random_seed": 1}
    fit = moving(quiet(bg.fit_em, bg.GaussianMixture(2, family), FAITHFUL, **options))
    known = covariance_of(fit)
    error = np.sqrt(np.diagonal(known))
    settings: dict[str, Any] = {"prior": fit.prior, "acceleration": None, "tol": 1e-6}
    for i, make in enumerate((replicates.resampled, replicates.reweighted)):
        data = make(fit.data, np.random.default_rng(i))
        found = refits.refit(fit, i, data, tol=1e-3, covariance=known).run
        plain = run(data, fit.family, Start("estimate", fit.parameters), **settings)
        assert found.reason == plain.reason == "converged"
        away = [getattr(found.parameters, n) - getattr(plain.parameters, n) for n in tree.DIMS]
        assert (np.abs(np.concatenate([a.ravel() for a in away])) <= 1e-3 * error).all()


def test_it_is_several_times_shorter_where_components_overlap() -> None:
    x = np.random.default_rng(3).normal(np.repeat([0.0, 2.5], [200, 300]))[:, None]
    fit = moving(quiet(bg.fit_em, bg.GaussianMixture(2, "V"), x, n_starts=4, random_seed=1))
    data = replicates.resampled(fit.data, np.random.default_rng(0))
    known = covariance_of(fit)
    one, two = (refits.refit(fit, 0, data, tol=1e-4, covariance=c).run for c in (known, None))
    assert_allclose(one.parameters.mean, two.parameters.mean, atol=1e-4)
    assert one.n_passes < 0.3 * two.n_passes


def test_where_it_leads_nowhere_em_starts_at_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = moving(fitted())
    nowhere = fit.parameters.mean + np.array([[100.0], [0.0]])
    lost = replace(fit.parameters, mean=nowhere)
    data = replicates.resampled(fit.data, np.random.default_rng(0))
    expected = refits.refit(fit, 0, data, tol=1e-4).run
    monkeypatch.setattr(refits, "ahead", lambda *_: lost)
    assert run(data, TWO.covariance, Start("lost", lost)).reason == "empty"
    found = refits.refit(fit, 0, data, tol=1e-4).run
    assert found.reason == "converged"
    assert_array_equal(found.parameters.mean, expected.parameters.mean)


def test_what_is_fixed_is_left_to_em() -> None:
    fixed = quiet(bg.fit_em, TWO, FAITHFUL, fixed={"weight": "equal"}, random_seed=1, n_starts=2)
    assert covariance_of(moving(fixed)) is None
    assert covariance_of(moving(fitted())) is not None


# Draws


@by_kind
def test_the_same_seed_gives_the_same_bits_for_any_number_of_threads(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for n_workers in (1, 3):
        monkeypatch.setattr(resampling, "workers", lambda *_, n=n_workers: n)
        runs.append(quiet(bootstrap, fitted(), kind=kind, draws=30, random_seed=11))
    other = quiet(bootstrap, fitted(), kind=kind, draws=2, random_seed=12)
    for name in tree.DIMS:
        one, two = (boot["posterior"][name].to_numpy() for boot in runs)
        assert_array_equal(one, two)
        assert (one[:, :2] != other["posterior"][name].to_numpy()).any()


def test_labels_are_the_estimate_s() -> None:
    fit = fitted().copy(deep=True)
    fit["posterior"] = xr.DataTree(
        fit["posterior"].to_dataset().isel(cluster=[1, 0]).assign_coords(cluster=[0, 1])
    )
    turned = quiet(bootstrap, fit, draws=40, random_seed=2)
    plain = booted()["posterior"].to_dataset().isel(draw=slice(40))
    for name in tree.DIMS:
        assert_allclose(
            turned["posterior"][name].to_numpy()[:, :, ::-1], plain[name].to_numpy(), rtol=2e-3
        )
    assert booted()["labels"]["margin"].to_numpy().min() > 0.5


def test_draws_are_optima_of_their_replicates_and_below_the_maximum_of_the_data() -> None:
    boot = booted()
    stats = boot["sample_stats"].to_dataset()
    top = fitted()["criteria"]["loglik"].item()
    assert (stats["loglik"] <= top + 1e-9).all()
    # Half the number of parameters below on average, as a posterior is.
    assert 2.0 < top - float(stats["loglik"].mean()) < 11.0
    p = arrays(boot["posterior"].isel(draw=7))
    density = sum(
        w * multivariate_normal(m, c).pdf(FAITHFUL)
        for w, m, c in zip(p["weight"][0], p["mean"][0], p["covariance"][0], strict=True)
    )
    assert float(stats["loglik"][0, 7]) == pytest.approx(np.log(density).sum(), rel=1e-12)


def test_a_fit_that_was_saved_gives_the_same_draws(tmp_path) -> None:
    loaded = bg.load(bg.save(fitted(), tmp_path / "fit.nc"))
    again = quiet(bootstrap, loaded, draws=100, random_seed=2)["posterior"].to_dataset()
    xr.testing.assert_identical(again, booted()["posterior"].to_dataset())


def test_weights_are_repeated_rows() -> None:
    """In the jackknife, which is exact; draws depend on the rows' numbers."""
    x = FAITHFUL.to_numpy()[:60]
    w = np.arange(60) % 3
    start = tree.point(fitted())
    options: dict[str, Any] = {"start": start, "tol": 1e-9}
    one = quiet(jackknife, quiet(bg.fit_em, TWO, x, sample_weight=w, **options))
    rows = np.repeat(x, w, axis=0)
    two = quiet(jackknife, quiet(bg.fit_em, TWO, rows, **options))
    for name in tree.DIMS:
        assert_allclose(
            one["standard_error"][name].to_numpy(),
            two["standard_error"][name].to_numpy(),
            rtol=1e-3,
        )
    assert one["replicates"].sizes["row"] == np.count_nonzero(w)


def test_missing_values_stay_missing() -> None:
    x = FAITHFUL.copy()
    x.iloc[::7, 0] = np.nan
    fit = quiet(bg.fit_em, TWO, x, missing="marginalise", random_seed=1, n_starts=4)
    for kind in KINDS:
        boot = quiet(bootstrap, fit, kind=kind, draws=30, random_seed=1)
        assert boot["posterior"].sizes["draw"] == 30
        top = fit["criteria"]["loglik"].item()
        assert (boot["sample_stats"]["loglik"] <= top + 1e-9).all()


# What goes wrong


def test_failed_replicates_are_counted_and_kept_apart() -> None:
    x = registry.table("galaxies")
    fit = quiet(bg.fit_em, bg.GaussianMixture(3, "V"), x, random_seed=1)
    with pytest.warns(FitWarning, match="have no usable optimum"):
        boot = bootstrap(fit, draws=60, random_seed=1)
    table = boot["replicates"].to_dataset()
    bad = ~table["usable"].to_numpy()
    assert table.sizes["replicate"] == 60
    assert 0 < bad.sum() < 60
    assert set(table["reason"].to_numpy()[bad]) <= {"singular", "empty", "tiny", "spurious"}
    assert boot["posterior"].sizes["draw"] == 60 - bad.sum()
    assert_array_equal(boot["sample_stats"]["replicate"].to_numpy()[0], np.flatnonzero(~bad))
    check = checks(boot)["failed-replicates"]
    assert check.status == "fail"
    assert check.evidence.startswith(f"{bad.sum()} of 60 replicates")


def test_no_usable_replicate_is_an_error() -> None:
    found = run(data_of(), TWO.covariance, Start("x", data_of().to_anchored(tree.point(fitted()))))
    bad = [refits.Refit(i, replace(found, reason="singular"), np.nan, None) for i in range(3)]
    with pytest.raises(NumericalError, match=r"of 3 replicates, 0 .*3 singular"):
        refits.with_optimum(bad, 3)
    with pytest.raises(KeyboardInterrupt):
        refits.with_optimum(bad, 4)


def test_ambiguous_labels_refuse_errors_of_components_and_nothing_else() -> None:
    x = np.random.default_rng(2).normal(size=(80, 1))
    fit = quiet(bg.fit_em, bg.GaussianMixture(3, "V"), x, random_seed=1)
    boot = quiet(bootstrap, fit, draws=40, restarts=1, random_seed=1)
    assert checks(boot)["ambiguous-labels"].status == "fail"
    for refused in (standard_errors, percentile_intervals):
        with pytest.raises(ArgumentError, match="boot: has ambiguous labels in"):
            refused(boot)
    free = boot["label_free"]["mixture_mean"].to_numpy()
    # Of all moments the mean has a closed form whatever the components: EM keeps it.
    assert free.std() == pytest.approx(x.std() / np.sqrt(80), rel=0.3)
    assert np.isfinite(bg.score(boot, x)).all()


def test_another_optimum_is_told_of_and_taken_if_asked_for() -> None:
    x = registry.table("iris")
    fit = quiet(bg.fit_em, bg.GaussianMixture(3, "VVV"), x, random_seed=1)
    with pytest.warns(FitWarning, match="other-optima"):
        near = bootstrap(fit, draws=30, random_seed=1)
    high = quiet(bootstrap, fit, draws=30, restarts=1, random_seed=1)
    elsewhere = near["replicates"]["higher_elsewhere"].to_numpy()
    assert checks(near)["other-optima"].evidence.startswith(f"in {elsewhere.sum()} of 30")
    assert checks(high)["other-optima"].status == "ok"
    assert_array_equal(high["replicates"]["start"] == "ellipsoids", elsewhere)
    one, two = (b["sample_stats"]["objective"].to_numpy()[0] for b in (near, high))
    assert (two[elsewhere] > one[elsewhere]).all()
    assert_array_equal(two[~elsewhere], one[~elsewhere])


def test_of_how_many_replicates_another_start_is_tried_can_be_said() -> None:
    for audited in (0, 3):
        boot = quiet(bootstrap, fitted(), draws=8, audited=audited, random_seed=2)
        assert ("other-optima" in checks(boot)) == (audited > 0)
        if audited:
            assert "of 3 replicates" in checks(boot)["other-optima"].evidence
        whole = booted()["posterior"]["mean"].to_numpy()
        assert_array_equal(boot["posterior"]["mean"].to_numpy(), whole[:, :8])


def test_ctrl_c_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def until(n: int):
        def refit(task, number, *args, **kwargs):
            if number == n:
                raise KeyboardInterrupt
            return refits.refit(task, number, *args, **kwargs)

        return refit

    monkeypatch.setattr(resampling, "refit", until(60))
    with pytest.warns(FitWarning, match="100 were asked for"):
        boot = bootstrap(fitted(), draws=100, random_seed=2)
    assert boot.attrs["stop_reason"] == "interrupted"
    assert boot["posterior"].sizes["draw"] == 60
    whole = booted()["posterior"]["mean"].to_numpy()
    assert_array_equal(boot["posterior"]["mean"].to_numpy(), whole[:, :60])
    with pytest.raises(KeyboardInterrupt):  # a part of a jackknife is none
        jackknife(fitted())
    monkeypatch.setattr(resampling, "refit", until(1))
    with pytest.raises(KeyboardInterrupt):
        bootstrap(fitted(), draws=100, random_seed=2)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_each_stops_after_one_that_was_interrupted(n_workers: int) -> None:
    def one(i: int, stop: Event) -> int | None:
        return None if i == 4 else i

    found = replicates.each(one, 200, n_workers=n_workers, description="test", progressbar=False)
    assert found[:4] == [0, 1, 2, 3]
    assert 4 not in found
    assert n_workers > 1 or len(found) == 4


# What goes on with them


def test_compare_summary_and_score_take_it_as_a_posterior() -> None:
    boot = booted()
    found = compare(fitted(), boot)
    # Independent draws: nothing is estimated that is known.
    assert (found["r_hat"] == 1.0).all()
    assert (found["ess_bulk"] == 100.0).all()
    draws = boot["posterior"]["mean"].to_numpy()[0, :, 0, 0]
    row = found.sel(parameter="mean[0, eruptions]")
    assert float(row["sd"]) == pytest.approx(draws.std(ddof=1), rel=1e-12)
    assert float(row["mcse"]) == pytest.approx(draws.std(ddof=1) / 10, rel=1e-12)
    assert summary(boot).loc["mean[0, eruptions]", "mean"] == pytest.approx(draws.mean())
    assert found.attrs["post_name"] == "nonparametric bootstrap (EM, 1 × 100 draws)"
    assert found.attrs["prior_note"].endswith("draws): no prior")
    density = np.exp([bg.score(tree_point(boot, i), FAITHFUL[:3]) for i in range(100)])
    assert_allclose(np.exp(bg.score(boot, FAITHFUL[:3])), density.mean(axis=0), rtol=1e-10)


def tree_point(boot: xr.DataTree, i: int) -> Parameters:
    p = boot["posterior"].to_dataset().isel(chain=0, draw=i)
    return Parameters(*(p[name].to_numpy() for name in tree.DIMS))


def test_a_jackknife_is_a_point_estimate_with_errors() -> None:
    jack = jackknife(fitted())
    table = summary(jack)
    assert_array_equal(table["estimate"], summary(fitted())["estimate"])
    expected = jack["standard_error"]["weight"].to_numpy()[0]
    assert table.loc["weight[0]", "se"] == expected
    assert jack["standard_error"].attrs["method"] == "jackknife"
    assert "standard_error" in fitted().children  # which has kept its own
    assert fitted()["standard_error"].attrs["method"] != "jackknife"
    assert compare(jack, booted()).sizes["parameter"] == 12
    with pytest.raises(ArgumentError, match="boot: must come from bootstrap"):
        standard_errors(jack)


def test_errors_can_take_the_place_of_a_fit_s() -> None:
    fit = fitted().copy()
    fit["standard_error"] = xr.DataTree(standard_errors(booted()))
    assert summary(fit).loc["mean[0, waiting]", "se"] == pytest.approx(
        booted()["posterior"]["mean"].to_numpy()[0, :, 0, 1].std(ddof=1)
    )


def test_percentile_intervals_are_order_statistics() -> None:
    """The (B + 1) p-th (Davison & Hinkley 1997, section 5.2): of 99 draws the 10th and 90th."""
    boot = booted().copy()
    boot["posterior"] = xr.DataTree(boot["posterior"].to_dataset().isel(draw=slice(99)))
    found = percentile_intervals(boot, ci_prob=0.8)
    draws = np.sort(booted()["posterior"]["covariance"].to_numpy()[0, :99], axis=0)
    assert_allclose(found["covariance"].to_numpy(), draws[[9, 89]], rtol=1e-13)
    assert list(found["bound"].to_numpy()) == ["lower", "upper"]


def test_percentile_intervals_of_few_draws_hold_the_next_one_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(1), 0
    boot = booted().copy()
    for _ in range(60):
        draws = booted()["posterior"].to_dataset().isel(draw=slice(39))
        normal = rng.normal(size=draws["mean"].shape)
        boot["posterior"] = xr.DataTree(draws.assign(mean=(draws["mean"].dims, normal)))
        low, high = percentile_intervals(boot)["mean"].to_numpy()
        hits += int(((low < (new := rng.normal(size=low.shape))) & (new < high)).sum())
    n = 60 * 4  # a row of quantiles that interpolate within the draws would hold 90 %
    assert abs(hits / n - 0.95) < 3.0 * np.sqrt(0.95 * 0.05 / n)


def test_draws_survive_a_file(tmp_path) -> None:
    loaded = bg.load(bg.save(booted(), tmp_path / "boot.nc"))
    for one, two in zip(
        (standard_errors(loaded), percentile_intervals(loaded)),
        (standard_errors(booted()), percentile_intervals(booted())),
        strict=True,
    ):
        xr.testing.assert_identical(one, two)


# Arguments


def test_wrong_arguments_are_named() -> None:
    fit = fitted()
    for argument, options in {
        "kind": {"kind": "jackknife"},
        "draws": {"draws": 1},
        "restarts": {"restarts": -1},
        "audited": {"audited": -1},
        "threads": {"threads": 0},
        "random_seed": {"random_seed": -1},
    }.items():
        with pytest.raises(ArgumentError, match=f"^{argument}: "):
            bootstrap(fit, **options)
    for wrong in (booted(), 3, xr.DataTree()):
        with pytest.raises(ArgumentError, match=r"^fit: "):
            bootstrap(wrong)
    with pytest.raises(ArgumentError, match="function jackknife"):
        bootstrap(fit, kind="jackknife")
    with pytest.raises(ArgumentError, match="ci_prob"):
        percentile_intervals(booted(), ci_prob=1.0)


def test_a_jackknife_needs_whole_observations() -> None:
    options: dict[str, Any] = {"sample_weight": np.full(272, 0.5), "n_starts": 2}
    fit = quiet(bg.fit_em, TWO, FAITHFUL, random_seed=1, **options)
    with pytest.raises(ArgumentError, match="not whole numbers"):
        jackknife(fit)


def test_it_says_what_it_is() -> None:
    attrs = booted("weighted").attrs
    assert attrs["estimate"] == "weighted bootstrap"
    assert attrs["kind"] == "weighted"
    assert attrs["random_seed"] == 2
    assert attrs["spec"] == TWO.to_json()
    assert json.loads(attrs["verdict"])["status"] == "ok"
