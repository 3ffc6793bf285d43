"""The bill of materials of an image, as CycloneDX: every wheel with its digest, who needs it, and the base. Pure.

It has no time and no serial number, so that equal images have equal bills.
Sources: https://cyclonedx.org/docs/1.6/json; https://github.com/package-url/purl-spec (type `pypi`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock, LockedPackage

MEDIA_TYPE = "application/vnd.cyclonedx+json"
FILE = "sbom.cdx.json"


def bill(*, name: str, tag: str, base: str, base_digest: str, lock: Lock) -> dict[str, Any]:
    """Return the bill of the image *name*:*tag* that stands on *base* and holds *lock*.

    *base* is a reference without a digest, which is `base_digest`.
    """
    image = f"pkg:oci/{quote(name, safe='')}?tag={quote(tag, safe='')}"
    below = (
        f"pkg:oci/{quote(base.rpartition('/')[2].partition(':')[0], safe='')}@{quote(base_digest, safe='')}"
    )
    refs = {p.name: _purl(p) for p in lock.packages}
    needs: dict[str, list[str]] = {ref: [] for ref in (image, below, *refs.values())}
    needs[image].append(below)
    for package in lock.packages:
        wanting = [refs[who] for who in package.wanted_by if who in refs]
        for who in wanting or [image]:
            needs[who].append(refs[package.name])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image,
                "purl": image,
                "name": name,
                "version": tag,
            }
        },
        "components": [
            {
                "type": "container",
                "bom-ref": below,
                "purl": below,
                "name": base,
                "hashes": [{"alg": "SHA-256", "content": base_digest.removeprefix("sha256:")}],
            },
            *(_component(package) for package in lock.packages),
        ],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(needs.items())],
    }


def text(found: dict[str, Any]) -> bytes:
    """Return a bill as it is stored."""
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def _purl(package: LockedPackage) -> str:
    return f"pkg:pypi/{quote(package.name, safe='')}@{quote(package.version, safe='')}"


def _component(package: LockedPackage) -> dict[str, Any]:
    purl = _purl(package)
    return {
        "type": "library",
        "bom-ref": purl,
        "purl": purl,
        "name": package.name,
        "version": package.version,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
    }
