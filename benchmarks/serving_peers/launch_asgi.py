"""The bare loop: an ASGI application of one route on uvicorn, uvloop and httptools. `python launch_asgi.py PORT`."""

from __future__ import annotations

import sys

import uvicorn

from serving_peers.launch_bare import decode, encode, engine

_engine = engine()
_JSON = (b"content-type", b"application/json")


async def app(scope, receive, send):
    """Answer one request, whatever its path."""
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            break
    body = encode(await _engine.submit(decode(parts[0] if len(parts) == 1 else b"".join(parts))))
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
