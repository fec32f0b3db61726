"""The page behind an address."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from .gate import Gate
from .privacy import no_telemetry
from .upload import Limits

if TYPE_CHECKING:
    from .page import Page

no_telemetry()

import gradio as gr  # noqa: E402, once telemetry is off

__all__ = ["Server"]

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_SESSIONS = 500  # of Gradio's own, which hold the settings of a visitor's page


class Server(uvicorn.Server):
    """Offers a page until Ctrl-C or SIGTERM.

    Args:
        page: of :func:`piip.serve.page.build_page`.
        limits: those of its uploads.
        host: name or address to listen at; "0.0.0.0" lets other computers in. Requests to other names than
            this and the computer's own are refused.
        port: to listen at; 0 for a free one.

    Raises:
        OSError: the port is taken, or the host is none of this computer.
    """

    def __init__(self, page: Page, limits: Limits, host: str = "127.0.0.1", port: int = 7860) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise OSError(
                f"cannot listen at {host}, port {port}: {error.strerror}; give another --port"
            ) from error
        shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}"
        names, own = {host, *_LOOPBACK}, socket.gethostname()
        only_here = _is_loopback(host)
        if not only_here:
            names |= {own, f"{own}.local", socket.getfqdn()}
        most_bytes = int(limits.megabytes * 1e6)
        gate = Middleware(Gate, hosts=names, any_address=not only_here, most_bytes=most_bytes)
        app = FastAPI(
            lifespan=_dropping(page), middleware=[gate], docs_url=None, redoc_url=None, openapi_url=None
        )
        page.state_session_capacity = _SESSIONS
        page.has_launched = True  # which mounting forgets: until then Gradio takes any file for an upload
        sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
        gr.mount_gradio_app(
            app,
            page.queue(max_size=16, api_open=False),
            path="/",
            server_name=host,
            footer_links=[],
            run_history=False,
            max_file_size=most_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=sans, font_mono=mono),
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        )
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))

        self._page, self._mounted = page, app.routes[-1]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn when a signal came. Open pages hold connections that would keep it waiting."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports those that it cuts
        self._mounted.app.stop_event.set()  # type: ignore[attr-defined]
        self._page.close(verbose=False)
        await super().shutdown(sockets)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; in the main thread, signals end it."""
        super().run(sockets or [self._socket])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _dropping(page: Page) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan in which analyses of visitors who went away are dropped."""

    async def drop() -> None:
        while True:
            await asyncio.sleep(30)
            page.sessions.drop_expired()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(drop())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return lifespan
