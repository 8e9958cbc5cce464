"""Priors that ties in the data make improper posteriors of, and the warning that says so."""

from __future__ import annotations

import warnings

import numpy as np

from bayesgmm.data.observations import Data
from bayesgmm.errors import PACKAGE, PosteriorWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, SeparationPrior


def warn_if_improper(spec: GaussianMixture, data: Data) -> None:
    r"""Warn of scales that do not keep off zero, and ties: the posterior then has no finite mass.

    Let j components with scales of their own shrink together, by :math:`\epsilon`, onto values that
    a column has :math:`m_1, \dots, m_j` times.  The likelihood and the share of means that are near
    enough go as :math:`\epsilon^{-\sum (m_i - 1)}`, the prior as :math:`\epsilon^p \, d \log
    \epsilon`: the integral from 0 is infinite unless p is larger than the sum.  It is j for
    half-normal scales, :math:`2g + 2(K - j)a` for hierarchical variances; others vanish faster than
    any power.  Spherical components need equal rows, each of which counts d times.
    """
    family, prior, k = spec.covariance, spec.prior, spec.n_components
    if not isinstance(prior, SeparationPrior) or family.is_common or k == 1:
        return
    together = np.arange(1, k)
    match prior.scale:
        case HalfNormal():
            power = together.astype(float)
        case HierarchicalInverseGamma(alpha, shape):
            power = 2.0 * shape + 2.0 * (k - together) * alpha
        case _:
            return
    is_whole = family.shape == "I"
    columns = [data.values] if is_whole else [data.values[:, [j]] for j in range(data.d)]
    for name, values in zip(data.names, columns, strict=False):
        seen = np.isfinite(values).all(axis=1)
        distinct, inverse = np.unique(values[seen], axis=0, return_inverse=True)
        count = np.bincount(inverse.ravel(), data.weight[seen] if len(data.weight) else None)
        most = np.argsort(-count, kind="stable")[: k - 1]
        pull = np.cumsum(np.maximum(count[most] - 1.0, 0.0)) * (data.d if is_whole else 1)
        needed = np.flatnonzero((pull > 0) & (pull >= power[: len(pull)]))
        if not len(needed):
            continue
        which = [i for i in most[: needed[0] + 1] if count[i] > 1]
        shown = " and ".join(
            f"{count[i]:.6g} equal " + ", ".join(f"{v:.6g}" for v in distinct[i]) for i in which
        )
        where = f"rows ({shown})" if is_whole else f"values ({shown}) in column {name!r}"
        kind = type(prior.scale).__name__
        message = (
            f"the posterior is improper: a {kind} scale does not keep a component from "
            f"shrinking onto equal values, and the data have such {where}. "
            "Draws describe the posterior away from there only. Use a LogNormal or InverseGamma "
            "scale, the conjugate prior, or a family with a common covariance (EEE, EEI, EII)"
        )
        warnings.warn(
            PosteriorWarning("improper-posterior", message), skip_file_prefixes=(PACKAGE,)
        )
        return
