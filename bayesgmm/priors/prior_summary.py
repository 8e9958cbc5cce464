r"""What a prior says in the units of the data, before anything is sampled.

Components are alike in it, so that there is one row for all of them.  Where a marginal has a closed
form it is that: a weight is beta; with the conjugate prior a variance is inverse gamma and a mean
t; with the separation prior a mean is normal, a standard deviation what was asked for, and a
correlation beta on (-1, 1); a hierarchical variance is a beta prime over the rate,

.. math:: \sigma^2 = \beta / G_a, \; \beta = G_g / h \quad\Rightarrow\quad
          h \sigma^2 \sim \mathrm{Beta}'(g, a).

The rest comes from random draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import gammaln

from bayesgmm.arguments import whole_number
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read_for
from bayesgmm.em.fit import seed_of
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.prior import HalfNormal, HierarchicalInverseGamma, InverseGamma, LogNormal, Scale
from bayesgmm.priors.prior_draws import draw_parameters
from bayesgmm.resolved import PseudoData, Separation, describe, measure_exponent, resolve

_AT = {"q2.5": 0.025, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q97.5": 0.975}
EXACT, DRAWN = "closed form", "draws"


@dataclass(frozen=True, eq=False)
class PriorSummary:
    """A prior in the units of the data.

    Parameters
    ----------
    table : DataFrame
        One row for the weight of a component, the mean and the standard deviation of each column,
        each correlation, and ``log_det``, the logarithm of the covariance's determinant. Columns
        ``mean, sd, q2.5, q25, q50, q75, q97.5``; ``data``: what the data have there, as a whole;
        ``by``: ``"closed form"`` or ``"draws"``.
    hyperparameters : DataFrame
        The numbers of the prior, resolved: ``hyperparameter, column, value``.
    """

    table: pd.DataFrame
    hyperparameters: pd.DataFrame

    def __repr__(self) -> str:
        numbers = self.hyperparameters.to_string(index=False, float_format=_short)
        return f"{numbers}\n\n{self.table.to_string(float_format=_short)}"

    def _repr_html_(self) -> str:
        tables = (self.hyperparameters.to_html(index=False), self.table.to_html())
        return "\n".join(tables)


def _short(value: float) -> str:
    return f"{value:.5g}"


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution on the line: mean, sd, quantiles."""

    mean: float
    sd: float
    quantile: Callable[[Any], Any]


def prior_summary(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    draws: int = 2000,
    random_seed: int | None = 0,
) -> PriorSummary:
    """Return what the prior of a specification says in the units of these data.

    Parameters
    ----------
    spec : GaussianMixture
        With a prior.
    X : table (n, d)
        What the prior's defaults are scaled by.
    sample_weight : (n,) array, optional
    columns : sequence of str, optional
    draws : int
        For what has no closed form.
    random_seed : int, optional
        Of these draws.

    Returns
    -------
    PriorSummary

    Raises
    ------
    ArgumentError, DataError
        For bad input; for a specification with ``prior=None``.
    """
    refuse_other(spec)
    whole_number("draws", draws, least=2)
    data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    prior, family, k = resolve(spec, data), spec.covariance, spec.n_components
    seen = _of_data(data)
    laws = exact_laws(prior, family, k, data.names, has_noise=spec.has_noise)
    drawn: dict[str, Array] = {}
    if set(seen) - set(laws):
        rng = np.random.default_rng(seed_of(random_seed))
        drawn = _of_draws(draw_parameters(spec, prior, draws, rng), data.names)
    labels = ["weight", "noise_weight", *seen]
    rows = {}
    for label in labels:
        if label in laws:
            law = laws[label]
            rows[label] = [law.mean, law.sd, *law.quantile(np.array(list(_AT.values())))]
        elif label in drawn and (not family.is_diagonal or "correlation" not in label):
            value = drawn[label]
            ends = np.quantile(value, list(_AT.values()))
            rows[label] = [value.mean(), value.std(ddof=1), *ends]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd", *_AT])
    table.index.name = "parameter"
    table["data"] = [seen.get(label, np.nan) for label in table.index]
    table["by"] = [EXACT if label in laws else DRAWN for label in table.index]
    return PriorSummary(table, _hyperparameters(prior, data))


def exact_laws(
    prior: PseudoData | Separation,
    family: Covariance,
    k: int,
    names: tuple[str, ...],
    *,
    has_noise: bool = False,
) -> dict[str, Law]:
    """Return the marginals that have a closed form, by the name of their row."""
    d, found = len(names), {}
    others = (k - 1 + has_noise) * prior.concentration
    if others:
        found["weight"] = _law(stats.beta(prior.concentration, others))
    if has_noise:
        found["noise_weight"] = _law(stats.beta(prior.concentration, k * prior.concentration))
    if isinstance(prior, Separation):
        for j, name in enumerate(names):
            found[f"mean[{name}]"] = _law(stats.norm(prior.mean[j], prior.mean_sd[j]))
            if {family.volume, family.shape} != {"E", "V"}:
                found[f"sd[{name}]"] = _sd_law(prior.scale, j)
        if not family.is_diagonal:
            shape = prior.correlation - 1.0 + 0.5 * d
            for first, second in combinations(names, 2):
                found[f"correlation[{first}, {second}]"] = _law(
                    stats.beta(shape, shape, loc=-1.0, scale=2.0)
                )
        return found
    if (of := _variances(prior, family, k)) is not None:
        shape, rate = of
        for j, name in enumerate(names):
            sd = math.sqrt(rate[j] / (shape * prior.shrinkage))
            found[f"mean[{name}]"] = _law(stats.t(2.0 * shape, prior.mean[j], sd))
            variance = stats.invgamma(shape, scale=rate[j])
            found[f"sd[{name}]"] = _root(variance, _inverse_gamma(shape, rate[j]))
    return found


def _variances(prior: PseudoData, family: Covariance, k: int) -> tuple[float, Array] | None:
    """Return a and b (d,) of the inverse gamma that a variance is, or None; see `predictive`."""
    d = len(prior.mean)
    share = k if family.is_common else 1
    scatter = np.diagonal(prior.scatter) * share
    dof = prior.count * share - measure_exponent(family, d)
    if family.shape == "I" or d == 1:
        return 0.5 * dof * d, np.full(d, 0.5 * scatter.sum())
    is_partly_shared = not family.is_common and {family.volume, family.shape} == {"E", "V"}
    if family.is_polar or (is_partly_shared and k > 1):
        return None
    return 0.5 * (dof if family.is_diagonal else dof - d + 1), 0.5 * scatter


def _law(frozen: Any) -> Law:
    return Law(float(frozen.mean()), float(frozen.std()), frozen.ppf)


def _root(frozen: Any, moments: tuple[float, float]) -> Law:
    """Return the law of a root, of which the mean and the mean square are known."""
    mean, square = moments
    sd = math.sqrt(square - mean**2) if math.isfinite(square) else math.inf
    return Law(mean, sd, lambda p: np.sqrt(frozen.ppf(p)))


def _inverse_gamma(a: float, b: float) -> tuple[float, float]:
    """Mean and mean square of the root of an inverse gamma variable."""
    mean = math.sqrt(b) * math.exp(gammaln(a - 0.5) - gammaln(a)) if a > 0.5 else math.inf
    return mean, b / (a - 1.0) if a > 1.0 else math.inf


def _sd_law(scale: Scale, j: int) -> Law:
    match scale:
        case LogNormal(mu, sigma):
            return _law(stats.lognorm(sigma, scale=math.exp(np.asarray(mu)[j])))
        case InverseGamma(alpha, beta):
            return _law(stats.invgamma(alpha, scale=np.asarray(beta)[j]))
        case HalfNormal(sigma):
            return _law(stats.halfnorm(scale=np.asarray(sigma)[j]))
        case HierarchicalInverseGamma(a, g, rate):
            size = 1.0 / float(np.asarray(rate)[j])
            root = gammaln(g + 0.5) - gammaln(g) + gammaln(a - 0.5) - gammaln(a) if a > 0.5 else 0
            mean = math.sqrt(size) * math.exp(float(root)) if a > 0.5 else math.inf
            square = size * g / (a - 1.0) if a > 1.0 else math.inf
            return _root(stats.betaprime(g, a, scale=size), (mean, square))


def _of_data(data: Data) -> dict[str, float]:
    """Return what the data have as a whole, by the name of the row."""
    covariance = data.covariance * np.outer(data.scale, data.scale)
    mean = data.center + data.scale * data.mean
    return {n: float(v) for n, v in _named(mean, covariance, data.names).items()}


def _of_draws(drawn: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    """Return the draws of every row; components are alike."""
    flat = {n: drawn[n].reshape(-1, *drawn[n].shape[2:]) for n in ("mean", "covariance")}
    return _named(flat["mean"], flat["covariance"], names)


def _named(mean: Array, covariance: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """Return the rows of means (..., d) and covariances (..., d, d)."""
    d = len(names)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    found = {f"mean[{name}]": mean[..., j] for j, name in enumerate(names)}
    found |= {f"sd[{name}]": sd[..., j] for j, name in enumerate(names)}
    for i, j in zip(*np.tril_indices(d, -1), strict=True):
        value = covariance[..., i, j] / (sd[..., i] * sd[..., j])
        found[f"correlation[{names[j]}, {names[i]}]"] = value
    return found | {"log_det": np.asarray(np.linalg.slogdet(covariance)[1])}


def _hyperparameters(prior: PseudoData | Separation, data: Data) -> pd.DataFrame:
    """Return every number of the prior, one a row."""
    rows: list[tuple[str, str, float]] = []
    for name, value in describe(prior, data.names).items():
        if isinstance(value, dict):
            rows += [(name, column, number) for column, number in value.items()]
        elif isinstance(value, list):  # a matrix
            lower = zip(*np.tril_indices(data.d), strict=True)
            rows += [(name, f"{data.names[j]}, {data.names[i]}", value[i][j]) for i, j in lower]
        else:
            rows.append((name, "", value))
    return pd.DataFrame(rows, columns=["hyperparameter", "column", "value"])
