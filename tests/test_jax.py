"""The PyMC model on JAX: the same log-density and gradient as by Numba, and NumPyro's draws."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from models import ALL, table
from test_density import PRIORS, iris, near_the_data

import bayesgmm as bg
from bayesgmm.data.observations import read_for
from bayesgmm.em.fit import checked_region
from bayesgmm.errors import PosteriorWarning
from bayesgmm.resolved import resolve
from bayesgmm.target.density import Target, target
from bayesgmm.target.space import held_in

jax = pytest.importorskip("jax", reason="JAX is not installed; `make .venv/.bench` does it")


def numbas(spec: bg.GaussianMixture, x: Any, fixed: Any = None, **known: Any) -> Target:
    data = read_for(spec, x, **known)
    held = held_in(fixed, spec, data)
    return target(spec, data, resolve(spec, data), held, checked_region(spec, data, held))


def by_jax(model: pm.Model) -> Callable[[np.ndarray], Any]:
    """Value and gradient as NumPyro has them: JAX's derivative of the jaxified log-density."""
    from pymc.sampling.jax import get_jaxified_logp

    logp = get_jaxified_logp(model)  # the log-density, whatever its argument is called
    start = model.initial_point()
    shapes = [start[v.name].shape for v in model.value_vars]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])

    def of(point: Any) -> Any:
        parts = zip(ends[:-1], ends[1:], shapes, strict=True)
        return logp([point[a:b].reshape(shape) for a, b, shape in parts])

    return jax.value_and_grad(of)


def assert_same(spec: bg.GaussianMixture, x: Any, **known: Any) -> None:
    ours = numbas(spec, x, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # a hierarchical scale and ties
        theirs = by_jax(bg.to_pymc(spec, x, **known))
    rng = np.random.default_rng(1)
    for _ in range(3):
        point = near_the_data(ours, rng) if not known else 0.3 * rng.normal(size=ours.size)
        value, slope = ours(point)
        wanted, gradient = theirs(point)
        assert value == pytest.approx(float(wanted), rel=1e-10)
        np.testing.assert_allclose(slope, gradient, rtol=1e-10, atol=1e-10 * abs(slope).max())


@pytest.mark.parametrize("letters", ALL)
def test_value_and_gradient_are_numbas(letters: str) -> None:
    assert_same(bg.GaussianMixture(2, letters), iris(letters))


@pytest.mark.parametrize("prior", ["its numbers", "log-normal", "hierarchical"])
def test_with_other_priors(prior: str) -> None:
    assert_same(bg.GaussianMixture(2, "VVV", PRIORS[prior]), iris("VVV"))


def holes() -> np.ndarray:
    x = iris("VVV").to_numpy()[::3].copy()
    x[::4, 0] = x[1::5, 2] = np.nan
    return x


LABEL = np.where(np.arange(50) % 5 == 0, np.arange(50) // 25, -1)
FUZZY = np.column_stack([np.linspace(0.1, 0.9, 50), np.linspace(0.9, 0.1, 50)])


@pytest.mark.parametrize(
    ("letters", "noise", "known"),
    [
        ("VVV", False, {"sample_weight": np.arange(50) % 3 + 0.5}),
        ("VVI", False, {"sample_weight": np.arange(50) % 3 + 0.5, "missing": "marginalise"}),
        ("VVV", False, {"missing": "marginalise", "labels": LABEL}),
        ("EVE", False, {"missing": "marginalise", "labels": FUZZY}),
        ("VVV", True, {"missing": "marginalise", "labels": LABEL}),
        ("EEE", True, {}),
        ("VVV", False, {"fixed": {"weight": [0.3, 0.7]}}),
    ],
)
def test_rows_that_are_known_in_part(letters: str, noise: bool, known: dict[str, Any]) -> None:
    x = holes() if "missing" in known else iris(letters).to_numpy()[::3]
    assert_same(bg.GaussianMixture(2, letters, noise=noise), x, **known)


@pytest.mark.parametrize("letters", ["VVV", "VEV"])
def test_the_graph_of_the_gradient_compiles_too(letters: str) -> None:
    """What nutpie takes: PyTensor's derivative, whose Ops JAX must know as well."""
    spec, x = bg.GaussianMixture(2, letters), iris(letters)
    f = bg.to_pymc(spec, x).logp_dlogp_function(ravel_inputs=True, mode="JAX")
    f.set_extra_values({})
    ours = numbas(spec, x)
    point = near_the_data(ours, np.random.default_rng(2))
    value, slope = f(point)
    wanted, gradient = ours(point)
    assert float(value) == pytest.approx(wanted, rel=1e-10)
    np.testing.assert_allclose(slope, gradient, rtol=1e-10, atol=1e-10 * abs(slope).max())


def test_points_can_be_batched() -> None:
    spec, x = bg.GaussianMixture(2, "EEE"), iris("EEE")
    ours, theirs = numbas(spec, x), by_jax(bg.to_pymc(spec, x))
    rng = np.random.default_rng(3)
    points = np.array([near_the_data(ours, rng) for _ in range(4)])
    values, slopes = jax.vmap(theirs)(points)
    for point, value, slope in zip(points, values, slopes, strict=True):
        np.testing.assert_allclose(value, ours(point)[0], rtol=1e-10)
        np.testing.assert_allclose(slope, ours(point)[1], rtol=1e-8, atol=1e-8)


def test_no_density_is_not_a_number() -> None:
    from bayesgmm.posterior.op_jax import _whitening

    for matrix in (-np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]])):
        assert np.isnan(_whitening(matrix, False)[1])
    assert np.isnan(_whitening(np.diag([1.0, -1.0]), True)[1])


def test_a_model_loads_nothing_for_jax() -> None:
    code = (
        "import sys, bayesgmm as bg\n"
        "bg.to_pymc(bg.GaussianMixture(2), bg.datasets.load('faithful')).initial_point()\n"
        "assert 'bayesgmm.posterior.op' in sys.modules\n"
        "assert 'bayesgmm.posterior.op_jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.slow
def test_numpyros_draws_are_nutpies() -> None:
    pytest.importorskip("numpyro", reason="NumPyro is not installed; `make .venv/.bench` does it")
    spec, x = bg.GaussianMixture(2, "VVV"), table("faithful")
    mle = bg.fit_em(spec, x, random_seed=1)
    start = {name: mle["posterior"][name].to_numpy()[0, 0] for name in ("weight", "mean")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's and JAX's own
        drawn = pm.sample(
            *(1000,),
            tune=500,
            chains=2,
            model=bg.to_pymc(spec, x),
            nuts_sampler="numpyro",
            initvals=start | {"covariance": mle["posterior"]["covariance"].to_numpy()[0, 0]},
            random_seed=1,
            progressbar=False,
        )
        theirs = bg.from_draws(spec, drawn, x, mle=mle)
    ours = bg.sample_posterior(spec, x, mle=mle, random_seed=2, progressbar=False)
    assert gap(theirs["posterior"].to_dataset(), ours["posterior"].to_dataset()) < 4.5


def gap(a: xr.Dataset, b: xr.Dataset) -> float:
    """The largest difference of two means, in Monte Carlo errors of both."""
    worst = 0.0
    for name in ("weight", "mean", "covariance"):
        for place in np.ndindex(a[name].shape[2:]):
            values = [d[name].to_numpy()[(..., *place)] for d in (a, b)]
            error = np.hypot(*(array_stats.mcse(v, method="mean") for v in values))
            worst = max(worst, float(abs(values[0].mean() - values[1].mean()) / error))
    return worst
