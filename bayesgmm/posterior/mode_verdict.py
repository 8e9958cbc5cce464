"""Whether draws from a posterior with several modes can be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.checks import Check, Limit, Verdict
from bayesgmm.moments import Array
from bayesgmm.posterior.atlas import PARETO_K

HOLDS_MASS = 0.01  # share of the mass, or of the draws, from which a mode counts
_RHAT = Limit(1.05, 1.05)  # of being in a mode
_UNSURE = 0.3  # standard error of a log mass
Places = NDArray[np.intp]


def judge_modes(place: Places, modes: xr.Dataset) -> Check:
    """Judge whether the chains have been in all modes that hold mass, and pass between them.

    Parameters
    ----------
    place : (chain, draw) integer array
        The mode that each draw is in.
    modes : Dataset
        ``log_density, share`` (mode) and ``visited`` (mode, chain).
    """
    share, height = modes["share"].to_numpy(), modes["log_density"].to_numpy()
    visited = modes["visited"].to_numpy()
    counts = _that_count(modes)
    if len(counts) == 1:
        return _one_mode(height[counts[0]])
    apart, missed, words = [], [], []
    rhat_of = import_module("arviz_stats.base").array_stats.rhat
    for m in counts:
        inside = (place == m).astype(float)
        here = np.flatnonzero(visited[m] > 0.5)
        chains = f"chains {', '.join(map(str, here))}" if len(here) else "no chain"
        word = f"mode {m} (log-density {height[m]:.1f}, an estimated {share[m]:.2g} of the mass) "
        words.append(f"{word}has {visited[m].mean():.2g} of the draws, {chains} most of the time")
        if not inside.any():
            missed.append(m)
        elif not inside.all():
            with np.errstate(all="ignore"):  # chains that never leave have no variance
                rhat = float(rhat_of(inside, method="split"))
            apart += [m] if _RHAT.grade(rhat) != "ok" else []
    evidence = f"{len(counts)} modes: {'; '.join(words)}"
    more = ""
    if len(counts) > len(place):
        more = f" There are more modes than chains: chains={len(counts)} starts one in each."
    if apart:
        return Check(
            "modes",
            "fail",
            evidence,
            "The chains do not pass between unlike modes as often as it takes, so that the share "
            "of the draws in each is that of the starts: no average of all draws means anything. "
            "bg.mode(post, i) gives the draws of one mode, bg.combine_modes(post) all of them by "
            "the modes' shares. Use fewer components or a stronger prior if one answer is needed."
            f"{more}",
        )
    if missed:
        return Check(
            "modes",
            "warn",
            evidence,
            "No chain has been where the atlas of modes says that there is some mass. Sample more "
            f"chains (they start from the modes in turn).{more}",
        )
    return Check("modes", "ok", f"{evidence}; the chains pass between them")


def judge_weighted(modes: xr.Dataset) -> Check:
    """Judge draws that are in each mode as its mass says: whether there is more than one.

    Parameters
    ----------
    modes : Dataset
        ``log_density, share, pareto_k`` (mode) and ``visited`` (mode, chain).
    """
    counts = _that_count(modes)
    height, share, k = (modes[name].to_numpy() for name in ("log_density", "share", "pareto_k"))
    if len(counts) == 1:
        return _one_mode(height[counts[0]])
    words = "; ".join(
        f"mode {m} (log-density {height[m]:.1f}) holds an estimated {share[m]:.2g} of the mass "
        f"(Pareto's k {k[m]:.2f})"
        for m in counts
    )
    return Check(
        "modes",
        "warn",
        f"{len(counts)} modes: {words}",
        "The draws are in each as its share says, but averages of components are averages over "
        "unlike solutions. bg.mode(fit, i) gives the draws of one mode. Use fewer components or a "
        "stronger prior if one answer is needed.",
    )


def _that_count(modes: xr.Dataset) -> Places:
    """Return the numbers of the modes that hold mass, or draws."""
    visited = modes["visited"].mean("chain").to_numpy()
    return np.flatnonzero((modes["share"].to_numpy() >= HOLDS_MASS) | (visited >= HOLDS_MASS))


def _one_mode(height: float) -> Check:
    least = f"{1.0 - HOLDS_MASS:.0%} of the posterior or more"
    return Check("modes", "ok", f"one mode, of log-density {height:.1f}, holds {least}")


def judge_combined(
    modes: xr.Dataset, lived: Places, weight: Array, parts: Sequence[Verdict]
) -> Check:
    """Judge the draws of several modes together.

    Parameters
    ----------
    modes : Dataset
        ``share, pareto_k, log_evidence_error`` (mode).
    lived : (m,) integer array
        The modes that there are draws of.
    weight : (m,) array
        With what share of these.
    parts : sequence of Verdict
        Of each mode's draws.
    """
    words = []
    doubts = []
    for number, w, verdict in zip(lived, weight, parts, strict=True):
        words.append(f"mode {number} with {w:.2g} of the mass")
        bad = [check.code for check in verdict.checks if check.status == "fail"]
        doubts += [f"the draws of mode {number} do not pass {', '.join(bad)}"] if bad else []
        k, error = (float(modes[name][number]) for name in ("pareto_k", "log_evidence_error"))
        doubt = f"Pareto's k {k:.2f}" if k > PARETO_K else f"standard error {error:.2f} of its log"
        if k > PARETO_K or error > _UNSURE:
            doubts.append(f"the mass of mode {number} is uncertain ({doubt})")
    missed = np.setdiff1d(np.flatnonzero(modes["share"].to_numpy() >= HOLDS_MASS), lived)
    doubts += [
        f"mode {m}, with an estimated {float(modes['share'][m]):.2g}, is not in it" for m in missed
    ]
    evidence = "; ".join([f"draws of {' and '.join(words)}", *doubts])
    if not doubts:
        return Check("modes", "ok", evidence)
    return Check(
        "modes",
        "warn",
        evidence,
        "Say with what is reported that it rests on these weights; sample more chains, or longer, "
        "or use fewer components or a stronger prior.",
    )
