"""The first thing a request meets: whom the page answers, and how much it takes in."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from ipaddress import ip_address
from textwrap import shorten
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

__all__ = ["Gate", "error_line"]

_logger = logging.getLogger("detectron2.piip")

_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's page starts with inline scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "form-action 'self'",
        "frame-ancestors 'self'",
        "base-uri 'self'",
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# What Gradio would do and this page does not: fetch from addresses, keep files, run ffmpeg, write code.
_CLOSED = ("://", "/proxy=", "/deep_link", "/process_recording", "/component_server", "/vibe-")
_UPLOAD = "/upload"
_UPLOADS_PER_MINUTE = 30
_MOST_BYTES = 1_000_000  # of a request that is no upload
_FORM_BYTES = 100_000  # of an upload beside its file

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def error_line(error: BaseException) -> str:
    """An error in one line, for the log."""
    return shorten(f"{type(error).__name__}: {error}", 300)


def _shown(scope: Message) -> str:
    return repr(scope["path"][:200])


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """ASGI middleware, outside of all others.

    It refuses requests to another name than the page's (DNS rebinding), requests that another page makes
    (`Origin`, `Sec-Fetch-Site`), requests to fetch something from another machine, and too large or too many
    uploads. To what it lets through it adds headers that forbid browsers to load from, or send to, another
    server. An error that the application lets out becomes one line of the log.

    Args:
        app: the application.
        hosts: names under which the page is reached.
        any_address: whether any IP address is such a name, too.
        most_bytes: of an uploaded file.
    """

    def __init__(self, app: App, hosts: Collection[str], any_address: bool, most_bytes: int) -> None:
        self.app, self.hosts, self.any_address, self.most_bytes = app, hosts, any_address, most_bytes
        self._uploads: deque[float] = deque(maxlen=_UPLOADS_PER_MINUTE)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            status, sentence = refusal
            _logger.warning(f"refused a request for {_shown(scope)}: {sentence}")
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse(sentence, status, _HEADERS)(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        except Exception as error:  # noqa: BLE001, whatever Gradio raises for a request that it did not expect
            _logger.error(f"a request for {_shown(scope)} failed: {error_line(error)}")
            if not started and scope["type"] == "http":
                await PlainTextResponse("The server failed. Its log says why.", 500)(scope, receive, send)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused."""
        names = [name for name, _ in scope["headers"]]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if names.count(b"host") != 1 or not self._is_ours(host):
            return 403, (
                f"This page does not answer to the name {host!r}. Open it by the address in its log, or "
                "start it with --host and that name."
            )
        origin = headers.get("origin")
        own = {f"{scheme}://{host}".lower() for scheme in ("http", "https")}
        foreign = origin is not None and origin.lower() not in own
        if headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            foreign |= headers.get("sec-fetch-mode") != "navigate"  # a link to the page is welcome
        if foreign or names.count(b"origin") > 1:
            return 403, f"Another page ({origin or 'unnamed'!r}) may not use this one."
        if any(text in scope["path"] for text in _CLOSED):
            return 403, "This page does not offer that."
        return self._refused_size(scope, headers) if scope.get("method") == "POST" else None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or (self.any_address and _is_address(name))

    def _refused_size(self, scope: Message, headers: Mapping[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "The request does not say how long it is."
        uploads = scope["path"].rstrip("/").endswith(_UPLOAD)
        most = self.most_bytes + _FORM_BYTES if uploads else _MOST_BYTES
        if int(length) > most:
            return 413, (
                f"The request has {int(length) / 1e6:.1f} MB. The limit is {most / 1e6:g} MB: please send "
                "less."
            )
        if not uploads:
            return None
        now = time.monotonic()
        if len(self._uploads) == _UPLOADS_PER_MINUTE and now - self._uploads[0] < 60:
            return 429, f"There were {_UPLOADS_PER_MINUTE} uploads within a minute. Please wait a moment."
        self._uploads.append(now)
        return None
