"""The same figures and alerts for a Prometheus server and Grafana, as plain data that JSON (and so YAML) can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlopsnb.errors import UserError
from mlopsnb.monitoring.counting import FIGURES

if TYPE_CHECKING:
    from mlopsnb.monitoring.alerts import Alert

_BY = "model_version"
_RANGE = "5m"

_RATE = "sum by (model_version) (rate(mlopsnb_request_total{$OF}[$SPAN]))"
_ALIVE = "mlopsnb_queue_rows{$OF}"
# What the process says of itself has no name of a model: it is joined by where it was scraped.
_ITS = f"* on (job, instance) group_left (model_version) ({_ALIVE} * 0 + 1)"


def _failed(codes: str) -> str:
    return f"({_RATE.replace('$OF', f'$OF,{codes}')} or {_RATE} * 0) / {_RATE}"


def _quantile(q: float, histogram: str) -> str:
    buckets = f"sum by (model_version, le) (rate({histogram}_bucket{{$OF}}[$SPAN]))"
    return f"histogram_quantile({q}, {buckets}) * 1000"


_EXPRESSIONS: Mapping[str, str] = {
    "requests": _RATE.replace("rate(", "increase("),
    "qps": _RATE,
    "error_rate": _failed('code=~"[45]..",code!="499"'),
    "server_error_rate": _failed('code=~"5..|429"'),
    "p50_ms": _quantile(0.5, "mlopsnb_request_duration_seconds"),
    "p90_ms": _quantile(0.9, "mlopsnb_request_duration_seconds"),
    "p99_ms": _quantile(0.99, "mlopsnb_request_duration_seconds"),
    "batch_rows": "sum by (model_version) (rate(mlopsnb_batch_size_sum{$OF}[$SPAN])) / "
    "sum by (model_version) (rate(mlopsnb_batch_size_count{$OF}[$SPAN]))",
    "queue_rows": f"sum by (model_version) ({_ALIVE})",
    "queue_p99_ms": _quantile(0.99, "mlopsnb_queue_seconds"),
    "cpu_cores": f"sum by (model_version) (rate(process_cpu_seconds_total[$SPAN]) {_ITS})",
    "memory_mb": f"sum by (model_version) (process_resident_memory_bytes {_ITS}) / 1e6",
    "replicas": f"count by (model_version) ({_ALIVE})",
}


def expression(figure: str, name: str, *, span: str = _RANGE) -> str:
    """Return *figure* of the deployment *name* in PromQL, for each model version; rates are over *span*."""
    return _EXPRESSIONS[figure].replace("$OF", f'model_name="{name}"').replace("$SPAN", span)


def alerting_rules(name: str, alerts: Sequence[Alert], *, span: str = _RANGE) -> dict[str, object]:
    """Return *alerts* of the deployment *name* as a rules file of Prometheus; dumped as JSON it is valid YAML.

    Raises `UserError` if one is on drift, of which Prometheus knows the counters only, or on performance.
    """
    return {"groups": [{"name": f"mlopsnb-{name}", "rules": [_rule(name, a, span) for a in alerts]}]}


def _rule(name: str, alert: Alert, span: str) -> dict[str, object]:
    if alert.on_drift or alert.on_performance:
        what = "what has drifted" if alert.on_drift else "how well the model does"
        raise UserError(
            f"Prometheus is not told {what}: it cannot watch {str(alert)!r}",
            hint="watch that with ml.watch, or python -m mlopsnb watch",
        )
    sides = [
        f"(({expression(c.figure, name, span=span)}) {c.operator} {c.limit!r})"
        for c in alert.rule.comparisons
    ]
    words = "".join(part.capitalize() for part in alert.rule.comparisons[0].figure.split("_"))
    return {
        "alert": f"Mlopsnb{words}",
        "expr": f" and on ({_BY}) ".join(sides),
        "for": f"{round(alert.seconds * 1000)}ms",
        "labels": {"severity": alert.severity, "deployment": name},
        "annotations": {
            "summary": f"{name}, model version {{{{ $labels.{_BY} }}}}: {alert.rule}",
            "description": f"{alert.rule.comparisons[0].figure} is {{{{ $value }}}}",
        },
    }


_UNITS: Mapping[str, str] = {
    "qps": "reqps",
    "error_rate": "percentunit",
    "server_error_rate": "percentunit",
    "p50_ms": "ms",
    "p90_ms": "ms",
    "p99_ms": "ms",
    "queue_p99_ms": "ms",
    "memory_mb": "decmbytes",
}


def dashboard(name: str) -> dict[str, object]:
    """Return a Grafana dashboard of the deployment *name*: a panel for each figure, a line for each model version."""
    width, height = 8, 7
    shown = [figure for figure in FIGURES if figure != "requests"]
    return {
        "title": f"mlopsnb: {name}",
        "uid": f"mlopsnb-{name}"[:40],
        "schemaVersion": 38,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
            ]
        },
        "panels": [
            {
                "id": i + 1,
                "type": "timeseries",
                "title": FIGURES[figure].label,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": i % 3 * width, "y": i // 3 * height, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": _UNITS.get(figure, "short"), "min": 0}, "overrides": []},
                "targets": [
                    {
                        "refId": "A",
                        "expr": expression(figure, name, span="$__rate_interval"),
                        "legendFormat": f"version {{{{{_BY}}}}}",
                    }
                ],
            }
            for i, figure in enumerate(shown)
        ],
    }
