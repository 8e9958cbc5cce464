r"""How probable each component is for each row, and how well that is known.

A draw's responsibility is a function of its parameters,

.. math:: r_{ik}(\theta) = \frac{\pi_k N(x_i; \mu_k, \Sigma_k)}
          {\sum_j \pi_j N(x_i; \mu_j, \Sigma_j)}

so that it has a posterior distribution itself.  Its mean is the probability that the row belongs
to the component; its spread is what more data of the same kind would take away.  A row between two
components that are known exactly has 0.5 and a short interval; one whose side depends on where the
components are has a long one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from bayesgmm.allocation.drawn import (
    MOST,
    NUMBERS,
    ask,
    row_names,
    warn_if_ambiguous,
    with_draws,
)
from bayesgmm.ambiguity import refuse_ambiguous
from bayesgmm.data.cells import Missing
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.prediction.assignment import NOISE_LABEL
from bayesgmm.prediction.evaluation import Draws, by_pattern, responsibilities_of
from bayesgmm.rows import check_prob

_SUMMARIES = ("mean", "sd", "eti_lower", "eti_upper")


def responsibilities(
    fit: xr.DataTree,
    X: Any = None,
    *,
    ci_prob: float = 0.95,
    draws: int | None = None,
    missing: Missing = "error",
    keep_draws: bool = False,
    allow_ambiguous: bool = False,
) -> xr.Dataset:
    """Return the posterior of every row's responsibilities: mean, sd and equal-tailed interval.

    Parameters
    ----------
    fit : DataTree
        With draws: of `sample_posterior`, `fit_laplace` or `bootstrap`.
    X : (n, d) table, optional
        Columns are matched by name if it has names. Default: the rows of the fit, with what was
        known of them: missing values are integrated over, and known labels count.
    ci_prob : float
        Probability of the interval.
    draws : int, optional
        Use only this many, evenly spaced. Default: all.
    missing : {"error", "drop", "marginalise"}
        What to do about missing values in ``X``, as in `predict_proba`.
    keep_draws : bool
        Whether to return also the responsibilities in every draw. Else memory does not grow with
        rows times draws.
    allow_ambiguous : bool
        As in `predict_proba`.

    Returns
    -------
    Dataset
        ``mean``, ``sd``, ``eti_lower`` and ``eti_upper``, each (obs, cluster); the cluster of a
        noise component is -1, and the last. The means are those of `predict_proba`. If
        ``keep_draws`` also ``responsibility`` (chain, draw, obs, cluster); of some ``draws`` in
        one chain.

    Raises
    ------
    DataError
        If columns are missing or unexpected, or cells are not finite numbers.
    ArgumentError
        If an argument is wrong, the fit is a point estimate, or more than 2^27 numbers would be
        kept; if labels are ambiguous in more than 5 % of the draws.

    Warns
    -----
    PosteriorWarning
        With code ambiguous-labels, where that is the fit's verdict.
    """
    check_prob(ci_prob)
    with_draws(fit)
    if not allow_ambiguous:
        refuse_ambiguous(fit, "responsibilities of single components")
    asked = ask(fit, X, draws, missing)
    size = asked.n * asked.s * asked.k
    if keep_draws and size > MOST:
        raise ArgumentError(
            "keep_draws",
            f"would make {size:.2g} numbers, {size * 8 / 2**30:.1f} GiB; the most is {MOST:.2g}. "
            f"Take draws={max(1, MOST // (asked.n * asked.k))} or fewer rows",
        )
    warn_if_ambiguous(fit, "responsibilities")
    tail = 0.5 * (1.0 - ci_prob)

    def part(each: Draws, rows: Array) -> Array:
        r = responsibilities_of(each, rows)
        found = [r.mean(axis=0), r.std(axis=0, ddof=1)] if len(r) > 1 else [r[0], 0.0 * r[0]]
        found += list(np.quantile(r, [tail, 1.0 - tail], axis=0))
        if keep_draws:
            found += list(r)
        return np.stack(found).T  # (rows, k, 4 or 4 + s)

    block = max(1, NUMBERS // (asked.s * asked.k))
    found = by_pattern(part, asked.x, asked.mixture, asked.known, block)
    clusters = np.arange(asked.k)
    if asked.mixture.noise is not None:
        clusters[-1] = NOISE_LABEL
    both = ("obs", "cluster")
    result = xr.Dataset(
        {name: (both, found[..., i]) for i, name in enumerate(_SUMMARIES)},
        coords={"obs": row_names(asked.index), "cluster": clusters},
        attrs={"ci_kind": "eti", "ci_prob": ci_prob},
    )
    if keep_draws:
        posterior = fit["posterior"].to_dataset()
        shape = (posterior.sizes["chain"], -1) if draws is None else (1, asked.s)
        each = np.moveaxis(found[..., len(_SUMMARIES) :], 2, 0)
        each = each.reshape(*shape, asked.n, asked.k)
        result["responsibility"] = (("chain", "draw", *both), each)
        if draws is None:
            result = result.assign_coords({dim: posterior[dim] for dim in ("chain", "draw")})
    return result
