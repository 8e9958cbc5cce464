"""Pictures show the numbers of the comparison, and leave no trace in matplotlib."""

from __future__ import annotations

import io

import fits
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from PIL import Image
from scipy.stats import chi2

from bayesgmm.comparison import compare
from bayesgmm.errors import ArgumentError
from bayesgmm.plots import Picture, ellipse, plot_compare, plot_density

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


def legend(figure: Picture) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestForest:
    def test_interval_ends_are_the_comparison_s(self, comparison: xr.Dataset) -> None:
        ax = plot_compare(comparison).axes[0]
        mean, sd = comparison["mean"].values, comparison["sd"].values
        for lines, kind in zip(collections(ax), ("eti", "wald"), strict=True):
            ends = np.array([segment[:, 0] for segment in lines.get_segments()])
            for column, side in enumerate(("lower", "upper")):
                shown = ends[:, column] * sd + mean
                np.testing.assert_allclose(shown, comparison[f"{kind}_{side}"].values)

    def test_points_are_the_centres(self, comparison: xr.Dataset) -> None:
        ax = plot_compare(comparison).axes[0]
        posterior, estimate = (line for line in ax.lines if line.get_marker() in "oD")
        np.testing.assert_array_equal(posterior.get_xdata(), np.zeros(12))
        np.testing.assert_allclose(estimate.get_xdata(), comparison["z"])

    def test_one_named_row_per_parameter(self, comparison: xr.Dataset) -> None:
        ax = plot_compare(comparison).axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == list(comparison["label"].values)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is at the top

    def test_kind_and_level_of_the_intervals_are_said(
        self, mle: xr.DataTree, post: xr.DataTree
    ) -> None:
        figure = plot_compare(compare(mle, post, ci_prob=0.8))
        assert any("mean, 80 % ETI" in text for text in legend(figure))
        assert any("80 % Wald interval" in text for text in legend(figure))
        assert "posterior standard deviations" in figure.axes[0].get_xlabel()

    def test_the_values_stand_beside(self, comparison: xr.Dataset) -> None:
        texts = [t.get_text() for t in plot_compare(comparison).axes[1].texts]
        assert "mean (95 % ETI)" in texts
        assert "0.644 (0.587, 0.701)" in texts
        assert len(texts) == 2 * (1 + 12)

    def test_what_differs_is_bold_and_in_the_alternative_text(self, mle: xr.DataTree) -> None:
        def shift(flat: np.ndarray) -> np.ndarray:
            return flat + np.eye(11)[2] * 20.0  # far beyond the axis

        figure = plot_compare(compare(mle, fits.nuts_fit(shift=shift)))
        ax = figure.axes[0]
        bold = [t.get_text() for t in ax.get_yticklabels() if t.get_fontweight() == "bold"]
        assert bold == ["mean[0, waiting]"]
        assert "They differ in mean[0, waiting]." in figure.alt
        assert [line.get_marker() for line in ax.lines if len(line.get_xdata())][-1] == "<"
        assert -9 < ax.get_xlim()[0] < -8

    def test_no_standard_errors_draw_no_interval(self, post: xr.DataTree) -> None:
        mle = fits.em_fit()
        del mle["standard_error"]
        figure = plot_compare(compare(mle, post))
        wald = collections(figure.axes[0])[1]
        assert np.concatenate(wald.get_segments()).size == 0
        assert figure.to_png()

    def test_of_very_many_parameters_those_that_differ_most(self) -> None:
        mle, post = (fits.many_dimensional(10, draws=n) for n in (0, 50))
        found = compare(mle, post)
        assert found.sizes["parameter"] > 60
        ax = plot_compare(found).axes[0]
        shown = [t.get_text() for t in ax.get_yticklabels()]
        assert len(shown) == 60
        size = np.maximum(np.abs(found["z"]), np.abs(np.log(found["sd_ratio"])))
        assert found["label"].values[int(size.values.argmax())] in shown
        assert ax.get_title() == "the 60 of 88 parameters that differ most"


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


def test_no_trace_in_matplotlib(
    comparison: xr.Dataset, mle: xr.DataTree, post: xr.DataTree
) -> None:
    before, open_before = dict(mpl.rcParams), plt.get_fignums()
    plot_compare(comparison).to_png()
    plot_density(mle, post).to_png()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_before


def test_a_notebook_shows_a_picture(comparison: xr.Dataset) -> None:
    figure = plot_compare(comparison, figsize=(6.0, 5.0))
    data = figure._repr_png_()
    assert Image.open(io.BytesIO(data)).size == (780, 650)
    assert data == plot_compare(comparison, figsize=(6.0, 5.0)).to_png()
    assert figure.alt.startswith("Forest plot of 12 parameters")
