"""How records look in a notebook, as HTML and as text. Pure functions of the records, but for the sizes of files.

Records stay free of Jupyter: the functions here are registered by the names of the classes, which are not imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any, Protocol
from urllib.parse import urlsplit

from mlopsnb.images.sizes import size_text
from mlopsnb.manifest import EXAMPLE_FILE, read_example
from mlopsnb.masking import masked
from mlopsnb.notebook.render import STATES
from mlopsnb.notebook.tables import Badge, Code, Link, Row, card, folded, html_table, preformatted, text_table

LOG_LINES = 200
"""Lines of a log that are shown; the text itself is whole."""

_STATES = {
    "ready": "✓",
    "running": "✓",
    "starting": "▸",
    "stopped": "○",
    "failed": "✗",
    "not ready": "✗",
    "deleted": "○",
}


SHORT = 600
"""Characters that a request may have to be shown as a command."""


class _Spec(Protocol):
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    feature_names: tuple[str, ...]


def spec_text(spec: _Spec) -> str:
    """Return one tensor as `float32 [rows, 4]`."""
    axes = ["any" if size is None else str(size) for size in spec.shape]
    if spec.shape and spec.shape[0] is None:
        axes[0] = "rows"
    return f"{spec.dtype} [{', '.join(axes)}]"


def directory_size(path: Path) -> int | None:
    """Return the bytes in the files below *path*, or None if it is not there."""
    if not path.is_dir():
        return None
    return sum((Path(root) / name).stat().st_size for root, _, names in os.walk(path) for name in names)


# ---- artifact


def _artifact_facts(artifact: Any) -> list[Row]:
    size = directory_size(artifact.path)
    return [
        ("format", artifact.format),
        ("digest", Code(artifact.digest)),
        ("size", size_text(size) if size is not None else "the files are gone"),
        ("files", Code(str(artifact.path))),
    ]


def _signature_rows(signature: Any) -> list[Row]:
    return [
        (role, spec.name, spec_text(spec))
        for role, specs in (("input", signature.inputs), ("output", signature.outputs))
        for spec in specs
    ]


def _parity_rows(parity: Any) -> list[Row]:
    return [
        (
            c.case,
            c.output,
            Badge(*(("✓", "equal") if c.equal else ("✗", "differs"))),
            f"{c.max_abs_error:.3g}",
            f"{c.max_rel_error:.3g}",
        )
        for c in parity.checks
    ]


_SIGNATURE_HEADER = ("", "name", "type")
_PARITY_HEADER = ("case", "output", "result", "max abs error", "max rel error")


def _parity_summary(parity: Any) -> str:
    equal = sum(c.equal for c in parity.checks)
    return (
        f"{equal} of {len(parity.checks)} checks equal within {parity.tolerance:g}; largest error {parity.max_abs_error:.3g} "
        f"absolute, {parity.max_rel_error:.3g} relative"
    )


def _latency_summary(parity: Any) -> str:
    return f"{parity.original_ms:.3g} ms original, {parity.exported_ms:.3g} ms exported ({parity.rows} rows)"


def _proof_facts(parity: Any) -> list[Row]:
    if parity is None:
        return []
    notes = [("note", note) for note in parity.notes]
    return [("parity", _parity_summary(parity)), ("latency", _latency_summary(parity)), *notes]


def artifact_html(artifact: Any) -> str:
    """Show an `Artifact`: what it is, its signature, and the proof."""
    facts = _artifact_facts(artifact) + _proof_facts(artifact.parity)
    parts = [html_table(_signature_rows(artifact.signature), _SIGNATURE_HEADER, label="signature")]
    if artifact.parity is not None:
        checks = html_table(_parity_rows(artifact.parity), _PARITY_HEADER, label="parity checks")
        parts.append(folded(f"{len(artifact.parity.checks)} parity checks", checks))
    return card("Artifact", html_table(facts, label="artifact"), *parts)


def artifact_text(artifact: Any) -> str:
    """Show an `Artifact` as text, of the proof only what it comes to."""
    facts = _artifact_facts(artifact) + _proof_facts(artifact.parity)
    signature = text_table(_signature_rows(artifact.signature), _SIGNATURE_HEADER)
    return "\n".join(["Artifact", *_indented(text_table(facts), signature)])


# ---- model version

_LINEAGE = {
    "mlopsnb.notebook": "notebook",
    "mlopsnb.cell_digest": "cell",
    "mlflow.source.git.commit": "git commit",
    "mlopsnb.git.dirty": "with changes",
    "mlopsnb.git.diff_digest": "changes",
    "mlopsnb.data_digest": "data",
    "mlopsnb.environment_digest": "environment",
    "mlopsnb.artifact_digest": "artifact",
}
"""The tags that say where a version came from, and what each names."""
_LINEAGE_HEADER = ("made of", "which")


def _version_rows(version: Any) -> list[Row]:
    rows: list[Row] = [("uri", Code(version.uri)), ("digest", Code(version.digest))]
    if version.run_id:
        rows.append(("run", Code(version.run_id)))
    if version.tracking_uri:
        rows.append(("tracking server", Code(version.tracking_uri)))
    others = sorted(version.tags.items() - _lineage(version).items())
    return [*rows, *((f"tag {key}", value) for key, value in others)]


def _lineage(version: Any) -> dict[str, str]:
    return {key: version.tags[key] for key in _LINEAGE if key in version.tags}


def _lineage_rows(version: Any) -> list[Row]:
    """Say where the version came from, as far as its tags tell."""
    return [(_LINEAGE[key], Code(value)) for key, value in _lineage(version).items()]


def version_html(version: Any) -> str:
    """Show a `ModelVersion`: its address, its run, and the tags that tell where it came from."""
    lineage = _lineage_rows(version)
    return card(
        f"Model {version.name}, version {version.version}",
        html_table(_version_rows(version), label="model version"),
        *([html_table(lineage, _LINEAGE_HEADER, label="lineage")] if lineage else []),
    )


def version_text(version: Any) -> str:
    """Show a `ModelVersion` as text."""
    title = masked(f"Model {version.name}, version {version.version}")
    lineage = _lineage_rows(version)
    blocks = [text_table(_version_rows(version)), text_table(lineage, _LINEAGE_HEADER) if lineage else ""]
    return "\n".join([title, *_indented(*blocks)])


# ---- deployment


def _deployment_rows(deployment: Any) -> list[Row]:
    rows: list[Row] = [
        ("state", state_badge(deployment.status)),
        ("target", deployment.target),
        ("model", Code(deployment.model_version or "none")),
        ("revision", deployment.revision or "none"),
        *_split(deployment.release),
    ]
    url = deployment.url
    if url:
        rows += [
            ("url", Code(url)),
            *([("page", Link(page))] if (page := _proxied(url)) else []),
            *([("gRPC", Code(deployment.grpc))] if deployment.grpc else []),
            (
                "from Python",
                Code(f"mlopsnb.get({deployment.name!r}, target={deployment.target!r}).predict(X)"),
            ),
            ("from a shell", Code(_shell_command(deployment, url))),
        ]
    return rows


def _proxied(url: str) -> str:
    """Return the path at which the Jupyter server of a hub, Binder's for one, shows what runs at *url* beside it.

    jupyter-server-proxy does that, if it is installed. The browser is elsewhere there: *url* means nothing to it.
    """
    parts = urlsplit(url)
    hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
    if not hub or parts.hostname != "127.0.0.1" or find_spec("jupyter_server_proxy") is None:
        return ""
    return f"{hub.rstrip('/')}/proxy/{parts.port}/"


def _split(release: Any) -> list[Row]:
    """Say who has which share of the traffic, while a canary is under way."""
    from mlopsnb.rollout import trial

    pair = trial(release)
    if pair is None:
        return []
    roles = {pair[0].id: " (stable)", pair[1].id: " (canary)"}
    shares = [f"revision {r}{roles.get(r, '')}: {w} %" for r, w in sorted(release.weights.items())]
    shares += [f"revision {r}{roles.get(r, '')}: {match}" for r, match in sorted(release.routes.items())]
    return [("traffic", ", ".join(shares))]


def _shell_command(deployment: Any, url: str) -> str:
    """Return a command that works as it stands: a prediction for one row of the golden example, if that is short."""
    from mlopsnb.rollout import serving
    from mlopsnb.serving.v2 import encode_request
    from mlopsnb.tensors import take_rows

    model = f"{url}/v2/models/{deployment.name}"
    revision = serving(deployment.release)
    if revision is not None and revision.package is not None and (revision.package / EXAMPLE_FILE).is_file():
        inputs, _ = read_example(revision.package)
        body = encode_request(take_rows(inputs, 1)).decode()
        if len(body) <= SHORT:
            return f"curl -s {quote(model + '/infer')} -d {quote(body)}"
    return f"curl -s {quote(model)}"


def deployment_html(deployment: Any) -> str:
    """Show a `Deployment`: its state and how to call it."""
    return card(f"Deployment {deployment.name}", html_table(_deployment_rows(deployment), label="deployment"))


def deployment_text(deployment: Any) -> str:
    """Show a `Deployment` as text."""
    return "\n".join(
        [masked(f"Deployment {deployment.name}"), *_indented(text_table(_deployment_rows(deployment)))]
    )


class _Displayed(tuple[Any, ...]):
    """A tuple that shows itself as a table."""

    __slots__ = ()

    title = ""
    header: tuple[str, ...] = ()
    empty = ""

    def rows(self) -> list[Row]:
        """Return the cells, a row for each item."""
        raise NotImplementedError

    def __str__(self) -> str:
        return text_table(self.rows(), self.header) if self else self.empty

    def _repr_html_(self) -> str:
        return (
            card(self.title, html_table(self.rows(), self.header, label=self.title))
            if self
            else card(self.empty)
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


_ROLLOUTS = "In the background of this kernel"


def _rollout_rows(rollouts: Iterable[Any]) -> list[Row]:
    """Return a row for each rollout; what went wrong is only its first line."""
    return [
        (
            r.name,
            r.target,
            Badge(*STATES[r.state]),
            r.reason.partition("\n")[0] if r.state == "failed" else "",
            Code(f"%attach {r.name} --target {r.target}"),
        )
        for r in rollouts
    ]


_ROLLOUT_HEADER = ("name", "target", "rollout", "what happened", "to see it")


class Listing(_Displayed):
    """Deployments, one in each line; then the rollouts in the background that go on, or came to nothing."""

    title = "Deployments"
    header = ("name", "state", "target", "model", "revision", "url")
    empty = "nothing is deployed"

    def __init__(self, deployments: Iterable[Any] = ()) -> None:
        self.rollouts = tuple(getattr(deployments, "rollouts", ()))

    def __str__(self) -> str:
        if not self.rollouts:
            return super().__str__()
        rollouts = text_table(_rollout_rows(self.rollouts), _ROLLOUT_HEADER)
        return "\n".join([super().__str__(), _ROLLOUTS, *_indented(rollouts)])

    def _repr_html_(self) -> str:
        shown = super()._repr_html_()
        if self.rollouts:
            rows = _rollout_rows(self.rollouts)
            shown += card(_ROLLOUTS, html_table(rows, _ROLLOUT_HEADER, label=_ROLLOUTS))
        return shown

    def rows(self) -> list[Row]:
        """Return a row for each deployment."""
        return [
            (
                d.name,
                state_badge(d.status),
                d.target,
                Code(d.model_version or ""),
                d.revision or "",
                Code(d.url or ""),
            )
            for d in self
        ]


class History(_Displayed):
    """The revisions of a deployment, the newest first."""

    title = "Revisions"
    header = ("revision", "state", "model", "created", "by", "from", "digest", "note")
    empty = "no revisions"

    def rows(self) -> list[Row]:
        """Return a row for each revision."""
        return [
            (
                r.id,
                state_badge(r.state),
                Code(r.source),
                r.created,
                "@".join(filter(None, (r.origin.user, r.origin.machine))),
                _whence(r.origin),
                Code(r.digest.removeprefix("sha256:")[:12]),
                r.note,
            )
            for r in sorted(self, key=lambda r: r.id, reverse=True)
        ]


def _whence(origin: Any) -> str:
    """Return the notebook's name and the commit, short."""
    notebook = Path(origin.notebook).name
    return " at ".join(filter(None, (notebook, origin.commit[:7])))


def deployments_html(deployments: tuple[Any, ...]) -> str:
    """Show a tuple of deployments."""
    return Listing(deployments)._repr_html_()


def deployments_text(deployments: tuple[Any, ...]) -> str:
    """Show a tuple of deployments as text."""
    return str(Listing(deployments))


def history_html(revisions: tuple[Any, ...]) -> str:
    """Show a tuple of revisions."""
    return History(revisions)._repr_html_()


def history_text(revisions: tuple[Any, ...]) -> str:
    """Show a tuple of revisions as text."""
    return str(History(revisions))


class Plan(_Displayed):
    """What a dry run would do, in order."""

    title = "Plan (nothing was done)"
    header = ("", "action", "details")
    empty = "nothing to do"

    def rows(self) -> list[Row]:
        """Return a row for each action."""
        return [(i, type(action).__name__.lower(), action_text(action)) for i, action in enumerate(self, 1)]

    def __str__(self) -> str:
        return f"{self.title}\n{super().__str__()}" if self else self.empty


def action_text(action: Any) -> str:
    """Say in words what one action of a plan does."""
    words = {
        "Start": "run revision {0.revision.id} ({0.revision.source}) beside what serves; no traffic yet",
        "Check": "revision {0.revision_id} must answer its example as the original model did",
        "Gate": "revision {0.revision_id} must keep {rule} for {0.seconds:g} s",
        "Scale": "revision {0.revision_id} in {0.replicas} replicas",
        "Shift": "traffic: {shares}",
        "Stop": "revision {0.revision_id} ends what it has in flight, then stops",
        "Forget": "stop all revisions and remove the name with its history",
    }
    weights = sorted(getattr(action, "weights", {}).items())
    shares = ", ".join(f"{share} % to revision {r}" for r, share in weights)
    rule = getattr(action, "rule", "") or "its traffic"
    return words.get(type(action).__name__, "{0}").format(action, shares=shares, rule=rule)


class LogText(str):
    """A log: the whole text for programs, the last lines for people, without what looks secret."""

    __slots__ = ()

    def _shown(self) -> tuple[str, str]:
        lines = self.splitlines()
        left_out = len(lines) - LOG_LINES
        note = f"… {left_out} earlier lines left out; all are in the value" if left_out > 0 else ""
        return note, masked("\n".join(lines[-LOG_LINES:]))

    def _repr_html_(self) -> str:
        note, text = self._shown()
        if not text:
            return card("the log is empty")
        return card(note, preformatted(text, label="log")) if note else preformatted(text, label="log")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        note, text = self._shown()
        printer.text("\n".join(filter(None, (note, text))) or "the log is empty")


def history_or_listing(value: tuple[Any, ...]) -> str | None:
    """Return the HTML of a plain tuple that holds only revisions or only deployments, else None."""
    kinds = {(type(item).__module__, type(item).__name__) for item in value}
    if kinds == {("mlopsnb.records", "Revision")}:
        return History(value)._repr_html_()
    if kinds == {("mlopsnb.deployment", "Deployment")}:
        return Listing(value)._repr_html_()
    return None


class Overview:
    """Titled tables of names and values, such as `%mlopsnb` shows."""

    def __init__(self, title: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
        self.title = title
        self.sections = sections

    def __str__(self) -> str:
        parts = [f"{name}\n" + "\n".join(_indented(text_table(rows))) for name, rows in self.sections]
        return "\n".join([self.title, *parts])

    def _repr_html_(self) -> str:
        # A section's name stands once, before its first row.
        shown = [
            ("" if i else name, *row) for name, section in self.sections for i, row in enumerate(section)
        ]
        return card(self.title, html_table(shown, label=self.title))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def state_badge(state: str) -> Badge:
    """Return the *state* of a deployment or a revision with its symbol."""
    return Badge(_STATES.get(state, "?"), state)


def _indented(*blocks: str) -> list[str]:
    return [f"  {line}" for block in blocks if block for line in block.splitlines()]
