"""Write what is deployed as a Compose file, to run the same thing here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlopsnb import rollout
from mlopsnb.errors import UserError
from mlopsnb.targets import compose as composed

if TYPE_CHECKING:
    from mlopsnb.deployment import Deployment

_PORT = 8080


def compose(deployment: Deployment, path: str | Path = "docker-compose.yml", *, port: int = _PORT) -> Path:
    """Write a Compose file that runs one replica of what *deployment* serves now; return its path.

    The same image (by digest where it came from a registry), options and limits, on *port* of the loopback interface.
    Values of environment variables are not in the file: Compose takes those of the shell it is run from.

    Raises:
        UserError: nothing serves, what serves is no image, or *path* is a file that somebody else wrote.
    """
    release = deployment.release
    current = rollout.serving(release)
    if current is None:
        raise UserError(f"nothing serves {deployment.name!r}", hint="deploy it first")
    if not current.image:
        raise UserError(
            f"{deployment.name!r} is served from a package on target {deployment.target!r}, not from an image",
            hint="deploy it to target='docker', or ml.build(…, export='DIR') for a Dockerfile",
        )
    into = Path(path).expanduser().absolute()
    if into.exists() and not into.read_text(encoding="utf-8", errors="replace").startswith(
        composed.FIRST_LINE
    ):
        raise UserError(f"{into} is there already, and not of ours", hint="name another file")
    grpc = urlsplit(f"//{release.grpc}").port if release.grpc else None
    into.write_text(
        composed.text(composed.document(deployment.name, current, http=port, grpc=grpc and port + 1)),
        encoding="utf-8",
    )
    return into
