"""Fits as trees: one structure for both engines; saved and loaded without a difference."""

from __future__ import annotations

import os
from pathlib import Path

import fits
import models
import numpy as np
import pytest
import xarray as xr

from bayesgmm.display.comparison import compare
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import ArgumentError
from bayesgmm.files import atomic
from bayesgmm.mixture import GaussianMixture
from bayesgmm.tree import DIMS, dataset, load, names_of, point, save, spec_of

SHARED = ("posterior", "sample_stats", "criteria", "log_likelihood", "observed_data")


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return models.maximum()


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return models.posterior()


def same(a: xr.DataTree, b: xr.DataTree) -> None:
    """Groups, variables, dims, coordinates, values to the bit, dtypes and attributes."""
    assert set(a.children) == set(b.children)
    assert dict(a.attrs) == dict(b.attrs)
    assert {k: type(v) for k, v in a.attrs.items()} == {k: type(v) for k, v in b.attrs.items()}
    for name in a.children:
        one, two = a[name].to_dataset(), b[name].to_dataset()
        xr.testing.assert_identical(one, two)
        for key in one.variables:
            kinds = one[key].dtype.kind, two[key].dtype.kind
            # Text may come back as Python strings.
            assert kinds[0] == kinds[1] or set(kinds) <= set("UOT"), (name, key, kinds)


class TestOneStructure:
    def test_same_groups_variables_and_dims(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        for group in (*SHARED, "constant_data"):
            assert group in mle.children
            assert group in post.children
        for name, dims in DIMS.items():
            one, two = mle["posterior"][name], post["posterior"][name]
            assert one.dims == two.dims == ("chain", "draw", *dims)
            for dim in dims:
                np.testing.assert_array_equal(one[dim], two[dim])
        assert set(mle["posterior"].data_vars) == set(post["posterior"].data_vars) == set(DIMS)
        assert mle["posterior"].sizes["chain"] * mle["posterior"].sizes["draw"] == 1

    def test_same_data(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        for group in ("observed_data", "constant_data"):
            xr.testing.assert_identical(mle[group].to_dataset(), post[group].to_dataset())
        one, two = (fit["log_likelihood"]["x"] for fit in (mle, post))
        assert one.dims == two.dims == ("chain", "draw", "obs")
        np.testing.assert_array_equal(one["obs"], two["obs"])
        assert mle.attrs["fingerprint"] == post.attrs["fingerprint"]

    def test_loglik_is_of_all_rows(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        for fit in (mle, post):
            stats = fit["sample_stats"]
            assert stats["loglik"].dims == stats["lp"].dims == ("chain", "draw")
            rows = fit["log_likelihood"]["x"].sum("obs")
            np.testing.assert_allclose(rows, stats["loglik"], rtol=1e-12)

    def test_same_attributes(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        keys = {
            *("engine", "estimate", "spec", "random_seed", "bayesgmm_version", "versions"),
            *("fingerprint", "verdict", "warnings", "timings", "stop_reason"),
        }
        for fit in (mle, post):
            assert keys <= set(fit.attrs)
            assert all(isinstance(v, str | int | float) for v in fit.attrs.values())

    def test_what_can_be_read_back(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        for fit in (mle, post):
            assert spec_of(fit) == GaussianMixture(2)
            assert names_of(fit) == ("eruptions", "waiting")
        theta = point(mle)
        np.testing.assert_array_equal(theta.mean, mle["posterior"]["mean"].to_numpy()[0, 0])
        with pytest.raises(ArgumentError, match="many draws"):
            point(post)

    def test_dataset_of_some_variables(self) -> None:
        found = dataset({"weight": np.full((4, 3), 1 / 3)}, ("a", "b"), ("sample",))
        assert dict(found.sizes) == {"sample": 4, "cluster": 3}
        assert "feature" not in found.coords


class TestFile:
    @pytest.mark.parametrize("which", ["mle", "post"])
    def test_save_and_load_is_the_identity(
        self, which: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        fit = request.getfixturevalue(which)
        target = save(fit, tmp_path / "fit.nc")
        assert target == tmp_path / "fit.nc"
        same(load(target), fit)

    def test_again_and_over_the_old_file(self, mle: xr.DataTree, tmp_path: Path) -> None:
        target = tmp_path / "fit.nc"
        target.write_text("old")
        same(load(save(load(save(mle, target)), str(target))), mle)

    def test_names_beyond_ascii_and_an_index_of_text(self, tmp_path: Path) -> None:
        x = models.table("faithful").set_axis(["durée", "待ち時間"], axis=1)
        x.index = [f"row {i}" for i in range(len(x))]
        fit = fit_em(GaussianMixture(2), x, random_seed=1)
        back = load(save(fit, tmp_path / "fit.nc"))
        same(back, fit)
        assert names_of(back) == ("durée", "待ち時間")
        assert back["log_likelihood"]["obs"].to_numpy()[3] == "row 3"

    @pytest.mark.parametrize(
        "fit",
        [fits.one_dimensional(1), fits.one_dimensional(3, draws=5), fits.many_dimensional(4)],
        ids=["one number", "draws", "four columns"],
    )
    def test_other_shapes(self, fit: xr.DataTree, tmp_path: Path) -> None:
        same(load(save(fit, tmp_path / "fit.nc")), fit)

    def test_comparison_is_the_same(
        self, mle: xr.DataTree, post: xr.DataTree, tmp_path: Path
    ) -> None:
        files = [save(fit, tmp_path / f"{i}.nc") for i, fit in enumerate((mle, post))]
        xr.testing.assert_identical(compare(*map(load, files)), compare(mle, post))

    def test_mode_follows_the_umask(self, mle: xr.DataTree, tmp_path: Path) -> None:
        for mask in (0o022, 0o027, 0o077):
            before = os.umask(mask)
            try:
                target = save(mle, tmp_path / f"{mask:o}.nc")
            finally:
                os.umask(before)
            assert target.stat().st_mode & 0o777 == 0o666 & ~mask

    def test_a_failure_leaves_the_old_file(
        self, mle: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = save(mle, tmp_path / "fit.nc")
        before = target.read_bytes()

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        for name in ("xarray.DataTree.to_netcdf", "os.replace"):
            with monkeypatch.context() as patch:
                patch.setattr(name, fail)
                with pytest.raises(OSError, match="No space"):
                    save(mle, target)
            assert target.read_bytes() == before
            assert [path.name for path in tmp_path.iterdir()] == ["fit.nc"]

    def test_no_such_folder(self, mle: xr.DataTree, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="does not exist") as error:
            save(mle, tmp_path / "none" / "fit.nc")
        assert error.value.argument == "path"

    def test_a_folder_is_no_file(self, mle: xr.DataTree, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="folder"):
            save(mle, tmp_path)
        with pytest.raises(ArgumentError):
            load(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_no_fit_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="no file"):
            load(tmp_path / "missing.nc")
        for content in (b"", b"text", b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
            other = tmp_path / "other.nc"
            other.write_bytes(content)
            with pytest.raises(ArgumentError, match="NetCDF"):
                load(other)

    def test_other_netcdf_files_are_refused(self, mle: xr.DataTree, tmp_path: Path) -> None:
        target = tmp_path / "other.nc"
        trees = [
            xr.DataTree(xr.Dataset({"a": ("x", [1.0])})),
            xr.DataTree.from_dict({"/posterior": xr.Dataset({"mu": ("draw", [1.0])})}),
        ]
        foreign = mle.copy()
        foreign.attrs = {name: v for name, v in mle.attrs.items() if name != "spec"}
        spoilt = mle.copy()
        spoilt.attrs = dict(mle.attrs) | {"spec": "{}"}
        empty = mle.copy()
        empty["posterior"] = xr.DataTree(mle["posterior"].to_dataset().drop_vars("mean"))
        for tree in (*trees, foreign, spoilt, empty):
            tree.to_netcdf(target, engine="netcdf4")
            with pytest.raises(ArgumentError, match="not a fit") as error:
                load(target)
            assert error.value.argument == "path"


class TestAtomic:
    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        with atomic(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            temporary.write_text("new")
            assert not target.exists()
        assert target.read_text() == "new"
        with pytest.raises(UnicodeEncodeError), atomic(target) as temporary:
            temporary.write_text("half \ud800", encoding="utf-8")
        assert target.read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
