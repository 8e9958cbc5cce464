"""Pictures of two fits over their data, on matplotlib, and what all pictures have in common.

Every function returns a `Picture`: a matplotlib Figure that no window manager knows, so nothing has
to be shown or closed, and that a notebook shows once.  ``picture.savefig("x.png")`` writes it.
Blue is the posterior and orange the point estimate throughout (Okabe & Ito's colours, which
colour-blind readers can tell apart); line style and marker differ as well.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import chi2

from bayesgmm.data.units import with_unit
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array, Noise
from bayesgmm.noise import NOISE
from bayesgmm.prediction.evaluation import Mixtures
from bayesgmm.predictive.density import bands
from bayesgmm.rows import check_prob, draws_of, has_draws, printable
from bayesgmm.tree import names_of, region_of, units_of, whole

POSTERIOR, ESTIMATE, DATA = "#0072B2", "#D55E00", "0.6"
STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "font.size": 9.0,
    "legend.frameon": False,
}
_MOST_POINTS = 5000  # of a scatter
_MOST_FEATURES = 4  # of a matrix of pairs
_CURVES = 200  # draws behind a ribbon


class Shown:
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


class Picture(Shown, Figure):
    """A matplotlib Figure with a text alternative, which a notebook shows without pyplot.

    Attributes
    ----------
    alt : str
        What the picture shows, in words.
    """


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
    for name, fit in (("mle", mle), ("post", post)):
        whole(name, fit, "observed_data", "constant_data")
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


def short(name: object, length: int = 44) -> str:
    """Return a name that leaves room for the picture; the tables have it in full."""
    text = printable(str(name))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def named(name: str, units: dict[str, str]) -> str:
    """Return a column's name for an axis, with its unit if it came with one."""
    return with_unit(short(name), short(units.get(name, ""), 24))


def _few(n: int, wanted: int) -> NDArray[np.intp]:
    """Return positions of evenly spaced items."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.intp))


def _some_draws(fit: xr.DataTree, wanted: int) -> dict[str, Array]:
    """Return evenly spaced draws of all chains, with one leading dimension."""
    flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in draws_of(fit).items()}
    which = _few(len(flat["weight"]), wanted)
    return {name: a[which] for name, a in flat.items()}


def _column(fit: xr.DataTree, wanted: int, f: int) -> Mixtures:
    """Return the mixtures that feature f follows by itself in some draws.

    With noise, if that is uniform in it; else of the components alone.
    """
    draws, region = _some_draws(fit, wanted), region_of(fit)
    variance = draws["covariance"][..., f, f, None, None]
    noise: tuple[Noise, ...] | None = None
    if region is not None and region.log_edges is not None:
        own = region.of([f], len(names_of(fit)))
        noise = tuple(map(own.noise, draws[NOISE].tolist()))
    mean = draws["mean"][..., f, None]
    return Mixtures(draws["weight"], mean, variance, 1.0 / np.sqrt(variance), ("",), noise)


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
    found = bands(_column(post, _CURVES, f), at[:, None], ci_prob)
    level = f"{100 * ci_prob:g} %"
    ax.fill_between(
        at,
        found["eti_lower"],
        found["eti_upper"],
        color=POSTERIOR,
        alpha=0.3,
        lw=0,
        label=f"posterior density, {level} ETI",
    )
    ax.plot(at, found["mean"], color=POSTERIOR, lw=1.6, label="posterior mean of the density")
    estimate = bands(_column(mle, 1, f), at[:, None], ci_prob)["mean"]
    ax.plot(at, estimate, color=ESTIMATE, lw=1.6, ls="--", label="density of the point estimate")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(named(name, units_of(post) or units_of(mle)), parse_math=False)
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
    units = units_of(post) or units_of(mle)
    first, second = (named(names_of(post)[f], units) for f in pair)
    ax.set_xlabel(first, parse_math=False)
    ax.set_ylabel(second, parse_math=False)
