"""Verdicts on the images and containers of a revision, in their words."""

from __future__ import annotations

import pytest
from broken_objects import DAEMON, IMAGE, RUNNING, event, pod, terminated, verdict, waiting

from mlopsnb.targets.diagnosis import diagnose
from mlopsnb.targets.diagnosis_images import host
from mlopsnb.targets.verdicts import NEVER, Observed, Verdict

# ---------------------------------------------------------------------------------------------- images
CANNOT_PULL = f"pod fraud-r4-x cannot pull {IMAGE}: "

PULLS = {
    f"{DAEMON}manifest for {IMAGE} not found: manifest unknown: manifest unknown": (
        (
            "reg.example:5000 has no such image: "
            f"manifest for {IMAGE} not found: manifest unknown: manifest unknown"
        ),
        0,
    ),
    f'rpc error: code = NotFound desc = failed to pull and unpack image "{IMAGE}": failed to resolve reference '
    f'"{IMAGE}": {IMAGE}: not found': (f"reg.example:5000 has no such image: {IMAGE}: not found", 0),
    f"{DAEMON}pull access denied for fraud, repository does not exist or may require 'docker login': denied": (
        (
            "reg.example:5000 has no such image, or wants credentials: pull access denied for fraud, repository does not"
            " exist or may require 'docker login': denied"
        ),
        0,
    ),
    f"{DAEMON}Get https://reg.example:5000/v2/: unauthorized: authentication required": (
        (
            "reg.example:5000 wants credentials that the cluster does not have:"
            " Get https://reg.example:5000/v2/: unauthorized: authentication required"
        ),
        0,
    ),
    f'{DAEMON}Get "https://reg.example:5000/v2/": x509: certificate signed by unknown authority': (
        (
            "the nodes do not trust the certificate of reg.example:5000:"
            ' Get "https://reg.example:5000/v2/": x509: certificate signed by unknown authority'
        ),
        0,
    ),
    f'{DAEMON}Get "https://reg.example:5000/v2/": http: server gave HTTP response to HTTPS client': (
        (
            "reg.example:5000 speaks plain HTTP, and the nodes expect HTTPS:"
            ' Get "https://reg.example:5000/v2/": http: server gave HTTP response to HTTPS client'
        ),
        0,
    ),
    f'{DAEMON}Get "https://reg.example:5000/v2/": dial tcp: lookup reg.example on 10.0.0.10:53: no such host': (
        (
            "the nodes cannot reach reg.example:5000:"
            ' Get "https://reg.example:5000/v2/": dial tcp: lookup reg.example on 10.0.0.10:53: no such host'
        ),
        15,
    ),
    f"{DAEMON}toomanyrequests: You have reached your pull rate limit.": (
        (
            "reg.example:5000 lets the nodes pull no more images for now:"
            " toomanyrequests: You have reached your pull rate limit."
        ),
        60,
    ),
    f"{DAEMON}no matching manifest for linux/arm64 in the manifest list entries": (
        (
            "reg.example:5000 has it for other processors than the nodes':"
            " no matching manifest for linux/arm64 in the manifest list entries"
        ),
        0,
    ),
    f"{DAEMON}write /var/lib/docker/tmp/x: no space left on device": (
        "the disk of its node is full: write /var/lib/docker/tmp/x: no space left on device",
        15,
    ),
    f"{DAEMON}the moon is full": ("the pull failed: the moon is full", 15),
}


@pytest.mark.parametrize("answer", PULLS)
def test_the_registrys_answer_is_said_and_judged(answer):
    told, grace = PULLS[answer]
    found = verdict(pod(waiting("ErrImagePull", answer)))
    assert (found.kind, found.message, found.grace) == ("ImagePullBackOff", CANNOT_PULL + told, grace)
    assert found.hint


@pytest.mark.parametrize("answer", PULLS)
def test_while_it_backs_off_the_answer_is_in_the_event(answer):
    backing_off = pod(waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"'))
    found = verdict(backing_off, event("Failed", f'Failed to pull image "{IMAGE}": {answer}'))
    assert found == verdict(pod(waiting("ErrImagePull", answer)))


def test_without_events_a_back_off_is_still_told():
    found = diagnose(Observed(pods=[pod(waiting("ImagePullBackOff", "Back-off"))], events=None))
    assert found.message == f"pod fraud-r4-x cannot pull {IMAGE}: the pull failed: Back-off"


def test_an_images_name_says_nothing_of_the_answer():
    named = pod(waiting("ErrImagePull", f"{DAEMON}manifest for r.io/x509-denied:404 not found"))
    named["status"]["containerStatuses"][0]["image"] = "r.io/x509-denied:404"
    assert "r.io has no such image" in verdict(named).message


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("python", "docker.io"),
        ("library/python:3", "docker.io"),
        ("localhost/x", "localhost"),
        ("h:5/x@sha256:0", "h:5"),
    ],
)
def test_the_registry_of_an_image(image, registry):
    assert host(image) == registry


# ---------------------------------------------------------------------------------------------- containers
def test_never_pulled_and_badly_named():
    assert verdict(pod(waiting("ErrImageNeverPull"))) == Verdict(
        kind="ErrImageNeverPull",
        message=f"pod fraud-r4-x needs {IMAGE}, which is not on its node, and may not pull it (policy Never)",
        hint="load the image into the node's container engine, or push it to a registry that the nodes reach",
    )
    assert verdict(pod(waiting("InvalidImageName", "must be lowercase"))).message == (
        f"{IMAGE} is no image reference: must be lowercase"
    )


def test_a_crash_is_certain_at_the_second():
    once = verdict(pod(terminated(1)), log=["ValueError: no age"])
    assert (once.kind, once.grace) == ("CrashLoopBackOff", NEVER)
    assert verdict(pod(RUNNING, last=terminated(1), restarts=1)).grace == NEVER
    for again in (
        pod(terminated(1), last=terminated(1), restarts=1),
        pod(waiting("CrashLoopBackOff", "back-off 10s"), last=terminated(1), restarts=1),
    ):
        assert verdict(again).final
    assert verdict(pod(terminated(1), last=terminated(1), restarts=1), log=["ValueError: no age"]) == Verdict(
        kind="CrashLoopBackOff",
        message="the container model of pod fraud-r4-x ended with exit code 1, 2 times by now",
        hint="the log says what it lacks; the same image can be tried on this machine: target='docker'",
        log=("ValueError: no age",),
    )


def test_told_has_the_log_below_the_message():
    found = verdict(pod(terminated(1)), log=["a", "b"])
    assert found.told == f"{found.message}\n  last lines of its log:\n    a\n    b"


def test_our_servers_own_words_are_certain_at_once():
    found = verdict(
        pod(terminated(3)), log=["INFO", "mlopsnb.serving: error: model.json is cut off (pack it again)"]
    )
    assert found == Verdict(
        kind="CrashLoopBackOff",
        message="the server in pod fraud-r4-x could not start (exit code 3): model.json is cut off (pack it again)",
        hint="build the image again; the same image can be tried on this machine: target='docker'",
    )


def test_our_servers_exit_codes_are_known_without_its_log():
    ours = {"command": ["python", "-m", "mlopsnb.serving", "/model"]}
    found = verdict(pod(terminated(4), container=ours))
    assert found.final
    assert "the model cannot be loaded" in found.message
    assert verdict(pod(terminated(4), container={"args": "nothing of ours"})).grace == NEVER


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended by itself (exit code 0)"),
        (137, "was ended by SIGKILL (exit code 137)"),
        (139, "SIGSEGV, in compiled code"),
        (7, "ended with exit code 7"),
    ],
)
def test_exit_codes_in_words(code, words):
    assert words in verdict(pod(terminated(code))).message


def test_a_kill_waits_for_the_event_that_says_whose_it_was():
    probed = {"livenessProbe": {"httpGet": {}}}
    killed = pod(waiting("CrashLoopBackOff"), last=terminated(137), restarts=2, container=probed)
    assert verdict(killed).grace == 15
    assert diagnose(Observed(pods=[killed], events=None)).final
    unhealthy = event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503")
    killing = event("Killing", "Container model failed liveness probe, will be restarted")
    assert verdict(killed, unhealthy, killing, log=["busy"]) == Verdict(
        kind="LivenessFailed",
        message="the container model of pod fraud-r4-x was killed because its liveness probe failed:"
        " HTTP probe failed with statuscode: 503",
        hint="the server itself says that it is not well: look at its log",
        log=("busy",),
    )


def test_a_kill_is_told_before_the_container_has_ended():
    killing = event("Killing", "Container model failed liveness probe, will be restarted")
    assert verdict(pod(RUNNING), killing).kind == "LivenessFailed"
    assert verdict(pod(RUNNING), event("Killing", "Stopping container model")) is None


def test_a_startup_probe_that_gives_up():
    killing = event("Killing", "Container model failed startup probe, will be restarted")
    found = verdict(pod(RUNNING, last=terminated(137), restarts=1), killing)
    assert (found.kind, found.final) == ("StartupFailed", True)


@pytest.mark.parametrize(
    ("limit", "more"),
    [("64Mi", "128Mi"), ("100M", "192Mi"), ("512Mi", "1Gi"), ("1Gi", "2Gi"), ("1.5Gi", "3Gi")],
)
def test_out_of_memory_names_the_limit_and_the_next(limit, more):
    limited = {"resources": {"limits": {"memory": limit}}}
    for found in (pod(terminated(137, "OOMKilled"), container=limited),
                  pod(RUNNING, last=terminated(137, "OOMKilled"), restarts=1, container=limited)):  # fmt: skip
        assert verdict(found) == Verdict(
            kind="OOMKilled",
            message="the container model of pod fraud-r4-x was killed because it used more than its memory limit"
            f" of {limit}",
            hint=f"deploy with more: memory={more!r}",
        )


def test_out_of_memory_without_a_limit_is_the_nodes():
    assert "its node ran out of memory" in verdict(pod(terminated(137, "OOMKilled"))).message


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            'secret "s3" not found',
            "needs the secret s3, which is not there",
            "kubectl create secret generic s3 --namespace ml --from-literal=KEY=VALUE, or name one that is there",
        ),
        (
            'configmap "c" not found',
            "needs the config map c, which is not there",
            "kubectl create configmap c --namespace ml --from-literal=KEY=VALUE, or name one that is there",
        ),
        (
            "couldn't find key token in Secret ml/s3",
            "needs the key token of the secret ml/s3, which does not have it",
            "add the key, or name the right one",
        ),
        (
            "container has runAsNonRoot and image will run as root (pod: x, container: model)",
            "may not run as root, and its image does: container has runAsNonRoot and image will run as root",
            "build the image with mlopsnb, or give it a USER that is a number other than 0",
        ),
    ],
)
def test_what_a_containers_configuration_lacks(said, message, hint):
    found = verdict(pod(waiting("CreateContainerConfigError", said)))
    assert found == Verdict(kind="CreateContainerConfigError", message=f"pod fraud-r4-x {message}", hint=hint)


def test_a_cache_that_is_not_filled_yet_may_pass():
    assert verdict(pod(waiting("CreateContainerConfigError", "failed to sync secret cache"))).grace == 10


def test_a_command_that_cannot_be_run():
    runc = "failed to create shim task: runc create failed: unable to start container process: "
    found = verdict(
        pod(waiting("RunContainerError", f'{runc}exec: "/x": no such file or directory: unknown'))
    )
    assert (
        found.message == 'the command of pod fraud-r4-x cannot be run: exec: "/x": no such file or directory'
    )
    other = verdict(pod(terminated(128, "StartError", f"{runc}exec /x: exec format error: unknown")))
    assert (other.kind, other.hint) == (
        "StartError",
        "the image is for other processors: build it for the nodes' platform",
    )


def test_a_startup_probe_may_fail_so_often_and_no_more():
    probed = {"startupProbe": {"httpGet": {}, "failureThreshold": 5}}
    starting = pod(RUNNING, container=probed)
    refused = event("Unhealthy", "Startup probe failed: connection refused") | {"count": 3}
    unwell = event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503") | {"count": 2}
    assert verdict(starting, refused).grace == NEVER
    found = verdict(starting, refused, unwell)
    assert (found.kind, found.final) == ("StartupFailed", True)
    assert found.message.endswith("startup probe fails: HTTP probe failed with statuscode: 503")


def test_readiness_counts_from_the_startup_probe_on():
    said = event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
    probed = {"startupProbe": {"httpGet": {}}}
    assert verdict(pod(RUNNING, started=True, container=probed), said) == Verdict(
        kind="ReadinessFailed",
        message="pod fraud-r4-x runs but its readiness probe fails: HTTP probe failed with statuscode: 503",
        hint="the server itself says that it is not well: look at its log",
        grace=20,
    )
    assert verdict(pod(RUNNING, started=True), said).grace == NEVER
    assert verdict(pod(RUNNING, started=False, container=probed), said) is None


def test_a_ready_or_ending_pod_is_well():
    ready = pod(RUNNING, last=terminated(137, "OOMKilled"), restarts=1)
    ready["status"]["conditions"][1]["status"] = "True"
    ending = pod(terminated(137, "OOMKilled"))
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert diagnose(Observed(pods=[ready, ending])) is None
