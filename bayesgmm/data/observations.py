"""Data as the fits use them: checked, anchored and scaled once, with names and row labels.

Each column is centred at its median and divided by a power of two near its standard deviation; both
are exact or nearly so, so that an offset of 1e8 or a unit of 1e-8 costs no digits that the data
hold.  What is no table is refused in `table`, what no mixture can be fitted to in `preflight`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.anchoring import center_of, location_and_spread, moments_of, scale_of
from bayesgmm.data.cells import Missing
from bayesgmm.data.far import far_rows, refuse_far_rows, warn_of_far_rows, without
from bayesgmm.data.partial_labels import read_labels, refuse_impossible
from bayesgmm.data.preflight import (
    check_dependence,
    check_units,
    refuse_constant,
    refuse_extreme_spread,
    refuse_few_rows,
    refuse_large_numbers,
    refuse_unobserved,
    warn_if_underdetermined,
    warn_of_dropped_rows,
    warn_of_lost_digits,
    warn_of_tied_rows,
    warn_of_unseen_pairs,
)
from bayesgmm.data.table import Table, align, tabulate
from bayesgmm.data.weights import observation_weights, of_kept_rows, without_empty_rows
from bayesgmm.errors import ArgumentError, TooFewRowsError
from bayesgmm.groups import NO_LABELS, Group, filled, normal, split
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Noise, Parameters
from bayesgmm.noise import rescaled
from bayesgmm.streams import Rows, blocks, has_nan, room_like, row_by_row


def times(parameters: Parameters, factor: Array) -> Parameters:
    """Return the parameters of rows whose columns are multiplied by factors (d,)."""
    covariance = parameters.covariance * factor[:, None] * factor
    noise = rescaled(parameters.noise, -np.log(factor))
    return replace(parameters, mean=parameters.mean * factor, covariance=covariance, noise=noise)


@dataclass(frozen=True, eq=False)
class Data:
    """Observations ready to be fitted; made by `read`.

    Attributes
    ----------
    x : (n, d) array
        ``(values - center) / scale``, C-contiguous: anchored units. NaN where missing.
    values : (n, d) array
        What was given, in data units. NaN where missing.
    weight : (n,) array
        Frequencies of the observations, or shape (0,) when all are one.
    names : tuple of str
        The d column names.
    index : pandas.Index
        The n row labels.
    center, scale : (d,) array
        In data units. Scales are powers of two; one common value unless the family can be
        rescaled column by column.
    mean : (d,) array
        Weighted column means, anchored units.
    covariance : (d, d) array
        Weighted covariance with divisor total weight - 1, anchored units. Where values are missing,
        mean and covariance are those of one normal distribution by maximum likelihood.
    fingerprint : str
        ``"sha256:..."`` of values, names and weights, and of what is known of the components.
    probability : (n, k) array
        What is known of each row's component (`partial_labels`); shape (0, 0) if nothing is.
    mix : (d, d) array, optional
        Where columns are nearly dependent: the anchored values of the columns are
        ``x @ mix.T``, and x, mean and covariance are in other coordinates (`mixing`).
    units : dict
        The units of columns that came with one, by name.
    """

    x: Array
    values: Array
    weight: Array
    names: tuple[str, ...]
    index: pd.Index[Any]
    center: Array
    scale: Array
    mean: Array
    covariance: Array
    fingerprint: str
    probability: Array = field(default_factory=lambda: NO_LABELS)
    mix: Array | None = None
    units: dict[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of rows, those of weight 0 included."""
        return int(self.x.shape[0])

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.x.shape[1])

    @property
    def total_weight(self) -> float:
        """Sum of the weights: the number of observations that they stand for."""
        return float(self.weight.sum()) if self.weight.size else float(self.n)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The rows, by what is observed and known of them: one group if all are complete."""
        return split(self.x, self.weight, self.probability)

    @cached_property
    def is_complete(self) -> bool:
        """Whether no value is missing."""
        return not has_nan(self.x)

    @cached_property
    def filled(self) -> Array:
        """The (n, d) anchored values, the missing ones replaced by what one normal expects."""
        return (
            self.x if self.is_complete else filled(self.groups, self.mean, self.covariance, self.x)
        )

    @cached_property
    def far(self) -> NDArray[np.intp]:
        """Numbers of the rows that are far from all others; mostly there are none."""
        return far_rows(Rows(self.x, self.weight)).rows

    @property
    def near(self) -> Rows:
        """The other rows."""
        return without(Rows(self.x, self.weight), self.far)

    @cached_property
    def near_sd(self) -> Array:
        """(d,) standard deviations of x in those; 0 of a column that varies in far rows alone."""
        if len(self.far):
            return location_and_spread(self.near)[1]
        return np.asarray(np.sqrt(np.diagonal(self.covariance)))

    @cached_property
    def sd(self) -> Array:
        """(d,) standard deviations of x: in near rows, or in all where those are equal."""
        return np.where(self.near_sd > 0, self.near_sd, np.sqrt(np.diagonal(self.covariance)))

    @property
    def row_log_jacobian(self) -> Array | float:
        """What turns anchored log-densities of the rows into ones in data units, by addition."""
        log_scale = np.log(self.scale)
        if not self.is_complete:
            return -row_by_row(lambda x: ~np.isnan(x) @ log_scale, self.x)
        return -float(log_scale.sum()) - self._log_mix

    @property
    def _log_mix(self) -> float:
        return 0.0 if self.mix is None else float(np.linalg.slogdet(self.mix)[1])

    @property
    def log_jacobian(self) -> float:
        """What turns an anchored log-likelihood into one in data units, by addition."""
        each = self.row_log_jacobian
        if isinstance(each, float):
            return self.total_weight * each
        return float(self.weight @ each if self.weight.size else each.sum())

    def anchored(self, values: Array) -> Array:
        """Return rows (m, d) in data units as rows of x."""
        z = (values - self.center) / self.scale
        return z if self.mix is None else np.ascontiguousarray(np.linalg.solve(self.mix, z.T).T)

    def to_anchored(self, parameters: Parameters) -> Parameters:
        """Return parameters given in data units in anchored units."""
        about = replace(parameters, mean=parameters.mean - self.center)
        return self.mixed(times(about, 1.0 / self.scale))

    def mixed(self, parameters: Parameters) -> Parameters:
        """Return parameters of the anchored columns as those of x: `by_column` taken back."""
        if self.mix is None:
            return parameters
        # By the factors, so that the result is definite whatever the rounding.
        factor = np.linalg.solve(self.mix, parameters.factor)
        mean = np.linalg.solve(self.mix, parameters.mean.T).T
        noise = rescaled(parameters.noise, np.zeros(self.d), self._log_mix)
        covariance = factor @ np.swapaxes(factor, 1, 2)
        return replace(parameters, mean=mean, covariance=covariance, noise=noise)

    def to_anchored_noise(self, noise: Noise | None) -> Noise | None:
        """Return noise given in data units in anchored units."""
        return rescaled(noise, np.log(self.scale), self._log_mix)

    def by_column(self, parameters: Parameters) -> Parameters:
        """Return parameters of x as those of the anchored columns."""
        if self.mix is None:
            return parameters
        covariance = self.mix @ parameters.covariance @ self.mix.T
        covariance = 0.5 * (covariance + np.swapaxes(covariance, 1, 2))
        return replace(parameters, mean=parameters.mean @ self.mix.T, covariance=covariance)

    def to_data_units(self, parameters: Parameters) -> Parameters:
        """Return parameters given in anchored units in data units."""
        noise = rescaled(parameters.noise, np.zeros(self.d), -self._log_mix)
        found = times(replace(self.by_column(parameters), noise=noise), self.scale)
        return replace(found, mean=found.mean + self.center)

    def rescaled(self, scale: Array) -> Data:
        """Return the same rows in other units, powers of two; not for columns taken apart."""
        if (scale == self.scale).all():
            return self
        ratio = self.scale / scale
        covariance = self.covariance * ratio[:, None] * ratio
        return replace(
            self, x=self.x * ratio, scale=scale, mean=self.mean * ratio, covariance=covariance
        )

    def rows(self, index: NDArray[np.intp]) -> Data:
        """Return some rows, in the units of all."""
        weight = self.weight[index] if self.weight.size else self.weight
        known = self.probability[index] if len(self.probability) else self.probability
        x, values, labels = self.x[index], self.values[index], self.index[index]
        return replace(self, x=x, values=values, weight=weight, index=labels, probability=known)

    def with_weight(self, weight: Array) -> Data:
        """Return the same rows with other weights (n,), in the same units: nothing else moves."""
        return replace(self, weight=np.ascontiguousarray(weight, dtype=np.float64))

    def original(self) -> Array:
        """Return a copy of the (n, d) values in data units, as they were given."""
        return self.values.copy()


def read(
    X: Any,
    *,
    sample_weight: Any = None,
    family: Covariance | None = None,
    n_components: int = 1,
    columns: Sequence[str] | None = None,
    missing: Missing = "error",
    labels: Any = None,
) -> Data:
    """Check, anchor and scale a table of observations.

    Parameters
    ----------
    X : (n, d) table, or one column of length n
        NumPy, pandas, polars, pyarrow, xarray, a mapping or nested sequences. Never changed, and
        copied, so that later changes to it do not reach the fit.
    sample_weight : (n,) array, optional
        Frequencies: weight 2 is the row twice, weight 0 is the row absent (for the checks too,
        but its cells must be numbers).
    family : Covariance, optional
        Decides which checks apply and whether columns are scaled one by one.
    n_components : int
        How many distinct rows are needed at least.
    columns : sequence of str, optional
        The columns to use, in this order. Default: all.
    missing : {"error", "drop", "marginalise"}
        Missing values are refused, their rows left out, or kept as NaN. Then every check is of what
        is observed; a row without any observed value or known component gets weight 0.
    labels : (n,) or (n, k), optional
        What is known of the rows' components; see `partial_labels.read_labels`.

    Returns
    -------
    Data

    Raises
    ------
    DataError
        The subclass says what is wrong, the message where and what to do.
    ArgumentError
        If the family is for one dimension and the table has more, or labels are wrong.

    Warns
    -----
    DataWarning
        With code precision-loss, near-collinear, underdetermined, tied-rows, far-row,
        unequal-scales, dropped-rows, empty-rows or never-together.
    """
    table = tabulate(X, columns, missing=missing)
    names, index = table.names, table.index
    n, d = table.values.shape
    if family is not None and family.is_one_dimensional and d > 1:
        raise ArgumentError(
            "covariance", f"{family} is for one column, X has {d}; use EII, VII or another family"
        )
    every = index if table.whole is None else table.whole
    weight = observation_weights(sample_weight, every)
    probability = read_labels(labels, n_components, every)
    if table.kept is not None:
        weight, probability = of_kept_rows(table.kept, weight, probability)
        warn_of_dropped_rows(len(every), table.kept)
    if n < 2 or (weight.size and np.count_nonzero(weight) < 2):
        rest = "" if table.kept is None else " without missing values"
        raise TooFewRowsError(
            f"X has a single row{rest}; a mixture needs at least two distinct rows"
        )
    is_complete = not has_nan(table.values)
    if not is_complete:
        refuse_unobserved(weight if weight.size else None, table)
        weight = without_empty_rows(table.values, weight, probability, index)
    refuse_impossible(probability, weight)

    x = room_like(table.values, n, d)
    for part in blocks(n):
        x[part] = table.values[part]
        for j, (_, difference) in table.integers.items():
            x[part, j] = difference[part]
    rows = Rows(x, weight)  # those of weight 0 count as absent from here on, but stay in x
    refuse_constant(rows, table)
    refuse_few_rows(rows, n_components)
    refuse_large_numbers(x, names)
    median, spread = location_and_spread(rows)
    refuse_extreme_spread(spread, names)
    center, shift = center_of(median, table)
    scale = scale_of(spread, family)
    x -= shift
    x /= scale
    refuse_far_rows(x, index)
    far = far_rows(rows)
    near = without(rows, far.rows)
    own = spread if near is rows else scale * location_and_spread(near)[1]
    is_constant = own == 0  # but for the far rows
    own = np.where(is_constant, spread, own)
    if family is not None and not family.is_axis_equivariant:
        check_units(own, names, family)
    warn_of_lost_digits(table, center, own)
    warn_of_far_rows(far, index, names, is_constant)
    # What columns and rows have in common is looked for in complete rows.
    complete = rows if is_complete else replace(rows, complete=True)
    n_complete, total = complete.count()[0], rows.count()[1]
    enough = is_complete or n_complete > 2 * d
    if enough:
        mean, covariance = moments_of(complete)
    if family is not None:
        if not family.is_diagonal and enough:
            rounding = float((table.epsilon * np.maximum(np.abs(center) / own, 1.0)).max())
            note = "" if is_complete else f" in its {n_complete} complete rows"
            of_near = replace(complete, weight=near.weight)
            if of_near.count()[0] > d:  # else no covariance of theirs is definite
                moments = (mean, covariance) if near is rows else moments_of(of_near)
                check_dependence(of_near, moments, center, scale, names, rounding, note)
        if not (family.is_diagonal or is_complete):
            warn_of_unseen_pairs(rows, names)
        warn_if_underdetermined(total, d, family, n_components)
    warn_of_tied_rows(rows, center, scale)
    if not is_complete:
        mean, covariance = normal(split(x, weight), (median - shift) / scale, spread / scale)
        covariance *= total / (total - 1.0)
    return Data(
        x=x,
        values=table.values,
        weight=weight,
        names=names,
        index=index,
        center=center,
        scale=scale,
        mean=mean,
        covariance=covariance,
        fingerprint=_fingerprint(table, weight, probability),
        probability=probability,
        units=table.units,
    )


def read_for(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Sequence[str] | None = None,
    missing: Missing = "error",
    labels: Any = None,
) -> Data:
    """Read a table for a specification: `read` with its family and number of components."""
    return read(
        X,
        sample_weight=sample_weight,
        family=spec.covariance,
        n_components=spec.n_components,
        columns=columns,
        missing=missing,
        labels=labels,
    )


def read_like(
    X: Any,
    names: Sequence[str],
    *,
    missing: Missing = "error",
    units: Mapping[str, str] | None = None,
) -> tuple[Array, pd.Index[Any]]:
    """Read new data for a mixture that was fitted to columns `names`.

    Parameters
    ----------
    X : (n, d) table
        As in `read`; one row or a constant column is fine. Columns are matched by name if X has
        names, else taken in the order of `names`.
    names : sequence of str
    missing : {"error", "drop", "marginalise"}
        As in `read`.
    units : mapping, optional
        Of the columns that the mixture was fitted to, by name.

    Returns
    -------
    values : (n, d) array
        In data units, columns in the order of `names`.
    index : pandas.Index
        The row labels.

    Raises
    ------
    ColumnNameError, ShapeError
        If columns are missing or unexpected, or their number is wrong.
    DataError
        If cells are not finite numbers.
    """
    table = align(X, names, missing=missing, units=units)
    return table.values, table.index


def _fingerprint(table: Table, weight: Array, probability: Array) -> str:
    digest = hashlib.sha256(json.dumps([table.values.shape, table.names]).encode())
    for part in blocks(len(table.values)):
        values = table.values[part] + 0.0  # -0.0 is 0.0
        values[np.isnan(values)] = np.nan  # there are many NaNs
        digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    for _, difference in table.integers.values():
        digest.update(difference.astype("<f8").data)
    digest.update(weight.astype("<f8").data)
    if len(probability):
        digest.update(b"labels" + probability.astype("<f8").tobytes())
    return f"sha256:{digest.hexdigest()}"
