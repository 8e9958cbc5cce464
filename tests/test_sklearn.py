"""The scikit-learn estimator: scikit-learn's own checks, and scikit-learn's mixture beside it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import registry
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, BayesgmmWarning, FitWarning, NumericalError, WeightError
from bayesgmm.moments import Parameters
from bayesgmm.sklearn import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")


@pytest.fixture(scope="module")
def iris() -> pd.DataFrame:
    return registry.table("iris")


def model(n_components: int = 2, covariance_type: str = "full", **settings: Any) -> GaussianMixture:
    settings = {"n_init": 4, "random_state": 1} | settings
    return GaussianMixture(n_components, covariance_type, **settings)


# What the checks fit is mostly noise, of which our warnings are right.
@pytest.mark.filterwarnings("ignore::bayesgmm.errors.BayesgmmWarning")
@parametrize_with_checks(
    [
        GaussianMixture(),
        GaussianMixture(covariance_type="VVI", estimate="mle", missing="marginalise"),
        GaussianMixture(2, "EII", init_params="ward", random_state=0),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


class TestBesideScikitLearn:
    @pytest.mark.parametrize("covariance_type", TYPES)
    def test_at_the_same_parameters_all_numbers_are_the_same(
        self, covariance_type: str, iris: pd.DataFrame
    ) -> None:
        """The fitted attributes are taken over as they are: shapes, names, triangles."""
        own = model(3, covariance_type).fit(iris)
        other = SklearnMixture(3, covariance_type=covariance_type)
        for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
            setattr(other, name, getattr(own, name))
        x = iris.to_numpy() + 0.3
        assert_allclose(own.score_samples(iris + 0.3), other.score_samples(x), rtol=1e-9)
        assert_allclose(own.predict_proba(iris + 0.3), other.predict_proba(x), atol=1e-9)
        assert_array_equal(own.predict(iris + 0.3), other.predict(x))
        for verb in ("score", "bic", "aic"):
            expected = getattr(other, verb)(x)
            assert getattr(own, verb)(iris + 0.3) == pytest.approx(expected, rel=1e-9), verb

    @pytest.mark.parametrize("covariance_type", TYPES)
    @pytest.mark.parametrize("name", ["faithful", "iris"])
    def test_from_the_same_start_the_optimum_is_the_same(
        self, covariance_type: str, name: str
    ) -> None:
        x = registry.table(name).to_numpy()
        other = SklearnMixture(
            2, covariance_type=covariance_type, reg_covar=0.0, max_iter=1, random_state=0
        )
        with pytest.warns(UserWarning, match="did not converge"):
            other.fit(x)
        shape = {"full": 3, "tied": 2, "diag": 2, "spherical": 1}[covariance_type]
        assert other.covariances_.ndim == shape
        covariance = {
            "full": lambda c: c,
            "tied": lambda c: np.stack([c, c]),
            "diag": lambda c: c[:, :, None] * np.eye(x.shape[1]),
            "spherical": lambda c: c[:, None, None] * np.eye(x.shape[1]),
        }[covariance_type](other.covariances_)
        start = Parameters(other.weights_, other.means_, covariance)
        own = model(2, covariance_type, init_params=start, tol=1e-6).fit(x)
        other.set_params(max_iter=10_000, tol=1e-13, warm_start=True).fit(x)
        order = np.lexsort(other.means_.T[::-1])
        assert own.score(x) == pytest.approx(other.score(x), rel=1e-8)
        assert own.bic(x) == pytest.approx(other.bic(x), rel=1e-8)
        assert_allclose(own.weights_, other.weights_[order], rtol=1e-5)
        assert_allclose(own.means_, other.means_[order], rtol=1e-5)
        theirs = other.covariances_ if covariance_type == "tied" else other.covariances_[order]
        assert_allclose(own.covariances_, theirs, rtol=1e-4, atol=1e-8)
        assert own.lower_bound_ == pytest.approx(other.lower_bound_, rel=1e-8)


@pytest.mark.parametrize("letters", [family.letters for family in registry.EVERY])
def test_every_family(letters: str, iris: pd.DataFrame) -> None:
    own = model(2, letters).fit(iris)
    d = iris.shape[1]
    assert own.weights_.shape == (2,)
    assert own.means_.shape == (2, d)
    for name in ("covariances_", "precisions_", "precisions_cholesky_"):
        shape = {"EEE": (d, d), "VVI": (2, d), "VII": (2,)}.get(letters, (2, d, d))
        assert getattr(own, name).shape == shape
    assert own.standard_errors_.covariances.shape == own.covariances_.shape
    assert own.standard_errors_.means.shape == (2, d)
    upper = own.precisions_cholesky_
    if letters in ("VVI", "VII"):
        assert_allclose(own.precisions_ * own.covariances_, 1.0)
        assert_allclose(upper**2, own.precisions_)
    else:
        identity = np.broadcast_to(np.eye(d), own.covariances_.shape)
        assert_allclose(own.precisions_ @ own.covariances_, identity, atol=1e-10)
        assert_allclose(upper @ np.swapaxes(upper, -1, -2), own.precisions_, rtol=1e-9)
        assert_array_equal(np.triu(upper), upper)
    assert own.score(iris) == pytest.approx(own.lower_bound_, rel=1e-12)


def test_it_is_fit_em(iris: pd.DataFrame) -> None:
    """The same seed, the same bits; names and index of the table are in the result."""
    x = iris.set_index(pd.Index([f"flower {i}" for i in range(150)]))
    own = model(3, "VVE").fit(x)
    fit = bg.fit_em(bg.GaussianMixture(3, "VVE"), x, n_starts=4, random_seed=1)
    for ours, name in (("weights_", "weight"), ("means_", "mean"), ("covariances_", "covariance")):
        assert_array_equal(getattr(own, ours), fit["posterior"][name].to_numpy()[0, 0])
    assert own.result_.attrs["fingerprint"] == fit.attrs["fingerprint"]
    assert own.result_["observed_data"]["obs"].to_numpy().tolist() == x.index.tolist()
    pd.testing.assert_frame_equal(bg.summary(own.result_), bg.summary(fit))
    for name in ("aic", "bic", "icl"):
        expected = fit["criteria"][name].item()
        assert getattr(own, name)(x) == pytest.approx(expected, rel=1e-12)
    assert (own.converged_, own.n_iter_) == (True, fit["sample_stats"]["n_iter"].item())
    assert own.feature_names_in_.tolist() == iris.columns.tolist()


def test_weights_are_repeated_rows(iris: pd.DataFrame) -> None:
    weight = np.random.default_rng(0).integers(0, 3, size=150)
    a = model(2, "tied").fit(iris, sample_weight=weight)
    b = model(2, "tied").fit(iris.loc[iris.index.repeat(weight)])
    assert_allclose(a.covariances_, b.covariances_, rtol=1e-6)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-10)
    c = clone(a)
    assert_array_equal(c.fit_predict(iris, sample_weight=weight), a.predict(iris))
    with pytest.raises(WeightError, match=r"^sample_weight: all weights are zero"):
        clone(a).fit(iris, sample_weight=np.zeros(150))


def test_a_posterior_mode(iris: pd.DataFrame) -> None:
    prior = bg.ConjugatePrior(dof=20.0)
    own = model(2, estimate="map", prior=prior).fit(iris)
    spec = bg.GaussianMixture(2, "VVV", prior)
    fit = bg.fit_em(spec, iris, estimate="map", n_starts=4, random_seed=1)
    assert_array_equal(own.covariances_, fit["posterior"]["covariance"].to_numpy()[0, 0])
    assert own.lower_bound_ == pytest.approx(fit["sample_stats"]["lp"].item() / 150, rel=1e-12)


class TestMissingValues:
    def test_they_are_averaged_over_if_asked_for(self, iris: pd.DataFrame) -> None:
        x = iris.mask(np.random.default_rng(1).random(iris.shape) < 0.1)
        own = model(2, missing="marginalise").fit(x)
        spec = bg.GaussianMixture(2)
        fit = bg.fit_em(spec, x, missing="marginalise", n_starts=4, random_seed=1)
        assert_array_equal(own.means_, fit["posterior"]["mean"].to_numpy()[0, 0])
        assert_array_equal(own.score_samples(x), bg.score(fit, x, missing="marginalise"))
        assert own.lower_bound_ == pytest.approx(own.score(x), rel=1e-12)
        assert (own.predict(x) == model(2).fit_predict(iris)).mean() > 0.95
        assert own.__sklearn_tags__().input_tags.allow_nan

    def test_else_they_are_refused(self, iris: pd.DataFrame) -> None:
        own = model(2).fit(iris)
        assert not own.__sklearn_tags__().input_tags.allow_nan
        for verb in (own.predict, own.score_samples, clone(own).fit):
            with pytest.raises(ValueError, match="NaN"):
                verb(iris.where(iris > 1.0))
        with pytest.raises(ValueError, match="infinity"):
            model(2, missing="marginalise").fit(iris.where(iris > 1.0, np.inf))


class TestWithoutAMaximum:
    """Eight rows in twelve columns have no covariance of full rank."""

    X = np.random.default_rng(2).normal(size=(8, 12))

    @pytest.mark.parametrize("n_components", [1, 2])
    def test_by_default_the_posterior_mode_is_fitted_with_a_warning(
        self, n_components: int
    ) -> None:
        own = model(n_components)
        with pytest.warns(BayesgmmWarning) as caught:
            own.fit(self.X)
        codes = [w.message.code for w in caught if isinstance(w.message, FitWarning)]
        assert codes[0] == "no-maximum"
        assert own.result_.attrs["estimate"] == "map"
        assert (np.linalg.eigvalsh(own.covariances_) > 0).all()
        assert np.isfinite(own.score(self.X))

    def test_maximum_likelihood_is_an_error_if_asked_for(self) -> None:
        with pytest.warns(BayesgmmWarning), pytest.raises(NumericalError, match="singular"):
            model(2, estimate="mle").fit(self.X)


class TestInPipelines:
    def test_a_grid_search_finds_the_two_groups(self) -> None:
        x = registry.table("faithful")
        grid = {
            "gaussianmixture__n_components": [1, 2],
            "gaussianmixture__covariance_type": ["tied", "EII"],
        }
        pipeline = make_pipeline(StandardScaler(), model())
        search = GridSearchCV(pipeline, grid, cv=3).fit(x)
        assert search.best_params_["gaussianmixture__n_components"] == 2
        assert search.best_params_["gaussianmixture__covariance_type"] == "tied"
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()

    def test_output_has_names_if_asked_for(self, iris: pd.DataFrame) -> None:
        pipeline = make_pipeline(StandardScaler(), model(3)).set_output(transform="pandas")
        found = pipeline.fit_transform(iris)
        assert found.columns.tolist() == [f"gaussianmixture{k}" for k in range(3)]
        pd.testing.assert_index_equal(found.index, iris.index)
        assert_allclose(found.sum(axis=1), 1.0)
        assert pipeline[-1].feature_names_in_.tolist() == iris.columns.tolist()

    def test_components_are_features_of_a_classifier(self, iris: pd.DataFrame) -> None:
        y = np.repeat([0, 1, 2], 50)
        pipeline = make_pipeline(model(3), LogisticRegression()).fit(iris, y)
        assert pipeline.score(iris, y) > 0.9

    def test_copies_and_pickles(self, iris: pd.DataFrame) -> None:
        own = model(2, "VEV", init_params=["kmeans"]).fit(iris)
        again = pickle.loads(pickle.dumps(own))
        assert_array_equal(again.predict_proba(iris), own.predict_proba(iris))
        pd.testing.assert_frame_equal(bg.summary(again.result_), bg.summary(own.result_))
        copy = clone(own)
        assert not hasattr(copy, "result_")
        assert_array_equal(copy.fit(iris).covariances_, own.covariances_)
        assert own.get_params()["covariance_type"] == "VEV"


class TestRandomState:
    def test_numbers_and_generators(self, iris: pd.DataFrame) -> None:
        seeds = [
            model(random_state=state).fit(iris).result_.attrs["random_seed"]
            for state in (5, np.int64(5), np.random.RandomState(3), np.random.RandomState(3), None)
        ]
        assert seeds[0] == seeds[1] == 5
        assert seeds[2] == seeds[3]
        assert isinstance(seeds[4], int)

    def test_samples(self, iris: pd.DataFrame) -> None:
        own = model(3).fit(iris)
        x, y = own.sample(2000)
        assert (x.shape, y.shape) == ((2000, 4), (2000,))
        assert_array_equal(own.sample(2000)[0], x)
        assert_allclose(np.bincount(y) / 2000, own.weights_, atol=0.06)
        assert own.sample()[0].shape == (1, 4)
        other = model(3, random_state=np.random.RandomState(0)).fit(iris)
        assert not np.array_equal(other.sample(5)[0], other.sample(5)[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_components", 0),
        ("covariance_type", "fuller"),
        ("estimate", "bayes"),
        ("prior", "flat"),
        ("tol", -1.0),
        ("max_iter", 0),
        ("n_init", 0),
        ("init_params", "k-means++"),
        ("missing", "drop"),
        ("random_state", -1),
    ],
)
def test_wrong_arguments_are_called_as_the_caller_did(
    argument: str, value: Any, iris: pd.DataFrame
) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        model().set_params(**{argument: value}).fit(iris)


def test_wrong_numbers_of_samples(iris: pd.DataFrame) -> None:
    with pytest.raises(ArgumentError, match=r"^n_samples: must be an integer of at least 1"):
        model().fit(iris).sample(0)


def test_the_module_hides_neither_scikit_learn_nor_loads_more() -> None:
    program = (
        "import sys\n"
        "import bayesgmm as bg\n"
        "assert 'sklearn' not in sys.modules\n"
        "import bayesgmm.sklearn\n"
        "import sklearn\n"
        "assert sklearn.__version__ and sklearn is not bayesgmm.sklearn\n"
        "X = bg.datasets.load('faithful')\n"
        "bg.fit_em(bg.GaussianMixture(2), X, start='kmeans', n_starts=2, random_seed=0)\n"
        "assert bg.GaussianMixture is not bayesgmm.sklearn.GaussianMixture\n"
        "assert not {'arviz', 'pymc', 'pytensor', 'nutpie', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=300)
