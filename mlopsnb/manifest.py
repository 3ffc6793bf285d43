"""`model.json`: what a model package says of itself. Written by export, read by the runtime and by image builds.

A package is a directory: `model.json`, the format's files under `model/`, and `example.npz`, the golden
example with the original model's answers. `protocol` is raised when an older runtime could misread a newer
package; a reader refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import UserError
from mlopsnb.records import Artifact, ParityCheck, ParityReport, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

PROTOCOL = 1
FILE = "model.json"
MODEL_DIR = "model"
EXAMPLE_FILE = "example.npz"


class BadPackage(UserError):
    """A directory is no model package, or not the one that was exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `model.json`.

    `files` maps each path in the package to its `sha256:…` digest; `example_dtypes` maps each input to the dtype in
    which its example was given, which its signature may have narrowed.
    """

    format: str
    signature: Signature
    files: Mapping[str, str]
    requirements: tuple[str, ...] = ()
    example_dtypes: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    created: str = ""
    parity: ParityReport | None = None
    protocol: int = PROTOCOL

    @property
    def digest(self) -> str:
        """Identify what the package does: its format, signature and files; not when or where it was made."""
        core = {
            "format": self.format,
            "signature": dataclasses.asdict(self.signature),
            "files": dict(sorted(self.files.items())),
            "requirements": list(self.requirements),
            "example_dtypes": dict(self.example_dtypes),
        }
        return "sha256:" + hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()


def file_digests(package: Path) -> dict[str, str]:
    """Return the digest of every file of *package* but the manifest, by its path there."""
    found = sorted(p for p in package.rglob("*") if p.is_file() and p != package / FILE)
    return {p.relative_to(package).as_posix(): _sha256(p) for p in found}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write(package: Path, manifest: Manifest) -> None:
    """Write *manifest* into *package*."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True)
    (package / FILE).write_text(text + "\n", encoding="utf-8")


def read(package: Path) -> Manifest:
    """Read the manifest of *package*; `BadPackage` if there is none, or none that we can read."""
    try:
        data = json.loads((package / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadPackage(f"{package} is no model package: it holds no {FILE}") from None
    except (OSError, ValueError) as exc:
        raise BadPackage(f"{package / FILE} cannot be read: {exc}") from exc
    found = data.get("protocol") if isinstance(data, dict) else None
    if found != PROTOCOL:
        raise BadPackage(
            f"{package / FILE} has protocol {found!r}; this mlopsnb reads {PROTOCOL}",
            hint="export the model again, or install the mlopsnb that wrote it",
        )
    try:
        return _manifest(data)
    except (KeyError, TypeError, ValueError) as exc:
        raise BadPackage(f"{package / FILE} is not a manifest: {exc!r}") from exc


def _manifest(data: dict[str, Any]) -> Manifest:
    parity = data.pop("parity")
    signature = data.pop("signature")
    requirements = tuple(data.pop("requirements"))
    return Manifest(
        **data,
        requirements=requirements,
        signature=Signature(
            inputs=tuple(map(_spec, signature["inputs"])), outputs=tuple(map(_spec, signature["outputs"]))
        ),
        parity=parity and _parity(parity),
    )


def _spec(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        **{**data, "shape": tuple(data["shape"]), "feature_names": tuple(data["feature_names"])},
    )


def _parity(data: dict[str, Any]) -> ParityReport:
    checks = tuple(ParityCheck(**{**c, "worst": tuple(c["worst"])}) for c in data["checks"])
    return ParityReport(**{**data, "checks": checks, "notes": tuple(data["notes"])})


def verify(package: Path, manifest: Manifest) -> None:
    """Compare the files of *package* with their digests; `BadPackage` names each that is missing or changed."""
    found = file_digests(package)
    apart = [name for name in manifest.files if name not in found and (package / name).is_symlink()]
    if apart:
        place = (package / apart[0]).readlink()
        raise BadPackage(
            f"the weights of {package} are kept apart, and {place} is not there",
            hint="mount them there, or run the image of the weights first, with a volume in that place",
        )
    problems = [f"{name} is missing" for name in manifest.files if name not in found]
    problems += [f"{name} was changed" for name, d in manifest.files.items() if found.get(name, d) != d]
    problems += [f"{name} does not belong there" for name in found if name not in manifest.files]
    if problems:
        raise BadPackage(
            f"{package} is damaged: {'; '.join(problems[:5])}", hint="export or fetch the model again"
        )


def artifact(package: Path) -> Artifact:
    """Return the package in directory *package* as an `Artifact`."""
    manifest = read(package)
    return Artifact(
        path=package,
        format=manifest.format,
        signature=manifest.signature,
        digest=manifest.digest,
        requirements=manifest.requirements,
        parity=manifest.parity,
    )


def write_example(package: Path, inputs: Arrays, outputs: Arrays) -> None:
    """Store the golden example: what went into the original model and what came out. Text as fixed-width unicode."""
    import numpy as np

    arrays = {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
    plain = {k: v.astype(str) if v.dtype.kind == "O" else v for k, v in arrays.items()}
    with (package / EXAMPLE_FILE).open("wb") as file:
        np.savez(file, allow_pickle=False, **plain)


def read_example(package: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the golden inputs and outputs of *package*, by name."""
    import numpy as np

    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    with np.load(package / EXAMPLE_FILE, allow_pickle=False) as stored:
        for key in stored.files:
            side, _, name = key.partition("/")
            array = stored[key]
            (inputs if side == "in" else outputs)[name] = (
                array.astype(object) if array.dtype.kind == "U" else array
            )
    return inputs, outputs
