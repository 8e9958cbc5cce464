"""Pictures of the search for a maximum: criteria of many fits, and the runs of one.

As in `plots`: every function returns a `Picture` with a text alternative.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesgmm.display.plots import DATA, ESTIMATE, POSTERIOR, STYLE, Picture
from bayesgmm.errors import ArgumentError
from bayesgmm.inference.selection import CRITERIA, Selection
from bayesgmm.moments import Array

# Okabe & Ito's colours: with two markers, fourteen families differ in one or the other.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s")
_LONGEST = 4  # times as long as the best run, what is shown of others
_WORST = 3.0  # of the range of the end points, how far below the best the axis of a run begins


def plot_select(
    selection: Selection | pd.DataFrame,
    *,
    criterion: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Picture:
    """Draw a criterion against the number of components, a line for every family.

    Fits whose verdict is "fail" are hollow, what has no fit at all is a cross at the upper edge,
    and a circle is around the best.

    Parameters
    ----------
    selection : Selection or DataFrame
        From `select`, or its table.
    criterion : {"bic", "icl", "aic"}, optional
        Smaller is better. Default: that of the selection.
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError
        If the criterion is unknown, or it is no such table.
    """
    table: Any = selection.table if isinstance(selection, Selection) else selection
    if not isinstance(table, pd.DataFrame) or table.index.names != ["covariance", "n_components"]:
        raise ArgumentError("selection", "must come from select, or be its table")
    name = criterion or str(table.attrs.get("criterion", "bic"))
    if name not in CRITERIA:
        known = ", ".join(map(repr, CRITERIA))
        raise ArgumentError("criterion", f"must be one of {known}, not {criterion!r}")
    good = table[table["status"] != "fail"]
    best: Any = good[name].idxmin() if len(good) else None
    missing = table[table[name].isna()]
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=figsize or (7.0, 4.5), layout="constrained")
        ax = figure.add_subplot()
        # The order of the legend is that of the lines' lowest points.
        lowest = table.groupby("covariance")[name].min().sort_values(na_position="last")
        styles = product(_MARKERS, _COLOURS)
        for letters, (marker, colour) in zip(lowest.index, styles, strict=False):
            own = table.loc[[letters]].reset_index().sort_values("n_components")
            _line(ax, own, name, colour, marker)
        if best is not None:
            at = (best[1], table.loc[best, name])
            ax.plot(*at, "o", ms=13, mfc="none", mec="black", mew=1.2, label="best", zorder=4)
        for label, marker, shown in (
            ("not to be relied on", "o", table["status"].eq("fail") & table[name].notna()),
            ("no fit", "x", table[name].isna()),
        ):
            if shown.any():
                ax.plot([], [], marker, color="black", mfc="white", ms=4.5, label=label)
        ax.set_xlabel("number of components")
        ax.set_ylabel(f"{name.upper()} (smaller is better)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", fontsize=8)
    families = table.index.get_level_values("covariance").nunique()
    figure.alt = (
        f"{name.upper()} of {len(table)} mixtures of {families} covariance families against the "
        "number of components. "
        + (
            f"The best is {best[0]} with {best[1]} components, {table.loc[best, name]:.2f}."
            if best is not None
            else "None has a fit that can be relied on."
        )
        + (f" {len(missing)} could not be fitted." if len(missing) else "")
    )
    return figure


def _line(ax: Axes, own: pd.DataFrame, name: str, colour: str, marker: str) -> None:
    """Draw one family."""
    size, value = own["n_components"].to_numpy(), own[name].to_numpy(dtype=float)
    letters, failed = own["covariance"].iloc[0], (own["status"] == "fail").to_numpy()
    ax.plot(size, value, "-", color=colour, lw=1.0, zorder=2)
    style: dict[str, Any] = {"color": colour, "ls": "none", "marker": marker, "ms": 4.5}
    ax.plot(size, np.where(failed, np.nan, value), label=letters, zorder=3, **style)
    if (failed & np.isfinite(value)).any():
        ax.plot(size, np.where(failed, value, np.nan), mfc="white", zorder=3, **style)
    if np.isnan(value).any():
        where = size[np.isnan(value)]
        edge = ax.get_xaxis_transform()  # the height in parts of the axis
        style |= {"marker": "x", "transform": edge, "clip_on": False}
        ax.plot(where, np.ones(len(where)), zorder=3, **style)


def plot_convergence(fit: Any, *, figsize: tuple[float, float] | None = None) -> Picture:
    """Draw the objective of every start against the steps of EM.

    The run that became the fit is thick; runs that were given up for better ones end early; those
    that met a singular, empty or spurious component are dashed.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`.
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError
        If the fit has no traces.
    """
    if not isinstance(fit, xr.DataTree) or "starts" not in fit.children:
        raise ArgumentError("fit", "has no starts; it must be a fit by fit_em")
    starts = fit["starts"].to_dataset()
    trace = starts["trace"].transpose("start", "step").to_numpy()
    best = int(np.flatnonzero(starts["best"].to_numpy())[0])
    reason = starts["reason"].to_numpy().astype(str)
    kinds = np.where(starts["usable"].to_numpy(), "to their end", "unusable").astype(object)
    kinds[reason == "unfinished"] = "given up for better ones"
    styles: dict[str, dict[str, Any]] = {
        "given up for better ones": {"color": DATA, "lw": 0.7},
        "unusable": {"color": ESTIMATE, "lw": 0.8, "ls": "--"},
        "to their end": {"color": POSTERIOR, "lw": 0.9},
    }
    what = "log-likelihood" if fit.attrs["estimate"] == "mle" else "log-posterior"
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=figsize or (7.0, 4.5), layout="constrained")
        ax = figure.add_subplot()
        for kind, style in styles.items():
            own = [row for i, row in enumerate(trace) if kinds[i] == kind and i != best]
            for j, row in enumerate(own):
                ax.plot(row, label=f"{kind} ({len(own)})" if j == 0 else "_", **style)
        ax.plot(trace[best], color="black", lw=1.8, label="the fit", zorder=4)
        ax.set_ylim(*_limits(trace, best))
        # A run that creeps may take many times as long as all others.
        longest, shown = trace.shape[1] - 1, _LONGEST * int(np.isfinite(trace[best]).sum())
        ax.set_xlim(right=min(longest, shown) * 1.02 + 0.5)
        ax.set_xlabel("step" if longest <= shown else f"step (the longest run has {longest})")
        ax.set_ylabel(what)
        ax.legend(loc="lower right", fontsize=8)
    steps = int(np.isfinite(trace[best]).sum()) - 1
    figure.alt = (
        f"The {what} of {len(trace)} starts against the steps of EM. The best one, start {best}, "
        f"ends at {np.nanmax(trace[best]):.4f} after {steps} steps; "
        + ", ".join(f"{int((kinds == kind).sum())} {kind}" for kind in styles)
        + "."
    )
    return figure


def _limits(trace: Array, best: int) -> tuple[float, float]:
    """Return an axis with the fit's run and the ends of the others, whatever their beginnings."""
    own = trace[best][np.isfinite(trace[best])]
    top = float(own.max())
    last = np.array([row[np.isfinite(row)][-1] for row in trace if np.isfinite(row).any()])
    gap = top - float(np.quantile(last[last <= top], 0.25))
    low = min(top - _WORST * gap, float(own[min(1, len(own) - 1)]))
    room = max(top - low, 1e-3 * abs(top), 1e-3)
    # Runs into a singularity end above the fit.
    high = min(float(last.max()), top + room)
    return top - room, max(high, top) + 0.05 * room
