"""What a deployment may use and how it is reached, as people write it: read and checked before anything is done. Pure.

Amounts are written as Kubernetes has them: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from mlopsnb import durations, records
from mlopsnb.errors import UserError, nearest
from mlopsnb.records import Workload

MOST_REPLICAS = 1000
_LEAST_MEMORY = 4 << 20
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]i?|Ki|)B?")
_CPU = re.compile(r"(\d+)m|(\d+(?:\.\d+)?)")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HOST = re.compile(
    r"(?=.{1,253}$)(\*\.)?([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
)
_TAINT = re.compile(
    r"(?P<key>[\w./-]+)(=(?P<value>[\w.-]*))?(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)
_HINTS = get_type_hints(Workload, vars(records) | {"Mapping": Mapping})
_EXPOSES: tuple[str, ...] = get_args(_HINTS["expose"])
_PLATFORMS: tuple[str, ...] = get_args(_HINTS["platform"])
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")


def read(
    *,
    replicas: object = 1,
    min_replicas: object = None,
    max_replicas: object = None,
    cpu: object = None,
    memory: object = None,
    gpu: object = 0,
    secrets: object = (),
    config_maps: object = (),
    node_selector: object = None,
    tolerations: object = (),
    expose: object = "cluster",
    host: object = "",
    network_policy: object = False,
    platform: object = "kubernetes",
    ttl: object = None,
) -> Workload:
    """Read the parameters of `deploy` that have these names; `UserError` says of which one what is wrong.

    *cpu* is in cores or as text such as `500m`; *memory* in bytes or as text such as `512Mi`; *ttl* in seconds or as text
    such as `7d`. A toleration is a mapping as in a pod, or text such as `dedicated=ml:NoSchedule`.
    """
    least, most = _scaling(min_replicas, max_replicas)
    return Workload(
        replicas=_count("replicas", replicas, least=1),
        min_replicas=least,
        max_replicas=most,
        cpu=None if cpu is None else _cores(cpu),
        memory=None if memory is None else _bytes(memory),
        gpu=_count("gpu", gpu, least=0),
        secrets=_names("secrets", secrets),
        config_maps=_names("config_maps", config_maps),
        node_selector=_selector(node_selector),
        tolerations=tuple(_toleration(one) for one in _several("tolerations", tolerations)),
        **_exposure(expose, host),
        network_policy=_flag("network_policy", network_policy),
        platform=_platform(platform, expose, network_policy),
        ttl=None if ttl is None else _span(ttl),
    )


def check(workload: Workload, takes: Collection[str], target: str) -> None:
    """Raise `UserError` if *workload* asks for what *target* does not give; *takes* are the fields that it does."""
    plain = Workload()
    asked = [f.name for f in fields(Workload) if getattr(workload, f.name) != getattr(plain, f.name)]
    if unknown := [name for name in asked if name not in takes]:
        known = ", ".join(sorted(takes)) or "none of these"
        raise UserError(
            f"target {target!r} knows no {' and no '.join(unknown)}; it knows {known}",
            hint="leave it out, or deploy to a target that does, such as target='kubernetes'",
        )


def _count(name: str, value: object, *, least: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST_REPLICAS:
        return value
    raise UserError(f"{name} must be a number from {least} to {MOST_REPLICAS}, found {value!r}")


def _scaling(least: object, most: object) -> tuple[int | None, int | None]:
    if least is None and most is None:
        return None, None
    if most is None:
        raise UserError("min_replicas goes with max_replicas", hint=f"max_replicas={least!r} or more")
    high = _count("max_replicas", most, least=1)
    low = 1 if least is None else _count("min_replicas", least, least=1)
    if low > high:
        raise UserError(f"min_replicas is {low}, more than max_replicas, {high}")
    return low, high


def _cores(value: object) -> float:
    found = _CPU.fullmatch(value) if isinstance(value, str) else None
    cores = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cores = float(value)
    elif found:
        cores = int(found[1]) / 1000 if found[1] else float(found[2])
    if 0.001 <= cores <= 1024:
        return cores
    raise UserError(
        f"cpu must be in cores, from 0.001 to 1024, found {value!r}", hint="for example 2, 0.5 or '500m'"
    )


def _bytes(value: object) -> int:
    found = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    size = -1.0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif found:
        size = float(found[1]) * _UNITS[found[2]]
    if _LEAST_MEMORY <= size < math.inf:
        return int(size)
    raise UserError(
        f"memory must be {_LEAST_MEMORY >> 20} MiB or more, found {value!r}",
        hint="for example '512Mi', '2Gi', or bytes",
    )


def _several(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise UserError(f"{name} takes a list, found {value!r}", hint=f"{name}=[{value!r}]")


def _names(name: str, value: object) -> tuple[str, ...]:
    given = tuple(_several(name, value))
    for one in given:
        if not isinstance(one, str) or not _NAME.fullmatch(one):
            raise UserError(
                f"{name}: {one!r} is no name of one: lower-case letters, digits, '-' and '.'",
                hint="give names alone; what is in them stays where it is",
            )
    return given


def _selector(value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) for k, v in value.items()
    ):
        return dict(value)
    raise UserError(
        f"node_selector maps labels of nodes to their values, found {value!r}",
        hint='for example {"pool": "ml"}',
    )


def _toleration(value: object) -> Mapping[str, str]:
    if isinstance(value, Mapping) and value and set(value) <= set(_TOLERATION):
        return dict(value)
    found = _TAINT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise UserError(
            f"tolerations: {value!r} is none",
            hint=f"give 'dedicated=ml:NoSchedule', or a mapping with some of {', '.join(_TOLERATION)}",
        )
    given = {key: text for key, text in found.groupdict().items() if text is not None}
    return {**given, "operator": "Equal" if "value" in given else "Exists"}


def _exposure(expose: object, host: object) -> dict[str, Any]:
    if expose not in _EXPOSES:
        raise UserError(
            f"expose must be one of {', '.join(_EXPOSES)}; found {expose!r}",
            hint=nearest(str(expose), _EXPOSES),
        )
    if not isinstance(host, str) or (host and not _HOST.fullmatch(host)):
        raise UserError(
            f"host must be a name as DNS has it, found {host!r}", hint="for example fraud.example.com"
        )
    if host and expose not in ("ingress", "gateway"):
        raise UserError(
            f"host={host!r} needs a way in that knows names", hint="expose='ingress' or 'gateway'"
        )
    return {"expose": expose, "host": host}


def _platform(platform: object, expose: object, network_policy: object) -> Any:
    if platform not in _PLATFORMS:
        raise UserError(
            f"platform must be one of {', '.join(_PLATFORMS)}; found {platform!r}",
            hint=nearest(str(platform), _PLATFORMS),
        )
    own = [("expose", expose != "cluster"), ("network_policy", bool(network_policy))]
    if platform == "kserve" and (asked := [name for name, is_asked in own if is_asked]):
        raise UserError(
            f"platform='kserve' takes no {' and no '.join(asked)}: how a model is reached is KServe's",
            hint="leave it out; the administrator of KServe says what its addresses are",
        )
    return platform


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"{name} is True or False, found {value!r}")


def _span(value: object) -> int:
    seconds = durations.seconds(value, of="ttl")
    if seconds < 1:
        raise UserError(f"ttl must be a second or more, found {value!r}", hint="for example '7d'")
    return round(seconds)
