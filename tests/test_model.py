"""The PyMC model: EM's objective to the last digits, names and dims, and what it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import models
import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from models import ALL, POLAR, PYTHON, parts, table, take_apart
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal

import bayesgmm as bg
from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.data.observations import read
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters, accumulate
from bayesgmm.numeric.kernel_ops import loglik_and_gradient
from bayesgmm.posterior.model import to_pymc
from bayesgmm.posterior.op import MixtureLogp, MixtureRows
from bayesgmm.prior import ConjugatePrior, HalfNormal, InverseGamma, SeparationPrior
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import resolve
from bayesgmm.tree import point

HALF_NORMAL = SeparationPrior(scale=HalfNormal())


class TestSameObjective:
    @pytest.mark.parametrize("letters", ALL)
    def test_the_likelihood_is_ems(self, letters: str) -> None:
        model = parts(letters)
        rng = np.random.default_rng(1)
        for _ in range(5):
            at = model.near_the_data(rng)
            theta = model.parameters(at)
            data = model.data
            em = accumulate(
                data.x,
                data.to_anchored(theta),
                data.weight,
                diagonal=Covariance(letters).is_diagonal,
            )
            found = model.likelihood(at)[0]
            assert found == pytest.approx(em.loglik + data.log_jacobian, rel=1e-12)

    @pytest.mark.parametrize("letters", ["VVV", "EVI", "V"])
    def test_the_likelihood_is_scipys(self, letters: str) -> None:
        model = parts(letters)
        at = model.near_the_data(np.random.default_rng(2))
        theta = model.parameters(at)
        joint = [
            np.log(w) + multivariate_normal(m, c).logpdf(model.data.values)
            for w, m, c in zip(theta.weight, theta.mean, theta.covariance, strict=True)
        ]
        wanted = logsumexp(joint, axis=0).sum()
        assert model.likelihood(at)[0] == pytest.approx(wanted, rel=1e-12)

    def test_value_and_gradient_are_those_of_pymcs_mixture(self) -> None:
        x = table("faithful").to_numpy()
        weight, mean, covariance = pt.dvector(), pt.dmatrix(), pt.dtensor3()
        components = [pm.MvNormal.dist(mean[j], cov=covariance[j]) for j in range(2)]
        theirs = pm.logp(pm.Mixture.dist(weight, components), x).sum()
        ours = MixtureRows(False)(x, np.empty(0), pt.log(weight), mean, covariance).sum()
        theta = [weight, mean, covariance]
        functions = [
            pytensor.function(theta, [f, *pt.grad(f, theta)], mode=PYTHON) for f in (ours, theirs)
        ]
        at = (
            np.array([0.35, 0.65]),
            np.array([[2.1, 55.0], [4.2, 79.0]]),
            np.array([[[0.1, 0.5], [0.5, 30.0]], [[0.2, 0.9], [0.9, 40.0]]]),
        )
        (a, *da), (b, *db) = (f(*at) for f in functions)
        assert a == pytest.approx(b, rel=1e-12)
        for one, two in zip(da, db, strict=True):
            # Their derivative may put all of an off-diagonal pair in one triangle.
            if one.ndim == 3:
                one, two = (v + np.swapaxes(v, 1, 2) for v in (one, two))
            np.testing.assert_allclose(one, two, rtol=1e-9)

    @pytest.mark.parametrize("letters", ALL)
    def test_the_gradient_vanishes_at_the_maximum(self, letters: str) -> None:
        """The Newton decrement: how many standard errors the maximum is away, in any direction."""
        model = parts(letters)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bg.errors.FitWarning)  # of rival optima and the like
            mle = point(
                fit_em(
                    GaussianMixture(2, letters),
                    table("iris", model.data.d),
                    random_seed=1,
                    tol=1e-5,
                    n_starts=3,
                )
            )
        at = self._unconstrained(model, mle)
        value, gradient = model.likelihood(at)
        h = 1e-4
        hessian = np.array(
            [
                (model.likelihood(at + h * e)[1] - model.likelihood(at - h * e)[1]) / (2 * h)
                for e in np.eye(len(at))
            ]
        )
        information = -0.5 * (hessian + hessian.T)
        assert (np.linalg.eigvalsh(information) > 0).all()
        assert np.sqrt(gradient @ np.linalg.solve(information, gradient)) < 1e-3
        assert value == pytest.approx(accumulate(model.data.values, mle).loglik, rel=1e-12)

    def _unconstrained(self, model: models.Parts, theta: Parameters) -> np.ndarray:
        values = model.model.rvs_to_values
        given = {"weight": theta.weight, "mean": theta.mean, "covariance": theta.covariance}
        pieces = []
        for rv in model.model.free_RVs:
            transform = model.model.rvs_to_transforms[rv]
            value = pt.as_tensor(given[rv.name])
            inputs = rv.owner.inputs
            graph = value if transform is None else transform.forward(value, *inputs)
            pieces.append(np.ravel(graph.eval(mode=PYTHON)))
        assert len(pieces) == len(values) - 1
        return np.concatenate(pieces)

    def test_gradient_by_natural_parameters_at_the_maximum(self) -> None:
        x = table("faithful")
        fit = fit_em(GaussianMixture(2), x, random_seed=1)
        theta, error = point(fit), fit["standard_error"]
        _, count, by_mean, by_covariance = loglik_and_gradient(
            x.to_numpy(), np.empty(0), theta.log_weight, theta.mean, theta.covariance, False
        )
        by_weight = (count - len(x) * theta.weight) / theta.weight
        for name, slope in (
            ("weight", by_weight),
            ("mean", by_mean),
            ("covariance", by_covariance),
        ):
            assert np.abs(slope * error[name].to_numpy()).max() < 1e-3

    @pytest.mark.parametrize("letters", ["VVV", "VVI"])
    def test_a_weight_of_two_is_the_row_twice(self, letters: str) -> None:
        x = table("iris", 2)
        weight = np.resize([1.0, 2.0, 1.0, 3.0, 0.0], len(x))
        prior = SeparationPrior(mean=[5.8, 3.0], units="data")
        spec = GaussianMixture(2, letters, prior)
        weighted = take_apart(spec, x, weight)
        repeated = take_apart(spec, x.loc[x.index.repeat(weight.astype(int))])
        at = repeated.near_the_data(np.random.default_rng(3))
        # Both charts are in units of the data's spread.
        unit = np.log(weighted.chart.unit / repeated.chart.unit)
        np.testing.assert_allclose(unit, 0.0, atol=1e-14)
        for a, b in zip(weighted.likelihood(at), repeated.likelihood(at), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-9)
        prior_a, prior_b = weighted.prior(at), repeated.prior(at)
        for name, value in prior_a.items():
            assert value == pytest.approx(prior_b[name], rel=1e-11), name

    @pytest.mark.parametrize("letters", ["VVV", "EEI", "V"])
    def test_one_component(self, letters: str) -> None:
        model = parts(letters, "conjugate", 1)
        assert [rv.name for rv in model.model.free_RVs] == ["covariance", "mean"]
        at = model.near_the_data(np.random.default_rng(4))
        theta = model.parameters(at)
        np.testing.assert_array_equal(theta.weight, [1.0])
        normal = multivariate_normal(theta.mean[0], theta.covariance[0])
        wanted = normal.logpdf(model.data.values).sum()
        assert model.likelihood(at)[0] == pytest.approx(wanted, rel=1e-12)

    def test_no_covariance_is_no_exception(self) -> None:
        model = parts("VVV")
        at = model.near_the_data(np.random.default_rng(5))
        at[model.sizes[0] : sum(model.sizes[:2])] = 900.0
        value, gradient = model.likelihood(at)
        assert not np.isfinite(value)
        assert gradient.shape == at.shape


class TestGraph:
    def test_pymcs_own_function_has_one_pass(self) -> None:
        model = to_pymc(GaussianMixture(2), table("faithful"))
        function = model.logp_dlogp_function(ravel_inputs=True, mode="FAST_COMPILE")
        nodes = function._pytensor_function.maker.fgraph.toposort()
        assert sum(isinstance(n.op, MixtureLogp) for n in nodes) == 1
        assert not any(isinstance(n.op, MixtureRows) for n in nodes)

    def test_a_hessian_is_refused_loudly(self) -> None:
        model = to_pymc(GaussianMixture(2), table("faithful"))
        with pytest.raises(Exception, match=r"(?i)null|not.implemented|second|gradient"):
            model.d2logp()

    def test_data_can_be_changed(self) -> None:
        x = table("faithful")
        model = to_pymc(GaussianMixture(2), x)
        logp = model.compile_logp(vars=model.observed_RVs, mode="FAST_COMPILE")
        at = model.initial_point()
        whole = float(logp(at))
        with model:
            pm.set_data({"x_data": x.to_numpy()[:100]}, coords={"obs": np.arange(100)})
        half = float(logp(at))
        with model:
            pm.set_data({"x_data": x.to_numpy()[100:]}, coords={"obs": np.arange(100, len(x))})
        assert half + float(logp(at)) == pytest.approx(whole, rel=1e-12)


class TestNames:
    def test_dims_and_coords(self) -> None:
        x = table("faithful")
        model = to_pymc(GaussianMixture(3), x)
        dims = {name: tuple(d) for name, d in model.named_vars_to_dims.items()}
        assert dims["weight"] == ("cluster",)
        assert dims["mean"] == ("cluster", "feature")
        assert dims["covariance"] == ("cluster", "feature", "feature_bis")
        assert dims["x"] == dims["x_data"] == ("obs", "feature")
        assert list(model.coords["cluster"]) == [0, 1, 2]
        assert list(model.coords["feature"]) == list(model.coords["feature_bis"]) == list(x)
        assert len(model.coords["obs"]) == len(x)
        assert [rv.name for rv in model.free_RVs] == ["weight", "covariance", "mean"]
        assert [rv.name for rv in model.observed_RVs] == ["x"]

    def test_weights_are_data_too(self) -> None:
        x = table("faithful")
        model = to_pymc(GaussianMixture(2), x, sample_weight=np.full(len(x), 2.0))
        assert "sample_weight" in model.named_vars
        assert tuple(model.named_vars_to_dims["sample_weight"]) == ("obs",)

    def test_columns(self) -> None:
        model = to_pymc(GaussianMixture(2), table("iris"), columns=["Petal_Width", "Sepal_Width"])
        assert list(model.coords["feature"]) == ["Petal_Width", "Sepal_Width"]

    @pytest.mark.parametrize("letters", FAMILIES)
    def test_any_sampler_can_start(self, letters: str) -> None:
        model = parts(letters).model
        start = model.initial_point()
        apart = start["mean"]
        assert len(np.unique(apart[:, 0])) == 2, "components that start equal would stay equal"
        logp = model.compile_logp(mode="FAST_COMPILE")
        assert np.isfinite(logp(start))


class TestRefusals:
    def test_no_prior(self) -> None:
        with pytest.raises(ArgumentError, match="maximum likelihood only") as error:
            to_pymc(GaussianMixture(2, prior=None), table("faithful"))
        assert error.value.argument == "prior"

    def test_flat_means(self) -> None:
        prior = ConjugatePrior(shrinkage=0)
        with pytest.raises(ArgumentError, match="improper") as error:
            to_pymc(GaussianMixture(2, prior=prior), table("faithful"))
        assert error.value.argument == "prior.shrinkage"

    @pytest.mark.parametrize("letters", POLAR)
    def test_polar_families_with_a_separation_prior(self, letters: str) -> None:
        with pytest.raises(ArgumentError, match=letters) as error:
            to_pymc(GaussianMixture(2, letters, "separation"), table("faithful"))
        assert error.value.argument == "prior"

    def test_other_things_than_a_specification(self) -> None:
        with pytest.raises(ArgumentError, match="GaussianMixture") as error:
            to_pymc("VVV", table("faithful"))  # type: ignore[arg-type]
        assert error.value.argument == "spec"

    def test_one_dimension_only(self) -> None:
        with pytest.raises(ArgumentError, match="one column"):
            to_pymc(GaussianMixture(2, "V"), table("faithful"))

    @pytest.mark.parametrize("letters", ["VEI", "EVI", "VEE", "EVV"])
    @pytest.mark.parametrize("scale", [HalfNormal(), InverseGamma()])
    def test_scales_that_cannot_be_split(self, letters: str, scale: Any) -> None:
        spec = GaussianMixture(2, letters, SeparationPrior(scale=scale))
        with pytest.raises(ArgumentError, match="LogNormal") as error:
            to_pymc(spec, table("faithful"))
        assert error.value.argument == "prior.scale"


def _untied(n: int = 40, d: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d))


class TestImproperPosterior:
    def _tied_in(self, columns: list[int], d: int = 2) -> np.ndarray:
        x = _untied(d=d)
        x[7, columns] = x[3, columns]
        return x

    @pytest.mark.parametrize(
        ("letters", "tied"), [("VVV", [1]), ("VVI", [0]), ("VVV", [0, 1]), ("VII", [0, 1])]
    )
    def test_half_normal_scales_and_ties(self, letters: str, tied: list[int]) -> None:
        x = pd.DataFrame(self._tied_in(tied), columns=["a", "b"])
        with pytest.warns(PosteriorWarning, match=r"improper.*LogNormal") as caught:
            to_pymc(GaussianMixture(2, letters, HALF_NORMAL), x)
        assert [w.message.code for w in caught] == ["improper-posterior"]
        assert caught[0].filename == __file__
        if tied != [0, 1]:
            assert f"column {'ab'[tied[0]]!r}" in str(caught[0].message)

    def test_one_dimension(self) -> None:
        with pytest.warns(PosteriorWarning, match="improper"):
            to_pymc(GaussianMixture(2, "V", HALF_NORMAL), self._tied_in([0], d=1))

    def test_a_weight_of_two_is_a_tie(self) -> None:
        weight = np.ones(40)
        weight[5] = 2.0
        with pytest.warns(PosteriorWarning, match="improper"):
            to_pymc(GaussianMixture(2, "VVV", HALF_NORMAL), _untied(), sample_weight=weight)

    @pytest.mark.parametrize(
        ("spec", "tied"),
        [
            (GaussianMixture(2, "VVV", HALF_NORMAL), []),
            (GaussianMixture(2, "VII", HALF_NORMAL), [0]),
            (GaussianMixture(2, "EEE", HALF_NORMAL), [0, 1]),
            (GaussianMixture(1, "VVV", HALF_NORMAL), [0, 1]),
            (GaussianMixture(2, "VVV", "separation"), [0, 1]),
            (GaussianMixture(2, "VVV", SeparationPrior(scale=InverseGamma())), [0, 1]),
            (GaussianMixture(2, "VVV", "conjugate"), [0, 1]),
        ],
        ids=str,
    )
    def test_no_alarm(self, spec: GaussianMixture, tied: list[int]) -> None:
        to_pymc(spec, self._tied_in(tied))  # a warning would be an error

    def test_the_density_near_a_tie(self) -> None:
        """The law behind it: sigma^(1 - m) for m equal values, and bounded for untied ones."""
        x = np.sort(np.random.default_rng(1).normal(size=30))[:, None]

        def log_mass(x: np.ndarray, sigma: float) -> float:
            """Of means within about sigma of the fourth value."""
            offsets = sigma * np.linspace(-6.0, 6.0, 401)
            values = [
                accumulate(
                    x,
                    Parameters(
                        np.array([0.5, 0.5]),
                        np.array([[x[3, 0] + shift], [0.0]]),
                        np.array([[[sigma**2]], [[1.0]]]),
                    ),
                ).loglik
                for shift in offsets
            ]
            return float(logsumexp(values) + np.log(offsets[1] - offsets[0]))

        tied = x.copy()
        tied[4] = tied[3]
        for data, power in ((x, 0.0), (tied, -1.0)):
            gain = log_mass(data, 1e-9) - log_mass(data, 1e-7)
            assert gain == pytest.approx(power * np.log(1e-2), abs=0.05)


class TestPriorPredictive:
    @pytest.mark.parametrize("prior", ["conjugate", "separation"])
    def test_is_the_prior(self, prior: str) -> None:
        x = table("faithful")
        spec = GaussianMixture(2, "VVV", prior)
        model = to_pymc(spec, x)
        draws = pm.sample_prior_predictive(300, model=model, random_seed=1)
        covariance = draws["prior"]["covariance"].to_numpy()[0]
        mean = draws["prior"]["mean"].to_numpy()[0]
        resolved = resolve(spec, read(x, family=spec.covariance, n_components=2))
        rng = np.random.default_rng(2)
        own = np.stack([draw_covariance(resolved, spec.covariance, 2, rng) for _ in range(1000)])
        for statistic in (_log_volume, _first_log_sd, _correlation):
            assert kstest(statistic(covariance), statistic(own)).pvalue > 1e-3
        if prior == "conjugate":
            z = np.sqrt(resolved.shrinkage) * np.linalg.solve(
                np.linalg.cholesky(covariance), (mean - resolved.mean)[..., None]
            )
        else:
            z = (mean - resolved.mean) / resolved.mean_sd
        assert kstest(z.ravel(), "norm").pvalue > 1e-3
        rows = draws["prior_predictive"]["x"]
        assert rows.dims == ("chain", "draw", "obs", "feature")
        assert rows.shape == (1, 300, len(x), 2)
        # Given the parameters, rows are those of the mixture: the mean of all, whitened.
        weight = draws["prior"]["weight"].to_numpy()[0]
        centre = np.einsum("sk,ski->si", weight, mean)
        apart = mean - centre[:, None]
        total = np.einsum("sk,skij->sij", weight, covariance)
        total = total + np.einsum("sk,ski,skj->sij", weight, apart, apart)
        gap = rows.to_numpy()[0].mean(axis=1) - centre
        t = np.sqrt(len(x)) * np.linalg.solve(np.linalg.cholesky(total), gap[..., None])
        assert kstest(t.ravel(), "norm").pvalue > 1e-3


def _log_volume(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.slogdet(covariance)[1].ravel()


def _first_log_sd(covariance: np.ndarray) -> np.ndarray:
    return np.log(covariance[..., 0, 0]).ravel()


def _correlation(covariance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return (covariance[..., 0, 1] / sd[..., 0] / sd[..., 1]).ravel()


class TestEditing:
    def test_potential_do_and_observe(self) -> None:
        x = table("faithful")
        model = to_pymc(GaussianMixture(2), x)
        at = model.initial_point()
        before = float(model.compile_logp(mode="FAST_COMPILE")(at))
        fixed = pm.do(model, {"weight": np.array([0.3, 0.7])})
        assert {rv.name for rv in fixed.free_RVs} == {"covariance", "mean"}
        assert np.isfinite(fixed.compile_logp(mode="FAST_COMPILE")(fixed.initial_point()))
        known = pm.observe(model, {"mean": np.array([[2.0, 55.0], [4.3, 80.0]])})
        assert {rv.name for rv in known.free_RVs} == {"weight", "covariance"}
        assert np.isfinite(known.compile_logp(mode="FAST_COMPILE")(known.initial_point()))
        with model:
            pm.Potential("apart", -0.25 * (model["mean"][0, 0] - 2.0) ** 2)
        after = float(model.compile_logp(mode="FAST_COMPILE")(at))
        wanted = -0.25 * (at["mean"][0, 0] - 2.0) ** 2
        assert after - before == pytest.approx(wanted, abs=1e-9)
