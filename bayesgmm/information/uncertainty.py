r"""How an estimate varies: three covariance matrices, and where there is none.

With the information :math:`I` (minus the second derivative) and the outer products :math:`J` of the
rows' scores (`information`), an estimate varies as

.. math:: I^{-1} \;\text{(observed)}, \qquad I^{-1} J I^{-1} \;\text{(sandwich)}, \qquad
          J^{-1} \;\text{(opg)}

All agree for large N if the model is true.  The sandwich holds without that, for the mixture that
is nearest to the truth.

For the mode of a posterior :math:`I` has the prior's curvature in it: the observed kind
approximates the posterior's covariance, and the sandwich is the sampling variance of the mode under
the same prior, with J of the data alone.  There is no opg: outer products say nothing of the prior,
whose own curvature, unlike that of the whole at its mode, depends on the coordinates.

References
----------
White (1982), Econometrica 50, 1-25. McLachlan & Peel (2000), Finite Mixture Models, Wiley,
section 2.15. Boldea & Magnus (2009), J. Am. Statist. Assoc. 104, 1539-1549.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.information.fixed import Fixed
from bayesgmm.information.observed import Information, natural_errors, outer_products, restricted
from bayesgmm.moments import Array, Moments, Parameters
from bayesgmm.resolved import PseudoData

Kind = Literal["observed", "sandwich", "opg"]
KINDS: tuple[str, ...] = get_args(Kind)
METHODS = {
    "observed": "observed information",
    "sandwich": "sandwich",
    "opg": "outer products of gradients",
}
_SADDLE = "the Hessian of the objective is not positive definite: no standard errors exist here"
_NEAR = 2.0  # standard errors from 0 or 1 within which a weight's interval is not a normal one


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The covariance of an estimate in local coordinates, and where it says nothing.

    Parameters
    ----------
    kind : {"observed", "sandwich", "opg"}
    covariance : (p, p) array
        NaN where there is none.
    natural : (k + k d + k d d, p) array
        Derivative of weights, means and covariances.
    shape : (k, d)
        Numbers of components and features.
    small : (k,) array of bool
        Components with too few observations for errors of their own parameters.
    has_common_covariance : bool
        Whether a covariance is no component's own.
    trouble : str
        Why there are no errors at all; empty where there are.
    cautions : tuple of (int, str)
        Components, and what is doubtful about their errors, with ``{j}`` for the component.
    """

    kind: Kind
    covariance: Array
    natural: Array
    shape: tuple[int, int]
    small: NDArray[np.bool_]
    has_common_covariance: bool
    trouble: str = ""
    cautions: tuple[tuple[int, str], ...] = ()

    def note(self, order: Sequence[int] | NDArray[np.intp] | None = None) -> str:
        """Return why errors are missing or doubtful, for components in an order; else nothing."""
        place = np.argsort(range(self.shape[0]) if order is None else order)
        texts = [text.format(j=place[j]) for j, text in self.cautions]
        return self.trouble or "; ".join(texts)

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Which of weights, means and covariances (flattened) are of components too small."""
        d = self.shape[1]
        own = np.zeros_like(self.small) if self.has_common_covariance else self.small
        parts = (np.zeros_like(self.small), np.repeat(self.small, d), np.repeat(own, d * d))
        found = np.concatenate(parts)
        return np.append(found, np.zeros(len(self.natural) - len(found), dtype=bool))

    def natural_covariance(self) -> Array:
        """Return the covariance of weights, means and covariances, flattened in this order."""
        found = self.natural @ self.covariance @ self.natural.T
        found[self.unknown] = np.nan
        found[:, self.unknown] = np.nan
        return 0.5 * (found + found.T)

    def standard_errors(self) -> Parameters:
        """Return standard errors of weights, means and covariances, shaped as these; else NaN."""
        se = natural_errors(self.natural, self.covariance, self.shape)
        k, d = self.shape
        known = np.where(self.unknown, np.nan, 1.0)[k:]
        mean, covariance, _ = np.split(known, np.cumsum([k * d, k * d * d]))
        return replace(
            se,
            mean=se.mean * mean.reshape(k, d),
            covariance=se.covariance * covariance.reshape(k, d, d),
        )


def checked_kind(argument: str, kind: Any, estimate: str) -> Kind:
    """Return a kind of standard error for an estimate "mle" or "map".

    Raises
    ------
    ArgumentError
        If it is none, or "opg" for "map", naming the argument.
    """
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ArgumentError(argument, f"must be one of {known}, not {kind!r}")
    if kind == "opg" and estimate == "map":
        raise ArgumentError(
            argument,
            "'opg' is for maximum likelihood: outer products of the rows' scores say nothing of "
            "the prior; use 'observed' or 'sandwich'",
        )
    found: Kind = kind
    return found


def uncertainty(
    kind: Kind,
    information: Information,
    data: Data,
    parameters: Parameters,
    moments: Moments,
    family: Covariance,
    *,
    prior: PseudoData | None = None,
    held: Fixed | None = None,
) -> Uncertainty:
    """Return how an estimate varies.

    Parameters
    ----------
    kind : {"observed", "sandwich", "opg"}
    information : Information
        The observed information there, of what is free.
    data : Data
    parameters : Parameters
        The estimate, in anchored units.
    moments : Moments
        The sums about it, the prior's included.
    family : Covariance
    prior : PseudoData, optional
        Of a MAP fit, in anchored units.
    held : Fixed, optional
        What did not move.
    """
    found, trouble = information.covariance, "" if information.is_positive_definite else _SADDLE
    if kind != "observed":
        outer = outer_products(data.groups, parameters, family)
        if held is not None:
            outer = restricted(outer, held.directions(parameters, family))
        if found is not None:
            found, trouble = _robust(kind, found, outer)
    p = len(information.gradient)
    covariance = np.full((p, p), np.nan) if found is None else found
    # With a prior no component is too small: its own pseudo-observations are there as well.
    small = np.zeros(parameters.k, dtype=bool)
    if prior is None and held is None:
        small = moments.mean_count < _least_count(family, parameters.d)
    made = Uncertainty(
        kind,
        covariance,
        information.natural,
        (parameters.k, parameters.d),
        small,
        family.is_common,
        trouble,
    )
    return replace(made, cautions=_cautions(made, parameters, moments, family))


def _robust(kind: Kind, observed: Array, outer: Information) -> tuple[Array | None, str]:
    """The covariance by outer products, or why there is none."""
    if outer.covariance is None:
        return None, (
            "the outer products of the rows' scores are singular: there are no more different rows "
            f"than free parameters ({len(outer.gradient)}), or rows that are fitted exactly"
        )
    if kind == "opg":
        return outer.covariance, ""
    sandwich = observed @ outer.matrix @ observed
    return 0.5 * (sandwich + sandwich.T), ""


def _least_count(family: Covariance, d: int) -> float:
    """Observations below which a component is a few points that happen to be close.

    One more than what its covariance needs to be more than singular; counts are sums of shares, a
    little less or more than a number of points, hence the halves.
    """
    if family.is_common:
        return 1.5
    return d + 2.5 if family.orientation == "V" else 3.5


def _cautions(
    made: Uncertainty, parameters: Parameters, moments: Moments, family: Covariance
) -> tuple[tuple[int, str], ...]:
    found = []
    for j in np.flatnonzero(made.small):
        text = (
            f"component {{j}} has {moments.mean_count[j]:.1f} observations, fewer than "
            f"{_least_count(family, parameters.d):g}: too few for standard errors of its own "
            "parameters"
        )
        found.append((int(j), text))
    weight, se = parameters.weight, made.standard_errors().weight
    for j in np.flatnonzero(np.minimum(weight, 1.0 - weight) < _NEAR * se):
        edge = round(weight[j])
        text = (
            f"weight[{{j}}] is {abs(weight[j] - edge) / se[j]:.1f} standard errors from {edge}, "
            "too near for a normal interval: see profile"
        )
        found.append((int(j), text))
    return tuple(found)
