"""Pictures of a comparison and of two fits over their data, on matplotlib.

Every function returns a `Picture`: a matplotlib Figure that no window manager knows, so nothing has
to be shown or closed, and that a notebook shows once.  ``picture.savefig("x.png")`` writes it.
Blue is the posterior and orange the point estimate throughout (Okabe & Ito's colours, which
colour-blind readers can tell apart); line style and marker differ as well.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import arviz as az
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from arviz import visuals
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import chi2

from bayesgmm.comparison import format_number, headline, reasons_of
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.reasons import Z_LIMIT
from bayesgmm.rows import check_prob, draws_of, has_draws, printable
from bayesgmm.tree import names_of

POSTERIOR, ESTIMATE, DATA = "#0072B2", "#D55E00", "0.6"
STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "font.size": 9.0,
    "legend.frameon": False,
}
# What is drawn of either fit: centre, lower and upper end.
_DRAWN = {
    "posterior": ("mean", "eti_lower", "eti_upper"),
    "estimate": ("estimate", "wald_lower", "wald_upper"),
}
_IN_FOREST: dict[str, Any] = {"coords": {"column": "forest"}, "ignore_aes": "all"}
_MOST_ROWS = 60  # of a forest
_MOST_SDS = 8.0  # how far out the forest's axis goes
_MOST_POINTS = 5000  # of a scatter
_MOST_FEATURES = 4  # of a matrix of pairs
_CURVES = 200  # draws behind a ribbon


class _Shown:
    """What a notebook and a page need of a picture."""

    alt: str = ""
    figure: Any

    def _repr_png_(self) -> bytes:
        return self.to_png()

    def to_png(self, dpi: float = 130.0) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        stream = io.BytesIO()
        # No software version or date in the file: the same picture is the same bytes.
        self.figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
        return stream.getvalue()


class Picture(_Shown, Figure):
    """A matplotlib Figure with a text alternative, which a notebook shows without pyplot.

    Attributes
    ----------
    alt : str
        What the picture shows, in words.
    """


class Forest(_Shown, az.PlotCollection):  # type: ignore[misc]
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
    Forest or PlotCollection
        With more than 60 parameters, of the 60 that differ most. With the backend "none", a
        PlotCollection.

    Raises
    ------
    ArgumentError
        If the backend is another.
    """
    if backend not in ("matplotlib", "none"):
        raise ArgumentError("backend", f"must be 'matplotlib' or 'none', not {backend!r}")
    shown = _most_different(comparison)
    p = shown.sizes["parameter"]
    level = f"{100 * comparison.attrs['ci_prob']:g} %"
    with mpl.rc_context(STYLE), plt.ioff():
        forest = _forest(shown, figsize or (10.0, 1.4 + 0.34 * p), backend)
        _write_values(forest, shown)
        if p < comparison.sizes["parameter"]:
            text = f"the {p} of {comparison.sizes['parameter']} parameters that differ most"
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
    picture = Forest(forest.data, forest.viz, aes_dt=forest.aes, backend=backend)
    differ = reasons_of(comparison)
    picture.alt = (
        f"Forest plot of {p} parameters: posterior mean with equal-tailed interval and point "
        f"estimate with Wald interval, {level}. {headline(comparison)}"
        + (f" They differ in {', '.join(differ)}." if differ else "")
    )
    return picture


def plot_density(
    mle: xr.DataTree,
    post: xr.DataTree,
    *,
    n_draws: int = 50,
    ci_prob: float = 0.95,
    figsize: tuple[float, float] | None = None,
) -> Picture:
    """Draw the data with the densities of both fits.

    One feature: histogram, the estimate's density, the posterior mean of the density and its
    pointwise interval. Two: points and, for every component, the ellipse that holds 95 % of it, for
    the estimate and for ``n_draws`` draws. More: both kinds for the first four features.

    Parameters
    ----------
    mle, post : DataTree
        A point estimate and a fit with draws, of the same data.
    n_draws : int
        How many draws' ellipses; evenly spaced in the chains.
    ci_prob : float
        Probability of the pointwise interval of a density.
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError
        If ``n_draws`` is less than 1 or the fits have other features.
    """
    check_prob(ci_prob)
    if n_draws < 1:
        raise ArgumentError("n_draws", f"must be at least 1, not {n_draws}")
    if has_draws(mle):
        raise ArgumentError("mle", "has draws; a point estimate has one")
    names = names_of(post)
    if names_of(mle) != names:
        raise ArgumentError("post", f"has the features {names}, but mle has {names_of(mle)}")
    m = min(len(names), _MOST_FEATURES)
    with mpl.rc_context(STYLE):
        size = figsize or ((7.0, 4.5) if m == 1 else (6.5, 5.5) if m == 2 else (2.4 * m, 2.4 * m))
        figure = Picture(figsize=size, layout="constrained")
        if m == 1:
            _curves(figure.add_subplot(), mle, post, 0, ci_prob)
        elif m == 2:
            _ellipses(figure.add_subplot(), mle, post, (0, 1), n_draws)
        else:
            grid = figure.subplots(m, m, sharex="col")
            for i, j in np.ndindex(m, m):
                if i == j:
                    _curves(grid[i, i], mle, post, i, ci_prob)
                elif i > j:
                    _ellipses(grid[i, j], mle, post, (j, i), n_draws)
                else:
                    grid[i, j].remove()
            for ax in figure.axes:
                ax.label_outer(remove_inner_ticks=False)
        legend: dict[str, Any] = {}
        for ax in figure.axes:
            legend |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        figure.legend(
            legend.values(), list(legend), loc="outside upper center", ncols=2, fontsize=8
        )
        if m < len(names):
            figure.supxlabel(f"the first {m} of {len(names)} features", fontsize=8)
    k = post["posterior"].sizes["cluster"]
    figure.alt = (
        f"The data ({', '.join(names[:m])}) with the {k} components of the point estimate and of "
        + ("the posterior, as densities." if m == 1 else f"{n_draws} posterior draws, as ellipses.")
    )
    return figure


def ellipse(mean: Array, covariance: Array, prob: float = 0.95, points: int = 73) -> Array:
    """Return the outlines (..., points, 2) of the ellipses that hold ``prob`` of normal laws.

    Parameters
    ----------
    mean : (..., 2) array
    covariance : (..., 2, 2) array
    prob : float
    points : int
        Of each outline; the first is the last.
    """
    angle = np.linspace(0.0, 2.0 * np.pi, points)
    circle = np.sqrt(chi2.ppf(prob, 2)) * np.stack([np.cos(angle), np.sin(angle)])
    value, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(value, 0.0))[..., None, :]
    return np.swapaxes(root @ circle + mean[..., None], -1, -2)


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
    label = {str(name): _short(name) for name in shown["label"].to_numpy()}
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
    for i, names in enumerate(_DRAWN.values()):
        columns = np.stack([shown[name].to_numpy() for name in (*names, "sd")], axis=1)
        for j, (*value, unit) in enumerate(columns):
            values[i, j] = "{} ({}, {})".format(*(format_number(v, unit) for v in value))
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


def _short(name: object, length: int = 44) -> str:
    """Return a name that leaves room for the picture; the tables have it in full."""
    text = printable(str(name))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _few(n: int, wanted: int) -> NDArray[np.intp]:
    """Return positions of evenly spaced items."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.intp))


def _some_draws(fit: xr.DataTree, wanted: int) -> dict[str, Array]:
    """Return evenly spaced draws of all chains, with one leading dimension."""
    flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in draws_of(fit).items()}
    which = _few(len(flat["weight"]), wanted)
    return {name: a[which] for name, a in flat.items()}


def _densities(x: Array, draws: dict[str, Array], f: int) -> Array:
    """Return the density of feature f at the points x, (draw, x)."""
    sd = np.sqrt(draws["covariance"][..., f, f])
    z = (x - draws["mean"][..., f, None]) / sd[..., None]
    height = draws["weight"] / (sd * np.sqrt(2.0 * np.pi))
    density: Array = np.einsum("sk,skx->sx", height, np.exp(-0.5 * z**2))
    return density


def _observed(fit: xr.DataTree) -> tuple[Array, Array]:
    x = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature").to_numpy()
    return x, fit["constant_data"]["sample_weight"].to_numpy()


def _curves(ax: Axes, mle: xr.DataTree, post: xr.DataTree, f: int, ci_prob: float) -> None:
    """Histogram and rug of a feature, with the marginal density of both fits."""
    data, weight = _observed(post)
    there, name = ~np.isnan(data[:, f]), names_of(post)[f]
    x, weight = data[there, f], weight[there]
    bins = int(np.clip(2 * np.sqrt(len(x)), 8, 60))
    ax.hist(x, bins=bins, weights=weight, density=True, color="0.88", label="data")
    ax.plot(x[_few(len(x), _MOST_POINTS)], np.zeros(min(len(x), _MOST_POINTS)), "|", color=DATA)
    margin = 0.05 * (x.max() - x.min())
    at = np.linspace(x.min() - margin, x.max() + margin, 400)
    curves = _densities(at, _some_draws(post, _CURVES), f)
    tail = 0.5 * (1.0 - ci_prob)
    lower, upper = np.quantile(curves, [tail, 1.0 - tail], axis=0)
    level = f"{100 * ci_prob:g} %"
    ax.fill_between(
        at, lower, upper, color=POSTERIOR, alpha=0.3, lw=0, label=f"posterior density, {level} ETI"
    )
    ax.plot(at, curves.mean(axis=0), color=POSTERIOR, lw=1.6, label="posterior mean of the density")
    estimate = _densities(at, _some_draws(mle, 1), f)[0]
    ax.plot(at, estimate, color=ESTIMATE, lw=1.6, ls="--", label="density of the point estimate")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(_short(name), parse_math=False)
    ax.set_ylabel("density")


def _ellipses(
    ax: Axes, mle: xr.DataTree, post: xr.DataTree, pair: tuple[int, int], n_draws: int
) -> None:
    """Points of two features, with the components of the estimate and of some draws."""
    data, _ = _observed(post)
    few = _few(len(data), _MOST_POINTS)
    ax.plot(*data[few][:, pair].T, ".", color=DATA, ms=3, label="data", zorder=1)
    take = np.ix_(pair, pair)
    draws, point = _some_draws(post, n_draws), _some_draws(mle, 1)
    # One outline per component and draw: (s, k, points, 2) -> (s k, points, 2).
    outlines, own = (
        ellipse(v["mean"][..., pair], v["covariance"][(..., *take)]).reshape(-1, 73, 2)
        for v in (draws, point)
    )
    many = LineCollection(list(outlines), colors=POSTERIOR, lw=0.7, alpha=0.25, zorder=2)
    many.set_label(f"{len(draws['weight'])} draws, 95 % of each component")
    ax.add_collection(many)
    one = LineCollection(list(own), colors=ESTIMATE, lw=1.8, linestyles="--", zorder=3)
    one.set_label("point estimate, 95 % of each component")
    ax.add_collection(one)
    ax.autoscale_view()
    names = names_of(post)
    ax.set_xlabel(_short(names[pair[0]]), parse_math=False)
    ax.set_ylabel(_short(names[pair[1]]), parse_math=False)
