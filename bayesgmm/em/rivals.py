"""The optima besides the best one; those nearly as good: which starts led there, what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesgmm.data.observations import Data
from bayesgmm.em.loop import Run
from bayesgmm.labels import SAME, Labels, align, are_mixtures, distance, match
from bayesgmm.moments import Parameters

NEAR = 0.1  # in log-likelihood: the data do not say which it is
MOST = 12  # optima that are kept
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


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where another start has ended.

    Parameters
    ----------
    start : int
        The highest that led to it.
    objective : float
        In units of the data.
    reason : str
        Why it stopped, as that of `loop.Run`.
    parameters : Parameters
        In units of the data, with the labels of the best one.
    """

    start: int
    objective: float
    reason: str
    parameters: Parameters


def optima_of(
    runs: Sequence[Run], parameters: Parameters, data: Data, kinds: Labels | None
) -> tuple[Optimum, ...]:
    """Return the other places where the search has ended, those that are optima first, by height.

    Among them those that are next to a singularity: under a prior they may be more than that.
    Where a posterior has its modes, some of them will lead there.

    Parameters
    ----------
    runs : sequence of Run
    parameters : Parameters
        Of the best run, in anchored units, components in the order that they will have.
    data : Data
    kinds : (k,) integer array, optional
        Components that may have each other's labels have the same number.
    """
    kept = [parameters]
    found: list[Optimum] = []
    ended = [i for i, r in enumerate(runs) if r.is_usable and r.reason != "interrupted"]
    ended += [i for i, r in enumerate(runs) if r.reason in ("spurious", "tiny")]
    for i in sorted(ended, key=lambda i: (not runs[i].is_usable, -runs[i].objective)):
        p = runs[i].parameters
        if len(found) == MOST or not _is_mixture(p):
            continue
        draws = (p.weight[None], p.mean[None], p.covariance[None])
        if all(distance(p, other) >= SAME for other in kept):
            kept.append(p)
            own = data.to_data_units(p.take(align(*draws, parameters, kinds).permutation[0]))
            found.append(Optimum(i, runs[i].objective + data.log_jacobian, runs[i].reason, own))
    return tuple(found)


def at_the_best(runs: Sequence[Run], best: int) -> list[int]:
    """Return which runs ended at the same optimum as the best one."""
    top = runs[best].parameters
    return [i for i in _near(runs, best) if i == best or distance(runs[i].parameters, top) < SAME]


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
    """Runs as good as the best, it included; of others those that floats can tell apart from it."""
    top = runs[best]
    if not _is_mixture(top.parameters):
        return [best]
    good = [i for i, r in enumerate(runs) if r.is_usable or r.reason == top.reason]
    near = [i for i in good if top.objective - runs[i].objective < NEAR]
    return [i for i in near if _is_mixture(runs[i].parameters)]


def _is_mixture(p: Parameters) -> bool:
    """Whether the covariances are definite in floats: a run may end next to where they are not."""
    return bool(are_mixtures(p.weight[None], p.mean[None], p.covariance[None])[0])


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
