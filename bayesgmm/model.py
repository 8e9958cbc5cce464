"""A specification as a plain PyMC model.

Free variables: ``weight`` (Dirichlet), ``covariance`` (the family's prior, sampled in the family's
own unconstrained coordinates, `FamilyChart`) and ``mean``; observed: ``x``, one density per row.
"""

from __future__ import annotations

import os
import warnings
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
from bayesgmm.data import Data, read_for
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.mixture import GaussianMixture, refuse_unsupported
from bayesgmm.moments import Array
from bayesgmm.op import Chart, ConjugateTerms, MixtureRows
from bayesgmm.predictive import draw_covariance
from bayesgmm.prior import ConjugatePrior, HalfNormal, SeparationPrior
from bayesgmm.resolved import (
    PseudoData,
    Separation,
    measure_exponent,
    pseudo_data,
    separation,
    separation_log_density,
)

_PACKAGE = os.path.dirname(__file__) + os.sep


class FamilyChart(Transform):
    r"""The ten families with diagonal or Cholesky coordinates, as an unconstrained vector.

    .. math:: \Sigma_k = U M_k \mathrm{diag}(s_k) M_k^\top U

    with M unit lower triangular, U a fixed diagonal of the data's size, and :math:`\log s` and the
    free elements of M linear in the vector: volume is the mean of :math:`\log s_k`, shape the rest
    and M, each once or once per component.  No Jacobian is left but a linear one.

    Parameters
    ----------
    family : Covariance
    unit : (d,) array
        U.
    k : int
    """

    name = "chart"

    def __init__(self, family: Covariance, k: int, unit: Array) -> None:
        d = len(unit)
        self.family, self.k, self.d = family, k, d
        self.unit = unit
        volumes = np.eye(k) if family.volume == "V" else np.ones((k, 1))
        contrast = np.eye(d)[:, 1:] - 1.0 / d
        copies = {"I": np.zeros((k, 0)), "E": np.ones((k, 1)), "V": np.eye(k)}
        shapes = copies[family.shape]
        self.spectrum = np.hstack(
            [np.kron(volumes, np.ones((d, 1))), np.kron(shapes, contrast)]
        )  # (k d, p): log s
        below = 0 if family.is_diagonal else d * (d - 1) // 2
        self.below = np.kron(copies[family.orientation], np.eye(below))  # (k below, q)
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

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Return covariances (k, d, d) from the unconstrained vector."""
        return Chart()(value, self.spectrum, self.below, self.unit)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Return the unconstrained vector of covariances of the family."""
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
        return pt.dot(self.log_jacobian, value[: self.spectrum.shape[1]])


def resolve(spec: GaussianMixture, data: Data) -> PseudoData | Separation:
    """Return the specification's prior as numbers in the data's units."""
    mean = data.center + data.scale * data.mean
    covariance = data.covariance * np.outer(data.scale, data.scale)
    if spec.prior is None:
        raise ArgumentError(
            "prior",
            "the specification has prior=None, which is maximum likelihood only: without a prior "
            "the posterior of a mixture is improper (an empty component's parameters are free); "
            "use prior='conjugate' or 'separation'",
        )
    if isinstance(spec.prior, ConjugatePrior):
        if spec.prior.shrinkage == 0:
            raise ArgumentError(
                "prior.shrinkage", "0 is a flat prior on the means, whose posterior is improper"
            )
        return pseudo_data(
            spec.prior, spec.covariance, spec.n_components, mean=mean, covariance=covariance
        )
    return separation(spec.prior, spec.covariance, mean=mean, sd=np.sqrt(np.diagonal(covariance)))


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
        For EVE, VVE, EEV and VEV.
    ArgumentError, DataError
        For a specification without a prior, and for bad data.

    Warns
    -----
    PosteriorWarning
        With code ``improper-posterior``, see `warn_if_improper`.
    """
    refuse_unsupported(spec)
    data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    model = build(spec, data)
    warn_if_improper(spec, data)
    return model


def warn_if_improper(spec: GaussianMixture, data: Data) -> None:
    r"""Warn of a half-normal scale and ties: the posterior then has no finite mass.

    Where a component with a scale :math:`\sigma` of its own shrinks onto a value that a column
    has m times, the posterior goes as :math:`\sigma^{1-m}` (means that are near enough among it),
    whose integral from 0 is infinite for m = 2 and more. A spherical component needs equal rows.
    """
    family, prior = spec.covariance, spec.prior
    if not (isinstance(prior, SeparationPrior) and isinstance(prior.scale, HalfNormal)):
        return
    if family.is_common or spec.n_components == 1:
        return
    is_whole = family.shape == "I"
    columns = [data.values] if is_whole else [data.values[:, [j]] for j in range(data.d)]
    for name, values in zip(data.names, columns, strict=False):
        distinct, inverse = np.unique(values, axis=0, return_inverse=True)
        count = np.bincount(inverse.ravel(), data.weight if len(data.weight) else None)
        most = int(np.argmax(count))
        if count[most] < 2:
            continue
        value = ", ".join(f"{v:.6g}" for v in distinct[most])
        where = f"rows ({value})" if is_whole else f"values {value} in column {name!r}"
        message = (
            "the posterior is improper: a HalfNormal scale does not keep a component from "
            f"shrinking onto equal values, and the data have {count[most]:.6g} equal {where}. "
            "Draws describe the posterior away from there only. Use a LogNormal or InverseGamma "
            "scale, the conjugate prior, or a family with a common covariance (EEE, EEI, EII)"
        )
        warnings.warn(
            PosteriorWarning("improper-posterior", message), skip_file_prefixes=(_PACKAGE,)
        )
        return


def build(spec: GaussianMixture, data: Data) -> pm.Model:
    """Return the PyMC model of data that have been read."""
    family, k = spec.covariance, spec.n_components
    prior = resolve(spec, data)
    chart = FamilyChart(family, k, _unit(data, family))
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


def _unit(data: Data, family: Covariance) -> Array:
    """Standard deviations of the columns, or one for all where the family knows only one."""
    sd = data.scale * np.sqrt(np.diagonal(data.covariance))
    return np.full(data.d, np.sqrt(np.mean(sd**2))) if family.shape == "I" else np.asarray(sd)


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
