r"""Observed information of a mixture, standard errors, and how far an estimate is from its limit.

The log-likelihood's second derivative is taken in *local coordinates* of the family around the
estimate, in which first and second derivatives are exact and closed:

.. math:: \pi_k \propto \hat\pi_k e^{\alpha_k}, \quad \mu_k = \hat\mu_k + L_k \delta_k, \quad
          \Sigma_k = L_k \exp(S_k) L_k^\top

with :math:`S_k` symmetric and restricted to what the family leaves free.  By Louis' identity

.. math:: I = \underbrace{-\sum_{nk} r_{nk} h_{nk}}_{\text{complete, from T}} -
          \underbrace{\sum_n \mathrm{Var}(s_n \mid x_n)}_{\text{missing, per row}}

where s and h are the first and second derivatives of a row's complete-data log-density.

References
----------
Louis (1982), J. R. Statist. Soc. B 44, 226-233.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from bayesgmm.covariance import Covariance, shared_axes
from bayesgmm.moments import UNWEIGHTED, Array, Moments, Parameters, responsibilities

Index = NDArray[np.intp]
_ROWS = 4096  # rows per block of the missing information
# Below this, relative to the complete-data information, an eigenvalue is rounding, not curvature.
_FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Information:
    """Observed information of one fit, in local coordinates, with its maps to natural parameters.

    Parameters
    ----------
    matrix : (p, p) array
        Negative second derivative of the objective; p is the number of free parameters.
    gradient : (p,) array
        First derivative of the objective.
    natural : (k + k d + k d d, p) array
        Derivative of weights, means and covariances (flattened in this order).
    shape : (k, d)
        Numbers of components and features.
    """

    matrix: Array
    gradient: Array
    natural: Array
    shape: tuple[int, int]
    covariance: Array | None  # inverse of the matrix; None where it is not positive definite

    @property
    def is_positive_definite(self) -> bool:
        """Whether the estimate is a strict local maximum, so that standard errors exist."""
        return self.covariance is not None

    @property
    def distance(self) -> float:
        r"""Newton decrement :math:`\sqrt{g^\top I^{-1} g}`; NaN where the matrix is not definite.

        No scalar function of the parameters is further from its limit than this many of its own
        standard errors (to first order, by Cauchy and Schwarz).
        """
        if self.covariance is None:
            return float("nan")
        return float(np.sqrt(abs(float(self.gradient @ self.covariance @ self.gradient))))

    def standard_errors(self) -> Parameters:
        """Return standard errors of weights, means and covariances, shaped as these; else NaN."""
        k, d = self.shape
        if self.covariance is None:
            se = np.full(k + k * d + k * d * d, np.nan)
        else:
            variance = np.einsum("ip,pq,iq->i", self.natural, self.covariance, self.natural)
            se = np.sqrt(np.maximum(variance, 0.0))
        return Parameters(se[:k], se[k : k + k * d].reshape(k, d), se[k + k * d :].reshape(k, d, d))


def observed_information(
    x: Array,
    parameters: Parameters,
    moments: Moments,
    family: Covariance,
    weight: Array = UNWEIGHTED,
) -> Information:
    """Return the observed information at ``parameters``, exact for every family.

    Parameters
    ----------
    x : (n, d) array
    parameters : Parameters
        In the units of ``x``.
    moments : Moments
        The sums about ``parameters``; with a prior's added, the information is the posterior's.
    family : Covariance
    weight : (n,) array, optional
        Observation weights, as frequencies.
    """
    k, d = parameters.k, parameters.d
    basis = _symmetric_basis(d, diagonal=family.is_diagonal)
    full = _complete(parameters, moments, basis) - _missing(x, parameters, basis, weight)
    slope = _gradient(parameters, moments, basis)
    tangent, curvature = _chart(parameters, family, moments, basis)
    matrix = tangent.T @ full @ tangent - curvature
    matrix = 0.5 * (matrix + matrix.T)
    complete = np.diagonal(tangent.T @ _complete(parameters, moments, basis) @ tangent)
    return Information(
        matrix,
        tangent.T @ slope,
        _natural(parameters, basis) @ tangent,
        (k, d),
        _inverse(matrix, complete),
    )


def restricted(information: Information, free: Array) -> Information:
    """Return the information about parameters that move in the ``free`` (p, m) directions only."""
    matrix = free.T @ information.matrix @ free
    return Information(
        matrix,
        free.T @ information.gradient,
        information.natural @ free,
        information.shape,
        _inverse(matrix, np.diagonal(matrix)),
    )


def free_directions(
    parameters: Parameters, family: Covariance, is_free: NDArray[np.bool_]
) -> Array:
    """Return (p, m): the directions of the covariances that leave those that are not free alone."""
    logs, turns, _ = _directions(parameters, family)
    if not is_free.any():
        return np.zeros((len(logs), 0))
    moves = (np.abs(logs) + np.abs(turns))[:, ~is_free].sum(axis=(1, 2, 3)) > 0
    return np.eye(len(logs))[:, ~moves]


# Full coordinates: for each component (alpha, delta (d), s (q)), S = sum_p s_p basis_p.


def _symmetric_basis(d: int, *, diagonal: bool) -> Array:
    rows, columns = (np.arange(d), np.arange(d)) if diagonal else np.tril_indices(d)
    basis = np.zeros((len(rows), d, d))
    index = np.arange(len(rows))
    basis[index, rows, columns] = 1.0
    basis[index, columns, rows] = 1.0
    return basis


def _slots(k: int, d: int, q: int) -> tuple[Index, Index, Index]:
    """Positions of alpha (k,), delta (k, d) and s (k, q) in the full coordinate vector."""
    block = np.arange(k * (1 + d + q)).reshape(k, 1 + d + q)
    return block[:, 0], block[:, 1 : 1 + d], block[:, 1 + d :]


def _gradient(parameters: Parameters, moments: Moments, basis: Array) -> Array:
    k, d = parameters.k, parameters.d
    alpha, delta, s = _slots(k, d, len(basis))
    g = np.zeros(k * (1 + d + len(basis)))
    g[alpha] = moments.weight_count - moments.weight_count.sum() * parameters.weight
    g[delta] = moments.first
    inner = moments.second - moments.covariance_count[:, None, None] * np.eye(d)
    g[s] = 0.5 * np.einsum("pij,kij->kp", basis, inner)
    return g


def _complete(parameters: Parameters, moments: Moments, basis: Array) -> Array:
    k, d = parameters.k, parameters.d
    alpha, delta, s = _slots(k, d, len(basis))
    size = k * (1 + d + len(basis))
    info = np.zeros((size, size))
    pi = parameters.weight
    info[np.ix_(alpha, alpha)] = moments.weight_count.sum() * (np.diag(pi) - np.outer(pi, pi))
    for j in range(k):
        info[np.ix_(delta[j], delta[j])] = moments.mean_count[j] * np.eye(d)
        cross = basis @ moments.first[j]
        info[np.ix_(s[j], delta[j])] = cross
        info[np.ix_(delta[j], s[j])] = cross.T
        product = basis @ moments.second[j]
        square = 0.25 * np.einsum("pij,qji->pq", product, basis)
        info[np.ix_(s[j], s[j])] = square + square.T
    return info


def _missing(x: Array, parameters: Parameters, basis: Array, weight: Array) -> Array:
    """Sum over rows of the variance of the complete-data score, given the row."""
    k, d = parameters.k, parameters.d
    width = 1 + d + len(basis)
    info = np.zeros((k * width, k * width))
    rows, columns = np.array([np.argwhere(np.tril(b))[0] for b in basis]).T
    factor = np.where(rows == columns, 0.5, 1.0)[:, None]
    offset = np.where(rows == columns, 0.5, 0.0)[:, None]
    score = np.empty((k, width, _ROWS))
    for begin in range(0, len(x), _ROWS):
        part = x[begin : begin + _ROWS]
        n = len(part)
        r = responsibilities(part, parameters).T
        if len(weight):
            root = np.sqrt(weight[begin : begin + n])
        for j in range(k):
            # One row of `own` for each coordinate: they are long, and side by side in memory.
            own = score[j, :, :n]
            own[0] = 1.0
            z = own[1 : 1 + d]
            np.matmul(parameters.whitening[j], (part - parameters.mean[j]).T, out=z)
            np.multiply(z[rows], z[columns], out=own[1 + d :])
            own[1 + d :] *= factor
            own[1 + d :] -= offset
            if len(weight):
                own *= root
            scaled = own * r[j]
            block = slice(j * width, (j + 1) * width)
            info[block, block] += scaled @ own.T
            own[:] = scaled
        mean_score = score[:, :, :n].reshape(k * width, n)
        info -= mean_score @ mean_score.T
    return info


def _natural(parameters: Parameters, basis: Array) -> Array:
    """Derivative of (weights, means, covariances) in full coordinates."""
    k, d = parameters.k, parameters.d
    alpha, delta, s = _slots(k, d, len(basis))
    out = np.zeros((k + k * d + k * d * d, k * (1 + d + len(basis))))
    pi, factor = parameters.weight, parameters.factor
    out[:k, alpha] = np.diag(pi) - np.outer(pi, pi)
    for j in range(k):
        out[k + j * d : k + (j + 1) * d, delta[j]] = factor[j]
        moved = factor[j] @ basis @ factor[j].T
        at = k + k * d + j * d * d
        out[at : at + d * d, s[j]] = moved.reshape(len(basis), d * d).T
    return out


# The family's chart: S_k(phi) to second order.


def _chart(
    parameters: Parameters, family: Covariance, moments: Moments, basis: Array
) -> tuple[Array, Array]:
    """Derivative of full by family coordinates, and sum_k <dl/dS_k, second derivative of S_k>."""
    k, d = parameters.k, parameters.d
    alpha, delta, s = _slots(k, d, len(basis))
    directions, turns, frame = _directions(parameters, family)
    p = k - 1 + k * d + len(directions)
    tangent = np.zeros((k * (1 + d + len(basis)), p))
    curvature = np.zeros((p, p))
    # Any k - 1 directions that change the weights; the common shift of alpha changes nothing.
    tangent[np.ix_(alpha, range(k - 1))] = np.eye(k)[:, 1:]
    tangent[delta.ravel(), range(k - 1, k - 1 + k * d)] = 1.0
    linear = _first_order(directions, turns, frame, parameters)
    rows, columns = np.array([np.argwhere(np.tril(b))[0] for b in basis]).T
    tangent[np.ix_(s.ravel(), range(k - 1 + k * d, p))] = (
        linear[:, :, rows, columns].reshape(len(directions), -1).T
    )
    if family.is_polar:
        inner = moments.second - moments.covariance_count[:, None, None] * np.eye(d)
        block = slice(k - 1 + k * d, p)
        curvature[block, block] = _second_order(0.5 * inner, directions, turns, frame, parameters)
    return tangent, curvature


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
    off = _symmetric_basis(d, diagonal=False)
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
    return parameters.whitening @ (axes * np.sqrt(spectrum)[:, None, :])


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


def _inverse(matrix: Array, complete: Array) -> Array | None:
    """Inverse of the information if it is positive definite beyond rounding, else None."""
    if not (np.isfinite(matrix).all() and (complete > 0).all()):
        return None
    unit = 1.0 / np.sqrt(complete)
    scaled = matrix * np.outer(unit, unit)
    if len(scaled) and np.linalg.eigvalsh(scaled)[0] <= _FLAT:
        return None
    if not len(scaled):
        return matrix.copy()
    inverse = cho_solve(cho_factor(scaled), np.eye(len(scaled)))
    return np.asarray(inverse * np.outer(unit, unit))
