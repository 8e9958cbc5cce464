"""The starts of one fit, one after the other or side by side; the results are the same bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from bayesgmm import kernel
from bayesgmm.em import Run
from bayesgmm.start import Start

# Multiply-adds of a pass. With fewer, Python's share of a step is the larger one, and no two
# threads run Python at once.
_LEAST_WORK = 1 << 22

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
    go: Callable[[Start, Event], Run], begins: Sequence[Start], n_workers: int, track: Track
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

    def one(begin: Start) -> Run:
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
