"""The posterior by NUTS: started around EM's optimum, aligned to its labels, and judged."""

from __future__ import annotations

import json
import os
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.loo import loo as psis_loo

from bayesgmm import kernel_ops, tree
from bayesgmm.arguments import share, whole_number
from bayesgmm.checks import Verdict, warn
from bayesgmm.data import Data, read_for
from bayesgmm.density import Target, target
from bayesgmm.errors import (
    ArgumentError,
    BayesgmmWarning,
    FitWarning,
    NumericalError,
    PosteriorWarning,
    collected,
    to_json,
)
from bayesgmm.fit import fit_em, package_version, plain_index, seed_of, versions
from bayesgmm.labels import align, apply
from bayesgmm.mixture import GaussianMixture, refuse_unsupported
from bayesgmm.moments import Array, Parameters
from bayesgmm.nuts import MAX_DEPTH, finished, run_nuts, start_around
from bayesgmm.prior import ConjugatePrior
from bayesgmm.progress import is_wanted
from bayesgmm.resolved import describe, log_density, resolve, warn_if_improper
from bayesgmm.verdict import label_free, posterior_verdict

_MAX_POINTWISE = 1 << 27  # numbers of pointwise log-likelihood that are kept without being asked


def sample_posterior(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    mle: xr.DataTree | None = None,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    cores: int | None = None,
    target_accept: float = 0.9,
    log_likelihood: bool | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> xr.DataTree:
    r"""Draw from the posterior of a mixture by NUTS on the marginalised likelihood.

    Parameters
    ----------
    spec : GaussianMixture
        With a prior.
    X : table (n, d)
    sample_weight : (n,) array, optional
        Frequencies, as in `fit_em`.
    columns : sequence of str, optional
    mle : DataTree, optional
        A fit by `fit_em` of the same specification and data, around which the chains start and
        whose labels the draws get. Default: it is made here.
    draws, tune, chains, cores, target_accept
        As in `pymc.sample`. The draws do not depend on ``cores``.
    log_likelihood : bool, optional
        Keep the pointwise log-likelihood, n numbers per draw, and compute PSIS-LOO from it.
        Default: unless it is larger than a gigabyte.
    random_seed : int, optional
        Same seed, same draws.
    progressbar : bool, optional
        Default: in a terminal.

    Returns
    -------
    xarray.DataTree
        ``posterior`` with labels aligned to EM's, ``posterior_raw`` as sampled, ``labels``,
        ``sample_stats``, ``log_likelihood``, ``criteria``, ... (``docs/design.md``); the verdict is
        in ``attrs``. After Ctrl-C, what was finished, and
        ``stop_reason`` is ``"interrupted"``.

    Raises
    ------
    ArgumentError, NotYetSupportedError, DataError
        For bad input, naming it; for a specification with ``prior=None``.
    NumericalError
        If the sampler cannot start.

    Warns
    -----
    PosteriorWarning
        If the draws should not be relied on: which checks failed, and what to do; with code
        ``improper-posterior``, if the prior does not suit ties in the data.
    """
    refuse_unsupported(spec)
    for name, value in (("draws", draws), ("tune", tune), ("chains", chains)):
        whole_number(name, value, least=1)
    share("target_accept", target_accept)
    if cores is not None:
        whole_number("cores", cores, least=1)
    seed = seed_of(random_seed)
    clock = _Clock()
    with collected() as notes:
        data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
        prior = resolve(spec, data)
        warn_if_improper(spec, data)
    pivot = _pivot(spec, X, data, mle, sample_weight, columns, seed)
    clock.lap("em")
    posterior = target(spec, data, prior)
    model = start_around(pivot, posterior)
    clock.lap("start")
    sampled = run_nuts(
        model,
        draws=draws,
        tune=tune,
        chains=chains,
        cores=cores or min(chains, os.cpu_count() or 1),
        seed=seed,
        target_accept=target_accept,
        progress_bar=is_wanted(progressbar),
    )
    clock.lap("sampling")
    fit, verdict = _collect(spec, posterior, prior, pivot, sampled, (chains, draws), log_likelihood)
    clock.lap("summary")
    fit.attrs |= {
        "random_seed": seed,
        "warnings": to_json(notes),
        "prior": json.dumps(describe(prior, data.names)),
        "timings": json.dumps(clock.laps),
    }
    warn(verdict, PosteriorWarning)
    return fit


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def _pivot(
    spec: GaussianMixture,
    X: Any,
    data: Data,
    mle: xr.DataTree | None,
    sample_weight: Any,
    columns: Any,
    seed: int,
) -> Parameters:
    """EM's optimum in data units: where chains start, and whose labels the draws get."""
    if mle is not None:
        _check_pivot(mle, spec, data)
        return tree.point(mle)
    arguments: dict[str, Any] = {
        "sample_weight": sample_weight,
        "columns": columns,
        "random_seed": seed,
        "standard_errors": False,
    }
    with warnings.catch_warnings():
        # What is wrong with the start is told by the draws' own verdict.
        warnings.simplefilter("ignore", FitWarning)
        warnings.simplefilter("ignore", BayesgmmWarning)
        try:
            return tree.point(fit_em(spec, X, **arguments))
        except NumericalError:
            # The likelihood has no usable maximum; the posterior, which is proper, has one.
            prior = spec.prior
            if not isinstance(prior, ConjugatePrior) or prior.weight_concentration < 1.0:
                raise
            return tree.point(fit_em(spec, X, estimate="map", **arguments))


def _check_pivot(mle: Any, spec: GaussianMixture, data: Data) -> None:
    if not isinstance(mle, xr.DataTree) or "spec" not in mle.attrs:
        raise ArgumentError("mle", "must be a fit by fit_em")
    if mle.attrs["engine"] != "em":
        raise ArgumentError("mle", "has many draws; give the one point of a fit by fit_em")
    if mle.attrs["fingerprint"] != data.fingerprint:
        raise ArgumentError("mle", "was fitted to other data (their fingerprints differ)")
    other = tree.spec_of(mle)
    if (other.n_components, other.covariance) != (spec.n_components, spec.covariance):
        raise ArgumentError("mle", f"is of another specification: {other!r}")


def _collect(
    spec: GaussianMixture,
    target: Target,
    prior: Any,
    pivot: Parameters,
    sampled: xr.DataTree,
    wanted: tuple[int, int],
    log_likelihood: bool | None,
) -> tuple[xr.DataTree, Verdict]:
    family, k, data = spec.covariance, spec.n_components, target.data
    points, stats = finished(sampled)
    raw = target.parameters(points)
    chains, kept = raw["mean"].shape[:2]
    flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in raw.items()}
    labels = align(flat["weight"], flat["mean"], flat["covariance"], pivot)
    shape = (chains, kept)
    aligned = {n: apply(labels.permutation, v).reshape(raw[n].shape) for n, v in flat.items()}
    pointwise_wanted = log_likelihood
    if pointwise_wanted is None:
        pointwise_wanted = chains * kept * data.n <= _MAX_POINTWISE
    loglik, rows = _log_likelihoods(data, flat, keep=pointwise_wanted)
    margin = labels.margin.reshape(shape)
    both = ("chain", "draw")
    index = {"chain": np.arange(chains), "draw": np.arange(kept)}
    stats = _sample_stats(stats).assign(
        loglik=(both, loglik.reshape(shape)),
        log_prior=(
            both,
            log_density(prior, family, flat["weight"], flat["mean"], flat["covariance"]).reshape(
                shape
            ),
        ),
    )
    posterior = tree.dataset(aligned, data.names, both)
    free = xr.Dataset(
        {
            name: ((*both, *(f"{name}_dim{i}" for i in range(value.ndim - 2))), value)
            for name, value in label_free(**raw).items()
        }
        | {"loglik": (both, loglik.reshape(shape))},
        coords=index,
    )
    verdict = posterior_verdict(
        posterior,
        free,
        stats,
        margin=margin if k > 1 else None,
        family=family,
        max_treedepth=MAX_DEPTH,
    )
    obs = plain_index(data.index)
    groups = {
        "posterior": posterior,
        "posterior_raw": tree.dataset(raw, data.names, both),
        "labels": xr.Dataset(
            {
                "permutation": ((*both, "cluster"), labels.permutation.reshape(*shape, k)),
                "margin": (both, margin),
            },
            coords=index | {"cluster": np.arange(k)},
        ),
        "label_free": free,
        "sample_stats": stats,
        "observed_data": xr.Dataset(
            {"x": (("obs", "feature"), data.values)}, {"obs": obs, "feature": list(data.names)}
        ),
        "constant_data": xr.Dataset(
            {"sample_weight": ("obs", data.weight if len(data.weight) else np.ones(data.n))},
            {"obs": obs},
        ),
    }
    if rows is not None:
        groups["log_likelihood"] = xr.Dataset(
            {"x": ((*both, "obs"), rows.reshape(*shape, data.n))}, index | {"obs": obs}
        )
    fit = xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
    if rows is not None and (loo := _loo(fit)) is not None:
        fit["criteria"] = xr.DataTree(loo)
    fit.attrs |= {
        "engine": "nuts",
        "estimate": "posterior",
        "spec": spec.to_json(),
        "stop_reason": "completed" if (chains, kept) == wanted else "interrupted",
        "fingerprint": data.fingerprint,
        "bayesgmm_version": package_version(),
        "versions": json.dumps(
            json.loads(versions())
            | {name: version(name) for name in ("pymc", "pytensor", "nutpie", "arviz-stats")}
        ),
        "verdict": verdict.to_json(),
    }
    return fit, verdict


def _sample_stats(stats: xr.Dataset) -> xr.Dataset:
    """The sampler's statistics under ArviZ's names."""
    names = {"logp": "lp", "energy": "energy", "diverging": "diverging", "depth": "depth"}
    names |= {"n_steps": "n_steps", "step_size": "step_size"}
    names |= {"maxdepth_reached": "maxdepth_reached", "mean_tree_accept": "acceptance_rate"}
    found = {new: stats[old] for old, new in names.items() if old in stats}
    return xr.Dataset(found).drop_vars(["chain", "draw"])


def _log_likelihoods(
    data: Data, flat: dict[str, Array], *, keep: bool
) -> tuple[Array, Array | None]:
    """Log-likelihood of every draw, and of every row in it if they are to be kept."""
    s = len(flat["weight"])
    total = np.empty(s)
    rows = np.empty((s, data.n)) if keep else None
    diagonal = False
    with np.errstate(divide="ignore"):
        log_weight = np.log(flat["weight"])
    for i in range(s):
        row = kernel_ops.pointwise(
            data.values,
            data.weight,
            log_weight[i],
            flat["mean"][i],
            flat["covariance"][i],
            diagonal,
        )
        total[i] = row.sum()
        if rows is not None:
            rows[i] = row
    return total, rows


def _loo(fit: xr.DataTree) -> xr.Dataset | None:
    """PSIS-LOO; a Pareto k that is too high is told in the dataset, not by a warning of ArviZ.

    None where there is no tail to smooth: draws that are fewer than 25, or that are all alike. The
    verdict fails by other checks then.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        try:
            loo = psis_loo(fit, var_name="x", pointwise=True)
        except (IndexError, ValueError):
            return None
    k = loo.pareto_k.to_numpy()
    values = {"elpd_loo": float(loo.elpd), "elpd_loo_se": float(loo.se), "p_loo": float(loo.p)}
    values |= {"pareto_k_max": float(k.max()), "pareto_k_bad": int((k > loo.good_k).sum())}
    return xr.Dataset({name: ((), value) for name, value in values.items()})
