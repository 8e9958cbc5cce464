r"""Scalar functions of a mixture by name, each on a scale where it is nearly normal.

Weights and responsibilities are on the logit scale, variances, standard deviations and densities
on the logarithmic one, correlations on Fisher's, all else as it is.  Intervals are made there and
taken back, so that they keep within the bounds of what they are for.

All are functions of anchored parameters, so that an offset of the data costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp

from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.information.coordinates import Chart
from bayesgmm.information.fixed import Part
from bayesgmm.moments import Array, Parameters
from bayesgmm.numeric import kernel
from bayesgmm.rows import Row, printable

Map = Callable[[Any], Any]
#: Name -> to the scale, from it, and the derivative of the latter.
SCALES: dict[str, tuple[Map, Map, Map]] = {
    "identity": (lambda v: v, lambda y: y, np.ones_like),
    "log": (np.log, np.exp, np.exp),
    "logit": (logit, expit, lambda y: expit(y) * expit(-y)),
    "fisher-z": (np.arctanh, np.tanh, lambda y: 1.0 / np.cosh(y) ** 2),
}
_STEP = 1e-3  # of the differences, in standard deviations of a component


@dataclass(frozen=True, eq=False)
class Quantities:
    """Some scalar functions of a mixture.

    Parameters
    ----------
    labels : tuple of str
    scales : tuple of str
        Keys of `SCALES`.
    on_scale : callable
        Anchored parameters -> (m,) values, each on its scale.
    gain, shift : (m,) arrays
        A value in units of the data is shift + gain times the anchored one; gains are positive.
    """

    labels: tuple[str, ...]
    scales: tuple[str, ...]
    on_scale: Callable[[Parameters], Array]
    gain: Array
    shift: Array

    def values(self, y: Array) -> Array:
        """Return values (..., m) in units of the data, of values on the scales."""
        return self.shift + self.gain * self._each(1, y)

    def units(self, y: Array) -> Array:
        """Return (..., m): derivatives of values in units of the data by values on the scales."""
        return self.gain * self._each(2, y)

    def _each(self, which: int, y: Array) -> Array:
        columns = np.moveaxis(np.asarray(y, dtype=float), -1, 0)
        pairs = zip(self.scales, columns, strict=True)
        return np.stack([SCALES[scale][which](column) for scale, column in pairs], axis=-1)

    def slope(self, chart: Chart | Part) -> Array:
        """Return (m, p): derivatives on the scales by coordinates, at their origin.

        By central differences of fourth order, along directions that stay within the family.
        """
        columns = []
        for unit in np.eye(chart.size):
            near, far = (
                self.on_scale(chart.at(h * unit)) - self.on_scale(chart.at(-h * unit))
                for h in (_STEP, 2.0 * _STEP)
            )
            columns.append((8.0 * near - far) / (12.0 * _STEP))
        return np.array(columns).reshape(chart.size, len(self.labels)).T


@dataclass(frozen=True, eq=False)
class Quantity:
    """One scalar function of a mixture; attributes as those of `Quantities`."""

    label: str
    scale: str
    on_scale: Callable[[Parameters], float]
    gain: float = 1.0
    shift: float = 0.0


def together(single: Sequence[Quantity]) -> Quantities:
    """Return some quantities as one value."""
    return Quantities(
        tuple(q.label for q in single),
        tuple(q.scale for q in single),
        lambda p: np.array([q.on_scale(p) for q in single]),
        np.array([q.gain for q in single]),
        np.array([q.shift for q in single]),
    )


def parameters_of(rows: Sequence[Row], data: Data) -> list[Quantity]:
    """Return the parameters of a summary, with its labels."""
    found = []
    for row in rows:
        scale = {"weight": "logit", "variance": "log"}.get(row.kind, "identity")
        on_scale = _entry(row.variable, row.at, scale)
        if row.variable == "mean":
            gain, shift = data.scale[row.at[1]], data.center[row.at[1]]
        else:
            gain, shift = np.prod(data.scale[list(row.at[1:])]), 0.0
        found.append(Quantity(row.label, scale, on_scale, float(gain), float(shift)))
    return found


def spreads_of(rows: Sequence[Row], data: Data) -> list[Quantity]:
    """Return standard deviations and correlations, where a summary has covariances."""
    found = []
    for row in rows:
        if row.variable != "covariance":
            continue
        j, a, b = row.at
        if a == b:
            own = [str(row.cluster)] if row.cluster >= 0 else []
            inside = own + ([printable(row.feature)] if row.feature else [])
            label = f"sd[{', '.join(inside)}]" if inside else "sd"
            found.append(Quantity(label, "log", _sd(j, a), float(data.scale[a])))
        else:
            label = row.label.replace("covariance", "correlation", 1)
            found.append(Quantity(label, "fisher-z", _correlation(j, a, b)))
    return found


def named(label: str, rows: Sequence[Row], data: Data) -> Quantity:
    """Return a parameter, standard deviation or correlation by its label.

    Raises
    ------
    ArgumentError
        If there is none; the message lists what there is.
    """
    every = [*parameters_of(rows, data), *spreads_of(rows, data)]
    for quantity in every:
        if quantity.label == label:
            return quantity
    known = ", ".join(quantity.label for quantity in every)
    raise ArgumentError("parameter", f"{label!r} is none of {known}")


def at_points(points: Array, names: Sequence[str], about: Parameters, data: Data) -> Quantities:
    """Return the density at points (m, d), in data units, and its responsibilities there."""
    x = np.ascontiguousarray((points - data.center) / data.scale)
    labels = [f"density[{name}]" for name in names]
    components = [*map(str, range(about.k)), *(["noise"] if about.noise else [])]
    k = len(components)
    labels += [f"responsibility[{j}, {name}]" for name in names for j in components if k > 1]
    m = len(points)
    scales = ("log",) * m + ("logit",) * (len(labels) - m)
    gain = np.ones(len(labels))
    gain[:m] = 1.0 / np.prod(data.scale)

    def on_scale(p: Parameters) -> Array:
        p = p.widened
        joint = np.stack(
            [
                kernel.rows(
                    x,
                    p.log_weight[j : j + 1],
                    p.mean[j : j + 1],
                    p.whitening[j : j + 1],
                    False,
                )[0]
                for j in range(k)
            ]
        )
        if k == 1:
            return np.asarray(joint[0])
        others = [logsumexp(np.delete(joint, j, axis=0), axis=0) for j in range(k)]
        return np.concatenate([logsumexp(joint, axis=0), (joint - np.stack(others)).T.ravel()])

    return Quantities(tuple(labels), scales, on_scale, gain, np.zeros(len(labels)))


def of_function(
    function: Callable[[Parameters], Any], scale: str, data: Data, at: Parameters
) -> Quantities:
    """Return what a user's function of parameters in units of the data returns, number by number.

    Raises
    ------
    ArgumentError
        If it returns no numbers, or numbers that the scale is not for.
    """
    if scale not in SCALES:
        known = ", ".join(map(repr, SCALES))
        raise ArgumentError("scale", f"must be one of {known}, not {scale!r}")
    if not callable(function):
        raise ArgumentError("function", f"must be a function of Parameters, not {function!r}")
    forward = SCALES[scale][0]

    def on_scale(p: Parameters) -> Array:
        found = function(data.to_data_units(p))
        values = list(found.values()) if isinstance(found, Mapping) else found
        with np.errstate(all="ignore"):
            return np.asarray(forward(np.asarray(values, dtype=np.float64))).ravel()

    first = function(data.to_data_units(at))
    try:
        y = on_scale(at)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "function", f"must return numbers, not {type(first).__name__} ({error})"
        ) from error
    labels = _labels(function, first, y.size)
    for label, value in zip(labels, y, strict=True):
        if not np.isfinite(value):
            raise ArgumentError(
                "function", f"{label} is not finite at the estimate, on the {scale} scale"
            )
    m = len(labels)
    return Quantities(labels, (scale,) * m, on_scale, np.ones(m), np.zeros(m))


def _labels(function: Callable[..., Any], first: Any, size: int) -> tuple[str, ...]:
    if isinstance(first, pd.Series):
        return tuple(str(key) for key in first.index)
    if isinstance(first, Mapping):
        return tuple(str(key) for key in first)
    name = getattr(function, "__name__", "function")
    name = "value" if name == "<lambda>" else name
    if np.ndim(first) == 0:
        return (name,)
    shape = np.shape(first)
    index: list[NDArray[np.intp]] = [np.array(i) for i in np.ndindex(*shape)]
    return tuple(f"{name}[{', '.join(map(str, i))}]" for i in index)


# Single functions


def _entry(variable: str, at: tuple[int, ...], scale: str) -> Callable[[Parameters], float]:
    if scale == "logit":  # from the other weights: 1 - w has no digits where w is near 1
        j = at[0] if at else -1  # the noise's is last
        return lambda p: float(np.log(p.weights[j] / np.delete(p.weights, j).sum()))
    if scale == "log":
        return lambda p: float(np.log(p.covariance[at]))
    return lambda p: float(getattr(p, variable)[at])


def _sd(j: int, a: int) -> Callable[[Parameters], float]:
    return lambda p: 0.5 * float(np.log(p.covariance[j, a, a]))


def _correlation(j: int, a: int, b: int) -> Callable[[Parameters], float]:
    def on_scale(p: Parameters) -> float:
        c = p.covariance[j]
        return float(np.arctanh(c[a, b] / np.sqrt(c[a, a] * c[b, b])))

    return on_scale
