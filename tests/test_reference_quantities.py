"""What only a posterior gives, against Stan's long runs and exact enumeration (tests/golden).

Our draws have Monte Carlo errors, from ArviZ; the reference's responsibilities and pairs are from
2000 thinned draws, whose errors follow from the standard deviation over ours.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import arviz as az
import models
import numpy as np
import pytest
import xarray as xr

import bayesgmm as bg
from bayesgmm.errors import PosteriorWarning
from bayesgmm.labels import apply
from bayesgmm.tree import DIMS

STAN = ("faithful_vvv_k2", "iris_eee_k3", "galaxies_v_k3")
THINNED = 2000
ROUNDED = 2e-6  # the reference has six digits
RARE = 1e-3  # galaxies: a mode of a few in ten thousand is reached by chance


@cache
def draws_of(case: str) -> xr.DataTree:
    """Our draws with the reference's labels: components in the order of their means."""
    many = {"galaxies_v_k3": 5000, "darwin_k2": 5000}
    fit = models.reference_draws(case, many.get(case, 1000)).copy()
    group = fit["posterior_raw"].to_dataset()
    chains, draws, k = group["weight"].shape
    feature = models.reference(case).get("constants", {}).get("oc", 1) - 1
    order = group["mean"].isel(feature=feature).to_numpy().reshape(-1, k).argsort(axis=1)
    for name in DIMS:
        flat = group[name].to_numpy().reshape(chains * draws, *group[name].shape[2:])
        group[name] = (group[name].dims, apply(order, flat).reshape(group[name].shape))
    fit["posterior"] = xr.DataTree(group)
    return fit


@cache
def kept(case: str) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # Darwin's labels are ambiguous
        return bg.responsibilities(draws_of(case), keep_draws=True)


def off(
    ours: Any, draws: np.ndarray, reference: Any, error: Any, least: float = ROUNDED
) -> np.ndarray:
    """Distances of our mean from the reference, in Monte Carlo errors of both together."""
    flat = draws.reshape(*draws.shape[:2], -1)
    own = az.mcse(xr.Dataset({"v": (("chain", "draw", "i"), flat)}))["v"].to_numpy()
    own = np.nan_to_num(own).reshape(draws.shape[2:])  # NaN where nothing varies
    return np.abs(np.asarray(ours) - reference) / (np.hypot(own, error) + least)


@pytest.mark.parametrize("case", STAN)
def test_responsibilities_are_stan_s(case: str) -> None:
    found = kept(case)
    r = found["responsibility"].to_numpy()
    expected = np.array(models.reference(case)["mean_responsibilities"]).T
    error = r.std(axis=(0, 1)) / np.sqrt(THINNED)
    least = RARE if case == "galaxies_v_k3" else ROUNDED
    assert off(found["mean"], r, expected, error, least).max() < 4


@pytest.mark.parametrize("case", STAN)
def test_co_clustering_is_stan_s(case: str) -> None:
    record = models.reference(case)["coclustering"]
    i, j = np.array(record["pairs_1based"]).T - 1
    r = kept(case)["responsibility"].to_numpy()
    together = (r[:, :, i] * r[:, :, j]).sum(axis=-1)
    found = bg.coclustering(draws_of(case)).to_numpy()[i, j]
    error = together.std(axis=(0, 1)) / np.sqrt(THINNED)
    assert off(found, together, record["prob"], error).max() < 4


@pytest.mark.parametrize("case", STAN)
def test_the_predictive_density_is_stan_s(case: str) -> None:
    """In one column on a grid; of more, the mean by `score`."""
    record = models.reference(case)["predictive"]
    fit, points = draws_of(case), np.array(record["points"])
    if points.ndim == 1:
        found = bg.predictive_density(fit, points)
        # Several modes: the reference's second method has the larger error.
        second = models.reference(case)["second_method"]["predictive"]
        error = np.array(second["se"])
        ours, sd = found["mean"].to_numpy(), found["sd"].to_numpy()
        np.testing.assert_allclose(sd, record["density_sd"], rtol=0.15, atol=2e-4)
    elif points.shape[1] == 2:
        names = list(models.reference(case)["columns"])
        each = [
            bg.predictive_density(fit, {name: [x] for name, x in zip(names, row, strict=True)})
            for row in points
        ]
        ours = np.array([d["mean"].item() for d in each])
        sd = np.array([d["sd"].item() for d in each])
        np.testing.assert_allclose(sd, record["density_sd"], rtol=0.1)
        error = np.array(record["mcse"])
    else:
        ours, error = np.exp(bg.score(fit, points).to_numpy()), np.array(record["mcse"])
        sd = np.array(record["density_sd"])
    effective = fit["posterior"].sizes["chain"] * fit["posterior"].sizes["draw"] / 4.0
    z = np.abs(ours - record["density_mean"]) / np.hypot(sd / np.sqrt(effective), error)
    assert z.max() < 4


class TestDarwin:
    """Two components and fifteen rows: all 2^15 allocations are summed, without any error."""

    CASE = "darwin_k2"

    def test_co_clustering(self) -> None:
        expected = np.array(models.reference(self.CASE)["coclustering"])
        r = kept(self.CASE)["responsibility"].to_numpy()
        together = np.einsum("cdik,cdjk->cdij", r, r)
        found = bg.coclustering(draws_of(self.CASE)).to_numpy()
        apart = ~np.eye(15, dtype=bool)
        assert off(found, together, expected, 0.0)[apart].max() < 4

    def test_occupied_components(self) -> None:
        found = bg.partition(draws_of(self.CASE), random_seed=1).p_occupied
        r = kept(self.CASE)["responsibility"].to_numpy()
        # That all rows are in one component, given the parameters; and one draw of them each.
        single = r.prod(axis=2).sum(axis=2)
        counted = np.sqrt(single.mean() / single.size)
        expected = models.reference(self.CASE)["p_Kplus"]
        assert off(found[1], single, expected[0], counted) < 4
        assert found.sum() == pytest.approx(1.0)

    def test_predictive_density(self) -> None:
        record = models.reference(self.CASE)
        fit, at = draws_of(self.CASE), np.array(record["grid"])
        found = bg.predictive_density(fit, at)
        p = fit["posterior"].to_dataset()
        w, m, v = (p[name].to_numpy() for name in DIMS)
        z = (at - m[..., :, 0, None]) / np.sqrt(v[..., 0])
        each = (w[..., None] * np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi * v[..., 0])).sum(axis=2)
        np.testing.assert_allclose(found["mean"], each.mean(axis=(0, 1)), rtol=1e-11)
        expected = np.array(record["predictive_density"])
        assert (off(found["mean"], each, expected, 0.0) * (1.0 + ROUNDED / expected)).max() < 4.5

    def test_new_data_have_the_predictive_mean(self) -> None:
        record = models.reference(self.CASE)
        new = bg.posterior_predictive(draws_of(self.CASE), random_seed=1)
        x = new["posterior_predictive"]["darwin"].to_numpy()
        assert off(x.mean(), x.mean(axis=2), record["predictive_mean"], 0.0) < 4
        # Fourth moments are of heavy tails: the sd is compared roughly.
        assert x.std() == pytest.approx(record["predictive_sd"], rel=0.1)

    def test_the_partition_is_the_best_by_the_exact_matrix(self) -> None:
        """Binder's loss needs the matrix of pairs alone, which is known exactly."""
        exact = np.array(models.reference(self.CASE)["coclustering"])
        found = bg.partition(draws_of(self.CASE), loss="binder", random_seed=1).labels.to_numpy()
        bits = (np.arange(1 << 14)[:, None] >> np.arange(14)) & 1
        every = np.column_stack([np.zeros(len(bits), dtype=int), bits])  # all into two clusters
        same = every[:, :, None] == every[:, None, :]
        loss = np.abs(same - exact).mean(axis=(1, 2))
        own = np.abs((found[:, None] == found) - exact).mean()
        assert own <= loss.min() + 0.002
