"""Shares of the traffic by counts of replicas, where nothing else can divide it. Pure.

Every ready replica gets as many requests as any other, so shares are what whole numbers of replicas allow.
"""

from __future__ import annotations

from collections.abc import Mapping


def replicas_for(weights: Mapping[int, int], total: int) -> dict[int, int]:
    """Divide *total* replicas in proportion to *weights*, by largest remainder, with at least one for each.

    If there are fewer than revisions, each gets one. Weights above 0 only.
    """
    spare = max(0, total - len(weights))
    if total <= 0:
        return dict.fromkeys(weights, 1)
    exact = {k: max(0.0, total * w / sum(weights.values()) - 1) for k, w in weights.items()}
    whole = sum(exact.values()) or 1.0
    return {k: 1 + n for k, n in _apportion({k: x / whole for k, x in exact.items()}, spare).items()}


def percent_of(replicas: Mapping[int, int]) -> dict[int, int]:
    """Return what share of the traffic so many replicas get, in percent that add up to 100; none for none."""
    counts = {k: n for k, n in replicas.items() if n > 0}
    total = sum(counts.values())
    return _apportion({k: n / total for k, n in counts.items()}, 100) if total else {}


def _apportion(shares: Mapping[int, float], whole: int) -> dict[int, int]:
    """Divide *whole* by *shares*, which add up to 1, into whole numbers (Hamilton's method); ties go to the older."""
    found = {k: int(share * whole + 1e-9) for k, share in shares.items()}
    by_rest = sorted(shares, key=lambda k: (found[k] - shares[k] * whole, k))
    for k in by_rest[: whole - sum(found.values())]:
        found[k] += 1
    return found
