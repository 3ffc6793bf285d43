"""NannyML's side, in its own environment: its own data as Parquet, its alerts, its CBPE and what that costs.

``run_nannyml.py DIRECTORY`` writes `loan-*.parquet`, two classes, and `cards-*.parquet`, three, there.
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
CARDS = ("highstreet_card", "prepaid_card", "upmarket_card")
CHUNK = 5000
METRICS = ["accuracy", "precision", "recall", "f1", "roc_auc"]
TIMES = 5


def cbpe(reference, analysis, **columns):
    """Return NannyML's estimates by metric and chunk, and the median of the CPU seconds that they take."""
    import nannyml as nml

    def estimate():
        estimator = nml.CBPE(y_pred="y_pred", metrics=METRICS, chunk_size=CHUNK, **columns)
        return estimator.fit(reference).estimate(analysis).filter(period="analysis").to_df()

    cpus = []
    for _ in range(TIMES):
        started = time.process_time()
        found = estimate()
        cpus.append(time.process_time() - started)
    estimates = {name: [float(v) for v in found[name]["value"]] for name in METRICS}
    return {"estimates": estimates, "cpu": statistics.median(cpus)}


def write(directory, name, reference, analysis):
    for side, frame in (("reference", reference), ("analysis", analysis)):
        frame.to_parquet(Path(directory) / f"{name}-{side}.parquet", index=False)


def main(directory):
    import nannyml as nml

    reference, analysis, truth = nml.load_synthetic_car_loan_dataset()
    write(directory, "loan", reference, analysis.merge(truth, on="id"))
    drift = nml.UnivariateDriftCalculator(column_names=list(COLUMNS), chunk_size=CHUNK)
    found = drift.fit(reference).calculate(analysis).filter(period="analysis").to_df()
    alerts = {
        name: [bool(v) for v in found[name][found[name].columns.get_level_values(0)[0]]["alert"]]
        for name in COLUMNS
    }
    two = {
        "y_pred_proba": "y_pred_proba",
        "y_true": "repaid",
        "problem_type": "classification_binary",
    }
    loans = cbpe(reference, analysis, **two)
    reference, analysis, truth = nml.load_synthetic_multiclass_classification_dataset()
    write(directory, "cards", reference, analysis)
    three = {
        "y_pred_proba": {name: f"y_pred_proba_{name}" for name in CARDS},
        "y_true": "y_true",
        "problem_type": "classification_multiclass",
    }
    several = cbpe(reference, analysis, **three) | {"calibrated": calibrated(reference)}
    answer({"alerts": alerts, "cbpe": loans, "multiclass": several})


def calibrated(reference):
    """Say of which cards NannyML calibrates the scores: those whose error that lowers on all of its parts."""
    from nannyml.calibration import IsotonicCalibrator, needs_calibration

    return {
        name: bool(
            needs_calibration(
                (reference["y_true"] == name).astype(int).to_numpy(),
                reference[f"y_pred_proba_{name}"].to_numpy(),
                IsotonicCalibrator(),
            )
        )
        for name in CARDS
    }


main(*sys.argv[1:])
