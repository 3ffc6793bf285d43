"""Alerts: how they are read, when they fire and end, whom they reach, and what they are for Prometheus."""

from __future__ import annotations

import json
import math
import shutil
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_pages import Busy, window

from mlopsnb import plugins, watching
from mlopsnb.errors import DeployError, UserError
from mlopsnb.monitoring import promql, rules, sinks
from mlopsnb.monitoring.alerts import REPEAT, Alert, Board, Notice, parse
from mlopsnb.monitoring.counting import FIGURES
from mlopsnb.monitoring.performance import PerformanceReport, Span
from mlopsnb.monitoring.retraining import retrain

ALERT = parse("severe: error_rate>0.05 for 10s")
GOOD, BAD = window(100), window(80, errors=20)


def test_an_alert_is_read():
    assert parse("severe: error_rate>5% and qps>1 for 5m") == Alert(
        rule=rules.parse("error_rate>0.05 and qps>1"), severity="severe", seconds=300.0
    )
    assert parse("p99_ms>500") == Alert(rule=rules.parse("p99_ms>500"), severity="warning")
    assert parse(str(ALERT)) == ALERT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: qps>1", "no severity 'sever'.*\n.*'severe'"),
        ("qpss>1", "no figure named 'qpss'"),
        ("", "an alert is a text with a rule"),
        ("info:", "an alert is a text with a rule"),
        (None, "an alert is a text with a rule"),
        ("qps>1 for 5 parsecs", "how long an alert holds must be a span of time"),
    ],
)
def test_what_is_no_alert_says_why(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_it_fires_when_it_has_held_long_enough_and_ends_once():
    board = Board("m", "docker", [ALERT])
    assert board.advance({1: BAD}, 0.0) == ()
    assert board.advance({1: BAD}, 9.0) == ()
    [fired] = board.advance({1: BAD}, 10.0)
    assert (fired.status, fired.since, fired.at) == ("firing", 0.0, 10.0)
    assert fired.text == "severe: m on docker, revision 1: error_rate 20.00% (alert error_rate > 0.05)"
    assert board.firing == ((ALERT, 1),)
    assert board.advance({1: BAD}, 20.0) == ()
    [over] = board.advance({1: GOOD}, 30.0)
    assert (
        over.text == "resolved, severe: m on docker, revision 1: error_rate 0.00% (alert error_rate > 0.05)"
    )
    assert board.advance({1: GOOD}, 40.0) == ()


def test_a_short_spell_is_no_alert_and_a_long_one_is_told_again():
    board = Board("m", "docker", [ALERT])
    for now, seen in ((0.0, BAD), (5.0, GOOD), (10.0, BAD), (19.0, BAD)):
        assert board.advance({1: seen}, now) == ()
    assert len(board.advance({1: BAD}, 20.0)) == 1
    assert board.advance({1: BAD}, 20.0 + REPEAT - 1) == ()
    assert len(board.advance({1: BAD}, 20.0 + REPEAT)) == 1


def test_a_revision_that_is_gone_is_over():
    board = Board("m", "docker", [parse("error_rate>0.05")])
    assert [n.status for n in board.advance({1: window(1, errors=1)}, 0.0)] == ["firing"]
    assert [(n.status, n.revision) for n in board.advance({2: window(1)}, 1.0)] == [("resolved", 1)]


def test_no_requests_are_no_errors():
    assert not ALERT.fires(window(0))
    assert math.isnan(FIGURES["error_rate"].of(window(0)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.lists(st.booleans(), min_size=2, max_size=2)), max_size=30))
def test_firing_and_resolved_take_turns(looks):
    board, now, last = Board("m", "t", [ALERT], repeat=1e9), 0.0, {}
    for seconds, broken in looks:
        now += seconds
        for notice in board.advance({i: BAD if b else GOOD for i, b in enumerate(broken)}, now):
            assert notice.status != last.get(notice.revision, "resolved")
            last[notice.revision] = notice.status
            if notice.status == "firing":
                assert notice.at - notice.since >= 10
                assert broken[notice.revision]
            else:
                assert not broken[notice.revision]


NOTICE = Notice(
    alert=ALERT,
    status="firing",
    deployment="m",
    target="docker",
    revision=2,
    figures={"error_rate": 0.2, "p99_ms": math.nan},
    since=0.0,
    at=60.0,
)


@contextmanager
def receiver(*answers):
    """A web server that answers with these codes in turn, and then the last again; yields its address and what came."""
    came, codes = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/secret-path", came
        finally:
            server.shutdown()
            thread.join()


def test_a_webhook_is_tried_again_until_it_takes_the_notice():
    with receiver(503, 500, 204) as (url, came):
        sinks.webhook(url, pause=0.001)(NOTICE)
    assert len(came) == 3
    assert came[-1] == {
        "status": "firing",
        "severity": "severe",
        "alert": "error_rate > 0.05",
        "deployment": "m",
        "target": "docker",
        "revision": 2,
        "figures": {"error_rate": 0.2, "p99_ms": None},
        "since": 0.0,
        "at": 60.0,
        "trouble": "",
        "text": NOTICE.text,
    }


def test_a_webhook_that_never_takes_it_is_told_without_its_address():
    with receiver(500) as (url, came), pytest.raises(sinks.NoticeLost) as caught:
        sinks.slack(url, pause=0.001)(NOTICE)
    assert len(came) == sinks.TRIES
    assert caught.value.message == "webhook at 127.0.0.1 did not take a notice, 3 times: 500"
    assert came[0]["attachments"][0]["color"] == "#D55E00"
    assert "error_rate &gt; 0.05" in came[0]["text"]


class Post(socketserver.StreamRequestHandler):
    """An SMTP server (RFC 5321) for one letter."""

    def handle(self):
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            self.server.said.append(line.decode().strip())
            if line.upper() == b"DATA\r\n":
                self.wfile.write(b"354 go on\r\n")
                while (text := self.rfile.readline()) != b".\r\n":
                    self.server.said.append(text.decode().strip())
            self.wfile.write(b"221 bye\r\n" if line.upper() == b"QUIT\r\n" else b"250 ok\r\n")
            if line.upper() == b"QUIT\r\n":
                return


def test_an_email_arrives():
    with socketserver.TCPServer(("127.0.0.1", 0), Post) as server:
        server.said = []
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        sinks.email(
            ["a@example.org", "b@example.org"],
            sender="m@example.org",
            host="127.0.0.1",
            port=server.server_address[1],
        )(NOTICE)
        thread.join()
    assert "Subject: [firing] severe: m" in server.said
    assert "To: a@example.org, b@example.org" in server.said
    assert any(NOTICE.text[:40] in line for line in server.said)


def test_an_email_without_a_server_is_told():
    with pytest.raises(sinks.NoticeLost, match="e-mail by 127.0.0.1:1 did not take a notice, 3 times"):
        sinks.email("a@example.org", sender="m@example.org", host="127.0.0.1", port=1, pause=0.001)(NOTICE)


@pytest.fixture
def watched(monkeypatch):
    """Watch a made-up target, whose traffic goes on by a second with each look; returns the watcher."""

    def start(target, *given, sinks=(), looks=5, performance=None):
        monkeypatch.setattr(plugins, "create", lambda kind, name: target)
        dep = SimpleNamespace(name="m", target="busy")
        watcher = watching.watch(dep, given, sinks=sinks, every=0.001, performance=performance, start=False)
        ask = target.observe

        def observe(name):
            target.sleep(1)
            return ask(name)

        monkeypatch.setattr(target, "observe", observe)
        watcher.run(looks)
        return watcher

    return start


def test_a_watch_tells_its_sinks_and_outlives_one_that_fails(watched):
    told = []

    def broken(notice):
        raise ValueError("no paper")

    target = Busy({1: {"rate": 50}, 2: {"rate": 30, "errors": 20, "before": 1000}})
    watcher = watched(target, "critical: error_rate>10%", sinks=[broken, told.append])
    assert [(n.status, n.revision, n.alert.severity) for n in told] == [("firing", 2, "critical")]
    assert watcher.notices == told
    assert watcher.troubles == ["a sink failed: no paper"]
    assert [revision for _, revision in watcher.firing] == [2]
    assert "1 firing, 1 notices" in repr(watcher)


def test_a_deployment_of_which_nothing_runs_is_an_alert(watched):
    watcher = watched(Busy({1: {"rate": 50}}, dies=(1, 3.0)), "critical: replicas<1")
    assert [(n.status, n.revision) for n in watcher.notices] == [("firing", 1)]


def test_a_target_that_cannot_be_asked_is_noted_and_asked_again(watched, monkeypatch):
    target = Busy({1: {"rate": 5, "errors": 5}})
    answers = iter([DeployError("gone for lunch")])
    ask = target.ask

    def sometimes(*args):
        for exc in answers:
            raise exc
        return ask(*args)

    monkeypatch.setattr(target, "ask", sometimes)
    watcher = watched(target, "error_rate>0.1")
    assert watcher.troubles == ["gone for lunch"]
    assert len(watcher.notices) == 1


def test_drift_that_cannot_be_told_is_noted_once_and_the_other_alerts_go_on(watched):
    target = Busy({1: {"rate": 5, "errors": 5}})
    watcher = watched(target, "drifted_features>0", "severe: error_rate>0.1")
    assert watcher.troubles == ["no replica of 'm', revision 1, tells what it has counted"]
    assert [n.alert.severity for n in watcher.notices] == ["severe"]


def report(**metrics):
    whole = {"accuracy": metrics.pop("accuracy")}
    spans = (Span(name="1", rows=10, labelled=10, realised=whole), Span(name="2", rows=3, labelled=3))
    return PerformanceReport(spans=spans, baseline=whole, limits=whole)


def test_a_watch_tells_of_the_performance_that_it_is_told(watched):
    told = iter([0.95, 0.95, 0.8, 0.7, 0.95, 0.95])
    watcher = watched(
        Busy({1: {"rate": 5}}), "severe: accuracy<0.9", performance=lambda: report(accuracy=next(told))
    )
    assert [(n.status, n.figures["accuracy"]) for n in watcher.notices] == [
        ("firing", 0.8),
        ("resolved", 0.95),
    ]


def test_performance_that_cannot_be_told_is_noted_and_the_other_alerts_go_on(watched):
    def broken():
        raise OSError("no labels today")

    watcher = watched(Busy({1: {"rate": 5, "errors": 5}}), "error_rate>0.1", "f1<0.5", performance=broken)
    assert watcher.troubles == ["the performance cannot be told: no labels today"]
    assert [str(n.alert.rule) for n in watcher.notices] == ["error_rate > 0.1"]


def test_performance_is_for_a_watch_that_is_told_of_it():
    alert = parse("severe: accuracy<0.9")
    assert alert.fires(replace(GOOD, performance={"accuracy": 0.8}))
    assert not alert.fires(GOOD)
    with pytest.raises(UserError, match="is on the model's performance, which nobody tells"):
        watching.watch(SimpleNamespace(name="m", target="busy"), [alert])
    with pytest.raises(UserError, match="Prometheus is not told how well the model does"):
        promql.alerting_rules("m", [alert])


def test_a_sink_whose_work_fails_later_is_told_to_the_others(watched):
    told = []
    hook = retrain([sys.executable, "-c", "raise SystemExit('password=hunter2, no data')"])

    def wait_for(notice):
        begun = hook(notice)
        if begun is not None:
            begun.exception()
        return begun

    watcher = watched(Busy({1: {"rate": 5, "errors": 5}}), "error_rate>0.1", sinks=[wait_for, told.append])
    assert watcher.troubles == [f"a sink failed: {sys.executable} ended with 1: password=•••, no data"]
    assert sorted(n.trouble[-7:] for n in told) == ["", "no data"]
    assert "; what was begun about it failed: " in max(told, key=lambda n: n.trouble).text


def test_drift_is_for_a_watch_alone():
    alert = parse("severe: drifted_features>=3")
    assert alert.fires(replace(GOOD, drifted=3.0))
    assert not alert.fires(GOOD)
    with pytest.raises(UserError, match="no figure named 'drifted_features'"):
        rules.parse("drifted_features<1")
    with pytest.raises(UserError, match="Prometheus is not told what has drifted"):
        promql.alerting_rules("m", [alert])


def test_a_watch_in_a_thread_is_stopped(monkeypatch):
    monkeypatch.setattr(plugins, "create", lambda kind, name: Busy({1: {"rate": 1}}))
    dep = SimpleNamespace(name="m", target="busy")
    with watching.watch(dep, ["qps>1"], every=0.01) as watcher:
        assert "ended" not in repr(watcher)
    assert "ended" in repr(watcher)
    with pytest.raises(UserError, match="there is no rule"):
        watching.watch(dep, [])
    with pytest.raises(UserError, match="every must be longer"):
        watching.watch(dep, ["qps>1"], every=0)


@pytest.mark.prometheus
def test_prometheus_takes_the_rules_and_the_expressions_of_the_dashboard(tmp_path):
    alerts = [parse(f"info: {figure}>1 and qps>=0.5 for 90s") for figure in FIGURES]
    written = promql.alerting_rules("fraud", alerts)
    panels = promql.dashboard("fraud")["panels"]
    assert {p["title"] for p in panels} == {f.label for n, f in FIGURES.items() if n != "requests"}
    shown = [p["targets"][0]["expr"].replace("$__rate_interval", "5m") for p in panels]
    written["groups"].append(
        {"name": "panels", "rules": [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(shown)]}
    )
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps(written))
    done = subprocess.run([shutil.which("promtool"), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(FIGURES) + len(shown)} rules found" in done.stdout
