from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime

from mlopsnb.serving import requestlog
from mlopsnb.serving.requestlog import RequestLog


class Counted(io.BytesIO):
    """Counts how often it is written to."""

    writes = 0

    def write(self, data):
        self.writes += 1
        return super().write(data)


def test_lines_are_written_together_and_soon():
    file = Counted()

    async def run():
        log = RequestLog(file, model="m", version="1")
        for n in range(10):
            log.write(f"id{n}", "POST", "/p" * 300, 200, 0.00123456, n)
        assert file.writes == 0
        while not file.writes:
            await asyncio.sleep(requestlog.FLUSH_SECONDS / 5)

    asyncio.run(run())
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert file.writes == 1
    assert [line["request_id"] for line in lines] == [f"id{n}" for n in range(10)]
    assert {k: v for k, v in lines[3].items() if k not in ("time", "request_id")} == {
        "method": "POST",
        "path": "/p" * 100,
        "status": 200,
        "duration_ms": 1.235,
        "rows": 3,
        "model": "m",
        "version": "1",
    }
    moment = datetime.fromisoformat(lines[0]["time"])
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 10


def test_many_lines_do_not_gather_for_long():
    file = Counted()

    async def run():
        log = RequestLog(file, model="m", version="1")
        for n in range(2500):
            log.write(f"id{n}", "GET", "/", 200, 0.0, None)
        assert file.writes == 12
        log.flush()

    asyncio.run(run())
    assert len(file.getvalue().splitlines()) == 2500


def test_a_log_that_nobody_takes_is_given_up(caplog):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError("no space left")

    async def run():
        log = RequestLog(Full(), model="m", version="1")
        for _ in range(2):
            log.write("id", "GET", "/", 200, 0.0, None)
            log.flush()

    asyncio.run(run())
    assert caplog.messages == ["the request log is closed: no space left"]
