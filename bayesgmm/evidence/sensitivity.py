r"""How much a posterior owes to its prior, and how much to the data: power-scaling.

The posterior with prior :math:`p(\theta)^\alpha`, or likelihood :math:`p(x \mid \theta)^\alpha`, is
that of the draws with other weights, for :math:`\alpha` near 1.  How fast each quantity's
distribution moves with :math:`\log_2 \alpha` is its sensitivity, found by ArviZ.

The prior density is that with respect to the invariant measure (`bayesgmm.resolved`), so that a
power of a conjugate prior is the prior of as many times the pseudo-data.

References
----------
Kallioinen, Paananen, Buerkner & Vehtari (2024), Statistics and Computing 34, 57.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.psense import psense

from bayesgmm.arguments import share
from bayesgmm.evidence.source import posterior_of
from bayesgmm.rows import (
    draws_of,
    label_free_of,
    label_free_rows,
    note_of_ambiguous,
    parameter_rows,
    take,
)
from bayesgmm.tree import names_of, spec_of

CONFLICT = "prior-data conflict"
STRONG = "strong prior, weak likelihood"


def sensitivity(
    post: xr.DataTree, *, threshold: float = 0.05, allow_ambiguous: bool = False
) -> pd.DataFrame:
    """Return how sensitive each quantity is to the prior and to the likelihood.

    Parameters
    ----------
    post : DataTree
        Draws by `sample_posterior` or `fit_laplace`; the log-likelihood need not be kept.
    threshold : float
        From here on a quantity counts as sensitive.
    allow_ambiguous : bool
        As for `summary`: of draws whose labels are ambiguous (in more than 5 % of them) only
        quantities without labels are shown; or, if this is true, all nonetheless.

    Returns
    -------
    DataFrame
        A row for every free parameter, and for every label-free quantity (mean and sd of the
        mixture, shares between components, ...), which holds where labels are ambiguous, too.
        ``attrs["note"]``: why components are left out.
        Columns: ``prior``, of the whole prior; ``prior of weight``, ``prior of mean`` (given the
        covariances), ``prior of covariance``, its parts; ``likelihood``; ``diagnosis``:
        "prior-data conflict" where prior and likelihood both matter, so that they pull in different
        directions; "strong prior, weak likelihood" where only the prior does, so that the data say
        little; else empty.

    Raises
    ------
    ArgumentError
        If ``post`` is no posterior, or the threshold not between 0 and 1.

    Warns
    -----
    PosteriorWarning
        With code ambiguous-labels: components are left out.

    Notes
    -----
    `arviz.psense_summary` and `arviz.plot_psense_dist` work on the fit itself, where the pointwise
    log-likelihood is kept.
    """
    fit = posterior_of("post", post, "log_prior", "label_free")
    share("threshold", threshold)
    names, free = names_of(fit), label_free_of(fit)
    free = {name: array for name, array in free.items() if name != "loglik"}
    rows = parameter_rows(spec_of(fit), names)
    note = "" if allow_ambiguous else note_of_ambiguous(fit)
    if note:
        rows = [row for row in rows if row.cluster < 0]
    rows += label_free_rows(free, names)
    columns = np.moveaxis(take(draws_of(fit) | free, rows), -1, 0)
    values = dict(zip([row.label for row in rows], columns, strict=True))
    both = ("chain", "draw")
    loglik = fit["sample_stats"]["loglik"].transpose(*both).to_numpy()
    one = xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({name: (both, v) for name, v in values.items()}),
            "/log_prior": fit["log_prior"].to_dataset(),
            "/log_likelihood": xr.Dataset({"x": (both, loglik)}),
        }
    )
    parts = [str(name) for name in fit["log_prior"].data_vars]
    asked: dict[str, Any] = {"prior": {"group": "prior"}}
    asked |= {
        f"prior of {name}": {"group": "prior", "group_var_names": [name]}
        for name in parts
        if np.ptp(fit["log_prior"][name].to_numpy()) > 0
    }
    asked["likelihood"] = {"group": "likelihood"}
    found = {name: psense(one, **arguments) for name, arguments in asked.items()}
    table = pd.DataFrame(
        {name: [float(each[label]) for label in values] for name, each in found.items()},
        index=pd.Index(list(values), name="quantity"),
    )
    both_values = zip(table["prior"], table["likelihood"], strict=True)
    table["diagnosis"] = [_diagnosis(p, d, threshold) for p, d in both_values]
    table.attrs["note"] = note
    return table


def _diagnosis(prior: float, likelihood: float, threshold: float) -> str:
    if not prior >= threshold:
        return ""
    return CONFLICT if likelihood >= threshold else STRONG
