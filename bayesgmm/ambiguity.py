"""Draws whose labels are ambiguous: how many, and what is refused of their components."""

from __future__ import annotations

import xarray as xr

from bayesgmm.errors import ArgumentError
from bayesgmm.labels import AMBIGUOUS, AMBIGUOUS_LABELS, ambiguous_share


def ambiguous_of(fit: xr.DataTree) -> float:
    """Return the share of a fit's draws whose labels are ambiguous; 0 where nothing is labelled."""
    if "labels" not in fit.children or fit["posterior"].sizes["cluster"] == 1:
        return 0.0
    return ambiguous_share(fit["labels"]["margin"].to_numpy())


def why_refused(fit: xr.DataTree) -> str:
    """Return why components of a fit have no summaries, or "" where they have."""
    share = ambiguous_of(fit)
    if AMBIGUOUS_LABELS.grade(share) != "fail":
        return ""
    return (
        f"{share:.1%} of the draws have ambiguous labels (margin below {AMBIGUOUS}): components "
        "exchange their roles, so that averages of single ones mix them"
    )


def refuse_ambiguous(fit: xr.DataTree, what: str) -> None:
    """Refuse averages of single components over draws whose labels are ambiguous.

    Raises
    ------
    ArgumentError
        If components have no summaries either.
    """
    sizes = fit["posterior"].sizes
    note = why_refused(fit) if sizes["chain"] * sizes["draw"] > 1 else ""  # one averages nothing
    if note:
        raise ArgumentError(
            "fit",
            f"has no {what}: {note}. Use coclustering or partition, which have no labels; or see "
            "them nonetheless with allow_ambiguous=True",
        )
