"""`GaussianMixture` as a scikit-learn estimator: a thin coat over `fit_em`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from sklearn import base
from sklearn.utils import Bunch, Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesgmm import mixture, tree
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import PACKAGE, ArgumentError, FitWarning, NumericalError, WeightError
from bayesgmm.moments import Array
from bayesgmm.prediction import assignment

# What arguments of the functions called are called here.
_CALLED = {"n": "n_samples", "n_starts": "n_init", "start": "init_params"}
_CALLED |= {"covariance": "covariance_type", "random_seed": "random_state"}


class GaussianMixture(
    base.ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn has no types
    base.TransformerMixin,  # type: ignore[misc]
    base.DensityMixin,  # type: ignore[misc]
    base.BaseEstimator,  # type: ignore[misc]
):
    r"""Gaussian mixture fitted by EM, for pipelines and grid searches.

    Arguments are called as in `sklearn.mixture.GaussianMixture` where they do the same. There is
    no ``reg_covar``: nothing is added to covariances, and starts that become singular are ranked
    out.

    Parameters
    ----------
    n_components : int
    covariance_type : str
        ``"full"``, ``"tied"``, ``"diag"``, ``"spherical"``, or the letters of any of the fourteen
        families, ``"VVE"``.
    estimate : {"mle", "map"} or None
        Maximum likelihood, or the posterior mode under ``prior``. None is ``"mle"`` unless every
        start ends in a singularity, as with fewer rows than columns: there ``"mle"`` is an error,
        and None warns and is ``"map"``.
    prior : ConjugatePrior or "conjugate"
        For ``"map"``; see `bayesgmm.ConjugatePrior`.
    tol : float
        How many standard errors the estimates may be from the maximum.
    max_iter : int
        Most passes over the data from one start.
    n_init : int
        Number of starts.
    init_params : optional
        ``start`` of `bayesgmm.fit_em`: ``"ellipsoids"``, ``"ward"``, ``"kmeans"``, ``"random"``,
        labels of the rows, `Parameters` or a fit. Default: of each method.
    noise : bool, "columns" or float
        Whether rows may belong to no component; see `bayesgmm.GaussianMixture`. A column of
        probabilities more, and label -1.
    missing : {"error", "marginalise"}
        What to do about NaN: refuse it, or average over what is not known.
    standard_errors : bool, optional
        As in `bayesgmm.fit_em`.
    random_state : int, RandomState or None
        An integer is ``random_seed`` of `bayesgmm.fit_em` and gives the same fit.

    Attributes
    ----------
    weights_, means_ : (k,) and (k, d) arrays
        Components are in the order of their first mean. With noise the weights sum to less than 1.
    covariances_, precisions_, precisions_cholesky_ : arrays
        Covariances, their inverses, and upper triangular U with U U' the inverse: (d, d) for tied
        (EEE), (k, d) for diag (VVI) and (k,) for spherical (VII), as in scikit-learn; (k, d, d)
        for every other family.
    standard_errors_ : Bunch or None
        ``weights, means, covariances`` in the shapes of the estimates; NaN where the likelihood
        has no strict maximum, None if not computed.
    converged_, n_iter_ : bool and int
        Whether EM did, and in how many steps from the best start.
    lower_bound_ : float
        Log-likelihood per observation; with ``"map"`` log prior density added.
    result_ : xarray.DataTree
        The whole fit, for `bayesgmm.summary` and all else.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Examples
    --------
    >>> from bayesgmm import datasets
    >>> X = datasets.load("faithful")
    >>> model = GaussianMixture(2, random_state=1).fit(X)
    >>> round(model.score(X), 4)
    -4.1554
    """

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "full",
        *,
        estimate: str | None = None,
        prior: Any = "conjugate",
        tol: float = 1e-4,
        max_iter: int = 10_000,
        n_init: int = 40,
        init_params: Any = None,
        noise: Any = False,
        missing: str = "error",
        standard_errors: bool | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.estimate = estimate
        self.prior = prior
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.noise = noise
        self.missing = missing
        self.standard_errors = standard_errors
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture; ``sample_weight`` (n,) are frequencies, ``y`` is ignored.

        Raises
        ------
        DataError, ArgumentError, NumericalError
            As `bayesgmm.fit_em`; the first two are ValueErrors.

        Warns
        -----
        FitWarning
            If the fit should not be trusted, with the reasons.
        """
        if sample_weight is not None and not np.count_nonzero(np.asarray(sample_weight)):
            raise WeightError("sample_weight: all weights are zero, so that no row is left")
        table = self._table(X, ensure_min_samples=2)
        with _as_called_here():
            self.result_ = self._fitted(table, sample_weight)
        point, stats = tree.point(self.result_), self.result_["sample_stats"]
        inverse = np.swapaxes(point.whitening, 1, 2)
        self.weights_, self.means_ = point.weight, point.mean
        self.covariances_ = self._shaped(point.covariance)
        self.precisions_cholesky_ = self._shaped(inverse)
        self.precisions_ = self._shaped(inverse @ point.whitening)
        self.standard_errors_ = None
        if "standard_error" in self.result_.children:
            errors = self.result_["standard_error"]
            se = tree.components({name: errors[name].to_numpy() for name in tree.DIMS})
            self.standard_errors_ = Bunch(
                weights=se.weight, means=se.mean, covariances=self._shaped(se.covariance)
            )
        self.converged_ = bool(stats["converged"].item())
        self.n_iter_ = int(stats["n_iter"].item())
        n = self.result_["constant_data"]["sample_weight"].sum().item()
        self.lower_bound_ = float(stats["lp"].item() / n)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit the mixture and return the most probable component of every row."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X: Any) -> Any:
        """Return the most probable component of every row, (n,) integers; -1 for noise."""
        return self._ask(assignment.predict, X)

    def predict_proba(self, X: Any) -> Array:
        """Return the probability that each row came from each component, (n, k); noise is last."""
        return self._ask(assignment.predict_proba, X)

    def transform(self, X: Any) -> Array:
        """Return what `predict_proba` does, as features for the next step of a pipeline."""
        return self.predict_proba(X)

    def score_samples(self, X: Any) -> Array:
        """Return the log-density of every row, (n,)."""
        return self._ask(assignment.score, X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-density of the rows; larger is better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[Array, Any]:
        """Draw rows (n, d) and their components (n,); an integer ``random_state`` repeats them."""
        check_is_fitted(self)
        with _as_called_here():
            seed = self._seed()
            X, y = assignment.simulate(self.result_, n_samples, labels=True, random_seed=seed)
        return X.to_numpy(), y.to_numpy()

    def aic(self, X: Any) -> float:
        """Return Akaike's criterion for the rows of ``X``; smaller is better."""
        return -2.0 * float(self.score_samples(X).sum()) + 2.0 * self._n_parameters()

    def bic(self, X: Any) -> float:
        """Return Schwarz's criterion for the rows of ``X``; smaller is better."""
        row = self.score_samples(X)
        return -2.0 * float(row.sum()) + self._n_parameters() * float(np.log(len(row)))

    def icl(self, X: Any) -> float:
        r"""Return BIC :math:`- 2 \sum_n \log \max_k r_{nk}`; smaller is better."""
        return self.bic(X) - 2.0 * float(np.log(self.predict_proba(X).max(axis=1)).sum())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "marginalise"
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.weights_) + tree.spec_of(self.result_).has_noise

    def _fitted(self, table: pd.DataFrame, sample_weight: Any) -> xr.DataTree:
        k, family = self.n_components, self.covariance_type
        spec = mixture.GaussianMixture(k, family, self.prior, self.noise)
        settings = {"sample_weight": sample_weight, "missing": self.missing}
        settings |= {"start": self.init_params, "n_starts": self.n_init}
        settings |= {"max_iter": self.max_iter, "tol": self.tol, "random_seed": self._seed()}
        settings |= {"standard_errors": self.standard_errors, "progressbar": False}
        try:
            estimate: Any = "mle" if self.estimate is None else self.estimate
            return fit_em(spec, table, estimate=estimate, **settings)
        except NumericalError as error:
            if self.estimate is not None:
                raise
            text = f"the posterior mode is fitted, estimate='map', since {error}"
            warnings.warn(FitWarning("no-maximum", text), skip_file_prefixes=(PACKAGE,))
        return fit_em(spec, table, estimate="map", **settings)

    def _table(self, X: Any, **settings: Any) -> pd.DataFrame:
        if self.missing not in ("error", "marginalise"):
            raise ArgumentError(
                "missing", f"must be 'error' or 'marginalise', not {self.missing!r}"
            )
        finite = True if self.missing == "error" else "allow-nan"
        values = np.asarray(validate_data(self, X, ensure_all_finite=finite, **settings))
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(values.shape[1])])
        index = X.index if isinstance(X, pd.DataFrame) else None
        return pd.DataFrame(values, columns=list(names), index=index)

    def _ask(self, verb: Any, X: Any) -> Array:
        check_is_fitted(self)
        return np.asarray(verb(self.result_, self._table(X, reset=False), missing=self.missing))

    def _n_parameters(self) -> int:
        return int(self.result_["criteria"]["n_params"].item())

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _shaped(self, matrices: Array) -> Array:
        """Return (k, d, d) matrices in scikit-learn's shape for the family."""
        letters = tree.spec_of(self.result_).covariance.letters
        if letters == "EEE":
            return matrices[0]
        if letters in ("VVI", "VII"):
            diagonal = np.diagonal(matrices, axis1=1, axis2=2).copy()
            return diagonal if letters == "VVI" else diagonal[:, 0]
        return matrices


@contextmanager
def _as_called_here() -> Iterator[None]:
    """Name a wrong argument as the caller of the estimator wrote it."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(_CALLED.get(error.argument, error.argument), error.message) from None
