"""Components of which all rows have one value of a column, as rounded numbers may."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.data.observations import Data
from bayesgmm.moments import Parameters
from bayesgmm.streams import Rows

# Standard deviation, in distances to the nearest other value, from which on other values count.
# Numbers that were rounded to one value have 0.29 of them.
_WITHIN = 0.1
# And in those of the column, beyond which nothing is looked for. A tenth of the distance between
# two values alone that are equally frequent is 0.2.
_NARROW = 0.25


@dataclass(frozen=True)
class SingleValue:
    """A component that is at one value of a column.

    Parameters
    ----------
    component : int
    column : str
    value : float
    share : float
        Its standard deviation there, in distances to the nearest other value.
    """

    component: int
    column: str
    value: float
    share: float


def single_value(data: Data, parameters: Parameters) -> SingleValue | None:
    """Return the component that is narrowest beside the values of a column, if one has one value.

    Where several rows have the same value of a column, a component of these alone can be as narrow
    there as one likes, and the likelihood as high, whatever the rest of the model; no start ends
    there if that makes a covariance singular, but with axes that are common it need not.

    Parameters
    ----------
    data : Data
    parameters : Parameters
        In anchored units.
    """
    p, x, center, scale = parameters, data.x, data.center, data.scale
    if data.mix is not None:  # coordinates that are no columns
        p, x = data.to_data_units(parameters), data.values
        center, scale = np.zeros(data.d), np.ones(data.d)
    sd = np.sqrt(np.diagonal(p.covariance, axis1=1, axis2=2))
    weight = p.weight / p.weight.sum()
    whole = np.sqrt(weight @ (sd**2 + (p.mean - weight @ p.mean) ** 2))
    found: list[SingleValue] = []
    for j in np.flatnonzero((sd < _NARROW * whole).any(axis=0)).tolist():
        value = np.unique(Rows(x, data.weight).column(j)[0])
        if len(value) < 2:  # integers beyond 2**53 that are one and the same as floats
            continue
        for k in np.flatnonzero(sd[:, j] < _NARROW * whole[j]).tolist():
            i = int(np.argmin(np.abs(value - p.mean[k, j])))
            gap = float(np.diff(value[max(i - 1, 0) : i + 2]).min())
            if sd[k, j] < _WITHIN * gap:
                at = float(value[i] * scale[j] + center[j])
                found.append(SingleValue(k, data.names[j], at, float(sd[k, j] / gap)))
    return min(found, key=lambda single: single.share, default=None)
