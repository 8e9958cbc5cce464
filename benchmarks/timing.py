"""Contestants timed in turns, so that a drift of the machine cancels in the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import njit

Seconds = Callable[[int], float]  # what so many calls take together

AGREEMENT = 1e-10  # peers must give the same log-likelihood, relatively
NULL = "ours again"  # ours against itself: what a ratio of 1 looks like on this machine


class DisagreementError(AssertionError):
    """Two that are raced against each other do not compute the same number."""


def looped(function: Callable[[], object]) -> Seconds:
    """Return how long so many calls of a Python function take."""

    def seconds(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - began

    return seconds


def enclosed(call: partial[Any]) -> Seconds:
    """Return how long so many calls of a function compiled by Numba take, from compiled code."""
    function, arguments = call.func, call.args

    @njit
    def repeat(calls: int, arguments: Any) -> None:
        for _ in range(calls):
            function(*arguments)

    def seconds(calls: int) -> float:
        began = time.perf_counter()
        repeat(calls, arguments)
        return time.perf_counter() - began

    return seconds


def agree(values: Mapping[str, float], tolerance: float = AGREEMENT) -> float:
    """Return the largest relative difference from the first value; refuse one that is too large."""
    first = next(iter(values.values()))
    worst = 0.0
    for name, value in values.items():
        difference = abs(value - first) / max(abs(first), 1.0)
        if not difference <= tolerance:
            raise DisagreementError(f"{name} gives {value!r}, not {first!r}: {dict(values)}")
        worst = max(worst, difference)
    return worst


def race(
    contestants: Mapping[str, Seconds],
    *,
    budget: float,
    least: float = 0.02,
    rounds: tuple[int, int] = (3, 15),
) -> dict[str, list[float]]:
    """Return seconds per call, one for every round, in which each contestant runs once.

    Parameters
    ----------
    budget : float
        About how many seconds it may last, within the limits on the rounds.
    least : float
        A single timing is of so many calls that it lasts this long.
    rounds : (int, int)
        Fewest and most.
    """
    sized = {name: _calls_for(seconds, least) for name, seconds in contestants.items()}
    calls = {name: size for name, (size, _) in sized.items()}
    count = int(np.clip(budget / sum(lasted for _, lasted in sized.values()), *rounds))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(count):
        for name in order:
            if calls[name] > 1:
                contestants[name](1)  # the caches are its own again
            times[name].append(contestants[name](calls[name]) / calls[name])
        order.reverse()  # there and back: nobody always runs after the same one
    return times


def _calls_for(seconds: Seconds, least: float) -> tuple[int, float]:
    """Return how many calls a timing is of, and how long they lasted."""
    seconds(1)  # the first call may compile and allocate
    calls = 1
    while True:
        lasted = seconds(calls)
        if lasted >= least:
            return calls, lasted
        calls = max(2 * calls, int(1.2 * calls * least / max(lasted, 1e-9)))


def compared(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """Return for every contestant the median time, and the ratio of its time to the base's.

    The ratio is the median of the ratios within rounds; its spread is their quartiles.
    """
    reference = np.asarray(times[base])
    result = {}
    for name, measured in times.items():
        ratio = np.asarray(measured) / reference
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        result[name] = {
            "seconds": float(np.median(measured)),
            "ratio": float(middle),
            "low": float(low),
            "high": float(high),
            "rounds": len(measured),
        }
    return result
