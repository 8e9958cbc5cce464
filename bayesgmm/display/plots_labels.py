"""Label switching before and after alignment: the draws of one parameter, chain by chain."""

from __future__ import annotations

from typing import Literal

import arviz as az
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from arviz import visuals
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from bayesgmm.ambiguity import ambiguous_of
from bayesgmm.data.units import with_unit
from bayesgmm.display.forest import Collection
from bayesgmm.display.plots import STYLE, short
from bayesgmm.errors import ArgumentError
from bayesgmm.labels import AMBIGUOUS, Labels
from bayesgmm.moments import Array
from bayesgmm.rows import (
    Row,
    alignment_of,
    draws_of,
    has_draws,
    parameters_by_component,
    raw_draws,
    take,
    unit_of,
)
from bayesgmm.tree import units_of, whole

# Okabe & Ito's colours, in an order in which neighbours differ in lightness, too.
_COLORS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#000000", "#F0E442")
_MOST_POINTS = 1000  # of a chain
_MOST_CHAINS = 8


def plot_labels(
    fit: xr.DataTree,
    parameter: str | None = None,
    *,
    figsize: tuple[float, float] | None = None,
    backend: Literal["matplotlib", "none"] = "matplotlib",
) -> az.PlotCollection:
    """Draw a parameter of all components, as sampled and aligned, for every chain.

    A colour is a component. Where colours change places on the left and keep theirs on the right,
    labels switched and were put back; where they mix on the right, too, there are no labels to
    rely on. Crosses below mark the draws whose labels are ambiguous.

    Parameters
    ----------
    fit : DataTree
        With draws, whole, of two or more components.
    parameter : str, optional
        ``"weight"``, ``"mean[waiting]"``, ``"covariance[waiting, waiting]"``: a parameter of
        `summary` without its component. Default: that in which components differ most.
    figsize : (width, height), optional
        In inches.
    backend : {"matplotlib", "none"}
        ArviZ's "none" draws nothing and returns what would be drawn, in ``viz``.

    Returns
    -------
    Collection or PlotCollection
        Of long chains evenly spaced draws, and the first eight chains of many.

    Raises
    ------
    ArgumentError
        If ``fit`` is a point estimate, not whole or has one component, or there is no such
        parameter; if the backend is another.
    """
    whole("fit", fit, "labels")
    if not has_draws(fit):
        raise ArgumentError("fit", "is a point estimate; labels are of draws")
    if fit["posterior"].sizes["cluster"] == 1:
        raise ArgumentError("fit", "has one component, which needs no label")
    if backend not in ("matplotlib", "none"):
        raise ArgumentError("backend", f"must be 'matplotlib' or 'none', not {backend!r}")
    found = parameters_by_component(fit)
    aligned = draws_of(fit)
    name = _most_distinct(found, aligned) if parameter is None else parameter
    if name not in found:
        raise ArgumentError("parameter", f"must be one of {', '.join(found)}, not {name!r}")
    rows = found[name]
    both = {"as sampled": take(raw_draws(fit), rows), "aligned": take(aligned, rows)}
    values = np.stack(list(both.values()))[:, :_MOST_CHAINS]
    margin = fit["labels"]["margin"].transpose("chain", "draw").to_numpy()[:_MOST_CHAINS]
    n = values.shape[2]
    at = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(np.intp))
    values, unsure = values[:, :, at], np.asarray(~(margin >= AMBIGUOUS)[:, at])
    with mpl.rc_context(STYLE), plt.ioff():
        drawn = _collection(values, at, list(both), fit, figsize, backend)
        low, high = np.nanmin(values), np.nanmax(values)
        _mark(drawn, unsure, at, float(low - 0.06 * (high - low)))
        text = with_unit(short(name), short(unit_of(rows[0], units_of(fit)), 24))
        _write(drawn, text, fit, list(both))
        if backend == "none":
            return drawn
        # ArviZ draws by pyplot, which would show the figure a second time and keep it forever.
        plt.close(drawn.get_viz("figure"))
        FigureCanvasAgg(drawn.get_viz("figure"))
    picture = Collection(drawn.data, drawn.viz, aes_dt=drawn.aes, backend=backend)
    k, chains = values.shape[-1], values.shape[1]
    picture.alt = (
        f"Draws of {name} of {k} components in {chains} chains, as sampled and aligned by "
        f"{alignment_of(fit)}; labels are ambiguous in {ambiguous_of(fit):.1%} of the draws."
    )
    return picture


def _most_distinct(found: dict[str, list[Row]], aligned: dict[str, Array]) -> str:
    """Return the weight or mean whose components are furthest apart, in sds of its draws."""
    size = {}
    for name, rows in found.items():
        if rows[0].variable != "covariance":
            draws = take(aligned, rows)
            middle, within = draws.mean(axis=(0, 1)), draws.var(axis=(0, 1)).mean()
            size[name] = float(middle.var() / within) if within > 0 else 0.0
    return max(size, key=lambda name: size[name])


def _collection(
    values: Array,
    at: Labels,
    columns: list[str],
    fit: xr.DataTree,
    figsize: tuple[float, float] | None,
    backend: str,
) -> az.PlotCollection:
    _, chains, _, k = values.shape
    place = np.broadcast_to(at[:, None], values.shape[2:])
    points = np.stack([np.broadcast_to(place, values.shape), values])
    data = xr.Dataset(
        {"draws": (("plot_axis", "labels", "chain", "draw", "cluster"), points)},
        coords={
            "plot_axis": ["x", "y"],
            "labels": columns,
            "chain": fit["posterior"].to_dataset()["chain"].to_numpy()[:chains],
            "cluster": np.arange(k),
        },
    )
    drawn = az.PlotCollection.grid(
        data,
        rows=["chain"],
        cols=["labels"],
        aes={"color": ["cluster"]},
        color=[_COLORS[j % len(_COLORS)] for j in range(k)],
        backend=backend,
        figure_kwargs={
            "figsize": figsize or (9.0, 1.2 + 1.5 * chains),
            "sharex": True,
            "sharey": True,
            "layout": "constrained",
        },
    )
    size = float(np.clip(3000 / len(at), 6, 30))
    drawn.map(visuals.scatter_xy, "points", marker=".", size=size, alpha=0.6)
    return drawn


def _mark(drawn: az.PlotCollection, unsure: NDArray[np.bool_], at: Labels, height: float) -> None:
    """Mark the draws with ambiguous labels below those that are aligned."""
    if not unsure.any():
        return
    where = np.where(unsure, at.astype(float), np.nan)
    marked = np.stack([where, np.where(unsure, height, np.nan)])
    data = xr.Dataset(
        {"draws": (("plot_axis", "chain", "draw"), marked)},
        coords={"plot_axis": ["x", "y"], "chain": drawn.data["chain"].to_numpy()},
    )
    drawn.map(
        visuals.scatter_xy,
        "ambiguous",
        data=data.expand_dims(labels=["aligned"]),
        coords={"labels": "aligned"},
        ignore_aes="all",
        marker="x",
        size=12,
        color="0.3",
    )


def _write(drawn: az.PlotCollection, name: str, fit: xr.DataTree, columns: list[str]) -> None:
    chains = drawn.data["chain"].to_numpy()
    plain = {"ignore_aes": "all"}
    share = f"ambiguous: {ambiguous_of(fit):.1%} of the draws"
    titles = (columns[0], f"aligned by {alignment_of(fit)} ({share})")
    for column, text in zip(columns, titles, strict=True):
        top = {"labels": column, "chain": chains[0]}
        drawn.map(visuals.labelled_title, text=text, size=9, coords=top, **plain)
        foot = {"labels": column, "chain": chains[-1]}
        drawn.map(visuals.labelled_x, text="draw", size=9, coords=foot, **plain)
    for chain in chains:
        side = {"labels": columns[0], "chain": chain}
        text = f"{name}\nchain {chain}" if len(chains) > 1 else name
        drawn.map(visuals.labelled_y, text=text, size=9, coords=side, **plain)
    drawn.add_legend("cluster", title="component", loc="outside right upper")
