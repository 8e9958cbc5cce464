"""`fit_em`: from a specification and a table to a fit, its errors, criteria and verdict."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from threading import Event
from typing import Any, Literal

import numpy as np
import xarray as xr

from bayesgmm import tree
from bayesgmm.arguments import whole_number
from bayesgmm.checks import warn
from bayesgmm.covariance import Covariance
from bayesgmm.data import Data, read_for
from bayesgmm.em import ACCELERATIONS, Acceleration, Run, run
from bayesgmm.em_verdict import em_verdict
from bayesgmm.errors import ArgumentError, FitWarning, NumericalError, collected, to_json
from bayesgmm.information import Information, observed_information
from bayesgmm.labels import SAME, distance
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import log_density, responsibilities
from bayesgmm.multistart import run_all, workers
from bayesgmm.prior import ConjugatePrior
from bayesgmm.progress import is_wanted
from bayesgmm.resolved import PseudoData, pseudo_data
from bayesgmm.start import Start, starts

MAX_SE_PARAMETERS = 2000  # beyond, the information matrix is large and must be asked for


def fit_em(
    spec: GaussianMixture,
    X: Any,
    *,
    estimate: Literal["mle", "map"] = "mle",
    sample_weight: Any = None,
    start: Any = None,
    n_starts: int = 10,
    max_iter: int = 10_000,
    tol: float = 1e-4,
    acceleration: Acceleration | None = "quasi-newton",
    standard_errors: bool | None = None,
    keep_responsibilities: bool = False,
    columns: Any = None,
    threads: int | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> xr.DataTree:
    r"""Fit a mixture by EM: maximum likelihood, or the posterior mode under the conjugate prior.

    Parameters
    ----------
    spec : GaussianMixture
    X : table (n, d)
        DataFrame, array or anything tabular; names and index survive.
    estimate : {"mle", "map"}
        Maximum likelihood, or the mode of the posterior under ``spec.prior`` (conjugate), in the
        coordinates that `bayesgmm.resolved` states.
    sample_weight : (n,) array, optional
        Frequencies: weight 2 is the row twice, weight 0 the row absent.
    start : optional
        ``"kmeans"``, ``"random"``, integer labels (n,), `Parameters` or a fit. Default: k-means++
        and random centres in turn.
    n_starts : int
        Number of starts; the best usable optimum is kept, the others are reported.
    max_iter : int
        Most passes over the data of a run, after its first.
    tol : float
        Distance from the maximum, in standard errors of any parameter, at which to stop.
    acceleration : {"quasi-newton"} or None
        How the end of a run is sped up; None for plain EM. ``tol`` means the same. Near a saddle
        a start may, rarely, lead to another optimum than plain EM's.
    standard_errors : bool, optional
        From the observed information. Default: unless there are more than 2000 parameters.
    keep_responsibilities : bool
        Store the (n, k) responsibilities.
    columns : sequence of str, optional
        Columns of ``X`` to use, in this order.
    threads : int, optional
        At most this many; the result does not depend on it.
    random_seed : int, optional
        Same seed, same bits.
    progressbar : bool, optional
        Default: in a terminal.

    Returns
    -------
    xarray.DataTree
        ``posterior`` (chain 1, draw 1), ``standard_error``, ``criteria``, ``starts``, ... as in
        ``docs/design.md``; the verdict and all warnings are in ``attrs``.

    Raises
    ------
    DataError, ArgumentError
        For bad input, naming it.
    NumericalError
        If every start ended singular or empty; the message tabulates them.

    Warns
    -----
    FitWarning
        If the fit should not be trusted, with the reasons.
    """
    began = time.perf_counter()
    _check_arguments(spec, estimate, n_starts, max_iter, tol, acceleration, threads)
    with collected() as notes:
        data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    family, k = spec.covariance, spec.n_components
    prior = _resolved(spec, data) if estimate == "map" else None
    seed = seed_of(random_seed)
    begins = starts(
        data, family, k, start=start, n_starts=n_starts, rng=np.random.default_rng(seed)
    )

    def go(start: Start, stop: Event | None = None, tol: float = tol) -> Run:
        settings: dict[str, Any] = {
            "prior": prior,
            "max_iter": max_iter,
            "tol": tol,
            "threads": threads,
            "stop": stop,
        }
        found = run(data, family, start, acceleration=acceleration, **settings)
        if acceleration and found.reason in ("singular", "empty", "tiny"):
            # Where EM is slow, a long step may lead to a singularity that EM itself passes by.
            plain = run(data, family, start, acceleration=None, **settings)
            found = replace(plain, n_passes=found.n_passes + plain.n_passes)
        return found

    def track(items: Iterable[Any], total: int) -> Iterable[Any]:
        return _track(items, total, progressbar)

    n_workers = workers(data.n, data.d, k, len(begins), threads)
    runs = run_all(go, begins, n_workers, track)
    usable = [i for i, r in enumerate(runs) if r.is_usable]
    if not usable and _is_interrupted(runs):
        raise KeyboardInterrupt
    if not usable:
        raise NumericalError(_no_usable(runs, spec, estimate))
    finished = [i for i in usable if runs[i].reason != "interrupted"]
    best = max(finished or usable, key=lambda i: runs[i].objective)
    wanted = spec.n_parameters(data.d) <= MAX_SE_PARAMETERS
    information = None
    if wanted if standard_errors is None else standard_errors:
        runs[best], information = _certified(data, family, runs[best], tol, go)
    verdict = em_verdict(**_facts(data, family, runs, best, information, tol))
    fit = _result(
        spec,
        data,
        runs,
        best,
        information,
        estimate=estimate,
        keep_responsibilities=keep_responsibilities,
    )
    fit.attrs |= {
        "random_seed": seed,
        "verdict": verdict.to_json(),
        "warnings": to_json(notes),
        "timings": json.dumps({"em": time.perf_counter() - began}),
    }
    warn(verdict, FitWarning)
    return fit


def _check_arguments(
    spec: GaussianMixture,
    estimate: str,
    n_starts: int,
    max_iter: int,
    tol: Any,
    acceleration: str | None,
    threads: int | None,
) -> None:
    if not isinstance(spec, GaussianMixture):
        raise ArgumentError("spec", f"must be a GaussianMixture, not {type(spec).__name__}")
    if estimate not in ("mle", "map"):
        raise ArgumentError("estimate", f"must be 'mle' or 'map', not {estimate!r}")
    whole_number("n_starts", n_starts, least=1)
    whole_number("max_iter", max_iter, least=1)
    if isinstance(tol, bool) or not isinstance(tol, Real) or not float(tol) >= 0:
        raise ArgumentError("tol", f"must be 0 or more standard errors, not {tol!r}")
    if acceleration is not None and acceleration not in ACCELERATIONS:
        known = ", ".join(repr(name) for name in ACCELERATIONS)
        raise ArgumentError("acceleration", f"must be {known} or None, not {acceleration!r}")
    if threads is not None:
        whole_number("threads", threads, least=1)


def seed_of(random_seed: int | None) -> int:
    """Return the seed, or a fresh one for None, so that every result can be made again."""
    if random_seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return whole_number("random_seed", random_seed, least=0)


def _resolved(spec: GaussianMixture, data: Data) -> PseudoData:
    """Return the conjugate prior in anchored units."""
    if not isinstance(spec.prior, ConjugatePrior):
        raise ArgumentError(
            "estimate", f"'map' needs a conjugate prior; the specification's is {spec.prior!r}"
        )
    if spec.prior.weight_concentration < 1.0:
        raise ArgumentError(
            "estimate",
            "'map' needs a weight_concentration of at least 1: below, the density of the weights "
            "has no mode inside",
        )
    return pseudo_data(
        spec.prior,
        spec.covariance,
        spec.n_components,
        mean=data.center + data.scale * data.mean,
        covariance=data.covariance * np.outer(data.scale, data.scale),
    ).anchored(data.center, data.scale)


def _track(items: Iterable[Any], total: int, progressbar: bool | None) -> Iterable[Any]:
    if not is_wanted(progressbar) or total < 2:
        return items
    from rich.progress import track

    return track(items, description="EM starts", total=total, transient=True)


def _is_interrupted(runs: list[Run]) -> bool:
    return not runs or any(r.reason == "interrupted" for r in runs)


def _certified(
    data: Data, family: Covariance, best: Run, tol: float, go: Any
) -> tuple[Run, Information]:
    """Compute the information; where the exact distance is not yet below ``tol``, run on."""
    aim = tol
    for _ in range(8):
        information = observed_information(
            data.x, best.parameters, best.moments, family, data.weight
        )
        if best.reason != "converged" or not information.distance > tol:
            break
        aim = 0.1 * aim
        more = go(Start(best.method, best.parameters), tol=aim)
        if not more.is_usable:  # on from a saddle into a singularity
            break
        best = replace(
            more,
            trace=np.concatenate([best.trace[:-1], more.trace]),
            n_passes=best.n_passes + more.n_passes,
        )
    return best, information


def _facts(
    data: Data,
    family: Covariance,
    runs: list[Run],
    best: int,
    information: Information | None,
    tol: float,
) -> dict[str, Any]:
    """What the verdict is made from."""
    top = runs[best]
    others = [r for i, r in enumerate(runs) if i != best and r.is_usable]
    near = [r for r in others if top.objective - r.objective < 0.1]
    reached = [r for r in near if distance(r.parameters, top.parameters) < SAME]
    return {
        "reason": top.reason,
        "n_iter": len(top.trace) - 1,
        "distance": information.distance if information else float("nan"),
        "tol": tol,
        "is_positive_definite": information.is_positive_definite if information else None,
        "counts": top.moments.mean_count,
        "reasons": [r.reason for r in runs],
        "n_at_best": 1 + len(reached),
        "n_rivals": len(near) - len(reached),
        "family": family,
        "d": data.d,
    }


def _no_usable(runs: list[Run], spec: GaussianMixture, estimate: str) -> str:
    rows = "\n".join(
        f"  start {i} ({r.method}): {r.reason} after {max(len(r.trace) - 1, 0)} steps"
        for i, r in enumerate(runs)
    )
    # Under the prior a component may be empty, but is never singular.
    advice = "" if estimate == "map" else ", or estimate='map', which cannot be singular"
    return (
        f"all {len(runs)} starts ended with a singular, empty or tiny component, which is no "
        f"optimum of {spec.covariance} to report:\n{rows}\nUse fewer components or a family with "
        f"a common covariance (EEE, EEI, EII){advice}."
    )


def versions() -> str:
    """Return the versions that a result depends on, as JSON."""
    import numba
    import scipy

    found = {"python": platform.python_version(), "numpy": np.__version__}
    found |= {"scipy": scipy.__version__, "numba": numba.__version__}
    return json.dumps(found)


def _result(
    spec: GaussianMixture,
    data: Data,
    runs: list[Run],
    best: int,
    information: Information | None,
    *,
    estimate: str,
    keep_responsibilities: bool,
) -> xr.DataTree:
    top = runs[best]
    # Components in order of their first mean: a name for labels that mean nothing.
    order = np.lexsort(top.parameters.mean.T[::-1])
    parameters = top.parameters.take(order)
    r = responsibilities(data.x, parameters)
    row = log_density(data.x, parameters) - np.log(data.scale).sum()
    weight = data.weight if len(data.weight) else np.ones(data.n)
    loglik = float(weight @ row)
    natural = data.to_data_units(parameters)
    p = spec.n_parameters(data.d)
    bic = -2.0 * loglik + p * np.log(data.total_weight)
    with np.errstate(divide="ignore"):
        icl = bic - 2.0 * float(weight @ np.log(r.max(axis=1)))
    both, chain = ("chain", "draw"), {"chain": [0], "draw": [0]}
    shift = data.log_jacobian
    groups: dict[str, xr.Dataset] = {
        "posterior": tree.dataset(
            {n: getattr(natural, n)[None, None] for n in tree.DIMS}, data.names, ("chain", "draw")
        ),
        "sample_stats": xr.Dataset(
            {
                "loglik": (both, np.array([[loglik]])),
                "lp": (both, np.array([[top.objective + shift]])),
                "n_iter": (both, np.array([[len(top.trace) - 1]])),
                "n_passes": (both, np.array([[top.n_passes]])),
                "converged": (both, np.array([[top.reason in ("converged", "fixed point")]])),
                "distance": (both, np.array([[information.distance if information else np.nan]])),
            },
            coords=chain,
        ),
        "criteria": _criteria(loglik, p, bic, icl),
        "log_likelihood": xr.Dataset(
            {"x": (("chain", "draw", "obs"), (weight * row)[None, None])}, chain
        ),
        "observed_data": xr.Dataset({"x": (("obs", "feature"), data.values)}),
        "constant_data": xr.Dataset({"sample_weight": ("obs", weight)}),
        "starts": _starts_table(runs, best, shift),
    }
    index = plain_index(data.index)
    for name in ("log_likelihood", "observed_data", "constant_data"):
        groups[name] = groups[name].assign_coords(obs=index)
    groups["observed_data"] = groups["observed_data"].assign_coords(feature=list(data.names))
    if information is not None:
        groups["standard_error"] = _standard_errors(information, data, order)
    if keep_responsibilities:
        groups["responsibilities"] = xr.Dataset(
            {"responsibility": (("obs", "cluster"), r)},
            coords={"obs": index, "cluster": np.arange(parameters.k)},
        )
    fit = xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
    fit.attrs |= {
        "engine": "em",
        "estimate": estimate,
        "spec": spec.to_json(),
        "stop_reason": "interrupted" if _is_interrupted(runs) else top.reason,
        "fingerprint": data.fingerprint,
        "bayesgmm_version": package_version(),
        "versions": versions(),
    }
    return fit


def package_version() -> str:
    """Return the version of this package."""
    from importlib.metadata import version

    return version("bayesgmm")


def plain_index(index: Any) -> np.ndarray[Any, Any]:
    """Row labels that NetCDF can hold: numbers and strings as they are, the rest as strings."""
    values = np.asarray(index)
    return values if values.dtype.kind in "iuf" else np.array([str(v) for v in index])


def _criteria(loglik: float, p: int, bic: float, icl: float) -> xr.Dataset:
    values = {"loglik": loglik, "n_params": p, "aic": -2.0 * loglik + 2.0 * p}
    values |= {"bic": bic, "icl": icl}
    criteria = xr.Dataset({name: ((), value) for name, value in values.items()})
    for name in ("aic", "bic", "icl"):
        criteria[name].attrs["sign"] = "smaller is better"
    return criteria


def _starts_table(runs: list[Run], best: int, shift: float) -> xr.Dataset:
    columns = {
        "method": [r.method for r in runs],
        "objective": [r.objective + shift for r in runs],
        "reason": [r.reason for r in runs],
        "n_iter": [max(len(r.trace) - 1, 0) for r in runs],
        "n_passes": [r.n_passes for r in runs],
        "usable": [r.is_usable for r in runs],
        "best": [i == best for i in range(len(runs))],
    }
    return xr.Dataset(
        {name: ("start", np.array(values)) for name, values in columns.items()},
        coords={"start": np.arange(len(runs))},
    )


def _standard_errors(information: Information, data: Data, order: Any) -> xr.Dataset:
    se = information.standard_errors().take(order)
    errors = tree.dataset(
        {
            "weight": se.weight,
            "mean": se.mean * data.scale,
            "covariance": se.covariance * np.outer(data.scale, data.scale),
        },
        data.names,
    )
    errors.attrs["method"] = "observed information"
    errors.attrs["note"] = (
        ""
        if information.is_positive_definite
        else "the Hessian of the objective is not positive definite: no standard errors exist here"
    )
    return errors
