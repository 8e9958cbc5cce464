"""Effective draws per second, end to end: Old Faithful, two full covariances, one model in all.

Every sampler gets the same prior and the same settings, and starts at a maximum of the likelihood
that it looks for itself.  Each runs in a process of its own, first with empty caches and then with
those that the first run left; the clock starts before the import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {"draws": 1000, "tune": 1000, "chains": 4, "target_accept": 0.9}
# In units of the data: means by Normal, sds by LogNormal, correlations by LKJ, weights uniform.
PRIOR: dict[str, Any] = {
    "mean": (3.5, 70.0),
    "mean_sd": (2.0, 25.0),
    "log_sd": (-0.5, 2.0),
    "sigma": 0.75,
    "correlation": 2.0,
}
FARTHEST = 6.0  # Monte Carlo standard errors between two samples of one posterior
Draws = tuple[np.ndarray, np.ndarray, np.ndarray]  # weight, mean, covariance: (chain, draw, ...)
Laps = dict[str, float]


def ours(cores: int) -> tuple[Draws, Laps]:
    """`sample_posterior`, its EM, alignment, diagnostics and LOO included."""
    import bayesgmm as bg

    prior = bg.SeparationPrior(
        mean=PRIOR["mean"],
        mean_sd=PRIOR["mean_sd"],
        scale=bg.LogNormal(PRIOR["log_sd"], PRIOR["sigma"]),
        correlation=PRIOR["correlation"],
        units="data",
    )
    spec = bg.GaussianMixture(2, "VVV", prior=prior)
    fit = bg.sample_posterior(
        spec,
        bg.datasets.load("faithful"),
        random_seed=1,
        cores=cores,
        progressbar=False,
        **SETTINGS,
    )
    laps = json.loads(fit.attrs["timings"])
    posterior = fit["posterior"]
    draws = [posterior[name].to_numpy() for name in ("weight", "mean", "covariance")]
    return tuple(draws), {"sampling": laps["sampling"]}  # type: ignore[return-value]


def start_of_peers() -> tuple[np.ndarray, Any]:
    """The data, and scikit-learn's fit of them."""
    from sklearn.mixture import GaussianMixture

    from bayesgmm import datasets  # reads a file, and imports nothing else

    x = np.ascontiguousarray(datasets.load("faithful").to_numpy(dtype=float))
    return x, GaussianMixture(2, random_state=0, n_init=10).fit(x)


def stock(cores: int) -> tuple[Draws, Laps]:
    """PyMC's own mixture, by nutpie."""
    import nutpie
    import pymc as pm

    x, fit = start_of_peers()
    with pm.Model() as model:
        weight = pm.Dirichlet("weight", np.ones(2))
        mean = pm.Normal("mean", PRIOR["mean"], PRIOR["mean_sd"], shape=(2, 2))
        factor = [
            pm.LKJCholeskyCov(
                f"factor_{j}",
                eta=PRIOR["correlation"],
                n=2,
                sd_dist=pm.LogNormal.dist(list(PRIOR["log_sd"]), PRIOR["sigma"], shape=2),
            )[0]
            for j in range(2)
        ]
        pm.Deterministic("covariance", pm.math.stack([f @ f.T for f in factor]))
        parts = [pm.MvNormal.dist(mean[j], chol=factor[j]) for j in range(2)]
        pm.Mixture("x", w=weight, comp_dists=parts, observed=x)
    lower = np.linalg.cholesky(fit.covariances_)[:, *np.tril_indices(2)]
    start = {"weight": fit.weights_, "mean": fit.means_, "factor_0": lower[0], "factor_1": lower[1]}
    compiled = nutpie.compile_pymc_model(model, initial_points=start, jitter_rvs=set())
    began = time.perf_counter()
    sampled = nutpie.sample(
        compiled, seed=1, cores=cores, progress_bar=False, save_warmup=False, **SETTINGS
    )
    lap = time.perf_counter() - began
    draws = [sampled["posterior"][n].to_numpy() for n in ("weight", "mean", "covariance")]
    return tuple(draws), {"sampling": lap}  # type: ignore[return-value]


def numpyro(cores: int) -> tuple[Draws, Laps]:
    """NumPyro's NUTS, one device for each chain."""
    flag = f"--xla_force_host_platform_device_count={SETTINGS['chains']}"
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
    x, fit = start_of_peers()
    prior = {name: jnp.asarray(value) for name, value in PRIOR.items()}

    def model() -> None:
        weight = npr.sample("weight", dist.Dirichlet(jnp.ones(2)))
        normal = dist.Normal(prior["mean"], prior["mean_sd"]).expand((2, 2)).to_event(2)
        mean = npr.sample("mean", normal)
        scale = dist.LogNormal(prior["log_sd"], prior["sigma"]).expand((2, 2)).to_event(2)
        sd = npr.sample("sd", scale)
        root = npr.sample(
            "root", dist.LKJCholesky(2, prior["correlation"]).expand((2,)).to_event(1)
        )
        factor = sd[:, :, None] * root
        npr.deterministic("covariance", factor @ jnp.swapaxes(factor, 1, 2))
        parts = dist.MultivariateNormal(mean, scale_tril=factor)
        mixture = dist.MixtureSameFamily(dist.Categorical(probs=weight), parts)
        with npr.plate("row", len(x)):
            npr.sample("x", mixture, obs=x)

    sd = np.sqrt(np.diagonal(fit.covariances_, axis1=1, axis2=2))
    start = {
        "weight": fit.weights_,
        "mean": fit.means_,
        "sd": sd,
        "root": np.linalg.cholesky(fit.covariances_) / sd[:, :, None],
    }
    kernel = NUTS(
        model,
        target_accept_prob=SETTINGS["target_accept"],
        init_strategy=init_to_value(values={k: jnp.asarray(v) for k, v in start.items()}),
    )
    mcmc = MCMC(
        kernel,
        num_warmup=int(SETTINGS["tune"]),
        num_samples=int(SETTINGS["draws"]),
        num_chains=int(SETTINGS["chains"]),
        chain_method="parallel",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(1))
    found = mcmc.get_samples(group_by_chain=True)
    return tuple(np.asarray(found[n]) for n in ("weight", "mean", "covariance")), {}  # type: ignore[return-value]


ENGINES: dict[str, Callable[[int], tuple[Draws, Laps]]] = {
    "ours": ours,
    "pm.Mixture, nutpie": stock,
    "NumPyro": numpyro,
}
NEEDS = {"ours": "bayesgmm", "pm.Mixture, nutpie": "nutpie", "NumPyro": "numpyro"}


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


def child(name: str, cores: int, out: Path) -> None:
    """Sample, and write times and what the draws are worth; the judging is not timed."""
    began = time.perf_counter()
    draws, laps = ENGINES[name](cores)
    laps["total"] = time.perf_counter() - began
    out.write_text(json.dumps({"seconds": laps} | judged(draws)))


def run(threads: int, quick: bool) -> dict[str, object]:
    """Every sampler, cold and warm; the quick run leaves out the one that compiles for minutes."""
    records = []
    for name in ENGINES:
        if find_spec(NEEDS[name]) is None:
            records.append({"engine": name, "missing": "not installed"})
            continue
        if quick and name == "pm.Mixture, nutpie":
            records.append({"engine": name, "missing": "left out of the quick run"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            for caches in ("cold",) if quick else ("cold", "warm"):
                print(f"  {name}, {caches}", file=sys.stderr, flush=True)
                result = _in_process(name, threads, Path(folder))
                records.append({"engine": name, "caches": caches} | result)
    ran = [r for r in records if "mean" in r]
    for record in ran:
        record["z"] = largest_z(ran[0], record)
        if not record["z"] < FARTHEST:
            raise AssertionError(f"{record['engine']} samples another posterior: z = {record['z']}")
    return {"records": records, "threads": threads, "settings": SETTINGS}


def _in_process(name: str, threads: int, caches: Path) -> dict[str, Any]:
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "PYTENSOR_FLAGS": f"base_compiledir={caches / 'pytensor'}",
        "BENCHMARK_JAX_CACHE": str(caches / "jax"),
    }
    out = caches / "result.json"
    arguments = [sys.executable, "-m", "benchmarks.sampling", name, str(threads), str(out)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-800:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
