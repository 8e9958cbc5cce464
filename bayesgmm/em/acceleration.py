r"""Quasi-Newton acceleration of EM: a pure extrapolation from the steps that EM has taken.

Near its limit an EM step is :math:`s = I_c^{-1} g`: the gradient in the metric of the complete-data
information.  In that metric the steps' derivative is symmetric, so that BFGS learns what EM does
not know, the missing information, from differences of points and of steps (Jamshidian and Jennrich
1997, with the memory of Liu and Nocedal 1989):

.. math:: \theta^+ = \theta + H s, \quad H y_i = d_i, \quad d_i = \theta_{i+1} - \theta_i, \quad
          y_i = s_i - s_{i+1}

With nothing remembered H is the identity and this is EM.  The extrapolated point is brought into
the family by the family's own M-step.  As everything is measured in the metric of
:math:`I_c(\theta)`, units, affine maps and labels change nothing.

References
----------
Jamshidian & Jennrich (1997), J. R. Statist. Soc. B 59, 569-587. Liu & Nocedal (1989), Math.
Program. 45, 503-528. Byrd, Nocedal & Schnabel (1994), Math. Program. 63, 129-156 (compact form).
Varadhan & Roland (2008), Scand. J. Statist. 35, 335-353 (SQUAREM). Henderson & Varadhan (2019), J.
Comput. Graph. Statist. 28, 834-846 (DAAREM).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.covariance import Covariance, maximise
from bayesgmm.moments import Array, Moments, Parameters

MEMORY = 5  # pairs (d, y)
_RIDGE = 1e-6  # of Anderson's mixing
# Accelerate once a step is shorter than this many standard errors, by at most the second number of
# them. Earlier, extrapolation may lead to another optimum than EM's: to a better one as often as to
# a worse, but a start should say where one ends. Chosen on mclust's table: docs/em.md.
BEGIN, REACH = 0.1, 0.5


@dataclass(frozen=True, eq=False)
class Path:
    """The last points of EM and the steps from them, oldest first: what acceleration goes by."""

    points: tuple[Array, ...] = ()
    steps: tuple[Array, ...] = ()

    def then(self, old: Parameters, new: Parameters) -> Path:
        """Return the path with the step that EM makes from ``old`` to ``new``."""
        point = _flat(old)
        points, steps = (*self.points, point), (*self.steps, _flat(new) - point)
        return Path(points[-MEMORY - 1 :], steps[-MEMORY - 1 :])

    def last(self) -> Path:
        """Return the path without what is before its last point."""
        return Path(self.points[-1:], self.steps[-1:])


@dataclass(frozen=True, eq=False)
class Bend:
    """A step, and the pairs (d, y) behind it, in the metric of the complete-data information."""

    step: Array  # (p,)
    d: Array  # (m, p)
    y: Array  # (m, p)

    @property
    def rate(self) -> float:
        """EM's rate: its largest Rayleigh quotient along the path; 1 or more where EM diverges.

        Also 1 where numbers are too large to say.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a weight may be next to nothing
            length = np.vecdot(self.d, self.d)
            moved = length > 0
            quotient = 1.0 - np.vecdot(self.d, self.y)[moved] / length[moved]
        return float(quotient.max(initial=0.0)) if np.isfinite(quotient).all() else 1.0

    def newton(self) -> Array:
        """H s, in the compact form; only directions along which the objective is concave count."""
        inner = np.vecdot(self.d, self.y)
        good = inner > 1e-10 * np.vecdot(self.d, self.d)
        d, y, s = self.d[good], self.y[good], self.step
        if not len(d):
            return s
        upper = np.triu(d @ y.T)
        a = np.linalg.solve(upper, d @ s)
        b = np.linalg.solve(upper.T, inner[good] * a + y @ (y.T @ a - s))
        return np.asarray(s - y.T @ a + d.T @ b)

    def squarem(self) -> Array | None:
        r"""SQUAREM's step, of two steps r and s of EM; None if the last move was not EM's.

        .. math:: \theta_0 + 2 a r - a^2 (r - s), \qquad a = |r| / |r - s|

        (Varadhan & Roland 2008, their third step length), seen from :math:`\theta_0 + r`.
        """
        if not len(self.d):
            return None
        r, bend = self.step + self.y[-1], self.y[-1]
        if np.linalg.norm(self.d[-1] - r) > 1e-3 * np.linalg.norm(r):
            return None
        a = np.linalg.norm(r) / np.linalg.norm(bend)
        return np.asarray((2.0 * a - 1.0) * r - a * a * bend)

    def anderson(self) -> Array:
        """Anderson's mixing: the combination of the last points whose steps cancel best.

        Damped by a ridge, as in DAAREM (Henderson & Varadhan 2019), whose restarts are here those
        of the path.
        """
        d, y, s = self.d, self.y, self.step
        inner = y @ y.T
        inner[np.diag_indices_from(inner)] += _RIDGE * inner.diagonal()
        return np.asarray(s + (d - y).T @ np.linalg.solve(inner, y @ s))

    def move(self, method: str) -> Array | None:
        """Return where a method takes the step: "quasi-newton", "squarem" or "anderson"."""
        return {"quasi-newton": self.newton, "squarem": self.squarem, "anderson": self.anderson}[
            method
        ]()


def bend(path: Path, about: Parameters, moments: Moments) -> Bend:
    """Return the path as seen from its last point, ``about``, where the sums are ``moments``."""
    points, steps = np.array(path.points), np.array(path.steps)
    flat = np.concatenate([steps[-1:], np.diff(points, axis=0), -np.diff(steps, axis=0)])
    white = _whiten(flat, about, moments)
    m = len(points) - 1
    return Bend(white[0], white[1 : 1 + m], white[1 + m :])


def extrapolate(
    bent: Bend,
    about: Parameters,
    moments: Moments,
    family: Covariance,
    method: str = "quasi-newton",
) -> Parameters | None:
    """Return where a method takes the step, a member of the family; None where that is nowhere."""
    try:
        with np.errstate(all="ignore"):
            move = bent.move(method)
    except np.linalg.LinAlgError:
        return None
    square = 0.0 if move is None else float(bent.step @ move)  # so many standard errors, squared
    if move is None or not 0.0 < square < np.inf:
        return None
    return _moved(about, moments, family, move * min(1.0, REACH / np.sqrt(square)))


def length_of(old: Parameters, new: Parameters, moments: Moments) -> float:
    """Return the length of a step in the complete-data information metric: standard errors."""
    w = old.whitening
    shift = w @ (new.mean - old.mean)[..., None]
    stretch = w @ (new.covariance - old.covariance) @ w.transpose(0, 2, 1)
    square = (
        moments.mean_count @ (shift**2).sum(axis=(1, 2))
        + 0.5 * moments.covariance_count @ (stretch**2).sum(axis=(1, 2))
        + moments.weight_count.sum() * ((new.weights - old.weights) ** 2 / _shares(old)).sum()
    )
    return float(np.sqrt(square))


def _flat(p: Parameters) -> Array:
    return np.concatenate([p.weights, p.mean.ravel(), p.covariance.ravel()])


def _cuts(about: Parameters) -> tuple[int, int]:
    """Where means and covariances begin among the flat parameters."""
    n_weights = len(about.weights)
    return n_weights, n_weights + about.k * about.d


def _shares(about: Parameters) -> Array:
    """All weights, and 1 for one that is 0, which noise may have: it stays, and divides nothing."""
    return np.where(about.weights > 0, about.weights, 1.0)


def _units(about: Parameters, moments: Moments) -> tuple[Array, Array, Array]:
    """Roots of the information about log-weights, whitened means and log-covariances."""
    weight = np.sqrt(moments.weight_count.sum() * _shares(about))
    return weight, np.sqrt(moments.mean_count), np.sqrt(0.5 * moments.covariance_count)


def _whiten(flat: Array, about: Parameters, moments: Moments) -> Array:
    """Small differences (m, p) of flat parameters in coordinates whose information is one."""
    k, d, w = about.k, about.d, about.whitening
    of_weight, of_mean, of_covariance = _units(about, moments)
    m = len(flat)
    weights, mean, covariance = np.split(flat, _cuts(about), axis=1)
    scaled = w * of_mean[:, None, None]
    turned = np.swapaxes(w * of_covariance[:, None, None], 1, 2)
    parts = (
        weights * (of_weight / _shares(about)),
        (scaled @ mean.reshape(m, k, d, 1)).reshape(m, k * d),
        (w @ covariance.reshape(m, k, d, d) @ turned).reshape(m, k * d * d),
    )
    return np.concatenate(parts, axis=1)


def _moved(about: Parameters, moments: Moments, family: Covariance, move: Array) -> Parameters:
    """The parameters at a distance: log-weights and means straight on, covariances by exp(S)."""
    k, d, factor = about.k, about.d, about.factor
    of_weight, of_mean, of_covariance = _units(about, moments)
    weights, mean, covariance = np.split(move, _cuts(about))
    slope = weights / of_weight
    weights = about.weights * np.exp(slope - slope.max())
    delta = (mean.reshape(k, d) / of_mean[:, None])[..., None]
    s = covariance.reshape(k, d, d) / of_covariance[:, None, None]
    # exp(S) to second order, which is positive definite for every S: 1/2 + (1 + S)^2 / 2.
    spread = factor @ (np.eye(d) + s + 0.5 * s @ s) @ np.swapaxes(factor, 1, 2)
    spread = 0.5 * (spread + np.swapaxes(spread, 1, 2))
    count = moments.covariance_count
    covariance = maximise(family, count, count[:, None, None] * spread, about.covariance)
    return about.moved(weights / weights.sum(), about.mean + (factor @ delta)[..., 0], covariance)
