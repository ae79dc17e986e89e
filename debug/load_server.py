"""Load and attacks on a server that runs beside this script, as tables:

    python -m debug.load_server [--model MODEL] [--clients 8] [--requests 48]

Without a model, the embedded one. Every answer is compared with the same request alone, bit by bit, so both must run on
one machine. Then `batch` speaks the same items, and the server is attacked, while others must be served. Run it on a
machine with nothing else to do: what it measures is time.
"""

import argparse
import contextlib
import io
import json
import logging
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from debug.golden import FIXTURES
from indextts_jax import convert, pipeline, scheduling, streaming
from indextts_jax.audio import to_int16
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.model import Model, load
from indextts_jax.request import Options
from indextts_jax.voice import save_voice

VOICE = FIXTURES / "audio" / "voice_24k.wav"
TEXTS = (
    "Yes.",
    "Hello world, this is a small test of the speech system.",
    "Where is the money? I do not know, and nobody has told me. Ask somebody else, please.",
)
RATE = 22050


@dataclass
class Item:
    """One request, and what came of it."""

    text: str
    seed: int
    streamed: bool
    content: bytes = b""
    status: int = 0
    first: float = 0.0  # s
    whole: float = 0.0


class Running:
    """The server's process."""

    def __init__(self, arguments: argparse.Namespace, model: Path, voices: Path):
        command = [
            sys.executable, "-m", "indextts_jax.cli", "serve", "--model", model, "--voices", voices, "--port", 0,
            "--batch", arguments.batch, "--beams", arguments.beams, "--max-codes", arguments.max_codes,
            "--steps", arguments.steps, "--allow-uploads", "--queue", arguments.queue,
            *(["--device", "cpu"] if arguments.cpu else []),
        ]  # fmt: skip
        # Of its messages the log alone: that the embedded model never stops by itself is no news.
        with (voices.parent / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Error(f"the server did not start: {(voices.parent / 'server.log').read_text()}")
        self.url = line.split()[-1]
        self.host, self.port = self.url.removeprefix("http://").split(":")
        self.http = httpx.Client(base_url=self.url, timeout=600)

    def megabytes(self) -> float:
        """Of memory that it holds."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def end(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(60)


def ask(client: httpx.Client, item: Item) -> None:
    body = {"input": item.text, "voice": "anna", "seed": item.seed, "response_format": "pcm", "sample_rate": RATE}
    begin = time.perf_counter()
    with client.stream("POST", "/v1/audio/speech", json=body | {"stream": item.streamed}) as answer:
        item.status, pieces = answer.status_code, []
        for piece in answer.iter_raw():
            item.first = item.first or time.perf_counter() - begin
            pieces.append(piece)
    item.content, item.whole = b"".join(pieces), time.perf_counter() - begin


def alone(model: Model, voice: Any, item: Item, options: Options) -> bytes:
    """What a request becomes by itself, with the server's batch."""
    text = model.text.analyse(item.text)
    if item.streamed:
        chunks = streaming.stream(model.params, model.cfg, text, voice, item.seed, options)
        samples = np.concatenate([chunk.samples for chunk in chunks])
    else:
        asked = pipeline.requests(model.params, model.cfg, text, voice, item.seed, options)
        results = scheduling.run(model.params, model.cfg, asked, options.batch, fixed=True)
        found = {id(result.request): result for result in results}
        samples = pipeline.join(model.cfg, [found[id(one)] for one in asked], options, text).samples  # type: ignore
    return to_int16(samples).astype("<i2").tobytes()


def under_load(running: Running, clients: int, count: int) -> tuple[list[Item], float]:
    """So many requests from so many clients: -> them, and the seconds that all took."""
    items = [Item(TEXTS[i % len(TEXTS)], i, i % 2 == 1) for i in range(count)]
    left, lock = iter(items), threading.Lock()

    def client() -> None:
        with httpx.Client(base_url=running.url, timeout=600) as http:
            while True:
                with lock:
                    item = next(left, None)
                if item is None:
                    return
                ask(http, item)

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return items, time.perf_counter() - begin


def by_batch(arguments: argparse.Namespace, model: Path, voice: Path, items: list[Item], folder: Path) -> float:
    """Seconds of audio per second of the command `batch` on the same items."""
    manifest = folder / "items.jsonl"
    rows = (json.dumps({"id": str(i), "text": item.text, "seed": item.seed}) for i, item in enumerate(items))
    manifest.write_text("\n".join(rows) + "\n")
    command = [
        sys.executable, "-m", "indextts_jax.cli", "batch", manifest, "--model", model, "--voice", voice,
        "--output-dir", folder / "spoken", "--batch", arguments.batch, "--beams", arguments.beams,
        "--max-codes", arguments.max_codes, "--steps", arguments.steps, "--quiet",
        *(["--device", "cpu"] if arguments.cpu else []),
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True)
    summary = json.loads((folder / "spoken" / "summary.json").read_text())
    return summary["audio"] / (summary["seconds"] - summary["preparing"])


# ---- attacks --------------------------------------------------------------------------------------------------------


def hang_up(running: Running) -> str:
    body = {"input": TEXTS[2] * 20, "voice": "anna", "stream": True}
    for _ in range(8):
        with running.http.stream("POST", "/v1/audio/speech", json=body) as answer:
            next(answer.iter_raw())
    return f"{answer.status_code}, cut by the client"


def slow(running: Running) -> Iterator[str]:
    """Readers that take nothing, while others are served."""
    body = {"input": TEXTS[2] * 10, "voice": "anna", "stream": True, "response_format": "wav", "sample_rate": 192_000}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running.http.stream("POST", "/v1/audio/speech", json=body))
        yield "200, nothing read"


def large(running: Running, megabytes: int) -> str:
    return status(running, "POST", "/v1/voices", data={"name": "x"}, files={"file": bytes(megabytes << 20)})


def status(running: Running, method: str, path: str, **more: Any) -> str:
    try:
        answer = running.http.request(method, path, **more)
    except httpx.TransportError as error:
        return f"cut ({type(error).__name__})"
    code = answer.json().get("error", {}).get("code", "") if "json" in answer.headers["content-type"] else ""
    return f"{answer.status_code} {code}".strip()


def body(running: Running, **more: Any) -> str:
    return status(running, "POST", "/v1/audio/speech", json={"input": "Yes.", "voice": "anna"} | more)


def crowd(running: Running, count: int) -> Iterator[str]:
    """Connections that say nothing: the server has so many, and tells others to come later."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection((running.host, int(running.port)), timeout=5))
        yield status(running, "GET", "/healthz")


def bomb() -> bytes:
    """A small file of many seconds: silence in FLAC, 8 channels."""
    found = io.BytesIO()
    soundfile.write(found, np.zeros((96_000 * 100, 8), np.int16), 96_000, format="FLAC")
    return found.getvalue()


def attacks(arguments: argparse.Namespace) -> list[tuple[str, Callable[[Running], Any]]]:
    many = {"headers": {"Content-Type": "application/json"}}
    return [
        ("8 clients hang up in the midst of long texts", hang_up),
        ("4 readers take nothing", slow),
        (f"{arguments.megabytes} MB as a voice", lambda running: large(running, arguments.megabytes)),
        ("a million characters", lambda running: body(running, input="a" * 1_000_000)),
        ("a million characters, beyond a body", lambda running: body(running, input="嗯" * 1_000_000)),
        ("no JSON", lambda running: status(running, "POST", "/v1/audio/speech", content=b"{" * 1000, **many)),
        ("deep JSON", lambda running: status(running, "POST", "/v1/audio/speech", content=b"[" * 500_000, **many)),
        ("a voice ../../etc/passwd", lambda running: body(running, voice="../../etc/passwd")),
        ("a recording of 8 channels", lambda running: status(
            running, "POST", "/v1/voices", data={"name": "bomb"}, files={"file": ("bomb.flac", bomb())}
        )),
        ("no recording", lambda running: status(
            running, "POST", "/v1/voices", data={"name": "none"}, files={"file": ("none.wav", bytes(1000))}
        )),
        ("a host of another name", lambda running: status(
            running, "GET", "/v1/voices", headers={"Host": "evil.example"}
        )),
        (f"{arguments.connections} connections", lambda running: crowd(running, arguments.connections)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a converted one")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU, whatever else there is")
    for name, default in (
        ("clients", 8), ("requests", 48), ("batch", 8), ("beams", 1), ("max-codes", 100), ("steps", 4), ("queue", 64),
        ("megabytes", 50), ("connections", 1000),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    logging.getLogger(scheduling.__name__).setLevel(logging.ERROR)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * arguments.connections)), hard))
    options = Options(
        Sampling(arguments.beams), max_codes=arguments.max_codes, steps=arguments.steps, batch=arguments.batch
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = arguments.model or folder / "tiny"
        if not arguments.model:
            convert.convert(FIXTURES / "tiny", path)
        model, voices = load(path), folder / "voices"
        voices.mkdir()
        voice = model.listen(VOICE)
        save_voice(voices / "anna.safetensors", voice)
        running = Running(arguments, path, voices)
        try:
            measure(arguments, running, model, voice, options, path, voices / "anna.safetensors", folder)
        finally:
            running.end()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(
    arguments: argparse.Namespace, running: Running, model: Model, voice: Any, options: Options, path: Path,
    voice_path: Path, folder: Path,
) -> None:  # fmt: skip
    note(f"{running.url} is ready")
    under_load(running, 2, 2 * len(TEXTS))  # what is compiled for these texts is compiled
    note("texts are compiled")
    before = running.megabytes()
    items, seconds = under_load(running, arguments.clients, arguments.requests)
    after = running.megabytes()
    note(f"{len(items)} answers in {seconds:.0f} s; now each alone")
    lost = sum(item.status != 200 for item in items)
    expected = {id(item): alone(model, voice, item, options) for item in items}
    equal = sum(item.content == expected[id(item)] for item in items)
    note("now by batch")
    audio = sum(len(item.content) for item in items) / 2 / RATE
    batch = by_batch(arguments, path, voice_path, items, folder)
    streamed, wholes = ([item for item in items if item.streamed is which] for which in (True, False))
    print(f"\n| {len(items)} requests of {arguments.clients} clients | |\n|---|---|")
    print(f"| answered, and equal to the bit to the same request alone | {len(items) - lost}, {equal} |")
    for name, values in (
        ("first sound of a stream, s: median, 99 of 100", [item.first for item in streamed]),
        ("the whole of a stream, s", [item.whole for item in streamed]),
        ("a file, s", [item.whole for item in wholes]),
    ):
        low, high = np.percentile(values, [50, 99])
        print(f"| {name} | {low:.2f}, {high:.2f} |")
    print(f"| seconds of audio per second; `batch` on the same items | {audio / seconds:.2f}; {batch:.2f} |")
    print(f"| memory before and after, MB | {before:.0f}, {after:.0f} |")

    print("\n| attack | answer | memory, MB more | another client meanwhile |\n|---|---|---|---|")
    probe = replace(items[0], content=b"", status=0)
    for name, attack in attacks(arguments):
        before, found = running.megabytes(), attack(running)
        lasting = not isinstance(found, str)
        said = next(found) if lasting else found
        with httpx.Client(base_url=running.url, timeout=600) as other:
            probe.first = 0.0
            ask(other, probe)
        good = "served" if probe.content == expected[id(items[0])] else f"NOT SERVED ({probe.status})"
        more = running.megabytes() - before
        if lasting:
            found.close()
        print(f"| {name} | {said} | {more:+.1f} | {good}, {probe.whole:.2f} s |", flush=True)
    time.sleep(1)
    figures = running.http.get("/metrics").text.splitlines()
    for line in figures:
        if line.startswith(("indextts_under_way ", "indextts_rows_in_use ")):
            print(f"\nafterwards: {line}")


if __name__ == "__main__":
    main()
