"""Starting values for EM: hierarchical, k-means++, random centres, the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import cycle, islice
from operator import add
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from bayesgmm.covariance import Covariance, maximise
from bayesgmm.data.observations import Data
from bayesgmm.em import hierarchical
from bayesgmm.em.hierarchical import Labels
from bayesgmm.errors import ArgumentError
from bayesgmm.groups import NO_LABELS, rows, split, table
from bayesgmm.moments import (
    Array,
    Noise,
    Parameters,
    accumulate,
    from_responsibilities,
    scatter,
)
from bayesgmm.noise import NOISE
from bayesgmm.prior import ConjugatePrior
from bayesgmm.resolved import pseudo_data, pseudo_moments
from bayesgmm.streams import blocks

GIVEN = ("parameters", "labels")  # the user's own
OTHERS = ("kmeans", "random", "random", "random")  # k-means often finds the same again
METHODS = ("ellipsoids", "ward", "kmeans", "random")
_MOST_SORTED = 100_000  # rows; of more, those that are the same are not looked for


@dataclass(frozen=True, eq=False)
class Start:
    """A named starting value, in anchored units.

    Parameters
    ----------
    method : str
    parameters : Parameters
    seed : int
        For the draws of stochastic EM.
    """

    method: str
    parameters: Parameters
    seed: int = 0


def starts(
    data: Data,
    family: Covariance,
    k: int,
    *,
    start: Any,
    n_starts: int,
    rng: np.random.Generator,
    inner: Data | None = None,
    sample: Data | None = None,
) -> list[Start]:
    """Return the starting values that ``start`` asks for.

    Parameters
    ----------
    start : None, method, array of labels (n,), Parameters, Dataset, DataTree or a list of these
        ``None`` takes hierarchical partitions, then k-means++ and random centres in turn.
        Labels, parameters and fits (in the units of the data) give one start. In a list, ``None``
        and methods give ``n_starts`` each.
    inner : Data, optional
        With a noise component: the rows that clusters are looked for in. Labels may be -1 then.
    sample : Data, optional
        Some of the rows, where methods without noise look. Default: all.

    Raises
    ------
    ArgumentError
        Naming ``start`` if it is none of these or does not suit the data.
    """
    if isinstance(start, list | tuple) and any(not isinstance(s, int | np.integer) for s in start):
        alike: dict[str, Any] = {"n_starts": n_starts, "rng": rng, "inner": inner, "sample": sample}
        several = (starts(data, family, k, start=s, **alike) for s in start)
        return [one for some in several for one in some]
    if isinstance(start, Parameters | xr.Dataset | xr.DataTree):
        return [Start("parameters", data.to_anchored(_given_parameters(start, k, data.d)))]
    if start is None or isinstance(start, str):
        if start is not None and start not in METHODS:
            raise ArgumentError("start", f"{start!r} is unknown; use one of {', '.join(METHODS)}")
        rows = inner or sample or data
        if k == 1:
            # With pseudo-data, without which few rows have a singular covariance even for MAP.
            labels = np.zeros(rows.n, int)
            return [Start("moments", from_labels(rows, family, labels, 1, regularised=True))]
        return [p.begin(family, data.scale) for p in partitions(rows, k, start, n_starts, rng)]
    labels = _given_labels(start, k, data, least=0 if inner is None else -1)
    rows = data
    if (labels < 0).any():
        rows, labels = data.rows(np.flatnonzero(labels >= 0)), labels[labels >= 0]
    return [Start("labels", from_labels(rows, family, labels, k))]


def _given_parameters(start: Parameters | xr.Dataset | xr.DataTree, k: int, d: int) -> Parameters:
    share = 0.0  # of noise
    if isinstance(start, Parameters):
        parameters = start
        if start.noise is not None:
            share = start.noise.weight
    else:
        posterior: Any = start
        if isinstance(start, xr.DataTree) and "weight" not in start.data_vars:  # else of rivals
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
        if NOISE in posterior:
            share = float(posterior[NOISE].to_numpy().ravel()[0])
    try:
        values = [np.asarray(v, dtype=np.float64) for v in vars_of(parameters)]
        parameters = Parameters(*values)
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
    if not (parameters.weight > 0).all() or abs(parameters.weight.sum() + share - 1.0) > 1e-6:
        raise ArgumentError("start", "weights must be positive and sum to one")
    if share > 0:  # its density is that of the data to be fitted
        parameters = replace(parameters, noise=Noise(share, float("nan")))
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


def _given_labels(start: Any, k: int, data: Data, least: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    labels = np.asarray(start)
    if labels.shape != (data.n,) or labels.dtype.kind not in "iu":
        raise ArgumentError(
            "start",
            "must be 'kmeans', 'random', Parameters, a fit, or one integer label (0 to "
            f"{k - 1}) for each of the {data.n} rows",
        )
    present = np.unique(labels[data.weight > 0] if data.weight.size else labels)
    present = present[present >= 0]
    if labels.min() < least or labels.max() >= k or len(present) < k:
        noise = " or, for noise, -1" if least < 0 else ""
        raise ArgumentError(
            "start",
            f"labels must be 0 to {k - 1}{noise}, each used by a row of positive weight; "
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

    def share(part: slice) -> Array:
        return np.eye(k)[labels[part]]

    return _from_shares(data, family, k, share, regularised=regularised)


def _from_shares(
    data: Data,
    family: Covariance,
    k: int,
    share: Callable[[slice], Array],
    *,
    regularised: bool = False,
) -> Parameters:
    """As `from_labels`, from shares (m, k) of a part of the rows; what is missing: one normal's."""
    variance = np.diagonal(data.covariance)
    one = np.diag(variance) if data.is_complete else data.covariance
    about = Parameters(
        np.full(k, 1.0 / k),
        np.broadcast_to(data.mean, (k, data.d)),
        np.broadcast_to(one, (k, data.d, data.d)),
    )
    if data.is_complete:
        w = data.weight
        each = (
            from_responsibilities(data.x[part], share(part), about, w[part] if len(w) else w)
            for part in blocks(data.n)
        )
        moments = reduce(add, each)
    else:
        every = share(slice(None))
        moments = table(split(data.x, data.weight, every), about, accumulate)
    weight = moments.weight_count / moments.weight_count.sum()
    if regularised:
        # By the diagonal, which is definite even where there are fewer rows than columns.
        prior = pseudo_data(
            ConjugatePrior(), family, k, mean=data.mean, covariance=np.diag(variance)
        )
        moments = moments + pseudo_moments(prior, about)
    mean, spread = scatter(moments, about)
    return Parameters(weight, mean, maximise(family, moments.covariance_count, spread))


def with_labels(data: Data, family: Covariance, k: int, begins: list[Start]) -> list[Start]:
    """Return starts that agree with what is known of the rows' components.

    The components of those that are not the user's are put in the order that agrees best, and one
    from the rows of which something is known comes first, if they are of all components.
    """
    known = np.flatnonzero((data.probability != data.probability[:, :1]).any(axis=1))
    if not len(known):  # as in a part of the rows
        return begins
    part = data.rows(known)
    weight = part.weight if len(part.weight) else np.ones(part.n)
    share, k = weight[:, None] * part.probability, part.probability.shape[1]
    groups = split(part.x)

    def matched(one: Start) -> Start:
        try:
            agreement = rows(groups, one.parameters, part.n)[1].T @ share
        except np.linalg.LinAlgError:  # singular: EM says so
            return one
        component, label = linear_sum_assignment(agreement, maximize=True)
        return replace(one, parameters=one.parameters.take(component[np.argsort(label)]))

    begins = [one if one.method in GIVEN else matched(one) for one in begins]
    if share.sum(axis=0).min() >= 1.0 and any(one.method not in GIVEN for one in begins):
        known_share = part.probability.__getitem__
        of_known = _from_shares(part, family, k, known_share, regularised=True)
        begins = [Start("known labels", of_known), *begins]
    return begins


@dataclass(frozen=True, eq=False)
class Partition:
    """Labels (n,) of rows, all or some, from which EM can start in any family."""

    method: str
    data: Data
    labels: Labels
    k: int

    def begin(self, family: Covariance, scale: Array) -> Start:
        """Return the start in a family: an M-step from the labels, with pseudo-data.

        In anchored units of this scale.
        """
        data = self.data.rescaled(scale)
        return Start(self.method, from_labels(data, family, self.labels, self.k, regularised=True))


def partitions(
    data: Data, k: int, method: str | None, n: int, rng: np.random.Generator
) -> list[Partition]:
    """Return partitions that differ, of ``n`` by a method or by all in turn."""
    if method is None:
        first = ["ellipsoids", "kmeans", "random", "ward"]
        methods = [*first, *islice(cycle(OTHERS), max(n - len(first), 0))][:n]
    else:
        # The hierarchical methods draw nothing at random: once is enough.
        methods = [method] * (1 if method in METHODS[:2] else n)
    found: dict[bytes, Partition] = {}
    distinct = Distinct.of(data)
    for one in (_partition(data, distinct, k, method, rng) for method in methods):
        # Labels in the order in which they appear first: the same groups are the same bytes.
        begin, which = np.unique(one.labels, return_index=True, return_inverse=True)[1:]
        found.setdefault(np.argsort(np.argsort(begin))[which].tobytes(), one)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Distinct:
    """The different rows, in the order in which they come first, so that repeated ones are weights.

    Parameters
    ----------
    rows : (m, d) array
        What is missing is filled in.
    weight : (m,) array
    which : (n,) array of int
        Where each row of the data is among them; a row of weight 0 anywhere.
    """

    rows: Array
    weight: Array
    which: Labels

    @staticmethod
    def of(data: Data) -> Distinct:
        """Return the different rows of data."""
        weight = data.weight if len(data.weight) else np.ones(data.n)
        if data.n > _MOST_SORTED:
            return Distinct(data.filled, weight, np.arange(data.n))
        present = np.flatnonzero(weight > 0)
        rows, first, which = np.unique(
            data.filled[present], axis=0, return_index=True, return_inverse=True
        )
        order = np.argsort(first)
        place = np.zeros(data.n, dtype=np.intp)
        place[present] = np.argsort(order)[which.ravel()]
        return Distinct(rows[order], np.bincount(place[present], weight[present]), place)


def _partition(
    data: Data, distinct: Distinct, k: int, method: str, rng: np.random.Generator
) -> Partition:
    if method in ("ellipsoids", "ward"):
        return _agglomerated(data, k, method, rng)
    # Slow to import, needed only here.
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    sd = np.sqrt(np.diagonal(data.covariance))
    x, weight = distinct.rows / sd, distinct.weight
    seed = int(rng.integers(2**31 - 1))
    if method == "kmeans":
        # By one thread: those of OpenMP add up in any order, and hang in a forked process.
        with threadpool_limits(1, "openmp"), warnings.catch_warnings():
            # Of fewer groups than asked for, which are looked for below.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = KMeans(k, n_init=1, random_state=seed).fit(x, sample_weight=weight)
        labels = model.labels_.astype(np.intp)
    else:
        labels = _nearest(x, _distinct_rows(x, weight, k, rng))
    if len(np.unique(labels[weight > 0])) < k:
        centers = kmeans_plusplus(x, k, sample_weight=weight, random_state=seed)[0]
        labels = _nearest(x, centers)
    return Partition(method, data, labels[distinct.which], k)


def _nearest(rows: Array, centers: Array) -> Labels:
    square = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centers.T + (centers**2).sum(axis=1)
    return np.argmin(square, axis=1)


def _agglomerated(data: Data, k: int, method: str, rng: np.random.Generator) -> Partition:
    """A hierarchical partition of the distinct rows, or of some of them."""
    weight = data.weight if len(data.weight) else np.ones(data.n)
    # Distinct rows in their own order: neither repeated rows nor their order change the start.
    distinct, which = np.unique(data.filled[weight > 0], axis=0, return_inverse=True)
    count = np.bincount(which.ravel(), weights=weight[weight > 0])
    if len(distinct) > hierarchical.MOST_ROWS:
        some = np.sort(rng.choice(len(distinct), hierarchical.MOST_ROWS, replace=False))
        distinct, count = distinct[some], count[some]
    if method == "ward":
        # In these units a row far from all others is so in any direction: a group of its own.
        labels = hierarchical.ward(distinct / np.where(data.sd > 0, data.sd, 1.0), k)
    else:
        labels = hierarchical.ellipsoids(
            hierarchical.sphered(distinct, data.mean, data.covariance), k
        )
    part = replace(data, x=distinct, weight=count, probability=NO_LABELS)
    return Partition(method, part, labels, k)


def _distinct_rows(rows: Array, weight: Array, k: int, rng: np.random.Generator) -> Array:
    """k different rows at random; the data have as many, or they would have been refused."""
    chosen: list[Array] = []
    for i in rng.permutation(np.flatnonzero(weight > 0)):
        if not any(np.array_equal(rows[i], c) for c in chosen):
            chosen.append(rows[i])
            if len(chosen) == k:
                break
    return np.array(chosen)
