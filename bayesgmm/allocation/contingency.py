r"""Tables of clusters by components, one for every draw, in Numba: losses, and the way downhill.

The expected loss of a partition c over draws :math:`z^{(1)} \dots z^{(S)}` is, but for what does
not depend on c,

.. math:: \sum_a \phi(n_a) - \frac2S \sum_s \sum_{ab} \phi(n^{(s)}_{ab}),

with :math:`\phi` of `losses`, so that moving a row changes two clusters' terms, and costs O(S) for
every cluster that it may go to, however many rows there are.  No matrix of pairs is needed.

All that Numba compiles is in this file: its cache knows of changes in no other.

References
----------
Dahl, Johnson & Müller (2022), J. Comput. Graph. Statist. 31, 1189-1201 (SALSO; merges are ours).
"""

from __future__ import annotations

import numpy as np
from numba import njit

_ENOUGH = 1e-12  # of the loss's unit: smaller gains are rounding


@njit(nogil=True, cache=True, error_model="numpy")
def tables(label, z, most, k):  # type: ignore[no-untyped-def]
    """Rows in every cluster, (most,), and in cluster and component of every draw, (most, s, k).

    Rows with label -1 are not counted.
    """
    n, s = z.shape
    count, table = np.zeros(most, np.int64), np.zeros((most, s, k), np.int32)
    for i in range(n):
        a = label[i]
        if a >= 0:
            count[a] += 1
            for t in range(s):
                table[a, t, z[i, t]] += 1
    return count, table


@njit(nogil=True, cache=True, error_model="numpy")
def distances(label, z, phi, most, k):  # type: ignore[no-untyped-def]
    """Losses (s,) between a partition (n,) and each draw (n, s), given the loss's function."""
    count, table = tables(label, z, most, k)
    s = z.shape[1]
    own = 0.0
    for a in range(most):
        own += phi[count[a]]
    found = np.empty(s)
    for t in range(s):
        found[t] = own
        for b in range(k):
            other = 0
            for a in range(most):
                other += table[a, t, b]
                found[t] -= 2.0 * phi[table[a, t, b]]
            found[t] += phi[other]
        found[t] = max(found[t], 0.0)  # but for rounding it is
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def descend(label, z, phi, most, k, order):  # type: ignore[no-untyped-def]
    """Move rows, then merge clusters, until neither lowers the expected loss.

    Parameters
    ----------
    label : (n,) integer array
        Changed in place. -1: not yet in a cluster; such rows are put where they cost least.
    z : (n, s) integer array
        Components in the draws.
    phi : (n + 1,) array
        The loss's function at 0..n.
    most, k : int
        The most clusters, and components.
    order : (n,) integer array
        In which rows are looked at.
    """
    n = len(z)
    count, table = tables(label, z, most, k)
    step = np.empty(n)  # what one row more costs
    for x in range(n):
        step[x] = phi[x + 1] - phi[x]
    while True:
        moved = True
        while moved:
            moved = False
            for j in range(n):
                if _move(label, order[j], z, step, count, table):
                    moved = True
        if not _merge(label, phi, count, table):
            return


@njit(nogil=True, error_model="numpy")
def _move(label, i, z, step, count, table):  # type: ignore[no-untyped-def]
    """Put a row where it costs least; say whether that is another cluster than before."""
    most, s = len(count), z.shape[1]
    own = label[i]
    if own >= 0:
        count[own] -= 1
        for t in range(s):
            table[own, t, z[i, t]] -= 1
    best, least, stay = -1, np.inf, np.inf
    is_tried = False  # one empty cluster is like another
    for a in range(most):
        if count[a] == 0 and a != own:
            if is_tried or (own >= 0 and count[own] == 0):
                continue
            is_tried = True
        shared = 0.0
        for t in range(s):
            shared += step[table[a, t, z[i, t]]]
        cost = step[count[a]] - 2.0 * shared / s
        if a == own:
            stay = cost
        if cost < least:
            best, least = a, cost
    if own >= 0 and not least < stay - _ENOUGH:
        best = own
    label[i] = best
    count[best] += 1
    for t in range(s):
        table[best, t, z[i, t]] += 1
    return best != own


@njit(nogil=True, error_model="numpy")
def _merge(label, phi, count, table):  # type: ignore[no-untyped-def]
    """Merge the two clusters whose merger lowers the loss most; say whether one does."""
    most, s, k = table.shape
    first, second, least = -1, -1, -_ENOUGH
    for a in range(most):
        for b in range(a):
            if count[a] == 0 or count[b] == 0:
                continue
            shared = 0.0
            for t in range(s):
                for j in range(k):
                    x, y = table[a, t, j], table[b, t, j]
                    shared += phi[x + y] - phi[x] - phi[y]
            change = phi[count[a] + count[b]] - phi[count[a]] - phi[count[b]] - 2.0 * shared / s
            if change < least:
                first, second, least = a, b, change
    if first < 0:
        return False
    for i in range(len(label)):
        if label[i] == first:
            label[i] = second
    count[second] += count[first]
    count[first] = 0
    table[second] += table[first]
    table[first] = 0
    return True
