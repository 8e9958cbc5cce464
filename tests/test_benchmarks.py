"""The benchmarks compare what is equal, and say what they measured. Nothing here is timed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesgmm.numeric import simd
from benchmarks import __main__ as command
from benchmarks import (
    gradient,
    growth,
    iteration,
    machine,
    report,
    roofline,
    samplers,
    sampling,
    sampling_grid,
)
from benchmarks.child import environment
from benchmarks.optimum import GAP, ours
from benchmarks.peers import Mclust, Sklearn
from benchmarks.problems import REGIMES, STRUCTURES, Problem, problem
from benchmarks.timing import NULL, DisagreementError, agree, compared, race

needs_mclust = pytest.mark.skipif(not Mclust.is_installed(), reason="R and mclust: pip has neither")
SIZES = [(60, 1, 3), (90, 2, 3), (120, 3, 2)]


def by_scipy(case: Problem) -> float:
    """The definition, by SciPy's densities."""
    p = case.parameters
    joint = [
        math.log(w) + multivariate_normal(m, c).logpdf(case.x)
        for w, m, c in zip(p.weight, p.mean, p.covariance, strict=True)
    ]
    return float(logsumexp(joint, axis=0).sum())


class TestTiming:
    def test_a_ratio_is_the_median_of_ratios_within_rounds(self):
        # The machine is twice as slow in the last two rounds: ratios do not see it, medians would.
        times = {"ours": [1.0, 1.0, 1.0, 2.0, 2.0], "peer": [3.0, 3.0, 3.0, 6.0, 6.0]}
        peer = compared(times, "ours")["peer"]
        assert (peer["ratio"], peer["low"], peer["high"], peer["rounds"]) == (3.0, 3.0, 3.0, 5)
        assert compared(times, "ours")["ours"]["ratio"] == 1.0

    def test_the_spread_is_the_quartiles(self):
        times = {"ours": [1.0] * 5, "peer": [1.0, 2.0, 3.0, 4.0, 50.0]}
        peer = compared(times, "ours")["peer"]
        assert (peer["low"], peer["ratio"], peer["high"]) == (2.0, 3.0, 4.0)

    def test_contestants_take_turns_there_and_back(self):
        called: list[str] = []

        def contestant(name):
            def seconds(calls: int) -> float:
                called.append(name)
                return 1.0 * calls

            return seconds

        times = race({n: contestant(n) for n in "abc"}, budget=12.0, least=0.5)
        assert "".join(called)[-12:] == "abccbaabccba"
        assert times == {n: [1.0] * 4 for n in "abc"}

    @pytest.mark.parametrize(("budget", "rounds"), [(0.0, 3), (1e9, 15)])
    def test_rounds_stay_within_their_limits(self, budget, rounds):
        assert len(race({"a": lambda calls: 1.0 * calls}, budget=budget)["a"]) == rounds

    def test_a_short_call_is_repeated_until_it_can_be_timed(self):
        asked: list[int] = []

        def seconds(calls: int) -> float:
            asked.append(calls)
            return 1e-6 * calls

        times = race({"a": seconds}, budget=0.0, least=0.02)
        assert max(asked) >= 20_000
        assert times["a"] == pytest.approx([1e-6] * 3)

    @pytest.mark.parametrize("other", [1.0 + 1e-9, float("nan"), float("inf"), -1.0])
    def test_what_differs_is_not_raced(self, other):
        with pytest.raises(DisagreementError, match="peer gives"):
            agree({"ours": 1.0, "peer": other})

    def test_what_agrees_says_how_well(self):
        assert agree({"ours": -2.0, "peer": -2.0 * (1 + 1e-12)}) == pytest.approx(1e-12, rel=1e-3)


class TestPeers:
    @pytest.mark.parametrize("regime", REGIMES)
    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("size", SIZES)
    def test_all_have_one_log_likelihood_here_and_after_a_step(self, size, structure, regime):
        case = problem(size, structure, regime)
        sklearn = Sklearn(case)
        mine = iteration.sums(case, case.parameters, 1).loglik
        after = iteration.sums(case, iteration.step(case, 1), 1).loglik
        agree({"SciPy": by_scipy(case), "ours": mine, "scikit-learn": sklearn.loglik()})
        agree({"ours": after, "scikit-learn": sklearn.next_loglik()})
        sklearn.iteration()  # goes back to where it was
        agree({"ours": mine, "scikit-learn": sklearn.loglik()})

    @needs_mclust
    def test_mclust_has_the_same(self):
        with Mclust() as mclust:
            for size in SIZES:
                for structure in STRUCTURES:
                    if size[1] == 1 and structure not in ("full", "tied"):
                        continue
                    case = problem(size, structure, "overlapping")
                    agree({"SciPy": by_scipy(case), "mclust": mclust.load(case)})
                    after = iteration.sums(case, iteration.step(case, 1), 1).loglik
                    agree({"ours": after, "mclust": mclust.next_loglik()})
                    assert mclust.seconds(2) > 0

    @needs_mclust
    def test_an_error_in_r_is_told(self):
        with Mclust() as mclust, pytest.raises(RuntimeError, match=r"(?s)R ended: .*nowhere"):
            mclust._answer("load nowhere 1 1 1 V")

    def test_a_peer_that_computes_something_else_is_refused(self, monkeypatch):
        case = problem((60, 2, 2), "full", "separated")
        right = Sklearn.loglik
        monkeypatch.setattr(Sklearn, "loglik", lambda self: right(self) * (1 + 1e-8))
        with pytest.raises(DisagreementError, match="scikit-learn"):
            iteration.measure(case, 1, budget=0.0)

    def test_whole_fits_end_at_one_optimum(self):
        case = problem((200, 2, 2), "full", "touching")
        mine = ours(case, case.parameters, 1, {})(1e-4)
        theirs = Sklearn(case).fit(1e-12)
        assert abs(mine.loglik - theirs.loglik) < GAP
        assert min(mine.passes, theirs.passes) > 2

    def test_gradients_of_pymc_are_ours(self):
        for d in (1, 2):
            case = problem((40, d, 3), "diag" if d == 1 else "full", "overlapping")
            p = case.parameters
            inputs, written = gradient.graphs(d, 3)
            results = {"ours": gradient.ours(case)(), "threads": gradient.ours_threaded(case, 2)()}
            for name, value in written.items():
                function = gradient.compiled(inputs, value, mode="FAST_COMPILE")
                results[name] = function(case.x, p.log_weight, p.mean, p.covariance)
            assert len(results) >= 4
            agree({name: float(result[0]) for name, result in results.items()})
            assert gradient.gradients_agree(results, p.weight) < 1e-8

    def test_gradients_of_jax_are_ours(self):
        pytest.importorskip("jax")
        pytest.importorskip("numpyro")
        case = problem((40, 2, 3), "full", "overlapping")
        functions = {"ours": gradient.ours(case)} | gradient.jax_functions(case)
        results = {name: function() for name, function in functions.items()}
        agree({name: float(result[0]) for name, result in results.items()})
        assert gradient.gradients_agree(results, case.parameters.weight) < 1e-8

    def test_another_gradient_is_refused(self):
        case = problem((40, 2, 3), "full", "overlapping")
        value, by_weight, by_mean, by_covariance = gradient.ours(case)()
        wrong = (value, by_weight, by_mean + 1e-3, by_covariance)
        with pytest.raises(AssertionError, match="peer: the gradient differs"):
            gradient.gradients_agree(
                {"ours": gradient.ours(case)(), "peer": wrong}, case.parameters.weight
            )


class TestProblems:
    @pytest.mark.parametrize("size", SIZES)
    def test_regimes_are_what_the_page_says(self, size):
        for regime, limit, worst in (("separated", 10.0, min), ("overlapping", 1.0, max)):
            mean = problem(size, "full", regime).parameters.mean
            gaps = [np.linalg.norm(a - b) for i, a in enumerate(mean) for b in mean[:i]]
            assert worst(gaps) == pytest.approx(limit)

    def test_structures_are_what_they_are_called(self):
        covariance = {
            s: problem((50, 3, 4), s, "separated").parameters.covariance for s in STRUCTURES
        }
        off = ~np.eye(3, dtype=bool)
        assert (covariance["diag"][:, off] == 0).all()
        assert (covariance["tied"] == covariance["tied"][0]).all()
        assert (covariance["spherical"] == covariance["spherical"][:, :1, :1] * np.eye(3)).all()
        assert (covariance["full"][:, off] != 0).all()


class TestRoofline:
    def test_in_one_dimension_triangular_is_diagonal(self):
        assert roofline.counted(1, 3, True) == roofline.counted(1, 3, False)

    def test_triangular_work_grows_with_the_square_of_d(self):
        # The triangle below the diagonal, once to whiten and once to sum.
        for d in (2, 8, 32):
            more = roofline.counted(d, 3, False).fused - roofline.counted(d, 3, True).fused
            assert more == d * (d - 1)

    def test_the_exponential_is_counted_as_it_is_written(self):
        # Shift, two parts of the reduction, and the polynomial with its two last terms of 1.
        assert 3 + len(simd._EXP) - 1 + 2 == roofline.EXP_FUSED

    def test_the_lower_roof_bounds(self):
        count = roofline.Count(fused=40.0, other=20.0, logic=7.0)
        assert roofline.roof(count, 1.0, 50.0, 10.0) == (50.0, "arithmetic")
        assert roofline.roof(count, 100.0, 50.0, 10.0) == (10.0, "memory")

    def test_a_pass_at_the_peak_is_at_the_peak(self):
        count = roofline.counted(2, 3, False)
        record = {"n": 1e6, "d": 2, "k": 3, "diagonal": False}
        record["seconds"] = 3e6 * count.operations / 50e9
        place = roofline.placed(record, 50.0, 1e9)
        assert place["of_peak"] == pytest.approx(1.0)
        assert place["of_roof"] == pytest.approx(1.0)
        assert place["of_slots"] == pytest.approx(2 * count.slots / count.operations)


class TestSampling:
    def test_labels_change_nothing(self):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(2, 50, 2, 2, 2))
        draws = (rng.dirichlet([1, 1], size=(2, 50)), rng.normal(size=(2, 50, 2, 2)), root @ root)
        flipped = tuple(v[:, :, ::-1] for v in draws)
        assert np.array_equal(samplers.by_first_mean(draws), samplers.by_first_mean(flipped))

    def test_independent_draws_are_worth_what_they_are(self):
        rng = np.random.default_rng(1)
        weight = rng.dirichlet([5, 5], size=(4, 500))
        mean = rng.normal(size=(4, 500, 2, 2)) + 20.0 * np.arange(2)[:, None]
        covariance = rng.uniform(1, 2, size=(4, 500, 2, 2, 2))
        judged = samplers.judged((weight, mean, covariance))
        assert 1000 < judged["ess"] < 3500
        assert judged["rhat"] < 1.02
        assert samplers.largest_z(judged, judged) == 0.0
        moved = judged | {
            "mean": [v + 10 * e for v, e in zip(judged["mean"], judged["mcse"], strict=True)]
        }
        assert samplers.largest_z(judged, moved) == pytest.approx(10 / math.sqrt(2))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset a peak"
)
def test_memory_of_a_pass_does_not_grow_with_n():
    few, many = (growth._memory_in_process("ours", n, 1) for n in (50_000, 400_000))
    assert max(few, many) < 2**20  # the data of the larger are 12 MiB
    assert growth._memory_in_process("scikit-learn", 400_000, 1) > 2**24


class TestPage:
    def results(self, *stages):
        facts = machine.describe()
        return {
            "command": "make bench",
            "date": "2000-01-01",
            "seconds": 1.0,
            "load": None,
            "machine": facts,
            "quick": True,
            "stages": list(stages),
        }

    def test_what_was_measured_is_on_the_page(self):
        case = problem((60, 2, 2), "full", "separated")
        record = iteration.measure(case, 1, budget=0.0)
        record["times"]["scikit-learn"] |= {"ratio": 12.34, "low": 12.0, "high": 15.0}
        result = {"records": [record], "mclust": None}
        stage = {"stage": "iteration", "threads": 1, "seconds": 2.0, "result": result}
        page = report.page(json.loads(json.dumps(self.results(stage))))
        assert "12.3 (12.0–15.0)" in page
        assert "mclust: not installed" in page
        assert f"| {NULL} |" in page

    def test_a_stage_that_failed_is_on_the_page(self):
        stage = {"stage": "growth", "threads": 1, "seconds": 2.0, "error": "ValueError: no luck"}
        page = report.page(self.results(stage))
        assert "## Growth, and memory" in page
        assert "**Failed.**" in page
        assert "ValueError: no luck" in page

    def test_a_missing_peer_is_named(self):
        records = [{"engine": "NumPyro", "missing": "not installed"}]
        result = {"records": records, "threads": 2, "settings": sampling.SETTINGS}
        stage = {"stage": "sampling", "threads": 2, "seconds": 2.0, "result": result}
        assert "| NumPyro | not installed |" in report.page(self.results(stage))

    def test_a_child_that_fails_says_why(self, tmp_path):
        record = command.stage("no_such_stage", 1, True, str(tmp_path))
        assert "No module named 'benchmarks.no_such_stage'" in record["error"]
        assert "exit status 1" in record["error"]

    def test_every_table_is_rectangular(self):
        case = problem((60, 2, 2), "full", "separated")
        record = iteration.measure(case, 1, budget=0.0)
        peak = {"gflops": 50.0, "triad_gb": 10.0}
        place = case.row | {"diagonal": False, "seconds": 1e-6}
        stages = [
            ("iteration", {"records": [record], "mclust": None}),
            ("machine", peak),
            ("roofline", {"records": [place], "threads": 1}),
        ]
        page = report.page(
            self.results(
                *({"stage": s, "threads": 1, "seconds": 1.0, "result": r} for s, r in stages)
            )
        )
        widths = [0]
        for line in page.splitlines():
            widths.append(line.count("|") if line.startswith("|") else 0)
            assert widths[-1] == 0 or widths[-2] in (0, widths[-1]), line

    def test_threads_are_limited_before_anything_is_imported(self, tmp_path):
        limits = environment(3, str(tmp_path))
        assert {limits[f"{n}_NUM_THREADS"] for n in ("OMP", "OPENBLAS", "MKL", "NUMBA")} == {"3"}


class TestSamplingGrid:
    def test_everyone_samples_the_same_posterior(self):
        for n, d in ((272, 1), (272, 2), (272, 5), (1000, 2)):
            mine, theirs = (sampling_grid.case(n, d, e) for e in ("ours", "NumPyro"))
            assert mine.x.shape == (n, d)
            assert mine.k == theirs.k == (3 if n != 272 or d == 5 else 2)
            for name in ("x", "mean", "mean_sd", "log_sd"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert sampling_grid.case(100_000, 5, "NumPyro").draws == 50
        assert sampling_grid.case(100_000, 5, "ours").draws == 1000

    def test_the_page_says_what_was_measured_and_what_is_missing(self):
        def record(engine, **changes):
            found = {"engine": engine, "n": 272, "d": 2, "caches": "warm", "draws": 1000}
            found |= {"tune": 500, "total": 4.0, "ess": 4000.0, "rhat": 1.001, "gradients": 28_000}
            return found | {"mean": [1.0], "mcse": [0.01]} | changes

        records = [
            record("ours"),
            record("pm.Mixture, nutpie", total=40.0, ess=2000.0, mean=[1.05]),
            record("NumPyro", rhat=1.3),
            {"engine": "NumPyro", "n": 1000, "d": 2, "caches": "cold", "missing": "not installed"},
        ]
        results = {"records": records, "machine": {"processor": "P", "cores": 2}, "seconds": 60.0}
        results |= {"command": "c", "load": [0.1]}
        page = sampling_grid.page(results)
        lines = {line.split(" | ")[2]: line for line in page.splitlines() if "| 272 |" in line}
        assert "| 1 000 | 7.00 | 1.00 |" in lines["ours"]
        assert "| 3.5 | 50.0 | 14.0 | 20.0 |" in lines["pm.Mixture, nutpie"]
        assert "not mixed" in lines["NumPyro"]
        assert "| NumPyro | cold | not installed |" in page
        assert "| 272 | 2 | ESS per second | ≥ 10.0 | – | 20.0 |" in page
        later = results | {
            "records": [{**r, "caches": "cold"} for r in records],
            "command": "later",
        }
        both = sampling_grid.page(results | {"again": later})
        assert both.startswith(page)
        assert "by `later` on P" in both.removeprefix(page)
        assert "| 272 | 2 | ESS per second | ≥ 10.0 | 20.0 | – |" in both.removeprefix(page)
