"""Replicates fitted from an estimate: what they are worth as draws, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event

import numpy as np

from bayesgmm import labels, tree
from bayesgmm.checks import Check, Limit
from bayesgmm.data.observations import Data
from bayesgmm.em.loop import Run
from bayesgmm.em.search import SAMPLE, in_order, kinds, sampled
from bayesgmm.em.start import Start, starts
from bayesgmm.errors import NumericalError
from bayesgmm.inference.ahead import ahead
from bayesgmm.inference.estimate import Estimate
from bayesgmm.inference.replicates import climb
from bayesgmm.moments import Array
from bayesgmm.noise import SHARE, with_noise
from bayesgmm.streams import is_on_disk

HIGHER = 1e-3  # by so much in log-likelihood is another optimum higher
FAILED = Limit(0.01, 0.1)  # share of replicates without an optimum
ELSEWHERE = Limit(0.05, 1.0)  # share of replicates with a higher optimum
LEAST = 50  # replicates for standard errors within a tenth


@dataclass(frozen=True, eq=False)
class Refit:
    """How one replicate ended.

    Parameters
    ----------
    number : int
        Which replicate.
    run : Run
        The one that counts.
    loglik : float
        Of the data themselves at its parameters, anchored; NaN if there is no optimum.
    is_higher_elsewhere : bool or None
        Whether another start led to a higher optimum than the estimate; None if none was tried.
    """

    number: int
    run: Run
    loglik: float
    is_higher_elsewhere: bool | None

    @property
    def has_optimum(self) -> bool:
        """Whether the replicate ended in a usable optimum."""
        return _has_optimum(self.run)


def _has_distinct(data: Data, k: int) -> bool:
    x = data.x[data.weight > 0] if data.weight.size else data.x
    return len(np.unique(x, axis=0)) >= k


def _has_optimum(found: Run) -> bool:
    return found.is_usable and found.reason != "max_iter"


def _is_over(found: Run) -> bool:
    return _has_optimum(found) or found.reason == "interrupted"


def refit(
    estimate: Estimate,
    number: int,
    data: Data,
    *,
    tol: float,
    covariance: Array | None = None,
    methods: Sequence[str] = (),
    takes_higher: bool = False,
    rng: np.random.Generator | None = None,
    threads: int | None = None,
    stop: Event | None = None,
) -> Refit | None:
    """Fit a replicate from the estimate, and see whether other starts lead higher.

    Parameters
    ----------
    estimate : Estimate
        What is fixed in it stays so, and what is known of its rows' components holds.
    number : int
    data : Data
        The replicate.
    tol : float
        Distance from the limit, in standard errors, at which to stop.
    covariance : (q, q) array, optional
        Of the estimates (`ahead.covariance_of`): then EM starts near the replicate's optimum.
    methods : sequence of str
        Other starts, as in `start.starts`.
    takes_higher : bool
        Whether the highest optimum counts, or that which the estimate leads to.
    rng : Generator, optional
        For the other starts.
    threads, stop
        As in `loop.run`.

    Returns
    -------
    Refit or None
        None if it was interrupted.
    """
    family, k, held = estimate.family, estimate.parameters.k, estimate.held
    begins = list[Start]()
    # Of rows in a file, which are not copied into memory, starts look at some, as `fit_em`'s do.
    is_large = is_on_disk(data.x) and data.n > SAMPLE
    some = sampled(data, rng) if rng is not None and methods and is_large else data
    if rng is not None and k > 1 and methods and _has_distinct(some, k):
        more = starts(data, family, k, start=list(methods), n_starts=1, rng=rng, sample=some)
        noise = estimate.parameters.noise and replace(estimate.parameters.noise, weight=SHARE)
        begins = [
            replace(one, parameters=with_noise(one.parameters, noise))
            for one in in_order(more, some, family, held)
        ]

    def go(begin: Start) -> Run:
        return climb(
            data,
            family,
            begin,
            prior=estimate.prior,
            fixed=held,
            tol=tol,
            threads=threads,
            stop=stop,
        )

    near = ahead(estimate, data, covariance, tol, threads)
    runs = [go(Start("estimate", near))]
    if near is not estimate.parameters and not _is_over(runs[0]):  # EM may still find one
        runs = [go(Start("estimate", estimate.parameters))]
    for begin in begins:
        if runs[-1].reason != "interrupted":
            runs.append(go(begin))
    if runs[-1].reason == "interrupted":
        return None
    first, others = runs[0], [r for r in runs[1:] if _has_optimum(r)]
    is_first_good = _has_optimum(first)
    if is_first_good:
        others = [r for r in others if r.objective > first.objective + HIGHER]
    chosen = max(others, key=lambda r: r.height) if takes_higher and others else first
    loglik = float("nan")
    if _has_optimum(chosen):
        loglik = replace(estimate, prior=None).sums(chosen.parameters, threads).loglik
    is_known = is_first_good and len(runs) > 1
    return Refit(number, chosen, loglik, bool(others) if is_known else None)


def with_optimum(found: Sequence[Refit], wanted: int) -> list[Refit]:
    """Return the replicates that ended in an optimum, or say that there are none.

    Raises
    ------
    NumericalError
        If there are fewer than two.
    KeyboardInterrupt
        If that is because of Ctrl-C.
    """
    usable = [r for r in found if r.has_optimum]
    if len(usable) > 1:
        return usable
    if len(found) < wanted:
        raise KeyboardInterrupt
    raise NumericalError(
        f"of {len(found)} replicates, {len(usable)} ended in a usable optimum "
        f"({_reasons(found)}). The data do not determine this many components: use fewer, or a "
        "family with a common covariance (EEE, EEI, EII)"
    )


def aligned(
    estimate: Estimate, usable: Sequence[Refit]
) -> tuple[dict[str, Array], labels.Labels, Array]:
    """Return estimates (s, ...) in data units with the labels of the fit's, labels and margins.

    Components are told apart by what is known of them where something is.
    """
    each = [tree.arrays(r.run.parameters) for r in usable]
    raw = {n: np.stack([one[n] for one in each]) for n in each[0]}
    known = kinds(estimate.data.probability, estimate.held)
    pivot = estimate.parameters
    found = labels.align(raw["weight"], raw["mean"], raw["covariance"], pivot, known)
    ordered = {n: labels.apply(found.permutation, raw[n]) for n in tree.DIMS}
    natural = estimate.data.to_data_units(tree.components(ordered))
    return raw | {n: getattr(natural, n) for n in tree.DIMS}, found.permutation, found.margin


def _reasons(found: Sequence[Refit]) -> str:
    count = Counter(r.run.reason for r in found if not r.has_optimum)
    return ", ".join(f"{n} {reason}" for reason, n in count.most_common())


# The verdict


def checks(
    found: Sequence[Refit], margin: Array, *, wanted: int, takes_higher: bool = False
) -> list[Check]:
    """Return ``enough-replicates, failed-replicates, ambiguous-labels, other-optima``.

    Parameters
    ----------
    found : sequence of Refit
        All that were made.
    margin : (s,) array
        Of the labels of those with an optimum.
    wanted : int
        How many were asked for.
    takes_higher : bool
        As in `refit`.

    Returns
    -------
    list of Check
        The last two for more than one component only, the last if other starts were tried.
    """
    several = found[0].run.parameters.k > 1
    tried = [r.is_higher_elsewhere for r in found if r.is_higher_elsewhere is not None]
    return [
        _enough(len(margin), len(found), wanted),
        _failed(found, len(margin)),
        *([labels.ambiguous_labels(margin)] if several else []),
        *([_elsewhere(sum(tried), len(tried), takes_higher)] if tried else []),
    ]


def _enough(n_usable: int, n_found: int, wanted: int) -> Check:
    code, evidence = "enough-replicates", f"{n_usable} replicates with an optimum"
    if n_found < wanted:
        advice = f"Interrupted: {wanted} were asked for. Errors rest on those that were finished."
        return Check(code, "warn", evidence, advice)
    if n_usable < LEAST:
        advice = "Standard errors from so few are off by more than a tenth: raise draws."
        return Check(code, "warn", evidence, advice)
    return Check(code, "ok", evidence)


def _failed(found: Sequence[Refit], n_usable: int) -> Check:
    bad = len(found) - n_usable
    evidence = f"{bad} of {len(found)} replicates have no usable optimum"
    evidence += f" ({_reasons(found)})" if bad else ""
    advice = (
        "The others are no random part of all, so that errors are too small. Rows that are drawn "
        "several times are tied; kind='weighted' has no ties. Or use fewer components, a family "
        "with a common covariance (EEE, EEI, EII), or estimate='map'."
    )
    return _graded("failed-replicates", FAILED, bad / len(found), evidence, advice)


def _elsewhere(n_higher: int, n_tried: int, takes_higher: bool) -> Check:
    evidence = (
        f"in {n_higher} of {n_tried} replicates another start leads to a higher optimum than the "
        "estimate does"
    )
    if takes_higher:
        return Check("other-optima", "ok", f"{evidence}, which is the draw there")
    advice = (
        "Errors are those of this solution; which solution is the highest is not certain either, "
        "and that is not in them. Set restarts=1 to take the higher one, or use fewer components."
    )
    return _graded("other-optima", ELSEWHERE, n_higher / n_tried, evidence, advice)


def _graded(code: str, limit: Limit, value: float, evidence: str, advice: str) -> Check:
    status = limit.grade(value)
    return Check(code, status, evidence, "" if status == "ok" else advice)
