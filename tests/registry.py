"""One table of what the laws are tested on: families, sizes, scatters, data sets.

What is here knows the families by their letters only (`compose`: volume, shape, orientation), and
nothing of how the package finds its way through them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import expm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesgmm.covariance import FAMILIES, ONE_DIMENSIONAL, Covariance
from bayesgmm.moments import Parameters

GOLDEN = Path(__file__).parent / "golden"
EVERY = tuple(Covariance(letters) for letters in FAMILIES)
ONE_D = tuple(Covariance(letters) for letters in ONE_DIMENSIONAL)
POLAR = tuple(family for family in EVERY if family.is_polar)
COMMON_AXES = tuple(family for family in EVERY if family.letters in ("EVE", "VVE"))

#: (family, d): every family in two and three dimensions, and the two of one dimension.
FAMILY_SIZES = [
    *((family, d) for family in EVERY for d in (2, 3)),
    *((family, 1) for family in ONE_D),
]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def table(name: str) -> pd.DataFrame:
    """The numeric columns of a data set of the golden folder; never to be changed."""
    return pd.read_csv(GOLDEN / "data" / f"{name}.csv").select_dtypes("number")


# Members of a family, from its letters


def _groups(letter: str, k: int) -> int:
    return {"I": 0, "E": 1, "V": k}[letter]


def sizes(family: Covariance, k: int, d: int) -> tuple[int, int, int]:
    """Numbers of log-volumes, log-shapes and angles; their sum is the number of parameters."""
    return (
        _groups(family.volume, k),
        _groups(family.shape, k) * (d - 1),
        _groups(family.orientation, k) * (d * (d - 1) // 2),
    )


def spectra(
    family: Covariance, k: int, d: int, phi: np.ndarray, base: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-volumes (k,), log-shapes (k, d) that sum to zero, axes (k, d, d), from free numbers."""
    volumes, shapes, angles = np.split(phi, np.cumsum(sizes(family, k, d))[:2])
    log_shape = np.zeros((k, d))
    if shapes.size:
        free = shapes.reshape(-1, d - 1)
        log_shape = np.broadcast_to(np.column_stack([free, -free.sum(axis=1)]), (k, d))
    axes = np.broadcast_to(np.eye(d) if base is None else base, (k, d, d))
    if angles.size:
        skew = np.zeros((angles.size // (d * (d - 1) // 2), d, d), dtype=phi.dtype)
        lower = np.tril_indices(d, -1)
        skew[:, lower[0], lower[1]] = angles.reshape(len(skew), -1)
        turn = expm(skew - np.swapaxes(skew, 1, 2))
        axes = axes @ turn
    return np.broadcast_to(volumes, (k,)), log_shape, axes


def compose(
    family: Covariance, k: int, d: int, phi: np.ndarray, base: np.ndarray | None = None
) -> np.ndarray:
    """lambda_k D_k A_k D_k' from free numbers: log-volumes, log-shapes, angles (about ``base``)."""
    log_volume, log_shape, axes = spectra(family, k, d, phi, base)
    spectrum = np.exp(log_volume[:, None] + log_shape)
    return (axes * spectrum[:, None, :]) @ np.swapaxes(axes, 1, 2)


def decompose(family: Covariance, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return phi and base with which `compose` gives these covariances, members of the family."""
    k, d = covariance.shape[:2]
    if family.is_diagonal:
        base = np.broadcast_to(np.eye(d), (k, d, d))
    elif family.orientation == "E" and family.shape == "V":
        mixed = np.tensordot(1.0 + 0.7 * np.arange(k), covariance / _volume(covariance), axes=1)
        base = np.broadcast_to(np.linalg.eigh(mixed)[1], (k, d, d))
    elif family.orientation == "E":
        base = np.broadcast_to(np.linalg.eigh(covariance[0])[1], (k, d, d))
    else:
        base = np.linalg.eigh(covariance)[1]
    spectrum = np.einsum("kia,kij,kja->ka", base, covariance, base)
    log_volume = np.log(spectrum).mean(axis=1)
    log_shape = np.log(spectrum) - log_volume[:, None]
    n_volume, n_shape, n_angle = sizes(family, k, d)
    volumes = log_volume[:n_volume]
    shapes = log_shape[: n_shape // max(d - 1, 1), : d - 1].ravel() if n_shape else np.empty(0)
    return np.concatenate([volumes, shapes, np.zeros(n_angle)]), base


def _volume(covariance: np.ndarray) -> np.ndarray:
    return np.exp(np.linalg.slogdet(covariance)[1] / covariance.shape[1])[:, None, None]


def member(
    rng: np.random.Generator, family: Covariance, k: int, d: int, spread: float = 0.7
) -> np.ndarray:
    """Random covariances of the family, (k, d, d)."""
    return compose(family, k, d, spread * rng.normal(size=sum(sizes(family, k, d))))


def mixture(
    rng: np.random.Generator, family: Covariance, k: int, d: int, apart: float = 3.0
) -> Parameters:
    """A random mixture of the family; ``apart`` is the sd of the means."""
    weight = rng.dirichlet(np.full(k, 5.0))
    mean = apart * rng.normal(size=(k, d))
    return Parameters(weight, mean, member(rng, family, k, d))


def simulate(rng: np.random.Generator, parameters: Parameters, n: int) -> np.ndarray:
    z = rng.choice(parameters.k, size=n, p=parameters.weight)
    noise = rng.normal(size=(n, parameters.d))
    return parameters.mean[z] + np.einsum("nij,nj->ni", parameters.factor[z], noise)


def loglik(x: np.ndarray, parameters: Parameters, weight: np.ndarray | None = None) -> float:
    """The log-likelihood from SciPy's densities."""
    joint = [
        np.log(p) + multivariate_normal(m, c).logpdf(x)
        for p, m, c in zip(parameters.weight, parameters.mean, parameters.covariance, strict=True)
    ]
    rows = logsumexp(np.reshape(joint, (parameters.k, len(x))), axis=0)
    return float(rows.sum() if weight is None else weight @ rows)


def complex_loglik(
    x: np.ndarray, log_weight: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """Log-density of every row at complex parameters: its imaginary part is an exact derivative."""
    joint = np.empty((len(x), len(mean)), dtype=complex)
    for k in range(len(mean)):
        z = x - mean[k]
        square = (z * np.linalg.solve(covariance[k], z.T).T).sum(axis=1)
        logdet = np.log(np.linalg.det(2 * np.pi * covariance[k]))
        joint[:, k] = log_weight[k] - 0.5 * (logdet + square)
    top = joint.real.max(axis=1)
    return np.asarray(top + np.log(np.exp(joint - top[:, None]).sum(axis=1)))


# The family's own coordinates of a whole mixture: k - 1 log-ratios of weights, means, phi


def coordinates(
    family: Covariance, parameters: Parameters
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Return theta and the map from (real or complex) theta to weights, means, covariances."""
    k, d = parameters.k, parameters.d
    phi, base = decompose(family, parameters.covariance)
    ratio = np.log(parameters.weight[1:] / parameters.weight[0])
    theta = np.concatenate([ratio, parameters.mean.ravel(), phi])

    def at(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = np.exp(np.concatenate([np.zeros(1), theta[: k - 1]]))
        mean = theta[k - 1 : k - 1 + k * d].reshape(k, d)
        covariance = compose(family, k, d, theta[k - 1 + k * d :], base)
        return weight / weight.sum(), mean, covariance

    return theta, at


# Scatters: what the M-step is given


def _wishart(rng: np.random.Generator, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    count = rng.uniform(4 * d, 40 * d, size=k)
    root = rng.normal(size=(k, d, d)) + 0.5 * np.eye(d)
    return count, count[:, None, None] * (root @ np.swapaxes(root, 1, 2) + 0.05 * np.eye(d))


def _nearly_round(rng: np.random.Generator, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearly equal eigenvalues, where axes are hardly determined."""
    count, scatter = _wishart(rng, k, d)
    size = np.trace(scatter, axis1=1, axis2=2)[:, None, None] / d
    return count, size * np.eye(d) + 1e-4 * scatter


def _stretched(rng: np.random.Generator, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Condition numbers up to 1e6, volumes that differ a hundredfold."""
    count, _ = _wishart(rng, k, d)
    axes = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    spectrum = 10.0 ** rng.uniform(-3, 3, size=(k, d))
    scatter = count[:, None, None] * (axes * spectrum[:, None, :]) @ np.swapaxes(axes, 1, 2)
    return count, 0.5 * (scatter + np.swapaxes(scatter, 1, 2))


def _alike(rng: np.random.Generator, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The same covariance behind every scatter: what the family leaves equal is equal."""
    _, scatter = _wishart(rng, 1, d)
    count = rng.uniform(10, 1000, size=k)
    noise = 1.0 + 0.01 * rng.uniform(size=(k, 1, 1))
    return count, count[:, None, None] * noise * scatter


Scatter = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
SCATTERS: dict[str, Scatter] = {
    "plain": _wishart,
    "nearly round": _nearly_round,
    "stretched": _stretched,
    "alike": _alike,
}


# Pairs of nested families: one letter freed


def nested() -> list[tuple[Covariance, Covariance]]:
    order = "IEV"
    pairs = []
    for small in EVERY:
        for large in EVERY:
            differ = [(a, b) for a, b in zip(small.letters, large.letters, strict=True) if a != b]
            if len(differ) == 1 and differ[0] in set(pairwise(order)):
                pairs.append((small, large))
    return pairs


# Data regimes for the laws of EM: (n, d) numbers and how many components are asked for


def regime(
    name: str, rng: np.random.Generator, family: Covariance, d: int
) -> tuple[np.ndarray, int]:
    """Random data of one kind."""
    k = {"one component": 1, "three overlapping": 3}.get(name, 2)
    apart = {"apart": 6.0, "three overlapping": 1.5}.get(name, 2.5)
    x = simulate(rng, mixture(rng, family, k, d, apart), 40 * k * d)
    if name == "rounded":
        x = np.round(x, 1)
    if name == "heavy tails":
        x = x * rng.gamma(2.0, 0.5, size=(len(x), 1)) ** -0.5
    return x, k


REGIMES = ("one component", "apart", "overlapping", "three overlapping", "rounded", "heavy tails")
