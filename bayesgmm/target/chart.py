r"""The families' covariances as an unconstrained vector.

.. math:: \Sigma_k = U M_k \mathrm{diag}(s_k) M_k^\top U

with U a fixed diagonal of the data's size, and :math:`\log s` and the free elements of M linear in
the vector.  For ten families M is unit lower triangular: volume is the mean of :math:`\log s_k`,
shape the rest and M, each once or once per component, as the family's letters say, and no Jacobian
is left but a linear one.

For EVE, VVE, EEV and VEV, which share axes or shape but not both, M is a rotation, U a number, and
s the spectrum, by Cayley's map

.. math:: M = (I - A)(I + A)^{-1}, \qquad A^\top = -A,

of which the elements of A below the diagonal are free.  With respect to them the uniform
distribution of M has the density :math:`\det(I + A)^{-(d-1)}`.  Axes have neither order nor signs,
so that there is always one of the copies near the origin: `Coordinates.vector` takes that.  So a
family is two constant matrices in any case.

References
----------
Leon, Masse & Rivest (2006), J. Multivariate Analysis 97, 412-430 (Cayley's map and its measure).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bayesgmm.covariance import Covariance, shared_axes
from bayesgmm.data.observations import Data
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
        Elements of every M, or A, below its diagonal, row by row, from its last q.
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
        in (log s, M): prod s_i^((d+1)/2 - i).  Spectrum and axes of the polar families have theirs.
        """
        family, k, d = self.family, self.k, self.d
        coefficient = np.zeros((k, d))
        coefficient[: 1 if family.is_common else k] += 0.5 * measure_exponent(family, d)
        if not (family.is_diagonal or family.is_polar):
            shapes = slice(0, 1) if family.shape == "E" else slice(0, k)
            coefficient[shapes] += 0.5 * (d + 1) - np.arange(1, d + 1)
        return coefficient

    def moves(self, components: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (p + q,): which elements of the vector move some of these components (k,)."""
        each = [
            m.reshape(self.k, len(m) // self.k, m.shape[1]) for m in (self.spectrum, self.below)
        ]
        return np.concatenate([(m[components] != 0).any(axis=(0, 1)) for m in each])

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
        if self.family.is_polar:
            factor[..., self.columns, self.rows] = -factor[..., self.rows, self.columns]
            factor = 2.0 * np.linalg.inv(factor) - np.eye(self.d)
        factor *= self.unit[:, None] * root[..., None, :]
        return np.asarray(np.einsum("...ih,...jh->...ij", factor, factor))

    def vector(self, covariance: Array) -> Array:
        """Return the vector (p + q,) of covariances (k, d, d) of the family."""
        if self.family.is_polar:
            return self._polar_vector(covariance)
        factor = np.linalg.cholesky(covariance) / self.unit[:, None]
        root = np.diagonal(factor, axis1=1, axis2=2)
        log_s = self.spectrum_inverse @ (2.0 * np.log(root)).ravel()
        below = (factor / root[:, None, :])[:, self.rows, self.columns]
        if self.family.is_diagonal:
            return np.asarray(log_s)
        return np.concatenate([log_s, self.below_inverse @ below.ravel()])

    def _polar_vector(self, covariance: Array) -> Array:
        common = self.family.orientation == "E"
        axes = shared_axes(covariance)[None] if common else np.linalg.eigh(covariance)[1]
        # One order for all, in which they are nearest to the columns; signs as they like.
        order = linear_sum_assignment(-(axes**2).sum(axis=0))[1]
        axes = _nearest_rotations(axes[:, :, order])
        copies = np.broadcast_to(axes, covariance.shape)
        variance = np.einsum("kij,kil,klj->kj", copies, covariance, copies)
        log_s = self.spectrum_inverse @ np.log(variance / self.unit[0] ** 2).ravel()
        return np.concatenate([log_s, self.skew(axes).ravel()])

    def axes(self, vectors: Array) -> Array:
        """Return the sets of axes (..., m, d, d) of a polar family's vectors (..., p + q)."""
        elements = vectors[..., self.spectrum.shape[1] :]
        elements = elements.reshape(*vectors.shape[:-1], -1, len(self.rows))
        matrix = np.zeros((*elements.shape[:-1], self.d, self.d))
        matrix[..., np.arange(self.d), np.arange(self.d)] = 1.0
        matrix[..., self.rows, self.columns] = elements
        matrix[..., self.columns, self.rows] = -elements
        return np.asarray(2.0 * np.linalg.inv(matrix) - np.eye(self.d))

    def skew(self, axes: Array) -> Array:
        """Return Cayley's elements (m, d(d-1)/2) of rotations (m, d, d)."""
        eye = np.eye(self.d)
        found = np.linalg.solve(eye + axes, eye - axes)  # Cayley's map is its own inverse
        return np.asarray(found[:, self.rows, self.columns])


def _nearest_rotations(axes: Array) -> Array:
    """Return orthogonal matrices (m, d, d) with signs of columns for determinant 1, large trace."""
    axes = axes * np.where(np.diagonal(axes, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None, :]
    is_odd = np.linalg.det(axes) < 0
    least = np.diagonal(axes, axis1=1, axis2=2).argmin(axis=1)
    sign = np.ones(axes.shape[::2])
    sign[is_odd, least[is_odd]] = -1.0
    return np.asarray(axes * sign[:, None, :])


def unit_of(data: Data, family: Covariance) -> Array:
    """Return U: the columns' standard deviations; one for all if rescaling a column leaves it."""
    sd = data.scale * np.sqrt(np.diagonal(data.covariance))
    is_one = family.shape == "I" or family.is_polar
    return np.full(data.d, np.sqrt(np.mean(sd**2))) if is_one else np.asarray(sd)
