r"""The modes of a posterior: climbed to from EM's optima, and how much of the mass each holds.

A mixture's posterior has modes that differ in more than labels.  EM has been to most of them: its
distinct optima, and the places next to singularities that the prior has made into something.  From
each the log-posterior is climbed; what leads to no peak is dropped, what leads to the same is one.

Mode m's share is the mass of its cell, the parameters that are nearer to it than to other modes
(`labels.distance`, so that labels do not matter), with p the posterior density in the unconstrained
coordinates and q a multivariate t distribution about the mode with the size of the posterior there:

.. math:: Z_m = \int_{C_m} p \, dx = E_q \left[ \frac{p}{q} 1_{C_m} \right]

Only labellings that the mode's own one is nearest to are counted, one of k! for each mode.  Where
chains have drawn enough in a cell, bridge sampling with these draws takes the place of this: it
knows the cell as it is, not as it looks from its top (`bridged`).

References
----------
Tierney & Kadane (1986), J. Am. Statist. Assoc. 81, 82-86.  Geweke (1989), Econometrica 57,
1317-1339 (t distributions about modes).  Vehtari, Simpson, Gelman, Yao & Gabry (2024), J. Mach.
Learn. Res. 25(72), 1-58 (Pareto's k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
from scipy.special import logsumexp

from bayesgmm.evidence.bridge import Normal, bridge, effective
from bayesgmm.evidence.copies import Flags, Region
from bayesgmm.labels import Labels, distances
from bayesgmm.moments import Array, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.posterior.weighting import Student
from bayesgmm.target.curvature import Quadratic, mode_near
from bayesgmm.target.density import Target
from bayesgmm.tree import components

PARETO_K = 0.7  # beyond, a mass by importance sampling is not reliable
_GAP = 7.0  # in log-evidence: what is further below the best mode, a thousandth, is not kept
_HOPELESS = 10.0  # in log-density for each coordinate: from further below nothing is climbed
_SAME = 1e-4  # squared Hellinger distance between two ends of a climb to one mode
_NEAR = 0.1  # standard deviations from a peak that count as having reached it
_DRAWS = 500  # from a t distribution, for each mode
_MOST = 2000  # draws in a cell that a bridge is made of
_PER_COORDINATE = 8  # fewer are too few
_FEWEST = 25  # of these in the mode's cell: fewer have no tail to smooth


@dataclass(frozen=True, eq=False)
class Mode:
    """A mode of the posterior, in unconstrained coordinates.

    Parameters
    ----------
    parameters : Parameters
        In units of the data.
    quadratic : Quadratic
    height : float
        The log-posterior there, up to the constant that all modes share.
    log_evidence : float
        Logarithm of its mass, up to the same constant; by Laplace's approximation, or better.
    pareto_k : float
        Of the importance weights; NaN where there are none.
    error : float
        Standard error of the log-evidence by bridge sampling, or by many weighted draws
        (`laplace`); NaN where it is by neither.
    """

    parameters: Parameters
    quadratic: Quadratic
    height: float
    log_evidence: float
    pareto_k: float = math.nan
    error: float = math.nan


def shares(modes: Sequence[Mode]) -> Array:
    """Return which share of the posterior's mass each mode holds, if there are no others."""
    log = np.array([mode.log_evidence for mode in modes])
    return np.exp(log - logsumexp(log))


def atlas(
    target: Target,
    pivot: Parameters,
    optima: Iterable[Parameters],
    kinds: Labels | None,
    rng: np.random.Generator,
) -> tuple[Mode, ...]:
    """Return the modes that hold some mass, the largest first; none if nothing leads to a peak.

    Parameters
    ----------
    target : Target
    pivot : Parameters
        EM's optimum.
    optima : iterable of Parameters
        Where else to climb from, labels as near to the pivot's as can be.
    kinds : (k,) integer array, optional
        Components that may have each other's labels have the same number. Default: all may.
    rng : numpy.random.Generator
    """
    found: list[Mode] = []
    least = target(target.point(pivot))[0] - _HOPELESS * target.size
    for theta in (pivot, *optima):
        if target(target.point(theta))[0] < least:
            continue
        mode = _mode(target, theta)
        if mode is not None and all(_apart(mode, other, kinds) > _SAME for other in found):
            found.append(mode)
    found = _largest(found)
    if len(found) > 1:  # Laplace's approximation is good enough for one
        found = _largest([_weighed(target, found, i, kinds, rng) for i in range(len(found))])
    return tuple(found)


def nearest(
    modes: Sequence[Mode],
    weight: Array,
    mean: Array,
    covariance: Array,
    kinds: Labels | None = None,
) -> Labels:
    """Return in which mode's cell each draw is, (...), for draws (..., k), ..., of any labels."""
    lead = weight.shape[:-1]
    w, m, c = (a.reshape(-1, *a.shape[len(lead) :]) for a in (weight, mean, covariance))
    return cells(modes, w, m, c, kinds)[0].reshape(lead)


def cells(
    modes: Sequence[Mode],
    weight: Array,
    mean: Array,
    covariance: Array,
    kinds: Labels | None = None,
) -> tuple[Labels, Flags]:
    """Return the cell of each draw, (s,), and whether its labels are nearest to that mode's own.

    Of all labellings of a draw one is, so that what is true of these draws alone is true of all.
    """
    each = [distances(weight, mean, covariance, mode.parameters, kinds) for mode in modes]
    place = np.argmin([apart for apart, _ in each], axis=0)
    order = np.array([order for _, order in each])[place, np.arange(len(place))]
    return place, np.asarray((order == np.arange(weight.shape[1])).all(axis=1))


def _mode(target: Target, theta: Parameters) -> Mode | None:
    top = mode_near(target, theta)
    height = target(top.point)[0]
    if not (top.is_peak and top.distance < _NEAR and np.isfinite(height)):
        return None
    found = target.parameters(top.point)
    noise = theta.noise and replace(theta.noise, weight=float(found[NOISE]))
    parameters = replace(components(found), noise=noise)
    volume = float(np.linalg.slogdet(top.root)[1])
    laplace = height + 0.5 * target.size * math.log(2.0 * math.pi) + volume
    return Mode(parameters, top, height, laplace)


def _apart(a: Mode, b: Mode, kinds: Labels | None) -> float:
    p = a.parameters
    own = (p.weight[None], p.mean[None], p.covariance[None])
    return float(distances(*own, b.parameters, kinds)[0][0])


def _largest(modes: Sequence[Mode]) -> list[Mode]:
    ranked = sorted(modes, key=lambda mode: -mode.log_evidence)
    return [m for m in ranked if ranked[0].log_evidence - m.log_evidence < _GAP]


def _weighed(
    target: Target,
    modes: Sequence[Mode],
    which: int,
    kinds: Labels | None,
    rng: np.random.Generator,
) -> Mode:
    """Return a mode with the mass of its cell by importance sampling."""
    mode = modes[which]
    proposal = Student(mode.quadratic)
    points = proposal.draw(_DRAWS, rng)
    log_weight = target.values(points) - proposal.log_density(points)
    draws = target.parameters(points)
    place, own = cells(modes, draws["weight"], draws["mean"], draws["covariance"], kinds)
    inside = own & (place == which) & np.isfinite(log_weight)
    if inside.sum() < _FEWEST:
        return mode
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    _, k = statistics.psislw(-log_weight[inside])
    total = float(logsumexp(log_weight[inside]))
    return replace(mode, log_evidence=total - math.log(_DRAWS), pareto_k=float(k))


def bridged(
    target: Target,
    modes: Sequence[Mode],
    place: Labels,
    draws: Mapping[str, Array],
    rng: np.random.Generator,
) -> tuple[Mode, ...]:
    """Return modes with their masses by bridge sampling, where there are draws enough in a cell.

    Parameters
    ----------
    target : Target
    modes : sequence of Mode
    place : (s,) integer array
        The cell of each draw.
    draws : mapping of str to (s, ...) array
        Of parameters, labels as they are.
    rng : numpy.random.Generator
    """
    found = []
    for which, mode in enumerate(modes):
        rows = np.flatnonzero(place == which)
        rows = rows[:: -(-len(rows) // _MOST) or 1]
        if len(rows) >= _PER_COORDINATE * target.size:
            own = {name: value[rows] for name, value in draws.items()}
            mode = _bridged(target, modes, which, own, rng)
        found.append(mode)
    return tuple(found)


def _bridged(
    target: Target,
    modes: Sequence[Mode],
    which: int,
    draws: Mapping[str, Array],
    rng: np.random.Generator,
) -> Mode:
    region = Region(target, modes[which].parameters)
    points = region.points(dict(draws))
    try:
        proposal = Normal.of(points[::2])
    except np.linalg.LinAlgError:
        return modes[which]
    points = points[1::2]
    of_draws = target.values(points) - proposal.log_density(points)
    proposed = proposal.draw(len(points), rng)
    inside = region.holds(proposed)
    at = target.parameters(proposed)
    inside &= nearest(modes, at["weight"], at["mean"], at["covariance"]) == which
    of_proposals = np.full(len(proposed), -math.inf)
    value = target.values(proposed[inside]) - proposal.log_density(proposed[inside])
    of_proposals[inside] = np.where(np.isfinite(value), value, -math.inf)
    worth = min(effective(of_draws[None]), float(len(points)))
    result = bridge(of_draws[None], of_proposals, worth)
    if not (result.converged and math.isfinite(result.log_ratio)):
        return modes[which]
    return replace(
        modes[which],
        log_evidence=result.log_ratio,
        pareto_k=math.nan,
        error=math.sqrt(result.relative_mse),
    )
