"""Whether posterior draws can be relied on: checks that say what, how bad, and what to do.

Draws are judged on their free parameters after alignment (`labels`) and on quantities that no
labelling can change (`labelfree`): chains that sit in different partitions of the data differ in
the latter.  What cannot be computed fails: no diagnostic that is NaN passes.

References
----------
Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Bayesian Analysis 16, 667-718 (rank-normalised
split R-hat < 1.01, bulk and tail effective sample sizes of 100 per chain).
Betancourt (2016), arXiv:1604.00695 (E-BFMI).  Betancourt (2017), arXiv:1701.02434 (divergences).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bayesgmm.checks import Check, Limit, Verdict
from bayesgmm.covariance import Array, Covariance
from bayesgmm.information.fixed import Mask
from bayesgmm.labels import ambiguous_labels
from bayesgmm.noise import NOISE

CHAINS = 4  # fewer cannot be called ok
RHAT = Limit(np.nextafter(1.01, 1.0), 1.05)  # below 1.01
ESS = Limit(100.0, 50.0, is_floor=True)  # per chain
MCSE = Limit(np.nextafter(0.05, 0.0), 0.1)  # of the posterior's sd; below 0.05
DIVERGENT = Limit(0.0, 0.001)  # share of draws
TREEDEPTH = Limit(0.05, 1.0)  # share of draws; costs time, not validity
BFMI = Limit(0.3, 0.2, is_floor=True)


def posterior_verdict(
    aligned: xr.Dataset,
    label_free: xr.Dataset,
    sample_stats: xr.Dataset,
    *,
    margin: xr.DataArray | Array | None,
    family: Covariance,
    max_treedepth: int | None,
    still: Mapping[str, Mask] | None = None,
    modes: Check | None = None,
) -> Verdict:
    """Judge posterior draws.

    Parameters
    ----------
    aligned : Dataset
        ``weight, mean, covariance`` with dims chain, draw, cluster, feature, feature_bis, after
        alignment. Only the family's free parameters are looked at.
    label_free : Dataset
        Any variables with dims chain, draw, ...: those of the module `labelfree`, ``loglik``.
    sample_stats : Dataset
        ``diverging``, ``energy``, ``maxdepth_reached`` or ``depth``, ``loglik``; what is missing
        is a warning, since it cannot be checked.
    margin : (chain, draw) array or None
        Of the labels; None if there is only one component.
    family : Covariance
    max_treedepth : int or None
        Where ``maxdepth_reached`` is not recorded, the limit that ``depth`` was under.
    still : mapping, optional
        Which elements of weight, mean and covariance are fixed (`Fixed.still`): neither they nor
        what is made of them alone is looked at.
    modes : Check, optional
        What was found by `modes.judge_modes`.

    Returns
    -------
    Verdict
        With checks ``non-finite-draws, constant-parameter, few-chains, rhat, ess-bulk, ess-tail,
        mcse, divergences, treedepth, bfmi, ambiguous-labels, modes``; of fewer than four draws, the
        check ``too-few-draws`` alone.
    """
    others = label_free
    if "loglik" in sample_stats and "loglik" not in label_free:
        others = others.assign(loglik=sample_stats["loglik"])
    judged = _stack(_free_parameters(aligned, family, still) + _scalars(others, still))
    _, chains, draws = judged.value.shape
    if chains == 0 or draws < 4:
        advice = (
            "Nothing can be said of so few. Sample longer; the default is draws=1000, chains=4."
        )
        evidence = f"{chains} chains of {draws} draws"
        return Verdict((Check("too-few-draws", "fail", evidence, advice),))
    checks = [_non_finite(judged), _constant(judged), _few_chains(chains)]
    checks += _convergence(judged, modes is not None and modes.status == "fail")
    checks += [
        _divergences(sample_stats),
        _treedepth(sample_stats, max_treedepth),
        _energy(sample_stats),
    ]
    if margin is not None:
        checks.append(ambiguous_labels(np.asarray(margin)))
    if modes is not None:
        checks.append(modes)
    return Verdict(tuple(checks))


class _Scalar(NamedTuple):
    name: str
    value: Array  # (chain, draw)


class _Judged(NamedTuple):
    names: list[str]
    value: Array  # (p, chain, draw)


def _stack(scalars: list[_Scalar]) -> _Judged:
    return _Judged([s.name for s in scalars], np.stack([s.value for s in scalars]).astype(float))


def _free_parameters(
    aligned: xr.Dataset, family: Covariance, still: Mapping[str, Mask] | None
) -> list[_Scalar]:
    """Return the parameters that are free in the family, named as in every table."""
    weight = aligned["weight"].transpose("chain", "draw", "cluster").values
    mean = aligned["mean"].transpose("chain", "draw", "cluster", "feature").values
    covariance = aligned["covariance"].transpose(
        "chain", "draw", "cluster", "feature", "feature_bis"
    )
    features = [str(name) for name in aligned["feature"].values]
    k, d = mean.shape[2:]

    def moves(name: str, *place: int) -> bool:
        return still is None or not still[name][place]

    weights = [j for j in range(k) if k > 1 and moves("weight", j)]
    found = [_Scalar(f"weight[{j}]", weight[..., j]) for j in weights]
    if NOISE in aligned:
        found.append(_Scalar(NOISE, aligned[NOISE].transpose("chain", "draw").values))
    for j in range(k):
        found += [
            _Scalar(f"mean[{j}, {features[f]}]", mean[..., j, f])
            for f in range(d)
            if moves("mean", j, f)
        ]
    is_spherical = family.shape == "I" and d > 1
    for j in range(1 if family.is_common else k):
        if not moves("covariance", j, 0, 0):
            continue
        for f in range(1 if is_spherical else d):
            for g in range(f if family.is_diagonal else 0, f + 1):
                parts = [] if family.is_common else [str(j)]
                parts += [] if is_spherical else [features[g], features[f]]
                name = f"covariance[{', '.join(parts)}]" if parts else "covariance"
                found.append(_Scalar(name, covariance.values[..., j, f, g]))
    return found


def _moving(still: Mapping[str, Mask]) -> dict[str, Any]:
    """Return which of the quantities of `label_free` what is free moves, by feature or alone."""
    weight, mean, covariance = (still[name] for name in ("weight", "mean", "covariance"))
    weights = len(weight) > 1 and not weight.all()
    centre = weights | ~mean.all(axis=0)
    spread = centre | ~np.diagonal(covariance, axis1=1, axis2=2).all(axis=0)
    return {
        "mixture_mean": centre,
        "mixture_sd": spread,
        "between": spread,
        "log_volume": weights or not covariance.all(),
        "weight_entropy": weights,
        "weight_max": weights,
    }


def _scalars(group: xr.Dataset, still: Mapping[str, Mask] | None) -> list[_Scalar]:
    """Return every scalar of variables with dims chain, draw, ..., without what is fixed."""
    found, moving = [], {} if still is None else _moving(still)
    for key, variable in group.data_vars.items():
        values = variable.transpose("chain", "draw", ...)
        labels = [[str(label) for label in values[dim].values] for dim in values.dims[2:]]
        for place in np.ndindex(*values.shape[2:]):
            if not np.asarray(moving.get(str(key), np.ones(values.shape[2:], bool)))[place]:
                continue
            parts = [labels[axis][i] for axis, i in enumerate(place)]
            name = f"{key}[{', '.join(parts)}]" if parts else str(key)
            found.append(_Scalar(name, values.values[(..., *place)]))
    return found


def _non_finite(judged: _Judged) -> Check:
    bad = ~np.isfinite(judged.value)
    if not bad.any():
        return Check("non-finite-draws", "ok", "every draw is finite")
    p, chain, draw = (int(i) for i in np.argwhere(bad)[0])
    affected = int(bad.any(axis=0).sum())
    return Check(
        "non-finite-draws",
        "fail",
        f"{affected} draws hold NaN or infinite values (first: {judged.names[p]} in chain {chain}, "
        f"draw {draw})",
        "The sampler broke down or was interrupted; no summary of these draws is valid. Check the "
        "prior and the data's units, and sample again.",
    )


def _constant(judged: _Judged) -> Check:
    frozen = (judged.value == judged.value[:, :, :1]).all(axis=2)
    if not frozen.any():
        return Check("constant-parameter", "ok", "every quantity varies in every chain")
    p, chain = (int(i) for i in np.argwhere(frozen)[0])
    stuck = np.flatnonzero(frozen.any(axis=0))
    return Check(
        "constant-parameter",
        "fail",
        f"{judged.names[p]} never changes in chain {chain} "
        f"({int(frozen.any(axis=1).sum())} of {len(judged.names)} quantities, chains "
        f"{', '.join(map(str, stuck))})",
        "A chain that does not move says nothing about the posterior. Sample again with other "
        "starting values, a longer tune, or a larger target_accept.",
    )


def _few_chains(chains: int) -> Check:
    evidence = f"{chains} chain" + ("" if chains == 1 else "s")
    if chains >= CHAINS:
        return Check("few-chains", "ok", evidence)
    return Check(
        "few-chains",
        "warn",
        f"{evidence}, fewer than {CHAINS}",
        "Chains that missed a part of the posterior are found only by comparing several: sample "
        f"with chains={CHAINS} or more.",
    )


def _convergence(judged: _Judged, modes_differ: bool) -> list[Check]:
    """Check R-hat, effective sample sizes and Monte Carlo errors."""
    names, value = judged
    chains = value.shape[1]
    rhat, bulk, tail, mcse = diagnostics(value)
    longer = "Sample longer (draws, tune)"
    mixing = f"{longer}; if label-free quantities are affected too, the chains sit in different "
    mixing += "solutions: use fewer components or a stronger prior."
    if modes_differ:  # longer chains would stay where they are
        mixing = "They are in different modes: see the check modes for what to do."
    return [
        _worst(
            *("rhat", "R-hat", "1.01", names, rhat, RHAT),
            f"The chains have not mixed, so that their average is not the posterior's. {mixing}",
        ),
        _worst(
            *("ess-bulk", "bulk ESS per chain", "100", names, bulk / chains, ESS),
            f"Means and medians rest on too few independent draws. {longer}.",
        ),
        _worst(
            *("ess-tail", "tail ESS per chain", "100", names, tail / chains, ESS),
            f"Interval ends rest on too few independent draws. {longer}.",
        ),
        _worst(
            *("mcse", "Monte Carlo error / sd", "0.05", names, mcse, MCSE),
            f"Posterior means are not accurate to a twentieth of their sd. {longer}.",
        ),
    ]


def diagnostics(value: Array) -> tuple[Array, Array, Array, Array]:
    """Return R-hat, bulk and tail ESS, and Monte Carlo error / sd of quantities, (p,) each.

    Parameters
    ----------
    value : (p, chain, draw) array
        At least four draws. What is constant or not finite has NaN.
    """
    _, chains, draws = value.shape
    rhat, bulk, tail, mcse = np.full((4, len(value)), np.nan)
    usable = np.isfinite(value).all(axis=(1, 2))
    # In units of its own range: ArviZ takes a range below 1e-15 for a constant.
    moved = value[usable] - value[usable][:, :1, :1]
    reach = np.abs(moved).max(axis=(1, 2), keepdims=True)
    usable[usable] = reach[:, 0, 0] > 0
    unit = moved[reach[:, 0, 0] > 0] / reach[reach[:, 0, 0] > 0]
    if len(unit):
        statistics = _arviz()
        # One chain has no R-hat; its halves do, which is what split R-hat means.
        half = draws // 2
        split = unit if chains > 1 else unit[:, 0, : 2 * half].reshape(len(unit), 2, half)
        with np.errstate(all="ignore"):  # what cannot be computed is NaN, and fails
            rhat[usable] = statistics.rhat(split)
            bulk[usable] = statistics.ess(unit, method="bulk")
            tail[usable] = statistics.ess(unit, method="tail", prob=(0.05, 0.95))
            error = statistics.mcse(unit, method="mean")
            mcse[usable] = error / unit.std(axis=(1, 2), ddof=1)
    return rhat, bulk, tail, mcse


def _worst(
    code: str, what: str, bound: str, names: list[str], value: Array, limit: Limit, advice: str
) -> Check:
    rank = np.where(np.isnan(value), np.inf, -value if limit.is_floor else value)
    p = int(np.argmax(rank))
    status = limit.grade(float(value[p]))
    if np.isnan(value[p]):
        evidence = f"{what} of {names[p]} cannot be computed"
    else:
        side = "smallest" if limit.is_floor else "largest"
        shown = f"{value[p]:.0f}" if limit is ESS else f"{value[p]:.3f}"
        evidence = f"{side} {what} is {shown} ({names[p]})"
    beyond = sum(limit.grade(float(v)) != "ok" for v in value)
    if status == "ok":
        return Check(code, status, evidence)
    relation = "not at least" if limit.is_floor else "not below"
    count = f"{relation} {bound} for {beyond} of {len(names)} quantities"
    return Check(code, status, f"{evidence}; {count}", advice)


def _arviz() -> Any:
    """Import ArviZ's functions on arrays: late, since EM need not wait three seconds for them."""
    return import_module("arviz_stats.base").array_stats


def _unchecked(code: str, name: str) -> Check:
    advice = f"Sample with a sampler that records {name}, or check this by other means."
    return Check(code, "warn", f"the sampler recorded no {name}", advice)


def _share(
    code: str,
    hit: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    what: str,
    limit: Limit,
    advice: str,
) -> Check:
    share = float(hit.mean())
    status = limit.grade(share)
    evidence = f"{int(hit.sum())} of {hit.size} draws ({share:.2%}) {what}"
    return Check(code, status, evidence, "" if status == "ok" else advice)


def _divergences(stats: xr.Dataset) -> Check:
    if "diverging" not in stats:
        return _unchecked("divergences", "diverging")
    return _share(
        "divergences",
        stats["diverging"].values.astype(bool),
        "diverged",
        DIVERGENT,
        "The sampler could not follow the posterior where it bends sharply, and may have missed "
        "that part. Raise target_accept (0.95, 0.99); if they persist, use fewer components or a "
        "prior that keeps components from collapsing.",
    )


def _treedepth(stats: xr.Dataset, max_treedepth: int | None) -> Check:
    if "maxdepth_reached" in stats:
        hit = stats["maxdepth_reached"].values.astype(bool)
    elif "depth" in stats and max_treedepth is not None:
        hit = stats["depth"].values >= max_treedepth
    else:
        return _unchecked("treedepth", "tree depth")
    return _share(
        "treedepth",
        hit,
        "hit the maximum tree depth",
        TREEDEPTH,
        "Trajectories are cut short, which costs effective draws: the posterior is narrow in some "
        "direction. Tune longer (tune=2000), or use fewer components.",
    )


def _energy(stats: xr.Dataset) -> Check:
    if "energy" not in stats:
        return _unchecked("bfmi", "energy")
    energy = stats["energy"].transpose("chain", "draw").values.astype(float)
    with np.errstate(all="ignore"):  # constant or non-finite energy is NaN, and fails
        bfmi = np.asarray(_arviz().bfmi(energy))
    chain = int(np.argmax(np.where(np.isnan(bfmi), np.inf, -bfmi)))
    status = BFMI.grade(float(bfmi[chain]))
    advice = (
        "The sampler explores the tails of the posterior slowly. Tune longer; if it persists, use "
        "fewer components or a stronger prior."
    )
    evidence = f"smallest E-BFMI is {bfmi[chain]:.2f} (chain {chain}; at least {BFMI.ok} is good)"
    return Check("bfmi", status, evidence, "" if status == "ok" else advice)
