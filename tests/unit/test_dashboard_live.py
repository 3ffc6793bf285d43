"""The dashboard while it is live: targets that answer, fail, hang and change; its widgets; how it ends."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from boards import CANARY, EVIL, Pretend, release, revision
from traffic_pages import window

import mlopsnb as ml
from mlopsnb import plugins
from mlopsnb.errors import DeployError, UnknownBackend, UserError
from mlopsnb.monitoring import prometheus
from mlopsnb.notebook.dashboard import Dashboard, gathering, model
from mlopsnb.notebook.dashboard.gathering import LOG_LINES, Watch
from mlopsnb.notebook.dashboard.model import Drift
from mlopsnb.notebook.views import Output, choose
from mlopsnb.rollout import Forget, Scale, Shift, Stop


@pytest.fixture
def targets(monkeypatch):
    """Targets by name; `pretend` has a canary of `fraud` under way, and `quiet`."""
    quiet = release(revision(1), name="quiet", target="pretend")
    known = {"pretend": Pretend(replace(CANARY, target="pretend"), quiet)}
    monkeypatch.setattr(plugins, "create", lambda kind, name: known[name])
    monkeypatch.setattr(plugins, "available", lambda kind: known)
    return known


@pytest.fixture
def watch(targets):
    """Start a watch of all targets that looks again at once."""
    started = []

    def start(looks=2, seconds=60):
        one = Watch(tuple(targets), lambda: None, every=0.01)
        started.append(one)
        one.start()
        one.wait(looks, seconds)
        return one

    yield start
    for one in started:
        one.stop()


def by_name(board):
    return {row.key[1]: row for row in board.rows}


def test_all_targets_are_looked_at_and_what_is_away_is_said(targets, watch):
    targets["away"] = Pretend()
    targets["away"].away = DeployError("no engine\n  answers", hint="start it")
    targets["broken"] = Pretend()
    targets["broken"].away = ValueError(EVIL)
    board = watch().board()
    assert {name: row.state for name, row in by_name(board).items()} == {"fraud": "ready", "quiet": "ready"}
    assert [r.points != () for r in by_name(board)["fraud"].traffic.revisions] == [True, True]
    assert board.away == {"away": "no engine answers", "broken": f"ValueError: {EVIL}"}
    assert board.waiting == ()


def test_a_target_that_hangs_is_told_to_be_late_and_stops_no_other_one(targets, watch, monkeypatch):
    monkeypatch.setattr(gathering, "PATIENCE", 0.05)
    targets["slow"] = Pretend()
    targets["slow"].hold = threading.Event()
    one = watch(seconds=1)
    board = one.board()
    assert by_name(board).keys() == {"fraud", "quiet"}
    assert "has not answered" in board.away["slow"]
    targets["slow"].hold.set()
    one.wait(1, 60)
    assert "slow" not in one.board().away


def next_looks(target, n=2):
    """Wait until so many looks have begun, so that one has seen all that was so before."""
    for _ in range(n):
        assert target.asked.acquire(timeout=60)


def drain(target):
    while target.asked.acquire(blocking=False):
        pass


def test_what_is_deleted_and_what_fails_meanwhile(targets, watch):
    one, target = watch(), targets["pretend"]
    del target.releases["quiet"]
    drain(target)
    next_looks(target, 3)
    assert by_name(one.board())["quiet"].state == "deleted"

    def observe(name):
        raise DeployError("403: not allowed")

    target.observe = observe
    drain(target)
    next_looks(target, 3)
    assert (by_name(one.board())["fraud"].state, by_name(one.board())["fraud"].trouble) == (
        "ready",
        "403: not allowed",
    )


def test_the_same_board_as_long_as_nothing_is_new():
    one = Watch(("pretend",), lambda: None)
    assert one.board() is one.board()
    one.ended("pretend", [])
    assert one.board() is one.board()


def until(one, known):
    """Wait until *known* says so of the board; it is asked again whenever there is something new."""
    told = threading.Event()
    one._changed = told.set
    while not known(one.board()):
        assert told.wait(60)
        told.clear()
    return one.board()


def test_drift_that_cannot_be_told_says_why(targets, watch):
    board = until(watch(), lambda board: by_name(board)["fraud"].drift.keys() == {1, 2})
    drift = by_name(board)["fraud"].drift[1]
    assert (drift.report, drift.short) == (None, "not known")
    assert drift.why.startswith("replica pod-a tells no counters")


def test_what_has_no_reference_is_asked_once(targets, watch, monkeypatch):
    asked = []

    def live_drift(target, name, revision, **options):
        asked.append((name, revision))
        raise UserError("no reference")

    monkeypatch.setattr(gathering, "DRIFT_EVERY", 0.01)
    monkeypatch.setattr(gathering, "live_drift", live_drift)
    one, looks = watch(), []
    board = until(one, lambda board: looks.append(1) or (len(looks) > 10 and by_name(board)["quiet"].drift))
    assert by_name(board)["quiet"].drift == {1: Drift(why="no reference", short="no reference")}
    assert len(asked) == len(set(asked))


def test_the_log_of_one_is_read_without_what_looks_secret(targets, watch):
    one, key = watch(), ("pretend", "fraud")
    one.follow(key)
    until(one, lambda _: one.log(key) is not None)
    assert one.log(key) == tuple(f"line {i} token=•••" for i in range(100 - LOG_LINES, 100))
    assert one.log(("pretend", "quiet")) is None
    one.follow(None)


def test_lines_come_from_prometheus_where_it_is_named(targets, watch, monkeypatch):
    monkeypatch.setenv("MLOPSNB_PROMETHEUS", "http://prometheus:9090")
    asked, points = [], (window(10), window(20))

    def windows(address, of, seconds):
        asked.append((address, of.name))
        if of.name == "quiet":
            raise DeployError("Prometheus has no series")
        return {}, dict.fromkeys((1, 2), points)

    monkeypatch.setattr(prometheus, "windows", windows)
    board = watch(looks=4).board()
    assert sorted(asked) == [("http://prometheus:9090", "fraud"), ("http://prometheus:9090", "quiet")]
    fraud = by_name(board)["fraud"].traffic
    assert (fraud.source, [r.points for r in fraud.revisions]) == ("http://prometheus:9090", [points] * 2)
    assert by_name(board)["quiet"].trouble == "Prometheus has no series"


# ---- the front


@pytest.fixture
def shown(monkeypatch):
    """What is put into outputs, in order."""
    put = []
    monkeypatch.setattr(Output, "put", lambda self, bundle: put.append((id(self), bundle)))
    return put


@pytest.fixture
def live(targets, shown, monkeypatch):
    """A dashboard that is shown with widgets."""
    monkeypatch.setenv("MLOPSNB_STATUS", "widget")
    one = ml.dashboard()
    one._ipython_display_()
    yield one
    one.close()


STATIC = {"text/html", "text/plain"}


def test_it_is_text_anywhere(targets, capsys, monkeypatch):
    one = Dashboard(("pretend",))
    text = str(one)
    assert text.startswith("Dashboard: 2 deployments, 2 ready, at ")
    assert "models:/fraud/2 revision 2, canary" in text
    one._ipython_display_()  # a terminal
    assert "fraud on pretend" in capsys.readouterr().out
    assert repr(one).startswith("<Dashboard of pretend: not shown")


def test_a_target_that_there_is_not_is_told_at_once():
    with pytest.raises(UnknownBackend, match="did you mean 'docker'"):
        ml.dashboard(target="dokcer")


def test_a_notebook_that_a_program_runs_gets_how_things_are(targets, shown, monkeypatch):
    monkeypatch.setenv("MLOPSNB_STATUS", "display")
    Dashboard(("pretend",))._ipython_display_()
    [(_, bundle)] = shown
    assert bundle.keys() == STATIC
    assert "…" not in bundle["text/plain"].splitlines()[2].rpartition("-")[0]


def test_voila_gets_widgets(monkeypatch):
    class Shell:
        kernel = object()

        def get_parent(self):
            return {"content": {"allow_stdin": False}}

    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert choose("auto", Shell()) == "widget"


def test_closing_leaves_html_and_text_and_no_widget(live, shown):
    assert shown[0][1].keys() == {*STATIC, "application/vnd.jupyter.widget-view+json"}
    assert "fraud" in shown[0][1]["text/html"]
    panel = live._panel
    live.close()
    live.close()
    assert [(place == shown[0][0], bundle.keys()) for place, bundle in shown[1:]] == [(True, STATIC)]
    assert panel._widgets.root.comm is None
    assert not panel._watch.running
    assert "not shown" in repr(live)


def test_showing_it_again_or_another_one_closes_the_one_before(live, shown):
    live._ipython_display_()
    assert [bundle.keys() == STATIC for _, bundle in shown] == [False, True, False]
    other = Dashboard(("pretend",))
    other._ipython_display_()
    assert (live._panel, Dashboard._live) == (None, other)
    other.close()


def test_an_interrupt_while_it_opens_leaves_nothing_behind(targets, shown, monkeypatch):
    def interrupted(self, looks, seconds):
        raise KeyboardInterrupt

    monkeypatch.setenv("MLOPSNB_STATUS", "widget")
    monkeypatch.setattr(Watch, "wait", interrupted)
    one = Dashboard(("pretend",))
    with pytest.raises(KeyboardInterrupt):
        one._ipython_display_()
    assert (one._panel, Dashboard._live, shown) == (None, None, [])


@pytest.fixture
def press(live):
    """Choose `fraud`; press a button, and see the act through that this began."""
    panel = live._panel
    widgets = panel._widgets
    widgets.pick.value = ("pretend", "fraud")

    def press(name):
        {**widgets.acts, "yes": widgets.yes, "no": widgets.no}[name].click()
        for thread in [t for t in threading.enumerate() if t.name == "mlopsnb-dashboard-act"]:
            thread.join(60)
        panel._paint()
        return widgets

    return press


def test_no_button_does_a_thing_before_it_was_confirmed(press, targets):
    for act in ("rollback", "promote", "delete"):
        assert "confirm" in press(act).words.value
        assert all(button.disabled for button in press(act).acts.values())
        press("no")
        assert press("yes").question.layout.display == "none"
    assert targets["pretend"].actions == []


@pytest.mark.parametrize(
    ("act", "actions"),
    [
        ("rollback", [Shift({1: 100}), Stop(2, failed=True)]),
        ("promote", [Shift({2: 100}), Stop(1)]),
        ("delete", [Forget()]),
    ],
)
def test_what_was_confirmed_is_done_once_and_told(press, targets, act, actions):
    press(act)
    assert ": done in" in press("yes").told.value
    press("yes")
    assert targets["pretend"].actions == actions


def test_scale_takes_the_number_beside_it(press, targets, live):
    press("promote")
    press("yes")
    live._panel._watch.found(
        ("pretend", "fraud"), lambda row: replace(row, release=targets["pretend"].observe("fraud"))
    )
    live._panel._widgets.replicas.value = 3
    live._panel._paint()
    press("scale")
    assert targets["pretend"].actions[-1] == Stop(1)
    press("yes")
    assert targets["pretend"].actions[-1] == Scale(2, 3)


def test_an_act_that_fails_says_so(press, targets):
    def apply(name, action, *, timeout):
        raise DeployError(f"no room for {EVIL}", hint="make some")

    targets["pretend"].apply = apply
    press("delete")
    told = press("yes").told.value
    assert "failed after" in told
    assert "no room for &lt;img src=x onerror=alert(1)&gt;" in told


def test_another_choice_takes_the_question_back(press, live, targets):
    press("delete")
    live._panel._widgets.pick.value = ("pretend", "quiet")
    press("yes")
    assert targets["pretend"].actions == []
    assert live._panel._widgets.acts["promote"].disabled


@pytest.mark.parametrize("at", range(5))
def test_each_tab_shows_what_it_is_named_for(press, live, at):
    widgets = live._panel._widgets
    widgets.tabs.selected_index = at
    live._panel._paint()
    words = {"traffic": "figures", "replicas": "pod-a", "log": "log of fraud", "history": "Revisions"}
    assert words.get(widgets.tabs.titles[at], "") in widgets.tabs.children[at].value


def test_one_that_is_gone_is_not_chosen_any_longer(press, live, targets, monkeypatch):
    monkeypatch.setattr(model, "GONE", 0.0)
    del targets["pretend"].releases["fraud"]
    panel = live._panel
    panel._watch.ended("pretend", ["quiet"])
    panel._watch.ended("pretend", ["quiet"])
    panel._paint()
    assert panel._widgets.pick.label == "choose one …"
    assert panel._widgets.detail.layout.display == "none"
