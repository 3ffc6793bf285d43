"""How blobs are named: by the digest of what they are."""

from __future__ import annotations

import hashlib


def digest_of(data: bytes) -> str:
    """Return the `sha256:…` of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
