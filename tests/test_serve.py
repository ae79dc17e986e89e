"""The server as clients meet it: OpenAI's own client, many at once, those that hang up, and those that attack."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import soundfile

from debug.golden import FIXTURES
from indextts_jax import audio, drawing, emotion, pipeline, scheduling, streaming
from indextts_jax.audio import to_int16
from indextts_jax.cli import serve
from indextts_jax.decoding import Sampling
from indextts_jax.pipeline import Audio
from indextts_jax.request import Cancelled, Chunk, Options, Result, Streaming
from indextts_jax.serve import app, encoding, listening, voices
from indextts_jax.serve.app import Limits, Server
from indextts_jax.serve.body import Defaults
from indextts_jax.serve.guard import Failure
from indextts_jax.serve.service import Closing, Full, Service, Speaking
from indextts_jax.timing import Stopwatch
from indextts_jax.voice import save_voice
from tests import small
from tests.conftest import COMPILED
from tests.test_cli import misused, refused

pytestmark = pytest.mark.whole

OPTIONS = Options(Sampling(beams=1), max_codes=20, steps=2)
STREAMING = Streaming(first_codes=40, hop=64)
BATCH = 4
TEXT = "Where is the money? I do not know. Yes."
KEY = "a key"


class Running:
    """A server with the tiny model in this process, of a port of its own."""

    def __init__(self, model, folder, **settings):
        self.model = model
        self.server = Server(
            voices.Voices(folder), Defaults(OPTIONS, STREAMING, segment_tokens=12), uploads=True, page=True, **settings
        )
        self.service = Service(model.params, model.cfg, BATCH, 16)
        self.service.start()
        self.server.model, self.server.service, self.server.state = model, self.service, "ready"
        bound = listening.bind("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.listening = listening.listening(app.create(self.server), bound, 64)
        self.listening.__enter__()
        self.http = httpx.Client(base_url=self.url, timeout=100)
        self.openai = openai.OpenAI(api_key=KEY, base_url=f"{self.url}/v1", max_retries=0, timeout=100)

    def close(self):
        self.http.close()
        self.openai.close()
        self.service.close(10)
        self.listening.__exit__(None, None, None)

    def post(self, input=TEXT, voice="anna", **more):
        return self.http.post("/v1/audio/speech", json={"input": input, "voice": voice, **more})

    def until(self, true):
        """Wait for what other threads do."""
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture(scope="module")
def anna(voice):
    return voice._replace(mel=voice.mel[:60], content=voice.content[:60])


@pytest.fixture(scope="module")
def folder(anna, tmp_path_factory):
    found = tmp_path_factory.mktemp("voices")
    save_voice(found / "anna.safetensors", anna)
    save_voice(found / "ben.safetensors", anna._replace(latents=anna.latents[::-1]))
    (found / "notes.txt").write_text("no voice")
    return found


@pytest.fixture(scope="module")
def running(model, folder):
    found = Running(model, folder)
    yield found
    found.close()


def alone(model, voice, text=TEXT, seed=0, options=OPTIONS, felt=None) -> Audio:
    """What one request becomes by itself, with the server's batch."""
    analysis = model.text.analyse(text, 12)
    asked = pipeline.requests(model.params, model.cfg, analysis, voice, seed, options, felt)
    found = {id(result.request): result for result in scheduling.run(model.params, model.cfg, asked, BATCH, fixed=True)}
    return pipeline.join(model.cfg, [found[id(request)] for request in asked], options, analysis)


def streamed(model, voice, text=TEXT, seed=0, options=OPTIONS) -> list[Chunk]:
    analysis, options = model.text.analyse(text, 12), replace(options, batch=BATCH)
    return list(streaming.stream(model.params, model.cfg, analysis, voice, seed, options, None, STREAMING))


def pcm(samples) -> bytes:
    return to_int16(samples).astype("<i2").tobytes()


# ---- OpenAI's client ------------------------------------------------------------------------------------------------


def test_openai_gets_the_file_that_speak_makes(running, anna):
    """The bytes of the request alone; by `speak`, which draws fewer rows at once, but for rounding."""
    client = running.openai
    found = client.audio.speech.create(
        model="tts-1", voice="anna", input=TEXT, response_format="wav", extra_body={"seed": 3}
    )
    assert found.content == alone(running.model, anna, seed=3).encode("wav")
    samples, rate = soundfile.read(io.BytesIO(found.content), dtype="int16")
    assert rate == 22050
    assert len(found.response.headers["x-request-id"]) == 12
    analysis = running.model.text.analyse(TEXT, 12)
    [spoken] = pipeline.speak(running.model.params, running.model.cfg, [analysis], [anna], [3], OPTIONS)
    assert len(spoken.segments) == 3
    assert np.abs(samples.astype(int) - to_int16(spoken.samples)).max() <= 1
    assert [one.id for one in client.models.list()] == ["indextts-2"]
    assert client.models.retrieve("indextts-2").owned_by == "indextts-jax"
    with pytest.raises(openai.NotFoundError, match="no voice 'nobody'; there are: anna, ben") as error:
        client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT)
    assert (error.value.code, error.value.param) == ("voice_not_found", "voice")


def test_openai_gets_the_sound_while_it_is_made(running, anna):
    """Chunk by chunk, before all is drawn; together the bytes of `stream` alone."""
    options, text = replace(OPTIONS, max_codes=100), "One small test. [pause 300ms] Yes."
    expected = streamed(running.model, anna, text, 5, options)
    assert len(expected) > 3
    more = {"seed": 5, "max_codes": 100, "sample_rate": 22050}
    with running.openai.audio.speech.with_streaming_response.create(
        model="tts-1", voice="anna", input=text, response_format="pcm", stream_format="audio", extra_body=more
    ) as response:
        assert response.headers["content-type"] == "audio/pcm"
        assert response.headers["x-sample-rate"] == "22050"
        assert "content-length" not in response.headers
        content = b"".join(response.iter_bytes())
    assert content == b"".join(pcm(chunk.samples) for chunk in expected)
    body = {
        "input": text,
        "voice": {"id": "anna"},
        "response_format": "pcm",
        "stream_format": "sse",
        "cues": True,
        **more,
    }
    with running.http.stream("POST", "/v1/audio/speech", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    deltas = [base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta"]
    assert deltas == [pcm(chunk.samples) for chunk in expected]
    cues = [event for event in events if event["type"] == "speech.segment"]
    assert [cue["text"] for cue in cues] == ["One small test.", "Yes."]
    assert 0 == cues[0]["start"] < cues[0]["end"] < cues[1]["start"] < cues[1]["end"] <= len(content) / 44100
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["output_tokens"] == 200


def test_the_first_chunk_is_sent_before_the_last_is_made(running):
    """What is made after the first waits here until the client has the first."""
    got, take = threading.Event(), Service._take

    def waits(self, found):
        if isinstance(found, Chunk) and found.start:
            assert got.wait(60)
        take(self, found)

    body = {"input": "One small test.", "voice": "anna", "response_format": "pcm", "stream": True, "max_codes": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_take", waits)
        with running.http.stream("POST", "/v1/audio/speech", json=body) as response:
            pieces = response.iter_raw()
            assert len(next(pieces)) > 1000
            got.set()
            assert sum(map(len, pieces)) > 1000


# ---- many at once ---------------------------------------------------------------------------------------------------


def test_clients_share_batches_and_each_gets_what_it_gets_alone(running, anna):
    """Two kinds of sampling, whole and in chunks, other voices, seeds and texts, all at the same time."""
    ben = anna._replace(latents=anna.latents[::-1])
    texts = ("Yes.", "One small test.", TEXT)
    asked = []
    for i in range(12):
        options = replace(OPTIONS, sampling=Sampling(1 + (i % 4 == 1)), max_codes=12 + i)
        asked.append((texts[i % 3], ("anna", "ben")[i % 2], i, options, i % 3 == 2))

    def ask(text, name, seed, options, stream):
        more = {"beams": options.sampling.beams, "max_codes": options.max_codes, "sample_rate": 22050}
        return running.post(text, name, seed=seed, stream=stream, response_format="pcm", **more)

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda one: ask(*one), asked))
    for answer, (text, name, seed, options, stream) in zip(answers, asked, strict=True):
        assert answer.status_code == 200, answer.text
        voice = {"anna": anna, "ben": ben}[name]
        if stream:
            samples = np.concatenate([c.samples for c in streamed(running.model, voice, text, seed, options)])
        else:
            samples = alone(running.model, voice, text, seed, options).samples
        assert answer.content == pcm(samples)
    running.until(lambda: running.service.places == 0)
    assert running.service.rows_in_use == 0


def test_segments_of_texts_take_turns(model, anna):
    """A text of many segments does not keep a short one that comes later waiting for all of them."""
    service, told = Service(model.params, model.cfg, 1), queue.SimpleQueue()
    texts = {"long": model.text.analyse("One. " * 8, 4), "short": model.text.analyse("Yes.")}
    assert len(texts["long"].segments) == 8
    for name, text in texts.items():
        service.submit(Speaking(text, anna, 0, OPTIONS, lambda event, name=name: told.put((name, event))))
    service.start()
    ended = [told.get(timeout=100) for _ in range(2)]
    assert [name for name, _ in ended] == ["short", "long"]
    assert all(isinstance(event, Audio) for _, event in ended)
    service.close()


def test_kinds_of_sampling_take_turns(model, anna):
    """A text of one kind ends long before a long text of another one that came first."""
    service, told = Service(model.params, model.cfg, 2), queue.SimpleQueue()
    text = model.text.analyse("One. " * 30, 4)
    short = replace(OPTIONS, max_codes=4)
    for i, (said, sampling) in enumerate(((text, Sampling(1)), (model.text.analyse("Yes."), Sampling(2)))):
        options = replace(short, sampling=sampling)
        service.submit(Speaking(said, anna, 0, options, lambda event, i=i: told.put((i, service._back))))
    service.start()
    assert [told.get(timeout=100) for _ in range(2)] == [(1, pytest.approx(10, abs=3)), (0, 31)]
    service.close()


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_its_rows(running, monkeypatch, stream):
    """In the midst of a stream, and waiting for a file: the segment that is drawn is given up, the next never begun.

    The scheduler waits here until the client has gone.
    """
    gone, take, tick, errors = threading.Event(), Service._take, Service._tick, []

    def waits(self, found):
        if isinstance(found, Chunk) and found.start:
            assert gone.wait(60)
        errors.extend([found.error] if isinstance(found, Result) else [])
        take(self, found)

    def ticks(self, *counts):
        tick(self, *counts)
        assert stream or not self._handed or gone.wait(60)

    monkeypatch.setattr(Service, "_take", waits)
    monkeypatch.setattr(Service, "_tick", ticks)
    text = "One small test. [pause 1s] Two small tests. [pause 1s] Three. [pause 1s] Four. [pause 1s] Five."
    body = {"input": text, "voice": "anna", "response_format": "pcm", "max_codes": 300, "stream": stream}
    running.until(lambda: running.service._handed == running.service._back)
    with running.service._changed:
        running.service._handed = running.service._drawn = running.service._back = 0
    if stream:
        with running.http.stream("POST", "/v1/audio/speech", json=body) as response:
            next(response.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            running.http.post("/v1/audio/speech", json=body, timeout=0.5)
    running.until(lambda: running.service.places == 0)
    gone.set()
    running.until(lambda: running.service._handed == running.service._back)
    assert errors
    assert all(isinstance(error, Cancelled) for error in errors)
    monkeypatch.undo()
    assert running.post("Yes.").status_code == 200


def test_a_slow_reader_keeps_nobody_waiting(running):
    body = {"input": TEXT, "voice": "anna", "response_format": "wav", "stream": True, "sample_rate": 192000}
    with running.http.stream("POST", "/v1/audio/speech", json=body) as response:
        pieces = response.iter_raw()
        first = next(pieces)
        assert running.post("Yes.").status_code == 200
        assert len(first) + sum(map(len, pieces)) > 192000


def test_an_idle_server_does_nothing(running):
    ticks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.service, "_tick", lambda *counts: ticks.append(counts))
        running.until(lambda: running.service.rows_in_use == 0)
        time.sleep(0.3)
    assert ticks == []


# ---- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", encoding.TYPES)
def test_every_format_whole_and_growing(kind):
    """As long and as loud; a growing file has its bytes bit by bit, and can be read without its end."""
    time = np.arange(2 * 22050) / 22050
    samples = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    rate = encoding.rate_of(kind, None, 22050)
    assert rate == {"pcm": 24000, "opus": 24000}.get(kind, 22050)
    growing = encoding.Growing(kind, 22050, rate)
    pieces = [growing.bytes_of(part, i == 7) for i, part in enumerate(np.array_split(samples, 8))]
    for content in (encoding.whole(samples, 22050, kind, rate), b"".join(pieces)):
        if kind == "pcm":
            found = np.frombuffer(content, "<i2") / 32768
            assert len(found) == 2 * rate
        else:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                assert file.samplerate == rate
                found = file.read(round(1.9 * rate))
            assert len(found) == round(1.9 * rate)
        middle = found[rate // 2 : rate]
        assert 0.27 < np.abs(middle).max() < 0.33
        strongest = np.argmax(np.abs(np.fft.rfft(middle))) * rate / len(middle)
        assert abs(strongest - 440) < 4
    assert sum(map(bool, pieces[:-1])) >= 1
    if kind in audio.FORMATS:
        assert encoding.whole(samples, 22050, kind, rate) == audio.encode(samples, 22050, kind)


def test_formats_over_http(running):
    for kind, (media, _) in encoding.TYPES.items():
        for stream in (False, True):
            answer = running.post("Yes.", response_format=kind, stream=stream)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(media)
            assert len(answer.content) > 500
    assert running.post("Yes.").headers["content-type"] == "audio/mpeg"  # as OpenAI's
    slow, fast = (len(running.post("Yes.", response_format="pcm", speed=speed).content) for speed in (0.5, 2))
    assert 3.7 < slow / fast < 4.2


def test_emotions(running, anna):
    """Weights in three ways, of another voice, of a text: each is what the pipeline makes of it."""

    def samples(**more):
        answer = running.post("Yes.", response_format="pcm", sample_rate=22050, **more)
        assert answer.status_code == 200, answer.text
        return answer.content

    happy = emotion.Emotion((0.6, 0, 0, 0, 0, 0, 0, 0.2), alpha=0.5)
    expected = pcm(alone(running.model, anna, "Yes.", felt=happy).samples)
    weights = [0.6, 0, 0, 0, 0, 0, 0, 0.2]
    for given in ("happy=0.6,calm=0.2", {"happy": 0.6, "calm": 0.2}, weights):
        assert samples(emotion=given, emotion_alpha=0.5) == expected
    ben = anna._replace(latents=anna.latents[::-1], emotion=anna.emotion * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.server.voices, "known", {"anna": anna, "ben": ben}.get)
        felt = emotion.Emotion(vector=ben.emotion)
        assert samples(emotion_voice="ben") == pcm(alone(running.model, anna, "Yes.", felt=felt).samples)
    assert "reads no emotions off texts" in running.post(emotion_text="I am glad.").json()["error"]["message"]
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(running.server, "read", lambda text: asked.append(text) or tuple(weights))
        expected = pcm(alone(running.model, anna, "Yes.", felt=emotion.Emotion(weights)).samples)
        assert samples(emotion_text="I am glad.") == samples(emotion_text="I am glad.") == expected
        assert samples(instructions="Be glad.") == samples(emotion_from_text=True) == expected
    assert asked == ["I am glad.", "Be glad.", "Yes."]


def test_segments_as_they_will_be_spoken(running):
    answer = running.http.post("/v1/segments", json={"input": "[pause 70ms] One test. [pause 1s] Two 2."}).json()
    assert answer["lead_ms"] == 70
    assert [(part["text"], part["silence_after_ms"]) for part in answer["segments"]] == [
        ("One test.", 1000), ("Two two.", 0),
    ]  # fmt: skip


# ---- voices ---------------------------------------------------------------------------------------------------------


def test_voices_are_sent_listened_to_once_and_removed(running, model):
    record = (FIXTURES / "audio" / "voice_24k.wav").read_bytes()
    listed = running.http.get("/v1/voices").json()
    assert [one["id"] for one in listed["data"]] == ["anna", "ben"]
    sent = running.http.post("/v1/voices", data={"name": "Carla 1"}, files={"file": ("../../x.wav", record)})
    assert sent.status_code == 201, sent.text
    assert [one["id"] for one in running.http.get("/v1/voices").json()["data"]] == ["Carla 1", "anna", "ben"]
    expected = alone(model, model.listen(FIXTURES / "audio" / "voice_24k.wav"), "Yes.").encode("wav")
    assert running.post("Yes.", "Carla 1", response_format="wav").content == expected
    again = running.http.post("/v1/voices", data={"name": "anna"}, files={"file": ("x.wav", record)})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "voice_exists")
    assert running.http.delete("/v1/voices/Carla 1").status_code == 200
    assert running.http.delete("/v1/voices/anna").status_code == 404  # of the folder
    assert running.post("Yes.", "Carla 1").status_code == 404


def test_bad_voices_are_refused(running):
    def send(name, content, file="x.wav"):
        answer = running.http.post("/v1/voices", data={"name": name}, files={"file": (file, content)})
        return answer.status_code, answer.json()["error"]["message"]

    def sound(seconds, rate=8000, channels=1):
        found = io.BytesIO()
        noise = np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), channels))
        soundfile.write(found, noise, rate, format="WAV")
        return found.getvalue()

    assert send("a\nb", sound(1))[0] == send("", sound(1))[0] == send("x" * 65, sound(1))[0] == 400
    status, message = send("x", b"no sound" * 100)
    assert status == 400
    assert message.startswith("the recording cannot be read as audio")
    assert "/" not in message.split("(")[0]
    assert send("x", sound(0.05))[0] == 400
    assert send("x", sound(121))[0] == 413
    assert send("x", sound(0.2, channels=9))[0] == 400
    assert send("x", b"", "x.safetensors")[0] == 400
    assert [one["id"] for one in running.http.get("/v1/voices").json()["data"]] == ["anna", "ben"]


def test_so_many_voices_are_kept(model, anna, folder, monkeypatch):
    monkeypatch.setattr(voices, "HEARD", 1)
    monkeypatch.setattr(voices, "UPLOADED", 2)
    found, listened = voices.Voices(folder), []
    heard = replace(model)
    object.__setattr__(heard, "listen", lambda path: listened.append(path.stem) or anna)
    for name in ("anna", "anna", "ben", "anna"):
        found.voice(name, heard)
    assert listened == ["anna", "ben", "anna"]
    for i in range(4):
        found.upload(f"v{i}", (folder / "anna.safetensors").read_bytes(), "a.safetensors", 1, model)
    assert [named.name for named in found.names() if named.uploaded] == ["v2", "v3"]


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (b"{", 400, "invalid_json", "the body is no JSON"),
        (b"[]", 400, "invalid_value", "valid dictionary"),
        ({"voice": "anna"}, 400, "invalid_value", "input: Field required"),
        ({"input": "", "voice": "anna"}, 400, "invalid_value", "input: "),
        ({"input": "...", "voice": "anna"}, 400, "invalid_value", "nothing to pronounce"),
        ({"input": "Yes.", "voice": "../../etc/passwd"}, 404, "voice_not_found", "'../../etc/passwd'; there are: anna"),
        ({"input": "Yes.", "voice": "notes"}, 404, "voice_not_found", "no voice 'notes'"),
        ({"input": "Yes. " * 1000, "voice": "anna"}, 413, "text_too_long", "4,096"),
        ({"input": "Yes.", "voice": "anna", "steps": 101}, 400, "invalid_value", "steps: "),
        ({"input": "Yes.", "voice": "anna", "stepz": 1}, 400, "invalid_value", "stepz: Extra"),
        ({"input": "Yes.", "voice": "anna", "response_format": "aac"}, 400, "invalid_value", "response_format: "),
        ({"input": "Yes.", "voice": "anna", "sample_rate": 9999}, 400, "invalid_value", "cannot make mp3 at 9999 Hz"),
        ({"input": "Yes.", "voice": "anna", "emotion": "glad=1"}, 400, "invalid_value", "'glad' is none of happy"),
        ({"input": "Yes.", "voice": "anna", "emotion": {"happy": 2}}, 400, "invalid_value", "emotion"),
        ({"input": "Yes.", "voice": "anna", "emotion": "sad=1", "emotion_text": "a"}, 400, "invalid_value", "two emo"),
        ({"input": "Yes.", "voice": "anna", "emotion_alpha": 1}, 400, "invalid_value", "send one, too"),
        ({"input": "Yes.", "voice": "anna", "stream": True, "retries": 1}, 400, "invalid_value", "retries"),
        ({"input": "Yes.", "voice": "anna", "sample": False, "retries": 1}, 400, "invalid_value", "retries is 1"),
        ({"input": "Yes.", "voice": "anna", "stream": True, "first_codes": 1}, 422, "cannot_be_spoken", "first_codes"),
        ({"input": "Yes.", "voice": "anna", "seed": -1}, 400, "invalid_value", "seed: "),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(running, body, status, code, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = running.http.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert set(error) == {"message", "type", "code", "param"}
    assert running.service.places == 0


def test_other_paths(running):
    for method, path, status in (("GET", "/x", 404), ("GET", "/v1/audio/speech", 405), ("GET", "/v1/models/x", 404)):
        answer = running.http.request(method, path)
        assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "code", "param"})
    assert running.http.get("/healthz").json() == {"status": "ok"}
    assert running.http.get("/readyz").json() == {"status": "ready"}


def test_a_full_queue_says_when_to_come_again(running, monkeypatch):
    monkeypatch.setattr(running.service, "most", 0)
    answer = running.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1


def test_a_request_whose_time_is_over(running, monkeypatch):
    """While it waits, 504; midway the connection is cut, so that nobody takes what came for all."""
    monkeypatch.setattr(running.server, "limits", replace(running.server.limits, seconds=1e-6))
    answer = running.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    monkeypatch.undo()
    event_of = app.Asked.event

    async def event(self):
        found = await event_of(self)
        if isinstance(found, Chunk) and found.start:
            raise Failure(504, "late", "timeout")
        return found

    monkeypatch.setattr(app.Asked, "event", event)
    body = {"input": TEXT, "voice": "anna", "response_format": "wav", "stream": True}
    with running.http.stream("POST", "/v1/audio/speech", json=body) as response:
        coming = response.iter_raw()
        assert next(coming)
        with pytest.raises(httpx.RemoteProtocolError):
            next(coming)
    with running.http.stream("POST", "/v1/audio/speech", json={**body, "stream_format": "sse"}) as response:
        last = [line for line in response.iter_lines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    running.until(lambda: running.service.places == 0)


def test_what_no_speech_comes_of_is_one_status(running, monkeypatch):
    def fails(*arguments):
        raise scheduling.Error("no speech came of segment 1 of 1")

    monkeypatch.setattr(scheduling, "measure", fails)
    for stream in (False, True):
        answer = running.post("Yes.", stream=stream)
        if not stream:
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "cannot_be_spoken")
            assert "no speech came" in answer.json()["error"]["message"]


def test_a_scheduler_that_fails_begins_anew(running, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(drawing.Drawing, "step", lambda *_: 1 / 0)
        answer = running.post()
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "division by zero" in caplog.text
    assert running.post("Yes.").status_code == 200


# ---- the guard ------------------------------------------------------------------------------------------------------


def ask(settings, *requests):
    """Answers of a server without a model, without a socket."""

    async def all_of_them():
        transport = httpx.ASGITransport(app.create(Server(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return [await client.request(*request[:2], **request[2]) for request in requests]

    return asyncio.run(all_of_them())


def test_a_key_is_needed_where_there_is_one():
    def bearer(key):
        return {"headers": {"Authorization": f"Bearer {key}"}}

    answers = ask(
        {"key": KEY, "page": True},
        ("GET", "/v1/voices", {}), ("GET", "/v1/voices", bearer("a kez")), ("GET", "/metrics", {}),
        ("GET", "/v1/voices", bearer(KEY)), ("GET", "/healthz", {}), ("GET", "/", {}), ("GET", "/readyz", {}),
        ("POST", "/v1/audio/speech", {**bearer(KEY), "json": {"input": "Yes.", "voice": "anna"}}),
        ("GET", "/v1/voices", {"headers": {**bearer(KEY)["headers"], "Host": "speech.example"}}),
    )  # fmt: skip
    assert [answer.status_code for answer in answers] == [401, 401, 401, 200, 200, 200, 503, 503, 200]
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert answers[7].headers["retry-after"] == "5"
    assert "loading" in answers[7].json()["error"]["message"]


def test_pages_of_others_may_not_ask_a_server_without_a_key():
    """Not under a name of their own for this machine, and not across origins."""
    answers = ask(
        {},
        ("GET", "/v1/voices", {"headers": {"Host": "evil.example:8000"}}),
        ("GET", "/v1/voices", {"headers": {"Origin": "https://evil.example"}}),
        ("GET", "/v1/voices", {"headers": {"Origin": "http://127.0.0.1:8000"}}),
        ("GET", "/v1/voices", {"headers": {"Host": "localhost:8000"}}),
        ("GET", "/v1/voices", {"headers": {"Host": "[::1]:8000"}}),
    )
    assert [answer.status_code for answer in answers] == [403, 403, 200, 200, 200]


def test_bodies_are_counted():
    """By what they say, and as they come."""

    async def pieces():
        for _ in range(100):
            yield bytes(1 << 16)

    answers = ask(
        {"limits": Limits(upload_bytes=1 << 21), "uploads": True},
        ("POST", "/v1/audio/speech", {"content": bytes((1 << 20) + 1)}),
        ("POST", "/v1/audio/speech", {"content": pieces(), "headers": {"Content-Type": "application/json"}}),
        ("POST", "/v1/voices", {"data": {"name": "x"}, "files": {"file": bytes(1 << 21)}}),
        ("POST", "/v1/audio/speech", {"content": b"", "headers": {"Content-Length": "9" * 30}}),
    )  # fmt: skip
    assert [answer.status_code for answer in answers] == [413, 413, 413, 413]
    assert all(answer.json()["error"]["code"] == "too_large" for answer in answers)
    [answer] = ask({}, ("POST", "/v1/voices", {"data": {"name": "x"}, "files": {"file": b"x"}}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "uploads_off")


def test_few_voices_are_taken_at_once(monkeypatch):
    """The fifth is told to come later, and once the others are there it is taken."""

    async def all_of_them():
        begun, go = asyncio.Semaphore(0), asyncio.Event()

        async def slow(self, name, file):
            begun.release()
            await go.wait()

        monkeypatch.setattr(Server, "upload", slow)
        transport = httpx.ASGITransport(app.create(Server(uploads=True)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:

            async def send():
                return await client.post("/v1/voices", data={"name": "x"}, files={"file": b"x"})

            four = [asyncio.create_task(send()) for _ in range(4)]
            for _ in four:
                await begun.acquire()
            fifth = await send()
            go.set()
            return [answer.status_code for answer in [*await asyncio.gather(*four), fifth, await send()]]

    assert asyncio.run(all_of_them()) == [201, 201, 201, 201, 429, 201]


def test_a_body_that_never_comes_is_given_up(running):
    other = Running(running.model, None, limits=Limits(body_seconds=0.1))
    try:
        with socket.create_connection(("127.0.0.1", other.port), timeout=30) as client:
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{other.port}\r\nContent-Length: 9\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
    finally:
        other.close()


# ---- figures and the end --------------------------------------------------------------------------------------------


def test_silent_connections_are_closed(running, monkeypatch):
    """Those that say nothing, half a head, or half of a second one; not those that wait for an answer."""
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    host = f"Host: 127.0.0.1:{running.port}\r\n"
    whole = f"GET /healthz HTTP/1.1\r\n{host}\r\n"
    for sent, answers in (("", 0), ("GET /healthz HTTP/1.1\r\n", 0), (whole + "GET /heal", 1)):
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
            client.sendall(sent.encode())
            found = b""
            while piece := client.recv(1000):
                found += piece
            assert found.count(b"200 OK") == answers
    assert running.post(max_codes=60).status_code == 200


def test_many_silent_connections_keep_nobody_waiting(running):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
        assert running.http.get("/healthz").status_code == 200
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
        running.until(lambda: running.http.get("/healthz").status_code == 503)  # of more than there may be


def test_figures(running):
    def read():
        lines = running.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = read()
    length = len(running.post(response_format="pcm", sample_rate=22050).content)
    assert running.http.get("/nothing").status_code == 404
    after = read()

    def more(name):
        return after[name] - before.get(name, 0.0)

    assert more('indextts_requests_total{path="/v1/audio/speech",status="200"}') == 1
    assert more('indextts_requests_total{path="other",status="404"}') == 1
    assert more("indextts_first_audio_seconds_count") == more("indextts_request_seconds_count") == 1
    silence = 2 * 22050 * 200 // 1000
    assert abs(more("indextts_audio_seconds_total") - (length / 2 - silence) / 22050) < 1e-3
    assert 0 < more("indextts_used_row_steps_total") <= more("indextts_row_steps_total")
    assert after["indextts_rows"] == BATCH
    assert after["indextts_under_way"] == after["indextts_queue"] == after["indextts_rows_in_use"] == 0


def test_a_service_that_closes_finishes_what_is_under_way(model, anna):
    """It takes no more at once, and ends when the last place is given back.

    Whoever closes waits first, so that a text would wake it alone, were not all who wait woken.
    """
    service, told = Service(model.params, model.cfg, BATCH, most=1), queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        stack.enter_context(service.place())
        with pytest.raises(Full, match="1 requests are under way"), service.place():
            pass
        closing = ThreadPoolExecutor(1).submit(service.close)
        while not service.closing:
            time.sleep(0.01)
        service.start()
        while len(service._changed._waiters) < 2:
            time.sleep(0.01)
        service.submit(Speaking(model.text.analyse(TEXT, 12), anna, 0, OPTIONS, told.put))
        with pytest.raises(Closing), service.place():
            pass
        assert isinstance(told.get(timeout=100), Audio)
        assert not closing.done()
    assert closing.result(timeout=100)
    assert not service._thread.is_alive()


def test_a_service_that_must_end_gives_up_what_is_left(model, anna):
    service, told = Service(model.params, model.cfg, BATCH), queue.SimpleQueue()
    service.start()
    with service.place():
        options = replace(OPTIONS, max_codes=300)
        service.submit(Speaking(model.text.analyse("One small test. " * 40, 12), anna, 0, options, told.put))
        assert not service.close(0.01) or not service.usage.row_steps
    service._thread.join(100)
    assert isinstance(told.get(timeout=100), Cancelled)


def test_lines_of_json(running, capsys):
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("hello",), None)
    record.about = {"status": 200, "voice": "ä\n"}
    line = serve._JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) | {"time": ""} == {
        "time": "", "level": "info", "message": "hello", "status": 200, "voice": "ä\n",
    }  # fmt: skip


@pytest.mark.usefixtures("at_hand")
def test_mistakes_on_the_command_line_are_one_line(converted, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)

    def wrong(*arguments):
        return refused(capsys, tmp_path / "none", "serve", "--model", converted, *arguments)

    assert "give --api-key-file or set INDEXTTS_API_KEY" in wrong("--host", "0.0.0.0")
    assert "--api-key-file" in wrong("--api-key-file", tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in wrong("--api-key-file", tmp_path / "empty")
    assert "no such folder" in wrong("--voices", tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in wrong("--port", taken.getsockname()[1])
    assert "--port" in misused(capsys, "serve", "--model", converted, "--port", 70000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "uvicorn", None)
        assert "pip install 'indextts-jax[serve]'" in wrong()


@pytest.mark.slow
def test_programs_are_made_before_it_is_ready(model):
    """Without a voice, too: then no request for speech in a voice of six seconds compiles anything."""
    server = Server(defaults=Defaults(replace(OPTIONS, max_codes=64), STREAMING))
    stages = []
    serve._warm_up(server, model, BATCH, lambda stage, done, total: stages.append((stage, done, total)))
    assert stages[-1] == ("making programs", 4, 4)  # whole, in chunks, and of 32 and 64 codes
    voice = model.listen(audio.recording(small.speech(6, 22050, 1), 22050))
    with Stopwatch() as watch:
        alone(model, voice, "Hello.", 1, replace(OPTIONS, max_codes=64))
    assert watch.programs == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_under_way(converted, folder, number):
    """Exit status 0, or 130 for Ctrl-C; a request under way is answered whole, a new one is refused with 503."""
    command = [
        sys.executable, "-m", "indextts_jax.cli", "serve", "--model", converted, "--voices", folder, "--port", 0,
        "--beams", 1, "--max-codes", 400, "--steps", 1, "--log-json", "--segment-tokens", 8,
    ]  # fmt: skip
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "INDEXTTS_CACHE": str(COMPILED)},
    ) as process:  # fmt: skip
        try:
            address = process.stdout.readline().split()[-1]
            body = {"input": "One small test. " * 4, "voice": "anna", "response_format": "pcm", "stream": True}
            with httpx.Client(base_url=address, timeout=100) as client:
                assert client.get("/readyz").status_code == 200
                with client.stream("POST", "/v1/audio/speech", json=body) as response:
                    pieces = response.iter_raw()
                    first = next(pieces)
                    process.send_signal(number)
                    end = time.monotonic() + 60
                    while client.get("/readyz").status_code == 200:
                        assert time.monotonic() < end
                    assert client.post("/v1/audio/speech", json=body).status_code == 503
                    length = len(first) + sum(map(len, pieces))
            assert process.wait(100) == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
        finally:
            process.kill()
        lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert length / 2 / 24000 > 4 * 7
    [spoken] = [line for line in lines if line.get("status") == 200 and line["path"] == "/v1/audio/speech"]
    assert spoken["whole"]
    assert abs(spoken["audio_seconds"] - length / 48000) < 0.01
