r"""Draws from a posterior with several modes: which are where, each by itself, and together.

Chains that stay in unlike modes are not draws of one distribution until they are weighed.  There
are two sets of weights: the modes' masses (`atlas`), and those of stacking,

.. math:: \max_w \sum_n \log \sum_c w_c \, p(x_n \mid x_{-n}, \text{chain } c)
          + (\lambda - 1) \sum_c \log w_c, \qquad \lambda = 1.001,

which ask what predicts best, not what is most probable.

References
----------
Yao, Vehtari & Gelman (2022), J. Mach. Learn. Res. 23(79), 1-45 (with the prior of the weights,
which shares a mode's weight among the chains in it).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import LinearConstraint, minimize

from bayesgmm import tree
from bayesgmm.arguments import whole_number
from bayesgmm.checks import Check, Verdict, warn
from bayesgmm.em.fit import seed_of
from bayesgmm.errors import ArgumentError, PosteriorWarning
from bayesgmm.evidence.copies import Flags
from bayesgmm.labels import Labels, align, apply
from bayesgmm.moments import Array, Parameters
from bayesgmm.posterior.atlas import Mode, bridged, nearest, shares
from bayesgmm.posterior.mode_verdict import Places, judge_combined, judge_modes
from bayesgmm.posterior.verdict import posterior_verdict
from bayesgmm.posterior.weighting import judge_draws
from bayesgmm.rows import are_weighted
from bayesgmm.target.density import Target

_EVEN = 1e-3  # lambda - 1: how much even weights are preferred
_LIVES = 0.1  # share of a chain's draws in a mode from which it counts among that mode's chains


def stacking(elpd: Array) -> Array:
    """Return the weights of chains, (chain,), by stacking their predictive distributions.

    Parameters
    ----------
    elpd : (chain, n) array
        Log predictive density of each row, given the others, by each chain.
    """
    density = np.exp(elpd - elpd.max(axis=0))
    count = len(density)

    prior = _EVEN / elpd.shape[1]

    def loss(weight: Array) -> float:
        return -float(np.log(weight @ density).mean() + prior * np.log(weight).sum())

    def slope(weight: Array) -> Array:
        return np.asarray(-(density / (weight @ density)).mean(axis=1) - prior / weight)

    found = minimize(
        loss,
        np.full(count, 1.0 / count),
        jac=slope,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * count,
        constraints=LinearConstraint(np.ones((1, count)), 1.0, 1.0),
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    weight = np.maximum(found.x, 0.0)
    return np.asarray(weight / weight.sum())


def add_modes(
    fit: xr.DataTree,
    target: Target,
    modes: Sequence[Mode],
    kinds: Labels | None,
    seed: int,
) -> Check:
    """Put in a fit in which mode each draw is, and what is known of the modes; judge the chains.

    The modes' masses are estimated again with the draws, and their order is by these.
    """
    draws = {name: fit["posterior"][name].to_numpy() for name in tree.DIMS}
    shape = draws["weight"].shape[:2]
    place: Places = np.zeros(shape, dtype=np.intp)
    if len(modes) > 1:
        place = nearest(modes, **draws, kinds=kinds)
    if len(modes) > 1 and kinds is None:
        every = {name: fit["posterior"][name].to_numpy() for name in tree.dims_of(fit)}
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in every.items()}
        weighed = bridged(target, modes, place.ravel(), flat, np.random.default_rng(seed))
        order = np.argsort([-mode.log_evidence for mode in weighed], kind="stable")
        modes, place = [weighed[i] for i in order], np.argsort(order)[place]
    return judge_modes(place, describe_modes(fit, modes, place))


def describe_modes(fit: xr.DataTree, modes: Sequence[Mode], place: Places) -> xr.Dataset:
    """Put in a fit in which mode each draw is, (chain, draw), and return its group ``modes``."""
    fit["sample_stats"] = fit["sample_stats"].to_dataset().assign(mode=(("chain", "draw"), place))
    numbers = np.arange(len(modes))
    visited = (place == numbers[:, None, None]).mean(axis=2)
    each = [tree.arrays(mode.parameters) for mode in modes]
    found = tree.dataset(
        {name: np.stack([one[name] for one in each]) for name in tree.DIMS},
        tree.names_of(fit),
        ("mode",),
    )
    weights = _stacked(fit) if len(set(visited.argmax(axis=0))) > 1 else None
    by_mode = {
        "log_density": [mode.height for mode in modes],
        "log_evidence": [mode.log_evidence for mode in modes],
        "log_evidence_error": [mode.error for mode in modes],
        "pareto_k": [mode.pareto_k for mode in modes],
        "share": shares(modes),
    }
    by_chain = {"switches": (np.diff(place, axis=1) != 0).sum(axis=1)}
    if weights is not None:
        by_chain["stacking_weight"] = weights
        by_mode["stacking"] = visited @ weights
    found = found.assign(visited=(("mode", "chain"), visited))
    found = found.assign({name: ("mode", np.asarray(v)) for name, v in by_mode.items()})
    found = found.assign({name: ("chain", v) for name, v in by_chain.items()})
    found = found.assign_coords(chain=np.arange(len(place)))
    fit["modes"] = xr.DataTree(found)
    return found


def mode(fit: xr.DataTree, number: int = 0) -> xr.DataTree:
    """Return the draws of one mode: of the chains that live in it, what they have drawn there.

    A chain lives in every mode that has a tenth of its draws; weighted draws in all that they are
    in.

    Parameters
    ----------
    fit : DataTree
        By `sample_posterior` or `fit_laplace`.
    number : int
        Of the mode, as in ``fit["modes"]``; 0 is the one with the largest share.

    Returns
    -------
    DataTree
        A fit with as many draws of each of these chains as the one with the fewest has there,
        aligned to the mode, with a verdict of its own.

    Raises
    ------
    ArgumentError
        If ``fit`` knows of no modes, or no chain lives in this one.
    """
    modes, place = _modes_of(fit)
    whole_number("number", number, least=0)
    if number >= modes.sizes["mode"]:
        raise ArgumentError("number", f"is {number}; the modes are 0 to {modes.sizes['mode'] - 1}")
    lives = _lived_in(fit, modes)
    chains = np.flatnonzero(lives[number])
    if not len(chains):
        others = ", ".join(map(str, np.flatnonzero(lives.any(axis=1))))
        raise ArgumentError(
            "number",
            f"is {number}, in which no chain lives (they live in {others}): sample more chains",
        )
    inside = [np.flatnonzero(place[chain] == number) for chain in chains]
    count = min(len(one) for one in inside)
    found = _taken(fit, chains[:, None], np.stack([one[:count] for one in inside]))
    theta = Parameters(*(modes[name].to_numpy()[number] for name in tree.DIMS))
    _align(found, theta)
    if "pivot" in found.children:
        found["pivot"] = tree.dataset(tree.arrays(theta), tree.names_of(fit))
    if are_weighted(fit):
        k = float(modes["pareto_k"][number])
        verdict = judge_draws(k, count, float(count), _margin(found))
    else:
        verdict = _judged(found)
    found.attrs |= {"mode": int(number), "verdict": verdict.to_json()}
    return found


def combine_modes(fit: xr.DataTree, *, random_seed: int | None = None) -> xr.DataTree:
    """Return draws from all modes together, each with the share of the mass that it holds.

    As many in all as can count as independent ones in every mode.  Modes that no chain lives in
    are left out, and the verdict says so.

    Parameters
    ----------
    fit : DataTree
        By `sample_posterior`.
    random_seed : int, optional

    Returns
    -------
    DataTree
        A fit with one chain of independent draws; ``attrs["combined"]`` has the shares.

    Raises
    ------
    ArgumentError
        If ``fit`` knows of no modes.

    Warns
    -----
    PosteriorWarning
        If the shares, or the draws of a mode, should not be relied on: code
        ``posterior-not-good``.
    """
    modes, place = _modes_of(fit)
    rng = np.random.default_rng(seed_of(random_seed))
    lived = np.flatnonzero(_lived_in(fit, modes).any(axis=1))
    share = modes["share"].to_numpy()
    weight = share[lived] / share[lived].sum()
    parts = [mode(fit, int(number)) for number in lived]
    worth = np.array([_worth(part) for part in parts])
    total = int(min(place.size, *np.maximum(worth, 1.0) / weight))
    chosen = []
    counts = np.diff(np.floor(np.append(0.0, np.cumsum(weight)) * total + rng.random()))
    for number, n in zip(lived, counts.astype(int), strict=True):
        every = np.argwhere(place == number)
        chosen.append(rng.choice(every, n, replace=n > len(every)))
    order = rng.permutation(np.concatenate(chosen))
    found = _taken(fit, order[None, :, 0], order[None, :, 1])
    shown = {str(number): float(w) for number, w in zip(lived, weight, strict=True)}
    verdicts = [Verdict.from_json(part.attrs["verdict"]) for part in parts]
    verdict = Verdict((judge_combined(modes, lived, weight, verdicts),))
    found.attrs |= {
        "draws": "independent",
        "combined": json.dumps(shown),
        "verdict": verdict.to_json(),
    }
    warn(verdict, PosteriorWarning)
    return found


def _lived_in(fit: xr.DataTree, modes: xr.Dataset) -> Flags:
    """Say which mode each chain lives in, (mode, chain)."""
    visited = modes["visited"].to_numpy()
    return np.asarray(visited > 0.0 if are_weighted(fit) else visited >= _LIVES)


def _modes_of(fit: Any) -> tuple[xr.Dataset, Places]:
    """Return what a fit knows of its modes, and in which each draw is."""
    found = tree.whole("fit", fit)
    if "modes" not in found.children:
        raise ArgumentError(
            "fit", "knows of no modes: give draws by sample_posterior or fit_laplace"
        )
    return found["modes"].to_dataset(), found["sample_stats"]["mode"].to_numpy()


def _taken(fit: xr.DataTree, chain: Places, draw: Places) -> xr.DataTree:
    """Return a fit with the draws of these indices, and without what does not hold of them."""
    dims = ("chain", "draw")
    chain, draw = np.broadcast_arrays(chain, draw)
    at = {"chain": xr.DataArray(chain, dims=dims), "draw": xr.DataArray(draw, dims=dims)}
    index = {dim: np.arange(size) for dim, size in zip(dims, draw.shape, strict=True)}
    groups = {}
    for name, group in fit.children.items():
        one = group.to_dataset()
        if name in ("modes", "criteria"):
            continue
        if set(dims) <= set(one.dims):
            one = one.drop_vars(dims, errors="ignore").isel(at).assign_coords(index)
            one = one.transpose(*dims, ...)
        groups[f"/{name}"] = one
    found = xr.DataTree.from_dict(groups)
    found.attrs |= fit.attrs
    return found


def _align(fit: xr.DataTree, theta: Parameters) -> None:
    """Give the draws of a fit the labels of a mode, unless labels are known."""
    fit.attrs.pop("alignment", None)
    if "label_probability" in fit["constant_data"] or fit.attrs.get("fixed"):
        return
    raw = {name: fit["posterior_raw"][name].to_numpy() for name in tree.DIMS}
    shape = raw["weight"].shape[:2]
    flat = {name: v.reshape(-1, *v.shape[2:]) for name, v in raw.items()}
    labels = align(flat["weight"], flat["mean"], flat["covariance"], theta)
    posterior = fit["posterior"].to_dataset()
    for name, value in flat.items():
        aligned = apply(labels.permutation, value).reshape(raw[name].shape)
        posterior[name] = (posterior[name].dims, aligned)
    fit["posterior"] = posterior
    both = ("chain", "draw")
    fit["labels"] = (
        fit["labels"]
        .to_dataset()
        .assign(
            permutation=((*both, "cluster"), labels.permutation.reshape(*shape, -1)),
            margin=(both, labels.margin.reshape(shape)),
        )
    )


def _margin(fit: xr.DataTree) -> Array | None:
    """Return how sure the labels are; None of one component."""
    return fit["labels"]["margin"].to_numpy() if fit["posterior"].sizes["cluster"] > 1 else None


def _judged(fit: xr.DataTree) -> Verdict:
    still = None
    if fit.attrs.get("fixed"):
        draws = {name: fit["posterior"][name].to_numpy() for name in tree.DIMS}
        still = {name: np.ptp(value, axis=(0, 1)) == 0.0 for name, value in draws.items()}
    return posterior_verdict(
        *(fit[group].to_dataset() for group in ("posterior", "label_free", "sample_stats")),
        margin=_margin(fit),
        family=tree.spec_of(fit).covariance,
        max_treedepth=None,
        still=still,
    )


def _stacked(fit: xr.DataTree) -> Array | None:
    """Return the chains' weights by stacking; None where there is nothing to compute them from."""
    if "log_likelihood" not in fit.children:
        return None
    rows, psis_loo = [], import_module("arviz_stats.loo").loo
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        for chain in range(fit["posterior"].sizes["chain"]):
            alone = xr.DataTree.from_dict(
                {"/log_likelihood": fit["log_likelihood"].to_dataset().isel(chain=[chain])}
            )
            try:
                loo = psis_loo(alone, var_name="x", pointwise=True, reff=1.0)
            except (IndexError, ValueError):  # too few draws, or all alike
                return None
            rows.append(loo.elpd_i.to_numpy())
    return stacking(np.array(rows))


def _worth(fit: xr.DataTree) -> float:
    """Return how many independent draws the draws of one mode are worth."""
    values = [
        v.transpose("chain", "draw", ...).to_numpy().reshape(v.sizes["chain"], v.sizes["draw"], -1)
        for v in fit["label_free"].to_dataset().data_vars.values()
    ]
    quantity = np.moveaxis(np.concatenate(values, axis=2), 2, 0)
    array_stats = import_module("arviz_stats.base").array_stats
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.nanmin(array_stats.ess(quantity, method="bulk")), nan=1.0))
