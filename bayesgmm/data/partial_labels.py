r"""What is known of the rows' components, from labels or probabilities: checked, as probabilities.

A row's probabilities :math:`p_{nk}` are what is known of its component apart from its x and from
how frequent the components are; they multiply the weights, and count up to a factor.  A known
label is a 1 among zeros, the same number for each component says nothing, and equal numbers for
some components say that it is one of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bayesgmm.covariance import Array
from bayesgmm.data.cells import first_offending, row_label, to_numbers
from bayesgmm.errors import ArgumentError
from bayesgmm.groups import NO_LABELS

_SUM = 1e-6  # how far from one the probabilities of a row may sum


def read_labels(labels: Any, k: int, index: pd.Index[Any]) -> Array:
    """Return checked probabilities (n, k), or `NO_LABELS` if they say nothing of any row.

    Parameters
    ----------
    labels : (n,) or (n, k), or None
        Integers 0 to k - 1, with -1, None, NaN or NA where unknown; or probabilities, rows that sum
        to one, with NaN in all of a row where unknown.
    k : int
        Number of components.
    index : pandas.Index
        The n row labels of the data.

    Raises
    ------
    ArgumentError
        Naming ``labels``, the row at fault, and what would be right.
    """
    if labels is None:
        return NO_LABELS
    n = len(index)
    if isinstance(labels, pd.Series | pd.DataFrame):
        own = labels.index
        is_labelled = not any(isinstance(one, pd.RangeIndex) for one in (own, index))
        if is_labelled and not own.equals(index):
            raise ArgumentError(
                "labels",
                "their row labels are not those of X; use labels.reindex(X.index), or "
                "labels.to_numpy() to go by position",
            )
    try:
        given = labels if isinstance(labels, pd.Series | pd.DataFrame) else np.asarray(labels)
    except ValueError:
        raise ArgumentError("labels", f"must have shape ({n},) or ({n}, {k})") from None
    if given.shape not in ((n,), (n, k)):
        raise ArgumentError(
            "labels",
            f"have shape {given.shape}; give one integer for each of the {n} rows, shape ({n},), "
            f"or a probability for each of the {k} components, shape ({n}, {k})",
        )
    frame = pd.DataFrame(given)
    columns = [_numbers(frame.iloc[:, j], index) for j in range(frame.shape[1])]
    if given.ndim == 1:
        probability = _of_labels(columns[0], k, index)
    else:
        probability = _checked(np.column_stack(columns), index)
    # A number for each component that is the same says nothing.
    is_known = (probability != probability[:, :1]).any()
    return probability if is_known else NO_LABELS


def refuse_impossible(probability: Array, weight: Array) -> None:
    """Refuse a component to which no row of positive weight can belong."""
    if not len(probability):
        return
    present = probability[weight > 0] if len(weight) else probability
    impossible = np.flatnonzero((present == 0).all(axis=0))
    if len(impossible):
        raise ArgumentError(
            "labels",
            f"no row can be of component {impossible[0]}: each has another label, or probability "
            "0; leave rows unknown, or use fewer components",
        )


def widened(probability: Array, k: int) -> Array:
    """Return what labels say of the rows with k components instead of fewer: the same.

    Raises
    ------
    ArgumentError
        If they are probabilities, which do not say how probable a further component is.
    """
    if not len(probability) or probability.shape[1] == k:
        return probability
    is_unknown = (probability == probability[:, :1]).all(axis=1)
    is_label = (probability == 1.0).any(axis=1) & (np.count_nonzero(probability, axis=1) == 1)
    if not (is_unknown | is_label).all():
        raise ArgumentError(
            "labels",
            f"are probabilities of {probability.shape[1]} components, which do not say how "
            "probable a further one is; give integers, with -1 where unknown",
        )
    found = np.zeros((len(probability), k))
    found[:, : probability.shape[1]] = probability
    found[is_unknown] = 1.0 / k
    return found


def _numbers(column: pd.Series[Any], index: pd.Index[Any]) -> Array:
    numbers = to_numbers(column)
    if isinstance(numbers, str):
        where = row_label(index[first_offending(column.to_numpy(dtype=object))])
        hint = ": labels = pandas.factorize(names)[0]" if numbers in ("text", "categories") else ""
        raise ArgumentError(
            "labels", f"hold {numbers} (first in row {where}), but must be numbers{hint}"
        )
    return numbers.astype(np.float64)


def _of_labels(labels: Array, k: int, index: pd.Index[Any]) -> Array:
    is_unknown = np.isnan(labels) | (labels == -1)
    is_bad = ~is_unknown & ~np.isin(labels, np.arange(k))
    if is_bad.any():
        i = int(np.argmax(is_bad))
        raise ArgumentError(
            "labels",
            f"must be integers from 0 to {k - 1}, or -1, None or NaN where unknown; row "
            f"{row_label(index[i])} has {labels[i]:g}",
        )
    probability = np.full((len(labels), k), 1.0 / k)
    known = np.flatnonzero(~is_unknown)
    probability[known] = np.eye(k)[labels[known].astype(np.intp)]
    return probability


def _checked(probability: Array, index: pd.Index[Any]) -> Array:
    missing = np.isnan(probability)
    is_unknown = missing.all(axis=1)
    with np.errstate(invalid="ignore"):
        total = probability.sum(axis=1)
    for is_bad, what in (
        (missing.any(axis=1) & ~is_unknown, "has NaN beside numbers (all NaN: unknown)"),
        ((probability < 0).any(axis=1), "has a negative probability"),
        (~is_unknown & ~(np.abs(total - 1.0) <= _SUM), "does not sum to one"),
    ):
        if is_bad.any():
            i = int(np.argmax(is_bad))
            raise ArgumentError(
                "labels", f"row {row_label(index[i])} {what}: {probability[i].tolist()}"
            )
    return np.where(is_unknown[:, None], 1.0 / probability.shape[1], probability)
