"""Noise: a uniform component beside the normal ones.

Oracles: SciPy's densities, mclust 6.0.0 (tests/golden/noise.json), differences of the
log-likelihood, and a mixture in which the noise is written as a wide normal distribution.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

import bayesgmm as bg
from bayesgmm import groups, moments, noise, tree
from bayesgmm.cli import app
from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.data.observations import read
from bayesgmm.errors import ArgumentError, FitWarning, NotYetSupportedError
from bayesgmm.inference.estimate import estimate_of
from bayesgmm.inference.replicates import simulated
from bayesgmm.information.coordinates import chart_about
from bayesgmm.information.observed import outer_products
from bayesgmm.sklearn import GaussianMixture
from bayesgmm.streams import Rows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noise.json").read_text())


def noisy(n: int = 300, share: float = 0.15, seed: int = 0) -> pd.DataFrame:
    """Two components, and rows that are uniform around them."""
    rng = np.random.default_rng(seed)
    z = rng.choice(3, size=n, p=[0.5 * (1 - share), 0.5 * (1 - share), share])
    x = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.3], [0.0, 0.8]])
    x[z == 1] += [6.0, 2.0]
    x[z == 2] = rng.uniform([-8.0, -8.0], [14.0, 10.0], size=(int((z == 2).sum()), 2))
    return pd.DataFrame(x, columns=["a", "b"])


def dense(x: np.ndarray, p: bg.Parameters) -> tuple[float, np.ndarray]:
    """Log-likelihood and responsibilities by SciPy, those of the noise last."""
    assert p.noise is not None
    parts = [
        np.log(w) + multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(p.weight, p.mean, p.covariance, strict=True)
    ]
    parts.append(np.full(len(x), np.log(p.noise.weight) + p.noise.log_density))
    joint = np.stack(parts, axis=1)
    row = logsumexp(joint, axis=1)
    return float(row.sum()), np.exp(joint - row[:, None])


@pytest.fixture(scope="module")
def fit():
    return bg.fit_em(bg.GaussianMixture(2, "VVV", noise=True), noisy(), random_seed=1)


class TestSpecification:
    def test_survives_json(self) -> None:
        for value in (True, False, "columns", 12.5):
            spec = bg.GaussianMixture(2, "EEE", noise=value)
            assert bg.GaussianMixture.from_json(spec.to_json()) == spec

    def test_a_volume_of_one_is_not_true(self) -> None:
        assert bg.GaussianMixture(2, noise=1.0) != bg.GaussianMixture(2, noise=True)

    @pytest.mark.parametrize("value", [0, -1.0, np.inf, np.nan, "yes", [1.0]])
    def test_nonsense_is_refused_by_name(self, value: object) -> None:
        with pytest.raises(ArgumentError, match="noise"):
            bg.GaussianMixture(2, noise=value)

    def test_counts_parameters_as_mclust(self) -> None:
        for case in GOLDEN["fits"]:
            spec = bg.GaussianMixture(case["K"], case["model"], noise=True)
            assert spec.n_parameters(len(case["mean"])) == case["df"]


class TestDensity:
    def test_log_likelihood_and_responsibilities_are_scipys(self, fit) -> None:
        x = noisy()
        loglik, r = dense(x.to_numpy(), tree.point(fit))
        assert float(fit["criteria"]["loglik"]) == pytest.approx(loglik, rel=1e-12)
        assert bg.score(fit, x).sum() == pytest.approx(loglik, rel=1e-12)
        found = bg.predict_proba(fit, x)
        assert list(found.columns) == [0, 1, "noise"]
        np.testing.assert_allclose(found.to_numpy(), r, atol=1e-11)

    def test_rows_of_noise_are_labelled_minus_one(self, fit) -> None:
        far = pd.DataFrame({"a": [-7.0, 0.0, 1e200], "b": [9.0, 0.0, -1e200]})
        found = bg.predict(fit, far)
        assert found.tolist()[0] == -1
        assert found.tolist()[1] in (0, 1)
        assert found.tolist()[2] == -1

    def test_the_sums_are_those_of_the_other_rows(self, fit) -> None:
        # T is that of the components alone, weighted by the probability of being no noise.
        data = read(noisy(), family=Covariance("VVV"))
        p = data.to_anchored(tree.point(fit))
        found = groups.table(data.groups, p, moments.accumulate)
        _, r = dense(data.x, p)
        alone = moments.from_responsibilities(data.x, r[:, :2], p)
        np.testing.assert_allclose(found.weight_count, r.sum(axis=0), rtol=1e-11)
        np.testing.assert_allclose(found.mean_count, alone.mean_count, rtol=1e-11)
        np.testing.assert_allclose(found.second, alone.second, rtol=1e-10, atol=1e-9)

    def test_a_wide_normal_distribution_is_noise(self) -> None:
        # With its level at the origin, where all rows are.
        p = bg.Parameters(np.array([0.9]), np.zeros((1, 2)), np.eye(2)[None])
        wide = 1e8
        level = -np.log(2 * np.pi * wide**2)
        flat = bg.Parameters(p.weight, p.mean, p.covariance, moments.Noise(0.1, level))
        normal = bg.Parameters(
            np.array([0.9, 0.1]), np.zeros((2, 2)), np.stack([np.eye(2), wide**2 * np.eye(2)])
        )
        x = np.random.default_rng(0).normal(size=(50, 2))
        np.testing.assert_allclose(
            bg.score(flat, x).to_numpy(), bg.score(normal, x).to_numpy(), rtol=1e-12
        )


class TestRegion:
    def test_is_the_smaller_box(self) -> None:
        for case in GOLDEN["volumes"]:
            x = np.array(case["x"])
            one = noise.region_around(Rows(x, np.empty(0)), np.zeros(x.shape[1]))
            assert np.exp(one.log_volume) == pytest.approx(case["volume"], rel=1e-9)

    def test_holds_all_rows(self) -> None:
        x = noisy().to_numpy() @ np.array([[1.0, 0.9], [-0.9, 1.0]])
        one = noise.region_around(Rows(x, np.empty(0)), np.full(2, 3.0))
        assert one.corner is not None
        assert one.edges is not None
        inside = np.linalg.solve(one.edges.T, (x - one.corner).T)
        assert inside.min() > -1e-9
        assert inside.max() < 1 + 1e-9
        assert np.log(abs(np.linalg.det(one.edges))) == pytest.approx(one.log_volume)

    def test_rows_drawn_are_uniform_over_it(self) -> None:
        one = noise.Region(np.log(8.0), np.array([1.0, -1.0]), np.array([[2.0, 0.0], [1.0, 4.0]]))
        drawn = one.draw(20_000, np.random.default_rng(0))
        inside = np.linalg.solve(one.edges.T, (drawn - one.corner).T)
        np.testing.assert_allclose(inside.mean(axis=1), 0.5, atol=0.01)
        np.testing.assert_allclose(inside.var(axis=1), 1 / 12, atol=0.003)
        assert abs(np.corrcoef(inside)[0, 1]) < 0.03


class TestFit:
    @pytest.mark.parametrize(
        "case", GOLDEN["fits"], ids=lambda c: f"{c['data']}-{c['model']}-{c['K']}"
    )
    def test_is_at_least_as_high_as_mclust(self, case) -> None:
        x = np.array(GOLDEN["data"][case["data"]])
        spec = bg.GaussianMixture(case["K"], case["model"], noise=True)
        found = bg.fit_em(spec, x, random_seed=1)
        loglik = float(found["criteria"]["loglik"])
        assert loglik >= case["loglik"] - 1e-6 * abs(case["loglik"])
        if loglik < case["loglik"] + 1e-3:  # the same optimum: mclust's tolerance is 1e-5
            weight = float(found["posterior"]["noise_weight"].item())
            assert weight == pytest.approx(case["noise_weight"], abs=1e-3)

    def test_gradient_vanishes(self, fit) -> None:
        one = estimate_of(fit)
        information = one.information(one.parameters, one.sums(one.parameters))
        assert information.distance < 1e-4

    @pytest.mark.parametrize("family", ["EII", "VVI", "EEE", "VEE", "EVE", "VEV", "VVV"])
    def test_log_likelihood_never_falls(self, family: str) -> None:
        found = bg.fit_em(
            bg.GaussianMixture(2, family, noise=True), noisy(), random_seed=1, n_starts=3
        )
        trace = found["starts"]["trace"].to_numpy()
        step = np.diff(trace, axis=1)
        assert (step[np.isfinite(step)] > -1e-9).all()

    def test_noise_makes_outliers_harmless(self) -> None:
        clean = noisy(share=0.0)
        dirty = pd.concat(
            [clean, pd.DataFrame({"a": [60.0, -50.0, 3.0], "b": [-40.0, 70.0, 90.0]})]
        )
        truth = bg.fit_em(bg.GaussianMixture(2), clean, random_seed=1)
        robust = bg.fit_em(bg.GaussianMixture(2, noise=True), dirty, random_seed=1)
        gap = robust["posterior"]["mean"].to_numpy() - truth["posterior"]["mean"].to_numpy()
        assert np.abs(gap).max() < 0.05
        assert bg.predict(robust, dirty).tolist()[-3:] == [-1, -1, -1]

    def test_without_noise_in_the_data_its_weight_is_near_zero(self) -> None:
        x = noisy(share=0.0)
        found = bg.fit_em(bg.GaussianMixture(2, noise=True), x, random_seed=1)
        plain = bg.fit_em(bg.GaussianMixture(2), x, random_seed=1)
        assert float(found["posterior"]["noise_weight"].item()) < 0.02
        assert float(found["criteria"]["loglik"]) >= float(plain["criteria"]["loglik"]) - 1e-6

    def test_a_given_volume_is_taken(self) -> None:
        found = bg.fit_em(bg.GaussianMixture(2, noise=1000.0), noisy(), random_seed=1)
        p = tree.point(found)
        assert p.noise is not None
        assert p.noise.log_density == pytest.approx(-np.log(1000.0))
        assert float(found["criteria"]["loglik"]) == pytest.approx(dense(noisy(), p)[0], rel=1e-12)

    def test_units_and_offsets_change_nothing(self, fit) -> None:
        # One unit for all columns: principal axes depend on the ratio of units.
        moved = noisy() * 1e3 + [1e6, -5.0]
        found = bg.fit_em(bg.GaussianMixture(2, "VVV", noise=True), moved, random_seed=1)
        a, b = fit["posterior"]["noise_weight"].item(), found["posterior"]["noise_weight"].item()
        assert b == pytest.approx(a, rel=1e-8)
        shift = 2 * len(moved) * np.log(1e3)
        loglik = float(found["criteria"]["loglik"]) + shift
        assert loglik == pytest.approx(float(fit["criteria"]["loglik"]), rel=1e-10)

    def test_weights_are_rows(self) -> None:
        x = noisy(150)
        count = np.random.default_rng(3).integers(0, 3, size=len(x))
        spec = bg.GaussianMixture(2, noise=True)
        start = tree.point(bg.fit_em(spec, x, random_seed=1))
        a = bg.fit_em(spec, x, sample_weight=count, start=start)
        b = bg.fit_em(spec, x.loc[np.repeat(x.index, count)], start=start)
        for name in ("weight", "mean", "covariance", "noise_weight"):
            for group in ("posterior", "standard_error"):
                np.testing.assert_allclose(a[group][name], b[group][name], rtol=1e-7, atol=1e-9)

    def test_labels_of_a_start_may_be_noise(self) -> None:
        x = noisy()
        start = np.where(x["a"] > 3, 1, 0)
        start[np.abs(x["b"]) > 5] = -1
        found = bg.fit_em(bg.GaussianMixture(2, noise=True), x, start=start)
        assert found.attrs["stop_reason"] == "converged"
        with pytest.raises(ArgumentError, match="labels must be 0 to 1"):
            bg.fit_em(bg.GaussianMixture(2), x, start=start)

    def test_map_is_a_mode(self) -> None:
        found = bg.fit_em(
            bg.GaussianMixture(2, "VVV", bg.ConjugatePrior(weight_concentration=3.0), noise=True),
            noisy(),
            estimate="map",
            random_seed=1,
        )
        assert float(found["sample_stats"]["distance"].item()) < 1e-4

    @pytest.mark.parametrize("assignment", ["hard", "stochastic"])
    def test_other_assignments(self, assignment: str) -> None:
        spec = bg.GaussianMixture(2, "EEE", noise=True)
        found = bg.fit_em(spec, noisy(), assignment=assignment, random_seed=1, n_starts=3)
        assert 0.05 < float(found["posterior"]["noise_weight"].item()) < 0.3

    def test_what_is_not_there_is_refused_by_name(self) -> None:
        spec, x = bg.GaussianMixture(2, noise=True), noisy()
        volume = bg.GaussianMixture(2, noise=1000.0)
        with pytest.raises(ArgumentError, match=r"noise.* of a given volume.*noise='columns'"):
            bg.fit_em(volume, x.mask(x > 9), missing="marginalise")
        with pytest.raises(NotYetSupportedError, match=r"^noise: .*fix those of all"):
            bg.fit_em(spec, x, fixed={"weight": [0.5, np.nan]})


def assert_information_is_the_second_derivative(found: xr.DataTree) -> int:
    one = estimate_of(found)
    p = one.parameters
    information = one.information(p, one.sums(p))
    chart = chart_about(p, one.family)
    size = chart.size

    def value(step: np.ndarray) -> float:
        return one.sums(chart.at(step)).loglik

    h = 1e-3
    hessian = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            a, b = h * np.eye(size)[i], h * np.eye(size)[j]
            corners = value(a + b) - value(a - b) - value(b - a) + value(-a - b)
            hessian[i, j] = corners / (4 * h * h)
    scale = np.sqrt(np.outer(np.diagonal(information.matrix), np.diagonal(information.matrix)))
    np.testing.assert_allclose(-hessian / scale, information.matrix / scale, atol=2e-4)
    return size


def in_part(n: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    """The same rows with holes in a sixth of the cells, and labels of a fifth of them."""
    x, rng = noisy(n), np.random.default_rng(5)
    holes = rng.random(x.shape) < 1 / 6
    holes[holes.all(axis=1)] = False
    label = np.where(x["a"] > 3, 1, 0)
    is_near = np.hypot(x["a"] - 6.0 * label, x["b"] - 2.0 * label) < 2.0
    label[(rng.random(n) > 0.2) | ~is_near] = -1
    return x.mask(holes), label


@pytest.fixture(scope="module")
def partial_fit():
    x, label = in_part()
    spec = bg.GaussianMixture(2, "VVV", noise=True)
    return bg.fit_em(spec, x, missing="marginalise", labels=label, random_seed=1, n_starts=4)


class TestRowsKnownInPart:
    """Noise is uniform in what is observed, and nothing of which the component is known."""

    def test_the_likelihood_is_scipys(self, partial_fit) -> None:
        x, label = in_part()
        p, region = tree.point(partial_fit), tree.region_of(partial_fit)
        assert p.noise is not None
        assert region is not None
        low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
        np.testing.assert_allclose(region.log_edges, np.log(high - low), rtol=1e-12)
        wanted = np.empty(len(x))
        for i, (row, known) in enumerate(zip(x.to_numpy(), label, strict=True)):
            o = ~np.isnan(row)
            joint = np.log(p.weight) + [
                multivariate_normal(m[o], c[np.ix_(o, o)]).logpdf(row[o])
                for m, c in zip(p.mean, p.covariance, strict=True)
            ]
            joint = np.append(joint, np.log(p.noise.weight) - np.log(high - low)[o].sum())
            wanted[i] = logsumexp(joint) if known < 0 else joint[known]
        found = partial_fit["log_likelihood"]["x"].to_numpy().ravel()
        np.testing.assert_allclose(found, wanted, rtol=1e-11)
        score = bg.score(partial_fit, x, missing="marginalise").to_numpy()
        np.testing.assert_allclose(score[label < 0], wanted[label < 0], rtol=1e-11)

    def test_it_is_a_maximum_and_its_information_the_second_derivative(self, partial_fit) -> None:
        assert float(partial_fit["sample_stats"]["distance"].item()) < 1e-4
        assert 0.05 < float(partial_fit["posterior"]["noise_weight"].item()) < 0.3
        assert_information_is_the_second_derivative(partial_fit)

    def test_scores_add_up_to_the_gradient(self, partial_fit) -> None:
        one = estimate_of(partial_fit)
        p = one.parameters
        away = p.moved(np.array([0.3, 0.5, 0.2]), p.mean + 0.1, p.covariance)
        a = one.information(away, one.sums(away)).gradient
        b = outer_products(one.data.groups, away, one.family).gradient
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8)

    def test_rows_with_a_label_are_no_noise(self, partial_fit) -> None:
        label = in_part()[1]
        one = estimate_of(partial_fit)
        r = groups.rows(one.data.groups, one.parameters, one.data.n)[1]
        np.testing.assert_array_equal(r[label >= 0], np.eye(3)[label[label >= 0]])
        new = simulated(
            one.data, np.random.default_rng(1), one.parameters, tree.region_of(partial_fit)
        )
        np.testing.assert_array_equal(np.isnan(new.x), np.isnan(one.data.x))
        away = (new.x[label >= 0] - one.parameters.mean[label[label >= 0]]) * one.data.scale
        assert np.nanmax(np.abs(away)) < 6.0
        with pytest.warns(FitWarning, match="enough-replicates"):
            boot = bg.bootstrap(partial_fit, kind="parametric", draws=3, random_seed=1)
        assert boot["posterior"].sizes["draw"] == 3

    def test_probabilities_by_row_are_the_same_as_labels(self, partial_fit) -> None:
        """Too many kinds for groups of their own: rows are taken one by one."""
        x, label = in_part(250)
        known = np.where(label[:, None] < 0, 0.5, np.eye(2)[label])
        data = read(x, n_components=2, missing="marginalise", labels=known)
        p = data.to_anchored(tree.point(partial_fit))
        few = groups.split(data.x, data.weight, data.probability)
        many = groups.split(data.x, data.weight, data.probability, most_kinds=2)
        assert any(group.plausibility.ndim == 2 for group in many)
        a, b = (groups.table(g, p, moments.accumulate) for g in (few, many))
        for name in ("loglik", "weight_count", "first", "second"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("assignment", ["hard", "stochastic"])
    def test_other_assignments(self, assignment: str) -> None:
        x, label = in_part()
        found = bg.fit_em(
            bg.GaussianMixture(2, "EEE", noise=True),
            x,
            missing="marginalise",
            labels=label,
            assignment=assignment,
            random_seed=1,
            n_starts=3,
        )
        assert 0.03 < float(found["posterior"]["noise_weight"].item()) < 0.3


class TestUncertainty:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_information_is_the_second_derivative(self, family: str) -> None:
        spec = bg.GaussianMixture(2, family, noise=True)
        found = bg.fit_em(spec, noisy(), random_seed=1, n_starts=3)
        size = assert_information_is_the_second_derivative(found)
        assert size == spec.covariance.n_parameters(2, 2) + 1 + 4 + 1

    def test_scores_add_up_to_the_gradient(self, fit) -> None:
        one = estimate_of(fit)
        p = one.parameters
        away = p.moved(np.array([0.3, 0.5, 0.2]), p.mean + 0.1, p.covariance)
        a = one.information(away, one.sums(away)).gradient
        b = outer_products(one.data.groups, away, one.family).gradient
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8)

    def test_the_bootstrap_agrees(self, fit) -> None:
        boot = bg.bootstrap(fit, kind="parametric", draws=200, random_seed=1)
        found = bg.standard_errors(boot)
        for name in ("noise_weight", "weight", "mean"):
            ratio = found[name].to_numpy() / fit["standard_error"][name].to_numpy()
            assert (ratio > 0.7).all()
            assert (ratio < 1.4).all()

    @pytest.mark.parametrize("kind", ["observed", "sandwich", "opg"])
    def test_tables_have_a_row_for_it(self, fit, kind: str) -> None:
        table = bg.summary(fit)
        assert "noise_weight" in table.index
        matrix = bg.vcov(fit, kind=kind)
        assert matrix.loc["noise_weight", "noise_weight"] > 0
        # All weights sum to one.
        names = ["weight[0]", "weight[1]", "noise_weight"]
        np.testing.assert_allclose(matrix.loc[names].sum(axis=0), 0.0, atol=1e-12)
        if kind == "observed":
            np.testing.assert_allclose(
                np.sqrt(np.diagonal(matrix)), table["se"], rtol=1e-9, equal_nan=True
            )

    def test_profile_and_derived(self, fit) -> None:
        found = bg.profile(fit, "noise_weight")
        table = bg.summary(fit).loc["noise_weight"]
        assert float(found["lower"]) == pytest.approx(table["wald95_lower"], abs=0.02)
        assert float(found["upper"]) == pytest.approx(table["wald95_upper"], abs=0.02)
        frame = bg.derived(fit)
        assert frame.loc["noise_weight", "se"] == pytest.approx(table["se"], rel=1e-6)
        at = bg.derived(fit, at={"a": 0.0, "b": 0.0})
        assert "responsibility[noise, 0]" in at.index


class TestOtherVerbs:
    def test_save_and_load(self, fit, tmp_path) -> None:
        again = bg.load(bg.save(fit, tmp_path / "fit.nc"))
        a, b = tree.point(fit), tree.point(again)
        assert a.noise == b.noise
        np.testing.assert_array_equal(a.mean, b.mean)

    def test_rows_are_simulated_in_the_region(self, fit) -> None:
        rows, label = bg.simulate(fit, 4000, labels=True, random_seed=1)
        share = float((label == -1).mean())
        assert share == pytest.approx(float(fit["posterior"]["noise_weight"].item()), abs=0.02)
        again = bg.fit_em(bg.GaussianMixture(2, "VVV", noise=True), rows, random_seed=1)
        gap = again["posterior"]["mean"].to_numpy() - fit["posterior"]["mean"].to_numpy()
        assert np.abs(gap).max() < 0.2

    def test_a_volume_alone_cannot_be_simulated(self) -> None:
        found = bg.fit_em(bg.GaussianMixture(2, noise=1000.0), noisy(), random_seed=1)
        with pytest.raises(ArgumentError, match="volume"):
            bg.simulate(found, 100, random_seed=1)
        with pytest.raises(ArgumentError, match="volume"):
            bg.bootstrap(found, kind="parametric", draws=5, random_seed=1)

    def test_compare_with_a_bootstrap(self, fit) -> None:
        boot = bg.bootstrap(fit, draws=60, random_seed=1)
        table = bg.compare(fit, boot).to_dataframe()
        assert "noise_weight" in set(table["label"])

    def test_selection_has_it(self) -> None:
        found = bg.select(
            noisy(), n_components=[1, 2, 3], covariance=["EEE", "VVV"], noise=True, random_seed=1
        )
        assert found.best.attrs["spec"] == bg.GaussianMixture(2, "EEE", noise=True).to_json()
        table = bg.summary(found.best)
        assert "noise_weight" in table.index

    def test_the_command_line_has_it(self, tmp_path) -> None:
        noisy().to_csv(tmp_path / "x.csv", index=False)
        out = ["-k", "2", "--noise", "-o", str(tmp_path / "out")]
        done = CliRunner().invoke(app, ["fit", str(tmp_path / "x.csv"), *out])
        assert done.exit_code == 0, done.output
        assert "noise_weight" in done.output

    def test_scikit_learn_has_it(self) -> None:
        x = noisy().to_numpy()
        model = GaussianMixture(2, noise=True, random_state=1).fit(x)
        assert set(model.predict(x)) == {-1, 0, 1}
        assert model.predict_proba(x).shape == (len(x), 3)
        assert list(model.get_feature_names_out()) == [f"gaussianmixture{j}" for j in range(3)]
        assert model.weights_.sum() < 1.0
