"""A real Prometheus server scrapes a real deployment: the same figures come back, and the same alerts fire."""

import json
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch

import mlopsnb as ml
from mlopsnb.monitoring import promql
from mlopsnb.monitoring.alerts import parse
from mlopsnb.monitoring.traffic import watch
from mlopsnb.settings import set_for_session

pytestmark = pytest.mark.prometheus
SECONDS = 90.0


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def prometheus(tmp_path):
    """Start Prometheus with these rules, scraping one address; yields its address."""
    started = []

    def start(scraped, rules):
        (tmp_path / "rules.yml").write_text(json.dumps(rules))
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "models", "static_configs": [{"targets": [scraped]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        options = ["--config.file", tmp_path / "prometheus.yml", "--storage.tsdb.path", tmp_path / "tsdb"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            server = subprocess.Popen(
                [shutil.which("prometheus"), *options, "--web.listen-address", f"127.0.0.1:{port}"],
                stdout=log,
                stderr=log,
            )
        started.append(server)
        return f"http://127.0.0.1:{port}"

    yield start
    for server in started:
        server.terminate()
        server.wait(30)
    set_for_session(prometheus=None)


def until(found, what):
    """Ask again until something is *found*."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            if answer := found():
                return answer
        except (httpx.HTTPError, ml.DeployError) as exc:
            what = f"{what}: {exc}"
        time.sleep(0.1)
    raise AssertionError(what)


def test_prometheus_sees_what_we_see(prometheus):
    dep = ml.deploy(torch.nn.Linear(2, 1), name="scraped", example=np.ones((3, 2), "float32"))
    alert = parse("severe: error_rate>20% and requests>1")
    rules = promql.alerting_rules("scraped", [alert], span="1m")
    address = prometheus(dep.url.removeprefix("http://"), rules)
    set_for_session(prometheus=address)

    def met():
        for _ in range(3):
            dep.predict(np.ones((1, 2), "float32"))
            with pytest.raises(ml.UserError):
                dep._connect()._request("POST", "/v2/models/scraped/infer", b"{")
        traffic = dep.metrics("1m")
        return traffic if traffic.figures()["requests"] > 10 else None

    traffic = until(met, "Prometheus has no samples")
    assert traffic.source == address
    figures = traffic.figures()
    assert 0.3 < figures["error_rate"] < 0.7
    assert figures["server_error_rate"] == 0
    assert figures["p50_ms"] > 0
    assert figures["replicas"] == 1
    assert figures["memory_mb"] > 10
    [revision] = traffic.revisions
    assert revision.total.counts.requests >= figures["requests"]

    def fires():
        met()
        found = httpx.get(f"{address}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        return [a for a in found if a["state"] == "firing"]

    [firing] = until(fires, "no alert fires")
    assert firing["labels"]["severity"] == "severe"
    assert firing["labels"]["deployment"] == "scraped"
    assert firing["annotations"]["summary"] == "scraped, model version 1: error_rate > 0.2 and requests > 1.0"
    shown = {}
    for panel in promql.dashboard("scraped")["panels"]:
        query = panel["targets"][0]["expr"].replace("$__rate_interval", "1m")
        answer = httpx.get(f"{address}/api/v1/query", params={"query": query}, timeout=10).json()
        shown[panel["title"]] = [float(series["value"][1]) for series in answer["data"]["result"]]
    assert {title for title, values in shown.items() if len(values) != 1} == set()
    assert shown["replicas"] == [1.0]
    assert 0.3 < shown["error rate"][0] < 0.7

    with pytest.raises(ml.DeployError, match="has no series with model_name='alone' of the last 60 s"):
        watch(dep._target, replace(dep.release, name="alone"), seconds=60, prometheus=address)
    set_for_session(prometheus="http://127.0.0.1:1")
    with pytest.raises(ml.DeployError, match="Prometheus at http://127.0.0.1:1 cannot be asked"):
        dep.metrics("1m")
    dep.delete()
