"""How images look in a notebook, and what cleaning up removed. Pure functions of the records."""

from __future__ import annotations

from shlex import quote
from typing import Any

from mlopsnb.images.sizes import advice, size_text
from mlopsnb.masking import masked
from mlopsnb.notebook.tables import Bar, Code, Row, card, html_table, text_table

_TITLE = "org.opencontainers.image.title"
_HEADER = ("layer", "holds", "size", "unpacked", "share")


def _facts(image: Any) -> list[Row]:
    unpacked = size_text(sum(layer.unpacked for layer in image.layers if layer.kind != "base"))
    rows: list[Row] = [
        ("reference", Code(image.reference)),
        ("digest", Code(short(image.digest))),
        ("size", f"{size_text(image.size)} compressed; unpacked, {unpacked} above the base"),
        ("this build sent", size_text(image.sent)),
        ("base", Code(image.base)),
        ("platform", image.platform),
        ("builder", image.builder),
    ]
    if image.weights:
        rows.append(("weights, kept out", Code(image.weights)))
    rows += [("to make it smaller", said) for said in advice(image.layers, image.lock)]
    return rows + how_to_run(image)


def how_to_run(image: Any) -> list[Row]:
    """Return commands that work as they stand, for where the image lies."""
    run = "docker run --rm --read-only --cap-drop ALL -p 8080:8080"
    tag = image.tagged.rpartition(":")[2]
    name = quote(f"{image.labels.get(_TITLE, 'IMAGE')}:{tag}")
    match image.destination.place:
        case "registry":
            pods = image.tagged.rpartition("/")[2].partition(":")[0]
            return [
                ("run it", Code(f"{run} {quote(image.reference)}")),
                (
                    "on Kubernetes",
                    Code(f"kubectl create deployment {pods} --image={quote(image.reference)} --port=8080"),
                ),
            ]
        case "engine":
            return [("run it", Code(f"{run} {quote(image.tagged)}"))]
        case "archive":
            return [
                ("load it", Code(f"docker load --input {quote(str(image.destination.path))}")),
                ("run it", Code(f"{run} {name}")),
            ]
        case _:
            source = quote(f"oci:{image.destination.path}:{tag}")
            return [("copy it", Code(f"skopeo copy {source} docker://REGISTRY/{name}"))]


def short(digest: str) -> str:
    """Return the first twelve hexadecimal digits of a `sha256:…` digest, as `docker images` shows them."""
    return digest.removeprefix("sha256:")[:12]


def _layer_rows(image: Any) -> list[Row]:
    """Return a row for each layer, bottom to top; the base's are one."""
    base = [layer for layer in image.layers if layer.kind == "base"]
    parts = [("base", image.base.partition("@")[0], base)] if base else []
    parts += [(layer.kind, layer.name, [layer]) for layer in image.layers if layer.kind != "base"]
    return [
        (
            kind,
            name,
            size_text(size := sum(layer.size for layer in layers)),
            size_text(unpacked) if (unpacked := sum(layer.unpacked for layer in layers)) else "",
            Bar(size / max(1, image.size)),
        )
        for kind, name, layers in parts
    ]


def image_html(image: Any) -> str:
    """Show an `Image`: where it is, what is in it, what makes it heavy, and how to run it."""
    return card(
        f"Image {image.tagged}",
        html_table(_facts(image), label="image"),
        html_table(_layer_rows(image), _HEADER, label="layers"),
    )


def image_text(image: Any) -> str:
    """Show an `Image` as text."""
    blocks = (text_table(_facts(image)), text_table(_layer_rows(image), _HEADER))
    return "\n".join(
        [masked(f"Image {image.tagged}"), *(f"  {line}" for b in blocks for line in b.splitlines())]
    )


def _cleanup_title(cleanup: Any) -> str:
    said = []
    if cleanup.removed:
        said.append(f"{size_text(cleanup.freed)} {'would be freed' if cleanup.dry_run else 'freed'}")
    if cleanup.deployments:
        n = len(cleanup.deployments)
        done = "would be removed" if cleanup.dry_run else "removed"
        said.append(f"{n} deployment{'s' if n > 1 else ''} {done}")
    nothing = " (nothing was done)" if cleanup.dry_run and said else ""
    return (", ".join(said) or "there was nothing to clean up") + nothing


def _cleanup_rows(cleanup: Any) -> list[Row]:
    return [
        *((what, size_text(size)) for what, size in cleanup.removed),
        *cleanup.deployments,
        *((what, f"skipped: {why}") for what, why in cleanup.skipped),
    ]


def cleanup_html(cleanup: Any) -> str:
    """Show what `cleanup` removed, and what that freed."""
    return card(_cleanup_title(cleanup), html_table(_cleanup_rows(cleanup), label="removed"))


def cleanup_text(cleanup: Any) -> str:
    """Show what `cleanup` removed, as text."""
    rows = text_table(_cleanup_rows(cleanup))
    return "\n".join([_cleanup_title(cleanup), *(f"  {line}" for line in rows.splitlines())])


_DIFF_HEADER = ("", "notebook", "lock", "image", "")


def _diff_rows(diff: Any) -> list[Row]:
    return [(d.name, d.notebook or "-", d.lock or "-", d.image or "-", d.note) for d in diff]


def diff_html(diff: Any) -> str:
    """Show where notebook, lock and image differ."""
    if not len(diff):
        return card(diff)
    return card("Differences", html_table(_diff_rows(diff), _DIFF_HEADER, label="differences"))


def diff_text(diff: Any) -> str:
    """Show where notebook, lock and image differ, as text."""
    return str(diff)
