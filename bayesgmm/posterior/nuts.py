"""nutpie: a log-posterior sampled from over-dispersed starts around its modes, draws kept."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import nutpie
import xarray as xr
from nutpie.compile_pymc import CompiledPyMCModel

from bayesgmm.errors import NumericalError
from bayesgmm.moments import Array
from bayesgmm.progress import Lines, can_draw
from bayesgmm.target.curvature import Quadratic
from bayesgmm.target.density import Target
from bayesgmm.target.whitening import Whitened, callbacks

MAX_DEPTH = 10
POINT = "point"  # the only variable of nutpie's draws: where they are in the unconstrained space
# The sampler's statistics under ArviZ's names.
STATS = {
    "logp": "lp",
    "energy": "energy",
    "diverging": "diverging",
    "depth": "depth",
    "n_steps": "n_steps",
    "step_size": "step_size",
    "maxdepth_reached": "maxdepth_reached",
    "mean_tree_accept": "acceptance_rate",
}
_OVERDISPERSION = 2.0  # chains start this many posterior sds apart, so that R-hat can see trouble


def start_around(
    places: Sequence[Quadratic], target: Target, chains: int = 1, seed: int = 0
) -> Any:
    """Return nutpie's model of a log-posterior, in coordinates in which the first place is round.

    Chains start over-dispersed around the places, in turn.

    Parameters
    ----------
    places : sequence of Quadratic
    target : Target
    chains, seed : int
        What `run_nuts` will be given; they do not matter where there is one place.
    """
    white = Whitened(target, places[0].point, places[0].root)
    turns: dict[int, int] = {}

    def initial_point(chain_seed: Any) -> Array:
        rng = np.random.default_rng(chain_seed)
        place = places[turns.get(int(chain_seed), 0) % len(places)]
        step = _OVERDISPERSION * (place.root @ rng.normal(size=target.size))
        for _ in range(20):
            value, slope = target(place.point + step)
            if np.isfinite(value) and np.isfinite(slope).all():
                return white.inverse(place.point + step)
            step *= 0.5
        return white.inverse(place.point)

    # What nutpie makes of a PyMC model, without one: two C functions and what they read.
    log_density, keep = callbacks()
    shape = (target.size,)
    model = CompiledPyMCModel(
        dims={},
        compiled_logp_func=log_density,
        compiled_expand_func=keep,
        initial_point_func=initial_point,
        shared_data={"density": white},  # whose arrays must live as long as the sampler
        shared_var_keys={},
        user_data=white.pointers,
        n_expanded=target.size,
        shape_info=([POINT], [slice(0, target.size)], [shape]),
        logp_func=None,
        expand_func=None,
        _n_dim=target.size,
        _shapes={POINT: shape},
        _coords={},
    )
    if len(places) > 1:
        turns.update({s: chain for chain, s in enumerate(seeds_of(model, chains, seed))})
    return model


def seeds_of(model: Any, chains: int, seed: int) -> list[int]:
    """Return the seed that nutpie will give the start of each chain.

    A start is not told which chain it is for, and chains start in any order. But they do not depend
    on their number: the seed of the last of i chains is the one that i - 1 chains have not.
    """
    known: list[int] = []
    for count in range(1, chains + 1):
        asked: list[int] = []

        def note(chain_seed: Any, asked: list[int] = asked) -> Array:
            asked.append(int(chain_seed))
            start: Array = model.initial_point_func(chain_seed)  # at a mode nutpie may refuse to
            return start

        asks = replace(model, initial_point_func=note)
        shortest = {"draws": 1, "tune": 1, "maxdepth": 1, "cores": 1, "progress_bar": False}
        with _quiet():
            nutpie.sample(asks, chains=count, seed=seed, **shortest)
        known += [s for s in asked if s not in known][:1]
    return known


def run_nuts(
    model: Any,
    *,
    progress_bar: bool,
    max_time: float | None = None,
    store: Path | None = None,
    **settings: Any,
) -> xr.DataTree:
    """Return nutpie's draws of a model.

    Parameters
    ----------
    model
        Of `start_around`.
    progress_bar : bool
    max_time : float, optional
        Seconds after which it stops.
    store : Path, optional
        A folder in which draws are kept as they are made.
    **settings
        Of `nutpie.sample`.

    Returns
    -------
    DataTree
        With NaN where a draw was not made; its attribute ``stop_reason`` is ``"completed"``,
        ``"interrupted"`` or ``"time limit"``.

    Raises
    ------
    NumericalError
        If it cannot start.
    """
    if progress_bar and not can_draw():
        settings |= {"progress_callback": Lines("sampling"), "progress_rate": 1000}
        progress_bar = False
    if store is not None:
        settings["zarr_store"] = nutpie.zarr_store.LocalStore(str(store), mkdir=True)
    try:
        with _quiet():
            sampler = nutpie.sample(
                model,
                maxdepth=MAX_DEPTH,
                save_warmup=False,
                progress_bar=progress_bar,
                blocking=False,
                **settings,
            )
            reason = "completed"
            try:
                sampled = sampler.wait(timeout=max_time)
            except TimeoutError:
                sampled, reason = sampler.abort(), "time limit"
            except KeyboardInterrupt:
                sampled, reason = sampler.abort(), "interrupted"
    except RuntimeError as error:
        gc.collect()  # nutpie's sampler must be gone before the process ends
        raise NumericalError(
            f"the sampler could not run: {str(error).splitlines()[0]}. Check the prior's numbers "
            "against the data's scale"
        ) from None
    sampled.attrs["stop_reason"] = reason
    return sampled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ArviZ's warning of few draws, which it takes for swapped dimensions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
        yield


def finished(sampled: xr.DataTree) -> tuple[Array, xr.Dataset]:
    """Return draws (chain, draw, size) and statistics without what an interruption left open.

    nutpie pads chains to one length with NaN. The rectangle of chains and draws that keeps most is
    taken: a chain that had hardly begun is dropped rather than the draws of the others.

    Raises
    ------
    KeyboardInterrupt, NumericalError
        If there is no draw: by Ctrl-C, or because time was up.
    """
    if "posterior" not in sampled.children:
        raise _nothing(sampled)
    stats = sampled["sample_stats"].to_dataset()
    finite = np.isfinite(stats["logp"].to_numpy())
    done = np.logical_and.accumulate(finite, axis=1).sum(axis=1)
    longest_first = np.argsort(-done, kind="stable")
    area = done[longest_first] * np.arange(1, len(done) + 1)
    best = int(np.argmax(area))
    if area[best] == 0:
        raise _nothing(sampled)
    part = {
        "chain": np.sort(longest_first[: best + 1]),
        "draw": slice(0, done[longest_first[best]]),
    }
    kept = stats[list(STATS)].rename(STATS).isel(part).load()
    return (
        sampled["posterior"][POINT].isel(part).to_numpy(),
        kept.drop_vars(["chain", "draw"], errors="ignore").drop_attrs(),
    )


def _nothing(sampled: xr.DataTree) -> BaseException:
    if sampled.attrs.get("stop_reason") != "time limit":
        return KeyboardInterrupt()
    return NumericalError(
        "no draw was made in max_time, which tuning is part of: raise max_time, or lower tune"
    )
