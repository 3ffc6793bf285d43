"""What an engine tells while it builds: which step it is at, what it made, and why it failed. Pure.

Reads the stream of `POST /build` as the classic builder and podman write it; what it does not know it takes for output of
a step. Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Image/operation/ImageBuild.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

_STEP = re.compile(r"STEP (\d+)/(\d+) ?: (.+)", re.IGNORECASE)
_RUNNING = re.compile(r" ---> Running in ([0-9a-f]{12,64})")
_IMAGE = re.compile(r" ---> ([0-9a-f]{12,64})")
_REMOVED = re.compile(r"Removing intermediate container ([0-9a-f]{12,64})")
_BUILT = re.compile(r"Successfully built ([0-9a-f]{12,64})")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""The classic builder paints what comes from standard error."""
_TAIL = 12
_WIDTH = 400


class BuildLog:
    """Give `read` every message, in order.

    `step` of `steps` is under way and carries out `instruction`. `image` is the finished image's id, `made` are those of
    images that this build made on the way, oldest first, `containers` those that it runs, and `stages` maps the name of a
    stage to the image that it ended with, once the next stage stands on it. `error` is why the build failed.
    """

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.instruction = self.image = self.error = ""
        self.made: list[str] = []
        self.containers: list[str] = []
        self.stages: dict[str, str] = {}
        self._cached = False
        self._rest = ""
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def read(self, message: Mapping[str, Any]) -> None:
        """Take in one message."""
        *lines, self._rest = (self._rest + str(message.get("stream", ""))).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line).rstrip("\r"))
        aux = message.get("aux")
        if isinstance(aux, Mapping) and "ID" in aux:
            self.image = str(aux["ID"])
        if "error" in message:
            self._line(_COLOUR.sub("", self._rest))
            self._rest = ""
            self.error = str(message["error"]) or "no reason given"

    @property
    def tail(self) -> str:
        """The last lines that the step under way has written."""
        return "\n".join(self._tail)

    def _line(self, line: str) -> None:
        if found := _STEP.fullmatch(line):
            self.step, self.steps, self.instruction = int(found[1]), int(found[2]), found[3].strip()
            self._cached = False
            self._tail.clear()
        elif found := _RUNNING.fullmatch(line):
            self.containers.append(found[1])
        elif found := _REMOVED.fullmatch(line):
            self.containers = [c for c in self.containers if c != found[1]]
        elif line == " ---> Using cache":
            self._cached = True
        elif found := _IMAGE.fullmatch(line):
            self._image(found[1])
        elif found := _BUILT.fullmatch(line):
            self.image = self.image or found[1]
        elif line.strip():
            self._tail.append(line[:_WIDTH])

    def _image(self, image: str) -> None:
        words = self.instruction.split()
        if words and words[0].upper() == "FROM":
            self.stages[words[1]] = image
        elif not self._cached:
            self.made.append(image)
