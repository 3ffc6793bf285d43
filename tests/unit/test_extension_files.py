"""The JupyterLab extension is installed as it lies in the repository."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import mlopsnb
from mlopsnb.notebook import server

ROOT = Path(__file__).parents[2]
LAB = ROOT / "extensions" / "share" / "jupyter" / "labextensions" / "mlopsnb"


def test_the_wheel_brings_both_halves_of_the_same_version():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["shared-data"] == {"extensions/etc": "etc", "extensions/share": "share"}
    package = json.loads((LAB / "package.json").read_text())
    assert package["version"] == mlopsnb.__version__
    assert (LAB / package["jupyterlab"]["_build"]["load"]).is_file()
    config = ROOT / "extensions" / "etc" / "jupyter" / "jupyter_server_config.d" / "mlopsnb.json"
    enabled = json.loads(config.read_text())["ServerApp"]["jpserver_extensions"]
    assert [point["module"] for point in server._jupyter_server_extension_points()] == list(enabled)


def test_scripts_set_text_and_never_html():
    scripts = {path.name: path.read_text() for path in (LAB / "static").glob("*.js")}
    assert len(scripts) == 7
    for name, text in scripts.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), name
        assert "http:" not in text.replace("https:", "http:"), name
        for imported in re.findall(r'from "\./([\w.]+)"', text):
            assert imported in scripts
