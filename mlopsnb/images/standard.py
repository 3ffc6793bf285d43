"""Compiled modules of the base's own Python: official images come without, and each start would compile them again.

The sources are in the base's layers, which are searched once for each base. What a server imports of them, the proof
tells; they are compiled here, for bytecode is the same for all releases of a minor version.
"""

from __future__ import annotations

import sys
import sysconfig
import tarfile
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlopsnb.errors import BuildError
from mlopsnb.images.base import fetch_layer, unpacked
from mlopsnb.images.crew import Crew
from mlopsnb.images.digests import digest_of
from mlopsnb.images.environment.probe import Elsewhere, Known, Recorder
from mlopsnb.images.planning import data_file
from mlopsnb.images.references import parse
from mlopsnb.images.registry import connect

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store
    from mlopsnb.images.plan import Base, File

_FORMAT = "1"
_MOST_BYTES = 256 << 20
"""A larger base, such as one with CUDA, would be fetched for seconds that few of its users would notice."""

_NOT_SERVED = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "tkinter", "site-packages"}
_CACHE = "__pycache__"
_HEAD = 16


@dataclass(slots=True)
class Library:
    """What a base has in its standard library: sources and when they were changed, and the heads of what is compiled.

    All by path there. `plain` turns false if a directory on the way there is a link: our layer would put another in its
    place.
    """

    sources: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    compiled: dict[str, bytes] = field(default_factory=dict)
    plain: bool = True

    def lacks(self, path: str) -> bool:
        """Say whether Python would compile the module *path* at each start (PEP 552).

        It would too if the compiled one tells of another time: images whose files are all of 1970 have such.
        """
        source, changed = self.sources[path]
        head = self.compiled.get(_pyc(path), b"")
        if head[:4] != MAGIC_NUMBER:
            return True
        flags = int.from_bytes(head[4:8], "little")
        if flags == 0:
            stamp = b"".join((n & 0xFFFFFFFF).to_bytes(4, "little") for n in (changed, len(source)))
            return head[8:_HEAD] != stamp
        return flags != 1 and head[8:_HEAD] != source_hash(source)


def home(base: Base) -> PurePosixPath:
    """Return where the standard library of the base's Python is, without the first slash."""
    minor = ".".join(base.python_version.split(".")[:2])
    return PurePosixPath(base.python.lstrip("/")).parent.parent / "lib" / f"python{minor}"


class Standard:
    """Searches the layers of *base* in a thread, unless what is in them is known, and compiles what is asked for.

    Leaving the block by an exception calls the search off.
    """

    def __init__(self, base: Base, store: Store) -> None:
        self._base, self._store = base, store
        self._place = home(base)
        self._key = f"{_FORMAT} {base.digest} {base.platform} {self._place} {sys.implementation.cache_tag}"
        self._registry = connect(parse(base.reference).registry)
        self._crew = Crew(self._registry.cancel)
        self._search: Future[Library] | None = None

    def __enter__(self) -> Self:
        if self._known() is None and self._is_worth_it():
            self._search = self._crew.start(self._crew.senders, self._searched)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._crew.__exit__(kind, exc, trace)
        finally:
            self._registry.close()

    def compiled(self, modules: Collection[str]) -> tuple[File, ...]:
        """Return *modules* (`asyncio/base_events.py`) compiled, by their path in the image: those that the base lacks."""
        if not modules or not self._is_worth_it():
            return ()
        known = self._known()
        if known is None or not set(modules) <= known["index"].keys():
            known = self._more(known, modules)
        file = self._store.find(known["digest"], known["size"])
        assert file is not None
        data = file.read_bytes()
        places = {path: known["index"][path] for path in sorted(modules) if known["index"][path]}
        return tuple(
            data_file(f"{self._place}/{_pyc(path)}", data[start : start + size])
            for path, (start, size) in places.items()
        )

    def _is_worth_it(self) -> bool:
        return sum(layer.size for layer in self._base.layers) <= _MOST_BYTES

    def _known(self) -> Any:
        """Return what was compiled before: the file it is in, and where in it; nothing for what needs not be compiled."""
        note = self._store.note("standard", self._key)
        return note if note and self._store.find(note["digest"], note["size"]) else None

    def _more(self, known: Any, modules: Collection[str]) -> Any:
        """Compile *modules* besides those that are *known*, and keep all."""
        library = self._search.result() if self._search else self._searched()
        wanted = sorted({*modules, *(known["index"] if known else ())})
        made = _compile(library, wanted, str(self._place)) if library.plain else {}
        index: dict[str, tuple[int, int] | None] = dict.fromkeys(wanted)
        with self._store.writing() as file:
            data = bytearray()
            for path in wanted:
                if code := made.get(_pyc(path)):
                    index[path] = (len(data), len(code))
                    data += code
            file.write(bytes(data))
            digest = digest_of(bytes(data))
            file.keep(digest)
        note = {"digest": digest, "size": len(data), "index": index}
        self._store.set_note("standard", self._key, note)
        return note

    def _searched(self) -> Library:
        found = Library()
        for layer in self._base.layers:
            path = fetch_layer(self._base, layer, self._store, registry=self._registry)
            try:
                with path.open("rb") as file, unpacked(file) as plain, tarfile.open(fileobj=plain) as archive:
                    for member in archive:
                        self._check()
                        _take(found, member, archive, self._place)
            except tarfile.TarError:  # packed otherwise than we can read
                return Library()
        return found

    def _check(self) -> None:
        if self._crew.cancelled():
            raise BuildError("the search of the base image was called off")


def _take(found: Library, member: tarfile.TarInfo, archive: tarfile.TarFile, place: PurePosixPath) -> None:
    """Add what *member* of a layer brings to the library in *place*, or take away what it hides."""
    path = PurePosixPath(member.name.removeprefix("./").lstrip("/"))
    if path == place or path in place.parents:
        found.plain = found.plain and (member.isdir() or path == PurePosixPath("."))
        return
    if path.name.startswith(".wh."):
        _hide(found, path, place)
        return
    if not path.is_relative_to(place):
        return
    inner = path.relative_to(place)
    if member.issym() and member.linkname:
        found.sources.pop(str(inner), None)
    elif member.isreg() and not _NOT_SERVED & set(inner.parts):
        content = archive.extractfile(member)
        assert content is not None
        if inner.suffix == ".py":
            found.sources[str(inner)] = content.read(), int(member.mtime)
        elif inner.suffix == ".pyc" and inner.parent.name == _CACHE:
            found.compiled[str(inner)] = content.read(_HEAD)


def _hide(found: Library, path: PurePosixPath, place: PurePosixPath) -> None:
    """Take away what a whiteout hides: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md."""
    opaque = path.name == ".wh..wh..opq"
    hidden = path.parent if opaque else path.with_name(path.name.removeprefix(".wh."))
    for known in [*found.sources, *found.compiled]:
        if (place / known).is_relative_to(hidden):
            found.sources.pop(known, None)
            found.compiled.pop(known, None)


def _compile(library: Library, modules: Collection[str], place: str) -> Mapping[str, bytes]:
    """Return those *modules* that the library has as sources alone, by the path that Python looks for."""
    root = "/base"
    recorder = Recorder([root], f"/{place}", Known(None), Elsewhere([sysconfig.get_paths()["stdlib"]]))
    for path in modules:
        if path in library.sources and library.lacks(path):
            recorder.code(f"{root}/{path}", partial(_source, library, path))
    return recorder.compiled


def _source(library: Library, path: str) -> bytes:
    return library.sources[path][0]


def _pyc(path: str) -> str:
    source = PurePosixPath(path)
    return str(source.parent / _CACHE / f"{source.stem}.{sys.implementation.cache_tag}.pyc")
