"""Put a report into MLflow, with the run that its model version came from. Reads nothing back."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from mlopsnb.errors import TrackingError, UserError, telling_line
from mlopsnb.extras import need

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport
    from mlopsnb.records import ModelVersion

DIRECTORY = "drift"
_MOST_FEATURES = 100


def log_report(report: DriftReport, version: ModelVersion) -> None:
    """Log the page, the table and the effects of *report* with the run of *version*.

    The page and the table as `drift/report.html` and `drift/report.json`, the numbers as metrics: `drift.features` that
    drifted, and `drift.effect.NAME` of each. Raises `TrackingError` if MLflow does not answer or refuses.
    """
    if not version.run_id:
        raise UserError(f"{version.uri} has no run to log to", hint="log the model with mlopsnb")
    mlflow = need("mlflow", extra="mlflow")
    entities = need("mlflow.entities", extra="mlflow")
    client = mlflow.MlflowClient()
    stamp = int((report.span[1] if report.span else time.time()) * 1000)
    effects = {_key(row.feature): row.effect for row in report.rows if row.effect is not None}
    numbers = {"drift.features": float(len(report.drifted))}
    numbers |= {f"drift.effect.{name}": effect for name, effect in list(effects.items())[:_MOST_FEATURES]}
    metrics = [entities.Metric(name, value, stamp, 0) for name, value in numbers.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own, of its database
            client.log_text(version.run_id, report.to_html(), f"{DIRECTORY}/report.html")
            client.log_text(
                version.run_id, report.to_frame().to_json(orient="records"), f"{DIRECTORY}/report.json"
            )
            for start in range(0, len(metrics), 100):
                client.log_batch(version.run_id, metrics=metrics[start : start + 100])
    except Exception as exc:
        raise TrackingError(
            f"the report was not logged to run {version.run_id}: {telling_line(exc)}",
            hint="check the tracking server; report.to_html(path) keeps the report meanwhile",
        ) from exc


def _key(name: str) -> str:
    """Return a feature's name as MLflow takes it in the name of a metric."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:200]
