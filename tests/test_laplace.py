"""The weighted Laplace approximation: closed forms, Stan's runs, and what it must refuse."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from models import table
from scipy.special import logsumexp
from scipy.stats import f as f_distribution
from scipy.stats import multivariate_t, norm
from test_modes import GROUPS, SIDES, SQUARE, square, three_groups
from test_posterior import distances, gaps, prior_of, reference

from bayesgmm.checks import Verdict
from bayesgmm.data.observations import read_for
from bayesgmm.display.comparison import compare
from bayesgmm.em.fit import fit_em
from bayesgmm.errors import ArgumentError, FitWarning, NumericalError, PosteriorWarning
from bayesgmm.mixture import GaussianMixture
from bayesgmm.posterior import atlas, laplace
from bayesgmm.posterior.bayes import sample_posterior
from bayesgmm.posterior.laplace import fit_laplace
from bayesgmm.posterior.modes import combine_modes, mode
from bayesgmm.posterior.weighting import Student, judge_draws, proposed, resampled, smoothed
from bayesgmm.resolved import resolve
from bayesgmm.rows import summary
from bayesgmm.target.curvature import Quadratic, mode_near, quadratic_at
from bayesgmm.target.density import target
from bayesgmm.tree import DIMS, arrays, dataset, load, names_of, point, save

SPEC = GaussianMixture(2, "VVV")


def overlapping(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    return centre[rng.integers(3, size=n)] + rng.normal(size=(n, 2))


def statuses(fit: xr.DataTree) -> dict[str, str]:
    return {c.code: c.status for c in Verdict.from_json(fit.attrs["verdict"]).checks}


@pytest.fixture(scope="module")
def fits() -> tuple[xr.DataTree, xr.DataTree]:
    x = table("faithful")
    mle = fit_em(SPEC, x, random_seed=1)
    return mle, fit_laplace(SPEC, x, mle=mle, random_seed=1)


@pytest.mark.parametrize(("letters", "d"), [("VVV", 2), ("V", 1)])
def test_one_component_has_the_closed_form(letters: str, d: int) -> None:
    """Normal inverse Wishart: means of Student's t, covariances of an inverse Wishart."""
    x = table("faithful", d).iloc[:40]
    fit = fit_laplace(GaussianMixture(1, letters), x, draws=20_000, random_seed=2)
    values = x.to_numpy()
    n, kappa, nu = len(x), 0.01 + len(x), d + 2 + len(x)
    scatter = np.cov(values.T).reshape(d, d) * (n - 1 + 1.0)
    expected = scatter / (nu - d - 1)
    for f in range(d):
        mean = fit["posterior"]["mean"].to_numpy()[:, :, 0, f]
        assert max(gaps(mean, values[:, f].mean(), np.sqrt(expected[f, f] / kappa))) < 4
        for g in range(f + 1):
            product = scatter[f, f] * scatter[g, g]
            variance = (nu - d + 1) * scatter[f, g] ** 2 + (nu - d - 1) * product
            variance /= (nu - d) * (nu - d - 1) ** 2 * (nu - d - 3)
            value = fit["posterior"]["covariance"].to_numpy()[:, :, 0, f, g]
            assert max(gaps(value, expected[f, g], np.sqrt(variance))) < 4
    assert Verdict.from_json(fit.attrs["verdict"]).status == "ok"


@pytest.mark.parametrize(
    ("case", "data", "k", "letters"),
    [
        ("faithful_vvv_k2", "faithful", 2, "VVV"),
        ("iris_eee_k3", "iris", 3, "EEE"),
    ],
)
def test_stans_posteriors(case: str, data: str, k: int, letters: str) -> None:
    record, x = reference(case), table(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # a half-normal scale and ties
        fit = fit_laplace(
            GaussianMixture(k, letters, prior_of(record)), x, draws=20_000, random_seed=3
        )
    assert statuses(fit)["pareto-k"] == "ok"
    found = distances(fit, record, x.to_numpy())
    # Draws are repeated as their weights say, so that a quantile's error cannot be told by gaps.
    found = {name: z for name, z in found.items() if " % of " not in name}
    assert {name: z for name, z in found.items() if not z < 4.5} == {}


def test_the_mode_is_where_the_gradient_vanishes() -> None:
    x = overlapping(400)
    spec = GaussianMixture(3, "VVV")
    data = read_for(spec, x)
    posterior = target(spec, data, resolve(spec, data))
    theta = point(fit_em(spec, x, random_seed=1))
    quadratic = mode_near(posterior, theta)
    assert quadratic.is_peak
    assert np.linalg.norm(quadratic.root.T @ posterior(quadratic.point)[1]) < 1e-3
    rng = np.random.default_rng(0)
    for direction in rng.normal(size=(20, posterior.size)):
        near = quadratic.point + 0.1 * quadratic.root @ (direction / np.linalg.norm(direction))
        assert posterior(near)[0] < posterior(quadratic.point)[0]


def test_the_size_is_that_of_the_inverse_hessian() -> None:
    """Along any line through the mode the log-posterior falls by half the squared distance."""
    spec = GaussianMixture(2, "EEE")
    data = read_for(spec, table("faithful"))
    posterior = target(spec, data, resolve(spec, data))
    quadratic = mode_near(posterior, point(fit_em(spec, table("faithful"), random_seed=1)))
    top = posterior(quadratic.point)[0]
    rng = np.random.default_rng(1)
    for direction in rng.normal(size=(20, posterior.size)):
        z = 0.05 * direction / np.linalg.norm(direction)
        both = [posterior(quadratic.point + sign * quadratic.root @ z)[0] for sign in (-1, 1)]
        assert np.mean(both) - top == pytest.approx(-0.5 * 0.05**2, rel=0.01)


def test_flat_directions_have_the_largest_size() -> None:
    spec = GaussianMixture(2, "EEE")
    data = read_for(spec, table("faithful"))
    posterior = target(spec, data, resolve(spec, data))
    theta = point(fit_em(spec, table("faithful"), random_seed=1))
    narrow = quadratic_at(posterior, posterior.point(theta), theta, 1e-4)
    assert not narrow.is_peak
    unit = np.ones(posterior.size)
    unit[-4:] = np.sqrt(np.diagonal(theta.covariance, axis1=1, axis2=2)).ravel()
    np.testing.assert_allclose(np.linalg.norm(narrow.root / unit[:, None], 2), 1e-4)


def test_small_overlapping_samples_are_refused_with_the_reason() -> None:
    with pytest.warns(PosteriorWarning, match=r"Pareto's k.*sample_posterior"):
        fit = fit_laplace(GaussianMixture(3, "VVV"), overlapping(100), random_seed=1)
    assert statuses(fit)["pareto-k"] == "fail"
    assert float(fit["criteria"]["pareto_k"]) > 0.7


def test_no_peak_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    original = laplace.mode_near

    def flat(*arguments: Any) -> Any:
        quadratic = original(*arguments)
        return type(quadratic)(quadratic.point, quadratic.root, False, quadratic.distance)

    for module in (atlas, laplace):
        monkeypatch.setattr(module, "mode_near", flat)
    with pytest.raises(NumericalError, match=r"is flat.*sample_posterior"):
        fit_laplace(SPEC, table("faithful"), random_seed=1)


def test_paretos_k_is_the_tail_index_of_the_weights() -> None:
    """Draws from Exp(1) weighted to Exp(1 - k): the weights' tail index is k (Vehtari et al.)."""
    rng = np.random.default_rng(0)
    for k in (0.2, 0.5, 0.8):
        log_weight = k * rng.exponential(size=100_000)
        assert smoothed(log_weight)[1] == pytest.approx(k, abs=0.1)


def test_resampling_repeats_each_draw_as_its_weight_says() -> None:
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(50))
    chosen = resampled(weight, rng)
    n = len(chosen)
    assert n == int(1.0 / (weight**2).sum())
    count = np.bincount(chosen, minlength=50)
    assert (np.abs(count - n * weight) < 1.0).all()
    assert (np.diff(chosen) < 0).any()


def test_threads_and_runs_give_the_same_bits(fits: tuple[xr.DataTree, xr.DataTree]) -> None:
    mle, first = fits
    for threads in (1, 3):
        again = fit_laplace(SPEC, table("faithful"), mle=mle, threads=threads, random_seed=1)
        assert again["posterior"].to_dataset().identical(first["posterior"].to_dataset())
    other = fit_laplace(SPEC, table("faithful"), mle=mle, random_seed=2)
    assert not other["posterior"].to_dataset().equals(first["posterior"].to_dataset())


def test_the_log_likelihood_is_the_same_with_and_without_its_rows(
    fits: tuple[xr.DataTree, xr.DataTree],
) -> None:
    mle, first = fits
    short = fit_laplace(SPEC, table("faithful"), mle=mle, log_likelihood=False, random_seed=1)
    assert "log_likelihood" in first.children
    assert "log_likelihood" not in short.children
    np.testing.assert_allclose(
        short["sample_stats"]["loglik"].to_numpy(),
        first["sample_stats"]["loglik"].to_numpy(),
        rtol=1e-12,
    )


def test_it_is_a_fit_like_any_other(fits: tuple[xr.DataTree, xr.DataTree], tmp_path: Any) -> None:
    mle, fit = fits
    assert fit.attrs["engine"] == "laplace"
    assert Verdict.from_json(fit.attrs["verdict"]).status == "ok"
    assert set(statuses(fit)) == {"pareto-k", "effective-draws", "ambiguous-labels", "modes"}
    comparison = compare(mle, fit)
    assert bool(comparison["agree"].sum() >= 8)
    rhat = array_stats.rhat(fit["posterior"]["weight"].to_numpy()[0, :2000, 0].reshape(2, 1000))
    assert rhat < 1.01
    save(fit, tmp_path / "fit.nc")
    assert load(tmp_path / "fit.nc")["posterior"].to_dataset().equals(fit["posterior"].to_dataset())
    assert json.loads(fit.attrs["timings"]).keys() == {"em", "mode", "draws", "summary"}


def test_it_agrees_with_nuts(fits: tuple[xr.DataTree, xr.DataTree]) -> None:
    mle, fit = fits
    draws = sample_posterior(SPEC, table("faithful"), mle=mle, random_seed=4, progressbar=False)
    for name in ("weight", "mean", "covariance"):
        a, b = (f["posterior"][name].to_numpy() for f in (fit, draws))
        for place in np.ndindex(a.shape[2:]):
            error = array_stats.mcse(b[(..., *place)], method="mean")
            value = a[(..., *place)]
            own = value.std() / np.sqrt(value.size)
            gap = abs(value.mean() - b[(..., *place)].mean())
            assert gap < 4.5 * np.hypot(error, own), (name, place)


@pytest.mark.parametrize("draws", [0, 99, 1.5, True])
def test_draws_are_a_whole_number_of_at_least_a_hundred(draws: Any) -> None:
    with pytest.raises(ArgumentError, match="draws"):
        fit_laplace(SPEC, table("faithful"), draws=draws)


def test_without_a_prior_there_is_no_posterior() -> None:
    with pytest.raises(ArgumentError, match="prior"):
        fit_laplace(GaussianMixture(2, "VVV", prior=None), table("faithful"))


def quadratic(seed: int, p: int = 3) -> Quadratic:
    rng = np.random.default_rng(seed)
    return Quadratic(rng.normal(size=p), rng.normal(size=(p, p)), True, 0.0)


def test_proposals_have_the_density_of_a_mixture_of_ts() -> None:
    parts = [Student(quadratic(seed), 4.0) for seed in range(3)]
    share = np.array([0.7, 0.3, 0.0])
    points, found = proposed(parts, share, 1000, np.random.default_rng(0))
    by_scipy = [
        np.log(a) + multivariate_t(q.point, q.root @ q.root.T, df=4.0).logpdf(points)
        for a, q in zip(share, (part.quadratic for part in parts), strict=True)
        if a
    ]
    np.testing.assert_allclose(found, logsumexp(by_scipy, axis=0), rtol=1e-10)
    # The first 700 are of the first: their squared radii have the medians of an F distribution.
    z = np.linalg.solve(parts[0].quadratic.root, (points[:700] - parts[0].quadratic.point).T)
    inside = (z**2).sum(axis=0) / 3 < f_distribution(3, 4).median()
    assert abs(inside.mean() - 0.5) < 4 * 0.5 / np.sqrt(700)


def test_mean_weights_are_the_integral_whatever_the_shares() -> None:
    """Of two normal distributions, 2 and 3: the balance heuristic is unbiased for any mixture."""
    parts = [Student(Quadratic(np.array([c]), np.eye(1), True, 0.0)) for c in (-1.0, 1.5)]
    for share in ([0.5, 0.5], [0.9, 0.1]):
        points, density = proposed(parts, np.array(share), 40_000, np.random.default_rng(1))
        p = 2.0 * norm.pdf(points[:, 0], -1.0) + 3.0 * norm.pdf(points[:, 0], 1.5)
        weight = p / np.exp(density)
        assert weight.mean() == pytest.approx(5.0, abs=4 * weight.std() / 200)


def test_a_k_that_may_be_too_large_is_a_warning() -> None:
    found = {k: judge_draws(k, 4000, 1e3, None).checks[0].status for k in (0.5, 0.65, 0.75)}
    assert found == {0.5: "ok", 0.65: "warn", 0.75: "fail"}
    assert judge_draws(0.65, 1_000_000, 1e3, None).checks[0].status == "ok"


def test_two_modes_have_the_masses_and_the_evidence_of_a_grid() -> None:
    x, grid, log_p = three_groups()
    assert GROUPS.prior is not None
    assert GROUPS.prior.weight_concentration == 1.0  # no term of it on the grid
    mle = fit_em(GROUPS, x, n_starts=6, random_seed=1)
    # Left alone, it is in one mode, and its weights say that something is missing.
    with pytest.warns(PosteriorWarning, match="Pareto's k"):
        alone = fit_laplace(GROUPS, x, mle=mle, random_seed=1)
    assert statuses(alone)["pareto-k"] == "fail"
    mle["optima"] = dataset(
        {name: np.stack([arrays(theta)[name] for theta in SIDES]) for name in DIMS},
        names_of(mle),
        ("start",),
    )
    with pytest.warns(PosteriorWarning, match="2 modes: mode 0"):
        fit = fit_laplace(GROUPS, x, mle=mle, draws=20_000, random_seed=1)
    assert {name: status for name, status in statuses(fit).items() if status != "ok"} == {
        "modes": "warn"
    }
    modes = fit["modes"].to_dataset()
    mass = np.exp(log_p - log_p.max())
    left = mass[grid["weight"][:, 0] < 0.5].sum() / mass.sum()
    first = int(np.flatnonzero(modes["weight"][:, 0] < 0.5)[0])
    assert float(modes["share"][first]) == pytest.approx(left, abs=0.02)
    assert float(modes["visited"][first, 0]) == pytest.approx(left, abs=0.02)
    # Half of the grid's copies are left out: those with the labels the other way round.
    evidence, error = (float(fit["criteria"][n]) for n in ("log_evidence", "log_evidence_se"))
    assert evidence == pytest.approx(logsumexp(log_p) + np.log(2.0), abs=4 * error + 0.01)
    assert 0.0 < error < 0.05


def test_draws_of_unlike_modes_can_be_taken_apart() -> None:
    """The square's two modes are mirror images: half of the mass each, and columns exchanged."""
    with pytest.warns(FitWarning, match="rival"):
        mle = fit_em(SQUARE, square(), n_starts=6, random_seed=1)
    with pytest.warns(PosteriorWarning, match=r"2 modes.*bg\.mode"):
        fit = fit_laplace(SQUARE, square(), mle=mle, random_seed=1)
    share = fit["modes"]["share"].to_numpy()
    np.testing.assert_allclose(share, 0.5, atol=0.03)
    assert np.ptp(fit["modes"]["log_evidence"].to_numpy()) < 4 * np.hypot(
        *fit["modes"]["log_evidence_error"]
    )
    with pytest.warns(PosteriorWarning, match="unlike modes") as caught:
        summary(fit, allow_ambiguous=True)  # half of the draws are those of the other mode
    assert [w.message.code for w in caught] == ["modes-averaged"]
    one, other = (mode(fit, i) for i in (0, 1))
    sizes = [part["posterior"].sizes["draw"] for part in (one, other)]
    assert sum(sizes) == fit["posterior"].sizes["draw"]
    for part in (one, other):
        assert statuses(part)["pareto-k"] == "ok"
        assert "modes" not in statuses(part)
        summary(part)
    a, b = (np.sort(part["posterior"]["mean"].to_numpy()[0], axis=1) for part in (one, other))
    for f in range(2):
        gap = a[:, :, f].mean(axis=0) - b[:, :, 1 - f].mean(axis=0)
        error = np.hypot(a[:, :, f].std(axis=0), b[:, :, 1 - f].std(axis=0)) / np.sqrt(min(sizes))
        assert (abs(gap) < 4.5 * error).all()
    both = combine_modes(fit, random_seed=1)
    summary(both, allow_ambiguous=True)  # as it was asked for
    assert json.loads(both.attrs["combined"]) == pytest.approx({"0": share[0], "1": share[1]})
