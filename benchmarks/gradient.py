"""Value and gradient of the log-likelihood by log-weights, means and covariances.

What NUTS pays for a step.  What Numba has compiled, ours and PyTensor's, is called from compiled
code, as a sampler calls it: from Python, passing the arguments would take two thirds as long as our
pass over a thousand rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from bayesgmm import moments
from bayesgmm.moments import UNWEIGHTED, Parameters
from bayesgmm.numeric import kernel_ops
from bayesgmm.posterior.op import MixtureLogp
from benchmarks.problems import Problem, problem
from benchmarks.timing import NULL, Seconds, agree, compared, enclosed, looped, race

SIZES = ((1_000, 1, 3), (1_000, 2, 3), (100_000, 1, 3), (100_000, 2, 3))
Result = tuple[float, np.ndarray, np.ndarray, np.ndarray]
Gradient = Callable[[], Any]  # the value, and its derivatives by log-weights, means, covariances


def ours(case: Problem) -> partial[Any]:
    """Return our function as PyTensor's graphs call it, on one core."""
    p = case.parameters
    arguments = (case.x, UNWEIGHTED, p.log_weight, p.mean, p.covariance, case.family.is_diagonal)
    return partial(kernel_ops.loglik_and_gradient, *arguments)


def ours_threaded(case: Problem, threads: int) -> Gradient:
    """Return the same from the table of sums, whose pass uses all cores."""
    p = case.parameters

    def function() -> Result:
        about = Parameters(p.weight, p.mean, p.covariance)
        diagonal = case.family.is_diagonal
        table = moments.accumulate(case.x, about, diagonal=diagonal, threads=threads)
        return (table.loglik, *moments.gradient(table, about))

    return function


def graphs(d: int, k: int) -> tuple[list[Any], dict[str, Any]]:
    """Return PyTensor's inputs and, by name, the log-likelihood as ours and as PyMC writes it."""
    x = pt.matrix("x", shape=(None, d), dtype="float64")
    log_weight = pt.vector("log_weight", shape=(k,), dtype="float64")
    mean = pt.matrix("mean", shape=(k, d), dtype="float64")
    covariance = pt.tensor("covariance", shape=(k, d, d), dtype="float64")
    weight = pt.exp(log_weight)
    inputs = [x, log_weight, mean, covariance]
    none = pt.as_tensor_variable(UNWEIGHTED)
    written = {"ours, compiled graph": MixtureLogp(d == 1)(x, none, *inputs[1:])[0]}
    if d == 1:
        sd = pt.sqrt(covariance[:, 0, 0])
        stock = pm.NormalMixture.dist(w=weight, mu=mean[:, 0], sigma=sd)
        written["pm.NormalMixture"] = pm.logp(stock, x[:, 0]).sum()
        return inputs, written
    each = [pm.MvNormal.dist(mean[j], cov=covariance[j]) for j in range(k)]
    batch = pm.MvNormal.dist(mean, cov=covariance)
    for name, parts in (
        ("pm.Mixture, list of MvNormal", each),
        ("pm.Mixture, batched MvNormal", batch),
    ):
        written[name] = pm.logp(pm.Mixture.dist(w=weight, comp_dists=parts), x).sum()
    return inputs, written


def compiled(inputs: list[Any], value: Any, mode: str = "NUMBA") -> Callable[..., Any]:
    """Return the function that gives value and gradient; with Numba, without PyTensor around it."""
    outputs = [value, *pytensor.grad(value, inputs[1:])]
    function = pytensor.function(inputs, outputs, mode=mode, trust_input=True)
    return getattr(function.vm, "jit_fn", function)


def jax_functions(case: Problem) -> dict[str, Gradient]:
    """Return JAX's value and gradient: the fastest that we found, the textbook's, NumPyro's own."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from jax.scipy.linalg import solve_triangular
    from jax.scipy.special import logsumexp

    jax.config.update("jax_enable_x64", True)
    p, d = case.parameters, case.parameters.d
    x = jnp.asarray(case.x)
    theta = tuple(jnp.asarray(v) for v in (p.log_weight, p.mean, p.covariance))

    def constant(log_weight: Any, factor: Any) -> Any:
        logdet = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        return (log_weight - logdet - 0.5 * d * np.log(2 * np.pi))[:, None]

    def inverse(theta: Any) -> Any:
        log_weight, mean, covariance = theta
        factor = jnp.linalg.cholesky(covariance)
        eye = jnp.broadcast_to(jnp.eye(d), factor.shape)
        whitening = solve_triangular(factor, eye, lower=True)
        z = jnp.einsum("kij,kjn->kin", whitening, x.T - mean[:, :, None])
        return logsumexp(constant(log_weight, factor) - 0.5 * (z**2).sum(1), axis=0).sum()

    def solved(theta: Any) -> Any:
        log_weight, mean, covariance = theta
        factor = jnp.linalg.cholesky(covariance)
        z = solve_triangular(factor, x.T - mean[:, :, None], lower=True)
        return logsumexp(constant(log_weight, factor) - 0.5 * (z**2).sum(1), axis=0).sum()

    def numpyro(theta: Any) -> Any:
        log_weight, mean, covariance = theta
        parts = dist.MultivariateNormal(mean, covariance_matrix=covariance)
        weights = dist.Categorical(logits=log_weight)
        return dist.MixtureSameFamily(weights, parts).log_prob(x).sum()

    def ready(function: Callable[[Any], Any]) -> Gradient:
        both = jax.jit(jax.value_and_grad(function))

        def call() -> Any:
            value, slopes = jax.block_until_ready(both(theta))
            return value, *slopes

        return call

    return {
        "JAX, inverse factors": ready(inverse),
        "JAX, solve_triangular": ready(solved),
        "NumPyro MixtureSameFamily": ready(numpyro),
    }


def gradients_agree(
    results: dict[str, Result], weight: np.ndarray, tolerance: float = 1e-8
) -> float:
    """Return the largest difference from the first's gradient, relative to its largest entry.

    By log-weights that are normalised, as NumPyro does by itself, and by covariances as symmetric
    matrices: the libraries differ in what they take for free numbers.
    """

    def canonical(result: Result) -> list[np.ndarray]:
        _, by_weight, by_mean, by_covariance = (np.asarray(v) for v in result)
        symmetric = by_covariance + np.swapaxes(by_covariance, 1, 2)
        return [by_weight - weight * by_weight.sum(), by_mean, symmetric]

    first = canonical(next(iter(results.values())))
    worst = 0.0
    for name, result in results.items():
        for a, b in zip(first, canonical(result), strict=True):
            difference = float(np.abs(a - b).max() / max(np.abs(a).max(), 1.0))
            if not difference <= tolerance:
                raise AssertionError(f"{name}: the gradient differs by {difference:.1e}")
            worst = max(worst, difference)
    return worst


def measure(
    case: Problem, functions: dict[str, Gradient], threads: int, budget: float
) -> dict[str, object]:
    """Race value and gradient; refuse other values or other gradients."""
    results = {name: function() for name, function in functions.items()}
    difference = agree({name: float(result[0]) for name, result in results.items()})
    contestants: dict[str, Seconds] = {
        name: enclosed(f) if isinstance(f, partial) else looped(f) for name, f in functions.items()
    }
    contestants[NULL] = contestants["ours"]
    return case.row | {
        "threads": threads,
        "difference": difference,
        "gradient_difference": gradients_agree(results, case.parameters.weight),
        "times": compared(race(contestants, budget=budget), "ours"),
    }


def run(threads: int, quick: bool) -> dict[str, object]:
    """All sizes in both regimes of overlap."""
    records = []
    stock: dict[int, dict[str, Callable[..., Any]]] = {}
    has_jax = find_spec("jax") is not None and find_spec("numpyro") is not None
    for size in SIZES[::2] if quick else SIZES:
        d, k = size[1:]
        if d not in stock:
            inputs, written = graphs(d, k)
            stock[d] = {name: compiled(inputs, value) for name, value in written.items()}
        for regime in ("separated", "overlapping"):
            case = problem(size, "diag" if d == 1 else "full", regime)
            p = case.parameters
            at = (case.x, p.log_weight, p.mean, p.covariance)
            functions: dict[str, Gradient] = {"ours": ours(case)}
            if threads > 1:
                functions["ours, all cores"] = ours_threaded(case, threads)
            functions |= {name: partial(f, *at) for name, f in stock[d].items()}
            functions |= jax_functions(case) if has_jax else {}
            records.append(measure(case, functions, threads, 0.5 if quick else 4.0))
            print(f"  {case.row}", file=sys.stderr, flush=True)
    return {"records": records, "jax": has_jax}
