"""The recipe of docs/drift.md: partitions of a Parquet data set, each counted where it is, add up to one profile."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from mlopsnb import ProfileBuilder, profile

PARTS, ROWS = 4, 500


def frame(seed):
    rng = np.random.default_rng(seed)
    numbers, levels = rng.normal(seed, 1, ROWS), rng.choice(["a", "b", "c"], ROWS)
    return pd.DataFrame({"age": np.where(rng.random(ROWS) < 0.1, np.nan, numbers), "city": levels})


# Dask 2026.8 asks pandas 3.1 for what that no longer likes.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index is deprecated")
def test_partitions_counted_by_dask_are_the_profile_of_all_rows(tmp_path):
    for seed in range(PARTS):
        frame(seed).to_parquet(tmp_path / f"part-{seed}.parquet", index=False)
    parts = dd.read_parquet(tmp_path).to_delayed()
    first = ProfileBuilder().add(parts[0].compute(scheduler="synchronous"))
    tasks = [dask.delayed(first.like().add)(part) for part in parts[1:]]
    others = dask.compute(*tasks, scheduler="processes", num_workers=2)
    together = sum(others, first).finish()
    alone = profile(iter(frame(seed) for seed in range(PARTS)))
    assert together.rows == alone.rows == PARTS * ROWS
    for f, g in zip(together.features, alone.features, strict=True):
        assert (f.name, f.edges, f.counts, f.levels, f.missing) == (
            g.name,
            g.edges,
            g.counts,
            g.levels,
            g.missing,
        )
