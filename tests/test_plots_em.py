"""Pictures of the search for a maximum show the numbers of the table and of the starts."""

from __future__ import annotations

import warnings
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import registry
import xarray as xr
from matplotlib.axes import Axes

import bayesgmm as bg
from bayesgmm.display.plots import Picture
from bayesgmm.display.plots_em import plot_convergence, plot_select
from bayesgmm.errors import ArgumentError
from bayesgmm.inference.selection import Selection

FAITHFUL = registry.table("faithful")


def table(families: tuple[str, ...] = ("EEE", "VVV"), sizes: int = 4) -> pd.DataFrame:
    """A table as `select` makes it, from numbers of no fit."""
    index = pd.MultiIndex.from_product(
        [families, range(1, sizes + 1)], names=["covariance", "n_components"]
    )
    rng = np.random.default_rng(1)
    columns = {name: 100.0 + rng.normal(size=len(index)) for name in ("bic", "icl", "aic")}
    found = pd.DataFrame(columns | {"status": "ok", "reason": ""}, index=index)
    found.attrs["criterion"] = "bic"
    return found


def line(ax: Axes, label: str):
    return next(one for one in ax.lines if one.get_label() == label)


def legend(figure: Picture) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestSelect:
    def test_every_family_is_a_line_of_its_criterion(self) -> None:
        found = table()
        for name in ("bic", "icl", "aic"):
            figure = plot_select(found, criterion=name)
            (ax,) = figure.axes
            for letters in ("EEE", "VVV"):
                drawn = line(ax, letters)
                np.testing.assert_array_equal(drawn.get_xdata(), [1, 2, 3, 4])
                np.testing.assert_array_equal(drawn.get_ydata(), found.loc[letters][name])
            assert ax.get_ylabel() == f"{name.upper()} (smaller is better)"

    def test_the_best_is_marked_and_named(self) -> None:
        found = table()
        figure = plot_select(found.sample(frac=1.0, random_state=2))  # in any order
        letters, k = found["bic"].idxmin()
        assert line(figure.axes[0], "best").get_xydata().tolist() == [[k, found["bic"].min()]]
        assert f"The best is {letters} with {k} components" in figure.alt

    def test_what_failed_is_hollow_and_not_the_best(self) -> None:
        found = table()
        key = found["bic"].idxmin()
        found.loc[key, "status"] = "fail"
        figure = plot_select(found)
        (ax,) = figure.axes
        assert line(ax, "best").get_ydata()[0] == found.drop(key)["bic"].min()
        (hollow,) = (
            one
            for one in ax.lines
            if one.get_markerfacecolor() == "white" and np.isfinite(one.get_ydata()).any()
        )
        (at,) = np.flatnonzero(np.isfinite(hollow.get_ydata()))
        assert [hollow.get_xdata()[at], hollow.get_ydata()[at]] == [key[1], found.loc[key, "bic"]]
        assert "not to be relied on" in legend(figure)

    def test_what_has_no_fit_is_a_cross_at_the_edge(self) -> None:
        found = table()
        found.loc[("VVV", 4), ["bic", "status"]] = [np.nan, "fail"]
        figure = plot_select(found)
        (ax,) = figure.axes
        (cross,) = (one for one in ax.lines if one.get_marker() == "x" and len(one.get_xdata()))
        assert cross.get_xydata().tolist() == [[4, 1.0]]
        assert cross.get_transform() == ax.get_xaxis_transform()
        assert cross.get_color() == line(ax, "VVV").get_color()
        assert "1 could not be fitted" in figure.alt
        assert "no fit" in legend(figure)

    def test_if_all_failed_none_is_the_best(self) -> None:
        found = table()
        found["status"], found["bic"] = "fail", np.nan
        figure = plot_select(found)
        assert "None has a fit that can be relied on. 8 could not be fitted" in figure.alt
        assert "best" not in legend(figure)
        assert figure.to_png()

    def test_fourteen_families_can_be_told_apart(self) -> None:
        figure = plot_select(table(bg.covariance.FAMILIES, 2))
        shown = [line(figure.axes[0], letters) for letters in bg.covariance.FAMILIES]
        assert len({(one.get_color(), one.get_marker()) for one in shown}) == 14

    def test_a_selection_is_drawn_by_its_criterion(self) -> None:
        found = table()
        found.attrs["criterion"] = "icl"
        figure = plot_select(Selection(found, {}, "icl"))
        assert figure.axes[0].get_ylabel().startswith("ICL")

    def test_wrong_arguments_are_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"^criterion: "):
            plot_select(table(), criterion="loglik")
        for wrong in (table().reset_index(), 3):
            with pytest.raises(ArgumentError, match=r"^selection: "):
                plot_select(wrong)


@cache
def fitted(k: int = 3, n_starts: int = 12) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        spec = bg.GaussianMixture(k, "VVV")
        return bg.fit_em(spec, FAITHFUL, n_starts=n_starts, n_finish=3, random_seed=1)


class TestConvergence:
    def test_every_start_is_a_line_of_its_trace(self) -> None:
        fit = fitted()
        (ax,) = plot_convergence(fit).axes
        traces = fit["starts"]["trace"].to_numpy()
        drawn = [one.get_ydata() for one in ax.lines]
        assert len(drawn) == len(traces)
        for trace in traces:
            assert any(np.array_equal(trace, one, equal_nan=True) for one in drawn)

    def test_the_best_is_the_fit_and_ends_within_the_axis(self) -> None:
        fit = fitted()
        (ax,) = plot_convergence(fit).axes
        best = line(ax, "the fit")
        top = np.nanmax(best.get_ydata())
        assert top == pytest.approx(fit["sample_stats"]["lp"].item(), rel=1e-12)
        low, high = ax.get_ylim()
        assert low < top < high
        steps = int(fit["sample_stats"]["n_iter"].item())
        assert np.isfinite(best.get_ydata()).sum() == steps + 1
        assert ax.get_xlim()[1] > steps
        assert best.get_linewidth() == max(one.get_linewidth() for one in ax.lines)

    def test_kinds_of_ends_are_counted(self) -> None:
        starts = fitted()["starts"].to_dataset()
        reason = starts["reason"].to_numpy().astype(str)
        figure = plot_convergence(fitted())
        unfinished = int((reason == "unfinished").sum())
        unusable = int((~starts["usable"].to_numpy()).sum()) - unfinished
        assert unfinished > 0
        assert f"{unfinished} given up for better ones, {unusable} unusable" in figure.alt
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert f"given up for better ones ({unfinished})" in labels

    def test_a_long_run_does_not_hide_the_others(self) -> None:
        fit = fitted().copy(deep=True)
        trace = fit["starts"]["trace"].to_numpy()
        best = int(np.flatnonzero(fit["starts"]["best"].to_numpy())[0])
        steps = int(np.isfinite(trace[best]).sum())
        wide = np.full((len(trace), 100 * steps), np.nan)
        wide[:, : trace.shape[1]] = trace
        wide[1 - min(best, 1)] = np.nanmin(trace[best])
        starts = fit["starts"].to_dataset().drop_vars(["trace", "step"])
        fit["starts"] = xr.DataTree(starts.assign(trace=(("start", "step"), wide)))
        (ax,) = plot_convergence(fit).axes
        assert steps < ax.get_xlim()[1] < 6 * steps
        assert ax.get_xlabel() == f"step (the longest run has {100 * steps - 1})"

    def test_one_start(self) -> None:
        figure = plot_convergence(fitted(1, 1))
        assert len(figure.axes[0].lines) == 1
        assert figure.to_png()

    def test_what_has_no_starts_is_refused(self) -> None:
        for wrong in (xr.DataTree(), FAITHFUL):
            with pytest.raises(ArgumentError, match=r"^fit: has no starts"):
                plot_convergence(wrong)


def test_no_trace_in_matplotlib() -> None:
    before, open_before = dict(plt.rcParams), plt.get_fignums()
    for picture in (plot_select(table()), plot_convergence(fitted())):
        assert isinstance(picture, Picture)
        assert picture._repr_png_().startswith(b"\x89PNG")
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == open_before
