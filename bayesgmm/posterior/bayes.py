"""The posterior by NUTS: started around its modes, aligned to EM's labels, and judged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import xarray as xr

from bayesgmm.arguments import positive, share, whole_number
from bayesgmm.checks import warn
from bayesgmm.data.cells import Missing
from bayesgmm.errors import PosteriorWarning
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.posterior.atlas import Mode, shares
from bayesgmm.posterior.draws import Task, begin, collect, modes_of
from bayesgmm.posterior.mode_verdict import HOLDS_MASS
from bayesgmm.posterior.modes import add_modes
from bayesgmm.posterior.nuts import MAX_DEPTH, finished, run_nuts, start_around
from bayesgmm.posterior.store import (
    draws_in,
    draws_of,
    prepare,
    read,
    termination_as_interrupt,
    write_end,
    write_task,
)
from bayesgmm.posterior.verdict import posterior_verdict
from bayesgmm.progress import is_wanted
from bayesgmm.target.curvature import Quadratic, quadratic_at


def sample_posterior(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    fixed: Mapping[str, Any] | None = None,
    mle: xr.DataTree | None = None,
    draws: int = 1000,
    tune: int = 500,
    chains: int = 4,
    cores: int | None = None,
    target_accept: float = 0.9,
    log_likelihood: bool | None = None,
    loo: bool | None = None,
    random_seed: int | None = None,
    max_time: float | None = None,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
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
    missing : {"error", "drop", "marginalise"}
        As in `fit_em`: missing values are refused, their rows left out, or integrated over.
    labels : (n,) or (n, k), optional
        What is known of the rows' components, as in `fit_em`.
    fixed : mapping, optional
        Parameters that do not move, as in `fit_em`. The prior is that of the free ones given the
        fixed.
    mle : DataTree, optional
        A fit by `fit_em` of the same specification and data, from whose optima (group ``optima``)
        the posterior's modes are looked for, and whose labels the draws get. Default: it is made
        here.
    draws, tune, chains, cores, target_accept
        As in `pymc.sample`. The draws do not depend on ``cores``. Chains start around the modes
        that hold a hundredth of the mass or more, in turn.
    log_likelihood : bool, optional
        Keep the pointwise log-likelihood, n numbers per draw. Default: unless it is larger than a
        gigabyte.
    loo : bool, optional
        Compute PSIS-LOO, for ``criteria``; it needs no log-likelihood that is kept. Default: unless
        rows times draws are more than 2**28, which takes about a minute; `loo` does it afterwards.
    random_seed : int, optional
        Same seed, same draws.
    max_time : float, optional
        Seconds of sampling, tuning included, after which it stops; what was drawn is kept. Then
        ``cores`` is by default the number of chains, so that all of them have draws.
    store : path, optional
        A folder in which draws are kept as they are made, a few seconds' at most behind: if the
        process is killed, `recover` makes the fit of them. SIGTERM then is taken like Ctrl-C.
    overwrite : bool
        Whether a store that is there may be replaced.
    progressbar : bool, optional
        Default: in a terminal or a notebook. True elsewhere: a line every ten seconds.

    Returns
    -------
    xarray.DataTree
        ``posterior`` with labels aligned to EM's, ``posterior_raw`` as sampled, ``labels``,
        ``modes`` (`mode`, `combine_modes`), ``sample_stats``, ``log_likelihood``, ``criteria``, ...
        (``docs/design.md``); the verdict is in ``attrs``. After Ctrl-C, what was finished, and
        ``stop_reason`` is ``"interrupted"``; after ``max_time``, ``"time limit"``.

    Raises
    ------
    ArgumentError, NotYetSupportedError, DataError
        For bad input, naming it; for a specification with ``prior=None``.
    NumericalError
        If the sampler cannot start, or ``max_time`` was up before the first draw.

    Warns
    -----
    PosteriorWarning
        If the draws should not be relied on: which checks failed, and what to do; with code
        ``improper-posterior``, if the prior does not suit ties in the data.
    """
    refuse_other(spec)
    for name, value in (("draws", draws), ("tune", tune), ("chains", chains)):
        whole_number(name, value, least=1)
    share("target_accept", target_accept)
    if cores is not None:
        whole_number("cores", cores, least=1)
    if max_time is not None:
        positive("max_time", max_time)
    kept = None if store is None else prepare(store, overwrite)
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
    modes = modes_of(task)
    model = start_around(_places(modes, task), task.target, chains, task.seed)
    task.clock.lap("start")
    settings = {"draws": draws, "tune": tune, "chains": chains, "target_accept": target_accept}
    if kept is not None:
        write_task(kept, spec, task, settings | {"log_likelihood": log_likelihood, "loo": loo})
    with nullcontext() if kept is None else termination_as_interrupt():
        sampled = run_nuts(
            model,
            # With a time limit all chains at once: those that wait for a core would have nothing.
            cores=cores or (chains if max_time else min(chains, os.cpu_count() or 1)),
            seed=task.seed,
            progress_bar=is_wanted(progressbar),
            max_time=max_time,
            store=None if kept is None else draws_in(kept),
            **settings,
        )
        task.clock.lap("sampling")
        if kept is not None:
            stop_reason = str(sampled.attrs["stop_reason"])
            write_end(kept, stop_reason, task.clock.laps)
            sampled = draws_of(kept, settings, stop_reason)
    return _judged(spec, task, modes, sampled, log_likelihood, loo)


def recover(store: str | os.PathLike[str]) -> xr.DataTree:
    """Return the fit of the draws in a store that `sample_posterior` has begun.

    Whatever became of the sampler: it may have been killed, or still run in another process. Then
    the last draws of each chain, fewer than 32, are not there yet, and ``stop_reason`` is
    ``"recovered"``; else the fit is the one that `sample_posterior` returned.

    Parameters
    ----------
    store : path
        As given to `sample_posterior`.

    Returns
    -------
    xarray.DataTree
        As by `sample_posterior`: aligned, with its verdict.

    Raises
    ------
    ArgumentError
        If it is no store, one of another version's layout, damaged, or without draws as yet.

    Warns
    -----
    PosteriorWarning
        As `sample_posterior`.
    """
    stored = read(store)
    task, kept = stored.task, (stored.log_likelihood, stored.loo)
    return _judged(stored.spec, task, modes_of(task), stored.sampled, *kept)


def _judged(
    spec: GaussianMixture,
    task: Task,
    modes: Sequence[Mode],
    sampled: xr.DataTree,
    log_likelihood: bool | None,
    loo: bool | None,
) -> xr.DataTree:
    """Return nutpie's draws as a fit with its verdict."""
    points, stats = finished(sampled)
    fit, margin = collect(spec, task, points, stats, log_likelihood, loo)
    found = add_modes(fit, task.target, modes, task.kinds, task.seed) if modes else None
    verdict = posterior_verdict(
        *(fit[group].to_dataset() for group in ("posterior", "label_free", "sample_stats")),
        margin=margin,
        family=spec.covariance,
        max_treedepth=MAX_DEPTH,
        still=task.target.space.still,
        modes=found,
    )
    task.clock.lap("summary")
    fit.attrs |= task.attributes(verdict) | {
        "engine": "nuts",
        "stop_reason": sampled.attrs["stop_reason"],
    }
    warn(verdict, PosteriorWarning)
    return fit


def _places(modes: Sequence[Mode], task: Task) -> list[Quadratic]:
    """Return around what chains start: modes that hold mass, or EM's optimum if there is none."""
    if not modes:
        return [quadratic_at(task.target, task.target.point(task.pivot), task.pivot)]
    held = zip(modes, shares(modes), strict=True)
    return [mode.quadratic for mode, share in held if share >= HOLDS_MASS]
