"""Draws of mixtures, checked, and functions of them at rows: what all questions to a fit share."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm.arguments import whole_number
from bayesgmm.data.cells import Missing
from bayesgmm.data.mixing import UNRESOLVED, are_resolved
from bayesgmm.data.observations import read_like
from bayesgmm.data.table import tabulate
from bayesgmm.errors import ArgumentError, ShapeError
from bayesgmm.groups import NO_LABELS, Group, marginal, split
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.numeric import kernel
from bayesgmm.streams import blocks, has_nan, room_like
from bayesgmm.tree import DIMS, names_of, region_of, units_of

Draws = list[tuple[Array, Array, Array]]
BLOCK = 1 << 13  # rows per unit of work: they stay in cache while the draws pass over them


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Draws of parameters: weight (s, k), mean (s, k, d), covariance and whitening (s, k, d, d)."""

    weight: Array
    mean: Array
    covariance: Array
    whitening: Array
    names: tuple[str, ...]
    noise: tuple[Noise, ...] | None = None  # of every draw

    @property
    def weights(self) -> Array:
        """All weights of every draw, that of the noise last: (s, k) or (s, k + 1)."""
        if self.noise is None:
            return self.weight
        return np.column_stack([self.weight, [one.weight for one in self.noise]])

    def draws(self, group: Group) -> Draws:
        """Return log-weight, mean and whitening of every draw, for rows that know alike."""
        with np.errstate(divide="ignore"):
            log_weight = np.log(self.weight) + group.log_factor
        mean, whitening = self.mean, self.whitening
        if not group.observed.all():
            mean, covariance = marginal(mean, self.covariance, group.observed.astype(np.float64))
            flat = covariance.reshape(-1, *covariance.shape[2:])
            whitening = kernel.factorise(flat, False)[0].reshape(covariance.shape)
        if self.noise is None:
            return list(zip(log_weight, mean, whitening, strict=True))
        found = []
        for i, noise in enumerate(self.noise):
            own = noise.of(group.observed)
            own = own if group.may_be_noise else replace(own, weight=0.0)
            one = Parameters(self.weight[i], mean[i], self.covariance[i], own)
            vars(one)["log_weight"], vars(one)["whitening"] = log_weight[i], whitening[i]
            wide = one.widened
            found.append((wide.log_weight, wide.mean, wide.whitening))
        return found


def mixtures_of(fit: xr.DataTree | Parameters, draws: int | None = None) -> Mixtures:
    """Return the checked draws of a fit, some or all; of `Parameters` one."""
    if isinstance(fit, Parameters):
        arrays = [np.asarray(getattr(fit, name), dtype=float)[None] for name in DIMS]
        _check_shapes(*arrays)
        names = tuple(f"x{f}" for f in range(arrays[1].shape[-1]))
        noise: tuple[Noise, ...] | None = None if fit.noise is None else (fit.noise,)
    elif "posterior" in getattr(fit, "children", {}):
        group = fit["posterior"].to_dataset()
        ordered = (group[name].transpose("chain", "draw", *DIMS[name]) for name in DIMS)
        arrays = [a.to_numpy().reshape(-1, *a.shape[2:]) for a in ordered]
        names, region = names_of(fit), region_of(fit)
        noise = None
        if region is not None:
            shares = group[NOISE].transpose("chain", "draw").to_numpy().ravel().tolist()
            noise = tuple(map(region.noise, shares))
    else:
        raise ArgumentError("fit", f"must be a fit or Parameters, not {type(fit).__name__}")
    if draws is not None:
        wanted = whole_number("draws", draws, least=1)
        s = len(arrays[0])
        which = np.linspace(0, s - 1, min(s, wanted)).round().astype(np.intp)
        arrays = [a[which] for a in arrays]
        noise = None if noise is None else tuple(noise[i] for i in which)
    weight, mean, covariance = (np.ascontiguousarray(a) for a in arrays)
    total = weight.sum(axis=1)
    if noise is not None:
        total = total + [one.weight for one in noise]
    whitening = _whitening(weight, mean, covariance, total)
    return Mixtures(weight, mean, covariance, whitening, names, noise)


def _check_shapes(weight: Array, mean: Array, covariance: Array) -> None:
    k, d = (mean.shape[1], mean.shape[-1]) if mean.ndim == 3 else (0, 0)
    if not k or not d or weight.shape != (1, k) or covariance.shape != (1, k, d, d):
        shapes = ", ".join(str(a.shape[1:]) for a in (weight, mean, covariance))
        raise ArgumentError(
            "fit", f"weight, mean, covariance must be (k,), (k, d) and (k, d, d), not {shapes}"
        )


def _whitening(weight: Array, mean: Array, covariance: Array, total: Array) -> Array:
    """Return the whitening of every covariance, or say which parameters are of no mixture."""
    with np.errstate(invalid="ignore", over="ignore"):
        uneven = np.abs(covariance - np.swapaxes(covariance, 2, 3)).max(axis=(2, 3))
        symmetric = (uneven <= 1e-8 * np.abs(covariance).max(axis=(2, 3))).all(axis=1)
        summed = np.abs(total - 1.0) < 1e-6
    whitening, definite = np.empty(covariance.shape), np.empty(len(covariance), dtype=bool)
    for s in range(len(covariance)):
        whitening[s], definite[s] = kernel.factorise(covariance[s], False)
    checks = {
        "the weights must be at least 0 and sum to one": summed & (weight >= 0).all(axis=1),
        "the means must be finite": np.isfinite(mean).all(axis=(1, 2)),
        "the covariances must be symmetric and positive definite": symmetric & definite,
        UNRESOLVED: are_resolved(covariance, whitening).all(axis=1),
    }
    for message, good in checks.items():
        if not good.all():
            where = f"; draw {good.argmin()} is not so" if len(good) > 1 else ""
            raise ArgumentError("fit", message + where)
    return whitening


def read_rows(
    fit: xr.DataTree | Parameters, X: Any, mixture: Mixtures, missing: Missing
) -> tuple[Array, pd.Index[Any]]:
    """Return the checked rows of a table, (n, d), NaN where missing, and its index."""
    if isinstance(fit, xr.DataTree):
        values, index = read_like(X, mixture.names, missing=missing, units=units_of(fit))
    else:
        table = tabulate(X, missing=missing)
        values, index = table.values, table.index
        d = len(mixture.names)
        if values.shape[1] != d:
            raise ShapeError(f"X has {values.shape[1]} columns, but the mixture has {d}")
    is_known = mixture.noise is None or mixture.noise[0].log_edges is not None
    if not is_known and has_nan(values):
        raise ArgumentError(
            "missing",
            "values cannot be integrated over where the noise is in no box along the columns; "
            "of a fit with noise='columns', or to rows with missing values, it is in one",
        )
    return np.ascontiguousarray(values), index


def responsibilities_of(each: Draws, rows: Array) -> Array:
    """Return the responsibilities of rows (n, d) in some draws, (s, k, n)."""
    return np.stack([kernel.rows(rows, *parameters, True)[1] for parameters in each])


def by_pattern(
    function: Callable[[Draws, Array], Array],
    x: Array,
    mixture: Mixtures,
    known: Array = NO_LABELS,
    block: int | None = None,
) -> Array:
    """Apply a function to draws and to the rows that know alike, on all cores.

    Parameters
    ----------
    function : callable
        Of the draws of a group (`groups`), and some of its rows; returns an array (rows, ...).
    x : (n, d) array
        NaN where missing.
    mixture : Mixtures
    known : (n, k) array, optional
        How probable each component is for each row, apart from x.
    block : int, optional
        The most rows that are taken at once.
    """
    found: Array | None = None
    for group in split(x, probability=known, most_kinds=len(x)):
        part = _by_blocks(partial(function, mixture.draws(group)), group.x, block or BLOCK)
        if isinstance(group.rows, slice):  # all of them
            return part
        if found is None:
            found = room_like(x, len(x), *part.shape[1:])
        found[group.rows] = part
    assert found is not None  # a table has rows
    return found


def _by_blocks(function: Callable[[Array], Array], x: Array, block: int) -> Array:
    """Apply a function to blocks of rows; rows do not depend on each other."""
    parts = list(blocks(len(x), block))
    first = function(x[parts[0]])
    if len(parts) == 1:
        return first
    found = room_like(x, len(x), *first.shape[1:])
    found[parts[0]] = first

    def fill(part: slice) -> None:
        found[part] = function(x[part])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, parts[1:]))
    return found
