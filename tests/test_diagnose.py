"""Switched labels, unclear labels and different solutions look different, here and in a summary."""

from __future__ import annotations

import json
import warnings
from typing import Any

import arviz as az
import fits
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fits import labelled, permuted, put
from numpy.testing import assert_allclose, assert_array_equal

import bayesgmm as bg
from bayesgmm import labels, tree
from bayesgmm.ambiguity import why_refused
from bayesgmm.display.words import format_table, headline, reasons_of, to_frame
from bayesgmm.errors import ArgumentError, BayesgmmWarning, PosteriorWarning
from bayesgmm.labelfree import label_free

ORDER = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])  # of the components in each chain
X = np.random.default_rng(0).normal(size=(40, 1)) + np.repeat([0.0, 6.0], [25, 15])[:, None]


def arrays(seed: int = 1, draws: int = 400) -> fits.Arrays:
    rng = np.random.default_rng(seed)
    size = (4, draws)
    first = 0.5 + 0.03 * rng.normal(size=size)
    return {
        "weight": np.stack([first, 1.0 - first], axis=-1),
        "mean": np.array([[0.0], [6.0]]) + 0.2 * rng.normal(size=(*size, 2, 1)),
        "covariance": np.exp(0.2 * rng.normal(size=(*size, 2, 1, 1))),
    }


def switched() -> xr.DataTree:
    """Chains that call the same two components differently, put in order."""
    values = arrays()
    order = np.broadcast_to(ORDER[:, None], values["weight"].shape).copy()
    fit = labelled(values, X)
    fit["posterior_raw"] = xr.DataTree(fits.dataset(permuted(values, order), ["x0"], DIMS))
    put(fit, "labels", "permutation", np.argsort(order, axis=-1))
    return fit


DIMS = ("chain", "draw")


def refused(share: float = 0.2, **attrs: Any) -> xr.DataTree:
    """Draws with a share of ambiguous labels."""
    fit = labelled(arrays(), X, **attrs)
    margin = np.ones((4, 400))
    margin.ravel()[: round(share * margin.size)] = 0.01
    put(fit, "labels", "margin", margin)
    return fit


class TestDiagnose:
    def test_numbers_are_arviz_s(self) -> None:
        fit = switched()
        table = bg.diagnose(fit)
        for column, group in (("raw", "posterior_raw"), ("aligned", "posterior")):
            data = fit[group].to_dataset()
            r_hat = az.rhat(data)["mean"].to_numpy()[:, 0]
            assert_allclose(table["r_hat", column].loc[["mean[0, x0]", "mean[1, x0]"]], r_hat)
            for kind, extra in (("bulk", {}), ("tail", {"prob": (0.05, 0.95)})):
                ess = az.ess(data, method=kind, **extra)["weight"].to_numpy()
                found = table[f"ess_{kind}", column].loc[["weight[0]", "weight[1]"]]
                assert_allclose(found, ess, rtol=1e-9)
        free = az.rhat(fit["label_free"].to_dataset())["between"].item()
        assert table.loc["between[x0]", ("r_hat", "label-free")] == pytest.approx(free)

    def test_every_quantity_has_its_columns(self) -> None:
        table = bg.diagnose(switched())
        there = table["r_hat"].notna()
        parameters = [name for name in table.index if "[0" in name or "[1" in name]
        assert len(parameters) == 6
        assert there.loc[parameters, ["raw", "aligned"]].all(axis=None)
        assert not there.loc[parameters, "label-free"].any()
        others = table.index.difference(parameters)
        assert {"mixture_mean[x0]", "log_volume", "weight_entropy"} <= set(others)
        assert there.loc[others, "label-free"].all()
        assert not there.loc[others, ["raw", "aligned"]].any(axis=None)

    def test_switched_labels_are_harmless(self) -> None:
        table = bg.diagnose(switched())
        assert table["r_hat", "raw"].max() > 1.5
        assert table["r_hat", "aligned"].max() < 1.01
        assert table["r_hat", "label-free"].max() < 1.01
        reading = table.attrs["reading"]
        assert reading.endswith("Labels switched, which is harmless: aligned, the chains agree.")
        assert f"raw {table['r_hat', 'raw'].max():.2f} (mean[" in reading
        assert table.attrs["alignment"] == "pivot"
        assert bg.diagnose(refused(0.03)).attrs["ambiguous"] == pytest.approx(0.03)

    def test_chains_in_different_solutions(self) -> None:
        values = arrays()
        values["mean"][3, :, 1] += 1.0
        table = bg.diagnose(labelled(values, X))
        assert table["r_hat", "label-free"].max() > 1.4
        assert "Chains differ in what no labelling changes" in table.attrs["reading"]

    def test_labels_that_cannot_be_told(self) -> None:
        """Aligned wrongly, and unsure: the label-free column alone is good."""
        fit = switched()
        wrong = fit["posterior_raw"].to_dataset()
        fit["posterior"] = xr.DataTree(wrong)
        reading = bg.diagnose(fit).attrs["reading"]
        assert "components have not; sample longer, or see whether another method" in reading
        put(fit, "labels", "margin", np.full((4, 400), 0.01))
        reading = bg.diagnose(fit).attrs["reading"]
        assert "labels are ambiguous in 100.0% of the draws: rely on label-free" in reading

    def test_chains_that_agree_do_not_make_up_for_ambiguous_labels(self) -> None:
        table = bg.diagnose(refused(0.2))
        assert table["r_hat"].max().max() < 1.01
        assert "labels are ambiguous in 20.0% of the draws" in table.attrs["reading"]
        assert bg.diagnose(refused(0.03)).attrs["reading"].endswith("no labels switched.")

    def test_where_nothing_switched_that_is_said(self) -> None:
        reading = bg.diagnose(labelled(arrays(), X)).attrs["reading"]
        assert reading.endswith("Chains agree, and no labels switched.")

    def test_what_cannot_be_computed_is_not_good(self) -> None:
        values = arrays()
        values["covariance"][:, :, 0] = 1.0
        reading = bg.diagnose(labelled(values, X)).attrs["reading"]
        assert "aligned not a number (covariance[0, x0, x0])" in reading
        assert "components have not" in reading

    def test_what_all_components_share_has_no_label(self) -> None:
        values = arrays()
        values["covariance"][:, :, 1] = values["covariance"][:, :, 0]
        fit = labelled(values, X)
        fit.attrs["spec"] = bg.GaussianMixture(2, "E").to_json()
        row = bg.diagnose(fit)["r_hat"].loc["covariance[x0, x0]"]
        assert row.isna().tolist() == [True, True, False]

    def test_one_component_and_one_chain(self) -> None:
        values = {name: a[:1, :, :1] for name, a in arrays().items()}
        values["weight"] = np.ones_like(values["weight"])
        table = bg.diagnose(labelled(values, X))
        assert table["r_hat"][["raw", "aligned"]].isna().all(axis=None)
        assert table.attrs["reading"].startswith("Largest R-hat: label-free ")
        assert table.attrs["reading"].endswith("Chains agree.")

    def test_draws_that_are_no_chains(self) -> None:
        fit = labelled(arrays(), X, draws="independent")
        table = bg.diagnose(fit)
        assert (table["r_hat", "aligned"].dropna() == 1.0).all()
        assert (table["ess_bulk", "label-free"].dropna() == 1600).all()
        assert table.attrs["reading"].startswith("The draws are independent")

    def test_what_is_fixed_is_left_out(self) -> None:
        values = arrays()
        values["weight"][:] = 0.5
        table = bg.diagnose(labelled(values, X, fixed='{"weight": [0.5, 0.5]}'))
        assert {"mean[0, x0]", "between[x0]"} <= set(table.index)
        assert not {"weight[0]", "weight_entropy", "weight_max"} & set(table.index)
        assert "Chains agree" in table.attrs["reading"]

    def test_refusals(self) -> None:
        with pytest.raises(ArgumentError, match=r"^fit: must be a whole fit, with labels"):
            bg.diagnose(fits.em_fit())
        few = labelled(arrays(draws=3), X)
        with pytest.raises(ArgumentError, match=r"^fit: has fewer than four draws"):
            bg.diagnose(few)


class TestSummary:
    def test_ambiguous_components_have_no_means(self) -> None:
        fit = refused()
        with pytest.warns(PosteriorWarning, match=r"20\.0% of the draws have ambiguous labels"):
            table = bg.summary(fit)
        assert list(table.index) == [
            *("mixture_mean[x0]", "mixture_sd[x0]", "log_volume", "between[x0]"),
            *("weight_entropy", "weight_max"),
        ]
        assert table.attrs["note"].endswith("(all: allow_ambiguous=True)")
        assert table.attrs["ambiguous"] == pytest.approx(0.2)
        free = fit["label_free"]["between"].to_numpy()
        assert table.loc["between[x0]", "mean"] == pytest.approx(free.mean())

    def test_they_are_shown_where_that_is_asked_for(self) -> None:
        table = bg.summary(refused(), allow_ambiguous=True)
        sure = bg.summary(labelled(arrays(), X))
        pd.testing.assert_frame_equal(table, sure)
        assert table.attrs["note"] == ""

    @pytest.mark.parametrize(("share", "is_shown"), [(0.0, True), (0.05, True), (0.051, False)])
    def test_the_threshold_is_the_verdict_s(self, share: float, is_shown: bool) -> None:
        assert (why_refused(refused(share)) == "") == is_shown
        margin = refused(share)["labels"]["margin"].to_numpy()
        assert (labels.ambiguous_labels(margin).status != "fail") == is_shown

    def test_what_all_components_share_stays(self) -> None:
        fit = refused()
        fit.attrs["spec"] = bg.GaussianMixture(2, "E").to_json()
        with pytest.warns(PosteriorWarning):
            assert bg.summary(fit).index[0] == "covariance[x0, x0]"

    def test_parts_of_a_fit_are_as_ambiguous_as_the_whole(self) -> None:
        rng = np.random.default_rng(3)
        values = arrays()
        two = {
            "weight": values["weight"],
            "mean": np.concatenate([values["mean"]] * 2, axis=-1),
            "covariance": values["covariance"] * np.eye(2),
        }
        fit = labelled(two, rng.normal(size=(20, 2)))
        put(fit, "labels", "margin", np.full((4, 400), 0.01))
        for part in (bg.marginal(fit, ["x1"]), bg.conditional(fit, {"x0": 3.0})):
            with pytest.warns(PosteriorWarning, match=r"100\.0% of the draws"):
                table = bg.summary(part)
            assert not any(name.startswith("mean[") for name in table.index)
            free = label_free(*(part["posterior"][n].to_numpy() for n in tree.DIMS))
            assert table.loc["between[x1]", "mean"] == pytest.approx(free["between"].mean())


class TestPredictions:
    """What is of single components is refused as in a summary; what has no labels is not."""

    VERBS = (bg.predict_proba, bg.predict, bg.responsibilities)

    @pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
    def test_ambiguous_components_have_no_probabilities(self, verb: Any) -> None:
        with pytest.raises(
            ArgumentError, match=r"^fit: has no .* 20\.0% of the draws .* coclustering or partition"
        ):
            verb(refused(), X)
        found, sure = verb(refused(), X, allow_ambiguous=True), verb(labelled(arrays(), X), X)
        assert_array_equal(
            found.to_array() if hasattr(found, "to_array") else found,
            (sure.to_array() if hasattr(sure, "to_array") else sure),
        )

    @pytest.mark.parametrize(("share", "is_shown"), [(0.0, True), (0.05, True), (0.051, False)])
    def test_the_threshold_is_the_summary_s(self, share: float, is_shown: bool) -> None:
        fit = refused(share)
        if is_shown:
            assert bg.predict(fit, X).nunique() == 2
        else:
            with pytest.raises(ArgumentError, match=r"^fit: has no probabilities"):
                bg.predict(fit, X)

    def test_one_draw_averages_nothing(self) -> None:
        one = refused(1.0).isel(chain=[0], draw=[0], missing_dims="ignore")
        assert bg.predict_proba(one, X).shape == (40, 2)

    def test_what_has_no_labels_is_the_same_whatever_they_are(self) -> None:
        """With the labels of every other draw exchanged: densities, regression, co-clustering."""
        values = arrays(draws=50)
        both = {
            "weight": values["weight"],
            "mean": np.concatenate([values["mean"], 0.5 * values["mean"]], axis=-1),
            "covariance": values["covariance"] * np.array([[1.0, 0.3], [0.3, 1.0]]),
        }
        order = np.broadcast_to([0, 1], (4, 50, 2)).copy()
        order[:, ::2] = [1, 0]
        rows = np.column_stack([X, 0.5 * X[::-1]])
        one, other = labelled(both, rows), labelled(permuted(both, order), rows)
        put(other, "labels", "margin", np.zeros((4, 50)))
        assert_allclose(bg.score(one, rows), bg.score(other, rows), rtol=1e-12)
        for a, b in zip(
            bg.regress(one, rows, ["x1"], covariance=True),
            bg.regress(other, rows, ["x1"], covariance=True),
            strict=True,
        ):
            assert_allclose(a, b, rtol=1e-11)
        assert_allclose(bg.coclustering(one), bg.coclustering(other), rtol=1e-12)
        with pytest.raises(ArgumentError, match=r"^fit: has no probabilities"):
            bg.predict_proba(other, rows)


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return quiet(bg.fit_em, bg.GaussianMixture(2, "V"), X, random_seed=1, n_starts=2)


@pytest.fixture(scope="module")
def post(mle: xr.DataTree) -> xr.DataTree:
    """Draws with ambiguous labels, of the data of the estimate."""
    fit = refused(fingerprint=mle.attrs["fingerprint"])
    fit.attrs["spec"] = bg.GaussianMixture(2, "V").to_json()
    return fit


class TestCompare:
    def test_ambiguous_components_are_not_compared(
        self, mle: xr.DataTree, post: xr.DataTree
    ) -> None:
        found = bg.compare(mle, post)
        own = found.isel(parameter=found["cluster"].to_numpy() >= 0)
        assert own.sizes["parameter"] == 6
        for name in ("mean", "sd", "eti_lower", "z", "sd_ratio", "overlap", "r_hat", "ess_tail"):
            assert own[name].isnull().all()
        assert np.isfinite(own["estimate"]).all()
        assert np.isfinite(own["se"]).all()
        assert not own["agree"].any()
        text = "ambiguous labels (20.0% of draws have a margin below 0.1)"
        assert set(own["reason"].values) == {text}

    def test_what_has_no_label_is_compared(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        found = to_frame(bg.compare(mle, post))
        free = found[found["cluster"] < 0]
        assert list(free.index) == [
            *("mixture_mean[x0]", "mixture_sd[x0]", "log_volume", "between[x0]"),
            *("weight_entropy", "weight_max"),
        ]
        p = tree.point(mle)
        own = label_free(p.weight, p.mean, p.covariance)
        assert free.loc["log_volume", "estimate"] == pytest.approx(float(own["log_volume"]))
        derived = bg.derived(
            mle, lambda q: float(label_free(q.weight, q.mean, q.covariance)["between"][0])
        )
        assert free.loc["between[x0]", "se"] == pytest.approx(derived["se"].iloc[0])
        # The mixture's mean is the sample's, whatever the components: its error is known.
        assert free.loc["mixture_mean[x0]", "estimate"] == pytest.approx(X.mean())
        assert free.loc["mixture_mean[x0]", "se"] == pytest.approx(X.std() / np.sqrt(40), rel=1e-3)

    def test_all_is_compared_where_that_is_asked_for(
        self, mle: xr.DataTree, post: xr.DataTree
    ) -> None:
        found = bg.compare(mle, post, allow_ambiguous=True)
        assert found.sizes["parameter"] == 6
        assert np.isfinite(found["z"]).all()
        assert found.attrs["refused"] == ""

    def test_without_errors_a_note_says_why(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        other = mle.copy()
        del other["standard_error"]
        free = bg.compare(other, post).sel(parameter="log_volume")
        assert np.isnan(free["se"])
        assert "no standard error (none was computed)" in str(free["reason"].values)
        other["standard_error"] = xr.DataTree(
            mle["standard_error"].to_dataset().assign_attrs(method="jackknife", note="")
        )
        reason = str(bg.compare(other, post).sel(parameter="log_volume")["reason"].values)
        assert "no standard error (by 'jackknife' there is none of what has no label)" in reason

    def test_tables_page_and_picture_survive(
        self, mle: xr.DataTree, post: xr.DataTree, tmp_path: Any
    ) -> None:
        found = bg.compare(mle, post)
        assert " of 6 quantities without labels" in headline(found)
        assert "single components are not compared: 20.0% of draws" in headline(found)
        assert next(iter(reasons_of(found))) == "all 6 of single components"
        text = format_table(found)
        assert "aligned by pivot; ambiguous in 20.0% of the draws (margin below 0.1)" in text
        assert "– to –" not in text
        forest = bg.plot_compare(found)
        names = [t.get_text() for t in forest.viz["parameter_label"]["z"].to_numpy()]
        assert names == list(found["label"].values[6:])
        page = bg.report(found, tmp_path / "r.html", mle=mle, post=post).read_text()
        assert "all 6 of single components" in page
        assert "these exchange their roles within them" in page
        again = xr.load_dataset(found.to_netcdf(tmp_path / "c.nc") or tmp_path / "c.nc")
        assert format_table(again) == text

    def test_sure_labels_are_not_mentioned(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        sure = post.copy()
        put(sure, "labels", "margin", np.ones((4, 400)))
        found = bg.compare(mle, sure)
        assert found.sizes["parameter"] == 6
        assert "aligned by" not in format_table(found)
        other = bg.align(sure, "pra")
        assert "aligned by pra; ambiguous in 0.0% of the draws" in format_table(
            bg.compare(mle, other)
        )


@pytest.fixture(scope="module")
def both() -> tuple[xr.DataTree, xr.DataTree]:
    """Four components fitted to one cluster."""
    spec, x = bg.GaussianMixture(4, "V"), np.random.default_rng(0).normal(size=(60, 1))
    mle = quiet(bg.fit_em, spec, x, estimate="map", n_starts=2, random_seed=1)
    sampling = {"draws": 100, "tune": 150, "chains": 2, "progressbar": False}
    return mle, quiet(bg.sample_posterior, spec, x, mle=mle, random_seed=2, **sampling)


class TestFourComponentsOnOneCluster:
    """From data to refusal: nothing in the data says which component is which."""

    def test_it_is_refused_all_the_way(
        self, both: tuple[xr.DataTree, xr.DataTree], tmp_path: Any
    ) -> None:
        mle, post = both
        with warnings.catch_warnings():  # its two chains may also be in unlike modes
            warnings.filterwarnings("ignore", message=".*modes-averaged", category=PosteriorWarning)
            with pytest.warns(PosteriorWarning, match="ambiguous labels"):
                table = bg.summary(post)
        assert table.attrs["ambiguous"] > 0.2
        assert "weight[0]" not in table.index
        found = bg.compare(mle, post)
        free = found.isel(parameter=found["cluster"].to_numpy() < 0)
        assert np.isfinite(free["z"]).all()
        # What no labelling changes is not lost: the data's mean and sd are known well.
        assert abs(free.sel(parameter="mixture_sd[x0]")["z"]) < 1.0
        bg.report(found, tmp_path / "r.html", mle=mle, post=post)
        assert bg.plot_labels(post).to_png()

    def test_no_method_makes_them_sure(self, both: tuple[xr.DataTree, xr.DataTree]) -> None:
        for method in ("pivot", "ecr", "ecr-iterative-1", "ecr-iterative-2", "stephens", "pra"):
            found = quiet(bg.align, both[1], method, random_seed=1)
            assert labels.ambiguous_share(found["labels"]["margin"].to_numpy()) > 0.01, method


class TestPlot:
    def points(self, picture: Any, column: str, chain: int, cluster: int) -> np.ndarray:
        where = {"labels": column, "chain": chain, "cluster": cluster}
        return picture.viz["points"]["draws"].sel(where).item().get_offsets()

    def test_it_shows_the_draws_as_sampled_and_aligned(self) -> None:
        fit = switched()
        picture = bg.plot_labels(fit, "mean[x0]")
        for column, group in (("as sampled", "posterior_raw"), ("aligned", "posterior")):
            for chain, cluster in np.ndindex(4, 2):
                found = self.points(picture, column, chain, cluster)
                draws = fit[group]["mean"].to_numpy()[chain, :, cluster, 0]
                assert_array_equal(found, np.column_stack([np.arange(400), draws]))
        assert "ambiguous" not in picture.viz.children
        assert picture.alt.startswith("Draws of mean[x0] of 2 components in 4 chains")
        assert picture.to_png()[:4] == b"\x89PNG"

    def test_the_parameter_that_tells_components_apart_is_the_default(self) -> None:
        assert bg.plot_labels(switched()).alt.startswith("Draws of mean[x0]")

    def test_ambiguous_draws_are_marked(self) -> None:
        fit = switched()
        margin = np.ones((4, 400))
        margin[1, [3, 7]] = 0.05
        put(fit, "labels", "margin", margin)
        picture = bg.plot_labels(fit)
        marked = picture.viz["ambiguous"]["draws"].sel(chain=1).to_numpy().ravel()
        offsets = np.ma.getdata(marked[0].get_offsets())
        assert_array_equal(offsets[np.isfinite(offsets[:, 0]), 0], [3, 7])

    def test_long_chains_are_thinned_and_many_are_cut(self) -> None:
        values = {n: np.concatenate([a] * 3)[:, :50] for n, a in arrays(draws=50).items()}
        picture = bg.plot_labels(labelled(values, X))
        assert picture.viz["points"]["draws"].sizes["chain"] == 8
        picture = bg.plot_labels(labelled(arrays(draws=2500), X))
        assert len(self.points(picture, "aligned", 0, 0)) == 1000

    def test_the_backend_none_draws_nothing(self) -> None:
        found = bg.plot_labels(switched(), backend="none")
        assert "points" in found.viz.children

    def test_refusals(self) -> None:
        fit = switched()
        with pytest.raises(ArgumentError, match=r"^parameter: must be one of weight, mean\[x0\]"):
            bg.plot_labels(fit, "mean")
        with pytest.raises(ArgumentError, match=r"^backend"):
            bg.plot_labels(fit, backend="plotly")  # type: ignore[arg-type]
        one = labelled({n: a[:, :, :1] for n, a in arrays().items()}, X)
        with pytest.raises(ArgumentError, match=r"^fit: has one component"):
            bg.plot_labels(one)
        with pytest.raises(ArgumentError, match=r"^fit: must be a whole fit"):
            bg.plot_labels(fits.em_fit())


def test_the_permutation_between_the_fits_is_text_that_loads(
    mle: xr.DataTree, post: xr.DataTree
) -> None:
    assert json.loads(bg.compare(mle, post).attrs["permutation"]) in ([0, 1], [1, 0])
