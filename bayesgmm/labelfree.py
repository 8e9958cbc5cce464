"""Quantities of a mixture that no labelling of its components changes.

Where components exchange their roles within a posterior, these are what can be summarised; and
chains that sit in different partitions of the data differ in them, while chains that only call the
same components differently do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from bayesgmm.moments import Array


def label_free(weight: Array, mean: Array, covariance: Array) -> dict[str, Array]:
    r"""Return quantities of each draw that do not depend on how its components are labelled.

    Parameters
    ----------
    weight : (..., k) array
    mean : (..., k, d) array
    covariance : (..., k, d, d) array

    Returns
    -------
    dict of str to (...) or (..., d) array
        ``mixture_mean`` (d): :math:`\bar\mu = \sum_k \pi_k \mu_k`, and ``mixture_sd`` (d), of each
        feature: what the whole mixture says of the data.
        ``log_volume``: :math:`\sum_k \pi_k \log|\Sigma_k|`, a component that collapses or swells.
        With two or more components also ``between`` (d), the share of each feature's variance that
        is between the components: another partition of the data has another share;
        ``weight_entropy``: :math:`-\sum_k \pi_k \log \pi_k`, and ``weight_max``: components that
        empty, split or merge.
    """
    centre = np.einsum("...k,...kf->...f", weight, mean)
    spread = np.diagonal(covariance, axis1=-2, axis2=-1)
    within = np.einsum("...k,...kf->...f", weight, spread)
    between = np.einsum("...k,...kf->...f", weight, (mean - centre[..., None, :]) ** 2)
    with np.errstate(all="ignore"):  # draws that are not finite are the gate's finding, not ours
        logdet = np.linalg.slogdet(covariance)[1]
        found = {
            "mixture_mean": centre,
            "mixture_sd": np.sqrt(within + between),
            "log_volume": (weight * logdet).sum(axis=-1),
        }
        if weight.shape[-1] > 1:
            found["between"] = between / (within + between)
            found["weight_entropy"] = -(weight * np.log(np.maximum(weight, 1e-300))).sum(axis=-1)
            found["weight_max"] = weight.max(axis=-1)
    return found


def dataset(values: Mapping[str, Array], names: Sequence[str]) -> xr.Dataset:
    """Return what `label_free` returned as a group of a fit.

    Parameters
    ----------
    values : mapping of str to (chain, draw) or (chain, draw, d) array
    names : sequence of str
        Column names.
    """
    chains, draws = next(iter(values.values())).shape[:2]
    return xr.Dataset(
        {
            name: (("chain", "draw", "feature")[: value.ndim], value)
            for name, value in values.items()
        },
        coords={"chain": np.arange(chains), "draw": np.arange(draws), "feature": list(names)},
    )
