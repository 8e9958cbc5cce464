"""One pass over the data against one EM iteration of scikit-learn, on one core, in one run.

Both make responsibilities, the log-likelihood and all sums for K full covariances. Checked to give
the same log-likelihood. Run with nothing else on the machine: ``python benchmarks/one_pass.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from bayesgmm.moments import Parameters, accumulate

SIZES = [(1_000, 1, 3), (1_000, 2, 3), (100_000, 2, 3), (100_000, 8, 8)]


def seconds(function: Callable[[], object]) -> float:
    """Median of seven timings, each of enough calls to last 50 ms."""
    function()
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            function()
        if time.perf_counter() - began > 0.05:
            break
        calls *= 2
    times = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - began) / calls)
    return float(np.median(times))


def main() -> None:
    """Print nanoseconds per observation and component, and the ratio."""
    print("| N | D | K | bayesgmm, ns | scikit-learn, ns | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n, d, k in SIZES:
        rng = np.random.default_rng(0)
        centre = 3.0 * rng.normal(size=(k, d))
        x = centre[rng.integers(k, size=n)] + rng.normal(size=(n, d))
        parameters = Parameters(np.full(k, 1 / k), centre, np.stack([np.eye(d)] * k))
        peer = GaussianMixture(
            k, means_init=centre, weights_init=parameters.weight, precisions_init=[np.eye(d)] * k
        )
        peer.weights_, peer.means_, peer.covariances_ = (
            parameters.weight,
            centre,
            parameters.covariance,
        )
        peer.precisions_cholesky_ = parameters.covariance

        def iteration(peer: GaussianMixture = peer, x: np.ndarray = x) -> float:
            mean_log_density, log_responsibility = peer._e_step(x)
            before = peer._get_parameters()
            peer._m_step(x, log_responsibility)
            peer._set_parameters(before)
            return float(mean_log_density)

        def one_pass(x: np.ndarray = x, parameters: Parameters = parameters) -> float:
            return accumulate(x, parameters, threads=1).loglik

        assert abs(one_pass() / (n * iteration()) - 1.0) < 1e-10
        ours, theirs = (1e9 * seconds(f) / (n * k) for f in (one_pass, iteration))
        print(f"| {n} | {d} | {k} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |")


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
