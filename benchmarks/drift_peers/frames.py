"""Mixed frames with known shifts, written as Parquet so that every side reads the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SHIFTS = (0, 0, 0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4)
"""In standard deviations, for one column after the other; half of them are clearly below what anyone calls drift."""

LEVELS = (3, 12, 50, 300, 2000)


def frame(rows: int, columns: int, seed: int, *, shifted: bool) -> pd.DataFrame:
    """Return *rows* by *columns*: two thirds floats (a quarter of them with 5 % missing), the rest whole numbers and text."""
    rng = np.random.default_rng(seed)
    counts = [int(columns * 0.65), int(columns * 0.10), max(1, int(columns * 0.05))]
    data: dict[str, np.ndarray] = {}
    for i in range(counts[0]):
        shift = SHIFTS[i % 10] if shifted else 0.0
        values = _floats(rng, rows, i % 5, shift)
        if i % 4 == 3:
            values[rng.random(rows) < 0.05] = np.nan
        data[f"float_{i}"] = values.astype("float32" if i % 7 == 6 else "float64")
    for i in range(counts[1]):
        shift = SHIFTS[i * 3 % 10] if shifted else 0.0
        data[f"count_{i}"] = rng.poisson(20 * (1 + shift * 0.2236), rows)
    for i in range(counts[2]):
        weights = 1 + (SHIFTS[(i * 4 + 5) % 10] if shifted else 0.0) * np.linspace(-1, 1, 6)
        data[f"small_{i}"] = rng.choice(6, rows, p=weights / weights.sum())
    for i in range(columns - sum(counts)):
        levels = LEVELS[i % 5]
        weights = np.arange(1, levels + 1) ** -1.1
        if shifted:
            weights *= 1 + SHIFTS[(i * 2 + 1) % 10] * np.cos(np.arange(levels))
        names = np.array([f"v{j:04d}" for j in range(levels)], dtype=object)
        data[f"text_{i}"] = names[rng.choice(levels, rows, p=weights / weights.sum())]
    return pd.DataFrame(data)


def _floats(rng, rows: int, kind: int, shift: float) -> np.ndarray:
    match kind:
        case 0:
            return rng.normal(shift, 1, rows)
        case 1:
            return np.exp(rng.normal(shift * 0.6, 0.6, rows))
        case 2:
            return rng.exponential(1 + shift, rows)
        case 3:
            return rng.normal(0, 1, rows) + rng.choice([-3, 3], rows) + shift * 3.2
        case _:
            return np.round(rng.normal(shift * 10, 10, rows)) / 2


def write(directory: Path, rows: int, columns: int) -> tuple[Path, Path]:
    """Return the Parquet files of the reference and the shifted current data, made if they are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, name in enumerate(("reference", "current"), 1):
        path = directory / f"{name}-{rows}x{columns}.parquet"
        if not path.exists():
            draft = path.with_suffix(".draft")
            frame(rows, columns, seed, shifted=name == "current").to_parquet(draft, index=False)
            draft.rename(path)
        paths.append(path)
    return paths[0], paths[1]
