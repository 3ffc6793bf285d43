import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlopsnb as ml
from mlopsnb.records import Release, Revision, Workload
from mlopsnb.targets.compose import document, text

yaml = pytest.importorskip("yaml")

REVISION = Revision(
    id=2,
    source="models:/fraud/3",
    digest="sha256:1",
    image="ghcr.io/team/fraud@sha256:" + "0" * 64,
    env={"TOKEN": "hidden", "MODE": "$x"},
    workload=Workload(cpu=0.5, memory=512 << 20, replicas=3),
    cache_bytes=1000,
)


def unescaped(value):
    """What Compose makes of a file's scalars."""
    if isinstance(value, dict):
        return {unescaped(k): unescaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unescaped(v) for v in value]
    return value.replace("$$", "$") if isinstance(value, str) else value


def test_the_whole_document():
    assert document("fraud", REVISION, http=8080, grpc=8081) == {
        "name": "fraud",
        "services": {
            "model": {
                "image": REVISION.image,
                "command": [
                    *("--name", "fraud", "--version", "3", "--workers", "1"),
                    "--cache-bytes",
                    "1000",
                ],
                "ports": ["127.0.0.1:8080:8080", "127.0.0.1:8081:8081"],
                "read_only": True,
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                "tmpfs": ["/tmp:rw,noexec,nosuid,nodev,size=256m"],
                "restart": "unless-stopped",
                "labels": {"mlopsnb.source": "models:/fraud/3", "mlopsnb.digest": "sha256:1"},
                "environment": ["MODE", "TOKEN"],
                "deploy": {"resources": {"limits": {"cpus": "0.5", "memory": f"{512 << 20}b"}}},
            }
        },
    }


@given(st.text(), st.text())
def test_whatever_is_named_is_read_back(source, digest):
    found = document("m", Revision(id=1, source=source, digest=digest, image="a:v1"), http=1, grpc=None)
    assert found["services"]["model"]["pull_policy"] == "never"
    assert unescaped(yaml.safe_load(text(found))) == found


def test_a_file_is_written_and_only_ours_is_written_over(tmp_path):
    def deployment(revision):
        release = Release(
            name="fraud", target="docker", revisions=(revision,), weights={2: 100}, grpc="127.0.0.1:9"
        )
        return SimpleNamespace(name="fraud", target="docker", release=release)

    running = replace(REVISION, state="running")
    path = tmp_path / "docker-compose.yml"
    for port in (8080, 8090):
        assert ml.compose(deployment(running), path, port=port) == path
        assert (
            yaml.safe_load(path.read_text())["services"]["model"]["ports"][1] == f"127.0.0.1:{port + 1}:8081"
        )
    assert "hidden" not in path.read_text()
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        subprocess.run(["docker", "compose", "-f", path, "config", "--quiet"], check=True)
    path.write_text("services: {}")
    with pytest.raises(ml.UserError, match="is there already, and not of ours"):
        ml.compose(deployment(running), path)
    with pytest.raises(ml.UserError, match="nothing serves"):
        ml.compose(deployment(replace(REVISION, state="stopped")), path)
