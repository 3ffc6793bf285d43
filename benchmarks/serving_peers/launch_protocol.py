"""The ceiling: an asyncio protocol that speaks just enough HTTP, on uvloop and httptools. `python launch_protocol.py PORT`.

It answers whatever comes, in the order of completion, and checks nothing: no server can do less.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop

from serving_peers.launch_bare import decode, encode, engine

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_engine = engine()


class Connection(asyncio.Protocol):
    """One client."""

    def connection_made(self, transport):
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._parts = []

    def data_received(self, data):
        self._parser.feed_data(data)

    def on_body(self, part):
        self._parts.append(part)

    def on_message_complete(self):
        parts, self._parts = self._parts, []
        future = _engine.submit(decode(parts[0] if len(parts) == 1 else b"".join(parts)))
        if future.done():
            self._answer(future)
        else:
            future.add_done_callback(self._answer)

    def _answer(self, future):
        body = encode(future.result())
        if not self._transport.is_closing():
            self._transport.write(_HEAD % len(body) + body)


async def main():
    """Serve until ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
