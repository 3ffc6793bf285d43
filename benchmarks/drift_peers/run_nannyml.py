"""NannyML's side, in its own environment: its car-loan set as Parquet, its alerts on it, its CBPE and what that costs.

``run_nannyml.py DIRECTORY`` writes `loan-reference.parquet` and `loan-analysis.parquet` there.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

from measure import answer

COLUMNS = (
    *("car_value", "salary_range", "debt_to_income_ratio", "loan_length", "repaid_loan_on_prev_car"),
    *("size_of_downpayment", "driver_tenure", "y_pred_proba"),
)
CHUNK = 5000


def timed(call, times=5):
    """Return what *call* returns, and the median of the CPU seconds that it takes."""
    cpus = []
    for _ in range(times):
        started = time.process_time()
        found = call()
        cpus.append(time.process_time() - started)
    return found, statistics.median(cpus)


def main(directory):
    import nannyml as nml

    reference, analysis, truth = nml.load_synthetic_car_loan_dataset()
    analysis = analysis.merge(truth, on="id")
    for name, frame in (("reference", reference), ("analysis", analysis)):
        frame.to_parquet(Path(directory) / f"loan-{name}.parquet", index=False)
    drift = nml.UnivariateDriftCalculator(column_names=list(COLUMNS), chunk_size=CHUNK)
    found = drift.fit(reference).calculate(analysis).filter(period="analysis").to_df()
    alerts = {
        name: [bool(v) for v in found[name][found[name].columns.get_level_values(0)[0]]["alert"]]
        for name in COLUMNS
    }
    metrics = ["accuracy", "precision", "recall", "f1", "roc_auc"]

    def estimate():
        estimator = nml.CBPE(
            y_pred_proba="y_pred_proba",
            y_pred="y_pred",
            y_true="repaid",
            problem_type="classification_binary",
            metrics=metrics,
            chunk_size=CHUNK,
        )
        return estimator.fit(reference).estimate(analysis).filter(period="analysis").to_df()

    estimated, cpu = timed(estimate)
    answer(
        {
            "alerts": alerts,
            "cbpe": {name: [float(v) for v in estimated[name]["value"]] for name in metrics},
            "cbpe_cpu": cpu,
        }
    )


main(*sys.argv[1:])
