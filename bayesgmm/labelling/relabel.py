"""`align`: the draws of a fit with the labels that another method gives them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from bayesgmm import labels, tree
from bayesgmm.allocation.drawn import Drawn, ask
from bayesgmm.checks import Check, Verdict, warn
from bayesgmm.em.fit import seed_of
from bayesgmm.em.search import kinds
from bayesgmm.errors import ArgumentError, FitWarning, PosteriorWarning
from bayesgmm.groups import NO_LABELS
from bayesgmm.information.fixed import Fixed
from bayesgmm.labelling import methods
from bayesgmm.labelling.methods import Labelled
from bayesgmm.labelling.shares import Shares
from bayesgmm.labels import Labels
from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.posterior.verdict import posterior_verdict
from bayesgmm.prediction.evaluation import mixtures_of
from bayesgmm.rows import Row, draws_of, has_draws, parameters_by_component, take

Method = Literal[
    "pivot", "ecr", "ecr-iterative-1", "ecr-iterative-2", "stephens", "pra", "ordering"
]
METHODS: tuple[str, ...] = get_args(Method)
_BY_PIVOT = ("pivot", "ecr", "pra")
_ALLOCATED = ("ecr", "ecr-iterative-1", "ecr-iterative-2")
_NEEDED = ("labels", "label_free", "sample_stats", "observed_data", "constant_data")
# What a verdict says of draws with labels, as opposed to how they were sampled.
_OF_LABELS = ("rhat", "ess-bulk", "ess-tail", "mcse", "constant-parameter", "ambiguous-labels")


def align(
    fit: xr.DataTree,
    method: Method = "pivot",
    *,
    pivot: Any = None,
    ordering: str | None = None,
    random_seed: int | None = None,
) -> xr.DataTree:
    r"""Return a fit with draws whose components are labelled by another method.

    Each method is an assignment problem for every draw; `bayesgmm.labelling.methods` has the
    formulas. The labels that the fit has are the first ones of what is found by turns, and those
    of a pivot that is one of the draws; how components were called when they were sampled does not
    matter.

    ==================  ============================================================================
    method              components are labelled by
    ==================  ============================================================================
    "pivot"             the Hellinger distance from a pivot's (EM's, in `sample_posterior`)
    "ecr"               the rows allocated to them, like a pivot's (Papastamoulis & Iliopoulos 2010)
    "ecr-iterative-1"   the same, from the allocation that is most frequent, by turns
    "ecr-iterative-2"   the same, from the allocation that is most probable on average, by turns
    "stephens"          the divergence of responsibilities from their average (Stephens 2000)
    "pra"               the Euclidean distance from a pivot's parameters (Marin et al. 2005)
    "ordering"          the order of one parameter
    ==================  ============================================================================

    An ordering is the worst of them: it looks at one parameter alone, and cuts through a posterior
    wherever two components may be equal in that one, however different they are otherwise, which
    pushes their means apart. It is here to be compared with.

    Parameters
    ----------
    fit : DataTree
        With draws, whole: a posterior, a Laplace approximation or a bootstrap.
    method : str
        See the table.
    pivot : DataTree or Parameters, optional
        Whose labels are taken over, for "pivot", "ecr" and "pra": a point estimate, in units of the
        data. Default: of the draws the one with the highest posterior density (of replicates, the
        highest likelihood of the data).
    ordering : str, optional
        For "ordering": ``"weight"``, ``"mean[waiting]"``, ``"covariance[waiting, waiting]"``, a
        parameter of `summary` without its component. Default: the weight.
    random_seed : int, optional
        Of the allocations that ECR looks at, one for each row and draw, drawn with its
        responsibility as probability. The most probable ones would need no seed, but are sure where
        nothing is: of two components that lie on top of each other, the larger has all the rows in
        every draw.

    Returns
    -------
    DataTree
        ``fit`` with another ``posterior`` and other ``labels`` (``permutation``, ``margin``: as
        always, with the method's own cost; ``method, loss, random_seed`` in their attributes), and
        the checks of its verdict that depend on labels made anew. ``attrs["alignment"]`` names the
        method. What is known of components (labels, what is fixed) keeps them apart.

    Raises
    ------
    ArgumentError
        If ``fit`` is a point estimate or not whole, or an argument is wrong; if there are so many
        draws and rows that a method which looks at rows would take too long.

    Warns
    -----
    PosteriorWarning, FitWarning
        If the labels are ambiguous.

    Examples
    --------
    >>> import bayesgmm as bg
    >>> mle = bg.fit_em(bg.GaussianMixture(2), bg.datasets.load("faithful"), random_seed=1)
    >>> boot = bg.bootstrap(mle, draws=50, audited=0, random_seed=1)
    >>> bg.align(boot, "stephens").attrs["alignment"]
    'stephens'
    """
    if method not in METHODS:
        raise ArgumentError("method", f"must be one of {', '.join(METHODS)}, not {method!r}")
    tree.whole("fit", fit, *_NEEDED)
    if not has_draws(fit):
        raise ArgumentError("fit", "is a point estimate; labels are of draws")
    if pivot is not None and method not in _BY_PIVOT:
        raise ArgumentError("pivot", f"is for {', '.join(_BY_PIVOT)}, not for {method}")
    if ordering is not None and method != "ordering":
        raise ArgumentError("ordering", "is for method='ordering'")
    parameter = _ordered_by("weight" if ordering is None else ordering, fit)
    seed = seed_of(random_seed)
    task = _Task(fit, method)
    s = len(task.usable)
    change, margin = np.tile(np.arange(task.k), (s, 1)), np.zeros(s)
    loss: tuple[float, ...] = ()
    if task.k == 1:
        margin[:] = task.usable
    elif task.usable.any():
        found = _labelled(task, _pivot(task, pivot), parameter, seed)
        change[task.usable] = found.alignment.permutation
        margin[task.usable], loss = found.alignment.margin, found.loss
    record: dict[str, Any] = {"method": method, "loss": list(loss)}
    record |= {"random_seed": seed} if method in _ALLOCATED else {}
    record |= {"ordering": ordering or "weight"} if method == "ordering" else {}
    return _relabelled(fit, change, margin, record)


@dataclass(frozen=True, eq=False)
class _Task:
    """The draws of a fit, with the labels that they have, and its rows."""

    fit: xr.DataTree
    method: str

    @property
    def k(self) -> int:
        return self.draws["weight"].shape[1]

    @cached_property
    def draws(self) -> dict[str, Array]:
        """All parameters (s, ...)."""
        return {n: a.reshape(-1, *a.shape[2:]) for n, a in draws_of(self.fit).items()}

    @cached_property
    def usable(self) -> Any:
        """Which draws (s,) are mixtures; the others keep their labels, with margin 0."""
        return labels.are_mixtures(*(self.draws[name] for name in tree.DIMS))

    @cached_property
    def arrays(self) -> tuple[Array, Array, Array]:
        """Weight, mean and covariance of the usable draws."""
        weight, mean, covariance = (self.draws[name][self.usable] for name in tree.DIMS)
        return weight, mean, covariance

    @cached_property
    def drawn(self) -> Drawn:
        """The usable draws beside the rows, with what is known of these."""
        usable = {n: a[self.usable][None] for n, a in self.draws.items()}
        posterior = tree.dataset(usable, tree.names_of(self.fit), ("chain", "draw"))
        part = self.fit.copy()
        part["posterior"] = xr.DataTree(posterior)
        return ask(part, None, None, "marginalise")

    @cached_property
    def kinds(self) -> Labels | None:
        """Components that may have each other's labels have the same number."""
        known = self.fit["constant_data"].to_dataset().get("label_probability")
        probability = NO_LABELS if known is None else known.transpose("obs", "cluster").to_numpy()
        return kinds(probability, _fixed_in(self.fit))

    @cached_property
    def weight(self) -> Array:
        """Weights (n,) of the rows, which sum to one."""
        given = self.fit["constant_data"]["sample_weight"].to_numpy().astype(np.float64)
        return given / given.sum()

    def shares(self, seed: int | None = None) -> Shares:
        """Return how the usable draws share out the rows."""
        return Shares(self.drawn, self.k, seed)


def _fixed_in(fit: xr.DataTree) -> Fixed | None:
    """Return what a fit holds fixed, in the units of its data."""
    text = str(fit.attrs.get("fixed", ""))
    values = {n: np.array(v, dtype=np.float64) for n, v in json.loads(text or "{}").items()}
    return Fixed(**values) if values else None


def _labelled(task: _Task, pivot: Parameters, parameter: list[Row], seed: int) -> Labelled:
    apart = task.kinds
    if task.method == "pivot":
        found = labels.align(*task.arrays, pivot, apart)
        return Labelled(found, ())
    if task.method == "pra":
        unit = methods.spread(pivot)
        its = methods.vectors(pivot.weight[None], pivot.mean[None], pivot.covariance[None], unit)
        return methods.to_parameters(methods.vectors(*task.arrays, unit), its[0], apart)
    if task.method == "ordering":
        values = take({n: task.draws[n][task.usable] for n in tree.DIMS}, parameter)
        return methods.in_order(values, apart)
    weight = task.weight
    if task.method == "stephens":
        return methods.by_turns(task.shares(), weight, methods.divergence, kinds=apart)
    allocated = task.shares(seed)
    if task.method == "ecr":
        one = Shares(replace(task.drawn, mixture=mixtures_of(pivot)), task.k, seed + 1)
        [(_, own)] = one.blocks()
        return methods.to_shares(allocated, own[0], weight, kinds=apart)
    averaged = task.shares() if task.method == "ecr-iterative-2" else None
    return methods.by_turns(
        *(allocated, weight, methods.mismatch),
        averaged=averaged,
        is_hard=True,
        kinds=apart,
    )


def _pivot(task: _Task, given: Any) -> Parameters:
    """Return the pivot that was given, or the draw that is best, with the labels that it has."""
    if given is None:
        stats = task.fit["sample_stats"].to_dataset()
        name = "lp" if "lp" in stats else "loglik"
        height = stats[name].transpose("chain", "draw").to_numpy().ravel()[task.usable]
        best = int(np.nanargmax(height)) if np.isfinite(height).any() else 0
        weight, mean, covariance = (array[best] for array in task.arrays)
        region, noise = tree.region_of(task.fit), None
        if region is not None:
            noise = Noise(float(task.draws[NOISE][task.usable][best]), -region.log_volume)
        return Parameters(weight, mean, covariance, noise)
    if isinstance(given, xr.DataTree):
        tree.whole("pivot", given)
        if has_draws(given):
            raise ArgumentError("pivot", "has draws; a pivot is a point estimate")
        if tree.names_of(given) != tree.names_of(task.fit):
            raise ArgumentError("pivot", "has other features than the fit")
        given = tree.point(given)
    if not isinstance(given, Parameters):
        kind = type(given).__name__
        raise ArgumentError("pivot", f"must be a point estimate or Parameters, not {kind}")
    if given.mean.shape != task.draws["mean"].shape[1:]:
        shape, other = given.mean.shape, task.draws["mean"].shape[1:]
        raise ArgumentError("pivot", f"has means of shape {shape}; the draws have {other}")
    if not labels.are_mixtures(given.weight[None], given.mean[None], given.covariance[None])[0]:
        raise ArgumentError("pivot", "is no mixture with positive definite covariances")
    return given


def _ordered_by(name: Any, fit: xr.DataTree) -> list[Row]:
    """Return the rows of a parameter that is named without its component."""
    found = parameters_by_component(fit)
    if name not in found and tree.spec_of(fit).n_components > 1:
        raise ArgumentError("ordering", f"must be one of {', '.join(found)}, not {name!r}")
    return found.get(name, [])


def _relabelled(
    fit: xr.DataTree, change: Labels, margin: Array, record: dict[str, Any]
) -> xr.DataTree:
    """Return a fit whose components are ``change`` of the present ones."""
    shape = tuple(fit["posterior"].sizes[dim] for dim in ("chain", "draw"))
    both = ("chain", "draw")
    posterior, group = (fit[name].to_dataset() for name in ("posterior", "labels"))
    order = change.reshape(*shape, -1)
    for name, value in draws_of(fit).items():
        if name in tree.DIMS:
            at = order.reshape(*order.shape, *(1 for _ in value.shape[3:]))
            moved = np.take_along_axis(value, at, axis=2)
            posterior[name] = ((*both, *tree.DIMS[name]), moved)
    present = group["permutation"].transpose(*both, "cluster").to_numpy()
    group["permutation"] = ((*both, "cluster"), np.take_along_axis(present, order, axis=2))
    group["margin"] = (both, margin.reshape(shape))
    group.attrs = record
    found = fit.copy()
    found["posterior"], found["labels"] = xr.DataTree(posterior), xr.DataTree(group)
    by = f" by {record['ordering']}" if "ordering" in record else ""
    found.attrs["alignment"] = f"{record['method']}{by}"
    new = _checks(found, margin.reshape(shape))
    old = Verdict.from_json(str(fit.attrs["verdict"]))
    found.attrs["verdict"] = Verdict(tuple(new.get(c.code, c) for c in old.checks)).to_json()
    is_posterior = fit.attrs.get("estimate") == "posterior"
    told = Verdict(tuple(c for c in new.values() if c.code == "ambiguous-labels"))
    warn(told, PosteriorWarning if is_posterior else FitWarning)
    return found


def _checks(fit: xr.DataTree, margin: Array) -> dict[str, Check]:
    """Return the checks of a verdict that depend on labels, made anew, by code."""
    if fit["posterior"].sizes["cluster"] == 1:
        return {}
    fixed = _fixed_in(fit)
    verdict = posterior_verdict(
        *(fit[group].to_dataset() for group in ("posterior", "label_free", "sample_stats")),
        margin=margin,
        family=tree.spec_of(fit).covariance,
        max_treedepth=None,
        still=fixed.still(has_noise=NOISE in fit["posterior"]) if fixed else None,
    )
    own = labels.ambiguous_labels(margin)
    return {c.code: c for c in verdict.checks if c.code in _OF_LABELS} | {own.code: own}
