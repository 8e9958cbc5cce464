"""`GaussianMixture`: the specification that both engines compile. Free of data and of PyMC."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal

from bayesgmm.arguments import whole_number
from bayesgmm.covariance import Covariance
from bayesgmm.errors import ArgumentError
from bayesgmm.prior import (
    ConjugatePrior,
    HalfNormal,
    HierarchicalInverseGamma,
    InverseGamma,
    LogNormal,
    Prior,
    SeparationPrior,
)

_PRIORS: dict[str, type[Any]] = {
    "conjugate": ConjugatePrior,
    "separation": SeparationPrior,
}
_SCALES: dict[str, type[Any]] = {
    "lognormal": LogNormal,
    "inversegamma": InverseGamma,
    "halfnormal": HalfNormal,
    "hierarchicalinversegamma": HierarchicalInverseGamma,
}


@dataclass(frozen=True)
class GaussianMixture:
    r"""A Gaussian mixture, written down once.

    .. math:: p(x) = \sum_{k=1}^{K} \pi_k N(x; \mu_k, \Sigma_k), \qquad
              \Sigma_k = \lambda_k D_k A_k D_k^\top

    Parameters
    ----------
    n_components : int
        K, at least 1.
    covariance : Covariance or str
        The family: three letters for volume, shape and orientation (``"VVV"``), ``"E"`` or ``"V"``
        in one dimension, or an alias: ``"full"``, ``"tied"``, ``"diag"``, ``"spherical"``, ...
    prior : ConjugatePrior, SeparationPrior, "conjugate", "separation" or None
        For the posterior and for MAP fits; maximum likelihood ignores it. ``None`` allows maximum
        likelihood only.
    noise : bool, "columns" or float
        Whether rows may belong to no component: a further one, of weight :math:`\pi_0`, is uniform
        with density 1/V (Banfield & Raftery 1993). True takes the smaller of two boxes around the
        data, along the columns or along their principal axes, as mclust does; ``"columns"`` that
        along the columns, in which noise is uniform in single columns, too, as `marginal`,
        `conditional`, `regress` and `loo_pit` need; a number is V itself, in units of the data.
        Where values are missing, or columns are linear combinations of others, the box is along the
        columns; of a row that lacks values noise is uniform in those that are observed. A row of
        whose component something is known is no noise.

    Raises
    ------
    ArgumentError
        If an argument is wrong; the message names it.

    Examples
    --------
    >>> spec = GaussianMixture(2, "full")
    >>> spec.covariance.letters
    'VVV'
    >>> GaussianMixture.from_json(spec.to_json()) == spec
    True
    """

    n_components: int
    covariance: Covariance
    prior: Prior | None
    noise: float | Literal["box", "columns"] | None

    def __init__(
        self,
        n_components: int,
        covariance: Covariance | str = "VVV",
        prior: Prior | str | None = "conjugate",
        noise: bool | float | Literal["box", "columns"] | None = False,
    ) -> None:
        if not isinstance(covariance, Covariance):
            covariance = Covariance(covariance)
        if isinstance(prior, str):
            if prior not in _PRIORS:
                raise ArgumentError(
                    "prior", f"{prior!r} is unknown; use {', '.join(map(repr, _PRIORS))} or a value"
                )
            prior = _PRIORS[prior]()
        elif prior is not None and not isinstance(prior, Prior):
            raise ArgumentError(
                "prior",
                f"must be a ConjugatePrior, a SeparationPrior, a name or None, not {prior!r}",
            )
        object.__setattr__(
            self, "n_components", whole_number("n_components", n_components, least=1)
        )
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "prior", prior)
        object.__setattr__(self, "noise", _checked_noise(noise))

    def __repr__(self) -> str:
        noise = "" if self.noise is None else f", noise={self.noise!r}"
        return (
            f"GaussianMixture(n_components={self.n_components}, "
            f"covariance={self.covariance.letters!r}, prior={self.prior!r}{noise})"
        )

    @property
    def has_noise(self) -> bool:
        """Whether rows may belong to no component."""
        return self.noise is not None

    def n_parameters(self, d: int) -> int:
        """Count the free parameters in ``d`` dimensions: weights, means and covariances.

        With noise its weight, and the volume if it comes from the data, as in mclust.
        """
        k = self.n_components
        noise = 0 if self.noise is None else 2 if isinstance(self.noise, str) else 1
        return k - 1 + k * d + self.covariance.n_parameters(k, d) + noise

    def to_json(self) -> str:
        """Return the specification as a JSON object; `from_json` gives it back."""
        prior: dict[str, Any] | None = None
        if self.prior is not None:
            prior = {"kind": _name_of(self.prior, _PRIORS)} | asdict(self.prior)
            if isinstance(self.prior, SeparationPrior):
                kind = _name_of(self.prior.scale, _SCALES)
                prior["scale"] = {"kind": kind} | asdict(self.prior.scale)
        return json.dumps(
            {
                "n_components": self.n_components,
                "covariance": self.covariance.letters,
                "prior": prior,
                "noise": self.noise,
            }
        )

    @staticmethod
    def from_json(text: str) -> GaussianMixture:
        """Return the specification that `to_json` wrote.

        Raises
        ------
        ArgumentError
            If the text is not such a JSON object.
        """
        try:
            record = json.loads(text)
            prior = record["prior"]
            if prior is not None:
                prior = dict(prior)
                if isinstance(prior.get("scale"), dict):
                    prior["scale"] = _from_record(prior["scale"], _SCALES)
                prior = _from_record(prior, _PRIORS)
            size, letters = record["n_components"], record["covariance"]
            return GaussianMixture(size, letters, prior, record.get("noise"))
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError("text", f"not the JSON of a GaussianMixture ({error})") from error


def refuse_other(spec: Any) -> None:
    """Refuse what is no specification."""
    if not isinstance(spec, GaussianMixture):
        raise ArgumentError("spec", f"must be a GaussianMixture, not {type(spec).__name__}")


def _checked_noise(noise: Any) -> float | Literal["box", "columns"] | None:
    if noise is None or noise is False:
        return None
    if noise is True or (isinstance(noise, str) and noise == "box"):
        return "box"
    if isinstance(noise, str) and noise == "columns":
        return "columns"
    if isinstance(noise, Real) and 0 < float(noise) < float("inf"):
        return float(noise)
    raise ArgumentError(
        "noise", f"must be True, False, 'columns' or a volume above 0, not {noise!r}"
    )


def _name_of(value: object, kinds: dict[str, type[Any]]) -> str:
    return next(name for name, kind in kinds.items() if type(value) is kind)


def _from_record(record: dict[str, Any], kinds: dict[str, type[Any]]) -> Any:
    numbers = {key: value for key, value in record.items() if key != "kind"}
    return kinds[record["kind"]](**numbers)
