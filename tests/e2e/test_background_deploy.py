"""Rollouts in the background: waited for, refused twice, cancelled, failed, detached, and left by a kernel that ends."""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest
from served_plans import EXAMPLE, WEIGHTS, make_model

import mlopsnb as ml
from mlopsnb.events import reporting_to
from mlopsnb.notebook.displays import Listing

SECONDS = 120


@pytest.fixture
def versions():
    """Two versions of a model, the second of which gives the double."""
    for factor in (1, 2):
        artifact = ml.export(make_model(WEIGHTS * factor), EXAMPLE)
        ml.log(artifact, name="bg")
    return "models:/bg/1", "models:/bg/2"


@pytest.fixture
def serving(versions):
    return ml.deploy(versions[0], name="bg")


@pytest.fixture
def broken(tmp_path):
    """The environment of a server that does what a line of Python says, and not what ours would."""

    def broken(line):
        (tmp_path / "sitecustomize.py").write_text(line)
        return {"PYTHONPATH": str(tmp_path)}

    return broken


def factor(dep):
    return float(dep.predict(EXAMPLE)[0, 0] / (EXAMPLE @ WEIGHTS)[0, 0])


def test_the_call_returns_and_the_rollout_goes_on(versions, serving):
    told, come, seen = threading.Event(), threading.Event(), []

    def report(event):
        seen.append((event.step, event.state, threading.current_thread() is threading.main_thread()))
        if event.step == "start":
            come.set()
            assert told.wait(SECONDS)

    with reporting_to(report):
        dep = ml.deploy(versions[1], name="bg", wait=False)
    assert come.wait(SECONDS)
    assert dep.rollout.state == "running"
    assert ml.get("bg").rollout is dep.rollout
    assert factor(dep) == 1
    [listed] = ml.deployments().rollouts
    assert "▸ running" in str(Listing(ml.deployments()))
    told.set()
    assert dep.wait(SECONDS) is dep
    assert (factor(dep), dep.revision, listed.state) == (2, 2, "succeeded")
    assert ("route", "succeeded", False) in seen

    async def again():
        return await dep

    assert asyncio.run(again()) is dep
    assert ml.deployments().rollouts == ()


def test_what_reads_the_callers_objects_is_done_when_the_call_returns():
    weights = WEIGHTS.copy()
    seen = []
    with reporting_to(lambda event: seen.append((event.step, event.state))):
        dep = ml.deploy(make_model(weights), name="bg", example=EXAMPLE, wait=False)
        assert {("verify", "succeeded"), ("log", "succeeded")} <= set(seen)
    assert dep.status in ("starting", "ready")
    asyncio.run(_waited(dep))
    assert (factor(dep), dep.status, dep.model_version) == (1, "ready", "models:/bg/1")


async def _waited(dep):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await dep
    ticking.cancel()
    assert ticks > 1


def test_only_one_at_a_time_and_cancel_restores(versions, serving, broken):
    dep = ml.deploy(versions[1], name="bg", env=broken("import signal; signal.pause()"), wait=False)
    message = "another rollout of 'bg' goes on in the background of this kernel"
    for change in (lambda: ml.deploy(versions[0], name="bg"), dep.promote, dep.delete):
        with pytest.raises(ml.DeployError, match=message) as refused:
            change()
        assert "%attach bg" in refused.value.hint
    with pytest.raises(ml.NotReady, match=r"still goes on after 0\.01 s"):
        dep.wait(0.01)
    assert dep.cancel() is dep
    assert (factor(serving), serving.revision, serving.status) == (1, 1, "ready")
    for wait in (dep.wait, lambda: asyncio.run(_waited(dep))):
        with pytest.raises(ml.DeployError, match="the rollout of 'bg' was cancelled"):
            wait()
    with pytest.raises(ml.UserError, match="no rollout of 'bg' goes on"):
        dep.cancel()
    assert [(r.name, r.state) for r in ml.deployments().rollouts] == [("bg", "cancelled")]
    serving.delete()
    assert (ml.deployments(), ml.deployments().rollouts) == ((), ())


def test_a_failure_is_told_by_wait_by_the_list_and_by_the_log(versions, broken, caplog):
    env = broken("import os; print('libfoo.so.3 <b>', flush=True); os._exit(1)")
    dep = ml.deploy(versions[0], name="bg", env=env, wait=False)
    with pytest.raises(ml.NotReady, match=r"ended while starting\n.*last lines.*\n.*libfoo"):
        dep.wait(SECONDS)
    assert (dep.status, ml.get("bg").status, ml.deployments()) == ("failed", "failed", ())
    told = Listing(ml.deployments())
    assert "✗ failed" in str(told)
    assert "revision 1 of 'bg' ended while starting" in str(told)
    assert "ended while starting" in told._repr_html_()
    assert "the rollout of 'bg' failed in the background: revision 1" in caplog.text
    assert ml.deploy(versions[0], name="bg").status == "ready"
    assert ml.deployments().rollouts == ()


ENDS = """
import sys
import mlopsnb as ml
ml.deploy("models:/bg/2", name="bg", env={"PYTHONPATH": sys.argv[1]}, wait=False)
from mlopsnb.targets.process import Process
while not any(r.state == "starting" for r in Process().observe("bg").revisions):
    pass
print("starting", flush=True)
sys.stdin.read()
"""


def test_what_served_serves_on_when_the_kernel_ends_in_the_middle(versions, serving, broken, tmp_path):
    site = broken("import signal; signal.pause()")["PYTHONPATH"]
    kernel = subprocess.Popen(
        [sys.executable, "-c", ENDS, site], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert kernel.stdout.readline() == "starting\n"
    kernel.kill()
    kernel.communicate(timeout=SECONDS)
    assert (factor(serving), serving.revision) == (1, 1)
    for number in (tmp_path / "state" / "process" / "bg" / "revisions").glob("2/pid"):
        number.write_text("")  # as if it had been killed a moment earlier
    again = ml.deploy(versions[1], name="bg")
    assert (factor(again), again.revision) == (2, 3)
    assert [r.state for r in again.history()][1:] != ["starting", "running"]


TWICE = """
import sys, threading
import mlopsnb as ml
from mlopsnb.events import reporting_to
def tell(event):
    print(event.step, event.state, flush=True)
    if (event.step, event.state) == ("restore", "started"):
        assert sys.stdin.readline() == "restore\\n"
try:
    with reporting_to(tell):
        ml.deploy("models:/bg/2", name="bg", pause="60s")
except KeyboardInterrupt as exc:
    print(type(exc).__name__, exc, flush=True)
dep = ml.get("bg")
print(dep.rollout, dep.revision, flush=True)
try:
    dep.wait(120)
except ml.DeployError as exc:
    print(exc.message)
print(dep.revision, ml.deploy("models:/bg/1", name="bg").revision)
"""


def test_a_second_interrupt_leaves_the_restoring_to_the_background(serving):
    """The new version has the traffic already, and its gate waits."""
    client = subprocess.Popen(
        [sys.executable, "-c", TWICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in client.stdout:
        if line == "gate progress\n":
            client.send_signal(signal.SIGINT)
        if line == "restore started\n":
            client.send_signal(signal.SIGINT)
            break
    assert client.stdout.readline() == "Detached what served 'bg' before is still being restored\n"
    assert client.stdout.readline() == "<Rollout of 'bg' on process: running> 2\n"
    said = client.communicate("restore\n", timeout=SECONDS)[0].splitlines()
    assert said == ["restore succeeded", "the rollout of 'bg' was cancelled", "1 1"]
    assert (factor(serving), serving.revision) == (1, 1)
