"""Selection: the table of fits, what they owe each other, failures shown and never chosen."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import registry
import xarray as xr

import bayesgmm as bg
from bayesgmm.em import search
from bayesgmm.errors import (
    ArgumentError,
    DataWarning,
    FitWarning,
    MissingValueError,
    NumericalError,
)
from bayesgmm.inference import selection
from bayesgmm.inference.selection import Selection, select

FAITHFUL, IRIS = registry.table("faithful"), registry.table("iris")
ACIDITY = registry.table("acidity")
MCLUST = pd.read_csv(registry.GOLDEN / "mclust_table.csv").fillna({"flag": ""})
NESTED = ("EII", "VII", "EEE", "VVV")


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def found() -> Selection:
    options: dict[str, Any] = {"n_starts": 4, "random_seed": 1}
    return quiet(select, FAITHFUL, n_components=range(1, 4), covariance=NESTED, **options)


# Against mclust, which maximises BIC = 2 loglik - p log n


def test_of_one_column_all_that_mclust_has_is_reached() -> None:
    table = quiet(select, ACIDITY, n_components=range(1, 5), random_seed=1).table
    assert len(table) == 8
    known = MCLUST.query("dataset == 'acidity' and flag != 'no_fit' and K < 5")
    known = known[~known["flag"].str.contains("tiny_component")].set_index(["model", "K"])
    for key, theirs in known.iterrows():
        ours = table.loc[key]
        assert ours["loglik"] >= theirs["loglik"] - 1e-6 * abs(theirs["loglik"])
        assert ours["n_params"] == theirs["df"]
        expected = -2.0 * ours["loglik"] + theirs["df"] * np.log(len(ACIDITY))
        assert ours["bic"] == pytest.approx(expected, rel=1e-12)
        if ours["loglik"] == pytest.approx(theirs["loglik"], abs=1e-5):
            assert ours["bic"] == pytest.approx(-theirs["bic"], abs=1e-4)
            assert ours["icl"] == pytest.approx(-theirs["icl"], abs=0.01)


def test_optima_of_iris_that_mclust_s_defaults_miss() -> None:
    families = ("EEE", "EVE", "EEV")
    table = quiet(select, IRIS, n_components=3, covariance=families, random_seed=1).table
    assert table.loc[("EVE", 3), "loglik"] >= -234.1405
    assert table.loc[("EEV", 3), "loglik"] >= -214.8505


# What fits owe each other


def test_log_likelihoods_grow_along_nesting_and_with_components(found: Selection) -> None:
    loglik = found.table["loglik"]
    for k in (1, 2, 3):
        for small, large in itertools.pairwise(NESTED):
            assert loglik[large, k] >= loglik[small, k] - 1e-6
    for letters in NESTED:
        for k in (1, 2):
            assert loglik[letters, k + 1] >= loglik[letters, k] - 1e-6


def test_what_nested_families_found_is_a_start() -> None:
    options: dict[str, Any] = {"n_components": 2, "n_starts": 1, "random_seed": 1}
    fits = quiet(select, FAITHFUL, covariance=NESTED, **options).fits
    given = {
        letters: [m for m in fits[letters, 2]["starts"]["method"].to_numpy() if "within" in m]
        for letters in NESTED
    }
    assert given == {
        "EII": [],
        "VII": ["within EII"],
        "EEE": ["within EII"],
        "VVV": ["within VII", "within EEE"],
    }


def _unlike() -> pd.DataFrame:
    """Columns in unlike units, which EII, VII and the polar families do not take for the same."""
    rng = np.random.default_rng(4)
    parts = [rng.multivariate_normal(m, c, 40) for m, c in zip(MEANS, SPREADS, strict=True)]
    return pd.DataFrame(np.concatenate(parts) * [1.0, 30.0, 0.1], columns=["a", "b", "c"])


MEANS = [[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]]
SPREADS = [np.diag([1.0, 0.2, 0.5]), np.full((3, 3), 0.4) + 0.3 * np.eye(3), 0.3 * np.eye(3)]
UNLIKE = _unlike()
THOROUGH: dict[str, Any] = {"n_starts": 13, "random_seed": 1}  # one more than run to their end


@pytest.fixture(scope="module")
def unlike() -> Selection:
    return quiet(select, UNLIKE, n_components=3, **THOROUGH)


def test_no_family_is_lower_than_one_that_is_nested_in_it(unlike: Selection) -> None:
    loglik = {letters: value for (letters, _), value in unlike.table["loglik"].dropna().items()}
    families = [bg.Covariance(letters) for letters in loglik]
    pairs = [(a, b) for a in families for b in families if a.is_nested_in(b)]
    assert len(pairs) > 50
    for special, wider in pairs:
        least = loglik[special.letters]
        assert loglik[wider.letters] >= least - 1e-9 * abs(least), (special, wider)


@pytest.mark.parametrize("letters", ["VII", "VEI", "EVE", "VEE"])
def test_each_fit_is_that_of_the_family_by_itself(letters: str, unlike: Selection) -> None:
    """What families share changes nothing, so that log-likelihoods of `fit_em` grow as well."""
    alone = quiet(bg.fit_em, bg.GaussianMixture(3, letters), UNLIKE, **THOROUGH)
    beside = unlike.fits[letters, 3]
    for group in ("posterior", "criteria", "starts"):
        xr.testing.assert_identical(alone[group].to_dataset(), beside[group].to_dataset())


@pytest.mark.parametrize(
    ("name", "k", "special", "wider"),
    [("wreath", 2, "VII", "VEI"), ("wreath", 3, "VII", "VEI"), ("baudry_ex4_3", 3, "VVE", "VVV")],
)
def test_pairs_that_a_search_by_itself_had_the_wrong_way_round(
    name: str, k: int, special: str, wider: str
) -> None:
    x = registry.table(name)
    low, high = (
        quiet(bg.fit_em, bg.GaussianMixture(k, f), x, standard_errors=False, random_seed=1)
        for f in (special, wider)
    )
    assert high["criteria"]["loglik"] >= low["criteria"]["loglik"] - 1e-6


def test_a_family_that_one_component_less_has_raised_raises_wider_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fit that is made again may be higher than those of wider families, which then are too."""

    def fit_em(spec, X, *, start, **options):
        if spec.n_components == 3 and not isinstance(start, list):
            start = np.arange(len(X)) % 3  # nonsense, and hardly any steps
            return bg.fit_em(spec, X, start=start, max_iter=1, standard_errors=False)
        if spec.covariance.letters == "VVV" and spec.n_components == 3:
            given.append([*start])
        return bg.fit_em(spec, X, start=start, **options)

    given: list[list[Any]] = []
    monkeypatch.setattr(selection, "fit_em", fit_em)
    options = {"covariance": ["VVI", "VVV"], "n_starts": 4, "random_seed": 1}
    fits = quiet(select, FAITHFUL, n_components=[2, 3], **options).fits
    assert [s is fits["VVI", 3] for s in given[0]].count(True) == 1
    assert fits["VVV", 3]["criteria"]["loglik"] >= fits["VVI", 3]["criteria"]["loglik"]


def test_ctrl_c_in_a_nested_family_keeps_what_has_been_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = search.run

    def interrupted(data, family, start, **options):
        if family.letters != "VVV":
            raise KeyboardInterrupt
        return run(data, family, start, **options)

    monkeypatch.setattr(search, "run", interrupted)
    fit = quiet(bg.fit_em, bg.GaussianMixture(2, "VVV"), FAITHFUL, random_seed=1)
    assert fit.attrs["stop_reason"] == "interrupted"
    assert fit["starts"]["method"].to_numpy()[-1] == "nested"
    assert fit["criteria"]["loglik"].item() == pytest.approx(-1130.2639601847, rel=1e-9)


def test_a_fit_that_is_worse_than_with_one_component_less_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def fit_em(spec, X, *, start, **options):
        calls.append(spec.n_components)
        if spec.n_components == 3 and calls.count(3) == 1:
            start = np.arange(len(X)) % 3  # nonsense, and hardly any steps
            return bg.fit_em(spec, X, start=start, max_iter=1, standard_errors=False)
        return bg.fit_em(spec, X, start=start, **options)

    monkeypatch.setattr(selection, "fit_em", fit_em)
    table = quiet(
        select, FAITHFUL, n_components=[2, 3], covariance="EEE", n_starts=4, random_seed=1
    ).table
    assert calls == [2, 3, 3]
    assert table.loc[("EEE", 3), "loglik"] == pytest.approx(-1126.3159, abs=1e-3)


# The table


def test_the_best_is_first_and_is_the_fit(found: Selection) -> None:
    table = found.table
    assert table.index.names == ["covariance", "n_components"]
    good = table[table["status"] != "fail"]
    assert list(table.index[: len(good)]) == list(good.index)
    assert good["bic"].is_monotonic_increasing
    assert found.best is found.fits[table.index[0]]
    for name in ("loglik", "n_params", "aic", "bic", "icl"):
        assert table[name].iloc[0] == found.best["criteria"][name].item()
    for criterion in ("aic", "icl"):
        fit = found.best_by(criterion)
        assert fit["criteria"][criterion].item() == good[criterion].min()
    assert repr(found) == repr(table)
    assert found._repr_html_() == table.to_html()


def test_the_criterion_decides() -> None:
    options: dict[str, Any] = {"n_components": [1, 2, 3], "covariance": "VVI", "n_starts": 4}
    by = quiet(select, FAITHFUL, criterion="aic", random_seed=1, **options)
    assert by.table["aic"].is_monotonic_increasing
    assert by.table.attrs["criterion"] == "aic"
    assert by.best["criteria"]["aic"].item() == by.table["aic"].min()


def test_all_fits_hold_one_copy_of_the_data(found: Selection) -> None:
    first, *others = (fit["observed_data"]["x"].to_numpy() for fit in found.fits.values())
    assert all(np.shares_memory(first, other) for other in others)


@pytest.mark.parametrize(("d", "n"), [(1, 2), (2, 14)])
def test_all_families(d: int, n: int) -> None:
    x = FAITHFUL.iloc[:, :d]
    table = quiet(select, x, n_components=1, n_starts=1, random_seed=1).table
    assert len(table) == n


def test_aliases_and_repetitions_are_one_family() -> None:
    given = ["full", "VVV", bg.Covariance("VVV"), "tied"]
    table = quiet(select, FAITHFUL, n_components=[1, 1], covariance=given, random_seed=1).table
    assert sorted(table.index) == [("EEE", 1), ("VVV", 1)]


# What goes wrong


def test_failures_are_shown_with_their_reason() -> None:
    x = np.repeat([[0.0], [1.0], [3.0]], 4, axis=0)
    found = quiet(select, x, n_components=[1, 4], random_seed=1)
    failed = found.table.loc[("E", 4)]
    assert failed["status"] == "fail"
    assert "3 distinct rows" in failed["reason"]
    assert failed[["loglik", "aic", "bic", "icl"]].isna().all()
    assert failed["n_params"] == 8
    assert ("E", 4) not in found.fits
    assert found.best is found.fits["E", 1]


def test_what_failed_is_never_the_best(found: Selection) -> None:
    table = found.table.copy()
    table.iloc[0, table.columns.get_loc("status")] = "fail"
    second = Selection(table, found.fits, "bic")
    assert second.best is found.fits[table.index[1]]
    table["status"] = "fail"
    with pytest.raises(NumericalError, match="none of the 12 specifications"):
        second.best_by("bic")


def test_if_all_fail_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit_em(*args, **options):
        raise NumericalError("all 40 starts ended singular:\n  start 0")

    monkeypatch.setattr(selection, "fit_em", fit_em)
    with pytest.warns(FitWarning, match="nothing-selected"):
        found = select(FAITHFUL, n_components=2, covariance="VVV", random_seed=1)
    assert found.table["reason"].iloc[0] == "all 40 starts ended singular:"


def test_the_verdict_on_the_best_is_the_only_warning_of_fits() -> None:
    x = np.random.default_rng(3).normal(size=(30, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = select(x, n_components=[4], covariance="V", random_seed=1)
    assert found.table["status"].iloc[0] != "ok"
    assert found.table["reason"].iloc[0]
    assert len([w for w in caught if isinstance(w.message, FitWarning)]) == 1


def test_what_is_wrong_with_the_data_is_said_once() -> None:
    x = FAITHFUL + 1e14
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        select(x, n_components=1, covariance=["EII", "VII"], random_seed=1)
    codes = [w.message.code for w in caught if isinstance(w.message, DataWarning)]
    assert codes.count("precision-loss") == 1


def test_bad_data_are_refused_before_anything_is_fitted() -> None:
    x = FAITHFUL.copy()
    x.iloc[3, 0] = np.nan
    with pytest.raises(MissingValueError):
        select(x)


def test_wrong_arguments_are_named() -> None:
    for argument, options in {
        "criterion": {"criterion": "dic"},
        "cores": {"cores": 0},
        "covariance": {"covariance": []},
        "n_components": {"n_components": []},
        "random_seed": {"random_seed": -1},
    }.items():
        with pytest.raises(ArgumentError, match=f"^{argument}: "):
            select(FAITHFUL, **options)
    with pytest.raises(ArgumentError, match="are for one column"):
        select(FAITHFUL, covariance=["VVV", "E"])
    with pytest.raises(ArgumentError, match="n_components: must be an integer"):
        select(FAITHFUL, n_components=[1, 2.5])


# Processes, seeds, Ctrl-C


def test_processes_change_nothing() -> None:
    options: dict[str, Any] = {"n_components": [1, 2], "covariance": ["EII", "VII"]}
    options |= {"n_starts": 3, "random_seed": 5}
    one, two = (quiet(select, FAITHFUL, cores=cores, **options) for cores in (1, 2))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    assert list(one.fits) == list(two.fits)


def test_ctrl_c_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fit_em(*args, **options):
        calls.append(args)
        if len(calls) in (3, 4):
            raise KeyboardInterrupt
        return bg.fit_em(*args, **options)

    monkeypatch.setattr(selection, "fit_em", fit_em)
    options: dict[str, Any] = {"covariance": "EEE", "n_starts": 1, "random_seed": 1}
    found = quiet(select, FAITHFUL, n_components=[1, 2, 3], **options)
    assert sorted(found.table.index) == [("EEE", 1), ("EEE", 2)]
    assert found.table.attrs["stop_reason"] == "interrupted"
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        select(FAITHFUL, n_components=[1, 2, 3], **options)
