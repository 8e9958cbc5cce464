"""What posterior draws were made from, out of the fit alone: data, prior, density and pivot."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm import tree
from bayesgmm.data.observations import Data, read_for
from bayesgmm.em.search import kinds
from bayesgmm.errors import ArgumentError, DataWarning
from bayesgmm.information.fixed import Fixed
from bayesgmm.labels import Labels
from bayesgmm.mixture import GaussianMixture
from bayesgmm.moments import Noise, Parameters
from bayesgmm.noise import NOISE
from bayesgmm.resolved import PseudoData, Separation, resolve
from bayesgmm.target.density import Target, target

PIVOT = "pivot"


@dataclass(frozen=True, eq=False)
class Source:
    """What posterior draws were made from.

    Parameters
    ----------
    spec : GaussianMixture
    data : Data
    prior : PseudoData or Separation
    target : Target
    pivot : Parameters
        Whose labels the draws have.
    kinds : (k,) integer array or None
        Components that may have each other's labels have the same number.
    """

    spec: GaussianMixture
    data: Data
    prior: PseudoData | Separation
    target: Target
    pivot: Parameters
    kinds: Labels | None


def posterior_of(argument: str, fit: Any, *groups: str) -> xr.DataTree:
    """Return a fit with draws from a posterior, and these groups.

    Raises
    ------
    ArgumentError
        If it is none, saying what it is instead.
    """
    found = tree.whole(argument, fit)
    kind = str(found.attrs.get("estimate", "unknown"))
    if kind != "posterior":
        what = {"mle": "a maximum-likelihood fit", "map": "a MAP fit"}.get(kind, f"a {kind}")
        raise ArgumentError(
            argument,
            f"must be a posterior, with draws by sample_posterior or fit_laplace, not {what}",
        )
    tree.whole(argument, fit, "observed_data", "constant_data", "sample_stats")
    if "log_prior" in groups and "log_prior" not in found.children and PIVOT in found.children:
        raise ArgumentError(
            argument,
            "has draws of a density that is not known: of a model edited by hand, or lp was not "
            "recorded (from_draws)",
        )
    if absent := [name for name in groups if name not in found.children]:
        raise ArgumentError(
            argument,
            f"holds no {', '.join(absent)}: it was made by an earlier version of bayesgmm. Sample "
            "again",
        )
    return found


def source_of(argument: str, fit: Any) -> Source:
    """Return what posterior draws were made from.

    Raises
    ------
    ArgumentError
        If ``fit`` is no posterior, naming the argument, or holds no pivot.
    """
    found = posterior_of(argument, fit, PIVOT)
    spec, data = tree.spec_of(found), _data_of(found)
    text = str(found.attrs.get("fixed", ""))
    held = None
    if text:
        given = {name: np.array(v, dtype=np.float64) for name, v in json.loads(text).items()}
        held = Fixed(**given)
    region, prior = tree.region_of(found), resolve(spec, data)
    group = found[PIVOT].to_dataset()
    pivot = tree.components({name: group[name].to_numpy() for name in tree.DIMS})
    if region is not None:
        pivot = replace(pivot, noise=Noise(float(group[NOISE]), -region.log_volume))
    of = target(spec, data, prior, held, region)
    return Source(spec, data, prior, of, pivot, kinds(data.probability, held))


def _data_of(fit: xr.DataTree) -> Data:
    """The data that a posterior was made from, as `sample_posterior` read them."""
    observed = fit["observed_data"].to_dataset()["x"].transpose("obs", "feature")
    known = fit["constant_data"].to_dataset()
    table = pd.DataFrame(
        observed.to_numpy(), columns=list(tree.names_of(fit)), index=observed.indexes.get("obs")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said when the fit was made
        return read_for(
            tree.spec_of(fit),
            table,
            sample_weight=known["sample_weight"].to_numpy(),
            missing="marginalise",
            labels=known["label_probability"].to_numpy() if "label_probability" in known else None,
        )
