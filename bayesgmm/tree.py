"""Parameters and draws as ArviZ's container: one DataTree for either engine, saved and loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.errors import ArgumentError
from bayesgmm.files import atomic
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Parameters
from bayesgmm.noise import NOISE, Region

DIMS: dict[str, tuple[str, ...]] = {
    "weight": ("cluster",),
    "mean": ("cluster", "feature"),
    "covariance": ("cluster", "feature", "feature_bis"),
}


def coordinates(k: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the coordinates of a fit: clusters 0..k-1 and the column names, twice."""
    return {"cluster": np.arange(k), "feature": list(names), "feature_bis": list(names)}


def dataset(
    values: Mapping[str, Any], names: Sequence[str], leading: Sequence[str] = ()
) -> xr.Dataset:
    """Return weight, mean and covariance arrays as a Dataset, after ``leading`` dimensions.

    Parameters
    ----------
    values : mapping of str to array
        Some of ``weight`` (..., k), ``mean`` (..., k, d), ``covariance`` (..., k, d, d), or
        ``noise_weight`` (...).
    names : sequence of str
        Column names.
    leading : sequence of str
        E.g. ``("chain", "draw")``; they get integer coordinates.
    """
    arrays = {name: np.asarray(value) for name, value in values.items()}
    first = next(iter(arrays.values()))
    k = next(v.shape[len(leading)] for v in arrays.values())
    index = {dim: np.arange(first.shape[i]) for i, dim in enumerate(leading)}
    dims = DIMS | {NOISE: ()}
    used = {dim for name in arrays for dim in dims[name]}
    labels = {dim: c for dim, c in coordinates(k, names).items() if dim in used}
    return xr.Dataset(
        {name: ((*leading, *dims[name]), value) for name, value in arrays.items()},
        coords=index | labels,
    )


def dims_of(fit: xr.DataTree) -> dict[str, tuple[str, ...]]:
    """Return the parameters of a fit, each with its dimensions after chain and draw."""
    return DIMS | ({NOISE: ()} if NOISE in fit["posterior"].data_vars else {})


def arrays(parameters: Parameters) -> dict[str, Array]:
    """Return parameters as arrays by name."""
    found = {name: getattr(parameters, name) for name in DIMS}
    if parameters.noise is not None:
        found[NOISE] = np.array(parameters.noise.weight)
    return found


def components(arrays: Mapping[str, Array]) -> Parameters:
    """Return the parameters of arrays by name, those of a noise component left out."""
    return Parameters(arrays["weight"], arrays["mean"], arrays["covariance"])


def region_of(fit: xr.DataTree) -> Region | None:
    """Return where the noise of a fit is, if it has any."""
    text = str(fit.attrs.get("noise", ""))
    return Region.from_json(text) if text else None


def point(fit: xr.DataTree) -> Parameters:
    """Return the parameters of a fit with one draw, in the data's units.

    Raises
    ------
    ArgumentError
        If the fit has more than one draw.
    """
    posterior = fit["posterior"]
    if posterior.sizes["chain"] * posterior.sizes["draw"] != 1:
        raise ArgumentError("fit", "has many draws; a point estimate has one")
    found = components({name: posterior[name].to_numpy()[0, 0] for name in DIMS})
    region = region_of(fit)
    if region is None:
        return found
    noise = region.noise(float(posterior[NOISE].to_numpy()[0, 0]))
    return replace(found, noise=noise)


def spec_of(fit: xr.DataTree) -> GaussianMixture:
    """Return the specification that a fit was made from."""
    return GaussianMixture.from_json(str(fit.attrs["spec"]))


def names_of(fit: xr.DataTree) -> tuple[str, ...]:
    """Return the column names of a fit."""
    return tuple(str(name) for name in fit["posterior"]["feature"].to_numpy())


def labels_at(fit: xr.DataTree, chosen: NDArray[np.intp]) -> dict[str, xr.Dataset]:
    """Return the group ``labels`` of some draws, as one chain; nothing where there is none."""
    if "labels" not in fit.children:
        return {}
    found = {}
    for name, array in fit["labels"].to_dataset().data_vars.items():
        array = array.transpose("chain", "draw", ...)
        value = array.to_numpy().reshape(-1, *array.shape[2:])[chosen]
        found[name] = (array.dims, value[None])
    return {"labels": xr.Dataset(found)}


def units_of(fit: xr.DataTree) -> dict[str, str]:
    """Return the units of a fit's columns, by name, of those that came with one."""
    found: dict[str, str] = json.loads(str(fit.attrs.get("units", "{}")))
    return found


def whole(argument: str, fit: Any, *groups: str) -> xr.DataTree:
    """Return a fit that has what is needed of it.

    Raises
    ------
    ArgumentError
        If it is no fit, naming the argument, or lacks one of the groups, naming these.
    """
    if not isinstance(fit, xr.DataTree):
        raise ArgumentError(argument, f"must be a fit (a DataTree), not {type(fit).__name__}")
    if missing := _missing(fit):
        raise ArgumentError(argument, f"must be a fit; this tree has no {missing}")
    if absent := [name for name in groups if name not in fit.children]:
        raise ArgumentError(
            argument,
            f"must be a whole fit, with {', '.join(absent)}; marginal and conditional leave only "
            "a part of one",
        )
    return fit


def save(fit: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a fit to a NetCDF file, whole or not at all.

    Raises
    ------
    ArgumentError
        If the folder does not exist, or ``path`` is one; if ``fit`` is no fit.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ArgumentError("path", f"the folder {target.parent} does not exist")
    if target.is_dir():
        raise ArgumentError("path", f"{target} is a folder; give the name of a file")
    whole("fit", fit)
    with atomic(target) as temporary:
        fit.to_netcdf(temporary, engine="netcdf4")
    return target


def load(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a fit that `save` wrote.

    Raises
    ------
    ArgumentError
        If there is no such file, or it holds no fit of this package.
    """
    source = Path(path)
    if not source.is_file():
        raise ArgumentError("path", f"there is no file {source}")
    try:
        with xr.open_datatree(source, engine="netcdf4") as tree:
            fit = tree.load()
    except OSError as error:
        raise ArgumentError("path", f"{source} is not a NetCDF file ({error})") from error
    # Numbers as they were saved: JSON knows no NumPy scalars.
    fit.attrs = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in fit.attrs.items()
    }
    if missing := _missing(fit):
        raise ArgumentError("path", f"{source} is not a fit of bayesgmm: it has no {missing}")
    return fit


def _missing(fit: xr.DataTree) -> str:
    """What a fit must have and this tree has not, or an empty text."""
    try:
        spec_of(fit)
    except (KeyError, ArgumentError):
        return "specification"
    if "posterior" not in fit.children:
        return "posterior"
    variables = fit["posterior"].data_vars
    return next((name for name in DIMS if name not in variables), "")
