"""Draws by any sampler, of a model that was edited or written elsewhere, as a fit of this package.

What is not a Gaussian mixture of the specification's family is refused, with the draw at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm import tree
from bayesgmm.checks import warn
from bayesgmm.data.cells import Missing
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.noise import NOISE
from bayesgmm.posterior.draws import Task, begin, collect, modes_of
from bayesgmm.posterior.modes import add_modes
from bayesgmm.posterior.verdict import posterior_verdict

# Statistics under our names, and what samplers call them: nutpie, PyMC and Stan, NumPyro.
_STATS = {
    "lp": ("lp", "logp"),
    "energy": ("energy",),
    "diverging": ("diverging",),
    "depth": ("depth", "tree_depth"),
    "maxdepth_reached": ("maxdepth_reached", "reached_max_treedepth"),
    "n_steps": ("n_steps", "num_steps"),
    "step_size": ("step_size",),
    "acceptance_rate": ("acceptance_rate", "mean_tree_accept", "accept_prob"),
}
_BOTH = ("chain", "draw")
_ROUNDING = 1e-6  # of draws that were written with few digits, relative
_SAME_DENSITY = 1e-6  # what differences of log-densities vary by if they are one density
HAND = "a model edited by hand"


def from_draws(
    spec: GaussianMixture,
    idata: xr.DataTree | xr.Dataset,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    fixed: Mapping[str, Any] | None = None,
    mle: xr.DataTree | None = None,
    log_likelihood: bool | None = None,
    loo: bool | None = None,
    random_seed: int | None = None,
) -> xr.DataTree:
    """Return draws by another sampler as a fit: aligned, judged, to be compared and saved.

    Parameters
    ----------
    spec : GaussianMixture
        What the model was made from, or the family that it is of.
    idata : DataTree or Dataset
        With a group ``posterior``, or that group: ``weight`` (chain, draw, k), ``mean`` (…, k, d)
        and ``covariance`` (…, k, d, d) in the units and the order of the columns of X;
        ``noise_weight`` where the specification has noise. Other variables are kept in the group
        ``extra``. From ``sample_stats`` comes what the verdict asks for, under the names of
        nutpie, PyMC, Stan or NumPyro.
    X : table (n, d)
    sample_weight, columns, missing, labels, fixed, mle, log_likelihood, loo, random_seed
        As in `sample_posterior`; the seed is that of EM's fit, unless ``mle`` is given.

    Returns
    -------
    xarray.DataTree
        As by `sample_posterior`. If ``lp`` is recorded and is the log-posterior of the
        specification, draw by draw up to a constant, then ``log_prior`` is there and the prior is
        described. If not, the prior is "a model edited by hand", and nothing is said of it.

    Raises
    ------
    ArgumentError
        If a variable is missing, of another shape or with other columns; if a draw is no mixture of
        the family: weights that do not sum to 1, a covariance that is not positive definite, ...

    Warns
    -----
    PosteriorWarning
        As `sample_posterior`.
    """
    refuse_other(spec)
    posterior, given = _groups(idata)
    task = begin(
        spec,
        X,
        sample_weight=sample_weight,
        columns=columns,
        missing=missing,
        labels=labels,
        fixed=fixed,
        mle=mle,
        random_seed=random_seed,
    )
    raw = _parameters(posterior, spec, task)
    points = _points(raw, spec, task)
    stats = _statistics(given, points.shape[:2])
    own = task.target.values(points)
    is_own = "lp" in stats and bool(np.ptp(stats["lp"].to_numpy() - own) < _SAME_DENSITY)
    task.clock.lap("reading")
    shown = stats.assign(lp=(_BOTH, own))
    fit, margin = collect(spec, task, points, shown, log_likelihood, loo, raw)
    made = fit["sample_stats"].to_dataset().drop_vars(["lp", *([] if is_own else ["log_prior"])])
    fit["sample_stats"] = xr.DataTree(made.assign({n: stats[n] for n in stats if n == "lp"}))
    others = [n for n in posterior if n not in raw and set(_BOTH) <= set(posterior[n].dims)]
    if others:
        fit["extra"] = xr.DataTree(posterior[others].transpose(*_BOTH, ...))
    modes = modes_of(task) if is_own else ()
    verdict = posterior_verdict(
        *(fit[group].to_dataset() for group in ("posterior", "label_free", "sample_stats")),
        margin=margin,
        family=spec.covariance,
        max_treedepth=None,
        still=task.target.space.still,
        modes=add_modes(fit, task.target, modes, task.kinds, task.seed) if modes else None,
    )
    task.clock.lap("summary")
    fit.attrs |= task.attributes(verdict) | {"engine": "imported", "stop_reason": "imported"}
    if not is_own:
        fit.attrs["prior"] = json.dumps(HAND)
        del fit["log_prior"]
    warn(verdict, PosteriorWarning)
    return fit


def _groups(idata: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Posterior and statistics."""
    if isinstance(idata, xr.Dataset):
        return idata, xr.Dataset()
    if not isinstance(idata, xr.DataTree) or "posterior" not in idata.children:
        raise ArgumentError(
            "idata",
            f"must be a DataTree with a group posterior, or that group, not {type(idata).__name__}",
        )
    stats = idata["sample_stats"].to_dataset() if "sample_stats" in idata.children else xr.Dataset()
    return idata["posterior"].to_dataset(), stats


def _parameters(posterior: xr.Dataset, spec: GaussianMixture, task: Task) -> dict[str, Array]:
    """Return weights, means and covariances (chain, draw, ...), checked."""
    k, names = spec.n_components, task.data.names
    sizes = {"cluster": k, "feature": len(names), "feature_bis": len(names)}
    found = {}
    for name in (*tree.DIMS, *([NOISE] if spec.has_noise else [])):
        if name not in posterior:
            raise ArgumentError("idata", f"has no {name!r} in its posterior")
        variable = posterior[name]
        if not set(_BOTH) <= set(variable.dims):
            raise ArgumentError("idata", f"{name!r} needs the dimensions chain and draw")
        variable = variable.transpose(*_BOTH, ...)
        own = tree.DIMS.get(name, ())
        shape = tuple(sizes[dim] for dim in own)
        if variable.shape[2:] != shape:
            raise ArgumentError(
                "idata", f"{name!r} of a draw has the shape {variable.shape[2:]}, not {shape}"
            )
        for dim, theirs in zip(own, variable.dims[2:], strict=True):
            if dim != "cluster" and theirs in variable.coords:
                _check_columns(name, variable.coords[theirs].to_numpy(), names)
        found[name] = np.asarray(variable.to_numpy(), dtype=np.float64)
    for name, value in found.items():
        _refuse(~np.isfinite(value), name, "is not finite")
    _check_values(found)
    return found


def _check_columns(name: str, labels: Any, names: tuple[str, ...]) -> None:
    theirs = tuple(map(str, labels))
    if theirs == names or labels.dtype.kind in "iu":  # numbers: no names were given
        return
    order = "the same columns in another order" if set(theirs) == set(names) else "other columns"
    raise ArgumentError(
        "idata", f"{name!r} has {order} than X: {', '.join(theirs)}, not {', '.join(names)}"
    )


def _check_values(found: Mapping[str, Array]) -> None:
    """Refuse weights that are none, and covariances that are no covariances."""
    weight, covariance = found["weight"], found["covariance"]
    total = weight.sum(axis=-1) + found.get(NOISE, 0.0)
    _refuse(weight < 0, "weight", "is negative")
    _refuse(np.abs(total - 1.0) > _ROUNDING, "weight", "does not sum to 1")
    across = np.swapaxes(covariance, -1, -2)
    sd = np.sqrt(np.abs(np.diagonal(covariance, axis1=-2, axis2=-1)))
    size = sd[..., :, None] * sd[..., None, :]
    _refuse(np.abs(covariance - across) > _ROUNDING * size, "covariance", "is not symmetric")
    least = np.linalg.eigvalsh(0.5 * (covariance + across))[..., 0]
    _refuse(least <= 0, "covariance", "is not positive definite")


def _refuse(bad: Any, name: str, what: str) -> None:
    """Refuse draws of which something is wrong, and name the first."""
    if not bad.any():
        return
    chain, draw, *component = (int(i) for i in np.argwhere(bad)[0][:3])
    where = f"chain {chain}, draw {draw}" + (f", component {component[0]}" if component else "")
    count = int(bad.any(axis=tuple(range(2, bad.ndim))).sum())
    raise ArgumentError("idata", f"{name!r} {what} in {count} draws (first: {where})")


def _points(raw: Mapping[str, Array], spec: GaussianMixture, task: Task) -> Array:
    """Return draws as points (chain, draw, size) of the sampler's space, or refuse them."""
    target, region = task.target, task.target.space.region
    chains, draws = raw["weight"].shape[:2]
    points = np.empty((chains, draws, target.size))
    for place in np.ndindex(chains, draws):
        one = tree.components({name: value[place] for name, value in raw.items()})
        if region is not None:
            noise = region.noise(float(raw[NOISE][place]))
            one = replace(one, noise=noise)
        points[place] = target.point(one)
    again = target.parameters(points)
    for name, value in raw.items():
        size = np.abs(value).max(axis=(0, 1))
        gap = np.abs(again[name] - value) > 10.0 * _ROUNDING * np.maximum(size, np.abs(value))
        _refuse(gap, name, f"is not one of {spec.covariance} and of what is fixed")
    return points


def _statistics(given: xr.Dataset, shape: tuple[int, ...]) -> xr.Dataset:
    """Return the sampler's statistics under our names."""
    found = {}
    for name, spellings in _STATS.items():
        for spelling in spellings:
            if spelling in given and set(given[spelling].dims) == set(_BOTH):
                value = given[spelling].transpose(*_BOTH).to_numpy()
                if value.shape != shape:
                    raise ArgumentError(
                        "idata", f"{spelling!r} has the shape {value.shape}, the draws {shape}"
                    )
                found[name] = (_BOTH, value)
                break
    return xr.Dataset(found)
