"""The bootstrap likelihood-ratio test: its statistic, its p-values, what goes wrong."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from threading import Event

import numpy as np
import pandas as pd
import pytest
import registry
import xarray as xr
from numpy.testing import assert_array_equal
from scipy.stats import binom

import bayesgmm as bg
from bayesgmm import tree
from bayesgmm.em.loop import run
from bayesgmm.em.moves import splits
from bayesgmm.em.start import Start, from_labels
from bayesgmm.errors import ArgumentError, FitWarning
from bayesgmm.inference import lrt
from bayesgmm.inference.lrt import bootstrap_lrt
from bayesgmm.inference.replicates import data_of

FAITHFUL, ACIDITY = registry.table("faithful"), registry.table("acidity")
ONE = bg.GaussianMixture(1, "VVV")


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def sequence() -> xr.Dataset:
    return quiet(bootstrap_lrt, ONE, FAITHFUL, max_components=3, draws=19, random_seed=1)


# The statistic


@pytest.mark.parametrize(
    ("name", "sizes"), [("lrt_faithful_VVV", (1, 2, 3, 4)), ("lrt_acidity_E", (1, 2, 3, 4, 5))]
)
def test_from_mclust_s_partitions_the_ratios_are_mclust_s(name: str, sizes: Sequence[int]) -> None:
    record = registry.golden(f"bootstrap/{name}")
    dataset = name.split("_")[1]
    x, labels = registry.table(dataset), registry.golden(f"mclust/{dataset}")["init"]
    loglik = []
    for k in sizes:
        spec = bg.GaussianMixture(k, record["model"])
        data = quiet(lrt_data, spec, x)
        start = np.array(labels[str(k)]) - 1
        begin = Start("labels", from_labels(data, spec.covariance, start, k))
        loglik.append(run(data, spec.covariance, begin, tol=1e-8).objective)
    away = np.abs(2.0 * np.diff(loglik) - record["lrts"])
    table = pd.read_csv(registry.GOLDEN / "mclust_table.csv").query(
        f"dataset == {dataset!r} and model == {record['model']!r} and K <= {max(sizes)}"
    )
    # The ratios are from mclust's default tolerance, which stops that much early in either size.
    early = (table["loglik"] - table["loglik_default"]).to_numpy()
    assert (away < 2.0 * np.maximum(early[1:], early[:-1]) + 1e-3).all()


def lrt_data(spec: bg.GaussianMixture, x):
    return data_of(bg.fit_em(spec, x, n_starts=1, random_seed=1, standard_errors=False))


def test_the_ratios_are_those_of_the_best_known_optima(sequence: xr.Dataset) -> None:
    best = {
        fit["K"]: fit["best_loglik"]
        for fit in registry.golden("multistart_best")["fits"]
        if fit["csv"] == "data/faithful.csv" and fit["model"] == "VVV"
    }
    assert sequence["loglik_larger"].to_numpy() == pytest.approx([best[2], best[3]], abs=1e-4)
    assert sequence["loglik"].to_numpy()[1] == pytest.approx(best[2], abs=1e-4)
    expected = 2.0 * (best[3] - best[2])
    assert sequence["statistic"].to_numpy()[1] == pytest.approx(expected, abs=1e-3)


def test_splits_have_one_component_more_and_are_of_the_family() -> None:
    for family in registry.EVERY:
        p = registry.mixture(np.random.default_rng(1), family, 2, 3)
        found = list(splits(p, family))
        assert len(found) == 4
        for q in found:
            assert q.k == 3
            assert q.weight.sum() == pytest.approx(1.0, abs=1e-12)
            np.testing.assert_allclose(q.weight @ q.mean, p.weight @ p.mean, rtol=1e-12)
            same = registry.compose(family, 3, 3, *registry.decompose(family, q.covariance))
            np.testing.assert_allclose(q.covariance, same, rtol=1e-6, atol=1e-8)


# The p-value


def test_p_counts_the_data_among_the_replicates(sequence: xr.Dataset) -> None:
    for _, test in sequence.groupby("n_components"):
        above = int((test["replicate"] >= test["statistic"]).sum())
        assert float(test["p_value"].squeeze()) == (1 + above) / 20


def test_two_components_are_found_in_faithful_and_mclust_agrees(sequence: xr.Dataset) -> None:
    record = registry.golden("bootstrap/lrt_faithful_VVV")
    assert record["p_value"][0] == 0.002  # the smallest that 499 replicates can give
    assert float(sequence["p_value"][0]) == 0.05
    assert float(sequence["statistic"][0]) == pytest.approx(record["lrts"][0], abs=1e-3)
    # Searched well, replicates reach further than mclust's, from one start each.
    ours = np.median(sequence["replicate"].to_numpy()[0])
    assert ours > record["boot_quantiles"][0]["q50"]


def test_under_the_null_p_is_about_uniform() -> None:
    """24 data sets from one normal: counts of small p-values are binomial."""
    rng, p = np.random.default_rng(7), []
    for i in range(24):
        x = rng.normal(size=(40, 1))
        options = {"draws": 9, "n_starts": 1, "random_seed": i}
        test = quiet(bootstrap_lrt, bg.GaussianMixture(1, "E"), x, **options)
        p.append(float(test["p_value"][0]))
    p = np.array(p)
    assert set(np.round(10 * p)) <= set(range(1, 11))
    for level in (0.2, 0.5, 0.8):
        low, high = binom(24, level).ppf([0.001, 0.999])
        assert low <= np.count_nonzero(p < level + 0.01) <= high


def test_it_ends_with_the_first_that_is_not_rejected() -> None:
    x = np.concatenate([np.random.default_rng(i).normal(8.0 * i, 1.0, 40) for i in range(2)])
    spec = bg.GaussianMixture(1, "E")
    options = {"max_components": 4, "draws": 19, "n_starts": 0, "random_seed": 2}
    found = quiet(bootstrap_lrt, spec, x[:, None], **options)
    assert found["n_components"].to_numpy().tolist() == [1, 2]
    assert found.attrs["n_components"] == 2
    every = quiet(bootstrap_lrt, spec, x[:, None], level=None, **options)
    assert every["n_components"].to_numpy().tolist() == [1, 2, 3]
    assert "n_components" not in every.attrs
    assert_array_equal(every["replicate"][:2], found["replicate"])


def test_more_components_never_have_less() -> None:
    """Even where the search misses: K components are K + 1, two of them the same."""
    found = quiet(
        bootstrap_lrt, bg.GaussianMixture(1, "E"), ACIDITY, draws=30, n_starts=0, random_seed=1
    )
    assert (found["replicate"] >= 0).all()


def test_a_fit_brings_its_data_and_weights() -> None:
    x = ACIDITY[:60]
    w = np.arange(60) % 3
    spec = bg.GaussianMixture(1, "V")
    options = {"draws": 9, "n_starts": 2, "random_seed": 4}
    fit = quiet(bg.fit_em, spec, x, sample_weight=w, random_seed=1)
    one = quiet(bootstrap_lrt, fit, **options)
    two = quiet(bootstrap_lrt, spec, x, sample_weight=w, **options)
    rows = quiet(bootstrap_lrt, spec, np.repeat(x.to_numpy(), w, axis=0), **options)
    xr.testing.assert_equal(one, two)
    statistic = [float(found["statistic"][0]) for found in (one, rows)]
    assert statistic[0] == pytest.approx(statistic[1], rel=1e-5)


# Seeds, threads, Ctrl-C


def test_the_same_seed_gives_the_same_bits_for_any_number_of_threads(
    sequence: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lrt, "workers", lambda *_: 3)
    again = quiet(bootstrap_lrt, ONE, FAITHFUL, max_components=3, draws=19, random_seed=1)
    xr.testing.assert_equal(again, sequence)
    other = quiet(bootstrap_lrt, ONE, FAITHFUL, draws=2, random_seed=2)
    assert (other["replicate"].to_numpy()[0] != sequence["replicate"].to_numpy()[0, :2]).all()


def test_ctrl_c_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = lrt._pair, []

    def pair(*args):
        calls.append(args)
        if len(calls) == 6:  # one for the data, four replicates
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(lrt, "_pair", pair)
    with pytest.warns(FitWarning, match="Interrupted"):
        found = bootstrap_lrt(
            bg.GaussianMixture(1, "E"), ACIDITY, draws=30, n_starts=0, random_seed=1
        )
    assert found.attrs["stop_reason"] == "interrupted"
    known = np.isfinite(found["replicate"].to_numpy()[0])
    assert known.tolist() == [True] * 4 + [False] * 26
    assert float(found["p_value"][0]) == 0.2
    assert int(found["n_failed"][0]) == 0


def test_a_run_that_is_stopped_is_none() -> None:
    data = data_of(bg.fit_em(bg.GaussianMixture(1, "E"), ACIDITY, random_seed=1))
    fit = bg.fit_em(bg.GaussianMixture(1, "E"), ACIDITY, random_seed=1)
    stop = Event()
    stop.set()
    how = lrt._How(bg.Covariance("E"), 1, None)
    null = data.to_anchored(tree.point(fit))
    assert lrt._pair(data, how, null, np.random.default_rng(0), stop) is None


# What goes wrong


def test_failed_replicates_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = lrt._pair, []

    def pair(*args):
        calls.append(args)
        found = whole(*args)
        if len(calls) == 3:
            found = lrt._Pair(found.smaller, replace(found.larger, reason="singular"))
        return found

    monkeypatch.setattr(lrt, "_pair", pair)
    with pytest.warns(FitWarning, match="1 of 10 replicates have no usable optimum"):
        found = bootstrap_lrt(
            bg.GaussianMixture(1, "E"), ACIDITY, draws=10, n_starts=0, random_seed=1
        )
    assert int(found["n_failed"][0]) == 1
    assert np.isnan(found["replicate"].to_numpy()[0]).tolist() == [False, True] + [False] * 8
    assert float(found["p_value"][0]) == 1 / 10


def test_wrong_arguments_are_named() -> None:
    for argument, options in {
        "draws": {"draws": 0},
        "n_starts": {"n_starts": -1},
        "level": {"level": 1.5},
        "threads": {"threads": 0},
        "max_components": {"max_components": 1},
    }.items():
        with pytest.raises(ArgumentError, match=f"^{argument}: "):
            bootstrap_lrt(bg.GaussianMixture(1, "E"), ACIDITY, **options)
    with pytest.raises(ArgumentError, match=r"^X: is needed"):
        bootstrap_lrt(ONE)
    with pytest.raises(ArgumentError, match=r"^fit: must be a fit"):
        bootstrap_lrt("VVV")
    fit = bg.fit_em(ONE, FAITHFUL, random_seed=1)
    with pytest.raises(ArgumentError, match=r"^X: is the fit's"):
        bootstrap_lrt(fit, FAITHFUL)
    mode = quiet(bg.fit_em, ONE, FAITHFUL, estimate="map", random_seed=1)
    with pytest.raises(ArgumentError, match=r"^null: is no maximum-likelihood fit"):
        bootstrap_lrt(mode)
