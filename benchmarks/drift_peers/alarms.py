"""How often a clean report raises an alarm, and how much of a true shift is found: many small frames, by both rules.

Evidently's rules are `drift(method="evidently")`, whose verdicts `benchmarks/drift.py` compares with Evidently itself.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SIZES = ((800, 500), (5000, 500), (5000, 5000), (50_000, 5000))
SHIFT = 0.3
"""Standard deviations by which every second column moves."""

KINDS = (*("normal", "lognormal", "ties", "zeros") * 3, 3, 12, 50, 300, 2000, 3, 12, 50)


def column(rng, kind, rows, shift):
    match kind:
        case "normal":
            return rng.normal(shift, 1, rows)
        case "lognormal":
            return np.exp(rng.normal(shift * 0.6, 0.6, rows))
        case "ties":
            return np.round(rng.normal(shift * 10, 10, rows)) / 2
        case "zeros":
            values = rng.exponential(1 + shift * 1.3, rows)
            values[rng.random(rows) < 0.4] = 0
            return values
    weights = np.arange(1, kind + 1) ** -1.1 * (1 + min(shift * 1.6, 0.95) * np.cos(np.arange(kind)))
    return np.array([f"v{i}" for i in range(kind)])[rng.choice(kind, rows, p=weights / weights.sum())]


def frame(rng, rows, shift):
    return pd.DataFrame(
        {f"c{i}": column(rng, kind, rows, shift if i % 2 == 0 else 0.0) for i, kind in enumerate(KINDS)}
    )


def compare(repeats=20):
    """Return for each size the share of clean reports with an alarm, and of truly moved columns that were found."""
    from mlopsnb import drift

    found = {}
    for reference_rows, rows in SIZES:
        clean = {"mlopsnb": 0, "evidently": 0}
        hits = {"mlopsnb": 0, "evidently": 0}
        for seed in range(repeats):
            rng = np.random.default_rng(seed)
            before = frame(rng, reference_rows, 0.0)
            for shift in (0.0, SHIFT):
                now = frame(rng, rows, shift)
                for side, method in (("mlopsnb", "auto"), ("evidently", "evidently")):
                    drifted = drift(before, now, method=method).drifted
                    if shift:
                        hits[side] += sum(int(name[1:]) % 2 == 0 for name in drifted)
                    else:
                        clean[side] += bool(drifted)
        moved = repeats * ((len(KINDS) + 1) // 2)
        found[f"{reference_rows} against {rows}"] = {
            side: {"clean reports with an alarm": clean[side] / repeats, "found": hits[side] / moved}
            for side in clean
        }
    return found
