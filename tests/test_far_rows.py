"""Rows that are very far from all others: what is said of them, and that the others do not suffer.

Distances are in standard deviations; directions are the principal axes of the other rows, which a
far row hides from any covariance of all rows, and random ones.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import registry
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.covariance import Covariance
from bayesgmm.data.far import far_rows
from bayesgmm.data.observations import read
from bayesgmm.errors import BayesgmmWarning, CollinearColumnsError, NumericalError
from bayesgmm.moments import Parameters
from bayesgmm.streams import Rows

EVERY = [family.letters for family in registry.EVERY]
OWN = ("VVV", "VVI", "VII", "EVV", "VEE", "VEV")
COMMON = ("EII", "EEI", "EEE")


def noted(
    family: str, x: Any, k: int = 2, noise: bool | float | None = None, **settings: Any
) -> tuple[Any, str]:
    """A fit, or the NumericalError that there is none, and all that was warned of."""
    settings = {"random_seed": 0, "n_starts": 8} | settings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = bg.fit_em(bg.GaussianMixture(k, family, noise=noise), x, **settings)
        except NumericalError as error:
            found = error
    assert all(isinstance(w.message, BayesgmmWarning) for w in caught)
    return found, " ".join(str(w.message) for w in caught)


def checks(found: xr.DataTree) -> dict[str, str]:
    return {c["code"]: c["status"] for c in json.loads(found.attrs["verdict"])["checks"]}


def groups() -> np.ndarray:
    """Two correlated groups of 60 rows."""
    x = np.random.default_rng(2).normal(size=(120, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    return x + np.repeat([0.0, 8.0], 60)[:, None]


def with_far(x: np.ndarray, direction: str, size: float, n: int = 1) -> np.ndarray:
    """The rows, and n more that are some 1, 1.5, 2 times as far out; the last ones at random."""
    rng = np.random.default_rng(7)
    sd, axes = np.linalg.svd((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), full_matrices=False)[1:]
    first = {"long": sd[0] * axes[0], "short": sd[-1] * axes[-1], "along": sd[0] * axes[0]}
    away = [first.get(direction, sd[0] * rng.normal(size=x.shape[1]))]
    away += [away[0] if direction == "along" else sd[0] * rng.normal(size=x.shape[1])] * (n - 1)
    far = [x.mean(axis=0) + size * (1 + i / 2) * a for i, a in enumerate(away)]
    return np.vstack([x, far])


def assert_same(p: Parameters, q: Parameters, tolerance: float) -> None:
    """Components are the same up to a share of their standard deviations."""
    sd = np.sqrt(np.diagonal(q.covariance, axis1=1, axis2=2))
    assert_allclose(p.weight / p.weight.sum(), q.weight / q.weight.sum(), rtol=0, atol=tolerance)
    assert_allclose((p.mean - q.mean) / sd, 0.0, atol=tolerance)
    difference = (p.covariance - q.covariance) / sd[:, :, None] / sd[:, None, :]
    assert_allclose(difference, 0.0, atol=tolerance)


FAR = [
    ("long", 1e7, 1),
    ("long", 1e12, 1),
    ("short", 1e5, 1),
    ("short", 9e12, 1),
    ("random", 1e6, 2),
    ("random", 1e12, 3),
    ("along", 1e9, 3),
]


class TestWithNoise:
    @pytest.mark.parametrize("family", EVERY)
    def test_the_components_are_as_without_the_rows(self, family: str) -> None:
        """But for the rows of their own that the noise takes, since it has a density there."""
        x = groups()
        clean = tree.point(noted(family, x)[0])
        for direction, size, n in FAR:
            found, text = noted(family, with_far(x, direction, size, n), noise=True)
            assert "[far-row] row 12" in text
            assert "collinear" not in text
            p = tree.point(found)
            assert p.noise is not None
            taken = p.noise.weight * (120 + n) - n
            assert -1e-9 < taken < 3e-3
            assert_same(p, clean, 1e-6 + 0.1 * abs(taken))

    @pytest.mark.parametrize("family", EVERY)
    @pytest.mark.parametrize("direction", ["long", "short", "random"])
    def test_it_does_not_matter_how_far_they_are(self, family: str, direction: str) -> None:
        """If the volume is given: 60 standard deviations are as good as 1e4."""
        x, volume = groups(), 1e6
        near = tree.point(noted(family, with_far(x, direction, 60.0), noise=volume)[0])
        for size in (1e3, 1e4, 1e8):
            far = tree.point(noted(family, with_far(x, direction, size), noise=volume)[0])
            assert_same(far, near, 1e-6)

    @pytest.mark.parametrize("family", ["VVV", "EEE", "VVI"])
    @pytest.mark.parametrize("direction", ["long", "short"])
    def test_of_four_columns(self, family: str, direction: str) -> None:
        x = registry.table("iris").to_numpy()
        clean = tree.point(noted(family, x)[0])
        found, _ = noted(family, with_far(x, direction, 1e10), noise=True)
        assert_same(tree.point(found), clean, 1e-6)
        assert checks(found)["far-row"] == "ok"

    @pytest.mark.parametrize("family", ["VVV", "EEE"])
    def test_of_nearly_dependent_columns(self, family: str) -> None:
        x = groups()
        rest = np.random.default_rng(3).normal(size=120)
        near = np.column_stack([x, x[:, 0] + 1e-8 * rest])
        clean = tree.point(noted(family, np.column_stack([x, rest]))[0])
        back = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1e-8]])
        found, text = noted(family, np.vstack([near, [1e9, -2e9, 3e9]]), noise=True)
        assert "[near-collinear]" in text
        expected = Parameters(
            clean.weight, clean.mean @ back.T, back @ clean.covariance @ back.T, None
        )
        assert_same(tree.point(found), expected, 1e-6)

    def test_of_some_missing_values(self) -> None:
        x = groups()
        x[::10, 1] = np.nan
        clean = tree.point(noted("VVV", x, missing="marginalise")[0])
        far = np.vstack([x, [1e9, 1e9]])
        found, text = noted("VVV", far, noise=True, missing="marginalise")
        assert "[far-row] row 120 is" in text
        assert_same(tree.point(found), clean, 1e-6)

    def test_a_weight_is_repeated_rows(self) -> None:
        x = with_far(groups(), "random", 1e8)
        weight = np.append(np.full(120, 2.0), 3.0)
        a = tree.point(noted("VVV", x, noise=True, sample_weight=weight)[0])
        b = tree.point(noted("VVV", np.repeat(x, weight.astype(int), axis=0), noise=True)[0])
        assert_same(a, b, 1e-7)


class TestWhatIsSaid:
    @pytest.mark.parametrize("plane", [True, False])
    @pytest.mark.parametrize("family", ["VVV", "EEE", "VEV"])
    def test_dependent_columns_are_refused_whether_there_is_a_far_row(
        self, family: str, plane: bool
    ) -> None:
        """On the plane of the other rows or off it."""
        x = groups()
        x = np.column_stack([x, x @ [2.0, 1.0]])
        far = [1e9, 1e9, 3e9 if plane else -1e9]
        for rows in (x, np.vstack([x, far])):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"\[far-row\]")
                with pytest.raises(CollinearColumnsError, match=r"x2 = 2\*x0 \+ x1"):
                    read(rows, family=Covariance(family))

    @pytest.mark.parametrize("family", EVERY)
    @pytest.mark.parametrize("size", [1e5, 1e12])
    def test_without_noise_a_component_of_such_a_row_and_others_fails(
        self, family: str, size: float
    ) -> None:
        """By name and with what to do, and never as collinear columns."""
        found, text = noted(family, with_far(groups(), "long", size), k=1)
        assert "[far-row] row 120 is" in text
        assert "collinear" not in text
        if isinstance(found, NumericalError):
            assert "Row 120 is far from all others" in str(found)
            assert "noise=True" in str(found)
        else:
            assert checks(found)["far-row"] == "fail"
            assert "row 120 is far from all others, and component 0 is" in text

    def test_all_of_them_are_counted_and_the_furthest_is_named(self) -> None:
        x = np.vstack([groups(), [1e6, 0.0], [0.0, -1e9], [1e5, 1e5]])
        with pytest.warns(BayesgmmWarning, match=r"row 121 is .* column 'x1'.*and 2 more rows"):
            data = read(x)
        assert_array_equal(data.far, [120, 121, 122])
        assert_allclose(data.sd * data.scale, groups().std(axis=0, ddof=1), rtol=1e-9)

    def test_another_column_may_be_mostly_constant(self) -> None:
        x = np.column_stack([np.append(np.arange(8.0), 1e7), np.zeros(9)])
        x[0, 1] = x[8, 1] = 3.0
        found = far_rows(Rows(x - [4.0, 0.0], np.empty(0)))
        assert_array_equal(found.rows, [8])
        assert_array_equal(found.times[0] > 0, [True, False])

    def test_more_than_a_few_are_a_group(self) -> None:
        x = groups()
        for n, found in ((3, 3), (4, 0)):
            rows = np.vstack([x, np.full((n, 2), 1e9)]) - np.median(x, axis=0)
            assert len(far_rows(Rows(rows, np.empty(0))).rows) == found
            once, weight = rows[:121], np.append(np.ones(120), float(n))
            assert len(far_rows(Rows(once, weight)).rows) == min(found, 1)

    def test_they_hide_neither_lost_digits_nor_make_up_unequal_scales(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(np.vstack([groups() + 1e14, [1e25, 0.0]]), family=Covariance("EII"))
        text = " ".join(str(w.message) for w in caught)
        assert "[far-row] row 120 is" in text
        assert "[precision-loss]" in text
        assert "[unequal-scales]" not in text


class TestWithoutNoise:
    @pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e12])
    @pytest.mark.parametrize("family", COMMON)
    @pytest.mark.parametrize("direction", [(1.0, 0.0), (1.0, -1.0)])
    def test_an_outlier_leaves_the_other_component_its_digits(
        self, size: float, family: str, direction: tuple[float, float]
    ) -> None:
        x = np.random.default_rng(2).normal(size=(200, 2))
        outlier = size * np.array(direction)
        found, text = noted(family, np.vstack([x, outlier]))
        assert "[far-row] row 200 is" in text
        assert "the smallest component has 1 observations" in text
        p = tree.point(found)
        assert_allclose(p.weight, [200 / 201, 1 / 201], rtol=1e-9)
        assert_allclose(p.mean, [x.mean(axis=0), outlier], rtol=1e-6, atol=1e-6)
        pooled = {
            "EEE": np.cov(x.T, ddof=0),
            "EEI": np.diag(x.var(axis=0)),
            "EII": np.eye(2) * x.var(axis=0).mean(),
        }[family]
        assert_allclose(p.covariance, np.stack([pooled * 200 / 201] * 2), rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("family", COMMON)
    def test_an_outlier_does_not_hide_the_groups(self, family: str) -> None:
        """Two groups and a row at 1e12: starts see one point and another, moves find the groups."""
        rng = np.random.default_rng(2)
        x = rng.normal(size=(200, 2)) + np.repeat([0.0, 8.0], 100)[:, None]
        found, text = noted(family, np.vstack([x, [1e12, -1e12]]), k=3, n_starts=40)
        assert "[far-row] row 200 is" in text
        p = tree.point(found)
        assert_allclose(p.weight * 201, [100, 100, 1], rtol=1e-5)
        means = [x[:100].mean(axis=0), x[100:].mean(axis=0), [1e12, -1e12]]
        assert_allclose(p.mean, means, rtol=1e-4, atol=1e-5)

    def test_an_outlier_of_one_column(self) -> None:
        x = np.append(np.random.default_rng(2).normal(size=200), 1e12)
        p = tree.point(noted("E", x)[0])
        assert_allclose(p.mean.ravel(), [x[:200].mean(), 1e12], rtol=1e-6)
        assert_allclose(p.covariance.ravel(), x[:200].var() * 200 / 201, rtol=1e-6)
        found, text = noted("V", x)
        assert isinstance(found, NumericalError)
        assert "[far-row] row 200 is" in text

    def test_what_to_do_with_an_outlier_is_said(self) -> None:
        """In the error of a family with own covariances, and where the prior's scale is its."""
        x = np.random.default_rng(2).normal(size=(200, 2))
        x = np.vstack([x, [1e12, -1e12]])
        found, text = noted("VVI", x)
        assert isinstance(found, NumericalError)
        assert "drop it, or leave it to a noise component, noise=True" in str(found)
        found, text = noted("VVV", x, estimate="map")
        assert "[far-row] row 200 is" in text
        assert "default priors take their scale from it" in text

    @pytest.mark.parametrize("size", [1e3, 1e12])
    @pytest.mark.parametrize("family", OWN)
    def test_an_outlier_has_no_covariance_of_its_own(self, size: float, family: str) -> None:
        """Alone in its component it makes the likelihood infinite: no number is made up for it."""
        x = np.random.default_rng(2).normal(size=(200, 2))
        found, text = noted(family, np.vstack([x, [size, -size]]))
        assert "[far-row] row 200 is" in text
        if isinstance(found, NumericalError):
            assert "singular" in str(found)
        else:
            assert tree.point(found).weight.min() * 201 > 2.0
