from __future__ import annotations

import asyncio
import threading

import pytest

from mlopsnb.errors import DeployError
from mlopsnb.notebook import server


@pytest.fixture
def asking():
    return server.Asking()


def raising():
    raise DeployError("no answer from https://ann:s3cret@host")


def test_calls_run_beside_the_loop_and_errors_come_back(asking):
    found = asyncio.run(asking.ask({"a": list, "b": raising}))
    assert found["a"] == []
    assert server.said(found["b"]) == "no answer from https://host"
    assert server.said(KeyError("inner words")) == "KeyError"
    assert asyncio.run(asking.ask({})) == {}


def test_a_call_that_takes_too_long_is_told_of_and_made_once(asking, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 0.05)
    calls, answer = [], threading.Event()

    def slow():
        calls.append(1)
        answer.wait(60)
        return "late"

    async def ask_twice():
        first, second = await asyncio.gather(asking.ask({"k": slow}), asking.ask({"k": slow, "l": lambda: 1}))
        assert second["l"] == 1
        answer.set()
        monkeypatch.setattr(server, "PATIENCE", 60)
        return [first["k"], second["k"], (await asking.ask({"k": slow}))["k"]]

    first, second, third = asyncio.run(ask_twice())
    assert "has not answered" in server.said(first)
    assert isinstance(second, TimeoutError)
    assert third == "late"
    assert calls in ([1], [1, 1])  # it may have ended just before it was asked again
