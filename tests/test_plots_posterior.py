"""Pictures of what draws give show its numbers, and leave no trace in matplotlib."""

from __future__ import annotations

import fits
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import LineCollection

import bayesgmm as bg
from bayesgmm.errors import ArgumentError


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.one_dimensional(3, draws=50)


class TestCoclustering:
    def test_the_matrix_is_ordered_by_the_partition(self) -> None:
        post = fits.nuts_fit(draws=25)
        figure = bg.plot_coclustering(post, random_seed=1)
        image = figure.axes[0].images[0]
        shown = np.asarray(image.get_array())
        matrix = bg.coclustering(post).to_numpy()
        np.testing.assert_allclose(np.sort(shown, axis=None), np.sort(matrix, axis=None))
        np.testing.assert_array_equal(shown, shown.T)
        label = bg.partition(post, random_seed=1).labels.to_numpy()
        first = np.count_nonzero(label == 0)
        assert shown[:first, :first].mean() > 0.95
        assert shown[:first, first:].mean() < 0.05
        # The surest rows of a cluster come first.
        inside = shown[:first, :first].mean(axis=1)
        assert (np.diff(inside) <= 1e-12).all()
        lines = [line.get_ydata()[0] for line in figure.axes[0].lines]
        assert first - 0.5 in lines
        assert image.get_clim() == (0.0, 1.0)
        assert f"clusters of {first}, {272 - first}" in figure.alt

    def test_few_rows_have_their_names(self, post: xr.DataTree) -> None:
        x = pd.DataFrame(
            {"velocity": np.linspace(-1, 3, 8)}, index=[f"${i}$ row" for i in range(8)]
        )
        figure = bg.plot_coclustering(post, x, random_seed=1)
        names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert sorted(names) == sorted(x.index)
        assert figure.to_png()
        assert not bg.plot_coclustering(post, random_seed=1).axes[0].get_yticklabels()

    def test_some_rows_in_the_partition_of_all(self, post: xr.DataTree) -> None:
        figure = bg.plot_coclustering(post, rows=[50, 3, 20], loss="binder", random_seed=1)
        shown = np.asarray(figure.axes[0].images[0].get_array())
        matrix = bg.coclustering(post, rows=[50, 3, 20]).to_numpy()
        np.testing.assert_allclose(np.sort(shown, axis=None), np.sort(matrix, axis=None))
        assert "3 rows" in figure.alt
        assert "binder" in figure.alt

    def test_a_point_estimate_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match=r"^fit: is a point estimate"):
            bg.plot_coclustering(fits.em_fit())


class TestResponsibilities:
    def test_points_and_intervals_are_those_of_the_numbers(self, post: xr.DataTree) -> None:
        figure = bg.plot_responsibilities(post, ci_prob=0.8)
        (ax,) = figure.axes
        found = bg.responsibilities(post, ci_prob=0.8)
        best = found["mean"].argmax("cluster")
        points = np.concatenate([line.get_ydata() for line in ax.lines])
        np.testing.assert_allclose(np.sort(points), np.sort(found["mean"].max("cluster")))
        ends = np.concatenate(
            [
                [segment[:, 1] for segment in lines.get_segments()]
                for lines in ax.collections
                if isinstance(lines, LineCollection)
            ]
        )
        for i, name in enumerate(("eti_lower", "eti_upper")):
            own = found[name].isel(cluster=best)
            np.testing.assert_allclose(np.sort(ends[:, i]), np.sort(own))
        for line in ax.lines:
            assert (np.diff(line.get_ydata()) <= 0).all()
        markers = [line.get_marker() for line in ax.lines]
        assert len(set(markers)) == len(markers)
        assert "80 %" in ax.get_ylabel()
        assert "60 rows" in figure.alt

    def test_few_rows_have_their_names(self, post: xr.DataTree) -> None:
        figure = bg.plot_responsibilities(post, [[0.0], [2.0]])
        assert len(figure.axes[0].get_xticklabels()) == 2
        assert figure.to_png()


def test_no_trace_in_matplotlib(post: xr.DataTree) -> None:
    before, open_before = dict(mpl.rcParams), plt.get_fignums()
    bg.plot_coclustering(post, random_seed=1).to_png()
    bg.plot_responsibilities(post).to_png()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_before
