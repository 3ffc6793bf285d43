"""`python -m mlopsnb.serving PACKAGE`: the command, its exit codes, and what it tells the one who started it.

Exit codes: 0 stopped by a signal and drained, 1 a fault of ours, 2 usage, 3 no sound package, 4 the model cannot be
loaded or does not run here, 5 an address is taken or not ours, 6 a file of tokens or TLS cannot be used.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import MissingExtra, MlopsnbError
from mlopsnb.extras import need
from mlopsnb.manifest import BadPackage
from mlopsnb.serving.errors import BadOption, BadSecret, CannotListen
from mlopsnb.serving.guards import Guards, add_options, guards
from mlopsnb.serving.listen import Sockets, open_sockets
from mlopsnb.serving.logfile import MAX_BYTES, LogFile

if TYPE_CHECKING:
    from mlopsnb.serving.app import App
    from mlopsnb.serving.engine import Engine
    from mlopsnb.serving.payloads import PayloadLog
    from mlopsnb.serving.requestlog import Sink
    from mlopsnb.serving.rpc.service import GrpcServer
    from mlopsnb.serving.tuning import Options

DEFAULT_PORT = 8080
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_BYTES = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>|[kKMG]i?B)")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    for fd in (args.fd, args.ready_fd, args.alive_fd):
        if fd is not None and not _keep_to_ourselves(fd):
            parser.error(f"file descriptor {fd} is not open")
    if args.log_payload_file is not None and args.log_payloads is None:
        parser.error("--log-payload-file needs --log-payloads")
    report = ReadyPipe(args.ready_fd)
    try:
        _serve(args, report)
    except MlopsnbError as exc:
        report.failed(exc)
        hint = f" ({exc.hint})" if exc.hint else ""
        print("mlopsnb.serving: error:", " ".join(f"{exc.message}{hint}".split()), file=sys.stderr)  # noqa: T201
        return _exit_code(exc)
    except KeyboardInterrupt:  # while loading; later the server itself takes signals
        return 130
    return 0


def _exit_code(exc: MlopsnbError) -> int:
    if isinstance(exc, BadPackage):
        return 3
    if isinstance(exc, BadOption):
        return 2
    if isinstance(exc, BadSecret):
        return 6
    return 5 if isinstance(exc, CannotListen) else 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlopsnb.serving", description="Serve one model package.")
    add = parser.add_argument
    add("package", type=Path, metavar="PACKAGE", help="the directory that holds model.json")
    add("--name", type=_name, help="the model's name in URLs (default: the directory's name, or model)")
    add("--version", type=_name, default="1", help="the model's version in URLs (default: %(default)s)")
    add("--host", default="127.0.0.1", help="public address (default: %(default)s)")
    public = parser.add_mutually_exclusive_group()
    public.add_argument(
        "--port", type=_port, help=f"public port, 0 for any (default: {DEFAULT_PORT} if no socket is named)"
    )
    public.add_argument("--fd", type=int, help="listen on this inherited, bound TCP socket instead")
    add("--uds", type=Path, metavar="PATH", help="also listen on this unix socket")
    add(
        "--grpc-port",
        type=_port,
        help="also serve gRPC, on this port of the host; 0 for any (default: no gRPC)",
    )
    add("--control", type=Path, metavar="PATH", help="unix socket that hands the public socket over")
    add("--ready-fd", type=int, help="write one line of JSON here when ready, or failed")
    add("--alive-fd", type=int, help="keep this descriptor open for as long as the process lives")
    add(
        "--drain-seconds", type=_not_negative, default=5.0, help="for open connections (default: %(default)s)"
    )
    add("--max-body-bytes", type=_bytes, default=64 << 20, help="largest request body (default: %(default)s)")
    add("--cache-bytes", type=_bytes, help="keep answers in so much memory, such as 64MB (default: none)")
    add(
        "--fallback",
        type=Path,
        metavar="PACKAGE",
        help="a package with the same signature, which answers while the model cannot",
    )
    _add_logs(parser.add_argument_group("what is told of requests"))
    add_options(parser, count=_count, seconds=_positive)
    _add_tuning(parser.add_argument_group("how the model is run (default: found out by a self-test at load)"))
    return parser


def _add_logs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--log-file",
        type=Path,
        metavar="PATH",
        help="write the log, standard output and standard error here; a full file becomes PATH.1",
    )
    add(
        "--log-max-bytes",
        type=_bytes,
        default=MAX_BYTES,
        metavar="BYTES",
        help="when a log file is full (default: %(default)s)",
    )
    add(
        "--log-payloads",
        type=_share,
        metavar="RATE",
        help="log the inputs and outputs of this share of the requests, above 0 and up to 1 (default: of none)",
    )
    add("--log-payload-file", type=Path, metavar="PATH", help="where to (default: to the log)")
    add(
        "--log-payload-bytes",
        type=_bytes,
        default=16_384,
        metavar="BYTES",
        help="longest line; rows beyond are left out (default: %(default)s)",
    )
    add(
        "--mask",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME,…",
        help="inputs, outputs and features whose values are not logged",
    )
    add(
        "--otel",
        action="store_true",
        help="trace with OpenTelemetry; as well if OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT is set",
    )


def _add_tuning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--batching", choices=("auto", "off"), default="auto", help="off: every request has a call of its own"
    )
    add("--max-batch-size", type=_count, metavar="ROWS", help="rows in one call; larger requests are cut")
    add(
        "--preferred-batch-size",
        type=_counts,
        default=(),
        metavar="ROWS,…",
        help="batches to make if there are rows enough",
    )
    add(
        "--max-queue-delay-ms",
        type=_not_negative,
        default=0.0,
        help="wait so long for a fuller batch (default: %(default)s, only what waits already goes together)",
    )
    add("--instances", type=_whole, help="models loaded, each with its thread; 0: one, on the event loop")
    add(
        "--max-queue-rows",
        type=_count,
        default=65_536,
        help="rows that wait for the model; beyond that, 503 (default: %(default)s)",
    )
    add(
        "--request-timeout",
        type=_positive,
        default=60.0,
        metavar="SECONDS",
        help="what a request may wait for the model; beyond that, 504 (default: %(default)s)",
    )


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has characters other than letters, digits, '.', '_' and '-'"
        )
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 0 to 65535")
    return int(text)


def _bytes(text: str) -> int:
    found = _BYTES.fullmatch(text)
    size = int(found["number"]) * _UNITS[found["unit"].upper()] if found else 0
    if not size:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of bytes; expected one such as 500000 or 64MB"
        )
    return size


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _positive(text: str) -> float:
    if not (value := _not_negative(text)):
        raise argparse.ArgumentTypeError("0 seconds are none")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share of requests; expected a number above 0 and up to 1"
        )
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _count(text: str) -> int:
    if not (value := _whole(text)):
        raise argparse.ArgumentTypeError("expected 1 or more, found 0")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _keep_to_ourselves(fd: int) -> bool:
    """Keep children of the model from inheriting *fd*: they would hold the port, the pipe or the lock."""
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return False
    return True


class ReadyPipe:
    """Tells the parent, once, whether we serve."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, url: str, grpc: str | None = None) -> None:
        """We serve at *url*, and gRPC at the address *grpc*."""
        also = {} if grpc is None else {"grpc": grpc}
        self._write({"ready": True, "url": url, **also, "pid": os.getpid()})

    def failed(self, exc: MlopsnbError) -> None:
        """We do not serve, because of *exc*."""
        self._write({"ready": False, "error": exc.message, "hint": exc.hint})

    def _write(self, message: dict[str, Any]) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(message).encode() + b"\n")
        except OSError as exc:  # the parent is gone; that is no reason not to serve
            print(f"mlopsnb.serving: nobody reads --ready-fd: {exc}", file=sys.stderr)  # noqa: T201
        finally:
            os.close(fd)


def _serve(args: argparse.Namespace, report: ReadyPipe) -> None:
    try:
        from mlopsnb.serving import stages, tracing
        from mlopsnb.serving.app import App
        from mlopsnb.serving.engine import Engine
        from mlopsnb.serving.metrics import Metrics
        from mlopsnb.serving.server import Server
    except ModuleNotFoundError as exc:
        raise MissingExtra(exc.name or "", "serving") from exc
    if args.grpc_port is not None:
        need("grpc", extra="grpc")
    path: Path = args.package.absolute()
    name = args.name or (path.name if _NAME.fullmatch(path.name) else "model")
    guarded = guards(args)
    log = _log(args)
    sockets = _open(args, guarded.scheme)
    try:
        traces = tracing.from_environment(name, args.version, asked=args.otel)
        engine = Engine.load(path, _options(args), Metrics(name, args.version))
        spare = _fallback(args, engine)
        stage = stages.compose(engine, cache_bytes=args.cache_bytes, fallback=spare)
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
            tokens=guarded.tokens,
        )
        grpc = _grpc(args, app, guarded)
        server = Server(
            app,
            sockets,
            drain_seconds=args.drain_seconds,
            on_ready=lambda: report.ready(sockets.url, grpc.address if grpc else None),
            grpc=grpc,
            limits=guarded.limits,
            tls=guarded.tls,
        )
        server.run_until_stopped()
        engine.close()
        if spare is not None:
            spare.close()
        if traces is not None:
            traces.close()
    finally:
        sockets.close()


def _fallback(args: argparse.Namespace, engine: Engine) -> Engine | None:
    if args.fallback is None:
        return None
    from mlopsnb.serving import fallback

    return fallback.load(args.fallback.absolute(), engine)


def _log(args: argparse.Namespace) -> Sink:
    if args.log_file is None:
        return sys.stdout.buffer
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


def _grpc(args: argparse.Namespace, app: App, guarded: Guards) -> GrpcServer | None:
    if args.grpc_port is None:
        return None
    from mlopsnb.serving.rpc.service import GrpcServer

    return GrpcServer(app, host=args.host, port=args.grpc_port, limits=guarded.limits, tls=guarded.tls)


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


def _open(args: argparse.Namespace, scheme: str) -> Sockets:
    port: int | None = args.port
    if port is None and args.fd is None and args.uds is None and args.control is None:
        port = DEFAULT_PORT
    return open_sockets(
        host=args.host, port=port, fd=args.fd, uds=args.uds, control=args.control, scheme=scheme
    )


if __name__ == "__main__":
    sys.exit(main())
