r"""A fit's draws beside the rows that are asked about: what every question of allocation needs.

Given the parameters of a draw, rows have their components independently of each other,

.. math:: p(z_1 = k_1, \dots, z_n = k_n \mid \theta_s, x) = \prod_i r_{i k_i}(\theta_s)

so that responsibilities say everything, and one set of components drawn from them for every draw
is a sample of the posterior of partitions.  Noise, where there is some, counts as one component
more, the last.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.checks import Verdict
from bayesgmm.data.cells import Missing
from bayesgmm.errors import PACKAGE, ArgumentError, NotYetSupportedError, PosteriorWarning
from bayesgmm.groups import NO_LABELS
from bayesgmm.moments import Array
from bayesgmm.prediction.evaluation import (
    Draws,
    Mixtures,
    by_pattern,
    mixtures_of,
    read_rows,
    responsibilities_of,
)
from bayesgmm.rows import has_draws
from bayesgmm.tree import whole

Labels = NDArray[np.int16]
NUMBERS = 1 << 22  # in an array of responsibilities that is made at once
MOST = 1 << 27  # numbers that a result may have: a gigabyte


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws of a mixture, and rows.

    Parameters
    ----------
    mixture : Mixtures
    x : (n, d) array
        NaN where missing.
    index : Index
        Names of the rows.
    known : (n, k) array, or (0, 0) array
        How probable each component is for each row, apart from x.
    """

    mixture: Mixtures
    x: Array
    index: pd.Index[Any]
    known: Array

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def s(self) -> int:
        """Number of draws."""
        return len(self.mixture.weight)

    @property
    def k(self) -> int:
        """Number of components, noise included."""
        return self.mixture.weights.shape[1]

    def take(self, rows: NDArray[np.intp]) -> Drawn:
        """Return some of the rows."""
        known = self.known[rows] if len(self.known) else self.known
        return replace(self, x=self.x[rows], index=self.index[rows], known=known)

    def responsibilities(self) -> Iterator[Array]:
        """Yield (n, s, k) responsibilities, for a block of draws at a time."""
        step = max(1, NUMBERS // (self.n * self.k))
        for begin in range(0, self.s, step):
            part = slice(begin, begin + step)

            def some(each: Draws, rows: Array, part: slice = part) -> Array:
                return np.moveaxis(responsibilities_of(each[part], rows), 2, 0)

            yield by_pattern(some, self.x, self.mixture, self.known)

    def sample(self, rng: np.random.Generator) -> Labels:
        """Return components (n, s) that are drawn for all rows, once from every draw."""
        found = np.empty((self.n, self.s), dtype=np.int16)
        begin = 0
        for r in self.responsibilities():
            reached = np.cumsum(r, axis=2)
            uniform = rng.random(r.shape[1::-1]).T  # in the order of the draws
            below = uniform[..., None] * reached[..., -1:] >= reached
            found[:, begin : begin + r.shape[1]] = below.sum(axis=2)
            begin += r.shape[1]
        return found


def with_draws(fit: Any) -> xr.DataTree:
    """Return a fit that has draws.

    Raises
    ------
    ArgumentError
        If it is no fit, or a point estimate.
    """
    whole("fit", fit)
    if not has_draws(fit):
        raise ArgumentError(
            "fit",
            "is a point estimate; what is asked is known only with draws, of sample_posterior, "
            "fit_laplace or bootstrap",
        )
    return fit


def ask(fit: Any, X: Any, draws: int | None, missing: Missing) -> Drawn:
    """Return the draws of a fit and the rows of a table or, for None, those it was fitted to.

    The rows of the fit are taken with what was known of them: missing values are integrated over,
    and known labels count.

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, or if there is no ``X`` and the fit has no rows of its own.
    """
    with_draws(fit)
    mixture = mixtures_of(fit, draws)
    if X is not None:
        return Drawn(mixture, *read_rows(fit, X, mixture, missing), NO_LABELS)
    if "observed_data" not in fit.children:
        raise ArgumentError("X", "is needed: the fit has no rows of its own, as conditional leaves")
    x = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature")
    known = fit["constant_data"].to_dataset().get("label_probability")
    return Drawn(
        mixture,
        np.ascontiguousarray(x.to_numpy()),
        x.get_index("obs"),
        NO_LABELS if known is None else known.transpose("obs", "cluster").to_numpy(),
    )


def row_names(index: pd.Index[Any]) -> pd.Index[Any]:
    """Return the names of rows as a coordinate, ``obs``."""
    flat = index.to_flat_index() if isinstance(index, pd.MultiIndex) else index
    return flat.rename("obs")


def chosen(rows: Sequence[int] | None, n: int) -> NDArray[np.intp]:
    """Return the positions of the rows that are asked for.

    Raises
    ------
    ArgumentError
        If they are not integers, or there are no such rows.
    """
    if rows is None:
        return np.arange(n)
    found = np.asarray(rows)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise ArgumentError("rows", f"must be a list of positions among the {n} rows")
    if found.min() < 0 or found.max() >= n:
        raise ArgumentError("rows", f"must be from 0 to {n - 1}, for {n} rows")
    return found.astype(np.intp)


def counted(fit: xr.DataTree) -> NDArray[np.intp]:
    """Return the positions of a fit's rows that count once; rows of weight 0 do not count.

    Raises
    ------
    NotYetSupportedError
        If rows have other weights: what stands for several rows is in no one place.
    """
    weight = fit["constant_data"].to_dataset()["sample_weight"].to_numpy()
    if not np.isin(weight, (0.0, 1.0)).all():
        raise NotYetSupportedError(
            "fit", "has weighted rows, of which each stands for several; fit the repeated rows"
        )
    return np.flatnonzero(weight)


def warn_if_ambiguous(fit: xr.DataTree, what: str) -> None:
    """Warn where the fit's own verdict is that its labels are ambiguous."""
    text = fit.attrs.get("verdict")
    checks = Verdict.from_json(str(text)).checks if text else ()
    for check in checks:
        if check.code == "ambiguous-labels" and check.status != "ok":
            warnings.warn(
                PosteriorWarning(
                    check.code,
                    f"{what} mix components whose labels are not sure: {check.evidence}. "
                    "coclustering and partition do not depend on labels",
                ),
                skip_file_prefixes=(PACKAGE,),
            )
