"""Ctrl-C where several threads run, and what is left to the background."""

import os
import signal
import threading
from contextlib import ExitStack, nullcontext

import pytest

from mlopsnb import background, interrupts
from mlopsnb.background import Detached, Hold, Rollout
from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import report_progress

KEY = ("process", "net", "", "", "/state")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def other_thread():
    """A thread to which the system may give a signal that the main one holds back."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


def test_an_interrupt_is_held_back_until_the_block_ends(other_thread):
    done = []

    def work():
        with interrupts.held():
            interrupt()
            done.extend(i for i in range(1000))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(done) == 1000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts.held():
        pass


@pytest.fixture
def hold(monkeypatch):
    monkeypatch.setattr(background, "_rollouts", {})
    return Hold(None, KEY, ExitStack())


def interrupted(*, twice):
    try:
        try:
            raise KeyboardInterrupt
        finally:
            if twice:
                raise KeyboardInterrupt
    except KeyboardInterrupt as exc:
        return exc


def test_what_has_to_be_done_is_done_before_it_goes_on(hold):
    done = []
    hold.finish(lambda: done.append(threading.current_thread()), interrupted(twice=False))
    assert done != [threading.main_thread()]
    assert background.find(KEY) is None


@pytest.mark.parametrize("twice", [True, False])
def test_a_second_interrupt_takes_the_hold_to_the_background(hold, twice):
    """The second one may also come while a target clears up after the first."""
    go, released = threading.Event(), threading.Event()
    hold.kept.callback(released.set)
    cause = interrupted(twice=twice)

    def restore():
        if not twice:
            interrupt()
        assert go.wait(60)

    with pytest.raises(Detached) as detached:
        hold.finish(restore, cause)
    rollout = detached.value.rollout
    assert background.find(KEY) is rollout
    hold.kept.close()
    assert (rollout.state, released.is_set()) == ("running", False)
    go.set()
    assert rollout.join(60)
    assert released.wait(60)
    assert (rollout.state, rollout.error) == ("cancelled", cause)


def rollout(work):
    return Rollout(KEY, work, held=ExitStack())


def test_it_is_cancelled_once_and_not_while_it_clears_up():
    seen, go = [], threading.Event()

    def work():
        try:
            assert go.wait(60)
            report_progress("start", "not reached by those who wait")
        except KeyboardInterrupt:
            report_progress("restore", "this is done")
            seen.append("restored")
            raise

    one = rollout(work)
    one.start()
    with pytest.raises(NotReady, match="still goes on"):
        one.wait(0)
    one.cancel()
    go.set()
    with pytest.raises(DeployError, match="the rollout of 'net' was cancelled"):
        one.wait(60)
    assert seen == ["restored"]
    assert (one.state, one.reason) == ("cancelled", "cancelled")
    assert repr(one) == "<Rollout of 'net' on process: cancelled>"


def test_who_comes_late_hears_what_was_reported_and_the_end():
    def work():
        for i in range(3):
            report_progress("start", f"{i}")
        raise ValueError("<broken>")

    one, told, ended = rollout(work), [], []
    one.start()
    assert one.join(60)
    one.follow(lambda event, at: told.append(event.message), ended.append)
    assert (told, ended, one.state, one.reason) == (["2"], [one], "failed", "ValueError: <broken>")
    with pytest.raises(ValueError, match="broken"):
        one.wait()


def test_two_changes_of_a_name_and_the_hold(monkeypatch):
    monkeypatch.setattr(background, "_rollouts", {})

    class Free:
        def claim(self, name):
            return nullcontext()

    go = threading.Event()
    with background.hold(Free(), KEY) as hold:
        hold.go_on(lambda: go.wait(60))
    with pytest.raises(DeployError, match="goes on in the background"), background.hold(Free(), KEY):
        pass
    go.set()
    background.find(KEY).wait(60)
    with background.hold(Free(), KEY):
        assert background.find(KEY) is None
