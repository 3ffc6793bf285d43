from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from gallery import Still

from mlopsnb.cleaning import Cleanup
from mlopsnb.deployment import Deployment
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.lock import Lock
from mlopsnb.images.sizes import size_text
from mlopsnb.notebook.displays import (
    LOG_LINES,
    History,
    Listing,
    LogText,
    Overview,
    Plan,
    action_text,
    artifact_html,
    artifact_text,
    deployment_html,
    deployment_text,
    history_or_listing,
    spec_text,
    version_html,
    version_text,
)
from mlopsnb.notebook.image_displays import (
    cleanup_html,
    cleanup_text,
    diff_html,
    diff_text,
    how_to_run,
    image_html,
    image_text,
)
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
from mlopsnb.rollout import Check, Forget, Gate, Scale, Shift, Start, Stop

EVIL = "<script>alert('x')</script>"


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.words.append(data)


def read(html):
    parser = Words()
    parser.feed(html)
    assert "script" not in parser.tags
    colours = re.findall(r"color:([^;\"]*)", html)
    assert all(c.startswith("var(--jp-") or c == "inherit" for c in colours)
    return parser.words


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x" * 3400)
    parity = ParityReport(
        checks=(
            ParityCheck(case="1 row", output="y", equal=True, max_abs_error=1.19e-7, max_rel_error=2e-6),
            ParityCheck(case="64 rows", output="y", equal=False, max_abs_error=0.5, max_rel_error=0.25),
        ),
        tolerance=1e-4,
        original_ms=1.25,
        exported_ms=0.5,
        rows=64,
        notes=("captured by tracing",),
    )
    return Artifact(
        path=tmp_path,
        format="torchscript",
        signature=Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 4)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
        ),
        digest="sha256:0123",
        parity=parity,
    )


def test_artifact(artifact):
    assert artifact_text(artifact) == (
        "Artifact\n"
        "  format   torchscript\n"
        "  digest   sha256:0123\n"
        "  size     3.4 kB\n"
        f"  files    {artifact.path}\n"
        "  parity   1 of 2 checks equal within 0.0001; largest error 0.5 absolute, 0.25 relative\n"
        "  latency  1.25 ms original, 0.5 ms exported (64 rows)\n"
        "  note     captured by tracing\n"
        "          name  type\n"
        "  input   x     float32 [rows, 4]\n"
        "  output  y     float32 [rows]"
    )
    words = read(artifact_html(artifact))
    assert {
        "Artifact",
        "torchscript",
        "3.4 kB",
        "float32 [rows, 4]",
        "✗ differs",
        "1.19e-07",
        "2 parity checks",
    } <= set(words)


def test_an_artifact_whose_files_are_gone(artifact):
    gone = Artifact(path=Path("/nowhere/at/all"), format="f", signature=artifact.signature, digest="d")
    assert "the files are gone" in artifact_text(gone)
    assert "the files are gone" in read(artifact_html(gone))


def test_model_version():
    version = ModelVersion(
        name=EVIL,
        version=3,
        uri="models:/fraud/3",
        digest="sha256:01",
        run_id="r1",
        tracking_uri="https://me:pass@word@mlflow.example/x@y",
        tags={"git.commit": EVIL, "a": "b"},
    )
    assert version_text(version) == (
        f"Model {EVIL}, version 3\n"
        "  uri              models:/fraud/3\n"
        "  digest           sha256:01\n"
        "  run              r1\n"
        "  tracking server  https://mlflow.example/x@y\n"
        "  tag a            b\n"
        f"  tag git.commit   {EVIL}"
    )
    assert f"Model {EVIL}, version 3" in read(version_html(version))


REVISIONS = (
    Revision(
        id=1,
        source="models:/fraud/2",
        digest="sha256:aaaaaaaaaaaaaaaa",
        created="2026-01-01T00:00:00+00:00",
        state="stopped",
        origin=Origin(user="ada", machine="hub", notebook="/home/ada/fraud.ipynb", commit="1a2b3c4d5e"),
    ),
    Revision(
        id=2,
        source="models:/fraud/3",
        digest="sha256:bbbbbbbbbbbbbbbb",
        state="running",
        address="http://127.0.0.1:1",
    ),
)


@pytest.fixture
def deployment():
    release = Release(
        name="fraud", target="process", revisions=REVISIONS, weights={2: 100}, url="http://127.0.0.1:1"
    )
    return Deployment("fraud", Still(release), "process")


def test_deployment(deployment):
    assert deployment_text(deployment) == (
        "Deployment fraud\n"
        "  state         ✗ not ready\n"
        "  target        process\n"
        "  model         models:/fraud/3\n"
        "  revision      2\n"
        "  url           http://127.0.0.1:1\n"
        "  from Python   mlopsnb.get('fraud', target='process').predict(X)\n"
        "  from a shell  curl -s http://127.0.0.1:1/v2/models/fraud"
    )
    assert "curl -s http://127.0.0.1:1/v2/models/fraud" in read(deployment_html(deployment))


def test_a_hubs_server_shows_the_page_of_what_runs_beside_it(deployment, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", '/user/"x/')
    assert '  page          /user/"x/proxy/1/\n' in deployment_text(deployment)
    assert '<a href="/user/&quot;x/proxy/1/"' in deployment_html(deployment)
    elsewhere = Release(
        name="fraud", target="kubernetes", revisions=REVISIONS, weights={2: 100}, url="http://h:1"
    )
    assert "proxy" not in deployment_text(Deployment("fraud", Still(elsewhere), "kubernetes"))


def test_a_deployment_that_is_gone():
    gone = Deployment("fraud", Still(Release(name="fraud", target="process")), "process")
    assert deployment_text(gone) == (
        "Deployment fraud\n  state     ○ deleted\n  target    process\n  model     none\n  revision  none"
    )


def test_listing(deployment):
    listing = Listing((deployment,))
    assert isinstance(listing, tuple)
    assert str(listing) == (
        "name   state        target   model            revision  url\n"
        "fraud  ✗ not ready  process  models:/fraud/3  2         http://127.0.0.1:1"
    )
    assert {"fraud", "✗ not ready", "models:/fraud/3"} <= set(read(listing._repr_html_()))
    assert str(Listing()) == "nothing is deployed"
    assert read(Listing()._repr_html_()) == ["nothing is deployed"]


def test_history_has_the_newest_first():
    assert str(History(REVISIONS)) == (
        "revision  state      model            created                    by       from                    "
        "digest        note\n"
        "2         ✓ running  models:/fraud/3                                                              "
        "bbbbbbbbbbbb\n"
        "1         ○ stopped  models:/fraud/2  2026-01-01T00:00:00+00:00  ada@hub  fraud.ipynb at 1a2b3c4  "
        "aaaaaaaaaaaa"
    )


def test_plain_tuples_of_records_are_recognised(deployment):
    assert history_or_listing(REVISIONS) == History(REVISIONS)._repr_html_()
    assert history_or_listing((deployment,)) == Listing((deployment,))._repr_html_()
    assert history_or_listing(()) is None
    assert history_or_listing((1, *REVISIONS)) is None


def test_plan():
    plan = Plan((Start(REVISIONS[1]), Check(2), Shift({2: 100}), Stop(1), Forget()))
    assert str(plan) == (
        "Plan (nothing was done)\n"
        "   action  details\n"
        "1  start   run revision 2 (models:/fraud/3) beside what serves; no traffic yet\n"
        "2  check   revision 2 must answer its example as the original model did\n"
        "3  shift   traffic: 100 % to revision 2\n"
        "4  stop    revision 1 ends what it has in flight, then stops\n"
        "5  forget  stop all revisions and remove the name with its history"
    )
    assert "traffic: 100 % to revision 2" in read(plan._repr_html_())
    assert [
        action_text(a) for a in (Gate(2, "qps>1", 30), Gate(2, "", 5), Scale(2, 3), Shift({2: 10, 1: 90}))
    ] == [
        "revision 2 must keep qps>1 for 30 s",
        "revision 2 must keep its traffic for 5 s",
        "revision 2 in 3 replicas",
        "traffic: 90 % to revision 1, 10 % to revision 2",
    ]


def test_a_deployment_with_a_canary_says_who_gets_what():
    both = tuple(replace(r, state="running") for r in REVISIONS)
    release = Release(name="fraud", target="docker", revisions=both, weights={1: 90, 2: 10}, url="http://h:1")
    text = deployment_text(Deployment("fraud", Still(release), "docker"))
    assert "traffic       revision 1 (stable): 90 %, revision 2 (canary): 10 %\n" in text


def test_log_shows_the_last_lines_and_keeps_all():
    log = LogText("\n".join(f"line {i} {EVIL}" for i in range(LOG_LINES + 50)))
    words = "".join(read(log._repr_html_()))
    assert "… 50 earlier lines left out; all are in the value" in words
    assert f"line 50 {EVIL}" in words
    assert "line 49 " not in words
    assert "line 0 " in log
    assert read(LogText("")._repr_html_()) == ["the log is empty"]


def test_overview_names_each_section_once():
    overview = Overview(
        "mlopsnb", [("settings", [("target", "process"), ("timeout", "600")]), ("packages", [("torch", "2")])]
    )
    assert str(overview) == "mlopsnb\nsettings\n  target   process\n  timeout  600\npackages\n  torch  2"
    assert read(overview._repr_html_()) == [
        *("mlopsnb", "settings", "target", "process", "timeout", "600", "packages", "torch", "2"),
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_600, "1.0 MB"),
        (123_456_789, "123 MB"),
        (5e12, "5000 GB"),
    ],
)
def test_size_text(size, text):
    assert size_text(size) == text


def test_spec_text():
    assert spec_text(TensorSpec(name="x", dtype="int64", shape=(None, None, 3))) == "int64 [rows, any, 3]"
    assert spec_text(TensorSpec(name="x", dtype="int64", shape=())) == "int64 []"


IMAGE = Image(
    reference="127.0.0.1:5000/team/fraud@sha256:" + "ab" * 32,
    tagged="127.0.0.1:5000/team/fraud:v3-1a2b3c4",
    digest="sha256:" + "ab" * 32,
    id="sha256:" + "cd" * 32,
    destination=Destination(place="registry", registry="127.0.0.1:5000/team"),
    builder="oci",
    platform="linux/amd64",
    base="python:3.11-slim@sha256:" + "ef" * 32,
    layers=(
        ImageLayer(kind="base", name="1", digest="", diff_id="", size=30_000_000, unpacked=90_000_000),
        ImageLayer(kind="base", name="2", digest="", diff_id="", size=20_000_000, unpacked=60_000_000),
        ImageLayer(kind="wheel", name=EVIL, digest="", diff_id="", size=150_000_000, unpacked=450_000_000),
    ),
    lock=Lock(python="3.11", platform="linux/amd64", packages=()),
    package_digest="sha256:" + "01" * 32,
    labels={"org.opencontainers.image.title": "fraud"},
    sent=150_000_000,
)


def test_image_text():
    assert image_text(IMAGE) == (
        "Image 127.0.0.1:5000/team/fraud:v3-1a2b3c4\n"
        f"  reference        127.0.0.1:5000/team/fraud@sha256:{'ab' * 32}\n"
        "  digest           abababababab\n"
        "  size             200 MB compressed; unpacked, 450 MB above the base\n"
        "  this build sent  150 MB\n"
        f"  base             python:3.11-slim@sha256:{'ef' * 32}\n"
        "  platform         linux/amd64\n"
        "  builder          oci\n"
        "  run it           docker run --rm --read-only --cap-drop ALL -p 8080:8080"
        f" 127.0.0.1:5000/team/fraud@sha256:{'ab' * 32}\n"
        "  on Kubernetes    kubectl create deployment fraud"
        f" --image=127.0.0.1:5000/team/fraud@sha256:{'ab' * 32} --port=8080\n"
        "  layer  holds                        size     unpacked  share\n"
        "  base   python:3.11-slim             50.0 MB  150 MB    ███           25%\n"
        "  wheel  <script>alert('x')</script>  150 MB   450 MB    █████████     75%"
    )


def test_image_html_is_escaped_and_needs_no_script():
    words = read(image_html(IMAGE))
    assert EVIL in words
    assert "75% " in words


@pytest.mark.parametrize(
    ("to", "command"),
    [
        (Destination(place="engine"), "docker run --rm --read-only --cap-drop ALL -p 8080:8080 fraud:v3"),
        (Destination(place="archive", path=Path("/a b/x.tar")), "docker load --input '/a b/x.tar'"),
        (
            Destination(place="layout", path=Path("/x")),
            "skopeo copy oci:/x:v3 docker://REGISTRY/fraud:v3",
        ),
    ],
)
def test_how_to_run_an_image(to, command):
    image = replace(IMAGE, tagged="fraud:v3", reference="fraud:v3", destination=to)
    assert command in [str(row[1]) for row in how_to_run(image)]


def test_cleanup():
    done = Cleanup(removed=(("packed layers", 3_400_000), ("environments", 600_000)))
    assert cleanup_text(done) == "4.0 MB freed\n  packed layers  3.4 MB\n  environments   600 kB"
    assert "4.0 MB would be freed (nothing was done)" in read(cleanup_html(replace(done, dry_run=True)))
    assert cleanup_text(Cleanup(removed=())) == "there was nothing to clean up"


class Differences(tuple):
    def __str__(self):
        return "as text" if self else "the image has what the notebook has"


def test_differences_of_an_image():
    one = SimpleNamespace(name="numpy", notebook="2.4.6", lock="2.4.5", image="", note="<b>older</b>")
    assert {"numpy", "2.4.6", "2.4.5", "-", "<b>older</b>"} <= set(read(diff_html(Differences([one]))))
    assert diff_text(Differences([one])) == "as text"
    assert read(diff_html(Differences())) == ["the image has what the notebook has"]
