"""Optima that are nearly as good as the best one: which starts led there, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesgmm.data.observations import Data
from bayesgmm.em.loop import Run
from bayesgmm.labels import SAME, distance, match
from bayesgmm.moments import Parameters

NEAR = 0.1  # in log-likelihood: the data do not say which it is
_FEATURES = 4  # of a mean that are told


@dataclass(frozen=True, eq=False)
class Rival:
    """Another optimum within `NEAR` of the best one.

    Parameters
    ----------
    starts : tuple of int
        Which led to it, the highest first.
    objective : float
        In units of the data.
    behind : float
        By how much that of the best one is higher.
    parameters : Parameters
        In units of the data, with the labels of the best one.
    difference : str
        What differs most, in words.
    """

    starts: tuple[int, ...]
    objective: float
    behind: float
    parameters: Parameters
    difference: str


def at_the_best(runs: Sequence[Run], best: int) -> list[int]:
    """Return which runs ended at the same optimum as the best one."""
    top = runs[best].parameters
    return [i for i in _near(runs, best) if distance(runs[i].parameters, top) < SAME]


def rivals_of(
    runs: Sequence[Run], best: int, parameters: Parameters, data: Data
) -> tuple[Rival, ...]:
    """Return the other optima that are as good, the best first.

    Parameters
    ----------
    runs : sequence of Run
    best : int
    parameters : Parameters
        Of the best run, in anchored units, components in the order that they will have.
    data : Data
    """
    reached = at_the_best(runs, best)
    others: list[list[int]] = []
    for i in sorted(set(_near(runs, best)) - set(reached), key=lambda i: -runs[i].objective):
        one = runs[i].parameters
        same = (o for o in others if distance(one, runs[o[0]].parameters) < SAME)
        known = next(same, None)
        if known is None:
            others.append([i])
        else:
            known.append(i)
    return tuple(_rival(runs, starts, best, parameters, data) for starts in others)


def _near(runs: Sequence[Run], best: int) -> list[int]:
    top = runs[best]
    good = [i for i, r in enumerate(runs) if r.is_usable or r.reason == top.reason]
    return [i for i in good if top.objective - runs[i].objective < NEAR]


def _rival(
    runs: Sequence[Run], starts: list[int], best: int, parameters: Parameters, data: Data
) -> Rival:
    found = runs[starts[0]]
    own = found.parameters.take(match(found.parameters, parameters)[0])
    apart = [distance(own.take([j]), parameters.take([j])) for j in range(own.k)]
    j = int(np.argmax(apart))
    here, there = (_words(data.to_data_units(p), j, data.names) for p in (parameters, own))
    return Rival(
        tuple(starts),
        found.objective + data.log_jacobian,
        runs[best].objective - found.objective,
        data.to_data_units(own),
        f"component {j}: {here}, or {there}",
    )


def _words(p: Parameters, j: int, names: Sequence[str]) -> str:
    sd = np.sqrt(np.diagonal(p.covariance[j]))
    each = zip(names, p.mean[j], sd, strict=True)
    shown = [f"{name} {mean:.4g} (sd {spread:.3g})" for name, mean, spread in each][:_FEATURES]
    more = ", ..." if len(names) > _FEATURES else ""
    return f"weight {p.weight[j]:.3g}, {', '.join(shown)}{more}"
