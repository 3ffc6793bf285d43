"""Connections to a real registry that break off, or are not to be trusted."""

from __future__ import annotations

import datetime
import os
import ssl

import pytest
from cutter import Cutter
from fake_registry import FakeRegistry, blob_of

from mlopsnb.images import uploads, wire
from mlopsnb.images.errors import RegistryUnreachable
from mlopsnb.images.registry import Registry, connect
from mlopsnb.settings import set_for_session

SIZE = 3_000_000


@pytest.mark.registry
@pytest.mark.parametrize("chunk", [0, 400_000, 1_000_000])
def test_docker_registry_gets_the_blob_through_breaking_connections(
    docker_registry, client, repository, monkeypatch, tmp_path, chunk
):
    monkeypatch.setattr(wire, "_LONGEST_WAIT", 0.05)
    if chunk:
        monkeypatch.setattr(uploads, "WHOLE", 10)
        monkeypatch.setattr(uploads, "CHUNK", chunk)
    data, counts = os.urandom(SIZE), []
    path = tmp_path / "layer"
    path.write_bytes(data)
    with Cutter(docker_registry) as cutter:
        cutter.cuts = [500_000, 2_000_000, 100, 700_000, 2_900_000]
        registry = client(cutter.host)
        assert registry.upload(repository, blob_of(data), path, on_bytes=counts.append) == "sent"
        assert cutter.connections > 5
        assert cutter.cuts == []
        registry.close()
    assert sum(counts) == SIZE
    assert client(docker_registry).read(repository, blob_of(data)) == data


def test_only_the_rest_is_sent_again(fake, client, monkeypatch, tmp_path):
    monkeypatch.setattr(wire, "_LONGEST_WAIT", 0.05)
    data, counts = os.urandom(SIZE), []
    path = tmp_path / "layer"
    path.write_bytes(data)
    with Cutter(fake.host) as cutter:
        cutter.cuts = [2_000_000]
        assert client(cutter.host).upload("a", blob_of(data), path, on_bytes=counts.append) == "sent"
    assert sum(counts) == SIZE
    (rest,) = fake.sent("PATCH")
    assert int(rest[2]["content-range"].partition("-")[0]) > 1_900_000
    assert fake.blobs["a", blob_of(data).digest] == data


@pytest.fixture
def secure(fake, tmp_path):
    """The strict registry behind TLS; the file of the authority that vouches for it."""
    authority = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
    return authority


def _certificate(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "authority.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_ones_own(fake, secure, monkeypatch, variable):
    monkeypatch.setenv(variable, str(secure))
    with Registry(f"localhost:{fake.host.partition(':')[2]}", patience=2) as registry:
        assert registry.upload("a", blob_of(b"x"), b"x") == "sent"


def test_an_unknown_authority_is_refused_at_once(fake, secure):
    with (
        Registry(f"localhost:{fake.host.partition(':')[2]}", patience=60) as registry,
        pytest.raises(RegistryUnreachable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        registry.has("a", blob_of(b"x").digest)
    assert fake.requests == []


def test_plain_http_where_https_was_meant_is_said_with_what_to_do(fake):
    with Registry(fake.host, patience=60) as registry, pytest.raises(RegistryUnreachable) as caught:
        registry.has("a", blob_of(b"x").digest)
    assert f"MLOPSNB_INSECURE_REGISTRIES={fake.host}" in str(caught.value)


def test_a_proxy_is_used_but_not_for_the_loopback_interface(fake, monkeypatch, no_credentials):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FakeRegistry() as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        monkeypatch.setenv("MLOPSNB_INSECURE_REGISTRIES", "registry.example, other.example")
        with connect(fake.host) as registry:
            assert not registry.has("a", blob_of(b"x").digest)
        assert proxy.requests == []
        with connect("registry.example") as registry:
            registry.has("a", blob_of(b"x").digest)
        assert proxy.requests[0][1].startswith("http://registry.example/v2/a/blobs/")


def test_settings_name_the_mirrors(fake, no_credentials):
    set_for_session(registry_mirrors=f"docker.io={fake.host}/hub")
    try:
        fake.blobs["hub/library/python", blob_of(b"x").digest] = b"x"
        with connect("docker.io") as registry:
            assert registry.read("library/python", blob_of(b"x")) == b"x"
    finally:
        set_for_session(registry_mirrors=None)
