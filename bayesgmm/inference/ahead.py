r"""The way to a replicate's optimum: quasi-Newton steps from the estimate.

.. math:: \theta \leftarrow \theta + V \nabla \ell^*(\theta)

with the replicate's log-likelihood (or log posterior density), and V at first the covariance matrix
of the estimates, from the observed information of the data; BFGS improves it as they go.  A
replicate's optimum is about a standard error away and its likelihood curved much like that of the
data, so that a few steps of this kind, each a pass over the data, do what takes EM dozens.  EM goes
on from there and has the last word.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bayesgmm.covariance import Covariance, maximise
from bayesgmm.data.observations import Data
from bayesgmm.inference.estimate import Estimate
from bayesgmm.moments import Array, Moments, Parameters, gradient

_STEPS = 30  # at most
_REST = 0.25  # of the tolerance: EM then has one step to make
_MOST = 1000  # weights, means and covariances: with more, matrices cost more than EM's steps


def covariance_of(estimate: Estimate) -> Array | None:
    """Return the covariance matrix of weights, means and covariances, flattened.

    None where there is none, or it would be large; and where parameters are fixed or there is
    noise, of which a step would have to be told.
    """
    about = estimate.parameters
    size = about.weight.size + about.mean.size + about.covariance.size
    if size > _MOST or estimate.held is not None or about.noise is not None:
        return None
    found = estimate.information(about, estimate.sums(about))
    if found.covariance is None:
        return None
    return np.asarray(found.natural @ found.covariance @ found.natural.T)


def ahead(
    estimate: Estimate, data: Data, covariance: Array | None, tol: float, threads: int | None = None
) -> Parameters:
    """Return parameters near a replicate's optimum, or the estimate.

    Parameters
    ----------
    estimate : Estimate
    data : Data
        The replicate.
    covariance : (q, q) array or None
        By `covariance_of`.
    tol : float
        Distance from the limit, in standard errors, at which to stop.
    threads : int, optional
    """
    here, matrix = estimate.parameters, covariance
    if matrix is None:
        return here
    replicate = replace(estimate, data=data)
    sums = replicate.sums(here, threads)
    slope, share = _slope(here, sums), 1.0
    for _ in range(_STEPS):
        step = matrix @ slope
        if not slope @ step > (_REST * tol) ** 2:  # standard errors, squared
            break
        tried = _moved(here, share * step, sums, estimate.family)
        new = replicate.sums(tried, threads) if tried else None
        if tried is None or new is None or not new.loglik >= sums.loglik:
            share *= 0.5
            continue
        share = min(2.0 * share, 1.0)
        moved, last = _flat(tried) - _flat(here), slope
        here, sums, slope = tried, new, _slope(tried, new)
        matrix = _learnt(matrix, moved, last - slope)
    return here


def _moved(here: Parameters, step: Array, sums: Moments, family: Covariance) -> Parameters | None:
    """Return the member of the family a step away; None if there is none."""
    k, d = here.k, here.d
    weight = here.weight + step[:k]
    if not weight.min() > 0:
        return None
    mean = here.mean + step[k : k + k * d].reshape(k, d)
    spread = here.covariance + step[k + k * d :].reshape(k, d, d)
    count = sums.covariance_count
    scatter = count[:, None, None] * spread
    tried = Parameters(weight, mean, maximise(family, count, scatter, here.covariance))
    try:
        _ = tried.whitening
    except np.linalg.LinAlgError:
        return None
    return tried


def _learnt(matrix: Array, moved: Array, bent: Array) -> Array:
    """Return an inverse Hessian that knows one more difference of points and gradients: BFGS."""
    square = float(moved @ bent)
    if not square > 0:
        return matrix
    turned = matrix @ bent
    own = (1.0 + bent @ turned / square) / square * np.outer(moved, moved)
    cross = np.outer(turned, moved) / square
    return np.asarray(matrix + own - cross - cross.T)


def _flat(p: Parameters) -> Array:
    return np.concatenate([p.weight, p.mean.ravel(), p.covariance.ravel()])


def _slope(about: Parameters, sums: Moments) -> Array:
    """Return the derivative of the objective by weights, means and covariances."""
    by_log_weight, by_mean, by_covariance = gradient(sums, about)
    return np.concatenate([by_log_weight / about.weight, by_mean.ravel(), by_covariance.ravel()])
