"""A specification as a plain PyMC model.

Free variables: ``weight`` (Dirichlet), ``covariance`` (the family's prior, sampled in the family's
own unconstrained coordinates, `FamilyChart`) and ``mean``; observed: ``x``, one density per row.
What is fixed in part is made of a free variable of its own and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numba
import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform
from pytensor.link.numba.dispatch.basic import numba_njit
from pytensor.link.numba.dispatch.random import numba_core_rv_funcify
from pytensor.raise_op import Assert

from bayesgmm.data.cells import Missing
from bayesgmm.data.observations import Data, read_for
from bayesgmm.em.fit import checked_region
from bayesgmm.errors import NotYetSupportedError
from bayesgmm.groups import with_noise_last
from bayesgmm.information.fixed import Fixed
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.noise import NOISE, Region
from bayesgmm.posterior.op import Chart, ConjugateTerms, FamilyVector, MixtureRows
from bayesgmm.prior import HierarchicalInverseGamma
from bayesgmm.priors.improper import warn_if_improper
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import (
    PseudoData,
    Separation,
    measure_exponent,
    resolve,
    separation_log_density,
)
from bayesgmm.target.chart import Coordinates
from bayesgmm.target.space import Space, checked_space, held_in
from bayesgmm.target.terms import noise_law


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
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    fixed: Mapping[str, Any] | None = None,
) -> pm.Model:
    r"""Return the specification as a plain PyMC model of the data, to edit and to sample.

    Parameters
    ----------
    spec : GaussianMixture
    X : table (n, d)
    sample_weight : (n,) array, optional
        Frequencies.
    columns : sequence of str, optional
    missing, labels, fixed
        As in `fit_em`.

    Returns
    -------
    pymc.Model
        With dims obs, cluster, feature, feature_bis; free variables ``weight``, ``covariance``,
        ``mean``; observed ``x``; data ``x_data`` (and ``sample_weight``). Prior and posterior
        predictive sampling, `pymc.compute_log_likelihood` and any sampler work on it.

        Where some are fixed, ``free_weight`` (relative to one another, with noise its own last;
        of all components together and of noise where the shares of the components are fixed),
        ``free_covariance`` and ``free_mean`` (by component) are free instead, and the whole is
        made of them; with noise there is ``noise_weight``. Where the conjugate prior's means are
        fixed, what they say of the covariances is the potential ``fixed_mean``, which sampling from
        the prior leaves out, as PyMC says. Rows that are drawn are complete, and of the components
        that labels allow. Where values are missing or labels known, the rows are constants, not
        ``x_data``.

    Raises
    ------
    NotYetSupportedError
        For what `fit_em` refuses together with noise; when covariances of a hierarchical prior are
        drawn of which some are fixed. Drawing rows from noise of which the volume alone is known is
        an ``AssertionError`` of PyTensor.
    ArgumentError, DataError
        For a specification without a prior, and for bad data; if nothing is free.

    Warns
    -----
    PosteriorWarning
        With code ``improper-posterior``, see `warn_if_improper`.
    """
    refuse_other(spec)
    data = read_for(
        spec, X, sample_weight=sample_weight, columns=columns, missing=missing, labels=labels
    )
    held = held_in(fixed, spec, data)
    model = build(spec, data, held, checked_region(spec, data, held))
    warn_if_improper(spec, data)
    return model


def build(
    spec: GaussianMixture, data: Data, held: Fixed | None = None, region: Region | None = None
) -> pm.Model:
    """Return the PyMC model of data that have been read; arguments as those of `target`."""
    k, prior = spec.n_components, resolve(spec, data)
    space = checked_space(spec, data, held, region)
    diagonal = spec.covariance.is_diagonal
    coords = {
        "obs": np.arange(data.n),
        "cluster": np.arange(k),
        "feature": list(data.names),
        "feature_bis": list(data.names),
    }
    layout = space.layout(data).arrays
    with pm.Model(coords=coords) as model:
        # PyMC would fill missing values in, and other rows would have other labels.
        x = (
            pt.as_tensor(data.values)
            if len(layout[0])
            else pm.Data("x_data", data.values, dims=("obs", "feature"))
        )
        sample_weight = (
            pm.Data("sample_weight", data.weight, dims="obs")
            if len(data.weight)
            else pt.as_tensor(np.empty(0))
        )
        weights = _weights(prior, space)
        covariance = _covariances(prior, space)
        mean = _means(prior, covariance, space)
        pm.CustomDist(
            "x",
            weights,
            mean,
            covariance,
            dist=partial(_draw_rows, data.probability, region),
            logp=lambda value, *theta: MixtureRows(diagonal)(
                value, sample_weight, *_widened(space, *theta), *layout
            ),
            signature="(w),(k,d),(k,d,d)->(d)",
            observed=x,
            dims=("obs", "feature"),
        )
    return model


def _widened(space: Space, weights: Any, mean: Any, covariance: Any) -> tuple[Any, Any, Any]:
    """`Space.widened` as a graph: noise as one more normal distribution, a flat one."""
    log_weight = pt.log(weights)
    if not space.is_noisy:
        return log_weight, mean, covariance
    flat = np.diag(space.noise_variance)[None]
    return (
        pt.inc_subtensor(log_weight[-1], space.noise_level),
        pt.concatenate([mean, space.center[None]]),
        pt.concatenate([covariance, flat]),
    )


def _weights(prior: PseudoData | Separation, space: Space) -> Any:
    """All weights, (k,) or with noise (k + 1,); ``weight`` is free where all that are it are."""
    k, m = space.chart.k, space.n_free_weights
    alpha = np.full(m, prior.concentration)
    if space.has_shares:
        assert space.held is not None
        of_noise, of_others = noise_law(prior.concentration, k)
        share = pm.Dirichlet("free_weight", [of_others, of_noise])
        every = pt.concatenate([share[0] * space.held.weight, share[1:]])
        pm.Deterministic("weight", every[:k], dims="cluster")
        pm.Deterministic(NOISE, every[k])
        return every
    if k > 1 and m == k and not space.is_noisy:
        return pm.Dirichlet("weight", alpha, dims="cluster")
    free = np.isnan(space.log_fixed)
    share = pm.Dirichlet("free_weight", alpha) if m > 1 else np.ones(m)
    fixed = pt.as_tensor(np.where(free, 0.0, np.exp(space.log_fixed)))
    every = pt.set_subtensor(fixed[np.flatnonzero(free)], np.exp(space.log_rest) * share)
    pm.Deterministic("weight", every[:k], dims="cluster")
    if space.is_noisy:
        pm.Deterministic(NOISE, every[k])
    return every


def _covariances(prior: PseudoData | Separation, space: Space) -> Any:
    """The covariances (k, d, d): ``covariance`` is free where all of them are."""
    chart, dims = space.chart, ("cluster", "feature", "feature_bis")
    is_free = ~space.still["covariance"][:, 0, 0]
    if is_free.all():
        return _covariance("covariance", dims, prior, chart, chart.k)
    assert space.held is not None
    fixed, free = pt.as_tensor(space.held.covariance), np.flatnonzero(is_free)
    if not len(free):
        return pm.Deterministic("covariance", fixed, dims=dims)

    def whole(value: Any) -> Any:
        return pt.set_subtensor(fixed[free], value)

    own = Coordinates(chart.family, len(free), chart.unit)
    return pm.Deterministic(
        "covariance",
        whole(_covariance("free_covariance", None, prior, own, chart.k, whole)),
        dims=dims,
    )


def _covariance(
    name: str,
    dims: tuple[str, ...] | None,
    prior: PseudoData | Separation,
    chart: Coordinates,
    k: int,
    whole: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """The random variable of covariances, those of ``chart``, of which ``whole`` makes all k.

    Its logp is that of all k in the prior's mode coordinates; its draws are NumPy's.
    """
    family, m, d = chart.family, chart.k, chart.d
    scale = prior.scatter if isinstance(prior, PseudoData) else np.diag(prior.mean_sd**2)
    terms = ConjugateTerms(family.is_diagonal)
    zeros = np.zeros((k, d)), np.zeros(d)
    # Where any sampler may start: in every family, and of a component's size.
    support = np.broadcast_to(np.diag(chart.unit**2) / k ** (2.0 / d), (m, d, d)).copy()

    def logp(value: Any, scale: Any) -> Any:
        value = whole(value)
        if isinstance(prior, PseudoData):
            return terms(zeros[0], value, zeros[1], prior.scatter, prior.count, 0.0)[0].sum()
        logdet = -2.0 * terms(zeros[0], value, zeros[1], np.zeros((d, d)), 1.0, 0.0)[0]
        index = np.arange(d)
        log_sd = 0.5 * pt.log(value[:, index, index])
        density = separation_log_density(prior, family, k, logdet, log_sd, pt)
        distinct = slice(0, 1) if family.is_common else slice(0, k)
        return density - 0.5 * measure_exponent(family, d) * logdet[distinct].sum()

    def random(scale: Any, rng: Any = None, size: Any = None) -> Array:
        is_tied = isinstance(getattr(prior, "scale", None), HierarchicalInverseGamma)
        if is_tied and m < k:
            raise NotYetSupportedError(
                "fixed", "hierarchical covariances, given some of them, cannot be drawn yet"
            )
        draws = [
            draw_covariance(prior, family, m, rng)
            for _ in range(int(np.prod(size or (), dtype=int)))
        ]
        return np.array(draws).reshape(*(size or ()), m, d, d)

    variable = pm.CustomDist(
        name,
        np.broadcast_to(scale, (m, d, d)),
        logp=logp,
        random=random,
        support_point=lambda rv, size, scale: pt.as_tensor(support),
        signature="(k,d,e)->(k,d,e)",
        transform=FamilyChart(family, m, chart.unit),
        dims=dims,
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


def _means(prior: PseudoData | Separation, covariance: Any, space: Space) -> Any:
    """The means (k, d) given the covariances: ``mean`` is free where all of them are."""
    chart, dims = space.chart, ("cluster", "feature")
    k, d = chart.k, chart.d
    # Spread out, since components that start equal would stay equal.
    support = prior.mean + np.linspace(-1.0, 1.0, k + 2)[1:-1, None] * chart.unit
    if space.held is None or not space.held.has_mean.any():
        if isinstance(prior, Separation):
            return pm.Normal("mean", np.broadcast_to(prior.mean, (k, d)), prior.mean_sd, dims=dims)
        return _conjugate_mean(prior, covariance, chart, support)
    held, fixed = space.held, np.where(space.held.has_mean, space.held.mean, 0.0)
    where = np.nonzero(~held.has_mean)

    def whole(free: Any) -> Any:
        return pt.set_subtensor(pt.as_tensor(fixed)[where], free)

    if isinstance(prior, PseudoData):
        pm.Potential("fixed_mean", _of_fixed(prior, covariance, space))
    if not len(where[0]):
        return pm.Deterministic("mean", pt.as_tensor(fixed), dims=dims)
    if isinstance(prior, Separation):
        location, sd = (np.broadcast_to(v, (k, d))[where] for v in (prior.mean, prior.mean_sd))
        free = pm.Normal("free_mean", location, sd)
        return pm.Deterministic("mean", whole(free), dims=dims)
    terms, nothing = ConjugateTerms(chart.family.is_diagonal), np.zeros((d, d))

    def logp(value: Any, covariance: Any) -> Any:
        joint = terms(whole(value), covariance, prior.mean, nothing, 1.0, prior.shrinkage)[0]
        return joint.sum() - _of_fixed(prior, covariance, space)

    free = pm.CustomDist(
        "free_mean",
        covariance,
        dist=lambda covariance, size: _given_fixed(prior, covariance, held),
        logp=logp,
        support_point=lambda rv, size, covariance: pt.as_tensor(support[where]),
        signature="(k,d,d)->(m)",
    )
    return pm.Deterministic("mean", whole(free), dims=dims)


def _of_fixed(prior: PseudoData, covariance: Any, space: Space) -> Any:
    """Log-density of the fixed means given the covariances, up to a constant."""
    assert space.held is not None
    terms, total = ConjugateTerms(space.chart.family.is_diagonal), pt.as_tensor(0.0)
    for j, o in enumerate(space.held.has_mean):
        if o.any():
            own = covariance[j][np.ix_(o, o)][None]
            nothing = np.zeros((o.sum(), o.sum()))
            mean = space.held.mean[j, o][None]
            total += terms(mean, own, prior.mean[o], nothing, 1.0, prior.shrinkage)[0].sum()
    return total


def _given_fixed(prior: PseudoData, covariance: Any, held: Fixed) -> Any:
    """Free means, component after component, drawn given the fixed ones and the covariances."""
    drawn = []
    for j, o in enumerate(held.has_mean):
        if o.all():
            continue
        own = covariance[j]
        centre, spread = prior.mean[~o], own[np.ix_(~o, ~o)]
        if o.any():
            link = own[np.ix_(o, ~o)]
            slope = pt.linalg.solve(own[np.ix_(o, o)], link)
            centre = centre + (held.mean[j, o] - prior.mean[o]) @ slope
            spread = spread - link.T @ slope
        noise = pm.Normal.dist(0.0, 1.0, size=(int((~o).sum()),))
        factor = pt.linalg.cholesky(spread) / np.sqrt(prior.shrinkage)
        drawn.append(centre + factor @ noise)
    return pt.concatenate(drawn)


def _conjugate_mean(prior: PseudoData, covariance: Any, chart: Coordinates, support: Array) -> Any:
    d = chart.d
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
        dims=("cluster", "feature"),
    )


def _draw_rows(
    probability: Array, region: Region | None, weights: Any, mean: Any, covariance: Any, size: Any
) -> Any:
    """Rows of a mixture: a component by weight and label, then a normal around its mean."""
    if len(probability):
        weights = weights * (probability if region is None else with_noise_last(probability))
        weights = weights / weights.sum(axis=-1, keepdims=True)
    component = pm.Categorical.dist(weights, size=size)
    shape = pt.concatenate([component.shape, mean.shape[-1:]])
    noise = pm.Normal.dist(0.0, 1.0, size=shape)
    factor = pt.linalg.cholesky(covariance)
    own = component if region is None else pt.minimum(component, mean.shape[0] - 1)
    rows = mean[own] + (factor[own] @ noise[..., None])[..., 0]
    if region is None:
        return rows
    corner, edges = region.corner, region.edges
    if corner is None or edges is None:
        return Assert("noise: its volume alone is known, not where it is")(rows, False)
    place = corner + pm.Uniform.dist(0.0, 1.0, size=shape) @ edges
    return pt.switch(pt.eq(component, mean.shape[0])[..., None], place, rows)
