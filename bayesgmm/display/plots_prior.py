"""A picture of what a prior says of the data, before anything is sampled."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from scipy.stats import gaussian_kde, norm

from bayesgmm.arguments import whole_number
from bayesgmm.data.observations import Data, read_for
from bayesgmm.display.plots import DATA, POSTERIOR, STYLE, Picture, named
from bayesgmm.em.fit import seed_of
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.priors.prior_draws import drawn_tree

_MOST_FEATURES = 4
_LINES = 25


def plot_prior(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    draws: int = 1000,
    random_seed: int | None = 0,
    figsize: tuple[float, float] | None = None,
) -> Picture:
    """Draw the data under the densities that the prior thinks of, and its sds beside theirs.

    Above, for each of the first four columns: a histogram, the densities of 25 draws of the prior
    and the mean of all, which is the prior predictive density. They are as wide as a fortieth of
    the picture at least, so that it can show them. Below: the prior density of a component's
    standard deviation, on a logarithmic axis, and the standard deviation of the whole column.

    Parameters
    ----------
    spec : GaussianMixture
        With a prior.
    X : table (n, d)
    sample_weight : (n,) array, optional
    columns : sequence of str, optional
    draws : int
        From the prior; at least 25.
    random_seed : int, optional
    figsize : (width, height), optional
        In inches.

    Returns
    -------
    Picture

    Raises
    ------
    ArgumentError, DataError
        For bad input; for a specification with ``prior=None``.
    """
    refuse_other(spec)
    whole_number("draws", draws, least=_LINES)
    data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    posterior = drawn_tree(spec, data, draws, np.random.default_rng(seed_of(random_seed)))
    drawn = {
        name: posterior["posterior"][name].to_numpy()[0]
        for name in ("weight", "mean", "covariance")
    }
    m = min(data.d, _MOST_FEATURES)
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=figsize or (1.0 + 3.2 * m, 5.0), layout="constrained")
        grid = figure.subplots(2, m, squeeze=False)
        for f in range(m):
            _density(grid[0, f], data, drawn, f)
            _sd(grid[1, f], data, drawn, f)
        grid[0, 0].set_ylabel("density")
        grid[1, 0].set_ylabel("density of log sd")
        legend: dict[str, Any] = {}
        for ax in figure.axes:
            legend |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        figure.legend(
            legend.values(), list(legend), loc="outside upper center", ncols=min(m, 2), fontsize=8
        )
    figure.alt = (
        f"Prior predictive density of {', '.join(data.names[:m])} over the data, and the prior "
        "density of a component's standard deviation beside that of the whole column"
    )
    return figure


def _density(ax: Axes, data: Data, drawn: dict[str, Array], f: int) -> None:
    there = ~np.isnan(data.values[:, f])
    x = data.values[there, f]
    weight = data.weight[there] if data.weight.size else np.ones(len(x))
    bins = int(np.clip(2 * np.sqrt(len(x)), 8, 60))
    height, *_ = ax.hist(x, bins=bins, weights=weight, density=True, color="0.85", label="data")
    margin = 0.5 * np.ptp(x)
    at = np.linspace(x.min() - margin, x.max() + margin, 400)
    sd = np.sqrt(drawn["covariance"][..., f, f] + (np.ptp(at) / 40.0) ** 2)
    each = np.einsum(
        "sk,skx->sx",
        drawn["weight"],
        norm.pdf(at, drawn["mean"][..., f, None], sd[..., None]),
    )
    lines = ax.plot(at, each[:_LINES].T, color=POSTERIOR, lw=0.6, alpha=0.35)
    lines[0].set_label(f"densities of {_LINES} draws of the prior")
    ax.plot(at, each.mean(axis=0), color=POSTERIOR, lw=2.0, label="prior predictive density")
    ax.set_ylim(0.0, 1.3 * max(float(np.max(height)), each.mean(axis=0).max()))
    ax.set_xlabel(named(data.names[f], data.units), parse_math=False)


def _sd(ax: Axes, data: Data, drawn: dict[str, Array], f: int) -> None:
    log_sd = 0.5 * np.log(drawn["covariance"][..., f, f]).ravel()
    whole = float(data.scale[f] * np.sqrt(data.covariance[f, f]))
    low, high = np.quantile(log_sd, [0.005, 0.995])
    at = np.linspace(min(low, np.log(whole)) - 0.5, max(high, np.log(whole)) + 0.5, 300)
    density = gaussian_kde(log_sd)(at)
    ax.fill_between(np.exp(at), density, color=POSTERIOR, alpha=0.2, lw=0)
    ax.plot(np.exp(at), density, color=POSTERIOR, lw=1.6, label="sd of a component by the prior")
    ax.axvline(whole, color=DATA, lw=1.6, ls="--", label="sd of the whole column")
    ax.set_xscale("log")
    if np.ptp(at) < np.log(1e3):  # few decades: between powers of ten, too
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(f"sd of {named(data.names[f], data.units)}", parse_math=False)
