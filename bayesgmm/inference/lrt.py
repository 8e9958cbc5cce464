r"""How many components: the likelihood-ratio test of K against K + 1, by parametric bootstrap.

.. math:: -2 \log \lambda = 2 \, (\hat\ell_{K+1} - \hat\ell_K), \qquad
          p = \frac{1 + \#\{b : t_b \ge t\}}{1 + B}

The statistic has no chi-squared distribution, since K components lie on the boundary of K + 1.  Its
distribution under K is therefore simulated: data sets drawn from the fitted mixture of K
components, both sizes fitted to each (McLachlan 1987).

**Starts.**  A maximum that is missed makes the statistic too small, and p is wrong if it is missed
more often in replicates than in the data.  Data and replicates are therefore searched in the same
way: K from the mixture that is tested, K + 1 from all 2K splits of the solution for K
(`moves.splits`), and both from ``n_starts`` more, a hierarchical and random ones: short runs from
all, and the three best to their end.  Spurious maxima (`spikes`) do not count in either.
Where K + 1 are too many, maxima are many and none is found always: in 40 replicates each of fits
with VVV, the best of five searches (0 to 24 starts) was above that of 4 starts in 10 (faithful, K =
1, by 1.4 on average) to 21 (iris, K = 2, by 4.2).  Data and replicates are treated alike, which is
meant to keep the level and costs power; raise ``n_starts`` where that matters.

**What is known.**  Replicates miss the cells that the data miss, and know the labels that are known
there.  Noise is in both sizes and has the region that the data gave it, from which replicates draw
theirs.  With equal weights K components are no special case of K + 1, and the statistic may be
negative; that its distribution is simulated makes it a test of K all the same (Cox 1961).

References
----------
McLachlan (1987), Appl. Statist. 36, 318-324.  Feng & McCulloch (1996), J. R. Statist. Soc. B 58,
609-617.  Cox (1961), Proc. 4th Berkeley Symp. 1, 105-123 (families that are not nested).
Davison & Hinkley (1997), Bootstrap Methods and their Application, section 4.2 (p).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from threading import Event
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm import tree
from bayesgmm.arguments import share, whole_number
from bayesgmm.checks import Check, Limit, Verdict, warn
from bayesgmm.covariance import Covariance
from bayesgmm.data.cells import Missing
from bayesgmm.data.observations import Data
from bayesgmm.data.partial_labels import widened
from bayesgmm.em.fit import fit_em, seed_of
from bayesgmm.em.loop import Run, run
from bayesgmm.em.moves import splits
from bayesgmm.em.multistart import is_interrupted, search, workers
from bayesgmm.em.result import package_version, versions
from bayesgmm.em.search import BRIEF, in_order
from bayesgmm.em.start import Start, starts
from bayesgmm.errors import ArgumentError, FitWarning, NumericalError
from bayesgmm.inference.estimate import Estimate, estimate_of
from bayesgmm.inference.replicates import each, generators, simulated
from bayesgmm.information.fixed import Fixed, equal_weights, is_for_any_size
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import SHARE, Region, with_noise

TOL = 1e-3  # standard errors; the log-likelihood is then right to 1e-6
N_FINISH = 3  # short runs that go on to their end
FAILED = Limit(0.01, 0.1)  # share of replicates in which one of the sizes has no usable optimum
_ONE_SIZE = "must have a meaning for K components and for K + 1, as {'weight': 'equal'} alone has"


def bootstrap_lrt(
    null: GaussianMixture | xr.DataTree,
    X: Any = None,
    *,
    max_components: int | None = None,
    level: float | None = 0.05,
    draws: int = 999,
    n_starts: int = 4,
    sample_weight: Any = None,
    fixed: Mapping[str, Any] | None = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    threads: int | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> xr.Dataset:
    r"""Test K components against K + 1, and on, by the bootstrap likelihood-ratio test.

    Parameters
    ----------
    null : GaussianMixture or DataTree
        The smallest number of components and the family; or a fit of it by `fit_em`.
    X : (n, d) table, optional
        Needed for a specification; a fit brings its own, with all that is known of them.
    max_components : int, optional
        The last test is of this many against one less. Default: one test.
    level : float or None
        The tests end with the first whose p-value is larger. None makes all of them.
    draws : int
        Replicates of each test; the smallest possible p-value is 1 / (1 + draws).
    n_starts : int
        Further starts for each size, in the data and in every replicate; see
        `bayesgmm.inference.lrt`.
    sample_weight, columns, missing : optional
        As in `fit_em`, with a specification.
    fixed : {"weight": "equal"}, optional
        Equal weights, with K components and with K + 1; nothing else means the same for both.
    labels : (n,) integers, optional
        As in `fit_em`, with a specification. Labels are those of K components; a further one has no
        rows that are known to be its own.
    threads : int, optional
        At most this many; the result does not depend on it.
    random_seed : int, optional
        Same seed, same bits.
    progressbar : bool, optional
        Default: in a terminal. Ctrl-C keeps the tests and replicates that are finished.

    Returns
    -------
    Dataset
        By ``n_components`` (K, against K + 1): ``statistic``, ``p_value``, ``loglik`` of K,
        ``loglik_larger`` of K + 1, ``n_failed`` replicates without a usable optimum; and
        ``replicate`` (n_components, draw), their statistics, NaN where failed or not made.
        ``attrs["n_components"]`` is the first K that was not rejected; absent if all were, or
        ``level`` is None.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the fit is a MAP fit, has hard assignment, or holds fixed what
        means nothing for another number of components.
    DataError
        As `fit_em`.
    NumericalError
        If there is no usable optimum in the data.

    Warns
    -----
    FitWarning
        If replicates failed, or it was interrupted.
    """
    began = time.perf_counter()
    whole_number("draws", draws, least=1)
    whole_number("n_starts", n_starts, least=0)
    if threads is not None:
        whole_number("threads", threads, least=1)
    if level is not None:
        level = share("level", level)
    seed = seed_of(random_seed)
    options = {"sample_weight": sample_weight, "fixed": fixed, "columns": columns}
    options |= {"labels": labels, "missing": None if missing == "error" else missing}
    given = {name: value for name, value in options.items() if value is not None}
    fit = partial(fit_em, threads=threads, random_seed=seed, progressbar=progressbar)
    estimate = _null(null, X, given, fit)
    data, spec = estimate.data, tree.spec_of(estimate.fit)
    first = spec.n_components
    last = first + 1 if max_components is None else max_components
    whole_number("max_components", last, least=first + 1)
    sizes = range(first, last)
    region, noise = tree.region_of(estimate.fit), estimate.parameters.noise
    noise = noise and replace(noise, weight=SHARE)
    has_equal_weights = estimate.held is not None
    how = _How(spec.covariance, n_starts, threads, has_equal_weights, noise, region)
    smaller = estimate.parameters
    tests: list[_Test] = []
    for k, child in zip(sizes, np.random.SeedSequence(seed).spawn(len(sizes)), strict=True):
        begin, *others = child.spawn(2)
        pair = _pair(data, how, smaller, np.random.default_rng(begin), Event())
        if pair is None:
            break
        tests.append(_test(data, how, k, pair, others[0], draws, progressbar))
        smaller = pair.larger.parameters
        if not tests[-1].is_complete or (level is not None and tests[-1].p_value > level):
            break
    if not tests:
        raise KeyboardInterrupt
    verdict = Verdict((*map(_failed, tests), _complete(tests, draws)))
    found = _dataset(tests, data, draws)
    found.attrs |= {
        "spec": spec.to_json(),
        "equal_weights": int(how.has_equal_weights),
        "level": float("nan") if level is None else level,
        "fingerprint": data.fingerprint,
        "stop_reason": "completed" if tests[-1].is_complete else "interrupted",
        "random_seed": seed,
        "verdict": verdict.to_json(),
        "bayesgmm_version": package_version(),
        "versions": versions(),
        "timings": json.dumps({"lrt": time.perf_counter() - began}),
    }
    if level is not None and tests[-1].is_complete and tests[-1].p_value > level:
        found.attrs["n_components"] = tests[-1].k
    warn(verdict, FitWarning)
    return found


def _null(null: Any, X: Any, given: dict[str, Any], fit: Any) -> Estimate:
    """Return what is tested first."""
    if isinstance(null, GaussianMixture):
        if X is None:
            raise ArgumentError("X", "is needed with a specification")
        if not is_for_any_size(given.get("fixed")):
            raise ArgumentError("fixed", _ONE_SIZE)
        if "labels" in given and null.n_components == 1:
            raise ArgumentError("labels", "say nothing of one component; begin with two or more")
        null = fit(null, X, standard_errors=False, **given)
    elif X is not None or given:
        name = "X" if X is not None else next(iter(given))
        raise ArgumentError(name, "is the fit's, as all that is said of its rows; leave it out")
    found = estimate_of(null)
    region = tree.region_of(null)
    if region is not None and region.corner is None:
        raise ArgumentError(
            "null",
            "has noise of a given volume: where it is nobody knows, so that no replicates can be "
            "drawn; fit with noise=True",
        )
    if null.attrs["estimate"] != "mle":
        raise ArgumentError("null", "is no maximum-likelihood fit: its ratio has another meaning")
    if found.held is not None and not found.held.is_equal_weights:
        raise ArgumentError("null", f"what it holds fixed {_ONE_SIZE}")
    widened(found.data.probability, found.parameters.k + 1)  # before any work is done
    return found


@dataclass(frozen=True)
class _How:
    """How data and replicates are searched."""

    family: Covariance
    n_starts: int
    threads: int | None
    has_equal_weights: bool = False
    noise: Noise | None = None  # with which starts begin
    region: Region | None = None  # where it is, in the data and in all replicates

    @property
    def methods(self) -> list[str]:
        return [*(["ellipsoids"] * min(self.n_starts, 1)), *repeat("random", self.n_starts - 1)]

    def fixed(self, k: int, d: int) -> Fixed | None:
        """What is fixed with k components."""
        return equal_weights(k, d) if self.has_equal_weights else None


@dataclass(frozen=True, eq=False)
class _Pair:
    """The best runs with K and with K + 1 components."""

    smaller: Run
    larger: Run
    is_nested: bool = True

    @property
    def statistic(self) -> float:
        """At least 0 where K components are K + 1 of which two are the same."""
        if not (_is_optimum(self.smaller) and _is_optimum(self.larger)):
            return float("nan")
        ratio = 2.0 * (self.larger.objective - self.smaller.objective)
        return max(ratio, 0.0) if self.is_nested else ratio


@dataclass(frozen=True, eq=False)
class _Test:
    k: int
    pair: _Pair
    replicate: Array  # NaN where there is no usable optimum
    is_complete: bool

    @property
    def p_value(self) -> float:
        known = self.replicate[np.isfinite(self.replicate)]
        return float((1 + (known >= self.pair.statistic).sum()) / (1 + len(known)))

    @property
    def n_failed(self) -> int:
        return int(np.isnan(self.replicate).sum())


def _test(
    data: Data,
    how: _How,
    k: int,
    pair: _Pair,
    seed: np.random.SeedSequence,
    draws: int,
    progressbar: bool | None,
) -> _Test:
    if not np.isfinite(pair.statistic):
        bad = k if not _is_optimum(pair.smaller) else k + 1
        raise NumericalError(
            f"{bad} components have no usable optimum ({pair.larger.reason}): there is no ratio of "
            "likelihoods. Use a smaller max_components, or a family with a common covariance (EEE, "
            "EEI, EII)"
        )
    rngs, known = generators(seed, draws), _of_size(data, k)

    def one(i: int, stop: Event) -> _Pair | None:
        replicate = simulated(known, rngs[i], pair.smaller.parameters, how.region)
        return _pair(replicate, how, pair.smaller.parameters, rngs[i], stop)

    n_workers = workers(data.n, data.d, k + 1, draws, how.threads)
    what = f"{k} against {k + 1} components"
    found = each(one, draws, n_workers=n_workers, description=what, progressbar=progressbar)
    return _Test(k, pair, np.array([p.statistic for p in found]), len(found) == draws)


def _pair(
    data: Data, how: _How, null: Parameters, rng: np.random.Generator, stop: Event
) -> _Pair | None:
    """Return the best runs for K and K + 1; None after Ctrl-C."""

    def begins(some: Data, k: int, first: list[Start]) -> list[Start]:
        if k == 1 or not how.methods:
            return first
        more = starts(some, how.family, k, start=how.methods, n_starts=1, rng=rng)
        return first + [
            replace(one, parameters=with_noise(one.parameters, how.noise))
            for one in in_order(more, some, how.family, how.fixed(k, data.d))
        ]

    k = null.k
    few, many = (_of_size(data, j) for j in (k, k + 1))
    smaller = _best(few, how, begins(few, k, [Start("null", null)]), stop)
    if smaller is None:
        return None
    halves = [Start("split", p) for p in splits(smaller.parameters, how.family)]
    larger = _best(many, how, begins(many, k + 1, halves), stop)
    return None if larger is None else _Pair(smaller, larger, not how.has_equal_weights)


def _of_size(data: Data, k: int) -> Data:
    """Return the data with what is known of their rows' components, for k components."""
    known = widened(data.probability, k)
    return data if known is data.probability else replace(data, probability=known)


def _best(data: Data, how: _How, begins: list[Start], stop: Event) -> Run | None:
    """Return the best usable run, or any; None after Ctrl-C."""
    fixed = how.fixed(begins[0].parameters.k, data.d)
    options: dict[str, Any] = {"fixed": fixed, "tol": TOL, "threads": how.threads, "stop": stop}

    # What ends singular is left at that: plain EM only creeps there, and other starts are at hand.
    def go(start: Start | Run, event: Event | None = None) -> Run:
        return run(data, how.family, start, **options)

    def brief(start: Start, event: Event | None = None) -> Run:
        return run(data, how.family, start, max_iter=BRIEF, acceleration=None, **options)

    def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
        return items

    runs, _ = search(go, brief, go, begins, N_FINISH, 1, silent)
    if is_interrupted(runs):
        return None
    return max(runs, key=lambda r: (_is_optimum(r), r.height if r.is_usable else 0.0))


def _is_optimum(found: Run) -> bool:
    return found.reason in ("converged", "fixed point")


def _dataset(tests: list[_Test], data: Data, draws: int) -> xr.Dataset:
    replicate = np.full((len(tests), draws), np.nan)
    for row, test in zip(replicate, tests, strict=True):
        row[: len(test.replicate)] = test.replicate
    columns = {
        "statistic": [t.pair.statistic for t in tests],
        "p_value": [t.p_value for t in tests],
        "loglik": [t.pair.smaller.objective + data.log_jacobian for t in tests],
        "loglik_larger": [t.pair.larger.objective + data.log_jacobian for t in tests],
        "n_failed": [t.n_failed for t in tests],
    }
    return xr.Dataset(
        {name: ("n_components", np.array(value)) for name, value in columns.items()}
        | {"replicate": (("n_components", "draw"), replicate)},
        coords={"n_components": [t.k for t in tests], "draw": np.arange(draws)},
    )


def _failed(test: _Test) -> Check:
    total = max(len(test.replicate), 1)
    status = FAILED.grade(test.n_failed / total)
    evidence = (
        f"{test.k} against {test.k + 1}: {test.n_failed} of {len(test.replicate)} replicates have "
        "no usable optimum"
    )
    advice = (
        "They are left out, and may be those with the largest ratios: p is uncertain. Use a family "
        "with a common covariance (EEE, EEI, EII), or fewer components."
    )
    return Check("failed-replicates", status, evidence, "" if status == "ok" else advice)


def _complete(tests: list[_Test], draws: int) -> Check:
    evidence = f"{len(tests[-1].replicate)} of {draws} replicates in the last test"
    if tests[-1].is_complete:
        return Check("complete", "ok", evidence)
    advice = "Interrupted: its p-value is that of the replicates that were finished."
    return Check("complete", "warn", evidence, advice)
