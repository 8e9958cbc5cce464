"""The search for the maximum: starts, short runs, solutions of nested families, moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesgmm.covariance import Covariance
from bayesgmm.data.anchoring import moments_of, scale_of
from bayesgmm.data.observations import Data, times
from bayesgmm.em.loop import UNUSABLE, Acceleration, Assignment, Run, run, unknown
from bayesgmm.em.moves import moves
from bayesgmm.em.multistart import GAIN, Track, improve, is_interrupted, run_all, search, workers
from bayesgmm.em.start import GIVEN, Distinct, Partition, Start, partitions, starts, with_labels
from bayesgmm.groups import rows
from bayesgmm.information.fixed import Fixed
from bayesgmm.labels import Labels
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import crowded, rescaled, with_noise
from bayesgmm.resolved import PseudoData, is_singular
from bayesgmm.streams import Rows, blocks

BRIEF = 20  # steps of a short run
SAMPLE = 20_000  # rows that short runs are over
# So many times the best partition is shaken, each with this share of its rows.
_SHAKEN, _LOOSE = 48, 0.5
# Rows times components times squared features, up to which nested families are searched as well.
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
    k: int
    settings: Settings

    @property
    def is_quick(self) -> bool:
        """Whether a pass is so short that nested families can be searched as well."""
        k, d = self.k, self.data.d
        work = self.data.n * k * d**2 + _GROUP * (len(self.data.groups) - 1)
        return work <= _MOST_WORK

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

    def within(self, family: Covariance) -> Runner:
        """Return what runs in a nested family, over the sample, in the units of that family."""
        data, noise = self.sample, self.settings.noise
        if data.mix is None:
            sd = data.scale * np.sqrt(np.diagonal(data.covariance))
            data = data.rescaled(scale_of(sd, family))
            noise = rescaled(noise, np.log(data.scale / self.sample.scale))
        settings = replace(self.settings, noise=noise)
        return replace(self, data=data, sample=data, family=family, settings=settings)

    def begin(self, part: Partition) -> Start:
        """Return the start of a partition."""
        begin = part.begin(self.family, self.data.scale)
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


@dataclass(frozen=True, eq=False)
class Solutions:
    """The best that was found in families, for fits of one size to the same data to share.

    By family, and by whether its columns are taken apart (`mixing`). None where there is nothing
    usable. In units of the data, about their center; those of columns taken apart as they are.
    """

    found: dict[tuple[Covariance, bool], Parameters | None] = field(default_factory=dict)

    def add(self, family: Covariance, data: Data, top: Parameters | None) -> None:
        """Keep what is best in a family, given in the coordinates of the data."""
        is_mixed = data.mix is not None
        self.found[family, is_mixed] = top if is_mixed or not top else times(top, data.scale)

    def within(self, family: Covariance, data: Data) -> Iterator[Start]:
        """Yield the best of the largest families nested in one, in the coordinates of the data."""
        for is_mixed in sorted({False, data.mix is not None}):
            known = {f: p for (f, mixed), p in self.found.items() if p and mixed == is_mixed}
            for nested in family.nested_among(known):
                p = known[nested]
                p = p if is_mixed else data.mixed(times(p, 1.0 / data.scale))
                yield Start(f"within {nested}", p)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is tried in a family, the same whether for itself or on the way to a wider one.

    That is why no family ends lower than one that is nested in it, for its starts.
    """

    parts: Sequence[Partition]
    n_finish: int
    seed: int  # with the family's name that of its shaken partitions
    has_moves: bool
    has_nested: bool
    solutions: Solutions

    def rng(self, family: Covariance) -> np.random.Generator:
        """Return the random numbers of a family."""
        return np.random.default_rng([self.seed, *family.letters.encode()])


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
        As in `fit_em`; `Solutions` is as None, with what is known already, and adds to it.
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
    solutions = start if isinstance(start, Solutions) else Solutions()
    start = None if isinstance(start, Solutions) else start
    sample = sampled(data, rng) if data.n > SAMPLE else data
    runner = Runner(data, sample, family, k, settings)
    parts: list[Partition] = []
    inner = _inner(sample, settings, k)
    if start is None and k > 1:
        parts = partitions(inner or sample, k, None, n_starts, rng)
        begins = [runner.begin(part) for part in parts]
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
    plan = Plan(
        parts,
        n_finish,
        int(rng.integers(2**63)),
        is_thorough and k > 1 and not keeps_order(data, fixed),
        is_thorough and bool(parts) and not (settings.prior or fixed or len(data.probability)),
        solutions,
    )
    n_workers = workers(data.n, data.d, k, len(begins), settings.threads)
    runs, twins = _climb(runner, plan, begins, n_workers, track)
    if not is_interrupted(runs):
        solutions.add(family, data, _best_of(runs))
    return runs, twins, runner


def _climb(
    runner: Runner, plan: Plan, begins: Sequence[Start], n_workers: int, track: Track
) -> tuple[list[Run], list[int]]:
    """Runs from the starts, from the solutions of nested families, and from around the best."""
    runs, twins = search(
        runner.go, runner.brief, runner.on, begins, plan.n_finish, n_workers, track
    )
    if runner.sample is not runner.data:  # whose log-likelihoods are those of more rows
        runs = [unknown(r) if r.reason == "unfinished" else r for r in runs]
    rng = plan.rng(runner.family)
    if plan.has_moves:
        runs += _moved(runner, runs, n_workers, track, rng)
    if not is_interrupted(runs):
        top = _best(runs)
        try:
            within = run_all(runner.go, _from_nested(runner, plan, track), 1, _untracked)
        except KeyboardInterrupt:  # what has been found stays
            within = [unknown(replace(runs[0], method="nested", reason="interrupted"))]
        runs += within
        best = _best(within)
        if plan.has_moves and best and not (top and best.objective <= top.objective + GAIN):
            runs += _moved(runner, within, n_workers, track, rng)
    twins += range(len(twins), len(runs))
    return runs, twins


def _from_nested(runner: Runner, plan: Plan, track: Track) -> list[Start]:
    """Starts from the best of the largest nested families, each of which is a solution here.

    These are searched as each is for itself; where a pass is long, a short run in each has to do.
    """
    short = Solutions()
    families = runner.family.nested if plan.has_nested else ()
    for family in track(families, len(families)):
        if (family, runner.data.mix is not None) in plan.solutions.found:
            continue
        inside = runner.within(family)
        if inside.is_quick:
            begins = [inside.begin(part) for part in plan.parts]
            runs, _ = _climb(inside, plan, begins, 1, _untracked)
            plan.solutions.add(family, inside.data, _best_of(runs))
        else:
            runs = [inside.brief(inside.begin(plan.parts[0]))]
            short.add(family, inside.data, _best_of(runs))
    both = (short, plan.solutions)
    return [s for solutions in both for s in solutions.within(runner.family, runner.data)]


def _best_of(runs: Sequence[Run]) -> Parameters | None:
    if is_interrupted(runs):
        raise KeyboardInterrupt
    top = _best(runs)
    return top.parameters if top else None


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
    variance = np.diagonal(covariance)
    if not variance.all():
        return inner
    if not inner.is_complete and is_singular(covariance):  # by what was filled in
        covariance = np.diag(variance)
    return replace(inner, mean=mean, covariance=covariance)


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
    if not counts.any():  # all rows are noise rather than anything else
        return
    part, label = sample.rows(np.flatnonzero(counts)), label[counts]
    which = Distinct.of(part).which
    for _ in range(_SHAKEN):
        moved = rng.random(which.max() + 1) < _LOOSE
        new = np.where(moved[which], rng.integers(k, size=len(moved))[which], label)
        if len(np.unique(new)) == k:
            yield runner.begin(Partition("shaken", part, new, k))


def _best(runs: Iterable[Run]) -> Run | None:
    usable = (r for r in runs if r.is_usable and r.reason != "interrupted")
    return max(usable, key=lambda r: r.height, default=None)


def _untracked(items: Iterable[Any], total: int) -> Iterable[Any]:
    return items
