"""gRPC of deployments on the process target: on a port of its own, which stays over redeploys and rollbacks."""

from __future__ import annotations

import json
import socket
import threading

import grpc
import numpy as np
import pytest
import torch

import mlopsnb as ml
from mlopsnb.serving.rpc.messages import SERVICE, message

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each channel
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRIES}]})),
]


def net(factor):
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.constant_(model.weight, factor)
    return model


class Client(threading.Thread):
    """Asks over one channel, or over a new one each time, until told to stop; notes who answered, and what failed."""

    def __init__(self, address, name, *, keeps):
        super().__init__()
        self._address, self._name, self._keeps = address, name, keeps
        self.stopped = threading.Event()
        self.versions, self.failures = [], []

    def run(self):
        while not self.stopped.is_set():
            with grpc.insecure_channel(self._address, options=OPTIONS) as channel:
                self._ask(channel)
                while self._keeps and not self.stopped.is_set():
                    self._ask(channel)

    def _ask(self, channel):
        request = message("ModelInferRequest")(model_name=self._name, raw_input_contents=[X.tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=X.shape)
        try:
            answer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )(request, timeout=30, wait_for_ready=True)
        except grpc.RpcError as exc:
            self.failures.append(f"{exc.code().name}: {exc.details()}")
            return
        found = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_allclose(found, X.sum(axis=1) * int(answer.model_version), rtol=1e-4, atol=1e-4)
        self.versions.append(answer.model_version)


@pytest.mark.parametrize("workers", [1, 2])
def test_redeploy_and_rollback_keep_grpc(workers):
    dep = ml.deploy(net(1.0), name="both", example=X, grpc_port=0, workers=workers)
    address = dep.grpc
    clients = [Client(address, "both", keeps=keeps) for keeps in (True, True, False)]
    for client in clients:
        client.start()
    try:
        ml.deploy(net(2.0), name="both", example=X, workers=workers)
        assert dep.grpc == address
        seen = [len(client.versions) for client in clients]
        while any(client.versions[at:][-1:] != ["2"] for client, at in zip(clients, seen, strict=True)):
            assert all(client.is_alive() for client in clients)
        dep.rollback()
        assert dep.grpc == address
        while any(client.versions[-1:] != ["1"] for client in clients):
            assert all(client.is_alive() for client in clients)
    finally:
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join(60)
    assert [client.failures for client in clients] == [[]] * 3
    assert [set(client.versions) for client in clients] == [{"1", "2"}] * 3
    np.testing.assert_allclose(dep.predict(X)[:, 0], X.sum(axis=1), rtol=1e-4, atol=1e-4)
    dep.delete()
    host, _, port = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_without_the_option_there_is_no_grpc_and_a_later_revision_may_bring_it():
    dep = ml.deploy(net(1.0), name="later", example=X)
    assert dep.grpc is None
    again = ml.deploy(net(2.0), name="later", example=X, grpc_port=0)
    client = Client(again.grpc, "later", keeps=True)
    client.start()
    while not client.versions:
        assert client.is_alive()
    client.stopped.set()
    client.join(60)
    assert (set(client.versions), client.failures) == ({"2"}, [])


def test_a_port_of_another_deployment_is_told_before_the_model_is_loaded():
    first = ml.deploy(net(1.0), name="first", example=X, grpc_port=0)
    port = int(first.grpc.rpartition(":")[2])
    with pytest.raises(ml.DeployError, match=f"port {port} of 127.0.0.1 cannot be used"):
        ml.deploy(net(1.0), name="second", example=X, grpc_port=port)
    assert [d.name for d in ml.deployments()] == ["first"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"grpc_port": 70_000}, "grpc_port must be a number from 0 to 65535, found 70000"),
        ({"grpc_port": "9000"}, "grpc_port must be a number from 0 to 65535, found '9000'"),
        ({"grpc_port": 9000, "port": 9000}, "HTTP and gRPC cannot share port 9000"),
    ],
)
def test_ports_that_are_none(options, told):
    with pytest.raises(ml.UserError, match=told):
        ml.deploy(net(1.0), name="none", example=X, **options)
    assert ml.deployments() == ()
