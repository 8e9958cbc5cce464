r"""Mixtures whose columns are split into given ones and the rest: what one says of the other.

A normal distribution has, of columns m given columns o at :math:`x_o`,

.. math:: x_m \mid x_o \sim N\big(\mu_m + B (x_o - \mu_o), \, C\big), \qquad
          B = \Sigma_{mo} \Sigma_{oo}^{-1}, \quad C = \Sigma_{mm} - B \Sigma_{om}

and noise that is uniform in a box along the columns is so in m, whatever :math:`x_o` is: its slope
B is 0, its mean the centre of the box, and C is diagonal, of the sides' squares over 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesgmm.moments import Array, Noise, Parameters
from bayesgmm.noise import Region
from bayesgmm.numeric import kernel
from bayesgmm.prediction.evaluation import Mixtures


@dataclass(frozen=True, eq=False)
class Partitioned:
    """One mixture of j components, its columns split into o given and m others.

    Of noise there is a component for each draw, after all the others.
    """

    log_weight: Array  # (j,)
    given_mean: Array  # (j, o)
    whitening: Array  # (j, o, o), of the given columns
    mean: Array  # (j, m)
    slope: Array  # (j, m, o): B
    covariance: Array  # (j, m, m): C

    def responsibilities(self, x: Array) -> Array:
        """Return (j, n) shares of the components in rows of the given columns (n, o)."""
        found = kernel.rows(x, self.log_weight, self.given_mean, self.whitening, True)
        return np.asarray(found[1])

    def means(self, x: Array) -> Array:
        """Return the components' conditional means, (j, n, m)."""
        with np.errstate(over="ignore", invalid="ignore"):  # at 1e308 a mean can be infinite
            apart = x - self.given_mean[:, None]
            return self.mean[:, None] + apart @ np.swapaxes(self.slope, 1, 2)


def partitioned(
    some: Mixtures, observed: list[int], rest: list[int], region: Region | None
) -> Partitioned:
    """Split (s, k) mixtures, taken as one of s k components, and of s of noise if they have it.

    With the given columns first, the Cholesky factor has the blocks L_oo, L_mo = B L_oo and L_mm,
    with L_mm L_mm' = C: nothing is subtracted, and C is positive definite.

    Parameters
    ----------
    some : Mixtures
        With noise in a box along the columns, or none.
    observed, rest : list of int
        The given columns, and the others that are asked about.
    region : Region or None
        Where noise is. Without it the components of noise have NaN for a mean.
    """
    s, o = len(some.weight), len(observed)
    order = [*observed, *rest]
    mean = some.mean.reshape(-1, some.mean.shape[-1])[:, order]
    flat = some.covariance.reshape(len(mean), *some.covariance.shape[2:])
    covariance = flat[:, order][:, :, order]
    factor = np.linalg.cholesky(covariance)
    whitening = np.asarray(kernel.factorise(np.ascontiguousarray(covariance[:, :o, :o]), False)[0])
    inner = factor[:, o:, o:]
    with np.errstate(divide="ignore"):
        log_weight = np.log(some.weight.ravel()) - np.log(s)
    split = Partitioned(
        log_weight,
        np.ascontiguousarray(mean[:, :o]),
        whitening,
        mean[:, o:],
        factor[:, o:, :o] @ whitening,
        inner @ np.swapaxes(inner, 1, 2),
    )
    if some.noise is None:
        return split
    return _with_noise(split, taken(some.noise, observed, some.mean.shape[-1]), region, rest)


def taken(noise: Sequence[Noise], columns: list[int], d: int) -> tuple[Noise, ...]:
    """Return the noise of every draw in some of d columns."""
    return tuple(one.take(columns, d) for one in noise)


def _with_noise(
    split: Partitioned, noise: Sequence[Noise], region: Region | None, rest: list[int]
) -> Partitioned:
    s, m, o = len(noise), split.mean.shape[1], split.given_mean.shape[1]
    # As the pass over the data has it: normal, and so wide that it is flat.
    none = (np.empty(0), np.empty((0, o)), np.empty((0, o, o)))
    wide = [Parameters(*none, one).widened for one in noise]
    center, spread = np.full(m, np.nan), np.full((m, m), np.nan)
    if region is not None:
        center, spread = region.mean[rest], region.covariance[np.ix_(rest, rest)]
    return Partitioned(
        np.concatenate([split.log_weight, *(one.log_weight - np.log(s) for one in wide)]),
        np.concatenate([split.given_mean, *(one.mean for one in wide)]),
        np.concatenate([split.whitening, *(one.whitening for one in wide)]),
        np.concatenate([split.mean, np.broadcast_to(center, (s, m))]),
        np.concatenate([split.slope, np.zeros((s, m, o))]),
        np.concatenate([split.covariance, np.broadcast_to(spread, (s, m, m))]),
    )
