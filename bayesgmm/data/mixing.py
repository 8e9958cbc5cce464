r"""Coordinates in which nearly dependent columns are apart: a triangular change of columns.

Where a column is a linear combination of others up to a residual of r standard deviations,
covariances of the columns hold the residual's variance as a difference of numbers that agree to
within r squared: with r = 1e-6 four digits of it are left, with r = 1e-8 none.  The rows hold it
far better.  With a pivoted QR decomposition of the anchored columns z, each divided by its standard
deviation s,

.. math:: z \, \mathrm{diag}(s)^{-1} P = Q R, \qquad y = T^{-1} z, \qquad
          T = \mathrm{diag}(s) \, P R^\top,

each coordinate of y is what the ones before it leave of a column, with variance 1.  A family that
linear maps take into itself (EEE, VEE, EVV, VVV) is fitted to y as to any data; for z it has means
:math:`T \mu`, covariances :math:`T \Sigma T^\top`, and log-densities that are :math:`\log |T|`
less.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr

from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.anchoring import deviations, moments_of
from bayesgmm.data.observations import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.numeric import kernel
from bayesgmm.streams import Rows, row_by_row, triangle

# Smallest eigenvalue of the correlations below which columns are taken apart: rows of condition
# 1e3, from where on the rounding of covariances shows in the eighth digit.
_NEARLY_DEPENDENT = 1e-6
# Share of a column's variance that the others leave, below which two digits of it are left.
_RESOLVED = 1e-14
UNRESOLVED = (
    "has covariances that are singular up to their last digits, as columns are nearly linear "
    "combinations of others: the fit itself used the rows, but what follows from the covariances "
    "as they are stored would be rounding. Fit the difference of such columns in place of one of "
    "them, or leave one out"
)


def taken_apart(data: Data, family: Covariance) -> Data:
    """Return data in coordinates that are not nearly dependent; as they are if columns are not.

    Also as they are where values are missing, since what is missing in one column would be in
    several coordinates, and for families that linear maps take into others.
    """
    if not (family.is_affine_equivariant and data.is_complete):
        return data
    rows = data.near  # a far row would be all that columns have in common
    if rows.count()[0] <= data.d or not data.near_sd.all():
        return data
    mean, covariance = moments_of(rows) if len(data.far) else (data.mean, data.covariance)
    sd = np.sqrt(np.diagonal(covariance))
    if np.linalg.eigvalsh(covariance / sd[:, None] / sd)[0] > _NEARLY_DEPENDENT:
        return data
    r = triangle(deviations(rows, mean))
    r, pivot = qr(r / sd, mode="r", pivoting=True)
    mix = np.empty((data.d, data.d))
    mix[pivot] = sd[pivot, None] * r.T
    x = row_by_row(lambda part: np.linalg.solve(mix, part.T).T, data.x)
    mean, covariance = moments_of(Rows(x, data.weight))
    return replace(data, x=x, mean=mean, covariance=covariance, mix=mix)


def are_resolved(covariance: Array, whitening: Array) -> NDArray[np.bool_]:
    """Say which covariances hold, beyond their rounding, what each column adds to those before it.

    Parameters
    ----------
    covariance : (..., d, d) array
    whitening : (..., d, d) array
        Their inverse lower factors.

    Returns
    -------
    (...) array of bool
    """
    variance, inverse = (np.diagonal(a, axis1=-2, axis2=-1) for a in (covariance, whitening))
    with np.errstate(all="ignore"):
        return np.asarray((1.0 / (inverse * np.sqrt(variance)) ** 2 > _RESOLVED).all(axis=-1))


def refuse_unresolved(covariance: Array, argument: str = "fit") -> None:
    """Refuse covariances (..., d, d) of a fit that are rounding in some direction.

    Raises
    ------
    ArgumentError
    """
    flat = np.array(covariance, order="C").reshape(-1, *covariance.shape[-2:])
    whitening, is_definite = kernel.factorise(flat, False)
    if not (is_definite and are_resolved(flat, whitening).all()):
        raise ArgumentError(argument, UNRESOLVED)


def by_column(natural: Array, data: Data, k: int) -> Array:
    """Return the derivative of parameters of the anchored columns, of one of parameters of x.

    Parameters
    ----------
    natural : (k + k d + k d d, p) array
        Of weights, means and covariances, flattened in this order.
    data : Data
    k : int
        Number of components.
    """
    if data.mix is None:
        return natural
    d, t = data.d, data.mix
    weight, mean, covariance, rest = np.split(natural, np.cumsum([k, k * d, k * d * d]))
    mean = np.einsum("ia,kap->kip", t, mean.reshape(k, d, -1))
    covariance = np.einsum("ia,kabp,jb->kijp", t, covariance.reshape(k, d, d, -1), t, optimize=True)
    p = natural.shape[1]
    return np.concatenate([weight, mean.reshape(-1, p), covariance.reshape(-1, p), rest])
