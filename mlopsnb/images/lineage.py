"""What an image says of where its model came from, as labels: they can be read in a registry without a pull. Pure.

Only what is named here goes into an image, for tags are the user's, and may hold anything.
Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlopsnb.records import ModelVersion

_TAGS = {
    "mlflow.source.git.commit": "org.opencontainers.image.revision",
    "mlopsnb.cell_digest": "mlopsnb.cell",
    "mlopsnb.data_digest": "mlopsnb.data",
    "mlopsnb.environment_digest": "mlopsnb.environment",
    "mlopsnb.format": "mlopsnb.format",
    "mlopsnb.git.diff_digest": "mlopsnb.git.diff",
    "mlopsnb.git.dirty": "mlopsnb.git.dirty",
}
"""Tags of a model version, and the labels that they become."""


def labels(version: ModelVersion | None) -> dict[str, str]:
    """Return the labels of an image of *version*: digests, the commit, the notebook's name without its directory."""
    if version is None:
        return {}
    found = {label: version.tags[tag] for tag, label in _TAGS.items() if version.tags.get(tag)}
    if notebook := version.tags.get("mlopsnb.notebook"):
        found["mlopsnb.notebook"] = PurePath(notebook.replace("\\", "/")).name
    if version.run_id:
        found["mlopsnb.run"] = version.run_id
    return found | {"mlopsnb.model": version.uri}
