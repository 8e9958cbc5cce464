"""Data larger than memory: Dask's collections and memory-mapped arrays are read block by block.

What is fitted then is the same to the bit as of the same rows in memory, and nothing as large as
the data is made in memory.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bayesgmm as bg
from bayesgmm import streams
from bayesgmm.data.observations import read
from bayesgmm.data.table import once, tabulate
from bayesgmm.errors import (
    ColumnNameError,
    DataWarning,
    EmptyDataError,
    InfiniteValueError,
    MissingValueError,
    NonNumericError,
    ScaleError,
    ShapeError,
    StorageError,
)

N, NAMES = 1003, ["a", "b", "c"]


def rows(n: int = N, d: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.integers(2, size=n)
    return rng.normal(size=(n, d)) * (1.0 + 0.5 * z[:, None]) + 5.0 * z[:, None]


def labelled() -> pd.DataFrame:
    index = pd.Index([f"row {i}" for i in range(N)], name="obs")
    return pd.DataFrame(rows(), columns=NAMES, index=index)


def unknown_chunks() -> da.Array:
    x = da.from_array(rows(), chunks=(97, 2))
    return x[x[:, 0] > -np.inf]


def partitioned(X: pd.DataFrame, npartitions: int = 7) -> dd.DataFrame:
    with dask.config.set({"dataframe.convert-string": False}):  # labels as they are
        return dd.from_pandas(X, npartitions=npartitions, sort=False)


def memory_map(folder: Path, mode: Any, x: np.ndarray | None = None) -> np.ndarray:
    np.save(folder / "x.npy", rows() if x is None else x)
    return np.load(folder / "x.npy", mmap_mode=mode)


KINDS: dict[str, Callable[[Path], Any]] = {
    "dask array": lambda _: da.from_array(rows(), chunks=(97, 2)),
    "dask array of unknown chunks": lambda _: unknown_chunks(),
    "dask DataFrame": lambda _: partitioned(labelled()),
    "xarray of dask": lambda _: xr.DataArray(
        da.from_array(rows(), chunks=(97, 2)),
        dims=("obs", "feature"),
        coords={"obs": labelled().index, "feature": NAMES},
    ),
    "read-only map": lambda folder: memory_map(folder, "r"),
    "map that can be written": lambda folder: memory_map(folder, "r+"),
    "part of a map": lambda folder: memory_map(folder, "r", np.pad(rows(), 1))[1:-1, 1:-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_given(kind: str, tmp_path: Path) -> None:
    X = KINDS[kind](tmp_path)
    table = tabulate(X)
    np.testing.assert_array_equal(table.values, rows())
    assert streams.is_on_disk(table.values)
    assert type(table.values) is np.ndarray  # what Numba compiles for
    assert table.values.flags.c_contiguous
    assert table.values.flags.writeable
    is_named = kind in ("dask DataFrame", "xarray of dask")
    assert table.names == (tuple(NAMES) if is_named else ("x0", "x1", "x2"))
    assert table.index.equals(labelled().index if is_named else pd.RangeIndex(N))
    some = tabulate(X, [table.names[2], table.names[0]])
    np.testing.assert_array_equal(some.values, rows()[:, [2, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("letters", "options"),
    [("VVV", {}), ("VVI", {"estimate": "map"}), ("EEE", {"standard_errors": "sandwich"})],
)
def test_fits_are_the_same_to_the_bit(
    kind: str, letters: str, options: dict[str, Any], tmp_path: Path
) -> None:
    spec = bg.GaussianMixture(2, letters)
    X = labelled() if kind in ("dask DataFrame", "xarray of dask") else rows()
    options = options | {"random_seed": 1, "n_starts": 3, "keep_responsibilities": True}
    one, other = (bg.fit_em(spec, data, **options) for data in (X, KINDS[kind](tmp_path)))
    for group in one.children:
        xr.testing.assert_identical(one[group].to_dataset(), other[group].to_dataset())
    assert one.attrs["fingerprint"] == other.attrs["fingerprint"]
    assert one.attrs["verdict"] == other.attrs["verdict"]
    assert streams.is_on_disk(other["observed_data"]["x"].to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    X = labelled() if kind in ("dask DataFrame", "xarray of dask") else rows()
    fit = bg.fit_em(bg.GaussianMixture(2, noise=True), X, random_seed=1, n_starts=3)
    streamed = KINDS[kind](tmp_path)
    pd.testing.assert_series_equal(bg.score(fit, X), bg.score(fit, streamed), check_exact=True)
    pd.testing.assert_series_equal(bg.predict(fit, X), bg.predict(fit, streamed))
    pd.testing.assert_frame_equal(
        bg.predict_proba(fit, X), bg.predict_proba(fit, streamed), check_exact=True
    )


@pytest.mark.parametrize("options", [{"missing": "drop"}, {"missing": "marginalise"}])
def test_missing_values_are_treated_alike(options: dict[str, Any]) -> None:
    X = labelled().mask(np.random.default_rng(1).random((N, 3)) < 0.05)
    streamed = partitioned(X)
    spec = bg.GaussianMixture(2, "EEE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of rows that are dropped
        one, other = (
            bg.fit_em(spec, table, random_seed=1, n_starts=2, **options) for table in (X, streamed)
        )
    for group in one.children:
        xr.testing.assert_identical(one[group].to_dataset(), other[group].to_dataset())


def test_weights_labels_and_chosen_columns_go_with_it() -> None:
    rng = np.random.default_rng(2)
    weight, labels = rng.integers(3, size=N), np.where(np.arange(N) < 40, 0, -1)
    spec, X = bg.GaussianMixture(2, "VVI"), labelled()
    one, other = (
        bg.fit_em(
            spec, table, sample_weight=weight, labels=labels, columns=["c", "a"], random_seed=1
        )
        for table in (X, partitioned(X))
    )
    for group in one.children:
        xr.testing.assert_identical(one[group].to_dataset(), other[group].to_dataset())


def test_posteriors_comparisons_and_saved_fits_are_the_same(tmp_path: Path) -> None:
    spec, X = bg.GaussianMixture(2, "VVI"), rows(400, 2)
    streamed = da.from_array(X, chunks=(60, 2))
    tables = []
    for data in (X, streamed):
        mle = bg.fit_em(spec, data, random_seed=1, n_starts=2)
        fast = bg.fit_laplace(spec, data, mle=mle, draws=1000, random_seed=1)
        tables.append(bg.compare(mle, fast).to_dataframe())
        again = bg.load(bg.save(mle, tmp_path / "fit.nc"))
        np.testing.assert_array_equal(again["observed_data"]["x"], X)
        assert again["observed_data"]["obs"].to_numpy().tolist() == list(range(400))
        pd.testing.assert_frame_equal(bg.vcov(mle), bg.vcov(again))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


# What Dask does


class Counted:
    """Blocks that count how often they are made."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def block(self, i: int) -> np.ndarray:
        self.made.append(i)
        return rows(200, 2, seed=i)

    def array(self) -> da.Array:
        each = [da.from_delayed(dask.delayed(self.block)(i), (200, 2), float) for i in range(5)]
        return da.concatenate(each)


def _centred(x: da.Array) -> da.Array:
    return x - x.mean(axis=0)


@pytest.mark.parametrize("change", [lambda x: x, _centred], ids=["plain", "with a common part"])
def test_a_graph_is_computed_once(change: Callable[[da.Array], da.Array]) -> None:
    counted = Counted()
    X = change(counted.array())
    spec = bg.GaussianMixture(2, "EII")
    bg.fit_em(spec, X, random_seed=1, n_starts=2)
    assert sorted(counted.made) == list(range(5))
    counted.made.clear()
    bg.fit_laplace(spec, X, draws=1000, random_seed=1)  # which fits by EM first
    assert sorted(counted.made) == list(range(5))
    counted.made.clear()
    bg.select(X, n_components=[1, 2], covariance=["EII"], n_starts=2, random_seed=1)
    assert sorted(counted.made) == list(range(5))


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes", dask.get])
def test_any_scheduler_will_do(scheduler: Any) -> None:
    x = da.from_array(rows(), chunks=(300, 3))
    own = scheduler if isinstance(scheduler, str) else lambda *a, **k: scheduler(*a, **k)
    with dask.config.set(scheduler=own):
        np.testing.assert_array_equal(tabulate(x).values, rows())


def test_blocks_that_are_done_in_another_order_come_in_theirs() -> None:
    def slow(i: int) -> pd.DataFrame:
        import time

        time.sleep(0.2 * (i == 0))
        return pd.DataFrame({"a": np.arange(3.0) + 10 * i})

    X = dd.from_map(slow, range(4), meta=pd.DataFrame({"a": [0.0]}))
    table = tabulate(X)
    np.testing.assert_array_equal(
        table.values[:, 0], np.concatenate([np.arange(3.0) + 10 * i for i in range(4)])
    )
    assert table.index.tolist() == [0, 1, 2] * 4  # the blocks' own labels


def test_a_series_and_one_dimension_are_one_column() -> None:
    X = labelled()
    assert tabulate(partitioned(X, 3)["b"]).names == ("b",)
    np.testing.assert_array_equal(
        tabulate(da.from_array(rows()[:, 0], chunks=100)).values, rows()[:, :1]
    )
    assert tabulate(xr.DataArray(da.ones(4), name="one")).names == ("one",)


def test_number_types_are_known() -> None:
    x = rows().astype(np.float32)
    assert (
        tabulate(da.from_array(x, chunks=(300, 3))).epsilon.tolist() == tabulate(x).epsilon.tolist()
    )
    swapped = x.astype(">f4")
    np.testing.assert_array_equal(tabulate(da.from_array(swapped, chunks=(300, 3))).values, x)
    again = once(da.from_array(x, chunks=(300, 3)))
    assert tabulate(again).epsilon.tolist() == tabulate(x).epsilon.tolist()
    np.testing.assert_array_equal(tabulate(again, ["x1"]).values, x[:, 1:2])


# What is refused


def _changed(change: Callable[[pd.DataFrame], Any]) -> dd.DataFrame:
    X = labelled()
    change(X)
    return partitioned(X)


def _cell(value: Any) -> Callable[[pd.DataFrame], None]:
    def change(X: pd.DataFrame) -> None:
        X.loc[["row 700", "row 900"], "b"] = value

    return change


def _as(dtype: Any) -> Callable[[pd.DataFrame], None]:
    def change(X: pd.DataFrame) -> None:
        X["b"] = X["b"].round().astype("int64").astype(dtype)

    return change


@pytest.mark.parametrize(
    ("X", "error", "parts"),
    [
        (
            lambda: _changed(_cell(np.nan)),
            MissingValueError,
            ["2 missing", "'row 700', column"],
        ),
        (lambda: _changed(_cell(np.inf)), InfiniteValueError, ["2 infinite", "'row 700'"]),
        (lambda: _changed(_as(str)), NonNumericError, ["'b' holds text", "row 'row 0'"]),
        (lambda: _changed(_as("category")), NonNumericError, ["'b' holds categories"]),
        (lambda: da.ones((4, 2), dtype=bool), NonNumericError, ["'x0' holds booleans", "row 0"]),
        (lambda: da.ones((4, 2), dtype=int) * 2**60, ScaleError, ["'x0'", "2**53"]),
        (lambda: da.ones((4, 2, 2)), ShapeError, ["3-D"]),
        (lambda: da.ones(()), ShapeError, ["0-D"]),
        (lambda: dask.delayed(rows)(), ShapeError, ["Delayed", "compute"]),
        (lambda: da.ones((0, 2)), EmptyDataError, ["no rows"]),
        (lambda: da.ones((4, 0)), EmptyDataError, ["no columns"]),
        (lambda: unknown_chunks()[lambda_none()], EmptyDataError, ["no rows"]),
    ],
)
def test_what_cannot_be_fitted_is_refused(X: Any, error: Any, parts: list[str]) -> None:
    with pytest.raises(error) as raised:
        tabulate(X())
    for part in parts:
        assert part in str(raised.value)


def lambda_none() -> da.Array:
    return unknown_chunks()[:, 0] > 1e9


def test_columns_are_checked_by_name() -> None:
    X = partitioned(labelled(), 3)
    with pytest.raises(ColumnNameError, match="'d'"):
        tabulate(X, ["d"])
    fit = bg.fit_em(bg.GaussianMixture(1), labelled(), random_seed=1)
    pd.testing.assert_series_equal(bg.score(fit, X[["c", "a", "b"]]), bg.score(fit, labelled()))
    with pytest.raises(ColumnNameError, match="'a' missing"):
        bg.score(fit, X[["b", "c"]])


def test_the_data_stay_as_they_are_when_a_map_is_written_to(tmp_path: Path) -> None:
    X = memory_map(tmp_path, "r+")
    data = read(X)
    X[:] = 0.0
    np.testing.assert_array_equal(data.values, rows())


def test_a_map_that_cannot_be_written_to_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = memory_map(tmp_path, "r")

    def refuse() -> Any:
        raise AssertionError("a copy")

    monkeypatch.setattr("bayesgmm.data.streamed.scratch", refuse)
    np.testing.assert_array_equal(tabulate(X).values, rows())


# The file


def test_the_folder_is_the_users_choice_and_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = read(da.from_array(rows(), chunks=(300, 3)))
    assert list(tmp_path.iterdir()) == []  # a file without a name: gone with the last reference
    np.testing.assert_array_equal(data.values, rows())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"nowhere.*TMPDIR"):
        read(da.from_array(rows(), chunks=(300, 3)))


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"No space left on device for .* GB.*TMPDIR"):
        read(da.from_array(rows(), chunks=(300, 3)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux can play a full disk")
def test_a_disk_that_fills_up_is_told() -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(StorageError, match="TMPDIR"):
        streams.append(file, np.zeros(4096))


def test_where_files_cannot_be_reserved_their_room_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)  # as on macOS
    room = streams.room(3, 2, on_disk=True)
    room[:] = 1.0
    assert room.sum() == 6.0
    with pytest.raises(StorageError, match="no space left"):
        streams.room(1 << 50, on_disk=True)


def test_blocks_give_the_triangle_of_the_whole() -> None:
    x = rows(50, 4)
    found = streams.triangle(x[part] for part in streams.blocks(50, 7))
    np.testing.assert_allclose(found.T @ found, x.T @ x, rtol=1e-12)
    np.testing.assert_array_equal(np.tril(found, -1), 0.0)


# Memory

_MEASURED = """
import sys, threading, warnings
import dask, dask.array as da, numpy as np
import bayesgmm as bg

def anonymous():  # what is in memory and in no file, in MB
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3

def block(seed, m):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, 4)) + 4.0 * rng.integers(2, size=m)[:, None]

def table(n, m=50_000):
    promise = dask.delayed(block)
    return da.concatenate([da.from_delayed(promise(i, m), (m, 4), float) for i in range(n // m)])

def work(n):
    X, spec = table(n), bg.GaussianMixture(2, "VVV")
    fit = bg.fit_em(spec, X, random_seed=1, n_starts=1, start="random")
    bg.score(fit, X), bg.predict(fit, X)

warnings.simplefilter("ignore")
work(100_000)
before, peak, stop = anonymous(), [0.0], threading.Event()

def watch():
    while not stop.wait(0.005):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
work(int(sys.argv[1]))
stop.set()
watcher.join()
print(peak[0] - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells memory from mapped files"
)
def test_nothing_as_large_as_the_data_is_in_memory() -> None:
    """A Dask array of 38 MB is read, fitted with errors and scored within a third of that."""
    n = 1_200_000
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(n)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < n * 4 * 8 / 1e6 / 3


def test_replicates_copy_no_rows_into_memory(tmp_path: Path) -> None:
    """Of 26 MB, not a third: what is made are weights of the rows, and parts of some size."""
    n, d = 200_000, 16
    spec, peak = bg.GaussianMixture(2, "VVI"), []
    for m in (20_001, n):  # first what is compiled and imported
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            X = memory_map(tmp_path, "r", rows(m, d))
            fit = bg.fit_em(spec, X, start="random", n_starts=1, random_seed=1)
            tracemalloc.start()
            for kind in ("nonparametric", "weighted"):
                bg.bootstrap(fit, kind=kind, draws=2, audited=1, random_seed=1)
            peak.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # The search for starts is over as many rows in both.
    assert peak[1] - peak[0] < n * d * 8 / 3


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["nonparametric", "weighted"])
def test_replicates_are_those_of_the_same_rows_in_memory(
    kind: Any, missing: bool, tmp_path: Path
) -> None:
    x = rows(300)
    if missing:
        x[::7, 1] = np.nan
    spec, how = bg.GaussianMixture(2, "VVV"), "marginalise" if missing else "error"
    boots = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for X in (x, memory_map(tmp_path, "r", x)):
            fit = bg.fit_em(spec, X, missing=how, random_seed=1, n_starts=2)
            boots.append(bg.bootstrap(fit, kind=kind, draws=20, audited=5, random_seed=1))
    one, other = boots
    assert streams.is_on_disk(other["observed_data"]["x"].to_numpy())
    for name in ("weight", "mean", "covariance"):
        np.testing.assert_allclose(one["posterior"][name], other["posterior"][name], rtol=1e-6)
    for name in ("reason", "higher_elsewhere"):
        assert list(one["replicates"][name].values) == list(other["replicates"][name].values)
    np.testing.assert_allclose(
        one["sample_stats"]["objective"], other["sample_stats"]["objective"], rtol=1e-10
    )


def test_a_jackknife_leaves_out_rows_of_a_file(tmp_path: Path) -> None:
    x = rows(60)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for X in (x, memory_map(tmp_path, "r", x)):
            fit = bg.fit_em(bg.GaussianMixture(1, "VVV"), X)
            found.append(bg.jackknife(fit)["standard_error"]["mean"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


# A part of many rows, for short runs


def test_repeated_rows_are_weights_where_short_runs_are_over_a_part() -> None:
    rng = np.random.default_rng(3)
    x, weight = rows(23_000, 2), rng.integers(1, 4, size=23_000)
    spec = bg.GaussianMixture(2, "VVV")
    options: dict[str, Any] = {"random_seed": 1, "n_starts": 3, "n_finish": 1}
    some = bg.fit_em(spec, x, sample_weight=weight, **options)
    each = bg.fit_em(spec, np.repeat(x, weight, axis=0), **options)
    for name in ("weight", "mean", "covariance"):
        np.testing.assert_allclose(
            some["posterior"][name], each["posterior"][name], rtol=1e-10, atol=1e-10
        )


def test_labels_start_a_fit_to_many_rows() -> None:
    x = rows(30_000, 2)
    z = (x[:, 0] > 2.5).astype(int)
    fit = bg.fit_em(bg.GaussianMixture(2), x, start=z, random_seed=1)
    assert fit["starts"]["method"].to_numpy().tolist() == ["labels"]
    best = bg.fit_em(bg.GaussianMixture(2), x, random_seed=1, n_starts=2)
    np.testing.assert_allclose(fit["criteria"]["loglik"], best["criteria"]["loglik"], rtol=1e-9)
