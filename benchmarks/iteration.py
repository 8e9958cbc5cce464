"""One EM iteration, pass and M-step, ours against scikit-learn's and mclust's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from bayesgmm.em.loop import m_step
from bayesgmm.moments import Moments, Parameters, accumulate
from benchmarks.peers import Mclust, Sklearn
from benchmarks.problems import QUICK_SIZES, REGIMES, SIZES, STRUCTURES, Problem, problem
from benchmarks.timing import NULL, Seconds, agree, compared, looped, race


def sums(problem: Problem, parameters: Parameters, threads: int) -> Moments:
    """Return our table of sums at the parameters."""
    diagonal = problem.family.is_diagonal
    return accumulate(problem.x, parameters, diagonal=diagonal, threads=threads)


def step(problem: Problem, threads: int) -> Parameters:
    """Make one EM iteration of ours, factorisation of the covariances included."""
    about = replace(problem.parameters)  # a copy has cached nothing
    return m_step(sums(problem, about, threads), about, problem.family)


def cases(threads: int, quick: bool) -> Iterator[Problem]:
    """Every size in both regimes, on one core in every structure; in one dimension two are all."""
    for size in QUICK_SIZES if quick else SIZES:
        structures = ("full", "diag") if quick or threads > 1 else tuple(STRUCTURES)
        for structure in ("full",) if size[1] == 1 and quick else structures:
            if size[1] == 1 and structure not in ("full", "tied"):
                continue
            for regime in REGIMES:
                yield problem(size, structure, regime)


def measure(
    problem: Problem, threads: int, *, budget: float, mclust: Mclust | None = None
) -> dict[str, object]:
    """Race one iteration; refuse peers whose log-likelihoods, here and one step on, are others."""
    sklearn = Sklearn(problem)
    after = sums(problem, step(problem, threads), threads).loglik
    here = {"ours": sums(problem, problem.parameters, threads).loglik}
    here["scikit-learn"] = sklearn.loglik()
    there = {"ours": after, "scikit-learn": sklearn.next_loglik()}
    contestants: dict[str, Seconds] = {
        "ours": looped(lambda: step(problem, threads)),
        "scikit-learn": looped(sklearn.iteration),
    }
    if mclust is not None:
        here["mclust"] = mclust.load(problem)
        there["mclust"] = mclust.next_loglik()
        contestants["mclust"] = mclust.seconds
    contestants[NULL] = contestants["ours"]
    worst = max(agree(here), agree(there))
    return problem.row | {
        "threads": threads,
        "difference": worst,
        "times": compared(race(contestants, budget=budget), "ours"),
    }


def _is_long_for_mclust(case: Problem) -> bool:
    """Whether it takes seconds, and need not again: it skips nothing in the other regime."""
    n, d, k = case.size
    return n * k * d * d > 1e9 and case.regime == "overlapping"


def run(threads: int, quick: bool) -> dict[str, object]:
    """All cases; mclust, which has no threads, in the run with one."""
    records = []
    with ExitStack() as stack:
        mclust = stack.enter_context(Mclust()) if threads == 1 and Mclust.is_installed() else None
        for case in cases(threads, quick):
            peer = None if _is_long_for_mclust(case) else mclust
            record = measure(case, threads, budget=0.4 if quick else 1.0, mclust=peer)
            ratio = record["times"]["scikit-learn"]["ratio"]  # type: ignore[index]
            print(f"  {case.row}: {ratio:.1f}", file=sys.stderr, flush=True)
            records.append(record)
    return {"records": records, "mclust": mclust.version if mclust else None}
