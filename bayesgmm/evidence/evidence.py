r"""The log marginal likelihood of a specification: its evidence.

.. math:: \log p(x) = \log \int p(x \mid \theta) \, p(\theta) \, d\theta .

A posterior of K components is K! equal copies, and a sampler need not have seen more than one.  So
the integral is taken over the region of one copy, the pivot's (`copies`), where the aligned draws
live, by bridge sampling (`bridge`), and multiplied by the number of copies: exactly, whether or not
labels switch.  Proposals outside of the region have density 0.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from bayesgmm.arguments import whole_number
from bayesgmm.checks import Check, Limit, Verdict, warn
from bayesgmm.em.fit import seed_of
from bayesgmm.errors import ArgumentError, NotYetSupportedError, NumericalError, PosteriorWarning
from bayesgmm.evidence.bridge import Bridge, Normal, bridge, effective
from bayesgmm.evidence.copies import Region
from bayesgmm.evidence.normaliser import is_normalised, log_normaliser
from bayesgmm.evidence.source import posterior_of, source_of
from bayesgmm.moments import Array
from bayesgmm.rows import draws_of

ERROR = Limit(0.1, 0.5)  # standard error of the log evidence
AGREEMENT = Limit(3.0, 5.0)  # difference of two estimates, in its standard errors
WEIGHTS = Limit(0.3, 0.7)  # Pareto's k of draws that were resampled by weights
_FEWEST = 3  # draws of each half, per coordinate


def log_marginal_likelihood(
    post: xr.DataTree,
    *,
    threads: int | None = None,
    random_seed: int | None = None,
) -> xr.Dataset:
    r"""Estimate the log marginal likelihood by bridge sampling.

    Draws are mapped to the region of the pivot's labels (and axes), where a normal proposal is
    fitted to one half of them and the bridge is built with the other half, and the other way round;
    the two estimates are averaged.  The density is complete: every normalising constant of prior
    and likelihood is in it, so that values for different specifications of the same data compare.

    Parameters
    ----------
    post : DataTree
        Draws by `sample_posterior`, or `fit_laplace`, with the labels of one pivot.
    threads : int, optional
        At most this many; default all cores. The result does not depend on it.
    random_seed : int, optional
        Of the proposals.

    Returns
    -------
    xarray.Dataset
        ``log_evidence``; ``standard_error`` of it; ``relative_mse`` of the evidence itself;
        ``log_evidence_half`` (half) of the two halves; ``n_iter``; ``inside``, the share of
        proposals in the region; ``log_copies``, of which it is one; ``log_prior_normaliser``. In
        attrs the ``verdict`` (JSON): ``draws``, ``bridge``, ``halves``, ``evidence-error``, and for
        `fit_laplace` ``weights``.

    Raises
    ------
    ArgumentError, NotYetSupportedError
        If ``post`` is no posterior (a bootstrap, a fit by EM), or has too few draws; if means or
        covariances are fixed.
    NumericalError
        If there is no normal distribution with the spread of the draws.

    Warns
    -----
    PosteriorWarning
        With code ``evidence-not-good``, if the estimate should not be trusted: the draws' own
        verdict fails, the two halves disagree, or the error is large.

    Notes
    -----
    It is the evidence of what the draws have seen, besides copies of it: where a posterior has
    modes that are not copies of each other, and the chains are in one of them, the others are
    missed. The draws' verdict (R-hat of label-free quantities) is where that shows.
    """
    if threads is not None:
        whole_number("threads", threads, least=1)
    posterior_of("post", post, "log_prior")
    seed, source = seed_of(random_seed), source_of("post", post)
    target = source.target
    if not is_normalised(target.space):
        raise NotYetSupportedError(
            "post",
            "has fixed means or covariances: the prior of the others given them has no known "
            "normalising constant yet (fixed weights are fine)",
        )
    draws = draws_of(post)
    chains, kept = draws["weight"].shape[:2]
    _refuse_few("post", chains * kept, target.size)
    region = Region(target, source.pivot, source.kinds)
    points = region.points({n: v.reshape(-1, *v.shape[2:]) for n, v in draws.items()})
    value = target.values(points, threads)
    points, value = points.reshape(chains, kept, -1), value.reshape(chains, kept)
    half = kept // 2
    parts = (slice(0, half), slice(half, kept))
    rng = np.random.default_rng(seed)
    found, inside = [], []
    for fitted, evaluated in (parts, parts[::-1]):
        one, share = _bridged(
            region, points[:, fitted], points[:, evaluated], value[:, evaluated], rng, threads
        )
        found.append(one)
        inside.append(share)
    constant = log_normaliser(source.prior, target.space.chart, seed)
    log_ratio = np.array([one.log_ratio for one in found])
    mse = np.array([one.relative_mse for one in found])
    # The halves' draws are independent, and so are their proposals.
    relative_mse = float(mse.sum() / 4.0) + constant.error**2
    log_halves = log_ratio + region.log_copies - constant.value
    error = math.sqrt(relative_mse)
    verdict = Verdict(
        (
            _of_draws(post),
            *_of_weights(post),
            _of_bridge(found),
            _of_halves(float(log_ratio[0] - log_ratio[1]), float(mse.sum())),
            _of_error(error),
        )
    )
    result = xr.Dataset(
        {
            "log_evidence": float(log_halves.mean()),
            "standard_error": error,
            "relative_mse": relative_mse,
            "log_evidence_half": ("half", log_halves),
            "n_iter": max(one.n_iter for one in found),
            "inside": float(np.mean(inside)),
            "log_copies": region.log_copies,
            "log_prior_normaliser": constant.value,
        },
        attrs={"verdict": verdict.to_json(), "random_seed": seed, "spec": source.spec.to_json()},
    )
    warn(verdict, PosteriorWarning, ("evidence", "estimate of the evidence"))
    return result


def _bridged(
    region: Region,
    fitted: Array,
    points: Array,
    value: Array,
    rng: np.random.Generator,
    threads: int | None,
) -> tuple[Bridge, float]:
    """Return the integral over the region, and the share of proposals that were in it.

    By a normal distribution with the spread of ``fitted`` (chain, draw, size), as many proposals as
    there are ``points``, and the log-density at these, ``value`` (chain, draw).
    """
    size = points.shape[-1]
    try:
        proposal = Normal.of(fitted.reshape(-1, size))
    except np.linalg.LinAlgError:
        raise NumericalError(
            "there is no normal distribution with the spread of the draws: some of their "
            "coordinates do not vary, or depend on others. Sample longer"
        ) from None
    drawn = proposal.draw(value.size, rng)
    inside = region.holds(drawn)
    log_ratio = np.full(len(drawn), -np.inf)
    density = region.target.values(drawn[inside], threads)
    density[~np.isfinite(density)] = -math.inf  # beyond what floats can tell
    log_ratio[inside] = density - proposal.log_density(drawn[inside])
    flat = points.reshape(-1, size)
    of_draws = value - proposal.log_density(flat).reshape(value.shape)
    worth = float(np.median([effective(points[..., i]) for i in range(size)]))
    return bridge(of_draws, log_ratio, min(worth, float(value.size))), float(inside.mean())


def _refuse_few(argument: str, draws: int, size: int) -> None:
    least = 2 * _FEWEST * size
    if draws < least:
        raise ArgumentError(
            argument, f"has {draws} draws, too few for {size} coordinates: at least {least}"
        )


def _of_draws(post: xr.DataTree) -> Check:
    """The draws' own verdict, but for their labels, which do no harm here."""
    checks = Verdict.from_json(str(post.attrs["verdict"])).checks
    rest = Verdict(tuple(check for check in checks if check.code != "ambiguous-labels"))
    found = ", ".join(f"{check.code} ({check.status})" for check in rest.troubles)
    if rest.status == "ok":
        return Check("draws", "ok", "the draws' own checks passed")
    return Check(
        "draws",
        rest.status,
        f"the draws' own checks did not pass: {found}",
        "What the draws have missed is missing in the evidence. Sample again as their verdict "
        "advises.",
    )


def _of_weights(post: xr.DataTree) -> list[Check]:
    """Draws that were resampled by their weights hold no tail that the proposal has missed."""
    if "criteria" not in post.children or "pareto_k" not in post["criteria"]:
        return []
    k = float(post["criteria"]["pareto_k"])
    status, evidence = WEIGHTS.grade(k), f"draws are resampled by weights with Pareto's k {k:.2f}"
    advice = (
        "The tails of the posterior are hardly among such draws, which makes the evidence too "
        "small, by more than its error. Use sample_posterior, or more draws of fit_laplace and its "
        "own log_evidence in criteria."
    )
    return [Check("weights", status, evidence, "" if status == "ok" else advice)]


def _of_bridge(found: list[Bridge]) -> Check:
    steps = max(one.n_iter for one in found)
    if all(one.converged for one in found):
        return Check("bridge", "ok", f"the bridge's fixed point was found in {steps} steps")
    return Check(
        "bridge",
        "fail",
        f"the bridge's fixed point was not found in {steps} steps",
        "The normal proposal and the posterior hardly overlap. Sample longer; if that does not "
        "help, the posterior is too unlike a normal distribution.",
    )


def _of_halves(gap: float, mse: float) -> Check:
    z = abs(gap) / math.sqrt(mse) if mse > 0.0 and math.isfinite(gap) else math.inf
    status = AGREEMENT.grade(z)
    evidence = f"the two halves of the draws differ by {gap:.3f}, {z:.1f} standard errors"
    advice = (
        "The draws have not explored the posterior, or the error is larger than it says. Sample "
        "longer (draws, tune)."
    )
    return Check("halves", status, evidence, "" if status == "ok" else advice)


def _of_error(error: float) -> Check:
    status = ERROR.grade(error)
    evidence = f"the standard error of the log evidence is {error:.3f}"
    advice = "Sample longer (draws): the error falls with the square root of their number."
    return Check("evidence-error", status, evidence, "" if status == "ok" else advice)
