"""Three samplers of one posterior: ours, stock PyMC under nutpie, NumPyro.

Each gets the same prior, and starts at a maximum of the likelihood that it looks for itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Draws = tuple[np.ndarray, np.ndarray, np.ndarray]  # weight, mean, covariance: (chain, draw, ...)
CHAINS = 4


@dataclass(frozen=True, eq=False)
class Case:
    """A posterior, and how long it is sampled.

    Parameters
    ----------
    x : (n, d) array
    k : int
        Components, each with a covariance of its own.
    mean, mean_sd : (d,) arrays
        Of the means' normal prior.
    log_sd : (d,) array
        Of the standard deviations' log-normal prior.
    draws, tune : int
        Of each chain.
    target_accept : float
    sigma, correlation : float
        Of the log-normal prior, and LKJ's parameter. Weights are uniform.
    loo : bool
        Whether ours makes PSIS-LOO, too.
    """

    x: np.ndarray
    k: int
    mean: np.ndarray
    mean_sd: np.ndarray
    log_sd: np.ndarray
    draws: int
    tune: int
    target_accept: float
    sigma: float = 0.75
    correlation: float = 2.0
    loo: bool = True

    @property
    def d(self) -> int:
        """Number of columns."""
        return self.x.shape[1]


class Sampled(NamedTuple):
    """Draws, seconds of the sampling alone if they are known, and gradients after the tuning."""

    draws: Draws
    seconds: float | None
    gradients: int


def ours(case: Case, cores: int) -> Sampled:
    """`sample_posterior`, its EM, alignment and diagnostics included."""
    import warnings

    import bayesgmm as bg

    warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)  # R-hat is judged here, too
    prior = bg.SeparationPrior(
        mean=case.mean,
        mean_sd=case.mean_sd,
        scale=bg.LogNormal(case.log_sd, case.sigma),
        correlation=case.correlation,
        units="data",
    )
    spec = bg.GaussianMixture(case.k, "VVV" if case.d > 1 else "V", prior=prior)
    fit = bg.sample_posterior(
        *(spec, case.x),
        random_seed=1,
        cores=cores,
        progressbar=False,
        draws=case.draws,
        tune=case.tune,
        chains=CHAINS,
        target_accept=case.target_accept,
        log_likelihood=None if case.loo else False,
        loo=None if case.loo else False,
    )
    posterior = fit["posterior"]
    weight, mean, covariance = (posterior[n].to_numpy() for n in ("weight", "mean", "covariance"))
    seconds = json.loads(fit.attrs["timings"])["sampling"]
    gradients = int(fit["sample_stats"]["n_steps"].sum())
    return Sampled((weight, mean, covariance), seconds, gradients)


def _start(case: Case) -> Any:
    """scikit-learn's fit."""
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(case.k, random_state=0, n_init=10).fit(case.x)


def stock(case: Case, cores: int) -> Sampled:
    """PyMC's own mixture, by nutpie."""
    import nutpie
    import pymc as pm

    fit, k, d = _start(case), case.k, case.d
    start = {"weight": fit.weights_, "mean": fit.means_}
    with pm.Model() as model:
        weight = pm.Dirichlet("weight", np.ones(k))
        mean = pm.Normal("mean", case.mean, case.mean_sd, shape=(k, d))
        if d == 1:
            sd = pm.LogNormal("sd", case.log_sd[0], case.sigma, shape=k)
            pm.Deterministic("covariance", (sd**2)[:, None, None])
            pm.NormalMixture("x", weight, mean[:, 0], sigma=sd, observed=case.x[:, 0])
            start["sd"] = np.sqrt(fit.covariances_[:, 0, 0])
        else:
            factor = [
                pm.LKJCholeskyCov(
                    f"factor_{j}",
                    eta=case.correlation,
                    n=d,
                    sd_dist=pm.LogNormal.dist(case.log_sd, case.sigma, shape=d),
                )[0]
                for j in range(k)
            ]
            pm.Deterministic("covariance", pm.math.stack([f @ f.T for f in factor]))
            parts = [pm.MvNormal.dist(mean[j], chol=factor[j]) for j in range(k)]
            pm.Mixture("x", w=weight, comp_dists=parts, observed=case.x)
            lower = np.linalg.cholesky(fit.covariances_)[:, *np.tril_indices(d)]
            start |= {f"factor_{j}": lower[j] for j in range(k)}
    compiled = nutpie.compile_pymc_model(model, initial_points=start, jitter_rvs=set())
    began = time.perf_counter()
    sampled = nutpie.sample(
        compiled,
        seed=1,
        cores=cores,
        progress_bar=False,
        save_warmup=False,
        draws=case.draws,
        tune=case.tune,
        chains=CHAINS,
        target_accept=case.target_accept,
    )
    seconds = time.perf_counter() - began
    found = sampled["posterior"]
    draws = tuple(found[n].to_numpy() for n in ("weight", "mean", "covariance"))
    return Sampled(draws, seconds, int(sampled["sample_stats"]["n_steps"].sum()))  # type: ignore[arg-type]


def numpyro(case: Case, cores: int) -> Sampled:
    """NumPyro's NUTS, one device for each chain."""
    flag = f"--xla_force_host_platform_device_count={CHAINS}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    import jax
    import jax.numpy as jnp
    import numpyro as npr
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS, init_to_value

    jax.config.update("jax_enable_x64", True)
    cache = os.environ.get("BENCHMARK_JAX_CACHE")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    fit, k, d = _start(case), case.k, case.d
    data, centre, spread, log_sd = (
        jnp.asarray(a) for a in (case.x, case.mean, case.mean_sd, case.log_sd)
    )

    def model() -> None:
        weight = npr.sample("weight", dist.Dirichlet(jnp.ones(k)))
        mean = npr.sample("mean", dist.Normal(centre, spread).expand((k, d)).to_event(2))
        sd = npr.sample("sd", dist.LogNormal(log_sd, case.sigma).expand((k, d)).to_event(2))
        which = dist.Categorical(probs=weight)
        if d == 1:
            npr.deterministic("covariance", (sd**2)[:, :, None])
            mixture = dist.MixtureSameFamily(which, dist.Normal(mean[:, 0], sd[:, 0]))
        else:
            lkj = dist.LKJCholesky(d, case.correlation).expand((k,)).to_event(1)
            factor = sd[:, :, None] * npr.sample("root", lkj)
            npr.deterministic("covariance", factor @ jnp.swapaxes(factor, 1, 2))
            parts = dist.MultivariateNormal(mean, scale_tril=factor)
            mixture = dist.MixtureSameFamily(which, parts)
        with npr.plate("row", len(data)):
            npr.sample("x", mixture, obs=data[:, 0] if d == 1 else data)

    sd = np.sqrt(np.diagonal(fit.covariances_, axis1=1, axis2=2))
    start = {"weight": fit.weights_, "mean": fit.means_, "sd": sd}
    if d > 1:
        start["root"] = np.linalg.cholesky(fit.covariances_) / sd[:, :, None]
    kernel = NUTS(
        model,
        target_accept_prob=case.target_accept,
        init_strategy=init_to_value(values={n: jnp.asarray(v) for n, v in start.items()}),
    )
    mcmc = MCMC(
        kernel,
        num_warmup=case.tune,
        num_samples=case.draws,
        num_chains=CHAINS,
        chain_method="parallel",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(1), extra_fields=("num_steps",))
    found = mcmc.get_samples(group_by_chain=True)
    draws = tuple(np.asarray(found[n]) for n in ("weight", "mean", "covariance"))
    return Sampled(draws, None, int(mcmc.get_extra_fields()["num_steps"].sum()))  # type: ignore[arg-type]


ENGINES: dict[str, Callable[[Case, int], Sampled]] = {
    "ours": ours,
    "pm.Mixture, nutpie": stock,
    "NumPyro": numpyro,
}
NEEDS = {"ours": "bayesgmm", "pm.Mixture, nutpie": "nutpie", "NumPyro": "numpyro"}


def caches(folder: str) -> dict[str, str]:
    """Return the environment in which all that is compiled is kept in a folder."""
    return {
        "NUMBA_CACHE_DIR": f"{folder}/numba",
        "PYTENSOR_FLAGS": f"base_compiledir={folder}/pytensor",
        "BENCHMARK_JAX_CACHE": f"{folder}/jax",
    }


def by_first_mean(draws: Draws) -> np.ndarray:
    """Return (chain, draw, quantity): weight, means and covariances, components by first mean."""
    weight, mean, covariance = draws
    order = np.argsort(mean[..., 0], axis=2)
    weight = np.take_along_axis(weight, order, axis=2)
    mean = np.take_along_axis(mean, order[..., None], axis=2)
    covariance = np.take_along_axis(covariance, order[..., None, None], axis=2)
    d = mean.shape[-1]
    lower = covariance[..., *np.tril_indices(d)]
    parts = (weight[..., :-1], mean, lower)
    return np.concatenate([p.reshape(*p.shape[:2], -1) for p in parts], axis=2)


def judged(draws: Draws) -> dict[str, Any]:
    """Return least effective sample size, largest R-hat, means and their standard errors."""
    from arviz_stats.base import array_stats

    quantity = by_first_mean(draws)
    ess, rhat, mcse = (
        np.array([function(quantity[..., i]) for i in range(quantity.shape[-1])])
        for function in (array_stats.ess, array_stats.rhat, array_stats.mcse)
    )
    return {
        "ess": float(ess.min()),
        "rhat": float(rhat.max()),
        "mean": quantity.mean(axis=(0, 1)).tolist(),
        "mcse": mcse.tolist(),
    }


def largest_z(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Return by how many Monte Carlo standard errors two posteriors' means differ at most."""
    a, b = (np.asarray(v["mean"]) for v in (first, second))
    error = np.hypot(first["mcse"], second["mcse"])
    return float(np.abs((a - b) / error).max())
