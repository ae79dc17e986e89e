"""Sockets: where the server listens, in a thread of its own; connections that say nothing are closed."""

import asyncio
import contextlib
import logging
import resource
import socket
import threading
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from indextts_jax.errors import Error
from indextts_jax.serve.guard import App

HEAD_SECONDS = 10.0  # until the head of a request must be there
SENDING = 10  # seconds that clients have for what is left of their answers when the server ends


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises Error."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise Error(f"--host {host} --port {port}: {error.strerror}; choose another one, such as --port 0") from None
    return found


@contextlib.contextmanager
def listening(app: App, bound: socket.socket, connections: int) -> Iterator[None]:
    """Answer requests in a thread while the block runs; with more than so many connections, by 503."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # fewer than asked for are still some
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, connections + 256)), hard))
    # Where an answer is cut, uvicorn calls it an error; it is meant.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    http = uvicorn.Server(
        uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            limit_concurrency=connections, timeout_graceful_shutdown=SENDING,
        )
    )  # fmt: skip
    thread = threading.Thread(target=http.run, args=([bound],), name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        http.should_exit = True
        thread.join()
        bound.close()


class _Protocol(H11Protocol):
    """A connection that is closed where no request comes in time: else silent ones would fill the server."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        elif self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._close)

    def _close(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
