r"""The highest likelihood with one quantity held: Newton's method on the surface f = c.

First and second derivatives of the likelihood are exact, in the family's local coordinates around
each point (`coordinates`).  With :math:`a = \nabla f`, the observed information I, the gradient g
and Z a basis of the directions in which f stays, to first order, a step is

.. math:: Z (Z^\top I Z)^{-1} Z^\top g

with eigenvalues made positive, followed by one back onto the surface, and shortened until the
likelihood does not fall.  The curvature of f itself is left out of the matrix, as on its scale
(`quantities`) it is small: that costs steps, no accuracy.

References
----------
Nocedal & Wright (2006), Numerical Optimization, 2nd ed., sections 18.3 and 18.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.errors import ArgumentError, NumericalError
from bayesgmm.inference.estimate import Estimate
from bayesgmm.inference.quantities import Quantities
from bayesgmm.information.coordinates import Chart, slots
from bayesgmm.information.fixed import Part
from bayesgmm.moments import Array, Moments, Parameters

_TOL = 1e-4  # Newton decrement at which a constrained maximum is reached: 5e-9 in log-likelihood
_REACH = 2.0  # longest step, in standard errors
_STEPS, _HALVINGS = 60, 25


@dataclass(frozen=True, eq=False)
class Point:
    """Parameters with the objective and the quantity around them.

    Parameters
    ----------
    chart : Chart or Part
        Around them, of what is free.
    moments : Moments
        Sums about the parameters.
    y : float
        The quantity, on its scale.
    step : (p,) array
        Towards the highest objective with this y.
    decrement : float
        How far that is, in standard errors.
    across : (p,) array
        The direction in which y changes most, per unit of y.
    along : (p,) array
        The direction in which the curve goes on, per unit of y.
    slope : float
        Derivative of the curve by y.
    curvature : float
        Minus its second derivative by y, but for that of y itself.
    """

    chart: Chart | Part
    moments: Moments
    y: float
    step: Array
    decrement: float
    across: Array
    along: Array
    slope: float
    curvature: float

    @property
    def parameters(self) -> Parameters:
        """The parameters, in anchored units."""
        return self.chart.about

    @property
    def objective(self) -> float:
        """Log-likelihood, or log posterior density."""
        return self.moments.loglik


@dataclass(frozen=True, eq=False)
class Problem:
    """What is maximised, and what is held.

    Parameters
    ----------
    estimate : Estimate
    quantity : Quantities
        One.
    """

    estimate: Estimate
    quantity: Quantities

    def y(self, parameters: Parameters) -> float:
        """Return the quantity on its scale."""
        return float(self.quantity.on_scale(parameters)[0])

    def sums(self, parameters: Parameters) -> Moments | None:
        """Return the sums about parameters; None where a covariance is singular."""
        try:
            moments = self.estimate.sums(parameters)
        except np.linalg.LinAlgError:
            return None
        return moments if np.isfinite(moments.loglik) else None

    def top(self, parameters: Parameters) -> Point:
        """Return the maximum that the estimate is at, to the last digits."""
        moments = self.estimate.sums(parameters)
        first = moments.loglik
        for _ in range(20):
            information = self.estimate.information(parameters, moments)
            if information.covariance is None or not information.distance < 1.0:
                break
            if information.distance < 1e-6:
                return self.point(parameters, moments)
            chart = self.estimate.chart(parameters)
            tried = chart.at(information.covariance @ information.gradient)
            new = self.estimate.sums(tried)
            if new.loglik < moments.loglik - 1e-12 * abs(moments.loglik):
                if information.distance < 1e-3:  # rounding
                    return self.point(parameters, moments)
                break
            parameters, moments = tried, new
        raise NumericalError(
            "the estimate is no strict maximum, so that there is nothing to profile around "
            f"(log-likelihood {first:.6g}): the Hessian is not negative definite, or the fit had "
            "not converged"
        )

    def point(self, parameters: Parameters, moments: Moments) -> Point:
        """Return a point of the surface with its derivatives."""
        chart = self.estimate.chart(parameters)
        information = self.estimate.information(parameters, moments)
        unit = 1.0 / np.sqrt(_complete(chart, moments))
        gradient = unit * information.gradient
        matrix = information.matrix * np.outer(unit, unit)
        a = unit * self.quantity.slope(chart)[0]
        square = float(a @ a)
        if not 0.0 < square < np.inf:
            raise ArgumentError("parameter", "does not change with what is free in the fit")
        within = np.linalg.qr(a[:, None], mode="complete")[0][:, 1:]
        value, vector = np.linalg.eigh(within.T @ matrix @ within)
        # In units of the complete-data information: what is below is rounding, or no peak.
        value = np.maximum(np.abs(value), 1e-9)
        basis = within @ vector
        pull = basis.T @ gradient
        across = a / square
        along = across - basis @ ((basis.T @ matrix @ across) / value)
        return Point(
            chart,
            moments,
            self.y(parameters),
            unit * (basis @ (pull / value)),
            float(np.sqrt((pull**2 / value).sum())),
            unit * across,
            unit * along,
            float(gradient @ a) / square,
            float(along @ matrix @ along),
        )

    def onto(self, here: Point, step: Array, target: float, tol: float) -> Parameters | None:
        """Return parameters on the surface y = target near a step from here; None if not found."""
        shift, last = 0.0, None
        for _ in range(30):
            with np.errstate(all="ignore"):
                parameters = here.chart.at(step + shift * here.across)
                gap = target - self.y(parameters)
            if not np.isfinite(gap):
                return None
            if abs(gap) <= tol:
                return parameters
            rate = 1.0
            if last is not None and shift != last[0]:
                rate = (last[1] - gap) / (shift - last[0])
            last = (shift, gap)
            shift += gap / (rate if rate > 0.1 else 1.0)
        return None

    def reach(self, here: Point, target: float, tol: float) -> Point | None:
        """Return the constrained maximum at y = target, from a neighbouring one; None if lost."""
        start = self.onto(here, here.along * (target - here.y), target, tol)
        moments = self.sums(start) if start else None
        if start is None or moments is None:
            return None
        here = self.point(start, moments)
        for _ in range(_STEPS):
            if here.decrement <= _TOL:
                return here
            better = self._higher(here, target, tol)
            if better is None:
                return here if here.decrement <= 100 * _TOL else None
            here = better
        return None

    def _higher(self, here: Point, target: float, tol: float) -> Point | None:
        least = here.objective - 1e-13 * abs(here.objective)
        length = min(1.0, _REACH / here.decrement)
        for _ in range(_HALVINGS):
            tried = self.onto(here, length * here.step, target, tol)
            moments = self.sums(tried) if tried else None
            if tried is not None and moments is not None and moments.loglik >= least:
                return self.point(tried, moments)
            length *= 0.5
        return None


def _complete(chart: Chart | Part, moments: Moments) -> Array:
    """Diagonal of the complete-data information, up to what sums about another place add."""
    p, q = chart.about, len(chart.basis)
    alpha, delta, s = slots(p.k, p.d, q)
    full = np.zeros(len(chart.tangent))
    by_weight = moments.weight_count.sum() * p.weights * (1.0 - p.weights)
    full[alpha], full[p.k * (1 + p.d + q) :] = by_weight[: p.k], by_weight[p.k :]
    full[delta] = moments.mean_count[:, None]
    size = (chart.basis**2).sum(axis=(1, 2))
    full[s] = 0.5 * moments.covariance_count[:, None] * size
    return np.asarray(full @ chart.tangent**2)
