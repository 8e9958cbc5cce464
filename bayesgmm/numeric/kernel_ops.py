"""What PyTensor's Ops call, in Numba: log-densities from covariances, with their gradients.

Gradients are by Fisher's identity (`bayesgmm.moments`).  `kernel.VERSION` covers this file too.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bayesgmm.numeric.kernel import VERSION, accumulate_all, each_row, factorise

# Numba compiles a cached function anew when its own file has changed, and those below hold copies
# of what they call in `kernel`. So this file changes with that one: old copies end in an abort.
assert VERSION == 10, "kernel.VERSION was raised: raise it here, too"


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
        own = each_row(x, log_weight[one], mean[one], whitening[one], False)[0]
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
def scale_terms(covariance, by_sd, share, tied, by_covariance):  # type: ignore[no-untyped-def]
    """A prior's terms of the log sds (`target.terms`); their gradient is added to the last."""
    k, d = covariance.shape[:2]
    value, log_sd = 0.0, np.empty(d)
    for j in range(k):
        middle, pull = 0.0, 0.0
        for f in range(d):
            log_sd[f] = 0.5 * math.log(covariance[j, f, f])
            middle += share / d * log_sd[f]
        for f in range(d):
            gap = log_sd[f] - middle - by_sd[4, j, f]
            pull += share / d * by_sd[3, j, f] * gap
        for f in range(d):
            gap = log_sd[f] - middle - by_sd[4, j, f]
            a = by_sd[0, j, f] * log_sd[f]
            b = by_sd[1, j, f] * math.exp(-log_sd[f])
            g = by_sd[2, j, f] * math.exp(2.0 * log_sd[f])
            value += a + b + g - 0.5 * by_sd[3, j, f] * gap * gap
            by_log_sd = by_sd[0, j, f] - b + 2.0 * g - by_sd[3, j, f] * gap + pull
            by_covariance[j, f, f] += 0.5 * by_log_sd / covariance[j, f, f]
    if tied > 0.0:
        for f in range(d):
            common = 1.0
            for j in range(k):
                common += by_sd[5, j, f] / covariance[j, f, f]
            value -= tied * math.log(common)
            for j in range(k):
                rate = tied * by_sd[5, j, f] / common
                by_covariance[j, f, f] += rate / covariance[j, f, f] ** 2
    return value


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
    density = each_row(x, log_weight, mean, whitening, False)[0]
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
            own = each_row(x[part], level, own_mean, whitening, False)[0]
        for row in range(len(own)):
            density[int(order[part.start + row])] = own[row]
    for i in range(weight.shape[0]):
        density[i] *= weight[i]
    return density
