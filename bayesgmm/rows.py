"""One fit as a table: a row for every free parameter, the same rows whichever engine made it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import ndtri

from bayesgmm.ambiguity import ambiguous_of, why_refused
from bayesgmm.data.units import product
from bayesgmm.errors import PACKAGE, ArgumentError, PosteriorWarning
from bayesgmm.labelfree import label_free
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array
from bayesgmm.noise import NOISE
from bayesgmm.tree import DIMS, dims_of, names_of, spec_of, units_of, whole


@dataclass(frozen=True)
class Row:
    """One free parameter: its name, and where its value stands in a fit's arrays."""

    label: str
    variable: str
    cluster: int  # -1 where all components share it, or none has it
    feature: str
    feature_bis: str
    at: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The variable, or "variance" for an element of a covariance's diagonal."""
        if self.variable == NOISE:
            return "weight"
        diagonal = self.variable == "covariance" and self.at[1] == self.at[2]
        return "variance" if diagonal else self.variable


def parameter_rows(spec: GaussianMixture, names: tuple[str, ...]) -> list[Row]:
    """Return the parameters of a specification, in the order of every table.

    Weights (none for a single component), that of the noise, means, and the lower triangles of the
    covariances without what the family makes equal: a diagonal family has variances only, a
    spherical one a single variance per component (without feature names), a common covariance is
    listed once.

    Parameters
    ----------
    spec : GaussianMixture
    names : tuple of str
        Column names.

    Returns
    -------
    list of Row
    """
    k, family = spec.n_components, spec.covariance
    shown = [printable(name) for name in names]
    rows = [Row(f"weight[{j}]", "weight", j, "", "", (j,)) for j in range(k) if k > 1]
    if spec.has_noise:
        rows.append(Row(NOISE, NOISE, -1, "", "", ()))
    for j in range(k):
        for f, name in enumerate(names):
            rows.append(Row(f"mean[{j}, {shown[f]}]", "mean", j, name, "", (j, f)))
    spherical = family.shape == "I" and len(names) > 1
    for j in range(1 if family.is_common else k):
        cluster, own = (-1, []) if family.is_common else (j, [str(j)])
        for f, name in enumerate(names[:1] if spherical else names):
            for g in range(f if family.is_diagonal else 0, f + 1):
                what = own if spherical else [*own, shown[g], shown[f]]
                label = f"covariance[{', '.join(what)}]" if what else "covariance"
                pair = ("", "") if spherical else (names[g], name)
                rows.append(Row(label, "covariance", cluster, *pair, (j, g, f)))
    return rows


def unit_of(row: Row, units: dict[str, str]) -> str:
    """Return the unit of a parameter, given those of the columns by name; "" where none is known.

    A variance that all columns share has none here, since columns may have several.
    """
    if row.variable in ("mean", "mixture_mean", "mixture_sd"):
        return units.get(row.feature, "")
    if row.variable != "covariance":
        return ""
    first, second = (units.get(name, "") for name in (row.feature, row.feature_bis))
    return product(first, second) if first and second else ""


def parameters_by_component(fit: xr.DataTree) -> dict[str, list[Row]]:
    """Return the parameters that every component has, by their names without it.

    ``"weight"``, ``"mean[waiting]"``, ``"covariance[waiting, waiting]"``: a row for each component.
    """
    found: dict[str, list[Row]] = {}
    for row in parameter_rows(spec_of(fit), names_of(fit)):
        if row.cluster >= 0:
            inside = row.label[len(row.variable) + 1 : -1].partition(", ")[2]
            name = f"{row.variable}[{inside}]" if inside else row.variable
            found.setdefault(name, []).append(row)
    return found


def summary(
    fit: xr.DataTree, *, ci_prob: float = 0.95, allow_ambiguous: bool = False
) -> pd.DataFrame:
    """Summarise one fit: the same rows for a point estimate and for draws.

    Parameters
    ----------
    fit : DataTree
    ci_prob : float
        Probability of the interval.
    allow_ambiguous : bool
        Of draws whose labels are ambiguous (in more than 5 % of them) only quantities without
        labels are shown, since the mean of a component would be a mixture of several; or, if
        this is true, all parameters nonetheless.

    Returns
    -------
    DataFrame
        For a point estimate the columns ``estimate, se, wald95_lower, wald95_upper``; for draws
        ``mean, sd, eti95_lower, eti95_upper, mcse, ess_bulk, ess_tail, r_hat`` (an equal-tailed
        interval; ``mcse`` is that of the mean). The kind and probability are also in ``attrs``, and
        for a point estimate ``se_method`` and ``se_note``: how errors were found, and why not; for
        draws ``alignment``, ``ambiguous``, the share of draws with ambiguous labels, and ``note``,
        why components are left out.

    Raises
    ------
    ArgumentError
        If ``fit`` is no fit, or ``ci_prob`` not between 0 and 1.

    Warns
    -----
    PosteriorWarning
        With code ambiguous-labels: components are left out. With code modes-averaged: the draws
        are in unlike modes of a posterior.
    """
    check_prob(ci_prob)
    whole("fit", fit)
    if has_draws(fit):
        _warn_of_modes(fit)
        return _summary_of_draws(fit, ci_prob, allow_ambiguous)
    rows = parameter_rows(spec_of(fit), names_of(fit))
    level = f"{100 * ci_prob:g}"
    estimate = take_draws(fit, rows)[0, 0]
    se = take(standard_errors(fit), rows)
    lower, upper = wald_interval(estimate, se, ci_prob)
    columns = ("estimate", "se", f"wald{level}_lower", f"wald{level}_upper")
    frame = _frame(rows, dict(zip(columns, (estimate, se, lower, upper), strict=True)))
    frame.attrs = {"ci_kind": "wald", "ci_prob": ci_prob, **_units(fit)}
    frame.attrs["se_method"], frame.attrs["se_note"] = error_method(fit)
    return frame


def _summary_of_draws(fit: xr.DataTree, ci_prob: float, allow_ambiguous: bool) -> pd.DataFrame:
    rows = parameter_rows(spec_of(fit), names_of(fit))
    draws, level = take_draws(fit, rows), f"{100 * ci_prob:g}"
    note = "" if allow_ambiguous else note_of_ambiguous(fit)
    if note:
        shared = [i for i, row in enumerate(rows) if row.cluster < 0]
        free = label_free_of(fit)
        others = label_free_rows(free, names_of(fit))
        rows = [*(rows[i] for i in shared), *others]
        draws = np.concatenate([draws[..., shared], take(free, others)], axis=-1)
    found = summarise_draws(draws, ci_prob, are_independent(fit))
    order = ("mean", "sd", "eti_lower", "eti_upper", "mcse", "ess_bulk", "ess_tail", "r_hat")
    frame = _frame(rows, {name.replace("eti", f"eti{level}"): found[name] for name in order})
    frame.attrs = {"ci_kind": "eti", "ci_prob": ci_prob, "note": note, **_units(fit)}
    frame.attrs |= {"alignment": alignment_of(fit), "ambiguous": ambiguous_of(fit)}
    return frame


def note_of_ambiguous(fit: xr.DataTree) -> str:
    """Return why components are not shown, and warn of it; "" where they are."""
    note = why_refused(fit)
    if note:
        note += "; only quantities without labels are shown (all: allow_ambiguous=True)"
        warnings.warn(PosteriorWarning("ambiguous-labels", note), skip_file_prefixes=(PACKAGE,))
    return note


def _frame(rows: list[Row], table: dict[str, Array]) -> pd.DataFrame:
    return pd.DataFrame(table, index=pd.Index([row.label for row in rows], name="parameter"))


def alignment_of(fit: xr.DataTree) -> str:
    """Return the method by which the draws of a fit got their labels."""
    return str(fit.attrs.get("alignment", "pivot"))


def _warn_of_modes(fit: xr.DataTree) -> None:
    """Warn where one mean is taken of unlike modes: chains stay in them, or weights mix them."""
    checks = json.loads(str(fit.attrs.get("verdict", "{}"))).get("checks", [])
    for check in checks:
        told = ("fail", "warn") if are_weighted(fit) else ("fail",)
        if check["code"] == "modes" and check["status"] in told:
            message = (
                f"means and intervals are those of draws in unlike modes. {check['evidence']}. "
                "Use bg.mode(fit, i) or bg.combine_modes(fit)"
            )
            warning = PosteriorWarning("modes-averaged", message)
            warnings.warn(warning, skip_file_prefixes=(PACKAGE,))


def _units(fit: xr.DataTree) -> dict[Hashable, Any]:
    """The units of the columns that came with one, for the attributes of a table."""
    found = units_of(fit)
    return {"units": found} if found else {}


def has_draws(fit: xr.DataTree) -> bool:
    """Whether a fit is more than a point estimate: the one thing that tells fits apart."""
    sizes = fit["posterior"].sizes
    return bool(sizes["chain"] * sizes["draw"] > 1)


def are_independent(fit: xr.DataTree) -> bool:
    """Whether draws are independent by construction: there is no chain that could have stuck."""
    return bool(fit.attrs.get("draws") == "independent")


def are_weighted(fit: xr.DataTree) -> bool:
    """Whether draws were resampled by importance weights, and so are no chain."""
    return "criteria" in fit.children and "pareto_k" in fit["criteria"]


def check_prob(ci_prob: float) -> None:
    """Refuse what is no probability of an interval."""
    if not 0.0 < ci_prob < 1.0:
        raise ArgumentError("ci_prob", f"must be between 0 and 1, not {ci_prob!r}")


def printable(name: str) -> str:
    """Return a column name without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def take(arrays: dict[str, Array], rows: list[Row]) -> Array:
    """Return the rows' values, (..., parameter), from arrays (..., k), (..., k, d), ... by name."""
    columns = []
    for row in rows:
        array = arrays[row.variable]
        index: tuple[Any, ...] = (..., *row.at)
        columns.append(array[index])
    return np.stack(columns, axis=-1)


def draws_of(fit: xr.DataTree) -> dict[str, Array]:
    """Return the parameters by name, with leading dimensions (chain, draw)."""
    return _arrays(fit["posterior"].to_dataset(), dims_of(fit))


def _arrays(group: xr.Dataset, dims: dict[str, tuple[str, ...]]) -> dict[str, Array]:
    return {name: group[name].transpose("chain", "draw", *dims[name]).to_numpy() for name in dims}


def raw_draws(fit: xr.DataTree) -> dict[str, Array]:
    """Return the parameters of a fit with draws as they were before any alignment.

    Where they were not kept, the labels that they got are undone.
    """
    if "posterior_raw" in fit.children:
        return _arrays(fit["posterior_raw"].to_dataset(), dims_of(fit))
    aligned = draws_of(fit)
    order = fit["labels"].to_dataset()["permutation"].transpose("chain", "draw", "cluster")
    back = np.argsort(order.to_numpy(), axis=-1)
    for name in DIMS:
        tail = (None,) * (aligned[name].ndim - 3)
        aligned[name] = np.take_along_axis(aligned[name], back[(..., *tail)], axis=2)
    return aligned


def label_free_of(fit: xr.DataTree) -> dict[str, Array]:
    """Return quantities that no labelling changes, (chain, draw) or (chain, draw, d), by name.

    Those that the fit has, or, of a point estimate and of a part of a fit, those of `label_free`.
    """
    if "label_free" in fit.children:
        group = fit["label_free"].to_dataset()
        return {
            str(name): array.transpose("chain", "draw", ...).to_numpy()
            for name, array in group.data_vars.items()
        }
    found = draws_of(fit)
    weight = found["weight"] / found["weight"].sum(axis=-1, keepdims=True)  # without noise
    return label_free(weight, found["mean"], found["covariance"])


def label_free_rows(arrays: dict[str, Array], names: tuple[str, ...]) -> list[Row]:
    """Return the quantities of `label_free_of` as rows, whose ``cluster`` is -1."""
    rows = []
    for variable, array in arrays.items():
        if array.ndim == 2:
            rows.append(Row(variable, variable, -1, "", "", ()))
        else:
            each = enumerate(names)
            rows += [Row(f"{variable}[{printable(n)}]", variable, -1, n, "", (f,)) for f, n in each]
    return rows


def take_draws(fit: xr.DataTree, rows: list[Row]) -> Array:
    """Return all draws of the rows' parameters, (chain, draw, parameter)."""
    return take(draws_of(fit), rows)


def standard_errors(fit: xr.DataTree) -> dict[str, Array]:
    """Return the standard errors of the parameters by name, NaN where there are none."""
    if "standard_error" in fit.children:
        group, dims = fit["standard_error"].to_dataset(), dims_of(fit)
        return {name: group[name].transpose(*dims[name]).to_numpy() for name in dims}
    return {name: np.full(a.shape[2:], np.nan) for name, a in draws_of(fit).items()}


def error_method(fit: xr.DataTree) -> tuple[str, str]:
    """Return how the standard errors of a fit were found, and why some are missing or doubtful."""
    if "standard_error" not in fit.children:
        return "none", "none was computed"
    attrs = fit["standard_error"].attrs
    return str(attrs.get("method", "unknown")), str(attrs.get("note", ""))


def wald_interval(estimate: Array, se: Array, ci_prob: float) -> tuple[Array, Array]:
    """Return estimate -/+ the normal quantile times the standard error."""
    half = ndtri(0.5 + 0.5 * ci_prob) * se
    return estimate - half, estimate + half


def interval_overlap(lower: Array, upper: Array, other_lower: Array, other_upper: Array) -> Array:
    """Return length of intersection / length of union: 1 for equal intervals, 0 for disjoint."""
    common = np.minimum(upper, other_upper) - np.maximum(lower, other_lower)
    common = np.maximum(common, 0.0)
    union = (upper - lower) + (other_upper - other_lower) - common
    equal = (lower == other_lower) & (upper == other_upper)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(equal, 1.0, common / union)


def summarise_draws(draws: Array, ci_prob: float, independent: bool = False) -> dict[str, Array]:
    """Return summaries and diagnostics of draws (chain, draw, parameter), (parameter,) each.

    ``r_hat`` and the effective sample sizes are the rank-normalised ones of Vehtari et al. (2021);
    NaN where draws are constant or not finite.  Of independent draws they are known: 1, and the
    number of draws.
    """
    tail = 0.5 * (1.0 - ci_prob)
    # A parameter that is constant or not finite has NaN diagnostics: a finding, not a fault.
    with np.errstate(all="ignore"):
        lower, median, upper = np.quantile(draws, [tail, 0.5, 1.0 - tail], axis=(0, 1))
        sd = draws.std(axis=(0, 1), ddof=1)
        if independent:
            count = float(draws.shape[0] * draws.shape[1])
            mcse, r_hat = sd / np.sqrt(count), np.ones_like(sd)
            ess = {"ess_bulk": np.full_like(sd, count), "ess_tail": np.full_like(sd, count)}
        else:
            mcse, r_hat, ess = _diagnostics(draws)
    return {
        "mean": draws.mean(axis=(0, 1)),
        "sd": sd,
        "mcse": mcse,
        "median": median,
        "eti_lower": lower,
        "eti_upper": upper,
        "r_hat": r_hat,
        **ess,
    }


def _diagnostics(draws: Array) -> tuple[Array, Array, dict[str, Array]]:
    statistics = import_module("arviz_stats")  # late: it takes a second
    dims = ("chain", "draw", "parameter")
    half = draws.shape[1] // 2
    # One chain has no R-hat; its halves do, which is what split R-hat means.
    chains = draws if len(draws) > 1 else draws[0, : 2 * half].reshape(2, half, -1)
    split, data = xr.Dataset({"x": (dims, chains)}), xr.Dataset({"x": (dims, draws)})
    ess = {
        "ess_bulk": statistics.ess(data, method="bulk")["x"].to_numpy(),
        "ess_tail": statistics.ess(data, method="tail", prob=(0.05, 0.95))["x"].to_numpy(),
    }
    return (
        statistics.mcse(data, method="mean")["x"].to_numpy(),
        statistics.rhat(split)["x"].to_numpy(),
        ess,
    )
