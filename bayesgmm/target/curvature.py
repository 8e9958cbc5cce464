"""How a log-posterior bends: the posterior's size at a point, and the mode near it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.moments import Array, Parameters
from bayesgmm.target.density import Target

_DIFFERENCE = 1e-4  # step of the gradient's differences, in units of a coordinate
_MOST_STEPS = 50
_WIDEST = 5.0  # a posterior that is wider, in units, has no mode to speak of
_NEAR = 1e-3  # a mode is found to so many posterior standard deviations


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The log-posterior's quadratic at a point: the posterior's size there.

    Parameters
    ----------
    point : (p,) array
    root : (p, p) array
        R with R R' the inverse of the negative Hessian; flat and rising directions have the
        largest size.
    is_peak : bool
        Whether the log-posterior bends down in every direction, none of them of largest size.
    distance : float
        Posterior standard deviations from the quadratic's peak: the Newton decrement.
    """

    point: Array
    root: Array
    is_peak: bool
    distance: float


def quadratic_at(
    target: Target, point: Array, theta: Parameters, largest: float = 1.0
) -> Quadratic:
    """Return the posterior's size at a point, by central differences of the gradient.

    Parameters
    ----------
    target : Target
    point : (p,) array
    theta : Parameters
        Near the point: a component's standard deviations are the units of its mean.
    largest : float
        In units, the largest size of the posterior in any direction; what is flatter has it.
    """
    p = len(point)
    unit = target.space.unit(theta)
    hessian = np.empty((p, p))
    for j in range(p):
        step = np.zeros(p)
        step[j] = _DIFFERENCE * unit[j]
        hessian[j] = (target(point + step)[1] - target(point - step)[1]) / (2.0 * step[j])
    scaled = -0.5 * (hessian + hessian.T) * np.outer(unit, unit)
    if not np.isfinite(scaled).all():
        return Quadratic(point, 0.1 * np.diag(unit), False, np.inf)
    value, vector = np.linalg.eigh(scaled)
    size = 1.0 / np.sqrt(np.maximum(value, largest**-2.0))
    root = unit[:, None] * vector * size
    distance = float(np.linalg.norm(root.T @ target(point)[1]))
    return Quadratic(point, root, bool(value[0] > largest**-2.0), distance)


def mode_near(target: Target, theta: Parameters) -> Quadratic:
    """Climb from parameters to the mode of a log-posterior, by Newton's method.

    Returns
    -------
    Quadratic
        Where the climb ended: at a mode if it is a peak and its distance is at most 0.001.
    """
    quadratic = quadratic_at(target, target.point(theta), theta, _WIDEST)
    for _ in range(_MOST_STEPS):
        value, slope = target(quadratic.point)
        if not np.isfinite(value) or quadratic.distance <= _NEAR:
            break
        move = quadratic.root @ (quadratic.root.T @ slope)
        for _ in range(40):
            if target(quadratic.point + move)[0] > value:
                break
            move *= 0.5
        else:  # no higher point in this direction: as far as rounding lets it climb
            break
        quadratic = quadratic_at(target, quadratic.point + move, theta, _WIDEST)
    return quadratic
