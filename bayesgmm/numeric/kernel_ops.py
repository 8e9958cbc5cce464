"""What PyTensor's Ops call, in Numba: log-densities from covariances, with their gradients.

Gradients are by Fisher's identity (`bayesgmm.moments`).  `kernel.VERSION` covers this file too.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bayesgmm.numeric.kernel import VERSION, accumulate_all, factorise, rows

# Numba compiles a cached function anew when its own file has changed, and those below hold copies
# of what they call in `kernel`. So this file changes with that one: old copies end in an abort.
assert VERSION == 9, "kernel.VERSION was raised: raise it here, too"


@njit(nogil=True, cache=True, error_model="numpy")
def pull_back(count, first, second, whitening):  # type: ignore[no-untyped-def]
    """Gradients by means and covariances: W' first and W' (second - count I) W / 2."""
    k, d = first.shape
    mean = np.zeros((k, d))
    covariance = np.zeros((k, d, d))
    for j in range(k):
        w = whitening[j]
        half = np.zeros((d, d))
        for f in range(d):
            for g in range(f, d):
                mean[j, f] += w[g, f] * first[j, g]
            for g in range(d):
                for h in range(f, d):
                    inner = second[j, h, g] - (count[j] if h == g else 0.0)
                    half[f, g] += w[h, f] * inner
        for f in range(d):
            for g in range(d):
                t = 0.0
                for h in range(g, d):
                    t += half[f, h] * w[h, g]
                covariance[j, f, g] = 0.5 * t
    return mean, covariance


@njit(nogil=True, cache=True, error_model="numpy")
def has_density(log_weight, mean):  # type: ignore[no-untyped-def]
    """Whether the weights are numbers below infinity and the means are finite."""
    for j in range(mean.shape[0]):
        if not log_weight[j] < np.inf:
            return False
        for f in range(mean.shape[1]):
            if not np.isfinite(mean[j, f]):
                return False
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _observed(observed, mean, covariance, diagonal):  # type: ignore[no-untyped-def]
    """Means and whitening of the observed columns: 0 and an identity in place of the others."""
    k, d = mean.shape
    own_mean = np.zeros((k, d))
    own = np.zeros((k, d, d))
    for j in range(k):
        for f in range(d):
            if observed[f] == 0.0:
                own[j, f, f] = 1.0
                continue
            own_mean[j, f] = mean[j, f]
            for g in range(d):
                if observed[g] != 0.0:
                    own[j, f, g] = covariance[j, f, g]
    whitening, is_definite = factorise(own, diagonal)
    return own_mean, whitening, is_definite


@njit(nogil=True, cache=True, error_model="numpy")
def _joint(x, known, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """Responsibilities (k, n) and log-densities (n,), with log plausibilities (n, k) by row."""
    k, n = mean.shape[0], x.shape[0]
    r = np.empty((k, n))
    for j in range(k):
        one = slice(j, j + 1)
        own = rows(x, log_weight[one], mean[one], whitening[one], False)[0]
        for i in range(n):  # an assignment of slices takes seconds to compile
            r[j, i] = own[i]
    density = np.empty(n)
    for i in range(n):
        top, total = -np.inf, 0.0
        for j in range(k):
            r[j, i] += known[i, j]
            top = max(top, r[j, i])
        for j in range(k):
            r[j, i] = math.exp(r[j, i] - top) if r[j, i] > -np.inf else 0.0
            total += r[j, i]
        for j in range(k):
            r[j, i] /= total
        density[i] = top + math.log(total)
    return r, density


@njit(nogil=True, cache=True, error_model="numpy")
def _sums_by_row(x, weight, known, diagonal, log_weight, mean, whitening):  # type: ignore[no-untyped-def]
    """`accumulate_all` where each row has its own plausibilities: two passes by component."""
    k, d = mean.shape
    r, density = _joint(x, known, log_weight, mean, whitening)
    loglik, zeroth, first, second = 0.0, np.empty(k), np.empty((k, d)), np.empty((k, d, d))
    for i in range(x.shape[0]):
        w = weight[i] if weight.shape[0] > 0 else 1.0
        loglik += w * density[i] if w > 0.0 else 0.0
        for j in range(k):
            r[j, i] *= w
    for j in range(k):
        one = slice(j, j + 1)
        sums = accumulate_all(x, r[j], diagonal, np.zeros(1), mean[one], whitening[one])
        zeroth[j], first[j], second[j] = sums[1][0], sums[2][0], sums[3][0]
    return loglik, zeroth, first, second


@njit(nogil=True, cache=True, error_model="numpy")
def of_groups(x, weight, begin, observed, factor, known, diagonal, log_weight, mean, covariance):  # type: ignore[no-untyped-def]
    """Log-likelihood of rows that are known in part, and its gradient; see `layout.Layout`.

    The gradient of a group is that of a mixture of its observed columns, and 0 by all else.
    """
    k, d = mean.shape
    loglik, zeroth = 0.0, np.zeros(k)
    by_mean, by_covariance = np.zeros((k, d)), np.zeros((k, d, d))
    for i in range(observed.shape[0]):
        part = slice(int(begin[i]), int(begin[i + 1]))
        w = weight[part] if weight.shape[0] > 0 else weight
        own_mean, whitening, is_definite = _observed(observed[i], mean, covariance, diagonal)
        if not is_definite:
            return np.nan, zeroth, by_mean, by_covariance
        level = log_weight + factor[i]
        if known.shape[0] > 0:
            value, count, first, second = _sums_by_row(
                x[part], w, known[part], diagonal, level, own_mean, whitening
            )
        else:
            value, count, first, second = accumulate_all(
                x[part], w, diagonal, level, own_mean, whitening
            )
        loglik += value
        own_by_mean, own_by_covariance = pull_back(count, first, second, whitening)
        for j in range(k):
            zeroth[j] += count[j]
            for f in range(d):
                if observed[i, f] == 0.0:
                    continue
                by_mean[j, f] += own_by_mean[j, f]
                for g in range(d):
                    if observed[i, g] != 0.0:
                        by_covariance[j, f, g] += own_by_covariance[j, f, g]
    return loglik, zeroth, by_mean, by_covariance


@njit(nogil=True, cache=True, error_model="numpy")
def loglik_and_gradient(x, weight, log_weight, mean, covariance, diagonal):  # type: ignore[no-untyped-def]
    """Log-likelihood and its gradient by log-weights, means, covariances; NaN where none exists."""
    k, d = mean.shape
    whitening, is_definite = factorise(covariance, diagonal)
    if not (is_definite and has_density(log_weight, mean)):
        return np.nan, np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    loglik, zeroth, first, second = accumulate_all(x, weight, diagonal, log_weight, mean, whitening)
    by_mean, by_covariance = pull_back(zeroth, first, second, whitening)
    return loglik, zeroth, by_mean, by_covariance


@njit(nogil=True, cache=True, error_model="numpy")
def known_in_part(  # type: ignore[no-untyped-def]
    x, weight, order, begin, observed, factor, known, log_weight, mean, covariance, diagonal
):
    """`loglik_and_gradient` of rows that are known in part: NaN is missing.

    They are in the order of the data, and ``order`` is that of `layout.Layout`; where it is empty
    nothing is missing and no label known.
    """
    if order.shape[0] == 0:
        return loglik_and_gradient(x, weight, log_weight, mean, covariance, diagonal)
    k, d = mean.shape
    _, is_definite = factorise(covariance, diagonal)
    if not (is_definite and has_density(log_weight, mean)):
        return np.nan, np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    x, weight = _in_order(x, weight, order)
    return of_groups(
        x, weight, begin, observed, factor, known, diagonal, log_weight, mean, covariance
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _in_order(x, weight, order):  # type: ignore[no-untyped-def]
    """Rows by group, 0 where missing, and their weights."""
    n, d = x.shape
    sorted_x, sorted_weight = np.empty((n, d)), np.empty(weight.shape[0])
    for i in range(n):
        row = int(order[i])
        for f in range(d):
            sorted_x[i, f] = 0.0 if np.isnan(x[row, f]) else x[row, f]
        if weight.shape[0] > 0:
            sorted_weight[i] = weight[row]
    return sorted_x, sorted_weight


@njit(nogil=True, cache=True, error_model="numpy")
def pseudo_sums(mean, whitening, location, scatter, count, shrinkage):  # type: ignore[no-untyped-def]
    """A conjugate prior's terms, one per component, and its sums of z and z z'.

    -1/2 [count log|S| + tr((scatter + shrinkage (mean - location)(mean - location)') S^-1)]
    """
    k, d = mean.shape
    value = np.zeros(k)
    first = np.zeros((k, d))
    second = np.zeros((k, d, d))
    half = np.zeros((d, d))
    for j in range(k):
        w = whitening[j]
        for f in range(d):
            value[j] += count * math.log(w[f, f])
            for h in range(d):
                half[f, h] = 0.0
            for g in range(f + 1):
                first[j, f] += w[f, g] * (location[g] - mean[j, g])
                for h in range(d):
                    half[f, h] += w[f, g] * scatter[g, h]
        for f in range(d):
            for g in range(d):
                t = shrinkage * first[j, f] * first[j, g]
                for h in range(g + 1):
                    t += half[f, h] * w[g, h]
                second[j, f, g] = t
            value[j] -= 0.5 * second[j, f, f]
        for f in range(d):
            first[j, f] *= shrinkage
    return value, first, second


@njit(nogil=True, cache=True, error_model="numpy")
def pseudo_loglik_and_gradient(mean, covariance, location, scatter, count, shrinkage, diagonal):  # type: ignore[no-untyped-def]
    """`pseudo_sums`' value, one per component, and its gradients by mean and covariance."""
    k, d = mean.shape
    whitening, is_definite = factorise(covariance, diagonal)
    if not is_definite:
        return np.full(k, np.nan), np.zeros((k, d)), np.zeros((k, d, d))
    value, first, second = pseudo_sums(mean, whitening, location, scatter, count, shrinkage)
    by_mean, by_covariance = pull_back(np.full(k, count), first, second, whitening)
    return value, by_mean, by_covariance


@njit(nogil=True, cache=True, error_model="numpy")
def of_complete_rows(x, weight, log_weight, mean, covariance, diagonal):  # type: ignore[no-untyped-def]
    """Weighted log-density of every row, of which all is observed; NaN where none exists."""
    n = x.shape[0]
    whitening, is_definite = factorise(covariance, diagonal)
    if not (is_definite and has_density(log_weight, mean)):
        return np.full(n, np.nan)
    density = rows(x, log_weight, mean, whitening, False)[0]
    for i in range(weight.shape[0]):
        density[i] *= weight[i]
    return density


@njit(nogil=True, cache=True, error_model="numpy")
def pointwise(  # type: ignore[no-untyped-def]
    x, weight, order, begin, observed, factor, known, log_weight, mean, covariance, diagonal
):
    """Weighted log-density of every row, as `known_in_part`; NaN where none exists."""
    if order.shape[0] == 0:
        return of_complete_rows(x, weight, log_weight, mean, covariance, diagonal)
    n = x.shape[0]
    _, is_definite = factorise(covariance, diagonal)
    if not (is_definite and has_density(log_weight, mean)):
        return np.full(n, np.nan)
    x, _ = _in_order(x, np.empty(0), order)
    density = np.empty(n)
    for i in range(observed.shape[0]):
        part = slice(int(begin[i]), int(begin[i + 1]))
        own_mean, whitening, is_definite = _observed(observed[i], mean, covariance, diagonal)
        if not is_definite:
            return np.full(n, np.nan)
        level = log_weight + factor[i]
        if known.shape[0] > 0:
            own = _joint(x[part], known[part], level, own_mean, whitening)[1]
        else:
            own = rows(x[part], level, own_mean, whitening, False)[0]
        for row in range(len(own)):
            density[int(order[part.start + row])] = own[row]
    for i in range(weight.shape[0]):
        density[i] *= weight[i]
    return density


@njit(nogil=True, cache=True, error_model="numpy")
def _invert(m):  # type: ignore[no-untyped-def]
    """Invert I + A, A skew, in place, and return log det: no pivot is below 1."""
    d = m.shape[0]
    log_det = 0.0
    for i in range(d):
        pivot = m[i, i]
        log_det += math.log(pivot)
        m[i, i] = 1.0
        for g in range(d):
            m[i, g] /= pivot
        for f in range(d):
            if f != i:
                t = m[f, i]
                m[f, i] = 0.0
                for g in range(d):
                    m[f, g] -= t * m[i, g]
    return log_det


@njit(nogil=True, cache=True, error_model="numpy")
def chart(vector, spectrum, below, unit, polar):  # type: ignore[no-untyped-def]
    """Covariances U M diag(s) M' U, log s and the free elements of M linear in the vector.

    M is unit lower triangular, or, if ``polar``, the rotation (I - A)(I + A)^-1 with A skew, of
    which the elements below the diagonal are free.  Also returns U M (k, d, d), s (k, d) and the
    log-density of the uniform distribution of the rotations by these elements, up to a constant.
    """
    d = unit.shape[0]
    p = spectrum.shape[1]
    k = spectrum.shape[0] // d
    s = np.empty((k, d))
    factor = np.zeros((k, d, d))
    covariance = np.zeros((k, d, d))
    log_volume = 0.0
    for j in range(k):
        for f in range(d):
            t = 0.0
            for i in range(p):
                t += spectrum[j * d + f, i] * vector[i]
            s[j, f] = math.exp(t)
            factor[j, f, f] = 1.0
    row = 0
    if below.shape[0] > 0:
        for j in range(k):
            for f in range(1, d):
                for g in range(f):
                    t = 0.0
                    for i in range(below.shape[1]):
                        t += below[row, i] * vector[p + i]
                    factor[j, f, g] = t
                    if polar:
                        factor[j, g, f] = -t
                    row += 1
            if polar:
                log_det = _invert(factor[j])
                if j * (d * (d - 1) // 2) < below.shape[1]:  # each that is free, once
                    log_volume -= (d - 1) * log_det
                for f in range(d):
                    for g in range(d):
                        factor[j, f, g] = 2.0 * factor[j, f, g] - (1.0 if f == g else 0.0)
    for j in range(k):
        for f in range(d):
            for g in range(d):
                factor[j, f, g] *= unit[f]
        for f in range(d):
            for g in range(f + 1):
                t = 0.0
                for h in range(d if polar else g + 1):
                    t += factor[j, f, h] * s[j, h] * factor[j, g, h]
                covariance[j, f, g] = t
                covariance[j, g, f] = t
    return covariance, factor, s, log_volume


@njit(nogil=True, cache=True, error_model="numpy")
def chart_pullback(vector, spectrum, below, unit, polar, slope, by_volume):  # type: ignore[no-untyped-def]
    """Gradient by the vector, from ``slope`` (k, d, d) by the covariances and one by the volume."""
    factor, s = chart(vector, spectrum, below, unit, polar)[1:3]
    return pull_through_chart(factor, s, spectrum, below, unit, polar, slope, by_volume)


@njit(nogil=True, cache=True, error_model="numpy")
def pull_through_chart(factor, s, spectrum, below, unit, polar, slope, by_volume):  # type: ignore[no-untyped-def]
    """`chart_pullback` with what `chart` has returned."""
    k, d = s.shape
    p = spectrum.shape[1]
    out = np.zeros(p + below.shape[1])
    row = 0
    half = np.zeros((d, d))
    by_entry = np.zeros((d, d))
    for j in range(k):
        for f in range(d):
            for g in range(d):
                half[f, g] = 0.0  # (slope + slope') F
        for f in range(d):
            for g in range(d):
                t = slope[j, f, g] + slope[j, g, f]
                for h in range(d if polar else g + 1):
                    half[f, h] += t * factor[j, g, h]
        for f in range(d):
            t = 0.0
            for g in range(0 if polar else f, d):
                t += factor[j, g, f] * half[g, f]
            for i in range(p):
                out[i] += 0.5 * t * s[j, f] * spectrum[j * d + f, i]
        if below.shape[0] == 0:
            continue
        for f in range(d):
            for g in range(d):
                by_entry[f, g] = unit[f] * half[f, g] * s[j, g]  # by M
        if polar:
            is_free = j * (d * (d - 1) // 2) < below.shape[1]
            _pull_through_rotation(factor[j], unit, by_entry, by_volume if is_free else 0.0)
        for f in range(1, d):
            for g in range(f):
                for i in range(below.shape[1]):
                    out[p + i] += by_entry[f, g] * below[row, i]
                row += 1
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def _pull_through_rotation(factor, unit, slope, by_volume):  # type: ignore[no-untyped-def]
    """Turn the gradient by a rotation D into one by A, below the diagonal; in place.

    With B = (I + A)^-1 = (D + I) / 2: dD = -2 B dA B, and d log det(I + A) = tr(B dA).
    """
    d = unit.shape[0]
    b = np.empty((d, d))
    for f in range(d):
        for g in range(d):
            b[f, g] = 0.5 * (factor[f, g] / unit[f] + (1.0 if f == g else 0.0))
    half, inner = np.zeros((d, d)), np.zeros((d, d))
    for f in range(d):
        for g in range(d):
            for h in range(d):
                half[f, g] += b[h, f] * slope[h, g]
    for f in range(d):
        for g in range(d):
            for h in range(d):
                inner[f, g] += half[f, h] * b[g, h]
    for f in range(1, d):
        for g in range(f):
            slope[f, g] = 2.0 * (inner[g, f] - inner[f, g]) + by_volume * (d - 1) * (
                b[f, g] - b[g, f]
            )
