"""PyMC models for many tests, each made once.

`parts` takes a model apart by the plain Python linker: quick to compile, for every family.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import xarray as xr
from pytensor.compile.mode import Mode
from pytensor.graph.replace import clone_replace

from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.data.observations import Data, read
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import PosteriorWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters
from bayesgmm.posterior.bayes import sample_posterior
from bayesgmm.posterior.model import FamilyChart, build
from bayesgmm.prior import ConjugatePrior, HalfNormal, SeparationPrior

GOLDEN = Path(__file__).parent / "golden"
PYTHON = Mode(linker="py", optimizer="fast_compile")
ALL = (*FAMILIES, "E", "V")
POLAR = tuple(letters for letters in FAMILIES if Covariance(letters).is_polar)


@cache
def table(name: str, columns: int | None = None) -> pd.DataFrame:
    """Return the first numeric columns of a golden data set."""
    return pd.read_csv(GOLDEN / "data" / f"{name}.csv").select_dtypes("number").iloc[:, :columns]


@dataclass(frozen=True, eq=False)
class Parts:
    """A model as functions of its unconstrained point: [weight, covariance, mean] in one vector."""

    model: pm.Model
    data: Data
    chart: FamilyChart
    sizes: tuple[int, ...]
    likelihood: Callable[[np.ndarray], tuple[float, np.ndarray]]  # with its gradient
    prior: Callable[[np.ndarray], dict[str, float]]
    parameters: Callable[[np.ndarray], Parameters]
    slope: Callable[[np.ndarray], tuple[float, np.ndarray]]  # the covariances' log-density

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def near_the_data(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random point whose means are among the data and covariances of their size."""
        point = 0.5 * rng.normal(size=self.size)
        rows = rng.choice(self.data.values, size=self.chart.k, replace=False)
        point[-rows.size :] = rows.ravel()
        return point


def take_apart(
    spec: GaussianMixture, X: pd.DataFrame, sample_weight: np.ndarray | None = None
) -> Parts:
    data = read(
        X, sample_weight=sample_weight, family=spec.covariance, n_components=spec.n_components
    )
    model = build(spec, data)
    values = model.value_vars
    initial = model.initial_point()
    shapes = [initial[v.name].shape for v in values]
    sizes = tuple(int(np.prod(shape)) for shape in shapes)
    point = pt.dvector("point")
    pieces = pt.split(point, splits_size=list(sizes)) if len(sizes) > 1 else [point]
    replace = {v: p.reshape(s) for v, p, s in zip(values, pieces, shapes, strict=True)}

    def at(graph: pt.TensorVariable) -> pt.TensorVariable:
        return clone_replace(graph, replace)

    likelihood = at(model.logp(vars=model.observed_RVs))
    free = {rv.name: at(model.logp(vars=[rv])) for rv in model.free_RVs}
    plain = at(model.logp(vars=model.free_RVs, jacobian=False))
    theta = model.replace_rvs_by_values([model[n] for n in ("weight", "mean", "covariance")])
    compiled = [
        pytensor.function([point], graph, mode=PYTHON, on_unused_input="ignore")
        for graph in (
            [likelihood, pt.grad(likelihood, point)],
            [*free.values(), plain],
            [at(part) for part in theta],
            [free["covariance"], pt.grad(free["covariance"], point)],
        )
    ]
    names = [*free, "without jacobian"]
    return Parts(
        model,
        data,
        model.rvs_to_transforms[model["covariance"]],
        sizes,
        lambda x: tuple(compiled[0](x)),
        lambda x: dict(zip(names, map(float, compiled[1](x)), strict=True)),
        lambda x: Parameters(*compiled[2](x)),
        lambda x: tuple(compiled[3](x)),
    )


@cache
def parts(letters: str, prior: object = "conjugate", k: int = 2) -> Parts:
    """Return the model of iris (three columns; one, for the families of one dimension)."""
    d = 1 if letters in ("E", "V") else 3
    return take_apart(GaussianMixture(k, letters, prior), table("iris", d))


@cache
def maximum() -> xr.DataTree:
    """Return Old Faithful's maximum-likelihood fit with two components."""
    return fit_em(GaussianMixture(2), table("faithful"), random_seed=1)


@cache
def posterior() -> xr.DataTree:
    """Return Old Faithful's posterior draws, with every default: one run for many tests."""
    return sample_posterior(
        GaussianMixture(2), table("faithful"), mle=maximum(), random_seed=1, progressbar=False
    )


@cache
def reference(case: str) -> dict[str, Any]:
    """Return a golden posterior: of "stan", or of "exact"."""
    folder = "exact" if case.startswith("darwin") else "stan"
    return json.loads((GOLDEN / folder / f"{case}.json").read_text())


def prior_of(case: str) -> SeparationPrior | ConjugatePrior:
    """Return the prior that a golden posterior has."""
    found = reference(case)
    if "constants" not in found:  # mu | sigma2 ~ N(m0, sigma2 / k0), sigma2 ~ InvGamma(a0, b0)
        p = found["prior"]
        return ConjugatePrior(p["k0"], 2.0 * p["a0"], p["m0"], 2.0 * p["b0"], p["alpha"])
    p = found["constants"]
    return SeparationPrior(
        p["m0"], p["s0"], HalfNormal(p["tau"]), p.get("eta", 1.0), p["alpha"], units="data"
    )


@cache
def reference_draws(case: str, draws: int = 1000) -> xr.DataTree:
    """Return our draws of a golden posterior; what the warnings say is left to the verdict."""
    name, *letters, k = case.split("_")
    spec = GaussianMixture(int(k[1:]), "".join(letters).upper() or "V", prior_of(case))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        return sample_posterior(spec, table(name), draws=draws, random_seed=7, progressbar=False)
