r"""Leave-one-out cross-validation of posterior draws, a block of rows at a time.

Given the other rows, draw s has the weight :math:`1 / p(x_n \mid \theta_s)`, smoothed by PSIS, and

.. math:: \mathrm{elpd}_n = \log \sum_s w_{ns} \, p(x_n \mid \theta_s), \qquad
          \mathrm{PIT}_{nf} = \sum_s w_{ns} \sum_k \pi_{ks} \,
          \Phi\!\left( \frac{x_{nf} - \mu_{ksf}}{\sigma_{ksf}} \right),

to which noise in a box along the columns adds :math:`\pi_{0s}` times the part of the box's side
that is below :math:`x_{nf}`.

Log-likelihoods are computed for some rows and all draws, used, and discarded: memory is a block
times the draws, whatever the number of rows.

A weight is a frequency: a row of weight w is w rows, of which one is left out at a time.

References
----------
Vehtari, Gelman & Gabry (2017), Statistics and Computing 27, 1413-1432.  Vehtari, Simpson, Gelman,
Yao & Gabry (2024), J. Mach. Learn. Res. 25(72), 1-58.  Gelfand, Dey & Chang (1992), Bayesian
Statistics 4, 147-167 (the transform given the other rows).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import numpy as np
import xarray as xr
from arviz_stats.utils import ELPDDataLOO
from scipy.special import logsumexp, ndtr

from bayesgmm.arguments import whole_number
from bayesgmm.checks import Check, Limit, Verdict, warn
from bayesgmm.data.observations import Data
from bayesgmm.em.result import plain_index
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.evidence.source import posterior_of, source_of
from bayesgmm.groups import with_noise_last
from bayesgmm.moments import UNWEIGHTED, Array
from bayesgmm.noise import NOISE, refuse_single_columns
from bayesgmm.numeric import kernel_ops
from bayesgmm.rows import draws_of
from bayesgmm.target.density import Target

_BLOCK = 1 << 21  # numbers of a block's log-likelihood
MOST = 1 << 28  # numbers of log-likelihood from which LOO is made without being asked: a minute
PARETO_K = Limit(0.0, 0.02)  # share of rows whose k is too high
_FEWEST = 25  # draws: fewer have no tail to smooth
_NO_TAIL = f"has fewer than {_FEWEST} draws, or draws that are all alike: no weights of rows"


class _NoTail(Exception):
    """Weights whose largest are all equal."""


def loo(post: xr.DataTree, *, threads: int | None = None) -> ELPDDataLOO:
    """Estimate the expected log predictive density by PSIS-LOO, block by block.

    What `arviz.loo` returns from the pointwise log-likelihood of the whole data, without keeping
    it. So `arviz.compare`, `arviz.plot_khat` and others take the result.

    Parameters
    ----------
    post : DataTree
        Draws by `sample_posterior` or `fit_laplace`.
    threads : int, optional
        At most this many blocks at a time; default all cores. The result does not depend on it.
        The time is about a millisecond a row for 4000 draws.

    Returns
    -------
    arviz_stats.ELPDDataLOO
        ``elpd``, ``se``, ``p``; ``elpd_i`` and ``pareto_k`` by row (obs). A row of weight w counts
        as w rows, each left out alone: ``elpd_i`` is w times what one of them has. ``pareto_k`` is
        NaN for rows of weight 0, or of which nothing is observed.

    Raises
    ------
    ArgumentError
        If ``post`` is no posterior, or its draws are fewer than 25 or all alike.

    Warns
    -----
    PosteriorWarning
        With code ``loo-not-good``, if rows have a Pareto k that is too high: which, and what to do.
    """
    if threads is not None:
        whole_number("threads", threads, least=1)
    fit, source = posterior_of("post", post), source_of("post", post)
    efficiency = relative_efficiency(fit["posterior"].to_dataset())
    found = of_draws(source.target, draws_of(fit), efficiency, threads)
    if found is None:
        raise ArgumentError("post", _NO_TAIL)
    warn(Verdict((_pareto(found),)), PosteriorWarning, ("loo", "leave-one-out estimate"))
    return found


def loo_pit(post: xr.DataTree, *, threads: int | None = None) -> xr.Dataset:
    r"""Return where each value lies in what the other rows predict for it, column by column.

    The probability integral transform of the marginal predictive distribution of a column given
    the other rows: uniform if the mixture describes the column. Sums over the components are exact,
    so that no predictive draws are needed. ::

        pit = bg.loo_pit(post)
        az.plot_ecdf_pit(
            xr.DataTree.from_dict({"/loo_pit": pit}), group="loo_pit", sample_dims=["obs"]
        )

    Parameters
    ----------
    post : DataTree
        Draws by `sample_posterior` or `fit_laplace`.
    threads : int, optional
        As in `loo`.

    Returns
    -------
    xarray.Dataset
        ``x`` (obs, feature), between 0 and 1, NaN where missing. Rows are counted once, whatever
        their weights.

    Raises
    ------
    ArgumentError
        As `loo`; if noise is not uniform in single columns
        (`bayesgmm.noise.refuse_single_columns`).
    """
    if threads is not None:
        whole_number("threads", threads, least=1)
    fit, source = posterior_of("post", post), source_of("post", post)
    region = source.target.space.region
    if region is not None:
        refuse_single_columns("post", region)
    draws = _flat(draws_of(fit))
    efficiency = relative_efficiency(fit["posterior"].to_dataset())

    def one(rows: Data, loglik: Array, share: Array) -> Array:
        weight = np.exp(_smoothed(loglik, share, efficiency)[0])
        # Rows of which something is known: predicted given that.
        k = source.pivot.k
        plausible = rows.probability if len(rows.probability) else np.ones((1, k))
        total = plausible @ draws["weight"].T
        of_noise = np.zeros((1, 1))
        if region is not None:
            plausible = with_noise_last(plausible)
            of_noise = plausible[:, k, None] * draws[NOISE]
            total = plausible[:, :k] @ draws["weight"].T + of_noise
        found = np.empty(rows.values.shape)
        for f in range(rows.d):
            below = np.zeros(loglik.shape)
            if region is not None:
                below += of_noise * region.below(rows.values[:, f, None], f)
            for j in range(k):
                sd = np.sqrt(draws["covariance"][:, j, f, f])
                z = (rows.values[:, f, None] - draws["mean"][:, j, f]) / sd
                below += plausible[:, j, None] * draws["weight"][:, j] * ndtr(z)
            found[:, f] = (weight * below / total).sum(axis=1)
        return np.clip(found, 0.0, 1.0)

    parts = _by_blocks(one, source.target, draws, threads)
    if parts is None:
        raise ArgumentError("post", _NO_TAIL)
    x = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature")
    return xr.Dataset({"x": x.copy(data=np.concatenate(parts))})


def of_draws(
    target: Target,
    draws: dict[str, Array],
    efficiency: float,
    threads: int | None = None,
    known: Array | None = None,
) -> ELPDDataLOO | None:
    """Return PSIS-LOO of draws (chain, draw, ...) by name; None where there is no tail to smooth.

    Parameters
    ----------
    target : Target
        With the data.
    draws : dict of str to array
    efficiency : float
        Of `relative_efficiency`.
    threads : int, optional
    known : (s, n) array, optional
        The log-likelihood of every row, once, if it is at hand.
    """
    flat, data = _flat(draws), target.data

    def one(rows: Data, loglik: Array, share: Array) -> Array:
        log_weight, k = _smoothed(loglik, share, efficiency)
        elpd = logsumexp(log_weight + loglik, axis=1)
        lppd = logsumexp(loglik, axis=1) - np.log(loglik.shape[1])
        return np.column_stack([elpd, lppd - elpd, k])

    parts = _by_blocks(one, target, flat, threads, known)
    if parts is None:
        return None
    elpd, p, k = np.concatenate(parts).T
    if np.isnan(k).all():
        return None
    weight = data.weight if len(data.weight) else np.ones(data.n)
    total = float(weight.sum())
    square = float(weight @ (elpd - weight @ elpd / total) ** 2)
    n_draws = len(flat["weight"])
    good = min(1.0 - 1.0 / np.log10(n_draws), 0.7)
    index = {"obs": plain_index(data.index)}
    return ELPDDataLOO(
        elpd=float((weight * elpd).sum()),
        se=math.sqrt(square * total / (total - 1.0)) if total > 1.0 else math.nan,
        p=float((weight * p).sum()),
        n_samples=n_draws,
        n_data_points=data.n,
        scale="log",
        warning=bool((k > good).any()),
        good_k=good,
        elpd_i=xr.DataArray(weight * elpd, index, ("obs",), name="x"),
        pareto_k=xr.DataArray(k, index, ("obs",), name="pareto_shape"),
    )


def relative_efficiency(posterior: xr.Dataset) -> float:
    """Return what a draw is worth beside an independent one: ArviZ's mean over all parameters."""
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    if chains == 1:
        return 1.0
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    worth = [
        np.ravel(statistics.ess(np.moveaxis(values.to_numpy(), (0, 1), (-2, -1)), method="mean"))
        for values in (posterior[name].transpose("chain", "draw", ...) for name in posterior)
    ]
    return float(np.concatenate(worth).mean() / (chains * draws))


def log_likelihoods(target: Target, flat: Mapping[str, Array]) -> Array:
    """Log-likelihood of every row, times its weight, in draws (s, ...): (s, n)."""
    data = target.data
    rows = np.empty((len(flat["weight"]), data.n))
    known = target.space.layout(data).arrays
    is_complete = len(known[0]) == 0  # the whole of `pointwise` takes long to compile
    for i, row in enumerate(rows):
        theta = target.space.widened({name: value[i] for name, value in flat.items()})
        if is_complete:
            row[:] = kernel_ops.of_complete_rows(data.values, data.weight, *theta, False)
        else:
            row[:] = kernel_ops.pointwise(data.values, data.weight, *known, *theta, False)
    return rows


def _flat(draws: dict[str, Array]) -> dict[str, Array]:
    return {name: v.reshape(-1, *v.shape[2:]) for name, v in draws.items()}


def _by_blocks(
    function: Callable[[Data, Array, Array], Array],
    target: Target,
    flat: dict[str, Array],
    threads: int | None,
    known: Array | None = None,
) -> list[Array] | None:
    """Apply a function to blocks of rows, their log-likelihood, and the share that is left out.

    None where there is no tail to smooth.
    """
    draws, data = len(flat["weight"]), target.data
    if draws < _FEWEST:
        return None
    size = max(1, _BLOCK // draws)
    share = np.minimum(data.weight, 1.0) if len(data.weight) else np.ones(data.n)
    one_each = data.with_weight(UNWEIGHTED)

    def block(begin: int) -> Array:
        index = np.arange(begin, min(begin + size, data.n))
        part = one_each.rows(index)
        if known is None:
            loglik = log_likelihoods(replace(target, data=part), flat)
        else:
            loglik = known[:, index]
        return function(part, np.ascontiguousarray(loglik.T), share[index])

    # ArviZ leaves a lazy JAX in `sys.modules`, which the first of SciPy's functions loads: several
    # threads at once would find it half loaded.
    logsumexp(np.zeros(1))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        try:
            return list(pool.map(block, range(0, data.n, size)))
        except _NoTail:
            return None


def _smoothed(loglik: Array, share: Array, efficiency: float) -> tuple[Array, Array]:
    """Return log-weights (n, draws) of the draws without a share of each row, and Pareto's k."""
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    log_weight, k = np.full(loglik.shape, -np.log(loglik.shape[1])), np.full(len(loglik), np.nan)
    # Without a row that is equally probable in all draws nothing changes.
    counted = np.flatnonzero((share > 0.0) & (np.ptp(loglik, axis=1) > 0.0))
    if len(counted):
        ratio = loglik[counted] * share[counted, None]
        try:
            log_weight[counted], k[counted] = statistics.psislw(ratio, r_eff=efficiency, axis=-1)
        except ValueError:  # ArviZ's word for equal values
            raise _NoTail from None
    return log_weight, k


def _pareto(found: ELPDDataLOO) -> Check:
    k = found.pareto_k
    high = k[k.to_numpy() > found.good_k]
    evidence = f"Pareto's k is above {found.good_k:.2f} for {high.size} of {k.size} rows"
    if not high.size:
        return Check("pareto-k", "ok", evidence)
    worst = high.sortby(-high)[:3]
    named = ", ".join(
        f"{row} (k {value:.2f})"
        for row, value in zip(worst["obs"].to_numpy(), worst.to_numpy(), strict=True)
    )
    return Check(
        "pareto-k",
        PARETO_K.grade(high.size / k.size),
        f"{evidence}, most for {named}",
        "The posterior without such a row is too unlike the one with it: a component may rest on "
        "the row. What the estimate says of it is too good; for the exact value sample without the "
        "row and take bg.score of it. Look at the row, or use fewer components.",
    )
