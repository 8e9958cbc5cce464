"""The search for the maximum: starts, short runs, solutions of nested families, moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesgmm.covariance import Covariance
from bayesgmm.data.anchoring import moments_of
from bayesgmm.data.observations import Data
from bayesgmm.em.loop import UNUSABLE, Acceleration, Assignment, Run, run, unknown
from bayesgmm.em.moves import moves
from bayesgmm.em.multistart import Track, improve, is_interrupted, run_all, search, workers
from bayesgmm.em.start import GIVEN, Distinct, Partition, Start, partitions, starts, with_labels
from bayesgmm.groups import rows
from bayesgmm.information.fixed import Fixed
from bayesgmm.labels import Labels
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import crowded, with_noise
from bayesgmm.resolved import PseudoData
from bayesgmm.streams import Rows, blocks

BRIEF = 20  # steps of a short run
SAMPLE = 20_000  # rows that short runs are over
_FINISH = 2  # whole runs in each nested family
_FEW = 6  # partitions that are tried in those nested within it
# So many times the best partition is shaken, each with this share of its rows.
_SHAKEN, _LOOSE = 24, 0.3
# Rows times components times squared features, up to which nested families are searched.
_MOST_WORK = 1_000_000
_GROUP = 30_000  # what a group of rows that are known in part costs besides


@dataclass(frozen=True)
class Settings:
    """What all runs of a search share; see `loop.run`."""

    prior: PseudoData | None = None
    fixed: Fixed | None = None
    max_iter: int = 10_000
    tol: float = 1e-4
    acceleration: Acceleration | None = "quasi-newton"
    assignment: Assignment = "soft"
    threads: int | None = None
    noise: Noise | None = None  # what it starts with

    @property
    def of_run(self) -> dict[str, Any]:
        """Return the arguments of `loop.run`."""
        return {name: value for name, value in vars(self).items() if name != "noise"}


@dataclass(frozen=True, eq=False)
class Runner:
    """EM on one data set in one family: whole runs, and short ones on a part of the rows."""

    data: Data
    sample: Data
    family: Covariance
    settings: Settings

    def go(self, start: Start | Run, stop: Event | None = None, **changes: Any) -> Run:
        """Run from a start, or on from a run over all rows, to the end."""
        settings = replace(self.settings, **changes)
        found = run(self.data, self.family, start, stop=stop, **settings.of_run)
        if settings.acceleration and found.reason in UNUSABLE:
            # Where EM is slow, a long step may lead to a singularity that EM itself passes by.
            settings = replace(settings, acceleration=None)
            plain = run(self.data, self.family, start, stop=stop, **settings.of_run)
            found = replace(plain, n_passes=found.n_passes + plain.n_passes)
        return found

    def begin(self, part: Partition) -> Start:
        """Return the start of a partition."""
        begin = part.begin(self.family)
        return replace(begin, parameters=with_noise(begin.parameters, self.settings.noise))

    def brief(self, start: Start, stop: Event | None = None) -> Run:
        """Run a few steps."""
        steps = min(self.settings.max_iter, BRIEF)
        settings = replace(self.settings, max_iter=steps, acceleration=None)
        found = run(self.sample, self.family, start, stop=stop, **settings.of_run)
        is_over = self.sample is self.data or found.reason == "interrupted"
        return found if is_over or not found.is_usable else replace(found, reason="max_iter")

    def on(self, found: Run, stop: Event | None = None, **changes: Any) -> Run:
        """Run on from a short run to the end."""
        is_whole = self.sample is self.data
        start = found if is_whole else Start(found.method, found.parameters)
        return self.go(start, stop, **changes)


def find(
    data: Data,
    family: Covariance,
    k: int,
    settings: Settings,
    *,
    start: Any,
    n_starts: int,
    n_finish: int,
    rng: np.random.Generator,
    track: Track,
) -> tuple[list[Run], list[int], Runner]:
    """Search for the maximum.

    Parameters
    ----------
    data : Data
    family : Covariance
    k : int
    settings : Settings
    start, n_starts, n_finish
        As in `fit_em`.
    rng : numpy.random.Generator
    track : callable
        Shows the progress of an iterable of known length.

    Returns
    -------
    list of Run
        One for each start, in their order, then one for each move that was run to its end.
    list of int
        For each the run that it was on the way to, as `multistart.search` gives it.
    Runner
        To run on.
    """
    sample = sampled(data, rng) if data.n > SAMPLE else data
    runner = Runner(data, sample, family, settings)
    parts: list[Partition] = []
    inner = _inner(sample, settings, k)
    if start is None and k > 1:
        parts = partitions(inner or sample, k, None, n_starts, rng)
        begins = [p.begin(family) for p in parts]
    else:
        among: dict[str, Any] = {"inner": inner, "sample": sample}
        begins = starts(data, family, k, start=start, n_starts=n_starts, rng=rng, **among)
    # Few of the default partitions may differ; the search is no less thorough for that.
    is_thorough = len(begins) > n_finish or (len(parts) > 0 and n_starts > n_finish)
    if settings.assignment == "stochastic":  # no run says early what it promises
        n_finish, is_thorough = len(begins), False
    fixed = settings.fixed
    begins = in_order(begins, sample, family, fixed)
    seeds = rng.integers(2**63, size=len(begins))
    begins = [
        replace(b, seed=int(s), parameters=with_noise(b.parameters, settings.noise))
        for b, s in zip(begins, seeds, strict=True)
    ]
    n_workers = workers(data.n, data.d, k, len(begins), settings.threads)
    runs, twins = search(runner.go, runner.brief, runner.on, begins, n_finish, n_workers, track)
    if sample is not data:  # log-likelihoods of a part say nothing beside those of the whole
        runs = [unknown(r) if r.reason == "unfinished" else r for r in runs]
    if is_thorough and k > 1:
        if parts and settings.prior is None and fixed is None and not len(data.probability):
            runs += _from_nested(runner, k, parts, runs)
        if not keeps_order(data, fixed):
            runs += _moved(runner, runs, n_workers, track, rng)
    twins += range(len(twins), len(runs))
    return runs, twins, runner


def sampled(data: Data, rng: np.random.Generator) -> Data:
    """Return some rows, equal neighbours taken for one, so that repeated rows are weights."""
    x, known = data.values, data.probability
    is_new = np.ones(data.n, dtype=bool)
    for part in blocks(data.n - 1):
        after = slice(part.start + 1, part.stop + 1)
        is_new[after] = _differ(x[after], x[part])
        if len(known):
            is_new[after] |= _differ(known[after], known[part])
    if is_new.all():
        return data.rows(np.sort(rng.choice(data.n, SAMPLE, replace=False)))
    first = np.flatnonzero(is_new)
    weight = np.add.reduceat(data.weight if len(data.weight) else np.ones(data.n), first)
    first, weight = first[weight > 0], weight[weight > 0]
    if len(first) > SAMPLE:
        chosen = np.sort(rng.choice(len(first), SAMPLE, replace=False))
        first, weight = first[chosen], weight[chosen]
    return data.rows(first).with_weight(weight)


def _differ(rows: Array, others: Array) -> NDArray[np.bool_]:
    both_missing = (rows != rows) & (others != others)
    return np.asarray(((rows != others) & ~both_missing).any(axis=1))


def _inner(data: Data, settings: Settings, k: int) -> Data | None:
    """Return the rows that clusters are looked for in, where some rows are noise."""
    if settings.noise is None:
        return None
    inner = data.rows(crowded(data.filled, 2 * k * (data.d + 1)))
    if not len(data.far):
        return inner
    # A start is made definite in units of the spread, which is the far rows' alone.
    mean, covariance = moments_of(Rows(inner.filled, inner.weight))
    varies = np.diagonal(covariance).all()
    return replace(inner, mean=mean, covariance=covariance) if varies else inner


def keeps_order(data: Data, fixed: Fixed | None) -> bool:
    """Whether components can be told apart by something known of them, and must not be moved."""
    return len(data.probability) > 0 or (fixed is not None and fixed.names_components)


def kinds(probability: Array, fixed: Fixed | None) -> Labels | None:
    """Return a number for each component, the same where the same is known; None if nothing is.

    Parameters
    ----------
    probability : (n, k) or (0, 0) array
        What is known of the rows' components.
    fixed : Fixed, optional
    """
    known = [probability.T] if len(probability) else []
    if fixed is not None:
        k = len(fixed.weight)
        known += [a.reshape(k, -1) for a in (fixed.weight, fixed.mean, fixed.covariance)]
    if not known:
        return None
    rows = np.nan_to_num(np.concatenate(known, axis=1), nan=np.inf)
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def in_order(
    begins: list[Start], data: Data, family: Covariance, fixed: Fixed | None
) -> list[Start]:
    """Return starts whose components are in the order of what is known of them.

    The user's own stay as they are; see `start.with_labels` for what known labels add.
    """
    if len(data.probability):
        begins = with_labels(data, family, data.probability.shape[1], begins)
    if fixed is None or not fixed.names_components:
        return begins
    unit = np.sqrt(np.diagonal(data.covariance))
    return [
        b if b.method in GIVEN else replace(b, parameters=fixed.matched(b.parameters, unit))
        for b in begins
    ]


def _moved(
    runner: Runner,
    runs: Sequence[Run],
    n_workers: int,
    track: Track,
    rng: np.random.Generator,
) -> list[Run]:
    top = _best(runs)
    if top is None or is_interrupted(runs):
        return []

    def around(best: Parameters) -> list[Start]:
        return [*_moves(runner.family, best), *_shaken(runner, best, rng)]

    return improve(runner.brief, runner.on, top, around, n_workers, track)


def _moves(family: Covariance, best: Parameters) -> list[Start]:
    return [Start("move", p) for p in moves(best, family)]


def _shaken(runner: Runner, best: Parameters, rng: np.random.Generator) -> Iterator[Start]:
    """Yield starts from the best partition with some of its rows in other components.

    Iterated local search: from near a good optimum better ones are found that no start leads to.
    Equal rows go together, so that repeated ones are weights.
    """
    sample, k = runner.sample, best.k
    label = rows(sample.groups, best, sample.n)[1].argmax(axis=1)
    counts = label < k  # no noise, nor rows that count as absent
    if len(sample.weight):
        counts &= sample.weight > 0
    part, label = sample.rows(np.flatnonzero(counts)), label[counts]
    which = Distinct.of(part).which
    for _ in range(_SHAKEN):
        moved = rng.random(which.max() + 1) < _LOOSE
        new = np.where(moved[which], rng.integers(k, size=len(moved))[which], label)
        if len(np.unique(new)) == k:
            yield runner.begin(Partition("shaken", part, new, k))


def _from_nested(
    runner: Runner, k: int, parts: Sequence[Partition], runs: Sequence[Run]
) -> list[Run]:
    """Runs from the solutions in the largest nested families, each of them found by itself.

    A solution of a family is one of every wider family, so that no wider one should end lower
    because of its starts: the nested are tried with the same partitions, and the solutions of those
    within them, if that does not take long; else in one short run each.
    """
    sample = runner.sample
    work = sample.n * k * sample.d**2 + _GROUP * (len(sample.groups) - 1)
    if is_interrupted(runs):
        return []
    known: dict[Covariance, Run | None] = {}
    begins = []
    for family in runner.family.nested:
        inside = replace(runner, family=family, data=sample)
        if work <= _MOST_WORK:
            top = _within(inside, parts, known)
        else:
            top = inside.brief(inside.begin(parts[0]))
            top = top if top.is_usable else None
        if top is not None and top.reason == "interrupted":  # what is known stays
            return [unknown(replace(runs[0], method=f"within {family}", reason="interrupted"))]
        begins += [Start(f"within {family}", top.parameters)] if top else []
    return run_all(runner.go, begins, 1, _untracked) if begins else []


def _within(
    runner: Runner, parts: Sequence[Partition], known: dict[Covariance, Run | None]
) -> Run | None:
    """The best run in a family, from partitions and from the families nested in it."""
    family = runner.family
    if family not in known:
        begins = [runner.begin(part) for part in parts]
        for smaller in family.nested:
            found = _within(replace(runner, family=smaller), parts[:_FEW], known)
            if found is not None and found.reason == "interrupted":
                return found
            begins += [Start(f"within {smaller}", found.parameters)] if found else []
        runs, _ = search(runner.go, runner.brief, runner.on, begins, _FINISH, 1, _untracked)
        top = _best(runs)
        if top is not None and not is_interrupted(runs):
            around = partial(_moves, family)
            runs += improve(runner.brief, runner.on, top, around, 1, _untracked)
        interrupted = next((r for r in runs if r.reason == "interrupted"), None)
        known[family] = interrupted or _best(runs)
    return known[family]


def _best(runs: Iterable[Run]) -> Run | None:
    usable = (r for r in runs if r.is_usable and r.reason != "interrupted")
    return max(usable, key=lambda r: r.height, default=None)


def _untracked(items: Iterable[Any], total: int) -> Iterable[Any]:
    return items
