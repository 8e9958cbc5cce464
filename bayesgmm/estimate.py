"""A fit by EM with its data and prior, ready to be looked around: sums, information, errors."""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from bayesgmm import groups
from bayesgmm.covariance import Covariance
from bayesgmm.data import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.information import Information, observed_information
from bayesgmm.moments import Array, Moments, Parameters, accumulate
from bayesgmm.replicates import data_of, prior_of
from bayesgmm.resolved import PseudoData, pseudo_moments
from bayesgmm.tree import point, spec_of
from bayesgmm.uncertainty import Kind, Uncertainty, checked_kind, uncertainty


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
    """

    fit: xr.DataTree
    data: Data
    family: Covariance
    parameters: Parameters
    prior: PseudoData | None

    def sums(self, parameters: Parameters) -> Moments:
        """Return the table of sums about parameters, the prior's included: one pass."""
        is_diagonal = self.family.is_diagonal

        def of_rows(x: Array, about: Parameters, weight: Array) -> Moments:
            return accumulate(x, about, weight, diagonal=is_diagonal)

        moments = groups.table(self.data.groups, parameters, of_rows, diagonal=is_diagonal)
        return moments + pseudo_moments(self.prior, parameters) if self.prior else moments

    def information(self, parameters: Parameters, moments: Moments) -> Information:
        """Return the observed information at parameters, given the sums about them."""
        data = self.data
        return observed_information(
            data.x, parameters, moments, self.family, data.weight, data.probability
        )

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
        )


def estimate_of(fit: xr.DataTree) -> Estimate:
    """Return a fit by EM with its data, of which it holds a copy.

    Raises
    ------
    ArgumentError
        If ``fit`` is no fit by `fit_em` with all parameters free.
    """
    data, spec = data_of(fit), spec_of(fit)
    parameters = data.to_anchored(point(fit))
    if "criteria" not in fit.children:
        raise ArgumentError("fit", "must be a whole fit by fit_em, not a part of one")
    if int(fit["criteria"]["n_params"].item()) != spec.n_parameters(data.d):
        raise ArgumentError(
            "fit",
            "was made with fixed parameters, which are not kept with it; the standard errors that "
            "fit_em gives take them into account",
        )
    prior = prior_of(spec, data) if fit.attrs["estimate"] == "map" else None
    return Estimate(fit, data, spec.covariance, parameters, prior)
