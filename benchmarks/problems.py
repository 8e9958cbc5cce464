"""Data and parameters to measure with: sizes, covariance structures, and how far clusters lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.covariance import Covariance
from bayesgmm.moments import Array, Parameters

# scikit-learn's name of a structure: mclust's and ours, in many dimensions and in one.
STRUCTURES = {
    "full": ("VVV", "V"),
    "diag": ("VVI", "V"),
    "tied": ("EEE", "E"),
    "spherical": ("VII", "V"),
}
REGIMES = {
    "separated": "the closest two centres are 10 sds apart",
    "overlapping": "the farthest two centres are 1 sd apart",
}
TOUCHING = 3.0  # sds between the closest two centres, where EM has work to do
SIZES = (
    (1_000, 1, 3),
    (1_000, 2, 3),
    (100_000, 2, 3),
    (1_000_000, 2, 3),
    (200_000, 8, 8),
    (200_000, 32, 16),
    (50_000, 100, 10),
)
QUICK_SIZES = ((1_000, 1, 3), (1_000, 2, 3), (100_000, 2, 3), (20_000, 8, 8))


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, the parameters at which they are passed over, and what they are called."""

    structure: str
    regime: str
    x: Array
    parameters: Parameters

    @property
    def size(self) -> tuple[int, int, int]:
        """(n, d, k)."""
        return len(self.x), self.parameters.d, self.parameters.k

    @property
    def letters(self) -> str:
        """The family as mclust and bayesgmm call it."""
        return STRUCTURES[self.structure][self.parameters.d == 1]

    @property
    def family(self) -> Covariance:
        """The same as a value; in one dimension, that of many that says the same."""
        return Covariance(STRUCTURES[self.structure][0])

    @property
    def row(self) -> dict[str, object]:
        """What a record of a measurement begins with."""
        n, d, k = self.size
        return {"n": n, "d": d, "k": k, "structure": self.structure, "regime": self.regime}


def problem(size: tuple[int, int, int], structure: str, regime: str, seed: int = 0) -> Problem:
    """Draw a mixture of the structure, and data from it."""
    n, d, k = size
    rng = np.random.default_rng(seed)
    covariance = _covariances(rng, d, k, structure)
    mean = _centres(rng, d, k)
    if regime == "overlapping":
        mean /= _distances(mean).max()
    else:
        mean *= {"separated": 10.0, "touching": TOUCHING}[regime]
    weight = rng.dirichlet(np.full(k, 20.0))
    factor = np.linalg.cholesky(covariance)
    label = rng.choice(k, size=n, p=weight)
    x = rng.normal(size=(n, d))
    for j in range(k):
        x[label == j] = mean[j] + x[label == j] @ factor[j].T
    return Problem(structure, regime, x, Parameters(weight, mean, covariance))


def _covariances(rng: np.random.Generator, d: int, k: int, structure: str) -> Array:
    """k covariances of the structure, variances between 1/2 and 2."""
    if structure == "spherical":
        return rng.uniform(0.5, 2.0, size=(k, 1, 1)) * np.eye(d)
    different = 1 if structure == "tied" else k
    variance = rng.uniform(0.5, 2.0, size=(different, 1, d)) * np.eye(d)
    if structure != "diag":
        axes = np.linalg.qr(rng.normal(size=(different, d, d)))[0]
        variance = axes @ variance @ np.swapaxes(axes, 1, 2)
        variance = 0.5 * (variance + np.swapaxes(variance, 1, 2))
    return np.ascontiguousarray(np.broadcast_to(variance, (k, d, d)))


def _centres(rng: np.random.Generator, d: int, k: int) -> Array:
    """k centres, the closest two at distance 1."""
    centre = np.arange(float(k))[:, None] if d == 1 else rng.normal(size=(k, d))
    return centre / _distances(centre).min() if k > 1 else centre


def _distances(centre: Array) -> Array:
    pairs = np.triu_indices(len(centre), 1)
    return np.linalg.norm(centre[pairs[0]] - centre[pairs[1]], axis=1)
