"""EM: the likelihood never falls, what it returns is a maximum, and failures say so."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
import registry
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read
from bayesgmm.em import loop as em
from bayesgmm.em.loop import UNUSABLE, run
from bayesgmm.em.spikes import are_spikes
from bayesgmm.em.start import Start, from_labels
from bayesgmm.errors import (
    ArgumentError,
    FitWarning,
    NumericalError,
    TooFewRowsError,
    WeightError,
)
from bayesgmm.moments import Parameters, accumulate
from bayesgmm.prior import ConjugatePrior
from bayesgmm.resolved import pseudo_data

FAITHFUL = registry.table("faithful")
TWO = bg.GaussianMixture(2, "VVV")
LABELS = np.array(registry.golden("mclust/faithful")["init"]["2"]) - 1
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(registry.FAMILY_SIZES)
by_family = pytest.mark.parametrize(
    ("family", "d"), [*((f, 2) for f in registry.EVERY), *((f, 1) for f in registry.ONE_D)], ids=str
)


def quiet(function, *args, **kwargs):
    """Call without the package's warnings, which are not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        return function(*args, **kwargs)


def fit(spec, x, **options):
    return quiet(bg.fit_em, spec, x, **options)


def prepared(x, family: Covariance, k: int, weight=None) -> Data:
    return quiet(read, x, family=family, n_components=k, sample_weight=weight)


def random_start(rng, data: Data, family: Covariance, k: int) -> Start:
    """From k rows at random; every component with several."""
    center = data.x[rng.choice(len(data.x), size=k, replace=False)]
    labels = ((data.x[:, None] - center) ** 2).sum(axis=2).argmin(axis=1)
    assume(np.bincount(labels, minlength=k).min() > data.d + 1)
    return Start("random", from_labels(data, family, labels, k))


def default_prior(data: Data, family: Covariance, k: int, **numbers):
    return pseudo_data(
        ConjugatePrior(**numbers), family, k, mean=data.mean, covariance=data.covariance
    )


def problem(seed: int, family: Covariance, d: int, kind: str):
    rng = np.random.default_rng(seed)
    x, k = registry.regime(kind, rng, family, d)
    data = prepared(x, family, k)
    return data, k, random_start(rng, data, family, k)


def values(fitted) -> np.ndarray:
    return flat(tree.point(fitted))


def flat(p: Parameters) -> np.ndarray:
    return np.concatenate([p.weight.ravel(), p.mean.ravel(), p.covariance.ravel()])


def errors_of(fitted) -> np.ndarray:
    se = fitted["standard_error"]
    return np.concatenate([se[v].to_numpy().ravel() for v in ("weight", "mean", "covariance")])


def reasons(fitted) -> list[str]:
    return fitted["starts"]["reason"].to_numpy().tolist()


# Every step rises


@settings(deadline=None, max_examples=150)
@given(seed=seeds, size=families, kind=st.sampled_from(registry.REGIMES))
def test_the_log_likelihood_never_falls(seed, size, kind):
    family, d = size
    data, _, start = problem(seed, family, d, kind)
    found = run(data, family, start, max_iter=300)
    assert np.isfinite(found.trace).all()
    assert_rising(found, data.n)


def assert_rising(found: em.Run, n: int) -> None:
    """No fall by more than 1e-12 of the value, and the rounding of a matrix of this condition."""
    trace = found.trace
    rounding = 1e-16 * n * np.linalg.cond(found.parameters.covariance).max()
    assert (np.diff(trace) >= -1e-12 * np.abs(trace[1:]) - rounding).all()


@settings(deadline=None, max_examples=100)
@given(
    seed=seeds,
    size=families,
    kind=st.sampled_from(registry.REGIMES),
    shrinkage=st.sampled_from([0.0, 0.01, 5.0]),
    concentration=st.sampled_from([1.0, 3.0]),
)
def test_the_penalised_likelihood_never_falls(seed, size, kind, shrinkage, concentration):
    family, d = size
    data, k, start = problem(seed, family, d, kind)
    prior = default_prior(data, family, k, shrinkage=shrinkage, weight_concentration=concentration)
    assert_rising(run(data, family, start, prior=prior, max_iter=300), data.n)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, size=families, kind=st.sampled_from(["apart", "overlapping", "rounded"]))
def test_where_em_stops_the_gradient_is_zero(seed, size, kind):
    """By finite differences in the family's own coordinates, per observation."""
    family, d = size
    data, _, start = problem(seed, family, d, kind)
    found = run(data, family, start, tol=1e-6)
    assume(found.reason == "converged")
    theta, at = registry.coordinates(family, found.parameters)
    h = 1e-5
    slope = [
        accumulate(data.x, Parameters(*at(theta + h * e))).loglik
        - accumulate(data.x, Parameters(*at(theta - h * e))).loglik
        for e in np.eye(len(theta))
    ]
    # In units of the parameters' own information, as means of narrow components have steep slopes.
    narrowest = 1.0 / np.sqrt(np.linalg.eigvalsh(found.parameters.covariance).min())
    assert_allclose(np.array(slope) / (2 * h), 0.0, atol=1e-6 * data.n * max(1.0, narrowest))


# Closed forms


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_one_component_is_the_closed_form(family, offset):
    x = registry.table("iris").to_numpy()[:, : 1 if family.is_one_dimensional else 4] + offset
    found = fit(bg.GaussianMixture(1, family.letters), x)
    n, d = x.shape
    covariance = np.cov(x - offset, rowvar=False, ddof=0).reshape(d, d)
    if family.shape == "I":
        covariance = np.eye(d) * np.trace(covariance) / d
    elif family.is_diagonal:
        covariance = np.diag(np.diag(covariance))
    p = tree.point(found)
    rtol = 1e-12 if offset == 0 else 1e-9  # x + 1e6 holds ten digits
    assert p.weight == 1.0
    assert_allclose(p.mean[0], x.mean(axis=0), rtol=1e-12)
    assert_allclose(p.covariance[0], covariance, rtol=rtol, atol=1e-14)
    logdet = np.linalg.slogdet(covariance)[1]
    expected = -0.5 * n * (d * np.log(2 * np.pi) + logdet + d)
    assert_allclose(found["criteria"]["loglik"], expected, rtol=rtol)
    assert found.attrs["stop_reason"] in ("converged", "fixed point")
    assert json.loads(found.attrs["verdict"])["status"] == "ok"


@pytest.mark.parametrize(("n", "k", "d"), [(7, 2, 1), (6, 3, 2), (5, 4, 1)])
def test_all_assignments_enumerated_give_the_same_likelihood(n, k, d):
    """The sum over every one of the k^n assignments of the complete-data likelihood."""
    rng = np.random.default_rng(n)
    p = registry.mixture(rng, Covariance("VVV"), k, d, apart=1.0)
    x = registry.simulate(rng, p, n)
    joint = np.array(
        [
            np.log(p.weight[j]) + multivariate_normal(p.mean[j], p.covariance[j]).logpdf(x)
            for j in range(k)
        ]
    )
    rows = np.arange(n)
    terms = [joint[list(z), rows].sum() for z in itertools.product(range(k), repeat=n)]
    assert len(terms) == k**n
    assert_allclose(accumulate(x, p).loglik, logsumexp(terms), rtol=1e-12)
    counts = np.zeros(k)
    for z, term in zip(itertools.product(range(k), repeat=n), terms, strict=True):
        counts += np.exp(term - logsumexp(terms)) * np.bincount(z, minlength=k)
    assert_allclose(accumulate(x, p).weight_count, counts, rtol=1e-10)


# Where it stops


@by_family
def test_estimates_are_within_the_tolerance_of_their_limit(family, d):
    rng = np.random.default_rng(zlib_seed(family, d))
    for kind in ("apart", "overlapping"):
        x, k = registry.regime(kind, rng, family, d)
        spec = bg.GaussianMixture(k, family.letters)
        found = fit(spec, x, random_seed=1, n_starts=3)
        limit = fit(spec, x, start=found, tol=1e-10, max_iter=100_000)
        se = errors_of(limit)
        assert np.isfinite(se).all(), kind
        apart = np.abs(values(found) - values(limit))[se > 0] / se[se > 0]
        assert apart.max() <= 1e-4, kind
        assert found["sample_stats"]["distance"].item() <= 1e-4


def zlib_seed(family: Covariance, d: int) -> list[int]:
    return [*family.letters.encode(), d]


def test_slow_em_goes_on_until_it_is_there():
    """Five components of faithful, EEI: EM's rate is 0.999."""
    labels = np.array(registry.golden("mclust/faithful")["init"]["6"]) - 1
    spec = bg.GaussianMixture(6, "EEI")
    plain = fit(spec, FAITHFUL, start=labels, acceleration=None)
    limit = fit(spec, FAITHFUL, start=plain, acceleration=None, tol=1e-9, max_iter=100_000)
    assert plain["sample_stats"]["n_iter"] > 500
    error = np.where(errors_of(limit) > 0, errors_of(limit), 1)
    assert np.abs((values(plain) - values(limit)) / error).max() <= 1e-4


def test_zero_tolerance_stops_at_a_fixed_point_or_at_max_iter():
    found = fit(TWO, FAITHFUL, start=LABELS, tol=0.0)
    assert found.attrs["stop_reason"] == "fixed point"
    assert found["sample_stats"]["n_iter"] <= 200
    assert found["criteria"]["loglik"].item() == pytest.approx(-1130.2639601847, rel=1e-12)
    separate = np.array([[0.0], [1.0], [100.0], [101.0], [0.5], [100.25]])
    found = fit(bg.GaussianMixture(2, "E"), separate, start=[0, 0, 1, 1, 0, 1], tol=0.0)
    assert found.attrs["stop_reason"] == "fixed point"
    found = fit(TWO, FAITHFUL, start=LABELS, tol=0.0, max_iter=3)
    assert found.attrs["stop_reason"] == "max_iter"


def test_one_step_is_not_enough():
    with pytest.warns(FitWarning, match="(?s)converged: EM stopped after 1 steps.*max_iter"):
        found = bg.fit_em(TWO, FAITHFUL, start=np.roll(LABELS, 30), max_iter=1)
    assert found.attrs["stop_reason"] == "max_iter"
    assert json.loads(found.attrs["verdict"])["status"] == "fail"
    assert not found["sample_stats"]["converged"].item()


# Invariance


@pytest.mark.parametrize("letters", ["VVV", "EEE", "VVI", "EVE", "VEV", "VII"])
@pytest.mark.parametrize(("offset", "unit"), [(1e8, 1.0), (0.0, 1e-8), (0.0, 1e8), (-1e6, 1e3)])
def test_units_and_offset_change_nothing(letters, offset, unit):
    x = FAITHFUL.to_numpy()
    spec = bg.GaussianMixture(2, letters)
    moved = offset + unit * x
    here = fit(spec, (moved - offset) / unit, random_seed=3, n_starts=2)
    there = fit(spec, moved, random_seed=3, n_starts=2)
    a, b = tree.point(here), tree.point(there)
    # What moved still holds of x
    digits = 1e-14 * max(1.0, abs(offset) / unit)
    rtol = 1e-7 + 100 * digits
    assert_allclose(b.weight, a.weight, rtol=rtol)
    assert_allclose((b.mean - offset) / unit, a.mean, rtol=rtol)
    assert_allclose(b.covariance / unit**2, a.covariance, rtol=rtol, atol=rtol)
    n, d = x.shape
    shift = n * d * np.log(unit)
    assert there["criteria"]["loglik"].item() + shift == pytest.approx(
        here["criteria"]["loglik"].item(), rel=1e-9
    )
    assert_allclose(
        there["standard_error"]["mean"] / unit, here["standard_error"]["mean"], rtol=1e-5
    )


@pytest.mark.parametrize("letters", ["VVV", "EEE", "EVV", "VEE"])
def test_affine_maps_go_through_whole_matrices(letters):
    x = FAITHFUL.to_numpy()
    spec = bg.GaussianMixture(2, letters)
    a, b = np.array([[2.0, -30.0], [0.001, 0.02]]), np.array([5.0, -7.0])
    here = fit(spec, x, start=LABELS, tol=1e-8)
    there = fit(spec, x @ a + b, start=LABELS, tol=1e-8)
    p, q = (tree.point(f) for f in (here, there))
    order = [int(np.argmin(np.abs(q.weight - w))) for w in p.weight]
    q = q.take(order)
    assert_allclose(q.weight, p.weight, rtol=1e-8)
    assert_allclose(q.mean, p.mean @ a + b, rtol=1e-7)
    assert_allclose(q.covariance, a.T @ p.covariance @ a, rtol=1e-6)
    shift = len(x) * np.log(abs(np.linalg.det(a)))
    assert there["criteria"]["loglik"].item() + shift == pytest.approx(
        here["criteria"]["loglik"].item(), rel=1e-9
    )


def test_the_same_seed_gives_the_same_bits_and_leaves_numpys_alone():
    spec = bg.GaussianMixture(3, "VVI")
    state = np.random.get_state()  # noqa: NPY002
    one, two = (fit(spec, FAITHFUL, random_seed=7) for _ in range(2))
    three = fit(spec, FAITHFUL, random_seed=8)
    after = np.random.get_state()  # noqa: NPY002
    assert_array_equal(state[1], after[1])
    assert state[2] == after[2]
    assert_array_equal(values(one), values(two))
    assert_array_equal(one["starts"]["objective"], two["starts"]["objective"])
    assert not np.array_equal(one["starts"]["n_iter"], three["starts"]["n_iter"])
    assert one.attrs["random_seed"] == 7
    unseeded = fit(spec, FAITHFUL, n_starts=2)
    again = fit(spec, FAITHFUL, n_starts=2, random_seed=int(unseeded.attrs["random_seed"]))
    assert_array_equal(values(unseeded), values(again))


def test_threads_change_no_bit_of_a_fit():
    rng = np.random.default_rng(1)
    x = registry.simulate(rng, registry.mixture(rng, Covariance("VVV"), 2, 2, 5.0), 70_000)
    one, two = (fit(TWO, x, random_seed=1, n_starts=1, threads=t) for t in (1, 2))
    assert_array_equal(values(one), values(two))


@by_family
def test_weights_are_repeated_rows(family, d):
    rng = np.random.default_rng(4)
    x, k = registry.regime("overlapping", rng, family, d)
    weight = rng.integers(0, 3, size=len(x))
    labels = (x[:, 0] > np.median(x[:, 0])).astype(int)
    spec = bg.GaussianMixture(k, family.letters)
    one = fit(spec, x, sample_weight=weight, start=labels, tol=1e-8)
    repeated = np.repeat(x, weight, axis=0)
    two = fit(spec, repeated, start=np.repeat(labels, weight), tol=1e-8)
    assert_allclose(values(one), values(two), rtol=1e-8, atol=1e-8)
    assert_allclose(one["criteria"]["loglik"], two["criteria"]["loglik"], rtol=1e-12)
    for name in ("aic", "bic", "icl", "n_params"):
        assert_allclose(one["criteria"][name], two["criteria"][name], rtol=1e-9)
    assert_allclose(errors_of(one), errors_of(two), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("letters", ["VVV", "EEV", "VII"])
def test_the_search_takes_weights_for_repeated_rows_wherever_they_stand(letters):
    """From default starts to the choice among equal optima: the same, but for rounding."""
    weight = np.arange(len(FAITHFUL)) % 4
    spec = bg.GaussianMixture(3, letters)
    one = fit(spec, FAITHFUL, sample_weight=weight, random_seed=1)
    for order in ("each", "all"):
        index = np.repeat(np.arange(len(FAITHFUL)), weight)
        if order == "all":  # the second copies after all the first ones
            first = np.unique(index, return_index=True)[1]
            index = np.concatenate([index[first], np.delete(index, first)])
        two = fit(spec, FAITHFUL.iloc[index], random_seed=1)
        assert_allclose(values(one), values(two), rtol=1e-10)
        assert_allclose(errors_of(one), errors_of(two), rtol=1e-9)


def test_data_are_not_changed():
    x = FAITHFUL.to_numpy().copy()
    before, weight = x.copy(), np.ones(len(x))
    fit(TWO, x, sample_weight=weight, random_seed=0, n_starts=1)
    assert_array_equal(x, before)
    assert_array_equal(weight, 1.0)


# Degenerate components


def test_a_singular_component_is_never_the_best():
    """Noise and four components: the likelihood has no bound, and EM finds that out (A17)."""
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(30, 1))
        try:
            found = fit(bg.GaussianMixture(4, "V"), x, random_seed=seed, n_starts=20)
        except NumericalError:
            continue
        p = tree.point(found)
        assert np.sqrt(p.covariance).min() > 1e-6
        starts = found["starts"]
        if found.attrs["stop_reason"] in ("tiny", "spurious"):  # there is nothing else
            assert not starts["usable"].any()
            assert json.loads(found.attrs["verdict"])["status"] == "fail"
            continue
        assert 30 * p.weight.min() > 2.5
        assert starts.sizes["start"] >= 10  # some of the twenty are the same groups
        bad = ~starts["usable"].to_numpy()
        assert set(starts["reason"].to_numpy()[bad]) <= {*UNUSABLE, "unfinished"}
        assert starts["usable"].to_numpy()[starts["best"].to_numpy()].all()
        assert starts["best"].sum() == 1
        usable = starts["objective"].to_numpy()[~bad]
        assert starts["objective"].to_numpy()[starts["best"].to_numpy()] >= usable.max() - 1e-6


def test_rejected_starts_are_counted_in_the_verdict():
    x = np.random.default_rng(3).normal(size=(30, 1))
    found = fit(bg.GaussianMixture(4, "V"), x, random_seed=3, n_starts=20)
    reason = found["starts"]["reason"].to_numpy()
    rejected = int(np.isin(reason, UNUSABLE).sum())
    assert 0 < rejected < len(reason)
    checks = {c["code"]: c for c in json.loads(found.attrs["verdict"])["checks"]}
    assert f"{rejected} of {len(reason)} starts were unusable" in checks["starts"]["evidence"]
    assert checks["starts"]["status"] == ("warn" if 2 * rejected > len(reason) else "ok")


@pytest.mark.parametrize("letters", ["VVV", "VVI", "VII", "VEE", "VEI", "EVV", "EVI", "EVE", "VVE"])
def test_where_every_start_is_singular_an_error_tabulates_them(letters):
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((30, 2)), rng.normal(size=(40, 2)) + 8.0])
    labels = np.repeat([0, 1], [30, 40])
    with pytest.raises(NumericalError, match=r"(?s)all 1 starts.*labels.*singular.*map"):
        fit(bg.GaussianMixture(2, letters), x, start=labels)
    with pytest.raises(NumericalError, match=r"(?s)all 3 starts.*start 0 .*start 1 .*start 2 "):
        fit(bg.GaussianMixture(2, letters), x, start=[labels] * 3)


@pytest.mark.parametrize("family", registry.EVERY, ids=str)
def test_with_a_prior_tied_rows_are_no_trouble(family):
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((30, 2)), rng.normal(size=(40, 2)) + 8.0])
    spec = bg.GaussianMixture(2, family.letters)
    found = fit(spec, x, estimate="map", random_seed=1, n_starts=2)
    assert found.attrs["stop_reason"] in ("converged", "fixed point")
    assert np.isfinite(errors_of(found)).all()
    assert found.attrs["estimate"] == "map"


@pytest.mark.parametrize("family", registry.EVERY, ids=str)
def test_common_covariances_allow_small_components(family):
    """Whatever the family does with a component of three points, no raw warning or error leaves."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(3, 2)) * 0.01 + 9.0])
    labels = np.repeat([0, 1], [40, 3])
    try:
        found = fit(bg.GaussianMixture(2, family.letters), x, start=labels)
    except NumericalError:
        assert not family.is_common
    else:
        assert_allclose(np.sort(tree.point(found).weight), [3 / 43, 40 / 43], rtol=1e-6)


@pytest.mark.parametrize("family", registry.EVERY, ids=str)
@pytest.mark.parametrize("kind", ["line", "point", "few"])
def test_singular_scatters_end_in_a_reason(family, kind):
    """Components on a line, on a point, or with fewer rows than dimensions."""
    rng = np.random.default_rng(6)
    rest = rng.normal(size=(50, 3)) * 3.0
    odd = {
        "line": np.outer(np.linspace(0, 1, 12), [1.0, 2.0, 3.0]) + 20.0,
        "point": np.full((12, 3), 20.0),
        "few": rng.normal(size=(2, 3)) + 20.0,
    }[kind]
    x = np.concatenate([rest, odd])
    labels = np.repeat([0, 1], [len(rest), len(odd)])
    data = prepared(x, family, 2)
    found = run(data, family, Start("labels", from_labels(data, family, labels, 2)))
    assert found.reason in ("converged", "fixed point", "singular", "tiny")
    if family.is_common:
        assert found.is_usable
    if found.is_usable:
        assert np.linalg.cond(found.parameters.covariance).max() < 1e20


# Starts


def test_labels_parameters_and_fits_start_em():
    by_labels = fit(TWO, FAITHFUL, start=LABELS)
    p = tree.point(by_labels)
    again = fit(TWO, FAITHFUL, start=p)
    from_fit = fit(TWO, FAITHFUL, start=by_labels)
    from_dataset = fit(TWO, FAITHFUL, start=by_labels["posterior"].to_dataset())
    for other in (again, from_fit, from_dataset):
        assert_allclose(values(other), values(by_labels), rtol=1e-5)
        assert other["sample_stats"]["n_iter"] < 5
        assert other["starts"].sizes["start"] == 1
        assert other["starts"]["method"].item() == "parameters"
    assert by_labels["starts"]["method"].item() == "labels"
    listed = fit(TWO, FAITHFUL, start=LABELS.tolist())
    assert_array_equal(values(listed), values(by_labels))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("kmeans", ["kmeans"]),  # the same groups again are no other start
        ("random", ["random"] * 3),
        ("ward", ["ward"]),
        ("ellipsoids", ["ellipsoids"]),
        (None, ["ellipsoids", "kmeans", "random"]),
        (["ward", None, LABELS], ["ward", "ellipsoids", "kmeans", "random", "labels"]),
    ],
    ids=str,
)
def test_named_starts(start, expected):
    found = fit(TWO, FAITHFUL, start=start, n_starts=3, random_seed=0)
    assert found["starts"]["method"].to_numpy().tolist() == expected
    assert found["criteria"]["loglik"].item() == pytest.approx(-1130.2639601847, rel=1e-10)


def good(**changes) -> Parameters:
    fields = {
        "weight": np.array([0.4, 0.6]),
        "mean": np.array([[2.0, 55.0], [4.3, 80.0]]),
        "covariance": np.stack([np.diag([0.1, 30.0])] * 2),
    }
    return Parameters(**(fields | changes))


WRONG_STARTS = {
    "unknown name": ("k-means", "'k-means' is unknown"),
    "too few labels": (LABELS[:-1], "one integer label"),
    "fractional labels": (LABELS + 0.5, "one integer label"),
    "floating labels": (LABELS.astype(float), "one integer label"),
    "labels from one": (LABELS + 1, r"labels must be 0 to 1"),
    "negative labels": (LABELS - 1, r"labels must be 0 to 1"),
    "an unused label": (np.zeros(272, int), r"labels must be 0 to 1, each used"),
    "text labels": (np.array(["a"] * 272), "one integer label"),
    "a number": (3, "one integer label"),
    "an object": (object(), "one integer label"),
    "three weights": (good(weight=np.full(3, 1 / 3)), "weight has shape"),
    "one-dimensional means": (good(mean=np.zeros((2, 1))), "mean has shape"),
    "one covariance": (good(covariance=np.eye(2)), "covariance has shape"),
    "a weight of zero": (good(weight=np.array([0.0, 1.0])), "weights must be positive"),
    "weights of sum two": (good(weight=np.array([1.0, 1.0])), "weights must be positive"),
    "a NaN mean": (good(mean=np.full((2, 2), np.nan)), "mean is not finite"),
    "text": (good(mean=np.array([["a", "b"]] * 2)), "is no number"),
    "not definite": (good(covariance=np.stack([-np.eye(2)] * 2)), "positive definite"),
    "singular": (good(covariance=np.zeros((2, 2, 2))), "positive definite"),
    "not symmetric": (
        good(covariance=np.stack([np.array([[1.0, 0.9], [0.0, 1.0]])] * 2)),
        "symmetric",
    ),
}


@pytest.mark.parametrize("case", WRONG_STARTS)
def test_wrong_starts_are_refused_by_name(case):
    start, message = WRONG_STARTS[case]
    with pytest.raises(ArgumentError, match=message) as caught:
        fit(TWO, FAITHFUL, start=start)
    assert caught.value.argument == "start"


def test_a_fit_of_other_data_or_size_is_no_start():
    three = fit(bg.GaussianMixture(3, "EEE"), FAITHFUL, random_seed=0, n_starts=1)
    with pytest.raises(ArgumentError, match=r"start: weight has shape \(3,\), not \(2,\)"):
        fit(TWO, FAITHFUL, start=three)
    with pytest.raises(ArgumentError, match="start: has no variable weight, mean, covariance"):
        fit(TWO, FAITHFUL, start=three["criteria"].to_dataset())
    with pytest.raises(ArgumentError, match="start"):
        fit(TWO, FAITHFUL, start=three["criteria"])  # a tree without a posterior
    draws = three["posterior"].to_dataset().isel(draw=[0, 0], cluster=[0, 1])
    with pytest.raises(ArgumentError, match="start: has many draws"):
        fit(TWO, FAITHFUL, start=draws)


def test_a_label_without_weight_is_no_component():
    weight = np.where(LABELS == 0, 0.0, 1.0)
    with pytest.raises(ArgumentError, match="start"):
        fit(TWO, FAITHFUL, start=LABELS, sample_weight=weight)


@pytest.mark.parametrize("start", ["kmeans", "random", None])
def test_starts_on_few_distinct_rows(start):
    """As many distinct rows as components, most of them tied: no raw warning, an honest error."""
    x = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 5.0]]), [30, 1, 1, 2], axis=0)
    with pytest.raises(NumericalError):
        fit(bg.GaussianMixture(4, "VVV"), x, start=start, n_starts=3, random_seed=0)
    with pytest.raises(TooFewRowsError):
        fit(bg.GaussianMixture(5, "VVV"), x, start=start)
    found = fit(
        bg.GaussianMixture(4, "EEE"), x, start=start, n_starts=3, random_seed=0, estimate="map"
    )
    assert np.isfinite(values(found)).all()


# Arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("spec", "VVV"),
        ("estimate", "mode"),
        ("n_starts", 0),
        ("n_starts", 2.5),
        ("n_starts", True),
        ("max_iter", 0),
        ("max_iter", "many"),
        ("tol", -1e-4),
        ("tol", float("nan")),
        ("tol", "small"),
        ("tol", None),
        ("threads", 0),
        ("threads", -2),
        ("threads", 1.5),
        ("random_seed", -1),
        ("random_seed", 1.5),
        ("random_seed", "one"),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument, value):
    options = {"spec": TWO, argument: value}
    with pytest.raises(ArgumentError) as caught:
        fit(options.pop("spec"), FAITHFUL, **options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    "weight", [np.full(272, -1.0), np.zeros(272), np.full(272, np.nan), [1, 2]]
)
def test_wrong_weights_are_refused(weight):
    with pytest.raises(WeightError, match="sample_weight"):
        fit(TWO, FAITHFUL, sample_weight=weight)


@pytest.mark.parametrize("prior", [None, "separation", bg.ConjugatePrior(weight_concentration=0.5)])
def test_a_map_fit_needs_a_prior_with_a_mode(prior):
    spec = bg.GaussianMixture(2, "VVV", prior=prior)
    with pytest.raises(ArgumentError, match="estimate: 'map' needs"):
        fit(spec, FAITHFUL, estimate="map")
    assert fit(spec, FAITHFUL, random_seed=0, n_starts=1).attrs["estimate"] == "mle"


# Interruption


def interrupt_after(calls: int, monkeypatch):
    count = itertools.count(1)

    def accumulate_some(*args, **kwargs):
        if next(count) > calls:
            raise KeyboardInterrupt
        return accumulate(*args, **kwargs)

    monkeypatch.setattr(em, "accumulate", accumulate_some)


def test_interrupted_in_the_first_run(monkeypatch):
    interrupt_after(5, monkeypatch)
    with pytest.warns(FitWarning, match="interrupted"):
        found = bg.fit_em(TWO, FAITHFUL, start="random", random_seed=0)
    assert found.attrs["stop_reason"] == "interrupted"
    assert reasons(found) == ["interrupted"]
    assert json.loads(found.attrs["verdict"])["status"] == "fail"
    assert np.isfinite(values(found)).all()
    assert found["sample_stats"]["n_iter"] == 4


def test_interrupted_later_the_best_so_far_is_kept(monkeypatch):
    whole = fit(TWO, FAITHFUL, start="kmeans", random_seed=0, n_starts=1)
    passes = whole["sample_stats"]["n_iter"].item() + 1
    for calls in (passes + 3, passes):  # inside the second run, and before its first pass
        interrupt_after(calls, monkeypatch)
        found = fit(TWO, FAITHFUL, start=["kmeans", "random"], random_seed=0, n_starts=1)
        assert reasons(found) == ["converged", "interrupted"]
        assert found.attrs["stop_reason"] == "interrupted"
        assert_allclose(values(found), values(whole), rtol=1e-12)


def test_interrupted_before_anything_is_known(monkeypatch):
    interrupt_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(TWO, FAITHFUL, random_seed=0)


# What a fit holds


def test_criteria_and_responsibilities():
    found = fit(TWO, FAITHFUL, random_seed=1, n_starts=2, keep_responsibilities=True)
    r = found["responsibilities"]["responsibility"].to_numpy()
    assert r.shape == (272, 2)
    assert_allclose(r.sum(axis=1), 1.0, atol=1e-12)
    c = found["criteria"]
    n, p, loglik = 272, 11, c["loglik"].item()
    assert c["n_params"] == p
    assert c["aic"].item() == pytest.approx(2 * p - 2 * loglik)
    assert c["bic"].item() == pytest.approx(p * np.log(n) - 2 * loglik)
    assert c["icl"].item() == pytest.approx(c["bic"].item() - 2 * np.log(r.max(axis=1)).sum())
    rows = found["log_likelihood"]["x"].to_numpy()
    assert rows.sum() == pytest.approx(loglik, rel=1e-12)
    assert_allclose(
        rows[0, 0], [registry.loglik(x[None], tree.point(found)) for x in FAITHFUL.to_numpy()]
    )


def test_the_lp_of_a_map_fit_is_that_of_its_objective():
    found = fit(TWO, FAITHFUL, random_seed=1, n_starts=2, estimate="map")
    stats = found["sample_stats"]
    assert stats["lp"].item() != pytest.approx(stats["loglik"].item(), rel=1e-6)
    best = found["starts"]["best"].to_numpy()
    assert stats["lp"].item() == pytest.approx(found["starts"]["objective"].to_numpy()[best][0])


def test_far_apart_groups_are_certain():
    """1e9 sds apart (A21): responsibilities of exactly 0 and 1, and ICL equal to BIC."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(50, 1)), rng.normal(size=(50, 1)) + 1e9])
    found = fit(bg.GaussianMixture(2, "E"), x, random_seed=0, keep_responsibilities=True)
    r = found["responsibilities"]["responsibility"].to_numpy()
    assert set(np.unique(r)) == {0.0, 1.0}
    assert found["criteria"]["icl"] == found["criteria"]["bic"]
    within = np.concatenate([x[:50] - x[:50].mean(), x[50:] - x[50:].mean()])
    assert_allclose(tree.point(found).covariance.ravel(), (within**2).mean(), rtol=1e-6)


def test_few_points_that_are_close_by_chance_are_never_called_good():
    """Four components on thirty points of one normal: the likelihood has a spike at every few."""
    shares = []
    for seed in range(30):
        x = np.random.default_rng(seed).normal(size=30)
        try:
            found = fit(bg.GaussianMixture(4, "V"), x, n_starts=20, random_seed=1)
        except NumericalError:
            continue
        status = {c["code"]: c["status"] for c in json.loads(found.attrs["verdict"])["checks"]}
        if found.attrs["stop_reason"] in ("spurious", "tiny"):
            assert status["converged"] == "fail"
        else:
            assert np.sqrt(found["posterior"]["covariance"].min()) > 0.01 * x.std()
        shares.append(status["starts"] == "ok")
    assert len(shares) >= 24


@pytest.mark.parametrize("letters", ["VVV", "VVE"])
def test_few_points_near_a_plane_are_a_spike_where_axes_can_turn_to_it(letters):
    """Through any six points of six columns there is a plane: eight near one mean nothing."""
    rng = np.random.default_rng(4)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    x = rng.normal(size=(160, 6))
    few, many = np.arange(160) < 8, np.arange(160) < 80
    for is_near, wanted in ((few, "spurious"), (many, "converged")):
        near = x @ turn
        near[is_near, 0] *= 1e-4
        found = fit(bg.GaussianMixture(2, letters), near @ turn.T, start=np.where(is_near, 0, 1))
        assert found.attrs["stop_reason"] == wanted


@pytest.mark.parametrize(
    ("letters", "is_spike"),
    [("EVV", True), ("EVE", True), ("VVE", True), ("VVI", False), ("EEE", False)],
)
def test_a_thin_component_of_two_points_a_column_is_a_spike_if_it_can_turn(letters, is_spike):
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))[0]
    thin = turn @ np.diag([1e-6, 1.0, 1.0, 1.0, 1.0, 1.0]) @ turn.T
    count = np.array([12.0, 148.0])
    about = Parameters(count / 160.0, np.zeros((2, 6)), np.stack([thin, np.eye(6)]))
    assert_array_equal(are_spikes(about, count, Covariance(letters)), [is_spike, False])
