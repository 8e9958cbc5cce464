r"""Maximum likelihood and MAP by EM: the one loop, its stopping rule, restarts, and the result.

A step is a pass over the data (`moments.accumulate`), the prior's pseudo-data added for MAP, and
the family's M-step (`covariance.maximise`).

**When it stops.**  The length of a step is measured in standard errors: with complete-data
information :math:`I_c` (from T) and step s, :math:`m = \sqrt{s^\top I_c s}`.  Steps shrink at EM's
rate :math:`\rho`, so that :math:`m / \sqrt{1 - \rho}` bounds how many of its standard errors any
scalar function of the parameters is from its limit (`Information.distance` is the same quantity,
exact).  EM stops when it is below ``tol``; then the exact one is computed, and EM goes on if it is
not.

**Acceleration.**  Where steps are short, the point that `acceleration` extrapolates to is tried
instead of EM's.  It is taken if the objective is not lower there; if it is, EM's own step is made,
and the try has cost a pass.  m is the length of EM's step in any case, and its rate the largest
Rayleigh quotient along the path, so that the rule means the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Event
from typing import Literal, get_args

import numpy as np

from bayesgmm import groups
from bayesgmm.covariance import Covariance, maximise
from bayesgmm.data.observations import Data
from bayesgmm.em.acceleration import BEGIN, Path, bend, extrapolate, length_of
from bayesgmm.em.spikes import are_spikes
from bayesgmm.em.start import Start
from bayesgmm.information.fixed import Fixed
from bayesgmm.moments import Array, Moments, Parameters, accumulate, assigned, scatter
from bayesgmm.resolved import PseudoData, pseudo_moments

# A component whose sd in some direction is below this share of the data's is singular in double
# precision: its covariance is rounding error.
_SINGULAR = 1e-12
# A component with less than half an observation has none of its own.
_EMPTY = 0.5
# A step of this many standard errors of a single observation is rounding: EM stands still.
_ROUNDING = 16 * float(np.finfo(float).eps)
_SAFETY = 0.3  # the rate is an estimate; aim this far below `tol`
# A log-likelihood is a sum with this relative rounding; lower by no more is not lower.
_SUM = 1e-13

UNUSABLE = ("singular", "empty", "tiny", "spurious")

_DRAWN = 50  # steps of stochastic EM, after which EM goes on

Acceleration = Literal["quasi-newton", "squarem", "anderson"]
ACCELERATIONS: tuple[str, ...] = get_args(Acceleration)
Assignment = Literal["soft", "hard", "stochastic"]
ASSIGNMENTS: tuple[str, ...] = get_args(Assignment)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of EM from one start, in anchored units."""

    method: str
    parameters: Parameters
    moments: Moments  # about `parameters`, the prior's included
    trace: Array  # objective before each step and after the last
    # converged, fixed point, max_iter, interrupted, unfinished, or one of UNUSABLE
    reason: str
    n_passes: int = 0  # over the data, those of rejected extrapolations included

    @property
    def objective(self) -> float:
        """Log-likelihood, plus the log prior density (up to a constant) for MAP."""
        return self.moments.loglik

    @property
    def height(self) -> float:
        """The objective to nine digits: of runs that are as high the first counts, not rounding."""
        return float(f"{self.objective:.9g}")

    @property
    def is_usable(self) -> bool:
        """Whether this may be called an optimum: neither singular nor with an empty component.

        Nor given up for better starts, nor interrupted before the first pass over the data.
        """
        return self.reason not in (*UNUSABLE, "unfinished") and len(self.trace) > 0


def m_step(
    moments: Moments, about: Parameters, family: Covariance, fixed: Fixed | None = None
) -> Parameters:
    """Return the parameters that maximise Q given the sums about the current ones."""
    mean, spread = scatter(moments, about)
    if fixed:
        mean, spread = fixed.centred(moments, about, mean, spread)
    covariance = maximise(family, moments.covariance_count, spread, about.covariance)
    new = about.moved(moments.weight_count / moments.weight_count.sum(), mean, covariance)
    return fixed.impose(new) if fixed else new


def run(
    data: Data,
    family: Covariance,
    start: Start | Run,
    *,
    prior: PseudoData | None = None,
    max_iter: int = 10_000,
    tol: float = 1e-4,
    acceleration: Acceleration | None = "quasi-newton",
    assignment: Assignment = "soft",
    fixed: Fixed | None = None,
    threads: int | None = None,
    stop: Event | None = None,
) -> Run:
    """Run EM from one start. This is the package's one loop.

    Parameters
    ----------
    data : Data
    family : Covariance
    start : Start or Run
        A run over the same data is taken up where it stopped.
    prior : PseudoData, optional
        In anchored units; adds its pseudo-data (MAP).
    max_iter : int
        Most passes over the data after the first; without rejected extrapolations, most steps.
    tol : float
        Distance to the limit, in standard errors, at which to stop.
    acceleration : {"quasi-newton", "squarem", "anderson"} or None
        None for plain EM.
    assignment : {"soft", "hard", "stochastic"}
        Of a row to components: by its responsibilities; to the most probable one (classification
        EM, whose objective is the classification likelihood); or, for the first steps, to one that
        is drawn with them.
    fixed : Fixed, optional
        What does not move.
    threads : int, optional
    stop : Event, optional
        Once it is set, the run is interrupted before its next pass.

    Returns
    -------
    Run
        With the reason for stopping. A run that meets a singular or empty component stops there.
    """
    n_passes = start.n_passes if isinstance(start, Run) else 0
    is_drawing = assignment == "stochastic" and isinstance(start, Start)
    rng = np.random.default_rng(start.seed if isinstance(start, Start) else None)

    def sums(x: Array, about: Parameters, weight: Array) -> Moments:
        if assignment == "hard" or is_drawing:
            return assigned(x, about, weight, rng if is_drawing else None)
        return accumulate(x, about, weight, diagonal=family.is_diagonal, threads=threads)

    def table(parameters: Parameters) -> Moments:
        nonlocal n_passes
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        moments = groups.table(data.groups, parameters, sums, diagonal=family.is_diagonal)
        n_passes += 1
        return moments + pseudo_moments(prior, parameters) if prior else moments

    parameters = fixed.impose(start.parameters) if fixed else start.parameters
    trouble = _trouble(parameters, data)
    if trouble:
        return Run(start.method, parameters, _no_moments(parameters), np.empty(0), trouble)
    moments = start.moments if isinstance(start, Run) else _no_moments(parameters)
    trace: list[float] = start.trace.tolist() if isinstance(start, Run) else []
    reason, last, path = "max_iter", np.inf, Path()
    try:
        if not trace:
            moments = table(parameters)
            trace.append(moments.loglik)
        top = max(trace)
        highest = (moments.loglik, parameters)
        while n_passes <= max_iter:
            if is_drawing:
                new = m_step(moments, parameters, family, fixed)
                if n_passes <= _DRAWN and moments.mean_count.min() >= 1 and not _trouble(new, data):
                    parameters, moments = new, table(new)
                    highest = max(highest, (moments.loglik, parameters), key=lambda pair: pair[0])
                else:  # on from the best that was visited
                    is_drawing, parameters = False, highest[1]
                    moments = table(parameters)
                trace.append(moments.loglik)
                top = moments.loglik
                continue
            if moments.mean_count.min() - (prior.shrinkage if prior else 0.0) < _EMPTY:
                reason = "empty"
                break
            new = m_step(moments, parameters, family, fixed)
            trouble = _trouble(new, data)
            if trouble:
                reason = trouble
                break
            length = length_of(parameters, new, moments)
            rate = min(length / last, 1.0) if last > 0 else 0.0
            last = length
            far = None
            if acceleration and assignment != "hard":
                path = path.then(parameters, new)
                if length < BEGIN and len(path.points) > 1:
                    bent = bend(path, parameters, moments)
                    rate = max(rate, bent.rate)
                    far = extrapolate(bent, parameters, moments, family, acceleration)
                    far = fixed.impose(far) if far and fixed else far
            tried = table(far) if far and not _trouble(far, data) else None
            if far and tried and tried.loglik >= top - _SUM * abs(top):
                parameters, moments, last = far, tried, np.inf
            else:
                path = path if tried is None else path.last()
                parameters, moments = new, table(new)
            trace.append(moments.loglik)
            top = max(top, moments.loglik)
            if length == 0.0:
                reason = "fixed point"
                break
            is_near = rate < 1.0 and length <= _SAFETY * tol * np.sqrt(1.0 - rate)
            if is_near and assignment != "hard":  # hard assignment has no rate, but an end
                reason = "converged"
                break
            if length <= _ROUNDING * np.sqrt(moments.weight_count.sum()):
                reason = "fixed point"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    except np.linalg.LinAlgError:  # in the columns that some rows have: `_trouble` sees all
        reason = "singular"
    is_over = reason not in ("singular", "empty", "interrupted")
    if is_over and not prior:
        if _has_tiny(moments, family):
            reason = "tiny"
        elif are_spikes(parameters, moments.mean_count, family).any():
            reason = "spurious"
    return Run(start.method, parameters, moments, np.array(trace), reason, n_passes)


def _trouble(parameters: Parameters, data: Data) -> str:
    """Why the parameters cannot be evaluated: "singular", or nothing."""
    if not np.isfinite(parameters.covariance).all():
        return "singular"
    try:
        # Two factorisations that may disagree about the last bit: both must exist.
        whitening, _ = parameters.whitening, parameters.factor
    except np.linalg.LinAlgError:
        return "singular"
    return "singular" if np.abs(whitening * data.sd).max() > 1.0 / _SINGULAR else ""


def _has_tiny(moments: Moments, family: Covariance) -> bool:
    """Whether a component that has a covariance of its own has too few observations to own it.

    With d + 1 points or fewer a whole matrix is singular, with two points so is a variance in the
    sense that matters: the likelihood has no bound near it (Day 1969, Biometrika 56, 463-474).
    Counts are sums of shares, a little less or more than a number of points: hence the halves.
    """
    if "V" not in (family.volume, family.shape) or len(moments.mean_count) == 1:
        return False  # one spectrum for all: none can be singular by itself
    d = moments.first.shape[1]
    return bool(moments.mean_count.min() < _least_count(family, d))


def _least_count(family: Covariance, d: int) -> float:
    """Return how many observations a component needs to have a spectrum of its own."""
    return 2.5 if family.orientation != "V" else d + 1.5


def unknown(found: Run) -> Run:
    """Return a run without its sums, trace and passes: those of a run over other data."""
    nothing = _no_moments(found.parameters)
    return replace(found, moments=nothing, trace=np.empty(0), n_passes=0)


def _no_moments(parameters: Parameters) -> Moments:
    k, d = parameters.k, parameters.d
    nothing = np.full(k, np.nan)
    return Moments.of_data(
        float("nan"), nothing, np.full((k, d), np.nan), np.full((k, d, d), np.nan)
    )
