"""What brings gRPC's calls: the queue of grpcio, which is not public, and `grpc.aio` where that is not as we know it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import grpc
import numpy as np
import pytest
from grpc._cython import cygrpc

from mlopsnb import plugins
from mlopsnb.serving.app import App
from mlopsnb.serving.board import Board
from mlopsnb.serving.connections import ConnectionLimits
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.listen import Sockets
from mlopsnb.serving.rpc import direct, service
from mlopsnb.serving.rpc.aio import AioLane
from mlopsnb.serving.rpc.direct import DirectLane
from mlopsnb.serving.rpc.messages import SERVICE, message
from mlopsnb.serving.rpc.server import GrpcServer
from mlopsnb.serving.worker import WorkerServer
from mlopsnb.serving.workers import CLOSE_GRPC, OPEN_GRPC, Seat

INFER = f"/{SERVICE}/ModelInfer"


@pytest.fixture
def app(make_package, format_path, monkeypatch):
    """An app on the affine model, with a log in memory."""
    monkeypatch.syspath_prepend(format_path)
    plugins.available.cache_clear()  # other tests of this process may have looked already
    engine = Engine.load(make_package())
    yield App(engine, name="affine", version="1", max_body_bytes=10_000, log=io.BytesIO(), request_timeout=20)
    engine.close()
    plugins.available.cache_clear()


def statuses(app):
    """The statuses in the log of *app*."""
    return [json.loads(line)["status"] for line in app.log._file.getvalue().splitlines()]


@pytest.fixture(params=["direct", "aio"])
def lane(request, monkeypatch):
    """Both lanes, one after the other."""
    if request.param == "aio":
        monkeypatch.delattr(cygrpc, "SendStatusFromServerOperation")
    return request.param


def serve(app, clients):
    """Serve *app* while *clients*, called with the address in a thread, does its work; return what that returns."""

    async def run():
        server = GrpcServer(app, host="127.0.0.1", port=0, limits=ConnectionLimits())
        await server.start()
        try:
            return await asyncio.to_thread(clients, server.address)
        finally:
            await server.stop()
            app.flush()

    return asyncio.run(run())


def encoded(x=(1, 2, 3, 4)):
    x = np.array([x], np.float32)
    request = message("ModelInferRequest")(model_name="affine")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.inputs.add(name="n", datatype="INT8", shape=[1])
    request.raw_input_contents.extend([x.tobytes(), b"\5"])
    return request.SerializeToString()


def test_grpcio_is_as_the_direct_lane_knows_it():
    assert direct.surprises() == []


def test_a_grpcio_built_otherwise_is_noticed(monkeypatch):
    monkeypatch.delattr(cygrpc, "ReceiveMessageOperation")
    assert direct.surprises() == ["ReceiveMessageOperation", "ReceiveMessageOperation.message"]
    monkeypatch.undo()
    monkeypatch.setattr(cygrpc, "SendMessageOperation", lambda message: None)
    assert "positional argument" in direct.surprises()[0]
    monkeypatch.undo()

    class Other(cygrpc.Server):
        def shutdown(self, queue, tag):
            super().shutdown(queue, "over")

    monkeypatch.setattr(cygrpc, "Server", Other)
    assert direct.surprises()[0].startswith("a server that ends says [('call', False), ('over', True)]")
    monkeypatch.undo()
    monkeypatch.setattr(direct, "cygrpc", None)
    assert "Server.request_call" in direct.surprises()


def test_the_lane_is_told(app, lane, caplog):
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (DirectLane, AioLane):
            patch.setattr(kind, "start", _noting(kind.start, made))
        serve(app, lambda address: None)
    assert [type(one) for one in made] == [DirectLane if lane == "direct" else AioLane]
    assert ("gRPC is slower" in caplog.text) == (lane == "aio")


def _noting(start, made):
    async def noted(self):
        made.append(self)
        await start(self)

    return noted


def test_many_calls_at_once_get_each_its_own_answer(app, lane):
    def clients(address):
        def ask(client):
            with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                calls = [
                    channel.unary_unary(INFER).future(encoded([1000 * client, 5000 + n, 0, 0]))
                    for n in range(50)
                ]
                answers = [message("ModelInferResponse").FromString(c.result(20)) for c in calls]
            return [np.frombuffer(a.raw_output_contents[0], np.float32).tolist() for a in answers]

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, range(8)))

    assert serve(app, clients) == [
        [[2.0 * (1000 * client + n + 5000) + 5] for n in range(50)] for client in range(8)
    ]
    assert statuses(app) == [200] * 400


def test_what_comes_while_the_loop_is_busy_shares_a_call(app):
    app.engine.plan = replace(app.engine.plan, inline=True)
    counted = re.compile(rb"^mlopsnb_batch_size_(?:sum|count){.*} (.*)$", re.MULTILINE)

    def clients(address):
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(INFER)
            for _ in range(200):
                calls = [ask.future(encoded()) for _ in range(32)]
                assert len([call.result(20) for call in calls]) == 32
                total, count = sorted(map(float, counted.findall(app.engine.metrics.expose("")[0])))[::-1]
                if count < total:
                    return True
        return False

    assert serve(app, clients)


def test_clients_that_say_nothing_hold_nobody_up(app, lane):
    def clients(address):
        end = threading.Event()

        def nothing():
            end.wait(20)
            yield from ()

        with grpc.insecure_channel(address) as channel:
            silent = [channel.stream_unary(INFER).future(nothing()) for _ in range(200)]
            channel.unary_unary(INFER)(encoded(), timeout=20)
            for call in silent:
                call.cancel()
            end.set()

    serve(app, clients)
    assert statuses(app) == [200]


def test_a_call_without_a_message_is_refused(app):
    def clients(address):
        with grpc.insecure_channel(address) as channel:
            return channel.stream_unary(INFER).future(iter(())).exception(20)

    failed = serve(app, clients)
    assert (failed.code(), failed.details()) == (grpc.StatusCode.UNIMPLEMENTED, "the call has no message")
    assert statuses(app) == []


def test_calls_that_are_too_late_at_the_end_are_cancelled(app, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "gate")
    monkeypatch.setenv("AFFINE_GATE", str(tmp_path / "gate"))
    app.engine.plan = replace(app.engine.plan, inline=False)
    app.request_timeout = 0.3
    gate = contextlib.ExitStack()

    def clients(address):
        channel = grpc.insecure_channel(address)
        call = channel.unary_unary(INFER).future(encoded([100, 0, 0, 0]))
        gate.enter_context((tmp_path / "gate").open("wb"))  # opens when the model reads: the call is in work
        return channel, call

    with gate:
        channel, call = serve(app, clients)
        with channel:
            assert call.exception(20).code() is grpc.StatusCode.UNAVAILABLE
    assert statuses(app) == [499]


def test_at_the_end_the_port_is_closed_first_and_who_is_connected_is_answered_still(app, lane):
    async def run():
        server = GrpcServer(app, host="127.0.0.1", port=0, limits=ConnectionLimits())
        await server.start()
        host, _, port = server.address.rpartition(":")
        with grpc.insecure_channel(server.address) as channel:
            ask = partial(asyncio.to_thread, channel.unary_unary(INFER), encoded(), timeout=20)
            await ask()
            end = server.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)))
            await ask()
            await end
            with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                await ask()

    asyncio.run(run())


def test_a_worker_opens_and_closes_its_port_in_the_order_in_which_it_is_told(app):
    async def run():
        server = GrpcServer(app, host="127.0.0.1", port=0, limits=ConnectionLimits())
        supervisor, channel = socket.socketpair()
        supervisor.setblocking(False)
        with supervisor, channel:
            worker = WorkerServer(
                app,
                Sockets(),
                seat=Seat(Board(1), 0, channel),
                drain_seconds=0,
                on_ready=lambda: None,
                grpc=server,
                grpc_waits=True,
            )
            await worker.startup()
            supervisor.send(OPEN_GRPC + CLOSE_GRPC)  # which come together
            assert await asyncio.get_running_loop().sock_recv(supervisor, 10) == OPEN_GRPC
            await worker._turn
            host, _, port = server.address.rpartition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)))
            await worker._grpc_end
            asyncio.get_running_loop().remove_reader(channel)

    asyncio.run(run())


def test_an_answer_that_grpc_does_not_take_ends_the_call(app, monkeypatch):
    def clients(address):
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary(INFER).future(encoded()).exception(20).code()

    monkeypatch.setattr(service, "_trailing", lambda call: (("Not A Key", "x"),))
    assert serve(app, clients) in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)  # of older grpcio
