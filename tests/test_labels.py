"""Labels: permuting a draw's components changes nothing, and the margin says how sure that is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesgmm import labels
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Parameters

SHAPES = {"k": st.integers(1, 5), "d": st.integers(1, 4), "seed": st.integers(0, 2**32 - 1)}


def random_mixture(rng: np.random.Generator, k: int, d: int) -> Parameters:
    root = rng.normal(size=(k, d, d)) + 1.5 * np.eye(d)
    return Parameters(
        rng.dirichlet(np.full(k, 5.0)),
        2.0 * rng.normal(size=(k, d)),
        root @ root.mT + 0.1 * np.eye(d),
    )


def random_draws(
    rng: np.random.Generator, pivot: Parameters, s: int, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k, d = pivot.k, pivot.d
    weight = pivot.weight * np.exp(noise * rng.normal(size=(s, k)))
    root = np.eye(d) + 0.3 * noise * rng.normal(size=(s, k, d, d))
    return (
        weight / weight.sum(axis=1, keepdims=True),
        pivot.mean + noise * rng.normal(size=(s, k, d)),
        root @ pivot.covariance @ root.mT + 1e-3 * np.eye(d),
    )


def as_parameters(draws: tuple[np.ndarray, ...], s: int) -> Parameters:
    return Parameters(*(array[s] for array in draws))


@given(**SHAPES, noise=st.sampled_from([0.01, 0.3, 1.0]))
@settings(deadline=None, max_examples=60)
def test_permuting_the_labels_of_any_draw_changes_nothing(k, d, seed, noise):
    rng = np.random.default_rng(seed)
    pivot = random_mixture(rng, k, d)
    draws = random_draws(rng, pivot, 7, noise)
    shuffle = np.stack([rng.permutation(k) for _ in range(7)])
    shuffled = tuple(labels.apply(shuffle, array) for array in draws)
    one, two = labels.align(*draws, pivot), labels.align(*shuffled, pivot)
    np.testing.assert_allclose(two.margin, one.margin, rtol=1e-7, atol=1e-12)
    sure = one.margin > 1e-9
    for array, other in zip(draws, shuffled, strict=True):
        aligned = labels.apply(one.permutation, array)
        np.testing.assert_array_equal(labels.apply(two.permutation, other)[sure], aligned[sure])


@given(**SHAPES)
@settings(deadline=None, max_examples=40)
def test_the_pivot_keeps_its_labels_and_is_sure(k, d, seed):
    pivot = random_mixture(np.random.default_rng(seed), k, d)
    permutation, margin = labels.match(pivot, pivot)
    np.testing.assert_array_equal(permutation, np.arange(k))
    assert margin == pytest.approx(1.0, abs=1e-8)


@given(**SHAPES)
@settings(deadline=None, max_examples=40)
def test_match_inverts_a_known_permutation(k, d, seed):
    rng = np.random.default_rng(seed)
    pivot = random_mixture(rng, k, d)
    order = rng.permutation(k)
    found, _ = labels.match(pivot.take(order), pivot)
    np.testing.assert_array_equal(order[found], np.arange(k))


@given(**SHAPES)
@settings(deadline=None, max_examples=60)
def test_an_affine_map_of_the_data_changes_nothing(k, d, seed):
    rng = np.random.default_rng(seed)
    pivot = random_mixture(rng, k, d)
    draws = random_draws(rng, pivot, 5, 0.5)
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    matrix = turn * 10.0 ** rng.uniform(-2, 2, size=d)
    shift = 1e4 * rng.normal(size=d)

    def mapped(weight, mean, covariance):
        return weight, mean @ matrix.T + shift, matrix @ covariance @ matrix.T

    before = labels.align(*draws, pivot)
    after = labels.align(
        *mapped(*draws), Parameters(*mapped(pivot.weight, pivot.mean, pivot.covariance))
    )
    # The map itself rounds: covariances of condition 1e8 keep eight digits.
    np.testing.assert_allclose(after.margin, before.margin, atol=1e-5)
    sure = before.margin > 1e-3
    np.testing.assert_array_equal(after.permutation[sure], before.permutation[sure])


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_units_far_from_one_change_nothing(scale):
    rng = np.random.default_rng(3)
    pivot = random_mixture(rng, 3, 2)
    weight, mean, covariance = random_draws(rng, pivot, 20, 0.5)
    before = labels.align(weight, mean, covariance, pivot)
    far = Parameters(pivot.weight, pivot.mean * scale, pivot.covariance * scale**2)
    after = labels.align(weight, mean * scale, covariance * scale**2, far)
    np.testing.assert_array_equal(after.permutation, before.permutation)
    np.testing.assert_allclose(after.margin, before.margin, rtol=1e-6, atol=1e-9)


def hellinger_cost(draw: Parameters, pivot: Parameters) -> np.ndarray:
    """The cost by its definition, one pair at a time."""
    cost = np.empty((pivot.k, pivot.k))
    for i in range(pivot.k):
        for j in range(pivot.k):
            middle = (draw.covariance[i] + pivot.covariance[j]) / 2
            apart = draw.mean[i] - pivot.mean[j]
            affinity = (
                np.exp(-apart @ np.linalg.solve(middle, apart) / 8)
                * (np.linalg.det(draw.covariance[i]) * np.linalg.det(pivot.covariance[j])) ** 0.25
                / np.sqrt(np.linalg.det(middle))
            )
            a, b = draw.weight[i], pivot.weight[j]
            cost[i, j] = (a + b) / 2 - np.sqrt(a * b) * affinity
    return cost


@given(
    k=st.integers(2, 5),
    d=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.1, 1.0, 4.0]),
)
@settings(deadline=None, max_examples=60)
def test_best_and_second_best_equal_the_enumeration_of_all_labellings(k, d, seed, noise):
    rng = np.random.default_rng(seed)
    pivot = random_mixture(rng, k, d)
    draws = random_draws(rng, pivot, 1, noise)
    draws = tuple(labels.apply(rng.permutation(k)[None], array) for array in draws)
    found = labels.align(*draws, pivot)
    cost = hellinger_cost(as_parameters(draws, 0), pivot)
    label = np.arange(k)
    orders = np.array(list(permutations(range(k))))
    part = cost[orders, label]
    total = part.sum(axis=1)
    best = orders[total.argmin()]
    assert part[(orders == found.permutation[0]).all(axis=1)].sum() == pytest.approx(
        total.min(), abs=1e-12
    )
    margins = []
    for j in range(k):
        other = orders[:, j] != best[j]
        second = orders[other][total[other].argmin()]
        moved = second != best
        kept, changed = cost[best, label][moved].sum(), cost[second, label][moved].sum()
        margins.append((changed - kept) / (changed + kept))
    assert found.margin[0] == pytest.approx(min(margins), abs=1e-8)


def test_two_components_that_coincide_are_ambiguous():
    rng = np.random.default_rng(5)
    pivot = random_mixture(rng, 3, 2)
    draw = pivot.take([0, 1, 1])
    weight = np.array([pivot.weight[0], *(2 * [(1 - pivot.weight[0]) / 2])])
    _, margin = labels.match(Parameters(weight, draw.mean, draw.covariance), pivot)
    assert margin == pytest.approx(0.0, abs=1e-9)


def test_two_components_of_the_pivot_that_coincide_are_ambiguous():
    rng = np.random.default_rng(6)
    mixture = random_mixture(rng, 2, 2)
    pivot = Parameters(np.array([0.5, 0.5]), mixture.mean[[0, 0]], mixture.covariance[[0, 0]])
    assert labels.match(mixture, pivot)[1] < labels.AMBIGUOUS
    assert labels.match(pivot, pivot)[1] == 0.0


def test_an_unsure_pair_is_not_hidden_by_small_sure_components():
    """The cheapest exchange of all is of the two small ones; the unsure pair is the large one."""
    eye = np.eye(1)
    pivot = Parameters(
        np.array([0.495, 0.495, 0.005, 0.005]),
        np.array([[0.0], [2.0], [50.0], [80.0]]),
        np.stack([eye] * 4),
    )
    draw = Parameters(pivot.weight, np.array([[1.0], [1.01], [50.0], [80.0]]), pivot.covariance)
    assert labels.match(draw, pivot)[1] < labels.AMBIGUOUS


def test_one_far_off_component_does_not_drag_the_others_along():
    """A Jeffreys cost would exchange the two large components to bring the small one nearer."""
    eye = np.eye(1)
    pivot = Parameters(
        np.array([0.49, 0.49, 0.02]), np.array([[0.0], [3.0], [6.0]]), np.stack([eye, eye, eye])
    )
    draw = Parameters(
        np.array([0.49, 0.49, 0.02]), np.array([[0.1], [3.1], [-400.0]]), pivot.covariance
    )
    permutation, margin = labels.match(draw, pivot)
    np.testing.assert_array_equal(permutation, [0, 1, 2])
    assert margin > 0.5


def test_one_component_is_always_sure():
    pivot = random_mixture(np.random.default_rng(7), 1, 3)
    found = labels.align(*random_draws(np.random.default_rng(8), pivot, 4, 3.0), pivot)
    np.testing.assert_array_equal(found.permutation, np.zeros((4, 1)))
    np.testing.assert_array_equal(found.margin, 1.0)


def test_a_draw_that_is_no_mixture_keeps_its_labels_and_is_unsure():
    rng = np.random.default_rng(9)
    pivot = random_mixture(rng, 2, 2)
    weight, mean, covariance = random_draws(rng, pivot, 6, 0.05)
    mean[0, 1, 0] = np.nan
    covariance[1, 0, 0, 0] = np.inf
    covariance[2, 1] = [[1.0, 2.0], [2.0, 1.0]]
    weight[3] = [np.nan, 1.0]
    covariance[4, 0] = 0.0
    found = labels.align(weight, mean, covariance, pivot)
    np.testing.assert_array_equal(found.permutation[:5], np.tile([0, 1], (5, 1)))
    np.testing.assert_array_equal(found.margin[:5], 0.0)
    assert found.margin[5] > 0.5


def test_no_draws_are_no_labels():
    pivot = random_mixture(np.random.default_rng(10), 2, 2)
    found = labels.align(np.empty((0, 2)), np.empty((0, 2, 2)), np.empty((0, 2, 2, 2)), pivot)
    assert found.permutation.shape == (0, 2)
    assert found.margin.shape == (0,)


def test_shapes_and_pivot_are_checked():
    pivot = random_mixture(np.random.default_rng(11), 2, 2)
    with pytest.raises(ArgumentError, match=r"^weight: has shape \(1, 3\)"):
        labels.match(random_mixture(np.random.default_rng(12), 3, 2), pivot)
    with pytest.raises(ArgumentError, match=r"^pivot: must be finite"):
        labels.match(pivot, Parameters(pivot.weight, pivot.mean * np.nan, pivot.covariance))


def test_apply_reorders_arrays_of_any_rank():
    order = np.array([[1, 0, 2], [2, 0, 1]])
    np.testing.assert_array_equal(
        labels.apply(order, np.array([[5, 6, 7]] * 2)), [[6, 5, 7], [7, 5, 6]]
    )
    array = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(labels.apply(order, array)[1, 0], array[1, 2])


def test_distance_tells_optima_apart_and_not_labels():
    rng = np.random.default_rng(13)
    one = random_mixture(rng, 3, 2)
    assert labels.distance(one.take([2, 0, 1]), one) < labels.SAME
    nearby = Parameters(one.weight, one.mean + 1e-6, one.covariance)
    assert labels.distance(nearby, one) < labels.SAME
    other = Parameters(one.weight, one.mean + np.array([[0.5], [0.0], [0.0]]), one.covariance)
    assert labels.SAME < labels.distance(other, one) <= 1.0


def test_draws_are_aligned_in_blocks_without_seams(monkeypatch):
    rng = np.random.default_rng(14)
    pivot = random_mixture(rng, 3, 2)
    draws = random_draws(rng, pivot, 50, 0.8)
    whole = labels.align(*draws, pivot)
    monkeypatch.setattr(labels, "_BLOCK", 200)
    blocks = labels.align(*draws, pivot)
    np.testing.assert_array_equal(blocks.permutation, whole.permutation)
    np.testing.assert_array_equal(blocks.margin, whole.margin)


def test_forbidden_labels_cost_nothing_in_sureness() -> None:
    """Where one labelling alone is allowed, it is sure; costs of 0 and infinity are both met."""
    cost = np.full((1, 3, 3), np.inf)
    cost[0, [1, 2, 0], [0, 1, 2]] = [0.0, 0.2, 0.3]
    found = labels.assign(cost)
    np.testing.assert_array_equal(found.permutation, [[1, 2, 0]])
    assert found.margin[0] == 1.0
    cost[0, [2, 1], [0, 1]] = 0.1  # now the first two may be exchanged, at the same total
    assert labels.assign(cost).margin[0] == pytest.approx(0.0, abs=1e-12)


def test_the_ambiguous_share_counts_what_is_not_known() -> None:
    assert labels.ambiguous_share(np.array([0.05, 0.2, np.nan, 1.0])) == 0.5
    assert labels.ambiguous_share(np.empty(0)) == 0.0
    assert labels.ambiguous_labels(np.array([0.05, 0.2, 1.0, 1.0])).evidence.startswith("1 of 4")
