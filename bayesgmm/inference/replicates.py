r"""Replicates of a data set, and the same work on each: what the bootstrap and its tests share.

A replicate is the data with other weights, or rows drawn from a mixture, in the units of the data
(`Data`), so that nothing is anchored again.  With frequencies :math:`w_n` of total N:

* nonparametric: :math:`w^* \sim \mathrm{Multinomial}(N, w / N)` (Efron 1979);
* weighted: :math:`w^* \sim N \, \mathrm{Dirichlet}(w)` (Rubin 1981; Newton & Raftery 1994), which
  for a row given w times is what w rows given once get together;
* jackknife: one observation less, :math:`w_n - 1`;
* parametric: N rows from a mixture.

References
----------
Efron (1979), Ann. Statist. 7, 1-26.  Rubin (1981), Ann. Statist. 9, 130-134.  Newton & Raftery
(1994), J. R. Statist. Soc. B 56, 3-48.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm.data.mixing import refuse_unresolved
from bayesgmm.data.observations import Data, read_for
from bayesgmm.data.streamed import of_rows
from bayesgmm.em.loop import UNUSABLE, Run, run
from bayesgmm.em.start import Start
from bayesgmm.errors import ArgumentError, DataWarning
from bayesgmm.groups import with_noise_last
from bayesgmm.information.fixed import Fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import UNWEIGHTED, Array, Parameters
from bayesgmm.noise import Region
from bayesgmm.prior import ConjugatePrior
from bayesgmm.progress import is_wanted
from bayesgmm.resolved import PseudoData, pseudo_data
from bayesgmm.streams import is_on_disk
from bayesgmm.tree import names_of, point, spec_of


def data_of(fit: Any) -> Data:
    """Return what a fit was made from, as `fit_em` read it.

    Parameters
    ----------
    fit : DataTree
        By `fit_em`, also one that was saved and loaded: it holds its data.

    Raises
    ------
    ArgumentError
        If ``fit`` is no fit by EM, or its covariances hold no digits of nearly dependent columns.
    """
    if not isinstance(fit, xr.DataTree) or fit.attrs.get("engine") != "em":
        raise ArgumentError("fit", "must be a fit by fit_em")
    if not {"observed_data", "constant_data", "criteria"} <= set(fit.children):
        raise ArgumentError(
            "fit", "must be a whole fit by fit_em, not a part of one or its replicates"
        )
    refuse_unresolved(point(fit).covariance)
    observed = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature")
    known = fit["constant_data"].to_dataset()
    values, names = observed.to_numpy(), pd.Index(names_of(fit), dtype=object)
    # A DataFrame would copy what is in a file into memory.
    is_file = is_on_disk(values)
    table: Any = of_rows(values, names) if is_file else pd.DataFrame(values, columns=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said when the fit was made
        return read_for(
            spec_of(fit),
            table,
            sample_weight=known["sample_weight"].to_numpy(),
            missing="marginalise",
            labels=known["label_probability"].to_numpy() if "label_probability" in known else None,
        )


def prior_of(spec: GaussianMixture, data: Data) -> PseudoData:
    """Return the conjugate prior that a MAP fit was made with, in anchored units."""
    assert isinstance(spec.prior, ConjugatePrior)  # `fit_em` refuses others
    mean = data.center + data.scale * data.mean
    covariance = data.covariance * np.outer(data.scale, data.scale)
    found = pseudo_data(
        spec.prior, spec.covariance, spec.n_components, mean=mean, covariance=covariance
    )
    return found.anchored(data.center, data.scale)


# Replicates


def _reweighted(data: Data, weight: Array) -> Data:
    """Return the rows whose new weight is above 0, with it.

    Of rows in a file all: those of weight 0 count as absent, so that only a pass takes longer, and
    no row is copied into memory.
    """
    if is_on_disk(data.x):
        return data.with_weight(weight)
    kept = np.flatnonzero(weight > 0)
    return data.rows(kept).with_weight(weight[kept])


def frequency(data: Data) -> Array:
    """Return the weights as an array, ones where there are none."""
    return data.weight if data.weight.size else np.ones(data.n)


def resampled(data: Data, rng: np.random.Generator) -> Data:
    """Draw as many observations as there are, with replacement."""
    weight = frequency(data)
    total = float(weight.sum())
    size = max(round(total), 1)
    count = rng.multinomial(size, weight / total).astype(np.float64)
    return _reweighted(data, count * (total / size))


def reweighted(data: Data, rng: np.random.Generator) -> Data:
    """Draw Dirichlet weights, which sum to the number of observations."""
    weight = frequency(data)
    drawn = np.zeros(data.n)
    present = weight > 0
    drawn[present] = rng.gamma(weight[present])
    return _reweighted(data, drawn * (weight.sum() / drawn.sum()))


def without(data: Data, row: int) -> Data:
    """Leave out one observation: the row, or one of as many as its weight says."""
    weight = frequency(data).copy()
    weight[row] -= 1.0
    return _reweighted(data, weight)


def simulated(
    data: Data, rng: np.random.Generator, parameters: Parameters, region: Region | None = None
) -> Data:
    """Draw as many rows as there are observations from a mixture in anchored units.

    A noise component is in a region that is given in units of the data.

    Cells are missing as they are in the data, whatever their values.  What is known of the rows'
    components is known of the new rows, which are drawn given that.
    """
    n = max(round(data.total_weight), 1)
    if len(data.probability):
        return _simulated_as_known(data, rng, parameters, n, region)
    weights = parameters.weights
    count = rng.multinomial(n, weights / weights.sum())[: parameters.k]
    normal = np.split(rng.standard_normal((int(count.sum()), parameters.d)), np.cumsum(count)[:-1])
    each = zip(parameters.mean, normal, parameters.factor, strict=True)
    x = np.concatenate([mean + z @ factor.T for mean, z, factor in each])
    if region is not None and len(x) < n:
        x = np.concatenate([x, data.anchored(region.draw(n - len(x), rng))])
    if not data.is_complete:
        share = frequency(data) / data.total_weight
        like = rng.permutation(n) if n == data.n else rng.choice(data.n, n, p=share)
        x[np.isnan(data.x[like])] = np.nan
    return replace(data, x=x, weight=UNWEIGHTED)


def _simulated_as_known(
    data: Data, rng: np.random.Generator, parameters: Parameters, n: int, region: Region | None
) -> Data:
    weight = frequency(data)
    if (weight == np.round(weight)).all():
        like = np.repeat(np.arange(data.n), weight.astype(np.intp))
    else:
        like = rng.choice(data.n, n, p=weight / weight.sum())
    known = data.probability[like]
    with np.errstate(divide="ignore"):
        share = known if parameters.noise is None else with_noise_last(known)
        log_share = np.log(share) + np.log(parameters.weights)
    cluster = np.argmax(log_share + rng.gumbel(size=log_share.shape), axis=1)
    is_noise = cluster == parameters.k
    own = np.where(is_noise, 0, cluster)
    normal = rng.standard_normal((len(like), parameters.d))
    x = parameters.mean[own] + (parameters.factor[own] @ normal[:, :, None])[:, :, 0]
    if region is not None and is_noise.any():
        x[is_noise] = data.anchored(region.draw(int(is_noise.sum()), rng))
    x[np.isnan(data.x[like])] = np.nan
    return replace(data, x=x, weight=UNWEIGHTED, probability=known)


# The same work on each


def climb(
    data: Data,
    family: Any,
    start: Start | Run,
    *,
    prior: PseudoData | None = None,
    fixed: Fixed | None = None,
    tol: float,
    threads: int | None = None,
    stop: Event | None = None,
) -> Run:
    """Run EM to its end, without acceleration where that led to a singularity."""
    go = partial(
        run, data, family, start, prior=prior, fixed=fixed, tol=tol, threads=threads, stop=stop
    )
    found = go()
    if found.reason in UNUSABLE:
        found = go(acceleration=None)
    return found


def generators(seed: np.random.SeedSequence, n: int) -> list[np.random.Generator]:
    """Return a random generator for each replicate, whoever works on it and when."""
    return [np.random.default_rng(child) for child in seed.spawn(n)]


def each[T](
    one: Callable[[int, Event], T | None],
    n: int,
    *,
    n_workers: int,
    description: str,
    progressbar: bool | None,
) -> list[T]:
    """Return ``one(0), ..., one(n - 1)``; after Ctrl-C, those that were finished.

    Parameters
    ----------
    one : callable
        Gets the number of a replicate, and an event that says to stop. None says that it was
        interrupted.
    n : int
    n_workers : int
        Threads; the results do not depend on it.
    description : str
        What the progress bar is called.
    progressbar : bool, optional
    """

    def track(items: Iterable[Any]) -> Iterable[Any]:
        if not is_wanted(progressbar) or n < 2:
            return items
        from rich.progress import track as bar

        return bar(items, description=description, total=n, transient=True)

    stop = Event()

    def guarded(i: int) -> T | None:
        return None if stop.is_set() else one(i, stop)

    found: list[T | None] = []
    if n_workers == 1:
        try:
            for i in track(range(n)):
                found.append(guarded(i))
                if found[-1] is None:
                    break
        except KeyboardInterrupt:
            stop.set()
    else:
        with ThreadPoolExecutor(n_workers) as pool:
            futures = [pool.submit(guarded, i) for i in range(n)]
            try:
                for done in track(as_completed(futures)):
                    if done.result() is None:
                        stop.set()
            except KeyboardInterrupt:  # only the main thread gets it
                stop.set()
            found = [future.result() for future in futures]
    return [one_found for one_found in found if one_found is not None]
