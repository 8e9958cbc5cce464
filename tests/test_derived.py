"""The covariance matrix of an estimate, and the delta method on it."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import registry
from numpy.testing import assert_allclose
from scipy.special import expit, logit
from scipy.stats import multivariate_normal

import bayesgmm as bg
from bayesgmm.errors import ArgumentError, ColumnNameError, FitWarning
from bayesgmm.inference.delta import derived, vcov
from bayesgmm.information.coordinates import chart_about
from bayesgmm.information.observed import observed_information
from bayesgmm.moments import Parameters, accumulate

ids = str
Z = 1.959963984540054


def fitted(letters="VVV", k=2, name="faithful", **settings):
    x = registry.table(name)
    x = x.iloc[:, :1] if letters in ("E", "V") else x
    settings = {"random_seed": 1, "start": "kmeans", "n_starts": 2} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return bg.fit_em(bg.GaussianMixture(k, letters), x, **settings)


@pytest.fixture(scope="module")
def faithful():
    return fitted()


# Local coordinates and the way back


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_coordinates_lead_to_members_of_the_family(family):
    rng = np.random.default_rng(1)
    d = 1 if family.is_one_dimensional else 3
    p = registry.mixture(rng, family, 3, d)
    chart = chart_about(p, family)
    assert chart.size == bg.GaussianMixture(3, family).n_parameters(d)
    same = chart.at(np.zeros(chart.size))
    for name in ("weight", "mean", "covariance"):
        assert_allclose(getattr(same, name), getattr(p, name), rtol=1e-12, atol=1e-12)
    moved = chart.at(0.4 * rng.normal(size=chart.size))
    assert moved.weight.sum() == pytest.approx(1.0)
    phi, base = registry.decompose(family, moved.covariance)
    again = registry.compose(family, 3, d, phi, base)
    assert_allclose(again, moved.covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", [*registry.EVERY, *registry.ONE_D], ids=ids)
def test_coordinates_have_the_derivative_and_curvature_that_the_information_uses(family):
    """Differences of the log-likelihood along the way back: gradient and Hessian."""
    rng = np.random.default_rng(2)
    d = 1 if family.is_one_dimensional else 2
    p = registry.mixture(rng, family, 2, d)
    x = registry.simulate(rng, p, 80)
    chart = chart_about(p, family)
    information = observed_information(x, p, accumulate(x, p), family)
    direction = rng.normal(size=chart.size) / np.sqrt(chart.size)
    h = 1e-3
    f = [registry.loglik(x, chart.at(t * direction)) for t in np.array([-2, -1, 0, 1, 2]) * h]
    first = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h)
    second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h**2)
    assert first == pytest.approx(direction @ information.gradient, rel=1e-6, abs=1e-6)
    assert -second == pytest.approx(direction @ information.matrix @ direction, rel=1e-4)


# The covariance matrix


@pytest.mark.parametrize("letters", ["VVV", "EEE", "VEI", "EVE", "VII", "EII", "V", "E"])
def test_the_matrix_has_the_errors_of_the_summary_on_its_diagonal(letters):
    fit = fitted(letters)
    table, matrix = bg.summary(fit), vcov(fit)
    assert list(matrix.index) == list(matrix.columns) == list(table.index)
    assert_allclose(np.sqrt(np.diag(matrix)), table["se"], rtol=1e-6)
    assert_allclose(matrix, matrix.T, rtol=0, atol=0)
    scaled = matrix.to_numpy() / np.outer(table["se"], table["se"])
    assert np.linalg.eigvalsh(scaled)[0] > -1e-9
    d = 1 if letters in ("E", "V") else 2
    n_free = bg.GaussianMixture(2, letters).n_parameters(d)
    assert np.linalg.matrix_rank(scaled, tol=1e-8) == n_free
    assert matrix.attrs == {"se_method": "observed information", "se_note": ""}


def test_weights_vary_against_each_other(faithful):
    matrix = vcov(faithful)
    assert_allclose(matrix.loc["weight[0]"], -matrix.loc["weight[1]"], rtol=1e-9, atol=1e-15)


def test_a_saved_fit_has_the_same_matrix(faithful, tmp_path):
    bg.save(faithful, tmp_path / "fit.nc")
    assert_allclose(vcov(bg.load(tmp_path / "fit.nc")), vcov(faithful), rtol=1e-12)


# The delta method


def test_linear_functions_are_combinations_of_the_matrix(faithful):
    found = derived(faithful, lambda p: p.mean[1, 0] - 2.0 * p.mean[0, 1] + p.weight[0])
    combine = pd.Series(0.0, index=vcov(faithful).index)
    combine["mean[1, eruptions]"] = 1.0
    combine["mean[0, waiting]"] = -2.0
    combine["weight[0]"] = 1.0
    expected = np.sqrt(combine @ vcov(faithful) @ combine)
    assert found["se"].item() == pytest.approx(expected, rel=1e-9)
    assert found["wald95_upper"].item() == pytest.approx(
        found["estimate"].item() + Z * expected, rel=1e-9
    )
    assert found.index.to_list() == ["value"]


@pytest.mark.parametrize("kind", ["observed", "sandwich", "opg"])
def test_standard_deviations_and_weights(faithful, kind):
    found, matrix = derived(faithful, kind=kind), vcov(faithful, kind=kind)
    estimate = bg.summary(faithful)["estimate"]
    for j in range(2):
        for name in ("eruptions", "waiting"):
            label = f"covariance[{j}, {name}, {name}]"
            sd, row = np.sqrt(estimate[label]), found.loc[f"sd[{j}, {name}]"]
            assert row["estimate"] == pytest.approx(sd, rel=1e-12)
            se = np.sqrt(matrix.loc[label, label]) / (2 * sd)
            assert row["se"] == pytest.approx(se, rel=1e-8)
            assert row["wald95_lower"] == pytest.approx(sd * np.exp(-Z * se / sd), rel=1e-8)
            assert row["scale"] == "log"
        weight, row = estimate[f"weight[{j}]"], found.loc[f"weight[{j}]"]
        se = np.sqrt(matrix.loc[f"weight[{j}]", f"weight[{j}]"])
        assert row["se"] == pytest.approx(se, rel=1e-8)
        half = Z * se / (weight * (1 - weight))
        assert row["wald95_upper"] == pytest.approx(expit(logit(weight) + half), rel=1e-8)


def test_a_correlation_of_one_normal_distribution_is_fisher_s():
    x = registry.table("faithful")
    fit = bg.fit_em(bg.GaussianMixture(1), x)
    row = derived(fit, ci_prob=0.9).loc["correlation[0, eruptions, waiting]"]
    r, n = np.corrcoef(x.T)[0, 1], len(x)
    assert row["estimate"] == pytest.approx(r, rel=1e-10)
    assert row["se"] == pytest.approx((1 - r**2) / n**0.5, rel=1e-8)
    half = 1.6448536269514722 / n**0.5
    assert row["wald90_lower"] == pytest.approx(np.tanh(np.arctanh(r) - half), rel=1e-8)
    assert "weight[0]" not in derived(fit).index


def test_the_density_of_one_normal_distribution():
    x = registry.table("faithful")[["waiting"]]
    fit = bg.fit_em(bg.GaussianMixture(1, "V"), x)
    found = derived(fit, at=pd.DataFrame({"waiting": [50.0, 71.0, 120.0]}, index=["a", "b", "c"]))
    m, v, n = x["waiting"].mean(), x["waiting"].var(ddof=0), len(x)
    z = (np.array([50.0, 71.0, 120.0]) - m) / v**0.5
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi * v)
    relative = np.sqrt(z**2 / n + (z**2 - 1) ** 2 / (2 * n))
    assert found.index.to_list() == ["density[a]", "density[b]", "density[c]"]
    assert_allclose(found["estimate"], density, rtol=1e-10)
    assert_allclose(found["se"], density * relative, rtol=1e-8)
    assert_allclose(found["wald95_upper"], density * np.exp(Z * relative), rtol=1e-8)


@pytest.mark.parametrize("letters", ["VVV", "VVI"])
def test_responsibilities_and_densities_by_derivatives_in_natural_parameters(letters):
    """Against the labelled matrix and differences of SciPy's densities by its rows."""
    fit = fitted(letters)
    point = np.array([3.2, 63.0])
    table, matrix = bg.summary(fit), vcov(fit)

    def both(values: pd.Series) -> np.ndarray:
        joint = []
        for j in range(2):
            cells = {
                (a, b): values.get(f"covariance[{j}, {a}, {b}]", 0.0)
                for a, b in (
                    ("eruptions", "eruptions"),
                    ("eruptions", "waiting"),
                    ("waiting", "waiting"),
                )
            }
            off = cells["eruptions", "waiting"]
            cov = [[cells["eruptions", "eruptions"], off], [off, cells["waiting", "waiting"]]]
            mean = [values[f"mean[{j}, eruptions]"], values[f"mean[{j}, waiting]"]]
            joint.append(values[f"weight[{j}]"] * multivariate_normal(mean, cov).pdf(point))
        return np.array([sum(joint), joint[0] / sum(joint)])

    estimate = table["estimate"]
    slope = []
    for label in table.index:
        h = 1e-4 * table.loc[label, "se"]
        up, down = estimate.copy(), estimate.copy()
        up[label] += h
        down[label] -= h
        slope.append((both(up) - both(down)) / (2 * h))
    slope = np.array(slope).T
    expected = np.sqrt(np.einsum("ip,pq,iq->i", slope, matrix, slope))
    found = derived(fit, at=point)
    assert found.index.to_list() == ["density[0]", "responsibility[0, 0]", "responsibility[1, 0]"]
    assert_allclose(found["estimate"].iloc[:2], both(estimate), rtol=1e-8)
    assert_allclose(found["se"].iloc[:2], expected, rtol=1e-5)
    assert found["se"].iloc[2] == pytest.approx(found["se"].iloc[1], rel=1e-8)
    unit = both(estimate)[1] * (1 - both(estimate)[1])
    upper = expit(logit(both(estimate)[1]) + Z * expected[1] / unit)
    assert found["wald95_upper"].iloc[1] == pytest.approx(upper, rel=1e-5)


def test_the_errors_are_those_of_the_sampling_distribution():
    """A nonlinear function over simulated data sets, within Monte Carlo error."""
    truth = Parameters(np.array([0.4, 0.6]), np.array([[0.0], [4.0]]), np.array([[[1.0]], [[2.0]]]))
    rng = np.random.default_rng(3)

    def ratio(p: Parameters) -> float:
        return float(p.covariance[1, 0, 0] / p.covariance[0, 0, 0])

    values, errors = [], []
    for _ in range(200):
        x = registry.simulate(rng, truth, 400)
        fit = bg.fit_em(bg.GaussianMixture(2, "V"), x, start=truth, standard_errors=False)
        found = derived(fit, ratio, scale="log")
        values.append(np.log(found["estimate"].item()))
        errors.append(found["se"].item() / found["estimate"].item())
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)  # 3 sd of a sd of 200


def test_far_points_have_responsibilities_of_one_with_intervals_inside():
    fit = fitted()
    found = derived(fit, at={"waiting": 95.0, "eruptions": 5.2})
    assert (found.loc["responsibility[1, 0]", ["wald95_lower", "wald95_upper"]] <= 1.0).all()
    far = derived(fit, at=[[1e6, 1e6]])
    assert np.isfinite(far["estimate"]).all()
    assert far.loc["density[0]", "estimate"] == 0.0


@pytest.mark.parametrize(("shift", "unit"), [(1e8, 1.0), (0.0, 1e-7), (-1e5, 1e4)])
def test_offsets_and_units_change_nothing(shift, unit):
    x = registry.table("faithful")
    y = x * unit + shift
    one, two = (
        bg.fit_em(bg.GaussianMixture(2), v, start="kmeans", n_starts=1, random_seed=1, tol=1e-8)
        for v in (x, y)
    )
    a, b = derived(one), derived(two)
    units = np.where(a.index.str.startswith("sd"), unit, 1.0)
    for name in ("estimate", "se", "wald95_lower", "wald95_upper"):
        assert_allclose(b[name], a[name] * units, rtol=1e-5)
    point = np.array([[3.0, 65.0]])
    a, b = derived(one, at=point), derived(two, at=point * unit + shift)
    assert_allclose(b["se"].iloc[1:], a["se"].iloc[1:], rtol=1e-4)
    assert b["se"].iloc[0] == pytest.approx(a["se"].iloc[0] / unit**2, rel=1e-4)


@pytest.mark.parametrize("family", registry.EVERY, ids=ids)
def test_every_family_has_spreads_with_errors(family):
    found = derived(fitted(family.letters))
    assert np.isfinite(found[["estimate", "se", "wald95_lower"]].to_numpy()).all()
    lower, upper = found["wald95_lower"], found["wald95_upper"]
    assert ((lower <= found["estimate"]) & (found["estimate"] <= upper)).all()
    n_sd = found.index.str.startswith("sd").sum()
    wanted = {True: 1, False: 2}[family.shape == "I"] * (1 if family.is_common else 2)
    assert n_sd == wanted


# What a function may return, and what is refused


def test_functions_may_return_names_arrays_and_scalars(faithful):
    def spread(p: Parameters) -> dict[str, float]:
        return {"small": p.covariance[0, 0, 0], "large": p.covariance[1, 1, 1]}

    found = derived(faithful, spread, scale="log")
    assert found.index.to_list() == ["small", "large"]
    assert (found["scale"] == "log").all()
    assert derived(faithful, lambda p: p.mean).index.to_list() == [
        f"value[{j}, {f}]" for j in range(2) for f in range(2)
    ]

    def total(p: Parameters) -> float:
        return p.mean.sum()

    assert derived(faithful, total).index.to_list() == ["total"]


def test_what_is_refused(faithful):
    with pytest.raises(ArgumentError, match="function: must return numbers, not str"):
        derived(faithful, lambda p: "no number")
    with pytest.raises(ArgumentError, match="not finite at the estimate, on the log scale"):
        derived(faithful, lambda p: -p.weight[0], scale="log")
    with pytest.raises(ArgumentError, match="scale: must be one of"):
        derived(faithful, lambda p: p.weight[0], scale="probit")
    with pytest.raises(ArgumentError, match="scale: is that of a function"):
        derived(faithful, scale="log")
    with pytest.raises(ArgumentError, match="function: must be a function"):
        derived(faithful, "sd")
    with pytest.raises(ArgumentError, match="at: cannot be given together"):
        derived(faithful, lambda p: p.weight[0], at=[1.0, 2.0])
    with pytest.raises(ArgumentError, match="ci_prob"):
        derived(faithful, ci_prob=95)
    with pytest.raises(ColumnNameError):
        derived(faithful, at={"waiting": 60.0})
    with pytest.raises(ArgumentError, match="must be a fit by fit_em"):
        derived(bg.Parameters(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1))))


def test_a_saddle_has_no_errors_and_says_so():
    x = np.random.default_rng(0).normal(size=(200, 1))
    half = Parameters(np.array([0.5, 0.5]), np.full((2, 1), x.mean()), np.full((2, 1, 1), x.var()))
    with pytest.warns(FitWarning, match="(?s)not positive definite"):
        fit = bg.fit_em(bg.GaussianMixture(2, "V"), x, start=half)
    for kind in ("observed", "sandwich", "opg"):
        found = derived(fit, kind=kind)
        assert found["se"].isna().all()
        assert "not positive definite" in found.attrs["se_note"]
        assert vcov(fit, kind=kind).isna().all(axis=None)
