r"""The log-posterior of a specification's own priors, by hand: what NUTS samples.

It is the density of `model.to_pymc`, in the same unconstrained coordinates (`weight` by PyMC's
simplex transform, `covariance` by `chart.Coordinates`, `mean` as it is), value and gradient from
one pass over the data, in one function that Numba compiles for all specifications of a kind.  So
the first draw need not wait for a graph to be rewritten, differentiated and compiled.

Every prior is the same few terms with other coefficients (`terms`).

What is fixed stands among the coordinates as a constant (`space`), so that the prior is that of the
free parameters given the fixed.  Noise is one more normal component, a flat one.  Rows that are
known in part come by groups (`layout.Layout`), each with the pass, and the gradient, of the mixture
of its observed columns (`kernel_ops.of_groups`).
"""

from __future__ import annotations

import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from bayesgmm.data.observations import Data
from bayesgmm.information.fixed import Fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Array, Parameters
from bayesgmm.noise import Region
from bayesgmm.numeric.chart_ops import (
    covariances,
    elements,
    log_weights,
    pull_through_covariances,
    pull_through_elements,
    pull_through_log_weights,
    pull_through_turn,
    turn,
)
from bayesgmm.numeric.kernel import VERSION, accumulate_all, factorise
from bayesgmm.numeric.kernel_ops import (
    has_density,
    of_groups,
    pseudo_sums,
    pull_back,
    scale_terms,
)
from bayesgmm.resolved import PseudoData, Separation
from bayesgmm.target.layout import Layout
from bayesgmm.target.space import Space, checked_space
from bayesgmm.target.terms import Terms, terms

# As in `kernel_ops`: Numba's cache does not see that what is called here has changed.
assert VERSION == 10, "kernel.VERSION was raised: raise it here, too"

_pointer = types.CPointer(types.float64)
_SIGNATURE = types.int64(
    types.uint64, _pointer, _pointer, _pointer, types.CPointer(types.CPointer(types.float64))
)


def _log_density(by_groups: bool, polar: bool, conjugate: bool) -> Any:
    """Return the log-density, to be compiled: see `compiled`.

    Numba leaves out what these rule out: with rows known in part it takes three times as long.
    """

    def log_density(size, point_, slope_, value_, arrays):  # type: ignore[no-untyped-def]
        """Write gradient and value at a point; 0, or nutpie's code for what is not finite."""
        number = carray(arrays[0], (15,))
        n, d, k, p = int(number[0]), int(number[1]), int(number[2]), int(number[3])
        n_weight, diagonal, q = int(number[4]), number[5] != 0.0, int(number[6])
        every, n_groups, n_known = int(number[7]), int(number[8]), int(number[9])
        n_shares, noise_level, value = int(number[10]), number[11], number[12]
        x = carray(arrays[1], (n, d))
        sample_weight = carray(arrays[2], (n_weight,))
        spectrum = carray(arrays[3], (k * d, p))
        below = carray(arrays[4], (0 if diagonal else k * d * (d - 1) // 2, q))
        unit = carray(arrays[5], (d,))
        n_ratios = max(n_shares - 1, 0)
        whole = n_ratios + p + q + k * d
        fixed = carray(arrays[6], (whole,))
        place = carray(arrays[7], (size,))
        source = carray(arrays[8], (every,))
        base = carray(arrays[9], (every,))
        noise = carray(arrays[10], (2, d))
        by_share = carray(arrays[11], (n_shares,))
        linear = carray(arrays[12], (3, whole))
        free_point = carray(point_, (size,))
        slope = carray(slope_, (size,))

        point = np.empty(whole)
        for i in range(whole):
            point[i] = fixed[i]
        for i in range(size):
            point[int(place[i])] = free_point[i]
        log_weight, share = log_weights(point, n_shares, source, base)
        for i in range(n_shares):
            value += by_share[i] * share[i]
        mean = point[n_ratios + p + q :].reshape((k, d))
        s, factor = elements(point[n_ratios : n_ratios + p + q], spectrum, below, d)
        if polar:
            value += turn(factor, q)
        covariance = covariances(factor, unit, s)

        # Of k components, and the noise as one more that is normal and flat. By elements: an
        # assignment of slices takes seconds to compile.
        level, mean_ = np.empty(every), np.empty((every, d))
        covariance_ = np.zeros((every, d, d))
        for j in range(every):
            level[j] = log_weight[j] if j < k else log_weight[j] + noise_level
            for f in range(d):
                mean_[j, f] = mean[j, f] if j < k else noise[0, f]
                covariance_[j, f, f] = noise[1, f]
                for g in range(d):
                    if j < k:
                        covariance_[j, f, g] = covariance[j, f, g]
        whitening, is_definite = factorise(covariance_, diagonal)
        if not (is_definite and has_density(log_weight, mean)):
            value_[0] = np.nan
            for i in range(size):
                slope[i] = 0.0
            return 4

        if by_groups:
            begin = carray(arrays[16], (n_groups + 1,))
            observed = carray(arrays[17], (n_groups, d))
            group_factor = carray(arrays[18], (n_groups, every))
            known = carray(arrays[19], (n_known, every))
            loglik, by_weight, rows_by_mean, rows_by_covariance = of_groups(
                *(x, sample_weight, begin, observed, group_factor, known),
                *(diagonal, level, mean_, covariance_),
            )
            zeroth = np.zeros(every)
            first, second = np.zeros((every, d)), np.zeros((every, d, d))
        else:
            loglik, by_weight, first, second = accumulate_all(
                x, sample_weight, diagonal, level, mean_, whitening
            )
            zeroth = by_weight.copy()
        value += loglik
        if conjugate:
            location = carray(arrays[13], (d,))
            scatter = carray(arrays[14], (d, d))
            count, shrinkage = number[13], number[14]
            pseudo, pseudo_first, pseudo_second = pseudo_sums(
                mean, whitening, location, scatter, count, shrinkage
            )
            for j in range(k):
                value += pseudo[j]
                zeroth[j] += count
                for f in range(d):
                    first[j, f] += pseudo_first[j, f]
                    for g in range(d):
                        second[j, f, g] += pseudo_second[j, f, g]
        by_mean, by_covariance = pull_back(zeroth, first, second, whitening)
        if by_groups:
            for j in range(k):
                for f in range(d):
                    by_mean[j, f] += rows_by_mean[j, f]
                    for g in range(d):
                        by_covariance[j, f, g] += rows_by_covariance[j, f, g]
        if not conjugate:
            value += scale_terms(
                covariance, carray(arrays[15], (6, k, d)), number[13], number[14], by_covariance
            )

        by_ratio = pull_through_log_weights(by_weight, by_share, share, source)
        by_log_s, by_factor = pull_through_covariances(by_covariance, factor, unit, s)
        if polar:
            pull_through_turn(factor, unit, by_factor, q, 1.0)
        by_vector = pull_through_elements(by_log_s, by_factor, spectrum, below)
        by_whole = np.empty(whole)
        for i in range(whole):
            if i < n_ratios:
                by_whole[i] = by_ratio[i]
            elif i < whole - k * d:
                by_whole[i] = by_vector[i - n_ratios]
            else:
                by_whole[i] = by_mean[(i - whole + k * d) // d, (i - whole + k * d) % d]
            gap = point[i] - linear[2, i]
            value += linear[0, i] * point[i] - 0.5 * linear[1, i] * gap * gap
            by_whole[i] += linear[0, i] - linear[1, i] * gap
        finite = True
        for i in range(size):
            slope[i] = by_whole[int(place[i])]
            finite = finite and math.isfinite(slope[i])
        value_[0] = value
        if not finite:
            return 3
        return 0 if math.isfinite(value) else 4

    return log_density


@cache
def compiled(by_groups: bool, polar: bool, conjugate: bool) -> Any:
    """Return the log-density as a C callback; compiled on first use.

    Parameters
    ----------
    by_groups : bool
        Whether rows may be known in part.
    polar : bool
        Whether the covariances have axes for coordinates.
    conjugate : bool
        Whether the prior is pseudo-data.
    """
    density = _log_density(by_groups, polar, conjugate)
    return cfunc(_SIGNATURE, cache=True, error_model="numpy")(density)


@dataclass(frozen=True, eq=False)
class Target:
    """A specification's log-posterior given data: value and gradient at unconstrained points.

    Parameters
    ----------
    space : Space
    terms : Terms
    data : Data
    """

    space: Space
    terms: Terms
    data: Data

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates: of free weights, covariances and means."""
        return self.space.size

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What the compiled function reads, in its order."""
        space, t, layout = self.space, self.terms, self.layout
        chart = space.chart
        number = [*layout.x.shape, chart.k, chart.spectrum.shape[1], len(layout.weight)]
        number += [chart.family.is_diagonal, chart.below.shape[1], len(space.source)]
        number += [len(layout.observed), len(layout.known), len(t.alpha)]
        number += [space.noise_level, t.constant]
        number += [t.count, t.shrinkage] if t.is_conjugate else [t.share, t.tied]
        coordinates = (chart.spectrum, chart.below, chart.unit, space.whole, space.place)
        weights = (space.source, space.base)
        noise = np.stack([space.center, space.noise_variance])
        linear = np.stack([t.linear, t.precision, t.center])
        prior = (t.alpha, linear, t.location, t.scatter, t.by_sd)
        rows = (layout.begin, layout.observed, layout.factor, layout.known)
        every = (np.array(number), layout.x, layout.weight, *coordinates, *weights, noise, *prior)
        return tuple(np.ascontiguousarray(a, dtype=np.float64) for a in (*every, *rows))

    @cached_property
    def layout(self) -> Layout:
        """The rows as the compiled function reads them."""
        return self.space.layout(self.data)

    @cached_property
    def function(self) -> Any:
        """The compiled log-density, which reads the arrays."""
        is_polar = self.space.chart.family.is_polar
        return compiled(len(self.layout.observed) > 0, is_polar, self.terms.is_conjugate)

    @cached_property
    def pointers(self) -> Any:
        """The arrays' addresses, which are good as long as this target lives."""
        return np.array([array.ctypes.data for array in self.arrays], dtype=np.uintp)

    def __call__(self, point: Array) -> tuple[float, Array]:
        """Return value and gradient; NaN, or gradients that are not finite, where none exist."""
        point = np.ascontiguousarray(point, dtype=np.float64)
        if point.shape != (self.size,):
            raise ValueError(f"a point has {self.size} coordinates, not {point.shape}")
        slope, value = np.empty(self.size), np.empty(1)
        pointer = ctypes.POINTER(ctypes.c_double)
        self.function.ctypes(
            self.size,
            *(array.ctypes.data_as(pointer) for array in (point, slope, value)),
            self.pointers.ctypes.data_as(ctypes.POINTER(pointer)),
        )
        return float(value[0]), slope

    def values(self, points: Array, threads: int | None = 1) -> Array:
        """Return the value at points (..., size), on so many threads, or on all cores for None."""
        flat = points.reshape(-1, self.size)
        if threads == 1:
            found = [self(point)[0] for point in flat]
        else:
            with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
                found = list(pool.map(lambda point: self(point)[0], flat, chunksize=16))
        return np.array(found).reshape(points.shape[:-1])

    def without_data(self) -> Target:
        """Return the log-prior in the same coordinates."""
        return replace(self, data=self.data.rows(np.empty(0, dtype=np.intp)))

    def parameters(self, points: Array) -> dict[str, Array]:
        """Return the parameters at points (..., size), in the data's units; see `Space`."""
        return self.space.parameters(points)

    def point(self, theta: Parameters) -> Array:
        """Return the point of parameters in the data's units."""
        return self.space.point(theta)


def target(
    spec: GaussianMixture,
    data: Data,
    prior: PseudoData | Separation,
    held: Fixed | None = None,
    region: Region | None = None,
) -> Target:
    """Return the log-posterior of a specification, with its prior resolved for the data.

    Parameters
    ----------
    spec : GaussianMixture
    data : Data
    prior : PseudoData or Separation
    held : Fixed, optional
        What is fixed, in the units of the data.
    region : Region, optional
        Where noise is.
    """
    space = checked_space(spec, data, held, region)
    return Target(space, terms(prior, space), data)
