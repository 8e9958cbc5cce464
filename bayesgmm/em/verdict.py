"""Whether a fit by EM can be relied on: checks that say what, how bad, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesgmm.checks import Check, Verdict
from bayesgmm.covariance import Array, Covariance
from bayesgmm.data.cells import count, row_label
from bayesgmm.em.loop import UNUSABLE
from bayesgmm.em.rivals import NEAR, Rival
from bayesgmm.em.single import SingleValue
from bayesgmm.em.tails import Tails

_MOST_RIVALS = 3  # that are told
_WIDE = 10.0  # times the rows' own spread, which only a component of a hundredth of them may be
# What a component is made of that is returned only where there is nothing else.
_NO_OPTIMUM = {
    "spurious": "a few points that are close by chance, where the likelihood has a spike",
    "tiny": "hardly more points than a covariance needs, near which the likelihood has no bound",
}


def em_verdict(
    *,
    reason: str,
    n_iter: int,
    distance: float,
    tol: float,
    is_positive_definite: bool | None,
    counts: Array,
    reasons: Sequence[str],
    n_at_best: int,
    family: Covariance,
    d: int,
    rivals: Sequence[Rival] = (),
    tails: Tails | None = None,
    index: Any = None,
    far: Sequence[Any] = (),
    width: Array | None = None,
    single: SingleValue | None = None,
) -> Verdict:
    """Judge a fit by EM.

    Parameters
    ----------
    reason : str
        Why the best run stopped; ``"converged"`` and ``"fixed point"`` are good.
    n_iter : int
        Its number of steps.
    distance, tol : float
        How many standard errors it is from its limit (NaN if unknown), and how many were allowed.
    is_positive_definite : bool or None
        Whether minus the Hessian is, that is, whether this is a strict maximum; None if unknown.
    counts : (k,) array
        Expected number of observations of each component.
    reasons : sequence of str
        Why each start stopped.
    n_at_best : int
        How many starts reached the best optimum.
    family : Covariance
    d : int
        Number of features.
    rivals : sequence of Rival
        The other optima that are as good.
    tails : Tails, optional
        How far out rows are, if it is known.
    index : sequence, optional
        The row labels.
    far : sequence
        The labels of rows that are far from all others.
    width : (k, d) array, optional
        Standard deviations of the components, in those of the columns without these rows; needed
        if there are such rows.
    single : SingleValue, optional
        The component that is at one value of a column, if there is one.

    Returns
    -------
    Verdict
        With checks ``converged, hessian, small-component, starts, best-found-once, rival-modes,
        heavy-tails``, and ``far-row`` and ``single-value`` if there is one.
    """
    checks = [
        _converged(reason, n_iter, distance, tol),
        _small_component(counts, family, d),
        _unusable_starts(reasons),
        _best_found_once(n_at_best, len(reasons)),
        _rival_modes(rivals),
    ]
    if tails is not None:
        checks.append(_heavy_tails(tails, index))
    if len(far) and width is not None:
        checks.append(_far_row(far, width))
    if single is not None:
        checks.append(_single_value(single))
    if is_positive_definite is not None:
        good = Check("hessian", "ok", "minus the Hessian is positive definite: a strict maximum")
        bad = Check(
            "hessian",
            "fail",
            "minus the Hessian is not positive definite",
            "This is no strict maximum but a saddle or a ridge, and there are no standard errors: "
            "some parameters are not determined. Use fewer components, a smaller family, more "
            "starts, or estimate='map'.",
        )
        checks.insert(1, good if is_positive_definite else bad)
    return Verdict(tuple(checks))


def _converged(reason: str, n_iter: int, distance: float, tol: float) -> Check:
    # Short of NaN, which says that no information matrix was asked for or that it has no inverse.
    known = f", {distance:.2g} standard errors from its limit" if np.isfinite(distance) else ""
    evidence = f"EM stopped after {n_iter} steps ({reason}){known}"
    if reason in _NO_OPTIMUM:
        advice = (
            f"Every start led to a component of {_NO_OPTIMUM[reason]}; this is the highest. Do not "
            "interpret it: use fewer components, a family with a common covariance (EEE, EEI, "
            "EII), or estimate='map'."
        )
        return Check("converged", "fail", evidence, advice)
    if reason not in ("converged", "fixed point"):
        advice = (
            "The estimates are not at a maximum of the likelihood. Let it run: raise max_iter, or "
            "use fewer components if it creeps."
        )
        return Check("converged", "fail", evidence, advice)
    if reason == "converged" and distance > tol:
        advice = (
            f"That is more than the {tol:.2g} asked for: the likelihood is nearly flat there. "
            "Use fewer components or a smaller family, or accept a larger tol."
        )
        return Check("converged", "warn", evidence, advice)
    return Check("converged", "ok", evidence)


def _small_component(counts: Array, family: Covariance, d: int) -> Check:
    # Twice what `em` needs to call a component one: near a few points that happen to be close the
    # likelihood has a local maximum of no meaning. Without a covariance of its own none can shrink.
    own = 2.0 * (d + 2.0) if family.orientation == "V" else 6.0
    needed = 1.5 if family.is_common else own
    smallest = float(counts.min())
    evidence = f"the smallest component has {smallest:.3g} observations"
    if smallest >= needed:
        return Check("small-component", "ok", evidence)
    return Check(
        "small-component",
        "warn",
        f"{evidence}, fewer than {needed:g}",
        "Too few to estimate its parameters: it may be a few points that are close by chance, and "
        "its standard errors say little. Use fewer components, a family with a common covariance "
        "(EEE, EEI, EII), or estimate='map'.",
    )


def _unusable_starts(reasons: Sequence[str]) -> Check:
    bad = [reason for reason in reasons if reason in UNUSABLE]
    kinds = ", ".join(f"{bad.count(kind)} {kind}" for kind in dict.fromkeys(bad))
    evidence = f"{len(bad)} of {len(reasons)} starts were unusable"
    evidence += f" ({kinds})" if bad else ""
    if 2 * len(bad) <= len(reasons):
        return Check("starts", "ok", evidence)
    return Check(
        "starts",
        "warn",
        evidence,
        "They ran to a component of a few points that are close by chance, where the likelihood is "
        "unbounded: the model is too large for the data. Use fewer components, a smaller family, "
        "or estimate='map'.",
    )


def _best_found_once(n_at_best: int, n_starts: int) -> Check:
    evidence = f"{n_at_best} of {n_starts} starts led to the best optimum"
    if n_at_best > 1 or n_starts < 5:
        return Check("best-found-once", "ok", evidence)
    return Check(
        "best-found-once",
        "warn",
        evidence,
        "More starts may find a better one: raise n_starts until several agree.",
    )


def _rival_modes(rivals: Sequence[Rival]) -> Check:
    if not rivals:
        return Check("rival-modes", "ok", f"no other optimum within {NEAR} in log-likelihood")
    here = rivals[0].objective + rivals[0].behind
    lines = [
        f"start {r.starts[0]} led to {r.objective:.3f}, where most differs {r.difference}"
        for r in rivals[:_MOST_RIVALS]
    ]
    optima = "another optimum is" if len(rivals) == 1 else f"{len(rivals)} other optima are"
    evidence = f"{optima} within {NEAR} in log-likelihood: {here:.3f} here; {'; '.join(lines)}"
    start = rivals[0].starts[0]
    return Check(
        "rival-modes",
        "warn",
        evidence,
        "The data do not decide between these solutions, and standard errors describe one of them. "
        "The others are in the group `rivals`: fit_em(spec, X, "
        f"start=fit['rivals'].sel(start={start})) gives the first one with its errors. Use fewer "
        "components or a smaller family, or sample the posterior, which covers them all.",
    )


def _far_row(far: Sequence[Any], width: Array) -> Check:
    others = f" (and {count(len(far) - 1, 'more row')})" if len(far) > 1 else ""
    evidence = f"row {row_label(far[0])}{others} is far from all others, and "
    widest = int(np.argmax(width.max(axis=1)))
    if width[widest].max() <= _WIDE:
        return Check("far-row", "ok", f"{evidence}no component is wide for it")
    return Check(
        "far-row",
        "fail",
        f"{evidence}component {widest} is {width[widest].max():.2g} times as wide as they are",
        "Its covariance is made of that row, not of the others. Correct or drop the row, or leave "
        "it to a noise component, noise=True.",
    )


def _single_value(single: SingleValue) -> Check:
    return Check(
        "single-value",
        "fail",
        f"all rows of component {single.component} have the value {single.value:.6g} in column "
        f"{single.column!r}: its standard deviation there is {single.share:.2g} of the distance to "
        "the nearest other value",
        "Rounding has made it: rows with the same value of a column can make the likelihood as "
        "high as one likes. Use values that are less rounded, fewer components, a family with a "
        "common covariance (EEE, EEI, EII), or estimate='map'.",
    )


def _heavy_tails(tails: Tails, index: Any) -> Check:
    evidence = (
        f"the fourth moment of the rows' distances is {tails.kurtosis:.3g} times that of normal "
        f"components (standard error {tails.error:.2g})"
    )
    if not tails.are_heavy:
        return Check("heavy-tails", "ok", evidence)
    label = row_label(tails.row if index is None else index[tails.row])
    return Check(
        "heavy-tails",
        "warn",
        f"{evidence}; the furthest is row {label}, {tails.distance:.3g} standard deviations from "
        f"component {tails.component}, where normal rows end at {tails.usual:.2g}",
        "Rows far out widen a covariance and shift a mean, or get a component of their own. Look "
        "at the rows with the lowest bg.score(fit, X): correct or drop what is wrong, transform "
        "skewed columns, leave single rows to a noise component (noise=True), or describe the tail "
        "by a component more.",
    )
