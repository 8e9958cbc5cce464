"""Draws kept on disk while they are made: what a killed run had finished is a fit again.

A store is a folder.  ``task.nc`` holds all that a fit needs besides draws, written whole before
sampling begins: data as they were read, specification, pivot, seed and settings.  ``draws.zarr`` is
nutpie's, which writes 16 draws of a chain at a time.  ``finished.json`` comes last and says how
sampling ended; where it is missing the sampler was killed, or still runs, and the 16 draws that
were being written are not counted.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm import tree
from bayesgmm.data.observations import Data
from bayesgmm.em.result import package_version, plain_index
from bayesgmm.em.search import kinds
from bayesgmm.errors import ArgumentError, BayesgmmWarning, to_json
from bayesgmm.files import atomic
from bayesgmm.information.fixed import Fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.noise import NOISE, Region
from bayesgmm.posterior.draws import Clock, Task, optima_in
from bayesgmm.posterior.nuts import POINT, STATS
from bayesgmm.resolved import resolve
from bayesgmm.target.density import target

LAYOUT = 1  # raised when files change their meaning
_TASK, _DRAWS, _END = "task.nc", "draws.zarr", "finished.json"
_ARRAYS = ("x", "values", "weight", "center", "scale", "mean", "covariance", "probability")
_CHECKED = 16  # draws whose density is computed again
# What marks a draw as written: these are never NaN, nor 0, in a draw.
_WRITTEN = ("logp", "energy", "step_size", "mean_tree_accept", "n_steps")


@dataclass(frozen=True, eq=False)
class Stored:
    """What a store holds.

    Parameters
    ----------
    spec : GaussianMixture
    task : Task
    log_likelihood, loo : bool or None
        As `sample_posterior` was asked.
    sampled : DataTree
        As `run_nuts` returns it; the reason is ``"recovered"`` if the sampler did not end.
    """

    spec: GaussianMixture
    task: Task
    log_likelihood: bool | None
    loo: bool | None
    sampled: xr.DataTree


def draws_in(store: Path) -> Path:
    """Return where nutpie writes."""
    return store / _DRAWS


def prepare(path: Any, overwrite: bool) -> Path:
    """Return the folder of a new store, made and empty.

    Raises
    ------
    ArgumentError
        If it cannot be made, or holds anything: a store is replaced if asked, other files never.
    """
    try:
        store = Path(path)
        store.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in store.iterdir())
    except (TypeError, OSError) as error:
        raise ArgumentError("store", f"{path!r} is no folder that can be made ({error})") from None
    if others := [name for name in found if name not in (_TASK, _DRAWS, _END)]:
        raise ArgumentError("store", f"{store} holds {others[0]!r}; give a folder of its own")
    if found and not overwrite:
        raise ArgumentError(
            "store",
            f"{store} holds draws of another run; read them by bg.recover, give another folder, or "
            "pass overwrite=True",
        )
    # The mark of a whole store goes first, so that a crash leaves none with half of its files.
    for name in (_END, _TASK):
        (store / name).unlink(missing_ok=True)
    shutil.rmtree(store / _DRAWS, ignore_errors=True)
    return store


def write_task(store: Path, spec: GaussianMixture, task: Task, settings: dict[str, Any]) -> None:
    """Write what a fit needs besides draws, whole or not at all."""
    data = task.data
    values = {name: np.asarray(getattr(data, name)) for name in _ARRAYS}
    record = xr.Dataset(
        {n: (tuple(f"{n}_dim{i}" for i in range(v.ndim)), v) for n, v in values.items()}
        | {"index": ("row", plain_index(data.index))},
        attrs={
            "layout": LAYOUT,
            "bayesgmm_version": package_version(),
            "spec": spec.to_json(),
            "names": json.dumps(data.names),
            "fingerprint": data.fingerprint,
            "units": json.dumps(data.units),
            "random_seed": task.seed,
            "warnings": to_json(task.notes),
            "laps": json.dumps(task.clock.laps),
            "shape": json.dumps(task.shape),
            "settings": json.dumps(settings),
        },
    )
    groups = {"/": record, "/pivot": tree.dataset(tree.arrays(task.pivot), data.names)}
    if task.optima:
        each = [tree.arrays(p) for p in task.optima]
        stacked = {name: np.stack([one[name] for one in each]) for name in each[0]}
        groups["/optima"] = tree.dataset(stacked, data.names, ("start",))
    if (held := task.target.space.held) is not None:
        own = {name: getattr(held, name) for name in tree.DIMS}
        groups["/held"] = tree.dataset(own, data.names)
    sums = {name: {"fletcher32": True} for name, value in values.items() if value.size}
    with atomic(store / _TASK) as temporary:
        xr.DataTree.from_dict(groups).to_netcdf(temporary, engine="netcdf4", encoding={"/": sums})


def write_end(store: Path, stop_reason: str, laps: dict[str, float]) -> None:
    """Write how sampling ended: the draws are all there."""
    with atomic(store / _END) as temporary:
        temporary.write_text(json.dumps({"stop_reason": stop_reason, "laps": laps}))


def read(path: Any) -> Stored:
    """Read a store, also one whose sampler still runs.

    Raises
    ------
    ArgumentError
        If it is no store, is of another layout, has no draws yet, or is damaged.
    """
    store = Path(path)
    if not (store / _TASK).is_file():
        raise ArgumentError(
            "store", f"{store} is no store of sample_posterior: it has no file {_TASK}"
        )
    try:
        with xr.open_datatree(store / _TASK, engine="netcdf4") as opened:
            record = opened.load()
        layout = record.attrs.get("layout")
        if layout != LAYOUT:
            raise ArgumentError(
                "store",
                f"{store} has the layout {layout} of bayesgmm "
                f"{record.attrs.get('bayesgmm_version', '(unknown)')}; this version reads {LAYOUT}",
            )
        spec, task, settings = _task(record)
    except (OSError, RuntimeError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise _damaged(store / _TASK, error) from error
    end: dict[str, Any] = {}
    try:
        if (store / _END).is_file():
            end = json.loads((store / _END).read_text())
            task.clock.laps |= end["laps"]
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise _damaged(store / _END, error) from error
    sampled = draws_of(store, settings, end.get("stop_reason"))
    _check_density(store, task, sampled)
    return Stored(spec, task, settings["log_likelihood"], settings["loo"], sampled)


def _damaged(path: Path, error: Exception) -> ArgumentError:
    return ArgumentError("store", f"{path} is damaged ({type(error).__name__}: {error})")


def _task(record: xr.DataTree) -> tuple[GaussianMixture, Task, dict[str, Any]]:
    attrs = record.attrs
    spec = GaussianMixture.from_json(attrs["spec"])
    arrays: dict[str, Any] = {name: record[name].to_numpy() for name in _ARRAYS}
    data = Data(
        **arrays,
        units=json.loads(attrs.get("units", "{}")),
        names=tuple(json.loads(attrs["names"])),
        index=pd.Index(record["index"].to_numpy()),
        fingerprint=str(attrs["fingerprint"]),
    )
    shape = json.loads(attrs["shape"])
    region = Region.from_json(shape["noise"]) if shape["noise"] else None
    held = Fixed(*(record["held"][n].to_numpy() for n in tree.DIMS)) if "held" in record else None
    pivot = tree.components({name: record["pivot"][name].to_numpy() for name in tree.DIMS})
    if region is not None:
        noise = region.noise(float(record["pivot"][NOISE]))
        pivot = replace(pivot, noise=noise)
    notes = [BayesgmmWarning(**note) for note in json.loads(attrs["warnings"])]
    clock = Clock()
    clock.laps |= json.loads(attrs["laps"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)  # they are among the notes
        prior = resolve(spec, data)
    of, seed = target(spec, data, prior, held, region), int(attrs["random_seed"])
    optima, which = optima_in(record, pivot), kinds(data.probability, held)
    task = Task(data, prior, pivot, optima, of, which, shape, seed, notes, clock)
    return spec, task, json.loads(attrs["settings"])


def draws_of(store: Path, settings: dict[str, Any], stop_reason: str | None) -> xr.DataTree:
    """Return what nutpie has written, as `run_nuts` does; no reason where it did not end."""
    place = store / _DRAWS
    try:
        with xr.open_datatree(place, engine="zarr", consolidated=False) as opened:
            stats = opened["sample_stats"].to_dataset()[list(STATS)]
            chunk = stats["logp"].encoding["chunks"][1]
            shape = stats["logp"].shape
            # Beyond what there is nothing is looked for, which takes long.
            there = [int(file.name) for file in (place / "sample_stats/logp/c").glob("*/*")]
            part = {"draw": slice(0, chunk * (max(there, default=-1) + 1))}
            stats = stats.isel(part).load()
            point = opened["posterior"][POINT].isel(part).load()
    except (KeyError, FileNotFoundError) as error:
        raise ArgumentError("store", f"{store} holds no draws yet") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise _damaged(place, error) from error
    if shape != (settings["chains"], settings["draws"]):
        raise ArgumentError("store", f"{place} is not of the run that {_TASK} describes")
    is_there = np.isfinite(point.to_numpy()).all(axis=2)
    for name in _WRITTEN:
        is_there &= np.nan_to_num(stats[name].to_numpy()) != 0
    done = np.logical_and.accumulate(is_there, axis=1).sum(axis=1)
    if stop_reason is None:  # the arrays of 16 draws are not written all at once
        done = np.maximum(-(-done // chunk) - 1, 0) * chunk
    kept = np.arange(is_there.shape[1]) < done[:, None]
    stats["logp"] = stats["logp"].where(kept)
    sampled = xr.DataTree.from_dict({"posterior": point.to_dataset(), "sample_stats": stats})
    sampled.attrs["stop_reason"] = stop_reason or "recovered"
    return sampled


def _check_density(store: Path, task: Task, sampled: xr.DataTree) -> None:
    """Refuse draws of another density than was written with them, and a store without draws."""
    lp = sampled["sample_stats"]["logp"].to_numpy()
    places = np.argwhere(np.isfinite(lp))
    if not len(places):
        raise ArgumentError("store", f"{store} holds no draws yet")
    some = places[np.unique(np.linspace(0, len(places) - 1, _CHECKED).astype(int))]
    points = sampled["posterior"][POINT].to_numpy()[tuple(some.T)]
    if not np.allclose(task.target.values(points), lp[tuple(some.T)], rtol=1e-9, atol=1e-9):
        raise ArgumentError(
            "store", f"{store} is damaged: draws are not of the density that was written with them"
        )


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, unless the program has its own use for it."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
