"""Acceleration changes how soon EM is there, not where; starts side by side change nothing."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import registry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_em import (
    FAITHFUL,
    TWO,
    assert_rising,
    by_family,
    default_prior,
    errors_of,
    families,
    fit,
    prepared,
    problem,
    reasons,
    seeds,
    values,
    zlib_seed,
)

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.covariance import Covariance
from bayesgmm.em import loop as em
from bayesgmm.em import multistart
from bayesgmm.em.acceleration import MEMORY, REACH, Bend, Path, bend, extrapolate, length_of
from bayesgmm.em.loop import m_step, run
from bayesgmm.em.start import Start, from_labels
from bayesgmm.errors import ArgumentError, NumericalError
from bayesgmm.moments import Parameters, accumulate


def slow(seed: int = 1, n: int = 2000):
    """Two overlapping normals, unit sds, means 1.5 sds apart: EM's rate is 0.99."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    data = prepared(1.5 * labels[:, None] + rng.normal(size=(n, 1)), Covariance("V"), 2)
    return data, Covariance("V"), Start("labels", from_labels(data, Covariance("V"), labels, 2))


# The likelihood, with every extrapolation tried from the first step


@settings(deadline=None, max_examples=100)
@given(
    seed=seeds,
    size=families,
    kind=st.sampled_from(registry.REGIMES),
    method=st.sampled_from(em.ACCELERATIONS),
)
def test_the_log_likelihood_never_falls_however_early_acceleration_begins(seed, size, kind, method):
    family, d = size
    data, _, start = problem(seed, family, d, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "BEGIN", np.inf)
        found = run(data, family, start, max_iter=300, acceleration=method)
    assert np.isfinite(found.trace).all()
    assert_rising(found, data.n)
    assert len(found.trace) <= found.n_passes <= 301 + 1


@by_family
def test_the_limit_is_that_of_plain_em(family, d):
    """Within the tolerance, in standard errors, for all regimes; by maximum likelihood and MAP.

    From where plain EM is about a third of a standard error from its limit. Earlier, EM passes
    near saddles, where a hair decides where it ends; that mclust's starts end where plain EM does
    is tested for each of its table's fits.
    """
    rng = np.random.default_rng(zlib_seed(family, d))
    compared = 0
    for kind, estimate in itertools.product(registry.REGIMES, ("mle", "map")):
        x, k = registry.regime(kind, rng, family, d)
        spec = bg.GaussianMixture(k, family.letters)
        common = {"estimate": estimate, "random_seed": 1, "n_starts": 1}
        plain_em = common | {"acceleration": None, "max_iter": 100_000}
        try:
            plain = fit(spec, x, start="kmeans", **plain_em)
            near = fit(spec, x, start="kmeans", tol=0.3, standard_errors=False, **plain_em)
        except NumericalError:
            continue
        found = fit(spec, x, start=near, **common)
        se = errors_of(plain)
        # Parameters of a component of a few observations have none.
        assert np.isfinite(se).mean() > 0.5, (kind, estimate)
        apart = np.abs(values(found) - values(plain))[se > 0] / se[se > 0]
        assert apart.max() <= 2e-4, (kind, estimate)  # each within 1e-4 of the limit
        assert found["sample_stats"]["distance"].item() <= 1e-4
        compared += 1
    assert compared >= 10  # of 12; the rest are unusable either way


@pytest.mark.parametrize(
    ("method", "times"), [("quasi-newton", 10), ("squarem", 2), ("anderson", 5)]
)
def test_slow_em_is_accelerated(method, times):
    data, family, start = slow()
    plain = run(data, family, start, acceleration=None)
    found = run(data, family, start, acceleration=method)
    assert plain.reason == found.reason == "converged"
    assert plain.n_passes == len(plain.trace)
    assert found.n_passes < plain.n_passes / times
    assert found.objective >= plain.objective - 1e-8


def test_the_first_steps_are_those_of_plain_em():
    """Until a step is short: a start says where one ends."""
    data, family, start = slow()
    plain = run(data, family, start, acceleration=None)
    found = run(data, family, start)
    same = int(np.argmin(plain.trace[: len(found.trace)] == found.trace))
    assert same > 1
    assert not np.array_equal(plain.trace[: len(found.trace)], found.trace)


def test_a_rejected_extrapolation_costs_a_pass_and_no_more(monkeypatch):
    """Extrapolations that always land worse leave plain EM, bit by bit."""
    data, family, start = slow()

    def backwards(bent, about, moments, family, method):
        worse = about.mean - 0.5 * np.array([[1.0], [-1.0]])
        return Parameters(about.weight, worse, about.covariance)

    monkeypatch.setattr(em, "extrapolate", backwards)
    found = run(data, family, start, max_iter=400, tol=0.0)
    n = len(found.trace)
    plain = run(data, family, start, max_iter=n - 1, acceleration=None, tol=0.0)
    assert_array_equal(found.trace, plain.trace)
    assert n < found.n_passes <= 402


def test_passes_are_counted_and_limited():
    data, _, start = slow()
    x = data.values
    for limit in (1, 7, 40):
        found = fit(bg.GaussianMixture(2, "V"), x, start=start.parameters, max_iter=limit, tol=0.0)
        passes = found["starts"]["n_passes"].item()
        assert found.attrs["stop_reason"] == "max_iter"
        assert limit + 1 <= passes <= limit + 2
        assert found["sample_stats"]["n_passes"].item() == passes


# BFGS


def test_with_nothing_remembered_the_step_is_ems():
    step = np.random.default_rng(0).normal(size=5)
    none = np.empty((0, 5))
    assert_array_equal(Bend(step, none, none).newton(), step)
    assert Bend(step, none, none).rate == 0.0


def test_remembered_steps_are_undone_exactly_and_only_where_the_objective_is_concave():
    """H y = d for the last pair, and H is that of the textbook's recursion."""
    rng = np.random.default_rng(0)
    p, m = 7, 4
    root = rng.normal(size=(p, p))
    information = np.eye(p) * 0.1 + root @ root.T / p
    d = rng.normal(size=(m, p))
    y = d @ information
    assert_allclose(Bend(y[-1], d, y).newton(), d[-1], rtol=1e-9, atol=1e-12)
    h = np.eye(p)
    for a, b in zip(d, y, strict=True):
        v = np.eye(p) - np.outer(b, a) / (a @ b)
        h = v.T @ h @ v + np.outer(a, a) / (a @ b)
    step = rng.normal(size=p)
    assert_allclose(Bend(step, d, y).newton(), h @ step, rtol=1e-9)
    bad = rng.normal(size=p)
    with_convex = Bend(step, np.vstack([d, bad]), np.vstack([y, -bad]))
    assert_allclose(with_convex.newton(), h @ step, rtol=1e-9)
    assert with_convex.rate == pytest.approx(2.0)


def test_squarem_is_the_papers_step():
    """With steps r, s from theta_0 and v = s - r: -2 alpha r + alpha^2 v, alpha = -|r| / |v|."""
    rng = np.random.default_rng(0)
    r, s = rng.normal(size=(2, 5))
    v = s - r
    alpha = -np.linalg.norm(r) / np.linalg.norm(v)
    expected = -2.0 * alpha * r + alpha**2 * v
    found = Bend(s, r[None], (r - s)[None]).squarem()
    assert_allclose(r + found, expected, rtol=1e-12)
    # After a move that was not EM's there are no two steps in a row.
    assert Bend(s, 2 * r[None], (r - s)[None]).squarem() is None


def test_anderson_solves_a_linear_problem_when_it_remembers_all_of_it(monkeypatch):
    """With as many pairs as unknowns it is the secant method: the fixed point itself."""
    monkeypatch.setattr("bayesgmm.em.acceleration._RIDGE", 0.0)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4)) / 4
    fixed, points = rng.normal(size=4), rng.normal(size=(5, 4))
    steps = (points - fixed) @ (a - np.eye(4)).T
    bent = Bend(steps[-1], np.diff(points, axis=0), -np.diff(steps, axis=0))
    assert_allclose(points[-1] + bent.anderson(), fixed, rtol=1e-9)


def taken(data, family, start, steps: int = 12):
    """EM's points, the path along them, and where it leads."""
    path, p = Path(), start.parameters
    for _ in range(steps):
        moments = accumulate(data.x, p, diagonal=family.is_diagonal)
        new = m_step(moments, p, family)
        path = path.then(p, new)
        last, p = p, new
    return path, last, moments


@settings(deadline=None, max_examples=60)
@given(seed=seeds, size=families, kind=st.sampled_from(["apart", "overlapping"]))
def test_an_extrapolation_is_a_member_of_the_family(seed, size, kind):
    family, d = size
    data, _, start = problem(seed, family, d, kind)
    path, about, moments = taken(data, family, start)
    assert len(path.points) == MEMORY + 1
    bent = bend(path, about, moments)
    far = extrapolate(bent, about, moments, family)
    if far is None:
        assert not bent.step @ bent.newton() > 0
        return
    assert far.weight.sum() == pytest.approx(1.0)
    assert (far.weight > 0).all()
    phi, base = registry.decompose(family, far.covariance)
    k, d = far.mean.shape
    again = registry.compose(family, k, d, phi, base)
    assert_allclose(again, far.covariance, rtol=1e-6, atol=1e-9 * np.abs(far.covariance).max())
    assert bent.step @ bent.step == pytest.approx(
        length_of(about, m_step(moments, about, family), moments) ** 2, rel=1e-6, abs=1e-20
    )


@pytest.mark.parametrize("letters", ["VVV", "EEE", "EVV", "VEE"])
def test_an_extrapolation_is_affinely_equivariant_and_knows_no_labels(letters):
    family = Covariance(letters)
    x = FAITHFUL.to_numpy()
    labels = (x[:, 0] > 3).astype(int) + (x[:, 1] > 80)
    a, b = np.array([[2.0, -30.0], [0.001, 0.02]]), np.array([5.0, -7.0])

    def lead(x, labels, start=None):
        data = prepared(x, family, 3)
        start = Start("labels", from_labels(data, family, labels, 3))
        path, about, moments = taken(data, family, start)
        bent = bend(path, about, moments)
        return bent, data.to_data_units(extrapolate(bent, about, moments, family))

    bent, here = lead(x, labels)
    assert np.linalg.norm(bent.newton() - bent.step) > 0.1 * np.linalg.norm(bent.step)
    _, there = lead(x @ a + b, labels)
    assert_allclose(there.weight, here.weight, rtol=1e-6)
    assert_allclose(there.mean, here.mean @ a + b, rtol=1e-6)
    assert_allclose(there.covariance, a.T @ here.covariance @ a, rtol=1e-5)
    order = np.array([2, 0, 1])
    _, named = lead(x, order[labels])
    assert_allclose(named.take(order).mean, here.mean, rtol=1e-6)
    assert_allclose(named.take(order).covariance, here.covariance, rtol=1e-5)


def test_no_extrapolation_goes_further_than_its_reach():
    """REACH standard errors by its own quadratic model, however long the step that BFGS wants."""
    data, family, start = slow()
    _, about, moments = taken(data, family, start)
    p = len(about.weight) + 2 * about.mean.size
    step = np.zeros(p)
    step[2:4] = 30.0, -40.0  # both means
    far = extrapolate(Bend(step, np.empty((0, p)), np.empty((0, p))), about, moments, family)
    assert length_of(about, far, moments) == pytest.approx(REACH, rel=1e-12)


def test_a_prior_is_accelerated_too():
    data, family, start = slow()
    prior = default_prior(data, family, 2)
    plain = run(data, family, start, prior=prior, acceleration=None)
    found = run(data, family, start, prior=prior)
    assert found.n_passes < plain.n_passes / 5
    assert found.objective >= plain.objective - 1e-8


@pytest.mark.parametrize("wrong", ["newton", 1, True, ["quasi-newton"]])
def test_an_unknown_acceleration_is_refused(wrong):
    with pytest.raises(ArgumentError, match=r"acceleration: must be 'quasi-newton', .* or None"):
        fit(TWO, FAITHFUL, acceleration=wrong)


# Starts side by side


@pytest.fixture
def side_by_side(monkeypatch):
    monkeypatch.setattr(multistart, "_LEAST_WORK", 1)


@pytest.mark.parametrize(
    ("n", "d", "k", "n_starts", "threads", "expected"),
    [
        (272, 2, 3, 10, 2, 1),  # Python's share of a step is the larger one
        (10_000, 8, 8, 10, 2, 2),
        (10_000, 8, 8, 1, 2, 1),
        (10_000, 8, 8, 10, 1, 1),
        (10**6, 8, 8, 10, 2, 1),  # the passes use the cores
    ],
)
def test_starts_run_side_by_side_where_a_pass_is_long_and_undivided(
    n, d, k, n_starts, threads, expected
):
    assert multistart.workers(n, d, k, n_starts, threads) == expected


def test_side_by_side_is_one_after_the_other_to_the_last_bit(side_by_side):
    spec = bg.GaussianMixture(3, "VVI")
    one, many = (
        fit(spec, FAITHFUL, random_seed=7, n_starts=6, threads=threads) for threads in (1, 3)
    )
    assert_array_equal(values(one), values(many))
    for name in one["starts"]:
        assert_array_equal(one["starts"][name], many["starts"][name])


def test_interrupted_side_by_side_what_there_is_is_kept(side_by_side, monkeypatch):
    """As many passes as the first runs need, and then Ctrl-C somewhere."""
    whole = fit(TWO, FAITHFUL, random_seed=0, n_starts=8, threads=1)
    count = itertools.count(1)
    enough = int(whole["starts"]["n_passes"].sum()) - 3

    def some(*args, **kwargs):
        if next(count) > enough:
            raise KeyboardInterrupt
        return accumulate(*args, **kwargs)

    monkeypatch.setattr(em, "accumulate", some)
    found = fit(TWO, FAITHFUL, random_seed=0, n_starts=8, threads=2)
    assert found.attrs["stop_reason"] == "interrupted"
    assert 0 < reasons(found).count("interrupted") <= 2
    assert len(reasons(found)) <= 8
    assert_allclose(tree.point(found).mean, tree.point(whole).mean, rtol=1e-6)


def test_a_stop_in_the_main_thread_ends_all_runs(side_by_side):
    """Ctrl-C reaches only the thread that waits; the others hear of it before their next pass."""
    data, family, start = slow()
    begun = threading.Barrier(3, timeout=60)

    def go(start, stop):
        begun.wait()
        stop.wait(60)
        return run(data, family, start, stop=stop)

    def track(items, total):
        begun.wait()
        raise KeyboardInterrupt

    assert multistart.run_all(go, [start] * 2, 2, track) == []


def test_interrupted_side_by_side_before_anything_is_known(side_by_side, monkeypatch):
    def never(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(em, "accumulate", never)
    with pytest.raises(KeyboardInterrupt):
        fit(TWO, FAITHFUL, random_seed=0, threads=2)
