"""A specification as a plain PyMC model.

Free variables: ``weight`` (Dirichlet), ``covariance`` (the family's prior, sampled in the family's
own unconstrained coordinates, `FamilyChart`) and ``mean``; observed: ``x``, one density per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform
from pytensor.link.numba.dispatch.basic import numba_njit
from pytensor.link.numba.dispatch.random import numba_core_rv_funcify

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read_for
from bayesgmm.errors import NotYetSupportedError
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.posterior.chart import Coordinates, unit_of
from bayesgmm.posterior.op import Chart, ConjugateTerms, FamilyVector, MixtureRows
from bayesgmm.posterior.predictive import draw_covariance
from bayesgmm.resolved import (
    PseudoData,
    Separation,
    measure_exponent,
    resolve,
    separation_log_density,
    warn_if_improper,
)


class FamilyChart(Coordinates, Transform):
    """A family's coordinates as a PyMC transform."""

    name = "chart"

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Return covariances (k, d, d) from the unconstrained vector."""
        return self._chart(value)[0]

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Return the unconstrained vector of covariances of the family."""
        if self.family.is_polar:
            return FamilyVector(self)(value)
        index = np.arange(self.d)
        if self.family.is_diagonal:
            s = value[:, index, index] / self.unit**2
            return pt.dot(self.spectrum_inverse, pt.log(s).ravel())
        factor = pt.linalg.cholesky(value) / self.unit[:, None]
        root = factor[:, index, index]
        below = (factor / root[:, None, :])[:, self.rows, self.columns]
        log_s = pt.dot(self.spectrum_inverse, 2.0 * pt.log(root).ravel())
        return pt.concatenate([log_s, pt.dot(self.below_inverse, below.ravel())])

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Return the log-density of the mode coordinates with respect to the vector."""
        linear = pt.dot(self.log_jacobian, value[: self.spectrum.shape[1]])
        return linear + self._chart(value)[1] if self.family.is_polar else linear

    def _chart(self, value: Any) -> Any:
        return Chart(self.family.is_polar)(value, self.spectrum, self.below, self.unit)


def to_pymc(
    spec: GaussianMixture, X: Any, *, sample_weight: Any = None, columns: Any = None
) -> pm.Model:
    r"""Return the specification as a plain PyMC model of the data, to edit and to sample.

    Parameters
    ----------
    spec : GaussianMixture
    X : table (n, d)
    sample_weight : (n,) array, optional
        Frequencies.
    columns : sequence of str, optional

    Returns
    -------
    pymc.Model
        With dims obs, cluster, feature, feature_bis; free variables ``weight``, ``covariance``,
        ``mean``; observed ``x``; data ``x_data`` (and ``sample_weight``). Prior and posterior
        predictive sampling, `pymc.compute_log_likelihood` and any sampler work on it.

    Raises
    ------
    NotYetSupportedError
        For a noise component.
    ArgumentError, DataError
        For a specification without a prior, and for bad data.

    Warns
    -----
    PosteriorWarning
        With code ``improper-posterior``, see `warn_if_improper`.
    """
    refuse_other(spec)
    if spec.has_noise:
        raise NotYetSupportedError("noise", "is not there in a PyMC model yet")
    data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    model = build(spec, data)
    warn_if_improper(spec, data)
    return model


def build(spec: GaussianMixture, data: Data) -> pm.Model:
    """Return the PyMC model of data that have been read."""
    family, k = spec.covariance, spec.n_components
    prior = resolve(spec, data)
    chart = FamilyChart(family, k, unit_of(data, family))
    diagonal = family.is_diagonal
    coords = {
        "obs": np.arange(data.n),
        "cluster": np.arange(k),
        "feature": list(data.names),
        "feature_bis": list(data.names),
    }
    with pm.Model(coords=coords) as model:
        x = pm.Data("x_data", data.values, dims=("obs", "feature"))
        sample_weight = (
            pm.Data("sample_weight", data.weight, dims="obs")
            if len(data.weight)
            else pt.as_tensor(np.empty(0))
        )
        weight = (
            pm.Dirichlet("weight", np.full(k, prior.concentration), dims="cluster")
            if k > 1
            else pm.Deterministic("weight", pt.ones(1), dims="cluster")
        )
        covariance = _covariance(prior, family, k, chart)
        mean = _mean(prior, covariance, chart, k)
        pm.CustomDist(
            "x",
            weight,
            mean,
            covariance,
            dist=_draw_rows,
            logp=lambda value, *theta: MixtureRows(diagonal)(
                value, sample_weight, pt.log(theta[0]), *theta[1:]
            ),
            signature="(k),(k,d),(k,d,d)->(d)",
            observed=x,
            dims=("obs", "feature"),
        )
    return model


def _covariance(
    prior: PseudoData | Separation, family: Covariance, k: int, chart: FamilyChart
) -> Any:
    """The covariances' random variable: logp in the prior's mode coordinates, NumPy draws."""
    d = chart.d
    scale = prior.scatter if isinstance(prior, PseudoData) else np.diag(prior.mean_sd**2)
    terms = ConjugateTerms(family.is_diagonal)
    zeros = np.zeros((k, d)), np.zeros(d)
    # Where any sampler may start: in every family, and of a component's size.
    support = np.broadcast_to(np.diag(chart.unit**2) / k ** (2.0 / d), (k, d, d)).copy()

    def logp(value: Any, scale: Any) -> Any:
        if isinstance(prior, PseudoData):
            return terms(zeros[0], value, zeros[1], prior.scatter, prior.count, 0.0)[0].sum()
        logdet = -2.0 * terms(zeros[0], value, zeros[1], np.zeros((d, d)), 1.0, 0.0)[0]
        index = np.arange(d)
        log_sd = 0.5 * pt.log(value[:, index, index])
        density = separation_log_density(prior, family, k, logdet, log_sd, pt)
        distinct = slice(0, 1) if family.is_common else slice(0, k)
        return density - 0.5 * measure_exponent(family, d) * logdet[distinct].sum()

    def random(scale: Any, rng: Any = None, size: Any = None) -> Array:
        draws = [
            draw_covariance(prior, family, k, rng)
            for _ in range(int(np.prod(size or (), dtype=int)))
        ]
        return np.array(draws).reshape(*(size or ()), k, d, d)

    variable = pm.CustomDist(
        "covariance",
        np.broadcast_to(scale, (k, d, d)),
        logp=logp,
        random=random,
        support_point=lambda rv, size, scale: pt.as_tensor(support),
        signature="(k,d,e)->(k,d,e)",
        transform=chart,
        dims=("cluster", "feature", "feature_bis"),
    )
    _draw_in_python(variable, random)
    return variable


def _draw_in_python(variable: Any, draw: Callable[[Array, np.random.Generator], Array]) -> None:
    """Tell Numba how to draw: in Python, on purpose, hence without a warning at each use."""

    @numba_core_rv_funcify.register(type(variable.owner.op))
    def _numba_draw(op: Any, node: Any) -> Any:
        @numba_njit
        def core(rng, scale):  # type: ignore[no-untyped-def]
            with numba.objmode(out="float64[:, :, ::1]"):
                out = draw(scale, rng)
            return out

        return core, None  # not to be cached: it holds the prior's numbers


def _mean(prior: PseudoData | Separation, covariance: Any, chart: FamilyChart, k: int) -> Any:
    dims = ("cluster", "feature")
    d = chart.d
    # Spread out, since components that start equal would stay equal.
    support = prior.mean + np.linspace(-1.0, 1.0, k + 2)[1:-1, None] * chart.unit
    if isinstance(prior, Separation):
        return pm.Normal("mean", np.broadcast_to(prior.mean, (k, d)), prior.mean_sd, dims=dims)
    location, shrinkage = prior.mean, prior.shrinkage
    terms = ConjugateTerms(chart.family.is_diagonal)

    def draw(covariance: Any, size: Any) -> Any:
        noise = pm.Normal.dist(0.0, 1.0, size=covariance.shape[:-1])
        factor = pt.linalg.cholesky(covariance) / np.sqrt(shrinkage)
        return location + (factor @ noise[..., None])[..., 0]

    def logp(value: Any, covariance: Any) -> Any:
        return terms(value, covariance, location, np.zeros((d, d)), 1.0, shrinkage)[0].sum()

    return pm.CustomDist(
        "mean",
        covariance,
        dist=draw,
        logp=logp,
        support_point=lambda rv, size, covariance: pt.as_tensor(support),
        signature="(k,d,d)->(k,d)",
        dims=dims,
    )


def _draw_rows(weight: Any, mean: Any, covariance: Any, size: Any) -> Any:
    """Rows of a mixture: a component by weight, then a normal around its mean."""
    component = pm.Categorical.dist(weight, size=size)
    shape = pt.concatenate([component.shape, mean.shape[-1:]])
    noise = pm.Normal.dist(0.0, 1.0, size=shape)
    factor = pt.linalg.cholesky(covariance)
    return mean[component] + (factor[component] @ noise[..., None])[..., 0]
