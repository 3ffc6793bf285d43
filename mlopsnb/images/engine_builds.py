"""What only builds need of an engine: to run its builder, to clean up behind it, and to have it push.

Source: https://docs.docker.com/reference/api/engine/version/v1.41/. docker-py speaks to the classic builder alone
(docker/docker-py#2230).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlopsnb.images.engine import Engine

if TYPE_CHECKING:
    from mlopsnb.images.credentials import Credentials


class BuildEngine(Engine):
    """An engine that builds. Names are moved and removed one at a time; an image with a name is never removed."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: list[Any] = []
        self._api.hooks["response"].append(lambda answer, **_: self._answers.append(answer))

    def build(self, context: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
        """Send a context and yield what the builder tells. The image gets no name."""
        with self._translated("build"):
            yield from self._api.build(
                fileobj=context, custom_context=True, rm=True, forcerm=True, decode=True, timeout=None
            )

    def push(
        self, name: str, tag: str, credentials: Credentials | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """Have the engine push `name:tag` and yield what it tells, an `error` included."""
        auth = {}
        if credentials:
            auth = {"username": credentials.user, "password": credentials.password}
            if credentials.identity_token:
                auth = {"identitytoken": credentials.identity_token}
        with self._translated(f"push {name}:{tag}"):
            yield from self._api.push(name, tag, stream=True, decode=True, auth_config=auth)

    def hang_up(self) -> None:
        """Close what `build` or `push` reads from, so that the engine stops with it."""
        for answer in self._answers:
            answer.close()
        self._answers.clear()

    @contextmanager
    def naming(self, image: str, name: str) -> Iterator[None]:
        """Give an image a name; if the block fails, the name means again what it meant before.

        An image that had no other name is then removed.
        """
        before = self.image(name)
        with self._translated(f"name an image {name}"):
            self._api.tag(image, *_split(name))
        try:
            yield
        except BaseException:
            self.hang_up()
            with self._translated(f"take back the name {name}"):
                if before:
                    self._api.tag(before.id, *_split(name))
                else:
                    self._api.remove_image(name)
            raise
        if before and before.id != image:
            self.remove_untagged(before.id)

    def name(self, image: str, name: str) -> None:
        """Give an image a name. What had it before is removed, unless it has another one or is in use."""
        with self.naming(image, name):
            pass

    def remove_untagged(self, image: str) -> bool:
        """Remove an image, and what only it stands on, if neither a name nor another image nor a container has it."""
        errors = self._docker.errors
        with self._translated(f"remove {image}"):
            try:
                if self._api.inspect_image(image).get("RepoTags"):
                    return False
                self._api.remove_image(image)
            except errors.NotFound:
                return False
            except errors.APIError as exc:
                if exc.status_code != 409:
                    raise
                return False
        return True

    def remove_container(self, container: str) -> None:
        """End and remove a container, if it is still there."""
        errors = self._docker.errors
        with self._translated(f"remove the container {container}"):
            try:
                self._api.remove_container(container, v=True, force=True)
            except errors.NotFound:
                pass
            except errors.APIError as exc:
                if exc.status_code != 409:  # 409: the engine is removing it already
                    raise

    def remove_descendants(self, images: Sequence[str]) -> bool:
        """Remove those of *images* that have no name, and all that stands on them; say whether there was anything."""
        with self._translated("list its images"):
            listed = self._api.images(all=True)
        parents = {image["Id"]: image.get("ParentId", "") for image in listed}
        ours = {i for i in parents if any(i.removeprefix("sha256:").startswith(made) for made in images)}
        while more := {i for i, parent in parents.items() if parent in ours and i not in ours}:
            ours |= more
        leaves = ours - {parents[i] for i in ours}
        removed = [image for image in sorted(leaves) if self.remove_untagged(image)]
        return bool(removed)

    def sizes(self, image: str) -> list[tuple[str, int]]:
        """Return how each layer or setting of an image was made and how many bytes it has, oldest first."""
        with self._translated(f"look at {image}"):
            history = self._api.history(image)
        return [(str(item["CreatedBy"]), int(item["Size"])) for item in reversed(history)]


def _split(name: str) -> tuple[str, str]:
    repository, _, tag = name.rpartition(":")
    return repository, tag
