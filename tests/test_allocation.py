"""Responsibilities and co-clustering over draws: against SciPy, Bayes' formula and enumeration."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

import fits
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import softmax
from scipy.stats import multivariate_normal
from threadpoolctl import threadpool_limits

import bayesgmm as bg
from bayesgmm.allocation import coclustering as coclustering_module
from bayesgmm.allocation import drawn
from bayesgmm.allocation import responsibilities as responsibilities_module
from bayesgmm.errors import (
    ArgumentError,
    ColumnNameError,
    FitWarning,
    MissingValueError,
    PosteriorWarning,
)
from bayesgmm.labels import apply
from bayesgmm.tree import DIMS


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.nuts_fit(chains=2, draws=30)


def log_joint(fit: xr.DataTree, x: np.ndarray) -> np.ndarray:
    """log(weight) + log N, (draw, row, component), by SciPy; of the columns that are observed."""
    flat = fit["posterior"].to_dataset().stack(s=("chain", "draw")).transpose("s", ...)
    found = []
    for w, m, c in zip(*(flat[name].to_numpy() for name in DIMS), strict=True):
        rows = []
        for row in x:
            o = ~np.isnan(row)
            each = [
                multivariate_normal(m[j][o], c[j][np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0
                for j in range(len(w))
            ]
            rows.append(np.log(w) + each)
        found.append(rows)
    return np.array(found)


def some_rows(n: int = 12) -> pd.DataFrame:
    frame = fits.faithful().iloc[:: 272 // n].iloc[:n]
    return frame.set_index(pd.Index([f"day {i}" for i in range(n)], name="day"))


def shuffled(fit: xr.DataTree, seed: int = 0) -> xr.DataTree:
    """Return a fit whose draws call their components anything."""
    group = fit["posterior"].to_dataset()
    chains, draws, k = group["weight"].shape
    rng = np.random.default_rng(seed)
    order = np.array([rng.permutation(k) for _ in range(chains * draws)])
    for name in DIMS:
        flat = group[name].to_numpy().reshape(chains * draws, *group[name].shape[2:])
        group[name] = (group[name].dims, apply(order, flat).reshape(group[name].shape))
    found = fit.copy()
    found["posterior"] = xr.DataTree(group)
    return found


class TestResponsibilities:
    def test_they_are_summaries_of_each_draw_s_bayes_formula(self, post: xr.DataTree) -> None:
        x = some_rows()
        r = softmax(log_joint(post, x.to_numpy()), axis=2)
        found = bg.responsibilities(post, x, ci_prob=0.8)
        np.testing.assert_allclose(found["mean"], r.mean(axis=0), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found["sd"], r.std(axis=0, ddof=1), rtol=1e-7, atol=1e-14)
        for name, q in (("eti_lower", 0.1), ("eti_upper", 0.9)):
            np.testing.assert_allclose(found[name], np.quantile(r, q, axis=0), rtol=1e-8)
        assert found["mean"].dims == ("obs", "cluster")
        assert list(found["obs"].to_numpy()) == list(x.index)
        assert found.attrs == {"ci_kind": "eti", "ci_prob": 0.8}
        np.testing.assert_allclose(found["mean"], bg.predict_proba(post, x), rtol=1e-12)

    def test_without_a_table_they_are_of_the_fit_s_own_rows(self, post: xr.DataTree) -> None:
        xr.testing.assert_equal(
            bg.responsibilities(post), bg.responsibilities(post, fits.faithful())
        )

    def test_draws_are_kept_where_asked_for(self, post: xr.DataTree) -> None:
        x = some_rows()
        found = bg.responsibilities(post, x, keep_draws=True)
        r = found["responsibility"]
        assert (r.dims, r.shape) == (("chain", "draw", "obs", "cluster"), (2, 30, 12, 2))
        np.testing.assert_allclose(
            r.to_numpy().reshape(60, 12, 2), softmax(log_joint(post, x.to_numpy()), axis=2), 1e-9
        )
        np.testing.assert_allclose(r.mean(("chain", "draw")), found["mean"], rtol=1e-12)
        few = bg.responsibilities(post, x, draws=3, keep_draws=True)["responsibility"]
        assert few.shape == (1, 3, 12, 2)
        np.testing.assert_array_equal(few[0, 0], r[0, 0])
        np.testing.assert_array_equal(few[0, -1], r[-1, -1])

    def test_blocks_change_no_bit(self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = bg.responsibilities(post, keep_draws=True)
        monkeypatch.setattr(responsibilities_module, "NUMBERS", 60 * 2 * 7)  # seven rows each
        xr.testing.assert_identical(bg.responsibilities(post, keep_draws=True), whole)

    def test_missing_values_are_integrated_over(self, post: xr.DataTree) -> None:
        x = some_rows()
        x.iloc[0, 0] = x.iloc[1, 1] = np.nan
        x.iloc[2] = np.nan
        r = softmax(log_joint(post, x.to_numpy()), axis=2)
        found = bg.responsibilities(post, x, missing="marginalise")
        np.testing.assert_allclose(found["mean"], r.mean(axis=0), rtol=1e-9, atol=1e-15)
        with pytest.raises(MissingValueError, match="eruptions"):
            bg.responsibilities(post, x)
        # A fit's own rows are taken as the fit took them.
        own = post.copy()
        own["observed_data"] = xr.DataTree(
            xr.Dataset({"x": (("obs", "feature"), x.to_numpy())}, {"feature": list(x)})
        )
        np.testing.assert_array_equal(bg.responsibilities(own)["mean"], found["mean"])

    def test_known_labels_count(self, post: xr.DataTree) -> None:
        known = np.full((272, 2), 0.5)
        known[:2] = [0.9, 0.1], [0.3, 0.7]
        known[2:4] = np.eye(2)
        own = post.copy()
        own["constant_data"] = xr.DataTree(
            post["constant_data"].to_dataset().assign(label_probability=(("obs", "cluster"), known))
        )
        x = fits.faithful().to_numpy()
        with np.errstate(divide="ignore"):
            r = softmax(log_joint(post, x[:20]) + np.log(known[:20]), axis=2)
        found = bg.responsibilities(own)["mean"]
        np.testing.assert_allclose(found[:20], r.mean(axis=0), rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(found[2:4], np.eye(2))
        np.testing.assert_allclose(found[20:], bg.responsibilities(post)["mean"][20:], rtol=1e-12)

    def test_noise_is_cluster_minus_one(self) -> None:
        spec = bg.GaussianMixture(2, noise=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            fit = bg.fit_em(spec, fits.faithful(), n_starts=2, random_seed=1)
        two = xr.concat([fit["posterior"].to_dataset()] * 2, dim="draw")
        two["noise_weight"] = two["noise_weight"] * xr.DataArray([1.0, 0.5], dims="draw")
        two["weight"] = two["weight"] * (1.0 - two["noise_weight"]) / two["weight"].sum("cluster")
        fit["posterior"] = xr.DataTree(two.assign_coords(draw=[0, 1]))
        found = bg.responsibilities(fit)
        assert list(found["cluster"].to_numpy()) == [0, 1, -1]
        np.testing.assert_allclose(found["mean"].sum("cluster"), 1.0, rtol=1e-12)
        np.testing.assert_allclose(
            found["mean"], bg.predict_proba(fit, fits.faithful()), rtol=1e-12
        )
        share = found["mean"].sel(cluster=-1)
        assert 0.0 < float(share.mean()) < 0.2
        assert bg.coclustering(fit).shape == (272, 272)

    @pytest.mark.parametrize("status", ["ok", "warn", "fail"])
    def test_ambiguous_labels_are_warned_of_by_the_fit_s_own_verdict(self, status: str) -> None:
        check = {
            "code": "ambiguous-labels",
            "status": status,
            "evidence": "every draw",
            "advice": "",
        }
        fit = fits.nuts_fit(draws=5, verdict=json.dumps({"status": status, "checks": [check]}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bg.responsibilities(fit)
            bg.coclustering(fit, rows=[0, 1])  # has no labels
        told = [str(w.message) for w in caught if issubclass(w.category, PosteriorWarning)]
        assert len(told) == (status != "ok")
        assert all(text.startswith("[ambiguous-labels]") and "every draw" in text for text in told)

    def test_rows_however_far_have_them(self, post: xr.DataTree) -> None:
        found = bg.responsibilities(post, pd.DataFrame({"eruptions": [1e200], "waiting": [-1e300]}))
        np.testing.assert_allclose(found["mean"].sum("cluster"), 1.0, atol=1e-12)

    def test_what_is_refused(self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentError, match=r"^fit: is a point estimate"):
            bg.responsibilities(fits.em_fit())
        with pytest.raises(ArgumentError, match=r"^ci_prob: must be"):
            bg.responsibilities(post, ci_prob=1.0)
        with pytest.raises(ColumnNameError, match="waiting"):
            bg.responsibilities(post, some_rows()[["eruptions"]])
        part = bg.conditional(post, {"waiting": 70.0})
        with pytest.raises(ArgumentError, match=r"^X: is needed"):
            bg.responsibilities(part)
        assert bg.responsibilities(part, [[2.0]]).sizes["obs"] == 1
        monkeypatch.setattr(responsibilities_module, "MOST", 272 * 2 * 59)
        with pytest.raises(ArgumentError, match=r"^keep_draws: would make 3.3e\+04 .*draws=59"):
            bg.responsibilities(post, keep_draws=True)
        assert bg.responsibilities(post, keep_draws=True, draws=59).sizes["draw"] == 59


class TestCoclustering:
    @pytest.mark.parametrize(("n", "k", "seed"), [(5, 2, 0), (4, 3, 1), (6, 2, 2)])
    def test_it_is_the_sum_over_all_assignments(self, n: int, k: int, seed: int) -> None:
        """Every way of giving n rows k components, with its probability, in each draw."""
        post = fits.one_dimensional(k, draws=3, seed=seed)
        x = np.random.default_rng(seed).normal(size=(n, 1))
        r = softmax(log_joint(post, x), axis=2)
        expected = np.zeros((n, n))
        for z in itertools.product(range(k), repeat=n):
            probability = np.prod(r[:, np.arange(n), list(z)], axis=1).mean()
            expected += probability * (np.array(z)[:, None] == z)
        found = bg.coclustering(post, x)
        np.testing.assert_allclose(found, expected, rtol=1e-10)

    def test_labels_play_no_part(self, post: xr.DataTree) -> None:
        found = bg.coclustering(post)
        np.testing.assert_allclose(found, bg.coclustering(shuffled(post)), rtol=1e-12, atol=1e-15)

    def test_it_is_a_matrix_of_probabilities(self, post: xr.DataTree) -> None:
        found = bg.coclustering(post, some_rows())
        assert (found.name, found.dims) == ("coclustering", ("obs", "obs_bis"))
        for dim in found.dims:
            assert list(found[dim].to_numpy()) == [f"day {i}" for i in range(12)]
        matrix = found.to_numpy()
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diagonal(matrix), 1.0)
        assert ((matrix >= 0.0) & (matrix <= 1.0)).all()
        assert np.linalg.eigvalsh(matrix).min() > -1e-12

    def test_tiles_blocks_and_threads_change_no_bit(
        self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [bg.coclustering(post, draws=50)]
        for threads in (1, 3):
            with threadpool_limits(threads):
                found.append(bg.coclustering(post, draws=50))
        for other in found[1:]:
            xr.testing.assert_identical(other, found[0])
        monkeypatch.setattr(coclustering_module, "_TILE", 13)
        monkeypatch.setattr(drawn, "NUMBERS", 272 * 2 * 7)
        np.testing.assert_allclose(bg.coclustering(post, draws=50), found[0], rtol=1e-12)

    def test_some_rows(self, post: xr.DataTree) -> None:
        whole, rows = bg.coclustering(post), [200, 3, 41]
        some = bg.coclustering(post, rows=rows)
        np.testing.assert_allclose(some, whole.isel(obs=rows, obs_bis=rows), rtol=1e-12)
        assert list(some["obs"].to_numpy()) == rows

    def test_too_many_rows_are_refused_with_their_number(
        self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coclustering_module, "MOST", 100 * 100)
        for argument, given in (("fit", {}), ("X", {"X": fits.faithful()})):
            with pytest.raises(ArgumentError, match=rf"^{argument}: has 272 rows.*the most is 100"):
                bg.coclustering(post, **given)
        assert bg.coclustering(post, rows=range(100)).shape == (100, 100)

    @pytest.mark.parametrize("rows", [[], [0.5], [[0]], [-1], [272], "abc", [True]])
    def test_wrong_rows(self, post: xr.DataTree, rows: Any) -> None:
        with pytest.raises(ArgumentError, match=r"^rows: must be"):
            bg.coclustering(post, rows=rows)

    def test_it_is_known_better_than_by_counting(self) -> None:
        """Rao and Blackwell: over many small samples of draws the matrix varies less."""
        post = fits.one_dimensional(2, draws=400)
        x = np.array([[0.3], [0.6]])
        ask = drawn.ask(post, x, None, "error")
        z = ask.sample(np.random.default_rng(1)).astype(float)
        counted = (z[0] == z[1]).reshape(40, 40).mean(axis=1)
        r = bg.responsibilities(post, x, keep_draws=True)["responsibility"].to_numpy()
        summed = (r[..., 0, :] * r[..., 1, :]).sum(axis=-1).reshape(40, 40).mean(axis=1)
        assert abs(counted.mean() - summed.mean()) < 4 * counted.std() / np.sqrt(40)
        assert summed.std() < 0.2 * counted.std()
        assert bg.coclustering(post, x).to_numpy()[0, 1] == pytest.approx(summed.mean())


def test_drawn_components_have_the_responsibilities_as_frequencies() -> None:
    post = fits.one_dimensional(3, draws=1)
    post["posterior"] = xr.DataTree(
        post["posterior"].to_dataset().isel(chain=[0], draw=np.zeros(4000, int))
    )
    x = np.array([[0.4], [1.1], [2.0]])
    ask = drawn.ask(post, x, None, "error")
    z = ask.sample(np.random.default_rng(3))
    share = np.stack([(z == j).mean(axis=1) for j in range(3)], axis=1)
    expected = bg.responsibilities(post, x)["mean"].to_numpy()
    error = np.sqrt(expected * (1.0 - expected) / 4000)
    assert (np.abs(share - expected) < 4.5 * error).all()
    # Rows are independent given the parameters.
    both = np.mean((z[0] == 0) & (z[1] == 1))
    assert abs(both - expected[0, 0] * expected[1, 1]) < 4.5 * np.sqrt(0.25 / 4000)
