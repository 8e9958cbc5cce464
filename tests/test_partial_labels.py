"""Partly known labels: constraints are kept exactly, and what is unknown is as without labels."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import registry
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm import errors, groups, tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read
from bayesgmm.data.partial_labels import read_labels
from bayesgmm.em.loop import run
from bayesgmm.em.start import Start, from_labels
from bayesgmm.groups import split, table
from bayesgmm.information.observed import observed_information
from bayesgmm.moments import UNWEIGHTED, Parameters, accumulate, assigned

IRIS = registry.table("iris")
species = np.repeat([0, 1, 2], 50)
THREE = bg.GaussianMixture(3, "VVV")
seeds = st.integers(0, 2**32 - 1)
every_family = pytest.mark.parametrize("family", registry.EVERY, ids=str)


def quiet(function, *args, **kwargs):
    """Call without the package's warnings, which are not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.BayesgmmWarning)
        return function(*args, **kwargs)


def fit(spec, x, **options):
    return quiet(bg.fit_em, spec, x, **{"random_seed": 1, "n_starts": 4} | options)


def values(fitted) -> np.ndarray:
    p = tree.point(fitted)
    return np.concatenate([p.weight.ravel(), p.mean.ravel(), p.covariance.ravel()])


def some_labels(rng, truth, share=0.3) -> np.ndarray:
    return np.where(rng.random(len(truth)) < share, truth, -1)


def some_probabilities(rng, n, k, *, kinds=None) -> np.ndarray:
    """Rows that sum to one: hard, soft, with zeros, and unknown."""
    rows = rng.dirichlet(np.full(k, 0.7), size=kinds or n)
    rows[::4] = np.eye(k)[rng.integers(k, size=len(rows[::4]))]
    rows[1::4] = 1.0 / k
    rows[2::8, 0] = 0.0
    rows /= rows.sum(axis=1, keepdims=True)
    return rows if kinds is None else rows[rng.integers(kinds, size=n)]


def log_joint(x, p: Parameters, probability) -> np.ndarray:
    """log p_nk / max p_n + log pi_k + log N(x_n; k), from SciPy's densities."""
    with np.errstate(divide="ignore"):
        joint = np.log(p.weight) + np.log(probability / probability.max(axis=1, keepdims=True))
    for j in range(p.k):
        joint[:, j] += multivariate_normal(p.mean[j], p.covariance[j]).logpdf(x)
    return joint


# What a row's label says


@pytest.mark.parametrize("kinds", [7, 60, None])
def test_sums_are_those_of_constrained_responsibilities(kinds):
    """Few kinds of knowledge, many, and one for each row (which goes row by row)."""
    rng = np.random.default_rng(1)
    p = registry.mixture(rng, Covariance("VVV"), 3, 2, 1.0)
    x = registry.simulate(rng, p, 300)
    known = some_probabilities(rng, 300, 3, kinds=kinds)
    weight = rng.integers(0, 3, 300).astype(float)
    joint = log_joint(x, p, known)
    r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)) * weight[:, None]
    z = np.einsum("kij,nkj->nki", p.whitening, x[:, None] - p.mean)
    found = table(split(x, weight, known), p, accumulate)
    assert any(g.plausibility.ndim == 2 for g in split(x, weight, known)) == (kinds is None)
    assert_allclose(found.loglik, weight @ logsumexp(joint, axis=1), rtol=1e-11)
    assert_allclose(found.mean_count, r.sum(axis=0), rtol=1e-11)
    assert_allclose(found.first, np.einsum("nk,nki->ki", r, z), rtol=1e-9, atol=1e-9)
    assert_allclose(found.second, np.einsum("nk,nki,nkj->kij", r, z, z), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, is_incomplete=st.booleans())
def test_row_by_row_gives_the_table_of_groups(seed, is_incomplete):
    rng = np.random.default_rng(seed)
    p = registry.mixture(rng, Covariance("VVV"), 3, 3)
    x = registry.simulate(rng, p, 80)
    if is_incomplete:
        x[rng.random(x.shape) < 0.2] = np.nan
    known = some_probabilities(rng, 80, 3)
    by_group, by_row = (split(x, UNWEIGHTED, known, most_kinds=most) for most in (1000, 0))
    assert len(by_row) < len(by_group)
    one, two = (table(g, p, accumulate) for g in (by_group, by_row))
    assert_allclose(one.loglik, two.loglik, rtol=1e-11)
    assert_allclose(one.first, two.first, rtol=1e-8, atol=1e-9)
    assert_allclose(one.second, two.second, rtol=1e-8, atol=1e-9)
    rows = [groups.rows(g, p, 80) for g in (by_group, by_row)]
    assert_allclose(rows[0][0], rows[1][0], rtol=1e-11, atol=1e-12)
    assert_allclose(rows[0][1], rows[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("most_kinds", [0, 100])
def test_the_likelihood_is_the_sum_over_all_assignments(most_kinds):
    """All 3^5 assignments, each with the probability of its labels."""
    rng = np.random.default_rng(2)
    p = registry.mixture(rng, Covariance("VVV"), 3, 2, 1.0)
    x = registry.simulate(rng, p, 5)
    known = some_probabilities(rng, 5, 3)
    density = np.column_stack(
        [multivariate_normal(m, c).pdf(x) for m, c in zip(p.mean, p.covariance, strict=True)]
    )
    total, first = 0.0, np.zeros(3)
    for z in itertools.product(range(3), repeat=5):
        each = [known[n, k] / known[n].max() * p.weight[k] * density[n, k] for n, k in enumerate(z)]
        total += np.prod(each)
        first += np.prod(each) * np.bincount(z, minlength=3)
    found = table(split(x, UNWEIGHTED, known, most_kinds=most_kinds), p, accumulate)
    assert_allclose(found.loglik, np.log(total), rtol=1e-12)
    assert_allclose(found.mean_count, first / total, rtol=1e-10)


@pytest.mark.parametrize("most_kinds", [0, 100])
def test_known_labels_are_kept_exactly_however_far_the_row(most_kinds):
    p = Parameters(np.array([0.9, 0.1]), np.array([[0.0], [50.0]]), np.ones((2, 1, 1)))
    x = np.array([[0.0], [50.0], [1e3], [-1e5], [25.0]])
    known = np.eye(2)[[1, 0, 0, 1, 1]]
    row, r = groups.rows(split(x, UNWEIGHTED, known, most_kinds=most_kinds), p, 5)
    assert_array_equal(r, known)
    assert np.isfinite(row).all()
    found = table(split(x, UNWEIGHTED, known, most_kinds=most_kinds), p, accumulate)
    assert_array_equal(found.mean_count, [2.0, 3.0])


# Fits


def test_responsibilities_of_labelled_rows_are_zero_or_one():
    labels = some_labels(np.random.default_rng(3), species)
    labels[[60, 120]] = [2, 1]  # two that look like the other species
    found = fit(THREE, IRIS, labels=labels, keep_responsibilities=True)
    r = found["responsibilities"]["responsibility"].to_numpy()
    known = labels >= 0
    assert_array_equal(r[known], np.eye(3)[labels[known]])
    assert_allclose(r.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("as_probabilities", [False, True])
@pytest.mark.parametrize("letters", ["VVV", "EEE", "VVI", "EEI"])
def test_if_all_labels_are_known_it_is_discriminant_analysis(letters, as_probabilities):
    """Closed form: class shares, class means, class or pooled scatters."""
    labels = np.eye(3)[species] if as_probabilities else species
    weight = 1.0 + np.arange(150) % 3
    found = fit(bg.GaussianMixture(3, letters), IRIS, labels=labels, sample_weight=weight)
    p, x = tree.point(found), IRIS.to_numpy()
    share = np.array([weight[species == j].sum() for j in range(3)]) / weight.sum()
    mean = np.array(
        [np.average(x[species == j], axis=0, weights=weight[species == j]) for j in range(3)]
    )
    own = np.array(
        [np.cov(x[species == j].T, aweights=weight[species == j], ddof=0) for j in range(3)]
    )
    covariance = np.broadcast_to(share @ own.reshape(3, -1), (3, 16)).reshape(3, 4, 4)
    covariance = own if letters[0] == "V" else covariance
    covariance = covariance * np.eye(4) if letters[2] == "I" else covariance
    assert_allclose(p.weight, share, rtol=1e-12)
    assert_allclose(p.mean, mean, rtol=1e-12)
    assert_allclose(p.covariance, covariance, rtol=1e-9, atol=1e-12)
    expected = log_joint(x, Parameters(share, mean, covariance), np.ones((150, 3)))
    loglik = weight @ expected[np.arange(150), species]
    assert_allclose(found["criteria"]["loglik"], loglik, rtol=1e-10)
    # Errors of a multinomial's shares and of means of normal samples.
    se = found["standard_error"]
    assert_allclose(se["weight"], np.sqrt(share * (1 - share) / weight.sum()), rtol=1e-6)
    variance = np.diagonal(covariance, axis1=1, axis2=2) / (share * weight.sum())[:, None]
    assert_allclose(se["mean"], np.sqrt(variance), rtol=1e-6)


UNKNOWN = {
    "none": None,
    "minus one": np.full(150, -1),
    "None": [None] * 150,
    "NaN": np.full(150, np.nan),
    "NA": pd.array([pd.NA] * 150, dtype="Int64"),
    "rows of NaN": np.full((150, 3), np.nan),
    "equal": np.full((150, 3), 1 / 3),
}


@pytest.mark.parametrize("labels", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_labels_are_no_labels_to_the_bit(labels):
    plain = fit(THREE, IRIS)
    found = fit(THREE, IRIS, labels=labels)
    assert_array_equal(values(found), values(plain))
    assert found.attrs["fingerprint"] == plain.attrs["fingerprint"]


def test_every_spelling_of_labels_is_read_alike():
    rng = np.random.default_rng(4)
    labels = some_labels(rng, species)
    as_float = np.where(labels < 0, np.nan, labels)
    as_rows = np.where((labels < 0)[:, None], np.nan, np.eye(3)[labels])
    spellings = [
        labels.astype(np.int8),
        labels.tolist(),
        as_float,
        [None if v < 0 else int(v) for v in labels],
        pd.Series(labels).replace(-1, pd.NA).astype("Int64"),
        pd.array(as_float, dtype="Float64"),
        as_rows,
        pd.DataFrame(as_rows),
        np.where(np.isnan(as_rows), 1 / 3, as_rows),
    ]
    first = read_labels(labels, 3, IRIS.index)
    assert first.shape == (150, 3)
    for spelling in spellings:
        assert_array_equal(read_labels(spelling, 3, IRIS.index), first)


def test_components_have_the_order_of_the_labels():
    labels = some_labels(np.random.default_rng(5), species, 0.2)
    one = fit(THREE, IRIS, labels=labels)
    order = np.array([2, 0, 1])
    named = np.where(labels < 0, -1, order[labels])
    two = fit(THREE, IRIS, labels=named)
    p, q = tree.point(one), tree.point(two)
    assert_allclose(q.mean[order], p.mean, rtol=1e-4)
    assert_allclose(q.covariance[order], p.covariance, rtol=1e-2, atol=1e-4)
    assert_allclose(p.mean, [IRIS[species == j].mean() for j in range(3)], atol=0.25)
    assert_allclose(one["criteria"]["loglik"], two["criteria"]["loglik"], rtol=1e-8)


def test_one_label_of_each_names_the_components():
    """The fit is nearly that without labels, whose components have the order of their means."""
    x = registry.table("faithful")
    labels = np.full(len(x), -1)
    labels[[0, 1]] = [0, 1]  # a long and a short eruption
    found, plain = (fit(bg.GaussianMixture(2), x, labels=known) for known in (labels, None))
    assert_allclose(tree.point(found).mean, tree.point(plain).mean[::-1], rtol=1e-3)


def test_labels_guide_where_the_data_do_not():
    """Two normals with the same mean and hardly different spread, told apart by labels."""
    rng = np.random.default_rng(6)
    truth = rng.integers(2, size=400)
    x = rng.normal(size=400) * np.where(truth, 2.0, 1.0)
    found = fit(bg.GaussianMixture(2, "V"), x, labels=some_labels(rng, truth, 0.7))
    sd = np.sqrt(tree.point(found).covariance.ravel())
    assert_allclose(sd, [1.0, 2.0], rtol=0.15)
    assert found["starts"]["method"].to_numpy()[0] == "known labels"


def test_a_component_without_labels_is_found():
    labels = np.where(species == 0, 0, -1)
    found = fit(THREE, IRIS, labels=labels)
    assert_allclose(tree.point(found).mean[0], IRIS[:50].mean(), atol=1e-6)
    assert "known labels" not in found["starts"]["method"].to_numpy()
    assert found["criteria"]["loglik"].item() == pytest.approx(-180.1857, abs=0.1)


def test_a_set_of_labels_is_the_probability_of_the_set():
    """Rows that are of one of two species: the third has responsibility 0."""
    known = np.full((150, 3), 1 / 3)
    known[50:] = [0.0, 0.5, 0.5]
    found = fit(THREE, IRIS, labels=known, keep_responsibilities=True)
    assert_array_equal(found["responsibilities"]["responsibility"][50:, 0], 0.0)
    p = tree.point(found)
    expected = logsumexp(log_joint(IRIS.to_numpy(), p, known), axis=1).sum()
    assert_allclose(found["criteria"]["loglik"], expected, rtol=1e-11)


def test_probabilities_count_up_to_a_factor_and_zero_and_one_are_labels():
    rng = np.random.default_rng(7)
    labels = some_labels(rng, species)
    rows = np.where((labels < 0)[:, None], np.nan, np.eye(3)[labels])
    one, two = fit(THREE, IRIS, labels=labels), fit(THREE, IRIS, labels=rows)
    assert_array_equal(values(one), values(two))
    assert one.attrs["fingerprint"] == two.attrs["fingerprint"]


def test_wrong_probabilities_pull_less_than_wrong_labels():
    rng = np.random.default_rng(8)
    wrong = np.where(rng.random(150) < 0.2, 1, species)
    soft = 0.8 * np.eye(3)[wrong] + 0.2 / 3
    error = [
        np.abs(tree.point(fit(THREE, IRIS, labels=labels)).mean[1] - IRIS[50:100].mean()).max()
        for labels in (wrong, soft)
    ]
    assert error[1] < 0.5 * error[0]


# The likelihood and its derivatives


def problem(seed, family, k=2, d=2, n=120):
    rng = np.random.default_rng(seed)
    truth = registry.mixture(rng, family, k, d, 2.0)
    z = rng.choice(k, size=n, p=truth.weight)
    x = truth.mean[z] + np.einsum("nij,nj->ni", truth.factor[z], rng.normal(size=(n, d)))
    return rng, x, z


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    family=st.sampled_from(registry.EVERY),
    kind=st.sampled_from(["hard", "soft"]),
    is_incomplete=st.booleans(),
)
def test_the_log_likelihood_never_falls(seed, family, kind, is_incomplete):
    rng, x, z = problem(seed, family)
    known = np.where((rng.random(120) < 0.3)[:, None], np.eye(2)[z], 0.5)
    if kind == "soft":
        known = some_probabilities(rng, 120, 2)
    if is_incomplete:
        x[rng.random(120) < 0.3, 1] = np.nan
    data = quiet(read, x, family=family, n_components=2, labels=known, missing="marginalise")
    labels = rng.integers(2, size=120)
    assume(np.bincount(labels).min() > 10)
    start = Start("labels", from_labels(data, family, labels, 2))
    found = run(data, family, start, max_iter=200)
    assert np.isfinite(found.trace).all()
    rounding = 1e-14 * np.linalg.cond(found.parameters.covariance).max()
    assert (np.diff(found.trace) >= -1e-12 * np.abs(found.trace[1:]) - rounding).all()


@pytest.mark.parametrize("kind", ["hard", "soft", "incomplete"])
@every_family
def test_where_em_stops_the_gradient_is_zero_and_information_is_the_hessian(family, kind):
    """In the family's own coordinates; one derivative by a complex step, one by a difference."""
    rng, x, z = problem(9, family, n=150)
    known = np.where((rng.random(150) < 0.3)[:, None], np.eye(2)[z], 0.5)
    if kind == "soft":
        known = some_probabilities(rng, 150, 2, kinds=6)
    if kind == "incomplete":
        x[rng.random(150) < 0.3, 1] = np.nan
    data = quiet(read, x, family=family, n_components=2, labels=known, missing="marginalise")
    start = Start("labels", from_labels(data, family, known.argmax(axis=1), 2))
    found = run(data, family, start, tol=1e-9, max_iter=50_000)
    assert found.reason in ("converged", "fixed point")
    theta, at = registry.coordinates(family, found.parameters)
    h, unit = 1e-5, np.eye(len(theta))

    alike = pd.DataFrame(np.column_stack([np.isnan(data.x), known])).groupby([0, 1, 2, 3]).groups
    assert len(alike) > 2

    def objective(numbers):
        weight, mean, covariance = at(numbers)
        total = 0.0
        for rows in alike.values():
            o, chance = ~np.isnan(data.x[rows[0]]), known[rows[0]]
            can = chance > 0
            log_weight = np.log(weight[can] * chance[can] / chance.max())
            one = (log_weight, mean[can][:, o], covariance[can][:, o][:, :, o])
            total = total + registry.complex_loglik(data.x[rows][:, o], *one).sum()
        return total

    def slope(numbers):
        return np.array([objective(numbers + 1e-30j * e).imag / 1e-30 for e in unit])

    assert_allclose(objective(theta).real, found.objective, rtol=1e-11)
    assert_allclose(slope(theta), 0.0, atol=1e-4)
    hessian = np.array([slope(theta + h * e) - slope(theta - h * e) for e in unit]) / (2 * h)
    natural = np.array(
        [np.concatenate([v.ravel() for v in at(theta + 1e-30j * e)]).imag / 1e-30 for e in unit]
    )
    inverse = np.linalg.inv(-0.5 * (hessian + hessian.T))
    expected = np.sqrt(np.einsum("pi,pq,qi->i", natural, inverse, natural).clip(0.0))
    arguments = (data.x, found.parameters, found.moments, family, data.weight, data.probability)
    se = observed_information(*arguments).standard_errors()
    ours = np.concatenate([se.weight.ravel(), se.mean.ravel(), se.covariance.ravel()])
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_hard_assignment_keeps_labels_and_maximises_the_classification_likelihood():
    labels = some_labels(np.random.default_rng(10), species)
    found = fit(THREE, IRIS, labels=labels, assignment="hard")
    p = tree.point(found)
    known = np.where((labels < 0)[:, None], 1.0, np.eye(3)[labels])
    joint = log_joint(IRIS.to_numpy(), p, known)
    assert_allclose(found["sample_stats"]["lp"], joint.max(axis=1).sum(), rtol=1e-10)
    assert (joint.argmax(axis=1)[labels >= 0] == labels[labels >= 0]).all()
    sums = table(split(IRIS.to_numpy(), UNWEIGHTED, known), p, assigned)
    assert_array_equal(sums.mean_count, np.bincount(joint.argmax(axis=1)))


def test_hard_assignment_of_very_many_kinds_of_rows_is_refused():
    known = np.random.default_rng(1).dirichlet([2.0, 2.0, 2.0], size=150)
    with pytest.raises(errors.NotYetSupportedError, match="labels: have more than 100"):
        fit(THREE, IRIS, labels=known, assignment="hard")
    assert np.isfinite(values(fit(THREE, IRIS, labels=known, n_starts=2))).all()


@pytest.mark.parametrize("is_incomplete", [False, True])
@pytest.mark.parametrize("kinds", [None, 10])
def test_weights_are_repeated_rows(kinds, is_incomplete):
    """The whole search; and what is known of a row holds exactly in either."""
    rng = np.random.default_rng(11)
    weight = rng.integers(0, 3, 150)
    known = some_probabilities(rng, 150, 3, kinds=kinds)
    known = known[rng.integers(len(known), size=150)]
    x = IRIS.to_numpy(copy=True)
    if is_incomplete:
        x[rng.random(x.shape) < 0.1] = np.nan
    options = {"missing": "marginalise", "keep_responsibilities": True}
    one = fit(THREE, x, labels=known, sample_weight=weight, **options)
    times = (np.repeat(a, weight, axis=0) for a in (x, known))
    two = fit(THREE, next(times), labels=next(times), **options)
    assert_allclose(values(one), values(two), rtol=1e-10)
    for name in ("weight", "mean", "covariance"):
        assert_allclose(one["standard_error"][name], two["standard_error"][name], rtol=1e-9)
    r = one["responsibilities"]["responsibility"].to_numpy()
    assert_array_equal(r[known == 0], 0.0)
    assert_array_equal(r[known == 1], 1.0)


def test_labels_and_missing_values_go_together():
    rng = np.random.default_rng(12)
    x = IRIS.to_numpy(copy=True)
    x[rng.random(x.shape) < 0.15] = np.nan
    x[7] = np.nan  # all that is known of it is its label
    labels = some_labels(rng, species, 0.5)
    labels[7] = 0
    found = fit(THREE, x, labels=labels, missing="marginalise", keep_responsibilities=True)
    p = tree.point(found)
    assert found["constant_data"]["sample_weight"][7] == 1.0
    assert_allclose(found["log_likelihood"]["x"][0, 0, 7], np.log(p.weight[0]), rtol=1e-12)
    r = found["responsibilities"]["responsibility"].to_numpy()
    assert_array_equal(r[labels >= 0], np.eye(3)[labels[labels >= 0]])
    kept = ~np.isnan(x).any(axis=1)
    dropped = fit(THREE, x, labels=labels, missing="drop")
    assert_array_equal(values(dropped), values(fit(THREE, x[kept], labels=labels[kept])))


def test_map_estimates_with_labels():
    labels = some_labels(np.random.default_rng(13), species)
    found = fit(THREE, IRIS, labels=labels, estimate="map")
    assert found.attrs["stop_reason"] in ("converged", "fixed point")
    assert_allclose(tree.point(found).mean, [IRIS[species == j].mean() for j in range(3)], atol=0.3)


def test_fixed_parameters_and_labels():
    labels = some_labels(np.random.default_rng(14), species)
    found = fit(THREE, IRIS, labels=labels, fixed={"weight": "equal"})
    assert_allclose(tree.point(found).weight, 1 / 3, rtol=1e-12)


def test_the_fit_keeps_what_was_known(tmp_path):
    rng = np.random.default_rng(15)
    known = some_probabilities(rng, 150, 3)
    found = fit(THREE, IRIS, labels=known)
    again = tree.load(tree.save(found, tmp_path / "fit.nc"))
    assert_array_equal(again["constant_data"]["label_probability"], known)
    data = quiet(read, IRIS, labels=known, n_components=3)
    assert data.fingerprint == found.attrs["fingerprint"]
    assert data.fingerprint != quiet(read, IRIS, n_components=3).fingerprint


def test_a_posterior_around_a_labelled_fit_is_refused():
    found = fit(THREE, IRIS, labels=some_labels(np.random.default_rng(16), species))
    with pytest.raises(errors.ArgumentError, match="other data"):
        bg.sample_posterior(THREE, IRIS, mle=found, draws=10, tune=10)


# What is refused


def short(n):
    return np.zeros(n, dtype=int)


BAD = {
    "too short": (short(149), r"shape \(149,\).*150 rows"),
    "too many columns": (np.full((150, 2), 0.5), r"shape \(150, 2\).*\(150, 3\)"),
    "out of range": (np.r_[short(149), 3], r"integers from 0 to 2.*row 149 has 3"),
    "negative": (np.r_[short(149), -2], r"row 149 has -2"),
    "a fraction": (np.r_[short(149), 0.5], r"row 149 has 0\.5"),
    "infinite": (np.r_[short(149), np.inf], "row 149 has inf"),
    "text": (["setosa"] * 150, r"hold text \(first in row 0\).*factorize"),
    "categories": (pd.Series(["a"] * 150, dtype="category"), r"hold categories"),
    "booleans": (np.zeros(150, dtype=bool), "hold booleans"),
    "does not sum": (np.tile([0.5, 0.5, 0.1], (150, 1)), "row 0 does not sum to one"),
    "negative probability": (np.tile([1.2, -0.2, 0.0], (150, 1)), "row 0 has a negative prob"),
    "NaN beside numbers": (np.tile([1.0, np.nan, 0.0], (150, 1)), "row 0 has NaN beside numbers"),
    "infinite probability": (np.tile([np.inf, 0.0, 0.0], (150, 1)), "row 0 does not sum to one"),
    "impossible": (np.tile([0.5, 0.5, 0.0], (150, 1)), "no row can be of component 2"),
    "unused": (short(150), "no row can be of component 1"),
    "ragged": ([[0.1], [0.2, 0.3]], "shape"),
}


@pytest.mark.parametrize(("labels", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(errors.ArgumentError, match=rf"(?s)^labels: .*{message}"):
        bg.fit_em(THREE, IRIS, labels=labels)


def test_labels_of_other_rows_are_refused():
    x = IRIS.set_axis([f"r{i}" for i in range(150)])
    labels = pd.Series(species, index=x.index)
    with pytest.raises(errors.ArgumentError, match="labels: their row labels"):
        bg.fit_em(THREE, x, labels=labels[::-1])
    assert_array_equal(read_labels(labels, 3, x.index), np.eye(3)[species])


def test_impossible_is_only_what_no_row_of_positive_weight_can_be():
    labels = np.where(np.arange(150) == 149, -1, species % 2)
    weight = np.r_[np.ones(149), 0.0]
    with pytest.raises(errors.ArgumentError, match="component 2"):
        bg.fit_em(THREE, IRIS, labels=labels, sample_weight=weight)


def test_one_component_needs_no_labels():
    one = bg.GaussianMixture(1)
    assert_array_equal(values(fit(one, IRIS, labels=short(150))), values(fit(one, IRIS)))


def test_rows_keep_what_is_known_of_them():
    known = some_probabilities(np.random.default_rng(17), 150, 3)
    data: Data = quiet(read, IRIS, labels=known, n_components=3)
    part = data.rows(np.arange(0, 150, 7))
    assert_array_equal(part.probability, known[::7])
    other = data.with_weight(np.arange(150.0))
    assert_array_equal(other.probability, known)
