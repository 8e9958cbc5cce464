r"""The table of sums: one pass over the data, and everything that is made from it.

For data :math:`x_1 \dots x_N`, parameters :math:`\theta` = (weights :math:`\pi`, means
:math:`\mu`, covariances :math:`\Sigma`) and responsibilities
:math:`r_{nk} \propto \pi_k N(x_n; \mu_k, \Sigma_k)`

.. math:: T(\theta) = \Big( \ell, \; N_k = \sum_n r_{nk}, \; \sum_n r_{nk} z_{nk}, \;
          \sum_n r_{nk} z_{nk} z_{nk}^\top \Big), \qquad z_{nk} = W_k (x_n - \mu_k), \quad
          W_k^\top W_k = \Sigma_k^{-1}

and that one value has every use the package needs:

* EM's M-step maximises :math:`Q(\theta; T)`  (`scatter`, then `covariance.maximise`);
* the gradient is :math:`\nabla \ell(\theta) = \nabla_\theta Q(\theta; T)` with T held fixed,
  Fisher's identity (`gradient`): one leapfrog step of NUTS costs one EM iteration;
* T of two data sets at the same :math:`\theta` is the sum (``+``): blocks, threads, machines;
* a conjugate prior is pseudo-data, T + T0 (`resolved.pseudo_moments`).

It is the textbook derivation:
:math:`\partial\ell/\partial\mu_k = \Sigma_k^{-1} \sum_n r_{nk} (x_n - \mu_k)`, a
responsibility-weighted residual; set to zero it is EM's mean update; with responsibilities of 0 and
1 it is k-means'.  The sums are about the current parameters (z is centred and whitened), so nothing
cancels, whatever the data's offset.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayesgmm.numeric import kernel

Array = NDArray[np.float64]
UNWEIGHTED: Array = np.empty(0)
_ROWS = 4096  # rows that are taken together in NumPy


# The noise component as a normal distribution: this many standard deviations are one unit of data,
# so that it is flat to the last bit as far as 1e20 units.
FLAT = 2.0**-100


@dataclass(frozen=True)
class Noise:
    """What is in no component: rows that are uniform over a region (Banfield & Raftery 1993).

    Parameters
    ----------
    weight : float
        Its share of the rows.
    log_density : float
        Minus the logarithm of the region's volume; the same everywhere, also outside.
    log_edges : tuple of float, optional
        Logarithms of the region's lengths along the d columns, if it is a box along them.
    """

    weight: float
    log_density: float
    log_edges: tuple[float, ...] | None = None

    def of(self, observed: NDArray[np.bool_]) -> Noise:
        """Return the noise of some columns alone; of a box along the columns it is uniform."""
        if observed.all():
            return self
        if not observed.any():
            return replace(self, log_density=0.0)
        if self.log_edges is None:
            raise ValueError("noise that is no box along the columns is not uniform in some")
        return replace(self, log_density=-float(np.array(self.log_edges)[observed].sum()))

    def take(self, columns: Sequence[int], d: int) -> Noise:
        """Return the noise of some of d columns by themselves, in this order."""
        found = self.of(np.isin(np.arange(d), columns))
        if self.log_edges is None:
            return found
        return replace(found, log_edges=tuple(self.log_edges[j] for j in columns))


@dataclass(frozen=True, eq=False)
class Parameters:
    """Weights, means and covariances of a mixture: theta.

    Parameters
    ----------
    weight : (k,) array
        They sum to one, with the noise's.
    mean : (k, d) array
    covariance : (k, d, d) array
        Symmetric positive definite.
    noise : Noise, optional
    """

    weight: Array
    mean: Array
    covariance: Array
    noise: Noise | None = None

    @property
    def k(self) -> int:
        """Number of components."""
        return len(self.weight)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.mean.shape[1]

    @cached_property
    def factor(self) -> Array:
        """(k, d, d) lower Cholesky factors L of the covariances; LinAlgError if there is none."""
        return np.linalg.cholesky(self.covariance)

    @cached_property
    def whitening(self) -> Array:
        """(k, d, d) lower triangular W = inverse of L, W'W the inverse covariance; errors as L."""
        # A copy of one layout: Numba compiles a function for each that it meets.
        whitening, is_definite = kernel.factorise(np.array(self.covariance, order="C"), False)
        if not is_definite:
            raise np.linalg.LinAlgError("a covariance is not positive definite")
        return np.asarray(whitening)

    @cached_property
    def log_weight(self) -> Array:
        """(k,) logarithms of the weights, -inf where a weight is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.weight)

    @property
    def weights(self) -> Array:
        """All weights, that of the noise last if there is one: (k,) or (k + 1,)."""
        return self.weight if self.noise is None else np.append(self.weight, self.noise.weight)

    @cached_property
    def widened(self) -> Parameters:
        """The same density by normal distributions alone: the noise is one so wide that it is flat.

        So it needs no pass of its own: (k + 1) components, the last of which never moves.
        """
        if self.noise is None:
            return self
        d = self.d
        eye, level = np.eye(d)[None], self.noise.log_density + 0.5 * d * np.log(2.0 * np.pi)
        one = Parameters(
            self.weights,
            np.concatenate([self.mean, np.zeros((1, d))]),
            np.concatenate([self.covariance, eye / FLAT**2]),
        )
        log_noise = np.log(self.noise.weight) if self.noise.weight > 0 else -np.inf
        # What they would be, but for the noise's own level.
        vars(one)["log_weight"] = np.append(self.log_weight, log_noise + level - d * np.log(FLAT))
        vars(one)["whitening"] = np.concatenate([self.whitening, eye * FLAT])
        return one

    def moved(self, weights: Array, mean: Array, covariance: Array) -> Parameters:
        """Return other parameters of the same kind; ``weights`` as the property."""
        if self.noise is None:
            return Parameters(weights, mean, covariance)
        noise = replace(self.noise, weight=float(weights[-1]))
        return Parameters(weights[:-1], mean, covariance, noise)

    def take(self, order: Sequence[int] | NDArray[np.intp]) -> Parameters:
        """Return the same mixture with its components in another order."""
        return Parameters(self.weight[order], self.mean[order], self.covariance[order], self.noise)


@dataclass(frozen=True, eq=False)
class Moments:
    r"""The table of sums T about some parameters; ``+`` joins tables about the same parameters.

    Parameters
    ----------
    loglik : float
        Log-likelihood (for pseudo-data: log prior density up to a constant).
    weight_count, mean_count, covariance_count : (k,) arrays
        :math:`N_k`. The three are equal for data; a prior adds a different number of
        pseudo-observations to weights, means and covariances. With a noise component its own
        number is last in ``weight_count``, (k + 1,).
    first : (k, d) array
        :math:`\sum_n r_{nk} z_{nk}`.
    second : (k, d, d) array
        :math:`\sum_n r_{nk} z_{nk} z_{nk}^\top`.
    """

    loglik: float
    weight_count: Array
    mean_count: Array
    covariance_count: Array
    first: Array
    second: Array

    @staticmethod
    def of_data(loglik: float, count: Array, first: Array, second: Array) -> Moments:
        """Return the table of observed data, where the three counts are one."""
        return Moments(loglik, count, count, count, first, second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.loglik + other.loglik,
            self.weight_count + other.weight_count,
            self.mean_count + other.mean_count,
            self.covariance_count + other.covariance_count,
            self.first + other.first,
            self.second + other.second,
        )


def accumulate(
    x: Array,
    parameters: Parameters,
    weight: Array = UNWEIGHTED,
    *,
    diagonal: bool = False,
    threads: int | None = None,
) -> Moments:
    """Return the table of sums of data about ``parameters``: one pass, O(k d^2) memory.

    Parameters
    ----------
    x : (n, d) array
        Data, C-contiguous.
    parameters : Parameters
        In the units of ``x``.
    weight : (n,) array, optional
        Observation weights; an empty array means one each.
    diagonal : bool
        Whether every covariance is diagonal; then off-diagonal second moments are not computed.
    threads : int, optional
        At most this many; default all cores. The result is the same to the last bit for any number.

    Returns
    -------
    Moments
    """
    arguments = (diagonal, parameters.log_weight, parameters.mean, parameters.whitening)
    n, chunk = len(x), kernel.CHUNK
    n_threads = min(threads or os.cpu_count() or 1, -(-n // chunk)) if n > chunk else 1
    if n_threads < 2:
        return Moments.of_data(*kernel.accumulate_all(x, weight, *arguments))
    # A few parts for each thread, so that none waits long for another.
    size = chunk * max(1, n // (4 * n_threads * chunk))
    begins, sums = iter(range(0, n, size)), {}

    def work() -> None:
        for begin in begins:  # shared: each part is taken once
            end = min(n, begin + size)
            sums[begin] = np.asarray(kernel.chunks(x, weight, begin, end, chunk, *arguments))

    # This thread works as well: waking another takes as long as some ten thousand rows.
    helpers = [_pool(n_threads - 1).submit(work) for _ in range(n_threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    whole = np.concatenate([sums[begin] for begin in sorted(sums)])
    return Moments.of_data(*kernel.total(whole, parameters.k, parameters.d))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them takes as long as a pass over some thousand rows."""
    return ThreadPoolExecutor(threads, thread_name_prefix="bayesgmm")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def accumulate_plain(x: Array, parameters: Parameters, weight: Array = UNWEIGHTED) -> Moments:
    """Return what `accumulate` returns, in plain NumPy: the definition, to read and to test by."""
    z = np.einsum("kij,nkj->nki", parameters.whitening, x[:, None, :] - parameters.mean)
    logdet = np.log(np.diagonal(parameters.whitening, axis1=1, axis2=2)).sum(axis=1)
    constant = parameters.log_weight + logdet - 0.5 * x.shape[1] * np.log(2 * np.pi)
    joint = constant - 0.5 * (z**2).sum(axis=2)
    row = logsumexp(joint, axis=1)
    w = weight if len(weight) else np.ones(len(x))
    r = np.exp(joint - row[:, None]) * w[:, None]
    return Moments.of_data(
        float(w @ row),
        r.sum(axis=0),
        np.einsum("nk,nki->ki", r, z),
        np.einsum("nk,nki,nkj->kij", r, z, z),
    )


def from_responsibilities(
    x: Array, responsibility: Array, about: Parameters, weight: Array = UNWEIGHTED
) -> Moments:
    """Return the sums for given responsibilities (n, k), hard or soft: EM's entry from labels."""
    k, d = about.k, about.d
    count, first, second = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for begin in range(0, len(x), _ROWS):
        part = slice(begin, begin + _ROWS)
        r = responsibility[part] * weight[part, None] if len(weight) else responsibility[part]
        count += r.sum(axis=0)
        for j in range(k):
            z = (x[part] - about.mean[j]) @ about.whitening[j].T
            scaled = r[:, j, None] * z
            first[j] += scaled.sum(axis=0)
            second[j] += scaled.T @ z
    return Moments.of_data(float("nan"), count, first, second)


def assigned(
    x: Array,
    parameters: Parameters,
    weight: Array = UNWEIGHTED,
    rng: np.random.Generator | None = None,
) -> Moments:
    r"""Return the sums for rows that belong to one component each.

    To the most probable one, with the classification log-likelihood
    :math:`\sum_n \max_k \log \pi_k N(x_n; \mu_k, \Sigma_k)` (Celeux & Govaert 1992, Comput. Stat.
    Data Anal. 14, 315-332); or, with ``rng``, to one drawn with the responsibilities, with the
    log-likelihood (stochastic EM: Celeux & Diebolt 1985).
    """
    total = None
    for begin in range(0, len(x), _ROWS):
        part = x[begin : begin + _ROWS]
        w = weight[begin : begin + _ROWS] if len(weight) else np.ones(len(part))
        row, r = kernel.rows(
            part, parameters.log_weight, parameters.mean, parameters.whitening, True
        )
        if rng is None:
            label = np.argmax(r, axis=0)
            row = row + np.log(r[label, np.arange(len(part))])
        else:
            label = (rng.random(len(part)) > np.cumsum(r, axis=0)).sum(axis=0)
            label = np.minimum(label, parameters.k - 1)
        hard = np.eye(parameters.k)[label]
        sums = replace(from_responsibilities(part, hard, parameters, w), loglik=float(w @ row))
        total = sums if total is None else total + sums
    assert total is not None
    return total


def scatter(moments: Moments, about: Parameters) -> tuple[Array, Array]:
    r"""Return the means and scatters that EM's M-step needs, in the units of the data.

    .. math:: \bar x_k = \mu_k + L_k \delta_k, \quad \delta_k = \tfrac{1}{N_k} \sum_n r_{nk} z_{nk},
        \quad S_k = L_k \Big( \sum_n r_{nk} z_{nk} z_{nk}^\top - N_k \delta_k \delta_k^\top \Big)
        L_k^\top

    Returns
    -------
    mean : (k, d) array
    scatter : (k, d, d) array
        About the new means.
    """
    delta = moments.first / moments.mean_count[:, None]
    centred = moments.second - delta[:, :, None] * moments.first[:, None, :]
    factor = about.factor
    spread = factor @ centred @ np.swapaxes(factor, 1, 2)
    return about.mean + np.einsum("kij,kj->ki", factor, delta), 0.5 * (
        spread + np.swapaxes(spread, 1, 2)
    )


def gradient(moments: Moments, about: Parameters) -> tuple[Array, Array, Array]:
    r"""Return the gradient of the log-likelihood, by Fisher's identity.

    .. math:: \frac{\partial\ell}{\partial\log\pi_k} = N_k, \quad
        \frac{\partial\ell}{\partial\mu_k} = W_k^\top \sum_n r_{nk} z_{nk}, \quad
        \frac{\partial\ell}{\partial\Sigma_k} = \tfrac12 W_k^\top
        \Big( \sum_n r_{nk} z_{nk} z_{nk}^\top - N_k I \Big) W_k

    (log-weights as free numbers; the covariance as a symmetric matrix of d^2 free numbers).

    Returns
    -------
    (k,), (k, d), (k, d, d) arrays
    """
    w = about.whitening
    wt = np.swapaxes(w, 1, 2)
    inner = moments.second - moments.covariance_count[:, None, None] * np.eye(about.d)
    return (
        moments.weight_count,
        np.einsum("kij,kj->ki", wt, moments.first),
        0.5 * wt @ inner @ w,
    )


def log_density(x: Array, parameters: Parameters) -> Array:
    """Return log p(x_n), shape (n,), for data of shape (n, d)."""
    return kernel.rows(x, parameters.log_weight, parameters.mean, parameters.whitening, False)[0]


def responsibilities(x: Array, parameters: Parameters) -> Array:
    """Return r_nk, shape (n, k), for data of shape (n, d); every row sums to one."""
    rows = kernel.rows(x, parameters.log_weight, parameters.mean, parameters.whitening, True)
    return np.ascontiguousarray(rows[1].T)
