"""Pictures show the numbers of the comparison, and leave no trace in matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import arviz as az
import fits
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import chi2

from bayesgmm.display.comparison import compare
from bayesgmm.display.forest import Collection, plot_compare
from bayesgmm.display.plots import ellipse, plot_density
from bayesgmm.errors import ArgumentError

FEATURES = ("eruptions", "waiting")


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return fits.em_fit(order=(1, 0))


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.nuts_fit()


@pytest.fixture(scope="module")
def comparison(mle: xr.DataTree, post: xr.DataTree) -> xr.Dataset:
    return compare(mle, post)


def collections(ax: Axes) -> list[LineCollection]:
    return [c for c in ax.collections if isinstance(c, LineCollection)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def column(forest: Collection, name: str) -> Axes:
    return forest.get_target("z", {"column": name})


def drawn(forest: Collection, visual: str, model: str) -> list[Any]:
    """The artists of one fit, in the order of the rows; None where nothing was drawn."""
    return list(forest.viz[visual]["z"].sel(model=model).to_numpy())


class TestForest:
    def test_it_is_arviz_s(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        assert isinstance(forest, az.PlotCollection)
        assert forest.backend == "matplotlib"
        assert {"twig", "point_estimate", "parameter_label", "values"} <= set(forest.viz.children)
        assert isinstance(forest.figure, Figure)

    def test_interval_ends_are_the_comparison_s(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        mean, sd = comparison["mean"].values, comparison["sd"].values
        for model, kind in (("posterior", "eti"), ("estimate", "wald")):
            ends = np.array([line.get_xdata() for line in drawn(forest, "twig", model)])
            for i, side in enumerate(("lower", "upper")):
                shown = ends[:, i] * sd + mean
                np.testing.assert_allclose(shown, comparison[f"{kind}_{side}"].values)

    def test_points_are_the_centres(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        posterior, estimate = (
            np.array([p.get_offsets()[0, 0] for p in drawn(forest, "point_estimate", model)])
            for model in ("posterior", "estimate")
        )
        np.testing.assert_array_equal(posterior, np.zeros(12))
        np.testing.assert_allclose(estimate, comparison["z"])

    def test_one_named_row_per_parameter(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        names = forest.viz["parameter_label"]["z"].to_numpy()
        assert [t.get_text() for t in names] == list(comparison["label"].values)
        height = np.array([t.get_position()[1] for t in names])
        assert (np.diff(height) < 0).all()  # the first row is at the top
        posterior, estimate = (
            [line.get_ydata()[0] for line in drawn(forest, "twig", model)]
            for model in ("posterior", "estimate")
        )
        np.testing.assert_allclose(0.5 * np.add(posterior, estimate), height)
        low, high = column(forest, "forest").get_ylim()
        assert low < height.min() - 0.5 < height.max() + 0.5 < high

    def test_all_is_on_one_axis(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        for visual in ("twig", "point_estimate"):
            axes = {artist.axes for artist in forest.viz[visual]["z"].to_numpy().ravel()}
            assert axes == {column(forest, "forest")}

    def test_kind_and_level_of_the_intervals_are_said(
        self, mle: xr.DataTree, post: xr.DataTree
    ) -> None:
        forest = plot_compare(compare(mle, post, ci_prob=0.8))
        assert any("mean, 80 % ETI" in text for text in legend(forest.figure))
        assert any("80 % Wald interval" in text for text in legend(forest.figure))
        assert "posterior standard deviations" in column(forest, "forest").get_xlabel()

    def test_the_values_stand_beside(self, comparison: xr.Dataset) -> None:
        forest = plot_compare(comparison)
        assert column(forest, "values").get_title("left") == "in units of the data"
        values = drawn(forest, "values", "estimate")
        assert values[0].get_text() == "0.644 (0.587, 0.701)"
        assert len(values) == 12
        line = drawn(forest, "twig", "estimate")[0]
        assert values[0].get_position()[1] == line.get_ydata()[0]
        assert values[0].get_color() == line.get_color()

    def test_what_differs_is_bold_and_in_the_alternative_text(self, mle: xr.DataTree) -> None:
        def shift(flat: np.ndarray) -> np.ndarray:
            return flat + np.eye(11)[2] * 20.0  # far beyond the axis

        forest = plot_compare(compare(mle, fits.nuts_fit(shift=shift)))
        names = forest.viz["parameter_label"]["z"].to_numpy()
        bold = [t.get_text() for t in names if t.get_fontweight() == "bold"]
        assert bold == ["mean[0, waiting]"]
        assert "They differ in mean[0, waiting]." in forest.alt
        ax = column(forest, "forest")
        assert "bold: the fits differ" in ax.get_xlabel()
        assert -9 < ax.get_xlim()[0] < -8
        arrows = drawn(forest, "beyond_axis", "estimate")
        row = [t.get_text() for t in names].index(bold[0])
        assert [i for i, arrow in enumerate(arrows) if arrow is not None] == [row]
        assert arrows[row].get_offsets()[0, 0] == -8.0
        assert drawn(forest, "point_estimate", "estimate")[row] is None

    def test_no_standard_errors_draw_no_interval(self, post: xr.DataTree) -> None:
        mle = fits.em_fit()
        del mle["standard_error"]
        forest = plot_compare(compare(mle, post))
        assert drawn(forest, "twig", "estimate") == [None] * 12
        assert None not in drawn(forest, "point_estimate", "estimate")
        assert drawn(forest, "values", "estimate")[0].get_text().endswith("(–, –)")
        assert forest.to_png()

    def test_of_very_many_parameters_those_that_differ_most(self) -> None:
        mle, post = (fits.many_dimensional(10, draws=n) for n in (0, 50))
        found = compare(mle, post)
        assert found.sizes["parameter"] > 60
        forest = plot_compare(found)
        shown = [t.get_text() for t in forest.viz["parameter_label"]["z"].to_numpy()]
        assert len(shown) == 60
        size = np.maximum(np.abs(found["z"]), np.abs(np.log(found["sd_ratio"])))
        assert found["label"].values[int(size.values.argmax())] in shown
        title = column(forest, "forest").get_title()
        assert title == "the 60 of 88 parameters that differ most"

    def test_names_that_are_alike_when_shortened(self) -> None:
        names = ("x" * 60 + "1", "x" * 60 + "2")
        found = compare(fits.em_fit(features=names), fits.nuts_fit(features=names, draws=20))
        shown = plot_compare(found).viz["parameter_label"]["z"].to_numpy()
        assert len({t.get_position() for t in shown}) == 12

    def test_no_backend_draws_nothing(self, comparison: xr.Dataset) -> None:
        described = plot_compare(comparison, backend="none")
        line = described.viz["twig"]["z"].sel(model="estimate").to_numpy()[0]
        mean, sd = (comparison[name].values[0] for name in ("mean", "sd"))
        ends = [comparison[f"wald_{side}"].values[0] for side in ("lower", "upper")]
        np.testing.assert_allclose(np.asarray(line["x"]) * sd + mean, ends)

    def test_any_other_backend(self, comparison: xr.Dataset) -> None:
        with pytest.raises(ArgumentError, match=r"^backend: must be 'matplotlib' or 'none'"):
            plot_compare(comparison, backend="gnuplot")  # type: ignore[arg-type]


class TestDensity:
    def test_one_dimension(self) -> None:
        mle, post = (fits.one_dimensional(3, draws=n) for n in (0, 100))
        figure = plot_density(mle, post)
        (ax,) = figure.axes
        assert ax.get_xlabel() == "velocity"
        assert ax.get_ylabel() == "density"
        posterior, estimate = (line for line in ax.lines if len(line.get_xdata()) == 400)
        at = posterior.get_xdata()

        def density(fit: xr.DataTree) -> np.ndarray:
            p = fit["posterior"].to_dataset().stack(s=("chain", "draw")).transpose("s", ...)
            sd = np.sqrt(p["covariance"].values[:, :, 0, 0, None])
            z = (at - p["mean"].values[:, :, :1]) / sd
            each = np.exp(-0.5 * z**2) / (sd * np.sqrt(2 * np.pi))
            return (p["weight"].values[:, :, None] * each).sum(axis=1)

        np.testing.assert_allclose(estimate.get_ydata(), density(mle)[0])
        # The picture takes 200 evenly spaced draws of the 400.
        np.testing.assert_allclose(posterior.get_ydata(), density(post).mean(axis=0), rtol=0.05)
        assert {"data", "posterior density, 95 % ETI"} <= set(legend(figure))

    def test_two_dimensions(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        figure = plot_density(mle, post, n_draws=50)
        (ax,) = figure.axes
        assert (ax.get_xlabel(), ax.get_ylabel()) == FEATURES
        many, one = collections(ax)
        assert len(many.get_segments()) == 50 * 2
        assert len(one.get_segments()) == 2
        points = next(line for line in ax.lines if line.get_marker() == ".")
        np.testing.assert_array_equal(points.get_xydata(), fits.faithful().to_numpy())
        assert "50 draws, 95 % of each component" in legend(figure)

    def test_more_dimensions_show_the_first_four_in_pairs(self) -> None:
        mle, post = (fits.many_dimensional(5, draws=n) for n in (0, 20))
        figure = plot_density(mle, post, n_draws=10)
        assert len(figure.axes) == 4 + 6
        assert figure.get_supxlabel() == "the first 4 of 5 features"
        assert sum(bool(collections(ax)) for ax in figure.axes) == 6
        assert len(legend(figure)) == len(set(legend(figure)))

    def test_fewer_draws_than_asked_for(self, mle: xr.DataTree) -> None:
        post = fits.nuts_fit(chains=2, draws=4)
        many, _ = collections(plot_density(mle, post).axes[0])
        assert len(many.get_segments()) == 8 * 2

    def test_weights_count_in_the_histogram(self) -> None:
        mle, post = (fits.one_dimensional(1, draws=n) for n in (0, 20))
        x = post["observed_data"]["x"].values[:, 0]
        post["constant_data"]["sample_weight"] = xr.DataArray(
            (x == x.max()).astype(float), dims="obs"
        )
        heights = [patch.get_height() for patch in plot_density(mle, post).axes[0].patches]
        assert np.count_nonzero(heights) == 1

    @pytest.mark.parametrize("n_draws", [0, -1])
    def test_no_draws(self, mle: xr.DataTree, post: xr.DataTree, n_draws: int) -> None:
        with pytest.raises(ArgumentError, match="n_draws"):
            plot_density(mle, post, n_draws=n_draws)

    def test_other_features(self, mle: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match="features"):
            plot_density(mle, fits.nuts_fit(features=("a", "b"), draws=5))

    def test_draws_in_the_place_of_the_estimate(self, post: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match=r"^mle: has draws"):
            plot_density(post, post)


def test_an_ellipse_holds_its_share() -> None:
    mean, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
    outline = ellipse(mean, covariance, 0.9) - mean
    distance = np.einsum("pi,ij,pj->p", outline, np.linalg.inv(covariance), outline)
    np.testing.assert_allclose(distance, chi2.ppf(0.9, 2))
    np.testing.assert_allclose(outline[0], outline[-1])


@pytest.mark.parametrize("names", [("a$b", "$x"), ("<b>", "_" * 300), ("\n\t", "\x1b[2J")])
def test_any_column_name_is_text(names: tuple[str, str]) -> None:
    mle, post = fits.em_fit(features=names), fits.nuts_fit(features=names, draws=20)
    assert plot_density(mle, post, n_draws=5).to_png()
    assert plot_compare(compare(mle, post)).to_png()


@pytest.mark.parametrize("interactive", [False, True])
def test_no_trace_in_matplotlib(
    comparison: xr.Dataset, mle: xr.DataTree, post: xr.DataTree, interactive: bool
) -> None:
    with plt.ion() if interactive else plt.ioff():
        mine, _ = plt.figure(), plt.figure()
        plt.figure(mine)  # not the latest one
        before, open_before = dict(mpl.rcParams), plt.get_fignums()
        plot_compare(comparison).to_png()
        plot_density(mle, post).to_png()
        assert dict(mpl.rcParams) == before
        assert plt.get_fignums() == open_before
        assert plt.gcf() is mine
        plt.close("all")


def test_the_user_s_style_of_arviz_stays(comparison: xr.Dataset) -> None:
    with az.rc_context({"plot.backend": "none", "stats.ci_kind": "hdi"}):
        assert plot_compare(comparison).backend == "matplotlib"
        assert az.rcParams["plot.backend"] == "none"


def test_a_forest_is_saved(comparison: xr.Dataset, tmp_path: Path) -> None:
    forest = plot_compare(comparison)
    for suffix in ("png", "svg", "pdf"):
        forest.savefig(tmp_path / f"forest.{suffix}")
        assert (tmp_path / f"forest.{suffix}").stat().st_size > 1000


def test_a_notebook_shows_a_picture(comparison: xr.Dataset) -> None:
    forest = plot_compare(comparison, figsize=(6.0, 5.0))
    data = forest._repr_png_()
    assert Image.open(io.BytesIO(data)).size == (780, 650)
    assert data == plot_compare(comparison, figsize=(6.0, 5.0)).to_png()
    assert forest.alt.startswith("Forest plot of 12 parameters")
    assert forest._repr_html_() is None  # else a notebook would take that
