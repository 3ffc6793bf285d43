"""Runs alone, in the environment meant for an image: serves models there, asks them, and keeps what was compiled.

`python -I -S probe.py`. Sees the standard library, the installed packages, and the model server and local modules as
they go into the image; nothing else of this machine. Each module is compiled once, as it is imported, under the path that
it has in the image.

Each line of standard input is the path of a JSON file. The first says where all that is and what any model of the
environment imports. Each further one is a model: it is served in a fork, which writes `result.json`, `compiled` and
`said` into the directory that the file names; its exit status is told in a line of standard output. Ends with its input,
or when nothing was asked for long.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import marshal
import os
import select
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType
from typing import Any

_HEADER = 16
_UNCHECKED = (1).to_bytes(4, "little")
_LONG = "86400"
IDLE_SECONDS = 300.0
"""After so long nobody is likely to ask again soon, and memory is worth more."""

_ALIKE = ((3, 11),)
"""Versions of which it was seen, on 4,000 modules, that code gives the same bytes when it was read from a file before."""

_renamed: Callable[[CodeType, str], None] = importlib.import_module("_imp")._fix_co_filename
"""Says where code really lies, as the import system does for a module that was compiled elsewhere."""


class Known:
    """Modules that were compiled before, by path; read when the first is needed, for a fork has most of them already."""

    def __init__(self, where: Any) -> None:
        self._where = where or {"index": {}}
        self._data = b""

    def __contains__(self, path: str) -> bool:
        return path in self._where["index"]

    def __getitem__(self, path: str) -> bytes:
        self._data = self._data or Path(self._where["file"]).read_bytes()
        start, size = self._where["index"][path]
        return self._data[start : start + size]


class Elsewhere:
    """What the kernel's Python has compiled of the same sources, in the directories that it imports from."""

    def __init__(self, directories: list[str]) -> None:
        alike = sys.version_info[:2] in _ALIKE and sys.implementation.name == "cpython"
        self._directories = [Path(directory) for directory in directories] if alike else []

    def code(self, path: str, source: bytes, place: str) -> CodeType | None:
        """Return the module *path* as it was compiled from just this *source*, if it was, as lying in *place*."""
        for directory in self._directories:
            file = directory / path
            try:
                data = Path(importlib.util.cache_from_source(str(file))).read_bytes()
                if _is_of(data, file, source) and file.read_bytes() == source:
                    code: CodeType = marshal.loads(data[_HEADER:])  # noqa: S302  what the kernel itself imports
                    _renamed(code, place)
                    return code
            except (OSError, ValueError, EOFError, TypeError):  # not there, or not whole
                continue
        return None


def _is_of(pyc: bytes, file: Path, source: bytes) -> bool:
    """Say whether *pyc* is valid for *file*, which should hold *source*, as the import system does (PEP 552)."""
    flags = int.from_bytes(pyc[4:8], "little")
    if pyc[:4] != importlib.util.MAGIC_NUMBER or flags > 3:
        return False
    if flags:
        return pyc[8:_HEADER] == importlib.util.source_hash(source)
    now = file.stat()
    stamp = (int(now.st_mtime), now.st_size)
    return pyc[8:_HEADER] == b"".join((n & 0xFFFFFFFF).to_bytes(4, "little") for n in stamp)


class Recorder:
    """Compiles modules below *roots*, which all become the directory *place*, and remembers the result by path.

    *known* are those that were compiled before, *elsewhere* has some that need not be compiled; `compiled` holds all
    that were needed. The same source gives the same bytes, whatever else this process did.
    """

    def __init__(self, roots: list[str], place: str, known: Known, elsewhere: Elsewhere) -> None:
        self._roots = tuple(f"{root}{os.sep}" for root in roots)
        self._place = place
        self._elsewhere = elsewhere
        self.known = known
        self.compiled: dict[str, bytes] = {}
        self.used: set[str] = set()
        for letter in range(256):  # marshal tells interned strings apart, and others may have interned these
            sys.intern(chr(letter))

    def install(self) -> None:
        """Take over the import of modules below the roots."""
        sys.path_hooks.insert(0, self._finder)
        sys.path_importer_cache.clear()

    def _finder(self, path: str) -> FileFinder:
        if not f"{path}{os.sep}".startswith(self._roots):
            raise ImportError(path)

        loader: Any = partial(_Loader, recorder=self)
        return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (loader, SOURCE_SUFFIXES))

    def code(self, file: str, read: Callable[[], bytes]) -> CodeType:
        """Return the code of the module in *file*, as it is run here."""
        root = next(root for root in self._roots if file.startswith(root))
        path = file[len(root) :]
        directory, _, name = path.rpartition("/")
        tag = f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
        pyc = f"{directory}/__pycache__/{tag}".lstrip("/")
        self.used.add(pyc)
        if pyc in self.known:
            # Kept as if compiled here: the model that is asked for next may be of a build that knows less.
            self.compiled[pyc] = self.known[pyc]
            code: CodeType = marshal.loads(self.compiled[pyc][_HEADER:])  # noqa: S302  written by ourselves
        else:
            source = read()
            code, dumped = self._code(path, source)
            stamp = importlib.util.source_hash(source)
            self.compiled[pyc] = importlib.util.MAGIC_NUMBER + _UNCHECKED + stamp + dumped
        _renamed(code, file)
        return code

    def _code(self, path: str, source: bytes) -> tuple[CodeType, bytes]:
        """Return the code of a module and its bytes, which are the same if it comes from elsewhere."""
        place = f"{self._place}/{path}"
        code = self._elsewhere.code(path, source, place)
        parts = _parts(code)
        # Equal sets may be one object or several, and what is dumped tells the difference.
        if code is None or any(isinstance(part, frozenset) for part in parts):
            code = compile(source, place, "exec", dont_inherit=True)
            parts = _parts(code)
        return code, marshal.dumps(code)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, file: str, *, recorder: Recorder) -> None:
        super().__init__(name, file)
        self._recorder = recorder

    def get_code(self, fullname: str) -> CodeType:
        return self._recorder.code(self.path, lambda: self.get_data(self.path))


def _parts(code: CodeType | None) -> list[object]:
    """Return all that *code* consists of. While it is held, `marshal` dumps the code the same each time.

    marshal marks what is referenced more than once, and so depends on who else holds a constant.
    """
    parts: list[object] = []
    left: list[object] = [code]
    while left:
        item = left.pop()
        parts.append(item)
        if isinstance(item, CodeType):
            left += [
                item.co_name,
                item.co_qualname,
                item.co_filename,
                item.co_linetable,
                item.co_exceptiontable,
            ]
            left += [*item.co_names, *item.co_varnames, *item.co_cellvars, *item.co_freevars, *item.co_consts]
        elif isinstance(item, (tuple, frozenset)):
            left += item
    return parts


def main() -> None:
    """Do what the module says."""
    gc.set_threshold(20_000)  # a framework that is imported makes 200,000 objects, and hardly any garbage
    asked = open(0, "rb", buffering=0)  # noqa: SIM115  what is read ahead, `select` would not see
    config = _message(asked.readline())
    elsewhere = Elsewhere(config["elsewhere"])
    recorder = Recorder(config["roots"], config["place"], Known(config["known"]), elsewhere)
    recorder.install()
    import site

    for root in config["roots"]:
        site.addsitedir(root)
    with suppress(Exception):  # told by the model that needs it
        importlib.import_module("mlopsnb.serving.model").import_framework(config["format"])
    for module in config["modules"]:
        with suppress(Exception):
            importlib.import_module(module)
    while select.select([asked], [], [], IDLE_SECONDS)[0] and (line := asked.readline()):
        child = os.fork()
        if child == 0:
            _answer(recorder, _message(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    shutil.rmtree(config["home"], ignore_errors=True)  # who started us may be gone


def _message(line: bytes) -> Any:
    return json.loads(Path(os.fsdecode(line.rstrip(b"\n"))).read_bytes())


def _answer(recorder: Recorder, asked: Mapping[str, Any]) -> None:
    """Serve the model that is *asked* for, write what came of it, and end the process."""
    out = Path(asked["out"])
    for fd, path in ((0, Path(os.devnull)), (1, Path(os.devnull)), (2, out / "said")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)

    def done(result: Mapping[str, str]) -> None:
        try:
            if not result:
                for source in asked["compiled_anyway"]:
                    recorder.code(source, Path(source).read_bytes)
            _write(recorder, out, result)
        except Exception as exc:  # noqa: BLE001  whatever it is, whoever asked has to know
            traceback.print_exc()
            _write(recorder, out, {"error": f"{type(exc).__name__}: {exc}"})
        sys.stderr.flush()
        os._exit(0)  # the server and the framework take their time to go, and nobody needs that

    try:
        recorder.known = Known(asked["known"])
        done(_serve(asked["package"], done))
    except BaseException as exc:  # noqa: BLE001  as above
        traceback.print_exc()
        done({"error": f"{type(exc).__name__}: {exc}"})


def _write(recorder: Recorder, out: Path, result: Mapping[str, str]) -> None:
    index: dict[str, tuple[int, int]] = {}
    with (out / "compiled").open("wb") as compiled:
        for module, data in sorted(recorder.compiled.items()):
            if module not in recorder.known:
                index[module] = (compiled.tell(), len(data))
                compiled.write(data)
    used = {"packages": sorted(recorder.used), "standard": _standard()}
    told = {**result, "used": used, "compiled": index}
    (out / "result.json").write_text(json.dumps(told), encoding="utf-8")


def _standard() -> list[str]:
    """Return the modules of Python's own library that were imported from sources, by their path there."""
    home = f"{os.path.dirname(os.__file__)}{os.sep}"  # noqa: PTH120  text is compared with text
    places = [str(getattr(getattr(m, "__spec__", None), "origin", "")) for m in [*sys.modules.values()]]
    return sorted(
        p.removeprefix(home)
        for p in {*places}
        if p.startswith(home) and p.endswith(".py") and "site-packages" not in p
    )


def _serve(package: str, done: Callable[[Mapping[str, str]], None]) -> dict[str, str]:
    """Serve *package* as the image will and call *done* with what was wrong with its answers, nothing if all was right.

    Returns, with what went wrong, only if it could not be asked.
    """
    from mlopsnb import manifest
    from mlopsnb.serving import __main__ as server
    from mlopsnb.serving import tuning

    # How fast it is here tells nothing about there; and whoever asks has just compared all files with their digests.
    tuning.measure = lambda *args, **options: tuning.Measured(seconds={1: 1.0})
    manifest.verify = lambda *args: None
    read_end, write_end = os.pipe()
    failed = {"error": "the server ended before it was asked"}

    def ask() -> None:
        with open(read_end, "rb") as pipe:  # noqa: PTH123  a descriptor
            told = json.loads(pipe.readline() or b"{}")
        if not told.get("ready"):
            failed.update(told or {"error": "the server ended while it started"})
            return
        try:
            done(_ask(Path(package), told))
        except Exception as exc:  # noqa: BLE001  told as the result
            traceback.print_exc()
            done({"error": f"{type(exc).__name__}: {exc}"})

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    options = {"host": "127.0.0.1", "port": 0, "grpc-port": 0, "workers": 1, "name": "model"}
    limits = {"ready-fd": write_end, "request-timeout": _LONG, "max-body-bytes": "2GB"}
    server.main([package, *(f"--{name}={value}" for name, value in (options | limits).items())])
    thread.join(5.0)
    return failed


def _ask(package: Path, told: Mapping[str, str]) -> dict[str, str]:
    """Ask in each way that a client may; compare the answer to the golden example. Return what went wrong."""
    from mlopsnb import manifest, parity
    from mlopsnb.serving import v2
    from mlopsnb.tensors import take_rows

    described = manifest.read(package)
    golden, answers = manifest.read_example(package)
    body, length = v2.encode_binary_request(golden)
    binary = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    url = told["url"].removeprefix("http://")
    status, headers, reply = _post(url, "/v2/models/model/infer", body, binary)
    if status != 200:
        return {"error": f"it answered {status} to its own example: {reply[:500].decode(errors='replace')}"}
    at = headers.get("inference-header-content-length")
    found = v2.decode_response(reply, header_length=int(at) if at else None)
    if answers:
        tolerance = described.parity.tolerance if described.parity else None
        wrong = parity.failure(parity.compare(answers, found, tolerance=tolerance))
        if wrong is not None:
            return {"error": f"it answers otherwise than the notebook's model. {wrong.message}"}
    has_rows = all(spec.shape and spec.shape[0] is None for spec in described.signature.inputs)
    few = take_rows(golden, 1) if has_rows else golden
    return _ask_otherwise(url, few) or _ask_by_grpc(told["grpc"], few)


def _post(
    url: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    from http.client import HTTPConnection

    connection = HTTPConnection(url)
    try:
        connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _ask_otherwise(url: str, few: Mapping[str, Any]) -> dict[str, str]:
    """Use what else the server offers: what that imports is imported by the first client too."""
    from mlopsnb.serving import v2
    from mlopsnb.serving.errors import BadRequest

    requests: list[tuple[str, bytes | None]] = [
        (path, None) for path in ("/ready", "/metrics", "/v2/models/model")
    ]
    try:
        message = json.loads(v2.encode_request(few))
    except BadRequest:  # JSON has no infinity
        message = None
    if message is not None:
        columns = {tensor["name"]: tensor["data"] for tensor in message["inputs"]}
        requests.append(("/v2/models/model/infer", json.dumps(message).encode()))
        requests.append(("/invocations", json.dumps({"inputs": columns}).encode()))
        requests.append(("/v1/models/model:predict", json.dumps({"inputs": columns}).encode()))
    for path, body in requests:
        status, _, reply = _post(url, path, body, {"content-type": "application/json"})
        if status >= 500:
            return {"error": f"{path} answered {status}: {reply[:500].decode(errors='replace')}"}
    return {}


def _ask_by_grpc(address: str, few: Mapping[str, Any]) -> dict[str, str]:
    import grpc

    from mlopsnb.serving import binary, v2
    from mlopsnb.serving.rpc.messages import SERVICE, message
    from mlopsnb.tensors import dtype_name

    request = message("ModelInferRequest")(model_name="model")
    for name, array in few.items():
        request.inputs.add(name=name, datatype=v2.DATATYPES[dtype_name(array)], shape=list(array.shape))
        request.raw_input_contents.append(binary.to_bytes(array))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        try:
            call(request)
        except grpc.RpcError as exc:
            return {"error": f"gRPC answered {exc.code().name}: {exc.details()}"}
    return {}


if __name__ == "__main__":
    main()
