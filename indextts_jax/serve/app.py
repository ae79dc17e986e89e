"""The routes: OpenAI's endpoint of speech and what belongs to it.

Everything here runs in the event loop, which never waits for the device: texts are read and recordings heard in threads
of their own, and what is spoken comes from the service's thread.
"""

import asyncio
import base64
import functools
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from indextts_jax import emotion as emotions
from indextts_jax import pauses
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error, shown
from indextts_jax.joining import Cue
from indextts_jax.model import Model
from indextts_jax.pipeline import Audio
from indextts_jax.request import Cancelled, Chunk
from indextts_jax.serve import encoding, voices
from indextts_jax.serve.body import Defaults, Speech, Text
from indextts_jax.serve.guard import LOCAL, App, Failure, Guard, Message, Receive, Scope, Send
from indextts_jax.serve.metrics import Metrics
from indextts_jax.serve.service import Broken, Closing, Event, Full, Service, Speaking
from indextts_jax.serve.voices import Voices
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice

log = logging.getLogger(__name__)
access = logging.getLogger(f"{__name__}.access")

MODEL = "indextts-2"
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one client may take."""

    characters: int = 4096  # of a text
    seconds: float = 600.0  # of one request, from its body to the last byte of its answer
    upload_bytes: int = 20 << 20
    upload_seconds: float = 120.0
    body_seconds: float = 60.0  # until all of what is sent must be there


@dataclass
class Server:
    """What the routes share. The model comes later, so that the server can say that it is not ready."""

    voices: Voices = field(default_factory=Voices)
    defaults: Defaults = field(default_factory=Defaults)
    limits: Limits = field(default_factory=Limits)
    uploads: bool = False
    page: bool = False
    key: str | None = None
    hosts: tuple[str, ...] = LOCAL
    state: str = "loading"  # "warming up", "ready", "ending"
    model: Model | None = None
    service: Service | None = None
    read: Callable[[str], tuple[float, ...]] | None = None  # emotions off texts

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.service)
        # One thread each: a recording that is heard keeps no text waiting.
        self._reading, self._listening = (ThreadPoolExecutor(1, name) for name in ("reading", "listening"))
        self._read = functools.lru_cache(256)(self._weights)

    def ready(self) -> tuple[Model, Service]:
        """Raises Failure."""
        if self.state != "ready" or self.model is None or self.service is None or self.service.closing:
            state = "ending" if self.service is not None and self.service.closing else self.state
            raise Failure(503, f"the server is {state}: try again later", "not_ready", headers={"Retry-After": "5"})
        return self.model, self.service

    async def analyse(self, body: Text, streamed: bool) -> Analysis:
        """The text as the model reads it. Raises Failure, Error."""
        model, _ = self.ready()
        if len(body.input) > self.limits.characters:
            raise Failure(
                413, f"input has {len(body.input):,} characters, but {self.limits.characters:,} are the most: send it "
                "in parts", "text_too_long", "input",
            )  # fmt: skip
        analyse = functools.partial(model.text.analyse, body.input, **body.reading(self.defaults, streamed))
        text = await self._in(self._reading, analyse)
        if (longest := max(map(len, text.segment_ids))) > model.cfg.gpt.most_texts:
            raise Failure(
                400, f"a segment has {longest} text pieces, but the model takes {model.cfg.gpt.most_texts}: make "
                "segment_tokens smaller", "invalid_value", "segment_tokens",
            )  # fmt: skip
        return text

    async def voice(self, name: str, param: str) -> Voice:
        """Raises Failure, Error."""
        model, _ = self.ready()
        if (known := self.voices.known(name)) is not None:  # which waits for no recording that is heard
            return known
        try:
            return await self._in(self._listening, self.voices.voice, name, model)
        except voices.Unknown as error:
            raise Failure(404, str(error), "voice_not_found", param) from None

    async def felt(self, body: Speech) -> Emotion | None:
        """The emotion that is asked for, None for the voice's own. Raises Failure, Error."""
        alpha = 1.0 if body.emotion_alpha is None else body.emotion_alpha
        if body.emotion_voice:
            if body.emotion_random or body.emotion_normalize:
                raise Error("emotion_random and emotion_normalize change weights, but a recording has none")
            return Emotion(vector=(await self.voice(body.emotion_voice, "emotion_voice")).emotion, alpha=alpha)
        weights = body.weights()
        text = pauses.without(body.input) if body.emotion_from_text else body.emotion_text or body.instructions
        if weights is None and text:
            weights = await self._in(self._reading, self._read, text)
        if weights is None:
            if body.emotion_alpha is not None or body.emotion_random or body.emotion_normalize:
                raise Error("emotion_alpha, emotion_random and emotion_normalize change an emotion: send one, too")
            return None
        if body.emotion_normalize:
            weights = emotions.normalize(weights)
        return Emotion(weights=weights, alpha=alpha, seed=self.seed(body) if body.emotion_random else None)

    def _weights(self, text: str) -> tuple[float, ...]:
        if self.read is None:
            raise Error("this server reads no emotions off texts: send weights as emotion")
        return self.read(text)

    def seed(self, body: Speech) -> int:
        return self.defaults.seed if body.seed is None else body.seed

    async def upload(self, name: str, file: UploadFile) -> None:
        """Raises Failure, Error."""
        model, _ = self.ready()
        content, most = await file.read(), self.limits.upload_seconds
        try:
            await self._in(
                self._listening, self.voices.upload, name, content, file.filename or "", most, model
            )  # fmt: skip
        except voices.Taken as error:
            raise Failure(409, str(error), "voice_exists", "name") from None
        except voices.TooLong as error:
            raise Failure(413, str(error), "recording_too_long", "file") from None

    async def _in(self, thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)


class Asked:
    """A request for speech on its way: what it waits for, and what comes of it."""

    def __init__(self, server: Server, body: Speech, noted: dict[str, Any]):
        self.server, self.body, self._noted = server, body, noted
        self._loop = asyncio.get_running_loop()
        self._begin, self._events = self._loop.time(), asyncio.Queue[Event]()
        self.until = self._begin + server.limits.seconds
        self.text: Analysis
        self.speaking: Speaking | None = None
        noted.update(characters=len(body.input), voice=body.speaker[: voices.LONGEST_NAME], streamed=body.streams)

    async def begin(self) -> None:
        """Have it spoken. Raises Failure, Error."""
        server, body = self.server, self.body
        model, service = server.ready()
        self.kind, self.rate = body.response_format, model.cfg.mel.rate
        self.target = encoding.rate_of(self.kind, body.sample_rate, self.rate)
        options, streaming = body.options(server.defaults), body.streaming(server.defaults)
        self.text = await server.analyse(body, body.streams)
        voice, felt = await server.voice(body.speaker, "voice"), await server.felt(body)
        self.speaking = Speaking(
            self.text, voice, server.seed(body), options, self._tell, felt, streaming,
            time.monotonic() + self.until - self._loop.time(), f" of request {self._noted['id']}",
        )  # fmt: skip
        service.submit(self.speaking)

    def _tell(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended
            self.cancel()

    def cancel(self) -> None:
        if self.speaking is not None:
            self.speaking.cancel()

    async def event(self) -> Chunk | Cue | Audio:
        """What comes next. Raises Failure."""
        event = await self._events.get()
        if isinstance(event, Cancelled):
            raise _late(self.server)
        if isinstance(event, Error):
            raise Failure(422, str(event), "cannot_be_spoken", "input")
        if isinstance(event, Broken):
            raise Failure(500, str(event), "broken")
        if isinstance(event, Exception):
            raise event
        return event

    def heard(self, seconds: float) -> None:
        """Note that so many seconds of sound are there."""
        if "first_audio" not in self._noted:
            self._noted["first_audio"] = round(self._loop.time() - self._begin, 4)
            self.server.metrics.first_audio.observe(self._loop.time() - self._begin)
        self._noted["audio_seconds"] = round(self._noted.get("audio_seconds", 0.0) + seconds, 4)

    def end(self) -> None:
        self.cancel()
        self.server.metrics.whole.observe(self._loop.time() - self._begin)

    async def file(self) -> bytes:
        """All of it, as a file."""
        speech = await self.event()
        assert isinstance(speech, Audio)
        self.heard(len(speech.samples) / speech.rate)
        return await asyncio.to_thread(encoding.whole, speech.samples, self.rate, self.kind, self.target)

    async def pieces(self, first: list[Chunk | Cue | Audio]) -> AsyncIterator[bytes]:
        """The bytes of a file that grows, or server-sent events with them; first: events that have come."""
        growing, sse = encoding.Growing(self.kind, self.rate, self.target), self.body.stream_format == "sse"
        last, codes = False, 0
        try:
            while not last:
                event = first.pop(0) if first else await self.event()
                if isinstance(event, Cue) and sse and self.body.cues:
                    start, end = (round(sample / self.rate, 6) for sample in event[:2])
                    yield _sse({"type": "speech.segment", "start": start, "end": end, "text": event.text})
                elif isinstance(event, Chunk):
                    last, codes = event.last, codes + len(event.codes)
                    self.heard(len(event.samples) / self.rate)
                    data = await asyncio.to_thread(growing.bytes_of, event.samples, last)
                    if sse and data:
                        yield _sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
                    elif data:
                        yield data
            if sse:
                pieces = len(self.text.ids)
                usage = {"input_tokens": pieces, "output_tokens": codes, "total_tokens": pieces + codes}
                yield _sse({"type": "speech.audio.done", "usage": usage})
        except Failure as failure:
            self._noted["error"] = str(failure)
            if not sse:
                raise
            yield _sse({"type": "error", **failure.body()})


def _sse(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _late(server: Server) -> Failure:
    return Failure(504, f"not spoken within {server.limits.seconds:g} s: send a shorter text", "timeout")


class Flow(StreamingResponse):
    """An answer while it is made: where it fails midway the connection is cut, so that nobody takes it for whole."""

    def __init__(self, asked: Asked, first: list[Chunk | Cue | Audio], stack: AsyncExitStack):
        sse = asked.body.stream_format == "sse"
        media = "text/event-stream" if sse else encoding.TYPES[asked.kind][0]
        super().__init__(asked.pieces(first), headers=_headers(asked), media_type=media)
        self._until, self._stack = asked.until, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._until):
                await super().__call__(scope, receive, send)
        except (Failure, TimeoutError) as error:
            scope["state"]["noted"].setdefault("error", str(error) or "its time was over")
        finally:
            await self._stack.aclose()


def _headers(asked: Asked) -> dict[str, str]:
    return {"X-Sample-Rate": str(asked.target), "Cache-Control": "no-store"}


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of some work, which is given up when the client hangs up. Raises Failure then, for nobody."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Failure(499, "the client hung up", "gone")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


def create(server: Server) -> App:
    """The app of a server, with all that guards it."""
    api = FastAPI(title="indextts-jax", docs_url=None, redoc_url=None)  # whose pages load scripts from elsewhere

    @api.post("/v1/audio/speech", response_class=Response)
    async def speech(body: Speech, request: Request) -> Response:
        _, service = server.ready()
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(service.place())
            except Full as error:
                wait = {"Retry-After": str(_wait(service))}
                raise Failure(429, str(error), "queue_full", headers=wait) from None
            except Closing as error:
                raise Failure(503, str(error), "not_ready", headers={"Retry-After": "5"}) from None
            asked = Asked(server, body, request.state.noted)
            stack.callback(asked.end)
            try:
                async with asyncio.timeout_at(asked.until):
                    await _unless_gone(request, asked.begin())
                    if not body.streams:
                        content = await _unless_gone(request, asked.file())
                        return Response(content, headers=_headers(asked), media_type=encoding.TYPES[asked.kind][0])
                    first = [await _unless_gone(request, asked.event())]  # before it, a failure has a status of its own
                    if isinstance(first[0], Cue):
                        first.append(await _unless_gone(request, asked.event()))
            except TimeoutError:
                raise _late(server) from None
            return Flow(asked, first, stack.pop_all())
        raise AssertionError

    @api.post("/v1/segments")
    async def segments(body: Text) -> dict[str, Any]:
        text = await server.analyse(body, False)
        texts, silences = text.texts or ("",), text.pauses or (None,) * len(text.segments)
        usual = [server.defaults.options.silence_ms] * (len(texts) - 1) + [0]
        parts = [
            {"text": part, "pieces": len(pieces), "silence_after_ms": own if silence is None else silence}
            for part, pieces, silence, own in zip(texts, text.segments, silences, usual, strict=True)
        ]
        return {"lead_ms": text.lead, "segments": parts, "unknown": text.unknown}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_about()]}

    @api.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != MODEL:
            raise Failure(404, f"there is no model {name[:80]!r}; there is {MODEL}", "model_not_found", "model")
        return model_about()

    def model_about() -> dict[str, Any]:
        return {"id": MODEL, "object": "model", "created": 0, "owned_by": "indextts-jax"}

    @api.get("/v1/voices")
    async def list_voices() -> dict[str, Any]:
        found = [{"id": named.name, "object": "voice", "uploaded": named.uploaded} for named in server.voices.names()]
        return {"object": "list", "data": found, "uploads": server.uploads}

    def uploads() -> None:
        if not server.uploads:
            raise Failure(403, "this server takes no voices: run it with --allow-uploads", "uploads_off")

    @api.post("/v1/voices", status_code=201)
    async def upload(name: Annotated[str, Form()], file: Annotated[UploadFile, File()]) -> dict[str, Any]:
        uploads()
        await server.upload(name, file)
        return {"id": name, "object": "voice", "uploaded": True}

    @api.delete("/v1/voices/{name}")
    async def remove(name: str) -> dict[str, Any]:
        uploads()
        try:
            server.voices.remove(name)
        except voices.Unknown as error:
            raise Failure(404, str(error), "voice_not_found", "name") from None
        return {"id": name, "object": "voice", "deleted": True}

    @api.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz")
    async def readiness() -> dict[str, str]:
        server.ready()
        return {"status": "ready"}

    @api.get("/metrics", response_class=Response)
    async def figures() -> Response:
        return Response(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if server.page:
        folder = resources.files("indextts_jax.serve") / "page"
        api.mount("/page", StaticFiles(directory=str(folder)))

        @api.get("/", response_class=Response)
        async def page() -> Response:
            content = (folder / "index.html").read_bytes()
            policy = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; frame-ancestors 'none'"
            return Response(content, media_type="text/html", headers={"Content-Security-Policy": policy})

    _answer_errors(api)
    limits = server.limits
    body_bytes = (1 << 16) + 12 * limits.characters  # of JSON, where a character is at most "\\ud83d\\ude00"
    guard = Guard(
        api, server.key, server.hosts, body_bytes, limits.upload_bytes, limits.body_seconds
    )  # fmt: skip
    return _Noted(guard, server)


def _wait(service: Service) -> int:
    """Seconds after which to try again: one for every batch of texts under way."""
    return max(1, min(60, math.ceil(service.places / service.rows)))


def _answer_errors(api: FastAPI) -> None:
    """Every error in OpenAI's form."""

    def answer(failure: Failure) -> JSONResponse:
        return JSONResponse(failure.body(), failure.status, headers=failure.headers)

    @api.exception_handler(Failure)
    async def failed(_: Request, failure: Failure) -> JSONResponse:
        return answer(failure)

    @api.exception_handler(Error)
    async def expected(_: Request, error: Error) -> JSONResponse:
        return answer(Failure(400, str(error), "invalid_value"))

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return answer(Failure(error.status_code, str(error.detail), code, headers=dict(error.headers or {})))

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            why = first.get("ctx", {}).get("error", "")
            return answer(
                Failure(400, f"the body is no JSON ({why}): send an object with input and voice", "invalid_json")
            )
        place = ".".join(str(part) for part in first["loc"][1:3])
        message = shown(ValueError(first["msg"].removeprefix("Value error, ")))
        return answer(Failure(400, f"{place}: {message}" if place else message, "invalid_value", place or None))

    @api.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        log.error("a bug in the server", exc_info=error)
        return answer(Failure(500, "a bug in the server: its log says more", "bug"))


_KNOWN = (
    "/v1/audio/speech", "/v1/segments", "/v1/models", "/v1/voices", "/healthz", "/readyz", "/metrics", "/",
)  # fmt: skip


class _Noted:
    """Counts every answer, and logs it as one record."""

    def __init__(self, app: App, server: Server):
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        noted: dict[str, Any] = {"id": secrets.token_hex(6)}
        scope.setdefault("state", {})["noted"] = noted
        begin, status, whole = time.perf_counter(), 0, False

        async def watched(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", noted["id"].encode())]
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"]
            known = path if path in _KNOWN else "other"
            self._server.metrics.requests.labels(known, str(status)).inc()
            about = {"method": scope["method"], "path": path[:200], "status": status, "whole": whole, **noted}
            about["seconds"] = round(time.perf_counter() - begin, 4)
            access.info("%s %s %d", scope["method"], path[:200], status, extra={"about": about})
