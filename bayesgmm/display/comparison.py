r"""A point estimate and draws of one mixture, parameter by parameter, on one uncertainty axis.

With estimate and standard error from one fit, mean and sd from the other,

.. math:: z = \frac{\text{estimate} - \text{mean}}{\text{sd}}, \qquad
          \text{sd ratio} = \frac{\text{sd}}{\text{se}}, \qquad
          \text{overlap} = \frac{|W \cap P|}{|W \cup P|}

for the Wald interval W and the posterior's equal-tailed interval P; `reasons` says why they differ.
"""

from __future__ import annotations

import json
from itertools import compress
from typing import get_args

import numpy as np
import xarray as xr

from bayesgmm import labels
from bayesgmm.ambiguity import ambiguous_of, why_refused
from bayesgmm.display.about import attributes
from bayesgmm.display.reasons import Evidence, ambiguous_labels, explain
from bayesgmm.errors import ArgumentError
from bayesgmm.inference.delta import errors_on_scale
from bayesgmm.inference.estimate import estimate_of
from bayesgmm.inference.quantities import of_function
from bayesgmm.information.uncertainty import METHODS, Kind
from bayesgmm.labelfree import label_free
from bayesgmm.moments import Array, Parameters
from bayesgmm.rows import (
    Row,
    are_independent,
    check_prob,
    draws_of,
    error_method,
    has_draws,
    interval_overlap,
    label_free_of,
    label_free_rows,
    parameter_rows,
    standard_errors,
    summarise_draws,
    take,
    unit_of,
    wald_interval,
)
from bayesgmm.tree import DIMS, components, names_of, spec_of, units_of, whole

_COORDINATES = ("label", "variable", "cluster", "feature", "feature_bis")
_MEASURED = ("estimate", "se", "z", "sd_ratio", "overlap", "r_hat")


def compare(
    mle: xr.DataTree, post: xr.DataTree, *, ci_prob: float = 0.95, allow_ambiguous: bool = False
) -> xr.Dataset:
    """Compare a point estimate with draws, one row for every free parameter.

    Parameters
    ----------
    mle : DataTree
        A fit with one draw: maximum likelihood or MAP. Its components are put in the order of
        those of ``post``.
    post : DataTree
        A fit of the same specification and data with draws: a posterior, or a bootstrap.
    ci_prob : float
        Probability of the intervals: Wald for ``mle``, equal-tailed (ETI) for ``post``.
    allow_ambiguous : bool
        Where the labels of more than 5 % of the draws are ambiguous, the mean of a component would
        be a mixture of several: all that the draws say of single components is NaN then, with that
        as the reason, and quantities that no labelling changes are compared as well. If this is
        true, components are compared nonetheless.

    Returns
    -------
    Dataset
        One row for every parameter that is free in one of the fits, dimension ``parameter``, with
        coordinates ``label, variable, cluster, feature, feature_bis``
        (cluster -1: common to all) and, if columns came with units, ``unit``; and variables
        ``estimate, se, wald_lower, wald_upper, mean, sd, mcse, median, eti_lower, eti_upper, z,
        sd_ratio, overlap, r_hat, ess_bulk, ess_tail, agree, reason``, in units of the data.
        Attributes hold the log-likelihoods, criteria, verdicts and all else that a report needs;
        they and the rest survive NetCDF.

    Raises
    ------
    ArgumentError
        If the fits are of different data, units or specifications, hold different things fixed, or
        do not have one draw and many; if either is not a whole fit.

    See Also
    --------
    bayesgmm.rows.parameter_rows : which parameters are rows.
    """
    check_prob(ci_prob)
    _check_comparable(mle, post)
    rows = parameter_rows(spec_of(post), names_of(post))
    estimates, errors, order, margin = _aligned_estimate(mle, post)
    se, draws = take(errors, rows), take(draws_of(post), rows)
    moves = (se != 0.0) | (np.ptp(draws, axis=(0, 1)) > 0.0)  # what is fixed does in neither
    rows, se, draws = list(compress(rows, moves)), se[moves], draws[..., moves]
    estimate = take(estimates, rows)
    refused, note = "" if allow_ambiguous else why_refused(post), error_method(mle)[1]
    notes = [note] * len(rows)
    if refused:
        free = label_free_of(post)
        others = label_free_rows({n: a for n, a in free.items() if n != "loglik"}, names_of(post))
        more, more_se, why = _label_free_estimates(mle, others)
        draws = np.concatenate([draws, take(free, others)], axis=-1)
        estimate, se = np.concatenate([estimate, more]), np.concatenate([se, more_se])
        rows, notes = [*rows, *others], [*notes, *([why] * len(others))]
    hidden = np.array([bool(refused) and row.cluster >= 0 for row in rows])
    found = summarise_draws(draws, ci_prob, are_independent(post))
    found = {name: np.where(hidden, np.nan, value) for name, value in found.items()}
    lower, upper = wald_interval(estimate, se, ci_prob)
    with np.errstate(all="ignore"):
        table = {
            "estimate": estimate,
            "se": se,
            "wald_lower": lower,
            "wald_upper": upper,
            **found,
            "z": (estimate - found["mean"]) / found["sd"],
            "sd_ratio": found["sd"] / se,
            "overlap": interval_overlap(lower, upper, found["eti_lower"], found["eti_upper"]),
        }
        evidence = _evidence(mle, post, rows, draws, table, notes)
        reason = [
            ambiguous_labels(e) if hide else explain(e)
            for e, hide in zip(evidence, hidden, strict=True)
        ]
    table |= {"agree": np.array([not text for text in reason]), "reason": np.array(reason)}
    text = {name: np.array([getattr(row, name) for row in rows]) for name in _COORDINATES}
    units = units_of(mle) | units_of(post)
    text |= {"unit": np.array([unit_of(row, units) for row in rows])} if units else {}
    return xr.Dataset(
        {name: ("parameter", value) for name, value in table.items()},
        coords={name: ("parameter", value) for name, value in text.items()}
        | {"parameter": text["label"]},
        attrs=attributes(mle, post)
        | {
            "ci_prob": ci_prob,
            "ci_kind": "eti",
            "permutation": json.dumps([int(j) for j in order]),
            "permutation_margin": margin,
            "ambiguous_labels": ambiguous_of(post),
            "refused": refused,
        },
    )


def _check_comparable(mle: xr.DataTree, post: xr.DataTree) -> None:
    needed = ("sample_stats", "observed_data", "constant_data")
    for name, fit in (("mle", mle), ("post", post)):
        whole(name, fit, *needed)
    if has_draws(mle):
        raise ArgumentError(
            "mle", "has draws; give a point estimate (one draw), and the fit with draws as post"
        )
    if not has_draws(post):
        raise ArgumentError("post", "is a point estimate; give a fit with more than one draw")
    a, b = spec_of(mle), spec_of(post)
    differ = {
        "n_components": (a.n_components, b.n_components),
        "covariance": (str(a.covariance), str(b.covariance)),
        "noise": (a.noise, b.noise),
        "feature names": (names_of(mle), names_of(post)),
        "number of rows": tuple(fit["observed_data"].sizes["obs"] for fit in (mle, post)),
        "data fingerprint": (mle.attrs["fingerprint"], post.attrs["fingerprint"]),
        "what is fixed": (mle.attrs.get("fixed", ""), post.attrs.get("fixed", "")),
    }
    for what, (one, other) in differ.items():
        if one != other:
            raise ArgumentError(
                "post", f"is not comparable with mle: {what} is {other!r}, but {one!r} in mle"
            )
    one, other = units_of(mle), units_of(post)
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            raise ArgumentError(
                "post",
                f"is not comparable with mle: column {name!r} is in {other[name]}, but in "
                f"{one[name]} in mle",
            )


def _aligned_estimate(
    mle: xr.DataTree, post: xr.DataTree
) -> tuple[dict[str, Array], dict[str, Array], labels.Labels, float]:
    """Estimates and standard errors in the posterior's order of components, and that order."""
    point = {name: a[0, 0] for name, a in draws_of(mle).items()}
    flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in draws_of(post).items()}
    finite = np.isfinite(flat["covariance"]).all(axis=(1, 2, 3))
    pivot = components({name: flat[name][finite].mean(axis=0) for name in DIMS})
    order, margin = labels.match(components(point), pivot)

    def ordered(arrays: dict[str, Array]) -> dict[str, Array]:
        return {name: a[order] if name in DIMS else a for name, a in arrays.items()}

    return ordered(point), ordered(standard_errors(mle)), order, margin


def _evidence(
    mle: xr.DataTree,
    post: xr.DataTree,
    rows: list[Row],
    draws: Array,
    table: dict[str, Array],
    notes: list[str],
) -> list[Evidence]:
    """Return what `reasons` looks at, for every row."""
    spec, stats = spec_of(post), post["sample_stats"].to_dataset()
    is_map = mle.attrs["estimate"] == "map"
    prior = None
    if "log_prior" in stats and not (is_map and spec_of(mle).prior == spec.prior):
        prior = stats["log_prior"].transpose("chain", "draw").to_numpy().ravel()
    gap = float(stats["loglik"].max()) - mle["sample_stats"]["loglik"].item()
    ambiguous = ambiguous_of(post)
    weight = draws_of(post)["weight"].mean(axis=(0, 1))
    total = float(post["constant_data"]["sample_weight"].to_numpy().sum())
    d = len(names_of(post))
    own = 1 if spec.covariance.is_common else spec.n_components
    return [
        Evidence(
            kind=row.kind,
            draws=draws[..., i].ravel(),
            ess=float(table["ess_bulk"][i]),
            log_prior=prior,
            loglik_gap=np.nan if is_map else gap,
            ambiguous=ambiguous if row.cluster >= 0 else 0.0,
            note=notes[i],
            count=total * (1.0 if row.cluster < 0 else float(weight[row.cluster])),
            size=d + spec.covariance.n_parameters(spec.n_components, d) // own,
            **{name: float(table[name][i]) for name in _MEASURED},
        )
        for i, row in enumerate(rows)
    ]


def _label_free_estimates(mle: xr.DataTree, rows: list[Row]) -> tuple[Array, Array, str]:
    """Return label-free quantities of an estimate, their errors, and why there are none.

    Errors are those of the delta method, with the covariance that the fit's own are from.
    """
    found = {name: a[0, 0] for name, a in label_free_of(mle).items()}
    estimate = take(found, rows)
    none = np.full(len(rows), np.nan)
    method, note = error_method(mle)
    kinds: dict[str, Kind] = {METHODS[kind]: kind for kind in get_args(Kind)}
    kind = kinds.get(method)
    if kind is None:
        return estimate, none, note or f"by '{method}' there is none of what has no label"
    try:
        about = estimate_of(mle)
    except ArgumentError as error:
        return estimate, none, str(error)

    def function(p: Parameters) -> Array:
        weight = p.weight / p.weight.sum()  # without noise
        return take(label_free(weight, p.mean, p.covariance), rows)

    asked = of_function(function, "identity", about.data, about.parameters)
    uncertainty = about.uncertainty(kind)
    return estimate, errors_on_scale(about, uncertainty, asked), uncertainty.note()
