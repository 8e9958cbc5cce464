"""The starts of one fit: short runs of all, then the promising ones to their end ("em-EM").

They run one after the other or side by side; the results are the same bits.

References
----------
Biernacki, Celeux & Govaert (2003), Comput. Stat. Data Anal. 41, 561-575 (em-EM).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np

from bayesgmm.em.loop import Run
from bayesgmm.em.start import Start
from bayesgmm.labels import are_mixtures, distances
from bayesgmm.moments import Parameters
from bayesgmm.numeric import kernel

# Multiply-adds of a pass. With fewer, Python's share of a step is the larger one, and no two
# threads run Python at once.
_LEAST_WORK = 1 << 22

# Short runs that are so near (squared Hellinger distance) are taken for one.
_TWINS = 0.01
# Moves are tried while they gain that much, so many times at most; of each round so many whole.
GAIN, _ROUNDS, _TRIED = 1e-3, 10, 8

Track = Callable[[Iterable[Any], int], Iterable[Any]]


def workers(n: int, d: int, k: int, n_starts: int, threads: int | None) -> int:
    """Return how many starts to run side by side.

    A pass over one chunk of rows is one thread's work, so that the cores are free for other starts.
    With more chunks the passes themselves use the cores.
    """
    cores = threads or os.cpu_count() or 1
    is_worth_it = n <= kernel.CHUNK and n * k * d * d >= _LEAST_WORK
    return min(cores, n_starts) if is_worth_it else 1


def run_all(
    go: Callable[..., Run], begins: Sequence[Start | Run], n_workers: int, track: Track
) -> list[Run]:
    """Run EM from every start; after Ctrl-C, return the runs that have begun.

    Parameters
    ----------
    go : callable
        Runs EM from a start until the event is set; then, or when interrupted, its reason is
        "interrupted".
    begins : sequence of Start
    n_workers : int
    track : callable
        Shows the progress of an iterable of known length.

    Returns
    -------
    list of Run
        In the order of the starts, without those that were never run.
    """
    stop = Event()
    if n_workers == 1:
        runs: list[Run] = []
        for begin in track(begins, len(begins)):
            runs.append(go(begin, stop))
            if runs[-1].reason == "interrupted":
                break
        return runs

    def one(begin: Start | Run) -> Run:
        found = go(begin, stop)
        if found.reason == "interrupted":
            stop.set()
        return found

    with ThreadPoolExecutor(n_workers) as pool:
        futures = [pool.submit(one, begin) for begin in begins]
        try:
            for _ in track(as_completed(futures), len(begins)):
                pass
        except KeyboardInterrupt:  # only the main thread gets it
            stop.set()
        found = [future.result() for future in futures]
    return [r for r in found if r.reason != "interrupted" or len(r.trace)]


def search(
    go: Callable[..., Run],
    brief: Callable[..., Run],
    on: Callable[..., Run],
    begins: Sequence[Start],
    n_finish: int,
    n_workers: int,
    track: Track,
) -> tuple[list[Run], list[int]]:
    """Run EM from every start, to the end where that promises most.

    Parameters
    ----------
    go, brief, on : callable
        Run EM from a start to its end, or a few steps; run on from a short run.
    begins : sequence of Start
    n_finish : int
        With more starts, all have a ``brief`` run; the best go on until this many different ones
        have ended usable.
    n_workers, track
        As in `run_all`.

    Returns
    -------
    list of Run
        In the order of the starts. The reason of those that were given up is "unfinished".
    list of int
        For each run, the finished one that it was on the way to; itself, or -1 for unknown.
    """
    if len(begins) <= n_finish:
        runs = run_all(go, begins, n_workers, track)
        return runs, list(range(len(runs)))
    runs = run_all(brief, begins, n_workers, track)
    twin = list(range(len(runs)))
    order = promising(runs)
    finished: dict[int, Run] = {}
    if is_interrupted(runs):
        for i in list(order)[:1]:
            finished[i] = replace(on(runs[i], max_iter=0), reason="interrupted")
    waiting = list(order) if not finished else []
    while waiting and (wanted := n_finish - sum(r.is_usable for r in finished.values())) > 0:
        now, waiting = waiting[:wanted], waiting[wanted:]
        longer = run_all(on, [runs[i] for i in now], n_workers, track)
        finished |= zip(now, longer, strict=False)
        if is_interrupted(longer):
            break
    for i, run in enumerate(runs):
        if run.is_usable:
            is_over = run.reason in ("converged", "fixed point")
            runs[i], twin[i] = run if is_over else replace(run, reason="unfinished"), -1
    for i, run in finished.items():
        runs[i], twin[i] = run, i
        for j in order[i]:
            twin[j] = i
    return runs, twin


def improve(
    brief: Callable[..., Run],
    on: Callable[..., Run],
    best: Run,
    around: Callable[[Parameters], list[Start]],
    n_workers: int,
    track: Track,
) -> list[Run]:
    """Return runs from ``around`` the best one, while each round finds a better one."""
    found: list[Run] = []
    for _ in range(_ROUNDS if best.parameters.k > 1 else 0):
        begins = around(best.parameters)
        tries = run_all(brief, begins, n_workers, track)
        if is_interrupted(tries):
            found += [r for r in tries if r.reason == "interrupted"]
            break
        new = list(promising(tries, best.parameters))[:_TRIED]
        longer = run_all(on, [tries[i] for i in new], n_workers, track)
        found += longer
        usable = [r for r in longer if r.is_usable and r.reason != "interrupted"]
        top = max(usable, key=lambda r: r.height, default=best)
        if is_interrupted(longer) or not top.objective > best.objective + GAIN:
            break
        best = top
    return found


def is_interrupted(runs: Sequence[Run]) -> bool:
    """Whether Ctrl-C ended the runs."""
    return not runs or any(r.reason == "interrupted" for r in runs)


def promising(runs: Sequence[Run], known: Parameters | None = None) -> dict[int, list[int]]:
    """Return the usable runs that differ, the best first, each with those like it.

    Those like ``known`` are left out.
    """
    usable = [i for i, r in enumerate(runs) if r.is_usable and _has_distances(r.parameters)]
    waiting = sorted(usable, key=lambda i: -runs[i].height)
    if known is not None:
        waiting = [i for i, near in _near(runs, waiting, known) if not near]
    chosen: dict[int, list[int]] = {}
    while waiting:
        best, *others = waiting
        near = _near(runs, others, runs[best].parameters)
        chosen[best] = [i for i, is_near in near if is_near]
        waiting = [i for i, is_near in near if not is_near]
    return chosen


def _near(runs: Sequence[Run], which: Sequence[int], pivot: Parameters) -> list[tuple[int, bool]]:
    """Say of some runs whether they are where other parameters are; all at once."""
    if not which:
        return []
    each = [runs[i].parameters for i in which]
    weight = np.array([p.weight for p in each])
    mean = np.array([p.mean for p in each])
    covariance = np.array([p.covariance for p in each])
    apart = distances(weight, mean, covariance, pivot)[0]
    return list(zip(which, (apart < _TWINS).tolist(), strict=True))


def _has_distances(p: Parameters) -> bool:
    """Whether no covariance is singular as a matrix of floats."""
    return bool(are_mixtures(p.weight[None], p.mean[None], p.covariance[None])[0])
