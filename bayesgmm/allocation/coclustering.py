r"""How probable it is that two rows are in one component: a matrix without labels.

.. math:: \Pr(z_i = z_j \mid x) = E \sum_k r_{ik}(\theta) \, r_{jk}(\theta), \qquad i \ne j

since rows have their components independently given the parameters.  The mean over draws of the
right side has less Monte Carlo error than counting pairs in drawn components (Rao-Blackwell), and
it is a matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from bayesgmm.allocation.drawn import MOST, Drawn, ask, chosen, row_names
from bayesgmm.data.cells import Missing
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array

_TILE = 256  # rows of the matrix that are made together


def coclustering(
    fit: xr.DataTree,
    X: Any = None,
    *,
    rows: Sequence[int] | None = None,
    draws: int | None = None,
    missing: Missing = "error",
) -> xr.DataArray:
    """Return the posterior probabilities that two rows are in the same component.

    Labels play no part: draws whose components are called otherwise give the same matrix.

    Parameters
    ----------
    fit : DataTree
        With draws: of `sample_posterior`, `fit_laplace` or `bootstrap`.
    X : (n, d) table, optional
        Default: the rows of the fit, with what was known of them.
    rows : sequence of int, optional
        Positions of the rows to take. Default: all.
    draws : int, optional
        Use only this many, evenly spaced. Default: all. The time is proportional to the squared
        number of rows times draws times components, by a library's matrix product.
    missing : {"error", "drop", "marginalise"}
        What to do about missing values in ``X``, as in `predict_proba`.

    Returns
    -------
    DataArray
        (obs, obs_bis), named "coclustering", symmetric, with ones on the diagonal. Rows that are
        noise, where there is a noise component, count as being together.

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, the fit is a point estimate, or the matrix would have more than
        2^27 numbers (a gigabyte; 11585 rows).
    """
    asked = ask(fit, X, draws, missing)
    where = chosen(rows, asked.n)
    if len(where) ** 2 > MOST:
        raise ArgumentError(
            "rows" if rows is not None else "fit" if X is None else "X",
            f"has {len(where)} rows, for which the matrix takes {len(where) ** 2 * 8 / 2**30:.1f} "
            f"GiB; the most is {int(MOST**0.5)} rows. Name some of them by rows=",
        )
    asked = asked.take(where)
    names = row_names(asked.index)
    return xr.DataArray(
        together(asked),
        dims=("obs", "obs_bis"),
        coords={"obs": names, "obs_bis": names.rename("obs_bis")},
        name="coclustering",
    )


def together(asked: Drawn) -> Array:
    """Return the matrix (n, n) of all rows that are asked about."""
    found = np.zeros((asked.n, asked.n))

    def add(begin: int, flat: Array) -> None:
        found[begin : begin + _TILE, begin:] += flat[begin : begin + _TILE] @ flat[begin:].T

    # A library's own threads would add in an order that depends on how many there are.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        for r in asked.responsibilities():
            tile = partial(add, flat=r.reshape(asked.n, -1))
            list(pool.map(tile, range(0, asked.n, _TILE)))
    found /= asked.s
    np.minimum(found, 1.0, out=found)  # but for rounding it is
    np.fill_diagonal(found, 1.0)
    for begin in range(0, asked.n, _TILE):
        end = min(begin + _TILE, asked.n)
        found[end:, begin:end] = found[begin:end, end:].T
        block, below = found[begin:end, begin:end], np.tril_indices(end - begin, -1)
        block[below] = block.T[below]
    return found
