"""How long a drift report takes against scipy's own tests, one column after the other, on the same data.

Run: python benchmarks/drift.py [rows] [columns]. Both sides are timed in this one process, in turn, and the
best of three counts. Ours does more: effects, q-values, missing shares, histograms.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy import stats

from mlopsnb.monitoring import drift


def naive(reference, current):
    return [
        (stats.ks_2samp(x, y).pvalue, stats.wasserstein_distance(x, y) / x.std())
        for x, y in zip(reference.T, current.T, strict=True)
    ]


def seconds(call, *args):
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def main(rows=100_000, columns=20):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(rows, columns))
    print(f"{rows} rows by {columns} columns, best of 3")
    for shape, size in (("as many current rows", rows), ("fewer current rows", rows * 9 // 10 + 1)):
        current = rng.normal(0.05, 1, size=(size, columns))
        pairs = [(seconds(drift, reference, current), seconds(naive, reference, current)) for _ in range(3)]
        ours, theirs = (min(times) for times in zip(*pairs, strict=True))
        print(f"{shape}: mlopsnb {ours:.3f} s, scipy {theirs:.3f} s, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
