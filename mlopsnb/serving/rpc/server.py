"""The gRPC server: a port of its own, on the event loop that serves HTTP too. Calls come by one of two lanes.

Source of the options: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.rpc import closing, direct, security
from mlopsnb.serving.rpc.aio import AioLane
from mlopsnb.serving.rpc.direct import DirectLane
from mlopsnb.serving.rpc.service import Service

if TYPE_CHECKING:
    from mlopsnb.serving.app import App
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Tls

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1000),
    # Whoever pings more often than this, twice, is sent away. gRPC's own five minutes are longer than many a proxy
    # keeps a silent connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),  # so that a client whose machine has gone is noticed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_SETTLE_SECONDS = 1.0
"""How long connections are left alone after the port was closed, see `closing`."""

_QUIET_SECONDS = 0.25
"""How long there must be none before nobody is waited for: one that is just being accepted is not seen at once."""

_TICK = 0.05
_log = logging.getLogger("mlopsnb.serving")


class GrpcServer:
    """Serves *app*'s model on a port of its own; 0 takes any that is free. *shared*: other workers have it too."""

    def __init__(
        self,
        app: App,
        *,
        host: str,
        port: int,
        limits: ConnectionLimits,
        tls: Tls | None = None,
        shared: bool = False,
    ) -> None:
        self._app = app
        self._limits = limits
        self._tls = tls
        self._shared = shared
        self._address = f"[{host}]" if ":" in host else host
        self._port = port
        self._lane: DirectLane | AioLane | None = None

    @property
    def address(self) -> str:
        """Where it listens, as gRPC's clients take it."""
        return f"{self._address}:{self._port}"

    async def start(self) -> None:
        """Listen and serve. Raises `CannotListen` if the port is taken."""
        options = [
            *_OPTIONS,
            *security.options(self._limits),
            ("grpc.max_receive_message_length", self._app.max_body_bytes),
            ("grpc.so_reuseport", int(self._shared)),  # else a port that is taken is an error
        ]
        unknown = direct.surprises()
        if unknown:
            _log.warning("gRPC is slower; not known of this grpcio: %s", ", ".join(unknown))
        lane = (AioLane if unknown else DirectLane)(Service(self._app), options, self._app.tokens)
        port = lane.listen(self.address, security.credentials(self._tls) if self._tls else None)
        if not port:
            await lane.stop(0)
            raise CannotListen(
                f"cannot listen on {self.address} for gRPC",
                hint="choose another port with --grpc-port, or 0 for any that is free",
            )
        self._port = port
        await lane.start()
        self._lane = lane

    def stop(self) -> Coroutine[None, None, None]:
        """Close the port, now. What is returned answers the calls in work; it ends when the longest has had its time.

        Those who are connected are sent away a little later, as `closing` says.
        """
        closing.close_port(self._port)
        lane, self._lane = self._lane, None
        return self._end(lane)

    async def _end(self, lane: DirectLane | AioLane | None) -> None:
        loop = asyncio.get_running_loop()
        quiet = loop.time()
        end = quiet + _SETTLE_SECONDS
        while (now := loop.time()) < min(end, quiet + _QUIET_SECONDS):
            if closing.has_clients(self._port):
                quiet = now
            await asyncio.sleep(_TICK)
        if lane is not None:
            await lane.stop(self._app.request_timeout)
