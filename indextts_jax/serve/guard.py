"""What stands before every route: who may ask, how much they may send and for how long (ASGI, no framework)."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "/v1/voices"
UPLOADS = 4  # at once, since each is held as a whole
LOCAL = ("localhost", "127.0.0.1", "[::1]")
# Without a key: what says whether the server is well, and the page, which asks for the key.
OPEN = ("/healthz", "/readyz", "/", "/page/")


class Failure(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status in (401, 403):
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code, "param": self.param}}


@dataclass(frozen=True)
class Guard:
    """Refuses what may not be asked, before a byte of it is kept."""

    app: App
    key: str | None = None  # that clients must send; None: whoever reaches the server may ask
    hosts: Sequence[str] = LOCAL  # names of this machine; without a key no other may be asked for
    body_bytes: int = 1 << 20
    upload_bytes: int = 20 << 20
    body_seconds: float = 60.0  # until all of a body must be there
    uploads: asyncio.Semaphore = field(default_factory=partial(asyncio.Semaphore, UPLOADS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self.app(scope, receive, send)  # its start and end
            return
        started = refused = False
        upload = scope["path"] == UPLOAD and scope["method"] == "POST"

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            if not refused:
                await send(message)

        async def end(failure: Failure) -> None:
            """The answer to a body that is too large or too slow, whatever the app makes of its end."""
            nonlocal refused
            if not started:
                refused = True
                await refuse(failure, send)

        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            if upload and self.uploads.locked():
                raise Failure(
                    429, "other voices are being sent: try again a little later", "queue_full",
                    headers={"Retry-After": "5", "Connection": "close"},
                )  # fmt: skip
            most = self.upload_bytes if upload else self.body_bytes
            counted = _Counted(receive, most, headers, self.body_seconds, end)
        except Failure as failure:
            await refuse(failure, send)
            return
        async with self.uploads if upload else contextlib.nullcontext():
            await self.app(scope, counted, noted)

    def _check(self, path: str, headers: dict[str, str]) -> None:
        """Raises Failure."""
        if self.key is None:
            # Whoever's page a browser shows may send requests to this machine, also under a name of its own for it.
            host = headers.get("host", "")
            if _name(host) not in self.hosts:
                raise Failure(
                    403, f"this server is not {host[:80]!r}: ask for {self.hosts[0]}, or run it with a key", "host"
                )
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != host:
                raise Failure(403, f"pages of {origin[:80]!r} may not ask this server; run it with a key", "origin")
            return
        if path in OPEN[:3] or path.startswith(OPEN[3]):
            return
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), self.key.encode()):
            raise Failure(
                401, "no key, or a wrong one: send Authorization: Bearer KEY", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


class _Counted:
    """A body as it comes: no longer than it may be, and in time."""

    def __init__(
        self,
        receive: Receive,
        most: int,
        headers: dict[str, str],
        seconds: float,
        end: Callable[[Failure], Awaitable[None]],
    ):
        self._receive, self._most, self._left, self._over, self._end = receive, most, most, False, end
        self._until = asyncio.get_running_loop().time() + seconds
        length = headers.get("content-length", "")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._over:
            return await self._receive()  # until the client hangs up
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            return await self._refused(Failure(408, "the body did not come in time: send it at once", "timeout"))
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._over = not message.get("more_body", False)
            if self._left < 0:
                return await self._refused(self._too_large())
        return message

    async def _refused(self, failure: Failure) -> Message:
        self._over = True
        await self._end(failure)
        return {"type": "http.disconnect"}

    def _too_large(self) -> Failure:
        return Failure(
            413, f"the body is larger than {self._most:,} bytes, which is the most", "too_large",
            headers={"Connection": "close"},
        )  # fmt: skip


def _name(host: str) -> str:
    """Of a Host header, without the port."""
    return host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host


async def refuse(failure: Failure, send: Send) -> None:
    content = json.dumps(failure.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **failure.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
