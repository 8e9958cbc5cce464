"""Where no start of EM has ended at an optimum: what is better than nothing, and what to say."""

from __future__ import annotations

import numpy as np

from bayesgmm.covariance import Covariance
from bayesgmm.data.cells import row_label
from bayesgmm.data.observations import Data
from bayesgmm.em.loop import Run
from bayesgmm.em.spikes import are_spikes
from bayesgmm.mixture import GaussianMixture


def next_best(runs: list[Run], family: Covariance) -> list[int]:
    """Return the runs to choose from where none is usable: spurious ones, else tiny ones.

    A tiny component that is thin besides is next to singular.
    """
    spurious = [i for i, r in enumerate(runs) if r.reason == "spurious"]
    tiny = (i for i, r in enumerate(runs) if r.reason == "tiny")
    return spurious or [
        i
        for i in tiny
        if not are_spikes(runs[i].parameters, runs[i].moments.mean_count, family).any()
    ]


def no_usable(runs: list[Run], spec: GaussianMixture, estimate: str, data: Data) -> str:
    """Return the message of a fit of which no start can be reported: each start, and what to do."""
    rows = "\n".join(
        f"  start {i} ({r.method}): {r.reason} after {max(len(r.trace) - 1, 0)} steps"
        for i, r in enumerate(runs)
    )
    # Under the prior a component may be empty, but is never singular.
    advice = "" if estimate == "map" else ", or estimate='map', which cannot be singular"
    if not spec.has_noise and not len(data.far):
        advice += ", or noise=True, which takes single rows that are far out"
    elif spec.noise == "box" and all(r.reason == "empty" for r in runs):
        advice += (
            ", or noise='columns': the box along principal axes may be so small that all is noise"
        )
    elif not spec.has_noise:
        advice += (
            f". Row {row_label(data.index[data.far[0]])} is far from all others: alone in a "
            "component it makes the likelihood infinite, with others it makes the covariance "
            "singular; drop it, or leave it to a noise component, noise=True"
        )
    if spec.has_noise and not data.near_sd.all():
        column = data.names[int(np.argmin(data.near_sd))]
        advice += (
            f". Column {column!r} varies in rows alone that are far from all others: the noise "
            "takes them, and leaves a column that does not vary; leave it out"
        )
    return (
        f"all {len(runs)} starts ended with a singular or empty component, or one that is next to "
        f"singular, which is no optimum of {spec.covariance} to report:\n{rows}\nUse fewer "
        f"components or a family with a common covariance (EEE, EEI, EII){advice}."
    )
