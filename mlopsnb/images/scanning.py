"""The vulnerability gate: a scanner on the PATH looks at the wheels and at the base before anything is packed.

It speaks to trivy (https://trivy.dev/latest/docs/target/sbom) and to grype (https://github.com/anchore/grype), which
keep their databases themselves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlopsnb.errors import BuildError, GateRejected, UserError, nearest
from mlopsnb.images.sbom import FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_SCANNERS = ("trivy", "grype")
_SECONDS = 900
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One known vulnerability of one package; `fixed` is the version without it, if there is one."""

    id: str
    package: str
    version: str
    severity: str
    fixed: str = ""

    def __str__(self) -> str:
        fix = f", fixed in {self.fixed}" if self.fixed else ""
        return f"{self.id} ({self.severity}) in {self.package} {self.version}{fix}"


def severity(asked: str) -> Severity:
    """Return *asked* as a severity, or raise `UserError`."""
    for known in SEVERITIES:
        if asked.lower() == known:
            return known
    raise UserError(
        f"no severity {asked!r}; there are {', '.join(SEVERITIES)}", hint=nearest(asked.lower(), SEVERITIES)
    )


def gate(bill: bytes, base: str, *, fail_on: Severity) -> tuple[Finding, ...]:
    """Have the bill of materials *bill* and the image *base* scanned; return what was found, the gravest first.

    Raises `GateRejected` if a vulnerability is of severity *fail_on* or graver, `BuildError` if there is no scanner or
    it fails: what could not be looked at is not let through.
    """
    scanner = next((name for name in _SCANNERS if shutil.which(name)), None)
    if scanner is None:
        raise BuildError(
            f"no vulnerability scanner on the PATH; looked for {' and '.join(_SCANNERS)}",
            hint="install one of them (https://trivy.dev), or leave scan= out",
        )
    with tempfile.TemporaryDirectory(prefix="mlopsnb-scan-") as scratch:
        path = Path(scratch) / FILE
        path.write_bytes(bill)
        if scanner == "trivy":
            commands = [("sbom", str(path)), ("image", base)]
            runs = [_run(scanner, c, "--format", "json", "--quiet", what) for c, what in commands]
            found = {f for run in runs for f in _from_trivy(run)}
        else:
            runs = [_run(scanner, what, "-o", "json", "-q") for what in (f"sbom:{path}", base)]
            found = {f for run in runs for f in _from_grype(run)}
    ranked = tuple(sorted(found, key=lambda f: (-_rank(f.severity), f.package, f.id)))
    if grave := [f for f in ranked if _rank(f.severity) >= _rank(fail_on)]:
        raise GateRejected(_report(grave, scanner, fail_on), hint=_advice(grave))
    return ranked


def _rank(name: str) -> int:
    return SEVERITIES.index(severity(name)) + 1 if name in SEVERITIES else 0


def _report(grave: Sequence[Finding], scanner: str, fail_on: str) -> str:
    many = f"{len(grave)} vulnerabilit{'y' if len(grave) == 1 else 'ies'}"
    lines = [f"  {finding}" for finding in grave[:_SHOWN]]
    if len(grave) > _SHOWN:
        lines.append(f"  and {len(grave) - _SHOWN} more")
    return "\n".join([f"{scanner} found {many} of severity {fail_on} or graver; nothing was built:", *lines])


def _advice(grave: Iterable[Finding]) -> str:
    fixes = sorted({f"{f.package}=={f.fixed}" for f in grave if f.fixed})
    if fixes:
        return (
            f"there are versions without: {', '.join(fixes[:_SHOWN])}; install them, export the model again"
        )
    return "give another base=…, or raise scan= once they were judged"


def _run(scanner: str, *arguments: str) -> Any:
    """Run the scanner and return what it prints, as JSON."""
    try:
        done = subprocess.run(  # noqa: S603  found on the PATH by its name, and no shell
            [scanner, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{scanner} could not be run: {exc}") from exc
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(
            f"{scanner} ended with {done.returncode} and no report: {said[-1][:300] if said else 'it said nothing'}",
            hint=f"run `{scanner} {arguments[0]}` by hand; its database may have to be loaded first",
        ) from None


def _from_trivy(report: Any) -> Iterator[Finding]:
    for result in report.get("Results") or ():
        for found in result.get("Vulnerabilities") or ():
            yield Finding(
                id=found["VulnerabilityID"],
                package=found["PkgName"],
                version=found.get("InstalledVersion", ""),
                severity=found.get("Severity", "unknown").lower(),
                fixed=found.get("FixedVersion", "").partition(",")[0].strip(),
            )


def _from_grype(report: Any) -> Iterator[Finding]:
    for match in report.get("matches") or ():
        found, package = match["vulnerability"], match["artifact"]
        yield Finding(
            id=found["id"],
            package=package["name"],
            version=package.get("version", ""),
            severity=found.get("severity", "unknown").lower(),
            fixed=next(iter(found.get("fix", {}).get("versions") or ()), ""),
        )
