"""What a prior says before sampling: laws by SciPy, random draws, and their pictures agree."""

from __future__ import annotations

import math
import warnings
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import models
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from models import table
from scipy.integrate import quad
from scipy.stats import gamma, invwishart, kstest

import bayesgmm as bg
from bayesgmm.data.observations import read_for
from bayesgmm.errors import ArgumentError, DataError, PosteriorWarning
from bayesgmm.priors.prior_draws import draw_parameters
from bayesgmm.priors.prior_summary import exact_laws
from bayesgmm.resolved import resolve

X = table("iris", 2)
PRIORS: dict[str, Any] = {
    "conjugate": bg.ConjugatePrior(dof=7.0, shrinkage=0.2, weight_concentration=2.0),
    "lognormal": bg.SeparationPrior(mean=[0.0, 1.0]),
    "inverse gamma": bg.SeparationPrior(scale=bg.InverseGamma(3.5, 0.7), correlation=1.4),
    "half-normal": bg.SeparationPrior(scale=bg.HalfNormal(1.5)),
    "hierarchical": bg.SeparationPrior(scale=bg.HierarchicalInverseGamma(3.0, 1.5)),
}
CASES = [
    (letters, name)
    for letters in ("VVV", "EEE", "VVI", "EEI", "VII", "EII", "VEI", "EVV")
    for name in PRIORS
    if letters not in ("VEI", "EVV") or name in ("conjugate", "lognormal")
]


def flat(spec: bg.GaussianMixture, draws: int = 1500) -> dict[str, np.ndarray]:
    """Draws of the rows' quantities, of the first component."""
    found = draw_parameters(spec, resolve(spec, read_for(spec, X)), draws, np.random.default_rng(7))
    a, b = X.columns
    sd = np.sqrt(np.diagonal(found["covariance"][:, 0], axis1=1, axis2=2))
    values = {"weight": found["weight"][:, 0]}
    for j, name in enumerate((a, b)):
        values |= {f"mean[{name}]": found["mean"][:, 0, j], f"sd[{name}]": sd[:, j]}
    values[f"correlation[{a}, {b}]"] = found["covariance"][:, 0, 0, 1] / sd.prod(axis=1)
    return values


class TestLaws:
    @pytest.mark.parametrize(("letters", "name"), CASES)
    def test_closed_forms_are_the_laws_of_the_draws(self, letters: str, name: str) -> None:
        """Kolmogorov's test against uniform: each draw by the quantile function, inverted."""
        spec = bg.GaussianMixture(2, letters, PRIORS[name])
        prior = resolve(spec, read_for(spec, X))
        laws = exact_laws(prior, spec.covariance, 2, tuple(X.columns))
        assert {"weight"} < set(laws) or letters in ("VEI", "EVV")
        draws = flat(spec)
        at = np.linspace(0.0005, 0.9995, 1000)
        for label, law in laws.items():
            place = np.interp(draws[label], law.quantile(at), at, left=0.0, right=1.0)
            assert kstest(place, "uniform").pvalue > 1e-3, label

    @pytest.mark.parametrize("name", PRIORS)
    def test_means_and_sds_are_integrals_of_the_quantiles(self, name: str) -> None:
        spec = bg.GaussianMixture(2, "VVV", PRIORS[name])
        found = bg.prior_summary(spec, X).table
        laws = exact_laws(resolve(spec, read_for(spec, X)), spec.covariance, 2, tuple(X.columns))
        for label, law in laws.items():
            mean = quad(law.quantile, 0.0, 1.0, limit=500)[0]
            assert found.loc[label, "mean"] == pytest.approx(mean, rel=1e-3, abs=1e-6), label
            assert found.loc[label, "q97.5"] == law.quantile(0.975)
            assert found.loc[label, "by"] == "closed form"
            square = quad(lambda p, q=law.quantile: q(p) ** 2, 0.0, 1.0, limit=500)[0]
            assert found.loc[label, "sd"] == pytest.approx(
                math.sqrt(square - mean**2), rel=0.02, abs=1e-3
            ), label

    def test_what_has_no_closed_form_is_drawn(self) -> None:
        """Correlations and determinants of an inverse Wishart, by SciPy's own draws."""
        spec = bg.GaussianMixture(3, "VVV")
        found = bg.prior_summary(spec, X, draws=4000).table
        scale = np.cov(X.to_numpy().T) / 3.0
        sigma = invwishart(4, scale).rvs(20_000, random_state=3)
        r = sigma[:, 0, 1] / np.sqrt(sigma[:, 0, 0] * sigma[:, 1, 1])
        a, b = X.columns
        for label, value in (
            (f"correlation[{a}, {b}]", r),
            ("log_det", np.linalg.slogdet(sigma)[1]),
        ):
            row = found.loc[label]
            assert row["by"] == "draws"
            for q in (0.25, 0.5, 0.75):
                share = (value <= row[f"q{100 * q:g}"]).mean()
                assert share == pytest.approx(q, abs=0.02)

    def test_hierarchical_sds_are_an_integral_over_their_size(self) -> None:
        spec = bg.GaussianMixture(2, "VVI", PRIORS["hierarchical"])
        prior = resolve(spec, read_for(spec, X))
        a, g, h = prior.scale.alpha, prior.scale.shape, prior.scale.rate[0]
        row = bg.prior_summary(spec, X).table.loc[f"sd[{X.columns[0]}]"]
        for q in (0.25, 0.5, 0.975):
            precision = row[f"q{100 * q:g}"] ** -2.0

            def below(size: float, precision: float = precision) -> float:
                return float(
                    gamma.sf(precision, a, scale=1 / size) * gamma.pdf(size, g, scale=1 / h)
                )

            assert quad(below, 0.0, np.inf)[0] == pytest.approx(q, abs=1e-6)


class TestSummary:
    def test_it_is_in_the_units_of_the_data(self) -> None:
        spec = bg.GaussianMixture(2, "VVV", "separation")
        one, other = (bg.prior_summary(spec, x).table for x in (X, 100.0 * X + 7.0))
        sd = [f"sd[{name}]" for name in X.columns]
        columns = ["mean", "sd", "q50", "data"]
        np.testing.assert_allclose(other.loc[sd, columns], 100 * one.loc[sd, columns], rtol=1e-10)
        np.testing.assert_allclose(one.loc[sd, "data"], X.std(ddof=1), rtol=1e-12)
        np.testing.assert_allclose(one.loc["weight", "mean"], 0.5)

    def test_every_number_of_the_prior_is_shown(self) -> None:
        found = bg.prior_summary(bg.GaussianMixture(2, "VVV", PRIORS["hierarchical"]), X)
        numbers = found.hyperparameters.set_index(["hyperparameter", "column"])["value"]
        rate = 10.0 / np.ptp(X.to_numpy(), axis=0) ** 2
        for name, value in zip(X.columns, rate, strict=True):
            key = "standard deviation: HierarchicalInverseGamma rate"
            assert numbers[key, name] == pytest.approx(value, rel=1e-12)
        text = repr(found)
        assert "LKJ" in text
        assert "closed form" in text
        assert "<table" in found._repr_html_()

    def test_rows_without_meaning_are_not_there(self) -> None:
        labels = bg.prior_summary(bg.GaussianMixture(1, "VVI"), X).table.index
        assert "weight" not in labels
        assert not any("correlation" in label for label in labels)
        noisy = bg.prior_summary(bg.GaussianMixture(1, "VVI", noise=True), X).table
        assert noisy.loc["noise_weight", "mean"] == pytest.approx(0.5)

    def test_the_same_seed_gives_the_same_table(self) -> None:
        spec = bg.GaussianMixture(2, "EVE")
        one = bg.prior_summary(spec, X, draws=20, random_seed=4)
        pd.testing.assert_frame_equal(
            one.table, bg.prior_summary(spec, X, draws=20, random_seed=4).table
        )
        other = bg.prior_summary(spec, X, draws=20, random_seed=5).table
        assert other.loc["log_det", "mean"] != one.table.loc["log_det", "mean"]


class TestPredictive:
    def test_rows_come_from_the_draws_of_their_own(self) -> None:
        spec = bg.GaussianMixture(2, "VVV", bg.SeparationPrior(scale=bg.LogNormal(-6.0, 0.01)))
        found = bg.prior_predictive(spec, X, draws=40, random_seed=2)
        prior = found["prior"].to_dataset()
        assert prior.sizes == {"chain": 1, "draw": 40, "cluster": 2, "feature": 2, "feature_bis": 2}
        for j, name in enumerate(X.columns):
            rows = found["prior_predictive"][name].to_numpy()[0]  # all at one of two means
            means = prior["mean"].to_numpy()[0, :, :, j]
            gap = np.abs(rows[:, :, None] - means[:, None, :])
            assert gap.min(axis=2).max() < 6 * np.exp(-6.0) * X[name].std()
            share = (gap.argmin(axis=2) == 0).mean(axis=1)
            weight = prior["weight"].to_numpy()[0, :, 0]
            assert np.abs(share - weight).max() < 4.5 * 0.5 / np.sqrt(len(X))
            np.testing.assert_array_equal(found["observed_data"][name], X[name])
        again = bg.prior_predictive(spec, X, draws=40, random_seed=2)
        for group in found.children:
            xr.testing.assert_identical(found[group].to_dataset(), again[group].to_dataset())

    def test_it_has_noise_where_the_data_are(self) -> None:
        spec = bg.GaussianMixture(1, "VVI", noise=True)
        found = bg.prior_predictive(spec, X, draws=5, random_seed=2)
        assert "noise_weight" in found["prior"]
        assert np.isfinite(found["prior_predictive"][X.columns[0]]).all()

    def test_arviz_takes_it(self, tmp_path: Any) -> None:
        spec = bg.GaussianMixture(2)
        found = bg.prior_predictive(spec, table("faithful"), draws=60, random_seed=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PosteriorWarning)
            fit = bg.sample_posterior(
                spec, table("faithful"), mle=models.maximum(), draws=60, tune=60, random_seed=1
            )
        fit["prior"] = found["prior"]
        az.plot_prior_posterior(fit, var_names=["weight"])
        az.plot_ppc_dist(found, group="prior_predictive", num_samples=20)
        plt.close("all")
        again = bg.load(bg.save(fit, tmp_path / "fit.nc"))
        xr.testing.assert_identical(again["prior"].to_dataset(), found["prior"].to_dataset())


class TestPicture:
    def test_it_shows_the_prior_over_the_data(self) -> None:
        spec = bg.GaussianMixture(2, "VVV", "separation")
        figure = bg.plot_prior(spec, X, draws=400)
        assert len(figure.axes) == 4
        found = bg.prior_summary(spec, X).table
        for f, name in enumerate(X.columns):
            density, sd = figure.axes[f], figure.axes[2 + f]
            assert density.get_xlabel() == name
            mean = next(one for one in density.lines if "predictive" in str(one.get_label()))
            x, y = np.asarray(mean.get_xdata()), np.asarray(mean.get_ydata())
            centre = np.average(x, weights=y)
            assert abs(centre - found.loc[f"mean[{name}]", "mean"]) < 0.5 * X[name].std()
            whole = next(one for one in sd.lines if "whole" in str(one.get_label()))
            np.testing.assert_allclose(whole.get_xdata(), X[name].std(ddof=1))
            own = next(one for one in sd.lines if "component" in str(one.get_label()))
            at, height = np.log(np.asarray(own.get_xdata())), np.asarray(own.get_ydata())
            assert np.trapezoid(height, at) == pytest.approx(1.0, abs=0.02)
            peak = np.exp(at[np.argmax(height)])
            assert peak == pytest.approx(found.loc[f"sd[{name}]", "q50"], rel=0.4)
        assert X.columns[0] in figure.alt
        assert figure.to_png() == bg.plot_prior(spec, X, draws=400).to_png()

    def test_a_single_column_and_many(self) -> None:
        one = bg.plot_prior(bg.GaussianMixture(2, "V"), X.iloc[:, [0]], draws=30)
        assert len(one.axes) == 2
        wide = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 6)), columns=list("abcde$"))
        assert len(bg.plot_prior(bg.GaussianMixture(2, "VVI"), wide, draws=30).axes) == 8


@pytest.mark.parametrize("function", [bg.prior_summary, bg.prior_predictive, bg.plot_prior])
class TestRefusals:
    def test_no_prior(self, function: Any) -> None:
        with pytest.raises(ArgumentError, match="maximum likelihood only") as caught:
            function(bg.GaussianMixture(2, prior=None), X)
        assert caught.value.argument == "prior"

    def test_no_table_and_no_specification(self, function: Any) -> None:
        with pytest.raises(DataError):
            function(bg.GaussianMixture(2), [[1.0, np.nan], [2.0, 3.0]])
        with pytest.raises(ArgumentError, match="must be a GaussianMixture"):
            function("VVV", X)

    @pytest.mark.parametrize("draws", [0, 1.5, True])
    def test_draws_that_are_none(self, function: Any, draws: object) -> None:
        with pytest.raises(ArgumentError) as caught:
            function(bg.GaussianMixture(2), X, draws=draws)
        assert caught.value.argument == "draws"


def test_more_rows_than_memory_are_refused() -> None:
    with pytest.raises(ArgumentError, match="GiB"):
        bg.prior_predictive(bg.GaussianMixture(2), X, draws=10**7)
