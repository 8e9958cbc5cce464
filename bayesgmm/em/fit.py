"""`fit_em`: from a specification and a table to a fit, its errors, criteria and verdict."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
import xarray as xr

from bayesgmm.arguments import whole_number
from bayesgmm.checks import warn
from bayesgmm.covariance import Covariance
from bayesgmm.data.cells import Missing
from bayesgmm.data.mixing import taken_apart
from bayesgmm.data.observations import Data, read_for
from bayesgmm.em.loop import (
    ACCELERATIONS,
    ASSIGNMENTS,
    Acceleration,
    Assignment,
    Run,
)
from bayesgmm.em.multistart import is_interrupted
from bayesgmm.em.result import order_of, result
from bayesgmm.em.rivals import at_the_best, optima_of, rivals_of
from bayesgmm.em.search import Runner, Settings, find, keeps_order, kinds
from bayesgmm.em.single import single_value
from bayesgmm.em.tails import tails
from bayesgmm.em.unusable import next_best, no_usable
from bayesgmm.em.verdict import em_verdict
from bayesgmm.errors import (
    ArgumentError,
    FitWarning,
    NotYetSupportedError,
    NumericalError,
    collected,
    to_json,
)
from bayesgmm.groups import MOST_KINDS
from bayesgmm.information.fixed import Fixed, read_fixed
from bayesgmm.information.observed import Information, observed_information
from bayesgmm.information.uncertainty import Kind, checked_kind, uncertainty
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Parameters
from bayesgmm.noise import SHARE, Region, region_around
from bayesgmm.prior import ConjugatePrior
from bayesgmm.progress import is_wanted
from bayesgmm.resolved import PseudoData, is_singular, pseudo_data
from bayesgmm.streams import Rows

MAX_SE_PARAMETERS = 2000  # beyond, the information matrix is large and must be asked for


def fit_em(
    spec: GaussianMixture,
    X: Any,
    *,
    estimate: Literal["mle", "map"] = "mle",
    sample_weight: Any = None,
    start: Any = None,
    n_starts: int = 40,
    n_finish: int = 12,
    max_iter: int = 10_000,
    tol: float = 1e-4,
    acceleration: Acceleration | None = "quasi-newton",
    assignment: Assignment = "soft",
    fixed: Mapping[str, Any] | None = None,
    standard_errors: bool | Kind | None = None,
    keep_responsibilities: bool = False,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    threads: int | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> xr.DataTree:
    r"""Fit a mixture by EM: maximum likelihood, or the posterior mode under the conjugate prior.

    Parameters
    ----------
    spec : GaussianMixture
    X : table (n, d)
        DataFrame, array or anything tabular; names and index survive.
    estimate : {"mle", "map"}
        Maximum likelihood, or the mode of the posterior under ``spec.prior`` (conjugate), in the
        coordinates that `bayesgmm.resolved` states.
    sample_weight : (n,) array, optional
        Frequencies: weight 2 is the row twice, weight 0 the row absent.
    start : optional
        ``"ellipsoids"``, ``"ward"`` (hierarchical), ``"kmeans"``, ``"random"``, integer labels
        (n,), `Parameters`, a fit, or a list of these. Default, also as None in a list:
        hierarchical partitions, then k-means++ and random centres in turn; and if it is not in a
        list, what the same search finds in the families nested in this one.
    n_starts : int
        Number of starts.
    n_finish : int
        If there are more starts, short runs are made from all, and the most promising that differ
        are run to their end. The best usable optimum is kept, the others are reported.
    max_iter : int
        Most passes over the data of a run, after its first.
    tol : float
        Distance from the maximum, in standard errors of any parameter, at which to stop.
    assignment : {"soft", "hard", "stochastic"}
        ``"hard"`` is classification EM: each row counts for its most probable component only, and
        what is maximised is the classification likelihood (with EII and equal weights: k-means).
        It has no standard errors. ``"stochastic"`` begins with 50 steps of stochastic EM.
    fixed : mapping, optional
        Parameters that do not move, in the units of the data, NaN where free: ``{"weight":
        "equal"}``, or arrays ``weight`` (k,), ``mean`` (k, d), ``covariance`` (k, d, d). Components
        then keep their order. With noise weights are fixed for all components or for none, as
        shares of what is no noise.
    acceleration : {"quasi-newton", "squarem", "anderson"} or None
        How the end of a run is sped up; None for plain EM. ``tol`` means the same. Near a saddle
        a start may, rarely, lead to another optimum than plain EM's. The first needs the fewest
        passes over the data (``docs/benchmarks.md``); none lets the objective fall.
    standard_errors : bool, "observed", "sandwich" or "opg", optional
        From the observed information (also for True), robust against a wrong model, or from outer
        products of gradients: `bayesgmm.information.uncertainty`. Default: "observed", unless there
        are more than 2000 parameters.
    keep_responsibilities : bool
        Store the (n, k) responsibilities.
    columns : sequence of str, optional
        Columns of ``X`` to use, in this order.
    missing : {"error", "drop", "marginalise"}
        Missing values (NaN, NA) are refused; their rows are left out, with a warning; or they are
        integrated over, exactly, so that what is maximised is the likelihood of what is observed
        (right where values are missing at random: Rubin 1976, Biometrika 63, 581-592). A row
        without any observed value has weight 0 then.
    labels : (n,) or (n, k), optional
        What is known of the rows' components: integers 0 to k - 1, with -1, None or NaN where
        unknown; or probabilities, in rows that sum to one. They multiply the weights and count up
        to a factor: 0 is impossible, all the same is unknown. Components keep this order.
    threads : int, optional
        At most this many; the result does not depend on it.
    random_seed : int, optional
        Same seed, same bits.
    progressbar : bool, optional
        Default: in a terminal.

    Returns
    -------
    xarray.DataTree
        ``posterior`` (chain 1, draw 1), ``standard_error``, ``criteria``, ``starts``, ... as in
        ``docs/design.md``; the verdict and all warnings are in ``attrs``.

    Raises
    ------
    DataError, ArgumentError
        For bad input, naming it.
    NumericalError
        If every start ended singular or empty; the message tabulates them.

    Warns
    -----
    FitWarning
        If the fit should not be trusted, with the reasons.
    """
    began = time.perf_counter()
    _check_arguments(spec, estimate, n_starts, n_finish, max_iter, tol, acceleration, threads)
    _check_assignment(assignment, standard_errors)
    kind: Kind = "observed"
    if standard_errors is not None and not isinstance(standard_errors, bool):
        kind = checked_kind("standard_errors", standard_errors, estimate)
    with collected() as notes:
        data = read_for(
            spec, X, sample_weight=sample_weight, columns=columns, missing=missing, labels=labels
        )
        if fixed is None and (estimate == "mle" or _follows_columns(spec, data)):
            data = taken_apart(data, spec.covariance)
        prior = _resolved(spec, data) if estimate == "map" else None
    _check_labels(data, assignment)
    family, k = spec.covariance, spec.n_components
    held = read_fixed(fixed, family, k, data.d).anchored(data) if fixed is not None else None
    region = checked_region(spec, data, held)
    noise = data.to_anchored_noise(region.noise(SHARE)) if region is not None else None
    seed = seed_of(random_seed)

    def track(items: Iterable[Any], total: int) -> Iterable[Any]:
        return _track(items, total, progressbar)

    runs, twins, runner = find(
        data,
        family,
        k,
        Settings(prior, held, max_iter, float(tol), acceleration, assignment, threads, noise),
        start=start,
        n_starts=n_starts,
        n_finish=n_finish,
        rng=np.random.default_rng(seed),
        track=track,
    )
    usable = [i for i, r in enumerate(runs) if r.is_usable]
    if not usable:  # better than nothing, and the verdict says what it is
        usable = next_best(runs, family)
    if not usable and is_interrupted(runs):
        raise KeyboardInterrupt
    if not usable:
        raise NumericalError(no_usable(runs, spec, estimate, data))
    finished = [i for i in usable if runs[i].reason != "interrupted"]
    best = max(finished or usable, key=lambda i: runs[i].height)
    wanted = spec.n_parameters(data.d) <= MAX_SE_PARAMETERS and assignment != "hard"
    information = errors = None
    if wanted if standard_errors is None else standard_errors:
        runs[best], information = _certified(data, family, runs[best], tol, runner, held)
        top = runs[best]
        errors = uncertainty(
            kind, information, data, top.parameters, top.moments, family, prior=prior, held=held
        )
    order = order_of(runs[best].parameters, data, is_kept=keeps_order(data, held))
    ranked = runs[best].parameters.take(order)
    rivals = rivals_of(runs, best, ranked, data)
    verdict = em_verdict(
        **_facts(data, family, runs, best, twins, information, tol, ranked),
        rivals=rivals,
        single=None if held and held.has_covariance.any() else single_value(data, ranked),
        tails=tails(data.groups, ranked),
        index=data.index,
    )
    fit = result(
        spec,
        data,
        runs,
        best,
        information,
        errors,
        order,
        rivals,
        optima_of(runs, ranked, data, kinds(data.probability, held)),
        estimate=estimate,
        keep_responsibilities=keep_responsibilities,
        n_fixed=held.count(k, data.d, family) if held else 0,
    )
    fit.attrs |= {
        "random_seed": seed,
        "missing": missing,
        "assignment": assignment,
        "fixed": held.to_json(data) if held else "",
        "noise": region.to_json() if region else "",
        "verdict": verdict.to_json(),
        "warnings": to_json(notes),
        "timings": json.dumps({"em": time.perf_counter() - began}),
    }
    warn(verdict, FitWarning)
    return fit


def _check_arguments(
    spec: GaussianMixture,
    estimate: str,
    n_starts: int,
    n_finish: int,
    max_iter: int,
    tol: Any,
    acceleration: str | None,
    threads: int | None,
) -> None:
    refuse_other(spec)
    if estimate not in ("mle", "map"):
        raise ArgumentError("estimate", f"must be 'mle' or 'map', not {estimate!r}")
    whole_number("n_starts", n_starts, least=1)
    whole_number("n_finish", n_finish, least=1)
    whole_number("max_iter", max_iter, least=1)
    if isinstance(tol, bool) or not isinstance(tol, Real) or not float(tol) >= 0:
        raise ArgumentError("tol", f"must be 0 or more standard errors, not {tol!r}")
    if acceleration is not None and acceleration not in ACCELERATIONS:
        known = ", ".join(repr(name) for name in ACCELERATIONS)
        raise ArgumentError("acceleration", f"must be {known} or None, not {acceleration!r}")
    if threads is not None:
        whole_number("threads", threads, least=1)


def _check_assignment(assignment: str, standard_errors: bool | str | None) -> None:
    if assignment not in ASSIGNMENTS:
        known = ", ".join(repr(name) for name in ASSIGNMENTS)
        raise ArgumentError("assignment", f"must be one of {known}, not {assignment!r}")
    if assignment == "hard" and standard_errors:
        raise ArgumentError(
            "standard_errors",
            "there are none for hard assignment: its estimates are biased, whatever the number of "
            "rows; use assignment='soft'",
        )


def _check_labels(data: Data, assignment: str) -> None:
    if assignment != "soft" and any(group.plausibility.ndim == 2 for group in data.groups):
        raise NotYetSupportedError(
            "labels",
            f"have more than {MOST_KINDS} different rows of probabilities, which needs "
            "assignment='soft'",
        )


def checked_region(spec: GaussianMixture, data: Data, held: Fixed | None) -> Region | None:
    """Return where noise is, if the specification has it.

    Raises
    ------
    NotYetSupportedError
        For noise together with fixed weights of some of the components.
    ArgumentError
        For noise of a given volume with missing values: of single columns it says nothing.
    """
    if not spec.has_noise:
        return None
    if held is not None and held.has_weight.any() and not held.has_weight.all():
        raise NotYetSupportedError(
            "noise",
            "is not there together with fixed weights of some components yet; fix those of all, as "
            "shares of what is no noise, or none",
        )
    if isinstance(spec.noise, float):
        if not data.is_complete:
            raise ArgumentError(
                "noise",
                "of a given volume says nothing of single columns, which missing='marginalise' "
                "needs; use noise='columns', whose box is along the columns, or missing='drop'",
            )
        return Region(math.log(spec.noise))
    # Also what a row of weight 0 lacks counts: its responsibilities are reported.
    is_partial = any(0 < np.count_nonzero(group.observed) < data.d for group in data.groups)
    is_along = spec.noise == "columns" or is_partial
    return region_around(Rows(data.values, data.weight), data.center, along_columns=is_along)


def seed_of(random_seed: int | None) -> int:
    """Return the seed, or a fresh one for None, so that every result can be made again."""
    if random_seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return whole_number("random_seed", random_seed, least=0)


def _follows_columns(spec: GaussianMixture, data: Data) -> bool:
    """Whether the prior is made of the data, so that other coordinates of them do not change it."""
    prior = spec.prior
    is_default = isinstance(prior, ConjugatePrior) and prior.mean is None and prior.scale is None
    return is_default and not is_singular(data.covariance)


def _resolved(spec: GaussianMixture, data: Data) -> PseudoData:
    """Return the conjugate prior in anchored units."""
    if not isinstance(spec.prior, ConjugatePrior):
        raise ArgumentError(
            "estimate", f"'map' needs a conjugate prior; the specification's is {spec.prior!r}"
        )
    if spec.prior.weight_concentration < 1.0:
        raise ArgumentError(
            "estimate",
            "'map' needs a weight_concentration of at least 1: below, the density of the weights "
            "has no mode inside",
        )
    family, k = spec.covariance, spec.n_components
    if data.mix is not None:
        return pseudo_data(spec.prior, family, k, mean=data.mean, covariance=data.covariance)
    return pseudo_data(
        spec.prior,
        family,
        k,
        mean=data.center + data.scale * data.mean,
        covariance=data.covariance * np.outer(data.scale, data.scale),
    ).anchored(data.center, data.scale)


def _track(items: Iterable[Any], total: int, progressbar: bool | None) -> Iterable[Any]:
    if not is_wanted(progressbar) or total < 2:
        return items
    from rich.progress import track

    return track(items, description="EM starts", total=total, transient=True)


def _certified(
    data: Data, family: Covariance, best: Run, tol: float, runner: Runner, held: Fixed | None
) -> tuple[Run, Information]:
    """Compute the information; where the exact distance is not yet below ``tol``, run on."""
    aim = tol
    for _ in range(8):
        information = observed_information(
            data.x, best.parameters, best.moments, family, data.weight, data.probability
        )
        if held is not None:
            information = held.restrict(information, best.parameters, family)
        if best.reason != "converged" or not information.distance > tol:
            break
        aim = 0.1 * aim
        more = runner.go(best, tol=aim)
        if not more.is_usable:  # on from a saddle into a singularity
            break
        best = more
    return best, information


def _facts(
    data: Data,
    family: Covariance,
    runs: list[Run],
    best: int,
    twins: list[int],
    information: Information | None,
    tol: float,
    ranked: Parameters,
) -> dict[str, Any]:
    """What the verdict is made from."""
    top = runs[best]
    reached = at_the_best(runs, best)
    width = np.sqrt(np.diagonal(ranked.covariance, axis1=1, axis2=2)) / data.sd
    return {
        "reason": top.reason,
        "n_iter": len(top.trace) - 1,
        "distance": information.distance if information else float("nan"),
        "tol": tol,
        "is_positive_definite": information.is_positive_definite if information else None,
        "counts": top.moments.mean_count,
        "reasons": [r.reason for r in runs],
        "n_at_best": sum(twin in reached for twin in twins),
        "family": family,
        "d": data.d,
        "far": data.index[data.far],
        "width": width,
    }
