"""Fits made by hand, for tests of what comes after the engines: no optimiser, no sampler.

Old Faithful, K = 2: the estimates and the covariance of the estimates are golden values; "draws"
are normal about them, which is what a posterior looks like when the data have said enough.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import logsumexp

from bayesgmm import labelfree, tree
from bayesgmm.checks import Verdict
from bayesgmm.labels import ambiguous_labels
from bayesgmm.mixture import GaussianMixture

GOLDEN = Path(__file__).parent / "golden"
SPEC = GaussianMixture(2, "VVV")
FINGERPRINT = "sha256:feed"
VERSIONS = json.dumps({"python": "3.12", "numpy": "2.5"})
OK = json.dumps({"status": "ok", "checks": []})

Arrays = dict[str, np.ndarray]


def faithful() -> pd.DataFrame:
    return pd.read_csv(GOLDEN / "data" / "faithful.csv")


def golden(name: str = "faithful_VVV_2") -> dict[str, Any]:
    return json.loads((GOLDEN / "observed_information" / f"{name}.json").read_text())


def unflatten(flat: np.ndarray) -> Arrays:
    """(..., 11) numbers as in the golden file -> weight, mean, covariance of two components."""
    mean = flat[..., 1:5].reshape(*flat.shape[:-1], 2, 2)
    lower = flat[..., 5:].reshape(*flat.shape[:-1], 2, 3)
    covariance = lower[..., [0, 1, 1, 2]].reshape(*flat.shape[:-1], 2, 2, 2)
    return {
        "weight": np.stack([flat[..., 0], 1 - flat[..., 0]], axis=-1),
        "mean": mean,
        "covariance": covariance,
    }


def dataset(arrays: Arrays, features: Sequence[str], lead: Sequence[str]) -> xr.Dataset:
    k = arrays["weight"].shape[-1]
    dims = {
        "weight": ["cluster"],
        "mean": ["cluster", "feature"],
        "covariance": ["cluster", "feature", "feature_bis"],
    }
    return xr.Dataset(
        {name: ([*lead, *dims[name]], arrays[name]) for name in dims},
        coords={
            "cluster": np.arange(k),
            "feature": list(features),
            "feature_bis": list(features),
        },
    )


def pointwise(x: np.ndarray, arrays: Arrays) -> np.ndarray:
    """log p(x_n) for parameters with leading dimensions (chain, draw)."""
    apart = x[:, None] - arrays["mean"][..., None, :, :]
    precision, logdet = np.linalg.inv(arrays["covariance"]), np.linalg.slogdet(arrays["covariance"])
    square = np.einsum("...nki,...kij,...nkj->...nk", apart, precision, apart, optimize=True)
    constant = np.log(arrays["weight"]) - 0.5 * (logdet[1] + x.shape[1] * np.log(2 * np.pi))
    return logsumexp(constant[..., None, :] - 0.5 * square, axis=-1)


def assemble(
    arrays: Arrays, frame: pd.DataFrame, *, spec: GaussianMixture, attrs: dict[str, Any]
) -> xr.DataTree:
    """The groups that every fit has, from parameters with dims (chain, draw, ...)."""
    x = frame.to_numpy(dtype=float)
    rows = pointwise(x, arrays)
    loglik = rows.sum(axis=-1)
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(
                attrs={
                    "spec": spec.to_json(),
                    "random_seed": 1,
                    "bayesgmm_version": "0.0",
                    "versions": VERSIONS,
                    "fingerprint": FINGERPRINT,
                    "verdict": OK,
                    "warnings": "[]",
                    "timings": json.dumps({"total": 0.25}),
                }
                | attrs
            ),
            "posterior": dataset(arrays, list(frame), ("chain", "draw")),
            "sample_stats": xr.Dataset(
                {"loglik": (("chain", "draw"), loglik), "lp": (("chain", "draw"), loglik)}
            ),
            "log_likelihood": xr.Dataset({"x": (("chain", "draw", "obs"), rows)}),
            "observed_data": xr.Dataset(
                {"x": (("obs", "feature"), x)}, coords={"feature": list(frame)}
            ),
            "constant_data": xr.Dataset({"sample_weight": ("obs", np.ones(len(x)))}),
        }
    )


def em_fit(
    *,
    order: Sequence[int] = (0, 1),
    features: Sequence[str] = ("eruptions", "waiting"),
    **attrs: Any,
) -> xr.DataTree:
    """Return a maximum-likelihood fit; ``order`` names the components in another order."""
    record, frame = golden(), faithful().set_axis(list(features), axis=1)
    arrays = unflatten(np.array(record["estimate"]))
    error = unflatten(np.array(record["se_observed_information"]))
    error["weight"] = np.full(2, error["weight"][0])
    perm = list(order)
    tree = assemble(
        {name: a[perm][None, None] for name, a in arrays.items()},
        frame,
        spec=SPEC,
        attrs={"engine": "em", "estimate": "mle", "stop_reason": "converged"} | attrs,
    )
    tree["standard_error"] = xr.DataTree(
        dataset({name: a[perm] for name, a in error.items()}, features, ())
    )
    loglik = tree["sample_stats"]["loglik"].item()
    p, n = 11, len(frame)
    sign = {"sign": "smaller is better"}
    tree["criteria"] = xr.DataTree(
        xr.Dataset(
            {
                "loglik": loglik,
                "aic": ((), 2 * p - 2 * loglik, sign),
                "bic": ((), p * np.log(n) - 2 * loglik, sign),
                "icl": ((), p * np.log(n) - 2 * loglik + 3.0, sign),
                "n_params": p,
            }
        )
    )
    return tree


def nuts_fit(
    *,
    seed: int = 1,
    chains: int = 4,
    draws: int = 250,
    order: Sequence[int] = (0, 1),
    features: Sequence[str] = ("eruptions", "waiting"),
    inflate: float = 1.0,
    shift: Callable[[np.ndarray], np.ndarray] | None = None,
    **attrs: Any,
) -> xr.DataTree:
    """Return posterior draws: normal about the MLE, with ``inflate`` times its standard errors.

    ``shift`` maps the flat draws (chain, draw, 11) before they become components.
    """
    record, frame = golden(), faithful().set_axis(list(features), axis=1)
    rng = np.random.default_rng(seed)
    covariance = np.array(record["cov"]) * inflate**2
    flat = rng.multivariate_normal(record["estimate"], covariance, size=(chains, draws))
    if shift is not None:
        flat = shift(flat)
    perm = list(order)
    arrays = {name: a[:, :, perm] for name, a in unflatten(flat).items()}
    tree = assemble(
        arrays,
        frame,
        spec=SPEC,
        attrs={"engine": "nuts", "estimate": "posterior"} | attrs,
    )
    tree["posterior_raw"] = tree["posterior"].copy()
    stats = tree["sample_stats"].to_dataset()
    lead = ("chain", "draw")
    stats["diverging"] = (lead, np.zeros((chains, draws), dtype=bool))
    stats["log_prior"] = (lead, rng.normal(-30, 1, size=(chains, draws)))
    tree["sample_stats"] = xr.DataTree(stats)
    tree["labels"] = xr.DataTree(
        xr.Dataset(
            {
                "permutation": ((*lead, "cluster"), np.tile(perm, (chains, draws, 1))),
                "margin": (lead, np.full((chains, draws), 50.0)),
            }
        )
    )
    tree["criteria"] = xr.DataTree(
        xr.Dataset(
            {
                "elpd_loo": -1141.5,
                "elpd_loo_se": 16.1,
                "p_loo": 11.4,
                "pareto_k_max": 0.31,
                "pareto_k_bad": 0,
            }
        )
    )
    return tree


def one_dimensional(
    k: int = 2, *, draws: int = 0, common: bool = False, seed: int = 3
) -> xr.DataTree:
    """Return a fit of a column of numbers: a point estimate, or draws about it."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"velocity": np.random.default_rng(0).normal(size=60).cumsum() / 4})
    size = (4, draws) if draws else (1, 1)
    scale = 0.05 if draws else 0.0
    mean = np.arange(k) + scale * rng.normal(size=(*size, k))
    raw = np.exp(scale * rng.normal(size=(*size, k)))
    weight = raw / raw.sum(axis=-1, keepdims=True)
    variance = np.exp(scale * rng.normal(size=(*size, 1 if common else k)))
    arrays = {
        "weight": weight,
        "mean": mean[..., None],
        "covariance": np.broadcast_to(variance, (*size, k))[..., None, None].copy(),
    }
    tree = assemble(
        arrays,
        frame,
        spec=GaussianMixture(k, "E" if common else "V"),
        attrs={"engine": "nuts", "estimate": "posterior"}
        if draws
        else {"engine": "em", "estimate": "mle"},
    )
    if not draws:
        error = {name: np.full(a.shape[2:], 0.05) for name, a in arrays.items()}
        tree["standard_error"] = xr.DataTree(dataset(error, list(frame), ()))
    return tree


def many_dimensional(d: int, *, draws: int = 0, family: str = "EEE", k: int = 3) -> xr.DataTree:
    """Return a fit in ``d`` dimensions with one common covariance or spherical ones."""
    rng = np.random.default_rng(d + draws)
    names = [f"x{j + 1}" for j in range(d)]
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(90, d)), columns=names)
    size = (4, draws) if draws else (1, 1)
    scale = 0.05 if draws else 0.0
    mean = np.repeat(np.arange(k, dtype=float)[:, None], d, axis=1)
    factor = np.eye(d) + 0.2 * np.tri(d, k=-1)
    covariance = factor @ factor.T if family == "EEE" else np.eye(d)
    volume = np.exp(scale * rng.normal(size=(*size, 1 if family[0] == "E" else k)))
    arrays = {
        "weight": np.full((*size, k), 1.0 / k) + scale * 0.1 * _contrast(rng, size, k),
        "mean": mean + scale * rng.normal(size=(*size, k, d)),
        "covariance": np.broadcast_to(volume, (*size, k))[..., None, None] * covariance,
    }
    tree = assemble(
        arrays,
        frame,
        spec=GaussianMixture(k, family),
        attrs={"engine": "nuts", "estimate": "posterior"}
        if draws
        else {"engine": "em", "estimate": "mle"},
    )
    if not draws:
        error = {name: np.full(a.shape[2:], 0.05) for name, a in arrays.items()}
        tree["standard_error"] = xr.DataTree(dataset(error, names, ()))
    return tree


def _contrast(rng: np.random.Generator, size: Sequence[int], k: int) -> np.ndarray:
    noise = rng.normal(size=(*size, k))
    return noise - noise.mean(axis=-1, keepdims=True)


def labelled(arrays: Arrays, x: np.ndarray, **attrs: Any) -> xr.DataTree:
    """A posterior that is labelled as it was sampled."""
    k, d = arrays["mean"].shape[2:]
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(d)])
    spec = GaussianMixture(k, "V" if d == 1 else "VVV")
    fit = assemble(
        arrays, frame, spec=spec, attrs={"engine": "nuts", "estimate": "posterior"} | attrs
    )
    both = fit["posterior"].to_dataset()["weight"].dims[:2]
    size = arrays["weight"].shape
    fit["labels"] = xr.DataTree(
        xr.Dataset(
            {
                "permutation": ((*both, "cluster"), np.broadcast_to(np.arange(k), size).copy()),
                "margin": (both, np.ones(size[:2])),
            }
        )
    )
    free = labelfree.label_free(*(arrays[name] for name in tree.DIMS))
    fit["label_free"] = xr.DataTree(labelfree.dataset(free, list(frame)))
    verdict = Verdict((ambiguous_labels(np.ones(size[:2])),))
    fit.attrs["verdict"] = verdict.to_json()
    return fit


def put(fit: xr.DataTree, group: str, name: str, values: np.ndarray) -> None:
    fit[group][name] = fit[group][name].copy(data=values)


def permuted(arrays: Arrays, order: np.ndarray) -> Arrays:
    """Every draw with its components in another order, (chain, draw, k)."""
    found = {}
    for name, a in arrays.items():
        at = order.reshape(*order.shape, *(1 for _ in a.shape[3:]))
        found[name] = np.take_along_axis(a, at, axis=2)
    return found
