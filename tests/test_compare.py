"""A comparison says what it measures, undoes the labels, and names a cause only with evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import fits
import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

from bayesgmm.display import reasons
from bayesgmm.display.comparison import compare
from bayesgmm.display.reasons import Evidence, explain
from bayesgmm.display.words import (
    format_number,
    format_table,
    headline,
    reasons_of,
    to_frame,
)
from bayesgmm.errors import ArgumentError
from bayesgmm.mixture import GaussianMixture
from bayesgmm.rows import interval_overlap, parameter_rows, summary

WAITING = 2  # position of mean[0, waiting] in the flat golden vector
LABEL = "mean[0, waiting]"
SE = fits.golden()["se_observed_information"][WAITING]


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return fits.em_fit()


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    return fits.nuts_fit()


@pytest.fixture(scope="module")
def comparison(mle: xr.DataTree, post: xr.DataTree) -> xr.Dataset:
    return compare(mle, post)


def one(comparison: xr.Dataset, label: str = LABEL) -> dict[str, object]:
    row = comparison.sel(parameter=label)
    return {name: row[name].item() for name in row.data_vars}


def shifted(by: float, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    def shift(flat: np.ndarray) -> np.ndarray:
        centre = fits.golden()["estimate"][WAITING]
        flat = flat.copy()
        flat[..., WAITING] = centre + scale * (flat[..., WAITING] - centre) + by * SE
        return flat

    return shift


def prior(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims=("chain", "draw"))


class TestRows:
    def labels(self, k: int, family: str, *names: str) -> list[str]:
        return [row.label for row in parameter_rows(GaussianMixture(k, family), names)]

    def test_all_of_a_full_covariance_but_its_upper_triangle(self) -> None:
        found = self.labels(2, "VVV", "a", "b")
        assert found == [
            *("weight[0]", "weight[1]"),
            *("mean[0, a]", "mean[0, b]", "mean[1, a]", "mean[1, b]"),
            *("covariance[0, a, a]", "covariance[0, a, b]", "covariance[0, b, b]"),
            *("covariance[1, a, a]", "covariance[1, a, b]", "covariance[1, b, b]"),
        ]

    def test_a_common_covariance_once_without_cluster(self) -> None:
        assert self.labels(3, "EEE", "a", "b")[-3:] == [
            *("covariance[a, a]", "covariance[a, b]", "covariance[b, b]")
        ]

    def test_a_diagonal_family_has_variances_only(self) -> None:
        assert self.labels(2, "VVI", "a", "b")[-4:] == [
            *("covariance[0, a, a]", "covariance[0, b, b]"),
            *("covariance[1, a, a]", "covariance[1, b, b]"),
        ]

    def test_a_spherical_family_has_one_variance_per_component(self) -> None:
        assert self.labels(2, "VII", "a", "b")[-2:] == ["covariance[0]", "covariance[1]"]
        assert self.labels(2, "EII", "a", "b")[-1] == "covariance"

    def test_one_component_has_no_weight(self) -> None:
        assert self.labels(1, "V", "a") == ["mean[0, a]", "covariance[0, a, a]"]

    def test_the_rows_are_the_free_parameters_plus_the_last_weight(self) -> None:
        for family in ("VVV", "EEE", "VVI", "EEI", "VII", "EII"):
            spec = GaussianMixture(3, family)
            rows = parameter_rows(spec, ("a", "b", "c", "d"))
            assert len(rows) == spec.n_parameters(4) + 1, family

    def test_control_characters_do_not_reach_a_label(self) -> None:
        assert self.labels(1, "V", "a\x1b[2J")[0] == r"mean[0, a\x1b[2J]"


class TestNumbers:
    def test_estimates_and_standard_errors_are_the_fit_s(self, comparison: xr.Dataset) -> None:
        record = fits.golden()
        estimate, se = record["estimate"], record["se_observed_information"]
        shown = comparison["estimate"].values
        np.testing.assert_allclose(np.delete(shown, 1), estimate)
        np.testing.assert_allclose(np.delete(comparison["se"].values, 1), se)
        assert shown[0] + shown[1] == pytest.approx(1.0)

    def test_wald_interval(self, comparison: xr.Dataset) -> None:
        half = norm.ppf(0.975) * comparison["se"]
        np.testing.assert_allclose(comparison["wald_upper"] - comparison["estimate"], half)
        np.testing.assert_allclose(comparison["estimate"] - comparison["wald_lower"], half)

    def test_posterior_columns_are_those_of_the_draws(
        self, comparison: xr.Dataset, post: xr.DataTree
    ) -> None:
        draws = post["posterior"]["covariance"].values[..., 1, 0, 1].ravel()
        row = one(comparison, "covariance[1, eruptions, waiting]")
        assert row["mean"] == pytest.approx(draws.mean())
        assert row["sd"] == pytest.approx(draws.std(ddof=1))
        assert row["eti_lower"] == pytest.approx(np.quantile(draws, 0.025))
        assert row["eti_upper"] == pytest.approx(np.quantile(draws, 0.975))

    @pytest.mark.parametrize("by", [-2.0, 0.5])
    def test_z_of_a_planted_shift(self, mle: xr.DataTree, by: float) -> None:
        row = one(compare(mle, fits.nuts_fit(shift=shifted(by), draws=1000)))
        assert row["z"] == pytest.approx(-by, abs=0.06)

    def test_sd_ratio_of_planted_widths(self, mle: xr.DataTree) -> None:
        found = compare(mle, fits.nuts_fit(inflate=1.1, draws=2000))["sd_ratio"]
        np.testing.assert_allclose(found, 1.1, atol=0.04)

    def test_overlap(self) -> None:
        ends = (np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, np.nan, 1.0]))
        other = (np.array([0.0, 2.0, 0.5, 0.0, 1.0]), np.array([1.0, 3.0, 1.5, 1.0, 1.0]))
        found = interval_overlap(*ends, *other)
        np.testing.assert_allclose(found, [1.0, 0.0, 1 / 3, np.nan, 1.0])

    def test_independent_normal_draws_agree_with_their_centre(self, comparison: xr.Dataset) -> None:
        assert comparison["agree"].all()
        assert (comparison["reason"] == "").all()
        assert (comparison["r_hat"] < 1.01).all()
        assert "agree on all 12 parameters" in headline(comparison)

    def test_ci_prob(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        narrow = compare(mle, post, ci_prob=0.5)
        assert narrow.attrs["ci_prob"] == 0.5
        half = (narrow["wald_upper"] - narrow["wald_lower"]) / 2
        np.testing.assert_allclose(half, norm.ppf(0.75) * narrow["se"])

    def test_one_chain_is_split_for_its_r_hat(self, mle: xr.DataTree) -> None:
        found = compare(mle, fits.nuts_fit(chains=1, draws=801))
        assert np.isfinite(found["r_hat"]).all()

    def test_attributes(self, comparison: xr.Dataset, mle: xr.DataTree) -> None:
        attrs = comparison.attrs
        assert attrs["ci_kind"] == "eti"
        assert attrs["loglik"] == pytest.approx(fits.golden()["loglik"])
        assert attrs["bic"] == pytest.approx(2322.192, abs=1e-3)
        assert attrs["criteria_sign"] == "smaller is better"
        assert attrs["elpd_loo"] == -1141.5
        assert attrs["loglik_mean"] < attrs["loglik"]
        assert json.loads(attrs["data"])["n"] == 272


class TestLabels:
    def test_the_permutation_between_the_fits_is_undone(
        self, comparison: xr.Dataset, post: xr.DataTree
    ) -> None:
        found = compare(fits.em_fit(order=(1, 0)), post)
        assert json.loads(found.attrs["permutation"]) == [1, 0]
        for name in ("estimate", "se", "z", "overlap"):
            np.testing.assert_array_equal(found[name], comparison[name])

    def test_the_posterior_keeps_its_own_order(self, mle: xr.DataTree) -> None:
        found = compare(mle, fits.nuts_fit(order=(1, 0)))
        assert one(found, "mean[0, waiting]")["estimate"] == pytest.approx(54.48, abs=0.01)
        assert found["agree"].all()


class TestRefusals:
    def test_two_posteriors(self, post: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match=r"^mle: has draws"):
            compare(post, post)

    def test_two_estimates(self, mle: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match=r"^post: is a point estimate"):
            compare(mle, mle)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"fingerprint": "sha256:other"}, "data fingerprint is 'sha256:other'"),
            ({"spec": GaussianMixture(3).to_json()}, "n_components is 3, but 2 in mle"),
            ({"spec": GaussianMixture(2, "EEE").to_json()}, "covariance is 'EEE', but 'VVV'"),
        ],
    )
    def test_other_data_or_specification(
        self, mle: xr.DataTree, change: dict[str, str], what: str
    ) -> None:
        with pytest.raises(ArgumentError, match=what):
            compare(mle, fits.nuts_fit(draws=10, **change))

    def test_other_columns(self, mle: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match="feature names"):
            compare(mle, fits.nuts_fit(draws=10, features=("a", "b")))

    @pytest.mark.parametrize("prob", [0.0, 1.0, 95.0, float("nan")])
    def test_a_probability_that_is_none(
        self, mle: xr.DataTree, post: xr.DataTree, prob: float
    ) -> None:
        with pytest.raises(ArgumentError, match="ci_prob"):
            compare(mle, post, ci_prob=prob)

    def test_another_prior_is_noted(self, post: xr.DataTree) -> None:
        flat = GaussianMixture(2, "VVV", "separation")
        other = fits.em_fit(estimate="map", spec=flat.to_json())
        found = compare(other, post)
        assert found.attrs["prior_note"].startswith("different priors")


class TestReasons:
    """Each cause on a case made for it, end to end."""

    def test_not_converged(self, mle: xr.DataTree) -> None:
        def apart(flat: np.ndarray) -> np.ndarray:
            return flat + np.eye(11)[WAITING] * SE * 3 * np.arange(4)[:, None, None]

        found = compare(mle, fits.nuts_fit(shift=apart))
        assert "not converged (R-hat 2." in one(found)["reason"]
        assert list(reasons_of(found)) == [LABEL]
        assert "agree on 11 of 12 parameters" in headline(found)

    def test_a_frozen_parameter_is_not_converged(self, mle: xr.DataTree) -> None:
        def freeze(flat: np.ndarray) -> np.ndarray:
            flat = flat.copy()
            flat[..., WAITING] = 80.0
            return flat

        row = one(compare(mle, fits.nuts_fit(shift=freeze)))
        assert np.isnan(row["r_hat"])
        assert not row["agree"]
        assert "not converged (R-hat not a number" in row["reason"]

    def test_ambiguous_labels(self, mle: xr.DataTree) -> None:
        post = fits.nuts_fit(shift=shifted(1.0))
        margin = post["labels"]["margin"]
        margin[0, :100] = 0.01
        post["labels"]["margin"] = margin
        assert one(compare(mle, post))["reason"].startswith(
            "ambiguous labels (10.0% of draws have a margin below 0.1)"
        )

    def test_not_the_maximum(self, mle: xr.DataTree) -> None:
        post = fits.nuts_fit(shift=shifted(1.0))
        post["sample_stats"]["loglik"] = post["sample_stats"]["loglik"] + 10.0
        gap = post["sample_stats"]["loglik"].values.max() - fits.golden()["loglik"]
        assert (
            f"not the maximum (a draw has a log-likelihood {gap:.3g} above"
            in (one(compare(mle, post))["reason"])
        )

    def test_no_standard_error(self, post: xr.DataTree) -> None:
        mle = fits.em_fit()
        errors = mle["standard_error"].to_dataset() * np.nan
        mle["standard_error"] = xr.DataTree(errors.assign_attrs(note="a saddle"))
        found = compare(mle, post)
        assert not found["agree"].any()
        assert set(found["reason"].values) == {"no standard error (a saddle)"}
        del mle["standard_error"]
        assert set(compare(mle, post)["reason"].values) == {"no standard error (none was computed)"}

    def test_prior_pull(self, mle: xr.DataTree) -> None:
        # Draws that the prior has pulled up by one sd: log prior with slope 1 per sd.
        post = fits.nuts_fit(shift=shifted(1.0), draws=1000)
        x = post["posterior"]["mean"].values[..., 0, 1]
        noise = np.random.default_rng(0).normal(size=x.shape)
        post["sample_stats"]["log_prior"] = prior(x / SE + 0.3 * noise)
        reason = one(compare(mle, post))["reason"]
        assert reason.startswith("prior pull (without the prior the mean would move by -")
        assert float(reason.split("move by ")[1].split(" sd")[0]) == pytest.approx(-1.0, abs=0.06)

    def test_the_prior_is_no_reason_when_both_fits_have_it(self, post: xr.DataTree) -> None:
        post = fits.nuts_fit(shift=shifted(1.0))
        x = post["posterior"]["mean"].values[..., 0, 1]
        post["sample_stats"]["log_prior"] = prior(x / SE)
        reason = one(compare(fits.em_fit(estimate="map"), post))["reason"]
        assert reason.startswith("differs, no single cause found (z -")

    def test_a_prior_that_narrows(self, mle: xr.DataTree) -> None:
        # A normal prior as informative as the data halves the variance.
        post = fits.nuts_fit(shift=shifted(0.0, np.sqrt(0.5)), draws=1000)
        x = post["posterior"]["mean"].values[..., 0, 1]
        z = (x - fits.golden()["estimate"][WAITING]) / SE
        post["sample_stats"]["log_prior"] = prior(-0.5 * z**2)
        reason = one(compare(mle, post))["reason"]
        assert "prior pull (without the prior the sd would be 2" in reason
        assert "% larger" in reason

    def test_skew(self, mle: xr.DataTree) -> None:
        def gamma(flat: np.ndarray) -> np.ndarray:
            flat = flat.copy()
            draws = np.random.default_rng(4).gamma(4.0, size=flat.shape[:-1])
            # Mode at the estimate: mean - mode = 1 and sd = 2 in the gamma's units.
            flat[..., WAITING] = fits.golden()["estimate"][WAITING] + SE * (draws - 3.0) / 2.0
            return flat

        row = one(compare(mle, fits.nuts_fit(shift=gamma, draws=1000)))
        assert row["z"] == pytest.approx(-0.5, abs=0.05)
        assert row["reason"].startswith("skew (the posterior's mode is about 0.")
        assert row["reason"].endswith(" sd below its mean)")

    def test_a_shift_without_a_cause_is_said_to_have_none(self, mle: xr.DataTree) -> None:
        row = one(compare(mle, fits.nuts_fit(shift=shifted(1.0))))
        assert row["reason"].startswith("differs, no single cause found (z -")


class TestCauses:
    """The pure functions on evidence without draws of their own interest."""

    base = Evidence(
        kind="mean",
        estimate=1.0,
        se=1.0,
        draws=norm.ppf((np.arange(4000) + 0.5) / 4000),
        z=0.0,
        sd_ratio=1.0,
        overlap=1.0,
        r_hat=1.0,
        ess=4000.0,
        log_prior=None,
        loglik_gap=-3.0,
        ambiguous=0.0,
        note="",
        count=100.0,
        size=6,
    )

    def test_agreement_needs_no_reason(self) -> None:
        assert explain(self.base) == ""

    @pytest.mark.parametrize(
        "change",
        [
            {"z": 0.26},
            {"z": -0.26},
            {"sd_ratio": 0.79},
            {"sd_ratio": 1.26},
            {"overlap": 0.79},
            {"z": np.nan},
            {"sd_ratio": np.nan},
            {"r_hat": 1.01},
            {"r_hat": np.nan},
        ],
    )
    def test_each_limit_counts(self, change: dict[str, float]) -> None:
        assert explain(replace(self.base, **change)) != ""

    def test_every_cause_is_silent_on_agreement(self) -> None:
        assert [cause(self.base) for cause in reasons.CAUSES] == [""] * len(reasons.CAUSES)

    def test_a_weight_near_zero_or_one(self) -> None:
        near = replace(self.base, kind="weight", estimate=0.03, se=0.02)
        assert reasons.near_boundary(near).endswith("(the estimate is 1.5 standard errors from 0)")
        near = replace(self.base, kind="weight", estimate=0.99, se=0.02)
        assert reasons.near_boundary(near).endswith("(the estimate is 0.5 standard errors from 1)")
        assert reasons.near_boundary(replace(near, estimate=0.5)) == ""

    def test_a_variance_near_zero_but_not_a_mean_or_covariance(self) -> None:
        near = replace(self.base, kind="variance", estimate=0.3, se=0.2)
        assert reasons.near_boundary(near).startswith("variance near zero")
        assert reasons.near_boundary(replace(near, kind="covariance")) == ""
        assert reasons.near_boundary(replace(near, kind="mean")) == ""

    def test_few_observations_only_where_the_posterior_is_wider(self) -> None:
        few = replace(self.base, count=12.0, sd_ratio=1.4)
        assert reasons.few_observations(few) == (
            "few observations (about 12 for 6 parameters; the posterior is 1.40 times as wide as "
            "the standard error)"
        )
        assert reasons.few_observations(replace(few, sd_ratio=0.7)) == ""
        assert reasons.few_observations(replace(few, count=61.0)) == ""

    def test_a_prior_that_pulls_the_other_way_is_no_cause(self) -> None:
        pull = replace(self.base, log_prior=self.base.draws, z=-1.0)
        assert reasons.prior_pull(pull) == (
            "prior pull (without the prior the mean would move by -1.00 sd, to first order)"
        )
        assert reasons.prior_pull(replace(pull, z=1.0)) == ""

    def test_noise_in_the_prior_is_no_cause(self) -> None:
        noise = np.random.default_rng(1).normal(size=4000)
        assert reasons.prior_pull(replace(self.base, log_prior=noise, z=0.3)) == ""

    def test_reasons_combine_in_order(self) -> None:
        text = explain(replace(self.base, r_hat=1.5, se=np.nan, sd_ratio=np.nan, ambiguous=0.2))
        assert [part.split(" (")[0] for part in text.split("; ")] == [
            *("not converged", "ambiguous labels", "no standard error")
        ]


class TestTables:
    def test_summary_has_the_same_rows_for_both(self, mle: xr.DataTree, post: xr.DataTree) -> None:
        one, other = summary(mle), summary(post, ci_prob=0.9)
        assert list(one.index) == list(other.index)
        assert list(one) == ["estimate", "se", "wald95_lower", "wald95_upper"]
        assert list(other) == [
            *("mean", "sd", "eti90_lower", "eti90_upper"),
            *("mcse", "ess_bulk", "ess_tail", "r_hat"),
        ]
        errors = {"se_method": "unknown", "se_note": ""}  # the record does not say
        assert one.attrs == {"ci_kind": "wald", "ci_prob": 0.95} | errors
        labelled = {"alignment": "pivot", "ambiguous": 0.0, "note": ""}
        assert other.attrs == {"ci_kind": "eti", "ci_prob": 0.9} | labelled

    def test_summary_is_the_comparison_s_numbers(
        self, comparison: xr.Dataset, mle: xr.DataTree, post: xr.DataTree
    ) -> None:
        np.testing.assert_array_equal(summary(mle)["wald95_lower"], comparison["wald_lower"])
        np.testing.assert_array_equal(summary(post)["eti95_upper"], comparison["eti_upper"])

    def test_to_frame(self, comparison: xr.Dataset) -> None:
        frame = to_frame(comparison)
        assert frame.index.name == "label"
        assert frame.loc[LABEL, "estimate"] == one(comparison)["estimate"]
        assert list(frame)[:5] == ["variable", "cluster", "feature", "feature_bis", "estimate"]
        assert frame.loc["covariance[0, eruptions, waiting]", "feature_bis"] == "waiting"

    def test_format_table(self, mle: xr.DataTree) -> None:
        verdict = {
            "status": "warn",
            "checks": [
                {"code": "c1", "status": "ok", "evidence": "fine", "advice": "none"},
                {"code": "c2", "status": "warn", "evidence": "3 diverged", "advice": "Do this."},
            ],
        }
        post = fits.nuts_fit(shift=shifted(1.0), verdict=json.dumps(verdict))
        text = format_table(compare(mle, post))
        lines = text.splitlines()
        assert "agree on 11 of 12 parameters" in lines[0]
        assert "BIC: 2322.19 (smaller is better)" in text
        assert "  warn: c2: 3 diverged. Do this." in text
        assert "fine" not in text
        assert "95 % Wald" in text
        assert "95 % ETI" in text
        row = next(line for line in lines if line.strip().startswith(LABEL))
        assert "79.97" in row
        assert row.endswith("no")
        assert any(line.startswith(f"{LABEL}: differs") for line in lines)
        assert max(map(len, lines)) <= 132

    def test_no_markup_in_a_label_is_obeyed(self) -> None:
        names = ("[red]a[/red]", "[bold]")
        text = format_table(compare(fits.em_fit(features=names), fits.nuts_fit(features=names)))
        assert "mean[0, [red]a[/red]]" in text

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (79.96812, 0.4562, "79.97"),
            (0.0691677, 0.010575, "0.069"),
            (36046.2, 3925.0, "36046"),
            (1.5e-9, 2e-11, "1.500e-09"),
            (3.2e12, 1e9, "3.2000e+12"),
            (0.0, 1e-9, "0"),
            (np.nan, 1.0, "–"),
            (1.23456, np.nan, "1.235"),
            (1.23456, 0.0, "1.235"),
        ],
    )
    def test_format_number(self, value: float, unit: float, text: str) -> None:
        assert format_number(value, unit) == text

    def test_netcdf_gives_it_back(self, comparison: xr.Dataset, tmp_path: object) -> None:
        path = f"{tmp_path}/comparison.nc"
        comparison.to_netcdf(path)
        xr.testing.assert_identical(xr.load_dataset(path), comparison)


class TestShapes:
    @pytest.mark.parametrize(("k", "common"), [(1, False), (3, False), (3, True)])
    def test_one_dimension(self, k: int, common: bool) -> None:
        mle = fits.one_dimensional(k, common=common)
        post = fits.one_dimensional(k, common=common, draws=400)
        found = compare(mle, post)
        assert found.sizes["parameter"] == (k if k > 1 else 0) + k + (1 if common else k)
        row = found.sel(parameter="mean[0, velocity]")
        assert row["estimate"].item() == 0.0
        assert row["sd_ratio"].item() == pytest.approx(1.0, abs=0.1)

    @pytest.mark.parametrize("family", ["EEE", "VII", "EII"])
    def test_more_dimensions(self, family: str) -> None:
        mle = fits.many_dimensional(5, family=family)
        found = compare(mle, fits.many_dimensional(5, family=family, draws=100))
        assert np.isfinite(found["z"]).all()

    def test_draws_that_are_not_numbers_are_a_finding(self, mle: xr.DataTree) -> None:
        post = fits.nuts_fit()
        covariance = post["posterior"]["covariance"].copy()
        covariance[0, 3, 0, 0, 0] = np.nan
        post["posterior"]["covariance"] = covariance
        row = one(compare(mle, post), "covariance[0, eruptions, eruptions]")
        assert "not converged (R-hat not a number" in row["reason"]
