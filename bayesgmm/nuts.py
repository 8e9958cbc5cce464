"""nutpie: a model compiled once, chains started over-dispersed around EM's optimum, draws kept."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import nutpie
import pytensor
import xarray as xr

from bayesgmm import tree
from bayesgmm.data import Data
from bayesgmm.errors import NumericalError
from bayesgmm.mixture import GaussianMixture
from bayesgmm.model import build
from bayesgmm.moments import Array, Parameters

MAX_DEPTH = 10
_OVERDISPERSION = 2.0  # chains start this many posterior sds apart, so that R-hat can see trouble


def compile_around(pivot: Parameters, spec: GaussianMixture, data: Data) -> Any:
    """Return nutpie's compiled model, whose chains start over-dispersed around the pivot."""
    model = build(spec, data)
    values = {name: getattr(pivot, name) for name in tree.DIMS}
    free = {variable.name for variable in model.free_RVs}
    # Without fast-math the same seed gives the same bits with a cold and with a warm cache.
    with pytensor.config.change_flags(numba__fastmath=False):
        compiled = nutpie.compile_pymc_model(
            model,
            initial_points={name: v for name, v in values.items() if name in free},
            jitter_rvs=set(),
        )
    centre = np.asarray(compiled.initial_point_func(0), dtype=np.float64)
    unit = np.ones(compiled.n_dim)
    sd = data.scale * np.sqrt(np.diagonal(data.covariance))
    unit[-spec.n_components * data.d :] = np.tile(sd, spec.n_components)
    density = _density(compiled)
    root = _posterior_root(density, centre, unit)

    def initial_point(chain_seed: Any) -> Array:
        rng = np.random.default_rng(chain_seed)
        step = _OVERDISPERSION * (root @ rng.normal(size=len(centre)))
        for _ in range(20):
            value, slope = density(centre + step)
            if np.isfinite(value) and np.isfinite(slope).all():
                return centre + step
            step *= 0.5
        return centre

    return replace(compiled, initial_point_func=initial_point)


Density = Callable[[Array], tuple[float, Array]]


def _density(compiled: Any) -> Density:
    """Return the compiled log-density with its gradient as a Python function."""
    function = compiled.compiled_logp_func.ctypes
    pointer = ctypes.POINTER(ctypes.c_double)

    def density(point: Array) -> tuple[float, Array]:
        point = np.ascontiguousarray(point)
        slope, value = np.zeros(len(point)), np.full(1, np.nan)
        status = function(
            len(point),
            point.ctypes.data_as(pointer),
            slope.ctypes.data_as(pointer),
            value.ctypes.data_as(pointer),
            compiled.user_data.ctypes.data,
        )
        return (float(value[0]) if status == 0 else float("nan")), slope

    return density


def _posterior_root(density: Density, centre: Array, unit: Array) -> Array:
    """Return a root of the inverse negative Hessian at the centre: the posterior's size there."""
    p = len(centre)
    hessian = np.empty((p, p))
    for j in range(p):
        step = np.zeros(p)
        step[j] = 1e-4 * unit[j]
        hessian[j] = (density(centre + step)[1] - density(centre - step)[1]) / (2e-4 * unit[j])
    scaled = -0.5 * (hessian + hessian.T) * np.outer(unit, unit)
    if not np.isfinite(scaled).all():
        return 0.1 * np.diag(unit)
    value, vector = np.linalg.eigh(scaled)
    # A flat or rising direction (EM's optimum is not the posterior's) gets a moderate size.
    value = np.maximum(value, 1.0)
    return unit[:, None] * vector / np.sqrt(value)


def run_nuts(compiled: Any, *, progress_bar: bool, **settings: Any) -> xr.DataTree:
    """Return nutpie's draws of a compiled model.

    Raises
    ------
    NumericalError
        If it cannot start.
    """
    try:
        return nutpie.sample(
            compiled, maxdepth=MAX_DEPTH, save_warmup=False, progress_bar=progress_bar, **settings
        )
    except RuntimeError as error:
        gc.collect()  # nutpie's sampler must be gone before the process ends
        raise NumericalError(
            f"the sampler could not run: {str(error).splitlines()[0]}. Check the prior's numbers "
            "against the data's scale"
        ) from None


def finished(sampled: xr.DataTree) -> tuple[xr.Dataset, xr.Dataset]:
    """Return draws and statistics without what an interruption left open.

    nutpie pads chains to one length with NaN. The rectangle of chains and draws that keeps most is
    taken: a chain that had hardly begun is dropped rather than the draws of the others.
    """
    if "posterior" not in sampled.children:
        raise KeyboardInterrupt
    finite = np.isfinite(sampled["sample_stats"]["logp"].to_numpy())
    done = np.where(finite.all(axis=1), finite.shape[1], np.argmin(finite, axis=1))
    longest_first = np.argsort(-done, kind="stable")
    area = done[longest_first] * np.arange(1, len(done) + 1)
    best = int(np.argmax(area))
    if area[best] == 0:
        raise KeyboardInterrupt
    part = {
        "chain": np.sort(longest_first[: best + 1]),
        "draw": slice(0, done[longest_first[best]]),
    }
    return (
        sampled["posterior"].to_dataset().isel(part),
        sampled["sample_stats"].to_dataset().isel(part),
    )
