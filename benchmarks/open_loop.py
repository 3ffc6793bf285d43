"""Steady open-loop load from a process of its own: what fails, and how late answers come, while something is changed.

    python benchmarks/open_loop.py http://127.0.0.1:8080/v2/models/fraud/infer --body request.json --rate 200 --seconds 30

    with Load(url, body, rate=200) as load:
        with load.phase("rollback"):
            deployment.rollback()
    print(load.report())

Requests are sent when they are due, whether or not earlier ones are answered, and latency counts from the moment when
a request was due: a server that stands still for a second delays all that were due in it. A share of them goes over
connections that are kept, as HTTP/1.1 has it (RFC 9112, section 9.3); the others open one each. Nothing is retried:
a request that gets no answer with status 200 has failed. Before a kept connection is used, it is looked at whether the
server has closed it, and after an answer with `connection: close` it is not used again, as HTTP clients do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

TIMEOUT = 20.0
"""Seconds after which a request has failed."""

MOST_IN_FLIGHT = 2000
_END_SECONDS = TIMEOUT + 20


class Outcome(NamedTuple):
    """One request: when it was due (CLOCK_MONOTONIC), after how many milliseconds it was answered, and what went wrong.

    `found` is empty for a good answer; `version` is the answer's `x-model-version`.
    """

    due: float
    ms: float
    kept: bool
    found: str
    version: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the requests, in the order in which they were due."""

    outcomes: Sequence[Outcome]
    phases: Sequence[tuple[str, float, float]] = ()

    @property
    def failures(self) -> Counter[str]:
        """How many requests failed, by what was found."""
        return Counter(f"{'kept' if o.kept else 'new'}: {o.found}" for o in self.outcomes if o.found)

    @property
    def versions(self) -> Counter[str]:
        """How many good answers came from each version."""
        return Counter(o.version for o in self.outcomes if not o.found)

    def percentile(self, share: float) -> float:
        """Return the latency in milliseconds that *share* (0 to 1) of the answered requests kept."""
        times = sorted(o.ms for o in self.outcomes if not o.found)
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")

    def during(self, phase: str) -> Report:
        """Return what became of the requests that were due in the phases of that name."""
        spans = [(start, end) for name, start, end in self.phases if name == phase]
        return Report([o for o in self.outcomes if any(start <= o.due <= end for start, end in spans)])

    def __str__(self) -> str:
        rows = [("all", self)] + [
            (name, self.during(name)) for name in dict.fromkeys(p[0] for p in self.phases)
        ]
        lines = [f"{'':24}{'requests':>9}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}"]
        for name, part in rows:
            times = "".join(f"{part.percentile(share):9.1f}" for share in (0.5, 0.99, 1.0))
            lines.append(f"{name:24}{len(part.outcomes):9}{part.failures.total():8}{times}")
        lines += [f"  failed {count} times, {what}" for what, count in self.failures.most_common()]
        lines.append(
            "answers by version: " + ", ".join(f"{k or '?'}: {n}" for k, n in sorted(self.versions.items()))
        )
        return "\n".join(lines)


@dataclass(slots=True)
class Load:
    """Sends *body* to *url* from another process, *rate* times a second, for as long as the block lasts."""

    url: str
    body: bytes
    rate: float = 200.0
    kept: float = 0.5
    _process: subprocess.Popen[bytes] | None = None
    _records: Path = Path()
    _phases: list[tuple[str, float, float]] = field(default_factory=list)
    _report: Report | None = None

    def __enter__(self) -> Self:
        self._records = Path(tempfile.mkdtemp(prefix="open-loop-")) / "records.json"
        command = [sys.executable, __file__, self.url, "--rate", str(self.rate), "--kept", str(self.kept)]
        self._process = subprocess.Popen(
            [*command, "--records", str(self._records)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self.body)
        self._process.stdin.close()
        if self._process.stdout.readline() != b"sending\n":
            raise RuntimeError("the load's process ended before it sent anything")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS)
            outcomes = json.loads(self._records.read_bytes())
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            shutil.rmtree(self._records.parent)
        self._report = Report([Outcome(*outcome) for outcome in outcomes], tuple(self._phases))

    @contextlib.contextmanager
    def phase(self, name: str, *, after: float = 1.0) -> Iterator[None]:
        """Note what happens meanwhile; *after* are the seconds that it may have consequences, which are waited for."""
        start = time.monotonic()
        try:
            yield
        finally:
            time.sleep(after)
            self._phases.append((name, start, time.monotonic()))

    def report(self) -> Report:
        """Return what became of all requests, when the block is over."""
        assert self._report is not None
        return self._report


class _Sender:
    """Sends requests when they are due, and notes what becomes of them."""

    def __init__(self, url: str, body: bytes, *, rate: float, kept: float) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 80
        head = (
            f"POST {place.path or '/'} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        )
        self._request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._request_once = self._request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        self._interval, self._kept = 1 / rate, kept
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self.outcomes: list[Outcome] = []

    async def run(self, end: asyncio.Event, *, seconds: float) -> None:
        """Send until *end*, or for so many *seconds*; then wait for the answers that are due."""
        start, number, over = time.monotonic(), 0, 0.0
        while not end.is_set() and (due := start + number * self._interval) - start < seconds:
            with contextlib.suppress(TimeoutError):
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.wait_for(end.wait(), wait)
                    break
            over += self._kept
            kept, over = over >= 1, over % 1
            if len(self._under_way) < MOST_IN_FLIGHT:
                task = asyncio.create_task(self._one(due, kept=kept))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            else:
                self.outcomes.append(
                    Outcome(due, 0.0, kept, f"{MOST_IN_FLIGHT} others wait for their answers", "")
                )
            number += 1
            if not number % 32:
                await asyncio.sleep(0)  # if all are late, answers have their turn too
        if self._under_way:
            await asyncio.wait(self._under_way)
        for _, writer in self._idle:
            writer.close()

    async def _one(self, due: float, *, kept: bool) -> None:
        found = version = ""
        try:
            async with asyncio.timeout(TIMEOUT):
                found, version = await self._asked(kept=kept)
        except TimeoutError:
            found = f"no answer in {TIMEOUT:g} s"
        except asyncio.IncompleteReadError as exc:
            found = "closed within the answer" if exc.partial else "closed before an answer"
        except OSError as exc:
            found = exc.strerror or type(exc).__name__
        self.outcomes.append(Outcome(due, (time.monotonic() - due) * 1000, kept, found, version))

    async def _asked(self, *, kept: bool) -> tuple[str, str]:
        """Send the request, and return what was wrong with the answer, and the version that gave it."""
        reader, writer = await self._connection(kept=kept)
        again = False
        try:
            writer.write(self._request if kept else self._request_once)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            lines = head.split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(fields["content-length"]))
            again = kept and fields.get("connection") != "close"
        finally:
            if again:
                self._idle.append((reader, writer))
            else:
                writer.close()
        status = lines[0].split(" ")[1]
        return "" if status == "200" else f"status {status}: {body[:120]!r}", fields.get(
            "x-model-version", ""
        )

    async def _connection(self, *, kept: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while kept and self._idle:
            reader, writer = self._idle.pop(0)
            if not (reader.at_eof() or reader.exception() or writer.is_closing()):
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


async def _main(asked: argparse.Namespace, body: bytes) -> list[Outcome]:
    sender = _Sender(asked.url, body, rate=asked.rate, kept=asked.kept)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    if asked.records:
        print("sending", flush=True)
    await sender.run(end, seconds=asked.seconds)
    return sorted(sender.outcomes)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # slower, that is all
        return None
    return uvloop.new_event_loop


def main() -> None:
    """Send, and print what became of it; or, with --records, each request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, help="file with the request's JSON (default: standard input)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--kept", type=float, default=0.5, help="share over kept connections (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="how long (default: until SIGTERM)"
    )
    parser.add_argument("--records", type=Path, help="write each request into this file, as JSON")
    asked = parser.parse_args()
    body = asked.body.read_bytes() if asked.body else sys.stdin.buffer.read()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        outcomes = runner.run(_main(asked, body))
    if asked.records:
        asked.records.write_text(json.dumps(outcomes))
    else:
        print(Report(outcomes))


if __name__ == "__main__":
    main()
