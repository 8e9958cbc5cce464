r"""A point estimate and draws of one mixture, parameter by parameter, on one uncertainty axis.

With estimate and standard error from one fit, mean and sd from the other,

.. math:: z = \frac{\text{estimate} - \text{mean}}{\text{sd}}, \qquad
          \text{sd ratio} = \frac{\text{sd}}{\text{se}}, \qquad
          \text{overlap} = \frac{|W \cap P|}{|W \cup P|}

for the Wald interval W and the posterior's equal-tailed interval P; `reasons` says why they differ.
"""

from __future__ import annotations

import io
import json
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayesgmm import labels
from bayesgmm.display.reasons import Evidence, explain
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array
from bayesgmm.rows import (
    Row,
    are_independent,
    check_prob,
    draws_of,
    error_method,
    has_draws,
    interval_overlap,
    parameter_rows,
    standard_errors,
    summarise_draws,
    take,
    wald_interval,
)
from bayesgmm.tree import DIMS, components, names_of, spec_of, whole

CRITERIA = ("loglik", "aic", "bic", "icl", "n_params")
_COORDINATES = ("label", "variable", "cluster", "feature", "feature_bis")
_MEASURED = ("estimate", "se", "z", "sd_ratio", "overlap", "r_hat")
LOO = ("elpd_loo", "elpd_loo_se", "p_loo", "pareto_k_max", "pareto_k_bad")
SIDES = ("mle", "post")
NAMES = {"mle": "maximum-likelihood estimate", "map": "MAP estimate", "posterior": "posterior"}


def compare(mle: xr.DataTree, post: xr.DataTree, *, ci_prob: float = 0.95) -> xr.Dataset:
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

    Returns
    -------
    Dataset
        One row for every parameter that is free in one of the fits, dimension ``parameter``, with
        coordinates ``label, variable, cluster, feature, feature_bis``
        (cluster -1: common to all), and variables ``estimate, se, wald_lower, wald_upper, mean, sd,
        mcse, median, eti_lower, eti_upper, z, sd_ratio, overlap, r_hat, ess_bulk, ess_tail, agree,
        reason``, in units of the data. Attributes hold the log-likelihoods, criteria, verdicts
        and all else that a report needs; they and the rest survive NetCDF.

    Raises
    ------
    ArgumentError
        If the fits are of different data or specifications, hold different things fixed, or do not
        have one draw and many; if either is not a whole fit.

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
    found = summarise_draws(draws, ci_prob, are_independent(post))
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
        evidence = _evidence(mle, post, rows, draws, table)
        reason = [explain(e) for e in evidence]
    table |= {"agree": np.array([not text for text in reason]), "reason": np.array(reason)}
    text = {name: np.array([getattr(row, name) for row in rows]) for name in _COORDINATES}
    return xr.Dataset(
        {name: ("parameter", value) for name, value in table.items()},
        coords={name: ("parameter", value) for name, value in text.items()}
        | {"parameter": text["label"]},
        attrs=_attributes(mle, post)
        | {
            "ci_prob": ci_prob,
            "ci_kind": "eti",
            "permutation": json.dumps([int(j) for j in order]),
            "permutation_margin": margin,
            "ambiguous_labels": evidence[0].ambiguous,
        },
    )


def to_frame(comparison: xr.Dataset) -> pd.DataFrame:
    """Return a comparison as a tidy table, one row per parameter, indexed by label."""
    refuse_other(comparison)
    frame = comparison.to_dataframe().reset_index(drop=True).set_index("label")
    frame.attrs = {name: comparison.attrs[name] for name in ("ci_prob", "ci_kind")}
    first = ["variable", "cluster", "feature", "feature_bis"]
    return frame[first + [name for name in frame if name not in first]]


def refuse_other(comparison: Any) -> None:
    """Refuse what did not come from `compare`."""
    if not isinstance(comparison, xr.Dataset) or "post_name" not in comparison.attrs:
        what = type(comparison).__name__
        raise ArgumentError("comparison", f"must come from compare, which this {what} does not")


def headline(comparison: xr.Dataset) -> str:
    """Return one sentence: whether the two fits agree, and whether both can be relied on."""
    attrs, total = comparison.attrs, comparison.sizes["parameter"]
    agreed = int(comparison["agree"].sum())
    who = f"{attrs['mle_name']} and {attrs['post_name']}"
    text = f"{who[0].upper()}{who[1:]} agree on "
    text += f"all {total} parameters" if agreed == total else f"{agreed} of {total} parameters"
    z, ratio = np.abs(comparison["z"].to_numpy()), comparison["sd_ratio"].to_numpy()
    if np.isfinite(z).any() and np.isfinite(ratio).any():
        text += (
            f" (largest |z| {np.nanmax(z):.2f}, sd ratio {np.nanmin(ratio):.2f} to "
            f"{np.nanmax(ratio):.2f})"
        )
    bad = [
        f"the verdict on the {attrs[f'{side}_name']} is '{verdict(comparison, side)['status']}'"
        for side in SIDES
        if verdict(comparison, side)["status"] != "ok"
    ]
    return text + (f"; but {' and '.join(bad)}" if bad else "") + "."


def verdict(comparison: xr.Dataset, side: str) -> dict[str, Any]:
    """Return the verdict on one of the fits, ``side`` "mle" or "post": status and checks."""
    found: dict[str, Any] = json.loads(comparison.attrs[f"{side}_verdict"])
    return found


def failed_checks(comparison: xr.Dataset, side: str) -> list[dict[str, str]]:
    """Return the checks of a verdict that are not ok, worst first."""
    checks = verdict(comparison, side)["checks"]
    bad = [check for check in checks if check["status"] != "ok"]
    return sorted(bad, key=lambda check: ("fail", "warn").index(check["status"]))


def facts(comparison: xr.Dataset) -> dict[str, str]:
    """Return log-likelihoods, criteria and LOO in words, each with what its sign means."""
    a = comparison.attrs
    found = {
        f"log-likelihood of the {a['mle_name']}": f"{a['loglik']:.2f}",
        f"log-likelihood of the {a['post_name']}": (
            f"mean {a['loglik_mean']:.2f}, sd {a['loglik_sd']:.2f}"
        ),
    }
    if a["mle_estimate"] == "mle" and np.isfinite(a["n_params"]):
        found[f"log-likelihood of the {a['post_name']}"] += (
            f" ({a['loglik'] - a['loglik_mean']:.2f} below the maximum; about half the number of "
            f"parameters, {a['n_params'] / 2:g}, is usual)"
        )
    for name in ("aic", "bic", "icl"):
        if np.isfinite(a[name]):
            found[name.upper()] = f"{a[name]:.2f} ({a['criteria_sign']})"
    if np.isfinite(a["elpd_loo"]):
        found["LOO"] = (
            f"elpd {a['elpd_loo']:.2f}, standard error {a['elpd_loo_se']:.2f} (larger is better); "
            f"p_loo {a['p_loo']:.1f}; {a['pareto_k_note']}"
        )
    found[f"standard errors of the {a['mle_name']}"] = a["se_method"]
    return found | {"prior": a["prior_note"]}


def format_number(value: float, unit: float) -> str:
    """Return a number with the digits that matter: two of ``unit``, its standard error or sd."""
    if not np.isfinite(value):
        return "–"
    if not (np.isfinite(unit) and unit > 0):
        return f"{value:.4g}"
    decimals = 1 - int(np.floor(np.log10(unit)))
    if abs(value) < 1e7 and decimals <= 6:
        return f"{value:.{max(decimals, 0)}f}"
    if value == 0:
        return "0"
    digits = decimals + int(np.floor(np.log10(abs(value))))
    return f"{value:.{min(max(digits, 2), 16)}e}"


def format_rows(comparison: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table that people read."""
    level = f"{100 * comparison.attrs['ci_prob']:g} %"
    header = ["parameter", "estimate", f"{level} Wald", "mean", f"{level} ETI"]
    header += ["z", "sd ratio", "overlap", "R-hat", "ESS bulk", "ESS tail", "agree"]
    cells = []
    for row in to_frame(comparison).reset_index().to_dict("records"):
        unit = row["se"] if np.isfinite(row["se"]) else row["sd"]

        def interval(kind: str, row: dict[Any, Any] = row, unit: float = unit) -> str:
            ends = (row[f"{kind}_lower"], row[f"{kind}_upper"])
            return " to ".join(format_number(end, unit) for end in ends)

        line = [row["label"], format_number(row["estimate"], unit), interval("wald")]
        line += [format_number(row["mean"], unit), interval("eti")]
        line += [format_number(row[name], 0.1) for name in ("z", "sd_ratio", "overlap")]
        line += [format_number(row["r_hat"], 0.01)]
        line += [format_number(row[name], 10.0) for name in ("ess_bulk", "ess_tail")]
        cells.append([*line, "yes" if row["agree"] else "no"])
    return header, cells


def format_table(comparison: xr.Dataset, *, width: int = 132) -> str:
    """Return a comparison as plain text for a terminal.

    Parameters
    ----------
    comparison : Dataset
        From `compare`.
    width : int
        Columns of the terminal.

    Returns
    -------
    str
        The headline, log-likelihoods, criteria and verdicts; the table; and the reasons.
    """
    refuse_other(comparison)
    above = [headline(comparison), ""]
    above += [f"{name}: {text}" for name, text in facts(comparison).items()]
    for side in SIDES:
        status = verdict(comparison, side)["status"]
        above.append(f"verdict on the {comparison.attrs[f'{side}_name']}: {status}")
        for check in failed_checks(comparison, side):
            above.append("  {status}: {code}: {evidence}. {advice}".format(**check))
    header, cells = format_rows(comparison)
    table = Table(box=SIMPLE)
    shown = [i for i, name in enumerate(header) if name not in ("overlap", "ESS tail")]
    for i in shown:
        table.add_column(Text(header[i]), justify="right" if i else "left")
    for line in cells:
        table.add_row(*(Text(line[i]) for i in shown))
    below = [f"{label}: {text}" for label, text in reasons_of(comparison).items()]
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for part in (Text("\n".join(above)), table, Text("\n".join(below))):
        console.print(part)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def reasons_of(comparison: xr.Dataset) -> dict[str, str]:
    """Return label -> reason of the parameters that differ."""
    pairs = zip(comparison["label"].values, comparison["reason"].values, strict=True)
    return {str(label): str(text) for label, text in pairs if text}


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
    mle: xr.DataTree, post: xr.DataTree, rows: list[Row], draws: Array, table: dict[str, Array]
) -> list[Evidence]:
    """Return what `reasons` looks at, for every row."""
    spec, stats = spec_of(post), post["sample_stats"].to_dataset()
    is_map = mle.attrs["estimate"] == "map"
    prior = None
    if "log_prior" in stats and not (is_map and spec_of(mle).prior == spec.prior):
        prior = stats["log_prior"].transpose("chain", "draw").to_numpy().ravel()
    gap = float(stats["loglik"].max()) - mle["sample_stats"]["loglik"].item()
    margin = post["labels"]["margin"].to_numpy() if "labels" in post.children else np.ones(1)
    note = error_method(mle)[1]
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
            ambiguous=float(np.mean(margin < labels.AMBIGUOUS)),
            note=note,
            count=total * (1.0 if row.cluster < 0 else float(weight[row.cluster])),
            size=d + spec.covariance.n_parameters(spec.n_components, d) // own,
            **{name: float(table[name][i]) for name in _MEASURED},
        )
        for i, row in enumerate(rows)
    ]


def _attributes(mle: xr.DataTree, post: xr.DataTree) -> dict[str, Any]:
    """Return what tables and reports say about the two fits; strings and numbers only."""
    loglik = post["sample_stats"]["loglik"].to_numpy()
    found: dict[str, Any] = {name: _scalar(mle, name) for name in CRITERIA}
    found["loglik"] = mle["sample_stats"]["loglik"].item()
    found |= {name: _scalar(post, name) for name in LOO}
    found |= {
        "criteria_sign": "smaller is better",
        "se_method": error_method(mle)[0],
        "loglik_mean": float(loglik.mean()),
        "loglik_sd": float(loglik.std()),
        "loglik_max": float(loglik.max()),
        "pareto_k_note": (
            f"largest Pareto k {found['pareto_k_max']:.2f}, "
            f"{found['pareto_k_bad']:.0f} rows above its limit"
        ),
        "spec": post.attrs["spec"],
        "prior_note": _prior_note(mle, post),
        "fingerprint": post.attrs["fingerprint"],
        "data": json.dumps(_describe_data(post)),
    }
    for side, fit in zip(SIDES, (mle, post), strict=True):
        found |= {
            f"{side}_name": _name(fit),
            f"{side}_engine": fit.attrs["engine"],
            f"{side}_estimate": fit.attrs["estimate"],
            f"{side}_verdict": fit.attrs["verdict"],
            f"{side}_warnings": fit.attrs["warnings"],
            f"{side}_made": json.dumps(_provenance(fit)),
        }
    return found


def _scalar(fit: xr.DataTree, name: str) -> float:
    if "criteria" not in fit.children or name not in fit["criteria"].data_vars:
        return float("nan")
    return float(fit["criteria"][name].item())


def _name(fit: xr.DataTree) -> str:
    kind = NAMES.get(fit.attrs["estimate"], fit.attrs["estimate"])
    if not has_draws(fit):
        return f"{kind} ({fit.attrs['engine'].upper()})"
    chains, draws = (fit["posterior"].sizes[dim] for dim in ("chain", "draw"))
    return f"{kind} ({fit.attrs['engine'].upper()}, {chains} × {draws} draws)"


def _prior_note(mle: xr.DataTree, post: xr.DataTree) -> str:
    own, other = spec_of(mle).prior, spec_of(post).prior
    numbers = _prior_numbers(post)
    if mle.attrs["estimate"] == "mle":
        # Of a bootstrap of maximum likelihood, too, the specification's prior is not used.
        theirs = "no prior" if post.attrs.get("of") == "mle" else f"{other!r}{numbers}"
        return f"{_name(mle)}: no prior; {_name(post)}: {theirs}"
    if own == other:
        return f"both: {other!r}{numbers}"
    return f"different priors: {_name(mle)}: {own!r}; {_name(post)}: {other!r}{numbers}"


def _prior_numbers(post: xr.DataTree) -> str:
    """What the prior's defaults came to for these data, where the fit says so."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(v)}" for name, v in value.items())
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return f"{value:.6g}" if isinstance(value, int | float) else str(value)

    if "prior" not in post.attrs:
        return ""
    found = json.loads(post.attrs["prior"])
    numbers = "; ".join(f"{name} = {text(value)}" for name, value in found.items())
    return f" (in units of the data: {numbers})"


def _describe_data(fit: xr.DataTree) -> dict[str, Any]:
    x = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature").to_numpy()
    return {
        "n": len(x),
        "total_weight": float(fit["constant_data"]["sample_weight"].to_numpy().sum()),
        "names": list(names_of(fit)),
        # Of what is observed, where values are missing.
        "mean": np.nanmean(x, axis=0).tolist(),
        "sd": np.nanstd(x, axis=0, ddof=1).tolist(),
        "min": np.nanmin(x, axis=0).tolist(),
        "max": np.nanmax(x, axis=0).tolist(),
    }


def _provenance(fit: xr.DataTree) -> dict[str, Any]:
    wanted = ("engine", "random_seed", "bayesgmm_version", "versions", "timings", "stop_reason")
    return {name: fit.attrs[name] for name in wanted if name in fit.attrs}
