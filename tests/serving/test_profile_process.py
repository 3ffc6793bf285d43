"""Live rows counted for the process target: asked through it, and carried from one revision to the next."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest

from mlopsnb import manifest, profiles
from mlopsnb.profiles import DriftProfile, Feature
from mlopsnb.records import Revision
from mlopsnb.rollout import Forget, Shift, Start, Stop
from mlopsnb.targets.process import Process

PROFILE = DriftProfile(
    rows=3, features=(Feature(name="x0", tensor="x", column=0, edges=(0.0, 10.0), counts=(1, 1, 1)),)
)


@pytest.fixture
def target(tmp_path):
    made = Process(state_dir=tmp_path / "state")
    yield made
    with made.claim("affine"):
        made.apply("affine", Forget(), timeout=30)


def counted(target, revision):
    [body] = target.ask("affine", revision, "/profile").values()
    document = json.loads(body)
    snapshots = [profiles.read_snapshot(one, PROFILE) for one in document["windows"]]
    return sum(s.rows for s in snapshots), document["saved"]


def test_a_redeploy_of_the_same_package_keeps_what_was_counted(
    target, make_package, environment, body, add_reference
):
    same, other = (add_reference(make_package(name), PROFILE) for name in ("same", "other"))
    env = {"PYTHONPATH": environment["PYTHONPATH"]}

    def serve(number, package):
        digest = manifest.read(package).digest if package is same else "sha256:other"
        revision = Revision(id=number, source="affine", digest=digest, package=package, env=env)
        with target.claim("affine"):
            target.apply("affine", Start(revision), timeout=60)
            target.apply("affine", Shift({number: 100}), timeout=60)
            if number > 1:
                target.apply("affine", Stop(number - 1), timeout=60)

    def ask(times):
        port = int(target.observe("affine").url.rpartition(":")[2])
        for _ in range(times):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("POST", "/v2/models/affine/infer", json.dumps(body()))
                assert connection.getresponse().status == 200

    serve(1, same)
    ask(3)
    assert counted(target, 1) == (3, True)
    serve(2, same)
    ask(2)
    assert counted(target, 2) == (5, True)
    serve(3, other)
    ask(1)
    assert counted(target, 3) == (1, True)
