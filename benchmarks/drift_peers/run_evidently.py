"""Evidently's side, in its own environment: ``run_evidently.py REFERENCE CURRENT PAGE``, Parquet files and the page to write."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

from measure import answer, import_cost, measured


def main(reference, current, page):
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    before, now = pd.read_parquet(reference), pd.read_parquet(current)
    Report([DataDriftPreset()]).run(now.head(500), before.head(500))  # what is loaded on first use
    result, cost = measured(lambda: Report([DataDriftPreset()]).run(now, before))
    _, render = measured(lambda: result.save_html(page))
    metrics = {m["config"]["column"]: m for m in result.dict()["metrics"] if "column" in m["config"]}
    scores = {
        name: {
            "method": m["config"]["method"],
            "threshold": m["config"]["threshold"],
            "score": float(m["value"]),
        }
        for name, m in metrics.items()
    }
    answer(
        {
            "cost": cost,
            "render": render,
            "page": Path(page).stat().st_size,
            "import": import_cost(
                "from evidently import Report; from evidently.presets import DataDriftPreset", 1
            ),
            "scores": scores,
        }
    )


main(*sys.argv[1:])
