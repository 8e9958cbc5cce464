"""Weights: which rows count, and for how many observations each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array
from bayesgmm.data.cells import first_offending, row_label, to_numbers
from bayesgmm.data.preflight import warn_of_empty_rows
from bayesgmm.errors import TooFewRowsError, WeightError
from bayesgmm.groups import NO_LABELS
from bayesgmm.streams import blocks


def observation_weights(sample_weight: Any, index: pd.Index[Any]) -> Array:
    """Return checked frequencies of the rows, or an empty array when all are one."""
    if sample_weight is None:
        return np.empty(0)
    n = len(index)
    if isinstance(sample_weight, pd.Series):
        own = sample_weight.index
        is_labelled = not any(isinstance(labels, pd.RangeIndex) for labels in (own, index))
        if is_labelled and not own.equals(index):
            raise WeightError(
                "sample_weight: its row labels are not those of X; use "
                "sample_weight.reindex(X.index), or sample_weight.to_numpy() to go by position"
            )
    try:
        given = np.asarray(sample_weight)
    except ValueError as error:
        raise WeightError(f"sample_weight: must be {n} numbers, one for each row") from error
    if given.shape != (n,):
        raise WeightError(
            f"sample_weight: has shape {given.shape}, but X has {n} rows: give shape ({n},)"
        )
    numbers = to_numbers(pd.Series(given.astype(int) if given.dtype == bool else given))
    if isinstance(numbers, str):
        label = row_label(index[first_offending(given.astype(object))])
        raise WeightError(f"sample_weight: holds {numbers}, first in row {label}; give {n} numbers")
    weight = numbers.astype(np.float64)
    for is_bad, what in (
        (np.isnan(weight), "a missing value"),
        (np.isinf(weight), "an infinite value"),
        (weight < 0, "a negative value"),
    ):
        if is_bad.any():
            i = int(np.argmax(is_bad))
            raise WeightError(
                f"sample_weight: {what} ({weight[i]:g}) in row {row_label(index[i])}; weights"
                " are frequencies: finite and at least 0 (0 leaves the row out)"
            )
    if (weight == 1).all():
        return np.empty(0)
    with np.errstate(over="ignore"):
        total = float(weight.sum())
    if total == 0:
        raise WeightError("sample_weight: all weights are 0, so no row is left")
    if not 1 < total < np.inf:
        raise WeightError(
            f"sample_weight: the weights sum to {total:g}, but they are frequencies (weight 2 is "
            "the row twice), so the sum counts observations and must be finite and exceed 1; "
            "relative weights can be rescaled to sum to n: w * (len(w) / w.sum())"
        )
    if np.count_nonzero(weight) < 2:
        label = row_label(index[int(np.argmax(weight))])
        raise TooFewRowsError(f"sample_weight: only row {label} has a positive weight")
    return weight


def of_kept_rows(kept: NDArray[np.intp], weight: Array, probability: Array) -> tuple[Array, Array]:
    """Return weights and probabilities of some rows, in the form that says nothing if they do."""
    if weight.size:
        weight = weight[kept]
        weight = np.empty(0) if (weight == 1).all() else weight
        if weight.size and not weight.sum() > 1:
            raise TooFewRowsError(
                f"X has rows of total weight {weight.sum():g} without missing values; a mixture "
                "needs at least two rows; missing='marginalise' uses incomplete rows"
            )
    if len(probability):
        probability = probability[kept]
        is_known = (probability != probability[:, :1]).any()
        probability = probability if is_known else NO_LABELS
    return weight, probability


def without_empty_rows(
    values: Array, weight: Array, probability: Array, index: pd.Index[Any]
) -> Array:
    """Return the weights, 0 for rows of which nothing is known."""
    is_empty = np.concatenate([np.isnan(values[p]).all(axis=1) for p in blocks(len(values))])
    if weight.size:
        is_empty &= weight > 0
    if len(probability):
        is_empty &= (probability == probability[:, :1]).all(axis=1)
    if not is_empty.any():
        return weight
    warn_of_empty_rows(is_empty, index)
    return np.where(is_empty, 0.0, weight if weight.size else 1.0)
