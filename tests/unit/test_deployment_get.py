"""Finding a deployment by name, on one target or on whichever has it."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import mlopsnb
from mlopsnb import plugins
from mlopsnb.errors import DeployError, UserError
from mlopsnb.records import Release, Revision


class Shelf:
    """A target that has some names, and runs nothing."""

    has: tuple[str, ...] = ()

    def names(self):
        return self.has

    def observe(self, name):
        revisions = (Revision(id=1, source="models:/x/1", digest=""),) if name in self.has else ()
        return Release(name=name, target="shelf", revisions=revisions)


class Fraud(Shelf):
    has = ("fraud",)


class FraudAndChurn(Shelf):
    has = ("churn", "fraud")


class Away(Shelf):
    def observe(self, name):
        raise DeployError("nobody answers")


@pytest.fixture
def install(monkeypatch):
    """Have these targets installed, and no others; the settings name `process`."""

    def these(**targets):
        points = {
            name: EntryPoint(name, f"{__name__}:{target.__name__}", "mlopsnb.targets")
            for name, target in targets.items()
        }
        monkeypatch.setattr(plugins, "available", lambda kind: points)
        monkeypatch.setattr(EntryPoint, "load", lambda self: targets[self.name])

    return these


def test_the_target_of_the_settings_comes_first_and_the_others_follow(install):
    install(docker=FraudAndChurn, process=Fraud)
    assert mlopsnb.get("fraud").target == "process"
    assert mlopsnb.get("churn").target == "docker"
    assert mlopsnb.get("fraud", target="docker").target == "docker"


def test_a_name_that_is_nowhere_says_where_it_was_looked_for(install):
    install(cluster=Away, docker=FraudAndChurn, process=Shelf)
    with pytest.raises(UserError) as caught:
        mlopsnb.get("frauds")
    assert caught.value.message == (
        "no deployment named 'frauds' on target 'process'; there are: none, nor on target 'cluster', which could not be "
        "asked: nobody answers, nor on target 'docker'; there are: churn, fraud"
    )
    assert caught.value.hint == "did you mean 'fraud'?"
    with pytest.raises(
        UserError, match=r"no deployment named 'fraud' on target 'process'; there are: none\n"
    ):
        mlopsnb.get("fraud", target="process")


def test_a_name_that_two_others_have_wants_a_target(install):
    install(cluster=Fraud, docker=FraudAndChurn, process=Shelf)
    with pytest.raises(UserError, match="'fraud' is on the targets cluster, docker"):
        mlopsnb.get("fraud")


def test_a_target_that_was_meant_and_cannot_be_asked_is_an_error(install):
    install(process=Away, docker=Fraud)
    with pytest.raises(DeployError, match="nobody answers"):
        mlopsnb.get("fraud")
