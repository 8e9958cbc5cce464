"""A million rows: EM, the weighted Laplace approximation and NUTS, in seconds.

Run with nothing else on the machine: ``python -m benchmarks.million [ROWS]``.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import bayesgmm as bg


def data(n: int) -> np.ndarray:
    """Three components that touch, in two columns."""
    rng = np.random.default_rng(0)
    centre = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    return centre[rng.integers(3, size=n)] + rng.normal(size=(n, 2))


def main() -> None:
    """Print what each took and what it was worth."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    x, spec = data(n), bg.GaussianMixture(3, "VVV")
    bg.fit_laplace(spec, x[:2000], random_seed=1)  # compile
    began = time.perf_counter()
    mle = bg.fit_em(spec, x, random_seed=1)
    print(f"EM, standard errors: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"  passes: {mle['starts']['n_passes'].to_numpy().tolist()}")
    began = time.perf_counter()
    fast = bg.fit_laplace(spec, x, mle=mle, draws=2000, random_seed=1)
    took = time.perf_counter() - began
    criteria = {name: round(float(v), 2) for name, v in fast["criteria"].data_vars.items()}
    print(f"Laplace, 2000 draws: {took:.1f} s; {criteria}; {fast.attrs['timings']}", flush=True)
    began = time.perf_counter()
    post = bg.sample_posterior(spec, x, mle=mle, random_seed=1, progressbar=False)
    took = time.perf_counter() - began
    steps = int(post["sample_stats"]["n_steps"].sum())
    print(f"NUTS, 4 x (1000 + 1000): {took:.1f} s; {json.loads(post.attrs['timings'])}")
    print(f"  gradients after tuning: {steps}; {post.attrs['verdict'][:60]}")
    table = bg.compare(mle, post)
    print(f"  smallest bulk ESS: {float(table['ess_bulk'].min()):.0f}")
    print(f"  largest |z|: {float(np.abs(table['z']).max()):.3f}; sd/se from ", end="")
    print(f"{float(table['sd_ratio'].min()):.3f} to {float(table['sd_ratio'].max()):.3f}")
    gap = [
        float(np.abs((a.mean(both) - b.mean(both)) / b.std(both)).max())
        for name in ("weight", "mean", "covariance")
        for both in [("chain", "draw")]
        for a, b in [(fast["posterior"][name], post["posterior"][name])]
    ]
    print(f"  Laplace's means are within {max(gap):.3f} posterior sds of NUTS's")


if __name__ == "__main__":
    main()
