"""Checks before any fit: what no mixture can be fitted to is refused, what makes it hard warned of.

Each check takes rows of numbers, NaN where missing, looks for one thing and returns nothing else:
`ConstantColumnError`, `TooFewRowsError`, `ScaleError`, `CollinearColumnsError` or a `DataWarning`
with the columns or rows, the evidence and a remedy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
from numpy.typing import NDArray

from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.anchoring import deviations
from bayesgmm.data.cells import count, row_label
from bayesgmm.data.table import Table
from bayesgmm.errors import (
    PACKAGE,
    CollinearColumnsError,
    ConstantColumnError,
    DataWarning,
    MissingValueError,
    ScaleError,
    TooFewRowsError,
)
from bayesgmm.streams import Rows, triangle

_EPSILON = float(np.finfo(np.float64).eps)
_SMALLEST_SD, LARGEST_SD = 1e-152, 1e152  # their squares are normal numbers, with room around them
_LARGEST_VALUE = 1e165  # beyond it, neighbouring numbers differ by more than LARGEST_SD
_DEPENDENT = 1e-11  # residual of a column on the others, in its standard deviations
_NEARLY_DEPENDENT = 1e6  # condition number of the standardised table: 1e12 for the correlations


def warn(code: str, message: str) -> None:
    """Warn of data that a mixture can be fitted to, with a caution."""
    warnings.warn(DataWarning(code, message), skip_file_prefixes=(PACKAGE,))


# What is missing


def refuse_unobserved(frequency: Array | None, table: Table) -> None:
    """Refuse columns of which next to nothing is observed."""
    rows = Rows(table.values, np.empty(0) if frequency is None else frequency)
    weight = rows.observed()
    if not (weight > 1.0).all():
        j = int(np.argmin(weight))
        what = "no observed value" if weight[j] == 0 else "observed values in a single row"
        if weight[j] > 0 and frequency is not None:
            what = f"observed values of total weight {weight[j]:g}"
        names = [name for i, name in enumerate(table.names) if weight[i] > 1.0]
        raise MissingValueError(
            f"column {table.names[j]!r} has {what} among the rows that count, so that nothing can "
            f"be said of it; drop it: columns={names}"
        )


def warn_of_dropped_rows(n: int, kept: NDArray[np.intp]) -> None:
    """Warn of how many of the n rows were left out, and what that may do."""
    out = n - len(kept)
    warn(
        "dropped-rows",
        f"{out} of {count(n, 'row')} left out, because of missing values ({out / n:.1%}); where "
        "it depends on the other columns whether a value is missing, estimates from the rest are "
        "biased: missing='marginalise' uses what is observed",
    )


def warn_of_empty_rows(is_empty: NDArray[np.bool_], index: pd.Index[Any]) -> None:
    """Warn of rows of which nothing is known."""
    which = np.flatnonzero(is_empty)
    warn(
        "empty-rows",
        f"{count(len(which), 'row')} without any observed value (first: row "
        f"{row_label(index[which[0]])}): nothing is known of them, and they get weight 0",
    )


def warn_of_unseen_pairs(rows: Rows, names: Sequence[str]) -> None:
    """Warn of columns that are never observed in the same row."""
    seen = np.zeros((len(names), len(names)))
    for part, _ in rows:
        observed = (~np.isnan(part)).astype(np.float64)
        seen += observed.T @ observed
    pairs = np.argwhere(np.tril(seen == 0))
    if len(pairs):
        j, i = pairs[0]
        more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        warn(
            "never-together",
            f"columns {names[i]!r} and {names[j]!r} are never observed in the same row{more}, so "
            "that the data say next to nothing of their covariance: use a diagonal family (VVI, "
            "EEI, ...), give a prior, or drop one",
        )


# Variation


def refuse_constant(rows: Rows, table: Table) -> None:
    """Refuse columns that hold one value only."""
    smallest, largest = rows.extremes()
    constant = np.flatnonzero(smallest == largest).tolist()
    if not constant:
        return
    listed = ", ".join(
        f"{table.names[j]!r} (always "
        f"{smallest[j] + (table.integers[j][0] if j in table.integers else 0):g})"
        for j in constant
    )
    note = " among rows of positive weight" if rows.weight.size else ""
    if len(constant) == len(table.names):
        raise ConstantColumnError(f"no column varies{note}: {listed}; there is nothing to fit")
    names = [name for j, name in enumerate(table.names) if j not in constant]
    raise ConstantColumnError(
        f"constant{note}: column {listed}; a Gaussian needs variation, so drop it: columns={names}"
    )


def refuse_few_rows(rows: Rows, n_components: int) -> None:
    """Refuse fewer distinct rows than components."""
    if (found := _distinct_rows(rows, n_components)) < n_components:
        raise TooFewRowsError(
            f"X has {found} distinct rows, fewer than n_components={n_components}; "
            f"use n_components={found} or less"
        )


def _distinct_rows(rows: Rows, wanted: int) -> int:
    """Count distinct rows, no further than `wanted`; no sorting. Missing is like missing."""
    found: list[Array] = []
    for part, _ in rows:
        for one in found:
            part = part[_differ(part, one)]
        while len(part) and len(found) < wanted:
            found.append(part[0])
            part = part[_differ(part, part[0])]
        if len(found) == wanted:
            break
    return len(found)


def _differ(rows: Array, one: Array) -> NDArray[np.bool_]:
    both_missing = (rows != rows) & (one != one)
    return np.asarray(((rows != one) & ~both_missing).any(axis=1))


# Scale and precision


def refuse_large_numbers(x: Array, names: Sequence[str]) -> None:
    """Refuse numbers whose neighbours are so far away that no spread can be measured."""
    reach = np.maximum(-np.fmin.reduce(x, axis=0), np.fmax.reduce(x, axis=0))
    if (reach > _LARGEST_VALUE).any():
        j = int(np.argmax(reach))
        _refuse_scale(names[j], f"holds numbers as large as {reach[j]:.3g}", reach[j])


def refuse_extreme_spread(spread: Array, names: Sequence[str]) -> None:
    """Refuse standard deviations that have no square."""
    for name, sd in zip(names, spread, strict=True):
        if not _SMALLEST_SD <= sd <= LARGEST_SD:
            _refuse_scale(name, f"has standard deviation {sd:.3g}", sd)


def _refuse_scale(name: str, what: str, size: float) -> None:
    unit = f"1e{round(np.log10(size)):+d}" if size > 0 else "its unit"
    raise ScaleError(
        f"column {name!r} {what}: its variance is beyond double precision; "
        f"change the unit, for example divide the column by {unit}"
    )


def check_units(spread: Array, names: Sequence[str], family: Covariance) -> None:
    """Refuse or warn of spreads that a family which depends on units cannot balance."""
    ratio = spread.max() / spread.min()
    wide, narrow = names[int(np.argmax(spread))], names[int(np.argmin(spread))]
    what = f"columns {wide!r} and {narrow!r} differ in spread by a factor of {ratio:.2g}"
    if ratio > LARGEST_SD:
        raise ScaleError(f"{what}, beyond double precision for {family}; standardise them")
    if ratio > 1e6:
        warn(
            "unequal-scales",
            f"{what}, and {family} depends on their units: the narrow one hardly counts; "
            "standardise the columns, or use a family that adapts (VVI, EEE, VVV)",
        )


def warn_of_lost_digits(table: Table, center: Array, spread: Array) -> None:
    """Warn when so few digits vary that estimates cannot be exact to three."""
    spacing = np.maximum(table.epsilon, _EPSILON) * np.maximum(np.abs(center), spread)
    digits = np.log10(spread / spacing)
    # Integers beyond 2**53 are exact in x; only what is reported in data units is rounded.
    wanted = [6.0 if j in table.integers else 2.65 for j in range(len(center))]
    if len(lost := np.flatnonzero(digits < wanted)):
        listed = ", ".join(
            f"column {table.names[j]!r} (offset {center[j]:.6g}, spread {spread[j]:.2g}, "
            f"{max(digits[j], 0.0):.1f} digits)"
            for j in lost
        )
        warn(
            "precision-loss",
            f"the spread is so small beside the offset that few digits are left in {listed}; "
            "subtract the offset before the numbers are stored",
        )


# Dependence


def check_dependence(
    rows: Rows,
    moments: tuple[Array, Array],
    center: Array,
    scale: Array,
    names: Sequence[str],
    rounding: float,
    among: str = "",
) -> None:
    """Refuse columns that are linear combinations of others; warn when they nearly are.

    QR with pivoting of the standardised table sees a residual of 1e-9 standard deviations where
    the correlation matrix, its square, sees none.

    Parameters
    ----------
    rows : Rows
        Anchored, complete, more than there are columns. Columns that are constant in them are not
        judged.
    moments : tuple
        Their mean (d,) and covariance (d, d).
    center, scale : (d,) array
        In data units.
    names : sequence of str
    rounding : float
        Relative rounding error of the deviations from the mean, as they came.
    among : str
        Which rows these are, if they are not all.
    """
    mean, covariance = moments
    d = len(names)
    if not np.diagonal(covariance).all():
        return
    tolerance = max(_DEPENDENT, min(2.0 * rounding, 1e-4))
    sd = np.sqrt(np.diag(covariance))
    smallest = np.linalg.eigvalsh(covariance / sd[:, None] / sd)[0]
    if smallest > max(1e-10, d / _NEARLY_DEPENDENT**2, tolerance**2):
        return  # the usual case, without a pass over the rows
    r, pivot = scipy.linalg.qr(triangle(deviations(rows, mean)) / sd, mode="r", pivoting=True)
    rank = int(np.count_nonzero(np.abs(np.diag(r)) > tolerance))
    condition = np.inf if rank < d else float(np.linalg.cond(r))
    if condition < _NEARLY_DEPENDENT:
        return
    basis = min(rank, d - 1)
    coefficient = scipy.linalg.solve_triangular(r[:basis, :basis], r[:basis, basis:])
    found = []
    for c, dependent in zip(coefficient.T, pivot[basis:], strict=True):
        null = np.zeros(d)
        null[pivot[:basis]], null[dependent] = -c, 1.0
        found.append(_relation(null, center + scale * mean, sd * scale, names))
    if rank < d:
        raise CollinearColumnsError(
            f"X has columns that are linear combinations of others{among}: "
            f"{'; '.join(found[:5])}. Drop one "
            "column of each, or use a diagonal family (VVI, EEI, ...)"
        )
    warn(
        "near-collinear",
        f"columns are nearly linear combinations of others{among}: {'; '.join(found)}, up to a "
        f"residual of {abs(r[-1, -1]):.1g} standard deviations (condition number {condition:.1g}); "
        "covariances keep few digits: drop a column or use a diagonal family",
    )


def _relation(null: Array, mean: Array, sd: Array, names: Sequence[str]) -> str:
    """Write a null vector of the standardised columns as "x3 = 2*x1 + 0.5*x2"."""
    involved = np.flatnonzero(np.abs(null) > 1e-6 * np.abs(null).max())
    last = involved[-1]
    slope = -null / null[last] * sd[last] / sd
    terms = [(float(slope[j]), names[j]) for j in involved[:-1]]
    parts = [slope[j] * mean[j] for j in involved[:-1]]
    constant = float(mean[last] - sum(parts))
    size = sum(map(abs, parts)) + abs(mean[last]) + sd[last]
    if abs(constant) > 1e-8 * size:
        terms.append((constant, ""))
    text = ""
    for value, name in terms[:8]:
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        number = f"{abs(value):.4g}"
        text += sign + (number if not name else name if number == "1" else f"{number}*{name}")
    more = f" + ... ({len(terms)} terms)" if len(terms) > 8 else ""
    return f"{names[last]} = {text}{more}"


# Enough to estimate


def warn_if_underdetermined(total: float, d: int, family: Covariance, k: int) -> None:
    """Warn of more free parameters than observations."""

    def count(letters: str) -> int:
        return k - 1 + k * d + Covariance(letters).n_parameters(k, d)

    if (needed := count(str(family))) > total:
        warn(
            "underdetermined",
            f"{family} with n_components={k} has {needed} free parameters for "
            f"{total:.10g} rows; use fewer: tied (EEE) has {count('EEE')}, diag (VVI) "
            f"{count('VVI')}, tied-diag (EEI) {count('EEI')}; or give a prior",
        )


def warn_of_tied_rows(rows: Rows, center: Array, scale: Array) -> None:
    """Warn when one row makes up a tenth of the data: a component may shrink onto it.

    The candidate comes from at most 4096 rows, evenly taken: whoever has a tenth shows there.
    Missing is like missing.
    """
    n, total = rows.count()
    d = rows.x.shape[1]
    is_weighted = rows.weight.size > 0
    thin: Any = slice(None, None, -(-n // 4096))
    if is_weighted:
        thin = np.flatnonzero(rows.weight > 0)[thin]
    sample, inverse = np.unique(_comparable(rows.x[thin]), axis=0, return_inverse=True)
    thinned = rows.weight[thin] if is_weighted else None
    candidate = sample[np.argmax(np.bincount(inverse.ravel(), thinned))]
    ties = 0.0
    for part, w in rows:
        is_tied = (_comparable(part) == candidate).all(axis=1)
        ties += float(np.count_nonzero(is_tied) if w is None else w[is_tied].sum())
    if ties >= max(5.0, d + 2.0, 0.1 * total):
        values = center + scale * candidate
        words = ("missing" if np.isinf(v) else f"{v:.6g}" for v in values[:5])
        shown = ", ".join(words) + ("..." if d > 5 else "")
        warn(
            "tied-rows",
            f"{ties:.10g} of {total:.10g} rows are the same point ({shown}): a "
            "component can shrink onto it, where the likelihood has no bound; give a prior, or "
            "model these rows apart",
        )


def _comparable(rows: Array) -> Array:
    return np.where(np.isnan(rows), np.inf, rows)
