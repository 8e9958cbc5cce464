"""The result of `fit_em` as ArviZ's container: groups, criteria, starts, standard errors."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayesgmm import tree
from bayesgmm.data.mixing import by_column
from bayesgmm.data.observations import Data
from bayesgmm.em.loop import Run
from bayesgmm.em.multistart import is_interrupted
from bayesgmm.em.rivals import Optimum, Rival
from bayesgmm.groups import row_blocks
from bayesgmm.information.observed import Information
from bayesgmm.information.uncertainty import METHODS, Uncertainty
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Parameters
from bayesgmm.streams import room_like

Order = NDArray[np.intp]


def versions() -> str:
    """Return the versions that a result depends on, as JSON."""
    import numba
    import scipy

    found = {"python": platform.python_version(), "numpy": np.__version__}
    found |= {"scipy": scipy.__version__, "numba": numba.__version__}
    return json.dumps(found)


def order_of(parameters: Parameters, data: Data, *, is_kept: bool = False) -> Order:
    """Return the order of components, (k,): by the first mean, a name where labels mean nothing."""
    if is_kept:
        return np.arange(parameters.k)
    return np.lexsort(data.by_column(parameters).mean.T[::-1])


def result(
    spec: GaussianMixture,
    data: Data,
    runs: list[Run],
    best: int,
    information: Information | None,
    errors: Uncertainty | None,
    order: Order,
    rivals: Sequence[Rival] = (),
    optima: Sequence[Optimum] = (),
    *,
    estimate: str,
    keep_responsibilities: bool,
    n_fixed: int = 0,
) -> xr.DataTree:
    """Return the tree of a fit, its components in an order (k,)."""
    top = runs[best]
    parameters = top.parameters.take(order)
    row, loglik, entropy, r = _of_rows(data, parameters, keep_responsibilities)
    weight = data.weight if len(data.weight) else np.broadcast_to(1.0, data.n)
    natural = data.to_data_units(parameters)
    p = spec.n_parameters(data.d) - n_fixed
    bic = -2.0 * loglik + p * np.log(data.total_weight)
    both, chain = ("chain", "draw"), {"chain": [0], "draw": [0]}
    shift = data.log_jacobian
    groups: dict[str, xr.Dataset] = {
        "posterior": tree.dataset(
            {n: v[None, None] for n, v in tree.arrays(natural).items()},
            data.names,
            ("chain", "draw"),
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
        "criteria": _criteria(loglik, p, bic, bic + 2.0 * entropy),
        "log_likelihood": xr.Dataset({"x": (("chain", "draw", "obs"), row[None, None])}, chain),
        "observed_data": xr.Dataset({"x": (("obs", "feature"), data.values)}),
        "constant_data": xr.Dataset({"sample_weight": ("obs", weight)}),
        "starts": _starts_table(runs, best, shift),
    }
    index = plain_index(data.index)
    for name in ("log_likelihood", "observed_data", "constant_data"):
        groups[name] = groups[name].assign_coords(obs=index)
    groups["observed_data"] = groups["observed_data"].assign_coords(feature=list(data.names))
    if len(data.probability):
        groups["constant_data"]["label_probability"] = (("obs", "cluster"), data.probability)
    if rivals:
        groups["rivals"] = _optima_table(rivals, [r.starts[0] for r in rivals], data.names)
    if optima:
        found = _optima_table(optima, [o.start for o in optima], data.names)
        groups["optima"] = found.assign(reason=("start", [o.reason for o in optima]))
    if errors is not None:
        groups["standard_error"] = _standard_errors(errors, data, order)
    if r is not None:
        groups["responsibilities"] = xr.Dataset(
            {"responsibility": (("obs", "cluster"), r[:, : parameters.k])},
            coords={"obs": index, "cluster": np.arange(parameters.k)},
        )
        if parameters.noise is not None:
            groups["responsibilities"]["noise"] = ("obs", r[:, -1])
    fit = xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
    fit.attrs |= {
        "engine": "em",
        "estimate": estimate,
        "spec": spec.to_json(),
        "stop_reason": "interrupted" if is_interrupted(runs) else top.reason,
        "fingerprint": data.fingerprint,
        "units": json.dumps(data.units),
        "bayesgmm_version": package_version(),
        "versions": versions(),
    }
    return fit


def _of_rows(
    data: Data, parameters: Parameters, keep_responsibilities: bool
) -> tuple[Array, float, float, Array | None]:
    """What a mixture says of the rows: weighted log-densities (n,) in data units, and their sum.

    Then minus the sum of the logarithms of the largest responsibilities, and (n, k) all of them.
    """
    jacobian = data.row_log_jacobian
    row = room_like(data.x, data.n)
    r = room_like(data.x, data.n, len(parameters.weights)) if keep_responsibilities else None
    loglik, entropy = [], []
    for part in row_blocks(data.groups, parameters):
        density = part.density + (jacobian if isinstance(jacobian, float) else jacobian[part.place])
        with np.errstate(divide="ignore"):
            sure = np.log(part.responsibility.max(axis=1))
        if len(part.group.weight):
            density, sure = density * part.group.weight, sure * part.group.weight
        row[part.place] = density
        loglik.append(float(density.sum()))
        entropy.append(-float(sure.sum()))
        if r is not None:
            r[part.place] = part.responsibility
    return row, math.fsum(loglik), math.fsum(entropy), r


def package_version() -> str:
    """Return the version of this package."""
    from importlib.metadata import version

    return version("bayesgmm")


def plain_index(index: Any) -> np.ndarray[Any, Any] | pd.RangeIndex:
    """Row labels that NetCDF can hold: numbers and strings as they are, the rest as strings."""
    if isinstance(index, pd.RangeIndex):
        return index  # as long as it may be, it is three numbers
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
    table = {name: ("start", np.array(values)) for name, values in columns.items()}
    trace = np.full((len(runs), max(len(r.trace) for r in runs)), np.nan)
    for row, r in zip(trace, runs, strict=True):
        row[: len(r.trace)] = r.trace + shift
    steps = np.arange(trace.shape[1])
    return xr.Dataset(
        table | {"trace": (("start", "step"), trace)},
        coords={"start": np.arange(len(runs)), "step": steps},
    )


def _optima_table(
    optima: Sequence[Rival | Optimum], starts: Sequence[int], names: Sequence[str]
) -> xr.Dataset:
    """Parameters of the other optima, each by the start that led to it."""
    each = [tree.arrays(o.parameters) for o in optima]
    values = {n: np.stack([one[n] for one in each]) for n in each[0]}
    found = tree.dataset(values, names, ("start",))
    found["objective"] = ("start", np.array([o.objective for o in optima]))
    return found.assign_coords(start=list(starts))


def _standard_errors(errors: Uncertainty, data: Data, order: Order) -> xr.Dataset:
    errors = replace(errors, natural=by_column(errors.natural, data, len(order)))
    se = errors.standard_errors().take(order)
    natural = replace(
        se,
        mean=se.mean * data.scale,
        covariance=se.covariance * np.outer(data.scale, data.scale),
    )
    found = tree.dataset(tree.arrays(natural), data.names)
    found.attrs |= {"method": METHODS[errors.kind], "note": errors.note(order)}
    return found
