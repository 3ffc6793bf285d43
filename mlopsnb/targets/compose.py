"""A deployed revision as a Compose file. Pure.

Source: https://github.com/compose-spec/compose-spec/blob/main/spec.md. Every scalar is written as JSON has it, which YAML
reads as it was meant; a `$` is doubled, for Compose would put a variable there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlopsnb.rollout import version

if TYPE_CHECKING:
    from mlopsnb.records import Revision

FIRST_LINE = "# Written by mlopsnb, for a local check of what is deployed: docker compose up --wait"
_HTTP, _GRPC = 8080, 8081


def document(name: str, revision: Revision, *, http: int, grpc: int | None) -> dict[str, Any]:
    """Return the Compose document for one replica of *revision* on these ports of the loopback interface.

    Of its environment only the names are in it: Compose takes the values from where it is run.
    """
    ports = [f"127.0.0.1:{http}:{_HTTP}"] + ([f"127.0.0.1:{grpc}:{_GRPC}"] if grpc else [])
    work = revision.workload
    limits: dict[str, str] = {}
    if work.cpu is not None:
        limits["cpus"] = f"{work.cpu:g}"
    if work.memory is not None:
        limits["memory"] = f"{work.memory}b"
    service: dict[str, Any] = {
        "image": revision.image,
        "command": ["--name", name, "--version", version(revision), "--workers", str(revision.workers)],
        "ports": ports,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp:rw,noexec,nosuid,nodev,size=256m"],  # noqa: S108  of the container
        "restart": "unless-stopped",
        "labels": {"mlopsnb.source": revision.source, "mlopsnb.digest": revision.digest},
    }
    if revision.cache_bytes:
        service["command"] += ["--cache-bytes", str(revision.cache_bytes)]
    if "@" not in revision.image:
        service["pull_policy"] = "never"  # it is in this engine and nowhere else
    if revision.env:
        service["environment"] = sorted(revision.env)
    if limits:
        service["deploy"] = {"resources": {"limits": limits}}
    return {"name": name, "services": {"model": service}}


def text(found: Mapping[str, Any]) -> str:
    """Return a document as YAML, with `FIRST_LINE` before it."""
    return "\n".join([FIRST_LINE, *_lines(found, 0), ""])


def _lines(value: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for key, entry in value.items():
        start = f"{'  ' * depth}{_scalar(key) if depth > 2 else key}:"
        if isinstance(entry, Mapping):
            lines += [start, *_lines(entry, depth + 1)]
        elif isinstance(entry, list):
            lines += [start, *(f"{'  ' * (depth + 1)}- {_scalar(one)}" for one in entry)]
        else:
            lines.append(f"{start} {_scalar(entry)}")
    return lines


def _scalar(value: object) -> str:
    """Return *value* as YAML; a character beyond the first plane has another escape there than in JSON."""
    if not isinstance(value, str):
        return json.dumps(value)
    told = (f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else json.dumps(c)[1:-1] for c in value.replace("$", "$$"))
    return f'"{"".join(told)}"'
