"""Starting values for EM: hierarchical, k-means++, random centres, the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import xarray as xr

from bayesgmm import hierarchical
from bayesgmm.covariance import Covariance, maximise
from bayesgmm.data import Data
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array, Parameters, from_responsibilities, scatter
from bayesgmm.prior import ConjugatePrior
from bayesgmm.resolved import pseudo_data, pseudo_moments

GIVEN = ("parameters", "labels")  # the user's own
METHODS = ("ellipsoids", "ward", "kmeans", "random")


@dataclass(frozen=True, eq=False)
class Start:
    """A named starting value, in anchored units.

    Parameters
    ----------
    method : str
    parameters : Parameters
    within : Covariance, optional
        A smaller family, in which a short run is made first.
    seed : int
        For the draws of stochastic EM.
    """

    method: str
    parameters: Parameters
    within: Covariance | None = None
    seed: int = 0


def starts(
    data: Data,
    family: Covariance,
    k: int,
    *,
    start: Any,
    n_starts: int,
    rng: np.random.Generator,
) -> list[Start]:
    """Return the starting values that ``start`` asks for.

    Parameters
    ----------
    start : None, method, array of labels (n,), Parameters, Dataset, DataTree or a list of these
        ``None`` takes hierarchical partitions, also within the families nested in this one, and
        k-means++ and random centres in turn. Labels, parameters and fits (in the units of the data)
        give one start. In a list, ``None`` and methods give ``n_starts`` each.

    Raises
    ------
    ArgumentError
        Naming ``start`` if it is none of these or does not suit the data.
    """
    if isinstance(start, list | tuple) and any(not isinstance(s, int | np.integer) for s in start):
        several = (starts(data, family, k, start=s, n_starts=n_starts, rng=rng) for s in start)
        return [one for some in several for one in some]
    if isinstance(start, Parameters | xr.Dataset | xr.DataTree):
        return [Start("parameters", data.to_anchored(_given_parameters(start, k, data.d)))]
    if start is None or isinstance(start, str):
        if start is not None and start not in METHODS:
            raise ArgumentError("start", f"{start!r} is unknown; use one of {', '.join(METHODS)}")
        if k == 1:
            return [Start("moments", from_labels(data, family, np.zeros(data.n, int), 1))]
        if start is None:
            own = ["ellipsoids", "kmeans", "random", "ward"]
            found = [_drawn(data, family, k, method, rng) for method in own[:n_starts]]
            for nested in family.nested[: n_starts - len(found)]:
                one = _drawn(data, nested, k, "ellipsoids", rng)
                found.append(replace(one, method=f"within {nested}", within=nested))
            others = islice(cycle(["kmeans", "random"]), n_starts - len(found))
            return [*found, *(_drawn(data, family, k, method, rng) for method in others)]
        # The hierarchical methods draw nothing at random: once is enough.
        times = 1 if start in METHODS[:2] else n_starts
        return [_drawn(data, family, k, start, rng) for _ in range(times)]
    labels = _given_labels(start, k, data)
    return [Start("labels", from_labels(data, family, labels, k))]


def _given_parameters(start: Parameters | xr.Dataset | xr.DataTree, k: int, d: int) -> Parameters:
    if isinstance(start, Parameters):
        parameters = start
    else:
        posterior: Any = start
        if isinstance(start, xr.DataTree):
            if "posterior" not in start.children:
                raise ArgumentError("start", "is a tree without a posterior: no fit")
            posterior = start["posterior"]
        missing = [v for v in ("weight", "mean", "covariance") if v not in posterior]
        if missing:
            raise ArgumentError("start", f"has no variable {', '.join(missing)}")
        values = [posterior[v].to_numpy() for v in ("weight", "mean", "covariance")]
        if "draw" in posterior.dims:
            if posterior.sizes["draw"] * posterior.sizes["chain"] != 1:
                raise ArgumentError("start", "has many draws; give one set of parameters")
            values = [v[0, 0] for v in values]
        parameters = Parameters(*values)
    try:
        parameters = Parameters(*(np.asarray(v, dtype=np.float64) for v in vars_of(parameters)))
    except (TypeError, ValueError) as error:
        raise ArgumentError("start", f"holds something that is no number ({error})") from None
    shapes = ((k,), (k, d), (k, d, d))
    for name, value, shape in zip(
        ("weight", "mean", "covariance"), vars_of(parameters), shapes, strict=True
    ):
        if value.shape != shape:
            raise ArgumentError("start", f"{name} has shape {value.shape}, not {shape}")
        if not np.isfinite(value).all():
            raise ArgumentError("start", f"{name} is not finite")
    if not (parameters.weight > 0).all() or abs(parameters.weight.sum() - 1.0) > 1e-6:
        raise ArgumentError("start", "weights must be positive and sum to one")
    turned = np.swapaxes(parameters.covariance, 1, 2)
    if not np.allclose(parameters.covariance, turned, rtol=1e-8, atol=0.0):
        raise ArgumentError("start", "a covariance is not symmetric")
    try:
        np.linalg.cholesky(parameters.covariance)
    except np.linalg.LinAlgError:
        raise ArgumentError("start", "a covariance is not positive definite") from None
    return parameters


def vars_of(parameters: Parameters) -> tuple[Array, Array, Array]:
    """Return (weight, mean, covariance)."""
    return parameters.weight, parameters.mean, parameters.covariance


def _given_labels(start: Any, k: int, data: Data) -> np.ndarray[Any, np.dtype[np.intp]]:
    labels = np.asarray(start)
    if labels.shape != (data.n,) or labels.dtype.kind not in "iu":
        raise ArgumentError(
            "start",
            "must be 'kmeans', 'random', Parameters, a fit, or one integer label (0 to "
            f"{k - 1}) for each of the {data.n} rows",
        )
    present = np.unique(labels[data.weight > 0] if data.weight.size else labels)
    if labels.min() < 0 or labels.max() >= k or len(present) < k:
        raise ArgumentError(
            "start",
            f"labels must be 0 to {k - 1}, each used by a row of positive weight; "
            f"these are {np.unique(labels).tolist()}",
        )
    return labels.astype(np.intp)


def from_labels(
    data: Data,
    family: Covariance,
    labels: np.ndarray[Any, np.dtype[np.intp]],
    k: int,
    *,
    regularised: bool = False,
) -> Parameters:
    """Return the parameters after one M-step from a hard partition, in anchored units.

    ``regularised`` adds the default conjugate prior's pseudo-data, so that a small group does not
    start with a singular covariance.
    """
    variance = np.diagonal(data.covariance)
    about = Parameters(
        np.full(k, 1.0 / k),
        np.broadcast_to(data.mean, (k, data.d)),
        np.broadcast_to(np.diag(variance), (k, data.d, data.d)),
    )
    moments = from_responsibilities(data.x, np.eye(k)[labels], about, data.weight)
    weight = moments.weight_count / moments.weight_count.sum()
    if regularised:
        # By the diagonal, which is definite even where there are fewer rows than columns.
        prior = pseudo_data(
            ConjugatePrior(), family, k, mean=data.mean, covariance=np.diag(variance)
        )
        moments = moments + pseudo_moments(prior, about)
    mean, spread = scatter(moments, about)
    return Parameters(weight, mean, maximise(family, moments.covariance_count, spread))


def _drawn(data: Data, family: Covariance, k: int, method: str, rng: np.random.Generator) -> Start:
    if method in ("ellipsoids", "ward"):
        return Start(method, _agglomerated(data, family, k, method, rng))
    from sklearn.cluster import KMeans, kmeans_plusplus  # slow to import, needed only here

    sd = np.sqrt(np.diagonal(data.covariance))
    rows = data.x / sd
    weight = data.weight if len(data.weight) else np.ones(data.n)
    seed = int(rng.integers(2**31 - 1))
    if method == "kmeans":
        model = KMeans(k, n_init=1, random_state=seed).fit(rows, sample_weight=weight)
        labels = model.labels_.astype(np.intp)
    else:
        labels = _nearest(rows, _distinct_rows(rows, weight, k, rng))
    if len(np.unique(labels[weight > 0])) < k:
        labels = _nearest(
            rows, kmeans_plusplus(rows, k, sample_weight=weight, random_state=seed)[0]
        )
    return Start(method, from_labels(data, family, labels, k, regularised=True))


def _nearest(rows: Array, centers: Array) -> hierarchical.Labels:
    square = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centers.T + (centers**2).sum(axis=1)
    return np.argmin(square, axis=1)


def _agglomerated(
    data: Data, family: Covariance, k: int, method: str, rng: np.random.Generator
) -> Parameters:
    """A hierarchical partition of the distinct rows, or of some of them."""
    weight = data.weight if len(data.weight) else np.ones(data.n)
    # Distinct rows in their own order: neither repeated rows nor their order change the start.
    distinct, which = np.unique(data.x[weight > 0], axis=0, return_inverse=True)
    count = np.bincount(which.ravel(), weights=weight[weight > 0])
    if len(distinct) > hierarchical.MOST_ROWS:
        some = np.sort(rng.choice(len(distinct), hierarchical.MOST_ROWS, replace=False))
        distinct, count = distinct[some], count[some]
    if method == "ward":
        labels = hierarchical.ward(distinct / np.sqrt(np.diagonal(data.covariance)), k)
    else:
        rows = hierarchical.sphered(distinct, data.mean, data.covariance)
        labels = hierarchical.ellipsoids(rows, k)
    part = replace(data, x=distinct, weight=count)
    return from_labels(part, family, labels, k, regularised=True)


def _distinct_rows(rows: Array, weight: Array, k: int, rng: np.random.Generator) -> Array:
    """k different rows at random; the data have as many, or they would have been refused."""
    chosen: list[Array] = []
    for i in rng.permutation(np.flatnonzero(weight > 0)):
        if not any(np.array_equal(rows[i], c) for c in chosen):
            chosen.append(rows[i])
            if len(chosen) == k:
                break
    return np.array(chosen)
