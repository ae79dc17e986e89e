// The page: what is asked for, and the sound while it is made.
import { Picture, Player, fromPcm, joined, subtitles, wav } from "./sound.js";

const RATE = 22050;
const EMOTIONS = ["happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm"];
const ADVANCED = [
  ["beams", "Beams", 1, 8, 1], ["temperature", "Temperature", 0.05, 5, 0.05], ["top_k", "Top k", 0, 1000, 1],
  ["top_p", "Top p", 0, 1, 0.05], ["repetition_penalty", "Repetition penalty", 0.1, 100, 0.1],
  ["length_penalty", "Length penalty", -10, 10, 0.1], ["max_codes", "Most codes of a segment", 1, 10000, 1],
  ["segment_tokens", "Text pieces of a segment", 1, 10000, 1], ["steps", "Steps of the flow", 1, 100, 1],
  ["cfg_rate", "Guidance", 0, 100, 0.1], ["silence_ms", "Silence between segments, ms", 0, 60000, 10],
  ["first_codes", "Codes of the first chunk", 1, 1500, 1],
];
const $ = (id) => document.getElementById(id);
let context, player, asking, recorder;

// ---- the server ----

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(options.headers ?? {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  $("key-form").hidden = answer.status !== 401;
  if (answer.ok) return answer;
  const error = await answer.json().catch(() => null);
  throw Object.assign(new Error(error?.error?.message ?? `the server answered ${answer.status}`), { status: answer.status });
}

const json = (body) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

function say(text) { $("status").textContent = text; }
function fail(error) { if (error.name !== "AbortError") $("error").textContent = error.message; }

// ---- voices ----

async function listVoices(chosen, select = $("voice")) {
  const { data, uploads } = await (await ask("/v1/voices")).json();
  for (const list of [$("voice"), $("emotion-voice")]) {
    const before = list === select && chosen ? chosen : list.value;
    list.replaceChildren(...data.map(({ id }) => new Option(id, id)));
    if (data.some(({ id }) => id === before)) list.value = before;
  }
  for (const id of ["add-voice", "emotion-file"]) $(id).hidden = !uploads;
  if (!data.length) say("There is no voice yet: add a recording of one.");
}

async function send(content, name, file, select) {
  $("error").textContent = "";
  say(`Listening to ${name} ...`);
  for (let n = 1; ; n++) {
    const form = new FormData(), own = n > 1 ? `${name} ${n}` : name;
    form.append("name", own);
    form.append("file", content, file);
    try {
      await ask("/v1/voices", { method: "POST", body: form });
    } catch (error) {
      if (error.status === 409 && n < 100) continue; // the name is taken
      say("Ready.");
      return fail(error);
    }
    await listVoices(own, select);
    return say(`The voice ${own} is there.`);
  }
}

function sendFile(input, select) {
  const [file] = input.files;
  if (file) send(file, file.name.replace(/\.[^.]*$/, "").trim().slice(0, 50) || "voice", file.name, select);
  input.value = "";
}

// What the microphone hears, as WAV: what browsers record, the server may not read.
async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType;
      recorder = null;
      $("record").textContent = "Record";
      $("record").setAttribute("aria-pressed", "false");
      try {
        const heard = await new AudioContext().decodeAudioData(await new Blob(parts, { type }).arrayBuffer());
        await send(wav(heard.getChannelData(0), heard.sampleRate), "microphone", "microphone.wav", $("voice"));
      } catch (error) { fail(error); }
    };
    recorder.start();
    $("record").textContent = "Stop recording";
    $("record").setAttribute("aria-pressed", "true");
    say("Recording: speak for some seconds, then stop.");
  } catch (error) { fail(error); }
}

// ---- the text ----

let showing;
function showSegments() {
  clearTimeout(showing);
  showing = setTimeout(async () => {
    const input = $("text").value, body = { input };
    if ($("segment_tokens").value) body.segment_tokens = Number($("segment_tokens").value);
    let items = [];
    try {
      if (input.trim()) ({ segments: items } = await (await ask("/v1/segments", json(body))).json());
      $("error").textContent = "";
    } catch (error) { fail(error); }
    if (input !== $("text").value) return;
    $("segments").replaceChildren(...items.map(({ text, silence_after_ms }) => {
      const item = document.createElement("li");
      item.textContent = text;
      if (silence_after_ms) {
        const silence = Object.assign(document.createElement("span"), { className: "silence" });
        silence.textContent = ` ${silence_after_ms / 1000} s of silence`;
        item.append(silence);
      }
      return item;
    }));
  }, 300);
}

// ---- emotion and settings ----

function emotionOf() {
  const kind = document.querySelector("[name=emotion]:checked").value, emotion_alpha = Number($("alpha").value);
  if (kind === "weights") {
    return { emotion: Object.fromEntries(EMOTIONS.map((name) => [name, Number($(name).value)])), emotion_alpha };
  }
  if (kind === "recording") return { emotion_voice: $("emotion-voice").value, emotion_alpha };
  if (kind === "sentence") return { emotion_text: $("emotion-text").value, emotion_alpha };
  return kind === "text" ? { emotion_from_text: true, emotion_alpha } : {};
}

function showEmotion() {
  const kind = document.querySelector("[name=emotion]:checked").value;
  for (const name of ["weights", "recording", "sentence"]) $(`emotion-${name}`).hidden = name !== kind;
  $("emotion-strength").hidden = kind === "voice";
}

function build() {
  $("emotion-weights").append(...EMOTIONS.map((name) => {
    const label = document.createElement("label");
    label.innerHTML = `<span>${name}</span><input id="${name}" type="range" min="0" max="1.2" step="0.05" value="0">` +
      `<output for="${name}">0</output>`;
    return label;
  }));
  $("advanced").append(...ADVANCED.map(([id, text, min, max, step]) => {
    const label = document.createElement("label");
    label.innerHTML = `<span>${text}</span><input id="${id}" type="number" min="${min}" max="${max}" step="${step}">`;
    return label;
  }));
}

function bodyOf() {
  const body = {
    input: $("text").value, voice: $("voice").value, seed: Number($("seed").value), speed: Number($("speed").value),
    response_format: "pcm", sample_rate: RATE, stream_format: "sse", cues: true, ...emotionOf(),
  };
  for (const [id] of ADVANCED) if ($(id).value) body[id] = Number($(id).value);
  return body;
}

// ---- speaking ----

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}

async function speak() {
  stop();
  const own = (asking = new AbortController());
  context ??= new AudioContext();
  context.resume();
  player = new Player(context, RATE);
  const begin = performance.now(), parts = [], cues = [], picture = new Picture($("mel"), RATE);
  $("error").textContent = "";
  $("audio").hidden = $("downloads").hidden = true;
  $("stop").disabled = false;
  document.querySelectorAll("#segments li").forEach((item) => item.classList.remove("spoken"));
  say("Waiting for the first sound ...");
  let first, complete = false;
  try {
    const answer = await ask("/v1/audio/speech", { ...json(bodyOf()), signal: own.signal });
    for await (const event of events(answer)) {
      if (event.type === "speech.audio.delta") {
        const samples = fromPcm(Uint8Array.from(atob(event.audio), (c) => c.charCodeAt(0)));
        first ??= (performance.now() - begin) / 1000;
        parts.push(samples);
        player.add(samples);
        picture.add(samples);
        const seconds = parts.reduce((n, part) => n + part.length, 0) / RATE;
        say(`Playing: ${seconds.toFixed(1)} s are there.`);
      } else if (event.type === "speech.segment") {
        cues.push(event);
        $("segments").children[cues.length - 1]?.classList.add("spoken");
      } else if (event.type === "error") throw new Error(event.error.message);
      else if (event.type === "speech.audio.done") complete = true;
    }
    if (!complete) throw new Error("the sound was cut off: speak again");
    const seconds = parts.reduce((n, part) => n + part.length, 0) / RATE, taken = (performance.now() - begin) / 1000;
    say(`${seconds.toFixed(1)} s of sound in ${taken.toFixed(1)} s, the first after ${first.toFixed(1)} s.`);
  } catch (error) {
    if (asking === own) say(parts.length ? "Stopped." : "Ready.");
    fail(error);
  }
  if (parts.length) keep(joined(parts), cues);
  if (asking === own) $("stop").disabled = true;
}

const links = [];
function keep(samples, cues) {
  links.splice(0).forEach(URL.revokeObjectURL);
  const link = (blob) => (links.push(URL.createObjectURL(blob)), links.at(-1));
  $("audio").src = $("wav").href = link(wav(samples, RATE));
  $("srt").href = link(new Blob([subtitles(cues, false)], { type: "application/x-subrip" }));
  $("vtt").href = link(new Blob([subtitles(cues, true)], { type: "text/vtt" }));
  $("audio").hidden = $("downloads").hidden = false;
  const said = cues.map(({ text }) => text).join(" ");
  $("mel").setAttribute("aria-label", `Mel spectrogram of ${(samples.length / RATE).toFixed(1)} s: ${said}`);
}

function stop() {
  asking?.abort();
  player?.stop();
  $("stop").disabled = true;
}

// ---- what happens when ----

build();
$("form").addEventListener("submit", (event) => { event.preventDefault(); speak(); });
$("stop").addEventListener("click", () => { stop(); say("Stopped."); });
$("text").addEventListener("input", showSegments);
$("segment_tokens").addEventListener("input", showSegments);
$("voice-file").addEventListener("change", () => sendFile($("voice-file"), $("voice")));
$("emotion-file").addEventListener("change", () => sendFile($("emotion-file"), $("emotion-voice")));
$("record").addEventListener("click", record);
$("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 2 ** 31); });
$("emotion").addEventListener("change", showEmotion);
document.addEventListener("input", ({ target }) => {
  const output = document.querySelector(`output[for="${target.id}"]`);
  if (output) output.value = target.value;
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  begin();
});

function begin() {
  $("error").textContent = "";
  listVoices().then(showSegments, fail);
}
window.indextts = { played: () => (player?.nodes.length ? context.currentTime - player.begin : 0) }; // s, for tests
showEmotion();
begin();
