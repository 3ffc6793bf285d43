"""HTTP to one registry: credentials, redirects, retries, and one translation of what can go wrong.

A request that broke off, or was answered with 408, 429 or a passing 5xx, is sent again after a wait that grows and
varies, or that `Retry-After` says, until the registry's patience is used up. The registry that never answered gets a few
seconds only: its name is probably wrong. Credentials go to the registry and its token service, never to where either
sends us on.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlopsnb.images.credentials import missing_helper
from mlopsnb.images.errors import Cancelled, RegistryError, RegistryFull, RegistryUnreachable, Unauthorized
from mlopsnb.images.references import DOCKER_HUB
from mlopsnb.images.tokens import Authorizer, Scopes

if TYPE_CHECKING:
    import httpx

    from mlopsnb.images.credentials import Credentials

Body = Callable[[], Iterable[bytes]]
"""Gives the body of a request anew each time it is sent."""

_FIRST_CONTACT = 4.0
"""Seconds for a registry that has not answered yet."""

_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 8.0
_FAREWELL = 2.0
_ANSWER_LIMIT = 16_000_000
"""Bytes of an answer that is read as a whole; manifests may have 4 MB (distribution specification, "Pushing manifests")."""

_NO_ROOM = re.compile(
    r"no space left|quota|insufficient storage|out of (disk )?space|storage limit|disk full", re.IGNORECASE
)
_CERTIFICATES = ("/etc/docker/certs.d", "/etc/containers/certs.d", "~/.config/containers/certs.d")


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: httpx.Headers
    data: bytes
    url: httpx.URL


class Transient(Exception):
    """Something that may pass. Inside the client only: `final` is what is raised when patience ends."""

    def __init__(self, final: RegistryError, *, after: float | None = None) -> None:
        super().__init__(str(final))
        self.final, self.after = final, after


class Retries:
    """The waits between the attempts at one thing, and their end."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._attempt, self._began = wire, 0, 0.0

    def progressed(self) -> None:
        """Start counting anew: bytes have arrived."""
        self._attempt = 0

    def wait(self, exc: Transient) -> None:
        """Wait before the next attempt; raise what *exc* stands for if there is no time for one."""
        self._wire.check()
        if self._attempt == 0:
            self._began = time.monotonic()
        limit = self._wire.patience if self._wire.met else min(_FIRST_CONTACT, self._wire.patience)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  spreads retries, hides nothing
        delay = max(exc.after or 0.0, jitter * min(_LONGEST_WAIT, 0.2 * 2**self._attempt))
        self._attempt += 1
        if time.monotonic() - self._began + delay > limit:
            raise exc.final from exc
        if self._wire.cancelled.wait(delay):
            raise Cancelled(self._wire.host)


class Wire:
    """The connections to one registry."""

    def __init__(
        self, host: str, *, credentials: Callable[[str], Credentials | None], plain: bool, patience: float
    ) -> None:
        import httpx

        self.host, self.plain, self.patience = host, plain, patience
        self.cancelled = threading.Event()
        self.met = False
        self._httpx = httpx
        self._base = httpx.URL(f"{'http' if plain else 'https'}://{_api_host(host)}")
        self._authorizer = Authorizer(host, credentials, self._token, plain=plain)
        self._clients: dict[tuple[str, bool], httpx.Client] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def cancel(self) -> None:
        """End what is under way, in whatever thread it waits."""
        with self._lock:
            self.cancelled.set()
            for sock in list(self._sockets):
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self.cancelled.is_set():
            raise Cancelled(self.host)

    def url(self, path: str) -> httpx.URL:
        """Return the address of *path* under the registry's API."""
        return self._base.join(f"/v2/{path}")

    def follow(self, location: str, url: httpx.URL) -> httpx.URL:
        """Return the address that an answer from *url* sends us on to; `RegistryError` if that is not safe."""
        try:
            target = url.join(location).copy_with(username=None, password=None)
        except (self._httpx.InvalidURL, ValueError, TypeError) as exc:
            raise RegistryError(
                f"the registry {self.host} gave an address that is none: {location[:80]!r}"
            ) from exc
        if target.scheme not in ("http", "https") or (url.scheme, target.scheme) == ("https", "http"):
            raise RegistryError(
                f"the registry {self.host} sends us on from {url.scheme} to {target.scheme}://{target.host}",
                hint="nothing was sent there; the proxy before the registry should set X-Forwarded-Proto: https",
            )
        return target

    def call(
        self,
        method: str,
        url: httpx.URL,
        *,
        scopes: Scopes,
        doing: str,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
    ) -> Answer:
        """Send a small request until it is answered with one of the statuses in *expect*."""
        retries = Retries(self)
        while True:
            try:
                with self.exchange(
                    method, url, scopes=scopes, doing=doing, headers=headers, data=data
                ) as response:
                    answer = self.whole(response)
                if answer.status in expect:
                    return answer
                raise self.refusal(answer, doing, scopes)
            except Transient as exc:
                retries.wait(exc)

    @contextmanager
    def exchange(
        self,
        method: str,
        url: httpx.URL,
        *,
        scopes: Scopes,
        doing: str,
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
        body: Body | None = None,
    ) -> Iterator[httpx.Response]:
        """Send one request once, with credentials, and yield its answer to be read; redirects are followed.

        Raises `Transient` for a connection that broke, also while the answer is read. *body* needs a Content-Length.
        """
        try:
            response = self._authorized(method, url, scopes, headers or {}, data, body)
            try:
                self.met = True
                yield response
            finally:
                response.close()
        except self._httpx.TransportError as exc:
            raise self._broken(exc, doing) from exc

    def forget(self, upload: httpx.URL, scopes: Scopes) -> None:
        """Delete an upload, also after `cancel`. If it cannot be done at once the registry does so when it is old."""
        with suppress(self._httpx.HTTPError, RegistryError, Transient):
            try:
                self._delete(upload, scopes)
            except self._httpx.TransportError:
                if not self.cancelled.is_set():
                    raise
                self._delete(upload, scopes)  # `cancel` ended the first one with all else that was under way

    def _delete(self, upload: httpx.URL, scopes: Scopes) -> None:
        with self._lock:
            pass  # a `cancel` that has begun ends: what is sent from here on, it does not touch
        ours = _origin(upload) == _origin(self._base)
        authorization = self._authorizer.header(scopes) if ours else ""
        headers = {"Authorization": authorization} if authorization else {}
        self._send("DELETE", upload, headers, b"", timeout=_FAREWELL).close()

    def refusal(self, answer: Answer, doing: str, scopes: Scopes) -> RegistryError | Transient:
        """Return what to raise for an answer that is not the one hoped for."""
        found = said(answer)
        if answer.status in (413, 507) or (answer.status >= 400 and _NO_ROOM.search(found)):
            return RegistryFull(self.host, doing, found)
        if answer.status in (401, 403):
            found = "; ".join(filter(None, [found, missing_helper(self.host)]))
            return Unauthorized(self.host, doing, found, user=self._authorizer.user(scopes))
        final = RegistryError(f"the registry {self.host} did not {doing}: {found}")
        if answer.status in _PASSING:
            return Transient(final, after=_retry_after(answer.headers))
        return final

    def _authorized(
        self,
        method: str,
        url: httpx.URL,
        scopes: Scopes,
        headers: Mapping[str, str],
        data: bytes,
        body: Body | None,
    ) -> httpx.Response:
        """Send a request with credentials where it is the registry's own, follow redirects if it has no body."""
        asked = hops = 0
        while True:
            self.check()
            ours = _origin(url) == _origin(self._base)
            authorization = self._authorizer.header(scopes) if ours else ""
            sent = {**headers, "Authorization": authorization} if authorization else dict(headers)
            response = self._send(method, url, sent, data if body is None else body())
            if response.status_code == 401 and ours and asked < 2:
                asked += 1
                challenges = response.headers.get_list("www-authenticate")
                if self._authorizer.challenged(challenges, scopes, authorization):
                    response.close()
                    continue
            location = response.headers.get("location", "")
            if response.status_code in (301, 302, 303, 307, 308) and location and not data and body is None:
                response.close()
                hops += 1
                if hops > 5:
                    raise RegistryError(f"the registry {self.host} sends us on and on")
                url = self.follow(location, url)
                continue
            return response

    def _send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes],
        *,
        timeout: float | None = None,
    ) -> httpx.Response:
        client = self._client(url)
        defaults = {"Accept-Encoding": "identity", "User-Agent": "mlopsnb"}
        request = client.build_request(
            method,
            url,
            headers={**defaults, **headers},
            content=content or None,
            timeout=timeout or client.timeout,
            extensions={"trace": self._trace},
        )
        return client.send(request, stream=True, follow_redirects=False)

    def _client(self, url: httpx.URL) -> httpx.Client:
        """Return the client for such an address, made when first needed: certificates take a while to load."""
        httpx, key = self._httpx, (url.scheme, is_loopback(url.host))
        with self._lock:
            if key not in self._clients:
                self._clients[key] = httpx.Client(
                    verify=_certificates(self.host) if url.scheme == "https" else False,
                    trust_env=not key[1],
                    timeout=httpx.Timeout(60.0, connect=5.0, read=120.0),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
                )
            return self._clients[key]

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the sockets, so that `cancel` can wake those who wait on one."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            sock = info["return_value"].get_extra_info("socket")
            if isinstance(sock, socket.socket):
                with self._lock:
                    self._sockets.add(sock)

    def _broken(self, exc: httpx.TransportError, doing: str) -> RegistryError | Transient:
        if self.cancelled.is_set():
            return Cancelled(self.host)
        found = f"{type(exc).__name__}: {str(exc)[:200] or doing}"
        final = RegistryUnreachable(self.host, found, plain=self.plain)
        hopeless = (self._httpx.UnsupportedProtocol, self._httpx.LocalProtocolError)
        tls = isinstance(exc, self._httpx.ConnectError) and (
            "CERTIFICATE" in found or "WRONG_VERSION" in found
        )
        return final if tls or isinstance(exc, hopeless) else Transient(final)

    def _token(
        self, method: str, url: str, *, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Mapping[str, Any]:
        target = self._httpx.URL(url)
        data = b""
        if method == "POST":
            data = str(self._httpx.QueryParams(params)).encode()
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        else:
            target = target.copy_merge_params(params)
        response = self._send(method, target, headers, data)
        try:
            answer = self.whole(response)
        finally:
            response.close()
        if answer.status != 200:
            raise self.refusal(answer, "give a token", params.get("scope") or ())
        try:
            found = json.loads(answer.data)
        except ValueError as exc:
            raise RegistryError(f"the token service of the registry {self.host} gave no JSON") from exc
        return found if isinstance(found, dict) else {}

    def whole(self, response: httpx.Response) -> Answer:
        """Read an answer to its end; `RegistryError` if that is far."""
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if len(data) > _ANSWER_LIMIT:
                raise RegistryError(f"the registry {self.host} answered with more than {_ANSWER_LIMIT} bytes")
        return Answer(response.status_code, response.headers, bytes(data), response.url)


def is_loopback(host: str) -> bool:
    """Say whether *host* (with a port or without) is this machine's loopback interface."""
    name = (
        host.rpartition(":")[0]
        if re.search(r":\d+$", host) and (host.count(":") == 1 or "]" in host)
        else host
    )
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _api_host(host: str) -> str:
    return "registry-1.docker.io" if host == DOCKER_HUB else host


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _certificates(host: str) -> ssl.SSLContext:
    """Trust the system's authorities (SSL_CERT_FILE if set), Mozilla's, and those kept for *host* as docker does."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    own = [path for root in _CERTIFICATES for path in Path(root).expanduser().joinpath(host).glob("*.crt")]
    named = filter(None, map(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")))
    for path in [*own, *map(Path, named)]:
        try:
            context.load_verify_locations(path)
        except OSError as exc:  # ssl.SSLError is one
            raise RegistryError(
                f"the certificates in {path}, meant for {host}, cannot be read: {exc}"
            ) from exc
    return context


def _retry_after(headers: httpx.Headers) -> float | None:
    """Read `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def said(answer: Answer) -> str:
    """Return the status, and the code and message of the registry's first error, cut short."""
    text = f"HTTP {answer.status}"
    try:
        first = json.loads(answer.data)["errors"][0]
        detail = first.get("detail")
        words = [
            str(first.get("code", "")),
            str(first.get("message", "")),
            json.dumps(detail) if detail else "",
        ]
        text += " " + " ".join(filter(None, words))
    except (ValueError, LookupError, TypeError, AttributeError):
        if answer.headers.get("content-type", "").startswith("text/plain"):
            text += " " + answer.data[:300].decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:400]
