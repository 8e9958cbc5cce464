"""Convergence in three columns, so that switched labels and real trouble look different."""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm import tree
from bayesgmm.ambiguity import ambiguous_of, why_refused
from bayesgmm.errors import ArgumentError
from bayesgmm.labels import AMBIGUOUS_LABELS
from bayesgmm.moments import Array
from bayesgmm.posterior.verdict import RHAT, diagnostics
from bayesgmm.rows import (
    Row,
    alignment_of,
    are_independent,
    draws_of,
    has_draws,
    label_free_of,
    label_free_rows,
    parameter_rows,
    raw_draws,
    take,
)

COLUMNS = ("raw", "aligned", "label-free")
_DIAGNOSTICS = ("r_hat", "ess_bulk", "ess_tail")


def diagnose(fit: xr.DataTree) -> pd.DataFrame:
    """Return R-hat and effective sample sizes of raw, aligned and label-free draws.

    Chains that call the same components differently have a large R-hat of the raw draws alone,
    which is harmless. Chains that sit in different solutions differ in what no labelling changes.

    Parameters
    ----------
    fit : DataTree
        With draws, whole.

    Returns
    -------
    DataFrame
        One row for every parameter and label-free quantity. Columns ``r_hat``, ``ess_bulk``,
        ``ess_tail``, and under each ``raw``, ``aligned`` and ``label-free``: rank-normalised split
        R-hat and bulk and tail effective sample sizes (Vehtari et al. 2021). Parameters that no
        component has alone (a common covariance, the weight of noise, and all of a single
        component) are label-free. What is fixed is left out. NaN is what does not apply, or cannot
        be computed since draws are constant or not finite. ``attrs["reading"]`` is a sentence that
        reads the table; ``alignment`` and ``ambiguous`` are the method that made the labels, and
        the share of draws in which they are ambiguous.

    Raises
    ------
    ArgumentError
        If ``fit`` is a point estimate, not whole, or has fewer than four draws in a chain.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Bayesian Analysis 16, 667-718.
    """
    tree.whole("fit", fit, "labels", "label_free")
    if not has_draws(fit):
        raise ArgumentError("fit", "is a point estimate; convergence is of draws")
    if fit["posterior"].sizes["draw"] < 4:
        raise ArgumentError("fit", "has fewer than four draws in a chain, which say nothing")
    names, spec = tree.names_of(fit), tree.spec_of(fit)
    every, aligned, free = parameter_rows(spec, names), draws_of(fit), label_free_of(fit)
    labelled = [row for row in every if row.cluster >= 0 and spec.n_components > 1]
    shared = [row for row in every if row not in labelled]
    parts = {
        "raw": (labelled, raw_draws(fit)),
        "aligned": (labelled, aligned),
        "label-free": ([*shared, *label_free_rows(free, names)], aligned | free),
    }
    found: dict[tuple[str, str], pd.Series[float]] = {}
    worst: dict[str, _Worst] = {}
    for column, (rows, arrays) in parts.items():
        rows, draws = _moving(rows, arrays, fit)
        if not rows:
            continue
        index = [row.label for row in rows]
        values = _diagnostics(np.moveaxis(draws, -1, 0), are_independent(fit))
        for name, value in zip(_DIAGNOSTICS, values, strict=True):
            found[name, column] = pd.Series(value, index)
        r_hat = values[0]
        p = int(np.argmax(np.where(np.isnan(r_hat), np.inf, r_hat)))
        worst[column] = _Worst(column, index[p], float(r_hat[p]))
    quantities = dict.fromkeys(label for one in found.values() for label in one.index)
    table = pd.DataFrame(found, index=pd.Index(list(quantities), name="quantity"))
    table = table.reindex(columns=pd.MultiIndex.from_product([_DIAGNOSTICS, COLUMNS]))
    table.attrs = {"alignment": alignment_of(fit), "ambiguous": ambiguous_of(fit)}
    table.attrs["reading"] = _reading(worst, fit)
    return table


def _moving(rows: list[Row], arrays: dict[str, Array], fit: xr.DataTree) -> tuple[list[Row], Array]:
    """Return the rows and their draws (chain, draw, p), without what is fixed."""
    draws = take(arrays, rows) if rows else np.empty((0, 0, 0))
    if not rows or not fit.attrs.get("fixed"):
        return rows, draws
    moves = np.ptp(draws, axis=(0, 1)) > 1e-12 * np.abs(draws).max(axis=(0, 1))
    return list(compress(rows, moves)), draws[..., moves]


class _Worst(NamedTuple):
    """The largest R-hat of a column; NaN is larger than any."""

    column: str
    name: str
    value: float

    @property
    def is_good(self) -> bool:
        return RHAT.grade(self.value) == "ok"

    def __str__(self) -> str:
        shown = "not a number" if np.isnan(self.value) else f"{self.value:.2f}"
        return f"{self.column} {shown} ({self.name})"


def _diagnostics(value: Array, independent: bool) -> tuple[Array, Array, Array]:
    if independent:  # known, of draws (p, chain, draw) that are no chains
        moves = np.ptp(value, axis=(1, 2)) > 0.0
        count = np.where(moves, float(value[0].size), np.nan)
        return np.where(moves, 1.0, np.nan), count, count
    return diagnostics(value)[:3]


def _reading(worst: dict[str, _Worst], fit: xr.DataTree) -> str:
    """Return what the three columns say together, in a sentence or two."""
    if are_independent(fit):
        return "The draws are independent: there are no chains to compare."
    shown = f"Largest R-hat: {', '.join(map(str, worst.values()))}."
    if not worst["label-free"].is_good:
        return (
            f"{shown} Chains differ in what no labelling changes: they are in different solutions, "
            "or have not mixed. Sample longer; if that does not help, use fewer components or a "
            "stronger prior."
        )
    if "aligned" not in worst:
        return f"{shown} Chains agree."
    if not worst["aligned"].is_good:
        share = ambiguous_of(fit)
        why = (
            f"labels are ambiguous in {share:.1%} of the draws: rely on label-free quantities"
            if AMBIGUOUS_LABELS.grade(share) != "ok"
            else "sample longer, or see whether another method of align does better"
        )
        return f"{shown} What no labelling changes has converged, and components have not; {why}."
    if why_refused(fit):
        return (
            f"{shown} Chains agree, also on components, but these exchange their roles within "
            f"them: labels are ambiguous in {ambiguous_of(fit):.1%} of the draws. Rely on "
            "label-free quantities."
        )
    order = fit["labels"]["permutation"].transpose("chain", "draw", "cluster").to_numpy()
    if (order == order[:1, :1]).all():
        return f"{shown} Chains agree, and no labels switched."
    return f"{shown} Labels switched, which is harmless: aligned, the chains agree."
