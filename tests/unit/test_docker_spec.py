import json

from mlopsnb.records import Origin, Revision, Workload
from mlopsnb.targets.docker_gateways import State, decode, encode
from mlopsnb.targets.docker_spec import Home, Runtime, gateway, replica, routes
from mlopsnb.targets.revisions import restored

HOME = Home(owner="0a1b2c3d", name="fraud")
RUNTIME = Runtime(id="sha256:1", python="/opt/mlopsnb/venv/bin/python", user="65532:65532")
REVISION = Revision(
    id=2,
    source="models:/fraud/3",
    digest="sha256:2",
    image="fraud:v3-1a2b3c4",
    env={"TOKEN": "hidden"},
    workload=Workload(replicas=2, cpu=0.5, memory=512 << 20, gpu=1),
    origin=Origin(user="ada", commit="1a2b"),
    cache_bytes=1000,
)
SAFE = {
    "NetworkMode": "mlopsnb-0a1b2c3d-fraud",
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "2"}},
}


def test_a_replica():
    made = replica(HOME, REVISION, 1, RUNTIME)
    record = made["Labels"].pop("mlopsnb.record")
    assert "hidden" not in record
    assert restored(json.loads(record)).workload == REVISION.workload
    assert made == {
        "Image": "sha256:1",
        "Cmd": [
            *("--name", "fraud", "--version", "3", "--workers", "1"),
            *("--profile-dir", "/var/lib/mlopsnb/data", "--cache-bytes", "1000"),
        ],
        "Env": ["TOKEN=hidden"],
        "Labels": {
            "mlopsnb.owner": "0a1b2c3d",
            "mlopsnb.name": "fraud",
            "mlopsnb.role": "replica",
            "mlopsnb.revision": "2",
            "mlopsnb.replica": "1",
            "mlopsnb.source": "models:/fraud/3",
            "mlopsnb.digest": "sha256:2",
            "mlopsnb.origin.user": "ada",
            "mlopsnb.origin.commit": "1a2b",
        },
        "StopTimeout": 15,
        "HostConfig": {
            **SAFE,
            "NanoCpus": 500_000_000,
            "Memory": 512 << 20,
            "MemorySwap": 512 << 20,
            "DeviceRequests": [{"Count": 1, "Capabilities": [["gpu"]]}],
            "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=256m"},
            "Mounts": [{"Type": "volume", "Target": "/var/lib/mlopsnb"}],
            "RestartPolicy": {"Name": "no"},
        },
        "NetworkingConfig": {"EndpointsConfig": {"mlopsnb-0a1b2c3d-fraud": {"Aliases": ["r2-1"]}}},
    }


def test_a_gateway():
    assert gateway(HOME, "grpc", 9000, RUNTIME) == {
        "Image": "sha256:1",
        "Entrypoint": ["/opt/mlopsnb/venv/bin/python", "-m", "mlopsnb.serving.gateway"],
        "Cmd": ["--port", "8081", "--state", "/var/lib/mlopsnb/data"],
        "Labels": {
            "mlopsnb.owner": "0a1b2c3d",
            "mlopsnb.name": "fraud",
            "mlopsnb.role": "grpc",
            "mlopsnb.port": "9000",
        },
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 15,
        "ExposedPorts": {"8081/tcp": {}},
        "HostConfig": {
            **SAFE,
            "PortBindings": {"8081/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9000"}]},
            "Mounts": [
                {"Type": "volume", "Source": "mlopsnb-0a1b2c3d-fraud-grpc-9000", "Target": "/var/lib/mlopsnb"}
            ],
            "RestartPolicy": {"Name": "always"},
        },
        "NetworkingConfig": {"EndpointsConfig": {"mlopsnb-0a1b2c3d-fraud": {"Aliases": ["grpc-9000"]}}},
    }


def test_the_state_is_read_back():
    state = State(serial=7, revisions=(REVISION,), weights={2: 100})
    told = routes(state.weights, {2: ["r2-1", "r2-2"]}, "http")
    assert told == [{"weight": 100, "servers": ["r2-1:8080", "r2-2:8080"]}]
    raw = encode(state, told)
    assert json.loads(raw)["routes"] == told
    assert decode("fraud", raw) == state
    assert decode("fraud", None) == State()
