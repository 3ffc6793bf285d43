"""Who we are to a registry: tokens, basic authentication, and that secrets go nowhere else."""

from __future__ import annotations

import pytest
from fake_registry import FakeRegistry, blob_of

from mlopsnb.images import tokens
from mlopsnb.images.credentials import Credentials
from mlopsnb.images.errors import RegistryError, Unauthorized

ME = Credentials(user="me", password="s3cret-pass")


@pytest.fixture
def closed(fake):
    """A registry that wants tokens, and knows one user."""
    fake.kind, fake.users = "bearer", {"me": "s3cret-pass"}
    return fake


def known(credentials):
    return lambda repository: credentials


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_user_may_push_and_pull(closed, client, kind):
    closed.kind = kind
    registry = client(closed.host, credentials=known(ME))
    assert registry.upload("team/a", blob_of(b"x"), b"x") == "sent"
    assert registry.read("team/a", blob_of(b"x")) == b"x"


def test_one_token_serves_many_requests(closed, client):
    registry = client(closed.host, credentials=known(ME))
    for data in (b"a", b"b", b"c"):
        registry.upload("team/a", blob_of(data), data)
    assert len(closed.sent("GET", "/token")) == 1
    registry.mount("team/b", blob_of(b"a").digest, "team/a")
    assert len(closed.sent("GET", "/token")) == 2


def test_an_expired_token_is_replaced_without_a_word(closed, client):
    registry = client(closed.host, credentials=known(ME))
    registry.upload("team/a", blob_of(b"a"), b"a")
    closed.tokens.clear()
    assert registry.upload("team/a", blob_of(b"b"), b"b") == "sent"


def test_a_token_is_renewed_before_it_expires(closed, client, monkeypatch):
    registry = client(closed.host, credentials=known(ME))
    now = [1000.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])
    registry.has("team/a", blob_of(b"a").digest)
    now[0] += 271
    registry.has("team/a", blob_of(b"a").digest)
    assert len(closed.sent("GET", "/token")) == 2
    assert len(closed.sent("HEAD")) == 3  # one of them answered with 401, before the first token


def test_a_mount_asks_for_both_repositories(closed, client):
    registry = client(closed.host, credentials=known(ME))
    registry.upload("team/a", blob_of(b"x"), b"x")
    assert registry.mount("team/b", blob_of(b"x").digest, "team/a")
    asked = closed.sent("GET", "/token")[-1][1]
    assert asked.count("scope=") == 2
    assert "repository%3Ateam%2Fb%3Apull%2Cpush" in asked or "repository:team/b:pull,push" in asked


def test_a_mount_that_is_forbidden_becomes_an_upload(closed, client):
    closed.rights = {"secret/base": set()}
    closed.blobs["secret/base", blob_of(b"x").digest] = b"x"
    registry = client(closed.host, credentials=known(ME))
    assert registry.upload("team/b", blob_of(b"x"), b"x", from_repository="secret/base") == "sent"


def test_an_identity_token_is_exchanged(closed, client):
    closed.identity_token = "s3cret-identity"
    registry = client(closed.host, credentials=known(Credentials(identity_token="s3cret-identity")))
    assert registry.upload("team/a", blob_of(b"x"), b"x") == "sent"
    assert closed.sent("POST", "/token")
    assert all("s3cret-identity" not in path for _, path, _ in closed.requests)


def test_a_registry_token_is_used_as_it_is(closed, client):
    closed.tokens["s3cret-token"] = {("team/a", "pull"), ("team/a", "push")}
    registry = client(closed.host, credentials=known(Credentials(registry_token="s3cret-token")))
    assert registry.upload("team/a", blob_of(b"x"), b"x") == "sent"
    assert not closed.sent("GET", "/token")


def test_nobody_reads_what_is_public(closed, client):
    closed.rights = {"public:base": {"pull"}}
    closed.blobs["base", blob_of(b"x").digest] = b"x"
    registry = client(closed.host)
    assert registry.read("base", blob_of(b"x")) == b"x"
    with pytest.raises(Unauthorized, match="without credentials"):
        registry.upload("base", blob_of(b"y"), b"y")


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_wrong_password_is_said_and_not_shown(closed, client, kind):
    closed.kind = kind
    wrong = Credentials(user="me", password="s3cret-wrong")
    registry = client(closed.host, credentials=known(wrong))
    with pytest.raises(Unauthorized) as caught:
        registry.upload("team/a", blob_of(b"x"), b"x")
    assert "as 'me'" in str(caught.value)
    assert "docker login" in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(wrong)
    assert len(closed.requests) < 6


def test_what_may_not_be_seen_is_not_there_yet(closed, client):
    closed.rights = {"team/new": set()}
    registry = client(closed.host, credentials=known(ME))
    assert registry.digest("team/new", "v1") is None
    with pytest.raises(Unauthorized, match="read team/new"):
        registry.resolve("team/new", "v1")


def test_no_right_to_push(closed, client):
    closed.rights = {"team/a": {"pull"}}
    registry = client(closed.host, credentials=known(ME))
    with pytest.raises(Unauthorized, match="team/a"):
        registry.upload("team/a", blob_of(b"x"), b"x")


def test_no_secret_follows_a_redirect_to_another_host(closed, client, tmp_path):
    with FakeRegistry() as store:
        store.blobs["team/a", blob_of(b"x").digest] = b"x"
        closed.blobs["team/a", blob_of(b"x").digest] = b"x"
        closed.redirect_to = f"http://{store.host}"
        registry = client(closed.host, credentials=known(ME))
        registry.fetch("team/a", blob_of(b"x"), tmp_path / "x")
        (request,) = store.requests
    assert (tmp_path / "x").read_bytes() == b"x"
    assert "authorization" not in request[2]
    assert "signature=s3cret" in request[1]


def test_redirects_come_to_an_end(fake, client, tmp_path):
    fake.blobs["a", blob_of(b"x").digest] = b"x"
    fake.redirect_to = f"http://{fake.host}"
    with pytest.raises(RegistryError, match="on and on"):
        client(fake.host).read("a", blob_of(b"x"))


def test_a_token_service_without_https_gets_nothing_from_a_registry_with_it():
    asked = []
    authorizer = tokens.Authorizer(
        "ghcr.io", known(ME), lambda *args, **kwargs: asked.append(args), plain=False
    )
    assert authorizer.challenged(['Bearer realm="http://evil.example/token"'], tokens.pull("a"), "")
    with pytest.raises(RegistryError, match="not HTTPS"):
        authorizer.header(tokens.pull("a"))
    assert asked == []


@pytest.mark.parametrize(
    ("challenges", "kind"),
    [
        (['Bearer realm="https://a/token",service="s",scope="repository:a:pull,push"'], "bearer"),
        (['Basic realm="x", Bearer realm="https://a/token"'], "bearer"),
        (['Basic realm="x"', 'bearer realm="https://a/token"'], "bearer"),
        (['Basic realm="x"'], "basic"),
        (["Negotiate"], None),
        (["Bearer"], None),
        ([], None),
    ],
)
def test_challenges(challenges, kind):
    found = tokens._read(challenges)
    assert (found.kind if found else None) == kind
