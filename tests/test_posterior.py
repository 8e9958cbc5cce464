"""Posterior draws: against closed forms and reference posteriors, and the sampler's laws."""

from __future__ import annotations

import json
import os
import signal
import threading
import warnings
from functools import partial
from typing import Any

import models
import numpy as np
import nutpie
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from models import GOLDEN, table

from bayesgmm.checks import Verdict
from bayesgmm.data.observations import read
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import ArgumentError, DataError, PosteriorWarning
from bayesgmm.labels import match
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters, log_density, responsibilities
from bayesgmm.posterior.bayes import sample_posterior
from bayesgmm.posterior.imported import from_draws
from bayesgmm.posterior.model import to_pymc
from bayesgmm.posterior.nuts import POINT, run_nuts, start_around
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, SeparationPrior
from bayesgmm.resolved import log_density as log_prior_density
from bayesgmm.resolved import resolve
from bayesgmm.target.curvature import quadratic_at
from bayesgmm.target.density import target
from bayesgmm.tree import DIMS, point


def quietly(*arguments: Any, by: Any = None, **settings: Any) -> xr.DataTree:
    """Sample with what the warnings say left to the verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        if by is not None:
            return by(*arguments, **settings)
        return sample_posterior(*arguments, progressbar=False, **settings)


def draws_of(fit: xr.DataTree, group: str = "posterior") -> dict[str, np.ndarray]:
    return {name: fit[group][name].to_numpy() for name in DIMS}


def summary(value: np.ndarray) -> tuple[float, float, float, float]:
    """Mean and sd of (chain, draw) values, each with its Monte Carlo error."""
    return (
        float(value.mean()),
        float(value.std(ddof=1)),
        float(array_stats.mcse(value, method="mean")),
        float(array_stats.mcse(value, method="sd")),
    )


def gaps(value: np.ndarray, mean: float, sd: float, *errors: float) -> tuple[float, float]:
    """Distances of mean and sd from a reference, in Monte Carlo errors of both together."""
    m, s, mean_error, sd_error = summary(value)
    first, second = errors or (0.0, 0.0)
    return abs(m - mean) / np.hypot(mean_error, first), abs(s - sd) / np.hypot(sd_error, second)


class TestClosedForm:
    """K = 1 with the conjugate prior: normal inverse Wishart."""

    @pytest.mark.parametrize(("letters", "d"), [("VVV", 2), ("V", 1)])
    def test_one_component(self, letters: str, d: int) -> None:
        x = table("faithful", d).iloc[:40]
        spec = GaussianMixture(1, letters)
        fit = sample_posterior(spec, x, draws=2000, random_seed=2, progressbar=False)
        values = x.to_numpy()
        n, kappa, nu = len(x), 0.01 + len(x), d + 2 + len(x)
        # The prior's mean is the data's: means are not pulled, and add no scatter.
        scatter = np.cov(values.T).reshape(d, d) * (n - 1 + 1.0)
        expected = scatter / (nu - d - 1)
        draws = draws_of(fit)
        worst = 0.0
        for f in range(d):
            of_mean = draws["mean"][:, :, 0, f]
            sd = np.sqrt(expected[f, f] / kappa)
            worst = max(worst, *gaps(of_mean, values[:, f].mean(), sd))
            for g in range(f + 1):
                product = scatter[f, f] * scatter[g, g]
                variance = (nu - d + 1) * scatter[f, g] ** 2 + (nu - d - 1) * product
                variance /= (nu - d) * (nu - d - 1) ** 2 * (nu - d - 3)
                of_covariance = draws["covariance"][:, :, 0, f, g]
                worst = max(worst, *gaps(of_covariance, expected[f, g], np.sqrt(variance)))
        assert worst < 4
        np.testing.assert_array_equal(draws["weight"], 1.0)
        assert Verdict.from_json(fit.attrs["verdict"]).status == "ok"


def test_richardsons_and_greens_posterior_given_k() -> None:
    """Hierarchical variances, against reversible jump by Green's own program."""
    record = json.loads((GOLDEN / "unknown_k" / "richardson_green_galaxies.json").read_text())
    constants, wanted = record["constants"], record["posterior_means_given_k"]["3"]
    prior = SeparationPrior(
        mean=constants["xi"],
        mean_sd=constants["R"],
        scale=HierarchicalInverseGamma(2.0, 0.2, constants["rate_beta"]),
        units="data",
    )
    spec = GaussianMixture(3, "V", prior)
    settings = {"target_accept": 0.95, "log_likelihood": False, "random_seed": 1}
    fit = quietly(spec, table("galaxies"), draws=2500, **settings)
    assert Verdict.from_json(fit.attrs["verdict"]).status == "ok"
    draws = ordered(fit, 0)
    found = {
        "weight": draws["weight"],
        "mean": draws["mean"][..., 0],
        "sd": np.sqrt(draws["covariance"][..., 0, 0]),
    }
    for name, value in found.items():
        for j in range(3):
            mean, _, error, _ = summary(value[..., j])
            gap = abs(mean - wanted[name][j]) / np.hypot(error, wanted[f"se_{name}"][j])
            assert gap < 4, (name, j)


def reference(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "stan" / f"{case}.json").read_text())


def prior_of(case: dict[str, Any]) -> SeparationPrior:
    constants = case["constants"]
    return SeparationPrior(
        mean=constants["m0"],
        mean_sd=constants["s0"],
        scale=HalfNormal(constants["tau"]),
        correlation=constants.get("eta", 1.0),
        weight_concentration=constants["alpha"],
        units="data",
    )


def ordered(fit: xr.DataTree, feature: int) -> dict[str, np.ndarray]:
    """Draws with the components of each in the order of their means: the reference's labels."""
    draws = draws_of(fit, "posterior_raw")
    order = np.argsort(draws["mean"][..., feature], axis=2)
    return {
        name: np.take_along_axis(v, order.reshape(*order.shape, *(1,) * (v.ndim - 3)), axis=2)
        for name, v in draws.items()
    }


def scalar(draws: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The draws of a parameter by Stan's name, e.g. ``Sigma[1,2,1]``; one-based."""
    kind, _, rest = name.removesuffix("]").partition("[")
    place = [int(i) - 1 for i in rest.split(",")]
    if kind == "w":
        return draws["weight"][:, :, place[0]]
    if kind == "mu":
        return draws["mean"][:, :, place[0], place[1] if len(place) > 1 else 0]
    if kind == "Sigma":
        return draws["covariance"][(slice(None), slice(None), *place)]
    cluster, feature = (*place, 0)[:2]
    return np.sqrt(draws["covariance"][:, :, cluster, feature, feature])


def each(draws: dict[str, np.ndarray]) -> list[Parameters]:
    flat = {name: v.reshape(-1, *v.shape[2:]) for name, v in draws.items()}
    return [Parameters(*(flat[n][s] for n in DIMS)) for s in range(len(flat["weight"]))]


def distances(fit: xr.DataTree, case: dict[str, Any], x: np.ndarray) -> dict[str, float]:
    """Mean and sd of everything that the reference has, in joint Monte Carlo errors."""
    draws = ordered(fit, case["constants"].get("oc", 1) - 1)
    shape = draws["weight"].shape[:2]
    found: dict[str, float] = {}

    def note(name: str, value: np.ndarray, record: dict[str, float]) -> None:
        errors = (record["mcse_mean"], record["mcse_sd"])
        mean, sd = gaps(value, record["mean"], record["sd"], *errors)
        found[f"mean of {name}"], found[f"sd of {name}"] = mean, sd
        # Errors of their quantiles are not stored: ours, by the ratio of effective sample sizes.
        size = array_stats.ess(value, method="tail", prob=(0.05, 0.95)) / record["ess_tail"]
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            error = array_stats.mcse(value, method="quantile", prob=q) * np.sqrt(1.0 + size)
            gap = abs(np.quantile(value, q) - record[f"q{100 * q:02.0f}"])
            found[f"{100 * q:.0f} % of {name}"] = float(gap / error)

    for name, record in case["parameters"].items():
        # Where all share one covariance, the reference numbers it 1.
        note(name, scalar(draws, name), record)
    points = np.array(case["predictive"]["points"]).reshape(-1, x.shape[1])
    density, entropy, loglik = [], [], []
    for theta in each(draws):
        density.append(np.exp(log_density(points, theta)))
        loglik.append(log_density(x, theta).sum())
        r = responsibilities(x, theta)
        entropy.append(-(r * np.log(np.where(r > 0, r, 1.0))).sum())
    note("entropy", np.reshape(entropy, shape), case["functionals"]["entropy"])
    note("loglik", np.reshape(loglik, shape), case["functionals"]["loglik"])
    np.testing.assert_allclose(
        np.reshape(loglik, shape), fit["sample_stats"]["loglik"].to_numpy(), rtol=1e-10
    )
    predictive = case["predictive"]
    for i, value in enumerate(np.array(density).T):
        mean, _, error, _ = summary(value.reshape(shape))
        both = np.hypot(error, predictive["mcse"][i])
        found[f"density at {points[i]}"] = abs(mean - predictive["density_mean"][i]) / both
    return found


class TestReferencePosteriors:
    """Stan's long runs (tests/golden/stan): parameters, functionals and predictive density."""

    def test_faithful_vvv_k2(self) -> None:
        case = reference("faithful_vvv_k2")
        x = table("faithful")
        with pytest.warns(PosteriorWarning, match="improper"):  # a half-normal scale and ties
            fit = sample_posterior(
                GaussianMixture(2, "VVV", prior_of(case)),
                x,
                draws=2000,
                random_seed=3,
                progressbar=False,
            )
        found = distances(fit, case, x.to_numpy())
        assert {name: z for name, z in found.items() if not z < 4} == {}

    def test_iris_eee_k3(self) -> None:
        case = reference("iris_eee_k3")
        x = table("iris")
        fit = sample_posterior(
            GaussianMixture(3, "EEE", prior_of(case)),
            x,
            random_seed=3,
            progressbar=False,
        )
        found = distances(fit, case, x.to_numpy())
        assert {name: z for name, z in found.items() if not z < 4} == {}

    @pytest.mark.slow
    def test_galaxies_v_k3(self) -> None:
        """Several modes: label-free functionals by their means, parameters by their quantiles."""
        case = reference("galaxies_v_k3")
        x = table("galaxies")
        fit = quietly(
            GaussianMixture(3, "V", prior_of(case)), x, draws=20_000, tune=2000, random_seed=3
        )
        second = case["second_method"]
        draws = ordered(fit, 0)
        loglik = fit["sample_stats"]["loglik"].to_numpy()
        record = second["parameters"]["loglik"]
        z = gaps(loglik, record["mean"], record["sd"], record["mean_se"], record["sd_se"])
        assert max(z) < 4
        points = np.array(case["predictive"]["points"])[:, None]
        thin = {name: v[:, ::10] for name, v in draws.items()}
        density = np.array([np.exp(log_density(points, theta)) for theta in each(thin)])
        shape = thin["weight"].shape[:2]
        worst = 0.0
        for i, value in enumerate(density.T):
            mean, _, error, _ = summary(value.reshape(shape))
            both = np.hypot(error, second["predictive"]["se"][i])
            worst = max(worst, abs(mean - second["predictive"]["density_mean"][i]) / both)
        assert worst < 4
        for name, record in second["parameters"].items():
            if name == "loglik":
                continue
            value = scalar(draws, name)
            width = record["q95"] - record["q05"]
            for quantile in ("q05", "q50", "q95"):
                at = np.quantile(value, float(quantile[1:]) / 100)
                assert abs(at - record[quantile]) < 0.05 * width, (name, quantile)


class TestLargeSample:
    def test_the_posterior_is_the_likelihood(self) -> None:
        """Ten thousand rows: mean at the maximum, sd the standard error (Bernstein-von Mises)."""
        rng = np.random.default_rng(4)
        n = 10_000
        label = rng.choice(2, size=n, p=[0.35, 0.65])
        mean = np.array([[0.0, 0.0], [3.0, 1.0]])
        factor = np.linalg.cholesky(
            np.array([[[1.0, 0.5], [0.5, 2.0]], [[1.5, -0.4], [-0.4, 1.0]]])
        )
        noise = rng.normal(size=(n, 2))
        x = mean[label] + np.einsum("nij,nj->ni", factor[label], noise)
        spec = GaussianMixture(2)
        mle = fit_em(spec, x, random_seed=4)
        post = sample_posterior(
            spec,
            x,
            mle=mle,
            random_seed=4,
            log_likelihood=False,
            progressbar=False,
        )
        for name in DIMS:
            error = mle["standard_error"][name].to_numpy()
            estimate = mle["posterior"][name].to_numpy()[0, 0]
            draws = post["posterior"][name].to_numpy()
            bias = (draws.mean(axis=(0, 1)) - estimate) / error
            ratio = draws.std(axis=(0, 1)) / error
            assert np.abs(bias).max() < 0.15, name
            assert ratio.min() > 0.93, name
            assert ratio.max() < 1.07, name


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return models.posterior()


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return models.maximum()


class TestFit:
    def test_the_verdict_is_good_and_kept(self, post: xr.DataTree) -> None:
        verdict = Verdict.from_json(post.attrs["verdict"])
        assert verdict.status == "ok"
        codes = {check.code for check in verdict.checks}
        assert {"rhat", "ess-bulk", "divergences", "few-chains", "ambiguous-labels"} <= codes
        assert post.attrs["engine"] == "nuts"
        assert post.attrs["estimate"] == "posterior"
        assert post.attrs["random_seed"] == 1
        assert json.loads(post.attrs["warnings"]) == []
        assert {"pymc", "nutpie", "pytensor"} <= json.loads(post.attrs["versions"]).keys()
        assert set(json.loads(post.attrs["timings"])) == {"em", "start", "sampling", "summary"}

    def test_it_is_near_the_maximum(self, post: xr.DataTree, mle: xr.DataTree) -> None:
        for name in DIMS:
            error = mle["standard_error"][name].to_numpy()
            gap = post["posterior"][name].to_numpy().mean(axis=(0, 1)) - point_of(mle, name)
            assert np.abs(gap / error).max() < 1

    def test_labels_are_ems_and_the_raw_draws_are_kept(
        self, post: xr.DataTree, mle: xr.DataTree
    ) -> None:
        pivot = point(mle)
        aligned, raw = draws_of(post), draws_of(post, "posterior_raw")
        permutation = post["labels"]["permutation"].to_numpy()
        for name, value in raw.items():
            order = permutation.reshape(*permutation.shape, *(1,) * (value.ndim - 3))
            np.testing.assert_array_equal(aligned[name], np.take_along_axis(value, order, axis=2))
        for theta in each({name: v[:, ::100] for name, v in aligned.items()}):
            np.testing.assert_array_equal(match(theta, pivot)[0], [0, 1])
        margin = post["labels"]["margin"].to_numpy()
        assert ((margin >= 0) & (margin <= 1)).all()

    def test_the_pivots_labels_are_taken_over(self, mle: xr.DataTree) -> None:
        swapped = mle.copy()
        swapped["posterior"] = xr.DataTree(
            mle["posterior"].to_dataset().isel(cluster=[1, 0]).assign_coords(cluster=[0, 1])
        )
        fit = quietly(
            *(GaussianMixture(2), table("faithful")),
            mle=swapped,
            draws=50,
            tune=200,
            chains=2,
            random_seed=1,
        )
        first = fit["posterior"]["mean"].to_numpy()[..., 0, 0]
        assert (first > 3.5).all()  # the long eruptions, which EM itself calls 1

    def test_log_likelihood_and_prior_are_those_of_the_draws(self, post: xr.DataTree) -> None:
        x = table("faithful").to_numpy()
        rows = post["log_likelihood"]["x"]
        assert rows.dims == ("chain", "draw", "obs")
        loglik = post["sample_stats"]["loglik"].to_numpy()
        np.testing.assert_allclose(rows.to_numpy().sum(axis=2), loglik, rtol=1e-12)
        thin = each({name: v[:, ::100] for name, v in draws_of(post).items()})
        wanted = np.array([log_density(x, theta) for theta in thin])
        found = rows.to_numpy()[:, ::100].reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-11)
        spec = GaussianMixture(2)
        prior = resolve(spec, read(table("faithful"), family=spec.covariance, n_components=2))
        stated = [
            log_prior_density(prior, spec.covariance, t.weight, t.mean, t.covariance) for t in thin
        ]
        kept = post["sample_stats"]["log_prior"].to_numpy()[:, ::100].ravel()
        np.testing.assert_allclose(kept, stated, rtol=1e-9)

    def test_loo_is_arvizs(self, post: xr.DataTree) -> None:
        criteria = post["criteria"].dataset
        assert set(criteria) == {
            *("elpd_loo", "elpd_loo_se", "p_loo"),
            *("pareto_k_max", "pareto_k_bad"),
        }
        assert 5 < float(criteria["p_loo"]) < 20
        assert float(criteria["elpd_loo"]) == pytest.approx(-1141.5, abs=3)

    def test_pymcs_pointwise_log_likelihood(self, post: xr.DataTree) -> None:
        some = {name: v[:2, :20] for name, v in draws_of(post).items()}
        dims = {name: ("chain", "draw", *DIMS[name]) for name in DIMS}
        draws = xr.DataTree.from_dict(
            {"/posterior": xr.Dataset({n: (dims[n], v) for n, v in some.items()})}
        )
        model = to_pymc(GaussianMixture(2), table("faithful"))
        found = pm.compute_log_likelihood(draws, model=model, progressbar=False)
        np.testing.assert_allclose(
            found["log_likelihood"]["x"].to_numpy(),
            post["log_likelihood"]["x"].to_numpy()[:2, :20],
            rtol=1e-11,
        )

    def test_posterior_predictive(self, post: xr.DataTree) -> None:
        model = to_pymc(GaussianMixture(2), table("faithful"))
        some = post.isel(draw=slice(0, 1000, 20))
        found = pm.sample_posterior_predictive(some, model=model, random_seed=5, progressbar=False)[
            "posterior_predictive"
        ]["x"]
        assert found.dims == ("chain", "draw", "obs", "feature")
        x = table("faithful").to_numpy()
        rows = found.to_numpy().reshape(-1, len(x), 2)
        means = rows.mean(axis=1)
        error = means.std(axis=0) / np.sqrt(len(means))
        centre = some["posterior"]
        wanted = (centre["weight"] * centre["mean"]).sum("cluster").mean(("chain", "draw"))
        assert (np.abs(means.mean(axis=0) - wanted.to_numpy()) < 5 * error).all()
        covariance = np.cov(rows.reshape(-1, 2).T)
        np.testing.assert_allclose(covariance, np.cov(x.T), rtol=0.05)


def point_of(fit: xr.DataTree, name: str) -> np.ndarray:
    return fit["posterior"][name].to_numpy()[0, 0]


class TestSampler:
    def test_starts_and_seeds(self, mle: xr.DataTree) -> None:
        spec = GaussianMixture(2)
        data = read(table("faithful"), family=spec.covariance, n_components=2)
        density = target(spec, data, resolve(spec, data))
        peak_of = quadratic_at(density, density.point(point(mle)), point(mle))
        started = start_around([peak_of], density)
        # Starts differ from chain to chain, are near the optimum, and are made again by the seed.
        drawn = [started.initial_point_func(seed) for seed in (1, 2, 1)]
        starts = [peak_of.point + peak_of.root @ z for z in drawn]
        np.testing.assert_array_equal(starts[0], starts[2])
        assert np.abs(starts[0] - starts[1]).max() > 0
        peak = density(density.point(point(mle)))[0]
        assert all(peak - 10 * density.size < density(start)[0] < peak for start in starts)
        # Other seeds, other draws; the number of cores changes nothing.
        settings = {"draws": 30, "tune": 60, "chains": 3, "target_accept": 0.9}
        runs = [
            run_nuts(started, progress_bar=False, seed=seed, cores=cores, **settings)
            for seed, cores in ((1, 1), (1, 2), (2, 2))
        ]
        one, two, other = (run["posterior"][POINT].to_numpy() for run in runs)
        np.testing.assert_array_equal(one, two)
        assert (one != other).any()

    def test_same_seed_same_draws(self, mle: xr.DataTree) -> None:
        settings = {"mle": mle, "draws": 40, "tune": 80, "chains": 2, "random_seed": 7}
        arguments = (GaussianMixture(2), table("faithful"))
        with pytest.warns(PosteriorWarning, match="few-chains"):
            one = sample_posterior(*arguments, cores=1, progressbar=False, **settings)
        two = quietly(*arguments, cores=2, **settings)
        for group in ("posterior", "posterior_raw", "sample_stats", "log_likelihood", "criteria"):
            xr.testing.assert_identical(one[group].to_dataset(), two[group].to_dataset())
        verdict = Verdict.from_json(one.attrs["verdict"])
        assert {check.code: check.status for check in verdict.checks}["few-chains"] == "warn"

    @pytest.mark.parametrize(("offset", "scale"), [(0.0, 1e-6), (1e8, 1.0)])
    def test_other_units_other_origin(self, post: xr.DataTree, offset: float, scale: float) -> None:
        x = table("faithful") * scale + offset
        fit = sample_posterior(GaussianMixture(2), x, random_seed=8, progressbar=False)
        units = {"weight": (0.0, 1.0), "mean": (offset, scale), "covariance": (0.0, scale**2)}
        for name, (origin, unit) in units.items():
            found = (fit["posterior"][name].to_numpy() - origin) / unit
            wanted = post["posterior"][name].to_numpy()
            for place in np.ndindex(wanted.shape[2:]):
                at = (slice(None), slice(None), *place)
                assert max(gaps(found[at], *summary(wanted[at]))) < 4, (name, place)
        shift = -2 * len(x) * np.log(scale)
        gap = fit["criteria"]["elpd_loo"] - post["criteria"]["elpd_loo"]
        assert float(gap) == pytest.approx(shift, abs=0.5)

    def test_a_run_that_is_too_short_says_so(self) -> None:
        """With frequencies, too: rows of the log-likelihood are what the weights count."""
        x = table("faithful").drop_duplicates()
        weight = np.resize([1.0, 2.0, 3.0], len(x))
        with pytest.warns(PosteriorWarning, match="should not be relied on") as caught:
            fit = sample_posterior(
                GaussianMixture(2),
                x,
                sample_weight=weight,
                draws=20,
                tune=20,
                random_seed=9,
                progressbar=False,
            )
        assert [w.message.code for w in caught] == ["posterior-not-good"]
        assert caught[0].filename == __file__
        verdict = Verdict.from_json(fit.attrs["verdict"])
        assert verdict.status == "fail"
        np.testing.assert_array_equal(fit["constant_data"]["sample_weight"], weight)
        theta = each(draws_of(fit))[-1]
        row = fit["log_likelihood"]["x"].to_numpy()[-1, -1]
        np.testing.assert_allclose(row, weight * log_density(x.to_numpy(), theta), rtol=1e-11)
        assert row.sum() == pytest.approx(fit["sample_stats"]["loglik"].to_numpy()[-1, -1])
        assert list(fit["log_likelihood"]["obs"].to_numpy()) == list(x.index)

    def test_what_an_interruption_leaves_is_a_fit(
        self, mle: xr.DataTree, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        # As in a terminal, also where the tests run in the background and Ctrl-C is ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        request.addfinalizer(partial(signal.signal, signal.SIGINT, before))
        interrupt = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        sample = nutpie.sample

        def interrupted(*args: Any, **settings: Any) -> Any:
            interrupt.start()  # so that what is interrupted is the sampler
            return sample(*args, **settings)

        monkeypatch.setattr(nutpie, "sample", interrupted)
        fit = quietly(
            GaussianMixture(2),
            table("faithful"),
            mle=mle,
            draws=400_000,
            tune=100,
            log_likelihood=False,
            random_seed=12,
        )
        interrupt.join()
        assert fit.attrs["stop_reason"] == "interrupted"
        monkeypatch.undo()
        assert 0 < fit["posterior"].sizes["draw"] < 400_000
        assert all(np.isfinite(values).all() for values in draws_of(fit).values())
        again = quietly(GaussianMixture(2), table("faithful"), mle=mle, draws=30, random_seed=12)
        assert again.attrs["stop_reason"] == "completed"

    @pytest.mark.parametrize("draws", [1, 12])
    def test_a_few_draws_are_a_fit_without_loo(self, mle: xr.DataTree, draws: int) -> None:
        """As after an interruption: what there is, is kept."""
        settings = {"mle": mle, "draws": draws, "tune": 30, "chains": 2, "random_seed": 11}
        fit = quietly(GaussianMixture(2), table("faithful"), **settings)
        assert fit["posterior"].sizes["draw"] == draws
        assert "criteria" not in fit.children
        assert "log_likelihood" in fit.children
        assert Verdict.from_json(fit.attrs["verdict"]).status == "fail"

    def test_any_pymc_sampler_takes_an_edited_model(self, mle: xr.DataTree) -> None:
        model = to_pymc(GaussianMixture(2), table("faithful"))
        with model:
            apart = model["mean"][1, 0] - model["mean"][0, 0]
            pm.Potential("apart", -0.5 * ((apart - 2.0) / 0.01) ** 2)
        draws = pm.sample(
            300,
            tune=300,
            chains=2,
            cores=2,
            model=model,
            nuts_sampler="nutpie",
            initvals={name: point_of(mle, name) for name in DIMS},
            random_seed=10,
            progressbar=False,
            quiet=True,
        )
        mean = draws["posterior"]["mean"]
        assert mean.dims == ("chain", "draw", "cluster", "feature")
        assert list(mean["feature"].to_numpy()) == list(table("faithful"))
        gap = (mean.isel(feature=0).diff("cluster")).to_numpy()
        assert gap.mean() == pytest.approx(2.0, abs=0.05)  # 2.25 without the potential
        assert gap.std() < 0.02
        fit = quietly(GaussianMixture(2), draws, table("faithful"), by=from_draws, mle=mle)
        assert json.loads(fit.attrs["prior"]) == "a model edited by hand"
        assert Verdict.from_json(fit.attrs["verdict"]).checks[-1].code == "ambiguous-labels"
        np.testing.assert_array_equal(fit["posterior_raw"]["mean"], mean)


class TestRefusals:
    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("draws", 0),
            ("draws", 10.0),
            ("tune", 0),
            ("tune", "100"),
            ("chains", 0),
            ("chains", True),
            ("cores", 0),
            ("target_accept", 1.0),
            ("target_accept", 0),
            ("target_accept", "high"),
            ("random_seed", -1),
            ("random_seed", 1.5),
        ],
    )
    def test_bad_settings(self, argument: str, value: object) -> None:
        with pytest.raises(ArgumentError) as error:
            sample_posterior(GaussianMixture(2), table("faithful"), **{argument: value})
        assert error.value.argument == argument

    def test_an_mle_of_other_data(self, mle: xr.DataTree) -> None:
        x = table("faithful").iloc[1:]
        with pytest.raises(ArgumentError, match="other data") as error:
            sample_posterior(GaussianMixture(2), x, mle=mle)
        assert error.value.argument == "mle"

    @pytest.mark.parametrize("spec", [GaussianMixture(3), GaussianMixture(2, "EEE")], ids=str)
    def test_an_mle_of_another_specification(self, mle: xr.DataTree, spec: GaussianMixture) -> None:
        with pytest.raises(ArgumentError, match="another specification") as error:
            sample_posterior(spec, table("faithful"), mle=mle)
        assert error.value.argument == "mle"

    @pytest.mark.parametrize("value", ["a fit", 3, pd.DataFrame({"a": [1.0]})])
    def test_an_mle_that_is_none(self, value: object) -> None:
        with pytest.raises(ArgumentError) as error:
            sample_posterior(GaussianMixture(2), table("faithful"), mle=value)
        assert error.value.argument == "mle"

    def test_an_mle_with_many_draws(self, post: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match="one point") as error:
            sample_posterior(GaussianMixture(2), table("faithful"), mle=post)
        assert error.value.argument == "mle"

    def test_specifications_without_a_posterior(self) -> None:
        with pytest.raises(ArgumentError, match="maximum likelihood only"):
            sample_posterior(GaussianMixture(2, prior=None), table("faithful"))
        with pytest.raises(DataError):
            sample_posterior(GaussianMixture(2), [[1.0, np.nan], [2.0, 3.0]])
