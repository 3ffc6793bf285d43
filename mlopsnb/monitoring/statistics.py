"""The statistics of drift: numbers in, numbers out, each with its source.

Pure: no frames, no verdicts, no plots, and no warnings. Samples come sorted, because sorting once is what makes
the rest cheap, or as counts in bins. scipy is loaded only for the functions that numpy lacks. No matrix products: for
vectors of this size a library's threads cost more than they save.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlopsnb.extras import need

Array = np.ndarray[Any, Any]

EXACT_ROWS = 1000
"""Up to so many rows in both samples together the KS p-value is exact; its cost grows with their square."""

MIN_EXPECTED, LEAST_EXPECTED = 5.0, 1.0
"""Levels that either side would hold fewer than so many times are merged: for a test, and for a distance (Cochran 1954)."""

_DENSE = 20.0
_MOST_SPARSE = 64  # so many are never met where fewer than `_DENSE` are expected


def ks_statistic(x: Array, y: Array) -> float:
    """Return the two-sample Kolmogorov-Smirnov distance, the largest gap between two empirical CDFs (0 to 1).

    *x* and *y* are sorted, finite and not empty. Source: Smirnov 1939; ties as in `scipy.stats.ks_2samp`.
    """
    if len(x) > len(y):
        x, y = y, x
    n, m = len(x), len(y)
    rank = np.arange(n, dtype=np.int64)
    # The smaller sample's CDF is ahead most just after one of its own points, behind most just before one.
    ahead = (rank + 1) * m - np.searchsorted(y, x, "right") * n
    behind = np.searchsorted(y, x, "left") * n - rank * m
    return max(int(ahead.max()), int(behind.max()), 0) / (n * m)


def ks_p_value(statistic: float, n: int, m: int) -> float:
    """Return the two-sided p-value of a KS *statistic* of samples of *n* and *m* rows.

    Exact up to `EXACT_ROWS` rows (Hodges 1958), otherwise Kolmogorov's limit with Stephens's correction (Stephens
    1970), which stays within 0.02 of the exact value, and within a tenth of it where that is below 0.1.
    """
    if n + m <= EXACT_ROWS:
        return _ks_exact(round(statistic * n * m), n, m)
    root = math.sqrt(n * m / (n + m))
    special = need("scipy.special", extra="monitoring")
    return float(special.kolmogorov((root + 0.12 + 0.11 / root) * statistic))


def _ks_exact(gap: int, n: int, m: int) -> float:
    """Return the chance that |i*m - j*n| ever reaches *gap* while all rows of two samples are drawn in turn.

    `alive[i]` is the chance that i rows of the smaller sample were drawn and the walk never got so far. What
    leaves is summed, rather than what stays subtracted from 1, so that tiny p-values keep their digits.
    """
    n, m = min(n, m), max(n, m)
    total, left = n + m, 0.0
    drawn = np.arange(n + 2, dtype=np.float64)
    alive = np.zeros(n + 2)
    alive[0] = 1.0
    low = high = 0
    for k in range(total):
        here = slice(low, high + 1)
        share = alive[here] / (total - k)
        alive[here] = share * (m - k + drawn[here])
        alive[low + 1 : high + 2] += share * (n - drawn[here])
        high = min(high + 1, n)
        if low < ((k + 1) * n - gap) // total + 1:
            left += float(alive[low])
            alive[low] = 0.0
            low += 1
        if high > -(-((k + 1) * n + gap) // total) - 1:
            left += float(alive[high])
            alive[high] = 0.0
            high -= 1
        if low > high:
            break
    return min(left, 1.0)


def wasserstein(x: Array, y: Array) -> float:
    """Return the Wasserstein-1 distance, the area between two empirical CDFs, in the samples' own unit.

    *x* and *y* are sorted, finite and not empty. Source: Vallender 1974; equal to
    `scipy.stats.wasserstein_distance`.
    """
    n, m = len(x), len(y)
    if n == m:
        return float(np.abs(x - y).mean())
    both = np.concatenate([x, y])
    order = np.argsort(both, kind="stable")  # merges two sorted runs in one pass
    ahead = np.abs(np.cumsum(np.where(order < n, m, -n)))[:-1]
    return float((np.diff(both[order]) * (ahead / (n * m))).sum())


def wasserstein_effect(reference: Array, current: Array) -> float:
    """Return the Wasserstein-1 distance in standard deviations of the reference, both sides winsorised.

    Both are clipped at the reference's 0.1 % and 99.9 % quantiles first, so that one outlier cannot make or hide
    drift. A reference with no spread between these is taken as it is. Sorted, finite, not empty; the reference
    is not constant. Source: the normed distance of Evidently's default test, winsorised (Tukey 1962).
    """
    low, high = tails(reference)
    if low < high:
        reference, current = np.clip(reference, low, high), np.clip(current, low, high)
    largest = max(abs(s[i]) for s in (reference, current) for i in (0, -1))
    if not 1e-100 < largest < 1e100:
        # Neither a square nor a difference may overflow or vanish; scaling by a power of two is exact.
        exponent = -math.frexp(largest)[1]
        reference, current = np.ldexp(reference, exponent), np.ldexp(current, exponent)
    spread = float((reference - reference[0]).std())
    return wasserstein(reference, current) / spread if spread > 0 else 0.0


def tails(values: Array) -> tuple[float, float]:
    """Return where the outermost 0.1 % of sorted *values* begin, on either side."""
    last = len(values) - 1
    return float(values[math.floor(0.001 * last)]), float(values[math.ceil(0.999 * last)])


def gap_of_counts(reference: Array, current: Array) -> Array:
    """Return the Kolmogorov-Smirnov distance of rows of counts in the same ordered bins, along the last axis.

    It is the distance of the samples at the bins' ends, and so at most theirs. Neither side may be all zero.
    """
    return np.asarray(np.abs(_gaps(reference, current)).max(axis=-1))


def _gaps(reference: Array, current: Array) -> Array:
    """Return by how much more of the reference lies up to the end of each bin."""
    a, b = np.cumsum(reference, axis=-1), np.cumsum(current, axis=-1)
    return np.asarray(a / a[..., -1:] - b / b[..., -1:])


def wasserstein_of_counts(edges: Array, reference: Array, current: Array, *, step: bool) -> Array:
    """Return the Wasserstein-1 distance of samples counted on the same *edges*, one more count than edges.

    Along the last axis. What lies beyond the outermost edges counts as being there. Between edges both CDFs are taken
    as straight lines, or with *step* as steps, each value being at the end of its bin (exact for whole numbers with an
    edge after each). Exact up to the width of the bins. Source: the area between the CDFs (Vallender 1974).
    """
    gap = _gaps(reference, current)[..., :-1]
    if step:
        return np.asarray((np.abs(gap[..., :-1]) * np.diff(edges)).sum(axis=-1))
    product, size = gap[..., :-1] * gap[..., 1:], np.abs(gap)
    together = size[..., :-1] + size[..., 1:]
    # Where the lines meet inside the bin there are two triangles instead of one trapezium.
    triangles = np.where(product < 0, -product / np.maximum(together, 1e-300), 0.0)
    return np.asarray(((together / 2 - triangles) * np.diff(edges)).sum(axis=-1))


def spread_of_counts(edges: Array, counts: Array) -> float:
    """Return the standard deviation of a sample counted on *edges*, what lies beyond the outermost being there."""
    middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
    shares = counts / np.sum(counts)
    mean = (middles * shares).sum()
    return float(np.sqrt(((middles - mean) ** 2 * shares).sum()))


def stability_index(reference: Array, current: Array) -> float:
    """Return the population stability index of two rows of counts, shares below 0.01 % counting as that.

    Conventionally 0.1 is called a slight and 0.25 a large change; neither knows the sample's size. Source: Lewis
    1994, An Introduction to Credit Scoring; the symmetric divergence of Jeffreys 1946.
    """
    p = np.maximum(np.asarray(reference, np.float64) / np.sum(reference), 1e-4)
    q = np.maximum(np.asarray(current, np.float64) / np.sum(current), 1e-4)
    return float(((p - q) * np.log(p / q)).sum())


def merge_rare(reference: Array, current: Array, least: float = MIN_EXPECTED) -> tuple[Array, Array]:
    """Return two rows of counts with the rare levels merged into one, the last.

    A level is rare if either side would be expected to hold fewer than *least* of it were both sides
    alike. If all rare ones together still are, they join the smallest other level. Source: Cochran 1954.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    expected = (a + b) * (min(a.sum(), b.sum()) / max(a.sum() + b.sum(), 1.0))
    kept = expected >= least
    rest = (float(a[~kept].sum()), float(b[~kept].sum()))
    rest_expected = float(expected[~kept].sum())
    a, b, expected = a[kept], b[kept], expected[kept]
    if sum(rest) == 0:
        return a, b
    if rest_expected >= least or not len(a):
        return np.append(a, rest[0]), np.append(b, rest[1])
    smallest = int(expected.argmin())
    a[smallest] += rest[0]
    b[smallest] += rest[1]
    return a, b


def chi_squared(reference: Array, current: Array) -> tuple[float, float]:
    """Return the two-sample chi-squared statistic and its p-value for the counts of the same levels on two sides.

    Pooled, so that the reference counts as a sample too, and with rare levels merged (`merge_rare`). A single
    level gives (0, 1). Source: Pearson 1900; equal to `scipy.stats.chi2_contingency(correction=False)`.
    """
    a, b = merge_rare(reference, current)
    if len(a) < 2:
        return 0.0, 1.0
    n, m = float(a.sum()), float(b.sum())
    statistic = float(((a * math.sqrt(m / n) - b * math.sqrt(n / m)) ** 2 / (a + b)).sum())
    special = need("scipy.special", extra="monitoring")
    return statistic, float(special.chdtrc(len(a) - 1, statistic))


def js_distance(reference: Array, current: Array) -> float:
    """Return the debiased Jensen-Shannon distance of two rows of counts (natural logarithm; 0 to 0.83).

    The root of the divergence (Lin 1991), less what sampling alone adds to it: its mean if all rows had been dealt to
    the two sides by lot. Without that, many levels look like drift. For frequent levels it is (1/n+1/m)/8 each, one level
    less than there are (Grosse et al. 2002); for rare ones it is summed up exactly, as merging them all would hide what
    has moved among them. Those below `LEAST_EXPECTED` are merged. Neither side may be all zero.
    """
    a, b = merge_rare(reference, current, LEAST_EXPECTED)
    n, m = float(a.sum()), float(b.sum())
    divergence = float(_divergences(a, b, n, m).sum())
    return math.sqrt(max(divergence - _divergence_by_lot(a + b, n, m), 0.0))


def _divergences(a: Array, b: Array, n: float, m: float) -> Array:
    """Return what each level, met *a* times in *n* rows and *b* times in *m*, adds to the divergence."""
    p, q = a / n, b / m
    middle = np.maximum((p + q) / 2, 1e-300)
    # Where a share is zero so is its product with any logarithm.
    return (p * np.log(np.maximum(p, 1e-300) / middle) + q * np.log(np.maximum(q, 1e-300) / middle)) / 2


def _divergence_by_lot(totals: Array, n: float, m: float) -> float:
    """Return the mean divergence of two samples of *n* and *m* rows that hold levels *totals* times, drawn by lot.

    How often the smaller one gets a level is binomial, but for the last factor, by which its variance is that of
    drawing without replacement.
    """
    few, many = min(n, m), max(n, m)
    share, rest = few / (n + m), 1 - totals / (n + m)
    dense = totals * share >= _DENSE
    found = float(rest[dense].sum()) * (1 / n + 1 / m) / 8
    if dense.all():
        return found
    sparse, which = np.unique(totals[~dense], return_inverse=True)
    drawn = np.arange(_MOST_SPARSE + 1.0)
    left = np.maximum(sparse[:, None] - drawn, 0.0)
    # Each binomial chance from the one before; after all that there are it is 0.
    steps = left[:, :-1] / drawn[1:] * (share / (1 - share))
    chance = np.cumprod(np.hstack([(1 - share) ** sparse[:, None], steps]), axis=1)
    means = (chance * _divergences(drawn, left, few, many)).sum(axis=1)
    return found + float((means[which] * rest[~dense]).sum())


def relative_entropy(p: Array, base: Array) -> float:
    """Return the divergence of Kullback and Leibler (1951) of shares *p* from *base*, in nats."""
    some = p > 0
    return float((p[some] * np.log(p[some] / base[some])).sum())


def two_proportions(hits: int, n: int, other_hits: int, m: int) -> float:
    """Return the two-sided p-value that two shares, *hits* of *n* and *other_hits* of *m*, are equal.

    The pooled z-test (Fleiss, Statistical Methods for Rates and Proportions), which is the chi-squared test of the
    two-by-two table; the exact test (Fisher 1935) where a cell is expected to hold fewer than `MIN_EXPECTED`.
    """
    pooled = (hits + other_hits) / (n + m)
    if not 0 < pooled < 1:
        return 1.0
    if min(n, m) * min(pooled, 1 - pooled) < MIN_EXPECTED:
        return _fisher(hits, n, other_hits, m)
    return math.erfc(abs(hits / n - other_hits / m) / math.sqrt(2 * pooled * (1 - pooled) * (1 / n + 1 / m)))


def _fisher(hits: int, n: int, other_hits: int, m: int) -> float:
    """Return the chance of a table no likelier than this one, its margins given; only a short row of them is likely."""
    special = need("scipy.special", extra="monitoring")
    drawn = hits + other_hits
    if 2 * drawn > n + m:  # the misses are fewer, and the same table
        hits, drawn = n - hits, n + m - drawn
    k = np.arange(max(0, drawn - m), min(n, drawn) + 1, dtype=np.float64)

    def log_choose(top: float, chosen: Array) -> Array:
        gammaln = special.gammaln
        return np.asarray(gammaln(top + 1.0) - gammaln(chosen + 1.0) - gammaln(top - chosen + 1.0))

    chance = np.exp(log_choose(n, k) + log_choose(m, drawn - k) - log_choose(n + m, np.array(float(drawn))))
    seen = chance[int(hits - k[0])]
    return min(1.0, float(chance[chance <= seen * (1 + 1e-7)].sum()))


def q_values(p_values: Array) -> Array:
    """Return Benjamini-Hochberg adjusted p-values, in the order given.

    Calling all with q <= 0.05 significant keeps the expected share of false ones among them at 5 %. Source:
    Benjamini and Hochberg 1995; equal to `scipy.stats.false_discovery_control`.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    scaled = p[order] * (len(p) / np.arange(1, len(p) + 1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted
