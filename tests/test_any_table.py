"""Whatever table: it is read and fitted, or refused with an error that says what to do.

Small tables of few different numbers, with rows that are far out, cells that are missing, and
weights of which some are 0, tiny or huge: never an error of NumPy's, nor a warning of it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

import bayesgmm as bg
from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.data.mixing import taken_apart
from bayesgmm.data.observations import read
from bayesgmm.errors import BayesgmmError, BayesgmmWarning, NumericalError
from bayesgmm.noise import region_around
from bayesgmm.streams import Rows

nan = np.nan


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """A table, what to do about its missing cells, and weights or None."""
    size = draw(st.tuples(st.integers(2, 13), st.integers(2, 4)))
    few = st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0, 999.0, -998.0])
    cell = draw(st.sampled_from([few, st.integers(-999, 999).map(float)]))
    x = draw(arrays(np.float64, size, elements=cell))
    for row in draw(st.lists(st.integers(0, len(x) - 1), max_size=2)):
        x[row] *= 10.0 ** draw(st.integers(3, 12))
    if draw(st.booleans()):
        x[draw(arrays(np.bool_, size, elements=st.sampled_from([False, False, False, True])))] = nan
    missing = draw(st.sampled_from(["marginalise", "drop"])) if np.isnan(x).any() else "error"
    weight = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 1e6])
    weights = draw(st.none() | arrays(np.float64, len(x), elements=weight))
    return {"X": x, "missing": missing, "sample_weight": weights}


def case(rows: Any, missing: str = "error", weights: Any = None) -> dict[str, Any]:
    return {"X": np.array(rows, dtype=float), "missing": missing, "sample_weight": weights}


CONSTANT = case([[-999, 0, -998], [3, -998, 0], [-998, -998, -998]])
OBSERVED_FAR = case(
    [[1, nan], [nan, 0.5], [1, nan], [5e8, 5e8], [0.5, nan], [1, 0.5], [1, 0]],
    "marginalise",
    [0.5, 1e-3, 1e-3, 1, 2, 0.5, 1e-3],
)
HALF_ROWS = case([[1.8, 0.8, -0.5], [1e6, 1e5, -7e5], [0.6, 1.2, 0.2]], weights=[0.5, 0.5, 0.5])
ONE_NEAR = case([[1, 1e8, 2, 0], [0, 0, 3e7, -1e7], [0, -1, 0, 999]])
FEW_ROWS = case([[-508, -669, -526, -574], [-963, 325, -496, 244]])
HEAVY_ROW = case(
    [[nan, 0.5, 1], [0.5, 1, 0], [0.5, 0.5, 0.5], [1, 0.5, 1], [1e11, 0, 0.5]],
    "marginalise",
    [2, 1, 1e6, 2, 0],
)
FILLED = case(
    [
        *([300, -79], [-59, 663], [713, nan], [226, 86]),
        *([-657, nan], [-4.4e13, -5.72e14], [-165, 211], [-790, -985]),
    ],
    "marginalise",
    [1e-3, 0.5, 0.5, 1, 1e-3, 1e-3, 0.5, 2],
)
EMPTY_ROW = case(
    [[-855, -807], [-247, 1e4], [-171, -467], [-337, 165], [994, 372], [nan, nan], [8.55e8, -6e8]],
    "marginalise",
)
ALL_NOISE = case(
    [
        *([126], [-728], [-985], [54], [564], [-75], [-233], [-861], [514], [808], [685], [-975]),
        *([204], [-239], [-879], [-227], [-435], [-402], [-162], [-358], [535], [-638], [-478]),
        *([225], [-646], [564], [-603], [351], [-8]),
    ]
)
NEXT_TO_NO_WEIGHT = case(
    [[nan], [0.71722634], [0.79690137], [nan], [-0.56924922], [0.77238638], [-0.55554652], [0.723]],
    "marginalise",
)


@settings(deadline=None, max_examples=300)
@example(CONSTANT, "EII")
@example(OBSERVED_FAR, "EVE")
@example(HALF_ROWS, "VEV")
@example(ONE_NEAR, "EEE")
@given(tables(), st.sampled_from(FAMILIES))
def test_it_is_read_or_refused(table: dict[str, Any], letters: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        try:
            data = read(**table, family=Covariance(letters))
        except BayesgmmError:
            return
        taken = taken_apart(data, Covariance(letters))
    for found in (data.scale, data.sd, data.mean, data.covariance, taken.covariance):
        assert np.isfinite(found).all()
    assert (data.sd > 0).all()


@settings(deadline=None, max_examples=25)
@example(FEW_ROWS, "VVI", 1, True, "mle")
@example(HEAVY_ROW, "VVV", 3, True, "map")
@example(FILLED, "VVE", 1, True, "mle")
@example(FILLED, "VVE", 2, True, "mle")
@example(EMPTY_ROW, "EII", 1, True, "mle")
@example(ALL_NOISE, "V", 3, True, "map")
@example(NEXT_TO_NO_WEIGHT, "V", 3, "columns", "map")
@given(
    tables(),
    st.sampled_from(FAMILIES),
    st.integers(1, 3),
    st.sampled_from([None, None, True, "columns"]),
    st.sampled_from(["mle", "map"]),
)
def test_it_is_fitted_or_refused(
    table: dict[str, Any], letters: str, k: int, noise: Any, estimate: str
) -> None:
    spec = bg.GaussianMixture(k, letters, noise=noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        try:
            found = bg.fit_em(spec, **table, estimate=estimate, random_seed=0, n_starts=3)
        except BayesgmmError:
            return
    for name, values in found["posterior"].dataset.data_vars.items():
        assert np.isfinite(values).all(), name


# What is said of them


def groups(column: float = 0.0) -> np.ndarray:
    """Two groups of forty rows, a column that is the same in all, and a row that is far from them.

    In the latter the column is another.
    """
    x = np.random.default_rng(0).normal(size=(81, 3)) + np.repeat([0.0, 6.0], [40, 41])[:, None]
    x[:, 2] = column
    x[80] = [1e6, 0.0, column + 1.0]
    return x


def test_a_column_that_varies_in_a_far_row_alone_is_named() -> None:
    with pytest.warns(BayesgmmWarning, match="without it 'x2' would be constant"):
        data = read(groups(), family=Covariance("VVV"))
    whole = np.sqrt(np.diagonal(data.covariance))
    assert_array_equal(data.near_sd > 0, [True, True, False])
    assert data.sd[0] < 1e-3 * whole[0]
    assert_allclose(data.sd[2], whole[2], rtol=1e-12)


@pytest.mark.parametrize("family", ["VVV", "EEE", "VVI", "EII"])
def test_noise_that_leaves_a_constant_column_says_so(family: str) -> None:
    with (
        pytest.warns(BayesgmmWarning, match="far-row"),
        pytest.raises(NumericalError, match="Column 'x2' varies in rows alone that are far from"),
    ):
        bg.fit_em(bg.GaussianMixture(2, family, noise=True), groups(), random_seed=0, n_starts=4)


def test_a_box_around_dependent_columns_is_along_them() -> None:
    """Along principal axes its volume would be rounding; with nearly dependent ones it is small."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[:, 2] = x[:, 0] + x[:, 1]
    sides = np.log(np.ptp(x, axis=0)).sum()
    for rows in (x, x[:3]):
        found = region_around(Rows(rows, np.empty(0)), np.zeros(3))
        assert found.log_edges is not None
        assert_allclose(found.log_volume, np.log(np.ptp(rows, axis=0)).sum(), rtol=1e-12)
    x[:, 2] += 1e-6 * np.random.default_rng(1).normal(size=60)
    found = region_around(Rows(x, np.empty(0)), np.zeros(3))
    assert found.log_edges is None
    assert sides - 20 < found.log_volume < sides - 10


def test_noise_with_dependent_columns_is_fitted() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[:30] += 5.0
    x[:, 2] = x[:, 0] + x[:, 1]
    fits = [
        bg.fit_em(bg.GaussianMixture(2, "VVI", noise=noise), x, random_seed=0, n_starts=4)
        for noise in (True, "columns")
    ]
    assert_array_equal(*(fit["posterior"]["mean"] for fit in fits))


def test_noise_so_dense_that_all_is_noise_says_so() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[:30] += 5.0
    x[:, 2] = x[:, 0] + x[:, 1] + 1e-9 * np.random.default_rng(1).normal(size=60)
    with pytest.raises(NumericalError, match="noise='columns'"):
        bg.fit_em(bg.GaussianMixture(2, "VVI", noise=True), x, random_seed=0, n_starts=4)


def test_an_empty_row_changes_no_noise() -> None:
    """Nothing of it is observed; the box stays that along principal axes, if that is smaller."""
    x = np.random.default_rng(2).normal(size=(60, 2)) @ [[1.0, 0.9], [0.0, 0.2]]
    spec = bg.GaussianMixture(1, noise=True)
    alone = bg.fit_em(spec, x, random_seed=0)
    with pytest.warns(BayesgmmWarning, match="empty-rows"):
        found = bg.fit_em(spec, np.vstack([x, [nan, nan]]), random_seed=0, missing="marginalise")
    assert alone.attrs["noise"] == found.attrs["noise"]
    for name in ("mean", "covariance", "noise_weight"):
        assert_allclose(found["posterior"][name], alone["posterior"][name], rtol=1e-4, atol=1e-6)


def test_a_row_of_weight_0_that_lacks_a_cell_has_noise_along_the_columns() -> None:
    x = np.random.default_rng(2).normal(size=(60, 2)) @ [[1.0, 0.9], [0.0, 0.2]]
    x[7, 1] = nan
    weight = np.ones(60)
    weight[7] = 0.0
    options: dict[str, Any] = {"missing": "marginalise", "sample_weight": weight, "random_seed": 0}
    found, along = (
        bg.fit_em(bg.GaussianMixture(1, noise=noise), x, **options) for noise in (True, "columns")
    )
    assert found.attrs["noise"] == along.attrs["noise"]
    assert_array_equal(found["posterior"]["mean"], along["posterior"]["mean"])
    assert np.isfinite(bg.predict_proba(found, x, missing="marginalise").to_numpy()).all()
