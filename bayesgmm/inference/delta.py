r"""The covariance matrix of an estimate, and standard errors of functions of it: the delta method.

.. math:: \mathrm{Var} f(\hat\theta) \approx a^\top C a, \qquad
          a = \frac{d}{d\phi} f(\theta(\phi)) \Big|_{\phi = 0}

with :math:`\phi` the family's local coordinates (`coordinates`), in which the estimate has the
covariance C (`uncertainty`).  An interval is symmetric on the scale on which f is nearly normal
(`quantities`), and taken back from there.

References
----------
Oehlert (1992), American Statistician 46, 27-29.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import ndtri

from bayesgmm.arguments import share
from bayesgmm.data.observations import read_like
from bayesgmm.errors import ArgumentError
from bayesgmm.inference import quantities
from bayesgmm.inference.estimate import Estimate, estimate_of
from bayesgmm.inference.quantities import Quantities
from bayesgmm.information.uncertainty import METHODS, Kind, Uncertainty
from bayesgmm.moments import Array, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.rows import parameter_rows
from bayesgmm.tree import DIMS, spec_of


def vcov(fit: xr.DataTree, *, kind: Kind = "observed") -> pd.DataFrame:
    r"""Return the covariance matrix of the parameters of a fit by EM.

    .. math:: G \, C \, G^\top

    with C the covariance in local coordinates and G the derivative of the parameters by them.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`, with soft assignment. It holds its data; their weights are frequencies.
    kind : {"observed", "sandwich", "opg"}
        The inverse of the observed information; robust against a wrong model; from outer products
        of gradients (not for MAP). `bayesgmm.information.uncertainty` says what they mean.

    Returns
    -------
    DataFrame
        Square, with the labels of `summary`, in units of the data. Its rank is the number of free
        parameters at most: the weights sum to one, and the covariances are of one family. 0 for
        what is fixed, which does not vary (as in the errors of lavaan and of `summary`); NaN where
        there is none, and ``attrs["se_note"]`` says why.

    Raises
    ------
    ArgumentError
        If ``fit`` is no such fit, or ``kind`` none for it.
    """
    estimate = estimate_of(fit)
    found = estimate.uncertainty(kind)
    data, spec = estimate.data, spec_of(fit)
    k, d = found.shape
    rows = parameter_rows(spec, data.names)
    parts = ((k,), (k, d), (k, d, d), (1,))
    begin = dict(zip((*DIMS, NOISE), np.cumsum([0, *map(np.prod, parts)]).tolist(), strict=False))
    shape = dict(zip((*DIMS, NOISE), parts, strict=True))
    at = [
        begin[r.variable] + int(np.ravel_multi_index(r.at or (0,), shape[r.variable])) for r in rows
    ]
    square = np.outer(data.scale, data.scale).ravel()
    unit = np.concatenate([np.ones(k), np.tile(data.scale, k), np.tile(square, k), np.ones(1)])[at]
    matrix = found.natural_covariance()[np.ix_(at, at)] * np.outer(unit, unit)
    labels = pd.Index([row.label for row in rows], name="parameter")
    frame = pd.DataFrame(matrix, index=labels, columns=labels)
    frame.attrs = {"se_method": METHODS[kind], "se_note": found.note()}
    return frame


def derived(
    fit: xr.DataTree,
    function: Callable[[Parameters], Any] | None = None,
    *,
    at: Any = None,
    kind: Kind = "observed",
    scale: str = "identity",
    ci_prob: float = 0.95,
) -> pd.DataFrame:
    r"""Return standard errors and intervals of functions of the parameters, by the delta method.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`, with soft assignment. What it holds fixed does not vary.
    function : callable, optional
        From `Parameters` in units of the data to a number, an array of numbers or a mapping of
        names to numbers; smooth, and defined near the estimate. Default: weights, standard
        deviations and correlations of all components.
    at : (m, d) table, or one point as (d,) numbers or a mapping, optional
        The density at these points, and the responsibilities there, instead of ``function``.
    kind : {"observed", "sandwich", "opg"}
        As in `vcov`.
    scale : {"identity", "log", "logit", "fisher-z"}
        On which the values of ``function`` are nearly normal. Densities and standard deviations are
        taken on the logarithmic scale, weights and responsibilities on the logit scale, and
        correlations on Fisher's.
    ci_prob : float
        Probability of the Wald intervals.

    Returns
    -------
    DataFrame
        One row each, with ``estimate, se, wald95_lower, wald95_upper, scale``, in units of the
        data. The errors are of the value itself, the interval is symmetric on the scale. NaN where
        there is none; ``attrs["se_note"]`` says why.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the function returns no finite numbers.
    DataError
        If ``at`` has the wrong columns.

    Examples
    --------
    >>> import bayesgmm as bg
    >>> fit = bg.fit_em(bg.GaussianMixture(2), bg.datasets.load("faithful"), random_seed=1)
    >>> distance = lambda p: float(p.mean[1, 0] - p.mean[0, 0])
    >>> print(derived(fit, distance).round(3).to_string(index=False))
     estimate    se  wald95_lower  wald95_upper    scale
        2.253 0.041         2.173         2.334 identity
    """
    share("ci_prob", ci_prob)
    estimate = estimate_of(fit)
    asked = _asked(estimate, function, at, scale)
    found = estimate.uncertainty(kind)
    y = asked.on_scale(estimate.parameters)
    se = errors_on_scale(estimate, found, asked)
    half = float(ndtri(0.5 + 0.5 * ci_prob)) * se
    level = f"{100 * ci_prob:g}"
    frame = pd.DataFrame(
        {
            "estimate": asked.values(y),
            "se": asked.units(y) * se,
            f"wald{level}_lower": asked.values(y - half),
            f"wald{level}_upper": asked.values(y + half),
            "scale": list(asked.scales),
        },
        index=pd.Index(asked.labels, name="quantity"),
    )
    frame.attrs = {"ci_kind": "wald", "ci_prob": ci_prob}
    frame.attrs |= {"se_method": METHODS[kind], "se_note": found.note()}
    return frame


def errors_on_scale(estimate: Estimate, found: Uncertainty, asked: Quantities) -> Array:
    """Return the standard errors (m,) of quantities on their scales; NaN where there is none."""
    chart = estimate.chart(estimate.parameters)
    slope = asked.slope(chart)
    se = np.sqrt(np.maximum(np.einsum("ip,pq,iq->i", slope, found.covariance, slope), 0.0))
    # A function has no error where it moves with what has none.
    size = np.abs(slope).max(axis=1, initial=0.0)
    for j in np.flatnonzero(found.small):
        moved = np.abs(slope[:, chart.own(int(j))]).max(axis=1, initial=0.0)
        se[moved > 1e-9 * size] = np.nan
    return np.asarray(se)


def _asked(estimate: Estimate, function: Any, at: Any, scale: str) -> Quantities:
    data = estimate.data
    if function is not None and at is not None:
        raise ArgumentError("at", "cannot be given together with a function")
    if function is not None:
        return quantities.of_function(function, scale, data, estimate.parameters)
    if scale != "identity":
        raise ArgumentError("scale", "is that of a function; the others have theirs")
    if at is not None:
        points, names = _points(at, data.names)
        return quantities.at_points(points, names, estimate.parameters, data)
    rows = parameter_rows(spec_of(estimate.fit), data.names)
    weights = [row for row in rows if row.kind == "weight"]
    return quantities.together(
        [*quantities.parameters_of(weights, data), *quantities.spreads_of(rows, data)]
    )


def _points(at: Any, names: tuple[str, ...]) -> tuple[Array, list[str]]:
    if not isinstance(at, pd.DataFrame):
        if isinstance(at, (pd.Series, Mapping)):
            at = pd.DataFrame([dict(at)])
        elif np.ndim(at) == 1:
            at = np.asarray(at)[None]
    values, index = read_like(at, names)
    return values, [str(label) for label in index]
