"""Components of which all rows have one value of a column are called what they are."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import registry
from numpy.testing import assert_allclose

import bayesgmm as bg
from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import read
from bayesgmm.em.single import single_value
from bayesgmm.errors import DataWarning, FitWarning
from bayesgmm.moments import Parameters

nan = np.nan


def found_in(x: np.ndarray, sd: float, **options: Any) -> Any:
    """What is found of two components of a column, one wide, one at 2 with a standard deviation."""
    data = read(x, family=Covariance("VVI"), **options)
    p = Parameters(
        np.array([0.5, 0.5]),
        np.array([[2.0, 0.0], [5.0, 0.0]]),
        np.array([np.diag([sd**2, 1.0]), np.diag([9.0, 1.0])]),
    )
    return single_value(data, data.to_anchored(p))


def column(*values: float) -> np.ndarray:
    rest = np.random.default_rng(0).normal(size=len(values))
    return np.column_stack([values, rest])


TIED = column(*[2.0] * 9, 2.5, 4, 5, 6, 7, 8, 9, 10, 3.25)


@pytest.mark.parametrize("unit", [1.0, 1e-7, 300.0])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_the_width_is_that_beside_the_nearest_other_value(unit: float, shift: float) -> None:
    x = TIED * [unit, 1.0] + [shift * unit, 0.0]
    data = read(x, family=Covariance("VVI"))
    p = Parameters(
        np.array([0.5, 0.5]),
        np.array([[2.001, 0.0], [5.0, 0.0]]) * [unit, 1.0] + [shift * unit, 0.0],
        np.array([np.diag([0.01**2, 1.0]), np.diag([9.0, 1.0])]) * np.diag([unit**2, 1.0]),
    )
    single = single_value(data, data.to_anchored(p))
    assert single is not None
    assert (single.component, single.column) == (0, "x0")
    assert_allclose(single.value, (2.0 + shift) * unit)
    assert_allclose(single.share, 0.01 / 0.5, rtol=1e-9)


def test_a_tenth_of_the_distance_is_the_limit() -> None:
    assert found_in(TIED, 0.049) is not None
    assert found_in(TIED, 0.051) is None
    assert found_in(TIED, 0.29 * 0.5) is None  # what rounding leaves


def test_rows_of_weight_0_and_missing_cells_have_no_value() -> None:
    weight = np.ones(len(TIED))
    weight[9] = 0.0  # the 2.5
    assert found_in(TIED, 0.1, sample_weight=weight).share == pytest.approx(0.1 / 1.25)
    x = TIED.copy()
    x[9, 0] = nan
    assert found_in(x, 0.1, missing="marginalise").share == pytest.approx(0.1 / 1.25)


def test_integers_that_no_float_tells_apart_are_no_alarm() -> None:
    """Nanoseconds since 1970, of two moments within 200 ns of each other."""
    rng = np.random.default_rng(3)
    passed = np.concatenate([rng.integers(0, 20, size=40), rng.integers(100, 120, size=40)])
    spec, x = bg.GaussianMixture(2, "V"), (10**18 + passed)[:, None]
    with pytest.warns(DataWarning, match="precision-loss"):
        fit = bg.fit_em(spec, x, start="kmeans", random_seed=0)
    assert "single-value" not in fit.attrs["verdict"]
    assert_allclose(np.sort(fit["posterior"]["weight"][0, 0]), [0.5, 0.5], atol=1e-6)


def test_the_narrowest_is_told() -> None:
    data = read(np.column_stack([TIED, TIED[::-1, 0]]), family=Covariance("VVI"))
    wide = np.array([9.0, 1.0, 9.0])
    narrow = [np.array([0.02**2, 1.0, 9.0]), np.array([9.0, 1.0, 0.01**2])]
    p = Parameters(
        np.full(3, 1 / 3),
        np.array([[2.0, 0.0, 5.0], [5.0, 0.0, 2.0], [5.0, 0.0, 5.0]]),
        np.array([np.diag(v) for v in (*narrow, wide)]),
    )
    single = single_value(data, data.to_anchored(p))
    assert single is not None
    assert (single.component, single.column) == (1, "x2")


def test_tied_rows_across_common_axes_fail_the_verdict() -> None:
    """17 rows of one petal width: as good as singular in VVV, finite in VVE."""
    x = registry.table("iris").to_numpy()[::2] * [1.0, 300.0, 0.02, 7.0]
    with pytest.warns(
        FitWarning, match="all rows of component 0 have the value 1.4 in column 'x3'"
    ):
        fit = bg.fit_em(bg.GaussianMixture(3, "VVE"), x, random_seed=0)
    verdict = json.loads(fit.attrs["verdict"])
    assert verdict["status"] == "fail"
    count = np.isclose(x[:, 3], 1.4).sum()
    assert_allclose(fit["posterior"]["weight"][0, 0, 0] * len(x), count, atol=0.5)


@pytest.mark.parametrize("name", ["iris", "faithful", "acidity", "galaxies"])
def test_rounded_numbers_are_no_alarm(name: str) -> None:
    x = registry.table(name).to_numpy()
    letters = ("VVV", "VVE", "VII") if x.shape[1] > 1 else ("V",)
    for family in letters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            fit = bg.fit_em(bg.GaussianMixture(2, family), x, start="kmeans", random_seed=0)
        assert "single-value" not in fit.attrs["verdict"]


def test_fixed_covariances_are_no_alarm() -> None:
    """Whoever knows the error of a measurement may round more coarsely than that."""
    rng = np.random.default_rng(1)
    x = np.column_stack([np.round(0.05 * rng.normal(size=80)), rng.normal(size=80)])
    x[40:] += 3.0
    fixed = {"covariance": np.tile(np.diag([0.05**2, 1.0]), (2, 1, 1))}
    fit = bg.fit_em(bg.GaussianMixture(2, "VVI"), x, fixed=fixed, random_seed=0)
    assert "single-value" not in fit.attrs["verdict"]
