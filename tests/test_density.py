"""The log-posterior by hand: PyMC's density and gradient, draws as parameters, nutpie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from models import ALL, PYTHON, table
from pytensor.graph.replace import clone_replace

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read_for
from bayesgmm.errors import NumericalError
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Parameters
from bayesgmm.posterior.model import build
from bayesgmm.posterior.nuts import POINT, run_nuts, start_around
from bayesgmm.prior import (
    ConjugatePrior,
    HalfNormal,
    HierarchicalInverseGamma,
    InverseGamma,
    LogNormal,
    SeparationPrior,
)
from bayesgmm.resolved import resolve
from bayesgmm.target.curvature import Quadratic, quadratic_at
from bayesgmm.target.density import Target, compiled, target
from bayesgmm.tree import point

PRIORS = {
    "conjugate": ConjugatePrior(),
    "its numbers": ConjugatePrior(
        shrinkage=0.7, dof=9.0, mean=4.0, scale=2.0, weight_concentration=2.5
    ),
    "log-normal": SeparationPrior(
        mean=0.3, scale=LogNormal(0.2, 0.4), correlation=3.0, weight_concentration=0.5
    ),
    "inverse gamma": SeparationPrior(mean_sd=0.8, scale=InverseGamma(2.5, 0.7)),
    "half-normal": SeparationPrior(mean=5.0, scale=HalfNormal(1.3), units="data"),
    "hierarchical": SeparationPrior(scale=HierarchicalInverseGamma(1.5, 0.3)),
}
SPLIT = ("VEI", "EVI", "VEE", "EVV")  # with a common volume or shape, but not both
EVERY = [  # only a log-normal scale can be split into volume and shape; the others are refused
    (letters, name)
    for letters in ALL
    for name in PRIORS
    if not Covariance(letters).is_polar or isinstance(PRIORS[name], ConjugatePrior)
    if letters not in SPLIT or name not in ("inverse gamma", "half-normal", "hierarchical")
]


def iris(letters: str) -> pd.DataFrame:
    return table("iris", 1 if Covariance(letters).is_one_dimensional else 3)


def target_of(
    spec: GaussianMixture, x: pd.DataFrame, sample_weight: np.ndarray | None = None
) -> Target:
    data = read_for(spec, x, sample_weight=sample_weight)
    return target(spec, data, resolve(spec, data))


def pymcs(model: pm.Model) -> Callable[[np.ndarray], Any]:
    """Value and gradient of a PyMC model's log-density, as a function of one vector."""
    initial = model.initial_point()
    shapes = [initial[v.name].shape for v in model.value_vars]
    sizes = [int(np.prod(shape)) for shape in shapes]
    point = pt.dvector("point")
    pieces = [point[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    given = {v: p.reshape(s) for v, p, s in zip(model.value_vars, pieces, shapes, strict=True)}
    value = clone_replace(model.logp(), given)
    return pytensor.function([point], [value, pt.grad(value, point)], mode=PYTHON)


def near_the_data(of: Target, rng: np.random.Generator) -> np.ndarray:
    point = 0.5 * rng.normal(size=of.size)
    rows = rng.choice(of.data.values, size=of.space.chart.k, replace=False)
    point[-rows.size :] = rows.ravel()
    return point


def assert_same_density(
    spec: GaussianMixture, x: pd.DataFrame, sample_weight: np.ndarray | None = None
) -> None:
    ours = target_of(spec, x, sample_weight)
    theirs = pymcs(build(spec, ours.data))
    rng = np.random.default_rng(1)
    for _ in range(3):
        point = near_the_data(ours, rng)
        value, slope = ours(point)
        wanted, gradient = theirs(point)
        assert value == pytest.approx(float(wanted), rel=1e-12)
        np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-12 * abs(gradient).max())


class TestSameDensity:
    """To 1e-12 relative, value and gradient."""

    @pytest.mark.parametrize(("letters", "name"), EVERY)
    def test_every_family_and_prior(self, letters: str, name: str) -> None:
        k = 1 + (ALL.index(letters) + list(PRIORS).index(name)) % 4
        assert_same_density(GaussianMixture(k, letters, PRIORS[name]), iris(letters))

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    @pytest.mark.parametrize("name", ["conjugate", "log-normal"])
    def test_every_number_of_components(self, k: int, name: str) -> None:
        for letters in ("VVV", "VEI"):
            assert_same_density(GaussianMixture(k, letters, PRIORS[name]), iris(letters))

    @pytest.mark.parametrize("letters", ["VVV", "EEI", "E"])
    def test_weights(self, letters: str) -> None:
        x = iris(letters)
        weight = np.resize([1.0, 2.0, 1.0, 3.0, 0.0], len(x))
        for name in ("conjugate", "log-normal"):
            assert_same_density(GaussianMixture(3, letters, PRIORS[name]), x, weight)

    @pytest.mark.parametrize("columns", [1, 2, 4])
    def test_other_dimensions(self, columns: int) -> None:
        for letters in ("VEE", "EVV") if columns > 1 else ("V",):
            spec = GaussianMixture(2, letters, PRIORS["log-normal"])
            assert_same_density(spec, table("iris", columns))

    def test_a_number_per_feature(self) -> None:
        scale = LogNormal((0.1, 0.4, -0.3), 0.5)
        prior = SeparationPrior(mean=(1.0, 2.0, 3.0), mean_sd=(1.0, 0.5, 2.0), scale=scale)
        for letters in ("VVV", "VEI", "EVV"):
            assert_same_density(GaussianMixture(2, letters, prior), iris(letters))


class TestDensity:
    @pytest.mark.parametrize("name", PRIORS)
    def test_the_gradient_is_the_finite_difference(self, name: str) -> None:
        of = target_of(GaussianMixture(3, "VVV", PRIORS[name]), iris("VVV"))
        point = near_the_data(of, np.random.default_rng(2))
        h = 1e-5
        steps = [of(point + h * e)[0] - of(point - h * e)[0] for e in np.eye(of.size)]
        slope = of(point)[1]
        np.testing.assert_allclose(
            np.array(steps) / (2 * h), slope, rtol=1e-5, atol=1e-6 * abs(slope).max()
        )

    @pytest.mark.parametrize("place", ["weight", "covariance", "mean"])
    @pytest.mark.parametrize("number", [1e3, -1e3, np.inf, np.nan])
    def test_what_has_no_density_is_no_exception(self, place: str, number: float) -> None:
        of = target_of(GaussianMixture(2, "VVV"), iris("VVV"))
        point = near_the_data(of, np.random.default_rng(3))
        first, last = {"weight": (0, 1), "covariance": (1, 4), "mean": (-3, None)}[place]
        point[first:last] = number
        value, slope = of(point)
        assert slope.shape == point.shape
        is_finite = np.isfinite(value) and np.isfinite(slope).all()
        # Far away means, and weights that are next to nothing, have a density.
        assert is_finite == (abs(number) == 1e3 and place != "covariance")

    def test_a_point_of_another_size_is_refused(self) -> None:
        of = target_of(GaussianMixture(2, "VVV"), iris("VVV"))
        with pytest.raises(ValueError, match=f"{of.size} coordinates"):
            of(np.zeros(of.size + 1))

    def test_the_callers_data_are_not_needed_any_more(self) -> None:
        x = iris("VVV").to_numpy()
        spec = GaussianMixture(2, "VVV")
        data = read_for(spec, x)
        of = target(spec, data, resolve(spec, data))
        point = near_the_data(of, np.random.default_rng(4))
        before = of(point)[0]
        x[:] = np.nan
        assert of(point)[0] == before


class TestParameters:
    @pytest.mark.parametrize("letters", ALL)
    def test_they_are_pymcs_and_come_back(self, letters: str) -> None:
        model = models.parts(letters, k=3)
        of = target_of(GaussianMixture(3, letters), iris(letters))
        rng = np.random.default_rng(5)
        points = np.array([[model.near_the_data(rng) for _ in range(3)] for _ in range(2)])
        found = of.parameters(points)
        for place in np.ndindex(2, 3):
            theta = model.parameters(points[place])
            for name, value in found.items():
                wanted = getattr(theta, name)
                size = abs(wanted).max()
                np.testing.assert_allclose(value[place], wanted, rtol=1e-12, atol=1e-14 * size)
            again = of.point(theta)
            if Covariance(letters).is_polar:  # axes have copies: another point is as good
                again = of.point(Parameters(**of.parameters(again)))
                np.testing.assert_allclose(again, of.point(theta), rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(
                    of.parameters(again)["covariance"], theta.covariance, rtol=1e-9
                )
                continue
            np.testing.assert_allclose(again, points[place], rtol=1e-9, atol=1e-9)
        covariance = found["covariance"]
        np.testing.assert_array_equal(covariance, np.swapaxes(covariance, -1, -2))

    def test_one_component_has_weight_one(self) -> None:
        of = target_of(GaussianMixture(1, "VVV"), iris("VVV"))
        weight = of.parameters(np.random.default_rng(6).normal(size=(4, of.size)))["weight"]
        np.testing.assert_array_equal(weight, np.ones((4, 1)))


COLD_OR_WARM = """
import hashlib, warnings
import bayesgmm as bg
warnings.simplefilter("ignore")
x = bg.datasets.load("faithful")
fit = bg.sample_posterior(
    bg.GaussianMixture(2), x, draws=30, tune=60, random_seed=1, progressbar=False
)
print(hashlib.sha256(fit["posterior_raw"]["covariance"].to_numpy().tobytes()).hexdigest())
"""


def around(of: Target) -> Quadratic:
    theta = point(models.maximum())
    return quadratic_at(of, of.point(theta), theta)


class TestNutpie:
    def test_a_draw_is_a_point_and_its_density(self) -> None:
        """The C functions that nutpie was given are the target's own."""
        x = table("faithful")
        of = target_of(GaussianMixture(2), x)
        sampled = run_nuts(
            start_around([around(of)], of),
            progress_bar=False,
            seed=1,
            cores=2,
            chains=2,
            draws=20,
            tune=50,
            target_accept=0.9,
        )
        points = sampled["posterior"][POINT].to_numpy()
        lp = sampled["sample_stats"]["logp"].to_numpy()
        assert points.shape == (2, 20, of.size)
        for place in np.ndindex(2, 20):
            assert of(points[place])[0] == pytest.approx(lp[place], rel=1e-13)
        assert len(np.unique(points[..., 0])) > 20

    def test_where_no_start_is_finite_the_error_says_so(self) -> None:
        of = target_of(GaussianMixture(2), table("faithful"))
        nowhere = replace(of, terms=replace(of.terms, constant=np.nan))
        started = start_around([around(of)], nowhere)
        with pytest.raises(NumericalError, match="could not run"):
            run_nuts(started, progress_bar=False, seed=1, cores=1, chains=1, draws=5, tune=5)

    def test_one_compiled_function_for_all(self) -> None:
        one, other = (
            target_of(GaussianMixture(k, family), table("faithful")).function
            for k, family in ((2, "VVV"), (3, "EEI"))
        )
        assert one is other
        assert compiled(False, True, True) is not one  # with axes as coordinates

    @pytest.mark.slow
    def test_same_draws_with_a_cold_and_a_warm_cache(self, tmp_path: Path) -> None:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        prints = {
            subprocess.run(
                [sys.executable, "-c", COLD_OR_WARM],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
            ).stdout
            for _ in range(2)
        }
        assert len(prints) == 1
