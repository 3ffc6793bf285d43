"""Names of images are read as docker reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.images.errors import InvalidReference
from mlopsnb.images.references import Reference, parse, parse_registry

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("python", "docker.io", "library/python", "", ""),
        ("python:3.11-slim", "docker.io", "library/python", "3.11-slim", ""),
        ("team/fraud", "docker.io", "team/fraud", "", ""),
        ("index.docker.io/team/fraud:v1", "docker.io", "team/fraud", "v1", ""),
        ("ghcr.io/team/fraud:v3-1a2b3c4", "ghcr.io", "team/fraud", "v3-1a2b3c4", ""),
        ("127.0.0.1:5000/python", "127.0.0.1:5000", "python", "", ""),
        ("localhost/fraud", "localhost", "fraud", "", ""),
        ("[::1]:5000/a/b_c/d__e:X.y-z_", "[::1]:5000", "a/b_c/d__e", "X.y-z_", ""),
        (f"ghcr.io/a@{DIGEST}", "ghcr.io", "a", "", DIGEST),
        (f"ghcr.io/a:v1@{DIGEST}", "ghcr.io", "a", "v1", DIGEST),
    ],
)
def test_references(text, registry, repository, tag, digest):
    assert parse(text) == Reference(registry=registry, repository=repository, tag=tag, digest=digest)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no name"),
        ("Fraud", "capital letters"),
        ("ghcr.io/Team/fraud", "capital letters"),
        ("a:", "no tag"),
        ("a:b c", "no tag"),
        (f"a:{'t' * 129}", "no tag"),
        ("a@sha256:12", "no digest"),
        ("a@", "no digest"),
        ("a//b", "no name"),
        ("a-/b", "no name"),
        ("http://ghcr.io/a", "no "),
        ("-x.io/a", "no host"),
        (f"ghcr.io/{'a' * 256}", "over 255"),
        ("a\n", "no name"),
        ("é", "no name"),
    ],
)
def test_no_references(text, why):
    with pytest.raises(InvalidReference, match=why):
        parse(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ghcr.io/team", ("ghcr.io", "team")),
        ("ghcr.io", ("ghcr.io", "")),
        ("ghcr.io/", ("ghcr.io", "")),
        ("127.0.0.1:5000", ("127.0.0.1:5000", "")),
        ("localhost:5000/a/b", ("localhost:5000", "a/b")),
        ("team", ("docker.io", "team")),
        ("docker.io/team", ("docker.io", "team")),
    ],
)
def test_registries(text, found):
    assert parse_registry(text) == found


@pytest.mark.parametrize("text", ["", "https://ghcr.io", "ghcr.io/Team", "a b"])
def test_no_registries(text):
    with pytest.raises(InvalidReference):
        parse_registry(text)


hosts = st.from_regex(r"\A([a-z0-9]{1,8}\.){1,2}[a-z]{2,3}(:[0-9]{1,5})?\Z")
names = st.from_regex(r"\A[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}\Z")
tags = st.just("") | st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z")


@settings(max_examples=50, deadline=None)
@given(hosts, names, tags, st.sampled_from(["", DIGEST]))
def test_what_is_written_is_read_again(host, name, tag, digest):
    reference = Reference(registry=host, repository=name, tag=tag, digest=digest)
    assert parse(str(reference)) == reference
    assert reference.target == (digest or tag or "latest")


@given(st.text(alphabet="aA0.:/@_-[] \nsha256é", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse(text)
    except InvalidReference:
        return
    assert parse(str(found)) == found
