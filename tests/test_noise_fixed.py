"""Noise beside components of fixed weights, which are their shares of what is no noise.

Oracles: SciPy's densities and optimiser, differences of the log-likelihood, and the same without.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize
from test_noise import dense, noisy

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.errors import ArgumentError, BayesgmmWarning
from bayesgmm.inference.estimate import estimate_of

SHARES = np.array([0.3, 0.7])
SPEC = bg.GaussianMixture(2, "VVV", noise=True)


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module", params=["equal", "given"])
def fit(request: pytest.FixtureRequest) -> xr.DataTree:
    weight: Any = "equal" if request.param == "equal" else SHARES
    found: xr.DataTree = quiet(
        bg.fit_em, SPEC, noisy(), fixed={"weight": weight}, random_seed=1, n_starts=4
    )
    return found


def shares(fit: xr.DataTree) -> np.ndarray:
    group = fit["posterior"]
    return (group["weight"] / (1.0 - group["noise_weight"])).to_numpy()


def test_the_components_share_what_is_no_noise(fit: xr.DataTree) -> None:
    found = shares(fit)[0, 0]
    assert np.abs(found - 0.5).max() < 1e-14 or np.abs(found - SHARES).max() < 1e-14
    p = tree.point(fit)
    assert p.weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert 0.1 < p.noise.weight < 0.3
    loglik = dense(noisy().to_numpy(), p)[0]
    assert float(fit["criteria"]["loglik"]) == pytest.approx(loglik, rel=1e-12)
    free = quiet(bg.fit_em, SPEC, noisy(), random_seed=1, n_starts=4)
    assert loglik < float(free["criteria"]["loglik"])
    assert float(fit["criteria"]["n_params"]) == SPEC.n_parameters(2) - 1
    trace = fit["starts"]["trace"].to_numpy()
    step = np.diff(trace, axis=1)
    assert (step[np.isfinite(step)] > -1e-9).all()


def test_it_is_scipys_maximum(fit: xr.DataTree) -> None:
    x, p, share = noisy().to_numpy(), tree.point(fit), shares(fit)[0, 0]
    begin = np.concatenate([[0.0], np.zeros(4), np.zeros(8)])

    def at(step: np.ndarray) -> bg.Parameters:
        odds = p.noise.weight / (1 - p.noise.weight) * np.exp(step[0])
        weight = odds / (1 + odds)
        turn = np.eye(2) + step[5:].reshape(2, 2, 2)
        covariance = turn @ p.covariance @ np.swapaxes(turn, 1, 2)
        noise = bg.Parameters(p.weight, p.mean, p.covariance, p.noise).moved(
            np.append((1 - weight) * share, weight), p.mean + step[1:5].reshape(2, 2), covariance
        )
        return noise

    found = minimize(lambda step: -dense(x, at(step))[0], begin, tol=1e-9)
    assert -found.fun <= dense(x, p)[0] + 1e-6
    assert abs(found.x[0]) < 1e-3


def test_errors_are_those_of_the_second_derivative(fit: xr.DataTree) -> None:
    """Of what is free, which a step in the coordinates moves along the shares."""
    one = estimate_of(fit)
    p = one.parameters
    information, chart = one.information(p, one.sums(p)), one.chart(p)
    h, size = 1e-3, chart.size
    assert size == 1 + 4 + 6
    hessian = np.empty((size, size))
    for i, j in np.ndindex(size, size):
        a, b = h * np.eye(size)[i], h * np.eye(size)[j]
        corners = [one.sums(chart.at(s)).loglik for s in (a + b, a - b, b - a, -a - b)]
        hessian[i, j] = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * h * h)
    np.testing.assert_allclose(-hessian, information.matrix, atol=2e-4 * np.abs(hessian).max())
    assert information.distance < 1e-4
    se = fit["standard_error"].to_dataset()
    ratio = se["weight"] / se["noise_weight"]
    np.testing.assert_allclose(ratio, shares(fit)[0, 0], rtol=1e-9)


def test_profile_and_bootstrap_keep_the_shares(fit: xr.DataTree) -> None:
    table = bg.summary(fit).loc["noise_weight"]
    found = bg.profile(fit, "noise_weight")
    assert float(found["lower"]) == pytest.approx(table["wald95_lower"], abs=0.02)
    boot = quiet(bg.bootstrap, fit, draws=60, kind="parametric", random_seed=1)
    every = shares(boot)
    np.testing.assert_allclose(every, np.broadcast_to(shares(fit), every.shape), rtol=1e-12)
    sd = float(boot["posterior"]["noise_weight"].std())
    assert 0.6 < sd / table["se"] < 1.5


def test_the_posterior_has_them_and_agrees(fit: xr.DataTree) -> None:
    weight = shares(fit)[0, 0]
    fixed = {"weight": "equal" if weight[0] == weight[1] else SHARES}
    post = quiet(bg.sample_posterior, SPEC, noisy(), mle=fit, fixed=fixed, random_seed=1, draws=400)
    every = shares(post)
    np.testing.assert_allclose(every, np.broadcast_to(weight, every.shape), rtol=1e-12)
    table = bg.compare(fit, post).to_dataframe().set_index("label")
    assert {"noise_weight", "weight[0]"} <= set(table.index)
    assert abs(table.loc["noise_weight", "z"]) < 0.3
    assert 0.85 < table.loc["noise_weight", "sd_ratio"] < 1.15
    assert np.isfinite(float(bg.loo(post).elpd))


def test_the_evidence_of_one_component_is_that_of_free_weights() -> None:
    """Of one component whose share is 1 nothing is fixed."""
    x, spec = noisy()[["a"]], bg.GaussianMixture(1, "V", noise=True)
    found = [
        quiet(bg.fit_laplace, spec, x, fixed=fixed, draws=1000, random_seed=1)
        for fixed in (None, {"weight": [1.0]})
    ]
    one, other = (
        float(quiet(bg.log_marginal_likelihood, post, random_seed=1)["log_evidence"])
        for post in found
    )
    assert one == pytest.approx(other, abs=0.02)


def test_the_map_fit_is_the_mode_of_the_same_density(fit: xr.DataTree) -> None:
    spec = bg.GaussianMixture(2, "VVV", bg.ConjugatePrior(weight_concentration=4.0), noise=True)
    found = quiet(
        bg.fit_em, spec, noisy(), estimate="map", fixed={"weight": "equal"}, random_seed=1
    )
    one = estimate_of(found)
    count = one.sums(one.parameters).weight_count  # the prior's 3 each included
    assert one.parameters.noise.weight == pytest.approx(count[-1] / count.sum(), rel=1e-6)
    assert float(found["sample_stats"]["distance"].item()) < 1e-4


def test_the_ratio_test_takes_equal_weights() -> None:
    spec = bg.GaussianMixture(1, "EEE", noise=True)
    found = quiet(
        bg.bootstrap_lrt, spec, noisy(150), fixed={"weight": "equal"}, draws=9, random_seed=1
    )
    assert found.attrs["equal_weights"] == 1
    assert float(found["p_value"][0]) == 0.1


def test_shares_sum_to_one() -> None:
    with pytest.raises(ArgumentError, match=r"^fixed: the weights sum to 0\.9"):
        bg.fit_em(SPEC, noisy(), fixed={"weight": [0.3, 0.6]})
