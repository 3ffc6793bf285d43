from pathlib import Path

import pytest

from mlopsnb.errors import InvalidSettings
from mlopsnb.settings import set_for_session, settings


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for key in ("TARGET", "CACHE_DIR", "STATE_DIR", "TIMEOUT", "STATUS"):
        monkeypatch.delenv(f"MLOPSNB_{key}", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    set_for_session(target=None, timeout=None, status=None)


def test_argument_beats_session_beats_environment_beats_pyproject_beats_default(monkeypatch, tmp_path):
    assert settings().timeout == 600
    (tmp_path / "pyproject.toml").write_text("[tool.mlopsnb]\ntimeout = 1\n")
    assert settings().timeout == 1
    monkeypatch.setenv("MLOPSNB_TIMEOUT", "2")
    assert settings().timeout == 2
    set_for_session(timeout=3)
    assert settings().timeout == 3
    assert settings(timeout=4).timeout == 4
    set_for_session(timeout=None)
    assert settings().timeout == 2


def test_the_nearest_pyproject_counts(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlopsnb]\ntarget = 'docker'\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert settings().target == "docker"


def test_directories_follow_xdg_and_expand_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert settings().state_dir == tmp_path / "mlopsnb"
    monkeypatch.setenv("MLOPSNB_STATE_DIR", "~/x")
    assert settings().state_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targett": "x"}, "no setting named 'targett'.*\n.*did you mean 'target'"),
        ({"timeout": "soon"}, "positive number of seconds, found 'soon'"),
        ({"timeout": -1}, "positive number"),
        ({"timeout": "nan"}, "positive number"),
        ({"status": "wdget"}, "must be one of .*\n.*did you mean 'widget'"),
    ],
)
def test_wrong_settings_name_the_right_ones_and_change_nothing(values, message):
    with pytest.raises(InvalidSettings, match=message):
        set_for_session(target="docker", **values)
    assert settings().target == "process"


def test_a_misspelled_variable_is_an_error_and_a_foreign_one_is_not(monkeypatch):
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", "x")
    settings()
    monkeypatch.setenv("MLOPSNB_TARGE", "docker")
    with pytest.raises(InvalidSettings, match="did you mean 'target'"):
        settings()


def test_a_broken_pyproject_is_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlopsnb\n")
    with pytest.raises(InvalidSettings, match="pyproject.toml cannot be read"):
        settings()
