"""Families: the M-step is the maximum of Q on the family, and its letters say what is equal."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import registry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.stats import ortho_group

from bayesgmm.covariance import ALIASES, FAMILIES, Covariance, maximise, objective, shared_axes
from bayesgmm.errors import ArgumentError

CASES = [(family, d) for family in registry.EVERY for d in (1, 2, 3, 5)] + [
    (family, 1) for family in registry.ONE_D
]
ids = str
by_family = pytest.mark.parametrize(("family", "d"), CASES, ids=ids)
by_scatter = pytest.mark.parametrize("kind", registry.SCATTERS)


def rng_for(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(tuple(map(str, key))).encode()))


COMPONENTS = {1: (1, 2, 3, 4), 2: (1, 2, 3, 4), 3: (2, 4), 5: (1, 3)}


def scatters(kind: str, d: int, *key: object):
    """A few (rng, count, scatter), with one to four components."""
    rng = rng_for(kind, d, *key)
    for k in COMPONENTS[d]:
        yield rng, *registry.SCATTERS[kind](rng, k, d)


def condition(scatter: np.ndarray) -> float:
    value = np.linalg.eigvalsh(scatter)
    return float((value[:, -1] / value[:, 0]).max())


def exact(family: Covariance) -> bool:
    """Whether the M-step is one formula; the others end where Q no longer rises."""
    return family.letters[:2] != "VE" and family not in registry.COMMON_AXES


# What a family is


def test_every_name_and_alias_is_known_and_no_other():
    assert len(FAMILIES) == len(set(FAMILIES)) == 14
    for alias, letters in ALIASES.items():
        assert Covariance(alias) == Covariance(letters) == Covariance(letters.lower())
        assert Covariance(alias.replace("-", "_").upper()).letters == letters
    for wrong in ("VIV", "", "VV", "EIE", "ellipsoidal", None, 3, ["V", "V", "V"]):
        with pytest.raises(ArgumentError, match=r"covariance: .* is not a covariance family"):
            Covariance(wrong)


@by_family
@by_scatter
def test_the_result_is_a_member_of_the_family(family, d, kind):
    for _, count, scatter in scatters(kind, d, family):
        result = maximise(family, count, scatter)
        # Volumes, shapes and axes that the letters call equal are taken from one component.
        phi, base = registry.decompose(family, result)
        again = registry.compose(family, len(count), d, phi, base)
        size = np.trace(result, axis1=1, axis2=2)[:, None, None]
        assert_allclose(again / size, result / size, rtol=0, atol=1e-9)
        assert_array_equal(result, np.swapaxes(result, 1, 2))


@pytest.mark.parametrize("family", registry.EVERY, ids=ids)
@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_count_is_the_dimension_of_the_family(family, d, k):
    """The rank of the map from free numbers to covariances, at a generic point."""
    rng = np.random.default_rng(5)
    phi = rng.normal(size=sum(registry.sizes(family, k, d)))
    assert family.n_parameters(k, d) == len(phi)
    step = 1e-6 * np.eye(len(phi))
    moved = [
        registry.compose(family, k, d, phi + e) - registry.compose(family, k, d, phi - e)
        for e in step
    ]
    assert np.linalg.matrix_rank(np.reshape(moved, (len(phi), -1)), rtol=1e-5) == len(phi)


# Q


@by_family
@by_scatter
def test_no_member_of_the_family_has_a_larger_objective(family, d, kind):
    for rng, count, scatter in scatters(kind, d, family):
        k = len(count)
        result = maximise(family, count, scatter)
        best = objective(count, scatter, result)
        phi, base = registry.decompose(family, result)
        for step in (1e-3, 1e-2, 0.1):
            for _ in range(5):
                other = registry.compose(family, k, d, phi + step * rng.normal(size=len(phi)), base)
                assert objective(count, scatter, other) <= best + 1e-10 * abs(best)


@by_family
@by_scatter
def test_the_result_is_a_stationary_point(family, d, kind):
    for _, count, scatter in scatters(kind, d, family):
        k = len(count)
        phi, base = registry.decompose(family, maximise(family, count, scatter))

        def q(numbers, k=k, base=base, count=count, scatter=scatter):
            return objective(count, scatter, registry.compose(family, k, d, numbers, base))

        h = 1e-4
        slope = [(q(phi + h * e) - q(phi - h * e)) / (2 * h) for e in np.eye(len(phi))]
        curve = [(q(phi + h * e) + q(phi - h * e) - 2 * q(phi)) / h**2 for e in np.eye(len(phi))]
        # Slope over the root of the curvature is the distance to the maximum in standard errors
        # of complete data. The rounding of Q, which grows with the condition, is all else.
        n = count.sum() * d
        noise = 1e-15 * (abs(q(phi)) + n * condition(scatter)) / h
        assert (np.abs(slope) < 1e-5 * np.sqrt(np.abs(curve) + n) + noise).all()


def free_objective(family, d, count, scatter, *, units):
    """Minus Q of the family's own numbers, without a matrix to invert; volumes about ``units``."""
    k = len(count)
    n_volume = registry.sizes(family, k, d)[0]

    def q(numbers):
        log_volume, log_shape, axes = registry.spectra(family, k, d, numbers)
        log_volume = log_volume + (units.mean() if n_volume == 1 else units)
        along = np.einsum("kia,kij,kja->ka", axes, scatter, axes)
        trace = (along * np.exp(-log_volume[:, None] - log_shape)).sum()
        return 0.5 * (d * count @ log_volume + trace)

    return q


# Three dimensions only where the M-step is iterative: the others are compared with their formulas.
@pytest.mark.parametrize(
    ("family", "d"),
    [c for c in registry.FAMILY_SIZES if c[1] < 3 or not exact(c[0])],
    ids=ids,
)
@pytest.mark.parametrize("kind", ["plain", "alike", "stretched"])
def test_a_general_optimiser_finds_nothing_better(family, d, kind):
    rng = rng_for("optimiser", family, d, kind)
    k = 2 if d == 3 else 3
    count, scatter = registry.SCATTERS[kind](rng, k, d)
    if kind == "stretched":  # within what a general optimiser can do
        scatter = scatter + 1e-3 * np.trace(scatter, axis1=1, axis2=2)[:, None, None] * np.eye(d)
    ours = objective(count, scatter, maximise(family, count, scatter))
    units = np.log(np.trace(scatter, axis1=1, axis2=2) / count / d)
    q = free_objective(family, d, count, scatter, units=units)
    size = sum(registry.sizes(family, k, d))
    options = {"ftol": 1e-13, "gtol": 1e-6, "maxiter": 200}
    starts = [rng.normal(size=size) for _ in range(4)]
    found = [
        -minimize(q, s, method="L-BFGS-B", bounds=[(-12, 12)] * size, options=options).fun
        for s in starts
    ]
    assert max(found) <= ours + 1e-8 * abs(ours)
    assert max(found) >= ours - 1e-4 * abs(ours)  # and it is a maximum that it found


def textbook(family: Covariance, count: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """Celeux & Govaert's closed forms, for the families that have one."""
    d, eye = scatter.shape[1], np.eye(scatter.shape[1])
    own, n = count[:, None, None], count.sum()
    trace = np.trace(scatter, axis1=1, axis2=2)[:, None, None]
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)[..., None] * eye
    match family.letters:
        case "EII":
            result = trace.sum() / (n * d) * eye
        case "VII":
            result = trace / (own * d) * eye
        case "EEI":
            result = diagonal.sum(axis=0) / n
        case "VVI":
            result = diagonal / own
        case "E" | "EEE":
            result = scatter.sum(axis=0) / n
        case "V" | "VVV":
            result = scatter / own
        case "EVI" | "EVV":
            b = diagonal if family.is_diagonal else scatter
            root = np.exp(np.linalg.slogdet(b)[1] / d)[:, None, None]
            result = root.sum() / n * b / root
        case "EEV":
            value, axes = np.linalg.eigh(scatter)
            result = (axes * value.sum(axis=0) / n) @ np.swapaxes(axes, 1, 2)
    return np.broadcast_to(result, scatter.shape)


@pytest.mark.parametrize(("family", "d"), [c for c in CASES if exact(c[0])], ids=ids)
@by_scatter
def test_the_result_is_the_textbook_formula(family, d, kind):
    for _, count, scatter in scatters(kind, d, family):
        result, expected = maximise(family, count, scatter), textbook(family, count, scatter)
        size = np.trace(result, axis1=1, axis2=2)[:, None, None]
        assert_allclose(result / size, expected / size, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("small", "large"), registry.nested(), ids=lambda family: family.letters)
@by_scatter
def test_freeing_a_letter_never_lowers_the_maximum(small, large, kind):
    for d in (2, 3):
        for _, count, scatter in scatters(kind, d, small, large):
            below = objective(count, scatter, maximise(small, count, scatter))
            above = objective(count, scatter, maximise(large, count, scatter))
            assert above >= below - 1e-10 * abs(below)


def test_the_order_of_families_has_all_its_pairs():
    assert len(registry.nested()) == 23
    assert (Covariance("EII"), Covariance("VII")) in registry.nested()
    for large in registry.EVERY:
        assert set(large.nested) == {small for small, other in registry.nested() if other == large}


def test_of_some_families_those_are_largest_that_are_nested_in_none_of_the_others():
    some = [Covariance(letters) for letters in ("EII", "VII", "EEE", "EEV")]
    assert Covariance("VVV").nested_among(some) == (Covariance("VII"), Covariance("EEV"))
    assert Covariance("EEE").nested_among(some) == (Covariance("EII"),)
    assert Covariance("EII").nested_among(some) == ()
    assert Covariance("V").nested == (Covariance("E"),)


# Equivariance


@by_family
@by_scatter
def test_units_change_nothing(family, d, kind):
    # Where Q decides when to stop, rounding of Q decides the last digits of the axes.
    loose = 1e-4 if family in registry.COMMON_AXES else 1e-9
    for _, count, scatter in scatters(kind, d, family):
        result = maximise(family, count, scatter)
        q, n = objective(count, scatter, result), count.sum()
        size = np.trace(result, axis1=1, axis2=2)[:, None, None]
        for unit in (2.0**-40, 2.0**30):
            again = maximise(family, count, unit * scatter)
            assert_allclose(again / unit / size, result / size, rtol=0, atol=loose)
            shifted = objective(count, unit * scatter, again) + 0.5 * n * d * np.log(unit)
            assert_allclose(shifted, q, rtol=0, atol=1e-10 * n)
        if family.is_axis_equivariant:
            units = 2.0 ** np.arange(-d, d, 2)
            outer = np.outer(units, units)
            again = maximise(family, count, outer * scatter)
            assert_allclose(again / outer / size, result / size, rtol=0, atol=1e-9)


ROTATED = [c for c in CASES if c[1] > 1 and not (c[0].is_diagonal and c[0].shape != "I")]


@pytest.mark.parametrize(("family", "d"), ROTATED, ids=ids)
def test_turning_the_data_turns_the_result(family, d):
    for _, count, scatter in scatters("plain", d, family):
        turn = ortho_group.rvs(d, random_state=d)
        result = maximise(family, count, scatter)
        again = maximise(family, count, turn @ scatter @ turn.T)
        assert_allclose(again, turn @ result @ turn.T, rtol=1e-6, atol=1e-6 * np.abs(result).max())
        assert_allclose(
            objective(count, turn @ scatter @ turn.T, again),
            objective(count, scatter, result),
            rtol=1e-11,
        )


@by_family
@by_scatter
def test_components_have_no_order(family, d, kind):
    for rng, count, scatter in scatters(kind, d, family):
        order = rng.permutation(len(count))
        q = objective(count, scatter, maximise(family, count, scatter))
        again = objective(
            count[order], scatter[order], maximise(family, count[order], scatter[order])
        )
        assert_allclose(again, q, rtol=0, atol=1e-10 * count.sum())


# Warm starts


@by_family
@by_scatter
def test_a_warm_start_never_ends_below_where_it_began(family, d, kind):
    for rng, count, scatter in scatters(kind, d, family):
        k = len(count)
        cold = maximise(family, count, scatter)
        for spread in (0.01, 1.0):
            phi, base = registry.decompose(family, cold)
            phi = phi + spread * rng.normal(size=len(phi))
            begin = registry.compose(family, k, d, phi, base)
            warm = maximise(family, count, scatter, begin)
            q = objective(count, scatter, warm)
            assert q >= objective(count, scatter, begin) - 1e-10 * abs(q)
        again = maximise(family, count, scatter, cold)
        q, n = objective(count, scatter, cold), count.sum()
        assert_allclose(objective(count, scatter, again), q, rtol=0, atol=1e-10 * n)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 4), d=st.integers(1, 5))
def test_shared_axes_are_found_even_where_one_component_is_round(seed, k, d):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spectrum = rng.uniform(0.5, 5.0, size=(k, d))
    spectrum[0] = 1.0
    covariance = (axes * spectrum[:, None, :]) @ axes.T
    found = shared_axes(covariance)
    turned = found.T @ covariance @ found
    off = turned - np.eye(d) * np.diagonal(turned, axis1=1, axis2=2)[:, None, :]
    assert_allclose(off, 0.0, atol=1e-8)
    assert_allclose(found @ found.T, np.eye(d), atol=1e-12)


@by_family
def test_arguments_are_not_changed(family, d):
    for _, count, scatter in scatters("plain", d, family):
        before = count.copy(), scatter.copy()
        maximise(family, count, scatter)
        assert_array_equal(count, before[0])
        assert_array_equal(scatter, before[1])
