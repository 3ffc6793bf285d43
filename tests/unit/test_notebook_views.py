"""How a run is shown: widgets, display updates or lines, and what becomes of an error meanwhile."""

from __future__ import annotations

import threading

import pytest

from mlopsnb import events
from mlopsnb.errors import DeployError
from mlopsnb.events import Event, report, report_progress, step
from mlopsnb.notebook import views
from mlopsnb.notebook.render import cancel_html
from mlopsnb.notebook.status import (
    LINES,
    Snapshot,
)
from mlopsnb.notebook.views import Throttle, choose, following


class Kernel:
    """What `choose` asks of a shell that lives in a kernel."""

    kernel = object()

    def __init__(self, allow_stdin):
        self._allow_stdin = allow_stdin

    def get_parent(self):
        return {"content": {"allow_stdin": self._allow_stdin}}


def test_choose(monkeypatch):
    assert choose("auto", object()) == "lines"
    assert choose("auto", Kernel(True)) == "widget"
    assert choose("auto", Kernel(False)) == "display"
    assert [choose(mode, Kernel(True)) for mode in ("display", "lines", "off")] == ["display", "lines", "off"]
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    assert choose("auto", Kernel(True)) == "display"


def test_lines(capsys):
    with following("%deploy net", mode="lines", notes=("name: net",)), step("export"):
        report_progress("export", "tracing", 0.5)
        report_progress("export", "tracing", 0.5)
    out = capsys.readouterr().out.splitlines()
    assert out[:4] == ["%deploy net", "  name: net", "  ▸ export running", "  ▸ export running 50%: tracing"]
    assert out[4].startswith("  ✓ export done in ")
    assert out[5].startswith("✓ %deploy net: done in ")


def test_lines_of_another_thread_are_printed_by_the_cells_own(capsys):
    with following("%deploy net", mode="lines"):
        reporter = events._reporter.get()
        thread = threading.Thread(target=reporter, args=[Event(step="start", state="started")])
        thread.start()
        thread.join()
        assert capsys.readouterr().out == ""
    assert "  ▸ start the server running\n" in capsys.readouterr().out


def test_nothing_is_shown_for_a_call_that_reports_nothing(capsys):
    with following("%drift a b", mode="lines"):
        pass
    assert capsys.readouterr().out == ""


class Recorder(views.OffView):
    closed: Snapshot | None = None

    def close(self, now):
        Recorder.closed = now


@pytest.mark.parametrize(
    ("error", "outcome", "verdict"),
    [
        (DeployError("no port", hint="use 0"), "failed", ("no port", "use 0")),
        (ValueError("a\nb <c>"), "failed", ("ValueError: b <c>", "")),
        (KeyboardInterrupt(), "cancelled", ("", "")),
    ],
)
def test_what_is_raised_goes_on_and_is_in_the_card(monkeypatch, error, outcome, verdict):
    monkeypatch.setitem(views._VIEWS, "off", Recorder)
    with pytest.raises(type(error)), following("%deploy net", mode="off"), step("start"):
        raise error
    assert Recorder.closed is not None
    assert Recorder.closed.outcome == outcome
    assert [s.state for s in Recorder.closed.steps] == [outcome]
    assert (Recorder.closed.verdict, Recorder.closed.hint) == verdict


def test_the_reporter_is_gone_afterwards(capsys):
    with following("%deploy net", mode="lines"):
        pass
    report(Event(step="start", state="started"))
    assert capsys.readouterr().out == ""


class Painted:
    """What was painted, and whoever waits for the next time."""

    def __init__(self):
        self.values = []
        self.value = 0
        self._more = threading.Condition()

    def __call__(self):
        with self._more:
            self.values.append(self.value)
            self._more.notify_all()

    def wait_for(self, count):
        with self._more:
            assert self._more.wait_for(lambda: len(self.values) >= count, 20)


@pytest.fixture
def painted():
    return Painted()


def test_lines_repeat_what_a_program_prints_once_in_a_while_and_its_end_if_it_failed(capsys):
    def build():
        with following("%build net", mode="lines"), step("install"):
            for i in range(100):
                events.report_line("install", f"line {i}")
            raise DeployError("full")

    with pytest.raises(DeployError):
        build()
    out = capsys.readouterr().out.splitlines()
    assert [found for found in out if found.startswith("    line")] == [
        "    line 0",
        *(f"    line {i}" for i in range(100 - LINES, 100)),
    ]


def test_throttle_paints_the_first_at_once_and_the_last_in_the_end(monkeypatch, painted):
    monkeypatch.setattr(views, "INTERVAL", 0.3)
    monkeypatch.setattr(views, "TICK", 600)
    throttle = Throttle(painted)
    for painted.value in range(1, 100):
        throttle.request()
    assert painted.values == [1]
    painted.wait_for(2)
    assert painted.values == [1, 99]
    throttle.stop()


def test_throttle_paints_while_nothing_happens(monkeypatch, painted):
    monkeypatch.setattr(views, "INTERVAL", 0.01)
    monkeypatch.setattr(views, "TICK", 0.02)
    throttle = Throttle(painted)
    throttle.request()
    painted.wait_for(3)
    throttle.stop()


def test_nothing_is_painted_after_stop(painted):
    throttle = Throttle(painted)
    throttle.request()
    throttle.request()
    throttle.stop()
    throttle._thread.join(20)
    assert not throttle._thread.is_alive()
    throttle.request()
    assert painted.values == [0]


class Front:
    """IPython's display functions, noted in place of being sent."""

    def __init__(self, monkeypatch, broken=()):
        self.shown = []
        for name in ("display", "update_display"):
            monkeypatch.setattr(f"IPython.display.{name}", self._noting(name, name in broken))

    def _noting(self, name, broken):
        def show(bundle, *, raw, display_id):
            if broken:
                raise RuntimeError("no front end")
            self.shown.append(
                (name, sorted(bundle), bundle["text/plain"].partition("\n")[0].partition(" done")[0])
            )

        return show


WIDGET = ["application/vnd.jupyter.widget-view+json", "text/html", "text/plain"]


def test_a_widget_while_it_runs_and_html_in_the_end(monkeypatch, capsys):
    from ipywidgets import HTML

    front, made = Front(monkeypatch), []
    monkeypatch.setattr("ipywidgets.HTML", lambda value: made.append(HTML(value)) or made[-1])
    with following("%deploy net", mode="widget"), step("start"):
        card, button = made
        assert "running" in card.value
        assert button.value == cancel_html()
    assert front.shown == [
        ("display", WIDGET, "▸ %deploy net: running"),
        ("update_display", WIDGET[1:], "✓ %deploy net:"),
    ]
    assert card.comm is None
    assert capsys.readouterr().out == ""


def test_without_working_widgets_the_display_is_updated(monkeypatch):
    def broken(value):
        raise RuntimeError("no comm")

    front = Front(monkeypatch)
    monkeypatch.setattr("ipywidgets.HTML", broken)
    with following("%deploy net", mode="widget"), step("start"):
        pass
    assert [(name, kinds) for name, kinds, _ in front.shown] == [
        ("display", WIDGET[1:]),
        ("update_display", WIDGET[1:]),
    ]


@pytest.mark.parametrize("broken", [("display",), ("update_display",), ("display", "update_display")])
def test_without_a_working_front_end_the_run_goes_on_and_its_text_is_printed(monkeypatch, capsys, broken):
    Front(monkeypatch, broken)
    with following("%deploy net", mode="display"), step("start"):
        pass
    assert "✓ %deploy net: done in" in capsys.readouterr().out


def test_a_flood_of_lines_is_painted_now_and_then(monkeypatch):
    front = Front(monkeypatch)
    monkeypatch.setattr(views, "INTERVAL", 600)
    with following("%build net", mode="display"), step("install"):
        for i in range(10_000):
            events.report_line("install", f"line {i}")
    assert len(front.shown) == 2


def test_the_button_names_a_command_and_is_hidden_where_nobody_knows_it():
    html = cancel_html()
    assert 'data-commandlinker-command="notebook:interrupt-kernel"' in html
    assert ".mlopsnb-cancel{display:none}" in html
    assert "<script" not in html
    assert "onclick" not in html
