"""The page in a real browser: what it shows, plays, draws and keeps."""

import io
import json
import shutil
import threading

import pytest
import soundfile

from debug.golden import FIXTURES
from indextts_jax.request import Chunk, Options
from indextts_jax.serve.service import Service
from tests.test_serve import KEY, Running, anna, folder, pcm, streamed  # noqa: F401 (fixtures)

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.whole, pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]  # fmt: skip

RECORD = FIXTURES / "audio" / "voice_24k.wav"


@pytest.fixture(scope="module")
def running(model, folder):  # noqa: F811
    found = Running(model, folder)
    yield found
    found.close()


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags += ["--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def page(browser, running):
    """The page, on which nothing may go wrong unseen."""
    context, wrong = browser.new_context(permissions=["microphone"], viewport={"width": 1200, "height": 860}), []
    found = context.new_page()
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    found.goto(running.url)
    playwright.expect(found.locator("#voice option")).not_to_have_count(0)
    yield found
    context.close()
    assert [text for text in wrong if "status of 4" not in text] == []


def downloaded(page, link) -> bytes:
    with page.expect_download() as found:
        page.locator(link).click()
    return found.value.path().read_bytes()


def colours(page) -> int:
    """How many different pixels the picture has."""
    return page.evaluate("""() => {
        const canvas = document.getElementById("mel");
        const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(all.data.buffer)).size;
    }""")


def test_a_text_is_spoken_played_drawn_and_kept(page, running, anna, monkeypatch):  # noqa: F811
    """It sounds while it is made; then there are the samples that were streamed, and subtitles of its segments."""
    expect, got, take = playwright.expect, threading.Event(), Service._take

    def waits(self, found):
        if isinstance(found, Chunk) and found.start:
            assert got.wait(60)
        take(self, found)

    monkeypatch.setattr(Service, "_take", waits)
    page.get_by_label("What to say").fill("One small test. [pause 300ms] Yes.")
    expect(page.locator("#segments li")).to_have_text(["One small test. 0.3 s of silence", "Yes."])
    page.locator("#seed").fill("7")
    page.get_by_text("Advanced").click()
    page.get_by_label("Most codes of a segment").fill("100")
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#status")).to_contain_text("Playing", timeout=60_000)
    page.wait_for_function("() => window.indextts.played() > 0")  # before the rest is made
    assert not page.locator("#audio").is_visible()
    assert colours(page) > 50
    got.set()
    expect(page.locator("#status")).to_contain_text("s of sound in", timeout=60_000)
    expect(page.locator("#segments li.spoken")).to_have_count(2)
    samples, rate = soundfile.read(io.BytesIO(downloaded(page, "#wav")), dtype="int16")
    options = Options(running.server.defaults.options.sampling, max_codes=100, steps=2)
    expected = streamed(running.model, anna, "One small test. [pause 300ms] Yes.", 7, options)
    assert rate == 22050
    assert samples.tobytes() == b"".join(pcm(chunk.samples) for chunk in expected)
    srt, vtt = downloaded(page, "#srt").decode(), downloaded(page, "#vtt").decode()
    assert srt.startswith("1\n00:00:00,000 --> 00:00:01,997\nOne small test.\n\n2\n00:00:02,297 --> ")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.997\n")
    assert "Yes." in vtt
    assert "One small test. Yes." in page.locator("#mel").get_attribute("aria-label")


def test_subtitles_are_escaped(page):
    both = page.evaluate("""async () => {
        const { subtitles } = await import("/page/sound.js");
        const cues = [{ start: 3599.9996, end: 3601.5, text: "a --> <b> & c" }];
        return [subtitles(cues, false), subtitles(cues, true)];
    }""")
    assert both[0] == "1\n01:00:00,000 --> 01:00:01,500\na -> <b> & c\n"
    assert both[1] == "WEBVTT\n\n01:00:00.000 --> 01:00:01.500\na --&gt; &lt;b&gt; &amp; c\n"


def test_voices_by_file_and_microphone(page, running):
    expect = playwright.expect
    try:
        page.locator("#voice-file").set_input_files(str(RECORD))
        expect(page.locator("#status")).to_have_text("The voice voice_24k is there.", timeout=60_000)
        expect(page.locator("#voice")).to_have_value("voice_24k")
        page.locator("#voice-file").set_input_files(str(RECORD))  # the name is taken
        expect(page.locator("#voice")).to_have_value("voice_24k 2", timeout=60_000)
        page.get_by_role("button", name="Record", exact=True).click()
        expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(2500)
        page.get_by_role("button", name="Stop recording").click()
        expect(page.locator("#voice")).to_have_value("microphone", timeout=60_000)
        page.locator("#voice-file").set_input_files(
            files=[{"name": "x.wav", "mimeType": "audio/wav", "buffer": b"no sound"}]
        )
        expect(page.get_by_role("alert")).to_contain_text("the recording cannot be read")
    finally:
        for name in ("voice_24k", "voice_24k 2", "microphone"):
            running.http.delete(f"/v1/voices/{name}")


def test_what_is_chosen_is_what_is_asked(page):
    """Emotions of every kind, and settings."""
    bodies = []

    def answer(route):
        bodies.append(json.loads(route.request.post_data))
        route.fulfill(status=422, body=json.dumps({"error": {"message": "not today"}}))

    page.route("**/v1/audio/speech", answer)

    def asked(kind):
        page.get_by_label(kind, exact=True).check()
        page.get_by_role("button", name="Speak").click()
        playwright.expect(page.get_by_role("alert")).to_have_text("not today")
        return bodies[-1]

    assert not {"emotion", "emotion_voice", "emotion_text", "emotion_alpha"} & set(asked("of the voice"))
    page.get_by_label("eight weights").check()
    page.locator("#happy").fill("0.6")
    page.locator("#alpha").fill("0.5")
    body = asked("eight weights")
    assert len(body["emotion"]) == 8
    assert (body["emotion"]["happy"], body["emotion"]["calm"], body["emotion_alpha"]) == (0.6, 0, 0.5)
    page.get_by_label("of a recording").check()
    page.get_by_label("Recording", exact=True).select_option("ben")
    assert asked("of a recording")["emotion_voice"] == "ben"
    page.get_by_label("of a sentence").check()
    page.get_by_label("Sentence", exact=True).fill("I am glad!")
    page.locator("#speed").fill("1.25")
    body = asked("of a sentence")
    assert (body["emotion_text"], body["speed"], body["seed"]) == ("I am glad!", 1.25, 0)
    assert asked("of the text")["emotion_from_text"]
    assert "beams" not in body
    page.get_by_text("Advanced").click()
    page.get_by_label("Beams", exact=True).fill("2")
    assert asked("of the text")["beams"] == 2


def test_stop_frees_the_rows(page, running):
    page.get_by_text("Advanced").click()
    page.get_by_label("Most codes of a segment").fill("1500")
    page.get_by_label("What to say").fill("One small test. " * 20)
    page.get_by_role("button", name="Speak").click()
    playwright.expect(page.locator("#status")).to_contain_text("Playing", timeout=60_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    playwright.expect(page.locator("#status")).to_have_text("Stopped.")
    running.until(lambda: running.service.places == running.service.rows_in_use == 0)
    assert page.locator("#wav").is_visible()  # what came until then


def test_by_keyboard_and_with_names(page):
    """Everything that can be used has a name, and is reached by the tab key in its order."""
    nameless = page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button, a, canvas")]
        .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML)""")
    assert nameless == []
    page.get_by_role("button", name="Record", exact=True).focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[0] == "text"
    assert reached.index("seed") < reached.index("speed") < reached.index("speak")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert page.locator("#status").get_attribute("aria-live") == "polite"


def test_a_key_is_asked_for(browser, model, folder):  # noqa: F811
    other = Running(model, folder, key=KEY)
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(other.url)
        page.get_by_label("This server needs a key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        playwright.expect(page.locator("#voice option")).to_have_text(["anna", "ben"])
        assert not page.locator("#key-form").is_visible()
    finally:
        context.close()
        other.close()
