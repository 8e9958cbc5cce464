"""Densities, components and new rows from fits: against scipy, scikit-learn, and by simulation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import fits
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp
from scipy.stats import chi2, kstest, multivariate_normal
from sklearn.mixture import GaussianMixture as SklearnMixture

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, ColumnNameError, MissingValueError, ShapeError
from bayesgmm.moments import Parameters
from bayesgmm.prediction import assignment, evaluation

NAMES = ["eruptions", "waiting"]


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return fits.em_fit()


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.nuts_fit(chains=2, draws=40)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fits.faithful().set_index(pd.Index([f"day {i}" for i in range(272)], name="day"))


def mixture(seed: int = 0, k: int = 3, d: int = 2, scale: float = 1.0) -> Parameters:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k, d, d)) + 2.0 * np.eye(d)
    return Parameters(
        rng.dirichlet(np.full(k, 3.0)),
        scale * 3.0 * rng.normal(size=(k, d)),
        scale**2 * root @ np.swapaxes(root, 1, 2),
    )


def joint(x: np.ndarray, p: Parameters) -> np.ndarray:
    """log(weight) + log N(x; mean, covariance), (n, k), by scipy."""
    each = [multivariate_normal(m, c).logpdf(x) for m, c in zip(p.mean, p.covariance, strict=True)]
    return np.stack(each, axis=-1).reshape(len(x), -1) + np.log(p.weight)


def each_draw(fit: xr.DataTree) -> list[Parameters]:
    flat = fit["posterior"].to_dataset().stack(s=("chain", "draw")).transpose("s", ...)
    names = ("weight", "mean", "covariance")
    return [
        Parameters(*values) for values in zip(*(flat[name].values for name in names), strict=True)
    ]


class TestAPoint:
    def test_against_scikit_learn(self, mle: xr.DataTree, frame: pd.DataFrame) -> None:
        other = SklearnMixture(2)
        point = each_draw(mle)[0]
        other.weights_, other.means_ = point.weight, point.mean
        other.covariances_ = point.covariance
        other.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(point.covariance))
        x = frame.to_numpy()
        np.testing.assert_allclose(bg.score(mle, frame), other.score_samples(x), rtol=1e-12)
        np.testing.assert_allclose(
            bg.predict_proba(mle, frame), other.predict_proba(x), rtol=1e-9, atol=1e-14
        )
        np.testing.assert_array_equal(bg.predict(mle, frame), other.predict(x))

    def test_the_scores_sum_to_the_log_likelihood(
        self, mle: xr.DataTree, frame: pd.DataFrame
    ) -> None:
        loglik = mle["sample_stats"]["loglik"].item()
        np.testing.assert_allclose(bg.score(mle, frame).sum(), loglik, rtol=1e-12)

    @pytest.mark.parametrize("k", [1, 2, 5])
    @pytest.mark.parametrize("d", [1, 3, 8])
    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
    def test_against_scipy(self, k: int, d: int, scale: float) -> None:
        p = mixture(k + d, k, d, scale)
        x = scale * 4.0 * np.random.default_rng(1).normal(size=(60, d))
        unit = Parameters(p.weight, p.mean / scale, p.covariance / scale**2)
        expected = joint(x / scale, unit)
        total = logsumexp(expected, axis=1)
        np.testing.assert_allclose(bg.score(p, x), total - d * np.log(scale), rtol=1e-11)
        probability = np.exp(expected - total[:, None])
        np.testing.assert_allclose(bg.predict_proba(p, x), probability, rtol=1e-8, atol=1e-14)

    def test_a_density_integrates_to_one(self) -> None:
        p = mixture(3, 3, 1)
        x = np.linspace(-40, 40, 8001)
        assert np.trapezoid(np.exp(bg.score(p, x)), x) == pytest.approx(1.0, abs=1e-9)

    def test_an_offset_costs_no_more_digits_than_the_data_lost(self) -> None:
        p = mixture(4)
        x = np.random.default_rng(2).normal(size=(50, 2)).round(3)
        far = Parameters(p.weight, p.mean + 1e8, p.covariance)
        np.testing.assert_allclose(bg.score(far, x + 1e8), bg.score(p, x), atol=1e-6)

    def test_one_row_and_one_column(self) -> None:
        p = mixture(5, 2, 1)
        assert bg.score(p, [0.5]).shape == (1,)
        assert bg.predict_proba(p, [[0.5]]).shape == (1, 2)


class TestDraws:
    def test_the_density_is_averaged(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        x = frame.to_numpy()
        rows = np.stack([logsumexp(joint(x, p), axis=1) for p in each_draw(post)])
        expected = logsumexp(rows, axis=0) - np.log(len(rows))
        np.testing.assert_allclose(bg.score(post, frame), expected, rtol=1e-11)

    def test_responsibilities_are_averaged(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        each = [joint(frame.to_numpy(), p) for p in each_draw(post)]
        r = [np.exp(a - logsumexp(a, axis=1, keepdims=True)) for a in each]
        found = bg.predict_proba(post, frame)
        np.testing.assert_allclose(found, np.mean(r, axis=0), rtol=1e-9, atol=1e-14)
        np.testing.assert_array_equal(bg.predict(post, frame), found.to_numpy().argmax(axis=1))

    def test_some_evenly_spaced_draws(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        few = [each_draw(post)[i] for i in (0, 40, 79)]
        rows = np.stack([logsumexp(joint(frame.to_numpy(), p), axis=1) for p in few])
        expected = logsumexp(rows, axis=0) - np.log(3)
        np.testing.assert_allclose(bg.score(post, frame, draws=3), expected, rtol=1e-11)
        more = bg.predict_proba(post, frame, draws=10**6)
        pd.testing.assert_frame_equal(more, bg.predict_proba(post, frame))

    def test_blocks_of_rows_change_no_bit(
        self, post: xr.DataTree, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = bg.score(post, frame), bg.predict_proba(post, frame)
        monkeypatch.setattr(evaluation, "BLOCK", 7)
        pd.testing.assert_series_equal(bg.score(post, frame), whole[0], check_exact=True)
        pd.testing.assert_frame_equal(bg.predict_proba(post, frame), whole[1], check_exact=True)

    def test_no_density_of_a_draw_underflows(self, post: xr.DataTree) -> None:
        far = pd.DataFrame({"eruptions": [1e6], "waiting": [1e6]})
        assert -1e14 < bg.score(post, far).item() < -1e10


class TestTables:
    def test_index_and_names_are_kept(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        for found in (
            bg.score(post, frame),
            bg.predict(post, frame),
            bg.predict_proba(post, frame),
        ):
            pd.testing.assert_index_equal(found.index, frame.index)
        assert bg.score(post, frame).name == "log_density"
        assert bg.predict(post, frame).name == "cluster"
        assert bg.predict(post, frame).dtype.kind == "i"
        columns = bg.predict_proba(post, frame).columns
        assert (list(columns), columns.name) == ([0, 1], "cluster")

    def test_columns_are_matched_by_name(self, mle: xr.DataTree, frame: pd.DataFrame) -> None:
        other = frame[NAMES[::-1]]
        pd.testing.assert_series_equal(bg.score(mle, other), bg.score(mle, frame))
        pd.testing.assert_frame_equal(bg.predict_proba(mle, other), bg.predict_proba(mle, frame))
        np.testing.assert_array_equal(bg.score(mle, frame.to_numpy()), bg.score(mle, frame))

    @pytest.mark.parametrize("verb", [bg.score, bg.predict_proba, bg.predict])
    def test_missing_and_extra_columns_are_named(
        self, mle: xr.DataTree, frame: pd.DataFrame, verb: Any
    ) -> None:
        with pytest.raises(ColumnNameError, match=r"waiting.* missing"):
            verb(mle, frame[["eruptions"]])
        with pytest.raises(ColumnNameError, match=r"colour.* unexpected"):
            verb(mle, frame.assign(colour=1.0))
        with pytest.raises(MissingValueError, match="eruptions"):
            verb(mle, frame.assign(eruptions=np.nan))

    def test_parameters_have_no_names_to_match(self, frame: pd.DataFrame) -> None:
        p = mixture()
        np.testing.assert_array_equal(bg.score(p, frame), bg.score(p, frame.to_numpy()))
        with pytest.raises(ShapeError, match="X has 3 columns, but the mixture has 2"):
            bg.score(p, np.ones((4, 3)))

    def test_the_data_stay_as_they_are(self, mle: xr.DataTree, frame: pd.DataFrame) -> None:
        before = frame.copy()
        bg.predict_proba(mle, frame)
        pd.testing.assert_frame_equal(frame, before)


class TestFarAway:
    """No row is too far, no unit too small: the nearest component in its own units wins."""

    SIZES = (1e6, 1e50, 1e100, 1e153, 1e154, 1e155, 1e200, 1e300, 1e308)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("direction", [(1, 1), (1, -1), (-1, 0.5), (0, 1)])
    def test_the_nearest_component_wins(self, size: float, direction: tuple[float, float]) -> None:
        p = mixture(6)
        x = np.array([direction]) * size
        inverse = np.linalg.inv(p.covariance)
        distance = np.einsum("i,kij,j->k", *(direction, inverse, direction))
        probability = bg.predict_proba(p, x).to_numpy()
        np.testing.assert_array_equal(probability[0], np.eye(3)[distance.argmin()])
        assert bg.predict(p, x).item() == distance.argmin()
        assert bg.score(p, x).item() < -1e3

    def test_a_posterior_gives_probabilities_too(self, post: xr.DataTree) -> None:
        x = np.array([[size, -size] for size in self.SIZES])
        probability = bg.predict_proba(post, x)
        np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-12)
        assert bg.score(post, x).to_numpy()[-1] == -np.inf

    @pytest.mark.parametrize("sd", [1e-150, 1e-100, 1e100, 1e150])
    def test_any_unit(self, sd: float) -> None:
        p = Parameters(
            np.array([0.5, 0.3, 0.2]),
            np.array([[0.0], [1.0], [-1.0]]) * sd,
            np.array([1.0, 4.0, 0.25])[:, None, None] * sd**2,
        )
        unit = Parameters(p.weight, p.mean / sd, np.array([1.0, 4.0, 0.25])[:, None, None])
        x = np.array([[-1.0], [0.0], [0.7], [9.0]])
        np.testing.assert_allclose(bg.predict_proba(p, x * sd), bg.predict_proba(unit, x))
        np.testing.assert_allclose(bg.score(p, x * sd), bg.score(unit, x) - np.log(sd), rtol=1e-12)
        far = np.array([[1e308], [-1e308]])
        np.testing.assert_array_equal(bg.predict(p, far), [1, 1])

    def test_components_on_both_sides_of_everything(self) -> None:
        p = Parameters(np.array([0.5, 0.5]), np.array([[-1e300], [1e300]]), np.ones((2, 1, 1)))
        x = np.array([[-1e308], [-1e290], [1e290], [1e308]])
        np.testing.assert_array_equal(bg.predict(p, x), [0, 0, 1, 1])
        # At 1 the distances to both are equal to the last digit.
        np.testing.assert_array_equal(bg.predict_proba(p, [[1.0]]), [[0.5, 0.5]])

    @pytest.mark.parametrize("size", [0.0, 1.0, 1e200, 1e308])
    def test_a_component_of_weight_zero(self, size: float) -> None:
        p = Parameters(
            np.array([0.0, 0.4, 0.6]), np.array([[size], [0.0], [1.0]]), np.ones((3, 1, 1))
        )
        x = [[size], [-size]]
        probability = bg.predict_proba(p, x).to_numpy()
        assert (probability[:, 0] == 0.0).all()
        np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-12)
        two = Parameters(p.weight[1:], p.mean[1:], p.covariance[1:])
        np.testing.assert_array_equal(bg.score(p, x), bg.score(two, x))
        assert (bg.simulate(p, 2000, labels=True, random_seed=0)[1] > 0).all()


@given(
    arrays(
        float,
        st.tuples(st.integers(1, 20), st.just(2)),
        elements=st.floats(-1.7e308, 1.7e308, allow_subnormal=True),
    ),
    st.integers(0, 100),
    st.sampled_from([1e-100, 1e-3, 1.0, 1e8, 1e100]),
)
def test_rows_sum_to_one(x: np.ndarray, seed: int, scale: float) -> None:
    probability = bg.predict_proba(mixture(seed, 3, 2, scale), x).to_numpy()
    assert (probability >= 0.0).all()
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=0.0, atol=1e-12)
    density = bg.score(mixture(seed, 3, 2, scale), x).to_numpy()
    assert not np.isnan(density).any()
    assert (density < np.inf).all()


class TestSimulate:
    def test_moments_of_a_mixture(self) -> None:
        p, n = mixture(8, 3, 3), 100_000
        x, cluster = bg.simulate(p, n, labels=True, random_seed=1)
        assert list(x) == ["x0", "x1", "x2"]
        share = np.bincount(cluster, minlength=3) / n
        assert np.abs(share - p.weight).max() < 5 / np.sqrt(n)
        for j in range(3):
            own = x.to_numpy()[cluster == j]
            z = np.linalg.solve(np.linalg.cholesky(p.covariance[j]), (own - p.mean[j]).T)
            assert np.abs(z.mean(axis=1)).max() < 5 / np.sqrt(len(own))
            assert np.abs(np.cov(z) - np.eye(3)).max() < 8 / np.sqrt(len(own))
            assert kstest((z**2).sum(axis=0), chi2(3).cdf).pvalue > 1e-4

    def test_draws_are_the_posterior_predictive(self) -> None:
        post = fits.one_dimensional(2, draws=100)
        x = bg.simulate(post, 20_000, random_seed=2)
        at = np.linspace(-15, 15, 6001)
        cdf = np.cumsum(np.exp(bg.score(post, at).to_numpy())) * (at[1] - at[0])
        assert cdf[-1] == pytest.approx(1.0, abs=1e-6)
        assert kstest(x["velocity"], lambda v: np.interp(v, at, cdf)).pvalue > 1e-4

    def test_every_row_has_a_draw_of_its_own(self, mle: xr.DataTree) -> None:
        # Two draws far apart: half of the rows are from either.
        two = xr.concat([mle["posterior"].to_dataset()] * 2, dim="draw")
        two["mean"] = two["mean"] + xr.DataArray([0.0, 1e6], dims="draw")
        fit = xr.DataTree.from_dict({"posterior": two})
        x = bg.simulate(fit, 4000, random_seed=3)
        assert abs((x["waiting"] > 5e5).mean() - 0.5) < 0.04

    def test_columns_and_seed(self, post: xr.DataTree) -> None:
        x = bg.simulate(post, 30, random_seed=4)
        assert list(x) == NAMES
        assert len(x) == 30
        pd.testing.assert_frame_equal(x, bg.simulate(post, 30, random_seed=4))
        again, cluster = bg.simulate(post, 30, labels=True, random_seed=4)
        pd.testing.assert_frame_equal(x, again)
        pd.testing.assert_index_equal(x.index, cluster.index)
        assert not x.equals(bg.simulate(post, 30, random_seed=5))
        assert not x.equals(bg.simulate(post, 30))

    def test_blocks_change_nothing(
        self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = bg.simulate(post, 100, random_seed=6)
        monkeypatch.setattr(assignment, "BLOCK", 9)
        pd.testing.assert_frame_equal(whole, bg.simulate(post, 100, random_seed=6))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"n": 0}, "^n: must be an integer of at least 1"),
            ({"n": 2.5}, "^n: must be an integer"),
            ({"n": 5, "random_seed": -1}, "^random_seed: must be an integer of at least 0"),
        ],
    )
    def test_wrong_arguments(self, mle: xr.DataTree, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            bg.simulate(mle, **wrong)


ONE = {"weight": np.ones(1), "mean": np.zeros((1, 2)), "covariance": np.eye(2)[None]}


class TestWhatIsNoMixture:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"weight": np.array([0.9])}, "weights must be at least 0 and sum to one"),
            ({"weight": np.array([np.nan])}, "weights must be at least 0 and sum to one"),
            ({"mean": np.array([[0.0, np.inf]])}, "means must be finite"),
            ({"covariance": np.zeros((1, 2, 2))}, "symmetric and positive definite"),
            ({"covariance": -np.eye(2)[None]}, "symmetric and positive definite"),
            ({"covariance": np.array([[[1.0, 1e9], [0.0, 1.0]]])}, "symmetric and positive"),
            ({"covariance": np.full((1, 2, 2), np.nan)}, "symmetric and positive definite"),
            ({"mean": np.zeros(2)}, r"not \(1,\), \(2,\), \(1, 2, 2\)"),
            ({"weight": np.full(2, 0.5)}, r"not \(2,\), \(1, 2\), \(1, 2, 2\)"),
        ],
    )
    def test_parameters(self, wrong: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(ArgumentError, match=f"^fit: .*{message}"):
            bg.score(Parameters(**(ONE | wrong)), np.zeros((1, 2)))

    def test_the_draw_is_named(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        broken = post.copy(deep=True)
        broken["posterior"]["mean"].values[1, 2, 0, 0] = np.nan
        with pytest.raises(ArgumentError, match="means must be finite; draw 42 is not so"):
            bg.score(broken, frame)

    def test_something_else(self, frame: pd.DataFrame) -> None:
        with pytest.raises(ArgumentError, match="must be a fit or Parameters, not DataFrame"):
            bg.score(frame, frame)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="must be a fit or Parameters, not DataTree"):
            bg.score(xr.DataTree(), frame)

    def test_no_draws(self, post: xr.DataTree, frame: pd.DataFrame) -> None:
        with pytest.raises(ArgumentError, match=r"^draws: must be an integer of at least 1"):
            bg.predict(post, frame, draws=0)


def test_the_names_are_functions_whatever_is_used_first() -> None:
    program = (
        "import sys, bayesgmm as bg\n"
        "assert callable(bg.score) and callable(bg.predict)\n"
        "from bayesgmm import predict, predict_proba, simulate\n"
        "assert callable(predict) and callable(predict_proba) and callable(simulate)\n"
        "assert not {'arviz', 'pymc', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
