r"""Local coordinates of a family around one of its mixtures: derivatives, and the way back.

.. math:: \pi_k \propto \hat\pi_k e^{\alpha_k}, \quad \mu_k = \hat\mu_k + L_k \delta_k, \quad
          \Sigma_k = L_k \exp(S_k) L_k^\top

with :math:`L_k` the Cholesky factor of :math:`\hat\Sigma_k` and :math:`S_k` symmetric.  *Full*
coordinates are all of these.  The *family's* are as many as it has free parameters: k - 1
log-weights, the :math:`\delta_k`, and numbers of which :math:`S_k` are linear functions for ten
families.  For EVE, VVE, EEV and VEV they are changes t of log-variances along the axes, and turns
:math:`\Omega` of the axes: with :math:`\hat\Sigma_k = D V D^\top`

.. math:: \Sigma_k = D \, e^{\Omega} \, V e^{t} \, e^{-\Omega} D^\top

All is measured in a component's own standard deviations, so that units change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bayesgmm.covariance import Covariance, shared_axes
from bayesgmm.moments import Array, Moments, Parameters

Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Chart:
    """The coordinates of a family around one of its members, which is their origin.

    Parameters
    ----------
    about : Parameters
    family : Covariance
    logs : (m, k, d, d) array
        Symmetric: what each of m coordinates of the covariances adds to the logarithms in `frame`.
    turns : (m, k, d, d) array
        Skew: how each of them turns the axes.
    frame : (k, d, d) array
        Orthogonal; its columns are axes in whitened coordinates.
    """

    about: Parameters
    family: Covariance
    logs: Array
    turns: Array
    frame: Array

    @property
    def size(self) -> int:
        """Number of coordinates p = k - 1 + k d + m, and 1 for noise: the free parameters."""
        return len(self.about.weights) - 1 + self.about.k * self.about.d + len(self.logs)

    @cached_property
    def basis(self) -> Array:
        """(q, d, d): directions of the symmetric matrices S_k in full coordinates."""
        return symmetric_basis(self.about.d, diagonal=self.family.is_diagonal)

    @cached_property
    def tangent(self) -> Array:
        """(k (1 + d + q), p): derivative of full coordinates by the family's, at the origin.

        With a noise component one more of each, its log-weight.
        """
        k, d, p = self.about.k, self.about.d, self.size
        alpha, delta, s = slots(k, d, len(self.basis))
        has_noise = self.about.noise is not None
        out = np.zeros((k * (1 + d + len(self.basis)) + has_noise, p))
        if has_noise:
            out[-1, -1] = 1.0
        # Any k - 1 directions that change the weights; the common shift of alpha changes nothing.
        out[np.ix_(alpha, range(k - 1))] = np.eye(k)[:, 1:]
        out[delta.ravel(), range(k - 1, k - 1 + k * d)] = 1.0
        linear = _first_order(self.logs, self.turns, self.frame, self.about)
        rows, columns = positions(self.basis)
        block = linear[:, :, rows, columns].reshape(len(self.logs), s.size)
        out[s.ravel(), self._spread] = block.T
        return out

    @property
    def _spread(self) -> slice:
        """Which coordinates are those of the covariances."""
        begin = self.about.k - 1 + self.about.k * self.about.d
        return slice(begin, begin + len(self.logs))

    @cached_property
    def natural(self) -> Array:
        """(k + k d + k d d, p): derivative of weights, means and covariances, in this order."""
        return natural_derivative(self.about, self.basis) @ self.tangent

    def own(self, j: int) -> NDArray[np.bool_]:
        """Return (p,): which coordinates move the mean or the covariance of component j alone."""
        k, d = self.about.k, self.about.d
        moves = (np.abs(self.logs) + np.abs(self.turns)).sum(axis=(2, 3)) > 0
        means = np.repeat(np.arange(k) == j, d)
        alone = moves[:, j] & (moves.sum(axis=1) == 1)
        noise = np.zeros(len(self.about.weights) - k, dtype=bool)
        return np.concatenate([np.zeros(k - 1, dtype=bool), means, alone, noise])

    def curvature(self, moments: Moments) -> Array:
        """Return (p, p): sum over k of <dl/dS_k, second derivative of S_k>, for sums T."""
        out = np.zeros((self.size, self.size))
        if self.family.is_polar:
            eye = np.eye(self.about.d)
            inner = moments.second - moments.covariance_count[:, None, None] * eye
            out[self._spread, self._spread] = _second_order(
                0.5 * inner, self.logs, self.turns, self.frame, self.about
            )
        return out

    def at(self, step: Array) -> Parameters:
        """Return the member of the family with coordinates ``step`` (p,)."""
        about, k, d = self.about, self.about.k, self.about.d
        spread = step[self._spread]
        alpha = np.concatenate([np.zeros(1), step[: k - 1], step[self._spread.stop :]])
        weights = about.weights * np.exp(alpha - alpha.max())
        delta = step[k - 1 : k - 1 + k * d].reshape(k, d)
        mean = about.mean + np.einsum("kij,kj->ki", about.factor, delta)
        log = np.tensordot(spread, self.logs, axes=1)
        axes = about.factor @ self.frame
        if self.family.is_polar:
            length = np.sqrt((axes**2).sum(axis=1))
            turned = _rotation(np.tensordot(spread, self.turns, axes=1))
            root = (axes / length[:, None, :]) @ turned
            root = root * (length * np.exp(0.5 * np.diagonal(log, axis1=1, axis2=2)))[:, None, :]
        else:
            value, vector = np.linalg.eigh(log)
            root = axes @ (vector * np.exp(0.5 * value)[:, None, :])
        covariance = root @ np.swapaxes(root, 1, 2)
        covariance = 0.5 * (covariance + np.swapaxes(covariance, 1, 2))
        return about.moved(weights / weights.sum(), mean, covariance)


def chart_about(parameters: Parameters, family: Covariance) -> Chart:
    """Return the coordinates of a family around parameters that are members of it."""
    return Chart(parameters, family, *_directions(parameters, family))


def free_directions(
    parameters: Parameters, family: Covariance, is_free: NDArray[np.bool_]
) -> Array:
    """Return (p, m): the directions of the covariances that leave those that are not free alone."""
    logs, turns, _ = _directions(parameters, family)
    if not is_free.any():
        return np.zeros((len(logs), 0))
    moves = (np.abs(logs) + np.abs(turns))[:, ~is_free].sum(axis=(1, 2, 3)) > 0
    return np.eye(len(logs))[:, ~moves]


# Full coordinates: for each component (alpha, delta (d), s (q)), S = sum_p s_p basis_p; at the end
# the noise's alpha, if there is one.


def symmetric_basis(d: int, *, diagonal: bool) -> Array:
    """Return (q, d, d): matrices with a one, or two, that span the symmetric ones."""
    rows, columns = (np.arange(d), np.arange(d)) if diagonal else np.tril_indices(d)
    basis = np.zeros((len(rows), d, d))
    index = np.arange(len(rows))
    basis[index, rows, columns] = 1.0
    basis[index, columns, rows] = 1.0
    return basis


def slots(k: int, d: int, q: int) -> tuple[Index, Index, Index]:
    """Positions of alpha (k,), delta (k, d) and s (k, q) in the full coordinate vector."""
    block = np.arange(k * (1 + d + q)).reshape(k, 1 + d + q)
    return block[:, 0], block[:, 1 : 1 + d], block[:, 1 + d :]


def positions(basis: Array) -> tuple[Index, Index]:
    """Return (q,) rows and columns of the ones in the lower triangles of the basis."""
    return tuple(np.array([np.argwhere(np.tril(b))[0] for b in basis]).T)


def natural_derivative(parameters: Parameters, basis: Array) -> Array:
    """Derivative of (weights, means, covariances), and the noise's weight, in full coordinates."""
    k, d = parameters.k, parameters.d
    alpha, delta, s = slots(k, d, len(basis))
    pi, factor = parameters.weights, parameters.factor
    has_noise = len(pi) - k
    width = k * (1 + d + len(basis))
    out = np.zeros((k + k * d + k * d * d + has_noise, width + has_noise))
    of_weight = np.append(np.arange(k), np.full(has_noise, len(out) - 1))
    by_weight = np.append(alpha, np.full(has_noise, width))
    out[np.ix_(of_weight, by_weight)] = np.diag(pi) - np.outer(pi, pi)
    for j in range(k):
        out[k + j * d : k + (j + 1) * d, delta[j]] = factor[j]
        moved = factor[j] @ basis @ factor[j].T
        at = k + k * d + j * d * d
        out[at : at + d * d, s[j]] = moved.reshape(len(basis), d * d).T
    return out


# Directions, and S_k to second order in them.


def _rotation(skew: Array) -> Array:
    """Exponentials of skew matrices (k, d, d), by the eigenvalues of Hermitian ones."""
    value, vector = np.linalg.eigh(1j * skew)
    turned = (vector * np.exp(-1j * value)[:, None, :]) @ np.conj(np.swapaxes(vector, 1, 2))
    return np.asarray(turned.real)


def _directions(parameters: Parameters, family: Covariance) -> tuple[Array, Array, Array]:
    """Free directions of the covariances: log-spectra (p, k, d, d), turns (p, k, d, d), frames.

    In the frame Q_k (k, d, d; its columns in whitened coordinates) direction p adds a symmetric
    matrix to the logarithm of the spectrum and turns the axes by a skew one.
    """
    k, d = parameters.k, parameters.d
    eye = np.eye(d)
    own = np.eye(k)

    def spread(letter: str, shapes: Array) -> list[Array]:
        """(k, d, d) directions: one set for all components, or one for each."""
        if letter == "I":
            return []
        groups = np.ones((1, k)) if letter == "E" else own
        return [g[:, None, None] * m for g in groups for m in shapes]

    traceless = np.array([np.diag(eye[i] - eye[d - 1]) for i in range(d - 1)]).reshape(-1, d, d)
    off = symmetric_basis(d, diagonal=False)
    off = off[[b.trace() == 0 for b in off]]
    symmetric = spread(family.volume, eye[None]) + spread(family.shape, traceless)
    skew: list[Array] = []
    if family.is_polar:
        skew = spread(family.orientation, np.tril(off) - np.triu(off))
        frame = _polar_frame(parameters, family)
    else:
        symmetric += spread(family.orientation, off)
        frame = np.broadcast_to(eye, (k, d, d))
    zeros = np.zeros((k, d, d))
    logs = np.array(symmetric + [zeros] * len(skew)).reshape(-1, k, d, d)
    turns = np.array([zeros] * len(symmetric) + skew).reshape(-1, k, d, d)
    return logs, turns, frame


def _polar_frame(parameters: Parameters, family: Covariance) -> Array:
    """Q_k = W_k D_k V_k^{1/2}: orthogonal; its columns are the family's axes, whitened."""
    if family.orientation == "E":
        axes = np.broadcast_to(shared_axes(parameters.covariance), parameters.covariance.shape)
    else:
        axes = np.linalg.eigh(parameters.covariance)[1]
    spectrum = np.einsum("kia,kij,kja->ka", axes, parameters.covariance, axes)
    with np.errstate(invalid="ignore"):  # NaN where a variance is rounding: no standard errors
        root = np.sqrt(spectrum)
    return parameters.whitening @ (axes * root[:, None, :])


def _log_spectrum(parameters: Parameters, frame: Array) -> Array:
    """log of the variances along the frame's axes, (k, d)."""
    axes = parameters.factor @ frame
    return np.log((axes**2).sum(axis=1))


def _first_order(logs: Array, turns: Array, frame: Array, parameters: Parameters) -> Array:
    tau = _log_spectrum(parameters, frame)
    half = 0.5 * (tau[:, None, :] - tau[:, :, None])
    inside = logs + 2.0 * turns * np.sinh(half)
    return frame @ inside @ np.swapaxes(frame, 1, 2)


def _second_order(
    slope: Array, logs: Array, turns: Array, frame: Array, parameters: Parameters
) -> Array:
    r"""Hessian of :math:`\sum_k \mathrm{tr}(G_k S_k)`, S = log(V^{-1/2} R V e^t R' V^{-1/2})."""
    tau = _log_spectrum(parameters, frame)
    slope = np.swapaxes(frame, 1, 2) @ slope @ frame
    v = np.exp(tau)[:, None, :] * np.eye(tau.shape[1])
    root = np.exp(-0.5 * tau)
    outer = root[:, :, None] * root[:, None, :]

    def quadratic(t: Array, turn: Array) -> Array:
        first = outer * (v @ t + turn @ v - v @ turn)
        square = turn @ turn
        second = outer * (
            0.5 * v @ t @ t
            + turn @ (v @ t)
            - (v @ t) @ turn
            + 0.5 * (square @ v + v @ square)
            - turn @ v @ turn
        )
        return np.einsum("kij,...kji->...", slope, second - 0.5 * first @ first)

    alone = quadratic(logs, turns)
    hessian = np.empty((len(logs), len(logs)))
    for i in range(len(logs)):
        hessian[i] = quadratic(logs + logs[i], turns + turns[i]) - alone - alone[i]
    return hessian
