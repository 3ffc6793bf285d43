"""What is wrong with one container of a pod: it was not made, it ended, or it does not answer its probes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from mlopsnb.targets.diagnosis_images import pull_verdict
from mlopsnb.targets.verdicts import NEVER, Verdict, at, events_of, items, labels, name_of, number, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlopsnb.targets.verdicts import Kind, Object, Observed

UNREADY = 20.0
"""Seconds for which a container that has started may fail its readiness probe: it may load, or be busy."""

RETRIED = 10.0
"""Seconds after which the kubelet has tried once more to make a container."""

TOLD = 15.0
"""Seconds until the event that says who killed a container has come: a node with much to tell holds events back."""

LAST_LINES = 10

_EXITS = {
    2: "its command line is wrong",
    3: "the model package in the image is not sound",
    4: "the model cannot be loaded, or does not run in this image",
    5: "its address is taken, or is not its own",
    6: "a file of tokens or of TLS cannot be used",
}
"""The exit codes of `python -m mlopsnb.serving`, all of them final: it would end like this each time."""

_OUR_ERROR = "mlopsnb.serving: error: "
_PROBED = (
    "its liveness or startup probe may have had it killed, or a lack of memory: kubectl describe pod tells"
)
_SLOW = "it needs longer to start than the probe grants, or does not answer at all"
_KILLS = (0, 137, 143)
"""Exit codes of a container that was stopped: drained, SIGKILL, SIGTERM."""

_NOT_FOUND = re.compile(
    r"(?P<kind>secret|configmap) \"(?P<name>[^\"]*)\" not found"
    r"|couldn't find key (?P<key>\S+) in (?P<holder>Secret|ConfigMap) (?P<where>\S+)",
    re.IGNORECASE,
)


def container_verdict(observed: Observed, pod: Object, status: Object) -> Verdict | None:
    """Return what is wrong with the container of *status*, or None. It is not ready, and its pod is not ending."""
    reason = text(status, "state", "waiting", "reason")
    if found := _not_made(observed, pod, status, reason):
        return found
    last = _end(status)
    if text(last, "reason") == "OOMKilled":
        return _out_of_memory(pod, status)
    if killed := _killed_by_probe(observed, pod, status):
        return killed
    if last is None:
        return _probes(observed, pod, status)
    if text(last, "reason") in ("ContainerCannotRun", "StartError"):
        return _cannot_run(pod, text(last, "message"))
    return _crash(observed, pod, status, last)


def with_last_words(observed: Observed, pod: Object) -> list[tuple[str, bool, int]]:
    """Return the containers of *pod* whose log tells why they end: name, whether another one runs by now, restarts."""
    found = []
    for status in statuses(pod):
        name, restarts = text(status, "name"), number(status, "restartCount")
        if _end(status) is not None:
            found.append((name, not at(status, "state", "terminated"), restarts))
        elif any(_about(e, name) for e in events_of(observed, pod, "Killing")):
            found.append((name, False, restarts))
    return found


def statuses(pod: Object) -> list[Object]:
    """Return the statuses of the pod's containers, the init containers first."""
    return items(pod, "status", "initContainerStatuses") + items(pod, "status", "containerStatuses")


def _end(status: Object) -> Object | None:
    for state in ("state", "lastState"):
        found = at(status, state, "terminated")
        if isinstance(found, dict) and found:
            return found
    return None


# ---------------------------------------------------------------------------------------------- not made
def _not_made(observed: Observed, pod: Object, status: Object, reason: str) -> Verdict | None:
    said = text(status, "state", "waiting", "message")
    match reason:
        case "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError":
            return pull_verdict(observed, pod, status)
        case "ErrImageNeverPull" | "InvalidImageName":
            return _no_image(pod, status, reason, said)
        case "CreateContainerConfigError":
            return _config(pod, said)
        case "CreateContainerError" | "PreCreateHookError" | "PostStartHookError":
            return Verdict(
                kind="CreateContainerError",
                message=f"the node cannot make a container of pod {name_of(pod)}: {said or reason}",
                hint=f"kubectl describe pod {name_of(pod)} shows all of it",
                grace=RETRIED,
            )
        case "RunContainerError":
            return _cannot_run(pod, said)
        case _:
            return None


def _no_image(
    pod: Object, status: Object, reason: Literal["ErrImageNeverPull", "InvalidImageName"], said: str
) -> Verdict:
    image = text(status, "image")
    if reason == "InvalidImageName":
        return Verdict(
            kind=reason,
            message=f"{image or 'the image'} is no image reference: {said}",
            hint="use lower-case letters: HOST:PORT/NAME:TAG or HOST:PORT/NAME@sha256:DIGEST",
        )
    return Verdict(
        kind=reason,
        message=f"pod {name_of(pod)} needs {image}, which is not on its node, and may not pull it (policy Never)",
        hint="load the image into the node's container engine, or push it to a registry that the nodes reach",
    )


def _config(pod: Object, said: str) -> Verdict:
    space = text(pod, "metadata", "namespace")
    kind: Kind = "CreateContainerConfigError"
    if match := _NOT_FOUND.search(said):
        return Verdict(
            kind=kind, message=f"pod {name_of(pod)} needs {_missing(match)}", hint=_make(match, space)
        )
    if "run as root" in said or "runAsNonRoot" in said:
        return Verdict(
            kind=kind,
            message=f"pod {name_of(pod)} may not run as root, and its image does: {said.partition(' (pod:')[0]}",
            hint="build the image with mlopsnb, or give it a USER that is a number other than 0",
        )
    return Verdict(
        kind=kind,
        message=f"pod {name_of(pod)} cannot be set up: {said or 'the node does not say why'}",
        hint=f"kubectl describe pod {name_of(pod)} shows all of it",
        grace=RETRIED,
    )


def _missing(match: re.Match[str]) -> str:
    found = match.groupdict()
    if found["key"]:
        return (
            f"the key {found['key']} of {_spoken(found['holder'])} {found['where']}, which does not have it"
        )
    return f"{_spoken(found['kind'])} {found['name']}, which is not there"


def _spoken(kind: str) -> str:
    return "the secret" if kind.lower() == "secret" else "the config map"


def _make(match: re.Match[str], space: str) -> str:
    found = match.groupdict()
    if found["key"]:
        return "add the key, or name the right one"
    command = "secret generic" if found["kind"].lower() == "secret" else "configmap"
    where = f" --namespace {space}" if space else ""
    return (
        f"kubectl create {command} {found['name']}{where} --from-literal=KEY=VALUE, or name one that is there"
    )


def mount_verdict(pod: Object, said: str) -> Verdict | None:
    """Explain the event FailedMount or FailedAttachVolume that says *said*; None if it will pass by itself."""
    if match := _NOT_FOUND.search(said):
        return Verdict(
            kind="FailedMount",
            message=f"pod {name_of(pod)} mounts {_missing(match)}",
            hint=_make(match, text(pod, "metadata", "namespace")),
        )
    if "references non-existent" in said:
        return Verdict(
            kind="FailedMount",
            message=f"pod {name_of(pod)} mounts a key that is not there: {said}",
            hint="add the key, or name the right one",
        )
    if "not registered" in said or "failed to sync" in said:
        return None  # the node has not heard of the pod's objects yet
    return Verdict(
        kind="FailedMount",
        message=f"pod {name_of(pod)} cannot have a volume: {said}",
        hint="check the volume's claim and its storage class",
        grace=60.0,
    )


def _cannot_run(pod: Object, said: str) -> Verdict:
    reason = re.sub(r"^.*unable to start container process: |: unknown$", "", said)
    other = "exec format error" in said
    return Verdict(
        kind="StartError",
        message=f"the command of pod {name_of(pod)} cannot be run: {reason or 'the node does not say why'}",
        hint="the image is for other processors: build it for the nodes' platform"
        if other
        else "check the command and its arguments; it has to be in the image",
    )


# ---------------------------------------------------------------------------------------------- ended
def _crash(observed: Observed, pod: Object, status: Object, last: Object) -> Verdict:
    code, restarts = number(last, "exitCode"), number(status, "restartCount")
    log = _log(observed, pod, status)
    ours = next((line.split(_OUR_ERROR)[1] for line in reversed(log) if _OUR_ERROR in line), "")
    if ours or (code in _EXITS and _is_our_server(pod, status)):
        why = ours or _EXITS[code]
        return Verdict(
            kind="CrashLoopBackOff",
            message=f"the server in pod {name_of(pod)} could not start (exit code {code}): {why}",
            hint=_hint_of(code),
            log=() if ours else log,
        )
    times = restarts + (at(status, "state", "terminated") is not None)
    again = times > 1 or text(status, "state", "waiting", "reason") == "CrashLoopBackOff"
    probed = code in _KILLS and _has_probe(pod, status)
    return Verdict(
        kind="CrashLoopBackOff",
        message=f"the container {text(status, 'name')} of pod {name_of(pod)} {_ended(code)}"
        f"{f', {times} times by now' if times > 1 else ''}",
        hint=_PROBED if probed else _hint(code, log),
        # Once may be chance: what it needs may not be up yet.
        grace=NEVER if not again else TOLD if probed and observed.events is not None else 0.0,
        log=log,
    )


def _log(observed: Observed, pod: Object, status: Object) -> tuple[str, ...]:
    return tuple(observed.logs.get((name_of(pod), text(status, "name")), ()))


def _is_our_server(pod: Object, status: Object) -> bool:
    """Say whether the container runs our server, whose exit codes are known."""
    spec = _spec(pod, text(status, "name"))
    words = [*_words(spec, "command"), *_words(spec, "args")]
    return "mlopsnb.serving" in words


def _words(spec: Object, key: str) -> list[str]:
    found = spec.get(key)
    return [str(w) for w in found] if isinstance(found, list) else []


def _ended(code: int) -> str:
    if code == 0:
        return "ended by itself (exit code 0), as a server must not"
    signals = {
        137: "SIGKILL",
        139: "SIGSEGV, in compiled code",
        134: "SIGABRT",
        132: "SIGILL",
        143: "SIGTERM",
    }
    return (
        f"was ended by {signals[code]} (exit code {code})"
        if code in signals
        else f"ended with exit code {code}"
    )


def _hint(code: int, log: Sequence[str]) -> str:
    if any("exec format error" in line for line in log):
        return "the image is for other processors: build it for the nodes' platform"
    if code == 132:
        return "the node's processor lacks instructions that the image was built for"
    if code == 137:
        return "mostly this is memory: deploy with more (memory=)"
    return "the log says what it lacks; the same image can be tried on this machine: target='docker'"


def _hint_of(code: int) -> str:
    if code in (3, 4):
        return "build the image again; the same image can be tried on this machine: target='docker'"
    return "change what it names and deploy again"


def _out_of_memory(pod: Object, status: Object) -> Verdict:
    name = text(status, "name")
    limit = text(_spec(pod, name), "resources", "limits", "memory")
    size = quantity(limit)
    if not size:
        return Verdict(
            kind="OOMKilled",
            message=f"the container {name} of pod {name_of(pod)} was killed because its node ran out of memory",
            hint="say how much it needs, so that it gets a node that has it: memory='1Gi'",
        )
    return Verdict(
        kind="OOMKilled",
        message=f"the container {name} of pod {name_of(pod)} was killed because it used more than its memory limit"
        f" of {limit}",
        hint=f"deploy with more: memory={next_limit(size)!r}",
    )


# ---------------------------------------------------------------------------------------------- probes
def _killed_by_probe(observed: Observed, pod: Object, status: Object) -> Verdict | None:
    name = text(status, "name")
    for event in reversed(events_of(observed, pod, "Killing")):
        said = text(event, "message").lower()
        probe = next((p for p in ("liveness", "startup") if f"failed {p} probe" in said), "")
        if not probe or not _about(event, name):
            continue
        answer = _probe_answer(observed, pod, name, probe)
        return Verdict(
            kind="LivenessFailed" if probe == "liveness" else "StartupFailed",
            message=f"the container {name} of pod {name_of(pod)} was killed because its {probe} probe failed{answer}",
            hint=_probe_hint(answer) if probe == "liveness" else _SLOW,
            log=_log(observed, pod, status),
        )
    return None


def _probes(observed: Observed, pod: Object, status: Object) -> Verdict | None:
    """Return a verdict for a container that runs and is not ready.

    A startup probe that has failed as often as it may is certain: the container is killed at the kubelet's next round,
    which may be a minute away. Only where such a probe has said that the model is loaded is it a fault not to be ready;
    without one nobody knows how long starting takes.
    """
    name = text(status, "name")
    if not at(status, "state", "running"):
        return None
    asked = at(_spec(pod, name), "startupProbe")
    probe = "readiness" if at(status, "started") is not False else "startup"
    answer = _probe_answer(observed, pod, name, probe)
    if not answer:
        return None
    message = f"pod {name_of(pod)} runs but its {probe} probe fails{answer}"
    if probe == "readiness":
        grace = UNREADY if asked is not None and at(status, "started") is True else NEVER
        usual = grace == NEVER
        return Verdict(
            kind="ReadinessFailed", message=message, hint=_probe_hint(answer), grace=grace, usual=usual
        )
    failures = sum(number(e, "count") for e in _probe_events(observed, pod, name, probe))
    over = asked is not None and failures >= (number(asked, "failureThreshold") or 3)
    return Verdict(
        kind="StartupFailed", message=message, hint=_SLOW, grace=0.0 if over else NEVER, usual=not over
    )


def _probe_events(observed: Observed, pod: Object, container: str, probe: str) -> list[Object]:
    unhealthy = events_of(observed, pod, "Unhealthy")
    start = f"{probe} probe"
    return [e for e in unhealthy if text(e, "message").lower().startswith(start) and _about(e, container)]


def _probe_answer(observed: Observed, pod: Object, container: str, probe: str) -> str:
    for event in reversed(_probe_events(observed, pod, container, probe)):
        said = text(event, "message")
        return f": {said.partition(': ')[2] or said}"[:500]
    return ""


def _probe_hint(answer: str) -> str:
    if "refused" in answer:
        return "nothing listens on the probe's port: the server is not up, or listens elsewhere"
    if "404" in answer:
        return "the server does not know the probe's path"
    if "timeout" in answer.lower() or "deadline" in answer:
        return "the server is too slow to answer: give it more cpu, or the probe a longer timeout"
    return "the server itself says that it is not well: look at its log"


def _about(event: Object, container: str) -> bool:
    field = text(event, "involvedObject", "fieldPath")
    return not field or f"{{{container}}}" in field


def _has_probe(pod: Object, status: Object) -> bool:
    spec = _spec(pod, text(status, "name"))
    return at(spec, "livenessProbe") is not None or at(spec, "startupProbe") is not None


def _spec(pod: Object, container: str) -> Object:
    every = items(pod, "spec", "containers") + items(pod, "spec", "initContainers")
    return next((c for c in every if text(c, "name") == container), {})


# ---------------------------------------------------------------------------------------------- quantities
_UNITS = {"": 1, "m": 1e-3} | {u: 1000**n for n, u in enumerate("kMGTPE", 1)}
_UNITS |= {f"{u}i": 1024**n for n, u in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([eE][-+]?\d{1,2})|([a-zA-Z]{0,2}))")


def quantity(written: str) -> float:
    """Return the number that a Kubernetes quantity such as `512Mi`, `0.5` or `1e3` means; 0 if it is none.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity.
    """
    match = _QUANTITY.fullmatch(written.strip())
    if not match or (match[3] or "") not in _UNITS:
        return 0.0
    found = float(match[1] + (match[2] or "")) * _UNITS[match[3] or ""]
    return found if math.isfinite(found) else 0.0


def next_limit(size: float) -> str:
    """Return twice *size* bytes as a round quantity."""
    mi = max(1, math.ceil(2 * size / 2**20))
    if mi >= 1024:
        return f"{math.ceil(mi / 512) / 2:g}Gi"
    return f"{2 ** math.ceil(math.log2(mi))}Mi" if mi < 128 else f"{math.ceil(mi / 64) * 64}Mi"


def requests_of(pod: Object) -> dict[str, str]:
    """Return what the pod asks for, as written; of several containers the largest of each."""
    asked: dict[str, str] = {}
    for container in items(pod, "spec", "containers"):
        wanted = {**labels(container, "resources", "limits"), **labels(container, "resources", "requests")}
        for key, value in wanted.items():
            asked[key] = max(asked.get(key, "0"), value, key=quantity)
    return asked
