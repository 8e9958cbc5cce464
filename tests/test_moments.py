"""Sums: T(A) + T(B) = T(A and B), in any order, blocks and threads; and what they are used for."""

from __future__ import annotations

import resource
import sys
import tracemalloc

import numpy as np
import pytest
import registry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.mixture import GaussianMixture as Peer

from bayesgmm.covariance import Covariance
from bayesgmm.moments import (
    UNWEIGHTED,
    Moments,
    Parameters,
    accumulate,
    accumulate_plain,
    from_responsibilities,
    gradient,
    log_density,
    responsibilities,
    scatter,
)
from bayesgmm.numeric import kernel

FULL = Covariance("VVV")
SIZES = [(1, 1), (1, 4), (2, 1), (2, 2), (3, 5), (9, 3), (4, 20)]  # (k, d)
by_size = pytest.mark.parametrize(("k", "d"), SIZES)
seeds = st.integers(0, 2**32 - 1)


def problem(k: int, d: int, n: int = 500, seed: int = 0, family: Covariance = FULL):
    rng = np.random.default_rng([seed, k, d])
    parameters = registry.mixture(rng, family, k, d)
    return rng, np.ascontiguousarray(registry.simulate(rng, parameters, n)), parameters


def assert_same(a: Moments, b: Moments, rtol: float = 1e-12) -> None:
    """Equal sums, relative to the sizes of their terms."""
    assert_allclose(a.loglik, b.loglik, rtol=rtol)
    assert_allclose(a.weight_count, b.weight_count, rtol=rtol, atol=rtol)
    assert_allclose(a.mean_count, b.mean_count, rtol=rtol, atol=rtol)
    assert_allclose(a.covariance_count, b.covariance_count, rtol=rtol, atol=rtol)
    size = np.sqrt(1.0 + np.trace(a.second, axis1=1, axis2=2) * a.mean_count)
    assert_allclose(a.first / size[:, None], b.first / size[:, None], rtol=0, atol=10 * rtol)
    size = 1.0 + np.trace(a.second, axis1=1, axis2=2)[:, None, None]
    assert_allclose(a.second / size, b.second / size, rtol=0, atol=10 * rtol)


def assert_bits(a: Moments, b: Moments) -> None:
    assert a.loglik == b.loglik
    for name in ("weight_count", "mean_count", "covariance_count", "first", "second"):
        assert_array_equal(getattr(a, name), getattr(b, name))


# The definition


@by_size
@pytest.mark.parametrize("n", [1, 63, 64, 257, 1000])
def test_the_kernel_computes_the_definition(k, d, n):
    rng, x, parameters = problem(k, d, n)
    weight = rng.integers(0, 4, size=n) * rng.uniform(0.5, 1.5, size=n)
    assert_same(accumulate(x, parameters), accumulate_plain(x, parameters))
    assert_same(accumulate(x, parameters, weight), accumulate_plain(x, parameters, weight))


@pytest.mark.parametrize("letters", ["EII", "VVI"])
@by_size
def test_diagonal_covariances_give_the_diagonal_of_the_same_sums(letters, k, d):
    _, x, parameters = problem(k, d, family=Covariance(letters))
    full, short = accumulate(x, parameters), accumulate(x, parameters, diagonal=True)
    assert_allclose(short.loglik, full.loglik, rtol=1e-13)
    assert_allclose(short.first, full.first, rtol=1e-9, atol=1e-9)
    assert_allclose(short.second, full.second * np.eye(d), rtol=1e-12, atol=1e-12)


@by_size
def test_the_log_likelihood_is_scipys(k, d):
    rng, x, parameters = problem(k, d)
    weight = rng.uniform(0, 3, size=len(x))
    plain, weighted = accumulate(x, parameters), accumulate(x, parameters, weight)
    assert_allclose(plain.loglik, registry.loglik(x, parameters), rtol=1e-12)
    assert_allclose(weighted.loglik, registry.loglik(x, parameters, weight), rtol=1e-12)
    assert_allclose(log_density(x, parameters).sum(), plain.loglik, rtol=1e-12)


@by_size
def test_densities_and_responsibilities_are_those_of_scikit_learn(k, d):
    _, x, parameters = problem(k, d)
    peer = Peer(k, covariance_type="full")
    peer.weights_, peer.means_ = parameters.weight, parameters.mean
    peer.covariances_ = parameters.covariance
    precision = np.linalg.inv(parameters.covariance)
    peer.precisions_cholesky_ = np.linalg.cholesky(precision)
    assert_allclose(log_density(x, parameters), peer.score_samples(x), rtol=1e-10)
    assert_allclose(responsibilities(x, parameters), peer.predict_proba(x), rtol=0, atol=1e-10)


# Addition


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    k=st.integers(1, 5),
    d=st.integers(1, 6),
    n=st.integers(2, 700),
    share=st.floats(0, 1),
)
def test_tables_of_parts_add_up(seed, k, d, n, share):
    _, x, parameters = problem(k, d, n, seed)
    cut = min(max(int(share * n), 1), n - 1)
    parts = accumulate(x[:cut].copy(), parameters) + accumulate(x[cut:].copy(), parameters)
    assert_same(parts, accumulate(x, parameters))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, k=st.integers(1, 5), d=st.integers(1, 6), n=st.integers(1, 700))
def test_rows_have_no_order(seed, k, d, n):
    rng, x, parameters = problem(k, d, n, seed)
    assert_same(accumulate(x[rng.permutation(n)], parameters), accumulate(x, parameters))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, k=st.integers(1, 4), d=st.integers(1, 4), n=st.integers(1, 400))
def test_weight_two_is_the_row_twice_and_weight_zero_the_row_absent(seed, k, d, n):
    rng, x, parameters = problem(k, d, n, seed)
    weight = rng.integers(0, 3, size=n)
    weight[0] = 2
    weighted = accumulate(x, parameters, weight.astype(float))
    assert_same(weighted, accumulate(np.repeat(x, weight, axis=0), parameters))
    kept = weighted.weight_count
    x[weight == 0] = 1e6  # whatever stands in a row that is absent
    assert_same(accumulate(x, parameters, weight.astype(float)), weighted)
    assert_allclose(kept.sum(), weight.sum(), rtol=1e-12)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_threads_and_chunks(is_weighted, monkeypatch):
    rng, x, parameters = problem(3, 2, 3 * kernel.CHUNK + 1001)
    weight = rng.uniform(0, 2, size=len(x)) if is_weighted else UNWEIGHTED
    one = accumulate(x, parameters, weight, threads=1)
    for threads in (2, 3, 7, None):
        assert_bits(accumulate(x, parameters, weight, threads=threads), one)
    arguments = (parameters.log_weight, parameters.mean, parameters.whitening)
    assert_bits(Moments.of_data(*kernel.accumulate_all(x, weight, False, *arguments)), one)
    assert_same(one, accumulate_plain(x, parameters, weight), rtol=1e-11)
    for chunk in (1000, 4097, 10**7):
        monkeypatch.setattr(kernel, "CHUNK", chunk)
        assert_same(accumulate(x, parameters, weight), one, rtol=1e-11)


def test_memory_does_not_grow_with_the_observations():
    """k = 60, d = 2: one (n, k) table of 4e5 observations would take 190 MB."""
    rng = np.random.default_rng(2)
    parameters = registry.mixture(rng, FULL, 60, 2)
    peaks = []
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in (100_000, 400_000):
        x = rng.normal(size=(n, 2))
        accumulate(x[:70_000], parameters)
        tracemalloc.start()
        accumulate(x, parameters)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # the tables of a few more chunks, while they wait
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - highest) * unit
    assert grown < 60e6  # Numba's own allocations, and the 6.4 MB of data, are in here


def test_arguments_of_any_layout_give_the_same_bits():
    _, x, parameters = problem(3, 4)
    one = accumulate(x, parameters)
    assert_bits(accumulate(np.asfortranarray(x), parameters), one)
    assert_bits(accumulate(np.repeat(x, 2, axis=0)[::2], parameters), one)


# The uses


@pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_fishers_identity_is_the_gradient(k, d):
    _, x, parameters = problem(k, d, 120)
    x = x + 0.3  # not at a maximum
    by_weight, by_mean, by_covariance = gradient(accumulate(x, parameters), parameters)
    blocks = (parameters.log_weight, parameters.mean, parameters.covariance)
    h = 1e-30
    for position, ours in enumerate((by_weight, by_mean, by_covariance)):
        theirs = np.empty_like(ours)
        for index in np.ndindex(ours.shape):
            moved = [np.array(b, dtype=complex) for b in blocks]
            moved[position][index] += 1j * h
            theirs[index] = registry.complex_loglik(x, *moved).sum().imag / h
        assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10 * np.abs(theirs).max())


@pytest.mark.parametrize(("k", "d"), [(2, 1), (2, 3), (3, 2)])
def test_the_gradient_is_the_finite_difference_of_scipys_log_likelihood(k, d):
    _, x, parameters = problem(k, d, 120, seed=1)
    x = x + 0.3
    rng = np.random.default_rng(0)
    slopes = gradient(accumulate(x, parameters), parameters)
    for _ in range(5):
        da, dm = rng.normal(size=k), rng.normal(size=(k, d))
        ds = 0.1 * rng.normal(size=(k, d, d))
        ds = ds + np.swapaxes(ds, 1, 2)

        def at(t, da=da, dm=dm, ds=ds):
            weight = parameters.weight * np.exp(t * da)  # free: they need not sum to one
            return registry.loglik(
                x, Parameters(weight, parameters.mean + t * dm, parameters.covariance + t * ds)
            )

        h = 2e-3  # a stencil of order 6
        points = [at(j * h) - at(-j * h) for j in (1, 2, 3)]
        theirs = (45 * points[0] - 9 * points[1] + points[2]) / (60 * h)
        ours = sum((s * v).sum() for s, v in zip(slopes, (da, dm, ds), strict=True))
        assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8 * np.abs(slopes[1]).max())


@by_size
def test_scatter_gives_weighted_means_and_covariances_about_any_parameters(k, d):
    rng, x, parameters = problem(k, d)
    r = rng.dirichlet(np.ones(k), size=len(x))
    weight = rng.uniform(0, 2, size=len(x))
    moments = from_responsibilities(x, r, parameters, weight)
    mean, spread = scatter(moments, parameters)
    for j in range(k):
        w = r[:, j] * weight
        assert_allclose(moments.weight_count[j], w.sum(), rtol=1e-12)
        assert_allclose(mean[j], w @ x / w.sum(), rtol=1e-10, atol=1e-12)
        covariance = np.cov(x, rowvar=False, aweights=w, ddof=0) * w.sum()
        assert_allclose(spread[j], covariance, rtol=1e-9, atol=1e-11 * np.abs(covariance).max())
    assert_array_equal(spread, np.swapaxes(spread, 1, 2))


def test_the_table_of_responsibilities_is_the_table_about_the_parameters_that_gave_them():
    _, x, parameters = problem(3, 2)
    soft = from_responsibilities(x, responsibilities(x, parameters), parameters)
    table = accumulate(x, parameters)
    assert_allclose(soft.first, table.first, rtol=1e-10, atol=1e-10)
    assert_allclose(soft.second, table.second, rtol=1e-12, atol=1e-12)
    assert np.isnan(soft.loglik)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
def test_sums_about_the_parameters_do_not_cancel_at_an_offset(offset):
    _, x, parameters = problem(2, 2)
    moved = Parameters(parameters.weight, parameters.mean + offset, parameters.covariance)
    # The numbers that x + offset still holds
    kept = (x + offset) - offset
    kept_mean = (parameters.mean + offset) - offset
    there = accumulate(x + offset, moved)
    here = accumulate(kept, Parameters(parameters.weight, kept_mean, parameters.covariance))
    assert_same(there, here, rtol=1e-12)


# Far away


@settings(deadline=None, max_examples=100)
@given(
    seed=seeds,
    k=st.integers(1, 4),
    d=st.integers(1, 3),
    exponent=st.floats(0, 300),
    sd=st.floats(-8, 8),
)
def test_far_points_have_finite_responsibilities(seed, k, d, exponent, sd):
    rng, _, parameters = problem(k, d, seed=seed)
    unit = 10.0**sd
    parameters = Parameters(
        parameters.weight, unit * parameters.mean, unit**2 * parameters.covariance
    )
    x = rng.choice([-1.0, 1.0], size=(20, d)) * 10.0**exponent
    r = responsibilities(x, parameters)
    assert np.isfinite(r).all()
    assert (r >= 0).all()
    assert_allclose(r.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert (log_density(x, parameters) < np.inf).all()  # -inf beyond the range of doubles


def test_far_points_go_to_the_component_that_is_nearest_in_its_own_units():
    wide, narrow = np.eye(2) * 100.0, np.eye(2)
    parameters = Parameters(
        np.array([0.01, 0.99]), np.array([[-5.0, 0.0], [5.0, 0.0]]), np.stack([wide, narrow])
    )
    for far in (1e3, 1e100, 1e154, 1e200, 1e300):
        r = responsibilities(np.array([[far, far], [far, -far]]), parameters)
        assert_array_equal(r, [[1.0, 0.0], [1.0, 0.0]])


def test_components_without_weight_take_no_part():
    _, x, parameters = problem(3, 2)
    less = parameters.take([0, 1])
    some = Parameters(np.array([0.3, 0.7, 0.0]), parameters.mean, parameters.covariance)
    less = Parameters(np.array([0.3, 0.7]), less.mean, less.covariance)
    assert_allclose(log_density(x, some), log_density(x, less), rtol=1e-14)
    r = responsibilities(x, some)
    assert_array_equal(r[:, 2], 0.0)
    assert_allclose(r[:, :2], responsibilities(x, less), rtol=1e-13, atol=1e-300)
    table = accumulate(x, some)
    assert table.weight_count[2] == 0.0
    assert_allclose(table.loglik, accumulate(x, less).loglik, rtol=1e-13)
    assert np.isfinite(responsibilities(np.full((1, 2), 1e300), some)).all()


def test_sums_are_finite_as_far_out_as_data_are_let_in():
    """`read` refuses rows beyond 1e100 sds; the rest is summed without overflow or NaN."""
    _, x, parameters = problem(2, 2, 200)
    x[7] = 1e100
    x[8] = -1e60
    for weight in (UNWEIGHTED, np.ones(len(x))):
        table = accumulate(x, parameters, weight)
        assert np.isfinite(table.loglik)
        assert_allclose(table.weight_count.sum(), len(x), rtol=1e-12)
        assert np.isfinite(table.first).all()
        assert np.isfinite(table.second).all()
