from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from mlopsnb import manifest
from mlopsnb.records import ParityReport, Signature
from mlopsnb.tensors import specs_of
from mlopsnb.tracking import provenance
from mlopsnb.tracking.fingerprint import data_digest


def git(directory, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=directory, check=True, capture_output=True).stdout


@pytest.fixture
def alone(monkeypatch, tmp_path):
    for variable in ("MLOPSNB_NOTEBOOK", "JPY_SESSION_NAME", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "_shell", lambda: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repository(alone, tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("lr = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "start")
    return tmp_path


@pytest.fixture
def artifact(tmp_path):
    package = tmp_path / "package"
    (package / "model").mkdir(parents=True)
    (package / "model" / "weights").write_bytes(b"1")
    x = {"x": np.ones((2, 3), "float32")}
    manifest.write_example(package, x, x)
    parity = ParityReport(checks=(), tolerance=1e-4, original_ms=1.5, exported_ms=0.5, rows=2)
    signature = Signature(inputs=specs_of(x), outputs=specs_of(x))
    files = manifest.file_digests(package)
    manifest.write(
        package, manifest.Manifest(format="other", signature=signature, files=files, parity=parity)
    )
    return manifest.artifact(package)


def test_a_clean_commit(repository):
    head = git(repository, "rev-parse", "HEAD").decode().strip()
    assert provenance.git_tags(repository) == {"mlflow.source.git.commit": head, "mlopsnb.git.dirty": "false"}


def test_uncommitted_work_is_known_by_its_digest_only(repository):
    (repository / "train.py").write_text("password = 'hunter2'\n")
    below = repository / "below"
    below.mkdir()
    digest = hashlib.sha256(git(repository, "diff", "HEAD")).hexdigest()
    tags = provenance.git_tags(below)
    assert tags["mlopsnb.git.dirty"] == "true"
    assert tags["mlopsnb.git.diff_digest"] == f"sha256:{digest}"
    assert "hunter2" not in str(tags)


def test_staged_work_is_uncommitted_too(repository):
    (repository / "train.py").write_text("lr = 2\n")
    git(repository, "add", ".")
    assert provenance.git_tags(repository)["mlopsnb.git.dirty"] == "true"


def test_remotes_are_not_recorded(repository):
    git(repository, "remote", "add", "origin", "https://me:secret@git.example/x.git")
    assert "git.example" not in str(provenance.git_tags(repository))


def test_no_repository_no_tags(alone, tmp_path):
    assert provenance.git_tags(tmp_path) == {}


def test_a_repository_without_commits_has_no_tags(alone, tmp_path):
    git(tmp_path, "init", "-q")
    assert provenance.git_tags(tmp_path) == {}


def test_without_git_there_are_no_tags(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_tags(repository) == {}


def test_a_slow_git_is_not_waited_for(repository, monkeypatch):
    monkeypatch.setattr(provenance, "GIT_TIMEOUT", 0.0)
    assert provenance.git_tags(repository) == {}


def test_a_directory_that_is_gone_has_no_tags(alone, tmp_path):
    assert provenance.git_tags(tmp_path / "gone") == {}


def test_what_the_user_says_comes_before_what_jupyter_says(alone, monkeypatch):
    assert provenance.notebook_path() == ""
    shell = SimpleNamespace(user_ns={"__vsc_ipynb_file__": "/c.ipynb"})
    monkeypatch.setattr(provenance, "_shell", lambda: shell)
    assert provenance.notebook_path() == "/c.ipynb"
    monkeypatch.setenv("JPY_SESSION_NAME", "/b.ipynb")
    assert provenance.notebook_path() == "/b.ipynb"
    monkeypatch.setenv("MLOPSNB_NOTEBOOK", "/a.ipynb")
    assert provenance.notebook_path() == "/a.ipynb"


def test_the_cell_that_runs_is_taken_from_a_real_shell(monkeypatch, tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell.instance()
    try:
        shell.run_cell(
            "from mlopsnb.tracking import provenance as p\nfound = p.cell_source()", store_history=True
        )
        assert (
            shell.user_ns["found"] == "from mlopsnb.tracking import provenance as p\nfound = p.cell_source()"
        )
    finally:
        shell.history_manager.end_session()
        InteractiveShell.clear_instance()


def test_everything_together(repository, artifact, monkeypatch):
    cell = "%deploy model --name fraud"
    history = SimpleNamespace(input_hist_raw=["", cell])
    shell = SimpleNamespace(user_ns={}, history_manager=history, kernel=object())
    monkeypatch.setattr(provenance, "_shell", lambda: shell)
    notebook = str(repository / "fraud.ipynb")
    monkeypatch.setenv("JPY_SESSION_NAME", notebook)
    reference = np.arange(6.0).reshape(2, 3)
    assert provenance.collect(artifact, reference=reference, environment="a==1\n") == {
        "mlflow.source.git.commit": git(repository, "rev-parse", "HEAD").decode().strip(),
        "mlopsnb.git.dirty": "false",
        "mlflow.source.type": "NOTEBOOK",
        "mlflow.source.name": notebook,
        "mlopsnb.notebook": notebook,
        "mlopsnb.cell_digest": f"sha256:{hashlib.sha256(cell.encode()).hexdigest()}",
        "mlopsnb.artifact_digest": artifact.digest,
        "mlopsnb.format": "other",
        "mlopsnb.parity.max_abs_error": "0",
        "mlopsnb.parity.max_rel_error": "0",
        "mlopsnb.parity.tolerance": "0.0001",
        "mlopsnb.parity.original_ms": "1.5",
        "mlopsnb.parity.exported_ms": "0.5",
        "mlopsnb.data_digest": data_digest(reference),
        "mlopsnb.environment_digest": f"sha256:{hashlib.sha256(b'a==1' + bytes([10])).hexdigest()}",
    }


def test_outside_a_notebook_the_example_is_the_data(alone, artifact):
    tags = provenance.collect(artifact)
    assert not [name for name in tags if "source" in name or "notebook" in name or "cell" in name]
    assert tags["mlopsnb.data_digest"] == data_digest({"x": np.ones((2, 3), "float32")})
    assert "mlopsnb.environment_digest" not in tags


def test_who_works_here_and_where(repository, monkeypatch):
    (repository / "fraud.ipynb").touch()
    monkeypatch.setenv("MLOPSNB_NOTEBOOK", str(repository / "fraud.ipynb"))
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    found = provenance.origin()
    assert (found.user, found.notebook) == ("ada", str(repository / "fraud.ipynb"))
    assert found.commit == git(repository, "rev-parse", "HEAD").decode().strip()
    assert found.machine == platform.node()


def test_a_user_without_a_name_is_a_number(alone, monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)
    monkeypatch.setattr("getpass.getuser", nameless)
    assert provenance.origin().user == str(os.geteuid())
    assert provenance.origin().commit == ""
