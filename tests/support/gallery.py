"""One of everything that a notebook shows, named and filled as a test wants, as HTML and as text."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
from traffic_pages import window

from mlopsnb.background import Rollout
from mlopsnb.cleaning import Cleanup
from mlopsnb.deployment import Deployment, Deployments
from mlopsnb.errors import DeployError
from mlopsnb.events import Event, Replica
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.lock import Lock
from mlopsnb.monitoring import drift
from mlopsnb.monitoring.traffic import RevisionTraffic, Traffic
from mlopsnb.notebook import displays, image_displays
from mlopsnb.notebook.doctor import Finding, run
from mlopsnb.notebook.render import event_line, to_html, to_text
from mlopsnb.notebook.status import Snapshot, advance, finish
from mlopsnb.records import (
    Artifact,
    ModelVersion,
    Origin,
    ParityCheck,
    ParityReport,
    Release,
    Revision,
    Signature,
    TensorSpec,
)
from mlopsnb.rollout import Check, Gate, Start


class Still:
    """A target on which one release stands still, and nothing answers."""

    def __init__(self, release):
        self._release = release

    def observe(self, name):
        return self._release

    @contextmanager
    def reach(self, name, revision_id):
        raise DeployError("gone")
        yield


def events(word):
    """The events of a run that fails, with *word* wherever somebody can have written it."""
    pods = (Replica(name=word, phase=word), Replica(name="pod", phase="ready", ready=True))
    return (
        Event(step="export", state="started", message=word),
        Event(step="export", state="succeeded", message=word),
        Event(step="start", state="started", message=word),
        Event(step="start", state="progress", message=word, fraction=0.5, replicas=pods),
        Event(step="start", state="progress", line=word),
    )


def cards(word):
    """Status cards: one that runs, one in the background, one that failed and one that was cancelled."""
    now = Snapshot(title=f"%deploy {word}", started=0.0, notes=(f"name: {word}",))
    for i, event in enumerate(events(word)):
        now = advance(now, event, float(i))
    return {
        "running": now,
        "background": replace(now, background=word),
        "failed": finish(now, "failed", 9.0, verdict=word, hint=word),
        "cancelled": finish(now, "cancelled", 9.0),
    }


def records(word, place, name=""):
    """Records by what they are, with *word* wherever somebody can have written it; files go below *place*.

    With *name* that is what things are called by which only names can be called.
    """
    name = name or word
    spec = TensorSpec(name=name, dtype="float32", shape=(None, 4))
    check = ParityCheck(case="1 row", output=word, equal=True, max_abs_error=1e-7, max_rel_error=1e-6)
    parity = ParityReport(
        checks=(check, replace(check, case="64 rows", equal=False, max_abs_error=0.5)),
        tolerance=1e-4,
        original_ms=1.0,
        exported_ms=0.5,
        rows=64,
        notes=(word,),
    )
    origin = Origin(user=word, machine=word, notebook=f"/x/{name}", commit="1a2b3c4d5e")
    old = Revision(id=1, source=word, digest="sha256:aa", created=word, origin=origin, note=word)
    new = replace(old, id=2, state="running", env={"PASSWORD": word}, image=word, package=place)
    url = "http://127.0.0.1:1"
    release = Release(
        name=name, target="process", revisions=(old, new), weights={1: 90, 2: 10}, url=url, grpc="h:1"
    )
    handle = Deployment(name, Still(release), name)
    failed = Rollout((name, name), _failing(word), held=ExitStack())
    failed.start()
    failed.join(60)
    listed = Deployments([handle])
    listed.rollouts = (failed,)
    layer = ImageLayer(kind="wheel", name=name, digest="", diff_id="", size=150_000_000, unpacked=450_000_000)
    return {
        "Artifact": Artifact(
            path=place,
            format=word,
            signature=Signature(inputs=(spec,), outputs=(spec,)),
            digest="sha256:01",
            parity=parity,
        ),
        "Model": ModelVersion(
            name=name,
            version=3,
            uri=f"models:/{name}/3",
            digest="sha256:01",
            run_id=word,
            tracking_uri=f"https://ann:s3cret@mlflow/{word}",
            tags={"mlopsnb.notebook": word, "mlflow.source.git.commit": "1a2b3c4", word: word},
        ),
        "Image": Image(
            reference=f"reg:5000/{name}@sha256:ab",
            tagged=f"reg:5000/{name}:v3",
            digest="sha256:ab",
            id="sha256:cd",
            destination=Destination(place="registry", registry="reg:5000"),
            builder=word,
            platform=word,
            base=f"{name}@sha256:ef",
            layers=(replace(layer, kind="base"), layer),
            lock=Lock(python="3.11", platform="linux/amd64", packages=()),
            package_digest="sha256:01",
            labels={"org.opencontainers.image.title": name},
            sent=1,
            weights=name,
        ),
        "Deployment": handle,
        "Deployments": displays.Listing(listed),
        "Revisions": displays.History((old, new)),
        "Plan": displays.Plan((Start(new), Check(2), Gate(2, word, 30.0))),
        "log": displays.LogText(f"{word}\n{word}"),
        "Overview": displays.Overview("mlopsnb", [("settings", [("registry", word)])]),
        "doctor": run(
            [("cluster", lambda: Finding("broken", word, word)), ("kernel", lambda: Finding("works", word))]
        ),
        "cleanup": Cleanup(
            removed=((word, 3_400_000),), deployments=((word, word),), skipped=((word, word),)
        ),
        "Differences": _Differences(
            [SimpleNamespace(name=word, notebook=word, lock=word, image="", note=word)]
        ),
        "drift": _drift(name),
        "traffic": Traffic(
            name=name,
            target=name,
            source=f"http://ann:s3cret@{name}",
            revisions=(
                RevisionTraffic(
                    revision=2, source=word, role="canary", share=10, total=window(9), points=(window(9),)
                ),
            ),
        ),
    }


class _Differences(tuple):
    __slots__ = ()

    def __str__(self):
        return ""


def _failing(word):
    def fail():
        raise DeployError(word)

    return fail


def _drift(word):
    values = np.random.default_rng(0).normal(size=(300, 1))
    kinds = [[word, "a"][i % 2] for i in range(300)]
    frames = [pd.DataFrame({word: values[:, 0] + shift, "kind": kinds}) for shift in (0.0, 2.0)]
    return drift(*frames)


_OWN = {
    "Artifact": (displays.artifact_html, displays.artifact_text),
    "Model": (displays.version_html, displays.version_text),
    "Image": (image_displays.image_html, image_displays.image_text),
    "Deployment": (displays.deployment_html, displays.deployment_text),
    "cleanup": (image_displays.cleanup_html, image_displays.cleanup_text),
    "Differences": (image_displays.diff_html, image_displays.diff_text),
}


def gallery(word, place, name=""):
    """Return the HTML and the text of everything that is shown, by what it is; see `records`."""
    shown = {}
    for what, record in records(word, place, name).items():
        html, text = _OWN.get(what, (lambda same: same._repr_html_(), _printed))
        shown[what] = (html(record), text(record))
    for what, now in cards(word).items():
        shown[f"{what} card"] = (to_html(now), to_text(now))
    shown["lines"] = ("", "\n".join(event_line(event, None) for event in events(word)))
    return shown


def _printed(record):
    if isinstance(record, displays.LogText):
        return "\n".join(record._shown())
    return str(record)
