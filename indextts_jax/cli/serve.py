"""indextts-jax serve: speech over HTTP, as OpenAI's clients ask for it."""

import argparse
import dataclasses
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_jax import embedded, interrupts
from indextts_jax.cli.options import (
    Parser,
    add_batch,
    add_common,
    add_device,
    add_ends,
    add_lora,
    add_model,
    add_rendering,
    add_sampling,
    add_silence,
    add_speed,
    add_text,
    command,
    number,
    seed,
)
from indextts_jax.cli.shared import Progress, load_model, progress_of, read_settings
from indextts_jax.errors import Error, NotFound

if TYPE_CHECKING:
    from indextts_jax.model import Model
    from indextts_jax.serve.app import Server
    from indextts_jax.serve.body import Defaults

log = logging.getLogger(__name__)

KEY = "INDEXTTS_API_KEY"
WARM = "Hello."  # what is spoken before the server says that it is ready
WARM_CODES = 256  # of the longest segment that is: five seconds of speech


EXAMPLES = (
    "indextts-jax serve",
    "indextts-jax serve --voices voices",
    "indextts-jax serve --voices voices --host 0.0.0.0 --api-key-file key",
)


def add(commands: Any) -> None:
    about = "Speak over HTTP, as OpenAI's clients ask for it; requests share batches."
    sub = command(commands, "serve", run, about, "[--voices DIR] [options]", *EXAMPLES)
    add_options(sub, 8000)
    sub.set_defaults(page=False)


def add_options(sub: Parser, port: int, uploads: bool = False) -> None:
    """What `serve` and `webui` have in common; uploads: whether they are allowed anyway."""
    sub.bare = True  # the model may stand in the settings
    group = sub.add_argument_group("everyday")
    add_model(sub, group)
    add_lora(group)
    group.add_argument(
        "--voices",
        type=Path,
        metavar="DIR",
        help=f"folder of recordings and Voice files: anna.wav is the voice anna (default: of {embedded.NAME}, its own)",
    )
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen (%(default)s: this machine alone); elsewhere than on this machine a key is needed",
    )
    group.add_argument(
        "--port", type=number(int, 0, 65535), default=port, metavar="N", help="0: any that is free (%(default)s)"
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"file that holds the key that clients must send (default: the variable {KEY}, if it is set)",
    )
    if not uploads:
        group.add_argument("--allow-uploads", action="store_true", help="let clients send voices")
    group.add_argument("--log-json", action="store_true", help="log each request and each message as a line of JSON")
    group.add_argument("--no-warmup", action="store_true", help="be ready at once; the first requests compile programs")
    add_device(group)
    group = sub.add_argument_group("limits", "What one client, or all of them, may take.")
    group.add_argument(
        "--queue",
        type=number(int, 1, 100_000),
        default=64,
        metavar="N",
        help="requests for speech under way and waiting; more are told to come later (%(default)s)",
    )
    group.add_argument(
        "--max-characters", type=number(int, 1), default=4096, metavar="N", help="of a text (%(default)s)"
    )
    group.add_argument(
        "--timeout", type=number(float, 0.1), default=600.0, metavar="SECONDS", help="of a request (%(default)g)"
    )
    group.add_argument(
        "--upload-mb", type=number(float, 0.001, 1000), default=20.0, metavar="MB", help="of a voice (%(default)g)"
    )
    group.add_argument(
        "--upload-seconds",
        type=number(float, 0.1, 3600),
        default=120.0,
        metavar="S",
        help="of a voice's recording, of which 15 s are heard (%(default)g)",
    )
    group.add_argument(
        "--connections", type=number(int, 1, 100_000), default=2048, metavar="N", help="open at once (%(default)s)"
    )
    group = sub.add_argument_group("speech", "Defaults of requests that leave them out.")
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="the same seed gives the same audio (%(default)s)"
    )
    add_speed(group)
    add_silence(group)
    add_ends(group)
    add_text(group)
    group.add_argument("--first-codes", type=number(int, 1, 1500), default=50, metavar="N", help="see `speak` (50)")
    group.add_argument("--hop", type=number(int, 1, 1500), default=200, metavar="N", help="see `speak` (200)")
    group.add_argument(
        "--first-segment-tokens", type=number(int, 0, 10_000), default=0, metavar="N", help="see `speak` (0)"
    )
    add_sampling(sub)
    group = sub.add_argument_group("rendering")
    add_rendering(group)
    add_batch(group)
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    try:
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401

        from indextts_jax.serve import app
    except ModuleNotFoundError as error:
        raise Error(f"{error.name} is not installed: pip install 'indextts-jax[serve]'") from None
    from indextts_jax.serve.app import Limits, Server
    from indextts_jax.serve.listening import bind, listening
    from indextts_jax.serve.voices import Voices

    if options.log_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())
        app.access.setLevel(logging.INFO)
    key = _key(options)
    limits = Limits(
        options.max_characters, options.timeout, round(options.upload_mb * 2**20), options.upload_seconds
    )  # fmt: skip
    hosts = tuple(dict.fromkeys([*app.LOCAL, options.host]))
    try:
        own = embedded.VOICES if options.model == embedded.FOLDER else None
        voices = Voices(options.voices or own)
    except Error as error:
        raise Error(f"--voices {error}") from None
    uploads = options.page or options.allow_uploads
    server = Server(voices, _defaults(options), limits, uploads, options.page, key, hosts)
    bound = bind(options.host, options.port)
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{shown}:{bound.getsockname()[1]}"
    with listening(app.create(server), bound, options.connections):
        _prepare(options, server)
        if not options.quiet:
            print(f"{'the page is' if options.page else 'listening'} at {address}", flush=True)
        if getattr(options, "browser", False):
            import webbrowser

            webbrowser.open(address)
        try:
            threading.Event().wait()  # for a signal
        except interrupts.Interrupted as signalled:
            with interrupts.shielded():  # what is left to do is not to be broken into
                _drain(server)
            if signalled.number == signal.SIGTERM:  # told to end, it has ended
                raise SystemExit(0) from None
            signalled.add_note("what was under way is finished")
            raise


def _key(options: argparse.Namespace) -> str | None:
    """What clients must send. Raises Error where one is needed, or cannot be read."""
    key = os.environ.get(KEY)
    if options.api_key_file is not None:
        try:
            key = options.api_key_file.read_text("utf-8").strip()
        except FileNotFoundError:
            raise NotFound(f"--api-key-file {options.api_key_file}: no such file; check the path") from None
        except (OSError, UnicodeDecodeError) as error:
            raise Error(f"--api-key-file {options.api_key_file}: cannot be read ({error})") from None
        if not key:
            raise Error(f"--api-key-file {options.api_key_file}: is empty; write a key into it")
    if not key and options.host not in ("127.0.0.1", "localhost", "::1"):
        raise Error(
            f"--host {options.host}: others could use this server; give --api-key-file or set {KEY}, or use 127.0.0.1"
        )
    return key or None


def _defaults(options: argparse.Namespace) -> "Defaults":
    from indextts_jax.request import Streaming
    from indextts_jax.serve.body import Defaults

    own = {name: getattr(options, name) for name in ("silence_ms", "fade_ms", "trim_tail", "speed")}
    return Defaults(
        read_settings(options, options.batch, **own), Streaming(options.first_codes, options.hop), options.seed,
        options.language, options.segment_tokens, options.first_segment_tokens, options.paragraph_ms,
    )  # fmt: skip


def _prepare(options: argparse.Namespace, server: "Server") -> None:
    """Load the model, and speak once, so that nobody waits for programs."""
    from indextts_jax import checkpoint
    from indextts_jax.models.layers import dtype_of
    from indextts_jax.serve.service import Service
    from indextts_jax.text import load_glossary

    with progress_of(options) as progress:
        model = load_model(options, progress, None)
        if options.glossary:
            model = dataclasses.replace(
                model, text=dataclasses.replace(model.text, glossary=load_glossary(options.glossary))
            )
        server.model = model
        server.service = Service(model.params, model.cfg, options.batch, options.queue)
        reader: list[Any] = []

        def read(text: str) -> tuple[float, ...]:
            if not reader:
                reader.append(checkpoint.load_reader(options.model, dtype_of(model.params["gpt"])))
            return reader[0].read(text)

        server.read = read
        if not options.no_warmup:
            server.state = "warming up"
            _warm_up(server, model, server.service.rows, progress)
        server.service.start()
        server.state = "ready"


def _warm_up(server: "Server", model: "Model", rows: int, progress: Progress) -> None:
    """Speak in one of the voices: in chunks, whole, and as long as `WARM_CODES`. What cannot be is no reason to end."""
    import numpy as np

    from indextts_jax import audio, buckets, pipeline, scheduling
    from indextts_jax.request import Given

    defaults, most = server.defaults, min(WARM_CODES, server.defaults.options.max_codes)
    try:
        named = server.voices.names()
        if named:
            voice = server.voices.voice(named[0].name, model)
        else:  # listened to is what sounds, whatever it is
            noise = np.random.default_rng(0).normal(0, 0.1, 6 * audio.MEL_RATE).astype(np.float32)
            voice = model.listen(audio.recording(noise, audio.MEL_RATE))
        options = dataclasses.replace(defaults.options, max_codes=most, retries=0)
        text = model.text.analyse(WARM)
        [whole, *_] = pipeline.requests(model.params, model.cfg, text, voice, 0, options)
        asked = [whole, dataclasses.replace(whole, streaming=defaults.streaming)]
        for codes in (codes for codes in buckets.CODES if codes <= most):
            asked.append(dataclasses.replace(whole, given=Given(codes=np.zeros(codes, np.int32))))
        logging.getLogger(scheduling.__name__).setLevel(logging.ERROR)  # that segments are cut off is no news here
        try:
            for _ in scheduling.run(
                model.params, model.cfg, asked, rows, fixed=True,
                tick=lambda _, finished: progress("making programs", finished, len(asked)),
            ):  # fmt: skip
                pass
        finally:
            logging.getLogger(scheduling.__name__).setLevel(logging.NOTSET)
    except Error as error:
        log.warning("nothing could be spoken to make programs ahead (%s): the first requests wait for them", error)


def _drain(server: "Server") -> None:
    """Finish what is under way, and refuse what is new."""
    server.state = "ending"
    from indextts_jax.serve.listening import SENDING

    if server.service is not None:
        log.info("ending: %d requests are under way", server.service.places)
        server.service.close(server.limits.seconds + SENDING)


class _JsonLines(logging.Formatter):
    """One line of JSON for each record: time, level, message, and what is known of a request."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        entry = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry | getattr(record, "about", {}), ensure_ascii=False)
