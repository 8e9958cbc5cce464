r"""The Laplace approximation, weighted to the posterior: draws in a second, if it stands.

Near a mode the log-posterior is close to a quadratic, and the posterior to a normal distribution
q around the mode with the inverse of the negative Hessian as its covariance.  Draws from q with
weights posterior / q stand for the posterior unless a few weights carry all: that is what Pareto's
k of the weights says.  It is local: a posterior with other modes is not seen as a whole.

References
----------
Tierney & Kadane (1986), J. Am. Statist. Assoc. 81, 82-86.  Vehtari, Simpson, Gelman, Yao & Gabry
(2024), J. Mach. Learn. Res. 25(72), 1-58 (Pareto smoothed importance sampling, and its k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm.arguments import whole_number
from bayesgmm.checks import Check, Limit, Verdict, warn
from bayesgmm.data.cells import Missing
from bayesgmm.errors import NumericalError, PosteriorWarning
from bayesgmm.evidence.copies import Region
from bayesgmm.evidence.normaliser import Estimate, is_normalised, log_normaliser
from bayesgmm.labels import ambiguous_labels
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.posterior.draws import Task, begin, collect
from bayesgmm.target.curvature import Quadratic, mode_near
from bayesgmm.target.density import Target

PARETO_K = Limit(0.7, 0.7)  # beyond, averages of weighted draws cannot be relied on
EFFECTIVE = Limit(400.0, 100.0, is_floor=True)


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
    r"""Approximate the posterior at EM's optimum, and say whether the approximation stands.

    Draws :math:`\theta_s` from the normal distribution q at the mode, in the unconstrained
    coordinates of `sample_posterior`, get weights :math:`p(\theta_s \mid x) / q(\theta_s)`,
    smoothed by PSIS.  As many as are worth the effective number are kept, by systematic
    resampling, so that the kept draws count alike.

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
        A fit by `fit_em` of the same specification and data, from which the mode is sought and
        whose labels the draws get. Default: it is made here.
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
        As that of `sample_posterior`, with one chain of independent draws; ``criteria`` has
        ``pareto_k`` and ``effective_draws`` of the importance weights, and ``log_evidence``, the
        log marginal likelihood by their mean, with ``log_evidence_se``: of this mode and its
        copies (`log_marginal_likelihood`). The error is understated where k is near 0.5 or above:
        rare weights that no draw had are not in it.

    Raises
    ------
    ArgumentError, NotYetSupportedError, DataError
        For bad input, naming it; for a specification with ``prior=None``.
    NumericalError
        If the log-posterior has no peak near EM's optimum.

    Warns
    -----
    PosteriorWarning
        If the approximation does not stand: `sample_posterior` is the answer then.
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
    mode = _peak(mode_near(task.target, task.pivot))
    task.clock.lap("mode")
    rng = np.random.default_rng(task.seed)
    points, value, log_weight = _weighted(task.target, mode, draws, rng, threads)
    weight, k = _smoothed(log_weight)
    effective = 1.0 / float(weight @ weight)
    chosen = _resampled(weight, rng)
    evidence = _evidence(task, mode, points, log_weight)
    task.clock.lap("draws")
    stats = xr.Dataset({"lp": (("chain", "draw"), value[None, chosen])})
    fit, margin = collect(spec, task, points[None, chosen], stats, log_likelihood, loo)
    verdict = Verdict(
        (
            _pareto(k),
            _effective(effective),
            *([] if margin is None else [ambiguous_labels(margin)]),
        )
    )
    task.clock.lap("summary")
    criteria = {"pareto_k": k, "effective_draws": effective}
    if evidence is not None:
        criteria |= {"log_evidence": evidence.value, "log_evidence_se": evidence.error}
    found = fit["criteria"].to_dataset() if "criteria" in fit.children else xr.Dataset()
    fit["criteria"] = xr.DataTree(found.assign({n: ((), v) for n, v in criteria.items()}))
    fit.attrs |= task.attributes(verdict) | {"engine": "laplace", "stop_reason": "completed"}
    warn(verdict, PosteriorWarning)
    return fit


def _peak(quadratic: Quadratic) -> Quadratic:
    if quadratic.is_peak and quadratic.distance < 0.1:
        return quadratic
    found = "was not reached" if quadratic.is_peak else "is flat, or none, in some direction"
    raise NumericalError(
        "there is no normal approximation: the peak of the log-posterior near EM's optimum "
        f"{found}. The data say too little about some component: use fewer components, a stronger "
        "prior, or sample_posterior"
    )


def _weighted(
    target: Target, mode: Quadratic, draws: int, rng: np.random.Generator, threads: int | None
) -> tuple[Array, Array, Array]:
    """Return draws from the approximation, their log-posterior, and their log-weights."""
    z = rng.standard_normal((draws, target.size))
    points = mode.point + z @ mode.root.T
    value = target.values(points, threads)
    value[~np.isfinite(value)] = -math.inf  # outside of the posterior's support
    return points, value, value + 0.5 * (z**2).sum(axis=1)


def _evidence(task: Task, mode: Quadratic, points: Array, log_weight: Array) -> Estimate | None:
    """Return the log evidence by the mean weight in the pivot's region, and its error.

    None where the prior's normalising constant is not known.
    """
    if not is_normalised(task.target.space):
        return None
    region = Region(task.target, task.pivot, task.kinds)
    inside = np.where(region.holds(points), log_weight, -math.inf)
    constant = log_normaliser(task.prior, task.target.space.chart, task.seed)
    n, p = points.shape
    top = float(inside.max())
    weight = np.exp(inside - top) if math.isfinite(top) else np.zeros(n)
    if not weight.any():
        return Estimate(-math.inf, math.inf)
    log_volume = 0.5 * p * math.log(2.0 * math.pi) + np.linalg.slogdet(mode.root)[1]
    value = top + math.log(weight.mean()) + log_volume + region.log_copies - constant.value
    error = weight.std() / weight.mean() / math.sqrt(n)
    return Estimate(float(value), math.hypot(float(error), constant.error))


def _smoothed(log_weight: Array) -> tuple[Array, float]:
    """Return normalised weights smoothed by PSIS, and Pareto's k."""
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    finite = np.isfinite(log_weight)
    weight = np.zeros(len(log_weight))
    # ArviZ takes log-likelihoods whose inverse is the weight.
    smoothed, k = statistics.psislw(-log_weight[finite])
    weight[finite] = np.exp(smoothed - smoothed.max())
    return weight / weight.sum(), float(k)


def _resampled(weight: Array, rng: np.random.Generator) -> Any:
    """Return the indices of equally weighted draws, by systematic resampling, in random order."""
    n = max(4, int(1.0 / float(weight @ weight)))
    place = (np.arange(n) + rng.random()) / n
    chosen = np.minimum(np.searchsorted(np.cumsum(weight), place), len(weight) - 1)
    return rng.permutation(chosen)


def _pareto(k: float) -> Check:
    status = PARETO_K.grade(k)
    evidence = f"Pareto's k of the importance weights is {k:.2f} (at most {PARETO_K.ok} is good)"
    advice = (
        "The posterior is too unlike a normal distribution around its mode for the approximation "
        "to stand for it. Use sample_posterior."
    )
    return Check("pareto-k", status, evidence, "" if status == "ok" else advice)


def _effective(count: float) -> Check:
    status = EFFECTIVE.grade(count)
    evidence = f"the weighted draws are worth {count:.0f} independent ones"
    advice = "Summaries rest on too few draws: raise draws, or use sample_posterior."
    return Check("effective-draws", status, evidence, "" if status == "ok" else advice)
