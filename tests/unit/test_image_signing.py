"""Signatures: the keys that are taken, what is said of those that are not, and what an independent verifier says."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from nacl.secret import SecretBox

from mlopsnb.errors import UserError
from mlopsnb.images import signing

DIGEST = "sha256:" + "ab" * 32
VERIFIER = Path(__file__).with_name("verify_bundle.cjs")
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
SIGSTORE = Path(__file__).parents[2] / ".venv" / "sigstore"
PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.fixture
def key():
    return ec.generate_private_key(ec.SECP256R1())


def locked_by_cosign(key, password, label="SIGSTORE"):
    """Return *key* as `cosign generate-key-pair` writes it."""
    salt, nonce = secrets.token_bytes(32), secrets.token_bytes(24)
    derived = hashlib.scrypt(password, salt=salt, n=1 << 15, r=8, p=1, dklen=32, maxmem=1 << 28)
    plain = key.private_bytes(DER, PKCS8, serialization.NoEncryption())
    box = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": 1 << 15, "r": 8, "p": 1},
            "salt": base64.b64encode(salt).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(SecretBox(derived).encrypt(plain, nonce).ciphertext).decode(),
    }
    body = base64.encodebytes(json.dumps(box).encode()).decode()
    return (
        f"-----BEGIN ENCRYPTED {label} PRIVATE KEY-----\n{body}-----END ENCRYPTED {label} PRIVATE KEY-----\n"
    )


@pytest.mark.parametrize("label", ["SIGSTORE", "COSIGN"])
def test_a_key_of_cosign_is_opened_with_its_password(key, label, tmp_path, monkeypatch):
    (tmp_path / "cosign.key").write_text(locked_by_cosign(key, b"open sesame", label))
    monkeypatch.setenv("COSIGN_PASSWORD", "open sesame")
    assert signing.read_key(tmp_path / "cosign.key").private_numbers() == key.private_numbers()


@pytest.mark.parametrize("password", [None, b"open sesame"])
def test_a_pem_key_is_taken_locked_or_not(key, password, tmp_path, monkeypatch):
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(PEM, PKCS8, locked))
    if password:
        monkeypatch.setenv("COSIGN_PASSWORD", password.decode())
    assert signing.read_key(tmp_path / "key.pem").private_numbers() == key.private_numbers()


def test_a_wrong_password_is_told_without_the_key_or_the_password(key, tmp_path, monkeypatch):
    text = locked_by_cosign(key, b"open sesame")
    (tmp_path / "cosign.key").write_text(text)
    monkeypatch.setenv("COSIGN_PASSWORD", "hunter2hunter2")
    with pytest.raises(UserError, match="no private key that this password opens") as caught:
        signing.read_key(tmp_path / "cosign.key")
    assert "hunter2" not in str(caught.value)
    assert text.splitlines()[1] not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe", None])
def test_what_is_no_key_is_refused(content, tmp_path):
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"the signing key .*key\.pem cannot be read"):
        signing.read_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    other = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(other.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    with pytest.raises(UserError, match="not of the kind that cosign makes"):
        signing.read_key(tmp_path / "key.pem")


def verified(bundle, public, tmp_path):
    """Return what sigstore's own JavaScript says of *bundle*."""
    (tmp_path / "bundle.json").write_bytes(bundle)
    (tmp_path / "public.pem").write_bytes(public.public_bytes(PEM, PUBLIC))
    return subprocess.run(
        ["node", VERIFIER, SIGSTORE, tmp_path / "bundle.json", tmp_path / "public.pem"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.sigstore
def test_sigstore_verifies_what_we_sign(key, tmp_path):
    done = verified(signing.bundle(DIGEST, key), key.public_key(), tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["subject"] == [{"digest": {"sha256": "ab" * 32}}]
    assert said["predicateType"] == "https://sigstore.dev/cosign/sign/v1"


@pytest.mark.sigstore
def test_sigstore_refuses_another_key_and_a_changed_digest(key, tmp_path):
    bundle = signing.bundle(DIGEST, key)
    other = ec.generate_private_key(ec.SECP256R1())
    assert "signature verification failed" in verified(bundle, other.public_key(), tmp_path).stderr
    changed = json.loads(bundle)
    payload = base64.b64decode(changed["dsseEnvelope"]["payload"]).replace(b"ab", b"ba")
    changed["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    done = verified(json.dumps(changed).encode(), key.public_key(), tmp_path)
    assert "signature verification failed" in done.stderr
