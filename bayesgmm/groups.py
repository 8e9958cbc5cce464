r"""Rows that are known in part: missing values and partly known labels, by groups that know alike.

A *group* is rows with the same observed columns o and the same knowledge of their component.  What
can be known of a row's component apart from x is how plausible each one is, :math:`p_{nk}`; it
multiplies the weight :math:`\pi_k`.  The sums of a group are those of a mixture with parameters
:math:`(p_{nk} \pi_k, \mu_{k,o}, \Sigma_{k,oo})`, for the same pass over the data as ever.

What they are in all columns follows from the normal distribution of the missing given the observed
ones.  With :math:`\Sigma = L L^\top`, :math:`W = L^{-1}` and :math:`W_o` the inverse factor of
:math:`\Sigma_{oo}`

.. math:: E(z \mid x_o) = A z_o, \quad \mathrm{Var}(z \mid x_o) = I - A A^\top, \quad
          A = (W_o L_{o\cdot})^\top, \quad A^\top A = I,

so that A embeds the whitened residuals of the observed columns in those of all, and

.. math:: \sum r z = A \sum r z_o, \qquad
          \sum r z z^\top - N I = A \Big( \sum r z_o z_o^\top - N I \Big) A^\top.

Tables of sums are additive over groups, so that everything which is made from them stays as it is:
M-steps of all families, gradients, priors, acceleration.

So that arrays have one shape, :math:`\Sigma_{oo}` is kept within a matrix of d columns, with an
identity in place of the missing ones, whose x and mean are 0: their whitened residuals are 0.

References
----------
Little & Rubin (2019), Statistical Analysis with Missing Data, 3rd ed., section 11.2 (one normal).
Ghahramani & Jordan (1994), NIPS 6, 120-127 (mixtures).  Côme, Oukhellou, Denoeux & Aknin (2009),
Pattern Recognition 42, 334-348 (plausible labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayesgmm.moments import (
    UNWEIGHTED,
    Array,
    Moments,
    Parameters,
    accumulate,
    from_responsibilities,
    scatter,
)
from bayesgmm.numeric import kernel
from bayesgmm.streams import ROWS, blocks, has_nan, room_like

Index = NDArray[np.intp]
Sums = Callable[[Array, Parameters, Array], Moments]
NO_LABELS: Array = np.empty((0, 0))
MOST_KINDS = 100  # of knowledge about labels; with more, responsibilities are made row by row
_NUMBERS = 1 << 20  # of covariances that are factorised together


@dataclass(frozen=True, eq=False)
class Group:
    """Rows with the same observed columns and the same knowledge of their component.

    Parameters
    ----------
    rows : slice or (m,) array
        Where they are among all rows.
    x : (m, d) array
        0 where missing, C-contiguous.
    weight : (m,) array
        Observation weights, or shape (0,) when all are one.
    observed : (d,) array of bool
    plausibility : (0,), (k,) or (m, k) array
        Of the components, relative to the most plausible one: nothing known; the same for all rows;
        or row by row.
    """

    rows: slice | Index
    x: Array
    weight: Array
    observed: NDArray[np.bool_]
    plausibility: Array

    @cached_property
    def is_plain(self) -> bool:
        """Whether all columns are observed and nothing is known of the component."""
        return self.plausibility.size == 0 and bool(self.observed.all())

    @cached_property
    def log_factor(self) -> Array | float:
        """What log-weights get added, (k,) or the same for all; not what is known row by row."""
        constant = missing_constant(self.observed)
        if self.plausibility.ndim == 2 or not self.plausibility.size:
            return constant
        with np.errstate(divide="ignore"):
            return constant + np.log(self.plausibility)

    @property
    def may_be_noise(self) -> Array | float:
        """Plausibility of noise, (m,) or the same for all: 0 where something is known of a row."""
        if self.plausibility.ndim < 2:
            return 0.0 if self.plausibility.size else 1.0
        return (self.plausibility == 1.0).all(axis=1).astype(np.float64)

    def blocks(self, size: int) -> Iterator[Group]:
        """Yield the group in parts of at most ``size`` rows, whose ``rows`` are within it."""
        for begin in range(0, len(self.x), size):
            part = slice(begin, begin + size)
            weight = self.weight[part] if len(self.weight) else self.weight
            known = self.plausibility[part] if self.plausibility.ndim == 2 else self.plausibility
            yield replace(self, rows=part, x=self.x[part], weight=weight, plausibility=known)


def split(
    x: Array,
    weight: Array = UNWEIGHTED,
    probability: Array = NO_LABELS,
    *,
    most_kinds: int = MOST_KINDS,
) -> tuple[Group, ...]:
    """Split rows into groups; complete rows without labels are one group, without a copy.

    Parameters
    ----------
    x : (n, d) array
        NaN where missing.
    weight : (n,) array, optional
    probability : (n, k) array, optional
        How probable each component is for each row, apart from x; rows count up to a factor.
    most_kinds : int
        With more different rows of ``probability``, groups are made by observed columns alone.
    """
    n, d = x.shape
    if not has_nan(x) and not len(probability):
        return (Group(slice(None), x, weight, np.ones(d, bool), np.empty(0)),)
    packed = [np.packbits(~np.isnan(x[part]), axis=1) for part in blocks(n)]
    code, by_row = _kinds(np.concatenate(packed)), False
    plausibility = np.empty((n, 0))
    if len(probability):
        plausibility = probability / probability.max(axis=1, keepdims=True)
        kind = _kinds(plausibility)
        most = int(kind.max()) + 1
        by_row = most > most_kinds
        code = code if by_row else code * most + kind
    order = np.argsort(code, kind="stable")
    begins = np.flatnonzero(np.diff(code[order], prepend=-1))
    sorted_x = room_like(x, n, d)
    for part in blocks(n):
        some = x[order[part]]
        sorted_x[part] = np.where(np.isnan(some), 0.0, some)
    sorted_weight = weight[order] if len(weight) else weight
    groups = []
    for begin, end in zip(begins, [*begins[1:], n], strict=True):
        rows, part = order[begin:end], slice(begin, end)
        known = plausibility[rows] if by_row else plausibility[rows[0]]
        if (known == 1.0).all():
            known = np.empty(0)
        own = sorted_weight[part] if len(weight) else weight
        groups.append(Group(rows, sorted_x[part], own, ~np.isnan(x[rows[0]]), known))
    return tuple(groups)


def with_noise_last(probability: Array) -> Array:
    """Return plausibilities (n, k + 1) of components and noise from those of components alone.

    A row of whose component something is known is of one of them; any other may be noise.
    """
    plausibility = probability / probability.max(axis=1, keepdims=True)
    return np.column_stack([plausibility, (plausibility == 1.0).all(axis=1)])


def _kinds(rows: NDArray[Any]) -> Index:
    """Return the number of each row among the different ones, in their own order."""
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


# Parameters of what is observed


@dataclass(frozen=True, eq=False)
class View:
    """A group, the mixture of what it observes, and how that is embedded in the whole.

    Parameters
    ----------
    group : Group
    marginal : Parameters
        Its ``log_weight`` has the plausibilities in it. Noise is a component, the last.
    loading : (k, d, d) array
        A of the module's formula, with columns of 0 for what is missing.
    """

    group: Group
    marginal: Parameters
    loading: Array

    def rows(self) -> tuple[Array, Array]:
        """Return log p(x_o), shape (m,), and responsibilities (m, k)."""
        p, known = self.marginal, self.group.plausibility
        if known.ndim < 2:
            found = kernel.rows(self.group.x, p.log_weight, p.mean, p.whitening, True)
            return found[0], found[1].T
        if known.shape[1] < p.k:
            known = np.column_stack([known, self.group.may_be_noise])
        with np.errstate(divide="ignore"):
            log_known = np.log(known)
        joint = log_known.copy()
        for j in range(p.k):
            one = (p.log_weight[j : j + 1], p.mean[j : j + 1], p.whitening[j : j + 1])
            joint[:, j] += kernel.rows(self.group.x, *one, False)[0]
        density = np.asarray(logsumexp(joint, axis=1))
        is_far = np.isneginf(density)  # beyond all numbers: the labels alone decide
        joint[is_far] = log_known[is_far]
        return density, np.exp(joint - logsumexp(joint, axis=1, keepdims=True))

    def blocks(self, size: int) -> Iterator[View]:
        """Yield the view of at most ``size`` rows at a time."""
        for part in self.group.blocks(size):
            yield replace(self, group=part)

    def sums(self, sums: Sums) -> Moments:
        """Return the table of sums of what is observed."""
        group, p = self.group, self.marginal
        if group.plausibility.ndim < 2:
            return sums(group.x, p, group.weight)
        density, r = self.rows()
        total = float(density.sum() if not len(group.weight) else group.weight @ density)
        return replace(from_responsibilities(group.x, r, p, group.weight), loglik=total)


def views(
    groups: Sequence[Group], parameters: Parameters, *, diagonal: bool = False
) -> Iterator[View]:
    """Yield every group with the mixture of what it observes.

    Parameters
    ----------
    groups : sequence of Group
    parameters : Parameters
        In the units of the groups.
    diagonal : bool
        Whether every covariance is diagonal.
    """
    for some in _batches(groups, parameters):
        yield from _views(some, parameters, diagonal=diagonal)


def _batches(groups: Sequence[Group], parameters: Parameters) -> Iterator[Sequence[Group]]:
    size = max(1, _NUMBERS // parameters.covariance.size)
    for begin in range(0, len(groups), size):
        yield groups[begin : begin + size]


def _views(some: Sequence[Group], parameters: Parameters, *, diagonal: bool) -> list[View]:
    # All at once: one call each instead of one for each group.
    k, d = parameters.k, parameters.d
    o = np.array([group.observed for group in some], dtype=float)
    mean, covariance = marginal(parameters.mean, parameters.covariance, o[:, None])
    whitening, is_definite = kernel.factorise(covariance.reshape(-1, d, d), diagonal)
    if not is_definite:  # only where that of all columns is not either, or hardly
        raise np.linalg.LinAlgError("a covariance of the observed columns is not positive definite")
    whitening = whitening.reshape(-1, k, d, d)
    loading = np.swapaxes(whitening @ (o[:, None, :, None] * parameters.factor), 2, 3)
    found, log_weight, noise = [], parameters.log_weight, parameters.noise
    nothing = np.zeros((0 if noise is None else 1, d, d))  # of noise no sum but the number counts
    for i, group in enumerate(some):
        if group.is_plain:
            eye = np.broadcast_to(np.eye(d), (k, d, d))
            found.append(View(group, parameters.widened, np.concatenate([eye, nothing])))
            continue
        own = None if noise is None else noise.of(group.observed)
        one = Parameters(parameters.weight, mean[i], covariance[i], own)
        # What it would compute itself, from the weights alone and for each group anew.
        vars(one)["log_weight"] = log_weight + group.log_factor
        vars(one)["whitening"] = whitening[i]
        one = one.widened
        if noise is not None and group.plausibility.ndim == 1 and group.plausibility.size:
            vars(one)["log_weight"] = np.append(one.log_weight[:k], -np.inf)
        found.append(View(group, one, np.concatenate([loading[i], nothing])))
    return found


def marginal(mean: Array, covariance: Array, observed: Array) -> tuple[Array, Array]:
    """Return means and covariances with what is missing taken out: mean 0 and an identity there.

    Parameters
    ----------
    mean : (..., d) array
    covariance : (..., d, d) array
    observed : (..., d) array
        1 where observed, 0 where missing.
    """
    eye = np.eye(mean.shape[-1])
    link = observed[..., :, None] * observed[..., None, :]
    return mean * observed, covariance * link + (1.0 - observed)[..., None] * eye


def missing_constant(observed: NDArray[np.bool_]) -> float:
    """Return what a log-density in d columns lacks for one of the observed columns alone."""
    return 0.5 * math.log(2.0 * math.pi) * int(np.count_nonzero(~observed))


# Sums and rows


def table(
    groups: Sequence[Group], parameters: Parameters, sums: Sums, *, diagonal: bool = False
) -> Moments:
    """Return the table of sums about ``parameters``, completed where values are missing.

    Parameters
    ----------
    groups : sequence of Group
    parameters : Parameters
    sums : callable
        The table of complete rows x (m, d) about some parameters, given weights (m,) or (0,):
        `moments.accumulate` or the like.
    diagonal : bool
        Whether every covariance is diagonal.
    """
    if len(groups) == 1 and groups[0].is_plain:
        total = sums(groups[0].x, parameters.widened, groups[0].weight)
    else:
        parts = []
        for some in _batches(groups, parameters):
            several = _views(some, parameters, diagonal=diagonal)
            parts.append(_completed([view.sums(sums) for view in several], several))
        total = sum(parts[1:], parts[0])
    return total if parameters.noise is None else _of_components(total)


def _of_components(moments: Moments) -> Moments:
    """Return the table without the sums of the noise, of which the number of rows says all."""
    return replace(
        moments,
        mean_count=moments.mean_count[:-1],
        covariance_count=moments.covariance_count[:-1],
        first=moments.first[:-1],
        second=moments.second[:-1],
    )


def _completed(found: Sequence[Moments], several: Sequence[View]) -> Moments:
    count = np.array([one.weight_count for one in found])
    first = np.array([one.first for one in found])
    second = np.array([one.second for one in found])
    loading = np.array([view.loading for view in several])
    eye, total = np.eye(first.shape[2]), count.sum(axis=0)
    excess = loading @ (second - count[..., None, None] * eye) @ np.swapaxes(loading, 2, 3)
    return Moments.of_data(
        sum(one.loglik for one in found),
        total,
        (loading @ first[..., None])[..., 0].sum(axis=0),
        excess.sum(axis=0) + total[:, None, None] * eye,
    )


def rows(groups: Sequence[Group], parameters: Parameters, n: int) -> tuple[Array, Array]:
    """Return log p(x_n, what is known of its component), (n,), and responsibilities (n, k).

    With a noise component its own are last, (n, k + 1).
    """
    density, r = np.empty(n), np.empty((n, len(parameters.weights)))
    for part in row_blocks(groups, parameters):
        density[part.place], r[part.place] = part.density, part.responsibility
    return density, r


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows (m, d) of a group, where they are among all, and what a mixture says of them."""

    group: Group
    place: slice | Index
    density: Array
    responsibility: Array


def row_blocks(groups: Sequence[Group], parameters: Parameters) -> Iterator[Block]:
    """Yield what `rows` returns, a block of rows at a time."""
    for view in views(groups, parameters):
        for part in view.blocks(ROWS):
            place, within = view.group.rows, part.group.rows
            yield Block(
                part.group, within if isinstance(place, slice) else place[within], *part.rows()
            )


# One normal distribution: where data with missing values are, and what is likely to be missing


def normal(groups: Sequence[Group], mean: Array, sd: Array) -> tuple[Array, Array]:
    """Return mean (d,) and covariance (d, d) of one normal distribution: maximum likelihood.

    EM from uncorrelated columns, to 1e-8 of a standard deviation or 200 steps: it is for starts and
    for the units of priors.  A ridge of 1e-9 of each variance keeps the covariance definite where
    columns are dependent.

    Parameters
    ----------
    groups : sequence of Group
        Without labels.
    mean, sd : (d,) arrays
        Of what is observed in each column.
    """
    about = Parameters(np.ones(1), mean[None], np.diag(sd**2)[None])
    for _ in range(200):
        moments = table(groups, about, accumulate)
        location, spread = scatter(moments, about)
        covariance = spread / moments.covariance_count[:, None, None]
        covariance += 1e-9 * np.diag(np.diagonal(covariance[0]))
        w = about.whitening[0]
        moved = np.abs(w @ (location - about.mean)[0]).max()
        turned = np.abs(w @ (covariance - about.covariance)[0] @ w.T).max()
        about = Parameters(np.ones(1), location, covariance)
        if max(moved, turned) < 1e-8:
            break
    return about.mean[0], about.covariance[0]


def filled(groups: Sequence[Group], mean: Array, covariance: Array, x: Array) -> Array:
    """Return x (n, d) with its missing values replaced by their expectation given the observed.

    Parameters
    ----------
    groups : sequence of Group
        Of ``x``.
    mean, covariance : (d,) and (d, d) arrays
        Of one normal distribution.
    x : (n, d) array
        NaN where missing.
    """
    whole = Parameters(np.ones(1), mean[None], covariance[None])
    out = x.copy()
    for view in views([replace(g, plausibility=np.empty(0)) for g in groups], whole):
        map_ = whole.factor[0] @ view.loading[0] @ view.marginal.whitening[0]
        # Not by a library's matrix product: equal rows get equal values, wherever they are.
        guess = mean + np.einsum("ij,nj->ni", map_, view.group.x - view.marginal.mean[0])
        out[view.group.rows] = np.where(view.group.observed, view.group.x, guess)
    return out
