"""The bill of materials: valid by CycloneDX's own schema, the same for the same image, complete."""

from __future__ import annotations

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.images import sbom
from mlopsnb.images.lock import Lock, LockedPackage

BASE_DIGEST = "sha256:" + "0b" * 32
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
versions = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}(\+[a-z0-9]{1,8})?", fullmatch=True)


def package(name, version="1.0", wanted_by=()):
    return LockedPackage(
        name=name, version=version, filename=f"{name}.whl", sha256="ab" * 32, wanted_by=tuple(wanted_by)
    )


def bill(*packages):
    lock = Lock(python="3.11", platform="linux/amd64", packages=packages)
    return sbom.bill(
        name="fraud", tag="v3-1a2b3c4", base="python:3.11-slim", base_digest=BASE_DIGEST, lock=lock
    )


def problems(found):
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.text(found).decode())


@given(st.lists(st.tuples(names, versions), max_size=8, unique_by=lambda p: p[0]), st.data())
def test_every_bill_is_valid_and_names_each_package_once(found, data):
    known = [name for name, _ in found]
    packages = [
        package(name, version, data.draw(st.lists(st.sampled_from(known), unique=True, max_size=3)))
        for name, version in found
    ]
    made = bill(*packages)
    assert problems(made) is None
    assert [c["name"] for c in made["components"]] == ["python:3.11-slim", *known]


def test_a_bill_says_who_needs_what():
    made = bill(package("torch", "2.13.0+cpu"), package("jinja2", wanted_by=["torch"]))
    on = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    torch = "pkg:pypi/torch@2.13.0%2Bcpu"
    assert on[torch] == ["pkg:pypi/jinja2@1.0"]
    assert torch in on["pkg:oci/fraud?tag=v3-1a2b3c4"]
    assert "pkg:pypi/jinja2@1.0" not in on["pkg:oci/fraud?tag=v3-1a2b3c4"]


def test_a_package_that_only_a_stranger_wants_hangs_on_the_image():
    made = bill(package("six", wanted_by=["gone"]))
    on = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    assert "pkg:pypi/six@1.0" in on["pkg:oci/fraud?tag=v3-1a2b3c4"]


def test_equal_images_have_equal_bills():
    assert sbom.text(bill(package("a"))) == sbom.text(bill(package("a")))
    assert "serialNumber" not in bill()
