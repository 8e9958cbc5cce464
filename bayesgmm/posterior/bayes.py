"""The posterior by NUTS: started around EM's optimum, aligned to its labels, and judged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import xarray as xr

from bayesgmm.arguments import share, whole_number
from bayesgmm.checks import warn
from bayesgmm.data.cells import Missing
from bayesgmm.errors import PosteriorWarning
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.posterior.draws import begin, collect
from bayesgmm.posterior.nuts import MAX_DEPTH, finished, run_nuts, start_around
from bayesgmm.posterior.verdict import posterior_verdict
from bayesgmm.progress import is_wanted


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
    missing : {"error", "drop", "marginalise"}
        As in `fit_em`: missing values are refused, their rows left out, or integrated over.
    labels : (n,) or (n, k), optional
        What is known of the rows' components, as in `fit_em`.
    fixed : mapping, optional
        Parameters that do not move, as in `fit_em`. The prior is that of the free ones given the
        fixed.
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
    refuse_other(spec)
    for name, value in (("draws", draws), ("tune", tune), ("chains", chains)):
        whole_number(name, value, least=1)
    share("target_accept", target_accept)
    if cores is not None:
        whole_number("cores", cores, least=1)
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
    model = start_around(task.pivot, task.target)
    task.clock.lap("start")
    sampled = run_nuts(
        model,
        draws=draws,
        tune=tune,
        chains=chains,
        cores=cores or min(chains, os.cpu_count() or 1),
        seed=task.seed,
        target_accept=target_accept,
        progress_bar=is_wanted(progressbar),
    )
    task.clock.lap("sampling")
    points, stats = finished(sampled)
    fit, margin = collect(spec, task, points, _sample_stats(stats), log_likelihood)
    verdict = posterior_verdict(
        *(fit[group].to_dataset() for group in ("posterior", "label_free", "sample_stats")),
        margin=margin,
        family=spec.covariance,
        max_treedepth=MAX_DEPTH,
        still=task.target.space.still,
    )
    task.clock.lap("summary")
    is_whole = points.shape[:2] == (chains, draws)
    fit.attrs |= task.attributes(verdict) | {
        "engine": "nuts",
        "stop_reason": "completed" if is_whole else "interrupted",
    }
    warn(verdict, PosteriorWarning)
    return fit


def _sample_stats(stats: xr.Dataset) -> xr.Dataset:
    """The sampler's statistics under ArviZ's names."""
    names = {"logp": "lp", "energy": "energy", "diverging": "diverging", "depth": "depth"}
    names |= {"n_steps": "n_steps", "step_size": "step_size"}
    names |= {"maxdepth_reached": "maxdepth_reached", "mean_tree_accept": "acceptance_rate"}
    found = {new: stats[old] for old, new in names.items() if old in stats}
    return xr.Dataset(found).drop_vars(["chain", "draw"])
