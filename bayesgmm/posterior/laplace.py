r"""The Laplace approximation, weighted to the posterior: draws in a second, if it stands.

Near a mode the log-posterior is close to a quadratic, and the posterior to a normal distribution
around the mode with the inverse of the negative Hessian as its covariance.  Draws from q, a t
distribution of that place and size, with weights posterior / q stand for the posterior unless a few
weights carry all: that is what Pareto's k of the weights says.  Where the atlas knows of several
modes that hold mass, q is a mixture of as many.

References
----------
Tierney & Kadane (1986), J. Am. Statist. Assoc. 81, 82-86.  Geweke (1989), Econometrica 57,
1317-1339 (the t distribution, whose weights have no heavy tail where the posterior's is heavier
than a normal one's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from bayesgmm.arguments import whole_number
from bayesgmm.checks import warn
from bayesgmm.data.cells import Missing
from bayesgmm.errors import NumericalError, PosteriorWarning
from bayesgmm.evidence.copies import Region
from bayesgmm.evidence.normaliser import Estimate, is_normalised, log_normaliser
from bayesgmm.labels import Labels
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.posterior.atlas import Mode, cells, shares
from bayesgmm.posterior.draws import Task, begin, collect, modes_of
from bayesgmm.posterior.mode_verdict import HOLDS_MASS, judge_weighted
from bayesgmm.posterior.modes import describe_modes
from bayesgmm.posterior.weighting import Student, judge_draws, proposed, resampled, smoothed
from bayesgmm.target.curvature import mode_near

_LEAST = 0.05  # of the draws, for each mode: its mass is not known well before they are drawn
_FEWEST = 25  # weights in a mode's cell: fewer have no tail to smooth


def fit_laplace(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    fixed: Mapping[str, Any] | None = None,
    mle: xr.DataTree | None = None,
    draws: int = 4000,
    threads: int | None = None,
    log_likelihood: bool | None = None,
    loo: bool | None = None,
    random_seed: int | None = None,
) -> xr.DataTree:
    r"""Approximate the posterior around its modes, and say whether the approximation stands.

    Draws :math:`\theta_s` from t distributions q about the modes that hold a hundredth of the mass
    or more (one, mostly), in the unconstrained coordinates of `sample_posterior`, get weights
    :math:`p(\theta_s \mid x) / q(\theta_s)`, smoothed by PSIS.  As many as are worth the effective
    number are kept, by systematic resampling, so that the kept draws count alike.

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
        A fit by `fit_em` of the same specification and data, from whose optima the modes are
        sought, and whose labels the draws get. Default: it is made here.
    draws : int
        Draws from the approximation: one pass over the data each.
    threads : int, optional
        At most this many; default all cores. The result does not depend on it.
    log_likelihood : bool, optional
        Keep the pointwise log-likelihood; as in `sample_posterior`.
    loo : bool, optional
        Compute PSIS-LOO; as in `sample_posterior`.
    random_seed : int, optional
        Same seed, same draws.

    Returns
    -------
    xarray.DataTree
        As that of `sample_posterior`, with one chain of independent draws; in ``modes``
        (`mode`) the masses are by the weights. ``criteria`` has ``pareto_k`` and
        ``effective_draws`` of the importance weights, and ``log_evidence``, the log marginal
        likelihood by their mean, with ``log_evidence_se``: of these modes and their copies
        (`log_marginal_likelihood`). The error is understated where k is near 0.5 or above: rare
        weights that no draw had are not in it.

    Raises
    ------
    ArgumentError, NotYetSupportedError, DataError
        For bad input, naming it; for a specification with ``prior=None``.
    NumericalError
        If the log-posterior has no peak near any of EM's optima.

    Warns
    -----
    PosteriorWarning
        If the approximation does not stand: `sample_posterior` is the answer then. Or if there are
        several modes, of which means would be averages.
    """
    refuse_other(spec)
    whole_number("draws", draws, least=100)
    if threads is not None:
        whole_number("threads", threads, least=1)
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
    if not modes:
        raise _no_peak(task)
    task.clock.lap("mode")
    rng = np.random.default_rng([task.seed, 1])  # the atlas has used the other
    drawn = _weighted(task, modes, draws, rng, threads)
    weight, k = smoothed(drawn.log_weight)
    effective = 1.0 / float(weight @ weight)
    chosen = resampled(weight, rng)
    evidence = _evidence(task, drawn)
    task.clock.lap("draws")
    stats = xr.Dataset({"lp": (("chain", "draw"), drawn.value[None, chosen])})
    fit, margin = collect(spec, task, drawn.points[None, chosen], stats, log_likelihood, loo)
    among = judge_weighted(describe_modes(fit, drawn.modes, drawn.place[None, chosen]))
    count = int(np.isfinite(drawn.log_weight).sum())
    verdict = judge_draws(k, count, effective, margin, among)
    task.clock.lap("summary")
    criteria = {"pareto_k": k, "effective_draws": effective}
    if evidence is not None:
        criteria |= {"log_evidence": evidence.value, "log_evidence_se": evidence.error}
    known = fit["criteria"].to_dataset() if "criteria" in fit.children else xr.Dataset()
    fit["criteria"] = xr.DataTree(known.assign({n: ((), v) for n, v in criteria.items()}))
    fit.attrs |= task.attributes(verdict) | {"engine": "laplace", "stop_reason": "completed"}
    warn(verdict, PosteriorWarning)
    return fit


def _no_peak(task: Task) -> NumericalError:
    is_peak = mode_near(task.target, task.pivot).is_peak
    found = "was not reached" if is_peak else "is flat, or none, in some direction"
    return NumericalError(
        "there is no normal approximation: the peak of the log-posterior near EM's optimum "
        f"{found}. The data say too little about some component: use fewer components, a stronger "
        "prior, or sample_posterior"
    )


class _Weighted(NamedTuple):
    """Draws (s, p) with log-posterior and log-weight (s,), and in which mode's cell each is."""

    points: Array
    value: Array
    log_weight: Array
    place: Labels
    modes: Sequence[Mode]


def _weighted(
    task: Task,
    modes: Sequence[Mode],
    draws: int,
    rng: np.random.Generator,
    threads: int | None,
) -> _Weighted:
    """Draw around the modes that hold mass, and weigh draws and modes, the largest first."""
    held = shares(modes) >= HOLDS_MASS
    share = np.where(held, np.maximum(shares(modes), _LEAST), 0.0)
    parts = [Student(mode.quadratic) for mode in modes]
    points, log_density = proposed(parts, share / share.sum(), draws, rng)
    value = task.target.values(points, threads)
    found = task.target.parameters(points)
    place, is_own = cells(
        modes, found["weight"], found["mean"], found["covariance"], kinds=task.kinds
    )
    # Of the copies of a draw one counts; and none outside of the posterior's support.
    inside = is_own & np.isfinite(value)
    log_weight = np.where(inside, value - log_density, -math.inf)
    weighed = [
        _weighed(mode, log_weight[place == i], draws) if held[i] else mode
        for i, mode in enumerate(modes)
    ]
    order = np.argsort([-mode.log_evidence for mode in weighed], kind="stable")
    ranked = [weighed[i] for i in order]
    return _Weighted(points, value, log_weight, np.argsort(order)[place], ranked)


def _weighed(mode: Mode, log_weight: Array, draws: int) -> Mode:
    """Return a mode with its mass by the weights in its cell, of so many draws in all."""
    log_weight = log_weight[np.isfinite(log_weight)]
    if len(log_weight) < _FEWEST:
        return mode
    total = float(logsumexp(log_weight))
    weight = np.exp(log_weight - total)
    error = math.sqrt(max(0.0, float(weight @ weight) - 1.0 / draws))
    return replace(
        mode,
        log_evidence=total - math.log(draws),
        pareto_k=smoothed(log_weight)[1],
        error=error,
    )


def _evidence(task: Task, drawn: _Weighted) -> Estimate | None:
    """Return the log evidence by the mean weight in the modes' regions, and its error.

    None where the prior's normalising constant is not known.
    """
    if not is_normalised(task.target.space):
        return None
    log_weight = drawn.log_weight.copy()
    for i in np.unique(drawn.place):
        region = Region(task.target, drawn.modes[i].parameters, task.kinds)
        rows = np.flatnonzero(drawn.place == i)
        log_weight[rows[~region.holds(drawn.points[rows])]] = -math.inf
    constant = log_normaliser(task.prior, task.target.space.chart, task.seed)
    top = float(log_weight.max())
    weight = np.exp(log_weight - top) if math.isfinite(top) else np.zeros(len(log_weight))
    if not weight.any():
        return Estimate(-math.inf, math.inf)
    value = top + math.log(weight.mean()) + region.log_copies - constant.value
    error = weight.std() / weight.mean() / math.sqrt(len(log_weight))
    return Estimate(float(value), math.hypot(float(error), constant.error))
