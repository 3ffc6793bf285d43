"""`python -m mlopsnb.serving PACKAGE`: the command, its exit codes, and what it tells the one who started it.

Exit codes: 0 stopped by a signal and drained, 1 a fault of ours, 2 usage, 3 no sound package, 4 the model cannot be
loaded or does not run here, 5 an address is taken or not ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlopsnb.errors import MissingExtra, MlopsnbError
from mlopsnb.manifest import BadPackage
from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.listen import Sockets, open_sockets

DEFAULT_PORT = 8080
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    for fd in (args.fd, args.ready_fd, args.alive_fd):
        if fd is not None and not _keep_to_ourselves(fd):
            parser.error(f"file descriptor {fd} is not open")
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
    add("--control", type=Path, metavar="PATH", help="unix socket that hands the public socket over")
    add("--ready-fd", type=int, help="write one line of JSON here when ready, or failed")
    add("--alive-fd", type=int, help="keep this descriptor open for as long as the process lives")
    add(
        "--drain-seconds", type=_not_negative, default=5.0, help="for open connections (default: %(default)s)"
    )
    add("--max-body-bytes", type=_bytes, default=64 << 20, help="largest request body (default: %(default)s)")
    return parser


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
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes")
    return int(text)


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


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

    def ready(self, url: str) -> None:
        """We serve at *url*."""
        self._write({"ready": True, "url": url, "pid": os.getpid()})

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
        from mlopsnb.serving.app import App
        from mlopsnb.serving.engine import Engine
        from mlopsnb.serving.server import Server
    except ModuleNotFoundError as exc:
        raise MissingExtra(exc.name or "", "serving") from exc
    path: Path = args.package.absolute()
    name = args.name or (path.name if _NAME.fullmatch(path.name) else "model")
    sockets = _open(args)
    try:
        engine = Engine.load(path)
        app = App(
            engine, name=name, version=args.version, max_body_bytes=args.max_body_bytes, log=sys.stdout.buffer
        )
        server = Server(
            app, sockets, drain_seconds=args.drain_seconds, on_ready=lambda: report.ready(sockets.url)
        )
        server.run_until_stopped()
    finally:
        sockets.close()


def _open(args: argparse.Namespace) -> Sockets:
    port: int | None = args.port
    if port is None and args.fd is None and args.uds is None and args.control is None:
        port = DEFAULT_PORT
    return open_sockets(host=args.host, port=port, fd=args.fd, uds=args.uds, control=args.control)


if __name__ == "__main__":
    sys.exit(main())
