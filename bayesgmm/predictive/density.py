r"""The density of a mixture in one or two columns, with bands over the draws.

The mean over draws is the posterior predictive density, :math:`E \, p(x \mid \theta)`, of which
`bayesgmm.score` gives the logarithm; the bands say how well the density is known at each point.
They are label-free: components that exchange their roles give the same density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm.allocation.drawn import NUMBERS, with_draws
from bayesgmm.errors import ArgumentError, ColumnNameError
from bayesgmm.moments import Array
from bayesgmm.numeric import kernel
from bayesgmm.prediction.evaluation import Draws, Mixtures, by_pattern, mixtures_of
from bayesgmm.prediction.partitioned import taken
from bayesgmm.rows import check_prob
from bayesgmm.tree import region_of, units_of

_AXES = ("x", "y")
_POINTS = (400, 60)  # of an axis, for one column and for two
_MARGIN = 0.1  # of the range of the data, on either side
_SPREAD = 4.0  # standard deviations about the mean, where there are no data


def predictive_density(
    fit: xr.DataTree,
    grid: Mapping[str, Any] | Any = None,
    columns: str | Sequence[str] | None = None,
    *,
    ci_prob: float = 0.95,
    draws: int | None = None,
) -> xr.Dataset:
    """Return the density of one or two columns on a grid, with pointwise bands over the draws.

    Parameters
    ----------
    fit : DataTree
        With draws: of `sample_posterior`, `fit_laplace` or `bootstrap`.
    grid : mapping of str to (m,) array, optional
        One or two columns, each with its points in units of the data; the points of two columns
        are combined. For one column an array will do. Default: 400 points for one column, 60 x 60
        for two, over the range of the data and a tenth more on either side.
    columns : str or sequence of str, optional
        The columns, if the grid does not say. Default: all, if there are no more than two.
    ci_prob : float
        Probability of the pointwise equal-tailed intervals.
    draws : int, optional
        Use only this many, evenly spaced. Default: all.

    Returns
    -------
    Dataset
        ``mean``, ``sd``, ``eti_lower`` and ``eti_upper`` of the density over the draws, (x,) or
        (x, y); the coordinates are the points, and their ``long_name`` the columns, with
        ``units`` where these came with one.

    Raises
    ------
    ColumnNameError
        If a column is not one of the mixture's.
    ArgumentError
        If an argument is wrong: not one or two columns, points that are not finite numbers in one
        dimension, or a fit that is a point estimate; or if noise is not uniform in these columns
        (`bayesgmm.noise.refuse_single_columns`).
    """
    check_prob(ci_prob)
    with_draws(fit)
    mixture = mixtures_of(fit, draws)
    names = _columns(grid, columns, mixture.names)
    kept = [mixture.names.index(name) for name in names]
    if grid is None:
        points = [_default(fit, mixture, j, _POINTS[len(kept) - 1]) for j in kept]
    else:
        given = [grid[name] for name in names] if isinstance(grid, Mapping) else [grid]
        points = [_points(name, value) for name, value in zip(names, given, strict=True)]
    if names != mixture.names:
        region = region_of(fit)
        if region is not None:
            region.of(kept, len(mixture.names))  # or it is refused
        mixture = marginal(mixture, kept)
    unit = {name: {"units": text} for name, text in units_of(fit).items()}
    shape = tuple(map(len, points))
    rows = np.stack(np.meshgrid(*points, indexing="ij"), axis=-1).reshape(-1, len(kept))
    axes = _AXES[: len(kept)]
    return xr.Dataset(
        {name: (axes, v.reshape(shape)) for name, v in bands(mixture, rows, ci_prob).items()},
        coords={
            axis: (axis, value, {"long_name": name} | unit.get(name, {}))
            for axis, value, name in zip(axes, points, names, strict=True)
        },
        attrs={"ci_kind": "eti", "ci_prob": ci_prob},
    )


def bands(mixture: Mixtures, rows: Array, ci_prob: float) -> dict[str, Array]:
    """Return mean, sd and interval ends over the draws of the density at rows (n, d), (n,) each."""
    tail, s = 0.5 * (1.0 - ci_prob), len(mixture.weight)

    def part(each: Draws, some: Array) -> Array:
        density = np.exp([kernel.rows(some, *parameters, False)[0] for parameters in each])
        sd = density.std(axis=0, ddof=1) if s > 1 else np.zeros(len(some))
        ends = np.quantile(density, [tail, 1.0 - tail], axis=0)
        return np.stack([density.mean(axis=0), sd, *ends], axis=1)

    found = by_pattern(part, rows, mixture, block=max(1, NUMBERS // s))
    return dict(zip(("mean", "sd", "eti_lower", "eti_upper"), found.T, strict=True))


def marginal(mixture: Mixtures, kept: list[int]) -> Mixtures:
    """Return what some columns follow by themselves; noise in a box along the columns, too."""
    covariance = np.ascontiguousarray(mixture.covariance[:, :, kept][..., kept])
    d = len(kept)
    whitening = kernel.factorise(covariance.reshape(-1, d, d), False)[0]
    return Mixtures(
        mixture.weight,
        np.ascontiguousarray(mixture.mean[:, :, kept]),
        covariance,
        whitening.reshape(covariance.shape),
        tuple(mixture.names[j] for j in kept),
        mixture.noise and taken(mixture.noise, kept, len(mixture.names)),
    )


def _columns(grid: Any, columns: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that are asked for, by the grid or by name."""
    if isinstance(grid, Mapping):
        if columns is not None:
            raise ArgumentError("columns", "must be left out where the grid names the columns")
        wanted = tuple(map(str, grid))
    elif columns is None:
        wanted = names
    elif isinstance(columns, str):
        wanted = (columns,)
    elif isinstance(columns, Sequence):
        wanted = tuple(map(str, columns))
    else:
        raise ArgumentError("columns", f"must be one or two column names, not {columns!r}")
    if absent := [repr(name) for name in wanted if name not in names]:
        known = ", ".join(map(repr, names))
        raise ColumnNameError(f"the mixture has no {', '.join(absent)}; it has {known}")
    if len(wanted) not in (1, 2) or len(set(wanted)) < len(wanted):
        known = ", ".join(map(repr, names))
        raise ArgumentError("columns", f"must be one or two of {known}, not {', '.join(wanted)}")
    if grid is not None and not isinstance(grid, Mapping) and len(wanted) > 1:
        raise ArgumentError("grid", f"must map {' and '.join(map(repr, wanted))} to their points")
    return wanted


def _points(name: str, value: Any) -> Array:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError("grid", f"the points of {name!r} must be numbers") from None
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ArgumentError(
            "grid", f"the points of {name!r} must be finite numbers in one dimension"
        )
    return found


def _default(fit: xr.DataTree, mixture: Mixtures, j: int, n: int) -> Array:
    """Return points over the range of a column or, without data, about the mean of its density."""
    if "observed_data" in fit.children:
        x = fit["observed_data"].to_dataset()["x"].isel(feature=j).to_numpy()
        low, high = float(np.nanmin(x)), float(np.nanmax(x))
        margin = _MARGIN * (high - low)
    else:
        weight = mixture.weight / len(mixture.weight)
        mean = float((weight * mixture.mean[..., j]).sum())
        square = mixture.covariance[..., j, j] + (mixture.mean[..., j] - mean) ** 2
        low = high = mean
        margin = _SPREAD * float(np.sqrt((weight * square).sum()))
    return np.linspace(low - margin, high + margin, n)
