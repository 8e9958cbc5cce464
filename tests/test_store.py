"""Draws on disk: what a killed run had finished is a fit, and the fit is the one it would be."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, NumericalError, PosteriorWarning
from bayesgmm.posterior.store import prepare

SPEC = bg.GaussianMixture(2)
X = models.table("faithful").set_axis([f"day {i}" for i in range(272)])
WEIGHT = np.resize([1.0, 2.0, 1.0], 272)
LONG = {"draws": 50_000, "tune": 50, "chains": 2, "log_likelihood": False, "random_seed": 7}
MANY = pd.concat([X] * 6, ignore_index=True)  # so that a draw takes a millisecond
GRACE = 31  # draws of a chain that may be on their way


def quietly(function: Any, *arguments: Any, **settings: Any) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        return function(*arguments, **settings)


def sampled(store: Path | None = None, **settings: Any) -> xr.DataTree:
    short = {"draws": 40, "tune": 60, "chains": 3, "random_seed": 7, "mle": mle()} | settings
    return quietly(bg.sample_posterior, SPEC, X, sample_weight=WEIGHT, store=store, **short)


def sampled_long(**settings: Any) -> xr.DataTree:
    return quietly(bg.sample_posterior, SPEC, MANY, mle=mle_of_many(), **LONG | settings)


@cache
def mle_of_many() -> xr.DataTree:
    return bg.fit_em(SPEC, MANY, random_seed=1, n_starts=1, standard_errors=False)


@cache
def mle() -> xr.DataTree:
    options: dict[str, Any] = {"random_seed": 1, "n_starts": 2, "standard_errors": False}
    return bg.fit_em(SPEC, X, sample_weight=WEIGHT, **options)


def assert_same(one: xr.DataTree, other: xr.DataTree) -> None:
    """The same groups to the bit, and the same attributes but for the seconds it took."""
    assert set(one.children) == set(other.children)
    for name in one.children:
        assert one[name].to_dataset().identical(other[name].to_dataset()), name
    assert one.attrs.keys() == other.attrs.keys()
    assert {k for k in one.attrs if one.attrs[k] != other.attrs[k]} <= {"timings"}


def run_long(store: Path) -> None:
    """What the other process does, and where its fit shows how it ended."""
    fit = sampled_long(store=store)
    (store.parent / "ended").write_text(fit.attrs["stop_reason"])


@pytest.fixture
def process(tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process, spawned as on Windows and macOS, that samples for a long time."""
    found = multiprocessing.get_context("spawn").Process(target=run_long, args=(tmp_path / "s",))
    found.start()
    yield found
    found.kill()
    found.join()


def finished(store: Path) -> int:
    """How many times both chains have written."""
    place = store / "draws.zarr" / "posterior" / "point" / "c"
    return min(len(list((place / chain).glob("*/0"))) for chain in "01")


def wait_for(chunks: int, store: Path) -> int:
    """Wait until so many times 16 draws have been written."""
    end = time.monotonic() + 120
    while finished(store) < chunks:
        assert time.monotonic() < end
        time.sleep(0.02)
    return finished(store)


class TestKilled:
    def test_nothing_finished_is_lost(
        self, process: multiprocessing.process.BaseProcess, tmp_path: Path
    ) -> None:
        """Also while it still runs; and the draws are those of a run that nothing disturbed."""
        store = tmp_path / "s"
        before = wait_for(3, store)
        os.kill(process.pid, signal.SIGSTOP)  # so that there are not many draws on a busy machine
        running = quietly(bg.recover, store)
        assert process.is_alive()
        assert running.attrs["stop_reason"] == "recovered"
        os.kill(process.pid, signal.SIGCONT)
        written = wait_for(before + 2, store)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert finished(store) >= written
        killed = quietly(bg.recover, store)
        assert killed.attrs["stop_reason"] == "recovered"
        assert killed["posterior"].sizes["draw"] >= 16 * written - GRACE
        lp = [fit["sample_stats"]["lp"].to_numpy() for fit in (running, killed)]
        assert lp[1].size >= lp[0].size > 0
        same = sampled_long(draws=lp[0].shape[1])
        whole = same["sample_stats"]["lp"].to_numpy()
        for fit, here in zip((running, killed), lp, strict=True):
            count = min(here.shape[1], whole.shape[1])
            # On a busy machine a chain may be so far behind that it is left out (`nuts.finished`).
            kept = [i for one in here for i in range(2) if (one[:count] == whole[i, :count]).all()]
            assert len(kept) == len(here)
            for group in ("posterior_raw", "posterior", "sample_stats"):
                found = fit[group].to_dataset().isel(draw=slice(0, count))
                expected = same[group].to_dataset().isel(draw=slice(0, count), chain=kept)
                expected = expected.assign_coords(found.coords)  # chains count from 0 in each
                xr.testing.assert_allclose(found, expected, rtol=1e-12)
        assert killed.attrs["fingerprint"] == same.attrs["fingerprint"]

    def test_termination_is_an_interruption(
        self, process: multiprocessing.process.BaseProcess, tmp_path: Path
    ) -> None:
        wait_for(3, tmp_path / "s")
        process.terminate()
        process.join()
        assert process.exitcode == 0
        assert (tmp_path / "ended").read_text() == "interrupted"
        fit = quietly(bg.recover, tmp_path / "s")
        assert fit.attrs["stop_reason"] == "interrupted"
        assert fit["posterior"].sizes["draw"] >= 3 * 16
        assert np.isfinite(fit["sample_stats"]["lp"]).all()


class TestWhole:
    def test_it_is_the_fit_that_was_returned(self, tmp_path: Path) -> None:
        """And the one without a store, for any number of cores."""
        kept = sampled(tmp_path / "s", cores=1)
        assert kept.attrs["stop_reason"] == "completed"
        assert_same(quietly(bg.recover, tmp_path / "s"), kept)
        assert_same(sampled(cores=2), kept)

    @pytest.mark.parametrize(
        ("spec", "known"),
        [
            (SPEC, {"missing": "marginalise", "labels": np.resize([0, -1, -1, 1], 272)}),
            (SPEC, {"fixed": {"mean": [[2.0, np.nan], [np.nan, np.nan]]}}),
            (bg.GaussianMixture(2, "VVI", "separation", noise=True), {}),
        ],
        ids=["missing and labels", "fixed", "noise"],
    )
    def test_so_it_is_with_all_that_a_posterior_takes(
        self, spec: bg.GaussianMixture, known: dict[str, Any], tmp_path: Path
    ) -> None:
        x = X.copy()
        if "missing" in known:
            x.iloc[::7, 1] = np.nan
        settings = {"draws": 20, "tune": 40, "chains": 2, "random_seed": 3} | known
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
            kept = bg.sample_posterior(spec, x, store=tmp_path / "s", **settings)
        assert_same(quietly(bg.recover, tmp_path / "s"), kept)

    def test_a_time_limit_keeps_what_there_is(self, tmp_path: Path) -> None:
        begin = time.monotonic()
        settings = LONG | {"draws": 1_000_000, "chains": 5}
        fit = sampled(tmp_path / "s", **settings, max_time=0.7)
        assert time.monotonic() - begin < 60
        assert fit.attrs["stop_reason"] == "time limit"
        assert 0 < fit["posterior"].sizes["draw"] < 1_000_000
        assert fit["posterior"].sizes["chain"] >= 3  # not those of the first cores alone
        assert_same(quietly(bg.recover, tmp_path / "s"), fit)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_no_draw_in_time_is_an_error(self) -> None:
        with pytest.raises(NumericalError, match="max_time"):
            sampled(tune=1_000_000, max_time=0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    sampled(path)
    return path


def copied(store: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(store, to / "s"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_layout(path: Path) -> None:
    with xr.open_datatree(path / "task.nc") as opened:
        record = opened.load()
    record.attrs["layout"] = 99
    record.to_netcdf(path / "task.nc")


def move_a_draw(path: Path) -> None:
    point = zarr.open_group(path / "draws.zarr")["posterior/point"]
    point[0, 0, 0] = point[0, 0, 0] + 1e-3


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda p: p.rename(p.parent / "t"), "no store of sample_posterior"),
    "no task": (lambda p: (p / "task.nc").unlink(), "no store of sample_posterior"),
    "half a task": (lambda p: truncate(p / "task.nc"), r"task\.nc is damaged"),
    "another layout": (set_layout, "layout 99 of bayesgmm"),
    "no draws": (lambda p: (p / "draws.zarr").rename(p.parent / "d"), "no draws yet"),
    "half a chunk": (
        lambda p: truncate(p / "draws.zarr/posterior/point/c/0/0/0"),
        "is damaged",
    ),
    "another draw": (move_a_draw, "not of the density"),
    "half an end": (lambda p: truncate(p / "finished.json"), r"finished\.json is damaged"),
}


class TestRefusals:
    @pytest.mark.parametrize("what", DAMAGE)
    def test_what_is_no_whole_store(self, store: Path, tmp_path: Path, what: str) -> None:
        path = copied(store, tmp_path)
        harm, message = DAMAGE[what]
        harm(path)
        with pytest.raises(ArgumentError, match=message) as caught:
            bg.recover(path)
        assert caught.value.argument == "store"

    def test_a_store_is_replaced_only_if_asked(self, store: Path, tmp_path: Path) -> None:
        path = copied(store, tmp_path)
        with pytest.raises(ArgumentError, match="overwrite=True") as caught:
            sampled(path)
        assert caught.value.argument == "store"
        assert quietly(bg.recover, path).attrs["stop_reason"] == "completed"
        assert list(prepare(path, overwrite=True).iterdir()) == []

    def test_a_folder_with_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("all of it")
        with pytest.raises(ArgumentError, match=r"thesis\.tex"):
            sampled(tmp_path, overwrite=True)
        with pytest.raises(ArgumentError, match="no folder that can be made"):
            sampled(tmp_path / "thesis.tex")

    @pytest.mark.parametrize("value", [0, -1.0, float("inf"), True, "10"])
    def test_times_that_are_none(self, value: object) -> None:
        with pytest.raises(ArgumentError, match="above 0") as caught:
            sampled(max_time=value)
        assert caught.value.argument == "max_time"


def test_where_no_bar_can_be_drawn_there_are_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bayesgmm.progress._BETWEEN", 0.0)
    monkeypatch.setattr("bayesgmm.progress.can_draw", lambda: False)
    monkeypatch.setattr("bayesgmm.posterior.nuts.can_draw", lambda: False)
    sampled(progressbar=True, draws=20_000, max_time=1.5, log_likelihood=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("sampling: ") and "draws" in line for line in lines)
    assert "\x1b" not in "".join(lines)
    sampled()
    assert capsys.readouterr().err == ""


FORKED = """
import os, sys, warnings
import numpy as np
import bayesgmm as bg
warnings.simplefilter("ignore")
x = np.random.default_rng(1).normal(size=(70_000, 1))
spec = bg.GaussianMixture(2, "V")
def work():
    mle = bg.fit_em(spec, x, random_seed=1, n_starts=4, max_iter=20, standard_errors=False)
    fit = bg.sample_posterior(spec, x[:50], draws=20, tune=20, chains=2, random_seed=1)
    return repr((float(mle["criteria"]["loglik"]), float(fit["sample_stats"]["lp"].sum())))
before = work()
child = os.fork()
if not child:
    os._exit(0 if work() == before else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tests what a fork does; Windows has none")
def test_a_process_that_is_forked_after_threads_ran_does_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
