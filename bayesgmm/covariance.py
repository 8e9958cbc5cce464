r"""The covariance families as values: three letters, a parameter count, and one M-step.

.. math:: \Sigma_k = \lambda_k D_k A_k D_k^\top

with volume :math:`\lambda_k`, shape :math:`A_k` (diagonal, determinant 1) and orientation
:math:`D_k` (orthogonal), each *E*\ qual across components, *V*\ ariable, or the *I*\ dentity.
A family is a value of three letters; nothing switches on a family's name, only on a letter.

References
----------
Banfield & Raftery (1993), Biometrics 49, 803-821. Celeux & Govaert (1995), Pattern Recognition
28, 781-793. Scrucca, Fop, Murphy & Raftery (2016), R Journal 8, 289-317 (the names).
Flury & Gautschi (1986), SIAM J. Sci. Stat. Comput. 7, 169-184 (common axes by plane rotations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayesgmm.errors import ArgumentError
from bayesgmm.numeric.rotations import ascend
from bayesgmm.numeric.shapes import alternate

Array = NDArray[np.float64]

FAMILIES = (
    *("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE"),
    *("VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"),
)
ONE_DIMENSIONAL = ("E", "V")
ALIASES = {
    "spherical": "VII",
    "tied-spherical": "EII",
    "diag": "VVI",
    "diagonal": "VVI",
    "tied-diag": "EEI",
    "tied-diagonal": "EEI",
    "tied": "EEE",
    "full": "VVV",
}


@dataclass(frozen=True)
class Covariance:
    """One covariance family, e.g. ``Covariance("VVE")`` or ``Covariance("tied")``.

    Parameters
    ----------
    letters : str
        Volume, shape and orientation (any of the fourteen of mclust), ``"E"`` or ``"V"`` for one
        dimension, or an alias: spherical, tied-spherical, diag, tied-diag, tied, full.

    Raises
    ------
    ArgumentError
        If the name is none of these.
    """

    letters: str

    def __post_init__(self) -> None:
        known = FAMILIES + ONE_DIMENSIONAL
        letters = self.letters
        if isinstance(letters, str):
            letters = ALIASES.get(letters.lower().replace("_", "-"), letters.upper())
        if letters not in known:
            raise ArgumentError(
                "covariance",
                f"{self.letters!r} is not a covariance family; use one of {', '.join(known)} "
                f"or an alias ({', '.join(ALIASES)})",
            )
        object.__setattr__(self, "letters", letters)

    def __str__(self) -> str:
        return self.letters

    @property
    def volume(self) -> str:
        """``"E"`` or ``"V"``."""
        return self.letters[0]

    @property
    def shape(self) -> str:
        """``"E"``, ``"V"`` or ``"I"``."""
        return self.letters[1:2] or "I"

    @property
    def orientation(self) -> str:
        """``"E"``, ``"V"`` or ``"I"``."""
        return self.letters[2:] or "I"

    @property
    def is_one_dimensional(self) -> bool:
        """Whether the family is ``"E"`` or ``"V"``, which mean something in one dimension only."""
        return self.letters in ONE_DIMENSIONAL

    @property
    def is_diagonal(self) -> bool:
        """Whether every covariance of the family is a diagonal matrix."""
        return self.orientation == "I"

    @property
    def is_common(self) -> bool:
        """Whether all components share one covariance (EII, EEI, EEE, E)."""
        return "V" not in self.letters

    @property
    def shares_nothing(self) -> bool:
        """Whether each component has its covariance to itself (VII, VVI, VVV, V)."""
        return "E" not in self.letters

    @property
    def is_polar(self) -> bool:
        """Whether axes and shape are shared differently: EVE, VVE, EEV, VEV."""
        return {self.shape, self.orientation} == {"E", "V"}

    @property
    def is_axis_equivariant(self) -> bool:
        """Whether rescaling single columns maps the family onto itself."""
        return not self.is_polar and self.letters not in ("EII", "VII")

    @property
    def is_affine_equivariant(self) -> bool:
        """Whether every linear map of the data maps the family onto itself: EEE, VEE, EVV, VVV."""
        return not (self.is_polar or self.is_diagonal)

    @property
    def nested(self) -> tuple[Covariance, ...]:
        """The largest families that are special cases of this one: one letter more restricted."""
        known = ONE_DIMENSIONAL if self.is_one_dimensional else FAMILIES
        return self.nested_among(map(Covariance, known))

    def nested_among(self, families: Iterable[Covariance]) -> tuple[Covariance, ...]:
        """Return the largest of some families that are special cases of this one."""
        below = [f for f in families if f.is_nested_in(self)]
        return tuple(f for f in below if not any(f.is_nested_in(other) for other in below))

    def is_nested_in(self, other: Covariance) -> bool:
        """Whether each letter restricts as much as the other's, and one of them more."""
        freedom = "IEV"
        return self != other and all(
            freedom.index(a) <= freedom.index(b)
            for a, b in zip(self.letters, other.letters, strict=True)
        )

    def n_parameters(self, k: int, d: int) -> int:
        """Count the free covariance parameters of ``k`` components in ``d`` dimensions.

        Parameters
        ----------
        k, d : int
            Numbers of components and of features.

        Returns
        -------
        int
            Volume {E: 1, V: k} + shape {I: 0, E: d-1, V: k(d-1)} + orientation {I: 0,
            E: d(d-1)/2, V: k d(d-1)/2}.
        """
        times = {"I": 0, "E": 1, "V": k}
        return (
            times[self.volume]
            + times[self.shape] * (d - 1)
            + times[self.orientation] * (d * (d - 1) // 2)
        )


def maximise(family: Covariance, count: Array, scatter: Array, start: Array | None = None) -> Array:
    r"""Return the covariances that maximise EM's objective: the M-step of every family.

    .. math:: Q = -\tfrac12 \sum_k [ n_k \log|\Sigma_k| + \mathrm{tr}(W_k \Sigma_k^{-1}) ]

    The orientation letter says in which frame the scatters are looked at (:math:`B_k`: their
    trace, their diagonal, the whole matrix, or the diagonal in own or common axes); volume and
    shape then say how the :math:`B_k` are shared.

    Parameters
    ----------
    family : Covariance
    count : (k,) array
        :math:`n_k > 0`, the divisors.
    scatter : (k, d, d) array
        :math:`W_k`, positive definite.
    start : (k, d, d) array, optional
        Covariances of the family from which the iterative families start (the current ones).

    Returns
    -------
    (k, d, d) array
        Not finite or not positive definite where a scatter is singular: the caller must look.

    References
    ----------
    Celeux & Govaert (1995), section 4 and Table 2.
    """
    try:
        with np.errstate(all="ignore"):
            return _maximise(family, count, scatter, start)
    except np.linalg.LinAlgError:  # a singular or not finite matrix in one of the iterations
        return np.full(scatter.shape, np.nan)


def _maximise(family: Covariance, count: Array, scatter: Array, start: Array | None) -> Array:
    share = _SHARE[family.volume, family.shape]
    if family.shape == "I":
        d = scatter.shape[1]
        mean_square = np.trace(scatter, axis1=1, axis2=2)[:, None] / d
        return _embed(share(count, np.repeat(mean_square, d, axis=1), None))
    if family.orientation == "I":
        first = None if start is None else np.diagonal(start, axis1=1, axis2=2)
        return _embed(share(count, np.diagonal(scatter, axis1=1, axis2=2), first))
    if not family.is_polar:
        return share(count, scatter, start)
    if family.orientation == "V":
        value, axes = np.linalg.eigh(scatter)
        first = None if start is None else np.linalg.eigvalsh(start)
        return _rotate(axes, share(count, value, first))
    return _maximise_common_axes(count, scatter, family.volume == "E", start)


def objective(count: Array, scatter: Array, covariance: Array) -> float:
    """Return Q of `maximise` at given covariances."""
    logdet = np.linalg.slogdet(covariance)[1]
    trace = np.trace(np.linalg.solve(covariance, scatter), axis1=1, axis2=2)
    return float(-0.5 * (count @ logdet + trace.sum()))


# Sharing of volume and shape among the projected scatters B_k, which are (k, d) where the frame
# makes them diagonal and (k, d, d) otherwise.


def _logdet(b: Array) -> Array:
    return np.log(b).sum(axis=-1) if b.ndim == 2 else np.linalg.slogdet(b)[1]


def _over(b: Array, x: Array) -> Array:
    return b / x.reshape(-1, *(1,) * (b.ndim - 1))


def _share_nothing(count: Array, b: Array, start: Array | None) -> Array:
    return _over(b, count)


def _share_all(count: Array, b: Array, start: Array | None) -> Array:
    return np.broadcast_to(b.sum(axis=0) / count.sum(), b.shape)


def _share_volume(count: Array, b: Array, start: Array | None) -> Array:
    root = np.exp(_logdet(b) / b.shape[1])
    return _over(b, root / (root.sum() / count.sum()))


def _share_shape(count: Array, b: Array, start: Array | None) -> Array:
    d = b.shape[1]
    log_volume = _logdet(b if start is None else start) / d
    if start is None:
        log_volume -= np.log(count)
    is_diagonal = b.ndim == 2
    whole = _embed(b) if is_diagonal else b
    common, is_definite = alternate(count, np.ascontiguousarray(whole), log_volume, is_diagonal)
    if not is_definite:
        raise np.linalg.LinAlgError("a scatter is not positive definite")
    common = np.diagonal(common) if is_diagonal else common
    return _over(np.broadcast_to(common, b.shape), np.exp(-log_volume))


Share = Callable[[Array, Array, Array | None], Array]
_SHARE: dict[tuple[str, str], Share] = {
    ("E", "I"): _share_all,
    ("V", "I"): _share_nothing,
    ("E", "E"): _share_all,
    ("V", "E"): _share_shape,
    ("E", "V"): _share_volume,
    ("V", "V"): _share_nothing,
}


def _embed(diagonal: Array) -> Array:
    return diagonal[..., None] * np.eye(diagonal.shape[-1])


def _rotate(axes: Array, diagonal: Array) -> Array:
    product = (axes * diagonal[:, None, :]) @ np.swapaxes(axes, -1, -2)
    return 0.5 * (product + np.swapaxes(product, -1, -2))  # symmetric to the last bit


# Common axes with own shapes (EVE, VVE): plane rotations, each the exact optimum for its pair.


def _maximise_common_axes(
    count: Array, scatter: Array, is_equal_volume: bool, start: Array | None
) -> Array:
    if start is None:
        tries = np.linalg.eigh(np.concatenate([scatter.sum(axis=0)[None], scatter]))[1]
    else:
        tries = shared_axes(start)[None]
    best, best_value = np.full(scatter.shape, np.nan), -np.inf
    for axes in tries:
        turned = axes.T @ scatter @ axes
        variance, value = ascend(count, turned, axes, is_equal_volume)  # turns both
        if value > best_value:
            axes = np.broadcast_to(axes, scatter.shape)
            best, best_value = _rotate(axes, variance), value
    return best


def shared_axes(covariance: Array) -> Array:
    """Return the (d, d) axes of covariances (k, d, d) that have them in common."""
    # Matrices that share their axes share them with any combination; unlike factors keep a
    # repeated eigenvalue of one component from hiding the axes of another.
    factor = np.trace(covariance, axis1=1, axis2=2) * (1.0 + 0.37 * np.arange(len(covariance)))
    return np.linalg.eigh(_over(covariance, factor).sum(axis=0))[1]
