r"""Draws weighted to a posterior: where they are proposed, and whether the weights stand.

A proposal is multivariate t distributions about modes, each with the size of the posterior there,

.. math:: q(x) = \sum_m a_m \, t_\nu(x \mid c_m, R_m R_m^\top),

and the weight of a draw p / q, whichever of them it is from (the balance heuristic): where modes
lie close the others are accounted for.

References
----------
Geweke (1989), Econometrica 57, 1317-1339 (t distributions about modes).  Owen & Zhou (2000), J. Am.
Statist. Assoc. 95, 135-143 (mixtures, as many draws of each as its weight says).  Vehtari, Simpson,
Gelman, Yao & Gabry (2024), J. Mach. Learn. Res. 25(72), 1-58 (Pareto smoothed importance sampling,
and its k).  Smith (1987), Ann. Statist. 15, 1174-1207 (the error of k: its variance is (1 + k)^2
over the size of the tail).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

from bayesgmm.checks import Check, Limit, Verdict
from bayesgmm.labels import ambiguous_labels
from bayesgmm.moments import Array
from bayesgmm.target.curvature import Quadratic

PARETO_K = Limit(0.7, 0.7)  # beyond, averages of weighted draws cannot be relied on
EFFECTIVE = Limit(400.0, 100.0, is_floor=True)
_DOF = 5.0  # of the t distributions; docs/posterior.md has what others do


@dataclass(frozen=True, eq=False)
class Student:
    """A multivariate t distribution about a mode, with the size of the posterior there.

    SciPy's takes the square of the root, and takes it apart again, at a loss where it is badly
    conditioned; it is the oracle of the tests.

    Parameters
    ----------
    quadratic : Quadratic
    dof : float, optional
    """

    quadratic: Quadratic
    dof: float = _DOF

    @cached_property
    def _inverse(self) -> Array:
        return np.linalg.inv(self.quadratic.root)

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Return points (count, p)."""
        normal = rng.standard_normal((count, len(self.quadratic.point)))
        z = normal * np.sqrt(self.dof / rng.chisquare(self.dof, size=(count, 1)))
        return self.quadratic.point + z @ self.quadratic.root.T

    def log_density(self, points: Array) -> Array:
        """Return the log-density at points (s, p)."""
        dof, p = self.dof, points.shape[1]
        z = (points - self.quadratic.point) @ self._inverse.T
        constant = gammaln(0.5 * (dof + p)) - gammaln(0.5 * dof) - 0.5 * p * math.log(dof * math.pi)
        constant -= np.linalg.slogdet(self.quadratic.root)[1]
        return np.asarray(constant - 0.5 * (dof + p) * np.log1p((z**2).sum(axis=1) / dof))


def proposed(
    parts: Sequence[Student], share: Array, count: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return draws from a mixture (count, p), by parts, and its log-density there.

    Of each part come as many as its share says, up to rounding, and that is the mixture.

    Parameters
    ----------
    parts : sequence of Student
    share : (m,) array
        Sums to 1.
    count : int
    rng : numpy.random.Generator
    """
    ends = np.floor(np.append(0.0, np.cumsum(share)) * count + 0.5).astype(int)
    counts = np.diff(ends)
    points = np.concatenate([part.draw(n, rng) for part, n in zip(parts, counts, strict=True)])
    with np.errstate(divide="ignore"):  # a part of which there is no draw
        log_share = np.log(counts / count)
    each = [a + part.log_density(points) for part, a in zip(parts, log_share, strict=True)]
    return points, np.asarray(logsumexp(each, axis=0))


def smoothed(log_weight: Array) -> tuple[Array, float]:
    """Return normalised weights smoothed by PSIS, and Pareto's k."""
    statistics = import_module("arviz_stats.base").array_stats  # late: it takes a second
    finite = np.isfinite(log_weight)
    weight = np.zeros(len(log_weight))
    # ArviZ takes log-likelihoods whose inverse is the weight.
    found, k = statistics.psislw(-log_weight[finite])
    weight[finite] = np.exp(found - found.max())
    return weight / weight.sum(), float(k)


def resampled(weight: Array, rng: np.random.Generator) -> Any:
    """Return the indices of equally weighted draws, by systematic resampling, in random order."""
    n = max(4, int(1.0 / float(weight @ weight)))
    place = (np.arange(n) + rng.random()) / n
    chosen = np.minimum(np.searchsorted(np.cumsum(weight), place), len(weight) - 1)
    return rng.permutation(chosen)


def judge_draws(
    k: float, count: int, worth: float, margin: Array | None, *others: Check
) -> Verdict:
    """Judge weighted draws.

    Parameters
    ----------
    k : float
        Pareto's, of their weights.
    count : int
        Of the weights that k is estimated from.
    worth : float
        How many independent draws they are worth.
    margin : array or None
        Of the labels; None if there is only one component.
    *others : Check

    Returns
    -------
    Verdict
        With checks ``pareto-k, effective-draws, ambiguous-labels`` and the others.
    """
    labels = [] if margin is None else [ambiguous_labels(margin)]
    return Verdict((_tail(k, count), _worth(worth), *labels, *others))


def _tail(k: float, count: int) -> Check:
    """Judge Pareto's k: what is not below the limit by its own standard error is in doubt."""
    tail = max(1.0, min(0.2 * count, 3.0 * math.sqrt(count)))  # as many weights as PSIS takes
    error = (1.0 + k) / math.sqrt(tail)
    status = PARETO_K.grade(k)
    evidence = f"Pareto's k of the importance weights is {k:.2f} (at most {PARETO_K.ok} is good)"
    if status == "ok" and k + error > PARETO_K.ok:
        return Check(
            "pareto-k",
            "warn",
            f"{evidence}, with a standard error of {error:.2f}",
            "Another seed may find it too large. Raise draws, which makes it more certain, or use "
            "sample_posterior.",
        )
    advice = (
        "The posterior is too unlike a normal distribution around its mode for the approximation "
        "to stand for it. Use sample_posterior."
    )
    return Check("pareto-k", status, evidence, "" if status == "ok" else advice)


def _worth(count: float) -> Check:
    status = EFFECTIVE.grade(count)
    evidence = f"the weighted draws are worth {count:.0f} independent ones"
    advice = "Summaries rest on too few draws: raise draws, or use sample_posterior."
    return Check("effective-draws", status, evidence, "" if status == "ok" else advice)
