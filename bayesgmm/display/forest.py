"""Estimate and posterior of every parameter on one axis: the picture of a comparison.

It is `arviz.plot_forest` with the numbers of `compare`; colours and manners are those of `plots`.
"""

from __future__ import annotations

from typing import Any, Literal

import arviz as az
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from arviz import visuals
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesgmm.display.plots import ESTIMATE, POSTERIOR, STYLE, Shown, short
from bayesgmm.display.reasons import Z_LIMIT
from bayesgmm.display.words import format_number, headline, hidden_rows, reasons_of, refuse_other
from bayesgmm.errors import ArgumentError

# What is drawn of either fit: centre, lower and upper end.
_DRAWN = {
    "posterior": ("mean", "eti_lower", "eti_upper"),
    "estimate": ("estimate", "wald_lower", "wald_upper"),
}
_IN_FOREST: dict[str, Any] = {"coords": {"column": "forest"}, "ignore_aes": "all"}
_MOST_ROWS = 60
_MOST_SDS = 8.0  # how far out the axis goes


class Collection(Shown, az.PlotCollection):  # type: ignore[misc]
    """An ArviZ PlotCollection with a text alternative, which a notebook shows without pyplot.

    Attributes
    ----------
    alt : str
        What the picture shows, in words.
    figure : matplotlib Figure
    viz, aes : DataTree
        ArviZ's record of what was drawn, and of colour, marker and height.
    """

    @property
    def figure(self) -> Figure:
        """The matplotlib Figure."""
        return self.get_viz("figure")


def plot_compare(
    comparison: xr.Dataset,
    *,
    figsize: tuple[float, float] | None = None,
    backend: Literal["matplotlib", "none"] = "matplotlib",
) -> Any:
    """Draw estimate and posterior of every parameter, with intervals, on one axis.

    This is `arviz.plot_forest` on an axis that counts posterior standard deviations from the
    posterior mean, so that parameters of any unit stand below each other and a difference looks the
    same wherever it is; the values in units of the data stand beside. Within the grey band the two
    centres agree.

    Parameters
    ----------
    comparison : Dataset
        From `compare`.
    figsize : (width, height), optional
        In inches.
    backend : {"matplotlib", "none"}
        ArviZ's "none" draws nothing and returns what would be drawn, in ``viz``.

    Returns
    -------
    Collection or PlotCollection
        With more than 60 parameters, of the 60 that differ most. Components whose labels are too
        ambiguous to be compared are left out. With the backend "none", a PlotCollection.

    Raises
    ------
    ArgumentError
        If it is no comparison, or the backend is another.
    """
    refuse_other(comparison)
    if backend not in ("matplotlib", "none"):
        raise ArgumentError("backend", f"must be 'matplotlib' or 'none', not {backend!r}")
    hidden = hidden_rows(comparison)
    there = comparison.isel(parameter=~hidden)
    shown = _most_different(there)
    p = shown.sizes["parameter"]
    level = f"{100 * comparison.attrs['ci_prob']:g} %"
    with mpl.rc_context(STYLE), plt.ioff():
        forest = _forest(shown, figsize or (10.0, 1.4 + 0.34 * p), backend)
        _write_values(forest, shown)
        titles = []
        if p < there.sizes["parameter"]:
            titles.append(f"the {p} of {there.sizes['parameter']} parameters that differ most")
        if hidden.any():
            share = f"{comparison.attrs['ambiguous_labels']:.0%}"
            titles.append(f"no single components: labels are ambiguous in {share} of the draws")
        if titles:
            text = "\n".join(titles)
            forest.map(visuals.labelled_title, text=text, size=9, **_IN_FOREST)
        if backend == "none":
            return forest
        forest.add_legend(
            "model",
            title="",
            labeller=az.labels.MapLabeller(coord_map={"model": _fit_names(shown, level)}),
            visual_kwargs={"markersize": 4.5},
            loc="outside upper left",
            fontsize=8,
        )
        # ArviZ draws by pyplot, which would show the figure a second time and keep it forever.
        plt.close(forest.get_viz("figure"))
        FigureCanvasAgg(forest.get_viz("figure"))
    picture = Collection(forest.data, forest.viz, aes_dt=forest.aes, backend=backend)
    differ = reasons_of(comparison)
    picture.alt = (
        f"Forest plot of {p} parameters: posterior mean with equal-tailed interval and point "
        f"estimate with Wald interval, {level}. {headline(comparison)}"
        + (f" They differ in {', '.join(differ)}." if differ else "")
    )
    return picture


def _most_different(comparison: xr.Dataset) -> xr.Dataset:
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.maximum(
            np.abs(comparison["z"].to_numpy()), np.abs(np.log(comparison["sd_ratio"].to_numpy()))
        )
    size[np.isnan(size)] = np.inf
    order = np.argsort(-size, kind="stable")[:_MOST_ROWS]
    return comparison.isel(parameter=np.sort(order))


def _standardised(shown: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return centres (model, parameter) and intervals (model, parameter, bound) in sds."""
    mean, sd = shown["mean"].to_numpy(), shown["sd"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        centre, lower, upper = (
            np.stack([(shown[names[i]].to_numpy() - mean) / sd for names in _DRAWN.values()])
            for i in range(3)
        )
    coords = {"model": list(_DRAWN), "parameter": shown["label"].to_numpy()}
    return (
        xr.DataArray(centre, coords, name="z"),
        xr.DataArray(
            np.stack([lower, upper], axis=-1), coords, ("model", "parameter", "bound"), name="z"
        ),
    )


def _forest(shown: xr.Dataset, figsize: tuple[float, float], backend: str) -> Any:
    """Draw names, points and intervals; what lies off the axis is an arrow at its edge."""
    centre, interval = _standardised(shown)
    edge, inside = _MOST_SDS, np.abs(centre) <= _MOST_SDS
    columns = {"labels": 0.02, "forest": 3.0, "values": 1.0}
    label = {str(name): short(name) for name in shown["label"].to_numpy()}
    plain = {"parse_math": False} if backend == "matplotlib" else {}
    forest = az.plot_forest(
        centre.expand_dims(column=list(columns), draw=1).to_dataset(),
        sample_dims=["draw"],
        labels=["parameter"],
        labeller=az.labels.MapLabeller(coord_map={"parameter": label}),
        backend=backend,
        stats={
            "twig": interval.clip(-edge, edge).to_dataset(),
            "point_estimate": centre.where(inside).to_dataset(),
        },
        aes={"color": ["model"], "marker": ["model"], "fontweight": ["parameter"]},
        color=[POSTERIOR, ESTIMATE],
        marker=["o", "D"],
        fontweight=np.where(shown["agree"], "normal", "bold").tolist(),
        aes_by_visuals={
            "credible_interval": ["y", "color"],
            "point_estimate": ["y", "color", "marker"],
            "labels": ["fontweight"],
        },
        visuals={
            "trunk": False,
            "twig": {"width": 1.8},
            "point_estimate": {"size": 20},
            "labels": {"horizontal_align": "right", "size": 9} | plain,
            "ticklabels": False,
        },
        figure_kwargs={
            "figsize": figsize,
            "sharey": True,
            "width_ratios": list(columns.values()),
            "layout": "constrained",
        },
    )
    for arrow, beyond in ((">", centre > edge), ("<", centre < -edge)):
        forest.map(
            visuals.scatter_x,
            "beyond_axis",
            data=centre.where(beyond).clip(-edge, edge).to_dataset(),
            marker=arrow,
            size=60,
            coords={"column": "forest"},
            ignore_aes={"marker", "fontweight"},
        )
    band = xr.Dataset({"z": ("bound", [-Z_LIMIT, Z_LIMIT])})
    forest.map(visuals.vspan, "agreement", data=band, color="0.92", **_IN_FOREST)
    text = f"posterior standard deviations from the posterior mean\n(grey: |z| up to {Z_LIMIT}"
    text += ")" if shown["agree"].all() else "; bold: the fits differ)"
    forest.map(visuals.labelled_x, text=text, **_IN_FOREST)
    # The middles of the rows are at -0.2, 0.8, ... from below.
    limits = (-0.8, centre.sizes["parameter"] - 0.6)
    forest.map(visuals.set_ylim, limits=limits, store_artist=False, **_IN_FOREST)
    return forest


def _write_values(forest: Any, shown: xr.Dataset) -> None:
    """Write the values in units of the data beside the intervals."""
    values = np.empty((len(_DRAWN), shown.sizes["parameter"]), dtype=object)
    units = shown["unit"].to_numpy() if "unit" in shown.coords else np.full(values.shape[1], "")
    for i, names in enumerate(_DRAWN.values()):
        columns = np.stack([shown[name].to_numpy() for name in (*names, "sd")], axis=1)
        for j, (*value, sd) in enumerate(columns):
            text = "{} ({}, {})".format(*(format_number(v, sd) for v in value))
            values[i, j] = f"{text} {short(units[j], 24)}" if units[j] else text
    forest.map(
        visuals.annotate_xy,
        "values",
        data=xr.Dataset({"z": (("model", "parameter"), values)}, forest.data.coords),
        x=0.0,
        text=str,
        horizontal_align="left",
        size=8,
        coords={"column": "values"},
        ignore_aes={"marker", "fontweight"},
    )
    at = {"coords": {"column": "values"}, "ignore_aes": "all"}
    forest.map(visuals.labelled_title, text="in units of the data", size=9, loc="left", **at)
    for column in ("labels", "values"):
        at = {"coords": {"column": column}, "ignore_aes": "all"}
        forest.map(visuals.set_xlim, limits=(0.0, 1.0), store_artist=False, **at)
        forest.map(visuals.remove_axis, axis="both", store_artist=False, **at)


def _fit_names(shown: xr.Dataset, level: str) -> dict[str, str]:
    return {
        "posterior": f"{shown.attrs['post_name']}: mean, {level} ETI",
        "estimate": f"{shown.attrs['mle_name']}: {level} Wald interval",
    }
