r"""Data that a fit would give: what posterior predictive checks compare the real ones with.

For every draw as many new rows as there are real ones,

.. math:: \tilde x^{(s)}_1, \dots, \tilde x^{(s)}_n \sim \sum_k \pi^{(s)}_k
          N(\mu^{(s)}_k, \Sigma^{(s)}_k),

each with a component of its own.  ArviZ does the rest.  Its predictive checks take variables with
one number a row, so that every column is a variable here.

References
----------
Gelman, Meng & Stern (1996), Statistica Sinica 6, 733-807.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayesgmm.allocation.drawn import MOST, NUMBERS, counted, with_draws
from bayesgmm.arguments import whole_number
from bayesgmm.errors import ArgumentError, ColumnNameError, NotYetSupportedError
from bayesgmm.moments import Array
from bayesgmm.prediction.assignment import new_rows
from bayesgmm.prediction.evaluation import mixtures_of
from bayesgmm.tree import names_of, whole

_RESERVED = ("chain", "draw", "obs")


def posterior_predictive(
    fit: xr.DataTree, *, draws: int | None = None, random_seed: int | None = None
) -> xr.DataTree:
    """Return new data from every draw beside the real ones, for ArviZ's predictive checks.

    ``az.plot_ppc_dist``, ``plot_ppc_pit``, ``plot_ppc_tstat`` and ``plot_loo_pit`` take the result
    as it is, and show a column in each panel.

    Parameters
    ----------
    fit : DataTree
        With draws: of `sample_posterior`, `fit_laplace` or `bootstrap`; or a `marginal` of it.
    draws : int, optional
        Take only this many, evenly spaced in every chain. Default: all.
    random_seed : int, optional
        The same seed gives the same data.

    Returns
    -------
    DataTree
        No fit, but what checks need of it. ``posterior_predictive`` has a variable (chain, draw,
        obs) for every column, in its units; ``observed_data`` the same variables, (obs,);
        ``posterior`` the parameters of the draws. If the fit has pointwise log-likelihoods,
        ``log_likelihood`` has that of the row for every column: leave-one-out checks leave out
        rows. In names "/" is replaced by "|", since trees use it for paths.

    Raises
    ------
    ArgumentError
        If an argument is wrong, the fit is a point estimate or has no data, there would be more
        than 2^27 numbers, or a noise component of which no more than its volume is known.
    ColumnNameError
        If a column has the name of a dimension: chain, draw or obs.
    NotYetSupportedError
        If rows have weights other than 0 (which are left out) and 1, values are missing, or labels
        are known: new data are not like those.
    """
    with_draws(fit)
    whole("fit", fit, "observed_data", "constant_data")
    if random_seed is not None:
        random_seed = whole_number("random_seed", random_seed, least=0)
    rows = counted(fit)
    observed = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature").isel(obs=rows)
    _refuse(fit, observed)
    names = variables(names_of(fit))
    x = observed.to_numpy()
    posterior = fit["posterior"].to_dataset()
    chains, length = posterior.sizes["chain"], posterior.sizes["draw"]
    kept = np.arange(length)
    if draws is not None:
        wanted = math.ceil(whole_number("draws", draws, least=1) / chains)
        kept = np.unique(np.linspace(0, length - 1, min(wanted, length)).round().astype(np.intp))
    size = chains * len(kept) * x.size
    if size > MOST:
        raise ArgumentError(
            "draws",
            f"would make {size:.2g} numbers, {size * 8 / 2**30:.1f} GiB; the most is {MOST:.2g}. "
            f"Take draws={max(1, MOST // x.size)} or fewer",
        )
    which = (np.arange(chains)[:, None] * length + kept).ravel()
    new = _rows(fit, which, x.shape, np.random.default_rng(random_seed))
    new = new.reshape(len(names), chains, len(kept), len(x))
    some = posterior.assign_coords(draw=posterior["draw"]).isel(draw=kept)
    index = {dim: some[dim] for dim in ("chain", "draw")}
    obs = {"obs": observed["obs"]}
    dims = ("chain", "draw", "obs")
    groups = {
        "posterior": some,
        "posterior_predictive": xr.Dataset(
            {name: (dims, values) for name, values in zip(names, new, strict=True)}, index | obs
        ),
        "observed_data": xr.Dataset(
            {name: ("obs", values) for name, values in zip(names, x.T, strict=True)}, obs
        ),
    }
    if "log_likelihood" in fit.children:
        own = fit["log_likelihood"].to_dataset()["x"].transpose(*dims).isel(draw=kept, obs=rows)
        groups["log_likelihood"] = xr.Dataset(dict.fromkeys(names, own))
    return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def _rows(
    fit: xr.DataTree, which: NDArray[np.intp], shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    """Return new data of this shape from some draws, the columns first: (d, draws, n)."""
    n, d = shape
    mixture = mixtures_of(fit)
    found = np.empty((d, len(which), n))
    step = max(1, NUMBERS // (n * d))
    for begin in range(0, len(which), step):
        part = slice(begin, begin + step)
        rows, _ = new_rows(fit, mixture, np.repeat(which[part], n), rng)
        found[:, part] = rows.T.reshape(d, -1, n)
    return found


def variables(names: tuple[str, ...]) -> list[str]:
    """Return the columns as names of variables."""
    found = [name.replace("/", "|") for name in names]
    taken = [name for name in found if name in _RESERVED or found.count(name) > 1]
    if taken:
        raise ColumnNameError(
            f"column {taken[0]!r} cannot be a variable of its own beside "
            f"{', '.join(_RESERVED)} and the other columns; fit the data with another name"
        )
    return found


def _refuse(fit: xr.DataTree, x: xr.DataArray) -> None:
    """Refuse data that rows drawn from the mixture are not like."""
    constant = fit["constant_data"].to_dataset()
    reasons = {
        "missing values": bool(np.isnan(x).any()),
        "known labels": "label_probability" in constant,
    }
    for what, is_so in reasons.items():
        if is_so:
            raise NotYetSupportedError(
                "fit", f"new data like those it was fitted to are not drawn yet with {what}"
            )
