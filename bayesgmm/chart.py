r"""The ten families with diagonal or Cholesky coordinates, as an unconstrained vector.

.. math:: \Sigma_k = U M_k \mathrm{diag}(s_k) M_k^\top U

with M unit lower triangular, U a fixed diagonal of the data's size, and :math:`\log s` and the free
elements of M linear in the vector: volume is the mean of :math:`\log s_k`, shape the rest and M,
each once or once per component, as the family's letters say.  So a family is two constant matrices,
and no Jacobian is left but a linear one.
"""

from __future__ import annotations

import numpy as np

from bayesgmm.covariance import Covariance
from bayesgmm.data import Data
from bayesgmm.moments import Array
from bayesgmm.resolved import measure_exponent


class Coordinates:
    """Constants of a family's coordinates, and the maps between vectors and covariances.

    Parameters
    ----------
    family : Covariance
    k : int
    unit : (d,) array
        U.

    Attributes
    ----------
    spectrum : (k d, p) array
        log s from the vector's first p elements.
    below : (k d (d-1)/2, q) array
        Elements of every M below its diagonal, row by row, from its last q.
    log_jacobian : (p,) array
        Log-density of the prior's mode coordinates with respect to the vector: its coefficients.
    """

    def __init__(self, family: Covariance, k: int, unit: Array) -> None:
        d = len(unit)
        self.family, self.k, self.d = family, k, d
        self.unit = unit
        volumes = np.eye(k) if family.volume == "V" else np.ones((k, 1))
        contrast = np.eye(d)[:, 1:] - 1.0 / d
        copies = {"I": np.zeros((k, 0)), "E": np.ones((k, 1)), "V": np.eye(k)}
        shapes = copies[family.shape]
        self.n_volumes = volumes.shape[1]
        self.spectrum = np.hstack([np.kron(volumes, np.ones((d, 1))), np.kron(shapes, contrast)])
        below = 0 if family.is_diagonal else d * (d - 1) // 2
        self.below = np.kron(copies[family.orientation], np.eye(below))
        self.rows, self.columns = np.tril_indices(d, -1)
        self.size = self.spectrum.shape[1] + self.below.shape[1]
        self.log_jacobian = self.spectrum.T @ self._log_measure().ravel()
        self.spectrum_inverse = np.linalg.pinv(self.spectrum)
        self.below_inverse = np.linalg.pinv(self.below)

    def _log_measure(self) -> Array:
        """Coefficients of log s in the log-density of the prior's mode coordinates.

        The factor prod |S|^(e/2) of `bayesgmm.resolved`, and for whole matrices the measure
        in (log s, M): prod s_i^((d+1)/2 - i).
        """
        family, k, d = self.family, self.k, self.d
        coefficient = np.zeros((k, d))
        coefficient[: 1 if family.is_common else k] += 0.5 * measure_exponent(family, d)
        if not family.is_diagonal:
            shapes = slice(0, 1) if family.shape == "E" else slice(0, k)
            coefficient[shapes] += 0.5 * (d + 1) - np.arange(1, d + 1)
        return coefficient

    def covariances(self, vectors: Array) -> Array:
        """Return covariances (..., k, d, d) from vectors (..., p + q)."""
        p = self.spectrum.shape[1]
        leading = vectors.shape[:-1]
        log_s = np.einsum("ij,...j->...i", self.spectrum, vectors[..., :p])
        root = np.exp(0.5 * log_s).reshape(*leading, self.k, self.d)
        factor = np.zeros((*leading, self.k, self.d, self.d))
        index = np.arange(self.d)
        factor[..., index, index] = 1.0
        if not self.family.is_diagonal:
            below = np.einsum("ij,...j->...i", self.below, vectors[..., p:])
            factor[..., self.rows, self.columns] = below.reshape(*leading, self.k, -1)
        factor *= self.unit[:, None] * root[..., None, :]
        return np.asarray(np.einsum("...ih,...jh->...ij", factor, factor))

    def vector(self, covariance: Array) -> Array:
        """Return the vector (p + q,) of covariances (k, d, d) of the family."""
        factor = np.linalg.cholesky(covariance) / self.unit[:, None]
        root = np.diagonal(factor, axis1=1, axis2=2)
        log_s = self.spectrum_inverse @ (2.0 * np.log(root)).ravel()
        below = (factor / root[:, None, :])[:, self.rows, self.columns]
        if self.family.is_diagonal:
            return np.asarray(log_s)
        return np.concatenate([log_s, self.below_inverse @ below.ravel()])


def unit_of(data: Data, family: Covariance) -> Array:
    """Return U: the columns' standard deviations, or one for all if the family knows only one."""
    sd = data.scale * np.sqrt(np.diagonal(data.covariance))
    return np.full(data.d, np.sqrt(np.mean(sd**2))) if family.shape == "I" else np.asarray(sd)
