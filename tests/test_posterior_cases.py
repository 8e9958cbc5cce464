"""The hard cases of posterior sampling, through the whole of it: what must come out, or be said.

Other files hold those that are laws of their parts: closed forms, other units and seeds in
`test_posterior`, values and gradients in `test_density`, `test_op` and `test_model`, bad runs in
`test_verdict`, calibration in `test_sbc`.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import arviz as az
import models
import numpy as np
import pandas as pd
import pymc as pm
import pytest
import registry
from models import table
from scipy.stats import beta, invgamma, kstest, lognorm, norm, t

import bayesgmm as bg
from bayesgmm import labels
from bayesgmm.checks import Verdict
from bayesgmm.data.observations import read_for
from bayesgmm.errors import ColumnNameError, DataError, PosteriorWarning
from bayesgmm.moments import Parameters
from bayesgmm.posterior import bayes, draws
from bayesgmm.posterior.nuts import POINT, run_nuts, start_around
from bayesgmm.prior import ConjugatePrior, LogNormal, SeparationPrior
from bayesgmm.resolved import resolve
from bayesgmm.target.curvature import Quadratic, quadratic_at
from bayesgmm.target.density import Target, target
from bayesgmm.tree import DIMS, point


def target_of(spec: bg.GaussianMixture, x: Any) -> Target:
    data = read_for(spec, x)
    return target(spec, data, resolve(spec, data))


def size_at(density: Target, theta: Parameters) -> Quadratic:
    return quadratic_at(density, density.point(theta), theta)


def nearly_independent(density: Target, begin: Parameters, draws: int = 2500) -> Any:
    """Every tenth draw of four chains."""
    run = run_nuts(
        start_around([size_at(density, begin)], density),
        draws=draws,
        tune=500,
        chains=4,
        cores=2,
        seed=3,
        target_accept=0.9,
        progress_bar=False,
    )
    points = run["posterior"][POINT].to_numpy()[:, ::10]
    return density.parameters(points.reshape(-1, points.shape[-1]))


class TestLabels:
    def test_no_constraint_is_needed_for_labels_that_mix(self) -> None:
        """Chains in different labellings: raw draws do not mix, aligned ones are as if none had."""
        post, pivot = models.posterior(), point(models.maximum())
        raw = {n: post["posterior_raw"][n].to_numpy().copy() for n in DIMS}
        for values in raw.values():
            values[[1, 3]] = values[[1, 3]][:, :, ::-1]
        flat = [values.reshape(-1, *values.shape[2:]) for values in raw.values()]
        order = labels.align(*flat, pivot).permutation
        for name, values in zip(raw, flat, strict=True):
            aligned = labels.apply(order, values).reshape(raw[name].shape)
            np.testing.assert_array_equal(aligned, post["posterior"][name].to_numpy())
        mixed = az.rhat(az.from_dict({"posterior": {n: raw[n] for n in DIMS}}))
        assert float(mixed["mean"].min()) > 1.5
        # ArviZ's R-hat of weights and means; covariances have equal elements, not constant ones.
        assert max(float(az.rhat(post)[n].max()) for n in DIMS) < 1.01

    def test_components_that_the_data_cannot_tell_apart_fail(self) -> None:
        """Two parts 1 sd apart: one hump, which the posterior splits in any way (collapse)."""
        rng = np.random.default_rng(1)
        x = rng.normal(size=(500, 1)) + np.where(rng.random((500, 1)) < 0.25, -0.5, 0.5)
        spec = bg.GaussianMixture(2, "V")
        with pytest.warns(PosteriorWarning, match="should not be relied on"):
            fit = bg.sample_posterior(
                spec, x, draws=300, tune=300, random_seed=1, progressbar=False
            )
        assert Verdict.from_json(fit.attrs["verdict"]).status == "fail"


class TestStarts:
    @pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=str)
    def test_starts_are_valid_and_over_dispersed_in_every_family(self, family: Any) -> None:
        """No initial values are asked for: each chain has its own, with a density, further out."""
        x = table("iris", 1 if family.is_one_dimensional else 3)
        spec = bg.GaussianMixture(3, family.letters)
        density = target_of(spec, x)
        rng = np.random.default_rng(2)
        # A rough guess, as k-means might make it, not the optimum.
        rows = x.to_numpy()[[10, 75, 140]]
        cov = np.tile(np.cov(x.to_numpy().T).reshape(len(rows[0]), -1) / 4, (3, 1, 1))
        if family.is_diagonal:
            cov = cov * np.eye(cov.shape[1])
        if family.shape == "I":
            cov = np.tile(np.eye(cov.shape[1]), (3, 1, 1)) * cov[0, 0, 0]
        place = size_at(density, Parameters(np.full(3, 1 / 3), rows, cov))
        started = start_around([place], density)
        z = np.array([started.initial_point_func(int(s)) for s in rng.integers(2**31, size=8)])
        starts = place.point + z @ place.root.T
        assert all(np.isfinite(density(s)[0]) and np.isfinite(density(s)[1]).all() for s in starts)
        assert (np.ptp(starts, axis=0) > 0).all()
        values = [density(s)[0] for s in starts]
        assert max(values) - min(values) > 1


class TestBadInput:
    @pytest.mark.parametrize("verb", [bg.sample_posterior, bg.fit_laplace, bg.to_pymc])
    def test_infinity_is_refused_before_anything_is_compiled_or_fitted(
        self, verb: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("fit_em", "target"):
            monkeypatch.setattr(draws, name, None)
        monkeypatch.setattr(bayes, "start_around", None)
        monkeypatch.setattr(pm, "Model", None)
        x = table("faithful").astype(float)
        x.loc[17, "waiting"] = np.inf
        with pytest.raises(DataError, match=r"waiting") as error:
            verb(bg.GaussianMixture(2), x)
        assert "17" in str(error.value)

    @pytest.mark.parametrize("verb", [bg.sample_posterior, bg.to_pymc])
    @pytest.mark.parametrize("names", [["a", "a"], [1, "1"]])
    def test_two_columns_of_one_name_are_refused(self, verb: Any, names: list[Any]) -> None:
        with pytest.raises(ColumnNameError, match="several columns"):
            verb(bg.GaussianMixture(2), table("faithful").set_axis(names, axis=1))

    @pytest.mark.parametrize(
        ("names", "kept"), [([1, "a"], ["1", "a"]), ([None, "a"], ["x0", "a"])]
    )
    def test_names_of_any_kind_become_text(self, names: list[Any], kept: list[str]) -> None:
        x = table("faithful").set_axis(pd.Index(names, dtype=object), axis=1)
        model = bg.to_pymc(bg.GaussianMixture(2), x)
        assert list(model.coords["feature"]) == kept


class TestOneComponent:
    @pytest.mark.parametrize(
        "family", [f for f in (*registry.EVERY, *registry.ONE_D) if not f.is_polar], ids=str
    )
    def test_has_the_closed_form_in_every_family(self, family: Any) -> None:
        """Normal and inverse Wishart, or inverse gamma, under a prior that pulls hard.

        Families with a prior of their own for axes (EVE, VVE, EEV, VEV) have none.
        """
        d = 1 if family.is_one_dimensional else 2
        x = table("faithful", d).to_numpy()[:30]
        n, kappa, nu = len(x), 6.0, 8.0
        m, scale = np.array([3.0, 65.0])[:d], np.array([2.0, 300.0])[:d]
        prior = ConjugatePrior(shrinkage=kappa, dof=nu, mean=tuple(m), scale=tuple(scale))
        density = target_of(bg.GaussianMixture(1, family.letters, prior), x)
        begin = Parameters(np.ones(1), m[None], np.diag(np.full(d, scale.mean()))[None])
        found = nearly_independent(density, begin)
        centre = x.mean(axis=0)
        gap = centre - m
        scatter = np.diag(scale) + np.cov(x.T).reshape(d, d) * (n - 1)
        scatter = scatter + kappa * n / (kappa + n) * np.outer(gap, gap)
        total = kappa + n
        if family.shape == "I":  # one variance, whose prior counts the mean of the scales once
            sums = np.trace(scatter - np.diag(scale)) + scale.mean()
            shape, rate = 0.5 * (nu + n * d), np.full(d, 0.5 * sums)
        elif family.is_diagonal:
            shape, rate = 0.5 * (nu + n), 0.5 * np.diagonal(scatter)
        else:
            shape, rate = 0.5 * (nu + n - d + 1), 0.5 * np.diagonal(scatter)
        for j in range(d):
            variance = found["covariance"][:, 0, j, j]
            assert kstest(variance, invgamma(shape, scale=rate[j]).cdf).pvalue > 1e-4
            law = t(
                2 * shape, (kappa * m + n * centre)[j] / total, np.sqrt(rate[j] / shape / total)
            )
            assert kstest(found["mean"][:, 0, j], law.cdf).pvalue > 1e-4

    @pytest.mark.parametrize(("letters", "d"), [("VVV", 2), ("V", 1)])
    def test_is_pymcs_normal_distribution(self, letters: str, d: int) -> None:
        """No weight is sampled, and the likelihood is that of `pm.MvNormal`."""
        x = table("faithful", d)
        model = bg.to_pymc(bg.GaussianMixture(1, letters), x)
        assert [rv.name for rv in model.free_RVs] == ["covariance", "mean"]
        mean = x.to_numpy().mean(axis=0) + 0.3
        covariance = 1.2 * np.cov(x.to_numpy().T).reshape(d, d)
        theirs = pm.logp(pm.MvNormal.dist(mean, cov=covariance), x.to_numpy())
        ours = pm.logp(model["x"], x.to_numpy())
        given = {model["mean"]: mean[None], model["covariance"]: covariance[None]}
        np.testing.assert_allclose(
            ours.eval(given, mode=models.PYTHON), theirs.eval(mode=models.PYTHON), rtol=1e-12
        )


def prior_draws(spec: bg.GaussianMixture, x: pd.DataFrame) -> dict[str, np.ndarray]:
    """Draw from the posterior of no data."""
    spread = np.tile(np.cov(x.T), (2, 1, 1))
    begin = Parameters(np.full(2, 0.5), x.to_numpy()[[10, 60]], spread)
    return nearly_independent(target_of(spec, x).without_data(), begin)


class TestPriorOnly:
    """Without data NUTS samples the prior, by SciPy's distributions of its marginals."""

    def test_conjugate(self) -> None:
        x = table("faithful")
        prior = ConjugatePrior(
            shrinkage=0.5, dof=7.0, mean=(3.0, 60.0), scale=(2.0, 300.0), weight_concentration=1.5
        )
        found = prior_draws(bg.GaussianMixture(2, "VVV", prior), x)
        assert kstest(found["weight"][:, 0], beta(1.5, 1.5).cdf).pvalue > 1e-3
        for j, (m, s) in enumerate(((3.0, 2.0), (60.0, 300.0))):
            for k in range(2):
                # The marginals of an inverse Wishart: gamma((dof - d + 1) / 2), and Student's t.
                variance = invgamma(3.0, scale=s / 2)
                assert kstest(found["covariance"][:, k, j, j], variance.cdf).pvalue > 1e-3
                law = t(6.0, loc=m, scale=np.sqrt(s / 6.0 / 0.5))
                assert kstest(found["mean"][:, k, j], law.cdf).pvalue > 1e-3

    def test_separation(self) -> None:
        x = table("faithful")
        prior = SeparationPrior(
            mean=(3.0, 60.0),
            mean_sd=(2.0, 10.0),
            scale=LogNormal((0.5, 1.0), 0.6),
            correlation=1.5,
            weight_concentration=2.0,
            units="data",
        )
        found = prior_draws(bg.GaussianMixture(2, "VVV", prior), x)
        covariance = found["covariance"]
        sd = np.sqrt(np.diagonal(covariance, axis1=2, axis2=3))
        assert kstest(found["weight"][:, 0], beta(2.0, 2.0).cdf).pvalue > 1e-3
        for k in range(2):
            for j in range(2):
                law = norm((3.0, 60.0)[j], (2.0, 10.0)[j])
                assert kstest(found["mean"][:, k, j], law.cdf).pvalue > 1e-3
                law = lognorm(0.6, scale=np.exp((0.5, 1.0)[j]))
                assert kstest(sd[:, k, j], law.cdf).pvalue > 1e-3
            half = 0.5 + 0.5 * covariance[:, k, 0, 1] / sd[:, k].prod(axis=1)
            assert kstest(half, beta(1.5, 1.5).cdf).pvalue > 1e-3


class TestSizes:
    @pytest.mark.parametrize("family", registry.EVERY, ids=str)
    def test_twenty_columns_six_components(self, family: Any) -> None:
        """A finite log-density, whose gradient is its finite difference in a random direction."""
        rng = np.random.default_rng(4)
        x = rng.normal(size=(1500, 20)) + 3.0 * rng.integers(0, 3, size=(1500, 1))
        density = target_of(bg.GaussianMixture(6, family.letters, ConjugatePrior(dof=30.0)), x)
        at = 0.1 * rng.normal(size=density.size)
        at[-120:] = x[:6].ravel()
        value, slope = density(at)
        assert np.isfinite(value)
        step = 1e-5 * rng.normal(size=density.size)
        difference = density(at + step)[0] - density(at - step)[0]
        assert difference == pytest.approx(2.0 * slope @ step, rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("letters", ["V", "E"])
    def test_one_column(self, letters: str, k: int) -> None:
        x = table("galaxies")
        density = target_of(bg.GaussianMixture(k, letters), x)
        begin = Parameters(
            np.full(k, 1 / k), np.linspace(10.0, 30.0, k)[:, None], np.full((k, 1, 1), 4.0)
        )
        run = run_nuts(
            start_around([size_at(density, begin)], density),
            draws=20,
            tune=50,
            chains=1,
            cores=1,
            seed=5,
            target_accept=0.9,
            progress_bar=False,
        )
        found = density.parameters(run["posterior"][POINT].to_numpy())
        assert found["mean"].shape == (1, 20, k, 1)
        assert all(np.isfinite(values).all() for values in found.values())

    @pytest.mark.parametrize("letters", ["VVV", "EEE", "VVI", "EVE", "VEV"])
    def test_a_pymc_model_of_twenty_columns(self, letters: str) -> None:
        rng = np.random.default_rng(6)
        x = rng.normal(size=(700, 20))
        model = bg.to_pymc(bg.GaussianMixture(3, letters, ConjugatePrior(dof=30.0)), x)
        value = model.compile_logp(mode=models.PYTHON)(model.initial_point())
        assert np.isfinite(value)


@pytest.mark.slow
class TestLargeSample:
    def test_a_hundred_thousand_rows(self) -> None:
        """Bernstein and von Mises: the posterior is the likelihood's normal approximation."""
        rng = np.random.default_rng(7)
        truth = Parameters(
            np.array([0.35, 0.65]),
            np.array([[0.0, 0.0], [3.0, 1.0]]),
            np.array([[[1.0, 0.5], [0.5, 2.0]], [[1.5, -0.4], [-0.4, 1.0]]]),
        )
        x = registry.simulate(rng, truth, 100_000)
        spec = bg.GaussianMixture(2)
        mle = bg.fit_em(spec, x, n_starts=5, random_seed=1)
        post = bg.sample_posterior(
            *(spec, x),
            mle=mle,
            tune=500,
            log_likelihood=False,
            random_seed=1,
            progressbar=False,
        )
        assert Verdict.from_json(post.attrs["verdict"]).status == "ok"
        for name in DIMS:
            error = mle["standard_error"][name].to_numpy()
            drawn = post["posterior"][name].to_numpy()
            gap = drawn.mean(axis=(0, 1)) - mle["posterior"][name].to_numpy()[0, 0]
            assert np.abs(gap / error).max() < 0.1, name
            np.testing.assert_allclose(drawn.std(axis=(0, 1)) / error, 1.0, atol=0.05)


@pytest.mark.slow
class TestOtherSamplers:
    def test_pymcs_own_and_nutpie_on_the_model_agree_with_ours(self) -> None:
        x, spec = table("faithful"), bg.GaussianMixture(2, "VVV")
        ours = models.posterior()
        model = bg.to_pymc(spec, x)
        begin = {n: ours["posterior"][n].mean(("chain", "draw")).to_numpy() for n in DIMS}
        for sampler in ("pymc", "nutpie"):
            theirs = pm.sample(
                *(1000,),
                tune=1000,
                chains=4,
                cores=2,
                random_seed=8,
                initvals=begin,
                model=model,
                nuts_sampler=sampler,
                progressbar=False,
                quiet=True,
            )
            for name in DIMS:
                one, two = (fit["posterior"][name] for fit in (ours, theirs))
                for statistic, kind in ((np.mean, "mean"), (np.std, "sd")):
                    errors = [az.mcse(fit, method=kind)[name].to_numpy() for fit in (ours, theirs)]
                    a, b = (statistic(v.to_numpy(), axis=(0, 1)) for v in (one, two))
                    assert (np.abs(a - b) < 4.5 * np.hypot(*errors)).all(), (sampler, name, kind)


WITHOUT = """
import sys
sys.modules["nutpie"] = None
import numpy as np
import bayesgmm as bg
x = bg.datasets.load("faithful")
spec = bg.GaussianMixture(2)
mle = bg.fit_em(spec, x, n_starts=2, n_finish=2, standard_errors=False, random_seed=1)
model = bg.to_pymc(spec, x)
from pytensor.compile.mode import Mode
print(np.isfinite(model.compile_logp(mode=Mode("py", "fast_compile"))(model.initial_point())))
try:
    bg.sample_posterior(spec, x, mle=mle)
except ImportError as error:
    print(error)
"""


def test_without_nutpie_and_without_a_compiler_the_model_is_still_pymcs() -> None:
    """EM and the PyMC model need neither; what needs nutpie says that it is missing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere", "PYTENSOR_FLAGS": "cxx=", "HOME": sys.prefix},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "True"
    assert "nutpie" in done.stdout.splitlines()[1]
