"""How often a clean report raises an alarm, and how much of a true shift is found: many small frames, read by both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SIZES = ((800, 500), (5000, 500), (5000, 5000), (50_000, 5000))
"""Rows of the reference and of the current data."""

SHIFT = 0.3
"""Standard deviations by which every second column moves."""

KINDS = (*("normal", "lognormal", "ties", "zeros") * 3, 3, 12, 50, 300, 2000, 3, 12, 50)
MOVED = frozenset(f"c{i}" for i in range(0, len(KINDS), 2))


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
        {f"c{i}": column(rng, kind, rows, shift if f"c{i}" in MOVED else 0.0) for i, kind in enumerate(KINDS)}
    )


def write(directory, reference_rows, rows, repeats):
    """Write *repeats* sets of a reference, a clean and a moved frame below *directory*; return their places."""
    places = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        place = Path(directory) / f"{reference_rows}-{rows}-{seed}"
        place.mkdir()
        for name, size, shift in (
            ("reference", reference_rows, 0),
            ("clean", rows, 0),
            ("moved", rows, SHIFT),
        ):
            frame(rng, size, shift).to_parquet(place / f"{name}.parquet", index=False)
        places.append(place)
    return places


def ours(place):
    """Return what has drifted in the clean and in the moved frame at *place*, as `run_evidently_verdicts.py` does."""
    from mlopsnb import drift

    read = {name: pd.read_parquet(place / f"{name}.parquet") for name in ("reference", "clean", "moved")}
    return {name: list(drift(read["reference"], read[name]).drifted) for name in ("clean", "moved")}


def rates(verdicts):
    """Return the share of clean reports with an alarm, and of truly moved columns that were found."""
    found = sum(len(MOVED.intersection(one["moved"])) for one in verdicts)
    return {
        "clean reports with an alarm": sum(bool(one["clean"]) for one in verdicts) / len(verdicts),
        "found": found / (len(verdicts) * len(MOVED)),
    }
