"""Leave-one-out by blocks against ArviZ and closed forms; the transform; power-scaling."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from models import posterior, table
from scipy import stats

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, BayesgmmWarning, PosteriorWarning
from bayesgmm.evidence import loo as module
from bayesgmm.evidence.sensitivity import CONFLICT, STRONG

matplotlib.use("Agg")


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **kwargs)


def laplace(k: int, letters: str, x: Any, draws: int = 2000, **options: Any) -> xr.DataTree:
    found: xr.DataTree = quiet(
        bg.fit_laplace,
        options.pop("spec", bg.GaussianMixture(k, letters)),
        x,
        draws=draws,
        random_seed=options.pop("random_seed", 1),
        **options,
    )
    return found


@cache
def one() -> xr.DataTree:
    """One normal component for a few rows of Old Faithful: everything is known of it."""
    return laplace(1, "VVV", table("faithful").iloc[:40], 20_000)


def without(x: np.ndarray, row: int) -> stats._multivariate.multivariate_t_frozen:
    """What the other rows predict under the default prior: Student's t."""
    d = x.shape[1]
    covariance = np.cov(x.T)
    rest = np.delete(x, row, axis=0)
    kappa, nu, m = 0.01, d + 2.0, len(rest)
    centre = rest.mean(axis=0)
    off = centre - x.mean(axis=0)
    scatter = covariance + (rest - centre).T @ (rest - centre)
    scatter += kappa * m / (kappa + m) * np.outer(off, off)
    mean = (kappa * x.mean(axis=0) + m * centre) / (kappa + m)
    dof = nu + m - d + 1.0
    scale = scatter * (kappa + m + 1.0) / ((kappa + m) * dof)
    return stats.multivariate_t(mean, scale, dof)


class TestLoo:
    def test_it_is_arvizs(self) -> None:
        post = posterior()
        found, wanted = bg.loo(post), az.loo(post, var_name="x", pointwise=True)
        assert (found.kind, found.scale, found.warning) == ("loo", "log", wanted.warning)
        for name in ("elpd", "se", "p", "n_samples", "n_data_points", "good_k"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-10), name
        xr.testing.assert_allclose(found.elpd_i, wanted.elpd_i, rtol=1e-10)
        xr.testing.assert_allclose(found.pareto_k, wanted.pareto_k, rtol=1e-10)
        assert float(post["criteria"]["elpd_loo"]) == pytest.approx(wanted.elpd, rel=1e-10)
        assert float(post["criteria"]["elpd_loo_se"]) == pytest.approx(wanted.se, rel=1e-10)

    def test_of_one_component_it_is_the_closed_form(self) -> None:
        x = table("faithful").iloc[:40].to_numpy()
        exact = [without(x, i).logpdf(x[i]) for i in range(len(x))]
        np.testing.assert_allclose(bg.loo(one()).elpd_i, exact, atol=0.02)

    def test_log_likelihoods_need_not_be_kept(self) -> None:
        x = table("faithful")
        kept, not_kept, without_it = (
            laplace(2, "EEE", x, 400, **options)
            for options in ({}, {"log_likelihood": False}, {"loo": False})
        )
        assert "log_likelihood" not in not_kept.children
        for name in ("elpd_loo", "elpd_loo_se", "p_loo", "pareto_k_max", "pareto_k_bad"):
            assert name not in without_it["criteria"]
            assert float(not_kept["criteria"][name]) == pytest.approx(
                float(kept["criteria"][name]), rel=1e-10
            )

    def test_memory_is_a_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same numbers from blocks of three rows, of which there is never a larger one."""
        whole, sizes, plain = bg.loo(one()), [], module.log_likelihoods

        def spy(target: Any, flat: Any) -> Any:
            sizes.append(target.data.n)
            return plain(target, flat)

        monkeypatch.setattr(module, "log_likelihoods", spy)
        monkeypatch.setattr(module, "_BLOCK", 3 * whole.n_samples)
        for threads in (1, 2):
            again = bg.loo(one(), threads=threads)
            np.testing.assert_allclose(again.elpd_i, whole.elpd_i, rtol=1e-12)
        assert set(sizes) == {3, 1}

    def test_a_row_of_weight_w_is_w_rows(self) -> None:
        x = table("faithful").iloc[:60]
        weight = np.resize([1, 2, 0, 3], 60)
        post = laplace(2, "EII", x, sample_weight=weight)
        found = bg.loo(post)
        once = np.divide(post["log_likelihood"]["x"], np.where(weight, weight, 1.0))
        repeated = once.isel(obs=np.repeat(np.arange(60), weight)).drop_vars("obs")
        tree = xr.DataTree.from_dict(
            {
                "/posterior": post["posterior"].to_dataset(),
                "/log_likelihood": xr.Dataset({"x": repeated}),
            }
        )
        wanted = az.loo(tree, var_name="x", pointwise=True)
        for name in ("elpd", "se", "p"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9), name
        assert np.isnan(found.pareto_k.to_numpy()[weight == 0]).all()
        assert (found.elpd_i.to_numpy()[weight == 0] == 0).all()

    @pytest.mark.parametrize("name", ["noise", "missing"])
    def test_whatever_is_known_it_is_arvizs(self, name: str) -> None:
        x = table("faithful").astype(float).iloc[::3].reset_index(drop=True)
        x.iloc[:4] = [[1.0, 95.0], [3.0, 40.0], [6.0, 50.0], [5.5, 45.0]]
        options: dict[str, Any] = {"spec": bg.GaussianMixture(2, "VVI", noise=True)}
        if name == "missing":
            x = x.mask(np.random.default_rng(1).random(x.shape) < 0.1).dropna(how="all")
            options = {"missing": "marginalise", "labels": np.resize([-1, -1, -1, -1], len(x))}
        post = laplace(2, "VVI", x, 500, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            wanted = az.loo(post, var_name="x", pointwise=True)
        found = quiet(bg.loo, post)
        np.testing.assert_allclose(found.elpd_i, wanted.elpd_i, rtol=1e-10)
        np.testing.assert_allclose(found.pareto_k, wanted.pareto_k, rtol=1e-8, atol=1e-8)

    def test_models_are_compared_by_arviz(self) -> None:
        """By the fits themselves and by what `loo` returns of them."""
        x = table("faithful")
        two, three = laplace(2, "VVV", x, 1000), laplace(1, "VVV", x, 1000)
        by_fit = az.compare({"two": two, "one": three}, round_to="none")
        by_loo = az.compare({"two": bg.loo(two), "one": bg.loo(three)}, round_to="none")
        assert list(by_fit.index) == ["two", "one"]
        assert by_fit["elpd_diff"].iloc[1] < -100
        columns = ["elpd", "elpd_diff", "dse", "weight"]
        np.testing.assert_allclose(
            by_fit[columns].astype(float), by_loo[columns].astype(float), rtol=1e-6, atol=1e-6
        )
        assert az.plot_khat(bg.loo(two)) is not None

    def test_a_row_that_carries_too_much_is_named(self) -> None:
        values = np.append(np.random.default_rng(3).normal(size=25), 14.0)
        x = pd.DataFrame({"a": values}, index=[*(f"r{i}" for i in range(25)), "far"])
        post = laplace(1, "V", x)
        with pytest.warns(PosteriorWarning, match=r"(?s)loo-not-good.*far.*bg\.score") as said:
            found = bg.loo(post)
        assert said[0].filename == __file__
        assert found.warning
        assert found.pareto_k.sel(obs="far") > found.good_k

    def test_what_has_no_rows_to_leave_out_is_refused_by_name(self) -> None:
        x = table("faithful")
        mle = bg.fit_em(bg.GaussianMixture(1), x)
        with pytest.raises(ArgumentError, match=r"^post: .*not a maximum-likelihood fit"):
            bg.loo(mle)
        with pytest.raises(ArgumentError, match=r"^post: has fewer than 25 draws"):
            bg.loo(one().isel(draw=slice(0, 10)))
        alike = one().isel(draw=np.zeros(50, int))
        with pytest.raises(ArgumentError, match="all alike"):
            bg.loo(alike)


class TestPit:
    def test_of_one_component_it_is_students(self) -> None:
        x = table("faithful").iloc[:40].to_numpy()
        found = bg.loo_pit(one())["x"]
        assert found.dims == ("obs", "feature")
        for i in range(len(x)):
            law = without(x, i)
            sd = np.sqrt(np.diagonal(law.shape))
            exact = stats.t(law.df, law.loc, sd).cdf(x[i])
            np.testing.assert_allclose(found[i], exact, atol=0.01)

    def test_it_is_arvizs_but_for_the_predictive_draws(self) -> None:
        post = posterior()
        rng = np.random.default_rng(4)
        weight, mean, covariance = (
            post["posterior"][name].to_numpy() for name in ("weight", "mean", "covariance")
        )
        n = post.sizes["obs"] if "obs" in post.sizes else len(table("faithful"))
        z = (rng.random((*weight.shape[:2], n)) > weight[..., :1]).astype(int)
        at = np.ix_(range(4), range(1000))
        index = (at[0][..., None], at[1][..., None], z)
        root = np.linalg.cholesky(covariance)[index]
        rows = mean[index] + (root @ rng.normal(size=(*z.shape, 2, 1)))[..., 0]
        tree = post.copy()
        tree["posterior_predictive"] = xr.DataTree(
            xr.Dataset({"x": (("chain", "draw", "obs", "feature"), rows)})
        )
        for f, name in enumerate(("eruptions", "waiting")):
            part = tree.copy()
            for group in ("observed_data", "posterior_predictive"):
                dataset = part[group].to_dataset().isel(feature=f, drop=True)
                part[group] = xr.DataTree(dataset.drop_vars("obs", errors="ignore"))
            part["log_likelihood"] = xr.DataTree(
                part["log_likelihood"].to_dataset().drop_vars("obs")
            )
            wanted = az.loo_pit(part, var_names="x")["x"]
            found = bg.loo_pit(post)["x"].sel(feature=name)
            np.testing.assert_allclose(found, wanted, atol=0.035)

    def test_it_is_uniform_for_the_model_and_not_for_another(self) -> None:
        rng = np.random.default_rng(5)
        x = np.concatenate([rng.normal(-2.0, 0.6, 150), rng.normal(1.5, 1.0, 250)])
        right, wrong = (
            bg.loo_pit(laplace(k, "V", x[:, None]))["x"].to_numpy().ravel() for k in (2, 1)
        )
        assert stats.kstest(right, "uniform").pvalue > 0.05
        assert stats.kstest(wrong, "uniform").pvalue < 1e-4

    def test_arviz_plots_it(self) -> None:
        pit = xr.DataTree.from_dict({"/loo_pit": bg.loo_pit(one())})
        collection = az.plot_ecdf_pit(pit, group="loo_pit", sample_dims=["obs"])
        drawn = collection.get_target("x", {"feature": "waiting"})
        assert drawn.lines

    def test_missing_values_have_none_and_labels_are_given(self) -> None:
        x = table("faithful").iloc[::2].reset_index(drop=True)
        x.iloc[3, 1] = np.nan
        short = (x["eruptions"] < 3.0).to_numpy()
        label = np.where(short, 0, 1)
        known = laplace(2, "VVV", x, missing="marginalise", labels=label)
        found = bg.loo_pit(known)["x"]
        assert np.isnan(found[3, 1])
        assert int(np.isnan(found).sum()) == 1
        # Of each component alone, since the rows' labels say which.
        for part in (short, ~short):
            assert stats.kstest(found[part, 0], "uniform").pvalue > 1e-4
            assert found[part, 0].min() < 0.1
            assert found[part, 0].max() > 0.9


@contextmanager
def no_log() -> Iterator[None]:
    """ArviZ writes what it diagnoses to a log, too."""
    import logging

    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class TestSensitivity:
    def test_it_is_arvizs(self) -> None:
        """Which works on the fit as it is; rows that are twice in a matrix are once in ours."""
        post = posterior()
        with no_log():
            wanted = az.psense_summary(post, round_to=12)
        found = bg.sensitivity(post)
        both = [name for name in found.index if name in wanted.index]
        assert len(both) == 2 + 4 + 6
        columns = ["prior", "likelihood"]
        np.testing.assert_allclose(found.loc[both, columns], wanted.loc[both, columns], atol=1e-9)
        assert {"mixture_mean[waiting]", "log_volume", "weight_entropy"} <= set(found.index)
        assert az.plot_psense_dist(post, var_names=["weight"]) is not None

    def test_parts_of_the_prior_are_the_prior(self) -> None:
        group = posterior()["log_prior"].to_dataset()
        total = group["weight"] + group["mean"] + group["covariance"]
        stored = posterior()["sample_stats"]["log_prior"]
        np.testing.assert_allclose(total, stored, rtol=1e-12)
        assert float(np.ptp(group["weight"].to_numpy())) == 0.0  # uniform
        assert "prior of weight" not in bg.sensitivity(posterior())

    def test_log_likelihoods_need_not_be_kept(self) -> None:
        x = table("faithful")
        kept, not_kept = (laplace(2, "EEE", x, 400, log_likelihood=b) for b in (True, False))
        pd.testing.assert_frame_equal(
            bg.sensitivity(kept), bg.sensitivity(not_kept), rtol=1e-5, atol=1e-7
        )

    @pytest.mark.parametrize(
        ("shrinkage", "location", "wanted"),
        [(0.01, 0.0, ""), (40.0, 3.0, CONFLICT), (1000.0, 0.0, STRONG)],
    )
    def test_words_for_what_a_prior_does(
        self, shrinkage: float, location: float, wanted: str
    ) -> None:
        """A mean that the data know, that they contest, and that only the prior knows."""
        x = np.random.default_rng(6).normal(size=(40, 1))
        prior = bg.ConjugatePrior(shrinkage=shrinkage, mean=location)
        post = laplace(1, "V", x, 4000, spec=bg.GaussianMixture(1, "V", prior))
        table_ = bg.sensitivity(post)
        assert table_.loc["mean[0, x0]", "diagnosis"] == wanted
        if wanted == STRONG:
            assert table_.loc["mean[0, x0]", "prior of mean"] > 0.05

    def test_ambiguous_components_are_left_out(self) -> None:
        post = posterior().copy(deep=True)
        margin = post["labels"]["margin"]
        post["labels"] = xr.DataTree(post["labels"].to_dataset().assign(margin=0.0 * margin))
        with pytest.warns(PosteriorWarning, match=r"100\.0% of the draws have ambiguous labels"):
            found = bg.sensitivity(post)
        assert not any(name.startswith(("weight[", "mean[", "cov")) for name in found.index)
        assert {"mixture_mean[waiting]", "weight_entropy"} <= set(found.index)
        assert found.attrs["note"].endswith("(all: allow_ambiguous=True)")
        everything = bg.sensitivity(post, allow_ambiguous=True)
        pd.testing.assert_frame_equal(everything, bg.sensitivity(posterior()))

    def test_what_has_no_prior_is_refused_by_name(self) -> None:
        mle = bg.fit_em(bg.GaussianMixture(1), table("faithful"))
        boot = quiet(bg.bootstrap, mle, draws=30, random_seed=1)
        with pytest.raises(ArgumentError, match=r"^post: must be a posterior"):
            bg.sensitivity(boot)
        with pytest.raises(ArgumentError, match=r"^threshold: "):
            bg.sensitivity(one(), threshold=2.0)
