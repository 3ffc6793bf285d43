"""The options of the command, and what each takes. Plain: imports nothing that an option could make unnecessary."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mlopsnb.serving.guards import add_options
from mlopsnb.serving.logfile import MAX_BYTES

DEFAULT_PORT = 8080
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_BYTES = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>|[kKMG]i?B)")


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
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
    add(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that share the port, each with the model; auto: as many as a self-test at load finds"
        " good for the processors and the memory that there are (default: auto)",
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
    _add_capture(parser.add_argument_group("what is captured of requests, to be joined with labels later"))
    _add_profile(
        parser.add_argument_group("what is counted of requests, if the package has a reference profile")
    )
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
        help="inputs, outputs and features whose values are not logged and not captured",
    )
    add(
        "--otel",
        action="store_true",
        help="trace with OpenTelemetry; as well if OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT is set",
    )


def _add_capture(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--capture",
        type=_share,
        metavar="RATE",
        help="write the rows of this share of the requests and their answers to Parquet files; --mask holds",
    )
    add("--capture-dir", type=Path, metavar="PATH", help="where to")
    add(
        "--capture-bytes",
        type=_bytes,
        default=1 << 30,
        metavar="BYTES",
        help="all files there together; the oldest go first (default: %(default)s)",
    )


def _add_profile(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--profile-dir",
        type=Path,
        metavar="PATH",
        help="keep the counters in a file here, so that they outlive the server (default: in memory)",
    )
    add(
        "--profile-window",
        type=_count,
        default=300,
        metavar="SECONDS",
        help="length of a window of time; a day of them is kept (default: %(default)s)",
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


def _demand(fits: object, what: str) -> None:
    """Have argparse say *what* is wrong, unless it *fits*."""
    if not fits:
        raise argparse.ArgumentTypeError(what)


def _name(text: str) -> str:
    _demand(NAME.fullmatch(text), f"{text!r} has characters other than letters, digits, '.', '_' and '-'")
    return text


def _port(text: str) -> int:
    _demand(text.isdecimal() and int(text) <= 65535, f"{text!r} is no port; expected 0 to 65535")
    return int(text)


def _bytes(text: str) -> int:
    found = _BYTES.fullmatch(text)
    size = int(found["number"]) * _UNITS[found["unit"].upper()] if found else 0
    _demand(size, f"{text!r} is no number of bytes; expected one such as 500000 or 64MB")
    return size


def _not_negative(text: str) -> float:
    value = float(text)
    _demand(0 <= value < float("inf"), f"{text!r} is no number of seconds")
    return value


def _positive(text: str) -> float:
    value = _not_negative(text)
    _demand(value, "0 seconds are none")
    return value


def _share(text: str) -> float:
    value = float(text)
    _demand(0 < value <= 1, f"{text!r} is no share of requests; expected a number above 0 and up to 1")
    return value


def _whole(text: str) -> int:
    _demand(text.isdecimal() and len(text) <= 9, f"{text!r} is no whole number")
    return int(text)


def _count(text: str) -> int:
    value = _whole(text)
    _demand(value, "expected 1 or more, found 0")
    return value


def _workers(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))
