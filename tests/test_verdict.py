"""The verdict: each kind of bad fit is called bad, and a good one is not."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import xarray as xr

from bayesgmm.checks import Check, Verdict, warn
from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.em.rivals import Rival
from bayesgmm.em.tails import Tails
from bayesgmm.em.verdict import em_verdict
from bayesgmm.errors import ArgumentError, FitWarning, PosteriorWarning
from bayesgmm.labelfree import label_free
from bayesgmm.moments import Parameters
from bayesgmm.posterior.verdict import posterior_verdict

CHECKS = {
    "non-finite-draws",
    "constant-parameter",
    "few-chains",
    "rhat",
    "ess-bulk",
    "ess-tail",
    "mcse",
    "divergences",
    "treedepth",
    "bfmi",
    "ambiguous-labels",
}


class Run:
    """Independent draws around a mixture, as a sampler would give them if it were perfect."""

    def __init__(self, chains=4, draws=1000, k=2, family="VVV", seed=1):
        rng = np.random.default_rng(seed)
        self.family, self.k, d = Covariance(family), k, 2
        self.weight = rng.dirichlet(np.full(k, 200.0), size=(chains, draws))
        centre = np.arange(k)[:, None] * np.array([4.0, 2.0])
        self.mean = centre + 0.1 * rng.normal(size=(chains, draws, k, d))
        root = np.eye(d) + 0.1 * rng.normal(size=(chains, draws, k, d, d))
        if self.family.is_common:
            root = np.repeat(root[:, :, :1], k, axis=2)
        self.covariance = root @ root.mT
        if self.family.is_diagonal:
            size = np.diagonal(self.covariance, axis1=-2, axis2=-1)
            if self.family.shape == "I":
                size = np.repeat(size[..., :1], d, axis=-1)
            self.covariance = size[..., None] * np.eye(d)
        self.margin = rng.uniform(0.8, 1.0, size=(chains, draws)) if k > 1 else None
        self.stats = {
            "loglik": -1000.0 + rng.normal(size=(chains, draws)),
            "energy": 1000.0 + rng.normal(size=(chains, draws)),
            "diverging": np.zeros((chains, draws), dtype=bool),
            "depth": np.full((chains, draws), 3),
            "maxdepth_reached": np.zeros((chains, draws), dtype=bool),
        }

    def verdict(self, max_treedepth=10):
        names = ["a", "b"]
        aligned = xr.Dataset(
            {
                "weight": (("chain", "draw", "cluster"), self.weight),
                "mean": (("chain", "draw", "cluster", "feature"), self.mean),
                "covariance": (
                    ("chain", "draw", "cluster", "feature", "feature_bis"),
                    self.covariance,
                ),
            },
            coords={"feature": names, "feature_bis": names},
        )
        free = {
            name: (("chain", "draw", "feature")[: array.ndim], array)
            for name, array in label_free(self.weight, self.mean, self.covariance).items()
        }
        stats = {name: (("chain", "draw"), array) for name, array in self.stats.items()}
        return posterior_verdict(
            aligned,
            xr.Dataset(free, coords={"feature": names}),
            xr.Dataset(stats),
            margin=self.margin,
            family=self.family,
            max_treedepth=max_treedepth,
        )


def statuses(verdict):
    return {check.code: check.status for check in verdict.checks}


def check(verdict, code):
    return next(c for c in verdict.checks if c.code == code)


def test_good_draws_are_ok():
    verdict = Run().verdict()
    assert verdict.status == "ok", str(verdict)
    assert {c.code for c in verdict.checks} == CHECKS
    assert all(c.evidence and not c.advice for c in verdict.checks)
    assert str(verdict) == "ok: all 11 checks passed"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_makes_equal_or_zero_is_not_called_constant(family):
    verdict = Run(family=family, draws=300).verdict()
    assert check(verdict, "constant-parameter").status == "ok", str(verdict)


def test_one_component_has_neither_a_constant_weight_nor_ambiguous_labels():
    verdict = Run(k=1).verdict()
    assert verdict.status == "ok", str(verdict)
    assert {c.code for c in verdict.checks} == CHECKS - {"ambiguous-labels"}


# Each failure: what is done to a good run -> the check that sees it, its status, what it names.


def nan_draw(run):
    run.mean[2, 17, 1, 0] = np.nan


def infinite_draw(run):
    run.covariance[0, 5, 0, 1, 1] = np.inf


def constant_parameter(run):
    run.mean[..., 1, 0] = 4.0


def frozen_chain(run):
    for array in (run.weight, run.mean, run.covariance, run.stats["loglik"]):
        array[3] = array[3, :1]


def drifting_chain(run):
    run.mean[1, :, 0, 1] += np.linspace(-1.0, 1.0, run.mean.shape[1])


def slightly_shifted_chain(run):
    run.mean[1, :, 0, 1] += 0.045


def chain_of_other_scale(run):
    run.mean[1, :, 0, 1] *= 4.0


def other_partition(run):
    """The labels agree by force, the log-likelihood does not."""
    run.stats["loglik"][2] -= 8.0


def sticky_draws(run):
    run.mean = np.repeat(run.mean[:, ::40], 40, axis=1)


def sticky_tail(run):
    """Large values come together, in one run of each chain; the others move freely."""
    rng = np.random.default_rng(3)
    for j, chain in enumerate(run.stats["loglik"]):
        chain[200 * j : 200 * j + 60] = -996.0 + 0.1 * rng.normal(size=60)


def some_divergences(run):
    run.stats["diverging"][0, [3, 700]] = True


def many_divergences(run):
    run.stats["diverging"][0, :40] = True


def slow_energy(run):
    rng = np.random.default_rng(2)
    run.stats["energy"][1] = rng.normal(size=1000).cumsum()


def constant_energy(run):
    run.stats["energy"][:] = 3.0


def some_ambiguous_labels(run):
    run.margin[:, :20] = 0.01


def many_ambiguous_labels(run):
    run.margin[:, :100] = 0.01


def deep_trees(run):
    run.stats["maxdepth_reached"][:, :100] = True


def nothing_recorded(run):
    for name in ("diverging", "energy", "depth", "maxdepth_reached"):
        del run.stats[name]


@pytest.mark.parametrize(
    ("spoil", "code", "status", "evidence"),
    [
        (nan_draw, "non-finite-draws", "fail", "mean[1, a] in chain 2, draw 17"),
        (nan_draw, "rhat", "fail", "cannot be computed"),
        (infinite_draw, "non-finite-draws", "fail", "covariance[0, b, b] in chain 0, draw 5"),
        (constant_parameter, "constant-parameter", "fail", "mean[1, a] never changes"),
        (constant_parameter, "rhat", "fail", "R-hat of mean[1, a] cannot be computed"),
        (frozen_chain, "constant-parameter", "fail", "chain 3"),
        (drifting_chain, "rhat", "fail", "mean[0, b]"),
        (slightly_shifted_chain, "rhat", "warn", "mean[0, b]"),
        (chain_of_other_scale, "rhat", "fail", "mean[0, b]"),
        (other_partition, "rhat", "fail", "loglik"),
        (sticky_draws, "ess-bulk", "fail", "mean["),
        (sticky_draws, "mcse", "fail", "sd is 0."),
        (sticky_tail, "ess-tail", "fail", "loglik"),
        (some_divergences, "divergences", "warn", "2 of 4000 draws (0.05%)"),
        (many_divergences, "divergences", "fail", "40 of 4000 draws"),
        (slow_energy, "bfmi", "fail", "chain 1"),
        (constant_energy, "bfmi", "fail", "nan"),
        (some_ambiguous_labels, "ambiguous-labels", "warn", "80 of 4000"),
        (many_ambiguous_labels, "ambiguous-labels", "fail", "400 of 4000"),
        (deep_trees, "treedepth", "warn", "400 of 4000 draws (10.00%)"),
        (nothing_recorded, "divergences", "warn", "recorded no"),
        (nothing_recorded, "bfmi", "warn", "recorded no"),
        (nothing_recorded, "treedepth", "warn", "recorded no"),
    ],
)
def test_each_kind_of_bad_run_is_called_bad(spoil, code, status, evidence):
    run = Run()
    spoil(run)
    verdict = run.verdict()
    found = check(verdict, code)
    assert found.status == status, str(verdict)
    assert evidence in found.evidence
    assert found.advice.endswith(".")
    assert verdict.status in ("fail", status)
    assert found in verdict.troubles
    assert f"{code}: {found.evidence}" in str(verdict)


@pytest.mark.parametrize(
    ("spoil", "clean"),
    [
        (some_divergences, CHECKS - {"divergences"}),
        (sticky_tail, {"divergences", "bfmi", "treedepth", "constant-parameter"}),
        (slow_energy, CHECKS - {"bfmi"}),
        (many_ambiguous_labels, CHECKS - {"ambiguous-labels"}),
        (deep_trees, CHECKS - {"treedepth"}),
        (other_partition, {"constant-parameter", "non-finite-draws", "divergences"}),
    ],
)
def test_a_failure_is_not_blamed_on_other_checks(spoil, clean):
    run = Run()
    spoil(run)
    found = statuses(run.verdict())
    assert {code for code in clean if found[code] != "ok"} == set()


@pytest.mark.parametrize(("chains", "status"), [(1, "warn"), (2, "warn"), (3, "warn"), (4, "ok")])
def test_fewer_than_four_chains_are_at_most_a_warning(chains, status):
    verdict = Run(chains=chains).verdict()
    assert verdict.status == status, str(verdict)
    assert check(verdict, "few-chains").status == status


@pytest.mark.parametrize(("draws", "status"), [(30, "fail"), (75, "warn"), (400, "ok")])
def test_too_few_draws(draws, status):
    found = check(Run(draws=draws, seed=4).verdict(), "ess-bulk")
    assert found.status == status, found.evidence


@pytest.mark.parametrize("draws", [0, 1, 2, 3])
def test_a_handful_of_draws_or_none_fails_without_an_exception(draws):
    assert Run(draws=draws).verdict().status == "fail"


def test_tree_depth_is_judged_by_depth_where_hits_are_not_recorded():
    run = Run()
    del run.stats["maxdepth_reached"]
    run.stats["depth"][:, :300] = 8
    assert check(run.verdict(max_treedepth=8), "treedepth").status == "warn"
    assert check(run.verdict(max_treedepth=9), "treedepth").status == "ok"
    assert "recorded no" in check(run.verdict(max_treedepth=None), "treedepth").evidence


@pytest.mark.parametrize("unit", [1e-150, 1e-20, 1e100])
def test_the_verdict_does_not_depend_on_the_data_s_unit(unit):
    good, bad = Run(), Run()
    sticky_draws(bad)
    for run, status in ((good, "ok"), (bad, "fail")):
        run.mean = run.mean * unit
        run.covariance = run.covariance * unit**2
        assert run.verdict().status == status


def test_labels_that_are_not_known_are_ambiguous():
    run = Run()
    run.margin[0, :] = np.nan
    assert check(run.verdict(), "ambiguous-labels").status == "fail"


def test_twenty_parameters_take_less_than_half_a_second():
    run = Run(k=4)
    run.verdict()
    best = min(timed(run.verdict) for _ in range(3))
    assert best < 0.5


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# Quantities without labels


def test_label_free_quantities_do_not_change_with_the_labels():
    run, rng = Run(k=3, draws=5), np.random.default_rng(0)
    order = rng.permuted(np.broadcast_to(np.arange(3), run.weight.shape), axis=-1)
    one = label_free(run.weight, run.mean, run.covariance)
    two = label_free(
        np.take_along_axis(run.weight, order, 2),
        np.take_along_axis(run.mean, order[..., None], 2),
        np.take_along_axis(run.covariance, order[..., None, None], 2),
    )
    assert list(one) == [
        "mixture_mean",
        "mixture_sd",
        "log_volume",
        "between",
        "weight_entropy",
        "weight_max",
    ]
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-12)


def test_label_free_quantities_are_those_of_the_mixture():
    rng = np.random.default_rng(3)
    weight, mean = np.array([0.25, 0.75]), np.array([[0.0, 10.0], [4.0, 10.0]])
    covariance = np.array([[[1.0, 0.3], [0.3, 2.0]], [[2.0, 0.0], [0.0, 0.5]]])
    found = label_free(*(a[None, None] for a in (weight, mean, covariance)))
    z = rng.choice(2, size=400_000, p=weight)
    x = mean[z] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(covariance)[z], rng.normal(size=(len(z), 2))
    )
    np.testing.assert_allclose(found["mixture_mean"][0, 0], x.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found["mixture_sd"][0, 0], x.std(axis=0), rtol=0.01)
    assert found["between"][0, 0, 0] == pytest.approx(3.0 / 4.75)
    assert found["between"][0, 0, 1] == pytest.approx(0.0)
    assert found["weight_max"][0, 0] == 0.75
    assert found["weight_entropy"][0, 0] == pytest.approx(
        -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    )
    assert found["log_volume"][0, 0] == pytest.approx(0.25 * np.log(1.91))


# EM

GOOD = {
    "reason": "converged",
    "n_iter": 37,
    "distance": 2e-5,
    "tol": 1e-4,
    "is_positive_definite": True,
    "counts": np.array([97.0, 175.0]),
    "reasons": ["converged"] * 10,
    "n_at_best": 9,
    "family": Covariance("VVV"),
    "d": 2,
    "tails": Tails(1.02, 0.06, 17, 1, 3.4, 4.6),
}
HEAVY = Tails(1.9, 0.06, 1, 0, 9.3, 4.6)
RIVAL = Rival(
    (3, 5), -130.25, 0.05, Parameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]), "component 0"
)


def test_a_good_fit_is_ok():
    verdict = em_verdict(**GOOD)
    assert verdict.status == "ok", str(verdict)
    assert len(verdict.checks) == 7
    assert not any(c.advice for c in verdict.checks)


@pytest.mark.parametrize(
    ("facts", "code", "status"),
    [
        ({"reason": "max_iter"}, "converged", "fail"),
        ({"reason": "interrupted"}, "converged", "fail"),
        ({"distance": 1e-2}, "converged", "warn"),
        ({"is_positive_definite": False, "distance": np.nan}, "hessian", "fail"),
        ({"counts": np.array([3.4, 300.0])}, "small-component", "warn"),
        (
            {"counts": np.array([5.9, 300.0]), "family": Covariance("VVI")},
            "small-component",
            "warn",
        ),
        ({"counts": np.array([1.4, 3.0]), "family": Covariance("EEE")}, "small-component", "warn"),
        ({"reasons": ["converged"] * 4 + ["singular"] * 5 + ["empty"]}, "starts", "warn"),
        ({"n_at_best": 1}, "best-found-once", "warn"),
        ({"rivals": (RIVAL,)}, "rival-modes", "warn"),
        ({"tails": HEAVY, "index": ["a", "b"]}, "heavy-tails", "warn"),
    ],
)
def test_each_kind_of_bad_fit_is_called_bad(facts, code, status):
    verdict = em_verdict(**GOOD | facts)
    assert statuses(verdict) == statuses(em_verdict(**GOOD)) | {code: status}
    assert verdict.status == status
    assert check(verdict, code).advice.endswith(".")


@pytest.mark.parametrize(
    "facts",
    [
        {"reason": "fixed point", "distance": np.nan},
        {"is_positive_definite": None, "distance": np.nan},
        {"counts": np.array([6.0, 300.0]), "family": Covariance("VVI")},
        {"counts": np.array([2.0, 300.0]), "family": Covariance("EEE")},
        {"reasons": ["converged"], "n_at_best": 1},
        {"reasons": ["converged"] * 5 + ["tiny"] * 5},
    ],
)
def test_what_is_no_trouble_is_not_called_trouble(facts):
    assert em_verdict(**GOOD | facts).status == "ok"


@pytest.mark.parametrize(
    "tails",
    [
        Tails(1.4, 0.01, 0, 0, 5.0, 4.6),  # many rows: certain, but small
        Tails(1.9, 0.3, 0, 0, 5.0, 4.6),  # few rows: large, but chance
        Tails(1.9, 0.06, 0, 0, 3.0, 4.6),  # no row is far out: the family does not fit
        None,
    ],
)
def test_small_or_uncertain_excess_is_no_heavy_tail(tails):
    assert em_verdict(**GOOD | {"tails": tails}).status == "ok"


def test_the_furthest_row_and_both_optima_are_named():
    verdict = em_verdict(**GOOD | {"tails": HEAVY, "index": ["a", "b"], "rivals": (RIVAL,)})
    assert (
        "row 'b', 9.3 standard deviations from component 0"
        in check(verdict, "heavy-tails").evidence
    )
    rivals = check(verdict, "rival-modes")
    assert "-130.200 here; start 3 led to -130.250" in rivals.evidence
    assert "start=fit['rivals'].sel(start=3)" in rivals.advice


def test_the_kinds_of_unusable_starts_are_counted():
    verdict = em_verdict(**GOOD | {"reasons": ["singular", "tiny", "singular", "converged"]})
    assert "3 of 4 starts were unusable (2 singular, 1 tiny)" in check(verdict, "starts").evidence


# The value


def test_json_gives_the_verdict_back():
    for verdict in (Run().verdict(), em_verdict(**GOOD | {"rivals": (RIVAL,)}), Verdict(())):
        assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"checks": [{"code": "x"}]}',
        '{"checks": [{"code": "x", "status": "good", "evidence": ""}]}',
    ],
)
def test_text_that_is_no_verdict_is_refused(text):
    with pytest.raises(ArgumentError, match="text: "):
        Verdict.from_json(text)


def test_the_worst_check_is_the_verdict_and_comes_first():
    verdict = Verdict(
        (
            Check("a", "ok", "fine"),
            Check("b", "warn", "so so", "Do b."),
            Check("c", "fail", "no", "Do c."),
        )
    )
    assert verdict.status == "fail"
    assert [c.code for c in verdict.troubles] == ["c", "b"]
    assert str(verdict) == (
        "fail: 2 of 3 checks not passed\n  fail  c: no. Do c.\n  warn  b: so so. Do b."
    )


@pytest.mark.parametrize(
    ("category", "code"), [(FitWarning, "fit-not-good"), (PosteriorWarning, "posterior-not-good")]
)
def test_one_warning_lists_what_is_not_good(category, code):
    verdict = em_verdict(**GOOD | {"rivals": (RIVAL,), "n_at_best": 1})
    with pytest.warns(category, match="rival-modes") as caught:
        warn(verdict, category)
    assert [w.message.code for w in caught] == [code]
    assert "best-found-once" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_no_warning_where_all_is_good():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(em_verdict(**GOOD), FitWarning)
