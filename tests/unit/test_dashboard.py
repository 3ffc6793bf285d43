"""What a dashboard knows, how it reads, and what its buttons may do.

Each file under `data/dashboard` holds one board; they are written anew by
`PYTHONPATH=tests/support python tests/unit/test_dashboard.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path

import pytest
from boards import CANARY, EVIL, Pretend, look, release, revision, sample
from traffic_pages import Counters

from mlopsnb import plugins
from mlopsnb.errors import UserError
from mlopsnb.monitoring.pictures import REFERENCE
from mlopsnb.monitoring.report import DriftReport, FeatureDrift
from mlopsnb.notebook.dashboard import model, render
from mlopsnb.notebook.dashboard.actions import carry_out, question
from mlopsnb.notebook.dashboard.model import GONE, POINTS, Board, Drift, after, failed, recent, without
from mlopsnb.rollout import Forget, Scale, Shift, Stop

DATA = Path(__file__).parent / "data" / "dashboard"
START = 1_700_000_000.0
ONE = release(revision(1, "stopped"), revision(2))


def watched(of, looks=3, **more):
    """A row after so many looks, two seconds apart."""
    found = (look(of, START + 2 * i, rate=20 + 10 * i, **more) for i in range(looks))
    return reduce(after, found, None)


def report(*states, rows=100):
    found = tuple(
        FeatureDrift(feature=f"f{i}", kind="numeric", threshold=0.1, state=state, effect=0.05 * (i + 1))
        for i, state in enumerate(states)
    )
    return DriftReport(rows=found, reference_rows=1000, current_rows=rows, threshold=0.1, q=0.05)


# ---- model


def test_lines_go_on_as_long_as_a_revision_runs_and_end_somewhere():
    row = watched(ONE, POINTS + 5)
    [only] = row.traffic.revisions
    assert (only.revision, len(only.points)) == (2, POINTS)
    assert only.points[-1].at == row.at
    after_rollback = after(row, look(release(revision(2, "stopped"), revision(3)), row.at + 2))
    assert [(r.revision, len(r.points)) for r in after_rollback.traffic.revisions] == [(3, 1)]


def test_numbers_are_of_the_last_seconds():
    [only] = watched(ONE, 20).traffic.revisions
    assert recent(only).seconds == model.RECENT
    assert recent(only).counts.requests == sum(20 + 10 * i for i in range(15, 20))
    assert recent(watched(ONE, 1, windows={}).traffic.revisions[0]) is None


@pytest.mark.parametrize(
    ("of", "ready", "state"),
    [
        (ONE, True, "ready"),
        (ONE, False, "not ready"),
        (release(revision(1, "starting"), weights={}), False, "starting"),
        (release(revision(1, "stopped")), False, "stopped"),
        (release(), False, "deleted"),
    ],
)
def test_states_are_those_of_a_deployment(of, ready, state):
    assert after(None, look(of, START, ready=ready)).state == state


def test_who_keeps_lines_elsewhere_has_them_whole():
    past = watched(ONE, 4).traffic.revisions[0].points
    row = after(watched(ONE), look(ONE, START + 9, past={2: past}))
    assert row.traffic.revisions[0].points == past


def test_what_is_deleted_is_named_for_a_while_and_comes_back_new():
    row = watched(ONE)
    [gone] = without([row], "process", [], START + 10)
    assert (gone.state, gone.gone) == ("deleted", START + 10)
    assert without([gone], "process", [], START + 10 + GONE - 1) == [gone]
    assert without([gone], "process", [], START + 10 + GONE) == []
    assert without([row], "docker", [], START + 10) == [row]
    assert len(after(gone, look(ONE, START + 20)).traffic.revisions[0].points) == 1


def test_what_could_not_be_asked_keeps_what_was_known():
    row = watched(ONE)
    assert failed(row, row.key, "no answer", START + 9) == replace(row, trouble="no answer")
    assert after(failed(row, row.key, "no answer", START + 9), look(ONE, START + 11)).trouble == ""
    unknown = failed(None, ("docker", "x"), "no answer", START)
    assert (unknown.state, unknown.key) == ("unknown", ("docker", "x"))


def test_drift_over_time_is_the_worst_features():
    drift = reduce(lambda d, i: d.after(report("ok", "drift"), START + i), range(3), Drift())
    assert drift.points == tuple((START + i, pytest.approx(1.0)) for i in range(3))
    nothing = FeatureDrift(feature="a", kind="numeric", threshold=0.1, state="no-data")
    empty = replace(report("ok"), rows=(nothing,))
    assert math.isnan(Drift().after(empty, START).points[0][1])


# ---- renderers


def boards():
    """The boards whose text and HTML are kept."""
    counters = Counters()
    counters.count(120, errors=6)
    drift = Drift().after(report("ok", "ok"), START).after(report("drift", "ok"), START + 10)
    canary = replace(watched(CANARY, errors=1), drift={1: drift, 2: Drift(why="'fraud' has no reference")})
    quiet = watched(release(revision(1), name="quiet", target="docker"), 1, windows={})
    evil = release(revision(1, source=EVIL), name=EVIL, target=EVIL)
    row = replace(watched(evil), trouble=EVIL, replicas={1: {EVIL: sample(counters, START)}})
    [gone] = without([watched(release(revision(1), name="gone"))], "process", [], START)
    return {
        "several": Board(
            at=START + 4,
            rows=(canary, gone, quiet, failed(None, ("kubernetes", "lost"), "403: not allowed", START)),
            away={"kubernetes": "there is no kubeconfig"},
        ),
        "hostile": Board(at=START, rows=(row,), away={EVIL: EVIL}),
        "nothing": Board(at=0.0, away={"docker": "no engine"}),
        "asking": Board(at=0.0, waiting=("docker", "process")),
    }


def written():
    return {
        f"{name}.{kind}": make(board) + "\n"
        for name, board in boards().items()
        for kind, make in (("txt", render.to_text), ("html", render.to_html))
    }


@pytest.mark.parametrize("name", written())
def test_boards_read_as_they_are_kept(name):
    assert written()[name] == (DATA / name).read_text(encoding="utf-8")


class Seen(HTMLParser):
    """The tags and the text of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data.replace("\u00a0", " "))


def test_what_others_named_is_text_everywhere():
    [row] = boards()["hostile"].rows
    counts = question("delete", row.release, scales=False)
    parts = [
        render.to_html(boards()["hostile"]),
        render.facts_html(row),
        render.replicas_html(row),
        render.drift_html(replace(row, drift={1: Drift(why=EVIL)})),
        render.question_html(counts.words),
        render.impossible_html([EVIL]),
    ]
    for html in parts:
        seen = Seen(html)
        assert EVIL in "".join(seen.words)
        assert {tag for tag, _ in seen.tags} & {"img", "script", "iframe", "a"} == set()
        assert not [name for _, attrs in seen.tags for name in attrs if name.startswith("on")]


def test_html_says_in_words_what_text_says_and_pictures_have_names():
    html, text = render.to_html(boards()["several"]), render.to_text(boards()["several"])
    seen = Seen(html)
    for word in (
        "fraud",
        "✓ ready",
        "○ deleted",
        "revision 2, canary",
        "10%",
        "▲ 1 of 2",
        "- not known",
        "403",
    ):
        assert word in text
        assert word in " ".join(seen.words)
    pictures = [attrs for tag, attrs in seen.tags if tag == "svg"]
    assert pictures
    assert all(p["role"] == "img" and p["aria-label"] for p in pictures)
    assert [attrs.get("aria-label") for tag, attrs in seen.tags if tag == "table"] == ["deployments"]


def test_colours_are_the_themes_and_one_of_the_palette_for_the_colour_blind():
    html = render.to_html(boards()["several"])
    assert set(re.findall(r"var\((--\w+)", html)) == {"--jp"}
    assert set(re.findall(r"#[0-9A-Fa-f]{6}", html)) == {
        REFERENCE,
        "#bdbdbd",
    }  # the second where there is no theme


def test_servers_that_do_not_answer_are_missed():
    counters = Counters()
    counters.count(5)
    of = release(replace(revision(1), workload=replace(revision(1).workload, replicas=3)))
    row = after(None, look(of, START, replicas={1: {"pod-a": sample(counters, START)}}))
    assert "revision 1: 1 of 3 answered" in render.replicas_html(row)
    assert "no replica answers" in render.replicas_html(after(None, look(of, START)))


# ---- what buttons may do


def asked(act, of, **more):
    return question(act, of, **{"scales": True, **more})


@pytest.mark.parametrize(
    ("act", "of", "words", "revisions"),
    [
        ("rollback", ONE, "Serve revision 1 (models:/fraud/1) again in place of revision 2?", (2, 1)),
        ("rollback", CANARY, "End the canary, revision 2, and give revision 1 all traffic?", (2, 1)),
        (
            "promote",
            CANARY,
            "Give revision 2, the canary, all traffic (now 10 %) and stop revision 1?",
            (1, 2),
        ),
        (
            "promote",
            replace(CANARY, weights={1: 100}, routes={2: "header:X-Group=b"}),
            "Give revision 2, the canary, all traffic (now header:X-Group=b) and stop revision 1?",
            (1, 2),
        ),
        ("scale", ONE, "Run revision 2 in 3 replicas (now 1)?", (2,)),
        ("delete", ONE, "Delete it, with its history and its logs? Revision 2 stops serving.", (1, 2)),
    ],
)
def test_a_question_says_all_that_will_be_done(act, of, words, revisions):
    found = asked(act, of, replicas=3)
    assert found.words == f"{words} This is 'fraud' on target 'process'."
    assert (found.act, found.key, found.revisions) == (act, ("process", "fraud"), revisions)
    assert found.yes.startswith("Yes, ")


@pytest.mark.parametrize(
    ("act", "of", "why"),
    [
        ("rollback", release(revision(1)), "there is no earlier revision"),
        ("rollback", release(revision(1, "failed"), revision(2)), "there is no earlier revision"),
        ("promote", ONE, "no canary is under way"),
        ("scale", CANARY, "a canary is under way"),
        ("scale", release(revision(1, "stopped")), "nothing serves"),
        ("delete", release(), "it is deleted"),
    ],
)
def test_what_is_not_possible_says_why(act, of, why):
    assert asked(act, of, replicas=2) == why


def test_where_there_is_one_replica_there_is_nothing_to_scale():
    assert asked("scale", ONE, scales=False, replicas=2) == "the target 'process' runs one replica"


@pytest.fixture
def pretend(monkeypatch):
    target = Pretend(replace(CANARY, target="pretend"))
    monkeypatch.setattr(plugins, "create", lambda kind, name: target)
    return target


@pytest.mark.parametrize(
    ("act", "actions"),
    [
        ("rollback", [Shift({1: 100}), Stop(2, failed=True)]),
        ("promote", [Shift({2: 100}), Stop(1)]),
        ("delete", [Forget()]),
    ],
)
def test_what_was_confirmed_is_done(pretend, act, actions):
    carry_out(asked(act, pretend.observe("fraud")))
    assert pretend.actions == actions


def test_scale(pretend):
    carry_out(asked("promote", pretend.observe("fraud")))
    carry_out(asked("scale", pretend.observe("fraud"), replicas=4))
    assert pretend.actions[-1] == Scale(2, 4)


@pytest.mark.parametrize("act", ["rollback", "promote", "delete"])
def test_nothing_is_done_where_things_have_changed_since_the_question(pretend, act):
    before = asked(act, pretend.observe("fraud"))
    stable, canary = pretend.releases["fraud"].revisions
    pretend.releases["fraud"] = replace(
        pretend.releases["fraud"],
        revisions=(stable, replace(canary, state="stopped"), revision(3)),
        weights={1: 90, 3: 10},
    )
    with pytest.raises(UserError, match="has changed since it was asked; nothing was done"):
        carry_out(before)
    pretend.releases.clear()
    with pytest.raises(UserError, match="nothing was done"):
        carry_out(before)
    assert pretend.actions == []


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for file, content in written().items():
        (DATA / file).write_text(content, encoding="utf-8")
