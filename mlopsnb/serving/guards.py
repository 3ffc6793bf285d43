"""What stands between the network and the server, as the command is told: tokens, TLS, limits of connections."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.serving.errors import BadOption

if TYPE_CHECKING:
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Tls
    from mlopsnb.serving.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Without tokens everybody may ask; without TLS in plain HTTP. *asked*: the number of connections was."""

    limits: ConnectionLimits
    tokens: Tokens | None = None
    tls: Tls | None = None
    asked: bool = False

    def shared(self, workers: int) -> Guards:
        """Return those of one of so many *workers*: its share of the connections, if their number was asked for."""
        if not self.asked:
            return self
        share = -(-self.limits.connections // workers)
        return replace(self, limits=replace(self.limits, connections=share))


def add_options(
    parser: argparse.ArgumentParser, *, count: Callable[[str], int], seconds: Callable[[str], float]
) -> None:
    """Add the options to *parser*; *count* and *seconds* read numbers above 0."""
    add = parser.add_argument_group("who may ask, and how (default: everybody, in plain HTTP)").add_argument
    add(
        "--token-file", type=Path, metavar="PATH", help="bearer tokens, one a line; read anew when it changes"
    )
    add("--tls-certificate", type=Path, metavar="PATH", help="PEM, with what links it to its CA")
    add("--tls-key", type=Path, metavar="PATH", help="PEM, not encrypted; TLS for HTTP and gRPC, 1.2 and up")
    add("--tls-client-ca", type=Path, metavar="PATH", help="take clients with a certificate of this CA alone")
    add = parser.add_argument_group("what a connection may cost").add_argument
    add(
        "--max-connections",
        type=count,
        metavar="N",
        help="beyond that, 503; workers share them (default: what the limit of open files leaves, 16384 at most)",
    )
    for part, default, told in (
        ("head", 10.0, "for the head of a request"),
        ("body", 20.0, "for its body, and one more for each 500 bytes that come"),
        ("write", 30.0, "for taking the answer, and one more for each 500 bytes that go"),
        ("idle", 75.0, "between two requests"),
    ):
        told = f"{told} (default: %(default)s)"  # noqa: PLW2901
        add(f"--{part}-timeout", type=seconds, default=default, metavar="SECONDS", help=told)


def guards(args: argparse.Namespace) -> Guards:
    """Return what *args* ask for.

    Raises `BadOption` if they do not go together, `BadSecret` if a file cannot be used.
    """
    from mlopsnb.serving.tokens import Tokens

    return Guards(
        limits=_limits(args),
        tokens=None if args.token_file is None else Tokens(args.token_file),
        tls=_tls(args),
        asked=args.max_connections is not None,
    )


def _tls(args: argparse.Namespace) -> Tls | None:
    if args.tls_certificate is None and args.tls_key is None:
        if args.tls_client_ca is not None:
            raise BadOption("--tls-client-ca needs --tls-certificate and --tls-key")
        return None
    if args.tls_certificate is None or args.tls_key is None:
        raise BadOption("--tls-certificate and --tls-key go together")
    from mlopsnb.serving.tls import Tls, TlsFiles

    files = TlsFiles(certificate=args.tls_certificate, key=args.tls_key, client_ca=args.tls_client_ca)
    return Tls(files)


def _limits(args: argparse.Namespace) -> ConnectionLimits:
    from mlopsnb.serving.connections import ConnectionLimits, most_connections

    most = most_connections(1 if args.grpc_port is None else 2)
    if args.max_connections is not None and args.max_connections > most:
        raise BadOption(
            f"--max-connections {args.max_connections} is more than the {most} that this process can hold",
            hint="raise the limit of open files (ulimit -n)",
        )
    return ConnectionLimits(
        connections=args.max_connections or most,
        head=args.head_timeout,
        body=args.body_timeout,
        write=args.write_timeout,
        idle=args.idle_timeout,
    )
