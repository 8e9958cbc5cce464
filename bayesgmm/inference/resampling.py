r"""Bootstrap and jackknife of a fit by EM: how the estimate varies over replicates of the data.

Every replicate (`replicates`) is fitted by EM from the estimate (`refits`), its components get the
labels of the estimate (`labels.align`), and the values are draws like those of a posterior.  What
went wrong is counted, by reason, and kept apart: replicates without a usable optimum, labels that
are ambiguous, and replicates in which another start leads to a higher optimum.

The last matters: a likelihood has several optima, and replicates that start at the estimate stay
near it, so that the spread of the draws is that of *this* solution, as standard errors from the
information matrix are.  The spread of "the highest optimum, wherever it is" may be many times
larger.  Some replicates are therefore fitted from a hierarchical start as well, and the verdict
says how often that was higher; with ``restarts`` all are, and the higher one is the draw.

References
----------
Efron & Tibshirani (1993), An Introduction to the Bootstrap, Chapman & Hall.  Basford, Greenway,
McLachlan & Peel (1997), Comput. Stat. 12, 1-17 (mixtures).  O'Hagan, Murphy, Scrucca & Gormley
(2019), Comput. Stat. 34, 1779-1813 (jackknife, bootstrap and weighted bootstrap of mixtures).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from threading import Event
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from bayesgmm import tree
from bayesgmm.arguments import share, whole_number
from bayesgmm.checks import Verdict, warn
from bayesgmm.data.observations import Data
from bayesgmm.em.fit import seed_of
from bayesgmm.em.multistart import workers
from bayesgmm.em.result import package_version, versions
from bayesgmm.errors import ArgumentError, FitWarning
from bayesgmm.inference.ahead import covariance_of
from bayesgmm.inference.estimate import Estimate, moving
from bayesgmm.inference.refits import (
    Refit,
    aligned,
    checks,
    refit,
    with_optimum,
)
from bayesgmm.inference.replicates import (
    each,
    frequency,
    generators,
    resampled,
    reweighted,
    simulated,
    without,
)
from bayesgmm.labelfree import dataset as label_free_dataset
from bayesgmm.labelfree import label_free
from bayesgmm.labels import AMBIGUOUS, AMBIGUOUS_LABELS, Labels, ambiguous_share
from bayesgmm.moments import Array

Kind = Literal["nonparametric", "parametric", "weighted"]
KINDS: tuple[str, ...] = get_args(Kind)

# Distance from the limit at which a replicate stops, in standard errors: far below the error that
# a thousand draws leave in a standard error, which is 2 %.
TOL = 1e-3


def bootstrap(
    fit: xr.DataTree,
    *,
    kind: Kind = "nonparametric",
    draws: int = 999,
    restarts: int = 0,
    audited: int = 100,
    threads: int | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> xr.DataTree:
    r"""Fit replicates of the data, and return the estimates as draws.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`, which holds its data and weights. What acts on it acts on all replicates: the
        prior of a MAP fit, what is fixed, what is known of the rows' components.
    kind : {"nonparametric", "parametric", "weighted"}
        Observations drawn with replacement; rows drawn from the fitted mixture, which takes the
        model to be true (cells are missing and labels known as they are in the data); or Dirichlet
        weights, under which no row is ever absent (the weighted likelihood bootstrap). See
        `bayesgmm.inference.replicates`.
    draws : int
        Number of replicates. A standard error from B draws has itself an error of about
        :math:`1 / \sqrt{2B}`; 999 are usual for intervals.
    restarts : int
        Further starts of every replicate, the first one hierarchical, the others random. The
        highest optimum is the draw. Default: none, so that draws stay with the estimate.
    audited : int
        Of so many replicates it is found out whether a hierarchical start leads higher, for the
        verdict. Such a start takes longer than the replicate itself; 0 leaves that out.
    threads : int, optional
        At most this many; the result does not depend on it.
    random_seed : int, optional
        Same seed, same bits.
    progressbar : bool, optional
        Default: in a terminal. Ctrl-C keeps the replicates that are finished.

    Returns
    -------
    xarray.DataTree
        As a posterior: ``posterior`` (chain 1, draw), in the order and with the labels of the
        estimate, ``labels`` (``permutation``, ``margin``), ``label_free``, ``sample_stats``
        (``loglik`` of the data themselves, ``objective`` of the replicate, ``n_iter``);
        ``replicates`` tells how each of them ended, the failed ones included.

    Raises
    ------
    ArgumentError
        If ``fit`` is no fit by EM with something free, or one with hard assignment (its estimates
        are biased, and so would be their replicates); or an argument is wrong.
    NumericalError
        If fewer than two replicates have a usable optimum.

    Warns
    -----
    FitWarning
        If replicates failed, labels are ambiguous, or other optima are higher.

    See Also
    --------
    standard_errors, percentile_intervals, jackknife
    """
    began = time.perf_counter()
    if kind not in KINDS:
        hint = "; the jackknife has no draws and is the function jackknife"
        raise ArgumentError("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}{hint}")
    whole_number("draws", draws, least=2)
    whole_number("restarts", restarts, least=0)
    whole_number("audited", audited, least=0)
    if threads is not None:
        whole_number("threads", threads, least=1)
    seed, estimate = seed_of(random_seed), moving(fit)
    make: dict[str, Callable[[Data, np.random.Generator], Data]] = {
        "nonparametric": resampled,
        "weighted": reweighted,
        "parametric": partial(
            simulated, parameters=estimate.parameters, region=tree.region_of(fit)
        ),
    }
    rngs = generators(np.random.SeedSequence(seed), draws)
    further = ("ellipsoids", *repeat("random", restarts - 1))
    covariance = covariance_of(estimate)

    def one(i: int, stop: Event) -> Refit | None:
        rng = rngs[i]
        return refit(
            estimate,
            i,
            make[kind](estimate.data, rng),
            tol=TOL,
            covariance=covariance,
            methods=further if restarts or i < audited else (),
            takes_higher=restarts > 0,
            rng=rng,
            threads=threads,
            stop=stop,
        )

    found = _all(one, draws, estimate, threads, kind, progressbar)
    usable = with_optimum(found, draws)
    boot = _tree(estimate, found, usable)
    margin = boot["labels"]["margin"].to_numpy().ravel()
    verdict = Verdict(tuple(checks(found, margin, wanted=draws, takes_higher=restarts > 0)))
    boot.attrs |= {
        "engine": "em",
        "estimate": f"{kind} bootstrap",
        "kind": kind,
        "restarts": restarts,
        "draws": "independent",
        "of": fit.attrs["estimate"],
        "spec": fit.attrs["spec"],
        "noise": fit.attrs.get("noise", ""),
        "units": fit.attrs.get("units", "{}"),
        "fixed": fit.attrs.get("fixed", ""),
        "fingerprint": fit.attrs["fingerprint"],
        "stop_reason": "completed" if len(found) == draws else "interrupted",
        "random_seed": seed,
        "verdict": verdict.to_json(),
        "warnings": fit.attrs["warnings"],
        "bayesgmm_version": package_version(),
        "versions": versions(),
        "timings": json.dumps({"bootstrap": time.perf_counter() - began}),
    }
    warn(verdict, FitWarning)
    return boot


def jackknife(
    fit: xr.DataTree,
    *,
    threads: int | None = None,
    progressbar: bool | None = None,
) -> xr.DataTree:
    r"""Return a fit with standard errors from leaving out one observation at a time.

    .. math:: \mathrm{se}^2 = \frac{N - 1}{N} \sum_n w_n (\hat\theta_{(n)} - \bar\theta)^2,
        \qquad \bar\theta = \frac1N \sum_n w_n \hat\theta_{(n)}

    with :math:`\hat\theta_{(n)}` the estimate without one of the :math:`w_n` observations of row n.
    These are no draws: their spread is :math:`\sqrt N` times too small, which is why the result is
    a point estimate with errors, and they are in ``replicates``.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`.
    threads : int, optional
        At most this many; the result does not depend on it.
    progressbar : bool, optional
        Default: in a terminal.

    Returns
    -------
    xarray.DataTree
        ``fit``, with another ``standard_error`` (NaN, with a note, where labels are ambiguous or
        many replicates failed), and ``replicates``: ``weight, mean, covariance`` (row), in the
        labels of the estimate, ``margin``, ``reason`` and ``usable``, by the row that is left out.

    Raises
    ------
    ArgumentError
        As `bootstrap`, or if the fit's weights are no whole numbers.
    NumericalError
        If fewer than two replicates have a usable optimum.

    Warns
    -----
    FitWarning
        As `bootstrap`.

    References
    ----------
    Efron & Stein (1981), Ann. Statist. 9, 586-596.
    """
    if threads is not None:
        whole_number("threads", threads, least=1)
    estimate = moving(fit)
    weight = frequency(estimate.data)
    if (weight != np.round(weight)).any():
        raise ArgumentError(
            "fit",
            "was made with weights that are not whole numbers, so that no single observation can "
            "be left out; use bootstrap",
        )
    total, rows = float(weight.sum()), np.flatnonzero(weight)
    # Each replicate is about 1 / sqrt(N) standard errors away: to a hundredth of that.
    tol = 10.0 * TOL / np.sqrt(total)
    covariance = covariance_of(estimate)

    def one(i: int, stop: Event) -> Refit | None:
        data = without(estimate.data, int(rows[i]))
        row = int(rows[i])
        return refit(
            estimate, row, data, tol=tol, covariance=covariance, threads=threads, stop=stop
        )

    found = _all(one, len(rows), estimate, threads, "jackknife", progressbar)
    if len(found) < len(rows):  # a part of the rows is no jackknife
        raise KeyboardInterrupt
    usable = with_optimum(found, len(rows))
    value, _, margin = aligned(estimate, usable)
    verdict = Verdict(tuple(checks(found, margin, wanted=len(rows))))
    kept = np.array([r.number for r in usable])
    note = verdict.troubles[0].evidence if verdict.status == "fail" else ""
    errors = {}
    for name, v in value.items():
        apart = v - np.average(v, axis=0, weights=weight[kept])
        square = (total - 1.0) * np.average(apart**2, axis=0, weights=weight[kept])
        square = np.where(np.ptp(v, axis=0) == 0.0, 0.0, square)  # exactly, where nothing moves
        errors[name] = np.full_like(square, np.nan) if note else np.sqrt(square)
    group = tree.dataset(errors, estimate.data.names)
    group.attrs |= {"method": "jackknife", "note": note}
    left_out = tree.dataset(value, estimate.data.names, ("row",)).assign_coords(row=kept)
    left_out = left_out.assign(margin=("row", margin)).reindex(row=rows)
    reason = np.array([r.run.reason for r in found])
    jack = fit.copy()
    jack["standard_error"] = xr.DataTree(group)
    jack["replicates"] = xr.DataTree(
        left_out.assign(
            reason=("row", reason), usable=("row", np.array([r.has_optimum for r in found]))
        )
    )
    own = Verdict.from_json(str(fit.attrs["verdict"]))
    jack.attrs["verdict"] = Verdict(own.checks + verdict.checks).to_json()
    warn(verdict, FitWarning)
    return jack


def standard_errors(boot: xr.DataTree) -> xr.Dataset:
    """Return the standard deviations of a bootstrap's draws.

    Parameters
    ----------
    boot : DataTree
        By `bootstrap`.

    Returns
    -------
    Dataset
        ``weight, mean, covariance``, in units of the data, like the group ``standard_error`` of a
        fit: ``fit["standard_error"] = xarray.DataTree(standard_errors(boot))`` has tables show
        them.

    Raises
    ------
    ArgumentError
        If ``boot`` is no bootstrap, or the labels of too many draws are ambiguous, so that there
        are no components whose parameters could have errors. `score` and all else without labels
        can still be used.
    """
    draws = _labelled(boot)
    both = ("chain", "draw")
    moves = draws.max(both) > draws.min(both)  # what is fixed has an error of exactly 0
    found = draws.std(both, ddof=1).where(moves, 0.0)
    found.attrs = {"method": str(boot.attrs["estimate"]), "note": ""}
    return found


def percentile_intervals(boot: xr.DataTree, *, ci_prob: float = 0.95) -> xr.Dataset:
    """Return the quantiles of a bootstrap's draws that hold ``ci_prob`` of them.

    The bounds are the ``(B + 1) p``-th of B draws in order, between two of them by interpolation:
    as the next draw would fall below it with probability p, few draws do not make an interval
    narrow. With fewer than 39 the outermost draws are as far as 95 % can reach.

    Parameters
    ----------
    boot : DataTree
        By `bootstrap`.
    ci_prob : float
        Half of the rest is below, and half above.

    Returns
    -------
    Dataset
        ``weight, mean, covariance`` with a leading dimension ``bound``: lower, upper.

    Raises
    ------
    ArgumentError
        As `standard_errors`, or if ``ci_prob`` is not between 0 and 1.

    References
    ----------
    Efron & Tibshirani (1993), chapter 13.  Davison & Hinkley (1997), Bootstrap Methods and their
    Application, section 5.2 (the ``(B + 1) p``-th).
    """
    tail = 0.5 * (1.0 - share("ci_prob", ci_prob))
    draws = _labelled(boot)
    found = draws.quantile([tail, 1.0 - tail], ("chain", "draw"), method="weibull")
    found = found.rename(quantile="bound").assign_coords(bound=["lower", "upper"])
    found.attrs = {"method": f"percentiles of the {boot.attrs['estimate']}", "ci_prob": ci_prob}
    return found


def _labelled(boot: Any) -> xr.Dataset:
    """Return the draws, if their labels can be relied on."""
    if not isinstance(boot, xr.DataTree) or "kind" not in boot.attrs:
        raise ArgumentError("boot", "must come from bootstrap")
    ambiguous = ambiguous_share(boot["labels"]["margin"].to_numpy())
    if AMBIGUOUS_LABELS.grade(ambiguous) == "fail":
        raise ArgumentError(
            "boot",
            f"has ambiguous labels in {ambiguous:.1%} of its draws (margin below {AMBIGUOUS}): "
            "components exchange their roles between replicates, so that the parameters of a "
            "single one have no errors. Use what has no labels (label_free, score), or fit fewer "
            "components",
        )
    return boot["posterior"].to_dataset()[list(tree.dims_of(boot))]


def _all(
    one: Callable[[int, Event], Refit | None],
    n: int,
    estimate: Estimate,
    threads: int | None,
    description: str,
    progressbar: bool | None,
) -> list[Refit]:
    n_workers = workers(estimate.data.n, estimate.data.d, estimate.parameters.k, n, threads)
    return each(one, n, n_workers=n_workers, description=description, progressbar=progressbar)


def _tree(estimate: Estimate, found: Sequence[Refit], usable: Sequence[Refit]) -> xr.DataTree:
    """Return the replicates with an optimum as draws, and how all of them ended."""
    value, permutation, margin = aligned(estimate, usable)
    both, shift = ("chain", "draw"), estimate.data.log_jacobian
    draws = {n: v[None] for n, v in value.items()}
    shown = {n: draws[n] for n in tree.DIMS}
    shown["weight"] = shown["weight"] / shown["weight"].sum(axis=-1, keepdims=True)  # no noise
    index = {"chain": [0], "draw": np.arange(len(usable))}

    def by_draw(values: Any) -> tuple[tuple[str, str], Array]:
        return both, np.array([values])

    loglik = by_draw(np.array([r.loglik for r in usable]) + shift)
    known: Labels = permutation[None]
    groups = {
        "posterior": tree.dataset(draws, estimate.data.names, both),
        "labels": xr.Dataset(
            {"permutation": ((*both, "cluster"), known), "margin": by_draw(margin)},
            coords=index | {"cluster": np.arange(estimate.parameters.k)},
        ),
        "label_free": label_free_dataset(
            label_free(**shown) | {"loglik": loglik[1]}, estimate.data.names
        ),
        "sample_stats": xr.Dataset(
            {
                "loglik": loglik,
                "objective": by_draw([r.run.objective + shift for r in usable]),
                "n_iter": by_draw([len(r.run.trace) - 1 for r in usable]),
                "replicate": by_draw([r.number for r in usable]),
            },
            coords=index,
        ),
        "replicates": xr.Dataset(
            {
                "reason": ("replicate", np.array([r.run.reason for r in found])),
                "usable": ("replicate", np.array([r.has_optimum for r in found])),
                "start": ("replicate", np.array([r.run.method for r in found])),
                "higher_elsewhere": (
                    "replicate",
                    np.array([r.is_higher_elsewhere is True for r in found]),
                ),
            },
            coords={"replicate": [r.number for r in found]},
        ),
        "observed_data": estimate.fit["observed_data"].to_dataset(),
        "constant_data": estimate.fit["constant_data"].to_dataset(),
    }
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
