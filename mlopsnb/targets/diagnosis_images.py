"""What a registry answered when a node pulled an image, out of the words of the engines that nodes run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlopsnb.targets.verdicts import Verdict, events_of, name_of, text

if TYPE_CHECKING:
    from mlopsnb.targets.verdicts import Object, Observed

RETRIED = 15.0
"""Seconds after which the kubelet has pulled once more (it waits 10) and has failed again."""

BUSY = 60.0
"""Seconds that a registry may need until it takes requests again."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One kind of answer: how it is recognised, how it is said, what to do, and for how long it may pass."""

    pattern: re.Pattern[str]
    found: str
    hint: str
    grace: float = 0.0


def _answer(pattern: str, found: str, hint: str, grace: float = 0.0) -> _Answer:
    return _Answer(re.compile(pattern, re.IGNORECASE), found, hint, grace)


_ANSWERS = (
    _answer(
        r"x509|certificate",
        "the nodes do not trust the certificate of {host}",
        "the administrator has to give the nodes' container engine the CA of {host}",
    ),
    _answer(
        r"server gave HTTP response to HTTPS client|does not look like a TLS handshake",
        "{host} speaks plain HTTP, and the nodes expect HTTPS",
        "use a registry with TLS, or have {host} listed as an insecure registry in the nodes' container engine",
    ),
    _answer(
        r"toomanyrequests|too many requests|429|rate limit",
        "{host} lets the nodes pull no more images for now",
        "wait, use a registry of your own, or give the cluster credentials for {host}",
        BUSY,
    ),
    _answer(
        r"no match(ing manifest)? for (platform|linux|windows)|no match for platform",
        "{host} has it for other processors than the nodes'",
        "build it for the nodes' platform: platform='linux/amd64' or 'linux/arm64'",
    ),
    _answer(
        r"no such host|i/o timeout|connection refused|no route to host|network is unreachable|server misbehaving"
        r"|TLS handshake timeout|Client\.Timeout|deadline exceeded",
        "the nodes cannot reach {host}",
        "the nodes pull, not this machine: {host} has to be a name and a port that they reach",
        RETRIED,
    ),
    _answer(
        r"may require 'docker login'|insufficient_scope",
        "{host} has no such image, or wants credentials",
        "check the name; if it is right, name a secret of type docker-registry for {host} in the imagePullSecrets of"
        " the service account",
    ),
    _answer(
        r"unauthorized|authentication required|no basic auth credentials|authorization failed|failed to authorize"
        r"|denied|forbidden|status: 40[13]",
        "{host} wants credentials that the cluster does not have",
        "name a secret of type docker-registry for {host} in the imagePullSecrets of the service account",
    ),
    _answer(
        r"not found|manifest unknown|name unknown|404",
        "{host} has no such image",
        "push the image under this very name, or correct the name",
    ),
    _answer(
        r"no space left",
        "the disk of its node is full",
        "the administrator has to free space on the node; a smaller image helps too",
        RETRIED,
    ),
)
"""Recognised in this order: the words for a certificate or a network hold those for a refusal more often than not."""

_UNKNOWN = _Answer(re.compile(""), "the pull failed", "kubectl describe pod {pod} shows all of it", RETRIED)

_FRAME = re.compile(
    r"rpc error: code = \w+ desc = |Error response from daemon: |failed to pull and unpack image \S+: "
    r"|failed to resolve reference \S+: |Failed to pull image \"[^\"]*\": |Back-off pulling image \"[^\"]*\"(: )?"
    r"|ErrImagePull: "
)


def pull_verdict(observed: Observed, pod: Object, status: Object) -> Verdict:
    """Explain why the container of *status*, which waits with an image that could not be pulled, has none."""
    image = text(status, "image")
    answer = _said(observed, pod, image, text(status, "state", "waiting", "message"))
    words = _without_names(answer, image)
    known = next((a for a in _ANSWERS if a.pattern.search(words)), _UNKNOWN)
    facts = {"host": host(image), "pod": name_of(pod)}
    said = f": {answer}" if answer else ""
    return Verdict(
        kind="ImagePullBackOff",
        message=f"pod {name_of(pod)} cannot pull {image}: {known.found.format(**facts)}{said}",
        hint=known.hint.format(**facts),
        grace=known.grace,
    )


def host(image: str) -> str:
    """Return the registry of an image reference as container engines read it."""
    first, slash, _ = image.partition("/")
    named = bool(slash) and (any(c in first for c in ".:") or first == "localhost")
    return first if named else "docker.io"


def _without_names(answer: str, image: str) -> str:
    """Return *answer* without the image's own names: nobody shall find a certificate in `fraud-certificates:404`."""
    for name in (image, re.sub(r"(@|:[^/]*$).*", "", image), host(image)):
        answer = answer.replace(name, "") if name else answer
    return answer


def _said(observed: Observed, pod: Object, image: str, message: str) -> str:
    """Return the registry's answer; while the kubelet waits to pull again, only the event of the failed pull has it."""
    pulls = [m for e in events_of(observed, pod, "Failed") if "pull image" in (m := text(e, "message"))]
    ours = [m for m in pulls if image in m]
    for candidate in (message, *reversed(ours)):
        if answer := _FRAME.sub("", candidate).strip():
            return answer[:500]
    return ""
