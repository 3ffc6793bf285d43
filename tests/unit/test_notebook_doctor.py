from __future__ import annotations

import threading

import pytest

from mlopsnb.errors import DeployError, MissingExtra
from mlopsnb.notebook import doctor, doctor_checks
from mlopsnb.notebook.doctor import Check, Checkup, Finding
from mlopsnb.notebook.doctor_checks import numbers


def raising(error):
    def check():
        raise error

    return check


def test_whatever_a_check_does_is_a_row(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    never = threading.Event()
    found = doctor.run(
        [
            ("well", lambda: Finding("works", "all of it")),
            ("own", raising(DeployError("no <port>", hint="use 0"))),
            ("absent", raising(MissingExtra("docker", "docker"))),
            ("foreign", raising(OSError("https://ann:s3cret@host is gone"))),
            ("late", lambda: never.wait() and Finding("works", "")),
        ]
    )
    never.set()
    assert [(c.name, c.state) for c in found] == [
        ("well", "works"),
        ("own", "broken"),
        ("absent", "missing"),
        ("foreign", "broken"),
        ("late", "broken"),
    ]
    assert found[1].hint == "use 0"
    assert found[3].found == "OSError: https://host is gone"
    assert found[4].found.startswith("no answer within")
    assert not found.ok


def test_checks_run_at_the_same_time():
    meet = threading.Barrier(3, timeout=20)
    found = doctor.run([(str(i), lambda: meet.wait() is not None and Finding("works", "")) for i in range(3)])
    assert found.ok


TABLE = Checkup(
    [
        Check("kernel", "works", "Python 3.11", ""),
        Check("registry", "broken", "no <answer>", "log & try again"),
    ]
)


def test_text():
    assert str(TABLE) == (
        "does not work here: registry\n"
        "  kernel    ✓ works   Python 3.11\n"
        "  registry  ✗ broken  no <answer>\n"
        "      log & try again"
    )
    assert str(TABLE[:1]) != ""
    assert str(Checkup(TABLE[:1])).startswith("what is set up here works\n")


def test_html():
    html = TABLE._repr_html_()
    assert "no &lt;answer&gt;" in html
    assert "log &amp; try again" in html
    assert "✗ broken" in html


@pytest.mark.parametrize(
    ("version", "read"), [("7.0.1rc2", (7, 0, 1)), ("6.29", (6, 29)), ("", ()), ("dev", ())]
)
def test_numbers(version, read):
    assert numbers(version) == read


class Kernel:
    kernel = object()


@pytest.mark.parametrize(
    ("installed", "state"),
    [("7.4.0", "works"), ("7.0.1", "limited"), ("6.28.0", "limited"), ("6.31.0", "works")],
)
def test_kernel(monkeypatch, installed, state):
    monkeypatch.setattr(doctor_checks, "_version", lambda package: installed)
    assert doctor_checks.kernel(Kernel()).state == state


def test_widgets(monkeypatch):
    assert doctor_checks.widgets(None, "lines").found == "progress is printed in lines"
    assert doctor_checks.widgets(Kernel(), "widget").found.startswith("ipywidgets 8")
    assert "outputs are updated" in doctor_checks.widgets(Kernel(), "display").found
    monkeypatch.setattr(doctor_checks, "_version", lambda package: "")
    assert doctor_checks.widgets(Kernel(), "display").state == "missing"
    monkeypatch.setenv("MLOPSNB_STATUS", "lines")
    assert "status=lines" in doctor_checks.widgets(Kernel(), "display").found


# docker-py leaves a socket open when nobody answers.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_named_and_does_not_answer_is_broken_and_nothing_secret_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9/")
    monkeypatch.setattr("sys.modules", {k: v for k, v in __import__("sys").modules.items() if k != "mlflow"})
    monkeypatch.setenv("MLOPSNB_REGISTRY", "127.0.0.1:9/team")
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", "127.0.0.1:9/python:3.11-slim")
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(doctor, "PATIENCE", 3.0)  # a registry is asked again and again for longer
    found = {check.name: check for check in doctor.doctor()}
    assert [name for name, check in found.items() if check.state == "broken"] == [
        "MLflow",
        "engine",
        "registry",
        "base image",
    ]
    assert all(check.hint for check in found.values() if check.state == "broken")
    assert "s3cret" not in str(found)


def test_what_is_not_set_up_is_missing_not_broken(monkeypatch, tmp_path):
    for name in ("DOCKER_HOST", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor_checks.cluster().state == "missing"
    assert doctor_checks.registry().state == "missing"
