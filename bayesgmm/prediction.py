r"""What a fitted mixture says about rows, old or new: densities, components, and new rows.

Every verb takes a fit of either engine, or `Parameters`.  A point estimate answers with its own
parameters; draws answer with the average over the posterior,

.. math:: p(x) = \frac1S \sum_s p(x \mid \theta_s), \qquad
          p(k \mid x) = \frac1S \sum_s \frac{\pi_{sk} N(x; \mu_{sk}, \Sigma_{sk})}
          {\sum_j \pi_{sj} N(x; \mu_{sj}, \Sigma_{sj})}

which for components needs draws whose labels agree, as those in a fit's ``posterior`` do; where too
many are ambiguous, probabilities of components are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.ambiguity import refuse_ambiguous
from bayesgmm.arguments import whole_number
from bayesgmm.data.cells import Missing
from bayesgmm.data.mixing import UNRESOLVED, are_resolved
from bayesgmm.data.observations import read_like
from bayesgmm.data.table import tabulate
from bayesgmm.errors import ArgumentError, ShapeError
from bayesgmm.groups import NO_LABELS, Group, marginal, split
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import NOISE, Region
from bayesgmm.numeric import kernel
from bayesgmm.streams import blocks, has_nan, room_like
from bayesgmm.tree import DIMS, names_of, region_of, units_of

Draws = list[tuple[Array, Array, Array]]
NOISE_LABEL = -1
_BLOCK = 1 << 13  # rows per unit of work: they stay in cache while the draws pass over them


@overload
def simulate(
    fit: xr.DataTree | Parameters,
    n: int,
    *,
    labels: Literal[False] = False,
    random_seed: int | None = None,
) -> pd.DataFrame: ...


@overload
def simulate(
    fit: xr.DataTree | Parameters,
    n: int,
    *,
    labels: Literal[True],
    random_seed: int | None = None,
) -> tuple[pd.DataFrame, pd.Series[int]]: ...


def simulate(
    fit: xr.DataTree | Parameters,
    n: int,
    *,
    labels: bool = False,
    random_seed: int | None = None,
) -> pd.DataFrame | tuple[pd.DataFrame, pd.Series[int]]:
    """Draw new rows from a fitted mixture.

    Parameters
    ----------
    fit : DataTree or Parameters
        With draws, every row is from the parameters of a draw of its own, taken at random: the
        rows are a sample of the posterior predictive distribution.
    n : int
        How many rows.
    labels : bool
        Whether to return also the component that each row came from.
    random_seed : int, optional
        The same seed gives the same rows.

    Returns
    -------
    DataFrame
        (n, d), with the columns that were fitted (``x0, x1, ...`` for `Parameters`).
    Series
        (n,) components, named "cluster", -1 for noise; only if ``labels``.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or parameters are not those of a mixture; or if they have a noise
        component of which no more than its volume is known.
    """
    mixture = mixtures_of(fit)
    n = whole_number("n", n, least=1)
    if random_seed is not None:
        random_seed = whole_number("random_seed", random_seed, least=0)
    rng = np.random.default_rng(random_seed)
    x, cluster = new_rows(fit, mixture, rng.integers(len(mixture.weight), size=n), rng)
    frame = pd.DataFrame(x, columns=list(mixture.names))
    return (frame, pd.Series(cluster, name="cluster")) if labels else frame


def score(
    fit: xr.DataTree | Parameters, X: Any, *, draws: int | None = None, missing: Missing = "error"
) -> pd.Series[float]:
    """Return the log-density of every row, in units of the data.

    For a posterior this is the logarithm of the mean density over the draws, the log posterior
    predictive density; its mean over new rows measures how well they are predicted.

    Parameters
    ----------
    fit : DataTree or Parameters
    X : (n, d) table
        Columns are matched by name if it has names.
    draws : int, optional
        Use only this many, evenly spaced. Default: all. The time is proportional to rows times
        draws: 25 seconds of one core for 1e5 rows, 4000 draws, 3 components and 4 columns, shared
        by all cores. Memory does not grow with the draws.
    missing : {"error", "drop", "marginalise"}
        Missing values are refused; their rows are left out; or the density is that of what is
        observed in each row: 0 in logarithms where that is nothing.

    Returns
    -------
    Series
        (n,), named "log_density", with the index of ``X``; -inf where the squared distance to
        every component is beyond the largest number.

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, or parameters are not those of a mixture.
    """
    mixture = mixtures_of(fit, draws)
    x, index = read_rows(fit, X, mixture, missing)

    def part(each: Draws, rows: Array) -> Array:
        # Running log-sum-exp over the draws.
        total = np.full(len(rows), -np.inf)
        for parameters in each:
            np.logaddexp(total, kernel.rows(rows, *parameters, False)[0], out=total)
        return total - np.log(len(mixture.weight))

    found = by_pattern(part, x, mixture)
    return pd.Series(found, index=index, name="log_density", copy=False)


def predict_proba(
    fit: xr.DataTree | Parameters,
    X: Any,
    *,
    draws: int | None = None,
    missing: Missing = "error",
    allow_ambiguous: bool = False,
) -> pd.DataFrame:
    """Return the probability that each row came from each component.

    For a posterior this is the mean over the draws of the responsibilities, which takes the
    uncertainty of the parameters into account.

    Parameters
    ----------
    fit : DataTree or Parameters
    X : (n, d) table
        Columns are matched by name if it has names.
    draws : int, optional
        Use only this many, evenly spaced. Default: all; see `score` for the time.
    missing : {"error", "drop", "marginalise"}
        Missing values are refused; their rows are left out; or the probabilities are those given
        what is observed in each row: the weights where that is nothing.
    allow_ambiguous : bool
        Of draws whose labels are ambiguous (in more than 5 % of them) components have no
        probabilities, since the mean would be over several; or, if this is true, nonetheless.

    Returns
    -------
    DataFrame
        (n, k), with the index of ``X`` and the columns 0..k-1, and "noise" if the mixture has such
        a component; every row sums to one. A row however far away has probabilities: those of the
        components nearest to it, in their own units.

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, or parameters are not those of a mixture; if labels are ambiguous:
        `coclustering` and `partition` do not depend on them, nor do `score` and `regress`.
    """
    mixture = mixtures_of(fit, draws)
    if isinstance(fit, xr.DataTree) and not allow_ambiguous:
        refuse_ambiguous(fit, "probabilities of single components")
    x, index = read_rows(fit, X, mixture, missing)

    def part(each: Draws, rows: Array) -> Array:
        total = np.zeros((mixture.weights.shape[1], len(rows)))
        for parameters in each:
            total += kernel.rows(rows, *parameters, True)[1]
        total /= total.sum(axis=0)
        return total.T

    k = mixture.weight.shape[1]
    columns: pd.Index[Any] = pd.RangeIndex(k, name="cluster")
    if mixture.noise is not None:
        columns = pd.Index([*range(k), "noise"], name="cluster")
    return pd.DataFrame(by_pattern(part, x, mixture), index=index, columns=columns, copy=False)


def predict(
    fit: xr.DataTree | Parameters,
    X: Any,
    *,
    draws: int | None = None,
    missing: Missing = "error",
    allow_ambiguous: bool = False,
) -> pd.Series[int]:
    """Return the most probable component of every row.

    Parameters
    ----------
    fit, X, draws, missing, allow_ambiguous
        As in `predict_proba`.

    Returns
    -------
    Series
        (n,) integers, named "cluster", with the index of ``X``, -1 for noise; of equally probable
        components the first.

    Raises
    ------
    DataError, ArgumentError
        As `predict_proba`.
    """
    probability = predict_proba(
        fit, X, draws=draws, missing=missing, allow_ambiguous=allow_ambiguous
    )
    p = probability.to_numpy()
    label = room_like(p, len(p)).view(np.int64)
    for part in blocks(len(p)):
        label[part] = p[part].argmax(axis=1)
    if "noise" in probability:
        label[label == p.shape[1] - 1] = NOISE_LABEL
    return pd.Series(label, index=probability.index, name="cluster", copy=False)


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


def new_rows(
    fit: xr.DataTree | Parameters,
    mixture: Mixtures,
    draw: NDArray[np.intp],
    rng: np.random.Generator,
) -> tuple[Array, NDArray[np.intp]]:
    """Draw a row from the mixture of each given draw: rows (n, d), and their components (n,)."""
    cumulative = np.cumsum(mixture.weights, axis=1)
    # Below the last sum, so that no rounding chooses a component of weight 0.
    uniform = rng.random(len(draw)) * cumulative[draw, -1]
    cluster = (uniform[:, None] >= cumulative[draw]).sum(axis=1)
    x = rng.standard_normal((len(draw), mixture.mean.shape[-1]))
    is_noise = cluster == mixture.weight.shape[1]
    cluster[is_noise] = NOISE_LABEL
    for begin in range(0, len(x), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        of = (draw[part], np.maximum(cluster[part], 0))
        x[part] = np.linalg.solve(mixture.whitening[of], x[part, :, None])[..., 0]
        x[part] += mixture.mean[of]
    if is_noise.any():
        x[is_noise] = _noise_rows(fit, int(is_noise.sum()), rng)
    return x, cluster


def _noise_rows(fit: xr.DataTree | Parameters, n: int, rng: np.random.Generator) -> Array:
    region = region_of(fit) if isinstance(fit, xr.DataTree) else None
    return (region or Region(0.0)).draw(n, rng)  # of parameters no region is known


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
        part = _by_blocks(partial(function, mixture.draws(group)), group.x, block or _BLOCK)
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
