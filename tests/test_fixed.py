"""What is fixed stays fixed in all that is made of a fit: errors, profiles, replicates, tests."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import registry
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import brentq, minimize
from scipy.stats import chi2, norm

import bayesgmm as bg
from bayesgmm import errors, tree
from bayesgmm.inference.estimate import estimate_of
from bayesgmm.inference.replicates import simulated
from bayesgmm.information.fixed import from_json, read_fixed

FAITHFUL = registry.table("faithful")
WAITING = FAITHFUL[["waiting"]]
NAN = np.nan
EQUAL = {"weight": "equal"}
COVARIANCE = np.stack([np.diag([0.1, 30.0]), np.full((2, 2), NAN)])
_RNG = np.random.default_rng(5)
THREE = pd.DataFrame({"v": np.concatenate([_RNG.normal(m, 1.0, 60) for m in (0.0, 3.5, 7.0)])})


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.BayesgmmWarning)
        return function(*args, **kwargs)


def fit(k: int, letters: str, x: Any, fixed: Any, **options: Any) -> Any:
    spec = bg.GaussianMixture(k, letters)
    options = {"random_seed": 1, "n_starts": 4, "tol": 1e-7} | options
    return quiet(bg.fit_em, spec, x, fixed=fixed, **options)


@pytest.fixture(scope="module")
def equal() -> Any:
    return fit(2, "VVV", FAITHFUL, EQUAL)


@pytest.fixture(scope="module")
def partly() -> Any:
    """A weight of three is fixed, which leaves the other two a sum; and a single mean."""
    return fit(3, "V", THREE, {"weight": [0.3, NAN, NAN], "mean": [[0.1], [NAN], [NAN]]})


# What a fit keeps


@pytest.mark.parametrize(
    "given",
    [
        EQUAL,
        {"weight": [0.4, NAN], "mean": [[2.2, NAN], [NAN, NAN]]},
        {"covariance": COVARIANCE},
    ],
)
def test_a_fit_says_what_is_fixed_and_it_is_read_back_to_the_bit(given, tmp_path):
    found = fit(2, "VVV", FAITHFUL, given)
    loaded = bg.load(bg.save(found, tmp_path / "fit.nc"))
    estimate = estimate_of(loaded)
    expected = read_fixed(given, estimate.family, 2, 2).anchored(estimate.data)
    held = from_json(loaded.attrs["fixed"], estimate.data)
    for name in ("weight", "mean", "covariance"):
        assert_allclose(getattr(held, name), getattr(expected, name), rtol=1e-15)
    imposed = held.impose(estimate.parameters)
    for name in tree.DIMS:
        assert_array_equal(getattr(imposed, name), getattr(estimate.parameters, name))


# Errors


def of_three(v: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights, means and variances of `partly` from its free numbers, and the log-likelihood."""
    t = 1.0 / (1.0 + np.exp(-v[0]))
    weight = np.array([0.3, 0.7 * t, 0.7 * (1.0 - t)])
    mean, variance = np.array([0.1, v[1], v[2]]), np.exp(v[3:])
    density = weight * norm.pdf(x[:, None], mean, np.sqrt(variance))
    return np.concatenate([weight, mean, variance]), float(np.log(density.sum(axis=1)).sum())


def differences(function: Any, v: np.ndarray, step: float = 1e-4) -> np.ndarray:
    units = step * np.eye(len(v))
    return np.array([(function(v + u) - function(v - u)) / (2.0 * step) for u in units])


def test_errors_are_those_of_the_constrained_likelihood(partly):
    """By differences of SciPy's densities along coordinates in which the constraints hold."""
    p, x = tree.point(partly), THREE.to_numpy()[:, 0]
    order = [np.log(p.weight[1] / p.weight[2]), p.mean[1, 0], p.mean[2, 0]]
    v = np.array([*order, *np.log(p.covariance[:, 0, 0])])
    loglik = of_three(v, x)[1]
    assert loglik == pytest.approx(partly["criteria"]["loglik"].item(), rel=1e-12)
    assert_allclose(differences(lambda u: of_three(u, x)[1], v), 0.0, atol=1e-3)

    def slope(u: np.ndarray) -> np.ndarray:
        return differences(lambda w: of_three(w, x)[1], u, 1e-3)

    hessian = differences(slope, v, 1e-3)
    natural = differences(lambda u: of_three(u, x)[0], v).T
    expected = natural @ np.linalg.inv(-0.5 * (hessian + hessian.T)) @ natural.T
    found = bg.vcov(partly).to_numpy()
    assert_allclose(found, expected, rtol=2e-4, atol=1e-5 * np.sqrt(np.abs(found).max()))
    se = np.sqrt(np.diagonal(expected))
    assert_allclose(bg.summary(partly)["se"], se, rtol=2e-4, atol=1e-9)
    assert_array_equal(found[[0, 3]], 0.0)  # exactly: it is not estimated


@pytest.mark.parametrize("kind", ["observed", "sandwich", "opg"])
def test_what_is_fixed_has_no_variance_and_the_rest_the_errors_of_the_fit(equal, kind):
    again = fit(2, "VVV", FAITHFUL, EQUAL, start=equal, standard_errors=kind)
    matrix, table = bg.vcov(equal, kind=kind), bg.summary(again)
    assert_allclose(np.sqrt(np.diagonal(matrix)), table["se"], rtol=1e-5)
    assert_array_equal(matrix.loc[["weight[0]", "weight[1]"]], 0.0)
    assert_array_equal(table["se"][:2], 0.0)
    assert (table["se"][2:] > 0).all()
    assert np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(matrix.to_numpy()).max()) <= 10


def test_functions_of_what_is_fixed_have_no_error():
    found = bg.derived(fit(2, "VVV", FAITHFUL, {"covariance": COVARIANCE}))
    still = found.filter(regex=r"\[0", axis=0).drop("weight[0]")
    assert len(still) == 3  # two sds, one correlation
    assert_allclose(still["se"], 0.0, atol=1e-12)
    assert (found.filter(regex=r"\[1", axis=0)["se"] > 1e-4).all()


def test_one_component_of_known_mean_is_the_textbook():
    """The variance is the mean square about it, with variance 2 v^2 / n."""
    x = WAITING.to_numpy()[:, 0]
    found = fit(1, "E", WAITING, {"mean": [[70.0]]})
    square = (x - 70.0) ** 2
    v, n = square.mean(), len(x)
    assert tree.point(found).covariance[0, 0, 0] == pytest.approx(v, rel=1e-12)
    matrix = bg.vcov(found)
    label = matrix.index[-1]
    assert matrix.loc[label, label] == pytest.approx(2.0 * v**2 / n, rel=1e-8)
    assert matrix.iloc[0, 0] == 0.0
    curve = bg.profile(found, label)

    def drop(u: float) -> float:
        return float(0.5 * n * (np.log(u / v) + v / u - 1.0) - 0.5 * chi2.ppf(0.95, 1))

    assert curve["lower"].item() == pytest.approx(brentq(drop, 0.3 * v, v), rel=1e-6)
    assert curve["upper"].item() == pytest.approx(brentq(drop, v, 3.0 * v), rel=1e-6)
    jack = quiet(bg.jackknife, found)
    left_out = (square.sum() - square) / (n - 1)
    expected = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    errors_ = jack["standard_error"]
    assert errors_["covariance"].item() == pytest.approx(expected, rel=1e-5)
    assert errors_["mean"].item() == 0.0


# Profiles


def test_a_profile_is_what_a_general_optimiser_finds_under_the_constraint(partly):
    found = bg.profile(partly, "mean[2, v]")
    x = THREE.to_numpy()[:, 0]
    p = tree.point(partly)
    first = [np.log(p.weight[1] / p.weight[2]), p.mean[1, 0], *np.log(p.covariance[:, 0, 0])]
    for i in (0, -1):
        value = found["value"].to_numpy()[i]

        def minus(v: np.ndarray, value: float = value) -> float:
            return -of_three(np.array([v[0], v[1], value, *v[2:]]), x)[1]

        best = minimize(
            minus,
            first,
            method="Nelder-Mead",
            options={"maxiter": 9000, "xatol": 1e-8, "fatol": 1e-10},
        )
        best = minimize(minus, best.x, method="BFGS")
        assert found["loglik"].to_numpy()[i] == pytest.approx(-best.fun, abs=1e-4)
    assert_array_equal(found["weight"].to_numpy()[:, 0], 0.3)
    assert_array_equal(found["mean"].to_numpy()[:, 0, 0], tree.point(partly).mean[0, 0])
    assert_allclose(found["weight"].sum("cluster"), 1.0, rtol=1e-12)


def test_what_is_fixed_has_no_profile(equal, partly):
    with pytest.raises(errors.ArgumentError, match=r"^parameter: weight\[0\] is fixed"):
        bg.profile(equal, "weight[0]")
    with pytest.raises(errors.ArgumentError, match=r"^parameter: mean\[0, v\] is fixed"):
        bg.profile(partly, "mean[0, v]")
    with pytest.raises(errors.ArgumentError, match="does not change with what is free"):
        bg.profile(equal, lambda p: p.weight[0])


# Replicates


@pytest.mark.parametrize("kind", ["nonparametric", "weighted", "parametric"])
def test_replicates_keep_it_fixed_and_vary_in_the_rest(partly, kind):
    boot = quiet(bg.bootstrap, partly, kind=kind, draws=20, random_seed=1)
    draws = boot["posterior"].to_dataset().squeeze("chain")
    assert_array_equal(draws["weight"].sel(cluster=0), 0.3)
    assert_array_equal(draws["mean"].sel(cluster=0), tree.point(partly).mean[0, 0])
    assert_allclose(draws["weight"].sum("cluster"), 1.0, rtol=1e-12)
    assert (draws["mean"].sel(cluster=[1, 2]).std("draw") > 0.05).all()
    se = bg.standard_errors(boot)
    assert se["weight"][0] == se["mean"][0, 0] == 0.0
    assert boot.attrs["fixed"] == partly.attrs["fixed"]


def test_components_that_are_named_by_it_keep_their_names():
    """However near another one comes: its covariance is fixed, and goes nowhere else."""
    x = np.random.default_rng(1).normal(size=(80, 1)) * 2.0
    fixed = {"covariance": np.array([4.0, NAN]).reshape(2, 1, 1)}
    boot = quiet(bg.bootstrap, fit(2, "V", x, fixed), draws=60, random_seed=1)
    assert_array_equal(boot["posterior"]["covariance"].sel(cluster=0), 4.0)
    assert_array_equal(boot["labels"]["margin"], 1.0)


def test_bootstrap_errors_are_those_of_the_sandwich():
    """Few parameters, many rows, no other optimum near: within what 400 draws leave."""
    found = fit(2, "E", WAITING, EQUAL)
    boot = quiet(bg.bootstrap, found, draws=400, random_seed=2)
    sandwich = np.sqrt(np.diagonal(bg.vcov(found, kind="sandwich")))
    se = bg.standard_errors(boot)
    ours = [*se["weight"], *se["mean"].to_numpy().ravel(), se["covariance"].to_numpy()[0, 0, 0]]
    assert_allclose(ours, sandwich, rtol=0.12)


def test_a_comparison_has_no_rows_for_what_is_fixed(equal):
    boot = quiet(bg.bootstrap, equal, draws=60, random_seed=1)
    cmp = bg.compare(equal, boot)
    assert len(cmp["parameter"]) == 10
    assert not cmp["label"].str.startswith("weight").any()
    assert np.isfinite(cmp["z"]).all()
    free = quiet(bg.fit_em, bg.GaussianMixture(2), FAITHFUL, random_seed=1, n_starts=2)
    with pytest.raises(errors.ArgumentError, match="not comparable with mle: what is fixed"):
        bg.compare(free, boot)


def test_with_nothing_free_there_is_nothing_to_repeat():
    p = tree.point(quiet(bg.fit_em, bg.GaussianMixture(2), FAITHFUL, random_seed=1, n_starts=2))
    fixed = {"weight": p.weight, "mean": p.mean, "covariance": p.covariance}
    found = fit(2, "VVV", FAITHFUL, fixed)
    assert_array_equal(bg.vcov(found), 0.0)
    for verb in (bg.bootstrap, bg.jackknife):
        with pytest.raises(errors.ArgumentError, match="all its parameters fixed"):
            verb(found)


def test_hard_assignment_is_refused_with_the_reason_and_a_way_on():
    hard = quiet(bg.fit_em, bg.GaussianMixture(2), FAITHFUL, assignment="hard", random_seed=1)
    for verb in (bg.bootstrap, bg.jackknife, bg.vcov, bg.derived, bg.bootstrap_lrt):
        with pytest.raises(errors.ArgumentError, match=r"^fit: .*biased.*start=fit"):
            verb(hard)
    with pytest.raises(errors.ArgumentError, match="biased"):
        bg.profile(hard, "weight[0]")
    on = quiet(bg.fit_em, bg.GaussianMixture(2), FAITHFUL, start=hard)
    assert np.isfinite(bg.vcov(on)).all(axis=None)


# Labels


def test_replicates_know_the_labels_that_are_known():
    """Also the parametric ones: rows keep their label, and are drawn from its component."""
    x = np.concatenate([np.random.default_rng(i).normal(3.0 * i, 1.0, 40) for i in range(2)])
    labels = np.full(80, -1)
    labels[:10], labels[40:50] = 1, 0  # the order is not that of the means
    found = quiet(bg.fit_em, bg.GaussianMixture(2, "V"), x[:, None], labels=labels, random_seed=1)
    estimate = estimate_of(found)
    drawn = simulated(estimate.data, np.random.default_rng(0), estimate.parameters)
    assert_array_equal(drawn.probability, estimate.data.probability)
    many = [
        simulated(estimate.data, np.random.default_rng(i), estimate.parameters).x[labels == 1]
        for i in range(300)
    ]
    p = estimate.parameters
    assert_allclose(np.mean(many), p.mean[1, 0], atol=4 * np.sqrt(p.covariance[1, 0, 0] / 3000))
    assert_allclose(np.var(many), p.covariance[1, 0, 0], rtol=0.12)
    for kind in ("parametric", "nonparametric"):
        boot = quiet(bg.bootstrap, found, kind=kind, draws=60, random_seed=1)
        mean = boot["posterior"]["mean"].to_numpy()[0, :, :, 0]
        assert (mean[:, 0] > mean[:, 1]).mean() > 0.95
        assert_array_equal(boot["labels"]["margin"], 1.0)  # labels say which is which


# How many components


def test_the_ratio_of_equal_weights_is_that_of_the_fits():
    options: dict[str, Any] = {"draws": 19, "n_starts": 4, "random_seed": 1}
    spec = bg.GaussianMixture(1, "E")
    found = quiet(bg.bootstrap_lrt, spec, WAITING, fixed=EQUAL, max_components=3, **options)
    each = [fit(k, "E", WAITING, EQUAL)["criteria"]["loglik"].item() for k in (1, 2, 3)]
    ratio = 2.0 * np.diff(each)[: found.sizes["n_components"]]
    assert_allclose(found["statistic"], ratio, atol=1e-3)
    assert found["p_value"][0] == 0.05
    assert found.attrs["equal_weights"] == 1
    again = quiet(bg.bootstrap_lrt, fit(1, "E", WAITING, EQUAL), max_components=3, **options)
    assert_allclose(again["statistic"], found["statistic"], atol=1e-5)


def test_arrays_are_for_one_number_of_components(partly):
    arrays = {"weight": [0.3, 0.7]}
    with pytest.raises(errors.ArgumentError, match=r"^fixed: must have a meaning for K compon"):
        bg.bootstrap_lrt(bg.GaussianMixture(2, "V"), WAITING, fixed=arrays)
    with pytest.raises(errors.ArgumentError, match=r"^null: what it holds fixed must have a mean"):
        bg.bootstrap_lrt(partly)
    with pytest.raises(errors.ArgumentError, match=r"^fixed: arrays are for one number"):
        bg.select(WAITING, n_components=[2, 3], fixed=arrays)
    with pytest.raises(errors.ArgumentError, match=r"^fixed: the covariances are none of E"):
        bg.select(WAITING, n_components=2, fixed={"covariance": np.array([[[1.0]], [[2.0]]])})
    one = quiet(bg.select, WAITING, n_components=2, fixed=arrays, random_seed=1, n_starts=4)
    assert_allclose(tree.point(one.best).weight, [0.3, 0.7])


def test_equal_weights_are_selected_among():
    found = quiet(
        bg.select, WAITING, n_components=[1, 2, 3], fixed=EQUAL, random_seed=1, n_starts=4
    )
    assert len(found.table) == 6
    for (_, k), one in found.fits.items():
        assert_allclose(tree.point(one).weight, 1.0 / k)
        assert json.loads(one.attrs["fixed"])["weight"] == [1.0 / k] * k
    assert found.table.loc[("V", 3), "n_params"] == 6


# What is known of the rows, in the same verbs


def test_selection_and_test_take_what_fit_em_takes():
    x = FAITHFUL.copy()
    x.iloc[::9, 0] = NAN
    labels = pd.Series(-1, index=x.index)
    labels[:20] = (x["waiting"][:20] > 68).astype(int)
    known: dict[str, Any] = {"missing": "marginalise", "labels": labels}
    known["sample_weight"] = np.arange(len(x)) % 3
    found = quiet(
        bg.select, x, n_components=[2, 3], covariance="EEE", random_seed=1, n_starts=4, **known
    )
    spec = bg.GaussianMixture(2, "EEE")
    one = quiet(bg.fit_em, spec, x, random_seed=1, n_starts=4, **known)
    loglik = found.table["loglik"]
    assert loglik["EEE", 2] == pytest.approx(one["criteria"]["loglik"].item(), rel=1e-9)
    assert loglik["EEE", 3] >= loglik["EEE", 2] - 1e-6
    options: dict[str, Any] = {"draws": 5, "n_starts": 2, "random_seed": 1}
    test = quiet(bg.bootstrap_lrt, spec, x, **options, **known)
    assert test["loglik"].item() == pytest.approx(loglik["EEE", 2], abs=1e-4)
    assert np.isfinite(test["replicate"]).all()
    same = quiet(bg.bootstrap_lrt, one, **options)
    assert_allclose(same["statistic"], test["statistic"], atol=1e-4)


def test_labels_that_are_not_for_all_sizes_are_refused():
    labels = np.where(FAITHFUL["waiting"] > 80, 2, -1)
    with pytest.raises(errors.ArgumentError, match=r"^n_components: must be at least 3: labels"):
        bg.select(FAITHFUL, n_components=[2, 3], labels=labels)
    probability = np.full((len(FAITHFUL), 2), 0.5)
    probability[:5] = [0.9, 0.1]
    with pytest.raises(errors.ArgumentError, match=r"^n_components: must be 2 alone"):
        bg.select(FAITHFUL, n_components=[2, 3], labels=probability)
    with pytest.raises(errors.ArgumentError, match=r"^labels: are probabilities of 2 components"):
        quiet(bg.bootstrap_lrt, bg.GaussianMixture(2), FAITHFUL, labels=probability, random_seed=1)
    with pytest.raises(errors.ArgumentError, match=r"^labels: say nothing of one component"):
        bg.bootstrap_lrt(bg.GaussianMixture(1), FAITHFUL, labels=np.zeros(272, dtype=int))
