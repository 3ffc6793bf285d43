"""Why the API server did not take an object, out of its own words: quota, policy, webhook, service account.

The words are the same whether a person applies the object or a controller makes a pod of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlopsnb.targets.verdicts import Kind, Verdict

DRAINING = 10.0
"""Seconds for which a quota may be full because pods that have been stopped still hold a part of it."""

WEBHOOK_BACK = 10.0
"""Seconds that a webhook may take to come back."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    kind: Kind
    pattern: re.Pattern[str]
    message: str
    hint: str
    grace: float = 0.0


_REFUSALS = (
    _Refusal(
        "ServiceAccountNotFound",
        re.compile(r"error looking up service account (?P<a>\S+?)/(?P<b>\S+?):"),
        "the service account {b} is not there in the namespace {a}",
        "kubectl create serviceaccount {b} --namespace {a}, or deploy with one that is there",
    ),
    _Refusal(
        "QuotaExceeded",
        re.compile(
            r"exceeded quota: (?P<a>[^,]+), requested: (?P<b>.*), used: (?P<c>.*), limited: (?P<d>.*)"
        ),
        "the quota {a} is used up: asked for {b}, used are {c} of {d}",
        "ask for less (replicas=, cpu=, memory=), delete what is no longer needed, or ask the administrator for more",
        DRAINING,
    ),
    _Refusal(
        "QuotaExceeded",
        re.compile(r"failed quota: (?P<a>[^:]+): must specify (?P<b>.*)"),
        "the quota {a} wants pods to say their {b}",
        "deploy with cpu= and memory=",
    ),
    _Refusal(
        "PodSecurity",
        re.compile(r"violates PodSecurity (?P<a>\"[^\"]*\"): (?P<b>.*)"),
        "the Pod Security level {a} of the namespace does not allow the pod: {b}",
        "change what it names, or ask the administrator for another namespace",
    ),
    _Refusal(
        "PodSecurity",
        re.compile(r"unable to validate against any pod security policy: (?P<a>.*)"),
        "no pod security policy allows the pod: {a}",
        "ask the administrator which policy your pods may use",
    ),
    _Refusal(
        "WebhookDenied",
        re.compile(
            r"admission webhook (?P<a>\"[^\"]*\") denied the request(: (?P<b>.*)| without explanation)"
        ),
        "the admission webhook {a} denied the pod: {b}",
        "this is a rule of the cluster: change what it names, or ask who runs the webhook",
    ),
    _Refusal(
        "WebhookDenied",
        re.compile(r"failed calling webhook (?P<a>\"[^\"]*\"): (?P<b>.*)"),
        "the admission webhook {a}, without which the cluster takes no pod, does not answer: {b}",
        "the administrator has to bring the webhook back",
        WEBHOOK_BACK,
    ),
    _Refusal(
        "LimitRange",
        re.compile(r"is forbidden: \[?(?P<a>(?:maximum|minimum|cpu max|memory max).*?)\]?$"),
        "a limit range of the namespace does not allow the pod: {a}",
        "deploy with cpu= and memory= within these limits",
    ),
    _Refusal(
        "FailedCreate",
        re.compile(r"in namespace (?P<a>\S+) because it is being terminated"),
        "the namespace {a} is being deleted",
        "name another one (MLOPSNB_NAMESPACE)",
    ),
)


def recognised(said: str) -> Verdict | None:
    """Explain the API server's refusal *said*, or return None if it is of no known kind."""
    said = " ".join(said.split())
    for refusal in _REFUSALS:
        if match := refusal.pattern.search(said):
            facts = {key: value or "it gives no reason" for key, value in match.groupdict().items()}
            return Verdict(
                kind=refusal.kind,
                message=refusal.message.format(**facts),
                hint=refusal.hint.format(**facts),
                grace=refusal.grace,
            )
    return None


def refused(said: str) -> Verdict:
    """Explain the API server's refusal *said* to take a pod."""
    return recognised(said) or Verdict(
        kind="FailedCreate",
        message=f"the cluster does not take the pod: {said.strip() or 'it gives no reason'}",
        hint="change what it names, or ask the administrator",
    )
