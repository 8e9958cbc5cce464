"""Missing values: what is maximised is the likelihood of what is observed, exactly."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import registry
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm import errors, groups, tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read
from bayesgmm.em import search
from bayesgmm.em.loop import run
from bayesgmm.em.start import Start, from_labels
from bayesgmm.groups import split, table
from bayesgmm.information.observed import observed_information
from bayesgmm.moments import UNWEIGHTED, Parameters, accumulate, assigned, gradient
from bayesgmm.prior import ConjugatePrior
from bayesgmm.resolved import pseudo_data

FAITHFUL = registry.table("faithful")
IRIS = registry.table("iris")
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(registry.FAMILY_SIZES)
ids = str
every_family = pytest.mark.parametrize("family", registry.EVERY, ids=str)


def quiet(function, *args, **kwargs):
    """Call without the package's warnings, which are not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.BayesgmmWarning)
        return function(*args, **kwargs)


def marginalised(spec, x, **options):
    return quiet(bg.fit_em, spec, x, **{"missing": "marginalise", "random_seed": 1} | options)


def prepared(x, family: Covariance | None, k: int, **options) -> Data:
    options = {"missing": "marginalise"} | options
    return quiet(read, x, family=family, n_components=k, **options)


# Which values are missing


def at_random(rng, x):
    return rng.random(x.shape) < 0.3


def in_the_last_columns(rng, x):
    """Monotone: whoever drops out does not come back."""
    last = rng.integers(1, x.shape[1] + 1, size=len(x))
    return np.arange(x.shape[1]) >= last[:, None]


def of_one_column(rng, x):
    """Most values of one column, where another one is large."""
    out = np.zeros(x.shape, bool)
    out[:, -1] = (x[:, 0] > np.median(x[:, 0])) & (rng.random(len(x)) < 0.9)
    return out


def in_blocks(rng, x):
    """Two halves that have no column in common but the first."""
    out = np.zeros(x.shape, bool)
    middle = (x.shape[1] + 1) // 2
    is_left = rng.random(len(x)) < 0.5
    out[np.ix_(is_left, range(middle, x.shape[1]))] = True
    out[np.ix_(~is_left, range(1, middle))] = True
    return out


PATTERNS = [at_random, in_the_last_columns, of_one_column, in_blocks]


def punched(rng, x, pattern) -> np.ndarray:
    x = x.astype(float)
    x[pattern(rng, x)] = np.nan
    return x


# The likelihood of what is observed, from SciPy's densities, row by row


def observed_rows(x, p: Parameters, known=None) -> np.ndarray:
    found = np.zeros(len(x))
    for i, row in enumerate(x):
        o = ~np.isnan(row)
        with np.errstate(divide="ignore"):
            joint = np.log(p.weight * (1.0 if known is None else known[i] / known[i].max()))
        if o.any():
            joint += [
                multivariate_normal(m[o], c[np.ix_(o, o)]).logpdf(row[o])
                for m, c in zip(p.mean, p.covariance, strict=True)
            ]
        found[i] = logsumexp(joint)
    return found


def complex_loglik(x, log_weight, mean, covariance, weight=None, known=None):
    """The same at complex parameters, whose imaginary part is an exact derivative."""
    total = 0.0
    w = np.ones(len(x)) if weight is None else weight
    for i, row in enumerate(x):
        o = ~np.isnan(row)
        with np.errstate(divide="ignore"):
            here = log_weight if known is None else log_weight + np.log(known[i])
        inside = covariance[:, o][:, :, o]
        possible = here.real > -np.inf
        one = (here[possible], mean[possible][:, o], inside[possible])
        total = total + w[i] * (
            registry.complex_loglik(row[None, o], *one)[0]
            if o.any()
            else np.log(np.exp(here).sum())
        )
    return total


def sums(groups_, p, family=None):
    diagonal = family is not None and family.is_diagonal

    def one(x, about, weight):
        return accumulate(x, about, weight, diagonal=diagonal)

    return table(groups_, p, one, diagonal=diagonal)


def problem(seed, family, d, pattern, k=2, n=None):
    rng = np.random.default_rng(seed)
    truth = registry.mixture(rng, family, k, d)
    x = registry.simulate(rng, truth, n or 40 * d)
    return punched(rng, x, pattern), truth


# The table of sums


@settings(deadline=None, max_examples=60)
@given(seed=seeds, size=families, pattern=st.sampled_from(PATTERNS))
def test_the_log_likelihood_is_that_of_the_observed_columns(seed, size, pattern):
    family, d = size
    x, p = problem(seed, family, d, pattern)
    x[::17] = np.nan  # of nothing, it is 0
    found = sums(split(x), p, family)
    assert_allclose(found.loglik, observed_rows(x, p).sum(), rtol=1e-11)


@pytest.mark.parametrize("family", [*registry.EVERY[:7:3], Covariance("VVV")], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sums_are_those_of_conditional_expectations(family, pattern):
    """From the textbook's conditional means and covariances, row by row."""
    x, p = problem(3, family, 4, pattern, n=60)
    weight = np.random.default_rng(1).integers(0, 3, len(x)).astype(float)
    found = sums(split(x, weight), p, family)
    count, first, second = np.zeros(2), np.zeros((2, 4)), np.zeros((2, 4, 4))
    for row, w in zip(x, weight, strict=True):
        o = ~np.isnan(row)
        joint = np.log(p.weight)
        expected, spread = np.empty((2, 4)), np.zeros((2, 4, 4))
        for j, (m, c) in enumerate(zip(p.mean, p.covariance, strict=True)):
            joint[j] += multivariate_normal(m[o], c[np.ix_(o, o)]).logpdf(row[o])
            slope = c[:, o] @ np.linalg.inv(c[np.ix_(o, o)])
            expected[j] = m + slope @ (row[o] - m[o])
            spread[j] = c - slope @ c[o]
        r = w * np.exp(joint - logsumexp(joint))
        for j in range(2):
            z = p.whitening[j] @ (expected[j] - p.mean[j])
            count[j] += r[j]
            first[j] += r[j] * z
            second[j] += r[j] * (np.outer(z, z) + p.whitening[j] @ spread[j] @ p.whitening[j].T)
    if family.is_diagonal:
        second *= np.eye(4)
    assert_allclose(found.mean_count, count, rtol=1e-12)
    assert_allclose(found.first, first, rtol=0, atol=1e-10)
    assert_allclose(found.second, second, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gradient_is_that_of_the_observed_likelihood(pattern):
    x, p = problem(5, Covariance("VVV"), 3, pattern, n=50)
    of_weight, of_mean, of_covariance = gradient(sums(split(x), p), p)
    step = 1e-30j

    def slope(weight=0.0, mean=0.0, covariance=0.0):
        arguments = (p.log_weight + weight, p.mean + mean, p.covariance + covariance)
        return complex_loglik(x, *arguments).imag / 1e-30

    for j in range(2):
        unit = np.eye(2)[j]
        assert_allclose(of_weight[j], slope(weight=step * unit), rtol=1e-9)
        for f in range(3):
            one = np.multiply.outer(unit, np.eye(3)[f])
            assert_allclose(of_mean[j, f], slope(mean=step * one), rtol=1e-8, atol=1e-8)
            for g in range(3):
                two = np.multiply.outer(one[:, f, None] * np.eye(3)[f], np.eye(3)[g])
                expected = slope(covariance=step * two)
                assert_allclose(of_covariance[j, f, g], expected, rtol=1e-7, atol=1e-8)


def test_tables_are_additive_and_indifferent_to_the_order_of_rows():
    x, p = problem(7, Covariance("VVV"), 4, at_random)
    whole = sums(split(x), p)
    halves = sums(split(x[::2]), p) + sums(split(x[1::2]), p)
    turned = sums(split(x[::-1]), p)
    for name in ("loglik", "mean_count", "first", "second"):
        assert_allclose(getattr(halves, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
        assert_allclose(getattr(turned, name), getattr(whole, name), rtol=1e-10, atol=1e-10)


def test_groups_that_are_taken_together_or_not_give_the_same_sums(monkeypatch):
    x, p = problem(8, Covariance("VVV"), 4, at_random)
    together, rows = sums(split(x), p), groups.rows(split(x), p, len(x))
    monkeypatch.setattr(groups, "_NUMBERS", 1)
    apart = sums(split(x), p)
    for one, other in zip(rows, groups.rows(split(x), p, len(x)), strict=True):
        assert_array_equal(one, other)
    assert_allclose(apart.loglik, together.loglik, rtol=1e-13)
    assert_allclose(apart.second, together.second, rtol=1e-10, atol=1e-10)


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(9)
    p = registry.mixture(rng, Covariance("VVV"), 2, 2)
    x = registry.simulate(rng, p, 150_000)
    x[::2, 1] = np.nan

    def one(threads):
        return table(split(x), p, lambda x, q, w: accumulate(x, q, w, threads=threads))

    first, second = one(1), one(3)
    assert first.loglik == second.loglik
    assert_array_equal(first.second, second.second)


# EM


def random_start(rng, data: Data, family: Covariance, k: int) -> Start:
    x = data.filled
    center = x[rng.choice(len(x), size=k, replace=False)]
    labels = ((x[:, None] - center) ** 2).sum(axis=2).argmin(axis=1)
    assume(np.bincount(labels, minlength=k).min() > data.d + 1)
    return Start("random", from_labels(data, family, labels, k))


def assert_rising(found, n: int) -> None:
    """As in test_em: no fall by more than rounding."""
    assert np.isfinite(found.trace).all()
    rounding = 1e-16 * n * np.linalg.cond(found.parameters.covariance).max()
    assert (np.diff(found.trace) >= -1e-12 * np.abs(found.trace[1:]) - rounding).all()


@settings(deadline=None, max_examples=80)
@given(
    seed=seeds,
    size=st.sampled_from([(f, d) for f, d in registry.FAMILY_SIZES if d > 1]),
    pattern=st.sampled_from(PATTERNS),
    kind=st.sampled_from(registry.REGIMES),
    is_penalised=st.booleans(),
)
def test_the_log_likelihood_never_falls(seed, size, pattern, kind, is_penalised):
    family, d = size
    rng = np.random.default_rng(seed)
    x, k = registry.regime(kind, rng, family, d)
    data = prepared(punched(rng, x, pattern), family, k)
    prior = None
    if is_penalised:
        prior = pseudo_data(ConjugatePrior(), family, k, mean=data.mean, covariance=data.covariance)
    found = run(data, family, random_start(rng, data, family, k), prior=prior, max_iter=100)
    assert_rising(found, data.n)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, family=st.sampled_from(registry.EVERY), pattern=st.sampled_from(PATTERNS))
def test_the_classification_likelihood_never_falls(seed, family, pattern):
    rng = np.random.default_rng(seed)
    x, _ = problem(seed, family, 3, pattern)
    x = x[~np.isnan(x).all(axis=1)]
    data = prepared(x, family, 2)
    found = run(data, family, random_start(rng, data, family, 2), assignment="hard", max_iter=50)
    assert_rising(found, data.n)
    if not found.is_usable:  # SciPy has no density on a line either
        return
    joint = [
        observed_rows(data.x, Parameters(np.ones(1), m[None], c[None])) + np.log(w)
        for w, m, c in zip(*(getattr(found.parameters, n) for n in tree.DIMS), strict=True)
    ]
    assert_allclose(found.trace[-1], np.max(joint, axis=0).sum(), rtol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS[:3])
@every_family
def test_where_em_stops_the_gradient_is_zero_and_information_is_the_hessian(family, pattern):
    """In the family's own coordinates; one derivative by a complex step, one by a difference."""
    rng = np.random.default_rng(11)
    x = punched(rng, registry.simulate(rng, registry.mixture(rng, family, 2, 2, 4.0), 150), pattern)
    data = prepared(x, family, 2)
    labels = (data.filled[:, 0] > np.median(data.filled[:, 0])).astype(int)
    start = Start("labels", from_labels(data, family, labels, 2))
    found = run(data, family, start, tol=1e-9, max_iter=50_000)
    assert found.reason in ("converged", "fixed point")
    theta, at = registry.coordinates(family, found.parameters)
    h, unit = 1e-5, np.eye(len(theta))

    # Rows with the same observed columns at once.
    parts = [group for group in split(data.x) if group.observed.any()]

    def objective(numbers):
        weight, mean, covariance = at(numbers)
        return sum(
            registry.complex_loglik(
                g.x[:, g.observed],
                np.log(weight),
                mean[:, g.observed],
                covariance[:, g.observed][:, :, g.observed],
            ).sum()
            for g in parts
        )

    def slope(numbers):
        return np.array([objective(numbers + 1e-30j * e).imag / 1e-30 for e in unit])

    assert_allclose(slope(theta), 0.0, atol=1e-4)
    hessian = np.array([slope(theta + h * e) - slope(theta - h * e) for e in unit]) / (2 * h)
    natural = np.array(
        [np.concatenate([v.ravel() for v in at(theta + 1e-30j * e)]).imag / 1e-30 for e in unit]
    )
    inverse = np.linalg.inv(-0.5 * (hessian + hessian.T))
    expected = np.sqrt(np.einsum("pi,pq,qi->i", natural, inverse, natural).clip(0.0))
    information = observed_information(data.x, found.parameters, found.moments, family, data.weight)
    assert information.distance < 1e-6
    se = information.standard_errors()
    ours = np.concatenate([se.weight.ravel(), se.mean.ravel(), se.covariance.ravel()])
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("pattern", [at_random, in_the_last_columns, of_one_column])
def test_one_component_is_what_a_general_optimiser_finds(pattern):
    """Full-information maximum likelihood, by L-BFGS on SciPy's densities."""
    x = punched(np.random.default_rng(2), IRIS.to_numpy()[50:100, :3], pattern)
    fit = marginalised(bg.GaussianMixture(1, "VVV"), x)
    lower = np.tril_indices(3)
    patterns = {tuple(o) for o in ~np.isnan(x)}

    def loss(theta):
        factor = np.zeros((3, 3))
        factor[lower] = theta[3:]
        c = factor @ factor.T
        total = 0.0
        for o in (np.array(p) for p in patterns):
            rows = x[(~np.isnan(x) == o).all(axis=1)][:, o]
            if o.any():
                total -= multivariate_normal(theta[:3][o], c[np.ix_(o, o)]).logpdf(rows).sum()
        return total

    begin = np.concatenate([np.nanmean(x, axis=0), np.diag(np.nanstd(x, axis=0))[lower]])
    best = minimize(loss, begin, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    factor = np.zeros((3, 3))
    factor[lower] = best.x[3:]
    assert fit["criteria"]["loglik"].item() >= -best.fun - 1e-8
    assert_allclose(tree.point(fit).mean[0], best.x[:3], rtol=1e-5)
    assert_allclose(tree.point(fit).covariance[0], factor @ factor.T, rtol=1e-3, atol=1e-5)


# Fits


TWO = bg.GaussianMixture(2, "VVV")
HOLES = punched(np.random.default_rng(0), FAITHFUL.to_numpy(), at_random)
HOLES[:, 0] = np.where(np.isnan(HOLES).all(axis=1), FAITHFUL["eruptions"], HOLES[:, 0])
HOLEY = pd.DataFrame(HOLES, columns=FAITHFUL.columns, index=[f"r{i}" for i in range(len(HOLES))])


@pytest.fixture(scope="module")
def holey():
    return marginalised(TWO, HOLEY, n_starts=6)


def values(fit) -> np.ndarray:
    p = tree.point(fit)
    return np.concatenate([p.weight.ravel(), p.mean.ravel(), p.covariance.ravel()])


@every_family
def test_where_nothing_is_missing_it_is_the_complete_fit_to_the_bit(family):
    spec = bg.GaussianMixture(3, family.letters)
    one, two = (
        quiet(bg.fit_em, spec, IRIS, n_starts=2, random_seed=1, missing=missing)
        for missing in ("error", "marginalise")
    )
    assert_array_equal(values(one), values(two))
    assert one.attrs["fingerprint"] == two.attrs["fingerprint"]
    assert_array_equal(one["standard_error"]["mean"], two["standard_error"]["mean"])


def test_one_missing_value_changes_little():
    x = FAITHFUL.to_numpy().astype(float)
    whole = quiet(bg.fit_em, TWO, x, n_starts=2, random_seed=1)
    x[17, 1] = np.nan
    holey = marginalised(TWO, x, n_starts=2)
    se = whole["standard_error"]["mean"].to_numpy()
    assert 0 < np.abs(tree.point(whole).mean - tree.point(holey).mean).max() < 0.2 * se.max()


def test_the_fit_says_what_is_missing_and_rows_add_up(holey):
    p = tree.point(holey)
    rows = observed_rows(HOLES, p)
    assert_allclose(holey["log_likelihood"]["x"].to_numpy().ravel(), rows, rtol=1e-9, atol=1e-9)
    assert_allclose(holey["criteria"]["loglik"], rows.sum(), rtol=1e-12)
    assert_array_equal(holey["observed_data"]["x"], HOLES)
    assert holey.attrs["missing"] == "marginalise"
    assert (holey["standard_error"]["mean"] > 0).all()


def test_standard_errors_grow_with_what_is_missing(holey):
    whole = quiet(bg.fit_em, TWO, FAITHFUL, n_starts=2, random_seed=1)
    ratio = holey["standard_error"]["mean"] / whole["standard_error"]["mean"].to_numpy()
    assert ((ratio > 1.0) & (ratio < 2.0)).all()


def test_saved_and_loaded_it_is_the_same(holey, tmp_path):
    again = tree.load(tree.save(holey, tmp_path / "fit.nc"))
    assert_array_equal(values(again), values(holey))
    assert_array_equal(again["observed_data"]["x"], HOLES)
    assert again.attrs["missing"] == "marginalise"


def test_units_offsets_and_the_order_of_columns_move_nothing(holey):
    scale, offset = np.array([1e-6, 1e5]), np.array([1e3, -1e7])
    moved = marginalised(TWO, HOLES * scale + offset, n_starts=6)
    p, q = tree.point(holey), tree.point(moved)
    assert_allclose((q.mean - offset) / scale, p.mean, rtol=1e-4)
    assert_allclose(q.covariance / np.outer(scale, scale), p.covariance, rtol=1e-3)
    turned = tree.point(marginalised(TWO, HOLEY.iloc[:, ::-1], n_starts=6))
    assert_allclose(turned.mean[:, ::-1], p.mean, rtol=1e-4)


@pytest.mark.parametrize("estimate", ["mle", "map"])
@pytest.mark.parametrize("letters", ["VVV", "EEE", "VEV", "EVE"])
def test_weights_are_repeated_rows(letters, estimate):
    """The whole search, from starts to errors: nothing of it goes by the number of a row."""
    weight = np.random.default_rng(4).integers(0, 3, len(HOLES))
    repeated = np.repeat(HOLES, weight, axis=0)
    spec = bg.GaussianMixture(2, letters)
    options = {"estimate": estimate, "n_starts": 8}
    one = marginalised(spec, HOLES, sample_weight=weight, **options)
    two = marginalised(spec, repeated, **options)
    assert_allclose(values(one), values(two), rtol=1e-10)
    assert_allclose(one["criteria"]["bic"], two["criteria"]["bic"], rtol=1e-12)
    for name in ("weight", "mean", "covariance"):
        assert_allclose(one["standard_error"][name], two["standard_error"][name], rtol=1e-10)


@pytest.mark.parametrize("estimate", ["mle", "map"])
def test_rows_without_any_value_have_weight_zero(estimate):
    blank = pd.concat([HOLEY, HOLEY.iloc[:3] * np.nan])
    with pytest.warns(errors.DataWarning, match=r"(?s)\[empty-rows\] 3 rows.*row 'r0'.*weight 0"):
        found = bg.fit_em(
            TWO, blank, missing="marginalise", estimate=estimate, random_seed=1, n_starts=2
        )
    expected = marginalised(TWO, HOLEY, estimate=estimate, n_starts=2)
    assert_allclose(values(found), values(expected), rtol=1e-9)
    assert_allclose(found["criteria"]["bic"], expected["criteria"]["bic"], rtol=1e-12)
    assert_array_equal(found["constant_data"]["sample_weight"][-3:], 0.0)
    assert_array_equal(found["log_likelihood"]["x"][0, 0, -3:], 0.0)


def test_dropping_is_leaving_the_rows_out():
    complete = HOLEY.dropna()
    weight = pd.Series(np.arange(len(HOLEY)) % 3 + 1.0, index=HOLEY.index)
    out = len(HOLEY) - len(complete)
    pattern = rf"(?s)\[dropped-rows\] {out} of {len(HOLEY)} rows.*biased"
    with pytest.warns(errors.DataWarning, match=pattern):
        found = bg.fit_em(TWO, HOLEY, missing="drop", random_seed=1, n_starts=2)
    expected = quiet(bg.fit_em, TWO, complete, random_seed=1, n_starts=2)
    assert_array_equal(values(found), values(expected))
    assert found.attrs["fingerprint"] == expected.attrs["fingerprint"]
    assert list(found["observed_data"]["obs"].to_numpy()) == list(complete.index)
    weighted = [
        quiet(bg.fit_em, TWO, X, sample_weight=w, missing="drop", random_seed=1, n_starts=2)
        for X, w in ((HOLEY, weight), (complete, weight[complete.index]))
    ]
    assert_array_equal(values(weighted[0]), values(weighted[1]))


def test_dropping_nothing_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.DataWarning)
        read(FAITHFUL, missing="drop")


@pytest.mark.parametrize("start", ["ellipsoids", "ward", "kmeans", "random", "labels", "fit"])
def test_every_start_works(start, holey):
    label = (np.nan_to_num(HOLES[:, 1], nan=0.0) > 65).astype(int)
    given = {"labels": label, "fit": holey}.get(start, start)
    found = marginalised(TWO, HOLEY, start=given, n_starts=2)
    assert_allclose(found["criteria"]["loglik"], holey["criteria"]["loglik"], rtol=1e-8)


def test_a_large_sample_is_started_from_a_part(monkeypatch, holey):
    monkeypatch.setattr(search, "SAMPLE", 150)
    found = marginalised(TWO, HOLEY, n_starts=4, n_finish=2)
    assert_allclose(found["criteria"]["loglik"], holey["criteria"]["loglik"], rtol=1e-8)


@pytest.mark.parametrize("assignment", ["hard", "stochastic"])
def test_assignments_of_other_kinds(assignment, holey):
    found = marginalised(TWO, HOLEY, assignment=assignment, n_starts=3)
    assert_allclose(tree.point(found).mean, tree.point(holey).mean, rtol=0.02)


def test_hard_sums_are_completed_as_soft_ones():
    x, p = problem(12, Covariance("VVV"), 3, at_random)
    hard = table(split(x), p, assigned)
    label = groups.rows(split(x), p, len(x))[1].argmax(axis=1)
    soft = table(split(x, UNWEIGHTED, np.eye(2)[label]), p, accumulate)
    assert_allclose(hard.second, soft.second, rtol=1e-10, atol=1e-10)
    assert_allclose(hard.loglik, soft.loglik, rtol=1e-12)


def test_filled_values_are_expected_values():
    data = prepared(punched(np.random.default_rng(1), IRIS.to_numpy(), at_random), None, 1)
    row = int(np.argmax(np.isnan(data.x).sum(axis=1) == 2))
    o = ~np.isnan(data.x[row])
    slope = data.covariance[np.ix_(~o, o)] @ np.linalg.inv(data.covariance[np.ix_(o, o)])
    expected = data.mean[~o] + slope @ (data.x[row, o] - data.mean[o])
    assert_allclose(data.filled[row, ~o], expected, rtol=1e-8)
    assert_array_equal(data.filled[row, o], data.x[row, o])
    n = data.total_weight  # one row has no value at all
    assert n == len(IRIS) - 1
    one = marginalised(bg.GaussianMixture(1, "VVV"), data.values, tol=1e-8)
    anchored = data.to_anchored(tree.point(one))
    assert_allclose(data.mean, anchored.mean[0], atol=1e-6)
    assert_allclose(data.covariance * (n - 1) / n, anchored.covariance[0], rtol=1e-5, atol=1e-6)


def test_with_other_weights_and_of_some_rows_nothing_is_anchored_again():
    data = prepared(HOLEY, Covariance("VVV"), 2)
    weight = np.arange(data.n) % 4 * 1.0
    other = data.with_weight(weight)
    assert_array_equal(other.center, data.center)
    assert_array_equal(other.mean, data.mean)
    assert other.total_weight == weight.sum()
    p = data.to_anchored(tree.point(quiet(bg.fit_em, TWO, FAITHFUL, n_starts=1, random_seed=1)))
    part = np.flatnonzero(weight)
    some = data.rows(part).with_weight(weight[part])
    assert_allclose(sums(other.groups, p).second, sums(some.groups, p).second, rtol=1e-10)
    assert other.log_jacobian == pytest.approx(some.log_jacobian, rel=1e-12)


# What is refused, and what is warned of


def test_a_column_without_values_is_named():
    with pytest.raises(errors.MissingValueError, match=r"'waiting' has no observed value.*'erup"):
        read(HOLEY.assign(waiting=np.nan), missing="marginalise")
    only = HOLEY.assign(waiting=[1.0] + [np.nan] * (len(HOLEY) - 1))
    with pytest.raises(errors.MissingValueError, match="'waiting' has observed values in a single"):
        read(only, missing="marginalise")
    weight = np.r_[0.0, np.ones(len(HOLEY) - 1)]
    with pytest.raises(errors.MissingValueError, match="'waiting' has no observed value"):
        read(only, missing="marginalise", sample_weight=weight)


def test_a_column_whose_values_are_all_the_same_is_refused():
    X = HOLEY.assign(waiting=HOLEY["waiting"] * 0 + 5)
    with pytest.raises(errors.ConstantColumnError, match=r"'waiting' \(always 5\)"):
        read(X, missing="marginalise")


@pytest.mark.parametrize("missing", ["error", "drop", "marginalise"])
def test_infinite_values_are_errors_all_the_same(missing):
    X = HOLEY.dropna() if missing == "error" else HOLEY.copy()
    X.iloc[5, 1] = np.inf
    with pytest.raises(errors.InfiniteValueError, match=r"1 infinite.*'waiting'"):
        read(X, missing=missing)


def test_other_words_are_refused():
    for function in (read, lambda X, missing: bg.score(tree_of(X), X, missing=missing)):
        with pytest.raises(errors.ArgumentError, match=r"missing: .*'drop', 'marginalise', not"):
            function(FAITHFUL, missing="ignore")


def tree_of(X) -> Parameters:
    x = np.asarray(X)
    return Parameters(np.ones(1), np.nanmean(x, axis=0)[None], np.diag(np.nanvar(x, axis=0))[None])


def test_the_default_is_an_error_that_names_the_cells():
    with pytest.raises(errors.MissingValueError, match=r"row 'r\d+', column 'waiting'.*marginalis"):
        bg.fit_em(TWO, HOLEY)


def test_dropping_all_rows_is_an_error():
    X = HOLEY.assign(eruptions=np.where(np.arange(len(HOLEY)) % 2, np.nan, 1.0 + HOLEY.iloc[:, 0]))
    X["waiting"] = np.where(np.arange(len(HOLEY)) % 2, 1.0, np.nan)
    with pytest.raises(errors.EmptyDataError, match="none is left"):
        read(X, missing="drop")
    X.iloc[0] = [1.0, 2.0]
    with pytest.raises(errors.TooFewRowsError, match="single row without missing values"):
        quiet(read, X, missing="drop")


def test_rows_are_distinct_if_what_is_observed_is():
    x = np.array([[1.0, np.nan], [1.0, np.nan], [2.0, 3.0], [2.0, 3.0], [2.0, 4.0]])
    with pytest.raises(errors.TooFewRowsError, match="3 distinct rows"):
        read(x, missing="marginalise", n_components=4)
    quiet(read, x, missing="marginalise", n_components=3)


def test_collinear_and_tied_rows_are_seen_in_complete_rows():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 3))
    x[:, 2] = 2 * x[:, 0]
    x[:20, 1] = np.nan
    with pytest.raises(errors.CollinearColumnsError, match=r"in its 40 complete rows: x2 = 2\*x0"):
        read(x, missing="marginalise", family=Covariance("VVV"))
    tied = rng.normal(size=(60, 2))
    tied[:30] = 1.0
    tied[50:, 1] = np.nan
    with pytest.warns(errors.DataWarning, match=r"\[tied-rows\] 30 of 60"):
        read(tied, missing="marginalise", family=Covariance("VVV"))
    tied[:30, 0] = np.nan
    with pytest.warns(errors.DataWarning, match=r"\[tied-rows\] 30 of 60 .*\(missing, 1\)"):
        read(tied, missing="marginalise", family=Covariance("VVV"))


def test_columns_that_are_never_observed_together_are_warned_of():
    x = np.random.default_rng(3).normal(size=(60, 3))
    x[:30, 1] = np.nan
    x[30:, 2] = np.nan
    with pytest.warns(errors.DataWarning, match=r"(?s)\[never-together\].*'x1' and 'x2'"):
        read(x, missing="marginalise", family=Covariance("VVV"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.DataWarning)
        read(x, missing="marginalise", family=Covariance("VVI"))


def test_integers_beyond_double_precision_keep_their_digits_when_rows_are_dropped():
    big = 2**60 + np.arange(40)
    X = pd.DataFrame(
        {"a": pd.array(big, dtype="Int64"), "b": np.random.default_rng(1).normal(size=40)}
    )
    X.loc[3, "b"], X.loc[0, "a"] = np.nan, pd.NA
    data = quiet(read, X, missing="drop")
    whole = quiet(read, X.dropna().astype({"a": "int64"}))
    assert_array_equal(data.x, whole.x)
    assert data.fingerprint == whole.fingerprint


def test_the_fingerprint_is_of_where_values_are_missing():
    other = HOLEY.copy()
    other.iloc[0] = [np.nan, 50.0]
    one, two = (prepared(X, None, 1).fingerprint for X in (HOLEY, other))
    assert one != two
    payload = HOLES.copy()
    payload[np.isnan(HOLES)] = -np.float64("nan")
    assert prepared(pd.DataFrame(payload, columns=HOLEY.columns), None, 1).fingerprint == one


# What cannot do with missing values says so


@pytest.mark.parametrize("name", ["sample_posterior", "fit_laplace", "to_pymc"])
def test_posteriors_refuse_missing_values(name, holey):
    options = {} if name == "to_pymc" else {"mle": holey}
    with pytest.raises(errors.MissingValueError, match="missing value"):
        getattr(bg, name)(TWO, HOLEY, **options)
    if name != "to_pymc":
        with pytest.raises(errors.ArgumentError, match="other data"):
            quiet(getattr(bg, name), TWO, HOLEY.dropna(), **options)


def test_fits_of_other_rows_are_not_compared(holey):
    import fits

    post = fits.nuts_fit()
    with pytest.raises(errors.ArgumentError, match="fingerprint"):
        bg.compare(holey, post)


# New rows


def test_scores_and_probabilities_are_those_of_what_is_observed(holey):
    p = tree.point(holey)
    new = HOLEY.iloc[:40].copy()
    new.iloc[3] = np.nan
    rows = observed_rows(new.to_numpy(), p)
    found = bg.score(holey, new, missing="marginalise")
    assert_allclose(found, rows, rtol=1e-10, atol=1e-12)
    assert list(found.index) == list(new.index)
    joint = np.column_stack(
        [
            observed_rows(new.to_numpy(), Parameters(np.ones(1), m[None], c[None])) + np.log(w)
            for w, m, c in zip(p.weight, p.mean, p.covariance, strict=True)
        ]
    )
    proba = bg.predict_proba(holey, new, missing="marginalise")
    assert_allclose(proba, np.exp(joint - rows[:, None]), rtol=1e-8, atol=1e-12)
    assert_allclose(proba.iloc[3], p.weight, rtol=1e-12)
    label = bg.predict(holey, new, missing="marginalise")
    assert_array_equal(label, joint.argmax(axis=1))


def test_scores_of_draws_are_averages(holey):
    import fits

    post = fits.nuts_fit(chains=2, draws=10)
    new = HOLEY.iloc[:25].set_axis(["eruptions", "waiting"], axis=1)
    arrays = {
        n: post["posterior"][n].to_numpy().reshape(20, *post["posterior"][n].shape[2:])
        for n in tree.DIMS
    }
    each = [
        observed_rows(new.to_numpy(), Parameters(*(arrays[n][s] for n in tree.DIMS)))
        for s in range(20)
    ]
    found = bg.score(post, new, missing="marginalise")
    assert_allclose(found, logsumexp(each, axis=0) - np.log(20), rtol=1e-9)


def test_new_rows_with_missing_values_are_refused_or_dropped(holey):
    for function in (bg.score, bg.predict_proba, bg.predict):
        with pytest.raises(errors.MissingValueError, match="marginalise"):
            function(holey, HOLEY)
        assert list(function(holey, HOLEY, missing="drop").index) == list(HOLEY.dropna().index)
    assert_array_equal(bg.score(tree.point(holey), HOLES, missing="marginalise").shape, len(HOLES))


# Missing at random


def test_estimates_are_unbiased_where_dropping_rows_is_not():
    """The second column is missing where the first one is large; its mean is known."""
    rng = np.random.default_rng(5)
    truth = Parameters(
        np.array([0.4, 0.6]),
        np.array([[0.0, 0.0], [4.0, 4.0]]),
        np.array([[[1.0, 0.7], [0.7, 1.0]]] * 2),
    )
    bias = {"drop": [], "marginalise": []}
    for _ in range(12):
        x = registry.simulate(rng, truth, 600)
        within = x[:, 0] - np.where(x[:, 0] > 2, 4.0, 0.0)
        x[(within > 0) & (rng.random(600) < 0.8), 1] = np.nan
        for missing, found in bias.items():
            fit = quiet(bg.fit_em, TWO, x, missing=missing, start=truth, standard_errors=False)
            found.append(tree.point(fit).mean[:, 1] - truth.mean[:, 1])
    mean = {name: np.mean(found, axis=0) for name, found in bias.items()}
    error = {name: np.std(found, axis=0, ddof=1) / np.sqrt(12) for name, found in bias.items()}
    assert (mean["drop"] < -0.2).all()
    assert (np.abs(mean["marginalise"]) < 3.5 * error["marginalise"]).all()
