r"""A prior by itself: random parameters, and the data that they would give.

.. math:: \pi, \mu, \Sigma \sim p, \qquad \tilde x_1, \dots, \tilde x_n \sim \sum_k \pi_k
          N(\mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from bayesgmm import tree
from bayesgmm.arguments import whole_number
from bayesgmm.data.observations import Data, read_for
from bayesgmm.em.fit import checked_region, seed_of
from bayesgmm.em.result import plain_index
from bayesgmm.errors import ArgumentError
from bayesgmm.mixture import GaussianMixture, refuse_other
from bayesgmm.moments import Array
from bayesgmm.noise import NOISE
from bayesgmm.prediction.assignment import new_rows
from bayesgmm.prediction.evaluation import mixtures_of
from bayesgmm.predictive.replicated import variables
from bayesgmm.priors.predictive import draw_covariance
from bayesgmm.resolved import PseudoData, Separation, resolve

_MOST = 1 << 27  # numbers that are made at once


def prior_predictive(
    spec: GaussianMixture,
    X: Any,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    draws: int = 500,
    random_seed: int | None = None,
) -> xr.DataTree:
    """Draw parameters from the prior, and from each of them as many rows as there are.

    Parameters
    ----------
    spec : GaussianMixture
        With a prior.
    X : table (n, d)
        What the prior's defaults are scaled by.
    sample_weight : (n,) array, optional
    columns : sequence of str, optional
    draws : int
    random_seed : int, optional
        Same seed, same draws.

    Returns
    -------
    DataTree
        ``prior`` with the variables of a fit's ``posterior``, one chain, components as they come;
        ``prior_predictive`` with a variable (chain, draw, obs) for each column, and
        ``observed_data`` beside it, so that ArviZ's ``plot_ppc_dist(tree,
        group="prior_predictive")`` takes it. ``fit["prior"] = tree["prior"]`` is what
        ``plot_prior_posterior`` asks of a fit.

    Raises
    ------
    ArgumentError, DataError
        For bad input; for a specification with ``prior=None``; for more than 2^27 numbers.
    """
    refuse_other(spec)
    whole_number("draws", draws, least=1)
    seed = seed_of(random_seed)
    data = read_for(spec, X, sample_weight=sample_weight, columns=columns)
    size = draws * data.n * data.d
    if size > _MOST:
        raise ArgumentError(
            "draws",
            f"would make {size:.2g} numbers, {size * 8 / 2**30:.1f} GiB; the most is {_MOST:.2g}",
        )
    rng = np.random.default_rng(seed)
    drawn = drawn_tree(spec, data, draws, rng)
    which = np.repeat(np.arange(draws), data.n)
    x, _ = new_rows(drawn, mixtures_of(drawn), which, rng)
    names = variables(data.names)
    index = {"chain": [0], "draw": np.arange(draws)}
    obs = {"obs": plain_index(data.index)}
    new = x.reshape(1, draws, data.n, data.d)
    found = xr.DataTree.from_dict(
        {
            "prior": drawn["posterior"].to_dataset(),
            "prior_predictive": xr.Dataset(
                {n: (("chain", "draw", "obs"), new[..., j]) for j, n in enumerate(names)},
                index | obs,
            ),
            "observed_data": xr.Dataset(
                {n: ("obs", data.values[:, j]) for j, n in enumerate(names)}, obs
            ),
        }
    )
    found.attrs = {"spec": spec.to_json(), "random_seed": seed, "fingerprint": data.fingerprint}
    return found


def drawn_tree(
    spec: GaussianMixture, data: Data, draws: int, rng: np.random.Generator
) -> xr.DataTree:
    """Return parameters from the prior in the group of a fit that holds draws, in one chain."""
    region = checked_region(spec, data, None)
    found = draw_parameters(spec, resolve(spec, data), draws, rng)
    posterior = tree.dataset({n: v[None] for n, v in found.items()}, data.names, ("chain", "draw"))
    whole = xr.DataTree.from_dict({"posterior": posterior})
    whole.attrs = {"spec": spec.to_json(), "noise": region.to_json() if region else ""}
    return whole


def draw_parameters(
    spec: GaussianMixture, prior: PseudoData | Separation, draws: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Return weights (s, k), means (s, k, d), covariances (s, k, d, d), and noise's weight (s,)."""
    k, d = spec.n_components, len(prior.mean)
    weight = rng.dirichlet(np.full(k + spec.has_noise, prior.concentration), size=draws)
    covariance = np.stack([draw_covariance(prior, spec.covariance, k, rng) for _ in range(draws)])
    z = rng.standard_normal((draws, k, d))
    if isinstance(prior, Separation):
        mean = prior.mean + prior.mean_sd * z
    else:
        factor = np.linalg.cholesky(covariance) / np.sqrt(prior.shrinkage)
        mean = prior.mean + np.einsum("...ij,...j->...i", factor, z)
    found = {"weight": weight[:, :k], "mean": mean, "covariance": covariance}
    return found | ({NOISE: weight[:, k]} if spec.has_noise else {})
