"""Where notices go: any callable that takes a `Notice`. Here those for a webhook, Slack and e-mail.

A sink tries a few times and then raises; the watcher notes that and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import StepError
from mlopsnb.extras import need

if TYPE_CHECKING:
    from mlopsnb.monitoring.alerts import Notice

    Sink = Callable[[Notice], object]

_SECONDS = 10.0
TRIES = 3
_COLOURS = {"info": "#0072B2", "warning": "#E69F00", "severe": "#D55E00", "critical": "#CC0000"}


class NoticeLost(StepError):
    """A sink could not tell anybody."""


def webhook(url: str, *, pause: float = 1.0) -> Sink:
    """Return a sink that posts each notice to *url* as JSON: `Notice.plain()`."""
    return lambda notice: _post(url, notice.plain(), pause)


def slack(url: str, *, pause: float = 1.0) -> Sink:
    """Return a sink for an incoming webhook of Slack, or of what takes the same JSON, such as Mattermost."""
    return lambda notice: _post(url, slack_message(notice), pause)


def slack_message(notice: Notice) -> dict[str, object]:
    """Return *notice* as Slack's message with an attachment (https://api.slack.com/reference/messaging/attachments)."""
    colour = "#009E73" if notice.status == "resolved" else _COLOURS[notice.alert.severity]
    text = notice.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": text, "attachments": [{"color": colour, "text": text, "ts": int(notice.at)}]}


def email(
    to: str | Sequence[str],
    *,
    sender: str,
    host: str = "localhost",
    port: int = 25,
    user: str = "",
    password: str = "",
    starttls: bool = False,
    pause: float = 1.0,
) -> Sink:
    """Return a sink that sends each notice by the SMTP server *host*; with *user* it logs in, over TLS alone."""
    receivers = [to] if isinstance(to, str) else list(to)

    def send(notice: Notice) -> None:
        import smtplib
        import ssl
        from email.message import EmailMessage

        message = EmailMessage()
        message["Subject"] = f"[{notice.status}] {notice.alert.severity}: {notice.deployment}"
        message["From"], message["To"] = sender, ", ".join(receivers)
        message.set_content(notice.text)

        def attempt() -> None:
            with smtplib.SMTP(host, port, timeout=_SECONDS) as server:
                if starttls or user:
                    server.starttls(context=ssl.create_default_context())
                if user:
                    server.login(user, password)
                server.send_message(message)

        _try(attempt, f"e-mail by {host}:{port}", (OSError, smtplib.SMTPException), pause)

    return send


def _post(url: str, content: dict[str, object], pause: float) -> None:
    httpx = need("httpx", extra="deploy")

    def attempt() -> None:
        httpx.post(url, json=content, timeout=_SECONDS).raise_for_status()

    # The path and the query of such an address are often a secret.
    _try(attempt, f"webhook at {httpx.URL(url).host}", (httpx.HTTPError,), pause)


def _try(attempt: Callable[[], None], what: str, errors: tuple[Any, ...], pause: float) -> None:
    """Try *attempt* a few times, each pause twice the one before."""
    for left in reversed(range(TRIES)):
        try:
            attempt()
        except errors as exc:
            if not left:
                code = getattr(getattr(exc, "response", None), "status_code", "")
                raise NoticeLost(
                    f"{what} did not take a notice, {TRIES} times: {code or type(exc).__name__}"
                ) from exc
            time.sleep(pause)
            pause *= 2
        else:
            return
