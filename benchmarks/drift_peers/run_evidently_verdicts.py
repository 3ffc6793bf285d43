"""Evidently's verdicts, in its own environment: ``run_evidently_verdicts.py PLACE…``, each with three Parquet files.

One `ValueDrift` a column is what DataDriftPreset judges columns by; the preset counts each of them three times.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

from measure import answer


def drifted(reference, current):
    from evidently import Report
    from evidently.metrics import ValueDrift

    result = Report([ValueDrift(column=name) for name in reference]).run(current, reference)
    return [m["config"]["column"] for m in result.dict()["metrics"] if is_drift(m)]


def is_drift(metric):
    score, limit = float(metric["value"]), metric["config"]["threshold"]
    return score >= limit if "distance" in metric["config"]["method"].lower() else score < limit


def main(*places):
    import pandas as pd

    found = []
    for place in map(Path, places):
        read = {name: pd.read_parquet(place / f"{name}.parquet") for name in ("reference", "clean", "moved")}
        found.append({name: drifted(read["reference"], read[name]) for name in ("clean", "moved")})
    answer(found)


main(*sys.argv[1:])
