"""Densities with bands, against SciPy; new data, against the mixtures they are from; ArviZ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arviz as az
import fits
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy.stats import kstest, multivariate_normal

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, ColumnNameError, NotYetSupportedError
from bayesgmm.predictive import density as density_module
from bayesgmm.predictive import replicated
from bayesgmm.tree import DIMS


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.nuts_fit(chains=2, draws=30)


def densities(fit: xr.DataTree, x: np.ndarray, columns: list[int]) -> np.ndarray:
    """The density of every draw at points, (draw, point), by SciPy."""
    flat = fit["posterior"].to_dataset().stack(s=("chain", "draw")).transpose("s", ...)
    found = []
    for w, m, c in zip(*(flat[name].to_numpy() for name in DIMS), strict=True):
        each = [
            share * multivariate_normal(mean[columns], own[np.ix_(columns, columns)]).pdf(x)
            for share, mean, own in zip(w, m, c, strict=True)
        ]
        found.append(np.sum(each, axis=0))
    return np.array(found)


class TestDensity:
    def test_bands_of_one_column(self, post: xr.DataTree) -> None:
        at = np.linspace(40.0, 100.0, 23)
        found = bg.predictive_density(post, at, "waiting", ci_prob=0.9)
        each = densities(post, at[:, None], [1])
        np.testing.assert_allclose(found["mean"], each.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found["sd"], each.std(axis=0, ddof=1), rtol=1e-9)
        for name, q in (("eti_lower", 0.05), ("eti_upper", 0.95)):
            np.testing.assert_allclose(found[name], np.quantile(each, q, axis=0), rtol=1e-11)
        np.testing.assert_array_equal(found["x"], at)
        assert found["x"].attrs == {"long_name": "waiting"}
        assert found.attrs == {"ci_kind": "eti", "ci_prob": 0.9}

    def test_bands_of_two_columns_in_any_order(self, post: xr.DataTree) -> None:
        grid = {"waiting": [50.0, 60.0, 80.0], "eruptions": [2.0, 4.5]}
        found = bg.predictive_density(post, grid)
        assert found["mean"].dims == ("x", "y")
        assert [found[axis].attrs["long_name"] for axis in "xy"] == list(grid)
        points = np.stack(np.meshgrid(*grid.values(), indexing="ij"), axis=-1)
        each = densities(post, points, [1, 0])
        np.testing.assert_allclose(found["mean"], each.mean(axis=0), rtol=1e-11)
        np.testing.assert_allclose(found["sd"], each.std(axis=0, ddof=1), rtol=1e-9)

    def test_its_mean_is_the_score_s(self, post: xr.DataTree) -> None:
        found = bg.predictive_density(post, columns=["eruptions"])
        score = bg.score(bg.marginal(post, ["eruptions"]), found["x"].to_numpy())
        np.testing.assert_allclose(found["mean"], np.exp(score), rtol=1e-12)

    def test_by_default_the_grid_holds_the_data(self, post: xr.DataTree) -> None:
        both = bg.predictive_density(post)
        assert both["mean"].shape == (60, 60)
        x = fits.faithful()
        for axis, name in zip("xy", x, strict=True):
            low, high = float(both[axis].min()), float(both[axis].max())
            margin = 0.1 * (x[name].max() - x[name].min())
            assert low == pytest.approx(x[name].min() - margin)
            assert high == pytest.approx(x[name].max() + margin)
        assert 0.97 < float(both["mean"].integrate("x").integrate("y")) < 1.0

    def test_without_data_it_holds_the_density(self, post: xr.DataTree) -> None:
        part = bg.conditional(post, {"waiting": 70.0})
        found = bg.predictive_density(part)
        assert float(found["mean"].integrate("x")) == pytest.approx(1.0, abs=1e-3)

    def test_labels_play_no_part(self, post: xr.DataTree) -> None:
        other = post.copy()
        other["posterior"] = xr.DataTree(post["posterior"].to_dataset().isel(cluster=[1, 0]))
        found, again = (bg.predictive_density(fit, columns="waiting") for fit in (post, other))
        for name in found:
            np.testing.assert_allclose(found[name], again[name], rtol=1e-12)

    def test_some_draws_and_blocks(
        self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = bg.predictive_density(post, columns="waiting", draws=1)
        np.testing.assert_array_equal(one["sd"], 0.0)
        np.testing.assert_array_equal(one["eti_lower"], one["mean"])
        whole = bg.predictive_density(post)
        monkeypatch.setattr(density_module, "NUMBERS", 60 * 7)
        xr.testing.assert_identical(bg.predictive_density(post), whole)

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ({"columns": "colour"}, ColumnNameError, "has no 'colour'; it has 'eruptions', 'wait"),
            ({"grid": {"a": [1.0], "waiting": [2.0]}}, ColumnNameError, "has no 'a'"),
            ({"columns": []}, ArgumentError, "^columns: must be one or two of"),
            ({"columns": ["waiting", "waiting"]}, ArgumentError, "^columns: must be one or two"),
            ({"columns": 3}, ArgumentError, "^columns: must be one or two column names"),
            ({"grid": {"waiting": [1.0]}, "columns": "waiting"}, ArgumentError, "^columns: must"),
            ({"grid": [1.0, 2.0]}, ArgumentError, "^grid: must map 'eruptions' and 'waiting'"),
            ({"grid": {"waiting": []}}, ArgumentError, "^grid: the points of 'waiting' must be"),
            ({"grid": {"waiting": [np.nan]}}, ArgumentError, "^grid: .* finite numbers"),
            ({"grid": {"waiting": [[1.0]]}}, ArgumentError, "^grid: .* in one dimension"),
            ({"grid": {"waiting": ["a"]}}, ArgumentError, "^grid: .* must be numbers"),
            ({"ci_prob": 2.0}, ArgumentError, "^ci_prob"),
        ],
    )
    def test_wrong_arguments(
        self, post: xr.DataTree, wrong: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            bg.predictive_density(post, **wrong)

    def test_what_has_too_many_columns_is_asked_which(self) -> None:
        many = fits.many_dimensional(4, draws=10)
        with pytest.raises(ArgumentError, match=r"^columns: must be one or two of 'x1', 'x2'"):
            bg.predictive_density(many)
        assert bg.predictive_density(many, columns=["x4", "x2"])["mean"].shape == (60, 60)

    def test_a_point_estimate_has_no_bands(self) -> None:
        with pytest.raises(ArgumentError, match=r"^fit: is a point estimate"):
            bg.predictive_density(fits.em_fit())

    def test_noise_has_no_density_in_single_columns(self, post: xr.DataTree) -> None:
        noisy = post.copy()
        group = post["posterior"].to_dataset()
        share = xr.full_like(group["weight"].sum("cluster"), 0.1)
        noisy["posterior"] = xr.DataTree(
            group.assign(weight=0.9 * group["weight"], noise_weight=share)
        )
        noisy.attrs["noise"] = '{"log_volume": 5.0, "corner": null, "edges": null}'
        with pytest.raises(ArgumentError, match=r"^fit: has noise of a given volume"):
            bg.predictive_density(noisy, columns="waiting")
        both = bg.predictive_density(noisy)["mean"]
        without = 0.9 * bg.predictive_density(post)["mean"] + 0.1 * np.exp(-5.0)
        np.testing.assert_allclose(both, without, rtol=1e-9)


class TestReplicatedData:
    def test_they_are_rows_of_each_draw_s_mixture(self) -> None:
        post = fits.one_dimensional(2, draws=40)
        x = np.zeros((1500, 1))
        big = post.copy()
        big["observed_data"] = xr.DataTree(
            xr.Dataset({"x": (("obs", "feature"), x)}, {"feature": ["velocity"]})
        )
        big["constant_data"] = xr.DataTree(xr.Dataset({"sample_weight": ("obs", np.ones(len(x)))}))
        del big["log_likelihood"]
        found = bg.posterior_predictive(big, random_seed=1)["posterior_predictive"]["velocity"]
        assert found.dims == ("chain", "draw", "obs")
        p = post["posterior"].to_dataset()
        w, m, v = (p[name].to_numpy() for name in DIMS)
        m, v = m[..., 0], v[..., 0, 0]
        mean = (w * m).sum(axis=-1)
        sd = np.sqrt((w * (v + m**2)).sum(axis=-1) - mean**2)
        z = (found.mean("obs").to_numpy() - mean) / (sd / np.sqrt(1500))
        assert np.abs(z).max() < 5
        assert 0.8 < z.std() < 1.2
        at = np.linspace(-15, 15, 3001)
        density = bg.predictive_density(post, at)["mean"].to_numpy()
        cdf = np.cumsum(density) * (at[1] - at[0])
        some = found.to_numpy().ravel()[::7]
        assert kstest(some, lambda q: np.interp(q, at, cdf)).pvalue > 1e-3

    def test_rows_and_columns_have_their_names(self, post: xr.DataTree) -> None:
        named = post.copy()
        index = [f"day {i}" for i in range(272)]
        named["observed_data"] = xr.DataTree(
            post["observed_data"].to_dataset().assign_coords(obs=index)
        )
        del named["log_likelihood"]
        found = bg.posterior_predictive(named, draws=6, random_seed=1)
        new = found["posterior_predictive"].to_dataset()
        assert list(new) == ["eruptions", "waiting"]
        assert dict(new.sizes) == {"chain": 2, "draw": 3, "obs": 272}
        assert list(new["draw"].to_numpy()) == [0, 14, 29]
        assert list(new["obs"].to_numpy()) == index
        assert "log_likelihood" not in found.children
        assert found["posterior"].sizes["draw"] == 3
        np.testing.assert_array_equal(found["observed_data"]["waiting"], fits.faithful()["waiting"])
        assert "posterior_predictive" not in named.children

    def test_log_likelihoods_are_of_the_rows(self, post: xr.DataTree) -> None:
        found = bg.posterior_predictive(post, draws=20)["log_likelihood"]
        own = post["log_likelihood"]["x"].to_numpy()[:, np.linspace(0, 29, 10).round().astype(int)]
        for name in ("eruptions", "waiting"):
            np.testing.assert_array_equal(found[name], own)

    def test_the_same_seed_gives_the_same(self, post: xr.DataTree) -> None:
        first, again, other = (
            bg.posterior_predictive(post, random_seed=seed)["posterior_predictive"].to_dataset()
            for seed in (1, 1, 2)
        )
        xr.testing.assert_identical(first, again)
        assert not first.equals(other)

    def test_names_that_a_tree_cannot_have(self) -> None:
        odd = fits.nuts_fit(features=("a/b", "\n"), draws=5)
        found = bg.posterior_predictive(odd, random_seed=1)
        assert list(found["posterior_predictive"].data_vars) == ["a|b", "\n"]
        for names in (("obs", "b"), ("a/b", "a|b")):
            with pytest.raises(ColumnNameError, match="cannot be a variable of its own"):
                bg.posterior_predictive(fits.nuts_fit(features=names, draws=5))

    def test_they_are_saved_as_trees_are(self, post: xr.DataTree, tmp_path: Path) -> None:
        found = bg.posterior_predictive(post, draws=4, random_seed=1)
        found.to_netcdf(tmp_path / "checks.nc")
        with xr.open_datatree(tmp_path / "checks.nc") as back:
            xr.testing.assert_equal(back, found)

    def test_what_is_not_like_its_data_is_refused(
        self, post: xr.DataTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        constant = post["constant_data"].to_dataset()
        weighted, labelled, holes = post.copy(), post.copy(), post.copy()
        weighted["constant_data"] = xr.DataTree(constant * 2.0)
        known = xr.DataArray(np.full((272, 2), 0.5), dims=("obs", "cluster"))
        labelled["constant_data"] = xr.DataTree(constant.assign(label_probability=known))
        observed = post["observed_data"].to_dataset()
        holes["observed_data"] = xr.DataTree(observed.where(observed["x"] < 90))
        for fit, what in ((labelled, "known lab"), (holes, "missing val")):
            with pytest.raises(NotYetSupportedError, match=f"^fit: new data .* with {what}"):
                bg.posterior_predictive(fit)
        with pytest.raises(NotYetSupportedError, match=r"^fit: has weighted rows"):
            bg.posterior_predictive(weighted)
        with pytest.raises(ArgumentError, match=r"^fit: must be a whole fit, with observed_data"):
            bg.posterior_predictive(bg.conditional(post, {"waiting": 70.0}))
        monkeypatch.setattr(replicated, "MOST", 272 * 2 * 59)
        with pytest.raises(ArgumentError, match=r"^draws: would make .*Take draws=59"):
            bg.posterior_predictive(post)
        with pytest.raises(ArgumentError, match=r"^random_seed: must"):
            bg.posterior_predictive(post, random_seed=-1)


@pytest.fixture(scope="module")
def checks() -> xr.DataTree:
    return bg.posterior_predictive(fits.nuts_fit(chains=4, draws=50), random_seed=1)


class TestArviZ:
    """ArviZ's checks take the tree as it is, and show every column by itself."""

    @pytest.mark.parametrize(
        "plot",
        [
            az.plot_ppc_dist,
            az.plot_ppc_pit,
            az.plot_ppc_tstat,
            az.plot_loo_pit,
            az.plot_ppc_interval,
        ],
    )
    def test_its_plots(self, checks: xr.DataTree, plot: Any) -> None:
        drawn = plot(checks)
        figure = drawn.viz["figure"].item()
        assert len(figure.axes) == 2
        figure.canvas.draw()
        plt.close(figure)

    def test_the_curves_are_those_of_the_data(self, checks: xr.DataTree) -> None:
        drawn = az.plot_ppc_dist(checks, kind="ecdf")
        ax = drawn.get_target("waiting", {})
        waiting = fits.faithful()["waiting"]
        ends = {(np.nanmin(line.get_xdata()), np.nanmax(line.get_xdata())) for line in ax.lines}
        assert (waiting.min(), waiting.max()) in ends
        assert len(ax.lines) == 51  # the data, and fifty draws
        plt.close(drawn.viz["figure"].item())

    def test_a_draw_that_fits_is_told_from_one_that_does_not(self) -> None:
        """The check is one: data of a mixture pass, and a single normal fails."""
        good = fits.nuts_fit(chains=4, draws=50)
        bad = good.copy()
        group = good["posterior"].to_dataset()
        mean = (group["weight"] * group["mean"]).sum("cluster")
        bad["posterior"] = xr.DataTree(group.assign(mean=xr.zeros_like(group["mean"]) + mean))
        x = fits.faithful()["waiting"].to_numpy()
        off = {}
        for name, fit in (("good", good), ("bad", bad)):
            new = bg.posterior_predictive(fit, random_seed=2)["posterior_predictive"]["waiting"]
            pit = (new.to_numpy() <= x).mean(axis=(0, 1))
            off[name] = kstest(pit, "uniform").pvalue
        assert off["good"] > 0.05
        assert off["bad"] < 1e-6
