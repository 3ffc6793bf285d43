"""Which deployments are past their time, whose they are, and what is done with them."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import EntryPoint

import pytest

import mlopsnb
from mlopsnb import plugins
from mlopsnb.cleaning import Cleanup, over
from mlopsnb.errors import DeployError, UserError
from mlopsnb.notebook.image_displays import cleanup_text
from mlopsnb.records import Origin, Release, Revision, Workload
from mlopsnb.rollout import Forget

NOW = datetime(2026, 3, 10, tzinfo=UTC)
DAY = 86400.0


def release(name="m", user="ada", created="2026-03-01T00:00:00+00:00", ttl=None):
    one = Revision(
        id=1,
        source="s",
        digest="d",
        state="running",
        created=created,
        origin=Origin(user=user),
        workload=Workload(ttl=ttl),
    )
    return Release(name=name, target="shelf", revisions=(one,), weights={1: 100})


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({}, {"age": 8 * DAY}, "deployed 9.0 d ago"),
        ({}, {"age": 10 * DAY}, ""),
        ({}, {"age": None}, ""),
        ({"ttl": 8 * 86400}, {"age": None}, "its TTL passed 1.0 d ago"),
        ({"ttl": 30 * 86400}, {"age": None}, ""),
        ({}, {"age": DAY, "owner": "bob"}, ""),
        ({}, {"age": DAY, "owner": "*"}, "deployed 9.0 d ago"),
        ({"user": ""}, {"age": DAY}, ""),
        ({"user": ""}, {"age": DAY, "owner": "*"}, "deployed 9.0 d ago"),
        ({"created": ""}, {"age": DAY, "owner": "*"}, ""),
        ({"created": "2026-03-09T23:30:00+00:00", "ttl": 60}, {"age": None}, "its TTL passed 29.0 min ago"),
    ],
)
def test_what_is_past_its_time(changes, options, why):
    assert over(release(**changes), NOW, **{"owner": "ada", **options}) == why


def test_the_age_is_that_of_the_last_deploy_and_the_ttl_that_of_what_serves():
    old = release(ttl=60)
    new = replace(
        old.revisions[0], id=2, state="failed", created="2026-03-09T00:00:00+00:00", workload=Workload()
    )
    both = replace(old, revisions=(*old.revisions, new))
    assert over(both, NOW, age=2 * DAY, owner="ada") == "its TTL passed 24.0 h ago"
    assert over(replace(both, revisions=(new,)), NOW, age=2 * DAY, owner="ada") == ""
    assert over(Release(name="m", target="shelf"), NOW, age=0, owner="*") == ""


class Shelf:
    """A target that has some releases, and forgets them when told."""

    has: dict

    def names(self):
        return sorted(self.has)

    def observe(self, name):
        return self.has.get(name, Release(name=name, target="shelf"))

    def claim(self, name):
        if name == "busy":
            raise DeployError("another deploy of 'busy' is under way")
        return nullcontext()

    def apply(self, name, action, *, timeout):
        assert action == Forget()
        del self.has[name]


class Away(Shelf):
    def names(self):
        raise DeployError("nobody answers")


@pytest.fixture
def shelf(monkeypatch):
    """Two targets are installed: one with four deployments, and one that does not answer."""
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    names = {
        "mine": {},
        "busy": {},
        "theirs": {"user": "bob"},
        "fresh": {"created": "2999-01-01T00:00:00+00:00"},
    }
    Shelf.has = {name: release(name, **how) for name, how in names.items()}
    targets = {"away": Away, "shelf": Shelf}
    points = {name: EntryPoint(name, f"x:{name}", "mlopsnb.targets") for name in targets}
    monkeypatch.setattr(plugins, "available", lambda kind: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: targets[self.name])
    return Shelf.has


def test_mine_are_removed_on_all_targets_and_what_cannot_be_is_said(shelf):
    planned = mlopsnb.cleanup(older_than="7d", dry_run=True)
    assert [what for what, _ in planned.deployments] == ["busy on shelf", "mine on shelf"]
    assert planned.skipped == (("target away", "nobody answers"),)
    assert len(shelf) == 4
    done = mlopsnb.cleanup(older_than="7d")
    assert [what for what, _ in done.deployments] == ["mine on shelf"]
    assert done.skipped == (
        ("target away", "nobody answers"),
        ("busy on shelf", "another deploy of 'busy' is under way"),
    )
    assert set(shelf) == {"busy", "theirs", "fresh"}


def test_those_of_others_go_when_they_are_meant(shelf):
    done = mlopsnb.cleanup(older_than="7d", owner="*", target="shelf")
    assert set(shelf) == {"busy", "fresh"}
    assert len(done.deployments) == 2
    with pytest.raises(DeployError, match="nobody answers"):
        mlopsnb.cleanup(deployments=True, target="away")
    with pytest.raises(UserError, match="nothing was chosen"):
        mlopsnb.cleanup(target="shelf")


def test_it_is_shown():
    done = Cleanup(
        deployments=(("fraud on docker", "deployed 9.0 d ago"),), skipped=(("target away", "no answer"),)
    )
    assert cleanup_text(done) == (
        "1 deployment removed\n  fraud on docker  deployed 9.0 d ago\n  target away      skipped: no answer"
    )
    planned = replace(done, removed=(("packed layers", 3_400_000),), dry_run=True)
    assert cleanup_text(planned).splitlines()[0] == (
        "3.4 MB would be freed, 1 deployment would be removed (nothing was done)"
    )
