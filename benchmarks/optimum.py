"""Whole fits by EM from one start to one log-likelihood: time, and passes over the data.

Every contestant has its own idea of a tolerance.  Each gets the loosest of a ladder of powers of
ten with which it ends no more than `GAP` below the log-likelihood that plain EM converges to.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np

from bayesgmm.data.observations import read
from bayesgmm.em import loop as em
from bayesgmm.em.start import Start
from bayesgmm.moments import Parameters
from benchmarks.peers import Fit, Mclust, Sklearn
from benchmarks.problems import Problem, problem
from benchmarks.timing import compared

GAP = 1e-3  # of the log-likelihood itself, not of its mean: 0.03 standard errors of a parameter
LADDER = tuple(10.0**-i for i in range(1, 17))
SIZES = ((1_000, 1, 3), (1_000, 2, 3), (100_000, 2, 3), (200_000, 8, 8))
Fitter = Callable[[float], Fit]


def accelerations() -> dict[str, dict[str, object]]:
    """Return our ways to run EM by name: plain and, where `loop.run` has them, accelerated."""
    parameter = inspect.signature(em.run).parameters.get("acceleration")
    if parameter is None:
        return {"ours, plain": {}}
    plain = False if isinstance(parameter.default, bool) else None
    accelerated = {} if parameter.default == plain else {"ours": {}}
    return accelerated | {"ours, plain": {"acceleration": plain}}


def ours(problem: Problem, start: Parameters, threads: int, options: dict[str, object]) -> Fitter:
    """Return our EM by tolerance; checking the data is part of a fit, as in theirs."""

    def fit(tol: float) -> Fit:
        began = time.perf_counter()
        data = read(problem.x, family=problem.family, n_components=start.k)
        run = em.run(
            data,
            problem.family,
            Start("parameters", data.to_anchored(start)),
            tol=tol,
            max_iter=100_000,
            threads=threads,
            **options,  # type: ignore[arg-type]
        )
        took = time.perf_counter() - began
        return Fit(took, run.n_passes, run.objective + data.log_jacobian)

    return fit


def cases(threads: int, quick: bool) -> Iterator[tuple[Problem, Parameters]]:
    """Clusters that touch, so that EM is neither done at once nor without end; and a start."""
    for size in SIZES[:2] if quick else SIZES:
        is_brief = quick or threads > 1 or size[1] == 1 or size[0] > 100_000
        for structure in ("full",) if is_brief else ("full", "tied", "diag"):
            case = problem(size, structure, "touching")
            p = case.parameters
            shift = np.random.default_rng(1).normal(size=p.mean.shape) / np.sqrt(p.d)
            covariance = 2.0 * p.covariance
            yield case, Parameters(np.full(p.k, 1.0 / p.k), p.mean + shift, covariance)


def loosest(fit: Fitter, target: float | None) -> tuple[float, list[Fit]]:
    """Return the loosest tolerance that reaches the target (or the last), and all fits made."""
    fits = []
    for tol in LADDER:
        fits.append(fit(tol))
        if target is not None and fits[-1].loglik >= target:
            break
    return tol, fits


def measure(
    problem: Problem, start: Parameters, threads: int, mclust: Mclust | None, rounds: int
) -> dict[str, object]:
    """Find everyone's tolerance, then time the fits in turns."""
    at_start = Problem(problem.structure, problem.regime, problem.x, start)
    fitters: dict[str, Fitter] = {
        name: ours(problem, start, threads, options) for name, options in accelerations().items()
    }
    fitters["scikit-learn"] = Sklearn(at_start).fit
    if mclust is not None:
        mclust.load(at_start)
        fitters["mclust"] = mclust.fit
    best = fitters["ours, plain"](1e-6).loglik
    tolerance, notes = {}, {}
    for name, fit in fitters.items():
        tolerance[name], fits = loosest(fit, best - GAP)
        last = fits[-1]
        notes[name] = {
            "tol": tolerance[name],
            "passes": last.passes,
            "gap": last.loglik - best,
            "reached": last.loglik >= best - GAP,
        }
    reached = [name for name in fitters if notes[name]["reached"]]
    times: dict[str, list[float]] = {name: [] for name in reached}
    for _ in range(rounds):
        for name in reached:
            times[name].append(fitters[name](tolerance[name]).seconds)
        reached.reverse()
    base = next(iter(fitters))
    return problem.row | {
        "threads": threads,
        "loglik": best,
        "fits": notes,
        "times": compared(times, base) if base in times else {},
    }


def run(threads: int, quick: bool) -> dict[str, object]:
    """All cases."""
    records = []
    with ExitStack() as stack:
        mclust = stack.enter_context(Mclust()) if threads == 1 and Mclust.is_installed() else None
        for case, start in cases(threads, quick):
            # With mclust the largest would take as long as all the others together.
            peer = mclust if case.size[0] <= 100_000 else None
            record = measure(case, start, threads, peer, 3)
            print(f"  {case.row}: {record['fits']}", file=sys.stderr, flush=True)
            records.append(record)
    return {"records": records, "gap": GAP, "mclust": mclust.version if mclust else None}
