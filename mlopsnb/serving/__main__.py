"""`python -m mlopsnb.serving PACKAGE`: the command, its exit codes, and what it tells the one who started it.

Exit codes: 0 stopped by a signal and drained, 1 a fault of ours, 2 usage, 3 no sound package, 4 the model cannot be
loaded or does not run here, 5 an address is taken or not ours, 6 a file of tokens or TLS cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import MissingExtra, MlopsnbError
from mlopsnb.extras import need
from mlopsnb.manifest import BadPackage
from mlopsnb.serving import arguments, cpu
from mlopsnb.serving.errors import BadOption, BadSecret, CannotListen
from mlopsnb.serving.guards import Guards, guards
from mlopsnb.serving.listen import Sockets, bind_grpc, open_sockets
from mlopsnb.serving.logfile import LogFile
from mlopsnb.serving.readypipe import ReadyPipe
from mlopsnb.serving.workers import pids, possible

if TYPE_CHECKING:
    import socket

    from mlopsnb.serving.app import App
    from mlopsnb.serving.capture import Capture
    from mlopsnb.serving.counters import Counters
    from mlopsnb.serving.engine import Engine
    from mlopsnb.serving.payloads import PayloadLog
    from mlopsnb.serving.requestlog import Sink
    from mlopsnb.serving.rpc.server import GrpcServer
    from mlopsnb.serving.tuning import Options
    from mlopsnb.serving.workers import Seat


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit code."""
    parser = arguments.parser()
    args = parser.parse_args(argv)
    for fd in (args.fd, args.ready_fd, args.alive_fd):
        if fd is not None and not _keep_to_ourselves(fd):
            parser.error(f"file descriptor {fd} is not open")
    if args.grpc_port == 0 and _waits_for_public(args):
        parser.error("--grpc-port needs a number where the public socket is handed over")
    if args.log_payload_file is not None and args.log_payloads is None:
        parser.error("--log-payload-file needs --log-payloads")
    if (args.capture is None) != (args.capture_dir is None):
        parser.error("--capture and --capture-dir need each other")
    report = ReadyPipe(args.ready_fd)
    try:
        # A cache is of use where all requests for a row come to it; several would each miss first.
        most = args.workers or (1 if args.cache_bytes else possible())
        return _serve_alone(args, report) if most == 1 else _supervise(args, report, most)
    except MlopsnbError as exc:
        return _ended(exc, report)
    except KeyboardInterrupt:  # while loading; later the server itself takes signals
        return 130


def _ended(exc: MlopsnbError, report: ReadyPipe) -> int:
    """Say why we do not serve and return the exit code. The log first: who is told may end us at once."""
    hint = f" ({exc.hint})" if exc.hint else ""
    print("mlopsnb.serving: error:", " ".join(f"{exc.message}{hint}".split()), file=sys.stderr, flush=True)  # noqa: T201
    report.failed(exc)
    return _exit_code(exc)


def _exit_code(exc: MlopsnbError) -> int:
    if isinstance(exc, BadPackage):
        return 3
    if isinstance(exc, BadOption):
        return 2
    if isinstance(exc, BadSecret):
        return 6
    return 5 if isinstance(exc, CannotListen) else 4


def _keep_to_ourselves(fd: int) -> bool:
    """Keep children of the model from inheriting *fd*: they would hold the port, the pipe or the lock."""
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return False
    return True


def _waits_for_public(args: argparse.Namespace) -> bool:
    """Say whether the public socket comes later, from another process, which has gRPC's port until then too."""
    return args.control is not None and args.port is None and args.fd is None


def _serve_alone(args: argparse.Namespace, report: ReadyPipe) -> int:
    sockets = _open(args)
    try:
        return _serve(args, report, sockets)
    finally:
        sockets.close()


def _supervise(args: argparse.Namespace, report: ReadyPipe, most: int) -> int:
    """Run up to *most* workers. Returns in each of them as well, when it has ended."""
    from mlopsnb.serving.board import Board
    from mlopsnb.serving.supervisor import Supervisor

    reserved: socket.socket | None = None

    def tell(message: dict[str, Any]) -> None:
        here = {"url": sockets.url, "pid": os.getpid()} if message["ready"] else {}
        report.forward({**message, **here})

    with _logging(args):
        sockets = _open(args)
        try:
            if args.grpc_port is not None and not _waits_for_public(
                args
            ):  # held for the workers, which share it
                reserved = bind_grpc(args.host, args.grpc_port)
                args.grpc_port = reserved.getsockname()[1]
            seat = Supervisor(sockets, Board(most), tell, grpc=args.grpc_port is not None).run()
        except BaseException:
            sockets.close()
            raise
        finally:
            if reserved is not None:
                reserved.close()
    if isinstance(seat, int):
        sockets.close()
        return seat
    report.close()
    with seat.channel:
        return _work(args, seat)


@contextlib.contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Write what the supervisor logs to the log file, if there is one; each worker opens it for itself."""
    if args.log_file is None:
        yield
        return
    file = LogFile(args.log_file, max_bytes=args.log_max_bytes, also=(1, 2))
    handler = logging.StreamHandler(_Text(file))
    logger = logging.getLogger("mlopsnb.serving")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        file.close()


class _Text:
    """A log file as `logging` writes to it."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write *text*, a line."""
        self._file.write(text.encode())


def _work(args: argparse.Namespace, seat: Seat) -> int:
    """Serve as the worker that has *seat*, and tell the supervisor that we do, or why not."""
    report = ReadyPipe(os.dup(seat.channel.fileno()))
    try:
        return _serve(args, report, Sockets(), seat)
    except MlopsnbError as exc:
        return _ended(exc, report)


def _serve(args: argparse.Namespace, report: ReadyPipe, sockets: Sockets, seat: Seat | None = None) -> int:
    """Load the model and serve it on *sockets*, or as the worker that has *seat*, until stopped."""
    try:
        _import_uvicorn()
        from mlopsnb.serving import stages, tracing
        from mlopsnb.serving.app import App
        from mlopsnb.serving.server import Server
        from mlopsnb.serving.worker import WorkerServer
    except ModuleNotFoundError as exc:
        raise MissingExtra(exc.name or "", "serving") from exc
    for module in (
        "prometheus_client",
        "simdjson",
    ):  # imported when first needed, which is too late to say so
        if find_spec(module) is None:
            raise MissingExtra(module, "serving")
    if args.grpc_port is not None:
        need("grpc", extra="grpc")
    path: Path = args.package.absolute()
    name = args.name or (path.name if arguments.NAME.fullmatch(path.name) else "model")
    guarded = guards(args)
    log = _log(args, shared=seat is not None)
    traces = tracing.from_environment(name, args.version, scheme=_scheme(args), asked=args.otel)
    engine = _engine(args, path, name, seat)
    spare = _fallback(args, engine)
    cache_bytes = args.cache_bytes
    workers, first = 1, seat is None or not seat.board.note
    if seat:
        workers = seat.settle(engine.plan, _options(args), args.workers)
        cache_bytes = cache_bytes and cache_bytes // workers
        guarded = guarded.shared(workers)
    stage = stages.compose(engine, cache_bytes=cache_bytes, fallback=spare)
    gc.freeze()  # a framework is a million objects, which the collector need not look at again and again
    app = App(
        engine,
        name=name,
        version=args.version,
        max_body_bytes=args.max_body_bytes,
        log=log,
        request_timeout=args.request_timeout,
        stage=stage,
        tracing=traces,
        payloads=_payloads(args, log, engine, name),
        capture=_capture(args, engine, name),
        counters=_counters(args, engine, workers, seat, first=first),
        workers=(lambda: seat.serving) if seat else (lambda: 1),
        tokens=guarded.tokens,
    )
    grpc = _grpc(args, app, guarded, seat)
    server = (partial(WorkerServer, seat=seat) if seat else Server)(
        app,
        sockets,
        drain_seconds=args.drain_seconds,
        on_ready=lambda: report.ready(sockets.url, grpc.address if grpc else None),
        grpc=grpc,
        grpc_waits=_waits_for_public(args),
        limits=guarded.limits,
        tls=guarded.tls,
    )
    server.run_until_stopped()
    for left in (engine, spare, traces):
        if left is not None:
            left.close()
    return 0


def _import_uvicorn() -> None:
    """Import uvicorn without its command line, which would bring click and multiprocessing: 2 MB and 20 ms.

    What uvicorn takes from `uvicorn.main` loads that when it is called. Later imports find the real one.
    """
    if "uvicorn" in sys.modules:
        return
    stand_in = ModuleType("uvicorn.main")

    def attribute(name: str) -> object:
        if name == "Server":
            return import_module("uvicorn.server").Server

        def later(*args: Any, **options: Any) -> Any:
            return getattr(import_module("uvicorn.main"), name)(*args, **options)

        return later

    stand_in.__getattr__ = attribute  # type: ignore[method-assign]
    sys.modules[stand_in.__name__] = stand_in
    try:
        import_module("uvicorn")
    finally:
        del sys.modules[stand_in.__name__]


@contextlib.contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Have garbage looked for less often: a framework that is imported makes 200,000 objects, and hardly any garbage."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collecting()
def _engine(args: argparse.Namespace, path: Path, name: str, seat: Seat | None) -> Engine:
    from mlopsnb.serving.engine import Engine
    from mlopsnb.serving.metrics import Metrics

    if seat is None:
        return Engine.load(path, _options(args), Metrics(name, args.version))
    from mlopsnb.serving.processes import Processes

    processes = Processes(os.getppid(), partial(pids, seat.board))
    metrics = Metrics(name, args.version, counters=seat.counters, processes=processes)
    cpus = max(1, math.floor(cpu.limit()) // (args.workers or 1))
    return Engine.load(path, _options(args), metrics, cpus=cpus, plan=seat.plan)


def _fallback(args: argparse.Namespace, engine: Engine) -> Engine | None:
    if args.fallback is None:
        return None
    from mlopsnb.serving import fallback

    return fallback.load(args.fallback.absolute(), engine)


def _log(args: argparse.Namespace, *, shared: bool) -> Sink:
    if args.log_file is None:
        from mlopsnb.serving.requestlog import WholeLines

        return WholeLines(sys.stdout.fileno()) if shared else sys.stdout.buffer
    return LogFile(args.log_file, max_bytes=args.log_max_bytes, also=(1, 2))


def _payloads(args: argparse.Namespace, log: Sink, engine: Engine, name: str) -> PayloadLog | None:
    from mlopsnb.serving.payloads import PayloadLog, check_mask

    signature = engine.manifest.signature
    check_mask(args.mask, signature)
    if args.log_payloads is None:
        return None
    if args.log_payload_file is not None:
        log = LogFile(args.log_payload_file, max_bytes=args.log_max_bytes)
    return PayloadLog(
        log,
        signature,
        rate=args.log_payloads,
        mask=args.mask,
        max_bytes=args.log_payload_bytes,
        about={"model": name, "version": args.version},
    )


def _capture(args: argparse.Namespace, engine: Engine, name: str) -> Capture | None:
    if args.capture is None:
        return None
    from mlopsnb.serving.capture import Capture

    return Capture(
        args.capture_dir.absolute(),
        engine.manifest.signature,
        rate=args.capture,
        mask=args.mask,
        max_bytes=args.capture_bytes,
        about={"model": name, "version": args.version, "digest": engine.manifest.digest},
    )


def _counters(
    args: argparse.Namespace, engine: Engine, workers: int, seat: Seat | None, *, first: bool
) -> Counters | str:
    from mlopsnb.serving import reference

    place = reference.Place(
        directory=args.profile_dir and args.profile_dir.absolute(),
        seconds=args.profile_window,
        parts=workers,
        part=seat.worker if seat else 0,
        first=first,
        shared=seat.board.spare if seat else None,
    )
    return reference.counters(engine.package, place)


def _grpc(args: argparse.Namespace, app: App, guarded: Guards, seat: Seat | None) -> GrpcServer | None:
    if args.grpc_port is None:
        return None
    from mlopsnb.serving.rpc.server import GrpcServer

    shared = seat is not None or args.control is not None
    if args.control is not None and seat is None and not _waits_for_public(args):
        bind_grpc(args.host, args.grpc_port).close()  # the next process may share it, strangers may not
    return GrpcServer(
        app, host=args.host, port=args.grpc_port, limits=guarded.limits, tls=guarded.tls, shared=shared
    )


def _options(args: argparse.Namespace) -> Options:
    from mlopsnb.serving.tuning import Options

    return Options(
        batching=args.batching,
        max_batch_size=args.max_batch_size,
        preferred_batch_size=args.preferred_batch_size,
        max_queue_delay_ms=args.max_queue_delay_ms,
        instances=args.instances,
        max_queue_rows=args.max_queue_rows,
    )


def _scheme(args: argparse.Namespace) -> str:
    return "http" if args.tls_certificate is None else "https"


def _open(args: argparse.Namespace) -> Sockets:
    port: int | None = args.port
    if port is None and args.fd is None and args.uds is None and args.control is None:
        port = arguments.DEFAULT_PORT
    return open_sockets(
        host=args.host, port=port, fd=args.fd, uds=args.uds, control=args.control, scheme=_scheme(args)
    )


if __name__ == "__main__":
    sys.exit(main())
