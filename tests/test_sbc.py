"""Simulation-based calibration, small: the posterior is calibrated, and planted bugs are seen.

A study's p-value is the least of its twelve quantities' times twelve. Below `ALARM` is an alarm,
which a calibrated posterior raises with that probability at most (ArviZ's p-values are exact so far
down, Bonferroni's bound of their least is on the safe side). Seeds are fixed.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arviz_stats.base import array_stats
from models import table

from bayesgmm.data.observations import read
from bayesgmm.errors import BayesgmmWarning
from bayesgmm.resolved import describe, resolve
from validation import gibbs, ranks, sbc

ALARM = 1e-4
SMALL = {
    "draws": 200,
    "tune": 200,
    "chains": 2,
    "n_starts": 1,
}  # at most a warning: that chains are few
CASE = replace(ranks.cases()["VVV"], n=15)  # so few rows that the prior, and its Jacobian, count


@cache
def p_values(n: int, bug: str | None = None) -> pd.Series:
    seeds = np.random.SeedSequence(2).spawn(n)
    plant = ranks.BUGS[bug] if bug else None
    found = [ranks.one(CASE, s, plant, **SMALL) | {"simulation": i} for i, s in enumerate(seeds)]
    places = sbc.places(found)
    assert len(places) > 0.9 * n
    return sbc.p_values(places)


def is_alarm(p: pd.Series) -> bool:
    return bool(p.min() * len(p) < ALARM)


def test_the_posterior_is_calibrated() -> None:
    assert not is_alarm(p_values(60))


@pytest.mark.parametrize(
    ("bug", "n", "by"),
    [
        ("wrong Jacobian", 40, "log-volume"),
        ("swapped weights", 20, "weight[0]"),
        ("dropped likelihood", 20, "log-likelihood"),
    ],
)
def test_planted_bugs_are_seen(bug: str, n: int, by: str) -> None:
    p = p_values(n, bug)
    assert is_alarm(p)
    assert p[by] * len(p) < ALARM


def test_without_the_likelihood_only_what_looks_at_the_data_sees_it() -> None:
    """Averaged over data, the prior is the posterior: parameters alone cannot tell them apart."""
    p = p_values(20, "dropped likelihood")
    free = ["mean of all", "sd of all", "share between", "log-volume", "entropy of weights"]
    assert p[[*free, "log-prior"]].min() > 1e-3


@pytest.mark.parametrize("name", ranks.cases())
def test_priors_depend_on_no_data(name: str) -> None:
    case, rng = ranks.cases()[name], np.random.default_rng(1)
    names = [f"x{j}" for j in range(case.d)]
    stated = [
        describe(resolve(case.spec, read(x, family=case.spec.covariance)), names)
        for x in (rng.normal(size=(30, case.d)), 50.0 + 9.0 * rng.normal(size=(12, case.d)))
    ]
    assert stated[0] == stated[1]


def test_truths_are_draws_from_the_prior() -> None:
    """By their moments: of the normal inverse Wishart, and of the Dirichlet distribution."""
    case, rng = ranks.cases()["VVV"], np.random.default_rng(2)
    truths = [ranks.from_prior(case, rng) for _ in range(2000)]
    covariance = np.concatenate([t.covariance for t in truths])
    mean = np.concatenate([t.mean for t in truths])
    weight = np.array([t.weight[0] for t in truths])
    # IW(6, I) in two columns has mean I / 3; a mean's covariance is that over the shrinkage.
    for values, expected in ((covariance, np.eye(2) / 3), (mean, np.zeros(2))):
        error = values.std(axis=0) / np.sqrt(len(values))
        assert (np.abs(values.mean(axis=0) - expected) < 4 * error).all()
    z = np.sqrt(0.03) * np.linalg.solve(np.linalg.cholesky(covariance), mean[..., None])
    np.testing.assert_allclose(np.cov(z[..., 0].T), np.eye(2), atol=0.07)
    assert weight.var() == pytest.approx(1 / 28, abs=0.004)  # Beta(3, 3)


def test_truths_of_posterior_calibration_are_draws_given_what_was_seen() -> None:
    case = ranks.cases()["VVV posterior"]
    seen = table("faithful").to_numpy()[::8]
    _, sample = ranks.draw(case, np.random.default_rng(3))
    np.testing.assert_array_equal(sample.x[:34], seen)
    assert sample.x.shape == (34 + case.n, 2)
    drawn = ranks.seen_posterior(case)
    assert drawn[1].shape == (10_000, 2, 2)
    centre = np.einsum("sk,skf->sf", drawn[0], drawn[1])
    error = seen.std(axis=0, ddof=1) / np.sqrt(len(seen))
    assert (np.abs(centre.mean(axis=0) - seen.mean(axis=0)) < 0.3 * error).all()
    np.testing.assert_allclose(centre.std(axis=0), error, rtol=0.15)
    found = ranks.one(case, np.random.SeedSequence(1), **SMALL)
    assert len(found["place"]) == 12
    assert case.group == "posterior_sbc"


def test_a_place_is_the_rank_spread_over_its_step_and_ties() -> None:
    rng, values = np.random.default_rng(4), np.array([3.0, 1.0, 2.0])
    found = [[ranks.place(values, truth, rng) for _ in range(200)] for truth in (0.5, 2.5, 3.5)]
    for step, places in zip((0, 2, 3), found, strict=True):
        assert min(places) > step / 4
        assert max(places) < (step + 1) / 4
        assert np.ptp(places) > 0.2
    tied = [ranks.place(np.ones(9), 1.0, rng) for _ in range(200)]
    assert min(tied) < 0.05
    assert max(tied) > 0.95


def test_the_same_function_measures_truth_and_draws_whatever_their_labels() -> None:
    case, rng = ranks.cases()["EEE"], np.random.default_rng(5)
    theta, pivot = (ranks.from_prior(case, rng) for _ in range(2))
    sample = ranks.Sample(rng.normal(size=(9, 2)), np.full(9, -1))
    orders = [[0, 1, 2], [2, 0, 1]]
    both = tuple(
        np.stack([getattr(theta, n)[order] for order in orders])
        for n in ("weight", "mean", "covariance")
    )
    for values in ranks.quantities(case, sample, both, pivot).values():
        assert values[0] == pytest.approx(values[1], rel=1e-10)


@pytest.mark.parametrize("name", ["VVV missing", "V labels", "EEE"])
def test_the_log_likelihood_is_that_of_the_fit(name: str) -> None:
    """The definition in NumPy, by which truth and draws are measured, against the package's."""
    case = ranks.cases()[name]
    _, sample = ranks.draw(case, np.random.default_rng(8))
    assert np.isnan(sample.x).any() == (case.hidden > 0)
    assert (sample.label >= 0).any() == (case.known > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)
        post, _ = ranks.fitted(case, sample, 1, draws=20, tune=50, chains=2, n_starts=1)
    kept = post["sample_stats"]["loglik"].to_numpy().ravel()
    np.testing.assert_allclose(ranks.log_likelihood(sample, ranks.arrays(post)), kept, rtol=1e-10)


def test_an_interrupted_study_goes_on_from_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbc, "ProcessPoolExecutor", ThreadPoolExecutor)
    keep = tmp_path / "found.jsonl"

    def found(n: int, keep: Path | None) -> dict[int, dict[str, float]]:
        study = sbc.Study("V", None, n, 1)
        return {f["simulation"]: f["place"] for f in sbc.all_of(study, 1, keep)}

    whole = found(3, None)
    assert found(2, keep) == {i: whole[i] for i in (0, 1)}
    assert found(3, keep) == whole
    assert len(keep.read_text().splitlines()) == 3
    monkeypatch.setattr(sbc, "one", None)  # nothing is left to do
    assert found(3, keep) == whole
    assert sbc.kept(sbc.Study("V", None, 3, 2), keep) == {}


def invented(n: int, place: Callable[[np.random.Generator], float], status: str) -> list[dict]:
    rng = np.random.default_rng(6)
    case = ranks.cases()["V"]
    sample = ranks.Sample(rng.normal(size=(5, 1)), np.full(5, -1))
    theta = ranks.from_prior(case, rng)
    one = tuple(getattr(theta, n)[None] for n in ("weight", "mean", "covariance"))
    names = ranks.quantities(case, sample, one, theta)
    return [
        {"simulation": i, "status": status, "seconds": 0.1, "place": {q: place(rng) for q in names}}
        for i in range(n)
    ]


def test_fits_that_failed_count_apart() -> None:
    good = invented(80, lambda rng: rng.uniform(), "ok")
    bad = invented(40, lambda rng: 0.4 * rng.uniform(), "fail")
    none = [{"simulation": 120, "status": "no maximum", "seconds": 0.1, "place": {}}]
    found = sbc.summarise(sbc.Study("V", None, 121, 1), good + bad + none)
    assert [found[s] for s in ("ok", "warn", "fail", "no maximum")] == [80, 0, 40, 1]
    assert found["least_all"] < 1e-4 < found["least_trusted"]
    assert found["inside_all"] < found["inside_trusted"]
    found = sbc.summarise(sbc.Study("V", None, 40, 1), bad)
    assert found["least_all"] < ALARM
    assert np.isnan(found["least_trusted"])
    assert found["inside_trusted"] == 0


def test_the_band_holds_what_is_uniform() -> None:
    even = (np.arange(100) + 0.5) / 100
    assert sbc.is_inside(even)
    assert not sbc.is_inside(0.5 * even)
    rng = np.random.default_rng(7)
    inside = sum(sbc.is_inside(rng.uniform(size=100)) for _ in range(100))
    assert inside >= 95  # 99 are expected; fewer than 95 have probability 5e-4


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    right = invented(60, lambda rng: rng.uniform(), "ok")
    wrong = invented(60, lambda rng: 0.4 * rng.uniform(), "ok")
    studies = [sbc.Study("V", None, 60, 1), sbc.Study("V", "wrong Jacobian", 60, 1)]
    records = [sbc.summarise(s, f) for s, f in zip(studies, (right, wrong), strict=True)]
    sbc.picture({"V": sbc.places(right), "VVI": sbc.places(wrong)}, tmp_path / "sbc.png")
    assert (tmp_path / "sbc.png").stat().st_size < 300_000
    pair = sbc.beside_exact([f | {"case": "V"} for f in right], [f | {"case": "V"} for f in right])
    text = sbc.page(records, [pair], 1, ["sbc.png"])
    assert "| V | conjugate | 60 | 0 | 0 | 0 |" in text
    assert "| log-likelihood |" in text
    assert "+0.0000 ± 0.0000 | 1.000 |" in text
    assert "| wrong Jacobian | V | 60 |" in text
    assert " | yes | " in text
    assert "(sbc.png)" in text


@pytest.mark.parametrize("name", gibbs.CASES)
def test_an_independent_sampler_has_the_same_posterior(name: str) -> None:
    case = ranks.cases()[name]
    _, sample = ranks.draw(case, np.random.default_rng(8))
    with warnings.catch_warnings():  # of starts that do not agree, of so few rows
        warnings.simplefilter("ignore", BayesgmmWarning)
        post, _ = ranks.fitted(case, sample, 1, draws=2000)
    ours = ranks.label_free_quantities(case, sample, ranks.arrays(post))
    exact = gibbs.posterior(case, sample, np.random.default_rng(9))
    theirs = ranks.label_free_quantities(case, sample, exact)
    for quantity, values in ours.items():
        chains = values.reshape(4, -1)
        error = values.std() / np.sqrt(float(array_stats.ess(chains, method="mean")))
        each = theirs[quantity].reshape(gibbs.CHAINS, -1)
        error = np.hypot(error, each.std() / np.sqrt(float(array_stats.ess(each, method="mean"))))
        assert abs(values.mean() - each.mean()) < 4.5 * error, quantity


def test_both_samplers_get_the_same_truth_and_data() -> None:
    exact = sbc.Study("V", None, 1, 1, "gibbs").one(3)
    assert exact == exact | {"sampler": "gibbs", "simulation": 3, "case": "V", "bug": None}
    ours = sbc.Study("V", None, 1, 1).one(3)
    for name, place in exact["place"].items():
        assert abs(place - ours["place"][name]) < 0.3, name  # of 64 draws: sd 0.06 at most


def test_a_wrong_posterior_is_seen_beside_the_exact_one() -> None:
    rng = np.random.default_rng(10)
    exact = invented(200, lambda rng: rng.uniform(), "gibbs")
    exact = [f | {"case": "V"} for f in exact]

    def noisy(shift: float) -> list[dict]:
        scatter = {"case": "V", "status": "ok"}
        return [
            f
            | scatter
            | {"place": {q: p + shift + 0.05 * rng.normal() for q, p in f["place"].items()}}
            for f in exact
        ]

    for shift, is_wrong in ((0.0, False), (0.02, True)):
        pair = sbc.beside_exact(noisy(shift), exact)
        z = [pair["difference"][q] / pair["error"][q] for q in pair["difference"]]
        assert bool(max(np.abs(z)) > 4.0) is is_wrong


def test_chains_start_where_the_gradient_is_not_zero() -> None:
    """The study came upon it: from a mode itself nutpie would not start, and there was no fit."""
    found = sbc.Study("EEV", None, 1, 1).one(404)
    assert found["status"] in {"ok", "warn", "fail"}
    assert all(0.0 < place < 1.0 for place in found["place"].values())


def test_one_case_is_made_anew_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flat = tmp_path / "sbc.md", invented(60, lambda rng: rng.uniform(), "ok")
    studies = [sbc.Study(case, None, 60, 1) for case in ("V", "VVV missing")]
    records = [sbc.summarise(s, flat) for s in studies]
    out.with_suffix(".json").write_text(
        json.dumps({"seed": 1, "records": records, "beside exact": []})
    )
    low = [f | {"case": "V"} for f in invented(60, lambda rng: 0.4 * rng.uniform(), "ok")]
    monkeypatch.setattr(sbc, "all_of", lambda study, workers, keep: iter(low))
    monkeypatch.setattr(
        sys, "argv", ["sbc", "--beside", "V", "--simulations", "60", "--out", str(out)]
    )
    sbc.main()
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["records"][0]["least_all"] < ALARM < records[0]["least_all"]
    assert found["records"][1] == json.loads(json.dumps(records[1]))
    assert [pair["case"] for pair in found["beside exact"]] == ["V"]
    assert "| V | log-likelihood | 60 |" in out.read_text()
