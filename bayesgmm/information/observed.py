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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bayesgmm.covariance import Covariance
from bayesgmm.groups import NO_LABELS, Group, View, split, views
from bayesgmm.information.coordinates import Index, chart_about, positions, slots
from bayesgmm.moments import UNWEIGHTED, Array, Moments, Noise, Parameters

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
        Derivative of weights, means and covariances (flattened in this order); one row more for the
        noise's weight, if there is one.
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
        return natural_errors(self.natural, self.covariance, self.shape)


def natural_errors(natural: Array, covariance: Array | None, shape: tuple[int, int]) -> Parameters:
    """Return standard errors of weights, means and covariances, NaN where there is no covariance.

    Parameters
    ----------
    natural : (k + k d + k d d, p) array
        Their derivative by coordinates.
    covariance : (p, p) array or None
        Of the coordinates.
    shape : (k, d)
    """
    k, d = shape
    if covariance is None:
        se = np.full(len(natural), np.nan)
    else:
        variance = np.vecdot(natural @ covariance, natural)
        se = np.sqrt(np.where(variance < 0.0, 0.0, variance))  # rounding; NaN stays
    weight, mean, covariance, noise = np.split(se, np.cumsum([k, k * d, k * d * d]))
    return Parameters(
        weight,
        mean.reshape(k, d),
        covariance.reshape(k, d, d),
        Noise(float(noise[0]), float("nan")) if len(noise) else None,
    )


def observed_information(
    x: Array,
    parameters: Parameters,
    moments: Moments,
    family: Covariance,
    weight: Array = UNWEIGHTED,
    probability: Array = NO_LABELS,
) -> Information:
    """Return the observed information at ``parameters``, exact for every family.

    Parameters
    ----------
    x : (n, d) array
        NaN where missing.
    parameters : Parameters
        In the units of ``x``.
    moments : Moments
        The sums about ``parameters``; with a prior's added, the information is the posterior's.
    family : Covariance
    weight : (n,) array, optional
        Observation weights, as frequencies.
    probability : (n, k) array, optional
        What is known of the rows' components.
    """
    k, d = parameters.k, parameters.d
    around = chart_about(parameters, family)
    basis, tangent = around.basis, around.tangent
    missing = _missing(x, parameters, basis, weight, probability)
    full = _complete(parameters, moments, basis) - missing
    slope = _gradient(parameters, moments, basis)
    matrix = tangent.T @ full @ tangent - around.curvature(moments)
    matrix = 0.5 * (matrix + matrix.T)
    complete = np.diagonal(tangent.T @ _complete(parameters, moments, basis) @ tangent)
    return Information(
        matrix,
        tangent.T @ slope,
        around.natural,
        (k, d),
        inverse(matrix, complete),
    )


def outer_products(
    groups: Sequence[Group], parameters: Parameters, family: Covariance
) -> Information:
    r"""Return the information as the outer products of the rows' scores (OPG, BHHH).

    .. math:: J = \sum_n w_n (s_n - \bar s)(s_n - \bar s)^\top, \qquad
              s_n = \nabla \log p(x_n), \quad \bar s = \sum_n w_n s_n / \sum_n w_n

    At a maximum of the likelihood the mean score is 0.  At the mode of a posterior it is what holds
    the prior's gradient in balance, which so counts as spread evenly over the observations.
    Weights are frequencies: a row with weight w is w observations with the same score, and adds
    :math:`w \, s s^\top`.

    Parameters
    ----------
    groups : sequence of Group
        The data.
    parameters : Parameters
        In the units of the data.
    family : Covariance

    References
    ----------
    Berndt, Hall, Hall & Hausman (1974), Ann. Econ. Soc. Meas. 3, 653-665.
    """
    around = chart_about(parameters, family)
    size = len(around.tangent)
    matrix, gradient, total = np.zeros((size, size)), np.zeros(size), 0.0
    for view in views(groups, parameters, diagonal=family.is_diagonal):
        x, weight = view.group.x, view.group.weight
        for part in view.blocks(_ROWS):
            own = part.group.weight
            score = _scores(part.group.x, part.rows()[1], part, parameters.k, around.basis)
            scaled = score * own if len(own) else score
            matrix += scaled @ score.T
            gradient += scaled.sum(axis=1)
        total += float(weight.sum()) if len(weight) else float(len(x))
    matrix = around.tangent.T @ matrix @ around.tangent
    gradient = around.tangent.T @ gradient
    centred = matrix - np.outer(gradient, gradient) / total
    return Information(
        centred,
        gradient,
        around.natural,
        (parameters.k, parameters.d),
        inverse(centred, np.diagonal(centred)),
    )


def restricted(information: Information, free: Array) -> Information:
    """Return the information about parameters that move in the ``free`` (p, m) directions only."""
    matrix = free.T @ information.matrix @ free
    return Information(
        matrix,
        free.T @ information.gradient,
        information.natural @ free,
        information.shape,
        inverse(matrix, np.diagonal(matrix)),
    )


def _gradient(parameters: Parameters, moments: Moments, basis: Array) -> Array:
    k, d = parameters.k, parameters.d
    _, delta, s = slots(k, d, len(basis))
    alpha, size = _log_weights(parameters, basis)
    g = np.zeros(size)
    g[alpha] = moments.weight_count - moments.weight_count.sum() * parameters.weights
    g[delta] = moments.first
    inner = moments.second - moments.covariance_count[:, None, None] * np.eye(d)
    g[s] = 0.5 * np.einsum("pij,kij->kp", basis, inner)
    return g


def _log_weights(parameters: Parameters, basis: Array) -> tuple[Index, int]:
    """Positions of the log-weights, that of the noise last, and the number of full coordinates."""
    alpha = slots(parameters.k, parameters.d, len(basis))[0]
    size = parameters.k * (1 + parameters.d + len(basis))
    if parameters.noise is None:
        return alpha, size
    return np.append(alpha, size), size + 1


def _complete(parameters: Parameters, moments: Moments, basis: Array) -> Array:
    k, d = parameters.k, parameters.d
    _, delta, s = slots(k, d, len(basis))
    alpha, size = _log_weights(parameters, basis)
    info = np.zeros((size, size))
    pi = parameters.weights
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


def _missing(
    x: Array, parameters: Parameters, basis: Array, weight: Array, probability: Array
) -> Array:
    """Sum over rows of the variance of the complete-data score, given what is known of the row.

    That is the variance between components of the score's expectation, and the expectation of its
    variance within a component, where values are missing.
    """
    k, d = parameters.k, parameters.d
    width = 1 + d + len(basis)
    size = _log_weights(parameters, basis)[1]
    info = np.zeros((size, size))
    rows, columns = positions(basis)
    factor = np.where(rows == columns, 0.5, 1.0)[:, None]
    score = np.empty((k, width, _ROWS))
    for view in views(split(x, weight, probability), parameters):
        # z given what is observed has mean T (x - mean) and covariance V.
        transform = view.loading @ view.marginal.whitening
        spread = np.eye(d) - view.loading @ np.swapaxes(view.loading, 1, 2)
        offset = np.where(rows == columns, 0.5, 0.0) - factor[:, 0] * spread[:, rows, columns]
        has_missing = not view.group.observed.all()
        for part in view.blocks(_ROWS):
            n = len(part.group.x)
            r = part.rows()[1].T
            root = np.sqrt(part.group.weight)
            for j in range(k):
                # One row of `own` for each coordinate: they are long, and side by side in memory.
                own = score[j, :, :n]
                own[0] = 1.0
                z = own[1 : 1 + d]
                np.matmul(transform[j], (part.group.x - view.marginal.mean[j]).T, out=z)
                np.multiply(z[rows], z[columns], out=own[1 + d :])
                own[1 + d :] *= factor
                own[1 + d :] -= offset[j][:, None]
                if len(root):
                    own *= root
                scaled = own * r[j]
                block = slice(j * width, (j + 1) * width)
                product = scaled @ own.T
                info[block, block] += product
                if has_missing:
                    info[block, block] += _within(product, spread[j], rows, columns, factor)
                own[:] = scaled
            mean_score = score[:, :, :n].reshape(k * width, n)
            if size > len(mean_score):  # the noise, of which nothing but its weight is unknown
                noise = r[-1] * root if len(root) else r[-1]
                info[-1, -1] += noise @ (root if len(root) else np.ones(n))
                mean_score = np.concatenate([mean_score, noise[None]])
            info -= mean_score @ mean_score.T
    return info


def _within(product: Array, v: Array, rows: Index, columns: Index, factor: Array) -> Array:
    r"""Return the variance of (1, z, products of z) for normal z, summed over rows.

    .. math:: \mathrm{Cov}(z_i, z_j z_k) = m_j V_{ik} + m_k V_{ij}, \quad
        \mathrm{Cov}(z_i z_j, z_k z_l) = V_{ik} V_{jl} + V_{il} V_{jk} + m_i m_k V_{jl}
        + m_i m_l V_{jk} + m_j m_k V_{il} + m_j m_l V_{ik}

    Parameters
    ----------
    product : (1 + d + q, 1 + d + q) array
        Sums of r, r m and r m m', in its first 1 + d rows and columns.
    v : (d, d) array
    rows, columns : (q,) arrays
        Which products of z there are.
    factor : (q, 1) array
        What they are multiplied by.
    """
    d = len(v)
    count, m, mm = product[0, 0], product[0, 1 : 1 + d], product[1 : 1 + d, 1 : 1 + d]
    out = np.zeros(product.shape)
    linear, square = slice(1, 1 + d), slice(1 + d, None)
    out[linear, linear] = count * v
    cross = m[rows] * v[:, columns] + m[columns] * v[:, rows]
    out[linear, square] = cross * factor.T
    out[square, linear] = out[linear, square].T
    for one, other in ((rows, columns), (columns, rows)):
        ik, jl = np.ix_(rows, one), np.ix_(columns, other)
        out[square, square] += count * v[ik] * v[jl] + mm[ik] * v[jl] + mm[jl] * v[ik]
    out[square, square] *= factor * factor.T
    return out


def _scores(x: Array, r: Array, view: View, k: int, basis: Array) -> Array:
    """Return the derivatives of the rows' log-densities in full coordinates, (k (1 + d + q), n)."""
    p, n = view.marginal, len(x)  # k components, and the noise if there is one
    rows, columns = positions(basis)
    half = np.where(rows == columns, 0.5, 1.0)[:, None]
    score = np.empty((k, 1 + p.d + len(basis), n))
    for own, rj, weight, mean, w, a in zip(
        score, r.T, p.weight, p.mean, p.whitening, view.loading, strict=False
    ):
        z = a @ (w @ (x - mean).T)
        own[0] = rj - weight
        own[1 : 1 + p.d] = rj * z
        own[1 + p.d :] = rj * half * (z[rows] * z[columns] - (a @ a.T)[rows, columns, None])
    of_noise = r.T[k:] - p.weight[k:, None]
    return np.concatenate([score.reshape(-1, n), of_noise])


def inverse(matrix: Array, complete: Array) -> Array | None:
    """Return the inverse of an information matrix; None if it is not definite beyond rounding."""
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
