"""Signatures of images by a key that the user has, as cosign writes and verifies them (`cosign verify --key`).

A signature says: this key stands for the manifest of this digest. It is an in-toto statement in a DSSE envelope in a
Sigstore bundle, attached to the image. Nothing is sent to a transparency log, so verify with `--insecure-ignore-tlog`.
Sources: https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md;
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md; https://github.com/in-toto/attestation (Statement v1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import UserError
from mlopsnb.extras import need
from mlopsnb.images import referrers

if TYPE_CHECKING:
    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.registry import Registry

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://sigstore.dev/cosign/sign/v1"
PASSWORD = "COSIGN_PASSWORD"  # noqa: S105  the variable's name, which is cosign's
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_COSIGN_PEM = re.compile(
    r"-----BEGIN ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY-----\s*(?P<body>[A-Za-z0-9+/=\s]+)-----END"
)
_MOST_SCRYPT_MEMORY = 256 << 20


def read_key(path: Path) -> Any:
    """Return the private key in the file *path*: one that cosign made, or a PEM of a P-256 key (ECDSA).

    The password of an encrypted one is in the variable COSIGN_PASSWORD. `UserError` if it is no such key.
    """
    serialization = need("cryptography.hazmat.primitives.serialization", extra="sign")
    ec = need("cryptography.hazmat.primitives.asymmetric.ec", extra="sign")
    password = os.environ.get(PASSWORD, "").encode()
    try:
        text = path.expanduser().read_text(encoding="ascii")
        if found := _COSIGN_PEM.search(text):
            key = serialization.load_der_private_key(_opened(found["body"], password), password=None)
        else:
            key = serialization.load_pem_private_key(text.encode(), password=password or None)
    except (OSError, ValueError, TypeError) as exc:  # what it says may quote the file
        why = exc.strerror if isinstance(exc, OSError) else "it is no private key that this password opens"
        raise UserError(
            f"the signing key {path} cannot be read: {why}",
            hint=f"give a key of `cosign generate-key-pair`, its password in {PASSWORD}, or a PEM of a P-256 key",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise UserError(
            f"the signing key {path} is not of the kind that cosign makes, ECDSA on P-256",
            hint="cosign generate-key-pair makes one",
        )
    return key


def _opened(body: str, password: bytes) -> bytes:
    """Return the PKCS #8 key that cosign has locked by scrypt and NaCl's secretbox."""
    box = json.loads(base64.b64decode(body))
    kdf = box["kdf"]
    nacl = need("nacl.secret", extra="sign")
    errors = need("nacl.exceptions", extra="sign")
    key = hashlib.scrypt(
        password,
        salt=base64.b64decode(kdf["salt"]),
        n=kdf["params"]["N"],
        r=kdf["params"]["r"],
        p=kdf["params"]["p"],
        dklen=32,
        maxmem=_MOST_SCRYPT_MEMORY,
    )
    try:
        opened: bytes = nacl.SecretBox(key).decrypt(
            base64.b64decode(box["ciphertext"]), base64.b64decode(box["cipher"]["nonce"])
        )
    except errors.CryptoError as exc:
        raise ValueError("the password does not open it") from exc
    return opened


def bundle(digest: str, key: Any) -> bytes:
    """Return the signature of the manifest *digest* (`sha256:…`) by *key*, as a Sigstore bundle."""
    ec = need("cryptography.hazmat.primitives.asymmetric.ec", extra="sign")
    hashes = need("cryptography.hazmat.primitives.hashes", extra="sign")
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {},
    }
    payload = json.dumps(statement, separators=(",", ":")).encode()
    signature = key.sign(_pre_authentication(payload), ec.ECDSA(hashes.SHA256()))
    made = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(made, separators=(",", ":")).encode()


def key_hint(public: Any) -> str:
    """Return what names a public key in a bundle: the SHA-256 of its DER form, in base64."""
    serialization = need("cryptography.hazmat.primitives.serialization", extra="sign")
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def _pre_authentication(payload: bytes) -> bytes:
    """Return what DSSE signs: the payload with its type, each after its length."""
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(registry: Registry, repository: str, image: Descriptor, key: Any) -> Descriptor:
    """Sign the manifest *image* and attach the signature to it; return the signature's manifest."""
    return referrers.attach(
        registry,
        repository,
        image,
        data := bundle(image.digest, key),
        BUNDLE_TYPE,
        title=f"{referrers.descriptor(data, BUNDLE_TYPE).digest.replace(':', '-')}.sigstore.json",
        annotations={
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": PREDICATE_TYPE,
        },
    )
