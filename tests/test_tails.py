"""Heavy tails: Mardia's kurtosis, by component; seen where they are, and not where they are not."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import registry
import xarray as xr
from numpy.testing import assert_allclose
from scipy.stats import chi2, kurtosis

import bayesgmm as bg
from bayesgmm.covariance import Covariance
from bayesgmm.em.tails import Tails, tails
from bayesgmm.errors import BayesgmmWarning
from bayesgmm.groups import split
from bayesgmm.moments import Parameters


def found(x: np.ndarray, p: Parameters, weight: np.ndarray | None = None) -> Tails:
    w = np.empty(0) if weight is None else weight
    result = tails(split(np.ascontiguousarray(x), w), p)
    assert result is not None
    return result


def mixture(seed: int, k: int = 2, d: int = 2) -> tuple[Parameters, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = registry.mixture(rng, Covariance("VVV"), k, d, 5.0)
    return p, registry.simulate(rng, p, 300)


def check(x: Any, k: int, family: str, **options: Any) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        spec = bg.GaussianMixture(k, family)
        fit: xr.DataTree = bg.fit_em(spec, x, random_seed=0, n_starts=4, **options)
    checks = json.loads(fit.attrs["verdict"])["checks"]
    return next(c for c in checks if c["code"] == "heavy-tails")


def test_one_column_and_component_is_scipys_kurtosis() -> None:
    x = np.random.default_rng(0).exponential(size=(80, 1))
    p = Parameters(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))  # whatever the parameters
    assert found(x, p).kurtosis == pytest.approx(kurtosis(x[:, 0], fisher=False) / 3.0, rel=1e-12)
    assert found(x, p).error == pytest.approx(np.sqrt(24.0 / 80) / 3.0)


def test_several_columns_are_mardias_kurtosis() -> None:
    x = np.random.default_rng(1).standard_t(4, size=(60, 3))
    z = x - x.mean(axis=0)
    square = np.einsum("ni,ij,nj->n", z, np.linalg.inv(z.T @ z / 60), z)
    p = Parameters(np.ones(1), np.zeros((1, 3)), np.eye(3)[None])
    assert found(x, p).kurtosis == pytest.approx(np.mean(square**2) / 15.0, rel=1e-12)
    assert found(x, p).row == square.argmax()
    assert found(x, p).distance == pytest.approx(np.sqrt(square.max()))


@pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 2), (3, 3)])
def test_of_normal_components_the_expectation_is_one_and_the_error_no_smaller_than_stated(
    k: int, d: int
) -> None:
    values, errors = [], []
    for seed in range(150):
        p, x = mixture(seed, k, d)
        one = found(x, p)
        values.append(one.kurtosis)
        errors.append(one.error)
    values = np.array(values)
    assert abs(values.mean() - 1.0) < 4 * values.std() / np.sqrt(150) + 3.0 / 300
    assert values.std() < 1.25 * np.mean(errors)


def test_maps_and_weights_change_nothing_else() -> None:
    p, x = mixture(3)
    a = np.array([[2.0, -30.0], [0.001, 0.02]])
    moved = Parameters(p.weight, p.mean @ a, a.T @ p.covariance @ a)
    one, other = found(x, p), found(x @ a, moved)
    assert other.kurtosis == pytest.approx(one.kurtosis, rel=1e-8)
    assert (other.row, other.component) == (one.row, one.component)
    weight = np.random.default_rng(0).integers(0, 3, size=len(x))
    repeated = found(np.repeat(x, weight, axis=0), p)
    weighted = found(x, p, weight.astype(float))
    assert_allclose(weighted.kurtosis, repeated.kurtosis, rtol=1e-12)
    assert_allclose(weighted.error, repeated.error, rtol=1e-12)
    assert weighted.distance == pytest.approx(repeated.distance)


def test_the_furthest_row_is_that_of_the_largest_distance_in_its_component() -> None:
    p, x = mixture(4)
    x[123] = p.mean[0] + 40.0 * p.factor[0] @ [1.0, 0.0]
    result = found(x, p)
    assert result.row == 123
    assert result.distance > np.sqrt(chi2(2).isf(1e-12))


@pytest.mark.parametrize("family", ["EII", "VII", "EEI", "VVI", "EEE", "VVV"])
def test_a_family_that_does_not_fit_has_no_heavy_tails(family: str) -> None:
    """Long ellipses, of two sizes: their distances as circles would have a fourth moment of two."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 300, 2)) * [[[1.0, 20.0]], [[3.0, 60.0]]] + [[[0, 0]], [[400.0, 0]]]
    assert check(x.reshape(-1, 2), 2, family)["status"] == "ok"


@pytest.mark.parametrize("family", ["EII", "VVI", "EEE", "VVV", "VEV"])
def test_t_distributions_are_seen(family: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(400, 2)) / np.sqrt(rng.chisquare(3, size=(400, 1)) / 3)
    x[:200] += 12.0
    one = check(x, 2, family)
    assert one["status"] == "warn"
    assert "standard deviations from component" in one["evidence"]
    assert f"where normal rows end at {np.sqrt(chi2(2).isf(0.01 / 400)):.2g}" in one["evidence"]
    assert "bg.score" in one["advice"]


def test_components_that_share_rows_have_no_heavy_tails() -> None:
    """A sphere for each pair of groups has shares of the other pair, far out along a flat axis."""
    x = np.random.default_rng(3).normal(size=(4, 40, 2)) * 0.5
    x += 5.0 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])[:, None]
    one = check(x.reshape(-1, 2), 2, "EII")
    assert float(one["evidence"].split("distances is ")[1].split(" ")[0]) > 2.0
    assert one["status"] == "ok"


def test_incomplete_rows_are_left_out_and_labels_named() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 2))
    x[150] = 30.0
    x[:50, 0] = np.nan
    one = check(x, 1, "VVV", missing="marginalise")
    assert one["status"] == "warn"
    assert "row 150," in one["evidence"]


def test_where_there_is_too_little_to_tell_nothing_is_said() -> None:
    x = np.random.default_rng(8).normal(size=(7, 2))
    about = Parameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    assert tails(split(x), about) is None
    two = Parameters(np.full(2, 0.5), np.array([[0.0, 0.0], [1e3, 0.0]]), np.stack([np.eye(2)] * 2))
    one = tails(split(np.tile(x, (5, 1))), two)
    assert one is not None  # of the first component alone: the other has no row at all
    assert one.component == 0
    line = np.column_stack([np.arange(30.0), 2.0 * np.arange(30.0)])  # fine for diagonal families
    assert tails(split(line), about) is None
