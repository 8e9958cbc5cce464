"""A fit by EM with its data, its prior and what it holds fixed, ready to be looked around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xarray as xr

from bayesgmm import groups
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.inference.replicates import data_of, prior_of
from bayesgmm.information.coordinates import Chart
from bayesgmm.information.fixed import Fixed, Part, chart_of, from_json
from bayesgmm.information.observed import Information, observed_information
from bayesgmm.information.uncertainty import Kind, Uncertainty, checked_kind, uncertainty
from bayesgmm.moments import Array, Moments, Parameters, accumulate
from bayesgmm.resolved import PseudoData, pseudo_moments
from bayesgmm.tree import point, spec_of


@dataclass(frozen=True, eq=False)
class Estimate:
    """A fit by EM, ready to be looked around.

    Parameters
    ----------
    fit : DataTree
    data : Data
    family : Covariance
    parameters : Parameters
        In anchored units, components in the order of the fit.
    prior : PseudoData or None
        Of a MAP fit, in anchored units.
    held : Fixed or None
        What did not move, in anchored units.
    """

    fit: xr.DataTree
    data: Data
    family: Covariance
    parameters: Parameters
    prior: PseudoData | None
    held: Fixed | None = None

    def sums(self, parameters: Parameters, threads: int | None = None) -> Moments:
        """Return the table of sums about parameters, the prior's included: one pass."""
        is_diagonal = self.family.is_diagonal

        def of_rows(x: Array, about: Parameters, weight: Array) -> Moments:
            return accumulate(x, about, weight, diagonal=is_diagonal, threads=threads)

        moments = groups.table(self.data.groups, parameters, of_rows, diagonal=is_diagonal)
        return moments + pseudo_moments(self.prior, parameters) if self.prior else moments

    def chart(self, parameters: Parameters) -> Chart | Part:
        """Return the coordinates of what is free around parameters."""
        return chart_of(parameters, self.family, self.held)

    def information(self, parameters: Parameters, moments: Moments) -> Information:
        """Return the observed information at parameters, of what is free, given the sums there."""
        data = self.data
        found = observed_information(
            data.x, parameters, moments, self.family, data.weight, data.probability
        )
        return self.held.restrict(found, parameters, self.family) if self.held else found

    def uncertainty(self, kind: Kind) -> Uncertainty:
        """Return how the estimate varies.

        Raises
        ------
        ArgumentError
            If there is no such kind, naming ``kind``.
        """
        checked_kind("kind", kind, "map" if self.prior else "mle")
        moments = self.sums(self.parameters)
        information = self.information(self.parameters, moments)
        return uncertainty(
            kind,
            information,
            self.data,
            self.parameters,
            moments,
            self.family,
            prior=self.prior,
            held=self.held,
        )


def estimate_of(fit: Any) -> Estimate:
    """Return a fit by EM with its data, of which it holds a copy.

    Raises
    ------
    ArgumentError
        If ``fit`` is no fit by `fit_em`, or one with hard assignment.
    """
    data, spec = data_of(fit), spec_of(fit)
    parameters = data.to_anchored(point(fit))
    if fit.attrs.get("assignment") == "hard":
        raise ArgumentError(
            "fit",
            "was made with assignment='hard': its estimates are biased, whatever the number of "
            "rows, so that neither standard errors nor replicates say how far off they are. Go on "
            "from it by fit_em(..., start=fit), which maximises the likelihood",
        )
    prior = prior_of(spec, data) if fit.attrs["estimate"] == "map" else None
    held = from_json(str(fit.attrs.get("fixed", "")), data)
    return Estimate(fit, data, spec.covariance, parameters, prior, held)


def moving(fit: Any) -> Estimate:
    """Return the same of a fit of which something is free: nothing else has replicates.

    Raises
    ------
    ArgumentError
        As `estimate_of`, or if all parameters are fixed.
    """
    found = estimate_of(fit)
    if found.held is not None and not found.chart(found.parameters).size:
        raise ArgumentError("fit", "has all its parameters fixed: nothing of it varies")
    return found
