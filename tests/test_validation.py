"""The long validation runs, on a few data sets: what it counts, and what its pages say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import bayesgmm as bg
from bayesgmm.errors import ArgumentError
from validation import coverage, lrt, missing

OVERLAPPING = 1


def seeds(n: int) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(1).spawn(n)


# Coverage


def test_every_way_to_an_interval_on_two_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "DRAWS", 39)
    regime, methods = coverage.regimes()[OVERLAPPING], list(coverage.METHODS)
    found = [coverage.one(regime, methods, seed) for seed in seeds(2)]
    records = coverage.summarise(regime, methods, found)
    assert {r["method"] for r in records} == set(methods)
    for record in records:
        assert record["intervals"] == 2
        misses = record["below"] + record["above"]
        assert record["coverage"] == pytest.approx(1.0 - misses)
        assert 0.3 < record["width"] < 3.0
    text = coverage.page(pd.DataFrame(records), {regime.name: 0.0}, seed=1)
    assert "| covariance[0, x0, x0] |" in text
    again = coverage.one(regime, methods, seeds(2)[0])
    for name in methods:
        assert_allclose(again[name], found[0][name], rtol=0, atol=0)


def test_an_interrupted_run_goes_on_from_what_it_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(coverage, "ProcessPoolExecutor", ThreadPoolExecutor)
    regime, keep = coverage.regimes()[0], tmp_path / "found.jsonl"
    methods = ["observed", "profile"]

    def all_of(n: int) -> list[dict[str, object]]:
        return list(coverage.all_of(regime, methods, n, 3, 1, keep))

    whole = list(coverage.all_of(regime, methods, 3, 3, 1))
    all_of(2)
    assert len(keep.read_text().splitlines()) == 2
    found = all_of(3)
    assert len(keep.read_text().splitlines()) == 3
    monkeypatch.setattr(coverage, "one", None)  # nothing is left to do
    for one, two, three in zip(whole, found, all_of(3), strict=True):
        for name in methods:
            assert_allclose(two[name], one[name], rtol=0, atol=0)
            assert_allclose(three[name], one[name], rtol=0, atol=0)
        assert one["elsewhere"] == two["elsewhere"] == three["elsewhere"]
    assert coverage.kept(regime, methods, 4, keep) == {}


def test_an_interval_holds_the_truth_or_is_too_low_or_too_high() -> None:
    """By hand, of the first parameter: two hold it, one is too low, one was not found."""
    regime = coverage.regimes()[OVERLAPPING]
    target = regime.target.weight[0]
    width = np.array([-0.1, 0.2])
    ends = [target + width, target + 2 * width, target + width - 0.25, np.full(2, np.nan)]
    rows = len(regime.rows)
    found = [{"observed": np.tile(end, (rows, 1)), "elsewhere": False} for end in ends]
    first = coverage.summarise(regime, ["observed"], found)[0]
    assert first["intervals"] == 3
    assert first["coverage"] == pytest.approx(2 / 3)
    assert first["below"] == pytest.approx(1 / 3)
    assert first["above"] == 0.0


def test_refusal_of_ambiguous_labels_counts_as_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str):
        def method(fit: coverage.Fitted) -> None:
            raise ArgumentError("boot", text)

        return method

    regime = coverage.regimes()[OVERLAPPING]
    monkeypatch.setitem(coverage.METHODS, "sandwich", refuse("has ambiguous labels in 9 %"))
    found = coverage.one(regime, ["sandwich", "observed"], seeds(1)[0])
    assert np.isnan(found["sandwich"]).all()
    assert np.isfinite(found["observed"]).all()
    monkeypatch.setitem(coverage.METHODS, "sandwich", refuse("is a banana"))
    with pytest.raises(ArgumentError, match="banana"):
        coverage.one(regime, ["sandwich"], seeds(1)[0])


def test_the_mixture_nearest_to_normal_components_is_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage, "TAILS", 1e6)
    regime = coverage.regimes()[2]
    found = coverage.nearest(regime.truth, regime.spec)
    for name in ("weight", "mean", "covariance"):
        assert_allclose(getattr(found, name), getattr(regime.truth, name), atol=3e-3)


def test_the_target_of_heavy_tails_is_the_best_fit_of_many_rows() -> None:
    """Within the errors of a sample of half a million rows, drawn as the regime draws them."""
    regime = coverage.regimes()[2]
    rng = np.random.default_rng(1)
    x = np.concatenate([regime.draw(rng) for _ in range(2000)])
    fit = bg.fit_em(regime.spec, x, start=regime.truth, standard_errors="sandwich")
    for name in ("weight", "mean", "covariance"):
        away = fit["posterior"][name].to_numpy()[0, 0] - getattr(regime.target, name)
        assert (np.abs(away) < 4.0 * fit["standard_error"][name].to_numpy()).all()


# The likelihood-ratio test


def test_the_likelihood_ratio_test_of_two_data_sets() -> None:
    found = [lrt.one(case, "E", 9, seed) for case in lrt.CASES for seed in seeds(2)]
    table = lrt.summarise(pd.DataFrame(found))
    assert table["truth"].to_list() == [case.name for case in lrt.CASES]
    assert (table["data_sets"] == 2).all()
    assert {f["p_value"] for f in found} <= {round(i / 10, 1) for i in range(1, 11)}
    text = lrt.page(table, draws=9, seed=1)
    assert "--data-sets 2 --draws 9 --seed 1" in text
    assert lrt.one(lrt.CASES[0], "E", 9, seeds(1)[0]) == found[0]


def test_shares_of_rejections_are_counted_with_their_errors() -> None:
    p = [0.01, 0.05, 0.06, 0.5]
    rows = [{"truth": "one", "family": "V", "p_value": v, "n_failed": 1} for v in p]
    row = lrt.summarise(pd.DataFrame(rows)).iloc[0]
    assert [row[f"rejected_{level:g}"] for level in (0.01, 0.05, 0.1)] == [0.25, 0.5, 0.75]
    assert row["mc_error_0.05"] == 0.25
    assert row["failed"] == 4


def test_data_have_the_distance_that_the_case_says() -> None:
    for case in lrt.CASES:
        rng = np.random.default_rng(0)
        x = np.concatenate([case.draw(rng) for _ in range(500)])
        assert x.mean() == pytest.approx(0.5 * case.distance, abs=0.03)
        assert x.var() == pytest.approx(1.0 + 0.25 * case.distance**2, rel=0.03)


# Missing values


def test_missing_values_in_two_data_sets() -> None:
    found = np.array([missing.one(300, seed) for seed in seeds(2)])
    assert found.shape == (2, len(missing.WAYS), 2, len(missing.ROWS))
    assert np.isfinite(found).all()
    # What is observed leads nearer to the fit of all data than complete rows do.
    complete, drop, marginalise = (found[:, w, 0] for w in range(3))
    assert np.abs(marginalise - complete).mean() < np.abs(drop - complete).mean()
    assert "| mean[1, x2] |" in missing.page(found, 300, 1)
