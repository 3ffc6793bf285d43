"""The direct lane: calls taken straight from gRPC's completion queue. gRPC keeps connections and speaks HTTP/2.

All is done on the event loop, which looks into the queue again and again while there is something in it, so that calls
that come together share a call of the model. When the queue is empty a thread waits there, and wakes the loop. It is
one for all calls: a client that says nothing costs none. This is what `grpc.server` is made of, without its threads, and
takes a third of the time of `grpc.aio` a call. It is not public: where grpcio is not built as we know it, calls come by
`grpc.aio`.
Source: `grpc/_server.py` of grpcio, which uses the same; https://grpc.github.io/grpc/core/grpc_8h.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from mlopsnb.serving.errors import stack
from mlopsnb.serving.rpc import security

try:
    from grpc._cython import cygrpc
except ImportError:  # a grpcio that is built otherwise: `surprises` says so
    cygrpc = None

if TYPE_CHECKING:
    from mlopsnb.serving.calls import Call
    from mlopsnb.serving.rpc.service import Service, Trailing
    from mlopsnb.serving.tokens import Tokens

_AHEAD = 128
"""How many calls gRPC may hand over before it is asked for more."""

_AT_ONCE = 256
_REHEARSAL_SECONDS = 5.0
_PARTS = {
    "BatchOperationEvent": ("batch_operations", "completion_type", "tag"),
    "Call": ("cancel", "start_server_batch"),
    "CallDetails": ("deadline", "method"),
    "CompletionQueue": ("poll", "shutdown"),
    "CompletionType": ("operation_complete", "queue_shutdown"),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "ReceiveMessageOperation": ("message",),
    "RequestCallEvent": ("call", "call_details", "completion_type", "invocation_metadata", "success", "tag"),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "Server": (
        "add_http2_port",
        "cancel_all_calls",
        "destroy",
        "register_completion_queue",
        "request_call",
        "shutdown",
        "start",
    ),
}
_OK = grpc.StatusCode.OK.value[0]
_log = logging.getLogger("mlopsnb.serving")


def surprises() -> list[str]:
    """Name what is not as we know it in grpcio: what the direct lane leans on, or how that behaves."""
    missing = [
        name
        for part, names in _PARTS.items()
        for name in (part, *(f"{part}.{x}" for x in names))
        if not _has(name)
    ]
    if missing:
        return missing
    try:
        return _rehearse()
    except (AttributeError, TypeError, ValueError) as exc:
        return [str(exc)]


def _has(name: str) -> bool:
    part, _, attribute = name.partition(".")
    found = getattr(cygrpc, part, None)
    return hasattr(found, attribute) if attribute else found is not None


def _rehearse() -> list[str]:
    """Let a server without an address start and end; name what comes of it, if that is not as it should be."""
    _receive_message(), _receive_close(), _reply(_OK, "", (("a", "b"),), b"")
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server([("grpc.so_reuseport", 0)], False)
    server.register_completion_queue(queue)
    server.start()
    server.request_call(queue, queue, "call")
    server.shutdown(queue, "end")
    events = [queue.poll(time.time() + _REHEARSAL_SECONDS) for _ in range(2)]
    queue.shutdown()
    last = queue.poll(time.time() + _REHEARSAL_SECONDS)
    server.destroy()
    told = sorted((str(event.tag), bool(event.success)) for event in events)
    expected = [("call", False), ("end", True)]
    if told == expected and last.completion_type == cygrpc.CompletionType.queue_shutdown:
        return []
    return [f"a server that ends says {told}, then {last.completion_type}"]


def _receive_message() -> Any:
    return cygrpc.ReceiveMessageOperation(0)


def _receive_close() -> Any:
    return cygrpc.ReceiveCloseOnServerOperation(0)


def _reply(code: int, details: str, trailing: Trailing, message: bytes | None) -> list[Any]:
    reply = [
        cygrpc.SendInitialMetadataOperation(None, 0),
        cygrpc.SendStatusFromServerOperation(trailing, code, details, 0),
    ]
    if message is not None:
        reply.insert(1, cygrpc.SendMessageOperation(message, 0))
    return reply


class _Direct:
    """A call, as gRPC brought it."""

    __slots__ = ("_call", "_details", "_lane", "_watched", "call", "job", "metadata", "path")

    def __init__(self, lane: DirectLane, path: str, event: Any) -> None:
        self._lane = lane
        self._call = event.call
        self._details = event.call_details
        self._watched = False
        self.path = path
        self.metadata: Sequence[tuple[str, str | bytes]] = event.invocation_metadata
        self.call: Call | None = None
        self.job: object | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the client's deadline; so many that there is none, if it has none."""
        left: float = self._details.deadline - time.time()
        return left

    def receive(self) -> None:
        """Ask for the message."""
        self._start([_receive_message()], self._came)

    def _came(self, event: Any) -> None:
        raw = event.batch_operations[0].message()
        if raw is None:  # the client is gone, said too much, or ended without a message
            self.refuse(grpc.StatusCode.UNIMPLEMENTED, "the call has no message", ())
        else:
            self._lane.came.append((self, raw))

    def watch(self) -> None:
        """Ask to be told when the client leaves. Without, that is learned with the answer."""
        self._watched = True
        self._start([_receive_close()], self._closed)

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._lane.service.gone(self)

    def answer(self, message: bytes, trailing: Trailing) -> None:
        """Send *message*, and *trailing* metadata."""
        self._end(_reply(_OK, "", trailing, message))

    def refuse(self, code: grpc.StatusCode, told: str, trailing: Trailing) -> None:
        """Send what went wrong."""
        self._end(_reply(code.value[0], told, trailing, None))

    def _end(self, reply: list[Any]) -> None:
        if not self._watched:
            reply.append(_receive_close())
        self._start(reply, _ended)

    def _start(self, operations: list[Any], then: Callable[[Any], None]) -> None:
        error = self._call.start_server_batch(operations, then)
        if error:
            self._call.cancel()
            _log.error("gRPC does not take what is sent to %s: error %d", self.path, error)


def _ended(event: Any) -> None:
    """Do nothing: a call has ended."""


class DirectLane:
    """Brings the calls of one port to *service*, on the event loop that starts it."""

    def __init__(self, service: Service, options: Sequence[tuple[str, int]], tokens: Tokens | None) -> None:
        self.service = service
        self.came: list[tuple[_Direct, bytes]] = []
        self._tokens = tokens
        self._paths = {path.encode(): path for path in service.paths}
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(list(options), False)
        self._server.register_completion_queue(self._queue)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done = cygrpc.CompletionType.operation_complete
        self._asked = 0
        self._ended = asyncio.Event()
        self._empty = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._wait, name="grpc", daemon=True)

    def listen(self, address: str, credentials: Any) -> int:
        """Take *address*, with TLS if there are *credentials*; return the port, 0 if it is taken."""
        inner = None if credentials is None else credentials._credentials
        port: int = self._server.add_http2_port(address.encode(), inner)
        return port

    async def start(self) -> None:
        """Let clients in."""
        self._loop = asyncio.get_running_loop()
        self._server.start()
        self._ask()
        self._thread.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and answer those in work; cancel what is left after *grace* seconds."""
        if self._loop is not None:
            ended = asyncio.Event()
            self._server.shutdown(self._queue, lambda event: ended.set())
            try:
                await asyncio.wait_for(ended.wait(), grace)
            except TimeoutError:
                self._server.cancel_all_calls()
                await ended.wait()
            self._queue.shutdown()
            await self._ended.wait()
            self._thread.join()
        self._server.destroy()

    def _ask(self) -> None:
        """Let gRPC hand over more calls. It takes its time, so that those at hand are answered before."""
        with contextlib.suppress(ValueError):  # the server ends
            while self._asked < _AHEAD:
                self._server.request_call(self._queue, self._queue, self._met)
                self._asked += 1

    def _wait(self) -> None:
        """Wake the event loop when something comes into the queue, and leave the queue to it until it is empty."""
        assert self._loop is not None
        while not self._ended.is_set():
            event = self._queue.poll()
            try:
                self._loop.call_soon_threadsafe(self._work, event)
            except RuntimeError:  # the loop was closed without `stop`: the process ends
                return
            del event  # it may hold a call, which has to end before the queue can
            self._empty.acquire()

    def _work(self, event: Any = None) -> None:
        """Carry out *event* and what else is in the queue; then look again, or leave the queue to the thread.

        The model runs inline once a turn of the loop at the most, so that HTTP has its turn as well.
        """
        ran = False
        for _ in range(_AT_ONCE):
            if event is None:
                event = self._queue.poll(0)
            if event.completion_type == self._done:
                self._carry_out(event)
            elif not self.came:
                self._leave(event)
                return
            elif ran or self._take():
                break
            else:
                ran = True
            event = None
        else:
            self._take()
        if self._asked < _AHEAD // 2:
            self._ask()
        assert self._loop is not None
        self._loop.call_soon(self._work)  # after the model, if it runs inline

    def _leave(self, event: Any) -> None:
        """Leave the queue, which said *event* and is empty, to the thread."""
        self._ask()
        if event.completion_type == cygrpc.CompletionType.queue_shutdown:
            self._ended.set()
        self._empty.release()

    def _carry_out(self, event: Any) -> None:
        try:
            event.tag(event)
        except Exception as exc:  # noqa: BLE001  the calls behind it must be answered all the same
            _log.error("an event of gRPC was lost\n%s", stack(exc))

    def _take(self) -> bool:
        """Let the service answer the calls whose messages came; say whether any has to wait, and watch it."""
        came, self.came = self.came, []
        for rpc, raw in came:
            self.service.take(rpc, raw, alone=len(came) == 1)
        waiting = [rpc for rpc, _ in came if rpc.call is not None]
        if waiting:
            assert self._loop is not None
            self._loop.call_soon(self._watch, waiting)  # after the model, if it runs inline
        return bool(waiting)

    def _watch(self, waiting: list[_Direct]) -> None:
        for rpc in waiting:
            if rpc.call is not None:
                rpc.watch()

    def _met(self, event: Any) -> None:
        """Take a call that has come, its message not yet."""
        self._asked -= 1
        if not event.success:  # the server ends
            return
        path = self._paths.get(event.call_details.method)
        rpc = _Direct(self, path or "", event)
        if path is None:
            rpc.refuse(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method", ())
        elif security.allowed(self._tokens, path, rpc.metadata):
            rpc.receive()
        else:
            self.service.turn_away(rpc)
