r"""Profile likelihood: how far a quantity can be moved before the likelihood says no.

.. math:: \ell_p(c) = \max \{ \ell(\theta) : f(\theta) = c \}, \qquad
          \{ c : \ell(\hat\theta) - \ell_p(c) \le \tfrac12 \chi^2_{1, 1-\alpha} \}

is an interval for f without any claim that the estimate is nearly normal, and does not depend on
how f is written.  The curve is followed outwards from the estimate: each constrained maximum
(`constrained`) starts where the last one says that the next one is, to first order.

References
----------
Venzon & Moolgavkar (1988), Appl. Statist. 37, 87-94 (profile likelihood intervals).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtri

from bayesgmm import tree
from bayesgmm.arguments import share
from bayesgmm.checks import Check, Verdict, warn
from bayesgmm.errors import ArgumentError, FitWarning
from bayesgmm.inference import quantities
from bayesgmm.inference.constrained import Point, Problem
from bayesgmm.inference.estimate import Estimate, estimate_of
from bayesgmm.inference.quantities import Quantities
from bayesgmm.moments import Parameters
from bayesgmm.rows import parameter_rows

POINTS = 4  # of the curve on each side, up to the bound, where it is nearly a parabola
_ROOT = 1e-6  # how near to the bound, in signed roots (standard errors)
_STEPS = 60  # on one side
_EMPTY = 0.01  # observations of a component that has left
_FAR = 1e4  # standard errors
_UP = 1e-6  # in log-likelihood: so much above the estimate is another, higher optimum


def profile(
    fit: xr.DataTree,
    parameter: str | Callable[[Parameters], float],
    *,
    scale: str = "identity",
    ci_prob: float = 0.95,
) -> xr.Dataset:
    r"""Return the profile likelihood of one quantity, and the interval that it gives.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`, converged, with soft assignment. What it holds fixed stays so. For a MAP fit,
        all is said of the posterior density in place of the likelihood.
    parameter : str or callable
        A label of `summary` or of `derived`, as ``"mean[0, waiting]"``, ``"weight[0]"``,
        ``"covariance[1, a, b]"``, ``"sd[1, a]"``, ``"correlation[0, a, b]"``; or a smooth function
        from `Parameters` in units of the data to a number.
    scale : {"identity", "log", "logit", "fisher-z"}
        On which a function is nearly normal. The interval does not depend on it, but steps do.
    ci_prob : float
        Probability of the interval.

    Returns
    -------
    Dataset
        Along ``point``: ``value``, ``loglik`` (for MAP the log posterior density up to a constant),
        ``signed_root`` (:math:`\pm\sqrt{2(\hat\ell - \ell_p)}`, a straight line where the
        estimate is normal), and the constrained maxima ``weight, mean, covariance``. And
        ``estimate, lower, upper``, with ``se, wald_lower, wald_upper`` by the delta method with
        the observed information, symmetric on the scale. A bound is infinite, or on the boundary,
        where the likelihood does not fall far enough, and NaN where the curve could not be
        followed or leads to another optimum; ``attrs["note"]`` says which.

    Raises
    ------
    ArgumentError
        If an argument is wrong or names nothing, or what is fixed, or the function returns no
        finite number.
    NumericalError
        If the fit is no strict maximum of the likelihood.

    Warns
    -----
    FitWarning
        If a bound was not found, or there is a higher optimum than the estimate.
    """
    share("ci_prob", ci_prob)
    estimate = estimate_of(fit)
    problem = Problem(estimate, _asked(estimate, parameter, scale))
    top = problem.top(estimate.parameters)
    bound = float(ndtri(0.5 + 0.5 * ci_prob))
    lower, upper = (_Walk(problem, top, sign, bound).side() for sign in (-1.0, 1.0))
    return _dataset(problem, top, lower, upper, ci_prob)


def _asked(estimate: Estimate, parameter: Any, scale: str) -> Quantities:
    data = estimate.data
    if not isinstance(parameter, str):
        found = quantities.of_function(parameter, scale, data, estimate.parameters)
        if len(found.labels) != 1:
            raise ArgumentError("parameter", f"returns {len(found.labels)} numbers, not one")
        return found
    rows = parameter_rows(tree.spec_of(estimate.fit), data.names)
    has_noise = estimate.parameters.noise is not None
    still = estimate.held.still(has_noise=has_noise) if estimate.held else {}
    for row in rows:
        if row.label == parameter and row.variable in still and still[row.variable][row.at]:
            raise ArgumentError("parameter", f"{parameter} is fixed in this fit: it has no profile")
    return quantities.together([quantities.named(parameter, rows, data)])


# From the estimate outwards


@dataclass(frozen=True, eq=False)
class _Side:
    """One half of the curve, without the estimate, and where it ends.

    The bound is on the scale of the quantity: NaN where there is none, infinite where none is
    needed; the note says why. Where the curve does not fall all the way, `rise` says so.
    """

    points: list[Point]
    bound: float
    note: str = ""
    rise: str = ""

    @property
    def remarks(self) -> str:
        """All that is to be said."""
        return "; ".join(text for text in (self.rise, self.note) if text)


@dataclass(frozen=True, eq=False)
class _Walk:
    """A walk along the curve in one direction, to where its root is z."""

    problem: Problem
    top: Point
    sign: float
    z: float

    @property
    def spread(self) -> float:
        """The quantity's standard error, on its scale."""
        return float(1.0 / np.sqrt(self.top.curvature))

    def drop(self, point: Point) -> float:
        return self.top.objective - point.objective

    def root(self, point: Point) -> float:
        return float(np.sqrt(max(2.0 * self.drop(point), 0.0)))

    def rate(self, point: Point) -> float:
        """Growth of the root with the quantity, outwards."""
        root = self.root(point)
        return -self.sign * point.slope / root if root > 0 else 1.0 / self.spread

    def reach(self, here: Point, y: float) -> Point | None:
        return self.problem.reach(here, y, 1e-9 * self.spread)

    def side(self) -> _Side:
        """Go on until the bound is behind, then find it."""
        here, points, rise = self.top, list[Point](), ""
        pace = self.z / POINTS
        stride = pace * self.spread
        for _ in range(_STEPS):
            found = self.next(here, stride)
            if found is None:
                return _Side(points, np.nan, f"cannot be followed beyond {self.value(here)}")
            points.append(found)
            if self.drop(found) < -_UP:
                text = (
                    f"is {-self.drop(found):.3g} above the log-likelihood of the estimate at "
                    f"{self.value(found)}: the estimate is not the highest optimum"
                )
                return _Side(points, np.nan, text)
            if found.objective > here.objective + _UP and not rise:
                rise = f"rises again at {self.value(found)}, towards another optimum"
            if self.root(found) >= self.z:
                return replace(self.between(points, here, found), rise=rise)
            if (
                found.moments.mean_count.min() < _EMPTY
                or abs(found.y - self.top.y) > _FAR * self.spread
            ):
                return _Side(points, self.sign * np.inf, self.flat(found), rise)
            here = found
            goal = pace * (1 + round(self.root(here) / pace))
            ahead = (goal - self.root(here)) / max(self.rate(here), 1e-9 / self.spread)
            stride = min(max(ahead, 0.1 * pace * self.spread), 2.0 * stride)
        return _Side(points, np.nan, f"was not followed beyond {self.value(here)}: too far")

    def next(self, here: Point, stride: float) -> Point | None:
        for _ in range(8):
            found = self.reach(here, here.y + self.sign * stride)
            if found is not None:
                return found
            stride *= 0.5
        return None

    def between(self, points: list[Point], inner: Point, outer: Point) -> _Side:
        """Find the bound between a point within and one without."""
        bisects = False
        for _ in range(50):
            near = min((inner, outer), key=lambda p: abs(self.root(p) - self.z))
            gap = self.z - self.root(near)
            y = near.y + self.sign * gap / max(self.rate(near), 1e-9 / self.spread)
            if bisects or not min(inner.y, outer.y) < y < max(inner.y, outer.y):
                y = 0.5 * (inner.y + outer.y)
            found = self.reach(near, y)
            if found is None:
                break
            points.append(found)
            left = self.z - self.root(found)
            if abs(left) <= _ROOT:
                return _Side(points, found.y)
            inner, outer = (found, outer) if left > 0 else (inner, found)
            bisects = abs(left) > 0.5 * abs(gap)
        text = f"jumps between {self.value(inner)} and {self.value(outer)}"
        return _Side(points, np.nan, text)

    def value(self, point: Point) -> str:
        return f"{self.problem.quantity.values(np.array([point.y]))[0]:.6g}"

    def flat(self, point: Point) -> str:
        text = f"is only {self.drop(point):.3g} below its maximum at {self.value(point)}"
        if point.moments.mean_count.min() < _EMPTY:
            text += ", where a component has no observations left: one component less would do"
        return f"{text}; there is no bound on this side"


def _dataset(
    problem: Problem, top: Point, lower: _Side, upper: _Side, ci_prob: float
) -> xr.Dataset:
    quantity, data = problem.quantity, problem.estimate.data
    points = sorted([*lower.points, top, *upper.points], key=lambda p: p.y)
    y = np.array([p.y for p in points])
    objective = np.array([p.objective for p in points])
    root = np.sign(y - top.y) * np.sqrt(np.maximum(2.0 * (top.objective - objective), 0.0))
    each = [data.to_data_units(p.parameters) for p in points]
    arrays = [tree.arrays(p) for p in each]
    curve = {n: np.stack([one[n] for one in arrays]) for n in arrays[0]}
    half = float(ndtri(0.5 + 0.5 * ci_prob)) / np.sqrt(top.curvature)
    ends = {"estimate": top.y, "lower": lower.bound, "upper": upper.bound}
    ends |= {"wald_lower": top.y - half, "wald_upper": top.y + half}
    scalars = {name: float(quantity.values(np.array([end]))[0]) for name, end in ends.items()}
    unit = float(quantity.units(np.array([top.y]))[0])
    scalars["se"] = unit / float(np.sqrt(top.curvature))
    found = tree.dataset(curve, data.names, ("point",)).assign(
        {
            "value": ("point", quantity.values(y[:, None])[:, 0]),
            "loglik": ("point", objective + data.log_jacobian),
            "signed_root": ("point", root),
            **{name: ((), value) for name, value in scalars.items()},
        }
    )
    pairs = (("lower", lower), ("upper", upper))
    notes = [f"{name} bound: the curve {side.remarks}" for name, side in pairs if side.remarks]
    verdict = _verdict(quantity.labels[0], pairs)
    found.attrs = {
        "parameter": quantity.labels[0],
        "scale": quantity.scales[0],
        "ci_kind": "profile",
        "ci_prob": ci_prob,
        "estimate": str(problem.estimate.fit.attrs["estimate"]),
        "note": "; ".join(notes),
        "verdict": verdict.to_json(),
    }
    warn(verdict, FitWarning)
    return found


def _verdict(label: str, pairs: tuple[tuple[str, _Side], ...]) -> Verdict:
    advice = (
        "{} Fit with more starts, compare the optima, use fewer components, or sample the "
        "posterior, which covers them all."
    )
    checks = []
    for name, side in pairs:
        code, text = f"{name}-bound", f"the profile of {label} {side.remarks}"
        if np.isnan(side.bound):
            what = "There is no interval on this side."
            checks.append(Check(code, "fail", text, advice.format(what)))
        elif side.rise:
            what = "The interval spans more than one optimum."
            checks.append(Check(code, "warn", text, advice.format(what)))
        else:
            checks.append(Check(code, "ok", side.note or f"{label}: found"))
    return Verdict(tuple(checks))
