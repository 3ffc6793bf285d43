"""The status card: what events make of it, and how it reads as text and HTML."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb import events
from mlopsnb.events import Event, Replica, step
from mlopsnb.notebook.render import event_line, seconds, to_html, to_text
from mlopsnb.notebook.status import (
    LINES,
    Snapshot,
    StepView,
    advance,
    finish,
    masked,
    tick,
    without_overwritten,
)
from mlopsnb.notebook.views import following

START = Snapshot(title="%deploy net", started=0.0, notes=("example: X_test[:64]",))


def after(*told, at=START):
    """Fold (time, step, state, message, fraction) into a snapshot."""
    return reduce(
        lambda now, t: advance(now, Event(step=t[1], state=t[2], message=t[3], fraction=t[4]), t[0]), told, at
    )


RUN = (
    (0.0, "export", "started", "torchscript", None),
    (1.0, "export", "progress", "tracing <Net>", 0.5),
    (3.2, "export", "succeeded", "1.2 MB", None),
    (3.2, "start", "started", "revision 1", None),
)


def test_events_become_steps():
    assert after(*RUN).steps == (
        StepView(step="export", state="succeeded", started=0.0, ended=3.2, message="1.2 MB"),
        StepView(step="start", state="started", started=3.2, message="revision 1"),
    )


def test_progress_keeps_what_it_does_not_say():
    now = after(
        (0, "start", "started", "revision 1", None),
        (1, "start", "progress", "", 0.5),
        (2, "start", "progress", "x", None),
    )
    assert now.steps == (StepView(step="start", state="progress", started=0, message="x", fraction=0.5),)


def test_a_step_that_starts_again_is_a_new_line():
    now = after(*RUN, (4.0, "export", "started", "", None))
    assert [s.step for s in now.steps] == ["export", "start", "export"]


def test_an_end_without_a_start_is_a_line_too():
    now = after((2.0, "route", "succeeded", "done", None))
    assert now.steps == (StepView(step="route", state="succeeded", started=2.0, ended=2.0, message="done"),)


def pods(*rows, at=START):
    replicas = tuple(Replica(name=n, phase=p, ready=p == "ready") for n, p in rows)
    ready = sum(r.ready for r in replicas)
    event = Event(
        step="start", state="progress", message=f"{ready} of {len(rows)} pods ready", replicas=replicas
    )
    return advance(at, event, 1.0)


def test_several_replicas_have_a_row_each():
    now = pods(("net-r1-<a>", "ready"), ("net-r1-b", "pulling image"))
    assert to_text(now).splitlines()[2:] == [
        "  ▸ start the server  running             …  1 of 2 pods ready",
        "      ✓ net-r1-<a>: ready",
        "      ▸ net-r1-b: pulling image",
    ]
    assert "✓ net-r1-&lt;a&gt;: ready<br>▸ net-r1-b: pulling image" in to_html(now)


def test_rows_stay_with_a_failure_and_go_with_success():
    now = pods(("a", "ready"), ("b", "OOMKilled"))
    assert after((2.0, "start", "progress", "", None), at=now).steps[0].replicas == now.steps[0].replicas
    assert "b: OOMKilled" in to_text(after((2.0, "start", "failed", "no", None), at=now))
    assert after((2.0, "start", "succeeded", "", None), at=now).steps[0].replicas == ()


def test_one_replica_is_told_by_the_message_and_many_are_cut_short():
    assert "\u25b8 a:" not in to_text(pods(("a", "starting")))
    assert to_text(pods(*((f"p{i}", "starting") for i in range(20)))).endswith("\n      and 8 more")


class Picture:
    """A record that can be shown."""

    def _repr_html_(self):
        return "<b>so far</b>"


def test_a_record_is_shown_while_its_step_runs_and_not_after():
    def folded(now, event):
        return advance(now, event, 1.0)

    begun = Event(step="watch", state="started")
    shown = Event(step="watch", state="progress", shown=Picture())
    said = Event(step="watch", state="progress", message="on it goes")
    assert "<b>so far</b>" in to_html(reduce(folded, (begun, shown, said), START))
    over = Event(step="watch", state="succeeded")
    assert "<b>so far</b>" not in to_html(reduce(folded, (begun, shown, over), START))
    assert "<b>so far</b>" not in to_html(finish(reduce(folded, (begun, shown), START), "cancelled", 9.0))


def test_finish_ends_what_still_runs():
    now = finish(after(*RUN), "cancelled", 5.0)
    assert now.outcome == "cancelled"
    assert now.ended == 5.0
    assert now.steps[1] == StepView(
        step="start", state="cancelled", started=3.2, ended=5.0, message="revision 1"
    )


@given(
    st.lists(
        st.builds(
            Event,
            step=st.sampled_from(["export", "start", "check"]),
            state=st.sampled_from(["started", "progress", "succeeded", "failed", "cancelled"]),
            message=st.text(max_size=5),
            fraction=st.none() | st.floats(0, 1),
        ),
        max_size=20,
    )
)
def test_any_events_make_a_snapshot_that_can_be_shown_and_finished(told):
    now = START
    for i, event in enumerate(told):
        now = advance(now, event, float(i))
        assert len([s for s in now.steps if not s.over]) <= 3
        to_html(now)
        to_text(now)
    assert all(s.over and s.ended >= s.started for s in finish(now, "failed", 99.0).steps)


def test_text():
    failed = after(
        *RUN,
        (4.0, "start", "progress", "loading", 0.25),
        (5.0, "start", "failed", "no port\n  hint: use 0", None),
    )
    assert to_text(after(*RUN)) == (
        "▸ %deploy net: running\n"
        "  example: X_test[:64]\n"
        "  ✓ export            done            3.2 s  1.2 MB\n"
        "  ▸ start the server  running             …  revision 1"
    )
    assert to_text(finish(failed, "failed", 5.0)) == (
        "✗ %deploy net: failed after 5.0 s\n"
        "  example: X_test[:64]\n"
        "  ✓ export            done            3.2 s  1.2 MB\n"
        "  ✗ start the server  failed          1.8 s  no port\n"
        "        hint: use 0"
    )


def test_a_failure_says_what_happened_what_to_do_and_what_was_printed_last():
    now = after(
        *RUN,
        (4.0, "start", "progress", "loading", 0.25),
        (5.0, "start", "failed", "no port\n  hint: use 0", None),
    )
    now = advance(now, line("start", "OSError: [Errno 98] Address already in use"), 5.0)
    now = finish(now, "failed", 6.0, verdict="no port", hint="use 0")
    assert to_text(now) == (
        "✗ %deploy net: failed after 6.0 s\n"
        "  example: X_test[:64]\n"
        "  ✓ export            done            3.2 s  1.2 MB\n"
        "  ✗ start the server  failed          1.8 s\n"
        "  what happened: no port\n"
        "  what to do: use 0\n"
        "  last lines:\n"
        "    OSError: [Errno 98] Address already in use"
    )


def line(step, text):
    return Event(step=step, state="progress", line=text)


def test_the_last_lines_are_kept_until_it_has_succeeded():
    now = after(*RUN)
    for i in range(20):
        now = advance(now, line("start", f"line {i}"), 4.0)
    assert now.lines == tuple(f"line {i}" for i in range(20 - LINES, 20))
    assert now.steps == after(*RUN).steps
    assert "line 19" in to_text(now)
    assert "line 19</pre>" in to_html(now)
    assert finish(now, "cancelled", 5.0).lines == now.lines
    assert finish(now, "succeeded", 5.0).lines == ()


def test_a_line_begins_no_step_and_is_shown_as_a_terminal_leaves_it():
    now = advance(START, line("install", "\x1b[31mdownloading\x1b[0m 10%\r 20%\n"), 1.0)
    assert now.steps == ()
    assert now.lines == (" 20%",)


def test_time_goes_on_while_a_step_runs():
    assert "running             …" in to_text(tick(after(*RUN), 3.9))
    assert "running           4 s" in to_text(tick(after(*RUN), 7.9))
    assert "running    1 min 05 s" in to_text(tick(after(*RUN), 68.4))
    assert "done            3.2 s" in to_text(tick(after(*RUN), 68.4))


def test_only_work_can_be_cancelled_not_the_clearing_up():
    now = after(*RUN)
    assert now.cancellable
    cancelled = advance(now, Event(step="start", state="cancelled", message="interrupted"), 4.0)
    assert cancelled.cancelling
    assert not cancelled.cancellable
    assert to_text(cancelled).startswith("⊘ %deploy net: cancelling\n")
    assert not advance(now, Event(step="restore", state="started"), 4.0).cancellable
    assert not finish(now, "succeeded", 4.0).cancellable


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Looking in indexes: https://ann:s3cret@pypi.example.com/simple",
            "Looking in indexes: https://pypi.example.com/simple",
        ),
        ("Authorization: Bearer eyJhbGciOi.x.y", "Authorization: Bearer •••"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=•••"),
        ("DB_PASSWORD=hunter2 started", "DB_PASSWORD=••• started"),
        ('{"api_key": "k-123", "port": 1}', '{"api_key": "•••", "port": 1}'),
        ("?token=abc&x=1", "?token=•••&x=1"),
        ("tokenizer=bert", "tokenizer=bert"),
        ("the token is missing", "the token is missing"),
        ("\x1b[1;31mred\x1b[0m\x07 bell", "red bell"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_secrets_and_control_characters_are_not_shown(said, shown):
    assert masked(said) == shown


TOLD = st.builds(
    Event,
    step=st.sampled_from(["export", "start"]),
    state=st.sampled_from(["started", "progress", "progress", "progress", "succeeded"]),
    message=st.sampled_from(["", "a", "b"]),
    fraction=st.none() | st.floats(0, 1),
    done=st.none() | st.integers(0, 5),
    total=st.none() | st.integers(0, 5),
    line=st.sampled_from(["", "", "one", "two"]),
    shown=st.sampled_from([None, None, "table"]),
    replicas=st.sampled_from([None, None, (), (Replica(name="a", phase="starting"),)]),
)


@given(st.lists(TOLD, max_size=40))
def test_events_that_are_overwritten_leave_no_trace(events):
    told = [(Event(step="start", state="started"), 0.0), (Event(step="export", state="started"), 0.0)]
    told += [(event, float(i)) for i, event in enumerate(events)]
    kept = without_overwritten(told)
    assert kept[-1] == told[-1]
    snapshots = [reduce(lambda now, t: advance(now, *t), some, START) for some in (told, kept)]
    assert snapshots[0] == snapshots[1]


def test_of_a_flood_little_is_kept():
    told = [(Event(step="pack", state="progress", message=str(i), fraction=0.5), 0.0) for i in range(500)]
    told += [(line("pack", str(i)), 0.0) for i in range(500)]
    assert len(without_overwritten(told)) == 2 + LINES


@given(st.text(max_size=80))
def test_masking_ends_and_leaves_no_control_characters(text):
    shown = masked(text)
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)
    assert masked(shown) == shown or "•••" in shown


def test_html_says_in_words_what_it_shows_and_escapes_everything():
    now = after(*RUN[:2], at=Snapshot(title="%deploy <b>", started=0.0, notes=("example: X['<i>']",)))
    html = to_html(now)
    assert html.startswith('<div role="status" ')
    assert "▸ %deploy &lt;b&gt;: running" in html
    assert "X[&#x27;&lt;i&gt;&#x27;]" in html
    assert "tracing &lt;Net&gt;" in html
    assert "▸ running" in html
    assert "50%" in html
    assert "<script" not in html
    assert "<style" not in html


def test_html_of_a_step(snapshot_of_html):
    now = finish(
        after((0, "check", "started", "", None), (1, "check", "succeeded", "ok", None)), "succeeded", 1.0
    )
    assert snapshot_of_html(to_html(now)) == (
        "<div><div><strong>✓ %deploy net: done in 1.0 s</strong></div>"
        "<table><tbody><tr><th>example</th><td>X_test[:64]</td></tr></tbody></table>"
        "<table><thead><tr><th>step</th><th>state</th><th>time</th><th>details</th></tr></thead>"
        "<tbody><tr><td><span>check\u00a0its\u00a0answers</span></td><td><span>✓ done</span></td>"
        "<td><span>1.0\u00a0s</span></td><td>ok</td></tr></tbody></table></div>"
    )


@pytest.fixture
def snapshot_of_html():
    import re

    return lambda html: re.sub(r"<(\w+) [^>]*>", r"<\1>", html)


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0, "0 ms"),
        (0.04, "40 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
    ],
)
def test_seconds(time, text):
    assert seconds(time) == text


def test_event_line():
    assert (
        event_line(Event(step="export", state="started", message="torchscript"), None)
        == "▸ export running: torchscript"
    )
    assert (
        event_line(Event(step="start", state="progress", fraction=0.5), None)
        == "▸ start the server running 50%"
    )
    assert event_line(Event(step="check", state="succeeded"), 0.25) == "✓ check its answers done in 250 ms"


def test_bytes_are_counted_until_the_step_is_over():
    def told(state, **more):
        return Event(step="pack", state=state, message="torch", **more)

    now = advance(START, told("started"), 0.0)
    now = advance(now, told("progress", done=312_000_000, total=640_000_000, fraction=0.4875), 1.0)
    assert to_text(now).endswith(
        "▸ pack the layers  running           1 s  49%, torch, 312\u00a0of\u00a0640\u00a0MB"
    )
    assert "torch, 312\u00a0of\u00a0640\u00a0MB" in to_html(now)
    over = advance(now, told("succeeded"), 2.0)
    assert "MB" not in to_text(over)
    assert "MB" not in to_text(finish(now, "cancelled", 2.0))
    assert event_line(told("progress", done=312_000_000, total=640_000_000, fraction=0.4875), None) == (
        "▸ pack the layers running 49%: torch, 312 of 640 MB"
    )


def test_lines_count_bytes_once_in_a_while(capsys):
    with following("%build net", mode="lines"), step("upload"):
        for sent in range(1000):
            events.report_bytes("upload", "net", sent, 1000)
    counted = [line for line in capsys.readouterr().out.splitlines() if " of " in line]
    assert counted == ["  ▸ bring them there running 0%: net, 0.0 of 1.0 kB"]
