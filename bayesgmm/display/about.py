"""What a comparison records of its two fits: strings and numbers, which NetCDF keeps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm.display.words import SIDES
from bayesgmm.rows import alignment_of, error_method, has_draws
from bayesgmm.streams import Rows
from bayesgmm.tree import names_of, spec_of, units_of

CRITERIA = ("loglik", "aic", "bic", "icl", "n_params")
LOO = ("elpd_loo", "elpd_loo_se", "p_loo", "pareto_k_max", "pareto_k_bad")
NAMES = {"mle": "maximum-likelihood estimate", "map": "MAP estimate", "posterior": "posterior"}


def attributes(mle: xr.DataTree, post: xr.DataTree) -> dict[str, Any]:
    """Return what tables and reports say about the two fits."""
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
        "alignment": alignment_of(post),
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
    stated = json.loads(post.attrs.get("prior", "{}"))
    if isinstance(stated, str):  # of a model that is not the specification's
        own_text = "no prior" if mle.attrs["estimate"] == "mle" else repr(own)
        return f"{_name(mle)}: {own_text}; {_name(post)}: {stated}"
    numbers = _prior_numbers(stated)
    if mle.attrs["estimate"] == "mle":
        # Of a bootstrap of maximum likelihood, too, the specification's prior is not used.
        theirs = "no prior" if post.attrs.get("of") == "mle" else f"{other!r}{numbers}"
        return f"{_name(mle)}: no prior; {_name(post)}: {theirs}"
    if own == other:
        return f"both: {other!r}{numbers}"
    return f"different priors: {_name(mle)}: {own!r}; {_name(post)}: {other!r}{numbers}"


def _prior_numbers(stated: dict[str, Any]) -> str:
    """What the prior's defaults came to for these data, where the fit says so."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(v)}" for name, v in value.items())
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return f"{value:.6g}" if isinstance(value, int | float) else str(value)

    if not stated:
        return ""
    numbers = "; ".join(f"{name} = {text(value)}" for name, value in stated.items())
    return f" (in units of the data: {numbers})"


def _describe_data(fit: xr.DataTree) -> dict[str, Any]:
    x = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature").to_numpy()
    rows = Rows(x, np.empty(0))
    mean, (low, high) = rows.means(lambda part: part), rows.extremes()
    count, square = rows.observed(), rows.means(lambda part: (part - mean) ** 2)
    return {
        "n": len(x),
        "total_weight": float(fit["constant_data"]["sample_weight"].to_numpy().sum()),
        "names": list(names_of(fit)),
        "units": units_of(fit),
        # Of what is observed, where values are missing.
        "mean": mean.tolist(),
        "sd": np.sqrt(square * count / (count - 1.0)).tolist(),
        "min": low.tolist(),
        "max": high.tolist(),
    }


def _provenance(fit: xr.DataTree) -> dict[str, Any]:
    wanted = ("engine", "random_seed", "bayesgmm_version", "versions", "timings", "stop_reason")
    return {name: fit.attrs[name] for name in wanted if name in fit.attrs}
