r"""How far two partitions are from each other, by Binder's loss and by variation of information.

With :math:`n_a` and :math:`m_b` the sizes of the clusters of two partitions and :math:`n_{ab}` the
number of rows in both a and b, the two losses have one form,

.. math:: L(c, z) = \frac1{\phi_0} \Big( \sum_a \phi(n_a) + \sum_b \phi(m_b)
          - 2 \sum_{ab} \phi(n_{ab}) \Big)

*Binder's loss* (equal costs) has :math:`\phi(x) = x^2`, :math:`\phi_0 = n^2`: twice the number of
pairs of rows that are together in one and apart in the other, over n².  *Variation of information*
has :math:`\phi(x) = x \log_2 x`, :math:`\phi_0 = n`: the entropy, in bits, of each partition given
the other, added up.  Both are metrics, between 0 and 1 - 1/n, and between 0 and log2 n.

References
----------
Binder (1978), Biometrika 65, 31-38.  Meila (2007), J. Multivariate Anal. 98, 873-895.  Wade &
Ghahramani (2018), Bayesian Anal. 13, 559-626.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayesgmm.allocation import contingency
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array

Loss = Literal["vi", "binder"]


def phi(loss: Loss, n: int) -> Array:
    """Return the loss's function at 0..n, over its constant.

    Raises
    ------
    ArgumentError
        If there is no such loss.
    """
    x = np.arange(n + 1, dtype=float)
    if loss == "binder":
        return x**2 / n**2
    if loss == "vi":
        return x * np.log2(np.maximum(x, 1.0)) / n
    raise ArgumentError("loss", f"must be 'vi' or 'binder', not {loss!r}")


def distances(label: NDArray[np.intp], z: NDArray[np.int16], loss: Loss) -> Array:
    """Return the losses (s,) between a partition (n,) and s others (n, s), of numbers from 0."""
    of = phi(loss, len(label))
    return np.asarray(contingency.distances(label, z, of, int(label.max()) + 1, int(z.max()) + 1))
