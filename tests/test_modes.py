"""Posteriors with several modes: planted ones, whose masses are known by symmetry or by a grid."""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import models
import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from scipy.optimize import minimize_scalar
from scipy.stats import lognorm, norm

import bayesgmm as bg
from bayesgmm.checks import Verdict
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.labels import SAME, distance, distances
from bayesgmm.moments import Parameters
from bayesgmm.posterior.atlas import atlas, bridged, nearest, shares
from bayesgmm.posterior.bayes import modes_of
from bayesgmm.posterior.draws import Task, begin
from bayesgmm.posterior.mode_verdict import judge_modes
from bayesgmm.posterior.modes import stacking
from bayesgmm.posterior.nuts import run_nuts, seeds_of, start_around
from bayesgmm.target.curvature import quadratic_at
from bayesgmm.target.whitening import Whitened, callbacks
from bayesgmm.tree import DIMS, point
from validation import optima


def quiet(function: Any, *arguments: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        return function(*arguments, **settings)


def task_of(spec: bg.GaussianMixture, x: np.ndarray, mle: xr.DataTree) -> Task:
    return begin(spec, x, mle=mle, fixed=None, random_seed=1, missing="error")


def at(group: xr.Dataset, i: int) -> Parameters:
    return Parameters(*(group[name].to_numpy()[i] for name in DIMS))


def square() -> np.ndarray:
    """Four groups in a square, whose columns are alike: left and right, or up and down."""
    x = np.random.default_rng(3).normal(size=(5, 2)) * 0.6
    x = np.concatenate([x, -x])
    x = np.concatenate([x + corner for corner in ([3, 3], [3, -3], [-3, 3], [-3, -3])])
    return np.concatenate([x, x[:, ::-1]])


SQUARE = bg.GaussianMixture(2, "EEI")


@pytest.fixture(scope="module")
def two() -> xr.DataTree:
    return quiet(bg.fit_em, SQUARE, square(), n_starts=6, random_seed=1)


@pytest.fixture(scope="module")
def post(two: xr.DataTree) -> xr.DataTree:
    settings = {"mle": two, "draws": 400, "tune": 200, "random_seed": 1, "progressbar": False}
    with pytest.warns(PosteriorWarning, match="2 modes: mode 0") as caught:
        fit = bg.sample_posterior(SQUARE, square(), **settings)
    assert [w.message.code for w in caught] == ["posterior-not-good"]
    return fit


def check(fit: xr.DataTree, code: str) -> Any:
    return {c.code: c for c in Verdict.from_json(fit.attrs["verdict"]).checks}[code]


GROUPS = bg.GaussianMixture(
    2,
    "E",
    prior=bg.SeparationPrior(
        mean=5.0, mean_sd=5.0, scale=bg.LogNormal(0.2, 0.1), correlation=1.0, units="data"
    ),
)


SIDES = [
    Parameters(np.array([w, 1 - w]), np.array(m)[:, None], np.full((2, 1, 1), 2.0))
    for w, m in ((0.34, (0.0, 7.6)), (0.66, (2.5, 10.2)))
]


def three_groups() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Three groups on a line for two components: the middle one belongs left, or right.

    The rows, parameters on a grid, and log prior times likelihood there, times the grid's volume.
    """
    x = np.concatenate([c + np.array([-0.6, -0.2, 0.2, 0.6]) for c in (0.0, 5.0, 10.2)])
    weight, mean = np.linspace(0.02, 0.98, 25), np.linspace(-3.5, 13.5, 52)
    log_sd = np.linspace(-0.2, 0.6, 13)
    w, low, high, s = np.meshgrid(weight, mean, mean, np.exp(log_sd), indexing="ij")
    w, low, high, s = (a[low < high] for a in (w, low, high, s))
    log_p = norm.logpdf(low, 5.0, 5.0) + norm.logpdf(high, 5.0, 5.0)
    log_p += lognorm.logpdf(s, 0.1, scale=np.exp(0.2)) + np.log(s)  # the grid is in log s
    for value in x:
        log_p += np.log(w * norm.pdf(value, low, s) + (1 - w) * norm.pdf(value, high, s))
    log_p += np.log([np.diff(a)[0] for a in (weight, mean, mean, log_sd)]).sum()
    seen = log_p > log_p.max() + np.log(1e-5)
    grid = {
        "weight": np.column_stack([w, 1 - w])[seen],
        "mean": np.column_stack([low, high])[seen][..., None],
        "covariance": np.column_stack([s, s])[seen][..., None, None] ** 2,
    }
    return x[:, None], grid, log_p[seen]


class TestOptima:
    def test_are_distinct_and_where_starts_have_ended(self, two: xr.DataTree) -> None:
        optima, starts = two["optima"].to_dataset(), two["starts"].to_dataset()
        every = [point(two), *(at(optima, i) for i in range(optima.sizes["start"]))]
        for i, one in enumerate(every):
            assert all(distance(one, other) > SAME for other in every[:i])
        ended = starts.sel(start=optima["start"])
        np.testing.assert_array_equal(ended["objective"], optima["objective"])
        np.testing.assert_array_equal(ended["reason"], optima["reason"])
        usable = optima["objective"][ended["usable"].to_numpy()]
        assert (np.diff(usable) <= 0).all()
        # The square's other solution is among them; what a later fit starts from ends there.
        rival = two["rivals"].to_dataset().isel(start=0)
        assert min(distance(at(optima, i), at(rival.expand_dims("i"), 0)) for i in range(2)) < SAME

    def test_distances_are_those_of_pairs(self) -> None:
        rng = np.random.default_rng(5)
        draws = rng.dirichlet([2, 2, 2], 20), rng.normal(size=(20, 3, 2)), np.empty((20, 3, 2, 2))
        root = rng.normal(size=(20, 3, 2, 2)) + 2 * np.eye(2)
        draws[2][:] = root @ np.swapaxes(root, 2, 3)
        each = [Parameters(*(a[i] for a in draws)) for i in range(20)]
        found, order = distances(*draws, each[0])
        np.testing.assert_allclose(found, [distance(one, each[0]) for one in each], atol=1e-14)
        moved = [a[3][order[3]] for a in draws]
        again, same = distances(*(a[None] for a in moved), each[0])
        assert again[0] == pytest.approx(found[3])
        np.testing.assert_array_equal(same[0], [0, 1, 2])
        broken = draws[2].copy()
        broken[4] = 0.0
        assert distances(*draws[:2], broken, each[0])[0][4] == 1.0


class TestAtlas:
    def test_modes_that_are_mirror_images_have_the_same_mass(self, post: xr.DataTree) -> None:
        modes = post["modes"].to_dataset()
        assert modes.sizes["mode"] == 2
        np.testing.assert_allclose(modes["share"], 0.5, atol=0.05)
        assert float(modes["share"].sum()) == pytest.approx(1.0)
        assert np.ptp(modes["log_density"].to_numpy()) < 1e-6
        assert (modes["log_evidence_error"] < 0.2).all()
        first, second = (np.sort(at(modes, i).mean, axis=0) for i in range(2))
        np.testing.assert_allclose(first, second[:, ::-1], atol=1e-4)

    def test_shares_are_those_of_an_integral_on_a_grid(self) -> None:
        x, grid, log_p = three_groups()
        mle = quiet(bg.fit_em, GROUPS, x, n_starts=6, random_seed=1)
        task = task_of(GROUPS, x, mle)
        modes = atlas(task.target, task.pivot, SIDES, None, np.random.default_rng(1))
        assert len(modes) == 2
        first = [m.parameters.weight[0] < 0.5 for m in modes].index(True)
        mass = np.exp(log_p)
        left = mass[nearest(modes, **grid) == first].sum() / mass.sum()
        assert 0.1 < left < 0.9
        assert shares(modes)[first] == pytest.approx(left, abs=0.05)

        # Chains that pass between the modes are in each as often; so say bridges made of them.
        places = [mode.quadratic for mode in modes]
        run = run_nuts(
            start_around(places, task.target, 4, 1),
            draws=1000,
            tune=300,
            chains=4,
            cores=2,
            seed=1,
            target_accept=0.9,
            progress_bar=False,
        )
        points = run["posterior"]["point"].to_numpy()
        draws = task.target.parameters(points.reshape(-1, points.shape[-1]))
        place = nearest(modes, **draws)
        weighed = bridged(task.target, modes, place, draws, np.random.default_rng(2))
        assert all(mode.error < 0.1 for mode in weighed)
        inside = (place == first).reshape(4, 1000).astype(float)
        error = array_stats.mcse(inside, method="mean")
        assert inside.mean() == pytest.approx(left, abs=4 * error)
        assert shares(weighed)[first] == pytest.approx(left, abs=0.02)

    def test_one_mode_is_one_mode(self) -> None:
        fit = models.posterior()
        modes = fit["modes"].to_dataset()
        assert modes.sizes["mode"] == 1
        assert modes["share"].item() == 1.0
        assert (fit["sample_stats"]["mode"] == 0).all()
        assert check(fit, "modes").status == "ok"
        assert "stacking" not in modes


class TestStarts:
    def test_the_function_that_is_sampled_is_the_density_in_other_coordinates(
        self, two: xr.DataTree
    ) -> None:
        task = task_of(SQUARE, square(), two)
        rng, p = np.random.default_rng(2), task.target.size
        place = quadratic_at(task.target, task.target.point(task.pivot), task.pivot)
        white = Whitened(task.target, place.point, place.root)
        z = rng.normal(size=p)
        x = place.point + place.root @ z
        value, slope = task.target(x)
        found, gradient, kept = np.empty(1), np.empty(p), np.empty(p)
        density, keep = callbacks()
        address = ctypes.c_void_p
        size = ctypes.c_uint64
        log_density = ctypes.CFUNCTYPE(ctypes.c_int64, size, *[address] * 4)(density.address)
        copy = ctypes.CFUNCTYPE(ctypes.c_int64, size, size, *[address] * 3)(keep.address)
        own = white.pointers.ctypes.data
        at_z, into, at_value, at_point = (a.ctypes.data for a in (z, gradient, found, kept))
        assert log_density(p, at_z, into, at_value, own) == 0
        assert copy(p, p, at_z, at_point, own) == 0
        np.testing.assert_allclose(kept, x, rtol=1e-13, atol=1e-13)
        assert found[0] == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(gradient, place.root.T @ slope, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(white.inverse(x), z, rtol=1e-9)

    def test_seeds_are_those_that_the_sampler_uses(self, two: xr.DataTree) -> None:
        task = task_of(SQUARE, square(), two)
        place = quadratic_at(task.target, task.target.point(task.pivot), task.pivot)
        model = start_around([place], task.target)
        seeds = seeds_of(model, 3, 7)
        assert len(set(seeds)) == 3
        asked = []
        inner = model.initial_point_func
        object.__setattr__(model, "initial_point_func", lambda s: asked.append(s) or inner(s))
        run_nuts(model, draws=4, tune=10, chains=3, cores=2, seed=7, progress_bar=False)
        assert sorted(asked) == sorted(seeds)

    def test_chains_start_from_the_modes_in_turn(self, post: xr.DataTree) -> None:
        visited = post["modes"]["visited"].to_numpy()
        first = int(visited[:, 0].argmax())  # of two that are as large
        np.testing.assert_array_equal(visited[first], [1, 0, 1, 0])
        np.testing.assert_array_equal(visited[1 - first], [0, 1, 0, 1])


class TestVerdict:
    def test_chains_apart_fail_with_what_is_where(self, post: xr.DataTree) -> None:
        found = check(post, "modes")
        assert found.status == "fail"
        height = post["modes"]["log_density"].to_numpy()[0]
        assert f"mode 0 (log-density {height:.1f}, an estimated 0.5" in found.evidence
        assert "has 0.5 of the draws, chains 0, 2 most of the time" in found.evidence
        assert "has 0.5 of the draws, chains 1, 3 most of the time" in found.evidence
        assert "bg.combine_modes(post)" in found.advice
        assert "see the check modes" in check(post, "rhat").advice

    def test_a_mean_of_unlike_modes_is_not_silent(self, post: xr.DataTree) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bg.summary(post)
        assert "draws in unlike modes" in str(caught[0].message)
        codes = [w.message.code for w in caught]
        # Seen from one solution, the labels of the other are anyone's guess.
        assert codes == ["modes-averaged", "ambiguous-labels"]
        assert caught[0].filename == __file__
        assert len(bg.summary(bg.mode(post, 1))) == 8  # warnings are errors

    def test_what_it_depends_on(self) -> None:
        modes = xr.Dataset(
            {
                "share": ("mode", [0.7, 0.295, 0.005]),
                "log_density": ("mode", [-1.0, -2.0, -9.0]),
            }
        )

        def judged(place: np.ndarray) -> Any:
            visited = (place == np.arange(3)[:, None, None]).mean(axis=2)
            return judge_modes(place, modes.assign(visited=(("mode", "chain"), visited)))

        mixed = np.random.default_rng(1).choice(2, p=[0.7, 0.3], size=(4, 500))
        assert judged(mixed).status == "ok"
        apart = mixed.copy()
        apart[3] = 1
        assert judged(apart).status == "fail"
        missed = judged(np.zeros((4, 500), dtype=int))
        assert missed.status == "warn"
        assert "mode 1 (log-density -2.0, an estimated 0.29 of the mass) has 0 of the draws" in (
            missed.evidence
        )
        modes["share"] = ("mode", [0.993, 0.006, 0.001])
        assert judged(np.zeros((4, 500), dtype=int)).status == "ok"


class TestStacking:
    def test_weights_are_the_maximum(self) -> None:
        """Of two chains: by a search along the line."""
        rng = np.random.default_rng(4)
        elpd = rng.normal(size=(2, 300)) + np.array([[0.3], [0.0]])
        weight = stacking(elpd)
        assert weight.sum() == pytest.approx(1.0, abs=1e-12)
        best = minimize_scalar(
            lambda w: -np.log(w * np.exp(elpd[0]) + (1 - w) * np.exp(elpd[1])).mean(),
            bounds=(0, 1),
            method="bounded",
            options={"xatol": 1e-9},
        ).x
        assert weight[0] == pytest.approx(best, abs=1e-3)

    def test_the_chain_with_the_right_density_gets_all(self) -> None:
        x = np.random.default_rng(5).normal(size=2000)
        elpd = np.array([norm.logpdf(x, m, s) for m, s in ((0, 1), (0.4, 1), (0, 1.5), (0, 0.7))])
        weight = stacking(elpd)
        assert weight.argmax() == 0
        assert weight[0] > 0.85

    def test_chains_in_one_mode_share_its_weight(self, post: xr.DataTree) -> None:
        modes = post["modes"].to_dataset()
        np.testing.assert_allclose(modes["stacking_weight"].sum(), 1.0)
        np.testing.assert_allclose(modes["stacking"], 0.5, atol=0.1)
        same = stacking(np.zeros((4, 50)))
        np.testing.assert_allclose(same, 0.25, atol=1e-6)


class TestParts:
    @pytest.mark.parametrize("number", [0, 1])
    def test_one_mode_has_its_chains_and_a_verdict(self, post: xr.DataTree, number: int) -> None:
        one = bg.mode(post, number)
        assert dict(one["posterior"].sizes) | {"chain": 2, "draw": 400} == dict(
            one["posterior"].sizes
        )
        chains = np.flatnonzero(post["modes"]["visited"].to_numpy()[number])
        for name in DIMS:
            np.testing.assert_array_equal(
                one["posterior_raw"][name], post["posterior_raw"][name].isel(chain=chains)
            )
        np.testing.assert_array_equal(
            one["log_likelihood"]["x"], post["log_likelihood"]["x"].isel(chain=chains)
        )
        found = Verdict.from_json(one.attrs["verdict"])
        # Two chains of 400 draws, of which R-hat and errors may be just above where they are small.
        assert {"few-chains"} <= {c.code for c in found.troubles} <= {"few-chains", "mcse", "rhat"}
        assert found.status == "warn"
        theta = at(post["modes"].to_dataset(), number)
        mean = one["posterior"]["mean"].mean(("chain", "draw"))
        np.testing.assert_allclose(mean, theta.mean, atol=0.5)

    def test_together_they_have_the_shares_of_the_modes(self, post: xr.DataTree) -> None:
        every = bg.combine_modes(post, random_seed=2)
        draws = [every["posterior"][name].to_numpy() for name in DIMS]
        mode = every["sample_stats"]["mode"].to_numpy()
        count = mode.size
        assert 300 < count <= 1600
        assert float((mode == 0).mean()) == pytest.approx(
            float(post["modes"]["share"][0]), abs=1.5 / count
        )
        assert check(every, "modes").status == "ok"
        assert every.attrs["draws"] == "independent"
        assert (bg.summary(every, allow_ambiguous=True)["r_hat"] == 1).all()
        again = bg.combine_modes(post, random_seed=2)
        np.testing.assert_array_equal(again["posterior"]["mean"], draws[1])

    def test_what_is_kept_comes_back(self, post: xr.DataTree, tmp_path: Any) -> None:
        for fit in (post, bg.mode(post, 1), bg.combine_modes(post, random_seed=1)):
            again = bg.load(bg.save(fit, tmp_path / "fit.nc"))
            assert set(again.children) == set(fit.children)
            xr.testing.assert_identical(again["labels"].to_dataset(), fit["labels"].to_dataset())
        one = bg.load(bg.save(post, tmp_path / "fit.nc"))
        xr.testing.assert_identical(one["modes"].to_dataset(), post["modes"].to_dataset())
        xr.testing.assert_identical(
            bg.mode(one, 0)["posterior"].to_dataset(), bg.mode(post, 0)["posterior"].to_dataset()
        )

    def test_refusals(self, post: xr.DataTree, two: xr.DataTree) -> None:
        with pytest.raises(ArgumentError, match="the modes are 0 to 1"):
            bg.mode(post, 2)
        with pytest.raises(ArgumentError, match="number"):
            bg.mode(post, -1)
        with pytest.raises(ArgumentError, match="knows of no modes"):
            bg.mode(two)
        alone = post.copy()
        alone["modes"] = (
            alone["modes"]
            .to_dataset()
            .assign(visited=(("mode", "chain"), np.array([[1.0] * 4, [0.0] * 4])))
        )
        with pytest.raises(ArgumentError, match="in which no chain lives"):
            bg.mode(alone, 1)
        alone["sample_stats"] = (
            alone["sample_stats"]
            .to_dataset()
            .assign(mode=(("chain", "draw"), np.zeros((4, 400), dtype=int)))
        )
        with pytest.warns(PosteriorWarning, match="mode 1, with an estimated"):
            bg.combine_modes(alone, random_seed=1)

    def test_other_labels_change_no_mode(self, post: xr.DataTree) -> None:
        other = quiet(bg.align, post, pivot=at(post["modes"].to_dataset(), 1))
        np.testing.assert_array_equal(
            bg.mode(other, 1)["posterior"]["mean"], bg.mode(post, 1)["posterior"]["mean"]
        )

    def test_nearest_does_not_see_labels(self, post: xr.DataTree, two: xr.DataTree) -> None:
        task = task_of(SQUARE, square(), two)
        modes = atlas(task.target, task.pivot, task.optima, None, np.random.default_rng(1))
        draws = {name: post["posterior_raw"][name].to_numpy() for name in DIMS}
        swapped = {name: value[:, :, ::-1] for name, value in draws.items()}
        np.testing.assert_array_equal(nearest(modes, **draws), nearest(modes, **swapped))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "k"),
    [
        *(("iris", family, 3) for family in ("VVV", "EEE", "VEV", "VVE")),
        *(("galaxies", "V", 3), ("galaxies", "V", 4), ("acidity", "V", 2), ("acidity", "V", 3)),
        *(("faithful", "VVV", 2), ("faithful", "VVV", 3), ("geyser_mass", "VVI", 2)),
        *(("crabs", "EEE", 4), ("crabs", "VVV", 4), ("banknote", "VVV", 2), ("trees", "VVV", 2)),
        *(("wreath", "VVI", 3), ("chevron", "VVV", 2), ("EuroUnemployment", "VVV", 3)),
        *(("baudry_ex4_1", "VVV", 3), ("baudry_ex4_3", "VVV", 3)),
    ],
)
def test_what_em_finds_only_within_nested_families_leads_to_no_other_mode(
    name: str, family: str, k: int
) -> None:
    """So that a posterior's own search leaves it out, which takes most of the time.

    But for baudry_ex4_3, where it led to one more, of an estimated 1.4 % beside 76 and 17 %, and
    where estimates before sampling are no closer than a tenth.
    """
    least, near = (0.1, 0.1) if name == "baudry_ex4_3" else (0.01, 0.02)
    spec, x = bg.GaussianMixture(k, family), optima.load(name)
    thorough = quiet(bg.fit_em, spec, x, standard_errors=False, random_seed=1)
    found = []
    for mle in (None, thorough):
        task = begin(spec, x, mle=mle, fixed=None, random_seed=1, missing="error")
        modes = modes_of(task)
        each = zip(modes, shares(modes), strict=True)
        found.append(sorted((m.height, share) for m, share in each if share > least))
    light, whole = map(np.array, found)
    assert light.shape == whole.shape
    np.testing.assert_allclose(light[:, 0], whole[:, 0], rtol=1e-6)
    np.testing.assert_allclose(light[:, 1], whole[:, 1], atol=near)
