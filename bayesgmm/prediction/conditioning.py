r"""Some columns of a fitted mixture: by themselves, and given the values of others.

A normal distribution split into given columns o and the rest m has, given :math:`x_o`,

.. math:: x_m \mid x_o \sim N\big(\mu_m + B (x_o - \mu_o), \, C\big), \qquad
          B = \Sigma_{mo} \Sigma_{oo}^{-1}, \quad C = \Sigma_{mm} - B \Sigma_{om}

so that marginals and conditionals of a mixture are mixtures again, with the responsibilities
:math:`p(k \mid x_o)` as weights.  With draws, the density of a fit is the mean over its draws, as
`bayesgmm.score` has it, and the conditional is of that density:

.. math:: p(x_m \mid x_o) = \frac{\sum_s p(x_o \mid \theta_s) \, p(x_m \mid x_o, \theta_s)}
          {\sum_s p(x_o \mid \theta_s)}

A draw counts as much as it makes the given values probable: they are data, and the weights turn
draws of :math:`p(\theta)` into draws of :math:`p(\theta \mid x_o)`.  All of it follows from one
remark: the mean of S mixtures of K components is one mixture of S K components.

Noise in a box along the columns is uniform in some of them, and given the others
(`partitioned`).  As everywhere its density is the same outside the box: given values that are far
away it is noise that is left.

References
----------
Sung (2004), Gaussian mixture regression and classification, PhD thesis, Rice University.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read_like
from bayesgmm.errors import PACKAGE, ArgumentError, ColumnNameError, PosteriorWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import NOISE, Region, refuse_single_columns
from bayesgmm.prediction.evaluation import mixtures_of
from bayesgmm.prediction.partitioned import partitioned
from bayesgmm.tree import dataset, labels_at, names_of, region_of, spec_of, units_of

_NUMBERS = 1 << 18  # in the largest array of a block of rows
_ENOUGH = 100.0  # effective draws below which averages over them say little
# What stays true of a fit when columns are left out or given values.
_KEPT = (
    *("engine", "estimate", "random_seed", "stop_reason", "verdict", "warnings", "alignment"),
    *("bayesgmm_version", "versions"),
)


def marginal[Fit: (xr.DataTree, Parameters)](fit: Fit, columns: Sequence[str | int]) -> Fit:
    r"""Return the mixture that some columns follow by themselves.

    .. math:: p(x_m) = \sum_k \pi_k N(x_m; \mu_{k,m}, \Sigma_{k,mm})

    Parameters
    ----------
    fit : DataTree or Parameters
        A point estimate or any number of draws.
    columns : sequence of str
        The columns to keep, in this order. `Parameters` have ``x0, x1, ...``; their positions
        will do, too.

    Returns
    -------
    DataTree or Parameters
        What was given, with fewer columns, for `score`, `predict_proba`, `simulate`, `summary` and
        all else. The columns of `Parameters` are called ``x0, x1, ...`` anew. A tree keeps draws,
        standard errors and data; log-likelihoods and criteria are of the whole and are left out.
        Its specification has the smallest family that is sure to contain the marginal (``"VVE"``
        with fewer columns is ``"VVV"``, ``"EVI"`` is ``"VVI"``), and no prior.

    Raises
    ------
    ColumnNameError
        If a column is not one of the mixture's, or named twice.
    ArgumentError
        If ``columns`` is no sequence of names or is empty, or ``fit`` is neither of the two; if
        noise is not uniform in these columns (`bayesgmm.noise.refuse_single_columns`).
    """
    names = _names(fit)
    kept = _positions("columns", columns, names)
    if not kept:
        raise ArgumentError("columns", "names no column; a density needs at least one")
    if isinstance(fit, Parameters):
        covariance = fit.covariance[:, kept][:, :, kept]
        return Parameters(fit.weight, fit.mean[:, kept], covariance, _noise(fit, kept))
    groups = {
        name: fit[name].to_dataset().isel(feature=kept, feature_bis=kept, missing_dims="ignore")
        for name in ("posterior", "labels", "standard_error", "observed_data", "constant_data")
        if name in fit.children
    }
    return _derived(fit, groups, kept, {"marginal": [names[j] for j in kept]})


def conditional[Fit: (xr.DataTree, Parameters)](
    fit: Fit, given: Mapping[Any, float] | pd.Series[float]
) -> Fit:
    r"""Return the mixture that the other columns follow where some have given values.

    .. math:: p(x_m \mid x_o) = \sum_k p(k \mid x_o) \,
              N\big(x_m; \, \mu_{k,m} + B_k (x_o - \mu_{k,o}), \, C_k\big)

    with :math:`p(k \mid x_o) \propto \pi_k N(x_o; \mu_{k,o}, \Sigma_{k,oo})`, computed from
    logarithms, so that values however far away have a conditional.

    Parameters
    ----------
    fit : DataTree or Parameters
        A point estimate or any number of draws.
    given : mapping or Series
        Column -> value, in units of the data. Without any column nothing is conditioned on, and
        the result is that of `marginal` with all columns.

    Returns
    -------
    DataTree or Parameters
        As `marginal` returns, of the columns that are not given, in their order; a tree without
        standard errors and data, which have no conditional.

        With draws, draw s has the weight :math:`w_s \propto p(x_o \mid \theta_s)` (see the module)
        and comes up :math:`S w_s` times among S new ones, rounded up or down (systematic
        resampling, in the order of the draws and without chance), so that all count alike again,
        whatever is done with them. ``attrs["effective_draws"]`` is :math:`1 / \sum_s w_s^2`. The
        rounding moves no weight by more than 1/S; without any, for many rows, the log-density is
        ``score(fit, X) - score(marginal(fit, columns), X[columns])`` with the given columns, and
        means and covariances are those of `regress`.

    Raises
    ------
    ColumnNameError
        If a column is not one of the mixture's.
    ArgumentError
        If a value is not a finite number (the message names its column), if no column is left, or
        if ``fit`` is neither of the two; for noise as in `marginal`.

    Warns
    -----
    PosteriorWarning
        With code few-effective-draws: nearly all the weight is on few draws, as it is where the
        given values are unlikely under most of them.
    """
    if isinstance(given, pd.Series):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        raise ArgumentError(
            "given",
            f"must map columns to numbers, not {type(given).__name__}; for a table of rows use "
            "regress(fit, X, columns)",
        )
    names = _names(fit)
    observed = _positions("given", given, names)
    if not observed:
        return marginal(fit, names)
    rest = [j for j in range(len(names)) if j not in observed]
    if not rest:
        raise ArgumentError("given", "has every column of the mixture, so that none is left")
    x = np.array([[_finite(names[j], v) for j, v in zip(observed, given.values(), strict=True)]])
    noise, draws = _noise(fit, rest), mixtures_of(fit)
    split = partitioned(draws, observed, rest, None)
    s, k = draws.weight.shape
    share = split.responsibilities(x)[:, 0]
    of_noise = share[s * k :].reshape(-1, s).sum(axis=0)
    share = share[: s * k].reshape(s, k)
    total = share.sum(axis=1) + of_noise
    chosen = _systematic(total)
    weight, of_noise = share[chosen] / total[chosen, None], of_noise[chosen] / total[chosen]
    mean = split.means(x)[: s * k, 0].reshape(s, k, -1)[chosen]
    covariance = split.covariance[: s * k].reshape(s, k, len(rest), len(rest))[chosen]
    if isinstance(fit, Parameters):
        noise = noise and replace(noise, weight=float(of_noise[0]))
        return Parameters(weight[0], mean[0], covariance[0], noise)
    left = [names[j] for j in rest]
    arrays = {"weight": weight[None], "mean": mean[None], "covariance": covariance[None]}
    arrays |= {NOISE: of_noise[None]} if draws.noise is not None else {}
    posterior = dataset(arrays, left, ("chain", "draw"))
    step = {"given": {names[j]: float(v) for j, v in zip(observed, x[0], strict=True)}}
    groups = {"posterior": posterior} | labels_at(fit, chosen)
    found = _derived(fit, groups, rest, step)
    effective = float(total.sum() ** 2 / (total**2).sum())
    found.attrs["effective_draws"] = effective
    if effective < min(_ENOUGH, 0.5 * s):
        warnings.warn(
            PosteriorWarning(
                "few-effective-draws",
                f"given {step['given']}, {s} draws are worth {effective:.1f}: most make these "
                "values so improbable that they hardly count, and averages over the others say "
                "little. Take more draws, or fit data that reach as far as these values",
            ),
            skip_file_prefixes=(PACKAGE,),
        )
    return found


@overload
def regress(
    fit: xr.DataTree | Parameters,
    X: Any,
    columns: Sequence[str | int],
    *,
    covariance: Literal[False] = False,
    draws: int | None = None,
) -> pd.DataFrame: ...


@overload
def regress(
    fit: xr.DataTree | Parameters,
    X: Any,
    columns: Sequence[str | int],
    *,
    covariance: Literal[True],
    draws: int | None = None,
) -> tuple[pd.DataFrame, xr.DataArray]: ...


def regress(
    fit: xr.DataTree | Parameters,
    X: Any,
    columns: Sequence[str | int],
    *,
    covariance: bool = False,
    draws: int | None = None,
) -> pd.DataFrame | tuple[pd.DataFrame, xr.DataArray]:
    r"""Return mean and covariance of some columns given all others: Gaussian mixture regression.

    .. math:: E(x_m \mid x_o) = \sum_{sk} r_{sk} m_{sk}, \qquad
              \mathrm{Cov}(x_m \mid x_o) = \sum_{sk} r_{sk} \big( C_{sk} +
              (m_{sk} - E) (m_{sk} - E)^\top \big)

    with :math:`m_{sk} = \mu_{sk,m} + B_{sk} (x_o - \mu_{sk,o})` and :math:`r_{sk} \propto
    \pi_{sk} N(x_o; \mu_{sk,o}, \Sigma_{sk,oo})`, which sum to one over components and draws
    together; noise is one of the components, with the centre of its box as m, C of its sides'
    squares over 12, and 1/V of the given columns for a density.

    Parameters
    ----------
    fit : DataTree or Parameters
        With draws, mean and covariance are those of the posterior predictive distribution, which
        takes the uncertainty of the parameters into account.
    X : (n, .) table
        With all columns of the mixture that are not asked for; it may have those, too, and they
        are not looked at. To condition on fewer, use the `marginal` of the fit.
    columns : sequence of str
        The columns asked for.
    covariance : bool
        Whether to return also the covariances.
    draws : int, optional
        Use only this many, evenly spaced. Default: all. The time is proportional to rows times
        draws; memory does not grow with the rows.

    Returns
    -------
    DataFrame
        (n, m) conditional means, with the index of ``X`` and the columns asked for, in this order.
    DataArray
        (n, m, m) conditional covariances, with dimensions obs, feature and feature_bis; only if
        ``covariance``.

    Raises
    ------
    ColumnNameError
        If a column is not one of the mixture's, or ``X`` lacks one or has another.
    DataError
        If cells are not finite numbers.
    ArgumentError
        If an argument is wrong: no column asked for, or none left to condition on; for noise as in
        `marginal`, and for `Parameters` with noise, which do not say where it is.
    """
    names = _names(fit)
    asked = _positions("columns", columns, names)
    observed = [j for j in range(len(names)) if j not in asked]
    if not asked or not observed:
        what = "leaves none to condition on" if asked else "names none"
        raise ArgumentError("columns", f"{what} of the mixture's columns {', '.join(names)}")
    left = [names[j] for j in asked]
    x, index = read_like(_without(X, left, asked, len(names)), [names[j] for j in observed])
    region = _region(fit, asked)
    split = partitioned(mixtures_of(fit, draws), observed, asked, region)
    m = len(asked)
    mean, spread = np.empty((len(x), m)), np.empty((len(x), m, m) if covariance else (0, m, m))
    step = max(1, _NUMBERS // (len(split.log_weight) * max(m, len(observed))))
    for begin in range(0, len(x), step):
        part = slice(begin, begin + step)
        r, each = split.responsibilities(x[part]), split.means(x[part])
        # Where a component has no share it may be anywhere, at infinity as well.
        each = np.where(r[..., None] > 0.0, each, 0.0)
        mean[part] = np.einsum("jn,jnm->nm", r, each)
        if covariance:
            apart = np.where(r[..., None] > 0.0, each - mean[part], 0.0)
            scaled = np.moveaxis(r[..., None] * apart, 0, 2)
            spread[part] = scaled @ np.swapaxes(apart, 0, 1)
            spread[part] += np.tensordot(r, split.covariance, axes=(0, 0))
    frame = pd.DataFrame(mean, index=index, columns=left)
    if not covariance:
        return frame
    rows = index.to_flat_index() if isinstance(index, pd.MultiIndex) else index
    coords = {"obs": rows.rename("obs"), "feature": left, "feature_bis": left}
    return frame, xr.DataArray(spread, coords, ("obs", "feature", "feature_bis"), "covariance")


def _systematic(share: Array) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return as many positions as there are shares, each as often as its share has it."""
    s = len(share)
    reached = np.cumsum(share)
    return np.searchsorted(reached, reached[-1] * (np.arange(s) + 0.5) / s)


# What is read from a fit, and what is made of it again


def _names(fit: xr.DataTree | Parameters) -> tuple[str, ...]:
    is_fit = isinstance(fit, xr.DataTree) and "posterior" in fit.children
    if not (is_fit or isinstance(fit, Parameters)):
        raise ArgumentError("fit", f"must be a fit or Parameters, not {type(fit).__name__}")
    if isinstance(fit, Parameters):
        return tuple(f"x{j}" for j in range(np.shape(fit.mean)[-1]))
    return names_of(fit)


def _positions(argument: str, columns: Iterable[Any], names: Sequence[str]) -> list[int]:
    """Return where columns stand among the names; each must be there, and once."""
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise ArgumentError(argument, f"must be a list of column names, not {columns!r}")
    is_bare = names[0] == "x0"
    wanted = [f"x{c}" if is_bare and isinstance(c, Integral) else str(c) for c in columns]
    absent = [repr(name) for name in wanted if name not in names]
    if absent:
        known = ", ".join(map(repr, names))
        raise ColumnNameError(f"{argument}: the mixture has no {', '.join(absent)}; it has {known}")
    twice = sorted({repr(name) for name in wanted if wanted.count(name) > 1})
    if twice:
        raise ColumnNameError(f"{argument}: names {', '.join(twice)} more than once")
    return [names.index(name) for name in wanted]


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ArgumentError("given", f"column {name!r} must be a number, not {value!r}")
    if not np.isfinite(float(value)):
        raise ArgumentError(
            "given", f"column {name!r} must be finite, not {value!r}; leave it out if it is unknown"
        )
    return float(value)


def _without(X: Any, left: list[str], asked: list[int], d: int) -> Any:
    """Return a table without the columns asked for, if it has them."""
    if isinstance(X, Mapping):
        return {name: column for name, column in X.items() if str(name) not in left}
    if hasattr(X, "column_names"):  # pyarrow
        return X.select([name for name in X.column_names if name not in left])
    if hasattr(X, "columns") and hasattr(X, "__getitem__"):
        return X[[name for name in X.columns if str(name) not in left]]
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == d:
        return np.delete(X, asked, axis=1)
    return X


def _noise(fit: xr.DataTree | Parameters, kept: list[int]) -> Noise | None:
    """Return the noise of `Parameters` in some columns; of a fit only look whether there is one."""
    if not isinstance(fit, Parameters):
        region = region_of(fit)
        if region is not None:
            region.of(kept, len(names_of(fit)))
        return None
    if fit.noise is None:
        return None
    if fit.noise.log_edges is None and len(kept) < fit.d:
        raise ArgumentError(
            "fit",
            "has noise of which only the density is known, not its box's sides, which single "
            "columns need; of a fit with noise='columns' they are known",
        )
    return fit.noise.take(kept, fit.d)


def _region(fit: xr.DataTree | Parameters, asked: list[int]) -> Region | None:
    """Return where noise is, whose means some columns are asked for."""
    if isinstance(fit, Parameters) and fit.noise is not None:
        raise ArgumentError(
            "fit",
            "has noise of which Parameters do not say where it is, so that it has no mean; give "
            "the fit itself",
        )
    region = None if isinstance(fit, Parameters) else region_of(fit)
    if region is not None:
        refuse_single_columns("fit", region)
    return region


def _derived(
    fit: xr.DataTree, groups: dict[str, xr.Dataset], kept: list[int], step: dict[str, Any]
) -> xr.DataTree:
    """Return a fit with other groups and some of the columns, which records how it came about."""
    found = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    found.attrs = {name: fit.attrs[name] for name in _KEPT if name in fit.attrs}
    names, units, region = names_of(fit), units_of(fit), region_of(fit)
    own = {names[j]: units[names[j]] for j in kept if names[j] in units}
    found.attrs |= {"units": json.dumps(own)} if own else {}
    found.attrs |= {"noise": region.of(kept, len(names)).to_json()} if region else {}
    if "spec" in fit.attrs:
        spec = spec_of(fit)
        family = _family(spec.covariance, len(names), len(kept))
        found.attrs["spec"] = GaussianMixture(spec.n_components, family, None, spec.noise).to_json()
    found.attrs["derivation"] = json.dumps([*json.loads(fit.attrs.get("derivation", "[]")), step])
    return found


def _family(family: Covariance, d: int, left: int) -> Covariance:
    """Return the smallest family sure to hold what a family of d columns leaves of ``left``.

    Marginals and conditionals alike. Covariances that are multiples of one stay so; own shapes of
    one volume, or axes of own or common shapes, leave nothing that is shared.
    """
    if left == d:
        return family
    if left == 1:
        return Covariance("E" if family.is_common else "V")
    if family.shape != "V" and family.orientation != "V":
        return family
    return Covariance("VVI" if family.is_diagonal else "VVV")
