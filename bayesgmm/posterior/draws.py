"""From unconstrained draws to a fit: what every way of drawing from a posterior shares."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.utils import ELPDDataLOO

from bayesgmm import tree
from bayesgmm.checks import Verdict
from bayesgmm.data.cells import Missing
from bayesgmm.data.mixing import refuse_unresolved
from bayesgmm.data.observations import Data, read_for
from bayesgmm.data.table import once
from bayesgmm.em.fit import checked_region, fit_em, seed_of
from bayesgmm.em.loop import UNUSABLE
from bayesgmm.em.result import package_version, plain_index, versions
from bayesgmm.em.search import kinds
from bayesgmm.errors import (
    ArgumentError,
    BayesgmmWarning,
    FitWarning,
    NumericalError,
    collected,
    to_json,
)
from bayesgmm.evidence.loo import MOST, log_likelihoods, of_draws, relative_efficiency
from bayesgmm.evidence.source import PIVOT
from bayesgmm.information.fixed import Fixed
from bayesgmm.labelfree import dataset as label_free_dataset
from bayesgmm.labelfree import label_free
from bayesgmm.labels import Labels, align, apply
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.posterior.atlas import Mode, atlas
from bayesgmm.prior import ConjugatePrior
from bayesgmm.priors.improper import warn_if_improper
from bayesgmm.resolved import (
    PseudoData,
    Separation,
    describe,
    log_densities,
    resolve,
)
from bayesgmm.target.density import Target, target
from bayesgmm.target.space import held_in

_MAX_POINTWISE = 1 << 27  # numbers of pointwise log-likelihood that are kept without being asked


class Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Begin another lap; the last one gets this name."""
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def _start(
    spec: GaussianMixture,
    X: Any,
    data: Data,
    held: Fixed | None,
    mle: xr.DataTree | None,
    arguments: Mapping[str, Any],
) -> xr.DataTree:
    """EM's fit: around its optima chains start, and the draws get the labels of the best."""
    if mle is not None:
        _check_pivot(mle, spec, data, held)
        refuse_unresolved(tree.point(mle).covariance, "mle")
        return mle
    with warnings.catch_warnings():
        # What is wrong with the start is told by the draws' own verdict.
        warnings.simplefilter("ignore", FitWarning)
        warnings.simplefilter("ignore", BayesgmmWarning)
        prior = spec.prior
        has_mode = isinstance(prior, ConjugatePrior) and prior.weight_concentration >= 1.0
        # Every kind of start, but no search within nested families: it takes most of the time, and
        # what only it finds has hardly led to other modes of a posterior (docs/posterior.md).
        arguments = {"start": [None], "standard_errors": False, **arguments}
        try:
            found = fit_em(spec, X, **arguments)
        except NumericalError:
            if not has_mode:
                raise
        else:
            if _is_usable(found) or not has_mode:
                return found
        # The likelihood has no usable maximum; the posterior, which is proper, has one.
        return fit_em(spec, X, estimate="map", **arguments)


def optima_in(fit: xr.DataTree, pivot: Parameters) -> tuple[Parameters, ...]:
    """Return EM's other optima, in data units, from the group ``optima`` if there is one."""
    if "optima" not in fit.children:
        return ()
    each = fit["optima"].to_dataset()
    found = []
    for i in range(each.sizes["start"]):
        one = {str(name): value.to_numpy() for name, value in each.isel(start=i).items()}
        theta = tree.components(one)
        if pivot.noise is not None:
            theta = replace(theta, noise=replace(pivot.noise, weight=float(one[NOISE])))
        if _is_resolved(theta.covariance):
            found.append(theta)
    return tuple(found)


def _with_some_noise(pivot: Parameters, data: Data) -> Parameters:
    """Return parameters with noise for half a row at least: a weight of 0 has no logarithm."""
    least = 0.5 / data.total_weight
    if pivot.noise is None or pivot.noise.weight >= least:
        return pivot
    weight = pivot.weight * ((1.0 - least) / pivot.weight.sum())
    return replace(pivot, weight=weight, noise=replace(pivot.noise, weight=least))


def _is_usable(fit: xr.DataTree) -> bool:
    """Whether a fit is an optimum from which a posterior can be looked at."""
    return _is_resolved(tree.point(fit).covariance) and fit.attrs["stop_reason"] not in UNUSABLE


def _is_resolved(covariance: Array) -> bool:
    """Whether covariances are definite in floats."""
    try:
        refuse_unresolved(covariance)
    except ArgumentError:
        return False
    return True


def _check_pivot(mle: Any, spec: GaussianMixture, data: Data, held: Fixed | None) -> None:
    if not isinstance(mle, xr.DataTree) or not {"spec", "fingerprint"} <= set(mle.attrs):
        raise ArgumentError("mle", "must be a whole fit by fit_em")
    posterior = mle["posterior"].sizes
    if mle.attrs.get("engine") != "em" or posterior["chain"] * posterior["draw"] != 1:
        raise ArgumentError("mle", "has many draws; give the one point of a fit by fit_em")
    if mle.attrs["fingerprint"] != data.fingerprint:
        raise ArgumentError("mle", "was fitted to other data (their fingerprints differ)")
    other = tree.spec_of(mle)
    shape, own = ((s.n_components, s.covariance, s.noise) for s in (other, spec))
    if shape != own:
        raise ArgumentError("mle", f"is of another specification: {other!r}")
    if mle.attrs.get("fixed", "") != (held.to_json(data) if held else ""):
        raise ArgumentError("mle", "has other parameters fixed than this call")


@dataclass(frozen=True, eq=False)
class Task:
    """What every way of drawing from a posterior begins with: EM's optimum, and its other ones."""

    data: Data
    prior: PseudoData | Separation
    pivot: Parameters
    optima: tuple[Parameters, ...]
    target: Target
    kinds: Labels | None
    shape: dict[str, str]
    seed: int
    notes: list[BayesgmmWarning]
    clock: Clock

    def attributes(self, verdict: Verdict) -> dict[str, Any]:
        """Return what the fit records of how it was made."""
        return {
            "verdict": verdict.to_json(),
            "random_seed": self.seed,
            "warnings": to_json(self.notes),
            "prior": json.dumps(describe(self.prior, self.data.names)),
            "timings": json.dumps(self.clock.laps),
            **self.shape,
        }


def begin(
    spec: GaussianMixture,
    X: Any,
    *,
    mle: xr.DataTree | None,
    fixed: Mapping[str, Any] | None,
    random_seed: int | None,
    missing: Missing,
    **known: Any,
) -> Task:
    """Read the data, resolve the prior, and find EM's optimum.

    Arguments are those of `sample_posterior`; ``known`` are sample_weight, columns and labels.

    Raises
    ------
    ArgumentError
        If nothing is free.
    """
    seed, clock = seed_of(random_seed), Clock()
    X = once(X)
    with collected() as notes:
        data = read_for(spec, X, missing=missing, **known)
        prior = resolve(spec, data)
        warn_if_improper(spec, data)
    own = held_in(fixed, spec, data)
    anchored = own and own.anchored(data)
    region = checked_region(spec, data, own)
    of = target(spec, data, prior, own, region)
    arguments = {"fixed": fixed, "random_seed": seed, "missing": missing, **known}
    start = _start(spec, X, data, anchored, mle, arguments)
    pivot = tree.point(start)
    pivot, *optima = (_with_some_noise(p, data) for p in (pivot, *optima_in(start, pivot)))
    clock.lap("em")
    shape = {
        "missing": missing,
        "fixed": anchored.to_json(data) if anchored else "",
        "noise": region.to_json() if region else "",
    }
    which = kinds(data.probability, own)
    return Task(data, prior, pivot, tuple(optima), of, which, shape, seed, notes, clock)


def modes_of(task: Task) -> tuple[Mode, ...]:
    """Return the posterior's modes, the same for the same task."""
    rng = np.random.default_rng(task.seed)
    return atlas(task.target, task.pivot, task.optima, task.kinds, rng)


def collect(
    spec: GaussianMixture,
    task: Task,
    points: Array,
    stats: xr.Dataset,
    log_likelihood: bool | None,
    loo: bool | None = None,
    raw: dict[str, Array] | None = None,
) -> tuple[xr.DataTree, Array | None]:
    """Return draws as a fit, without a verdict, and the margins of their labels.

    Parameters
    ----------
    spec : GaussianMixture
    task : Task
    points : (chain, draw, p) array
        Unconstrained.
    stats : Dataset
        The sampler's statistics, by chain and draw, among them ``lp``, the target's value.
    log_likelihood : bool or None
        Whether to keep the log-likelihood of every row. Default: unless it is larger than a
        gigabyte.
    loo : bool or None
        Whether to compute PSIS-LOO. Default: unless that takes much longer than a minute.
    raw : dict of str to array, optional
        The parameters at these points, where they are known to more digits.

    Returns
    -------
    DataTree
    (chain, draw) array or None
        None if there is only one component.
    """
    family, k = spec.covariance, spec.n_components
    data, target = task.data, task.target
    raw = target.parameters(points) if raw is None else raw
    chains, kept = raw["mean"].shape[:2]
    flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in raw.items()}
    labels = align(flat["weight"], flat["mean"], flat["covariance"], task.pivot, task.kinds)
    shape = (chains, kept)
    aligned = raw | {n: apply(labels.permutation, flat[n]).reshape(raw[n].shape) for n in tree.DIMS}
    if log_likelihood is None:
        log_likelihood = chains * kept * data.n <= _MAX_POINTWISE
    rows = log_likelihoods(target, flat) if log_likelihood else None
    if rows is None:
        loglik = stats["lp"].to_numpy() - target.without_data().values(points)
    else:
        loglik = rows.sum(axis=1).reshape(shape)
    margin = labels.margin.reshape(shape)
    both = ("chain", "draw")
    index = {"chain": np.arange(chains), "draw": np.arange(kept)}
    own = [flat[n] for n in ("mean", "covariance")]
    parts = log_densities(task.prior, family, _all_weights(flat), *own)
    log_prior = xr.Dataset({n: (both, v.reshape(shape)) for n, v in parts.items()}, coords=index)
    total = sum(log_prior[name].to_numpy() for name in parts)
    stats = stats.assign(loglik=(both, loglik), log_prior=(both, total))
    posterior = tree.dataset(aligned, data.names, both)
    among = raw["weight"] / raw["weight"].sum(axis=-1, keepdims=True)  # without noise
    free = label_free(among, raw["mean"], raw["covariance"]) | {"loglik": loglik}
    obs = plain_index(data.index)
    weight = data.weight if len(data.weight) else np.broadcast_to(1.0, data.n)
    groups = {
        "posterior": posterior,
        "posterior_raw": tree.dataset(raw, data.names, both),
        PIVOT: tree.dataset(tree.arrays(task.pivot), data.names),
        "labels": xr.Dataset(
            {
                "permutation": ((*both, "cluster"), labels.permutation.reshape(*shape, k)),
                "margin": (both, margin),
            },
            coords=index | {"cluster": np.arange(k)},
        ),
        "label_free": label_free_dataset(free, data.names),
        "sample_stats": stats,
        "log_prior": log_prior,
        "observed_data": xr.Dataset(
            {"x": (("obs", "feature"), data.values)}, {"obs": obs, "feature": list(data.names)}
        ),
        "constant_data": xr.Dataset(
            {"sample_weight": ("obs", weight)},
            {"obs": obs},
        ),
    }
    if len(data.probability):
        groups["constant_data"]["label_probability"] = (("obs", "cluster"), data.probability)
    if rows is not None:
        groups["log_likelihood"] = xr.Dataset(
            {"x": ((*both, "obs"), rows.reshape(*shape, data.n))}, index | {"obs": obs}
        )
    fit = xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
    if loo is None:
        loo = chains * kept * data.n <= MOST
    if loo:
        once = None if len(data.weight) else rows  # what is left out is one row, not its weight
        found = of_draws(target, raw, relative_efficiency(posterior), known=once)
        if found is not None:
            fit["criteria"] = xr.DataTree(_criteria(found))
    fit.attrs |= {
        "estimate": "posterior",
        "spec": spec.to_json(),
        "fingerprint": data.fingerprint,
        "units": json.dumps(data.units),
        "bayesgmm_version": package_version(),
        "versions": json.dumps(
            json.loads(versions())
            | {name: version(name) for name in ("pymc", "pytensor", "nutpie", "arviz-stats")}
        ),
    }
    return fit, margin if k > 1 else None


def _all_weights(flat: Mapping[str, Array]) -> Array:
    """Return the weights of draws (s, k), or with that of the noise (s, k + 1)."""
    noise = [flat[NOISE][:, None]] if NOISE in flat else []
    return np.concatenate([flat["weight"], *noise], axis=1)


def _criteria(found: ELPDDataLOO) -> xr.Dataset:
    """PSIS-LOO as criteria: a Pareto k that is too high is told here, not by a warning."""
    k = found.pareto_k.to_numpy()
    values = {"elpd_loo": found.elpd, "elpd_loo_se": found.se, "p_loo": found.p}
    values |= {"pareto_k_max": float(np.nanmax(k)), "pareto_k_bad": int((k > found.good_k).sum())}
    return xr.Dataset({name: ((), value) for name, value in values.items()})
