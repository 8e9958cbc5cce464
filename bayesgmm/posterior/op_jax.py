"""The Ops of `op` for JAX: the same sums of all rows at once, which JAX can differentiate.

Imported by PyTensor's JAX mode alone (`op.load_for_jax`): the package itself does not need JAX.

Where rows are known in part each group of them (`layout.Layout`) has factors of its own, with an
identity in place of what is missing, as in `bayesgmm.groups`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from pytensor.link.jax.dispatch import jax_funcify

from bayesgmm.posterior.op import (
    Chart,
    ChartPullback,
    ConjugateTerms,
    FamilyVector,
    MixtureLogp,
    MixtureRows,
)

_LOG_2PI = math.log(2.0 * math.pi)


def _whitening(covariance: Any, diagonal: bool) -> tuple[Any, Any]:
    """Return W with W'W the inverse of covariances (..., d, d), and log det W; NaN if none is."""
    if diagonal:
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        root = jnp.sqrt(jnp.where(variance > 0.0, variance, jnp.nan))
        return jnp.eye(variance.shape[-1]) / root[..., None], -jnp.log(root).sum(axis=-1)
    factor = jnp.linalg.cholesky(covariance)
    eye = jnp.broadcast_to(jnp.eye(covariance.shape[-1]), covariance.shape)
    log_det = -jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
    return solve_triangular(factor, eye, lower=True), log_det


def _rows(diagonal: bool) -> Callable[..., Any]:
    """Return the function of `MixtureRows`: log-densities (n,), times their weights."""

    def rows(  # type: ignore[no-untyped-def]
        x, weight, log_weight, mean, covariance, order, begin, observed, factor, known
    ):
        d = x.shape[1]
        if order.shape[0] == 0:
            whitening, log_det = _whitening(covariance, diagonal)
            z = jnp.einsum("kfg,nkg->nkf", whitening, x[:, None, :] - mean)
            joint = log_weight + log_det - 0.5 * ((z**2).sum(axis=-1) + d * _LOG_2PI)
        else:
            joint = _known_in_part(
                *(x, log_weight, mean, covariance, order, begin, observed, factor, known),
                diagonal,
            )
        density = logsumexp(joint, axis=1)
        return density * weight if weight.shape[0] > 0 else density

    return rows


def _known_in_part(
    x: Any,
    log_weight: Any,
    mean: Any,
    covariance: Any,
    order: Any,
    begin: Any,
    observed: Any,
    factor: Any,
    known: Any,
    diagonal: bool,
) -> Any:
    """Log-densities (n, k), weights and what is known of labels in them; NaN in x is missing."""
    n, d = x.shape
    row = jnp.asarray(order).astype(int)
    of_row = jnp.searchsorted(jnp.asarray(begin), jnp.arange(n), side="right") - 1
    group = jnp.zeros(n, dtype=int).at[row].set(of_row)  # of each row, in the order of the data
    seen = observed[:, None, :] != 0.0
    both = seen[..., :, None] & seen[..., None, :]
    own = jnp.where(both, covariance, 0.0) + jnp.where(seen, 0.0, 1.0)[..., None] * jnp.eye(d)
    whitening, log_det = _whitening(own, diagonal)
    gap = jnp.where(jnp.isnan(x)[:, None, :], 0.0, jnp.nan_to_num(x)[:, None, :] - mean)
    z = jnp.einsum("nkfg,nkg->nkf", whitening[group], gap)
    level = log_weight + factor + log_det - 0.5 * d * _LOG_2PI
    joint = level[group] - 0.5 * (z**2).sum(axis=-1)
    if known.shape[0] == 0:
        return joint
    return joint + jnp.zeros(joint.shape).at[row].set(known)


@jax_funcify.register(MixtureRows)
def _jax_mixture_rows(op: Any, **kwargs: Any) -> Any:
    return _rows(bool(op.diagonal))


@jax_funcify.register(MixtureLogp)
def _jax_mixture_logp(op: Any, **kwargs: Any) -> Any:
    rows = _rows(bool(op.diagonal))

    def loglik(theta: Any, x: Any, weight: Any, *layout: Any) -> Any:
        return rows(x, weight, *theta, *layout).sum()

    def mixture_logp(x, weight, log_weight, mean, covariance, *layout):  # type: ignore[no-untyped-def]
        theta = (log_weight, mean, covariance)
        value, slopes = jax.value_and_grad(loglik)(theta, x, weight, *layout)
        return value, *slopes

    return mixture_logp


@jax_funcify.register(ConjugateTerms)
def _jax_conjugate_terms(op: Any, **kwargs: Any) -> Any:
    diagonal = bool(op.diagonal)

    def terms(theta: Any, location: Any, scatter: Any, count: Any, shrinkage: Any) -> Any:
        mean, covariance = theta
        whitening, log_det = _whitening(covariance, diagonal)
        gap = jnp.einsum("kfg,kg->kf", whitening, mean - location)
        spread = jnp.einsum("kfg,gh,kfh->k", whitening, scatter, whitening)
        return count * log_det - 0.5 * (spread + shrinkage * (gap**2).sum(axis=-1))

    def conjugate_terms(mean, covariance, *prior):  # type: ignore[no-untyped-def]
        # Each term has a mean and a covariance of its own: the gradient of the sum is all there is.
        slopes = jax.grad(lambda theta: terms(theta, *prior).sum())((mean, covariance))
        return terms((mean, covariance), *prior), *slopes

    return conjugate_terms


def _chart(polar: bool) -> Callable[..., Any]:
    def chart(vector, spectrum, below, unit):  # type: ignore[no-untyped-def]
        d, p = unit.shape[0], spectrum.shape[1]
        k = spectrum.shape[0] // d
        root = jnp.exp(0.5 * (spectrum @ vector[:p])).reshape(k, d)
        factor, log_volume = jnp.broadcast_to(jnp.eye(d), (k, d, d)), jnp.zeros(())
        if below.shape[0] > 0:
            lower, upper = np.tril_indices(d, -1)
            entries = (below @ vector[p:]).reshape(k, -1)
            factor = factor.at[:, lower, upper].set(entries)
            if polar:
                factor = factor.at[:, upper, lower].set(-entries)
                free = max(1, below.shape[1] // (d * (d - 1) // 2))  # sets of axes, each once
                log_volume = -(d - 1) * jnp.linalg.slogdet(factor[:free])[1].sum()
                factor = 2.0 * jnp.linalg.inv(factor) - jnp.eye(d)
        factor = unit[:, None] * factor * root[:, None, :]
        return jnp.einsum("kfh,kgh->kfg", factor, factor), log_volume

    return chart


@jax_funcify.register(Chart)
def _jax_chart(op: Any, **kwargs: Any) -> Any:
    return _chart(bool(op.polar))


@jax_funcify.register(ChartPullback)
def _jax_chart_pullback(op: Any, **kwargs: Any) -> Any:
    chart = _chart(bool(op.polar))

    def chart_pullback(vector, spectrum, below, unit, slope, by_volume):  # type: ignore[no-untyped-def]
        back = jax.vjp(lambda v: chart(v, spectrum, below, unit), vector)[1]
        return back((slope, jnp.asarray(by_volume, dtype=float)))[0]

    return chart_pullback


@jax_funcify.register(FamilyVector)
def _jax_family_vector(op: Any, **kwargs: Any) -> Any:
    found = jax.ShapeDtypeStruct((op.chart.size,), np.dtype(np.float64))

    def family_vector(covariance: Any) -> Any:
        return jax.pure_callback(op.chart.vector, found, covariance)

    return family_vector
