"""The vulnerability gate: reports as the scanners write them, and a scanner that is missing, broken or silent."""

from __future__ import annotations

import json
import stat

import pytest

from mlopsnb.errors import BuildError, GateRejected, UserError
from mlopsnb.images import scanning
from mlopsnb.images.scanning import Finding, gate, severity

TRIVY = {
    "SchemaVersion": 2,
    "Results": [
        {"Target": "python", "Class": "lang-pkgs"},
        {
            "Target": "Python",
            "Vulnerabilities": [
                {
                    "VulnerabilityID": "CVE-2024-22195",
                    "PkgName": "jinja2",
                    "InstalledVersion": "2.10",
                    "FixedVersion": "3.1.3, 2.11.9",
                    "Severity": "MEDIUM",
                },
                {
                    "VulnerabilityID": "CVE-2099-0001",
                    "PkgName": "torch",
                    "InstalledVersion": "2.13.0+cpu",
                    "Severity": "CRITICAL",
                },
            ],
        },
    ],
}
GRYPE = {
    "matches": [
        {
            "vulnerability": {
                "id": "GHSA-h5c8-rqwp-cp95",
                "severity": "Medium",
                "fix": {"versions": ["3.1.3"], "state": "fixed"},
            },
            "artifact": {"name": "jinja2", "version": "2.10"},
        },
        {
            "vulnerability": {"id": "CVE-1", "severity": "Negligible", "fix": {"versions": []}},
            "artifact": {"name": "libc6", "version": "2.36"},
        },
    ]
}


@pytest.fixture
def scanner(tmp_path, monkeypatch):
    """Put a program on an otherwise empty PATH that prints a report as *name* would, and notes how it was called."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(name, report, code=0):
        said = report if isinstance(report, str) else json.dumps(report)
        (tmp_path / "report").write_text(said)
        script = f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n/bin/cat {tmp_path}/report\nexit {code}\n'
        path = tmp_path / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return lambda: (tmp_path / "calls").read_text().splitlines()

    return install


def test_trivy_looks_at_the_bill_and_at_the_base(scanner):
    calls = scanner("trivy", {"Results": None})
    assert gate(b"{}", "python@sha256:0b", fail_on="low") == ()
    sbom, image = calls()
    assert sbom.startswith("sbom --format json --quiet /")
    assert sbom.endswith("/sbom.cdx.json")
    assert image == "image --format json --quiet python@sha256:0b"


def test_grype_looks_at_the_bill_and_at_the_base(scanner):
    calls = scanner("grype", GRYPE)
    found = gate(b"{}", "python@sha256:0b", fail_on="high")
    assert found == (
        Finding(id="GHSA-h5c8-rqwp-cp95", package="jinja2", version="2.10", severity="medium", fixed="3.1.3"),
        Finding(id="CVE-1", package="libc6", version="2.36", severity="negligible"),
    )
    assert calls()[1] == "python@sha256:0b -o json -q"


def test_a_grave_finding_stops_the_build_and_says_what_would_help(scanner):
    scanner("trivy", TRIVY)
    with pytest.raises(GateRejected) as caught:
        gate(b"{}", "python", fail_on="medium")
    lines = str(caught.value).splitlines()
    assert lines[0] == "trivy found 2 vulnerabilities of severity medium or graver; nothing was built:"
    assert lines[1] == "  CVE-2099-0001 (critical) in torch 2.13.0+cpu"
    assert lines[2] == "  CVE-2024-22195 (medium) in jinja2 2.10, fixed in 3.1.3"
    assert "jinja2==3.1.3" in lines[3]


def test_lesser_findings_are_returned(scanner):
    scanner("trivy", {"Results": [{"Vulnerabilities": TRIVY["Results"][1]["Vulnerabilities"][:1]}]})
    assert [f.id for f in gate(b"{}", "python", fail_on="high")] == ["CVE-2024-22195"]


def test_without_a_scanner_nothing_passes(scanner):
    with pytest.raises(BuildError, match="no vulnerability scanner on the PATH"):
        gate(b"{}", "python", fail_on="high")


@pytest.mark.parametrize("said", ["", "FATAL database not found"])
def test_a_scanner_that_fails_lets_nothing_pass(scanner, said):
    scanner("trivy", said, code=1)
    with pytest.raises(BuildError, match="trivy ended with 1 and no report"):
        gate(b"{}", "python", fail_on="high")


def test_a_severity_is_one_of_four():
    assert severity("High") == "high"
    with pytest.raises(UserError, match="did you mean 'critical'"):
        severity("critcal")
    assert scanning.SEVERITIES == ("low", "medium", "high", "critical")
