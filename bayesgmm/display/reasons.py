r"""Why an estimate and a posterior differ: one small function per cause, each with its number.

Every cause looks at the `Evidence` on one parameter and says nothing ("") unless its own number
supports it; `explain` joins those that speak.  Nothing is guessed: where no cause speaks, the text
says so and repeats the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bayesgmm.labels import AMBIGUOUS, AMBIGUOUS_LABELS
from bayesgmm.moments import Array

Z_LIMIT = 0.25
"""Posterior sds between estimate and mean; up to here a 95 % interval still covers 94 %."""

SD_RATIO_LIMIT = (0.8, 1.25)
"""Posterior sd over standard error: the two intervals' widths differ by less than a quarter."""

OVERLAP_LIMIT = 0.8
"""Common part of the two intervals: what a ratio of 0.8 or 1.25 gives about the same centre."""

R_HAT_LIMIT = 1.01
"""Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Bayesian Analysis 16, 667-718."""

BOUNDARY = 2.0
"""Standard errors between an estimate and its boundary within which a Wald interval crosses it."""

SHARE = 0.25
"""A cause is named when it accounts for at least this share of the difference."""

NOISE = 2.0
"""... and when it is at least this many Monte Carlo standard errors from nothing."""

ROWS_PER_PARAMETER = 10
"""Rule of thumb: with fewer observations per parameter, curvature at the mode says too little."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one parameter, in both fits, and of the fits.

    Parameters
    ----------
    kind : str
        "weight", "mean", "variance" or "covariance".
    estimate, se : float
        The point estimate and its standard error.
    draws : (s,) array
        All draws of the parameter.
    z, sd_ratio, overlap, r_hat, ess : float
        As in `comparison.compare`; ``ess`` is the bulk effective sample size.
    log_prior : (s,) array or None
        Log prior density of each draw; None where the prior acts on both fits, or is not known.
    loglik_gap : float
        Largest log-likelihood of a draw minus that of a maximum-likelihood estimate.
    ambiguous : float
        Share of draws whose labels are ambiguous; 0 for what has no label.
    note : str
        Why there is no standard error.
    count : float
        Expected number of observations of the component (of all, for a common parameter).
    size : int
        Number of free parameters of the component.
    """

    kind: str
    estimate: float
    se: float
    draws: Array
    z: float
    sd_ratio: float
    overlap: float
    r_hat: float
    ess: float
    log_prior: Array | None
    loglik_gap: float
    ambiguous: float
    note: str
    count: float
    size: int


def agrees(z: float, sd_ratio: float, overlap: float, r_hat: float) -> bool:
    """Return whether the two tell the same story, from draws that have converged."""
    low, high = SD_RATIO_LIMIT
    return (
        abs(z) <= Z_LIMIT
        and low <= sd_ratio <= high
        and overlap >= OVERLAP_LIMIT
        and r_hat < R_HAT_LIMIT
    )


def not_converged(e: Evidence) -> str:
    """Say that R-hat is not below its limit, or is not a number."""
    if e.r_hat < R_HAT_LIMIT:
        return ""
    value = f"{e.r_hat:.2f}" if np.isfinite(e.r_hat) else "not a number"
    return f"not converged (R-hat {value}, wanted below {R_HAT_LIMIT})"


def ambiguous_labels(e: Evidence) -> str:
    """Say that in too many draws another labelling is nearly as good."""
    if AMBIGUOUS_LABELS.grade(e.ambiguous) == "ok":
        return ""
    return f"ambiguous labels ({e.ambiguous:.1%} of draws have a margin below {AMBIGUOUS})"


def not_the_maximum(e: Evidence) -> str:
    """Say that a draw has a higher log-likelihood than what should be the maximum."""
    if not e.loglik_gap > 1e-3:
        return ""
    return f"not the maximum (a draw has a log-likelihood {e.loglik_gap:.3g} above the estimate's)"


def no_standard_error(e: Evidence) -> str:
    """Say that there is nothing to compare the posterior's width with."""
    if np.isfinite(e.se):
        return ""
    return f"no standard error ({e.note or 'Hessian not positive definite'})"


def near_boundary(e: Evidence) -> str:
    """Say that a symmetric interval cannot be right: a weight near 0 or 1, a variance near 0."""
    if e.kind not in ("weight", "variance"):
        return ""
    unit = e.se if np.isfinite(e.se) else _sd(e.draws)
    edge = 1.0 if e.kind == "weight" and e.estimate > 0.5 else 0.0
    distance = abs(e.estimate - edge) / unit if unit > 0 else np.inf
    if not distance < BOUNDARY:
        return ""
    what = "weight near its boundary" if e.kind == "weight" else "variance near zero"
    return f"{what} (the estimate is {distance:.1f} standard errors from {edge:g})"


def prior_pull(e: Evidence) -> str:
    r"""Say how far the prior moves the mean, or changes the spread, to first order.

    With the prior to the power :math:`1 - \epsilon`, a posterior mean changes by
    :math:`-\epsilon \, \mathrm{Cov}(\theta, \log p(\theta))`, and a variance in the same way; the
    number stated is that for :math:`\epsilon = 1` (Kallioinen, Paananen, Bürkner & Vehtari 2024,
    Statistics and Computing 34, 57).
    """
    if e.log_prior is None or not _sd(e.draws) > 0:
        return ""
    scaled = (e.draws - e.draws.mean()) / _sd(e.draws)
    change = -_covariance(scaled, e.log_prior)
    wider = -0.5 * _covariance(scaled**2, e.log_prior)
    noise = NOISE * _sd(e.log_prior) / np.sqrt(e.ess)
    found = []
    if abs(e.z) > Z_LIMIT and np.sign(change) == np.sign(e.z) and _accounts(change, e.z, noise):
        found.append(f"the mean would move by {change:+.2f} sd")
    gap = 1.0 / e.sd_ratio - 1.0 if e.sd_ratio > 0 else np.nan
    outside = not SD_RATIO_LIMIT[0] <= e.sd_ratio <= SD_RATIO_LIMIT[1]
    # The square of a standard normal has sd sqrt(2), and half of it is what is estimated.
    if outside and np.sign(wider) == np.sign(gap) and _accounts(wider, gap, noise / np.sqrt(2)):
        found.append(f"the sd would be {abs(wider):.0%} {'larger' if wider > 0 else 'smaller'}")
    return f"prior pull (without the prior {' and '.join(found)}, to first order)" if found else ""


def skew(e: Evidence) -> str:
    r"""Say how far the posterior's mode is from its mean.

    By Pearson's rule, mean - mode is about 3 (mean - median); the standard error of mean - median
    is about 0.76 sd / sqrt(ESS) for a normal sample.
    """
    sd = _sd(e.draws)
    if not sd > 0:
        return ""
    mode = 3.0 * float(np.median(e.draws) - e.draws.mean()) / sd
    noise = NOISE * 3.0 * 0.76 / np.sqrt(e.ess)
    shifted = abs(e.z) > Z_LIMIT
    if shifted and np.sign(mode) != np.sign(e.z):
        return ""
    if not _accounts(mode, e.z if shifted else Z_LIMIT / SHARE, noise):
        return ""
    side = "below" if mode < 0 else "above"
    return f"skew (the posterior's mode is about {abs(mode):.2f} sd {side} its mean)"


def few_observations(e: Evidence) -> str:
    """Say that a posterior wider than curvature at the mode belongs to a small component."""
    if not e.sd_ratio > SD_RATIO_LIMIT[1] or not e.count < ROWS_PER_PARAMETER * e.size:
        return ""
    return (
        f"few observations (about {e.count:.0f} for {e.size} parameters; the posterior is "
        f"{e.sd_ratio:.2f} times as wide as the standard error)"
    )


CAUSES: tuple[Callable[[Evidence], str], ...] = (
    not_converged,
    ambiguous_labels,
    not_the_maximum,
    no_standard_error,
    near_boundary,
    prior_pull,
    skew,
    few_observations,
)


def explain(e: Evidence) -> str:
    """Return the causes that the evidence supports, joined; "" where the two agree."""
    if agrees(e.z, e.sd_ratio, e.overlap, e.r_hat):
        return ""
    found = [text for cause in CAUSES if (text := cause(e))]
    if found:
        return "; ".join(found)
    return (
        f"differs, no single cause found (z {e.z:+.2f}, sd ratio {e.sd_ratio:.2f}, "
        f"overlap {e.overlap:.2f})"
    )


def _accounts(part: float, whole: float, noise: float) -> bool:
    return bool(abs(part) >= SHARE * abs(whole) and abs(part) > noise)


def _sd(x: Array) -> float:
    return float(np.std(x, ddof=1)) if len(x) > 1 else 0.0


def _covariance(x: Array, y: Array) -> float:
    return float((x - x.mean()) @ (y - y.mean()) / (len(x) - 1))
